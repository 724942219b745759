//! Loads a model and an adapter, and continues a prompt token by token.
//!
//! ```sh
//! cargo xtask train                                    # trains the adapter of the quick start
//! cargo run --release --example load_and_generate -- runs/quickstart/adapter "the big wolf swims near the river"
//! ```

use anyhow::Result;
use burn_flex::Flex;
use reft_core::adapter::read_config;
use reft_models::{GenerateConfig, Llama, LoadedModel, Precision, generate};
use reft_train::{
    Template,
    open::{find_model, load_adapter},
};
use std::{
    io::{Write, stdout},
    ops::ControlFlow,
    path::PathBuf,
};

pub fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().unwrap_or_else(|| "runs/quickstart/adapter".into()));
    let prompt = args.next().unwrap_or_else(|| "the big wolf swims near the river".into());

    // The adapter names its model. Loading the adapter checks by fingerprint that this is the same model.
    let device = Default::default();
    let name = read_config(&folder)?.base_model.name;
    let mut loaded: LoadedModel<Flex, Llama<Flex>> =
        LoadedModel::load(&find_model(&name, None)?, &name, Precision::default(), &device)?;
    let adapter = load_adapter(&folder, &mut loaded, &device)?;

    let template = Template::parse(&adapter.template)?;
    let tokens = template.encode_prompt(&template.question(&prompt), &loaded.tokenizer, usize::MAX)?;
    let config = GenerateConfig { stop_ids: loaded.stop_ids.clone(), ..GenerateConfig::default() };
    let mut text = Vec::new();
    let mut n_printed = 0;
    generate(&loaded.model, &[tokens], Some(&adapter.adapter.reft), &config, |_, token| {
        text.push(token);
        let decoded = loaded.tokenizer.decode(&text).unwrap_or_default();
        print!("{}", decoded.get(n_printed..).unwrap_or_default());
        let _ = stdout().flush();
        n_printed = decoded.len();
        ControlFlow::Continue(())
    })?;
    println!();
    Ok(())
}
