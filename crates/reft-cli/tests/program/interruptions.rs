//! Runs that end before their time: Ctrl-C, a killed process, a full disk, a closed pipe.

use super::support::*;
use std::{
    fs,
    io::{BufRead, BufReader, Read},
    path::Path,
    process::{Command, Stdio},
};

#[cfg(unix)]
#[test]
fn an_interrupted_run_keeps_what_it_learned() {
    let folder = workplace();
    let (mut child, lines) = endless_run(folder.path(), 3);
    interrupt(&child);
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(child.wait().expect("ended").success());
    let summary = json(&folder.path().join("runs/quickstart/summary.json"));
    assert_eq!(summary["ended"], "interrupted");
    let says = format!("interrupted after {} steps; the adapter so far is saved", summary["steps"]);
    assert!(rest.contains(&says), "{rest:?}");
    let args =
        ["generate", "--adapter", ADAPTER, "--device", "cpu", "--prompt", "x", "--max-new-tokens", "2"];
    assert!(!stdout(&reft(folder.path(), &args)).trim().is_empty());
}

/// Interrupts a run while it evaluates the model without an adapter, which takes several seconds.
#[cfg(unix)]
fn interrupted_at_once(folder: &Path) -> String {
    let recipe = repository("recipes/quickstart.toml");
    let args = ["train", text_of(&recipe), "device=cpu", "run.overwrite=true", "eval.max_new_tokens=100"];
    let (mut child, lines) = started_run(folder, &args, "held out ");
    interrupt(&child);
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    assert!(!rest.iter().any(|line| line.starts_with("step ")), "{rest:?}");
    let mut message = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut message).expect("UTF-8");
    assert_eq!(child.wait().expect("ended").code(), Some(1), "{message}");
    message
}

#[cfg(unix)]
#[test]
fn a_run_that_is_interrupted_before_its_first_update_writes_nothing() {
    let folder = workplace();
    let message = interrupted_at_once(folder.path());
    assert_snapshot("interrupted_before_first_update", folder.path(), &message, &[]);
    assert!(!folder.path().join("runs").exists(), "nothing may be written");

    // The same where there is a run that it would have replaced.
    stdout(&short_run(folder.path(), &[]));
    let run = folder.path().join("runs");
    let before = files_of(&run);
    assert_eq!(interrupted_at_once(folder.path()), message);
    assert_eq!(files_of(&run), before);
}

/// A system that is out of memory may kill a process without a message; what was learned is on disk by then.
#[cfg(unix)]
#[test]
fn a_run_that_is_killed_leaves_its_adapter() {
    let folder = workplace();
    let (mut child, _lines) = endless_run(folder.path(), 6);
    child.kill().expect("killed");
    assert!(!child.wait().expect("ended").success());
    let text = stdout(&reft(folder.path(), &["inspect", ADAPTER]));
    assert!(text.contains("\nparameters   6168 in 6 interventions\n"), "{text}");
}

#[test]
fn a_run_under_way_is_not_replaced() {
    let folder = workplace();
    let (mut child, _lines) = endless_run(folder.path(), 2);
    let second = short_run(folder.path(), &["run.overwrite=true"]);
    child.kill().expect("killed");
    child.wait().expect("ended");
    assert_snapshot("refused_run_under_way", folder.path(), &refusal(&second), &[]);
    // The lock of a process that was killed is none.
    stdout(&short_run(folder.path(), &["run.overwrite=true"]));
}

/// A limit on the size of files stands in for a full disk: writes fail in the same way.
#[cfg(unix)]
#[test]
fn a_full_disk_is_an_error_and_leaves_no_broken_file() {
    let folder = workplace();
    let recipe = repository("recipes/quickstart.toml");
    let script = format!(
        "trap '' XFSZ; ulimit -f 16; exec '{REFT}' train '{}' device=cpu train.steps=2 data.eval_rows=4 \
         eval.exact_match=false",
        recipe.display()
    );
    // 16 blocks of 512 or 1024 bytes: enough for the recipe, not for the adapter.
    let output = Command::new("sh").args(["-c", &script]).current_dir(folder.path()).output().expect("sh");
    let temporary = [(r"/\.reft-\w+", "/[temporary file]")];
    assert_snapshot("full_disk", folder.path(), &refusal(&output), &temporary);
    let adapter = folder.path().join(ADAPTER);
    let left = if adapter.exists() { files_of(&adapter) } else { Default::default() };
    assert!(left.is_empty(), "half-written files: {:?}", left.keys());
}

/// As in `reft train … | head -1`.
#[test]
fn a_run_whose_output_nobody_reads_goes_on() {
    let folder = workplace();
    let recipe = repository("recipes/quickstart.toml");
    let args = ["train", text_of(&recipe), "device=cpu", "train.steps=6", "train.log_every=1"];
    let more = ["data.eval_rows=4", "eval.max_new_tokens=4"];
    let mut child = command(folder.path(), &[&args[..], &more].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut reader = BufReader::with_capacity(1, child.stdout.take().expect("piped"));
    let mut first = String::new();
    reader.read_line(&mut first).expect("a line");
    drop(reader);
    let output = child.wait_with_output().expect("ended");
    assert!(first.starts_with("model "), "{first}");
    let message = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!((output.status.code(), message.as_str()), (Some(0), ""));
    let summary = json(&folder.path().join("runs/quickstart/summary.json"));
    assert_eq!((summary["ended"].as_str(), summary["steps"].as_u64()), (Some("done"), Some(6)));
    let text = stdout(&reft(folder.path(), &["inspect", ADAPTER]));
    assert!(text.contains("\nparameters   6168 in 6 interventions\n"), "{text}");
}

/// As in `reft eval … | head -0`, for every verb that prints.
#[test]
fn a_closed_pipe_is_not_an_error() {
    let folder = workplace();
    stdout(&short_run(folder.path(), &[]));
    let prompts = "{\"prompt\": \"the old queen\"}\n{\"prompt\": \"the red fox\"}\n";
    fs::write(folder.path().join("prompts.jsonl"), prompts).expect("written");
    let adapter = ["--adapter", ADAPTER, "--device", "cpu"];
    let generate = [&["generate", "--max-new-tokens", "4"], &adapter[..]].concat();
    let eval = [&["eval", "--data", "embedded:french-eval"], &adapter[..]].concat();
    for args in [
        eval.clone(),
        [&eval[..], &["--json"]].concat(),
        [&generate[..], &["--prompt", "the old queen"]].concat(),
        [&generate[..], &["--prompt", "the old queen", "--json"]].concat(),
        [&generate[..], &["--data", "prompts.jsonl", "--template", "plain"]].concat(),
        vec!["train", "runs/quickstart/recipe.toml", "--dry-run"],
        vec!["train", "runs/quickstart/recipe.toml", "--dry-run", "--json"],
        vec!["inspect", ADAPTER],
        vec!["inspect", ADAPTER, "--json"],
        vec!["devices"],
        vec!["devices", "--json"],
        vec!["--help"],
    ] {
        let mut child = command(folder.path(), &args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        drop(child.stdout.take());
        let output = child.wait_with_output().expect("ended");
        let message = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!((output.status.code(), message.as_str()), (Some(0), ""), "{args:?}");
    }
}
