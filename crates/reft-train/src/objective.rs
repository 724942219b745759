//! What is optimized: the loss of a micro-batch and the evaluation of held-out rows.

use crate::{data::Tokenized, gradients::GradientSum, score::Evaluation, trainable::Trainable};
use burn::{optim::GradientsParams, tensor::Tensor};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::host_values;
use reft_kernels::{AutodiffKernels, Kernels};

/// The loss of a micro-batch, or of several.
#[derive(Debug, Clone)]
pub struct Loss<B: Kernels> {
    /// Numbers that add up to the sum of the loss over the labels. They are on the device until somebody reads them.
    pub terms: Vec<Tensor<B, 1>>,
    /// Number of labels: answer tokens, or rows.
    pub labels: usize,
    /// Number of tokens, without padding.
    pub tokens: usize,
}

impl<B: Kernels> Loss<B> {
    /// The sum over the labels, read from the device.
    pub fn sum(&self) -> f64 {
        self.terms.iter().flat_map(|terms| host_values(terms.clone())).map(f64::from).sum()
    }
}

/// What is optimized, on a frozen model.
pub trait Objective<B: Kernels> {
    /// One training row.
    type Example: Tokenized;

    /// The loss of a micro-batch, whose gradients are added to `gradients`.
    fn backward<A: AutodiffKernels<InnerBackend = B>>(
        &self,
        examples: &[&Self::Example],
        gradients: &mut GradientSum<A>,
    ) -> Loss<B>;

    /// An estimate of the bytes that [`backward`](Self::backward) needs for activations.
    fn activation_bytes<C: Kernels>(
        &self,
        trainable: &Trainable<C>,
        examples: &[&Self::Example],
        checkpointing: bool,
    ) -> u64;

    /// How the trained parameters do on held-out rows.
    fn evaluate(&self, trainable: &Trainable<B>, held_out: &[Self::Example]) -> Evaluation;
}

/// Loss and gradients of one update.
#[derive(Debug)]
pub struct StepGradients<B: Kernels> {
    /// Gradients of the summed loss with respect to all parameters.
    pub grads: GradientsParams,
    /// Gradients of the summed loss with respect to `Pᵀ` itself, `[d, r]` for each intervention that edited a row.
    pub basis_grads: Vec<Option<Tensor<B, 2>>>,
    /// The loss, summed over the micro-batches.
    pub loss: Loss<B>,
}

/// Runs forward and backward passes over the micro-batches of one update.
///
/// Losses are summed rather than averaged, so micro-batches of any size add up to the large batch exactly. With
/// `checkpointing`, only one block of the model is on the tape at a time. `seed` is that of dropout.
pub fn step_gradients<A: AutodiffKernels, O: Objective<A::InnerBackend>>(
    objective: &O,
    trainable: &Trainable<A>,
    micro_batches: &[Vec<&O::Example>],
    checkpointing: bool,
    seed: u64,
) -> StepGradients<A::InnerBackend> {
    let bases = trainable.reft.bases();
    let leaves: Vec<Tensor<A, 2>> =
        bases.iter().map(|basis| Tensor::from_inner(basis.clone().inner()).require_grad()).collect();
    let mut gradients = GradientSum::new(trainable, &leaves, checkpointing);
    let mut seeds = ChaCha8Rng::seed_from_u64(seed);
    let mut total = Loss { terms: Vec::new(), labels: 0, tokens: 0 };
    for examples in micro_batches {
        gradients.seed = seeds.next_u64();
        let loss = objective.backward(examples, &mut gradients);
        total.terms.extend(loss.terms);
        total.labels += loss.labels;
        total.tokens += loss.tokens;
    }
    let (grads, basis_grads) = gradients.finish(bases);
    StepGradients { grads, basis_grads, loss: total }
}
