//! Rows as conversations, in the layouts that chat data comes in.

use super::{error::DataError, rows::Row};
use reft_core::files::plain_words;
use reft_models::{Chat, files::kind_of};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// The fields that hold a list of messages; the first one is OpenAI's, the others are ShareGPT's.
const MESSAGE_LISTS: [&str; 3] = ["messages", "conversations", "conversation"];

/// The fields of a row that every conversation may have beside its messages.
const CHAT_FIELDS: [&str; 4] = ["system", "tools", "documents", "chat_template_kwargs"];

/// Which messages of the assistant are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TrainOn {
    /// The last one, which must end the conversation.
    #[default]
    Last,
    /// Every one, each as an example whose prompt is the conversation before it. Messages with `weight` 0 or `train` false are
    /// left out.
    All,
}

impl std::str::FromStr for TrainOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "last" => Ok(Self::Last),
            "all" => Ok(Self::All),
            other => Err(format!("{other:?} is unknown, expected `last` or `all`")),
        }
    }
}

/// Whether the row holds a list of messages.
pub(super) fn has_messages(row: &Row) -> bool {
    message_list(row).is_some() || matches!(row.fields.get("prompt"), Some(Value::Array(_)))
}

/// Whether a field has a part in the conversation of a row, if it has a list of messages.
pub(super) fn is_of_messages(row: &Row, name: &str) -> bool {
    match message_list(row) {
        Some((key, _)) => name == key || CHAT_FIELDS.contains(&name),
        None => matches!(name, "prompt" | "completion") || CHAT_FIELDS.contains(&name),
    }
}

/// Whether a field has a part in the conversation of a row that has no list of messages, beside question, input and answer.
pub(super) fn is_of_turns(name: &str) -> bool {
    name == "history" || CHAT_FIELDS.contains(&name)
}

fn message_list(row: &Row) -> Option<(&'static str, &Value)> {
    MESSAGE_LISTS
        .into_iter()
        .find_map(|key| Some((key, row.fields.get(key).filter(|value| !value.is_null())?)))
}

/// The conversation of a row, without the reference answer of a row that is no list of messages.
///
/// # Errors
/// If the row has no prompt, or a message is malformed.
pub(super) fn conversation(row: &Row) -> Result<Chat, DataError> {
    let mut messages = match (message_list(row), row.fields.get("prompt")) {
        (Some((key, value)), _) => messages(row, key, value)?,
        (None, Some(prompt @ Value::Array(_))) => {
            let mut all = messages(row, "prompt", prompt)?;
            if let Some(completion) = row.fields.get("completion").filter(|value| !value.is_null()) {
                all.extend(completion_messages(row, completion)?);
            }
            all
        }
        _ => turns_of_fields(row)?,
    };
    if let Some(system) = text_field(row, "system")?.filter(|text| !text.is_empty()) {
        if messages.first().is_some_and(|first| role(first) == "system") {
            return Err(row.error("has both `system` and a message of the system; remove one"));
        }
        messages.insert(0, message("system", system));
    }
    let variables = match row.fields.get("chat_template_kwargs") {
        None | Some(Value::Null) => Map::new(),
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(Value::String(text)) => from_text(row, "chat_template_kwargs", text, "an object")?,
        Some(Value::Object(variables)) => variables.clone(),
        Some(other) => {
            return Err(
                row.error(format!("`chat_template_kwargs` is {}, expected an object", kind_of(other)))
            );
        }
    };
    Ok(Chat {
        messages,
        tools: list_field(row, "tools")?,
        documents: list_field(row, "documents")?,
        variables,
    })
}

/// The role of a message.
pub(super) fn role(message: &Map<String, Value>) -> &str {
    message.get("role").and_then(Value::as_str).unwrap_or_default()
}

/// A message with text.
pub(super) fn message(role: &str, content: impl Into<Value>) -> Map<String, Value> {
    [("role".into(), role.into()), ("content".into(), content.into())].into_iter().collect()
}

/// The text of a message: its content, or the texts of its parts.
pub(super) fn text_of(message: &Map<String, Value>) -> String {
    match message.get("content") {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text").unwrap_or(part).as_str()).collect()
        }
        _ => String::new(),
    }
}

