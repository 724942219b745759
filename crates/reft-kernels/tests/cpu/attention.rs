//! Attention against a plain computation in f64.

#![allow(clippy::single_range_in_vec_init, reason = "segments often have one range of keys")]

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_kernels::{
    Heads, Mask, Segment,
    cpu::attention::{Dropout, Inputs, attention, attention_backward},
};

const CAUSAL: Mask = Mask { causal: true, window: None };
const FULL: Mask = Mask { causal: false, window: None };

/// The arguments of a call, with the past and the new keys in one matrix.
struct Case {
    name: String,
    heads: Heads,
    n_past: usize,
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    grad: Vec<f32>,
    scale: f32,
    segments: Vec<Segment>,
    mask: Mask,
    dropout: Option<Dropout>,
}

impl Case {
    fn new(
        name: &str,
        heads: Heads,
        [n_queries, n_past, n_new]: [usize; 3],
        segments: Vec<Segment>,
        mask: Mask,
        random: &mut ChaCha8Rng,
    ) -> Self {
        let mut numbers =
            |n: usize, size: f32| -> Vec<f32> { (0..n).map(|_| random.random_range(-size..size)).collect() };
        let key_size = heads.keys * heads.dim;
        let query_size = heads.queries * heads.dim;
        Self {
            name: format!("{name} {heads:?} {segments:?}"),
            heads,
            n_past,
            queries: numbers(n_queries * query_size, 3.0),
            keys: numbers((n_past + n_new) * key_size, 2.0),
            values: numbers((n_past + n_new) * key_size, 1.0),
            grad: numbers(n_queries * query_size, 1.0),
            scale: 1.0 / (heads.dim as f32).sqrt(),
            segments,
            mask,
            dropout: None,
        }
    }

    fn inputs(&self) -> Inputs<'_> {
        let past = self.n_past * self.heads.keys * self.heads.dim;
        Inputs {
            queries: &self.queries,
            keys: &self.keys[past..],
            values: &self.values[past..],
            past: (past > 0).then(|| (&self.keys[..past], &self.values[..past])),
            heads: self.heads,
            scale: self.scale,
        }
    }

    /// Output and logarithms.
    fn forward(&self) -> (Vec<f32>, Vec<f32>) {
        let mut lse = vec![7.0; self.queries.len() / self.heads.dim];
        let output = attention(self.inputs(), &self.segments, self.mask, self.dropout, Some(&mut lse));
        (output, lse)
    }

    fn backward(&self, output: &[f32], lse: &[f32]) -> [Vec<f32>; 3] {
        let (dq, dk, dv) = attention_backward(
            self.inputs(),
            &self.segments,
            self.mask,
            self.dropout,
            output,
            lse,
            &self.grad,
        );
        [dq, dk, dv]
    }

    fn exact(&self) -> Exact<'_> {
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect();
        Exact { case: self, queries: wide(&self.queries), keys: wide(&self.keys), values: wide(&self.values) }
    }

    /// Compares outputs and gradients with the plain computation.
    fn check(&self) {
        let exact = self.exact();
        let (output, lse) = self.forward();
        let (exact_output, exact_lse) = exact.forward();
        assert_close(&self.name, "output", &output, &exact_output, 2e-6);
        for (&x, &y) in lse.iter().zip(&exact_lse) {
            let close = (f64::from(x) - y).abs() <= 2e-6 * y.abs().max(1.0);
            assert!(close || f64::from(x) == y, "{}: lse {x} and not {y}", self.name);
        }
        let past = self.n_past * self.heads.keys * self.heads.dim;
        let [dq, dk, dv] = self.backward(&output, &lse);
        let [exact_dq, exact_dk, exact_dv] = exact.backward();
        assert_close(&self.name, "dq", &dq, &exact_dq, 1e-5);
        assert_close(&self.name, "dk", &dk, &exact_dk[past..], 1e-5);
        assert_close(&self.name, "dv", &dv, &exact_dv[past..], 1e-5);
    }
}

