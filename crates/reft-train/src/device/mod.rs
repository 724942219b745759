//! Devices: the backend, chosen by name at run time. No other code names one.

#[cfg(feature = "cuda")]
mod cuda;
mod guard;
mod info;
#[cfg(feature = "wgpu")]
mod wgpu;

pub(crate) use guard::{catch_panic, catch_panic_async};
pub use info::{BACKENDS, Device, DeviceError, DeviceKind, MissingBackend};
use reft_kernels::{AutodiffKernels, Kernels};
use reft_models::{Dtype, Precision, Quant};

/// Work that runs on whichever backend is chosen.
pub trait OnDevice {
    /// Its result.
    type Output;

    /// Runs on a device of the backend `A`; `A::InnerBackend` is the same backend without autodiff.
    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Self::Output;
}

/// A chosen device, ready to use.
#[derive(Debug, Clone)]
pub struct Chosen<D> {
    /// The device as its backend knows it.
    pub device: D,
    /// What is known about it.
    pub info: Device,
    /// Bytes of its own memory that this process holds, if it has its own.
    memory: fn(&D) -> Option<u64>,
}

impl<D> Chosen<D> {
    /// Memory of the device in MiB that this process holds, if it has its own.
    pub fn memory_mb(&self) -> Option<f64> {
        (self.memory)(&self.device).map(|bytes| bytes as f64 / f64::from(1 << 20))
    }

    /// The precision of a model on this device. Without a requested dtype: the dtype of the model's files on a GPU that
    /// supports it, else f32. Matrices stay in the dtype of the files where products widen them.
    ///
    /// # Errors
    /// If the device does not support the dtype or the quantization.
    pub fn precision<B: Kernels<Device = D>>(
        &self,
        dtype: Option<Dtype>,
        quant: Option<Quant>,
        file_dtype: Dtype,
    ) -> Result<Precision, DeviceError> {
        let supported = |dtype: &Dtype| dtype.is_supported::<B>(&self.device);
        let dtype = match dtype {
            Some(dtype) if supported(&dtype) => dtype,
            Some(dtype) => {
                let available: Vec<&str> =
                    Dtype::ALL.iter().filter(|d| supported(d)).map(|d| d.name()).collect();
                return Err(DeviceError::Dtype {
                    device: self.info.name.clone(),
                    found: dtype,
                    available: available.join(", "),
                });
            }
            None if self.info.is_real_gpu() && supported(&file_dtype) => file_dtype,
            None => Dtype::F32,
        };
        match quant.filter(|quant| !quant.is_supported::<B>(&self.device)) {
            Some(found) => Err(DeviceError::Quant { device: self.info.name.clone(), found }),
            None => {
                let stays = B::widens(file_dtype.burn(), dtype.burn());
                Ok(Precision { dtype, matrices: if stays { file_dtype } else { dtype }, quant })
            }
        }
    }
}

/// Every device of every backend, and the backends without devices.
pub fn devices() -> (Vec<Device>, Vec<MissingBackend>) {
    let mut found = Vec::new();
    let mut missing = Vec::new();
    for backend in BACKENDS {
        match of_backend(backend) {
            Ok(devices) => found.extend(devices),
            Err(backend) => missing.push(backend),
        }
    }
    (found, missing)
}

/// The device with this name, and for `auto` the reason for the choice.
///
/// `auto` is CUDA if its driver loads, else a GPU through WGPU, else the CPU; never a software renderer. A backend without
/// an index is its first GPU, or its first device.
///
/// # Errors
/// If there is no such device, its backend was not compiled in, or its driver is missing.
pub fn choose(name: &str) -> Result<(Device, Option<String>), DeviceError> {
    if name == "auto" {
        let (devices, missing) = devices();
        let (device, reason) = auto(&devices, &missing)?;
        return Ok((device, Some(reason)));
    }
    let unknown = || DeviceError::Unknown { found: name.into() };
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => (backend, Some(index.parse::<usize>().map_err(|_| unknown())?)),
        None => (name, None),
    };
    let backend = BACKENDS.into_iter().find(|known| *known == backend).ok_or_else(unknown)?;
    let devices =
        of_backend(backend).map_err(|missing| DeviceError::Missing { found: name.into(), missing })?;
    let available = || devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
    let wanted = match index {
        Some(_) => devices.iter().find(|device| device.name == name),
        None => devices.iter().find(|device| device.is_real_gpu()).or(devices.first()),
    };
    match wanted {
        Some(device) => Ok((device.clone(), None)),
        None => Err(DeviceError::Index { found: name.into(), available: available() }),
    }
}

/// The device that `auto` stands for, and why.
///
/// # Errors
/// If no backend was compiled in.
pub fn auto(devices: &[Device], missing: &[MissingBackend]) -> Result<(Device, String), DeviceError> {
    let gpu = devices.iter().find(|device| device.is_real_gpu());
    let Some(gpu) = gpu else {
        let mut reasons: Vec<String> =
            missing.iter().filter(|m| m.compiled).map(|m| m.reason.clone()).collect();
        let software = devices.iter().filter(|device| device.kind == DeviceKind::SoftwareGpu);
        reasons.extend(software.map(|d| format!("{} is a software renderer ({})", d.name, d.adapter)));
        let reason =
            if reasons.is_empty() { "no GPU backend was compiled in".into() } else { reasons.join("; ") };
        return Ok((cpu()?, reason));
    };
    Ok((gpu.clone(), format!("the first GPU found, {}", gpu.adapter)))
}

