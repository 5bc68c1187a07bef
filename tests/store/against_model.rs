//! The store against a naive model: the same million random operations on both, from one thread
//! and from several. Seeds are printed: `SEED=n cargo test --test store against_model` runs one
//! again.

#[path = "../models/store.rs"]
mod model;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use fastrand::Rng;
use model::{LIMITS, Model, Torrent, Who, announce_both, compare_lists, decode, merge_both};
use skep::store::{
    Budget, DeltaChange, ExpiryLimits, Options, PeerAnnounce, PeerBuffers, PeerChange, PeerDelta,
    PeerState, Role, Store, StoreTotals, Sweeper, TorrentOrder,
};
use skep::time::Now;
use skep::types::{Contact, InfoHash, PeerKind, ScrapeEntry, WebPeer};

fn seeds(default: &[u64]) -> Vec<u64> {
    std::env::var("SEED").map_or_else(|_| default.to_vec(), |seed| vec![seed.parse().unwrap()])
}

/// One of many addresses: both families, all scopes, mostly public.
fn address(random: &mut Rng) -> IpAddr {
    let low = random.u8(..);
    match random.u8(..20) {
        0 => Ipv4Addr::new(127, 0, 0, low).into(),
        1 => Ipv4Addr::new(10, 0, 0, low).into(),
        2 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, low.into()).into(),
        3 => Ipv6Addr::LOCALHOST.into(),
        4..=7 => Ipv6Addr::new(0x2001, 0x4860, 0, 0, 0, 0, 0, low.into()).into(),
        _ => Ipv4Addr::new(8, 8, random.u8(..4), low).into(),
    }
}

/// A port, or one of a few hundred WebRTC peers: one in eight.
fn contact(random: &mut Rng, ports: u16) -> Contact {
    match random.u8(..8) {
        0 => {
            let mut name = [0x77; 16];
            name[random.usize(..16)] = random.u8(..32); // they differ in any one byte
            Contact::Web(WebPeer(name))
        }
        _ => Contact::Port(2 + random.u16(..ports)),
    }
}

fn change(random: &mut Rng) -> PeerChange {
    match random.u8(..10) {
        0 | 1 => PeerChange::Stopped,
        2 => PeerChange::Present { role: Role::Seeder, completed: true },
        3 => PeerChange::Present { role: Role::Paused, completed: false },
        4 | 5 => PeerChange::Present { role: Role::Seeder, completed: false },
        _ => PeerChange::Present { role: Role::Leecher, completed: false },
    }
}

/// A change to the peer of an announce as another node may send it, in any state; `None` for WebRTC
/// peers, which are never sent.
fn delta_of(visit: &PeerAnnounce<'_>, random: &mut Rng) -> Option<PeerDelta> {
    let Contact::Port(port) = visit.contact else { return None };
    let change = match visit.change {
        PeerChange::Stopped => DeltaChange::Left,
        PeerChange::Present { completed, .. } => {
            let state = PeerState::new(random.u8(..PeerState::STATES)).unwrap();
            DeltaChange::Present { state, completed }
        }
    };
    let (info_hash, address, is_exempt) = (*visit.info_hash, visit.address, !visit.capped);
    Some(PeerDelta { info_hash, address, port, change, is_exempt })
}

/// Applies an announce to both, or one in four as a change from another node.
fn announce_or_merge(
    store: &Store,
    model: &mut Model,
    now: Now,
    visit: &PeerAnnounce<'_>,
    random: &mut Rng,
) {
    match delta_of(visit, random).filter(|_| random.u8(..4) == 0) {
        Some(delta) => merge_both(store, model, now, &delta, random),
        None => announce_both(store, model, now, visit, random),
    }
}

