//! How the cost of a training step grows with length, batch and depth.

use crate::{
    bench::{
        context::Bench,
        items,
        models::Shape,
        svg::{Line, Panel, picture},
        table::{self, Measured},
        work::{Task, Train, Work},
    },
    tools::root,
};
use serde_json::json;
use std::fs;

/// What grows.
struct Sweep {
    name: &'static str,
    title: &'static str,
    x_label: &'static str,
    values: &'static [usize],
    /// Tokens per row, rows and layers for a value.
    shape: fn(usize) -> (usize, usize, usize),
}

const SWEEPS: [Sweep; 3] = [
    Sweep {
        name: "length",
        title: "Length: batch 2, 6 layers",
        x_label: "tokens per row",
        values: &[128, 256, 512, 1024, 2048],
        shape: |value| (value, 2, 6),
    },
    Sweep {
        name: "batch",
        title: "Batch: 128 tokens, 6 layers",
        x_label: "rows per step",
        values: &[1, 2, 4, 8, 16, 32, 64],
        shape: |value| (128, value, 6),
    },
    Sweep {
        name: "depth",
        title: "Depth: batch 4, 128 tokens",
        x_label: "layers",
        values: &[2, 4, 8, 16, 32],
        shape: |value| (128, 4, value),
    },
];

/// Measures every sweep, then draws them.
///
/// # Errors
/// If a model cannot be made or a program fails.
pub fn run(bench: &mut Bench) -> Result<(), String> {
    let chosen = |sweep: &&Sweep| {
        bench.options.only.is_empty()
            || bench.options.only.iter().any(|only| sweep.name.starts_with(only.as_str()))
    };
    let sweeps: Vec<&Sweep> = SWEEPS.iter().filter(chosen).collect();
    if sweeps.is_empty() {
        return Err("no sweep has that name; there are length, batch and depth".into());
    }
    let (mut all, mut panels) = (Vec::new(), (Vec::new(), Vec::new()));
    for sweep in sweeps {
        let mut points: Vec<(usize, Measured)> = Vec::new();
        for value in sweep.values {
            let work = Work::Train(training(bench, sweep, *value)?);
            for threads in bench.threads() {
                let measured = bench.measure(&format!("{}-{value}", sweep.name), &work, threads)?;
                points.push((*value, measured));
            }
        }
        panels.0.push(panel(sweep, &points, "seconds per step", |m, program| m.median(program, "step")));
        panels.1.push(panel(sweep, &points, "peak memory, MiB", Measured::peak_mb));
        all.extend(points.into_iter().map(|(_, measured)| measured));
    }
    println!("\n{}", table::markdown(&all, &bench.machine, &bench.notes));
    let machine = &bench.machine;
    let title = format!("A training step: hidden size 192, LoReFT in all layers, {}", machine.commit);
    let svg = picture(&title, &[panels.0, panels.1]);
    let folder = if bench.options.write_docs { root().join("docs") } else { bench.folder.clone() };
    let path = folder.join("scaling.svg");
    fs::write(&path, svg).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

/// Training on rows that all have this many tokens.
fn training(bench: &Bench, sweep: &Sweep, value: usize) -> Result<Train, String> {
    let (max_length, batch_size, layers) = (sweep.shape)(value);
    let tokenizer = root().join("tests/fixtures/golden/stories260k/model");
    let model = Shape::small(layers).folder(&bench.folder.join("models"), &tokenizer);
    let steps_per_epoch = bench.options.steps.unwrap_or(4);
    let row = |idx: usize| {
        // Every word has at least one token, and rows are cut to the same length.
        let answer = format!("{idx} once upon a time there was a fox. ").repeat(max_length / 8 + 1);
        json!({"instruction": format!("Tell me story {idx} about the old fox"), "output": answer})
    };
    let rows: Vec<_> = (0..batch_size * steps_per_epoch).map(row).collect();
    Ok(Train {
        task: Task::Instruct,
        model: model.map_err(|error| format!("making a model: {error}"))?,
        data: items::write_rows(bench, &format!("scaling-{}", sweep.name), &rows)?,
        template: "{{ instruction }}\n",
        layers: "all",
        rank: 8,
        positions: "f7+l7",
        batch_size,
        max_length,
        steps_per_epoch,
        epochs: 1,
    })
}

/// A line for every program and number of threads.
fn panel(
    sweep: &Sweep,
    points: &[(usize, Measured)],
    y_label: &str,
    value: fn(&Measured, usize) -> Option<f64>,
) -> Panel {
    let mut lines: Vec<Line> = Vec::new();
    for (x, measured) in points {
        for (idx, (program, _)) in measured.programs.iter().enumerate() {
            let threads = measured.threads;
            let name = format!("{program}, {threads} thread{}", if threads == 1 { "" } else { "s" });
            let Some(y) = value(measured, idx) else { continue };
            let point = (*x as f64, y);
            match lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { name, points: vec![point] }),
            }
        }
    }
    lines.sort_by_key(|line| program_order(points, &line.name));
    Panel { title: sweep.title.into(), x_label: sweep.x_label.into(), y_label: y_label.into(), lines }
}

/// Ours first, so that its lines are the same in every picture.
fn program_order(points: &[(usize, Measured)], line: &str) -> usize {
    let programs = points.first().map(|(_, measured)| measured.programs.as_slice()).unwrap_or_default();
    programs
        .iter()
        .position(|(program, _)| line.starts_with(&format!("{program}, ")))
        .unwrap_or(programs.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::work::Run;

    fn measured(threads: usize, seconds: f64) -> Measured {
        let run = |seconds: f64| Run { phases: vec![("step", vec![seconds])], ..Run::default() };
        let programs = vec![("reft".into(), vec![run(seconds)]), ("pyreft".into(), vec![run(2.0 * seconds)])];
        Measured { name: "length".into(), threads, batch_size: 1, programs }
    }

    #[test]
    fn there_is_a_line_for_every_program_and_number_of_threads() {
        let points = [
            (128, measured(1, 1.0)),
            (128, measured(2, 0.5)),
            (256, measured(1, 2.0)),
            (256, measured(2, 1.0)),
        ];
        let panel = panel(&SWEEPS[0], &points, "s", |m, program| m.median(program, "step"));
        let names: Vec<&str> = panel.lines.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["reft, 1 thread", "reft, 2 threads", "pyreft, 1 thread", "pyreft, 2 threads"]);
        assert_eq!(panel.lines[1].points, [(128.0, 0.5), (256.0, 1.0)]);
    }
}
