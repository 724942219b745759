//! The rotary parameters of a `config.json`, merged as transformers 5 merges them.

use crate::{
    keys::Keys,
    rope::{Rope, RopeScaling, Yarn},
};
use serde_json::{Map, Value};

/// Larger heads do not exist; the limit bounds what is computed before the tensors are read.
pub(super) const MAX_HEAD_DIM: usize = 1 << 16;

const THETA: f64 = 10_000.0;
const SUPPORTED: &str = "supported are default, linear, dynamic, yarn, llama3";
/// The parts of a configuration with parameters for each kind of attention.
const LAYER_TYPES: [&str; 2] = ["full_attention", "sliding_attention"];

/// Base and scaling of the rotary frequencies: `rope_theta` with `rope_scaling`, or `rope_parameters`, which newer
/// versions of transformers write instead.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How they are scaled.
    pub scaling: RopeScaling,
}

/// Reads `rope_scaling`, `rope_parameters`, `rope_theta` and what belongs to them. `rope_scaling` replaces
/// `rope_parameters`, unless it is empty; `rope_theta` inside of them replaces that outside.
///
/// Only what transformers 4.45 and 5 compute alike, or what version 5 computes, is read: YaRN's bounds come from
/// `original_max_position_embeddings`, where 4.45 uses `max_position_embeddings`.
pub(super) fn rope_config(
    values: &Map<String, Value>,
    context: usize,
    head_dim: usize,
    problems: &mut Vec<String>,
) -> RopeConfig {
    let mut outer = Keys::new(values, "");
    let theta = outer.positive("rope_theta").unwrap_or(THETA);
    let original_context = outer.size("original_max_position_embeddings");
    check_partial(&mut outer);
    let mut filled = |key: &str| outer.object(key).filter(|parameters| !parameters.is_empty());
    let (scaling, parameters) = (filled("rope_scaling"), filled("rope_parameters"));
    problems.append(&mut outer.problems);
    let head_dim = head_dim.clamp(2, MAX_HEAD_DIM);
    let plain = RopeConfig { theta, scaling: RopeScaling::Default };
    let (key, parameters) = match (scaling, parameters) {
        (Some(scaling), _) => ("rope_scaling", scaling),
        (None, Some(parameters)) => ("rope_parameters", parameters),
        (None, None) => {
            if !is_finite(&Rope { head_dim, theta, scaling: plain.scaling }, context) {
                problems
                    .push(format!("rope_theta is {theta:e}, which gives frequencies that are not finite"));
            }
            return plain;
        }
    };
    let mut keys = Keys::new(parameters, &format!("{key}."));
    if LAYER_TYPES.iter().any(|kind| keys.get(kind).is_some_and(Value::is_object)) {
        problems.push(format!(
            "{key} has parameters for each kind of attention; supported is one set for all blocks"
        ));
        return plain;
    }
    check_partial(&mut keys);
    let theta = keys.positive("rope_theta").unwrap_or(theta);
    let parameters = Parameters { context: context as f64, original_context, theta };
    let scaling = parameters.scaling(key, &mut keys);
    let rope = Rope { head_dim, theta, scaling };
    if keys.problems.is_empty() && !is_finite(&rope, context) {
        keys.problems.push(format!("{key} and rope_theta give frequencies that are not finite"));
    }
    problems.append(&mut keys.problems);
    RopeConfig { theta, scaling }
}

/// Whether all angles up to the context, and the factor of cosines and sines, are numbers.
fn is_finite(rope: &Rope, context: usize) -> bool {
    let angles = rope.frequencies(1).into_iter().map(|freq| freq * context as f64);
    (rope.attention_factor() as f32).is_finite() && angles.into_iter().all(f64::is_finite)
}

fn check_partial(keys: &mut Keys<'_>) {
    const KEY: &str = "partial_rotary_factor";
    keys.number(KEY, "1: all of a head is rotated", |factor| factor == 1.0);
}

struct Parameters {
    context: f64,
    /// `original_max_position_embeddings` outside of the parameters, which replaces that inside.
    original_context: Option<usize>,
    theta: f64,
}

