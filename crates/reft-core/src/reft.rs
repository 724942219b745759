//! Where a model is edited, the hook that it calls there, and [`Reft`], which maps sites to interventions.

use crate::{
    intervention::{
        Activation, Init, Intervention, InterventionConfig, InterventionError, InterventionValues, Method,
    },
    position::{Positions, Rows},
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
use std::{fmt, str::FromStr};

/// A place within a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The hidden state that enters the block.
    BlockInput,
    /// What the attention adds to the residual stream (after its output projection).
    AttentionOutput,
    /// What the MLP adds to the residual stream.
    MlpOutput,
    /// The hidden state that leaves the block: the paper's choice.
    #[default]
    BlockOutput,
}

impl Component {
    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Component::BlockInput => "block_input",
            Component::AttentionOutput => "attention_output",
            Component::MlpOutput => "mlp_output",
            Component::BlockOutput => "block_output",
        }
    }
}

/// An intervention point of a model: a component of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Site {
    /// Index of the layer, from 0 at the bottom.
    pub layer: usize,
    /// The place within the layer.
    pub component: Component,
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layers.{}.{}", self.layer, self.component.name())
    }
}

/// A choice of layers: `all`, or a list of indices and ranges such as `0,3,8-11` or `-1`.
///
/// Negative indices count from the top; ranges `a-b` and `a..=b` include their end, `a..b` does not; `;` separates
/// as well as `,`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers(String);

/// A choice of layers that the model does not have, or that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayersError {
    /// Not a choice of layers.
    #[error(
        "layers {text:?}: cannot read {part:?}; expected `all`, indices and ranges such as `0,3,8-11` or `-1`"
    )]
    Unreadable {
        /// The whole text.
        text: String,
        /// The part at fault.
        part: String,
    },
    /// A layer outside of the model.
    #[error("layer {index} does not exist: the model has {n_layers} layers, 0 to {} (or -{n_layers} to -1)", n_layers - 1)]
    Missing {
        /// The index asked for.
        index: i64,
        /// Layers that there are.
        n_layers: usize,
    },
}

impl Layers {
    /// Every layer.
    pub fn all() -> Self {
        Layers("all".into())
    }

    /// These layers.
    pub fn list(layers: &[i64]) -> Self {
        Layers(layers.iter().map(i64::to_string).collect::<Vec<_>>().join(","))
    }

    /// The layers of a model that has `n_layers`, sorted, each once.
    ///
    /// # Errors
    /// If the text cannot be read or names a layer that does not exist.
    pub fn resolve(&self, n_layers: usize) -> Result<Vec<usize>, LayersError> {
        if self.0.trim() == "all" {
            return Ok((0..n_layers).collect());
        }
        let mut layers = Vec::new();
        for part in self.0.split([',', ';']).map(str::trim) {
            let unreadable = || LayersError::Unreadable { text: self.0.clone(), part: part.into() };
            let index = |text: &str| -> Result<usize, LayersError> {
                let index: i64 = text.trim().parse().map_err(|_| unreadable())?;
                let absolute = if index < 0 { index + n_layers as i64 } else { index };
                usize::try_from(absolute)
                    .ok()
                    .filter(|layer| *layer < n_layers)
                    .ok_or(LayersError::Missing { index, n_layers })
            };
            // A dash within the text, after its first character, joins a range.
            let dash = part.char_indices().skip(1).find(|(_, c)| *c == '-').map(|(at, _)| at);
            let range = if let Some((a, b)) = part.split_once("..=") {
                index(a)?..index(b)? + 1
            } else if let Some((a, b)) = part.split_once("..") {
                index(a)?..index(b)?
            } else if let Some(at) = dash {
                index(&part[..at])?..index(&part[at + 1..])? + 1
            } else {
                let layer = index(part)?;
                layer..layer + 1
            };
            if range.is_empty() {
                return Err(unreadable());
            }
            layers.extend(range);
        }
        layers.sort_unstable();
        layers.dedup();
        Ok(layers)
    }
}

