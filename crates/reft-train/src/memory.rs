//! Memory of this process and this computer, where the system tells it (Linux).

use std::{
    fs::read_to_string,
    sync::atomic::{AtomicU64, Ordering},
};

/// The peak before it was made to begin anew, in KiB.
static EARLIER_PEAK: AtomicU64 = AtomicU64::new(0);

/// Peak resident memory in MiB.
pub(crate) fn peak_mb() -> Option<f64> {
    Some(recent_peak_mb()?.max(EARLIER_PEAK.load(Ordering::Relaxed) as f64 / 1024.0))
}

/// The same since [`reset_peak`].
pub(crate) fn recent_peak_mb() -> Option<f64> {
    Some(number("/proc/self/status", "VmHWM:")? as f64 / 1024.0)
}

/// Bytes of resident memory.
pub(crate) fn resident() -> Option<u64> {
    Some(number("/proc/self/status", "VmRSS:")? * 1024)
}

/// Gives memory that is no longer used back to the system, where the allocator keeps it.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        unsafe extern "C" {
            fn malloc_trim(pad: usize) -> i32;
        }
        // SAFETY: a function of glibc that takes no pointer and may be called at any time.
        unsafe { malloc_trim(0) };
    }
}

/// Makes the recent peak begin anew at what is resident now.
pub(crate) fn reset_peak() {
    EARLIER_PEAK.fetch_max(number("/proc/self/status", "VmHWM:").unwrap_or(0), Ordering::Relaxed);
    // Where the system has no such file, the recent peak is that of the whole process.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Bytes that this process may have in all: the computer's, or less where a limit is set.
pub(crate) fn capacity() -> Option<u64> {
    let installed = number("/proc/meminfo", "MemTotal:").map(|kib| kib * 1024);
    [installed, container("memory.max"), address_space()].into_iter().flatten().min()
}

/// Bytes that this process may still ask for.
pub(crate) fn available() -> Option<u64> {
    let free = number("/proc/meminfo", "MemAvailable:").map(|kib| kib * 1024);
    let container =
        container("memory.max").and_then(|most| Some(most.saturating_sub(container("memory.current")?)));
    let address_space = address_space()
        .and_then(|most| Some(most.saturating_sub(number("/proc/self/status", "VmSize:")? * 1024)));
    [free, container, address_space].into_iter().flatten().min()
}

/// The limit of a container, if there is one.
fn container(file: &str) -> Option<u64> {
    read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse().ok()
}

/// The limit that `ulimit -v` sets, if it is set.
fn address_space() -> Option<u64> {
    number("/proc/self/limits", "Max address space")
}

/// The first number on the line that begins so.
fn number(file: &str, line: &str) -> Option<u64> {
    let text = read_to_string(file).ok()?;
    let rest = text.lines().find_map(|found| found.strip_prefix(line))?;
    rest.split_whitespace().next()?.parse().ok()
}
