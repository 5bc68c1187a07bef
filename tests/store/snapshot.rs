//! Snapshots without a server: what is saved comes back, whatever happens to the file is noticed,
//! and no end of the process or failure of the disk leaves a snapshot that loads wrongly.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr};

use fastrand::Rng;
use proptest::prelude::*;
use skep::snapshot::{BLOCK_BYTES_MAX, Block, Snapshot, SnapshotError, VERSION};
use skep::store::{
    Budget, CompletedMerge, ExpiryLimits, ExportBatch, PeerChange, RestoreCounts, RestoreOptions,
    Role, SavedPeerV4, SavedPeerV6, Store, StoreExport, Sweeper, TorrentPart,
};
use skep::types::{Contact, PeerKind, WebPeer};

use crate::snapshot_model::{
    self, AGE_S_MAX, START, Said, TRACKER, announce, any_announce, empty_store, exported, fill,
    hash, join, restore, shown, snapshot_of, snapshot_with, v4, v6,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn what_is_saved_comes_back(seed: u64, announces in 0_u32..4000, torrents in 1_u32..200) {
        let mut random = Rng::with_seed(seed);
        let store = empty_store(seed);
        let now = fill(&store, &mut random, announces, torrents);
        let bytes = snapshot_of(&store, now);
        let again = empty_store(!seed);
        // A store that has forgotten those who were silent for too long: they do not come back.
        let limits = ExpiryLimits { peer_age_s_max: AGE_S_MAX, empty_torrent_age_s_max: u32::MAX };
        Sweeper::new(&store, 0, 1).pass(&store, now, limits);
        let restored = restore(&bytes, &again, now);
        prop_assert_eq!(again.totals(), store.totals());
        prop_assert_eq!(shown(&again, now), shown(&store, now));
        let (ours, theirs) = (exported(&again, now), exported(&store, now));
        // A torrent that the sweep has emptied is empty since then, the restored one as well.
        prop_assert_eq!(ours, theirs);
        let totals = store.totals();
        let peers: u64 = totals.seeders.iter().chain(&totals.leechers).sum();
        prop_assert_eq!((restored.peers, restored.known, restored.refused), (peers, 0, 0));
    }

    #[test]
    fn what_has_announced_meanwhile_is_merged(
        seed: u64,
        before in 0_u32..2000,
        after in 0_u32..2000,
    ) {
        let mut random = Rng::with_seed(seed);
        let (store, live) = (empty_store(seed), empty_store(!seed));
        let saved_at = fill(&store, &mut random, before, 40);
        let bytes = snapshot_of(&store, saved_at);
        let now = saved_at.plus_s(80);
        for _ in 0..after {
            announce(&live, now, any_announce(&mut random, 40, before / 8 + 1));
        }
        let (saved, said) = (exported(&store, now), exported(&live, now));
        restore(&bytes, &live, now);
        let mut expected = BTreeMap::new();
        for info_hash in saved.keys().chain(said.keys()) {
            let (count, mut peers) = saved.get(info_hash).map(ages).unwrap_or_default();
            peers.retain(|_, age_s| *age_s <= 3904);
            let (count_since, peers_since) = said.get(info_hash).map(ages).unwrap_or_default();
            peers.extend(peers_since);
            if count + count_since > 0 || !peers.is_empty() {
                expected.insert(*info_hash, (count + count_since, peers));
            }
        }
        let found: BTreeMap<_, _> =
            exported(&live, now).iter().map(|(hash, it)| (*hash, ages(it))).collect();
        prop_assert_eq!(found, expected);
        // The sums of the store are those of its torrents.
        let totals = live.totals();
        let peers: u64 = totals.seeders.iter().chain(&totals.leechers).sum();
        let counted: usize = shown(&live, now).iter().map(|it| it.2.len()).sum();
        prop_assert_eq!(peers, counted as u64);
        prop_assert_eq!(totals.torrents, shown(&live, now).len() as u64);
    }

    #[test]
    fn no_bytes_at_all_are_more_than_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(Snapshot::open(Cursor::new(bytes)).is_err());
    }
}

