//! Developer verbs of this workspace. Builds in seconds, because it depends on nothing.
//!
//! ```text
//! cargo xtask train [--features F] [RECIPE] [KEY=VALUE…]    build the program and train; without a recipe, the quick start
//! cargo xtask test                                          everything that must hold before a change is shared
//! ```

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Instant,
};

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let done = match args.split_first() {
        Some((verb, rest)) if verb == "train" => train(rest),
        Some((verb, [])) if verb == "test" => test(),
        _ => {
            eprintln!(
                "usage: cargo xtask train [--features F] [RECIPE] [KEY=VALUE…]\n       cargo xtask test\n\n\
                 --features    more backends, as in --features cuda,vulkan"
            );
            return ExitCode::from(2);
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The workspace that `cargo xtask` was called in, which need not be the one that this was built in.
fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().expect("xtask lies in the workspace").into()
}

fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

fn succeeds(command: &mut Command) -> bool {
    match command.status() {
        Ok(status) => status.success(),
        Err(error) => {
            eprintln!("error: cannot start {command:?}: {error}");
            false
        }
    }
}

/// Builds the program with the features asked for, then hands over: `[RECIPE] [KEY=VALUE…]`.
fn train(args: &[String]) -> bool {
    let mut build = cargo();
    build.args(["build", "--release", "--package", "reft-train", "--bin", "reft"]);
    let args = match args {
        [flag, features, rest @ ..] if flag == "--features" => {
            build.args(["--features", features]);
            rest
        }
        args => args,
    };
    if !succeeds(&mut build) {
        return false;
    }
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let program = target.join("release").join(format!("reft{}", env::consts::EXE_SUFFIX));
    let mut command = Command::new(program);
    command.arg("train");
    if args.first().is_none_or(|first| first.contains('=') || first.starts_with("--")) {
        command.arg(root().join("recipes/quickstart.toml"));
    }
    succeeds(command.args(args))
}

/// One check: its name, arguments of cargo, and variables.
type Check = (&'static str, &'static [&'static str], &'static [(&'static str, &'static str)]);

/// The checks, cheapest first.
const CHECKS: &[Check] = &[
    ("format", &["fmt", "--all", "--check"], &[]),
    ("lints", &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[]),
    ("docs", &["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-D warnings")]),
    (
        "feature flex",
        &["check", "--package", "reft-train", "--no-default-features", "--features", "flex"],
        &[],
    ),
    (
        "feature ndarray",
        &["check", "--package", "reft-train", "--no-default-features", "--features", "ndarray"],
        &[],
    ),
    ("feature vulkan", &["check", "--package", "reft-train", "--features", "vulkan"], &[]),
    ("feature metal", &["check", "--package", "reft-train", "--features", "metal"], &[]),
    ("feature cuda", &["check", "--package", "reft-train", "--features", "cuda"], &[]),
    (
        "libraries in a browser",
        &[
            "check",
            "--target",
            "wasm32-unknown-unknown",
            "--package",
            "reft-core",
            "--package",
            "reft-models",
        ],
        &[],
    ),
    ("their CPU backend", &["check", "--target", "wasm32-unknown-unknown", "--package", "burn-flex"], &[]),
    ("all features", &["check", "--package", "reft-train", "--features", "ndarray,vulkan,metal,cuda"], &[]),
    ("tests", &["test", "--workspace"], &[]),
];

fn test() -> bool {
    let mut failed = Vec::new();
    for (name, args, variables) in CHECKS {
        println!("== {name}: cargo {}", args.join(" "));
        let begun = Instant::now();
        let good = succeeds(cargo().args(*args).envs(variables.iter().copied()));
        println!(
            "== {name}: {} in {:.0} s\n",
            if good { "passed" } else { "FAILED" },
            begun.elapsed().as_secs_f64()
        );
        if !good {
            failed.push(*name);
        }
    }
    match failed.as_slice() {
        [] => println!("all {} checks passed", CHECKS.len()),
        names => println!("failed: {}", names.join(", ")),
    }
    failed.is_empty()
}
