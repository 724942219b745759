//! Each operation against the same one composed of Burn's plain operations: values, and gradients of every input.
//!
//! The plain operations run on the CPU. The functions are generic, so that the tests of other crates can run them on their
//! devices.

use crate::Plain;
use burn::tensor::{
    Bytes, DType, Int, Shape, Tensor, TensorData,
    backend::{AutodiffBackend, Backend, BackendTypes},
    quantization::{BlockSize, QuantLevel, QuantScheme, QuantStore, QuantValue},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_kernels::{
    AttentionInputs, AttentionSettings, AutodiffKernels, Dropout, Heads, Kernels, Mask, RotaryTable, Segment,
    Spans, Text,
};
use std::{ops::Range, sync::Arc};

const F32: f64 = 1e-5;
const EPSILON: f64 = 1e-5;

/// A matrix on the host.
#[derive(Clone)]
struct Matrix {
    values: Vec<f32>,
    shape: [usize; 2],
}

impl Matrix {
    fn new(values: Vec<f32>, shape: [usize; 2]) -> Self {
        assert_eq!(values.len(), shape[0] * shape[1]);
        Self { values, shape }
    }

    fn random(rng: &mut ChaCha8Rng, shape: [usize; 2], size: f32) -> Self {
        Self::new((0..shape[0] * shape[1]).map(|_| rng.random_range(-size..size)).collect(), shape)
    }

    fn of<B: Backend>(tensor: Tensor<B, 2>) -> Self {
        let shape = tensor.dims();
        Self::new(tensor.into_data().convert::<f32>().to_vec().expect("in f32"), shape)
    }

    fn on<B: Backend>(&self, device: &B::Device) -> Tensor<B, 2> {
        Tensor::from_data(TensorData::new(self.values.clone(), self.shape), device)
    }

    /// The numbers that `dtype` has for these.
    fn rounded<B: Backend>(&self, dtype: DType, device: &B::Device) -> Self {
        Self::of(self.on::<B>(device).cast(dtype).cast(DType::F32))
    }

    /// Checks the largest error relative to the largest number, or to 0.5 where sums cancel.
    fn assert_close(&self, expected: &Self, tolerance: f64, what: &str) {
        assert_eq!(self.shape, expected.shape, "{what}");
        let size = expected.values.iter().fold(0.5_f32, |size, x| size.max(x.abs()));
        for (idx, (x, y)) in self.values.iter().zip(&expected.values).enumerate() {
            let error = f64::from((x - y).abs() / size);
            assert!(error <= tolerance, "{what}: number {idx} is {x}, not {y}; {error:.1e} of {size}");
        }
    }
}

/// The device of the plain operations.
fn cpu() -> <Plain as BackendTypes>::Device {
    Default::default()
}

fn on_cpu(matrix: &Matrix) -> Tensor<Plain, 2> {
    matrix.on(&cpu())
}

/// A row vector as a vector.
fn vector<B: Backend>(row: Tensor<B, 2>) -> Tensor<B, 1> {
    let n = row.shape().num_elements();
    row.reshape([n])
}

/// What is compared.
struct Case<'a, A: AutodiffKernels> {
    what: String,
    dtype: DType,
    tolerance: f64,
    device: &'a A::Device,
}

impl<'a, A: AutodiffKernels> Case<'a, A> {
    fn new(what: impl Into<String>, device: &'a A::Device) -> Self {
        Self { what: what.into(), dtype: DType::F32, tolerance: F32, device }
    }

    fn in_dtype(self, dtype: DType) -> Self {
        let tolerance = match dtype {
            DType::F16 => 4e-3,
            DType::BF16 => 3e-2,
            _ => F32,
        };
        Self { dtype, tolerance, what: format!("{} in {dtype:?}", self.what), ..self }
    }

    /// The value, and the gradients of the inputs that are tracked, when `grad` is the gradient of the output.
    fn run<T: AutodiffBackend, const N: usize>(
        &self,
        inputs: &[Matrix; N],
        grad: Option<&Matrix>,
        tracked: usize,
        (dtype, device): (DType, &T::Device),
        operation: impl Fn([Tensor<T, 2>; N]) -> Tensor<T, 2>,
    ) -> (Matrix, Vec<Option<Matrix>>) {
        let inputs: [Tensor<T, 2>; N] = std::array::from_fn(|idx| {
            let input = inputs[idx].on::<T>(device).cast(dtype);
            if tracked >> idx & 1 == 1 { input.require_grad() } else { input }
        });
        let output = operation(inputs.clone());
        assert_eq!(output.dtype(), dtype, "{}", self.what);
        let value = Matrix::of(output.clone());
        let Some(grad) = grad.filter(|_| tracked > 0) else { return (value, vec![None; N]) };
        let grads = (output.cast(DType::F32) * grad.on(device)).sum().backward();
        let of = |input: &Tensor<T, 2>| input.grad(&grads).map(Matrix::of);
        (value, inputs.iter().map(of).collect())
    }

