//! The documents against the program and against themselves, and rules for the source tree.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod complete;
mod contents;
mod pages;
#[path = "../support/mod.rs"]
mod support;
mod tidy;
