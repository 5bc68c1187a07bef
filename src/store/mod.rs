//! info-hash → swarm: the one store behind every front end.
//!
//! ```text
//! announce ─▶ raw::table    locks the shard, finds the entry of the torrent or makes one
//!    │    ─▶ evict          if there is no bucket or no memory left for it
//!    │    ─▶ apply          applies the announce to its swarm, in any layout
//!    │         ─▶ peer_list the order of its peers; the place of a new peer
//!    │    ─▶ choose         the peers that the requester may be given
//!    ▼         ─▶ sampling  a random sample of them, within `network_caps`
//! AnnounceResult
//! ```
//!
//! `swarm` and `large_swarm` are the layouts of a swarm, and `raw` is their form in memory.
//! `host_counts` counts the peers of each host in a large swarm, `full_swarm` finds the peer to
//! replace in a full one, and `memory` accounts for every byte. `expire` removes silent peers in
//! small slices, `listing` makes lists for operators, `export` and `restore` are for snapshots.
//! `merge` applies changes that were made at another node. Every operation holds one shard's lock
//! and no other lock.

mod announce;
mod apply;
mod choose;
mod context;
mod evict;
mod expire;
mod export;
mod full_swarm;
mod host_counts;
mod large_swarm;
mod listing;
mod memory;
mod merge;
mod network_caps;
mod peer;
mod peer_list;
mod raw;
mod restore;
mod sampling;
mod swarm;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;
use crossbeam_utils::CachePadded;
use fastrand::Rng;

pub use expire::{ExpiryLimits, Sweeper};
pub use export::{ExportBatch, SavedPeer, SavedPeerV4, SavedPeerV6, SavedTorrent, StoreExport};
pub use listing::{ListedPeer, ListedTorrent, TorrentOrder};
pub use memory::{Budget, MemoryUsage};
pub use merge::{DeltaChange, MergeResult, PeerDelta, PeerState};
pub use peer::{PEER_AGE_S_LIMIT, Role, TICK_S};
pub use peer_list::PeerChange;
pub use restore::{CompletedMerge, RestoreCounts, RestoreOptions, TorrentPart};

use crate::types::{Contact, InfoHash, PeerKind, Scope, ScrapeEntry};
use choose::{Chosen, Requester, choose};
use memory::{ShardAccount, StoreMemory};
use peer_list::ApplyResult;
use raw::SwarmTable;
use swarm::{Swarm, SwarmStats};

/// The number of passes of [`Store::prefetch`] over a batch.
pub const PREFETCH_STAGES: usize = raw::PREFETCH_STAGES;

/// The most peers of one family that one announce may be given.
pub const CHOICE_MAX: usize = sampling::CHOICE_MAX;

/// Options of a new store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The number of lock shards, a power of two above 1. With 1024 shards and 16 busy workers,
    /// about one announce in a hundred waits for a lock.
    pub shards: usize,
    /// Fixes the hash keys, for reproducible tests. `None`: random keys from the system, so that an
    /// attacker cannot choose colliding info-hashes.
    pub seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self { shards: 1024, seed: None }
    }
}

/// Sums over the whole store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreTotals {
    /// Torrents, including those with only a completed count.
    pub torrents: u64,
    /// Torrents that have peers.
    pub active_torrents: u64,
    /// Complete peers by [`PeerKind`].
    pub seeders: [u64; PeerKind::ALL.len()],
    /// Incomplete peers by [`PeerKind`].
    pub leechers: [u64; PeerKind::ALL.len()],
    /// Completed downloads, counted since start and before the restored snapshot.
    pub completed: u64,
}

/// One shard's part of the totals. Written only under the shard's write lock, so plain loads and
/// stores are exact; read by any thread.
#[derive(Default)]
struct ShardTotals {
    torrents: AtomicU64,
    active_torrents: AtomicU64,
    seeders: [AtomicU64; PeerKind::ALL.len()],
    leechers: [AtomicU64; PeerKind::ALL.len()],
    completed: AtomicU64,
    evicted: AtomicU64,
    account: ShardAccount,
}

