//! Exports the store into snapshots, in slices.
//!
//! An export walks the shards in slices: a slice copies torrents under a shard's shared lock into
//! an [`ExportBatch`], which is encoded and written with no lock held. A slice ends after a maximum
//! number of peers, in the middle of a larger swarm. Every torrent is exported once, even if its
//! shard grows meanwhile.
//!
//! A swarm that takes several slices may change between them. Its groups are copied by kind and
//! scope, which survive any change of its layout, and each group from the back: when a peer leaves,
//! others move towards the front, where they are copied again. A swarm that shrinks to a block is
//! copied again as a whole. So a snapshot may contain some peers twice, which [`Store::restore`]
//! handles. A snapshot may also lack peers: a leecher that joins, or a seeder that becomes a
//! leecher, moves the peer at the border between the two roles from the part that is not copied yet
//! to the back; and a peer that completes moves to the back itself. Each such announce hides at
//! most one peer, until that peer announces again, and only within the milliseconds in which the
//! back is copied and the border is not. Tracking these moves would make every announce to a large
//! swarm slower.
//!
//! WebRTC peers are not exported: each belongs to an open socket, which ends with the process.

use std::collections::HashSet;
use std::ops::ControlFlow;

use ahash::RandomState;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Store;
use super::large_swarm::{LargeSwarm, PeerGroup};
use super::peer::{PeerMeta, PeerRecord, Role};
use super::peer_list::PeerList;
use super::raw::{PackedSwarm, ShardWalk};
use super::swarm::Swarm;
use crate::time::Now;
use crate::types::{InfoHash, Scope};

/// Peers copied under a shard's lock at once: some 25 us, and 90 KiB of a batch if all of them are
/// IPv6 peers. Other waiting readers may get the lock first, so a worker may wait longer for it.
const PEERS_PER_SLICE: usize = 4096;

/// A peer in a snapshot.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct SavedPeer<const ENDPOINT: usize> {
    /// Address and port, in the compact form of responses.
    pub endpoint: [u8; ENDPOINT],
    /// The peer's role and whether its download was counted: 0 leecher, 2 paused, 4 seeder that was
    /// a leecher, 6 seeder from the start; plus 1 if its download was counted, plus 8 while it is
    /// on probation. Below [`SavedPeer::STATES`].
    pub state: u8,
    /// Seconds from the latest announce to the snapshot, little-endian.
    age_s: [u8; 2],
}

/// An IPv4 peer in a snapshot: 9 bytes.
pub type SavedPeerV4 = SavedPeer<6>;
/// An IPv6 peer in a snapshot: 21 bytes.
pub type SavedPeerV6 = SavedPeer<18>;

const _: () = assert!(size_of::<SavedPeerV4>() == 9 && size_of::<SavedPeerV6>() == 21);

impl<const ENDPOINT: usize> SavedPeer<ENDPOINT> {
    /// The number of states.
    pub const STATES: u8 = 16;

    /// A peer.
    pub fn new(endpoint: [u8; ENDPOINT], state: u8, age_s: u16) -> Self {
        Self { endpoint, state, age_s: age_s.to_le_bytes() }
    }

    /// Seconds from the latest announce to the snapshot.
    pub fn age_s(&self) -> u16 {
        u16::from_le_bytes(self.age_s)
    }

    /// The peer's role.
    pub fn role(&self) -> Role {
        PeerMeta::role_of_saved(self.state)
    }

    fn of<const ADDRESS: usize>(record: &PeerRecord<ADDRESS>, at: Now) -> Self {
        let mut endpoint = [0; ENDPOINT];
        endpoint.copy_from_slice(record.endpoint.as_bytes());
        let (state, age_s) = record.meta().saved(at);
        Self::new(endpoint, state, age_s)
    }

    /// The port.
    pub(super) fn port(&self) -> u16 {
        let port = self.endpoint.last_chunk().copied();
        port.map_or(0, u16::from_be_bytes)
    }
}

