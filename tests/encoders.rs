//! RoBERTa, BERT and baselines against numbers of the real transformers, PyTorch and PEFT (`fixtures/encoders.py`), and
//! against themselves.

use burn::{
    backend::Autodiff,
    tensor::{Tensor, activation::softmax, backend::Backend},
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{
    Component, Head, Method, NoHook, Part, Reft, ReftConfig, Site, head::HeadValues,
    intervention::InterventionValues,
};
use reft_models::{
    Llama, LoadedModel, LoraConfig, ModelFiles, Padding, Precision, Roberta, TokenBatch, Tuning,
    peft::{self, PeftNames},
    roberta::{DropoutRates, first_token},
};
use reft_train::{
    Learned, Task,
    classify::{Classification, predict},
    data::Row,
    metrics::Metric,
    task::{Labelled, read_task_rows},
    tiny,
    trainer::step_gradients,
};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use system_tests::{moved, on_every_backend, perturb, relative, shared, uphill, values};

/// Hidden states and logits, absolute.
const TOLERANCE: f32 = 1e-4;
/// Gradients, relative to their norm.
const GRADIENT_TOLERANCE: f64 = 1e-3;

type Encoder<B> = LoadedModel<B, Roberta<B>>;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

fn get<T: serde::de::DeserializeOwned>(value: &Value, key: &str) -> T {
    serde_json::from_value(value[key].clone()).expect(key)
}

fn load<B: Backend>(folder: PathBuf) -> Encoder<B> {
    LoadedModel::load(&ModelFiles::Folder(folder), "encoder", Precision::default(), &Default::default())
        .expect("loaded")
}

fn read_tensors(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = fs::read(path).expect("readable");
    let file = SafeTensors::deserialize(&bytes).expect("safetensors");
    let floats =
        |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    file.iter().map(|(name, view)| (name.to_string(), floats(view.data()))).collect()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max)
}

/// Hidden states of the real tokens of every row, without interventions.
fn states<B: Backend>(model: &Roberta<B>, rows: &[Vec<u32>], types: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let tokens = TokenBatch::new(rows, Padding::Right).with_types(types);
    let hidden = model.forward(&tokens, DropoutRates::OFF, &NoHook);
    let [_, seq, d_model] = hidden.dims();
    let flat = values(hidden);
    rows.iter()
        .enumerate()
        .map(|(i, row)| flat[i * seq * d_model..][..row.len() * d_model].to_vec())
        .collect()
}

/// A model's own classification head.
fn own_head<B: Backend>(loaded: &Encoder<B>) -> Option<Head<B>> {
    let head = loaded.head.clone()?;
    let outputs = head.out_bias.len();
    Some(loaded.model.config().head(outputs, None).with_values(head, &Default::default()))
}

/// No interventions.
fn none<B: Backend>(hidden_size: usize) -> Reft<B> {
    reft(hidden_size, 0, 1, |_| unreachable!("no layer"))
}

fn reft<B: Backend>(
    hidden_size: usize,
    n_layers: usize,
    rank: usize,
    values: impl Fn(usize) -> InterventionValues,
) -> Reft<B> {
    let config = ReftConfig {
        method: Method::Loreft,
        rank,
        hidden_size,
        sites: (0..n_layers).map(|layer| Site { layer, component: Component::BlockOutput }).collect(),
        positions: "f3".parse().expect("positions"),
        tied: true,
        activation: Default::default(),
        dropout: 0.0,
    };
    config.with_values(|site: Site, _: Part| values(site.layer), &Default::default()).expect("valid")
}

fn labelled(rows: &[Vec<u32>], types: &[Vec<u32>], targets: &[f64]) -> Vec<Labelled> {
    let parts = rows.iter().zip(types).zip(targets);
    parts
        .map(|((row, types), target)| Labelled { tokens: row.clone(), types: types.clone(), target: *target })
        .collect()
}

fn task(labels: &[&str]) -> Task {
    let row = |label: &str| {
        let text = format!("{{\"text\": \"a\", \"label\": {label:?}}}");
        reft_train::data::parse_rows(&text, "d").expect("a row").remove(0)
    };
    let rows: Vec<Row> = labels.iter().map(|label| row(label)).collect();
    let name = if labels.len() > 1 { "classification" } else { "regression" };
    Task::discover(name, None, None, &rows).expect("a task")
}

