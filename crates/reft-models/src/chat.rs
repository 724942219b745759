//! Conversations and the chat templates that render them.

use crate::{files::ModelFiles, hash, keys::json_object};
use reft_core::FileError;
use reft_jinja::{DateTime, Error, Settings, Template, Undefined, Variable};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, ops::Range};

/// A conversation, as a chat template sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// The messages, with every field that they have.
    pub messages: Vec<Map<String, Value>>,
    /// The tools that the model may call: a list of JSON schemas.
    pub tools: Option<Value>,
    /// The documents to answer from: a list of objects.
    pub documents: Option<Value>,
    /// Further variables of the template, such as `enable_thinking` (transformers' `chat_template_kwargs`).
    pub variables: Map<String, Value>,
}

impl Chat {
    /// A conversation of messages, without tools and documents.
    pub fn new<M: Into<Map<String, Value>>>(messages: impl IntoIterator<Item = M>) -> Self {
        Self { messages: messages.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// Adds the tools that the model may call.
    pub fn with_tools(mut self, tools: Value) -> Self {
        self.tools = Some(tools);
        self
    }

    /// Adds the documents to answer from.
    pub fn with_documents(mut self, documents: Value) -> Self {
        self.documents = Some(documents);
        self
    }

    /// Sets a further variable of the template.
    pub fn with_variable(mut self, name: &str, value: Value) -> Self {
        self.variables.insert(name.into(), value);
        self
    }
}

/// A message that has only a role and a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the message.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

impl From<ChatMessage> for Map<String, Value> {
    fn from(message: ChatMessage) -> Self {
        [("role".to_string(), message.role.into()), ("content".to_string(), message.content.into())]
            .into_iter()
            .collect()
    }
}

/// A rendered conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenderedChat {
    /// The text.
    pub text: String,
    /// The byte ranges of the template's `{% generation %}` blocks in the text, in order. Blocks within macros and
    /// captured texts are not among them.
    pub generated: Vec<Range<usize>>,
}

/// The chat templates of a model, compiled, and the tokens they can name.
#[derive(Debug)]
pub(crate) struct ChatTemplates {
    templates: BTreeMap<String, Result<Template, Error>>,
    /// Special tokens by the names of `tokenizer_config.json`.
    special_tokens: Map<String, Value>,
    fingerprint: String,
    /// What `strftime_now` formats: the local time at which the templates were loaded, so that one conversation has
    /// one time however often it is rendered.
    pub(crate) now: Option<DateTime>,
}

/// The settings of transformers.
const SETTINGS: Settings = Settings {
    trim_blocks: true,
    lstrip_blocks: true,
    keep_trailing_newline: false,
    undefined: Undefined::Default,
};

const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";
const FOLDER: &str = "additional_chat_templates";

impl ChatTemplates {
    /// Reads the chat templates of a model, where transformers looks for them: `chat_template.jinja` and
    /// `additional_chat_templates/*.jinja`, or else `chat_template` in `tokenizer_config.json` (`in_config`), or else
    /// `chat_template.json`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn load(
        files: &ModelFiles,
        in_config: Option<&Value>,
        special_tokens: Map<String, Value>,
    ) -> Result<Option<Self>, FileError> {
        let mut sources = BTreeMap::new();
        let mut read = |name: &str, file: &str| -> Result<(), FileError> {
            let Some(bytes) = files.read_optional(file)? else { return Ok(()) };
            let invalid = |error: std::string::FromUtf8Error| FileError::Invalid {
                path: files.path(file),
                reason: format!("not UTF-8: {error}; save the template as UTF-8"),
            };
            sources.insert(name.to_string(), String::from_utf8(bytes.into_owned()).map_err(invalid)?);
            Ok(())
        };
        read(DEFAULT, "chat_template.jinja")?;
        for file in files.names_in(FOLDER) {
            if let Some(name) = file.strip_suffix(".jinja") {
                read(name, &format!("{FOLDER}/{file}"))?;
            }
        }
        if sources.is_empty() {
            sources = named_sources(in_config);
        }
        if sources.is_empty()
            && let Some(bytes) = files.read_optional("chat_template.json")?
        {
            let json = json_object(&bytes)
                .map_err(|reason| FileError::Invalid { path: files.path("chat_template.json"), reason })?;
            sources = named_sources(json.get("chat_template"));
        }
        if sources.is_empty() {
            return Ok(None);
        }
        let fingerprint = hash::of_text(&format!("{sources:?}"));
        let compile = |(name, source): (String, String)| (name, Template::compile(&source, SETTINGS));
        Ok(Some(Self {
            templates: sources.into_iter().map(compile).collect(),
            special_tokens,
            fingerprint,
            now: local_time(),
        }))
    }

