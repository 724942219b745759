//! A small trainable classification head.

use crate::{
    record::{config_text, recorded_config, recorded_param},
    tensor::{host_values, to_dtype},
};
use burn::{
    module::Param,
    nn::DropoutConfig,
    record::Record,
    tensor::{DType, Tensor, TensorData, activation::tanh, backend::Backend},
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use serde::{Deserialize, Serialize};

/// The configuration of a [`Head`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HeadConfig {
    /// Size `d` of the hidden states.
    pub hidden_size: usize,
    /// Number `k` of outputs: one per label, or 1 for regression.
    pub outputs: usize,
    /// Dropout on the input, during training.
    pub input_dropout: f64,
    /// Dropout between the two layers, during training.
    pub inner_dropout: f64,
}

/// `W₂ tanh(W₁h + b₁) + b₂`, applied to the final state of the first token (Hugging Face's
/// `RobertaClassificationHead`; in BERT, the pooler and the classifier).
///
/// # Shapes
/// - `W₁ [d, d]`, `W₂ [k, d]`
/// - input `[n, d]`, output `[n, k]`
#[derive(Debug, Clone)]
pub struct Head<B: Backend> {
    dense_weight: Param<Tensor<B, 2>>,
    dense_bias: Param<Tensor<B, 1>>,
    out_weight: Param<Tensor<B, 2>>,
    out_bias: Param<Tensor<B, 1>>,
    config: HeadConfig,
}

complete_module!(
    Head,
    record: HeadRecord,
    modules: [dense_weight, dense_bias, out_weight, out_bias],
    state: [config]
);

/// The record of a [`Head`].
#[derive(Record, Debug, Clone)]
pub struct HeadRecord<B: Backend> {
    config: String,
    dense_weight: Param<Tensor<B, 2>>,
    dense_bias: Param<Tensor<B, 1>>,
    out_weight: Param<Tensor<B, 2>>,
    out_bias: Param<Tensor<B, 1>>,
}

/// The values of a [`Head`] on the host, row-major.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct HeadValues {
    /// `W₁ [d, d]`.
    pub dense_weight: Vec<f32>,
    /// `b₁ [d]`.
    pub dense_bias: Vec<f32>,
    /// `W₂ [k, d]`.
    pub out_weight: Vec<f32>,
    /// `b₂ [k]`.
    pub out_bias: Vec<f32>,
}

impl HeadConfig {
    /// Names (Hugging Face's, without `classifier.`) and shapes of the tensors.
    pub fn tensors(&self) -> [(&'static str, Vec<usize>); 4] {
        let (d, k) = (self.hidden_size, self.outputs);
        [
            ("dense.weight", vec![d, d]),
            ("dense.bias", vec![d]),
            ("out_proj.weight", vec![k, d]),
            ("out_proj.bias", vec![k]),
        ]
    }

    /// Number of parameters.
    pub fn num_params(&self) -> usize {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum()
    }

    /// Creates a new head, initialized as in transformers: weights normal with a standard deviation of 0.02, biases 0.
    ///
    /// Random numbers are drawn on the host, so the same seed gives the same values on every backend.
    pub fn init<B: Backend>(&self, seed: u64, device: &B::Device) -> Head<B> {
        let rng = &mut ChaCha8Rng::seed_from_u64(seed);
        let normal = Normal::new(0.0f32, 0.02).expect("a positive deviation");
        let mut random = |n: usize| (0..n).map(|_| normal.sample(rng)).collect::<Vec<f32>>();
        let (d, k) = (self.hidden_size, self.outputs);
        let (dense_weight, out_weight) = (random(d * d), random(k * d));
        let values =
            HeadValues { dense_weight, dense_bias: vec![0.0; d], out_weight, out_bias: vec![0.0; k] };
        self.with_values(values, device)
    }

    /// Creates a head with the given values.
    ///
    /// # Panics
    /// If a tensor does not have the size given by [`tensors`](Self::tensors).
    pub fn with_values<B: Backend>(&self, values: HeadValues, device: &B::Device) -> Head<B> {
        let (d, k) = (self.hidden_size, self.outputs);
        let vector = |v: Vec<f32>, n: usize| {
            Param::from_tensor(Tensor::<B, 1>::from_data(TensorData::new(v, [n]), device))
        };
        let matrix = |v: Vec<f32>, n: usize| {
            Param::from_tensor(Tensor::<B, 2>::from_data(TensorData::new(v, [n, d]), device))
        };
        Head {
            dense_weight: matrix(values.dense_weight, d),
            dense_bias: vector(values.dense_bias, d),
            out_weight: matrix(values.out_weight, k),
            out_bias: vector(values.out_bias, k),
            config: *self,
        }
    }
}

impl<B: Backend> Head<B> {
    /// The configuration.
    pub fn config(&self) -> &HeadConfig {
        &self.config
    }

