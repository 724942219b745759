//! What a run needs of a device's memory, from shapes alone, before any weight is loaded.

use crate::{device::Device, memory};
use reft_models::{Dtype, Footprint, Precision, Quant, tuned::block_of};
use serde::Serialize;

/// Bytes that a run needs at its peak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Needs {
    /// The program, the tokenizer and the data; on the CPU only.
    pub program: u64,
    /// The frozen model.
    pub weights: u64,
    /// What the tape keeps, and the gradients of one block.
    pub activations: u64,
    /// A slice of the logits, before the blocks' gradients are there.
    pub logits: u64,
    /// What is trained, and its gradients.
    pub adapter: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// All of it, but for what is not there at the same time.
    pub total: u64,
    /// The largest tensor.
    pub largest: u64,
}

/// The shapes of a run, from which its needs follow.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shapes {
    /// Names and shapes of the model's tensors.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Blocks on the tape, from the first edited one up.
    pub taped: usize,
    /// The largest micro-batch: rows, and tokens of the longest.
    pub batch: (usize, usize),
    /// Most labels of a micro-batch that have logits, and numbers of each; none for a classifier.
    pub logits: (usize, usize),
    /// Trained parameters.
    pub parameters: usize,
    /// Whether weights are trained, not interventions: then the tape also keeps the input of each.
    pub trains_weights: bool,
}

/// The settings that change needs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Settings {
    pub precision: Precision,
    pub checkpointing: bool,
    pub batch_size: usize,
}

/// Freed memory that the allocator keeps in pieces, as measured on small models.
const KEPT_BY_ALLOCATOR: u64 = 8 << 20;

/// Bytes that a pass needs at its peak, of that many blocks on the tape.
pub(crate) fn activations(footprint: Footprint, taped: usize, checkpointing: bool) -> u64 {
    let (held, passing) = held_and_passing(footprint, taped, checkpointing);
    (held + passing).max(footprint.forward as u64)
}

/// Bytes that a pass holds until its backward pass, and those that it then needs for one block.
fn held_and_passing(of: Footprint, taped: usize, checkpointing: bool) -> (u64, u64) {
    let (held, passing) = match checkpointing {
        true => (taped * of.input, of.forward.max(of.kept + of.backward)),
        false => (taped * of.kept, of.backward),
    };
    (held as u64, passing as u64)
}

impl Shapes {
    /// What the run needs. `footprint` is the model's, of a batch and a type.
    pub fn needs(
        &self,
        settings: Settings,
        device: &Device,
        footprint: &dyn Fn(usize, usize, Dtype) -> Footprint,
    ) -> Needs {
        let Settings { precision, checkpointing, batch_size } = settings;
        let bytes = |(name, shape): &(String, Vec<usize>)| {
            precision.bytes_of(name, shape, device.packs_int4()) as u64
        };
        let weights: u64 = self.tensors.iter().map(bytes).sum();
        let numbers = |(_, shape): &&(String, Vec<usize>)| shape.iter().product::<usize>() as u64;
        // A quantised block's weights are numbers as long as it is on the tape.
        let in_block = self.tensors.iter().filter(|(name, _)| block_of(name) == Some(0));
        let dense = match precision.quant {
            Some(_) => {
                in_block.map(|tensor| numbers(&tensor) as usize).sum::<usize>() * precision.dtype.size()
            }
            None => 0,
        };
        let (rows, seq) = (self.batch.0.min(batch_size), self.batch.1);
        let mut of_block = footprint(rows, seq, precision.dtype);
        of_block.kept += dense + if self.trains_weights { 4 * of_block.input } else { 0 };
        let (held, passing) = held_and_passing(of_block, self.taped, checkpointing);
        let labels = (self.logits.0 * rows).div_ceil(self.batch.0.max(1));
        let slice = labels * self.logits.1;
        // As they are, less their maximum, and their exponential.
        let logits = 3 * 4 * slice as u64;
        let adapter = 2 * 4 * self.parameters as u64;
        let optimizer = 2 * 4 * self.parameters as u64;
        let program = match device.is_cpu() {
            true => memory::resident().unwrap_or(0) + KEPT_BY_ALLOCATOR,
            false => 0,
        };
        let most = self.tensors.iter().max_by_key(|tensor| numbers(tensor));
        let loading = most.map_or(0, |tensor| 4 * numbers(&tensor));
        let activations = (held + passing).max(of_block.forward as u64);
        let training = activations.max(held + logits) + adapter + optimizer;
        let piece = most.map_or(0, bytes).max(of_block.largest as u64).max(4 * slice as u64);
        Needs {
            program,
            weights,
            activations,
            logits,
            adapter,
            optimizer,
            total: program + weights + training.max(loading),
            largest: piece,
        }
    }

    /// The three changes of settings that help most, as they are written on the command line of `reft train`, or of another
    /// verb if nothing is trained, with what would then be needed.
    pub fn remedies(
        &self,
        settings: Settings,
        device: &Device,
        footprint: &dyn Fn(usize, usize, Dtype) -> Footprint,
        supported: &dyn Fn(Precision) -> bool,
    ) -> Vec<(String, u64)> {
        let trains = self.taped > 0 || self.parameters > 0;
        let written = |key: &str, value: &str| match trains {
            true => format!("{key}={value}"),
            false => format!("--{key} {value}"),
        };
        let mut changes = Vec::new();
        let Settings { precision, checkpointing, batch_size } = settings;
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let precision = Precision { dtype, ..precision };
            if dtype.size() < settings.precision.dtype.size() && supported(precision) {
                changes.push((written("dtype", dtype.name()), Settings { precision, ..settings }));
            }
        }
        for quant in [Quant::Int8, Quant::Int4] {
            let precision = Precision { quant: Some(quant), ..precision };
            let smaller = quant == Quant::Int8 || device.packs_int4();
            if smaller && !self.trains_weights && precision != settings.precision && supported(precision) {
                let changed = Settings { precision, checkpointing: true, ..settings };
                changes.push((written("quant", quant.name()), changed));
            }
        }
        if self.taped > 0 && !checkpointing && !self.trains_weights {
            let changed = Settings { checkpointing: true, ..settings };
            changes.push(("train.checkpointing=true".into(), changed));
        }
        if trains && batch_size > 1 {
            let changed = Settings { batch_size: 1, ..settings };
            changes.push((format!("train.batch_size=1 train.accumulation={batch_size}"), changed));
        }
        let mut remedies: Vec<(String, u64)> = changes
            .into_iter()
            .map(|(change, settings)| (change, self.needs(settings, device, footprint).total))
            .collect();
        remedies.sort_by_key(|(_, total)| *total);
        remedies.truncate(3);
        remedies
    }
}

/// What helps a run that has run out of memory.
pub const ADVICE: &str = "any of these would help: train.checkpointing=true, a smaller train.batch_size with a larger \
                          train.accumulation, a smaller data.max_length, quant=int8";

/// Bytes as MiB or GiB.
pub fn bytes(n: u64) -> String {
    match n as f64 / f64::from(1 << 20) {
        mib if mib < 1024.0 => format!("{mib:.1} MiB"),
        mib => format!("{:.2} GiB", mib / 1024.0),
    }
}
