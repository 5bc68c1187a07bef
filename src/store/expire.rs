//! Removes silent peers, a bounded slice at a time.
//!
//! Each worker sweeps its own shards cyclically, at an even pace, so that a pass takes about
//! [`ExpiryLimits::pass_s`]. A slice visits a few hundred buckets and peers under one shard's lock:
//! no worker waits longer than microseconds, however large the store is.

use std::ops::Range;

use super::large_swarm::{LargeSwarm, PeerGroup, PeerStorage};
use super::peer::Endpoint;
use super::peer_list::PeerList;
use super::raw::{LargeSwarmPtr, PeerBlock};
use super::swarm::{SmallLayout, Swarm};
use super::{ShardTotals, Store};
use crate::time::Now;
use crate::types::{InfoHash, PeerKind};

/// The ages at which peers and empty torrents are removed.
#[derive(Clone, Copy, Debug)]
pub struct ExpiryLimits {
    /// Seconds without an announce after which a peer is removed; at most
    /// [`super::PEER_AGE_S_LIMIT`].
    pub peer_age_s_max: u32,
    /// Seconds for which the count of an empty torrent is kept.
    pub empty_torrent_age_s_max: u32,
}

impl ExpiryLimits {
    /// The target duration of a pass over the whole store in seconds: a 64th of a peer's life, so
    /// that no peer is handed out much longer than configured, between one second and a minute.
    fn pass_s(self) -> u64 {
        u64::from(self.peer_age_s_max / 64).clamp(1, 60)
    }
}

/// The budget of a slice, in buckets and peers visited: this many for each millisecond since the
/// previous slice, within the two bounds below.
const LOOKS_PER_MS: u64 = 256;
/// A busy worker's slice: some microseconds.
const LOOKS_MIN: usize = 256;
/// An idle worker's slice: below a millisecond.
const LOOKS_MAX: usize = 16_384;
/// The part of a slice that is done under one lock: other workers wait no more than some
/// microseconds.
const LOOKS_PER_LOCK: usize = 1024;
/// A worker that is further behind its pace than this skips the backlog beyond it.
const BEHIND_NS_MAX: u64 = 200_000_000;

/// One worker's place in its cyclic sweep.
pub struct Sweeper {
    shards: Range<usize>,
    shard: usize,
    bucket: usize,
    /// The position at which to continue inside a large swarm.
    position: Option<SweepPosition>,
    /// When the current shard is due.
    due: Option<Now>,
    latest: Option<Now>,
    /// Seconds for which the count of an empty torrent is kept while memory is short.
    empty_age_s_max: Option<u32>,
}

/// A position inside a large swarm.
#[derive(Clone, Copy)]
struct SweepPosition {
    /// The torrent; its entry may be in another bucket by the next slice.
    info_hash: InfoHash,
    /// Which group: IPv4 ones first, then IPv6, then WebRTC.
    group: usize,
    /// Peers from here on have been visited.
    end: usize,
}

impl Sweeper {
    /// The sweeper of `worker` (from 0) of `workers`: each has its own share of the shards.
    pub fn new(store: &Store, worker: usize, workers: usize) -> Self {
        let shards = store.table.shards();
        let share = worker * shards / workers..(worker + 1) * shards / workers;
        let shard = share.start;
        Self {
            shards: share,
            shard,
            bucket: 0,
            position: None,
            due: None,
            latest: None,
            empty_age_s_max: None,
        }
    }

    /// Does one slice, if it is due.
    #[inline]
    pub fn slice(&mut self, store: &Store, now: Now, limits: ExpiryLimits) {
        let latest = self.latest.replace(now).unwrap_or(now);
        let due = *self.due.get_or_insert(now);
        if now >= due && !self.shards.is_empty() {
            let looks = now.ns_since(latest) * LOOKS_PER_MS / 1_000_000;
            let looks = usize::try_from(looks).unwrap_or(LOOKS_MAX);
            self.spend(store, now, limits, looks.clamp(LOOKS_MIN, LOOKS_MAX));
        }
    }

    /// Sweeps everything at once, for tests and benchmarks.
    pub fn pass(&mut self, store: &Store, now: Now, limits: ExpiryLimits) {
        for _ in self.shards.clone() {
            let mut looks = LOOKS_MAX;
            while !self.sweep(store, now, limits, &mut looks) {
                looks = LOOKS_MAX;
            }
            self.next_shard(now, now, limits, store.is_short_of_memory());
        }
    }

