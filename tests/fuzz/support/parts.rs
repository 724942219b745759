//! Several files in one input.
//!
//! ```text
//! === config.json
//! {"model_type": "llama"}
//! === tokenizer_config.json
//! {}
//! ```

use std::{fs, path::Path};
use tempfile::TempDir;

/// The named parts of an input.
pub struct Parts<'a>(Vec<(&'a str, &'a [u8])>);

impl<'a> Parts<'a> {
    /// Splits an input at the lines that begin with `=== `. What precedes the first is ignored.
    pub fn of(input: &'a [u8]) -> Self {
        const MARK: &[u8] = b"=== ";
        let is_start = |at: usize| input[at..].starts_with(MARK) && (at == 0 || input[at - 1] == b'\n');
        let starts: Vec<usize> = (0..input.len()).filter(|at| is_start(*at)).collect();
        let ends = starts.iter().skip(1).copied().chain([input.len()]);
        let part = |(start, end): (&usize, usize)| {
            let part = &input[start + MARK.len()..end];
            let line_end = part.iter().position(|byte| *byte == b'\n').unwrap_or(part.len());
            let name = std::str::from_utf8(&part[..line_end]).ok()?;
            // The last line feed belongs to the next mark.
            let content = part.get(line_end + 1..).unwrap_or_default();
            let content =
                if end < input.len() { content.strip_suffix(b"\n").unwrap_or(content) } else { content };
            Some((name.trim(), content))
        };
        Self(starts.iter().zip(ends).filter_map(part).collect())
    }

    /// The content of a part.
    pub fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.0.iter().find(|(part, _)| *part == name).map(|(_, content)| *content)
    }

    /// The content of a part that is UTF-8.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        std::str::from_utf8(self.get(name)?).ok()
    }

    /// All parts with their names.
    pub fn iter(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> {
        self.0.iter().copied()
    }

    /// Writes the parts with these names to a new folder.
    pub fn folder(&self, names: &[&str]) -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for name in names {
            if let Some(content) = self.get(name) {
                write(folder.path(), name, content);
            }
        }
        folder
    }
}

/// Writes a file of a target's folder.
pub fn write(folder: &Path, name: &str, content: &[u8]) {
    fs::write(folder.join(name), content).expect("written");
}
