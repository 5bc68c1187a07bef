//! Evicts torrents of a shard where a new peer or torrent lacks a bucket or bytes: torrents without
//! peers first, then some on probation.

use std::sync::atomic::Ordering;

use super::peer::{Endpoint, PeerRecord};
use super::peer_list::{PeerList, all_on_probation};
use super::raw::{LockedShard, PackedSwarm, TableKey, buckets_capacity};
use super::swarm::Swarm;
use super::{ShardTotals, Store, add};

/// The resource that a new peer or torrent lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shortage {
    /// A bucket of the table, which may not grow.
    Bucket,
    /// Bytes.
    Bytes,
}

/// Buckets searched for torrents to evict: some microseconds under the lock if many of them point
/// to a block.
const SEARCHED_BUCKETS: usize = 64;

/// The most searches for torrents without peers for one new peer or torrent.
const SEARCHES_MAX: usize = 8;

/// A table of fewer buckets is not halved for bytes: that would free almost nothing.
const HALVED_MIN: usize = 16;

/// A table is rebuilt if that frees at least one bucket in this many: some hundred nanoseconds for
/// each.
const REBUILT_FOR: usize = 64;

/// The most torrents on probation evicted for one new peer or torrent. One would suffice, except
/// that a bucket freed between full ones can be reused only by a torrent whose hash leads to it.
const EVICTED_MAX: usize = 4;

impl Store {
    /// Evicts torrents other than that of `key`. While there are torrents without peers whose
    /// eviction helps, no other is evicted.
    #[cold]
    pub(super) fn evict(&self, shard: &mut LockedShard<'_>, key: TableKey<'_>, shortage: Shortage) {
        let has_room = match shortage {
            Shortage::Bucket => self.empty_a_bucket(shard, key),
            Shortage::Bytes => self.halve(shard, key),
        };
        if has_room {
            return;
        }
        let is_evictable = |packed: &PackedSwarm| packed.peek(|swarm| would_help(swarm, shortage));
        let mut found = search(shard, key, |packed| is_evictable(packed).then_some(0));
        for &(_, at) in found.sorted().iter().take(EVICTED_MAX) {
            self.evict_at(shard, at);
        }
        if shard.is_full() {
            rebuild(shard);
        }
    }

    /// Evicts torrents without peers, from where the latest search ended: the oldest found ones,
    /// until a bucket is free that any torrent can use. Returns whether there is one.
    fn empty_a_bucket(&self, shard: &mut LockedShard<'_>, key: TableKey<'_>) -> bool {
        for _ in 0..SEARCHES_MAX {
            if self.totals[shard.number()].without_peers() == 0 {
                return false;
            }
            let mut found = search(shard, key, PackedSwarm::empty_since_s);
            if found.count == 0 {
                return false;
            }
            for &(_, at) in found.sorted() {
                if !shard.is_full() {
                    break;
                }
                self.evict_at(shard, at);
            }
            if shard.is_full() {
                rebuild(shard);
            }
            if !shard.is_full() {
                return true;
            }
        }
        false
    }

    /// Halves the table, if its torrents with peers leave enough of the half: a torrent without
    /// peers takes only a bucket, so only evicting many at once frees bytes. The oldest are
    /// evicted, until a quarter of the half is free. This reads each bucket once and moves each
    /// remaining entry once: no more than the cost of the growth that it undoes, and as rare.
    /// Returns whether it was halved.
    fn halve(&self, shard: &mut LockedShard<'_>, key: TableKey<'_>) -> bool {
        let half = buckets_capacity(shard.buckets() / 2);
        let kept_max = half / 4 * 3;
        let without_peers = self.totals[shard.number()].without_peers();
        if without_peers == 0
            || shard.buckets() < HALVED_MIN
            || shard.len().saturating_sub(without_peers) > kept_max
        {
            return false;
        }
        let empty_since_s = |at| {
            let (info_hash, packed) = shard.get_at(at)?;
            packed.empty_since_s().filter(|_| info_hash != key.info_hash)
        };
        let mut found: Vec<(u32, usize)> =
            (0..shard.buckets()).filter_map(|at| Some((empty_since_s(at)?, at))).collect();
        let evicted = shard.len().saturating_sub(kept_max).min(found.len());
        if evicted > 0 {
            found.select_nth_unstable(evicted - 1);
        }
        for &(_, at) in &found[..evicted] {
            self.evict_at(shard, at);
        }
        self.shrink_table(shard, half);
        true
    }

