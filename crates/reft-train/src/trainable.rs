//! All trainable parameters as one module.

use crate::method::Baseline;
use burn::module::Module;
use reft_core::{Head, Reft, reft::trainable};
use reft_kernels::{AutodiffKernels, Kernels};
use reft_models::Tuned;

/// All trainable parameters: interventions or the weights of a baseline, and a classification head.
#[derive(Module, Debug)]
pub struct Trainable<B: Kernels> {
    /// The interventions; empty for baselines.
    pub reft: Reft<B>,
    /// The weights of a baseline.
    pub tuned: Option<Tuned<B>>,
    /// A classification head.
    pub head: Option<Head<B>>,
}

impl<B: Kernels> From<Reft<B>> for Trainable<B> {
    fn from(reft: Reft<B>) -> Self {
        Self { reft, tuned: None, head: None }
    }
}

impl<B: Kernels> Trainable<B> {
    /// Number of parameters of the head.
    pub fn num_head_params(&self) -> usize {
        self.head.as_ref().map_or(0, Module::<B>::num_params)
    }

    /// Number of blocks, of a model with `n_layers`, whose activations a backward pass needs; all if weights are trained.
    pub fn n_taped(&self, n_layers: usize) -> usize {
        match self.tuned {
            Some(_) => n_layers,
            None => self.reft.config().n_taped(n_layers),
        }
    }

    /// The baseline that these parameters belong to; none for interventions.
    pub fn baseline(&self) -> Option<Baseline> {
        match &self.tuned {
            Some(tuned) if tuned.lora().is_some() => Some(Baseline::Lora),
            Some(tuned) if tuned.names().iter().all(|name| name.name.ends_with(".bias")) => {
                Some(Baseline::Bitfit)
            }
            Some(_) => Some(Baseline::Full),
            None if self.reft.edits().len() == 0 => Some(Baseline::HeadOnly),
            None => None,
        }
    }
}

impl<A: AutodiffKernels> Trainable<A> {
    /// The same parameters on the autodiff backend, all of them tracked.
    pub fn tracked(inner: Trainable<A::InnerBackend>) -> Self {
        trainable(inner)
    }
}
