//! `reft chat` with a model that has a chat template.

use super::support::*;
use serde_json::json;
use std::{fs, path::Path};

const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n\
                             {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";
const FIRST: &str = "the hungry duck";
const SECOND: &str = "the old queen sings";

fn chatting_model(folder: &Path) {
    let model = model_folder(folder);
    change_json(&model.join("tokenizer_config.json"), |config| {
        config["chat_template"] = CHAT_TEMPLATE.into()
    });
}

fn generate(folder: &Path, args: &[&str]) -> String {
    let common = ["generate", "--model", "model", "--device", "cpu", "--greedy", "--max-new-tokens", "8"];
    stdout(&reft(folder, &[&common[..], args].concat()))
}

#[test]
fn the_second_question_is_asked_after_the_first_and_its_answer() {
    let folder = workplace();
    chatting_model(folder.path());
    let args = ["chat", "--model", "model", "--device", "cpu", "--greedy", "--max-new-tokens", "8"];
    let text = stdout(&reft_with_input(folder.path(), &args, &format!("{FIRST}\n{SECOND}\n")));
    let answers: Vec<&str> = text.lines().collect();
    assert_eq!(answers.len(), 2, "{text}");

    // The same prompts, written out; the tokenizer puts the first token before a plain prompt.
    let first_prompt = format!("user: {FIRST}\nassistant: ");
    let continued = |prompt: &str| generate(folder.path(), &["--template", "plain", "--prompt", prompt]);
    let first = continued(&first_prompt);
    assert_eq!(answers[0], first.trim_end_matches('\n'));
    let second_prompt = format!("{first_prompt}{}\nuser: {SECOND}\nassistant: ", answers[0]);
    let second = continued(&second_prompt);
    assert_eq!(answers[1], second.trim_end_matches('\n'));
    // Alone, the second question has another answer.
    assert_ne!(second, continued(&format!("user: {SECOND}\nassistant: ")));
}

#[test]
fn a_conversation_in_a_file_is_continued_in_the_same_way() {
    let folder = workplace();
    chatting_model(folder.path());
    let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
    let messages = [turn("user", FIRST), turn("assistant", "quack"), turn("user", SECOND)];
    fs::write(folder.path().join("chat.jsonl"), json!({ "messages": messages }).to_string())
        .expect("written");
    let prompt = format!("user: {FIRST}\nassistant: quack\nuser: {SECOND}\nassistant: ");
    let expected = generate(folder.path(), &["--template", "plain", "--prompt", &prompt]);
    let text = generate(folder.path(), &["--data", "chat.jsonl"]);
    assert_eq!(text, format!("[1] {}\n", expected.trim()));
}

#[test]
fn a_full_context_forgets_the_oldest_turns_and_the_chat_goes_on() {
    let folder = workplace();
    chatting_model(folder.path());
    let args = ["chat", "--model", "model", "--device", "cpu", "--greedy", "--max-new-tokens", "8"];
    let long = "the old queen sings ".repeat(60);
    let questions = format!("{}{long}\n{FIRST}\n", format!("{SECOND} and {FIRST}\n").repeat(12));
    let output = reft_with_input(folder.path(), &args, &questions);
    let said = String::from_utf8(output.stderr.clone()).expect("UTF-8");
    assert!(stdout(&output).lines().count() >= 13, "{said}");
    assert!(
        said.contains("the model's context of 128 tokens is full: the 1 oldest turn is forgotten"),
        "{said}"
    );
    assert!(said.contains("but the model's context is 128; ask a shorter one"), "{said}");
}
