//! Loops over the rows of arrays, in several threads where there is enough to do.
//!
//! The rows of one task depend on their length alone, never on the number of threads.

use std::mem::MaybeUninit;

use rayon::prelude::*;

/// About how many numbers one task has; they stay in the fastest cache.
const TASK: usize = 1 << 13;

/// How many numbers are worth a second thread.
const PARALLEL: usize = 1 << 16;

/// Changes the rows of `y: [n, d]`, some at a time.
///
/// `change` gets the index of the first number that it changes, and the numbers.
pub(crate) fn change(y: &mut [f32], d: usize, change: impl Fn(usize, &mut [f32]) + Sync) {
    let size = task_size(d);
    if y.len() < PARALLEL {
        y.chunks_mut(size).enumerate().for_each(|(i, y)| change(i * size, y));
    } else {
        y.par_chunks_mut(size).enumerate().for_each(|(i, y)| change(i * size, y));
    }
}

/// Changes two arrays of one length, some numbers of both at a time as in [`change`].
pub(crate) fn change_both(
    a: &mut [f32],
    b: &mut [f32],
    change: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    if a.len() < PARALLEL {
        let chunks = a.chunks_mut(TASK).zip(b.chunks_mut(TASK)).enumerate();
        chunks.for_each(|(i, (a, b))| change(i * TASK, a, b));
    } else {
        let chunks = a.par_chunks_mut(TASK).zip(b.par_chunks_mut(TASK)).enumerate();
        chunks.for_each(|(i, (a, b))| change(i * TASK, a, b));
    }
}

/// Copies the rows of `x: [n, d]` and changes the copy, some rows at a time as in [`change`].
pub(crate) fn changed(x: &[f32], d: usize, change: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let size = task_size(d);
    let mut y = Vec::with_capacity(x.len());
    let room = &mut y.spare_capacity_mut()[..x.len()];
    if x.len() < PARALLEL {
        let chunks = room.chunks_mut(size).zip(x.chunks(size)).enumerate();
        chunks.for_each(|(i, (y, x))| change(i * size, copy(x, y)));
    } else {
        let chunks = room.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate();
        chunks.for_each(|(i, (y, x))| change(i * size, copy(x, y)));
    }
    // SAFETY: the chunks cover `x`, and each was copied.
    unsafe { y.set_len(x.len()) }
    y
}

/// The numbers of one task: as many whole rows as are near to [`TASK`].
fn task_size(d: usize) -> usize {
    (TASK / d.max(1)).max(1) * d.max(1)
}

/// Copies numbers to where there are none yet.
fn copy<'a>(x: &[f32], y: &'a mut [MaybeUninit<f32>]) -> &'a mut [f32] {
    assert_eq!(x.len(), y.len());
    let y = y.as_mut_ptr().cast::<f32>();
    // SAFETY: `y` has room for as many numbers as `x`, and holds them after the copy.
    unsafe {
        y.copy_from_nonoverlapping(x.as_ptr(), x.len());
        std::slice::from_raw_parts_mut(y, x.len())
    }
}