fn objective<'a, B: Backend>(loaded: &'a Encoder<B>, task: &'a Task) -> Classification<'a, B> {
    Classification {
        model: &loaded.model,
        tensors: &loaded.tensors,
        task,
        selection: task.selection(None).expect("a metric"),
        rates: DropoutRates::OFF,
        eval_batch_size: 4,
    }
}

/// Every form of a checkpoint gives transformers' states, and with its own head its logits.
fn checkpoints_are_those_of_transformers<B: Backend>() {
    for name in ["roberta", "roberta-bare", "xlm-roberta", "bert"] {
        let loaded: Encoder<B> = load(fixture(&format!("encoders/{name}")));
        let expected = json(&fixture(&format!("encoders/{name}/expected.json")));
        let rows: Vec<Vec<u32>> = get(&expected, "rows");
        let types: Vec<Vec<u32>> = get::<Vec<Vec<u32>>>(&expected, "types")
            .into_iter()
            .zip(&rows)
            .map(|(types, row)| types[..row.len()].to_vec())
            .collect();
        let hidden: Vec<Vec<f32>> = get(&expected, "hidden");
        let batched = states(&loaded.model, &rows, &types);
        for (idx, wanted) in hidden.iter().enumerate() {
            let single = &states(&loaded.model, &rows[idx..=idx], &types[idx..=idx])[0];
            for found in [&batched[idx], single] {
                let deviation = worst(found, wanted);
                assert!(deviation < 1e-5, "{name}, row {idx}: {deviation}");
            }
        }
        let head = own_head(&loaded);
        assert_eq!(head.is_some(), expected.get("logits").is_some(), "{name}");
        let Some(head) = head else { continue };
        let learned = Learned { reft: none(16), tuned: None, head: Some(head) };
        let examples = labelled(&rows, &types, &[0.0; 3]);
        let logits = predict(&loaded.model, &loaded.tensors, &learned, &examples, 2);
        for (found, wanted) in logits.iter().zip(get::<Vec<Vec<f32>>>(&expected, "logits")) {
            assert!(worst(found, &wanted) < 1e-5, "{name}: {found:?} against {wanted:?}");
        }
    }
}

/// The 32 real texts: their rows as the task reads them, as tokens.
fn real_texts<B: Backend>(loaded: &Encoder<B>, expected: &Value) -> Vec<Labelled> {
    let mut files: BTreeMap<String, (Task, Vec<Row>)> = BTreeMap::new();
    let named = expected["texts"].as_array().expect("texts");
    let examples = named.iter().map(|text| {
        let file: String = get(text, "file");
        let (task, rows) = files.entry(file.clone()).or_insert_with(|| {
            let name = if file.contains("SST-2") { "glue/sst2" } else { "glue/rte" };
            let rows = read_task_rows(name, &shared(&file)).expect("rows");
            (Task::discover(name, None, None, &rows).expect("a task"), rows)
        });
        let row = std::slice::from_ref(&rows[get::<usize>(text, "row")]);
        let example = task.encode(row, &loaded.tokenizer, 512, false).expect("encoded").examples.remove(0);
        assert_eq!(example.tokens.len(), get::<usize>(text, "tokens"), "{text}");
        example
    });
    examples.collect()
}

fn a_real_model_gives_the_states_of_transformers<B: Backend>() {
    let loaded: Encoder<B> = load(shared("models/minilm-roberta"));
    let expected = json(&fixture("encoders/minilm/expected.json"));
    let hidden = read_tensors(&fixture("encoders/minilm/hidden.safetensors"));
    let examples = real_texts(&loaded, &expected);
    let rows: Vec<Vec<u32>> = examples.iter().map(|e| e.tokens.clone()).collect();
    let types: Vec<Vec<u32>> = examples.iter().map(|e| e.types.clone()).collect();
    let sample = |state: &[f32]| -> Vec<f32> {
        let tokens = state.chunks(384).enumerate();
        tokens
            .flat_map(|(t, s)| s.iter().skip(7 * t % 24).step_by(24).copied().collect::<Vec<f32>>())
            .collect()
    };
    let mut deviations = [0f32; 2];
    for (begin, chunk) in rows.chunks(8).enumerate().map(|(i, chunk)| (8 * i, chunk)) {
        let batched = states(&loaded.model, chunk, &types[begin..begin + chunk.len()]);
        for (offset, batched) in batched.iter().enumerate() {
            let idx = begin + offset;
            let single = &states(&loaded.model, &rows[idx..=idx], &types[idx..=idx])[0];
            for (found, deviation) in [batched, single].into_iter().zip(&mut deviations) {
                let first = worst(&found[..384], &hidden[&format!("{idx}.first")]);
                let others = worst(&sample(found), &hidden[&format!("{idx}.sample")]);
                *deviation = deviation.max(first).max(others);
            }
        }
    }
    println!("worst deviation of hidden states: batched {:.1e}, single {:.1e}", deviations[0], deviations[1]);
    assert!(deviations.iter().all(|d| *d < TOLERANCE), "{deviations:?}");
}