#[test]
fn a_million_operations_match_the_model() {
    for seed in seeds(&[1, 2, 3, 4]) {
        println!("SEED={seed}");
        let mut random = Rng::with_seed(seed);
        let store = Store::new(Options { shards: 8, seed: Some(seed) });
        let mut model = Model::default();
        let mut now = Now::from_s(1_800_000_000 + seed * 977);
        for step in 0..260_000u32 {
            // A few popular torrents, so that swarms grow an index and lose it again.
            let torrent = random.u8(..30).min(random.u8(..30)).min(random.u8(..30));
            let info_hash = InfoHash([torrent; 20]);
            // The crowd swells and ebbs: ports from a few to many per address.
            let ports = if step / 20_000 % 2 == 0 { 8 } else { 1 };
            let visit = PeerAnnounce {
                info_hash: &info_hash,
                address: address(&mut random),
                contact: contact(&mut random, ports),
                change: change(&mut random),
                capped: false,
            };
            match random.u16(..1000) {
                0 => now = now.plus_s(random.u64(..600)),
                1 => {
                    Sweeper::new(&store, 0, 1).pass(&store, now, LIMITS);
                    model.expire(&store, now);
                    assert_eq!(store.totals(), model.totals());
                }
                2 => compare_lists(&store, &model, now, &mut random),
                3..=300 => {
                    let counts = model.torrents.get(&info_hash).map(Torrent::counts);
                    assert_eq!(store.scrape(&info_hash), counts.unwrap_or_default());
                }
                _ => announce_or_merge(&store, &mut model, now, &visit, &mut random),
            }
        }
        assert_eq!(store.totals(), model.totals());
        now = now.plus_s(10_000);
        Sweeper::new(&store, 0, 1).pass(&store, now, LIMITS);
        Sweeper::new(&store, 0, 1).pass(&store, now.plus_s(10_000), LIMITS);
        let left = StoreTotals { completed: model.completed, ..StoreTotals::default() };
        assert_eq!(store.totals(), left, "silence empties the store");
    }
}

/// One thread's announces to the store and to a model of its own.
fn announce_alone(seed: u64, thread: u8, now: Now, store: &Store) -> Model {
    let mut random = Rng::with_seed(seed * 100 + u64::from(thread));
    let mut mine = Model::default();
    let (mut v4, mut web) = (vec![0; 1200], vec![0; 480]);
    for step in 0..250_000u32 {
        let info_hash = InfoHash([random.u8(..12); 20]);
        // Every thread has its own peers, so the end state does not depend on the order.
        let address = Ipv4Addr::new(8, thread, 0, random.u8(..)).into();
        let change = change(&mut random);
        let contact = match random.u8(..8) {
            0 => Contact::Web(WebPeer([thread, random.u8(..), 0, 0].repeat(4).try_into().unwrap())),
            _ => Contact::Port(1 + random.u16(..4)),
        };
        let visit = PeerAnnounce { info_hash: &info_hash, address, contact, change, capped: false };
        let mut room = PeerBuffers { v4: &mut v4, v6: &mut [], web: &mut web };
        let result = store.announce(now, &visit, &mut room, &mut random);
        mine.announce(now, &visit);
        let mut handed = decode(&v4[..result.bytes[0]], PeerKind::V4);
        handed.extend(decode(&web[..result.bytes[2]], PeerKind::Web));
        assert!(!handed.contains(&Who::of(&visit)), "never the asker");
        let distinct: BTreeSet<_> = handed.iter().collect();
        assert_eq!(distinct.len(), handed.len());
        if step % 5000 == 0 {
            // Nobody is old: a sweep beside the announces must change nothing.
            Sweeper::new(store, 0, 1).pass(store, now, LIMITS);
        }
        if step % 5000 == 1 {
            look_meanwhile(store, now);
        }
    }
    mine
}

#[test]
fn threads_see_one_store() {
    const THREADS: u8 = 4;
    for seed in seeds(&[5]) {
        println!("SEED={seed}");
        let store = Arc::new(Store::new(Options { shards: 8, seed: Some(seed) }));
        let now = Now::from_s(1_800_000_000);
        let models: Vec<Model> = std::thread::scope(|scope| {
            let start = |thread| {
                let store = Arc::clone(&store);
                scope.spawn(move || announce_alone(seed, thread, now, &store))
            };
            let running: Vec<_> = (0..THREADS).map(start).collect();
            running.into_iter().map(|it| it.join().unwrap()).collect()
        });
        let (mut torrents, mut active) = (BTreeSet::new(), BTreeSet::<InfoHash>::new());
        let mut sum = StoreTotals::default();
        for model in &models {
            let part = model.totals();
            sum.completed += part.completed;
            for kind in 0..PeerKind::ALL.len() {
                sum.seeders[kind] += part.seeders[kind];
                sum.leechers[kind] += part.leechers[kind];
            }
            torrents.extend(model.torrents.keys());
            let with_peers = model.torrents.iter().filter(|it| !it.1.peers.is_empty());
            active.extend(with_peers.map(|it| it.0));
        }
        (sum.torrents, sum.active_torrents) = (torrents.len() as u64, active.len() as u64);
        assert_eq!(store.totals(), sum);
        for hash in torrents {
            let parts = models.iter().filter_map(|model| model.torrents.get(hash));
            let counts =
                parts.map(Torrent::counts).fold(ScrapeEntry::default(), |a, b| ScrapeEntry {
                    seeders: a.seeders + b.seeders,
                    completed: a.completed + b.completed,
                    leechers: a.leechers + b.leechers,
                    downloaders: a.downloaders + b.downloaders,
                });
            assert_eq!(store.scrape(hash), counts);
        }
    }
}

