//! What a training pass keeps in memory, estimated from shapes: each model counts what its own forward pass leaves on the
//! tape.

/// Bytes of one block in a training pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// What enters the block.
    pub input: usize,
    /// What the tape keeps of it until the backward pass, its input included.
    pub kept: usize,
    /// The most that a forward pass without a tape needs for a moment.
    pub forward: usize,
    /// The most that the backward pass needs for a moment, beside what is still kept.
    pub backward: usize,
    /// Its largest tensor.
    pub largest: usize,
}
