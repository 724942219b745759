//! A matrix with orthonormal columns as an unconstrained parameter.

use crate::{record::recorded_param, tensor::host_values};
use burn::{
    module::{Param, ParamId},
    record::Record,
    tensor::{Int, Tensor, TensorData, backend::Backend},
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// Norm of every reflector at initialization.
///
/// Reflections do not depend on it, but gradients do: they grow as the vectors shrink. At 1/√2, a step of Adam
/// rotates the subspace as far as in pyreft, so learning rates carry over.
const REFLECTOR_NORM: f64 = std::f64::consts::FRAC_1_SQRT_2;

/// A `d × r` matrix `Q` with orthonormal columns, parametrized by `r` Householder reflections.
///
/// `Q = H₁ H₂ … H_r E · diag(s)` with `H_j = I − 2 v_j v_jᵀ / ‖v_j‖²`, where `v_j` is column `j` of the
/// parameter with the entries above the diagonal taken as zero, `E` the first `r` columns of the identity,
/// and `s` fixed signs. The product is evaluated in compact WY form, `I − U S⁻¹ Uᵀ` with `U = V / ‖V‖` and
/// `S = striu(UᵀU) + ½I` (Joffrain et al. 2006, <https://doi.org/10.1145/1141885.1141886>), by a blocked
/// triangular inversion of the `r × r` matrix `S`: `O(d r²)` time and `O(d r)` memory, never `d × d`.
///
/// `Q` is orthonormal for *any* value of the parameter, so optimizer steps, saving and loading preserve
/// orthonormality. Weight decay does not change `Q`, because it does not depend on the norms of the reflectors.
///
/// # Shapes
/// - reflectors `[d, r]`, signs `[r]`
/// - [`matrix`](Self::matrix): `[d, r]`
#[derive(Debug, Clone)]
pub struct Orthonormal<B: Backend> {
    reflectors: Param<Tensor<B, 2>>,
    /// Integers, so that they are recorded but never trained.
    signs: Param<Tensor<B, 1, Int>>,
    /// `block_masks[k]` selects the upper right quarter of each diagonal block of size 2ᵏ⁺¹.
    block_masks: Vec<Tensor<B, 2>>,
}

complete_module!(Orthonormal, record: OrthonormalRecord, modules: [reflectors, signs, block_masks], state: []);

/// The record of an [`Orthonormal`].
#[derive(Record, Debug, Clone)]
pub struct OrthonormalRecord<B: Backend> {
    reflectors: Param<Tensor<B, 2>>,
    signs: Param<Tensor<B, 1, Int>>,
}

/// A matrix that does not have orthonormal columns.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum OrthonormalError {
    /// More columns than rows cannot be orthonormal.
    #[error("rank {rank} is larger than the hidden size {hidden}; choose a rank of at most {hidden}")]
    RankTooLarge {
        /// Number of columns.
        rank: usize,
        /// Number of rows.
        hidden: usize,
    },
    /// The columns are not orthonormal.
    #[error("the columns are not orthonormal: |QᵀQ − I| reaches {deviation:.1e}, expected at most 1e-3")]
    NotOrthonormal {
        /// Largest entry of `|QᵀQ − I|`.
        deviation: f64,
    },
}

impl<B: Backend> Orthonormal<B> {
    /// A uniformly random matrix: the Q factor of a Gaussian matrix, as in `torch.nn.init.orthogonal_`.
    ///
    /// # Errors
    /// If `rank > hidden`.
    pub fn random(
        hidden: usize,
        rank: usize,
        seed: u64,
        device: &B::Device,
    ) -> Result<Self, OrthonormalError> {
        Self::draw(hidden, rank, &mut ChaCha8Rng::seed_from_u64(seed), device)
    }

    /// A uniformly random matrix with numbers from `rng`.
    pub(crate) fn draw(
        hidden: usize,
        rank: usize,
        rng: &mut ChaCha8Rng,
        device: &B::Device,
    ) -> Result<Self, OrthonormalError> {
        check_rank(hidden, rank)?;
        let gaussian: Vec<f64> = (0..hidden * rank).map(|_| rng.sample(StandardNormal)).collect();
        let (reflectors, signs) = factorize(gaussian, hidden, rank);
        Ok(Self::from_reflectors(reflectors, signs, hidden, device))
    }

