//! A file for the states that do not fit the memory.

use super::states::EnteringStates;
use crate::{precision::Dtype, weights::floats};
use burn::tensor::{Tensor, TensorData, backend::Backend};
use reft_core::host_values;
use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom, Write},
};

/// States of texts as numbers in f32, one text after the other.
#[derive(Debug)]
pub(super) struct Overflow {
    file: File,
    end: u64,
    limit: u64,
}

/// Where the states of a text are in the file.
#[derive(Debug, Clone)]
pub(super) struct Written {
    offset: u64,
    /// Those of the active tokens, then keys and values in turn.
    shapes: Vec<[usize; 2]>,
}

impl Overflow {
    pub(super) fn new(file: File, limit: u64) -> Self {
        Self { file, end: 0, limit }
    }

    /// Appends the states of a text. `None` if there is no room for them.
    pub(super) fn write<B: Backend>(&mut self, states: &EnteringStates<B>) -> Option<Written> {
        let offset = self.end;
        if offset.saturating_add(states.bytes()) > self.limit {
            return None;
        }
        match self.try_write(states) {
            Ok(shapes) => Some(Written { offset, shapes }),
            Err(_) => {
                // The disk is full, or the like: what was written before can still be read.
                (self.end, self.limit) = (offset, offset);
                None
            }
        }
    }

    fn try_write<B: Backend>(&mut self, states: &EnteringStates<B>) -> io::Result<Vec<[usize; 2]>> {
        self.file.seek(SeekFrom::Start(self.end))?;
        let pairs = states.constant.iter().flat_map(|(keys, values)| [keys, values]);
        let mut shapes = Vec::new();
        for tensor in std::iter::once(&states.active).chain(pairs) {
            let bytes: Vec<u8> = host_values(tensor.clone()).into_iter().flat_map(f32::to_le_bytes).collect();
            self.file.write_all(&bytes)?;
            self.end += bytes.len() as u64;
            shapes.push(tensor.dims());
        }
        Ok(shapes)
    }

    /// Reads the states of a text.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn read<B: Backend>(
        &mut self,
        written: &Written,
        device: &B::Device,
    ) -> io::Result<EnteringStates<B>> {
        self.file.seek(SeekFrom::Start(written.offset))?;
        let mut tensors = Vec::with_capacity(written.shapes.len());
        for shape in &written.shapes {
            let mut bytes = vec![0; 4 * shape[0] * shape[1]];
            self.file.read_exact(&mut bytes)?;
            let data = TensorData::new(floats(&bytes, Dtype::F32), *shape);
            tensors.push(Tensor::from_data(data, device));
        }
        let mut tensors = tensors.into_iter();
        let active = tensors.next().ok_or(io::ErrorKind::InvalidData)?;
        let mut constant = Vec::new();
        while let (Some(keys), Some(values)) = (tensors.next(), tensors.next()) {
            constant.push((keys, values));
        }
        Ok(EnteringStates { active, constant })
    }
}
