//! Text ↔ token ids, and chat templates.
//!
//! A [`Tokenizer`] is what transformers' `AutoTokenizer` makes of a model's folder (4.45, fast tokenizers):
//!
//! | module | contents |
//! |---|---|
//! | `json` | the JSON files beside `tokenizer.json` |
//! | `class` | the tokenizer class of a model, and what each class changes |
//! | `file` | `tokenizer.json` |
//! | `special` | special tokens and added tokens |
//! | `components` | changes of the normalizer, pre-tokenizer, post-processor and decoder |
//! | `missing` | what to do about a folder without `tokenizer.json` |
//!
//! `model_max_length` and `padding_side` are not used: the context is that of the model, and batches are padded where
//! the work needs it.

mod class;
mod components;
mod file;
mod json;
pub(crate) mod missing;
mod special;

pub use special::SpecialToken;

use crate::{
    chat::{Chat, ChatTemplates, RenderedChat},
    files::ModelFiles,
    hash,
};
use class::Resolved;
use json::JsonFile;
use reft_core::FileError;
use serde_json::{Map, Value};
use special::{BOS, EOS, SpecialTokens, TokenFiles};

use std::sync::Arc;
use tokenizers::{PostProcessor, TruncationDirection, TruncationParams, truncate_encodings};

/// A tokenizer that cannot be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file is missing or damaged.
    #[error(transparent)]
    File(#[from] FileError),
    /// A text could not be encoded, or ids could not be decoded.
    #[error("tokenizer: {0}")]
    Text(String),
    /// The model has no chat template.
    #[error(
        "the model's tokenizer_config.json has no chat_template; use the template `alpaca`, `plain` or your own"
    )]
    NoChatTemplate,
    /// The model has no end token.
    #[error(
        "the model's files name no end token, without which answers never end; set `eos_token` in tokenizer_config.json, or \
         `eos_token_id` in config.json"
    )]
    NoEndToken,
    /// The chat template failed.
    #[error("chat_template: {0}")]
    ChatTemplate(String),
}

/// The token ids of a text, and where in the text they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EncodedText {
    /// Token ids.
    pub ids: Vec<u32>,
    /// First byte of each token and the byte after its last one; both 0 for tokens that are not in the text.
    pub offsets: Vec<(usize, usize)>,
}

/// The tokenizer of a model, as its class in transformers makes it.
///
/// Truncation and padding configured in `tokenizer.json` are disabled.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    special: Map<String, Value>,
    /// Number of tokens that the tokenizer puts after a text.
    n_suffix: usize,
    /// The side on which long texts are truncated.
    truncation: TruncationDirection,
    /// Whether the model gets token types (transformers' `model_input_names`).
    has_token_types: bool,
    /// Whether decoded texts lose the spaces before punctuation.
    clean_up: bool,
    chat_templates: Option<Arc<ChatTemplates>>,
}

const TOKENIZER: &str = "tokenizer.json";

