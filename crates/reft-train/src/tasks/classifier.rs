//! Classification and regression with a frozen encoder and a trained head on its first token.

use super::{
    columns::read_task_rows,
    spec::{TaskSpec, check_name},
    split::read_split,
    task::{DataSets, DataSummary, FinalEvaluation, Task, Trained},
};
use crate::{
    adapter::TaskConfig,
    data::{ClassifierBatch, LabeledSet, LabeledText, Row, Tokenized, max_length, shared_rows},
    error::RunError,
    gradients::GradientSum,
    loss::cross_entropy,
    metrics::{Metric, argmax, confusion},
    objective::{Loss, Objective},
    recipe::{Protocol, Recipe},
    reuse,
    score::{Evaluation, Score},
    train_config::TrainConfig,
    trainable::Trainable,
    workload::activation_bytes,
};
use burn::tensor::{Tensor, TensorData};
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use reft_core::{FileError, Head, HeadConfig, Hook, NoHook, ReftConfig, head::HeadValues, host_values};
use reft_kernels::{AutodiffKernels, Kernels};
use reft_models::{
    Dtype, Footprint, LoadedModel, ModelConfig, NamedTensors, ReusedStates, Roberta, RobertaConfig,
    Tokenizer,
    peft::PeftNames,
    roberta::{DropoutRates, select_rows},
};
use serde::Serialize;
use serde_json::Value;
use std::{cell::RefCell, path::Path};

/// Gives the head a random stream of its own.
const HEAD_SEED: u64 = 0x68656164;

/// Rows with texts and labels, or numbers.
#[derive(Debug)]
pub struct ClassifierTask {
    spec: TaskSpec,
    selection_metric: Metric,
    train_rows: Vec<Row>,
    /// Held-out rows that select the adapter.
    selection_rows: Vec<Row>,
    /// Held-out rows that score it; empty if the former do both.
    scoring_rows: Vec<Row>,
    test_rows: Vec<(String, Vec<Row>)>,
    model_dropout: Option<f64>,
    /// Filled by `encode`.
    scoring_set: LabeledSet,
    test_sets: Vec<(String, LabeledSet)>,
}

impl ClassifierTask {
    fn dropout(&self, config: &RobertaConfig) -> DropoutRates {
        match self.model_dropout {
            Some(rate) => DropoutRates { hidden: rate, attention: rate },
            None => config.dropout(),
        }
    }

    /// What the user should know about columns and labels.
    fn notices_of_rows(&self, recipe: &Recipe) -> Vec<String> {
        let data = &recipe.data;
        let mut notices = Vec::new();
        let unused = self.spec.unused_fields(&data.train, &self.train_rows);
        let of_eval = data.eval.as_ref().and_then(|file| self.spec.unused_fields(file, &self.selection_rows));
        // Once, if both files have the same columns.
        let names = |line: &Option<String>| {
            line.as_ref().and_then(|line| line.rsplit_once(": ")).map(|(_, names)| names.to_string())
        };
        let is_new = names(&of_eval) != names(&unused);
        notices.extend(unused);
        notices.extend(of_eval.filter(|_| is_new));
        notices.extend(self.spec.label_notice(self.train_rows.len()));
        notices
    }

    fn head_config(&self, config: &RobertaConfig) -> HeadConfig {
        config.head(self.spec.outputs(), self.model_dropout)
    }
}

/// The head of the checkpoint if it has the task's outputs, in the order of the task's labels, or a new one.
///
/// As in transformers' examples: if `id2label` of the checkpoint names the same labels, its outputs are put in the task's order. If
/// it names others, the head was trained for something else. `LABEL_0` and so on are no names, and numbers are the outputs'.
pub(crate) fn initial_head<B: Kernels>(
    loaded: &LoadedModel<B, Roberta<B>>,
    spec: &TaskSpec,
    model_dropout: Option<f64>,
    seed: u64,
    device: &B::Device,
) -> Head<B> {
    let config = loaded.model.config().head(spec.outputs(), model_dropout);
    let of_checkpoint = loaded.head.clone().filter(|head| head.out_bias.len() == spec.outputs());
    let labels = &spec.config.labels;
    let have_names = |names: &Vec<String>| {
        names.iter().enumerate().all(|(idx, name)| *name != format!("LABEL_{idx}"))
            && labels.iter().any(|label| label.parse::<f64>().is_err())
    };
    let names = output_names(loaded, spec.outputs()).ok().filter(have_names);
    let values = of_checkpoint.and_then(|values| match names {
        Some(names) => in_order_of(values, &names, labels),
        None => Some(values),
    });
    match values {
        Some(values) => config.with_values(values, device),
        None => config.init(seed ^ HEAD_SEED, device),
    }
}

