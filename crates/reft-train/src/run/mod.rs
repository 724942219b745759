//! Recipe → run folder, with everything in between.
//!
//! | in the run folder | what |
//! |---|---|
//! | `recipe.toml` | the recipe with every choice resolved |
//! | `adapter/` | the trained interventions |
//! | `metrics.jsonl` | a line for every log step and every evaluation |
//! | `summary.json` | [`Summary`] |

use crate::{
    classify::{Classification, Report, predict},
    data::{DataError, DataSet, Row, Template, parse_rows, read_rows},
    device::{Chosen, DeviceError, without_panic},
    eval::{Answer, EvalError, Score, Verdict, answers, exact_match, likelihood},
    learned::{Learned, Origin, load_tuned},
    loss::{LanguageModelling, logit_rows},
    memory::{self, peak_mb, recent_peak_mb},
    plan::{Needs, Settings, Shapes, bytes},
    recipe::{Method, Protocol, Recipe},
    task::{LabelledSet, Task, check_name, read_task_rows},
    tiny,
    trainer::{Objective, Observer, StepReport, Stop, TrainConfig, TrainError, train, updates},
};
use burn::tensor::backend::{AutodiffBackend, Backend};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use reft_core::{
    Adapter, AdapterError, BaseModel, Reft, ReftConfig, Site, TaskConfig, Trained, adapter::write_atomic,
    intervention::InterventionError, reft::LayersError,
};
use reft_models::{
    Dtype, Footprint, Llama, LoadError, LoadedModel, LoraConfig, ModelFiles, Precision, Pretrained, Quant,
    Roberta, Tuned, Tuning, Unloaded, load,
    peft::{PeftNames, TunedFileError},
    roberta::DropoutRates,
    tuned::{NamedTensors, TunedName, TuningError},
};
use serde::{Deserialize, Serialize, Serializer};
use std::{
    fs::{self, File},
    io::{self, Write},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
    time::Instant,
};

/// A run that cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The model.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The data.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The layers.
    #[error("reft.layers: {0}")]
    Layers(#[from] LayersError),
    /// The interventions.
    #[error("reft: {0}")]
    Intervention(#[from] InterventionError),
    /// An adapter's files.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// An adapter of another model.
    #[error("{adapter}: {reason}")]
    WrongModel {
        /// The adapter.
        adapter: String,
        /// Why it does not fit.
        reason: String,
    },
    /// A baseline's weights.
    #[error("reft.method: {0}")]
    Tuning(#[from] TuningError),
    /// A baseline's files.
    #[error(transparent)]
    TunedFile(#[from] TunedFileError),
    /// The evaluation.
    #[error(transparent)]
    Eval(#[from] EvalError),
    /// The training.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The run folder exists.
    #[error("{}: this run exists; choose another run.name, or replace it with run.overwrite=true", .0.display())]
    Exists(PathBuf),
    /// A folder that is no run would be replaced.
    #[error("{}: not the folder of a run (no recipe.toml in it), so run.overwrite does not replace it", .0.display())]
    NotARun(PathBuf),
    /// `max_length` beyond the model's context.
    #[error(
        "data.max_length is {max_length}, the model's context holds {context} tokens; choose at most {context}"
    )]
    MaxLength {
        /// What was asked for.
        max_length: usize,
        /// What there is.
        context: usize,
    },
    /// More memory than the device has.
    #[error(
        "the run needs {} on {device}, which has {}: weights {}, activations {}\nany of these would help:\n{}",
        bytes(needs.total), bytes(*capacity), bytes(needs.weights), bytes(needs.activations),
        remedies.iter().map(|(change, total)| format!("  {change:<44} needs {}", bytes(*total))).collect::<Vec<_>>().join("\n")
    )]
    Memory {
        /// What the run needs.
        needs: Box<Needs>,
        /// The device.
        device: String,
        /// Bytes that it has.
        capacity: u64,
        /// Settings that would help, and what the run would then need.
        remedies: Vec<(String, u64)>,
    },
    /// A tensor larger than the device's buffers.
    #[error(
        "the run needs a tensor of {} on {device}, whose buffers hold {}; use a smaller train.batch_size with a larger \
         train.accumulation, a smaller data.max_length, a smaller dtype, or another device",
        bytes(*needed), bytes(*most)
    )]
    Buffer {
        /// Bytes of the largest tensor.
        needed: u64,
        /// The device.
        device: String,
        /// Bytes of the largest buffer.
        most: u64,
    },
    /// Too few rows.
    #[error("data: {0}")]
    TooFewRows(String),
    /// A file cannot be written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What a run did, as `summary.json` holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What was trained.
    pub method: Method,
    /// The held-out rows without the adapter, if there are any; for language models.
    pub before: Option<Score>,
    /// The held-out rows with the adapter; those that did not choose it where `eval.protocol` divides them.
    pub after: Option<Score>,
    /// The rows that chose the adapter, where they are others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selection: Option<Score>,
    /// The files of `data.test`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<(String, Score)>,
    /// Trained parameters without the head's.
    pub trainable: usize,
    /// Those over the model's.
    pub share: f64,
    /// Parameters of a classifier's head.
    pub head: usize,
    /// Updates done.
    pub steps: usize,
    /// Why training ended.
    pub ended: Stop,
    /// Seconds of training, evaluations during training included.
    pub seconds: f64,
    /// Tokens that went through the model in training, without padding.
    pub tokens: usize,
    /// Labels among them: answer tokens, or rows.
    pub label_tokens: usize,
    /// Tokens per second of the updates.
    pub tokens_per_s: f64,
    /// Median seconds of an update.
    pub s_per_step_median: f64,
    /// Peak memory of the process in MiB, where the system tells it.
    pub peak_mb: Option<f64>,
    /// What training added to the process's memory at its peak, in MiB: activations, gradients, optimizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_mb: Option<f64>,
    /// Memory of the device in MiB, where it has its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_mb: Option<f64>,
    /// Mean loss per label of every update.
    pub losses: Vec<f64>,
    /// Where it ran.
    pub device: String,
    /// The adapter's folder.
    pub adapter: PathBuf,
}

