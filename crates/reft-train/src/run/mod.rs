//! Runs: a recipe in, a run folder out.
//!
//! | in the run folder | contents |
//! |---|---|
//! | `recipe.toml` | the recipe with every choice resolved |
//! | `adapter/` | the trained adapter |
//! | `metrics.jsonl` | one line per log step and per evaluation |
//! | `summary.json` | [`Summary`] |

mod event;
mod files;
mod folder;
mod plan;

use crate::{
    adapter::AdapterOrigin,
    checkpoint::History,
    device::{Chosen, catch_panic},
    error::RunError,
    memory::{self, peak_mb, recent_peak_mb},
    observer::TrainError,
    open::{PrecisionRequest, open_model},
    recipe::Recipe,
    tasks::{ClassifierTask, LanguageModelTask, Task, Trained},
    trainable::Trainable,
    trainer::{TrainOutcome, train},
};
pub use event::{Event, Finished, Outcome, Summary};
use files::check_free;
use folder::RunFolder;
pub use plan::Plan;
use reft_kernels::{AutodiffKernels, Kernels};
use reft_models::{LoadedModel, ModelConfig};
use std::{
    panic::AssertUnwindSafe,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    time::Instant,
};

/// Runs a recipe, or with `dry` only plans it: no weights are loaded and no files are written.
///
/// # Errors
/// If anything is wrong with the recipe, the model or the data, nothing is written. If training cannot continue, the
/// adapter so far is in the run folder.
pub fn run<A: AutodiffKernels>(
    recipe: &Recipe,
    on: &Chosen<A::Device>,
    dry: bool,
    on_event: &mut dyn FnMut(Event),
    interrupted: &AtomicBool,
) -> Result<Outcome, RunError> {
    match recipe.data.task {
        None => run_task::<A, LanguageModelTask>(recipe, on, dry, on_event, interrupted),
        Some(_) => run_task::<A, ClassifierTask>(recipe, on, dry, on_event, interrupted),
    }
}

