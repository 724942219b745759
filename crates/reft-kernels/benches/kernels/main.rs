//! Times of the kernels for the CPU.
//!
//! ```sh
//! cargo bench -p reft-kernels                                          # everything
//! RAYON_NUM_THREADS=1 cargo bench -p reft-kernels -- attention nll     # some, with one thread
//! ```

#![allow(clippy::print_stdout, reason = "a benchmark prints")]

mod attention;
mod elementwise;
mod linear;

use std::time::{Duration, Instant};

const BENCHMARKS: [(&str, fn()); 5] = [
    ("attention", attention::attention),
    ("few-rows", linear::few_rows),
    ("many-rows", linear::many_rows),
    ("elementwise", elementwise::elementwise),
    ("nll", elementwise::nll),
];

fn main() {
    // Cargo adds an option of its own.
    let names: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    println!("{} threads", rayon::current_num_threads());
    for (name, run) in BENCHMARKS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            println!("\n{name}");
            run();
        }
    }
}

/// Some numbers from −0.5 to 0.5.
fn numbers(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect()
}

/// The median times of some functions in seconds. The functions take turns.
fn medians(functions: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    const LIMIT: Duration = Duration::from_millis(400);
    let mut times = vec![Vec::new(); functions.len()];
    let start = Instant::now();
    while times[0].len() < 3 || start.elapsed() < LIMIT {
        for (times, function) in times.iter_mut().zip(&mut *functions) {
            let start = Instant::now();
            function();
            times.push(start.elapsed().as_secs_f64());
        }
    }
    let median = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    times.into_iter().map(median).collect()
}