    /// Parametrizes a given matrix with orthonormal columns (row-major, `[hidden, rank]`).
    ///
    /// # Errors
    /// If `rank > hidden` or the columns are not orthonormal.
    pub fn from_matrix(
        matrix: &[f32],
        hidden: usize,
        rank: usize,
        device: &B::Device,
    ) -> Result<Self, OrthonormalError> {
        check_rank(hidden, rank)?;
        let matrix: Vec<f64> = matrix.iter().map(|&x| x as f64).collect();
        let deviation = deviation(&matrix, rank);
        if deviation.is_nan() || deviation > 1e-3 {
            return Err(OrthonormalError::NotOrthonormal { deviation });
        }
        let (reflectors, signs) = factorize(matrix, hidden, rank);
        Ok(Self::from_reflectors(reflectors, signs, hidden, device))
    }

    /// Creates the matrix from reflectors (row-major, `[hidden, rank]`) and signs, as saved in an adapter.
    pub fn from_reflectors(reflectors: Vec<f32>, signs: Vec<f32>, hidden: usize, device: &B::Device) -> Self {
        let rank = signs.len();
        let reflectors = Tensor::from_data(TensorData::new(reflectors, [hidden, rank]), device);
        let signs: Vec<i32> = signs.into_iter().map(|sign| if sign < 0.0 { -1 } else { 1 }).collect();
        let signs = Tensor::from_data(TensorData::new(signs, [rank]), device);
        Self {
            reflectors: Param::from_tensor(reflectors),
            signs: Param::initialized(ParamId::new(), signs),
            block_masks: block_masks(rank, device),
        }
    }

    pub(crate) fn to_record(&self) -> OrthonormalRecord<B> {
        OrthonormalRecord { reflectors: self.reflectors.clone(), signs: self.signs.clone() }
    }

    fn with_record(self, record: OrthonormalRecord<B>) -> Self {
        let device = self.reflectors.device();
        Self::recorded(record, &device, self.reflectors.is_require_grad())
    }

    pub(crate) fn recorded(record: OrthonormalRecord<B>, device: &B::Device, is_trainable: bool) -> Self {
        let (id, signs, _) = record.signs.consume();
        let reflectors = recorded_param(record.reflectors, device, is_trainable);
        let block_masks = block_masks(signs.dims()[0], device);
        Self { reflectors, signs: Param::initialized(id, signs.to_device(device)), block_masks }
    }

    /// `Q`, `[d, r]`, differentiable with respect to the parameter.
    pub fn matrix(&self) -> Tensor<B, 2> {
        let reflectors = self.reflectors.val();
        let [_, rank] = reflectors.dims();
        let device = reflectors.device();
        let v = reflectors.tril(0);
        let norms = v.clone().square().sum_dim(0).sqrt().clamp_min(1e-30);
        let u = v / norms;
        let gram = u.clone().transpose().matmul(u.clone());
        // S⁻¹ by doubling: each step computes the inverses of all diagonal blocks from those of their halves.
        let mut inverse = Tensor::<B, 2>::eye(rank, &device) * 2.0;
        for mask in &self.block_masks {
            let off_diagonal = gram.clone() * mask.clone();
            inverse = inverse.clone() - inverse.clone().matmul(off_diagonal).matmul(inverse);
        }
        let top = u.clone().slice([0..rank, 0..rank]);
        let minus_q = u.matmul(inverse.matmul(top.transpose())).sub(self.identity_columns());
        minus_q * self.signs().neg().unsqueeze::<2>()
    }

    /// The unconstrained parameter, `[d, r]`.
    pub fn reflectors(&self) -> &Param<Tensor<B, 2>> {
        &self.reflectors
    }

    /// The fixed column signs, `[r]`.
    pub fn signs(&self) -> Tensor<B, 1> {
        self.signs.val().float()
    }

    /// `E`, `[d, r]`.
    fn identity_columns(&self) -> Tensor<B, 2> {
        let [hidden, rank] = self.reflectors.dims();
        let device = self.reflectors.device();
        let eye = Tensor::<B, 2>::eye(rank, &device);
        if hidden == rank {
            return eye;
        }
        Tensor::cat(vec![eye, Tensor::zeros([hidden - rank, rank], &device)], 0)
    }
}

