//! Language models: train, load and apply adapters, and stream text.

use super::trainer::{Trained, Trainer};
use crate::{
    adapter::{AdapterMetadata, AdapterOrigin},
    data::{DataError, DataSet, Encoding, PromptLimit, Row, Template, TextStream, max_length},
    error::RunError,
    eval::EvalError,
    open::{LanguageModelAdapter, find_model, load_adapter},
    same_model::{OtherWeights, check_sizes},
    tasks::LanguageModeling,
};
use reft_core::{Adapter, Hook, NoHook, ReftConfig, hook::check_sites};
use reft_kernels::Kernels;
use reft_models::{
    GenerateConfig, Llama, LoadedModel, Padding, Precision, TokenBatch, generate as generate_tokens,
};
use std::{ops::ControlFlow, path::Path, sync::Arc};

/// A frozen language model. Clones share it.
#[derive(Debug, Clone)]
pub struct LanguageModel<B: Kernels> {
    loaded: Arc<LoadedModel<B, Llama<B>>>,
}

impl<B: Kernels> From<LoadedModel<B, Llama<B>>> for LanguageModel<B> {
    fn from(loaded: LoadedModel<B, Llama<B>>) -> Self {
        Self { loaded: Arc::new(loaded) }
    }
}

impl<B: Kernels> LanguageModel<B> {
    /// Loads a model in f32 by the path of its folder, as `embedded:tiny`, or, with the feature `hub`, by its name on the
    /// Hugging Face Hub. For another precision, load a [`LoadedModel`] and convert it.
    ///
    /// # Errors
    /// If there is no such model, or it is damaged or not supported.
    pub fn load(name: &str, device: &B::Device) -> Result<Self, RunError> {
        let files = find_model(name, None)?;
        Ok(LoadedModel::load(&files, name, Precision::default(), device)?.into())
    }

    /// The model with its tokenizer.
    pub fn loaded(&self) -> &LoadedModel<B, Llama<B>> {
        &self.loaded
    }

    /// LoReFT of rank 8 on the outputs of these blocks, at positions `f7+l7`.
    pub fn reft(&self, layers: impl IntoIterator<Item = usize>) -> ReftConfig {
        ReftConfig::new(self.loaded.model.config().hidden_size, layers)
    }

    /// Trains an adapter on pairs of prompt and answer.
    ///
    /// # Errors
    /// If the settings or the pairs cannot be used, or training cannot go on.
    pub fn train(
        &self,
        pairs: &[(impl AsRef<str>, impl AsRef<str>)],
        trainer: Trainer<'_>,
    ) -> Result<Trained<LanguageModelAdapter<B>>, RunError> {
        self.train_rows(&Row::pairs(["prompt", "completion"], pairs), trainer)
    }

    /// Trains an adapter on rows, such as those of [`read_rows`](crate::data::read_rows).
    ///
    /// # Errors
    /// If the settings or the rows cannot be used, or training cannot go on.
    pub fn train_rows(
        &self,
        rows: &[Row],
        trainer: Trainer<'_>,
    ) -> Result<Trained<LanguageModelAdapter<B>>, RunError> {
        let (loaded, model) = (&self.loaded, &self.loaded.model);
        let config = model.config();
        let reft = trainer.checked_reft(config)?;
        let template = Template::resolve(&trainer.template, rows)?;
        let max_length = max_length(trainer.max_length, config.max_position_embeddings)?;
        let encoding = Encoding::new(&template, &loaded.tokenizer, config.vocab_size, max_length)
            .with_train_on(trainer.train_on);
        let encode = |rows: &[Row], what: &str| match rows {
            [] => Ok(Vec::new()),
            rows => DataSet::encode(rows, encoding, what).map(|set| set.examples),
        };
        let (examples, held_out) =
            (encode(rows, "the rows")?, encode(&trainer.held_out, "the held-out rows")?);
        let origin = AdapterOrigin::language_model(loaded.base.clone(), template.text());
        let objective = LanguageModeling::new(model, trainer.config.batch_size).with_reuse(
            &trainer.config,
            reft.first_layer(),
            reft.packing(),
            None,
        );
        let trained = trainer.run(
            origin.base.quant.is_some(),
            &objective,
            reft.try_init(&model.device())?.into(),
            &examples,
            &held_out,
            &origin,
        )?;
        Ok(trained.map(|trainable| {
            let template = origin.template;
            let metadata = AdapterMetadata { template: template.clone(), ..AdapterMetadata::default() };
            let adapter = Adapter::new(trainable.reft, origin.base).with_metadata(&metadata);
            LanguageModelAdapter::trained(adapter, template)
        }))
    }

    /// Loads an adapter for this model. The model stays as it is, so any number of adapters can be loaded and used in turn.
    ///
    /// # Errors
    /// If it cannot be read, is a classifier's, or was trained on another model.
    pub fn adapter(&self, folder: impl AsRef<Path>) -> Result<LanguageModelAdapter<B>, RunError> {
        let device = self.loaded.model.device();
        load_adapter(folder.as_ref(), &self.loaded, OtherWeights::Refuse, &device)
    }

    /// Loads an adapter of a model with other weights, whose effect on this model is unknown. Its sizes must fit, and its
    /// [`warnings`](LanguageModelAdapter::warnings) say what differs.
    ///
    /// # Errors
    /// If it cannot be read, is a classifier's, or does not fit the sizes of this model.
    pub fn adapter_of_other_weights(
        &self,
        folder: impl AsRef<Path>,
    ) -> Result<LanguageModelAdapter<B>, RunError> {
        load_adapter(folder.as_ref(), &self.loaded, OtherWeights::Warn, &self.loaded.model.device())
    }

