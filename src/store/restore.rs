//! Restores a snapshot into the store.
//!
//! Restored peers are merged with those that have announced since: for a known peer, the later
//! announce counts; counts of downloads are added. Restored peers are subject to the budget and the
//! cap of their torrent, and never evict or replace others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::Ordering;

use fastrand::Rng;

use super::apply::apply;
use super::context::{AnnounceContext, PeerSource};
use super::export::{SavedPeer, SavedPeerV4, SavedPeerV6};
use super::peer::PeerMeta;
use super::peer_list::PeerChange;
use super::swarm::{CompletedCount, Swarm, SwarmStats};
use super::{Store, Stored, add};
use crate::time::Now;
use crate::types::{Contact, InfoHash, Scope};

/// A torrent, or a part of a torrent, to restore.
#[derive(Clone, Copy, Debug)]
pub struct TorrentPart<'a> {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Downloads to be added to its count.
    pub completed: u32,
    /// For a torrent without peers, seconds from the leave of the last peer to the snapshot.
    pub empty_s: u32,
    /// Its IPv4 peers.
    pub v4: &'a [SavedPeerV4],
    /// Its IPv6 peers.
    pub v6: &'a [SavedPeerV6],
}

/// The parameters of a restore.
#[derive(Clone, Copy, Debug)]
pub struct RestoreOptions {
    /// When the snapshot was taken.
    pub at: Now,
    /// The time of the restore. If the clock was set back after the snapshot, no time has passed.
    pub now: Now,
    /// Peers that have been silent for more seconds than this are not restored.
    pub peer_age_s_max: u32,
    /// How counts of downloads are merged.
    pub completed: CompletedMerge,
}

/// How a restored count of downloads is merged with that of a known torrent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompletedMerge {
    /// Their sum: a snapshot, whose downloads were counted before those since the start. The totals
    /// of the store do not change: see [`Store::restore_completed`].
    Add,
    /// The larger of the two: a copy from another node, which counted the same downloads. The
    /// difference is added to the totals of the store.
    Max,
}

/// The counts of a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RestoreCounts {
    /// Torrents, or parts of torrents, with a count or with peers that are not expired.
    pub torrents: u64,
    /// Restored peers.
    pub peers: u64,
    /// Peers that were already in their swarms, because they have announced since.
    pub known: u64,
    /// Peers that have been silent for too long.
    pub expired: u64,
    /// Peers that were not stored: no memory, a torrent at its cap, an invalid address.
    pub refused: u64,
}

impl Store {
    /// Merges a torrent, or a part of one, under its shard's lock: some 100 ns for each peer.
    pub fn restore(
        &self,
        terms: RestoreOptions,
        torrent: &TorrentPart<'_>,
        random: &mut Rng,
        restored: &mut RestoreCounts,
    ) {
        let key = self.table.key(&torrent.info_hash);
        let mut shard = self.table.lock(key);
        let number = shard.number();
        let mut entry = shard.entry(key);
        let existed = entry.exists();
        if !existed && !self.reserve_bucket(number, &mut entry) {
            restored.refused += (torrent.v4.len() + torrent.v6.len()) as u64;
            return;
        }
        let mut context =
            RestoreContext { store: self, shard: number, terms, torrent, random, restored };
        let ((), stays) = entry.update(|swarm| (context.merge(swarm), ()));
        restored.torrents += u64::from(stays);
        self.totals[number].note_entry(existed, stays);
    }

    /// Adds the downloads counted before a snapshot to [`super::StoreTotals::completed`].
    pub fn restore_completed(&self, completed: u64) {
        let add = |before: u64| Some(before.saturating_add(completed));
        let _ = self.completed_before.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }
}

/// A torrent that is being restored.
struct RestoreContext<'a, 't> {
    store: &'a Store,
    shard: usize,
    terms: RestoreOptions,
    torrent: &'a TorrentPart<'t>,
    random: &'a mut Rng,
    restored: &'a mut RestoreCounts,
}