/// A torrent in a snapshot, or a part of a torrent: a large swarm is split into several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SavedTorrent {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Downloads counted; 0 in all parts but one.
    pub completed: u32,
    /// For a torrent without peers, seconds since the last peer left.
    pub empty_s: u32,
    /// The number of its IPv4 peers in the batch, which follow those of the torrents before it.
    pub v4: usize,
    /// The number of its IPv6 peers, likewise.
    pub v6: usize,
}

/// The torrents copied by one slice of an export.
#[derive(Debug, Default)]
pub struct ExportBatch {
    /// Torrents and parts of torrents.
    pub torrents: Vec<SavedTorrent>,
    /// Their IPv4 peers.
    pub v4: Vec<SavedPeerV4>,
    /// Their IPv6 peers.
    pub v6: Vec<SavedPeerV6>,
}

/// A running export.
pub struct StoreExport {
    at: Now,
    walk: ShardWalk,
    exported: ExportedTorrents,
    /// The position in a large swarm that is partly copied.
    position: Option<ExportPosition>,
}

impl StoreExport {
    /// Makes an export as of `at`: ages are relative to it.
    pub fn new(at: Now) -> Self {
        Self { at, walk: ShardWalk::new(0), exported: ExportedTorrents::default(), position: None }
    }
}

