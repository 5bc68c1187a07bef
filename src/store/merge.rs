//! Merges changes to single peers that were made at another node.
//!
//! A merged peer is stamped with the time of the merge, and wins over the local copy: the order of
//! arrival counts, so clocks of nodes need not agree. Merged peers are subject to the budget, the
//! caps per host and the cap of their torrent, and never evict a torrent or replace a peer.

use std::net::IpAddr;

use fastrand::Rng;

use super::apply::apply;
use super::context::{AnnounceContext, PeerSource};
use super::peer::PeerMeta;
use super::peer_list::PeerChange;
use super::swarm::SwarmStats;
use super::{Store, Stored};
use crate::time::Now;
use crate::types::{Contact, InfoHash, Scope};

/// A peer's role and whether its download was counted, as in a snapshot but without probation: see
/// [`SavedPeer::state`](super::SavedPeer::state).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerState(u8);

impl PeerState {
    /// The number of states.
    pub const STATES: u8 = 8;

    /// A state; `None` if the number is not below [`Self::STATES`].
    pub fn new(state: u8) -> Option<Self> {
        (state < Self::STATES).then_some(Self(state))
    }

    /// The state in meta data, whose other bits are cleared.
    #[inline]
    pub(super) fn of_meta(state: u16) -> Self {
        let [_, state] = state.to_be_bytes();
        Self(state % Self::STATES)
    }

    /// The number of the state, below [`Self::STATES`].
    pub fn number(self) -> u8 {
        self.0
    }
}

/// A change to one peer, from one node to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerDelta {
    /// The torrent.
    pub info_hash: InfoHash,
    /// The peer's address, unmapped.
    pub address: IpAddr,
    /// The peer's port.
    pub port: u16,
    /// The change.
    pub change: DeltaChange,
    /// Whether the caps on peers per host and network do not apply.
    pub is_exempt: bool,
}

/// What a [`PeerDelta`] does to its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeltaChange {
    /// It is in the swarm.
    Present {
        /// Its state.
        state: PeerState,
        /// Whether its download ended with this very announce, and was counted.
        completed: bool,
    },
    /// It has left.
    Left,
}

/// Whether a [`PeerDelta`] was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MergeResult {
    /// The peer is in the swarm, or is not if it has left.
    Applied,
    /// The peer is not in the swarm: no memory, its host or the torrent at its cap, an invalid
    /// address or port.
    NotStored,
}

impl Store {
    /// Merges a change to one peer, under its shard's lock.
    pub fn merge(&self, now: Now, delta: &PeerDelta, random: &mut Rng) -> MergeResult {
        // As in the tracker: stored peers accept connections, and IPv4 addresses are unmapped.
        let contact = Contact::Port(delta.port);
        if !contact.accepts_connections() || delta.address.to_canonical() != delta.address {
            return MergeResult::NotStored;
        }
        let (change, source) = match delta.change {
            DeltaChange::Present { state, completed } => {
                let meta = PeerMeta::of_state(state.0, now);
                let change = PeerChange::Present { role: meta.role(), completed: false };
                (change, PeerSource::Merged { meta, completed })
            }
            DeltaChange::Left => (PeerChange::Stopped, PeerSource::Announce),
        };
        let key = self.table.key(&delta.info_hash);
        let mut shard = self.table.lock(key);
        let number = shard.number();
        let mut entry = shard.entry(key);
        let existed = entry.exists();
        if !existed && change == PeerChange::Stopped {
            return MergeResult::Applied;
        }
        if !existed && !self.reserve_bucket(number, &mut entry) {
            return MergeResult::NotStored;
        }
        let totals = &self.totals[number];
        let scope = Scope::of(delta.address);
        let (stored, stays) = entry.update(|swarm| {
            let before = swarm.bytes();
            let mut context = AnnounceContext {
                now,
                scope,
                change,
                is_capped: !delta.is_exempt && scope == Scope::Public,
                source,
                budget: self.memory.of_shard(&totals.account),
                keys: self.table.keys(),
                random,
            };
            let (swarm, kind, applied) = apply(swarm, &mut context, delta.address, contact);
            self.note_bytes(number, before, swarm.bytes());
            totals.note(kind, &applied, SwarmStats::of(&swarm).peers);
            (swarm, applied.stored)
        });
        totals.note_entry(existed, stays);
        if stored == Stored::Yes { MergeResult::Applied } else { MergeResult::NotStored }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Budget, Options, PeerAnnounce, PeerBuffers, Role, StoreTotals};

