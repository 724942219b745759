//! Kernels for the CPU, on slices, and burn-flex with them.
//!
//! All are vectorized for the processor that they run on, use rayon's threads, and give the same bits for any number of
//! threads. They are for f32; other dtypes take the default bodies, except that the weights of a linear map may be in half
//! precision or quantized.

pub mod activation;
pub mod attention;
pub mod linear;
pub mod loss;
pub mod norm;
mod product;
pub mod rotary;
mod rows;
pub mod simd;

use crate::{
    OPERATIONS,
    attention::{AttentionInputs, AttentionSettings},
    default,
    kernels::Kernels,
    rotary::RotaryTable,
};
use attention::{Dropout, Inputs};
use burn::tensor::{
    Bytes, DType, Tensor, TensorData, TensorMetadata, TensorPrimitive,
    ops::QTensorOps,
    quantization::{QuantLevel, QuantScheme, QuantStore, QuantValue},
};
use burn_flex::{Flex, FlexQTensor, FlexTensor, Layout};
use half::{bf16, f16};
use linear::Weight;
use std::ops::Deref;

/// A tensor in f32 whose numbers lie one after the other.
struct Numbers(FlexTensor);

impl Numbers {
    /// # Panics
    /// If the tensor is not in f32.
    fn new<const D: usize>(x: Tensor<Flex, D>) -> Self {
        let x = contiguous(x.into_primitive().tensor());
        assert_eq!(x.dtype(), DType::F32, "the kernels are for f32");
        Self(x)
    }

    /// The numbers: without a copy if nobody else holds the tensor.
    fn into_vec(self) -> Vec<f32> {
        self.0.into_data().into_vec().expect("numbers in f32")
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        self.0.as_slice().expect("numbers in f32, one after the other")
    }
}

fn contiguous(x: FlexTensor) -> FlexTensor {
    if x.layout().contiguous_offsets().is_some() { x } else { x.to_contiguous() }
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<Flex, D> {
    Tensor::from_primitive(TensorPrimitive::Float(FlexTensor::from_data(TensorData::new(values, shape))))
}

fn is_f32<const D: usize>(x: &Tensor<Flex, D>) -> bool {
    x.dtype() == DType::F32
}

/// A frozen matrix in the form that it is stored in.
enum Frozen {
    Float(FlexTensor),
    Int8 { matrix: FlexQTensor, block: usize },
    Int4 { matrix: FlexQTensor, block: usize },
}

impl Frozen {
    /// `None` for a form that the kernels do not know.
    fn new(w: Tensor<Flex, 2>) -> Option<Self> {
        match w.into_primitive() {
            TensorPrimitive::Float(w) => {
                let is_known = matches!(w.dtype(), DType::F32 | DType::F16 | DType::BF16);
                is_known.then(|| Self::Float(contiguous(w)))
            }
            TensorPrimitive::QFloat(w) => {
                let DType::QFloat(scheme) = w.dtype() else { return None };
                let [_, d_in] = w.tensor().layout().shape().dims();
                let block = block_along_rows(scheme, d_in)?;
                let is_plain = w.tensor().layout().contiguous_offsets().is_some();
                match is_packed(scheme) {
                    true => Some(Self::Int4 { matrix: w, block }),
                    false => is_plain.then_some(Self::Int8 { matrix: w, block }),
                }
            }
        }
    }

    fn weight(&self) -> Weight<'_> {
        match self {
            Self::Float(w) => match w.dtype() {
                DType::F16 => Weight::F16(w.as_slice::<f16>().expect("contiguous f16")),
                DType::BF16 => Weight::Bf16(w.as_slice::<bf16>().expect("contiguous bf16")),
                _ => Weight::F32(w.as_slice::<f32>().expect("contiguous f32")),
            },
            Self::Int8 { matrix, block } => Weight::Int8 {
                values: matrix.tensor().as_slice::<i8>().expect("contiguous i8"),
                scales: matrix.scales(),
                block: *block,
            },
            Self::Int4 { matrix, block } => {
                Weight::Int4 { packed: matrix.tensor().bytes(), scales: matrix.scales(), block: *block }
            }
        }
    }
}

/// Whether two weights share a byte, as in the matrices of [`Kernels::quantized_matrix`]. burn-flex gives each a byte of its own,
/// so that none of its operations understands these matrices: their tensors have the shape of the matrix, but only
/// half of the bytes, in which every element is the first one.
fn is_packed(scheme: QuantScheme) -> bool {
    matches!(scheme.value, QuantValue::Q4S | QuantValue::Q4F) && scheme.store != QuantStore::Native
}

