//! The backend, chosen at run time. The only place that names one.

use burn::tensor::backend::{AutodiffBackend, Backend};
use reft_models::{Dtype, Precision, Quant};
use serde::Serialize;

/// Work that runs on whatever backend was chosen.
pub trait OnDevice {
    /// What it gives.
    type Output;

    /// Runs on a device of the backend `A`; `A::InnerBackend` is the same without gradients.
    fn run<A: AutodiffBackend>(self, on: &Chosen<A::Device>) -> Self::Output;
}

/// A device that was chosen and started.
#[derive(Debug, Clone)]
pub struct Chosen<D> {
    /// As its backend calls it.
    pub device: D,
    /// What is known of it.
    pub info: Device,
    /// Bytes of its own memory that this process holds, where it has its own.
    memory: fn(&D) -> Option<u64>,
}

impl<D> Chosen<D> {
    /// Memory of the device in MiB that this process holds, where it has its own.
    pub fn memory_mb(&self) -> Option<f64> {
        (self.memory)(&self.device).map(|bytes| bytes as f64 / f64::from(1 << 20))
    }

    /// How a model is held on the device; without a wish for a type, `of_files` on a GPU that computes with it, else f32.
    ///
    /// # Errors
    /// If the device does not compute with that type, or has no kernels for such quantised weights.
    pub fn precision<B: Backend<Device = D>>(
        &self,
        dtype: Option<Dtype>,
        quant: Option<Quant>,
        of_files: Dtype,
    ) -> Result<Precision, DeviceError> {
        let usable = |dtype: &Dtype| dtype.is_supported::<B>(&self.device);
        let dtype = match dtype {
            Some(dtype) if usable(&dtype) => dtype,
            Some(dtype) => {
                let there: Vec<&str> = Dtype::ALL.iter().filter(|d| usable(d)).map(|d| d.name()).collect();
                return Err(DeviceError::Dtype {
                    device: self.info.name.clone(),
                    found: dtype,
                    there: there.join(", "),
                });
            }
            None if self.info.is_real_gpu() && usable(&of_files) => of_files,
            None => Dtype::F32,
        };
        match quant.filter(|quant| !quant.is_supported::<B>(&self.device)) {
            Some(found) => Err(DeviceError::Quant { device: self.info.name.clone(), found }),
            None => Ok(Precision { dtype, quant }),
        }
    }
}

/// A device that this program can run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// What `--device` calls it: `cpu`, `wgpu:0`, `cuda:1`.
    pub name: String,
    /// The name of the processor, or of the adapter as its driver tells it.
    pub adapter: String,
    /// What it is.
    pub kind: Kind,
    /// The driver and its version, where there is one.
    pub driver: Option<String>,
    /// Bytes of its memory, where they can be known.
    pub memory: Option<u64>,
    /// Bytes of the largest buffer, where there is a limit.
    pub max_buffer: Option<u64>,
    /// Types of numbers that it computes with.
    pub dtypes: Vec<&'static str>,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The processor itself.
    Cpu,
    /// A graphics processor with memory of its own.
    DiscreteGpu,
    /// A graphics processor that shares the computer's memory.
    IntegratedGpu,
    /// A part of a graphics processor that a virtual machine sees.
    VirtualGpu,
    /// A driver that only imitates a graphics processor, on the CPU: right, but slow.
    SoftwareGpu,
    /// What the driver does not tell.
    Other,
}

/// A backend that offers no device, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// The backend, as features and `--device` name it.
    pub backend: &'static str,
    /// Whether the program has the backend at all.
    pub compiled: bool,
    /// Why.
    pub reason: String,
    /// What to do.
    pub hint: String,
}