/// Checks the largest error relative to the largest number, or to 0.1 if all are smaller.
fn assert_close(case: &str, name: &str, x: &[f32], exact: &[f64], tolerance: f64) {
    assert_eq!(x.len(), exact.len(), "{name} of {case}");
    let size = exact.iter().fold(0.1, |max: f64, x| max.max(x.abs()));
    for (index, (&x, &y)) in x.iter().zip(exact).enumerate() {
        let error = (f64::from(x) - y).abs();
        assert!(
            error <= tolerance * size,
            "{name}[{index}] is {x} and not {y}, {} of {size}: {case}",
            error / size,
        );
    }
}

/// Attention one number at a time.
struct Exact<'a> {
    case: &'a Case,
    queries: Vec<f64>,
    keys: Vec<f64>,
    values: Vec<f64>,
}

impl Exact<'_> {
    /// Calls a function with the row of each query, its head, the rows of the keys that it sees,
    /// and the factors that dropout gives the weights of these.
    fn for_each(&self, mut f: impl FnMut(usize, usize, &[usize], &[f64])) {
        let case = self.case;
        for segment in &case.segments {
            let rows: Vec<usize> = segment.keys.iter().cloned().flatten().collect();
            for (index, query) in segment.queries.clone().enumerate() {
                let mut seen = 0..rows.len();
                if case.mask.causal {
                    seen.end = seen.end.min(segment.offset + index + 1);
                    if let Some(window) = case.mask.window {
                        let start = (segment.offset + index + 1).saturating_sub(window);
                        seen.start = start.min(seen.end);
                    }
                }
                for head in 0..case.heads.queries {
                    let factor = |position: usize| match case.dropout {
                        None => 1.0,
                        Some(dropout) if dropout.keeps(query, head, position) => {
                            1.0 / (1.0 - f64::from(dropout.rate))
                        }
                        Some(_) => 0.0,
                    };
                    let factors: Vec<f64> = seen.clone().map(factor).collect();
                    f(query, head, &rows[seen.clone()], &factors);
                }
            }
        }
    }

    fn query(&self, query: usize, head: usize) -> usize {
        (query * self.case.heads.queries + head) * self.case.heads.dim
    }

    fn key(&self, row: usize, head: usize) -> usize {
        let heads = self.case.heads;
        (row * heads.keys + head / (heads.queries / heads.keys)) * heads.dim
    }

    /// The weights of the keys before dropout, and the logarithm of the sum.
    fn weights(&self, query: usize, head: usize, rows: &[usize]) -> (Vec<f64>, f64) {
        let dim = self.case.heads.dim;
        let q = &self.queries[self.query(query, head)..][..dim];
        let score = |&row: &usize| {
            let k = &self.keys[self.key(row, head)..][..dim];
            dot(q, k) * f64::from(self.case.scale)
        };
        let scores: Vec<f64> = rows.iter().map(score).collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let lse = if rows.is_empty() { f64::NEG_INFINITY } else { max + sum.ln() };
        (scores.iter().map(|s| (s - lse).exp()).collect(), lse)
    }

    fn forward(&self) -> (Vec<f64>, Vec<f64>) {
        let dim = self.case.heads.dim;
        let mut output = vec![0.0; self.queries.len()];
        let mut all_lse = vec![f64::NEG_INFINITY; self.queries.len() / dim];
        self.for_each(|query, head, rows, factors| {
            let (weights, lse) = self.weights(query, head, rows);
            let at = self.query(query, head);
            all_lse[at / dim] = lse;
            for ((&row, weight), factor) in rows.iter().zip(weights).zip(factors) {
                let v = &self.values[self.key(row, head)..][..dim];
                add(&mut output[at..][..dim], weight * factor, v);
            }
        });
        (output, all_lse)
    }

    fn backward(&self) -> [Vec<f64>; 3] {
        let dim = self.case.heads.dim;
        let scale = f64::from(self.case.scale);
        let mut dq = vec![0.0; self.queries.len()];
        let mut dk = vec![0.0; self.keys.len()];
        let mut dv = vec![0.0; self.values.len()];
        self.for_each(|query, head, rows, factors| {
            let (weights, _) = self.weights(query, head, rows);
            let at = self.query(query, head);
            let q = &self.queries[at..][..dim];
            let grad: Vec<f64> = self.case.grad[at..][..dim].iter().map(|&x| x.into()).collect();
            let d_weight = |(&row, factor): (&usize, &f64)| {
                factor * dot(&grad, &self.values[self.key(row, head)..][..dim])
            };
            let d_weights: Vec<f64> = rows.iter().zip(factors).map(d_weight).collect();
            let mean = dot(&weights, &d_weights);
            for (index, &row) in rows.iter().enumerate() {
                let place = self.key(row, head);
                let d_score = weights[index] * (d_weights[index] - mean) * scale;
                add(&mut dv[place..][..dim], weights[index] * factors[index], &grad);
                add(&mut dk[place..][..dim], d_score, q);
                add(&mut dq[at..][..dim], d_score, &self.keys[place..][..dim]);
            }
        });
        [dq, dk, dv]
    }

    /// The product of the output and its gradient.
    fn loss(&self) -> f64 {
        let (output, _) = self.forward();
        output.iter().zip(&self.case.grad).map(|(x, &g)| x * f64::from(g)).sum()
    }
}

fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

fn add(y: &mut [f64], a: f64, x: &[f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

fn segment(queries: std::ops::Range<usize>, keys: &[std::ops::Range<usize>], offset: usize) -> Segment {
    Segment { queries, keys: keys.to_vec(), offset }
}

fn heads(random: &mut ChaCha8Rng) -> Heads {
    const HEADS: [(usize, usize); 6] = [(1, 1), (3, 1), (4, 2), (3, 3), (6, 2), (10, 1)];
    const DIMS: [usize; 8] = [1, 6, 16, 32, 33, 64, 80, 128];
    let (queries, keys) = HEADS[random.random_range(0..HEADS.len())];
    Heads { queries, keys, dim: DIMS[random.random_range(0..DIMS.len())] }
}

/// Rows of queries that are the keys as well, one after the other.
fn rows(random: &mut ChaCha8Rng, n_rows: usize, longest: usize) -> (usize, Vec<Segment>) {
    let mut start = 0;
    let mut segments = Vec::new();
    for _ in 0..n_rows {
        // Padding before the row is in no segment.
        start += random.random_range(0..5);
        let end = start + random.random_range(1..=longest);
        segments.push(segment(start..end, &[start..end], 0));
        start = end;
    }
    (start + random.random_range(0..3), segments)
}

#[test]
fn rows_of_any_length() {
    let random = &mut ChaCha8Rng::seed_from_u64(1);
    for index in 0..40 {
        let (n, segments) = rows(random, 1 + index % 4, if index < 30 { 200 } else { 12 });
        for mask in [CAUSAL, FULL] {
            let heads = heads(random);
            Case::new("rows", heads, [n, 0, n], segments.clone(), mask, random).check();
        }
    }
}

#[test]
fn windows() {
    let random = &mut ChaCha8Rng::seed_from_u64(2);
    for window in [1, 2, 7, 63, 64, 65, 100, 1000] {
        let (n, segments) = rows(random, 2, 200);
        let mask = Mask { causal: true, window: Some(window) };
        let heads = heads(random);
        Case::new("window", heads, [n, 0, n], segments, mask, random).check();
    }
}

#[test]
fn trees_of_shared_prefixes() {
    let random = &mut ChaCha8Rng::seed_from_u64(3);
    for index in 0..20 {
        let longest = if index % 2 == 0 { 100 } else { 9 };
        let mut length = || random.random_range(1..=longest);
        let mut segments = Vec::new();
        let mut start = 0;
        for _ in 0..2 {
            let prefix = start..start + length();
            segments.push(segment(prefix.clone(), std::slice::from_ref(&prefix), 0));
            start = prefix.end;
            for _ in 0..3 {
                let branch = start..start + length();
                let keys = [prefix.clone(), branch.clone()];
                segments.push(segment(branch.clone(), &keys, prefix.len()));
                start = branch.end;
                for _ in 0..2 {
                    let leaf = start..start + length();
                    let keys = [prefix.clone(), branch.clone(), leaf.clone()];
                    let offset = prefix.len() + branch.len();
                    segments.push(segment(leaf.clone(), &keys, offset));
                    start = leaf.end;
                }
            }
        }
        let window = (index % 3 == 0).then_some(longest);
        let mask = Mask { causal: true, window };
        let heads = heads(random);
        Case::new("tree", heads, [start, 0, start], segments, mask, random).check();
    }
}

#[test]
fn a_prefix_of_many_rows() {
    let random = &mut ChaCha8Rng::seed_from_u64(4);
    let mut segments = vec![segment(0..300, &[0..300], 0)];
    for row in 0..16 {
        let own = 300 + row * 70..300 + row * 70 + 70;
        segments.push(segment(own.clone(), &[0..300, own], 300));
    }
    let n = 300 + 16 * 70;
    let heads = Heads { queries: 6, keys: 2, dim: 32 };
    Case::new("many rows", heads, [n, 0, n], segments, CAUSAL, random).check();
}

#[test]
fn past_keys_with_gaps() {
    let random = &mut ChaCha8Rng::seed_from_u64(5);
    for index in 0..30 {
        let n_past = random.random_range(0..300);
        let n_rows = random.random_range(1..5);
        let longest = if index % 2 == 0 { 1 } else { 90 };
        let mut segments = Vec::new();
        let mut start = 0;
        for _ in 0..n_rows {
            let queries = start..start + random.random_range(1..=longest);
            // Some runs of past rows, the last of which may go on to the new rows, and the row's
            // own keys.
            let mut keys = Vec::new();
            let mut row = 0;
            while row < n_past {
                row += random.random_range(0..20);
                let end = row + random.random_range(0..80);
                keys.push(row.min(n_past)..end.min(n_past + start));
                row = end + 1;
            }
            keys.retain(|rows| rows.start <= rows.end);
            let offset = keys.iter().map(ExactSizeIterator::len).sum();
            keys.push(n_past + queries.start..n_past + queries.end);
            segments.push(segment(queries.clone(), &keys, offset));
            start = queries.end;
        }
        let window = (index % 4 == 0).then_some(50);
        let mask = Mask { causal: true, window };
        let heads = heads(random);
        Case::new("past", heads, [start, n_past, start], segments, mask, random).check();
    }
}

#[test]
fn no_keys() {
    let random = &mut ChaCha8Rng::seed_from_u64(6);
    for heads in [Heads { queries: 4, keys: 2, dim: 8 }, Heads { queries: 12, keys: 1, dim: 8 }] {
        // No keys at all, an empty range, and queries before the first key of their segment.
        let segments = vec![
            segment(0..30, &[], 0),
            segment(30..31, &[4..4], 5),
            segment(31..80, &[0..2, 7..7, 5..9], 0),
        ];
        for mask in [CAUSAL, FULL, Mask { causal: true, window: Some(2) }] {
            Case::new("no keys", heads, [90, 3, 7], segments.clone(), mask, random).check();
        }
        let mask = Mask { causal: true, window: Some(0) };
        let segments = vec![segment(0..20, &[0..20], 0)];
        let case = Case::new("no keys", heads, [20, 0, 20], segments, mask, random);
        let (output, lse) = case.forward();
        assert!(output.iter().all(|&x| x == 0.0));
        assert!(lse.iter().all(|&x| x == f32::NEG_INFINITY));
        for gradient in case.backward(&output, &lse) {
            assert!(gradient.iter().all(|&x| x == 0.0));
        }
    }
    let heads = Heads { queries: 1, keys: 1, dim: 2 };
    let case = Case::new("nothing", heads, [0, 0, 0], vec![], CAUSAL, random);
    let (output, lse) = case.forward();
    assert!(output.is_empty() && case.backward(&output, &lse).iter().all(Vec::is_empty));
}

#[test]
fn dropout_drops_the_same_weights_in_both_directions() {
    let random = &mut ChaCha8Rng::seed_from_u64(7);
    for index in 0..12 {
        let (n, mut segments) = rows(random, 3, if index % 2 == 0 { 150 } else { 2 });
        let first = segments[0].keys[0].clone();
        segments[1].offset = first.len();
        segments[1].keys.insert(0, first);
        let heads = heads(random);
        let mut case = Case::new("dropout", heads, [n, 0, n], segments, CAUSAL, random);
        case.dropout = Some(Dropout { rate: 0.3, seed: index });
        case.check();
        case.dropout = Some(Dropout { rate: 0.0, seed: index });
        let (output, _) = case.forward();
        case.dropout = None;
        assert_eq!(case.forward().0, output);
    }
}

#[test]
fn dropout_drops_as_often_as_it_should() {
    for rate in [0.1, 0.5, 0.9] {
        let dropout = Dropout { rate, seed: 3 };
        let (mut kept, mut both, mut n) = (0.0, [0.0; 4], 0.0);
        for query in 0..100 {
            for head in 0..10 {
                for position in 0..100 {
                    let keeps =
                        |query, head, position| f64::from(u8::from(dropout.keeps(query, head, position)));
                    let this = keeps(query, head, position);
                    kept += this;
                    both[0] += this * keeps(query + 1, head, position);
                    both[1] += this * keeps(query, head + 1, position);
                    both[2] += this * keeps(query, head, position + 1);
                    both[3] += this * keeps(query + 1, head, position + 1);
                    n += 1.0;
                }
            }
        }
        let exact = 1.0 - f64::from(rate);
        assert!((kept / n - exact).abs() < 0.006, "{} and not {exact}", kept / n);
        for both in both {
            assert!((both / n - exact * exact).abs() < 0.008, "{} and not {}", both / n, exact * exact);
        }
    }
}

#[test]
fn the_plain_gradients_are_those_of_finite_differences() {
    let random = &mut ChaCha8Rng::seed_from_u64(8);
    let heads = Heads { queries: 4, keys: 2, dim: 3 };
    let segments = vec![segment(0..4, &[0..4], 0), segment(5..8, &[0..3, 5..8], 3)];
    let mask = Mask { causal: true, window: Some(4) };
    let mut case = Case::new("differences", heads, [8, 0, 8], segments, mask, random);
    for dropout in [None, Some(Dropout { rate: 0.4, seed: 1 })] {
        case.dropout = dropout;
        let gradients = case.exact().backward();
        for (matrix, gradient) in gradients.iter().enumerate() {
            for (index, gradient) in gradient.iter().enumerate() {
                let loss = |step: f64| {
                    let mut exact = case.exact();
                    let matrices = [&mut exact.queries, &mut exact.keys, &mut exact.values];
                    matrices.into_iter().nth(matrix).expect("three matrices")[index] += step;
                    exact.loss()
                };
                let difference = (loss(1e-5) - loss(-1e-5)) / 2e-5;
                assert!((difference - gradient).abs() < 1e-7, "{difference} and not {gradient}");
            }
        }
    }
}

#[test]
fn the_same_bits_on_any_number_of_threads() {
    let random = &mut ChaCha8Rng::seed_from_u64(9);
    let mut segments = vec![segment(0..300, &[0..300], 0)];
    for row in 0..12 {
        let own = 300 + row * 40..300 + row * 40 + 40;
        segments.push(segment(own.clone(), &[0..300, own], 300));
    }
    segments.push(segment(780..980, &[780..980], 0));
    let heads = Heads { queries: 6, keys: 2, dim: 32 };
    let mut case = Case::new("threads", heads, [980, 0, 980], segments, CAUSAL, random);
    for dropout in [None, Some(Dropout { rate: 0.1, seed: 1 })] {
        case.dropout = dropout;
        let results = [1, 2, 3].map(|n| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n).build().expect("threads");
            pool.install(|| {
                let (output, lse) = case.forward();
                let gradients = case.backward(&output, &lse);
                (output, lse, gradients)
            })
        });
        assert!(results[0] == results[1] && results[0] == results[2]);
    }
}

#[test]
fn large_scores_and_numbers_that_are_none() {
    let random = &mut ChaCha8Rng::seed_from_u64(10);
    let heads = Heads { queries: 2, keys: 1, dim: 16 };
    for n in [3, 150] {
        let segments = vec![segment(0..n, &[0..n], 0)];
        let mut case = Case::new("large", heads, [n, 0, n], segments, CAUSAL, random);
        case.queries.iter_mut().for_each(|x| *x *= 1e4);
        let (output, lse) = case.forward();
        assert!(output.iter().chain(&lse).all(|x| x.is_finite()));
        for gradient in case.backward(&output, &lse) {
            assert!(gradient.iter().all(|x| x.is_finite()));
        }
        case.keys[16] = f32::NAN;
        let (output, _) = case.forward();
        // The first query does not see the second key; all others do.
        let (seen, rest) = output.split_at(2 * 16);
        assert!(seen.iter().all(|x| x.is_finite()));
        assert!(rest.iter().all(|x| x.is_nan()));
    }
}
