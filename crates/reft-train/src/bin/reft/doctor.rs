//! `reft doctor`: whether the devices compute what they should.

use anyhow::{Result, bail};
use clap::Args;
use reft_train::{
    device::{Device, choose, cpu, devices},
    selftest::{Check, Verdict, compare, measure},
};
use serde_json::json;

#[derive(Args)]
pub struct DoctorArgs {
    /// Test this device only
    #[arg(long)]
    device: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn examine(args: &DoctorArgs) -> Result<()> {
    let cpu = cpu();
    let folder = tempfile::tempdir()?;
    let own = |device: &Device| folder.path().join(device.name.replace(':', "-"));
    let wanted = match &args.device {
        Some(name) => vec![choose(name)?.0],
        None => devices().0,
    };
    let reference = measure(&cpu, &own(&cpu), None)?;
    let mut all = Vec::new();
    let mut failed = Vec::new();
    for device in &wanted {
        if !args.json {
            println!("{} ({})", device.name, device.adapter);
        }
        let (checks, error, seconds) = match measure(device, &own(device), Some(&own(&cpu))) {
            Ok(found) => (compare(&found, &reference), None, found.seconds),
            Err(error) => (Vec::new(), Some(error.to_string()), 0.0),
        };
        let bad = error.is_some() || checks.iter().any(|check| check.verdict == Verdict::Fail);
        if bad {
            failed.push(device.name.clone());
        }
        if args.json {
            all.push(json!({ "device": device, "checks": checks, "error": error, "seconds": seconds }));
            continue;
        }
        checks.iter().for_each(show);
        match error {
            Some(error) => println!("  FAIL  {error}\n        hint: choose another device"),
            None => println!("  {seconds:.1} s"),
        }
    }
    if args.json {
        println!("{}", json!({ "reference": cpu, "devices": all }));
    }
    match failed.as_slice() {
        [] => Ok(()),
        names => bail!("not fit for use: {}", names.join(", ")),
    }
}

fn show(check: &Check) {
    let verdict = match check.verdict {
        Verdict::Pass => "PASS",
        Verdict::Warn => "WARN",
        Verdict::Fail => "FAIL",
    };
    println!(
        "  {verdict}  {:<23} deviation {:.1e}, tolerance {:.0e}",
        check.name, check.deviation, check.tolerance
    );
    if let Some(hint) = check.hint {
        println!("        hint: {hint}");
    }
}
