//! Rotary position embedding in Hugging Face's rotate-half layout
//! (`modeling_rope_utils.py`, `apply_rotary_pos_emb`).

use burn::{
    module::Module,
    tensor::{DType, Tensor, TensorData, backend::Backend},
};
use std::f64::consts::PI;

/// How a model stretches its rotary frequencies beyond the context that it was trained on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// No stretching.
    Default,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided, high ones kept, a smooth passage between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context before stretching.
        original_context: f64,
    },
}

/// The rotary frequencies `θ_i` of a model, one for each pair of a head's dimensions.
pub fn frequencies(head_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f64> {
    let stretch = |freq: f64| match scaling {
        RopeScaling::Default => freq,
        RopeScaling::Linear { factor } => freq / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let turns = original_context * freq / (2.0 * PI);
            let smooth = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let smooth = smooth.clamp(0.0, 1.0);
            freq * (smooth + (1.0 - smooth) / factor)
        }
    };
    (0..head_dim / 2).map(|i| stretch(theta.powf(-2.0 * i as f64 / head_dim as f64))).collect()
}

/// Cosines and sines of the positions of one batch.
///
/// # Shapes
/// - cos, sin `[batch or 1, seq · head_dim]`; the halves of a head's part have equal cosines, and opposite sines
#[derive(Module, Debug)]
pub struct Rotation<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

impl<B: Backend> Rotation<B> {
    /// The rotation of `rows` rows with these positions, row-major, for states of a type; one row serves for a whole
    /// batch.
    pub fn new(
        frequencies: &[f64],
        positions: &[usize],
        rows: usize,
        dtype: DType,
        device: &B::Device,
    ) -> Self {
        let width = positions.len() / rows * frequencies.len() * 2;
        let table = |f: fn(f64) -> f64, sign_of_first: f32| {
            let mut values = Vec::with_capacity(rows * width);
            for position in positions {
                for sign in [sign_of_first, 1.0] {
                    values.extend(frequencies.iter().map(|freq| sign * f(*position as f64 * freq) as f32));
                }
            }
            Tensor::from_data(TensorData::new(values, [rows, width]), (device, dtype))
        };
        Self { cos: table(f64::cos, 1.0), sin: table(f64::sin, -1.0) }
    }

    /// Rotates queries or keys: `(x₁, x₂) → (x₁ cos − x₂ sin, x₂ cos + x₁ sin)` with the halves `x₁`, `x₂` of a head.
    ///
    /// # Shapes
    /// - x and output `[batch, heads, seq, head_dim]`
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, heads, seq, head_dim] = x.dims();
        let half = head_dim / 2;
        // Heads usually arrive as a permuted view, which is copied once here rather than in each of the steps below.
        let x = x.reshape([batch * heads, seq * head_dim]).reshape([batch, heads, seq, head_dim]);
        let swapped = Tensor::cat(vec![x.clone().narrow(3, half, half), x.clone().narrow(3, 0, half)], 3);
        let [rows, width] = self.cos.dims();
        if rows == 1 {
            // Flat, one row times many, which every backend does fast.
            let flat = |x: Tensor<B, 4>| x.reshape([batch * heads, width]);
            let turned = flat(x) * self.cos.clone() + flat(swapped) * self.sin.clone();
            return turned.reshape([batch, heads, seq, head_dim]);
        }
        let table = |t: &Tensor<B, 2>| t.clone().reshape([rows, 1, seq, head_dim]);
        x * table(&self.cos) + swapped * table(&self.sin)
    }
}
