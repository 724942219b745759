//! Trains two adapters on one model, saves and loads them, and streams a text with each.
//!
//! ```sh
//! cargo run --release --example train_and_stream
//! ```

use anyhow::Result;
use burn_flex::Flex;
use reft_models::GenerateConfig;
use reft_train::{LanguageModel, TrainConfig, Trainer};
use std::{io::Write, ops::ControlFlow};

const PROMPTS: [&str; 2] = ["the old fox sings on the hill\n", "the young queen reads in the garden\n"];
const LOUD: [&str; 2] = ["THE OLD FOX SINGS ON THE HILL!", "THE YOUNG QUEEN READS IN THE GARDEN!"];
const FRENCH: [&str; 2] = ["le vieux renard chante sur la colline", "la jeune reine lit dans le jardin"];

pub fn main() -> Result<()> {
    let model = LanguageModel::<Flex>::load("embedded:tiny", &Default::default())?;
    for (name, answers) in [("loud", LOUD), ("french", FRENCH)] {
        let pairs: Vec<_> = PROMPTS.into_iter().zip(answers).collect();
        let trainer = Trainer::new()
            .with_reft(model.reft([1, 3, 5]).with_rank(4).with_positions("f2+l2".parse()?))
            .with_config(TrainConfig::default().with_steps(60).with_batch_size(2).with_lr(1e-2))
            .on_step(|step| {
                if step.step.is_multiple_of(20) {
                    println!("{name}: step {}/{}, loss {:.3}", step.step, step.total_steps, step.loss);
                }
                ControlFlow::Continue(())
            });
        model.train(&pairs, trainer)?.result.save(format!("runs/{name}"))?;
    }
    let (loud, french) = (model.adapter("runs/loud")?, model.adapter("runs/french")?);
    for adapter in [&loud, &french] {
        model.stream(
            "the hungry duck walks near the river\n",
            adapter,
            GenerateConfig::default(),
            |text| {
                print!("{text}");
                std::io::stdout().flush().map_or(ControlFlow::Break(()), ControlFlow::Continue)
            },
        )?;
        println!();
    }
    Ok(())
}