/// Whether a message of the assistant has nothing to say: neither text nor anything else beside its role.
pub(super) fn is_empty(message: &Map<String, Value>) -> bool {
    // A template may show null as text.
    !matches!(message.get("content"), Some(Value::Null))
        && text_of(message).is_empty()
        && !message.iter().any(|(key, value)| {
            !matches!(key.as_str(), "role" | "content" | "name" | "weight" | "train") && !value.is_null()
        })
}

/// Indices of the messages to train.
///
/// # Errors
/// If there are none.
pub(super) fn trained_turns(row: &Row, chat: &Chat, train_on: TrainOn) -> Result<Vec<usize>, DataError> {
    let is_assistant = |message: &Map<String, Value>| role(message) == "assistant";
    let turns = match train_on {
        TrainOn::Last => {
            if !chat.messages.last().is_some_and(is_assistant) {
                let found = chat.messages.last().map_or("none", role);
                return Err(row.error(format!(
                    "no answer: the last message must be the assistant's, found {found:?}; \
                     `data.train_on = \"all\"` trains the assistant's messages before it"
                )));
            }
            vec![chat.messages.len() - 1]
        }
        TrainOn::All => {
            let turns = chat.messages.iter().enumerate();
            turns.filter(|(_, message)| is_assistant(message)).map(|(idx, _)| idx).collect()
        }
    };
    if turns.is_empty() {
        return Err(row.error("no answer: no message is the assistant's"));
    }
    let mut trained = Vec::new();
    for turn in turns {
        if !is_left_out(&chat.messages[turn]).map_err(|reason| row.error(reason))? {
            trained.push(turn);
        }
    }
    if trained.is_empty() {
        return Err(
            row.error("no answer: every message to train is left out by its `weight`, `train` or `loss`")
        );
    }
    Ok(trained)
}

/// Whether a message is not to be trained: a weight of 0 (OpenAI), `train` (Axolotl) or `loss` (ms-swift) that is false.
fn is_left_out(message: &Map<String, Value>) -> Result<bool, String> {
    let mut is_left_out = false;
    for key in ["weight", "train", "loss"] {
        match message.get(key) {
            None | Some(Value::Null | Value::Bool(true)) => {}
            Some(Value::Bool(false)) => is_left_out = true,
            Some(value) if value.as_f64() == Some(0.0) => is_left_out = true,
            Some(value) if value.as_f64() == Some(1.0) => {}
            Some(value) => {
                return Err(format!(
                    "`{key}` of a message of the assistant is {value}, expected 0, 1, true or false"
                ));
            }
        }
    }
    Ok(is_left_out)
}

fn messages(row: &Row, key: &str, value: &Value) -> Result<Vec<Map<String, Value>>, DataError> {
    let parsed;
    let list = match value {
        Value::Array(list) => list,
        Value::String(text) => {
            parsed = from_text::<Vec<Value>>(row, key, text, "a list of messages")?;
            &parsed
        }
        other => return Err(row.error(format!("`{key}` is {}, expected a list of messages", kind_of(other)))),
    };
    if list.is_empty() {
        return Err(row.error(format!("`{key}` is empty")));
    }
    let numbered = list.iter().enumerate();
    numbered
        .map(|(idx, value)| {
            let place = format!("`{key}`, message {}", idx + 1);
            match value {
                Value::Object(fields) => {
                    one_message(fields).map_err(|reason| row.error(format!("{place}: {reason}")))
                }
                other => Err(row.error(format!("{place} is {}, expected an object", kind_of(other)))),
            }
        })
        .collect()
}

/// Fields that say something in place of the content of a message.
const INSTEAD_OF_CONTENT: [&str; 8] = [
    "tool_calls",
    "function_call",
    "reasoning_content",
    "reasoning",
    "thinking",
    "tool_responses",
    "refusal",
    "audio",
];

