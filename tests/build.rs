//! Sets `cfg(shared)` if the shared material is there, so that tests that need it are ignored where it is absent.

use std::{env, path::PathBuf};

fn main() {
    let beside = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("../../shared");
    let shared = env::var_os("REFT_SHARED").map_or(beside, PathBuf::from);
    println!("cargo::rustc-check-cfg=cfg(shared)");
    println!("cargo::rerun-if-env-changed=REFT_SHARED");
    println!("cargo::rerun-if-changed={}", shared.display());
    if shared.join("golden").is_dir() && shared.join("models").is_dir() {
        println!("cargo::rustc-cfg=shared");
    }
    println!("cargo::rustc-env=REFT_SHARED_FOLDER={}", shared.display());
}