    fn spend(&mut self, store: &Store, now: Now, limits: ExpiryLimits, mut looks: usize) {
        while let Some(due) = self.due.filter(|due| now >= *due) {
            let mut part = looks.min(LOOKS_PER_LOCK);
            if part == 0 {
                return;
            }
            looks -= part;
            let done = self.sweep(store, now, limits, &mut part);
            looks += part;
            if done {
                self.next_shard(due, now, limits, store.is_short_of_memory());
            }
        }
    }

    fn next_shard(&mut self, due: Now, now: Now, limits: ExpiryLimits, is_short: bool) {
        let next = self.shard + 1;
        self.shard = if next < self.shards.end { next } else { self.shards.start };
        if self.shard == self.shards.start {
            // While memory is short, empty torrents are removed, the oldest first: each pass keeps
            // them for a quarter of the age of the pass before.
            let kept_s = self.empty_age_s_max.unwrap_or(limits.empty_torrent_age_s_max);
            self.empty_age_s_max = is_short.then_some(kept_s / 4);
        }
        let pace_ns = limits.pass_s() * 1_000_000_000 / self.shards.len().max(1) as u64;
        let earliest_ns = now.ns().saturating_sub(BEHIND_NS_MAX);
        self.due = Some(Now::from_ns((due.ns() + pace_ns).max(earliest_ns)));
    }

    /// Sweeps a part of the current shard; returns true when the shard is done.
    fn sweep(&mut self, store: &Store, now: Now, limits: ExpiryLimits, looks: &mut usize) -> bool {
        if self.shards.is_empty() {
            return true;
        }
        let totals = &store.totals[self.shard];
        let empty_age_s_max = limits.empty_torrent_age_s_max;
        let empty_torrent_age_s_max = self.empty_age_s_max.unwrap_or(empty_age_s_max);
        let limits = ExpiryLimits { empty_torrent_age_s_max, ..limits };
        let expiry = ShardExpiry { store, totals, now, limits };
        let mut shard = store.table.lock_shard(self.shard);
        while self.bucket < shard.buckets() {
            if *looks == 0 {
                return false;
            }
            *looks -= 1;
            let swept = shard.update_at(self.bucket, |info_hash, swarm| {
                let (bytes, had_peers) = (swarm.bytes(), swarm.has_peers());
                let from = self.position.take().filter(|position| position.info_hash == *info_hash);
                let (swarm, position) = expiry.expire(info_hash, swarm, from, looks);
                store.note_bytes(self.shard, bytes, swarm.bytes());
                totals.note_peers(had_peers, swarm.has_peers());
                (swarm, position)
            });
            if let Some((position, stays)) = swept {
                totals.note_entry(true, stays);
                if position.is_some() {
                    self.position = position;
                    return false;
                }
            }
            self.bucket += 1;
        }
        if shard.is_sparse() {
            // 1.5 times the entries always makes the table smaller: at most half the buckets are
            // full then.
            let roomy = shard.len() + shard.len() / 2;
            store.shrink_table(&mut shard, roomy);
        }
        self.bucket = 0;
        true
    }
}

/// The parameters of the sweep of one shard.
struct ShardExpiry<'a> {
    store: &'a Store,
    totals: &'a ShardTotals,
    now: Now,
    limits: ExpiryLimits,
}

