//! `reft devices`: the devices that this program can run on.

use anyhow::Result;
use clap::Args;
use reft_train::device::{Device, DeviceKind, auto, devices};
use serde_json::json;

#[derive(Args)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn show(args: &DevicesArgs) -> Result<()> {
    let (found, missing) = devices();
    let (auto, reason) = auto(&found, &missing)?;
    if args.json {
        say!("{}", json!({ "auto": auto.name, "reason": reason, "devices": found, "absent": missing }));
        return Ok(());
    }
    for device in &found {
        say!("{:<10} {}", device.name, line(device));
    }
    for missing in &missing {
        say!("{:<10} none: {}\n{:<10} hint: {}", missing.backend, missing.reason, "", missing.hint);
    }
    say!("\nauto       {}: {reason}", auto.name);
    Ok(())
}

fn line(device: &Device) -> String {
    let mut parts = vec![device.adapter.clone()];
    parts.push(match device.kind {
        DeviceKind::Cpu => "CPU".into(),
        DeviceKind::DiscreteGpu => "GPU".into(),
        DeviceKind::IntegratedGpu => "integrated GPU".into(),
        DeviceKind::VirtualGpu => "virtual GPU".into(),
        DeviceKind::SoftwareGpu => "software renderer: correct, but slow".into(),
        DeviceKind::Other => "kind not reported by the driver".into(),
    });
    parts.extend(device.driver.clone());
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    parts.extend(device.memory.map(|bytes| format!("{} of memory", gib(bytes))));
    parts.extend(device.max_buffer.map(|bytes| format!("buffers up to {}", gib(bytes))));
    parts.push(device.dtypes.join(", "));
    parts.join("; ")
}