    const NOW: Now = Now::from_s(1_800_000_000);
    const HASH: InfoHash = InfoHash([1; 20]);

    fn store() -> Store {
        Store::new(Options { shards: 2, seed: Some(1) })
    }

    /// A delta of a peer at 8.8.8.`host`.
    fn delta(host: u8, change: DeltaChange) -> PeerDelta {
        let address = [8, 8, 8, host].into();
        PeerDelta { info_hash: HASH, address, port: 6881, change, is_exempt: false }
    }

    fn present(state: u8, completed: bool) -> DeltaChange {
        DeltaChange::Present { state: PeerState::new(state).unwrap(), completed }
    }

    fn merge(store: &Store, delta: &PeerDelta) -> MergeResult {
        store.merge(NOW, delta, &mut Rng::with_seed(1))
    }

    /// Counts of seeders, leechers and completed downloads.
    fn counts(store: &Store) -> (u32, u32, u32) {
        let entry = store.scrape(&HASH);
        assert_eq!(store.totals().completed, u64::from(entry.completed));
        (entry.seeders, entry.leechers, entry.completed)
    }

    #[test]
    fn the_later_arrival_wins_over_the_local_copy_within_the_same_tick() {
        let store = store();
        for (state, expected) in [(0, (0, 1, 0)), (4, (1, 0, 0)), (2, (0, 1, 0)), (6, (1, 0, 0))] {
            assert_eq!(merge(&store, &delta(1, present(state, false))), MergeResult::Applied);
            assert_eq!(counts(&store), expected);
        }
        assert_eq!(merge(&store, &delta(1, DeltaChange::Left)), MergeResult::Applied);
        assert_eq!(store.totals(), StoreTotals::default());
    }

    #[test]
    fn a_leave_of_an_unknown_peer_or_torrent_changes_nothing() {
        let store = store();
        assert_eq!(merge(&store, &delta(1, DeltaChange::Left)), MergeResult::Applied);
        assert_eq!(store.totals(), StoreTotals::default());
        merge(&store, &delta(1, present(0, false)));
        assert_eq!(merge(&store, &delta(2, DeltaChange::Left)), MergeResult::Applied);
        assert_eq!(counts(&store), (0, 1, 0));
    }

    #[test]
    fn a_download_is_counted_once_for_each_peer() {
        let store = store();
        merge(&store, &delta(9, present(0, false)));
        // Counted alone adds nothing for an unknown peer, and one for a peer that was not counted.
        merge(&store, &delta(1, present(5, false)));
        assert_eq!(counts(&store), (1, 1, 0));
        merge(&store, &delta(2, present(0, false)));
        for _ in 0..2 {
            merge(&store, &delta(2, present(5, false)));
            assert_eq!(counts(&store), (2, 1, 1));
        }
        // A record that says so counts for an unknown peer too, and not again.
        for _ in 0..2 {
            merge(&store, &delta(3, present(5, true)));
            assert_eq!(counts(&store), (3, 1, 2));
        }
        // What was counted stays counted, whatever a later record lacks.
        for state in [0, 5] {
            merge(&store, &delta(3, present(state, false)));
        }
        assert_eq!(counts(&store), (3, 1, 2));
    }

    #[test]
    fn invalid_addresses_and_ports_are_not_stored() {
        let store = store();
        let good = delta(1, present(0, false));
        let mapped = PeerDelta { address: "::ffff:8.8.8.8".parse().unwrap(), ..good };
        for bad in [PeerDelta { port: 0, ..good }, mapped] {
            assert_eq!(merge(&store, &bad), MergeResult::NotStored);
        }
        assert_eq!(store.totals(), StoreTotals::default());
        assert_eq!(PeerState::new(PeerState::STATES), None);
    }