/// What happens during a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// The model's files are open.
    Model {
        /// Its name.
        base: &'a BaseModel,
        /// Its number of weights.
        weights: usize,
        /// How it is to be held.
        precision: Precision,
        /// The device.
        device: &'a str,
    },
    /// The data are read.
    Data {
        /// `train`, `held out` or the like.
        what: &'static str,
        /// The rows.
        rows: usize,
        /// Rows that were cut.
        cut: usize,
        /// Rows dropped because no answer token was left.
        dropped: usize,
        /// The length at which rows were cut.
        max_length: usize,
    },
    /// What is to be trained is made.
    Trainable {
        /// What it is.
        method: Method,
        /// Number of interventions.
        interventions: usize,
        /// Parameters without the head's.
        parameters: usize,
        /// Parameters of a classifier's head.
        head: usize,
        /// The model's.
        weights: usize,
    },
    /// A classifier's labels are known.
    Labels(&'a [String]),
    /// Rows were judged.
    Score {
        /// Which rows, and whether with the adapter.
        what: &'a str,
        /// The score.
        score: &'a Score,
    },
    /// An update is done.
    Progress {
        /// Updates done.
        step: usize,
        /// Updates in all.
        total_steps: usize,
    },
    /// A line of the log.
    Step(&'a StepReport),
    /// The held-out rows were judged during training.
    Evaluated {
        /// Updates done.
        step: usize,
        /// What they say.
        verdict: &'a Verdict,
        /// Whether this is the best so far.
        best: bool,
    },
}

/// A finished run.
#[derive(Debug)]
pub struct Finished {
    /// What `summary.json` holds.
    pub summary: Summary,
    /// Answers to the held-out rows without and with the adapter, where they were generated.
    pub answers: Vec<(Answer, Answer)>,
}

/// The files of a model: `embedded:tiny`, a folder, or a name on the hub.
///
/// # Errors
/// If there is no such model.
pub fn find_model(name: &str, revision: Option<&str>) -> Result<ModelFiles, LoadError> {
    if name == "embedded:tiny" { Ok(tiny::model()) } else { load::find(name, revision) }
}

/// The rows of a data file, or of an embedded one.
///
/// # Errors
/// If it cannot be read.
pub fn find_rows(name: &str) -> Result<Vec<Row>, DataError> {
    match name.strip_prefix(tiny::PREFIX) {
        Some(embedded) => match tiny::data(embedded) {
            Some(text) => parse_rows(text, name),
            None => Err(DataError::Io {
                file: name.into(),
                source: io::Error::new(io::ErrorKind::NotFound, "no such embedded data"),
            }),
        },
        None => read_rows(Path::new(name)),
    }
}

/// Loads an adapter and checks that it belongs to the model. Weights of a baseline take their place in the model.
///
/// # Errors
/// If it cannot be read, is a classifier's, or was trained on a model of another size or with other weights.
pub fn load_adapter<B: Backend>(
    folder: &Path,
    loaded: &mut LoadedModel<B>,
    device: &B::Device,
) -> Result<Adapter<B>, RunError> {
    let adapter = Adapter::<B>::load(folder, device)?;
    check_generates(folder, adapter.task.as_ref())?;
    let config = loaded.model.config().clone();
    check_adapter(folder, &adapter, &loaded.base, config.hidden_size, config.num_hidden_layers)?;
    let names = PeftNames::LANGUAGE_MODEL;
    if let Some(tuned) = load_tuned(folder, adapter.trained, &loaded.tensors, names, device)? {
        loaded.model = tuned.model(&config, &loaded.tensors);
    }
    Ok(adapter)
}

/// Checks that an adapter belongs to a language model, which can be known before any model is loaded.
///
/// # Errors
/// If it is a classifier's.
pub fn check_generates(folder: &Path, task: Option<&TaskConfig>) -> Result<(), RunError> {
    match task {
        None => Ok(()),
        Some(task) => Err(RunError::WrongModel {
            adapter: folder.display().to_string(),
            reason: format!("a classifier for {}; use it with `reft eval` or `reft predict`", task.name),
        }),
    }
}

/// How a model is wished to be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Wish {
    /// Type of its numbers; none for whatever suits the device.
    pub dtype: Option<Dtype>,
    /// Quantisation of its weights.
    pub quant: Option<Quant>,
}

/// Opens a model's files, and says how the device can hold it as it is wished.
fn open_model<B: Backend, M: Pretrained<B>>(
    name: &str,
    revision: Option<&str>,
    wish: Wish,
    on: &Chosen<B::Device>,
) -> Result<(Unloaded<M::Config>, Precision), RunError> {
    let unloaded = Unloaded::open::<B, M>(&find_model(name, revision)?, name)?;
    let precision = on.precision::<B>(wish.dtype, wish.quant, unloaded.dtype())?;
    Ok((unloaded, precision))
}

