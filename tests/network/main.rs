//! Workers on real sockets, in this process: both I/O backends, deadlines, TLS, WebSockets, and
//! forged source addresses in a network namespace.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod io_backends;
mod spoofing;
mod stream_charges;
mod stream_limits;
mod stream_server;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod xdp_codec;
mod xdp_frames;
mod xdp_full;
mod xdp_golden;
mod xdp_offload;
