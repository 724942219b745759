//! Names of tensors and files.

/// Index of the block that a tensor belongs to: the first number among the dotted parts of its name.
///
/// `None` for tensors outside the blocks, such as embeddings.
pub fn block_of(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// The part of a tensor's name that is the same in every block: what follows the index of the block.
///
/// Of a name without an index, the part after the last dot.
pub fn name_in_block(name: &str) -> &str {
    let mut rest = name;
    while let Some((part, after)) = rest.split_once('.') {
        rest = after;
        if part.parse::<usize>().is_ok() {
            break;
        }
    }
    rest
}

/// Parts of names that programs add when they wrap a model: data parallelism, compilation, sharding, checkpointing.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// Removes what wrappers have added to the name of a tensor: their own parts anywhere in it, and any of `prefixes`
/// before the part that begins with one of `roots`.
///
/// `None` if the name has no such part, or something else before it.
pub(crate) fn unwrapped(name: &str, prefixes: &[&str], roots: &[&str]) -> Option<String> {
    let mut parts = name.split('.').filter(|part| !WRAPPERS.contains(part)).peekable();
    while parts.next_if(|part| !roots.contains(part) && prefixes.contains(part)).is_some() {}
    parts.peek().filter(|part| roots.contains(part))?;
    Some(parts.collect::<Vec<_>>().join("."))
}

/// The embeddings of tokens, of which every model has one: the end of their name, and the name by which the model asks for
/// them.
pub(crate) const EMBEDDINGS: [(&str, &str); 2] = [
    ("embed_tokens.weight", "model.embed_tokens.weight"),
    ("embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
];

/// The name of a tensor without the prefix of its model in a larger one. A head is beside the model, so that its name has the
/// prefix without its last part.
pub(crate) fn without_outer<'a>(name: &'a str, prefix: &str) -> &'a str {
    if let Some(rest) = name.strip_prefix(prefix) {
        return rest;
    }
    let parent = prefix.trim_end_matches('.').rfind('.').map_or("", |at| &prefix[..=at]);
    let is_head = |rest: &&str| rest.starts_with("lm_head.") || rest.starts_with("classifier.");
    name.strip_prefix(parent).filter(is_head).unwrap_or(name)
}

/// The part of a model that a tensor belongs to: its block, or its module.
pub(crate) fn part_of(name: &str) -> &str {
    let mut end = 0;
    for part in name.split('.') {
        end += part.len();
        if part.parse::<usize>().is_ok() {
            return &name[..end];
        }
        end += 1;
    }
    name.rsplit_once('.').map_or(name, |(module, _)| module)
}

/// Whether a tensor is no weight of a model but a constant that old versions of transformers saved with it.
pub(crate) fn is_constant(name: &str) -> bool {
    const CONSTANTS: [&str; 6] = [
        "rotary_emb.inv_freq",
        "position_ids",
        "token_type_ids",
        "attn.masked_bias",
        "self.masked_bias",
        "attention.masked_bias",
    ];
    CONSTANTS.iter().any(|end| name.ends_with(end))
}

/// Whether a name from a server is safe to use as a file or folder name: only letters, digits, `.`, `_` and `-`, and
/// no dot at the start.
#[cfg(all(feature = "hub", not(target_arch = "wasm32")))]
pub(crate) fn is_plain(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_split_at_the_index_of_its_block() {
        assert_eq!(block_of("model.layers.11.self_attn.q_proj.weight"), Some(11));
        assert_eq!(name_in_block("model.layers.11.self_attn.q_proj"), "self_attn.q_proj");
        assert_eq!(block_of("model.embed_tokens.weight"), None);
        assert_eq!(name_in_block("lm_head"), "lm_head");
    }

    #[test]
    fn wrappers_are_removed_from_names() {
        let name = |name: &str| unwrapped(name, &["model", "base_model"], &["layers", "lm_head"]);
        for wrapped in [
            "layers.0.weight",
            "model.layers.0.weight",
            "module.model.layers.0.weight",
            "_orig_mod.model.layers.0.weight",
            "model._orig_mod.layers.0._orig_mod.weight",
            "module._orig_mod.base_model.model.model.layers.0.weight",
            "_fsdp_wrapped_module.model.layers.0._fsdp_wrapped_module._checkpoint_wrapped_module.weight",
        ] {
            assert_eq!(name(wrapped).as_deref(), Some("layers.0.weight"), "{wrapped}");
        }
        assert_eq!(name("module.lm_head.weight").as_deref(), Some("lm_head.weight"));
        for other in ["transformer.layers.0.weight", "model.h.0.weight", "model", ""] {
            assert_eq!(name(other), None, "{other}");
        }
    }

    #[cfg(feature = "hub")]
    #[test]
    fn plain_names_cannot_leave_their_folder() {
        assert!(is_plain("model-00001-of-00002.safetensors"));
        for name in ["", ".", "..", ".hidden", "a/b", "..\\a", "a b", "C:a", "ä"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
