//! Data: files → rows → prompts and answers → tokens → batches.

mod bad_rows;
mod batch;
mod batches;
mod compression;
mod conversation;
mod dataset;
mod encode;
mod encoding;
mod error;
mod formats;
mod json;
mod json_rows;
mod notices;
mod parquet_rows;
mod read;
mod rows;
mod table;
mod template;
mod text_stream;

pub use bad_rows::{BadRows, OnBadRow, all_readable};
pub use batch::{ClassifierBatch, LanguageModelBatch};
pub use batches::{Sampler, SamplerConfig, epoch};
pub use conversation::TrainOn;
pub use dataset::{DataSet, Encoding, Example, LabeledSet, LabeledText, Tokenized};
pub use encode::{EncodedPrompt, PromptLimit};
pub use error::DataError;
pub(crate) use json_rows::json_rows;
pub use json_rows::parse_rows;
pub use notices::{shared_rows, unused_fields};
pub(crate) use read::{Contents, Syntax, read_contents};
pub use read::{find_rows, load_bytes, load_rows, max_length, read_rows};
pub use rows::Row;
pub(crate) use table::table_rows;
pub use table::{Separator, parse_table};
pub use template::{CustomTemplate, Template, answer};
pub use text_stream::TextStream;
