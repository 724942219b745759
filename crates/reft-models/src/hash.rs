//! Hashes as short texts.

use sha2::{Digest, Sha256};

/// The first 128 bits of a hash as text.
pub(crate) fn text_of(hash: Sha256) -> String {
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The hash of a text.
pub(crate) fn of_text(text: &str) -> String {
    text_of(Sha256::new_with_prefix(text))
}
