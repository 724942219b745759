//! Prompts and answers as tokens: where an answer begins, and what is left out of a long prompt.

use super::{
    conversation::{TrainOn, is_empty, text_of, trained_turns},
    error::DataError,
    rows::Row,
    template::Template,
};
use reft_models::{Chat, EncodedText, Tokenizer};
use std::ops::Range;

/// The length of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLimit {
    /// Longer prompts are cut.
    pub longest: usize,
    /// Number of tokens that they are cut to.
    pub cut_to: usize,
}

impl PromptLimit {
    /// No limit: a prompt that does not fit the model is an error when it is used.
    pub const NONE: Self = Self { longest: usize::MAX, cut_to: usize::MAX };

    /// For prompts of at most `max_length` tokens.
    pub fn of(max_length: usize) -> Self {
        Self { longest: max_length, cut_to: max_length }
    }

    /// For prompts to be continued: a prompt that fills the model's context is cut so that `max_new_tokens` more fit, or half
    /// of the context if those are more.
    pub fn of_context(context: usize, max_new_tokens: usize) -> Self {
        let room = max_new_tokens.min(context / 2).max(1);
        Self { longest: context.saturating_sub(1), cut_to: context.saturating_sub(room) }
    }
}

/// A prompt as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Whether tokens were left out.
    pub is_cut: bool,
}

/// A prompt and its answer as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EncodedAnswer {
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Whether the answer is empty, so that only the end token is trained.
    pub is_empty: bool,
    /// Whether the tokens of the prompt alone are not the first ones of the whole.
    pub is_merged: bool,
    /// Whether the chat template does not render the answered chat as the open one and more.
    pub differs: bool,
}

/// A text of which the part from `answer.start` to `answer.end` is trained.
struct Whole {
    text: String,
    answer: Range<usize>,
    /// Whether the template marks the answer with a `{% generation %}` block.
    is_marked: bool,
    differs: bool,
    is_empty: bool,
}

impl Template {
    /// Encodes the prompt of a row. Of a prompt that is too long, tokens in the middle of its longest texts are left out, and what
    /// the template puts around the texts only if that is too long itself.
    ///
    /// # Errors
    /// If the row lacks a field that the template needs.
    pub fn encode_prompt(
        &self,
        row: &Row,
        tokenizer: &Tokenizer,
        limit: PromptLimit,
    ) -> Result<EncodedPrompt, DataError> {
        let text = self.prompt(row, tokenizer)?;
        let failed = |error| row.tokenizer_error(error);
        let tokens = self.encode_text(&text, tokenizer).map_err(failed)?;
        if tokens.len() <= limit.longest {
            return Ok(EncodedPrompt { tokens, is_cut: false });
        }
        let encoded = tokenizer.encode_with_offsets(&text, *self == Template::Chat).map_err(failed)?;
        let excess = encoded.ids.len().saturating_sub(limit.cut_to);
        let texts = self.texts(row);
        let ranges = texts.iter().filter_map(|part| tokens_of(&encoded, &text, part)).collect();
        let left_out = left_out(excess, ranges, encoded.ids.len());
        let tokens = encoded.ids.into_iter().enumerate();
        let tokens = tokens.filter(|(idx, _)| !left_out.iter().any(|range| range.contains(idx)));
        Ok(EncodedPrompt { tokens: tokens.map(|(_, id)| id).collect(), is_cut: true })
    }

