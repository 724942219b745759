//! The operations on GPUs and software renderers through WGPU, beside plain ones on the CPU.
//!
//! There is one test per operation. The backends of the CPU are tested in reft-kernels.
//!
//! | variable | meaning |
//! |---|---|
//! | `REFT_TEST_DEVICES` | if set, it has to name a device of WGPU, as in `cpu,wgpu` |
//! | `REFT_TEST_SLOW` | if set, software renderers also run what has products of many shapes, which takes half an hour |

#![allow(clippy::single_range_in_vec_init)]

#[path = "../crates/reft-kernels/tests/kernels/operations.rs"]
mod operations;

use burn::backend::Autodiff;
use burn_wgpu::{Wgpu, WgpuDevice};
use libtest_mimic::{Arguments, Completion, Trial, run};
use reft_train::device::DeviceKind;
use std::env;
use system_tests::wanted_devices;

/// The backend of the plain operations.
type Plain = Autodiff<burn_ndarray::NdArray>;

const WITHOUT_PRODUCTS: [&str; 6] = ["rms_norm", "layer_norm", "swiglu", "gelu", "rotary", "write_rows"];

fn main() {
    let mut args = Arguments::from_args();
    // All share the memory of the device.
    args.test_threads.get_or_insert(1);
    let found = wanted_devices().into_iter().find(|device| device.name.starts_with("wgpu"));
    let kind = found.map(|device| device.kind);
    let is_slow = kind == Some(DeviceKind::SoftwareGpu) && env::var_os("REFT_TEST_SLOW").is_none();
    let trial = |(name, test): (&'static str, fn(&WgpuDevice))| {
        Trial::ignorable_test(name, move || {
            if kind.is_none() {
                return Ok(Completion::ignored_with("skipped: no device of WGPU"));
            }
            // For each shape of a product, Burn compiles and measures several kernels.
            if is_slow && !WITHOUT_PRODUCTS.contains(&name) {
                return Ok(Completion::ignored_with(
                    "skipped: slow on a software renderer; set REFT_TEST_SLOW=1",
                ));
            }
            test(&WgpuDevice::default());
            Ok(Completion::Completed)
        })
    };
    run(&args, operations::all::<Autodiff<Wgpu>>().into_iter().map(trial).collect()).exit();
}
