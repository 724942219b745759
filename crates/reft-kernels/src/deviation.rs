//! How far the kernels of a backend are from the default bodies, and its matrix products from exact ones.

use crate::{
    attention::{AttentionInputs, AttentionSettings, Heads, Mask, Segment, Spans, Text},
    default,
    kernels::Kernels,
    rotary::RotaryTable,
};
use burn::tensor::{
    Bytes, DType, Shape, Tensor, TensorData, TensorPrimitive,
    backend::Backend,
    quantization::{BlockSize, QuantLevel, QuantScheme, QuantStore, QuantValue},
};
use std::sync::Arc;

const EPSILON: f64 = 1e-5;

/// The largest deviation of some operations from their default bodies, with what they are.
///
/// A deviation is relative to the largest number of a result. The shapes reach every code path of the kernels: one row and
/// enough for several threads, lengths that fill no vector and no tile, one head and many, windows, long rows, single
/// queries with a cache, texts that share a beginning, and weights in every form. A backend without kernels of its own
/// deviates by 0.
pub fn deviations<B: Kernels>(device: &B::Device) -> Vec<(&'static str, f64)> {
    let bench = Bench::<B> { device: device.clone() };
    let measure = |operation: &'static str| match operation {
        // The default bodies would be compared with themselves.
        _ if !B::own_kernels().contains(&operation) => 0.0,
        "normalization" => bench.normalization(),
        "activations" => bench.activations(),
        "rotary embedding" => bench.rotary(),
        "attention" => bench.attention(),
        "linear maps" => bench.linear(),
        "quantized weights" => bench.quantized(),
        "loss" => bench.nll(),
        _ => bench.write_rows(),
    };
    OPERATIONS.map(|operation| (operation, measure(operation))).to_vec()
}

/// The operations whose kernels [`deviations`] measures.
pub const OPERATIONS: [&str; 8] = [
    "normalization",
    "activations",
    "rotary embedding",
    "attention",
    "linear maps",
    "quantized weights",
    "loss",
    "row edits",
];

/// Rows of x, numbers in each, and columns of the result. The numbers of each row are multiples of 8, 16, 32 and 64, odd and even
/// ones, and such that no tile divides. With 520 rows or columns, GPU backends take the products for large ones.
const PRODUCTS: [[usize; 3]; 16] = [
    [24, 1, 520],
    [24, 4, 520],
    [520, 8, 24],
    [24, 8, 520],
    [520, 24, 33],
    [24, 33, 520],
    [24, 64, 520],
    [520, 104, 520],
    [24, 160, 520],
    [24, 192, 520],
    [24, 320, 520],
    [520, 576, 24],
    [1, 576, 520],
    [24, 1088, 24],
    [24, 1000, 520],
    [24, 520, 1],
];

/// The largest deviation of the backend's own matrix products in f32 from sums in f64, relative to the largest number.
///
/// About 1e-6, or 1e-3 on devices that multiply f32 with fewer digits (TF32). Burn 0.21 with the feature `autotune` may take
/// products on GPUs that are wrong by their whole size, which shows where the right matrix is transposed, as weights are
/// ([issue 5626](https://github.com/tracel-ai/burn/issues/5626)).
pub fn product_deviation<B: Kernels>(device: &B::Device) -> f64 {
    let bench = Bench::<B> { device: device.clone() };
    worst(PRODUCTS.map(|[n, d_in, d_out]| {
        let (x, w) = (bench.numbers([n, d_in], 1, 1.0), bench.numbers([d_out, d_in], 2, 1.0));
        let transposed = bench.in_rows(w.clone().transpose());
        let found = [w.clone().transpose(), transposed].map(|w| values(x.clone().matmul(w)));
        let expected = exact_product(&values(x), &values(w), d_in);
        worst(found.map(|found| distance(&found, &expected)))
    }))
}

