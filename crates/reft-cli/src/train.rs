//! `reft train`: a recipe in, a run folder out.

use crate::{
    allocator::TRAINING,
    interrupt::{self, INTERRUPTED},
};
use anyhow::Result;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use reft_train::reft_kernels::AutodiffKernels;
use reft_train::{
    Chosen, OnDevice, Recipe, RunError, StopReason,
    device::{DeviceKind, choose, on_chosen},
    eval::Answer,
    memory::format_bytes,
    run::{Event, Finished, Outcome, Plan, run},
    score::Score,
};
use std::{io::IsTerminal, path::PathBuf, sync::atomic::Ordering};

#[derive(Args)]
pub struct TrainArgs {
    /// The recipe, a TOML file
    recipe: PathBuf,
    /// Overrides of recipe keys, such as train.lr=4e-4
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Show the plan and the memory it needs, without training
    #[arg(long)]
    dry_run: bool,
    /// With --dry-run, print JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

struct Work<'a> {
    recipe: &'a Recipe,
    dry: bool,
    screen: &'a mut Screen,
}

impl OnDevice for Work<'_> {
    type Output = Result<Outcome, RunError>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Self::Output {
        let mut show = |event: Event| self.screen.show(event);
        run::<A>(self.recipe, on, self.dry, &mut show, &INTERRUPTED)
    }
}

pub fn train(args: &TrainArgs) -> Result<()> {
    let recipe = Recipe::read(&args.recipe, &args.overrides)?;
    let (device, reason) = choose(&recipe.device)?;
    interrupt::watch()?;
    let mut screen = Screen::new(args.json);
    if let Some(reason) = reason.filter(|_| !args.json) {
        say!("device     {}: {reason}", device.name);
    }
    if device.kind != DeviceKind::Cpu && !args.dry_run {
        say!(
            "device     the first steps on {} compile and tune kernels, which can take minutes",
            device.name
        );
    }
    TRAINING.store(!args.dry_run, Ordering::Relaxed);
    let outcome = on_chosen(&device, Work { recipe: &recipe, dry: args.dry_run, screen: &mut screen })?;
    screen.bar.finish_and_clear();
    match outcome? {
        Outcome::Finished(finished) => summarize(&recipe, &finished),
        Outcome::Planned(plan) if args.json => say!("{}", serde_json::to_string_pretty(&plan)?),
        Outcome::Planned(plan) => show_plan(&plan),
    }
    Ok(())
}

fn show_plan(plan: &Plan) {
    let head = if plan.head > 0 { format!(", head {}", thousands(plan.head)) } else { String::new() };
    let (rows, tokens) = plan.batch;
    let checkpointing = if plan.checkpointing { ", gradient checkpointing" } else { "" };
    say!(
        "would train {} parameters ({}{head}) in {} steps; largest micro-batch {rows} x {tokens} tokens{checkpointing}\n",
        thousands(plan.trainable),
        plan.method.name(),
        thousands(plan.steps)
    );
    let memory = &plan.memory;
    let lines = [
        ("program and data", memory.program),
        ("weights", memory.weights),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("evaluation", memory.evaluation),
        ("adapter", memory.adapter),
        ("optimizer", memory.optimizer),
        ("reused states", memory.reused),
        ("peak", memory.total),
    ];
    for (what, n) in lines.into_iter().filter(|(what, n)| *n > 0 || *what != "reused states") {
        say!("{what:<18}{:>12}", format_bytes(n));
    }
    let free = plan.free.map_or(String::new(), |n| format!(", {} free now", format_bytes(n)));
    match plan.capacity {
        Some(capacity) => say!("\n{} has {}{free}", plan.device, format_bytes(capacity)),
        None => say!("\nthe driver of {} does not report its memory", plan.device),
    }
    if plan.free.is_some_and(|free| memory.total > free + memory.program) {
        say!("warning: this is more than is free now");
    }
    say!("nothing was loaded, trained or written");
}

/// What the user sees during a run: lines, and on a terminal a progress bar below them.
struct Screen {
    bar: ProgressBar,
    silent: bool,
}

impl Screen {
    fn new(silent: bool) -> Self {
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {elapsed} (left {eta})");
        bar.set_style(style.expect("a valid template"));
        Self { bar, silent }
    }

    fn line(&self, text: &str) {
        if self.silent {
            return;
        }
        self.bar.suspend(|| say!("{text}"));
    }

