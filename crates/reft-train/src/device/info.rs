//! Devices and why one cannot be used.

use reft_models::{Dtype, Quant};
use serde::Serialize;

/// All backends, in order of preference.
pub const BACKENDS: [&str; 6] = ["cuda", "metal", "vulkan", "wgpu", "cpu", "ndarray"];

/// A device that this program can run on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name on the command line: `cpu`, `wgpu:0`, `cuda:1`.
    pub name: String,
    /// The name of the processor, or of the GPU as reported by its driver.
    pub adapter: String,
    /// What kind of device it is.
    pub kind: DeviceKind,
    /// The driver and its version, if there is one.
    pub driver: Option<String>,
    /// Size of its memory in bytes, if known.
    pub memory: Option<u64>,
    /// Size of its largest buffer in bytes, if limited.
    pub max_buffer: Option<u64>,
    /// Supported dtypes.
    pub dtypes: Vec<&'static str>,
}

/// The kind of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceKind {
    /// The CPU.
    Cpu,
    /// A GPU with its own memory.
    DiscreteGpu,
    /// A GPU that shares the host memory.
    IntegratedGpu,
    /// A GPU, or a part of one, in a virtual machine.
    VirtualGpu,
    /// A software renderer: correct, but slow.
    SoftwareGpu,
    /// Not reported by the driver.
    Other,
}

/// A backend without devices, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingBackend {
    /// The backend, as named by cargo features and `--device`.
    pub backend: &'static str,
    /// Whether the program was built with it.
    pub compiled: bool,
    /// Why there is no device.
    pub reason: String,
    /// What to do about it.
    pub hint: String,
}

/// A device that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No such device.
    #[error("unknown device {found:?}; expected auto, {}, with an optional index as in wgpu:0", BACKENDS.join(", "))]
    Unknown {
        /// What was requested.
        found: String,
    },
    /// No backend.
    #[error(
        "no backend was compiled in; build reft-train with one of the features flex, ndarray, wgpu, cuda"
    )]
    NoBackend,
    /// Its backend has no device.
    #[error("device {found:?}: {}; {}", .missing.reason, .missing.hint)]
    Missing {
        /// What was requested.
        found: String,
        /// The backend.
        missing: MissingBackend,
    },
    /// The backend has no device of this index.
    #[error("device {found:?}: no such index; available: {available}")]
    Index {
        /// What was requested.
        found: String,
        /// The devices of that backend.
        available: String,
    },
    /// The device does not support the dtype.
    #[error("dtype {found}: not supported by {device}; available: auto, {available}")]
    Dtype {
        /// The device.
        device: String,
        /// What was requested.
        found: Dtype,
        /// The supported dtypes.
        available: String,
    },
    /// The device does not support the quantization.
    #[error(
        "quant {found}: not supported by {device}; use int8, or another device (cpu, wgpu, vulkan, metal and cuda \
         support it)"
    )]
    Quant {
        /// The device.
        device: String,
        /// What was requested.
        found: Quant,
    },
    /// The driver failed.
    #[error(
        "device {found:?}: its driver failed to start: {reason}\nupdate the driver, or choose another device: see `reft devices`"
    )]
    Failed {
        /// What was requested.
        found: String,
        /// The driver's message.
        reason: String,
    },
}

impl Device {
    /// Whether it uses host memory, like the CPU and software renderers.
    pub fn uses_host_memory(&self) -> bool {
        matches!(self.kind, DeviceKind::Cpu | DeviceKind::SoftwareGpu)
    }

    /// Whether it is a GPU and not a software renderer.
    pub fn is_real_gpu(&self) -> bool {
        matches!(self.kind, DeviceKind::DiscreteGpu | DeviceKind::IntegratedGpu | DeviceKind::VirtualGpu)
    }

    /// Starts the driver, whose panics become errors.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(super) fn guard<T>(
        &self,
        start: impl FnOnce() -> T + std::panic::UnwindSafe,
    ) -> Result<T, DeviceError> {
        super::guard::catch_panic(start)
            .map_err(|reason| DeviceError::Failed { found: self.name.clone(), reason })
    }

    /// The index in its name.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub(super) fn index(&self) -> usize {
        self.name.split_once(':').and_then(|(_, index)| index.parse().ok()).unwrap_or_default()
    }
}
