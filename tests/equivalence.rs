//! Different ways to compute the same thing, on fresh random models and inputs, on every compiled CPU backend.

use burn::{
    backend::Autodiff,
    tensor::{Tensor, backend::Backend},
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{Component, Method, NoHook, Reft, ReftConfig, Site, intervention::Init};
use reft_models::{GenerateConfig, KvCache, Llama, Padding, TokenBatch, generate};
use reft_train::{Example, LanguageModelling, eval::likelihood, loss::Batch, trainer::step_gradients};
use serde_json::json;
use std::ops::ControlFlow;
use system_tests::{
    along, moved, on_every_backend, perturb, random_direction, random_llama, relative, values,
};

/// The kinds of model that one file serves.
fn families() -> Vec<serde_json::Value> {
    vec![
        json!({}),
        json!({"tie_word_embeddings": true, "attention_bias": true, "mlp_bias": true}),
        json!({"model_type": "mistral", "sliding_window": 5}),
        json!({"model_type": "qwen2"}),
        json!({"model_type": "qwen3", "head_dim": 8}),
        json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
        json!({"num_key_value_heads": 1}),
    ]
}

fn rows(rng: &mut ChaCha8Rng, lens: &[usize]) -> Vec<Vec<u32>> {
    lens.iter().map(|len| (0..*len).map(|_| rng.random_range(1..50)).collect()).collect()
}

fn examples(rng: &mut ChaCha8Rng, lens: &[usize]) -> Vec<Example> {
    rows(rng, lens).into_iter().map(|tokens| Example { prompt_len: tokens.len() / 2 + 1, tokens }).collect()
}

fn random_reft<B: Backend>(positions: &str, tied: bool, component: Component, seed: u64) -> Reft<B> {
    let config = ReftConfig {
        method: Method::Loreft,
        rank: 3,
        hidden_size: 24,
        sites: [0, 2].map(|layer| Site { layer, component }).to_vec(),
        positions: positions.parse().expect("positions"),
        tied,
        activation: Default::default(),
        dropout: 0.0,
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let reft = config.init(Init::Paper, &mut rng, &Default::default()).expect("valid");
    perturb(reft, &mut rng)
}

/// Hidden states of every real token of every row.
fn real_states<B: Backend>(hidden: Tensor<B, 3>, tokens: &TokenBatch) -> Vec<Vec<f32>> {
    let [_, _, d_model] = hidden.dims();
    let flat = values(hidden);
    let row_of = |idx: usize| &flat[idx * d_model..(idx + 1) * d_model];
    tokens
        .positions
        .chunks(tokens.seq)
        .enumerate()
        .map(|(row, positions)| {
            let real = positions.iter().enumerate().filter(|(_, p)| p.is_some());
            real.flat_map(|(column, _)| row_of(row * tokens.seq + column).to_vec()).collect()
        })
        .collect()
}

fn assert_close(a: &[Vec<f32>], b: &[Vec<f32>], tolerance: f32, what: &str) {
    for (row, (a, b)) in a.iter().zip(b).enumerate() {
        assert_eq!(a.len(), b.len());
        let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < tolerance, "{what}, row {row}: {worst}");
    }
}

/// Left padding, right padding and no padding give the same states, with and without interventions.
fn padding_changes_nothing<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (seed, family) in families().into_iter().enumerate() {
        let model: Llama<B> = random_llama(family.clone(), seed as u64);
        let prompts = rows(&mut rng, &[9, 4, 12, 2]);
        for (positions, tied) in [("f2+l1", true), ("f2+l3", false), ("all", true)] {
            let reft: Reft<B> = random_reft(positions, tied, Component::BlockOutput, seed as u64);
            let states = |rows: &[Vec<u32>], padding| {
                let tokens = TokenBatch::new(rows, padding);
                let lens: Vec<usize> = rows.iter().map(Vec::len).collect();
                let edited = reft.config().positions.rows(&tokens.prompt_spans(&lens), tokens.seq);
                let hook = reft.hook(&reft.bases(), &edited);
                real_states(model.forward(&tokens, None, &hook), &tokens)
            };
            let right = states(&prompts, Padding::Right);
            let left = states(&prompts, Padding::Left);
            let single: Vec<Vec<f32>> =
                prompts.iter().map(|p| states(std::slice::from_ref(p), Padding::Right).remove(0)).collect();
            assert_close(&left, &right, 1e-5, &format!("{family}: left against right"));
            assert_close(&single, &right, 1e-5, &format!("{family}: single against batched"));
        }
    }
}

