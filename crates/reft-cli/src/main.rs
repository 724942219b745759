//! The `reft` program: representation finetuning of language models.

#[macro_use]
mod out;

mod allocator;
mod chat;
mod devices;
mod doctor;
mod eval;
mod generate;
mod inspect;
mod interrupt;
mod model_args;
mod numbers;
mod predict;
mod train;

use clap::{Parser, Subcommand};
use reft_train::RunError;
use std::{io::Write, process::ExitCode};

/// Representation finetuning (ReFT): steer a frozen language model with small learned edits of its hidden states.
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
    /// Evaluate on a data file: likelihood of its answers, or the metrics of a classifier.
    Eval(eval::EvalArgs),
    /// Predict labels and probabilities for every row of a data file.
    Predict(predict::PredictArgs),
    /// Continue a prompt, or every prompt of a data file.
    Generate(generate::GenerateArgs),
    /// Chat with a model interactively.
    Chat(chat::ChatArgs),
    /// List available devices.
    Devices(devices::DevicesArgs),
    /// Test whether the devices compute correctly.
    Doctor(doctor::DoctorArgs),
    /// Show the contents of an adapter.
    Inspect(inspect::InspectArgs),
}

#[global_allocator]
static ALLOCATOR: allocator::RecordingAllocator = allocator::RecordingAllocator;

fn main() -> ExitCode {
    allocator::explain_aborts();
    silence_device_select();
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
        // A reader that closes the pipe, such as `head`, is not an error.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {}", message(&error));
            ExitCode::FAILURE
        }
    }
}

/// Turns off Mesa's device-select layer, which prints warnings without a desktop session.
fn silence_device_select() {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // SAFETY: called before any thread is started.
        unsafe { std::env::set_var("NODEVICE_SELECT", "1") };
    }
}

/// The message of an error and of its causes, without those that it already includes, and what to do about it here.
fn message(error: &anyhow::Error) -> String {
    let hint = match error.downcast_ref::<RunError>() {
        Some(RunError::OtherWeights { .. }) => "; pass that model with --model, or use this one with --force",
        _ => "",
    };
    let text = error.chain().skip(1).fold(error.to_string(), |text, cause| match cause.to_string() {
        cause if text.contains(&cause) => text,
        cause => format!("{text}: {cause}"),
    });
    text + hint
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<std::io::Error>();
    io.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}
