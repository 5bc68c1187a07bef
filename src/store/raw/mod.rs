//! Memory layout of the store: the raw map of info-hash to swarm, and the blocks of small swarms.
//! The only `unsafe` outside `sys/`, so that everything above can be plain Rust.
//!
//! ```text
//! map entry  info-hash (20) | packed swarm (12)                                      = 32 bytes
//!   packed   tag (1) completed (3) | one IPv4 peer in place, or a pointer (8)
//! block      completed (4) | len, capacity, wanting, seeders (2 each) | tags | record × capacity
//! ```
//!
//! Three quarters of all torrents have one peer: such a torrent needs only its map entry.
#![expect(unsafe_code, reason = "raw-table access with prefetch; packed pointers; thin blocks")]

mod packed_swarm;
mod peer_block;
mod table;

pub(super) use packed_swarm::{LargeSwarmPtr, PackedSwarm};
pub(super) use peer_block::{BLOCK_RECORDS_MAX, PeerBlock};
#[cfg(test)]
pub(super) use table::SLICE_BUCKETS;
pub(super) use table::{
    Entry, LockedShard, PREFETCH_STAGES, ShardWalk, SwarmTable, TableKey, buckets_capacity,
};
