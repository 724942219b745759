//! States of texts that no training changes, kept from one epoch to the next.

mod overflow;
mod states;

use crate::batch::{Padding, TokenBatch};
use burn::tensor::backend::Backend;
use overflow::{Overflow, Written};
use std::{collections::HashMap, fs::File};

pub(crate) use states::EnteringStates;

/// The states of texts before the first edit, which are the same in every epoch: those that enter the first edited block, and
/// the keys and values of the tokens before the first edited one in the blocks above.
#[derive(Debug)]
pub struct ReusedStates<B: Backend> {
    texts: HashMap<Text, Kept<B>>,
    bytes: u64,
    limit: u64,
    overflow: Option<Overflow>,
}

/// A text of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Text {
    ids: Vec<u32>,
    types: Vec<u32>,
    prompt_len: usize,
}

/// Where the states of a text are.
#[derive(Debug)]
enum Kept<B: Backend> {
    Memory(EnteringStates<B>),
    File(Written),
}

impl Text {
    fn of(tokens: &TokenBatch, text: usize) -> Self {
        let places = text * tokens.seq..(text + 1) * tokens.seq;
        let present: Vec<usize> = places.filter(|at| tokens.positions[*at].is_some()).collect();
        Self {
            ids: present.iter().map(|at| tokens.ids[*at]).collect(),
            types: present.iter().filter_map(|at| tokens.types.get(*at).copied()).collect(),
            prompt_len: tokens.prompt_lens[text],
        }
    }

    fn batch(texts: &[&Self]) -> TokenBatch {
        let ids: Vec<&[u32]> = texts.iter().map(|text| text.ids.as_slice()).collect();
        let types: Vec<&[u32]> = texts.iter().map(|text| text.types.as_slice()).collect();
        let prompt_lens = texts.iter().map(|text| text.prompt_len).collect();
        let batch = TokenBatch::new(&ids, Padding::Right).with_prompt_lens(prompt_lens);
        if types.iter().all(|types| types.is_empty()) { batch } else { batch.with_types(&types) }
    }
}

impl<B: Backend> ReusedStates<B> {
    /// Nothing yet, and room for this many bytes.
    pub fn new(limit: u64) -> Self {
        Self { texts: HashMap::new(), bytes: 0, limit, overflow: None }
    }

    /// Puts what does not fit into a file, which must be empty, up to a number of bytes.
    pub fn with_overflow(self, file: File, limit: u64) -> Self {
        Self { overflow: Some(Overflow::new(file, limit)), ..self }
    }

    /// Number of bytes that are kept in memory.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The states of a batch. `compute` gets the texts that are not there yet.
    pub(crate) fn states_of(
        &mut self,
        tokens: &TokenBatch,
        device: &B::Device,
        compute: impl FnOnce(&TokenBatch) -> Vec<EnteringStates<B>>,
    ) -> EnteringStates<B> {
        let texts: Vec<Text> = (0..tokens.batch).map(|text| Text::of(tokens, text)).collect();
        let mut states: Vec<Option<EnteringStates<B>>> =
            texts.iter().map(|text| self.kept(text, device)).collect();
        let mut missing: Vec<&Text> = Vec::new();
        for (text, _) in texts.iter().zip(&states).filter(|(_, states)| states.is_none()) {
            if !missing.contains(&text) {
                missing.push(text);
            }
        }
        if !missing.is_empty() {
            let computed = compute(&Text::batch(&missing));
            for (text, computed) in missing.into_iter().zip(computed) {
                for (_, states) in texts.iter().zip(&mut states).filter(|(other, _)| *other == text) {
                    *states = Some(computed.clone());
                }
                self.keep(text, computed);
            }
        }
        EnteringStates::of_texts(&states.into_iter().flatten().collect::<Vec<_>>())
    }

    fn kept(&mut self, text: &Text, device: &B::Device) -> Option<EnteringStates<B>> {
        match self.texts.get(text)? {
            Kept::Memory(states) => Some(states.clone()),
            // What cannot be read is computed.
            Kept::File(written) => self.overflow.as_mut()?.read(written, device).ok(),
        }
    }

    fn keep(&mut self, text: &Text, states: EnteringStates<B>) {
        let bytes = states.bytes();
        let kept = if self.bytes + bytes <= self.limit {
            self.bytes += bytes;
            Some(Kept::Memory(states))
        } else {
            self.overflow.as_mut().and_then(|overflow| overflow.write(&states)).map(Kept::File)
        };
        if let Some(kept) = kept {
            self.texts.insert(text.clone(), kept);
        }
    }
}