/// A torrent's count, and its peers with their ages.
fn ages((completed, _, v4, v6): &snapshot_model::Whole) -> (u32, BTreeMap<Vec<u8>, u16>) {
    let v4 = v4.iter().map(|it| (it.endpoint.to_vec(), it.age_s()));
    let v6 = v6.iter().map(|it| (it.endpoint.to_vec(), it.age_s()));
    (*completed, v4.chain(v6).collect())
}

/// A store in which a torrent needs several slices and many blocks, beside small ones.
fn store_with_a_crowd() -> Store {
    let store = empty_store(1);
    for number in 0..50_000 {
        let role = if number % 3 == 0 { Role::Seeder } else { Role::Leecher };
        join(&store, START.plus_s(u64::from(number % 900)), 0, v4(number), role);
        if number % 4 == 0 {
            join(&store, START.plus_s(900), 0, v6(number), role);
        }
    }
    for torrent in 1..3000 {
        join(&store, START.plus_s(900), torrent, v4(torrent), Role::Leecher);
    }
    store
}

#[test]
fn a_swarm_of_many_slices_and_blocks_comes_back_whole() {
    let (store, now) = (store_with_a_crowd(), START.plus_s(900));
    let bytes = snapshot_of(&store, now);
    let mut snapshot = Snapshot::open(Cursor::new(&bytes)).unwrap();
    assert_eq!((snapshot.header().build.as_str(), snapshot.header().version), ("1.2.3", VERSION));
    let blocks = usize::try_from(snapshot.contents().blocks).unwrap();
    assert!(blocks > bytes.len() / (BLOCK_BYTES_MAX + 64));
    assert_eq!(snapshot.contents().peers, 50_000 + 12_500 + 2999);
    let (mut block, mut parts) = (Block::default(), 0);
    while snapshot.next(&mut block).unwrap() {
        let torrents = block.torrents().map(Result::unwrap);
        parts += torrents.filter(|it| it.info_hash == hash(0)).count();
    }
    assert!(parts > 7, "{parts}");
    let again = empty_store(2);
    restore(&bytes, &again, now);
    assert_eq!(again.totals(), store.totals());
    assert_eq!(exported(&again, now), exported(&store, now));
}

#[test]
fn announces_between_slices_lose_nobody_who_stays_and_count_nothing_twice() {
    // Some of these shards double while they are walked through.
    for count in (14_000..28_000).step_by(2000) {
        let store = empty_store(3);
        for torrent in 0..count {
            let (address, contact) = (v4(torrent), Contact::Port(6881));
            let change = PeerChange::Present { role: Role::Seeder, completed: true };
            join(&store, START, torrent, address, Role::Leecher);
            announce(&store, START, Said { torrent, address, contact, change });
        }
        let (mut export, mut batch) = (StoreExport::new(START), ExportBatch::default());
        let (mut seen, mut next) = (BTreeMap::<_, u32>::new(), count);
        while store.export(&mut export, &mut batch) {
            for torrent in &batch.torrents {
                *seen.entry(torrent.info_hash).or_default() += torrent.completed;
            }
            for torrent in next..next + 75 {
                join(&store, START, torrent, v4(torrent), Role::Leecher);
            }
            next += 75;
            assert!(next < 4 * count, "it comes to an end");
        }
        let wrong = (0..count).filter(|it| seen.get(&hash(*it)) != Some(&1)).count();
        assert_eq!(wrong, 0, "each of those that were there is saved once");
    }
}

/// Exports a store, `change` being made once the first part of torrent 0 is there: its downloads,
/// and who of it is saved.
fn exported_with(store: &Store, change: impl FnOnce()) -> (u32, BTreeSet<IpAddr>) {
    let (mut export, mut batch) = (StoreExport::new(START), ExportBatch::default());
    let (mut completed, mut seen) = (0, BTreeSet::new());
    let mut change = Some(change);
    while store.export(&mut export, &mut batch) {
        assert!(batch.torrents.iter().all(|it| it.info_hash == hash(0)), "there is no other");
        completed += batch.torrents.iter().map(|it| it.completed).sum::<u32>();
        let address = |it: &SavedPeerV4| IpAddr::from(*it.endpoint.first_chunk::<4>().unwrap());
        seen.extend(batch.v4.iter().map(address));
        if let Some(change) = change.take_if(|_| !batch.torrents.is_empty()) {
            change();
        }
    }
    (completed, seen)
}