/// The values that `fixtures/encoders.py` makes as well.
fn formula(index: usize, n: usize) -> Vec<f32> {
    (0..n).map(|i| (0.05 * (0.7 * i as f64 + index as f64).sin()) as f32).collect()
}

/// Gradients of one batch of real texts, for interventions and head.
fn gradients_are_those_of_pytorch<B: Backend>() {
    let loaded: Encoder<B> = load(shared("models/minilm-roberta"));
    let expected = json(&fixture("encoders/minilm/expected.json"));
    let golden = read_tensors(&fixture("encoders/minilm/grads.safetensors"));
    let (d, rank, n_layers) = (384, 4, 6);
    let reft: Reft<B> = reft(d, n_layers, rank, |layer| InterventionValues {
        weight: Some(formula(layer, rank * d)),
        bias: formula(10 + layer, rank),
        projection: golden[&format!("{layer}.basis")].clone(),
    });
    let shapes = loaded.model.config().head(2, Some(0.0)).tensors();
    let mut head = shapes.iter().enumerate().map(|(k, (_, shape))| formula(20 + k, shape.iter().product()));
    let head = HeadValues::from_list(std::array::from_fn(|_| head.next().expect("four tensors")));
    let head = loaded.model.config().head(2, Some(0.0)).with_values(head, &Default::default());
    let learned = Learned::<Autodiff<B>>::trainable(Learned { reft, tuned: None, head: Some(head) });

    let mut examples = real_texts(&loaded, &expected);
    examples.truncate(8);
    for (example, label) in examples.iter_mut().zip(get::<Vec<f64>>(&expected, "labels")) {
        example.target = label;
    }
    let task = task(&["no", "yes"]);
    let step = step_gradients(&objective(&loaded, &task), &learned, &[examples.iter().collect()], false, 0);
    let n = step.label_tokens as f32;
    assert!((step.loss_sum / f64::from(n) - get::<f64>(&expected, "loss")).abs() < 1e-5);
    let mut worst = 0f64;
    let mut check = |name: String, found: Vec<f32>| {
        let found: Vec<f32> = found.iter().map(|x| x / n).collect();
        let error = relative(&found, &golden[&name]);
        assert!(error < GRADIENT_TOLERANCE, "{name}: {error}");
        worst = worst.max(error);
    };
    for (edit, basis) in learned.reft.edits().iter().zip(&step.basis_grads) {
        let (layer, intervention) = (edit.site().layer, edit.intervention());
        let weight: Tensor<B, 2> =
            step.grads.get(intervention.weight().expect("has W").id).expect("a gradient");
        check(format!("{layer}.weight"), values(weight));
        let bias: Tensor<B, 1> = step.grads.get(intervention.bias().id).expect("a gradient");
        check(format!("{layer}.bias"), values(bias));
        check(format!("{layer}.projection"), values(basis.clone().expect("a gradient").transpose()));
    }
    let (dense, dense_bias, out, out_bias) = learned.head.as_ref().expect("a head").parameters();
    let dense: Vec<f32> = values::<B, 2>(step.grads.get(dense.id).expect("a gradient"));
    check("dense.weight".into(), dense.chunks(d).step_by(16).flatten().copied().collect());
    check("dense.bias".into(), values::<B, 1>(step.grads.get(dense_bias.id).expect("a gradient")));
    check("out_proj.weight".into(), values::<B, 2>(step.grads.get(out.id).expect("a gradient")));
    check("out_proj.bias".into(), values::<B, 1>(step.grads.get(out_bias.id).expect("a gradient")));
    println!("worst relative deviation of gradients: {worst:.1e}");
}

