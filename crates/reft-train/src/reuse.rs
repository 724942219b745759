//! Room for the states that training does not change.

use crate::{
    memory::available,
    train_config::{Reuse, TrainConfig},
};
use reft_kernels::Kernels;
use reft_models::{Dtype, ReusedStates};
use std::{cell::RefCell, path::Path};

/// Whether such states are kept, if there are any.
pub(crate) fn is_on<B: Kernels>(train: &TrainConfig, dtype: Dtype) -> bool {
    let has_epochs = train.steps.is_some() || train.epochs > 1;
    train.reuse == Reuse::Auto && has_epochs && B::packs_rows(dtype.burn())
}

/// The bytes of memory for them: no more than half of what is free.
pub(crate) fn memory_limit(train: &TrainConfig) -> u64 {
    (available().unwrap_or(u64::MAX) / 2).min(train.reuse_memory << 20)
}

/// Keeps such states in memory, and the rest of them in a file without a name in a folder, if the settings allow it.
pub(crate) fn reused_states<B: Kernels>(
    train: &TrainConfig,
    dtype: Dtype,
    folder: Option<&Path>,
) -> Option<RefCell<ReusedStates<B>>> {
    if !is_on::<B>(train, dtype) {
        return None;
    }
    let states = ReusedStates::new(memory_limit(train));
    let file = folder.filter(|_| train.reuse_disk > 0).and_then(|folder| {
        let limit = (free_disk(folder)? / 2).min(train.reuse_disk << 20);
        Some((tempfile::tempfile_in(folder).ok()?, limit))
    });
    Some(RefCell::new(match file {
        Some((file, limit)) => states.with_overflow(file, limit),
        None => states,
    }))
}

/// Free bytes of the disk that a folder is on, where the operating system tells it.
fn free_disk(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    {
        let disk = rustix::fs::statvfs(folder).ok()?;
        Some(disk.f_bavail.saturating_mul(disk.f_frsize))
    }
    #[cfg(not(unix))]
    {
        let _ = folder;
        None
    }
}
