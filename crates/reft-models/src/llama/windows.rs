//! The sliding windows of a decoder's blocks.

use crate::keys::{Keys, shown};

const SLIDING_WINDOW: usize = 4096;
const MAX_WINDOW_LAYERS: usize = 28;

/// The sliding windows of the blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Number of tokens that a query of a windowed block attends to, itself included.
    pub sliding_window: Option<usize>,
    /// Which blocks are windowed.
    pub blocks: WindowedBlocks,
}

/// The blocks whose attention is limited to a sliding window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WindowedBlocks {
    /// All blocks from this one on (`max_window_layers`).
    From(usize),
    /// Whether each block is windowed (`layer_types`).
    Listed(Vec<bool>),
}

impl Windows {
    /// The window of a block.
    pub fn of(&self, layer: usize) -> Option<usize> {
        let windowed = match &self.blocks {
            WindowedBlocks::From(first) => layer >= *first,
            WindowedBlocks::Listed(blocks) => blocks.get(layer).copied().unwrap_or(false),
        };
        self.sliding_window.filter(|_| windowed)
    }

    /// Reads the sliding window, and the blocks that have it.
    ///
    /// Mistral has it in all blocks, Qwen in those that `layer_types` names or from `max_window_layers` on, and only if
    /// `use_sliding_window` is true; Llama has none.
    pub(super) fn read(model_type: &str, layers: usize, context: usize, keys: &mut Keys<'_>) -> Self {
        let null_window = keys.names("sliding_window") && keys.get("sliding_window").is_none();
        let has_window = match model_type {
            "mistral" => true,
            "llama" => false,
            _ => keys.flag("use_sliding_window"),
        };
        // A null window is no window; an absent one is the default of the class.
        let window = if !has_window || null_window {
            None
        } else {
            Some(keys.size("sliding_window").unwrap_or(SLIDING_WINDOW))
        };
        let listed = layer_types(layers, keys);
        let is_qwen = model_type.starts_with("qwen");
        if let Some(blocks) = &listed {
            // Transformers computes such a model differently from what the list says, or not at all.
            let expected = match window {
                None => "\"full_attention\" in every place, as the model has no sliding window",
                Some(_) => {
                    "\"sliding_attention\" in every place, as all blocks of a mistral model have the window"
                }
            };
            let contradicts = match window {
                None => blocks.contains(&true),
                Some(window) => !is_qwen && window < context && blocks.contains(&false),
            };
            if contradicts {
                let found = if window.is_none() { "sliding_attention" } else { "full_attention" };
                keys.problems.push(format!("layer_types names {found:?}, expected {expected}"));
            }
        }
        let blocks = match listed {
            Some(blocks) if is_qwen => WindowedBlocks::Listed(blocks),
            _ if is_qwen => {
                WindowedBlocks::From(keys.count("max_window_layers").unwrap_or(MAX_WINDOW_LAYERS))
            }
            _ => WindowedBlocks::From(0),
        };
        Self { sliding_window: window, blocks }
    }
}

/// Whether each block is windowed, from `layer_types`.
fn layer_types(layers: usize, keys: &mut Keys<'_>) -> Option<Vec<bool>> {
    let list = keys.list("layer_types")?;
    if list.len() != layers {
        let expected = format!("one of each of the {layers} blocks (num_hidden_layers)");
        keys.refuse("layer_types", format!("a list of {} entries", list.len()), &expected);
        return None;
    }
    let mut windowed = Vec::with_capacity(list.len());
    for kind in list {
        match kind.as_str() {
            Some("full_attention" | "attention") => windowed.push(false),
            Some("sliding_attention") => windowed.push(true),
            _ => {
                let supported = "supported are \"full_attention\" and \"sliding_attention\"";
                keys.problems.push(format!("layer_types has {}; {supported}", shown(kind)));
                return None;
            }
        }
    }
    Some(windowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn parse(json: &str) -> Result<[Option<usize>; 2], String> {
        let values: Value = serde_json::from_str(json).expect("valid JSON");
        let values = values.as_object().expect("an object");
        let mut keys = Keys::new(values, "");
        let model_type = values.get("model_type").and_then(Value::as_str).unwrap_or("llama");
        let windows = Windows::read(model_type, 2, 64, &mut keys);
        if keys.problems.is_empty() {
            Ok([windows.of(0), windows.of(1)])
        } else {
            Err(keys.problems.join("; "))
        }
    }

    #[test]
    fn windows_are_those_of_the_blocks() {
        let windows = |change: &str| parse(change).expect(change);
        const NONE: [Option<usize>; 2] = [None, None];
        for (change, expected) in [
            (r#"{"sliding_window": 8}"#, NONE),
            (r#"{"model_type": "mistral"}"#, [Some(4096), Some(4096)]),
            (r#"{"model_type": "mistral", "sliding_window": 8}"#, [Some(8), Some(8)]),
            (r#"{"model_type": "mistral", "sliding_window": null}"#, NONE),
            (r#"{"model_type": "qwen2", "sliding_window": 8}"#, NONE),
            (r#"{"model_type": "qwen2", "sliding_window": 0}"#, NONE),
            (r#"{"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true}"#, NONE),
            (
                r#"{"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2}"#,
                NONE,
            ),
            (
                r#"{"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 1}"#,
                [None, Some(8)],
            ),
            (
                r#"{"model_type": "qwen3", "sliding_window": 64, "use_sliding_window": true, "max_window_layers": 0}"#,
                [Some(64), Some(64)],
            ),
            (
                r#"{"model_type": "qwen3", "sliding_window": 8, "use_sliding_window": true, "max_window_layers": 2,
                    "layer_types": ["sliding_attention", "full_attention"]}"#,
                [Some(8), None],
            ),
        ] {
            assert_eq!(windows(change), expected, "{change}");
        }
    }

    #[test]
    fn windows_without_meaning_are_refused() {
        for (change, message) in [
            (
                r#"{"model_type": "mistral", "sliding_window": 0}"#,
                "sliding_window is 0, expected a whole number from 1 to 2147483647",
            ),
            (
                r#"{"model_type": "qwen2", "layer_types": ["full_attention"]}"#,
                "layer_types is a list of 1 entries, expected one of each of the 2 blocks (num_hidden_layers)",
            ),
            (
                r#"{"model_type": "qwen3", "layer_types": ["linear_attention", "full_attention"]}"#,
                "layer_types has \"linear_attention\"; supported are \"full_attention\" and \"sliding_attention\"",
            ),
            (
                r#"{"model_type": "qwen3", "layer_types": ["sliding_attention", "full_attention"]}"#,
                "layer_types names \"sliding_attention\", expected \"full_attention\" in every place, as the model has \
                 no sliding window",
            ),
            (
                r#"{"model_type": "mistral", "sliding_window": 8,
                    "layer_types": ["sliding_attention", "full_attention"]}"#,
                "layer_types names \"full_attention\", expected \"sliding_attention\" in every place, as all blocks of \
                 a mistral model have the window",
            ),
        ] {
            assert_eq!(parse(change).expect_err(change), message);
        }
    }
}
