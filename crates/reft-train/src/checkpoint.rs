//! The state of a training run: everything that changes from one update to the next.

use crate::{
    data::{Sampler, SamplerConfig},
    gradients::take_gradients,
    optim::adamw,
    score::Evaluation,
    train_config::TrainConfig,
    trainable::Trainable,
};
use burn::{
    module::AutodiffModule,
    optim::{AdamW, GradientsParams, Optimizer as _, adaptor::OptimizerAdaptor},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reft_kernels::{AutodiffKernels, Kernels};

/// AdamW over all trainable parameters.
pub type Optimizer<A> = OptimizerAdaptor<AdamW, Trainable<A>, A>;

/// Everything that an interrupted run needs in order to continue exactly where it stopped.
pub struct TrainState<A: AutodiffKernels> {
    /// The trainable parameters; absent only within [`update`](Self::update), which moves them.
    trainable: Option<Trainable<A>>,
    /// The moments of everything but a head with its own learning rate.
    pub optimizer: Optimizer<A>,
    /// The moments of a head with its own learning rate.
    pub head_optimizer: Optimizer<A>,
    /// Updates done.
    pub step: usize,
    /// The position in the data, with the random stream of the shuffling.
    pub sampler: Sampler,
    /// The random stream of dropout: one seed per update.
    pub dropout_seeds: ChaCha8Rng,
    /// The parameters that are kept so far, if held-out rows were evaluated.
    pub best: Option<Best<A::InnerBackend>>,
    /// The update after which held-out rows were last evaluated.
    pub last_evaluation: Option<usize>,
    /// Evaluations since the last improvement.
    pub evaluations_without_improvement: usize,
    /// What was measured.
    pub history: History,
}

/// Parameters and how they did on held-out rows.
#[derive(Debug, Clone)]
pub struct Best<B: Kernels> {
    /// The parameters.
    pub trainable: Trainable<B>,
    /// Their evaluation.
    pub evaluation: Evaluation,
}

/// Measurements of every update.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct History {
    /// Mean loss per label of each update.
    pub losses: Vec<f64>,
    /// Seconds of each update.
    pub step_seconds: Vec<f64>,
    /// Tokens that went through the model, without padding.
    pub tokens: usize,
    /// Labels among them: answer tokens, or rows.
    pub label_tokens: usize,
}

impl<A: AutodiffKernels> TrainState<A> {
    /// The state before the first update, over rows with these token counts.
    pub fn new(trainable: Trainable<A::InnerBackend>, lengths: Vec<usize>, config: &TrainConfig) -> Self {
        let mut dropout_seeds = ChaCha8Rng::seed_from_u64(config.seed);
        dropout_seeds.set_stream(1);
        Self {
            trainable: Some(Trainable::tracked(trainable)),
            optimizer: adamw(config.weight_decay).init(),
            head_optimizer: adamw(config.weight_decay).init(),
            step: 0,
            sampler: Sampler::new(lengths, sampler_config(config)),
            dropout_seeds,
            best: None,
            last_evaluation: None,
            evaluations_without_improvement: 0,
            history: History::default(),
        }
    }

    /// The trainable parameters.
    pub fn trainable(&self) -> &Trainable<A> {
        self.trainable.as_ref().expect("only absent within `update`")
    }

    /// One step of the optimizers, at these learning rates of everything and, if it has its own, of the head.
    ///
    /// The parameters are moved rather than cloned, so that optimizers can update them in place.
    pub fn update(&mut self, mut grads: GradientsParams, lr: f64, head_lr: Option<f64>) {
        let mut trainable = self.trainable.take().expect("only absent within `update`");
        if let (Some(head_lr), Some(head)) = (head_lr, &trainable.head) {
            let head_grads = take_gradients(&mut grads, head);
            trainable = self.head_optimizer.step(head_lr, trainable, head_grads);
        }
        self.trainable = Some(self.optimizer.step(lr, trainable, grads));
        self.step += 1;
    }

    /// The parameters to keep: the best so far, or the current ones if nothing was evaluated.
    pub fn into_kept(self) -> (Trainable<A::InnerBackend>, Option<Evaluation>, History) {
        match self.best {
            Some(Best { trainable, evaluation }) => (trainable, Some(evaluation), self.history),
            None => (self.trainable().valid(), None, self.history),
        }
    }
}

/// How the rows of a run are grouped into updates.
pub(crate) fn sampler_config(config: &TrainConfig) -> SamplerConfig {
    SamplerConfig {
        batch_size: config.batch_size,
        accumulation: config.accumulation,
        shuffle: config.shuffle,
        seed: config.seed,
    }
}
