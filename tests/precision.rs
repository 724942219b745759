//! Half-precision and quantised models, and gradient checkpointing: beside f32, and beside each other.

use burn::{
    backend::Autodiff,
    tensor::{DType, backend::Backend},
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{Component, HeadConfig, Method, NoHook, Reft, ReftConfig, Site, intervention::Init};
use reft_models::{
    Dtype, GenerateConfig, LoadedModel, Padding, Precision, Quant, Roberta, TokenBatch, load::Pretrained,
    roberta::DropoutRates, tuned::NamedTensors,
};
use reft_train::{
    DataSet, Example, LanguageModelling, Learned, Task, Template, TrainConfig,
    classify::Classification,
    data::parse_rows,
    eval::{generate_all, likelihood},
    metrics::Metric,
    recipe::TrainSection,
    task::Labelled,
    tiny,
    trainer::{Silent, StepGradients, step_gradients, train},
};
use serde_json::json;
use std::sync::atomic::AtomicBool;
use system_tests::{RandomWeights, gradient, on_every_backend, random_llama, relative, values};

const LAYERS: usize = 6;

fn tiny_model<B: Backend>(precision: Precision) -> LoadedModel<B> {
    LoadedModel::load(&tiny::model(), "tiny", precision, &Default::default()).expect("loaded")
}

fn examples<B: Backend>(loaded: &LoadedModel<B>, n: usize) -> Vec<Example> {
    let rows = parse_rows(tiny::data("french-eval").expect("embedded"), "french-eval").expect("rows");
    let template = Template::resolve("{{ instruction }}\n", &rows).expect("a template");
    DataSet::encode(&rows[..n], &template, &loaded.tokenizer, 64, "french-eval").expect("encoded").examples
}

fn reft<B: Backend>(hidden_size: usize, layers: &[usize], dropout: f64) -> Reft<B> {
    let config = ReftConfig {
        method: Method::Loreft,
        rank: 4,
        hidden_size,
        sites: layers.iter().map(|l| Site { layer: *l, component: Component::BlockOutput }).collect(),
        positions: "f2+l2".parse().expect("positions"),
        tied: true,
        activation: Default::default(),
        dropout,
    };
    config.init(Init::Paper, &mut ChaCha8Rng::seed_from_u64(3), &Default::default()).expect("valid")
}

/// Every way to hold a model that the backend has.
fn precisions<B: Backend>() -> Vec<Precision> {
    let device = Default::default();
    let dtypes = Dtype::ALL.into_iter().filter(|dtype| dtype.is_supported::<B>(&device));
    let quants = [Quant::Int8, Quant::Int4].into_iter().filter(|quant| quant.is_supported::<B>(&device));
    let quants: Vec<Option<Quant>> = std::iter::once(None).chain(quants.map(Some)).collect();
    dtypes.flat_map(|dtype| quants.iter().map(move |quant| Precision { dtype, quant: *quant })).collect()
}

/// NLL of the embedded model and of a short training run, greedy texts and gradients, in every precision beside f32.
fn every_precision_computes_almost_the_same<B: Backend>() {
    let exact = tiny_model::<B>(Precision::default());
    let examples = examples(&exact, 8);
    let reft: Reft<B> = reft(128, &[1, 3], 0.0);
    let measure = |precision| {
        let loaded = tiny_model::<B>(precision);
        assert_eq!(loaded.model.dtype(), precision.dtype);
        let nll = likelihood(&loaded.model, None, &examples, 8).nll;
        let objective = LanguageModelling::new(&loaded.model, 8);
        let tracked: Learned<Autodiff<B>> = Reft::trainable(reft.clone()).into();
        let step = step_gradients(&objective, &tracked, &[examples.iter().collect()], false, 0);
        let flat: Vec<f32> = gradient(&tracked.reft, &step.grads).concat();
        assert!(flat.iter().all(|x| x.is_finite()), "{precision}");
        let section = TrainSection { steps: Some(8), batch_size: 8, lr: 4e-3, ..Default::default() };
        let never = AtomicBool::new(false);
        let trained = train::<Autodiff<B>, _>(
            &objective,
            reft.clone().into(),
            &examples,
            &[],
            &TrainConfig::from(section),
            &mut Silent,
            &never,
        );
        for edit in trained.learned.reft.edits() {
            assert_eq!(edit.intervention().bias().val().dtype(), DType::F32, "what is trained is f32");
        }
        let prompts: Vec<Vec<u32>> = examples.iter().map(|e| e.prompt().to_vec()).collect();
        let config = GenerateConfig { max_new_tokens: 6, ..Default::default() };
        let texts = generate_all(&loaded.model, Some(&reft), &prompts, &config, 8).expect("generated");
        (nll, flat, trained.losses, texts)
    };
    let expected = measure(Precision::default());
    for precision in precisions::<B>() {
        let (nll, gradient, losses, texts) = measure(precision);
        let tolerance = match precision {
            Precision { quant: Some(Quant::Int4), .. } => 0.25,
            Precision { quant: Some(Quant::Int8), .. } => 0.03,
            Precision { dtype: Dtype::Bf16, .. } => 0.03,
            Precision { dtype: Dtype::F16, .. } => 0.01,
            _ => 1e-6,
        };
        let error = relative(&gradient, &expected.1);
        let last = (losses[7] - expected.2[7]).abs() / expected.2[7];
        let same = texts.iter().zip(&expected.3).filter(|(a, b)| a == b).count();
        println!(
            "{precision}: NLL {nll:.4} against {:.4}, gradient {error:.1e}, last loss {last:.1e}, {same} of 8 texts the same",
            expected.0
        );
        assert!((nll - expected.0).abs() < tolerance, "{precision}: {nll}");
        assert!(error < 4.0 * tolerance, "{precision}: {error}");
        assert!(last < 4.0 * tolerance, "{precision}: {last}");
        assert!(losses[7] < losses[0], "{precision}: {losses:?}");
    }
}

/// Quantised weights are used, and are near the dense ones.
fn quantised_weights_are_rounded_weights<B: Backend>() {
    for quant in [Quant::Int8, Quant::Int4] {
        if !quant.is_supported::<B>(&Default::default()) {
            println!("skipped: {quant} on this backend");
            continue;
        }
        let dense = tiny_model::<B>(Precision::default());
        let packed = tiny_model::<B>(Precision { quant: Some(quant), ..Default::default() });
        let examples = examples(&dense, 2);
        let rows: Vec<&[u32]> = examples.iter().map(|e| e.tokens.as_slice()).collect();
        let tokens = TokenBatch::new(&rows, Padding::Right);
        let states = |model: &LoadedModel<B>| values(model.model.forward(&tokens, None, &NoHook));
        let error = relative(&states(&packed), &states(&dense));
        println!("{quant}: final states deviate by {error:.1e}");
        assert!(error > 0.0 && error < if quant == Quant::Int8 { 0.03 } else { 0.3 }, "{quant}: {error}");
    }
}

fn assert_same<B: Backend>(
    learned: &Learned<Autodiff<B>>,
    plain: &StepGradients<B>,
    checkpointed: &StepGradients<B>,
    what: &str,
) {
    assert!((plain.loss_sum - checkpointed.loss_sum).abs() / plain.loss_sum < 1e-5, "{what}: loss");
    let [a, b] = [plain, checkpointed].map(|step| gradient(learned, &step.grads).concat());
    let error = relative(&b, &a);
    println!("{what}: gradients deviate by {error:.1e}");
    assert!(error < 1e-5, "{what}: {error}");
    for (a, b) in plain.basis_grads.iter().zip(&checkpointed.basis_grads) {
        let [a, b] = [a, b].map(|grad| values(grad.clone().expect("a gradient")));
        assert!(relative(&b, &a) < 1e-5, "{what}: basis");
    }
}

/// Loss and gradients with and without checkpointing: any first layer, any component, dropout, quantised weights.
fn checkpointing_changes_nothing<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let random = |rng: &mut ChaCha8Rng, len: usize| Example {
        tokens: (0..len).map(|_| rng.random_range(1..50)).collect(),
        prompt_len: len / 2,
    };
    let rows: Vec<Example> = [9, 14, 6].iter().map(|len| random(&mut rng, *len)).collect();
    let model = random_llama::<B>(json!({}), 1);
    for (layers, dropout) in [(vec![0, 1, 2], 0.0), (vec![1], 0.0), (vec![2], 0.0), (vec![0, 2], 0.3)] {
        let learned: Learned<Autodiff<B>> = Reft::trainable(reft::<B>(24, &layers, dropout)).into();
        let objective = LanguageModelling::new(&model, 4);
        let micro = [rows[..2].iter().collect(), rows[2..].iter().collect::<Vec<_>>()];
        let step = |checkpointing| step_gradients(&objective, &learned, &micro, checkpointing, 7);
        assert_same(&learned, &step(false), &step(true), &format!("layers {layers:?}, dropout {dropout}"));
    }
    let quantised = tiny_model::<B>(Precision { quant: Some(Quant::Int8), ..Default::default() });
    let rows = examples(&quantised, 4);
    let learned: Learned<Autodiff<B>> = Reft::trainable(reft::<B>(128, &[2, LAYERS - 1], 0.0)).into();
    let objective = LanguageModelling::new(&quantised.model, 4);
    let step =
        |checkpointing| step_gradients(&objective, &learned, &[rows.iter().collect()], checkpointing, 7);
    assert_same(&learned, &step(false), &step(true), "int8");
}

