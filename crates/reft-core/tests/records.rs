//! Burn's records of every module, through every recorder that Burn ships, loaded into a module of another seed, rank,
//! method or size.

use burn::{
    backend::Autodiff,
    module::{AutodiffModule, Module},
    record::{
        BinBytesRecorder, BinFileRecorder, BinGzFileRecorder, DoublePrecisionSettings, FileRecorder,
        FullPrecisionSettings, HalfPrecisionSettings, JsonGzFileRecorder, NamedMpkBytesRecorder,
        NamedMpkFileRecorder, NamedMpkGzFileRecorder, PrecisionSettings, PrettyJsonFileRecorder, Recorder,
    },
    tensor::{Tensor, TensorData, backend::Backend},
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use reft_core::{
    BatchLayout, Head, HeadConfig, Hook, Intervention, InterventionConfig, Method, Orthonormal, Place, Reft,
    ReftConfig, RowLayout, Site, host_values, reft::trainable,
};
use std::{panic::AssertUnwindSafe, path::Path};

const D: usize = 12;

/// What a module computes, as numbers to compare.
trait Computes<B: Backend>: Module<B> {
    fn outputs(&self) -> Vec<f32>;
}

fn states<B: Backend>() -> Tensor<B, 2> {
    let values: Vec<f32> = (0..4 * D).map(|i| (i as f32 * 0.37).sin()).collect();
    Tensor::from_data(TensorData::new(values, [4, D]), &Default::default())
}

impl<B: Backend> Computes<B> for Orthonormal<B> {
    fn outputs(&self) -> Vec<f32> {
        host_values(self.matrix())
    }
}

impl<B: Backend> Computes<B> for Intervention<B> {
    fn outputs(&self) -> Vec<f32> {
        host_values(self.forward(states()))
    }
}

impl<B: Backend> Computes<B> for Head<B> {
    fn outputs(&self) -> Vec<f32> {
        host_values(self.forward(states()))
    }
}

impl<B: Backend> Computes<B> for Reft<B> {
    fn outputs(&self) -> Vec<f32> {
        let row = RowLayout { start: 0, len: 4, prompt_len: 4, position: 0 };
        let layout = BatchLayout::new(vec![row], 4, &Default::default());
        let edit = |layer| {
            let place = Place { site: Site::block_output(layer), layout: &layout };
            host_values(self.edit(&place, states().unsqueeze::<3>()))
        };
        (0..4).flat_map(edit).collect()
    }
}

/// Saves a module with every recorder, loads it into each of the others, and compares what they compute.
fn survives<B: Backend, M: Computes<B>>(saved: &M, others: &[M]) -> usize {
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    let mut n = through_files::<B, M, FullPrecisionSettings>(saved, others, &path("full"), 0.0);
    n += through_files::<B, M, DoublePrecisionSettings>(saved, others, &path("double"), 0.0);
    n += through_files::<B, M, HalfPrecisionSettings>(saved, others, &path("half"), 2e-2);
    let expected = saved.outputs();
    for other in others {
        let device = Default::default();
        let named = NamedMpkBytesRecorder::<FullPrecisionSettings>::default();
        let bytes = named.record(saved.clone().into_record(), ()).expect("recorded");
        let record = named.load(bytes, &device).expect("loaded");
        assert_eq!(other.clone().load_record(record).outputs(), expected);
        let plain = BinBytesRecorder::<FullPrecisionSettings>::default();
        let bytes = plain.record(saved.clone().into_record(), ()).expect("recorded");
        let record = plain.load(bytes, &device).expect("loaded");
        assert_eq!(other.clone().load_record(record).outputs(), expected);
        n += 2;
    }
    n
}

fn through_files<B: Backend, M: Computes<B>, S: PrecisionSettings>(
    saved: &M,
    others: &[M],
    path: &Path,
    tolerance: f32,
) -> usize {
    through_file(saved, others, path, &NamedMpkFileRecorder::<S>::new(), tolerance)
        + through_file(saved, others, path, &NamedMpkGzFileRecorder::<S>::new(), tolerance)
        + through_file(saved, others, path, &BinFileRecorder::<S>::new(), tolerance)
        + through_file(saved, others, path, &BinGzFileRecorder::<S>::new(), tolerance)
        + through_file(saved, others, path, &JsonGzFileRecorder::<S>::new(), tolerance)
        + through_file(saved, others, path, &PrettyJsonFileRecorder::<S>::new(), tolerance)
}

fn through_file<B: Backend, M: Computes<B>, R: FileRecorder<B>>(
    saved: &M,
    others: &[M],
    path: &Path,
    recorder: &R,
    tolerance: f32,
) -> usize {
    saved.clone().save_file(path, recorder).expect("saved");
    let expected = saved.outputs();
    for other in others {
        let before = other.outputs();
        assert!(before != expected, "the test must start from something else");
        let loaded = other.clone().load_file(path, recorder, &Default::default()).expect("loaded");
        let found = loaded.outputs();
        assert_eq!(found.len(), expected.len());
        let distance = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(distance <= tolerance, "{}: off by {distance}", std::any::type_name::<R>());
        assert_eq!(loaded.num_params(), saved.num_params());
    }
    others.len()
}

fn every_module_survives<B: Backend>() -> usize {
    let device = Default::default();
    let mut n = 0;
    for seed in 0..5 {
        let orthonormal = |rank, seed| Orthonormal::<B>::random(D, rank, seed, &device).expect("rank fits");
        n += survives(
            &orthonormal(4, seed),
            &[orthonormal(4, seed + 10), orthonormal(3, seed), orthonormal(9, 1)],
        );
        let head = |outputs, seed| {
            HeadConfig { hidden_size: D, outputs, input_dropout: 0.0, inner_dropout: 0.0 }
                .init::<B>(seed, &device)
        };
        n += survives(&head(3, seed), &[head(3, seed + 10), head(2, seed)]);
    }
    for method in Method::ALL {
        for seed in 0..2 {
            let edit = |config: InterventionConfig, seed| config.with_seed(seed).init::<B>(&device);
            let config = InterventionConfig::new(D, 4).with_method(method);
            let mut others = vec![edit(config, seed + 10), edit(InterventionConfig::new(D, 2), seed)];
            others.extend(Method::ALL.map(|other| edit(config.with_method(other), 20)));
            let saved = edit(config, seed);
            n += survives(&saved, &others);
        }
        let config = ReftConfig::new(D, [1, 3]).with_rank(4).with_method(method);
        let config = config.with_positions("f1+l1".parse().expect("positions"));
        let saved = config.clone().with_seed(1).init::<B>(&device);
        let others = [
            config.clone().with_seed(2),
            ReftConfig::new(D, [0, 2]).with_rank(4).with_method(method),
            ReftConfig::new(D, [2]).with_rank(2).with_tied(false),
        ];
        n += survives(&saved, &others.map(|config| config.init::<B>(&device)));
    }
    n
}

#[test]
fn records_are_complete_on_flex() {
    assert_eq!(every_module_survives::<Flex>(), 20 * (5 * 5 + 6 * (2 * 8 + 3)));
}

#[test]
fn records_are_complete_on_ndarray() {
    assert_eq!(every_module_survives::<NdArray>(), 20 * (5 * 5 + 6 * (2 * 8 + 3)));
}

#[test]
fn records_are_complete_on_an_autodiff_backend() {
    assert_eq!(every_module_survives::<Autodiff<Flex>>(), 20 * (5 * 5 + 6 * (2 * 8 + 3)));
}

/// The example of the fault that led to these tests: of 20 edits saved by Burn's recorder, 15 computed something else in a
/// module of another seed.
#[test]
fn an_edit_in_another_module_is_complete() {
    #[derive(Module, Debug)]
    struct Mlp<B: Backend> {
        first: burn::nn::Linear<B>,
        edit: Intervention<B>,
    }
    let device = Default::default();
    let mlp = |seed| Mlp::<Flex> {
        first: burn::nn::LinearConfig::new(D, D).init(&device),
        edit: InterventionConfig::new(D, 4).with_seed(seed).init(&device),
    };
    let output = |mlp: &Mlp<Flex>| host_values(mlp.edit.forward(mlp.first.forward(states())));
    let folder = tempfile::tempdir().expect("a folder");
    let (path, recorder) = (folder.path().join("mlp"), NamedMpkFileRecorder::<FullPrecisionSettings>::new());
    for seed in 0..20 {
        let saved = mlp(seed);
        // Burn draws the weights of a linear layer when they are first used.
        let expected = output(&saved);
        saved.clone().save_file(&path, &recorder).expect("saved");
        let loaded = mlp(seed + 100).load_file(&path, &recorder, &device).expect("loaded");
        assert_eq!(output(&loaded), expected);
    }
}

/// Signs are recorded but not trained, and not counted.
#[test]
fn only_the_parameters_are_trained() {
    let device = Default::default();
    let config = InterventionConfig::new(D, 4);
    let edit = config.init::<Flex>(&device);
    assert_eq!(edit.num_params(), config.num_params().expect("valid"));
    let tracked: Intervention<Autodiff<Flex>> = trainable(edit.clone());
    let loss = tracked.forward(Tensor::from_inner(states::<Flex>())).square().sum();
    let grads = burn::optim::GradientsParams::from_grads(loss.backward(), &tracked);
    assert_eq!(grads.len(), 3, "W, b and the reflectors");

    // A loaded record keeps what the module had: trainable stays trainable, frozen stays frozen.
    let record = tracked.clone().into_record();
    let frozen = config.with_seed(9).init::<Autodiff<Flex>>(&device).no_grad().load_record(record.clone());
    assert!(!frozen.bias().is_require_grad());
    let loaded = config.with_seed(9).init::<Autodiff<Flex>>(&device).load_record(record);
    assert!(loaded.bias().is_require_grad());
    assert_eq!(loaded.valid().outputs(), edit.outputs());
}

/// Loading gives the saved module even if it is of another size; what does not fit it is refused in words.
#[test]
fn a_record_of_another_hidden_size_gives_the_saved_module() {
    let device = Default::default();
    let saved = InterventionConfig::new(D, 4).init::<Flex>(&device);
    let other = InterventionConfig::new(2 * D, 3).with_seed(2).init::<Flex>(&device);
    let loaded = other.clone().load_record(saved.clone().into_record());
    assert_eq!((loaded.config(), loaded.outputs()), (saved.config(), saved.outputs()));
    let panic = std::panic::catch_unwind(AssertUnwindSafe(|| other.forward(states()))).expect_err("refused");
    assert_eq!(
        panic.downcast_ref::<String>().expect("a text"),
        "an intervention on hidden states of size 24 got states of size 12"
    );
}

/// On the CPU there is one device, but all tensors take the way of a move.
#[test]
fn a_moved_module_computes_the_same() {
    let device = Default::default();
    let edit = InterventionConfig::new(D, 5).with_seed(3).init::<Flex>(&device);
    let moved = edit.clone().to_device(&device);
    assert_eq!(moved.outputs(), edit.outputs());
    assert_eq!(edit.clone().fork(&device).outputs(), edit.outputs());
    let reft = ReftConfig::new(D, [1, 3]).with_rank(5).init::<Flex>(&device);
    assert_eq!(reft.clone().to_device(&device).outputs(), reft.outputs());
    assert_eq!(reft.devices().len(), 1);
}
