//! Tokenizers, against what transformers 4.45.1 makes of the same folders (`tests/fixtures/tokenizer_folders.py`).

use reft_models::{ModelFiles, Tokenizer};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

/// Folders that are refused here: the name of the case and a part of the message.
///
/// transformers gives an end token without an id a new one behind the model's embeddings, ignores the ids of added tokens
/// that it cannot give, and does not read `tokenizer.json` with classes in Python alone.
const REFUSED: [(&str, &str); 12] = [
    (
        "python only class",
        "tokenizer_config.json: `tokenizer_class` is PhobertTokenizer, which is written in Python alone",
    ),
    ("llama bos null", "`add_bos_token` is true, but there is no `bos_token`; name the token, or set"),
    ("llama eos null", "`add_eos_token` is true, but there is no `eos_token`"),
    ("eos without id", "tokenizer_config.json: `eos_token` is \"<|im_end|>\", which has no id"),
    ("eos without id in the map", "special_tokens_map.json: `eos_token` is \"<|im_end|>\", which has no id"),
    ("bos without id", "tokenizer_config.json: `bos_token` is \"<bos>\", which has no id"),
    ("ids with a gap", "tokenizer_config.json: the added token \"<new>\" has the id 20, but"),
    ("wrong id in tokenizer.json", "tokenizer.json: `added_tokens` gives \"<|endoftext|>\" the id 77"),
    ("bos a number", "tokenizer_config.json: `bos_token` is a number, expected text, an object with"),
    ("additional not a list", "`additional_special_tokens` is text, expected a list of texts"),
    ("decoder of texts", "`added_tokens_decoder.9` is text, expected an object with `content`"),
    ("truncation_side up", "`truncation_side` is \"up\", expected \"left\" or \"right\""),
];

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/tokenizer_folders")
}

fn read(name: &str) -> Value {
    serde_json::from_slice(&fs::read(fixtures().join(name)).expect("readable")).expect("JSON")
}

/// A folder with the files of a case.
fn folder(case: &Value) -> tempfile::TempDir {
    let mut tokenizer = read(&format!("{}.json", case["base"].as_str().expect("a name")));
    for (path, value) in case["patch"].as_object().expect("an object") {
        *tokenizer.pointer_mut(&format!("/{path}")).expect("a place in the file") = value.clone();
    }
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, value: &Value| {
        fs::write(folder.path().join(name), value.to_string()).expect("written");
    };
    write("tokenizer.json", &tokenizer);
    write("config.json", &json!({"model_type": "gpt2"}));
    for (name, value) in case["files"].as_object().expect("an object") {
        write(name, value);
    }
    folder
}

/// Whether a file of a case has a token.
fn has_token(case: &Value, text: &str) -> bool {
    let tokenizer = case["base"].as_str().map(|base| read(&format!("{base}.json")));
    tokenizer.iter().chain([&case["files"]]).any(|value| value.to_string().contains(text))
}