    /// Continues a prompt with an adapter, greedily, up to 256 tokens. [`stream`](Self::stream) has settings.
    ///
    /// # Errors
    /// If the prompt does not fit the model.
    pub fn generate(&self, prompt: &str, adapter: &LanguageModelAdapter<B>) -> Result<String, RunError> {
        let config = GenerateConfig::default().with_max_new_tokens(256);
        self.stream(prompt, adapter, config, |_| ControlFlow::Continue(()))
    }

    /// Continues a prompt with an adapter, in the adapter's template, and returns the whole text.
    ///
    /// `on_text` is called for every token with the text that it completes, which is empty in the middle of a character.
    /// Generation ends when it returns `Break`; to cancel from another thread, let it read an `AtomicBool`.
    ///
    /// # Errors
    /// If the prompt does not fit the model, a setting is out of range, or the adapter is of another model or device.
    pub fn stream(
        &self,
        prompt: &str,
        adapter: &LanguageModelAdapter<B>,
        config: GenerateConfig,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<String, RunError> {
        let model = &self.loaded.model;
        let base = &self.loaded.base;
        check_sizes(Path::new("the adapter"), adapter.adapter.reft.config(), base, model.config())?;
        if adapter.used_on != base.fingerprint {
            return Err(RunError::OtherWeights {
                adapter: "the adapter".into(),
                model: base.name.clone(),
                trained_on: adapter.adapter.base_model.name.clone(),
            });
        }
        let of_adapter = adapter.adapter.reft.edits().next().map(|edit| edit.intervention.bias().device());
        if of_adapter.is_some_and(|device| device != model.device()) {
            return Err(RunError::OtherDevice);
        }
        // An adapter of PEFT does not say with which template it was trained.
        let text = if adapter.template == "auto" { "plain" } else { &adapter.template };
        let template = Template::parse(text)?;
        let question = template.question(prompt);
        let tokens = template.encode_prompt(&question, &self.loaded.tokenizer, PromptLimit::NONE)?.tokens;
        self.stream_tokens(adapter.model(model), tokens, adapter, config, on_text)
    }

    /// Continues a prompt, as it is, with any hook: [`NoHook`], a [`Steer`](reft_core::Steer), or your own.
    ///
    /// # Errors
    /// As [`stream`](Self::stream), or if the hook needs a layer that the model does not have.
    pub fn stream_with_hook(
        &self,
        prompt: &str,
        hook: &(impl Hook<B> + ?Sized),
        config: GenerateConfig,
        on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<String, RunError> {
        let tokens = self.loaded.tokenizer.encode(prompt).map_err(DataError::from)?;
        self.stream_tokens(&self.loaded.model, tokens, hook, config, on_text)
    }

    /// Continues a prompt, as it is, with any hook, greedily, up to 256 tokens.
    ///
    /// # Errors
    /// As [`stream_with_hook`](Self::stream_with_hook).
    pub fn generate_with_hook(
        &self,
        prompt: &str,
        hook: &(impl Hook<B> + ?Sized),
    ) -> Result<String, RunError> {
        let config = GenerateConfig::default().with_max_new_tokens(256);
        self.stream_with_hook(prompt, hook, config, |_| ControlFlow::Continue(()))
    }

    fn stream_tokens(
        &self,
        model: &Llama<B>,
        prompt: Vec<u32>,
        hook: &(impl Hook<B> + ?Sized),
        mut config: GenerateConfig,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<String, RunError> {
        config.stop_ids.extend(&self.loaded.stop_ids);
        let (stop_ids, mut stream, mut failed) = (config.stop_ids.clone(), TextStream::default(), None);
        generate_tokens(model, &[prompt], hook, &config, |_, token| {
            if stop_ids.contains(&token) {
                return ControlFlow::Continue(());
            }
            match stream.push(&self.loaded.tokenizer, token) {
                Ok(text) => on_text(text),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })
        .map_err(EvalError::from)?;
        if let Some(error) = failed {
            return Err(DataError::from(error).into());
        }
        // After the last token, whether the caller goes on makes no difference.
        let rest = stream.finish(&self.loaded.tokenizer).map_err(DataError::from)?;
        if !rest.is_empty() {
            let _ = on_text(rest);
        }
        Ok(stream.into_text())
    }

    /// One forward pass over texts, as they are, with a hook: [`Capture`](reft_core::Capture) reads their hidden states.
    ///
    /// # Errors
    /// If a text is empty or longer than the model's context, or the hook needs a layer that the model does not have.
    pub fn read(&self, texts: &[impl AsRef<str>], hook: &(impl Hook<B> + ?Sized)) -> Result<(), RunError> {
        let (model, tokenizer) = (&self.loaded.model, &self.loaded.tokenizer);
        check_sites(hook, model.config().num_hidden_layers)?;
        let context = model.config().max_position_embeddings;
        if texts.is_empty() {
            return Ok(());
        }
        let mut rows = Vec::new();
        for (idx, text) in texts.iter().enumerate() {
            let tokens = tokenizer.encode(text.as_ref()).map_err(DataError::from)?;
            let row = Row::new([("text", text.as_ref())], format!("text {}", idx + 1));
            row.check_tokens(&tokens, model.config().vocab_size)?;
            if tokens.is_empty() || tokens.len() > context {
                let reason = format!("{} tokens, expected 1 to {context}, the model's context", tokens.len());
                return Err(row.error(reason).into());
            }
            rows.push(tokens);
        }
        model.forward(&TokenBatch::new(&rows, Padding::Right), None, hook);
        Ok(())
    }

    /// The text that the model continues a prompt with, unedited.
    ///
    /// # Errors
    /// If the prompt does not fit the model.
    pub fn generate_unedited(&self, prompt: &str) -> Result<String, RunError> {
        self.generate_with_hook(prompt, &NoHook)
    }
}
