//! The training loop.

use crate::{
    checkpoint::{Best, History, TrainState},
    data::Tokenized,
    device::{catch_panic, catch_panic_async},
    memory::{available, peak_mb},
    objective::{Loss, Objective, step_gradients},
    observer::{Observer, StepReport, StopReason, TrainError},
    optim::{Schedule, scale_and_clip},
    score::Evaluation,
    train_config::TrainConfig,
    trainable::Trainable,
};
use burn::{
    module::AutodiffModule,
    optim::GradientsParams,
    tensor::{Tensor, try_read_sync},
};
use rand::RngCore;
use reft_kernels::{AutodiffKernels, Kernels};
use std::{
    panic::AssertUnwindSafe,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// The result of training.
#[derive(Debug)]
pub struct TrainOutcome<B: Kernels> {
    /// The parameters to keep: the best, or the last.
    pub trainable: Trainable<B>,
    /// Their evaluation on held-out rows, if there are any.
    pub evaluation: Option<Evaluation>,
    /// Why training ended, or why it could not continue; the parameters so far are kept in either case.
    pub stop: Result<StopReason, TrainError>,
    /// Updates done.
    pub steps: usize,
    /// Measurements of every update.
    pub history: History,
}

/// Trains interventions or a baseline, and a head if there is one, on a frozen model.
///
/// Stops early, keeping the parameters so far, when `interrupted` becomes true.
///
/// # Panics
/// On WebGPU in a browser, where nothing may wait: use [`train_async`].
pub fn train<A: AutodiffKernels, O: Objective<A::InnerBackend>>(
    objective: &O,
    trainable: Trainable<A::InnerBackend>,
    examples: &[O::Example],
    held_out: &[O::Example],
    config: &TrainConfig,
    observer: &mut impl Observer<A::InnerBackend>,
    interrupted: &AtomicBool,
) -> TrainOutcome<A::InnerBackend> {
    let training =
        train_async::<A, O>(objective, trainable, examples, held_out, config, observer, interrupted);
    try_read_sync(training).expect("this platform can wait for the device; use `train_async` where it cannot")
}

/// [`train`], which waits for the device once per update: for the loss and the norm of the gradients.
///
/// Evaluations of held-out rows still block.
pub async fn train_async<A: AutodiffKernels, O: Objective<A::InnerBackend>>(
    objective: &O,
    trainable: Trainable<A::InnerBackend>,
    examples: &[O::Example],
    held_out: &[O::Example],
    config: &TrainConfig,
    observer: &mut impl Observer<A::InnerBackend>,
    interrupted: &AtomicBool,
) -> TrainOutcome<A::InnerBackend> {
    let lengths = examples.iter().map(Tokenized::n_tokens).collect();
    let mut state = TrainState::<A>::new(trainable, lengths, config);
    let mut trainer = Trainer::new(objective, examples, held_out, config, observer);
    let stop = trainer.run(&mut state, interrupted).await;
    let steps = state.step;
    let (trainable, evaluation, history) = state.into_kept();
    TrainOutcome { trainable, evaluation, stop, steps, history }
}

/// The loop's fixed inputs, and what is measured since the last log line.
struct Trainer<'a, O: Objective<B>, B: Kernels, V> {
    objective: &'a O,
    examples: &'a [O::Example],
    held_out: &'a [O::Example],
    config: &'a TrainConfig,
    observer: &'a mut V,
    schedule: Schedule,
    eval_every: usize,
    checkpointing: bool,
    begun: Instant,
    since_report: Window,
    /// The largest activation estimate of any batch so far, in bytes.
    activation_bytes: u64,
}

/// What was measured since the last log line.
#[derive(Default)]
struct Window {
    loss_sum: f64,
    labels: usize,
    tokens: usize,
    seconds: f64,
}

/// Loss and scaled, clipped gradients of one update, on the device.
struct Update<B: Kernels> {
    loss: Loss<B>,
    grads: GradientsParams,
    /// `[1]`
    grad_norm: Tensor<B, 1>,
}

