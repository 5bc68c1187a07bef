//! What the store takes and may take: its account against the allocator's, the budget under a flood
//! of torrents, and what no single network can do to a swarm.
//!
//! The allocator of this program counts what each thread takes: it knows nothing of the store's own
//! account. Seeds are printed; `SEED=n cargo test --test store memory` runs one again.

mod peerless;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use skep::store::{
    AnnounceResult, Budget, DeltaChange, ExpiryLimits, MergeResult, Options, PeerAnnounce,
    PeerBuffers, PeerChange, PeerDelta, PeerState, Role, Store, Stored, Sweeper,
};
use skep::time::Now;
use skep::types::{Contact, InfoHash, WebPeer};

const LIMITS: ExpiryLimits = ExpiryLimits { peer_age_s_max: 3900, empty_torrent_age_s_max: 7200 };

fn seeds(default: &[u64]) -> Vec<u64> {
    std::env::var("SEED").map_or_else(|_| default.to_vec(), |seed| vec![seed.parse().unwrap()])
}

/// Bytes this thread has taken and not given back while `work` ran.
fn bytes_taken(work: impl FnOnce()) -> u64 {
    u64::try_from(allocation_counter::measure(work).bytes_current).unwrap()
}

/// Any of some thousand torrents, a few of them popular.
fn info_hash(random: &mut Rng) -> InfoHash {
    let number = if random.u8(..4) == 0 { random.u16(..4000) } else { random.u16(..4) };
    let mut hash = [9; 20];
    hash[..2].copy_from_slice(&number.to_be_bytes());
    InfoHash(hash)
}

/// A peer of any kind and scope, mostly public IPv4.
fn peer(random: &mut Rng) -> (IpAddr, Contact) {
    let low = random.u16(..);
    let address = match random.u8(..20) {
        0 => Ipv4Addr::LOCALHOST.into(),
        1 => Ipv4Addr::from(0x0a00_0000 + u32::from(low)).into(),
        2..=4 => Ipv6Addr::new(0x2001, 0x4860, low, 0, 0, 0, 0, 1).into(),
        _ => Ipv4Addr::from(0x0808_0000 + u32::from(low)).into(),
    };
    let contact = match random.u8(..12) {
        0 => Contact::Web(WebPeer(u128::from(low).to_ne_bytes())),
        _ => Contact::Port(2 + random.u16(..2)),
    };
    (address, contact)
}

fn change(random: &mut Rng) -> PeerChange {
    match random.u8(..10) {
        0..=2 => PeerChange::Stopped,
        3 => PeerChange::Present { role: Role::Seeder, completed: true },
        4 => PeerChange::Present { role: Role::Seeder, completed: false },
        _ => PeerChange::Present { role: Role::Leecher, completed: false },
    }
}

/// The announce as a change from another node; `None` for WebRTC peers.
fn delta_of(visit: &PeerAnnounce<'_>) -> Option<PeerDelta> {
    let Contact::Port(port) = visit.contact else { return None };
    let change = match visit.change {
        PeerChange::Stopped => DeltaChange::Left,
        PeerChange::Present { completed, .. } => {
            DeltaChange::Present { state: PeerState::default(), completed }
        }
    };
    let (info_hash, address) = (*visit.info_hash, visit.address);
    Some(PeerDelta { info_hash, address, port, change, is_exempt: true })
}

#[test]
fn the_account_is_exact_after_a_million_operations() {
    for seed in seeds(&[1]) {
        println!("SEED={seed}");
        let mut random = Rng::with_seed(seed);
        let store = Store::new(Options { shards: 16, seed: Some(seed) });
        let mut now = Now::from_s(1_800_000_000);
        let (mut taken, mut most) = (0, 0);
        for _ in 0..200 {
            // Bytes may be given back that an earlier round took: so the sums are compared.
            let before = store.usage().bytes;
            let counted = allocation_counter::measure(|| {
                for _ in 0..5000 {
                    let info_hash = info_hash(&mut random);
                    let (address, contact) = peer(&mut random);
                    let change = change(&mut random);
                    let visit = PeerAnnounce {
                        info_hash: &info_hash,
                        address,
                        contact,
                        change,
                        capped: false,
                    };
                    match delta_of(&visit).filter(|_| random.u8(..4) == 0) {
                        Some(delta) => _ = store.merge(now, &delta, &mut random),
                        None => {
                            let room = &mut PeerBuffers::default();
                            store.announce(now, &visit, room, &mut random);
                        }
                    }
                }
                now = now.plus_s(random.u64(..300));
                Sweeper::new(&store, 0, 1).pass(&store, now, LIMITS);
            });
            taken += counted.bytes_current;
            let said = i64::try_from(store.usage().bytes).unwrap();
            assert_eq!(said, taken, "{before} before");
            most = most.max(said);
        }
        assert!(most > 1 << 20, "{most}: there was something to count");
        Sweeper::new(&store, 0, 1).pass(&store, now.plus_s(10_000), LIMITS);
        Sweeper::new(&store, 0, 1).pass(&store, now.plus_s(20_000), LIMITS);
        assert_eq!(store.totals().torrents, 0);
        let left = store.usage().bytes;
        assert!(left < 64 << 10, "{left}: an empty store takes next to nothing");
    }
}

