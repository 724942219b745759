//! Half-precision and quantized models against f32, and gradient checkpointing against plain backward passes.

use burn::{backend::Autodiff, tensor::DType};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{HeadConfig, NoHook, Reft, ReftConfig, host_values};
use reft_kernels::{AutodiffKernels, Kernels};
use reft_models::{
    DropoutRates, Dtype, GenerateConfig, LoraConfig, NamedTensors, Padding, Precision, Pretrained, Quant,
    Roberta, TokenBatch, Tuning,
};
use reft_train::{
    Chosen, Classification, DataSet, DeviceError, Encoding, Example, LanguageModeling, OnDevice, Silent,
    TaskSpec, Template, TrainConfig, Trainable,
    data::{LabeledText, parse_rows},
    eval::{generate_all, likelihood},
    metrics::Metric,
    objective::StepGradients,
    on_device, step_gradients, tiny, train,
};
use serde_json::json;
use std::sync::atomic::AtomicBool;
use system_tests::{
    LoadedLlama, RandomWeights, gradient, load_llama, on_every_backend, random_llama, relative_error,
};

const LAYERS: usize = 6;

/// A CPU backend and what it is expected to support.
trait CpuBackend: Kernels {
    /// Its name on the command line.
    const NAME: &'static str;
    const DTYPES: &'static [Dtype];
    const QUANTS: &'static [Quant];
}

impl CpuBackend for Flex {
    const NAME: &'static str = "cpu";
    const DTYPES: &'static [Dtype] = &[Dtype::F32, Dtype::F16, Dtype::Bf16];
    const QUANTS: &'static [Quant] = &[Quant::Int8, Quant::Int4];
}

impl CpuBackend for NdArray {
    const NAME: &'static str = "ndarray";
    const DTYPES: &'static [Dtype] = &[Dtype::F32];
    const QUANTS: &'static [Quant] = &[Quant::Int8];
}

fn tiny_model<B: Kernels>(precision: Precision) -> LoadedLlama<B> {
    load_llama(&tiny::model(), precision)
}

fn examples<B: Kernels>(loaded: &LoadedLlama<B>, n: usize) -> Vec<Example> {
    let rows = parse_rows(tiny::data("french-eval").expect("embedded"), "french-eval").expect("rows");
    let template = Template::resolve("{{ instruction }}\n", &rows).expect("a template");
    let vocab = loaded.model.config().vocab_size;
    DataSet::encode(&rows[..n], Encoding::new(&template, &loaded.tokenizer, vocab, 64), "french-eval")
        .expect("encoded")
        .examples
}

fn reft<B: Kernels>(hidden_size: usize, layers: &[usize], dropout: f64) -> Reft<B> {
    let config = ReftConfig::new(hidden_size, layers.iter().copied())
        .with_rank(4)
        .with_positions("f2+l2".parse().expect("positions"))
        .with_dropout(dropout);
    config.with_seed(3).init(&Default::default())
}

/// Every expected combination of dtype and quantization.
fn precisions<B: CpuBackend>() -> Vec<Precision> {
    let quants: Vec<Option<Quant>> =
        std::iter::once(None).chain(B::QUANTS.iter().copied().map(Some)).collect();
    let of_dtype = |dtype: &Dtype| {
        quants.iter().map(|quant| Precision { quant: *quant, ..Precision::new(*dtype) }).collect()
    };
    B::DTYPES.iter().flat_map(|dtype| -> Vec<Precision> { of_dtype(dtype) }).collect()
}

/// Resolves a precision on a device.
struct Resolve(Dtype, Option<Quant>);

impl OnDevice for Resolve {
    type Output = Result<Precision, DeviceError>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Result<Precision, DeviceError> {
        on.precision::<A::InnerBackend>(Some(self.0), self.1, Dtype::F32)
    }
}

