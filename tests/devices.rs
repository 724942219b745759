//! The same work on every device: the CPU backends, and every GPU or software renderer that is found.
//!
//! There is one test per device and check, such as `wgpu:0::gradient`. What is not run counts as ignored, with the reason.
//!
//! The environment variable `REFT_TEST_DEVICES` names the devices to test, as in `cpu,wgpu:0`; without it, all that are found
//! are tested.

use libtest_mimic::{Arguments, Completion, Failed, Trial, run};
use reft_core::{NoHook, Reft, ReftConfig, host_values};
use reft_kernels::AutodiffKernels;
use reft_models::{GenerateConfig, ModelFiles, Precision};
use reft_train::{
    Chosen, DataSet, Encoding, LanguageModeling, OnDevice, Silent, Template, TrainConfig,
    data::read_rows,
    device::{Device, DeviceKind, cpu, on_chosen},
    eval::{generate_all, likelihood},
    selftest::{Check, Measured, Verdict, compare, measure},
    step_gradients, train,
};
use std::{
    collections::BTreeMap,
    fmt::Display,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, atomic::AtomicBool},
};
use system_tests::{HAS_SHARED, LoadedLlama, max_deviation, relative_error, shared, wanted_devices};
use tempfile::TempDir;

fn main() {
    let mut args = Arguments::from_args();
    // The tests of a device share its memory and its measurements.
    args.test_threads.get_or_insert(1);
    let shared_work = Arc::new(SharedWork::new());
    let trials = wanted_devices().into_iter().flat_map(|device| {
        let self_tests = self_test_trials(&device, &shared_work);
        let real_models = MODELS.map(|model| real_model_trial(&device, model, &shared_work));
        self_tests.into_iter().chain(real_models)
    });
    run(&args, trials.collect()).exit();
}

type Result<T, E = Failed> = std::result::Result<T, E>;

/// A self-test that the first test to need it computes.
type SelfTest = Arc<OnceLock<Result<Measured, String>>>;

/// The body of a test on a device.
type Body = Box<dyn FnOnce(&Device, &SharedWork) -> Result<Completion> + Send>;

fn failed(error: impl Display) -> Failed {
    Failed::from(error.to_string())
}

/// What several tests need and only the first of them computes.
struct SharedWork {
    folder: TempDir,
    /// The self-test of each device, by its name.
    measured: Mutex<BTreeMap<String, SelfTest>>,
    /// Each real model on the CPU, by its name.
    expected: Mutex<BTreeMap<&'static str, Arc<Numbers>>>,
}

impl SharedWork {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, measured: Mutex::default(), expected: Mutex::default() }
    }

    fn folder_of(&self, device: &Device) -> PathBuf {
        self.folder.path().join(device.name.replace(':', "-"))
    }

    /// The self-test of a device, with the adapter that the CPU made.
    fn measured(&self, device: &Device) -> Result<Measured> {
        let foreign = if device.name == cpu().expect("compiled in").name {
            None
        } else {
            self.measured(&cpu().expect("compiled in"))?;
            Some(self.folder_of(&cpu().expect("compiled in")))
        };
        let cell =
            self.measured.lock().expect("not poisoned").entry(device.name.clone()).or_default().clone();
        let result = cell.get_or_init(|| {
            let result = measure(device, &self.folder_of(device), foreign.as_deref());
            result.map_err(|error| error.to_string())
        });
        result.clone().map_err(failed)
    }

    fn expected(&self, model: Model) -> Result<Arc<Numbers>> {
        let mut expected = self.expected.lock().expect("not poisoned");
        if let Some(numbers) = expected.get(model.name) {
            return Ok(numbers.clone());
        }
        let numbers = Arc::new(on_chosen(&cpu().expect("compiled in"), RealModel(model)).map_err(failed)?);
        expected.insert(model.name, numbers.clone());
        Ok(numbers)
    }
}

