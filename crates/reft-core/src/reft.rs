//! [`Reft`]: the interventions of one adapter, by site, and the hook that applies them to a batch.

use crate::{
    hook::Hook,
    intervention::{
        Activation, Init, Intervention, InterventionConfig, InterventionError, InterventionValues, Method,
    },
    position::{Part, Positions, Rows},
    site::{Component, Site},
};
use burn::{
    module::{AutodiffModule, Module, ModuleMapper, Param},
    tensor::{
        IndexingUpdateOp, Int, Tensor, TensorData,
        backend::{AutodiffBackend, Backend},
    },
};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// The configuration of a [`Reft`]: everything except its parameter values.
///
/// ```
/// # use reft_core::{ReftConfig, Method};
/// let config = ReftConfig::new(768, [2, 5, 8]).with_rank(4).with_positions("f3+l3".parse()?);
/// assert_eq!(config.method, Method::Loreft);
/// # Ok::<(), reft_core::position::PositionsError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReftConfig {
    /// The equation of every intervention.
    pub method: Method,
    /// Rank of every intervention.
    pub rank: usize,
    /// Size of the hidden states.
    pub hidden_size: usize,
    /// Where the model is edited.
    pub sites: Vec<Site>,
    /// Which prompt tokens are edited.
    pub positions: Positions,
    /// Whether prefix and suffix share one intervention. Has no effect if `positions` has only one side.
    pub tied: bool,
    /// The activation σ.
    #[serde(default)]
    pub activation: Activation,
    /// Dropout on the edited hidden state, during training.
    #[serde(default)]
    pub dropout: f64,
}

impl ReftConfig {
    /// LoReFT of rank 8 on the block outputs of these layers, at positions `f7+l7`, tied.
    pub fn new(hidden_size: usize, layers: impl IntoIterator<Item = usize>) -> Self {
        let site = |layer| Site { layer, component: Component::BlockOutput };
        Self {
            method: Method::Loreft,
            rank: 8,
            hidden_size,
            sites: layers.into_iter().map(site).collect(),
            positions: Positions::Ends { first: 7, last: 7 },
            tied: true,
            activation: Activation::Linear,
            dropout: 0.0,
        }
    }

    /// Sets the equation.
    pub fn with_method(self, method: Method) -> Self {
        Self { method, ..self }
    }

    /// Sets the rank.
    pub fn with_rank(self, rank: usize) -> Self {
        Self { rank, ..self }
    }

    /// Edits another component of the same layers.
    pub fn with_component(mut self, component: Component) -> Self {
        self.sites.iter_mut().for_each(|site| site.component = component);
        self
    }

    /// Sets the edited prompt tokens.
    pub fn with_positions(self, positions: Positions) -> Self {
        Self { positions, ..self }
    }

    /// Sets whether prefix and suffix share one intervention.
    pub fn with_tied(self, tied: bool) -> Self {
        Self { tied, ..self }
    }

    /// Sets the activation σ.
    pub fn with_activation(self, activation: Activation) -> Self {
        Self { activation, ..self }
    }

    /// Sets the dropout.
    pub fn with_dropout(self, dropout: f64) -> Self {
        Self { dropout, ..self }
    }

    /// The configuration of each intervention.
    pub fn intervention(&self) -> InterventionConfig {
        InterventionConfig {
            method: self.method,
            hidden_size: self.hidden_size,
            rank: self.rank,
            activation: self.activation,
            dropout: self.dropout,
        }
    }

    /// Site and part of every intervention, ordered by site, prefix before suffix.
    pub fn places(&self) -> Vec<(Site, Part)> {
        let parts: &[Part] = if self.tied || !self.positions.has_two_sides() {
            &[Part::All]
        } else {
            &[Part::Prefix, Part::Suffix]
        };
        self.sites.iter().flat_map(|site| parts.iter().map(|part| (*site, *part))).collect()
    }