    /// Compares the operation with the plain one: without gradients, and with those of each choice of inputs.
    fn compare<const N: usize>(
        &self,
        rng: &mut ChaCha8Rng,
        inputs: [Matrix; N],
        kernel: impl Fn([Tensor<A, 2>; N]) -> Tensor<A, 2>,
        plain: impl Fn([Tensor<Plain, 2>; N]) -> Tensor<Plain, 2>,
    ) {
        let Self { dtype, tolerance, .. } = *self;
        let inputs = inputs.map(|input| input.rounded::<A>(dtype, self.device));
        let all = (1 << N) - 1;
        let shape = plain(inputs.each_ref().map(on_cpu)).dims();
        let grad = Matrix::random(rng, shape, 1.0);
        let (value, gradients) = self.run(&inputs, Some(&grad), all, (DType::F32, &cpu()), plain);
        for tracked in 0..=all {
            let what = format!("{}, tracked {tracked:b}", self.what);
            let (found, found_gradients) =
                self.run(&inputs, Some(&grad), tracked, (dtype, self.device), &kernel);
            found.assert_close(&value, tolerance, &what);
            for (idx, found) in found_gradients.iter().enumerate() {
                let what = format!("{what}: gradient of input {idx}");
                assert_eq!(found.is_some(), tracked >> idx & 1 == 1, "{what}");
                if let (Some(found), Some(gradient)) = (found, &gradients[idx]) {
                    found.assert_close(gradient, tolerance, &what);
                }
            }
        }
    }
}

/// The dtypes that the device computes in.
fn dtypes<A: AutodiffKernels>(device: &A::Device) -> Vec<DType> {
    let known = |dtype: &DType| A::supports_dtype(device, *dtype);
    [DType::F32, DType::F16, DType::BF16].into_iter().filter(known).collect()
}

/// Numbers of rows and columns: fewer than a vector has, odd ones, and enough for several threads.
const SHAPES: [[usize; 2]; 8] =
    [[1, 1], [1, 17], [3, 8], [5, 33], [16, 192], [2, 1001], [97, 64], [70, 1000]];

pub fn rms_norm<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(1);
    for dtype in dtypes::<A>(device) {
        for [n, d] in SHAPES {
            let inputs = [Matrix::random(rng, [n, d], 2.0), Matrix::random(rng, [1, d], 2.0)];
            Case::<A>::new(format!("rms_norm {n} x {d}"), device).in_dtype(dtype).compare(
                rng,
                inputs,
                |[x, g]| Kernels::rms_norm(x, vector(g), EPSILON),
                |[x, g]| x.clone() / (x.clone() * x).mean_dim(1).add_scalar(EPSILON).sqrt() * g,
            );
        }
    }
}

pub fn layer_norm<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(2);
    for dtype in dtypes::<A>(device) {
        // The only number of a row is its own mean, of which rounding is all that remains.
        for [n, d] in SHAPES.into_iter().filter(|[_, d]| *d > 1) {
            let inputs = [
                Matrix::random(rng, [n, d], 2.0),
                Matrix::random(rng, [1, d], 2.0),
                Matrix::random(rng, [1, d], 2.0),
            ];
            Case::<A>::new(format!("layer_norm {n} x {d}"), device).in_dtype(dtype).compare(
                rng,
                inputs,
                |[x, g, b]| Kernels::layer_norm(x, vector(g), vector(b), EPSILON),
                |[x, g, b]| {
                    let x = x.clone() - x.mean_dim(1);
                    x.clone() / (x.clone() * x).mean_dim(1).add_scalar(EPSILON).sqrt() * g + b
                },
            );
        }
    }
}