/// Adds to a count whose shard is locked.
fn add(count: &AtomicU64, n: u64) {
    count.store(count.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl ShardTotals {
    fn by_role(&self, kind: PeerKind, role: Role) -> &AtomicU64 {
        match role {
            Role::Seeder => &self.seeders[kind as usize],
            Role::Leecher | Role::Paused => &self.leechers[kind as usize],
        }
    }

    fn leave(&self, kind: PeerKind, role: Role) {
        add(self.by_role(kind, role), u64::MAX);
    }

    /// Counts the change of an announce to a swarm that has `peers` peers after it.
    #[inline]
    fn note(&self, kind: PeerKind, applied: &ApplyResult, peers: u32) {
        if applied.before != applied.after {
            if let Some(role) = applied.before {
                self.leave(kind, role);
            }
            if let Some(role) = applied.after {
                add(self.by_role(kind, role), 1);
            }
            if let Some((kind, role)) = applied.replaced {
                self.leave(kind, role);
            }
            match (applied.before, applied.after) {
                (None, Some(_)) => self.note_peers(peers > 1 || applied.replaced.is_some(), true),
                (Some(_), None) => self.note_peers(true, peers > 0),
                _ => {}
            }
        }
        if applied.completed {
            add(&self.completed, 1);
        }
    }

    /// Counts whether a swarm had peers before a change, and has peers after it.
    #[inline]
    fn note_peers(&self, before: bool, after: bool) {
        if before != after {
            add(&self.active_torrents, if after { 1 } else { u64::MAX });
        }
    }

    #[inline]
    fn note_entry(&self, before: bool, after: bool) {
        if before != after {
            add(&self.torrents, if after { 1 } else { u64::MAX });
        }
    }
}

/// One announce to the store.
#[derive(Clone, Copy, Debug)]
pub struct PeerAnnounce<'a> {
    /// The torrent.
    pub info_hash: &'a InfoHash,
    /// The peer's address, unmapped.
    pub address: IpAddr,
    /// Where the peer is reached. A peer that stays accepts connections.
    pub contact: Contact,
    /// The change to the peer.
    pub change: PeerChange,
    /// Whether the caps on peers per host and network apply: not if the source is exempt from
    /// limits. They never apply to local addresses and WebRTC peers.
    pub capped: bool,
}

/// Whether an announcing peer was stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stored {
    /// It is in the swarm, or has left it.
    #[default]
    Yes,
    /// It is not in the swarm: the store is full, and no torrent to evict was found.
    NoMemory,
    /// It is not in the swarm: its host has reached its cap.
    HostFull,
    /// It is not in the swarm: the torrent is new, and the caller did not admit it.
    NotAdmitted,
}

/// Buffers for the chosen peers in compact form: their lengths are the numbers of peers wanted, up
/// to [`CHOICE_MAX`] per family. An empty slice requests no peers of that family.
#[derive(Debug, Default)]
pub struct PeerBuffers<'a> {
    /// For IPv4 peers, 6 bytes each.
    pub v4: &'a mut [u8],
    /// For IPv6 peers, 18 bytes each.
    pub v6: &'a mut [u8],
    /// For WebRTC peers, 16 bytes each: their [`crate::types::WebPeer`].
    pub web: &'a mut [u8],
}

/// The result of an announce, and the peers chosen for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnnounceResult {
    /// Complete peers of the whole swarm.
    pub seeders: u32,
    /// Incomplete peers of the whole swarm.
    pub leechers: u32,
    /// Bytes written for each kind of peer, by [`PeerKind`].
    pub bytes: [usize; PeerKind::ALL.len()],
    /// The number of candidates of each kind, by [`PeerKind`].
    pub available: [usize; PeerKind::ALL.len()],
    /// Whether the peer is in the swarm, if it was to join.
    pub stored: Stored,
    /// The peer's previous announce, if it was in the swarm: the first second of its tick of
    /// [`TICK_S`], since the Unix epoch.
    pub announced_s: Option<u64>,
    /// Whether the announce created the torrent.
    pub created: bool,
    /// Whether the peer was in the swarm before.
    pub was_there: bool,
    /// The peer's state, if it is in the swarm now.
    pub state: PeerState,
    /// Whether the peer joined, left or changed its role, or its download was counted.
    pub is_changed: bool,
    /// Whether this announce counted a download.
    pub is_completed: bool,
}

