//! Different ways to compute the same thing, on new random models and inputs, on every CPU backend.

use burn::{
    backend::Autodiff,
    tensor::{DType, Int, Tensor, TensorData, activation::log_softmax},
};
use burn_flex::Flex;
use burn_ndarray::NdArray;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use reft_core::{Component, Hook, Method, NoHook, Packing, Reft, ReftConfig, host_values};
use reft_kernels::Kernels;
use reft_models::{GenerateConfig, Generated, KvCache, Llama, Padding, ReusedStates, TokenBatch, generate};
use reft_train::{
    Example, LanguageModeling,
    data::{LanguageModelBatch, Tokenized},
    eval::{generate_all, likelihood},
    objective::StepGradients,
    step_gradients,
};
use serde_json::json;
use std::ops::ControlFlow;
use system_tests::{
    Recorder, all_sites, derivative_along, is_tracked, max_deviation, moved, on_every_backend, perturb,
    random_direction, random_llama, relative_error,
};

/// Variants of the Llama architecture.
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

fn random_reft<B: Kernels>(positions: &str, tied: bool, component: Component, seed: u64) -> Reft<B> {
    let config = ReftConfig::new(24, [0, 2])
        .with_rank(3)
        .with_component(component)
        .with_positions(positions.parse().expect("positions"))
        .with_tied(tied);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    perturb(config.with_seed(seed).init(&Default::default()), &mut rng)
}