/// The products of rows of `d_in` numbers: those of x with those of w.
fn exact_product(x: &[f32], w: &[f32], d_in: usize) -> Vec<f64> {
    let product =
        |x: &[f32], w: &[f32]| -> f64 { x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum() };
    let rows = x.chunks_exact(d_in);
    rows.flat_map(|x| w.chunks_exact(d_in).map(move |w| product(x, w))).collect()
}

struct Bench<B: Kernels> {
    device: B::Device,
}

/// Rows and columns: fewer than a vector has, odd numbers, and enough for several threads.
const SHAPES: [[usize; 2]; 6] = [[1, 2], [3, 17], [5, 33], [2, 1001], [17, 192], [70, 1000]];

/// Rows of x and columns of the matrix and of the result: one row and several, long rows, more than one tile of each.
const LINEAR: [[usize; 3]; 8] = [
    [1, 1, 1],
    [1, 64, 136],
    [4, 33, 7],
    [7, 200, 50],
    [16, 96, 5],
    [17, 16, 300],
    [40, 1088, 33],
    [300, 192, 200],
];

impl<B: Kernels> Bench<B> {
    fn normalization(&self) -> f64 {
        // In rows of one or two numbers, gradients cancel but for a last digit.
        worst(SHAPES.into_iter().filter(|[_, d]| *d > 2).map(|[n, d]| {
            let [x, grad] = [1, 2].map(|seed| self.numbers([n, d], seed, 2.0));
            let [g, b] = [3, 4].map(|seed| self.numbers([1, d], seed, 2.0).reshape([d]));
            worst([
                deviation(
                    Kernels::rms_norm(x.clone(), g.clone(), EPSILON),
                    default::rms_norm(x.clone(), g.clone(), EPSILON),
                ),
                deviation(
                    Kernels::rms_norm_backward(x.clone(), g.clone(), EPSILON, grad.clone()),
                    default::rms_norm_backward(x.clone(), g.clone(), EPSILON, grad.clone()),
                ),
                deviation(
                    Kernels::layer_norm(x.clone(), g.clone(), b.clone(), EPSILON),
                    default::layer_norm(x.clone(), g.clone(), b, EPSILON),
                ),
                deviation(
                    Kernels::layer_norm_backward(x.clone(), g.clone(), EPSILON, grad.clone()),
                    default::layer_norm_backward(x, g, EPSILON, grad),
                ),
            ])
        }))
    }

    fn activations(&self) -> f64 {
        worst(SHAPES.into_iter().flat_map(|shape| [1.0, 20.0].map(|size| (shape, size))).map(
            |(shape, size)| {
                let x = self.numbers(shape, 1, size);
                let [up, grad] = [2, 3].map(|seed| self.numbers(shape, seed, 2.0));
                let found = Kernels::swiglu_backward(x.clone(), up.clone(), grad.clone());
                let expected = default::swiglu_backward(x.clone(), up.clone(), grad.clone());
                worst([
                    deviation(Kernels::swiglu(x.clone(), up.clone()), default::swiglu(x.clone(), up)),
                    deviation_of_all(found, expected),
                    deviation(Kernels::gelu(x.clone()), default::gelu(x.clone())),
                    deviation(
                        Kernels::gelu_backward(x.clone(), grad.clone()),
                        default::gelu_backward(x, grad),
                    ),
                ])
            },
        ))
    }

    fn rotary(&self) -> f64 {
        let shapes = [(1, 1, 1, 1), (3, 5, 2, 3), (1, 7, 3, 17), (2, 40, 9, 32), (4, 60, 12, 64)];
        worst(shapes.into_iter().flat_map(|shape| [false, true].map(|inverse| (shape, inverse))).map(
            |((texts, positions, heads, half), inverse)| {
                let angles = self.numbers([positions, half], 1, 3.0);
                let table = RotaryTable { cos: angles.clone().cos(), sin: angles.sin() };
                let x = self.numbers([texts * positions, heads * 2 * half], 2, 2.0);
                deviation(Kernels::rotary(x.clone(), &table, inverse), default::rotary(x, &table, inverse))
            },
        ))
    }

