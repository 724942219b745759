//! What transformers and Jinja2 render, see tests/fixtures/chat_templates.py.

use reft_jinja::{
    DateTime, Error, Settings, Template, Undefined, Variable,
    serde_json::{self, Map, Value, json},
};
use std::{fs, path::PathBuf};

const NOW: DateTime =
    DateTime { year: 2026, month: 3, day: 5, hour: 14, minute: 7, second: 9, microsecond: 12345 };

const TRANSFORMERS: Settings = Settings {
    trim_blocks: true,
    lstrip_blocks: true,
    keep_trailing_newline: false,
    undefined: Undefined::Default,
};

fn fixture(name: &str) -> Value {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/chat_templates");
    serde_json::from_slice(&fs::read(folder.join(name)).expect("readable")).expect("JSON")
}

/// Text and ranges of generation blocks, as the fixtures write them.
fn render(template: &Template, variables: &Map<String, Value>) -> Result<(String, Value), Error> {
    let defaults = [
        ("tools", Variable::None),
        ("documents", Variable::None),
        ("messages", Variable::Dicts(&[])),
        ("add_generation_prompt", Variable::Bool(false)),
    ];
    let given = variables.iter().map(|(name, value)| (name.as_str(), Variable::Json(value)));
    let rendered = template.render(defaults.into_iter().chain(given), Some(NOW))?;
    let spans = rendered.generated.iter().map(|range| json!([range.start, range.end])).collect();
    Ok((rendered.text, spans))
}

fn compile_and_render(source: &str, variables: &Map<String, Value>) -> Result<(String, Value), Error> {
    render(&Template::compile(source, TRANSFORMERS)?, variables)
}

/// The difference between what was rendered and what was expected.
fn difference(found: Result<(String, Value), Error>, text: Option<&str>, spans: &Value) -> Option<String> {
    match (found, text) {
        (Ok((found, ranges)), Some(text)) if found == text && ranges == *spans => None,
        (Err(_), None) => None,
        (found, text) => Some(format!("expected {text:?} {spans}, found {found:?}")),
    }
}

fn no_spans(row: &Value, index: usize) -> Value {
    row.get(index).cloned().unwrap_or_else(|| json!([]))
}

fn check(differences: &[String], count: usize) {
    let shown: Vec<&String> = differences.iter().take(100).collect();
    assert!(differences.is_empty(), "{} of {count} differ: {shown:#?}", differences.len());
}

#[test]
fn expressions_and_statements_are_rendered_as_jinja2_renders_them() {
    let fixture = fixture("snippets.json");
    let variables = fixture["variables"].as_object().expect("variables");
    let rows = fixture["snippets"].as_array().expect("rows");
    let (mut differences, mut skipped) = (Vec::new(), 0);
    for row in rows {
        let source = row[0].as_str().expect("a template");
        let found = compile_and_render(source, variables);
        let refused = found.as_ref().err().map(Error::to_string).is_some_and(|error| {
            // Texts that hold memory addresses in Python.
            error.contains("not supported") || error.contains("memory address")
        });
        skipped += usize::from(refused && !row[1].is_null());
        if !refused && let Some(difference) = difference(found, row[1].as_str(), &no_spans(row, 2)) {
            differences.push(format!("{source}: {difference}"));
        }
    }
    check(&differences, rows.len());
    assert!(skipped < 60, "{skipped} of {} are not supported", rows.len());
}

#[test]
fn dates_are_formatted_as_python_formats_them() {
    let fixture = fixture("snippets.json");
    let template = Template::compile("{{ strftime_now(format) }}", TRANSFORMERS).expect("compiled");
    for row in fixture["dates"].as_array().expect("rows") {
        let part = |index: usize| row[index].as_u64().expect("a number") as u32;
        let time = DateTime {
            year: part(0).into(),
            month: part(1),
            day: part(2),
            hour: part(3),
            minute: part(4),
            second: part(5),
            microsecond: part(6),
        };
        let rendered = template.render([("format", Variable::Json(&fixture["date_format"]))], Some(time));
        assert_eq!(rendered.expect("known").text, row[7].as_str().expect("a text"), "{time:?}");
    }
}

#[test]
fn chat_templates_of_models_are_rendered_as_transformers_renders_them() {
    let fixture = match std::env::var_os("REFT_CHAT_TEMPLATES") {
        Some(path) => serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON"),
        None => fixture("families.json"),
    };
    let conversations: Vec<&Value> =
        fixture["conversations"].as_object().expect("conversations").values().collect();
    let mut differences = Vec::new();
    let mut count = 0;
    for (name, entry) in fixture["templates"].as_object().expect("templates") {
        let template = Template::compile(entry["template"].as_str().expect("a template"), TRANSFORMERS)
            .expect("compiled");
        for row in entry["rendered"].as_array().expect("rows") {
            let index = row[0].as_u64().expect("an index") as usize;
            let mut variables = fixture["special_tokens"].as_object().expect("tokens").clone();
            variables.extend(conversations[index].as_object().expect("a conversation").clone());
            variables.insert("add_generation_prompt".into(), row[1].clone());
            let text =
                row[2].as_u64().map(|index| fixture["texts"][index as usize].as_str().expect("a text"));
            if let Some(difference) = difference(render(&template, &variables), text, &no_spans(row, 3)) {
                differences.push(format!("{name}, conversation {index}: {difference}"));
            }
            count += 1;
        }
    }
    check(&differences, count);
}

/// Templates that are cut and joined at random, of the fixtures' pieces, never panic.
///
/// `REFT_FUZZ_SECONDS` sets for how long to try.
#[test]
fn random_templates_never_panic() {
    let fixture = fixture("snippets.json");
    let variables = fixture["variables"].as_object().expect("variables");
    let rows = fixture["snippets"].as_array().expect("rows");
    let sources: Vec<&str> = rows.iter().map(|row| row[0].as_str().expect("a template")).collect();
    let seconds = std::env::var("REFT_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2);
    let seed = std::env::var("REFT_FUZZ_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1_u64);
    let start = std::time::Instant::now();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as usize % below.max(1)
    };
    let mut count = 0_u64;
    while start.elapsed().as_secs() < seconds {
        let mut source = sources[random(sources.len())].to_string();
        for _ in 0..1 + random(4) {
            let other = sources[random(sources.len())];
            let mut piece = other.chars().skip(random(other.len())).take(random(12)).collect::<String>();
            if random(6) == 0 {
                let numbers = [
                    "-1",
                    "99999999999",
                    "0",
                    "170141183460469231731687303715884105727",
                    "1e308",
                    "[]",
                    "''",
                ];
                piece = numbers[random(numbers.len())].into();
            }
            let at = source.char_indices().map(|(at, _)| at).nth(random(source.len())).unwrap_or(0);
            let end = source[at..].char_indices().map(|(length, _)| at + length).nth(random(5)).unwrap_or(at);
            source.replace_range(at..end, &piece);
        }
        let caught = std::panic::catch_unwind(|| compile_and_render(&source, variables));
        assert!(caught.is_ok(), "{source}");
        count += 1;
    }
    assert!(count > 100, "only {count} templates in {seconds} s");
}