/// LoRA adapters that PEFT made give PEFT's logits, and are written again as PEFT did.
fn lora_is_that_of_peft<B: Backend>() {
    let device = Default::default();
    let again = tempfile::tempdir().expect("a folder");
    for name in ["roberta", "llama"] {
        let folder = fixture(&format!("peft/{name}"));
        let expected = json(&folder.join("expected.json"));
        let (rows, wanted): (Vec<Vec<u32>>, Vec<Vec<f32>>) =
            (get(&expected, "rows"), get(&expected, "logits"));
        let tuning = Tuning::Lora(peft::read_lora_config(&folder).expect("LoRA's settings"));
        let (tuned, names, head, found) = if name == "roberta" {
            let loaded: Encoder<B> = load(fixture("encoders/roberta"));
            let names = PeftNames::classifier(loaded.model.config());
            let tuned = peft::load(&folder, &tuning, &loaded.tensors, names, &device).expect("loaded");
            // PEFT keeps a copy of the head in its file.
            let tensors = read_tensors(&folder.join("adapter_model.safetensors"));
            let config = loaded.model.config().head(3, None);
            let part = |(name, _): (&str, _)| tensors[&format!("base_model.model.classifier.{name}")].clone();
            let head = config.with_values::<B>(HeadValues::from_list(config.tensors().map(part)), &device);
            let types: Vec<Vec<u32>> = rows.iter().map(|row| vec![0; row.len()]).collect();
            let learned = Learned { reft: none(16), tuned: Some(tuned.clone()), head: Some(head.clone()) };
            let examples = labelled(&rows, &types, &[0.0; 3]);
            (tuned, names, Some(head), predict(&loaded.model, &loaded.tensors, &learned, &examples, 2))
        } else {
            let loaded: LoadedModel<B> =
                LoadedModel::load(&tiny::model(), name, Precision::default(), &device).expect("loaded");
            let names = PeftNames::LANGUAGE_MODEL;
            let tuned = peft::load(&folder, &tuning, &loaded.tensors, names, &device).expect("loaded");
            let model: Llama<B> = tuned.model(loaded.model.config(), &loaded.tensors);
            let logits = rows.iter().map(|row| {
                let hidden = model.forward(&TokenBatch::new(&[row], Padding::Right), None, &NoHook);
                values(model.logits(hidden, &[row.len() - 1]))
            });
            let found = logits.collect();
            (tuned, names, None, found)
        };
        for (found, wanted) in found.iter().zip(&wanted) {
            let deviation = worst(found, wanted);
            assert!(deviation < TOLERANCE, "{name}: {deviation}");
        }
        peft::save(again.path(), &tuned, head.as_ref(), "m", names).expect("saved");
        let (ours, theirs) =
            (again.path().join("adapter_model.safetensors"), folder.join("adapter_model.safetensors"));
        assert_eq!(read_tensors(&ours), read_tensors(&theirs), "{name}");
        let (ours, theirs) =
            (json(&again.path().join("adapter_config.json")), json(&folder.join("adapter_config.json")));
        for (key, ours) in ours.as_object().expect("an object") {
            match key.as_str() {
                "base_model_name_or_path" | "target_modules" | "modules_to_save" => {}
                "r" | "lora_alpha" => assert_eq!(ours.as_f64(), theirs[key].as_f64(), "{name}: {key}"),
                _ => assert_eq!(ours, &theirs[key], "{name}: {key}"),
            }
        }
    }
}

