//! The sites at which a model can be edited, and selections of layers.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A location within a transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// The input of the block.
    BlockInput,
    /// The output of attention (after its output projection), before it is added to the residual stream.
    AttentionOutput,
    /// The output of the MLP, before it is added to the residual stream.
    MlpOutput,
    /// The output of the block, as in the paper.
    #[default]
    BlockOutput,
}

impl Component {
    /// The name used in files.
    pub fn name(self) -> &'static str {
        match self {
            Component::BlockInput => "block_input",
            Component::AttentionOutput => "attention_output",
            Component::MlpOutput => "mlp_output",
            Component::BlockOutput => "block_output",
        }
    }
}

/// An intervention point of a model: a component of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Site {
    /// Index of the layer, counted from the bottom.
    pub layer: usize,
    /// The location within the layer.
    pub component: Component,
}

impl Site {
    /// The output of a block.
    pub fn block_output(layer: usize) -> Self {
        Site { layer, component: Component::BlockOutput }
    }
}

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "layers.{}.{}", self.layer, self.component.name())
    }
}

/// A selection of layers: `all`, or a list of indices and ranges such as `0,3,8-11` or `-1`.
///
/// Negative indices count from the top. Ranges `a-b` and `a..=b` include `b`, `a..b` does not. The separator is `,`
/// or `;`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layers(String);

/// A selection of layers that cannot be parsed or does not fit the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayersError {
    /// The text is not a selection of layers.
    #[error(
        "layers {text:?}: cannot parse {part:?}; expected `all`, or indices and ranges such as `0,3,8-11` or `-1`"
    )]
    Unreadable {
        /// The whole text.
        text: String,
        /// The part that cannot be parsed.
        part: String,
    },
    /// A layer that the model does not have.
    #[error("layer {index} does not exist: the model has {n_layers} layers{}", existing(*n_layers))]
    Missing {
        /// The index in the text.
        index: i64,
        /// Number of layers of the model.
        n_layers: usize,
    },
}

/// The layers of a model, for messages.
fn existing(n_layers: usize) -> String {
    match n_layers {
        0 => String::new(),
        n => format!(", 0 to {} (or -{n} to -1)", n - 1),
    }
}

impl Layers {
    /// Every layer.
    pub fn all() -> Self {
        Layers("all".into())
    }

    /// These layers.
    pub fn list(layers: &[i64]) -> Self {
        Layers(layers.iter().map(i64::to_string).collect::<Vec<_>>().join(","))
    }

    /// The selected layers of a model with `n_layers` layers, sorted and without duplicates.
    ///
    /// # Errors
    /// If the text cannot be parsed or a layer does not exist.
    pub fn resolve(&self, n_layers: usize) -> Result<Vec<usize>, LayersError> {
        if self.0.trim() == "all" {
            return Ok((0..n_layers).collect());
        }
        // One entry per layer, however often a text selects it.
        let mut is_selected = vec![false; n_layers];
        for part in self.0.split([',', ';']).map(str::trim) {
            let unreadable = || LayersError::Unreadable { text: self.0.clone(), part: part.into() };
            let index = |text: &str| -> Result<usize, LayersError> {
                let index: i64 = text.trim().parse().map_err(|_| unreadable())?;
                let absolute = if index < 0 { index + n_layers as i64 } else { index };
                usize::try_from(absolute)
                    .ok()
                    .filter(|layer| *layer < n_layers)
                    .ok_or(LayersError::Missing { index, n_layers })
            };
            // A dash after the first character separates the ends of a range; at the start it is a sign.
            let dash = part.char_indices().skip(1).find(|(_, c)| *c == '-').map(|(at, _)| at);
            let range = if let Some((a, b)) = part.split_once("..=") {
                index(a)?..index(b)? + 1
            } else if let Some((a, b)) = part.split_once("..") {
                index(a)?..index(b)?
            } else if let Some(at) = dash {
                index(&part[..at])?..index(&part[at + 1..])? + 1
            } else {
                let layer = index(part)?;
                layer..layer + 1
            };
            if range.is_empty() {
                return Err(unreadable());
            }
            is_selected[range].fill(true);
        }
        Ok((0..n_layers).filter(|layer| is_selected[*layer]).collect())
    }
}

impl FromStr for Layers {
    type Err = LayersError;
    /// Checks the syntax by resolving the text for a very deep model.
    fn from_str(text: &str) -> Result<Self, LayersError> {
        let layers = Layers(text.into());
        match layers.resolve(1 << 16) {
            Err(error @ LayersError::Unreadable { .. }) => Err(error),
            _ => Ok(layers),
        }
    }
}

impl fmt::Display for Layers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_parsed_and_resolved() {
        let resolve = |text: &str| text.parse::<Layers>().and_then(|l| l.resolve(12));
        assert_eq!(resolve("all").expect("all").len(), 12);
        assert_eq!(resolve("3;9;1"), Ok(vec![1, 3, 9]));
        assert_eq!(resolve("0, 4-6"), Ok(vec![0, 4, 5, 6]));
        assert_eq!(resolve("4..6"), Ok(vec![4, 5]));
        assert_eq!(resolve("9..=11,-1"), Ok(vec![9, 10, 11]));
        assert_eq!(resolve("-3--1"), Ok(vec![9, 10, 11]));
        assert_eq!(resolve("12"), Err(LayersError::Missing { index: 12, n_layers: 12 }));
        assert_eq!(resolve("-13"), Err(LayersError::Missing { index: -13, n_layers: 12 }));
        let error = "0".parse::<Layers>().and_then(|layers| layers.resolve(0)).expect_err("no layer");
        assert_eq!(error.to_string(), "layer 0 does not exist: the model has 0 layers");
        for text in ["", "x", "1,", "5-3", "3..3", "1-x", "1.5"] {
            assert!(matches!(resolve(text), Err(LayersError::Unreadable { .. })), "{text}");
        }
    }
}
