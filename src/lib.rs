//! skep: a UDP-first BitTorrent tracker for Linux.
//!
//! ```text
//! datagram ─▶ worker ─▶ frontend::udp::handle ─┬▶ protocol::udp   decode, borrowed
//!                                              ├▶ connection_id   keyed MAC
//!                                              └▶ tracker ─▶ store ─▶ peers chosen
//! datagram ◀─ one submit per turn ◀─ encoded into the send buffer ◀────────┘
//! ```
//!
//! The core needs no socket, clock or thread: time, source and bytes are passed in. A tracker in
//! memory that serves one datagram, a connect request (BEP 15):
//!
//! ```
//! use std::sync::Arc;
//! use arc_swap::ArcSwap;
//! use skep::frontend::connection_id::{Algorithm, ConnectionIds, KeyPair};
//! use skep::frontend::{RESPONSE_BYTES_MAX, Responder, udp::UdpFrontend};
//! use skep::{store::Store, time::Now, tracker::Tracker};
//!
//! let store = Arc::new(Store::new(Default::default()));
//! let tracker = Tracker::new(store, Default::default(), 1, 0, 1);
//! let keys = KeyPair { active: [7; 32], staging: None, algorithm: Algorithm::SipHash };
//! let ids = Arc::new(ArcSwap::from_pointee(ConnectionIds::new(&keys)));
//! let mut udp = UdpFrontend::new(tracker, ids);
//!
//! let connect = [&0x417_2710_1980_u64.to_be_bytes()[..], &[0; 4], b"abcd"].concat();
//! let (now, source) = (Now::from_s(1_800_000_000), "192.0.2.1:6881".parse().unwrap());
//! let mut out = [0; RESPONSE_BYTES_MAX];
//! let response = udp.handle(now, source, &connect, &mut out).unwrap();
//! assert_eq!(&out[..8], b"\0\0\0\0abcd"); // the action and the transaction id of the request
//! assert_eq!(response.bytes, 16); // 8 more bytes: the connection id for announces and scrapes
//! ```
//!
//! The library exists so that the server, the load tester, tests, benchmarks and fuzz targets share
//! their code. It is not published on crates.io, and Semantic Versioning does not cover it. Read
//! [`frontend::udp`] first: the path of a datagram.

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
pub mod cluster;
pub mod config;
pub mod counters;
pub mod frontend;
pub mod limiter;
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
