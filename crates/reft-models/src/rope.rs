//! Rotary position embedding in Hugging Face's rotate-half layout
//! (`modeling_rope_utils.py`, `apply_rotary_pos_emb`).

use burn::{
    module::Module,
    tensor::{Tensor, TensorData, backend::Backend},
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
/// - cos, sin `[batch or 1, 1, seq, head_dim]`; the halves of the last dimension are equal
#[derive(Module, Debug)]
pub struct Rotation<B: Backend> {
    cos: Tensor<B, 4>,
    sin: Tensor<B, 4>,
}

impl<B: Backend> Rotation<B> {
    /// The rotation of `rows` rows with these positions, row-major; one row serves for a whole batch.
    pub fn new(frequencies: &[f64], positions: &[usize], rows: usize, device: &B::Device) -> Self {
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = positions
                .iter()
                .flat_map(|position| {
                    let angles = frequencies.iter().map(move |freq| f(*position as f64 * freq) as f32);
                    angles.clone().chain(angles)
                })
                .collect();
            let shape = [rows, 1, positions.len() / rows, frequencies.len() * 2];
            Tensor::from_data(TensorData::new(values, shape), device)
        };
        Self { cos: table(f64::cos), sin: table(f64::sin) }
    }

    /// Rotates queries or keys.
    ///
    /// # Shapes
    /// - x and output `[batch, heads, seq, head_dim]`
    pub fn apply(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [_, _, _, head_dim] = x.dims();
        let half = head_dim / 2;
        let (low, high) = (x.clone().narrow(3, 0, half), x.clone().narrow(3, half, half));
        let turned = Tensor::cat(vec![high.neg(), low], 3);
        x * self.cos.clone() + turned * self.sin.clone()
    }
}
