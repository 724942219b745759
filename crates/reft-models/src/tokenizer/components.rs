//! What a class writes into the parts of `tokenizer.json`: normalizer, pre-tokenizer, post-processor, decoder.

use super::{
    class::{BertOptions, Class},
    json::JsonFile,
};
use reft_core::FileError;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::{
    NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer,
    pre_tokenizers::byte_level::ByteLevel,
};

/// The beginning of a word in tokenizers of SentencePiece.
const WORD: &str = "▁";

/// Writes `add_prefix_space` and `legacy` into a Llama tokenizer, which transformers converts anew if
/// `add_prefix_space` is set. Other kinds of tokenizers are left as they are.
pub(super) fn write_llama_prefix(
    tokenizer: &mut Tokenizer,
    class: &Class,
    config: &JsonFile,
) -> Result<(), FileError> {
    if class.name != "LlamaTokenizer" {
        return Ok(());
    }
    let Some(prefix) = config.flag("add_prefix_space")? else { return Ok(()) };
    let legacy = config.flag("legacy")?.unwrap_or(true);
    let is_word_piece = match (tokenizer.get_pre_tokenizer(), tokenizer.get_normalizer()) {
        (Some(PreTokenizerWrapper::Metaspace(_)), _) => true,
        (None, Some(normalizer)) => to_json(normalizer).to_string().contains(WORD),
        _ => false,
    };
    if !is_word_piece {
        return Ok(());
    }
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": WORD});
    let prepend = json!({"type": "Prepend", "prepend": WORD});
    let normalizers = if prefix { vec![prepend, replace] } else { vec![replace] };
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    let scheme = if prefix { "first" } else { "never" };
    let metaspace =
        json!({"type": "Metaspace", "replacement": WORD, "prepend_scheme": scheme, "split": false});
    tokenizer.with_normalizer(from_json::<NormalizerWrapper>(normalizer).filter(|_| legacy));
    tokenizer.with_pre_tokenizer(from_json::<PreTokenizerWrapper>(metaspace).filter(|_| !legacy));
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": WORD}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let decoder = json!({"type": "Sequence", "decoders": decoders});
    tokenizer.with_decoder(from_json::<tokenizers::DecoderWrapper>(decoder));
    Ok(())
}

/// Writes the options of a class into the parts of its tokenizer.
///
/// # Errors
/// If an option has the wrong type.
pub(super) fn write_options(
    tokenizer: &mut Tokenizer,
    class: &Class,
    config: &JsonFile,
) -> Result<(), FileError> {
    if let Some(options) = class.normalizer {
        write_normalizer(tokenizer, options, config)?;
    }
    if class.prefix_space {
        write_prefix_space(tokenizer, class, config)?;
    }
    Ok(())
}

fn write_normalizer(
    tokenizer: &mut Tokenizer,
    options: BertOptions,
    config: &JsonFile,
) -> Result<(), FileError> {
    let lowercase = config.flag("do_lower_case")?.unwrap_or(true);
    let strip_accents = config.flag("strip_accents")?;
    let chinese = config.flag("tokenize_chinese_chars")?.unwrap_or(true);
    if let Some(NormalizerWrapper::BertNormalizer(normalizer)) = tokenizer.get_normalizer() {
        let mut normalizer = *normalizer;
        normalizer.lowercase = lowercase;
        normalizer.strip_accents = strip_accents;
        if options == BertOptions::CaseAndChinese {
            normalizer.handle_chinese_chars = chinese;
        }
        tokenizer.with_normalizer(Some(normalizer));
    }
    Ok(())
}

fn write_prefix_space(tokenizer: &mut Tokenizer, class: &Class, config: &JsonFile) -> Result<(), FileError> {
    let prefix = config.flag("add_prefix_space")?.unwrap_or(false);
    let trim = config.flag("trim_offsets")?.unwrap_or(true);
    if let Some(PreTokenizerWrapper::ByteLevel(bytes)) = tokenizer.get_pre_tokenizer() {
        let bytes = bytes.add_prefix_space(prefix);
        tokenizer.with_pre_tokenizer(Some(bytes));
    }
    let post_processor: Option<PostProcessorWrapper> = match tokenizer.get_post_processor() {
        _ if !class.offsets => None,
        Some(PostProcessorWrapper::Roberta(roberta)) => {
            Some(roberta.clone().add_prefix_space(prefix).trim_offsets(trim).into())
        }
        Some(PostProcessorWrapper::ByteLevel(bytes)) => {
            let bytes: ByteLevel = *bytes;
            Some(bytes.add_prefix_space(prefix).trim_offsets(trim).into())
        }
        _ => None,
    };
    if post_processor.is_some() {
        tokenizer.with_post_processor(post_processor);
    }
    Ok(())
}