impl FromStr for Layers {
    type Err = LayersError;
    /// Reads the text against a tall model, so that nonsense is found at once.
    fn from_str(text: &str) -> Result<Self, LayersError> {
        let layers = Layers(text.into());
        match layers.resolve(1 << 16) {
            Err(error @ LayersError::Unreadable { .. }) => Err(error),
            _ => Ok(layers),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a model calls at each of its intervention points.
///
/// Models are generic over the hook, so that [`NoHook`] compiles to nothing.
pub trait Hook<B: Backend> {
    /// The hidden states of a site, edited.
    ///
    /// # Shapes
    /// - hidden and output `[batch, seq, d_model]`
    fn edit(&self, site: Site, hidden: Tensor<B, 3>) -> Tensor<B, 3>;
}

/// The hook that leaves everything as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHook;

impl<B: Backend> Hook<B> for NoHook {
    #[inline(always)]
    fn edit(&self, _site: Site, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        hidden
    }
}

/// Which of a prompt's edited positions an intervention acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// All of them (tied).
    All,
    /// The first positions (untied).
    Prefix,
    /// The last positions (untied).
    Suffix,
}

impl Part {
    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Part::All => "all",
            Part::Prefix => "prefix",
            Part::Suffix => "suffix",
        }
    }
}

/// Everything that fixes a [`Reft`] but its values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ReftConfig {
    /// Which equation.
    pub method: Method,
    /// Rank of every intervention.
    pub rank: usize,
    /// Size of the hidden states.
    pub hidden_size: usize,
    /// The edited places.
    pub sites: Vec<Site>,
    /// The edited tokens of a prompt.
    pub positions: Positions,
    /// Whether prefix and suffix share one intervention. Without effect for positions with one side.
    pub tied: bool,
    /// σ.
    #[serde(default)]
    pub activation: Activation,
    /// Dropout of the edited hidden state, in training.
    #[serde(default)]
    pub dropout: f64,
}

/// One intervention at its place.
#[derive(Module, Debug)]
pub struct Edit<B: Backend> {
    #[module(skip)]
    site: Site,
    #[module(skip)]
    part: Part,
    intervention: Intervention<B>,
}

/// All interventions of an adapter: sites → interventions.
///
/// To edit a batch, compute the [`bases`](Self::bases) once per step, then [`hook`](Self::hook) them to the rows of
/// each batch and hand the hook to the model.
#[derive(Module, Debug)]
pub struct Reft<B: Backend> {
    edits: Vec<Edit<B>>,
    #[module(skip)]
    config: ReftConfig,
}

impl ReftConfig {
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

    /// Where the interventions are, in order: by site, prefix before suffix.
    pub fn places(&self) -> Vec<(Site, Part)> {
        let parts: &[Part] = if self.tied || !self.positions.has_two_sides() {
            &[Part::All]
        } else {
            &[Part::Prefix, Part::Suffix]
        };
        self.sites.iter().flat_map(|site| parts.iter().map(|part| (*site, *part))).collect()
    }

    /// Number of trained parameters.
    ///
    /// # Errors
    /// If the configuration describes no intervention.
    pub fn num_params(&self) -> Result<usize, InterventionError> {
        Ok(self.places().len() * self.intervention().num_params()?)
    }

    /// Blocks of a model of `n_layers` whose states a training pass has on the tape.
    ///
    /// Those above the lowest edit; and that of the edit itself, if anything follows on it there.
    pub fn n_taped(&self, n_layers: usize) -> usize {
        let follows = |site: &Site| match site.component {
            Component::BlockInput | Component::AttentionOutput => site.layer,
            Component::MlpOutput | Component::BlockOutput => site.layer + 1,
        };
        self.sites.iter().map(follows).min().map_or(0, |first| n_layers.saturating_sub(first))
    }

    /// New interventions at every place.
    ///
    /// # Errors
    /// If the configuration describes no intervention.
    pub fn init<B: Backend>(
        &self,
        init: Init,
        rng: &mut impl Rng,
        device: &B::Device,
    ) -> Result<Reft<B>, InterventionError> {
        self.build(|_, _| self.intervention().init(init, rng, device))
    }

    /// Interventions with given values.
    ///
    /// # Errors
    /// If the configuration describes no intervention or the values do not fit.
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

impl<B: Backend> Edit<B> {
    /// The edited place.
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

impl<B: Backend> Reft<B> {
    /// Everything but the values.
    pub fn config(&self) -> &ReftConfig {
        &self.config
    }

    /// The interventions, by site, prefix before suffix.
    pub fn edits(&self) -> &[Edit<B>] {
        &self.edits
    }

