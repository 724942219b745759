//! What the program says of devices.

use super::*;

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
    let text = stdout(&reft(folder.path(), &["devices"]));
    assert_says(&text, &["cpu ", "processor", "f32, f16, bf16", "auto "]);
}

#[test]
fn the_doctor_finds_the_cpu_well() {
    let folder = workplace();
    let text = stdout(&reft(folder.path(), &["doctor", "--device", "cpu"]));
    assert_says(
        &text,
        &["PASS  forward", "PASS  gradient, checkpointed", "PASS  int8 weights, gradient", "PASS  bf16"],
    );
    assert!(!text.contains("FAIL") && !text.contains("WARN"), "{text}");
    let message = refusal(&reft(folder.path(), &["doctor", "--device", "cpu:9"]));
    assert_says(&message, &["cpu:9", "no such index"]);
}
