//! The `reft` program as a user meets it: whole runs, and everything that can be wrong with the input.
//!
//! Texts are compared as a whole with the files in `snapshots`. After a change of wording, `INSTA_UPDATE=always` writes
//! the new texts there, to be read before they are committed.

mod adapters;
mod chat;
mod classify;
mod devices;
mod earlier_version;
mod help;
mod interruptions;
mod precision;
mod prompts;
mod quickstart;
mod refusals;
mod support;
