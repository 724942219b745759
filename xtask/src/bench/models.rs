//! Folders of models with random weights in the shapes of real ones. Speed and memory do not depend on the values.

use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// The shape of a Llama.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// The name of its folder.
    pub name: String,
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub key_value_heads: usize,
    /// Whether the output head is the embedding.
    pub is_tied: bool,
    /// Whether weights are bfloat16 instead of float32.
    pub is_half: bool,
}

impl Shape {
    /// The shape of SmolLM-135M.
    pub fn smollm_135m() -> Self {
        Self {
            name: "smollm-135m".into(),
            vocab: 49_152,
            hidden: 576,
            intermediate: 1536,
            layers: 30,
            heads: 9,
            key_value_heads: 3,
            is_tied: true,
            is_half: false,
        }
    }

    /// The same in bfloat16.
    pub fn in_bf16(self) -> Self {
        Self { name: format!("{}-bf16", self.name), is_half: true, ..self }
    }

    /// The shape of Llama-2-7B, in bfloat16.
    pub fn llama_7b() -> Self {
        Self {
            name: "llama-7b".into(),
            vocab: 32_000,
            hidden: 4096,
            intermediate: 11_008,
            layers: 32,
            heads: 32,
            key_value_heads: 32,
            is_tied: false,
            is_half: true,
        }
    }

    /// A small model with this many layers, for the tokenizer of the committed fixture.
    pub fn small(layers: usize) -> Self {
        Self {
            name: format!("small-{layers}"),
            vocab: 512,
            hidden: 192,
            intermediate: 512,
            layers,
            heads: 6,
            key_value_heads: 2,
            is_tied: true,
            is_half: false,
        }
    }

    /// The name and shape of every tensor, in the order of the file.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, key_value) = (self.hidden, self.hidden / self.heads * self.key_value_heads);
        let mut all = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab, d])];
        for layer in 0..self.layers {
            let of_layer = [
                ("input_layernorm", vec![d]),
                ("self_attn.q_proj", vec![d, d]),
                ("self_attn.k_proj", vec![key_value, d]),
                ("self_attn.v_proj", vec![key_value, d]),
                ("self_attn.o_proj", vec![d, d]),
                ("post_attention_layernorm", vec![d]),
                ("mlp.gate_proj", vec![self.intermediate, d]),
                ("mlp.up_proj", vec![self.intermediate, d]),
                ("mlp.down_proj", vec![d, self.intermediate]),
            ];
            all.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
        }
        all.push(("model.norm.weight".into(), vec![d]));
        if !self.is_tied {
            all.push(("lm_head.weight".into(), vec![self.vocab, d]));
        }
        all
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "attention_bias": false,
            "tie_word_embeddings": self.is_tied,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "torch_dtype": if self.is_half { "bfloat16" } else { "float32" },
        })
    }

    /// The folder of this model, which is made first if it is not there, with the tokenizer of another.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn folder(&self, parent: &Path, tokenizer: &Path) -> io::Result<PathBuf> {
        let folder = parent.join(&self.name);
        let weights = folder.join("model.safetensors");
        if !weights.exists() {
            println!("making a model with random weights: {}", folder.display());
            fs::create_dir_all(&folder)?;
            let unfinished = folder.join("unfinished");
            self.write_weights(&unfinished)?;
            fs::rename(unfinished, &weights)?;
        }
        fs::write(folder.join("config.json"), format!("{:#}\n", self.config()))?;
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            // Not `copy`, which would copy that the file is read-only.
            fs::write(folder.join(file), fs::read(tokenizer.join(file))?)?;
        }
        Ok(folder)
    }

    fn write_weights(&self, path: &Path) -> io::Result<()> {
        let bytes_of_value = if self.is_half { 2 } else { 4 };
        let tensors = self.tensors();
        let (mut header, mut end) = (serde_json::Map::new(), 0);
        for (name, shape) in &tensors {
            let start = end;
            end += shape.iter().product::<usize>() * bytes_of_value;
            let dtype = if self.is_half { "BF16" } else { "F32" };
            header
                .insert(name.clone(), json!({"dtype": dtype, "shape": shape, "data_offsets": [start, end]}));
        }
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut header = Value::Object(header).to_string();
        // The tensors begin at a multiple of 8.
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let mut random = Random(0x5eed);
        for (_, shape) in &tensors {
            for _ in 0..shape.iter().product::<usize>() {
                // Norms begin as ones.
                let value = if shape.len() == 1 { 1.0 } else { random.normal() * 0.02 };
                match self.is_half {
                    true => file.write_all(&((value.to_bits() >> 16) as u16).to_le_bytes())?,
                    false => file.write_all(&value.to_le_bytes())?,
                }
            }
        }
        file.flush()
    }
}

/// Random numbers that are the same everywhere (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Nearly normal with mean 0 and variance 1: the sum of four uniform numbers.
    fn normal(&mut self) -> f32 {
        let bits = self.next();
        let sum: u32 = [0, 16, 32, 48].iter().map(|shift| (bits >> shift) as u32 & 0xffff).sum();
        // Each has mean 65535 / 2 and variance (65536² − 1) / 12.
        (sum as f32 - 131_070.0) / 37_837.2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_have_mean_0_and_variance_1() {
        let mut random = Random(1);
        let values: Vec<f64> = (0..100_000).map(|_| f64::from(random.normal())).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn a_folder_has_the_shapes_that_its_header_promises() {
        let folder = tempfile::tempdir().expect("a folder");
        let tokenizer = folder.path().join("t");
        fs::create_dir(&tokenizer).expect("created");
        for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"] {
            fs::write(tokenizer.join(file), "{}").expect("written");
        }
        for is_half in [false, true] {
            let shape = Shape {
                name: format!("m-{is_half}"),
                vocab: 8,
                hidden: 12,
                is_tied: false,
                is_half,
                ..Shape::small(1)
            };
            let made = shape.folder(folder.path(), &tokenizer).expect("made");
            let bytes = fs::read(made.join("model.safetensors")).expect("written");
            let header_len = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
            let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).expect("JSON");
            assert_eq!(header["model.layers.0.self_attn.k_proj.weight"]["shape"], json!([4, 12]));
            let end = header["lm_head.weight"]["data_offsets"][1].as_u64().expect("a number") as usize;
            assert_eq!((bytes.len(), header_len % 8), (8 + header_len + end, 0));
            // The norm, which is ones, is followed by the head.
            let norm = header["model.norm.weight"]["data_offsets"][0].as_u64().expect("a number") as usize;
            let one: &[u8] = if is_half { &[0x80, 0x3f] } else { &[0, 0, 0x80, 0x3f] };
            assert_eq!(&bytes[8 + header_len + norm..][..one.len()], one);
            // A folder that is there is not made again.
            fs::write(made.join("model.safetensors"), "mine").expect("written");
            shape.folder(folder.path(), &tokenizer).expect("there");
            assert_eq!(fs::read(made.join("model.safetensors")).expect("there"), b"mine");
        }
    }
}