pub fn swiglu<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(3);
    for dtype in dtypes::<A>(device) {
        for [n, d] in SHAPES {
            let inputs = [Matrix::random(rng, [n, d], 5.0), Matrix::random(rng, [n, d], 2.0)];
            Case::<A>::new(format!("swiglu {n} x {d}"), device).in_dtype(dtype).compare(
                rng,
                inputs,
                |[gate, up]| Kernels::swiglu(gate, up),
                |[gate, up]| gate.clone() / gate.neg().exp().add_scalar(1.0) * up,
            );
        }
    }
}

pub fn gelu<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(14);
    for dtype in dtypes::<A>(device) {
        for [n, d] in SHAPES {
            let input = Matrix::random(rng, [n, d], 5.0);
            Case::<A>::new(format!("gelu {n} x {d}"), device).in_dtype(dtype).compare(
                rng,
                [input],
                |[x]| Kernels::gelu(x),
                |[x]| x.clone() * x.mul_scalar(0.5_f64.sqrt()).erf().add_scalar(1.0).mul_scalar(0.5),
            );
        }
    }
}

pub fn rotary<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(4);
    for dtype in dtypes::<A>(device) {
        for (texts, positions, heads, half) in [(1, 1, 1, 1), (3, 5, 2, 3), (1, 7, 3, 17), (2, 40, 9, 32)] {
            let (n, width) = (texts * positions, heads * 2 * half);
            let angles: Vec<f32> = (0..positions * half).map(|_| rng.random_range(-3.0..3.0)).collect();
            let table = |f: fn(f32) -> f32| {
                let values = angles.iter().map(|angle| f(*angle)).collect();
                let table = Matrix::new(values, [positions, half]).rounded::<A>(dtype, device);
                (table.on::<A>(device).cast(dtype), table)
            };
            let ((cos, host_cos), (sin, host_sin)) = (table(f32::cos), table(f32::sin));
            // The number in each column that the sine is multiplied with, and its sign.
            let column = |i: usize| if i % (2 * half) < half { i + half } else { i - half };
            let other: Vec<i64> = (0..width).map(|i| column(i) as i64).collect();
            let other = Tensor::<Plain, 1, Int>::from_data(TensorData::new(other, [width]), &cpu());
            let full = |table: &Matrix, of_first: f32| {
                let value = |row: usize, i: usize| {
                    let sign = if i % (2 * half) < half { of_first } else { 1.0 };
                    sign * table.values[row % positions * half + i % half]
                };
                let values = (0..n).flat_map(|row| (0..width).map(move |i| value(row, i))).collect();
                on_cpu(&Matrix::new(values, [n, width]))
            };
            let (full_cos, full_sin) = (full(&host_cos, 1.0), full(&host_sin, -1.0));
            let table = RotaryTable { cos, sin };
            for inverse in [false, true] {
                let full_sin = if inverse { full_sin.clone().neg() } else { full_sin.clone() };
                let input = Matrix::random(rng, [n, width], 2.0);
                let what = format!("rotary {n} x {heads} x {half}, inverse: {inverse}");
                Case::<A>::new(what, device).in_dtype(dtype).compare(
                    rng,
                    [input],
                    |[x]| Kernels::rotary(x, &table, inverse),
                    |[x]| x.clone() * full_cos.clone() + x.select(1, other.clone()) * full_sin.clone(),
                );
            }
        }
    }
}

/// Attention, and what the test has to know of it.
struct AttentionCase {
    what: String,
    heads: Heads,
    spans: Arc<Spans>,
    n_past: usize,
    n_keys: usize,
}

impl AttentionCase {
    /// Whether each query sees each key, of the past ones and the others; and whether it is in a segment.
    fn visible(&self) -> (Vec<bool>, Vec<bool>) {
        let (n_queries, n_keys) = (self.spans.n_queries(), self.n_past + self.n_keys);
        let (mut visible, mut used) = (vec![false; n_queries * n_keys], vec![false; n_queries]);
        let mask = self.spans.mask();
        for segment in self.spans.segments() {
            for (i, query) in segment.queries.clone().enumerate() {
                used[query] = true;
                for (j, key) in segment.keys.iter().flat_map(Clone::clone).enumerate() {
                    let place = segment.offset + i;
                    let in_window = mask.window.is_none_or(|window| j + window > place);
                    visible[query * n_keys + key] = !mask.causal || (j <= place && in_window);
                }
            }
        }
        (visible, used)
    }

    fn settings(&self, dropout: Option<Dropout>) -> AttentionSettings {
        AttentionSettings { heads: self.heads, spans: self.spans.clone(), dropout }
    }

