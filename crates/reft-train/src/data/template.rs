//! Prompt templates: rows → prompts and answers.

use super::{
    error::DataError,
    rows::{Row, kind_of},
};
use minijinja::{Environment, UndefinedBehavior};
use reft_models::{ChatMessage, Tokenizer, TokenizerError};
use serde_json::{Map, Value};

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
    Custom(String),
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
            custom if custom.contains("{{") => {
                let invalid = |e: minijinja::Error| DataError::Template {
                    template: custom.into(),
                    reason: e.to_string(),
                };
                Environment::new().template_from_str(custom).map_err(invalid)?;
                Ok(Template::Custom(custom.into()))
            }
            other => Err(DataError::Template {
                template: other.into(),
                reason: "expected `auto`, `alpaca`, `chat`, `plain`, or a text with `{{ field }}`".into(),
            }),
        }
    }

    /// Parses a template, where `auto` stands for `chat` if the rows have `messages`, `plain` if they have `prompt`, and
    /// `alpaca` otherwise.
    ///
    /// # Errors
    /// As [`parse`](Self::parse).
    pub fn resolve(text: &str, rows: &[Row]) -> Result<Self, DataError> {
        if text != "auto" {
            return Self::parse(text);
        }
        let has = |key: &str| rows.first().is_some_and(|row| row.fields.contains_key(key));
        Ok(if has("messages") {
            Template::Chat
        } else if has("prompt") {
            Template::Plain
        } else {
            Template::Alpaca
        })
    }

    /// The text that [`parse`](Self::parse) reads.
    pub fn text(&self) -> &str {
        match self {
            Template::Alpaca => "alpaca",
            Template::Chat => "chat",
            Template::Plain => "plain",
            Template::Custom(text) => text,
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
        Row { fields, place: "the prompt".into() }
    }

    /// The prompt of a row.
    ///
    /// # Errors
    /// If the row lacks a field that the template needs.
    pub fn prompt(&self, row: &Row, tokenizer: &Tokenizer) -> Result<String, DataError> {
        match self {
            Template::Custom(text) => {
                let mut environment = Environment::new();
                environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
                environment.set_keep_trailing_newline(true);
                let prompt = environment.render_str(text, &row.fields);
                prompt.map_err(|e| {
                    let fields: Vec<&str> = row.fields.keys().map(String::as_str).collect();
                    row.error(format!(
                        "cannot render the template: {e}; the fields are {}",
                        fields.join(", ")
                    ))
                })
            }
            Template::Chat => {
                let mut messages = messages(row)?;
                if messages.last().is_some_and(|message| message.role == "assistant") {
                    messages.pop();
                }
                Ok(tokenizer.render_chat(&messages, true)?)
            }
            Template::Alpaca | Template::Plain => self.flat_prompt(row),
        }
    }

    /// The prompt of a row with `instruction` and `input`, or with `prompt`.
    fn flat_prompt(&self, row: &Row) -> Result<String, DataError> {
        if row.fields.contains_key("messages") {
            let name = self.text();
            return Err(
                row.error(format!("has `messages`, which the template `{name}` cannot show; use `chat`"))
            );
        }
        let input = text_field(row, "input")?.unwrap_or_default();
        let prompt = text_field(row, "prompt")?;
        let question = match (text_field(row, "instruction")?, &prompt) {
            (Some(instruction), _) => instruction,
            (None, Some(prompt)) => prompt.clone(),
            (None, None) => {
                let keys: Vec<&str> = row.fields.keys().map(String::as_str).collect();
                let found = if keys.is_empty() { "no field".into() } else { keys.join(", ") };
                return Err(row.error(format!(
                    "no prompt: expected `instruction`, `prompt` or `messages`, found {found}"
                )));
            }
        };
        Ok(match (self, prompt) {
            (Template::Plain, Some(prompt)) => prompt,
            (Template::Plain, None) if input.is_empty() => format!("{question}\n"),
            (Template::Plain, None) => format!("{question}\n{input}\n"),
            _ if input.is_empty() => ALPACA.replace("{instruction}", &question),
            // The placeholder keeps an `{input}` within the question as it is.
            _ => ALPACA_WITH_INPUT
                .replace("{input}", "\u{0}")
                .replace("{instruction}", &question)
                .replace('\u{0}', &input),
        })
    }

    /// Encodes the prompt of a row, truncated on the right to `max_length`.
    ///
    /// # Errors
    /// If the row lacks a field that the template needs.
    pub fn encode_prompt(
        &self,
        row: &Row,
        tokenizer: &Tokenizer,
        max_length: usize,
    ) -> Result<Vec<u32>, DataError> {
        let mut tokens = self.encode_text(&self.prompt(row, tokenizer)?, tokenizer)?;
        tokens.truncate(max_length);
        Ok(tokens)
    }

    fn encode_text(&self, text: &str, tokenizer: &Tokenizer) -> Result<Vec<u32>, TokenizerError> {
        if *self == Template::Chat { tokenizer.encode_rendered(text) } else { tokenizer.encode(text) }
    }

    /// Encodes prompt and answer, without truncation; returns the tokens and how many of them are the prompt.
    ///
    /// As in pyreft, the answer's tokens are those of the whole text beyond the number of tokens of the prompt alone.
    pub(super) fn encode_answered(
        &self,
        row: &Row,
        tokenizer: &Tokenizer,
    ) -> Result<(Vec<u32>, usize), DataError> {
        let prompt = self.prompt(row, tokenizer)?;
        let whole = match self {
            Template::Chat => {
                let whole = tokenizer.render_chat(&answered_messages(row)?, false)?;
                if !whole.starts_with(&prompt) {
                    return Err(row.error(
                        "the chat template renders the answered chat differently from the open one, so the answer \
                         cannot be told apart from the prompt",
                    ));
                }
                whole
            }
            _ => prompt.clone() + &answer(row)? + tokenizer.eos().map_or("", |eos| &eos.text),
        };
        let prompt_len = self.encode_text(&prompt, tokenizer)?.len();
        Ok((self.encode_text(&whole, tokenizer)?, prompt_len))
    }
}