#[test]
fn the_account_of_one_swarm_is_exact_at_every_size() {
    let store = Store::new(Options { shards: 2, seed: Some(1) });
    let mut random = Rng::with_seed(1);
    let info_hash = InfoHash([3; 20]);
    let mut taken = 0;
    for number in 0..6000_u32 {
        let web = WebPeer(u128::from(number).to_ne_bytes());
        for contact in [Contact::Port(1), Contact::Web(web)] {
            let visit = PeerAnnounce {
                info_hash: &info_hash,
                address: Ipv4Addr::from(0x0800_0000 + number).into(),
                contact,
                change: PeerChange::Present { role: Role::Leecher, completed: false },
                capped: false,
            };
            taken += bytes_taken(|| {
                store.announce(Now::from_s(1), &visit, &mut PeerBuffers::default(), &mut random);
            });
            assert_eq!(store.usage().bytes, taken, "{number}");
        }
    }
}

const NOW: Now = Now::from_s(1_800_000_000);
const JOIN: PeerChange = PeerChange::Present { role: Role::Leecher, completed: false };

/// A store of few shards with a budget.
fn store(bytes_max: u64, peers_per_torrent_max: u32) -> Store {
    let store = Store::new(Options { shards: 16, seed: Some(1) });
    store.allow(Budget { bytes_max, peers_per_torrent_max });
    store
}

fn numbered(number: u32) -> InfoHash {
    let mut hash = [0x5a; 20];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    InfoHash(hash)
}

fn v4(number: u32) -> IpAddr {
    Ipv4Addr::from(number).into()
}

/// An announce by a source under limits: what it is told, and the IPv4 peers it is handed.
fn announce(
    store: &Store,
    now: Now,
    info_hash: &InfoHash,
    (address, port): (IpAddr, u16),
    change: PeerChange,
) -> (AnnounceResult, Vec<[u8; 6]>) {
    let mut out = [0; 50 * 6];
    let visit =
        PeerAnnounce { info_hash, address, contact: Contact::Port(port), change, capped: true };
    let mut room = PeerBuffers { v4: &mut out, v6: &mut [], web: &mut [] };
    let mut random = Rng::with_seed(now.ns() ^ u64::from(port) << 32 ^ seed_of(address));
    let result = store.announce(now, &visit, &mut room, &mut random);
    let peers = out[..result.bytes[0]].as_chunks::<6>().0.to_vec();
    (result, peers)
}

fn seed_of(address: IpAddr) -> u64 {
    match address {
        IpAddr::V4(ipv4) => u32::from(ipv4).into(),
        IpAddr::V6(ipv6) => u64::from(ipv6.segments()[1]),
    }
}

fn join(store: &Store, number: u32, address: u32) -> AnnounceResult {
    announce(store, NOW, &numbered(number), (v4(address), 1), JOIN).0
}

/// Announces of random torrents until the store lets no more in, or `count` of them.
fn flood(store: &Store, count: u32, seed: u64) -> [u32; 2] {
    let mut random = Rng::with_seed(seed);
    let bytes_max = store.usage().bytes_max;
    let mut stored = [0; 2];
    for _ in 0..count {
        // From a thousand networks, a few hosts each.
        let address = 0x3000_0000 + (random.u32(..1000) << 8) + random.u32(..4);
        let result = join(store, random.u32(1 << 20..), address);
        stored[usize::from(result.stored == Stored::Yes)] += 1;
    }
    assert!(store.usage().bytes <= bytes_max);
    stored
}

/// Takes all that is left with torrents of two networks, which nobody can displace. Those of one
/// give way to one another meanwhile.
fn fill(store: &Store) {
    let mut refused = 0;
    for number in 1 << 29.. {
        join(store, number, 0x4000_0000 + (number << 8));
        join(store, number, 0x5000_0000 + (number << 8));
        let are_both_there = store.scrape(&numbered(number)).leechers == 2;
        refused = if are_both_there { 0 } else { refused + 1 };
        if refused == 2000 {
            return;
        }
    }
}