    fn encode_text(
        &self,
        text: &str,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<u32>, reft_models::TokenizerError> {
        if *self == Template::Chat { tokenizer.encode_rendered(text) } else { tokenizer.encode(text) }
    }

    /// Encodes prompt and answer, without truncation: one example, or one for every trained message of a chat.
    ///
    /// The answer begins with the first token that is not wholly in the prompt. In a chat, a token that holds the end of the
    /// prompt and the start of the answer is not trained: there, transformers' trainers count the tokens of the prompt, and
    /// losses stay comparable.
    ///
    /// # Errors
    /// If the row has no prompt or no answer.
    pub(super) fn encode_answered(
        &self,
        row: &Row,
        tokenizer: &Tokenizer,
        train_on: TrainOn,
    ) -> Result<Vec<EncodedAnswer>, DataError> {
        if *self == Template::Chat {
            let chat = self.answered_conversation(row)?;
            let turns = trained_turns(row, &chat, train_on)?;
            let mut encoded = Vec::new();
            for turn in turns {
                for whole in answered_chat(row, &chat, turn, tokenizer)? {
                    encoded.push(self.encode_whole(row, whole, tokenizer)?);
                }
            }
            return Ok(encoded);
        }
        let prompt = self.prompt(row, tokenizer)?;
        let start = prompt.len();
        let eos = tokenizer.end_token().map_err(|error| row.tokenizer_error(error))?;
        let answer = self.answer(row)?;
        let answer = without_end(&answer, eos.text.as_str());
        let encode = |text: String| {
            let (answer, is_empty) = (start..text.len(), answer.is_empty());
            let whole = Whole { answer, text, is_marked: false, differs: false, is_empty };
            self.encode_whole(row, whole, tokenizer)
        };
        let text = prompt + answer;
        let mut encoded = encode(text.clone() + &eos.text)?;
        if encoded.tokens.last() != Some(&eos.id) {
            // The tokenizer does not find the end token in texts.
            encoded = encode(text)?;
            encoded.tokens.push(eos.id);
        }
        Ok(vec![encoded])
    }

    fn encode_whole(
        &self,
        row: &Row,
        whole: Whole,
        tokenizer: &Tokenizer,
    ) -> Result<EncodedAnswer, DataError> {
        let is_chat = *self == Template::Chat;
        let Whole { text, answer, is_marked, differs, is_empty } = whole;
        let failed = |error| row.tokenizer_error(error);
        let EncodedText { mut ids, offsets } =
            tokenizer.encode_with_offsets(&text, is_chat).map_err(failed)?;
        let mut first = offsets.iter().position(|(_, end)| *end > answer.start).unwrap_or(ids.len());
        let covered = offsets[..first].iter().map(|(_, end)| *end).max().unwrap_or(0);
        // Tokens that reach over the border, or leave a gap before it, may differ from those of the prompt alone.
        let is_suspicious =
            covered < answer.start || offsets.get(first).is_some_and(|(start, _)| *start < answer.start);
        let mut is_merged = false;
        // Of a marked answer, transformers trains every token that holds some of it.
        if is_suspicious && !is_marked {
            let alone = self.encode_text(&text[..answer.start], tokenizer).map_err(failed)?;
            is_merged = !ids.starts_with(&alone);
            if is_merged && is_chat {
                first = alone.len().min(ids.len());
            }
        }
        if answer.end < text.len() {
            let after = (first..ids.len()).find(|idx| offsets[*idx].0 >= answer.end);
            ids.truncate(after.unwrap_or(ids.len()));
        }
        Ok(EncodedAnswer { tokens: ids, prompt_len: first, is_empty, is_merged, differs })
    }
}

/// An answer without the end token that it may end in, because one is added.
pub(crate) fn without_end<'a>(answer: &'a str, end: &str) -> &'a str {
    answer.strip_suffix(end).filter(|_| !end.is_empty()).unwrap_or(answer)
}

/// The tokens that lie within the last occurrence of `part`.
fn tokens_of(encoded: &EncodedText, text: &str, part: &str) -> Option<Range<usize>> {
    let trimmed = part.trim();
    let start = text.rfind(trimmed).filter(|_| !trimmed.is_empty())?;
    let end = start + trimmed.len();
    let is_within = |(first, last): &(usize, usize)| *first >= start && *last <= end && last > first;
    let first = encoded.offsets.iter().position(is_within)?;
    let last = encoded.offsets.iter().rposition(is_within)?;
    Some(first..last + 1)
}