/// The names of `n` outputs in `id2label` of a checkpoint; `LABEL_0` and so on where it has none, as in transformers.
pub(crate) fn output_names<B: Kernels>(
    loaded: &LoadedModel<B, Roberta<B>>,
    n: usize,
) -> Result<Vec<String>, FileError> {
    let config: Value = serde_json::from_slice(&loaded.config_json()?).unwrap_or_default();
    let known = config.get("id2label").and_then(Value::as_object).filter(|names| names.len() == n);
    let name = |idx: usize| known.and_then(|names| names.get(&idx.to_string())?.as_str());
    Ok((0..n).map(|idx| name(idx).map_or(format!("LABEL_{idx}"), str::to_string)).collect())
}

/// A head whose outputs have these names, with them in the order of the labels; none if the labels are others.
fn in_order_of(values: HeadValues, names: &[String], labels: &[String]) -> Option<HeadValues> {
    let place = |label: &String| names.iter().position(|name| name.eq_ignore_ascii_case(label));
    let order: Vec<usize> = labels.iter().map(place).collect::<Option<_>>()?;
    let d = values.out_weight.len() / values.out_bias.len();
    Some(HeadValues {
        out_weight: order.iter().flat_map(|idx| values.out_weight[idx * d..][..d].to_vec()).collect(),
        out_bias: order.iter().map(|idx| values.out_bias[*idx]).collect(),
        ..values
    })
}

/// Splits held-out rows into those that select the adapter and those that score it; the latter are empty if the former do
/// both.
fn split_held_out(mut rows: Vec<Row>, protocol: Protocol, seed: u64) -> (Vec<Row>, Vec<Row>) {
    const LARGE: usize = 5000;
    const SELECTING: usize = 1000;
    if protocol == Protocol::Same || rows.len() < 2 {
        return (rows, Vec::new());
    }
    rows.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    let selecting = if rows.len() > LARGE { SELECTING } else { rows.len() / 2 };
    let scoring = rows.split_off(selecting);
    (rows, scoring)
}

impl<B: Kernels> Task<B> for ClassifierTask {
    type Model = Roberta<B>;
    type Example = LabeledText;
    type Objective<'a>
        = Classification<'a, B>
    where
        B: 'a;

    fn read(recipe: &Recipe) -> Result<Self, RunError> {
        let data = &recipe.data;
        let name = data.task.as_deref().unwrap_or("classification");
        check_name(name)?;
        let read = |file: &str| read_task_rows(name, Path::new(file));
        let (train_rows, held_out) = read_split(data, read)?;
        let spec = TaskSpec::discover(name, data.text.as_deref(), data.label.as_deref(), &train_rows)?;
        let selection_metric = spec.selection_metric(recipe.eval.metric)?;
        let (selection_rows, scoring_rows) =
            split_held_out(held_out, recipe.eval.protocol, recipe.train.seed);
        let test_rows = data.test.iter().map(|file| Ok((file.clone(), read(file)?)));
        Ok(Self {
            spec,
            selection_metric,
            train_rows,
            selection_rows,
            scoring_rows,
            test_rows: test_rows.collect::<Result<_, RunError>>()?,
            model_dropout: recipe.train.model_dropout,
            scoring_set: LabeledSet::default(),
            test_sets: Vec::new(),
        })
    }

