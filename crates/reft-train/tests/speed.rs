//! How fast rows of a language model become tokens: `cargo test -p reft-train --test speed -- --ignored --nocapture`.

#![allow(clippy::print_stdout)]

use reft_models::Tokenizer;
use reft_train::{
    DataSet, Row, Template,
    data::{Encoding, parse_rows},
    tiny,
};
use std::time::Instant;

const ROWS: usize = 50_000;

fn rows() -> Vec<Row> {
    let text = "the quick brown fox jumps over the lazy dog, ".repeat(2);
    let row = |n| format!("{{\"instruction\": \"{text}{n}\", \"output\": \"the dog sleeps {n}\"}}\n");
    parse_rows(&(0..ROWS).map(row).collect::<String>(), "d.jsonl").expect("valid")
}

/// Prints the rows per second of the best of five passes.
#[test]
#[ignore = "a measurement"]
fn speed_of_encoding_50_000_rows_of_a_language_model() {
    let tokenizer = Tokenizer::load(&tiny::model()).expect("embedded");
    let rows = rows();
    for name in ["alpaca", "Q: {{ instruction }}\nA:"] {
        let template = Template::parse(name).expect("known");
        let encoding = Encoding::new(&template, &tokenizer, tokenizer.vocab_size(), 512);
        let times = (0..5).map(|_| {
            let begun = Instant::now();
            assert_eq!(DataSet::encode(&rows, encoding, "d.jsonl").expect("usable").examples.len(), ROWS);
            begun.elapsed().as_secs_f64()
        });
        println!("{name:?}: {:.0} rows/s", ROWS as f64 / times.fold(f64::INFINITY, f64::min));
    }
}