/// Tokens one by one through the cache give the states of the whole text at once, on either side of padding.
fn the_cache_changes_nothing<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for (seed, family) in families().into_iter().enumerate() {
        let model: Llama<B> = random_llama(family.clone(), seed as u64);
        let texts = rows(&mut rng, &[14, 11, 16]);
        let prompt_lens = [8, 5, 10];
        let whole = TokenBatch::new(&texts, Padding::Right);
        let expected = real_states(model.forward(&whole, None, &NoHook), &whole);
        for padding in [Padding::Left, Padding::Right] {
            let prompts: Vec<&[u32]> = texts.iter().zip(prompt_lens).map(|(t, n)| &t[..n]).collect();
            let tokens = TokenBatch::new(&prompts, padding);
            let mut cache = KvCache::new(model.config().num_hidden_layers, 16);
            let mut found = real_states(model.forward(&tokens, Some(&mut cache), &NoHook), &tokens);
            for step in 0..6 {
                let next: Vec<u32> = texts.iter().zip(prompt_lens).map(|(t, n)| t[n + step]).collect();
                let positions = prompt_lens.map(|n| n + step);
                let one = TokenBatch::step(&next, &positions);
                let states = real_states(model.forward(&one, Some(&mut cache), &NoHook), &one);
                for (row, state) in found.iter_mut().zip(states) {
                    row.extend(state);
                }
            }
            assert_close(&found, &expected, 1e-5, &format!("{family}: {padding:?}, cached against whole"));
        }
    }
}

/// A row's text does not depend on its batch, nor on the side of padding, sampled or not.
fn generation_is_the_same_in_any_batch<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let model: Llama<B> = random_llama(json!({}), 5);
    let reft: Reft<B> = random_reft("f2+l2", false, Component::BlockOutput, 7);
    let prompts = rows(&mut rng, &[6, 3, 9]);
    for (temperature, top_k, repetition_penalty) in [(0.0, 0, 1.0), (0.0, 0, 1.3), (1.5, 20, 1.1)] {
        let config = GenerateConfig {
            max_new_tokens: 12,
            temperature,
            top_k,
            repetition_penalty,
            top_p: 0.9,
            seed: 11,
            stop_ids: vec![49],
            ..Default::default()
        };
        let run = |prompts: &[Vec<u32>], padding| {
            let config = GenerateConfig { padding, ..config.clone() };
            generate(&model, prompts, Some(&reft), &config, |_, _| ControlFlow::Continue(()))
                .expect("generated")
        };
        let left = run(&prompts, Padding::Left);
        assert_eq!(left, run(&prompts, Padding::Right));
        assert_eq!(left[0], run(&prompts[..1], Padding::Left)[0]);
        let edited_matters = generate(&model, &prompts, None, &config, |_, _| ControlFlow::Continue(()));
        assert_ne!(left, edited_matters.expect("generated"));
    }
}

