//! Results as Markdown and as JSON lines.

use crate::bench::{
    machine::Machine,
    stats::{Spread, equal_digits, ratio},
    work::{DECODING, Run},
};
use serde_json::{Value, json};

/// All runs of one piece of work with one number of threads; ours is the first program.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The name of the item.
    pub name: String,
    pub threads: usize,
    /// Rows per step.
    pub batch_size: usize,
    /// The programs and their runs.
    pub programs: Vec<(String, Vec<Run>)>,
}

impl Measured {
    /// The phases in which ours was measured.
    fn phases(&self) -> Vec<&'static str> {
        let first = self.programs.first().and_then(|(_, runs)| runs.first());
        first.map(|run| run.phases.iter().map(|(phase, _)| *phase).collect()).unwrap_or_default()
    }

    fn seconds(runs: &[Run], phase: &str) -> Vec<Vec<f64>> {
        runs.iter().map(|run| run.seconds(phase)).collect()
    }

    fn peaks(runs: &[Run]) -> Vec<Vec<f64>> {
        runs.iter().map(|run| run.peak_mb.into_iter().collect()).collect()
    }

    /// The median of a program's seconds in a phase.
    pub fn median(&self, program: usize, phase: &str) -> Option<f64> {
        let (_, runs) = self.programs.get(program)?;
        Some(Spread::of(&Self::seconds(runs, phase).concat())?.median)
    }

    /// The median of a program's peak memory in MiB.
    pub fn peak_mb(&self, program: usize) -> Option<f64> {
        let (_, runs) = self.programs.get(program)?;
        Some(Spread::of(&Self::peaks(runs).concat())?.median)
    }

    /// Tokens per second at this many seconds per step: of training, without padding, or decoded ones.
    fn tokens_per_second(&self, phase: &str, runs: &[Run], seconds: f64) -> Option<f64> {
        let run = runs.first()?;
        let per_step = match run.tokens {
            Some(tokens) => tokens as f64 / run.losses.len() as f64,
            None if phase == DECODING => self.batch_size as f64,
            None => return None,
        };
        Some(per_step / seconds)
    }

    /// One row per phase and program.
    fn rows(&self) -> Vec<String> {
        let Some((_, ours)) = self.programs.first() else { return Vec::new() };
        let mut rows = Vec::new();
        for phase in self.phases() {
            for (idx, (label, runs)) in self.programs.iter().enumerate() {
                let seconds = Self::seconds(runs, phase);
                let Some(spread) = Spread::of(&seconds.concat()) else { continue };
                let ratio_of = |of: fn(&[Run]) -> Vec<Vec<f64>>| match idx {
                    0 => String::new(),
                    _ => ratio(&of(runs), &of(ours)).map_or(String::new(), |r| spread_text(&r, 2)),
                };
                let slower = match idx {
                    0 => String::new(),
                    _ => ratio(&seconds, &Self::seconds(ours, phase))
                        .map_or(String::new(), |r| spread_text(&r, 2)),
                };
                let peak = self.peak_mb(idx).map_or(String::new(), |mb| thousands(mb.round() as u64));
                let others = runs.iter().filter_map(|run| run.others).collect::<Vec<_>>();
                let others = Spread::of(&others).map_or(String::new(), |s| format!("{:.1}", s.median));
                let cells = [
                    self.name.clone(),
                    self.threads.to_string(),
                    phase.into(),
                    label.clone(),
                    seconds_text(&spread),
                    self.tokens_per_second(phase, runs, spread.median)
                        .map_or(String::new(), digits_or_thousands),
                    slower,
                    peak,
                    ratio_of(Self::peaks),
                    others,
                ];
                rows.push(format!("| {} |", cells.join(" | ")));
            }
        }
        rows
    }

    /// Whether the programs computed the same.
    pub fn agreement(&self) -> Vec<String> {
        let Some((_, ours)) = self.programs.first() else { return Vec::new() };
        let Some(our_run) = ours.first() else { return Vec::new() };
        let mut lines = Vec::new();
        let name = format!("{}, {}", self.name, threads_text(self.threads));
        if ours.iter().any(|run| run.losses != our_run.losses || run.texts != our_run.texts) {
            lines.push(format!("- {name}: runs of the same program differ"));
        }
        for (label, runs) in self.programs.iter().skip(1) {
            let Some(run) = runs.first() else { continue };
            if let (Some(a), Some(b)) = (our_run.losses.first(), run.losses.first()) {
                let last = our_run.losses.len().min(run.losses.len()) - 1;
                let tokens = match (our_run.tokens, run.tokens) {
                    (Some(a), Some(b)) if a == b => format!("{} tokens in both", thousands(a)),
                    (a, b) => format!("other tokens: {a:?} and {b:?}"),
                };
                lines.push(format!(
                    "- {name}: ours and {label}: first loss {a:.6} and {b:.6} ({} digits agree), that of step {} {:.4} and \
                     {:.4}; {tokens}",
                    equal_digits(*a, *b),
                    last + 1,
                    our_run.losses[last],
                    run.losses[last],
                ));
            }
            if !our_run.texts.is_empty() {
                let pairs = our_run.texts.iter().zip(&run.texts);
                let n_equal = pairs.clone().filter(|(a, b)| a == b).count();
                let n_tokens: usize = our_run.texts.iter().map(Vec::len).sum();
                lines.push(format!(
                    "- {name}: ours and {label}: {n_equal} of {} texts equal, {n_tokens} tokens",
                    our_run.texts.len()
                ));
            }
        }
        lines
    }

    /// One line of JSON per run.
    pub fn json_lines(&self, machine: &Machine) -> Vec<Value> {
        let mut lines = Vec::new();
        for (label, runs) in &self.programs {
            for (idx, run) in runs.iter().enumerate() {
                let seconds: serde_json::Map<String, Value> =
                    run.phases.iter().map(|(phase, s)| (phase.to_string(), json!(s))).collect();
                lines.push(json!({
                    "commit": machine.commit,
                    "date": machine.date,
                    "processor": machine.processor,
                    "cores": machine.cores,
                    "command": machine.command,
                    "work": self.name,
                    "threads": self.threads,
                    "batch_size": self.batch_size,
                    "program": label,
                    "run": idx + 1,
                    "seconds": seconds,
                    "peak_mb": run.peak_mb,
                    "losses": run.losses,
                    "tokens": run.tokens,
                    "process_seconds": run.wall,
                    "processor_seconds": run.cpu,
                    "processors_used_by_others": run.others,
                }));
            }
        }
        lines
    }
}