    fn attention(&self) -> f64 {
        let heads = |queries, keys, dim| Heads { queries, keys, dim };
        let window = |window| Mask { causal: true, window: Some(window) };
        let rows = |lens: &[usize], mask| {
            let mut n = 0;
            let segments = lens.iter().map(|len| {
                n += len;
                Segment { queries: n - len..n, keys: std::iter::once(n - len..n).collect(), offset: 0 }
            });
            let segments = segments.collect();
            (Spans::packed(segments, n, mask), 0, n)
        };
        // One new query of each text, after keys in a cache that has gaps and is not full.
        let decode = |mask| {
            let texts = [(0, 130), (100, 131), (129, 130)]
                .map(|(start, end)| Text { queries: 0..1, keys: vec![start..end, 139..140] });
            (Spans::grid(&texts, [1, 144], mask), 0, 3 * 144)
        };
        // Several new queries of each text, after keys in a cache that has gaps.
        let extend = |mask| {
            let texts = [(3, 60), (40, 70), (0, 1)]
                .map(|(start, end)| Text { queries: 0..37, keys: vec![start..end, 80..117] });
            (Spans::grid(&texts, [37, 120], mask), 0, 3 * 120)
        };
        // Constant keys, a beginning that several texts share, and the rest of each.
        let shared = |mask| {
            let beginning = Segment { queries: 0..90, keys: vec![5..40, 40..130], offset: 35 };
            let rest = (0..9).map(|text| {
                let queries = 90 + text * 21..90 + (text + 1) * 21;
                let keys = vec![5..40, 40..130, 40 + queries.start..40 + queries.end];
                Segment { queries, keys, offset: 125 }
            });
            let segments = std::iter::once(beginning).chain(rest).collect();
            (Spans::packed(segments, 90 + 9 * 21, mask), 40, 90 + 9 * 21)
        };
        worst([
            self.attention_of(heads(1, 1, 1), rows(&[1, 2], Mask::CAUSAL)),
            self.attention_of(heads(1, 1, 64), rows(&[200, 3], Mask::CAUSAL)),
            self.attention_of(heads(12, 12, 33), rows(&[1, 20, 65], Mask::NONE)),
            self.attention_of(heads(6, 2, 16), rows(&[150, 7], window(50))),
            // So long that several tasks share its gradients.
            self.attention_of(heads(3, 1, 8), rows(&[600], Mask::CAUSAL)),
            self.attention_of(heads(9, 3, 64), decode(Mask::CAUSAL)),
            self.attention_of(heads(4, 4, 20), decode(window(7))),
            self.attention_of(heads(10, 1, 5), decode(Mask::CAUSAL)),
            self.attention_of(heads(6, 2, 12), extend(Mask::CAUSAL)),
            self.attention_of(heads(3, 3, 16), extend(window(50))),
            self.attention_of(heads(4, 1, 8), extend(Mask::NONE)),
            self.attention_of(heads(6, 2, 32), shared(Mask::CAUSAL)),
            self.attention_of(heads(2, 2, 6), shared(window(30))),
        ])
    }

    fn attention_of(&self, heads: Heads, (spans, n_past, n_keys): (Arc<Spans>, usize, usize)) -> f64 {
        let (width, key_width) = (heads.queries * heads.dim, heads.keys * heads.dim);
        let n_queries = spans.n_queries();
        let past = |seed| self.numbers([n_past, key_width], seed, 2.0);
        let inputs = AttentionInputs {
            queries: self.numbers([n_queries, width], 1, 3.0),
            keys: self.numbers([n_keys, key_width], 2, 2.0),
            values: self.numbers([n_keys, key_width], 3, 1.0),
            past: (n_past > 0).then(|| (past(4), past(5))),
        };
        let grad = self.numbers([n_queries, width], 6, 1.0);
        let settings = AttentionSettings { heads, spans, dropout: None };
        let (output, lse) = Kernels::attention_kept(inputs.clone(), &settings);
        let (default_output, default_lse) = default::attention(inputs.clone(), &settings, true);
        let default_lse = default_lse.expect("requested");
        worst([
            deviation(Kernels::attention(inputs.clone(), &settings), default_output.clone()),
            deviation(output.clone(), default_output.clone()),
            deviation(lse.clone(), default_lse.clone()),
            deviation_of_all(
                Kernels::attention_backward(inputs.clone(), &settings, output, lse, grad.clone()),
                default::attention_backward(inputs, &settings, default_output, default_lse, grad),
            ),
        ])
    }