/// Loads a model as it is wished and as the device can hold it.
///
/// # Errors
/// If there is no such model, it is damaged, or the device cannot hold it so.
pub fn load_model<B: Backend, M: Pretrained<B>>(
    name: &str,
    revision: Option<&str>,
    wish: Wish,
    on: &Chosen<B::Device>,
) -> Result<LoadedModel<B, M>, RunError> {
    let (unloaded, precision) = open_model::<B, M>(name, revision, wish, on)?;
    let tensors = unloaded.tensors().map(|(name, shape)| (name.to_string(), shape.to_vec()));
    let shapes = Shapes { tensors: tensors.collect(), ..Shapes::default() };
    let settings = Settings { precision, checkpointing: false, batch_size: 1 };
    check_memory::<B>(&shapes, settings, on, &|_, _, _| Footprint::default())?;
    Ok(unloaded.load(precision, &on.device)?)
}

/// Checks that the device has the memory for what is to be done; gives what is needed.
fn check_memory<B: Backend>(
    shapes: &Shapes,
    settings: Settings,
    on: &Chosen<B::Device>,
    footprint: &dyn Fn(usize, usize, Dtype) -> Footprint,
) -> Result<Needs, RunError> {
    let needs = shapes.needs(settings, &on.info, footprint);
    let device = || on.info.name.clone();
    if let Some(capacity) = on.info.memory.filter(|capacity| needs.total > *capacity) {
        let supported = |p: Precision| on.precision::<B>(Some(p.dtype), p.quant, p.dtype).is_ok();
        let remedies = shapes.remedies(settings, &on.info, footprint, &supported);
        return Err(RunError::Memory { needs: Box::new(needs), device: device(), capacity, remedies });
    }
    match on.info.max_buffer.filter(|most| needs.largest > *most) {
        Some(most) => Err(RunError::Buffer { needed: needs.largest, device: device(), most }),
        None => Ok(needs),
    }
}

/// A trained classifier with its model.
#[derive(Debug)]
pub struct Classifier<B: Backend> {
    /// The model.
    pub loaded: LoadedModel<B, Roberta<B>>,
    /// What was learned.
    pub learned: Learned<B>,
    /// The task.
    pub task: Task,
}

/// Loads a classifier's adapter and its model.
///
/// # Errors
/// If either cannot be read, or the adapter was trained on a model of another size or with other weights.
pub fn load_classifier<B: Backend>(
    folder: &Path,
    model: &str,
    revision: Option<&str>,
    wish: Wish,
    on: &Chosen<B::Device>,
) -> Result<Classifier<B>, RunError> {
    let device = &on.device;
    let adapter = Adapter::<B>::load(folder, device)?;
    let (Some(task), Some(head)) = (&adapter.task, &adapter.head) else {
        let reason = "not a classifier's adapter: it has no head".into();
        return Err(RunError::WrongModel { adapter: folder.display().to_string(), reason });
    };
    let (task, head) = (Task::of_adapter(task.clone()), head.clone());
    let loaded: LoadedModel<B, Roberta<B>> = load_model(model, revision, wish, on)?;
    let config = loaded.model.config();
    check_adapter(folder, &adapter, &loaded.base, config.hidden_size, config.num_hidden_layers)?;
    let names = PeftNames::classifier(config);
    let tuned = load_tuned(folder, adapter.trained, &loaded.tensors, names, device)?;
    Ok(Classifier { loaded, learned: Learned { reft: adapter.reft, tuned, head: Some(head) }, task })
}

fn check_adapter<B: Backend>(
    folder: &Path,
    adapter: &Adapter<B>,
    base: &BaseModel,
    hidden_size: usize,
    n_layers: usize,
) -> Result<(), RunError> {
    let config = adapter.reft.config();
    let trained_on = format!("it was trained on {}", adapter.base_model.name);
    let reason = if config.hidden_size != hidden_size {
        let found = config.hidden_size;
        format!("edits hidden states of size {found}, {} has {hidden_size}", base.name)
    } else if let Some(site) = config.sites.iter().find(|site| site.layer >= n_layers) {
        format!("edits layer {}, {} has {n_layers} layers", site.layer, base.name)
    } else if adapter.base_model.fingerprint != base.fingerprint {
        format!(
            "made for a model with the fingerprint {}, {} has {}",
            adapter.base_model.fingerprint, base.name, base.fingerprint
        )
    } else {
        return Ok(());
    };
    let adapter = folder.display().to_string();
    Err(RunError::WrongModel { adapter, reason: format!("{reason}; {trained_on}, give that with --model") })
}

/// The longest row in tokens: as asked for, or the smaller of 512 and the model's context.
///
/// # Errors
/// If more is asked for than the context holds.
pub fn max_length(asked: Option<usize>, context: usize) -> Result<usize, RunError> {
    match asked {
        Some(max_length) if max_length > context => Err(RunError::MaxLength { max_length, context }),
        Some(max_length) => Ok(max_length),
        None => Ok(context.min(512)),
    }
}

