//! Special tokens and added tokens, as `from_pretrained` of transformers reads them.

use super::{
    class::{Class, Flags, SPECIAL},
    components::{TEMPLATE_FLAGS, TemplateFlags, template},
    json::JsonFile,
};
use crate::files::kind_of;
use reft_core::FileError;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, HashMap, HashSet};
use tokenizers::AddedToken;

/// Index of the start token in [`SPECIAL`].
pub(super) const BOS: usize = 0;
/// Index of the end token in [`SPECIAL`].
pub(super) const EOS: usize = 1;
/// Index of the padding token in [`SPECIAL`].
const PAD: usize = 4;
/// Index of the mask token in [`SPECIAL`].
const MASK: usize = 6;

const ADDITIONAL: &str = "additional_special_tokens";
const EXTRA: &str = "extra_special_tokens";
const EXPECTED: &str = "text, an object with `content`, or null";

/// A token that a file names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Named {
    /// A text: the token's flags stay as they are, if the tokenizer has it.
    Text(String),
    /// A token with flags. `normalized` is `!special` if the file does not say it.
    Token { token: AddedToken, normalized: Option<bool> },
}

impl Named {
    fn text(&self) -> &str {
        match self {
            Named::Text(text) => text,
            Named::Token { token, .. } => &token.content,
        }
    }

    /// A token without flags.
    fn plain(text: &str) -> Self {
        Named::Token { token: AddedToken::from(text, false), normalized: None }
    }

    /// The token that is added to the tokenizer.
    fn into_token(self, special: bool) -> AddedToken {
        match self {
            Named::Text(text) => AddedToken::from(text, special),
            Named::Token { token, normalized } => {
                let special = special || token.special;
                token.special(special).normalized(normalized.unwrap_or(!special))
            }
        }
    }
}

/// The special tokens of a tokenizer, and all tokens that must be added to it.
#[derive(Debug)]
pub(super) struct SpecialTokens {
    tokens: [Option<Named>; 7],
    additional: Vec<Named>,
    /// Added tokens of the files by id.
    decoder: BTreeMap<u32, Named>,
    /// Whether a file names the start and the end token, so that they are not defaults of the class.
    is_named: [bool; 2],
}

/// A special token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its text.
    pub text: String,
    /// Its id.
    pub id: u32,
}

/// The files that name tokens.
pub(super) struct TokenFiles<'a> {
    /// `tokenizer_config.json`.
    pub config: &'a JsonFile,
    /// `special_tokens_map.json`.
    pub map: &'a JsonFile,
    /// `added_tokens.json`.
    pub added: &'a JsonFile,
}