/// Every way of training, with or without interventions, has the gradient of its own loss: along the gradient, the loss
/// rises as steeply as the gradient is long.
fn gradients_of_every_method_are_slopes<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let loaded: Encoder<B> = load(fixture("encoders/bert"));
    let rows: Vec<Vec<u32>> =
        [7, 4, 9].iter().map(|len| (0..*len).map(|_| rng.random_range(4..60)).collect()).collect();
    let types: Vec<Vec<u32>> =
        rows.iter().map(|row| (0..row.len() as u32).map(|i| i / 4 % 2).collect()).collect();
    let lora = LoraConfig { rank: 2, alpha: 4.0, dropout: 0.0, targets: Vec::new() };
    let tunings = [None, Some(Tuning::Bitfit), Some(Tuning::Full), Some(Tuning::Lora(lora))];
    for (labels, targets) in [(vec!["a", "b", "c"], [0.0, 2.0, 1.0]), (vec!["0.5"], [0.3, -1.0, 0.7])] {
        let task = task(&labels);
        let examples = labelled(&rows, &types, &targets);
        let objective = objective(&loaded, &task);
        for tuning in &tunings {
            let head =
                loaded.model.config().head(task.outputs(), Some(0.0)).init(&mut rng, &Default::default());
            let tuned = tuning.as_ref().map(|tuning| {
                let start = tuning.init(&loaded.tensors, &mut rng, &Default::default()).expect("fits");
                perturb(start, &mut rng)
            });
            let reft = if tuned.is_some() {
                none(16)
            } else {
                let random =
                    |n: usize, seed: usize| formula(seed, n).iter().map(|x| 8.0 * x).collect::<Vec<f32>>();
                reft(16, 2, 2, |layer| InterventionValues {
                    weight: Some(random(32, layer)),
                    bias: random(2, 5),
                    projection: (0..32).map(|i| f32::from(u8::from(i % 17 == 0))).collect(),
                })
            };
            let learned: Learned<B> = Learned { reft, tuned, head: Some(head) };
            let tracked = Learned::<Autodiff<B>>::trainable(learned.clone());
            let step = step_gradients(&objective, &tracked, &[examples.iter().collect()], false, 0);
            let (uphill, slope) = uphill(&tracked, &step.grads);
            let loss = |by: f32| {
                let moved = moved(&learned, &uphill, by);
                let moved = Learned::<Autodiff<B>>::trainable(moved);
                step_gradients(&objective, &moved, &[examples.iter().collect()], false, 0).loss_sum
            };
            let h = 2e-2;
            let difference = (loss(h) - loss(-h)) / (2.0 * f64::from(h));
            let error = (slope - difference).abs() / slope;
            assert!(error < 1e-2, "{tuning:?}, {labels:?}: {slope} against {difference}");
        }
    }
}

/// What training sees of a baseline is what evaluation sees, and what is saved is what is loaded.
fn baselines_survive_their_files<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let device = Default::default();
    for name in ["bert", "roberta-bare"] {
        let loaded: Encoder<B> = load(fixture(&format!("encoders/{name}")));
        let names = PeftNames::classifier(loaded.model.config());
        let rows = vec![vec![2, 9, 17, 44, 3], vec![2, 8, 3]];
        let examples = labelled(&rows, &[vec![0; 5], vec![0; 3]], &[0.0, 1.0]);
        let task = task(&["a", "b"]);
        let head = loaded.model.config().head(2, Some(0.0)).init::<B>(&mut rng, &device);
        let lora =
            LoraConfig { rank: 3, alpha: 3.0, dropout: 0.5, targets: vec!["query".into(), "dense".into()] };
        for tuning in [Tuning::Bitfit, Tuning::Full, Tuning::Lora(lora)] {
            let start = tuning.init(&loaded.tensors, &mut rng, &device).expect("fits");
            let plain = Learned { reft: none(16), tuned: None, head: Some(head.clone()) };
            let outputs =
                |learned: &Learned<B>| predict(&loaded.model, &loaded.tensors, learned, &examples, 1);
            let with = |tuned| Learned { tuned: Some(tuned), ..plain.clone() };
            // As training starts, nothing is changed.
            assert_eq!(outputs(&with(start.clone())), outputs(&plain), "{name}, {tuning:?}");
            let trained = with(perturb(start, &mut rng));
            let before = outputs(&trained);
            assert_ne!(before, outputs(&plain));
            let folder = tempfile::tempdir().expect("a folder");
            let tuned = trained.tuned.as_ref().expect("weights");
            peft::save(folder.path(), tuned, trained.head.as_ref(), "m", names).expect("saved");
            let tuned = peft::load(folder.path(), &tuning, &loaded.tensors, names, &device).expect("loaded");
            assert_eq!(outputs(&with(tuned)), before, "{name}, {tuning:?}");
            if !matches!(tuning, Tuning::Lora(_)) {
                let tracked = Learned::<Autodiff<B>>::trainable(trained.clone());
                let members: Vec<&Labelled> = examples.iter().collect();
                let loss =
                    step_gradients(&objective(&loaded, &task), &tracked, &[members], false, 0).loss_sum;
                let expected: f64 = (before.iter().zip(&examples))
                    .map(|(row, e)| {
                        let row = Tensor::<B, 1>::from_floats(row.as_slice(), &device);
                        -f64::from(values(softmax(row, 0))[e.target as usize]).ln()
                    })
                    .sum();
                assert!((loss - expected).abs() < 1e-4, "{name}, {tuning:?}: {loss} against {expected}");
            }
        }
    }
}

