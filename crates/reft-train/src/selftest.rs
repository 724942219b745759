//! Whether a device computes correctly: the embedded model on it, compared with numbers that are stored beside the model,
//! and its kernels, compared with plain operations.

use crate::{
    data::{DataSet, Encoding, Example, LanguageModelBatch, Template, find_rows},
    device::{Chosen, Device, DeviceKind, OnDevice, on_chosen},
    error::RunError,
    eval::{generate_all, likelihood},
    objective::step_gradients,
    observer::Silent,
    open::load_adapter,
    same_model::OtherWeights,
    tasks::LanguageModeling,
    tiny,
    train_config::TrainConfig,
    trainable::Trainable,
    trainer::train,
};
use burn::{
    module::{Module, ModuleVisitor, Param},
    optim::GradientsParams,
    record::{BinBytesRecorder, FullPrecisionSettings, Recorder},
    tensor::Tensor,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{Adapter, NoHook, Reft, ReftConfig, host_values};
use reft_kernels::{AutodiffKernels, Kernels, deviations, product_deviation};
use reft_models::{Dtype, GenerateConfig, Llama, LoadedModel, Precision, Quant};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, marker::PhantomData, path::Path, sync::atomic::AtomicBool, time::Instant};

/// The results of one device.
#[derive(Debug, Clone)]
pub struct Measured {
    /// The kind of the device.
    pub kind: DeviceKind,
    /// NLL of some rows with new interventions, in nats per token.
    pub nll: f64,
    /// The gradient of a batch with respect to every parameter of the interventions.
    pub gradient: Vec<f32>,
    /// The same with gradient checkpointing.
    pub checkpointed: Vec<f32>,
    /// NLL and gradient in the other precisions that the device supports.
    pub other_precisions: Vec<(Precision, f64, Vec<f32>)>,
    /// The losses of a short training run.
    pub losses: Vec<f64>,
    /// NLL of the rows with the trained interventions.
    pub trained_nll: f64,
    /// The same after saving and loading them.
    pub loaded_nll: f64,
    /// The same after recording them with Burn's recorder and loading the record into other interventions.
    pub recorded_nll: f64,
    /// Greedy continuations with the trained interventions.
    pub tokens: Vec<Vec<u32>>,
    /// Share of those tokens that are also the most likely ones when the whole text is computed at once, without a cache.
    pub cache_agreement: f64,
    /// NLL of the rows with the adapter of `foreign`.
    pub foreign_nll: Option<f64>,
    /// How far matrix products are from exact ones.
    pub products: f64,
    /// How far the kernels are from the same operations composed of plain ones, with their names.
    pub kernels: Vec<(&'static str, f64)>,
    /// Seconds of the whole self-test.
    pub seconds: f64,
}

/// The verdict on a deviation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// Within the tolerance.
    Pass,
    /// Above the tolerance, still usable.
    Warn,
    /// Far above the tolerance.
    Fail,
}

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What is compared.
    pub name: String,
    /// The verdict.
    pub verdict: Verdict,
    /// The deviation from what is expected.
    pub deviation: f64,
    /// The largest deviation that passes.
    pub tolerance: f64,
    /// What to do if it does not pass.
    pub hint: Option<String>,
}

const ROWS: usize = 8;
const STEPS: usize = 20;
/// Both sides compute in f32.
const KERNEL_TOLERANCE: f64 = 1e-5;

/// Runs the self-test on a device, and leaves its adapter in `folder`. With `foreign`, the adapter in that folder is
/// evaluated on the device too.
///
/// # Errors
/// If the driver fails to start, or a file cannot be written or read.
pub fn measure(device: &Device, folder: &Path, foreign: Option<&Path>) -> Result<Measured, RunError> {
    on_chosen(device, SelfTest { folder, foreign })?
}

struct SelfTest<'a> {
    folder: &'a Path,
    foreign: Option<&'a Path>,
}