/// A backend accepts what it is expected to support, and an error says that it does not support the rest.
fn unsupported_precisions_are_errors<B: CpuBackend>() {
    let resolve = |dtype, quant| on_device(B::NAME, Resolve(dtype, quant)).expect("the CPU");
    let known: Vec<&str> = B::DTYPES.iter().map(|dtype| dtype.name()).collect();
    for dtype in Dtype::ALL {
        assert_eq!(dtype.is_supported::<B>(&Default::default()), B::DTYPES.contains(&dtype), "{dtype}");
        match resolve(dtype, None) {
            Ok(precision) => assert_eq!(precision, Precision::new(dtype)),
            Err(error) => assert_eq!(
                error.to_string(),
                format!("dtype {dtype}: not supported by {}; available: auto, {}", B::NAME, known.join(", "))
            ),
        }
        assert_eq!(resolve(dtype, None).is_ok(), B::DTYPES.contains(&dtype), "{dtype}");
    }
    for quant in [Quant::Int8, Quant::Int4] {
        assert_eq!(quant.is_supported::<B>(&Default::default()), B::QUANTS.contains(&quant), "{quant}");
        match resolve(Dtype::F32, Some(quant)) {
            Ok(precision) => assert_eq!(precision, Precision { quant: Some(quant), ..Precision::default() }),
            Err(error) => assert_eq!(
                error.to_string(),
                format!(
                    "quant {quant}: not supported by {}; use int8, or another device (cpu, wgpu, vulkan, metal and \
                     cuda support it)",
                    B::NAME
                )
            ),
        }
        assert_eq!(resolve(Dtype::F32, Some(quant)).is_ok(), B::QUANTS.contains(&quant), "{quant}");
    }
}

/// What a model computes in one precision.
struct Measured {
    nll: f64,
    gradient: Vec<f32>,
    losses: Vec<f64>,
    texts: Vec<Vec<u32>>,
}

/// NLL, gradients and a short training run of the embedded model in every precision agree with f32 within a tolerance.
fn every_precision_agrees_with_f32<B: CpuBackend>() {
    let exact = tiny_model::<B>(Precision::default());
    let examples = examples(&exact, 8);
    let reft: Reft<B> = reft(128, &[1, 3], 0.0);
    let measure = |precision: Precision| {
        let loaded = tiny_model::<B>(precision);
        assert_eq!(loaded.model.dtype(), precision.dtype);
        let nll = likelihood(&loaded.model, &NoHook, &examples, 8).nll;
        let objective = LanguageModeling::new(&loaded.model, 8);
        let tracked: Trainable<Autodiff<B>> = Reft::trainable(reft.clone()).into();
        let step = step_gradients(&objective, &tracked, &[examples.iter().collect()], false, 0);
        let gradient: Vec<f32> = gradient(&tracked.reft, &step.grads).concat();
        assert!(gradient.iter().all(|x| x.is_finite()), "{precision}");
        let config = TrainConfig::default().with_steps(8).with_batch_size(8).with_lr(4e-3);
        let never = AtomicBool::new(false);
        let start = reft.clone().into();
        let outcome =
            train::<Autodiff<B>, _>(&objective, start, &examples, &[], &config, &mut Silent, &never);
        for edit in outcome.trainable.reft.edits() {
            assert_eq!(edit.intervention.bias().val().dtype(), DType::F32, "{precision}");
        }
        let prompts: Vec<Vec<u32>> = examples.iter().map(|e| e.prompt().to_vec()).collect();
        let config = GenerateConfig::default().with_max_new_tokens(6);
        let texts = generate_all(&loaded.model, &reft, &prompts, &config, 8).expect("generated");
        Measured { nll, gradient, losses: outcome.history.losses, texts }
    };
    let expected = measure(Precision::default());
    for precision in precisions::<B>() {
        let found = measure(precision);
        let tolerance = match precision {
            Precision { quant: Some(Quant::Int4), .. } => 0.25,
            Precision { quant: Some(Quant::Int8), .. } => 0.03,
            Precision { dtype: Dtype::Bf16, .. } => 0.03,
            Precision { dtype: Dtype::F16, .. } => 0.01,
            _ => 1e-6,
        };
        let nll = (found.nll - expected.nll).abs();
        let gradient = relative_error(&found.gradient, &expected.gradient);
        let last_loss = (found.losses[7] - expected.losses[7]).abs() / expected.losses[7];
        let same = found.texts.iter().zip(&expected.texts).filter(|(a, b)| a == b).count();
        println!(
            "{precision}: deviations from f32: NLL {nll:.1e}, gradient {gradient:.1e}, last loss {last_loss:.1e}; \
             {same} of 8 greedy texts are the same"
        );
        assert!(nll < tolerance, "{precision}: {nll}");
        assert!(gradient < 4.0 * tolerance, "{precision}: {gradient}");
        assert!(last_loss < 4.0 * tolerance, "{precision}: {last_loss}");
        assert!(found.losses[7] < found.losses[0], "{precision}: {:?}", found.losses);
    }
}