/// A message with `role`, as it is; or one of ShareGPT with `from`. The text is in `content`, or in `value`.
fn one_message(fields: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    // Tables of mixed layouts fill what a message does not have with null.
    let mut fields = Cow::Borrowed(fields);
    if fields.values().any(Value::is_null) {
        let fields = fields.to_mut();
        fields.retain(|key, value| !(value.is_null() && ["role", "from", "value"].contains(&key.as_str())));
        if fields.contains_key("value") && fields.get("content").is_some_and(Value::is_null) {
            fields.remove("content");
        }
    }
    let fields = &*fields;
    let listed = || listing(&fields.keys().map(String::as_str).collect::<Vec<_>>());
    let text_key = ["content", "value"].into_iter().find(|key| fields.contains_key(*key));
    match (fields.get("role"), fields.get("from")) {
        (Some(Value::String(_)), _) => {
            let mut message = fields.clone();
            match text_key {
                Some("value") => {
                    let value = message.remove("value").unwrap_or_default();
                    message.insert("content".into(), value);
                }
                None if !INSTEAD_OF_CONTENT.iter().any(|key| fields.contains_key(*key)) => {
                    return Err(format!("no `content`, found {}", listed()));
                }
                _ => {}
            }
            return match message.get("content") {
                None | Some(Value::Null | Value::String(_) | Value::Array(_)) => Ok(message),
                Some(other) => {
                    Err(format!("`content` is {}, expected text or a list of parts", kind_of(other)))
                }
            };
        }
        (Some(other), _) => return Err(format!("`role` is {}, expected text", kind_of(other))),
        (None, Some(Value::String(_))) => {}
        (None, _) => return Err(format!("no `role`, found {}", listed())),
    }
    let from = fields["from"].as_str().unwrap_or_default();
    let value = ["value", "content"].iter().find_map(|key| fields.get(*key).filter(|value| !value.is_null()));
    let value = value.ok_or_else(|| "no `value`".to_string())?;
    let role = match from {
        "system" => "system",
        "human" | "user" => "user",
        "gpt" | "assistant" | "chatgpt" | "bard" | "bing" | "model" => "assistant",
        "observation" | "tool" | "function_response" => "tool",
        "function_call" => return tool_call(value),
        other => {
            return Err(format!(
                "`from` is {other:?}, expected human, gpt, system, function_call, observation, or the role itself"
            ));
        }
    };
    let mut message = message(role, value.clone());
    let rest = fields.iter().filter(|(key, _)| !matches!(key.as_str(), "from" | "value" | "content"));
    message.extend(rest.map(|(key, value)| (key.clone(), value.clone())));
    Ok(message)
}

/// A value that a table holds as JSON text; `expected` says what it is.
fn from_text<T: DeserializeOwned>(row: &Row, key: &str, text: &str, expected: &str) -> Result<T, DataError> {
    serde_json::from_str(text).map_err(|error| {
        let reason = match is_python(text) {
            true => {
                "it is in the notation of Python; write the column with json.dumps, or the rows as JSON Lines"
                    .into()
            }
            false => plain_words(&error.to_string()),
        };
        row.error(format!("`{key}` is text, expected {expected}: {reason}"))
    })
}

/// Whether a text is a list or an object as Python prints it, which is what pandas writes into CSV.
fn is_python(text: &str) -> bool {
    let inner = text.trim_start_matches(|c: char| c.is_whitespace() || "[{(".contains(c));
    let is_nested = inner.len() < text.trim_start().len();
    is_nested && (inner.starts_with('\'') || inner.starts_with("array(") || inner.starts_with("None"))
}

