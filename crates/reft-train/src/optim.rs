//! AdamW, learning-rate schedules and gradient clipping.

use burn::{
    module::{AutodiffModule, ModuleVisitor, Param},
    optim::{AdamWConfig, GradientsParams},
    tensor::{DType, Tensor},
};
use reft_core::to_dtype;
use reft_kernels::{AutodiffKernels, Kernels};
use serde::{Deserialize, Serialize};

/// The shape of the learning rate after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Linear decay to 0.
    #[default]
    Linear,
    /// Cosine decay to 0.
    Cosine,
    /// No decay.
    Constant,
}

/// A learning-rate schedule, equal to transformers' `get_*_schedule_with_warmup`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Schedule {
    /// The shape after the warm-up.
    pub kind: ScheduleKind,
    /// Peak learning rate.
    pub peak: f64,
    /// Updates of the linear warm-up from 0.
    pub warmup_steps: usize,
    /// Total number of updates.
    pub total_steps: usize,
}

impl Schedule {
    /// Whether every update has the learning rate 0.
    pub fn is_zero(&self) -> bool {
        (0..self.total_steps.min(self.warmup_steps + 2)).all(|step| self.lr(step) == 0.0)
    }

    /// The learning rate of an update, counting from 0.
    pub fn lr(&self, step: usize) -> f64 {
        let (step, warmup, total) = (step as f64, self.warmup_steps as f64, self.total_steps as f64);
        if step < warmup {
            return self.peak * step / warmup.max(1.0);
        }
        let progress = ((step - warmup) / (total - warmup).max(1.0)).min(1.0);
        self.peak
            * match self.kind {
                ScheduleKind::Linear => 1.0 - progress,
                ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
                ScheduleKind::Constant => 1.0,
            }
    }
}

/// AdamW with PyTorch's defaults.
pub fn adamw(weight_decay: f64) -> AdamWConfig {
    AdamWConfig::new().with_epsilon(1e-8).with_weight_decay(weight_decay as f32)
}

/// Scales all gradients by `scale`, then clips their global norm to `clip` (`torch.nn.utils.clip_grad_norm_`); a `clip` of
/// 0 disables clipping.
///
/// Returns the gradients and the norm before clipping, `[1]`. Nothing is read from the device.
pub fn scale_and_clip<B: AutodiffKernels, M: AutodiffModule<B>>(
    grads: GradientsParams,
    module: &M,
    scale: f64,
    clip: f64,
) -> (GradientsParams, Tensor<B::InnerBackend, 1>) {
    let mut squares = SquaredNorms { grads: &grads, sums: Vec::<Tensor<B::InnerBackend, 1>>::new() };
    module.visit(&mut squares);
    if squares.sums.is_empty() {
        let device = module.devices().into_iter().next().unwrap_or_default();
        return (grads, Tensor::zeros([1], &device));
    }
    let norm = Tensor::cat(squares.sums, 0).sum().sqrt().mul_scalar(scale);
    // PyTorch adds 1e-6 to the norm.
    let clipping = || (norm.clone() + 1e-6).recip().mul_scalar(clip).clamp_max(1.0).mul_scalar(scale);
    let factor = if clip > 0.0 { Factor::OnDevice(clipping()) } else { Factor::Known(scale) };
    let mut scaled = Scaled { from: grads, to: GradientsParams::new(), factor };
    module.visit(&mut scaled);
    (scaled.to, norm)
}

struct SquaredNorms<'a, C: Kernels> {
    grads: &'a GradientsParams,
    sums: Vec<Tensor<C, 1>>,
}

impl<B: AutodiffKernels> ModuleVisitor<B> for SquaredNorms<'_, B::InnerBackend> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
            self.sums.push(to_dtype(grad.square().sum(), DType::F32));
        }
    }
}

/// What all gradients are multiplied with.
enum Factor<C: Kernels> {
    Known(f64),
    /// `[1]`
    OnDevice(Tensor<C, 1>),
}

struct Scaled<C: Kernels> {
    from: GradientsParams,
    to: GradientsParams,
    factor: Factor<C>,
}

impl<B: AutodiffKernels> ModuleVisitor<B> for Scaled<B::InnerBackend> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.from.remove::<B::InnerBackend, D>(param.id) {
            let scaled = match &self.factor {
                Factor::Known(factor) => grad * *factor,
                Factor::OnDevice(factor) => {
                    let factor = to_dtype(factor.clone(), grad.dtype());
                    grad * factor.reshape([1; D])
                }
            };
            self.to.register(param.id, scaled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[cfg(feature = "flex")]
    use reft_core::host_values;

    #[test]
    fn schedules_whose_updates_all_have_the_rate_0_are_recognized() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine, ScheduleKind::Constant] {
            let is_zero =
                |warmup_steps, total_steps| Schedule { kind, peak: 1.0, warmup_steps, total_steps }.is_zero();
            assert!(is_zero(1, 1) && !is_zero(0, 1) && !is_zero(1, 2) && !is_zero(2, 2) && !is_zero(20, 200));
        }
    }

    /// As `torch.nn.utils.clip_grad_norm_` does: one norm over all parameters.
    #[cfg(feature = "flex")]
    #[test]
    fn all_gradients_are_clipped_by_one_norm() {
        use burn::{backend::Autodiff, module::Module};
        type A = Autodiff<burn_flex::Flex>;
        #[derive(Module, Debug)]
        struct Two<B: Kernels> {
            a: Param<Tensor<B, 1>>,
            b: Param<Tensor<B, 2>>,
        }
        let device = Default::default();
        let module = Two::<A> {
            a: Param::from_tensor(Tensor::from_floats([1.0, 1.0], &device)),
            b: Param::from_tensor(Tensor::from_floats([[1.0]], &device)),
        };
        // Gradients [1, 2] and [2]: a norm of 3.
        let grads = || {
            let weights = Tensor::from_floats([1.0, 2.0], &device);
            let loss = (module.a.val() * weights).sum() + module.b.val().sum().mul_scalar(2.0);
            GradientsParams::from_grads(loss.backward(), &module)
        };
        let clipped = |scale, clip| {
            let (grads, norm) = scale_and_clip(grads(), &module, scale, clip);
            let a: Tensor<burn_flex::Flex, 1> = grads.get(module.a.id).expect("a gradient");
            (host_values(a)[1], host_values(norm)[0])
        };
        assert_eq!(clipped(0.5, 0.0), (1.0, 1.5));
        let (second, norm) = clipped(1.0, 1.5);
        assert!((second - 1.0).abs() < 1e-5 && norm == 3.0, "{second} {norm}");
    }

    #[test]
    fn schedules_warm_up_and_decay() {
        let schedule = |kind| Schedule { kind, peak: 2.0, warmup_steps: 4, total_steps: 24 };
        let lr = |kind, step| schedule(kind).lr(step);
        assert_eq!([0, 1, 4].map(|s| lr(ScheduleKind::Linear, s)), [0.0, 0.5, 2.0]);
        assert_eq!([14, 24, 30].map(|s| lr(ScheduleKind::Linear, s)), [1.0, 0.0, 0.0]);
        assert!((lr(ScheduleKind::Cosine, 14) - 1.0).abs() < 1e-12);
        assert_eq!(lr(ScheduleKind::Constant, 23), 2.0);
        assert_eq!(
            Schedule { kind: ScheduleKind::Linear, peak: 1.0, warmup_steps: 0, total_steps: 2 }.lr(0),
            1.0
        );
    }
}
