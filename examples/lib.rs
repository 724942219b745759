//! Small programs for newcomers.
//!
//! | `cargo run --release --example …` | what it shows |
//! |---|---|
//! | `edit_by_hand` | the LoReFT equation on one hidden state, without any model |
//! | `three_lines` | training an adapter on three rows with the library alone |
//! | `load_and_generate` | loading a model and an adapter, and generating text |
