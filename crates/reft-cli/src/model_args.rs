//! The arguments for model, adapter and device that several verbs share.

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use reft_core::{Reft, adapter::CONFIG_FILE};
use reft_models::{Dtype, Llama, LoadError, LoadedModel, Quant};
use reft_train::reft_kernels::Kernels;
use reft_train::{
    Chosen, RunError, Template,
    adapter_files::{AdapterFiles, AdapterKind},
    data::{Row, max_length},
    open::{LanguageModelAdapter, PrecisionRequest, check_generates, load_adapter, load_model},
    recipe::{parse_dtype, parse_quant},
    same_model::OtherWeights,
};
use std::path::{Path, PathBuf};

/// A value, or none for a word such as `auto`. The alias keeps clap from treating it as an optional argument.
type Choice<T> = Option<T>;

#[derive(Args)]
pub struct ModelArgs {
    /// Folder, name on the Hugging Face Hub, or `embedded:tiny` [default: the adapter's model]
    #[arg(long)]
    pub model: Option<String>,
    /// Branch, tag or commit on the Hub [default: the one of the adapter's model]
    #[arg(long)]
    pub revision: Option<String>,
    /// Folder of the adapter: one of reft, the run it belongs to, or LoRA of PEFT
    #[arg(long)]
    pub adapter: Option<PathBuf>,
    /// Use the adapter although the model has other weights than the one it was trained on
    #[arg(long, requires = "adapter")]
    pub force: bool,
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

fn quant_of(quant: Option<String>, folder: &Path) -> Result<Option<Quant>> {
    let Some(quant) = quant else { return Ok(None) };
    let file = folder.join(CONFIG_FILE);
    parse_quant(&quant).map_err(|reason| anyhow!("{}: base_model.quant: {reason}", file.display()))
}

/// A language model, ready to use.
pub struct Ready<B: Kernels> {
    pub loaded: LoadedModel<B, Llama<B>>,
    pub adapter: Option<LanguageModelAdapter<B>>,
    pub max_length: usize,
}

impl ModelArgs {
    /// The name of the requested model, or of the adapter's.
    pub fn name(&self) -> Result<String> {
        match (&self.model, &self.adapter) {
            (Some(name), _) => Ok(name.clone()),
            (None, Some(adapter)) => match AdapterFiles::find(adapter)?.base_model() {
                Some(name) => Ok(name.into()),
                None => bail!("{}: does not name its model; pass it with --model", adapter.display()),
            },
            (None, None) => bail!("no model given: pass --model or --adapter"),
        }
    }

    /// The requested revision, or that of the adapter's model if this is the one that is used.
    pub fn revision(&self) -> Result<Option<String>> {
        match (&self.revision, &self.model, &self.adapter) {
            (None, None, Some(adapter)) => Ok(AdapterFiles::find(adapter)?.revision().map(str::to_string)),
            (revision, ..) => Ok(revision.clone()),
        }
    }

    /// Says on standard error which model is about to be downloaded because the adapter names it.
    pub fn announce_download(&self) -> Result<()> {
        let (name, revision) = (self.name()?, self.revision()?);
        let is_named_by_adapter = self.model.is_none() && !name.starts_with(reft_train::tiny::PREFIX);
        if is_named_by_adapter && reft_models::load::needs_download(&name, revision.as_deref()) {
            let revision = revision.map_or(String::new(), |revision| format!(" (revision {revision})"));
            note!("the adapter was trained on {name}{revision}, which is downloaded from the Hub now");
        }
        Ok(())
    }

    /// Adds to an error about a missing model that the adapter names it, as it was when the adapter was trained.
    pub fn where_named(&self, error: RunError) -> anyhow::Error {
        match (&self.model, &self.adapter, &error) {
            (None, Some(adapter), RunError::Load(LoadError::Hub(_))) => {
                anyhow!("{error}; {} names this model: pass where it is now with --model", adapter.display())
            }
            _ => error.into(),
        }
    }

    /// What to do with an adapter of other weights.
    pub fn other_weights(&self) -> OtherWeights {
        if self.force { OtherWeights::Warn } else { OtherWeights::Refuse }
    }

    /// The requested precision; the quantization is the adapter's unless requested otherwise.
    pub fn precision(&self) -> Result<PrecisionRequest> {
        let of_adapter = match &self.adapter {
            Some(path) => {
                let AdapterFiles { folder, kind } = AdapterFiles::find(path)?;
                match kind {
                    AdapterKind::Reft(config, _) => quant_of(config.base_model.quant, &folder)?,
                    AdapterKind::Peft(_) => None,
                }
            }
            None => None,
        };
        Ok(PrecisionRequest { dtype: self.dtype, quant: self.quant.unwrap_or(of_adapter) })
    }

    /// Loads the language model and its adapter.
    pub fn load<B: Kernels>(&self, on: &Chosen<B::Device>) -> Result<Ready<B>> {
        if let Some(folder) = &self.adapter {
            check_generates(&AdapterFiles::find(folder)?)?;
        }
        let name = self.name()?;
        self.announce_download()?;
        B::seed(&on.device, self.seed);
        let loaded: LoadedModel<B, Llama<B>> =
            load_model(&name, self.revision()?.as_deref(), self.precision()?, on)
                .map_err(|error| self.where_named(error))?;
        let load = |folder| load_adapter(folder, &loaded, self.other_weights(), &on.device);
        let adapter = self.adapter.as_deref().map(load).transpose()?;
        for warning in adapter.iter().flat_map(|adapter| &adapter.warnings) {
            warning!("{warning}");
        }
        let max_length = max_length(self.max_length, loaded.model.config().max_position_embeddings)?;
        Ok(Ready { loaded, adapter, max_length })
    }
}

impl<B: Kernels> Ready<B> {
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
