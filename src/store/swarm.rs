//! The content of a map entry: a swarm in the smallest of five layouts.

use ahash::RandomState;

use super::AnnounceResult;
use super::large_swarm::{LargeSwarm, PeerGroup};
use super::peer::{PeerRecordV4, Role};
use super::peer_list::{ApplyResult, PeerList, RoleCounts};
use super::raw::{LargeSwarmPtr, PeerBlock};
use crate::time::Now;
use crate::types::ScrapeEntry;

/// Downloads counted in a swarm, and whether the count may outlive its peers: only if two networks
/// made it. Otherwise three announces of one address would leave an entry for
/// [`ExpiryLimits::empty_torrent_age_s_max`](super::ExpiryLimits), hundreds of thousands a day.
///
/// ```text
/// 31..1 downloads | 0 whether two networks made it
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct CompletedCount(u32);

/// The largest number of downloads a count holds.
const NUMBER_MAX: u32 = u32::MAX >> 1;

impl CompletedCount {
    /// Nothing was counted.
    pub(super) const NONE: Self = Self(0);

    /// A count from a snapshot, which does not store how many networks made it. Two networks are
    /// assumed, because a count that survives a restart is more likely honest.
    pub(super) fn of_saved(number: u32) -> Self {
        Self(number.min(NUMBER_MAX) << 1 | u32::from(number > 0))
    }

    /// Restores a count from the word in an entry.
    #[inline]
    pub(super) fn from_word(word: u32) -> Self {
        Self(word)
    }

    /// The word in an entry; 0 for [`CompletedCount::NONE`] only.
    #[inline]
    pub(super) fn word(self) -> u32 {
        self.0
    }

    /// The number of downloads.
    #[inline]
    pub(super) fn number(self) -> u32 {
        self.0 >> 1
    }

    /// Whether the count is kept when no peer is left.
    #[inline]
    pub(super) fn outlives_peers(self) -> bool {
        self.0 & 1 != 0
    }

    /// The count after an announce.
    #[inline]
    pub(super) fn after(self, applied: &ApplyResult) -> Self {
        if applied.completed {
            return self.plus(Self(1 << 1 | u32::from(applied.is_witnessed)));
        }
        self
    }

    /// The sum of both counts.
    pub(super) fn plus(self, other: Self) -> Self {
        let number = self.number().saturating_add(other.number()).min(NUMBER_MAX);
        Self(number << 1 | (self.0 | other.0) & 1)
    }

    /// Whether the count fits into an entry beside an inline peer, which leaves three bytes.
    #[inline]
    pub(super) fn fits_beside_peer(self) -> bool {
        self.0 < 1 << 24
    }
}

/// What a map entry holds, unpacked.
pub(super) enum Swarm {
    /// No peers; kept for its count of downloads. `since_s` is when the last one left.
    Empty {
        /// Downloads counted.
        completed: CompletedCount,
        /// Whole seconds since the Unix epoch.
        since_s: u32,
    },
    /// One IPv4 peer, and a count that [fits](CompletedCount::fits_beside_peer).
    Inline(PeerRecordV4, CompletedCount),
    /// Up to [`BLOCK_RECORDS_MAX`](super::raw::BLOCK_RECORDS_MAX) IPv4 peers of one scope.
    SmallV4(PeerBlock<4>),
    /// Up to [`BLOCK_RECORDS_MAX`](super::raw::BLOCK_RECORDS_MAX) IPv6 peers of one scope.
    SmallV6(PeerBlock<16>),
    /// Anything else: many peers, several kinds, or several scopes.
    Large(LargeSwarmPtr),
}

impl Swarm {
    /// Neither peers nor a count.
    pub(super) const VACANT: Self = Self::Empty { completed: CompletedCount::NONE, since_s: 0 };

    /// A swarm without peers, kept for its count if that may outlive them.
    pub(super) fn empty(completed: CompletedCount, now: Now) -> Self {
        if !completed.outlives_peers() {
            return Self::VACANT;
        }
        let since_s = u32::try_from(now.seconds()).unwrap_or(u32::MAX);
        Self::Empty { completed, since_s }
    }