/// Matrices of files in half precision stay so where products widen them. The model computes the same as with matrices in
/// f32, with interventions and with the baselines, which train such matrices in f32.
fn half_weights_stay_as_they_are<B: CpuBackend>() {
    // The embedded model is in f16.
    if !B::widens(Dtype::F16.burn(), Dtype::F32.burn()) {
        println!("skipped: products of {} do not widen", B::NAME);
        return;
    }
    let wide = tiny_model::<B>(Precision::default());
    let half = tiny_model::<B>(Precision { matrices: Dtype::F16, ..Precision::default() });
    assert_eq!(half.model.head_weight().dtype(), DType::F16);
    assert_eq!((wide.model.head_weight().dtype(), half.model.dtype()), (DType::F32, Dtype::F32));
    let rows = examples(&wide, 6);
    let lora = LoraConfig { rank: 2, alpha: 4.0, dropout: 0.0, targets: Vec::new() };
    for tuning in [None, Some(Tuning::Full), Some(Tuning::Lora(lora))] {
        let step = |loaded: &LoadedLlama<B>| {
            let tuned = tuning.as_ref().map(|tuning| tuning.init(&loaded.tensors, 3, &Default::default()));
            let layers: &[usize] = if tuned.is_some() { &[] } else { &[1, 3] };
            let tuned = tuned.map(|tuned| tuned.expect("fits"));
            let trainable = Trainable { tuned, ..reft::<B>(128, layers, 0.0).into() };
            let tracked = Trainable::<Autodiff<B>>::tracked(trainable);
            let objective = LanguageModeling::new(&loaded.model, 8).with_tensors(&loaded.tensors);
            let step = step_gradients(&objective, &tracked, &[rows.iter().collect()], false, 0);
            let gradients = match &tracked.tuned {
                Some(_) => gradient(&tracked, &step.grads),
                None => gradient(&tracked.reft, &step.grads),
            };
            (step.loss.sum(), gradients.concat())
        };
        let ((loss, gradients), (expected_loss, expected)) = (step(&half), step(&wide));
        assert!((loss - expected_loss).abs() / expected_loss < 1e-6, "{tuning:?}: {loss}, {expected_loss}");
        let error = relative_error(&gradients, &expected);
        assert!(error < 1e-5, "{tuning:?}: {error}");
    }
}

/// A quantized model computes with other weights than the dense one, and almost the same.
fn quantized_weights_are_close_to_dense_ones<B: CpuBackend>() {
    for quant in B::QUANTS.iter().copied() {
        let dense = tiny_model::<B>(Precision::default());
        let packed = tiny_model::<B>(Precision { quant: Some(quant), ..Default::default() });
        let examples = examples(&dense, 2);
        let rows: Vec<&[u32]> = examples.iter().map(|e| e.tokens.as_slice()).collect();
        let tokens = TokenBatch::new(&rows, Padding::Right);
        let states = |loaded: &LoadedLlama<B>| host_values(loaded.model.forward(&tokens, None, &NoHook));
        let error = relative_error(&states(&packed), &states(&dense));
        println!("{quant}: final states deviate by {error:.1e}");
        assert!(error > 0.0 && error < if quant == Quant::Int8 { 0.03 } else { 0.3 }, "{quant}: {error}");
    }
}

fn assert_same<B: Kernels>(
    trainable: &Trainable<Autodiff<B>>,
    plain: &StepGradients<B>,
    checkpointed: &StepGradients<B>,
    what: &str,
) {
    assert!((plain.loss.sum() - checkpointed.loss.sum()).abs() / plain.loss.sum() < 1e-5, "{what}: loss");
    let [a, b] = [plain, checkpointed].map(|step| gradient(trainable, &step.grads).concat());
    let error = relative_error(&b, &a);
    println!("{what}: gradients deviate by {error:.1e}");
    assert!(error < 1e-5, "{what}: {error}");
    for (a, b) in plain.basis_grads.iter().zip(&checkpointed.basis_grads) {
        let [a, b] = [a, b].map(|grad| host_values(grad.clone().expect("a gradient")));
        assert!(relative_error(&b, &a) < 1e-5, "{what}: basis");
    }
}