    fn linear(&self) -> f64 {
        worst(LINEAR.map(|[n, d_in, d_out]| {
            let w = self.numbers([d_out, d_in], 1, 1.0);
            let halves = [DType::F16, DType::BF16].into_iter();
            let halves = halves.filter(|dtype| B::supports_dtype(&self.device, *dtype));
            let halves = halves.map(|dtype| {
                let w = w.clone().cast(dtype);
                self.products(w.clone(), w, n)
            });
            worst(halves.chain([self.products(w.clone(), w.clone(), n)]))
        }))
    }

    /// The deviation of the product of some states with a matrix, and of that with its gradient. The default bodies take
    /// the matrix in a form of its own.
    fn products(&self, w: Tensor<B, 2>, default_w: Tensor<B, 2>, n: usize) -> f64 {
        let [d_out, d_in] = w.dims();
        let (x, grad) = (self.numbers([n, d_in], 2, 1.0), self.numbers([n, d_out], 3, 1.0));
        let b = self.numbers([1, d_out], 4, 1.0).reshape([d_out]);
        worst([
            deviation(
                Kernels::linear(x.clone(), w.clone(), None),
                default::linear(x.clone(), default_w.clone(), None),
            ),
            deviation(
                Kernels::linear(x.clone(), w.clone(), Some(b.clone())),
                default::linear(x, default_w.clone(), Some(b)),
            ),
            deviation(Kernels::linear_backward(w, grad.clone()), default::linear_backward(default_w, grad)),
        ])
    }

    fn quantized(&self) -> f64 {
        let forms = [(QuantValue::Q8S, 8, 64), (QuantValue::Q8S, 8, 16), (QuantValue::Q4F, 4, 32)];
        let shapes = [[1, 64, 136], [7, 192, 50], [16, 128, 5], [40, 1088, 33], [300, 192, 200]];
        worst(forms.into_iter().flat_map(|form| shapes.map(|shape| (form, shape))).filter_map(
            |((value, bits, block), [n, d_in, d_out])| {
                let data = self.integers([d_out, d_in], value, bits, block)?;
                let dense = Tensor::from_primitive(TensorPrimitive::QFloat(B::q_from_data(
                    data.clone(),
                    &self.device,
                )));
                Some(self.products(B::quantized_matrix(data, &self.device), dense, n))
            },
        ))
    }

    fn nll(&self) -> f64 {
        let shapes = [[1, 1, 1], [1, 17, 33], [5, 64, 1027], [17, 8, 2], [300, 16, 2100]];
        worst(shapes.map(|[n, d, vocab]| {
            let (states, embedding) = (self.numbers([n, d], 1, 2.0), self.numbers([vocab, d], 2, 1.0));
            let labels: Vec<u32> = (0..n).map(|idx| (idx * 7 % vocab) as u32).collect();
            let (found, gradient) = Kernels::nll(states.clone(), embedding.clone(), &labels, true);
            let (expected, default_gradient) = default::nll(states, embedding, &labels, true);
            let gradients = gradient.into_iter().zip(default_gradient);
            let gradients = gradients.map(|(found, expected)| deviation(found, expected));
            worst(gradients.chain([deviation(found.reshape([1, n]), expected.reshape([1, n]))]))
        }))
    }

