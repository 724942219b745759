//! Language modeling: the likelihood of answers to prompts.

use super::{
    split::read_split,
    task::{DataSets, DataSummary, FinalEvaluation, Task, Trained},
};
use crate::{
    adapter::TaskConfig,
    data::{
        DataSet, Encoding, Example, LanguageModelBatch, Row, Template, Tokenized, load_rows, max_length,
        shared_rows,
    },
    error::RunError,
    eval::{Answer, AnswerConfig, EvalError, answers, exact_match, likelihood},
    gradients::GradientSum,
    loss::cross_entropy,
    objective::{Loss, Objective},
    observer::StopReason,
    recipe::Recipe,
    reuse,
    score::{Evaluation, Score},
    train_config::TrainConfig,
    trainable::Trainable,
    workload::activation_bytes,
};
use burn::tensor::{DType, Tensor};
use reft_core::{Hook, NoHook, Packing, Reft, ReftConfig, to_dtype};
use reft_kernels::{AutodiffKernels, Kernels};
use reft_models::{
    Dtype, Footprint, Llama, LlamaConfig, LoadedModel, NamedTensors, ReusedStates, Tokenizer, n_constant,
    n_packed, peft::PeftNames,
};
use std::{cell::RefCell, path::Path};

/// Rows with prompts and answers.
#[derive(Debug)]
pub struct LanguageModelTask {
    train_rows: Vec<Row>,
    held_out_rows: Vec<Row>,
    template: Template,
    max_length: usize,
}

impl LanguageModelTask {
    /// Generates answers to the held-out rows, if the recipe asks for them.
    fn answers<B: Kernels>(
        &self,
        recipe: &Recipe,
        model: &Llama<B>,
        loaded: &LoadedModel<B, Llama<B>>,
        reft: Option<&Reft<B>>,
    ) -> Result<Vec<Answer>, EvalError> {
        if !recipe.eval.exact_match {
            return Ok(Vec::new());
        }
        let config = AnswerConfig {
            template: &self.template,
            max_length: self.max_length,
            batch_size: recipe.eval.batch_size,
            max_new_tokens: recipe.eval.max_new_tokens,
        };
        answers(model, loaded, reft, &self.held_out_rows, config)
    }
}

fn score(nll: f64, answers: &[Answer]) -> Score {
    let mut score = vec![("nll".to_string(), nll), ("perplexity".to_string(), nll.exp())];
    if !answers.is_empty() {
        score.push(("exact_match".to_string(), exact_match(answers)));
    }
    Score(score)
}

impl<B: Kernels> Task<B> for LanguageModelTask {
    type Model = Llama<B>;
    type Example = Example;
    type Objective<'a> = LanguageModeling<'a, B>;

    fn read(recipe: &Recipe) -> Result<Self, RunError> {
        let (train_rows, held_out_rows) = read_split(&recipe.data, load_rows)?;
        let template = Template::resolve(&recipe.data.template, &train_rows)?;
        Ok(Self { train_rows, held_out_rows, template, max_length: 0 })
    }

    fn encode(
        &mut self,
        recipe: &Recipe,
        config: &LlamaConfig,
        tokenizer: &Tokenizer,
    ) -> Result<DataSets<Example>, RunError> {
        let data = &recipe.data;
        let max_length = max_length(data.max_length, config.max_position_embeddings)?;
        self.max_length = max_length;
        let encoding = Encoding::new(&self.template, tokenizer, config.vocab_size, max_length)
            .with_train_on(data.train_on)
            .with_on_bad_row(data.on_bad_row);
        let (mut summaries, mut notices) = (Vec::new(), Vec::new());
        let mut encode = |what, rows: &[Row], file: &str| -> Result<DataSet, RunError> {
            if rows.is_empty() {
                return Ok(DataSet::default());
            }
            let mut set = DataSet::encode(rows, encoding, file)?;
            let (rows, cut, dropped, skipped) =
                (set.examples.len(), set.n_cut, set.n_dropped, set.skipped_rows.len());
            summaries.push(DataSummary { what, rows, cut, dropped, skipped });
            for notice in set.notices.drain(..) {
                if !notices.contains(&notice) {
                    notices.push(notice);
                }
            }
            Ok(set)
        };
        let train = encode("train", &self.train_rows, &data.train)?.examples;
        let held_out = encode("held out", &self.held_out_rows, data.eval.as_ref().unwrap_or(&data.train))?;
        self.held_out_rows = held_out.answered(&self.held_out_rows, &self.template);
        let held_out = held_out.examples;
        notices.extend(shared_rows(&train, &held_out));
        Ok(DataSets { train, held_out, summaries, notices, max_length })
    }

    fn n_logits(&self, config: &LlamaConfig) -> usize {
        config.vocab_size
    }

