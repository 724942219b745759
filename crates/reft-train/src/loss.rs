//! Negative log-likelihood of answers, and its gradient.

use crate::{
    data::Example,
    eval::{Score, Verdict, likelihood},
    learned::Learned,
    plan::activations,
    tape::Tape,
    trainer::{Loss, Objective, value},
};
use burn::tensor::{
    DType, Int, Tensor, TensorData,
    activation::{log_softmax, softmax},
    backend::{AutodiffBackend, Backend},
};
use reft_core::{Hook, NoHook, Positions, position::Rows, to_dtype};
use reft_models::{Llama, Padding, TokenBatch, tuned::NamedTensors};

/// Most rows of logits that exist at a time.
pub(crate) fn logit_rows(vocab: usize) -> usize {
    const LOGITS_AT_ONCE: usize = 1 << 24;
    (LOGITS_AT_ONCE / vocab).max(16)
}

/// A padded batch of examples with everything that a step needs to know of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// The tokens, padded on the right.
    pub tokens: TokenBatch,
    /// Rows of the flattened batch whose next token is part of an answer.
    pub label_rows: Vec<usize>,
    /// Those next tokens.
    pub labels: Vec<u32>,
    /// For each label, which example it belongs to.
    pub example_of: Vec<usize>,
    /// Rows of the flattened batch that are edited.
    pub edited: Rows,
}

impl Batch {
    /// Gathers examples.
    pub fn new(examples: &[&Example], positions: Option<Positions>) -> Self {
        let rows: Vec<&[u32]> = examples.iter().map(|e| e.tokens.as_slice()).collect();
        let tokens = TokenBatch::new(&rows, Padding::Right);
        let prompt_lens: Vec<usize> = examples.iter().map(|e| e.prompt_len).collect();
        let spans = tokens.prompt_spans(&prompt_lens);
        let edited = positions.map_or_else(Rows::default, |p| p.rows(&spans, tokens.seq));
        let mut batch = Self { label_rows: vec![], labels: vec![], example_of: vec![], edited, tokens };
        for (idx, example) in examples.iter().enumerate() {
            for at in example.prompt_len..example.tokens.len() {
                batch.label_rows.push(idx * batch.tokens.seq + at - 1);
                batch.labels.push(example.tokens[at]);
                batch.example_of.push(idx);
            }
        }
        batch
    }

    /// Tokens without padding.
    pub fn n_tokens(&self) -> usize {
        self.tokens.positions.iter().flatten().count()
    }
}

/// `−log p(label)` for each state, and, if asked for, the gradient of their sum with respect to the states.
///
/// Logits exist for a slice of the rows at a time and are never kept: `∂/∂h (lse(Eh) − E_y h) = Eᵀ softmax(Eh) − E_y`.
///
/// # Shapes
/// - states `[n, d_model]` (normalised), labels `n`
/// - output `n` values, gradient `[n, d_model]` in f32
fn nll_of_states<B: Backend>(
    model: &Llama<B>,
    states: Tensor<B, 2>,
    labels: &[u32],
    with_gradient: bool,
) -> (Vec<f32>, Option<Tensor<B, 2>>) {
    let [n, _] = states.dims();
    let device = states.device();
    let chunk = logit_rows(model.config().vocab_size);
    let weight = model.head_weight();
    let (mut values, mut gradients) = (Vec::with_capacity(n), Vec::new());
    for start in (0..n).step_by(chunk) {
        let len = chunk.min(n - start);
        let ids: Vec<i64> = labels[start..start + len].iter().map(|id| i64::from(*id)).collect();
        let targets = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [len]), &device);
        let logits = to_dtype(model.head(states.clone().narrow(0, start, len)), DType::F32);
        let shifted = logits.clone() - logits.max_dim(1);
        let chosen = shifted.clone().gather(1, targets.clone().unsqueeze_dim(1));
        let nll = shifted.clone().exp().sum_dim(1).log() - chosen;
        values.extend(nll.into_data().convert::<f32>().to_vec::<f32>().expect("f32 data"));
        if with_gradient {
            let expected = to_dtype(softmax(shifted, 1), weight.dtype()).matmul(weight.clone());
            let chosen = to_dtype(weight.clone().select(0, targets), DType::F32);
            gradients.push(to_dtype(expected, DType::F32) - chosen);
        }
    }
    (values, with_gradient.then(|| Tensor::cat(gradients, 0)))
}

/// The negative log-likelihood of every label of a batch.
pub fn nll<B: Backend, H: Hook<B>>(model: &Llama<B>, batch: &Batch, hook: &H) -> Vec<f32> {
    let hidden = model.forward(&batch.tokens, None, hook);
    let states = model.final_states(hidden, &batch.label_rows);
    nll_of_states(model, states, &batch.labels, false).0
}