/// A peer leaves torrent 0.
fn leave(store: &Store, address: IpAddr) {
    let (contact, change) = (Contact::Port(6881), PeerChange::Stopped);
    announce(store, START, Said { torrent: 0, address, contact, change });
}

/// Gives back what memory torrents do not need; nobody is too old.
fn sweep(store: &Store) {
    let limits = ExpiryLimits { peer_age_s_max: AGE_S_MAX, empty_torrent_age_s_max: u32::MAX };
    Sweeper::new(store, 0, 1).pass(store, START, limits);
}

#[test]
fn a_crowd_that_goes_between_slices_hides_no_other() {
    let store = empty_store(1);
    let local = IpAddr::from([10, 0, 0, 1]);
    join(&store, START, 0, local, Role::Leecher);
    (0..40_000).for_each(|it| join(&store, START, 0, v4(it), Role::Leecher));
    let change = || {
        leave(&store, local);
        sweep(&store);
    };
    let (_, seen) = exported_with(&store, change);
    assert_eq!((0..40_000).filter(|it| !seen.contains(&v4(*it))).count(), 0);
}

#[test]
fn a_swarm_that_becomes_small_between_slices_is_saved_to_its_end() {
    let store = empty_store(1);
    (0..20_000).for_each(|it| join(&store, START, 0, v4(it), Role::Leecher));
    let change = PeerChange::Present { role: Role::Seeder, completed: true };
    let (address, contact) = (v4(19_999), Contact::Port(6881));
    announce(&store, START, Said { torrent: 0, address, contact, change });
    let (completed, seen) = exported_with(&store, || {
        (100..20_000).for_each(|it| leave(&store, v4(it)));
        sweep(&store);
    });
    assert_eq!((0..100).filter(|it| !seen.contains(&v4(*it))).count(), 0);
    assert_eq!(completed, 1);
}

#[test]
fn time_that_passes_between_makes_peers_older_and_some_too_old() {
    let store = empty_store(4);
    join(&store, START, 1, v4(1), Role::Seeder);
    join(&store, START.plus_s(2000), 1, v4(2), Role::Leecher);
    join(&store, START, 2, v6(1), Role::Leecher);
    let saved_at = START.plus_s(2000);
    let bytes = snapshot_of(&store, saved_at);
    let later = saved_at.plus_s(2400);
    let again = empty_store(5);
    let restored = restore(&bytes, &again, later);
    let expected = RestoreCounts { torrents: 1, peers: 1, expired: 2, ..RestoreCounts::default() };
    assert_eq!(restored, expected);
    let (listed, peers) = again.torrent(&hash(1), later, 0, 10).unwrap();
    assert_eq!((listed.counts.seeders, listed.counts.leechers), (0, 1));
    assert!(peers[0].age_s > 2400 - 16 && peers[0].age_s <= 2400, "{peers:?}");
    assert_eq!(again.totals().torrents, 1, "nothing is left of the other");
    // A clock that was set back has stood still.
    let (again, before) = (empty_store(6), START.plus_s(10));
    assert_eq!(restore(&bytes, &again, before).peers, 3);
    let (_, peers) = again.torrent(&hash(2), before, 0, 10).unwrap();
    assert!(peers[0].age_s > 2000 - 16 && peers[0].age_s <= 2000, "{peers:?}");
}

