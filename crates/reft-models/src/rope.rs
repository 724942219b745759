//! Rotary position embeddings in Hugging Face's rotate-half layout (`modeling_rope_utils.py`, `apply_rotary_pos_emb`).

use crate::frozen::Frozen;
use burn::tensor::{
    DType, Tensor, TensorData,
    backend::{AutodiffBackend, Backend},
};
use reft_kernels::RotaryTable;
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
    /// Dynamic NTK: the base grows with a text that is longer than `context`, and is unchanged up to there.
    Dynamic {
        /// How fast the base grows.
        factor: f64,
        /// The longest text with unchanged frequencies.
        context: f64,
    },
    /// [YaRN](https://arxiv.org/abs/2309.00071): low frequencies are divided, high frequencies kept, those between
    /// interpolated, and cosines and sines are multiplied by a constant.
    Yarn(Yarn),
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

/// The parameters of YaRN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Yarn {
    /// The divisor for low frequencies.
    pub factor: f64,
    /// The factor of cosines and sines.
    pub attention_factor: f64,
    /// Frequencies that turn more often than this within the original context are kept.
    pub beta_fast: f64,
    /// Frequencies that turn less often than this within the original context are divided.
    pub beta_slow: f64,
    /// Whether the bounds between them are rounded to whole dimensions.
    pub truncate: bool,
    /// The context before the extension.
    pub original_context: f64,
}

impl Yarn {
    /// The factor of cosines and sines for an extension of the context by `factor`.
    pub fn attention_factor(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// How much of each frequency is kept, between 0 and 1.
    fn kept(&self, head_dim: usize, theta: f64) -> impl Fn(usize) -> f64 {
        let dim = head_dim as f64;
        let dim_of_turns =
            |turns: f64| dim * (self.original_context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (dim_of_turns(self.beta_fast), dim_of_turns(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        move |i| 1.0 - ((i as f64 - low) / (high - low)).clamp(0.0, 1.0)
    }
}

/// The rotary embedding of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Size of a head.
    pub head_dim: usize,
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are scaled.
    pub scaling: RopeScaling,
}

impl Rope {
    /// The frequencies `θ_i` for a text of `seq` tokens, one for each pair of dimensions of a head.
    ///
    /// Only those of [`RopeScaling::Dynamic`] depend on the text.
    pub fn frequencies(&self, seq: usize) -> Vec<f64> {
        let (n, dim) = (self.head_dim / 2, self.head_dim as f64);
        let powers = |base: f64| (0..n).map(move |i| base.powf(-2.0 * i as f64 / dim));
        match self.scaling {
            RopeScaling::Default => powers(self.theta).collect(),
            RopeScaling::Linear { factor } => powers(self.theta).map(|freq| freq / factor).collect(),
            RopeScaling::Dynamic { factor, context } => {
                let seq = (seq as f64).max(context);
                let growth = factor * seq / context - (factor - 1.0);
                // A head of two dimensions has only the frequency 1, whatever the base.
                let base =
                    if self.head_dim > 2 { self.theta * growth.powf(dim / (dim - 2.0)) } else { self.theta };
                powers(base).collect()
            }
            RopeScaling::Yarn(yarn) => {
                let kept = yarn.kept(self.head_dim, self.theta);
                let scale = |(i, freq)| freq * (kept(i) + (1.0 - kept(i)) / yarn.factor);
                powers(self.theta).enumerate().map(scale).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let scale = |freq: f64| {
                    let turns = original_context * freq / (2.0 * PI);
                    let ramp = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = ramp.clamp(0.0, 1.0);
                    freq * (kept + (1.0 - kept) / factor)
                };
                powers(self.theta).map(scale).collect()
            }
        }
    }

    /// The factor of all cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn(yarn) => yarn.attention_factor,
            _ => 1.0,
        }
    }
}

impl Rope {
    /// Cosines and sines for these positions, for states of this dtype.
    pub fn table<B: Backend>(&self, positions: &[usize], dtype: DType, device: &B::Device) -> RotaryTable<B> {
        let seq = positions.iter().max().map_or(0, |last| last + 1);
        let frequencies = self.frequencies(seq);
        let factor = self.attention_factor();
        let values = |f: fn(f64) -> f64| {
            let angles = positions
                .iter()
                .flat_map(|position| frequencies.iter().map(move |freq| *position as f64 * freq));
            let values: Vec<f32> = angles.map(|angle| (factor * f(angle)) as f32).collect();
            Tensor::from_data(TensorData::new(values, [positions.len(), frequencies.len()]), (device, dtype))
        };
        RotaryTable { cos: values(f64::cos), sin: values(f64::sin) }
    }
}

impl<A: AutodiffBackend> Frozen<A> for RotaryTable<A::InnerBackend> {
    type OnTape = RotaryTable<A>;

    fn on_tape(&self) -> RotaryTable<A> {
        RotaryTable { cos: Frozen::<A>::on_tape(&self.cos), sin: Frozen::<A>::on_tape(&self.sin) }
    }
}