impl Tokenizer {
    /// Loads the tokenizer of a model.
    ///
    /// # Errors
    /// If a file is missing or damaged, or names an end token that has no id.
    pub fn load(files: &ModelFiles) -> Result<Self, TokenizerError> {
        let invalid = |reason: String| FileError::Invalid { path: files.path(TOKENIZER), reason };
        let config = JsonFile::read(files, "tokenizer_config.json")?;
        let map = JsonFile::read(files, "special_tokens_map.json")?;
        let added = JsonFile::read(files, "added_tokens.json")?;
        let model = JsonFile::read(files, "config.json")?;
        let Some(json) = files.read_optional(TOKENIZER)? else {
            return Err(invalid(missing::reason(files, &files.place())?).into());
        };
        let mut inner = file::parse(&json).map_err(invalid)?;
        let Resolved { class, backend } = class::resolve(&config, &model)?;
        let token_files = TokenFiles { config: &config, map: &map, added: &added };
        components::write_llama_prefix(&mut inner, &class, &config)?;
        let special = SpecialTokens::read(&token_files, &class, &inner)?;
        let truncation = file::truncation_side(&inner, &config)?;
        inner.with_truncation(None).map_err(|error| invalid(error.to_string()))?;
        inner.with_padding(None);
        let has_id = special.add_to(&mut inner, &token_files)?;
        components::write_options(&mut inner, &class, &config)?;
        let flags = components::template_flags(&class, backend, &config)?;
        special.write_template(&mut inner, flags, has_id, &token_files)?;
        inner.set_encode_special_tokens(config.flag("split_special_tokens")?.unwrap_or(false));

        let token = |text: &str| Some(SpecialToken { id: inner.token_to_id(text)?, text: text.into() });
        let eos = match special.text(EOS).filter(|_| has_id[EOS]) {
            Some(text) => token(text),
            None => file::end_token_of_model(files, &inner, &model)?,
        };
        let named = special.map(&token_files);
        let chat_templates = ChatTemplates::load(files, config.get("chat_template"), named.clone())?;
        Ok(Self {
            bos: special.text(BOS).and_then(token),
            eos,
            special: named,
            n_suffix: file::n_suffix(&inner).map_err(|error| invalid(error.to_string()))?,
            truncation,
            has_token_types: class.has_token_types(&config)?,
            clean_up: config.flag("clean_up_tokenization_spaces")?.unwrap_or(false),
            chat_templates: chat_templates.map(Arc::new),
            inner,
        })
    }

    /// Reports an end token that the model has no embedding for; `vocab` is the number of its embeddings.
    ///
    /// # Errors
    /// What to do about it.
    pub(crate) fn check_end_token(&self, files: &ModelFiles, vocab: usize) -> Result<(), FileError> {
        match &self.eos {
            Some(SpecialToken { text, id }) if *id as usize >= vocab => Err(FileError::Invalid {
                path: files.path(TOKENIZER),
                reason: format!(
                    "the end token {text:?} has the id {id}, but the model has {vocab} embeddings; enlarge them with \
                     `model.resize_token_embeddings(len(tokenizer))`, or name another `eos_token` in tokenizer_config.json"
                ),
            }),
            _ => Ok(()),
        }
    }

    /// The token that starts a text.
    pub fn bos(&self) -> Option<&SpecialToken> {
        self.bos.as_ref()
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<&SpecialToken> {
        self.eos.as_ref()
    }

    /// The token that ends a text, which every answer needs.
    ///
    /// # Errors
    /// If there is none.
    pub fn end_token(&self) -> Result<&SpecialToken, TokenizerError> {
        self.eos.as_ref().ok_or(TokenizerError::NoEndToken)
    }

    /// Identifies how texts are encoded: a hash of the tokens of some texts, so that the files may say it differently.
    pub(crate) fn fingerprint(&self) -> String {
        const TEXTS: [&str; 6] = [
            "The quick brown fox jumps over the lazy dog.",
            "  two spaces,\ttab\n\nand 3.14159 + 1,000,000 = ?",
            "fn main() { println!(\"{}\", a_b[0] != c::D); }",
            "Grüße aus København; l'été — naïve Ünïcödé",
            "東京の天気 Привет мир שלום 🙂👩‍💻",
            "unbelievably re-tokenised McDonald's @user #tag https://example.org/x?y=z",
        ];
        let ids: Vec<Vec<u32>> = TEXTS.iter().map(|text| self.encode(text).unwrap_or_default()).collect();
        let end = self.eos.as_ref().map(|token| token.id);
        hash::of_text(&format!("{} {end:?} {ids:?}", self.vocab_size()))
    }

    /// Identifies the chat template, if there is one.
    pub(crate) fn chat_template_fingerprint(&self) -> Option<String> {
        self.chat_templates.as_ref().map(|templates| templates.fingerprint().into())
    }

    /// Names and texts of the special tokens, such as `eos_token`, as transformers gives them to chat templates:
    /// `additional_special_tokens` is a list.
    pub fn special_tokens_map(&self) -> &Map<String, Value> {
        &self.special
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.chat_templates.is_some()
    }

    /// The token ids of a text, after the special tokens that the model expects before it.
    ///
    /// Special tokens that the tokenizer puts after a text, such as that of `add_eos_token`, are left out: a prompt does
    /// not end, and a whole text has its end token as text.
    ///
    /// # Errors
    /// If the tokenizer rejects the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.inner.encode_fast(text, true).map_err(failed)?.get_ids().to_vec();
        ids.truncate(ids.len().saturating_sub(self.n_suffix));
        Ok(ids)
    }

