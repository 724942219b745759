//! Comparison with the numbers of transformers and pyreft.
//!
//! The case `stories260k` is committed in `fixtures/golden`, where a README explains the files. The others are part of the
//! shared material.

use burn::{backend::Autodiff, module::AutodiffModule, tensor::Tensor};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use reft_core::{
    Method, NoHook, Part, Reft, ReftConfig, Site, host_values, intervention::InterventionValues,
};
use reft_kernels::Kernels;
use reft_models::{GenerateConfig, ModelFiles, Precision, generate};
use reft_train::{
    DataSet, Encoding, Example, LanguageModeling, Silent, Template, TrainConfig,
    data::read_rows,
    eval::{generate_all, likelihood},
    step_gradients, train,
};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};
use system_tests::{LoadedLlama, fixture, load_llama, max_deviation, relative_error, shared};

/// NLL, in nats per token.
const NLL_TOLERANCE: f64 = 2e-4;
/// Gradients, relative to their norm.
const GRADIENT_TOLERANCE: f64 = 1e-3;
/// Loss of every step of a short training run, where the run does not depend on how R is parametrized.
const TRAJECTORY_TOLERANCE: f64 = 5e-4;
/// Loss of the last step of any other run, relative to pyreft's.
const LAST_LOSS_TOLERANCE: f64 = 1e-2;

/// The folders of interventions that a case may have, by pyreft's class names.
const KINDS: [&str; 7] = ["loreft", "loreft-untied", "nodireft", "noreft", "consreft", "lobireft", "direft"];

/// A model, rows as the model reads them, and the expected numbers.
struct Case<B: Kernels> {
    loaded: LoadedLlama<B>,
    examples: Vec<Example>,
    folder: PathBuf,
    forward: Value,
}

/// Interventions of a case at their initial values, and the expected numbers.
struct Golden<B: Kernels> {
    kind: &'static str,
    folder: PathBuf,
    reft: Reft<B>,
    expected: Value,
}

fn stories260k<B: Kernels>() -> Case<B> {
    let folder = fixture("golden/stories260k");
    Case::load(folder.join("model"), folder)
}

fn stories3m<B: Kernels>() -> Case<B> {
    Case::load(shared("models/stories3m"), shared("golden/stories3m"))
}

fn random_llama3<B: Kernels>() -> Case<B> {
    Case::load(shared("models/random-llama3-bf16-sharded"), shared("golden/random-llama3"))
}

impl<B: Kernels> Case<B> {
    fn load(model: PathBuf, folder: PathBuf) -> Self {
        let loaded = load_llama(&ModelFiles::Folder(model), Precision::default());
        let forward = json(&folder.join("forward.json"));
        let max_length = number(&forward["max_len"]) as usize;
        let rows = read_rows(&folder.join("data.jsonl")).expect("rows");
        let vocab = loaded.model.config().vocab_size;
        let encoding = Encoding::new(&Template::Alpaca, &loaded.tokenizer, vocab, max_length);
        let set = DataSet::encode(&rows, encoding, "data.jsonl");
        Case { loaded, examples: set.expect("encoded").examples, folder, forward }
    }

    /// Every kind of intervention that the case has numbers for.
    fn goldens(&self) -> Vec<Golden<B>> {
        let folders = KINDS.map(|kind| (kind, self.folder.join(kind)));
        let found: Vec<Golden<B>> = folders
            .into_iter()
            .filter(|(_, folder)| folder.is_dir())
            .map(|(kind, folder)| self.golden(kind, folder))
            .collect();
        assert!(!found.is_empty(), "{}: no interventions", self.folder.display());
        found
    }

    fn golden(&self, kind: &'static str, folder: PathBuf) -> Golden<B> {
        let expected = json(&folder.join("expected.json"));
        let layers = numbers(&expected["layers"]).into_iter().map(|layer| layer as usize);
        let config = ReftConfig::new(self.loaded.model.config().hidden_size, layers)
            .with_method(method(text(&expected["kind"])))
            .with_rank(number(&expected["rank"]) as usize)
            .with_positions(text(&expected["positions"]).parse().expect("positions"))
            .with_tied(flag(&expected["tied"]));
        let bytes = fs::read(folder.join("init.safetensors")).expect("readable");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let values = |site: Site, part: Part| {
            let get = |name: &str| tensor(&file, &format!("{}.{}.{name}", site.layer, part.name()));
            InterventionValues {
                weight: get("source.weight"),
                bias: get("source.bias").expect("a bias"),
                projection: get("projection").expect("a projection"),
            }
        };
        let reft = config.with_values(values, &Default::default()).expect("the values fit");
        Golden { kind, folder, reft, expected }
    }
}