#[test]
fn counts_of_torrents_without_peers_come_back_and_are_forgotten_in_time() {
    let store = empty_store(7);
    let limits = ExpiryLimits { peer_age_s_max: AGE_S_MAX, empty_torrent_age_s_max: 5000 };
    let said = |change| {
        let (address, contact) = (v4(1), Contact::Port(6881));
        Said { torrent: 1, address, contact, change }
    };
    // A second network makes the count one that is kept.
    let other = |change| Said { address: v4(300), ..said(change) };
    announce(&store, START, other(PeerChange::Present { role: Role::Seeder, completed: false }));
    announce(&store, START, said(PeerChange::Present { role: Role::Leecher, completed: false }));
    announce(&store, START, said(PeerChange::Present { role: Role::Seeder, completed: true }));
    announce(&store, START, other(PeerChange::Stopped));
    announce(&store, START, said(PeerChange::Stopped));
    let saved_at = START.plus_s(3000);
    let bytes = snapshot_of(&store, saved_at);
    let again = empty_store(8);
    restore(&bytes, &again, saved_at.plus_s(1000));
    assert_eq!((again.scrape(&hash(1)).completed, again.totals().completed), (1, 1));
    Sweeper::new(&again, 0, 1).pass(&again, START.plus_s(4900), limits);
    assert_eq!(again.totals().torrents, 1);
    Sweeper::new(&again, 0, 1).pass(&again, START.plus_s(5100), limits);
    assert_eq!(again.totals().torrents, 0, "as it would have been without a restart");
    assert_eq!(again.totals().completed, 1);
}

#[test]
fn webrtc_peers_end_with_their_sockets_and_their_counts_stay() {
    let store = empty_store(9);
    let web = |torrent, change| {
        let contact = Contact::Web(WebPeer([9; 16]));
        Said { torrent, address: v4(1), contact, change }
    };
    let leecher = PeerChange::Present { role: Role::Leecher, completed: false };
    announce(&store, START, web(1, leecher));
    announce(&store, START, web(2, leecher));
    announce(&store, START, web(2, PeerChange::Present { role: Role::Seeder, completed: true }));
    join(&store, START, 3, v4(3), Role::Leecher);
    announce(&store, START, web(3, leecher));
    let again = empty_store(10);
    let restored = restore(&snapshot_of(&store, START), &again, START);
    assert_eq!((restored.peers, restored.refused), (1, 0));
    let totals = again.totals();
    assert_eq!((totals.torrents, totals.active_torrents), (2, 1));
    assert_eq!(totals.leechers[PeerKind::Web as usize] + totals.seeders[PeerKind::Web as usize], 0);
    assert_eq!(again.scrape(&hash(2)).completed, 1);
}

#[test]
fn restored_peers_keep_to_budget_and_cap_and_make_nobody_go() {
    let (store, now) = (store_with_a_crowd(), START.plus_s(900));
    let bytes = snapshot_of(&store, now);
    let capped = empty_store(11);
    capped.allow(Budget { bytes_max: 0, peers_per_torrent_max: 100 });
    for number in 90_000..90_050 {
        join(&capped, now, 0, v4(number), Role::Seeder);
    }
    let restored = restore(&bytes, &capped, now);
    let counts = capped.scrape(&hash(0));
    assert_eq!(counts.seeders + counts.leechers, 101, "the first of IPv6 costs nobody his place");
    assert_eq!(restored.refused, 62_500 - 51);
    let (_, peers) = capped.torrent(&hash(0), now, 0, 200).unwrap();
    let is_live = |number: u32| peers.iter().any(|it| it.address.unwrap().ip() == v4(number));
    assert!((90_000..90_050).all(is_live), "whoever announced is there still");

    let small = empty_store(12);
    let bytes_max = store.usage().bytes / 3;
    small.allow(Budget { bytes_max, peers_per_torrent_max: 0 });
    let restored = restore(&bytes, &small, now);
    let totals = small.totals();
    let peers: u64 = totals.seeders.iter().chain(&totals.leechers).sum();
    assert!(small.usage().bytes <= bytes_max && peers > 1000, "{:?}", small.usage());
    assert_eq!(peers, restored.peers);
    assert_eq!(restored.peers + restored.refused, 50_000 + 12_500 + 2999);
    assert_eq!(small.usage().evicted, 0);
    // The account is of what is there: when all have gone, what is left are the tables.
    let limits = ExpiryLimits { peer_age_s_max: 60, empty_torrent_age_s_max: 60 };
    Sweeper::new(&small, 0, 1).pass(&small, now.plus_s(10_000), limits);
    let fresh = empty_store(12);
    join(&fresh, now, 1, v4(1), Role::Leecher);
    Sweeper::new(&fresh, 0, 1).pass(&fresh, now.plus_s(10_000), limits);
    assert_eq!(small.totals().torrents, 0);
    assert!(small.usage().bytes <= 4 * fresh.usage().bytes.max(400), "{:?}", small.usage());
}

