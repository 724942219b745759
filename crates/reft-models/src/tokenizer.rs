//! Text ↔ token ids, and chat templates.

use crate::{
    chat::{Chat, RenderedChat},
    files::ModelFiles,
};
use minijinja::{Environment, ErrorKind};
use reft_core::FileError;
use serde_json::Value;
use tokenizers::{PostProcessor, TruncationParams, truncate_encodings};

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

/// A special token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its text.
    pub text: String,
    /// Its id.
    pub id: u32,
}

/// The tokenizer of a model: `tokenizer.json` with the special tokens and the chat template of
/// `tokenizer_config.json`.
///
/// Truncation and padding configured in `tokenizer.json` are disabled.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<SpecialToken>,
    eos: Option<SpecialToken>,
    /// Flags of Llama tokenizers, which in transformers take precedence over `tokenizer.json`.
    add_bos: Option<bool>,
    add_eos: Option<bool>,
    chat_template: Option<String>,
}

impl Tokenizer {
    /// Loads the tokenizer of a model.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn load(files: &ModelFiles) -> Result<Self, TokenizerError> {
        const TOKENIZER: &str = "tokenizer.json";
        let invalid = |file: &str, reason: String| FileError::Invalid { path: files.path(file), reason };
        let json = files.read(TOKENIZER)?;
        let mut inner = tokenizers::Tokenizer::from_bytes(&json)
            .map_err(|error| invalid(TOKENIZER, format!("not a tokenizer: {error}")))?;
        inner.with_truncation(None).map_err(|error| invalid(TOKENIZER, error.to_string()))?;
        inner.with_padding(None);
        let json_file = |name: &str| -> Result<Value, FileError> {
            match files.read_optional(name)? {
                Some(json) => serde_json::from_slice(&json)
                    .map_err(|error| invalid(name, format!("invalid JSON: {error}"))),
                None => Ok(Value::Null),
            }
        };
        let config = json_file("tokenizer_config.json")?;
        let map = json_file("special_tokens_map.json")?;
        let special = |key: &str| {
            let text = [&config, &map].into_iter().find_map(|from| {
                let value = from.get(key)?;
                value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_string)
            })?;
            Some(SpecialToken { id: inner.token_to_id(&text)?, text })
        };
        let is_llama = config.get("tokenizer_class").and_then(Value::as_str).is_some_and(|class| {
            class.starts_with("LlamaTokenizer") || class.starts_with("CodeLlamaTokenizer")
        });
        let flag = |key: &str| config.get(key).and_then(Value::as_bool).filter(|_| is_llama);
        // Newer models have the template in a separate file.
        let template_file = files.read_optional("chat_template.jinja")?;
        let chat_template = template_file
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .or_else(|| config.get("chat_template").and_then(chat_template_text));
        let (bos, eos) = (special("bos_token"), special("eos_token"));
        Ok(Self {
            bos,
            eos,
            add_bos: flag("add_bos_token"),
            add_eos: flag("add_eos_token"),
            chat_template,
            inner,
        })
    }

    /// The token that starts a text.
    pub fn bos(&self) -> Option<&SpecialToken> {
        self.bos.as_ref()
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<&SpecialToken> {
        self.eos.as_ref()
    }

    /// Number of token ids.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether the model has a chat template.
    pub fn has_chat_template(&self) -> bool {
        self.chat_template.is_some()
    }

    /// The token ids of a text, with the special tokens that the model expects around it.
    ///
    /// # Errors
    /// If the tokenizer rejects the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, true).map_err(failed)?;
        let mut ids = encoding.get_ids().to_vec();
        self.add_flagged(text, &mut ids, |id| id, |id| *id);
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
        let ids = encoding.get_ids().iter().copied();
        let mut tokens: Vec<(u32, (usize, usize))> =
            ids.zip(encoding.get_offsets().iter().copied()).collect();
        if !rendered {
            self.add_flagged(text, &mut tokens, |id| (id, (0, 0)), |token| token.0);
        }
        let (ids, offsets) = tokens.into_iter().unzip();
        Ok(EncodedText { ids, offsets })
    }

    /// Adds or removes BOS and EOS as the flags of Llama tokenizers say.
    fn add_flagged<T>(
        &self,
        text: &str,
        tokens: &mut Vec<T>,
        token: impl Fn(u32) -> T,
        id: impl Fn(&T) -> u32,
    ) {
        if let (Some(bos), Some(add)) = (&self.bos, self.add_bos) {
            match (add, tokens.first().map(&id) == Some(bos.id)) {
                (true, false) => tokens.insert(0, token(bos.id)),
                (false, true) if !text.starts_with(&bos.text) => drop(tokens.remove(0)),
                _ => {}
            }
        }
        if let (Some(eos), Some(add)) = (&self.eos, self.add_eos) {
            match (add, tokens.last().map(&id) == Some(eos.id)) {
                (true, false) => tokens.push(token(eos.id)),
                (false, true) if !text.ends_with(&eos.text) => drop(tokens.pop()),
                _ => {}
            }
        }
    }

    /// The token ids and token types of a text, or of a pair of texts, with special tokens.
    ///
    /// If there are more than `max_length` tokens, the longer text is truncated on the right (transformers'
    /// `longest_first`); the third value says whether that happened.
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
        let b = second.map(|text| self.inner.encode(text, false)).transpose().map_err(failed)?;
        let n_special = self.inner.get_post_processor().map_or(0, |p| p.added_tokens(second.is_some()));
        let params = TruncationParams {
            max_length: max_length.saturating_sub(n_special).max(1),
            ..TruncationParams::default()
        };
        let truncated = a.len() + b.as_ref().map_or(0, |b| b.len()) > params.max_length;
        let (a, b) = truncate_encodings(a, b, &params).map_err(failed)?;
        let pair = self.inner.post_process(a, b, true).map_err(failed)?;
        Ok((pair.get_ids().to_vec(), pair.get_type_ids().to_vec(), truncated))
    }

    /// Decodes token ids to text, without special tokens.
    ///
    /// # Errors
    /// If an id does not exist.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        self.inner.decode(ids, true).map_err(failed)
    }

    /// Renders a conversation with the model's chat template.
    ///
    /// # Errors
    /// If there is no template, or it fails.
    pub fn render_chat(
        &self,
        chat: &Chat,
        add_generation_prompt: bool,
    ) -> Result<RenderedChat, TokenizerError> {
        let template = self.chat_template.as_ref().ok_or(TokenizerError::NoChatTemplate)?;
        let failed = |error: minijinja::Error| TokenizerError::ChatTemplate(format!("{error:#}"));
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, minijinja::Error> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template("chat", template).map_err(failed)?;
        let text = |token: &Option<SpecialToken>| token.as_ref().map_or("", |t| t.text.as_str()).to_string();
        let context = minijinja::context! {
            messages => chat.messages,
            add_generation_prompt => add_generation_prompt,
            bos_token => text(&self.bos),
            eos_token => text(&self.eos),
        };
        let text = environment.get_template("chat").and_then(|t| t.render(context)).map_err(failed)?;
        Ok(RenderedChat { text, generated: Vec::new() })
    }
}

fn failed(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Text(error.to_string())
}

/// The value of `chat_template`: a template, or a list with one named `default`.
fn chat_template_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Array(list) => {
            let default =
                list.iter().find(|entry| entry.get("name").is_some_and(|name| name == "default"))?;
            default.get("template")?.as_str().map(str::to_string)
        }
        _ => None,
    }
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
    fn chats_are_rendered_with_the_template() {
        let t = tokenizer(
            r#"{"bos_token":"<s>","eos_token":"</s>","chat_template":"{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'].strip() }}{{ eos_token }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"}"#,
        );
        let hi = Chat::new([ChatMessage { role: "user".into(), content: " hi ".into() }]);
        assert_eq!(t.render_chat(&hi, true).expect("rendered").text, "<s>[user] hi</s>[assistant]");
        let t = tokenizer(r#"{"chat_template":"{{ raise_exception('no system role') }}"}"#);
        assert!(t.render_chat(&hi, true).expect_err("raised").to_string().contains("no system role"));
        assert!(matches!(tokenizer("{}").render_chat(&hi, true), Err(TokenizerError::NoChatTemplate)));
    }
}
