//! Short texts that tell models, tokenizers and chat templates apart.
//!
//! The fingerprint of a model depends on what the model computes, not on how its files say so: on the sizes and values of
//! the tensors that it uses, by its own names for them, and on [`ModelConfig::function`](crate::ModelConfig::function). So
//! configurations that only differ in other keys, and files that hold the same numbers in another dtype, have the same one.

use crate::{hash::text_of, weights::Weights};
use burn::tensor::{bf16, f16};
use reft_core::adapter::RoundedFingerprints;
use sha2::{Digest, Sha256};

/// Number of runs of values that are read from each tensor, and their length.
const RUNS: usize = 16;
const RUN: usize = 16;

/// The fingerprint of a model, and those of its copies in half precision.
///
/// Reads samples of the values, evenly spaced, rather than all of them: up to 256 of each tensor.
pub(crate) fn of_model(weights: &Weights, function: &str) -> (String, RoundedFingerprints) {
    let mut hashes: [Sha256; 3] = std::array::from_fn(|_| Sha256::new_with_prefix(format!("{function}\n")));
    for (name, shape) in weights.unused() {
        let n: usize = shape.iter().product();
        let mut values = Vec::new();
        let last = n.saturating_sub(RUN);
        for run in 0..RUNS {
            let at = if n <= RUNS * RUN { (run * RUN).min(n) } else { last * run / (RUNS - 1) };
            values.extend(weights.values_at(name, at..(at + RUN).min(n)));
        }
        let (name, [exact, as_bf16, as_f16]) = (format!("{name} {shape:?}\n"), &mut hashes);
        for hash in [&mut *exact, &mut *as_bf16, &mut *as_f16] {
            hash.update(&name);
        }
        for value in values {
            exact.update(value.to_le_bytes());
            as_bf16.update(bf16::from_f32(value).to_f32().to_le_bytes());
            as_f16.update(f16::from_f32(value).to_f32().to_le_bytes());
        }
    }
    let [exact, bf16, f16] = hashes.map(text_of);
    (exact, RoundedFingerprints { bf16, f16 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::ModelFiles;
    use safetensors::{Dtype, tensor::TensorView};
    use std::fs;

    /// The fingerprints of a file with one tensor of 1,000 values, changed by `change`, in a dtype.
    fn of(dtype: Dtype, function: &str, change: impl Fn(usize, f32) -> f32) -> (String, RoundedFingerprints) {
        let values = (0..1000).map(|i| change(i, (i as f32 * 0.37).sin() * 0.05));
        let bytes: Vec<u8> = match dtype {
            Dtype::BF16 => values.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            Dtype::F16 => values.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            _ => values.flat_map(f32::to_le_bytes).collect(),
        };
        let view = TensorView::new(dtype, vec![10, 100], &bytes).expect("fits");
        let folder = tempfile::tempdir().expect("a folder");
        let file = safetensors::serialize([("a.weight", view)], None).expect("serialized");
        fs::write(folder.path().join("model.safetensors"), file).expect("written");
        let weights = Weights::open(&ModelFiles::Folder(folder.path().into())).expect("opened");
        of_model(&weights, function)
    }

    #[test]
    fn copies_in_half_precision_have_the_rounded_fingerprints() {
        let same = |_, x| x;
        let original = of(Dtype::F32, "f", same);
        for (dtype, rounded) in [(Dtype::BF16, &original.1.bf16), (Dtype::F16, &original.1.f16)] {
            let copy = of(dtype, "f", same);
            assert_ne!(copy.0, original.0);
            assert_eq!(&copy.0, rounded, "its own values are already rounded");
        }
        // The numbers count, not the dtype that holds them.
        let rounded = |_, x| bf16::from_f32(x).to_f32();
        assert_eq!(of(Dtype::F32, "f", rounded), of(Dtype::BF16, "f", same));
    }

    #[test]
    fn other_values_and_other_functions_have_other_fingerprints() {
        let original = of(Dtype::F32, "f", |_, x| x);
        for other in [
            of(Dtype::F32, "g", |_, x| x),
            of(Dtype::F32, "f", |i, x| if i == 0 { x + 0.01 } else { x }),
            of(Dtype::F32, "f", |i, x| if i == 999 { -x } else { x }),
            of(Dtype::F32, "f", |_, x| x * 1.01),
        ] {
            assert_ne!(other.0, original.0);
            assert_ne!(other.1.bf16, original.1.bf16);
            assert_ne!(other.1.f16, original.1.f16);
        }
    }
}
