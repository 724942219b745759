//! Prompt templates: rows → prompts and answers.

use super::{
    conversation::{
        conversation, first_given, has_messages, history, is_of_messages, is_of_turns, message, no_prompt,
        role, text_field, text_of,
    },
    error::DataError,
    rows::Row,
};
use reft_jinja::{Settings, Undefined, Variable};
use reft_models::{Chat, Tokenizer};
use serde_json::{Map, Value};
use std::{collections::BTreeSet, sync::Arc};

const ALPACA: &str = "Below is an instruction that describes a task. Write a response that appropriately completes the \
                      request.\n\n### Instruction:\n{instruction}\n\n### Response:\n";
const ALPACA_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further \
                                 context. Write a response that appropriately completes the \
                                 request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n";

/// How a row becomes a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// The two Alpaca prompts, with and without input, byte for byte as in pyreft.
    Alpaca,
    /// The model's chat template.
    Chat,
    /// The prompt as it is; an instruction and its input on a line each.
    Plain,
    /// A Jinja template over the fields of the row, such as `Q: {{ instruction }}\nA:`.
    Custom(CustomTemplate),
}

/// A compiled Jinja template over the fields of a row.
#[derive(Debug, Clone)]
pub struct CustomTemplate {
    text: String,
    compiled: Arc<reft_jinja::Template>,
    /// The fields that it reads.
    fields: Arc<BTreeSet<String>>,
}

impl PartialEq for CustomTemplate {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for CustomTemplate {}

impl CustomTemplate {
    /// The text is kept as it is written, and a field that the row lacks is an error where it is printed.
    const SETTINGS: Settings = Settings {
        trim_blocks: false,
        lstrip_blocks: false,
        keep_trailing_newline: true,
        undefined: Undefined::Strict,
    };

    fn new(text: &str) -> Result<Self, DataError> {
        let compiled = reft_jinja::Template::compile(text, Self::SETTINGS)
            .map_err(|error| DataError::Template { template: text.into(), reason: error.to_string() })?;
        let fields: BTreeSet<String> = compiled.variables().into_iter().map(String::from).collect();
        Ok(Self { text: text.into(), compiled: compiled.into(), fields: fields.into() })
    }

    fn render(&self, row: &Row) -> Result<String, DataError> {
        let fields = row.fields.iter().map(|(name, value)| (name.as_str(), Variable::Json(value)));
        let rendered = self.compiled.render(fields, None).map_err(|error| {
            let fields: Vec<&str> = row.fields.keys().map(String::as_str).collect();
            row.error(format!("cannot render the template: {error}; the fields are {}", fields.join(", ")))
        })?;
        Ok(rendered.text)
    }
}

impl Template {
    /// Parses a template: one of the names, or the text of a custom Jinja template.
    ///
    /// # Errors
    /// If it is neither.
    pub fn parse(text: &str) -> Result<Self, DataError> {
        match text {
            "alpaca" => Ok(Template::Alpaca),
            "chat" => Ok(Template::Chat),
            "plain" => Ok(Template::Plain),
            custom if custom.contains("{{") => Ok(Template::Custom(CustomTemplate::new(custom)?)),
            other => Err(DataError::Template {
                template: other.into(),
                reason: "expected `auto`, `alpaca`, `chat`, `plain`, or a text with `{{ field }}`".into(),
            }),
        }
    }

    /// Parses a template, where `auto` stands for `chat` if the rows have messages, `plain` if they have `prompt`, and
    /// `alpaca` otherwise.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn resolve(text: &str, rows: &[Row]) -> Result<Self, DataError> {
        if text != "auto" {
            return Self::parse(text);
        }
        Ok(match rows.iter().find(|row| row.readable().is_ok()) {
            Some(row) if has_messages(row) => Template::Chat,
            Some(row) if first_given(row, ["prompt", "instruction"]) == Some("prompt") => Template::Plain,
            _ => Template::Alpaca,
        })
    }

    /// The text that [`parse`](Self::parse) reads.
    pub fn text(&self) -> &str {
        match self {
            Template::Alpaca => "alpaca",
            Template::Chat => "chat",
            Template::Plain => "plain",
            Template::Custom(template) => &template.text,
        }
    }

    /// A row with nothing but a question.
    pub fn question(&self, text: &str) -> Row {
        let keys: &[&str] = match self {
            Template::Plain => &["prompt"],
            Template::Custom(_) => &["instruction", "prompt"],
            Template::Alpaca | Template::Chat => &["instruction"],
        };
        let fields: Map<String, Value> = keys.iter().map(|key| (key.to_string(), text.into())).collect();
        Row::from_fields(fields, "the prompt")
    }