fn text_field(row: &Row, key: &str) -> Result<Option<String>, DataError> {
    match row.fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(row.error(format!("`{key}` is {}, expected text", kind_of(other)))),
    }
}

/// The reference answer of a row.
///
/// # Errors
/// If the row has none.
pub fn answer(row: &Row) -> Result<String, DataError> {
    if row.fields.contains_key("messages") {
        return Ok(answered_messages(row)?.pop().map(|message| message.content).unwrap_or_default());
    }
    for key in ["output", "completion"] {
        if let Some(text) = text_field(row, key)?.filter(|text| !text.is_empty()) {
            return Ok(text);
        }
    }
    Err(row.error(
        "no answer: expected text in `output` or `completion`, or `messages` that end with the assistant's",
    ))
}

fn messages(row: &Row) -> Result<Vec<ChatMessage>, DataError> {
    if let Some(value) = row.fields.get("messages") {
        let messages: Vec<ChatMessage> =
            serde_json::from_value(value.clone()).map_err(|e| row.error(format!("`messages`: {e}")))?;
        return if messages.is_empty() { Err(row.error("`messages` is empty")) } else { Ok(messages) };
    }
    let question = match text_field(row, "instruction")? {
        Some(instruction) => Some(instruction),
        None => text_field(row, "prompt")?,
    };
    let question =
        question.ok_or_else(|| row.error("no prompt: expected `messages`, `instruction` or `prompt`"))?;
    let content = match text_field(row, "input")?.filter(|input| !input.is_empty()) {
        Some(input) => format!("{question}\n\n{input}"),
        None => question,
    };
    Ok(vec![ChatMessage { role: "user".into(), content }])
}

fn answered_messages(row: &Row) -> Result<Vec<ChatMessage>, DataError> {
    let mut messages = messages(row)?;
    if !row.fields.contains_key("messages") {
        messages.push(ChatMessage { role: "assistant".into(), content: answer(row)? });
    }
    match messages.last() {
        Some(last) if last.role == "assistant" && !last.content.is_empty() => Ok(messages),
        _ => Err(row.error("no answer: `messages` must end with a message of the assistant")),
    }
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
            error(&Template::Plain, "{\"messages\": []}"),
            "d.json, line 1: has `messages`, which the template `plain` cannot show; use `chat`"
        );
        let message = error(&Template::Custom("{{ x }}".into()), "{\"y\": 1}");
        assert!(
            message.starts_with("d.json, line 1: cannot render the template: undefined value"),
            "{message}"
        );
        assert_eq!(
            Template::parse("alpacca").expect_err("unknown").to_string(),
            "template \"alpacca\": expected `auto`, `alpaca`, `chat`, `plain`, or a text with `{{ field }}`"
        );
        assert_eq!(
            answer(&row("{\"instruction\": \"x\", \"output\": \"\"}")).expect_err("none").to_string(),
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
        let custom = Template::Custom("Q: {{ instruction }}\nA:".into());
        assert_eq!(custom.prompt(&with_input, &t).expect("rendered"), "Q: Add {input}.\nA:");
        assert_eq!(Template::Plain.prompt(&with_input, &t).expect("rendered"), "Add {input}.\n1 2\n");
        let rows = [row("{\"prompt\": \"p\", \"completion\": \"c\"}")];
        assert_eq!(Template::resolve("auto", &rows).expect("known"), Template::Plain);
    }
}
