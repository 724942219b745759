//! The numeric precision of a frozen model: its dtype, and blockwise quantized weights.
//!
//! Only weights are quantized, as in [QLoRA](https://arxiv.org/abs/2305.14314): each row of a linear map is divided
//! into blocks, and a block is stored as `q · s` with integers `q` of 8 or 4 bits and one f32 scale `s`, see
//! [`Quant`]. Weights are quantized on the host, so that they are the same on every backend, and dequantized to the
//! model's dtype for each use. Embeddings, the output head, norms and biases are never quantized.

use crate::names::block_of;
use burn::tensor::{
    Bytes, DType, Shape, Tensor, TensorData,
    backend::Backend,
    quantization::{BlockSize, QuantLevel, QuantScheme, QuantStore, QuantValue},
};
use reft_kernels::Kernels;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The dtype in which a frozen model computes.
///
/// Norms, softmax, interventions and the loss are always computed in f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits with a small range: activations above 65,504 overflow.
    F16,
    /// 16 bits with the range of f32.
    Bf16,
}

impl Dtype {
    /// Every dtype, the most precise first.
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// The dtype in Burn.
    pub fn burn(self) -> DType {
        match self {
            Dtype::F32 => DType::F32,
            Dtype::F16 => DType::F16,
            Dtype::Bf16 => DType::BF16,
        }
    }

    /// From a dtype in Burn; `F32` if it is none of these.
    pub(crate) fn of(dtype: DType) -> Self {
        Self::ALL.into_iter().find(|known| known.burn() == dtype).unwrap_or_default()
    }

    /// Size of one number in bytes.
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

    /// Whether the device can compute with it.
    pub fn is_supported<B: Backend>(self, device: &B::Device) -> bool {
        B::supports_dtype(device, self.burn())
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Blockwise quantization of the linear maps within the transformer blocks, `w ≈ q · s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Quant {
    /// 8 bits per weight, −127 to 127, and a scale `max|w| / 127` for every 64 weights.
    Int8,
    /// 4 bits per weight, −8 to 7, and a scale for every 32 weights: of four scales that map the largest weight to −8
    /// or slightly beyond, the one with the smallest squared error.
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

    /// Number of weights that share a scale in rows of `d_in` weights; `None` if no block size divides `d_in`.
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

    /// Whether the backend has kernels for these weights.
    pub fn is_supported<B: Backend>(self, device: &B::Device) -> bool {
        let known = |scheme| !B::dtype_usage(device, DType::QFloat(scheme)).is_empty();
        // Some backends unpack the weights and report only the unpacked scheme.
        known(self.scheme(32)) || known(self.scheme(32).with_store(QuantStore::Native))
    }

    /// A matrix quantized in blocks along its rows and packed as Burn's backends expect it: integers from the lowest
    /// bits of each u32 up, then the scales.
    ///
    /// # Panics
    /// If no block size divides the rows, see [`block`](Self::block).
    fn pack(self, values: &[f32], [d_out, d_in]: [usize; 2]) -> TensorData {
        let block = self.block(d_in).expect("a block size divides the rows");
        let (bits, range) = match self {
            Quant::Int8 => (8, -127.0..=127.0),
            Quant::Int4 => (4, -8.0..=7.0f32),
        };
        let quantize = |w: f32, scale: f32| (w / scale).round().clamp(*range.start(), *range.end());
        let (per_word, mask) = (32 / bits, (1u32 << bits) - 1);
        let mut words = Vec::with_capacity(values.len() / per_word + values.len() / block);
        let mut scales = Vec::with_capacity(values.len() / block);
        for weights in values.chunks(block) {
            let largest = weights.iter().fold(0f32, |max, w| if w.abs() > max.abs() { *w } else { max });
            let error =
                |scale: f32| weights.iter().map(|w| (w - scale * quantize(*w, scale)).powi(2)).sum::<f32>();
            let scale = match self {
                _ if largest == 0.0 => 1.0,
                Quant::Int8 => largest.abs() / 127.0,
                Quant::Int4 => {
                    let scales = [1.0, 0.95, 0.9, 0.85].map(|factor| largest * factor / -8.0);
                    let candidates = scales.into_iter().map(|scale| (error(scale), scale));
                    candidates.min_by(|(a, _), (b, _)| a.total_cmp(b)).expect("four candidates").1
                }
            };
            scales.push(scale.to_bits());
            words.extend(weights.chunks(per_word).map(|weights| {
                let quantized = weights.iter().map(|w| quantize(*w, scale) as i32 as u32 & mask);
                quantized.enumerate().fold(0, |word, (idx, q)| word | (q << (idx * bits)))
            }));
        }
        words.extend(scales);
        let dtype = DType::QFloat(self.scheme(block));
        TensorData::from_bytes(Bytes::from_elems(words), Shape::new([d_out, d_in]), dtype)
    }

    /// Quantizes a matrix (row-major, `[d_out, d_in]`) and uploads it to a device.
    pub(crate) fn quantize<B: Kernels>(
        self,
        values: &[f32],
        shape: [usize; 2],
        device: &B::Device,
    ) -> Tensor<B, 2> {
        B::quantized_matrix(self.pack(values, shape), device)
    }
}

impl fmt::Display for Quant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The precision of a frozen model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Precision {
    /// The dtype in which it computes, and in which its norms and biases are stored.
    pub dtype: Dtype,
    /// The dtype in which its matrices stay if they are so in the files; others are stored in `dtype`. If it is not `dtype`,
    /// the backend must widen them as it reads them ([`Kernels::widens`]).
    pub matrices: Dtype,
    /// The quantization of the linear maps within its blocks, if any.
    pub quant: Option<Quant>,
}

impl Precision {
    /// Everything in one dtype.
    pub fn new(dtype: Dtype) -> Self {
        Self { dtype, matrices: dtype, quant: None }
    }

    /// The quantization of a tensor: linear maps within the blocks are quantized, if a block size divides their rows.
    pub fn quant_of(&self, name: &str, shape: &[usize]) -> Option<Quant> {
        let quant = self.quant?;
        match shape {
            [_, d_in] if block_of(name).is_some() && name.ends_with(".weight") => {
                quant.block(*d_in).map(|_| quant)
            }
            _ => None,
        }
    }

    /// Size of a tensor in bytes.
    pub fn bytes_of(&self, name: &str, shape: &[usize]) -> usize {
        let n = shape.iter().product::<usize>();
        match (self.quant_of(name, shape), shape) {
            (Some(quant), [_, d_in]) => {
                let scales = n / quant.block(*d_in).expect("a block size divides the rows");
                let weights = if quant == Quant::Int4 { n / 2 } else { n };
                weights + 4 * scales
            }
            (None, [_, _]) => n * self.matrices.size(),
            _ => n * self.dtype.size(),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.quant {
            Some(quant) => write!(f, "{quant} weights, {}", self.dtype),
            None if self.matrices != self.dtype => write!(f, "{}, matrices in {}", self.dtype, self.matrices),
            None => write!(f, "{}", self.dtype),
        }
    }
}

/// Whether a matrix is quantized.
pub(crate) fn is_quantized<B: Backend>(matrix: &Tensor<B, 2>) -> bool {
    matches!(matrix.dtype(), DType::QFloat(_))
}
