//! Models for applications: what works, and what is refused with which words.

#![cfg(all(feature = "flex", feature = "ndarray"))]

use burn::{
    module::Module,
    record::{BinBytesRecorder, FullPrecisionSettings, Recorder},
    tensor::Tensor,
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use reft_core::{Capture, Hook, NoHook, Place, ReftConfig, Site, Steer};
use reft_models::{GenerateConfig, Llama, LoadedModel, LoraConfig, Precision, TunedName, Tuning};
use reft_train::reft_kernels::Kernels;
use reft_train::{
    AnyLanguageModel, LanguageModel, LanguageModelAdapter, Prediction, StopReason, TextEncoder, TrainConfig,
    Trainable, Trainer,
    adapter::{AdapterOrigin, save_adapter},
    data::{Row, TextStream},
    tiny,
};
use std::{
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

const PAIRS: [(&str, &str); 2] = [
    ("the old fox sings on the hill\n", "THE OLD FOX SINGS ON THE HILL!"),
    ("the young queen reads in the garden\n", "THE YOUNG QUEEN READS IN THE GARDEN!"),
];
const PROMPT: &str = "the hungry duck walks near the river\n";

fn model<B: Kernels>() -> LanguageModel<B> {
    LanguageModel::load("embedded:tiny", &Default::default()).expect("the embedded model")
}

fn trainer<'a, B: Kernels>(model: &LanguageModel<B>, steps: usize) -> Trainer<'a> {
    let reft = model.reft([1, 3, 5]).with_rank(4).with_positions("f2+l2".parse().expect("positions"));
    Trainer::new().with_reft(reft).with_config(TrainConfig::default().with_steps(steps).with_lr(1e-2))
}

fn adapter<B: Kernels>(model: &LanguageModel<B>, steps: usize) -> LanguageModelAdapter<B> {
    model.train(&PAIRS, trainer(model, steps)).expect("trained").result
}

fn encoder<B: Kernels>(name: &str) -> TextEncoder<B> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/encoders").join(name);
    TextEncoder::load(folder.to_str().expect("UTF-8"), &Default::default()).expect("a fixture")
}

fn trains_saves_loads_and_shares<B: Kernels>() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model::<B>();
    let unedited = model.generate_unedited(PROMPT).expect("generated");
    let trained = model.train(&PAIRS, trainer(&model, 40)).expect("trained");
    assert_eq!((trained.losses.len(), trained.ended), (40, StopReason::Done));
    assert_eq!(
        model.generate(PROMPT, &trained.result).expect("generated"),
        "THE HUNGRY DUCK WALKS NEAR THE RIVER!"
    );
    trained.result.save(folder.path()).expect("saved");
    let loaded = model.adapter(folder.path()).expect("loaded");
    assert_eq!(model.generate(PROMPT, &loaded).expect("generated"), "THE HUNGRY DUCK WALKS NEAR THE RIVER!");
    // A model with other weights refuses the adapter, also when it is already loaded.
    let mut other: LoadedModel<B, Llama<B>> =
        LoadedModel::load(&tiny::model(), "other", Precision::default(), &Default::default())
            .expect("loaded");
    other.base.fingerprint = "other".into();
    other.base.rounded = None;
    let other = LanguageModel::from(other);
    for refused in [other.generate(PROMPT, &loaded).map(drop), other.adapter(folder.path()).map(drop)] {
        let refused = refused.expect_err("refused").to_string();
        let expected = "trained on embedded:tiny, but other has other weights or settings";
        assert!(refused.ends_with(expected), "{refused}");
    }
    let forced = other.adapter_of_other_weights(folder.path()).expect("the sizes fit");
    assert_eq!(forced.warnings.len(), 1);
    assert_eq!(other.generate(PROMPT, &forced).expect("generated"), "THE HUNGRY DUCK WALKS NEAR THE RIVER!");
    // The model itself has not changed, and other threads may use it at the same time.
    let (shared, prompt) = (model.clone(), PROMPT.to_string());
    let elsewhere = thread::spawn(move || shared.generate_unedited(&prompt).expect("generated"));
    assert_eq!(elsewhere.join().expect("joined"), unedited);
}

#[test]
fn an_adapter_is_trained_saved_loaded_and_shared_on_flex() {
    trains_saves_loads_and_shares::<Flex>();
}

#[test]
fn an_adapter_is_trained_saved_loaded_and_shared_on_ndarray() {
    trains_saves_loads_and_shares::<NdArray>();
}