    /// Queries, keys, values, and past keys and values.
    fn inputs(&self, rng: &mut ChaCha8Rng) -> ([Matrix; 3], Option<[Matrix; 2]>) {
        let width = self.heads.keys * self.heads.dim;
        let queries = [self.spans.n_queries(), self.heads.queries * self.heads.dim];
        let keys = [self.n_keys, width];
        let new = [
            Matrix::random(rng, queries, 3.0),
            Matrix::random(rng, keys, 2.0),
            Matrix::random(rng, keys, 1.0),
        ];
        let past = [self.n_past, width];
        let past = (self.n_past > 0).then(|| [past; 2].map(|shape| Matrix::random(rng, shape, 2.0)));
        (new, past)
    }

    /// Attention head by head over all keys. `factors` multiply the weights of each head.
    fn plain(
        &self,
        [queries, keys, values]: [Tensor<Plain, 2>; 3],
        past: Option<[Tensor<Plain, 2>; 2]>,
        factors: Option<&[Matrix]>,
    ) -> Tensor<Plain, 2> {
        let Heads { queries: n_heads, keys: n_key_heads, dim } = self.heads;
        let (keys, values) = match past {
            Some([past_keys, past_values]) => {
                (Tensor::cat(vec![past_keys, keys], 0), Tensor::cat(vec![past_values, values], 0))
            }
            None => (keys, values),
        };
        let (visible, _) = self.visible();
        let hidden = visible.iter().map(|visible| if *visible { 0.0 } else { -1e30 }).collect();
        let mask = on_cpu(&Matrix::new(hidden, [queries.dims()[0], keys.dims()[0]]));
        let heads = (0..n_heads).map(|head| {
            let key_head = head / (n_heads / n_key_heads);
            let queries = queries.clone().narrow(1, head * dim, dim);
            let keys = keys.clone().narrow(1, key_head * dim, dim);
            let values = values.clone().narrow(1, key_head * dim, dim);
            let scores = queries.matmul(keys.transpose()).div_scalar((dim as f64).sqrt()) + mask.clone();
            let scores = scores.clone() - scores.detach().max_dim(1);
            let weights = scores.clone().exp() / scores.exp().sum_dim(1);
            let weights = match factors {
                Some(factors) => weights * on_cpu(&factors[head]),
                None => weights,
            };
            weights.matmul(values)
        });
        Tensor::cat(heads.collect(), 1)
    }

    /// 1 in the rows of queries that are in a segment: the outputs of padding have no meaning.
    fn used(&self) -> Matrix {
        let used: Vec<f32> = self.visible().1.into_iter().map(|used| f32::from(u8::from(used))).collect();
        let n = used.len();
        Matrix::new(used, [n, 1])
    }

    fn check<A: AutodiffKernels>(&self, rng: &mut ChaCha8Rng, dtype: DType, device: &A::Device) {
        let what = format!("{}, {:?}, {:?}", self.what, self.heads, self.spans);
        let case = Case::<A>::new(what, device).in_dtype(dtype);
        let (inputs, past) = self.inputs(rng);
        let past = past.map(|past| past.map(|past| past.rounded::<A>(dtype, device)));
        let used = self.used();
        case.compare(
            rng,
            inputs,
            |[queries, keys, values]| {
                let past = past.as_ref().map(|past| past.each_ref().map(|x| x.on(device).cast(dtype)));
                let past = past.map(|[keys, values]| (keys, values));
                let inputs = AttentionInputs { queries, keys, values, past };
                Kernels::attention(inputs, &self.settings(None)) * used.on::<A>(device).cast(dtype)
            },
            |inputs| {
                let past = past.as_ref().map(|past| past.each_ref().map(on_cpu));
                self.plain(inputs, past, None) * on_cpu(&used)
            },
        );
    }
}

const HEADS: [Heads; 7] = [
    Heads { queries: 1, keys: 1, dim: 1 },
    Heads { queries: 3, keys: 1, dim: 6 },
    Heads { queries: 4, keys: 2, dim: 16 },
    Heads { queries: 2, keys: 2, dim: 33 },
    Heads { queries: 12, keys: 12, dim: 8 },
    Heads { queries: 10, keys: 1, dim: 5 },
    Heads { queries: 6, keys: 2, dim: 32 },
];

fn some_heads(rng: &mut ChaCha8Rng) -> Heads {
    HEADS[rng.random_range(0..HEADS.len())]
}

