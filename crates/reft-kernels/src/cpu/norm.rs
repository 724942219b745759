//! Normalization of the rows of an array, and its gradients for frozen weights.

use super::rows::{change, changed};
use super::simd::{Simd, WithSimd, dispatch, dot, map, map2, sum};

/// Root mean square normalization, `yᵢ = gᵢ xᵢ / √(mean(x²) + ε)` for each row.
///
/// `x: [n, d]`, `weight` is `g: [d]`; returns `y: [n, d]`.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, d: usize) -> Vec<f32> {
    check(x, weight, d);
    changed(x, d, |_, y| dispatch(RmsNorm { y, weight, eps }))
}

/// The gradient of the input of [`rms_norm`], with `r = 1 / √(mean(x²) + ε)`:
/// `dxᵢ = r (gᵢ dyᵢ − xᵢ r² mean(x g dy))`.
///
/// `x` and `grad`, which is `dy`: `[n, d]`; returns `dx: [n, d]` in the memory of `grad`.
pub fn rms_norm_backward(x: &[f32], weight: &[f32], eps: f32, mut grad: Vec<f32>, d: usize) -> Vec<f32> {
    check(x, weight, d);
    assert_eq!(x.len(), grad.len(), "x and grad have one shape");
    change(&mut grad, d, |first, grad| {
        let x = &x[first..first + grad.len()];
        dispatch(RmsNormBackward { x, weight, eps, grad });
    });
    grad
}

/// Layer normalization, `yᵢ = gᵢ (xᵢ − mean(x)) / √(var(x) + ε) + bᵢ` for each row.
///
/// `x: [n, d]`, `weight` is `g: [d]`, `bias` is `b: [d]`; returns `y: [n, d]`.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, d: usize) -> Vec<f32> {
    check(x, weight, d);
    check(x, bias, d);
    changed(x, d, |_, y| dispatch(LayerNorm { y, weight, bias, eps }))
}

/// The gradient of the input of [`layer_norm`], with `r = 1 / √(var(x) + ε)` and
/// `c = x − mean(x)`: `dxᵢ = r (gᵢ dyᵢ − mean(g dy) − cᵢ r² mean(c g dy))`.
///
/// `x` and `grad`, which is `dy`: `[n, d]`; returns `dx: [n, d]` in the memory of `grad`.
pub fn layer_norm_backward(x: &[f32], weight: &[f32], eps: f32, mut grad: Vec<f32>, d: usize) -> Vec<f32> {
    check(x, weight, d);
    assert_eq!(x.len(), grad.len(), "x and grad have one shape");
    change(&mut grad, d, |first, grad| {
        let x = &x[first..first + grad.len()];
        dispatch(LayerNormBackward { x, weight, eps, grad });
    });
    grad
}

/// Checks that `x` is `[n, d]` and the weights `[d]`.
fn check(x: &[f32], weight: &[f32], d: usize) {
    assert!(d > 0 && x.len().is_multiple_of(d), "x has the shape [n, d]");
    assert_eq!(weight.len(), d, "weights have the shape [d]");
}

/// `1 / √(squares / d + ε)`
fn inverse_root(squares: f32, d: usize, eps: f32) -> f32 {
    1.0 / (squares / d as f32 + eps).sqrt()
}

/// [`rms_norm`] of some rows.
struct RmsNorm<'a> {
    y: &'a mut [f32],
    weight: &'a [f32],
    eps: f32,
}

impl WithSimd for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.weight.len();
        for row in self.y.chunks_exact_mut(d) {
            let r = inverse_root(dot(simd, row, row), d, self.eps);
            let r = simd.splat_f32s(r);
            map2(
                simd,
                self.weight,
                row,
                #[inline(always)]
                |g, x| simd.mul_f32s(simd.mul_f32s(x, r), g),
            );
        }
    }
}

/// [`rms_norm_backward`] of some rows.
struct RmsNormBackward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    grad: &'a mut [f32],
}

impl WithSimd for RmsNormBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.weight.len();
        for (x, grad) in self.x.chunks_exact(d).zip(self.grad.chunks_exact_mut(d)) {
            map2(
                simd,
                self.weight,
                grad,
                #[inline(always)]
                |g, dy| simd.mul_f32s(g, dy),
            );
            let r = inverse_root(dot(simd, x, x), d, self.eps);
            let along = -r * r * r * dot(simd, x, grad) / d as f32;
            let (r, along) = (simd.splat_f32s(r), simd.splat_f32s(along));
            map2(
                simd,
                x,
                grad,
                #[inline(always)]
                |x, dy| simd.mul_add_e_f32s(x, along, simd.mul_f32s(dy, r)),
            );
        }
    }
}

/// [`layer_norm`] of some rows.
struct LayerNorm<'a> {
    y: &'a mut [f32],
    weight: &'a [f32],
    bias: &'a [f32],
    eps: f32,
}

impl WithSimd for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.weight.len();
        for row in self.y.chunks_exact_mut(d) {
            center(simd, row);
            let r = inverse_root(dot(simd, row, row), d, self.eps);
            let r = simd.splat_f32s(r);
            map2(
                simd,
                self.weight,
                row,
                #[inline(always)]
                |g, x| simd.mul_f32s(simd.mul_f32s(x, r), g),
            );
            map2(
                simd,
                self.bias,
                row,
                #[inline(always)]
                |b, y| simd.add_f32s(y, b),
            );
        }
    }
}

/// [`layer_norm_backward`] of some rows.
struct LayerNormBackward<'a> {
    x: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    grad: &'a mut [f32],
}

impl WithSimd for LayerNormBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let d = self.weight.len();
        let mut centered = vec![0.0; d];
        for (x, grad) in self.x.chunks_exact(d).zip(self.grad.chunks_exact_mut(d)) {
            centered.copy_from_slice(x);
            center(simd, &mut centered);
            map2(
                simd,
                self.weight,
                grad,
                #[inline(always)]
                |g, dy| simd.mul_f32s(g, dy),
            );
            center(simd, grad);
            let r = inverse_root(dot(simd, &centered, &centered), d, self.eps);
            let along = -r * r * r * dot(simd, &centered, grad) / d as f32;
            let (r, along) = (simd.splat_f32s(r), simd.splat_f32s(along));
            map2(
                simd,
                &centered,
                grad,
                #[inline(always)]
                |c, dy| simd.mul_add_e_f32s(c, along, simd.mul_f32s(dy, r)),
            );
        }
    }
}

/// Subtracts the mean of a row from it.
#[inline(always)]
fn center<S: Simd>(simd: S, row: &mut [f32]) {
    let mean = simd.splat_f32s(sum(simd, row) / row.len() as f32);
    map(
        simd,
        row,
        #[inline(always)]
        |x| simd.sub_f32s(x, mean),
    );
}
