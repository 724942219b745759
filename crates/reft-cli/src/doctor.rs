//! `reft doctor`: whether the devices compute correctly.

use anyhow::{Context, Result, bail};
use clap::Args;
use reft_train::{
    device::{Device, choose, cpu, devices},
    selftest::{Check, Verdict, compare, measure},
};
use serde::{Deserialize, Serialize};
use std::{env::current_exe, process::Command};

#[derive(Args)]
pub struct DoctorArgs {
    /// Test only this device
    #[arg(long)]
    device: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The findings on one device.
#[derive(Serialize, Deserialize)]
struct Findings {
    device: String,
    adapter: String,
    checks: Vec<Check>,
    error: Option<String>,
    seconds: f64,
}

impl Findings {
    fn failed(device: &Device, error: String) -> Self {
        let (device, adapter) = (device.name.clone(), device.adapter.clone());
        Self { device, adapter, checks: Vec::new(), error: Some(error), seconds: 0.0 }
    }

    fn is_bad(&self) -> bool {
        self.error.is_some() || self.checks.iter().any(|check| check.verdict == Verdict::Fail)
    }
}

pub fn examine(args: &DoctorArgs) -> Result<()> {
    let mut all = Vec::new();
    let mut record = |findings: Findings| {
        if !args.json {
            show(&findings);
        }
        all.push(findings);
    };
    match &args.device {
        Some(name) => record(examine_here(&choose(name)?.0)?),
        None => {
            for device in devices().0 {
                record(examine_in_process(&device)?);
            }
        }
    }
    if args.json {
        say!("{}", serde_json::to_string_pretty(&all)?);
    }
    let failed: Vec<&str> = all.iter().filter(|f| f.is_bad()).map(|f| f.device.as_str()).collect();
    match failed.as_slice() {
        [] => Ok(()),
        names => bail!("failed: {}", names.join(", ")),
    }
}

/// Tests a device in this process.
fn examine_here(device: &Device) -> Result<Findings> {
    let folder = tempfile::tempdir()?;
    let own = |name: &str| folder.path().join(name);
    let reference = measure(&cpu()?, &own("reference"), None)?;
    Ok(match measure(device, &own("device"), Some(&own("reference"))) {
        Ok(found) => Findings {
            device: device.name.clone(),
            adapter: device.adapter.clone(),
            checks: compare(&found, &reference),
            error: None,
            seconds: found.seconds,
        },
        Err(error) => Findings::failed(device, error.to_string()),
    })
}

/// Tests a device in a separate process, which a crashing driver may take down.
fn examine_in_process(device: &Device) -> Result<Findings> {
    let program = current_exe().context("the path of this program")?;
    let output = Command::new(program).args(["doctor", "--json", "--device", &device.name]).output()?;
    Ok(match serde_json::from_slice::<Vec<Findings>>(&output.stdout).ok().and_then(|mut all| all.pop()) {
        Some(findings) => findings,
        None => {
            let stderr = String::from_utf8_lossy(&output.stderr);
            let last = stderr.lines().last().unwrap_or("no message");
            Findings::failed(device, format!("the test crashed ({}): {last}", output.status))
        }
    })
}

fn tolerance(value: f64) -> String {
    if value == 0.0 { "0".into() } else { format!("{value:e}") }
}

fn show(findings: &Findings) {
    say!("{} ({})", findings.device, findings.adapter);
    for check in &findings.checks {
        let verdict = match check.verdict {
            Verdict::Pass => "PASS",
            Verdict::Warn => "WARN",
            Verdict::Fail => "FAIL",
        };
        say!(
            "  {verdict}  {:<26} deviation {:.1e}, tolerance {}",
            check.name,
            check.deviation,
            tolerance(check.tolerance)
        );
        if let Some(hint) = &check.hint {
            say!("        hint: {hint}");
        }
    }
    match &findings.error {
        Some(error) => say!("  FAIL  {error}\n        hint: update the driver, or use another device"),
        None => say!("  {:.1} s", findings.seconds),
    }
}