    /// One IPv4 peer, inline if its count fits beside it.
    pub(super) fn of_one_peer(
        record: PeerRecordV4,
        completed: CompletedCount,
        keys: &RandomState,
    ) -> Self {
        if completed.fits_beside_peer() {
            return Self::Inline(record, completed);
        }
        let mut block = PeerBlock::with_room(1, completed);
        block.insert(record, keys);
        Self::SmallV4(block)
    }

    /// A large swarm, or an empty one if its last peer has left.
    pub(super) fn of_large(large: LargeSwarmPtr, now: Now) -> Self {
        if large.is_empty() { Self::empty(large.completed, now) } else { Self::Large(large) }
    }

    /// Downloads counted.
    pub(super) fn completed(&self) -> CompletedCount {
        match self {
            Self::Empty { completed, .. } | Self::Inline(_, completed) => *completed,
            Self::SmallV4(block) => block.completed(),
            Self::SmallV6(block) => block.completed(),
            Self::Large(large) => large.completed,
        }
    }

    /// The swarm with `more` downloads counted.
    pub(super) fn with_more_completed(self, more: CompletedCount, keys: &RandomState) -> Self {
        let completed = self.completed().plus(more);
        match self {
            Self::Empty { since_s, .. } => Self::Empty { completed, since_s },
            Self::Inline(record, _) => Self::of_one_peer(record, completed, keys),
            Self::SmallV4(mut block) => {
                block.set_completed(completed);
                Self::SmallV4(block)
            }
            Self::SmallV6(mut block) => {
                block.set_completed(completed);
                Self::SmallV6(block)
            }
            Self::Large(mut large) => {
                large.completed = completed;
                Self::Large(large)
            }
        }
    }

    /// The counts that a scrape reports.
    pub(super) fn scrape(&self) -> ScrapeEntry {
        SwarmStats::of(self).entry(self.completed())
    }

    /// Whether the swarm has peers: a layout that can hold peers always holds one.
    #[inline]
    pub(super) fn has_peers(&self) -> bool {
        !matches!(self, Self::Empty { .. })
    }

    /// Bytes of memory beyond the map entry.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Empty { .. } | Self::Inline(..) => 0,
            Self::SmallV4(block) => block.bytes(),
            Self::SmallV6(block) => block.bytes(),
            Self::Large(large) => size_of::<LargeSwarm>() + large.bytes(),
        }
    }
}

/// The counts of a swarm, over all kinds and scopes.
#[derive(Clone, Copy, Default)]
pub(super) struct SwarmStats {
    /// All of them.
    pub(super) peers: u32,
    seeders: u32,
    wanting: u32,
}

impl SwarmStats {
    /// The swarm's.
    #[inline]
    pub(super) fn of(swarm: &Swarm) -> Self {
        match swarm {
            Swarm::Empty { .. } => Self::default(),
            Swarm::Inline(record, _) => {
                let role = record.meta().role();
                let (seeders, wanting) = (role == Role::Seeder, role.wants_data());
                Self { peers: 1, seeders: seeders.into(), wanting: wanting.into() }
            }
            Swarm::SmallV4(block) => Self::of_peers(block),
            Swarm::SmallV6(block) => Self::of_peers(block),
            Swarm::Large(large) => {
                let v4 = large.v4.iter().map(Self::of_peers);
                let v6 = large.v6.iter().map(Self::of_peers);
                let web = large.web.as_deref().map(Self::of_peers);
                v4.chain(v6).chain(web).fold(Self::default(), Self::plus)
            }
        }
    }

