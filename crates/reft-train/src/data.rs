//! JSON rows → prompts and answers → tokens → batches.

use crate::table::{Separator, parse_table};
use rand::{Rng, seq::SliceRandom};
use reft_models::{ChatMessage, Tokenizer, TokenizerError};
use serde_json::{Map, Value};
use std::{fs, io, path::Path};

const ALPACA: &str = "Below is an instruction that describes a task. Write a response that appropriately completes the \
                      request.\n\n### Instruction:\n{instruction}\n\n### Response:\n";
const ALPACA_WITH_INPUT: &str = "Below is an instruction that describes a task, paired with an input that provides further \
                                 context. Write a response that appropriately completes the \
                                 request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n";

/// Data that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The file cannot be read.
    #[error("{file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A file without rows.
    #[error("{file}: no rows; expected JSON Lines or a JSON array of objects")]
    Empty {
        /// The file.
        file: String,
    },
    /// Not JSON.
    #[error("{file}, line {line}: invalid JSON: {reason}")]
    Json {
        /// The file.
        file: String,
        /// The line, from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// A row that holds no prompt and answer.
    #[error("{place}: {reason}")]
    Row {
        /// File and row.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// The template cannot be used.
    #[error("template {template:?}: {reason}")]
    Template {
        /// The template.
        template: String,
        /// Why.
        reason: String,
    },
    /// The task cannot be done with these rows.
    #[error("{task}: {reason}")]
    Task {
        /// The task.
        task: String,
        /// Why.
        reason: String,
    },
    /// Every row was dropped.
    #[error(
        "{file}: none of the {rows} rows has an answer token within max_length = {max_length}; raise data.max_length"
    )]
    NothingLeft {
        /// The file.
        file: String,
        /// Rows in the file.
        rows: usize,
        /// The limit.
        max_length: usize,
    },
    /// The tokenizer refuses a text.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// One row of a data file and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The fields.
    pub fields: Map<String, Value>,
    /// `file, line N` or `file, row N`, for errors.
    pub place: String,
}

/// Reads JSON Lines, a JSON array, or, by the file's name, CSV or TSV.
///
/// # Errors
/// If the file cannot be read, is empty or is malformed; the error names the line.
pub fn read_rows(path: &Path) -> Result<Vec<Row>, DataError> {
    let file = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|source| DataError::Io { file: file.clone(), source })?;
    match Separator::of_file(&file) {
        Some(separator) => parse_table(&text, &file, separator, None),
        None => parse_rows(&text, &file),
    }
}

/// Rows from text; `file` names it in errors.
///
/// # Errors
/// As [`read_rows`].
pub fn parse_rows(text: &str, file: &str) -> Result<Vec<Row>, DataError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let object = |value: Value, place: String| match value {
        Value::Object(fields) => Ok(Row { fields, place }),
        other => Err(DataError::Row { reason: format!("expected an object, found {}", kind(&other)), place }),
    };
    let json_error = |line: usize, e: serde_json::Error| DataError::Json {
        file: file.into(),
        line,
        reason: e.to_string(),
    };
    let rows = if text.trim_start().starts_with('[') {
        let values: Vec<Value> = serde_json::from_str(text).map_err(|e| json_error(e.line(), e))?;
        let rows = values.into_iter().enumerate();
        rows.map(|(idx, value)| object(value, format!("{file}, row {}", idx + 1)))
            .collect::<Result<Vec<_>, _>>()?
    } else {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(idx, line)| {
                let value = serde_json::from_str(line).map_err(|e| json_error(idx + 1, e))?;
                object(value, format!("{file}, line {}", idx + 1))
            })
            .collect::<Result<Vec<_>, _>>()?
    };
    if rows.is_empty() { Err(DataError::Empty { file: file.into() }) } else { Ok(rows) }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// How a row becomes a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Template {
    /// The Alpaca texts, with or without input, byte for byte as pyreft has them.
    Alpaca,
    /// The model's own chat template.
    Chat,
    /// The prompt as it is; an instruction and its input on lines of their own.
    Plain,
    /// A Jinja template over the row's fields, such as `Q: {{ instruction }}\nA:`.
    Own(String),
}

/// A prompt and the answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Prompt and answer, as token ids.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt.
    pub prompt_len: usize,
}

impl Example {
    /// Number of tokens that are learned or judged.
    pub fn label_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// The prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }
}

