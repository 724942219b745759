//! What the whole-system tests share.

use burn::{
    backend::Autodiff,
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Tensor, TensorData, backend::Backend},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_models::{LlamaConfig, load::TensorSource};
use std::{marker::PhantomData, path::PathBuf, slice::Iter};

/// A file or folder of the shared material, which lies where `REFT_SHARED` says, `../shared` beside the repository if
/// unset. Tests that need it are ignored where it is absent (see `build.rs`).
pub fn shared(path: &str) -> PathBuf {
    PathBuf::from(env!("REFT_SHARED_FOLDER")).join(path)
}

/// Random weights.
pub struct RandomWeights(pub ChaCha8Rng);

impl<B: Backend> TensorSource<B> for RandomWeights {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let n: usize = shape.iter().product();
        let (centre, spread) = if name.contains("norm") { (1.0, 0.2) } else { (0.0, 0.15) };
        let values: Vec<f32> = (0..n).map(|_| centre + self.0.random_range(-spread..spread)).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }
}

/// A small Llama with random weights; `change` is merged into its `config.json`.
pub fn random_llama<B: Backend>(change: serde_json::Value, seed: u64) -> reft_models::Llama<B> {
    let mut config = serde_json::json!({
        "model_type": "llama", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6, "vocab_size": 50,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-5
    });
    if let Some(change) = change.as_object() {
        for (key, value) in change {
            config[key] = value.clone();
        }
    }
    let config = LlamaConfig::parse(config.to_string().as_bytes()).expect("a valid configuration");
    let mut weights = RandomWeights(ChaCha8Rng::seed_from_u64(seed));
    reft_models::Llama::from_source(&config, &mut weights)
}

/// The gradients' or parameters' values on the host.
pub fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().to_vec().expect("f32 data")
}

/// `‖a − b‖ / ‖b‖`.
pub fn relative(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(x, y)| f64::from(x - y)));
    difference / norm(&mut b.iter().map(|x| f64::from(*x))).max(f64::MIN_POSITIVE)
}

/// Moves every parameter of a module by a small random amount.
pub fn perturb<B: Backend, M: Module<B>>(module: M, rng: &mut ChaCha8Rng) -> M {
    struct Perturb<'a>(&'a mut ChaCha8Rng);
    impl<B: Backend> ModuleMapper<B> for Perturb<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let shape = param.shape();
            let noise: Vec<f32> = (0..shape.num_elements()).map(|_| self.0.random_range(-0.1..0.1)).collect();
            let device = param.val().device();
            let noise = Tensor::<B, D>::from_data(TensorData::new(noise, shape), &device);
            Param::initialized(param.id, (param.val() + noise).detach())
        }
    }
    module.map(&mut Perturb(rng))
}

/// A direction in the space of a module's parameters, in the order in which it visits them.
pub type Direction = Vec<Vec<f32>>;

/// A direction with components in ±0.3.
pub fn random_direction<B: Backend, M: Module<B>>(module: &M, rng: &mut ChaCha8Rng) -> Direction {
    struct Sizes(Vec<usize>);
    impl<B: Backend> ModuleVisitor<B> for Sizes {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.push(param.shape().num_elements());
        }
    }
    let mut sizes = Sizes(Vec::new());
    module.visit(&mut sizes);
    sizes.0.iter().map(|n| (0..*n).map(|_| rng.random_range(-0.3..0.3)).collect()).collect()
}

/// The module with `by · direction` added to its parameters.
pub fn moved<B: Backend, M: Module<B>>(module: &M, direction: &Direction, by: f32) -> M {
    struct Move<'a>(Iter<'a, Vec<f32>>, f32);
    impl<B: Backend> ModuleMapper<B> for Move<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let values = self.0.next().expect("one direction for each parameter").clone();
            let data = TensorData::new(values, param.shape());
            let step = Tensor::<B, D>::from_data(data, &param.val().device()) * self.1;
            Param::initialized(param.id, param.val() + step)
        }
    }
    module.clone().map(&mut Move(direction.iter(), by))
}

/// The gradient of every parameter, in the order in which the module visits them.
pub fn gradient<B: Backend, M: Module<Autodiff<B>>>(module: &M, grads: &GradientsParams) -> Direction {
    struct Collect<'a, B: Backend>(&'a GradientsParams, Direction, PhantomData<B>);
    impl<B: Backend> ModuleVisitor<Autodiff<B>> for Collect<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            self.1.push(values(self.0.get::<B, D>(param.id).expect("a gradient")));
        }
    }
    let mut collect = Collect::<B>(grads, Vec::new(), PhantomData);
    module.visit(&mut collect);
    collect.1
}

/// The slope of the loss along a direction.
pub fn along<B: Backend, M: Module<Autodiff<B>>>(
    module: &M,
    grads: &GradientsParams,
    direction: &Direction,
) -> f64 {
    let gradient = gradient(module, grads);
    let parts = gradient.iter().flatten().zip(direction.iter().flatten());
    parts.map(|(a, b)| f64::from(a * b)).sum()
}

/// The direction of the gradient, of length 1, and the slope of the loss along it.
pub fn uphill<B: Backend, M: Module<Autodiff<B>>>(module: &M, grads: &GradientsParams) -> (Direction, f64) {
    let mut direction = gradient(module, grads);
    let slope = direction.iter().flatten().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    direction.iter_mut().flatten().for_each(|x| *x /= slope as f32);
    (direction, slope)
}

/// Makes a test of each generic function for every compiled CPU backend.
#[macro_export]
macro_rules! on_every_backend {
    ($($(#[$attribute:meta])* $test:ident),* $(,)?) => {$(
        mod $test {
            #[test]
            $(#[$attribute])*
            fn flex() {
                super::$test::<super::Flex>();
            }
            #[test]
            $(#[$attribute])*
            fn ndarray() {
                super::$test::<super::NdArray>();
            }
        }
    )*};
}