/// All results as Markdown, ready for `docs/numbers.md`.
pub fn markdown(measured: &[Measured], machine: &Machine, notes: &[String]) -> String {
    let Machine { commit, processor, cores, date, command } = machine;
    let mut lines = vec![
        format!("`{command}`, commit {commit}, {date}, {cores} cores of {processor}."),
        "Seconds: median (smallest–largest) without the first step. Ratios are those of medians, with the smallest and the largest \
         ratio of two runs that followed each other; above 1, ours takes less."
            .into(),
        String::new(),
        "| work | threads | per | program | seconds | tokens/s | ÷ ours | peak MiB | ÷ ours | processors in use by others |"
            .into(),
        "|---|---|---|---|---|---|---|---|---|---|".into(),
    ];
    lines.extend(measured.iter().flat_map(Measured::rows));
    let agreement: Vec<String> = measured.iter().flat_map(Measured::agreement).collect();
    for below in [agreement, notes.iter().map(|note| format!("- {note}")).collect()] {
        if !below.is_empty() {
            lines.push(String::new());
            lines.extend(below);
        }
    }
    lines.join("\n") + "\n"
}

fn threads_text(threads: usize) -> String {
    format!("{threads} thread{}", if threads == 1 { "" } else { "s" })
}

/// Three significant digits.
fn digits(value: f64) -> String {
    let decimals = match value.abs() {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        v if v >= 1.0 => 2,
        v if v >= 0.1 => 3,
        v if v >= 0.01 => 4,
        _ => 5,
    };
    format!("{value:.decimals$}")
}

