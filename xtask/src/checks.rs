//! `cargo xtask test`: every check, the cheapest first, then a summary. What could not be checked counts as skipped, not
//! as passed.

use crate::{
    bench, circles, packages,
    tools::{
        Outcome::{self, Failed, Passed, Skipped},
        cargo, output, root, succeeds, value,
    },
};
use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

enum Run {
    /// Arguments of cargo.
    Cargo(&'static [&'static str]),
    /// Arguments of cargo, with rustdoc's warnings as errors.
    Rustdoc(&'static [&'static str]),
    Function(fn() -> Outcome),
}
use Run::{Cargo, Function, Rustdoc};

/// Clippy on the crates with backends, with these features only. Each set of features compiles other code, and changes
/// the features of some dependencies, which are then checked again.
macro_rules! backend {
    ($features:literal) => {
        Cargo(&[
            "clippy",
            "--locked",
            "--package",
            "reft-train",
            "--package",
            "reft-cli",
            "--no-default-features",
            "--features",
            $features,
            "--",
            "-D",
            "warnings",
        ])
    };
}

/// With a backend of one's own, without the Hub.
const BARE_LIBRARIES: &[&str] = &[
    "clippy",
    "--locked",
    "--package",
    "reft-core",
    "--package",
    "reft-jinja",
    "--package",
    "reft-kernels",
    "--package",
    "reft-models",
    "--package",
    "reft-train",
    "--no-default-features",
    "--",
    "-D",
    "warnings",
];

const WASM: &str = "wasm32-unknown-unknown";

/// The checks, cheapest first.
const CHECKS: &[(&str, Run)] = &[
    ("format", Cargo(&["fmt", "--all", "--check"])),
    ("import circles", Function(|| circles::check().into())),
    ("oldest Rust of dependencies", Function(oldest_rust_of_dependencies)),
    ("licenses, versions, sources", Function(deny)),
    ("advisories", Function(advisories)),
    (
        "lints",
        Cargo(&[
            "clippy",
            "--locked",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--",
            "-D",
            "warnings",
        ]),
    ),
    ("docs", Rustdoc(&["doc", "--locked", "--workspace", "--no-deps", "--all-features"])),
    ("libraries without features", Cargo(BARE_LIBRARIES)),
    ("feature flex", backend!("flex")),
    ("packages", Function(packages::check)),
    ("feature ndarray", backend!("ndarray")),
    ("feature vulkan", backend!("flex,vulkan")),
    ("feature metal", backend!("flex,metal")),
    ("feature cuda", backend!("flex,cuda")),
    (
        "libraries in a browser",
        Cargo(&["check", "--locked", "--target", WASM, "--package", "reft-core", "--package", "reft-models"]),
    ),
    // By itself: beside workspace members, cargo does not take a dependency for this target.
    ("their CPU backend", Cargo(&["check", "--locked", "--target", WASM, "--package", "burn-flex"])),
    ("oldest Rust", Function(oldest_rust)),
    ("tests", Cargo(&["test", "--locked", "--workspace"])),
    // With the program that the tests have built.
    ("a benchmark", Function(bench::smoke)),
];

/// Runs every check, whether or not one before it failed; or, with `wanted`, those whose name has one of these words.
pub fn run(wanted: &[String]) -> bool {
    let chosen = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.contains(word.as_str()));
    let checks: Vec<_> = CHECKS.iter().filter(|(name, _)| chosen(name)).collect();
    if checks.is_empty() {
        let names: Vec<&str> = CHECKS.iter().map(|(name, _)| *name).collect();
        eprintln!("error: no check is named {}; there are:\n{}", wanted.join(" or "), names.join("\n"));
        return false;
    }
    let mut done: Vec<(&str, Outcome, Duration)> = Vec::new();
    for (name, run) in checks {
        println!("== {name}");
        let begun = Instant::now();
        let outcome = match run {
            Cargo(args) => succeeds(cargo().args(*args)).into(),
            Rustdoc(args) => succeeds(cargo().args(*args).env("RUSTDOCFLAGS", "-D warnings")).into(),
            Function(check) => check(),
        };
        if let Skipped(reason) = &outcome {
            println!("skipped: {name} ({reason})");
        }
        done.push((name, outcome, begun.elapsed()));
    }

    println!("\n== summary");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, outcome, time) in &done {
        let (count, text) = match outcome {
            Passed => (&mut passed, "passed".into()),
            Failed => (&mut failed, "FAILED".into()),
            Skipped(reason) => (&mut skipped, format!("skipped: {reason}")),
        };
        *count += 1;
        println!("{:>6.0} s  {name}: {text}", time.as_secs_f64());
    }
    let total: Duration = done.iter().map(|(_, _, time)| *time).sum();
    println!("{:>6.0} s  in all\n", total.as_secs_f64());
    println!("checks: {passed} passed, {failed} failed, {skipped} skipped");
    failed == 0
}

