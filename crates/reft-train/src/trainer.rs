//! The training loop.

use crate::{
    data::epoch,
    device::without_panic,
    eval::Verdict,
    learned::{Learned, take_gradients},
    memory::{available, peak_mb},
    optim::{Schedule, adamw, scale_and_clip},
    plan::{ADVICE, bytes},
    recipe::TrainSection,
    tape::Tape,
};
use burn::{
    module::AutodiffModule,
    optim::{GradientsParams, Optimizer},
    tensor::{
        Tensor,
        backend::{AutodiffBackend, Backend},
    },
};
use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::{
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// What is to be learned: examples, their loss, and the judgement of held-out ones.
pub trait Objective<B: Backend> {
    /// One row.
    type Example;

    /// Number of tokens of a row.
    fn n_tokens(example: &Self::Example) -> usize;

    /// The loss of a micro-batch, after going back from it on the tape.
    fn step<A: AutodiffBackend<InnerBackend = B>>(
        &self,
        examples: &[&Self::Example],
        tape: &mut Tape<A>,
    ) -> Loss;

    /// Bytes that the step of a micro-batch needs beside weights and parameters, as far as shapes tell.
    fn activations(&self, learned: &Learned<B>, examples: &[&Self::Example], checkpointing: bool) -> u64;

    /// How well held-out rows do.
    fn judge(&self, learned: &Learned<B>, held_out: &[Self::Example]) -> Verdict;
}

/// The loss of a micro-batch.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Loss {
    /// Its sum over the labels.
    pub sum: f64,
    /// Number of labels: answer tokens, or rows.
    pub labels: usize,
    /// Tokens without padding.
    pub tokens: usize,
}

/// The value of a scalar.
pub(crate) fn value<B: Backend>(scalar: &Tensor<B, 1>) -> f64 {
    let data = scalar.clone().into_data().convert::<f64>();
    data.as_slice::<f64>().map_or(f64::NAN, |values| values[0])
}

/// How to train.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    /// The recipe's `[train]`.
    pub train: TrainSection,
    /// Peak learning rate of the head, if it has its own.
    pub head_lr: Option<f64>,
    /// Whether activations come out of the computer's memory, which is then looked at before it is asked for: a system
    /// that runs out of it ends the process without a word.
    pub in_computer_memory: bool,
}

impl From<TrainSection> for TrainConfig {
    fn from(train: TrainSection) -> Self {
        Self { train, head_lr: None, in_computer_memory: false }
    }
}

/// What one line of the log says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepReport {
    /// Updates done.
    pub step: usize,
    /// Updates in all.
    pub total_steps: usize,
    /// Mean loss per label (answer token, or row) over the updates since the last report.
    pub loss: f64,
    /// Learning rate of the last update.
    pub lr: f64,
    /// Gradient norm of the last update, before clipping.
    pub grad_norm: f64,
    /// Tokens a second, without padding, since the last report.
    pub tokens_per_s: f64,
    /// Peak memory of the process in MiB, where the system tells it.
    pub peak_mb: Option<f64>,
    /// Memory of the device in MiB, where it has its own.
    pub device_mb: Option<f64>,
    /// Seconds left.
    pub seconds_left: f64,
}

/// Is told what happens during training.
pub trait Observer<B: Backend> {
    /// An update is done.
    fn progress(&mut self, _step: usize, _total_steps: usize) {}

    /// Memory of the device in MiB, where it has its own.
    fn device_mb(&self) -> Option<f64> {
        None
    }

    /// A line of the log.
    ///
    /// # Errors
    /// Ends the training.
    fn report(&mut self, _report: &StepReport) -> Result<(), TrainError> {
        Ok(())
    }

    /// What was learned so far, when it is worth keeping in case that the process ends: at the first update, and with every
    /// line of the log as long as there is no best one.
    ///
    /// # Errors
    /// Ends the training.
    fn learned_so_far(&mut self, _learned: &Learned<B>) -> Result<(), TrainError> {
        Ok(())
    }

