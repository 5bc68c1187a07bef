//! The documents against the program and against themselves, and rules for the source tree.

mod contents;
mod pages;
#[path = "../support/mod.rs"]
mod support;
mod tidy;
