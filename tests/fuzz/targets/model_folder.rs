//! A model folder. The weights are bytes (`model.safetensors`), or the JSON of their header (`model.safetensors.header`); without
//! either, they are what `config.json` asks for. Files that are absent are those of a small Llama.
//!
//! A model that loads reads a prompt and generates two tokens that exist, or is refused with a reason.

use crate::support::{
    model,
    parts::{Parts, write},
};
use burn_flex::Flex;
use reft_core::NoHook;
use reft_models::{
    Checkpoint, DropoutRates, GenerateConfig, Llama, LoadedModel, ModelConfig, ModelFiles, Padding, Precision,
    Pretrained, Roberta, TokenBatch, generate,
};
use std::ops::ControlFlow;

const WEIGHTS: &str = "model.safetensors";
const OTHER_FILES: [&str; 5] = [
    "model.safetensors.index.json",
    "one.safetensors",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
];

pub fn target(input: &[u8]) {
    let parts = Parts::of(input);
    let folder = parts.folder(&OTHER_FILES);
    let config = parts.get("config.json").unwrap_or(model::LLAMA.as_bytes());
    write(folder.path(), "config.json", config);
    let tokenizer = parts.get("tokenizer.json").unwrap_or(model::TOKENIZER.as_bytes());
    write(folder.path(), "tokenizer.json", tokenizer);
    let tensors = || model::tensors_of(config).or_else(|| model::tensors_of(model::LLAMA.as_bytes()));
    let weights = match (parts.get(WEIGHTS), parts.get("model.safetensors.header")) {
        (Some(bytes), _) => bytes.to_vec(),
        (None, Some(header)) => model::safetensors(header),
        (None, None) => model::safetensors(&model::header(&tensors().expect("a small model"))),
    };
    write(folder.path(), WEIGHTS, &weights);
    if let Some(header) = parts.get("one.safetensors.header") {
        write(folder.path(), "one.safetensors", &model::safetensors(header));
    }
    let files = ModelFiles::Folder(folder.path().into());
    if let Some(loaded) = load::<Llama<Flex>>(&files) {
        run_llama(&loaded);
    }
    if let Some(loaded) = load::<Roberta<Flex>>(&files) {
        run_encoder(&loaded);
    }
}

fn load<M: Pretrained<Flex>>(files: &ModelFiles) -> Option<LoadedModel<Flex, M>> {
    let checkpoint = Checkpoint::open::<Flex, M>(files, "model");
    let loaded = checkpoint.and_then(|checkpoint| {
        assert!(checkpoint.tensors().all(|(_, shape)| shape.len() < 16));
        checkpoint.load(Precision::default(), &Default::default())
    });
    match loaded {
        Ok(loaded) => Some(loaded),
        Err(error) => {
            assert!(!error.to_string().is_empty());
            None
        }
    }
}

fn run_llama(loaded: &LoadedModel<Flex, Llama<Flex>>) {
    let vocab = loaded.model.config().vocab_size();
    let text = loaded.tokenizer.encode("the old fox").unwrap_or_default();
    let config = GenerateConfig::default().with_max_new_tokens(2).with_stop_ids(loaded.stop_ids.clone());
    for prompt in [vec![0, 1, 2, 3], text] {
        match generate(&loaded.model, &[prompt], &NoHook, &config, |_, _| ControlFlow::Continue(())) {
            Ok(texts) => {
                let tokens = texts.iter().flat_map(|text| &text.tokens);
                assert!(tokens.clone().count() <= 2 && tokens.clone().all(|id| (*id as usize) < vocab));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
}

fn run_encoder(loaded: &LoadedModel<Flex, Roberta<Flex>>) {
    let config = loaded.model.config();
    let n_tokens = 4.min(config.context()).min(config.vocab_size());
    if n_tokens == 0 {
        return;
    }
    let batch = TokenBatch::new(&[(0..n_tokens as u32).collect::<Vec<_>>()], Padding::Right);
    let hidden = loaded.model.forward(&batch, DropoutRates::OFF, &NoHook);
    assert_eq!(hidden.dims(), [1, n_tokens, config.hidden_size()]);
}