    /// Whether a field of a row has a part in its prompt or its answer.
    ///
    /// Of two questions or two answers in a row, only one has.
    pub fn uses(&self, row: &Row, name: &str) -> bool {
        let is_answer = || self.answer_key(row) == Some(name);
        match self {
            Template::Custom(template) => template.fields.contains(name) || is_answer(),
            Template::Chat if has_messages(row) => is_of_messages(row, name),
            Template::Plain if self.question_key(row) == Some("prompt") => {
                name == "prompt" || is_answer() || matches!(name, "system" | "history")
            }
            Template::Alpaca | Template::Plain | Template::Chat => {
                let is_turn = if *self == Template::Chat {
                    is_of_turns(name)
                } else {
                    matches!(name, "system" | "history")
                };
                name == "input" || is_turn || self.question_key(row) == Some(name) || is_answer()
            }
        }
    }

    /// The field with the question of a row without a list of messages.
    fn question_key(&self, row: &Row) -> Option<&'static str> {
        let keys = match self {
            Template::Plain => ["prompt", "instruction"],
            _ => ["instruction", "prompt"],
        };
        first_given(row, keys)
    }

    /// The field with the answer of a row without a list of messages: `completion` answers `prompt`, `output` answers
    /// `instruction`. Where one of them is absent or empty, it is the other.
    fn answer_key(&self, row: &Row) -> Option<&'static str> {
        let is_of_prompt = match self {
            Template::Custom(template) => {
                template.fields.contains("prompt") && !template.fields.contains("instruction")
            }
            _ => self.question_key(row) == Some("prompt"),
        };
        let keys = if is_of_prompt { ["completion", "output"] } else { ["output", "completion"] };
        // Files that were written with a column for the answers have null where it is empty.
        first_given(row, keys).or_else(|| keys.into_iter().find(|key| row.fields.contains_key(*key)))
    }

    /// The reference answer of a row, which may be empty.
    ///
    /// # Errors
    /// If the row has none.
    pub fn answer(&self, row: &Row) -> Result<String, DataError> {
        if has_messages(row) {
            let last = conversation(row)?.messages.pop().filter(|message| role(message) == "assistant");
            return last
                .as_ref()
                .map(text_of)
                .ok_or_else(|| row.error("no answer: the last message must be the assistant's"));
        }
        match self.answer_key(row) {
            Some(key) => Ok(text_field(row, key)?.unwrap_or_default()),
            None => Err(row.error(
                "no answer: expected text in `output` or `completion`, or `messages` that end with the assistant's",
            )),
        }
    }

    /// The conversation of a row with its answer, which may be empty.
    ///
    /// # Errors
    /// If the row has no prompt or no answer, or a message is malformed.
    pub(super) fn answered_conversation(&self, row: &Row) -> Result<Chat, DataError> {
        let mut chat = conversation(row)?;
        if !has_messages(row) {
            chat.messages.push(message("assistant", self.answer(row)?));
        }
        Ok(chat)
    }

    /// The prompt of a row.
    ///
    /// # Errors
    /// If the row lacks a field that the template needs.
    pub fn prompt(&self, row: &Row, tokenizer: &Tokenizer) -> Result<String, DataError> {
        match self {
            Template::Custom(template) => template.render(row),
            Template::Chat => {
                let chat = open_conversation(row)?;
                Ok(tokenizer.render_chat(&chat, true).map_err(|error| row.tokenizer_error(error))?.text)
            }
            Template::Alpaca | Template::Plain => self.flat_prompt(row),
        }
    }

    /// The texts of a row that the prompt contains, in no particular order.
    pub(super) fn texts(&self, row: &Row) -> Vec<String> {
        match self {
            Template::Chat => match open_conversation(row) {
                Ok(chat) => chat.messages.iter().map(text_of).collect(),
                Err(_) => Vec::new(),
            },
            _ => row.fields.values().filter_map(|value| value.as_str().map(String::from)).collect(),
        }
    }

    /// The prompt of a row with `instruction` and `input`, or with `prompt`.
    fn flat_prompt(&self, row: &Row) -> Result<String, DataError> {
        let name = self.text();
        let cannot_show = |what: &str| {
            row.error(format!("has {what}, which the template `{name}` cannot show; use `chat`"))
        };
        if has_messages(row) {
            return Err(cannot_show("a list of messages"));
        }
        if text_field(row, "system")?.is_some_and(|text| !text.is_empty()) {
            return Err(cannot_show("`system`"));
        }
        if !history(row)?.is_empty() {
            return Err(cannot_show("`history`"));
        }
        let input = text_field(row, "input")?.unwrap_or_default();
        let key = self.question_key(row).ok_or_else(|| no_prompt(row))?;
        let question = text_field(row, key)?.unwrap_or_default();
        Ok(match self {
            Template::Plain if key == "prompt" => question,
            Template::Plain if input.is_empty() => format!("{question}\n"),
            Template::Plain => format!("{question}\n{input}\n"),
            _ if input.is_empty() => ALPACA.replace("{instruction}", &question),
            // The placeholder keeps an `{input}` within the question as it is.
            _ => ALPACA_WITH_INPUT
                .replace("{input}", "\u{0}")
                .replace("{instruction}", &question)
                .replace('\u{0}', &input),
        })
    }
}

