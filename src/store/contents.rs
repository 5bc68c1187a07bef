//! What a map entry holds: a swarm in the cheapest of five layouts.

use super::large::Large;
use super::raw::{Block, Owned};
use super::record::Record4;
use super::roster::Outcome;

/// Downloads counted in a swarm, and whether the count may outlive its peers: only if two networks
/// made it. Else three announces of one address would leave an entry for
/// [`Limits::empty_torrent_age_s_max`](super::Limits), hundreds of thousands a day.
///
/// ```text
/// 31..1 downloads | 0 whether two networks made it
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Count(u32);

/// The largest number of downloads a count holds.
const NUMBER_MAX: u32 = u32::MAX >> 1;

impl Count {
    /// Nothing was counted.
    pub(super) const NONE: Self = Self(0);

    /// What a snapshot says. It does not say who made it: two networks, is assumed, for what was
    /// kept through a restart is rather lost than a newcomer's, but honestly made.
    pub(super) fn of_saved(number: u32) -> Self {
        Self(number.min(NUMBER_MAX) << 1 | u32::from(number > 0))
    }

    /// The same as the word that entries keep.
    #[inline]
    pub(super) fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// The word that entries keep; 0 for [`Count::NONE`] only.
    #[inline]
    pub(super) fn word(self) -> u32 {
        self.0
    }

    /// How many downloads.
    #[inline]
    pub(super) fn number(self) -> u32 {
        self.0 >> 1
    }

    /// Whether it is kept when nobody is left.
    #[inline]
    pub(super) fn outlives_peers(self) -> bool {
        self.0 & 1 != 0
    }

    /// The count after an announce.
    #[inline]
    pub(super) fn after(self, outcome: &Outcome) -> Self {
        if outcome.completed {
            return self.plus(Self(1 << 1 | u32::from(outcome.is_witnessed)));
        }
        self
    }

    /// Both together.
    pub(super) fn plus(self, other: Self) -> Self {
        let number = self.number().saturating_add(other.number()).min(NUMBER_MAX);
        Self(number << 1 | (self.0 | other.0) & 1)
    }

    /// Whether it fits into an entry beside a peer in place, which leaves three bytes for it.
    #[inline]
    pub(super) fn fits_beside_peer(self) -> bool {
        self.0 < 1 << 24
    }
}

/// What a map entry holds, unpacked.
pub(super) enum Contents {
    /// No peers; kept for its count of downloads. `since_s` says when the last one left.
    Empty {
        /// Downloads counted.
        completed: Count,
        /// Whole seconds since the Unix epoch.
        since_s: u32,
    },
    /// One IPv4 peer, and a count that [fits](Count::fits_beside_peer).
    One(Record4, Count),
    /// Up to [`BLOCK_RECORDS_MAX`](super::raw::BLOCK_RECORDS_MAX) IPv4 peers of one scope.
    Few4(Block<4>),
    /// Up to [`BLOCK_RECORDS_MAX`](super::raw::BLOCK_RECORDS_MAX) IPv6 peers of one scope.
    Few6(Block<16>),
    /// Anything else: many peers, several kinds, or several scopes.
    Many(Owned),
}

impl Contents {
    /// Neither peers nor a count.
    pub(super) const VACANT: Self = Self::Empty { completed: Count::NONE, since_s: 0 };

    /// Whether anybody is in the swarm: a layout that can hold peers always holds one.
    #[inline]
    pub(super) fn has_peers(&self) -> bool {
        !matches!(self, Self::Empty { .. })
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(count: Count, is_witnessed: bool) -> Count {
        count.after(&Outcome { completed: true, is_witnessed, ..Outcome::default() })
    }

    #[test]
    fn a_count_outlives_its_peers_once_two_networks_have_made_it() {
        let alone = counted(counted(Count::NONE, false), false);
        assert_eq!((alone.number(), alone.outlives_peers()), (2, false));
        let two = counted(counted(alone, true), false);
        assert_eq!((two.number(), two.outlives_peers()), (4, true));
        assert_eq!(two.after(&Outcome::default()), two);
        assert_eq!(Count::from_word(two.word()), two);
        let saved = alone.plus(Count::of_saved(7));
        assert_eq!((saved.number(), saved.outlives_peers()), (9, true));
        assert_eq!(Count::of_saved(0), Count::NONE);
    }

    #[test]
    fn a_count_ends_at_its_largest_number() {
        let most = Count::of_saved(u32::MAX);
        assert_eq!(counted(most, true), most);
        assert_eq!(most.plus(most).number(), NUMBER_MAX);
        let fits = Count::of_saved((1 << 23) - 1);
        assert!(fits.fits_beside_peer() && !counted(fits, false).fits_beside_peer());
    }
}