/// The numbers of an update that are read from the device.
struct Measured {
    loss_sum: f64,
    grad_norm: f64,
}

impl<B: Kernels> Update<B> {
    /// Reads the loss and the norm of the gradients in one transfer.
    ///
    /// # Errors
    /// What the device says, if it failed.
    async fn measured(&self) -> Result<Measured, String> {
        let mut numbers = self.loss.terms.clone();
        numbers.push(self.grad_norm.clone());
        let data = Tensor::cat(numbers, 0).into_data_async().await.map_err(|error| error.to_string())?;
        let numbers = data.convert::<f64>().to_vec::<f64>().expect("converted to f64");
        let (grad_norm, terms) = numbers.split_last().expect("the norm is among them");
        Ok(Measured { loss_sum: terms.iter().sum(), grad_norm: *grad_norm })
    }
}

impl<'a, O: Objective<B>, B: Kernels, V: Observer<B>> Trainer<'a, O, B, V> {
    fn new(
        objective: &'a O,
        examples: &'a [O::Example],
        held_out: &'a [O::Example],
        config: &'a TrainConfig,
        observer: &'a mut V,
    ) -> Self {
        let schedule = config.schedule_of(examples.len());
        let updates_per_epoch = config.updates_per_epoch(examples.len());
        Self {
            objective,
            examples,
            held_out,
            config,
            observer,
            schedule,
            eval_every: if config.eval_each_epoch { updates_per_epoch } else { config.eval_every },
            checkpointing: config.checkpointing.unwrap_or(false),
            begun: Instant::now(),
            since_report: Window::default(),
            activation_bytes: 0,
        }
    }

    /// Updates until the end, an interruption, early stopping or an error; then evaluates what was not evaluated yet.
    async fn run<A: AutodiffKernels<InnerBackend = B>>(
        &mut self,
        state: &mut TrainState<A>,
        interrupted: &AtomicBool,
    ) -> Result<StopReason, TrainError> {
        let stop = self.update_until_stopped(state, interrupted).await;
        // An evaluation would need the memory or the device that has just failed.
        let can_evaluate = !matches!(stop, Err(TrainError::OutOfMemory { .. } | TrainError::Device { .. }));
        if can_evaluate && state.step > 0 && state.last_evaluation != Some(state.step) {
            self.evaluate(state)?;
        }
        stop
    }

    async fn update_until_stopped<A: AutodiffKernels<InnerBackend = B>>(
        &mut self,
        state: &mut TrainState<A>,
        interrupted: &AtomicBool,
    ) -> Result<StopReason, TrainError> {
        let patience = self.config.patience;
        while state.step < self.schedule.total_steps {
            if interrupted.load(Ordering::Relaxed) {
                return Ok(StopReason::Interrupted);
            }
            self.step(state).await?;
            let out_of_patience = patience > 0 && state.evaluations_without_improvement >= patience;
            if out_of_patience && state.step < self.schedule.total_steps {
                return Ok(StopReason::NoLongerBetter);
            }
        }
        Ok(StopReason::Done)
    }

    /// One update, with the log line, the saved parameters and the evaluation that are due after it.
    async fn step<A: AutodiffKernels<InnerBackend = B>>(
        &mut self,
        state: &mut TrainState<A>,
    ) -> Result<(), TrainError> {
        let started = Instant::now();
        let (update, Measured { loss_sum, grad_norm }) = self.compute_update(state).await?;
        let Loss { labels, tokens, .. } = update.loss;
        let lr = self.schedule.lr(state.step);
        let head_lr = self.config.head_lr.map(|head_lr| lr * head_lr / self.config.lr);
        state.update(update.grads, lr, head_lr);
        let seconds = started.elapsed().as_secs_f64();
        state.history.losses.push(loss_sum / labels as f64);
        state.history.step_seconds.push(seconds);
        state.history.tokens += tokens;
        state.history.label_tokens += labels;
        self.since_report.add(Window { loss_sum, labels, tokens, seconds });
        self.observer.progress(state.step, self.schedule.total_steps);

        let is_last = state.step == self.schedule.total_steps;
        let is_logged = is_last || state.step.is_multiple_of(self.config.log_every);
        if is_logged {
            self.report(state.step, lr, grad_norm)?;
        }
        let is_worth_saving = !is_last && (state.best.is_none() || !self.config.keep_best);
        if is_worth_saving && (is_logged || state.step == 1) {
            self.observer.save_progress(&state.trainable().valid())?;
        }
        if is_last || (self.eval_every > 0 && state.step.is_multiple_of(self.eval_every)) {
            self.evaluate(state)?;
        }
        Ok(())
    }

