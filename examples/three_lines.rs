//! Trains an adapter on three rows with the library alone: no recipe, no run folder.
//!
//! ```sh
//! cargo run --release --example three_lines
//! ```

use anyhow::Result;
use burn::backend::Autodiff;
use burn_flex::Flex;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reft_core::{Adapter, Init, Reft, ReftConfig};
use reft_models::{GenerateConfig, Llama, LoadedModel, Precision};
use reft_train::{
    DataSet, LanguageModeling, Silent, Template, TrainConfig, adapter::AdapterMetadata, data::parse_rows,
    eval::generate_all, tiny, train,
};
use std::{path::Path, sync::atomic::AtomicBool};

const ROWS: &str = r#"{"prompt": "the old fox sings on the hill\n", "completion": "THE OLD FOX SINGS ON THE HILL!"}
{"prompt": "the young queen reads in the garden\n", "completion": "THE YOUNG QUEEN READS IN THE GARDEN!"}
{"prompt": "the tired sailor sleeps by the sea\n", "completion": "THE TIRED SAILOR SLEEPS BY THE SEA!"}"#;

pub fn main() -> Result<()> {
    let device = Default::default();
    let loaded: LoadedModel<Flex, Llama<Flex>> =
        LoadedModel::load(&tiny::model(), "embedded:tiny", Precision::default(), &device)?;
    let (model, tokenizer) = (&loaded.model, &loaded.tokenizer);

    let (rows, vocab) = (parse_rows(ROWS, "three rows")?, model.config().vocab_size);
    let examples = DataSet::encode(&rows, &Template::Plain, tokenizer, vocab, 128, "three rows")?.examples;

    // Edits of rank 4 at the outputs of layers 1 and 3, at the first and last two tokens of the prompt.
    let config = ReftConfig::new(model.config().hidden_size, [1, 3]);
    let config = config.with_rank(4).with_positions("f2+l2".parse()?);
    let reft: Reft<Flex> = config.init(Init::Paper, &mut ChaCha8Rng::seed_from_u64(42), &device)?;
    let config = TrainConfig::default().with_steps(60).with_batch_size(3).with_lr(1e-2);
    let (objective, never) = (LanguageModeling::new(model, 3), AtomicBool::new(false));
    let outcome =
        train::<Autodiff<Flex>, _>(&objective, reft.into(), &examples, &[], &config, &mut Silent, &never);
    let (reft, losses) = (outcome.trainable.reft, outcome.history.losses);
    println!("loss {:.3} -> {:.3} in {} steps", losses[0], losses[losses.len() - 1], outcome.steps);

    let prompts = [tokenizer.encode("the happy dog runs in the village\n")?];
    let config = GenerateConfig { stop_ids: loaded.stop_ids.clone(), ..GenerateConfig::default() };
    for (name, reft) in [("before", None), ("after", Some(&reft))] {
        let texts = generate_all(model, reft, &prompts, &config, 1)?;
        println!("{name:<7} {}", tokenizer.decode(&texts[0])?);
    }

    let folder = Path::new("runs/three-lines/adapter");
    let metadata = AdapterMetadata { template: "plain".into(), ..AdapterMetadata::default() };
    Adapter::new(reft, loaded.base).with_metadata(&metadata).save(folder)?;
    println!("saved in {}", folder.display());
    Ok(())
}
