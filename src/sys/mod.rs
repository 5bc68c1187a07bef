//! System calls: sockets, batches of datagrams, rings, CPUs and the clock.
//!
//! This is the only module, besides the store's table, that may contain `unsafe`. Its API is safe.
//! It does not depend on tracker code: workers and the load tester both use it.

pub mod address;
pub mod affinity;
pub mod allocator;
mod buffer_ring;
mod buffers;
pub mod clock;
pub mod descriptors;
pub mod ethtool;
pub mod filter;
pub mod holder;
pub mod identity;
pub mod interfaces;
pub mod memory;
pub mod mmsg;
pub mod probe;
pub(crate) mod readiness;
pub mod regular_file;
pub(crate) mod ring;
pub(crate) mod ring_host;
pub mod serving_lock;
pub mod signals;
pub mod socket;
pub(crate) mod stream;
pub mod xdp;
