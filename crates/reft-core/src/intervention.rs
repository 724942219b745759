//! The interventions: low-rank edits of a hidden state.
//!
//! All six methods are variants of one equation, `h + Pᵀ(σ(Wh + b) − Ph)`. They differ in three ways: whether the
//! rows of `P` are orthonormal (`P` is then written `R`), whether there is a `W`, and whether `Ph` is subtracted.
//!
//! | method | edit | pyreft class |
//! |---|---|---|
//! | [`Method::Loreft`] | `h + Rᵀ(σ(Wh + b) − Rh)` | `LoreftIntervention` |
//! | [`Method::Direft`] | `h + Pᵀσ(Wh + b)` | `NodireftIntervention` |
//! | [`Method::Noreft`] | `h + Pᵀ(σ(Wh + b) − Ph)` | `NoreftIntervention` |
//! | [`Method::Orthodireft`] | `h + Rᵀσ(Wh + b)` | `DireftIntervention` |
//! | [`Method::Consreft`] | `h + Rᵀ(b − Rh)` | `ConsreftIntervention` |
//! | [`Method::Lobireft`] | `h + Rᵀb` | `LobireftIntervention` |

use crate::{
    orthogonal::{Orthonormal, OrthonormalError, OrthonormalRecord, largest_deviation},
    record::{config_text, recorded_config, recorded_param},
    site::Site,
    tensor::{host_values, to_dtype},
};
use burn::{
    module::{Module, Param},
    nn::DropoutConfig,
    record::Record,
    tensor::{Tensor, TensorData, activation, backend::Backend},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The equation of an intervention, by its name in the paper's code. See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// `h + Rᵀ(σ(Wh + b) − Rh)`, the paper's LoReFT.
    #[default]
    Loreft,
    /// `h + Pᵀσ(Wh + b)`, the paper's DiReFT.
    Direft,
    /// `h + Pᵀ(σ(Wh + b) − Ph)`, LoReFT without orthonormal rows.
    Noreft,
    /// `h + Rᵀσ(Wh + b)`, DiReFT with orthonormal rows.
    Orthodireft,
    /// `h + Rᵀ(b − Rh)`, which sets the subspace to a constant.
    Consreft,
    /// `h + Rᵀb`, which adds a constant.
    Lobireft,
}

impl Method {
    /// Every method.
    pub const ALL: [Self; 6] =
        [Self::Loreft, Self::Direft, Self::Noreft, Self::Orthodireft, Self::Consreft, Self::Lobireft];

    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Method::Loreft => "loreft",
            Method::Direft => "direft",
            Method::Noreft => "noreft",
            Method::Orthodireft => "orthodireft",
            Method::Consreft => "consreft",
            Method::Lobireft => "lobireft",
        }
    }

    /// Whether the projection has orthonormal rows.
    pub fn orthonormal(self) -> bool {
        !matches!(self, Method::Direft | Method::Noreft)
    }

    /// Whether there is a `W`.
    pub fn has_weight(self) -> bool {
        !matches!(self, Method::Consreft | Method::Lobireft)
    }

    /// Whether `Ph` is subtracted.
    pub fn subtracts(self) -> bool {
        matches!(self, Method::Loreft | Method::Noreft | Method::Consreft)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The function σ applied to `Wh + b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Activation {
    /// `x`.
    #[default]
    Linear,
    /// `max(x, 0)`.
    Relu,
    /// `x Φ(x)`.
    Gelu,
    /// `x / (1 + e⁻ˣ)`.
    Silu,
    /// `tanh x`.
    Tanh,
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid,
}

impl Activation {
    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Activation::Linear => "linear",
            Activation::Relu => "relu",
            Activation::Gelu => "gelu",
            Activation::Silu => "silu",
            Activation::Tanh => "tanh",
            Activation::Sigmoid => "sigmoid",
        }
    }

    fn apply<B: Backend>(self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self {
            Activation::Linear => x,
            Activation::Relu => activation::relu(x),
            Activation::Gelu => activation::gelu(x),
            Activation::Silu => activation::silu(x),
            Activation::Tanh => activation::tanh(x),
            Activation::Sigmoid => activation::sigmoid(x),
        }
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The configuration of an [`Intervention`]; LoReFT unless another method is set.
///
/// ```
/// use burn::tensor::{Distribution, Tensor};
/// use burn_flex::Flex;
/// use reft_core::{Intervention, LoreftConfig};
///
/// let device = Default::default();
/// let edit: Intervention<Flex> = LoreftConfig::new(32, 4).with_seed(1).init(&device);
/// let hidden = Tensor::random([10, 32], Distribution::Default, &device);
/// assert_eq!(edit.forward(hidden).dims(), [10, 32]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct InterventionConfig {
    /// The equation.
    pub method: Method,
    /// Size `d` of the hidden states.
    pub hidden_size: usize,
    /// Rank `r` of the edit.
    pub rank: usize,
    /// The activation σ.
    pub activation: Activation,
    /// Dropout on the edited hidden state, during training (as in pyreft).
    pub dropout: f64,
    /// Seed of the initialization. Not recorded or saved.
    #[serde(skip)]
    pub seed: u64,
    /// The initialization. Not recorded or saved.
    #[serde(skip)]
    pub init: Init,
}

