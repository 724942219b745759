//! `reft train`: a recipe in, a run folder out.

use crate::{INTERRUPTED, watch_interrupts};
use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reft_train::{
    OnDevice, Recipe, RunError, device,
    eval::{Answer, Score},
    on_device,
    run::{Event, Finished, run},
};
use std::{io::IsTerminal, path::PathBuf};

#[derive(Args)]
pub struct TrainArgs {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Changes of the recipe, such as train.lr=4e-4
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
}

struct Work<'a> {
    recipe: &'a Recipe,
    device_name: &'a str,
    screen: &'a mut Screen,
}

impl OnDevice for Work<'_> {
    type Output = Result<Finished, RunError>;

    fn run<A: AutodiffBackend>(self, device: A::Device) -> Self::Output {
        let mut show = |event: Event| self.screen.show(event);
        run::<A>(self.recipe, &device, self.device_name, &mut show, &INTERRUPTED)
    }
}

pub fn train(args: &TrainArgs) -> Result<()> {
    let recipe = Recipe::read(&args.recipe, &args.overrides)?;
    let device_name = device::resolve(&recipe.device)?;
    watch_interrupts()?;
    let mut screen = Screen::new();
    let finished = on_device(&recipe.device, Work { recipe: &recipe, device_name, screen: &mut screen })?;
    screen.bar.finish_and_clear();
    summarise(&recipe, &finished?);
    Ok(())
}

/// What the user sees while a run is under way: lines, and on a terminal a progress bar below them.
struct Screen {
    bar: ProgressBar,
}

impl Screen {
    fn new() -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} (left {eta})");
        bar.set_style(style.expect("a valid template"));
        Self { bar }
    }

    fn line(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }

    fn show(&self, event: Event) {
        match event {
            Event::Model { base, weights, device } => {
                self.line(&format!("model      {} ({} weights) on {device}", base.name, thousands(weights)));
            }
            Event::Data { what, set, max_length } => {
                let mut text = format!("{what:<10} {} rows", thousands(set.examples.len()));
                if set.n_cut > 0 {
                    text += &format!(", {} cut at {max_length} tokens", set.n_cut);
                }
                if set.n_dropped() > 0 {
                    text += &format!(", {} dropped because no answer token was left", set.n_dropped());
                }
                self.line(&text);
            }
            Event::Trainable { interventions, parameters, weights } => {
                let percent = 100.0 * parameters as f64 / weights as f64;
                self.line(&format!(
                    "trainable intervention params: {} || trainable model params: 0\n\
                     model params: {} || trainable%: {percent:.4} ({interventions} interventions)",
                    thousands(parameters),
                    thousands(weights)
                ));
            }
            Event::Score { before, score } => {
                self.line(&format!(
                    "{} {}",
                    if before { "before    " } else { "after     " },
                    score_text(&score)
                ));
            }
            Event::Progress { step, total_steps } => {
                self.bar.set_length(total_steps as u64);
                self.bar.set_position(step as u64);
            }
            Event::Step(r) => {
                let memory = r.peak_mb.map_or(String::new(), |mb| format!("  {mb:.0} MB"));
                self.line(&format!(
                    "step {:>5}/{}  loss {:.4}  lr {:.2e}  {:.0} tokens/s{memory}  {} left",
                    r.step,
                    r.total_steps,
                    r.loss,
                    r.lr,
                    r.tokens_per_s,
                    duration(r.seconds_left)
                ));
            }
            Event::Evaluated { step, nll, best } => {
                let best = if best { "  (best so far, saved)" } else { "" };
                self.line(&format!("eval  {step:>5}  held-out nll {nll:.4}{best}"));
            }
        }
    }
}

fn score_text(score: &Score) -> String {
    let exact =
        score.exact_match.map_or(String::new(), |share| format!("  exact match {:.1} %", 100.0 * share));
    format!("held-out nll {:.4}  perplexity {:.2}{exact}", score.nll, score.nll.exp())
}

fn summarise(recipe: &Recipe, finished: &Finished) {
    let summary = &finished.summary;
    println!();
    if summary.interrupted {
        println!("interrupted after {} steps; the adapter so far is saved", summary.steps);
    }
    if let (Some(before), Some(after)) = (summary.before, summary.after) {
        println!("held-out rows      before      after");
        println!("nll              {:>8.4}   {:>8.4}", before.nll, after.nll);
        println!("perplexity       {:>8.2}   {:>8.2}", before.nll.exp(), after.nll.exp());
        if let (Some(before), Some(after)) = (before.exact_match, after.exact_match) {
            println!("exact match      {:>7.1}%   {:>7.1}%", 100.0 * before, 100.0 * after);
        }
        println!();
    }
    for (before, after) in finished.answers.iter().take(3) {
        let Answer { prompt, found, expected } = after;
        println!("prompt    {}", one_line(prompt));
        println!("  before  {}", one_line(&before.found));
        println!("  after   {}", one_line(found));
        println!("  wanted  {}\n", one_line(expected));
    }
    let memory = summary.peak_mb.map_or(String::new(), |mb| format!(", {mb:.0} MB at the peak"));
    println!(
        "{} steps in {}, {:.0} tokens/s{memory}; {} parameters, {:.3} % of the model",
        summary.steps,
        duration(summary.seconds),
        summary.tokens_per_s,
        thousands(summary.trainable),
        100.0 * summary.share
    );
    let adapter = summary.adapter.display();
    println!("adapter: {adapter}");
    let prompt = finished.answers.first().map_or("Hello", |(_, answer)| answer.prompt.as_str());
    let program = std::env::current_exe().ok();
    let program = program
        .as_deref()
        .map(|path| {
            let folder = std::env::current_dir().unwrap_or_default();
            path.strip_prefix(folder).unwrap_or(path).display().to_string()
        })
        .unwrap_or_else(|| "reft".into());
    let revision = recipe.revision.as_ref().map_or(String::new(), |r| format!(" --revision {r}"));
    println!(
        "next:    {program} generate --adapter {adapter}{revision} --prompt '{}'",
        one_line(prompt).replace('\'', "'\\''")
    );
}

fn one_line(text: &str) -> String {
    text.trim().replace('\n', " ⏎ ")
}

fn thousands(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (idx, digit) in digits.chars().enumerate() {
        if idx > 0 && (digits.len() - idx).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 10.0 => format!("{s:.1} s"),
        s if s < 100.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min {:02.0} s", (s / 60.0).floor(), (s % 60.0).floor()),
        s => format!("{:.0} h {:02.0} min", (s / 3600.0).floor(), (s % 3600.0 / 60.0).floor()),
    }
}
