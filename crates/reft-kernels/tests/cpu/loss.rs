//! The loss over a vocabulary, against plain sums in `f64`.

use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_kernels::cpu::linear::Weight;
use reft_kernels::cpu::loss::nll;

fn random(rng: &mut ChaCha8Rng, n: usize, size: f32) -> Vec<f32> {
    (0..n).map(|_| rng.random_range(-size..size)).collect()
}

/// The negative log-likelihood of one row, its gradient, and what its rounding errors go by.
fn exact(state: &[f32], e: &[f64], label: usize) -> (f64, Vec<f64>) {
    let d = state.len();
    let logits: Vec<f64> =
        e.chunks(d).map(|e| e.iter().zip(state).map(|(e, &x)| e * f64::from(x)).sum()).collect();
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|x| (x - max).exp()).sum();
    let mut gradient = vec![0.0; d];
    for (j, (logit, e)) in logits.iter().zip(e.chunks(d)).enumerate() {
        let p = (logit - max).exp() / total - if j == label { 1.0 } else { 0.0 };
        gradient.iter_mut().zip(e).for_each(|(g, e)| *g += p * e);
    }
    (total.ln() + max - logits[label], gradient)
}

fn check(n: usize, d: usize, vocabulary: usize, size: f32) {
    let mut rng = ChaCha8Rng::seed_from_u64((n + d + vocabulary) as u64);
    let states = random(&mut rng, n * d, size);
    let e: Vec<bf16> = random(&mut rng, vocabulary * d, 1.0).into_iter().map(bf16::from_f32).collect();
    let wide: Vec<f32> = e.iter().map(|&x| x.into()).collect();
    let exact_e: Vec<f64> = e.iter().map(|&x| x.into()).collect();
    let labels: Vec<u32> = (0..n).map(|_| rng.random_range(0..vocabulary as u32)).collect();
    for weight in [Weight::F32(&wide), Weight::Bf16(&e)] {
        let (losses, gradient) = nll(&states, weight, &labels, true, [d, vocabulary]);
        let gradient = gradient.expect("a gradient");
        assert_eq!((losses.len(), gradient.len()), (n, n * d));
        for i in 0..n {
            let state = &states[i * d..(i + 1) * d];
            let (loss, exact) = exact(state, &exact_e, labels[i] as usize);
            // A logit is a sum of products that are as large as `size`.
            let tolerance = 2e-6 * (1.0 + loss.abs() + f64::from(size) * (d as f64).sqrt());
            assert!((f64::from(losses[i]) - loss).abs() <= tolerance, "{} is not {loss}", losses[i]);
            for (&x, exact) in gradient[i * d..].iter().zip(exact) {
                assert!((f64::from(x) - exact).abs() <= 2.0 * tolerance, "{x} is not {exact}");
            }
        }
        let (alone, none) = nll(&states, weight, &labels, false, [d, vocabulary]);
        assert!(alone == losses && none.is_none());
    }
}

#[test]
fn losses_and_gradients_are_exact() {
    for (n, d, vocabulary) in [
        (0, 3, 5),
        (1, 1, 1),
        (1, 3, 17),
        (5, 17, 300),
        (16, 192, 1000),
        (17, 192, 33),
        (300, 17, 1027),
        (70, 3, 70_000),
        (3, 64, 20_000),
    ] {
        check(n, d, vocabulary, 1.0);
    }
    check(300, 33, 517, 8.0);
}

#[test]
fn large_logits_have_the_right_limits() {
    let e = [1.0, -1.0, 0.0];
    let (losses, gradient) = nll(&[1e4, -1e4, 1e4], Weight::F32(&e), &[0, 0, 2], true, [1, 3]);
    assert_eq!(losses, [0.0, 2e4, 1e4]);
    assert_eq!(gradient, Some(vec![0.0, -2.0, 1.0]));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let (n, d, vocabulary) = (300, 64, 50_000);
    let states = random(&mut rng, n * d, 1.0);
    let e = random(&mut rng, vocabulary * d, 1.0);
    let labels: Vec<u32> = (0..n).map(|_| rng.random_range(0..vocabulary as u32)).collect();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = pool.expect("a pool of threads");
        pool.install(|| nll(&states, Weight::F32(&e), &labels, true, [d, vocabulary]))
    };
    let one = run(1);
    assert!(run(2) == one && run(3) == one);
}
