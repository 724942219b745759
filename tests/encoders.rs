//! RoBERTa, BERT and the baselines, against numbers of transformers, PyTorch and PEFT (made by `fixtures/encoders.py`) and
//! against other ways to compute the same.

use burn::{
    backend::Autodiff,
    tensor::{
        DType, Tensor,
        activation::{log_softmax, softmax},
    },
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{
    Head, NoHook, Packing, Part, Reft, ReftConfig, Site, head::HeadValues, host_values,
    intervention::InterventionValues,
};
use reft_kernels::Kernels;
use reft_models::{
    DropoutRates, Llama, LoadedModel, LoraConfig, ModelFiles, Padding, Precision, ReusedStates, Roberta,
    TokenBatch, Tuning,
    peft::{self, PeftNames},
    roberta::select_rows,
};
use reft_train::{
    Classification, TaskSpec, Trainable,
    data::{ClassifierBatch, LabeledText, OnBadRow, Row, parse_rows},
    metrics::Metric,
    step_gradients,
    tasks::{predict, read_task_rows},
    tiny,
};
use safetensors::SafeTensors;
use serde_json::Value;
use std::{
    cell::RefCell,
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};
use system_tests::{
    LoadedLlama, Recorder, all_sites, direction_and_norm, fixture, gradient, is_tracked, load_llama,
    max_deviation, moved, on_every_backend, perturb, relative_error, shared,
};

/// Hidden states and logits, absolute.
const TOLERANCE: f64 = 1e-4;
/// Gradients, relative to their norm.
const GRADIENT_TOLERANCE: f64 = 1e-3;

type Encoder<B> = LoadedModel<B, Roberta<B>>;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

fn get<T: serde::de::DeserializeOwned>(value: &Value, key: &str) -> T {
    serde_json::from_value(value[key].clone()).expect(key)
}

fn load<B: Kernels>(folder: PathBuf) -> Encoder<B> {
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

/// The hidden states of each row without those of padding, without interventions.
fn states<B: Kernels>(model: &Roberta<B>, rows: &[Vec<u32>], types: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let tokens = TokenBatch::new(rows, Padding::Right).with_types(types);
    let hidden = model.forward(&tokens, DropoutRates::OFF, &NoHook);
    let [_, seq, d_model] = hidden.dims();
    let flat = host_values(hidden);
    rows.iter()
        .enumerate()
        .map(|(i, row)| flat[i * seq * d_model..][..row.len() * d_model].to_vec())
        .collect()
}

/// The classification head of a checkpoint.
fn own_head<B: Kernels>(loaded: &Encoder<B>) -> Option<Head<B>> {
    let head = loaded.head.clone()?;
    let outputs = head.out_bias.len();
    Some(loaded.model.config().head(outputs, None).with_values(head, &Default::default()))
}

/// No interventions.
fn none<B: Kernels>(hidden_size: usize) -> Reft<B> {
    reft(hidden_size, 0, 1, |_| unreachable!("no layer"))
}

fn reft<B: Kernels>(
    hidden_size: usize,
    n_layers: usize,
    rank: usize,
    values: impl Fn(usize) -> InterventionValues,
) -> Reft<B> {
    let config = ReftConfig::new(hidden_size, 0..n_layers)
        .with_rank(rank)
        .with_positions("f3".parse().expect("positions"));
    config.with_values(|site: Site, _: Part| values(site.layer), &Default::default()).expect("valid")
}

fn labeled(rows: &[Vec<u32>], types: &[Vec<u32>], targets: &[f64]) -> Vec<LabeledText> {
    let rows = rows.iter().zip(types).zip(targets);
    rows.map(|((row, types), target)| LabeledText {
        tokens: row.clone(),
        types: types.clone(),
        target: *target,
    })
    .collect()
}

/// A classification with these labels, or a regression if there is only one.
fn spec(labels: &[&str]) -> TaskSpec {
    let lines: Vec<String> =
        labels.iter().map(|label| format!("{{\"text\": \"a\", \"label\": {label:?}}}")).collect();
    let rows = parse_rows(&lines.join("\n"), "rows").expect("rows");
    let name = if labels.len() > 1 { "classification" } else { "regression" };
    TaskSpec::discover(name, None, None, &rows).expect("a task")
}

fn objective<'a, B: Kernels>(loaded: &'a Encoder<B>, spec: &'a TaskSpec) -> Classification<'a, B> {
    Classification {
        model: &loaded.model,
        tensors: &loaded.tensors,
        spec,
        selection_metric: spec.selection_metric(None).expect("a metric"),
        dropout: DropoutRates::OFF,
        eval_batch_size: 4,
        reused: None,
    }
}

/// Every form of checkpoint gives the hidden states of transformers, and its logits if it has a head.
fn checkpoints_agree_with_transformers<B: Kernels>() {
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
                let deviation = max_deviation(found, wanted);
                assert!(deviation < 1e-5, "{name}, row {idx}: {deviation}");
            }
        }
        let head = own_head(&loaded);
        assert_eq!(head.is_some(), expected.get("logits").is_some(), "{name}");
        let Some(head) = head else { continue };
        let trainable = Trainable { reft: none(16), tuned: None, head: Some(head) };
        let examples = labeled(&rows, &types, &[0.0; 3]);
        let logits = predict(&loaded.model, &loaded.tensors, &trainable, &examples, 2, &NoHook);
        for (found, wanted) in logits.iter().zip(get::<Vec<Vec<f32>>>(&expected, "logits")) {
            assert!(max_deviation(found, &wanted) < 1e-5, "{name}: {found:?} against {wanted:?}");
        }
    }
}

