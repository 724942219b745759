//! What a run trains: interventions, or a baseline to compare them with.

use reft_core::Method;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
use std::fmt;

/// A baseline: something else to train than interventions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Baseline {
    /// The classification head alone.
    HeadOnly,
    /// All biases of the model ([BitFit](https://arxiv.org/abs/2106.10199)).
    Bitfit,
    /// All weights of the model.
    Full,
    /// Low-rank updates of linear layers ([LoRA](https://arxiv.org/abs/2106.09685)).
    Lora,
}

impl Baseline {
    /// Every baseline.
    pub const ALL: [Self; 4] = [Self::HeadOnly, Self::Bitfit, Self::Full, Self::Lora];

    /// The name used in recipes and files.
    pub fn name(self) -> &'static str {
        match self {
            Baseline::HeadOnly => "head-only",
            Baseline::Bitfit => "bitfit",
            Baseline::Full => "full",
            Baseline::Lora => "lora",
        }
    }

    /// Whether weights of the model itself are trained.
    pub fn trains_weights(self) -> bool {
        self != Baseline::HeadOnly
    }
}

/// The value of `reft.method`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrainMethod {
    /// Interventions with this equation.
    Intervention(Method),
    /// A baseline.
    Baseline(Baseline),
}

impl TrainMethod {
    /// The names used in recipes.
    const NAMES: [&'static str; 10] = [
        "loreft",
        "direft",
        "noreft",
        "orthodireft",
        "consreft",
        "lobireft",
        "head-only",
        "bitfit",
        "full",
        "lora",
    ];

    /// Every method.
    fn all() -> impl Iterator<Item = Self> {
        Method::ALL.map(Self::Intervention).into_iter().chain(Baseline::ALL.map(Self::Baseline))
    }

    /// The name used in recipes.
    pub fn name(self) -> &'static str {
        match self {
            TrainMethod::Intervention(method) => method.name(),
            TrainMethod::Baseline(baseline) => baseline.name(),
        }
    }

    /// The equation, if interventions are trained.
    pub fn intervention(self) -> Option<Method> {
        match self {
            TrainMethod::Intervention(method) => Some(method),
            TrainMethod::Baseline(_) => None,
        }
    }

    /// The baseline, if one is trained.
    pub fn baseline(self) -> Option<Baseline> {
        match self {
            TrainMethod::Intervention(_) => None,
            TrainMethod::Baseline(baseline) => Some(baseline),
        }
    }

    /// Whether weights of the model itself are trained.
    pub fn trains_weights(self) -> bool {
        self.baseline().is_some_and(Baseline::trains_weights)
    }
}

impl fmt::Display for TrainMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for TrainMethod {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for TrainMethod {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        // In serde's words, to which recipes add a suggestion.
        Self::all()
            .find(|method| method.name() == name)
            .ok_or_else(|| D::Error::unknown_variant(&name, &Self::NAMES))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_the_methods() {
        assert_eq!(TrainMethod::all().map(TrainMethod::name).collect::<Vec<_>>(), TrainMethod::NAMES);
        for baseline in Baseline::ALL {
            assert_eq!(serde_json::to_value(baseline).expect("JSON"), baseline.name());
        }
        for method in Method::ALL {
            assert_eq!(serde_json::to_value(method).expect("JSON"), method.name());
        }
    }
}