/// Micro-batches of unequal lengths add up to the large batch.
fn accumulation_equals_the_large_batch<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for component in
        [Component::BlockOutput, Component::BlockInput, Component::AttentionOutput, Component::MlpOutput]
    {
        let model: Llama<B> = random_llama(json!({}), 6);
        let reft = Reft::<Autodiff<B>>::trainable(random_reft("f1+l2", true, component, 8));
        let examples = examples(&mut rng, &[5, 17, 9, 12]);
        let (objective, learned) = (LanguageModelling::new(&model, 4), reft.clone().into());
        let large = step_gradients(&objective, &learned, &[examples.iter().collect()], false, 0);
        let micro: Vec<Vec<&Example>> = examples.iter().map(|e| vec![e]).collect();
        let small = step_gradients(&objective, &learned, &micro, false, 0);
        assert_eq!(large.label_tokens, small.label_tokens);
        assert!((large.loss_sum - small.loss_sum).abs() / large.loss_sum < 1e-6);
        for edit in reft.edits() {
            let i = edit.intervention();
            let weight = |step: &reft_train::trainer::StepGradients<B>| {
                let grad: Tensor<B, 2> = step.grads.get(i.weight().expect("has W").id).expect("a gradient");
                values(grad)
            };
            let error = relative(&weight(&small), &weight(&large));
            println!("{component:?}: relative deviation of W's gradient {error:.1e}");
            assert!(error < 1e-6, "{component:?}: {error}");
        }
        for (a, b) in small.basis_grads.into_iter().zip(large.basis_grads) {
            let error = relative(&values(a.expect("a gradient")), &values(b.expect("a gradient")));
            println!("{component:?}: relative deviation of R's gradient {error:.1e}");
            assert!(error < 1e-6, "{component:?}: {error}");
        }
    }
}

/// The gradient of every parameter of every method against central differences of the loss.
fn gradients_agree_with_finite_differences<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let model: Llama<B> = random_llama(json!({}), 9);
    let examples = examples(&mut rng, &[10, 7]);
    for method in [Method::Loreft, Method::Direft, Method::Noreft, Method::Orthodireft, Method::Consreft] {
        let config = ReftConfig {
            method,
            ..random_reft::<B>("f1+l1", false, Component::BlockOutput, 1).config().clone()
        };
        let reft: Reft<B> = config.init(Init::Paper, &mut rng, &Default::default()).expect("valid");
        let tracked = Reft::<Autodiff<B>>::trainable(reft.clone());
        let objective = LanguageModelling::new(&model, 2);
        let step =
            step_gradients(&objective, &tracked.clone().into(), &[examples.iter().collect()], false, 0);
        // Along a random direction of all parameters at once.
        let direction = random_direction(&reft, &mut rng);
        let slope: f64 = along(&tracked, &step.grads, &direction);
        let h = 1e-2;
        let tokens: usize = examples.iter().map(Example::label_tokens).sum();
        let loss = |sign: f32| {
            let moved = moved(&reft, &direction, sign * h);
            likelihood(&model, Some(&moved), &examples, 2).nll * tokens as f64
        };
        let difference = (loss(1.0) - loss(-1.0)) / (2.0 * f64::from(h));
        let error = (slope - difference).abs() / difference.abs().max(0.1);
        assert!(error < 2e-2, "{method:?}: {slope} against {difference}");
    }
}

/// Nothing but the interventions is ever given a gradient, and layers below the first edit are not on the tape.
fn the_tape_begins_at_the_first_edit<B: Backend>() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let model: Llama<B> = random_llama(json!({}), 10);
    let examples = examples(&mut rng, &[8, 6]);
    let members: Vec<&Example> = examples.iter().collect();
    let reft: Reft<B> = random_reft("l1", true, Component::BlockOutput, 3);
    let batch = Batch::new(&members, Some(reft.config().positions));
    let tokens = &batch.tokens;
    let tracked = model.pass::<Autodiff<B>>(tokens, None, 0).forward(&NoHook);
    assert!(!tracked.clone().is_require_grad());
    let plain = model.forward(tokens, None, &NoHook);
    assert!(relative(&values(tracked.inner()), &values(plain)) < 1e-6);
    let trainable = Reft::<Autodiff<B>>::trainable(reft.clone());
    let pass = model.pass::<Autodiff<B>>(tokens, reft.first_layer(), 0);
    let with_hook = pass.forward(&trainable.hook(&trainable.bases(), &batch.edited)).inner();
    let without_tape = model.forward(tokens, None, &reft.hook(&reft.bases(), &batch.edited));
    assert!(relative(&values(with_hook), &values(without_tape)) < 1e-6);
}

on_every_backend!(
    padding_changes_nothing,
    the_cache_changes_nothing,
    generation_is_the_same_in_any_batch,
    accumulation_equals_the_large_batch,
    gradients_agree_with_finite_differences,
    the_tape_begins_at_the_first_edit,
);
