//! Generated text, token by token.

use reft_models::{Tokenizer, TokenizerError};

/// An incomplete character decodes to this one.
const INCOMPLETE: char = '\u{fffd}';

/// Turns tokens into whole characters, with the spaces of the whole text.
///
/// Only the last tokens are decoded for a new one: those that are not whole characters yet, and some before them, on which
/// the spaces depend.
#[derive(Debug, Default)]
pub struct TextStream {
    /// The tokens that give the context, then those that are pending.
    tokens: Vec<u32>,
    n_context: usize,
    /// Number of bytes of the pending tokens that are in the text.
    n_known: usize,
    text: String,
}

impl TextStream {
    /// Adds a token. Returns the text that it completes; empty in the middle of a character.
    ///
    /// # Errors
    /// If the tokenizer does not have the token.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<&str, TokenizerError> {
        self.tokens.push(token);
        let (start, context) = (self.text.len(), tokenizer.decode(&self.tokens[..self.n_context])?.len());
        let text = tokenizer.decode(&self.tokens)?;
        let complete = text.trim_end_matches(INCOMPLETE);
        if let Some(new) = complete.get(context + self.n_known..) {
            self.text.push_str(new);
            self.n_known += new.len();
        }
        if self.n_known > 0 && complete.len() == text.len() {
            let pending = self.tokens.split_off(self.n_context);
            // Tokens without a text of their own, such as a space at the start, need those before them.
            if !tokenizer.decode(&pending)?.is_empty() {
                self.tokens.clear();
            }
            self.tokens.extend(pending);
            (self.n_context, self.n_known) = (self.tokens.len(), 0);
        }
        Ok(&self.text[start..])
    }

    /// The text so far, up to its last whole character.
    pub fn into_text(self) -> String {
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tiny;

    #[test]
    fn a_stream_is_the_whole_text_and_decodes_few_tokens_at_a_time() {
        let t = Tokenizer::load(&tiny::model()).expect("embedded");
        for text in ["the old queen sings on the hill!", "  a  b\n\nc ", "naïve 東京 🙂👩‍💻 x", "é"]
        {
            let ids = t.encode(&text.repeat(20)).expect("encoded");
            let (mut stream, mut most) = (TextStream::default(), 0);
            for id in &ids {
                stream.push(&t, *id).expect("known");
                most = most.max(stream.tokens.len());
            }
            assert!(most < 24, "{most}");
            let whole = t.decode(&ids).expect("decoded");
            assert_eq!(stream.into_text(), whole.trim_end_matches(INCOMPLETE));
        }
    }
}
