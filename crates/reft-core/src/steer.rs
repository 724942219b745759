//! Hooks that need no training: [`Capture`] reads hidden states, [`Steer`] adds a vector to them.

use crate::{
    hook::{Hook, Place},
    layout::{BatchLayout, RowIndex, RowLayout},
    position::{Part, Positions},
    site::Site,
    tensor::to_dtype,
};
use burn::tensor::{IndexingUpdateOp, Tensor, backend::Backend};
use std::sync::Mutex;

/// Copies the hidden states at some sites, without changing them.
///
/// Each forward pass replaces what the previous one left.
#[derive(Debug)]
pub struct Capture<B: Backend> {
    sites: Vec<Site>,
    seen: Mutex<Vec<(Site, Captured<B>)>>,
}

/// The hidden states of one site.
#[derive(Debug, Clone)]
pub struct Captured<B: Backend> {
    hidden: Tensor<B, 3>,
    rows: Vec<RowLayout>,
}

impl<B: Backend> Capture<B> {
    /// For these sites.
    pub fn at(sites: impl IntoIterator<Item = Site>) -> Self {
        Self { sites: sites.into_iter().collect(), seen: Mutex::default() }
    }

    /// The hidden states of the last forward pass at a site; `None` if it has not been reached.
    pub fn states(&self, site: Site) -> Option<Captured<B>> {
        let seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        seen.iter().find(|(at, _)| *at == site).map(|(_, captured)| captured.clone())
    }
}

impl<B: Backend> Captured<B> {
    /// The states of the whole batch with its padding, `[batch, seq, d_model]`.
    pub fn batch(&self) -> Tensor<B, 3> {
        self.hidden.clone()
    }

    /// The states of one row without padding, `[tokens, d_model]`.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row(&self, row: usize) -> Tensor<B, 2> {
        let [_, _, d_model] = self.hidden.dims();
        let tokens = self.rows[row].tokens();
        let len = tokens.len();
        self.hidden.clone().slice([row..row + 1, tokens, 0..d_model]).reshape([len, d_model])
    }

    /// Number of rows.
    pub fn n_rows(&self) -> usize {
        self.rows.len()
    }
}

impl<B: Backend> Hook<B> for Capture<B> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        if self.sites.contains(&place.site) {
            let captured = Captured { hidden: hidden.clone(), rows: place.layout.rows().to_vec() };
            let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            seen.retain(|(site, _)| *site != place.site);
            seen.push((place.site, captured));
        }
        hidden
    }

    fn sites(&self) -> Vec<Site> {
        self.sites.clone()
    }
}

/// Adds `strength · v` to the hidden states at one site: activation steering.
///
/// By default it acts on every token, generated ones included.
#[derive(Debug, Clone)]
pub struct Steer<B: Backend> {
    site: Site,
    vector: Tensor<B, 1>,
    strength: f64,
    tokens: SteeredTokens,
}

/// The tokens that a [`Steer`] changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SteeredTokens {
    /// Every token.
    #[default]
    All,
    /// These positions of the prompt.
    Prompt(Positions),
    /// Tokens after the prompt: those of an answer, or generated ones.
    Answer,
    /// The last token of every forward pass: that of the prompt, then each generated one.
    Last,
}

impl<B: Backend> Steer<B> {
    /// Adds `vector`, `[d_model]`, with strength 1.
    pub fn new(site: Site, vector: Tensor<B, 1>) -> Self {
        Self { site, vector, strength: 1.0, tokens: SteeredTokens::All }
    }

    /// Sets the factor of the vector.
    pub fn with_strength(self, strength: f64) -> Self {
        Self { strength, ..self }
    }

    /// Sets the changed tokens.
    pub fn with_tokens(self, tokens: SteeredTokens) -> Self {
        Self { tokens, ..self }
    }

    fn index(&self, layout: &BatchLayout<B>) -> Option<RowIndex<B>> {
        match self.tokens {
            SteeredTokens::All => layout.token_index(),
            SteeredTokens::Prompt(positions) => layout.prompt_index(positions, Part::All),
            SteeredTokens::Answer => layout.answer_index(),
            SteeredTokens::Last => layout.last_token_index(),
        }
    }
}

impl<B: Backend> Hook<B> for Steer<B> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        let index = if place.site == self.site { self.index(place.layout) } else { None };
        let Some(index) = index else { return hidden };
        let ([batch, seq, d_model], [size]) = (hidden.dims(), self.vector.dims());
        assert!(
            size == d_model,
            "a steering vector of size {size} at {}, where states have size {d_model}",
            self.site
        );
        let shift = to_dtype(self.vector.clone(), hidden.dtype()).mul_scalar(self.strength);
        let shift = shift.unsqueeze::<2>().repeat_dim(0, index.dims()[0]);
        let flat = hidden.reshape([batch * seq, d_model]);
        flat.select_assign(0, index, shift, IndexingUpdateOp::Add).reshape([batch, seq, d_model])
    }

    fn sites(&self) -> Vec<Site> {
        vec![self.site]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hook::check_sites, tensor::host_values};
    use burn_flex::Flex;

    const SITE: Site = Site { layer: 1, component: crate::site::Component::BlockOutput };

    /// Two rows of four columns: left padding, then a prompt of two and an answer of one; a prompt of three without padding
    /// on the left.
    fn layout() -> BatchLayout<Flex> {
        let row = |start, len, prompt_len| RowLayout { start, len, prompt_len, position: 0 };
        BatchLayout::new(vec![row(1, 3, 2), row(0, 3, 3)], 4, &Default::default())
    }

    /// The changed columns of each row.
    fn changed(hook: &impl Hook<Flex>) -> Vec<f32> {
        let (layout, hidden) = (layout(), Tensor::<Flex, 3>::zeros([2, 4, 1], &Default::default()));
        host_values(hook.edit(&Place { site: SITE, layout: &layout }, hidden))
    }

    fn steer(tokens: SteeredTokens) -> Steer<Flex> {
        Steer::new(SITE, Tensor::ones([1], &Default::default())).with_tokens(tokens)
    }

    #[test]
    fn a_vector_is_added_to_the_chosen_tokens_and_never_to_padding() {
        let last = SteeredTokens::Prompt("l1".parse().expect("positions"));
        for (tokens, expected) in [
            (SteeredTokens::All, [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]),
            (last, [0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]),
            (SteeredTokens::Answer, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
            (SteeredTokens::Last, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]),
        ] {
            assert_eq!(changed(&steer(tokens)), expected, "{tokens:?}");
        }
    }

    #[test]
    fn hooks_compose_in_order() {
        let (once, capture) = (steer(SteeredTokens::All), Capture::at([SITE]));
        let twice = [once.clone(), once.clone().with_strength(2.0)];
        let composed = ((&once, &capture), &twice[..]);
        assert_eq!(changed(&composed), [0.0, 4.0, 4.0, 4.0, 4.0, 4.0, 4.0, 0.0]);
        let captured = capture.states(SITE).expect("reached");
        assert_eq!(host_values(captured.row(0)), [1.0, 1.0, 1.0]);
        assert_eq!(host_values(captured.batch()).iter().sum::<f32>(), 6.0);
        assert!(capture.states(Site::block_output(0)).is_none());
        let nothing: Option<Box<dyn Hook<Flex>>> = None;
        assert_eq!(changed(&nothing), [0.0; 8]);
        assert_eq!(check_sites(&composed, 2), Ok(()));
        assert_eq!(
            check_sites(&composed, 1).expect_err("too few layers").to_string(),
            "a hook needs layers.1.block_output, but the last layer of the model is 0"
        );
    }
}