    /// The lowest edited layer, or none if nothing is edited. Layers below need no gradients.
    pub fn first_layer(&self) -> Option<usize> {
        self.edits.iter().map(|edit| edit.site.layer).min()
    }

    /// `Pᵀ` of every intervention, `[d, r]` each, in the order of [`edits`](Self::edits).
    pub fn bases(&self) -> Vec<Tensor<B, 2>> {
        self.edits.iter().map(|edit| edit.intervention.projection().basis()).collect()
    }

    /// The hook for one batch.
    ///
    /// `bases` come from [`bases`](Self::bases), or are leaves with the same values whose gradients are wanted.
    pub fn hook(&self, bases: &[Tensor<B, 2>], rows: &Rows) -> ReftHook<'_, B> {
        assert_eq!(bases.len(), self.edits.len(), "one basis for each intervention");
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
                Some(HookedEdit { site: edit.site, rows, basis, intervention: &edit.intervention })
            })
            .collect();
        ReftHook { edits }
    }
}

impl<A: AutodiffBackend> Reft<A> {
    /// The same interventions with all parameters tracked, to be trained.
    pub fn trainable(reft: Reft<A::InnerBackend>) -> Self {
        trainable(reft)
    }
}

/// The same module with all parameters tracked, to be trained.
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
    edits: Vec<HookedEdit<'a, B>>,
}

#[derive(Debug)]
struct HookedEdit<'a, B: Backend> {
    site: Site,
    rows: Tensor<B, 1, Int>,
    basis: Tensor<B, 2>,
    intervention: &'a Intervention<B>,
}

impl<B: Backend> Hook<B> for ReftHook<'_, B> {
    fn edit(&self, site: Site, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let [batch, seq, d_model] = hidden.dims();
        let mut here = self.edits.iter().filter(|edit| edit.site == site).peekable();
        if here.peek().is_none() {
            return hidden;
        }
        // Prefix and suffix never share a row, so reading the original rows is right for both.
        let mut flat = hidden.reshape([batch * seq, d_model]);
        for HookedEdit { rows, basis, intervention, .. } in here {
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

    #[test]
    fn layers_are_lists_ranges_and_negatives() {
        let resolve = |text: &str| text.parse::<Layers>().and_then(|l| l.resolve(12));
        assert_eq!(resolve("all").expect("all").len(), 12);
        assert_eq!(resolve("3;9;1"), Ok(vec![1, 3, 9]));
        assert_eq!(resolve("0, 4-6"), Ok(vec![0, 4, 5, 6]));
        assert_eq!(resolve("4..6"), Ok(vec![4, 5]));
        assert_eq!(resolve("9..=11,-1"), Ok(vec![9, 10, 11]));
        assert_eq!(resolve("-3--1"), Ok(vec![9, 10, 11]));
        assert_eq!(resolve("12"), Err(LayersError::Missing { index: 12, n_layers: 12 }));
        assert_eq!(resolve("-13"), Err(LayersError::Missing { index: -13, n_layers: 12 }));
        for text in ["", "x", "1,", "5-3", "3..3", "1-x", "1.5"] {
            assert!(matches!(resolve(text), Err(LayersError::Unreadable { .. })), "{text}");
        }
    }

    fn config(positions: &str, tied: bool) -> ReftConfig {
        ReftConfig {
            method: Method::Loreft,
            rank: 2,
            hidden_size: 8,
            sites: vec![Site { layer: 1, component: Component::BlockOutput }],
            positions: positions.parse().expect("valid"),
            tied,
            activation: Activation::Linear,
            dropout: 0.0,
        }
    }

    #[test]
    fn only_the_positions_change_each_by_its_own_part() {
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
    fn a_short_prompt_without_positions_is_left_alone() {
        let device = Default::default();
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let reft: Reft<Flex> = config("f1+l1", false).init(Init::Paper, &mut rng, &device).expect("valid");
        let rows = reft.config().positions.rows(&[PromptSpan { start: 0, len: 1 }], 1);
        let hidden = Tensor::<Flex, 3>::ones([1, 1, 8], &device);
        let out = reft.hook(&reft.bases(), &rows).edit(reft.config().sites[0], hidden.clone());
        out.into_data().assert_eq(&hidden.into_data(), true);
    }
}