    fn cache_bytes(&self, config: &LlamaConfig, dtype: Dtype) -> u64 {
        let d_kv = config.num_key_value_heads * config.head_dim;
        (2 * config.num_hidden_layers * d_kv * dtype.size()) as u64
    }

    fn reusable_bytes(&self, config: &LlamaConfig, reft: &ReftConfig, examples: &[Example]) -> u64 {
        let (first_layer, packing) = (reft.first_layer(), reft.packing());
        let Packing::Shared(positions) = packing else { return 0 };
        if !has_constant_states(first_layer, packing) {
            return 0;
        }
        let n_above = config.num_hidden_layers - first_layer.unwrap_or(config.num_hidden_layers);
        let d_kv = config.num_key_value_heads * config.head_dim;
        let of_text = |example: &Example| {
            let n_constant = n_constant(positions, example.prompt_len);
            4 * ((example.tokens.len() - n_constant) * config.hidden_size + 2 * n_constant * d_kv * n_above)
        };
        examples.iter().map(|example| of_text(example) as u64).sum()
    }

    fn footprint(&self, config: &LlamaConfig, batch: usize, seq: usize, dtype: Dtype) -> Footprint {
        config.footprint(batch, seq, dtype, !B::packs_rows(dtype.burn()))
    }

    fn n_packed(&self, examples: &[&Example], packing: Packing) -> usize {
        n_packed(&LanguageModelBatch::new(examples).tokens, packing)
    }

    fn evaluate_base(
        &self,
        recipe: &Recipe,
        loaded: &LoadedModel<B, Llama<B>>,
        data: &DataSets<Example>,
    ) -> Result<(Option<Score>, Vec<Answer>), RunError> {
        let answers = self.answers(recipe, &loaded.model, loaded, None)?;
        if data.held_out.is_empty() {
            return Ok((None, answers));
        }
        let nll = likelihood(&loaded.model, &NoHook, &data.held_out, recipe.eval.batch_size).nll;
        Ok((Some(score(nll, &answers)), answers))
    }

    fn resolve(&self, recipe: &mut Recipe) {
        recipe.data.template = self.template.text().into();
    }

    fn metadata(&self) -> (String, Option<TaskConfig>) {
        (self.template.text().into(), None)
    }

    fn peft_names(&self, _: &LlamaConfig) -> PeftNames {
        PeftNames::LANGUAGE_MODEL
    }

    fn objective<'a>(
        &'a self,
        recipe: &Recipe,
        loaded: &'a LoadedModel<B, Llama<B>>,
    ) -> LanguageModeling<'a, B> {
        let objective =
            LanguageModeling::new(&loaded.model, recipe.eval.batch_size).with_tensors(&loaded.tensors);
        let config = loaded.model.config();
        match recipe.reft_config(config.num_hidden_layers, config.hidden_size) {
            Ok(reft) if recipe.tuning().is_none() => {
                let folder = Path::new(&recipe.run.folder);
                objective.with_reuse(&recipe.train, reft.first_layer(), reft.packing(), Some(folder))
            }
            _ => objective,
        }
    }

    fn evaluate_result(
        &self,
        recipe: &Recipe,
        loaded: &LoadedModel<B, Llama<B>>,
        trained: &Trained<B>,
    ) -> Result<FinalEvaluation, RunError> {
        let mut answers = Vec::new();
        if trained.ended != StopReason::Interrupted {
            let trainable = &trained.trainable;
            let tuned = trainable.tuned.as_ref();
            let tuned = tuned.map(|tuned| tuned.model(loaded.model.config(), &loaded.tensors));
            let model = tuned.as_ref().unwrap_or(&loaded.model);
            answers = self.answers(recipe, model, loaded, Some(&trainable.reft))?;
        }
        let nll = trained.evaluation.as_ref().and_then(|evaluation| evaluation.score.get("nll"));
        let after = nll.map(|nll| score(nll, &answers));
        Ok(FinalEvaluation { after, answers, ..FinalEvaluation::default() })
    }
}

/// Whether there are states that no training changes.
fn has_constant_states(first_layer: Option<usize>, packing: Packing) -> bool {
    let Packing::Shared(positions) = packing else { return false };
    let (prefix, _) = positions.map_or((0..0, 0..0), |positions| positions.of_prompt(usize::MAX));
    first_layer.is_some_and(|layer| layer > 0) || prefix.is_empty()
}

/// The objective of language modeling: the negative log-likelihood of the answers' tokens.
#[derive(Debug)]
pub struct LanguageModeling<'a, B: Kernels> {
    model: &'a Llama<B>,
    tensors: Option<&'a NamedTensors<B>>,
    eval_batch_size: usize,
    /// What training does not change.
    reused: Option<RefCell<ReusedStates<B>>>,
}

impl<'a, B: Kernels> LanguageModeling<'a, B> {
    /// For interventions on a model; `eval_batch_size` is the number of rows per forward pass of an evaluation.
    pub fn new(model: &'a Llama<B>, eval_batch_size: usize) -> Self {
        Self { model, tensors: None, eval_batch_size, reused: None }
    }