impl SpecialTokens {
    /// Reads the tokens that the files name.
    ///
    /// With `added_tokens_decoder`, `tokenizer_config.json` alone counts. Without it, `special_tokens_map.json` replaces
    /// what `tokenizer_config.json` names, and the added tokens are those of `added_tokens.json` and `tokenizer.json`.
    ///
    /// # Errors
    /// If a value has the wrong type.
    pub fn read(
        files: &TokenFiles<'_>,
        class: &Class,
        tokenizer: &tokenizers::Tokenizer,
    ) -> Result<Self, FileError> {
        let TokenFiles { config, map, added } = files;
        let has_decoder = config.get("added_tokens_decoder").is_some();
        let source = |key: &str| if !has_decoder && map.has(key) { *map } else { *config };
        let mut special = Self {
            tokens: Default::default(),
            additional: Vec::new(),
            decoder: BTreeMap::new(),
            is_named: [false; 2],
        };
        let mut named: [Option<Named>; 7] = Default::default();
        for (slot, key) in named.iter_mut().zip(SPECIAL) {
            let file = source(key);
            *slot = match file.get(key) {
                Some(value) => Some(parse(value).ok_or_else(|| file.wrong(key, value, EXPECTED))?),
                None => None,
            };
        }
        special.is_named =
            [BOS, EOS].map(|idx| named[idx].as_ref().is_some_and(|token| !token.text().is_empty()));
        let mut additional = additional_tokens(config)?;
        if !has_decoder {
            for token in additional_tokens(map)?.unwrap_or_default() {
                let list = additional.get_or_insert_default();
                if !list.contains(&token) {
                    list.push(token);
                }
            }
        }
        if has_decoder {
            special.read_decoder(config)?;
        } else {
            special.read_added(added, &named, additional.as_deref().unwrap_or_default())?;
            for (id, token) in tokenizer.get_added_tokens_decoder() {
                let normalized = Some(token.normalized);
                special.decoder.insert(id, Named::Token { token, normalized });
            }
        }
        for (idx, key) in SPECIAL.into_iter().enumerate() {
            let is_null = source(key).has(key) && named[idx].is_none();
            special.tokens[idx] = match named[idx].take() {
                Some(token) => Some(special.flagged(idx, token, class)),
                None if !is_null && !class.tokens[idx].is_empty() => {
                    Some(with_flags(idx, class.tokens[idx].into(), class.flags))
                }
                None => None,
            };
            let padding = tokenizer.get_padding().map(|padding| &padding.pad_token);
            if let (PAD, false, None, Some(text)) = (idx, is_null, &special.tokens[idx], padding) {
                special.tokens[idx] = Some(Named::Text(text.clone()));
            }
        }
        let n_extra = if class.extra_ids { extra_ids(config)? } else { 0 };
        let has_extra = additional.iter().flatten().any(|token| token.text().contains("<extra_id_"));
        let is_null = source(ADDITIONAL).has(ADDITIONAL) && additional.is_none();
        let defaults = if is_null { &[][..] } else { class.additional };
        special.additional =
            additional.unwrap_or_else(|| defaults.iter().map(|text| Named::Text(text.to_string())).collect());
        special.additional.extend(class.always.iter().map(|text| Named::Text(text.to_string())));
        if !has_extra {
            special.additional.extend((0..n_extra).map(|id| Named::Text(format!("<extra_id_{id}>"))));
        }
        Ok(special)
    }

    /// Reads `added_tokens_decoder`: tokens by id.
    fn read_decoder(&mut self, config: &JsonFile) -> Result<(), FileError> {
        const KEY: &str = "added_tokens_decoder";
        for (id, value) in config.object(KEY)?.into_iter().flatten() {
            let id: u32 = id
                .trim()
                .parse()
                .map_err(|_| config.invalid(format!("`{KEY}` has the key {id:?}, expected a token id")))?;
            match parse(value) {
                Some(token @ Named::Token { .. }) => self.decoder.insert(id, token),
                _ => {
                    return Err(config.wrong(&format!("{KEY}.{id}"), value, "an object with `content`"));
                }
            };
        }
        Ok(())
    }

    /// Reads `added_tokens.json`: ids by text.
    fn read_added(
        &mut self,
        added: &JsonFile,
        named: &[Option<Named>],
        additional: &[Named],
    ) -> Result<(), FileError> {
        let special: HashSet<&str> = named.iter().flatten().chain(additional).map(Named::text).collect();
        for (text, value) in &added.values {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            let id = id.ok_or_else(|| added.wrong(text, value, "a token id"))?;
            let special = special.contains(text.as_str());
            let token = AddedToken::from(text.as_str(), special);
            self.decoder.insert(id, Named::Token { token, normalized: Some(!special) });
        }
        Ok(())
    }

    /// The added token with the text of a named one if there is one, else the named one as the class makes it.
    fn flagged(&self, idx: usize, named: Named, class: &Class) -> Named {
        match (self.decoder.values().rfind(|token| token.text() == named.text()), named) {
            (Some(token), _) => token.clone(),
            (None, Named::Text(text)) => with_flags(idx, text, class.flags),
            (None, token) => token,
        }
    }

