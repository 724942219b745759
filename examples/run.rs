//! Runs every example and checks what it prints and writes.
//!
//! An example runs in a process of its own: this program with the example's name in the variable `RUN_EXAMPLE`.

use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    env,
    path::Path,
    process::{Command, Output},
};

#[path = "edit_by_hand.rs"]
mod edit_by_hand;
#[path = "load_and_generate.rs"]
mod load_and_generate;
#[path = "three_lines.rs"]
mod three_lines;

fn main() -> anyhow::Result<()> {
    match env::var("RUN_EXAMPLE").as_deref() {
        Ok("edit_by_hand") => edit_by_hand::main(),
        Ok("three_lines") => three_lines::main(),
        Ok("load_and_generate") => load_and_generate::main(),
        Ok(other) => anyhow::bail!("no example {other}"),
        Err(_) => {
            let trials = vec![
                Trial::test("edit_by_hand", edited_as_by_hand),
                Trial::test("three_lines_and_load_and_generate", trained_and_loaded),
            ];
            libtest_mimic::run(&Arguments::from_args(), trials).exit()
        }
    }
}

/// What an example prints when it runs in `folder`.
fn run(example: &str, args: &[&str], folder: &Path) -> Result<String, Failed> {
    let mut command = Command::new(env::current_exe()?);
    let Output { status, stdout, stderr } =
        command.args(args).env("RUN_EXAMPLE", example).current_dir(folder).output()?;
    if !status.success() {
        return Err(format!("{example}: {status}\n{}", String::from_utf8_lossy(&stderr)).into());
    }
    Ok(String::from_utf8(stdout)?)
}

/// The numbers of the line that begins with `name`.
fn numbers(printed: &str, name: &str) -> Vec<f64> {
    let line = printed.lines().find(|line| line.starts_with(name)).expect("such a line");
    let numbers = line[name.len()..].split(|c: char| !(c.is_ascii_digit() || "+-.e".contains(c)));
    numbers.filter_map(|text| text.parse().ok()).collect()
}

fn edited_as_by_hand() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let printed = run("edit_by_hand", &[], folder.path())?;
    for (a, b, len) in [("edited", "by hand", 6), ("R·edited", "Wh + b", 2)] {
        let (a, b) = (numbers(&printed, a), numbers(&printed, b));
        assert_eq!((a.len(), b.len()), (len, len), "{printed}");
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{printed}");
    }
    assert_ne!(numbers(&printed, "edited"), numbers(&printed, "h "), "{printed}");
    assert!(numbers(&printed, "largest change outside of the subspace:")[0] < 1e-5, "{printed}");
    Ok(())
}

/// `three_lines` trains an adapter with which `load_and_generate` gives the same text.
fn trained_and_loaded() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let printed = run("three_lines", &[], folder.path())?;
    let losses = numbers(&printed, "loss ");
    assert_eq!(losses[2], 60.0, "{printed}");
    assert!(losses[0] > 1.0 && losses[1] < 0.05, "{printed}");
    let lines: Vec<&str> = printed.lines().skip(1).collect();
    assert_eq!(
        lines,
        [
            "before  Yes, the happy dog runs in the village.",
            "after   THE HAPPY DOG RUNS IN THE VILLAGE!",
            "saved in runs/three-lines/adapter",
        ]
    );
    let args = ["runs/three-lines/adapter", "the happy dog runs in the village\n"];
    assert_eq!(run("load_and_generate", &args, folder.path())?, "THE HAPPY DOG RUNS IN THE VILLAGE!\n");
    Ok(())
}