/// [`InterventionConfig`], whose default method is LoReFT.
pub type LoreftConfig = InterventionConfig;

/// The initialization of an intervention.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// As in the paper's code: `W`, `b` and `P` uniform in ±1/√d, `R` random orthonormal; without a `W`, `b` uniform
    /// in [0, 1).
    #[default]
    Paper,
    /// The same `P`, with `W` and `b` such that the edit is the identity before training.
    Identity,
}

/// An invalid configuration, or values that do not match it.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum InterventionError {
    /// The rank is 0.
    #[error("rank is 0; expected at least 1")]
    RankZero,
    /// The rank is too large, or the rows of `R` are not orthonormal.
    #[error(transparent)]
    Projection(#[from] OrthonormalError),
    /// Dropout outside [0, 1).
    #[error("dropout is {0}; expected a probability of at least 0 and below 1")]
    Dropout(f64),
    /// An activation with a method that has no `Wh + b`.
    #[error(
        "method {method} has no `Wh + b` to apply the activation {activation} to; use activation = \"linear\""
    )]
    UnusedActivation {
        /// The method.
        method: Method,
        /// The activation.
        activation: Activation,
    },
    /// No values of `W` and `b` make the edit the identity.
    #[error(
        "method {method} with activation {activation} cannot be initialized as the identity; use init = \"paper\""
    )]
    NoIdentity {
        /// The method.
        method: Method,
        /// The activation.
        activation: Activation,
    },
    /// Two interventions of an adapter at the same place.
    #[error("sites: {0} is listed twice")]
    SiteTwice(Site),
    /// A tensor with the wrong number of values.
    #[error("{name} has {found} values, expected {expected}")]
    Size {
        /// The tensor.
        name: &'static str,
        /// Number of values.
        found: usize,
        /// Expected number of values.
        expected: usize,
    },
}

/// The projection `P` onto the edited subspace.
#[derive(Module, Debug)]
pub enum Projection<B: Backend> {
    /// Orthonormal rows.
    Orthonormal(Orthonormal<B>),
    /// An unconstrained matrix, `[r, d]`.
    Free(Param<Tensor<B, 2>>),
}

/// One low-rank edit of hidden states, for any module. See the [module](self) for the equations.
///
/// Parameters are always f32; hidden states of another dtype are converted. Burn's records of an intervention hold its
/// configuration, so loading one gives the intervention that was saved, whatever it is loaded into.
///
/// # Shapes
/// - `W [r, d]`, `b [r]`, `P [r, d]` (`R` is parametrized by [`Orthonormal`])
/// - [`delta`](Self::delta): `[n, d] → [n, d]`
#[derive(Debug, Clone)]
pub struct Intervention<B: Backend> {
    projection: Projection<B>,
    weight: Option<Param<Tensor<B, 2>>>,
    bias: Param<Tensor<B, 1>>,
    config: InterventionConfig,
}

complete_module!(Intervention, record: InterventionRecord, modules: [projection, weight, bias], state: [config]);

/// The record of an [`Intervention`].
#[derive(Record, Debug, Clone)]
pub struct InterventionRecord<B: Backend> {
    config: String,
    orthonormal: Option<OrthonormalRecord<B>>,
    free: Option<Param<Tensor<B, 2>>>,
    weight: Option<Param<Tensor<B, 2>>>,
    bias: Param<Tensor<B, 1>>,
}

