//! The memory of a training pass, estimated from shapes. Each model counts what its own forward pass puts on the tape.

/// Bytes that one block takes in a training pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Footprint {
    /// The input of the block.
    pub input: usize,
    /// What the tape keeps until the backward pass, including the input.
    pub kept: usize,
    /// Peak of temporary memory in a forward pass without a tape.
    pub forward: usize,
    /// Peak of temporary memory in the backward pass, in addition to what is still kept.
    pub backward: usize,
    /// The largest single tensor.
    pub largest: usize,
}