    /// The held-out rows were judged; `best` holds what was learned if it is the best so far.
    ///
    /// # Errors
    /// Ends the training.
    fn evaluated(
        &mut self,
        _step: usize,
        _verdict: &Verdict,
        _best: Option<&Learned<B>>,
    ) -> Result<(), TrainError> {
        Ok(())
    }
}

/// An observer that looks away.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl<B: Backend> Observer<B> for Silent {}

/// Training that cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The loss or the gradient is not a number.
    #[error(
        "the {what} is {value} at step {step}; lower train.lr (now {lr}) or raise train.warmup, use dtype=bf16 or f32 in \
         the place of f16, and on a GPU see `reft doctor`; the adapter of the step before is kept"
    )]
    NotFinite {
        /// Loss or gradient norm.
        what: &'static str,
        /// NaN or infinite.
        value: f64,
        /// The update, from 1.
        step: usize,
        /// The peak learning rate.
        lr: f64,
    },
    /// The next update needs more memory than there is.
    #[error(
        "out of memory at step {step}: its batch needs {} more, {} are free; the adapter of the step before is kept\n\
         {ADVICE}",
        bytes(*needed), bytes(*free)
    )]
    OutOfMemory {
        /// The update, from 1.
        step: usize,
        /// Bytes beyond those that earlier updates needed.
        needed: u64,
        /// Bytes that there are.
        free: u64,
    },
    /// The device failed.
    #[error(
        "the device failed at step {step}: {reason}; the adapter of the step before is kept\n\
         if it ran out of memory, {ADVICE}"
    )]
    Device {
        /// The update, from 1.
        step: usize,
        /// What its driver said.
        reason: String,
    },
    /// A file cannot be written.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: std::io::Error,
    },
    /// The adapter cannot be written.
    #[error(transparent)]
    Adapter(#[from] reft_core::AdapterError),
}

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stop {
    /// All updates are done.
    Done,
    /// It was asked to end early.
    Interrupted,
    /// The held-out rows did not get better for `train.patience` evaluations.
    NoLongerBetter,
}

/// What training leaves behind.
#[derive(Debug)]
pub struct Trained<B: Backend> {
    /// What was learned: the best, or the last.
    pub learned: Learned<B>,
    /// How held-out rows judge it, if there are any.
    pub verdict: Option<Verdict>,
    /// Why training ended, or why it cannot go on; what was learned so far is kept.
    pub stop: Result<Stop, TrainError>,
    /// Updates done.
    pub steps: usize,
    /// Mean loss per label of every update.
    pub losses: Vec<f64>,
    /// Seconds of every update.
    pub step_seconds: Vec<f64>,
    /// Tokens that went through the model, without padding.
    pub tokens: usize,
    /// Labels among them: answer tokens, or rows.
    pub label_tokens: usize,
}

/// The gradients and the loss of the examples of one update.
#[derive(Debug)]
pub struct StepGradients<B: Backend> {
    /// Gradients of the summed loss with respect to all parameters.
    pub grads: GradientsParams,
    /// Gradients of the summed loss with respect to `Pᵀ` itself, `[d, r]` for each intervention that had rows to edit.
    pub basis_grads: Vec<Option<Tensor<B, 2>>>,
    /// Summed loss.
    pub loss_sum: f64,
    /// Labels: answer tokens, or rows.
    pub label_tokens: usize,
    /// Tokens without padding.
    pub tokens: usize,
}

/// Forward and backward passes over the micro-batches of one update.
///
/// Losses are summed, not averaged, so that micro-batches of any size add up to the large batch exactly. The bases `Pᵀ`
/// are computed once; every micro-batch sees them as leaves, and the gradients that arrive there go down into the
/// parameter of `P` once, at the end. With `checkpointing`, one block of the model is on the tape at a time. `seed` is
/// that of dropout.
pub fn step_gradients<A: AutodiffBackend, O: Objective<A::InnerBackend>>(
    objective: &O,
    learned: &Learned<A>,
    micro_batches: &[Vec<&O::Example>],
    checkpointing: bool,
    seed: u64,
) -> StepGradients<A::InnerBackend> {
    let computed = learned.reft.bases();
    let leaves: Vec<Tensor<A, 2>> =
        computed.iter().map(|basis| Tensor::from_inner(basis.clone().inner()).require_grad()).collect();
    let mut tape = Tape::new(learned, &leaves, checkpointing);
    let mut seeds = ChaCha8Rng::seed_from_u64(seed);
    let (mut loss_sum, mut label_tokens, mut tokens) = (0.0, 0, 0);
    for examples in micro_batches {
        tape.seed = seeds.next_u64();
        let loss = objective.step(examples, &mut tape);
        loss_sum += loss.sum;
        label_tokens += loss.labels;
        tokens += loss.tokens;
    }
    let (grads, basis_grads) = tape.finish(computed);
    StepGradients { grads, basis_grads, loss_sum, label_tokens, tokens }
}