impl Template {
    /// A template by its name, or a text of one's own.
    ///
    /// # Errors
    /// If it is neither.
    pub fn parse(text: &str) -> Result<Self, DataError> {
        match text {
            "alpaca" => Ok(Template::Alpaca),
            "chat" => Ok(Template::Chat),
            "plain" => Ok(Template::Plain),
            own if own.contains("{{") => {
                let bad =
                    |e: minijinja::Error| DataError::Template { template: own.into(), reason: e.to_string() };
                minijinja::Environment::new().template_from_str(own).map_err(bad)?;
                Ok(Template::Own(own.into()))
            }
            other => Err(DataError::Template {
                template: other.into(),
                reason: "expected `auto`, `alpaca`, `chat`, `plain`, or a text with `{{ field }}`".into(),
            }),
        }
    }

    /// [`parse`](Self::parse), where `auto` is the template that goes with the kind of rows: `chat` for `messages`,
    /// `plain` for `prompt`, `alpaca` for `instruction`.
    ///
    /// # Errors
    /// If the text is no template.
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
            Template::Own(text) => text,
        }
    }

    /// The row that a bare question stands for.
    pub fn question(&self, text: &str) -> Row {
        let mut fields = Map::new();
        let key = if *self == Template::Plain { "prompt" } else { "instruction" };
        fields.insert(key.into(), Value::String(text.into()));
        if let Template::Own(_) = self {
            fields.insert("prompt".into(), Value::String(text.into()));
        }
        Row { fields, place: "the prompt".into() }
    }

    /// The prompt's text.
    ///
    /// # Errors
    /// If the row lacks what the template needs.
    pub fn prompt(&self, row: &Row, tokenizer: &Tokenizer) -> Result<String, DataError> {
        let wrong = |reason: String| DataError::Row { place: row.place.clone(), reason };
        if let Template::Own(text) = self {
            let bad = |e: minijinja::Error| wrong(format!("the template fails: {e}"));
            let mut environment = minijinja::Environment::new();
            environment.set_undefined_behavior(minijinja::UndefinedBehavior::SemiStrict);
            environment.set_keep_trailing_newline(true);
            return environment.render_str(text, &row.fields).map_err(bad);
        }
        if *self == Template::Chat {
            let mut messages = messages(row)?;
            if messages.last().is_some_and(|m| m.role == "assistant") {
                messages.pop();
            }
            return Ok(tokenizer.render_chat(&messages, true)?);
        }
        if row.fields.contains_key("messages") {
            return Err(wrong(format!(
                "has `messages`, which the template `{}` cannot show; use `chat`",
                self.text()
            )));
        }
        let input = text_field(row, "input")?.unwrap_or_default();
        let prompt = text_field(row, "prompt")?;
        let question = match (text_field(row, "instruction")?, &prompt) {
            (Some(instruction), _) => instruction,
            (None, Some(prompt)) => prompt.clone(),
            (None, None) => {
                let keys: Vec<&str> = row.fields.keys().map(String::as_str).collect();
                return Err(wrong(format!(
                    "no prompt: expected `instruction`, `prompt` or `messages`, found {}",
                    if keys.is_empty() { "no field".into() } else { keys.join(", ") }
                )));
            }
        };
        Ok(match (self, prompt) {
            (Template::Plain, Some(prompt)) => prompt,
            (Template::Plain, None) if input.is_empty() => format!("{question}\n"),
            (Template::Plain, None) => format!("{question}\n{input}\n"),
            _ if input.is_empty() => ALPACA.replace("{instruction}", &question),
            // In this order, so that a question which holds `{input}` stays as it is.
            _ => ALPACA_WITH_INPUT
                .replace("{input}", "\u{0}")
                .replace("{instruction}", &question)
                .replace('\u{0}', &input),
        })
    }

    /// Tokens of a prompt, cut from the right at `max_length`.
    ///
    /// # Errors
    /// If the row lacks what the template needs.
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

    /// Tokens of prompt and answer before any cut. As pyreft does it, the answer's tokens are those of the whole text
    /// beyond the number of the prompt's own.
    fn encode_whole(&self, row: &Row, tokenizer: &Tokenizer) -> Result<Example, DataError> {
        let prompt = self.prompt(row, tokenizer)?;
        let whole = match self {
            Template::Chat => {
                let whole = tokenizer.render_chat(&messages_with_answer(row)?, false)?;
                if !whole.starts_with(&prompt) {
                    return Err(DataError::Row {
                        place: row.place.clone(),
                        reason: "the chat template does not begin the answered chat with the open one".into(),
                    });
                }
                whole
            }
            _ => prompt.clone() + &answer(row)? + tokenizer.eos().map_or("", |eos| &eos.text),
        };
        let prompt_len = self.encode_text(&prompt, tokenizer)?.len();
        Ok(Example { tokens: self.encode_text(&whole, tokenizer)?, prompt_len })
    }
}

fn text_field(row: &Row, key: &str) -> Result<Option<String>, DataError> {
    match row.fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(DataError::Row {
            place: row.place.clone(),
            reason: format!("`{key}` is {}, expected text", kind(other)),
        }),
    }
}

