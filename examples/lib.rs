//! Small programs that a newcomer reads first.
//!
//! | `cargo run --release --example …` | what it shows |
//! |---|---|
//! | `edit_by_hand` | the LoReFT equation on one hidden state, without any model |
//! | `three_lines` | training an adapter on three rows, with the library alone |
//! | `load_and_generate` | a model and an adapter from disk, and a text |
