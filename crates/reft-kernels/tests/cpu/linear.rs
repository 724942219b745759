//! The products with the matrix of a linear map, against plain sums in `f64`.

use half::{bf16, f16};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_kernels::cpu::linear::{Weight, linear, linear_backward};

fn random(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
}

/// A matrix in one of the forms that it is stored in.
struct Stored {
    f32: Vec<f32>,
    bf16: Vec<bf16>,
    f16: Vec<f16>,
    int8: Vec<i8>,
    int4: Vec<u8>,
    scales: Vec<f32>,
    block: usize,
}

impl Stored {
    fn random(rng: &mut ChaCha8Rng, d_in: usize, d_out: usize, block: usize) -> Self {
        let n = d_in * d_out;
        let f32 = random(rng, n);
        Self {
            bf16: f32.iter().map(|&x| bf16::from_f32(x)).collect(),
            f16: f32.iter().map(|&x| f16::from_f32(x)).collect(),
            int8: (0..n).map(|_| rng.random()).collect(),
            int4: (0..n / 2).map(|_| rng.random()).collect(),
            scales: random(rng, n / block),
            f32,
            block,
        }
    }

    /// All forms that can hold the matrix, with the weights in `f64`.
    fn forms(&self, d_in: usize) -> Vec<(&'static str, Weight<'_>, Vec<f64>)> {
        let Self { f32, bf16, f16, int8, int4, scales, block } = self;
        let block = *block;
        let mut forms = vec![
            ("f32", Weight::F32(f32), f32.iter().map(|&x| x.into()).collect::<Vec<f64>>()),
            ("bf16", Weight::Bf16(bf16), bf16.iter().map(|&x| x.into()).collect()),
            ("f16", Weight::F16(f16), f16.iter().map(|&x| x.into()).collect()),
        ];
        if d_in.is_multiple_of(block) {
            let scaled = |(i, q): (usize, i8)| f64::from(q) * f64::from(scales[i / block]);
            let weights = int8.iter().copied().enumerate().map(scaled).collect();
            forms.push(("int8", Weight::Int8 { values: int8, scales, block }, weights));
            let halves = int4.iter().flat_map(|&b| [((b & 15) ^ 8) as i8 - 8, ((b >> 4) ^ 8) as i8 - 8]);
            let weights = halves.enumerate().map(scaled).collect();
            forms.push(("int4", Weight::Int4 { packed: int4, scales, block }, weights));
        }
        forms
    }
}

/// `a [n, k] · b [k, m]`, with the sums of the sizes of what is added.
fn product(a: &[f32], b: impl Fn(usize, usize) -> f64, [n, k, m]: [usize; 3]) -> Vec<(f64, f64)> {
    let mut y = vec![(0.0, 0.0); n * m];
    for i in 0..n {
        for j in 0..m {
            for l in 0..k {
                let term = f64::from(a[i * k + l]) * b(l, j);
                y[i * m + j].0 += term;
                y[i * m + j].1 += term.abs();
            }
        }
    }
    y
}

fn assert_close(y: &[f32], exact: &[(f64, f64)], what: &str) {
    assert_eq!(y.len(), exact.len());
    for (&y, (exact, size)) in y.iter().zip(exact) {
        let error = (f64::from(y) - exact).abs();
        assert!(error <= 2e-6 * size, "{what}: {y}, not {exact}");
    }
}

const SIZES: [(usize, usize, usize); 17] = [
    (1, 1, 16),
    (3, 17, 16),
    (17, 3, 16),
    (192, 192, 64),
    (64, 37, 32),
    (33, 300, 16),
    (576, 50, 64),
    (1, 576, 16),
    (16, 1, 16),
    (48, 5, 16),
    (2048, 67, 32),
    (1100, 3, 16),
    (5, 1100, 16),
    (1088, 200, 64),
    (200, 1088, 16),
    (128, 0, 64),
    (0, 3, 16),
];

fn rows(size: usize) -> &'static [usize] {
    if size < 40_000 { &[0, 1, 2, 5, 15, 16, 17, 33, 300] } else { &[1, 7, 16, 17, 40, 257] }
}

#[test]
fn products_are_exact() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (d_in, d_out, block) in SIZES {
        let stored = Stored::random(&mut rng, d_in, d_out, block);
        let bias = random(&mut rng, d_out);
        for &n in rows(d_in * d_out) {
            let sizes = [n, d_in, d_out];
            let x = random(&mut rng, n * d_in);
            let grad = random(&mut rng, n * d_out);
            for (name, weight, w) in stored.forms(d_in) {
                let what = format!("{name} {n} x {d_in} -> {d_out}");
                let y = product(&x, |l, j| w[j * d_in + l], sizes);
                assert_close(&linear(&x, weight, None, sizes), &y, &what);
                let with_bias: Vec<_> = (y.iter().enumerate())
                    .map(|(i, (y, size))| {
                        let bias = f64::from(bias[i % d_out]);
                        (y + bias, size + bias.abs())
                    })
                    .collect();
                assert_close(&linear(&x, weight, Some(&bias), sizes), &with_bias, &what);

                let dx = product(&grad, |l, j| w[l * d_in + j], [n, d_out, d_in]);
                assert_close(&linear_backward(&grad, weight, sizes), &dx, &what);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (n, d_in, d_out) in [(1, 1536, 576), (7, 1088, 700), (16, 576, 576), (40, 576, 600), (700, 192, 512)]
    {
        let stored = Stored::random(&mut rng, d_in, d_out, 64);
        let sizes = [n, d_in, d_out];
        let x = random(&mut rng, n * d_in);
        let grad = random(&mut rng, n * d_out);
        let bias = random(&mut rng, d_out);
        for (name, weight, _) in stored.forms(d_in) {
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.expect("a pool of threads").install(|| {
                    (linear(&x, weight, Some(&bias), sizes), linear_backward(&grad, weight, sizes))
                })
            };
            let one = run(1);
            for threads in [2, 3] {
                assert!(run(threads) == one, "{name} {n}");
            }
        }
    }
}

#[test]
fn all_f16_and_bf16_are_widened_exactly() {
    let x: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let y = linear(&[1.0], Weight::F16(&x), None, [1, 1, x.len()]);
    for (x, y) in x.iter().zip(y) {
        assert!(x.to_f32() == y || x.is_nan() && y.is_nan(), "{x} is not {y}");
    }
    let x: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let y = linear(&[1.0], Weight::Bf16(&x), None, [1, 1, x.len()]);
    for (x, y) in x.iter().zip(y) {
        assert!(x.to_f32() == y || x.is_nan() && y.is_nan(), "{x} is not {y}");
    }
}
