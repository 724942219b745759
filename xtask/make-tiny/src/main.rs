//! Makes the embedded model and the data of the quick start, in `crates/reft-train/assets/tiny`: generates a corpus and
//! trains a tokenizer and a small Llama on it.
//!
//! ```sh
//! cargo run --release -p make-tiny            # about twenty minutes on two cores
//! cargo run --release -p make-tiny -- 200     # fewer steps, to try a change
//! UPDATE_EXPECTED=1 cargo test -p reft-train --features ndarray --test selftest    # then: what devices have to compute
//! ```
//!
//! The model learns eight ways to answer a sentence, all but one requested by a word before it, as in
//! `past: the old fox runs in the garden`. The quick start then teaches it to answer in French *without* such a word, on
//! sentences that are not in the corpus. All random numbers are seeded.

mod corpus;

use anyhow::{Context, Result};
use burn::{
    backend::Autodiff,
    module::{Module, Param},
    optim::{AdamWConfig, GradientsParams, Optimizer},
    tensor::{Int, Tensor, TensorData, activation::log_softmax, backend::Backend},
};
use burn_flex::Flex;
use corpus::{SKILLS, Sentence, random_turn};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use reft_core::NoHook;
use reft_models::{
    GenerateConfig, Llama, LlamaConfig, LoadedModel, ModelFiles, Padding, Precision, TensorSource,
    TokenBatch, Tokenizer,
};
use reft_train::{
    eval::generate_all,
    optim::{Schedule, ScheduleKind, scale_and_clip},
};
use safetensors::{Dtype, tensor::TensorView};
use serde_json::json;
use std::{collections::HashSet, fs, path::Path, time::Instant};
use tokenizers::{
    AddedToken, PostProcessorWrapper, TokenizerBuilder,
    models::bpe::{BPE, BpeTrainer},
    pre_tokenizers::byte_level::ByteLevel,
    processors::template::TemplateProcessing,
};

type Train = Autodiff<Flex>;

const VOCAB: usize = 768;
const STEPS: usize = 2000;
const BATCH: usize = 48;
const PEAK_LR: f64 = 3e-3;

fn config() -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCAB,
        "max_position_embeddings": 128,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float16"
    })
}

/// All weights as trainable parameters. Vectors are matrices of one row.
#[derive(Module, Debug)]
struct Parameters<B: Backend> {
    tensors: Vec<Param<Tensor<B, 2>>>,
    #[module(skip)]
    names: Vec<String>,
}

/// Initializes the parameters that a model takes: norms with 1, all others normally with σ = 0.02, divided by √(2·layers)
/// where a projection writes to the residual stream (as in GPT-2).
struct InitialWeights<'a, B: Backend> {
    parameters: Parameters<B>,
    rng: &'a mut ChaCha8Rng,
    n_layers: usize,
}

impl<B: Backend> TensorSource<B> for InitialWeights<'_, B> {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        let n: usize = shape.iter().product();
        let into_residual = name.contains("o_proj") || name.contains("down_proj");
        let sigma = 0.02 / if into_residual { (2.0 * self.n_layers as f32).sqrt() } else { 1.0 };
        let values: Vec<f32> = match D {
            1 => vec![1.0; n],
            _ => (0..n).map(|_| sigma * self.rng.sample::<f32, _>(StandardNormal)).collect(),
        };
        let d_last = shape[D - 1];
        let matrix =
            Tensor::<B, 2>::from_data(TensorData::new(values, [n / d_last, d_last]), &Default::default());
        self.parameters.tensors.push(Param::from_tensor(matrix.clone()));
        self.parameters.names.push(name.into());
        matrix.reshape(shape)
    }
}

/// The parameters, in the order in which the model takes them.
struct CurrentWeights<'a, B: Backend> {
    parameters: &'a Parameters<B>,
    next: usize,
}

impl<B: Backend> TensorSource<B> for CurrentWeights<'_, B> {
    fn take<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Tensor<B, D> {
        assert_eq!(self.parameters.names[self.next], name, "the model takes its tensors in a fixed order");
        self.next += 1;
        self.parameters.tensors[self.next - 1].val().reshape(shape)
    }
}

