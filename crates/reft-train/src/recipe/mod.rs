//! Recipes: everything that defines a run, as TOML.

mod build;
mod check;
mod error;
mod overrides;
mod parse;
mod sections;

pub use error::RecipeError;
pub use sections::{
    DataSection, EvalSection, HeadSection, LoraSection, Protocol, Recipe, ReftSection, RunSection,
    parse_dtype, parse_quant,
};
