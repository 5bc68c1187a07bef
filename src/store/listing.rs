//! Lists for operators and full scrapes: torrents in order, the largest torrents, one torrent's
//! peers.
//!
//! Each walk visits every torrent, in slices short enough that no worker waits long for a shard's
//! lock, and keeps no more than a small multiple of the requested entries. Announces continue
//! meanwhile: a torrent that is added or removed during a walk may be in the list or not. A torrent
//! may be visited twice, because entries move when a shard grows, but no torrent is in the list
//! twice.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::ops::ControlFlow;

use super::Store;
use super::peer::{PeerRecord, Role};
use super::peer_list::PeerList;
use super::raw::{PackedSwarm, ShardWalk};
use super::swarm::Swarm;
use crate::time::Now;
use crate::types::{InfoHash, ScrapeEntry};

/// A torrent in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedTorrent {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Its counts.
    pub counts: ScrapeEntry,
}

/// The sort key of a list of torrents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TorrentOrder {
    /// Peers of both roles.
    Peers,
    /// Complete peers.
    Seeders,
    /// Downloads counted.
    Completed,
}

/// A peer in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedPeer {
    /// Its address; `None` for a WebRTC peer.
    pub address: Option<SocketAddr>,
    /// Its role.
    pub role: Role,
    /// Seconds since its latest announce, too low by up to two ticks of [`super::TICK_S`].
    pub age_s: u32,
}

impl Store {
    /// The `count` torrents with the smallest info-hashes above `after` for which `shown` returns
    /// true, in order. Visits every torrent: not for a worker's loop. `shown` is called under a
    /// shard's lock.
    pub fn torrents_after(
        &self,
        after: Option<&InfoHash>,
        count: usize,
        shown: impl Fn(&InfoHash) -> bool,
    ) -> Vec<ListedTorrent> {
        let mut smallest = SmallestHashes { count, listed: Vec::new(), below: None };
        self.for_each_torrent(|info_hash, packed| {
            let is_next = after.is_none_or(|after| info_hash > after);
            if is_next && smallest.wants(info_hash) && shown(info_hash) {
                let counts = packed.peek(Swarm::scrape);
                smallest.add(ListedTorrent { info_hash: *info_hash, counts });
            }
        });
        smallest.sorted()
    }

    /// The `count` largest torrents, largest first; among equal ones, smaller info-hashes first.
    /// Visits every torrent: not for a worker's loop.
    pub fn torrents_by(&self, order: TorrentOrder, count: usize) -> Vec<ListedTorrent> {
        let mut largest = LargestTorrents { count, ranked: BinaryHeap::new() };
        self.for_each_torrent(|info_hash, packed| {
            let counts = packed.peek(Swarm::scrape);
            let listed = ListedTorrent { info_hash: *info_hash, counts };
            largest.add(RankedTorrent { size: order.size(&counts), listed });
        });
        largest.sorted()
    }

    /// One torrent with `count` of its peers from the `skip`th on, in no particular order: a
    /// concurrent announce may move a peer from one page to another.
    pub fn torrent(
        &self,
        info_hash: &InfoHash,
        now: Now,
        skip: usize,
        count: usize,
    ) -> Option<(ListedTorrent, Vec<ListedPeer>)> {
        self.table.read(info_hash, |packed| {
            packed.peek(|swarm| {
                let listed = ListedTorrent { info_hash: *info_hash, counts: swarm.scrape() };
                (listed, PeerPage { now, skip, count, peers: Vec::new() }.of(swarm))
            })
        })
    }
}

impl Store {
    /// Calls `look` for every torrent, in no particular order, for some possibly more than once.
    fn for_each_torrent(&self, mut look: impl FnMut(&InfoHash, &PackedSwarm)) {
        for shard in 0..self.table.shards() {
            let mut walk = ShardWalk::new(shard);
            let mut look = |_, info_hash: &InfoHash, packed: &PackedSwarm| {
                look(info_hash, packed);
                ControlFlow::Continue(())
            };
            while self.table.walk_on(&mut walk, &mut look) {}
        }
    }
}