/// The message of a `function_call`, whose value is a call, or a list of calls, as JSON text.
fn tool_call(value: &Value) -> Result<Map<String, Value>, String> {
    let parsed = match value {
        Value::String(text) => {
            serde_json::from_str(text).map_err(|error| format!("`value` of a function_call: {error}"))?
        }
        other => other.clone(),
    };
    let calls = match parsed {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    if calls.iter().any(|call| call.get("name").is_none()) {
        return Err("`value` of a function_call has no `name`".into());
    }
    let calls: Vec<Value> =
        calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect();
    let mut message = message("assistant", "");
    message.insert("tool_calls".into(), calls.into());
    Ok(message)
}

/// The answer to a list of messages in `prompt`: messages, one message, or text.
fn completion_messages(row: &Row, completion: &Value) -> Result<Vec<Map<String, Value>>, DataError> {
    match completion {
        Value::Object(_) => messages(row, "completion", &Value::Array(vec![completion.clone()])),
        Value::String(text) => Ok(vec![message("assistant", text.as_str())]),
        list => messages(row, "completion", list),
    }
}

/// The conversation of `history` and `instruction` (or `prompt`) with `input`.
fn turns_of_fields(row: &Row) -> Result<Vec<Map<String, Value>>, DataError> {
    let question = first_given(row, ["instruction", "prompt"]).ok_or_else(|| no_prompt(row))?;
    let question = text_field(row, question)?.unwrap_or_default();
    let content = match text_field(row, "input")?.filter(|input| !input.is_empty()) {
        Some(input) => format!("{question}\n\n{input}"),
        None => question,
    };
    let mut messages = Vec::new();
    for (asked, answered) in history(row)? {
        messages.extend([message("user", asked), message("assistant", answered)]);
    }
    messages.push(message("user", content));
    Ok(messages)
}

/// The turns before the question, as LLaMA-Factory stores them: pairs of question and answer.
pub(super) fn history(row: &Row) -> Result<Vec<(String, String)>, DataError> {
    let parsed;
    let turns = match row.fields.get("history") {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(turns)) => turns,
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(Vec::new()),
        Some(Value::String(text)) => {
            parsed = from_text::<Vec<Value>>(row, "history", text, "a list")?;
            &parsed
        }
        Some(other) => return Err(row.error(format!("`history` is {}, expected a list", kind_of(other)))),
    };
    let pair = |turn: &Value| match turn.as_array().map(Vec::as_slice) {
        Some([Value::String(asked), Value::String(answered)]) => Ok((asked.clone(), answered.clone())),
        _ => {
            Err(row.error("`history`: expected pairs of question and answer, such as [[\"Hi\", \"Hello\"]]"))
        }
    };
    turns.iter().map(pair).collect()
}

/// A list, also as JSON text. An empty one is one, as in transformers.
fn list_field(row: &Row, key: &str) -> Result<Option<Value>, DataError> {
    let value = match row.fields.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.trim().is_empty() => return Ok(None),
        Some(Value::String(text)) => from_text(row, key, text, "a list")?,
        Some(value) => value.clone(),
    };
    match value {
        Value::Array(_) => Ok(Some(value)),
        other => Err(row.error(format!("`{key}` is {}, expected a list", kind_of(&other)))),
    }
}

/// A field with text or a number; none if it is absent or null.
pub(super) fn text_field(row: &Row, key: &str) -> Result<Option<String>, DataError> {
    match row.fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(row.error(format!("`{key}` is {}, expected text", kind_of(other)))),
    }
}

/// The first of some fields that has a value and is not empty, or that has a value.
pub(super) fn first_given<'a>(row: &Row, keys: [&'a str; 2]) -> Option<&'a str> {
    let is_given = |key: &&str| row.fields.get(*key).is_some_and(|value| !value.is_null());
    let is_empty = |key: &&str| row.fields.get(*key).and_then(Value::as_str) == Some("");
    let given = keys.into_iter().filter(is_given);
    given.clone().find(|key| !is_empty(key)).or(given.clone().next())
}

pub(super) fn no_prompt(row: &Row) -> DataError {
    let fields = MESSAGE_LISTS.iter().chain(&["prompt", "instruction"]);
    let mut null = fields.filter(|key| row.fields.get(**key).is_some_and(Value::is_null));
    if let Some(key) = null.next() {
        return row.error(format!("no prompt: `{key}` is null"));
    }
    let keys: Vec<&str> = row.fields.keys().map(String::as_str).collect();
    row.error(format!("no prompt: expected `instruction`, `prompt` or `messages`, found {}", listing(&keys)))
}

