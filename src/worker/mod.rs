//! Per-core loops. A worker owns its sockets, buffers, counters and random numbers, and calls a
//! [`Responder`] for what its I/O backend received.

pub mod datagram;
mod mmsg;
pub mod pause_signal;
pub mod request_log;
pub mod stream;
mod uring;
pub mod xdp;

pub use crate::frontend::{RESPONSE_BYTES_MAX, Responder};
