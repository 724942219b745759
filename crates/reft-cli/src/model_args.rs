//! The arguments for model, adapter and device that several verbs share.

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::backend::Backend;
use clap::Args;
use reft_core::{Reft, adapter::CONFIG_FILE};
use reft_models::{Dtype, Llama, LoadedModel, Quant};
use reft_train::{
    Chosen, Template,
    adapter::read_adapter,
    data::{Row, max_length},
    open::{LanguageModelAdapter, PrecisionRequest, check_generates, load_adapter, load_model},
    recipe::{parse_dtype, parse_quant},
};
use std::path::PathBuf;

/// A value, or none for a word such as `auto`. The alias keeps clap from treating it as an optional argument.
type Choice<T> = Option<T>;

#[derive(Args)]
pub struct ModelArgs {
    /// Folder, name on the Hugging Face Hub, or `embedded:tiny` [default: the adapter's model]
    #[arg(long)]
    pub model: Option<String>,
    /// Branch, tag or commit on the Hub
    #[arg(long)]
    pub revision: Option<String>,
    /// Folder of the adapter
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// `alpaca`, `chat`, `plain`, or a Jinja template such as `Q: {{ instruction }}` [default: the adapter's template]
    #[arg(long)]
    pub template: Option<String>,
    /// Maximum tokens per row [default: the smaller of 512 and the model's context]
    #[arg(long)]
    pub max_length: Option<usize>,
    /// `auto`, `cpu`, `ndarray`, `wgpu`, `vulkan`, `metal` or `cuda`, with an optional index as in `cuda:1`; see `reft devices`
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Dtype of the model: `auto`, `f32`, `f16` or `bf16`
    #[arg(long, default_value = "auto", value_parser = parse_dtype)]
    pub dtype: Choice<Dtype>,
    /// Quantization of the model: `none`, `int8` or `int4` [default: the one that the adapter was trained with]
    #[arg(long, value_parser = parse_quant)]
    pub quant: Option<Choice<Quant>>,
    /// Random seed
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
}

/// A language model, ready to use.
pub struct Ready<B: Backend> {
    pub loaded: LoadedModel<B, Llama<B>>,
    pub adapter: Option<LanguageModelAdapter<B>>,
    pub max_length: usize,
}

impl ModelArgs {
    /// The name of the requested model, or of the adapter's.
    pub fn name(&self) -> Result<String> {
        match (&self.model, &self.adapter) {
            (Some(name), _) => Ok(name.clone()),
            (None, Some(adapter)) => Ok(read_adapter(adapter)?.0.base_model.name),
            (None, None) => bail!("no model given: pass --model or --adapter"),
        }
    }

    /// The requested precision; the quantization is the adapter's unless requested otherwise.
    pub fn precision(&self) -> Result<PrecisionRequest> {
        let of_adapter = match &self.adapter {
            Some(folder) => match read_adapter(folder)?.0.base_model.quant {
                Some(quant) => parse_quant(&quant).map_err(|reason| {
                    let file = folder.join(CONFIG_FILE);
                    anyhow!("{}: base_model.quant: {reason}", file.display())
                })?,
                None => None,
            },
            None => None,
        };
        Ok(PrecisionRequest { dtype: self.dtype, quant: self.quant.unwrap_or(of_adapter) })
    }

    /// Loads the language model and its adapter.
    pub fn load<B: Backend>(&self, on: &Chosen<B::Device>) -> Result<Ready<B>> {
        if let Some(folder) = &self.adapter {
            check_generates(folder, read_adapter(folder)?.1.task.as_ref())?;
        }
        let name = self.name()?;
        B::seed(&on.device, self.seed);
        let loaded: LoadedModel<B, Llama<B>> =
            load_model(&name, self.revision.as_deref(), self.precision()?, on)?;
        let adapter = self.adapter.as_deref();
        let adapter = adapter.map(|folder| load_adapter(folder, &loaded, &on.device)).transpose()?;
        let max_length = max_length(self.max_length, loaded.model.config().max_position_embeddings)?;
        Ok(Ready { loaded, adapter, max_length })
    }
}

impl<B: Backend> Ready<B> {
    /// The model, with the weights of a baseline if the adapter is one.
    pub fn model(&self) -> &Llama<B> {
        self.adapter.as_ref().map_or(&self.loaded.model, |adapter| adapter.model(&self.loaded.model))
    }

    /// The interventions of the adapter.
    pub fn reft(&self) -> Option<&Reft<B>> {
        self.adapter.as_ref().map(|loaded| &loaded.adapter.reft)
    }

    /// The requested template, or the adapter's, or the one that suits the rows.
    pub fn template(&self, requested: Option<&str>, rows: &[Row]) -> Result<Template> {
        let of_adapter = self.adapter.as_ref().map(|loaded| loaded.template.as_str());
        let text = requested.or(of_adapter).unwrap_or("auto");
        // A single prompt without a template is continued as it is.
        let text = if rows.is_empty() && text == "auto" { "plain" } else { text };
        Template::resolve(text, rows).context("--template")
    }
}