    /// Adds the tokens to the tokenizer, and flags the special ones. Returns whether a file gives the start token and the
    /// end token an id.
    ///
    /// # Errors
    /// If a token does not get the id that its file gives it, or the end token that a file names has no id.
    pub fn add_to(
        &self,
        tokenizer: &mut tokenizers::Tokenizer,
        files: &TokenFiles<'_>,
    ) -> Result<[bool; 2], FileError> {
        let has_id = [BOS, EOS].map(|idx| {
            let in_decoder = |text: &str| self.decoder.values().any(|token| token.text() == text);
            self.text(idx).is_some_and(|text| tokenizer.token_to_id(text).is_some() || in_decoder(text))
        });
        if self.is_named[EOS] && !has_id[EOS] {
            return Err(self.without_id(EOS, files));
        }
        let new: BTreeMap<u32, &str> = (self.decoder.iter().map(|(id, token)| (*id, token.text())))
            .filter(|(_, text)| tokenizer.token_to_id(text).is_none())
            .collect();
        let tokens = self.tokens_to_add(tokenizer);
        tokenizer.add_tokens(&tokens);
        for (id, text) in new {
            if let Some(found) = tokenizer.token_to_id(text).filter(|found| *found != id) {
                let has_decoder = files.config.get("added_tokens_decoder").is_some();
                let file = if has_decoder { files.config } else { files.added };
                return Err(file.invalid(format!(
                    "the added token {text:?} has the id {id}, but tokenizer.json does not have it and its next free id \
                     is {found}; add the token with its id to tokenizer.json"
                )));
            }
        }
        Ok(has_id)
    }

    /// The tokens that transformers adds to the tokenizer, in its order.
    fn tokens_to_add(&self, tokenizer: &tokenizers::Tokenizer) -> Vec<AddedToken> {
        let special: Vec<&Named> = self.all();
        let is_special: HashSet<&str> = special.iter().map(|token| token.text()).collect();
        let existing = tokenizer.get_added_tokens_decoder();
        let known: HashSet<&str> = existing
            .values()
            .map(|token| token.content.as_str())
            .chain(self.decoder.values().map(Named::text))
            .collect();
        let by_text: HashMap<&str, &Named> =
            self.decoder.values().map(|token| (token.text(), token)).collect();
        let missing = special.into_iter().filter(|token| match token {
            Named::Text(text) => !known.contains(text.as_str()),
            token => by_text.get(token.text()) != Some(token),
        });
        let added = self.decoder.values().chain(missing).cloned();
        added
            .map(|token| {
                let special = is_special.contains(token.text());
                token.into_token(special)
            })
            .collect()
    }

    /// The error of a named token that no file gives an id.
    fn without_id(&self, idx: usize, files: &TokenFiles<'_>) -> FileError {
        let key = SPECIAL[idx];
        let from_map = files.config.get("added_tokens_decoder").is_none() && files.map.has(key);
        let file = if from_map { files.map } else { files.config };
        let text = self.text(idx).unwrap_or_default();
        file.invalid(format!(
            "`{key}` is {text:?}, which has no id in tokenizer.json or added_tokens_decoder; add the token with its id, or \
             name the token that the model was trained with"
        ))
    }

    /// Writes the post-processor of a class that makes it itself.
    ///
    /// # Errors
    /// If it needs a token that has no id.
    pub fn write_template(
        &self,
        tokenizer: &mut tokenizers::Tokenizer,
        flags: Option<TemplateFlags>,
        has_id: [bool; 2],
        files: &TokenFiles<'_>,
    ) -> Result<(), FileError> {
        let Some(TemplateFlags { named, defaults }) = flags else { return Ok(()) };
        let mut ends = [None; 2];
        for idx in [BOS, EOS] {
            if !named[idx].unwrap_or(defaults[idx]) {
                continue;
            }
            match self.text(idx) {
                None if named[idx].is_some() => {
                    let (flag, key) = (TEMPLATE_FLAGS[idx], SPECIAL[idx]);
                    return Err(files.config.invalid(format!(
                        "`{flag}` is true, but there is no `{key}`; name the token, or set `{flag}` to false"
                    )));
                }
                None => {}
                Some(_) if !has_id[idx] && (self.is_named[idx] || named[idx].is_some()) => {
                    return Err(self.without_id(idx, files));
                }
                // The default token of the class: this tokenizer is of another kind.
                Some(_) if !has_id[idx] => return Ok(()),
                Some(text) => ends[idx] = tokenizer.token_to_id(text).map(|id| (text, id)),
            }
        }
        tokenizer.with_post_processor(template(ends[BOS], ends[EOS]));
        Ok(())
    }

