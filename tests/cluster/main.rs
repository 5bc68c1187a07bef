//! Several real nodes and a real broker: what one node learns, the others know.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod brokers;
mod exchange;
mod nodes;
#[path = "../support/mod.rs"]
mod support;
