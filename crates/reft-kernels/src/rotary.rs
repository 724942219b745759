//! The angles of the rotary embedding.

use burn::tensor::{Tensor, backend::Backend};

/// Cosines and sines of the angles of every position.
///
/// Row `i` of a matrix of states uses row `i mod positions` of the table, so one table serves texts in a grid.
///
/// # Shapes
/// - cos, sin `[positions, dim / 2]`
#[derive(Debug, Clone)]
pub struct RotaryTable<B: Backend> {
    /// Cosines.
    pub cos: Tensor<B, 2>,
    /// Sines.
    pub sin: Tensor<B, 2>,
}