/// Padding, the batch and the tape change nothing; blocks below the first edit are not on the tape.
fn padding_and_tape_change_nothing<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for name in ["roberta", "bert"] {
        let loaded: Encoder<B> = load(fixture(&format!("encoders/{name}")));
        let rows: Vec<Vec<u32>> =
            [9, 3, 1, 12].iter().map(|len| (0..*len).map(|_| rng.random_range(4..60)).collect()).collect();
        let types: Vec<Vec<u32>> = rows.iter().map(|row| vec![0; row.len()]).collect();
        let random = |n: usize, seed: usize| formula(seed, n).iter().map(|x| 20.0 * x).collect::<Vec<f32>>();
        let reft: Reft<B> = reft(16, 2, 2, |layer| InterventionValues {
            weight: Some(random(32, layer)),
            bias: random(2, 5),
            projection: (0..32).map(|i| f32::from(u8::from(i % 17 == 0))).collect(),
        });
        let head = loaded.model.config().head(3, Some(0.0)).init::<B>(&mut rng, &Default::default());
        let learned = Learned { reft: reft.clone(), tuned: None, head: Some(head) };
        let examples = labelled(&rows, &types, &[0.0; 4]);
        let outputs = |batch_size| predict(&loaded.model, &loaded.tensors, &learned, &examples, batch_size);
        let (batched, single) = (outputs(4), outputs(1));
        for (a, b) in batched.iter().zip(&single) {
            assert!(worst(a, b) < 1e-5, "{name}: {a:?} against {b:?}");
        }
        let tokens = TokenBatch::new(&rows, Padding::Right).with_types(&types);
        let lens: Vec<usize> = rows.iter().map(Vec::len).collect();
        let edited = reft.config().positions.rows(&tokens.prompt_spans(&lens), tokens.seq);
        let plain = loaded.model.forward(&tokens, DropoutRates::OFF, &reft.hook(&reft.bases(), &edited));
        let trainable = Reft::<Autodiff<B>>::trainable(reft.clone());
        let hook = trainable.hook(&trainable.bases(), &edited);
        let pass = |first| loaded.model.pass::<Autodiff<B>>(&tokens, DropoutRates::OFF, first, 0);
        let tracked = pass(reft.first_layer()).forward(&hook);
        assert!(relative(&values(tracked.inner()), &values(plain)) < 1e-6);
        assert!(!pass(None).forward(&NoHook).is_require_grad());
        // Dropout acts in training, and differently each time.
        let rates = DropoutRates { hidden: 0.5, attention: 0.5 };
        let dropped = || values(first_token(loaded.model.forward(&tokens, rates, &NoHook)));
        assert_ne!(dropped(), dropped());
    }
}

/// A pair is joined by the tokenizer's own template, whatever padding and truncation its file carries.
#[test]
fn pairs_are_joined_as_the_tokenizer_says() {
    let tokenizer = |name: &str| load::<Flex>(fixture(&format!("encoders/{name}"))).tokenizer;
    let (a, b) = ("the cat sleeps in the garden", "a dog runs");
    let encode = |name: &str, second, max| tokenizer(name).encode_pair(a, second, max).expect("encoded");
    let (ids, types, cut) = encode("roberta", Some(b), 40);
    assert_eq!((ids.len(), cut), (6 + 3 + 4, false));
    assert_eq!((ids[0], &ids[7..9], ids[12]), (2, &[3, 3][..], 3));
    assert!(types.iter().all(|t| *t == 0));
    let (ids, types, _) = encode("bert", Some(b), 40);
    assert_eq!((ids.len(), types.iter().sum::<u32>()), (6 + 3 + 3, 4));
    // The longer text is cut first, and the separators stay.
    let (ids, _, cut) = encode("roberta", Some(b), 10);
    assert_eq!((ids.len(), ids[9], cut), (10, 3, true));
    assert_eq!(&ids[4..6], [3, 3]);
    assert_eq!(encode("roberta", None, 5).0.len(), 5);
}

#[test]
fn a_metric_of_another_task_is_refused() {
    let error = task(&["a", "b"]).selection(Some(Metric::Pearson)).expect_err("another task's");
    assert!(error.to_string().contains("accuracy, f1, matthews"), "{error}");
}

on_every_backend!(
    checkpoints_are_those_of_transformers,
    #[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
    a_real_model_gives_the_states_of_transformers,
    #[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
    gradients_are_those_of_pytorch,
    lora_is_that_of_peft,
    gradients_of_every_method_are_slopes,
    baselines_survive_their_files,
    padding_and_tape_change_nothing,
);