/// Lists hold together while others announce: in order, nothing twice, no more than asked for.
fn look_meanwhile(store: &Store, now: Now) {
    let after = InfoHash([2; 20]);
    let page = store.torrents_after(Some(&after), 7, |_| true);
    assert!(page.len() <= 7 && page.iter().all(|it| it.info_hash > after));
    assert!(page.is_sorted_by(|a, b| a.info_hash < b.info_hash));
    let largest = store.torrents_by(TorrentOrder::Peers, 5);
    assert!(largest.len() <= 5);
    let peers = |it: &skep::store::ListedTorrent| it.counts.seeders + it.counts.leechers;
    assert!(largest.is_sorted_by(|a, b| peers(a) >= peers(b)));
    let distinct: BTreeSet<_> = largest.iter().map(|it| it.info_hash).collect();
    assert_eq!(distinct.len(), largest.len());
    if let Some((listed, some)) = store.torrent(&after, now, 3, 50) {
        assert!(some.len() <= 50 && some.len() + 3 <= peers(&listed).max(3) as usize);
        let places: Vec<_> = some.iter().filter_map(|it| it.address).collect();
        assert_eq!(places.iter().collect::<BTreeSet<_>>().len(), places.len());
    }
}

/// A peer that stays.
fn join(
    store: &Store,
    now: Now,
    info_hash: InfoHash,
    (address, contact): (IpAddr, Contact),
    random: &mut Rng,
) {
    let change = PeerChange::Present { role: Role::Leecher, completed: false };
    let visit = PeerAnnounce { info_hash: &info_hash, address, contact, change, capped: false };
    store.announce(now, &visit, &mut PeerBuffers::default(), random);
}

/// Announces under a budget too small for what comes, which is lifted for a while.
#[test]
fn a_store_with_a_budget_keeps_to_it_and_to_the_model() {
    for seed in seeds(&[11, 12]) {
        println!("SEED={seed}");
        let mut random = Rng::with_seed(seed);
        let store = Store::new(Options { shards: 2, seed: Some(seed) });
        let mut model = Model::default();
        let mut now = Now::from_s(1_800_000_000);
        let [mut full, mut bounded] = [0; 2];
        for step in 0..100_000u32 {
            if step % 20_000 == 0 {
                let bytes_max = if step == 60_000 { 0 } else { 96 << 10 };
                store.allow(Budget { bytes_max, ..Budget::default() });
            }
            let mut info_hash = InfoHash([random.u8(..); 20]);
            info_hash.0[0] = random.u8(..).min(random.u8(..)) / 16;
            let address = match random.u8(..3) {
                0 => address(&mut random),
                _ => Ipv4Addr::new(9, random.u8(..8), random.u8(..4), random.u8(..3)).into(),
            };
            let (contact, change) = (contact(&mut random, 1), change(&mut random));
            let visit = PeerAnnounce {
                info_hash: &info_hash,
                address,
                contact,
                change,
                capped: random.bool(),
            };
            match random.u16(..2000) {
                0 => now = now.plus_s(random.u64(..900)),
                1 => {
                    Sweeper::new(&store, 0, 1).pass(&store, now, LIMITS);
                    model.expire(&store, now);
                    assert_eq!(store.totals(), model.totals());
                }
                2 => compare_lists(&store, &model, now, &mut random),
                _ => announce_or_merge(&store, &mut model, now, &visit, &mut random),
            }
            let usage = store.usage();
            assert!(step >= 60_000 || usage.bytes <= usage.bytes_max, "{usage:?}");
            full += u32::from(usage.bytes + 4096 > usage.bytes_max);
            bounded += u32::from(usage.bytes_max > 0);
        }
        assert_eq!(store.totals(), model.totals());
        let evicted = store.usage().evicted;
        assert!(full > bounded / 2 && evicted > 1000, "{full} {evicted}: it was full");
    }
}

