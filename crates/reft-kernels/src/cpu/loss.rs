//! The loss of a language model over its vocabulary.

use rayon::prelude::*;

use super::linear::{Weight, linear, linear_backward};
use super::simd::{Simd, WithSimd, dispatch, exp, map, max, sum};

/// About how many logits exist at a time in one task.
const LOGITS: usize = 1 << 22;

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
    let rows = (LOGITS / vocabulary.max(1)).clamp(64, 256);
    let slices = states.par_chunks(rows * d).zip(labels.par_chunks(rows));
    let parts: Vec<_> = slices
        .map(|(states, labels)| {
            let sizes = [labels.len(), d, vocabulary];
            let mut logits = linear(states, weight, None, sizes);
            let rows = logits.par_chunks_mut(vocabulary).zip(labels);
            let (nll, sums): (Vec<f32>, Vec<f32>) =
                rows.map(|(logits, &label)| dispatch(SoftMax { logits, label: label as usize })).unzip();
            let gradient = with_gradient.then(|| {
                let mut gradient = linear_backward(&logits, weight, sizes);
                for (row, sum) in gradient.chunks_mut(d).zip(sums) {
                    row.iter_mut().for_each(|x| *x /= sum);
                }
                gradient
            });
            (nll, gradient)
        })
        .collect();
    let mut all_nll = Vec::with_capacity(n);
    let mut all_gradients = with_gradient.then(|| Vec::with_capacity(n * d));
    for (nll, gradient) in parts {
        all_nll.extend(nll);
        if let (Some(all), Some(gradient)) = (&mut all_gradients, gradient) {
            all.extend(gradient);
        }
    }
    (all_nll, all_gradients)
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
            map(simd, block, |x| exp(simd, simd.sub_f32s(x, max)));
            total += f64::from(sum(simd, block));
        }
        logits[label] -= total as f32;
        ((total.ln() - f64::from(logit)) as f32, total as f32)
    }
}
