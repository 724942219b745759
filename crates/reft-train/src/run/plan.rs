//! What a run would do, and the memory that it needs.

use crate::{
    checkpoint::sampler_config,
    data::Sampler,
    device::Chosen,
    error::RunError,
    loss::rows_of_logits,
    memory::{self, MemoryNeeds},
    method::TrainMethod,
    objective::Objective,
    recipe::Recipe,
    tasks::Task,
    workload::Workload,
};
use burn::tensor::backend::Backend;
use reft_models::{Checkpoint, Dtype, ModelConfig, Precision, Pretrained, tuned::TunedName};
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
pub(super) fn plan<B: Backend, T: Task<B>>(
    recipe: &Recipe,
    task: &T,
    checkpoint: &Checkpoint<<T::Model as Pretrained<B>>::Config>,
    precision: Precision,
    examples: &[T::Example],
    on: &Chosen<B::Device>,
) -> Result<Plan, RunError> {
    let (config, train) = (&checkpoint.config, &recipe.train);
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
    let bytes_kept = |(rows, seq): (usize, usize)| footprint(rows, seq, precision.dtype).kept;
    let largest = largest_batch::<B, T>(recipe, examples, bytes_kept);
    let shape = |batch: &[usize]| batch_shape::<B, T>(batch, examples);
    let logits = task.logits(config).map_or((0, 0), |(vocab, n_labels)| {
        let labels: usize = largest.iter().map(|idx| n_labels(&examples[*idx])).sum();
        (labels.min(rows_of_logits(vocab)), vocab)
    });
    let workload = Workload {
        tensors,
        precision,
        footprint: &footprint,
        taped,
        checkpointing: recipe.checkpointing(),
        batch_size: train.batch_size,
        batch: shape(&largest),
        logits,
        parameters: trainable + head,
        trains_weights: tuning.is_some(),
    };
    Ok(Plan {
        method: recipe.reft.method,
        model: checkpoint.base.name.clone(),
        weights: workload.num_weights(),
        precision,
        device: on.info.name.clone(),
        rows: examples.len(),
        steps: train.total_updates(examples.len()),
        batch: workload.batch,
        checkpointing: workload.checkpointing,
        trainable,
        head,
        memory: workload.check::<B>(on)?,
        capacity: on.info.memory,
        free: if on.info.uses_host_memory() { memory::available() } else { None },
    })
}

/// Rows and sequence length of a micro-batch.
fn batch_shape<B: Backend, T: Task<B>>(batch: &[usize], examples: &[T::Example]) -> (usize, usize) {
    let lengths = batch.iter().map(|idx| <T::Objective<'static> as Objective<B>>::n_tokens(&examples[*idx]));
    (batch.len(), lengths.max().unwrap_or(0))
}
