//! Interventions with random settings, each from one byte of the input: saved and loaded, they are the same edit, bit for
//! bit.

use burn_flex::Flex;
use reft_core::{Activation, Adapter, BaseModel, Component, Init, Method, Positions, ReftConfig};
use std::path::Path;

pub fn target(input: &[u8]) {
    let Ok(reft) = config(input).try_init::<Flex>(&Default::default()) else { return };
    let adapter = Adapter::new(reft, BaseModel::new("some/model", "abc"));
    let folder = tempfile::tempdir().expect("a folder");
    adapter.save(folder.path()).expect("saved");
    let loaded: Adapter<Flex> = Adapter::load(folder.path(), &Default::default()).expect("what was saved loads");
    assert_eq!(loaded.reft.config(), adapter.reft.config());
    assert_eq!(loaded.base_model, adapter.base_model);
    assert_eq!(loaded.reft.edits().len(), adapter.reft.edits().len());
    for (a, b) in loaded.reft.edits().zip(adapter.reft.edits()) {
        assert_eq!((a.site, a.part), (b.site, b.part));
        assert_eq!(a.intervention.values(), b.intervention.values());
        assert!(a.intervention.orthonormality_error() < 1e-4 || !adapter.reft.config().method.orthonormal());
    }
    let files = |folder: &Path| {
        ["adapter.json", "adapter.safetensors"].map(|name| std::fs::read(folder.join(name)).expect("read"))
    };
    let again = tempfile::tempdir().expect("a folder");
    loaded.save(again.path()).expect("saved");
    assert_eq!(files(folder.path()), files(again.path()));
}

/// Settings from bytes; those without a byte are 0.
fn config(input: &[u8]) -> ReftConfig {
    const COMPONENTS: [Component; 4] =
        [Component::BlockOutput, Component::BlockInput, Component::AttentionOutput, Component::MlpOutput];
    const ACTIVATIONS: [Activation; 6] = [
        Activation::Linear,
        Activation::Relu,
        Activation::Gelu,
        Activation::Silu,
        Activation::Tanh,
        Activation::Sigmoid,
    ];
    let mut bytes = input.iter().copied().chain(std::iter::repeat(0));
    let mut below = |end: usize| usize::from(bytes.next().unwrap_or(0)) % end;
    let n_layers = below(4);
    let (rank, hidden_size) = (below(5), 1 + below(24));
    let layers: Vec<usize> = (0..n_layers).map(|_| below(40)).collect();
    let positions = match (below(2), below(9), below(9)) {
        (0, _, _) | (_, 0, 0) => Positions::All,
        (_, first, last) => Positions::Ends { first, last },
    };
    ReftConfig::new(hidden_size, layers)
        .with_method(Method::ALL[below(Method::ALL.len())])
        .with_rank(rank)
        .with_component(COMPONENTS[below(4)])
        .with_positions(positions)
        .with_tied(below(2) == 0)
        .with_activation(ACTIVATIONS[below(6)])
        .with_dropout([0.0, 0.05, 0.999, 1.0, -1.0, f64::NAN][below(6)])
        .with_seed(below(256) as u64)
        .with_init([Init::Paper, Init::Identity][below(2)])
}
