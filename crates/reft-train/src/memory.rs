//! Memory: what a run needs, and what this machine has, where the operating system reports it (Linux).

use serde::Serialize;
use std::{
    fs::read_to_string,
    sync::atomic::{AtomicU64, Ordering},
};

/// Peak memory of a run in bytes, by part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct MemoryNeeds {
    /// The program, the tokenizer and the data; on the CPU only.
    pub program: u64,
    /// The frozen model.
    pub weights: u64,
    /// Activations kept for the backward pass, and the gradients of one block.
    pub activations: u64,
    /// A slice of the logits, which is gone before the gradients of the blocks exist.
    pub logits: u64,
    /// Activations, logits and the cache of generated answers in an evaluation, when those of training are gone.
    pub evaluation: u64,
    /// The trainable parameters and their gradients.
    pub adapter: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
    /// States that training does not change, kept from one epoch to the next.
    pub reused: u64,
    /// The peak: less than the sum, because not everything exists at the same time.
    pub total: u64,
    /// The largest single tensor.
    pub largest: u64,
}

/// What helps a run that is out of memory.
pub const OUT_OF_MEMORY_ADVICE: &str = "any of these would help: train.checkpointing=true, a smaller train.batch_size with a \
                                        larger train.accumulation, a smaller data.max_length, quant=int8";

/// Formats a number of bytes in MiB or GiB.
pub fn format_bytes(n: u64) -> String {
    match n as f64 / f64::from(1 << 20) {
        mib if mib < 1024.0 => format!("{mib:.1} MiB"),
        mib => format!("{:.2} GiB", mib / 1024.0),
    }
}

/// The peak before the last [`reset_peak`], in KiB.
static EARLIER_PEAK: AtomicU64 = AtomicU64::new(0);

/// Peak resident memory of this process in MiB.
pub(crate) fn peak_mb() -> Option<f64> {
    Some(recent_peak_mb()?.max(EARLIER_PEAK.load(Ordering::Relaxed) as f64 / 1024.0))
}

/// Peak resident memory since the last [`reset_peak`], in MiB.
pub(crate) fn recent_peak_mb() -> Option<f64> {
    Some(number("/proc/self/status", "VmHWM:")? as f64 / 1024.0)
}

/// Resident memory of this process in bytes.
pub(crate) fn resident() -> Option<u64> {
    Some(number("/proc/self/status", "VmRSS:")? * 1024)
}

/// Returns memory that the allocator holds but does not use to the operating system.
pub(crate) fn trim() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: takes no pointer and may be called at any time.
        unsafe { malloc_trim(0) };
    }
}

/// Restarts the measurement of [`recent_peak_mb`] at the memory that is resident now.
pub(crate) fn reset_peak() {
    EARLIER_PEAK.fetch_max(number("/proc/self/status", "VmHWM:").unwrap_or(0), Ordering::Relaxed);
    // Without this file, the recent peak stays that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Bytes that this process may use in total: the installed memory, or a smaller limit.
pub(crate) fn capacity() -> Option<u64> {
    let installed = number("/proc/meminfo", "MemTotal:").map(|kib| kib * 1024);
    [installed, cgroup("memory.max"), address_space()].into_iter().flatten().min()
}

/// Bytes that this process can still allocate.
pub(crate) fn available() -> Option<u64> {
    let free = number("/proc/meminfo", "MemAvailable:").map(|kib| kib * 1024);
    let cgroup_free =
        cgroup("memory.max").and_then(|most| Some(most.saturating_sub(cgroup("memory.current")?)));
    let address_space = address_space()
        .and_then(|most| Some(most.saturating_sub(number("/proc/self/status", "VmSize:")? * 1024)));
    [free, cgroup_free, address_space].into_iter().flatten().min()
}

/// A limit of the control group, if there is one.
fn cgroup(file: &str) -> Option<u64> {
    read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
}

/// The limit set by `ulimit -v`, if any.
fn address_space() -> Option<u64> {
    number("/proc/self/limits", "Max address space")
}

/// The first number on the line with this prefix.
fn number(file: &str, prefix: &str) -> Option<u64> {
    let text = read_to_string(file).ok()?;
    let rest = text.lines().find_map(|found| found.strip_prefix(prefix))?;
    rest.split_whitespace().next()?.parse().ok()
}
