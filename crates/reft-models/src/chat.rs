//! Chats and chat templates.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::ops::Range;

/// One message of a conversation with text alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text of the message.
    pub content: String,
}

/// A conversation, as a chat template sees it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// The messages.
    pub messages: Vec<Map<String, Value>>,
    /// The tools.
    pub tools: Option<Value>,
    /// The documents.
    pub documents: Option<Value>,
    /// Further variables of the template.
    pub variables: Map<String, Value>,
}

impl Chat {
    /// A chat of text messages.
    pub fn new(messages: impl IntoIterator<Item = ChatMessage>) -> Self {
        let object = |m: ChatMessage| {
            let fields = [("role", m.role), ("content", m.content)];
            fields.into_iter().map(|(key, text)| (key.into(), text.into())).collect()
        };
        Self { messages: messages.into_iter().map(object).collect(), ..Self::default() }
    }
}

/// A rendered chat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RenderedChat {
    /// The text.
    pub text: String,
    /// The byte ranges of its `{% generation %}` blocks.
    pub generated: Vec<Range<usize>>,
}
