//! Vector instructions, chosen when the program runs.
//!
//! A kernel is a type with the trait [`WithSimd`], whose method is compiled once for each
//! instruction set: AVX-512, AVX2 with FMA, NEON, and plain code for all other machines.
//! [`dispatch`] runs the best that the machine has. The functions here that take a `simd` are
//! parts of such kernels. All code of a kernel has to be inlined into its method, since only there
//! the compiler knows the instruction set: its functions, and the closures that it hands to others,
//! are marked `#[inline(always)]`.
//!
//! Sums run over several accumulators in an order that depends on the length of the slices and on
//! the instruction set alone, so that a result is the same for any address in memory.

use pulp::Arch;
pub use pulp::{Simd, WithSimd};

/// Runs a kernel with the best instruction set of this machine.
#[inline]
pub fn dispatch<Kernel: WithSimd>(kernel: Kernel) -> Kernel::Output {
    // pulp asks the processor once and remembers the answer.
    Arch::new().dispatch(kernel)
}

/// `eˣ` with a relative error below 2·10⁻⁷; 0 below −87, and infinity above 88.3.
#[inline(always)]
pub fn exp<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// `(eʳ − 1 − r) / r²` for `|r| ≤ ln 2 / 2`, the lowest power first.
    const POLYNOMIAL: [f32; 5] = [0.5, 0.166_665_77, 0.041_666_555, 0.008_363_174, 0.001_392_617_8];
    /// ln 2 as a sum, whose first part has few enough bits that `n` times it is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    /// A number so large that a float of its size has no fraction: adding it rounds to an integer,
    /// which is in the low bits of the sum. The 127 is the bias of the exponent of a float.
    const ROUND: f32 = 12_582_912.0 + 127.0;

    // x = n ln 2 + r, so that eˣ = 2ⁿ eʳ.
    let round = simd.splat_f32s(ROUND);
    let shifted = simd.mul_add_e_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), round);
    let n = simd.sub_f32s(shifted, simd.splat_f32s(ROUND));
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2[0]), x);
    let r = simd.mul_add_e_f32s(n, simd.splat_f32s(-LN_2[1]), r);
    let bits = simd.transmute_u32s_f32s(shifted);
    let power = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    let power = simd.transmute_f32s_u32s(power);

    let polynomial = polynomial(simd, r, &POLYNOMIAL);
    let exp_r = simd.mul_add_e_f32s(polynomial, simd.mul_f32s(r, r), r);
    let exp_r = simd.add_f32s(exp_r, simd.splat_f32s(1.0));
    let y = simd.mul_f32s(exp_r, power);

    let low = simd.less_than_f32s(x, simd.splat_f32s(-87.0));
    let y = simd.select_f32s(low, simd.splat_f32s(0.0), y);
    let high = simd.greater_than_f32s(x, simd.splat_f32s(88.3));
    simd.select_f32s(high, simd.splat_f32s(f32::INFINITY), y)
}

/// The error function `2/√π ∫₀ˣ e^(−t²) dt` with an absolute error below 10⁻⁷.
#[inline(always)]
pub fn erf<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    /// `erf(x) / x − 1` in powers of `x²`, for small `x`.
    const SMALL: [f32; 6] =
        [0.128_379_17, -0.376_125_34, 0.112_819_925, -0.026_768_135, 0.004_991_194_2, -5.967_617e-4];
    /// `ln(1 − erf(x)) / x + 1` in powers of `x`, for large `x`.
    const LARGE: [f32; 7] = [
        -0.128_717_51,
        -0.634_846_7,
        -0.106_777_88,
        0.024_254_622,
        -0.003_883_964_4,
        3.831_972e-4,
        -1.728_534_7e-5,
    ];
    let square = simd.mul_f32s(x, x);
    let small = polynomial(simd, square, &SMALL);
    let small = simd.mul_add_e_f32s(small, x, x);

    // The error function is 1 in f32 from 4 on.
    let size = simd.min_f32s(simd.abs_f32s(x), simd.splat_f32s(4.0));
    let large = polynomial(simd, size, &LARGE);
    let large = simd.sub_f32s(simd.mul_f32s(large, size), size);
    let large = simd.sub_f32s(simd.splat_f32s(1.0), exp(simd, large));
    let sign = simd.and_f32s(x, simd.splat_f32s(-0.0));
    let large = simd.or_f32s(large, sign);

    let is_large = simd.greater_than_f32s(size, simd.splat_f32s(0.927_734_4));
    simd.select_f32s(is_large, large, small)
}

/// `c₀ + c₁ x + c₂ x² + …`
#[inline(always)]
pub fn polynomial<S: Simd, const N: usize>(simd: S, x: S::f32s, coefficients: &[f32; N]) -> S::f32s {
    let mut y = simd.splat_f32s(coefficients[N - 1]);
    for &coefficient in coefficients[..N - 1].iter().rev() {
        y = simd.mul_add_e_f32s(y, x, simd.splat_f32s(coefficient));
    }
    y
}

