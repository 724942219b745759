//! Classification and regression with a frozen encoder: batches, loss, predictions, reports.

use crate::{
    eval::{Score, Verdict},
    learned::Learned,
    loss::cross_entropy,
    metrics::{Metric, confusion},
    plan::activations,
    tape::Tape,
    task::{Labelled, Task, argmax},
    trainer::{Loss, Objective, value},
};
use burn::tensor::{
    Tensor, TensorData,
    backend::{AutodiffBackend, Backend},
};
use reft_core::{NoHook, Positions, position::Rows};
use reft_models::{
    Padding, Roberta, TokenBatch,
    roberta::{DropoutRates, first_token},
    tuned::NamedTensors,
};
use serde::Serialize;

/// Texts with labels, and how a model is judged by them.
#[derive(Debug)]
pub struct Classification<'a, B: Backend> {
    /// The frozen encoder.
    pub model: &'a Roberta<B>,
    /// Its tensors by name, for baselines.
    pub tensors: &'a NamedTensors<B>,
    /// The task.
    pub task: &'a Task,
    /// The metric by which adapters are chosen.
    pub selection: Metric,
    /// Dropout within the encoder, in training.
    pub rates: DropoutRates,
    /// Rows in a forward pass of an evaluation.
    pub eval_batch_size: usize,
}

fn batch(examples: &[&Labelled], positions: Positions) -> (TokenBatch, Rows) {
    let rows: Vec<&[u32]> = examples.iter().map(|e| e.tokens.as_slice()).collect();
    let types: Vec<&[u32]> = examples.iter().map(|e| e.types.as_slice()).collect();
    let tokens = TokenBatch::new(&rows, Padding::Right).with_types(&types);
    // The whole text is the prompt.
    let lens: Vec<usize> = rows.iter().map(|row| row.len()).collect();
    let edited = positions.rows(&tokens.prompt_spans(&lens), tokens.seq);
    (tokens, edited)
}

impl<B: Backend> Classification<'_, B> {
    /// Summed cross-entropy of the labels, or squared error of the numbers.
    fn error<A: AutodiffBackend>(
        &self,
        learned: &Learned<A>,
        hidden: Tensor<A, 3>,
        examples: &[&Labelled],
    ) -> Tensor<A, 1> {
        let head = learned.head.as_ref().expect("a classifier has a head");
        let outputs = head.forward(first_token(hidden));
        if self.task.is_regression() {
            let targets: Vec<f32> = examples.iter().map(|e| e.target as f32).collect();
            let targets = TensorData::new(targets, [examples.len(), 1]);
            (outputs.clone() - Tensor::from_data(targets, &outputs.device())).square().sum()
        } else {
            let labels: Vec<u32> = examples.iter().map(|e| e.target as u32).collect();
            cross_entropy(outputs, &labels)
        }
    }
}

impl<B: Backend> Objective<B> for Classification<'_, B> {
    type Example = Labelled;

    fn n_tokens(example: &Labelled) -> usize {
        example.tokens.len()
    }

    fn step<A: AutodiffBackend<InnerBackend = B>>(&self, examples: &[&Labelled], tape: &mut Tape<A>) -> Loss {
        let learned = tape.learned;
        let (tokens, edited) = batch(examples, learned.reft.config().positions);
        let sum = match &learned.tuned {
            None => {
                let pass = self.model.pass(&tokens, self.rates, learned.reft.first_layer(), tape.seed);
                tape.run(pass, &edited, |hidden| {
                    let scalar = self.error(learned, hidden, examples);
                    (value(&scalar), scalar)
                })
            }
            Some(tuned) => {
                let model: Roberta<A> = tuned.model_in_training(self.model.config(), self.tensors);
                let scalar = self.error(learned, model.forward(&tokens, self.rates, &NoHook), examples);
                let sum = value(&scalar);
                tape.backward(scalar);
                sum
            }
        };
        Loss { sum, labels: examples.len(), tokens: examples.iter().map(|e| e.tokens.len()).sum() }
    }

    fn activations(&self, learned: &Learned<B>, examples: &[&Labelled], checkpointing: bool) -> u64 {
        let config = self.model.config();
        let seq = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(0);
        let taped = learned.n_taped(config.num_hidden_layers);
        let footprint = config.footprint(examples.len(), seq, self.rates, self.model.dtype());
        activations(footprint, taped, checkpointing)
    }

    fn judge(&self, learned: &Learned<B>, held_out: &[Labelled]) -> Verdict {
        let outputs = predict(self.model, self.tensors, learned, held_out, self.eval_batch_size);
        Verdict {
            score: Score(self.task.score(held_out, &outputs)),
            key: self.selection.name(),
            higher_is_better: true,
        }
    }
}

/// The head's outputs for each example, in the order given: logits of the labels, or one number.
///
/// # Panics
/// If there is no head.
pub fn predict<B: Backend>(
    model: &Roberta<B>,
    tensors: &NamedTensors<B>,
    learned: &Learned<B>,
    examples: &[Labelled],
    batch_size: usize,
) -> Vec<Vec<f32>> {
    let tuned = learned.tuned.as_ref().map(|tuned| tuned.model(model.config(), tensors));
    let model = tuned.as_ref().unwrap_or(model);
    let head = learned.head.as_ref().expect("a classifier has a head");
    let bases = learned.reft.bases();
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|idx| examples[*idx].tokens.len());
    let mut out = vec![Vec::new(); examples.len()];
    for chunk in order.chunks(batch_size) {
        let members: Vec<&Labelled> = chunk.iter().map(|idx| &examples[*idx]).collect();
        let (tokens, edited) = batch(&members, learned.reft.config().positions);
        let hidden = model.forward(&tokens, DropoutRates::OFF, &learned.reft.hook(&bases, &edited));
        let outputs = head.forward(first_token(hidden));
        let [_, n_outputs] = outputs.dims();
        let values = outputs.into_data().convert::<f32>().to_vec::<f32>().expect("f32 data");
        for (idx, row) in chunk.iter().zip(values.chunks(n_outputs)) {
            out[*idx] = row.to_vec();
        }
    }
    out
}

/// `exp(xᵢ) / Σ exp(xⱼ)`.
pub fn probabilities(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|x| f64::from(x - most).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

/// What an evaluation says of a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The task.
    pub task: String,
    /// Number of rows.
    pub rows: usize,
    /// Rows that were cut.
    pub cut: usize,
    /// The metrics.
    pub metrics: Score,
    /// The labels; empty for a regression.
    pub labels: Vec<String>,
    /// How often each label (row) was called each label (column); empty for a regression.
    pub confusion: Vec<Vec<usize>>,
}

impl Report {
    /// Judges outputs.
    pub fn new(task: &Task, examples: &[Labelled], cut: usize, outputs: &[Vec<f32>]) -> Self {
        let labels = task.config.labels.clone();
        let expected: Vec<usize> = examples.iter().map(|e| e.target as usize).collect();
        let found: Vec<usize> = outputs.iter().map(|row| argmax(row)).collect();
        let regression = task.is_regression();
        Self {
            task: task.config.name.clone(),
            rows: examples.len(),
            cut,
            metrics: Score(task.score(examples, outputs)),
            confusion: if regression { Vec::new() } else { confusion(&expected, &found, labels.len()) },
            labels,
        }
    }
}
