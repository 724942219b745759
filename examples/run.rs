//! Runs every example and checks what it prints and writes.
//!
//! An example runs in a process of its own: this program with the example's name in the variable `RUN_EXAMPLE`.

use libtest_mimic::{Arguments, Failed, Trial};
use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Output},
};

mod capture_and_steer;
mod classify;
mod edit_by_hand;
mod load_and_generate;
mod own_module;
mod train_and_stream;
mod your_own_model;

fn main() -> anyhow::Result<()> {
    match env::var("RUN_EXAMPLE").as_deref() {
        Ok("edit_by_hand") => edit_by_hand::main(),
        Ok("own_module") => own_module::main(),
        Ok("your_own_model") => your_own_model::main(),
        Ok("train_and_stream") => train_and_stream::main(),
        Ok("load_and_generate") => load_and_generate::main(),
        Ok("capture_and_steer") => capture_and_steer::main(),
        Ok("classify") => classify::main(),
        Ok(other) => anyhow::bail!("no example {other}"),
        Err(_) => {
            let trials = vec![
                Trial::test("edit_by_hand", edited_as_by_hand),
                Trial::test("own_module", trained_and_reloaded),
                Trial::test("your_own_model", the_guide_runs),
                Trial::test("train_and_stream, load_and_generate", trained_and_streamed),
                Trial::test("capture_and_steer", steered),
                Trial::test("classify", classified),
                Trial::test("classify, on a real encoder", classified_well)
                    .with_ignored_flag(!real_encoder().is_dir()),
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

/// The guide's code is the example, and its assertions hold.
fn the_guide_runs() -> Result<(), Failed> {
    let guide = include_str!("../docs/your-own-model.md");
    let blocks = guide.split("```rust\n").skip(1).filter_map(|rest| rest.split("```").next());
    let of_guide: Vec<&str> = blocks.flat_map(str::lines).filter(|line| !line.trim().is_empty()).collect();
    let example = include_str!("your_own_model.rs").lines().skip(1);
    let of_example: Vec<&str> = example.filter(|line| !line.trim().is_empty()).collect();
    assert_eq!(of_guide, of_example);
    run("your_own_model", &[], tempfile::tempdir()?.path())?;
    Ok(())
}

fn trained_and_reloaded() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let printed = run("own_module", &[], folder.path())?;
    let losses = numbers(&printed, "loss ");
    assert!(losses[0] > 5.0 * losses[1], "{printed}");
    assert!(numbers(&printed, "|RRᵀ - I| ")[0] < 1e-5, "{printed}");
    for reloaded in ["loss after loading", "loss with the edit from its own file"] {
        assert_eq!(numbers(&printed, reloaded), losses[1..2], "{printed}");
    }
    Ok(())
}

/// Each adapter gives its own text, in the process that trained it and in another.
fn trained_and_streamed() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let printed = run("train_and_stream", &[], folder.path())?;
    let lines: Vec<&str> = printed.lines().collect();
    assert!(lines[5].starts_with("french: step 60/60, loss 0.0"), "{printed}");
    assert_eq!(
        lines[6..],
        ["THE HUNGRY DUCK WALKS NEAR THE RIVER!", "le canard affamé marche près de la rivière"],
        "{printed}"
    );
    for (name, text) in [
        ("loud", "THE OLD GOAT SINGS IN THE GARDEN!\n"),
        ("french", "la vieille chèvre chante dans le jardin\n"),
    ] {
        let args = [&format!("runs/{name}"), "the old goat sings in the garden\n"];
        assert_eq!(run("load_and_generate", &args, folder.path())?, text);
    }
    Ok(())
}

fn steered() -> Result<(), Failed> {
    let folder = tempfile::tempdir()?;
    let printed = run("capture_and_steer", &[], folder.path())?;
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(
        lines,
        [
            "unedited     Yes, the hungry duck walks near the river.",
            "strength  1  Yes, the hungry duck walks by the sea.",
            "strength -1  Yes, the hungry duck walks in the village.",
        ]
    );
    Ok(())
}

/// On an encoder with random weights, which can tell little apart.
fn classified() -> Result<(), Failed> {
    let encoder = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/encoders/roberta");
    let printed = run("classify", &[encoder, "cpu"], tempfile::tempdir()?.path())?;
    let lines: Vec<&str> = printed.lines().collect();
    assert!(numbers(&printed, "loss ")[0] > 0.5, "{printed}");
    for (line, text) in lines[1..].iter().zip(["a lovely film", "an awful, boring meal"]) {
        let label = line.strip_prefix(text).and_then(|rest| rest.strip_prefix(": "));
        assert!(matches!(label, Some("good" | "bad")), "{printed}");
    }
    assert_eq!(lines.len(), 3, "{printed}");
    Ok(())
}

fn classified_well() -> Result<(), Failed> {
    let encoder = real_encoder();
    let args = [encoder.to_str().ok_or("UTF-8")?, "cpu"];
    let printed = run("classify", &args, tempfile::tempdir()?.path())?;
    assert!(numbers(&printed, "loss ")[1] < 0.05, "{printed}");
    assert!(printed.ends_with("a lovely film: good\nan awful, boring meal: bad\n"), "{printed}");
    Ok(())
}

/// An encoder of the shared material, which is not part of the repository.
fn real_encoder() -> PathBuf {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    env::var_os("REFT_SHARED").map_or(beside, PathBuf::from).join("models/minilm-roberta")
}