    /// Identifies the templates.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The template for a conversation: `tool_use` if it has tools, `default` otherwise.
    fn template(&self, has_tools: bool) -> Result<&Template, String> {
        let tool_use = if has_tools { self.templates.get(TOOL_USE) } else { None };
        let Some(template) = tool_use.or_else(|| self.templates.get(DEFAULT)) else {
            let names: Vec<&str> = self.templates.keys().map(String::as_str).collect();
            return Err(format!(
                "expected a template named `default`, found {}; name one of them `default`",
                names.join(", ")
            ));
        };
        template.as_ref().map_err(ToString::to_string)
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// If there is no template for it, or it fails.
    pub fn render(&self, chat: &Chat, add_generation_prompt: bool) -> Result<RenderedChat, String> {
        let given = |value: &Option<Value>| value.as_ref().is_some_and(|value| !value.is_null());
        let further = self.special_tokens.iter().chain(&chat.variables);
        let variables = further.map(|(name, value)| (name.as_str(), Variable::Json(value))).chain([
            ("messages", Variable::Dicts(&chat.messages)),
            ("tools", optional(chat.tools.as_ref())),
            ("documents", optional(chat.documents.as_ref())),
            ("add_generation_prompt", Variable::Bool(add_generation_prompt)),
        ]);
        let rendered = self
            .template(given(&chat.tools))?
            .render(variables, self.now)
            .map_err(|error| error.to_string())?;
        Ok(RenderedChat { text: rendered.text, generated: rendered.generated })
    }
}

/// A variable that is `None` where the conversation has none.
fn optional(value: Option<&Value>) -> Variable<'_> {
    value.map_or(Variable::None, Variable::Json)
}

/// The templates in a value of `chat_template`: a text, a list of objects with `name` and `template`, or an object.
fn named_sources(value: Option<&Value>) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map(str::to_string);
    match value {
        Some(Value::String(source)) => [(DEFAULT.to_string(), source.clone())].into(),
        Some(Value::Array(list)) => list
            .iter()
            .filter_map(|entry| Some((text(entry.get("name")?)?, text(entry.get("template")?)?)))
            .collect(),
        Some(Value::Object(map)) => {
            map.iter().filter_map(|(name, source)| Some((name.clone(), text(source)?))).collect()
        }
        _ => BTreeMap::new(),
    }
}

#[cfg(not(target_arch = "wasm32"))]
fn local_time() -> Option<DateTime> {
    let now = jiff::Zoned::now();
    let part = |value: i8| u32::from(value.unsigned_abs());
    Some(DateTime {
        year: now.year().into(),
        month: part(now.month()),
        day: part(now.day()),
        hour: part(now.hour()),
        minute: part(now.minute()),
        second: part(now.second()),
        microsecond: now.subsec_nanosecond().unsigned_abs() / 1000,
    })
}

