//! Fuzz targets: everything that reads a file or a text from elsewhere, see README.md.
//!
//! `cargo test -p fuzz` runs every target on its corpus, on changed copies of it, and on random bytes.
//! `cargo bolero test -p fuzz TARGET` searches for new inputs, guided by coverage.

mod support;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};
use support::{limits::checked, mutants};

/// Makes two tests of each file in `targets`: the corpus with random bytes, and mutants of the corpus. Their numbers per target and
/// per file, and the seconds that one input may take.
macro_rules! targets {
    ($($target:ident: $random:literal random, $mutants:literal mutants, $seconds:literal s;)*) => {
        mod targets {
            $(pub mod $target;)*
        }
        $(#[test]
        fn $target() {
            let check = |input: &[u8]| checked(targets::$target::target, input, Duration::from_secs($seconds));
            bolero::check!(name = stringify!($target)).with_iterations($random).for_each(check);
        })*
        mod mutants_of {
            use super::*;
            $(#[test]
            fn $target() {
                let check = |input: &[u8]| checked(targets::$target::target, input, Duration::from_secs($seconds));
                mutants::each(&corpus(stringify!($target)), $mutants, check);
            })*
        }
    };
}

targets! {
    adapter_folder: 100 random, 100 mutants, 1 s;
    adapter_round_trip: 100 random, 30 mutants, 1 s;
    chat_template: 30 random, 100 mutants, 4 s;
    data_file: 100 random, 200 mutants, 1 s;
    hub: 12 random, 3 mutants, 20 s;
    layers: 100 random, 500 mutants, 1 s;
    model_folder: 100 random, 40 mutants, 1 s;
    peft: 100 random, 100 mutants, 1 s;
    positions: 100 random, 500 mutants, 1 s;
    recipe: 100 random, 200 mutants, 1 s;
    row_template: 100 random, 200 mutants, 1 s;
    tokenizer: 100 random, 100 mutants, 1 s;
}

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("__fuzz__").join(target).join("corpus")
}