/// The examples of every update without end, as indices: for each update its micro-batches.
pub(crate) fn updates(
    lengths: Vec<usize>,
    train: &TrainSection,
) -> impl Iterator<Item = Vec<Vec<usize>>> + use<'_> {
    let mut rng = ChaCha8Rng::seed_from_u64(train.seed);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    std::iter::from_fn(move || {
        if batches.is_empty() {
            batches = epoch(&lengths, train.batch_size, train.shuffle.then_some(&mut rng));
            batches.reverse();
        }
        Some((0..train.accumulation).filter_map(|_| batches.pop()).collect())
    })
}

/// Trains interventions, or a baseline, and a head on a frozen model.
///
/// Ends early, with what was learned so far, when `interrupted` becomes true.
pub fn train<A: AutodiffBackend, O: Objective<A::InnerBackend>>(
    objective: &O,
    learned: Learned<A::InnerBackend>,
    examples: &[O::Example],
    held_out: &[O::Example],
    config: &TrainConfig,
    observer: &mut impl Observer<A::InnerBackend>,
    interrupted: &AtomicBool,
) -> Trained<A::InnerBackend> {
    let train = &config.train;
    let (updates_per_epoch, total_steps) = train.updates(examples.len());
    let schedule = Schedule {
        kind: train.schedule,
        peak: train.lr,
        warmup_steps: (train.warmup * total_steps as f64).ceil() as usize,
        total_steps,
    };
    let mut out = Trained {
        learned: learned.clone(),
        verdict: None,
        stop: Ok(Stop::Done),
        steps: 0,
        losses: Vec::new(),
        step_seconds: Vec::new(),
        tokens: 0,
        label_tokens: 0,
    };
    let mut learned = Learned::<A>::trainable(learned);
    let mut optimizer = adamw(train.weight_decay).init();
    let mut head_optimizer = adamw(train.weight_decay).init();
    let lengths: Vec<usize> = examples.iter().map(O::n_tokens).collect();
    let eval_every = if train.eval_each_epoch { updates_per_epoch } else { train.eval_every };
    let checkpointing = train.checkpointing.unwrap_or(false);
    let mut updates = updates(lengths, train);
    let mut seeds = ChaCha8Rng::seed_from_u64(train.seed);
    seeds.set_stream(1);
    let mut most_needed = 0;
    let mut window = Window::default();
    let begun = Instant::now();
    let mut evaluated_at = None;
    let mut worse_for = 0;
    for step in 0..total_steps {
        if interrupted.load(Ordering::Relaxed) {
            out.stop = Ok(Stop::Interrupted);
            break;
        }
        let started = Instant::now();
        let micro_batches: Vec<Vec<&O::Example>> = (updates.next().into_iter().flatten())
            .map(|batch| batch.iter().map(|idx| &examples[*idx]).collect())
            .collect();
        if config.in_computer_memory {
            let needs = |batch: &Vec<&O::Example>| objective.activations(&out.learned, batch, checkpointing);
            let needed = micro_batches.iter().map(needs).max().unwrap_or(0).saturating_sub(most_needed);
            most_needed += needed;
            let free = if needed > 0 { available() } else { None };
            if let Some(free) = free.filter(|free| needed > *free) {
                out.stop = Err(TrainError::OutOfMemory { step: step + 1, needed, free });
                break;
            }
        }
        let seed = seeds.next_u64();
        let computed = without_panic(AssertUnwindSafe(|| {
            let step = step_gradients(objective, &learned, &micro_batches, checkpointing, seed);
            let (loss, scale) = (step.loss_sum / step.label_tokens as f64, 1.0 / step.label_tokens as f64);
            let (grads, grad_norm) = scale_and_clip(step.grads, &learned, scale, train.clip);
            (loss, step.loss_sum, step.label_tokens, step.tokens, grads, grad_norm)
        }));
        let (loss, loss_sum, label_tokens, tokens, mut grads, grad_norm) = match computed {
            Ok(computed) => computed,
            Err(reason) => {
                out.stop = Err(TrainError::Device { step: step + 1, reason });
                break;
            }
        };
        if let Some((what, value)) =
            [("loss", loss), ("gradient norm", grad_norm)].into_iter().find(|(_, v)| !v.is_finite())
        {
            out.stop = Err(TrainError::NotFinite { what, value, step: step + 1, lr: train.lr });
            break;
        }
        let lr = schedule.lr(step);
        if let (Some(head_lr), Some(head)) = (config.head_lr, &learned.head) {
            let head_grads = take_gradients(&mut grads, head);
            learned = head_optimizer.step(lr * head_lr / train.lr, learned, head_grads);
        }
        learned = optimizer.step(lr, learned, grads);
        out.steps = step + 1;
        out.losses.push(loss);
        out.step_seconds.push(started.elapsed().as_secs_f64());
        out.tokens += tokens;
        out.label_tokens += label_tokens;
        window.loss += loss_sum;
        window.label_tokens += label_tokens;
        window.tokens += tokens;
        window.seconds += started.elapsed().as_secs_f64();
        observer.progress(out.steps, total_steps);

        let last = out.steps == total_steps;
        let logged = out.steps.is_multiple_of(train.log_every) || last;
        let result = if logged {
            let report = StepReport {
                step: out.steps,
                total_steps,
                loss: window.loss / window.label_tokens as f64,
                lr,
                grad_norm,
                tokens_per_s: window.tokens as f64 / window.seconds,
                peak_mb: peak_mb(),
                device_mb: observer.device_mb(),
                seconds_left: begun.elapsed().as_secs_f64() / out.steps as f64
                    * (total_steps - out.steps) as f64,
            };
            window = Window::default();
            observer.report(&report)
        } else {
            Ok(())
        };
        let worth_keeping = !last && (out.verdict.is_none() || !train.keep_best);
        let result = result.and_then(|()| match worth_keeping && (step == 0 || logged) {
            true => observer.learned_so_far(&learned.valid()),
            false => Ok(()),
        });
        let due = last || (eval_every > 0 && out.steps.is_multiple_of(eval_every));
        let result = result.and_then(|()| {
            if due {
                evaluated_at = Some(out.steps);
                let better = judge(objective, &learned.valid(), held_out, train, &mut out, observer)?;
                worse_for = if better { 0 } else { worse_for + 1 };
            }
            Ok(())
        });
        if let Err(error) = result {
            out.stop = Err(error);
            break;
        }
        if train.patience > 0 && worse_for >= train.patience && !last {
            out.stop = Ok(Stop::NoLongerBetter);
            break;
        }
    }
    if let Err(TrainError::OutOfMemory { .. } | TrainError::Device { .. }) = out.stop {
        // No evaluation, which would need memory as well.
        if out.verdict.is_none() {
            out.learned = learned.valid();
        }
        return out;
    }
    // Ended early: the last adapter is judged like any other, so that the better one is kept.
    if out.steps > 0
        && evaluated_at != Some(out.steps)
        && let Err(error) = judge(objective, &learned.valid(), held_out, train, &mut out, observer)
    {
        out.stop = Err(error);
    }
    out
}

