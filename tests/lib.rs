//! What the whole-system tests share.

use burn::{
    module::{Module, ModuleMapper, Param},
    tensor::{Tensor, backend::Backend},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_models::{LlamaConfig, load::TensorSource};
use std::path::PathBuf;

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
        Tensor::from_data(burn::tensor::TensorData::new(values, shape), &Default::default())
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
            let noise = Tensor::<B, D>::from_data(burn::tensor::TensorData::new(noise, shape), &device);
            Param::initialized(param.id, (param.val() + noise).detach())
        }
    }
    module.map(&mut Perturb(rng))
}