impl Parameters {
    fn scaling(&self, key: &str, keys: &mut Keys<'_>) -> RopeScaling {
        let (new, old) = (keys.text("rope_type"), keys.text("type"));
        if let (Some(new), Some(old)) = (new, old)
            && new != old
        {
            keys.problems.push(format!("{key}.rope_type is {new:?}, but {key}.type is {old:?}"));
        }
        match new.or(old).unwrap_or("default") {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: required(keys, "factor") },
            "dynamic" => RopeScaling::Dynamic { factor: required(keys, "factor"), context: self.context },
            "yarn" => RopeScaling::Yarn(self.yarn(keys)),
            "llama3" => self.llama3(keys),
            other => {
                keys.problems.push(format!("{key}.rope_type is {other:?}, {SUPPORTED}"));
                RopeScaling::Default
            }
        }
    }

    fn original_context(&self, keys: &mut Keys<'_>) -> f64 {
        let inside = keys.size("original_max_position_embeddings");
        self.original_context.or(inside).map_or(self.context, |context| context as f64)
    }

    fn llama3(&self, keys: &mut Keys<'_>) -> RopeScaling {
        let factor = required(keys, "factor");
        let (low, high) = (required(keys, "low_freq_factor"), required(keys, "high_freq_factor"));
        if keys.problems.is_empty() && high <= low {
            keys.refuse("high_freq_factor", high, &format!("a number above low_freq_factor, {low}"));
        }
        let original_context = self.original_context(keys);
        RopeScaling::Llama3 { factor, low_freq_factor: low, high_freq_factor: high, original_context }
    }

    fn yarn(&self, keys: &mut Keys<'_>) -> Yarn {
        let original_context = self.original_context(keys);
        let extends = original_context != self.context;
        let factor = if keys.get("factor").is_none() && extends {
            self.context / original_context
        } else {
            required(keys, "factor")
        };
        // Zero is as good as absent.
        let mut optional = |key: &str| keys.non_negative(key).filter(|x| *x != 0.0);
        let (mscale, mscale_all_dim) = (optional("mscale"), optional("mscale_all_dim"));
        let beta_fast = optional("beta_fast").unwrap_or(32.0);
        let beta_slow = optional("beta_slow").unwrap_or(1.0);
        if beta_fast < beta_slow {
            keys.refuse("beta_fast", beta_fast, &format!("a number from beta_slow, {beta_slow}"));
        }
        let implied = match (mscale, mscale_all_dim) {
            (Some(mscale), Some(all)) => {
                Yarn::attention_factor(factor, mscale) / Yarn::attention_factor(factor, all)
            }
            _ => Yarn::attention_factor(factor, 1.0),
        };
        if self.theta == 1.0 {
            keys.problems.push("rope_theta is 1, expected another number for yarn".into());
        }
        let attention_factor = keys.positive("attention_factor").unwrap_or(implied);
        let truncate = keys.get("truncate").is_none() || keys.flag("truncate");
        Yarn { factor, attention_factor, beta_fast, beta_slow, truncate, original_context }
    }
}

