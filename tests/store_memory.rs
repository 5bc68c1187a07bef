//! What the store takes and may take: its account against the allocator's, the budget under a flood
//! of torrents, and what no single network can do to a swarm.
//!
//! The allocator of this program counts what each thread takes: it knows nothing of the store's own
//! account. Seeds are printed; `SEED=n cargo test --test store_memory` runs one again.
#![allow(clippy::unwrap_used, reason = "helpers of a test may fail by panicking")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use fastrand::Rng;
use skep::store::{Change, Limits, Options, Role, Room, Store, Sweeper, Visit};
use skep::time::Now;
use skep::types::{Contact, InfoHash, WebPeer};

const LIMITS: Limits = Limits { peer_age_s_max: 3900, empty_torrent_age_s_max: 7200 };

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
        _ => Contact::Port(1 + random.u16(..2)),
    };
    (address, contact)
}

fn change(random: &mut Rng) -> Change {
    match random.u8(..10) {
        0..=2 => Change::Stopped,
        3 => Change::Present { role: Role::Seeder, completed: true },
        4 => Change::Present { role: Role::Seeder, completed: false },
        _ => Change::Present { role: Role::Leecher, completed: false },
    }
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
            let before = store.used_bytes();
            let counted = allocation_counter::measure(|| {
                for _ in 0..5000 {
                    let info_hash = info_hash(&mut random);
                    let (address, contact) = peer(&mut random);
                    let change = change(&mut random);
                    let visit = Visit { info_hash: &info_hash, address, contact, change };
                    store.announce(now, &visit, &mut Room::default(), &mut random);
                }
                now = now.plus_s(random.u64(..300));
                Sweeper::new(&store, 0, 1).pass(&store, now, LIMITS);
            });
            taken += counted.bytes_current;
            let said = i64::try_from(store.used_bytes()).unwrap();
            assert_eq!(said, taken, "{before} before");
            most = most.max(said);
        }
        assert!(most > 1 << 20, "{most}: there was something to count");
        Sweeper::new(&store, 0, 1).pass(&store, now.plus_s(10_000), LIMITS);
        Sweeper::new(&store, 0, 1).pass(&store, now.plus_s(20_000), LIMITS);
        assert_eq!(store.totals().torrents, 0);
        let left = store.used_bytes();
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
            let visit = Visit {
                info_hash: &info_hash,
                address: Ipv4Addr::from(0x0800_0000 + number).into(),
                contact,
                change: Change::Present { role: Role::Leecher, completed: false },
            };
            taken += bytes_taken(|| {
                store.announce(Now::from_s(1), &visit, &mut Room::default(), &mut random);
            });
            assert_eq!(store.used_bytes(), taken, "{number}");
        }
    }
}
