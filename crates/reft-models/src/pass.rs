//! Training passes through a frozen model, with everything on the tape or with gradient checkpointing.
//!
//! Blocks below the first edited one always run outside the tape. [`TrainingPass::backward`] keeps the activations of
//! all other blocks on the tape. [`TrainingPass::backward_checkpointed`] keeps only the input of each block and runs
//! the block again during the backward pass ([gradient checkpointing](https://arxiv.org/abs/1604.06174)): that takes
//! about 1.5 times as long, but only one block is on the tape at a time.
//!
//! Both give the same gradients, bit for bit.

use burn::tensor::{Tensor, backend::AutodiffBackend};
use reft_core::Hook;

/// The blocks of a frozen model, bound to one batch.
pub trait Blocks<A: AutodiffBackend> {
    /// Number of blocks.
    fn count(&self) -> usize;

    /// Runs one block on the tape, with its weights as constants.
    ///
    /// # Shapes
    /// - hidden and output `[batch, seq, d_model]`
    fn forward<H: Hook<A> + ?Sized>(&self, layer: usize, hidden: Tensor<A, 3>, hook: &H) -> Tensor<A, 3>;
}

/// A pass through the blocks of a model, starting at the first edited one.
#[derive(Debug)]
pub struct TrainingPass<A: AutodiffBackend, M> {
    blocks: M,
    first_layer: usize,
    /// The hidden states that enter the first edited block.
    entering: Tensor<A::InnerBackend, 3>,
    seed: u64,
    places: Option<Vec<Option<usize>>>,
}

impl<A: AutodiffBackend, M: Blocks<A>> TrainingPass<A, M> {
    /// A pass that starts at `first_layer` with these hidden states, `[batch, seq, d_model]`. `seed` is that of
    /// dropout.
    pub fn new(blocks: M, first_layer: usize, entering: Tensor<A::InnerBackend, 3>, seed: u64) -> Self {
        Self { blocks, first_layer, entering, seed, places: None }
    }

    /// The same for states that are packed, `[1, tokens, d_model]`: `places` has the row of each token of the padded batch.
    pub(crate) fn with_places(self, places: Vec<Option<usize>>) -> Self {
        Self { places: Some(places), ..self }
    }

    /// The rows of the pass's flattened states that belong to rows of the padded batch.
    ///
    /// # Panics
    /// If the states of a row are not part of the pass: it is padding, or lies before the first edit and the first label.
    pub fn rows(&self, rows: &[usize]) -> Vec<usize> {
        match &self.places {
            None => rows.to_vec(),
            Some(places) => rows.iter().map(|row| places[*row].expect("a state of the pass")).collect(),
        }
    }

    /// The hidden states after the last block, with everything on the tape.
    ///
    /// # Shapes
    /// - output `[batch, seq, d_model]`
    pub fn forward<H: Hook<A> + ?Sized>(self, hook: &H) -> Tensor<A, 3> {
        let hidden = Tensor::from_inner(self.entering.clone());
        self.layers().fold(hidden, |hidden, layer| self.run_block(layer, hidden, hook))
    }

    /// Forward and backward pass, with everything on the tape.
    ///
    /// `head_loss` maps the final states `[batch, seq, d_model]` to a result, which is returned, and the scalar to
    /// differentiate. `collect` is called once, with all gradients.
    pub fn backward<H: Hook<A>, T>(
        self,
        hook: &H,
        head_loss: impl FnOnce(Tensor<A, 3>) -> (T, Tensor<A, 1>),
        mut collect: impl FnMut(A::Gradients),
    ) -> T {
        let (result, loss) = head_loss(self.forward(hook));
        collect(loss.backward());
        result
    }