#[test]
fn a_million_random_torrents_take_no_more_than_the_budget_and_displace_nobody() {
    const RESIDENTS: u32 = 20_000;
    const BUDGET: u64 = 8 << 20;
    let store = store(BUDGET, 0);
    let resident = |peer: u32| 0x0800_0000 + peer;
    let taken = bytes_taken(|| {
        for torrent in 0..RESIDENTS {
            // A third have a second peer.
            join(&store, torrent, resident(torrent));
            if torrent % 3 == 0 {
                join(&store, torrent, resident(torrent + RESIDENTS));
            }
        }
        assert!(!store.is_short_of_memory());
        for round in 0..100 {
            flood(&store, 10_000, round);
        }
    });
    assert_eq!(taken, store.usage().bytes);
    assert!(taken <= BUDGET && taken > BUDGET * 9 / 10, "{taken}");
    assert!(store.usage().evicted > 100_000, "the flood goes round among its own");
    for torrent in 0..RESIDENTS {
        let counts = store.scrape(&numbered(torrent));
        assert_eq!(counts.leechers, 1 + u32::from(torrent % 3 == 0), "{torrent}");
    }
    let totals = store.totals();
    let listed = store.torrents_after(None, usize::MAX >> 1, |_| true);
    assert_eq!(totals.torrents, listed.len() as u64);
    let peers: u64 = listed.iter().map(|it| u64::from(it.counts.leechers)).sum();
    assert_eq!(totals.leechers[0], peers);
}

#[test]
fn who_is_not_stored_is_answered_all_the_same() {
    let store = store(1 << 20, 0);
    join(&store, 1, 0x0801_0101);
    (0..4).for_each(|peer| _ = join(&store, 2, 0x0801_0101 + (peer << 8)));
    assert!(join(&store, 3, 0x0801_0101).created, "a torrent is told from those that are known");
    assert!(!join(&store, 3, 0x0801_0101).created);
    fill(&store);
    let (result, peers) = announce(&store, NOW, &numbered(1), (v4(0x0901_0101), 9), JOIN);
    assert_eq!((result.stored, result.leechers), (Stored::NoMemory, 1));
    assert_eq!(peers, [[8, 1, 1, 1, 0, 1]], "it is told of those who are there");
    let local = announce(&store, NOW, &numbered(1), (v4(0x0a01_0101), 9), JOIN);
    assert_eq!((local.0.stored, local.1.len()), (Stored::NoMemory, 1));
    let mut refused = AnnounceResult::default();
    for peer in 0..40 {
        refused = join(&store, 2, 0x0902_0101 + (peer << 8));
    }
    assert_eq!(refused.stored, Stored::NoMemory);
    assert_eq!(store.scrape(&numbered(2)).leechers, refused.leechers);
    // Those who are there come and go as ever.
    assert_eq!(join(&store, 1, 0x0801_0101).stored, Stored::Yes);
    let stopped = announce(&store, NOW, &numbered(1), (v4(0x0801_0101), 1), PeerChange::Stopped).0;
    assert_eq!((stopped.stored, stopped.leechers), (Stored::Yes, 0));
    assert_eq!(store.scrape(&numbered(1)).leechers, 0);
}

#[test]
fn a_local_peer_is_told_to_nobody_outside_even_by_a_full_store() {
    for local in [1, 4] {
        let store = store(1 << 20, 0);
        (0..local).for_each(|peer| _ = join(&store, 1, 0x0a01_0101 + peer));
        fill(&store);
        let (result, peers) = announce(&store, NOW, &numbered(1), (v4(0x0901_0101), 9), JOIN);
        assert_eq!((result.stored, result.leechers), (Stored::NoMemory, local));
        assert!(peers.is_empty());
    }
}

/// A store above four fifths of its budget, but not full.
fn pressed() -> Store {
    let store = store(1 << 20, 0);
    let mut number = 1 << 30;
    while !store.is_short_of_memory() {
        join(&store, number, 0x0800_0000 + number % 4096);
        number += 1;
    }
    store
}

#[test]
fn a_torrent_on_probation_goes_first_and_two_networks_or_better_times_end_it() {
    let store = pressed();
    join(&store, 1, 0x0901_0101); // alone
    (0..3).for_each(|host| _ = join(&store, 2, 0x0902_0101 + host)); // one network
    join(&store, 3, 0x0903_0101);
    join(&store, 3, 0x0904_0101); // two networks
    join(&store, 4, 0x0905_0101);
    let bytes_max = store.usage().bytes_max;
    store.allow(Budget { bytes_max: bytes_max * 4, ..Budget::default() });
    join(&store, 4, 0x0905_0101); // comes back in better times
    store.allow(Budget { bytes_max, ..Budget::default() });
    join(&store, 5, 0x0906_0101);
    join(&store, 5, 0x0906_0101); // comes back in bad ones
    flood(&store, 200_000, 1);
    let left = [1, 2, 3, 4, 5].map(|it| store.scrape(&numbered(it)).leechers);
    assert_eq!(left, [0, 0, 2, 1, 0]);
}