/// `xᵢ ← f(xᵢ)`
///
/// Write `#[inline(always)]` before the closure: it runs many times slower otherwise.
#[inline(always)]
pub fn map<S: Simd>(simd: S, x: &mut [f32], f: impl Fn(S::f32s) -> S::f32s) {
    let (vectors, rest) = S::as_mut_simd_f32s(x);
    for x in vectors {
        *x = f(*x);
    }
    if !rest.is_empty() {
        let y = f(simd.partial_load_f32s(rest));
        simd.partial_store_f32s(rest, y);
    }
}

/// `yᵢ ← f(xᵢ, yᵢ)`, for slices of one length.
///
/// Write `#[inline(always)]` before the closure: it runs many times slower otherwise.
#[inline(always)]
pub fn map2<S: Simd>(simd: S, x: &[f32], y: &mut [f32], f: impl Fn(S::f32s, S::f32s) -> S::f32s) {
    assert_eq!(x.len(), y.len());
    let (x, x_rest) = S::as_simd_f32s(x);
    let (y, y_rest) = S::as_mut_simd_f32s(y);
    for (x, y) in x.iter().zip(y) {
        *y = f(*x, *y);
    }
    if !y_rest.is_empty() {
        let z = f(simd.partial_load_f32s(x_rest), simd.partial_load_f32s(y_rest));
        simd.partial_store_f32s(y_rest, z);
    }
}

/// `yᵢ ← yᵢ + a xᵢ`, for slices of one length.
#[inline(always)]
pub fn axpy<S: Simd>(simd: S, a: f32, x: &[f32], y: &mut [f32]) {
    let a = simd.splat_f32s(a);
    map2(
        simd,
        x,
        y,
        #[inline(always)]
        |x, y| simd.mul_add_e_f32s(a, x, y),
    );
}

/// `Σᵢ xᵢ`
#[inline(always)]
pub fn sum<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let zero = simd.splat_f32s(0.0);
    let (vectors, rest) = S::as_simd_f32s(x);
    let (fours, ones) = vectors.as_chunks::<4>();
    let mut sums = [zero; 4];
    for four in fours {
        for (sum, x) in sums.iter_mut().zip(four) {
            *sum = simd.add_f32s(*sum, *x);
        }
    }
    for (sum, x) in sums.iter_mut().zip(ones) {
        *sum = simd.add_f32s(*sum, *x);
    }
    if !rest.is_empty() {
        sums[3] = simd.add_f32s(sums[3], simd.partial_load_f32s(rest));
    }
    sum_of_four(simd, sums)
}

/// `Σᵢ xᵢ yᵢ`, for slices of one length.
#[inline(always)]
pub fn dot<S: Simd>(simd: S, x: &[f32], y: &[f32]) -> f32 {
    assert_eq!(x.len(), y.len());
    let zero = simd.splat_f32s(0.0);
    let (x, x_rest) = S::as_simd_f32s(x);
    let (y, y_rest) = S::as_simd_f32s(y);
    let (x_fours, x_ones) = x.as_chunks::<4>();
    let (y_fours, y_ones) = y.as_chunks::<4>();
    let mut sums = [zero; 4];
    for (x, y) in x_fours.iter().zip(y_fours) {
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum = simd.mul_add_e_f32s(*x, *y, *sum);
        }
    }
    for ((sum, x), y) in sums.iter_mut().zip(x_ones).zip(y_ones) {
        *sum = simd.mul_add_e_f32s(*x, *y, *sum);
    }
    if !x_rest.is_empty() {
        let (x, y) = (simd.partial_load_f32s(x_rest), simd.partial_load_f32s(y_rest));
        sums[3] = simd.mul_add_e_f32s(x, y, sums[3]);
    }
    sum_of_four(simd, sums)
}

/// The largest of some numbers; −∞ when there are none.
#[inline(always)]
pub fn max<S: Simd>(simd: S, x: &[f32]) -> f32 {
    let (vectors, rest) = S::as_simd_f32s(x);
    let (fours, ones) = vectors.as_chunks::<4>();
    let mut max = [simd.splat_f32s(f32::NEG_INFINITY); 4];
    for four in fours {
        for (max, x) in max.iter_mut().zip(four) {
            *max = simd.max_f32s(*max, *x);
        }
    }
    for (max, x) in max.iter_mut().zip(ones) {
        *max = simd.max_f32s(*max, *x);
    }
    let [a, b, c, d] = max;
    let max = simd.max_f32s(simd.max_f32s(a, b), simd.max_f32s(c, d));
    rest.iter().copied().fold(simd.reduce_max_f32s(max), f32::max)
}