/// The torrents with the smallest info-hashes so far: up to twice `count`, from which the surplus
/// is removed at once.
struct SmallestHashes {
    count: usize,
    listed: Vec<ListedTorrent>,
    /// Only smaller info-hashes are candidates; set once there are `count`.
    below: Option<InfoHash>,
}

impl SmallestHashes {
    fn wants(&self, info_hash: &InfoHash) -> bool {
        self.count > 0 && self.below.is_none_or(|below| *info_hash < below)
    }

    fn add(&mut self, listed: ListedTorrent) {
        self.listed.push(listed);
        if self.listed.len() > self.count.saturating_mul(2) {
            self.tidy();
            if self.listed.len() == self.count {
                self.below = self.listed.last().map(|it| it.info_hash);
            }
        }
    }

    /// Keeps the smallest, sorted and unique.
    fn tidy(&mut self) {
        self.listed.sort_unstable_by_key(|it| it.info_hash);
        self.listed.dedup_by_key(|it| it.info_hash);
        self.listed.truncate(self.count);
    }

    fn sorted(mut self) -> Vec<ListedTorrent> {
        self.tidy();
        self.listed
    }
}

/// The largest torrents so far. The smallest of them is on top, and is replaced first.
struct LargestTorrents {
    count: usize,
    ranked: BinaryHeap<Reverse<RankedTorrent>>,
}

impl LargestTorrents {
    fn add(&mut self, ranked: RankedTorrent) {
        let is_full = self.ranked.len() >= self.count;
        if is_full && self.ranked.peek().is_none_or(|Reverse(least)| ranked <= *least) {
            return;
        }
        // Few torrents get here, so a linear search costs little.
        let info_hash = ranked.listed.info_hash;
        if self.ranked.iter().any(|Reverse(torrent)| torrent.listed.info_hash == info_hash) {
            return;
        }
        if is_full {
            self.ranked.pop();
        }
        self.ranked.push(Reverse(ranked));
    }

    fn sorted(self) -> Vec<ListedTorrent> {
        self.ranked.into_sorted_vec().into_iter().map(|Reverse(torrent)| torrent.listed).collect()
    }
}

impl TorrentOrder {
    fn size(self, counts: &ScrapeEntry) -> u64 {
        match self {
            Self::Peers => u64::from(counts.seeders) + u64::from(counts.leechers),
            Self::Seeders => counts.seeders.into(),
            Self::Completed => counts.completed.into(),
        }
    }
}

/// A torrent that is greater than another if it comes before it in the list of the largest.
struct RankedTorrent {
    size: u64,
    listed: ListedTorrent,
}

impl RankedTorrent {
    fn key(&self) -> (u64, Reverse<InfoHash>) {
        (self.size, Reverse(self.listed.info_hash))
    }
}

impl Ord for RankedTorrent {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl PartialOrd for RankedTorrent {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for RankedTorrent {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for RankedTorrent {}

/// A page of a swarm's peers under construction.
struct PeerPage {
    now: Now,
    /// The number of peers still to be skipped.
    skip: usize,
    /// The most peers of the page.
    count: usize,
    peers: Vec<ListedPeer>,
}

impl PeerPage {
    fn of(mut self, swarm: &Swarm) -> Vec<ListedPeer> {
        match swarm {
            Swarm::Empty { .. } => {}
            Swarm::Inline(record, _) => self.add(std::slice::from_ref(record)),
            Swarm::SmallV4(block) => self.add(block.records()),
            Swarm::SmallV6(block) => self.add(block.records()),
            Swarm::Large(large) => {
                large.v4.iter().for_each(|group| self.add(group.records()));
                large.v6.iter().for_each(|group| self.add(group.records()));
                large.web.iter().for_each(|group| self.add(group.records()));
            }
        }
        self.peers
    }