fn is_packed_matrix(w: &Tensor<Flex, 2>) -> bool {
    matches!(w.dtype(), DType::QFloat(scheme) if is_packed(scheme))
}

/// The number of weights that share a scale, if they lie in one row and the kernels know such blocks in rows of `d_in` weights.
fn block_along_rows(scheme: QuantScheme, d_in: usize) -> Option<usize> {
    let is_symmetric =
        matches!(scheme.value, QuantValue::Q8S | QuantValue::Q8F | QuantValue::Q4S | QuantValue::Q4F);
    match scheme.level {
        QuantLevel::Block(block) if is_symmetric => {
            let (along, across) = block.as_slice().split_last()?;
            let block = *along as usize;
            (across.iter().all(|dim| *dim == 1) && linear::is_block(block, d_in)).then_some(block)
        }
        _ => None,
    }
}

/// The inputs of attention on slices.
struct AttentionNumbers {
    queries: Numbers,
    keys: Numbers,
    values: Numbers,
    past: Option<(Numbers, Numbers)>,
}

impl AttentionNumbers {
    fn new(inputs: AttentionInputs<Flex>) -> Self {
        Self {
            queries: Numbers::new(inputs.queries),
            keys: Numbers::new(inputs.keys),
            values: Numbers::new(inputs.values),
            past: inputs.past.map(|(keys, values)| (Numbers::new(keys), Numbers::new(values))),
        }
    }

    fn inputs(&self, settings: &AttentionSettings) -> Inputs<'_> {
        Inputs {
            queries: &self.queries,
            keys: &self.keys,
            values: &self.values,
            past: self.past.as_ref().map(|(keys, values)| (&**keys, &**values)),
            heads: settings.heads,
            scale: settings.heads.scale() as f32,
        }
    }
}

fn dropout(settings: &AttentionSettings) -> Option<Dropout> {
    settings.dropout.map(|dropout| Dropout { rate: dropout.rate as f32, seed: dropout.seed })
}

impl Kernels for Flex {
    fn packs_rows(dtype: DType) -> bool {
        dtype == DType::F32
    }

