use super::{medians, numbers};
use reft_kernels::cpu::{activation, linear::Weight, loss, norm, rotary};
use std::hint::black_box;

/// Nanoseconds per number of 4,096 rows.
pub fn elementwise() {
    let (n, d) = (4096, 576);
    let (x, g) = (numbers(n * d), numbers(d));
    let angles = numbers(256 * 32);
    let mut rotated = x.clone();
    let names =
        ["copy", "rms_norm", "its backward", "layer_norm", "its backward", "swiglu", "gelu", "rotary"];
    let seconds = medians(&mut [
        &mut || {
            black_box(x.clone());
        },
        &mut || {
            black_box(norm::rms_norm(&x, &g, 1e-5, d));
        },
        &mut || {
            black_box(norm::rms_norm_backward(&x, &g, 1e-5, x.clone(), d));
        },
        &mut || {
            black_box(norm::layer_norm(&x, &g, &g, 1e-5, d));
        },
        &mut || {
            black_box(norm::layer_norm_backward(&x, &g, 1e-5, x.clone(), d));
        },
        &mut || {
            black_box(activation::swiglu(&x, &x));
        },
        &mut || {
            black_box(activation::gelu(&x));
        },
        &mut || rotary::rotary(&mut rotated, &angles, &angles, [9, 64], false),
    ]);
    for (name, seconds) in names.into_iter().zip(seconds) {
        println!("{name:14} {:6.3} ns", seconds * 1e9 / (n * d) as f64);
    }
}

/// Milliseconds of the loss of 512 rows and of its gradient.
pub fn nll() {
    let n = 512;
    for (d, vocabulary) in [(192, 4096), (576, 49_152)] {
        let (states, embedding) = (numbers(n * d), numbers(vocabulary * d));
        let labels: Vec<u32> = (0..n as u32).collect();
        let run = |with_gradient| {
            let weight = Weight::F32(&embedding);
            black_box(loss::nll(&states, weight, &labels, with_gradient, [d, vocabulary]));
        };
        let seconds = medians(&mut [&mut || run(false), &mut || run(true)]);
        println!(
            "{d:4} x {vocabulary:5} | value {:7.2} ms | value and gradient {:7.2} ms",
            seconds[0] * 1e3,
            seconds[1] * 1e3
        );
    }
}
