//! How a frozen model's numbers are held: their type, and blockwise quantised weights.
//!
//! Quantisation is of weights only, as in [QLoRA](https://arxiv.org/abs/2305.14314): a row of a linear map is cut into
//! blocks, and a block is held as `q · s` with whole numbers `q` of 8 or 4 bits and one f32 scale `s`, see [`Quant`].
//! Weights are quantised on the host, so that every backend holds the same ones, and become numbers of the model's type
//! again where they are used. Embeddings, the output head, norms and biases are never quantised.

use crate::tuned::block_of;
use burn::tensor::{
    Bytes, DType, Shape, Tensor, TensorData, TensorPrimitive,
    backend::Backend,
    quantization::{BlockSize, QuantLevel, QuantScheme, QuantStore, QuantValue},
};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The type of the numbers that a frozen model computes with.
///
/// Norms, softmax, interventions and the loss compute in f32 whatever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with a small range: activations beyond 65,504 overflow.
    F16,
    /// 16 bits with the range of f32.
    Bf16,
}

impl Dtype {
    /// Every type, the most precise first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Burn's name for it.
    pub fn burn(self) -> DType {
        match self {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::Bf16 => DType::BF16,
        }
    }

    /// From Burn's name for it; other types count as f32.
    pub(crate) fn of(dtype: DType) -> Self {
        Self::ALL.into_iter().find(|known| known.burn() == dtype).unwrap_or_default()
    }

    /// Bytes of one number.
    pub fn size(self) -> usize {
        self.burn().size()
    }