/// A device that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such device.
    #[error("device {found:?}: expected auto, {}; an index may follow, as in wgpu:0", BACKENDS.join(", "))]
    Unknown {
        /// What was asked for.
        found: String,
    },
    /// Its backend is not there.
    #[error("device {found:?}: {}; {}", .absent.reason, .absent.hint)]
    Absent {
        /// What was asked for.
        found: String,
        /// Why not.
        absent: Absent,
    },
    /// The backend has no device of this index.
    #[error("device {found:?}: there is no such index; there are {there}")]
    Index {
        /// What was asked for.
        found: String,
        /// The devices of that backend.
        there: String,
    },
    /// It does not compute with that type.
    #[error("dtype {found}: {device} does not compute with it; there are auto, {there}")]
    Dtype {
        /// The device.
        device: String,
        /// What was asked for.
        found: Dtype,
        /// What there is.
        there: String,
    },
    /// It has no kernels for such weights.
    #[error(
        "quant {found}: {device} has no kernels for it; use int8, or another device (cpu, wgpu, vulkan, metal and cuda \
         have them)"
    )]
    Quant {
        /// The device.
        device: String,
        /// What was asked for.
        found: Quant,
    },
    /// The driver failed.
    #[error(
        "device {found:?}: its driver failed to start: {reason}\nupdate the driver, or choose another device: see `reft devices`"
    )]
    Failed {
        /// What was asked for.
        found: String,
        /// What the driver said.
        reason: String,
    },
}

/// All backends, the preferred one first.
pub const BACKENDS: [&str; 6] = ["cuda", "metal", "vulkan", "wgpu", "cpu", "ndarray"];

/// Every device of every compiled backend, and the backends that have none.
pub fn devices() -> (Vec<Device>, Vec<Absent>) {
    let mut found = Vec::new();
    let mut absent = Vec::new();
    for backend in BACKENDS {
        match of_backend(backend) {
            Ok(devices) => found.extend(devices),
            Err(reason) => absent.push(reason),
        }
    }
    (found, absent)
}

/// The device that a name stands for, and for `auto` why.
///
/// `auto` is CUDA if it loads, else a real GPU through WGPU, else the CPU; never a driver that only imitates a GPU. A
/// backend without an index is its first real GPU, or its first device.
///
/// # Errors
/// If there is no such device, its backend was not compiled in, or its driver is absent.
pub fn choose(name: &str) -> Result<(Device, Option<String>), DeviceError> {
    if name == "auto" {
        let (devices, absent) = devices();
        let (device, reason) = auto(&devices, &absent);
        return Ok((device, Some(reason)));
    }
    let unknown = || DeviceError::Unknown { found: name.into() };
    let (backend, index) = match name.split_once(':') {
        Some((backend, index)) => (backend, Some(index.parse::<usize>().map_err(|_| unknown())?)),
        None => (name, None),
    };
    let backend = BACKENDS.into_iter().find(|known| *known == backend).ok_or_else(unknown)?;
    let devices = of_backend(backend).map_err(|absent| DeviceError::Absent { found: name.into(), absent })?;
    let there = || devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>().join(", ");
    let wanted = match index {
        Some(_) => devices.iter().find(|device| device.name == name),
        None => devices.iter().find(|device| device.is_real_gpu()).or(devices.first()),
    };
    match wanted {
        Some(device) => Ok((device.clone(), None)),
        None => Err(DeviceError::Index { found: name.into(), there: there() }),
    }
}

/// What `auto` stands for among the devices found, and why.
pub fn auto(devices: &[Device], absent: &[Absent]) -> (Device, String) {
    let gpu = devices.iter().find(|device| device.is_real_gpu());
    let Some(gpu) = gpu else {
        let mut reasons: Vec<String> =
            absent.iter().filter(|a| a.compiled).map(|a| a.reason.clone()).collect();
        let software = devices.iter().filter(|device| device.kind == Kind::SoftwareGpu);
        reasons.extend(software.map(|d| format!("{} only imitates a GPU ({})", d.name, d.adapter)));
        let reason =
            if reasons.is_empty() { "no GPU backend was compiled in".into() } else { reasons.join("; ") };
        return (cpu(), reason);
    };
    (gpu.clone(), format!("the first GPU found, {}", gpu.adapter))
}

/// The processor itself.
///
/// # Panics
/// If the program was built without any CPU backend, which does not compile.
pub fn cpu() -> Device {
    let found = ["cpu", "ndarray"].into_iter().find_map(|backend| of_backend(backend).ok());
    found.expect("a CPU backend").remove(0)
}

#[cfg(not(any(feature = "flex", feature = "ndarray")))]
compile_error!("one of the features `flex` and `ndarray` is needed");

impl Device {
    /// Whether its memory is the computer's, shared with everything else.
    pub fn is_cpu(&self) -> bool {
        matches!(self.kind, Kind::Cpu | Kind::SoftwareGpu)
    }