/// The values of an intervention on the host, row-major: `W [r, d]`, `b [r]`, `P [r, d]`.
#[derive(Debug, Clone, PartialEq)]
pub struct InterventionValues {
    /// `W`, for methods that have one.
    pub weight: Option<Vec<f32>>,
    /// `b`.
    pub bias: Vec<f32>,
    /// `P` or `R`.
    pub projection: Vec<f32>,
}

impl InterventionConfig {
    /// LoReFT of this rank on hidden states of this size.
    pub fn new(hidden_size: usize, rank: usize) -> Self {
        Self {
            method: Method::Loreft,
            hidden_size,
            rank,
            activation: Activation::Linear,
            dropout: 0.0,
            seed: 0,
            init: Init::Paper,
        }
    }

    /// Sets the equation.
    pub fn with_method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// Sets the activation σ.
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Sets the dropout.
    pub fn with_dropout(self, dropout: f64) -> Self {
        Self { dropout, ..self }
    }

    /// Sets the seed of the initialization.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets the initialization.
    pub fn with_init(self, init: Init) -> Self {
        Self { init, ..self }
    }

    pub(crate) fn check(&self) -> Result<(), InterventionError> {
        if self.rank == 0 {
            return Err(InterventionError::RankZero);
        }
        if self.rank > self.hidden_size {
            let (rank, hidden) = (self.rank, self.hidden_size);
            return Err(OrthonormalError::RankTooLarge { rank, hidden }.into());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(InterventionError::Dropout(self.dropout));
        }
        let (method, activation) = (self.method, self.activation);
        if !method.has_weight() && activation != Activation::Linear {
            return Err(InterventionError::UnusedActivation { method, activation });
        }
        Ok(())
    }

    /// Number of trainable parameters.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn num_params(&self) -> Result<usize, InterventionError> {
        self.check()?;
        let matrices = 1 + usize::from(self.method.has_weight());
        Ok(matrices * self.rank * self.hidden_size + self.rank)
    }

    /// Whether some `W` and `b` make the edit the identity.
    fn has_identity(&self) -> bool {
        match self.method {
            Method::Loreft | Method::Noreft => self.activation == Activation::Linear,
            Method::Direft | Method::Orthodireft => self.activation != Activation::Sigmoid,
            Method::Lobireft => true,
            Method::Consreft => false,
        }
    }

    /// Creates a new intervention.
    ///
    /// Random numbers are drawn on the host, so the same seed gives the same values on every backend.
    ///
    /// # Panics
    /// If the configuration is invalid; [`try_init`](Self::try_init) returns an error instead.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Intervention<B> {
        self.try_init(device).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Creates a new intervention, see [`init`](Self::init).
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn try_init<B: Backend>(&self, device: &B::Device) -> Result<Intervention<B>, InterventionError> {
        self.draw(&mut ChaCha8Rng::seed_from_u64(self.seed), device)
    }

    /// Creates a new intervention with numbers from `rng`.
    pub(crate) fn draw<B: Backend>(
        &self,
        rng: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Result<Intervention<B>, InterventionError> {
        self.check()?;
        let (d, r) = (self.hidden_size, self.rank);
        let (method, activation, init) = (self.method, self.activation, self.init);
        if init == Init::Identity && !self.has_identity() {
            return Err(InterventionError::NoIdentity { method, activation });
        }
        let bound = 1.0 / (d as f32).sqrt();
        let mut uniform =
            |n: usize, low: f32, high: f32| (0..n).map(|_| rng.random_range(low..high)).collect::<Vec<f32>>();
        let mut weight = method.has_weight().then(|| uniform(r * d, -bound, bound));
        let mut bias = if method.has_weight() { uniform(r, -bound, bound) } else { uniform(r, 0.0, 1.0) };
        let free = (!method.orthonormal()).then(|| uniform(r * d, -bound, bound));
        let projection = match free {
            None => Projection::Orthonormal(Orthonormal::draw(d, r, rng, device)?),
            Some(values) => Projection::Free(parameter(values, [r, d], device)),
        };
        if init == Init::Identity {
            bias.fill(0.0);
            if let Some(weight) = &mut weight {
                if method.subtracts() {
                    *weight = host_values(projection.basis().transpose());
                } else {
                    weight.fill(0.0);
                }
            }
        }
        Ok(self.assemble(projection, weight, bias, device))
    }

    /// Creates an intervention with the given values.
    ///
    /// # Errors
    /// If the configuration is invalid, a tensor has the wrong size, or the rows of `R` are not orthonormal.
    pub fn with_values<B: Backend>(
        &self,
        values: InterventionValues,
        device: &B::Device,
    ) -> Result<Intervention<B>, InterventionError> {
        let (d, r) = (self.hidden_size, self.rank);
        check_size("projection", values.projection.len(), r * d)?;
        let projection = if self.method.orthonormal() {
            let mut columns = vec![0f32; d * r];
            for (i, x) in values.projection.iter().enumerate() {
                columns[(i % d) * r + i / d] = *x;
            }
            Projection::Orthonormal(Orthonormal::from_matrix(&columns, d, r, device)?)
        } else {
            Projection::Free(parameter(values.projection, [r, d], device))
        };
        self.with_projection(projection, values.weight, values.bias, device)
    }

    /// Creates an intervention with the given projection, `W` and `b`.
    pub(crate) fn with_projection<B: Backend>(
        &self,
        projection: Projection<B>,
        weight: Option<Vec<f32>>,
        bias: Vec<f32>,
        device: &B::Device,
    ) -> Result<Intervention<B>, InterventionError> {
        self.check()?;
        let weights = if self.method.has_weight() { self.rank * self.hidden_size } else { 0 };
        check_size("weight", weight.as_ref().map_or(0, Vec::len), weights)?;
        check_size("bias", bias.len(), self.rank)?;
        Ok(self.assemble(projection, weight, bias, device))
    }

    fn assemble<B: Backend>(
        &self,
        projection: Projection<B>,
        weight: Option<Vec<f32>>,
        bias: Vec<f32>,
        device: &B::Device,
    ) -> Intervention<B> {
        Intervention {
            projection,
            weight: weight.map(|w| parameter(w, [self.rank, self.hidden_size], device)),
            bias: parameter(bias, [self.rank], device),
            config: Self { seed: 0, init: Init::Paper, ..*self },
        }
    }
}