    #[test]
    fn a_merge_replaces_no_peer_of_a_full_swarm_or_host() {
        let store = store();
        store.allow(Budget { bytes_max: 0, peers_per_torrent_max: 3 });
        for host in 0..3 {
            assert_eq!(merge(&store, &delta(host, present(0, false))), MergeResult::Applied);
        }
        assert_eq!(merge(&store, &delta(3, present(0, false))), MergeResult::NotStored);
        assert_eq!(counts(&store), (0, 3, 0));

        store.allow(Budget::default());
        let at = |address: u32, port| PeerDelta {
            address: std::net::Ipv4Addr::from(0x0900_0000 + address).into(),
            port,
            ..delta(0, present(0, false))
        };
        (0..300).for_each(|address| _ = merge(&store, &at(address << 8, 6881)));
        let of_host: Vec<_> = (1..=17).map(|port| merge(&store, &at(7, port + 1024))).collect();
        assert!(of_host[..16].iter().all(|it| *it == MergeResult::Applied));
        assert_eq!(of_host[16], MergeResult::NotStored);
        let exempt = PeerDelta { is_exempt: true, ..at(7, 2000) };
        assert_eq!(merge(&store, &exempt), MergeResult::Applied);
        assert_eq!(counts(&store), (0, 3 + 300 + 16 + 1, 0));
    }

    #[test]
    fn a_merge_evicts_no_torrent_from_a_full_store() {
        let store = store();
        store.allow(Budget { bytes_max: 32 << 10, ..Budget::default() });
        let mut random = Rng::with_seed(1);
        let mut stored = 0;
        for number in 0..20_000_u32 {
            let mut info_hash = InfoHash([0; 20]);
            info_hash.0[..4].copy_from_slice(&number.to_be_bytes());
            let one = PeerDelta { info_hash, ..delta(1, present(0, false)) };
            stored += u64::from(store.merge(NOW, &one, &mut random) == MergeResult::Applied);
        }
        let usage = store.usage();
        assert!(stored < 20_000 && usage.evicted == 0 && usage.bytes <= usage.bytes_max);
        assert_eq!(store.totals().torrents, stored);
    }

    #[test]
    fn an_announce_after_a_merge_is_of_a_known_peer() {
        let store = store();
        merge(&store, &delta(1, present(0, false)));
        merge(&store, &delta(2, present(0, false)));
        let announce = PeerAnnounce {
            info_hash: &HASH,
            address: [8, 8, 8, 1].into(),
            contact: Contact::Port(6881),
            change: PeerChange::Present { role: Role::Seeder, completed: true },
            capped: true,
        };
        let random = &mut Rng::with_seed(1);
        let result = store.announce(NOW, &announce, &mut PeerBuffers::default(), random);
        assert!(result.was_there);
        assert_eq!(counts(&store), (1, 1, 1));
    }

    #[test]
    fn an_announce_returns_the_state_and_whether_it_changed() {
        let store = store();
        let random = &mut Rng::with_seed(1);
        let present = |role, completed| PeerChange::Present { role, completed };
        let steps = [
            (present(Role::Leecher, false), (0, true, false)),
            (present(Role::Leecher, false), (0, false, false)),
            (present(Role::Paused, false), (2, true, false)),
            (present(Role::Seeder, true), (5, true, true)),
            (present(Role::Seeder, true), (5, false, false)),
            (PeerChange::Stopped, (0, true, false)),
            (PeerChange::Stopped, (0, false, false)),
            (present(Role::Seeder, false), (6, true, false)),
        ];
        let (address, contact) = ([8, 8, 8, 1].into(), Contact::Port(6881));
        for (change, expected) in steps {
            let announce =
                PeerAnnounce { info_hash: &HASH, address, contact, change, capped: true };
            let result = store.announce(NOW, &announce, &mut PeerBuffers::default(), random);
            let found = (result.state.number(), result.is_changed, result.is_completed);
            assert_eq!(found, expected, "{change:?}");
        }
    }
}