    /// Number of trainable parameters.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn num_params(&self) -> Result<usize, InterventionError> {
        Ok(self.places().len() * self.intervention().num_params()?)
    }

    /// Number of blocks, of a model with `n_layers`, whose activations a backward pass needs.
    ///
    /// These are the blocks above the lowest edit, and the edited block itself if its attention or MLP comes after
    /// the edit.
    pub fn n_taped(&self, n_layers: usize) -> usize {
        let first_taped = |site: &Site| match site.component {
            Component::BlockInput | Component::AttentionOutput => site.layer,
            Component::MlpOutput | Component::BlockOutput => site.layer + 1,
        };
        self.sites.iter().map(first_taped).min().map_or(0, |first| n_layers.saturating_sub(first))
    }

    /// Creates new interventions at every place.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn init<B: Backend>(
        &self,
        init: Init,
        rng: &mut impl Rng,
        device: &B::Device,
    ) -> Result<Reft<B>, InterventionError> {
        self.build(|_, _| self.intervention().init(init, rng, device))
    }

    /// Creates interventions with the given values.
    ///
    /// # Errors
    /// If the configuration is invalid or the values do not match it.
    pub fn with_values<B: Backend>(
        &self,
        mut values: impl FnMut(Site, Part) -> InterventionValues,
        device: &B::Device,
    ) -> Result<Reft<B>, InterventionError> {
        self.build(|site, part| self.intervention().with_values(values(site, part), device))
    }

    pub(crate) fn build<B: Backend, E>(
        &self,
        mut make: impl FnMut(Site, Part) -> Result<Intervention<B>, E>,
    ) -> Result<Reft<B>, E> {
        let edits = self
            .places()
            .into_iter()
            .map(|(site, part)| Ok(Edit { site, part, intervention: make(site, part)? }))
            .collect::<Result<_, E>>()?;
        Ok(Reft { edits, config: self.clone() })
    }
}

/// One intervention and where it applies.
#[derive(Module, Debug)]
pub struct Edit<B: Backend> {
    #[module(skip)]
    site: Site,
    #[module(skip)]
    part: Part,
    intervention: Intervention<B>,
}

impl<B: Backend> Edit<B> {
    /// The edited site.
    pub fn site(&self) -> Site {
        self.site
    }

    /// The edited part of the positions.
    pub fn part(&self) -> Part {
        self.part
    }

    /// The intervention.
    pub fn intervention(&self) -> &Intervention<B> {
        &self.intervention
    }
}

/// All interventions of an adapter.
///
/// To edit a batch, compute the [`bases`](Self::bases) once per step, bind them to the rows of each batch with
/// [`hook`](Self::hook), and pass the hook to the model.
#[derive(Module, Debug)]
pub struct Reft<B: Backend> {
    edits: Vec<Edit<B>>,
    #[module(skip)]
    config: ReftConfig,
}

impl<B: Backend> Reft<B> {
    /// The configuration.
    pub fn config(&self) -> &ReftConfig {
        &self.config
    }

    /// The interventions, ordered by site, prefix before suffix.
    pub fn edits(&self) -> &[Edit<B>] {
        &self.edits
    }

    /// The lowest edited layer, if any. Layers below it need no gradients.
    pub fn first_layer(&self) -> Option<usize> {
        self.edits.iter().map(|edit| edit.site.layer).min()
    }

    /// `Pᵀ [d, r]` of every intervention, in the order of [`edits`](Self::edits).
    pub fn bases(&self) -> Vec<Tensor<B, 2>> {
        self.edits.iter().map(|edit| edit.intervention.projection().basis()).collect()
    }

    /// The hook for one batch.
    ///
    /// `bases` are those of [`bases`](Self::bases), or leaf tensors with the same values.
    ///
    /// # Panics
    /// If there is not one basis per intervention.
    pub fn hook(&self, bases: &[Tensor<B, 2>], rows: &Rows) -> ReftHook<'_, B> {
        assert_eq!(bases.len(), self.edits.len(), "one basis per intervention");
        let device = self.edits.first().map(|edit| edit.intervention.bias().val().device());
        let index = |rows: &[usize]| {
            let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
            let device = device.as_ref()?;
            let n_rows = rows.len();
            (n_rows > 0).then(|| Tensor::from_data(TensorData::new(rows, [n_rows]), device))
        };
        let (all, prefix, suffix) = (index(&rows.all()), index(&rows.prefix), index(&rows.suffix));
        let edits = self
            .edits
            .iter()
            .zip(bases)
            .filter_map(|(edit, basis)| {
                let rows = match edit.part {
                    Part::All => &all,
                    Part::Prefix => &prefix,
                    Part::Suffix => &suffix,
                };
                let (rows, basis) = (rows.clone()?, basis.clone());
                Some(BoundEdit { site: edit.site, rows, basis, intervention: &edit.intervention })
            })
            .collect();
        ReftHook { edits }
    }
}