impl<B: Backend> Projection<B> {
    /// `Pᵀ`, `[d, r]`, differentiable with respect to the parameter.
    pub fn basis(&self) -> Tensor<B, 2> {
        match self {
            Projection::Orthonormal(orthonormal) => orthonormal.matrix(),
            Projection::Free(matrix) => matrix.val().transpose(),
        }
    }
}

impl<B: Backend> Intervention<B> {
    /// The configuration.
    pub fn config(&self) -> &InterventionConfig {
        &self.config
    }

    /// `P`.
    pub fn projection(&self) -> &Projection<B> {
        &self.projection
    }

    /// `W`, for methods that have one.
    pub fn weight(&self) -> Option<&Param<Tensor<B, 2>>> {
        self.weight.as_ref()
    }

    /// `b`.
    pub fn bias(&self) -> &Param<Tensor<B, 1>> {
        &self.bias
    }

    /// The change of every hidden state: `Pᵀ(σ(Wh + b) − Ph)`, or the method's variant of it.
    ///
    /// `basis` is [`Projection::basis`], which the caller computes once per step rather than once per batch.
    ///
    /// # Shapes
    /// - hidden `[n, d]` of any float dtype, basis `[d, r]`
    /// - output `[n, d]` in the dtype of `hidden`
    ///
    /// # Panics
    /// If the hidden states have another size.
    pub fn delta(&self, hidden: Tensor<B, 2>, basis: Tensor<B, 2>) -> Tensor<B, 2> {
        let (dtype, [_, size], [expected, _]) = (hidden.dtype(), hidden.dims(), basis.dims());
        assert!(
            size == expected,
            "an intervention on hidden states of size {expected} got states of size {size}"
        );
        let hidden = to_dtype(hidden, basis.dtype());
        let bias = self.bias.val().unsqueeze::<2>();
        let [rows, _] = hidden.dims();
        let target = match &self.weight {
            Some(weight) => {
                self.config.activation.apply(hidden.clone().matmul(weight.val().transpose()) + bias)
            }
            None => bias.repeat_dim(0, rows),
        };
        let subspace_change = if self.config.method.subtracts() {
            target - hidden.clone().matmul(basis.clone())
        } else {
            target
        };
        let mut delta = subspace_change.matmul(basis.transpose());
        if self.config.dropout > 0.0 {
            let dropout = DropoutConfig::new(self.config.dropout).init();
            delta = dropout.forward(hidden.clone() + delta) - hidden;
        }
        to_dtype(delta, dtype)
    }

