//! Generated text, token by token.

use reft_models::{Tokenizer, TokenizerError};

/// Turns tokens into whole characters, with the spaces of the whole text.
#[derive(Debug, Default)]
pub struct TextStream {
    tokens: Vec<u32>,
    text: String,
}

impl TextStream {
    /// Adds a token. Returns the text that it completes; empty in the middle of a character.
    ///
    /// # Errors
    /// If the tokenizer does not have the token.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<&str, TokenizerError> {
        self.tokens.push(token);
        let text = tokenizer.decode(&self.tokens)?;
        // An incomplete character decodes to the replacement character.
        let complete = text.trim_end_matches('\u{fffd}');
        let known = self.text.len();
        if let Some(new) = complete.get(known..) {
            self.text.push_str(new);
        }
        Ok(&self.text[known..])
    }

    /// The text so far, up to its last whole character.
    pub fn into_text(self) -> String {
        self.text
    }
}