/// The checks of the self-test, each with the dtype that the device must support for it.
const CHECKS: [(&str, &str); 24] = [
    ("matrix products", "f32"),
    ("forward", "f32"),
    ("gradient", "f32"),
    ("gradient, checkpointed", "f32"),
    ("training", "f32"),
    ("save and load", "f32"),
    ("record and load", "f32"),
    ("decoding with the KV cache", "f32"),
    ("decoded tokens", "f32"),
    ("int8 weights", "f32"),
    ("int8 weights, gradient", "f32"),
    ("f16", "f16"),
    ("f16, gradient", "f16"),
    ("bf16", "bf16"),
    ("bf16, gradient", "bf16"),
    ("kernels: normalization", "f32"),
    ("kernels: activations", "f32"),
    ("kernels: rotary embedding", "f32"),
    ("kernels: attention", "f32"),
    ("kernels: linear maps", "f32"),
    ("kernels: quantized weights", "f32"),
    ("kernels: loss", "f32"),
    ("kernels: row edits", "f32"),
    ("adapter from the CPU", "f32"),
];

/// The self-test: forward pass, gradients, twenty training steps, files, decoding with the cache, other precisions, kernels.
fn self_test_trials(device: &Device, shared_work: &Arc<SharedWork>) -> Vec<Trial> {
    let trial = |name: &str, test: Body| {
        let (device, shared_work) = (device.clone(), shared_work.clone());
        Trial::ignorable_test(format!("{}::{name}", device.name), move || test(&device, &shared_work))
    };
    let mut trials: Vec<Trial> = CHECKS
        .iter()
        .map(|(name, dtype)| trial(name, Box::new(|device, work| self_test_check(name, dtype, device, work))))
        .collect();
    trials.push(trial("its adapter on the CPU", Box::new(its_adapter_on_the_cpu)));
    trials
}

fn self_test_check(name: &str, dtype: &str, device: &Device, work: &SharedWork) -> Result<Completion> {
    if !device.dtypes.contains(&dtype) {
        return Ok(Completion::ignored_with(format!("no {dtype} on this device")));
    }
    if name == "adapter from the CPU" && device.name == cpu().expect("compiled in").name {
        return Ok(Completion::ignored_with("this device is the reference"));
    }
    let checks = checks(device, work)?;
    let check = checks.iter().find(|check| check.name == name);
    let Check { verdict, deviation, tolerance, .. } = check.ok_or("the self-test did not run this check")?;
    let numbers = format!("deviation {deviation:.1e}, tolerance {tolerance:.0e}");
    println!("{} ({}), {name}: {numbers}", device.name, device.adapter);
    if *verdict == Verdict::Pass { Ok(Completion::Completed) } else { Err(numbers.into()) }
}

fn checks(device: &Device, work: &SharedWork) -> Result<Vec<Check>> {
    let reference = work.measured(&cpu().expect("compiled in"))?;
    if !(reference.trained_nll < reference.nll && reference.cache_agreement == 1.0) {
        return Err(format!("the CPU does not work: {reference:?}").into());
    }
    let checks = compare(&work.measured(device)?, &reference);
    match checks.iter().find(|check| CHECKS.iter().all(|(known, _)| check.name != *known)) {
        Some(check) => {
            Err(format!("the self-test has a check that is not listed here: {}", check.name).into())
        }
        None => Ok(checks),
    }
}

/// The adapter that the device trained gives the same NLL on the CPU.
fn its_adapter_on_the_cpu(device: &Device, work: &SharedWork) -> Result<Completion> {
    if device.name == cpu().expect("compiled in").name {
        return Ok(Completion::ignored_with("this device is the reference"));
    }
    let trained_nll = work.measured(device)?.trained_nll;
    let own = work.folder_of(device);
    let back = measure(&cpu().expect("compiled in"), &own.join("on-the-cpu"), Some(&own)).map_err(failed)?;
    let deviation = (back.foreign_nll.ok_or("not measured")? - trained_nll).abs();
    if deviation <= 1e-3 {
        Ok(Completion::Completed)
    } else {
        Err(format!("deviation {deviation:.1e}").into())
    }
}

/// A model and its rows in the shared material.
#[derive(Clone, Copy)]
struct Model {
    name: &'static str,
    folder: &'static str,
}

const MODELS: [Model; 2] = [
    Model { name: "stories3m", folder: "stories3m" },
    Model { name: "random-llama3", folder: "random-llama3-bf16-sharded" },
];