/// What a run would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// What is trained.
    pub method: Method,
    /// The model.
    pub model: String,
    /// Its weights.
    pub weights: usize,
    /// How they are held: type, and quantisation.
    #[serde(serialize_with = "as_text")]
    pub precision: Precision,
    /// The device.
    pub device: String,
    /// Rows to train on.
    pub rows: usize,
    /// Updates.
    pub steps: usize,
    /// Rows and tokens of the largest micro-batch.
    pub batch: (usize, usize),
    /// Whether one block of the model is on the tape at a time.
    pub checkpointing: bool,
    /// Trained parameters without the head's.
    pub trainable: usize,
    /// Parameters of a classifier's head.
    pub head: usize,
    /// The memory that it needs, in bytes.
    pub memory: Needs,
    /// Bytes that the device has, where they are known.
    pub capacity: Option<u64>,
    /// Bytes that are free now, on the CPU.
    pub free: Option<u64>,
}

fn as_text<S: Serializer>(value: &impl ToString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

/// What came of a recipe.
#[derive(Debug)]
pub enum Outcome {
    /// It was run.
    Finished(Box<Finished>),
    /// It was only planned.
    Planned(Box<Plan>),
}

/// Runs a recipe, or with `dry` only tells what would be done; then neither weights are loaded nor files written.
///
/// # Errors
/// If anything is wrong with the recipe, the model or the data, nothing is written. If training cannot go on, what was
/// learned so far is in the run folder.
pub fn run<A: AutodiffBackend>(
    recipe: &Recipe,
    on: &Chosen<A::Device>,
    dry: bool,
    on_event: &mut dyn FnMut(Event),
    interrupted: &AtomicBool,
) -> Result<Outcome, RunError> {
    let folder = Path::new(&recipe.run.folder).join(&recipe.run.name);
    if !dry {
        check_free(&folder, recipe.run.overwrite)?;
    }
    A::seed(&on.device, recipe.train.seed);

    let run = Run { recipe, folder, on, dry, on_event, interrupted };
    match &recipe.data.task {
        None => run.language_model::<A>(),
        Some(task) => run.classifier::<A>(task),
    }
}

/// A run under way, before its folder is made.
struct Run<'a, 'b, D> {
    recipe: &'a Recipe,
    folder: PathBuf,
    on: &'a Chosen<D>,
    dry: bool,
    on_event: &'a mut (dyn FnMut(Event) + 'b),
    interrupted: &'a AtomicBool,
}

/// What a plan needs to know of a model and its data.
struct Opened<'a> {
    base: &'a BaseModel,
    tensors: Vec<(&'a str, &'a [usize])>,
    precision: Precision,
    n_layers: usize,
    hidden_size: usize,
    /// Parameters of a classifier's head.
    head: usize,
    /// Numbers of a row of logits that are taken a slice at a time.
    vocab: usize,
    /// Tokens and labels of every row.
    rows: Vec<(usize, usize)>,
}

impl<D> Run<'_, '_, D> {
    /// The recipe's model, opened.
    fn open<B: Backend<Device = D>, M: Pretrained<B>>(
        &self,
    ) -> Result<(Unloaded<M::Config>, Precision), RunError> {
        let recipe = self.recipe;
        let wish = Wish { dtype: recipe.dtype, quant: recipe.quant };
        open_model::<B, M>(&recipe.model, recipe.revision.as_deref(), wish, self.on)
    }

    /// What the run would do, if the device has the memory for it.
    fn plan<B: Backend<Device = D>>(
        &mut self,
        opened: &Opened,
        footprint: &dyn Fn(usize, usize, Dtype) -> Footprint,
    ) -> Result<Plan, RunError> {
        let Opened { tensors, precision, n_layers, .. } = opened;
        let weights: usize = tensors.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
        let (base, device) = (opened.base, self.on.info.name.as_str());
        (self.on_event)(Event::Model { base, weights, precision: *precision, device });

        let (recipe, train) = (self.recipe, &self.recipe.train);
        let reft = reft_config(recipe, &layers_of(recipe, *n_layers)?, opened.hidden_size);
        let tuning = tuning_of_recipe(recipe);
        let (trainable, taped) = match &tuning {
            Some(tuning) => {
                let numbers = |name: &TunedName| name.shape.iter().product::<usize>();
                (tuning.names(tensors)?.iter().map(numbers).sum(), *n_layers)
            }
            None => (reft.num_params()?, reft.n_taped(*n_layers)),
        };
        let (updates_per_epoch, steps) = train.updates(opened.rows.len());
        let epochs = steps.div_ceil(updates_per_epoch.max(1));
        let lengths = opened.rows.iter().map(|(tokens, _)| *tokens).collect();
        let batches = updates(lengths, train).take(updates_per_epoch * epochs.min(100)).flatten();
        let sizes = batches.map(|batch| {
            let of = |idx: &usize| opened.rows[*idx];
            let seq = batch.iter().map(|idx| of(idx).0).max().unwrap_or(0);
            (batch.len(), seq, batch.iter().map(|idx| of(idx).1).sum::<usize>())
        });
        let kept = |(rows, seq, _): &(usize, usize, usize)| footprint(*rows, *seq, precision.dtype).kept;
        let (rows, seq, labels) = sizes.max_by_key(kept).unwrap_or_default();
        let slice = if opened.vocab > 0 { labels.min(logit_rows(opened.vocab)) } else { 0 };
        let shapes = Shapes {
            tensors: tensors.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect(),
            taped,
            batch: (rows, seq),
            logits: (slice, opened.vocab),
            parameters: trainable + opened.head,
            trains_weights: tuning.is_some(),
        };
        let checkpointing = recipe.checkpointing();
        let settings = Settings { precision: *precision, checkpointing, batch_size: train.batch_size };
        let memory = check_memory::<B>(&shapes, settings, self.on, footprint)?;
        Ok(Plan {
            method: recipe.reft.method,
            model: base.name.clone(),
            weights,
            precision: *precision,
            device: device.into(),
            rows: opened.rows.len(),
            steps,
            batch: (rows, seq),
            checkpointing,
            trainable,
            head: opened.head,
            memory,
            capacity: self.on.info.memory,
            free: if self.on.info.is_cpu() { memory::available() } else { None },
        })
    }