fn some_mask(rng: &mut ChaCha8Rng) -> Mask {
    match rng.random_range(0..3) {
        0 => Mask::NONE,
        1 => Mask::CAUSAL,
        _ => Mask { causal: true, window: Some(rng.random_range(1..40)) },
    }
}

/// Texts in a grid, with padding on the left or on the right and, in a cache, columns of keys before it.
fn grid(rng: &mut ChaCha8Rng, longest: usize) -> AttentionCase {
    let (batch, seq) = (rng.random_range(1..5), rng.random_range(1..=longest));
    let earlier = if rng.random() { rng.random_range(0..=longest) } else { 0 };
    let left = rng.random();
    let mask = some_mask(rng);
    // Columns that no text uses, as in a cache that is not full.
    let slots = earlier + seq + rng.random_range(0..4);
    let texts: Vec<Text> = (0..batch)
        .map(|_| {
            let len = rng.random_range(1..=seq);
            let queries = if left { seq - len..seq } else { 0..len };
            let new = earlier + queries.start..earlier + queries.end;
            let before = rng.random_range(0..=earlier);
            let start = if left { earlier - before..earlier } else { 0..before };
            let keys = if start.is_empty() { vec![new] } else { vec![start, new] };
            Text { queries, keys }
        })
        .collect();
    let spans = Spans::grid(&texts, [seq, slots], mask);
    AttentionCase { what: "grid".into(), heads: some_heads(rng), spans, n_past: 0, n_keys: batch * slots }
}

/// Packed texts that share a beginning, and those of their own.
fn packed(rng: &mut ChaCha8Rng, longest: usize, with_past: bool) -> AttentionCase {
    let n_past = if with_past { rng.random_range(1..=longest) } else { 0 };
    let mut segments: Vec<Segment> = Vec::new();
    let mut n = 0;
    for _ in 0..rng.random_range(1..4) {
        let prefix = n..n + rng.random_range(1..=longest);
        n = prefix.end;
        let past: Range<usize> = rng.random_range(0..=n_past)..n_past;
        let row = |rows: &Range<usize>| n_past + rows.start..n_past + rows.end;
        let keys: Vec<_> = [past.clone(), row(&prefix)].into_iter().filter(|rows| !rows.is_empty()).collect();
        segments.push(Segment { queries: prefix.clone(), keys: keys.clone(), offset: past.len() });
        for _ in 0..rng.random_range(0..3) {
            let own = n..n + rng.random_range(1..=longest);
            n = own.end;
            let offset = past.len() + prefix.len();
            let keys = keys.iter().cloned().chain([row(&own)]).collect();
            segments.push(Segment { queries: own, keys, offset });
        }
    }
    let spans = Spans::packed(segments, n, some_mask(rng));
    AttentionCase { what: "packed".into(), heads: some_heads(rng), spans, n_past, n_keys: n }
}

pub fn attention_in_a_grid<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(5);
    for dtype in dtypes::<A>(device) {
        for longest in [1, 1, 2, 5, 9, 17, 40, 90, 3, 7, 12, 30] {
            grid(rng, longest).check::<A>(rng, dtype, device);
        }
    }
}

pub fn attention_of_packed_texts<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(6);
    for dtype in dtypes::<A>(device) {
        for longest in [1, 2, 5, 9, 17, 40, 90, 130] {
            packed(rng, longest, false).check::<A>(rng, dtype, device);
        }
    }
}

pub fn attention_with_constant_keys<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(7);
    for dtype in dtypes::<A>(device) {
        for longest in [1, 3, 9, 40, 90] {
            packed(rng, longest, true).check::<A>(rng, dtype, device);
        }
    }
}

