//! The LoReFT equation, `h + Rᵀ(Wh + b − Rh)`, on one hidden state, without any model.
//!
//! ```sh
//! cargo run --release --example edit_by_hand
//! ```

use anyhow::{Context, Result};
use burn::tensor::Tensor;
use burn_flex::Flex;
use reft_core::LoreftConfig;

pub fn main() -> Result<()> {
    let device = Default::default();
    let edit = LoreftConfig::new(6, 2).init::<Flex>(&device);

    // One hidden state, [1, d].
    let h = Tensor::<Flex, 2>::from_floats([[1.0, -2.0, 0.5, 3.0, 0.0, -1.0]], &device);
    let edited = edit.forward(h.clone());

    // The same by hand. `basis` is Rᵀ, [d, r].
    let basis = edit.projection().basis();
    let weight = edit.weight().context("LoReFT has a W")?.val();
    let target = h.clone().matmul(weight.transpose()) + edit.bias().val().unsqueeze::<2>();
    let change = target.clone() - h.clone().matmul(basis.clone());
    let by_hand = h.clone() + change.matmul(basis.clone().transpose());

    println!("h         {}", h.to_data());
    println!("edited    {}", edited.to_data());
    println!("by hand   {}", by_hand.to_data());

    // In the subspace spanned by the rows of R, the edited state is Wh + b; outside of it, nothing changes.
    println!("R·edited  {}", edited.clone().matmul(basis.clone()).to_data());
    println!("Wh + b    {}", target.to_data());
    let change = edited - h;
    let outside = change.clone() - change.matmul(basis.clone()).matmul(basis.transpose());
    println!("largest change outside of the subspace: {:.1e}", outside.abs().max().into_scalar());
    Ok(())
}