/// The hidden states of each row, without those of padding.
fn real_states<B: Kernels>(hidden: Tensor<B, 3>, tokens: &TokenBatch) -> Vec<Vec<f32>> {
    let [_, _, d_model] = hidden.dims();
    let flat = host_values(hidden);
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

fn assert_close(a: &[Vec<f32>], b: &[Vec<f32>], tolerance: f64, what: &str) {
    assert_eq!(a.len(), b.len());
    for (row, (a, b)) in a.iter().zip(b).enumerate() {
        let deviation = max_deviation(a, b);
        assert!(deviation < tolerance, "{what}, row {row}: {deviation}");
    }
}

/// Left, right and no padding give the same hidden states, with interventions at any positions.
fn padding_changes_nothing<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (seed, family) in families().into_iter().enumerate() {
        let model: Llama<B> = random_llama(family.clone(), seed as u64);
        let prompts = rows(&mut rng, &[9, 4, 12, 2]);
        for (positions, tied) in [("f2+l1", true), ("f2+l3", false), ("all", true)] {
            let reft: Reft<B> = random_reft(positions, tied, Component::BlockOutput, seed as u64);
            let states = |rows: &[Vec<u32>], padding| {
                let tokens = TokenBatch::new(rows, padding);
                real_states(model.forward(&tokens, None, &reft), &tokens)
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

/// Prefill and decoding with the cache give the same hidden states as one pass over the whole text, with either padding.
fn the_cache_changes_nothing<B: Kernels>() {
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
            assert_close(
                &found,
                &expected,
                1e-5,
                &format!("{family}: cached against whole, {padding:?} padding"),
            );
        }
    }
}

/// Prompts that begin alike are read once, with or without edits, and what follows has the same states as in one pass over
/// each whole text.
fn shared_prompts_change_nothing<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    for (seed, family) in families().into_iter().enumerate() {
        let model: Llama<B> = random_llama(family.clone(), seed as u64);
        let mut texts = rows(&mut rng, &[14, 11, 16, 13]);
        let prompt_lens = [8, 5, 10, 8];
        // One prompt leaves another, one continues it, and one is the same.
        let first = texts[0].clone();
        for (text, len) in texts.iter_mut().zip([0, 4, 8, 8]) {
            text[..len].copy_from_slice(&first[..len]);
        }
        let reft: Reft<B> = random_reft("f2+l2", true, Component::BlockOutput, seed as u64);
        let no_edits: Reft<B> = ReftConfig::new(24, []).init(&Default::default());
        for (name, hook) in [("edited", &reft), ("unedited", &no_edits)] {
            let whole = TokenBatch::new(&texts, Padding::Right).with_prompt_lens(prompt_lens.to_vec());
            let expected = model.forward(&whole, None, hook);
            for padding in [Padding::Left, Padding::Right] {
                let prompts: Vec<&[u32]> = texts.iter().zip(prompt_lens).map(|(t, n)| &t[..n]).collect();
                let mut cache = KvCache::new(model.config().num_hidden_layers, 16);
                let mut found = model.read_prompts(&TokenBatch::new(&prompts, padding), &mut cache, hook);
                for step in 0..5 {
                    let places: Vec<usize> =
                        (prompt_lens.iter().enumerate()).map(|(i, n)| i * whole.seq + n - 1 + step).collect();
                    let expected = host_values(model.final_states(expected.clone(), &places));
                    let deviation = max_deviation(&host_values(found), &expected);
                    assert!(deviation < 1e-5, "{family}, {name}, {padding:?}, token {step}: {deviation}");
                    let next: Vec<u32> = texts.iter().zip(prompt_lens).map(|(t, n)| t[n + step]).collect();
                    let one = TokenBatch::step(&next, &prompt_lens.map(|n| n + step));
                    let states = model.forward(&one, Some(&mut cache), hook);
                    found = model.final_states(states, &[0, 1, 2, 3]);
                }
            }
        }
    }
}

/// The text of every row is the same alone and in a batch, on either side of padding, greedy and sampled, and through
/// [`generate_all`] with any batch size.
fn generation_is_the_same_in_any_batch<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let model: Llama<B> = random_llama(json!({}), 5);
    let reft: Reft<B> = random_reft("f2+l2", false, Component::BlockOutput, 7);
    let prompts = rows(&mut rng, &[6, 3, 9, 4, 7]);
    let go_on = |_, _| ControlFlow::Continue(());
    for (temperature, top_k, repetition_penalty) in
        [(0.0, 0, 1.0), (0.0, 0, 1.3), (1.5, 0, 1.0), (1.5, 20, 1.1)]
    {
        let config = GenerateConfig::default()
            .with_max_new_tokens(12)
            .with_temperature(temperature)
            .with_top_k(top_k)
            .with_top_p(0.9)
            .with_repetition_penalty(repetition_penalty)
            .with_seed(11)
            .with_stop_ids(vec![49]);
        let what = format!("temperature {temperature}, top_k {top_k}, penalty {repetition_penalty}");
        let run = |prompts: &[Vec<u32>], streams: Vec<u64>, padding| {
            let config = config.clone().with_padding(padding).with_streams(streams);
            generate(&model, prompts, &reft, &config, go_on).expect("generated")
        };
        let batched = run(&prompts, Vec::new(), Padding::Left);
        assert_eq!(batched, run(&prompts, Vec::new(), Padding::Right), "{what}: padding");
        for padding in [Padding::Left, Padding::Right] {
            let alone: Vec<Generated> =
                (0..prompts.len()).map(|i| run(&prompts[i..=i], vec![i as u64], padding).remove(0)).collect();
            assert_eq!(alone, batched, "{what}: alone, {padding:?}");
        }
        let tokens: Vec<Vec<u32>> = batched.iter().map(|text| text.tokens.clone()).collect();
        for batch_size in 1..=prompts.len() + 1 {
            for padding in [Padding::Left, Padding::Right] {
                let config = config.clone().with_padding(padding);
                let found = generate_all(&model, &reft, &prompts, &config, batch_size);
                assert_eq!(found.expect("generated"), tokens, "{what}: batches of {batch_size}, {padding:?}");
            }
        }
        // Rows have different random streams, and the interventions have an effect.
        let same_prompt = vec![prompts[0].clone(); 2];
        let twins = run(&same_prompt, Vec::new(), Padding::Left);
        assert_eq!(twins[0] == twins[1], temperature == 0.0, "{what}: streams");
        let unedited = generate(&model, &prompts, &NoHook, &config, go_on).expect("generated");
        assert_ne!(batched, unedited, "{what}: interventions");
    }
}

