//! Negative log-likelihood of answers, and its gradient.

use crate::{
    data::Example,
    eval::{Score, Verdict, likelihood},
    learned::Learned,
    trainer::{Loss, Objective},
};
use burn::tensor::{
    Int, Tensor, TensorData,
    activation::{log_softmax, softmax},
    backend::{AutodiffBackend, Backend},
};
use reft_core::{Hook, Positions, position::Rows};
use reft_models::{Llama, Padding, TokenBatch, tuned::NamedTensors};

/// Most logits that exist at a time.
const LOGITS_AT_ONCE: usize = 1 << 24;

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
/// - output `n` values, gradient `[n, d_model]`
fn nll_of_states<B: Backend>(
    model: &Llama<B>,
    states: Tensor<B, 2>,
    labels: &[u32],
    with_gradient: bool,
) -> (Vec<f32>, Option<Tensor<B, 2>>) {
    let [n, _] = states.dims();
    let device = states.device();
    let chunk = (LOGITS_AT_ONCE / model.config().vocab_size).clamp(16, n.max(16));
    let weight = model.head_weight();
    let (mut values, mut gradients) = (Vec::with_capacity(n), Vec::new());
    for start in (0..n).step_by(chunk) {
        let len = chunk.min(n - start);
        let ids: Vec<i64> = labels[start..start + len].iter().map(|id| i64::from(*id)).collect();
        let targets = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [len]), &device);
        let logits = model.head(states.clone().narrow(0, start, len));
        let shifted = logits.clone() - logits.max_dim(1);
        let chosen = shifted.clone().gather(1, targets.clone().unsqueeze_dim(1));
        let nll = shifted.clone().exp().sum_dim(1).log() - chosen;
        values.extend(nll.into_data().convert::<f32>().to_vec::<f32>().expect("f32 data"));
        if with_gradient {
            let expected = softmax(shifted, 1).matmul(weight.clone());
            gradients.push(expected - weight.clone().select(0, targets));
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

impl<B: Backend> Objective<B> for LanguageModelling<'_, B> {
    type Example = Example;

    fn n_tokens(example: &Example) -> usize {
        example.tokens.len()
    }

    /// The summed negative log-likelihood of a batch.
    ///
    /// With a frozen head the scalar is `Σ h · ∂nll/∂h`, with the second factor held fixed: its value means nothing,
    /// its gradient is the loss's.
    fn loss<A: AutodiffBackend<InnerBackend = B>>(
        &self,
        learned: &Learned<A>,
        bases: &[Tensor<A, 2>],
        examples: &[&Example],
    ) -> Loss<A> {
        let batch = Batch::new(examples, Some(learned.reft.config().positions));
        let hook = learned.reft.hook(bases, &batch.edited);
        let (labels, tokens) = (batch.labels.len(), batch.n_tokens());
        let states = match &learned.tuned {
            None => {
                let hidden = self.model.forward_tracked(&batch.tokens, &hook);
                self.model.final_states_tracked(hidden, &batch.label_rows)
            }
            Some(tuned) => {
                let tensors = self.tensors.expect("baselines come with the model's tensors");
                let mut source = tuned.source(tensors, Tensor::from_inner, true);
                let model = Llama::<A>::from_source(self.model.config(), &mut source);
                let hidden = model.forward(&batch.tokens, None, &hook);
                let states = model.final_states(hidden, &batch.label_rows);
                if tuned.lora().is_none() {
                    // The head is trained as well, so its logits stay on the tape.
                    let ids: Vec<i64> = batch.labels.iter().map(|id| i64::from(*id)).collect();
                    let targets = TensorData::new(ids, [labels, 1]);
                    let targets = Tensor::<A, 2, Int>::from_data(targets, &states.device());
                    let scalar = log_softmax(model.head(states), 1).gather(1, targets).sum().neg();
                    let sum = scalar.clone().into_data().convert::<f64>();
                    let sum = sum.as_slice::<f64>().map_or(f64::NAN, |values| values[0]);
                    return Loss { sum, labels, tokens, scalar };
                }
                states
            }
        };
        let (values, gradient) = nll_of_states(self.model, states.clone().inner(), &batch.labels, true);
        let gradient = gradient.expect("asked for");
        let sum = values.iter().map(|value| f64::from(*value)).sum();
        Loss { sum, labels, tokens, scalar: (states * Tensor::from_inner(gradient)).sum() }
    }

    fn judge(&self, learned: &Learned<B>, held_out: &[Example]) -> Verdict {
        let tuned = learned.tuned.as_ref().map(|tuned| {
            let tensors = self.tensors.expect("baselines come with the model's tensors");
            Llama::from_source(self.model.config(), &mut tuned.source(tensors, |tensor| tensor, false))
        });
        let model = tuned.as_ref().unwrap_or(self.model);
        let nll = likelihood(model, Some(&learned.reft), held_out, self.eval_batch_size).nll;
        Verdict { score: Score(vec![("nll".into(), nll)]), key: "nll", higher_is_better: false }
    }
}