fn check_rank(hidden: usize, rank: usize) -> Result<(), OrthonormalError> {
    if rank > hidden { Err(OrthonormalError::RankTooLarge { rank, hidden }) } else { Ok(()) }
}

/// Householder QR on the host, in f64: reflectors (scaled to [`REFLECTOR_NORM`]) and the signs of R's diagonal.
fn factorize(mut a: Vec<f64>, hidden: usize, rank: usize) -> (Vec<f32>, Vec<f32>) {
    let mut reflectors = vec![0f32; hidden * rank];
    let mut signs = vec![0f32; rank];
    for j in 0..rank {
        let mut v: Vec<f64> = (j..hidden).map(|i| a[i * rank + j]).collect();
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        // Reflecting onto the axis of opposite sign avoids cancellation.
        let target = if v[0] > 0.0 { -norm } else { norm };
        v[0] -= target;
        let square: f64 = v.iter().map(|x| x * x).sum();
        for k in j..rank {
            let dot: f64 = (j..hidden).map(|i| v[i - j] * a[i * rank + k]).sum();
            let factor = 2.0 * dot / square;
            for i in j..hidden {
                a[i * rank + k] -= factor * v[i - j];
            }
        }
        signs[j] = target.signum() as f32;
        let scale = REFLECTOR_NORM / square.sqrt();
        for (i, x) in v.iter().enumerate() {
            reflectors[(i + j) * rank + j] = (x * scale) as f32;
        }
    }
    (reflectors, signs)
}

/// Largest entry of `|QᵀQ − I|` of a matrix `[d, r]`.
pub(crate) fn largest_deviation<B: Backend>(matrix: Tensor<B, 2>) -> f64 {
    let [_, rank] = matrix.dims();
    deviation(&host_values(matrix).into_iter().map(f64::from).collect::<Vec<f64>>(), rank)
}

/// Largest entry of `|QᵀQ − I|`.
fn deviation(matrix: &[f64], rank: usize) -> f64 {
    let mut worst = 0f64;
    for i in 0..rank {
        for j in 0..=i {
            let dot: f64 = matrix.chunks_exact(rank).map(|row| row[i] * row[j]).sum();
            let error = (dot - f64::from(u8::from(i == j))).abs();
            worst = if error.is_nan() { f64::NAN } else { worst.max(error) };
        }
    }
    worst
}

/// The masks of [`Orthonormal`].
fn block_masks<B: Backend>(rank: usize, device: &B::Device) -> Vec<Tensor<B, 2>> {
    std::iter::successors(Some(1), |size| Some(size * 2))
        .take_while(|size| *size < rank)
        .map(|size| Tensor::from_data(TensorData::new(block_mask(rank, size), [rank, rank]), device))
        .collect()
}

