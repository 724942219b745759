//! Rotary position embedding.

use super::rows::change;
use super::simd::{Simd, WithSimd, dispatch};

/// Rotates the heads of each row by the angles of its position, in place.
///
/// The two halves `a` and `b` of a head become `a cos − b sin` and `b cos + a sin`. With `inverse`
/// the rotation goes the other way, which is also what happens to a gradient.
///
/// `x: [n, heads · dim]`; `cos` and `sin`: `[rows, dim / 2]`, and row `r` of `x` uses their row
/// `r % rows`.
pub fn rotary(x: &mut [f32], cos: &[f32], sin: &[f32], [heads, dim]: [usize; 2], inverse: bool) {
    let (d, half) = (heads * dim, dim / 2);
    if x.is_empty() {
        return;
    }
    assert!(d > 0 && x.len().is_multiple_of(d), "x has the shape [n, heads · dim]");
    assert!(half > 0 && dim.is_multiple_of(2), "dim is even");
    assert!(!cos.is_empty() && cos.len().is_multiple_of(half), "cos has the shape [rows, dim / 2]");
    assert_eq!(cos.len(), sin.len(), "cos and sin have one shape");
    change(x, d, |first, x| {
        dispatch(Rotary { x, first: first / d, cos, sin, d, half, inverse });
    });
}

/// [`rotary`] of some rows.
struct Rotary<'a> {
    x: &'a mut [f32],
    /// The index of the first row.
    first: usize,
    cos: &'a [f32],
    sin: &'a [f32],
    d: usize,
    half: usize,
    inverse: bool,
}

impl WithSimd for Rotary<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { x, first, cos, sin, d, half, inverse } = self;
        let sign = simd.splat_f32s(if inverse { -1.0 } else { 1.0 });
        for (row, x) in (first..).zip(x.chunks_exact_mut(d)) {
            let start = row % (cos.len() / half) * half;
            let (cosines, cos_rest) = S::as_simd_f32s(&cos[start..start + half]);
            let (sines, sin_rest) = S::as_simd_f32s(&sin[start..start + half]);
            for head in x.chunks_exact_mut(2 * half) {
                let (a, b) = head.split_at_mut(half);
                let (firsts, a_rest) = S::as_mut_simd_f32s(a);
                let (seconds, b_rest) = S::as_mut_simd_f32s(b);
                for (((a, b), cos), sin) in firsts.iter_mut().zip(seconds).zip(cosines).zip(sines) {
                    (*a, *b) = rotate(simd, *a, *b, *cos, *sin, sign);
                }
                if !a_rest.is_empty() {
                    let [cos, sin] = [cos_rest, sin_rest].map(|x| simd.partial_load_f32s(x));
                    let a = simd.partial_load_f32s(a_rest);
                    let b = simd.partial_load_f32s(b_rest);
                    let (a, b) = rotate(simd, a, b, cos, sin, sign);
                    simd.partial_store_f32s(a_rest, a);
                    simd.partial_store_f32s(b_rest, b);
                }
            }
        }
    }
}

/// Numbers of the two halves of a head after the rotation. The sign of the sine is its direction.
#[inline(always)]
fn rotate<S: Simd>(
    simd: S,
    a: S::f32s,
    b: S::f32s,
    cos: S::f32s,
    sin: S::f32s,
    sign: S::f32s,
) -> (S::f32s, S::f32s) {
    let sin = simd.mul_f32s(sin, sign);
    let rotated_a = simd.sub_f32s(simd.mul_f32s(a, cos), simd.mul_f32s(b, sin));
    let rotated_b = simd.add_f32s(simd.mul_f32s(b, cos), simd.mul_f32s(a, sin));
    (rotated_a, rotated_b)
}
