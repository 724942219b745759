//! The model, adapter and device that `eval`, `generate` and `chat` share.

use anyhow::{Context, Error, Result, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use reft_core::{Adapter, adapter::read_config};
use reft_models::{Dtype, LoadedModel, Quant};
use reft_train::{
    Chosen, Template,
    data::Row,
    recipe::{parse_dtype, parse_quant},
    run::{Wish, check_generates, load_adapter, load_model, max_length},
};
use std::path::PathBuf;

/// One of several, or none by a word such as `auto`. Under this name clap does not take it for an optional argument.
type Choice<T> = Option<T>;

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
    /// Type of the model's numbers: `auto`, `f32`, `f16` or `bf16`
    #[arg(long, default_value = "auto", value_parser = parse_dtype)]
    pub dtype: Choice<Dtype>,
    /// Quantisation of the model's weights: `none`, `int8` or `int4`; as the adapter was trained with if absent
    #[arg(long, value_parser = parse_quant)]
    pub quant: Option<Choice<Quant>>,
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

    /// How the model is to be held.
    pub fn wish(&self) -> Result<Wish> {
        let of_adapter = match &self.adapter {
            Some(adapter) => read_config(adapter)?.base_model.quant,
            None => None,
        };
        let of_adapter = of_adapter.map_or(Ok(None), |quant| parse_quant(&quant)).map_err(Error::msg)?;
        Ok(Wish { dtype: self.dtype, quant: self.quant.unwrap_or(of_adapter) })
    }

    pub fn load<B: Backend>(&self, on: &Chosen<B::Device>) -> Result<Ready<B>> {
        if let Some(folder) = &self.adapter {
            check_generates(folder, read_config(folder)?.task.as_ref())?;
        }
        let name = self.name()?;
        B::seed(&on.device, self.seed);
        let mut loaded: LoadedModel<B> = load_model(&name, self.revision.as_deref(), self.wish()?, on)?;
        let adapter = self.adapter.as_deref();
        let adapter = adapter.map(|folder| load_adapter(folder, &mut loaded, &on.device)).transpose()?;
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