impl RestoreContext<'_, '_> {
    fn merge(&mut self, swarm: Swarm) -> Swarm {
        let (before, completed_before) = (swarm.bytes(), swarm.completed().number());
        let keys = self.store.table.keys();
        let mut swarm = match swarm {
            Swarm::Empty { completed: CompletedCount::NONE, .. } => self.emptied(),
            other => {
                let saved = self.torrent.completed;
                let more = match self.terms.completed {
                    CompletedMerge::Add => saved,
                    CompletedMerge::Max => saved.saturating_sub(other.completed().number()),
                };
                other.with_more_completed(CompletedCount::of_saved(more), keys)
            }
        };
        if self.terms.completed == CompletedMerge::Max {
            let more = swarm.completed().number() - completed_before;
            add(&self.store.totals[self.shard].completed, more.into());
        }
        self.store.note_bytes(self.shard, before, swarm.bytes());
        let torrent = self.torrent;
        for peer in torrent.v4 {
            let [a, b, c, d, ..] = peer.endpoint;
            swarm = self.add(swarm, Ipv4Addr::new(a, b, c, d).into(), peer);
        }
        for peer in torrent.v6 {
            let mut octets = [0; 16];
            octets.copy_from_slice(&peer.endpoint[..16]);
            swarm = self.add(swarm, Ipv6Addr::from(octets).into(), peer);
        }
        swarm
    }

    /// The torrent before its peers are back.
    fn emptied(&self) -> Swarm {
        let RestoreOptions { at, now, .. } = self.terms;
        let since = match (self.torrent.v4, self.torrent.v6) {
            ([], []) => at.seconds().saturating_sub(self.torrent.empty_s.into()),
            _ => now.seconds(),
        };
        let since_s = u32::try_from(since.min(now.seconds())).unwrap_or(u32::MAX);
        Swarm::Empty { completed: CompletedCount::of_saved(self.torrent.completed), since_s }
    }

    /// Merges a peer.
    fn add<const ENDPOINT: usize>(
        &mut self,
        swarm: Swarm,
        address: IpAddr,
        peer: &SavedPeer<ENDPOINT>,
    ) -> Swarm {
        let RestoreOptions { at, now, peer_age_s_max, .. } = self.terms;
        let meta = PeerMeta::of_saved((peer.state, peer.age_s()), at, now);
        let Some(meta) = meta.filter(|it| it.age_s(now) <= peer_age_s_max) else {
            self.restored.expired += 1;
            return swarm;
        };
        // As in the tracker: stored peers accept connections, and IPv4 addresses are unmapped.
        let contact = Contact::Port(peer.port());
        if !contact.accepts_connections() || address.to_canonical() != address {
            self.restored.refused += 1;
            return swarm;
        }
        let totals = &self.store.totals[self.shard];
        let mut context = AnnounceContext {
            now,
            scope: Scope::of(address),
            change: PeerChange::Present { role: meta.role(), completed: false },
            is_capped: false,
            source: PeerSource::Restored(meta),
            budget: self.store.memory.of_shard(&totals.account),
            keys: self.store.table.keys(),
            random: self.random,
        };
        let before = swarm.bytes();
        let (swarm, kind, applied) = apply(swarm, &mut context, address, contact);
        self.store.note_bytes(self.shard, before, swarm.bytes());
        let SwarmStats { peers, .. } = SwarmStats::of(&swarm);
        totals.note(kind, &applied, peers);
        match (applied.stored, applied.before) {
            (Stored::Yes, Some(_)) => self.restored.known += 1,
            (Stored::Yes, None) => self.restored.peers += 1,
            _ => self.restored.refused += 1,
        }
        swarm
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Options;

    const NOW: Now = Now::from_s(1_800_000_000);

    /// Restores counts one after the other; returns the torrent's count and that of the totals.
    fn restored(completed: CompletedMerge, counts: &[u32]) -> (u32, u64) {
        let store = Store::new(Options { shards: 2, seed: Some(1) });
        let terms = RestoreOptions { at: NOW, now: NOW, peer_age_s_max: 3900, completed };
        let info_hash = InfoHash([1; 20]);
        for &completed in counts {
            let part = TorrentPart { info_hash, completed, empty_s: 0, v4: &[], v6: &[] };
            let (random, found) = (&mut Rng::with_seed(1), &mut RestoreCounts::default());
            store.restore(terms, &part, random, found);
        }
        (store.scrape(&info_hash).completed, store.totals().completed)
    }

    #[test]
    fn counts_of_a_snapshot_are_added_and_do_not_change_the_totals() {
        assert_eq!(restored(CompletedMerge::Add, &[5, 3, 7]), (15, 0));
    }

    #[test]
    fn of_counts_from_another_node_the_larger_stays_and_the_totals_follow() {
        assert_eq!(restored(CompletedMerge::Max, &[5, 3, 7]), (7, 7));
        assert_eq!(restored(CompletedMerge::Max, &[5, 5, 0]), (5, 5));
    }
}
