//! Helpers of the whole-system tests.

use burn::{
    backend::Autodiff,
    module::{Module, ModuleMapper, ModuleVisitor, Param},
    optim::GradientsParams,
    tensor::{Tensor, TensorData},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{Component, Hook, Place, Site, host_values};
use reft_kernels::Kernels;
use reft_models::{Llama, LlamaConfig, LoadedModel, ModelFiles, Precision, TensorSource};
use reft_train::device::{Device, choose, devices};
use std::{
    cell::RefCell,
    marker::PhantomData,
    ops::Range,
    path::{Path, PathBuf},
    slice::Iter,
};

/// The Rust code of the README, compiled and run by `cargo test --doc`.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// A file or folder of the shared material: large models and reference numbers that are not part of the repository.
///
/// It lies in the folder `REFT_SHARED`, or `../shared` beside the repository if that is unset. Tests that need it are
/// ignored where it is absent, see [`HAS_SHARED`].
pub fn shared(path: &str) -> PathBuf {
    Path::new(env!("REFT_SHARED_FOLDER")).join(path)
}

/// Whether the shared material is there.
pub const HAS_SHARED: bool = cfg!(shared);

/// The devices to test: those in `REFT_TEST_DEVICES`, as in `cpu,wgpu:0`, or all that are found.
pub fn wanted_devices() -> Vec<Device> {
    match std::env::var("REFT_TEST_DEVICES") {
        Ok(names) => names.split(',').map(|name| choose(name.trim()).expect("REFT_TEST_DEVICES").0).collect(),
        Err(_) => devices().0,
    }
}

/// A committed file or folder.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// A loaded Llama.
pub type LoadedLlama<B> = LoadedModel<B, Llama<B>>;

/// Loads a Llama on the default device.
pub fn load_llama<B: Kernels>(files: &ModelFiles, precision: Precision) -> LoadedLlama<B> {
    LoadedModel::load(files, "model", precision, &Default::default()).expect("the model loads")
}

/// A source of random weights.
pub struct RandomWeights(pub ChaCha8Rng);

impl<B: Kernels> TensorSource<B> for RandomWeights {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let n: usize = shape.iter().product();
        let (center, spread) = if name.contains("norm") { (1.0, 0.2) } else { (0.0, 0.15) };
        let values: Vec<f32> = (0..n).map(|_| center + self.0.random_range(-spread..spread)).collect();
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    }
}

/// A small Llama with random weights; the keys of `change` replace those of its `config.json`.
pub fn random_llama<B: Kernels>(change: serde_json::Value, seed: u64) -> Llama<B> {
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
    Llama::from_source(&config, &mut weights)
}

/// A hook that records the sites at which the model calls it, and edits what another hook edits.
pub struct Recorder<H> {
    hook: H,
    sites: RefCell<Vec<Site>>,
}

impl<H> Recorder<H> {
    /// Records the calls of `hook`.
    pub fn new(hook: H) -> Self {
        Self { hook, sites: RefCell::default() }
    }

    /// The sites so far, in the order of the calls.
    pub fn sites(&self) -> Vec<Site> {
        self.sites.borrow().clone()
    }
}

impl<B: Kernels, H: Hook<B>> Hook<B> for Recorder<H> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.sites.borrow_mut().push(place.site);
        self.hook.edit(place, hidden)
    }
}

/// Every site of these layers, in the order in which a model calls its hook.
pub fn all_sites(layers: Range<usize>) -> Vec<Site> {
    const COMPONENTS: [Component; 4] =
        [Component::BlockInput, Component::AttentionOutput, Component::MlpOutput, Component::BlockOutput];
    layers.flat_map(|layer| COMPONENTS.map(|component| Site { layer, component })).collect()
}

/// Whether a tensor is on the tape: a leaf that requires gradients, or computed from one.
///
/// `Tensor::is_require_grad` tells only the first.
pub fn is_tracked<B: Kernels, const D: usize>(tensor: Tensor<Autodiff<B>, D>) -> bool {
    tensor.into_primitive().tensor().is_tracked()
}

