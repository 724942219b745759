//! Reading recipes.

use super::{
    check::check,
    error::RecipeError,
    overrides::{apply, with_suggestion},
    sections::Recipe,
};
use reft_core::files::plain_words;
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
            let mut table: Table = toml::from_str(text).map_err(|e| invalid(plain_words(&e.to_string())))?;
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
    fn text_stays_text_whatever_it_looks_like() {
        let name = |text: &str| parse(SMALL, &[&format!("run.name={text}")]).expect("a name").run.name;
        for text in ["2024", "nan", "inf", "true", "1e5", "2024-01-01", "0x1f", "[a]", "a=b", "None", "it's"]
        {
            assert_eq!(name(text), text);
        }
        assert_eq!((name("\"2024\""), name("'a b'")), ("2024".into(), "a b".into()));
        let recipe = parse(SMALL, &["data.task=classification", "data.text=[1, \"b\"]", "data.label=1"]);
        let data = recipe.expect("valid").data;
        assert_eq!((data.text, data.label), (Some(vec!["1".into(), "b".into()]), Some("1".into())));
        // In a file, too, a text is a list of one.
        let file =
            SMALL.replace("[data]\n", "[data]\ntask = \"classification\"\ntext = \"a\"\ntest = \"t.csv\"\n");
        let recipe = parse(&format!("{file}[lora]\ntargets = \"q_proj\"\n"), &[]).expect("valid");
        assert_eq!((recipe.data.text, recipe.data.test), (Some(vec!["a".into()]), vec!["t.csv".into()]));
        assert_eq!(recipe.lora.targets, ["q_proj"]);
        let targets =
            |text: &str| parse(SMALL, &[&format!("lora.targets={text}")]).expect("names").lora.targets;
        assert_eq!(targets("q_proj"), ["q_proj"]);
        assert_eq!(targets("[q_proj, v_proj]"), ["q_proj", "v_proj"]);
        assert_eq!(targets("[]"), [""; 0]);
        let numbers =
            parse(SMALL, &["train.lr=.5", "train.warmup=0.", "train.clip=1E0"]).expect("numbers").train;
        assert_eq!((numbers.lr, numbers.warmup, numbers.clip), (0.5, 0.0, 1.0));
    }

    /// Every key that refuses a number because it is text is among those whose overrides are text.
    #[test]
    fn the_keys_of_texts_are_known() {
        let keys_of = |section: &str| {
            let key = if section.is_empty() { "_=1".into() } else { format!("{section}._=1") };
            let error = parse(SMALL, &[&key]).expect_err("unknown");
            let listed = error.split("expected one of").last().expect("the known keys").to_string();
            listed.split('`').skip(1).step_by(2).map(str::to_string).collect::<Vec<_>>()
        };
        for section in ["", "run", "reft", "lora", "data", "train", "eval"] {
            for key in keys_of(section) {
                let key = if section.is_empty() { key } else { format!("{section}.{key}") };
                let error = parse(SMALL, &[&format!("{key}=2024")]).err().unwrap_or_default();
                assert!(!error.contains("invalid type: integer `2024`, expected a string"), "{key}: {error}");
                assert!(!error.contains("expected a sequence"), "{key}: {error}");
            }
        }
    }

    #[test]
    fn numbers_that_make_no_sense_are_refused_by_name() {
        for key in ["train.lr", "train.warmup", "train.weight_decay", "train.clip", "train.model_dropout"] {
            for value in ["nan", "inf", "-inf", "-0.5"] {
                let error = parse(SMALL, &[&format!("{key}={value}")]).expect_err("refused");
                assert!(error.contains(&format!("{key} is ")), "{key}={value}: {error}");
            }
        }
        for key in ["lora.alpha", "lora.dropout", "reft.dropout", "head.lr"] {
            for value in ["nan", "inf", "-1.0"] {
                let error = parse(SMALL, &[&format!("{key}={value}")]).expect_err("refused");
                assert!(error.contains(&format!("{key} is ")), "{key}={value}: {error}");
            }
        }
        for change in ["lora.alpha=0", "reft.dropout=1", "lora.dropout=1", "train.lr=0", "head.lr=0"] {
            assert!(parse(SMALL, &[change]).is_err(), "{change}: nothing would be learned");
        }
    }

    #[test]
    fn keys_of_classifiers_are_refused_for_language_models() {
        for change in
            ["data.test=x.jsonl", "data.text=a", "data.label=b", "eval.metric=f1", "eval.protocol=reft-paper"]
        {
            let error = parse(SMALL, &[change]).expect_err("refused");
            let key = change.split('=').next().expect("a key");
            assert!(error.contains(key) && error.contains("absent without data.task"), "{error}");
            let of_task = parse(SMALL, &["data.task=classification", "data.eval=e.jsonl", change]);
            assert!(!of_task.is_err_and(|error| error.contains("without data.task")), "{change}");
        }
    }

    #[test]
    fn values_of_other_kinds_are_refused_in_plain_words() {
        for (line, expected) in [
            ("[train]\nsteps = -1", "expected a whole number from 0"),
            ("[train]\nlr = \"x\"", "expected a number"),
            ("[train]\nbatch_size = 1.5", "expected a whole number from 0"),
            ("[run.x]\n[train]\nseed = \"x\"", "expected"),
            ("[lora]\ntargets = 3", "expected a text or a list of texts"),
            ("[lora]\ntargets = [3]", "expected a string"),
            ("[head]\nlr = []", "expected a number"),
            ("[eval]\nexact_match = 1", "expected true or false"),
        ] {
            let error = parse(&format!("{SMALL}{line}\n"), &[]).expect_err(line);
            assert!(error.contains(expected), "{error}");
            let words = ["usize", "u32", "u64", "i64", "f64", "struct", "a sequence", "a boolean"];
            assert!(words.iter().all(|word| !error.contains(&format!("expected {word}"))), "{error}");
        }
    }

    #[test]
    fn settings_of_held_out_rows_need_such_rows() {
        for change in
            ["train.patience=3", "train.eval_every=5", "train.eval_each_epoch=true", "eval.exact_match=true"]
        {
            let error = parse(SMALL, &[change, "data.eval_rows=0"]).expect_err("no rows");
            let (key, value) = change.split_once('=').expect("a key");
            assert!(error.contains(&format!("{key} is {value}")), "{error}");
            assert!(error.contains("data.eval or data.eval_rows"), "{error}");
            parse(SMALL, &[change, "data.eval_rows=4", "train.eval_every=5"]).expect("rows");
        }
        let error = parse(SMALL, &["train.patience=3", "data.eval_rows=4"]).expect_err("one evaluation only");
        assert!(error.contains("train.patience is 3"), "{error}");
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
        assert!(parse(SMALL, &["reft.layers=[]"]).expect_err("layers").contains("the list is empty"));
        assert!(parse(SMALL, &["reft.layers=top"]).expect_err("layers").contains("top"));
    }
}
