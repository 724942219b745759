//! AdamW, learning-rate schedules and gradient clipping.

use burn::{
    module::{AutodiffModule, ModuleVisitor, Param},
    optim::{AdamWConfig, GradientsParams},
    tensor::{Tensor, backend::AutodiffBackend},
};
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
/// Returns the gradients and the norm before clipping.
pub fn scale_and_clip<B: AutodiffBackend, M: AutodiffModule<B>>(
    grads: GradientsParams,
    module: &M,
    scale: f64,
    clip: f64,
) -> (GradientsParams, f64) {
    let mut norm = SquaredNorm { grads: &grads, sum: 0.0 };
    module.visit(&mut norm);
    let norm = norm.sum.sqrt() * scale;
    // PyTorch adds 1e-6 to the norm.
    let factor = if clip > 0.0 { scale * (clip / (norm + 1e-6)).min(1.0) } else { scale };
    if factor == 1.0 {
        return (grads, norm);
    }
    let mut scaled = Scaled { from: grads, to: GradientsParams::new(), factor };
    module.visit(&mut scaled);
    (scaled.to, norm)
}

struct SquaredNorm<'a> {
    grads: &'a GradientsParams,
    sum: f64,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for SquaredNorm<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.get::<B::InnerBackend, D>(param.id) {
            let sum = grad.square().sum().into_data().convert::<f64>();
            self.sum += sum.as_slice::<f64>().map_or(f64::NAN, |values| values[0]);
        }
    }
}

struct Scaled {
    from: GradientsParams,
    to: GradientsParams,
    factor: f64,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Scaled {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.from.remove::<B::InnerBackend, D>(param.id) {
            self.to.register(param.id, grad * self.factor);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
