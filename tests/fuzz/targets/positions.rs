//! A text as positions: `f7+l7`, `l1`, `all`.
//!
//! What parses prints as a text that parses to the same positions, and prefix and suffix of a prompt never overlap.

use reft_core::{Positions, PromptSpan};

pub fn target(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let positions = match text.parse::<Positions>() {
        Ok(positions) => positions,
        Err(error) => return assert!(error.to_string().contains("expected")),
    };
    assert_eq!(positions.to_string().parse(), Ok(positions));
    let json = serde_json::to_string(&positions).expect("positions serialize");
    assert_eq!(serde_json::from_str::<Positions>(&json).ok(), Some(positions));
    for len in [0, 1, 2, 3, 8, 9] {
        let (prefix, suffix) = positions.of_prompt(len);
        assert!(prefix.start <= prefix.end && prefix.end <= suffix.start && suffix.end <= len);
        let rows = positions.rows(&[PromptSpan { start: 1, len }, PromptSpan { start: 0, len }], len + 1);
        assert!(rows.all().iter().all(|row| *row < 2 * (len + 1)));
    }
}
