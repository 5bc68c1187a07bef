//! The files of `deploy/` before the programs that read them, and monitoring of a running skep.

mod files;
mod monitoring;
mod panels;
mod prometheus;
#[path = "../support/mod.rs"]
mod support;
mod tools;
mod traffic;
