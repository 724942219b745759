//! The model, adapter and device that `eval`, `generate` and `chat` share.

use anyhow::{Context, Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use reft_core::{Adapter, adapter::read_config};
use reft_models::LoadedModel;
use reft_train::{
    Template,
    data::Row,
    run::{check_generates, find_model, load_adapter, max_length},
};
use std::path::PathBuf;

#[derive(Args)]
pub struct ModelArgs {
    /// Folder, name on the Hugging Face hub, or `embedded:tiny`; the adapter's own model if absent
    #[arg(long)]
    pub model: Option<String>,
    /// Branch, tag or commit on the hub
    #[arg(long)]
    pub revision: Option<String>,
    /// Folder of an adapter
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// `alpaca`, `chat`, `plain`, or a Jinja text such as `Q: {{ instruction }}`; the adapter's own if absent
    #[arg(long)]
    pub template: Option<String>,
    /// Longest row in tokens; the smaller of 512 and the model's context if absent
    #[arg(long)]
    pub max_length: Option<usize>,
    /// `auto`, `cpu`, `ndarray`, `wgpu`, `vulkan`, `metal` or `cuda`, or one of several as in `cuda:1`; see `reft devices`
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Seed of everything random
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

/// A model, ready to be used.
pub struct Ready<B: Backend> {
    pub loaded: LoadedModel<B>,
    pub adapter: Option<Adapter<B>>,
    pub max_length: usize,
}

impl ModelArgs {
    /// The model asked for, or the adapter's.
    pub fn name(&self) -> Result<String> {
        match (&self.model, &self.adapter) {
            (Some(name), _) => Ok(name.clone()),
            (None, Some(adapter)) => Ok(read_config(adapter)?.base_model.name),
            (None, None) => bail!("which model? give --model or --adapter"),
        }
    }

    pub fn load<B: Backend>(&self, device: &B::Device) -> Result<Ready<B>> {
        if let Some(folder) = &self.adapter {
            check_generates(folder, &read_config(folder)?)?;
        }
        let name = self.name()?;
        B::seed(device, self.seed);
        let files = find_model(&name, self.revision.as_deref())?;
        let mut loaded: LoadedModel<B> = LoadedModel::load(&files, &name, device)?;
        let adapter =
            self.adapter.as_deref().map(|folder| load_adapter(folder, &mut loaded, device)).transpose()?;
        let max_length = max_length(self.max_length, loaded.model.config().max_position_embeddings)?;
        Ok(Ready { loaded, adapter, max_length })
    }
}

impl<B: Backend> Ready<B> {
    /// The template asked for, or the adapter's, or the one that goes with the rows.
    pub fn template(&self, asked: Option<&str>, rows: &[Row]) -> Result<Template> {
        let text = asked.or(self.adapter.as_ref().map(|a| a.template.as_str())).unwrap_or("auto");
        // A bare prompt without any template is continued as it is.
        let text = if rows.is_empty() && text == "auto" { "plain" } else { text };
        Template::resolve(text, rows).context("--template")
    }
}