/// Loss, and gradients of the biases of all interventions, of one pass. It is packed for `Packing::Rows` and `Shared` on
/// backends that do so, and starts from what `reused` keeps.
fn pass_gradients<B: Kernels>(
    model: &Llama<B>,
    reft: &Reft<Autodiff<B>>,
    batch: &LanguageModelBatch,
    packing: Packing,
    reused: Option<&mut ReusedStates<B>>,
) -> (f32, Vec<Vec<f32>>) {
    let (tokens, first) = (&batch.tokens, reft.first_layer());
    let pass = match reused {
        Some(reused) => model.training_pass_reusing(tokens, first, packing, reused, 0),
        None => model.training_pass(tokens, first, packing, 0),
    };
    let rows = pass.rows(&batch.label_rows);
    let mut grads = None;
    let head_loss = |hidden| {
        let loss = nll(model, model.final_states_tracked(hidden, &rows), &batch.labels);
        (host_values(loss.clone())[0], loss)
    };
    let sum = pass.backward(&reft.hook(), head_loss, |collected| grads = Some(collected));
    let grads: <Autodiff<B> as burn::tensor::backend::AutodiffBackend>::Gradients = grads.expect("gradients");
    let bias = |edit: reft_core::reft::Edit<'_, Autodiff<B>>| edit.intervention.bias().val().grad(&grads);
    (sum, reft.edits().filter_map(bias).map(host_values).collect())
}

/// Texts without padding, with shared beginnings, and with states that are kept from an earlier pass give the loss and the
/// gradients of the padded batch.
fn packing_changes_nothing<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    let mut families = families();
    families.push(json!({"model_type": "mistral", "sliding_window": 3}));
    for (family, config) in families.into_iter().enumerate() {
        let model: Llama<B> = random_llama(config, 20 + family as u64);
        for positions in ["l1", "f1+l2", "f3", "l3", "all"] {
            // Two ids, so that many texts begin alike; prompts of one token, and of the whole text but one.
            let texts: Vec<Example> = (0..7)
                .map(|_| {
                    let len = rng.random_range(2..14);
                    let tokens = (0..len).map(|_| rng.random_range(1..3)).collect();
                    Example { prompt_len: rng.random_range(1..len), tokens }
                })
                .collect();
            let batch = LanguageModelBatch::new(&texts.iter().collect::<Vec<_>>());
            let config = ReftConfig::new(24, [1, 2]).with_rank(3).with_tied(rng.random());
            let config = config.with_positions(positions.parse().expect("positions"));
            let component = if rng.random() { Component::BlockInput } else { Component::MlpOutput };
            let reft: Reft<B> =
                config.with_component(component).with_seed(family as u64).init(&Default::default());
            let reft = Reft::<Autodiff<B>>::trainable(perturb(reft, &mut rng));
            let packing = Hook::<Autodiff<B>>::packing(&reft);
            assert_eq!(packing, Packing::Shared(Some(positions.parse().expect("positions"))));

            let what = format!("family {family}, {positions}, {}", component.name());
            let (sum, grads) = pass_gradients(&model, &reft, &batch, Packing::Grid, None);
            // Room for all states, for some and for none, and a file for the others; the second pass finds them.
            for (limit, file_limit) in [(u64::MAX, 0), (1500, 0), (0, 0), (0, u64::MAX), (1500, 1500)] {
                let file = tempfile::tempfile().expect("a file");
                let mut reused = ReusedStates::new(limit).with_overflow(file, file_limit);
                for pass in 0..2 {
                    let (other, other_grads) =
                        pass_gradients(&model, &reft, &batch, packing, Some(&mut reused));
                    assert!((sum - other).abs() / sum < 1e-6, "{what}, {limit}, pass {pass}: {sum}, {other}");
                    for (a, b) in grads.iter().zip(&other_grads) {
                        assert!(relative_error(b, a) < 1e-5, "{what}, {limit}, pass {pass}: {b:?}, {a:?}");
                    }
                    assert_eq!(grads.len(), other_grads.len(), "{what}");
                }
                assert!(reused.bytes() <= limit);
                assert_eq!(
                    reused.bytes() > 0,
                    limit > 1000 && B::packs_rows(DType::F32),
                    "{what}: {}",
                    reused.bytes()
                );
            }
            for packing in [packing, Packing::Rows] {
                let (other, other_grads) = pass_gradients(&model, &reft, &batch, packing, None);
                assert!((sum - other).abs() / sum < 1e-6, "{what}, {packing:?}: {sum}, {other}");
                for (a, b) in grads.iter().zip(&other_grads) {
                    assert!(relative_error(b, a) < 1e-5, "{what}, {packing:?}: {b:?}, {a:?}");
                }
                assert_eq!(grads.len(), other_grads.len(), "{what}");
            }
            let valid = burn::module::AutodiffModule::valid(&reft);
            let states = |packed: bool| match packed {
                true => model.states_of(&batch.tokens, &batch.label_rows, &valid),
                false => model.final_states(model.forward(&batch.tokens, None, &valid), &batch.label_rows),
            };
            assert!(relative_error(&host_values(states(true)), &host_values(states(false))) < 1e-5, "{what}");
        }
    }
}

