//! Models that other programs have quantized: their weights are not numbers that this one can read.

use crate::keys::shown;
use safetensors::Dtype;
use serde_json::{Map, Value};

/// Says that a `config.json` is that of a quantized model; `None` if it is not.
pub(crate) fn by_config(config: &Map<String, Value>) -> Option<String> {
    let section =
        |key: &str| config.get(key).filter(|value| !value.is_null()).map(|value| (key.to_string(), value));
    // Models for text and images keep the language model's configuration inside.
    let sections = ["quantization_config", "compression_config"].into_iter().filter_map(section);
    for (key, value) in sections {
        let is_set = |flag: &str| value.get(flag).and_then(Value::as_bool) == Some(true);
        let method = ["quant_method", "quant_algo", "format"].into_iter().find_map(|name| {
            let method = value.get(name).filter(|method| !method.is_null())?;
            Some(format!("{key}.{name} is {}", shown(method)))
        });
        let flag = ["load_in_4bit", "load_in_8bit"].into_iter().find(|flag| is_set(flag));
        let empty = value.as_object().is_some_and(Map::is_empty);
        let found = match (method, flag) {
            (Some(method), _) => method,
            (None, Some(flag)) => format!("{key}.{flag} is true"),
            (None, None) if empty => continue,
            (None, None) => format!("has {key}"),
        };
        return Some(refusal(&found));
    }
    None
}

/// Says that the tensors of some files are those of a quantized model; `None` if they are not.
pub(crate) fn by_tensors<'a>(tensors: impl Iterator<Item = (&'a str, Dtype)>) -> Option<String> {
    tensors
        .filter_map(|(name, dtype)| kind(name, dtype).map(|kind| (name, kind)))
        .next()
        .map(|(name, kind)| refusal(&format!("the tensor {name} is that of a model quantized with {kind}")))
}

fn kind(name: &str, dtype: Dtype) -> Option<&'static str> {
    // The last part of the name; bitsandbytes adds parts to the name of the weight.
    let part = |end: &str| name.rsplit_once('.').is_some_and(|(_, last)| last == end);
    let bitsandbytes = name.contains(".quant_state.") || part("absmax") || part("quant_map") || part("SCB");
    match dtype {
        _ if bitsandbytes || part("nested_absmax") || part("weight_format") => Some("bitsandbytes"),
        _ if part("qweight") || part("qzeros") || part("g_idx") => Some("GPTQ or AWQ"),
        _ if part("W_q") => Some("HQQ"),
        _ if part("weight_packed") => Some("compressed-tensors"),
        Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E8M0 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ => {
            Some("fp8")
        }
        Dtype::F4 | Dtype::F6_E2M3 | Dtype::F6_E3M2 => Some("fp4 or fp6"),
        Dtype::U8 if name.ends_with("_blocks") => Some("mxfp4"),
        // The causal masks of old checkpoints are bytes, too.
        Dtype::I8 | Dtype::U8 | Dtype::I32 | Dtype::U32 if part("weight") => Some("8 or fewer bits"),
        _ if part("weight_scale") || part("weight_scale_inv") => Some("scales"),
        _ => None,
    }
}

fn refusal(found: &str) -> String {
    format!(
        "{found}: weights that were quantized by other programs are not supported; take the unquantized model and \
         `quant = \"int4\"`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADVICE: &str = ": weights that were quantized by other programs are not supported; take the unquantized model and \
                          `quant = \"int4\"`";

    fn by_json(json: &str) -> Option<String> {
        by_config(serde_json::from_str::<Value>(json).expect("valid JSON").as_object().expect("an object"))
    }

    #[test]
    fn quantized_configurations_are_named_in_one_line() {
        for method in
            ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "hqq", "mxfp4", "eetq", "new"]
        {
            let json = format!(r#"{{"quantization_config": {{"bits": 4, "quant_method": "{method}"}}}}"#);
            let expected = format!("quantization_config.quant_method is \"{method}\"{ADVICE}");
            assert_eq!(by_json(&json), Some(expected));
        }
        for (json, found) in [
            (
                r#"{"quantization_config": {"load_in_4bit": true}}"#,
                "quantization_config.load_in_4bit is true",
            ),
            (
                r#"{"quantization_config": {"load_in_8bit": true}}"#,
                "quantization_config.load_in_8bit is true",
            ),
            (
                r#"{"compression_config": {"format": "pack-quantized"}}"#,
                "compression_config.format is \"pack-quantized\"",
            ),
            (r#"{"quantization_config": {"bits": 4}}"#, "has quantization_config"),
        ] {
            assert_eq!(by_json(json), Some(format!("{found}{ADVICE}")));
        }
        for json in [r#"{}"#, r#"{"quantization_config": null}"#, r#"{"quantization_config": {}}"#] {
            assert_eq!(by_json(json), None, "{json}");
        }
    }

    #[test]
    fn quantized_tensors_are_named_in_one_line() {
        for (name, dtype, kind) in [
            ("model.layers.0.mlp.up_proj.qweight", Dtype::I32, "GPTQ or AWQ"),
            ("model.layers.0.mlp.up_proj.SCB", Dtype::F32, "bitsandbytes"),
            ("model.layers.0.mlp.up_proj.weight.absmax", Dtype::U8, "bitsandbytes"),
            ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", Dtype::U8, "bitsandbytes"),
            ("model.layers.0.mlp.up_proj.weight", Dtype::F8_E4M3, "fp8"),
            ("model.layers.0.mlp.up_proj.weight", Dtype::I8, "8 or fewer bits"),
            ("model.layers.0.mlp.up_proj.weight_packed", Dtype::I32, "compressed-tensors"),
            ("model.layers.0.mlp.experts.gate_up_proj_blocks", Dtype::U8, "mxfp4"),
            ("model.layers.0.mlp.up_proj.W_q", Dtype::U8, "HQQ"),
        ] {
            let expected = format!("the tensor {name} is that of a model quantized with {kind}{ADVICE}");
            assert_eq!(by_tensors([("a.weight", Dtype::F32), (name, dtype)].into_iter()), Some(expected));
        }
        let plain =
            [("a.weight", Dtype::BF16), ("attn.bias", Dtype::U8), ("embeddings.position_ids", Dtype::I64)];
        assert_eq!(by_tensors(plain.into_iter()), None);
    }
}