    /// Whether its backend packs two weights of 4 bits into a byte.
    pub fn packs_int4(&self) -> bool {
        self.kind != Kind::Cpu
    }

    fn is_real_gpu(&self) -> bool {
        matches!(self.kind, Kind::DiscreteGpu | Kind::IntegratedGpu | Kind::VirtualGpu)
    }

    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    fn index(&self) -> usize {
        self.name.split_once(':').and_then(|(_, index)| index.parse().ok()).unwrap_or_default()
    }
}

/// The devices of a backend.
fn of_backend(backend: &'static str) -> Result<Vec<Device>, Absent> {
    #[allow(unused)]
    let cpu = |name: &str, dtypes| Device {
        name: name.into(),
        adapter: processor(),
        kind: Kind::Cpu,
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
        "wgpu" => wgpu_devices::list("wgpu"),
        #[cfg(feature = "vulkan")]
        "vulkan" => wgpu_devices::list("vulkan"),
        #[cfg(feature = "metal")]
        "metal" => wgpu_devices::list("metal"),
        #[cfg(feature = "cuda")]
        "cuda" => cuda_devices::list(),
        other => {
            let feature = if other == "cpu" { "flex" } else { other };
            Err(Absent {
                backend,
                compiled: false,
                reason: format!("this program was built without the backend {other}"),
                hint: format!("build it with --features {feature}"),
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

/// Runs work on the device of that name.
///
/// # Errors
/// If there is no such device, it was not compiled in, or its driver is absent or fails.
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
            let on = Chosen { device: wgpu_devices::start(device)?, info: device.clone(), memory };
            Ok(work.run::<burn::backend::Autodiff<burn_wgpu::Wgpu>>(&on))
        }
        #[cfg(feature = "cuda")]
        "cuda" => {
            let memory = |device: &_| memory_held!(burn_cuda::Cuda, device);
            let on = Chosen { device: cuda_devices::start(device)?, info: device.clone(), memory };
            Ok(work.run::<burn::backend::Autodiff<burn_cuda::Cuda>>(&on))
        }
        other => {
            drop(work);
            Err(DeviceError::Unknown { found: other.into() })
        }
    }
}

/// What a GPU backend has reserved on a device. A tensor leads to the client that knows.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
macro_rules! memory_held {
    ($backend:ty, $device:expr) => {{
        let tensor = burn::tensor::Tensor::<$backend, 1>::zeros([1], $device).into_primitive().tensor();
        tensor.client.memory_usage().ok().map(|usage| usage.bytes_reserved)
    }};
}
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use memory_held;

/// Calls what may panic within a driver's crate, and gives the first line of its message instead.
pub(crate) fn without_panic<T>(call: impl FnOnce() -> T + std::panic::UnwindSafe) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = std::panic::catch_unwind(call);
    std::panic::set_hook(hook);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("no message");
        text.lines().next().unwrap_or_default().into()
    })
}

#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn guarded<T>(device: &Device, start: impl FnOnce() -> T + std::panic::UnwindSafe) -> Result<T, DeviceError> {
    without_panic(start).map_err(|reason| DeviceError::Failed { found: device.name.clone(), reason })
}

/// WGPU: Vulkan, Metal, DirectX 12.
#[cfg(feature = "wgpu")]
mod wgpu_devices {
    use super::{Absent, Device, DeviceError, Kind, guarded, without_panic};
    use burn_wgpu::{
        RuntimeOptions, WgpuDevice,
        graphics::{AutoGraphicsApi, GraphicsApi, Metal, Vulkan},
        init_setup,
    };
    use std::sync::{Mutex, PoisonError};
    use wgpu::{AdapterInfo, DeviceType};

    fn api(backend: &str) -> wgpu::Backend {
        match backend {
            "vulkan" => Vulkan::backend(),
            "metal" => Metal::backend(),
            _ => AutoGraphicsApi::backend(),
        }
    }

    /// The adapters of a backend; none if its driver fails on being asked.
    fn adapters(backend: &str) -> Vec<wgpu::Adapter> {
        let backends = wgpu::Backends::from(api(backend));
        let adapters = without_panic(move || {
            let all = wgpu::InstanceDescriptor::new_without_display_handle();
            let instance = wgpu::Instance::new(wgpu::InstanceDescriptor { backends, ..all });
            pollster::block_on(instance.enumerate_adapters(backends))
        });
        adapters.unwrap_or_default()
    }