    #[inline]
    fn of_peers<const ADDRESS: usize>(peer_list: &impl PeerList<ADDRESS>) -> Self {
        let RoleCounts { wanting, seeders } = peer_list.counts();
        let peers = u32::try_from(peer_list.records().len()).unwrap_or(u32::MAX);
        Self { peers, seeders, wanting }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            peers: self.peers + other.peers,
            seeders: self.seeders + other.seeders,
            wanting: self.wanting + other.wanting,
        }
    }

    /// As the result of an announce.
    #[inline]
    pub(super) fn result(self) -> AnnounceResult {
        let (seeders, leechers) = (self.seeders, self.peers - self.seeders);
        AnnounceResult { seeders, leechers, ..AnnounceResult::default() }
    }

    /// As the entry of a scrape, with the downloads counted.
    pub(super) fn entry(self, completed: CompletedCount) -> ScrapeEntry {
        let (seeders, leechers) = (self.seeders, self.peers - self.seeders);
        let completed = completed.number();
        ScrapeEntry { seeders, completed, leechers, downloaders: self.wanting }
    }
}

/// Blocks of a family whose small swarms are a single block: IPv4 and IPv6.
pub(super) trait SmallLayout<const ADDRESS: usize>: Sized {
    /// The swarm of the block's peers.
    fn into_swarm(self) -> Swarm;

    /// The swarm in the smallest layout that holds the peers. The block is not empty.
    fn into_smallest(self, keys: &RandomState) -> Swarm;

    /// The block of a swarm in this layout; a swarm in another layout is returned unchanged.
    fn from_swarm(swarm: Swarm) -> Result<Self, Swarm>;

    /// The groups of the family in a large swarm.
    fn groups(large: &mut LargeSwarm) -> &mut Vec<PeerGroup<ADDRESS>>;
}

impl SmallLayout<4> for PeerBlock<4> {
    #[inline]
    fn into_swarm(self) -> Swarm {
        Swarm::SmallV4(self)
    }

    fn into_smallest(self, keys: &RandomState) -> Swarm {
        match self.records() {
            [record] => Swarm::of_one_peer(*record, self.completed(), keys),
            _ => Swarm::SmallV4(self),
        }
    }

    #[inline]
    fn from_swarm(swarm: Swarm) -> Result<Self, Swarm> {
        match swarm {
            Swarm::SmallV4(block) => Ok(block),
            other => Err(other),
        }
    }

    fn groups(large: &mut LargeSwarm) -> &mut Vec<PeerGroup<4>> {
        &mut large.v4
    }
}

impl SmallLayout<16> for PeerBlock<16> {
    #[inline]
    fn into_swarm(self) -> Swarm {
        Swarm::SmallV6(self)
    }

    fn into_smallest(self, _keys: &RandomState) -> Swarm {
        Swarm::SmallV6(self)
    }

    #[inline]
    fn from_swarm(swarm: Swarm) -> Result<Self, Swarm> {
        match swarm {
            Swarm::SmallV6(block) => Ok(block),
            other => Err(other),
        }
    }

    fn groups(large: &mut LargeSwarm) -> &mut Vec<PeerGroup<16>> {
        &mut large.v6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(count: CompletedCount, is_witnessed: bool) -> CompletedCount {
        count.after(&ApplyResult { completed: true, is_witnessed, ..ApplyResult::default() })
    }

    #[test]
    fn a_count_outlives_its_peers_once_two_networks_have_made_it() {
        let alone = counted(counted(CompletedCount::NONE, false), false);
        assert_eq!((alone.number(), alone.outlives_peers()), (2, false));
        let two = counted(counted(alone, true), false);
        assert_eq!((two.number(), two.outlives_peers()), (4, true));
        assert_eq!(two.after(&ApplyResult::default()), two);
        assert_eq!(CompletedCount::from_word(two.word()), two);
        let saved = alone.plus(CompletedCount::of_saved(7));
        assert_eq!((saved.number(), saved.outlives_peers()), (9, true));
        assert_eq!(CompletedCount::of_saved(0), CompletedCount::NONE);
    }

    #[test]
    fn a_count_ends_at_its_largest_number() {
        let most = CompletedCount::of_saved(u32::MAX);
        assert_eq!(counted(most, true), most);
        assert_eq!(most.plus(most).number(), NUMBER_MAX);
        let fits = CompletedCount::of_saved((1 << 23) - 1);
        assert!(fits.fits_beside_peer() && !counted(fits, false).fits_beside_peer());
    }
}