/// The same for an encoder with its head and all kinds of dropout.
fn checkpointing_an_encoder_changes_nothing<B: Backend>() {
    let config = json!({
        "model_type": "roberta", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2, "vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 1
    });
    let config = Roberta::<B>::parse(config.to_string().as_bytes()).expect("valid");
    let mut tensors = NamedTensors::default();
    let weights = RandomWeights(ChaCha8Rng::seed_from_u64(2));
    let model = Roberta::<B>::from_source(&config, &mut tensors.record(weights));
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let rows: Vec<Labelled> = (0..4)
        .map(|idx| {
            let tokens: Vec<u32> = (0..5 + 2 * idx).map(|_| rng.random_range(3..40)).collect();
            Labelled { types: vec![0; tokens.len()], tokens, target: (idx % 2) as f64 }
        })
        .collect();
    let labels = parse_rows("{\"text\": \"a\", \"label\": \"x\"}\n{\"text\": \"b\", \"label\": \"y\"}", "d");
    let task = Task::discover("classification", None, None, &labels.expect("rows")).expect("a task");
    for rate in [0.0, 0.2] {
        let head = HeadConfig { hidden_size: 16, outputs: 2, input_dropout: rate, inner_dropout: rate };
        let head = head.init::<B>(&mut ChaCha8Rng::seed_from_u64(6), &Default::default());
        let inner = Learned { reft: reft::<B>(16, &[1, 2], rate), tuned: None, head: Some(head) };
        let learned = Learned::<Autodiff<B>>::trainable(inner);
        let objective = Classification {
            model: &model,
            tensors: &tensors,
            task: &task,
            selection: Metric::Accuracy,
            rates: DropoutRates { hidden: rate, attention: rate },
            eval_batch_size: 4,
        };
        let step =
            |checkpointing| step_gradients(&objective, &learned, &[rows.iter().collect()], checkpointing, 9);
        assert_same(&learned, &step(false), &step(true), &format!("encoder, dropout {rate}"));
    }
}

on_every_backend!(
    every_precision_computes_almost_the_same,
    quantised_weights_are_rounded_weights,
    checkpointing_changes_nothing,
    checkpointing_an_encoder_changes_nothing,
);