    /// Frees the memory that a shard's table does not need for `entries` entries.
    pub(super) fn shrink_table(&self, shard: &mut LockedShard<'_>, entries: usize) {
        let before = shard.bytes();
        shard.shrink_to(entries);
        self.note_bytes(shard.number(), before, shard.bytes());
    }

    /// Evicts the torrent in a bucket, if it is full.
    fn evict_at(&self, shard: &mut LockedShard<'_>, bucket: usize) {
        let Some(swarm) = shard.remove_at(bucket) else { return };
        let totals = &self.totals[shard.number()];
        match &swarm {
            Swarm::Inline(record, _) => totals.count_all_as_left(std::slice::from_ref(record)),
            Swarm::SmallV4(block) => totals.count_all_as_left(block.records()),
            Swarm::SmallV6(block) => totals.count_all_as_left(block.records()),
            Swarm::Empty { .. } | Swarm::Large(_) => {}
        }
        self.note_bytes(shard.number(), swarm.bytes(), 0);
        totals.note_peers(swarm.has_peers(), false);
        totals.note_entry(true, false);
        add(&totals.evicted, 1);
    }
}

impl ShardTotals {
    /// The number of torrents without peers in the shard; all of them may be evicted.
    fn without_peers(&self) -> usize {
        let [all, active] =
            [&self.torrents, &self.active_torrents].map(|count| count.load(Ordering::Relaxed));
        usize::try_from(all.saturating_sub(active)).unwrap_or(usize::MAX)
    }

    /// Counts all of `records` as left.
    fn count_all_as_left<const ADDRESS: usize>(&self, records: &[PeerRecord<ADDRESS>]) {
        let kind = Endpoint::<ADDRESS>::KIND;
        records.iter().for_each(|record| self.leave(kind, record.meta().role()));
    }
}

/// Whether a torrent with peers is on probation and its eviction would help: an inline peer takes
/// only a bucket.
fn would_help(swarm: &Swarm, shortage: Shortage) -> bool {
    match swarm {
        Swarm::Inline(record, _) => shortage == Shortage::Bucket && record.meta().is_on_probation(),
        Swarm::SmallV4(block) => all_on_probation(block.records()),
        Swarm::SmallV6(block) => all_on_probation(block.records()),
        Swarm::Empty { .. } | Swarm::Large(_) => false,
    }
}

/// Buckets of torrents that may be evicted, each with its rank: the lowest is evicted first.
struct EvictionCandidates {
    buckets: [(u32, usize); SEARCHED_BUCKETS],
    count: usize,
}

impl EvictionCandidates {
    fn sorted(&mut self) -> &[(u32, usize)] {
        let found = &mut self.buckets[..self.count];
        found.sort_unstable();
        found
    }
}

/// Searches some buckets, from where the latest search ended, for torrents other than that of `key`
/// to which `rank` gives a rank.
fn search(
    shard: &mut LockedShard<'_>,
    key: TableKey<'_>,
    rank: impl Fn(&PackedSwarm) -> Option<u32>,
) -> EvictionCandidates {
    let mut found = EvictionCandidates { buckets: [(0, 0); SEARCHED_BUCKETS], count: 0 };
    let mut at = shard.hand();
    for _ in 0..SEARCHED_BUCKETS.min(shard.buckets()) {
        at = (at + 1) & (shard.buckets() - 1);
        let Some((info_hash, packed)) = shard.get_at(at) else { continue };
        if let Some(rank) = rank(packed).filter(|_| info_hash != key.info_hash) {
            found.buckets[found.count] = (rank, at);
            found.count += 1;
        }
    }
    shard.set_hand(at);
    found
}

/// Rebuilds the table, if that frees enough buckets: until then, a bucket freed between full ones
/// can be reused only by a torrent whose hash leads to it.
fn rebuild(shard: &mut LockedShard<'_>) {
    let room = buckets_capacity(shard.buckets()) - shard.len();
    if room >= shard.buckets() / REBUILT_FOR {
        shard.rebuild();
    }
}
