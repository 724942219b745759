//! What the program prints when it ends because an allocation failed.
//!
//! Rust then prints a message for programmers and aborts the process. The advice for users follows it here. A request
//! whose sender can do without (`Vec::try_reserve`) ends nothing. A run saves its adapter with every log line, so at
//! most the updates since the last one are lost.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

/// The system allocator, which remembers the last request that failed.
pub struct RecordingAllocator;

/// Whether a run is training.
pub static TRAINING: AtomicBool = AtomicBool::new(false);

/// Bytes of the last request that failed, 0 if none did.
static FAILED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every request is forwarded to the system allocator.
unsafe impl GlobalAlloc for RecordingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        recorded(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        recorded(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        recorded(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

fn recorded(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        FAILED.store(size, Ordering::Relaxed);
    }
    block
}

/// Prints advice if the process aborts after an allocation failed. Elsewhere than on Unix, Rust's message stands alone.
pub fn explain_aborts() {
    #[cfg(unix)]
    // SAFETY: `explain` is a function of a signal's number, and only does what a handler may do.
    unsafe {
        libc::signal(libc::SIGABRT, explain as *const () as libc::sighandler_t);
    }
}

/// Prints advice and ends the process if an allocation failed, else lets it abort.
#[cfg(unix)]
extern "C" fn explain(signal: libc::c_int) {
    use reft_train::memory::OUT_OF_MEMORY_ADVICE;
    use std::io::Write;

    let size = FAILED.load(Ordering::Relaxed);
    if size == 0 {
        // SAFETY: the default action is restored, and the signal sent again.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        }
        return;
    }
    // No allocation succeeds here, and no lock may be waited for.
    let mut buffer = [0; 1024];
    let mut text = &mut buffer[..];
    let _ = write!(text, "error: out of memory: failed to allocate {} MiB", size >> 20);
    let _ = if TRAINING.load(Ordering::Relaxed) {
        writeln!(text, "; the adapter of the last log line is kept\n{OUT_OF_MEMORY_ADVICE}")
    } else {
        writeln!(
            text,
            "\nany of these would help: a smaller batch, shorter texts, --quant int8, --dtype bf16"
        )
    };
    let n_left = text.len();
    let n_bytes = buffer.len() - n_left;
    // SAFETY: the bytes are initialized, and the process ends without running anything else.
    unsafe {
        libc::write(libc::STDERR_FILENO, buffer.as_ptr().cast(), n_bytes);
        libc::_exit(1);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_request_that_may_fail_ends_nothing() {
        let mut bytes = Vec::<u8>::new();
        assert!(bytes.try_reserve(1 << 60).is_err(), "no machine has that much");
    }
}
