//! Sums and maxima over the units of a workgroup, through its shared memory.

use burn_cubecl::cubecl;
use cubecl::prelude::*;

/// Smaller than every score.
pub(super) const LOWEST: f32 = -1e30;

/// The sum of one number of each unit. Every unit of the workgroup has to call it.
#[cube]
pub(super) fn sum(number: f32, #[comptime] units: u32) -> f32 {
    let mut numbers = SharedMemory::<f32>::new(comptime!(units as usize));
    numbers[UNIT_POS as usize] = number;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2()) {
        let half = comptime!(units >> (step + 1));
        if UNIT_POS < half {
            let other = numbers[(UNIT_POS + half) as usize];
            numbers[UNIT_POS as usize] += other;
        }
        sync_cube();
    }
    let total = numbers[0];
    // The memory may be used again.
    sync_cube();
    total
}

/// The largest of one number of each unit. Every unit of the workgroup has to call it.
#[cube]
pub(super) fn largest(number: f32, #[comptime] units: u32) -> f32 {
    let mut numbers = SharedMemory::<f32>::new(comptime!(units as usize));
    numbers[UNIT_POS as usize] = number;
    sync_cube();
    #[unroll]
    for step in 0..comptime!(units.ilog2()) {
        let half = comptime!(units >> (step + 1));
        if UNIT_POS < half {
            let other = numbers[(UNIT_POS + half) as usize];
            numbers[UNIT_POS as usize] = max(numbers[UNIT_POS as usize], other);
        }
        sync_cube();
    }
    let result = numbers[0];
    sync_cube();
    result
}

/// The sum of the numbers of a vector.
#[cube]
pub(super) fn total<N: Size>(vector: Vector<f32, N>) -> f32 {
    let mut total = f32::new(0.0);
    #[unroll]
    for lane in 0..N::value() {
        total += vector[lane];
    }
    total
}