    fn own_kernels() -> &'static [&'static str] {
        &OPERATIONS
    }

    fn widens(stored: DType, states: DType) -> bool {
        matches!(stored, DType::F16 | DType::BF16) && states == DType::F32
    }

    fn rows_of_logits(_vocab: usize) -> usize {
        loss::ROWS * rayon::current_num_threads()
    }

    fn numbers_per_logit() -> usize {
        1
    }

    fn rms_norm(x: Tensor<Self, 2>, g: Tensor<Self, 1>, epsilon: f64) -> Tensor<Self, 2> {
        if !(is_f32(&x) && is_f32(&g)) {
            return default::rms_norm(x, g, epsilon);
        }
        let [n, d] = x.dims();
        tensor(norm::rms_norm(&Numbers::new(x), &Numbers::new(g), epsilon as f32, d), [n, d])
    }

    fn rms_norm_backward(
        x: Tensor<Self, 2>,
        g: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        if !(is_f32(&x) && is_f32(&g) && is_f32(&grad)) {
            return default::rms_norm_backward(x, g, epsilon, grad);
        }
        let [n, d] = x.dims();
        let (x, g, grad) = (Numbers::new(x), Numbers::new(g), Numbers::new(grad).into_vec());
        tensor(norm::rms_norm_backward(&x, &g, epsilon as f32, grad, d), [n, d])
    }

    fn layer_norm(
        x: Tensor<Self, 2>,
        g: Tensor<Self, 1>,
        b: Tensor<Self, 1>,
        epsilon: f64,
    ) -> Tensor<Self, 2> {
        if !(is_f32(&x) && is_f32(&g) && is_f32(&b)) {
            return default::layer_norm(x, g, b, epsilon);
        }
        let [n, d] = x.dims();
        let (x, g, b) = (Numbers::new(x), Numbers::new(g), Numbers::new(b));
        tensor(norm::layer_norm(&x, &g, &b, epsilon as f32, d), [n, d])
    }

    fn layer_norm_backward(
        x: Tensor<Self, 2>,
        g: Tensor<Self, 1>,
        epsilon: f64,
        grad: Tensor<Self, 2>,
    ) -> Tensor<Self, 2> {
        if !(is_f32(&x) && is_f32(&g) && is_f32(&grad)) {
            return default::layer_norm_backward(x, g, epsilon, grad);
        }
        let [n, d] = x.dims();
        let (x, g, grad) = (Numbers::new(x), Numbers::new(g), Numbers::new(grad).into_vec());
        tensor(norm::layer_norm_backward(&x, &g, epsilon as f32, grad, d), [n, d])
    }

    fn swiglu(gate: Tensor<Self, 2>, up: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !(is_f32(&gate) && is_f32(&up)) {
            return default::swiglu(gate, up);
        }
        let shape = gate.dims();
        tensor(activation::swiglu(&Numbers::new(gate), &Numbers::new(up)), shape)
    }

    fn swiglu_backward(
        gate: Tensor<Self, 2>,
        up: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 2] {
        if !(is_f32(&gate) && is_f32(&up) && is_f32(&grad)) {
            return default::swiglu_backward(gate, up, grad);
        }
        let shape = gate.dims();
        let (gate, up) = (Numbers::new(gate).into_vec(), Numbers::new(up).into_vec());
        let (gate, up) = activation::swiglu_backward(gate, up, &Numbers::new(grad));
        [tensor(gate, shape), tensor(up, shape)]
    }

    fn gelu(x: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !is_f32(&x) {
            return default::gelu(x);
        }
        let shape = x.dims();
        tensor(activation::gelu(&Numbers::new(x)), shape)
    }

    fn gelu_backward(x: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !(is_f32(&x) && is_f32(&grad)) {
            return default::gelu_backward(x, grad);
        }
        let shape = x.dims();
        tensor(activation::gelu_backward(&Numbers::new(x), Numbers::new(grad).into_vec()), shape)
    }

    fn rotary(x: Tensor<Self, 2>, table: &RotaryTable<Self>, inverse: bool) -> Tensor<Self, 2> {
        if !(is_f32(&x) && is_f32(&table.cos)) {
            return default::rotary(x, table, inverse);
        }
        let ([n, width], [_, half]) = (x.dims(), table.cos.dims());
        let (cos, sin) = (Numbers::new(table.cos.clone()), Numbers::new(table.sin.clone()));
        let mut x = Numbers::new(x).into_vec();
        rotary::rotary(&mut x, &cos, &sin, [width / (2 * half), 2 * half], inverse);
        tensor(x, [n, width])
    }

    fn attention(inputs: AttentionInputs<Self>, settings: &AttentionSettings) -> Tensor<Self, 2> {
        if !is_f32(&inputs.queries) {
            return default::attention(inputs, settings, false).0;
        }
        let shape = inputs.queries.dims();
        let (numbers, spans) = (AttentionNumbers::new(inputs), &settings.spans);
        let inputs = numbers.inputs(settings);
        tensor(attention::attention(inputs, spans.segments(), spans.mask(), dropout(settings), None), shape)
    }

    fn attention_kept(
        inputs: AttentionInputs<Self>,
        settings: &AttentionSettings,
    ) -> (Tensor<Self, 2>, Tensor<Self, 2>) {
        if !is_f32(&inputs.queries) {
            let (output, lse) = default::attention(inputs, settings, true);
            return (output, lse.expect("requested"));
        }
        let [n, width] = inputs.queries.dims();
        let (numbers, spans) = (AttentionNumbers::new(inputs), &settings.spans);
        let mut lse = vec![0.0; n * settings.heads.queries];
        let output = attention::attention(
            numbers.inputs(settings),
            spans.segments(),
            spans.mask(),
            dropout(settings),
            Some(&mut lse),
        );
        (tensor(output, [n, width]), tensor(lse, [n, settings.heads.queries]))
    }

    fn attention_backward(
        inputs: AttentionInputs<Self>,
        settings: &AttentionSettings,
        output: Tensor<Self, 2>,
        lse: Tensor<Self, 2>,
        grad: Tensor<Self, 2>,
    ) -> [Tensor<Self, 2>; 3] {
        if !is_f32(&inputs.queries) {
            return default::attention_backward(inputs, settings, output, lse, grad);
        }
        let (query_shape, key_shape) = (inputs.queries.dims(), inputs.keys.dims());
        let (numbers, spans) = (AttentionNumbers::new(inputs), &settings.spans);
        let (queries, keys, values) = attention::attention_backward(
            numbers.inputs(settings),
            spans.segments(),
            spans.mask(),
            dropout(settings),
            &Numbers::new(output),
            &Numbers::new(lse),
            &Numbers::new(grad),
        );
        [tensor(queries, query_shape), tensor(keys, key_shape), tensor(values, key_shape)]
    }

    fn quantized_matrix(data: TensorData, device: &Self::Device) -> Tensor<Self, 2> {
        let packed = match data.dtype {
            DType::QFloat(scheme) if is_packed(scheme) => {
                block_along_rows(scheme, data.shape[1]).map(|block| (scheme, block))
            }
            _ => None,
        };
        let Some((scheme, block)) = packed else {
            return Tensor::from_primitive(TensorPrimitive::QFloat(Self::q_from_data(data, device)));
        };
        let shape = data.shape.clone();
        let n = shape.num_elements();
        let bytes: &[u8] = &data.bytes;
        let scales = bytes[n / 2..][..4 * n / block].chunks_exact(4);
        let scales = scales.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let weights = Bytes::from_bytes_vec(bytes[..n / 2].to_vec());
        let tensor = FlexTensor::new(weights, Layout::new(shape, vec![0, 0], 0), DType::I8);
        Tensor::from_primitive(TensorPrimitive::QFloat(FlexQTensor::new(tensor, scheme, scales)))
    }

    fn linear(x: Tensor<Self, 2>, w: Tensor<Self, 2>, b: Option<Tensor<Self, 1>>) -> Tensor<Self, 2> {
        if is_packed_matrix(&w) && !is_f32(&x) {
            let dtype = x.dtype();
            let b = b.map(|b| b.cast(DType::F32));
            return Self::linear(x.cast(DType::F32), w, b).cast(dtype);
        }
        let is_known = is_f32(&x) && b.as_ref().is_none_or(is_f32);
        let Some(frozen) = is_known.then(|| Frozen::new(w.clone())).flatten() else {
            return default::linear(x, w, b);
        };
        let ([n, d_in], [d_out, _]) = (x.dims(), w.dims());
        let (x, b) = (Numbers::new(x), b.map(Numbers::new));
        tensor(linear::linear(&x, frozen.weight(), b.as_deref(), [n, d_in, d_out]), [n, d_out])
    }

    fn linear_backward(w: Tensor<Self, 2>, grad: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if is_packed_matrix(&w) && !is_f32(&grad) {
            let dtype = grad.dtype();
            return Self::linear_backward(w, grad.cast(DType::F32)).cast(dtype);
        }
        let Some(frozen) = is_f32(&grad).then(|| Frozen::new(w.clone())).flatten() else {
            return default::linear_backward(w, grad);
        };
        let ([n, d_out], [_, d_in]) = (grad.dims(), w.dims());
        tensor(linear::linear_backward(&Numbers::new(grad), frozen.weight(), [n, d_in, d_out]), [n, d_in])
    }

    fn nll(
        states: Tensor<Self, 2>,
        embedding: Tensor<Self, 2>,
        labels: &[u32],
        with_gradient: bool,
    ) -> (Tensor<Self, 1>, Option<Tensor<Self, 2>>) {
        let Some(frozen) = is_f32(&states).then(|| Frozen::new(embedding.clone())).flatten() else {
            return default::nll(states, embedding, labels, with_gradient);
        };
        let ([n, d], [vocab, _]) = (states.dims(), embedding.dims());
        let states = Numbers::new(states);
        let (values, gradient) = loss::nll(&states, frozen.weight(), labels, with_gradient, [d, vocab]);
        (tensor(values, [n]), gradient.map(|gradient| tensor(gradient, [n, d])))
    }

    fn write_rows(target: Tensor<Self, 2>, rows: &[usize], values: Tensor<Self, 2>) -> Tensor<Self, 2> {
        if !(is_f32(&target) && is_f32(&values)) {
            return default::write_rows(target, rows, values);
        }
        let [n, d] = target.dims();
        let (mut numbers, values) = (Numbers::new(target).into_vec(), Numbers::new(values));
        for (row, values) in rows.iter().zip(values.chunks_exact(d)) {
            numbers[row * d..(row + 1) * d].copy_from_slice(values);
        }
        tensor(numbers, [n, d])
    }
}