    fn language_model<A: AutodiffBackend<Device = D>>(mut self) -> Result<Outcome, RunError>
    where
        A::InnerBackend: Backend<Device = D>,
    {
        let (recipe, device) = (self.recipe, &self.on.device);
        let (train_rows, held_out_rows) = split_rows(recipe, find_rows)?;
        let template = Template::resolve(&recipe.data.template, &train_rows)?;
        let (unloaded, precision) = self.open::<A::InnerBackend, Llama<A::InnerBackend>>()?;
        let config = unloaded.config.clone();

        let max_length = max_length(recipe.data.max_length, config.max_position_embeddings)?;
        let encode = |rows: &[Row], file: &str| {
            DataSet::encode(rows, &template, &unloaded.tokenizer, max_length, file)
        };
        let event = |what, set: &DataSet| {
            let (rows, cut, dropped) = (set.examples.len(), set.n_cut, set.n_dropped());
            Event::Data { what, rows, cut, dropped, max_length }
        };
        let train_set = encode(&train_rows, &recipe.data.train)?;
        let mut held_out = DataSet::default();
        if !held_out_rows.is_empty() {
            held_out = encode(&held_out_rows, recipe.data.eval.as_ref().unwrap_or(&recipe.data.train))?;
        }
        let opened = Opened {
            base: &unloaded.base,
            tensors: unloaded.tensors().collect(),
            precision,
            n_layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            head: 0,
            vocab: config.vocab_size,
            rows: train_set.examples.iter().map(|e| (e.tokens.len(), e.label_tokens())).collect(),
        };
        let plan =
            self.plan::<A::InnerBackend>(&opened, &|batch, seq, dtype| config.footprint(batch, seq, dtype))?;
        (self.on_event)(event("train", &train_set));
        if !held_out_rows.is_empty() {
            (self.on_event)(event("held out", &held_out));
        }
        if self.dry {
            return Ok(Outcome::Planned(Box::new(plan)));
        }
        let loaded: LoadedModel<A::InnerBackend> = unloaded.load(precision, device)?;
        let model = &loaded.model;
        let reft = init_reft(recipe, config.num_hidden_layers, config.hidden_size, device)?;
        let tuned = init_tuned(recipe, &loaded.tensors, device)?;
        let learned = Learned { reft, tuned, head: None };

        let all_answers = |model: &Llama<A::InnerBackend>, reft| match recipe.eval.exact_match {
            true => {
                let (batch_size, new) = (recipe.eval.batch_size, recipe.eval.max_new_tokens);
                let of = (&loaded.tokenizer, loaded.stop_ids.as_slice());
                answers(model, of, reft, &held_out_rows, &template, max_length, batch_size, new)
            }
            false => Ok(Vec::new()),
        };
        let score = |nll: f64, answers: &[Answer]| {
            let mut score = vec![("nll".to_string(), nll), ("perplexity".to_string(), nll.exp())];
            if !answers.is_empty() {
                score.push(("exact_match".to_string(), exact_match(answers)));
            }
            Score(score)
        };
        let answers_before = all_answers(model, None)?;
        let mut before = None;
        if !held_out.examples.is_empty() {
            let nll = likelihood(model, None, &held_out.examples, recipe.eval.batch_size).nll;
            let score = score(nll, &answers_before);
            (self.on_event)(Event::Score { what: "before", score: &score });
            before = Some(score);
        }

        let mut resolved = recipe.clone();
        resolved.data.template = template.text().into();
        resolved.data.max_length = Some(max_length);
        let origin = Origin {
            base: loaded.base.clone(),
            template: template.text().into(),
            task: None,
            names: PeftNames::LANGUAGE_MODEL,
        };
        let objective = LanguageModelling::new(model, recipe.eval.batch_size).with_tensors(&loaded.tensors);
        let sets = (train_set.examples.as_slice(), held_out.examples.as_slice());
        let mut done = self.execute::<A, _>(&objective, learned, &plan, sets, resolved, origin)?;
        done.summary.before = before;
        let mut answers_after = Vec::new();
        if done.summary.ended != Stop::Interrupted {
            let tuned = done.learned.tuned.as_ref().map(|tuned| tuned.model(model.config(), &loaded.tensors));
            answers_after = all_answers(tuned.as_ref().unwrap_or(model), Some(&done.learned.reft))?;
        }
        done.summary.after = done
            .verdict
            .as_ref()
            .and_then(|verdict| verdict.score.get("nll"))
            .map(|nll| score(nll, &answers_after));
        done.finish(answers_before.into_iter().zip(answers_after).collect())
    }