/// A real model on a device agrees with the CPU.
fn real_model_trial(device: &Device, model: Model, shared_work: &Arc<SharedWork>) -> Trial {
    let (device, shared_work) = (device.clone(), shared_work.clone());
    Trial::ignorable_test(format!("{}::{}", device.name, model.name), move || {
        if !HAS_SHARED {
            return Ok(Completion::ignored_with("needs the shared material (REFT_SHARED)"));
        }
        let expected = shared_work.expected(model)?;
        let found = on_chosen(&device, RealModel(model)).map_err(failed)?;
        let nll = max_deviation(&found.nll, &expected.nll);
        let gradient = relative_error(&found.gradient, &expected.gradient);
        let last_loss =
            (found.losses[STEPS - 1] - expected.losses[STEPS - 1]).abs() / expected.losses[STEPS - 1];
        let same = found.texts.iter().zip(&expected.texts).filter(|(a, b)| a == b).count();
        let numbers = format!(
            "deviations: NLL {nll:.1e}, gradient {gradient:.1e}, loss after {STEPS} steps {last_loss:.1e}; \
             {same} of {} greedy texts are the same",
            expected.texts.len()
        );
        println!("{} ({}), {}: {numbers}", device.name, device.adapter, model.name);
        // GPUs sum in another order, which may decide between two almost equally likely tokens.
        let texts_agree = same == expected.texts.len() || device.kind != DeviceKind::Cpu;
        if nll < 1e-3 && gradient < 1e-2 && last_loss < 1e-2 && texts_agree {
            Ok(Completion::Completed)
        } else {
            Err(numbers.into())
        }
    })
}

const STEPS: usize = 50;

/// NLL of every row and greedy texts without interventions; the gradient of a batch and the losses of a training run with
/// them.
struct RealModel(Model);

struct Numbers {
    nll: Vec<f64>,
    texts: Vec<Vec<u32>>,
    gradient: Vec<f32>,
    losses: Vec<f64>,
}

impl OnDevice for RealModel {
    type Output = Numbers;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Numbers {
        let Model { name, folder } = self.0;
        let files = ModelFiles::Folder(shared(&format!("models/{folder}")));
        let loaded: LoadedLlama<A::InnerBackend> =
            LoadedLlama::load(&files, name, Precision::default(), &on.device).expect("loaded");
        let rows = read_rows(&shared(&format!("golden/{name}/data.jsonl"))).expect("rows");
        let vocab = loaded.model.config().vocab_size;
        let encoding = Encoding::new(&Template::Alpaca, &loaded.tokenizer, vocab, 128);
        let set = DataSet::encode(&rows, encoding, name).expect("encoded");
        let examples = set.examples;
        let nll = likelihood(&loaded.model, &NoHook, &examples, 4);
        let prompts: Vec<Vec<u32>> = examples[..4].iter().map(|e| e.prompt().to_vec()).collect();
        let greedy = GenerateConfig::default().with_max_new_tokens(16).with_stop_ids(vec![2]);
        let texts = generate_all(&loaded.model, &NoHook, &prompts, &greedy, 4).expect("generated");
        let config = ReftConfig::new(loaded.model.config().hidden_size, [0, 2])
            .with_rank(4)
            .with_positions("f2+l3".parse().expect("positions"));
        let reft: Reft<A::InnerBackend> = config.with_seed(1).init(&on.device);
        let objective = LanguageModeling::new(&loaded.model, 4);
        let tracked = Reft::<A>::trainable(reft.clone()).into();
        let step = step_gradients(&objective, &tracked, &[examples[..4].iter().collect()], false, 0);
        let gradient = step.basis_grads.into_iter().flatten().flat_map(host_values).collect();
        let config = TrainConfig::default().with_steps(STEPS).with_batch_size(4).with_lr(2e-3);
        let never = AtomicBool::new(false);
        let outcome = train::<A, _>(&objective, reft.into(), &examples, &[], &config, &mut Silent, &never);
        Numbers {
            nll: nll.rows.iter().filter_map(|row| row.nll).collect(),
            texts,
            gradient,
            losses: outcome.history.losses,
        }
    }
}