    fn encode(
        &mut self,
        recipe: &Recipe,
        config: &RobertaConfig,
        tokenizer: &Tokenizer,
    ) -> Result<DataSets<LabeledText>, RunError> {
        let max_length = max_length(recipe.data.max_length, config.context())?;
        let spec = &self.spec;
        let (vocab, on_bad_row) = (config.vocab_size, recipe.data.on_bad_row);
        let encode = |rows: &[Row]| spec.encode(rows, tokenizer, vocab, max_length, true, on_bad_row);
        let train = encode(&self.train_rows)?;
        let selection = encode(&self.selection_rows)?;
        let scoring = encode(&self.scoring_rows)?;
        let selection_name = if self.scoring_rows.is_empty() { "held out" } else { "selection" };
        let sets = [("train", &train), (selection_name, &selection), ("scoring", &scoring)];
        let summaries = sets.into_iter().filter(|(_, set)| !set.examples.is_empty()).map(|(what, set)| {
            DataSummary { what, rows: set.examples.len(), cut: set.n_cut, dropped: 0, skipped: set.n_skipped }
        });
        let summaries = summaries.collect();
        for (file, rows) in &self.test_rows {
            self.test_sets.push((file.clone(), encode(rows)?));
        }
        let mut notices = self.notices_of_rows(recipe);
        for (what, set) in sets {
            notices.extend(set.notices(what));
        }
        for (file, set) in &self.test_sets {
            notices.extend(set.notices(file));
        }
        let held_out = selection.examples.iter().chain(&scoring.examples);
        let held_out = held_out.map(|example| &example.tokens);
        notices.extend(shared_rows(train.examples.iter().map(|example| &example.tokens), held_out));
        self.scoring_set = scoring;
        Ok(DataSets { train: train.examples, held_out: selection.examples, summaries, notices, max_length })
    }

    fn labels(&self) -> Option<&[String]> {
        Some(&self.spec.config.labels)
    }

    fn num_head_params(&self, config: &RobertaConfig) -> usize {
        self.head_config(config).num_params()
    }

    fn footprint(&self, config: &RobertaConfig, batch: usize, seq: usize, dtype: Dtype) -> Footprint {
        config.footprint(batch, seq, self.dropout(config), dtype, !B::packs_rows(dtype.burn()))
    }

    fn reusable_bytes(&self, config: &RobertaConfig, reft: &ReftConfig, examples: &[LabeledText]) -> u64 {
        if !has_constant_states(self.dropout(config), reft.first_layer()) {
            return 0;
        }
        // Above the last block, only the first tokens matter.
        let n_states =
            |example: &LabeledText| if reft.first_layer().is_some() { example.tokens.len() } else { 1 };
        let total: usize = examples.iter().map(n_states).sum();
        (4 * total * config.hidden_size) as u64
    }

    fn init_head(
        &self,
        recipe: &Recipe,
        loaded: &LoadedModel<B, Roberta<B>>,
        device: &B::Device,
    ) -> Option<Head<B>> {
        Some(initial_head(loaded, &self.spec, self.model_dropout, recipe.train.seed, device))
    }

    fn resolve(&self, recipe: &mut Recipe) {
        recipe.data.text = Some(self.spec.config.text.clone());
        recipe.data.label = Some(self.spec.config.label.clone());
        recipe.eval.metric = Some(self.selection_metric);
    }

    fn metadata(&self) -> (String, Option<TaskConfig>) {
        (String::new(), Some(self.spec.config.clone()))
    }

    fn peft_names(&self, config: &RobertaConfig) -> PeftNames {
        PeftNames::classifier(config)
    }

    fn objective<'a>(
        &'a self,
        recipe: &Recipe,
        loaded: &'a LoadedModel<B, Roberta<B>>,
    ) -> Classification<'a, B> {
        let config = loaded.model.config();
        let objective = Classification {
            model: &loaded.model,
            tensors: &loaded.tensors,
            spec: &self.spec,
            selection_metric: self.selection_metric,
            dropout: self.dropout(config),
            eval_batch_size: recipe.eval.batch_size,
            reused: None,
        };
        match recipe.reft_config(config.num_hidden_layers, config.hidden_size) {
            Ok(reft) if recipe.tuning().is_none() => {
                objective.with_reuse(&recipe.train, reft.first_layer(), Some(Path::new(&recipe.run.folder)))
            }
            _ => objective,
        }
    }

    fn evaluate_result(
        &self,
        recipe: &Recipe,
        loaded: &LoadedModel<B, Roberta<B>>,
        trained: &Trained<B>,
    ) -> Result<FinalEvaluation, RunError> {
        let score = |set: &LabeledSet| {
            let (model, tensors) = (&loaded.model, &loaded.tensors);
            let outputs =
                predict(model, tensors, &trained.trainable, &set.examples, recipe.eval.batch_size, &NoHook);
            self.spec.score(&set.examples, &outputs)
        };
        let of_selection = trained.evaluation.as_ref().map(|evaluation| evaluation.score.clone());
        let (after, selection) = match self.scoring_set.examples.is_empty() {
            true => (of_selection, None),
            false => (Some(score(&self.scoring_set)), of_selection),
        };
        let test = self.test_sets.iter().map(|(file, set)| (file.clone(), score(set)));
        Ok(FinalEvaluation { after, selection, test: test.collect(), answers: Vec::new() })
    }
}