    fn classifier<A: AutodiffBackend<Device = D>>(mut self, name: &str) -> Result<Outcome, RunError>
    where
        A::InnerBackend: Backend<Device = D>,
    {
        let (recipe, device) = (self.recipe, &self.on.device);
        check_name(name)?;
        let read = |file: &str| read_task_rows(name, Path::new(file));
        let (train_rows, selection_rows) = split_rows(recipe, read)?;
        let data = &recipe.data;
        let task = Task::discover(name, data.text.as_deref(), data.label.as_deref(), &train_rows)?;
        let selection = task.selection(recipe.eval.metric)?;
        let (selection_rows, judging_rows) = divide(selection_rows, recipe.eval.protocol, recipe.train.seed);
        let (unloaded, precision) = self.open::<A::InnerBackend, Roberta<A::InnerBackend>>()?;
        let config = unloaded.config.clone();

        let max_length = max_length(data.max_length, config.context())?;
        let encode = |rows: &[Row]| task.encode(rows, &unloaded.tokenizer, max_length, true);
        let event = |what, set: &LabelledSet| Event::Data {
            what,
            rows: set.examples.len(),
            cut: set.n_cut,
            dropped: 0,
            max_length,
        };
        let train_set = encode(&train_rows)?;
        let selection_set = encode(&selection_rows)?;
        let judging_set = encode(&judging_rows)?;
        let mut test_sets = Vec::new();
        for file in &data.test {
            test_sets.push((file.clone(), encode(&read(file)?)?));
        }

        let rates = match recipe.train.model_dropout {
            Some(rate) => DropoutRates { hidden: rate, attention: rate },
            None => config.dropout(),
        };
        let head_config = config.head(task.outputs(), recipe.train.model_dropout);
        let opened = Opened {
            base: &unloaded.base,
            tensors: unloaded.tensors().collect(),
            precision,
            n_layers: config.num_hidden_layers,
            hidden_size: config.hidden_size,
            head: head_config.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum(),
            vocab: 0,
            rows: train_set.examples.iter().map(|e| (e.tokens.len(), 1)).collect(),
        };
        let plan = self.plan::<A::InnerBackend>(&opened, &|batch, seq, dtype| {
            config.footprint(batch, seq, rates, dtype)
        })?;
        (self.on_event)(Event::Labels(&task.config.labels));
        (self.on_event)(event("train", &train_set));
        if !selection_rows.is_empty() {
            let what = if judging_rows.is_empty() { "held out" } else { "choose" };
            (self.on_event)(event(what, &selection_set));
        }
        if !judging_rows.is_empty() {
            (self.on_event)(event("judge", &judging_set));
        }
        if self.dry {
            return Ok(Outcome::Planned(Box::new(plan)));
        }
        let loaded: LoadedModel<A::InnerBackend, Roberta<A::InnerBackend>> =
            unloaded.load(precision, device)?;
        let model = &loaded.model;
        let reft = init_reft(recipe, config.num_hidden_layers, config.hidden_size, device)?;
        let tuned = init_tuned(recipe, &loaded.tensors, device)?;
        let head = match loaded.head.clone().filter(|head| head.out_bias.len() == task.outputs()) {
            Some(values) => head_config.with_values(values, device),
            None => head_config.init(&mut ChaCha8Rng::seed_from_u64(recipe.train.seed ^ HEAD_SEED), device),
        };
        let learned = Learned { reft, tuned, head: Some(head) };
        let mut resolved = recipe.clone();
        resolved.data.text = Some(task.config.text.clone());
        resolved.data.label = Some(task.config.label.clone());
        resolved.data.max_length = Some(max_length);
        resolved.eval.metric = Some(selection);
        let origin = Origin {
            base: loaded.base.clone(),
            template: String::new(),
            task: Some(task.config.clone()),
            names: PeftNames::classifier(&config),
        };
        let eval_batch_size = recipe.eval.batch_size;
        let tensors = &loaded.tensors;
        let objective = Classification { model, tensors, task: &task, selection, rates, eval_batch_size };
        let sets = (train_set.examples.as_slice(), selection_set.examples.as_slice());
        let mut done = self.execute::<A, _>(&objective, learned, &plan, sets, resolved, origin)?;
        let score = done.verdict.as_ref().map(|verdict| verdict.score.clone());
        let judge = |set: &LabelledSet| {
            let outputs = predict(model, tensors, &done.learned, &set.examples, eval_batch_size);
            Report::new(&task, &set.examples, set.n_cut, &outputs).metrics
        };
        let judged = (!judging_rows.is_empty()).then(|| judge(&judging_set));
        let tests: Vec<(String, Score)> =
            test_sets.into_iter().map(|(file, set)| (file, judge(&set))).collect();
        for (file, score) in &tests {
            (done.writer.on_event)(Event::Score { what: file, score });
        }
        (done.summary.after, done.summary.selection) = match judged {
            Some(judged) => (Some(judged), score),
            None => (score, None),
        };
        done.summary.test = tests;
        done.finish(Vec::new())
    }
}

/// Keeps the head's random numbers apart from the interventions'.
const HEAD_SEED: u64 = 0x68656164;

