//! Loads a model and an adapter, and continues a prompt token by token.
//!
//! ```text
//! cargo xtask train                                    # makes the adapter of the quick start
//! cargo run --release --example load_and_generate -- runs/quickstart/adapter "the big wolf swims near the river"
//! ```

use anyhow::Result;
use burn_flex::Flex;
use reft_core::adapter::read_config;
use reft_models::{GenerateConfig, LoadedModel, Precision, generate};
use reft_train::{
    Template,
    run::{find_model, load_adapter},
};
use std::{io::Write, ops::ControlFlow, path::PathBuf};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let folder = PathBuf::from(args.next().unwrap_or_else(|| "runs/quickstart/adapter".into()));
    let prompt = args.next().unwrap_or_else(|| "the big wolf swims near the river".into());

    // The adapter remembers its model; loading checks that it is the same one, by its fingerprint.
    let device = Default::default();
    let name = read_config(&folder)?.base_model.name;
    let files = find_model(&name, None)?;
    let mut loaded: LoadedModel<Flex> = LoadedModel::load(&files, &name, Precision::default(), &device)?;
    let adapter = load_adapter(&folder, &mut loaded, &device)?;

    let template = Template::parse(&adapter.template)?;
    let tokens = template.encode_prompt(&template.question(&prompt), &loaded.tokenizer, usize::MAX)?;
    let config = GenerateConfig { stop_ids: loaded.stop_ids.clone(), ..GenerateConfig::default() };
    let mut text = Vec::new();
    let mut shown = 0;
    generate(&loaded.model, &[tokens], Some(&adapter.reft), &config, |_, token| {
        text.push(token);
        let decoded = loaded.tokenizer.decode(&text).unwrap_or_default();
        print!("{}", decoded.get(shown..).unwrap_or_default());
        let _ = std::io::stdout().flush();
        shown = decoded.len();
        ControlFlow::Continue(())
    })?;
    println!();
    Ok(())
}