/// Judges the held-out rows and keeps what was learned if it is to be kept. Says whether it is the best so far.
fn judge<B: Backend, O: Objective<B>>(
    objective: &O,
    learned: &Learned<B>,
    held_out: &[O::Example],
    train: &TrainSection,
    out: &mut Trained<B>,
    observer: &mut impl Observer<B>,
) -> Result<bool, TrainError> {
    if held_out.is_empty() {
        out.learned = learned.clone();
        return Ok(true);
    }
    let verdict = objective.judge(learned, held_out);
    let better = out.verdict.as_ref().is_none_or(|best| verdict.beats(best));
    let kept = better || !train.keep_best;
    observer.evaluated(out.steps, &verdict, kept.then_some(learned))?;
    if kept {
        out.learned = learned.clone();
        out.verdict = Some(verdict);
    }
    Ok(better)
}

/// What happened since the last report.
#[derive(Default)]
struct Window {
    loss: f64,
    label_tokens: usize,
    tokens: usize,
    seconds: f64,
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::eval::Score;
    use burn_flex::Flex;
    use reft_core::{Component, Method, Reft, ReftConfig, Site, intervention::Init};
    use std::cell::Cell;

    /// Fails at one of its steps, or needs more memory than any computer has.
    struct Failing {
        at: usize,
        steps: Cell<usize>,
    }

