//! The backward passes of one update, and the gradients that they leave.

use crate::learned::Learned;
use burn::{
    module::Module,
    optim::{GradientsAccumulator, GradientsParams},
    tensor::{Tensor, backend::AutodiffBackend},
};
use reft_core::position::Rows;
use reft_models::{Blocks, Pass};

/// Sums the gradients of an update's micro-batches.
///
/// The bases `Pᵀ` are computed once for an update; every micro-batch sees them as leaves.
pub struct Tape<'a, A: AutodiffBackend> {
    /// What is trained.
    pub learned: &'a Learned<A>,
    /// The bases of the interventions.
    pub bases: &'a [Tensor<A, 2>],
    /// Whether only one block of the model is on the tape at a time.
    pub checkpointing: bool,
    /// Seed of the dropout of the micro-batch under way.
    pub seed: u64,
    basis_grads: Vec<Option<Tensor<A::InnerBackend, 2>>>,
    sums: GradientsAccumulator<Learned<A>>,
}

impl<'a, A: AutodiffBackend> Tape<'a, A> {
    /// No gradients yet.
    pub fn new(learned: &'a Learned<A>, bases: &'a [Tensor<A, 2>], checkpointing: bool) -> Self {
        let basis_grads = vec![None; bases.len()];
        Self { learned, bases, checkpointing, seed: 0, basis_grads, sums: GradientsAccumulator::new() }
    }

    /// Goes back from a scalar.
    pub fn backward(&mut self, scalar: Tensor<A, 1>) {
        self.collect(scalar.backward());
    }

    /// Runs a pass of a model with its interventions and what follows on its last hidden states, forwards and backwards.
    ///
    /// `follow` gives what it likes, and the scalar to go back from.
    pub fn run<M: Blocks<A>, T>(
        &mut self,
        pass: Pass<A, M>,
        edited: &Rows,
        follow: impl FnOnce(Tensor<A, 3>) -> (T, Tensor<A, 1>),
    ) -> T {
        let hook = self.learned.reft.hook(self.bases, edited);
        if !self.checkpointing {
            let (out, scalar) = follow(pass.forward(&hook));
            self.backward(scalar);
            return out;
        }
        let untracked = self.learned.reft.clone().no_grad();
        let bases: Vec<Tensor<A, 2>> = self.bases.iter().map(|basis| basis.clone().detach()).collect();
        let (hidden, checkpoints) = pass.checkpoint(&untracked.hook(&bases, edited));
        let last = Tensor::from_inner(hidden).require_grad();
        let (out, scalar) = follow(last.clone());
        let mut grads = scalar.backward();
        let gradient = last.grad_remove(&mut grads).expect("the scalar depends on the hidden states");
        self.collect(grads);
        checkpoints.backward(gradient, &hook, |grads| self.collect(grads));
        out
    }

    fn collect(&mut self, mut grads: A::Gradients) {
        for (leaf, sum) in self.bases.iter().zip(&mut self.basis_grads) {
            if let Some(grad) = leaf.grad_remove(&mut grads) {
                *sum = Some(match sum.take() {
                    Some(sum) => sum + grad,
                    None => grad,
                });
            }
        }
        self.sums.accumulate(self.learned, GradientsParams::from_grads(grads, self.learned));
    }

    /// The sums: gradients of all parameters, and of `Pᵀ` itself, `[d, r]` for each intervention that had rows to edit.
    ///
    /// `computed` are the bases as functions of their parameters, into which their gradients go down once.
    pub(crate) fn finish(
        mut self,
        computed: Vec<Tensor<A, 2>>,
    ) -> (GradientsParams, Vec<Option<Tensor<A::InnerBackend, 2>>>) {
        let pulled = computed
            .into_iter()
            .zip(&self.basis_grads)
            .filter_map(|(basis, grad)| Some((basis * Tensor::from_inner(grad.clone()?)).sum()))
            .reduce(|a, b| a + b);
        if let Some(scalar) = pulled {
            let grads = GradientsParams::from_grads(scalar.backward(), self.learned);
            self.sums.accumulate(self.learned, grads);
        }
        (self.sums.grads(), self.basis_grads)
    }
}