impl ShardExpiry<'_> {
    /// Expires one swarm; returns the position at which to continue if `looks` ran out.
    fn expire(
        &self,
        info_hash: &InfoHash,
        swarm: Swarm,
        from: Option<SweepPosition>,
        looks: &mut usize,
    ) -> (Swarm, Option<SweepPosition>) {
        let now = self.now;
        let empty_age_s_max = u64::from(self.limits.empty_torrent_age_s_max);
        let swarm = match swarm {
            Swarm::Empty { since_s, .. }
                if now.seconds().saturating_sub(since_s.into()) > empty_age_s_max =>
            {
                Swarm::VACANT
            }
            Swarm::Inline(record, completed)
                if record.meta().age_s(now) > self.limits.peer_age_s_max =>
            {
                self.totals.leave(PeerKind::V4, record.meta().role());
                Swarm::empty(completed, now)
            }
            Swarm::SmallV4(block) => self.expire_small(block, looks),
            Swarm::SmallV6(block) => self.expire_small(block, looks),
            Swarm::Large(mut large) => {
                let position = self.expire_large(info_hash, &mut large, from, looks);
                if position.is_some() {
                    return (Swarm::Large(large), position);
                }
                self.settle(large)
            }
            as_it_was => as_it_was,
        };
        (swarm, None)
    }

    fn expire_small<const ADDRESS: usize>(
        &self,
        mut block: PeerBlock<ADDRESS>,
        looks: &mut usize,
    ) -> Swarm
    where
        PeerBlock<ADDRESS>: SmallLayout<ADDRESS>,
    {
        *looks = looks.saturating_sub(block.records().len());
        let gone = |role| self.totals.leave(Endpoint::<ADDRESS>::KIND, role);
        let keys = self.store.table.keys();
        block.expire(self.now, self.limits.peer_age_s_max, usize::MAX, usize::MAX, keys, gone);
        if !block.records().is_empty() {
            block.shrink(keys);
        }
        self.smallest(block)
    }

    /// The smallest layout for the peers of a block.
    fn smallest<const ADDRESS: usize>(&self, block: PeerBlock<ADDRESS>) -> Swarm
    where
        PeerBlock<ADDRESS>: SmallLayout<ADDRESS>,
    {
        if block.records().is_empty() {
            return Swarm::empty(block.completed(), self.now);
        }
        block.into_smallest(self.store.table.keys())
    }

    /// Expires a large swarm's groups one after the other; returns the position at which to
    /// continue if `looks` ran out.
    fn expire_large(
        &self,
        info_hash: &InfoHash,
        large: &mut LargeSwarm,
        from: Option<SweepPosition>,
        looks: &mut usize,
    ) -> Option<SweepPosition> {
        let (mut group, mut end) = from.map_or((0, usize::MAX), |it| (it.group, it.end));
        let (v6_from, web_at) = (large.v4.len(), large.v4.len() + large.v6.len());
        loop {
            let rest = if let Some(v4) = large.v4.get_mut(group) {
                self.expire_group(v4, end, looks)
            } else if let Some(v6) = large.v6.get_mut(group - v6_from) {
                self.expire_group(v6, end, looks)
            } else if let Some(web) = large.web.as_mut().filter(|_| group == web_at) {
                self.expire_group(web, end, looks)
            } else {
                return None;
            };
            if let Some(end) = rest {
                return Some(SweepPosition { info_hash: *info_hash, group, end });
            }
            (group, end) = (group + 1, usize::MAX);
        }
    }

    fn expire_group<const ADDRESS: usize>(
        &self,
        group: &mut PeerGroup<ADDRESS>,
        end: usize,
        looks: &mut usize,
    ) -> Option<usize> {
        let end = end.min(group.records().len());
        let gone = |role| self.totals.leave(Endpoint::<ADDRESS>::KIND, role);
        let (age_s_max, keys) = (self.limits.peer_age_s_max, self.store.table.keys());
        // At least one, so that every visit makes progress.
        let budget = (*looks).max(1);
        let rest = group.expire(self.now, age_s_max, end, budget, keys, gone);
        *looks = looks.saturating_sub(end - rest.unwrap_or(0));
        rest
    }

    /// Converts a large swarm after a pass to the smallest layout that holds it.
    fn settle(&self, mut large: LargeSwarmPtr) -> Swarm {
        let keys = self.store.table.keys();
        large.v4.retain(|group| !group.records().is_empty());
        large.v6.retain(|group| !group.records().is_empty());
        large.v4.iter_mut().for_each(|group| group.shrink(keys));
        large.v6.iter_mut().for_each(|group| group.shrink(keys));
        large.web = large.web.take().filter(|group| !group.records().is_empty());
        large.web.iter_mut().for_each(|group| group.shrink(keys));
        let completed = large.completed;
        if large.v4.len() + large.v6.len() > 1 || large.web.is_some() {
            return Swarm::Large(large);
        }
        match (large.v4.pop(), large.v6.pop()) {
            (Some(PeerGroup { storage: PeerStorage::Block(mut block), .. }), _) => {
                block.set_completed(completed);
                self.smallest(block)
            }
            (_, Some(PeerGroup { storage: PeerStorage::Block(mut block), .. })) => {
                block.set_completed(completed);
                self.smallest(block)
            }
            (None, None) => Swarm::empty(completed, self.now),
            (v4, v6) => {
                large.v4.extend(v4);
                large.v6.extend(v6);
                Swarm::Large(large)
            }
        }
    }
}
