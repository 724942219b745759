//! Normalization, activation functions and rotary embedding, against formulas in `f64`.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_kernels::cpu::activation::{gelu, gelu_backward, swiglu, swiglu_backward};
use reft_kernels::cpu::norm::{layer_norm, layer_norm_backward, rms_norm, rms_norm_backward};
use reft_kernels::cpu::rotary::rotary;

const SIZES: [usize; 7] = [1, 3, 17, 192, 576, 1000, 4099];
const ROWS: [usize; 6] = [0, 1, 5, 16, 17, 300];

fn random(rng: &mut ChaCha8Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-size..size)).collect()
}

/// Compares with exact values, by an error relative to a size.
fn assert_close(y: &[f32], exact: &[f64], size: f64, what: &str) {
    assert_eq!(y.len(), exact.len());
    for (&y, exact) in y.iter().zip(exact) {
        let error = (f64::from(y) - exact).abs();
        assert!(error <= 2e-6 * (exact.abs() + size), "{what}: {y}, not {exact}");
    }
}

fn mean(x: impl ExactSizeIterator<Item = f64>) -> f64 {
    let n = x.len() as f64;
    x.sum::<f64>() / n
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

const EPS: f32 = 1e-5;

/// A normalized row, and the gradient of its input.
fn exact_norm(x: &[f32], g: &[f32], b: &[f32], dy: &[f32], layer: bool) -> (Vec<f64>, Vec<f64>) {
    let (mut x, g, b, dy) = (wide(x), wide(g), wide(b), wide(dy));
    if layer {
        let mean = mean(x.iter().copied());
        x.iter_mut().for_each(|x| *x -= mean);
    }
    let r = 1.0 / (mean(x.iter().map(|x| x * x)) + f64::from(EPS)).sqrt();
    let y = (0..x.len()).map(|i| x[i] * r * g[i] + if layer { b[i] } else { 0.0 }).collect();
    let gdy: Vec<f64> = g.iter().zip(&dy).map(|(g, dy)| g * dy).collect();
    let along = mean(x.iter().zip(&gdy).map(|(x, gdy)| x * gdy)) * r * r;
    let center = if layer { mean(gdy.iter().copied()) } else { 0.0 };
    let dx = x.iter().zip(&gdy).map(|(x, gdy)| r * (gdy - center - x * along)).collect();
    (y, dx)
}

#[test]
fn norms_are_exact() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for d in SIZES {
        for n in ROWS {
            let x = random(&mut rng, n * d, 3.0);
            let dy = random(&mut rng, n * d, 1.0);
            let (g, b) = (random(&mut rng, d, 2.0), random(&mut rng, d, 2.0));
            for layer in [false, true] {
                let (mut y, mut dx) = (vec![], vec![]);
                // The largest factor between a gradient and what it is the gradient of.
                let mut scale = 1.0_f64;
                for (x, dy) in x.chunks(d).zip(dy.chunks(d)) {
                    let (row, gradient) = exact_norm(x, &g, &b, dy, layer);
                    scale = gradient.iter().fold(scale, |scale, dx| scale.max(dx.abs()));
                    y.extend(row);
                    dx.extend(gradient);
                }
                let (ours, ours_dx) = if layer {
                    let dx = layer_norm_backward(&x, &g, EPS, dy.clone(), d);
                    (layer_norm(&x, &g, &b, EPS, d), dx)
                } else {
                    (rms_norm(&x, &g, EPS, d), rms_norm_backward(&x, &g, EPS, dy.clone(), d))
                };
                assert_close(&ours, &y, 4.0, &format!("{n} x {d}, layer: {layer}"));
                assert_close(&ours_dx, &dx, 4.0 * scale, &format!("dx, {n} x {d}, layer: {layer}"));
            }
        }
    }
}