impl OnDevice for SelfTest<'_> {
    type Output = Result<Measured, RunError>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Result<Measured, RunError> {
        let (begun, device) = (Instant::now(), &on.device);
        let loaded: LoadedModel<A::InnerBackend, Llama<A::InnerBackend>> =
            LoadedModel::load(&tiny::model(), "embedded:tiny", Precision::default(), device)?;
        let rows = find_rows("embedded:french-eval")?;
        let template = Template::resolve("{{ instruction }}\n", &rows)?;
        let rows = &rows[..ROWS];
        let vocab = loaded.model.config().vocab_size;
        let encoding = Encoding::new(&template, &loaded.tokenizer, vocab, 128);
        let examples = DataSet::encode(rows, encoding, "embedded:french-eval")?.examples;
        let model = &loaded.model;
        let config = ReftConfig::new(model.config().hidden_size, [1, 3])
            .with_rank(4)
            .with_positions("f2+l2".parse().expect("positions"));
        let reft: Reft<A::InnerBackend> = config.with_seed(1).try_init(device)?;
        let nll = likelihood(model, &reft.hook(), &examples, ROWS).nll;

        let tracked: Trainable<A> = Reft::<A>::trainable(reft.clone()).into();
        let gradient_of = |model: &Llama<A::InnerBackend>, checkpointing| {
            let objective = LanguageModeling::new(model, ROWS);
            let step = step_gradients(&objective, &tracked, &[examples.iter().collect()], checkpointing, 0);
            flat_gradient(&tracked.reft, &step.grads)
        };
        let (gradient, checkpointed) = (gradient_of(model, false), gradient_of(model, true));

        let config = TrainConfig::default().with_steps(STEPS).with_batch_size(ROWS).with_lr(4e-3);
        let never = AtomicBool::new(false);
        let objective = LanguageModeling::new(model, ROWS);
        let outcome = train::<A, _>(&objective, reft.into(), &examples, &[], &config, &mut Silent, &never);
        let _ = outcome.stop?;
        let reft = outcome.trainable.reft;
        let trained_nll = likelihood(model, &reft.hook(), &examples, ROWS).nll;

        let prompts: Vec<Vec<u32>> = examples.iter().map(|e| e.prompt().to_vec()).collect();
        let stop_ids = loaded.stop_ids.clone();
        let greedy = GenerateConfig::default().with_max_new_tokens(12).with_stop_ids(stop_ids);
        let tokens = generate_all(model, &reft, &prompts, &greedy, ROWS)
            .map_err(|error| RunError::Eval(error.into()))?;
        let cache_agreement = cache_agreement(&loaded, &reft, &prompts, &tokens);

        let recorder = BinBytesRecorder::<FullPrecisionSettings>::default();
        let bytes = recorder.record(reft.clone().into_record(), ()).expect("recorded in memory");
        let record = recorder.load(bytes, device).expect("just recorded");
        let other: Reft<A::InnerBackend> =
            reft.config().clone().with_rank(2).with_seed(2).try_init(device)?;
        let recorded_nll = likelihood(model, &other.load_record(record).hook(), &examples, ROWS).nll;

        Adapter::new(reft, loaded.base.clone()).save(self.folder)?;
        let nll_of = |folder: &Path| -> Result<f64, RunError> {
            let reft = load_adapter(folder, &loaded, OtherWeights::Refuse, device)?.adapter.reft;
            Ok(likelihood(&loaded.model, &reft.hook(), &examples, ROWS).nll)
        };
        let loaded_nll = nll_of(self.folder)?;
        let foreign_nll = self.foreign.map(nll_of).transpose()?;
        let mut other_precisions = Vec::new();
        for (dtype, quant) in [(Dtype::F32, Some(Quant::Int8)), (Dtype::F16, None), (Dtype::Bf16, None)] {
            let Ok(precision) = on.precision::<A::InnerBackend>(Some(dtype), quant, dtype) else { continue };
            let held: LoadedModel<A::InnerBackend, Llama<A::InnerBackend>> =
                LoadedModel::load(&tiny::model(), "embedded:tiny", precision, device)?;
            let nll = likelihood(&held.model, &NoHook, &examples, ROWS).nll;
            other_precisions.push((precision, nll, gradient_of(&held.model, true)));
        }
        Ok(Measured {
            kind: on.info.kind,
            nll,
            gradient,
            checkpointed,
            other_precisions,
            losses: outcome.history.losses,
            trained_nll,
            loaded_nll,
            recorded_nll,
            tokens,
            cache_agreement,
            foreign_nll,
            products: product_deviation::<A::InnerBackend>(device),
            kernels: deviations::<A::InnerBackend>(device),
            seconds: begun.elapsed().as_secs_f64(),
        })
    }
}

