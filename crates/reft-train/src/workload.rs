//! How much device memory a run needs, from shapes alone: known before any weight is loaded.

use crate::{
    device::{Chosen, Device},
    error::RunError,
    memory::{self, MemoryNeeds},
};
use reft_kernels::Kernels;
use reft_models::{Dtype, Footprint, Precision, Quant, names::block_of};

/// Memory that the allocator keeps after it was freed, as measured on small models.
const ALLOCATOR_OVERHEAD: u64 = 8 << 20;

/// Activation memory of a pass with `taped` blocks on the tape, in bytes.
pub(crate) fn activation_bytes(block: Footprint, taped: usize, checkpointing: bool) -> u64 {
    let (kept, transient) = kept_and_transient(block, taped, checkpointing);
    (kept + transient).max(block.forward as u64)
}

/// What a pass keeps until its backward pass, and what that then needs for one block, in bytes.
fn kept_and_transient(block: Footprint, taped: usize, checkpointing: bool) -> (u64, u64) {
    let (kept, transient) = match checkpointing {
        true => (taped * block.input, block.forward.max(block.kept + block.backward)),
        false => (taped * block.kept, block.backward),
    };
    (kept as u64, transient as u64)
}

/// The largest batch of an evaluation, which has no tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EvaluationLoad {
    /// Rows per forward pass, as configured.
    pub rows: usize,
    /// The longest row, in tokens.
    pub seq: usize,
    /// Most labels of a row whose logits are computed.
    pub labels: usize,
    /// Bytes of the KV cache for one row, if answers are generated.
    pub cache: u64,
}

/// The shapes and settings of a run that determine its memory.
#[derive(Clone)]
pub struct Workload<'a> {
    /// Names and shapes of the model's tensors.
    pub tensors: Vec<(&'a str, &'a [usize])>,
    /// How the model is held.
    pub precision: Precision,
    /// Memory of one block, given a batch size, a sequence length and a dtype.
    pub footprint: &'a dyn Fn(usize, usize, Dtype) -> Footprint,
    /// Number of blocks on the tape, from the lowest edited one up.
    pub taped: usize,
    /// Whether only one block is on the tape at a time.
    pub checkpointing: bool,
    /// Rows per micro-batch, as configured.
    pub batch_size: usize,
    /// Rows and sequence length of the largest micro-batch.
    pub batch: (usize, usize),
    /// Labels of that micro-batch whose logits are computed at a time, and logits per label; 0 for classifiers.
    pub logits: (usize, usize),
    /// The largest number of rows whose logits exist at a time, given the number of logits per row.
    pub rows_of_logits: fn(usize) -> usize,
    /// How many numbers there are for each logit at a time.
    pub numbers_per_logit: usize,
    /// The evaluation of held-out rows.
    pub evaluation: EvaluationLoad,
    /// Number of trainable parameters.
    pub parameters: usize,
    /// Whether weights of the model are trained: then the tape also keeps the input of each linear layer.
    pub trains_weights: bool,
}

impl<'a> Workload<'a> {
    /// Loading a model without training it.
    pub fn inference(tensors: Vec<(&'a str, &'a [usize])>, precision: Precision) -> Self {
        Self {
            tensors,
            precision,
            footprint: &|_, _, _| Footprint::default(),
            taped: 0,
            checkpointing: false,
            batch_size: 1,
            batch: (0, 0),
            logits: (0, 0),
            rows_of_logits: |_| 0,
            numbers_per_logit: 1,
            evaluation: EvaluationLoad::default(),
            parameters: 0,
            trains_weights: false,
        }
    }