impl<'a, 'b, D> Run<'a, 'b, D> {
    /// Trains, with everything written that has to be written on the way.
    fn execute<A: AutodiffBackend<Device = D>, O: Objective<A::InnerBackend>>(
        self,
        objective: &O,
        learned: Learned<A::InnerBackend>,
        plan: &Plan,
        (train_set, held_out): (&[O::Example], &[O::Example]),
        mut resolved: Recipe,
        origin: Origin,
    ) -> Result<Executed<'a, 'b, A::InnerBackend>, RunError> {
        let (head, trainable) = learned.num_params_apart();
        debug_assert_eq!((plan.head, plan.trainable), (head, trainable));
        let (interventions, method, weights) = (learned.reft.edits().len(), plan.method, plan.weights);
        (self.on_event)(Event::Trainable { method, interventions, parameters: trainable, head, weights });
        resolved.device = plan.device.clone();
        resolved.dtype = Some(plan.precision.dtype);
        resolved.train.checkpointing = Some(plan.checkpointing);
        let config = TrainConfig {
            train: resolved.train.clone(),
            head_lr: self.recipe.head.lr,
            in_computer_memory: self.on.info.is_cpu(),
        };
        let overwrite = self.recipe.run.overwrite;
        let on = self.on;
        let mut writer = RunWriter::create(&self.folder, overwrite, &resolved, origin, self.on_event)?;
        writer.device_mb = Box::new(|| on.memory_mb());

        memory::give_back();
        memory::reset_peak();
        let (begun, resident) = (Instant::now(), memory::resident());
        let trained =
            train::<A, O>(objective, learned, train_set, held_out, &config, &mut writer, self.interrupted);
        let seconds = begun.elapsed().as_secs_f64();
        let training_mb =
            resident.and_then(|before| Some(recent_peak_mb()? - before as f64 / f64::from(1 << 20)));
        let device_mb = on.memory_mb();
        let saved = without_panic(AssertUnwindSafe(|| writer.save_adapter(&trained.learned)));
        let ended = trained.stop?;
        saved.map_err(|reason| TrainError::Device { step: trained.steps, reason })??;
        let mut sorted = trained.step_seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let summary = Summary {
            method,
            before: None,
            after: None,
            selection: None,
            test: Vec::new(),
            trainable,
            share: trainable as f64 / weights as f64,
            head,
            steps: trained.steps,
            ended,
            seconds,
            tokens: trained.tokens,
            label_tokens: trained.label_tokens,
            tokens_per_s: trained.tokens as f64 / sorted.iter().sum::<f64>().max(f64::MIN_POSITIVE),
            s_per_step_median: sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
            peak_mb: peak_mb(),
            training_mb,
            device_mb,
            losses: trained.losses,
            device: plan.device.clone(),
            adapter: self.folder.join("adapter"),
        };
        Ok(Executed { writer, summary, learned: trained.learned, verdict: trained.verdict })
    }
}

/// A run whose training is done.
struct Executed<'a, 'b, B: Backend> {
    writer: RunWriter<'a, 'b>,
    summary: Summary,
    learned: Learned<B>,
    verdict: Option<Verdict>,
}

impl<B: Backend> Executed<'_, '_, B> {
    fn finish(self, answers: Vec<(Answer, Answer)>) -> Result<Outcome, RunError> {
        let summary = self.summary;
        if let Some(score) = &summary.after {
            (self.writer.on_event)(Event::Score { what: "after", score });
        }
        let json = serde_json::to_string_pretty(&summary).expect("plain data serialises") + "\n";
        write(&self.writer.folder.join("summary.json"), json.as_bytes())?;
        Ok(Outcome::Finished(Box::new(Finished { summary, answers })))
    }
}

/// Held-out rows that choose the adapter, and those that judge it; the latter are none if the former do both.
fn divide(mut rows: Vec<Row>, protocol: Protocol, seed: u64) -> (Vec<Row>, Vec<Row>) {
    const LARGE: usize = 5000;
    const CHOOSING: usize = 1000;
    if protocol == Protocol::Same || rows.len() < 2 {
        return (rows, Vec::new());
    }
    rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let choosing = if rows.len() > LARGE { CHOOSING } else { rows.len() / 2 };
    let judging = rows.split_off(choosing);
    (rows, judging)
}

/// What a baseline trains.
fn tuning_of_recipe(recipe: &Recipe) -> Option<Tuning> {
    match recipe.reft.method {
        Method::Bitfit => Some(Tuning::Bitfit),
        Method::Full => Some(Tuning::Full),
        Method::Lora => Some(Tuning::Lora(LoraConfig {
            rank: recipe.reft.rank,
            alpha: recipe.lora.alpha.unwrap_or(2.0 * recipe.reft.rank as f64),
            dropout: recipe.lora.dropout,
            targets: recipe.lora.targets.clone(),
        })),
        _ => None,
    }
}

/// The weights that a baseline trains, as they start.
fn init_tuned<B: Backend>(
    recipe: &Recipe,
    tensors: &NamedTensors<B>,
    device: &B::Device,
) -> Result<Option<Tuned<B>>, RunError> {
    let Some(tuning) = tuning_of_recipe(recipe) else { return Ok(None) };
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.train.seed);
    Ok(Some(tuning.init(tensors, &mut rng, device)?))
}

/// The layers that a recipe edits; none for a baseline.
fn layers_of(recipe: &Recipe, n_layers: usize) -> Result<Vec<usize>, LayersError> {
    match recipe.reft.method.intervention() {
        Some(_) => recipe.reft.layers.resolve(n_layers),
        None => Ok(Vec::new()),
    }
}

/// The interventions that a recipe describes.
fn reft_config(recipe: &Recipe, layers: &[usize], hidden_size: usize) -> ReftConfig {
    let section = &recipe.reft;
    ReftConfig {
        method: section.method.intervention().unwrap_or(reft_core::Method::Loreft),
        rank: section.rank,
        hidden_size,
        sites: layers.iter().map(|layer| Site { layer: *layer, component: section.component }).collect(),
        positions: section.positions,
        tied: section.tied,
        activation: section.activation,
        dropout: section.dropout,
    }
}