/// The CPU, on the preferred CPU backend.
///
/// # Errors
/// If no CPU backend was compiled in.
pub fn cpu() -> Result<Device, DeviceError> {
    let found =
        ["cpu", "ndarray"].into_iter().find_map(|backend| of_backend(backend).ok()?.into_iter().next());
    found.ok_or(DeviceError::NoBackend)
}

/// The devices of a backend.
fn of_backend(backend: &'static str) -> Result<Vec<Device>, MissingBackend> {
    #[allow(unused)]
    let cpu = |name: &str, dtypes| Device {
        name: name.into(),
        adapter: processor(),
        kind: DeviceKind::Cpu,
        driver: None,
        memory: crate::memory::capacity(),
        max_buffer: None,
        dtypes,
    };
    match backend {
        #[cfg(feature = "flex")]
        "cpu" => Ok(vec![cpu("cpu", vec!["f32", "f16", "bf16"])]),
        #[cfg(feature = "ndarray")]
        "ndarray" => Ok(vec![cpu("ndarray", vec!["f32"])]),
        #[cfg(feature = "wgpu")]
        "wgpu" => wgpu::list("wgpu"),
        #[cfg(feature = "vulkan")]
        "vulkan" => wgpu::list("vulkan"),
        #[cfg(feature = "metal")]
        "metal" => wgpu::list("metal"),
        #[cfg(feature = "cuda")]
        "cuda" => cuda::list(),
        other => {
            let feature = if other == "cpu" { "flex" } else { other };
            Err(MissingBackend {
                backend,
                compiled: false,
                reason: format!("this program was built without the {other} backend"),
                hint: match feature {
                    "metal" if !cfg!(target_vendor = "apple") => {
                        "Metal exists on macOS only; use vulkan or wgpu".into()
                    }
                    feature => format!("rebuild it with the feature {feature}"),
                },
            })
        }
    }
}

fn processor() -> String {
    let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_string())
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{}, {threads} threads", model.unwrap_or_else(|| std::env::consts::ARCH.into()))
}

/// Runs work on the device with this name.
///
/// # Errors
/// If there is no such device, its backend was not compiled in, or its driver is missing or fails.
pub fn on_device<W: OnDevice>(name: &str, work: W) -> Result<W::Output, DeviceError> {
    on_chosen(&choose(name)?.0, work)
}

/// Runs work on a device.
///
/// # Errors
/// If its driver fails to start.
pub fn on_chosen<W: OnDevice>(device: &Device, work: W) -> Result<W::Output, DeviceError> {
    let backend = device.name.split(':').next().unwrap_or_default();
    match backend {
        #[cfg(feature = "flex")]
        "cpu" => {
            let on = Chosen { device: Default::default(), info: device.clone(), memory: |_| None };
            Ok(work.run::<burn::backend::Autodiff<burn_flex::Flex>>(&on))
        }
        #[cfg(feature = "ndarray")]
        "ndarray" => {
            let on = Chosen { device: Default::default(), info: device.clone(), memory: |_| None };
            Ok(work.run::<burn::backend::Autodiff<burn_ndarray::NdArray>>(&on))
        }
        #[cfg(feature = "wgpu")]
        "wgpu" | "vulkan" | "metal" => {
            let memory = |device: &_| memory_held!(burn_wgpu::Wgpu, device);
            let on = Chosen { device: wgpu::start(device)?, info: device.clone(), memory };
            Ok(work.run::<burn::backend::Autodiff<burn_wgpu::Wgpu>>(&on))
        }
        #[cfg(feature = "cuda")]
        "cuda" => {
            let memory = |device: &_| memory_held!(burn_cuda::Cuda, device);
            let on = Chosen { device: cuda::start(device)?, info: device.clone(), memory };
            Ok(work.run::<burn::backend::Autodiff<burn_cuda::Cuda>>(&on))
        }
        other => {
            drop(work);
            Err(DeviceError::Unknown { found: other.into() })
        }
    }
}

/// Bytes that a GPU backend has reserved on a device, as told by the client of a tensor.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
macro_rules! memory_held {
    ($backend:ty, $device:expr) => {{
        let tensor = burn::tensor::Tensor::<$backend, 1>::zeros([1], $device).into_primitive().tensor();
        tensor.client.memory_usage().ok().map(|usage| usage.bytes_reserved)
    }};
}
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use memory_held;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_device_is_an_error_that_says_what_to_do() {
        let error = |name: &str| choose(name).expect_err("missing").to_string();
        for unknown in ["tpu", "cpu:x", "wgpu:"] {
            assert_eq!(
                error(unknown),
                format!(
                    "unknown device {unknown:?}; expected auto, cuda, metal, vulkan, wgpu, cpu, ndarray, with an optional index \
                     as in wgpu:0"
                )
            );
        }
        assert_eq!(error("cpu:3"), "device \"cpu:3\": no such index; available: cpu");
        let hint = |backend| match backend {
            "metal" if !cfg!(target_vendor = "apple") => {
                "Metal exists on macOS only; use vulkan or wgpu".into()
            }
            backend => format!("rebuild it with the feature {backend}"),
        };
        for (backend, compiled) in [
            ("ndarray", cfg!(feature = "ndarray")),
            ("cuda", cfg!(feature = "cuda")),
            ("metal", cfg!(feature = "metal")),
        ] {
            if !compiled {
                assert_eq!(
                    error(backend),
                    format!(
                        "device {backend:?}: this program was built without the {backend} backend; {}",
                        hint(backend)
                    )
                );
            }
        }
        let (_, reason) = choose("auto").expect("there is always a CPU");
        assert!(reason.is_some_and(|reason| !reason.is_empty()));
    }
}