    /// The same for baselines, which need the model's tensors by name.
    pub fn with_tensors(self, tensors: &'a NamedTensors<B>) -> Self {
        Self { tensors: Some(tensors), ..self }
    }

    /// Keeps states that training does not change from one epoch to the next, if the settings of the training and the edits
    /// allow it.
    ///
    /// These are the states below the first edited layer, and those before the first edited position. What does not fit the
    /// memory goes into a file without a name in `folder`, if there is one.
    pub fn with_reuse(
        self,
        train: &TrainConfig,
        first_layer: Option<usize>,
        packing: Packing,
        folder: Option<&Path>,
    ) -> Self {
        let reused = has_constant_states(first_layer, packing)
            .then(|| reuse::reused_states(train, self.model.dtype(), folder))
            .flatten();
        Self { reused, ..self }
    }

    fn tensors(&self) -> &'a NamedTensors<B> {
        self.tensors.expect("baselines come with the model's tensors")
    }

    /// The loss of each label under the frozen head, given final states, and the scalar `Σ h · ∂nll/∂h` with the second factor held
    /// constant: its gradient is that of the loss, its value has no meaning.
    fn loss_of_states<A: AutodiffKernels<InnerBackend = B>>(
        &self,
        states: Tensor<A, 2>,
        batch: &LanguageModelBatch,
    ) -> (Tensor<B, 1>, Tensor<A, 1>) {
        let (values, gradient) =
            Kernels::nll(states.clone().inner(), self.model.head_weight(), &batch.labels, true);
        let gradient = Tensor::from_inner(gradient.expect("requested"));
        (values, (to_dtype(states, DType::F32) * gradient).sum())
    }
}

impl<B: Kernels> Objective<B> for LanguageModeling<'_, B> {
    type Example = Example;

    fn backward<A: AutodiffKernels<InnerBackend = B>>(
        &self,
        examples: &[&Example],
        gradients: &mut GradientSum<A>,
    ) -> Loss<B> {
        let trainable = gradients.trainable;
        let batch = LanguageModelBatch::new(examples);
        let terms = match &trainable.tuned {
            None => {
                let first_layer = trainable.reft.first_layer();
                let packing = Hook::<A>::packing(&trainable.reft);
                let (tokens, seed) = (&batch.tokens, gradients.seed);
                let pass = match &self.reused {
                    None => self.model.training_pass(tokens, first_layer, packing, seed),
                    Some(reused) => {
                        let reused = &mut reused.borrow_mut();
                        self.model.training_pass_reusing(tokens, first_layer, packing, reused, seed)
                    }
                };
                let rows = pass.rows(&batch.label_rows);
                gradients.run(pass, |hidden| {
                    let states = self.model.final_states_tracked(hidden, &rows);
                    self.loss_of_states(states, &batch)
                })
            }
            Some(tuned) => {
                let model: Llama<A> = tuned.model_in_training(self.model.config(), self.tensors());
                let hidden = model.forward(&batch.tokens, None, &NoHook);
                let states = model.final_states(hidden, &batch.label_rows);
                let (terms, loss) = match tuned.lora() {
                    Some(_) => self.loss_of_states(states, &batch),
                    // The output head is trained too, so its logits stay on the tape.
                    None => {
                        let logits = to_dtype(model.head(states), DType::F32);
                        let loss = cross_entropy(logits, &batch.labels);
                        (loss.clone().inner(), loss)
                    }
                };
                gradients.backward(loss);
                terms
            }
        };
        Loss { terms: vec![terms], labels: batch.labels.len(), tokens: batch.n_tokens() }
    }

    fn activation_bytes<C: Kernels>(
        &self,
        trainable: &Trainable<C>,
        examples: &[&Example],
        checkpointing: bool,
    ) -> u64 {
        let (config, dtype) = (self.model.config(), self.model.dtype());
        let lengths = examples.iter().map(|example| example.n_tokens());
        let block = match B::packs_rows(dtype.burn()) {
            true => config.footprint(1, lengths.sum(), dtype, false),
            false => config.footprint(examples.len(), lengths.max().unwrap_or(0), dtype, true),
        };
        activation_bytes(block, trainable.n_taped(config.num_hidden_layers), checkpointing)
    }

    fn evaluate(&self, trainable: &Trainable<B>, held_out: &[Example]) -> Evaluation {
        let tuned = trainable.tuned.as_ref();
        let tuned = tuned.map(|tuned| tuned.model(self.model.config(), self.tensors()));
        let model = tuned.as_ref().unwrap_or(self.model);
        let nll = likelihood(model, &trainable.reft.hook(), held_out, self.eval_batch_size).nll;
        Evaluation { score: Score(vec![("nll".into(), nll)]), key: "nll", higher_is_better: false }
    }
}
