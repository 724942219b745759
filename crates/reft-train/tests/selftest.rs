//! The numbers that the self-test of every device has to reach: two backends, without code in common, agree on them.
//!
//! After a change of the embedded model, `UPDATE_EXPECTED=1 cargo test -p reft-train --features ndarray --test selftest`
//! writes them anew.

#![cfg(all(feature = "flex", feature = "ndarray"))]

use reft_train::{
    device::choose,
    selftest::{Expected, Measured, Verdict, compare, measure},
};
use std::{env, fs, path::Path};
use tempfile::tempdir;

#[test]
fn two_backends_reach_the_stored_numbers() {
    let folder = tempdir().expect("a folder");
    let run = |name: &str| {
        let device = choose(name).expect("compiled in").0;
        measure(&device, &folder.path().join(name), None).expect("measured")
    };
    let (cpu, ndarray) = (run("cpu"), run("ndarray"));
    if env::var_os("UPDATE_EXPECTED").is_some() {
        // ndarray has no precisions of 16 bits.
        let Expected { other_precisions, .. } = Expected::of(&cpu);
        let mut expected = Expected::of(&ndarray);
        for (precision, results) in other_precisions {
            expected.other_precisions.entry(precision).or_insert(results);
        }
        write(&expected);
        return;
    }
    assert!(cpu.trained_nll < cpu.nll && cpu.cache_agreement == 1.0, "{cpu:?}");
    for found in [&cpu, &ndarray] {
        let checks = compare(found, &cpu);
        let wrong: Vec<_> = checks.iter().filter(|check| check.verdict != Verdict::Pass).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        // GPUs are allowed more than this.
        for (name, most) in
            [("forward", 1e-5), ("gradient", 1e-4), ("training", 1e-3), ("decoded tokens", 0.0)]
        {
            let check = checks.iter().find(|check| check.name == name).expect(name);
            assert!(check.deviation <= most, "{check:?}");
        }
    }
}

#[test]
fn what_is_wrong_is_seen() {
    let folder = tempdir().expect("a folder");
    let device = choose("cpu").expect("compiled in").0;
    let right = measure(&device, folder.path(), None).expect("measured");
    let failed = |change: fn(&mut Measured)| {
        let mut wrong = right.clone();
        change(&mut wrong);
        let checks = compare(&wrong, &right).into_iter();
        checks.filter(|check| check.verdict == Verdict::Fail).map(|check| check.name).collect::<Vec<_>>()
    };
    assert_eq!(failed(|_| {}), [""; 0]);
    assert_eq!(failed(|found| found.nll += 0.1), ["forward"]);
    assert_eq!(failed(|found| found.nll = f64::NAN), ["forward"]);
    assert_eq!(failed(|found| found.gradient.iter_mut().for_each(|x| *x *= 1.2)), ["gradient"]);
    assert_eq!(failed(|found| found.gradient[3] = f32::NAN), ["gradient"]);
    assert_eq!(failed(|found| found.checkpointed.fill(0.0)), ["gradient, checkpointed"]);
    assert_eq!(failed(|found| found.losses[19] *= 1.3), ["training"]);
    assert_eq!(failed(|found| found.losses[7] = f64::NAN), ["training"]);
    assert_eq!(failed(|found| found.losses.truncate(19)), ["training"]);
    assert_eq!(failed(|found| found.kernels[3].1 = 1e-3), ["kernels: attention"]);
    assert_eq!(failed(|found| found.other_precisions[0].1 += 0.1), ["int8 weights"]);
}

/// One line for each field.
fn write(expected: &Expected) {
    let value = serde_json::to_value(expected).expect("JSON");
    let fields = value.as_object().expect("an object").iter();
    let lines: Vec<String> = fields.map(|(name, value)| format!("  {name:?}: {value}")).collect();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny/expected.json");
    fs::write(path, format!("{{\n{}\n}}\n", lines.join(",\n"))).expect("written");
}