/// The sum of all numbers in four vectors.
#[inline(always)]
fn sum_of_four<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> f32 {
    simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Applies a function of this module to numbers.
    struct Map<'a> {
        x: &'a mut [f32],
        function: Function,
    }

    enum Function {
        Exp,
        Erf,
    }

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            match self.function {
                Function::Exp => map(
                    simd,
                    self.x,
                    #[inline(always)]
                    |x| exp(simd, x),
                ),
                Function::Erf => map(
                    simd,
                    self.x,
                    #[inline(always)]
                    |x| erf(simd, x),
                ),
            }
        }
    }

    /// Runs a function with every instruction set of this machine.
    fn on_all(x: &[f32], function: fn() -> Function) -> Vec<Vec<f32>> {
        let mut results = vec![x.to_vec(); 3];
        dispatch(Map { x: &mut results[0], function: function() });
        Simd::vectorize(pulp::Scalar, Map { x: &mut results[1], function: function() });
        #[cfg(target_arch = "x86_64")]
        if let Some(simd) = pulp::x86::V3::try_new() {
            Simd::vectorize(simd, Map { x: &mut results[2], function: function() });
            return results;
        }
        results.truncate(2);
        results
    }

    /// `erf(x)` by its power series or its continued fraction.
    fn exact_erf(x: f64) -> f64 {
        let size = x.abs();
        if size < 3.0 {
            let (mut term, mut sum) = (x, x);
            for n in 1..100 {
                term *= -x * x / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            return sum * std::f64::consts::FRAC_2_SQRT_PI;
        }
        let fraction = (1..60).rev().fold(size, |f, n| size + f64::from(n) / 2.0 / f);
        let rest = (-size * size).exp() / fraction * std::f64::consts::FRAC_2_SQRT_PI / 2.0;
        (1.0 - rest) * x.signum()
    }

    #[test]
    fn exp_is_exact_to_a_relative_error() {
        let x: Vec<f32> = (0..=1_750_000).map(|i| -87.0 + i as f32 * 1e-4).collect();
        for y in on_all(&x, || Function::Exp) {
            for (&x, y) in x.iter().zip(y) {
                let exact = f64::from(x).exp();
                let error = (f64::from(y) / exact - 1.0).abs();
                assert!(error < 2e-7, "exp({x}) = {y}, not {exact}: {error}");
            }
        }
    }

    #[test]
    fn exp_of_special_numbers() {
        let x = [f32::NEG_INFINITY, -1e30, -87.1, 0.0, -0.0, 89.0, f32::INFINITY, f32::NAN];
        for y in on_all(&x, || Function::Exp) {
            assert_eq!(y[..7], [0.0, 0.0, 0.0, 1.0, 1.0, f32::INFINITY, f32::INFINITY]);
            assert!(y[7].is_nan());
        }
    }

    #[test]
    fn erf_is_exact_to_an_absolute_error() {
        let x: Vec<f32> = (-120_000..=120_000).map(|i| i as f32 * 5e-5).collect();
        for y in on_all(&x, || Function::Erf) {
            for (&x, y) in x.iter().zip(y) {
                let error = (f64::from(y) - exact_erf(f64::from(x))).abs();
                assert!(error < 1e-7, "erf({x}) = {y}: {error}");
            }
        }
        for y in on_all(&[0.0, f32::INFINITY, f32::NEG_INFINITY], || Function::Erf) {
            assert_eq!(y, [0.0, 1.0, -1.0]);
        }
    }

    /// The sums of [`sum`], [`dot`] and [`max`], and `y` after an [`axpy`].
    struct Sums<'a> {
        x: &'a [f32],
        y: &'a mut [f32],
    }

    impl WithSimd for Sums<'_> {
        type Output = [f32; 3];

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) -> [f32; 3] {
            let sums = [sum(simd, self.x), dot(simd, self.x, self.y), max(simd, self.x)];
            axpy(simd, 3.0, self.x, self.y);
            sums
        }
    }

    #[test]
    fn sums_are_exact_for_integers_of_any_number() {
        for n in 0..200_usize {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37) % 101) as f32 - 150.0).collect();
            let mut y: Vec<f32> = (0..n).map(|i| ((i * 53) % 97) as f32 - 50.0).collect();
            let old = y.clone();
            let [sum, dot, max] = dispatch(Sums { x: &x, y: &mut y });
            assert_eq!(sum, x.iter().sum::<f32>());
            assert_eq!(dot, x.iter().zip(&old).map(|(x, y)| x * y).sum::<f32>());
            assert_eq!(max, x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            for ((x, y), old) in x.iter().zip(y).zip(old) {
                assert_eq!(y, old + 3.0 * x);
            }
        }
    }
}
