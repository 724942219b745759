//! Developer commands of this workspace. Builds in seconds, because it has no dependencies.
//!
//! ```text
//! cargo xtask train [--features F] [RECIPE] [KEY=VALUE…]    build the program and train; without a recipe, the quick start
//! cargo xtask test [CHECK…]                                 everything that must hold before a change is shared
//! ```

mod backends;
mod checks;
mod packages;
mod train;

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

const USAGE: &str = "\
usage: cargo xtask train [--features F] [RECIPE] [KEY=VALUE…]
       cargo xtask test [CHECK…]

--features    backends to build instead of those found on this machine, as in --features cuda,vulkan;
              the CPU backend `flex` is always built
CHECK         only the checks whose name has one of these words, as in lints docs";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let succeeded = match args.split_first() {
        Some((verb, rest)) if verb == "train" => train::train(rest),
        Some((verb, rest)) if verb == "test" => checks::run(rest),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The workspace in which `cargo xtask` was called, which may differ from the one in which xtask was built.
fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().expect("xtask is a folder of the workspace").into()
}

/// The target folder. Cargo runs in the root, so a relative `CARGO_TARGET_DIR` is relative to the root.
fn target() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
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

/// What a command prints; `None` if it fails.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}
