//! Fuzz targets: everything that reads a file or a text from elsewhere, see README.md.
//!
//! `cargo test -p fuzz` runs every target on its corpus, on changed copies of it, and on random bytes.
//! `cargo bolero test -p fuzz TARGET` searches for new inputs, guided by coverage.

mod support;

use std::path::{Path, PathBuf};
use support::{limits::limited, mutants};

/// Makes two tests of each file in `targets`: the corpus with random bytes, and mutants of the corpus. The numbers are per target
/// and per file.
macro_rules! targets {
    ($($target:ident: $random:literal random, $mutants:literal mutants;)*) => {
        mod targets {
            $(pub mod $target;)*
        }
        $(#[test]
        fn $target() {
            let check = limited(targets::$target::target);
            bolero::check!(name = stringify!($target)).with_iterations($random).for_each(check);
        })*
        mod mutants_of {
            use super::*;
            $(#[test]
            fn $target() {
                let check = limited(targets::$target::target);
                mutants::each(&corpus(stringify!($target)), $mutants, check);
            })*
        }
    };
}

targets! {
    adapter_folder: 100 random, 100 mutants;
    adapter_round_trip: 100 random, 30 mutants;
    chat_template: 30 random, 100 mutants;
    data_file: 100 random, 200 mutants;
    hub: 12 random, 3 mutants;
    layers: 100 random, 500 mutants;
    model_folder: 100 random, 40 mutants;
    peft: 100 random, 100 mutants;
    positions: 100 random, 500 mutants;
    recipe: 100 random, 200 mutants;
    row_template: 100 random, 200 mutants;
    tokenizer: 100 random, 100 mutants;
}

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("__fuzz__").join(target).join("corpus")
}