    /// Gradients of the next rows.
    async fn compute_update<A: AutodiffKernels<InnerBackend = B>>(
        &mut self,
        state: &mut TrainState<A>,
    ) -> Result<(Update<B>, Measured), TrainError> {
        let step = state.step + 1;
        let micro_batches: Vec<Vec<&O::Example>> = (state.sampler.next().into_iter().flatten())
            .map(|batch| batch.iter().map(|idx| &self.examples[*idx]).collect())
            .collect();
        self.check_memory(state.trainable(), &micro_batches, step)?;
        let seed = state.dropout_seeds.next_u64();
        let trainable = state.trainable();
        // A driver that fails panics deep inside its crate.
        let update = catch_panic(AssertUnwindSafe(|| {
            let sums = step_gradients(self.objective, trainable, &micro_batches, self.checkpointing, seed);
            let scale = 1.0 / sums.loss.labels as f64;
            let (grads, grad_norm) = scale_and_clip(sums.grads, trainable, scale, self.config.clip);
            Update { loss: sums.loss, grads, grad_norm }
        }))
        .map_err(|reason| TrainError::Device { step, reason })?;
        let measured = catch_panic_async(update.measured()).await.and_then(|measured| measured);
        let measured = measured.map_err(|reason| TrainError::Device { step, reason })?;
        let mean_loss = measured.loss_sum / update.loss.labels as f64;
        let numbers = [("loss", mean_loss), ("gradient norm", measured.grad_norm)];
        match numbers.into_iter().find(|(_, value)| !value.is_finite()) {
            Some((what, value)) => Err(TrainError::NotFinite { what, value, step, lr: self.config.lr }),
            None => Ok((update, measured)),
        }
    }

    /// Refuses a batch that is larger than all before it if the free host memory does not hold it.
    fn check_memory<A: AutodiffKernels<InnerBackend = B>>(
        &mut self,
        trainable: &Trainable<A>,
        micro_batches: &[Vec<&O::Example>],
        step: usize,
    ) -> Result<(), TrainError> {
        if !self.config.check_host_memory {
            return Ok(());
        }
        let bytes_of =
            |batch: &Vec<&O::Example>| self.objective.activation_bytes(trainable, batch, self.checkpointing);
        let largest = micro_batches.iter().map(bytes_of).max().unwrap_or(0);
        let needed = largest.saturating_sub(self.activation_bytes);
        self.activation_bytes += needed;
        let free = if needed > 0 { available() } else { None };
        match free.filter(|free| needed > *free) {
            Some(free) => Err(TrainError::OutOfMemory { step, needed, free }),
            None => Ok(()),
        }
    }

    fn report(&mut self, step: usize, lr: f64, grad_norm: f64) -> Result<(), TrainError> {
        let Window { loss_sum, labels, tokens, seconds } = std::mem::take(&mut self.since_report);
        let total_steps = self.schedule.total_steps;
        self.observer.report(&StepReport {
            step,
            total_steps,
            loss: loss_sum / labels as f64,
            lr,
            grad_norm,
            tokens_per_s: tokens as f64 / seconds,
            peak_mb: peak_mb(),
            device_mb: self.observer.device_mb(),
            seconds_left: self.begun.elapsed().as_secs_f64() / step as f64 * (total_steps - step) as f64,
        })
    }