impl<A: AutodiffBackend> Reft<A> {
    /// Moves interventions to the autodiff backend and tracks all their parameters.
    pub fn trainable(reft: Reft<A::InnerBackend>) -> Self {
        trainable(reft)
    }
}

/// Moves a module to the autodiff backend and tracks all its parameters.
pub fn trainable<A: AutodiffBackend, M: AutodiffModule<A>>(module: M::InnerModule) -> M {
    struct Track;
    impl<A: AutodiffBackend> ModuleMapper<A> for Track {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<A, D>>) -> Param<Tensor<A, D>> {
            param.set_require_grad(true)
        }
    }
    M::from_inner(module).map(&mut Track)
}

/// The interventions of a [`Reft`] bound to the rows of one batch.
#[derive(Debug)]
pub struct ReftHook<'a, B: Backend> {
    edits: Vec<BoundEdit<'a, B>>,
}

#[derive(Debug)]
struct BoundEdit<'a, B: Backend> {
    site: Site,
    rows: Tensor<B, 1, Int>,
    basis: Tensor<B, 2>,
    intervention: &'a Intervention<B>,
}

impl<B: Backend> Hook<B> for ReftHook<'_, B> {
    fn edit(&self, site: Site, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, d_model] = hidden.dims();
        let mut edits_here = self.edits.iter().filter(|edit| edit.site == site).peekable();
        if edits_here.peek().is_none() {
            return hidden;
        }
        // Prefix and suffix rows are disjoint, so the order of the edits does not matter.
        let mut flat = hidden.reshape([batch * seq, d_model]);
        for BoundEdit { rows, basis, intervention, .. } in edits_here {
            let delta = intervention.delta(flat.clone().select(0, rows.clone()), basis.clone());
            flat = flat.select_assign(0, rows.clone(), delta, IndexingUpdateOp::Add);
        }
        flat.reshape([batch, seq, d_model])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::position::PromptSpan;
    use burn_flex::Flex;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn config(positions: &str, tied: bool) -> ReftConfig {
        ReftConfig::new(8, [1]).with_rank(2).with_positions(positions.parse().expect("valid")).with_tied(tied)
    }

    #[test]
    fn each_part_edits_only_its_positions() {
        let device = Default::default();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        for tied in [true, false] {
            let reft: Reft<Flex> = config("f1+l1", tied).init(Init::Paper, &mut rng, &device).expect("valid");
            assert_eq!(reft.edits().len(), if tied { 1 } else { 2 });
            let spans = [PromptSpan { start: 1, len: 3 }, PromptSpan { start: 0, len: 2 }];
            let rows = reft.config().positions.rows(&spans, 4);
            let hook = reft.hook(&reft.bases(), &rows);
            let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
            let hidden = Tensor::<Flex, 3>::from_data(TensorData::new(values, [2, 4, 8]), &device);
            let out = hook.edit(reft.config().sites[0], hidden.clone());
            let elsewhere = hook.edit(Site { layer: 0, component: Component::BlockOutput }, hidden.clone());
            elsewhere.into_data().assert_eq(&hidden.to_data(), true);
            for row in 0..8 {
                let before = hidden.clone().reshape([8, 8]).slice([row..row + 1, 0..8]);
                let after = out.clone().reshape([8, 8]).slice([row..row + 1, 0..8]);
                let expected = match row {
                    1 | 4 => reft.edits()[0].intervention().forward(before),
                    3 | 5 => reft.edits()[usize::from(!tied)].intervention().forward(before),
                    _ => before,
                };
                let worst = (after - expected).abs().max().into_scalar();
                assert!(worst < 1e-6, "row {row}: {worst}");
            }
        }
    }

    #[test]
    fn a_prompt_without_positions_is_not_edited() {
        let device = Default::default();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let reft: Reft<Flex> = config("f1+l1", false).init(Init::Paper, &mut rng, &device).expect("valid");
        let rows = reft.config().positions.rows(&[PromptSpan { start: 0, len: 1 }], 1);
        let hidden = Tensor::<Flex, 3>::ones([1, 1, 8], &device);
        let out = reft.hook(&reft.bases(), &rows).edit(reft.config().sites[0], hidden.clone());
        out.into_data().assert_eq(&hidden.into_data(), true);
    }
}
