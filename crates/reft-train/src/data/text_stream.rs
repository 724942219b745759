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
    /// Adds a token. Returns the text that it completes; empty in the middle of a character, and as long as tokens of single
    /// bytes follow each other.
    ///
    /// # Errors
    /// If the tokenizer does not have the token.
    pub fn push(&mut self, tokenizer: &Tokenizer, token: u32) -> Result<&str, TokenizerError> {
        self.tokens.push(token);
        if tokenizer.is_byte(token) {
            return Ok("");
        }
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

    /// Ends the text. Returns what has not been returned yet: bytes, whether or not they are whole characters.
    ///
    /// # Errors
    /// If the tokenizer does not have a token.
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<&str, TokenizerError> {
        let (start, context) = (self.text.len(), tokenizer.decode(&self.tokens[..self.n_context])?.len());
        let text = tokenizer.decode(&self.tokens)?;
        self.text.push_str(text.get(context + self.n_known..).unwrap_or_default());
        (self.n_context, self.n_known) = (self.tokens.len(), 0);
        Ok(&self.text[start..])
    }

    /// The text that has been returned so far.
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
            stream.finish(&t).expect("known");
            assert_eq!(stream.into_text(), t.decode(&ids).expect("decoded"));
        }
    }

    /// A tokenizer with tokens of single bytes, which are characters only if all of a run are.
    #[test]
    fn bytes_that_are_no_characters_do_not_end_the_text() {
        let json = r#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":null,"post_processor":null,
            "decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"}]},
            "model":{"type":"BPE","vocab":{"a":0,"b":1,"<0x25>":2,"<0xC5>":3,"<0xC3>":4,"<0xA9>":5},"merges":[],"byte_fallback":true}}"#;
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("tokenizer.json"), json).expect("written");
        let t = Tokenizer::load(&reft_models::ModelFiles::Folder(folder.path().into())).expect("loaded");
        for ids in [&[0, 2, 3, 1][..], &[2, 3, 0, 1], &[0, 4, 5, 1], &[0, 4, 5], &[2, 3], &[3, 0, 2]] {
            let (mut stream, mut shown) = (TextStream::default(), String::new());
            for id in ids {
                shown += stream.push(&t, *id).expect("known");
            }
            shown += stream.finish(&t).expect("known");
            assert_eq!(shown, t.decode(ids).expect("decoded"), "{ids:?}");
        }
    }
}