    /// The parameters in the order of [`HeadConfig::tensors`]: `W₁`, `b₁`, `W₂`, `b₂`.
    #[allow(clippy::type_complexity)]
    pub fn parameters(
        &self,
    ) -> (&Param<Tensor<B, 2>>, &Param<Tensor<B, 1>>, &Param<Tensor<B, 2>>, &Param<Tensor<B, 1>>) {
        (&self.dense_weight, &self.dense_bias, &self.out_weight, &self.out_bias)
    }

    /// The outputs for every row, in f32. Dropout is active only on backends that track gradients.
    ///
    /// # Shapes
    /// - states `[n, d]`, output `[n, k]`
    pub fn forward(&self, states: Tensor<B, 2>) -> Tensor<B, 2> {
        let linear = |x: Tensor<B, 2>, weight: &Param<Tensor<B, 2>>, bias: &Param<Tensor<B, 1>>| {
            x.matmul(weight.val().transpose()) + bias.val().unsqueeze::<2>()
        };
        let dropout = |x, rate: f64| DropoutConfig::new(rate).init().forward(x);
        let input = dropout(to_dtype(states, DType::F32), self.config.input_dropout);
        let inner = tanh(linear(input, &self.dense_weight, &self.dense_bias));
        linear(dropout(inner, self.config.inner_dropout), &self.out_weight, &self.out_bias)
    }

    fn to_record(&self) -> HeadRecord<B> {
        HeadRecord {
            config: config_text(&self.config),
            dense_weight: self.dense_weight.clone(),
            dense_bias: self.dense_bias.clone(),
            out_weight: self.out_weight.clone(),
            out_bias: self.out_bias.clone(),
        }
    }

    fn with_record(self, record: HeadRecord<B>) -> Self {
        let (device, is_trainable) = (self.out_bias.device(), self.out_bias.is_require_grad());
        Self {
            dense_weight: recorded_param(record.dense_weight, &device, is_trainable),
            dense_bias: recorded_param(record.dense_bias, &device, is_trainable),
            out_weight: recorded_param(record.out_weight, &device, is_trainable),
            out_bias: recorded_param(record.out_bias, &device, is_trainable),
            config: recorded_config(&record.config),
        }
    }

    /// Name, shape and values of every tensor, in the order of [`HeadConfig::tensors`].
    pub fn tensors(&self) -> impl Iterator<Item = (&'static str, Vec<usize>, Vec<f32>)> {
        let parts = self.config.tensors().into_iter().zip(self.values().into_list());
        parts.map(|((name, shape), values)| (name, shape, values))
    }

    /// The values on the host.
    pub fn values(&self) -> HeadValues {
        HeadValues {
            dense_weight: host_values(self.dense_weight.val()),
            dense_bias: host_values(self.dense_bias.val()),
            out_weight: host_values(self.out_weight.val()),
            out_bias: host_values(self.out_bias.val()),
        }
    }
}

impl HeadValues {
    /// The values in the order of [`HeadConfig::tensors`].
    pub fn into_list(self) -> [Vec<f32>; 4] {
        [self.dense_weight, self.dense_bias, self.out_weight, self.out_bias]
    }

    /// From values in the order of [`HeadConfig::tensors`].
    pub fn from_list([dense_weight, dense_bias, out_weight, out_bias]: [Vec<f32>; 4]) -> Self {
        Self { dense_weight, dense_bias, out_weight, out_bias }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn_flex::Flex;
    use rand::Rng;

    #[test]
    fn output_matches_the_equation() {
        let config = HeadConfig { hidden_size: 5, outputs: 3, input_dropout: 0.1, inner_dropout: 0.1 };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut random = |n: usize| (0..n).map(|_| rng.random_range(-1.0..1.0f32)).collect::<Vec<f32>>();
        let values = HeadValues {
            dense_weight: random(25),
            dense_bias: random(5),
            out_weight: random(15),
            out_bias: random(3),
        };
        let h = random(5);
        let head = config.with_values::<Flex>(values.clone(), &Default::default());
        let found = host_values(
            head.forward(Tensor::from_data(TensorData::new(h.clone(), [1, 5]), &Default::default())),
        );
        let dot = |row: &[f32], x: &[f32]| row.iter().zip(x).map(|(a, b)| a * b).sum::<f32>();
        let inner: Vec<f32> = (0..5)
            .map(|i| (dot(&values.dense_weight[i * 5..i * 5 + 5], &h) + values.dense_bias[i]).tanh())
            .collect();
        for (i, found) in found.iter().enumerate() {
            let expected = dot(&values.out_weight[i * 5..i * 5 + 5], &inner) + values.out_bias[i];
            assert!((found - expected).abs() < 1e-5, "{found} against {expected}");
        }
        assert_eq!(head.values(), values);
    }
}
