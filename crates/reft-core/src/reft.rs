//! [`Reft`]: the interventions of one adapter, by site, and the hook that applies them to a batch.

use crate::{
    hook::{Hook, Packing, Place},
    intervention::{
        Activation, Init, Intervention, InterventionConfig, InterventionError, InterventionRecord,
        InterventionValues, Method,
    },
    position::{Part, Positions},
    record::{config_text, recorded_config},
    site::{Component, Site},
};
use burn::{
    module::{AutodiffModule, Module, ModuleMapper, Param},
    record::Record,
    tensor::{
        IndexingUpdateOp, Tensor,
        backend::{AutodiffBackend, Backend},
    },
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The configuration of a [`Reft`]: everything except its parameter values.
///
/// ```
/// # use reft_core::{ReftConfig, Method};
/// let config = ReftConfig::new(768, [2, 5, 8]).with_rank(4).with_positions("f3+l3".parse()?);
/// assert_eq!(config.method, Method::Loreft);
/// # Ok::<(), reft_core::position::PositionsError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
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
    /// Seed of the initialization. Not saved.
    #[serde(skip)]
    pub seed: u64,
    /// The initialization. Not saved.
    #[serde(skip)]
    pub init: Init,
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
            seed: 0,
            init: Init::Paper,
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

    /// Sets the places where the model is edited.
    pub fn with_sites(self, sites: Vec<Site>) -> Self {
        Self { sites, ..self }
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

    /// Sets the seed of the initialization.
    pub fn with_seed(self, seed: u64) -> Self {
        Self { seed, ..self }
    }

    /// Sets the initialization.
    pub fn with_init(self, init: Init) -> Self {
        Self { init, ..self }
    }

    /// The configuration of each intervention.
    pub fn intervention(&self) -> InterventionConfig {
        InterventionConfig::new(self.hidden_size, self.rank)
            .with_method(self.method)
            .with_activation(self.activation)
            .with_dropout(self.dropout)
            .with_seed(self.seed)
            .with_init(self.init)
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

    /// Checks what makes no sense whatever the model is.
    pub(crate) fn check(&self) -> Result<(), InterventionError> {
        let (sites, mut seen) = (&self.sites, BTreeSet::new());
        if let Some(site) = sites.iter().find(|site| !seen.insert(**site)) {
            return Err(InterventionError::SiteTwice(*site));
        }
        if !sites.is_empty() {
            return self.intervention().check();
        }
        // Baselines edit nothing, and use the rank for something else. JSON has no NaN.
        if self.dropout.is_finite() { Ok(()) } else { Err(InterventionError::Dropout(self.dropout)) }
    }

    /// Number of trainable parameters.
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn num_params(&self) -> Result<usize, InterventionError> {
        Ok(self.places().len() * self.intervention().num_params()?)
    }

    /// The lowest edited layer, if any.
    pub fn first_layer(&self) -> Option<usize> {
        self.sites.iter().map(|site| site.layer).min()
    }

    /// How a model may arrange the tokens of a batch for these interventions.
    pub fn packing(&self) -> Packing {
        // Dropout draws other numbers for each row.
        if self.dropout > 0.0 { Packing::Rows } else { Packing::Shared(Some(self.positions)) }
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
    /// Random numbers are drawn on the host, so the same seed gives the same values on every backend.
    ///
    /// # Panics
    /// If the configuration is invalid; [`try_init`](Self::try_init) returns an error instead.
    pub fn init<B: Backend>(&self, device: &B::Device) -> Reft<B> {
        self.try_init(device).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Creates new interventions at every place, see [`init`](Self::init).
    ///
    /// # Errors
    /// If the configuration is invalid.
    pub fn try_init<B: Backend>(&self, device: &B::Device) -> Result<Reft<B>, InterventionError> {
        self.check()?;
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        self.build(|_, _| self.intervention().draw(&mut rng, device))
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
        let places = self.places().into_iter();
        let interventions = places.map(|(site, part)| make(site, part)).collect::<Result<_, E>>()?;
        Ok(Reft { interventions, config: Self { seed: 0, init: Init::Paper, ..self.clone() } })
    }
}

/// One intervention and where it applies.
#[derive(Debug)]
pub struct Edit<'a, B: Backend> {
    /// The site.
    pub site: Site,
    /// The part of the positions.
    pub part: Part,
    /// The intervention.
    pub intervention: &'a Intervention<B>,
}

/// All interventions of an adapter.
///
/// It is a [`Hook`]: pass it to a model. For many forward passes with the same values, [`hook`](Self::hook) computes the bases
/// of the edited subspaces once. Burn's records of it hold the configuration too: loading one gives the interventions that
/// were saved.
#[derive(Debug, Clone)]
pub struct Reft<B: Backend> {
    /// One for each of the configuration's places.
    interventions: Vec<Intervention<B>>,
    config: ReftConfig,
}

complete_module!(Reft, record: ReftRecord, modules: [interventions], state: [config]);

/// The record of a [`Reft`].
#[derive(Record, Debug, Clone)]
pub struct ReftRecord<B: Backend> {
    config: String,
    interventions: Vec<InterventionRecord<B>>,
}

impl<B: Backend> Reft<B> {
    /// The configuration.
    pub fn config(&self) -> &ReftConfig {
        &self.config
    }

    /// The interventions, ordered by site, prefix before suffix.
    pub fn edits(&self) -> impl ExactSizeIterator<Item = Edit<'_, B>> {
        let places = self.config.places().into_iter();
        let edits = places.zip(&self.interventions);
        edits.map(|((site, part), intervention)| Edit { site, part, intervention })
    }

    /// The lowest edited layer, if any. Layers below it need no gradients.
    pub fn first_layer(&self) -> Option<usize> {
        self.config.first_layer()
    }

    /// `Pᵀ [d, r]` of every intervention, in the order of [`edits`](Self::edits).
    pub fn bases(&self) -> Vec<Tensor<B, 2>> {
        self.interventions.iter().map(|intervention| intervention.projection().basis()).collect()
    }

    /// The hook for forward passes with the current values.
    pub fn hook(&self) -> ReftHook<'_, B> {
        self.hook_with(self.bases())
    }

    /// The hook with these bases: those of [`bases`](Self::bases), or leaf tensors with the same values.
    ///
    /// # Panics
    /// If there is not one basis per intervention.
    pub fn hook_with(&self, bases: Vec<Tensor<B, 2>>) -> ReftHook<'_, B> {
        assert_eq!(bases.len(), self.interventions.len(), "one basis per intervention");
        let edits = self.edits().zip(bases).collect();
        ReftHook { edits, positions: self.config.positions, packing: self.config.packing() }
    }

    fn to_record(&self) -> ReftRecord<B> {
        let interventions = self.interventions.iter().cloned().map(Module::<B>::into_record);
        ReftRecord { config: config_text(&self.config), interventions: interventions.collect() }
    }

    fn with_record(self, record: ReftRecord<B>) -> Self {
        let first = self.interventions.first().map(|intervention| intervention.bias());
        let device = first.map(|bias| bias.device()).unwrap_or_default();
        let is_trainable = first.is_some_and(|bias| bias.is_require_grad());
        let recorded = |record| Intervention::recorded(record, &device, is_trainable);
        let config = recorded_config(&record.config);
        Self { interventions: record.interventions.into_iter().map(recorded).collect(), config }
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

/// The interventions of a [`Reft`] with their bases.
#[derive(Debug)]
pub struct ReftHook<'a, B: Backend> {
    edits: Vec<(Edit<'a, B>, Tensor<B, 2>)>,
    positions: Positions,
    packing: Packing,
}

impl<B: Backend> Hook<B> for ReftHook<'_, B> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        // Prefix and suffix are disjoint, so the order of the edits does not matter.
        let here = self.edits.iter().filter(|(edit, _)| edit.site == place.site);
        here.fold(hidden, |hidden, (edit, basis)| edit.apply(|| basis.clone(), self.positions, place, hidden))
    }

    fn sites(&self) -> Vec<Site> {
        self.edits.iter().map(|(edit, _)| edit.site).collect()
    }

    fn packing(&self) -> Packing {
        self.packing
    }
}