    /// Number of weights of the model.
    pub fn num_weights(&self) -> usize {
        self.tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// The memory that the run needs on a device.
    pub fn needs(&self, device: &Device) -> MemoryNeeds {
        let elements = |shape: &[usize]| shape.iter().product::<usize>() as u64;
        let bytes_of = |(name, shape): &(&str, &[usize])| self.precision.bytes_of(name, shape) as u64;
        let weights: u64 = self.tensors.iter().map(bytes_of).sum();
        let mut block =
            (self.footprint)(self.batch.0.min(self.batch_size), self.batch.1, self.precision.dtype);
        if self.precision.quant.is_some() {
            // A matrix is dequantized within its product.
            let in_block = self.tensors.iter().filter(|(name, _)| block_of(name) == Some(0));
            let dense: u64 = in_block.map(|(_, shape)| elements(shape)).max().unwrap_or(0);
            let dense = dense as usize * self.precision.dtype.size();
            block.forward += dense;
            block.backward += dense;
        }
        if self.trains_weights {
            block.kept += 4 * block.input;
        }
        let (kept, transient) = kept_and_transient(block, self.taped, self.checkpointing);
        let rows = self.batch.0.min(self.batch_size);
        let labels = (self.logits.0 * rows).div_ceil(self.batch.0.max(1));
        let logit_slice = 4 * (labels * self.logits.1) as u64;
        let logits = self.numbers_per_logit as u64 * logit_slice;
        let adapter = 2 * 4 * self.parameters as u64;
        let optimizer = 2 * 4 * self.parameters as u64;
        let program = match device.uses_host_memory() {
            true => memory::resident().unwrap_or(0) + ALLOCATOR_OVERHEAD,
            false => 0,
        };
        let largest_weight = self.tensors.iter().max_by_key(|(_, shape)| elements(shape));
        // A tensor is converted from f32 on the host, one at a time.
        let loading = largest_weight.map_or(0, |(_, shape)| 4 * elements(shape));
        let activations = (kept + transient).max(block.forward as u64);
        let evaluation = self.evaluation_bytes();
        let training = activations.max(kept + logits).max(evaluation) + adapter + optimizer;
        MemoryNeeds {
            program,
            weights,
            activations,
            logits,
            evaluation,
            adapter,
            optimizer,
            reused: 0,
            total: program + weights + training.max(loading),
            largest: largest_weight.map_or(0, bytes_of).max(block.largest as u64).max(logit_slice),
        }
    }

    /// Activations, logits and the cache of an evaluation, in bytes.
    fn evaluation_bytes(&self) -> u64 {
        let EvaluationLoad { rows, seq, labels, cache } = self.evaluation;
        let block = (self.footprint)(rows, seq, self.precision.dtype);
        let n_logits =
            (rows * labels.max(1)).min((self.rows_of_logits)(self.logits.1.max(1)).max(rows)) * self.logits.1;
        // The input and the output of a block, and either its transient tensors or the logits.
        (2 * block.input + block.forward.max(4 * self.numbers_per_logit * n_logits)) as u64
            + rows as u64 * cache
    }

    /// Checks that the device has enough memory; returns what is needed.
    ///
    /// # Errors
    /// If it does not. The error lists settings that would help.
    pub fn check<B: Kernels>(&self, on: &Chosen<B::Device>) -> Result<MemoryNeeds, RunError> {
        let needs = self.needs(&on.info);
        let device = || on.info.name.clone();
        if let Some(capacity) = on.info.memory.filter(|capacity| needs.total > *capacity) {
            let is_supported = |p: Precision| on.precision::<B>(Some(p.dtype), p.quant, p.dtype).is_ok();
            let mut remedies = self.remedies(&on.info, &is_supported);
            // One that is enough is worth more than one that is not.
            if remedies.iter().any(|(_, total)| *total <= capacity) {
                remedies.retain(|(_, total)| *total <= capacity);
            }
            return Err(RunError::Memory { needs: Box::new(needs), device: device(), capacity, remedies });
        }
        match on.info.max_buffer.filter(|max| needs.largest > *max) {
            Some(max) => Err(RunError::Buffer { needed: needs.largest, device: device(), max }),
            None => Ok(needs),
        }
    }

    /// The three changes of settings that help most and what the run would then need. They are written as arguments of
    /// `reft train`, or of another verb if nothing is trained.
    fn remedies(&self, device: &Device, is_supported: &dyn Fn(Precision) -> bool) -> Vec<(String, u64)> {
        let trains = self.taped > 0 || self.parameters > 0;
        let argument = |key: &str, value: &str| match trains {
            true => format!("{key}={value}"),
            false => format!("--{key} {value}"),
        };
        let mut changes = Vec::new();
        for dtype in [Dtype::Bf16, Dtype::F16] {
            let precision = Precision { quant: self.precision.quant, ..Precision::new(dtype) };
            if dtype.size() < self.precision.dtype.size() && is_supported(precision) {
                changes.push((argument("dtype", dtype.name()), Self { precision, ..self.clone() }));
            }
        }
        for quant in [Quant::Int8, Quant::Int4] {
            let precision = Precision { quant: Some(quant), ..self.precision };
            let is_new = precision != self.precision && !self.trains_weights;
            if is_new && is_supported(precision) {
                let changed = Self { precision, checkpointing: true, ..self.clone() };
                changes.push((argument("quant", quant.name()), changed));
            }
        }
        if self.taped > 0 && !self.checkpointing && !self.trains_weights {
            changes.push(("train.checkpointing=true".into(), Self { checkpointing: true, ..self.clone() }));
        }
        if trains && self.batch_size > 1 {
            let change = format!("train.batch_size=1 train.accumulation={}", self.batch_size);
            changes.push((change, Self { batch_size: 1, ..self.clone() }));
        }
        if trains && self.evaluation.rows > 1 {
            let evaluation = EvaluationLoad { rows: 1, ..self.evaluation };
            changes.push(("eval.batch_size=1".into(), Self { evaluation, ..self.clone() }));
            if self.batch_size > 1 {
                let change =
                    format!("train.batch_size=1 train.accumulation={} eval.batch_size=1", self.batch_size);
                changes.push((change, Self { batch_size: 1, evaluation, ..self.clone() }));
            }
        }
        let mut remedies: Vec<(String, u64)> =
            changes.into_iter().map(|(change, changed)| (change, changed.needs(device).total)).collect();
        remedies.sort_by_key(|(_, total)| *total);
        remedies.truncate(3);
        remedies
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::device::cpu;

    const MIB: u64 = 1 << 20;

    /// A run whose blocks take a few MiB for each row, with this evaluation.
    fn workload(
        footprint: &dyn Fn(usize, usize, Dtype) -> Footprint,
        evaluation: EvaluationLoad,
    ) -> Workload<'_> {
        Workload {
            footprint,
            taped: 1,
            batch_size: 4,
            batch: (4, 10),
            logits: (40, 100),
            evaluation,
            parameters: 10,
            ..Workload::inference(Vec::new(), Precision::default())
        }
    }

    #[test]
    fn a_large_evaluation_is_planned_and_its_batch_size_is_a_remedy() {
        let footprint = |batch: usize, _: usize, _: Dtype| {
            let mib = batch << 20;
            Footprint { input: mib, kept: mib, forward: mib, backward: mib, largest: mib }
        };
        let device = cpu().expect("a CPU");
        let with = |rows, cache| workload(&footprint, EvaluationLoad { rows, seq: 10, labels: 5, cache });
        // Without the program, whose memory is measured.
        let bytes = |needs: MemoryNeeds| needs.total - needs.program;
        let total = |rows, cache| bytes(with(rows, cache).needs(&device));
        let training = total(0, 0);
        assert_eq!(total(1, MIB), training, "smaller than a step of training");
        assert_eq!(total(600, 0), training - 8 * MIB + 1800 * MIB);
        assert_eq!(total(600, MIB), training - 8 * MIB + 2400 * MIB);
        let remedies = with(600, MIB).remedies(&device, &|_| false);
        assert!(remedies[0].0.ends_with("eval.batch_size=1"), "{remedies:?}");
    }
}