/// Merges a leecher from another node.
fn merge(store: &Store, number: u32, address: u32) {
    let change = DeltaChange::Present { state: PeerState::default(), completed: false };
    let (info_hash, address) = (numbered(number), v4(address));
    let delta = PeerDelta { info_hash, address, port: 6881, change, is_exempt: false };
    assert_eq!(store.merge(NOW, &delta, &mut Rng::with_seed(1)), MergeResult::Applied);
}

#[test]
fn a_torrent_from_another_node_is_on_probation_while_memory_is_short() {
    let calm = store(0, 0);
    merge(&calm, 1, 0x0901_0101);
    calm.allow(Budget { bytes_max: 1 << 20, ..Budget::default() });
    flood(&calm, 200_000, 1);
    assert_eq!(calm.scrape(&numbered(1)).leechers, 1, "memory was not short");

    let store = pressed();
    merge(&store, 1, 0x0901_0101); // alone
    (0..3).for_each(|host| merge(&store, 2, 0x0902_0101 + host)); // one network
    merge(&store, 3, 0x0903_0101);
    merge(&store, 3, 0x0904_0101); // two networks
    merge(&store, 4, 0x0905_0101);
    let bytes_max = store.usage().bytes_max;
    store.allow(Budget { bytes_max: bytes_max * 4, ..Budget::default() });
    merge(&store, 4, 0x0905_0101); // again in better times
    store.allow(Budget { bytes_max, ..Budget::default() });
    merge(&store, 5, 0x0906_0101);
    merge(&store, 5, 0x0906_0101); // again in bad ones
    flood(&store, 200_000, 1);
    let left = [1, 2, 3, 4, 5].map(|it| store.scrape(&numbered(it)).leechers);
    assert_eq!(left, [0, 0, 2, 1, 0]);
}

#[test]
fn a_large_crowd_of_one_network_is_not_on_probation() {
    let store = pressed();
    (0..17).for_each(|host| _ = join(&store, 1, 0x0901_0101 + host));
    let stored = store.scrape(&numbered(1)).leechers;
    flood(&store, 200_000, 1);
    assert_eq!([stored, store.scrape(&numbered(1)).leechers], [17, 17]);
}

const LEAVE: PeerChange = PeerChange::Stopped;
const COMPLETE: PeerChange = PeerChange::Present { role: Role::Seeder, completed: true };

/// A download that ends, while the others are there; they leave first.
fn complete(store: &Store, number: u32, peer: (IpAddr, u16), others: &[(IpAddr, u16)]) {
    let info_hash = numbered(number);
    others.iter().for_each(|it| _ = announce(store, NOW, &info_hash, *it, JOIN));
    announce(store, NOW, &info_hash, peer, JOIN);
    announce(store, NOW, &info_hash, peer, COMPLETE);
    others.iter().for_each(|it| _ = announce(store, NOW, &info_hash, *it, LEAVE));
    assert_eq!(store.scrape(&info_hash).completed, 1, "it is shown as long as somebody is there");
    announce(store, NOW, &info_hash, peer, LEAVE);
}

/// A download that ends while a peer of another network is there; nobody stays.
fn complete_by_two_networks(store: &Store, number: u32) {
    let address = v4(0x1000_0000 + (number << 9));
    complete(store, number, (address, 1), &[(v4(0x1000_0100 + (number << 9)), 1)]);
}