/// 1 at `(i, j)` if both are in the same block of size `2 · size`, `i` in its first half and `j` in its second; else
/// 0.
fn block_mask(rank: usize, size: usize) -> Vec<f32> {
    let half = |i: usize| (i / size) % 2;
    let inside = |i: usize, j: usize| i / (2 * size) == j / (2 * size) && half(i) == 0 && half(j) == 1;
    (0..rank * rank).map(|ij| f32::from(u8::from(inside(ij / rank, ij % rank)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::{
        backend::Autodiff,
        optim::{AdamWConfig, GradientsParams, Optimizer},
    };
    use burn_flex::Flex;
    use burn_ndarray::NdArray;

    /// ‖QᵀQ − I‖∞: the largest absolute row sum.
    fn inf_norm_deviation<B: Backend>(q: Tensor<B, 2>) -> f32 {
        let [_, rank] = q.dims();
        let gram = q.clone().transpose().matmul(q);
        let eye = Tensor::eye(rank, &gram.device());
        (gram - eye).abs().sum_dim(1).max().into_scalar().to_string().parse().expect("a number")
    }

    fn values<B: Backend>(tensor: Tensor<B, 2>) -> Vec<f32> {
        tensor.into_data().convert::<f32>().to_vec().expect("f32 data")
    }

    fn reproduces_a_given_matrix<B: Backend>() {
        let device = Default::default();
        let mut rng = ChaCha8Rng::seed_from_u64(7);
        for (hidden, rank) in [(1, 1), (5, 5), (16, 3), (192, 8), (256, 33)] {
            let first = Orthonormal::<B>::draw(hidden, rank, &mut rng, &device).expect("rank fits");
            let matrix = values(first.matrix());
            let again = Orthonormal::<B>::from_matrix(&matrix, hidden, rank, &device).expect("orthonormal");
            let worst =
                values(again.matrix()).iter().zip(&matrix).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-6, "{hidden}x{rank}: {worst}");
            assert!(inf_norm_deviation(again.matrix()) < 1e-5);
        }
    }

    #[test]
    fn a_given_matrix_is_reproduced_flex() {
        reproduces_a_given_matrix::<Flex>();
    }

    #[test]
    fn a_given_matrix_is_reproduced_ndarray() {
        reproduces_a_given_matrix::<NdArray>();
    }

    #[test]
    fn nearly_parallel_reflectors_give_orthonormal_columns() {
        // Nearly parallel reflectors make the triangular system very ill-conditioned.
        let (hidden, rank) = (300, 64);
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let noisy: Vec<f32> =
            (0..hidden * rank).map(|_| 1.0 + 0.01 * rng.sample::<f32, _>(StandardNormal)).collect();
        let q = Orthonormal::<Flex>::from_reflectors(noisy, vec![1.0; rank], hidden, &Default::default());
        assert!(inf_norm_deviation(q.matrix()) < 1e-4, "{}", inf_norm_deviation(q.matrix()));
    }

    #[test]
    fn a_thousand_steps_with_weight_decay_keep_it_orthonormal() {
        type B = Autodiff<Flex>;
        let (hidden, rank, device) = (4096, 64, Default::default());
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let mut q = Orthonormal::<B>::draw(hidden, rank, &mut rng, &device).expect("rank fits");
        let mut optim = AdamWConfig::new().with_weight_decay(0.1).with_epsilon(1e-8).init();
        let before = values(q.matrix());
        let noise: Vec<Tensor<Flex, 2>> = (0..4)
            .map(|_| {
                let noise: Vec<f32> = (0..hidden * rank).map(|_| rng.sample(StandardNormal)).collect();
                Tensor::from_data(TensorData::new(noise, [hidden, rank]), &device)
            })
            .collect();
        // The gradient of a linear objective never vanishes. Most steps use random gradients instead, which are
        // cheaper: orthonormality must not depend on the gradient.
        for step in 0..1000 {
            let grads = if step % 50 == 0 {
                let slope = Orthonormal::<B>::draw(hidden, rank, &mut rng, &device).expect("rank fits");
                let loss = (q.matrix() * slope.matrix().detach()).sum();
                GradientsParams::from_grads(loss.backward(), &q)
            } else {
                let mut grads = GradientsParams::new();
                grads.register(q.reflectors().id, noise[step % 4].clone());
                grads
            };
            q = optim.step(1e-3, q, grads);
        }
        let after = q.matrix();
        assert!(inf_norm_deviation(after.clone()) <= 1e-5, "{}", inf_norm_deviation(after.clone()));
        let moved: f32 = values(after).iter().zip(&before).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(moved > 1e-2, "the steps did not move Q: {moved}");
    }

    #[test]
    fn invalid_matrices_are_errors() {
        let device = Default::default();
        let skew = Orthonormal::<Flex>::from_matrix(&[1.0, 1.0, 0.0, 0.0], 2, 2, &device);
        assert!(matches!(skew, Err(OrthonormalError::NotOrthonormal { .. })));
        let nan = Orthonormal::<Flex>::from_matrix(&[f32::NAN, 1.0], 2, 1, &device);
        assert!(matches!(nan, Err(OrthonormalError::NotOrthonormal { .. })));
        let wide = Orthonormal::<Flex>::from_matrix(&[1.0, 0.0], 1, 2, &device);
        assert!(matches!(wide, Err(OrthonormalError::RankTooLarge { .. })));
    }
}
