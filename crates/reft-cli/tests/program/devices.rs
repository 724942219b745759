//! What the program says about devices.

use super::support::*;
use serde_json::Value;

#[test]
fn devices_are_listed_with_what_is_missing() {
    let folder = workplace();
    let text = stdout(&reft(folder.path(), &["devices", "--json"]));
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let names = |key: &str, name: &str| -> Vec<String> {
        let list = value[key].as_array().expect("a list").iter();
        list.map(|entry| entry[name].as_str().expect("text").to_string()).collect()
    };
    let (found, absent) = (names("devices", "name"), names("absent", "backend"));
    assert!(found.contains(&"cpu".to_string()), "{found:?}");
    for backend in ["cuda", "metal", "vulkan", "wgpu", "cpu", "ndarray"] {
        let there = found.iter().any(|name| name.split(':').next() == Some(backend));
        assert!(there != absent.iter().any(|name| name == backend), "{backend}: {text}");
    }
    assert!(names("absent", "hint").iter().all(|hint| !hint.is_empty()), "{text}");
    let auto = value["auto"].as_str().expect("text");
    assert!(found.iter().any(|name| name == auto), "{auto} is not in {found:?}");

    // The list for people has the same, line by line.
    let text = stdout(&reft(folder.path(), &["devices"]));
    let lines: Vec<&str> = text.lines().collect();
    for (idx, name) in found.iter().enumerate() {
        assert!(lines[idx].starts_with(&format!("{name:<10} ")), "{text}");
    }
    for (missing, lines) in
        value["absent"].as_array().expect("a list").iter().zip(lines[found.len()..].chunks(2))
    {
        let part = |key: &str| missing[key].as_str().expect("text");
        let expected = [
            format!("{:<10} none: {}", part("backend"), part("reason")),
            format!("{:<10} hint: {}", "", part("hint")),
        ];
        assert_eq!(lines, expected);
    }
    let reason = value["reason"].as_str().expect("text");
    assert_eq!(lines[lines.len() - 2..], [String::new(), format!("auto       {auto}: {reason}")]);
    // The rest depends on the machine and on the features of the build.
    let cpu = lines.iter().find(|line| line.starts_with("cpu ")).expect("a line");
    let hardware = [(r"^cpu +.*; CPU; [^;]+; f", "cpu        [processor]; CPU; [memory]; f")];
    assert_snapshot("devices_cpu", folder.path(), cpu, &hardware);
}

/// The backends that no build for this system has.
#[cfg(all(target_os = "linux", not(feature = "cuda")))]
#[test]
fn a_missing_backend_is_explained() {
    let folder = workplace();
    let text = stdout(&reft(folder.path(), &["devices"]));
    let lines: Vec<&str> = text.lines().collect();
    let mut said = Transcript::new(folder.path());
    for backend in ["cuda", "metal"] {
        let at = lines.iter().position(|line| line.starts_with(&format!("{backend} "))).expect("listed");
        said.add(&format!("devices: {backend}"), &lines[at..at + 2].join("\n"));
        let device = format!("device={backend}");
        said.add(&device, &refusal(&short_run(folder.path(), &[&device])));
    }
    said.check("missing_backends", &[]);
}

/// How far a result deviates, and the time it takes.
const MEASURED: [(&str, &str); 3] = [
    (r"deviation \d\.\de-?\d+", "deviation [deviation]"),
    (r"(?m)^  \d+\.\d s$", "  [seconds]"),
    (r"(?m)^cpu \(.*\)$", "cpu ([processor])"),
];

#[test]
fn the_doctor_finds_the_cpu_well() {
    let folder = workplace();
    let text = stdout(&reft(folder.path(), &["doctor", "--device", "cpu"]));
    assert_snapshot("doctor", folder.path(), &text, &MEASURED);
}

#[test]
fn unknown_devices_are_refused() {
    let folder = workplace();
    let mut said = Transcript::new(folder.path());
    for device in ["cpu:9", "tpu", "cpu:x"] {
        said.add(device, &refusal(&reft(folder.path(), &["doctor", "--device", device])));
    }
    said.check("refused_devices", &[]);
}
