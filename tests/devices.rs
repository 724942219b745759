//! The same work on every device: the CPU backends, and whatever GPU, or driver that imitates one, is there.
//!
//! `REFT_TEST_DEVICES=cpu,wgpu` chooses the devices; without it, all that are found are tested.

use reft_train::{
    device::{Device, choose, cpu, devices},
    selftest::{Verdict, compare, measure},
};
use std::env;

fn wanted() -> Vec<Device> {
    match env::var("REFT_TEST_DEVICES") {
        Ok(names) => names.split(',').map(|name| choose(name.trim()).expect("REFT_TEST_DEVICES").0).collect(),
        Err(_) => devices().0,
    }
}

/// Forward pass, gradients, twenty training steps, files, decoding with the cache (Burn's issue 5257) and with it the
/// adapter that the CPU made; gradients where only an adapter is tracked (issue 5162).
#[test]
fn every_device_computes_what_the_cpu_does() {
    let folder = tempfile::tempdir().expect("a folder");
    let own = |device: &Device| folder.path().join(device.name.replace(':', "-"));
    let cpu = cpu();
    let reference = measure(&cpu, &own(&cpu), None).expect("the CPU works");
    assert!(reference.trained_nll < reference.nll && reference.cache_agreement == 1.0);
    let mut failed = Vec::new();
    for device in wanted() {
        let found = measure(&device, &own(&device), Some(&own(&cpu)))
            .unwrap_or_else(|error| panic!("{}: {error}", device.name));
        println!("{} ({}), {:.0} s", device.name, device.adapter, found.seconds);
        for check in compare(&found, &reference) {
            println!("  {:?} {}: {:.1e}", check.verdict, check.name, check.deviation);
            if check.verdict != Verdict::Pass {
                failed.push(format!("{}, {}: {}", device.name, check.name, check.deviation));
            }
        }
        // And the device's adapter on the CPU.
        let back = measure(&cpu, &folder.path().join("back"), Some(&own(&device))).expect("the CPU works");
        let deviation = (back.foreign_nll.expect("measured") - found.trained_nll).abs();
        if deviation > 1e-3 {
            failed.push(format!("{}'s adapter on the CPU: {deviation}", device.name));
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}