    fn add<const ADDRESS: usize>(&mut self, records: &[PeerRecord<ADDRESS>]) {
        let passed_over = self.skip.min(records.len());
        self.skip -= passed_over;
        let wanted = self.count - self.peers.len();
        self.peers.extend(records[passed_over..].iter().take(wanted).map(|record| ListedPeer {
            address: record.endpoint.socket_address(),
            role: record.meta().role(),
            age_s: record.meta().age_s(self.now),
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fastrand::Rng;

    use super::super::raw::SLICE_BUCKETS;
    use super::super::{Options, PeerAnnounce, PeerBuffers, PeerChange};
    use super::*;
    use crate::types::Contact;

    const COUNT: u32 = 20_000;

    fn hash(number: u32) -> InfoHash {
        let mut info_hash = [0; 20];
        info_hash[..4].copy_from_slice(&number.to_be_bytes());
        InfoHash(info_hash)
    }

    fn announce(store: &Store, number: u32, change: PeerChange) {
        let visit = PeerAnnounce {
            info_hash: &hash(number),
            address: [8, 8, 8, 8].into(),
            contact: Contact::Port(1),
            change,
            capped: false,
        };
        store.announce(Now::from_s(9), &visit, &mut PeerBuffers::default(), &mut Rng::with_seed(1));
    }

    const JOIN: PeerChange = PeerChange::Present { role: Role::Leecher, completed: false };

    /// Walks through all shards, letting `meanwhile` change the store after every slice.
    fn walk(store: &Store, mut meanwhile: impl FnMut()) -> Vec<InfoHash> {
        let mut seen = Vec::new();
        for shard in 0..store.table.shards() {
            let mut walk = ShardWalk::new(shard);
            let mut look = |_, info_hash: &InfoHash, _: &PackedSwarm| {
                seen.push(*info_hash);
                ControlFlow::Continue(())
            };
            while store.table.walk_on(&mut walk, &mut look) {
                meanwhile();
            }
        }
        seen
    }

    #[test]
    fn the_lock_is_held_for_a_slice_at_a_time() {
        let store = Store::new(Options { shards: 2, seed: Some(1) });
        (0..COUNT).for_each(|it| announce(&store, it, JOIN));
        let mut slices = 0;
        let seen = walk(&store, || {
            slices += 1;
            announce(&store, 0, JOIN); // the shard's lock is free
        });
        assert_eq!(seen.len(), COUNT as usize, "each once");
        assert!(slices > seen.len() / SLICE_BUCKETS, "{slices}");
    }

    #[test]
    fn what_stays_is_seen_although_a_shard_grows_or_is_tidied_meanwhile() {
        // New torrents make tables double; torrents that are added and removed leave tombstones,
        // which a rehash in place removes.
        for stays in [true, false] {
            let store = Store::new(Options { shards: 2, seed: Some(1) });
            (0..COUNT).for_each(|it| announce(&store, it, JOIN));
            let mut next = COUNT;
            let seen = walk(&store, || {
                for number in next..next + 2000 {
                    announce(&store, number, JOIN);
                    if !stays {
                        announce(&store, number, PeerChange::Stopped);
                    }
                }
                next += 2000;
            });
            let seen: BTreeSet<_> = seen.into_iter().collect();
            let missing = (0..COUNT).filter(|it| !seen.contains(&hash(*it))).count();
            assert_eq!(missing, 0, "{stays}");
        }
    }

    #[test]
    fn what_is_seen_twice_is_listed_once() {
        let listed = |number: u32| ListedTorrent {
            info_hash: hash(number),
            counts: ScrapeEntry { seeders: number % 7, ..ScrapeEntry::default() },
        };
        let mut smallest = SmallestHashes { count: 10, listed: Vec::new(), below: None };
        let mut largest = LargestTorrents { count: 10, ranked: BinaryHeap::new() };
        for number in (0..50).chain(0..50).chain((0..50).rev()) {
            let torrent = listed(number);
            if smallest.wants(&torrent.info_hash) {
                smallest.add(torrent);
            }
            largest.add(RankedTorrent { size: torrent.counts.seeders.into(), listed: torrent });
        }
        assert_eq!(smallest.sorted(), (0..10).map(listed).collect::<Vec<_>>());
        let expected = [6, 13, 20, 27, 34, 41, 48, 5, 12, 19].map(listed);
        assert_eq!(largest.sorted(), expected);
        let mut none = LargestTorrents { count: 0, ranked: BinaryHeap::new() };
        none.add(RankedTorrent { size: 1, listed: listed(1) });
        assert!(none.sorted().is_empty());
    }
}