/// The objective of classification and regression: cross-entropy, or squared error.
#[derive(Debug)]
pub struct Classification<'a, B: Kernels> {
    /// The frozen encoder.
    pub model: &'a Roberta<B>,
    /// Its tensors by name, for baselines.
    pub tensors: &'a NamedTensors<B>,
    /// The task.
    pub spec: &'a TaskSpec,
    /// The metric that selects the adapter.
    pub selection_metric: Metric,
    /// Dropout of the encoder, during training.
    pub dropout: DropoutRates,
    /// Rows per forward pass of an evaluation.
    pub eval_batch_size: usize,
    /// What training does not change, see [`with_reuse`](Self::with_reuse).
    pub reused: Option<RefCell<ReusedStates<B>>>,
}

/// Whether there are states that no training changes: those below the first edit, without dropout.
fn has_constant_states(dropout: DropoutRates, first_layer: Option<usize>) -> bool {
    dropout == DropoutRates::OFF && first_layer != Some(0)
}

impl<B: Kernels> Classification<'_, B> {
    /// Keeps states that training does not change from one epoch to the next, if the settings of the training allow it: those
    /// that enter the first edited layer, or the head. What does not fit the memory goes into a file without a name in
    /// `folder`, if there is one.
    pub fn with_reuse(self, train: &TrainConfig, first_layer: Option<usize>, folder: Option<&Path>) -> Self {
        let reused = has_constant_states(self.dropout, first_layer)
            .then(|| reuse::reused_states(train, self.model.dtype(), folder))
            .flatten();
        Self { reused, ..self }
    }

    /// The loss of a batch, summed over its rows.
    fn loss<A: AutodiffKernels>(
        &self,
        trainable: &Trainable<A>,
        first_tokens: Tensor<A, 2>,
        targets: &[f64],
    ) -> Tensor<A, 1> {
        let head = trainable.head.as_ref().expect("a classifier has a head");
        let outputs = head.forward(first_tokens);
        if self.spec.is_regression() {
            let targets: Vec<f32> = targets.iter().map(|target| *target as f32).collect();
            let targets = TensorData::new(targets, outputs.dims());
            (outputs.clone() - Tensor::from_data(targets, &outputs.device())).square().sum()
        } else {
            let labels: Vec<u32> = targets.iter().map(|target| *target as u32).collect();
            cross_entropy(outputs, &labels)
        }
    }
}

impl<B: Kernels> Objective<B> for Classification<'_, B> {
    type Example = LabeledText;

    fn backward<A: AutodiffKernels<InnerBackend = B>>(
        &self,
        examples: &[&LabeledText],
        gradients: &mut GradientSum<A>,
    ) -> Loss<B> {
        let trainable = gradients.trainable;
        let batch = ClassifierBatch::new(examples);
        let loss = match &trainable.tuned {
            None => {
                let first_layer = trainable.reft.first_layer();
                let packing = Hook::<A>::packing(&trainable.reft);
                let (tokens, seed) = (&batch.tokens, gradients.seed);
                let pass = match &self.reused {
                    None => self.model.training_pass(tokens, self.dropout, first_layer, packing, seed),
                    Some(reused) => {
                        let reused = &mut reused.borrow_mut();
                        self.model.training_pass_reusing(tokens, first_layer, packing, reused, seed)
                    }
                };
                let rows = pass.rows(&tokens.first_columns());
                gradients.run(pass, |hidden| {
                    let loss = self.loss(trainable, select_rows(hidden, &rows), &batch.targets);
                    (loss.clone().inner(), loss)
                })
            }
            Some(tuned) => {
                let model: Roberta<A> = tuned.model_in_training(self.model.config(), self.tensors);
                let first_tokens = model.first_tokens(&batch.tokens, self.dropout, &NoHook);
                let loss = self.loss(trainable, first_tokens, &batch.targets);
                gradients.backward(loss.clone());
                loss.inner()
            }
        };
        Loss { terms: vec![loss], labels: examples.len(), tokens: batch.n_tokens() }
    }

    fn activation_bytes<C: Kernels>(
        &self,
        trainable: &Trainable<C>,
        examples: &[&LabeledText],
        checkpointing: bool,
    ) -> u64 {
        let (config, dtype) = (self.model.config(), self.model.dtype());
        let lengths = examples.iter().map(|example| example.n_tokens());
        let block = match B::packs_rows(dtype.burn()) {
            true => config.footprint(1, lengths.sum(), self.dropout, dtype, false),
            false => config.footprint(examples.len(), lengths.max().unwrap_or(0), self.dropout, dtype, true),
        };
        activation_bytes(block, trainable.n_taped(config.num_hidden_layers), checkpointing)
    }

    fn evaluate(&self, trainable: &Trainable<B>, held_out: &[LabeledText]) -> Evaluation {
        let outputs = predict(self.model, self.tensors, trainable, held_out, self.eval_batch_size, &NoHook);
        Evaluation {
            score: self.spec.score(held_out, &outputs),
            key: self.selection_metric.name(),
            higher_is_better: true,
        }
    }
}

