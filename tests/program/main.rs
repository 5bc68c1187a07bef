//! The real program as operators and scripts meet it: command line, settings, restarts, take-over,
//! faults of the host, access control, the admin port.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod access_lists;
mod admin;
mod admin_registered;
mod certificates;
mod command_line;
mod config;
mod connections;
mod doctor;
mod drain;
mod end_to_end;
mod end_to_end_streams;
mod faults;
mod handover;
mod log;
mod openapi;
mod probe;
mod restart;
mod rights;
mod service_manager;
mod snapshot_program;
mod state_files;
mod subcommands;
#[path = "../support/mod.rs"]
mod support;
mod take_over_faults;
mod unlisted_proxies;
mod xdp;