fn main() -> Result<()> {
    let steps = std::env::args().nth(1).map_or(Ok(STEPS), |text| text.parse()).context("steps")?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/reft-train/assets/tiny");
    fs::create_dir_all(&folder)?;
    let mut rng = ChaCha8Rng::seed_from_u64(0);

    write_tokenizer(&folder, &mut rng)?;
    let config_json = serde_json::to_string_pretty(&config())? + "\n";
    fs::write(folder.join("config.json"), &config_json)?;
    write_quickstart(&folder)?;

    let config = LlamaConfig::parse(config_json.as_bytes()).map_err(anyhow::Error::msg)?;
    let tokenizer = Tokenizer::load(&ModelFiles::Folder(folder.clone()))?;
    let parameters = pretrain(&config, &tokenizer, steps, &mut rng)?;
    write_weights(&folder, &parameters)?;
    report(&folder)
}

/// Trains a byte-level BPE tokenizer.
fn write_tokenizer(folder: &Path, rng: &mut ChaCha8Rng) -> Result<()> {
    let texts: Vec<String> = (0..20_000)
        .map(|_| {
            let (question, answer) = random_turn(rng);
            format!("{question}\n{answer}")
        })
        .collect();
    let special = ["<unk>", "<s>", "</s>"].map(|text| AddedToken::from(text, true)).to_vec();
    let mut trainer = BpeTrainer::builder()
        .vocab_size(VOCAB)
        .special_tokens(special)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let byte_level = ByteLevel::new(false, true, true);
    let bos_template = TemplateProcessing::builder()
        .try_single("<s> $A")
        .map_err(anyhow::Error::msg)?
        .special_tokens(vec![("<s>", 1)])
        .build()?;
    let mut tokenizer = TokenizerBuilder::<
        BPE,
        tokenizers::NormalizerWrapper,
        ByteLevel,
        PostProcessorWrapper,
        ByteLevel,
    >::default()
    .with_model(BPE::default())
    .with_pre_tokenizer(Some(byte_level))
    .with_post_processor(Some(PostProcessorWrapper::Template(bos_template)))
    .with_decoder(Some(byte_level))
    .build()
    .map_err(anyhow::Error::msg)?;
    tokenizer.train(&mut trainer, texts.iter().map(String::as_str)).map_err(anyhow::Error::msg)?;
    tokenizer.save(folder.join("tokenizer.json"), false).map_err(anyhow::Error::msg)?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "model_max_length": 128
    });
    fs::write(folder.join("tokenizer_config.json"), serde_json::to_string_pretty(&config)? + "\n")?;
    Ok(())
}

/// Writes the data of the quick start: held-out sentences with French answers, without a word that requests French.
fn write_quickstart(folder: &Path) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut seen = HashSet::new();
    for (file, n) in [("french-train.jsonl", 600), ("french-eval.jsonl", 200)] {
        let mut lines = String::new();
        let mut n_left = n;
        while n_left > 0 {
            let sentence = Sentence::random(&mut rng);
            if sentence.is_held_out() && seen.insert(sentence) {
                let row = json!({"instruction": sentence.english(), "output": sentence.french()});
                lines += &(row.to_string() + "\n");
                n_left -= 1;
            }
        }
        fs::write(folder.join(file), lines)?;
    }
    Ok(())
}