/// info-hash → swarm.
pub struct Store {
    table: SwarmTable,
    totals: Box<[CachePadded<ShardTotals>]>,
    memory: CachePadded<StoreMemory>,
    /// Downloads counted before the snapshot that was restored.
    completed_before: AtomicU64,
}

impl Store {
    /// An empty store.
    pub fn new(options: Options) -> Self {
        let keys = options.seed.map_or_else(RandomState::new, |seed| {
            RandomState::with_seeds(seed, !seed, seed.rotate_left(32), 0x5eed)
        });
        let table = SwarmTable::new(options.shards, keys);
        let totals = (0..table.shards()).map(|_| CachePadded::default()).collect();
        let completed_before = AtomicU64::new(0);
        Self { table, totals, memory: CachePadded::default(), completed_before }
    }

    /// Returns the totals; costs one read per shard.
    pub fn totals(&self) -> StoreTotals {
        let completed = self.completed_before.load(Ordering::Relaxed);
        let mut sum = StoreTotals { completed, ..StoreTotals::default() };
        for shard in &self.totals {
            sum.torrents += shard.torrents.load(Ordering::Relaxed);
            let completed = shard.completed.load(Ordering::Relaxed);
            sum.completed = sum.completed.saturating_add(completed);
            sum.active_torrents += shard.active_torrents.load(Ordering::Relaxed);
            for at in 0..PeerKind::ALL.len() {
                sum.seeders[at] += shard.seeders[at].load(Ordering::Relaxed);
                sum.leechers[at] += shard.leechers[at].load(Ordering::Relaxed);
            }
        }
        sum
    }

    /// Sets the memory budget. Stored entries stay: a store over its budget only stops accepting
    /// new ones.
    pub fn allow(&self, budget: Budget) {
        self.memory.allow(budget);
    }

    /// Whether memory is so short (four fifths of the budget are reserved) that new torrents are on
    /// probation: the first torrents with peers to be evicted when the rest is used up as well.
    #[inline]
    pub fn is_short_of_memory(&self) -> bool {
        self.memory.is_short()
    }

    /// The store's memory use; costs one read per shard.
    pub fn usage(&self) -> MemoryUsage {
        let (bytes_max, reserved) = (self.memory.bytes_max(), self.memory.reserved());
        let mut usage = MemoryUsage { bytes_max, reserved, ..MemoryUsage::default() };
        for shard in &self.totals {
            usage.bytes += shard.account.taken();
            usage.evicted += shard.evicted.load(Ordering::Relaxed);
        }
        usage
    }

    /// Records that an allocation in a shard, whose lock is held, has changed from `before` to
    /// `after` bytes.
    #[inline]
    fn note_bytes(&self, shard: usize, before: usize, after: usize) {
        self.memory.note(&self.totals[shard].account, before, after);
    }

    /// Prefetches the memory that an announce of `info_hash` will access; each stage, 0 to
    /// [`PREFETCH_STAGES`] - 1, runs over a whole batch before the next, so that memory accesses
    /// overlap.
    #[inline]
    pub fn prefetch(&self, stage: usize, info_hash: &InfoHash) {
        self.table.prefetch(stage, info_hash);
    }

    /// Returns the counts of a torrent, and chooses peers for a requester in `role` that does not
    /// join the swarm. Changes nothing: an unknown torrent stays unknown.
    pub fn look_up(
        &self,
        info_hash: &InfoHash,
        (address, role): (IpAddr, Role),
        buffers: &mut PeerBuffers<'_>,
        random: &mut Rng,
    ) -> AnnounceResult {
        // The kind is irrelevant without a position.
        let reader =
            Requester { scope: Scope::of(address), role, kind: PeerKind::V4, position: None };
        let look = |swarm: &Swarm| {
            let Chosen { bytes, available } = choose(swarm, reader, buffers, random);
            AnnounceResult { bytes, available, ..SwarmStats::of(swarm).result() }
        };
        self.table.read(info_hash, |packed| packed.peek(look)).unwrap_or_default()
    }

    /// One torrent's counts; zeros if it is unknown.
    pub fn scrape(&self, info_hash: &InfoHash) -> ScrapeEntry {
        self.table.read(info_hash, |packed| packed.peek(Swarm::scrape)).unwrap_or_default()
    }
}
