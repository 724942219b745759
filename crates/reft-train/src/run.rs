//! Recipe → run folder, with everything in between.
//!
//! | in the run folder | what |
//! |---|---|
//! | `recipe.toml` | the recipe with every choice resolved |
//! | `adapter/` | the trained interventions |
//! | `metrics.jsonl` | a line for every log step and every evaluation |
//! | `summary.json` | [`Summary`] |

use crate::{
    data::{DataError, DataSet, Row, Template, parse_rows, read_rows},
    device::DeviceError,
    eval::{Answer, EvalError, Score, answers, likelihood},
    memory::peak_mb,
    recipe::Recipe,
    tiny,
    trainer::{Observer, StepReport, Stop, TrainConfig, TrainError, train},
};
use burn::{
    module::Module,
    tensor::backend::{AutodiffBackend, Backend},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reft_core::{
    Adapter, AdapterError, BaseModel, Reft, ReftConfig, Site, adapter::write_atomic,
    intervention::InterventionError, reft::LayersError,
};
use reft_models::{LoadError, LoadedModel, ModelFiles, load};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Write},
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
    /// The held-out rows without the adapter, if there are any.
    pub before: Option<Score>,
    /// The held-out rows with the adapter.
    pub after: Option<Score>,
    /// Trained parameters.
    pub trainable: usize,
    /// Trained parameters over the frozen model's.
    pub share: f64,
    /// Updates done.
    pub steps: usize,
    /// Whether the run was ended before its last update.
    pub interrupted: bool,
    /// Seconds of training, evaluations during training included.
    pub seconds: f64,
    /// Tokens that went through the model in training, without padding.
    pub tokens: usize,
    /// Answer tokens among them.
    pub label_tokens: usize,
    /// Tokens per second of the updates.
    pub tokens_per_s: f64,
    /// Median seconds of an update.
    pub s_per_step_median: f64,
    /// Peak memory of the process in MiB, where the system tells it.
    pub peak_mb: Option<f64>,
    /// Mean loss per answer token of every update, in nats.
    pub losses: Vec<f64>,
    /// Where it ran.
    pub device: String,
    /// The adapter's folder.
    pub adapter: PathBuf,
}

