//! The loss of a language model over its vocabulary.

use rayon::prelude::*;

use super::linear::{Product, Weight};
use super::simd::{Simd, WithSimd, dispatch, exp, map, max, sum};

/// How many rows have logits at a time in each thread. Fewer rows take more time, because each slice
/// reads the whole matrix; more take memory only.
pub(super) const ROWS: usize = 128;

/// Negative log-likelihoods of labels, `nll = ln Σⱼ e^(logitⱼ) − logit_label` for each row, with
/// `logits = states Eᵀ`, and the gradient of each row by its state, `softmax(logits) E − E_label`.
///
/// `states: [n, d]`, `weight` is `E: [vocabulary, d]`, `labels: [n]`; returns `nll: [n]` and, if
/// asked for, the gradient `[n, d]`. The logits never exist for all rows at once.
pub fn nll(
    states: &[f32],
    weight: Weight,
    labels: &[u32],
    with_gradient: bool,
    [d, vocabulary]: [usize; 2],
) -> (Vec<f32>, Option<Vec<f32>>) {
    let n = labels.len();
    assert_eq!(states.len(), n * d, "states has the shape [n, d]");
    assert!(labels.iter().all(|&label| (label as usize) < vocabulary), "labels are in the vocabulary");
    let slices = states.par_chunks((ROWS * d).max(1)).zip(labels.par_chunks(ROWS));
    let parts: Vec<Slice> = slices
        .map(|(states, labels)| Slice::new(states, weight, labels, with_gradient, [d, vocabulary], n > ROWS))
        .collect();
    let mut nll = Vec::with_capacity(n);
    let mut gradient = with_gradient.then(|| Vec::with_capacity(n * d));
    for part in parts {
        nll.extend(part.nll);
        if let (Some(gradient), Some(part)) = (&mut gradient, part.gradient) {
            gradient.extend(part);
        }
    }
    (nll, gradient)
}

/// The results of [`nll`] for some rows.
struct Slice {
    nll: Vec<f32>,
    gradient: Option<Vec<f32>>,
}

impl Slice {
    /// Computes the results, in this thread alone if other threads have slices of their own.
    fn new(
        states: &[f32],
        weight: Weight,
        labels: &[u32],
        with_gradient: bool,
        [d, vocabulary]: [usize; 2],
        alone: bool,
    ) -> Self {
        let sizes = [labels.len(), d, vocabulary];
        let run = |product: Product| {
            let product = if alone { product.in_one_thread() } else { product };
            product.new_vec()
        };
        let mut logits = run(Product::forward(states, weight, None, sizes));
        let least = if alone { labels.len() } else { 1 };
        let rows = logits.par_chunks_mut(vocabulary).zip(labels).with_min_len(least);
        let (nll, sums): (Vec<f32>, Vec<f32>) =
            rows.map(|(logits, &label)| dispatch(SoftMax { logits, label: label as usize })).unzip();
        let gradient = with_gradient.then(|| {
            let mut gradient = run(Product::backward(&logits, weight, sizes));
            for (row, sum) in gradient.chunks_mut(d.max(1)).zip(sums) {
                row.iter_mut().for_each(|x| *x /= sum);
            }
            gradient
        });
        Self { nll, gradient }
    }
}

/// The negative log-likelihood of a label, and the sum of `e^(logit − max)`.
///
/// The logits become the gradient by the logits times that sum: `e^(logit − max)`, from which the
/// sum is subtracted at the label.
struct SoftMax<'a> {
    logits: &'a mut [f32],
    label: usize,
}

impl WithSimd for SoftMax<'_> {
    type Output = (f32, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (f32, f32) {
        /// How many numbers are added up in f32.
        const BLOCK: usize = 1024;
        let Self { logits, label } = self;
        let max = max(simd, logits);
        let logit = logits[label] - max;
        let max = simd.splat_f32s(max);
        let mut total = 0.0;
        for block in logits.chunks_mut(BLOCK) {
            map(
                simd,
                block,
                #[inline(always)]
                |x| exp(simd, simd.sub_f32s(x, max)),
            );
            total += f64::from(sum(simd, block));
        }
        logits[label] -= total as f32;
        ((total.ln() - f64::from(logit)) as f32, total as f32)
    }
}
