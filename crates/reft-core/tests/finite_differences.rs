//! Gradients compared to finite differences, in f64.
//!
//! This test has its own process, because the default float type of a backend can be set only once.

use burn::{
    backend::Autodiff,
    module::{Module, ModuleMapper, Param},
    tensor::{Tensor, TensorData, backend::Backend},
};
use burn_ndarray::NdArray;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::Orthonormal;

type B = Autodiff<NdArray<f64>>;

/// Sets the parameter of an [`Orthonormal`].
struct Set(Vec<f64>);

impl<B: Backend> ModuleMapper<B> for Set {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let shape = param.shape();
        let device = param.val().device();
        let value = Tensor::from_data(TensorData::new(self.0.clone(), shape), &device);
        Param::initialized(param.id, value.require_grad())
    }
}

#[test]
fn gradient_of_the_orthonormal_matrix() {
    let device = Default::default();
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    for (hidden, rank) in [(7, 5), (4, 4), (9, 1), (12, 3)] {
        let mut draw = |n: usize| -> Vec<f64> { (0..n).map(|_| rng.random_range(-1.0..1.0)).collect() };
        let parameter = draw(hidden * rank);
        let weights = TensorData::new(draw(hidden * rank), [hidden, rank]);
        let weights = Tensor::<B, 2>::from_data(weights, &device);
        let signs: Vec<f32> = (0..rank).map(|k| if k % 2 == 0 { 1.0 } else { -1.0 }).collect();
        let build = |values: &[f64]| {
            let zeros = vec![0.0; hidden * rank];
            Orthonormal::<B>::from_reflectors(zeros, signs.clone(), hidden, &device)
                .map(&mut Set(values.to_vec()))
        };
        let objective =
            |values: &[f64]| -> f64 { (build(values).matrix() * weights.clone()).sum().into_scalar() };
        let q = build(&parameter);
        let grads = (q.matrix() * weights.clone()).sum().backward();
        let grad = q.reflectors().val().grad(&grads).expect("tracked");
        let grad: Vec<f64> = grad.into_data().to_vec().expect("f64");
        for i in 0..parameter.len() {
            let (mut up, mut down) = (parameter.clone(), parameter.clone());
            up[i] += 1e-5;
            down[i] -= 1e-5;
            let slope = (objective(&up) - objective(&down)) / 2e-5;
            assert!(
                (grad[i] - slope).abs() < 1e-7,
                "{hidden}x{rank}, entry {i}: {} against {slope}",
                grad[i]
            );
        }
    }
}