/// 32 real texts as tokens.
fn real_texts<B: Kernels>(loaded: &Encoder<B>, expected: &Value) -> Vec<LabeledText> {
    let mut files: BTreeMap<String, (TaskSpec, Vec<Row>)> = BTreeMap::new();
    let vocab = loaded.model.config().vocab_size;
    let named = expected["texts"].as_array().expect("texts");
    let examples = named.iter().map(|text| {
        let file: String = get(text, "file");
        let (spec, rows) = files.entry(file.clone()).or_insert_with(|| {
            let name = if file.contains("SST-2") { "glue/sst2" } else { "glue/rte" };
            let rows = read_task_rows(name, &shared(&file)).expect("rows");
            (TaskSpec::discover(name, None, None, &rows).expect("a task"), rows)
        });
        let row = std::slice::from_ref(&rows[get::<usize>(text, "row")]);
        let example = spec
            .encode(row, &loaded.tokenizer, vocab, 512, false, OnBadRow::Error)
            .expect("encoded")
            .examples
            .remove(0);
        assert_eq!(example.tokens.len(), get::<usize>(text, "tokens"), "{text}");
        example
    });
    examples.collect()
}

fn a_real_model_agrees_with_transformers<B: Kernels>() {
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
    let mut deviations = [0f64; 2];
    for (begin, chunk) in rows.chunks(8).enumerate().map(|(i, chunk)| (8 * i, chunk)) {
        let batched = states(&loaded.model, chunk, &types[begin..begin + chunk.len()]);
        for (offset, batched) in batched.iter().enumerate() {
            let idx = begin + offset;
            let single = &states(&loaded.model, &rows[idx..=idx], &types[idx..=idx])[0];
            for (found, deviation) in [batched, single].into_iter().zip(&mut deviations) {
                let first = max_deviation(&found[..384], &hidden[&format!("{idx}.first")]);
                let others = max_deviation(&sample(found), &hidden[&format!("{idx}.sample")]);
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
fn gradients_agree_with_pytorch<B: Kernels>() {
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
    let trainable = Trainable::<Autodiff<B>>::tracked(Trainable { reft, tuned: None, head: Some(head) });

    let mut examples = real_texts(&loaded, &expected);
    examples.truncate(8);
    for (example, label) in examples.iter_mut().zip(get::<Vec<f64>>(&expected, "labels")) {
        example.target = label;
    }
    let spec = spec(&["no", "yes"]);
    let step = step_gradients(&objective(&loaded, &spec), &trainable, &[examples.iter().collect()], false, 0);
    let n = step.loss.labels as f32;
    assert!((step.loss.sum() / f64::from(n) - get::<f64>(&expected, "loss")).abs() < 1e-5);
    let mut worst = 0f64;
    let mut check = |name: String, found: Vec<f32>| {
        let found: Vec<f32> = found.iter().map(|x| x / n).collect();
        let error = relative_error(&found, &golden[&name]);
        assert!(error < GRADIENT_TOLERANCE, "{name}: {error}");
        worst = worst.max(error);
    };
    for (edit, basis) in trainable.reft.edits().zip(&step.basis_grads) {
        let (layer, intervention) = (edit.site.layer, edit.intervention);
        let weight: Tensor<B, 2> =
            step.grads.get(intervention.weight().expect("has W").id).expect("a gradient");
        check(format!("{layer}.weight"), host_values(weight));
        let bias: Tensor<B, 1> = step.grads.get(intervention.bias().id).expect("a gradient");
        check(format!("{layer}.bias"), host_values(bias));
        check(format!("{layer}.projection"), host_values(basis.clone().expect("a gradient").transpose()));
    }
    let (dense, dense_bias, out, out_bias) = trainable.head.as_ref().expect("a head").parameters();
    let dense: Vec<f32> = host_values::<B, 2>(step.grads.get(dense.id).expect("a gradient"));
    check("dense.weight".into(), dense.chunks(d).step_by(16).flatten().copied().collect());
    check("dense.bias".into(), host_values::<B, 1>(step.grads.get(dense_bias.id).expect("a gradient")));
    check("out_proj.weight".into(), host_values::<B, 2>(step.grads.get(out.id).expect("a gradient")));
    check("out_proj.bias".into(), host_values::<B, 1>(step.grads.get(out_bias.id).expect("a gradient")));
    println!("worst relative deviation of gradients: {worst:.1e}");
}

/// LoRA adapters made by PEFT give PEFT's logits, and saving them gives PEFT's files.
fn lora_agrees_with_peft<B: Kernels>() {
    let device = Default::default();
    let saved = tempfile::tempdir().expect("a folder");
    for name in ["roberta", "llama"] {
        let folder = fixture(&format!("peft/{name}"));
        let expected = json(&folder.join("expected.json"));
        let (rows, wanted): (Vec<Vec<u32>>, Vec<Vec<f32>>) =
            (get(&expected, "rows"), get(&expected, "logits"));
        let tuning = Tuning::Lora(peft::read_lora_config(&folder).expect("the configuration"));
        let (tuned, names, head, logits) = if name == "roberta" {
            let loaded: Encoder<B> = load(fixture("encoders/roberta"));
            let names = PeftNames::classifier(loaded.model.config());
            let tuned = peft::load(&folder, &tuning, &loaded.tensors, names, &device).expect("loaded");
            // PEFT stores a copy of the head in its file.
            let tensors = read_tensors(&folder.join("adapter_model.safetensors"));
            let config = loaded.model.config().head(3, None);
            let part = |(name, _): (&str, _)| tensors[&format!("base_model.model.classifier.{name}")].clone();
            let head = config.with_values::<B>(HeadValues::from_list(config.tensors().map(part)), &device);
            let types: Vec<Vec<u32>> = rows.iter().map(|row| vec![0; row.len()]).collect();
            let trainable =
                Trainable { reft: none(16), tuned: Some(tuned.clone()), head: Some(head.clone()) };
            let examples = labeled(&rows, &types, &[0.0; 3]);
            (
                tuned,
                names,
                Some(head),
                predict(&loaded.model, &loaded.tensors, &trainable, &examples, 2, &NoHook),
            )
        } else {
            let loaded: LoadedLlama<B> = load_llama(&tiny::model(), Precision::default());
            let names = PeftNames::LANGUAGE_MODEL;
            let tuned = peft::load(&folder, &tuning, &loaded.tensors, names, &device).expect("loaded");
            let model: Llama<B> = tuned.model(loaded.model.config(), &loaded.tensors);
            let logits = rows.iter().map(|row| {
                let hidden = model.forward(&TokenBatch::new(&[row], Padding::Right), None, &NoHook);
                host_values(model.logits(hidden, &[row.len() - 1]))
            });
            let found = logits.collect();
            (tuned, names, None, found)
        };
        for (found, wanted) in logits.iter().zip(&wanted) {
            let deviation = max_deviation(found, wanted);
            assert!(deviation < TOLERANCE, "{name}: {deviation}");
        }
        peft::save(saved.path(), &tuned, head.as_ref(), "m", names).expect("saved");
        let (ours, theirs) =
            (saved.path().join("adapter_model.safetensors"), folder.join("adapter_model.safetensors"));
        assert_eq!(read_tensors(&ours), read_tensors(&theirs), "{name}");
        let (ours, theirs) =
            (json(&saved.path().join("adapter_config.json")), json(&folder.join("adapter_config.json")));
        for (key, ours) in ours.as_object().expect("an object") {
            match key.as_str() {
                "base_model_name_or_path" | "target_modules" | "modules_to_save" => {}
                "r" | "lora_alpha" => assert_eq!(ours.as_f64(), theirs[key].as_f64(), "{name}: {key}"),
                _ => assert_eq!(ours, &theirs[key], "{name}: {key}"),
            }
        }
    }
}

/// For interventions and every baseline, the central difference of the loss along its gradient equals the gradient's norm.
fn gradients_of_every_method_agree_with_finite_differences<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let loaded: Encoder<B> = load(fixture("encoders/bert"));
    let rows: Vec<Vec<u32>> =
        [7, 4, 9].iter().map(|len| (0..*len).map(|_| rng.random_range(4..60)).collect()).collect();
    let types: Vec<Vec<u32>> =
        rows.iter().map(|row| (0..row.len() as u32).map(|i| i / 4 % 2).collect()).collect();
    let lora = LoraConfig { rank: 2, alpha: 4.0, dropout: 0.0, targets: Vec::new() };
    let tunings = [None, Some(Tuning::Bitfit), Some(Tuning::Full), Some(Tuning::Lora(lora))];
    for (labels, targets) in [(vec!["a", "b", "c"], [0.0, 2.0, 1.0]), (vec!["0.5"], [0.3, -1.0, 0.7])] {
        let spec = spec(&labels);
        let examples = labeled(&rows, &types, &targets);
        let objective = objective(&loaded, &spec);
        for tuning in &tunings {
            let head =
                loaded.model.config().head(spec.outputs(), Some(0.0)).init(rng.random(), &Default::default());
            let tuned = tuning.as_ref().map(|tuning| {
                let start = tuning.init(&loaded.tensors, rng.random(), &Default::default()).expect("fits");
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
            let trainable: Trainable<B> = Trainable { reft, tuned, head: Some(head) };
            let tracked = Trainable::<Autodiff<B>>::tracked(trainable.clone());
            let step = step_gradients(&objective, &tracked, &[examples.iter().collect()], false, 0);
            let (direction, norm) = direction_and_norm(&tracked, &step.grads);
            let loss = |by: f32| {
                let moved = moved(&trainable, &direction, by);
                let moved = Trainable::<Autodiff<B>>::tracked(moved);
                step_gradients(&objective, &moved, &[examples.iter().collect()], false, 0).loss.sum()
            };
            let h = 2e-2;
            let difference = (loss(h) - loss(-h)) / (2.0 * f64::from(h));
            let error = (norm - difference).abs() / norm;
            assert!(error < 1e-2, "{tuning:?}, {labels:?}: {norm} against {difference}");
        }
    }
}

/// States below the first edit, in memory or in a file, give the same loss and gradients as computing them again.
fn reuse_changes_nothing<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let loaded: Encoder<B> = load(fixture("encoders/bert"));
    let spec = spec(&["a", "b"]);
    let rows: Vec<Vec<u32>> =
        [7, 4, 9, 4].iter().map(|len| (0..*len).map(|_| rng.random_range(4..60)).collect()).collect();
    // The same tokens of other types are another text.
    let rows: Vec<Vec<u32>> = rows.iter().chain([&rows[1]]).cloned().collect();
    let types: Vec<Vec<u32>> =
        rows.iter().enumerate().map(|(idx, row)| vec![u32::from(idx == 4); row.len()]).collect();
    let examples = labeled(&rows, &types, &[0.0, 1.0, 1.0, 0.0, 0.0]);
    let head = loaded.model.config().head(2, Some(0.0)).init(rng.random(), &Default::default());
    for layers in [vec![], vec![1]] {
        let config =
            ReftConfig::new(16, layers.clone()).with_rank(2).with_positions("f3".parse().expect("f3"));
        let reft = perturb(config.init(&Default::default()), &mut rng);
        let trainable = Trainable { reft, tuned: None, head: Some(head.clone()) };
        let tracked = Trainable::<Autodiff<B>>::tracked(trainable);
        let step = |objective: &Classification<'_, B>| {
            let batches: [Vec<&LabeledText>; 2] =
                [examples[..3].iter().collect(), examples[2..].iter().collect()];
            let step = step_gradients(objective, &tracked, &batches, false, 5);
            (step.loss.sum(), gradient(&tracked, &step.grads))
        };
        let expected = step(&objective(&loaded, &spec));
        for (limit, file_limit) in [(u64::MAX, 0), (0, u64::MAX), (300, 600)] {
            let file = tempfile::tempfile().expect("a file");
            let reused = ReusedStates::new(limit).with_overflow(file, file_limit);
            let reusing = Classification { reused: Some(RefCell::new(reused)), ..objective(&loaded, &spec) };
            for pass in 0..3 {
                let found = step(&reusing);
                let what = format!("layers {layers:?}, {limit} and {file_limit} bytes, pass {pass}");
                assert!((found.0 - expected.0).abs() < 1e-6 * expected.0, "{what}: {found:?}, {expected:?}");
                for (a, b) in found.1.iter().zip(&expected.1) {
                    assert!(max_deviation(a, b) < 1e-6, "{what}: {a:?}, {b:?}");
                }
            }
            let kept = reusing.reused.as_ref().expect("set above").borrow().bytes();
            assert_eq!(kept > 0, limit > 0 && B::packs_rows(DType::F32), "{layers:?}, {limit}: {kept}");
        }
    }
}

/// A baseline computes the same in training, in evaluation, and after saving and loading.
fn baselines_survive_a_round_trip<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let device = Default::default();
    for name in ["bert", "roberta-bare"] {
        let loaded: Encoder<B> = load(fixture(&format!("encoders/{name}")));
        let names = PeftNames::classifier(loaded.model.config());
        let rows = vec![vec![2, 9, 17, 44, 3], vec![2, 8, 3]];
        let examples = labeled(&rows, &[vec![0; 5], vec![0; 3]], &[0.0, 1.0]);
        let spec = spec(&["a", "b"]);
        let head = loaded.model.config().head(2, Some(0.0)).init::<B>(rng.random(), &device);
        let lora =
            LoraConfig { rank: 3, alpha: 3.0, dropout: 0.5, targets: vec!["query".into(), "dense".into()] };
        for tuning in [Tuning::Bitfit, Tuning::Full, Tuning::Lora(lora)] {
            let start = tuning.init(&loaded.tensors, rng.random(), &device).expect("fits");
            let plain = Trainable { reft: none(16), tuned: None, head: Some(head.clone()) };
            let outputs = |trainable: &Trainable<B>| {
                predict(&loaded.model, &loaded.tensors, trainable, &examples, 1, &NoHook)
            };
            let with = |tuned| Trainable { tuned: Some(tuned), ..plain.clone() };
            // The initial weights do not change the outputs.
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
                let tracked = Trainable::<Autodiff<B>>::tracked(trained.clone());
                let members: Vec<&LabeledText> = examples.iter().collect();
                let loss =
                    step_gradients(&objective(&loaded, &spec), &tracked, &[members], false, 0).loss.sum();
                let expected: f64 = (before.iter().zip(&examples))
                    .map(|(row, e)| {
                        let row = Tensor::<B, 1>::from_floats(row.as_slice(), &device);
                        -f64::from(host_values(softmax(row, 0))[e.target as usize]).ln()
                    })
                    .sum();
                assert!((loss - expected).abs() < 1e-4, "{name}, {tuning:?}: {loss} against {expected}");
            }
        }
    }
}

/// Random interventions on all layers of the tiny encoders.
fn random_reft<B: Kernels>(layers: impl IntoIterator<Item = usize>, rng: &mut ChaCha8Rng) -> Reft<B> {
    let config = ReftConfig::new(16, layers).with_rank(2).with_positions("f3".parse().expect("positions"));
    perturb(config.with_seed(rng.random()).init(&Default::default()), rng)
}

fn random_rows(rng: &mut ChaCha8Rng, lens: &[usize]) -> (Vec<Vec<u32>>, Vec<Vec<u32>>) {
    let row = |len: &usize| -> Vec<u32> { (0..*len).map(|_| rng.random_range(4..60)).collect() };
    let rows: Vec<Vec<u32>> = lens.iter().map(row).collect();
    let types = rows.iter().map(|row| vec![0; row.len()]).collect();
    (rows, types)
}

/// A row's outputs are the same alone and in a padded batch.
fn padding_changes_nothing<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    for name in ["roberta", "bert"] {
        let loaded: Encoder<B> = load(fixture(&format!("encoders/{name}")));
        let (rows, types) = random_rows(&mut rng, &[9, 3, 1, 12]);
        let head = loaded.model.config().head(3, Some(0.0)).init::<B>(rng.random(), &Default::default());
        let trainable = Trainable { reft: random_reft(0..2, &mut rng), tuned: None, head: Some(head) };
        let examples = labeled(&rows, &types, &[0.0; 4]);
        let outputs =
            |batch_size| predict(&loaded.model, &loaded.tensors, &trainable, &examples, batch_size, &NoHook);
        for (batched, single) in outputs(4).iter().zip(&outputs(1)) {
            let deviation = max_deviation(batched, single);
            assert!(deviation < 1e-5, "{name}: {deviation}");
        }
    }
}