#[test]
fn a_count_outlives_its_peers_only_if_two_networks_made_it() {
    let store = store(0, 0);
    let v6 = |network: u16, host: u16| -> IpAddr {
        Ipv6Addr::new(0x2600, network, 0, host, 0, 0, 0, 1).into()
    };
    let [one, two] = [v4(0x0801_0101), v4(0x0801_0201)];
    let lan = |host: u8| -> IpAddr { Ipv4Addr::new(192, 168, 1, host).into() };
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let web = |network: u8, peer: u8| -> [u8; 16] {
        [network, 1, peer, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    };
    let cases: [(&[(IpAddr, u16)], bool); 9] = [
        (&[(one, 1)], false),
        (&[(one, 1), (one, 2), (v4(0x0801_01ff), 1)], false), // one network
        (&[(one, 1), (v6(1, 1), 1)], false),                  // one host, maybe
        (&[(v6(1, 1), 1), (v6(1, 2), 1)], false),             // one /48
        (&[(one, 1), (two, 1)], true),
        (&[(v6(1, 1), 1), (v6(2, 1), 1)], true),
        (&[(one, 1), (v6(1, 1), 1), (two, 1)], true),
        (&[(lan(1), 1), (lan(2), 1)], true), // in a local network, each host
        (&[(here, 1), (here, 2)], true),     // on this host, each port
    ];
    for (number, (peers, stays)) in (0..).zip(cases) {
        complete(&store, number, peers[0], &peers[1..]);
        let left = store.scrape(&numbered(number)).completed;
        assert_eq!(left, u32::from(stays), "{peers:?}");
    }
    for (number, network, stays) in [(20, 1, false), (21, 2, true)] {
        let mut random = Rng::with_seed(1);
        let mut say = |peer, change| {
            let contact = Contact::Web(WebPeer(peer));
            let info_hash = &numbered(number);
            let visit = PeerAnnounce { info_hash, address: one, contact, change, capped: true };
            store.announce(NOW, &visit, &mut PeerBuffers::default(), &mut random);
        };
        say(web(network, 1), JOIN);
        [JOIN, COMPLETE, LEAVE].into_iter().for_each(|change| say(web(1, 2), change));
        say(web(network, 1), LEAVE);
        assert_eq!(store.scrape(&numbered(number)).completed, u32::from(stays));
    }
    // Who falls silent leaves no more than who stops.
    for (number, second) in [(30, one), (31, two)] {
        announce(&store, NOW, &numbered(number), (second, 9), JOIN);
        for change in [JOIN, COMPLETE] {
            announce(&store, NOW, &numbered(number), (one, 1), change);
        }
    }
    let kept = store.totals().torrents;
    Sweeper::new(&store, 0, 1).pass(&store, NOW.plus_s(5000), LIMITS);
    assert_eq!(store.totals().torrents, kept - 1);
    assert_eq!([30, 31].map(|it| store.scrape(&numbered(it)).completed), [0, 1]);
}

#[test]
fn an_older_count_stays_when_a_newcomer_on_probation_goes() {
    let store = store(1 << 20, 0);
    complete_by_two_networks(&store, 1);
    let mut number = 1 << 30;
    while !store.is_short_of_memory() {
        join(&store, number, 0x0800_0000);
        number += 1;
    }
    let torrents = store.totals().torrents;
    complete(&store, 2, (v4(0x0902_0101), 1), &[]);
    assert_eq!(store.totals().torrents, torrents, "nothing is left of it");
    join(&store, 1, 0x0903_0101); // must not become the older count's ruin
    flood(&store, 200_000, 1);
    assert_eq!(store.scrape(&numbered(1)).completed, 1);
}

#[test]
fn one_address_leaves_nothing_without_peers() {
    let store = store(0, 0);
    for number in 0..20_000 {
        let address = v4(0x0801_0101);
        for change in [JOIN, COMPLETE, LEAVE] {
            announce(&store, NOW, &numbered(number), (address, 1), change);
        }
    }
    assert_eq!((store.totals().torrents, store.totals().completed), (0, 20_000));
}

#[test]
fn where_memory_is_short_what_has_long_had_no_peers_goes_first() {
    let store = store(2 << 20, 0);
    (0..1000).for_each(|number| complete_by_two_networks(&store, number));
    let later = NOW.plus_s(3600);
    let mut sweeper = Sweeper::new(&store, 0, 1);
    sweeper.pass(&store, later, LIMITS);
    assert_eq!(store.totals().torrents, 1000, "there is memory for them");
    let peers = [(v4(0x0701_0101), 1), (v4(0x0702_0101), 1)];
    for change in [JOIN, COMPLETE, LEAVE] {
        peers.iter().for_each(|it| _ = announce(&store, later, &numbered(5000), *it, change));
    }
    let mut number = 1 << 30;
    while !store.is_short_of_memory() {
        announce(&store, later, &numbered(number), (v4(0x0800_0000 + (number << 8)), 1), JOIN);
        number += 1;
    }
    let with_peers = store.totals().active_torrents;
    (0..2).for_each(|_| sweeper.pass(&store, later, LIMITS));
    assert_eq!(store.totals().torrents, with_peers + 1, "the newest is left");
    assert_eq!(store.scrape(&numbered(5000)).completed, 2);
    (0..8).for_each(|_| sweeper.pass(&store, later.plus_s(60), LIMITS));
    assert_eq!(store.totals().torrents, with_peers);
    assert_eq!(store.totals().active_torrents, with_peers);
}

#[test]
fn a_budget_below_what_is_there_ends_growth_and_nothing_else() {
    let store = store(0, 0);
    (0..10_000).for_each(|torrent| _ = join(&store, torrent, 0x0800_0000 + torrent));
    let bytes = store.usage().bytes;
    store.allow(Budget { bytes_max: bytes / 2, ..Budget::default() });
    let mut full = 0;
    for torrent in 10_000..30_000 {
        full += u32::from(join(&store, torrent, 0x0800_0000 + torrent).stored != Stored::Yes);
    }
    assert!(full > 0 && store.usage().bytes <= bytes);
    for torrent in 0..10_000 {
        assert_eq!(join(&store, torrent, 0x0800_0000 + torrent).stored, Stored::Yes);
    }
    Sweeper::new(&store, 0, 1).pass(&store, NOW.plus_s(10_000), LIMITS);
    assert_eq!(store.totals().torrents, 0);
    assert_eq!(join(&store, 1, 0x0801_0101).stored, Stored::Yes, "what was given back is usable");
}

/// How many peers of a swarm have such an address.
fn ports_of(store: &Store, info_hash: &InfoHash, host: impl Fn(IpAddr) -> bool) -> usize {
    let (_, peers) = store.torrent(info_hash, NOW, 0, 1_000_000).unwrap();
    peers.iter().filter(|it| it.address.is_some_and(|it| host(it.ip()))).count()
}

#[test]
fn one_address_with_sixty_thousand_ports_gets_sixteen_places_and_two_of_a_response() {
    // In a block, and in a crowd with an index.
    for honest in [1000, 5000] {
        let store = store(0, 0);
        let torrent = numbered(1);
        (0..honest).for_each(|peer| _ = join(&store, 1, 0x0800_0000 + (peer << 8)));
        let sybil = v4(0x0909_0909);
        let mut full = 0;
        for port in 1..=60_000 {
            let now = NOW.plus_s(u64::from(port) / 60);
            let (result, _) = announce(&store, now, &torrent, (sybil, port), JOIN);
            full += u32::from(result.stored == Stored::HostFull);
        }
        assert_eq!(ports_of(&store, &torrent, |it| it == sybil), 16, "{honest}");
        assert_eq!(full > 0, honest > 1023, "in a block the oldest makes room");
        let counts = store.scrape(&torrent);
        assert_eq!(counts.leechers, honest + 16);
        assert_eq!(store.totals().leechers[0], u64::from(honest) + 16);
        for port in 1..300 {
            let (_, peers) = announce(&store, NOW, &torrent, (v4(0x0708_0908), port), JOIN);
            let of_sybil = peers.iter().filter(|it| it[..4] == [9, 9, 9, 9]).count();
            assert!(peers.len() == 50 && of_sybil <= 2, "{of_sybil}");
        }
        // Where some stop, others of it may come.
        let stays = store.torrent(&torrent, NOW, 0, 1_000_000).unwrap().1;
        let addresses = stays.iter().filter_map(|it| it.address);
        for its in addresses.filter(|it| it.ip() == sybil).take(8) {
            announce(&store, NOW, &torrent, (sybil, its.port()), PeerChange::Stopped);
        }
        assert_eq!(announce(&store, NOW, &torrent, (sybil, 61_000), JOIN).0.stored, Stored::Yes);
    }
}

#[test]
fn one_ipv6_network_gets_four_places_and_one_of_a_response() {
    for honest in [1000_u16, 5000] {
        let store = store(0, 0);
        let torrent = numbered(1);
        let at = |network: u16, host: u16| -> IpAddr {
            Ipv6Addr::new(0x2600, network, 0, 0, 0, 0, 0, host).into()
        };
        for peer in 0..honest {
            announce(&store, NOW, &torrent, (at(peer + 1, 1), 1), JOIN);
        }
        (1..2000).for_each(|it| _ = announce(&store, NOW, &torrent, (at(0, it), it), JOIN));
        let of_sybil = |it| matches!(it, IpAddr::V6(it) if it.segments()[1] == 0);
        assert_eq!(ports_of(&store, &torrent, of_sybil), 4);
        for seed in 0..200 {
            let mut out = [0; 30 * 18];
            let visit = PeerAnnounce {
                info_hash: &torrent,
                address: at(1, 1),
                contact: Contact::Port(1),
                change: JOIN,
                capped: true,
            };
            let mut room = PeerBuffers { v4: &mut [], v6: &mut out, web: &mut [] };
            let result = store.announce(NOW, &visit, &mut room, &mut Rng::with_seed(seed));
            let peers = out[..result.bytes[1]].as_chunks::<18>().0;
            assert_eq!(peers.len(), 30);
            assert!(peers.iter().filter(|it| it[2..4] == [0, 0]).count() <= 1);
        }
    }
}

#[test]
fn exempt_sources_and_local_addresses_are_under_no_cap() {
    let store = store(0, 0);
    for (torrent, address, capped) in [(1, v4(0x0909_0909), false), (2, v4(0x0a01_0101), true)] {
        let mut random = Rng::with_seed(1);
        for port in 1..=3000 {
            let info_hash = &numbered(torrent);
            let contact = Contact::Port(port);
            let visit = PeerAnnounce { info_hash, address, contact, change: JOIN, capped };
            let result = store.announce(NOW, &visit, &mut PeerBuffers::default(), &mut random);
            assert_eq!(result.stored, Stored::Yes);
        }
        assert_eq!(store.scrape(&numbered(torrent)).leechers, 3000);
    }
}

/// One of many addresses that share no network, and hardly any /16.
fn far_apart(base: u32, number: u32) -> IpAddr {
    v4(base + ((number % 4096) << 16) + ((number / 4096) << 8))
}

#[test]
fn a_full_swarm_lets_newcomers_in_for_the_long_silent() {
    // In a block, with an index, and where the cap itself is tiny.
    for (peers_max, newcomers) in [(1, 5), (2, 5), (500, 250), (10_000, 5000)] {
        let store = store(0, peers_max);
        let torrent = numbered(1);
        let mut now = NOW;
        for peer in 0..peers_max {
            now = NOW.plus_s(u64::from(peer) * 3600 / u64::from(peers_max));
            announce(&store, now, &torrent, (far_apart(0x2000_0000, peer), 1), JOIN);
        }
        let start = now;
        for peer in 0..newcomers {
            now = start.plus_s(u64::from(peer) / 100);
            let seeder = PeerChange::Present { role: Role::Seeder, completed: false };
            let newcomer = (far_apart(0x3000_0000, peer), 1);
            let (result, _) = announce(&store, now, &torrent, newcomer, seeder);
            assert_eq!((result.stored, result.seeders + result.leechers), (Stored::Yes, peers_max));
            let totals = store.totals();
            assert_eq!(totals.active_torrents, 1);
            assert_eq!(totals.seeders[0] + totals.leechers[0], u64::from(peers_max));
        }
        let left = store.torrent(&torrent, now, 0, 1_000_000).unwrap().1;
        let ages_s: Vec<_> = left.iter().map(|it| it.age_s).collect();
        // Half of them went: had the oldest gone exactly, nobody older than half an hour were left.
        let old = ages_s.iter().filter(|it| **it > 1800 + 400).count();
        assert!(peers_max < 500 || old * 50 < ages_s.len(), "{old} of {}", ages_s.len());
        let (again, _) = announce(&store, now, &torrent, (left[0].address.unwrap().ip(), 1), JOIN);
        assert_eq!(again.seeders + again.leechers, peers_max, "who is in it stays in it");
    }
}

#[test]
fn all_kinds_count_towards_a_full_swarm_and_each_has_a_place_in_it() {
    let store = store(0, 100);
    let torrent = numbered(1);
    let mut random = Rng::with_seed(1);
    for number in 0..1000_u16 {
        let (address, contact): (IpAddr, _) = match number % 3 {
            0 => (far_apart(0x2000_0000, number.into()), Contact::Port(1)),
            1 => (Ipv6Addr::new(0x2600, number, 0, 0, 0, 0, 0, 1).into(), Contact::Port(1)),
            _ => (v4(0x0801_0101), Contact::Web(WebPeer(u128::from(number).to_ne_bytes()))),
        };
        let visit =
            PeerAnnounce { info_hash: &torrent, address, contact, change: JOIN, capped: true };
        store.announce(NOW, &visit, &mut PeerBuffers::default(), &mut random);
    }
    let counts = store.totals().leechers;
    assert_eq!(counts.iter().sum::<u64>(), 100);
    assert!(counts.iter().all(|it| *it > 30), "{counts:?}");
}

/// An address of an IPv6 /48, by its /64 and host.
fn v6_of(network: u32, subnet: u16, host: u16) -> IpAddr {
    let [a, b, c, d] = network.to_be_bytes();
    let (high, low) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Ipv6Addr::new(0x2600, high, low, subnet, 0, 0, 0, host).into()
}

/// How many peers of some IPv6 /32s are in a swarm.
fn v6_left(store: &Store, torrent: &InfoHash, of: std::ops::Range<u32>) -> usize {
    ports_of(store, torrent, |address| match address {
        IpAddr::V6(ipv6) => of.contains(&ipv6.segments()[1].into()),
        IpAddr::V4(_) => false,
    })
}

/// Honest peers, each of an IPv6 /32 of his own.
fn honest_v6(number: u32) -> (IpAddr, u16) {
    (v6_of((1000 + number) << 16, 0, 1), 1)
}

/// Honest peers, each of an IPv4 /16 of his own.
fn honest_v4(number: u32) -> (IpAddr, u16) {
    (v4(0x4000_0000 + (number << 16)), 1)
}

/// The peers of one /48, each of a /64 of his own.
fn sybil(number: u32) -> (IpAddr, u16) {
    (v6_of(9 << 16, u16::try_from(number).unwrap(), 1), 1)
}

#[test]
fn one_ipv6_network_cannot_erase_a_full_swarm() {
    const CAP: u32 = 2000;
    let (store, torrent) = (store(0, CAP), numbered(1));
    (0..500).for_each(|it| _ = announce(&store, NOW, &torrent, honest_v6(it), JOIN));
    (0..500).for_each(|it| _ = announce(&store, NOW, &torrent, honest_v4(it), JOIN));
    for number in 0..1990 {
        announce(&store, NOW.plus_s(60), &torrent, sybil(number), JOIN);
    }
    assert_eq!(v6_left(&store, &torrent, 1000..2000), 500);
    // Newcomers of either family come for the attacker's.
    for number in 500..800 {
        announce(&store, NOW.plus_s(90), &torrent, honest_v6(number), JOIN);
        announce(&store, NOW.plus_s(90), &torrent, honest_v4(number), JOIN);
    }
    assert_eq!(v6_left(&store, &torrent, 1000..2000), 800);
    assert_eq!(ports_of(&store, &torrent, |it| it.is_ipv4()), 800);
    assert_eq!(store.scrape(&torrent).leechers, CAP);
    assert_eq!(store.totals().leechers.iter().sum::<u64>(), u64::from(CAP));
}

#[test]
fn no_network_gets_more_than_an_eighth_of_a_swarm_that_others_have_filled() {
    const CAP: u32 = 2000;
    let (store, torrent) = (store(0, CAP), numbered(1));
    (0..1000).for_each(|it| _ = announce(&store, NOW, &torrent, honest_v6(it), JOIN));
    (0..1000).for_each(|it| _ = announce(&store, NOW, &torrent, honest_v4(it), JOIN));
    let mut most = 0;
    for number in 0..20_000 {
        announce(&store, NOW.plus_s(60), &torrent, sybil(number), JOIN);
        if number % 500 == 0 {
            most = most.max(v6_left(&store, &torrent, 9..10));
        }
    }
    assert!(most > 20 && most <= CAP as usize / 8, "{most}");
    assert_eq!(ports_of(&store, &torrent, |it| it.is_ipv4()), 1000, "the other family's stay");
    assert_eq!(store.scrape(&torrent).leechers, CAP);
}

#[test]
fn many_networks_cannot_erase_a_full_swarm_either() {
    // Four /48s, as it takes with the default cap, and very many, of one /32.
    for sybils in [4, 5000] {
        let (store, torrent) = (store(0, 10_000), numbered(1));
        (0..1000).for_each(|it| _ = announce(&store, NOW, &torrent, honest_v6(it), JOIN));
        (0..1000).for_each(|it| _ = announce(&store, NOW, &torrent, honest_v4(it), JOIN));
        for number in 0..40_000 {
            let now = NOW.plus_s(u64::from(number) / 1000);
            let subnet = u16::try_from(number / sybils).unwrap();
            let peer = (v6_of((9 << 16) | (number % sybils), subnet, 1), 1);
            announce(&store, now, &torrent, peer, JOIN);
        }
        assert_eq!(v6_left(&store, &torrent, 9..10), 8000, "{sybils}: all others have stayed");
        assert_eq!(store.scrape(&torrent).leechers, 10_000);
    }
}

#[test]
fn an_ipv4_network_displaces_its_own() {
    let (store, torrent) = (store(0, 2000), numbered(1));
    (0..1000).for_each(|it| _ = announce(&store, NOW, &torrent, honest_v4(it), JOIN));
    for number in 0..20_000_u32 {
        let port = u16::try_from(number / 256).unwrap() + 1;
        let address = v4(0x0909_0900 + number % 256);
        announce(&store, NOW.plus_s(60), &torrent, (address, port), JOIN);
    }
    assert_eq!(
        ports_of(&store, &torrent, |it| it < v4(0x5000_0000) && it > v4(0x4000_0000 - 1)),
        1000
    );
    assert_eq!(store.scrape(&torrent).leechers, 2000);
}

#[test]
fn a_web_network_displaces_its_own() {
    // Whatever the scope of the address: WebRTC peers are all of one crowd.
    [0x0801_0101, 0x0a01_0101, 0x7f00_0001].into_iter().for_each(a_web_network_at);
}

fn a_web_network_at(address: u32) {
    let address = v4(address);
    let (store, torrent) = (store(0, 500), numbered(1));
    let mut random = Rng::with_seed(1);
    let mut join_web = |network: u16, peer: u32| {
        let mut name = [7; 16];
        name[..2].copy_from_slice(&network.to_be_bytes());
        name[2..6].copy_from_slice(&peer.to_be_bytes());
        let contact = Contact::Web(WebPeer(name));
        let visit =
            PeerAnnounce { info_hash: &torrent, address, contact, change: JOIN, capped: true };
        store.announce(NOW, &visit, &mut PeerBuffers::default(), &mut random).stored
    };
    (0..200).for_each(|it| _ = join_web(1, it));
    (0..200).for_each(|it| _ = join(&store, 1, 0x4000_0000 + (it << 16)));
    (0..5000).for_each(|it| assert_eq!(join_web(1, it), Stored::Yes));
    (2..100).for_each(|it| assert_eq!(join_web(it, 0), Stored::Yes));
    assert_eq!(store.totals().leechers, [200, 0, 300]);
}