/// New interventions as a recipe describes them; none for a baseline.
///
/// # Errors
/// If the model has no such layers, or the configuration describes no intervention.
pub fn init_reft<B: Backend>(
    recipe: &Recipe,
    n_layers: usize,
    hidden_size: usize,
    device: &B::Device,
) -> Result<Reft<B>, RunError> {
    let config = reft_config(recipe, &layers_of(recipe, n_layers)?, hidden_size);
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.train.seed);
    Ok(config.init(recipe.reft.init, &mut rng, device)?)
}

/// The rows to train on and those held out.
fn split_rows(
    recipe: &Recipe,
    read: impl Fn(&str) -> Result<Vec<Row>, DataError>,
) -> Result<(Vec<Row>, Vec<Row>), RunError> {
    let data = &recipe.data;
    let mut train = read(&data.train)?;
    let mut held_out = match &data.eval {
        Some(file) => read(file)?,
        None => Vec::new(),
    };
    match (data.eval_rows, &data.eval) {
        (Some(n), Some(_)) => held_out.truncate(n),
        (Some(n), None) if n >= train.len() => {
            return Err(RunError::TooFewRows(format!(
                "eval_rows is {n}, {} has {} rows; leave some to train on",
                data.train,
                train.len()
            )));
        }
        (Some(n), None) => held_out = train.split_off(train.len() - n),
        (None, _) => {}
    }
    if let Some(n) = data.train_rows {
        train.truncate(n);
    }
    Ok((train, held_out))
}

fn check_free(folder: &Path, overwrite: bool) -> Result<(), RunError> {
    let io_error = |source| RunError::Io { path: folder.into(), source };
    let mut entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(io_error(source)),
    };
    if entries.next().is_none() || (overwrite && folder.join("recipe.toml").is_file()) {
        return Ok(());
    }
    Err(if overwrite { RunError::NotARun(folder.into()) } else { RunError::Exists(folder.into()) })
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), RunError> {
    write_atomic(path, bytes).map_err(|source| RunError::Io { path: path.into(), source })
}

/// Writes the files of a run while it is under way, and passes events on.
struct RunWriter<'a, 'b> {
    folder: PathBuf,
    metrics: File,
    origin: Origin,
    device_mb: Box<dyn Fn() -> Option<f64> + 'a>,
    on_event: &'a mut (dyn FnMut(Event) + 'b),
}

impl<'a, 'b> RunWriter<'a, 'b> {
    fn create(
        folder: &Path,
        overwrite: bool,
        resolved: &Recipe,
        origin: Origin,
        on_event: &'a mut (dyn FnMut(Event) + 'b),
    ) -> Result<Self, RunError> {
        check_free(folder, overwrite)?;
        let io_error = |path: &Path| {
            let path = path.to_path_buf();
            move |source| RunError::Io { path, source }
        };
        if folder.exists() {
            fs::remove_dir_all(folder).map_err(io_error(folder))?;
        }
        fs::create_dir_all(folder).map_err(io_error(folder))?;
        write(&folder.join("recipe.toml"), resolved.to_toml().as_bytes())?;
        let path = folder.join("metrics.jsonl");
        let metrics = File::create(&path).map_err(io_error(&path))?;
        let device_mb = Box::new(|| None);
        Ok(Self { folder: folder.into(), metrics, origin, device_mb, on_event })
    }

    fn save_adapter<B: Backend>(&self, learned: &Learned<B>) -> Result<(), AdapterError> {
        learned.save(&self.folder.join("adapter"), &self.origin)
    }

    fn metric(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        let line = serde_json::to_string(line).expect("plain data serialises") + "\n";
        self.metrics.write_all(line.as_bytes()).map_err(|source| TrainError::Io {
            file: self.folder.join("metrics.jsonl").display().to_string(),
            source,
        })
    }
}

impl<B: Backend> Observer<B> for RunWriter<'_, '_> {
    fn progress(&mut self, step: usize, total_steps: usize) {
        (self.on_event)(Event::Progress { step, total_steps });
    }

    fn device_mb(&self) -> Option<f64> {
        (self.device_mb)()
    }

    fn report(&mut self, report: &StepReport) -> Result<(), TrainError> {
        (self.on_event)(Event::Step(report));
        self.metric(report)
    }

    fn learned_so_far(&mut self, learned: &Learned<B>) -> Result<(), TrainError> {
        match learned.trained() {
            // As large as the model.
            Trained::Full => Ok(()),
            _ => Ok(self.save_adapter(learned)?),
        }
    }

    fn evaluated(
        &mut self,
        step: usize,
        verdict: &Verdict,
        best: Option<&Learned<B>>,
    ) -> Result<(), TrainError> {
        (self.on_event)(Event::Evaluated { step, verdict, best: best.is_some() });
        let mut line = serde_json::Map::from_iter([("step".to_string(), step.into())]);
        line.extend(verdict.score.0.iter().map(|(name, value)| (format!("eval_{name}"), (*value).into())));
        line.insert("best".into(), best.is_some().into());
        self.metric(&line)?;
        match best {
            Some(learned) => Ok(self.save_adapter(learned)?),
            None => Ok(()),
        }
    }
}