#[test]
fn whom_the_tracker_would_not_store_is_not_restored() {
    let store = empty_store(13);
    let mut restored = RestoreCounts::default();
    let mapped = *b"\0\0\0\0\0\0\0\0\0\0\xff\xff\x08\x08\x08\x08\x1a\xe1";
    let torrent = TorrentPart {
        info_hash: hash(1),
        completed: 0,
        empty_s: 0,
        v4: &[0, 1, 2].map(|port| SavedPeerV4::new([8, 8, 8, 8, 0, port], 0, 0)),
        v6: &[SavedPeerV6::new(mapped, 0, 0)],
    };
    let terms = RestoreOptions {
        at: START,
        now: START,
        peer_age_s_max: 60,
        completed: CompletedMerge::Add,
    };
    store.restore(terms, &torrent, &mut Rng::with_seed(1), &mut restored);
    assert_eq!((restored.peers, restored.refused), (1, 3));
    let (_, peers) = store.torrent(&hash(1), START, 0, 9).unwrap();
    assert_eq!(peers[0].address, Some((Ipv4Addr::new(8, 8, 8, 8), 2).into()));
}

/// A snapshot of several blocks that is quickly read.
fn some_snapshot() -> Vec<u8> {
    let store = empty_store(14);
    let mut random = Rng::with_seed(14);
    let now = fill(&store, &mut random, 20_000, 900);
    let bytes = snapshot_of(&store, now);
    let snapshot = Snapshot::open(Cursor::new(&bytes)).unwrap();
    assert!(snapshot.contents().blocks > 1, "{:?}", snapshot.contents());
    bytes
}

#[test]
fn ten_thousand_flipped_bits_and_truncations_are_all_noticed() {
    let good = some_snapshot();
    let mut random = Rng::with_seed(15);
    let opens = |bytes: &[u8]| Snapshot::open(Cursor::new(bytes)).is_ok();
    assert!(opens(&good));
    let mut bytes = good.clone();
    // Every bit of header, first head, footer and table's end; then any.
    let edges = (0..800).chain((good.len() - 80) * 8..good.len() * 8);
    let any = (0..8000).map(|_| random.usize(..good.len() * 8));
    for bit in edges.chain(any) {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(!opens(&bytes), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(bytes == good);
    let mut random = Rng::with_seed(16);
    for length in (0..2000).chain((0..8000).map(|_| random.usize(..good.len()))) {
        assert!(!opens(&good[..length]), "{length} bytes");
    }
    bytes.push(0);
    assert!(!opens(&bytes), "a byte too many");
}

#[test]
fn blocks_that_change_places_or_come_twice_are_noticed() {
    let good = some_snapshot();
    let block = |at: usize| {
        let bytes = u32::from_le_bytes(good[at + 4..at + 8].try_into().unwrap());
        at..at + 16 + bytes as usize
    };
    let (first, second) = (block(64), block(block(64).end));
    let behind = second.end;
    let swapped = [&good[..64], &good[second.clone()], &good[first.clone()], &good[behind..]];
    let twice = [&good[..64], &good[first.clone()], &good[first], &good[behind..]];
    for parts in [swapped, twice] {
        assert!(Snapshot::open(Cursor::new(parts.concat())).is_err());
    }
}

#[test]
fn an_unknown_version_is_told_by_number() {
    let store = empty_store(17);
    join(&store, START, 1, v4(1), Role::Leecher);
    for version in [0, VERSION + 1, u32::MAX] {
        let bytes = snapshot_with(&store, START, TRACKER, version);
        let fault = Snapshot::open(Cursor::new(bytes)).unwrap_err();
        assert!(matches!(fault, SnapshotError::Version(value) if value == version), "{fault}");
        assert!(fault.to_string().contains(&format!("version {version}")), "{fault}");
    }
}