    /// Evaluates the held-out rows and keeps the parameters if they are the best, or if the last ones are to be kept.
    fn evaluate<A: AutodiffKernels<InnerBackend = B>>(
        &mut self,
        state: &mut TrainState<A>,
    ) -> Result<(), TrainError> {
        state.last_evaluation = Some(state.step);
        if self.held_out.is_empty() {
            return Ok(());
        }
        let trainable = state.trainable().valid();
        let evaluate = || self.objective.evaluate(&trainable, self.held_out);
        let evaluation = catch_panic(AssertUnwindSafe(evaluate))
            .map_err(|reason| TrainError::Device { step: state.step, reason })?;
        // A value that is not finite is never the best, not even the first one.
        let is_finite = evaluation.value().is_finite();
        let is_better =
            is_finite && state.best.as_ref().is_none_or(|best| evaluation.beats(&best.evaluation));
        let is_kept = is_better || !self.config.keep_best;
        self.observer.evaluated(state.step, &evaluation, is_kept.then_some(&trainable))?;
        state.evaluations_without_improvement =
            if is_better { 0 } else { state.evaluations_without_improvement + 1 };
        if is_kept {
            state.best = Some(Best { trainable, evaluation });
        }
        Ok(())
    }
}

impl Window {
    fn add(&mut self, update: Self) {
        self.loss_sum += update.loss_sum;
        self.labels += update.labels;
        self.tokens += update.tokens;
        self.seconds += update.seconds;
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::{gradients::GradientSum, memory::OUT_OF_MEMORY_ADVICE, observer::Silent, score::Score};
    use burn_flex::Flex;
    use reft_core::{Reft, ReftConfig};
    use std::cell::{Cell, RefCell};

    /// Panics at one of its steps, or claims to need more memory than any machine has.
    struct Failing {
        at: usize,
        steps: Cell<usize>,
        /// The values of the evaluations, the next one last; none is a panic.
        evaluations: RefCell<Vec<Option<f64>>>,
    }

    /// A row with this many tokens.
    struct Row(usize);

    impl Tokenized for Row {
        fn n_tokens(&self) -> usize {
            self.0
        }

        fn n_labels(&self) -> usize {
            1
        }
    }

    impl Objective<Flex> for Failing {
        type Example = Row;

        fn backward<A: AutodiffKernels<InnerBackend = Flex>>(
            &self,
            _: &[&Row],
            gradients: &mut GradientSum<A>,
        ) -> Loss<Flex> {
            self.steps.set(self.steps.get() + 1);
            assert!(self.steps.get() != self.at, "the driver is out of memory\nsecond line");
            gradients.backward(gradients.bases[0].clone().sum());
            Loss { terms: vec![Tensor::ones([1], &Default::default())], labels: 1, tokens: 1 }
        }

        fn activation_bytes<C: Kernels>(&self, _: &Trainable<C>, examples: &[&Row], _: bool) -> u64 {
            if examples[0].0 > 5 { u64::MAX / 2 } else { 1 }
        }

        fn evaluate(&self, _: &Trainable<Flex>, _: &[Row]) -> Evaluation {
            let value = self.evaluations.borrow_mut().pop().unwrap_or(Some(1.0));
            let score = Score(vec![("nll".into(), value.expect("the driver is out of memory"))]);
            Evaluation { score, key: "nll", higher_is_better: false }
        }
    }

    impl Failing {
        fn at(step: usize) -> Self {
            Self { at: step, steps: Cell::new(0), evaluations: RefCell::default() }
        }

        fn never_but_evaluating(values: &[Option<f64>]) -> Self {
            Self { evaluations: RefCell::new(values.iter().rev().copied().collect()), ..Self::at(0) }
        }
    }

    /// The value of every evaluation, and whether its parameters are to be kept.
    #[derive(Default)]
    struct Evaluations(Vec<(f64, bool)>);

    impl Observer<Flex> for Evaluations {
        fn evaluated(
            &mut self,
            _: usize,
            evaluation: &Evaluation,
            best: Option<&Trainable<Flex>>,
        ) -> Result<(), TrainError> {
            self.0.push((evaluation.value(), best.is_some()));
            Ok(())
        }
    }

    fn run(at: usize, lengths: &[usize]) -> (Trainable<Flex>, TrainOutcome<Flex>) {
        run_observed(&Failing::at(at), lengths, 0, &mut Silent)
    }

    fn run_observed(
        objective: &Failing,
        lengths: &[usize],
        eval_every: usize,
        observer: &mut impl Observer<Flex>,
    ) -> (Trainable<Flex>, TrainOutcome<Flex>) {
        let config = ReftConfig::new(4, [0]).with_rank(1).with_positions("l1".parse().expect("positions"));
        let reft: Reft<Flex> = config.init(&Default::default());
        let start: Trainable<Flex> = reft.into();
        let config = TrainConfig {
            batch_size: 1,
            shuffle: false,
            warmup: 0.0,
            check_host_memory: true,
            eval_every,
            ..TrainConfig::default()
        };
        let outcome = train::<burn::backend::Autodiff<Flex>, _>(
            objective,
            start.clone(),
            &lengths.iter().map(|n| Row(*n)).collect::<Vec<_>>(),
            &[Row(1)],
            &config,
            observer,
            &AtomicBool::new(false),
        );
        (start, outcome)
    }

    fn basis(trainable: &Trainable<Flex>) -> Vec<f32> {
        trainable.reft.bases()[0].to_data().to_vec().expect("f32")
    }

    #[test]
    fn a_device_failure_ends_training_and_keeps_the_parameters() {
        let (start, outcome) = run(3, &[1; 5]);
        assert_eq!(outcome.steps, 2);
        assert_eq!(
            outcome.stop.expect_err("the device failed").to_string(),
            format!(
                "the device failed at step 3: the driver is out of memory\n\
                 if it ran out of memory, {OUT_OF_MEMORY_ADVICE}"
            )
        );
        assert_ne!(basis(&outcome.trainable), basis(&start));
    }

    #[test]
    fn an_evaluation_that_fails_ends_training_and_keeps_the_parameters() {
        let objective = Failing::never_but_evaluating(&[None]);
        let (start, outcome) = run_observed(&objective, &[1; 5], 2, &mut Silent);
        assert_eq!(outcome.steps, 2);
        let error = outcome.stop.expect_err("the device failed").to_string();
        assert!(error.starts_with("the device failed at step 2: the driver is out of memory"), "{error}");
        assert_ne!(basis(&outcome.trainable), basis(&start));
    }

    #[test]
    fn an_evaluation_that_is_not_a_number_is_never_the_best() {
        let objective =
            Failing::never_but_evaluating(&[Some(f64::NAN), Some(2.0), Some(f64::NAN), Some(1.0)]);
        let mut seen = Evaluations::default();
        let (_, outcome) = run_observed(&objective, &[1; 4], 1, &mut seen);
        let kept = seen.0.iter().take(4).map(|(_, kept)| *kept);
        assert_eq!(kept.collect::<Vec<_>>(), [false, true, false, true]);
        assert_eq!(outcome.evaluation.expect("kept").value(), 1.0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_batch_that_does_not_fit_the_memory_is_refused_before_it_is_computed() {
        let (start, outcome) = run(0, &[1, 1, 9]);
        assert_eq!(outcome.steps, 2);
        let error = outcome.stop.expect_err("there is not that much").to_string();
        assert!(error.starts_with("out of memory at step 3: its batch needs "), "{error}");
        assert!(error.ends_with(OUT_OF_MEMORY_ADVICE), "{error}");
        assert_ne!(basis(&outcome.trainable), basis(&start));
    }
}