    /// The name used in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
        }
    }

    /// Whether the device computes with it.
    pub fn is_supported<B: Backend>(self, device: &B::Device) -> bool {
        B::supports_dtype(device, self.burn())
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Blockwise quantisation of the linear maps within the blocks, `w ≈ q · s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quant {
    /// 8 bits a weight, −127 to 127, and a scale `max|w| / 127` for every 64 weights.
    Int8,
    /// 4 bits a weight, −8 to 7, and a scale for every 32 weights: of those that put the largest weight at −8 or a little
    /// beyond, the one with the smallest squared error.
    Int4,
}

impl Quant {
    /// The name used in recipes.
    pub fn name(self) -> &'static str {
        match self {
            Quant::Int8 => "int8",
            Quant::Int4 => "int4",
        }
    }

    /// Weights that share a scale, in a row of `d_in` weights; none if the row cannot be cut evenly.
    pub fn block(self, d_in: usize) -> Option<usize> {
        let widest = match self {
            Quant::Int8 => 64,
            Quant::Int4 => 32,
        };
        [widest, widest / 2, widest / 4].into_iter().find(|block| d_in.is_multiple_of(*block))
    }

    fn scheme(self, block: usize) -> QuantScheme {
        let value = match self {
            Quant::Int8 => QuantValue::Q8S,
            Quant::Int4 => QuantValue::Q4F,
        };
        QuantScheme::default()
            .with_value(value)
            .with_level(QuantLevel::Block(BlockSize::new([block as u8])))
            .with_store(QuantStore::PackedU32(0))
    }

    /// Whether the backend has kernels for such weights.
    pub fn is_supported<B: Backend>(self, device: &B::Device) -> bool {
        let known = |scheme| !B::dtype_usage(device, DType::QFloat(scheme)).is_empty();
        // Some backends unpack what they are given, and know the unpacked scheme only.
        known(self.scheme(32)) || known(self.scheme(32).with_store(QuantStore::Native))
    }

    /// A matrix in blocks along its rows, packed as Burn's backends expect it: whole numbers from the lowest bits of each
    /// u32 up, then the scales.
    ///
    /// # Panics
    /// If rows cannot be cut into blocks evenly, see [`block`](Self::block).
    fn pack(self, values: &[f32], [d_out, d_in]: [usize; 2]) -> TensorData {
        let block = self.block(d_in).expect("rows are whole blocks");
        let (bits, range) = match self {
            Quant::Int8 => (8, -127.0..=127.0),
            Quant::Int4 => (4, -8.0..=7.0f32),
        };
        let quantise = |w: f32, scale: f32| (w / scale).round().clamp(*range.start(), *range.end());
        let (per_word, mask) = (32 / bits, (1u32 << bits) - 1);
        let mut words = Vec::with_capacity(values.len() / per_word + values.len() / block);
        let mut scales = Vec::with_capacity(values.len() / block);
        for weights in values.chunks(block) {
            let most = weights.iter().fold(0f32, |most, w| if w.abs() > most.abs() { *w } else { most });
            let error =
                |scale: f32| weights.iter().map(|w| (w - scale * quantise(*w, scale)).powi(2)).sum::<f32>();
            let scale = match self {
                _ if most == 0.0 => 1.0,
                Quant::Int8 => most.abs() / 127.0,
                Quant::Int4 => {
                    let scales = [1.0, 0.95, 0.9, 0.85].map(|share| most * share / -8.0);
                    let tried = scales.into_iter().map(|scale| (error(scale), scale));
                    tried.min_by(|(a, _), (b, _)| a.total_cmp(b)).expect("some scales").1
                }
            };
            scales.push(scale.to_bits());
            words.extend(weights.chunks(per_word).map(|weights| {
                let quantised = weights.iter().map(|w| quantise(*w, scale) as i32 as u32 & mask);
                quantised.enumerate().fold(0, |word, (idx, q)| word | (q << (idx * bits)))
            }));
        }
        words.extend(scales);
        let dtype = DType::QFloat(self.scheme(block));
        TensorData::from_bytes(Bytes::from_elems(words), Shape::new([d_out, d_in]), dtype)
    }

    /// The weights of a matrix, quantised, on a device.
    pub(crate) fn hold<B: Backend>(
        self,
        values: &[f32],
        shape: [usize; 2],
        device: &B::Device,
    ) -> Tensor<B, 2> {
        let quantised = B::q_from_data(self.pack(values, shape), device);
        Tensor::from_primitive(TensorPrimitive::QFloat(quantised))
    }
}

impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a frozen model is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Precision {
    /// Type of its numbers.
    pub dtype: Dtype,
    /// How the linear maps within its blocks are quantised, if they are.
    pub quant: Option<Quant>,
}

impl Precision {
    /// How a tensor is quantised: linear maps within blocks are, if their rows can be cut evenly.
    pub fn quant_of(&self, name: &str, shape: &[usize]) -> Option<Quant> {
        let quant = self.quant?;
        match shape {
            [_, d_in] if block_of(name).is_some() && name.ends_with(".weight") => {
                quant.block(*d_in).map(|_| quant)
            }
            _ => None,
        }
    }

    /// Bytes of a tensor.
    ///
    /// `packs_int4` says whether the backend packs two weights of 4 bits into a byte.
    pub fn bytes_of(&self, name: &str, shape: &[usize], packs_int4: bool) -> usize {
        let n = shape.iter().product::<usize>();
        match (self.quant_of(name, shape), shape) {
            (Some(quant), [_, d_in]) => {
                let scales = n / quant.block(*d_in).expect("rows are whole blocks");
                let weights = if quant == Quant::Int4 && packs_int4 { n / 2 } else { n };
                weights + 4 * scales
            }
            _ => n * self.dtype.size(),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quant {
            Some(quant) => write!(f, "{quant} weights, {}", self.dtype),
            None => write!(f, "{}", self.dtype),
        }
    }
}

/// Whether a matrix is held quantised.
pub(crate) fn is_quantised<B: Backend>(matrix: &Tensor<B, 2>) -> bool {
    matches!(matrix.dtype(), DType::QFloat(_))
}

/// The numbers of a matrix that may be quantised, which costs memory only as long as they are used.
pub(crate) fn dense<B: Backend>(matrix: Tensor<B, 2>, dtype: DType) -> Tensor<B, 2> {
    match matrix.into_primitive() {
        TensorPrimitive::QFloat(quantised) => {
            Tensor::from_primitive(TensorPrimitive::Float(B::dequantize(quantised, dtype.into())))
        }
        dense => Tensor::from_primitive(dense),
    }
}
