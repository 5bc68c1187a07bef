//! The store and its snapshots in memory: against a naive model, against the allocator, and with
//! every failure of a disk.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod against_model;
mod memory;
mod replication;
mod snapshot;
mod snapshot_faults;
mod snapshot_model;
#[path = "../support/mod.rs"]
mod support;