#[test]
fn a_callback_ends_the_training_and_keeps_what_it_has() {
    let model = model::<Flex>();
    let mut steps = Vec::new();
    let watched = trainer(&model, 40).on_step(|report| {
        steps.push((report.step, report.total_steps));
        if report.step == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    let trained = model.train(&PAIRS, watched).expect("trained");
    assert_eq!((trained.losses.len(), trained.ended), (3, StopReason::Interrupted));
    assert_eq!(steps, [(1, 40), (2, 40), (3, 40)]);
}

#[test]
fn a_callback_that_panics_leaves_the_model_usable_and_its_progress_saved() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = model::<Flex>();
    let panicking = trainer(&model, 40).with_progress_folder(folder.path()).on_step(|report| {
        if report.step == 3 { panic!("the application") } else { ControlFlow::Continue(()) }
    });
    let result = catch_unwind(AssertUnwindSafe(|| model.train(&PAIRS, panicking)));
    assert_eq!(*result.expect_err("panicked").downcast_ref::<&str>().expect("a text"), "the application");
    let saved = model.adapter(folder.path()).expect("the adapter of the second step");
    model.generate(PROMPT, &saved).expect("generated");
    assert_eq!(adapter(&model, 1).template, "plain");
}

#[test]
fn generation_is_cancelled_from_another_thread() {
    let model = model::<Flex>();
    let adapter = adapter(&model, 40);
    let whole = model.generate(PROMPT, &adapter).expect("generated");
    for after in 1..5 {
        let cancelled = Arc::new(AtomicBool::new(false));
        let (mut n_tokens, mut streamed, flag) = (0, String::new(), cancelled.clone());
        let text = model.stream(PROMPT, &adapter, GenerateConfig::default(), |text| {
            streamed.push_str(text);
            n_tokens += 1;
            if n_tokens == after {
                let flag = flag.clone();
                thread::spawn(move || flag.store(true, Ordering::SeqCst)).join().expect("joined");
            }
            if cancelled.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let text = text.expect("generated");
        assert_eq!((n_tokens, &text), (after, &streamed));
        assert!(text.len() < whole.len() && whole.starts_with(&text), "{text:?}");
    }
}

/// A character of several tokens is never cut, wherever the tokens end.
#[test]
fn streamed_text_has_whole_characters() {
    let model = model::<Flex>();
    let tokenizer = &model.loaded().tokenizer;
    let text = "a ñandú 🦤 runs";
    let tokens = tokenizer.encode(text).expect("encoded");
    assert!(tokens.len() > text.chars().count() - 6, "some characters take several tokens");
    for end in 1..=tokens.len() {
        let (mut stream, mut shown) = (TextStream::default(), String::new());
        for token in &tokens[..end] {
            shown += stream.push(tokenizer, *token).expect("decoded");
        }
        assert!(text.starts_with(&shown), "{shown:?}");
        assert_eq!((end == tokens.len()).then_some(text), (shown == text).then_some(text), "{shown:?}");
        assert_eq!(stream.into_text(), shown);
    }
}

/// Edits its own copy of the hidden states.
struct Zero(Site);

impl<B: Kernels> Hook<B> for Zero {
    fn edit(&self, place: &Place<'_, B>, hidden: Tensor<B, 3>) -> Tensor<B, 3> {
        if place.site == self.0 { hidden.zeros_like() } else { hidden }
    }
}

#[test]
fn every_entry_takes_any_hook() {
    let model = model::<Flex>();
    let site = Site::block_output(5);
    let unedited = model.generate_with_hook(PROMPT, &NoHook).expect("generated");
    assert_ne!(model.generate_with_hook(PROMPT, &Zero(site)).expect("generated"), unedited);
    let capture = Capture::at([site]);
    model.read(&[PROMPT, "the cat"], &(Zero(site), &capture)).expect("read");
    let states = capture.states(site).expect("reached");
    assert_eq!(states.row(1).abs().max().into_scalar(), 0.0);
    assert_ne!(states.row(0).dims(), states.row(1).dims());

    let encoder = encoder::<Flex>("roberta");
    let pairs = [("I loved it", "good"), ("I hated it", "bad")];
    let quick = || Trainer::new().with_config(TrainConfig::default().with_steps(3));
    let classifier = encoder.train(&pairs, quick()).expect("trained").result;
    let plain = classifier.predict(&["I loved it", "a film"]).expect("predicted");
    let last = Site::block_output(1);
    let zeroed = classifier.predict_with_hook(&["I loved it", "a film"], &Zero(last)).expect("predicted");
    assert_ne!(zeroed, plain);
    assert_eq!(zeroed[0], zeroed[1], "both texts have the same states");
}

#[test]
fn a_classifier_is_trained_saved_loaded_and_applied() {
    let folder = tempfile::tempdir().expect("a folder");
    let encoder = encoder::<NdArray>("roberta");
    let pairs = [("I loved it", "good"), ("a film", "good"), ("I hated it", "bad"), ("so boring", "bad")];
    let config =
        TrainConfig::default().with_steps(40).with_batch_size(4).with_lr(2e-2).with_model_dropout(0.0);
    let trained = encoder.train(&pairs, Trainer::new().with_config(config)).expect("trained");
    assert!(trained.losses[39] < trained.losses[0]);
    let texts = pairs.map(|(text, _)| text);
    let before = trained.result.predict(&texts).expect("predicted");
    trained.result.save(folder.path()).expect("saved");
    let loaded = encoder.classifier(folder.path()).expect("loaded");
    assert_eq!(loaded.labels(), ["bad", "good"]);
    assert_eq!(loaded.predict(&texts).expect("predicted"), before);
    let Prediction::Label { probabilities, .. } = &before[0] else { panic!("a label") };
    assert!((probabilities.iter().map(|(_, p)| p).sum::<f64>() - 1.0).abs() < 1e-9);

    let rows = [("I loved it", "0.9"), ("I hated it", "-1.5")]
        .map(|(text, label)| Row::new([("text", text), ("label", label)], "a row"));
    let regression = encoder.train_rows("regression", &rows, Trainer::new()).expect("trained").result;
    assert!(matches!(regression.predict(&["a film"]).expect("predicted")[..], [Prediction::Value(_)]));
    assert_eq!(
        encoder
            .classifier(adapter_folder().path())
            .expect_err("refused")
            .to_string()
            .split_once(": ")
            .expect("")
            .1,
        "not a classifier: the adapter has no head"
    );
}

/// The folder of a language model's adapter.
fn adapter_folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    adapter(&model::<Flex>(), 1).save(folder.path()).expect("saved");
    folder
}

#[test]
fn unusable_input_is_refused_in_words() {
    let model = model::<Flex>();
    let refused = |trainer: Trainer<'_>| model.train(&PAIRS, trainer).expect_err("refused").to_string();
    assert_eq!(
        refused(Trainer::new().with_reft(model.reft([9]))),
        "reft.layers: layer 9 does not exist: the model has 6 layers, 0 to 5 (or -6 to -1)"
    );
    assert_eq!(
        refused(Trainer::new().with_reft(ReftConfig::new(64, [1]))),
        "reft: hidden_size is 64, but the hidden states of the model have size 128"
    );
    assert_eq!(
        refused(Trainer::new().with_reft(model.reft([]))),
        "reft: no layer is edited, expected at least one"
    );
    assert_eq!(
        refused(Trainer::new().with_reft(model.reft([1, 1]))),
        "reft: sites: layers.1.block_output is listed twice"
    );
    assert_eq!(
        refused(Trainer::new().with_reft(model.reft([1]).with_rank(0))),
        "reft: rank is 0; expected at least 1"
    );
    assert_eq!(
        refused(Trainer::new().with_config(TrainConfig::default().with_batch_size(0))),
        "train.batch_size is 0, expected at least 1"
    );
    let no_pairs: [(&str, &str); 0] = [];
    assert_eq!(
        model.train(&no_pairs, Trainer::new()).expect_err("refused").to_string(),
        "no rows to train on"
    );
    assert_eq!(
        model.train(&PAIRS, Trainer::new().with_max_length(2)).expect_err("refused").to_string(),
        "the rows: no row has an answer token within the first 2 tokens (2 rows); raise data.max_length"
    );
    let nan = trainer(&model, 40).with_config(TrainConfig::default().with_steps(40).with_lr(1e30));
    assert!(refused(nan).starts_with("the loss is NaN at step "));

    let steer = Steer::new(Site::block_output(6), Tensor::zeros([128], &Default::default()));
    let missing = "a hook needs layers.6.block_output, but the last layer of the model is 5";
    assert_eq!(model.generate_with_hook(PROMPT, &steer).expect_err("refused").to_string(), missing);
    assert_eq!(model.read(&[PROMPT], &steer).expect_err("refused").to_string(), missing);
    let long = model.read(&[PROMPT, &"the fox ".repeat(99)], &NoHook).expect_err("refused").to_string();
    assert!(
        long.starts_with("text 2: ") && long.ends_with(" tokens, expected 1 to 128, the model's context"),
        "{long}"
    );
    let none: [&str; 0] = [];
    model.read(&none, &NoHook).expect("nothing to read");
    assert_eq!(
        LanguageModel::<Flex>::load("no/such/folder", &Default::default()).expect_err("refused").to_string(),
        if cfg!(feature = "hub") {
            "no/such/folder: no such folder, and not a name on the Hub, which has the form `owner/model` or `model`"
        } else {
            "no/such/folder: no such folder; names on the Hugging Face Hub need the feature `hub`, which browsers do not have"
        }
    );
}

/// Everything that is trained survives Burn's recorder, into other weights, another head and other interventions.
#[test]
fn records_of_trained_parameters_are_complete() {
    let (encoder, device) = (encoder::<Flex>("roberta"), Default::default());
    let loaded = encoder.loaded();
    let lora = |target: &str, rank| {
        Tuning::Lora(LoraConfig { rank, alpha: 4.0, dropout: 0.0, targets: vec![target.into()] })
    };
    let trainable = |tuning: &Tuning, outputs, seed| Trainable::<Flex> {
        reft: encoder.reft([seed as usize % 2]).with_rank(2).with_seed(seed).init(&device),
        tuned: Some(tuning.init(&loaded.tensors, seed, &device).expect("fits")),
        head: Some(loaded.model.config().head(outputs, None).init(seed, &device)),
    };
    let values = |trainable: &Trainable<Flex>| {
        let tuned = trainable.tuned.as_ref().expect("tuned");
        let weights: Vec<_> = tuned.values().map(|(name, values)| (name.clone(), values)).collect();
        let edits: Vec<_> = trainable.reft.edits().map(|edit| edit.intervention.values()).collect();
        (weights, tuned.lora().cloned(), edits, trainable.head.as_ref().map(|head| head.values()))
    };
    let saved = trainable(&lora("query", 2), 3, 1);
    let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
    for other in [
        trainable(&lora("query", 2), 3, 2),
        trainable(&lora("key", 2), 2, 1),
        trainable(&Tuning::Bitfit, 3, 4),
    ] {
        let bytes = recorder.record(saved.clone().into_record(), ()).expect("recorded");
        let loaded = other.load_record(recorder.load(bytes, &device).expect("read"));
        assert_eq!(values(&loaded), values(&saved));
        assert_eq!(loaded.reft.config(), saved.reft.config());
    }
}

/// A baseline comes with a model of its own, and is saved with its weights.
#[test]
fn a_baseline_survives_loading_and_saving() {
    let folder = tempfile::tempdir().expect("a folder");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    let model = model::<Flex>();
    let loaded = model.loaded();
    let lora =
        LoraConfig { rank: 2, alpha: 4.0, dropout: 0.0, targets: vec!["q_proj".into(), "down_proj".into()] };
    let (device, mut n) = (Default::default(), 0);
    let values = |name: &TunedName| {
        n += 1;
        (0..name.shape.iter().product()).map(|i: usize| ((i * 7 + n) as f32).sin()).collect()
    };
    let tuned = Tuning::Lora(lora).with_values(&loaded.tensors, values, &device).expect("fits");
    let trainable =
        Trainable { reft: ReftConfig::new(128, []).init(&device), tuned: Some(tuned), head: None };
    let origin = AdapterOrigin::language_model(loaded.base.clone(), "plain");
    save_adapter(&first, &trainable, &origin).expect("saved");
    let adapter = model.adapter(&first).expect("loaded");
    let text = model.generate(PROMPT, &adapter).expect("generated");
    assert_ne!(text, model.generate_unedited(PROMPT).expect("generated"));
    adapter.save(&second).expect("saved");
    let again = model.adapter(&second).expect("loaded");
    assert_eq!(model.generate(PROMPT, &again).expect("generated"), text);
}

#[test]
fn a_device_is_chosen_by_name() {
    let (flex, ndarray) = ("cpu", "ndarray");
    let model = AnyLanguageModel::load("embedded:tiny", flex).expect("loaded");
    let other = AnyLanguageModel::load("embedded:tiny", ndarray).expect("loaded");
    let reft = model.reft([1, 3, 5]).with_rank(4).with_positions("f2+l2".parse().expect("positions"));
    let config = TrainConfig::default().with_steps(40).with_lr(1e-2);
    let trained = model.train(&PAIRS, Trainer::new().with_reft(reft).with_config(config)).expect("trained");
    let stream = |model: &AnyLanguageModel, adapter| {
        model.stream(PROMPT, Some(adapter), GenerateConfig::default(), |_| ControlFlow::Continue(()))
    };
    let loud = "THE HUNGRY DUCK WALKS NEAR THE RIVER!";
    assert_eq!(stream(&model, &trained.result).expect("generated"), loud);
    assert_eq!(
        stream(&other, &trained.result).expect_err("refused").to_string(),
        "the adapter was loaded or trained on another device; load it with the model that uses it"
    );
    let folder = tempfile::tempdir().expect("a folder");
    trained.result.save(folder.path()).expect("saved");
    assert_eq!(stream(&other, &other.adapter(folder.path()).expect("loaded")).expect("generated"), loud);
    assert!(AnyLanguageModel::load("embedded:tiny", "tpu").is_err());
}
