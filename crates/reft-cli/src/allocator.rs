//! What the program says when the system has no more memory to give.
//!
//! Rust ends a process whose allocation fails, with a message for programmers. This one is for users; what was learned
//! is on disk by then, because a run saves it with every line of its log.

use reft_train::plan::ADVICE;
use std::{
    alloc::{GlobalAlloc, Layout, System},
    io::Write,
    process::exit,
    sync::atomic::{AtomicBool, Ordering},
};

/// The system's allocator.
pub struct Telling;

/// Set as long as a run trains.
pub static TRAINING: AtomicBool = AtomicBool::new(false);

/// Smaller requests are left to Rust: a caller may ask for room that it can do without.
const LARGE: usize = 1 << 20;

// SAFETY: everything is handed on to the system's allocator.
unsafe impl GlobalAlloc for Telling {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        told(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        told(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        told(unsafe { System.realloc(block, layout, size) }, size)
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        unsafe { System.dealloc(block, layout) }
    }
}

fn told(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() && size >= LARGE {
        // Nothing here may ask for memory.
        let mut out = std::io::stderr().lock();
        let _ = write!(out, "error: out of memory: {} MiB more are not to be had", size >> 20);
        let _ = if TRAINING.load(Ordering::Relaxed) {
            writeln!(out, "; the adapter of the last line of the log is kept\n{ADVICE}")
        } else {
            writeln!(
                out,
                "\nany of these would help: a smaller batch or shorter texts, --quant int8, --dtype bf16"
            )
        };
        exit(1);
    }
    block
}
