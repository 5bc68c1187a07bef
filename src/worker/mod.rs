//! Per-core loops. A worker owns its sockets, buffers, counters and random numbers, and drives a
//! [`Responder`] with whatever its I/O backend received.

pub mod datagram;
mod mmsg;
pub mod rest_signal;
pub mod stream;
mod uring;

pub use crate::frontend::{REPLY_BYTES_MAX, Responder};