/// A browser's clock is not accessible from here.
#[cfg(target_arch = "wasm32")]
fn local_time() -> Option<DateTime> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: DateTime =
        DateTime { year: 2026, month: 3, day: 5, hour: 14, minute: 7, second: 9, microsecond: 0 };

    /// Chat templates of a folder with files, and the value of `tokenizer_config.json`.
    fn templates(files: &[(&str, &str)], config: &Value) -> Option<ChatTemplates> {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, content) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            std::fs::write(path, content).expect("written");
        }
        let files = ModelFiles::Folder(folder.path().into());
        let tokens = config.as_object().expect("an object").iter();
        let tokens = tokens.filter(|(name, value)| name.contains("_token") && !value.is_null());
        let tokens = tokens.map(|(name, value)| (name.clone(), value.clone())).collect();
        let templates = ChatTemplates::load(&files, config.get("chat_template"), tokens).expect("readable");
        templates.map(|templates| ChatTemplates { now: Some(NOW), ..templates })
    }

    fn render(config: &Value, chat: &Chat) -> String {
        let templates = templates(&[], config).expect("a template");
        templates.render(chat, true).map_or_else(|error| error.to_string(), |rendered| rendered.text)
    }

    fn hi() -> Chat {
        Chat::new([ChatMessage::new("user", "hi")])
    }

    #[test]
    fn templates_are_found_where_transformers_finds_them() {
        let text = |files: &[(&str, &str)], config: Value, chat: Chat| {
            let templates = templates(files, &config)?;
            Some(
                templates
                    .render(&chat, false)
                    .map_or_else(|error| error.to_string(), |rendered| rendered.text),
            )
        };
        let with_tools = || hi().with_tools(json!([{}]));
        assert_eq!(text(&[], json!({}), hi()), None);
        assert_eq!(text(&[], json!({"chat_template": null}), hi()), None);
        let json_file = ("chat_template.json", r#"{"chat_template": "json"}"#);
        assert_eq!(text(&[json_file], json!({}), hi()).as_deref(), Some("json"));
        assert_eq!(text(&[json_file], json!({"chat_template": "config"}), hi()).as_deref(), Some("config"));
        let jinja = ("chat_template.jinja", "jinja\n");
        let config = json!({"chat_template": "config"});
        assert_eq!(text(&[jinja, json_file], config.clone(), with_tools()).as_deref(), Some("jinja"));
        let tool_use = ("additional_chat_templates/tool_use.jinja", "tools");
        assert_eq!(text(&[jinja, tool_use], config.clone(), hi()).as_deref(), Some("jinja"));
        assert_eq!(text(&[jinja, tool_use], config, with_tools()).as_deref(), Some("tools"));
        let list = json!({"chat_template": [{"name": "default", "template": "a"}, {"name": "tool_use", "template": "b"}]});
        assert_eq!(text(&[], list.clone(), hi()).as_deref(), Some("a"));
        assert_eq!(text(&[], list, with_tools()).as_deref(), Some("b"));
        let unnamed = json!({"chat_template": [{"name": "rag", "template": "a"}, {"name": "tool_use", "template": "b"}]});
        assert_eq!(text(&[], unnamed.clone(), with_tools()).as_deref(), Some("b"));
        assert_eq!(
            text(&[], unnamed, hi()).as_deref(),
            Some("expected a template named `default`, found rag, tool_use; name one of them `default`")
        );
    }

    #[test]
    fn templates_see_the_variables_that_transformers_passes() {
        let config = json!({
            "bos_token": "<s>", "eos_token": "</s>", "pad_token": null, "additional_special_tokens": ["<a>"],
            "chat_template": "{{ [bos_token, eos_token, additional_special_tokens, tools, documents, add_generation_prompt] }}\
                {{ pad_token is defined }}{{ unk_token is defined }}{{ enable_thinking }}{{ messages }}"
        });
        let message = json!({"role": "assistant", "content": null, "tool_calls": [{"n": 1.0}], "reasoning_content": "r"});
        let chat = Chat::new([message.as_object().expect("a message").clone()])
            .with_variable("enable_thinking", json!(false));
        assert_eq!(
            render(&config, &chat),
            "['<s>', '</s>', ['<a>'], None, None, True]FalseFalseFalse\
             [{'role': 'assistant', 'content': None, 'tool_calls': [{'n': 1.0}], 'reasoning_content': 'r'}]"
        );
        let chat = hi()
            .with_tools(json!([1]))
            .with_documents(json!([{"t": 2}]))
            .with_variable("bos_token", json!("!"));
        let config =
            json!({"bos_token": "<s>", "chat_template": "{{ tools }}{{ documents }}{{ bos_token }}"});
        assert_eq!(render(&config, &chat), "[1][{'t': 2}]!");
    }

    #[test]
    fn templates_know_the_date() {
        let config = json!({"chat_template": "{{ strftime_now('%d %b %Y') }}"});
        assert_eq!(render(&config, &hi()), "05 Mar 2026");
        let now = local_time().expect("a clock");
        assert!(now.year >= 2024 && (1..=12).contains(&now.month) && (1..=31).contains(&now.day));
    }

    #[test]
    fn generation_blocks_have_ranges() {
        let template =
            "{% for m in messages %}é{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}";
        let templates = templates(&[], &json!({"chat_template": template})).expect("a template");
        let chat = Chat::new([ChatMessage::new("assistant", "ü"), ChatMessage::new("assistant", "b")]);
        let rendered = templates.render(&chat, false).expect("rendered");
        assert_eq!(rendered, RenderedChat { text: "éüéb".into(), generated: vec![2..4, 6..7] });
    }

    #[test]
    fn errors_name_the_line() {
        let error = |template: &str| render(&json!({"chat_template": template}), &hi());
        assert_eq!(error("{{ raise_exception('no system role') }}"), "line 1: no system role");
        assert_eq!(error("\n{{ x.y }}"), "line 2: 'x' is undefined");
        assert_eq!(error("{% if %}"), "line 1: expected an expression, found `%}`");
        assert_eq!(
            error("\n{% for m in messages %}"),
            "line 2: expected `{% endfor %}` or `{% else %}`, found the end of the template"
        );
        assert_eq!(error("{% do x %}"), "line 1: unknown tag `do`");
    }
}