/// The head's outputs for each example, in the order given: one logit per label, or one number. `hook` is called after the
/// edits.
///
/// # Panics
/// If there is no head.
pub fn predict<B: Kernels, H: Hook<B> + ?Sized>(
    model: &Roberta<B>,
    tensors: &NamedTensors<B>,
    trainable: &Trainable<B>,
    examples: &[LabeledText],
    batch_size: usize,
    hook: &H,
) -> Vec<Vec<f32>> {
    let tuned = trainable.tuned.as_ref().map(|tuned| tuned.model(model.config(), tensors));
    let model = tuned.as_ref().unwrap_or(model);
    let head = trainable.head.as_ref().expect("a classifier has a head");
    let hook = (trainable.reft.hook(), hook);
    let mut order: Vec<usize> = (0..examples.len()).collect();
    order.sort_by_key(|idx| examples[*idx].tokens.len());
    let mut out = vec![Vec::new(); examples.len()];
    for chunk in order.chunks(batch_size) {
        let members: Vec<&LabeledText> = chunk.iter().map(|idx| &examples[*idx]).collect();
        let batch = ClassifierBatch::new(&members);
        let outputs = head.forward(model.first_tokens(&batch.tokens, DropoutRates::OFF, &hook));
        let [_, n_outputs] = outputs.dims();
        for (idx, row) in chunk.iter().zip(host_values(outputs).chunks(n_outputs)) {
            out[*idx] = row.to_vec();
        }
    }
    out
}

/// `softmax(logits)`.
pub fn probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f64> = logits.iter().map(|x| f64::from(x - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.into_iter().map(|x| x / sum).collect()
}

/// The evaluation of a classifier or a regression on a file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The task.
    pub task: String,
    /// Number of rows.
    pub rows: usize,
    /// Number of truncated rows.
    pub cut: usize,
    /// Number of skipped rows.
    pub skipped: usize,
    /// The metrics.
    pub metrics: Score,
    /// The labels; empty for a regression.
    pub labels: Vec<String>,
    /// Counts of each true label (row) and predicted label (column); empty for a regression.
    pub confusion: Vec<Vec<usize>>,
}

impl Report {
    /// Evaluates the head's outputs.
    pub fn new(spec: &TaskSpec, set: &LabeledSet, outputs: &[Vec<f32>]) -> Self {
        let labels = spec.config.labels.clone();
        let expected: Vec<usize> = set.examples.iter().map(|e| e.target as usize).collect();
        let predicted: Vec<usize> = outputs.iter().map(|row| argmax(row)).collect();
        let is_regression = spec.is_regression();
        Self {
            task: spec.config.name.clone(),
            rows: set.examples.len(),
            cut: set.n_cut,
            skipped: set.n_skipped,
            metrics: spec.score(&set.examples, outputs),
            confusion: if is_regression {
                Vec::new()
            } else {
                confusion(&expected, &predicted, labels.len())
            },
            labels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_of_a_checkpoint_are_put_in_the_order_of_the_labels() {
        let text = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let values = HeadValues {
            dense_weight: vec![0.0; 4],
            dense_bias: vec![0.0; 2],
            out_weight: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            out_bias: vec![1.0, 2.0, 3.0],
        };
        let names = text(&["Contradiction", "neutral", "entailment"]);
        let labels = text(&["contradiction", "entailment", "neutral"]);
        let found = in_order_of(values.clone(), &names, &labels).expect("the same labels");
        assert_eq!(
            (found.out_weight, found.out_bias),
            (vec![1.0, 2.0, 5.0, 6.0, 3.0, 4.0], vec![1.0, 3.0, 2.0])
        );
        assert!(in_order_of(values, &names, &text(&["a", "b", "c"])).is_none());
    }
}