/// The stages of a run, the same for every kind of work.
fn run_task<A: AutodiffKernels, T: Task<A::InnerBackend>>(
    recipe: &Recipe,
    on: &Chosen<A::Device>,
    dry: bool,
    on_event: &mut dyn FnMut(Event),
    interrupted: &AtomicBool,
) -> Result<Outcome, RunError> {
    let device = &on.device;
    let folder = Path::new(&recipe.run.folder).join(&recipe.run.name);
    if !dry {
        check_free(&folder, recipe.run.overwrite)?;
    }
    A::seed(device, recipe.train.seed);

    // 1. Rows.
    let mut task = T::read(recipe)?;

    // 2. The model's files, without its weights.
    let request = PrecisionRequest { dtype: recipe.dtype, quant: recipe.quant };
    let (checkpoint, precision) =
        open_model::<A::InnerBackend, T::Model>(&recipe.model, recipe.revision.as_deref(), request, on)?;
    let config = checkpoint.config.clone();

    // 3. Tokens.
    let data = task.encode(recipe, &config, &checkpoint.tokenizer)?;

    // 4. Memory.
    let plan = plan::plan(recipe, &task, &checkpoint, precision, &data.train, &data.held_out, on)?;
    let (base, weights) = (&checkpoint.base, plan.weights);
    on_event(Event::Model { base, weights, precision, device: &on.info.name });
    if let Some(labels) = task.labels() {
        on_event(Event::Labels(labels));
    }
    for summary in &data.summaries {
        on_event(Event::Data { summary, max_length: data.max_length });
    }
    for notice in &data.notices {
        on_event(Event::Notice(notice));
    }
    for warning in &checkpoint.warnings {
        on_event(Event::Warning(warning));
    }
    for warning in recipe.train.warnings(data.train.len()) {
        on_event(Event::Warning(&warning));
    }
    if dry {
        return Ok(Outcome::Planned(Box::new(plan)));
    }

    // 5. Weights.
    let loaded: LoadedModel<A::InnerBackend, T::Model> = checkpoint.load(precision, device)?;
    let trainable = init_trainable(recipe, &task, &loaded, &config, device)?;

    // 6. The model without an adapter.
    let evaluate = || task.evaluate_base(recipe, &loaded, &data);
    let (before, answers_before) = catch_panic(AssertUnwindSafe(evaluate))
        .map_err(|reason| RunError::Evaluation { what: "without an adapter", reason })??;
    if let Some(score) = &before {
        on_event(Event::Score { what: "before", score });
    }

    // 7. The run folder. An existing run is only replaced if there will be a new one.
    if interrupted.load(Ordering::Relaxed) {
        return Err(RunError::Interrupted);
    }
    let (head, interventions) = (trainable.num_head_params(), trainable.reft.edits().len());
    debug_assert_eq!((plan.head, plan.trainable + plan.head), (head, num_params(&trainable)));
    on_event(Event::Trainable {
        method: plan.method,
        interventions,
        parameters: plan.trainable,
        head,
        weights,
    });
    let mut resolved = recipe.clone();
    resolved.device = plan.device.clone();
    resolved.dtype = Some(precision.dtype);
    resolved.data.max_length = Some(data.max_length);
    resolved.train.checkpointing = Some(plan.checkpointing);
    task.resolve(&mut resolved);
    let (template, task_config) = task.metadata();
    let origin = AdapterOrigin {
        base: loaded.base.clone(),
        template,
        task: task_config,
        peft_names: task.peft_names(&config),
    };
    let device_mb = || on.memory_mb();
    let mut run_folder = RunFolder::create(&folder, &resolved, origin, &device_mb, on_event)?;

    // 8. Training.
    memory::trim();
    memory::reset_peak();
    let (begun, resident) = (Instant::now(), memory::resident());
    let train_config = recipe.train_config(on.info.uses_host_memory());
    let outcome = {
        let objective = task.objective(recipe, &loaded);
        let (train_set, held_out) = (&data.train, &data.held_out);
        train::<A, _>(&objective, trainable, train_set, held_out, &train_config, &mut run_folder, interrupted)
    };
    let seconds = begun.elapsed().as_secs_f64();
    let training_mb =
        resident.and_then(|before| Some(recent_peak_mb()? - before as f64 / f64::from(1 << 20)));
    let device_mb = on.memory_mb();
    let TrainOutcome { trainable, evaluation, stop, steps, history } = outcome;
    if steps == 0 {
        // There is nothing to keep: an earlier run comes back.
        return Err(stop.err().map_or(RunError::Interrupted, RunError::Train));
    }
    let saved = catch_panic(AssertUnwindSafe(|| run_folder.save_adapter(&trainable)));
    let ended = stop.map_err(|error| match run_folder.has_adapter() {
        true => {
            RunError::Stopped { error, adapter: run_folder.adapter_folder(), replaced: run_folder.replaced() }
        }
        false => RunError::Train(error),
    })?;
    let trained = Trained { trainable, evaluation, ended };
    saved.map_err(|reason| TrainError::Device { step: steps, reason })??;

    // 9. The model with the adapter.
    let evaluate = || task.evaluate_result(recipe, &loaded, &trained);
    let result = catch_panic(AssertUnwindSafe(evaluate))
        .map_err(|reason| RunError::Evaluation { what: "with the adapter, which is saved", reason })??;
    for (file, score) in &result.test {
        run_folder.report_event(Event::Score { what: file, score });
    }
    if let Some(score) = &result.after {
        run_folder.report_event(Event::Score { what: "after", score });
    }
    let History { losses, step_seconds, tokens, label_tokens } = history;
    let summary = Summary {
        method: plan.method,
        before,
        after: result.after,
        selection: result.selection,
        test: result.test,
        trainable: plan.trainable,
        share: plan.trainable as f64 / weights as f64,
        head,
        steps,
        ended: trained.ended,
        seconds,
        tokens,
        label_tokens,
        tokens_per_s: tokens as f64 / step_seconds.iter().sum::<f64>().max(f64::MIN_POSITIVE),
        s_per_step_median: median(step_seconds.clone()),
        step_seconds,
        peak_mb: peak_mb(),
        training_mb,
        device_mb,
        losses,
        device: plan.device,
        adapter: run_folder.adapter_folder(),
    };
    run_folder.finish(&summary)?;
    let answers = answers_before.into_iter().zip(result.answers).collect();
    Ok(Outcome::Finished(Box::new(Finished { summary, answers })))
}

/// New trainable parameters, as the recipe describes them.
fn init_trainable<B: Kernels, T: Task<B>>(
    recipe: &Recipe,
    task: &T,
    loaded: &LoadedModel<B, T::Model>,
    config: &impl ModelConfig,
    device: &B::Device,
) -> Result<Trainable<B>, RunError> {
    let reft_config = recipe.reft_config(config.n_layers(), config.hidden_size())?;
    let reft = reft_config.try_init(device)?;
    let tuned = match recipe.tuning() {
        Some(tuning) => Some(tuning.init(&loaded.tensors, recipe.train.seed, device)?),
        None => None,
    };
    Ok(Trainable { reft, tuned, head: task.init_head(recipe, loaded, device) })
}

fn num_params<B: Kernels>(trainable: &Trainable<B>) -> usize {
    burn::module::Module::<B>::num_params(trainable)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
