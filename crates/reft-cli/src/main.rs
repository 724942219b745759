//! `reft`: fine-tune language models by editing their hidden states.

#![allow(clippy::print_stdout, clippy::print_stderr)] // the program is the one that prints

mod allocator;
mod chat;
mod devices;
mod doctor;
mod eval;
mod generate;
mod inspect;
mod model_args;
mod predict;
mod train;

use clap::{Parser, Subcommand};
use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

/// Representation finetuning (ReFT): steer a frozen language model by small learned edits of its hidden states.
#[derive(Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Train an adapter from a recipe.
    Train(train::TrainArgs),
    /// Likelihood of the answers of a data file, or the metrics of a classifier.
    Eval(eval::EvalArgs),
    /// Labels and probabilities for every row of a data file.
    Predict(predict::PredictArgs),
    /// Continue a prompt, or every prompt of a data file.
    Generate(generate::GenerateArgs),
    /// Talk to a model.
    Chat(chat::ChatArgs),
    /// Show the devices that this program can run on.
    Devices(devices::DevicesArgs),
    /// Test whether the devices compute what they should.
    Doctor(doctor::DoctorArgs),
    /// Show what an adapter is.
    Inspect(inspect::InspectArgs),
}

#[global_allocator]
static ALLOCATOR: allocator::Telling = allocator::Telling;

/// Becomes true at the first Ctrl-C; the second ends the program at once.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn main() -> ExitCode {
    quieten_drivers();
    let result = match Args::parse().verb {
        Verb::Train(args) => train::train(&args),
        Verb::Eval(args) => eval::eval(&args),
        Verb::Predict(args) => predict::predict(&args),
        Verb::Generate(args) => generate::generate(&args),
        Verb::Chat(args) => chat::chat(&args),
        Verb::Devices(args) => devices::show(&args),
        Verb::Doctor(args) => doctor::examine(&args),
        Verb::Inspect(args) => inspect::inspect(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // A reader such as `head` that has seen enough is no error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Mesa's Vulkan layer that sorts GPUs for a desktop complains where there is none. Here devices have names anyway.
fn quieten_drivers() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: the first thing that the program does, while there is one thread.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Lets the work in hand finish on Ctrl-C.
fn watch_interrupts() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
    })?;
    Ok(())
}