/// Which of `n` tokens to leave out to have `excess` fewer: those in the middle of the longest text, then of the next one, of
/// each of which the first token stays; or those in the middle of everything if the texts are too short for that.
fn left_out(excess: usize, mut texts: Vec<Range<usize>>, n: usize) -> Vec<Range<usize>> {
    let middle = |range: &Range<usize>, n_left_out: usize| {
        let start = range.start + (range.len() - n_left_out).div_ceil(2);
        start..start + n_left_out
    };
    texts.sort_by_key(|range| std::cmp::Reverse(range.len()));
    let (mut left, mut found) = (excess, Vec::<Range<usize>>::new());
    let mut seen = Vec::<Range<usize>>::new();
    for range in texts {
        let is_new = seen.iter().all(|other| range.end <= other.start || other.end <= range.start);
        let n_left_out = left.min(range.len().saturating_sub(1));
        if is_new && n_left_out > 0 {
            found.push(middle(&range, n_left_out));
            left -= n_left_out;
        }
        seen.push(range);
    }
    if left == 0 { found } else { vec![middle(&(0..n), excess)] }
}

/// Renders a chat up to the message `turn` and finds the part that is trained: what the template adds to the open chat, or each of
/// its `{% generation %}` blocks if it has any, after all that comes before.
fn answered_chat(
    row: &Row,
    chat: &Chat,
    turn: usize,
    tokenizer: &Tokenizer,
) -> Result<Vec<Whole>, DataError> {
    let up_to = |n: usize| Chat { messages: chat.messages[..n].to_vec(), ..chat.clone() };
    let render = |chat: &Chat, open: bool| {
        tokenizer.render_chat(chat, open).map_err(|error| row.tokenizer_error(error))
    };
    let (before, answered) = (up_to(turn), up_to(turn + 1));
    let whole = render(&answered, false)?;
    let open = render(&before, true)?.text;
    let differs = !whole.text.starts_with(&open);
    let is_empty = is_empty(&chat.messages[turn]);
    let mut start = open.len();
    if differs {
        let closed = render(&before, false)?.text;
        start = common_prefix(&open, &whole.text).max(common_prefix(&closed, &whole.text));
        let content = text_of(&chat.messages[turn]);
        let content_at = whole.text.rfind(content.trim()).filter(|_| !content.trim().is_empty());
        let has_history = start >= common_prefix(&open, &closed)
            || before.messages.last().is_some_and(|last| ends_before(&whole.text, &text_of(last), start));
        if !has_history {
            // The answer as it is rendered, after the prompt as it is rendered alone.
            let at = content_at.and_then(|content_at| continues_at(&open, &whole.text, content_at));
            let at = at.ok_or_else(|| {
                row.error(
                    "the chat template changes earlier messages when an answer follows, so the answer cannot be told apart \
                     from the prompt; use a template of your own over the fields of the row",
                )
            })?;
            let end = whole.generated.last().map_or(whole.text.len(), |block| block.end).max(at);
            let answer = open.len()..open.len() + end - at;
            let text = open + &whole.text[at..];
            return Ok(vec![Whole { answer, text, is_marked: false, differs, is_empty }]);
        }
    }
    let blocks = whole.generated.iter().filter(|block| block.end > start && !block.is_empty());
    let mut answers: Vec<Range<usize>> = Vec::new();
    for block in blocks {
        match answers.last_mut() {
            Some(last) if last.end == block.start => last.end = block.end,
            _ => answers.push(start.max(block.start)..block.end),
        }
    }
    let is_marked = !answers.is_empty();
    if !is_marked {
        answers.push(start..whole.text.len());
    }
    let text = whole.text;
    let whole = |answer| Whole { answer, text: text.clone(), is_marked, differs, is_empty };
    Ok(answers.into_iter().map(whole).collect())
}

/// Whether the last occurrence of `part` before `end` is there, and the text beyond `end` does not have it.
fn ends_before(text: &str, part: &str, end: usize) -> bool {
    let part = part.trim();
    !part.is_empty() && text[..end].contains(part) && !text[end..].contains(part)
}

/// The place in `whole`, at most `latest`, where the text before it agrees longest with the end of `open`.
fn continues_at(open: &str, whole: &str, latest: usize) -> Option<usize> {
    /// What a template puts between its last common text and an answer is short.
    const WINDOW: usize = 256;
    let agreeing = |at: usize| {
        let pairs = whole[..at].chars().rev().zip(open.chars().rev());
        pairs.take_while(|(a, b)| a == b).count()
    };
    let places = (latest.saturating_sub(WINDOW)..=latest).filter(|at| whole.is_char_boundary(*at));
    places.max_by_key(|at| agreeing(*at)).filter(|at| agreeing(*at) > 0)
}