/// What happens during a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// The model is loaded.
    Model {
        /// Its name.
        base: &'a BaseModel,
        /// Its number of weights.
        weights: usize,
        /// The device.
        device: &'a str,
    },
    /// The data are read.
    Data {
        /// `train` or `held out`.
        what: &'static str,
        /// The rows.
        set: &'a DataSet,
        /// The length at which rows were cut.
        max_length: usize,
    },
    /// The interventions are made.
    Trainable {
        /// Their number.
        interventions: usize,
        /// Their parameters.
        parameters: usize,
        /// The frozen model's.
        weights: usize,
    },
    /// The held-out rows were judged without (`before`) or with the adapter.
    Score {
        /// Without the adapter.
        before: bool,
        /// The score.
        score: Score,
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
        /// Their NLL.
        nll: f64,
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

/// Loads an adapter and checks that it belongs to the model.
///
/// # Errors
/// If it cannot be read, or was trained on a model of another size or with other weights.
pub fn load_adapter<B: Backend>(
    folder: &Path,
    loaded: &LoadedModel<B>,
    device: &B::Device,
) -> Result<Adapter<B>, RunError> {
    let adapter = Adapter::<B>::load(folder, device)?;
    let config = adapter.reft.config();
    let model = loaded.model.config();
    let trained_on = format!("it was trained on {}", adapter.base_model.name);
    let reason = if config.hidden_size != model.hidden_size {
        let (found, expected) = (config.hidden_size, model.hidden_size);
        Some(format!("edits hidden states of size {found}, {} has {expected}", loaded.base.name))
    } else if let Some(site) = config.sites.iter().find(|site| site.layer >= model.num_hidden_layers) {
        Some(format!(
            "edits layer {}, {} has {} layers",
            site.layer, loaded.base.name, model.num_hidden_layers
        ))
    } else if adapter.base_model.fingerprint != loaded.base.fingerprint {
        Some(format!(
            "made for a model with the fingerprint {}, {} has {}",
            adapter.base_model.fingerprint, loaded.base.name, loaded.base.fingerprint
        ))
    } else {
        None
    };
    match reason {
        Some(reason) => {
            let adapter = folder.display().to_string();
            Err(RunError::WrongModel {
                adapter,
                reason: format!("{reason}; {trained_on}, give that with --model"),
            })
        }
        None => Ok(adapter),
    }
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

/// Runs a recipe.
///
/// # Errors
/// If anything is wrong with the recipe, the model or the data, nothing is written. If training cannot go on, what was
/// learned so far is in the run folder.
pub fn run<A: AutodiffBackend>(
    recipe: &Recipe,
    device: &A::Device,
    device_name: &str,
    on_event: &mut dyn FnMut(Event),
    interrupted: &AtomicBool,
) -> Result<Finished, RunError> {
    let folder = Path::new(&recipe.run.folder).join(&recipe.run.name);
    check_free(&folder, recipe.run.overwrite)?;
    A::seed(device, recipe.train.seed);

    let (train_rows, held_out_rows) = split_rows(recipe)?;
    let template = Template::resolve(&recipe.data.template, &train_rows)?;
    let files = find_model(&recipe.model, recipe.revision.as_deref())?;
    let loaded = LoadedModel::<A::InnerBackend>::load(&files, &recipe.model, device)?;
    let (model, weights) = (&loaded.model, loaded.model.num_weights());
    on_event(Event::Model { base: &loaded.base, weights, device: device_name });

    let max_length = max_length(recipe.data.max_length, model.config().max_position_embeddings)?;
    let encode =
        |rows: &[Row], file: &str| DataSet::encode(rows, &template, &loaded.tokenizer, max_length, file);
    let train_set = encode(&train_rows, &recipe.data.train)?;
    on_event(Event::Data { what: "train", set: &train_set, max_length });
    let mut held_out = DataSet::default();
    if !held_out_rows.is_empty() {
        held_out = encode(&held_out_rows, recipe.data.eval.as_ref().unwrap_or(&recipe.data.train))?;
        on_event(Event::Data { what: "held out", set: &held_out, max_length });
    }

    let reft = init_reft::<A::InnerBackend>(recipe, model.config(), device)?;
    let trainable = reft.num_params();
    on_event(Event::Trainable { interventions: reft.edits().len(), parameters: trainable, weights });

    let all_answers = |reft: Option<&Reft<A::InnerBackend>>| match recipe.eval.exact_match {
        true => {
            let (batch_size, new) = (recipe.eval.batch_size, recipe.eval.max_new_tokens);
            answers(&loaded, reft, &held_out_rows, &template, max_length, batch_size, new)
        }
        false => Ok(Vec::new()),
    };
    let score = |nll: f64, answers: &[Answer]| Score {
        nll,
        exact_match: (!answers.is_empty())
            .then(|| answers.iter().filter(|a| a.is_exact()).count() as f64 / answers.len() as f64),
    };
    let mut before = None;
    let answers_before = all_answers(None)?;
    if !held_out.examples.is_empty() {
        let nll = likelihood(model, None, &held_out.examples, recipe.eval.batch_size).nll;
        before = Some(score(nll, &answers_before));
        on_event(Event::Score { before: true, score: score(nll, &answers_before) });
    }

    let mut resolved = recipe.clone();
    resolved.device = device_name.into();
    resolved.data.template = template.text().into();
    resolved.data.max_length = Some(max_length);
    let mut writer = RunWriter::create(&folder, recipe.run.overwrite, &resolved, on_event)?;
    writer.base = Some((loaded.base.clone(), template.text().to_string()));

    let begun = Instant::now();
    let config = TrainConfig { train: recipe.train.clone(), eval_batch_size: recipe.eval.batch_size };
    let trained =
        train::<A>(model, reft, &train_set.examples, &held_out.examples, &config, &mut writer, interrupted);
    let seconds = begun.elapsed().as_secs_f64();
    writer.save_adapter(&trained.reft)?;
    let interrupted = matches!(trained.stop, Stop::Interrupted);
    if let Stop::Failed(error) = trained.stop {
        return Err(error.into());
    }

    let answers_after = if interrupted { Vec::new() } else { all_answers(Some(&trained.reft))? };
    let after = trained.eval_nll.map(|nll| score(nll, &answers_after));
    if let Some(score) = after {
        (writer.on_event)(Event::Score { before: false, score });
    }
    let mut sorted = trained.step_seconds.clone();
    sorted.sort_by(f64::total_cmp);
    let summary = Summary {
        before,
        after,
        trainable,
        share: trainable as f64 / weights as f64,
        steps: trained.steps,
        interrupted,
        seconds,
        tokens: trained.tokens,
        label_tokens: trained.label_tokens,
        tokens_per_s: trained.tokens as f64 / sorted.iter().sum::<f64>().max(f64::MIN_POSITIVE),
        s_per_step_median: sorted.get(sorted.len() / 2).copied().unwrap_or_default(),
        peak_mb: peak_mb(),
        losses: trained.losses,
        device: device_name.into(),
        adapter: folder.join("adapter"),
    };
    let json = serde_json::to_string_pretty(&summary).expect("plain data serialises") + "\n";
    write(&folder.join("summary.json"), json.as_bytes())?;
    Ok(Finished { summary, answers: answers_before.into_iter().zip(answers_after).collect() })
}

/// New interventions as a recipe describes them.
///
/// # Errors
/// If the model has no such layers, or the configuration describes no intervention.
pub fn init_reft<B: Backend>(
    recipe: &Recipe,
    model: &reft_models::LlamaConfig,
    device: &B::Device,
) -> Result<Reft<B>, RunError> {
    let section = &recipe.reft;
    let layers = section.layers.resolve(model.num_hidden_layers)?;
    let config = ReftConfig {
        method: section.method,
        rank: section.rank,
        hidden_size: model.hidden_size,
        sites: layers.into_iter().map(|layer| Site { layer, component: section.component }).collect(),
        positions: section.positions,
        tied: section.tied,
        activation: section.activation,
        dropout: section.dropout,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(recipe.train.seed);
    Ok(config.init(section.init, &mut rng, device)?)
}

/// The rows to train on and those held out.
fn split_rows(recipe: &Recipe) -> Result<(Vec<Row>, Vec<Row>), RunError> {
    let data = &recipe.data;
    let mut train = find_rows(&data.train)?;
    let mut held_out = match &data.eval {
        Some(file) => find_rows(file)?,
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
    base: Option<(BaseModel, String)>,
    on_event: &'a mut (dyn FnMut(Event) + 'b),
}

impl<'a, 'b> RunWriter<'a, 'b> {
    fn create(
        folder: &Path,
        overwrite: bool,
        resolved: &Recipe,
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
        Ok(Self { folder: folder.into(), metrics, base: None, on_event })
    }

    fn save_adapter<B: Backend>(&self, reft: &Reft<B>) -> Result<(), AdapterError> {
        let Some((base_model, template)) = self.base.clone() else { return Ok(()) };
        Adapter { reft: reft.clone(), base_model, template }.save(&self.folder.join("adapter"))
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

    fn report(&mut self, report: &StepReport) -> Result<(), TrainError> {
        (self.on_event)(Event::Step(report));
        self.metric(report)
    }

    fn evaluated(&mut self, step: usize, nll: f64, best: Option<&Reft<B>>) -> Result<(), TrainError> {
        #[derive(Serialize)]
        struct Line {
            step: usize,
            eval_nll: f64,
            best: bool,
        }
        (self.on_event)(Event::Evaluated { step, nll, best: best.is_some() });
        self.metric(&Line { step, eval_nll: nll, best: best.is_some() })?;
        match best {
            Some(reft) => Ok(self.save_adapter(reft)?),
            None => Ok(()),
        }
    }
}
