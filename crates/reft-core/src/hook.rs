//! The hook that a model calls at its intervention points.

use crate::site::Site;
use burn::tensor::{Tensor, backend::Backend};

/// What a model calls at each of its intervention points.
///
/// Models are generic over the hook, so [`NoHook`] costs nothing.
pub trait Hook<B: Backend> {
    /// Edits the hidden states at a site.
    ///
    /// # Shapes
    /// - hidden and output `[batch, seq, d_model]`
    fn edit(&self, site: Site, hidden: Tensor<B, 3>) -> Tensor<B, 3>;
}

/// The hook that changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoHook;

impl<B: Backend> Hook<B> for NoHook {
    #[inline(always)]
    fn edit(&self, _site: Site, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        hidden
    }
}
