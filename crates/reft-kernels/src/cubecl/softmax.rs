//! Softmax of scores and of logits: a workgroup for each row.

use super::{
    launch::{Cubes, address_type, empty, own_rows, rows, vector_size},
    reduce::{LOWEST, largest, sum},
};
use burn::tensor::{DType, Shape};
use burn_cubecl::{CubeRuntime, cubecl, tensor::CubeTensor};
use cubecl::prelude::*;

/// The columns of the scores that a query sees: two runs, of which one or both may be empty.
#[derive(CubeType, Clone, Copy)]
pub(super) struct Seen {
    start: usize,
    end: usize,
    second_start: usize,
    second_end: usize,
}

#[cube]
impl Seen {
    /// The columns from `start` to `end`.
    pub(super) fn run(start: usize, end: usize) -> Seen {
        Seen { start, end, second_start: end, second_end: end }
    }

    /// Row `row` of a table `[n, 5]`: start and end of both runs, and the row of `lse` that belongs to the query.
    pub(super) fn of_row<I: Int>(table: &Tensor<I>, row: usize) -> Seen {
        let first = row * table.stride(0);
        Seen {
            start: usize::cast_from(table[first]),
            end: usize::cast_from(table[first + 1]),
            second_start: usize::cast_from(table[first + 2]),
            second_end: usize::cast_from(table[first + 3]),
        }
    }

    pub(super) fn contains(&self, column: usize) -> bool {
        (column >= self.start && column < self.end)
            || (column >= self.second_start && column < self.second_end)
    }
}

/// `m = max s` and `Σ exp(s − m)` over the scores `s` that are seen, of a row of `len` vectors that begins at `first`. Every
/// unit of the workgroup has to call it.
#[cube]
pub(super) fn largest_and_sum<F: Float, N: Size>(
    scores: &Tensor<Vector<F, N>>,
    first: usize,
    len: usize,
    seen: Seen,
    scale: f32,
    #[comptime] units: u32,
) -> (f32, f32) {
    let mut most = f32::new(LOWEST);
    let mut exps = f32::new(0.0);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let vector = Vector::<f32, N>::cast_from(scores[first + i]);
        #[unroll]
        for lane in 0..N::value() {
            if seen.contains(i * N::value() + lane) {
                let score = vector[lane] * scale;
                let more = max(most, score);
                exps = exps * (most - more).exp() + (score - more).exp();
                most = more;
            }
        }
    }
    let all = largest(most, units);
    (all, sum(exps * (most - all).exp(), units))
}

/// Replaces scores `S` by `softmax(scale · S)` over the columns that each query sees, and 0 elsewhere.
///
/// # Shapes
/// - scores `[batch, heads.keys, group · seq, used]`; seen a row per query, as [`Seen`] reads it; lse `[n_queries, heads.queries]`
#[cube(launch_unchecked, address_type = "dynamic")]
fn softmax_kernel<F: Float, I: Int, N: Size>(
    seen: &Tensor<I>,
    scores: &mut Tensor<Vector<F, N>>,
    lse: &mut Tensor<f32>,
    seq: usize,
    scale: f32,
    #[comptime] units: u32,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let heads = lse.shape(1);
    if CUBE_POS >= seen.shape(0) * heads {
        terminate!();
    }
    let (head, i) = (CUBE_POS / seq % heads, CUBE_POS % seq);
    let place = CUBE_POS / seq / heads * seq + i;
    let query = usize::cast_from(seen[place * seen.stride(0) + 4]);
    let seen = Seen::of_row::<I>(seen, place);
    let (row, len) = (CUBE_POS * scores.stride(2) / N::value(), scores.shape(3) / N::value());

    let (largest, sum) = largest_and_sum::<F, N>(scores, row, len, seen, scale, units);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let vector = Vector::<f32, N>::cast_from(scores[row + i]);
        let mut weights = Vector::<f32, N>::new(0.0);
        #[unroll]
        for lane in 0..N::value() {
            if seen.contains(i * N::value() + lane) {
                weights[lane] = (vector[lane] * scale - largest).exp() / sum;
            }
        }
        scores[row + i] = Vector::cast_from(weights);
    }
    if UNIT_POS == 0 && query < lse.shape(0) {
        let mut value = f32::new(0.0);
        if sum > 0.0 {
            value = largest + sum.ln();
        }
        lse[query * lse.stride(0) + head] = value;
    }
}