    fn kind(info: &AdapterInfo) -> Kind {
        match info.device_type {
            DeviceType::DiscreteGpu => Kind::DiscreteGpu,
            DeviceType::IntegratedGpu => Kind::IntegratedGpu,
            DeviceType::VirtualGpu => Kind::VirtualGpu,
            DeviceType::Cpu => Kind::SoftwareGpu,
            DeviceType::Other => Kind::Other,
        }
    }

    /// Bytes of the largest part of an adapter's own memory, which WGPU itself does not tell.
    #[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
    fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
        // SAFETY: the handles are used while the adapter lives, and only to read properties.
        unsafe {
            let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
            let instance = vulkan.shared_instance().raw_instance();
            let found = instance.get_physical_device_memory_properties(vulkan.raw_physical_device());
            // The first bit marks memory of the device itself.
            let own = found.memory_heaps_as_slice().iter().filter(|heap| heap.flags.as_raw() & 1 != 0);
            own.map(|heap| heap.size).max()
        }
    }

    #[cfg(not(any(target_os = "linux", target_os = "windows", target_os = "android")))]
    fn memory(_adapter: &wgpu::Adapter) -> Option<u64> {
        None
    }

    pub fn list(backend: &'static str) -> Result<Vec<Device>, Absent> {
        let devices: Vec<Device> = adapters(backend)
            .iter()
            .enumerate()
            .map(|(index, adapter)| {
                let (info, limits) = (adapter.get_info(), adapter.limits());
                let half = adapter.features().contains(wgpu::Features::SHADER_F16);
                Device {
                    name: format!("{backend}:{index}"),
                    adapter: info.name.clone(),
                    kind: kind(&info),
                    driver: Some(
                        format!("{} {} ({})", info.driver, info.driver_info, info.backend).trim().into(),
                    ),
                    memory: match kind(&info) {
                        Kind::SoftwareGpu => crate::memory::capacity(),
                        _ => memory(adapter),
                    },
                    max_buffer: Some(limits.max_storage_buffer_binding_size),
                    dtypes: if half { vec!["f32", "f16"] } else { vec!["f32"] },
                }
            })
            .collect();
        if devices.is_empty() {
            return Err(Absent {
                backend,
                compiled: true,
                reason: format!("no {:?} driver was found", api(backend)),
                hint: "install the driver of your GPU (on Linux its Vulkan driver, such as mesa-vulkan-drivers or \
                       NVIDIA's)"
                    .into(),
            });
        }
        Ok(devices)
    }

    /// Starts the device's driver.
    pub fn start(device: &Device) -> Result<WgpuDevice, DeviceError> {
        let backend = device.name.split(':').next().unwrap_or_default();
        // Burn counts adapters of each type apart.
        let infos: Vec<AdapterInfo> = adapters(backend).iter().map(wgpu::Adapter::get_info).collect();
        let gone = || DeviceError::Index { found: device.name.clone(), there: "none any more".into() };
        let wanted = infos.get(device.index()).ok_or_else(gone)?.device_type;
        let nth = infos[..device.index()].iter().filter(|info| info.device_type == wanted).count();
        let id = match wanted {
            DeviceType::DiscreteGpu => WgpuDevice::DiscreteGpu(nth),
            DeviceType::IntegratedGpu => WgpuDevice::IntegratedGpu(nth),
            DeviceType::VirtualGpu => WgpuDevice::VirtualGpu(nth),
            DeviceType::Cpu => WgpuDevice::Cpu,
            DeviceType::Other => WgpuDevice::DefaultDevice,
        };
        let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
        match started.iter().find(|(_, known)| *known == id) {
            Some((name, _)) if *name == device.name => return Ok(id),
            Some((name, _)) => {
                let reason = format!("this process has already started it as {name}");
                return Err(DeviceError::Failed { found: device.name.clone(), reason });
            }
            None => {}
        }
        let begun = id.clone();
        guarded(device, move || match backend {
            "vulkan" => drop(init_setup::<Vulkan>(&begun, RuntimeOptions::default())),
            "metal" => drop(init_setup::<Metal>(&begun, RuntimeOptions::default())),
            _ => drop(init_setup::<AutoGraphicsApi>(&begun, RuntimeOptions::default())),
        })?;
        started.push((device.name.clone(), id.clone()));
        Ok(id)
    }

    /// Devices that were started, by name: none can be started twice.
    static STARTED: Mutex<Vec<(String, WgpuDevice)>> = Mutex::new(Vec::new());
}

