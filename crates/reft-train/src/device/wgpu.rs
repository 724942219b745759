//! WGPU: Vulkan, or Metal on macOS.

use super::{
    guard::catch_panic,
    info::{Device, DeviceError, DeviceKind, MissingBackend},
};
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

/// The adapters of a backend; none if its driver fails to list them.
fn adapters(backend: &str) -> Vec<wgpu::Adapter> {
    let backends = wgpu::Backends::from(api(backend));
    let adapters = catch_panic(move || {
        let all = wgpu::InstanceDescriptor::new_without_display_handle();
        let instance = wgpu::Instance::new(wgpu::InstanceDescriptor { backends, ..all });
        pollster::block_on(instance.enumerate_adapters(backends))
    });
    adapters.unwrap_or_default()
}

fn kind(info: &AdapterInfo) -> DeviceKind {
    match info.device_type {
        DeviceType::DiscreteGpu => DeviceKind::DiscreteGpu,
        DeviceType::IntegratedGpu => DeviceKind::IntegratedGpu,
        DeviceType::VirtualGpu => DeviceKind::VirtualGpu,
        DeviceType::Cpu => DeviceKind::SoftwareGpu,
        DeviceType::Other => DeviceKind::Other,
    }
}

/// Size in bytes of an adapter's largest heap of device-local memory, which WGPU does not report.
#[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
fn memory(adapter: &wgpu::Adapter) -> Option<u64> {
    // SAFETY: the handles are only used while the adapter is alive, to read properties.
    unsafe {
        let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
        let instance = vulkan.shared_instance().raw_instance();
        let found = instance.get_physical_device_memory_properties(vulkan.raw_physical_device());
        // Bit 0 is VK_MEMORY_HEAP_DEVICE_LOCAL_BIT.
        let device_local = found.memory_heaps_as_slice().iter().filter(|heap| heap.flags.as_raw() & 1 != 0);
        device_local.map(|heap| heap.size).max()
    }
}

#[cfg(not(any(target_os = "linux", target_os = "windows", target_os = "android")))]
fn memory(_adapter: &wgpu::Adapter) -> Option<u64> {
    None
}

pub fn list(backend: &'static str) -> Result<Vec<Device>, MissingBackend> {
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
                    DeviceKind::SoftwareGpu => crate::memory::capacity(),
                    _ => memory(adapter),
                },
                max_buffer: Some(limits.max_storage_buffer_binding_size),
                dtypes: if half { vec!["f32", "f16"] } else { vec!["f32"] },
            }
        })
        .collect();
    if devices.is_empty() {
        return Err(MissingBackend {
            backend,
            compiled: true,
            reason: format!("no {} driver was found", api(backend)),
            hint:
                "install the driver of your GPU (on Linux its Vulkan driver, such as mesa-vulkan-drivers or \
                   NVIDIA's)"
                    .into(),
        });
    }
    Ok(devices)
}

/// Starts the device's driver.
pub fn start(device: &Device) -> Result<WgpuDevice, DeviceError> {
    let backend = device.name.split(':').next().unwrap_or_default();
    // Burn counts the adapters of each type separately.
    let infos: Vec<AdapterInfo> = adapters(backend).iter().map(wgpu::Adapter::get_info).collect();
    let gone = || DeviceError::Index { found: device.name.clone(), available: "none anymore".into() };
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
    device.guard(move || match backend {
        "vulkan" => drop(init_setup::<Vulkan>(&begun, RuntimeOptions::default())),
        "metal" => drop(init_setup::<Metal>(&begun, RuntimeOptions::default())),
        _ => drop(init_setup::<AutoGraphicsApi>(&begun, RuntimeOptions::default())),
    })?;
    started.push((device.name.clone(), id.clone()));
    Ok(id)
}

/// Devices that were started, by name. A device cannot be started twice.
static STARTED: Mutex<Vec<(String, WgpuDevice)>> = Mutex::new(Vec::new());
