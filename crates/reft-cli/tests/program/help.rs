//! What `--help` prints.

use super::support::*;

#[test]
fn help_tells_every_verb_and_option() {
    let folder = workplace();
    let help = |args: &[&str]| stdout(&reft(folder.path(), &[args, &["--help"]].concat()));
    assert_snapshot("help", folder.path(), &help(&[]), &[]);
    for verb in ["train", "eval", "predict", "generate", "chat", "devices", "doctor", "inspect"] {
        assert!(help(&[]).contains(&format!("\n  {verb} ")), "{verb} is not in the list of verbs");
        assert_snapshot(&format!("help_{verb}"), folder.path(), &help(&[verb]), &[]);
    }
}

#[test]
fn unknown_words_are_refused() {
    let folder = workplace();
    let mut said = Transcript::new(folder.path());
    for args in [
        &["trane"][..],
        &["train"],
        &["eval", "--data"],
        &["generate", "--prompt", "x", "--greddy"],
        &["generate", "--prompt", "x", "--dtype", "f64"],
        &["generate", "--prompt", "x", "--quant", "int5"],
        &["eval", "--model", "embedded:tiny", "--data", "embedded:french-eval", "--batch-size", "0"],
        &["generate", "--prompt", "x", "--temperature", "-1"],
        &["generate", "--prompt", "x", "--top-k", "-1"],
        &["generate", "--prompt", "x", "--top-p", "2"],
        &["generate", "--prompt", "x", "--repetition-penalty", "nan"],
        &["generate", "--prompt", "x", "--max-new-tokens", "1.5"],
        &["generate", "--prompt", "x", "--seed", "-1"],
        &["train", "recipe.toml", "--json"],
    ] {
        let output = reft(folder.path(), args);
        assert_eq!(output.status.code(), Some(2));
        said.add(&args.join(" "), &String::from_utf8(output.stderr).expect("UTF-8"));
    }
    said.check("refused_command_lines", &[]);
}
