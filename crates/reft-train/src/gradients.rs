//! The gradients of one update: backward passes of its micro-batches, summed.

use crate::trainable::Trainable;
use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::{GradientsAccumulator, GradientsParams},
    tensor::Tensor,
};
use reft_kernels::AutodiffKernels;
use reft_models::{Blocks, TrainingPass};

/// Sums the gradients of an update's micro-batches.
///
/// The bases `Pᵀ` are computed once per update. Every micro-batch sees them as leaf tensors; the gradient summed there is
/// back-propagated to the parameter of `P` once, in [`finish`](Self::finish).
pub struct GradientSum<'a, A: AutodiffKernels> {
    /// The trainable parameters.
    pub trainable: &'a Trainable<A>,
    /// The bases of the interventions, as leaf tensors.
    pub bases: &'a [Tensor<A, 2>],
    /// Seed of dropout for the current micro-batch.
    pub seed: u64,
    checkpointing: bool,
    basis_grads: Vec<Option<Tensor<A::InnerBackend, 2>>>,
    sums: GradientsAccumulator<Trainable<A>>,
}

impl<'a, A: AutodiffKernels> GradientSum<'a, A> {
    /// An empty sum. With `checkpointing`, only one block of the model is on the tape at a time.
    pub fn new(trainable: &'a Trainable<A>, bases: &'a [Tensor<A, 2>], checkpointing: bool) -> Self {
        let basis_grads = vec![None; bases.len()];
        Self { trainable, bases, seed: 0, checkpointing, basis_grads, sums: GradientsAccumulator::new() }
    }

    /// Runs the backward pass from `loss` and adds the gradients.
    pub fn backward(&mut self, loss: Tensor<A, 1>) {
        self.add(loss.backward());
    }

    /// Runs a pass of the model with its interventions, forward and backward, and adds the gradients.
    ///
    /// `head_loss` maps the final hidden states to a result, which is returned, and the scalar to differentiate.
    pub fn run<M: Blocks<A>, T>(
        &mut self,
        pass: TrainingPass<A, M>,
        head_loss: impl FnOnce(Tensor<A, 3>) -> (T, Tensor<A, 1>),
    ) -> T {
        let reft = &self.trainable.reft;
        let hook = reft.hook_with(self.bases.to_vec());
        if !self.checkpointing {
            return pass.backward(&hook, head_loss, |grads| self.add(grads));
        }
        let detached = reft.clone().no_grad();
        let detached_bases: Vec<Tensor<A, 2>> =
            self.bases.iter().map(|basis| basis.clone().detach()).collect();
        let detached_hook = detached.hook_with(detached_bases);
        pass.backward_checkpointed(&hook, &detached_hook, head_loss, |grads| self.add(grads))
    }

    fn add(&mut self, mut grads: A::Gradients) {
        for (leaf, sum) in self.bases.iter().zip(&mut self.basis_grads) {
            if let Some(grad) = leaf.grad_remove(&mut grads) {
                *sum = Some(match sum.take() {
                    Some(sum) => sum + grad,
                    None => grad,
                });
            }
        }
        self.sums.accumulate(self.trainable, GradientsParams::from_grads(grads, self.trainable));
    }

    /// The summed gradients of all parameters, and those of `Pᵀ` itself, `[d, r]` for each intervention that edited a row.
    ///
    /// `bases` are the bases as functions of their parameters.
    pub fn finish(
        mut self,
        bases: Vec<Tensor<A, 2>>,
    ) -> (GradientsParams, Vec<Option<Tensor<A::InnerBackend, 2>>>) {
        // The gradient of Σ basis · grad with respect to the parameter is the vector-Jacobian product.
        let products = bases
            .into_iter()
            .zip(&self.basis_grads)
            .filter_map(|(basis, grad)| Some((basis * Tensor::from_inner(grad.clone()?)).sum()));
        if let Some(sum) = products.reduce(|a, b| a + b) {
            let grads = GradientsParams::from_grads(sum.backward(), self.trainable);
            self.sums.accumulate(self.trainable, grads);
        }
        (self.sums.grads(), self.basis_grads)
    }
}

/// Moves the gradients of a submodule out of those of the whole module.
pub(crate) fn take_gradients<A: AutodiffKernels, M: Module<A>>(
    grads: &mut GradientsParams,
    submodule: &M,
) -> GradientsParams {
    struct Take<'a> {
        from: &'a mut GradientsParams,
        to: GradientsParams,
    }
    impl<A: AutodiffKernels> ModuleVisitor<A> for Take<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
            if let Some(grad) = self.from.remove::<A::InnerBackend, D>(param.id) {
                self.to.register(param.id, grad);
            }
        }
    }
    let mut take = Take { from: grads, to: GradientsParams::new() };
    submodule.visit(&mut take);
    take.to
}
