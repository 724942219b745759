//! A LoReFT edit in your own module, trained by your own loop, saved by Burn's recorder and by itself.
//!
//! ```sh
//! cargo run --release --example own_module
//! ```

use anyhow::Result;
use burn::{
    backend::Autodiff,
    module::Module,
    nn::{Linear, LinearConfig},
    optim::{AdamConfig, GradientsParams, Optimizer},
    record::{FullPrecisionSettings, NamedMpkFileRecorder},
    tensor::{Distribution, Tensor, activation::relu, backend::Backend},
};
use burn_flex::Flex;
use reft_core::{Intervention, LoreftConfig};

type B = Autodiff<Flex>;

#[derive(Module, Debug)]
struct Mlp<B: Backend> {
    first: Linear<B>,
    edit: Intervention<B>,
    second: Linear<B>,
}

impl<B: Backend> Mlp<B> {
    fn new(seed: u64, device: &B::Device) -> Self {
        Self {
            first: LinearConfig::new(8, 32).init(device).no_grad(),
            edit: LoreftConfig::new(32, 4).with_seed(seed).init(device),
            second: LinearConfig::new(32, 1).init(device).no_grad(),
        }
    }

    fn forward(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.second.forward(self.edit.forward(relu(self.first.forward(x))))
    }
}

pub fn main() -> Result<()> {
    let device = Default::default();
    B::seed(&device, 0);
    let x = Tensor::<B, 2>::random([64, 8], Distribution::Normal(0.0, 1.0), &device);
    let (mut model, mut optimizer) = (Mlp::<B>::new(1, &device), AdamConfig::new().init());
    let loss = |model: &Mlp<B>| (model.forward(x.clone()) - x.clone().sum_dim(1) * 2.0).square().mean();
    let before = loss(&model).into_scalar();
    for _ in 0..200 {
        let grads = GradientsParams::from_grads(loss(&model).backward(), &model);
        model = optimizer.step(1e-2, model, grads);
    }
    println!("loss {before:.3} -> {:.3}", loss(&model).into_scalar());
    println!("|RRᵀ - I| {:.1e}", model.edit.orthonormality_error());

    std::fs::create_dir_all("runs")?;
    let recorder = NamedMpkFileRecorder::<FullPrecisionSettings>::new();
    model.clone().save_file("runs/mlp", &recorder)?;
    let again = Mlp::<B>::new(2, &device).load_file("runs/mlp", &recorder, &device)?;
    println!("loss after loading {:.3}", loss(&again).into_scalar());

    model.edit.save("runs/edit.safetensors")?;
    let edit = Intervention::<B>::load("runs/edit.safetensors", &device)?;
    println!("loss with the edit from its own file {:.3}", loss(&Mlp { edit, ..again }).into_scalar());
    Ok(())
}
