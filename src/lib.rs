//! skep: a UDP-first BitTorrent tracker for Linux.
//!
//! ```text
//! datagram ─▶ worker ─▶ frontend::udp::handle ─┬▶ protocol::udp   decode, borrowed
//!                                              ├▶ connection_id   keyed MAC
//!                                              └▶ tracker ─▶ store ─▶ peers chosen
//! datagram ◀─ one submit per turn ◀─ encoded into the send buffer ◀────────┘
//! ```
//!
//! The library exists so that the server, the load tester, tests, benchmarks and fuzz targets share
//! one code; it promises no stability to others. Modules, in the order to read them:
//! [`frontend::udp`] is the path of a datagram; follow any call one level from there.

#![cfg_attr(
    test,
    allow(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        clippy::cast_sign_loss,
        reason = "tests cast small constants; a wrong one fails the test"
    )
)]

pub mod access;
pub mod access_store;
pub mod admin;
pub mod cli;
pub mod client;
pub mod config;
pub mod frontend;
pub mod limiter;
pub mod metrics;
pub mod networks;
pub mod protocol;
pub mod server;
pub mod snapshot;
pub mod store;
pub mod sys;
pub mod time;
pub mod tracker;
pub mod types;
pub mod worker;