/// Length in bytes of the longest common prefix.
fn common_prefix(a: &str, b: &str) -> usize {
    let pairs = a.char_indices().zip(b.chars());
    let differing = pairs.into_iter().find(|((_, x), y)| x != y);
    differing.map_or(a.len().min(b.len()), |((at, _), _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{data::parse_rows, tiny};
    use reft_models::ModelFiles;
    use serde_json::{Value, json};

    /// The embedded tokenizer with a chat template.
    fn tokenizer(chat_template: &str) -> Tokenizer {
        let folder = tempfile::tempdir().expect("a folder");
        let json = tiny::model().read("tokenizer.json").expect("embedded");
        std::fs::write(folder.path().join("tokenizer.json"), json).expect("written");
        let config = tiny::model().read("tokenizer_config.json").expect("embedded");
        let mut config: Value = serde_json::from_slice(&config).expect("valid");
        config["chat_template"] = chat_template.into();
        std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("written");
        Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect("loaded")
    }

    fn row(value: Value) -> Row {
        parse_rows(&value.to_string(), "d.json").expect("valid").remove(0)
    }

    fn parts(tokenizer: &Tokenizer, answer: &EncodedAnswer) -> (String, String) {
        let (prompt, answer) = answer.tokens.split_at(answer.prompt_len);
        (tokenizer.decode(prompt).expect("decoded"), tokenizer.decode(answer).expect("decoded"))
    }

    fn one(template: &str, tokenizer: &Tokenizer, value: Value) -> EncodedAnswer {
        let template = Template::parse(template).expect("a template");
        let mut all = template.encode_answered(&row(value), tokenizer, TrainOn::Last).expect("encoded");
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn the_answer_begins_with_the_token_that_holds_its_first_letter() {
        let t = tokenizer("");
        let value = json!({"instruction": "the old fox", "output": "the duck"});
        for end in ["\n", "", " ", "  ", ": ", " the "] {
            let answer = one(&format!("Q: {{{{ instruction }}}}{end}"), &t, value.clone());
            let (_, text) = parts(&t, &answer);
            assert!(
                text.trim_start().starts_with("the duck") || text.contains("the duck"),
                "{end:?}: {text:?}"
            );
            let prompt = format!("Q: the old fox{end}");
            let alone = t.encode(&prompt).expect("encoded");
            assert_eq!(answer.is_merged, !answer.tokens.starts_with(&alone), "{end:?}");
            assert_eq!(answer.tokens.last(), t.eos().map(|eos| &eos.id));
        }
    }

    #[test]
    fn an_answer_that_ends_in_the_end_token_does_not_get_a_second_one() {
        let tokenizer = tokenizer("x");
        let end = tokenizer.eos().expect("an end token").text.clone();
        let encode = |answer: String| {
            let row = row(json!({"prompt": "the old", "completion": answer}));
            Template::Plain.encode_answered(&row, &tokenizer, TrainOn::Last).expect("encoded").remove(0)
        };
        for answer in ["fox", ""] {
            assert_eq!(encode(format!("{answer}{end}")), encode(answer.into()));
        }
        let id = tokenizer.eos().map(|token| token.id);
        assert_eq!(encode(end.clone()).tokens.iter().filter(|token| Some(**token) == id).count(), 1);
        // One that somebody put in the middle stays.
        assert_eq!(encode(format!("{end} fox")).tokens.iter().filter(|token| Some(**token) == id).count(), 2);
    }

    #[test]
    fn an_answer_ends_in_the_end_token_even_if_texts_cannot_name_it() {
        let changed = |change: fn(&mut Value)| {
            let folder = tempfile::tempdir().expect("a folder");
            for file in ["tokenizer.json", "tokenizer_config.json"] {
                let json = tiny::model().read(file).expect("embedded");
                std::fs::write(folder.path().join(file), json).expect("written");
            }
            let config = tiny::model().read("tokenizer_config.json").expect("embedded");
            let mut config: Value = serde_json::from_slice(&config).expect("valid");
            change(&mut config);
            std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("written");
            Tokenizer::load(&ModelFiles::Folder(folder.path().into())).expect("loaded")
        };
        let value = json!({"prompt": "the old fox ", "completion": "the duck"});
        let expected = one("plain", &changed(|_| {}), value.clone());
        for change in [
            (|config| config["split_special_tokens"] = true.into()) as fn(&mut Value),
            (|config| {
                config["tokenizer_class"] = "LlamaTokenizer".into();
                config["add_eos_token"] = true.into();
            }) as fn(&mut Value),
        ] {
            assert_eq!(one("plain", &changed(change), value.clone()), expected);
        }
        let none = changed(|config| *config = json!({"tokenizer_class": "PreTrainedTokenizerFast"}));
        let error =
            Template::Plain.encode_answered(&row(value), &none, TrainOn::Last).expect_err("no end token");
        assert!(error.to_string().starts_with("the model's files name no end token"), "{error}");
    }

    #[test]
    fn of_an_empty_answer_the_end_token_is_trained() {
        let t = tokenizer("{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}");
        for template in ["plain", "alpaca", "chat"] {
            let answer = one(template, &t, json!({"instruction": "the old fox", "output": ""}));
            assert!(answer.is_empty, "{template}");
            assert_eq!(answer.tokens[answer.prompt_len..], [t.eos().expect("named").id], "{template}");
        }
    }

    #[test]
    fn an_answer_is_what_the_open_and_the_answered_chat_do_not_share() {
        let t = tokenizer(
            "{% for m in messages %}{% if m.role == 'user' %}<u>{{ m.content }}{% else %}<a>{{ m.content }}{{ eos_token }}\
             {% endif %}{% endfor %}{% if add_generation_prompt %}<a><think>\n{% endif %}",
        );
        let value = json!({"messages": [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "the duck"}]});
        let answer = one("chat", &t, value);
        assert!(answer.differs);
        let (prompt, text) = parts(&t, &answer);
        assert_eq!((prompt.as_str(), text.as_str()), ("<u>the fox<a>", "the duck"));
        // This one ends every rendering with the end token.
        let closing = tokenizer(
            "{% for m in messages %}[{{ m.role[0] }}]{{ m.content }}{% endfor %}{{ eos_token }}\
             {% if add_generation_prompt %}[a]{% endif %}",
        );
        let value = json!({"messages": [{"role": "user", "content": "the fox"}, {"role": "assistant", "content": "the duck"}]});
        assert_eq!(
            parts(&closing, &one("chat", &closing, value)),
            ("[u]the fox".into(), "[a]the duck".into())
        );
        // And this one shows the system's message with the last message of the user alone.
        let moving = tokenizer(
            "{% for m in messages %}{% if m.role == 'user' %}<u>{% if loop.last %}{{ messages[0].content }} {% endif %}\
             {{ m.content }}<a>{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
        );
        let value = json!({"messages": [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the fox"},
            {"role": "assistant", "content": "the duck"}]});
        assert_eq!(
            parts(&moving, &one("chat", &moving, value)),
            ("<u>be kind the fox<a>".into(), " the duck".into())
        );
        let changing = tokenizer(
            "{% for m in messages %}{{ messages | length }}{{ m.role }}{{ m.content }}{% endfor %}",
        );
        let value =
            json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]});
        let error =
            Template::Chat.encode_answered(&row(value), &changing, TrainOn::Last).expect_err("changes");
        assert!(
            error.to_string().starts_with("d.json, line 1: the chat template changes earlier messages"),
            "{error}"
        );
    }

    #[test]
    fn every_message_of_the_assistant_is_an_example_with_what_comes_before() {
        let t = tokenizer(
            "{% for m in messages %}<{{ m.role[0] }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}",
        );
        let turns =
            ["user", "assistant", "user", "assistant"].into_iter().zip(["one", "two", "three", "four"]);
        let messages: Vec<Value> = turns.map(|(role, text)| json!({"role": role, "content": text})).collect();
        let row = row(json!({"messages": messages}));
        let encode = |train_on| Template::Chat.encode_answered(&row, &t, train_on).expect("encoded");
        let texts: Vec<_> = encode(TrainOn::All).iter().map(|answer| parts(&t, answer)).collect();
        let expected = [("<u>one<a>", "two"), ("<u>one<a>two<u>three<a>", "four")];
        assert_eq!(texts, expected.map(|(prompt, answer)| (prompt.to_string(), answer.to_string())));
        assert_eq!(encode(TrainOn::Last), encode(TrainOn::All)[1..]);
    }

    #[test]
    fn within_generation_blocks_alone_answers_are_trained() {
        let t = tokenizer(
            "{% for m in messages %}<{{ m.role[0] }}>{% if m.role == 'assistant' %}!{% generation %}{{ m.content }}\
             {% endgeneration %};{% else %}{{ m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}",
        );
        let value = json!({"messages": [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]});
        let (prompt, answer) = parts(&t, &one("chat", &t, value));
        assert_eq!((prompt.as_str(), answer.as_str()), ("<u>one<a>!", "two"));
    }

    #[test]
    fn each_generation_block_of_a_message_is_trained_and_nothing_between_them() {
        let template = |between: &str| {
            tokenizer(&format!(
                "{{% for m in messages %}}<{{{{ m.role[0] }}}}>{{% if m.role == 'assistant' %}}!{{% generation %}}\
                 {{{{ m.thinking }}}}{{% endgeneration %}}{between}{{% generation %}}{{{{ m.content }}}}{{% endgeneration %}};\
                 {{% else %}}{{{{ m.content }}}}{{% endif %}}{{% endfor %}}{{% if add_generation_prompt %}}<a>{{% endif %}}"
            ))
        };
        let value = json!({"messages": [{"role": "user", "content": "one"},
            {"role": "assistant", "thinking": "two", "content": "three"}]});
        let row = parse_rows(&value.to_string(), "d.json").expect("valid").remove(0);
        let trained = |between: &str| {
            let t = template(between);
            let encoded = Template::Chat.encode_answered(&row, &t, TrainOn::Last).expect("usable");
            encoded.iter().map(|answered| parts(&t, answered)).collect::<Vec<_>>()
        };
        let pairs = [("<u>one<a>!", "two"), ("<u>one<a>!two ##", "three")];
        assert_eq!(trained(" ##"), pairs.map(|(prompt, answer)| (prompt.to_string(), answer.to_string())));
        assert_eq!(trained(""), [("<u>one<a>!".to_string(), "twothree".to_string())]);
    }

    #[test]
    fn a_long_prompt_keeps_what_the_template_puts_around_its_texts() {
        let t = tokenizer(
            "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<answer>{% endif %}",
        );
        let long = (0..300).map(|n| format!("w{n}")).collect::<Vec<_>>().join(" ");
        for template in ["alpaca", "chat", "Q: {{ instruction }}\nAnswer:"] {
            let template = Template::parse(template).expect("a template");
            let whole =
                template.encode_prompt(&template.question(&long), &t, PromptLimit::NONE).expect("encoded");
            let cut =
                template.encode_prompt(&template.question(&long), &t, PromptLimit::of(200)).expect("encoded");
            assert_eq!((whole.is_cut, cut.is_cut, cut.tokens.len()), (false, true, 200));
            let ends =
                |n: usize| (whole.tokens[..n].to_vec(), whole.tokens[whole.tokens.len() - n..].to_vec());
            assert_eq!((cut.tokens[..40].to_vec(), cut.tokens[160..].to_vec()), ends(40));
        }
        let limit = PromptLimit::of_context(512, 256);
        assert_eq!((limit.longest, limit.cut_to), (511, 256));
        assert_eq!(PromptLimit::of_context(128, 256).cut_to, 64);
    }

    #[test]
    fn several_long_texts_are_cut_before_the_template_is() {
        let cut = |excess, texts: &[Range<usize>]| {
            left_out(excess, texts.to_vec(), 40)
                .into_iter()
                .map(|range| (range.start, range.end))
                .collect::<Vec<_>>()
        };
        assert_eq!(cut(3, &[2..8, 10..30]), [(19, 22)]);
        assert_eq!(cut(22, &[2..8, 10..30]), [(11, 30), (4, 7)]);
        // The same text twice is found once.
        assert_eq!(cut(5, &[2..8, 2..8]), [(3, 8)]);
        // The template alone is too long.
        assert_eq!(cut(25, &[2..8, 10..30]), [(8, 33)]);
        assert_eq!(cut(10, &[]), [(15, 25)]);
    }
}
