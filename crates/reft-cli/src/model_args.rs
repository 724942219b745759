//! The arguments for model, adapter and device that several verbs share.

use crate::numbers;
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
    #[arg(long, value_parser = numbers::whole, allow_negative_numbers = true)]
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
    #[arg(long, default_value_t = 42, value_parser = numbers::seed, allow_negative_numbers = true)]
    pub seed: u64,
}

fn quant_of(quant: Option<String>, folder: &Path) -> Result<Option<Quant>> {
    let Some(quant) = quant else { return Ok(None) };
    let file = folder.join(CONFIG_FILE);
    parse_quant(&quant).map_err(|reason| anyhow!("{}: base_model.quant: {reason}", file.display()))
}

/// The model that is asked for.
pub struct Request {
    pub name: String,
    pub revision: Option<String>,
    pub precision: PrecisionRequest,
}

/// A language model, ready to use.
pub struct Ready<B: Kernels> {
    pub loaded: LoadedModel<B, Llama<B>>,
    pub adapter: Option<LanguageModelAdapter<B>>,
    pub max_length: usize,
}

impl ModelArgs {
    /// What is requested of the model; what is not said is the adapter's.
    pub fn request(&self, adapter: Option<&AdapterFiles>) -> Result<Request> {
        let name = match (&self.model, adapter) {
            (Some(name), _) => name.clone(),
            (None, Some(files)) => match files.base_model() {
                Some(name) => name.into(),
                None => bail!("{}: does not name its model; pass it with --model", files.folder.display()),
            },
            (None, None) => bail!("no model given: pass --model or --adapter"),
        };
        let revision = match (&self.revision, &self.model, adapter) {
            (None, None, Some(files)) => files.revision().map(str::to_string),
            (revision, ..) => revision.clone(),
        };
        let quant = match adapter {
            Some(AdapterFiles { folder, kind: AdapterKind::Reft(config, _) }) => {
                quant_of(config.base_model.quant.clone(), folder)?
            }
            _ => None,
        };
        let precision = PrecisionRequest { dtype: self.dtype, quant: self.quant.unwrap_or(quant) };
        Ok(Request { name, revision, precision })
    }

    /// Says on standard error which model is about to be downloaded because the adapter names it.
    pub fn announce_download(&self, request: &Request) {
        let Request { name, revision, .. } = request;
        let is_named_by_adapter = self.model.is_none() && !name.starts_with(reft_train::tiny::PREFIX);
        if is_named_by_adapter && reft_models::load::needs_download(name, revision.as_deref()) {
            let revision =
                revision.as_ref().map_or(String::new(), |revision| format!(" (revision {revision})"));
            note!("the adapter was trained on {name}{revision}, which is downloaded from the Hub now");
        }
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

    /// Loads the language model and its adapter.
    pub fn load<B: Kernels>(&self, on: &Chosen<B::Device>) -> Result<Ready<B>> {
        let files = self.adapter.as_deref().map(AdapterFiles::find).transpose()?;
        files.iter().try_for_each(check_generates)?;
        let request = self.request(files.as_ref())?;
        self.announce_download(&request);
        let Request { name, revision, precision } = request;
        B::seed(&on.device, self.seed);
        let loaded: LoadedModel<B, Llama<B>> =
            load_model(&name, revision.as_deref(), precision, on).map_err(|error| self.where_named(error))?;
        let load = |folder| load_adapter(folder, &loaded, self.other_weights(), &on.device);
        let adapter = self.adapter.as_deref().map(load).transpose()?;
        let of_adapter = adapter.iter().flat_map(|adapter| &adapter.warnings);
        for warning in loaded.warnings.iter().chain(of_adapter) {
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
