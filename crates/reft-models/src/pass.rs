//! Training passes through a frozen model: which of its blocks are on the tape, and gradient checkpointing.
//!
//! Blocks below the first edited one run outside of the tape. The others are either on the tape all at once
//! ([`Pass::forward`]), or one at a time ([`Pass::checkpoint`]): only what enters each block is kept, and on the way
//! back each block runs once more, with its input as a leaf
//! ([gradient checkpointing](https://arxiv.org/abs/1604.06174)). That costs about half more time, and turns
//! the memory of all blocks into that of one. A quantised block is numbers only as long as it is on the tape.

use burn::tensor::{Tensor, backend::AutodiffBackend};
use reft_core::Hook;

/// The blocks of a frozen model, bound to one batch.
pub trait Blocks<A: AutodiffBackend> {
    /// How many there are.
    fn count(&self) -> usize;

    /// Runs one, on the tape; its weights are constants.
    ///
    /// # Shapes
    /// - hidden and output `[batch, seq, d_model]`
    fn forward<H: Hook<A>>(&self, layer: usize, hidden: Tensor<A, 3>, hook: &H) -> Tensor<A, 3>;
}

/// A pass through the blocks from the first edited one up.
#[derive(Debug)]
pub struct Pass<A: AutodiffBackend, M> {
    blocks: M,
    first: usize,
    /// What enters the first block.
    entering: Tensor<A::InnerBackend, 3>,
    seed: u64,
}

impl<A: AutodiffBackend, M: Blocks<A>> Pass<A, M> {
    pub(crate) fn new(blocks: M, first: usize, entering: Tensor<A::InnerBackend, 3>, seed: u64) -> Self {
        Self { blocks, first, entering, seed }
    }

    /// The hidden states after the last block, with everything on the tape.
    ///
    /// # Shapes
    /// - output `[batch, seq, d_model]`
    pub fn forward<H: Hook<A>>(self, hook: &H) -> Tensor<A, 3> {
        let hidden = Tensor::from_inner(self.entering.clone());
        (self.first..self.blocks.count()).fold(hidden, |hidden, layer| self.block(layer, hidden, hook))
    }

    /// The hidden states after the last block, with nothing on the tape, and what is needed to go back.
    ///
    /// `hook` should not be tracked, or the tape of each block is built in vain.
    ///
    /// # Shapes
    /// - output `[batch, seq, d_model]`
    pub fn checkpoint<H: Hook<A>>(self, hook: &H) -> (Tensor<A::InnerBackend, 3>, Checkpoints<A, M>) {
        let mut hidden = self.entering.clone();
        let mut inputs = Vec::new();
        for layer in self.first..self.blocks.count() {
            inputs.push(hidden.clone());
            hidden = self.block(layer, Tensor::from_inner(hidden), hook).inner();
        }
        (hidden, Checkpoints { pass: self, inputs })
    }

    /// Dropout draws the same numbers whenever a block runs.
    fn block<H: Hook<A>>(&self, layer: usize, hidden: Tensor<A, 3>, hook: &H) -> Tensor<A, 3> {
        A::seed(&hidden.device(), self.seed.wrapping_add(1 + layer as u64));
        self.blocks.forward(layer, hidden, hook)
    }
}

/// What entered each block of a pass.
#[derive(Debug)]
pub struct Checkpoints<A: AutodiffBackend, M> {
    pass: Pass<A, M>,
    inputs: Vec<Tensor<A::InnerBackend, 3>>,
}

impl<A: AutodiffBackend, M: Blocks<A>> Checkpoints<A, M> {
    /// Goes back from the gradient of the last block's output, and hands on the gradients of every block.
    ///
    /// # Shapes
    /// - gradient `[batch, seq, d_model]`
    pub fn backward<H: Hook<A>>(
        self,
        mut gradient: Tensor<A::InnerBackend, 3>,
        hook: &H,
        mut collect: impl FnMut(A::Gradients),
    ) {
        let first = self.pass.first;
        for (idx, input) in self.inputs.into_iter().enumerate().rev() {
            let mut input = Tensor::<A, 3>::from_inner(input);
            if idx > 0 {
                input = input.require_grad();
            }
            let output = self.pass.block(first + idx, input.clone(), hook);
            let mut grads = (output * Tensor::from_inner(gradient.clone())).sum().backward();
            if idx > 0 {
                gradient = input.grad_remove(&mut grads).expect("a block's output depends on its input");
            }
            collect(grads);
        }
    }
}