/// The conversation of a row without the answer that it ends with.
fn open_conversation(row: &Row) -> Result<Chat, DataError> {
    let mut chat = conversation(row)?;
    if chat.messages.last().is_some_and(|message| role(message) == "assistant") {
        chat.messages.pop();
    }
    if chat.messages.is_empty() {
        return Err(row.error("no prompt: the only message is the assistant's"));
    }
    Ok(chat)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::parse_rows, tiny};

    fn row(json: &str) -> Row {
        parse_rows(json, "d.json").expect("valid").remove(0)
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&tiny::model()).expect("embedded")
    }

    #[test]
    fn rows_that_do_not_fit_the_template_are_errors_that_say_where() {
        let t = tokenizer();
        let error = |template: &Template, json: &str| {
            template.prompt(&row(json), &t).expect_err("unusable").to_string()
        };
        assert_eq!(
            error(&Template::Alpaca, "{\"question\": \"x\"}"),
            "d.json, line 1: no prompt: expected `instruction`, `prompt` or `messages`, found question"
        );
        assert_eq!(
            error(&Template::Alpaca, "{\"instruction\": [1]}"),
            "d.json, line 1: `instruction` is a list, expected text"
        );
        assert_eq!(
            error(&Template::Plain, "{\"messages\": [{}]}"),
            "d.json, line 1: has a list of messages, which the template `plain` cannot show; use `chat`"
        );
        assert_eq!(
            error(&Template::Alpaca, "{\"instruction\": \"x\", \"history\": [[\"a\", \"b\"]]}"),
            "d.json, line 1: has `history`, which the template `alpaca` cannot show; use `chat`"
        );
        assert_eq!(
            error(&Template::Alpaca, "{\"instruction\": \"x\", \"system\": \"S\"}"),
            "d.json, line 1: has `system`, which the template `alpaca` cannot show; use `chat`"
        );
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
        let message = error(&Template::parse(endless).expect("parsed"), "{\"y\": 1}");
        assert_eq!(
            message,
            "d.json, line 1: cannot render the template: line 1: the template takes more than 10000000 steps; the \
             fields are y"
        );
        assert_eq!(
            error(&Template::parse("{{ x }}").expect("parsed"), "{\"y\": 1}"),
            "d.json, line 1: cannot render the template: line 1: 'x' is undefined; the fields are y"
        );
        assert_eq!(
            Template::parse("{% if x %}{{ x }}").expect_err("not closed").to_string(),
            "template \"{% if x %}{{ x }}\": line 1: expected `{% elif %}` or `{% else %}` or `{% endif %}`, found the \
             end of the template"
        );
        assert_eq!(
            Template::parse("alpacca").expect_err("unknown").to_string(),
            "template \"alpacca\": expected `auto`, `alpaca`, `chat`, `plain`, or a text with `{{ field }}`"
        );
        assert_eq!(
            Template::Alpaca.answer(&row("{\"instruction\": \"x\"}")).expect_err("none").to_string(),
            "d.json, line 1: no answer: expected text in `output` or `completion`, or `messages` that end with the \
             assistant's"
        );
    }

    #[test]
    fn templates_render_the_expected_text() {
        let t = tokenizer();
        let with_input = row("{\"instruction\": \"Add {input}.\", \"input\": \"1 2\", \"output\": \"3\"}");
        assert_eq!(
            Template::Alpaca.prompt(&with_input, &t).expect("rendered"),
            "Below is an instruction that describes a task, paired with an input that provides further context. Write a \
             response that appropriately completes the request.\n\n### Instruction:\nAdd {input}.\n\n### Input:\n1 2\n\n\
             ### Response:\n"
        );
        assert_eq!(
            Template::Alpaca.prompt(&Template::Alpaca.question("Hi"), &t).expect("rendered"),
            "Below is an instruction that describes a task. Write a response that appropriately completes the \
             request.\n\n### Instruction:\nHi\n\n### Response:\n"
        );
        assert_eq!(Template::Alpaca.answer(&row("{\"output\": null}")).expect("empty"), "");
        let custom = Template::parse("Q: {{ instruction }}\nA:").expect("parsed");
        assert_eq!(custom.prompt(&with_input, &t).expect("rendered"), "Q: Add {input}.\nA:");
        let optional = Template::parse("{% if input %}\n{{ input }}\n{% endif %}\n{{ x | default('-') }}\n");
        let optional = optional.expect("parsed");
        assert_eq!(optional.prompt(&with_input, &t).expect("rendered"), "\n1 2\n\n-\n");
        assert_eq!(optional.prompt(&row("{\"y\": 1}"), &t).expect("rendered"), "\n-\n");
        let used =
            ["x", "input", "output", "instruction", "prompt"].map(|name| optional.uses(&with_input, name));
        assert_eq!(used, [true, true, true, false, false]);
        assert_eq!(Template::Plain.prompt(&with_input, &t).expect("rendered"), "Add {input}.\n1 2\n");
        let rows = [row("{\"prompt\": \"p\", \"completion\": \"c\"}")];
        assert_eq!(Template::resolve("auto", &rows).expect("known"), Template::Plain);
    }

    /// `prompt` belongs to `completion`, and `instruction` to `output`.
    #[test]
    fn of_two_pairs_in_a_row_one_is_used_and_the_other_is_told() {
        let t = tokenizer();
        let two = row(
            "{\"prompt\": \"p\", \"completion\": \"c\", \"instruction\": \"i\", \"output\": \"o\", \"input\": \"n\", \
             \"history\": []}",
        );
        let custom = |text: &str| Template::parse(text).expect("parsed");
        for (template, prompt, answer, unused) in [
            (Template::Plain, Some("p"), "c", &["instruction", "output", "input"][..]),
            (Template::Alpaca, None, "o", &["prompt", "completion"]),
            (custom("{{ prompt }}:"), Some("p:"), "c", &["instruction", "output", "input", "history"]),
            (custom("{{ instruction }}:"), Some("i:"), "o", &["prompt", "completion", "input", "history"]),
        ] {
            if let Some(prompt) = prompt {
                assert_eq!(template.prompt(&two, &t).expect("rendered"), prompt);
            }
            assert_eq!(template.answer(&two).expect("answered"), answer);
            let found: Vec<&str> =
                two.fields.keys().map(String::as_str).filter(|name| !template.uses(&two, name)).collect();
            assert_eq!(found, unused, "{}", template.text());
        }
        let chat: Vec<String> = Template::Chat
            .answered_conversation(&two)
            .expect("a conversation")
            .messages
            .iter()
            .map(text_of)
            .collect();
        assert_eq!(chat, ["i\n\nn", "o"]);
        // An empty column is none.
        let half = row("{\"prompt\": \"p\", \"completion\": \"\", \"instruction\": \"\", \"output\": \"o\"}");
        assert_eq!(Template::Alpaca.answer(&half).expect("answered"), "o");
        assert!(Template::Alpaca.prompt(&half, &t).expect("rendered").contains("\np\n"));
    }

    #[test]
    fn fields_beside_a_list_of_messages_are_told() {
        let messages = "\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]";
        let with = row(&format!(
            "{{{messages}, \"output\": \"o\", \"system\": \"S\", \"weight\": 1, \"train\": true}}"
        ));
        let used = ["messages", "system", "tools", "output", "weight", "train"]
            .map(|name| Template::Chat.uses(&with, name));
        assert_eq!(used, [true, true, true, false, false, false]);
    }

    #[test]
    fn null_is_no_prompt() {
        let rows = [row("{\"prompt\": null, \"instruction\": \"x\", \"output\": \"y\"}")];
        assert_eq!(Template::resolve("auto", &rows).expect("known"), Template::Alpaca);
        let error = Template::Plain.prompt(&row("{\"prompt\": null, \"completion\": \"y\"}"), &tokenizer());
        assert_eq!(error.expect_err("no prompt").to_string(), "d.json, line 1: no prompt: `prompt` is null");
    }
}
