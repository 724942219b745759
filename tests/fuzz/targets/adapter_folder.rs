//! An adapter folder: `adapter.json`, with `adapter.safetensors` as bytes or by the JSON of its header (the part
//! `adapter.safetensors.header`). Files that are absent are those of a valid adapter.
//!
//! An adapter that loads is saved and loaded again as the same edit.

use crate::support::{
    model,
    parts::{Parts, write},
};
use burn_flex::Flex;
use reft_core::{Adapter, BaseModel, ReftConfig};
use reft_train::adapter::read_adapter;
use std::{fs, path::Path, sync::LazyLock};

const TENSORS: &str = "adapter.safetensors";

pub fn target(input: &[u8]) {
    let parts = Parts::of(input);
    let folder = tempfile::tempdir().expect("a folder");
    for (name, valid) in &*VALID {
        write(folder.path(), name, parts.get(name).unwrap_or(valid));
    }
    if let Some(header) = parts.get("adapter.safetensors.header") {
        write(folder.path(), TENSORS, &model::safetensors(header));
    }
    if let Err(error) = read_adapter(folder.path()) {
        assert!(!error.to_string().is_empty());
    }
    let adapter = match load(folder.path()) {
        Ok(adapter) => adapter,
        Err(error) => return assert!(!error.is_empty()),
    };
    let saved = tempfile::tempdir().expect("a folder");
    adapter.save(saved.path()).expect("saved");
    let again = load(saved.path()).expect("what was saved loads");
    assert_eq!(again.reft.config(), adapter.reft.config());
    assert_eq!((&again.base_model, &again.metadata), (&adapter.base_model, &adapter.metadata));
    for (a, b) in again.reft.edits().zip(adapter.reft.edits()) {
        assert_eq!(a.intervention.values(), b.intervention.values());
    }
}

/// The files of a valid adapter.
static VALID: LazyLock<[(&str, Vec<u8>); 2]> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let config = ReftConfig::new(8, [0, 1]).with_rank(2);
    let adapter: Adapter<Flex> =
        Adapter::new(config.init(&Default::default()), BaseModel::new("some/model", "abc"));
    adapter.save(folder.path()).expect("saved");
    ["adapter.json", TENSORS].map(|name| (name, fs::read(folder.path().join(name)).expect("read")))
});

fn load(folder: &Path) -> Result<Adapter<Flex>, String> {
    Adapter::load(folder, &Default::default()).map_err(|error| error.to_string())
}