/// The differences between a tokenizer and the results of transformers.
fn differences(tokenizer: &Tokenizer, fixture: &Value, case: &Value) -> Vec<String> {
    let results = &case["results"];
    let mut found = Vec::new();
    let mut compare = |what: String, ours: Value, theirs: &Value| {
        if ours != *theirs {
            found.push(format!("{what}: {ours}, transformers {theirs}"));
        }
    };
    let texts = fixture["texts"].as_array().expect("a list");
    for (text, expected) in texts.iter().zip(results["texts"].as_array().expect("a list")) {
        let text = text.as_str().expect("a text");
        let (ids, _, _) = tokenizer.encode_pair(text, None, usize::MAX).expect("encoded");
        compare(format!("{text:?}"), json!(ids), &expected["ids"]);
        if let Some(end) = expected["end"].as_u64() {
            let prompt = tokenizer.encode(text).expect("encoded");
            compare(format!("prompt {text:?}"), json!(prompt), &json!(ids[..end as usize]));
        }
        let bare = tokenizer.encode_rendered(text).expect("encoded");
        compare(format!("bare {text:?}"), json!(bare), &expected["bare"]);
        compare(
            format!("decoded {text:?}"),
            json!(tokenizer.decode(&ids).expect("decoded")),
            &expected["decoded"],
        );
    }
    // The fixture has the types that transformers computes. To the models of these classes it does not pass them on.
    let passes_types = !results["class"].as_str().is_some_and(|class| {
        ["Camembert", "DistilBert", "MPNet", "Roberta", "XLMRoberta"]
            .contains(&class.trim_end_matches("TokenizerFast"))
    });
    let pairs = fixture["pairs"].as_array().expect("a list");
    for (pair, expected) in pairs.iter().zip(results["pairs"].as_array().expect("a list")) {
        if results["class"] == "CodeLlamaTokenizerFast" {
            // It reads a pair as the text before and after a gap, a task that does not exist here.
            continue;
        }
        let (first, second) = (pair[0].as_str().expect("a text"), pair[1].as_str());
        let (ids, types, _) = tokenizer.encode_pair(first, second, 9).expect("encoded");
        let mut expected = expected.clone();
        if !passes_types {
            expected[1] = json!(vec![0; ids.len()]);
        }
        compare(format!("{pair}"), json!([ids, types]), &expected);
    }
    let mut special = serde_json::Map::new();
    for (name, token) in results["special"].as_object().expect("an object") {
        special.insert(name.clone(), token[0].clone());
    }
    if results["additional"].as_array().is_some_and(|list| !list.is_empty()) {
        special.insert("additional_special_tokens".into(), results["additional"].clone());
    }
    compare("special tokens".into(), json!(tokenizer.special_tokens_map()), &Value::Object(special));
    for (name, token) in [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())] {
        let expected = &results["special"][name];
        // A default of the class that the model does not have gets an id behind the vocabulary in transformers.
        let named = expected[0].as_str().is_some_and(|text| has_token(case, text));
        if named || name == "bos_token" && !expected.is_null() {
            compare(name.into(), json!(token.map(|token| (&token.text, token.id))), expected);
        }
    }
    found
}