fn digits_or_thousands(value: f64) -> String {
    if value < 1000.0 { digits(value) } else { thousands(value.round() as u64) }
}

fn seconds_text(spread: &Spread) -> String {
    format!("{} ({}–{})", digits(spread.median), digits(spread.min), digits(spread.max))
}

fn spread_text(spread: &Spread, decimals: usize) -> String {
    let Spread { median, min, max } = spread;
    format!("{median:.decimals$} ({min:.decimals$}–{max:.decimals$})")
}

fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().flat_map(std::str::from_utf8).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            commit: "0123456".into(),
            processor: "P".into(),
            cores: 2,
            date: "2026-01-01".into(),
            command: "cargo xtask bench".into(),
        }
    }

    fn run(seconds: &[f64], peak_mb: f64, loss: f64) -> Run {
        Run {
            phases: vec![("step", seconds.to_vec())],
            losses: vec![loss, 1.0],
            tokens: Some(1234),
            peak_mb: Some(peak_mb),
            others: Some(0.25),
            ..Run::default()
        }
    }

    fn measured() -> Measured {
        let ours = vec![run(&[1.0, 1.2], 600.0, 5.12345), run(&[1.1], 600.0, 5.12345)];
        let theirs = vec![run(&[2.0, 2.4], 1800.0, 5.12346), run(&[2.2], 1800.0, 5.12346)];
        let programs = vec![("reft".into(), ours), ("pyreft".into(), theirs)];
        Measured { name: "a".into(), threads: 2, batch_size: 16, programs }
    }

    #[test]
    fn the_table_has_medians_ratios_memory_and_what_agrees() {
        let text = markdown(&[measured()], &machine(), &["skipped: b (no data)".into()]);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| a |")).collect();
        assert_eq!(
            rows,
            [
                "| a | 2 | step | reft | 1.10 (1.00–1.20) | 561 |  | 600 |  | 0.2 |",
                "| a | 2 | step | pyreft | 2.20 (2.00–2.40) | 280 | 2.00 (2.00–2.00) | 1,800 | 3.00 (3.00–3.00) | 0.2 |",
            ]
        );
        let below = "\n- a, 2 threads: ours and pyreft: first loss 5.123450 and 5.123460 (5 digits agree), that of step 2 1.0000 \
                     and 1.0000; 1,234 tokens in both\n\n- skipped: b (no data)\n";
        assert!(text.ends_with(below), "{text}");
        let columns = |line: &str| line.matches('|').count();
        assert!(text.lines().filter(|line| line.starts_with('|')).all(|line| columns(line) == 11));
    }

    #[test]
    fn runs_that_differ_are_reported() {
        let mut measured = measured();
        measured.programs[0].1[1].losses[0] = 5.0;
        assert!(measured.agreement()[0].ends_with("runs of the same program differ"));
    }

    #[test]
    fn every_run_is_a_line_of_json() {
        let lines = measured().json_lines(&machine());
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[3]["program"], "pyreft");
        assert_eq!(lines[0]["seconds"]["step"], json!([1.0, 1.2]));
        assert_eq!((&lines[1]["run"], &lines[1]["threads"]), (&json!(2), &json!(2)));
    }

    #[test]
    fn numbers_have_three_digits_and_groups() {
        assert_eq!(
            [0.001234, 0.0123, 0.5, 1.5, 12.34, 123.4].map(digits).join(" "),
            "0.00123 0.0123 0.500 1.50 12.3 123"
        );
        assert_eq!([7, 1000, 1_234_567].map(thousands).join(" "), "7 1,000 1,234,567");
    }
}
