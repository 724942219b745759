//! The operations on GPUs and software renderers through WGPU, beside plain ones on the CPU.
//!
//! There is one test per operation. The backends of the CPU are tested in reft-kernels.
//!
//! If the environment variable `REFT_TEST_DEVICES` is set, it has to name a device of WGPU, as in `cpu,wgpu`.

#![allow(clippy::single_range_in_vec_init)]

#[path = "../crates/reft-kernels/tests/kernels/operations.rs"]
mod operations;

use burn::backend::Autodiff;
use burn_wgpu::{Wgpu, WgpuDevice};
use libtest_mimic::{Arguments, Completion, Trial, run};
use system_tests::wanted_devices;

/// The backend of the plain operations.
type Plain = Autodiff<burn_ndarray::NdArray>;

fn main() {
    let mut args = Arguments::from_args();
    // All share the memory of the device.
    args.test_threads.get_or_insert(1);
    let is_there = wanted_devices().into_iter().any(|device| device.name.starts_with("wgpu"));
    let trial = |(name, test): (&'static str, fn(&WgpuDevice))| {
        Trial::ignorable_test(name, move || {
            if !is_there {
                return Ok(Completion::ignored_with("skipped: no device of WGPU"));
            }
            test(&WgpuDevice::default());
            Ok(Completion::Completed)
        })
    };
    run(&args, operations::all::<Autodiff<Wgpu>>().into_iter().map(trial).collect()).exit();
}