    fn write_rows(&self) -> f64 {
        worst(SHAPES.map(|[n, d]| {
            let rows: Vec<usize> = (0..n).step_by(3).collect();
            let (matrix, values) = (self.numbers([n, d], 1, 2.0), self.numbers([rows.len(), d], 2, 2.0));
            deviation(
                Kernels::write_rows(matrix.clone(), &rows, values.clone()),
                default::write_rows(matrix, &rows, values),
            )
        }))
    }

    /// Numbers from `−size` to `size` without a pattern.
    fn numbers(&self, shape: [usize; 2], seed: u64, size: f32) -> Tensor<B, 2> {
        let number = |bits: u64| ((bits >> 40) as f32 / (1 << 23) as f32 - 1.0) * size;
        let values = bits(seed).take(shape[0] * shape[1]).map(number).collect();
        Tensor::from_data(TensorData::new::<f32, _>(values, shape), &self.device)
    }

    /// A matrix whose rows lie in one piece.
    fn in_rows(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        Tensor::from_data(x.into_data(), &self.device)
    }

    /// A matrix of integers with a scale for each block, packed as Burn's backends expect it: from the lowest bits of each
    /// u32 up, then the scales. `None` if the backend does not know it.
    fn integers(&self, shape: [usize; 2], value: QuantValue, bits: usize, block: u8) -> Option<TensorData> {
        let scheme = QuantScheme::default()
            .with_value(value)
            .with_level(QuantLevel::Block(BlockSize::new([block])))
            .with_store(QuantStore::PackedU32(0));
        let known = |scheme| !B::dtype_usage(&self.device, DType::QFloat(scheme)).is_empty();
        // Some backends unpack the weights and report only the unpacked scheme.
        if !(known(scheme) || known(scheme.with_store(QuantStore::Native))) {
            return None;
        }
        let n = shape[0] * shape[1];
        let words = self::bits(1).take(n * bits / 32).map(|bits| (bits >> 32) as u32);
        let scales = self::bits(2).take(n / usize::from(block)).map(|bits| (bits >> 40) as f32 / 1e9 + 1e-3);
        let words: Vec<u32> = words.chain(scales.map(f32::to_bits)).collect();
        Some(TensorData::from_bytes(Bytes::from_elems(words), Shape::new(shape), DType::QFloat(scheme)))
    }
}

/// Random bits (SplitMix64).
fn bits(seed: u64) -> impl Iterator<Item = u64> {
    (1..).map(move |idx: u64| {
        let x = (seed << 40).wrapping_add(idx).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    })
}

fn worst(deviations: impl IntoIterator<Item = f64>) -> f64 {
    deviations.into_iter().fold(0.0, f64::max)
}

fn deviation_of_all<B: Backend, const N: usize>(
    found: [Tensor<B, 2>; N],
    expected: [Tensor<B, 2>; N],
) -> f64 {
    worst(found.into_iter().zip(expected).map(|(found, expected)| deviation(found, expected)))
}

/// The largest difference, relative to the largest number; infinity if there is no such number.
fn deviation<B: Backend>(found: Tensor<B, 2>, expected: Tensor<B, 2>) -> f64 {
    if found.dims() != expected.dims() {
        return f64::INFINITY;
    }
    let expected: Vec<f64> = values(expected).into_iter().map(f64::from).collect();
    distance(&values(found), &expected)
}

fn values<B: Backend>(x: Tensor<B, 2>) -> Vec<f32> {
    x.into_data().convert::<f32>().to_vec().unwrap_or_default()
}

fn distance(found: &[f32], expected: &[f64]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let size = expected.iter().fold(f64::from(f32::MIN_POSITIVE), |size, x| size.max(x.abs()));
    let differences = found.iter().zip(expected).map(|(x, y)| (f64::from(*x) - y).abs() / size);
    worst(differences.map(|difference| if difference.is_finite() { difference } else { f64::INFINITY }))
}