/// Whether the post-processor puts a start token before a text and an end token after it.
pub(super) struct TemplateFlags {
    /// What the files say.
    pub named: [Option<bool>; 2],
    /// The defaults of the class.
    pub defaults: [bool; 2],
}

/// Names of the flags.
pub(super) const TEMPLATE_FLAGS: [&str; 2] = ["add_bos_token", "add_eos_token"];

/// The flags of a class that writes its post-processor.
///
/// # Errors
/// If a flag has the wrong type.
pub(super) fn template_flags(
    class: &Class,
    backend: bool,
    config: &JsonFile,
) -> Result<Option<TemplateFlags>, FileError> {
    let defaults = match class.writes_template {
        Some(add_bos) => [add_bos, false],
        None if backend && TEMPLATE_FLAGS.iter().any(|key| config.has(key)) => [false; 2],
        None => return Ok(None),
    };
    let mut named = [None; 2];
    for (flag, key) in named.iter_mut().zip(TEMPLATE_FLAGS) {
        // Null counts as false here.
        *flag = if config.has(key) { Some(config.flag(key)?.unwrap_or(false)) } else { None };
    }
    Ok(Some(TemplateFlags { named, defaults }))
}

/// The post-processor that puts a start token before each text and an end token after it.
pub(super) fn template(bos: Option<(&str, u32)>, eos: Option<(&str, u32)>) -> Option<PostProcessorWrapper> {
    let special = |token: Option<(&str, u32)>, type_id: u32| {
        token.map(|(text, _)| json!({"SpecialToken": {"id": text, "type_id": type_id}}))
    };
    let text = |id: &str, type_id: u32| Some(json!({"Sequence": {"id": id, "type_id": type_id}}));
    let single: Vec<Value> = [special(bos, 0), text("A", 0), special(eos, 0)].into_iter().flatten().collect();
    let second = [special(bos, 1), text("B", 1), special(eos, 1)].into_iter().flatten();
    let pair: Vec<Value> = single.iter().cloned().chain(second).collect();
    let tokens = bos
        .into_iter()
        .chain(eos)
        .map(|(text, id)| (text.to_string(), json!({"id": text, "ids": [id], "tokens": [text]})));
    let tokens: serde_json::Map<String, Value> = tokens.collect();
    from_json(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}))
}

/// Reports parts that would panic when they are used: a template with a special token without an id, pieces of length 0, and
/// decoders that strip characters from the end of tokens.
///
/// # Errors
/// The reason.
pub(super) fn check(tokenizer: &Tokenizer) -> Result<(), String> {
    if let Some(post_processor) = tokenizer.get_post_processor() {
        check_template(&to_json(post_processor))?;
    }
    if let Some(pre_tokenizer) = tokenizer.get_pre_tokenizer() {
        check_lengths(&to_json(pre_tokenizer))?;
    }
    if let Some(decoder) = tokenizer.get_decoder() {
        check_decoder(&to_json(decoder))?;
    }
    Ok(())
}

fn check_lengths(value: &Value) -> Result<(), String> {
    for inner in value["pretokenizers"].as_array().into_iter().flatten() {
        check_lengths(inner)?;
    }
    if value["type"] == "FixedLength" && value["length"] == 0 {
        return Err("the pre_tokenizer cuts texts into pieces of length 0".into());
    }
    Ok(())
}

fn check_decoder(value: &Value) -> Result<(), String> {
    for inner in value["decoders"].as_array().into_iter().flatten() {
        check_decoder(inner)?;
    }
    match value["stop"].as_u64() {
        Some(stop) if stop > 0 => {
            Err(format!("the decoder strips {stop} characters at the end of tokens, which is not supported"))
        }
        _ => Ok(()),
    }
}

fn check_template(value: &Value) -> Result<(), String> {
    for inner in value["processors"].as_array().into_iter().flatten() {
        check_template(inner)?;
    }
    let pieces = ["single", "pair"].iter().filter_map(|key| value[key].as_array()).flatten();
    for token in pieces.filter_map(|piece| piece["SpecialToken"]["id"].as_str()) {
        if value["special_tokens"].get(token).is_none() {
            return Err(format!("the post_processor uses the special token {token:?} without an id for it"));
        }
    }
    Ok(())
}

fn to_json<T: serde::Serialize>(part: &T) -> Value {
    serde_json::to_value(part).unwrap_or_default()
}

fn from_json<T: DeserializeOwned>(part: Value) -> Option<T> {
    serde_json::from_value(part).ok()
}
