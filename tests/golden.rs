//! Numbers of the real transformers and pyreft.

use burn::{
    backend::Autodiff,
    module::AutodiffModule,
    tensor::{Tensor, backend::Backend},
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use reft_core::{Component, Method, Part, Reft, ReftConfig, Site, intervention::InterventionValues};
use reft_models::{GenerateConfig, LoadedModel, ModelFiles, Precision, generate};
use reft_train::{
    DataSet, Example, LanguageModelling, Template, TrainConfig,
    data::read_rows,
    eval::{generate_all, likelihood},
    recipe::TrainSection,
    trainer::{Silent, step_gradients, train},
};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{fs, ops::ControlFlow, path::Path, sync::atomic::AtomicBool};
use system_tests::{relative, shared, values};

/// NLL, in nats per token.
const NLL_TOLERANCE: f64 = 2e-4;
/// Gradients, relative to their norm.
const GRADIENT_TOLERANCE: f64 = 1e-3;
/// Loss of each step of a short training run.
const TRAJECTORY_TOLERANCE: f64 = 5e-4;

const CASES: [(&str, &str); 3] = [
    ("stories3m", "stories3m"),
    ("stories260k", "stories260k"),
    ("random-llama3", "random-llama3-bf16-sharded"),
];
const KINDS: [&str; 7] = ["loreft", "loreft-untied", "nodireft", "noreft", "consreft", "lobireft", "direft"];

struct Case<B: Backend> {
    loaded: LoadedModel<B>,
    examples: Vec<Example>,
    folder: std::path::PathBuf,
    forward: Value,
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

fn case<B: Backend>(name: &str, model: &str) -> Case<B> {
    let (folder, model) = (shared(&format!("golden/{name}")), shared(&format!("models/{model}")));
    let loaded =
        LoadedModel::load(&ModelFiles::Folder(model), name, Precision::default(), &Default::default())
            .expect("loaded");
    let forward = json(&folder.join("forward.json"));
    let max_length = forward["max_len"].as_u64().expect("a number") as usize;
    let rows = read_rows(&folder.join("data.jsonl")).expect("rows");
    let set =
        DataSet::encode(&rows, &Template::Alpaca, &loaded.tokenizer, max_length, name).expect("encoded");
    Case { loaded, examples: set.examples, folder, forward }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|x| x as u32).collect()
}

fn greedy() -> GenerateConfig {
    GenerateConfig { max_new_tokens: 24, stop_ids: vec![2], ..Default::default() }
}

fn forward<B: Backend>() {
    for (name, model) in CASES {
        let case = case::<B>(name, model);
        let rows = case.forward["rows"].as_array().expect("rows");
        let found = likelihood(&case.loaded.model, None, &case.examples, 4);
        let prompts: Vec<Vec<u32>> = case.examples.iter().map(|e| e.prompt().to_vec()).collect();
        let texts = generate_all(&case.loaded.model, None, &prompts, &greedy(), 5).expect("generated");
        let mut worst = 0f64;
        for (idx, row) in rows.iter().enumerate() {
            assert_eq!(case.examples[idx].tokens, ids(&row["input_ids"]), "{name}, row {idx}: tokens");
            assert_eq!(
                case.examples[idx].prompt_len as u64,
                row["prompt_tokens"].as_u64().expect("a number")
            );
            let nll = found.rows[idx].nll.expect("has labels");
            worst = worst.max((nll - row["nll"].as_f64().expect("a number")).abs());
            assert_eq!(texts[idx], ids(&row["greedy"]), "{name}, row {idx}: greedy tokens");
        }
        println!("{name}: worst NLL deviation {worst:.1e}");
        assert!(worst < NLL_TOLERANCE, "{name}: {worst}");
    }
}

#[test]
#[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
fn forward_flex() {
    forward::<Flex>();
}

#[test]
#[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
fn forward_ndarray() {
    forward::<NdArray>();
}

fn method(kind: &str) -> Method {
    match kind {
        "loreft" => Method::Loreft,
        "nodireft" => Method::Direft,
        "noreft" => Method::Noreft,
        "direft" => Method::Orthodireft,
        "consreft" => Method::Consreft,
        "lobireft" => Method::Lobireft,
        other => panic!("unknown kind {other}"),
    }
}

fn tensor(file: &SafeTensors, name: &str) -> Option<Vec<f32>> {
    let view = file.tensor(name).ok()?;
    Some(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

impl<B: Backend> Case<B> {
    /// The kinds of intervention that the case has numbers of, and their folders.
    fn kinds(&self) -> Vec<(&'static str, std::path::PathBuf)> {
        KINDS.map(|kind| (kind, self.folder.join(kind))).into_iter().filter(|(_, f)| f.exists()).collect()
    }

    /// The interventions of one of them at their initial values, and the expected numbers.
    fn reft(&self, folder: &Path) -> (Reft<B>, Value) {
        golden_reft(folder, self.loaded.model.config().hidden_size)
    }
}

/// The interventions of a golden folder, at their initial values.
fn golden_reft<B: Backend>(folder: &Path, hidden_size: usize) -> (Reft<B>, Value) {
    let expected = json(&folder.join("expected.json"));
    let layers = numbers(&expected["layers"]);
    let config = ReftConfig {
        method: method(expected["kind"].as_str().expect("text")),
        rank: expected["rank"].as_u64().expect("a number") as usize,
        hidden_size,
        sites: layers
            .iter()
            .map(|l| Site { layer: *l as usize, component: Component::BlockOutput })
            .collect(),
        positions: expected["positions"].as_str().expect("text").parse().expect("positions"),
        tied: expected["tied"].as_bool().expect("a flag"),
        activation: Default::default(),
        dropout: 0.0,
    };
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
    let reft = config.with_values(values, &Default::default()).expect("golden values fit");
    (reft, expected)
}

fn with_interventions<B: Backend>() {
    for (name, model) in CASES {
        let case = case::<B>(name, model);
        for (kind, folder) in case.kinds() {
            let (reft, expected) = case.reft(&folder);
            let found = likelihood(&case.loaded.model, Some(&reft), &case.examples, 4);
            let worst = (found.rows.iter().zip(numbers(&expected["nll"])))
                .map(|(row, nll)| (row.nll.expect("has labels") - nll).abs())
                .fold(0.0, f64::max);
            println!("{name}/{kind}: worst NLL deviation {worst:.1e}");
            assert!(worst < NLL_TOLERANCE, "{name}/{kind}: {worst}");
            let wanted: Vec<Vec<u32>> =
                expected["greedy"].as_array().expect("rows").iter().map(ids).collect();
            let prompts: Vec<Vec<u32>> =
                case.examples[..wanted.len()].iter().map(|e| e.prompt().to_vec()).collect();
            let go_on = |_, _| ControlFlow::Continue(());
            let texts =
                generate(&case.loaded.model, &prompts, Some(&reft), &greedy(), go_on).expect("generated");
            for (idx, (text, wanted)) in texts.iter().zip(&wanted).enumerate() {
                assert_eq!(&text.tokens, wanted, "{name}/{kind}, row {idx}: greedy tokens");
            }
        }
    }
}

#[test]
#[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
fn interventions_flex() {
    with_interventions::<Flex>();
}

#[test]
#[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
fn interventions_ndarray() {
    with_interventions::<NdArray>();
}

/// Gradients of the mean loss of the first four rows, with respect to `W`, `b` and `P` (or `R`) itself.
fn gradients<B: Backend>() {
    for (name, model) in CASES {
        let case = case::<B>(name, model);
        for (kind, folder) in case.kinds() {
            let (reft, expected) = case.reft(&folder);
            let reft = Reft::<Autodiff<B>>::trainable(reft);
            let bytes = fs::read(folder.join("grads.safetensors")).expect("readable");
            let file = SafeTensors::deserialize(&bytes).expect("safetensors");
            let examples: Vec<&Example> = case.examples[..4].iter().collect();
            let objective = LanguageModelling::new(&case.loaded.model, 4);
            let step = step_gradients(&objective, &reft.clone().into(), &[examples], false, 0);
            let loss = step.loss_sum / step.label_tokens as f64;
            assert!((loss - expected["batch_loss"].as_f64().expect("a number")).abs() < NLL_TOLERANCE);
            let mut worst = 0f64;
            let mut check = |what: &str, found: Vec<f32>, wanted: Option<Vec<f32>>| {
                let found: Vec<f32> = found.iter().map(|x| x / step.label_tokens as f32).collect();
                let error = relative(&found, &wanted.unwrap_or_else(|| panic!("{name}/{kind}: no {what}")));
                assert!(error < GRADIENT_TOLERANCE, "{name}/{kind}/{what}: {error}");
                worst = worst.max(error);
            };
            for (edit, basis) in reft.edits().iter().zip(&step.basis_grads) {
                let prefix = format!("{}.{}", edit.site().layer, edit.part().name());
                let wanted = |part: &str| tensor(&file, &format!("{prefix}.{part}"));
                let intervention = edit.intervention();
                if let Some(weight) = intervention.weight() {
                    let grad: Tensor<B, 2> = step.grads.get(weight.id).expect("has a gradient");
                    check(&format!("{prefix}.source.weight"), values(grad), wanted("source.weight"));
                }
                let grad: Tensor<B, 1> = step.grads.get(intervention.bias().id).expect("has a gradient");
                check(&format!("{prefix}.source.bias"), values(grad), wanted("source.bias"));
                if let Some(grad) = wanted("projection") {
                    let basis = basis.clone().expect("has a gradient");
                    check(&format!("{prefix}.projection"), values(basis.transpose()), Some(grad));
                }
            }
            println!("{name}/{kind}: worst relative gradient deviation {worst:.1e}");
        }
    }
}

#[test]
#[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
fn gradients_flex() {
    gradients::<Flex>();
}

#[test]
#[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
fn gradients_ndarray() {
    gradients::<NdArray>();
}

/// The golden folder's short AdamW run, step by step where it does not depend on how R is parametrised.
#[test]
#[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
fn short_training_runs() {
    for (name, model) in CASES {
        let case = case::<Flex>(name, model);
        for (kind, folder) in case.kinds() {
            let (reft, expected) = case.reft(&folder);
            let golden = &expected["train"];
            let number = |key: &str| golden[key].as_f64().expect("a number");
            let steps = number("steps") as usize;
            let section = TrainSection {
                steps: Some(steps),
                batch_size: number("batch") as usize,
                lr: number("lr"),
                warmup: number("warmup_steps") / steps as f64,
                clip: number("clip"),
                shuffle: false,
                ..TrainSection::default()
            };
            let config = TrainConfig::from(section);
            let never = AtomicBool::new(false);
            let trained = train::<Autodiff<Flex>, _>(
                &LanguageModelling::new(&case.loaded.model, 4),
                reft.into(),
                &case.examples,
                &[],
                &config,
                &mut Silent,
                &never,
            );
            let wanted = numbers(&golden["losses"]);
            let exact = golden["exact"].as_bool().expect("a flag");
            let worst = trained.losses.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let (last, wanted_last) = (trained.losses[steps - 1], wanted[steps - 1]);
            println!(
                "{name}/{kind}: last loss {last:.4}, pyreft {wanted_last:.4}; worst step differs by {worst:.1e}"
            );
            if exact {
                assert!(worst < TRAJECTORY_TOLERANCE, "{name}/{kind}: {worst}");
            }
            assert!(last <= wanted_last * 1.01, "{name}/{kind}: {last} against {wanted_last}");
        }
    }
}

/// The same interventions in Burn's training wrapper and out of it.
#[test]
#[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
fn inner_and_outer_backend_agree() {
    let case = case::<Flex>("stories260k", "stories260k");
    let (reft, _) = golden_reft::<Flex>(&case.folder.join("loreft"), 64);
    let outer = Reft::<Autodiff<Flex>>::trainable(reft.clone());
    let values = |reft: &Reft<Flex>| likelihood(&case.loaded.model, Some(reft), &case.examples, 4).nll;
    assert_eq!(values(&reft), values(&outer.valid()));
}
