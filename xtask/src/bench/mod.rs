//! `cargo xtask bench`: speed and memory of the program, beside pyreft and transformers where Python has them.
//!
//! Every program is a whole process with the same number of threads, and they run in turn (A B A B …), so that what else the
//! machine does slows both down alike.

mod context;
mod items;
mod machine;
mod models;
mod options;
mod process;
mod scaling;
mod stats;
mod svg;
mod table;
mod work;

use crate::tools::{Outcome, cargo, root, succeeds, target};
use context::Bench;
use items::Item;
use options::{Options, USAGE};
use std::{env, fs};

/// Measures. Prints a table, and writes it and every single run into the target folder.
pub fn bench(args: &[String]) -> bool {
    if args.iter().any(|arg| arg == "--help") {
        println!("{USAGE}");
        return true;
    }
    let run = Options::parse(args).and_then(|options| run(&mut Bench::new(options)?));
    if let Err(error) = &run {
        eprintln!("error: {error}");
    }
    run.is_ok()
}

/// A check: the smallest item with the unoptimized program of the tests.
pub fn smoke() -> Outcome {
    let program = target().join("debug").join(format!("reft{}", env::consts::EXE_SUFFIX));
    if !program.exists() {
        return Outcome::Skipped("the program is not built; the check `tests` builds it".into());
    }
    bench(&["--smoke".into(), "--program".into(), program.display().to_string()]).into()
}

fn run(bench: &mut Bench) -> Result<(), String> {
    if bench.options.is_scaling {
        return scaling::run(bench);
    }
    let mut all = Vec::new();
    for item in items::chosen(&bench.options)? {
        match item {
            Item::Kernels => kernels(bench),
            item => match item.work(bench) {
                Ok(works) => {
                    for (name, work) in works {
                        for threads in bench.threads() {
                            all.push(bench.measure(&name, &work, threads)?);
                        }
                    }
                }
                Err(reason) => bench.note(format!("skipped: {} ({reason})", item.name())),
            },
        }
    }
    let text = table::markdown(&all, &bench.machine, &bench.notes);
    let path = bench.folder.join("table.md");
    fs::write(&path, &text).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("\n{text}\nwritten: {}", path.display());
    Ok(())
}

/// The benchmarks of the crate with the kernels, if there is one.
fn kernels(bench: &mut Bench) {
    let manifest = root().join("crates/reft-kernels/Cargo.toml");
    let has_benches = fs::read_to_string(manifest).is_ok_and(|text| text.contains("[[bench]]"));
    if !has_benches {
        return bench.note("skipped: kernels (no crate with benchmarks of its own)".into());
    }
    for threads in bench.threads() {
        println!("\n== kernels, {threads} threads");
        let mut command = cargo();
        command.env("RAYON_NUM_THREADS", threads.to_string());
        if !succeeds(command.args(["bench", "--locked", "--package", "reft-kernels"])) {
            bench.note(format!("the benchmarks of the kernels failed with {threads} threads"));
        }
    }
}
