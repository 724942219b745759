//! A recipe with overrides: the TOML, then one `key=value` per line of the part `overrides`.
//!
//! A recipe that is accepted prints as TOML that reads back as the same recipe, and becomes interventions or a baseline without a
//! panic.

use crate::support::parts::Parts;
use reft_core::Reft;
use reft_train::Recipe;

pub fn target(input: &[u8]) {
    let parts = Parts::of(input);
    let Some(toml) = parts.text("recipe.toml") else { return };
    let overrides: Vec<String> = parts.text("overrides").unwrap_or_default().lines().map(str::to_string).collect();
    let recipe = match Recipe::parse(toml, "recipe.toml", &overrides) {
        Ok(recipe) => recipe,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let printed = recipe.to_toml();
    let again = Recipe::parse(&printed, "printed.toml", &[]).unwrap_or_else(|error| panic!("{error}\n{printed}"));
    assert_eq!(again, recipe, "{printed}");
    let _ = recipe.tuning();
    if let Ok(config) = recipe.reft_config(4, 16) {
        let reft: Result<Reft<burn_flex::Flex>, _> = config.try_init(&Default::default());
        assert!(reft.is_err() || recipe.reft.rank <= 16 || config.sites.is_empty());
    }
}
