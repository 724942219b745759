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

    #[cfg(feature = "hub")]
    #[test]
    fn plain_names_cannot_leave_their_folder() {
        assert!(is_plain("model-00001-of-00002.safetensors"));
        for name in ["", ".", "..", ".hidden", "a/b", "..\\a", "a b", "C:a", "ä"] {
            assert!(!is_plain(name), "{name}");
        }
    }
}