/// The expected answer.
///
/// # Errors
/// If the row has none.
pub fn answer(row: &Row) -> Result<String, DataError> {
    if row.fields.contains_key("messages") {
        return Ok(messages_with_answer(row)?.pop().map(|m| m.content).unwrap_or_default());
    }
    for key in ["output", "completion"] {
        if let Some(text) = text_field(row, key)?.filter(|text| !text.is_empty()) {
            return Ok(text);
        }
    }
    let reason =
        "no answer: expected text in `output` or `completion`, or `messages` that end with the assistant's";
    Err(DataError::Row { place: row.place.clone(), reason: reason.into() })
}

fn messages(row: &Row) -> Result<Vec<ChatMessage>, DataError> {
    let wrong = |reason: String| DataError::Row { place: row.place.clone(), reason };
    if let Some(value) = row.fields.get("messages") {
        let messages: Vec<ChatMessage> =
            serde_json::from_value(value.clone()).map_err(|e| wrong(format!("`messages`: {e}")))?;
        return if messages.is_empty() { Err(wrong("`messages` is empty".into())) } else { Ok(messages) };
    }
    let question = match text_field(row, "instruction")? {
        Some(instruction) => Some(instruction),
        None => text_field(row, "prompt")?,
    };
    let question =
        question.ok_or_else(|| wrong("no prompt: expected `messages`, `instruction` or `prompt`".into()))?;
    let content = match text_field(row, "input")?.filter(|input| !input.is_empty()) {
        Some(input) => format!("{question}\n\n{input}"),
        None => question,
    };
    Ok(vec![ChatMessage { role: "user".into(), content }])
}

fn messages_with_answer(row: &Row) -> Result<Vec<ChatMessage>, DataError> {
    let mut messages = messages(row)?;
    if !row.fields.contains_key("messages") {
        messages.push(ChatMessage { role: "assistant".into(), content: answer(row)? });
    }
    match messages.last() {
        Some(last) if last.role == "assistant" && !last.content.is_empty() => Ok(messages),
        _ => Err(DataError::Row {
            place: row.place.clone(),
            reason: "no answer: `messages` must end with a message of the assistant".into(),
        }),
    }
}

/// Encoded rows, and what became of those that did not fit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataSet {
    /// The rows that have an answer token, in the file's order.
    pub examples: Vec<Example>,
    /// Index in the file of each example.
    pub row_of: Vec<usize>,
    /// Rows in the file.
    pub n_rows: usize,
    /// Rows that were cut at the maximal length.
    pub n_cut: usize,
}

impl DataSet {
    /// Encodes rows, cut from the right at `max_length`; rows left without an answer token are dropped.
    ///
    /// # Errors
    /// If a row has no prompt or no answer, or if nothing is left.
    pub fn encode(
        rows: &[Row],
        template: &Template,
        tokenizer: &Tokenizer,
        max_length: usize,
        file: &str,
    ) -> Result<Self, DataError> {
        let mut set = DataSet { n_rows: rows.len(), ..Default::default() };
        for (idx, row) in rows.iter().enumerate() {
            let mut example = template.encode_whole(row, tokenizer)?;
            if example.tokens.len() > max_length {
                example.tokens.truncate(max_length);
                set.n_cut += 1;
            }
            // A first token has nothing before it to be predicted from.
            if example.prompt_len > 0 && example.tokens.len() > example.prompt_len {
                set.examples.push(example);
                set.row_of.push(idx);
            }
        }
        if set.examples.is_empty() {
            return Err(DataError::NothingLeft { file: file.into(), rows: rows.len(), max_length });
        }
        Ok(set)
    }

    /// Rows dropped because no answer token was left.
    pub fn n_dropped(&self) -> usize {
        self.n_rows - self.examples.len()
    }
}

