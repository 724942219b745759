//! Reads the hidden states of two texts, and steers the model with their difference.
//!
//! ```sh
//! cargo run --release --example capture_and_steer
//! ```

use anyhow::{Context, Result};
use burn_flex::Flex;
use reft_core::{Capture, Site, Steer, SteeredTokens};
use reft_train::LanguageModel;

pub fn main() -> Result<()> {
    let model = LanguageModel::<Flex>::load("embedded:tiny", &Default::default())?;
    let (site, prompt) = (Site::block_output(1), "the hungry duck walks near the river\n");

    let capture = Capture::at([site]);
    model.read(&[prompt, "the hungry duck walks in the garden\n"], &capture)?;
    let states = capture.states(site).context("the site was not reached")?;
    // Both texts have the same number of tokens.
    let vector = (states.row(1) - states.row(0)).sum_dim(0).squeeze_dim::<1>(0);

    println!("unedited     {}", model.generate_unedited(prompt)?);
    for strength in [1.0, -1.0] {
        let steer = Steer::new(site, vector.clone())
            .with_strength(strength)
            .with_tokens(SteeredTokens::Prompt("all".parse()?));
        println!("strength {strength:>2}  {}", model.generate_with_hook(prompt, &steer)?);
    }
    Ok(())
}