/// CUDA.
#[cfg(feature = "cuda")]
mod cuda_devices {
    use super::{Absent, Device, DeviceError, Kind, guarded, without_panic};
    use burn_cuda::CudaDevice;
    use cudarc::{driver, nvrtc};
    use std::path::Path;

    const DRIVER: &str = "install or update NVIDIA's driver";
    const TOOLKIT: &str = "install the CUDA toolkit (the backend compiles its kernels with its NVRTC and its headers), and set \
                           CUDA_PATH where it is neither in /usr/local/cuda nor in /opt/cuda; or build with --features vulkan";

    pub fn list() -> Result<Vec<Device>, Absent> {
        let absent = |reason: String, hint: &str| Absent {
            backend: "cuda",
            compiled: true,
            reason,
            hint: hint.into(),
        };
        // SAFETY: loads the driver's library to see whether it is there, as its documentation asks before any other call.
        if !unsafe { driver::sys::is_culib_present() } {
            return Err(absent("no CUDA driver was found".into(), DRIVER));
        }
        let found = without_panic(gpus).and_then(|gpus| gpus.map_err(|error| error.to_string()));
        match found {
            Err(reason) => Err(absent(format!("the CUDA driver failed: {reason}"), DRIVER)),
            Ok(gpus) if gpus.is_empty() => Err(absent("the CUDA driver finds no GPU".into(), DRIVER)),
            // SAFETY: loads the library to see whether it is there.
            Ok(_) if !unsafe { nvrtc::sys::is_culib_present() } => {
                Err(absent("a CUDA driver and a GPU were found, but not NVRTC".into(), TOOLKIT))
            }
            Ok(_) if !has_headers() => {
                Err(absent("a CUDA driver and a GPU were found, but not CUDA's headers".into(), TOOLKIT))
            }
            Ok(gpus) => Ok(gpus),
        }
    }

    /// Whether the headers are where the backend looks for them.
    fn has_headers() -> bool {
        let standard = ["/usr/local/cuda", "/opt/cuda", "C:/Program Files/NVIDIA GPU Computing Toolkit/CUDA"];
        let named = std::env::var("CUDA_PATH").ok();
        let folder = named.as_deref().or(standard.into_iter().find(|folder| Path::new(folder).exists()));
        // Without any of them, the backend looks beside a compiler in /usr/bin.
        Path::new(folder.unwrap_or("/usr")).join("include/cuda_runtime.h").exists()
    }

    fn gpus() -> Result<Vec<Device>, driver::result::DriverError> {
        use driver::result::{device, init};
        init()?;
        let gpus = (0..device::get_count()?).map(|index| {
            let id = device::get(index)?;
            // SAFETY: `id` is a device that the driver has just named.
            let memory = unsafe { device::total_mem(id) }?;
            Ok(Device {
                name: format!("cuda:{index}"),
                adapter: device::get_name(id)?,
                kind: Kind::DiscreteGpu,
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
        guarded(device, move || {
            // Waits for the device, so that what fails fails here.
            let _ = Tensor::<burn_cuda::Cuda, 1>::zeros([1], &cloned).into_data();
        })?;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_an_error_that_says_what_to_do() {
        let error = |name: &str| choose(name).expect_err("not there").to_string();
        for unknown in ["tpu", "cpu:x", "wgpu:"] {
            assert!(error(unknown).contains("expected auto, cuda, metal"), "{}", error(unknown));
        }
        assert!(error("cpu:3").contains("no such index; there are cpu"), "{}", error("cpu:3"));
        for (backend, compiled) in [
            ("ndarray", cfg!(feature = "ndarray")),
            ("cuda", cfg!(feature = "cuda")),
            ("metal", cfg!(feature = "metal")),
        ] {
            if !compiled {
                assert!(error(backend).contains(&format!("--features {backend}")), "{}", error(backend));
            }
        }
        let (_, reason) = choose("auto").expect("there is always a CPU");
        assert!(reason.is_some_and(|reason| !reason.is_empty()));
    }
}
