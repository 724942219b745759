//! What the measured processes do: a recipe or arguments for our program, a specification for the others, and how their results
//! are read.

use crate::bench::{
    process::{self, Ended},
    stats::Spread,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Work that can be done by our program and by another.
#[derive(Debug, Clone)]
pub enum Work {
    Train(Train),
    Generate(Generate),
}

/// Training with LoReFT. Rows stay in the order of the file, so that all programs see the same batches; edits are the identity
/// at first, so that the loss of the first step is that of the model.
#[derive(Debug, Clone)]
pub struct Train {
    pub task: Task,
    pub model: PathBuf,
    pub data: PathBuf,
    pub template: &'static str,
    pub layers: &'static str,
    pub rank: usize,
    pub positions: &'static str,
    pub batch_size: usize,
    pub max_length: usize,
    pub steps_per_epoch: usize,
    pub epochs: usize,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Task {
    Instruct,
    Sst2,
}

/// Greedy decoding.
#[derive(Debug, Clone)]
pub struct Generate {
    pub model: PathBuf,
    pub data: PathBuf,
    pub template: &'static str,
    pub batch_size: usize,
    pub new_tokens: usize,
    pub quant: Option<&'static str>,
    /// The dtype of the others.
    pub dtype: &'static str,
    /// An adapter that a second process of our program uses.
    pub adapter: Option<PathBuf>,
}

/// Who does the work.
#[derive(Debug, Clone, PartialEq)]
pub enum Program {
    /// Ours: its label and its file.
    Ours(String, PathBuf),
    /// Ours with an adapter.
    WithAdapter(String, PathBuf),
    /// pyreft or transformers: the Python interpreter.
    Peer(PathBuf),
}

impl Program {
    /// The name in tables.
    pub fn label(&self, work: &Work) -> String {
        match (self, work) {
            (Program::Ours(label, _), _) => label.clone(),
            (Program::WithAdapter(label, _), _) => format!("{label}, with adapter"),
            (Program::Peer(_), Work::Train(_)) => "pyreft".into(),
            (Program::Peer(_), Work::Generate(Generate { dtype: "float32", .. })) => "transformers".into(),
            (Program::Peer(_), Work::Generate(Generate { dtype, .. })) => format!("transformers, {dtype}"),
        }
    }
}

/// Where and how processes run.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    /// For recipes, runs and logs.
    pub folder: &'a Path,
    /// The script of the others.
    pub script: &'a Path,
    pub threads: usize,
    /// Recipe keys to override in ours.
    pub overrides: &'a [String],
}

/// What one process measured.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Seconds per step of each phase; warm-up is not in them.
    pub phases: Vec<(&'static str, Vec<f64>)>,
    /// The loss of every step.
    pub losses: Vec<f64>,
    /// The tokens of all training steps, without padding.
    pub tokens: Option<u64>,
    /// The tokens of every generated text.
    pub texts: Vec<Vec<u64>>,
    /// Peak memory in MiB.
    pub peak_mb: Option<f64>,
    /// Processors in use by others.
    pub others: Option<f64>,
    /// Seconds of the whole process.
    pub wall: f64,
    /// Its processor seconds.
    pub cpu: f64,
}

/// The phase of generation that decodes one token per row.
pub const DECODING: &str = "decoded token";

/// Steps that are not counted, in all programs alike: the first one also allocates.
const WARM_UP: usize = 1;

impl Train {
    fn steps(&self) -> usize {
        self.steps_per_epoch * self.epochs
    }

    fn phases(&self, seconds: &[f64]) -> Vec<(&'static str, Vec<f64>)> {
        let of = |from: usize, to: usize| seconds.get(from..to).unwrap_or_default().to_vec();
        match self.epochs {
            1 => vec![("step", of(WARM_UP, self.steps()))],
            _ => vec![
                ("step, first epoch", of(WARM_UP, self.steps_per_epoch)),
                ("step, later epochs", of(self.steps_per_epoch, self.steps())),
            ],
        }
    }

    fn recipe(&self, run: &Path) -> String {
        let Train { template, layers, rank, positions, batch_size, max_length, epochs, .. } = self;
        let task = match self.task {
            Task::Instruct => String::new(),
            Task::Sst2 => "task = \"glue/sst2\"\n".into(),
        };
        let parent = run.parent().expect("a folder in the target folder");
        let name = run.file_name().expect("a name").to_string_lossy();
        format!(
            "model = {model:?}\ndevice = \"cpu\"\ndtype = \"f32\"\n\n\
             [run]\nname = {name:?}\nfolder = {parent:?}\noverwrite = true\n\n\
             [reft]\nmethod = \"loreft\"\nrank = {rank}\nlayers = {layers:?}\npositions = {positions:?}\ninit = \"identity\"\n\n\
             [data]\n{task}train = {data:?}\ntrain_rows = {rows}\ntemplate = {template:?}\nmax_length = {max_length}\n\n\
             [train]\nepochs = {epochs}\nbatch_size = {batch_size}\nlr = {LEARNING_RATE:?}\nschedule = \"constant\"\n\
             warmup = 0.0\nclip = 1.0\nshuffle = false\nlog_every = 1000000\nmodel_dropout = 0.0\n",
            model = self.model,
            data = self.data,
            rows = batch_size * self.steps_per_epoch,
        )
    }

    fn specification(&self) -> Value {
        json!({
            "work": match self.task { Task::Instruct => "instruct", Task::Sst2 => "sst2" },
            "model": self.model,
            "data": self.data,
            "template": self.template,
            "layers": self.layers,
            "rank": self.rank,
            "positions": self.positions,
            "batch_size": self.batch_size,
            "max_length": self.max_length,
            "steps_per_epoch": self.steps_per_epoch,
            "epochs": self.epochs,
            "lr": LEARNING_RATE,
        })
    }
}

const LEARNING_RATE: f64 = 1e-3;

impl Generate {
    fn arguments(&self, command: &mut Command, adapter: Option<&Path>) {
        let (batch_size, new_tokens) = (self.batch_size.to_string(), self.new_tokens.to_string());
        command.args(["generate", "--device", "cpu", "--dtype", "f32", "--greedy", "--json", "--timing"]);
        command.args(["--batch-size", &batch_size, "--max-new-tokens", &new_tokens]);
        command.args(["--template", self.template]).arg("--model").arg(&self.model);
        command.arg("--data").arg(&self.data);
        command.args(self.quant.iter().flat_map(|quant| ["--quant", quant]));
        command.args(adapter.iter().flat_map(|adapter| [Path::new("--adapter"), adapter]));
    }

    fn specification(&self) -> Value {
        json!({
            "work": "generate",
            "model": self.model,
            "data": self.data,
            "template": self.template,
            "new_tokens": self.new_tokens,
            "dtype": self.dtype,
        })
    }
}

impl Work {
    /// Rows per step.
    pub fn batch_size(&self) -> usize {
        match self {
            Work::Train(train) => train.batch_size,
            Work::Generate(generate) => generate.batch_size,
        }
    }

    /// Runs one process.
    ///
    /// # Errors
    /// If it fails, or prints something else than what is expected.
    pub fn run(&self, name: &str, program: &Program, place: &Place) -> Result<Run, String> {
        let file = |suffix: &str| place.folder.join(format!("{name}{suffix}"));
        let in_file = |path: &Path, text: String| {
            fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        let begin = |command: &mut Command| process::run(command, place.threads, &file(""));
        match (self, program) {
            (Work::Train(train), Program::Ours(_, path) | Program::WithAdapter(_, path)) => {
                let (recipe, run) = (file(".toml"), file("-run"));
                in_file(&recipe, train.recipe(&run))?;
                let ended = begin(Command::new(path).arg("train").arg(&recipe).args(place.overrides))?;
                let summary = run.join("summary.json");
                let text = fs::read_to_string(&summary);
                let text = text.map_err(|error| format!("{}: {error}", summary.display()))?;
                let summary = serde_json::from_str(&text).map_err(|error| error.to_string())?;
                Ok(of_our_training(train, &summary, &ended))
            }
            (Work::Generate(generate), Program::Ours(_, path) | Program::WithAdapter(_, path)) => {
                let adapter = generate.adapter.as_deref();
                let adapter = adapter.filter(|_| matches!(program, Program::WithAdapter(..)));
                let mut command = Command::new(path);
                generate.arguments(&mut command, adapter);
                let ended = begin(&mut command)?;
                let printed: Value = last_line(&ended)?;
                let batch = &printed["timing"][0];
                let mut run = of_generation(&batch["prompts"], &batch["steps"], &ended);
                run.texts = list(&printed["rows"]).iter().map(|row| integers(&row["tokens"])).collect();
                Ok(run)
            }
            (work, Program::Peer(python)) => {
                let mut specification = match work {
                    Work::Train(train) => train.specification(),
                    Work::Generate(generate) => generate.specification(),
                };
                specification["threads"] = place.threads.into();
                let path = file(".json");
                in_file(&path, specification.to_string())?;
                let mut command = Command::new(python);
                command.env("HF_HUB_OFFLINE", "1").env("TOKENIZERS_PARALLELISM", "false");
                let ended = begin(command.arg(place.script).arg(&path))?;
                let printed: Value = last_line(&ended)?;
                Ok(match work {
                    Work::Train(train) => Run {
                        phases: train.phases(&numbers(&printed["step_seconds"])),
                        losses: numbers(&printed["losses"]),
                        tokens: printed["tokens"].as_u64(),
                        ..of_process(&ended)
                    },
                    Work::Generate(_) => Run {
                        texts: list(&printed["rows"]).iter().map(integers).collect(),
                        ..of_generation(&printed["prompt_seconds"], &printed["step_seconds"], &ended)
                    },
                })
            }
        }
    }
}

fn of_process(ended: &Ended) -> Run {
    Run { peak_mb: ended.peak_mb, others: ended.others, wall: ended.wall, cpu: ended.cpu, ..Run::default() }
}

fn of_our_training(train: &Train, summary: &Value, ended: &Ended) -> Run {
    let seconds = numbers(&summary["step_seconds"]);
    let phases = match seconds.as_slice() {
        // Programs before this field had a median only.
        [] => vec![("step", summary["s_per_step_median"].as_f64().into_iter().collect())],
        seconds => train.phases(seconds),
    };
    // The program starts the system's measurement of its peak again before it trains, and remembers what was before.
    let peak_mb = [ended.peak_mb, summary["peak_mb"].as_f64()].into_iter().flatten().reduce(f64::max);
    let (losses, tokens) = (numbers(&summary["losses"]), summary["tokens"].as_u64());
    Run { phases, losses, tokens, peak_mb, ..of_process(ended) }
}

fn of_generation(prompts: &Value, steps: &Value, ended: &Ended) -> Run {
    let phases = vec![(DECODING, numbers(steps)), ("prompts", prompts.as_f64().into_iter().collect())];
    Run { phases, ..of_process(ended) }
}

fn last_line(ended: &Ended) -> Result<Value, String> {
    let line = ended.stdout.lines().last().unwrap_or_default();
    serde_json::from_str(line).map_err(|error| format!("{error} in what was printed: {line}"))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn numbers(value: &Value) -> Vec<f64> {
    list(value).iter().filter_map(Value::as_f64).collect()
}

fn integers(value: &Value) -> Vec<u64> {
    list(value).iter().filter_map(Value::as_u64).collect()
}

impl Run {
    /// The seconds of a phase, or none if it was not measured.
    pub fn seconds(&self, phase: &str) -> Vec<f64> {
        let found = self.phases.iter().find(|(name, _)| *name == phase);
        found.map(|(_, seconds)| seconds.clone()).unwrap_or_default()
    }

    /// One line for whoever waits.
    pub fn progress(&self) -> String {
        let phases = self
            .phases
            .iter()
            .filter_map(|(phase, seconds)| Some(format!("{:.4} s per {phase}", Spread::of(seconds)?.median)));
        let memory = self.peak_mb.map(|mb| format!("{mb:.0} MiB"));
        let others = self.others.map(|others| format!("others used {others:.2} processors"));
        phases.chain(memory).chain(others).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn train(epochs: usize) -> Train {
        Train {
            task: Task::Instruct,
            model: "m".into(),
            data: "d.json".into(),
            template: "{{ instruction }}\n",
            layers: "all",
            rank: 4,
            positions: "l1",
            batch_size: 2,
            max_length: 64,
            steps_per_epoch: 3,
            epochs,
        }
    }

    #[test]
    fn the_first_step_is_left_out_and_later_epochs_are_apart() {
        let seconds = [9.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(train(1).phases(&seconds[..3]), [("step", vec![1.0, 2.0])]);
        let two = [("step, first epoch", vec![1.0, 2.0]), ("step, later epochs", vec![3.0, 4.0, 5.0])];
        assert_eq!(train(2).phases(&seconds), two);
        assert_eq!(train(1).phases(&[]), [("step", vec![])]);
    }

    #[test]
    fn the_summary_of_our_program_is_read_with_and_without_the_seconds_of_each_step() {
        let ended = Ended { peak_mb: Some(50.0), wall: 7.0, ..Ended::default() };
        let summary = json!({"s_per_step_median": 1.5, "peak_mb": 60.5, "tokens": 12, "losses": [3.0, 2.0]});
        let run = of_our_training(&train(1), &summary, &ended);
        assert_eq!((run.seconds("step"), run.peak_mb), (vec![1.5], Some(60.5)));
        assert_eq!((run.tokens, run.losses), (Some(12), vec![3.0, 2.0]));
        let summary = json!({"s_per_step_median": 1.5, "step_seconds": [4.0, 1.0, 2.0]});
        let run = of_our_training(&train(1), &summary, &ended);
        assert_eq!((run.seconds("step"), run.peak_mb), (vec![1.0, 2.0], Some(50.0)));
    }

    #[test]
    fn a_recipe_holds_every_setting_and_quotes_texts() {
        let recipe = train(2).recipe(Path::new("/t/bench/a-run"));
        for line in [
            "name = \"a-run\"",
            "folder = \"/t/bench\"",
            "train_rows = 6",
            "template = \"{{ instruction }}\\n\"",
            "lr = 0.001",
            "epochs = 2",
        ] {
            assert!(recipe.lines().any(|found| found == line), "{line} in {recipe}");
        }
        assert!(!recipe.contains("task"));
        assert!(
            Train { task: Task::Sst2, ..train(1) }
                .recipe(Path::new("/t/a"))
                .contains("task = \"glue/sst2\"\n")
        );
    }
}
