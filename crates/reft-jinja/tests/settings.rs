//! What Jinja2 renders with other settings, see fixtures/settings.py.

use reft_jinja::{
    Error, Settings, Template, Undefined, Variable,
    serde_json::{self, Value, json},
};
use std::sync::LazyLock;

static FIXTURE: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("fixtures/settings.json")).expect("JSON"));

const STRICT: Settings = Settings {
    trim_blocks: false,
    lstrip_blocks: false,
    keep_trailing_newline: false,
    undefined: Undefined::Strict,
};

fn rows(name: &str) -> impl Iterator<Item = (&'static str, &'static [Value])> {
    let rows = FIXTURE[name].as_array().expect("rows");
    rows.iter().map(|row| (row[0].as_str().expect("a template"), &row.as_array().expect("a row")[1..]))
}

fn render(source: &str, settings: Settings) -> Result<String, Error> {
    let variables = FIXTURE["variables"].as_object().expect("variables");
    let variables = variables.iter().map(|(name, value)| (name.as_str(), Variable::Json(value)));
    Ok(Template::compile(source, settings)?.render(variables, None)?.text)
}

#[test]
fn whitespace_is_removed_as_the_settings_say() {
    for (source, row) in rows("whitespace") {
        let flag = |index: usize| row[0][index].as_bool().expect("a flag");
        let settings = Settings {
            trim_blocks: flag(0),
            lstrip_blocks: flag(1),
            keep_trailing_newline: flag(2),
            ..Settings::default()
        };
        assert_eq!(render(source, settings).ok().as_deref(), row[1].as_str(), "{source:?} {settings:?}");
    }
}

#[test]
fn missing_values_are_empty_or_errors() {
    for (source, row) in rows("strict") {
        assert_eq!(render(source, Settings::default()).ok().as_deref(), row[0].as_str(), "{source}");
        assert_eq!(render(source, STRICT).ok().as_deref(), row[1].as_str(), "strict {source}");
    }
}

#[test]
fn strict_templates_name_what_is_missing() {
    let error = |source: &str| render(source, STRICT).expect_err("missing").to_string();
    assert_eq!(error("{{ x }}\n{{ y }}"), "line 2: 'y' is undefined");
    assert_eq!(error("{% for a in y %}{% endfor %}"), "line 1: 'y' is undefined");
    assert_eq!(error("{{ row.z }}"), "line 1: 'dict object' has no attribute 'z'");
    for filter in ["items", "select", "map('upper')", "reverse"] {
        assert_eq!(error(&format!("{{{{ y | {filter} | list }}}}")), "line 1: 'y' is undefined");
    }
    // Here the template itself says that there is nothing.
    assert_eq!(render("{{ 'a' if y }}{{ (x if y) is defined }}", STRICT).as_deref(), Ok("False"));
    // The setting is of the template, not of the thread.
    assert_eq!(render("{{ y }}", Settings::default()).as_deref(), Ok(""));
}

#[test]
fn variables_are_those_that_the_template_reads_and_does_not_set() {
    for (source, row) in rows("names") {
        let template = Template::compile(source, Settings::default()).expect("compiled");
        assert_eq!(json!(template.variables()), row[0], "{source}");
    }
    // Jinja2 lists `b` here too.
    let source = "{% if a %}{% set b = 1 %}{% else %}{% set b = 2 %}{% endif %}{{ b }}";
    let template = Template::compile(source, Settings::default()).expect("compiled");
    assert_eq!(json!(template.variables()), json!(["a"]));
}
