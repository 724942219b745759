//! Trains an adapter on three rows, with the library alone: no recipe, no run folder.
//!
//! ```text
//! cargo run --release --example three_lines
//! ```

use anyhow::Result;
use burn::backend::Autodiff;
use burn_flex::Flex;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reft_core::{Adapter, Component, Method, Reft, ReftConfig, Site, intervention::Init};
use reft_models::{GenerateConfig, LoadedModel, Precision, generate};
use reft_train::{
    DataSet, LanguageModelling, Template, TrainConfig,
    data::parse_rows,
    recipe::TrainSection,
    tiny,
    trainer::{Silent, train},
};
use std::{ops::ControlFlow, path::Path, sync::atomic::AtomicBool};

const ROWS: &str = r#"{"prompt": "the old fox sings on the hill\n", "completion": "THE OLD FOX SINGS ON THE HILL!"}
{"prompt": "the young queen reads in the garden\n", "completion": "THE YOUNG QUEEN READS IN THE GARDEN!"}
{"prompt": "the tired sailor sleeps by the sea\n", "completion": "THE TIRED SAILOR SLEEPS BY THE SEA!"}"#;

fn main() -> Result<()> {
    let device = Default::default();
    let loaded: LoadedModel<Flex> =
        LoadedModel::load(&tiny::model(), "embedded:tiny", Precision::default(), &device)?;

    let rows = parse_rows(ROWS, "three rows")?;
    let data = DataSet::encode(&rows, &Template::Plain, &loaded.tokenizer, 128, "three rows")?;

    // Two edits of rank 4, at the outputs of layers 1 and 3, at the ends of the prompt.
    let config = ReftConfig {
        method: Method::Loreft,
        rank: 4,
        hidden_size: loaded.model.config().hidden_size,
        sites: [1, 3].map(|layer| Site { layer, component: Component::BlockOutput }).to_vec(),
        positions: "f2+l2".parse()?,
        tied: true,
        activation: Default::default(),
        dropout: 0.0,
    };
    let reft: Reft<Flex> = config.init(Init::Paper, &mut ChaCha8Rng::seed_from_u64(42), &device)?;
    let section = TrainSection { steps: Some(60), batch_size: 3, lr: 1e-2, ..TrainSection::default() };
    let config = TrainConfig::from(section);
    let objective = LanguageModelling::new(&loaded.model, 3);
    let never = AtomicBool::new(false);
    let trained = train::<Autodiff<Flex>, _>(
        &objective,
        reft.into(),
        &data.examples,
        &[],
        &config,
        &mut Silent,
        &never,
    );
    let reft = trained.learned.reft;
    println!("loss {:.3} -> {:.3} in {} steps", trained.losses[0], trained.losses[59], trained.steps);

    let prompt = loaded.tokenizer.encode("the happy dog runs in the village\n")?;
    let config = GenerateConfig { stop_ids: loaded.stop_ids.clone(), ..GenerateConfig::default() };
    for (name, reft) in [("before", None), ("after", Some(&reft))] {
        let out = generate(&loaded.model, std::slice::from_ref(&prompt), reft, &config, |_, _| {
            ControlFlow::Continue(())
        })?;
        println!("{name:<7} {}", loaded.tokenizer.decode(&out[0].tokens)?);
    }

    let folder = Path::new("runs/three-lines/adapter");
    Adapter::new(reft, loaded.base, "plain").save(folder)?;
    println!("saved in {}", folder.display());
    Ok(())
}