pub fn dropout<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(8);
    let (mut dropped, mut n_weights, rate) = (0, 0, 0.3);
    for index in 0..6 {
        // At most 32 keys, which an identity matrix of values tells apart.
        let heads = Heads { queries: 4, keys: 2, dim: 32 };
        let case = loop {
            let case = if index % 2 == 0 { grid(rng, 7) } else { packed(rng, 7, false) };
            if case.n_keys <= 32 {
                break AttentionCase { heads, ..case };
            }
        };
        let ([queries, keys, values], _) = case.inputs(rng);
        let run = |values: &Matrix, dropout| {
            let [queries, keys, values] = [&queries, &keys, values].map(|x| x.on::<A>(device));
            let inputs = AttentionInputs { queries, keys, values, past: None };
            Matrix::of(Kernels::attention(inputs, &case.settings(dropout)) * case.used().on::<A>(device))
        };
        let with_seed = |seed| Some(Dropout { rate, seed });
        run(&values, Some(Dropout { rate: 0.0, seed: 1 })).assert_close(&run(&values, None), 1e-6, "rate 0");
        assert_eq!(run(&values, with_seed(2)).values, run(&values, with_seed(2)).values);

        let mut identity = Matrix::new(vec![0.0; case.n_keys * 64], [case.n_keys, 64]);
        for key in 0..case.n_keys {
            identity.values[key * 64 + key] = 1.0;
            identity.values[key * 64 + 32 + key] = 1.0;
        }
        let (weights, kept) = (run(&identity, None), run(&identity, with_seed(3)));
        let (visible, used) = case.visible();
        let n = case.spans.n_queries();
        let mut factors = vec![Matrix::new(vec![0.0; n * case.n_keys], [n, case.n_keys]); heads.queries];
        for (query, head, key) in (0..n)
            .flat_map(|query| (0..heads.queries).map(move |head| (query, head)))
            .flat_map(|(query, head)| (0..case.n_keys).map(move |key| (query, head, key)))
            .filter(|(query, _, key)| used[*query] && visible[query * case.n_keys + key])
        {
            let at = query * heads.queries * 32 + head * 32 + key;
            if weights.values[at] < 1e-12 {
                continue;
            }
            let factor = f64::from(kept.values[at] / weights.values[at]);
            let scale = 1.0 / (1.0 - rate);
            assert!(factor == 0.0 || (factor / scale - 1.0).abs() < 1e-4, "a factor of {factor}");
            factors[head].values[query * case.n_keys + key] = if factor == 0.0 { 0.0 } else { scale as f32 };
            n_weights += 1;
            dropped += usize::from(factor == 0.0);
        }
        let used = case.used();
        Case::<A>::new(format!("dropout {:?}", case.spans), device).compare(
            rng,
            [queries.clone(), keys.clone(), values.clone()],
            |[queries, keys, values]| {
                let inputs = AttentionInputs { queries, keys, values, past: None };
                Kernels::attention(inputs, &case.settings(with_seed(3))) * used.on::<A>(device)
            },
            |inputs| case.plain(inputs, None, Some(&factors)) * on_cpu(&used),
        );
    }
    let (share, n) = (dropped as f64 / n_weights as f64, n_weights as f64);
    let deviation = (rate * (1.0 - rate) / n).sqrt();
    assert!(
        (share - rate).abs() < 4.0 * deviation,
        "{share} of {n_weights} weights were dropped, not {rate}"
    );
}

/// `[n, d_in, d_out]`: few rows and many, long rows, one column, and several tiles of each.
const LINEAR: [[usize; 3]; 10] = [
    [1, 1, 1],
    [1, 64, 130],
    [4, 33, 7],
    [7, 200, 50],
    [16, 96, 5],
    [17, 16, 300],
    [40, 1088, 33],
    [150, 48, 20],
    [3, 1, 70],
    [300, 192, 200],
];

pub fn linear<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(9);
    for dtype in dtypes::<A>(device) {
        for [n, d_in, d_out] in LINEAR {
            let inputs = [
                Matrix::random(rng, [n, d_in], 1.0),
                Matrix::random(rng, [d_out, d_in], 1.0),
                Matrix::random(rng, [1, d_out], 1.0),
            ];
            let case = Case::<A>::new(format!("linear {n} x {d_in} -> {d_out}"), device).in_dtype(dtype);
            case.compare(
                rng,
                inputs.clone(),
                |[x, w, b]| Kernels::linear(x, w, Some(vector(b))),
                |[x, w, b]| x.matmul(w.transpose()) + b,
            );
            let [x, w, _] = inputs;
            case.compare(rng, [x, w], |[x, w]| Kernels::linear(x, w, None), |[x, w]| x.matmul(w.transpose()));
        }
    }
}

/// Weights in half precision in products of f32.
pub fn linear_with_half_weights<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(10);
    for dtype in dtypes::<A>(device) {
        for [n, d_in, d_out] in LINEAR {
            let w = Matrix::random(rng, [d_out, d_in], 1.0).rounded::<A>(dtype, device);
            let x = Matrix::random(rng, [n, d_in], 1.0);
            let stored = w.on::<A>(device).cast(dtype);
            let what = format!("linear {n} x {d_in} -> {d_out} with weights in {dtype:?}");
            Case::<A>::new(what, device).compare(
                rng,
                [x],
                |[x]| Kernels::linear(x, stored.clone(), None),
                |[x]| x.matmul(on_cpu(&w).transpose()),
            );
        }
    }
}