/// Micro-batches of unequal lengths add up to the large batch.
fn accumulation_equals_the_large_batch<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    for component in
        [Component::BlockOutput, Component::BlockInput, Component::AttentionOutput, Component::MlpOutput]
    {
        let model: Llama<B> = random_llama(json!({}), 6);
        let reft = Reft::<Autodiff<B>>::trainable(random_reft("f1+l2", true, component, 8));
        let examples = examples(&mut rng, &[5, 17, 9, 12]);
        let (objective, trainable) = (LanguageModeling::new(&model, 4), reft.clone().into());
        let large = step_gradients(&objective, &trainable, &[examples.iter().collect()], false, 0);
        let micro_batches: Vec<Vec<&Example>> = examples.iter().map(|e| vec![e]).collect();
        let small = step_gradients(&objective, &trainable, &micro_batches, false, 0);
        assert_eq!((large.loss.labels, large.loss.tokens), (small.loss.labels, small.loss.tokens));
        assert!((large.loss.sum() - small.loss.sum()).abs() / large.loss.sum() < 1e-6);
        let name = component.name();
        for edit in reft.edits() {
            let weight = edit.intervention.weight().expect("has W").id;
            let gradient =
                |step: &StepGradients<B>| host_values(step.grads.get::<B, 2>(weight).expect("a gradient"));
            let error = relative_error(&gradient(&small), &gradient(&large));
            println!("{name}: relative deviation of the gradient of W {error:.1e}");
            assert!(error < 1e-6, "{name}: {error}");
        }
        for (a, b) in small.basis_grads.into_iter().zip(large.basis_grads) {
            let error =
                relative_error(&host_values(a.expect("a gradient")), &host_values(b.expect("a gradient")));
            println!("{name}: relative deviation of the gradient of R {error:.1e}");
            assert!(error < 1e-6, "{name}: {error}");
        }
    }
}

/// The gradient of every method, along a random direction of all its parameters, equals the central difference of the loss.
fn gradients_agree_with_finite_differences<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let model: Llama<B> = random_llama(json!({}), 9);
    let examples = examples(&mut rng, &[10, 7]);
    let base_config = random_reft::<B>("f1+l1", false, Component::BlockOutput, 1).config().clone();
    for method in Method::ALL {
        let config = base_config.clone().with_method(method);
        let reft: Reft<B> = config.with_seed(rng.random()).init(&Default::default());
        let tracked = Reft::<Autodiff<B>>::trainable(reft.clone());
        let objective = LanguageModeling::new(&model, 2);
        let step =
            step_gradients(&objective, &tracked.clone().into(), &[examples.iter().collect()], false, 0);
        let direction = random_direction(&reft, &mut rng);
        let derivative = derivative_along(&tracked, &step.grads, &direction);
        let n_labels: usize = examples.iter().map(Example::n_labels).sum();
        let loss =
            |by: f32| likelihood(&model, &moved(&reft, &direction, by), &examples, 2).nll * n_labels as f64;
        let h = 1e-2;
        let difference = (loss(h) - loss(-h)) / (2.0 * f64::from(h));
        let error = (derivative - difference).abs() / difference.abs().max(0.1);
        assert!(error < 2e-2, "{}: {derivative} against {difference}", method.name());
    }
}

