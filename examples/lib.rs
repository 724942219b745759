//! Small programs for newcomers.
//!
//! | `cargo run --release --example …` | what it shows |
//! |---|---|
//! | `edit_by_hand` | the LoReFT equation on one hidden state, without any model |
//! | `your_own_model` | the code of `docs/your-own-model.md` |
//! | `own_module` | an edit in your own Burn module: trained, saved, loaded |
//! | `train_and_stream` | training two adapters on one model, and streaming a text with each |
//! | `load_and_generate` | loading an adapter with its model on any device, and generating text |
//! | `capture_and_steer` | reading hidden states, and adding a vector to them |
//! | `classify` | a classifier in an application |