/// A matrix of integers with a scale for each block, if the backend knows it, and the matrix that it stands for.
fn quantized<A: AutodiffKernels>(
    rng: &mut ChaCha8Rng,
    [d_out, d_in]: [usize; 2],
    block: usize,
    bits: usize,
    device: &A::Device,
) -> Option<(Tensor<A, 2>, Matrix)> {
    let (value, least) = if bits == 8 { (QuantValue::Q8S, -127) } else { (QuantValue::Q4F, -8) };
    let scheme = QuantScheme::default()
        .with_value(value)
        .with_level(QuantLevel::Block(BlockSize::new([block as u8])))
        .with_store(QuantStore::PackedU32(0));
    let known = |scheme| !A::dtype_usage(device, DType::QFloat(scheme)).is_empty();
    // Some backends unpack the weights and report only the unpacked scheme.
    if !(known(scheme) || known(scheme.with_store(QuantStore::Native))) {
        return None;
    }
    let values: Vec<i32> = (0..d_out * d_in).map(|_| rng.random_range(least..=-least - 1)).collect();
    let scales: Vec<f32> = (0..d_out * d_in / block).map(|_| rng.random_range(0.001..0.01)).collect();
    let per_word = 32 / bits;
    let mask = ((1_u64 << bits) - 1) as u32;
    let word = |values: &[i32]| {
        values.iter().enumerate().fold(0, |word, (idx, value)| word | (*value as u32 & mask) << (idx * bits))
    };
    let words = values.chunks(per_word).map(word).chain(scales.iter().map(|scale| scale.to_bits()));
    let bytes = Bytes::from_elems(words.collect());
    let data = TensorData::from_bytes(bytes, Shape::new([d_out, d_in]), DType::QFloat(scheme));
    let tensor = A::quantized_matrix(data, device);
    let plain = values.iter().enumerate().map(|(idx, value)| *value as f32 * scales[idx / block]);
    Some((tensor, Matrix::new(plain.collect(), [d_out, d_in])))
}

pub fn linear_with_quantized_weights<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(11);
    for bits in [8, 4] {
        for [n, d_in, d_out] in
            [[1, 64, 32], [4, 128, 8], [16, 64, 136], [17, 192, 40], [200, 1088, 16], [40, 128, 200]]
        {
            for block in [16, 32, 64].into_iter().filter(|block| d_in % block == 0) {
                let Some((stored, w)) = quantized::<A>(rng, [d_out, d_in], block, bits, device) else {
                    continue;
                };
                let (x, b) = (Matrix::random(rng, [n, d_in], 1.0), Matrix::random(rng, [1, d_out], 1.0));
                let what = format!("linear {n} x {d_in} -> {d_out} with {bits} bits in blocks of {block}");
                Case::<A>::new(what, device).compare(
                    rng,
                    [x],
                    |[x]| Kernels::linear(x, stored.clone(), Some(vector(b.on(device)))),
                    |[x]| x.matmul(on_cpu(&w).transpose()) + on_cpu(&b),
                );
            }
        }
    }
}