#[test]
fn tokenizers_are_those_of_transformers() {
    let fixture = read("cases.json");
    let mut problems = Vec::new();
    for (name, case) in fixture["cases"].as_object().expect("an object") {
        let folder = folder(case);
        let loaded = Tokenizer::load(&ModelFiles::Folder(folder.path().into()));
        let refused = REFUSED.iter().find(|(refused, _)| refused == name);
        match (loaded, refused) {
            (Ok(_), Some(_)) => problems.push(format!("{name}: not refused")),
            (Err(error), Some((_, message))) if error.to_string().contains(message) => {}
            (Err(error), _) => problems.push(format!("{name}: {error}")),
            // transformers 4.45 refuses names that it does not know, and puts a new token before the texts of a Llama model
            // whose tokenizer is of another kind. The current version reads tokenizer.json.
            (Ok(_), None) if ["unknown class", "no files of another kind"].contains(&name.as_str()) => {}
            (Ok(tokenizer), None) if case["results"]["error"].is_null() => {
                let found = differences(&tokenizer, &fixture, case);
                problems.extend(found.into_iter().map(|difference| format!("{name}: {difference}")));
            }
            (Ok(_), None) => problems.push(format!("{name}: transformers: {}", case["results"]["error"])),
        }
    }
    assert!(fixture["cases"].as_object().is_some_and(|cases| cases.len() > 90));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn token_types_are_passed_as_model_input_names_says() {
    let fixture = read("cases.json");
    let case = &fixture["cases"]["DistilBertTokenizer cased"];
    for (names, second) in
        [(json!(["input_ids", "token_type_ids"]), 1), (json!(["input_ids", "attention_mask"]), 0)]
    {
        let folder = folder(case);
        let path = folder.path().join("tokenizer_config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
        config["model_input_names"] = names;
        fs::write(&path, config.to_string()).expect("written");
        let tokenizer = Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect("loaded");
        let (_, types, _) = tokenizer.encode_pair("Hello world", Some("good"), 9).expect("encoded");
        assert_eq!(types, [0, 0, 0, 0, second, second]);
    }
}

/// The end token of a model whose tokenizer does not name one that it has.
#[test]
fn the_end_token_of_the_model_is_the_last_resort() {
    let fixture = read("cases.json");
    for (name, expected) in [
        ("default eos without id", Some(("</s>", 1))),
        ("end token of config.json", Some(("</s>", 1))),
        ("no end token", None),
    ] {
        let folder = folder(&fixture["cases"][name]);
        let tokenizer = Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect("loaded");
        assert_eq!(tokenizer.eos().map(|eos| (eos.text.as_str(), eos.id)), expected, "{name}");
    }
}

#[test]
#[ignore = "needs the files of REFT_SHARED"]
fn real_tokenizers_are_those_of_transformers() {
    let shared = PathBuf::from(std::env::var_os("REFT_SHARED").expect("the folder of shared files"));
    let fixture = read("cases.json");
    for (name, case) in read("shared.json").as_object().expect("an object") {
        let tokenizer = Tokenizer::load(&ModelFiles::Folder(shared.join(name))).expect("loaded");
        let found = differences(&tokenizer, &fixture, case);
        assert!(found.is_empty(), "{name}: {}", found.join("\n"));
    }
}

/// The message about a folder with these files beside a working tokenizer, without the folder's path.
fn message(files: &[(&str, &[u8])]) -> String {
    let folder = folder(&json!({"base": "words", "patch": {}, "files": {}}));
    for (name, content) in files {
        fs::write(folder.path().join(name), content).expect("written");
    }
    let error = Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect_err("unusable").to_string();
    error.replace(folder.path().to_str().expect("UTF-8"), "F")
}

#[test]
fn a_tokenizer_of_another_kind_than_the_model_stays_as_it_is() {
    let folder = folder(&read("cases.json")["cases"]["no files of another kind"]);
    let tokenizer = Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect("loaded");
    // <|begin_of_text|>, which the post-processor of tokenizer.json adds, not the <s> of Llama.
    assert_eq!(tokenizer.encode("a").expect("encoded")[0], 0);
    assert_eq!(tokenizer.eos().map(|eos| eos.text.as_str()), Some("<|end_of_text|>"));
}

#[test]
fn the_files_of_transformers_5_are_read() {
    let load = |config: Value| {
        let folder =
            folder(&json!({"base": "words", "patch": {}, "files": {"tokenizer_config.json": config}}));
        Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect("loaded")
    };
    let tokenizer =
        load(json!({"tokenizer_class": "TokenizersBackend", "backend": "tokenizers", "bos_token": "<s>",
        "eos_token": "</s>", "extra_special_tokens": ["a"], "add_bos_token": true, "add_eos_token": true}));
    assert_eq!(tokenizer.encode("b").expect("encoded"), [0, 4]);
    assert_eq!(tokenizer.encode_pair("b", None, 9).expect("encoded").0, [0, 4, 1]);
    assert_eq!(tokenizer.decode(&[0, 4, 3, 1]).expect("decoded"), "b");
    let tokenizer = load(json!({"tokenizer_class": "TokenizersBackend", "bos_token": "<s>"}));
    assert_eq!(tokenizer.encode("b").expect("encoded"), [4]);
}

#[test]
fn damaged_files_are_named_with_what_to_do() {
    let config = |text: &str| message(&[("tokenizer_config.json", text.as_bytes())]);
    assert_eq!(
        config("\u{feff}{}"),
        "F/tokenizer_config.json: the file starts with a byte order mark; save it as UTF-8 without one"
    );
    assert_eq!(
        message(&[("special_tokens_map.json", b"\xff\xfe{\0}\0")]),
        "F/special_tokens_map.json: the file is UTF-16; save it as UTF-8"
    );
    assert_eq!(
        message(&[("added_tokens.json", b"")]),
        "F/added_tokens.json: the file is empty; copy or download it again"
    );
    assert_eq!(
        message(&[("added_tokens.json", b"{\"<new>\": -1}")]),
        "F/added_tokens.json: `<new>` is a number, expected a token id"
    );
    assert_eq!(config("[1]"), "F/tokenizer_config.json: expected a JSON object, found a list");
    assert_eq!(
        config("{\"bos_token\": "),
        "F/tokenizer_config.json: invalid JSON: EOF while parsing a value at line 1 column 14"
    );
    assert_eq!(
        config(r#"{"tokenizer_class": 3}"#),
        "F/tokenizer_config.json: `tokenizer_class` is a number, expected text or null"
    );
    assert_eq!(
        config(r#"{"tokenizer_class": "LlamaTokenizer", "add_bos_token": "yes"}"#),
        "F/tokenizer_config.json: `add_bos_token` is text, expected true, false or null"
    );
    assert_eq!(
        config(r#"{"tokenizer_class": "T5Tokenizer", "extra_ids": 1e18}"#),
        "F/tokenizer_config.json: `extra_ids` is a number, expected a number up to 10000"
    );
    assert_eq!(
        config(r#"{"added_tokens_decoder": {"x": {"content": "a"}}}"#),
        "F/tokenizer_config.json: `added_tokens_decoder` has the key \"x\", expected a token id"
    );
    assert_eq!(
        config(r#"{"eos_token": {"content": "a", "lstrip": 1}}"#),
        "F/tokenizer_config.json: `eos_token` is an object, expected text, an object with `content`, or null"
    );
    assert_eq!(
        config(r#"{"tokenizer_class": "MBartTokenizer"}"#),
        "F/tokenizer_config.json: `tokenizer_class` is MBartTokenizer, which changes tokenizer.json in a way that is not \
         supported; if tokenizer.json is right as it is, set `tokenizer_class` to \"PreTrainedTokenizerFast\" in \
         tokenizer_config.json"
    );
}

#[test]
fn a_damaged_or_newer_tokenizer_says_what_to_do() {
    let tokenizer = |change: &dyn Fn(&mut Value)| {
        let mut value = read("words.json");
        change(&mut value);
        message(&[("tokenizer.json", value.to_string().as_bytes())])
    };
    let newer = tokenizer(&|value| value["version"] = "2.0".into());
    assert!(
        newer.starts_with("F/tokenizer.json: not a tokenizer: Unknown tokenizer version '2.0'")
            && newer.ends_with("written by a newer version of Python's tokenizers than 0.22, with which it can be saved again"),
        "{newer}"
    );
    let newer = tokenizer(&|value| value["model"] = json!({"type": "Brand", "vocab": {}}));
    assert!(newer.starts_with("F/tokenizer.json: not a tokenizer: data did not match"), "{newer}");
    let whole = read("words.json").to_string();
    let half = message(&[("tokenizer.json", &whole.as_bytes()[..whole.len() / 2])]);
    assert!(
        half.starts_with("F/tokenizer.json: invalid JSON: EOF while parsing")
            && half.ends_with("; the file may be incomplete, copy or download it again"),
        "{half}"
    );
    let template = json!({"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
        "pair": [], "special_tokens": {}});
    assert_eq!(
        tokenizer(&|value| value["post_processor"] = template.clone()),
        "F/tokenizer.json: the post_processor uses the special token \"<s>\" without an id for it"
    );
    assert_eq!(
        message(&[(
            "tokenizer.json",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
        )]),
        "F/tokenizer.json: the file is a pointer of Git LFS, not the file itself; run `git lfs pull` in its folder"
    );
}

#[test]
fn a_missing_tokenizer_says_how_to_make_one() {
    let missing = |names: &[&str], config: Value| {
        let folder = tempfile::tempdir().expect("a folder");
        fs::write(folder.path().join("config.json"), config.to_string()).expect("written");
        for name in names {
            fs::write(folder.path().join(name), "").expect("written");
        }
        let error =
            Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect_err("missing").to_string();
        error.replace(folder.path().to_str().expect("UTF-8"), "F")
    };
    let llama = json!({"model_type": "llama"});
    for (names, found) in [
        (&["tokenizer.model"][..], "tokenizer.model"),
        (&["vocab.txt"], "vocab.txt"),
        (&["merges.txt", "vocab.json"], "vocab.json and merges.txt"),
        (&["sentencepiece.bpe.model"], "sentencepiece.bpe.model"),
        (&["spiece.model"], "spiece.model"),
        (&["tekken.json"], "tekken.json"),
    ] {
        assert_eq!(
            missing(names, llama.clone()),
            format!(
                "F/tokenizer.json: no such file; there is {found}, which is converted with Python: `from transformers import \
                 AutoTokenizer; AutoTokenizer.from_pretrained(\"F\").save_pretrained(\"F\")`"
            )
        );
    }
    assert_eq!(
        missing(&[], llama),
        "F/tokenizer.json: no such file, and no other file of a tokenizer; copy the tokenizer files of the model that it was \
         made from"
    );
    assert_eq!(
        missing(
            &["vocab.txt", "bpe.codes"],
            json!({"model_type": "roberta", "tokenizer_class": "PhobertTokenizer"})
        ),
        "F/tokenizer.json: no such file; there is vocab.txt and bpe.codes, but the tokenizer class PhobertTokenizer is written \
         in Python alone and cannot be converted; use a model with a fast tokenizer"
    );
}
