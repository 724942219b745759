//! What a class writes into the parts of `tokenizer.json`: normalizer, pre-tokenizer, post-processor, decoder.

use super::{
    class::{BertOptions, Class},
    json::JsonFile,
};
use reft_core::FileError;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokenizers::{
    NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, Tokenizer, normalizers::Precompiled,
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

/// Reports a normalizer whose table of characters its parser would panic at, or whose use would: all of the table that a text
/// can reach must exist.
///
/// # Errors
/// The reason.
pub(super) fn check_normalizer(value: &Value) -> Result<(), String> {
    for inner in value["normalizers"].as_array().into_iter().flatten() {
        check_normalizer(inner)?;
    }
    if value["type"] != "Precompiled" {
        return Ok(());
    }
    let damaged = || {
        "the precompiled_charsmap of the normalizer is damaged; copy or download the file again".to_string()
    };
    // First, because the parser allocates the size that the table claims; its parts are private.
    let table = value["precompiled_charsmap"].as_str().and_then(base64);
    table.filter(|table| is_complete(table)).ok_or_else(damaged)?;
    serde_json::from_str::<Precompiled>(&value.to_string()).map_err(|_| damaged())?;
    Ok(())
}

/// Whether every step through a table of characters stays inside of it. The table is that of SentencePiece: the size of a trie in
/// bytes, its units ([Darts](https://github.com/s-yata/darts-clone)), and the texts that they point to.
fn is_complete(table: &[u8]) -> bool {
    let Some((size, rest)) = table.split_first_chunk::<4>() else { return false };
    let Some((units, texts)) = rest.split_at_checked(u32::from_le_bytes(*size) as usize / 4 * 4) else {
        return false;
    };
    let Ok(texts) = std::str::from_utf8(texts) else { return false };
    let unit = |at: usize| {
        let bytes = units.get(4 * at..)?.first_chunk::<4>()?;
        Some(u32::from_le_bytes(*bytes) as usize)
    };
    let offset = |unit: usize| (unit >> 10) << ((unit & (1 << 9)) >> 6);
    let Some(root) = unit(0) else { return false };
    let mut is_known = vec![false; units.len() / 4];
    let mut nodes = vec![offset(root)];
    while let Some(node) = nodes.pop() {
        for byte in 1..=255 {
            let at = node ^ byte;
            let Some(child) = unit(at) else { return false };
            if child & (1 << 31 | 0xff) != byte || std::mem::replace(&mut is_known[at], true) {
                continue;
            }
            let next = at ^ offset(child);
            let has_text = (child >> 8) & 1 == 1;
            if has_text && !unit(next).is_some_and(|leaf| texts.is_char_boundary(leaf & !(1 << 31))) {
                return false;
            }
            nodes.push(next);
        }
    }
    true
}

/// The bytes of a text in base64.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::new();
    let (mut bits, mut n_bits) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        bits = bits << 6 | u32::from(digit(c)?);
        n_bits += 6;
        if n_bits >= 8 {
            n_bits -= 8;
            bytes.push((bits >> n_bits) as u8);
            bits &= (1 << n_bits) - 1;
        }
    }
    Some(bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A table whose trie has one block of 256 units after the root, which gives `a` the text `A`.
    fn table(change: impl FnOnce(&mut Vec<u32>)) -> Vec<u8> {
        let mut units = vec![0u32; 512];
        units[0] = 256 << 10;
        let at = 256 + usize::from(b'a');
        // The label with a text, and the offset to the unit 256 with the place of the text.
        units[at] = u32::from(b'a') | 1 << 8 | (at as u32 ^ 256) << 10;
        units[256] = 1 << 31;
        change(&mut units);
        let size = (4 * units.len() as u32).to_le_bytes();
        let units = units.iter().flat_map(|unit| unit.to_le_bytes());
        size.into_iter().chain(units).chain(*b"A\0").collect()
    }

    #[test]
    fn tables_of_characters_that_lead_outside_are_refused() {
        assert!(is_complete(&table(|_| ())));
        for (case, change) in [
            ("no units", (|units: &mut Vec<u32>| units.clear()) as fn(&mut Vec<u32>)),
            ("half a block", |units| units.truncate(300)),
            ("the root leads outside", |units| units[0] = 1 << 20 << 10),
            ("a child leads outside", |units| units[256 + 97] |= 1 << 22),
            ("a text is outside", |units| units[256] = 1 << 31 | 3),
        ] {
            assert!(!is_complete(&table(change)), "{case}");
        }
        assert!(!is_complete(b"") && !is_complete(&[255, 255, 255, 255, 0]));
    }

    #[test]
    fn base64_is_decoded() {
        assert_eq!(base64("aGVsbG8="), Some(b"hello".into()));
        assert_eq!(base64("/+8="), Some(vec![255, 239]));
        assert_eq!((base64(""), base64("a b")), (Some(Vec::new()), None));
    }

    #[test]
    fn a_damaged_table_of_characters_is_an_error() {
        for map in ["!", "AAAA", "", "//////8="] {
            let value = json!({"type": "Sequence", "normalizers": [
                {"type": "Precompiled", "precompiled_charsmap": map}]});
            assert!(check_normalizer(&value).expect_err("damaged").contains("precompiled_charsmap"), "{map}");
        }
        check_normalizer(&json!({"type": "Precompiled"})).expect_err("absent");
        check_normalizer(&json!({"type": "NFC"})).expect("another one");
    }
}
