//! The public interface of every library crate, compared with the lists in `docs/api`. A change there is a change for users:
//! the diff shows it, and `UPDATE_API=1 cargo test -p system-tests --test api` accepts it.
//!
//! The lists are made from rustdoc's JSON, whose format changes with the compiler, so they are compared with one version only.

use libtest_mimic::{Arguments, Failed, Trial};
use std::{env, fs, path::PathBuf, process::Command};

/// The compiler whose JSON `public-api` reads.
const RUST: &str = "rustc 1.95";
const CRATES: [(&str, &str); 5] = [
    ("reft-core", ""),
    ("reft-jinja", ""),
    ("reft-kernels", "flex"),
    ("reft-models", "hub"),
    ("reft-train", "flex,hub"),
];

fn main() {
    let version = Command::new("rustc").arg("--version").output().map(|output| output.stdout);
    let is_readable = version.is_ok_and(|text| text.starts_with(RUST.as_bytes()));
    if !is_readable {
        eprintln!("ignored: rustdoc's JSON is compared with {RUST} only");
    }
    let trial = |(name, features)| {
        Trial::test(name, move || interface_is_as_listed(name, features)).with_ignored_flag(!is_readable)
    };
    libtest_mimic::run(&Arguments::from_args(), CRATES.map(trial).into()).exit();
}

fn interface_is_as_listed(name: &str, features: &str) -> Result<(), Failed> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = root.join("target/api");
    let made = Command::new(env!("CARGO"))
        .args(["rustdoc", "--locked", "--quiet", "--lib", "--package", name])
        .args(["--no-default-features", "--features", features, "--target-dir"])
        .arg(&target)
        .args(["--", "-Z", "unstable-options", "--output-format", "json", "--cap-lints", "allow"])
        .env("RUSTC_BOOTSTRAP", "1")
        .current_dir(&root)
        .output()?;
    if !made.status.success() {
        return Err(String::from_utf8_lossy(&made.stderr).into());
    }
    let json = target.join("doc").join(format!("{}.json", name.replace('-', "_")));
    let interface = public_api::Builder::from_rustdoc_json(json)
        .omit_blanket_impls(true)
        .omit_auto_trait_impls(true)
        .omit_auto_derived_impls(true)
        .build()?
        .to_string();
    let listed = root.join(format!("docs/api/{name}.txt"));
    if env::var_os("UPDATE_API").is_some() {
        fs::create_dir_all(root.join("docs/api"))?;
        return Ok(fs::write(listed, interface)?);
    }
    let expected = fs::read_to_string(&listed)?;
    let missing_from = |text: &str, other: &str, sign: char| -> Vec<String> {
        let lines = text.lines().filter(|line| !other.lines().any(|known| known == *line));
        lines.map(|line| format!("{sign} {line}")).collect()
    };
    let changes =
        [missing_from(&expected, &interface, '-'), missing_from(&interface, &expected, '+')].concat();
    if changes.is_empty() {
        return Ok(());
    }
    Err(format!("docs/api/{name}.txt:\n{}\naccept with UPDATE_API=1", changes.join("\n")).into())
}