/// Replaces scores `S` by the weights `P = exp(scale · S − lse)`, and the gradients `∂P` by
/// `grad_scale · P (∂P − Σ P ∂P)`, the gradients of `grad_scale · S`.
///
/// # Shapes
/// - scores, grads `[batch, heads.keys, group · seq, used]`; seen a row per query, as [`Seen`] reads it; lse `[n_queries, heads.queries]`
#[cube(launch_unchecked, address_type = "dynamic")]
fn softmax_backward_kernel<F: Float, I: Int, N: Size>(
    seen: &Tensor<I>,
    lse: &Tensor<f32>,
    scores: &mut Tensor<Vector<F, N>>,
    grads: &mut Tensor<Vector<F, N>>,
    seq: usize,
    scale: f32,
    grad_scale: f32,
    #[comptime] units: u32,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    let heads = lse.shape(1);
    if CUBE_POS >= seen.shape(0) * heads {
        terminate!();
    }
    let (head, i) = (CUBE_POS / seq % heads, CUBE_POS % seq);
    let place = CUBE_POS / seq / heads * seq + i;
    let query = usize::cast_from(seen[place * seen.stride(0) + 4]);
    let seen = Seen::of_row::<I>(seen, place);
    let (row, len) = (CUBE_POS * scores.stride(2) / N::value(), scores.shape(3) / N::value());
    let grad_row = CUBE_POS * grads.stride(2) / N::value();
    let mut row_lse = f32::new(0.0);
    if query < lse.shape(0) {
        row_lse = lse[query * lse.stride(0) + head];
    }

    let mut products = f32::new(0.0);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let vector = Vector::<f32, N>::cast_from(scores[row + i]);
        let grad = Vector::<f32, N>::cast_from(grads[grad_row + i]);
        #[unroll]
        for lane in 0..N::value() {
            if seen.contains(i * N::value() + lane) {
                products += (vector[lane] * scale - row_lse).exp() * grad[lane];
            }
        }
    }
    let along = sum(products, units);
    for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
        let vector = Vector::<f32, N>::cast_from(scores[row + i]);
        let grad = Vector::<f32, N>::cast_from(grads[grad_row + i]);
        let mut weights = Vector::<f32, N>::new(0.0);
        let mut score_grads = Vector::<f32, N>::new(0.0);
        #[unroll]
        for lane in 0..N::value() {
            if seen.contains(i * N::value() + lane) {
                let weight = (vector[lane] * scale - row_lse).exp();
                weights[lane] = weight;
                score_grads[lane] = weight * (grad[lane] - along) * grad_scale;
            }
        }
        scores[row + i] = Vector::cast_from(weights);
        grads[grad_row + i] = Vector::cast_from(score_grads);
    }
}

/// `−log softmax(logits)[label]` of each row; with a gradient, the logits are replaced by it, `softmax(logits) − 1_label`.
///
/// # Shapes
/// - logits `[n, vocab]`; labels, values `[n]`
#[cube(launch_unchecked, address_type = "dynamic")]
fn nll_kernel<F: Float, I: Int, N: Size>(
    labels: &Tensor<I>,
    logits: &mut Tensor<Vector<F, N>>,
    values: &mut Tensor<f32>,
    #[comptime] with_gradient: bool,
    #[comptime] units: u32,
    #[define(F, I)] _dtypes: [StorageType; 2],
) {
    if CUBE_POS >= logits.shape(0) {
        terminate!();
    }
    let label = usize::cast_from(labels[CUBE_POS]);
    let (row, len) = (CUBE_POS * logits.stride(0) / N::value(), logits.shape(1) / N::value());
    let seen = Seen::run(0, logits.shape(1));
    let (largest, sum) = largest_and_sum::<F, N>(logits, row, len, seen, f32::new(1.0), units);
    let (of_label, label_lane) = (label / N::value(), label % N::value());
    // The unit that is about to replace the logit of the label reads it.
    if UNIT_POS as usize == of_label % comptime!(units as usize) {
        let vector = Vector::<f32, N>::cast_from(logits[row + of_label]);
        let mut logit = f32::new(0.0);
        #[unroll]
        for lane in 0..N::value() {
            if lane == label_lane {
                logit = vector[lane];
            }
        }
        values[CUBE_POS] = sum.ln() + (largest - logit);
    }
    if comptime!(with_gradient) {
        for i in range_stepped(UNIT_POS as usize, len, comptime!(units as usize)) {
            let vector = Vector::<f32, N>::cast_from(logits[row + i]);
            let mut grads = Vector::exp(vector - Vector::new(largest)) / Vector::new(sum);
            #[unroll]
            for lane in 0..N::value() {
                if i * N::value() + lane == label {
                    grads[lane] = grads[lane] - 1.0;
                }
            }
            logits[row + i] = Vector::cast_from(grads);
        }
    }
}

