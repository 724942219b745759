//! The hook that a model calls at its intervention points.

use crate::{layout::BatchLayout, position::Positions, site::Site};
use burn::tensor::{Tensor, backend::Backend};
use std::sync::Arc;

/// Where a hook is called: the site, and the rows of the forward pass.
#[derive(Debug)]
pub struct Place<'a, B: Backend> {
    /// The site.
    pub site: Site,
    /// Where prompts, later tokens and padding are.
    pub layout: &'a BatchLayout<B>,
}

/// What a model calls at each of its intervention points.
///
/// Models are generic over the hook, so [`NoHook`] costs nothing. Hooks compose: a pair applies its first hook, then its
/// second, and references, boxes, options, slices and vectors of hooks are hooks.
///
/// ```
/// use burn::tensor::{Tensor, backend::Backend};
/// use reft_core::{Hook, Place};
///
/// /// Doubles the output of every block.
/// struct Double;
///
/// impl<B: Backend> Hook<B> for Double {
///     fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
///         if place.site.component == reft_core::Component::BlockOutput { hidden * 2.0 } else { hidden }
///     }
/// }
/// ```
pub trait Hook<B: Backend> {
    /// Edits the hidden states at a site.
    ///
    /// # Shapes
    /// - hidden and output `[batch, seq, d_model]`
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3>;

    /// The sites that the hook needs, if it needs particular ones: a model that lacks one refuses the hook.
    fn sites(&self) -> Vec<Site> {
        Vec::new()
    }

    /// How a model may arrange the tokens of a batch for this hook.
    fn packing(&self) -> Packing {
        Packing::Grid
    }
}

/// How a model may arrange the tokens of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// As a padded grid, `[batch, seq, d_model]`.
    Grid,
    /// One text after the other without padding, `[1, tokens, d_model]`. The hook must take its rows from the indices of the
    /// [`BatchLayout`].
    Rows,
    /// Like `Rows`, and texts that begin alike share the states of their beginning. The hook must treat equal tokens at equal
    /// places alike, except for those at these positions, which belong to it if they agree in their part, too.
    Shared(Option<Positions>),
}

/// A hook for a layer that the model does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a hook needs {site}, but the last layer of the model is {}", n_layers.saturating_sub(1))]
pub struct MissingSite {
    /// The site.
    pub site: Site,
    /// Number of layers of the model.
    pub n_layers: usize,
}

/// Checks that a model with `n_layers` layers has the sites that a hook needs.
///
/// # Errors
/// If it lacks one.
pub fn check_sites<B: Backend>(hook: &(impl Hook<B> + ?Sized), n_layers: usize) -> Result<(), MissingSite> {
    match hook.sites().into_iter().find(|site| site.layer >= n_layers) {
        Some(site) => Err(MissingSite { site, n_layers }),
        None => Ok(()),
    }
}

/// The hook that changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHook;

impl<B: Backend> Hook<B> for NoHook {
    #[inline(always)]
    fn edit(&self, _place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        hidden
    }

    fn packing(&self) -> Packing {
        Packing::Shared(None)
    }
}

impl<B: Backend, H: Hook<B> + ?Sized> Hook<B> for &H {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        (**self).edit(place, hidden)
    }

    fn sites(&self) -> Vec<Site> {
        (**self).sites()
    }

    fn packing(&self) -> Packing {
        (**self).packing()
    }
}

impl<B: Backend, H: Hook<B> + ?Sized> Hook<B> for Box<H> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        (**self).edit(place, hidden)
    }

    fn sites(&self) -> Vec<Site> {
        (**self).sites()
    }

    fn packing(&self) -> Packing {
        (**self).packing()
    }
}

impl<B: Backend, H: Hook<B> + ?Sized> Hook<B> for Arc<H> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        (**self).edit(place, hidden)
    }

    fn sites(&self) -> Vec<Site> {
        (**self).sites()
    }

    fn packing(&self) -> Packing {
        (**self).packing()
    }
}

impl<B: Backend, H: Hook<B>> Hook<B> for Vec<H> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.as_slice().edit(place, hidden)
    }

    fn sites(&self) -> Vec<Site> {
        self.as_slice().sites()
    }
}

impl<B: Backend, H: Hook<B>> Hook<B> for Option<H> {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Some(hook) => hook.edit(place, hidden),
            None => hidden,
        }
    }

    fn sites(&self) -> Vec<Site> {
        self.as_ref().map_or_else(Vec::new, Hook::sites)
    }

    fn packing(&self) -> Packing {
        self.as_ref().map_or(Packing::Shared(None), Hook::packing)
    }
}

/// The first hook, then the second.
impl<B: Backend, H1: Hook<B>, H2: Hook<B>> Hook<B> for (H1, H2) {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.1.edit(place, self.0.edit(place, hidden))
    }

    fn sites(&self) -> Vec<Site> {
        [self.0.sites(), self.1.sites()].concat()
    }

    fn packing(&self) -> Packing {
        match (self.0.packing(), self.1.packing()) {
            (Packing::Grid, _) | (_, Packing::Grid) => Packing::Grid,
            (Packing::Shared(None), other) | (other, Packing::Shared(None)) => other,
            (first, second) if first == second => first,
            _ => Packing::Rows,
        }
    }
}

/// All hooks in order.
impl<B: Backend, H: Hook<B>> Hook<B> for [H] {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        self.iter().fold(hidden, |hidden, hook| hook.edit(place, hidden))
    }

    fn sites(&self) -> Vec<Site> {
        self.iter().flat_map(Hook::sites).collect()
    }
}