/// `‖a − b‖ / ‖b‖`.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let distance = norm(&mut a.iter().zip(b).map(|(x, y)| f64::from(x - y)));
    distance / norm(&mut b.iter().map(|x| f64::from(*x))).max(f64::MIN_POSITIVE)
}

/// The largest absolute difference; infinite if any is NaN.
pub fn max_deviation<T: Copy + Into<f64>>(a: &[T], b: &[T]) -> f64 {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(x, y)| ((*x).into() - (*y).into()).abs());
    differences.map(|d| if d.is_nan() { f64::INFINITY } else { d }).fold(0.0, f64::max)
}

/// Adds uniform noise in ±0.1 to every parameter of a module.
pub fn perturb<B: Kernels, M: Module<B>>(module: M, rng: &mut ChaCha8Rng) -> M {
    struct Perturb<'a>(&'a mut ChaCha8Rng);
    impl<B: Kernels> ModuleMapper<B> for Perturb<'_> {
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

/// A direction in the parameter space of a module: one vector per parameter, in the order in which the module visits them.
pub type Direction = Vec<Vec<f32>>;

/// A random direction with components in ±0.3.
pub fn random_direction<B: Kernels, M: Module<B>>(module: &M, rng: &mut ChaCha8Rng) -> Direction {
    struct Sizes(Vec<usize>);
    impl<B: Kernels> ModuleVisitor<B> for Sizes {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.push(param.shape().num_elements());
        }
    }
    let mut sizes = Sizes(Vec::new());
    module.visit(&mut sizes);
    sizes.0.iter().map(|n| (0..*n).map(|_| rng.random_range(-0.3..0.3)).collect()).collect()
}

/// The module with `step · direction` added to its parameters.
pub fn moved<B: Kernels, M: Module<B>>(module: &M, direction: &Direction, step: f32) -> M {
    struct Move<'a>(Iter<'a, Vec<f32>>, f32);
    impl<B: Kernels> ModuleMapper<B> for Move<'_> {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            let values = self.0.next().expect("one vector per parameter").clone();
            let data = TensorData::new(values, param.shape());
            let change = Tensor::<B, D>::from_data(data, &param.val().device()) * self.1;
            Param::initialized(param.id, param.val() + change)
        }
    }
    module.clone().map(&mut Move(direction.iter(), step))
}

/// The gradient of every parameter, in the order in which the module visits them.
pub fn gradient<B: Kernels, M: Module<Autodiff<B>>>(module: &M, grads: &GradientsParams) -> Direction {
    struct Collect<'a, B: Kernels>(&'a GradientsParams, Direction, PhantomData<B>);
    impl<B: Kernels> ModuleVisitor<Autodiff<B>> for Collect<'_, B> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<Autodiff<B>, D>>) {
            self.1.push(host_values(self.0.get::<B, D>(param.id).expect("a gradient")));
        }
    }
    let mut collect = Collect::<B>(grads, Vec::new(), PhantomData);
    module.visit(&mut collect);
    collect.1
}

/// The directional derivative of the loss.
pub fn derivative_along<B: Kernels, M: Module<Autodiff<B>>>(
    module: &M,
    grads: &GradientsParams,
    direction: &Direction,
) -> f64 {
    let gradient = gradient(module, grads);
    let parts = gradient.iter().flatten().zip(direction.iter().flatten());
    parts.map(|(a, b)| f64::from(a * b)).sum()
}

/// The gradient's direction as a unit vector, and its norm.
pub fn direction_and_norm<B: Kernels, M: Module<Autodiff<B>>>(
    module: &M,
    grads: &GradientsParams,
) -> (Direction, f64) {
    let mut direction = gradient(module, grads);
    let norm = direction.iter().flatten().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
    direction.iter_mut().flatten().for_each(|x| *x /= norm as f32);
    (direction, norm)
}

/// Makes one test per CPU backend of each generic function.
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