    impl Objective<Flex> for Failing {
        type Example = usize;

        fn n_tokens(example: &usize) -> usize {
            *example
        }

        fn step<A: AutodiffBackend<InnerBackend = Flex>>(&self, _: &[&usize], tape: &mut Tape<A>) -> Loss {
            self.steps.set(self.steps.get() + 1);
            assert!(self.steps.get() != self.at, "the driver is out of memory\nand says more");
            tape.backward(tape.bases[0].clone().sum());
            Loss { sum: 1.0, labels: 1, tokens: 1 }
        }

        fn activations(&self, _: &Learned<Flex>, examples: &[&usize], _: bool) -> u64 {
            if *examples[0] > 5 { u64::MAX / 2 } else { 1 }
        }

        fn judge(&self, _: &Learned<Flex>, _: &[usize]) -> Verdict {
            let score = Score(vec![("nll".into(), 1.0)]);
            Verdict { score, key: "nll", higher_is_better: false }
        }
    }

    fn run(at: usize, examples: &[usize]) -> (Learned<Flex>, Trained<Flex>) {
        let config = ReftConfig {
            method: Method::Loreft,
            rank: 1,
            hidden_size: 4,
            sites: vec![Site { layer: 0, component: Component::BlockOutput }],
            positions: "l1".parse().expect("positions"),
            tied: true,
            activation: Default::default(),
            dropout: 0.0,
        };
        let reft: Reft<Flex> =
            config.init(Init::Paper, &mut ChaCha8Rng::seed_from_u64(0), &Default::default()).expect("valid");
        let start: Learned<Flex> = reft.into();
        let section = TrainSection { batch_size: 1, shuffle: false, warmup: 0.0, ..Default::default() };
        let config = TrainConfig { in_computer_memory: true, ..section.into() };
        let (objective, never) = (Failing { at, steps: Cell::new(0) }, AtomicBool::new(false));
        let trained = train::<burn::backend::Autodiff<Flex>, _>(
            &objective,
            start.clone(),
            examples,
            &[1],
            &config,
            &mut Silent,
            &never,
        );
        (start, trained)
    }

    fn basis(learned: &Learned<Flex>) -> Vec<f32> {
        learned.reft.bases()[0].to_data().to_vec().expect("f32")
    }

    #[test]
    fn a_failing_device_ends_training_with_what_was_learned() {
        let (start, trained) = run(3, &[1; 5]);
        assert_eq!(trained.steps, 2);
        let error = trained.stop.expect_err("the device failed").to_string();
        assert!(error.contains("failed at step 3: the driver is out of memory;"), "{error}");
        assert!(error.contains("train.checkpointing=true") && !error.contains("says more"), "{error}");
        assert_ne!(basis(&trained.learned), basis(&start));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn memory_is_looked_at_before_it_is_asked_for() {
        let (start, trained) = run(0, &[1, 1, 9]);
        assert_eq!(trained.steps, 2);
        let error = trained.stop.expect_err("there is not that much").to_string();
        assert!(error.contains("out of memory at step 3") && error.contains("quant=int8"), "{error}");
        assert_ne!(basis(&trained.learned), basis(&start));
    }
}