#[test]
fn a_store_with_caps_replaces_whom_the_model_says() {
    for seed in seeds(&[13]) {
        println!("SEED={seed}");
        let mut random = Rng::with_seed(seed);
        let store = Store::new(Options { shards: 2, seed: Some(seed) });
        store.allow(Budget { bytes_max: 0, peers_per_torrent_max: 700 });
        let mut model = Model { peers_max: 700, ..Model::default() };
        let mut now = Now::from_s(1_800_000_000);
        for step in 0..60_000u32 {
            let info_hash = InfoHash([random.u8(..2); 20]);
            let contact = Contact::Port(1 + random.u16(..400).min(random.u16(..400)));
            let address = match random.u8(..4) {
                0 => Ipv6Addr::new(0x2600, 0, 0, random.u16(..200), 0, 0, 0, 1).into(),
                1 => Ipv4Addr::new(9, 9, 9, random.u8(..3)).into(),
                _ => Ipv4Addr::from(0x0800_0000 + random.u32(..2000)).into(),
            };
            let change = match random.u8(..40) {
                0 => PeerChange::Stopped,
                1 => PeerChange::Present { role: Role::Seeder, completed: true },
                _ => PeerChange::Present { role: Role::Leecher, completed: false },
            };
            let visit =
                PeerAnnounce { info_hash: &info_hash, address, contact, change, capped: true };
            announce_or_merge(&store, &mut model, now, &visit, &mut random);
            now = Now::from_ns(now.ns() + 20_000_000 * random.u64(..10));
            if step % 20_000 == 0 {
                Sweeper::new(&store, 0, 1).pass(&store, now, LIMITS);
                model.expire(&store, now);
            }
        }
        assert_eq!(store.totals(), model.totals());
        let counts = model.torrents.values().map(Torrent::counts);
        assert!(counts.into_iter().all(|it| it.seeders + it.leechers >= 700), "they were full");
    }
}

#[test]
fn slices_paced_by_the_clock_forget_everyone_in_time() {
    // An idle worker turns every 50 ms, a busy one all the time; a life may be short or long.
    for (turn_ms, peer_age_s_max) in [(50, 3900), (1, 300), (50, 64)] {
        let store = Store::new(Options { shards: 1024, seed: Some(1) });
        let limits = ExpiryLimits { peer_age_s_max, empty_torrent_age_s_max: 7200 };
        let mut random = Rng::with_seed(1);
        let start = Now::from_s(1_800_000_000);
        for peer in 0..20_000u32 {
            // A crowd of 10 000 in one torrent, half of them browsers; 5000 torrents with a peer of
            // each family.
            let torrent = if peer % 2 == 0 { 0 } else { peer / 4 };
            let mut hash = [0; 20];
            hash[..4].copy_from_slice(&torrent.to_be_bytes());
            let address = match peer % 4 {
                1 => Ipv6Addr::from(0x2001_4860_u128 << 96 | u128::from(peer)).into(),
                _ => Ipv4Addr::from(0x0800_0000 + peer).into(),
            };
            let contact = match peer % 4 {
                0 => Contact::Web(WebPeer(u128::from(peer).to_ne_bytes())),
                _ => Contact::Port(1),
            };
            join(&store, start, InfoHash(hash), (address, contact), &mut random);
        }
        let mut sweeper = Sweeper::new(&store, 0, 1);
        let mut now = start;
        let mut whole = true;
        while store.totals() != StoreTotals::default() {
            now = Now::from_ns(now.ns() + turn_ms * 1_000_000);
            sweeper.slice(&store, now, limits);
            let age_s = now.seconds() - start.seconds();
            whole &= store.totals().leechers.iter().sum::<u64>() == 20_000;
            assert!(whole || age_s >= u64::from(peer_age_s_max), "nobody goes early: {age_s} s");
            let late_s = age_s.saturating_sub(u64::from(peer_age_s_max));
            assert!(late_s <= 16 + 2 * 60, "two passes are enough: {late_s} s");
        }
    }
}

