//! `reft chat`: interactive chat.

use crate::{
    generate::{SamplingArgs, show_generated},
    model_args::ModelArgs,
};
use anyhow::Result;
use clap::Args;
use reft_models::ChatMessage;
use reft_train::reft_kernels::AutodiffKernels;
use reft_train::{
    Chosen, OnDevice, Template,
    data::{PromptLimit, Row},
    on_device,
};
use serde_json::json;
use std::io::{BufRead, IsTerminal, Write};

#[derive(Args)]
pub struct ChatArgs {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    sampling: SamplingArgs,
}

pub fn chat(args: &ChatArgs) -> Result<()> {
    on_device(&args.model.device, args)?
}

impl OnDevice for &ChatArgs {
    type Output = Result<()>;

    fn run<A: AutodiffKernels>(self, on: &Chosen<A::Device>) -> Result<()> {
        let ready = self.model.load::<A::InnerBackend>(on)?;
        let tokenizer = &ready.loaded.tokenizer;
        let context = ready.loaded.model.config().max_position_embeddings;
        let of_adapter = ready.adapter.as_ref().map_or("auto", |adapter| &adapter.template);
        let template = match (&self.model.template, of_adapter) {
            (None, "auto") if tokenizer.has_chat_template() => Template::Chat,
            _ => ready.template(self.model.template.as_deref(), &[])?,
        };
        let terminal = std::io::stdin().is_terminal();
        if terminal {
            let memory = if template == Template::Chat { "" } else { "; each question is independent" };
            say!(
                "{} with template {}{memory}. An empty line or Ctrl-D ends the chat.",
                ready.loaded.base.name,
                template.text()
            );
        }
        let mut messages: Vec<ChatMessage> = Vec::new();
        let mut lines = std::io::stdin().lock().lines();
        loop {
            if terminal {
                write!(std::io::stdout(), "> ")?;
                std::io::stdout().flush()?;
            }
            let Some(line) = lines.next().transpose()?.filter(|line| !line.trim().is_empty()) else { break };
            let row = if template == Template::Chat {
                messages.push(ChatMessage { role: "user".into(), content: line });
                conversation(&messages)
            } else {
                template.question(&line)
            };
            let mut prompt = template.encode_prompt(&row, tokenizer, PromptLimit::NONE)?.tokens;
            // The oldest question and answer make room; instructions of the system stay.
            let mut n_dropped = 0;
            while prompt.len() + ROOM > context && drop_oldest(&mut messages) {
                n_dropped += 1;
                prompt =
                    template.encode_prompt(&conversation(&messages), tokenizer, PromptLimit::NONE)?.tokens;
            }
            if n_dropped > 0 {
                let turns = if n_dropped == 1 { "turn is" } else { "turns are" };
                note!(
                    "the model's context of {context} tokens is full: the {n_dropped} oldest {turns} forgotten"
                );
            }
            if prompt.len() >= context {
                let tokens = prompt.len();
                note!(
                    "this question has {tokens} tokens, but the model's context is {context}; ask a shorter one"
                );
                messages.pop();
                continue;
            }
            let config = self.sampling.config(&ready.loaded, self.model.seed);
            let out = show_generated(&ready, prompt, &config)?;
            say!();
            let content = tokenizer.decode(&out.tokens)?;
            if template == Template::Chat {
                messages.push(ChatMessage { role: "assistant".into(), content });
            }
        }
        Ok(())
    }
}

/// Tokens of the context that are kept free for an answer.
const ROOM: usize = 32;

/// Removes the oldest question with its answer; false if only the last question is left.
fn drop_oldest(messages: &mut Vec<ChatMessage>) -> bool {
    let Some(first) = messages.iter().position(|message| message.role == "user") else { return false };
    let rest = &messages[first + 1..];
    let Some(next) = rest.iter().position(|message| message.role == "user") else { return false };
    messages.drain(first..first + 1 + next);
    true
}

fn conversation(messages: &[ChatMessage]) -> Row {
    let mut fields = serde_json::Map::new();
    fields.insert("messages".into(), json!(messages));
    Row::from_fields(fields, "the conversation")
}
