//! Packs the published crates as `cargo publish` would, and compiles what was packed.

use crate::tools::{Outcome, cargo, output, root, succeeds, target, value};
use std::{fs, io, process::Command};

/// The published crates, dependencies first.
const CRATES: [&str; 6] =
    ["reft-core", "reft-jinja", "reft-kernels", "reft-models", "reft-train", "reft-cli"];

/// What every package must have.
const FILES: [&str; 4] = ["Cargo.toml", "README.md", "LICENSE-MIT", "LICENSE-APACHE"];

/// The limit of crates.io.
const MAX_BYTES: u64 = 10_000_000;

/// Each package compiles from the files in it: reft-core and reft-jinja as `cargo publish` verifies them; then all of them together in a
/// workspace of their own, because the others' dependencies here need not be published yet.
pub fn check() -> Outcome {
    let package = |args: &[&str]| succeeds(cargo().args(["package", "--locked", "--allow-dirty"]).args(args));
    let all = CRATES.iter().flat_map(|name| ["--package", name]).collect::<Vec<_>>();
    if !package(&["--package", "reft-core", "--package", "reft-jinja"])
        || !package(&[&all[..], &["--no-verify"]].concat())
    {
        return Outcome::Failed;
    }
    match unpack() {
        Ok(problems) if problems.is_empty() => {}
        Ok(problems) => {
            problems.iter().for_each(|problem| eprintln!("error: {problem}"));
            return Outcome::Failed;
        }
        Err(error) => {
            eprintln!("error: unpacking in {}: {error}", target().join("package").display());
            return Outcome::Failed;
        }
    }
    // The same features and profile as in the workspace itself, whose compiled dependencies are used again.
    let mut compile = cargo();
    compile.current_dir(target().join("package/unpacked")).env("CARGO_TARGET_DIR", target());
    succeeds(compile.args(["check", "--offline", "--no-default-features", "--features", "flex"]).args(all))
        .into()
}

/// Unpacks all packages into one workspace. Returns what is wrong with them.
fn unpack() -> io::Result<Vec<String>> {
    let mut problems = Vec::new();
    let folder = target().join("package/unpacked");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let version = value(&manifest, "version").expect("Cargo.toml has a version");
    let mut members = Vec::new();
    let mut patches = String::from("\n[patch.crates-io]\n");
    for name in CRATES {
        let member = format!("{name}-{version}");
        let archive = target().join("package").join(format!("{member}.crate"));
        let bytes = archive.metadata()?.len();
        if bytes > MAX_BYTES {
            problems.push(format!("{}: {bytes} bytes, crates.io takes {MAX_BYTES}", archive.display()));
        }
        if output(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&folder)).is_none() {
            problems.push(format!("tar cannot unpack {}", archive.display()));
        }
        for file in FILES.iter().filter(|file| !folder.join(&member).join(file).is_file()) {
            problems.push(format!("{}: {file} is missing", archive.display()));
        }
        members.push(format!("{member:?}"));
        patches += &format!("{name} = {{ path = {member:?} }}\n");
    }
    let lines = manifest.lines().map(|line| match line.starts_with("members =") {
        true => format!("members = [{}]", members.join(", ")),
        false => line.into(),
    });
    fs::write(folder.join("Cargo.toml"), lines.collect::<Vec<_>>().join("\n") + &patches)?;
    fs::copy(root().join("Cargo.lock"), folder.join("Cargo.lock"))?;
    Ok(problems)
}
