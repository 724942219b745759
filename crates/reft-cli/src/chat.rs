//! `reft chat`: interactive chat.

use crate::{
    generate::{SamplingArgs, show_generated},
    model_args::ModelArgs,
};
use anyhow::Result;
use burn::tensor::backend::AutodiffBackend;
use clap::Args;
use reft_models::ChatMessage;
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

    fn run<A: AutodiffBackend>(self, on: &Chosen<A::Device>) -> Result<()> {
        let ready = self.model.load::<A::InnerBackend>(on)?;
        let tokenizer = &ready.loaded.tokenizer;
        let template = match (&self.model.template, &ready.adapter) {
            (None, None) if tokenizer.has_chat_template() => Template::Chat,
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
            let prompt = template.encode_prompt(&row, tokenizer, PromptLimit::NONE)?.tokens;
            let config = self.sampling.config(&ready.loaded.stop_ids, self.model.seed);
            let out = show_generated(&ready, prompt, &config)?;
            say!();
            let content = tokenizer.decode(&out.tokens)?;
            messages.push(ChatMessage { role: "assistant".into(), content });
        }
        Ok(())
    }
}

fn conversation(messages: &[ChatMessage]) -> Row {
    let mut fields = serde_json::Map::new();
    fields.insert("messages".into(), json!(messages));
    Row::from_fields(fields, "the conversation")
}
