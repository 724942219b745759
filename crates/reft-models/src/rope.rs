//! Rotary position embeddings in Hugging Face's rotate-half layout (`modeling_rope_utils.py`, `apply_rotary_pos_emb`).

use crate::frozen::frozen;
use burn::tensor::{DType, Tensor, TensorData, backend::Backend};
use std::f64::consts::PI;

/// How a model scales its rotary frequencies to extend the context beyond that of its training.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum RopeScaling {
    /// No scaling.
    #[default]
    Default,
    /// All frequencies are divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided, high frequencies kept, those between interpolated.
    Llama3 {
        /// The divisor for low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are high frequencies.
        high_freq_factor: f64,
        /// The context before the extension.
        original_context: f64,
    },
}

/// The rotary frequencies `θ_i` of a model, one for each pair of dimensions of a head.
pub fn frequencies(head_dim: usize, theta: f64, scaling: RopeScaling) -> Vec<f64> {
    let scale = |freq: f64| match scaling {
        RopeScaling::Default => freq,
        RopeScaling::Linear { factor } => freq / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            let turns = original_context * freq / (2.0 * PI);
            let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let kept = ramp.clamp(0.0, 1.0);
            freq * (kept + (1.0 - kept) / factor)
        }
    };
    (0..head_dim / 2).map(|i| scale(theta.powf(-2.0 * i as f64 / head_dim as f64))).collect()
}

/// Cosines and sines for the positions of one batch.
///
/// # Shapes
/// - cos, sin `[batch or 1, seq · head_dim]`; both halves of a head have the same cosines, and opposite sines
#[derive(Debug, Clone)]
pub struct Rotation<B: Backend> {
    cos: Tensor<B, 2>,
    sin: Tensor<B, 2>,
}

frozen!(Rotation { cos, sin; });

impl<B: Backend> Rotation<B> {
    /// The rotation for `rows` rows with these positions (row-major) and states of this dtype. One row serves a whole
    /// batch if all its rows have the same positions.
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

    /// Rotates queries or keys: `(x₁, x₂) → (x₁ cos − x₂ sin, x₂ cos + x₁ sin)`, where `x₁`, `x₂` are the halves of a
    /// head.
    ///
    /// # Shapes
    /// - heads and output `[batch, n_heads, seq, head_dim]`
    pub fn apply(&self, heads: Tensor<B, 4>) -> Tensor<B, 4> {
        let [batch, n_heads, seq, head_dim] = heads.dims();
        let half = head_dim / 2;
        // Heads usually arrive as a permuted view; the flat reshape copies it once, instead of in each step below.
        let x = heads.reshape([batch * n_heads, seq * head_dim]).reshape([batch, n_heads, seq, head_dim]);
        let swapped = Tensor::cat(vec![x.clone().narrow(3, half, half), x.clone().narrow(3, 0, half)], 3);
        let [rows, width] = self.cos.dims();
        if rows == 1 {
            // A flat view multiplies many rows by one, which is fast on every backend.
            let flat = |x: Tensor<B, 4>| x.reshape([batch * n_heads, width]);
            let rotated = flat(x) * self.cos.clone() + flat(swapped) * self.sin.clone();
            return rotated.reshape([batch, n_heads, seq, head_dim]);
        }
        let per_row = |table: &Tensor<B, 2>| table.clone().reshape([rows, 1, seq, head_dim]);
        x * per_row(&self.cos) + swapped * per_row(&self.sin)
    }
}
