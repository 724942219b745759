//! The code of `docs/your-own-model.md`.

use anyhow::Result;
use burn::{
    backend::Autodiff,
    module::Module,
    nn::{Embedding, EmbeddingConfig, Linear, LinearConfig},
    optim::{AdamConfig, GradientsParams, Optimizer},
    tensor::{
        Int, Tensor,
        activation::{log_softmax, tanh},
        backend::Backend,
    },
};
use burn_flex::Flex;
use reft_core::{Adapter, BaseModel, BatchLayout, Hook, NoHook, Place, Reft, ReftConfig, Site};

#[derive(Module, Debug)]
struct MyModel<B: Backend> {
    embedding: Embedding<B>,
    blocks: Vec<Linear<B>>,
    head: Linear<B>,
}

impl<B: Backend> MyModel<B> {
    fn new(device: &B::Device) -> Self {
        let block = || LinearConfig::new(32, 32).init(device);
        Self {
            embedding: EmbeddingConfig::new(10, 32).init(device),
            blocks: (0..4).map(|_| block()).collect(),
            head: LinearConfig::new(32, 10).init(device),
        }
    }

    /// Logits of the next token, `[batch, seq, vocab]`.
    fn forward(
        &self,
        tokens: Tensor<B, 2, Int>,
        layout: &BatchLayout<B>,
        hook: &impl Hook<B>,
    ) -> Tensor<B, 3> {
        let mut hidden = self.embedding.forward(tokens);
        for (layer, block) in self.blocks.iter().enumerate() {
            hidden = hidden.clone() + tanh(block.forward(hidden));
            hidden = hook.edit(&Place { site: Site::block_output(layer), layout }, hidden);
        }
        self.head.forward(hidden)
    }
}

pub fn main() -> Result<()> {
    type B = Autodiff<Flex>;
    let device = Default::default();
    // Frozen: no parameter of the model is tracked.
    let model = MyModel::<B>::new(&device).no_grad();

    let tokens = Tensor::<B, 2, Int>::from_data([[1, 2, 3], [4, 5, 6]], &device);
    let layout = BatchLayout::unpadded(2, 3, &device);

    let config = ReftConfig::new(32, [1, 2]).with_rank(4).with_positions("l1".parse()?).with_seed(1);
    let (mut reft, mut optimizer) = (config.init::<B>(&device), AdamConfig::new().init());
    // The model should answer 7 to the first row and 9 to the second.
    let loss = |reft: &Reft<B>| {
        let last = model.forward(tokens.clone(), &layout, reft).slice([0..2, 2..3, 0..10]).reshape([2, 10]);
        let labels = Tensor::<B, 2, Int>::from_data([[7], [9]], &device);
        log_softmax(last, 1).gather(1, labels).mean().neg()
    };
    for _ in 0..100 {
        let grads = GradientsParams::from_grads(loss(&reft).backward(), &reft);
        reft = optimizer.step(1e-2, reft, grads);
    }
    assert!(loss(&reft).into_scalar() < 0.1);

    let folder = std::env::temp_dir().join("my-adapter");
    Adapter::new(reft.clone(), BaseModel::new("my-model", "version 1")).save(&folder)?;
    let loaded = Adapter::<B>::load(&folder, &device)?;
    assert_eq!(loaded.base_model.fingerprint, "version 1");
    assert_eq!(loss(&loaded.reft).into_scalar(), loss(&reft).into_scalar());
    let unedited = model.forward(tokens, &layout, &NoHook);
    assert_eq!(unedited.dims(), [2, 3, 10]);
    Ok(())
}