/// The share of generated tokens that are the most likely ones when prompt and text are computed at once.
fn cache_agreement<B: Kernels>(
    loaded: &LoadedModel<B, Llama<B>>,
    reft: &Reft<B>,
    prompts: &[Vec<u32>],
    tokens: &[Vec<u32>],
) -> f64 {
    let texts: Vec<Example> = (prompts.iter().zip(tokens))
        .map(|(prompt, new)| Example { prompt_len: prompt.len(), tokens: [prompt.as_slice(), new].concat() })
        .collect();
    let batch = LanguageModelBatch::new(&texts.iter().collect::<Vec<_>>());
    let hidden = loaded.model.forward(&batch.tokens, None, reft);
    let argmax = loaded.model.logits(hidden, &batch.label_rows).argmax(1);
    let argmax = argmax.into_data().convert::<i64>().to_vec::<i64>().unwrap_or_default();
    let same = argmax.iter().zip(&batch.labels).filter(|(a, b)| **a == i64::from(**b)).count();
    same as f64 / batch.labels.len().max(1) as f64
}

fn flat_gradient<A: AutodiffKernels>(reft: &Reft<A>, grads: &GradientsParams) -> Vec<f32> {
    struct Collect<'a, A: AutodiffKernels>(&'a GradientsParams, Vec<f32>, PhantomData<A>);
    impl<A: AutodiffKernels> ModuleVisitor<A> for Collect<'_, A> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
            let grad = self.0.get::<A::InnerBackend, D>(param.id);
            let values = grad.map(host_values);
            self.1.extend(values.unwrap_or_else(|| vec![f32::NAN; param.shape().num_elements()]));
        }
    }
    let mut collect = Collect::<A>(grads, Vec::new(), PhantomData);
    Module::<A>::visit(reft, &mut collect);
    collect.1
}

/// The results that every device has to reach, stored beside the embedded model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Expected {
    /// [`Measured::nll`].
    pub nll: f64,
    /// 64 sums of the numbers of [`Measured::gradient`] with random signs.
    pub gradient: Vec<f32>,
    /// [`Measured::losses`].
    pub losses: Vec<f64>,
    /// [`Measured::tokens`].
    pub tokens: Vec<Vec<u32>>,
    /// [`Measured::other_precisions`] by the name of the precision, with sums of the gradient as above.
    pub other_precisions: BTreeMap<String, (f64, Vec<f32>)>,
}

impl Expected {
    /// What is stored.
    ///
    /// # Panics
    /// Never: a test reads it.
    pub fn stored() -> Self {
        serde_json::from_str(tiny::EXPECTED).expect("the stored numbers")
    }

    /// What a device has measured, in the form that is stored.
    pub fn of(measured: &Measured) -> Self {
        let other = |(precision, nll, gradient): &(Precision, f64, Vec<f32>)| {
            (precision.to_string(), (*nll, sums(gradient)))
        };
        Self {
            nll: measured.nll,
            gradient: sums(&measured.gradient),
            losses: measured.losses.clone(),
            tokens: measured.tokens.clone(),
            other_precisions: measured.other_precisions.iter().map(other).collect(),
        }
    }
}

/// Sums of the numbers with random signs, instead of thousands of numbers. The sums of two lists are as near to each other as
/// the lists, relative to their size.
fn sums(numbers: &[f32]) -> Vec<f32> {
    let mut sums = [0.0; 64];
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for number in numbers {
        let signs: u64 = random.random();
        for (idx, sum) in sums.iter_mut().enumerate() {
            *sum += if signs >> idx & 1 == 1 { f64::from(*number) } else { -f64::from(*number) };
        }
    }
    sums.map(|sum| sum as f32).to_vec()
}

