//! A chat template: the input as a text, and a template made of one piece of Jinja for each byte of the input.
//!
//! It renders the same text twice or is an error, however the template loops, recurses or repeats.

use crate::support::{model, parts::write};
use reft_models::{ModelFiles, Tokenizer};
use reft_train::{Row, Template, data::parse_rows};
use std::sync::LazyLock;

/// The longest text that a template may render.
const MAX_OUTPUT: usize = 32 << 20;

static CHATS: LazyLock<Vec<Row>> = LazyLock::new(|| {
    let chats = r#"
{"messages": [{"role": "user", "content": "the old fox"}]}
{"messages": [{"role": "system", "content": "<s> {{ x }}"}, {"role": "user", "content": "é\n"}, {"role": "assistant", "content": ""}]}
{"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}, {"role": "tool", "tool_call_id": "1", "name": "f", "content": "no"}]}
"#;
    parse_rows(chats, "chats.jsonl").expect("valid rows")
});

const PIECES: [&str; 40] = [
    "{% for m in messages %}",
    "{% endfor %}",
    "{% for i in range(100) %}",
    "{% if add_generation_prompt %}",
    "{% if m.role == 'user' %}",
    "{% else %}",
    "{% endif %}",
    "{{ m.content }}",
    "{{ m['role'] }}",
    "{{ bos_token }}",
    "{{ eos_token }}",
    "{{ messages | tojson }}",
    "{{ m.content | trim | upper }}",
    "{{ m.content.split(' ')[-1] }}",
    "{{ messages[0]['content'] * 3 }}",
    "{{ messages[1:] | length }}",
    "{{ loop.index0 }}",
    "{{ loop(messages) }}",
    "{% set x = 'x' %}",
    "{% set x = x ~ x %}",
    "{{ x }}",
    "{% set ns = namespace(n=0) %}",
    "{% set ns.n = ns.n + 1 %}",
    "{{ ns.n }}",
    "{% macro f(a) %}",
    "{% endmacro %}",
    "{{ f(m) }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y') }}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% break %}",
    "{% continue %}",
    "{{ tools }}",
    "{{ 'é' | e }}",
    "{{ 1 / 0 }}",
    "{{ 9223372036854775807 + 1 }}",
    "{#- comment -#}",
    "\n  ",
    "text",
];

pub fn target(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        render(text);
    }
    let pieces: String = input.iter().take(48).map(|byte| PIECES[*byte as usize % PIECES.len()]).collect();
    render(&pieces);
}

fn render(template: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    write(folder.path(), "tokenizer.json", model::TOKENIZER.as_bytes());
    write(folder.path(), "tokenizer_config.json", br#"{"bos_token": "<s>", "eos_token": "</s>"}"#);
    write(folder.path(), "chat_template.jinja", template.as_bytes());
    if let Ok(tokenizer) = Tokenizer::load(&ModelFiles::Folder(folder.path().into())) {
        prompt(&CHATS[template.len() % CHATS.len()], &tokenizer);
    }
}

fn prompt(row: &Row, tokenizer: &Tokenizer) {
    match Template::Chat.prompt(row, tokenizer) {
        Ok(text) => {
            assert!(text.len() <= MAX_OUTPUT, "{} bytes", text.len());
            assert_eq!(Template::Chat.prompt(row, tokenizer).ok(), Some(text));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
