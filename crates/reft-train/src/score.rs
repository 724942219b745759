//! Metrics by name, and which of two adapters is better.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Metrics by name, in display order. Serialized as an object.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Score(pub Vec<(String, f64)>);

impl Score {
    /// The value of a metric.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }
}

impl Serialize for Score {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

impl<'de> Deserialize<'de> for Score {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let map = serde_json::Map::deserialize(deserializer)?;
        Ok(Self(map.into_iter().map(|(name, value)| (name, value.as_f64().unwrap_or(f64::NAN))).collect()))
    }
}

/// How an adapter does on held-out rows.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// All metrics.
    pub score: Score,
    /// The metric that decides.
    pub key: &'static str,
    /// Whether a higher value of it is better.
    pub higher_is_better: bool,
}

impl Evaluation {
    /// The value of the deciding metric.
    pub fn value(&self) -> f64 {
        self.score.get(self.key).unwrap_or(f64::NAN)
    }

    /// Whether this evaluation is better than another. A value that is not finite is worse than any that is.
    pub fn beats(&self, other: &Evaluation) -> bool {
        match (self.value(), other.value()) {
            (value, _) if !value.is_finite() => false,
            (_, other) if !other.is_finite() => true,
            (value, other) if self.higher_is_better => value > other,
            (value, other) => value < other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_that_is_not_finite_is_the_worst() {
        let nll = |value| Evaluation {
            score: Score(vec![("nll".into(), value)]),
            key: "nll",
            higher_is_better: false,
        };
        assert!(nll(1.0).beats(&nll(2.0)) && !nll(2.0).beats(&nll(1.0)));
        assert!(nll(1.0).beats(&nll(f64::NAN)) && nll(1.0).beats(&nll(f64::NEG_INFINITY)));
        assert!(!nll(f64::NAN).beats(&nll(1.0)) && !nll(f64::NEG_INFINITY).beats(&nll(1.0)));
    }
}
