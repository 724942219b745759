//! What a run would do, and the memory that it needs.

use crate::{
    checkpoint::sampler_config,
    data::{Sampler, Tokenized},
    device::Chosen,
    error::RunError,
    memory::{self, MemoryNeeds},
    method::TrainMethod,
    recipe::Recipe,
    reuse,
    tasks::{ConfigOf, Task},
    train_config::TrainConfig,
    workload::{EvaluationLoad, Workload},
};
use reft_kernels::Kernels;
use reft_models::{Checkpoint, Dtype, ModelConfig, Precision, TunedName};
use serde::{Serialize, Serializer};

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// What is trained.
    pub method: TrainMethod,
    /// The model.
    pub model: String,
    /// Its number of weights.
    pub weights: usize,
    /// How they are held.
    #[serde(serialize_with = "as_text")]
    pub precision: Precision,
    /// The device.
    pub device: String,
    /// Rows to train on.
    pub rows: usize,
    /// Updates.
    pub steps: usize,
    /// Rows and sequence length of the largest micro-batch.
    pub batch: (usize, usize),
    /// Whether gradient checkpointing is used.
    pub checkpointing: bool,
    /// Number of trainable parameters, without the head's.
    pub trainable: usize,
    /// Number of parameters of the head.
    pub head: usize,
    /// The memory that it needs, in bytes.
    pub memory: MemoryNeeds,
    /// Memory of the device in bytes, if known.
    pub capacity: Option<u64>,
    /// Free memory in bytes, on the CPU.
    pub free: Option<u64>,
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

/// Plans a run over encoded examples.
///
/// # Errors
/// If the recipe does not fit the model, or the run does not fit the device.
pub(super) fn plan<B: Kernels, T: Task<B>>(
    recipe: &Recipe,
    task: &T,
    checkpoint: &Checkpoint<ConfigOf<B, T>>,
    precision: Precision,
    examples: &[T::Example],
    held_out: &[T::Example],
    on: &Chosen<B::Device>,
) -> Result<Plan, RunError> {
    let config = &checkpoint.config;
    let tensors: Vec<(&str, &[usize])> = checkpoint.tensors().collect();
    let n_layers = config.n_layers();
    let reft = recipe.reft_config(n_layers, config.hidden_size())?;
    let tuning = recipe.tuning();
    let (trainable, taped) = match &tuning {
        Some(tuning) => {
            let elements = |name: &TunedName| name.shape.iter().product::<usize>();
            (tuning.names(&tensors)?.iter().map(elements).sum(), n_layers)
        }
        None => (reft.num_params()?, reft.n_taped(n_layers)),
    };
    let head = task.num_head_params(config);
    let footprint = |batch, seq, dtype: Dtype| task.footprint(config, batch, seq, dtype);
    let packs_rows = B::packs_rows(precision.dtype.burn());
    let largest = largest_batch(&recipe.train, examples, |size| match packs_rows {
        true => size.tokens,
        false => footprint(size.rows, size.seq, precision.dtype).kept,
    });
    // Without padding, as if all rows had the same length.
    let seq = match packs_rows {
        true => {
            let members: Vec<&T::Example> = largest.members.iter().map(|idx| &examples[*idx]).collect();
            task.n_packed(&members, reft.packing()).div_ceil(largest.rows.max(1))
        }
        false => largest.seq,
    };
    let n_logits = task.n_logits(config);
    let slice = if n_logits > 0 { largest.labels.min(B::rows_of_logits(n_logits)) } else { 0 };
    let workload = Workload {
        tensors,
        precision,
        footprint: &footprint,
        taped,
        checkpointing: recipe.checkpointing(),
        batch_size: recipe.train.batch_size,
        batch: (largest.rows, seq),
        logits: (slice, n_logits),
        rows_of_logits: B::rows_of_logits,
        numbers_per_logit: B::numbers_per_logit(),
        evaluation: evaluation_load(recipe, task, config, precision.dtype, held_out),
        parameters: trainable + head,
        trains_weights: tuning.is_some(),
    };
    // What reading the data has left is not needed any more.
    memory::trim();
    let mut memory = workload.check::<B>(on)?;
    if tuning.is_none() && reuse::is_on::<B>(&recipe.train, precision.dtype) {
        // It is no reason to refuse a run: it takes what is left.
        let left = on.info.memory.map_or(u64::MAX, |capacity| capacity - memory.total);
        let reusable = task.reusable_bytes(config, &reft, examples);
        memory.reused = reusable.min(reuse::memory_limit(&recipe.train)).min(left);
        memory.total += memory.reused;
    }
    Ok(Plan {
        method: recipe.reft.method,
        model: checkpoint.base.name.clone(),
        weights: workload.num_weights(),
        precision,
        device: on.info.name.clone(),
        rows: examples.len(),
        steps: recipe.train.total_updates(examples.len()),
        batch: (largest.rows, largest.seq),
        checkpointing: workload.checkpointing,
        trainable,
        head,
        memory,
        capacity: on.info.memory,
        free: if on.info.uses_host_memory() { memory::available() } else { None },
    })
}

/// The largest batch of held-out rows.
fn evaluation_load<B: Kernels, T: Task<B>>(
    recipe: &Recipe,
    task: &T,
    config: &ConfigOf<B, T>,
    dtype: Dtype,
    held_out: &[T::Example],
) -> EvaluationLoad {
    let most = |n: fn(&T::Example) -> usize| held_out.iter().map(n).max().unwrap_or(0);
    let seq = most(T::Example::n_tokens);
    let generated = if recipe.eval.exact_match { recipe.eval.max_new_tokens } else { 0 };
    let cached = seq.saturating_add(generated).min(config.context());
    EvaluationLoad {
        rows: recipe.eval.batch_size.min(held_out.len()),
        seq,
        labels: most(T::Example::n_labels),
        cache: if generated > 0 { task.cache_bytes(config, dtype) * cached as u64 } else { 0 },
    }
}

/// The size of a micro-batch.
#[derive(Debug, Clone, Default)]
struct BatchSize {
    members: Vec<usize>,
    rows: usize,
    seq: usize,
    /// Without padding.
    tokens: usize,
    labels: usize,
}

/// The largest micro-batch, among those of the run (of its first epochs, if there are many).
fn largest_batch(
    train: &TrainConfig,
    examples: &[impl Tokenized],
    size_of: impl Fn(&BatchSize) -> usize,
) -> BatchSize {
    const MAX_EPOCHS: usize = 100;
    let updates_per_epoch = train.updates_per_epoch(examples.len());
    let epochs = train.total_updates(examples.len()).div_ceil(updates_per_epoch.max(1)).min(MAX_EPOCHS);
    let lengths = examples.iter().map(Tokenized::n_tokens).collect();
    let batches = Sampler::new(lengths, sampler_config(train)).take(updates_per_epoch * epochs).flatten();
    let sizes = batches.map(|batch| {
        let of_batch = || batch.iter().map(|idx| &examples[*idx]);
        BatchSize {
            rows: batch.len(),
            seq: of_batch().map(Tokenized::n_tokens).max().unwrap_or(0),
            tokens: of_batch().map(Tokenized::n_tokens).sum(),
            labels: of_batch().map(Tokenized::n_labels).sum(),
            members: batch,
        }
    });
    sizes.max_by_key(size_of).unwrap_or_default()
}
