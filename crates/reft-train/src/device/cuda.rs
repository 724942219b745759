//! CUDA.

use super::{
    guard::catch_panic,
    info::{Device, DeviceError, DeviceKind, MissingBackend},
};
use burn_cuda::CudaDevice;
use cudarc::{driver, nvrtc};
use std::path::Path;

const DRIVER: &str = "install or update NVIDIA's driver";
const TOOLKIT: &str = "install the CUDA toolkit (the backend compiles its kernels with its NVRTC and its headers), and set \
                       CUDA_PATH where it is neither in /usr/local/cuda nor in /opt/cuda; or build with --features vulkan";

pub fn list() -> Result<Vec<Device>, MissingBackend> {
    let absent = |reason: String, hint: &str| MissingBackend {
        backend: "cuda",
        compiled: true,
        reason,
        hint: hint.into(),
    };
    // SAFETY: only tries to load the driver's library, as its documentation requires before any other call.
    if !unsafe { driver::sys::is_culib_present() } {
        return Err(absent("no CUDA driver was found".into(), DRIVER));
    }
    let found = catch_panic(gpus).and_then(|gpus| gpus.map_err(|error| error.to_string()));
    match found {
        Err(reason) => Err(absent(format!("the CUDA driver failed: {reason}"), DRIVER)),
        Ok(gpus) if gpus.is_empty() => Err(absent("the CUDA driver finds no GPU".into(), DRIVER)),
        // SAFETY: only tries to load the library.
        Ok(_) if !unsafe { nvrtc::sys::is_culib_present() } => {
            Err(absent("a CUDA driver and a GPU were found, but not NVRTC".into(), TOOLKIT))
        }
        Ok(_) if !has_headers() => {
            Err(absent("a CUDA driver and a GPU were found, but not CUDA's headers".into(), TOOLKIT))
        }
        Ok(gpus) => Ok(gpus),
    }
}

/// Whether CUDA's headers are where the backend looks for them.
fn has_headers() -> bool {
    let standard = ["/usr/local/cuda", "/opt/cuda", "C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA"];
    let named = std::env::var("CUDA_PATH").ok();
    let folder = named.as_deref().or(standard.into_iter().find(|folder| Path::new(folder).exists()));
    // Without any of these, the backend looks beside a compiler in /usr/bin.
    Path::new(folder.unwrap_or("/usr")).join("include/cuda_runtime.h").exists()
}

fn gpus() -> Result<Vec<Device>, driver::result::DriverError> {
    use driver::result::{device, init};
    init()?;
    let gpus = (0..device::get_count()?).map(|index| {
        let id = device::get(index)?;
        // SAFETY: `id` was returned by the driver.
        let memory = unsafe { device::total_mem(id) }?;
        Ok(Device {
            name: format!("cuda:{index}"),
            adapter: device::get_name(id)?,
            kind: DeviceKind::DiscreteGpu,
            driver: Some("CUDA".into()),
            memory: Some(memory as u64),
            max_buffer: None,
            dtypes: vec!["f32", "f16", "bf16"],
        })
    });
    gpus.collect()
}

/// Starts the device's driver.
pub fn start(device: &Device) -> Result<CudaDevice, DeviceError> {
    use burn::tensor::Tensor;
    let id = CudaDevice::new(device.index());
    let cloned = id.clone();
    device.guard(move || {
        // Waits for the device, so that a failure appears here.
        let _ = Tensor::<burn_cuda::Cuda, 1>::zeros([1], &cloned).into_data();
    })?;
    Ok(id)
}