    /// The edited hidden states, `h + delta(h)`.
    ///
    /// # Shapes
    /// - hidden and output `[…, d]`
    ///
    /// # Panics
    /// If the hidden states have another size.
    pub fn forward<const D: usize>(&self, hidden: Tensor<B, D>) -> Tensor<B, D> {
        let shape = hidden.shape();
        let size = shape[D - 1];
        let rows = hidden.reshape([shape.num_elements() / size.max(1), size]);
        (rows.clone() + self.delta(rows, self.projection.basis())).reshape(shape)
    }

    /// The largest entry of `|PPᵀ − I|`: 0 up to rounding for methods with an orthonormal `R`, however they were trained.
    pub fn orthonormality_error(&self) -> f64 {
        largest_deviation(self.projection.basis())
    }

    fn to_record(&self) -> InterventionRecord<B> {
        let (orthonormal, free) = match &self.projection {
            Projection::Orthonormal(orthonormal) => (Some(orthonormal.to_record()), None),
            Projection::Free(matrix) => (None, Some(matrix.clone())),
        };
        InterventionRecord {
            config: config_text(&self.config),
            orthonormal,
            free,
            weight: self.weight.clone(),
            bias: self.bias.clone(),
        }
    }

    fn with_record(self, record: InterventionRecord<B>) -> Self {
        Self::recorded(record, &self.bias.device(), self.bias.is_require_grad())
    }

    pub(crate) fn recorded(record: InterventionRecord<B>, device: &B::Device, is_trainable: bool) -> Self {
        let projection = match (record.orthonormal, record.free) {
            (Some(record), _) => Projection::Orthonormal(Orthonormal::recorded(record, device, is_trainable)),
            (None, Some(saved)) => Projection::Free(recorded_param(saved, device, is_trainable)),
            (None, None) => panic!("a record of an intervention without a projection"),
        };
        Self {
            projection,
            weight: record.weight.map(|saved| recorded_param(saved, device, is_trainable)),
            bias: recorded_param(record.bias, device, is_trainable),
            config: recorded_config(&record.config),
        }
    }

    /// The values on the host.
    pub fn values(&self) -> InterventionValues {
        InterventionValues {
            weight: self.weight.as_ref().map(|w| host_values(w.val())),
            bias: host_values(self.bias.val()),
            projection: host_values(self.projection.basis().transpose()),
        }
    }
}

fn parameter<B: Backend, const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    Param::from_tensor(Tensor::from_data(TensorData::new(values, shape), device))
}