/// Compares the results of a device with the stored ones, and the NLL with an adapter from the CPU with that of the CPU.
pub fn compare(found: &Measured, cpu: &Measured) -> Vec<Check> {
    let expected = Expected::stored();
    let wrong = match found.kind {
        DeviceKind::Cpu => {
            "report this with the name of the processor; until then use another device, such as ndarray"
        }
        _ => "update the driver; until then use another device",
    };
    const CLOSE: &str = "the device rounds differently; only compare results of the same device";
    let check = |name: &str, deviation: f64, tolerance: f64, hint: &str| {
        let verdict = match deviation {
            d if d <= tolerance => Verdict::Pass,
            d if d <= 10.0 * tolerance => Verdict::Warn,
            _ => Verdict::Fail,
        };
        let hint = (verdict != Verdict::Pass).then(|| hint.to_string());
        Check { name: name.into(), verdict, deviation, tolerance, hint }
    };
    let distance = |a: f64, b: f64| (a - b).abs();
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let relative = |found: &[f32], expected: &[f32]| {
        let difference = norm(&mut sums(found).iter().zip(expected).map(|(a, b)| f64::from(a - b)));
        difference / norm(&mut expected.iter().map(|x| f64::from(*x)))
    };
    let losses = found.losses.iter().zip(&expected.losses).map(|(a, b)| distance(*a, *b) / b);
    // `f64::max` ignores what is not a number.
    let losses = losses.map(|loss| if loss.is_finite() { loss } else { f64::INFINITY }).fold(0.0, f64::max);
    let losses = if found.losses.len() == expected.losses.len() { losses } else { f64::INFINITY };
    let different = found.tokens.iter().zip(&expected.tokens).filter(|(a, b)| a != b).count();
    let different = different as f64 / expected.tokens.len() as f64;
    let mut checks = vec![
        check("matrix products", found.products, 1e-2, wrong),
        check("forward", distance(found.nll, expected.nll), 1e-3, wrong),
        check("gradient", relative(&found.gradient, &expected.gradient), 1e-2, wrong),
        check("gradient, checkpointed", relative(&found.checkpointed, &expected.gradient), 1e-2, wrong),
        check("training", losses, 2e-2, CLOSE),
        check("save and load", distance(found.loaded_nll, found.trained_nll), 1e-4, wrong),
        check("record and load", distance(found.recorded_nll, found.trained_nll), 1e-4, wrong),
        check("decoding with the KV cache", 1.0 - found.cache_agreement, 0.0, wrong),
        check("decoded tokens", different, 0.25, CLOSE),
    ];
    for (precision, nll, gradient) in &found.other_precisions {
        let (name, tolerance, with_gradient, gradient_tolerance) = match precision {
            Precision { quant: Some(_), .. } => ("int8 weights", 1e-3, "int8 weights, gradient", 1e-2),
            Precision { dtype: Dtype::F16, .. } => ("f16", 1e-2, "f16, gradient", 3e-2),
            _ => ("bf16", 3e-2, "bf16, gradient", 1e-1),
        };
        if let Some((expected_nll, expected_gradient)) = expected.other_precisions.get(&precision.to_string())
        {
            checks.push(check(name, distance(*nll, *expected_nll), tolerance, wrong));
            let deviation = relative(gradient, expected_gradient);
            checks.push(check(with_gradient, deviation, gradient_tolerance, wrong));
        }
    }
    for (operation, deviation) in &found.kernels {
        checks.push(check(&format!("kernels: {operation}"), *deviation, KERNEL_TOLERANCE, wrong));
    }
    if let Some(foreign) = found.foreign_nll {
        checks.push(check("adapter from the CPU", distance(foreign, cpu.trained_nll), 1e-3, wrong));
    }
    checks
}