fn listing(keys: &[&str]) -> String {
    if keys.is_empty() { "no field".into() } else { keys.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::parse_rows;

    fn row(value: Value) -> Row {
        parse_rows(&value.to_string(), "d.json").expect("valid").remove(0)
    }

    fn roles_and_texts(value: Value) -> Vec<(String, String)> {
        let chat = conversation(&row(value)).expect("a conversation");
        chat.messages.iter().map(|m| (role(m).to_string(), text_of(m))).collect()
    }

    fn error(value: Value) -> String {
        conversation(&row(value)).expect_err("refused").to_string()
    }

    #[test]
    fn every_layout_gives_the_same_conversation() {
        let expected = [("system", "S"), ("user", "hi"), ("assistant", "yo")]
            .map(|(r, t)| (r.to_string(), t.to_string()));
        let user = json!({"role": "user", "content": "hi"});
        let answer = json!({"role": "assistant", "content": "yo"});
        let shared = json!([{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yo"}]);
        for value in [
            json!({"messages": [{"role": "system", "content": "S"}, user, answer]}),
            json!({"messages": json!([{"role": "system", "content": "S"}, user, answer]).to_string()}),
            json!({"conversations": shared, "system": "S"}),
            json!({"conversation": [user, answer], "system": "S"}),
            json!({"prompt": [{"role": "system", "content": "S"}, user], "completion": [answer]}),
            json!({"prompt": [user], "completion": answer, "system": "S"}),
            json!({"prompt": [user], "completion": "yo", "system": "S"}),
            json!({"messages": [{"role": "user", "value": "hi"}, {"role": "assistant", "value": "yo"}], "system": "S"}),
            json!({"messages": [{"from": "human", "content": "hi"}, {"from": "gpt", "content": "yo"}], "system": "S"}),
        ] {
            assert_eq!(roles_and_texts(value.clone()), expected, "{value}");
        }
        for history in [json!([["a", "b"]]), json!("[[\"a\", \"b\"]]")] {
            let with_history = json!({"instruction": "hi", "history": history, "system": "S", "input": ""});
            let texts: Vec<String> =
                roles_and_texts(with_history).into_iter().map(|(_, text)| text).collect();
            assert_eq!(texts, ["S", "a", "b", "hi"]);
        }
    }

    #[test]
    fn every_field_of_a_message_is_kept() {
        let call = json!({"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f"}}]});
        let chat = conversation(&row(
            json!({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]},
            call], "tools": "[{\"name\": \"f\"}]", "chat_template_kwargs": {"enable_thinking": false}}),
        ))
        .expect("a conversation");
        assert_eq!(Value::Object(chat.messages[1].clone()), call);
        assert_eq!((text_of(&chat.messages[0]), is_empty(&chat.messages[1])), ("a".into(), false));
        assert_eq!(chat.tools, Some(json!([{"name": "f"}])));
        assert_eq!(chat.variables["enable_thinking"], false);
        let shared = json!({"conversations": [{"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"},
            {"from": "observation", "value": "3"}]});
        let chat = conversation(&row(shared)).expect("a conversation");
        assert_eq!(chat.messages[0]["tool_calls"][0]["function"]["name"], "f");
        assert_eq!(role(&chat.messages[1]), "tool");
    }

    /// What pandas writes into CSV.
    #[test]
    fn the_notation_of_python_is_named() {
        let advice =
            "it is in the notation of Python; write the column with json.dumps, or the rows as JSON Lines";
        for text in ["[{'role': 'user', 'content': 'hi'}]", " [{'role'", "[array(['a'])]", "[None]"] {
            assert_eq!(
                error(json!({"messages": text})),
                format!("d.json, line 1: `messages` is text, expected a list of messages: {advice}")
            );
        }
        for (key, expected) in
            [("history", "a list"), ("tools", "a list"), ("chat_template_kwargs", "an object")]
        {
            assert_eq!(
                error(json!({"instruction": "x", key: "[['a', 'b']]"})),
                format!("d.json, line 1: `{key}` is text, expected {expected}: {advice}")
            );
        }
        assert!(!error(json!({"messages": "'quoted'"})).contains("Python"));
    }

    #[test]
    fn malformed_conversations_are_errors_that_say_where() {
        assert_eq!(
            error(json!({"conversations": [{"from": "alien", "value": "x"}]})),
            "d.json, line 1: `conversations`, message 1: `from` is \"alien\", expected human, gpt, system, \
             function_call, observation, or the role itself"
        );
        assert_eq!(
            error(json!({"messages": [{"role": "user", "content": "x"}, {"text": "y"}]})),
            "d.json, line 1: `messages`, message 2: no `role`, found text"
        );
        assert_eq!(
            error(json!({"messages": [{"role": "user", "content": 5}]})),
            "d.json, line 1: `messages`, message 1: `content` is a number, expected text or a list of parts"
        );
        for (message, found) in [
            (json!({"role": "user"}), "role"),
            (json!({"role": "user", "text": "x"}), "role, text"),
            (json!({"role": "user", "parts": [{"text": "x"}]}), "role, parts"),
        ] {
            assert_eq!(
                error(json!({"messages": [message]})),
                format!("d.json, line 1: `messages`, message 1: no `content`, found {found}")
            );
        }
        assert_eq!(
            error(json!({"prompt": null, "completion": "x"})),
            "d.json, line 1: no prompt: `prompt` is null"
        );
        assert_eq!(error(json!({"messages": null})), "d.json, line 1: no prompt: `messages` is null");
        assert_eq!(error(json!({"messages": []})), "d.json, line 1: `messages` is empty");
        assert_eq!(
            error(json!({"messages": "x"})),
            "d.json, line 1: `messages` is text, expected a list of messages: expected value at line 1 column 1"
        );
        assert_eq!(
            error(json!({"system": "S", "messages": [{"role": "system", "content": "T"}]})),
            "d.json, line 1: has both `system` and a message of the system; remove one"
        );
        assert_eq!(
            error(json!({"instruction": "x", "history": ["y"]})),
            "d.json, line 1: `history`: expected pairs of question and answer, such as [[\"Hi\", \"Hello\"]]"
        );
    }

    #[test]
    fn all_messages_of_the_assistant_can_be_trained() {
        let value = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}, {"role": "assistant", "content": "d", "weight": 0},
            {"role": "assistant", "content": "e"}, {"role": "user", "content": "f"}]});
        let row = row(value);
        let chat = conversation(&row).expect("a conversation");
        assert_eq!(trained_turns(&row, &chat, TrainOn::All).expect("some"), [1, 4]);
        let error = trained_turns(&row, &chat, TrainOn::Last).expect_err("ends with the user").to_string();
        assert!(error.contains("the last message must be the assistant's, found \"user\""), "{error}");
    }

    #[test]
    fn messages_that_are_left_out_are_not_trained() {
        let turns = |left_out: Value, train_on| {
            let mut last = json!({"role": "assistant", "content": "d"});
            last.as_object_mut().expect("an object").extend(left_out.as_object().expect("an object").clone());
            let messages =
                json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, last]);
            let row = row(json!({"messages": messages}));
            let chat = conversation(&row).expect("a conversation");
            trained_turns(&row, &chat, train_on).map_err(|error| error.to_string())
        };
        for left_out in
            [json!({"weight": 0}), json!({"weight": false}), json!({"train": 0}), json!({"loss": false})]
        {
            assert_eq!(turns(left_out.clone(), TrainOn::All), Ok(vec![1]), "{left_out}");
            let error = turns(left_out.clone(), TrainOn::Last).expect_err("left out");
            assert!(error.contains("every message to train is left out"), "{error}");
        }
        for kept in [json!({"weight": 1}), json!({"weight": null}), json!({"loss": true})] {
            assert_eq!(turns(kept.clone(), TrainOn::All), Ok(vec![1, 2]), "{kept}");
        }
        let error = turns(json!({"weight": 0.5}), TrainOn::All).expect_err("no weights");
        assert!(error.contains("`weight` of a message of the assistant is 0.5, expected 0, 1"), "{error}");
    }

    /// What a table of rows with several layouts has.
    #[test]
    fn keys_that_are_null_are_absent() {
        for message in [
            json!({"role": "user", "value": "hi", "content": null, "from": null}),
            json!({"from": "human", "value": "hi", "role": null, "content": null}),
            json!({"role": "user", "content": "hi", "value": null, "from": null}),
        ] {
            let found = roles_and_texts(json!({"messages": [message]}));
            assert_eq!(found, [("user".to_string(), "hi".to_string())], "{message}");
        }
    }

    #[test]
    fn an_empty_list_of_tools_is_a_list() {
        let tools = |value: Value| {
            conversation(&row(json!({"messages": [{"role": "user", "content": "a"}], "tools": value})))
                .expect("a conversation")
                .tools
        };
        assert_eq!((tools(json!([])), tools(json!("[]"))), (Some(json!([])), Some(json!([]))));
        assert_eq!((tools(Value::Null), tools(json!(""))), (None, None));
    }
}
