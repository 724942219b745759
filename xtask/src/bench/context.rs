//! What all measurements share, and one measurement.

use crate::{
    bench::{
        machine::{self, Machine},
        options::Options,
        table::Measured,
        work::{Generate, Place, Program, Run, Work},
    },
    tools::{cargo, output, root, succeeds, target},
};
use std::{
    env,
    fs::{self, File},
    io::Write,
    path::PathBuf,
    process::Command,
    thread,
};

/// What all measurements share.
pub struct Bench {
    pub options: Options,
    pub machine: Machine,
    /// Models, recipes, runs, logs and results.
    pub folder: PathBuf,
    /// Models and data of real tasks.
    pub shared: PathBuf,
    pub script: PathBuf,
    pub programs: Vec<Program>,
    /// What was not measured, and other remarks.
    pub notes: Vec<String>,
}

impl Bench {
    pub fn new(options: Options) -> Result<Self, String> {
        let folder = target().join("bench");
        fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let shared = env::var_os("REFT_SHARED").unwrap_or_else(|| "../shared".into());
        let mut bench = Self {
            machine: Machine::find(),
            folder,
            shared: root().join(shared),
            script: root().join("xtask/bench/peer.py"),
            programs: Vec::new(),
            notes: Vec::new(),
            options,
        };
        bench.programs = match bench.options.programs.as_slice() {
            [] => vec![Program::Ours("reft".into(), build()?)],
            given => given
                .iter()
                .map(|(label, file)| match file.canonicalize() {
                    Ok(file) => Ok(Program::Ours(label.clone(), file)),
                    Err(error) => Err(format!("{}: {error}", file.display())),
                })
                .collect::<Result<_, _>>()?,
        };
        if bench.options.against_pyreft {
            bench.add_peer();
        }
        Ok(bench)
    }

    /// Adds pyreft and transformers, if Python has them.
    fn add_peer(&mut self) {
        let named =
            self.options.python.clone().or_else(|| env::var_os("REFT_BENCH_PYTHON").map(PathBuf::from));
        let python = named.unwrap_or_else(|| "python3".into());
        match output(Command::new(&python).arg(&self.script).arg("--check")) {
            Some(text) => {
                let versions = text.lines().last().unwrap_or_default().replace(['{', '}', '"'], "");
                self.notes.push(format!("the others: {versions}"));
                self.programs.push(Program::Peer(python));
            }
            None => self.note(format!(
                "ours alone: {} cannot import torch, transformers, pyvene and pyreft; name one that can with --python or \
                 REFT_BENCH_PYTHON (see xtask/bench/peer.py)",
                python.display()
            )),
        }
    }

    pub fn note(&mut self, note: String) {
        eprintln!("note: {note}");
        self.notes.push(note);
    }

    pub fn threads(&self) -> Vec<usize> {
        let two = thread::available_parallelism().map_or(1, usize::from).min(2);
        match self.options.threads.as_slice() {
            [] if self.options.is_smoke || two == 1 => vec![1],
            [] => vec![1, two],
            asked => asked.to_vec(),
        }
    }

    /// Runs the programs in turn.
    pub fn measure(&mut self, name: &str, work: &Work, threads: usize) -> Result<Measured, String> {
        let mut programs = self.programs.clone();
        if let Work::Generate(Generate { adapter: Some(_), .. }) = work {
            let ours = self.programs.iter().filter_map(|program| match program {
                Program::Ours(label, file) => Some(Program::WithAdapter(label.clone(), file.clone())),
                _ => None,
            });
            programs.extend(ours);
            // The same order as without: ours, with adapter, then the others.
            programs.sort_by_key(|program| matches!(program, Program::Peer(_)));
        }
        let n_runs = self.options.runs.unwrap_or(if self.options.is_smoke { 1 } else { 3 });
        let load = machine::load().map_or(String::new(), |load| format!(", load {load:.1}"));
        println!("\n== {name}, {threads} threads{load}");
        let mut found: Vec<(String, Vec<Run>)> =
            programs.iter().map(|program| (program.label(work), Vec::new())).collect();
        for _ in 0..n_runs {
            for (idx, program) in programs.iter().enumerate() {
                let place = Place {
                    folder: &self.folder,
                    script: &self.script,
                    threads,
                    overrides: &self.options.overrides,
                };
                let run = match work.run(&format!("{name}-{idx}"), program, &place) {
                    Ok(run) => run,
                    // Ours must run. The others may lack memory.
                    Err(error) if matches!(program, Program::Peer(_)) => {
                        self.note(format!("{name}, {threads} threads: {error}"));
                        continue;
                    }
                    Err(error) => return Err(format!("{name}: {error}")),
                };
                println!("{:<20} {}", found[idx].0, run.progress());
                found[idx].1.push(run);
            }
        }
        found.retain(|(_, runs)| !runs.is_empty());
        let measured =
            Measured { name: name.into(), threads, batch_size: work.batch_size(), programs: found };
        self.append(&measured)?;
        Ok(measured)
    }

    /// Writes every run at once, so that what was measured is kept whatever comes after.
    fn append(&self, measured: &Measured) -> Result<(), String> {
        let path = self.folder.join("results.jsonl");
        let lines =
            measured.json_lines(&self.machine).iter().map(|line| format!("{line}\n")).collect::<String>();
        let file = File::options().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| file.write_all(lines.as_bytes()));
        written.map_err(|error| format!("{}: {error}", path.display()))
    }
}

/// Builds the program for the CPU, optimized.
fn build() -> Result<PathBuf, String> {
    let mut command = cargo();
    command.args(["build", "--release", "--locked", "--package", "reft-cli", "--bin", "reft"]);
    match succeeds(command.args(["--no-default-features", "--features", "flex"])) {
        true => Ok(target().join("release").join(format!("reft{}", env::consts::EXE_SUFFIX))),
        false => Err("the program does not build".into()),
    }
}