/// Replaces scores by their softmax in place, and returns it with its log-sum-exp `[n_queries, heads.queries]`. The scores are
/// multiplied with `scale` first.
///
/// # Shapes
/// - scores, output `[batch, heads.keys, group · seq, used]`; seen `[batch · seq, 5]`
pub(super) fn softmax<R: CubeRuntime>(
    scores: CubeTensor<R>,
    seen: CubeTensor<R>,
    [n_queries, heads]: [usize; 2],
    seq: usize,
    scale: f32,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let scores = own_rows(scores);
    let lse = empty(&scores, Shape::new([n_queries, heads]), DType::F32);
    let size = vector_size(&[&scores]);
    let cubes = Cubes::for_rows(&scores, seen.meta.shape()[0] * heads, scores.meta.shape()[3] / size);
    let dtypes = [scores.dtype.into(), seen.dtype.into()];
    // SAFETY: the kernel stays within the rows and columns of the scores, and checks rows of `lse`.
    unsafe {
        softmax_kernel::launch_unchecked::<R>(
            &scores.client,
            cubes.count,
            cubes.dim,
            address_type(&[&scores, &seen]),
            size,
            seen.into_tensor_arg(),
            scores.clone().into_tensor_arg(),
            lse.clone().into_tensor_arg(),
            seq,
            scale,
            cubes.units,
            dtypes,
        );
    }
    (scores, lse)
}

/// Replaces scores by the weights, and the gradients of these by those of the scores, in place. The scores are multiplied with
/// the first scale, the gradients with the second.
///
/// # Shapes
/// - scores, grads, outputs `[batch, heads.keys, group · seq, used]`; seen `[batch · seq, 5]`; lse `[n_queries, heads.queries]`
pub(super) fn softmax_backward<R: CubeRuntime>(
    scores: CubeTensor<R>,
    grads: CubeTensor<R>,
    seen: CubeTensor<R>,
    lse: CubeTensor<R>,
    seq: usize,
    [scale, grad_scale]: [f32; 2],
) -> [CubeTensor<R>; 2] {
    let (scores, grads, lse) = (own_rows(scores), own_rows(grads), rows(lse));
    let size = vector_size(&[&scores, &grads]);
    let n = seen.meta.shape()[0] * lse.meta.shape()[1];
    let cubes = Cubes::for_rows(&scores, n, scores.meta.shape()[3] / size);
    let dtypes = [scores.dtype.into(), seen.dtype.into()];
    // SAFETY: the kernel stays within the rows and columns of the scores, and checks rows of `lse`.
    unsafe {
        softmax_backward_kernel::launch_unchecked::<R>(
            &scores.client,
            cubes.count,
            cubes.dim,
            address_type(&[&scores, &grads, &seen]),
            size,
            seen.into_tensor_arg(),
            lse.into_tensor_arg(),
            scores.clone().into_tensor_arg(),
            grads.clone().into_tensor_arg(),
            seq,
            scale,
            grad_scale,
            cubes.units,
            dtypes,
        );
    }
    [scores, grads]
}

/// The loss of each row, and its gradients in place of the logits; without a gradient the logits stay as they are. The labels
/// have to be columns.
///
/// # Shapes
/// - logits, gradients `[n, vocab]`; labels, values `[n]`
pub(super) fn nll<R: CubeRuntime>(
    logits: CubeTensor<R>,
    labels: CubeTensor<R>,
    with_gradient: bool,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let logits = own_rows(logits);
    let (n, vocab) = (logits.meta.shape()[0], logits.meta.shape()[1]);
    let values = empty(&logits, Shape::new([n]), DType::F32);
    let size = vector_size(&[&logits]);
    let cubes = Cubes::for_rows(&logits, n, vocab / size);
    let dtypes = [logits.dtype.into(), labels.dtype.into()];
    // SAFETY: the kernel stays within the rows and columns of the logits, and the caller has checked the labels.
    unsafe {
        nll_kernel::launch_unchecked::<R>(
            &logits.client,
            cubes.count,
            cubes.dim,
            address_type(&[&logits]),
            size,
            labels.into_tensor_arg(),
            logits.clone().into_tensor_arg(),
            values.clone().into_tensor_arg(),
            with_gradient,
            cubes.units,
            dtypes,
        );
    }
    (values, logits)
}