    /// The token ids of a text that already contains its special tokens, such as a rendered chat.
    ///
    /// # Errors
    /// If the tokenizer rejects the text.
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        Ok(self.inner.encode_fast(text, false).map_err(failed)?.get_ids().to_vec())
    }

    /// As [`encode`](Self::encode), or [`encode_rendered`](Self::encode_rendered) if `rendered`, with the place of every
    /// token in the text.
    ///
    /// # Errors
    /// If the tokenizer rejects the text.
    pub fn encode_with_offsets(&self, text: &str, rendered: bool) -> Result<EncodedText, TokenizerError> {
        let encoding = self.inner.encode(text, !rendered).map_err(failed)?;
        let n = encoding.len().saturating_sub(if rendered { 0 } else { self.n_suffix });
        Ok(EncodedText {
            ids: encoding.get_ids()[..n].to_vec(),
            offsets: encoding.get_offsets()[..n].to_vec(),
        })
    }

    /// The token ids and token types of a text, or of a pair of texts, with special tokens. All types are 0 if the model
    /// gets none from transformers.
    ///
    /// If there are more than `max_length` tokens, the longer text is truncated (transformers' `longest_first`) on its
    /// `truncation_side`; the third value says whether that happened.
    ///
    /// # Errors
    /// If the tokenizer rejects a text.
    pub fn encode_pair(
        &self,
        first: &str,
        second: Option<&str>,
        max_length: usize,
    ) -> Result<(Vec<u32>, Vec<u32>, bool), TokenizerError> {
        let a = self.inner.encode(first, false).map_err(failed)?;
        let mut b = second.map(|text| self.inner.encode(text, false)).transpose().map_err(failed)?;
        if let Some(b) = &mut b {
            // Without a post-processor that sets the types.
            b.set_type_ids(vec![1; b.len()]);
        }
        let n_special = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(second.is_some()));
        let params = TruncationParams {
            max_length: max_length.saturating_sub(n_special).max(1),
            direction: self.truncation,
            ..TruncationParams::default()
        };
        let truncated = a.len() + b.as_ref().map_or(0, |b| b.len()) > params.max_length;
        let (a, b) = truncate_encodings(a, b, &params).map_err(failed)?;
        let pair = self.inner.post_process(a, b, true).map_err(failed)?;
        let ids = pair.get_ids().to_vec();
        let types = if self.has_token_types { pair.get_type_ids().to_vec() } else { vec![0; ids.len()] };
        Ok((ids, types, truncated))
    }

    /// Decodes token ids to text, without special tokens.
    ///
    /// # Errors
    /// If an id does not exist.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let text = self.inner.decode(ids, true).map_err(failed)?;
        Ok(if self.clean_up { clean_up_spaces(&text) } else { text })
    }

    /// Whether a token stands for one byte, as `<0x0A>`. Such tokens are characters only together with their neighbors.
    pub fn is_byte(&self, id: u32) -> bool {
        self.inner.id_to_token(id).is_some_and(|token| {
            let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            byte.is_some_and(|byte| byte.len() == 2 && u8::from_str_radix(byte, 16).is_ok())
        })
    }

    /// Renders a conversation with the model's chat template, as transformers does.
    ///
    /// # Errors
    /// If there is no template, or it fails.
    pub fn render_chat(
        &self,
        chat: &Chat,
        add_generation_prompt: bool,
    ) -> Result<RenderedChat, TokenizerError> {
        let templates = self.chat_templates.as_ref().ok_or(TokenizerError::NoChatTemplate)?;
        templates.render(chat, add_generation_prompt).map_err(TokenizerError::ChatTemplate)
    }
}