/// Computes the basis of each intervention when it is reached.
impl<B: Backend> Hook<B> for Reft<B> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.edits().filter(|edit| edit.site == place.site).fold(hidden, |hidden, edit| {
            let basis = || edit.intervention.projection().basis();
            edit.apply(basis, self.config.positions, place, hidden)
        })
    }

    fn sites(&self) -> Vec<Site> {
        self.config.sites.clone()
    }

    fn packing(&self) -> Packing {
        self.config.packing()
    }
}

impl<B: Backend> Edit<'_, B> {
    /// Edits the prompts of a batch, if they have such positions.
    fn apply(
        &self,
        basis: impl FnOnce() -> Tensor<B, 2>,
        positions: Positions,
        place: &Place<'_, B>,
        hidden: Tensor<B, 3>,
    ) -> Tensor<B, 3> {
        let Some(rows) = place.layout.prompt_index(positions, self.part) else { return hidden };
        let [batch, seq, d_model] = hidden.dims();
        let flat = hidden.reshape([batch * seq, d_model]);
        let delta = self.intervention.delta(flat.clone().select(0, rows.clone()), basis());
        flat.select_assign(0, rows, delta, IndexingUpdateOp::Add).reshape([batch, seq, d_model])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{BatchLayout, RowLayout};
    use burn::tensor::TensorData;
    use burn_flex::Flex;

    fn config(positions: &str, tied: bool) -> ReftConfig {
        ReftConfig::new(8, [1]).with_rank(2).with_positions(positions.parse().expect("valid")).with_tied(tied)
    }

    #[test]
    fn interventions_that_cannot_be_saved_are_refused() {
        let config = ReftConfig::new(8, []).with_dropout(f64::NAN);
        let error = config.try_init::<Flex>(&Default::default()).expect_err("NaN");
        assert!(matches!(error, InterventionError::Dropout(_)), "{error}");
    }

    #[test]
    fn each_part_edits_only_its_positions() {
        let device = Default::default();
        for tied in [true, false] {
            let reft: Reft<Flex> = config("f1+l1", tied).init(&device);
            assert_eq!(reft.edits().len(), if tied { 1 } else { 2 });
            let row = |start, len, prompt_len| RowLayout { start, len, prompt_len, position: 0 };
            let layout = BatchLayout::new(vec![row(1, 3, 3), row(0, 4, 2)], 4, &device);
            let at = |layer| Place { site: Site::block_output(layer), layout: &layout };
            let hook = reft.hook();
            let values: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
            let hidden = Tensor::<Flex, 3>::from_data(TensorData::new(values, [2, 4, 8]), &device);
            let out = hook.edit(&at(1), hidden.clone());
            reft.edit(&at(1), hidden.clone()).into_data().assert_eq(&out.to_data(), true);
            let elsewhere = hook.edit(&at(0), hidden.clone());
            elsewhere.into_data().assert_eq(&hidden.to_data(), true);
            let edit = |idx| reft.edits().nth(idx).expect("exists").intervention;
            for row in 0..8 {
                let before = hidden.clone().reshape([8, 8]).slice([row..row + 1, 0..8]);
                let after = out.clone().reshape([8, 8]).slice([row..row + 1, 0..8]);
                let expected = match row {
                    1 | 4 => edit(0).forward(before),
                    3 | 5 => edit(usize::from(!tied)).forward(before),
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
        let reft: Reft<Flex> = config("f1+l1", false).init(&device);
        // A generated token.
        let row = RowLayout { start: 0, len: 1, prompt_len: 0, position: 5 };
        let layout = BatchLayout::new(vec![row], 1, &device);
        let hidden = Tensor::<Flex, 3>::ones([1, 1, 8], &device);
        let out = reft.edit(&Place { site: Site::block_output(1), layout: &layout }, hidden.clone());
        out.into_data().assert_eq(&hidden.into_data(), true);
    }
}
