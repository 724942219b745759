//! The kinds of work that a recipe can ask for. Each is one implementation of [`Task`].

mod classifier;
mod columns;
mod encode;
mod glue;
mod labels;
mod language_model;
mod spec;
mod split;
mod task;

pub use classifier::{Classification, ClassifierTask, Report, predict, probabilities};
pub(crate) use classifier::{initial_head, output_names};
pub use columns::read_task_rows;
pub use language_model::{LanguageModelTask, LanguageModeling};
pub use spec::{TaskSpec, check_name};
pub use task::{ConfigOf, DataSets, DataSummary, FinalEvaluation, Task, Trained};