/// `Σ −log softmax(logits)[label]`.
///
/// # Shapes
/// - logits `[n, labels]`, labels `n`
pub(crate) fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, labels: &[u32]) -> Tensor<B, 1> {
    let ids: Vec<i64> = labels.iter().map(|label| i64::from(*label)).collect();
    let targets = TensorData::new(ids, [labels.len(), 1]);
    let targets = Tensor::<B, 2, Int>::from_data(targets, &logits.device());
    log_softmax(logits, 1).gather(1, targets).sum().neg()
}

/// Answers to prompts, and how a language model is judged by them.
#[derive(Debug)]
pub struct LanguageModelling<'a, B: Backend> {
    model: &'a Llama<B>,
    tensors: Option<&'a NamedTensors<B>>,
    eval_batch_size: usize,
}

impl<'a, B: Backend> LanguageModelling<'a, B> {
    /// For interventions on a model; `eval_batch_size` is the number of rows in a forward pass of an evaluation.
    pub fn new(model: &'a Llama<B>, eval_batch_size: usize) -> Self {
        Self { model, tensors: None, eval_batch_size }
    }

    /// The same for baselines, which need the model's tensors by name.
    pub fn with_tensors(self, tensors: &'a NamedTensors<B>) -> Self {
        Self { tensors: Some(tensors), ..self }
    }
}

impl<B: Backend> LanguageModelling<'_, B> {
    /// The loss of final states under the frozen head, and the scalar `Σ h · ∂nll/∂h` with the second factor held fixed:
    /// its value means nothing, its gradient is the loss's.
    fn of_states<A: AutodiffBackend<InnerBackend = B>>(
        &self,
        states: Tensor<A, 2>,
        batch: &Batch,
    ) -> (f64, Tensor<A, 1>) {
        let (values, gradient) = nll_of_states(self.model, states.clone().inner(), &batch.labels, true);
        let gradient = Tensor::from_inner(gradient.expect("asked for"));
        let sum = values.iter().map(|value| f64::from(*value)).sum();
        (sum, (to_dtype(states, DType::F32) * gradient).sum())
    }
}

impl<B: Backend> Objective<B> for LanguageModelling<'_, B> {
    type Example = Example;

    fn n_tokens(example: &Example) -> usize {
        example.tokens.len()
    }

    /// The summed negative log-likelihood of a batch.
    fn step<A: AutodiffBackend<InnerBackend = B>>(&self, examples: &[&Example], tape: &mut Tape<A>) -> Loss {
        let learned = tape.learned;
        let batch = Batch::new(examples, Some(learned.reft.config().positions));
        let sum = match &learned.tuned {
            None => {
                let pass = self.model.pass(&batch.tokens, learned.reft.first_layer(), tape.seed);
                tape.run(pass, &batch.edited, |hidden| {
                    self.of_states(self.model.final_states_tracked(hidden, &batch.label_rows), &batch)
                })
            }
            Some(tuned) => {
                let tensors = self.tensors.expect("baselines come with the model's tensors");
                let model: Llama<A> = tuned.model_in_training(self.model.config(), tensors);
                let states =
                    model.final_states(model.forward(&batch.tokens, None, &NoHook), &batch.label_rows);
                let (sum, scalar) = match tuned.lora() {
                    Some(_) => self.of_states(states, &batch),
                    // The head is trained as well, so its logits stay on the tape.
                    None => {
                        let logits = to_dtype(model.head(states), DType::F32);
                        let scalar = cross_entropy(logits, &batch.labels);
                        (value(&scalar), scalar)
                    }
                };
                tape.backward(scalar);
                sum
            }
        };
        Loss { sum, labels: batch.labels.len(), tokens: batch.n_tokens() }
    }

    fn activations(&self, learned: &Learned<B>, examples: &[&Example], checkpointing: bool) -> u64 {
        let config = self.model.config();
        let seq = examples.iter().map(|example| example.tokens.len()).max().unwrap_or(0);
        let taped = learned.n_taped(config.num_hidden_layers);
        activations(config.footprint(examples.len(), seq, self.model.dtype()), taped, checkpointing)
    }

    fn judge(&self, learned: &Learned<B>, held_out: &[Example]) -> Verdict {
        let tuned = learned.tuned.as_ref().map(|tuned| {
            let tensors = self.tensors.expect("baselines come with the model's tensors");
            tuned.model(self.model.config(), tensors)
        });
        let model = tuned.as_ref().unwrap_or(self.model);
        let nll = likelihood(model, Some(&learned.reft), held_out, self.eval_batch_size).nll;
        Verdict { score: Score(vec![("nll".into(), nll)]), key: "nll", higher_is_better: false }
    }
}
