//! Loads an adapter and its model, and continues a prompt token by token.
//!
//! ```sh
//! cargo xtask train                                    # trains the adapter of the quick start
//! cargo run --release --example load_and_generate -- runs/quickstart/adapter "the big wolf swims near the river"
//! ```

use anyhow::Result;
use reft_core::adapter::read_config;
use reft_models::GenerateConfig;
use reft_train::AnyLanguageModel;
use std::{io::Write, ops::ControlFlow, path::PathBuf};

pub fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().unwrap_or_else(|| "runs/quickstart/adapter".into()));
    let prompt = args.next().unwrap_or_else(|| "the big wolf swims near the river".into());

    // The adapter names its model. Loading it checks by fingerprint that this is the same model.
    let model = AnyLanguageModel::load(&read_config(&folder)?.base_model.name, "auto")?;
    let adapter = model.adapter(&folder)?;
    model.stream(&prompt, Some(&adapter), GenerateConfig::default(), |text| {
        print!("{text}");
        std::io::stdout().flush().map_or(ControlFlow::Break(()), ControlFlow::Continue)
    })?;
    println!();
    Ok(())
}