/// Only the blocks from the first edited layer up run on the autodiff backend, and the gradient of the loss reaches the
/// interventions there.
fn the_tape_begins_at_the_first_edit<B: Kernels>() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let model: Llama<B> = random_llama(json!({}), 10);
    let n_layers = model.config().num_hidden_layers;
    let examples = examples(&mut rng, &[8, 6]);
    let members: Vec<&Example> = examples.iter().collect();
    let positions = "l1".parse().expect("positions");
    let batch = LanguageModelBatch::new(&members);
    let plain = host_values(model.forward(&batch.tokens, None, &NoHook));

    for first_layer in (0..n_layers).map(Some).chain([None]) {
        let recorder = Recorder::new(NoHook);
        let pass = model.training_pass::<Autodiff<B>>(&batch.tokens, first_layer, Packing::Grid, 0);
        let hidden = pass.forward(&recorder);
        let first = first_layer.unwrap_or(n_layers);
        assert_eq!(recorder.sites(), all_sites(first..n_layers), "from {first_layer:?}");
        assert!(!is_tracked(hidden.clone()), "from {first_layer:?}: nothing is trained");
        assert!(relative_error(&host_values(hidden.inner()), &plain) < 1e-6, "from {first_layer:?}");
    }

    for first_layer in 0..n_layers {
        let config = ReftConfig::new(24, first_layer..n_layers).with_rank(3).with_positions(positions);
        let reft: Reft<B> = config.with_seed(rng.random()).init(&Default::default());
        assert_eq!(reft.first_layer(), Some(first_layer));
        let tracked = Reft::<Autodiff<B>>::trainable(reft);
        let recorder = Recorder::new(tracked.hook());
        let pass = model.training_pass::<Autodiff<B>>(&batch.tokens, tracked.first_layer(), Packing::Grid, 0);
        let mut grads = None;
        let sum = pass.backward(
            &recorder,
            |hidden| {
                let states = model.final_states_tracked(hidden, &batch.label_rows);
                let loss = nll(&model, states, &batch.labels);
                (host_values(loss.clone())[0], loss)
            },
            |collected| grads = Some(collected),
        );
        assert_eq!(recorder.sites(), all_sites(first_layer..n_layers), "edits from layer {first_layer}");

        // The trainer's objective finds the same loss and the same gradients.
        let objective = LanguageModeling::new(&model, 2);
        let step =
            step_gradients(&objective, &tracked.clone().into(), std::slice::from_ref(&members), false, 0);
        assert!(
            (f64::from(sum) - step.loss.sum()).abs() / step.loss.sum() < 1e-5,
            "{sum} against {}",
            step.loss.sum()
        );
        let grads: <Autodiff<B> as burn::tensor::backend::AutodiffBackend>::Gradients =
            grads.expect("a backward pass");
        for edit in tracked.edits() {
            let bias = edit.intervention.bias();
            let found = bias.val().grad(&grads).unwrap_or_else(|| panic!("{}: no gradient", edit.site));
            let expected = step.grads.get::<B, 1>(bias.id).expect("a gradient");
            let error = relative_error(&host_values(found), &host_values(expected));
            assert!(error < 1e-4, "{}: {error}", edit.site);
        }
    }
}

/// `Σ −log p(label)`, with the logits on the tape.
fn nll<B: Kernels>(
    model: &Llama<B>,
    states: Tensor<Autodiff<B>, 2>,
    labels: &[u32],
) -> Tensor<Autodiff<B>, 1> {
    let logits = states.matmul(Tensor::from_inner(model.head_weight()).transpose());
    let ids: Vec<i64> = labels.iter().map(|id| i64::from(*id)).collect();
    let ids =
        Tensor::<Autodiff<B>, 2, Int>::from_data(TensorData::new(ids, [labels.len(), 1]), &logits.device());
    log_softmax(logits, 1).gather(1, ids).sum().neg()
}

on_every_backend!(
    padding_changes_nothing,
    the_cache_changes_nothing,
    shared_prompts_change_nothing,
    generation_is_the_same_in_any_batch,
    packing_changes_nothing,
    accumulation_equals_the_large_batch,
    gradients_agree_with_finite_differences,
    the_tape_begins_at_the_first_edit,
);