/// A number above 0 that must be there; 1 if it is not.
fn required(keys: &mut Keys<'_>, key: &str) -> f64 {
    if keys.get(key).is_none() {
        keys.lacks(key);
    }
    keys.positive(key).unwrap_or(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<RopeConfig, String> {
        let values: Value = serde_json::from_str(json).expect("valid JSON");
        let mut problems = Vec::new();
        let config = rope_config(values.as_object().expect("an object"), 64, 4, &mut problems);
        if problems.is_empty() { Ok(config) } else { Err(problems.join("; ")) }
    }

    fn rope(json: &str) -> (f64, RopeScaling) {
        let RopeConfig { theta, scaling } = parse(json).expect(json);
        (theta, scaling)
    }

    #[test]
    fn both_spellings_of_rope_are_read() {
        assert_eq!(rope("{}"), (10_000.0, RopeScaling::Default));
        assert_eq!(rope(r#"{"rope_theta": 100, "rope_scaling": null}"#), (100.0, RopeScaling::Default));
        let linear = RopeScaling::Linear { factor: 2.0 };
        for change in [
            r#"{"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}}"#,
            r#"{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2}}"#,
        ] {
            assert_eq!(rope(change), (5e5, linear), "{change}");
        }
        let llama3 = r#"{"rope_theta": 500000.0, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
            "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"}}"#;
        let scaling = RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        assert_eq!(rope(llama3), (5e5, scaling));
    }

    /// `rope_parameters = rope_scaling or rope_parameters`, then `rope_parameters.setdefault("rope_theta", …)`.
    #[test]
    fn rope_scaling_replaces_rope_parameters() {
        let linear = RopeScaling::Linear { factor: 2.0 };
        for (change, expected) in [
            (
                r#"{"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}"#,
                (10_000.0, linear),
            ),
            (
                r#"{"rope_theta": 7e5, "rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 5e5}}"#,
                (7e5, linear),
            ),
            (
                r#"{"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 2, "rope_theta": 5e5}}"#,
                (5e5, linear),
            ),
            (
                r#"{"rope_scaling": {"rope_type": null, "rope_theta": 3e5}, "rope_parameters": {"factor": 2}}"#,
                (3e5, RopeScaling::Default),
            ),
        ] {
            assert_eq!(rope(change), expected, "{change}");
        }
    }

    #[test]
    fn parameters_of_yarn_have_defaults() {
        let yarn = |parameters: &str| match rope(&format!(r#"{{"rope_scaling": {parameters}}}"#)).1 {
            RopeScaling::Yarn(yarn) => yarn,
            other => panic!("{other:?}"),
        };
        let plain = yarn(r#"{"type": "yarn", "factor": 4}"#);
        let expected = Yarn {
            factor: 4.0,
            attention_factor: 0.1 * 4f64.ln() + 1.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            truncate: true,
            original_context: 64.0,
        };
        assert_eq!(plain, expected);
        let zeros = r#"{"type": "yarn", "factor": 4, "beta_fast": 0, "beta_slow": null, "mscale": 0, "truncate": null}"#;
        assert_eq!(yarn(zeros), expected);
        let implied = yarn(r#"{"type": "yarn", "factor": null, "original_max_position_embeddings": 16}"#);
        assert_eq!(implied, Yarn { original_context: 16.0, ..expected });
        let set = r#"{"type": "yarn", "factor": 4, "attention_factor": 0.5, "beta_fast": 8, "beta_slow": 2,
            "truncate": false, "mscale": 1, "mscale_all_dim": 1}"#;
        let expected =
            Yarn { attention_factor: 0.5, beta_fast: 8.0, beta_slow: 2.0, truncate: false, ..expected };
        assert_eq!(yarn(set), expected);
        let outside = r#"{"original_max_position_embeddings": 32, "rope_scaling": {"type": "yarn", "factor": 4,
            "original_max_position_embeddings": 16}}"#;
        assert!(matches!(rope(outside).1, RopeScaling::Yarn(Yarn { original_context: 32.0, .. })));
    }

    #[test]
    fn parameters_without_meaning_are_refused_by_name() {
        for (parameters, message) in [
            (r#"{"type": "linear"}"#, "rope_scaling lacks the number factor"),
            (
                r#"{"rope_type": "llama3", "factor": 8}"#,
                "rope_scaling lacks the number low_freq_factor; rope_scaling lacks the number high_freq_factor",
            ),
            (
                r#"{"rope_type": "linear", "factor": 0}"#,
                "rope_scaling.factor is 0, expected a number above 0",
            ),
            (
                r#"{"rope_type": "dynamic", "factor": -2.0}"#,
                "rope_scaling.factor is -2.0, expected a number above 0",
            ),
            (
                r#"{"rope_type": "yarn", "factor": "4"}"#,
                "rope_scaling.factor is \"4\", expected a number above 0",
            ),
            (
                r#"{"rope_type": "llama3", "factor": 8, "low_freq_factor": 2, "high_freq_factor": 2}"#,
                "rope_scaling.high_freq_factor is 2, expected a number above low_freq_factor, 2",
            ),
            (
                r#"{"rope_type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 32}"#,
                "rope_scaling.beta_fast is 1, expected a number from beta_slow, 32",
            ),
            (
                r#"{"rope_type": "yarn", "factor": 2, "attention_factor": 0}"#,
                "rope_scaling.attention_factor is 0, expected a number above 0",
            ),
            (
                r#"{"type": "su"}"#,
                "rope_scaling.rope_type is \"su\", supported are default, linear, dynamic, yarn, llama3",
            ),
            (
                r#"{"rope_type": "longrope", "short_factor": [1], "long_factor": [1]}"#,
                "rope_scaling.rope_type is \"longrope\", supported are default, linear, dynamic, yarn, llama3",
            ),
            (
                r#"{"rope_type": "yarn", "type": "linear", "factor": 2}"#,
                "rope_scaling.rope_type is \"yarn\", but rope_scaling.type is \"linear\"",
            ),
            (
                r#"{"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}}"#,
                "rope_scaling has parameters for each kind of attention; supported is one set for all blocks",
            ),
            (
                r#"{"rope_type": "default", "partial_rotary_factor": 0.25}"#,
                "rope_scaling.partial_rotary_factor is 0.25, expected 1: all of a head is rotated",
            ),
            (r#"[2]"#, "rope_scaling is [2], expected an object"),
            (
                r#"{"rope_type": "linear", "factor": 1e-308}"#,
                "rope_scaling and rope_theta give frequencies that are not finite",
            ),
            (
                r#"{"rope_type": "yarn", "factor": 4, "attention_factor": 1e300}"#,
                "rope_scaling and rope_theta give frequencies that are not finite",
            ),
        ] {
            let change = format!(r#"{{"rope_scaling": {parameters}}}"#);
            assert_eq!(parse(&change).expect_err(&change), message);
        }
    }
}
