//! `reft devices`: what this program can run on.

use anyhow::Result;
use clap::Args;
use reft_train::device::{Device, Kind, auto, devices};
use serde_json::json;

#[derive(Args)]
pub struct DevicesArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn show(args: &DevicesArgs) -> Result<()> {
    let (found, absent) = devices();
    let (auto, reason) = auto(&found, &absent);
    if args.json {
        println!("{}", json!({ "auto": auto.name, "reason": reason, "devices": found, "absent": absent }));
        return Ok(());
    }
    for device in &found {
        println!("{:<10} {}", device.name, line(device));
    }
    for absent in &absent {
        println!("{:<10} none: {}\n{:<10} hint: {}", absent.backend, absent.reason, "", absent.hint);
    }
    println!("\nauto       {}: {reason}", auto.name);
    Ok(())
}

fn line(device: &Device) -> String {
    let mut parts = vec![device.adapter.clone()];
    parts.push(match device.kind {
        Kind::Cpu => "processor".into(),
        Kind::DiscreteGpu => "GPU".into(),
        Kind::IntegratedGpu => "integrated GPU".into(),
        Kind::VirtualGpu => "virtual GPU".into(),
        Kind::SoftwareGpu => "imitates a GPU on the CPU: right, but slow".into(),
        Kind::Other => "of a kind that its driver does not tell".into(),
    });
    parts.extend(device.driver.clone());
    let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30));
    parts.extend(device.memory.map(|bytes| format!("{} of memory", gib(bytes))));
    parts.extend(device.max_buffer.map(|bytes| format!("buffers up to {}", gib(bytes))));
    parts.push(device.dtypes.join(", "));
    parts.join("; ")
}
