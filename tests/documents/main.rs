//! What the documents claim of the program, and what the source tree promises of itself.

mod contents;
#[path = "../support/mod.rs"]
mod support;
mod tidy;
