//! Activation functions and their gradients.

use std::f32::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI};

use super::rows::{change, change_both, changed};
use super::simd::{Simd, WithSimd, dispatch, erf, exp, map, map2};

/// The gated activation function `silu(gate) · up`, with `silu(x) = x / (1 + e⁻ˣ)`.
///
/// Both inputs and the result have one shape.
pub fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    assert_eq!(gate.len(), up.len(), "gate and up have one shape");
    changed(gate, 1, |first, gate| {
        let up = &up[first..first + gate.len()];
        dispatch(SwiGlu { gate, up });
    })
}

/// The gradients of the inputs of [`swiglu`], with `s = 1 / (1 + e^(−gate))`:
/// `dgate = grad · up · s (1 + gate (1 − s))` and `dup = grad · gate · s`.
///
/// All have one shape. Returns `(dgate, dup)` in the memory of `gate` and `up`.
pub fn swiglu_backward(mut gate: Vec<f32>, mut up: Vec<f32>, grad: &[f32]) -> (Vec<f32>, Vec<f32>) {
    assert_eq!(gate.len(), up.len(), "gate and up have one shape");
    assert_eq!(gate.len(), grad.len(), "gate and grad have one shape");
    change_both(&mut gate, &mut up, |first, gate, up| {
        let grad = &grad[first..first + gate.len()];
        dispatch(SwiGluBackward { gate, up, grad });
    });
    (gate, up)
}

/// The activation function `gelu(x) = x Φ(x)`, with `Φ(x) = (1 + erf(x / √2)) / 2`.
pub fn gelu(x: &[f32]) -> Vec<f32> {
    changed(x, 1, |_, x| dispatch(Gelu { x }))
}

/// The gradient of the input of [`gelu`], `dx = grad · (Φ(x) + x e^(−x²/2) / √(2π))`.
///
/// `x` and `grad` have one shape; returns `dx` in the memory of `grad`.
pub fn gelu_backward(x: &[f32], mut grad: Vec<f32>) -> Vec<f32> {
    assert_eq!(x.len(), grad.len(), "x and grad have one shape");
    change(&mut grad, 1, |first, grad| {
        let x = &x[first..first + grad.len()];
        dispatch(GeluBackward { x, grad });
    });
    grad
}

/// `1 / (1 + e⁻ˣ)`
#[inline(always)]
fn sigmoid<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let one = simd.splat_f32s(1.0);
    simd.div_f32s(one, simd.add_f32s(one, exp(simd, simd.neg_f32s(x))))
}

/// `Φ(x)`
#[inline(always)]
fn normal<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let half = simd.splat_f32s(0.5);
    let erf = erf(simd, simd.mul_f32s(x, simd.splat_f32s(FRAC_1_SQRT_2)));
    simd.mul_add_e_f32s(erf, half, half)
}

/// [`swiglu`], written over the gate.
struct SwiGlu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl WithSimd for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        map2(
            simd,
            self.up,
            self.gate,
            #[inline(always)]
            |up, gate| simd.mul_f32s(simd.mul_f32s(gate, sigmoid(simd, gate)), up),
        );
    }
}

/// [`swiglu_backward`], written over the gate and `up`.
struct SwiGluBackward<'a> {
    gate: &'a mut [f32],
    up: &'a mut [f32],
    grad: &'a [f32],
}

impl WithSimd for SwiGluBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let (gates, gate_rest) = S::as_mut_simd_f32s(self.gate);
        let (ups, up_rest) = S::as_mut_simd_f32s(self.up);
        let (grads, grad_rest) = S::as_simd_f32s(self.grad);
        for ((gate, up), grad) in gates.iter_mut().zip(ups).zip(grads) {
            (*gate, *up) = swiglu_gradients(simd, *gate, *up, *grad);
        }
        if !grad_rest.is_empty() {
            let gate = simd.partial_load_f32s(gate_rest);
            let up = simd.partial_load_f32s(up_rest);
            let (gate, up) = swiglu_gradients(simd, gate, up, simd.partial_load_f32s(grad_rest));
            simd.partial_store_f32s(gate_rest, gate);
            simd.partial_store_f32s(up_rest, up);
        }
    }
}

/// `(dgate, dup)` of [`swiglu_backward`].
#[inline(always)]
fn swiglu_gradients<S: Simd>(simd: S, gate: S::f32s, up: S::f32s, grad: S::f32s) -> (S::f32s, S::f32s) {
    let one = simd.splat_f32s(1.0);
    let s = sigmoid(simd, gate);
    let slope = simd.mul_add_e_f32s(gate, simd.sub_f32s(one, s), one);
    let dgate = simd.mul_f32s(simd.mul_f32s(grad, up), simd.mul_f32s(slope, s));
    (dgate, simd.mul_f32s(grad, simd.mul_f32s(gate, s)))
}

/// [`gelu`], written over its input.
struct Gelu<'a> {
    x: &'a mut [f32],
}

impl WithSimd for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        map(
            simd,
            self.x,
            #[inline(always)]
            |x| simd.mul_f32s(x, normal(simd, x)),
        );
    }
}

/// [`gelu_backward`], written over the gradient.
struct GeluBackward<'a> {
    x: &'a [f32],
    grad: &'a mut [f32],
}

impl WithSimd for GeluBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        /// `1 / √(2π)`
        const DENSITY: f32 = FRAC_2_SQRT_PI * FRAC_1_SQRT_2 / 2.0;
        map2(
            simd,
            self.x,
            self.grad,
            #[inline(always)]
            |x, grad| {
                let square = simd.mul_f32s(x, x);
                let bell = exp(simd, simd.mul_f32s(square, simd.splat_f32s(-0.5)));
                let density = simd.mul_f32s(bell, simd.splat_f32s(DENSITY));
                let slope = simd.mul_add_e_f32s(x, density, normal(simd, x));
                simd.mul_f32s(grad, slope)
            },
        );
    }
}