/// pyreft's class of an intervention, as a method.
fn method(class: &str) -> Method {
    match class {
        "loreft" => Method::Loreft,
        "nodireft" => Method::Direft,
        "noreft" => Method::Noreft,
        "direft" => Method::Orthodireft,
        "consreft" => Method::Consreft,
        "lobireft" => Method::Lobireft,
        other => panic!("unknown class {other}"),
    }
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

fn number(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(number).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|x| x as u32).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().expect("text")
}

fn flag(value: &Value) -> bool {
    value.as_bool().expect("true or false")
}

fn tensor(file: &SafeTensors, name: &str) -> Option<Vec<f32>> {
    let view = file.tensor(name).ok()?;
    Some(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn greedy() -> GenerateConfig {
    GenerateConfig::default().with_max_new_tokens(24).with_stop_ids(vec![2])
}

/// Tokens, NLL and greedy tokens of every row without interventions.
fn forward<B: Kernels>(case: Case<B>) {
    let rows = case.forward["rows"].as_array().expect("rows");
    assert_eq!(case.examples.len(), rows.len());
    for (idx, (example, row)) in case.examples.iter().zip(rows).enumerate() {
        assert_eq!(example.tokens, ids(&row["input_ids"]), "row {idx}");
        assert_eq!(example.prompt_len, number(&row["prompt_tokens"]) as usize, "row {idx}");
    }
    let found = likelihood(&case.loaded.model, &NoHook, &case.examples, 4);
    let nll: Vec<f64> = found.rows.iter().map(|row| row.nll.expect("has labels")).collect();
    let expected_nll: Vec<f64> = rows.iter().map(|row| number(&row["nll"])).collect();
    let deviation = max_deviation(&nll, &expected_nll);
    println!("worst NLL deviation {deviation:.1e}");
    assert!(deviation < NLL_TOLERANCE, "{deviation}");
    let prompts: Vec<Vec<u32>> = case.examples.iter().map(|e| e.prompt().to_vec()).collect();
    let texts = generate_all(&case.loaded.model, &NoHook, &prompts, &greedy(), 5).expect("generated");
    let expected_texts: Vec<Vec<u32>> = rows.iter().map(|row| ids(&row["greedy"])).collect();
    assert_eq!(texts, expected_texts);
}

/// NLL and greedy tokens with interventions.
fn interventions<B: Kernels>(case: Case<B>) {
    for Golden { kind, reft, expected, .. } in case.goldens() {
        let found = likelihood(&case.loaded.model, &reft.hook(), &case.examples, 4);
        let nll: Vec<f64> = found.rows.iter().map(|row| row.nll.expect("has labels")).collect();
        let deviation = max_deviation(&nll, &numbers(&expected["nll"]));
        println!("{kind}: worst NLL deviation {deviation:.1e}");
        assert!(deviation < NLL_TOLERANCE, "{kind}: {deviation}");
        let expected_texts: Vec<Vec<u32>> =
            expected["greedy"].as_array().expect("rows").iter().map(ids).collect();
        let prompts: Vec<Vec<u32>> =
            case.examples[..expected_texts.len()].iter().map(|e| e.prompt().to_vec()).collect();
        let go_on = |_, _| ControlFlow::Continue(());
        let texts = generate(&case.loaded.model, &prompts, &reft, &greedy(), go_on).expect("generated");
        let texts: Vec<Vec<u32>> = texts.into_iter().map(|text| text.tokens).collect();
        assert_eq!(texts, expected_texts, "{kind}");
    }
}

/// Gradients of the mean loss of the first four rows with respect to `W`, `b` and `P` (or `R`) itself.
fn gradients<B: Kernels>(case: Case<B>) {
    for Golden { kind, folder, reft, expected } in case.goldens() {
        let reft = Reft::<Autodiff<B>>::trainable(reft);
        let bytes = fs::read(folder.join("grads.safetensors")).expect("readable");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let examples: Vec<&Example> = case.examples[..4].iter().collect();
        let objective = LanguageModeling::new(&case.loaded.model, 4);
        let step = step_gradients(&objective, &reft.clone().into(), &[examples], false, 0);
        let n_labels = step.loss.labels as f64;
        let deviation = (step.loss.sum() / n_labels - number(&expected["batch_loss"])).abs();
        assert!(deviation < NLL_TOLERANCE, "{kind}: the loss deviates by {deviation}");

        let mut worst = 0f64;
        let mut n_compared = 0;
        let mut check = |name: String, found: Vec<f32>| {
            let golden = tensor(&file, &name).unwrap_or_else(|| panic!("{kind}: no {name}"));
            let found: Vec<f32> = found.iter().map(|x| x / n_labels as f32).collect();
            let error = relative_error(&found, &golden);
            assert!(error < GRADIENT_TOLERANCE, "{kind}, {name}: {error}");
            worst = worst.max(error);
            n_compared += 1;
        };
        for (edit, basis) in reft.edits().zip(&step.basis_grads) {
            let prefix = format!("{}.{}", edit.site.layer, edit.part.name());
            let intervention = edit.intervention;
            if let Some(weight) = intervention.weight() {
                let grad: Tensor<B, 2> = step.grads.get(weight.id).expect("a gradient");
                check(format!("{prefix}.source.weight"), host_values(grad));
            }
            let grad: Tensor<B, 1> = step.grads.get(intervention.bias().id).expect("a gradient");
            check(format!("{prefix}.source.bias"), host_values(grad));
            // Not in the file where pyreft does not train it.
            let name = format!("{prefix}.projection");
            if file.tensor(&name).is_ok() {
                let basis = basis.clone().expect("a gradient");
                check(name, host_values(basis.transpose()));
            }
        }
        assert_eq!(n_compared, file.len(), "{kind}: not every gradient in the file was compared");
        println!("{kind}: worst relative gradient deviation {worst:.1e}");
    }
}

/// The losses of a short AdamW run.
fn short_training_runs<B: Kernels>(case: Case<B>) {
    for Golden { kind, reft, expected, .. } in case.goldens() {
        let golden = &expected["train"];
        let steps = number(&golden["steps"]) as usize;
        let mut config = TrainConfig::default();
        config.warmup = number(&golden["warmup_steps"]) / steps as f64;
        config.clip = number(&golden["clip"]);
        config.shuffle = false;
        let config = config
            .with_steps(steps)
            .with_batch_size(number(&golden["batch"]) as usize)
            .with_lr(number(&golden["lr"]));
        let objective = LanguageModeling::new(&case.loaded.model, 4);
        let never = AtomicBool::new(false);
        let outcome = train::<Autodiff<B>, _>(
            &objective,
            reft.into(),
            &case.examples,
            &[],
            &config,
            &mut Silent,
            &never,
        );
        let (losses, expected_losses) = (outcome.history.losses, numbers(&golden["losses"]));
        let deviation = max_deviation(&losses, &expected_losses);
        let (last, expected_last) = (losses[steps - 1], expected_losses[steps - 1]);
        println!(
            "{kind}: last loss {last:.4}, pyreft {expected_last:.4}; worst step deviates by {deviation:.1e}"
        );
        if flag(&golden["exact"]) {
            assert!(deviation < TRAJECTORY_TOLERANCE, "{kind}: {deviation}");
        } else {
            let deviation = (last - expected_last).abs() / expected_last;
            assert!(deviation <= LAST_LOSS_TOLERANCE, "{kind}: {last} against {expected_last}");
        }
    }
}

/// The same interventions, on the autodiff backend and back.
#[test]
fn inner_and_outer_backend_agree() {
    let case = stories260k::<Flex>();
    for Golden { kind, reft, .. } in case.goldens() {
        let tracked = Reft::<Autodiff<Flex>>::trainable(reft.clone());
        let nll = |reft: &Reft<Flex>| likelihood(&case.loaded.model, &reft.hook(), &case.examples, 4).nll;
        assert_eq!(nll(&reft), nll(&tracked.valid()), "{kind}");
    }
}

/// Makes the tests of a case, such as `stories260k::flex::forward`.
macro_rules! golden_tests {
    ($case:ident $attributes:tt $($backend:ident $backend_type:ident $tests:tt)*) => {
        mod $case {
            $(
                mod $backend {
                    use super::super::{self as golden, $backend_type};
                    golden_tests!(@each $case $backend_type $attributes $tests);
                }
            )*
        }
    };
    (@each $case:ident $backend_type:ident $attributes:tt [$($test:ident)*]) => {
        $(golden_tests!(@test $case $backend_type $attributes $test);)*
    };
    (@test $case:ident $backend_type:ident [$($attribute:tt)*] $test:ident) => {
        #[test]
        $($attribute)*
        fn $test() {
            golden::$test::<$backend_type>(golden::$case());
        }
    };
}

golden_tests!(stories260k []
    flex Flex [forward interventions gradients short_training_runs]
    ndarray NdArray [forward interventions gradients short_training_runs]
);
golden_tests!(random_llama3 [#[cfg_attr(not(shared), ignore = "needs the shared material (REFT_SHARED)")]]
    flex Flex [forward interventions gradients short_training_runs]
    ndarray NdArray [forward interventions gradients short_training_runs]
);
// The training runs of this case take minutes with ndarray.
golden_tests!(stories3m [#[cfg_attr(not(shared), ignore = "needs the shared material (REFT_SHARED)")]]
    flex Flex [forward interventions gradients short_training_runs]
    ndarray NdArray [forward interventions gradients]
);
