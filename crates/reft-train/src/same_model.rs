//! Whether an adapter belongs to a model: the sizes must fit, and the model should compute what the adapter was trained on.

use crate::error::RunError;
use reft_core::{BaseModel, FileError, ReftConfig};
use reft_kernels::Kernels;
use reft_models::{LoadedModel, ModelConfig};
use std::path::Path;

/// What is done with an adapter of a model with other weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OtherWeights {
    /// It is refused.
    #[default]
    Refuse,
    /// It is used with a warning, if the sizes fit.
    Warn,
}

/// How a model relates to the one that an adapter was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Relation {
    /// It computes the same.
    Same,
    /// It has the same weights in another precision.
    Rounded,
    Other,
}

/// Checks that interventions have the sizes of a model.
pub(crate) fn check_sizes(
    folder: &Path,
    reft: &ReftConfig,
    base: &BaseModel,
    model: &impl ModelConfig,
) -> Result<(), RunError> {
    let (hidden_size, n_layers) = (model.hidden_size(), model.n_layers());
    let reason = if reft.hidden_size != hidden_size {
        format!(
            "edits hidden states of size {}, but those of {} have size {hidden_size}",
            reft.hidden_size, base.name
        )
    } else if let Some(site) = reft.sites.iter().find(|site| site.layer >= n_layers) {
        format!("edits layer {}, but {} has {n_layers} layers", site.layer, base.name)
    } else {
        return Ok(());
    };
    Err(RunError::WrongModel { adapter: folder.display().to_string(), reason })
}

/// Checks that an adapter was trained on a model; returns warnings about smaller differences.
///
/// The chat template matters only if the adapter was trained with it.
pub(crate) fn check_model<B: Kernels, M>(
    folder: &Path,
    trained_on: &BaseModel,
    loaded: &LoadedModel<B, M>,
    uses_chat_template: bool,
    other_weights: OtherWeights,
) -> Result<Vec<String>, RunError> {
    let used = &loaded.base;
    let mut warnings = Vec::new();
    match (relation(trained_on, used, || loaded.earlier_fingerprint())?, other_weights) {
        (Relation::Same, _) => {}
        (Relation::Rounded, _) => warnings.push(format!(
            "{} has the weights of {} in another precision, so results differ slightly",
            used.name,
            described(trained_on)
        )),
        (Relation::Other, OtherWeights::Refuse) => {
            return Err(RunError::OtherWeights {
                adapter: folder.display().to_string(),
                model: used.name.clone(),
                trained_on: described(trained_on),
            });
        }
        (Relation::Other, OtherWeights::Warn) => warnings.push(format!(
            "{} has other weights or settings than {}, on which the adapter was trained; its effect is unknown",
            used.name,
            described(trained_on)
        )),
    }
    let differs = |a: &Option<String>, b: &Option<String>| a.is_some() && a != b;
    if differs(&trained_on.tokenizer, &used.tokenizer) {
        warnings.push(format!(
            "the tokenizer of {} encodes texts in another way than that of {}, with which the adapter was trained",
            used.name,
            described(trained_on)
        ));
    }
    if uses_chat_template && differs(&trained_on.chat_template, &used.chat_template) {
        warnings.push(format!(
            "the chat template of {} is not that of {}, with which the adapter was trained",
            used.name,
            described(trained_on)
        ));
    }
    Ok(warnings)
}

fn relation(
    trained_on: &BaseModel,
    used: &BaseModel,
    earlier: impl FnOnce() -> Result<String, FileError>,
) -> Result<Relation, FileError> {
    if trained_on.fingerprint == used.fingerprint {
        return Ok(Relation::Same);
    }
    Ok(match (&trained_on.rounded, &used.rounded) {
        // An adapter of version 0.1.
        (None, _) if earlier()? == trained_on.fingerprint => Relation::Same,
        (Some(a), Some(b)) if a.bf16 == b.bf16 || a.f16 == b.f16 => Relation::Rounded,
        _ => Relation::Other,
    })
}

/// The name of a model, with its revision.
fn described(model: &BaseModel) -> String {
    match &model.revision {
        Some(revision) => format!("{} (revision {revision})", model.name),
        None => model.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reft_core::adapter::RoundedFingerprints;

    fn model(exact: &str, bf16: &str, f16: &str) -> BaseModel {
        let rounded = RoundedFingerprints { bf16: bf16.into(), f16: f16.into() };
        BaseModel { rounded: Some(rounded), ..BaseModel::new("m", exact) }
    }

    #[test]
    fn copies_in_half_precision_are_recognized() {
        let relation = |a: &BaseModel, b: &BaseModel| relation(a, b, || unreachable!("not of version 0.1"));
        let (original, bf16, f16) = (model("e", "b", "h"), model("b", "b", "bh"), model("h", "hb", "h"));
        for (trained_on, used, expected) in [
            (&original, &original, Relation::Same),
            (&original, &bf16, Relation::Rounded),
            (&bf16, &original, Relation::Rounded),
            (&original, &f16, Relation::Rounded),
            (&bf16, &f16, Relation::Other),
            (&original, &model("x", "y", "z"), Relation::Other),
        ] {
            assert_eq!(relation(trained_on, used).expect("known"), expected);
        }
        let old = BaseModel::new("m", "old");
        let earlier = |text: &str| super::relation(&old, &original, || Ok(text.into())).expect("known");
        assert_eq!((earlier("old"), earlier("other")), (Relation::Same, Relation::Other));
    }
}