/// Dropout is active if its rates are not 0, and differs between passes.
fn dropout_is_random<B: Kernels>() {
    let loaded: Encoder<B> = load(fixture("encoders/roberta"));
    let tokens = TokenBatch::new(&[[5, 9, 31, 7]], Padding::Right);
    let states = |hidden, attention| {
        let rates = DropoutRates { hidden, attention };
        host_values(loaded.model.first_tokens(&tokens, rates, &NoHook))
    };
    assert_eq!(states(0.0, 0.0), states(0.0, 0.0));
    assert_ne!(states(0.5, 0.0), states(0.5, 0.0));
    assert_ne!(states(0.0, 0.5), states(0.0, 0.5));
}

/// Only the blocks from the first edited layer up run on the autodiff backend, and the gradient of the loss reaches the
/// interventions there.
fn the_tape_begins_at_the_first_edit<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for name in ["roberta", "bert"] {
        let loaded: Encoder<B> = load(fixture(&format!("encoders/{name}")));
        let n_layers = loaded.model.config().num_hidden_layers;
        let (rows, types) = random_rows(&mut rng, &[9, 4, 6]);
        let examples = labeled(&rows, &types, &[0.0, 2.0, 1.0]);
        let members: Vec<&LabeledText> = examples.iter().collect();
        let batch = ClassifierBatch::new(&members);
        let plain = host_values(loaded.model.forward(&batch.tokens, DropoutRates::OFF, &NoHook));
        let pass = |first_layer| {
            loaded.model.training_pass::<Autodiff<B>>(
                &batch.tokens,
                DropoutRates::OFF,
                first_layer,
                Packing::Grid,
                0,
            )
        };

        for first_layer in (0..n_layers).map(Some).chain([None]) {
            let recorder = Recorder::new(NoHook);
            let hidden = pass(first_layer).forward(&recorder);
            let first = first_layer.unwrap_or(n_layers);
            assert_eq!(recorder.sites(), all_sites(first..n_layers), "{name}, from {first_layer:?}");
            assert!(!is_tracked(hidden.clone()), "{name}, from {first_layer:?}: nothing is trained");
            assert!(
                relative_error(&host_values(hidden.inner()), &plain) < 1e-6,
                "{name}, from {first_layer:?}"
            );
        }

        for first_layer in 0..n_layers {
            let head = loaded.model.config().head(3, Some(0.0)).init::<B>(rng.random(), &Default::default());
            let reft = random_reft(first_layer..n_layers, &mut rng);
            let tracked =
                Trainable::<Autodiff<B>>::tracked(Trainable { reft, tuned: None, head: Some(head) });
            let (reft, head) = (&tracked.reft, tracked.head.as_ref().expect("a head"));
            assert_eq!(reft.first_layer(), Some(first_layer));
            let recorder = Recorder::new(reft.hook());
            let mut grads = None;
            let sum = pass(reft.first_layer()).backward(
                &recorder,
                |hidden| {
                    let log_p =
                        log_softmax(head.forward(select_rows(hidden, &batch.tokens.first_columns())), 1);
                    let rows = batch.targets.iter().enumerate();
                    let loss = rows
                        .map(|(row, label)| {
                            log_p.clone().slice([row..row + 1, *label as usize..*label as usize + 1])
                        })
                        .map(|log_p| log_p.sum().neg())
                        .reduce(|a, b| a + b)
                        .expect("rows");
                    (host_values(loss.clone())[0], loss)
                },
                |collected| grads = Some(collected),
            );
            assert_eq!(
                recorder.sites(),
                all_sites(first_layer..n_layers),
                "{name}, edits from {first_layer}"
            );

            // The trainer's objective finds the same loss and the same gradients.
            let spec = spec(&["a", "b", "c"]);
            let objective = objective(&loaded, &spec);
            let step = step_gradients(&objective, &tracked, std::slice::from_ref(&members), false, 0);
            assert!(
                (f64::from(sum) - step.loss.sum()).abs() < 1e-5,
                "{name}: {sum} against {}",
                step.loss.sum()
            );
            let grads: <Autodiff<B> as burn::tensor::backend::AutodiffBackend>::Gradients =
                grads.expect("a backward pass");
            for edit in reft.edits() {
                let bias = edit.intervention.bias();
                let found =
                    bias.val().grad(&grads).unwrap_or_else(|| panic!("{name}, {}: no gradient", edit.site));
                let expected = step.grads.get::<B, 1>(bias.id).expect("a gradient");
                let error = relative_error(&host_values(found), &host_values(expected));
                assert!(error < 1e-4, "{name}, {}: {error}", edit.site);
            }
        }
    }
}

/// Pairs are joined by the template of the tokenizer; padding and truncation settings in its file are ignored.
#[test]
fn pairs_are_joined_by_the_template_of_the_tokenizer() {
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
    let error =
        spec(&["a", "b"]).selection_metric(Some(Metric::Pearson)).expect_err("not a metric of the task");
    assert_eq!(
        error.to_string(),
        "classification: eval.metric is \"pearson\"; this task supports accuracy, f1, matthews"
    );
}

on_every_backend!(
    checkpoints_agree_with_transformers,
    #[cfg_attr(not(shared), ignore = "needs the shared material (REFT_SHARED)")]
    a_real_model_agrees_with_transformers,
    #[cfg_attr(not(shared), ignore = "needs the shared material (REFT_SHARED)")]
    gradients_agree_with_pytorch,
    lora_agrees_with_peft,
    gradients_of_every_method_agree_with_finite_differences,
    reuse_changes_nothing,
    baselines_survive_a_round_trip,
    padding_changes_nothing,
    dropout_is_random,
    the_tape_begins_at_the_first_edit,
);