#[test]
fn a_worker_whose_clock_is_behind_forgets_nobody() {
    let store = Store::new(Options { shards: 2, seed: Some(1) });
    let mut random = Rng::with_seed(1);
    let now = Now::from_s(1_800_000_000); // the first second of a tick
    let peer = (Ipv4Addr::new(8, 8, 8, 8).into(), Contact::Port(1));
    join(&store, now, InfoHash([1; 20]), peer, &mut random);
    Sweeper::new(&store, 0, 1).pass(&store, Now::from_ns(now.ns() - 1), LIMITS);
    assert_eq!(store.totals().leechers, [1, 0, 0]);
}

#[test]
fn a_swarm_with_an_index_matches_the_model() {
    for (seed, web) in seeds(&[6]).into_iter().flat_map(|seed| [(seed, false), (seed, true)]) {
        println!("SEED={seed} web={web}");
        let mut random = Rng::with_seed(seed);
        let store = Store::new(Options { shards: 2, seed: Some(seed) });
        let mut model = Model::default();
        let now = Now::from_s(1_800_000_000);
        let info_hash = InfoHash([3; 20]);
        let (mut most, mut least) = (0, u32::MAX);
        for step in 0..24_000u32 {
            // It swells far beyond a block, ebbs to less than half of one, and swells again.
            let ebbs = (8_000..16_000).contains(&step);
            let change = match random.u8(..10) {
                0..=8 if ebbs => PeerChange::Stopped,
                _ => change(&mut random),
            };
            let peer = random.u32(..3000);
            let address = Ipv4Addr::from(0x0808_0000 + peer).into();
            let contact = match web {
                true => Contact::Web(WebPeer(u128::from(peer).to_be_bytes())),
                false => Contact::Port(1),
            };
            let visit =
                PeerAnnounce { info_hash: &info_hash, address, contact, change, capped: false };
            announce_or_merge(&store, &mut model, now, &visit, &mut random);
            let counts = store.scrape(&info_hash);
            most = most.max(counts.seeders + counts.leechers);
            if step == 15_999 {
                least = counts.seeders + counts.leechers;
            }
            if step % 2000 == 0 {
                Sweeper::new(&store, 0, 1).pass(&store, now, LIMITS);
            }
        }
        assert!(most > 1500 && least < 500, "{most} {least}: the index came and went");
        assert_eq!(store.totals(), model.totals());
    }
}

#[test]
fn a_full_store_gives_its_memory_back_to_use() {
    // Swarms grow past the index and shrink back, twice, and stay right all along.
    let store = Store::new(Options { shards: 2, seed: Some(9) });
    let mut random = Rng::with_seed(9);
    let info_hash = InfoHash([7; 20]);
    for round in 0..2u64 {
        let now = Now::from_s(1_800_000_000 + round * 20_000);
        for peer in 0..100_000u32 {
            let visit = PeerAnnounce {
                info_hash: &info_hash,
                address: Ipv4Addr::from(0x0800_0000 + peer).into(),
                contact: Contact::Port(6881),
                change: PeerChange::Present { role: Role::Leecher, completed: false },
                capped: false,
            };
            store.announce(now, &visit, &mut PeerBuffers::default(), &mut random);
        }
        assert_eq!(store.scrape(&info_hash).leechers, 100_000);
        for peer in 10..100_000u32 {
            let visit = PeerAnnounce {
                info_hash: &info_hash,
                address: Ipv4Addr::from(0x0800_0000 + peer).into(),
                contact: Contact::Port(6881),
                change: PeerChange::Stopped,
                capped: false,
            };
            store.announce(now, &visit, &mut PeerBuffers::default(), &mut random);
        }
        Sweeper::new(&store, 0, 1).pass(&store, now, LIMITS);
        assert_eq!(store.scrape(&info_hash).leechers, 10);
        Sweeper::new(&store, 0, 1).pass(&store, now.plus_s(4000), LIMITS);
        assert_eq!(store.totals(), StoreTotals::default());
    }
}
