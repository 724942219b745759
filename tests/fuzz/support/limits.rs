//! The limits within which every target must handle every input: memory and time.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    time::{Duration, Instant},
};

/// The memory that a target may hold at once.
const MAX_BYTES: isize = 256 << 20;

/// The largest single allocation. A larger one fails, which ends the process with a message.
const MAX_ALLOCATION: usize = 1 << 30;

thread_local! {
    /// Bytes that this thread allocated and did not free.
    static HELD: Cell<isize> = const { Cell::new(0) };
    /// Their maximum since the target began.
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, with counts per thread. Memory that other threads allocate for a target is not counted.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(change: isize) {
    let _ = HELD.try_with(|held| {
        held.set(held.get() + change);
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(held.get())));
    });
}

// SAFETY: every call is passed on to the system's allocator, or fails with a null pointer, which is allowed.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MAX_ALLOCATION {
            return std::ptr::null_mut();
        }
        count(layout.size() as isize);
        // SAFETY: the caller's guarantees are those that `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if layout.size() > MAX_ALLOCATION {
            return std::ptr::null_mut();
        }
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        if new_size > MAX_ALLOCATION {
            return std::ptr::null_mut();
        }
        count(new_size as isize - layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, new_size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

/// An input that takes longer hangs. Honest ones take milliseconds, but machines that test are busy.
const LONGEST: Duration = Duration::from_secs(20);

/// A target with limits. It panics if the target does, or holds too much memory, or takes longer than [`LONGEST`] three times in
/// a row: a single slow run may be the fault of a busy machine.
pub fn limited(target: fn(&[u8])) -> impl Fn(&[u8]) + Copy {
    move |input| check(target, input)
}

fn check(target: fn(&[u8]), input: &[u8]) {
    let mut times = Vec::new();
    while times.len() < 3 {
        let before = HELD.get();
        PEAK.set(before);
        let begun = Instant::now();
        target(input);
        let (time, bytes) = (begun.elapsed(), PEAK.get() - before);
        assert!(bytes <= MAX_BYTES, "the target held {bytes} bytes, expected at most {MAX_BYTES}");
        if time <= LONGEST {
            return;
        }
        times.push(time);
    }
    panic!("the target took {times:?}, expected at most {LONGEST:?}");
}
