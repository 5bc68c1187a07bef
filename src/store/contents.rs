//! What a map entry holds: a swarm in the cheapest of five layouts.

use super::large::Large;
use super::record::Record4;
use super::table::{Block, Owned};

/// What a map entry holds, unpacked.
pub(super) enum Contents {
    /// No peers; kept for its count of downloads. `since_s` says when the last one left.
    Empty {
        /// Downloads counted.
        completed: u32,
        /// Whole seconds since the Unix epoch.
        since_s: u32,
    },
    /// One IPv4 peer; `completed` is below [`ONE_COMPLETED_MAX`].
    One(Record4, u32),
    /// Up to [`BLOCK_RECORDS_MAX`](super::block::BLOCK_RECORDS_MAX) IPv4 peers of one scope.
    Few4(Block<4>),
    /// Up to [`BLOCK_RECORDS_MAX`](super::block::BLOCK_RECORDS_MAX) IPv6 peers of one scope.
    Few6(Block<16>),
    /// Anything else: many peers, several kinds, or several scopes.
    Many(Owned),
}

impl Contents {
    /// Neither peers nor a count.
    pub(super) const VACANT: Self = Self::Empty { completed: 0, since_s: 0 };

    /// Bytes of memory beyond the map entry.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Empty { .. } | Self::One(..) => 0,
            Self::Few4(block) => block.bytes(),
            Self::Few6(block) => block.bytes(),
            Self::Many(large) => size_of::<Large>() + large.bytes(),
        }
    }
}

/// The largest count of downloads that fits beside a peer in place.
pub(super) const ONE_COMPLETED_MAX: u32 = (1 << 24) - 1;