/// Trains the model on the corpus.
fn pretrain(
    config: &LlamaConfig,
    tokenizer: &Tokenizer,
    steps: usize,
    rng: &mut ChaCha8Rng,
) -> Result<Parameters<Train>> {
    let empty = Parameters { tensors: Vec::new(), names: Vec::new() };
    let mut init = InitialWeights { parameters: empty, rng, n_layers: config.num_hidden_layers };
    Llama::<Train>::from_source(config, &mut init);
    let mut parameters = init.parameters;
    println!("{} parameters, {steps} steps of {BATCH} rows", parameters.num_params());
    let mut optimizer =
        AdamWConfig::new().with_beta_2(0.98).with_epsilon(1e-8).with_weight_decay(0.01).init();
    let schedule =
        Schedule { kind: ScheduleKind::Cosine, peak: PEAK_LR, warmup_steps: steps / 20, total_steps: steps };
    let begun = Instant::now();
    let mut mean = 0.0;
    for step in 0..steps {
        let rows = (0..BATCH)
            .map(|_| {
                let (question, answer) = random_turn(rng);
                tokenizer.encode(&format!("{question}\n{answer}</s>"))
            })
            .collect::<Result<Vec<_>, _>>()?;
        let model =
            Llama::<Train>::from_source(config, &mut CurrentWeights { parameters: &parameters, next: 0 });
        let loss = language_model_loss(&model, &rows);
        mean += loss.clone().into_scalar() as f64;
        let grads = GradientsParams::from_grads(loss.backward(), &parameters);
        let (grads, _) = scale_and_clip(grads, &parameters, 1.0, 1.0);
        parameters = optimizer.step(schedule.lr(step), parameters, grads);
        if (step + 1) % 100 == 0 {
            println!(
                "step {:>5}  loss {:.4}  {:.0} s",
                step + 1,
                mean / 100.0,
                begun.elapsed().as_secs_f64()
            );
            mean = 0.0;
        }
    }
    Ok(parameters)
}

/// Mean negative log-likelihood of all tokens except the first of each row.
fn language_model_loss(model: &Llama<Train>, rows: &[Vec<u32>]) -> Tensor<Train, 1> {
    let batch = TokenBatch::new(rows, Padding::Right);
    let (mut label_rows, mut labels) = (Vec::new(), Vec::new());
    for (idx, row) in rows.iter().enumerate() {
        for (position, token) in row.iter().enumerate().skip(1) {
            label_rows.push(idx * batch.seq + position - 1);
            labels.push(i64::from(*token));
        }
    }
    let logits = model.logits(model.forward(&batch, None, &NoHook), &label_rows);
    let n = labels.len();
    let targets = Tensor::<Train, 2, Int>::from_data(TensorData::new(labels, [n, 1]), &Default::default());
    log_softmax(logits, 1).gather(1, targets).mean().neg()
}

/// Writes the weights in f16, by Hugging Face's names.
fn write_weights(folder: &Path, parameters: &Parameters<Train>) -> Result<()> {
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = parameters
        .names
        .iter()
        .zip(&parameters.tensors)
        .map(|(name, tensor)| {
            let [rows, columns] = tensor.dims();
            let shape = if name.contains("norm") { vec![columns] } else { vec![rows, columns] };
            let values: Vec<f32> = tensor.val().into_data().to_vec().expect("f32");
            let bytes = values.iter().flat_map(|x| burn::tensor::f16::from_f32(*x).to_le_bytes()).collect();
            (name.clone(), shape, bytes)
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name.clone(), TensorView::new(Dtype::F16, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None)?)?;
    Ok(())
}

/// Prints the accuracy of every skill on held-out sentences.
fn report(folder: &Path) -> Result<()> {
    let loaded: LoadedModel<Flex, Llama<Flex>> = LoadedModel::load(
        &ModelFiles::Folder(folder.into()),
        "tiny",
        Precision::default(),
        &Default::default(),
    )?;
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let sentences: Vec<Sentence> = std::iter::repeat_with(|| Sentence::random(&mut rng))
        .filter(|sentence| sentence.is_held_out())
        .take(200)
        .collect();
    let config = GenerateConfig::default().with_stop_ids(loaded.stop_ids.clone());
    for skill in SKILLS {
        let turns: Vec<(String, String)> = sentences.iter().map(|sentence| sentence.turn(skill)).collect();
        let prompts = turns
            .iter()
            .map(|(question, _)| loaded.tokenizer.encode(&format!("{question}\n")))
            .collect::<Result<Vec<_>, _>>()?;
        let out = generate_all(&loaded.model, &NoHook, &prompts, &config, 50)?;
        let mut exact = 0;
        for (tokens, (_, answer)) in out.iter().zip(&turns) {
            exact += usize::from(loaded.tokenizer.decode(tokens)? == *answer);
        }
        let sample = loaded.tokenizer.decode(&out[0])?;
        let accuracy = 100.0 * exact as f64 / turns.len() as f64;
        println!(
            "{}: {accuracy:.1} % exact; {:?} -> {sample:?}",
            skill.word().unwrap_or("agree"),
            turns[0].0
        );
    }
    Ok(())
}