/// `Φ(x)` by the power series or the continued fraction of the error function.
fn normal(x: f64) -> f64 {
    let z = x.abs() / 2.0_f64.sqrt();
    let upper = if z < 3.0 {
        let (mut term, mut sum) = (z, z);
        for n in 1..100 {
            term *= -z * z / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        0.5 - sum / std::f64::consts::PI.sqrt()
    } else {
        let fraction = (1..60).rev().fold(z, |f, n| z + f64::from(n) / 2.0 / f);
        (-z * z).exp() / fraction / std::f64::consts::PI.sqrt() / 2.0
    };
    if x < 0.0 { upper } else { 1.0 - upper }
}

fn exact_gelu(x: f64) -> (f64, f64) {
    let density = (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
    (x * normal(x), normal(x) + x * density)
}

fn exact_silu(x: f64) -> (f64, f64) {
    let s = 1.0 / (1.0 + (-x).exp());
    (x * s, s * (1.0 + x * (1.0 - s)))
}

#[test]
fn activations_are_exact() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for n in [0, 1, 3, 17, 192, 1000, 70_001] {
        for size in [1.0, 30.0] {
            let mut x = random(&mut rng, n, size);
            for (x, extreme) in x.iter_mut().skip(2).zip([0.0, -0.0, 88.5, -88.5, 1e4, -1e4]) {
                *x = extreme;
            }
            let up = random(&mut rng, n, 2.0);
            let grad = random(&mut rng, n, 2.0);
            let exact = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
                (0..n).map(|i| f(x[i].into(), up[i].into(), grad[i].into())).collect()
            };
            let y = exact(&|x, up, _| exact_silu(x).0 * up);
            let dgate = exact(&|x, up, grad| exact_silu(x).1 * up * grad);
            let dup = exact(&|x, _, grad| exact_silu(x).0 * grad);
            assert_close(&swiglu(&x, &up), &y, 1e-30, "swiglu");
            let (ours_dgate, ours_dup) = swiglu_backward(x.clone(), up.clone(), &grad);
            assert_close(&ours_dgate, &dgate, 1.0, "dgate");
            assert_close(&ours_dup, &dup, 1e-30, "dup");
            let y = exact(&|x, _, _| exact_gelu(x).0);
            let dx = exact(&|x, _, grad| exact_gelu(x).1 * grad);
            assert_close(&gelu(&x), &y, 1.0, "gelu");
            assert_close(&gelu_backward(&x, grad.clone()), &dx, 1.0, "dgelu");
        }
    }
}

#[test]
fn activations_have_the_right_limits() {
    let x = [1e4, -1e4];
    assert_eq!(swiglu(&x, &[2.0, 2.0]), [2e4, 0.0]);
    let (dgate, dup) = swiglu_backward(x.to_vec(), vec![2.0, 2.0], &[3.0, 3.0]);
    assert_eq!((dgate, dup), (vec![6.0, 0.0], vec![3e4, 0.0]));
    assert_eq!(gelu(&x), [1e4, 0.0]);
    assert_eq!(gelu_backward(&x, vec![3.0, 3.0]), [3.0, 0.0]);
}

#[test]
fn rotations_are_exact_and_have_an_inverse() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for (heads, dim) in [(1, 2), (3, 6), (2, 34), (3, 64), (9, 64), (1, 128)] {
        for n in ROWS {
            for rows in [1, 5, 16] {
                let half = dim / 2;
                let x = random(&mut rng, n * heads * dim, 2.0);
                let angles = random(&mut rng, rows * half, 3.0);
                let cos: Vec<f32> = angles.iter().map(|x| x.cos()).collect();
                let sin: Vec<f32> = angles.iter().map(|x| x.sin()).collect();
                let exact: Vec<f64> = (0..x.len())
                    .map(|i| {
                        let (row, j) = (i / (heads * dim), i % dim);
                        let table = row % rows * half + j % half;
                        let (cos, sin) = (f64::from(cos[table]), f64::from(sin[table]));
                        let x = |i: usize| f64::from(x[i]);
                        if j < half { x(i) * cos - x(i + half) * sin } else { x(i) * cos + x(i - half) * sin }
                    })
                    .collect();
                let mut y = x.clone();
                rotary(&mut y, &cos, &sin, [heads, dim], false);
                assert_close(&y, &exact, 1.0, "rotary");
                rotary(&mut y, &cos, &sin, [heads, dim], true);
                let x: Vec<f64> = x.iter().map(|&x| x.into()).collect();
                assert_close(&y, &x, 1.0, "inverse");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let (n, d) = (1100, 192);
    let x = random(&mut rng, n * d, 2.0);
    let dy = random(&mut rng, n * d, 2.0);
    let g = random(&mut rng, d, 2.0);
    let tables = random(&mut rng, 17 * 32, 1.0);
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool of threads").install(|| {
            let mut rotated = x.clone();
            rotary(&mut rotated, &tables, &tables, [3, 64], false);
            let (dgate, dup) = swiglu_backward(x.clone(), x.clone(), &dy);
            [
                rms_norm(&x, &g, EPS, d),
                rms_norm_backward(&x, &g, EPS, dy.clone(), d),
                layer_norm(&x, &g, &g, EPS, d),
                layer_norm_backward(&x, &g, EPS, dy.clone(), d),
                swiglu(&x, &dy),
                dgate,
                dup,
                gelu(&x),
                gelu_backward(&x, dy.clone()),
                rotated,
            ]
        })
    };
    let one = run(1);
    assert!(run(2) == one && run(3) == one);
}
