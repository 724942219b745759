//! Developer commands of this workspace. Builds in seconds, because it has few dependencies.
//!
//! ```text
//! cargo xtask train [--features F] [RECIPE] [KEY=VALUE…]    build the program and train; without a recipe, the quick start
//! cargo xtask test [CHECK…]                                 every check, the cheapest first
//! cargo xtask bench [scaling] [OPTION…]                     speed and memory, beside pyreft where Python has it
//! ```

mod backends;
mod bench;
mod checks;
mod circles;
mod packages;
mod tools;
mod train;

use std::{env, process::ExitCode};

const USAGE: &str = "\
usage: cargo xtask train [--features F] [RECIPE] [KEY=VALUE…]
       cargo xtask test [CHECK…]
       cargo xtask bench [--help] [OPTION…]

--features    backends to build instead of those found on this machine, as in --features cuda,vulkan;
              the CPU backend `flex` is always built
CHECK         only the checks whose name has one of these words, as in lints docs";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let succeeded = match args.split_first() {
        Some((verb, rest)) if verb == "train" => train::train(rest),
        Some((verb, rest)) if verb == "test" => checks::run(rest),
        Some((verb, rest)) if verb == "bench" => bench::bench(rest),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    if succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