/// Loss and gradients are the same with checkpointing: from any first layer, with dropout and with quantized weights.
fn checkpointing_changes_nothing<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let random = |rng: &mut ChaCha8Rng, len: usize| Example {
        tokens: (0..len).map(|_| rng.random_range(1..50)).collect(),
        prompt_len: len / 2,
    };
    let rows: Vec<Example> = [9, 14, 6].iter().map(|len| random(&mut rng, *len)).collect();
    let model = random_llama::<B>(json!({}), 1);
    for (layers, dropout) in [(vec![0, 1, 2], 0.0), (vec![1], 0.0), (vec![2], 0.0), (vec![0, 2], 0.3)] {
        let trainable: Trainable<Autodiff<B>> = Reft::trainable(reft::<B>(24, &layers, dropout)).into();
        let objective = LanguageModeling::new(&model, 4);
        let micro = [rows[..2].iter().collect(), rows[2..].iter().collect::<Vec<_>>()];
        let step = |checkpointing| step_gradients(&objective, &trainable, &micro, checkpointing, 7);
        assert_same(&trainable, &step(false), &step(true), &format!("layers {layers:?}, dropout {dropout}"));
    }
    let quantized = tiny_model::<B>(Precision { quant: Some(Quant::Int8), ..Default::default() });
    let rows = examples(&quantized, 4);
    let trainable: Trainable<Autodiff<B>> = Reft::trainable(reft::<B>(128, &[2, LAYERS - 1], 0.0)).into();
    let objective = LanguageModeling::new(&quantized.model, 4);
    let step =
        |checkpointing| step_gradients(&objective, &trainable, &[rows.iter().collect()], checkpointing, 7);
    assert_same(&trainable, &step(false), &step(true), "int8");
}

/// The same for an encoder with its head and its own dropout.
fn checkpointing_an_encoder_changes_nothing<B: Kernels>() {
    let config = json!({
        "model_type": "roberta", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
        "num_attention_heads": 2, "vocab_size": 40, "max_position_embeddings": 32, "pad_token_id": 1
    });
    let config = Roberta::<B>::parse(config.to_string().as_bytes()).expect("valid");
    let mut tensors = NamedTensors::default();
    let weights = RandomWeights(ChaCha8Rng::seed_from_u64(2));
    let model = Roberta::<B>::from_source(&config, &mut tensors.record(weights));
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let rows: Vec<LabeledText> = (0..4)
        .map(|idx| {
            let tokens: Vec<u32> = (0..5 + 2 * idx).map(|_| rng.random_range(3..40)).collect();
            LabeledText { types: vec![0; tokens.len()], tokens, target: (idx % 2) as f64 }
        })
        .collect();
    let labels =
        parse_rows(r#"[{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]"#, "rows").expect("rows");
    let spec = TaskSpec::discover("classification", None, None, &labels).expect("a task");
    for rate in [0.0, 0.2] {
        let head = HeadConfig { hidden_size: 16, outputs: 2, input_dropout: rate, inner_dropout: rate };
        let head = head.init::<B>(6, &Default::default());
        let inner = Trainable { reft: reft::<B>(16, &[1, 2], rate), tuned: None, head: Some(head) };
        let trainable = Trainable::<Autodiff<B>>::tracked(inner);
        let objective = Classification {
            model: &model,
            tensors: &tensors,
            spec: &spec,
            selection_metric: Metric::Accuracy,
            dropout: DropoutRates { hidden: rate, attention: rate },
            eval_batch_size: 4,
            reused: None,
        };
        let step = |checkpointing| {
            step_gradients(&objective, &trainable, &[rows.iter().collect()], checkpointing, 9)
        };
        assert_same(&trainable, &step(false), &step(true), &format!("encoder, dropout {rate}"));
    }
}

on_every_backend!(
    unsupported_precisions_are_errors,
    every_precision_agrees_with_f32,
    half_weights_stay_as_they_are,
    quantized_weights_are_close_to_dense_ones,
    checkpointing_changes_nothing,
    checkpointing_an_encoder_changes_nothing,
);