/// The order of one epoch, in batches of indices of examples with these numbers of tokens.
///
/// Shuffled, rows of like length stand together, because padding costs as much as text: the shuffled rows are sorted
/// by length within windows of many batches, and the batches are shuffled again.
pub fn epoch(lengths: &[usize], batch_size: usize, rng: Option<&mut impl Rng>) -> Vec<Vec<usize>> {
    const WINDOW_BATCHES: usize = 32;
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    let Some(rng) = rng else {
        return order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    };
    order.shuffle(rng);
    for window in order.chunks_mut(batch_size * WINDOW_BATCHES) {
        window.sort_by_key(|idx| lengths[*idx]);
    }
    let mut batches: Vec<Vec<usize>> = order.chunks(batch_size).map(<[usize]>::to_vec).collect();
    batches.shuffle(rng);
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    fn row(json: &str) -> Row {
        parse_rows(json, "d.json").expect("valid").remove(0)
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::load(&crate::tiny::model()).expect("embedded")
    }

    #[test]
    fn rows_come_as_lines_or_as_a_list() {
        let lines = parse_rows("{\"a\": 1}\n\n{\"a\": 2}\n", "d").expect("valid");
        let list = parse_rows(" [{\"a\": 1},\n {\"a\": 2}]", "d").expect("valid");
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1].fields, list[1].fields);
        assert_eq!((lines[1].place.as_str(), list[1].place.as_str()), ("d, line 3", "d, row 2"));
    }

    #[test]
    fn unusable_files_are_errors_that_say_where() {
        let error = |text: &str| parse_rows(text, "d.json").expect_err("unusable").to_string();
        assert!(error("").contains("d.json: no rows"));
        assert!(error("[]").contains("no rows"));
        assert!(error("{\"a\": 1}\n{oops}").contains("d.json, line 2: invalid JSON"));
        assert!(error("{\"a\": 1}\n3").contains("line 2: expected an object, found a number"));
        let no_answer = row("{\"instruction\": \"x\", \"output\": \"\"}");
        assert!(answer(&no_answer).expect_err("none").to_string().contains("d.json, line 1: no answer"));
        let t = tokenizer();
        let error = |template: &Template, json: &str| {
            template.prompt(&row(json), &t).expect_err("unusable").to_string()
        };
        assert!(error(&Template::Alpaca, "{\"question\": \"x\"}").contains("found question"));
        assert!(error(&Template::Alpaca, "{\"instruction\": [1]}").contains("`instruction` is a list"));
        assert!(error(&Template::Plain, "{\"messages\": []}").contains("use `chat`"));
        assert!(error(&Template::Own("{{ x }}".into()), "{\"y\": 1}").contains("undefined"));
        assert!(Template::parse("alpacca").is_err());
    }

    #[test]
    fn templates_write_what_they_promise() {
        let t = tokenizer();
        let with_input = row("{\"instruction\": \"Add {input}.\", \"input\": \"1 2\", \"output\": \"3\"}");
        let text = Template::Alpaca.prompt(&with_input, &t).expect("rendered");
        assert!(
            text.ends_with("### Instruction:\nAdd {input}.\n\n### Input:\n1 2\n\n### Response:\n"),
            "{text}"
        );
        assert!(text.starts_with("Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.\n\n###"));
        let bare = Template::Alpaca.prompt(&Template::Alpaca.question("Hi"), &t).expect("rendered");
        assert_eq!(
            bare,
            "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\nHi\n\n### Response:\n"
        );
        let own = Template::Own("Q: {{ instruction }}\nA:".into());
        assert_eq!(own.prompt(&with_input, &t).expect("rendered"), "Q: Add {input}.\nA:");
        assert_eq!(Template::Plain.prompt(&with_input, &t).expect("rendered"), "Add {input}.\n1 2\n");
        let rows = [row("{\"prompt\": \"p\", \"completion\": \"c\"}")];
        assert_eq!(Template::resolve("auto", &rows).expect("known"), Template::Plain);
    }

    #[test]
    fn long_rows_are_cut_and_counted() {
        let t = tokenizer();
        let rows: Vec<Row> = ["hi", &"word ".repeat(40)]
            .iter()
            .map(|prompt| row(&serde_json::json!({"prompt": prompt, "completion": "yes"}).to_string()))
            .collect();
        let set = DataSet::encode(&rows, &Template::Plain, &t, 16, "d").expect("something left");
        assert_eq!((set.examples.len(), set.n_cut, set.n_dropped(), set.row_of[0]), (1, 1, 1, 0));
        assert_eq!(set.examples[0].tokens.last(), t.eos().map(|eos| &eos.id));
        assert!(matches!(
            DataSet::encode(&rows[1..], &Template::Plain, &t, 16, "d"),
            Err(DataError::NothingLeft { .. })
        ));
    }

    #[test]
    fn an_epoch_has_every_row_once_and_like_lengths_together() {
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let lengths: Vec<usize> = (0..1000).map(|_| rng.random_range(2..200)).collect();
        let batches = epoch(&lengths, 8, Some(&mut rng));
        let mut seen: Vec<usize> = batches.concat();
        seen.sort_unstable();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
        let padded: usize = batches
            .iter()
            .map(|batch| batch.len() * batch.iter().map(|i| lengths[*i]).max().unwrap_or(0))
            .sum();
        let real: usize = lengths.iter().sum();
        assert!((padded as f64) < 1.1 * real as f64, "{padded} against {real}");
        assert_ne!(batches, epoch(&lengths, 8, Some(&mut rng)));
        let in_order = epoch(&lengths, 8, None::<&mut ChaCha8Rng>);
        assert_eq!(in_order.concat(), (0..1000).collect::<Vec<_>>());
    }
}
