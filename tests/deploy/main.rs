//! The files of `deploy/` before the programs that read them, and monitoring of a running skep.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../support/booted.rs"]
mod booted;
mod booted_unit;
mod files;
mod monitoring;
mod panels;
mod pods;
mod prometheus;
mod reverse_proxies;
#[path = "../support/mod.rs"]
mod support;
mod tls;
mod tools;
mod traffic;
