//! What every target needs.

pub mod limits;
pub mod model;
pub mod mutants;
pub mod parts;