pub fn nll<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(12);
    for dtype in dtypes::<A>(device) {
        for [n, d, vocab] in
            [[1, 1, 1], [1, 17, 33], [5, 64, 1027], [17, 8, 2], [150, 33, 300], [300, 16, 2100]]
        {
            let states = Matrix::random(rng, [n, d], 2.0);
            let embedding = Matrix::random(rng, [vocab, d], 1.0).rounded::<A>(dtype, device);
            let labels: Vec<u32> = (0..n).map(|_| rng.random_range(0..vocab as u32)).collect();
            let what = format!("nll of {n} x {d} in {vocab}, with an embedding in {dtype:?}");
            let run = |with_gradient| {
                let embedding = embedding.on::<A>(device).cast(dtype);
                // A backend that does not mix dtypes has states in that of the embedding.
                let states = states.on::<A>(device);
                Kernels::nll(states, embedding, &labels, with_gradient)
            };
            let (values, gradient) = run(true);
            let (alone, none) = run(false);
            assert!(none.is_none());

            let x = on_cpu(&states).require_grad();
            let logits = x.clone().matmul(on_cpu(&embedding).transpose());
            let logits = logits.clone() - logits.detach().max_dim(1);
            let ids: Vec<i64> = labels.iter().map(|label| i64::from(*label)).collect();
            let ids = Tensor::<Plain, 2, Int>::from_data(TensorData::new(ids, [n, 1]), &cpu());
            let expected = logits.clone().exp().sum_dim(1).log() - logits.gather(1, ids);
            let grads = expected.clone().sum().backward();
            let expected = Matrix::of(expected);
            // The product of the default body is in the dtype of the embedding.
            let tolerance = F32;
            for found in [values, alone] {
                assert_eq!(found.dtype(), DType::F32);
                Matrix::of(found.reshape([n, 1])).assert_close(&expected, tolerance, &what);
            }
            let gradient = Matrix::of(gradient.expect("requested"));
            gradient.assert_close(&Matrix::of(x.grad(&grads).expect("tracked")), tolerance, &what);
        }
    }
    let none = Matrix::new(Vec::new(), [0, 4]).on::<A>(device);
    let embedding = Matrix::random(rng, [3, 4], 1.0).on::<A>(device);
    let (values, gradient) = Kernels::nll(none, embedding, &[], true);
    assert_eq!((values.dims(), gradient.map(|gradient| gradient.dims())), ([0], Some([0, 4])));
}

pub fn write_rows<A: AutodiffKernels>(device: &A::Device) {
    let rng = &mut ChaCha8Rng::seed_from_u64(13);
    for [n, d] in SHAPES {
        let rows: Vec<usize> = (0..n).filter(|row| *row == 0 || rng.random()).collect();
        let inputs = [Matrix::random(rng, [n, d], 2.0), Matrix::random(rng, [rows.len(), d], 2.0)];
        let mut kept = Matrix::new(vec![1.0; n], [n, 1]);
        let mut places = Matrix::new(vec![0.0; n * rows.len()], [n, rows.len()]);
        for (idx, row) in rows.iter().enumerate() {
            kept.values[*row] = 0.0;
            places.values[row * rows.len() + idx] = 1.0;
        }
        let [matrix, values] = inputs.each_ref().map(|input| input.on::<A>(device));
        let _ = Kernels::write_rows(matrix.clone(), &rows, values);
        assert_eq!(Matrix::of(matrix).values, inputs[0].values, "somebody else holds the matrix");
        // The tape has an operation of its own.
        let [matrix, values] = inputs.each_ref().map(|input| input.on::<A::InnerBackend>(device));
        let mut expected = inputs[0].clone();
        for (row, values) in rows.iter().zip(inputs[1].values.chunks(d)) {
            expected.values[row * d..(row + 1) * d].copy_from_slice(values);
        }
        let held = matrix.clone();
        let found = Matrix::of(Kernels::write_rows(matrix.clone(), &rows, values.clone()));
        assert_eq!(found.values, expected.values, "a matrix that somebody else holds");
        assert_eq!(Matrix::of(held).values, inputs[0].values, "somebody else holds the matrix");
        let found = Matrix::of(Kernels::write_rows(matrix, &rows, values));
        assert_eq!(found.values, expected.values, "in place");
        Case::<A>::new(format!("write_rows {n} x {d}"), device).compare(
            rng,
            inputs,
            |[matrix, values]| Kernels::write_rows(matrix, &rows, values),
            |[matrix, values]| matrix * on_cpu(&kept) + on_cpu(&places).matmul(values),
        );
    }
}

/// The name of each test, and the test.
#[allow(clippy::type_complexity)]
pub fn all<A: AutodiffKernels>() -> Vec<(&'static str, fn(&A::Device))> {
    vec![
        ("rms_norm", rms_norm::<A>),
        ("layer_norm", layer_norm::<A>),
        ("swiglu", swiglu::<A>),
        ("gelu", gelu::<A>),
        ("rotary", rotary::<A>),
        ("attention_in_a_grid", attention_in_a_grid::<A>),
        ("attention_of_packed_texts", attention_of_packed_texts::<A>),
        ("attention_with_constant_keys", attention_with_constant_keys::<A>),
        ("dropout", dropout::<A>),
        ("linear", linear::<A>),
        ("linear_with_half_weights", linear_with_half_weights::<A>),
        ("linear_with_quantized_weights", linear_with_quantized_weights::<A>),
        ("nll", nll::<A>),
        ("write_rows", write_rows::<A>),
    ]
}