impl Store {
    /// Copies the next slice into `batch`, replacing its contents; returns false if there was none
    /// left.
    pub fn export(&self, export: &mut StoreExport, batch: &mut ExportBatch) -> bool {
        batch.clear();
        let StoreExport { at, walk, exported, position } = export;
        if let Some(from) = position.take() {
            let go_on = |packed: &PackedSwarm| packed.peek(|swarm| batch.go_on(*at, &from, swarm));
            *position = self.table.read(&from.info_hash, go_on).flatten();
            return true;
        }
        if walk.shard == self.table.shards() {
            return false;
        }
        let more = self.table.walk_on(walk, |restarts, info_hash, packed| {
            if exported.has(info_hash, restarts) {
                return ControlFlow::Continue(());
            }
            *position = packed.peek(|swarm| batch.add(*at, info_hash, swarm));
            let pauses = position.is_some() || batch.peers() >= PEERS_PER_SLICE;
            if pauses { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if !more {
            *walk = ShardWalk::new(walk.shard + 1);
            exported.clear();
        }
        true
    }
}

/// Torrents of the current shard that the export has visited.
#[derive(Default)]
struct ExportedTorrents {
    /// In visited order; searched only after the walk has restarted.
    first: Vec<InfoHash>,
    /// All of them, for look-ups after a restart.
    all: HashSet<InfoHash, RandomState>,
}

impl ExportedTorrents {
    /// Whether a torrent was visited before in this shard; `restarts`: how often the walk of the
    /// shard restarted.
    fn has(&mut self, info_hash: &InfoHash, restarts: u32) -> bool {
        if restarts == 0 {
            self.first.push(*info_hash);
            return false;
        }
        self.all.extend(self.first.drain(..));
        !self.all.insert(*info_hash)
    }

    fn clear(&mut self) {
        self.first.clear();
        self.all.clear();
    }
}

/// The position at which to continue in a large swarm.
struct ExportPosition {
    info_hash: InfoHash,
    /// The group: the IPv4 scopes in the order of [`SCOPES`], then the IPv6 scopes.
    group: usize,
    /// Peers from here on are copied.
    end: usize,
    /// Whether nothing of the swarm is copied yet, not even its count of downloads.
    is_whole: bool,
}

impl ExportBatch {
    fn clear(&mut self) {
        self.torrents.clear();
        self.v4.clear();
        self.v6.clear();
    }

    fn peers(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Copies a torrent, or defers it if it has too many peers for this batch.
    fn add(&mut self, at: Now, info_hash: &InfoHash, swarm: &Swarm) -> Option<ExportPosition> {
        let mut torrent =
            SavedTorrent { info_hash: *info_hash, completed: 0, empty_s: 0, v4: 0, v6: 0 };
        match swarm {
            Swarm::Empty { completed, since_s } => {
                let empty_s = at.seconds().saturating_sub(u64::from(*since_s));
                torrent.empty_s = u32::try_from(empty_s).unwrap_or(u32::MAX);
                torrent.completed = completed.number();
            }
            Swarm::Inline(record, completed) => {
                self.v4.push(SavedPeerV4::of(record, at));
                (torrent.completed, torrent.v4) = (completed.number(), 1);
            }
            Swarm::SmallV4(block) => {
                self.v4.extend(block.records().iter().map(|it| SavedPeerV4::of(it, at)));
                torrent.completed = block.completed().number();
                torrent.v4 = block.records().len();
            }
            Swarm::SmallV6(block) => {
                self.v6.extend(block.records().iter().map(|it| SavedPeerV6::of(it, at)));
                torrent.completed = block.completed().number();
                torrent.v6 = block.records().len();
            }
            Swarm::Large(large) => {
                let info_hash = *info_hash;
                let whole = ExportPosition { info_hash, group: 0, end: usize::MAX, is_whole: true };
                let puts_off = self.peers() > 0 && self.peers() + large.len() > PEERS_PER_SLICE;
                return if puts_off { Some(whole) } else { self.add_part(at, &whole, large) };
            }
        }
        self.push(torrent);
        None
    }

    /// Continues with a torrent that was too large for the batch before.
    fn go_on(&mut self, at: Now, from: &ExportPosition, swarm: &Swarm) -> Option<ExportPosition> {
        match swarm {
            Swarm::Large(large) => self.add_part(at, from, large),
            smaller if from.is_whole => self.add(at, &from.info_hash, smaller),
            Swarm::Empty { .. } => None,
            smaller => {
                // The swarm is a block now, which contains copied and uncopied peers.
                let position = self.add(at, &from.info_hash, smaller);
                self.torrents.iter_mut().for_each(|it| it.completed = 0);
                position
            }
        }
    }

    /// Copies as much of a large swarm as there is room for; returns the position at which to
    /// continue.
    fn add_part(
        &mut self,
        at: Now,
        from: &ExportPosition,
        large: &LargeSwarm,
    ) -> Option<ExportPosition> {
        let before = (self.v4.len(), self.v6.len());
        let (mut group, mut end) = (from.group, from.end);
        let position = loop {
            let room = PEERS_PER_SLICE.saturating_sub(self.peers());
            let scope = SCOPES[group % SCOPES.len()];
            let left = match group / SCOPES.len() {
                0 => {
                    copy(&large.v4, scope, (end, room), |it| self.v4.push(SavedPeerV4::of(it, at)))
                }
                1 => {
                    copy(&large.v6, scope, (end, room), |it| self.v6.push(SavedPeerV6::of(it, at)))
                }
                _ => break None,
            };
            if left > 0 {
                let info_hash = from.info_hash;
                break Some(ExportPosition { info_hash, group, end: left, is_whole: false });
            }
            (group, end) = (group + 1, usize::MAX);
        };
        self.push(SavedTorrent {
            info_hash: from.info_hash,
            completed: if from.is_whole { large.completed.number() } else { 0 },
            empty_s: 0,
            v4: self.v4.len() - before.0,
            v6: self.v6.len() - before.1,
        });
        position
    }

    /// Adds a torrent, unless it has neither peers nor a count.
    fn push(&mut self, torrent: SavedTorrent) {
        if torrent.v4 + torrent.v6 > 0 || torrent.completed > 0 {
            self.torrents.push(torrent);
        }
    }
}

/// The order in which groups are copied.
const SCOPES: [Scope; 3] = [Scope::Public, Scope::Private, Scope::Loopback];

/// Passes up to `room` peers of the group of `scope` to `take`, from the positions just below
/// `end`; returns the new `end` if peers below it are left.
fn copy<const ADDRESS: usize>(
    groups: &[PeerGroup<ADDRESS>],
    scope: Scope,
    (end, room): (usize, usize),
    take: impl FnMut(&PeerRecord<ADDRESS>),
) -> usize {
    let group = groups.iter().find(|it| it.scope == scope);
    let records = group.map_or(&[][..], PeerList::records);
    let end = end.min(records.len());
    let start = end.saturating_sub(room);
    records[start..end].iter().for_each(take);
    start
}
