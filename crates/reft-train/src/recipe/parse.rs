//! Reading recipes.

use super::{
    check::check,
    error::RecipeError,
    overrides::{apply, with_suggestion},
    sections::Recipe,
};
use std::{fs, path::Path};
use toml::Table;

impl Recipe {
    /// Reads a recipe file and applies `key=value` overrides.
    ///
    /// # Errors
    /// If the file cannot be read, is not TOML, or has an unknown key or an impossible value.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let file = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|error| RecipeError::Io { file: file.clone(), error })?;
        Self::parse(&text, &file, overrides)
    }

    /// Parses a recipe; `file` names it in errors.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn parse(text: &str, file: &str, overrides: &[String]) -> Result<Self, RecipeError> {
        let invalid = |reason: String| RecipeError::Invalid { file: file.into(), reason };
        // Without overrides the text is parsed directly, because that error shows the line.
        let recipe = if overrides.is_empty() {
            toml::from_str::<Recipe>(text).map_err(|e| invalid(with_suggestion(&e.to_string())))?
        } else {
            let mut table: Table = toml::from_str(text).map_err(|e| invalid(e.to_string()))?;
            for text in overrides {
                apply(&mut table, text)?;
            }
            table.try_into().map_err(|e: toml::de::Error| invalid(with_suggestion(&e.to_string())))?
        };
        check(&recipe).map_err(invalid)?;
        Ok(recipe)
    }

    /// The recipe as TOML.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a recipe is plain data")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = "model = \"m\"\n[run]\nname = \"r\"\n[data]\ntrain = \"d.json\"\n";

    fn parse(text: &str, overrides: &[&str]) -> Result<Recipe, String> {
        let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
        Recipe::parse(text, "r.toml", &overrides).map_err(|e| e.to_string())
    }

    #[test]
    fn an_unknown_key_is_an_error_with_a_suggestion() {
        let error = parse(&format!("{SMALL}[train]\nlearning_rat = 1\nlt = 2"), &[]).expect_err("unknown");
        assert!(error.contains("r.toml") && error.contains("learning_rat"), "{error}");
        let error = parse(&format!("{SMALL}[train]\nbatchsize = 1"), &[]).expect_err("unknown");
        assert!(error.contains("did you mean `batch_size`?") && error.contains("line 7"), "{error}");
        let error = parse(SMALL, &["reft.method=lorft"]).expect_err("unknown");
        assert!(error.contains("did you mean `loreft`?"), "{error}");
    }

    #[test]
    fn any_key_can_be_overridden() {
        let recipe = parse(
            SMALL,
            &["train.lr=4e-4", "reft.layers=[1,-1]", "data.template=plain", "reft.positions=l1"],
        )
        .expect("valid");
        assert_eq!(recipe.train.lr, 4e-4);
        assert_eq!(recipe.reft.layers.to_string(), "1,-1");
        assert_eq!(recipe.data.template, "plain");
        assert_eq!(recipe.reft.positions.to_string(), "l1");
        assert!(parse(SMALL, &["train.lr"]).expect_err("no value").contains("key=value"));
        assert!(parse(SMALL, &["model.x=1"]).is_err());
    }

    #[test]
    fn a_resolved_recipe_reads_back() {
        let recipe = parse(SMALL, &["train.steps=7", "reft.layers=0-2"]).expect("valid");
        assert_eq!(parse(&recipe.to_toml(), &[]).expect("valid"), recipe);
    }

    #[test]
    fn impossible_values_are_all_listed() {
        let error =
            parse(SMALL, &["train.lr=-1", "train.batch_size=0", "run.name=../x"]).expect_err("impossible");
        for part in ["train.lr is -1", "train.batch_size is 0", "run.name is"] {
            assert!(error.contains(part), "{error}");
        }
        assert!(parse(SMALL, &["reft.positions=x7"]).expect_err("positions").contains("f7+l7"));
        assert!(parse(SMALL, &["reft.layers=top"]).expect_err("layers").contains("top"));
    }
}