const NO_DENY: &str = "cargo-deny is not installed; cargo install --locked cargo-deny";

fn has_deny() -> bool {
    output(cargo().args(["deny", "--version"])).is_some()
}

fn deny() -> Outcome {
    if !has_deny() {
        return Skipped(NO_DENY.into());
    }
    succeeds(cargo().args(["deny", "--locked", "check", "bans", "licenses", "sources"])).into()
}

fn advisories() -> Outcome {
    // Fetches the database, unless cargo-deny is missing.
    if output(cargo().args(["deny", "--locked", "fetch", "db"])).is_none() {
        return Skipped("the database cannot be fetched".into());
    }
    succeeds(cargo().args(["deny", "--locked", "--all-features", "check", "--disable-fetch", "advisories"]))
        .into()
}

/// `rust-version` of this workspace.
fn rust_version() -> String {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap_or_default();
    value(&manifest, "rust-version").expect("Cargo.toml has a rust-version").into()
}

/// `1.92.0` as `(1, 92, 0)`.
fn version(text: &str) -> (u32, u32, u32) {
    let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    (next(), next(), next())
}

/// No package of the lock file may ask for a newer Rust than this workspace does.
fn oldest_rust_of_dependencies() -> Outcome {
    let ours = rust_version();
    let Some(metadata) = output(cargo().args(["metadata", "--locked", "--format-version", "1"])) else {
        return Failed;
    };
    // A path holds no quote; backslashes are doubled in JSON.
    let paths = metadata.split(r#""manifest_path":""#).skip(1).filter_map(|rest| rest.split('"').next());
    let mut newer = Vec::new();
    for path in paths.map(|path| path.replace(r"\\", r"\")) {
        let manifest = fs::read_to_string(&path).unwrap_or_default();
        match value(&manifest, "rust-version") {
            Some(theirs) if version(theirs) > version(&ours) => {
                newer.push(format!("{path} needs Rust {theirs}"))
            }
            _ => {}
        }
    }
    for line in &newer {
        eprintln!("error: this workspace is for Rust {ours}, but {line}");
    }
    newer.is_empty().into()
}

/// Compiles with the oldest Rust, where that is installed. Clippy's `incompatible_msrv` finds most of what it would find.
fn oldest_rust() -> Outcome {
    let oldest = rust_version();
    let rustup = || {
        let mut command = Command::new("rustup");
        command.args(["run", &oldest, "cargo"]).current_dir(root()).env_remove("CARGO");
        command
    };
    if output(rustup().arg("--version")).is_none() {
        return Skipped(format!(
            "Rust {oldest} is not installed; rustup toolchain install {oldest} --profile minimal"
        ));
    }
    succeeds(rustup().args(["check", "--locked", "--workspace", "--all-features"])).into()
}

#[cfg(test)]
mod tests {
    use super::version;
    use crate::tools::value;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(version("1.100") > version("1.92.0"));
        assert_eq!(version("1.92"), version("1.92.0"));
        let manifest = "[package]\nname = \"a\"\nrust-version = \"1.92\"\n";
        assert_eq!(value(manifest, "rust-version"), Some("1.92"));
        assert_eq!(value(manifest, "edition"), None);
    }
}
