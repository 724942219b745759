//! The same work on every device: the CPU backends, and whatever GPU, or driver that imitates one, is there.
//!
//! `REFT_TEST_DEVICES=cpu,wgpu` chooses the devices; without it, all that are found are tested.

use burn::tensor::backend::AutodiffBackend;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use reft_core::{Component, Method, Reft, ReftConfig, Site, intervention::Init};
use reft_models::{GenerateConfig, LoadedModel, ModelFiles, Precision};
use reft_train::{
    Chosen, DataSet, LanguageModelling, OnDevice, Template, TrainConfig,
    data::read_rows,
    device::{Device, Kind, choose, cpu, devices, on_chosen},
    eval::{generate_all, likelihood},
    recipe::TrainSection,
    selftest::{Verdict, compare, measure},
    trainer::{Silent, step_gradients, train},
};
use std::{env, sync::atomic::AtomicBool, time::Instant};
use system_tests::{relative, shared, values};

fn wanted() -> Vec<Device> {
    match env::var("REFT_TEST_DEVICES") {
        Ok(names) => names.split(',').map(|name| choose(name.trim()).expect("REFT_TEST_DEVICES").0).collect(),
        Err(_) => devices().0,
    }
}

/// Forward pass, gradients, twenty training steps, files, decoding with the cache (Burn's issue 5257) and with it the
/// adapter that the CPU made; gradients where only an adapter is tracked (issue 5162).
#[test]
fn every_device_computes_what_the_cpu_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let own = |device: &Device| folder.path().join(device.name.replace(':', "-"));
    let cpu = cpu();
    let reference = measure(&cpu, &own(&cpu), None).expect("the CPU works");
    assert!(reference.trained_nll < reference.nll && reference.cache_agreement == 1.0);
    let mut failed = Vec::new();
    for device in wanted() {
        let found = measure(&device, &own(&device), Some(&own(&cpu)))
            .unwrap_or_else(|error| panic!("{}: {error}", device.name));
        println!("{} ({}), {:.0} s", device.name, device.adapter, found.seconds);
        for check in compare(&found, &reference) {
            println!("  {:?} {}: {:.1e}", check.verdict, check.name, check.deviation);
            if check.verdict != Verdict::Pass {
                failed.push(format!("{}, {}: {}", device.name, check.name, check.deviation));
            }
        }
        // And the device's adapter on the CPU.
        let back = measure(&cpu, &folder.path().join("back"), Some(&own(&device))).expect("the CPU works");
        let deviation = (back.foreign_nll.expect("measured") - found.trained_nll).abs();
        if deviation > 1e-3 {
            failed.push(format!("{}'s adapter on the CPU: {deviation}", device.name));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// One golden case on one device: NLL of every row and greedy texts without interventions, the gradients of a batch and the
/// losses of fifty steps with them.
struct Case<'a> {
    name: &'a str,
    model: &'a str,
}

struct Numbers {
    nll: Vec<f64>,
    texts: Vec<Vec<u32>>,
    gradient: Vec<f32>,
    losses: Vec<f64>,
    seconds: f64,
}

impl OnDevice for Case<'_> {
    type Output = Numbers;

    fn run<A: AutodiffBackend>(self, on: &Chosen<A::Device>) -> Numbers {
        let begun = Instant::now();
        let files = ModelFiles::Folder(shared(&format!("models/{}", self.model)));
        let loaded: LoadedModel<A::InnerBackend> =
            LoadedModel::load(&files, self.name, Precision::default(), &on.device).expect("loaded");
        let rows = read_rows(&shared(&format!("golden/{}/data.jsonl", self.name))).expect("rows");
        let set =
            DataSet::encode(&rows, &Template::Alpaca, &loaded.tokenizer, 128, self.name).expect("encoded");
        let examples = set.examples;
        let found = likelihood(&loaded.model, None, &examples, 4);
        let prompts: Vec<Vec<u32>> = examples[..4].iter().map(|e| e.prompt().to_vec()).collect();
        let greedy = GenerateConfig { max_new_tokens: 16, stop_ids: vec![2], ..Default::default() };
        let texts = generate_all(&loaded.model, None, &prompts, &greedy, 4).expect("generated");
        let config = ReftConfig {
            method: Method::Loreft,
            rank: 4,
            hidden_size: loaded.model.config().hidden_size,
            sites: [0, 2].map(|layer| Site { layer, component: Component::BlockOutput }).to_vec(),
            positions: "f2+l3".parse().expect("positions"),
            tied: true,
            activation: Default::default(),
            dropout: 0.0,
        };
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let reft: Reft<A::InnerBackend> = config.init(Init::Paper, &mut rng, &on.device).expect("valid");
        let objective = LanguageModelling::new(&loaded.model, 4);
        let tracked = Reft::<A>::trainable(reft.clone()).into();
        let step = step_gradients(&objective, &tracked, &[examples[..4].iter().collect()], false, 0);
        let bases = step.basis_grads.into_iter().flatten();
        let gradient = bases.flat_map(values).collect();
        let section = TrainSection { steps: Some(50), batch_size: 4, lr: 2e-3, ..Default::default() };
        let (config, never) = (TrainConfig::from(section), AtomicBool::new(false));
        let trained = train::<A, _>(&objective, reft.into(), &examples, &[], &config, &mut Silent, &never);
        Numbers {
            nll: found.rows.iter().filter_map(|row| row.nll).collect(),
            texts,
            gradient,
            losses: trained.losses,
            seconds: begun.elapsed().as_secs_f64(),
        }
    }
}

/// Real models on every device beside the CPU. A driver that imitates a GPU takes minutes for it, and is asked only with
/// `REFT_TEST_SLOW=1`.
#[test]
#[cfg_attr(not(shared), ignore = "skipped: needs the shared material (REFT_SHARED)")]
fn real_models_are_the_same_on_every_device() {
    let slow = env::var_os("REFT_TEST_SLOW").is_some();
    for (name, model) in [("stories3m", "stories3m"), ("random-llama3", "random-llama3-bf16-sharded")] {
        let case = || Case { name, model };
        let expected = on_chosen(&cpu(), case()).expect("the CPU works");
        for device in wanted() {
            if device.kind == Kind::SoftwareGpu && !slow {
                println!("skipped: {} only imitates a GPU; set REFT_TEST_SLOW=1", device.name);
                continue;
            }
            let found = on_chosen(&device, case()).unwrap_or_else(|error| panic!("{}: {error}", device.name));
            let apart =
                |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            let nll = apart(&found.nll, &expected.nll);
            let gradient = relative(&found.gradient, &expected.gradient);
            let last = (found.losses[49] - expected.losses[49]).abs() / expected.losses[49];
            let same = found.texts.iter().zip(&expected.texts).filter(|(a, b)| a == b).count();
            println!(
                "{name} on {}: NLL {nll:.1e}, gradient {gradient:.1e}, loss after 50 steps {last:.1e}, \
                 {same} of 4 greedy texts the same, {:.0} s",
                device.name, found.seconds
            );
            assert!(nll < 1e-3 && gradient < 1e-2 && last < 1e-2, "{name} on {}", device.name);
            assert!(same == 4 || device.kind != Kind::Cpu, "{name} on {}: greedy texts", device.name);
        }
    }
}