/// Removes the spaces that decoding puts before English punctuation and short forms, as transformers does.
fn clean_up_spaces(text: &str) -> String {
    const SPACES: [(&str, &str); 10] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    SPACES.iter().fold(text.to_string(), |text, (from, to)| text.replace(from, to))
}

fn failed(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Text(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::ChatMessage;

    const TOKENIZER: &str = r#"{"version":"1.0","truncation":{"direction":"Right","max_length":2,"strategy":"LongestFirst","stride":0},
        "padding":null,"added_tokens":[
        {"id":0,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true},
        {"id":1,"content":"</s>","single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
        "normalizer":null,"pre_tokenizer":{"type":"WhitespaceSplit"},"post_processor":null,"decoder":null,
        "model":{"type":"WordLevel","vocab":{"<s>":0,"</s>":1,"a":2,"b":3,"?":4},"unk_token":"?"}}"#;

    fn tokenizer(config: &str) -> Tokenizer {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("tokenizer.json"), TOKENIZER).expect("written");
        std::fs::write(folder.path().join("tokenizer_config.json"), config).expect("written");
        Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect("loaded")
    }

    #[test]
    fn llama_tokenizers_follow_their_flags() {
        let t = tokenizer(
            r#"{"tokenizer_class":"LlamaTokenizer","add_bos_token":true,"add_eos_token":false,"bos_token":"<s>","eos_token":{"content":"</s>"}}"#,
        );
        assert_eq!(t.encode("a b a").expect("encoded"), [0, 2, 3, 2]);
        assert_eq!(t.encode("a </s>").expect("encoded"), [0, 2, 1]);
        assert_eq!(t.encode_rendered("<s> a").expect("encoded"), [0, 2]);
        let t = tokenizer(r#"{"tokenizer_class":"Other","add_bos_token":true,"bos_token":"<s>"}"#);
        assert_eq!(t.encode("a").expect("encoded"), [2]);
    }

    #[test]
    fn an_end_token_needs_an_embedding() {
        let files = ModelFiles::Folder("F".into());
        let t = tokenizer(r#"{"eos_token":"</s>"}"#);
        assert_eq!(t.end_token().map(|token| token.id).expect("named"), 1);
        t.check_end_token(&files, 2).expect("within the embeddings");
        let error = t.check_end_token(&files, 1).expect_err("beyond the embeddings").to_string();
        assert!(error.contains("\"</s>\" has the id 1, but the model has 1 embeddings"), "{error}");
        let t = tokenizer("{}");
        t.check_end_token(&files, 1).expect("none");
        assert!(matches!(t.end_token(), Err(TokenizerError::NoEndToken)));
    }

    #[test]
    fn extra_tokens_are_known_by_their_names() {
        let t = tokenizer(
            r#"{"bos_token":"<s>","cls_token":null,"extra_special_tokens":{"image_token":{"content":"<i>"}}}"#,
        );
        assert_eq!(
            (&t.special_tokens_map()["image_token"], &t.special_tokens_map()["bos_token"]),
            (&"<i>".into(), &"<s>".into())
        );
        assert!(!t.special_tokens_map().contains_key("cls_token"));
    }

    #[test]
    fn chats_are_rendered_with_the_template() {
        let t = tokenizer(
            r#"{"bos_token":"<s>","eos_token":"</s>","chat_template":"{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'].strip() }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"}"#,
        );
        let hi = Chat::new([ChatMessage::new("user", " hi ")]);
        assert_eq!(t.render_chat(&hi, true).expect("rendered").text, "<s>[user] hi</s>[assistant]");
        let t = tokenizer(r#"{"chat_template":"{{ raise_exception('no system role') }}"}"#);
        assert!(t.render_chat(&hi, true).expect_err("raised").to_string().contains("no system role"));
        assert!(matches!(tokenizer("{}").render_chat(&hi, true), Err(TokenizerError::NoChatTemplate)));
    }
}