    /// All special tokens, each text once, in transformers' order.
    fn all(&self) -> Vec<&Named> {
        let mut seen = HashSet::new();
        let tokens = self.tokens.iter().flatten().chain(&self.additional);
        tokens.filter(|token| !token.text().is_empty() && seen.insert(token.text())).collect()
    }

    /// The text of a special token, by its index in [`SPECIAL`].
    pub fn text(&self, idx: usize) -> Option<&str> {
        self.tokens[idx].as_ref().map(Named::text).filter(|text| !text.is_empty())
    }

    /// Names and texts of all special tokens, as transformers gives them to chat templates.
    pub fn map(&self, files: &TokenFiles) -> Map<String, Value> {
        let texts = SPECIAL.iter().enumerate();
        let mut map: Map<String, Value> =
            texts.filter_map(|(idx, key)| Some((key.to_string(), self.text(idx)?.into()))).collect();
        let additional: Vec<Value> = self.additional.iter().map(|token| token.text().into()).collect();
        if !additional.is_empty() {
            map.insert(ADDITIONAL.into(), additional.into());
        }
        // Those of a processor of images or sounds have names of their own.
        for extra in [files.map, files.config].into_iter().filter_map(|file| file.get(EXTRA)?.as_object()) {
            let texts =
                extra.iter().filter_map(|(name, token)| Some((name.clone(), parse(token)?.text().into())));
            map.extend(texts);
        }
        map
    }
}

/// The token that a class makes of a text.
fn with_flags(idx: usize, text: String, flags: Flags) -> Named {
    let mask = |normalized| {
        let token = AddedToken::from(text.as_str(), false).lstrip(true);
        Named::Token { token, normalized }
    };
    match flags {
        Flags::Mask | Flags::PlainAndMask(_) if idx == MASK => mask(None),
        Flags::MaskNormalized if idx == MASK => mask(Some(true)),
        Flags::Plain(indices) | Flags::PlainAndMask(indices) if indices.contains(&idx) => Named::plain(&text),
        _ => Named::Text(text),
    }
}

/// A token: a text, or an object with `content` and flags.
fn parse(value: &Value) -> Option<Named> {
    match value {
        Value::String(text) => Some(Named::Text(text.clone())),
        Value::Object(object) => {
            let flag = |key: &str| match object.get(key) {
                None | Some(Value::Null) => Some(None),
                Some(value) => value.as_bool().map(Some),
            };
            let token = AddedToken::from(object.get("content")?.as_str()?, flag("special")?.unwrap_or(false))
                .lstrip(flag("lstrip")?.unwrap_or(false))
                .rstrip(flag("rstrip")?.unwrap_or(false))
                .single_word(flag("single_word")?.unwrap_or(false));
            Some(Named::Token { token, normalized: flag("normalized")? })
        }
        _ => None,
    }
}

/// The lists `additional_special_tokens` and `extra_special_tokens` of a file; none if it has neither.
fn additional_tokens(file: &JsonFile) -> Result<Option<Vec<Named>>, FileError> {
    let mut tokens: Option<Vec<Named>> = None;
    for key in [ADDITIONAL, EXTRA] {
        let expected = "a list of texts and objects with `content`, or null";
        let values: Vec<&Value> = match file.get(key) {
            None => continue,
            Some(Value::Array(values)) => values.iter().collect(),
            // Names of tokens that a processor of images or sounds uses.
            Some(Value::Object(object)) if key != ADDITIONAL => object.values().collect(),
            Some(other) => return Err(file.wrong(key, other, expected)),
        };
        for value in values {
            let token = parse(value).ok_or_else(|| {
                file.invalid(format!("`{key}` has {} in it, expected {expected}", kind_of(value)))
            })?;
            tokens.get_or_insert_default().push(token);
        }
        tokens.get_or_insert_default();
    }
    Ok(tokens)
}

/// Number of the tokens `<extra_id_…>` that the class adds.
fn extra_ids(config: &JsonFile) -> Result<u64, FileError> {
    const KEY: &str = "extra_ids";
    let read = |value: &Value| {
        value
            .as_u64()
            .filter(|n| *n <= 10_000)
            .ok_or_else(|| config.wrong(KEY, value, "a number up to 10000"))
    };
    Ok(config.get(KEY).map(read).transpose()?.unwrap_or(100))
}