    /// Forward and backward pass with only one block on the tape at a time.
    ///
    /// `detached_hook` makes the same edits as `hook` but tracks no parameters; it runs in the forward pass, where a
    /// tape would be wasted. `head_loss` is as in [`backward`](Self::backward). `collect` is called with the
    /// gradients of the head, then with those of each block from the last to the first; together they are the
    /// gradients of the pass.
    ///
    /// # Panics
    /// If the scalar of `head_loss` does not depend on the final states.
    pub fn backward_checkpointed<H: Hook<A>, D: Hook<A>, T>(
        self,
        hook: &H,
        detached_hook: &D,
        head_loss: impl FnOnce(Tensor<A, 3>) -> (T, Tensor<A, 1>),
        mut collect: impl FnMut(A::Gradients),
    ) -> T {
        let mut hidden = self.entering.clone();
        let mut inputs = Vec::new();
        for layer in self.layers() {
            inputs.push(hidden.clone());
            hidden = self.run_block(layer, Tensor::from_inner(hidden), detached_hook).inner();
        }

        let final_states = Tensor::<A, 3>::from_inner(hidden).require_grad();
        let (result, loss) = head_loss(final_states.clone());
        let mut grads = loss.backward();
        let mut output_grad =
            final_states.grad_remove(&mut grads).expect("the scalar depends on the final states");
        collect(grads);

        // The tape of a block ends at its input. Its backward pass starts from the gradient of its output, entered as
        // the gradient of Σ output · output_grad.
        for (layer, input) in self.layers().zip(inputs).rev() {
            let mut input = Tensor::<A, 3>::from_inner(input);
            let needs_input_grad = layer > self.first_layer;
            if needs_input_grad {
                input = input.require_grad();
            }
            let output = self.run_block(layer, input.clone(), hook);
            let mut grads = (output * Tensor::from_inner(output_grad.clone())).sum().backward();
            if needs_input_grad {
                output_grad = input.grad_remove(&mut grads).expect("a block's output depends on its input");
            }
            collect(grads);
        }
        result
    }

    fn layers(&self) -> std::ops::Range<usize> {
        self.first_layer..self.blocks.count()
    }

    /// Runs a block with a seed of its own, so that dropout draws the same numbers each time the block runs.
    fn run_block<H: Hook<A> + ?Sized>(&self, layer: usize, hidden: Tensor<A, 3>, hook: &H) -> Tensor<A, 3> {
        A::seed(&hidden.device(), self.seed.wrapping_add(1 + layer as u64));
        self.blocks.forward(layer, hidden, hook)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::dropout;
    use burn::{backend::Autodiff, tensor::TensorData};
    use burn_flex::Flex;
    use reft_core::{BatchLayout, Place, Site, host_values};

    type A = Autodiff<Flex>;

    /// Blocks of `tanh(2h)` with dropout.
    struct TanhBlocks;

    impl Blocks<A> for TanhBlocks {
        fn count(&self) -> usize {
            4
        }

        fn forward<H: Hook<A> + ?Sized>(&self, layer: usize, hidden: Tensor<A, 3>, hook: &H) -> Tensor<A, 3> {
            let layout = BatchLayout::new(Vec::new(), 3, &hidden.device());
            let hidden = dropout((hidden * 2.0).tanh(), 0.3);
            hook.edit(&Place { site: Site::block_output(layer), layout: &layout }, hidden)
        }
    }

    /// Adds one vector at every site.
    struct AddShift(Tensor<A, 3>);

    impl Hook<A> for AddShift {
        fn edit(&self, _: &Place<'_, A>, hidden: Tensor<A, 3>) -> Tensor<A, 3> {
            hidden + self.0.clone()
        }
    }

    /// Result, number of collected gradients, and their sum at the shift.
    fn gradient(checkpointed: bool, first_layer: usize) -> (f32, usize, Vec<f32>) {
        let device = Default::default();
        let numbers = |n: usize| (0..n).map(|i| (i as f32 * 0.7).sin()).collect::<Vec<f32>>();
        let entering = Tensor::<Flex, 3>::from_data(TensorData::new(numbers(24), [2, 3, 4]), &device);
        let shift = Tensor::<A, 3>::from_data(TensorData::new(numbers(4), [1, 1, 4]), &device).require_grad();
        let pass = TrainingPass::<A, _>::new(TanhBlocks, first_layer, entering, 5);
        let head_loss = |states: Tensor<A, 3>| {
            let loss = states.square().sum();
            (loss.clone().into_scalar(), loss)
        };
        let mut collected = 0;
        let mut sum = None;
        let collect = |mut grads: <A as AutodiffBackend>::Gradients| {
            collected += 1;
            if let Some(grad) = shift.grad_remove(&mut grads) {
                sum = Some(sum.take().map_or(grad.clone(), |sum: Tensor<Flex, 3>| sum + grad));
            }
        };
        let hook = AddShift(shift.clone());
        let result = if checkpointed {
            let detached = AddShift(shift.clone().detach());
            pass.backward_checkpointed(&hook, &detached, head_loss, collect)
        } else {
            pass.backward(&hook, head_loss, collect)
        };
        (result, collected, host_values(sum.expect("the loss depends on the shift")))
    }

    #[test]
    fn checkpointing_gives_the_same_gradients_bit_for_bit() {
        for first_layer in 0..4 {
            let (result, collected, grads) = gradient(false, first_layer);
            assert_eq!(collected, 1);
            let with_checkpoints = gradient(true, first_layer);
            assert_eq!(with_checkpoints, (result, 1 + 4 - first_layer, grads), "from layer {first_layer}");
        }
    }
}