    fn show(&self, event: Event) {
        match event {
            Event::Model { base, weights, precision, device } => {
                let weights = thousands(weights);
                self.line(&format!("model      {} ({weights} weights, {precision}) on {device}", base.name));
            }
            Event::Labels([]) => self.line("labels     numbers"),
            Event::Labels(labels) => {
                let more = if labels.len() > 10 { ", …" } else { "" };
                let shown = labels.iter().take(10).map(String::as_str).collect::<Vec<_>>().join(", ");
                self.line(&format!("labels     {} ({shown}{more})", labels.len()));
            }
            Event::Data { summary, max_length } => {
                let mut text = format!("{:<10} {} rows", summary.what, thousands(summary.rows));
                if summary.cut > 0 {
                    text += &format!(", {} truncated to {max_length} tokens", summary.cut);
                }
                if summary.dropped > 0 {
                    text += &format!(", {} dropped because no answer token was left", summary.dropped);
                }
                if summary.skipped > 0 {
                    text += &format!(", {} skipped because they cannot be used", summary.skipped);
                }
                self.line(&text);
            }
            Event::Notice(notice) => self.line(&format!("note       {notice}")),
            Event::Warning(text) => self.line(&format!("warning: {text}")),
            Event::Trainable { method, interventions, parameters, head, weights } => {
                let percent = 100.0 * parameters as f64 / weights as f64;
                let (kind, count) = match method.intervention() {
                    Some(_) => ("intervention", format!(" ({interventions} interventions)")),
                    None => (method.name(), String::new()),
                };
                self.line(&format!(
                    "trainable {kind} params: {} || trainable head params: {}\n\
                     model params: {} || trainable%: {percent:.4}{count}",
                    thousands(parameters),
                    thousands(head),
                    thousands(weights)
                ));
            }
            Event::Score { what, score } => self.line(&format!("{what:<10} {}", score_text(score))),
            Event::Progress { step, total_steps } => {
                self.bar.set_length(total_steps as u64);
                self.bar.set_position(step as u64);
            }
            Event::Step(r) => {
                let memory = r.device_mb.or(r.peak_mb).map_or(String::new(), |mb| format!("  {mb:.0} MiB"));
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
            Event::Evaluated { step, evaluation, best } => {
                let best = if best { "  (best so far, saved)" } else { "" };
                self.line(&format!("eval  {step:>5}  {}{best}", score_text(&evaluation.score)));
            }
        }
    }
}

fn score_text(score: &Score) -> String {
    let parts = score.0.iter().map(|(name, value)| format!("{} {}", label(name), number(name, *value)));
    parts.collect::<Vec<_>>().join("  ")
}

fn label(metric: &str) -> String {
    metric.replace('_', " ")
}

fn number(metric: &str, value: f64) -> String {
    match metric {
        "exact_match" | "accuracy" => format!("{:.1}%", 100.0 * value),
        "perplexity" => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn summarize(recipe: &Recipe, finished: &Finished) {
    let summary = &finished.summary;
    say!();
    match summary.ended {
        StopReason::Done => {}
        StopReason::Interrupted => {
            say!("interrupted after {} steps; the adapter so far is saved", summary.steps);
        }
        StopReason::NoLongerBetter => {
            let patience = recipe.train.patience;
            say!("stopped early after {} steps: no improvement for {patience} evaluations", summary.steps);
        }
    }
    if let Some(after) = &summary.after {
        let before = summary.before.as_ref();
        say!("{:<16}{}     after", "held-out rows", if before.is_some() { "   before " } else { "" });
        for (metric, value) in &after.0 {
            let before = before.map(|score| {
                format!("{:>9} ", score.get(metric).map_or("-".into(), |value| number(metric, value)))
            });
            say!("{:<16}{} {:>9}", label(metric), before.unwrap_or_default(), number(metric, *value));
        }
        say!();
    }
    for (file, score) in &summary.test {
        say!("{file}: {}", score_text(score));
    }
    for (before, after) in finished.answers.iter().take(3) {
        let Answer { prompt, found, expected } = after;
        say!("prompt      {}", one_line(prompt));
        say!("  before    {}", one_line(&before.found));
        say!("  after     {}", one_line(found));
        say!("  expected  {}\n", one_line(expected));
    }
    let training = summary.training_mb.map_or(String::new(), |mb| format!(" ({mb:.0} MiB for training)"));
    let memory = match (summary.device_mb, summary.peak_mb) {
        (Some(mb), _) => format!(", {mb:.0} MiB of device memory"),
        (None, Some(mb)) => format!(", peak memory {mb:.0} MiB{training}"),
        (None, None) => String::new(),
    };
    let head = match summary.head {
        0 => String::new(),
        n => format!(", plus {} of the head", thousands(n)),
    };
    say!(
        "{} steps in {}, {:.0} tokens/s{memory}; {} parameters, {:.3} % of the model{head}",
        summary.steps,
        duration(summary.seconds),
        summary.tokens_per_s,
        thousands(summary.trainable),
        100.0 * summary.share
    );
    let adapter = summary.adapter.display();
    say!("adapter: {adapter}");
    let prompt = finished.answers.first().map_or("Hello", |(_, answer)| answer.prompt.as_str());
    let program = std::env::current_exe().ok();
    let program = program
        .as_deref()
        .map(|path| {
            let folder = std::env::current_dir().unwrap_or_default();
            // A name without a folder would be searched for in PATH.
            let within = path.strip_prefix(folder).ok().filter(|path| path.components().count() > 1);
            within.unwrap_or(path).display().to_string()
        })
        .unwrap_or_else(|| "reft".into());
    if recipe.data.task.is_some() {
        let data = recipe.data.eval.as_ref().unwrap_or(&recipe.data.train);
        say!("next:    {program} predict --adapter {adapter} --data {data}");
        return;
    }
    let revision = recipe.revision.as_ref().map_or(String::new(), |r| format!(" --revision {r}"));
    say!(
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