fn check_size(name: &'static str, found: usize, expected: usize) -> Result<(), InterventionError> {
    if found == expected { Ok(()) } else { Err(InterventionError::Size { name, found, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::DType;
    use burn_flex::Flex;
    use burn_ndarray::NdArray;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn config(method: Method, activation: Activation) -> InterventionConfig {
        InterventionConfig::new(24, 3).with_method(method).with_activation(activation).with_seed(7)
    }

    fn random(rng: &mut ChaCha8Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.random_range(-2.0..2.0)).collect()
    }

    /// The equation in scalar arithmetic.
    fn reference(config: &InterventionConfig, v: &InterventionValues, h: &[f32]) -> Vec<f32> {
        let d = config.hidden_size;
        let dot = |row: &[f32]| row.iter().zip(h).map(|(a, b)| a * b).sum::<f32>();
        let mut out = h.to_vec();
        for k in 0..config.rank {
            let p = &v.projection[k * d..(k + 1) * d];
            let mut z = v.bias[k];
            if let Some(w) = &v.weight {
                z += dot(&w[k * d..(k + 1) * d]);
                z = match config.activation {
                    Activation::Linear => z,
                    Activation::Relu => z.max(0.0),
                    Activation::Silu => z / (1.0 + (-z).exp()),
                    Activation::Tanh => z.tanh(),
                    Activation::Sigmoid => 1.0 / (1.0 + (-z).exp()),
                    Activation::Gelu => unreachable!("not in this test"),
                };
            }
            if config.method.subtracts() {
                z -= dot(p);
            }
            for (o, p) in out.iter_mut().zip(p) {
                *o += p * z;
            }
        }
        out
    }

    fn output_matches_the_equation<B: Backend>() {
        let device = Default::default();
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for method in Method::ALL {
            for activation in [
                Activation::Linear,
                Activation::Relu,
                Activation::Silu,
                Activation::Tanh,
                Activation::Sigmoid,
            ] {
                if !method.has_weight() && activation != Activation::Linear {
                    continue;
                }
                let config = config(method, activation);
                let edit = config.init::<B>(&device);
                let values = edit.values();
                let h = random(&mut rng, 4 * 24);
                let hidden = Tensor::<B, 2>::from_data(TensorData::new(h.clone(), [4, 24]), &device);
                let out = host_values(edit.forward(hidden));
                let expected: Vec<f32> =
                    h.chunks(24).flat_map(|row| reference(&config, &values, row)).collect();
                for (a, b) in out.iter().zip(&expected) {
                    assert!((a - b).abs() < 2e-5, "{method:?} {activation:?}: {a} against {b}");
                }
            }
        }
    }

    #[test]
    fn output_matches_the_equation_flex() {
        output_matches_the_equation::<Flex>();
    }

    #[test]
    fn output_matches_the_equation_ndarray() {
        output_matches_the_equation::<NdArray>();
    }

    #[test]
    fn identity_initialization_changes_nothing_or_is_an_error() {
        let device = Default::default();
        let mut rng = ChaCha8Rng::seed_from_u64(6);
        for method in Method::ALL {
            let made = config(method, Activation::Linear).with_init(Init::Identity).try_init::<Flex>(&device);
            if method == Method::Consreft {
                assert!(matches!(made, Err(InterventionError::NoIdentity { .. })));
                continue;
            }
            let h = random(&mut rng, 24);
            let hidden = Tensor::<Flex, 2>::from_data(TensorData::new(h.clone(), [1, 24]), &device);
            let out = host_values(made.expect("has an identity").forward(hidden));
            for (a, b) in out.iter().zip(&h) {
                assert!((a - b).abs() < 1e-6, "{method:?}: {a} against {b}");
            }
        }
    }

    #[test]
    fn paper_initialization_is_in_bounds() {
        let bound = 1.0 / 24f32.sqrt();
        let edit = config(Method::Direft, Activation::Linear).init::<Flex>(&Default::default()).values();
        for values in [edit.weight.expect("has W"), edit.bias, edit.projection] {
            assert!(values.iter().all(|x| x.abs() <= bound));
            assert!(values.iter().any(|x| x.abs() > bound / 4.0));
        }
    }

    #[test]
    fn given_values_are_returned() {
        let device = Default::default();
        for method in Method::ALL {
            let config = config(method, Activation::Linear);
            let values = config.init::<Flex>(&device).values();
            let again = config.with_values::<Flex>(values.clone(), &device).expect("valid").values();
            assert_eq!((again.weight, again.bias), (values.weight, values.bias));
            for (a, b) in again.projection.iter().zip(&values.projection) {
                assert!((a - b).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn invalid_configurations_are_errors() {
        let device = Default::default();
        let error_with = |change: fn(&mut InterventionConfig)| {
            let mut config = config(Method::Loreft, Activation::Linear);
            change(&mut config);
            config.try_init::<Flex>(&device).expect_err("invalid").to_string()
        };
        assert_eq!(error_with(|c| c.rank = 0), "rank is 0; expected at least 1");
        assert_eq!(
            error_with(|c| c.rank = 25),
            "rank 25 is larger than the hidden size 24; choose a rank of at most 24"
        );
        assert_eq!(
            error_with(|c| c.dropout = 1.0),
            "dropout is 1; expected a probability of at least 0 and below 1"
        );
        assert_eq!(
            error_with(|c| (c.method, c.activation) = (Method::Lobireft, Activation::Relu)),
            "method lobireft has no `Wh + b` to apply the activation relu to; use activation = \"linear\""
        );
    }

    #[test]
    fn half_precision_states_keep_their_dtype() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let edit = config(Method::Loreft, Activation::Linear).init::<Flex>(&Default::default());
        let h = random(&mut rng, 24);
        let hidden = Tensor::<Flex, 2>::from_data(TensorData::new(h, [1, 24]), &Default::default());
        let exact = host_values(edit.forward(hidden.clone()));
        let half = edit.forward(hidden.cast(DType::BF16));
        assert_eq!(half.dtype(), DType::BF16);
        for (a, b) in host_values(half).iter().zip(&exact) {
            assert!((a - b).abs() < 0.03, "{a} against {b}");
        }
    }
}
