//! A classifier in an application, on a device that the user names: trained, saved, loaded, applied.
//!
//! ```sh
//! cargo run --release --example classify -- FacebookAI/roberta-base auto
//! ```

use anyhow::Result;
use reft_train::{AnyEncoder, TrainConfig, Trainer};

pub fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let name = args.next().unwrap_or_else(|| "FacebookAI/roberta-base".into());
    let encoder = AnyEncoder::load(&name, &args.next().unwrap_or_else(|| "auto".into()))?;
    let good = ["I loved it", "a wonderful film", "great fun", "what a lovely day", "the best meal ever"];
    let bad = ["I hated it", "a terrible film", "so boring", "what an awful day", "the worst meal ever"];
    let pairs: Vec<_> =
        good.map(|text| (text, "good")).into_iter().chain(bad.map(|text| (text, "bad"))).collect();

    let config = TrainConfig::default().with_steps(60).with_batch_size(8).with_lr(3e-3);
    let trained = encoder.train(&pairs, Trainer::new().with_config(config))?;
    println!("loss {:.3} -> {:.3}", trained.losses[0], trained.losses[trained.losses.len() - 1]);
    trained.result.save("runs/classifier")?;

    let texts = ["a lovely film", "an awful, boring meal"];
    for (text, prediction) in texts.iter().zip(encoder.classifier("runs/classifier")?.predict(&texts)?) {
        println!("{text}: {}", prediction.label().unwrap_or("no label"));
    }
    Ok(())
}
