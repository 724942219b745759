//! What the program prints when an allocation fails.
//!
//! Rust aborts the process with a message for programmers. This allocator prints advice for users first. A run saves its
//! adapter with every log line, so at most the updates since the last one are lost.

use reft_train::memory::OUT_OF_MEMORY_ADVICE;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Write,
    process::exit,
    sync::atomic::{AtomicBool, Ordering},
};

/// The system allocator, with a report when a large allocation fails.
pub struct ReportingAllocator;

/// Whether a run is training.
pub static TRAINING: AtomicBool = AtomicBool::new(false);

/// Failures of smaller requests are left to the caller, which may be able to do without.
const LARGE: usize = 1 << 20;

// SAFETY: every request is forwarded to the system allocator.
unsafe impl GlobalAlloc for ReportingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        report_failure(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        report_failure(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        report_failure(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

fn report_failure(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() && size >= LARGE {
        // Nothing here may allocate.
        let mut out = std::io::stderr().lock();
        let _ = write!(out, "error: out of memory: failed to allocate {} MiB", size >> 20);
        let _ = if TRAINING.load(Ordering::Relaxed) {
            writeln!(out, "; the adapter of the last log line is kept\n{OUT_OF_MEMORY_ADVICE}")
        } else {
            writeln!(
                out,
                "\nany of these would help: a smaller batch, shorter texts, --quant int8, --dtype bf16"
            )
        };
        exit(1);
    }
    block
}
