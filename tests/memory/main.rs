//! The cap on memory is on what is resident: it holds at every fill level, while tables double,
//! while blocks of one size give way to the next, and while swarms come and go; and what was there
//! before a flood is whole after it.
//!
//! Each walk is in a process of its own, this program again, with the allocator of the real one:
//! two threads announce straight to the store, faster than datagrams come. `MEMORY=all cargo test
//! --test memory` takes every cap with every shape.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

#[path = "../support/mod.rs"]
mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use skep::access::passkey::{self, PasskeyTable};
use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{Announcement, encode_announce};
use skep::server::memory::{self, MemoryMonitor};
use skep::store::{
    ExpiryLimits, Options, PeerAnnounce, PeerBuffers, PeerChange, Role, Store, Stored, Sweeper,
};
use skep::sys::allocator::{Allocator, Collector, restrain_huge_pages};
use skep::sys::memory::Resident;
use skep::time::Now;
use skep::types::{Contact, Event, InfoHash, PeerId};

use crate::support::{Client, Skep, leecher};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Says which walk this process is for.
const VARIABLE: &str = "MEMORY_WALK";

const MIB: u64 = 1 << 20;
const NOW: Now = Now::from_s(1_800_000_000);
const LIMITS: ExpiryLimits = ExpiryLimits { peer_age_s_max: 3900, empty_torrent_age_s_max: 7200 };

/// What a store is filled with, and under which cap.
#[derive(Clone, Copy, Debug)]
struct Walk {
    cap_mib: u64,
    /// Peers of each torrent.
    peers: u32,
    /// Whether they are IPv6.
    v6: bool,
    /// Whether each announce is also a new session of a passkey.
    is_private: bool,
}

impl FromStr for Walk {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbers: Result<Vec<u64>, _> = text.split(' ').map(str::parse).collect();
        let numbers = numbers?;
        let peers = u32::try_from(numbers[1]).unwrap_or(1);
        let is_private = numbers.get(3) == Some(&1);
        Ok(Self { cap_mib: numbers[0], peers, v6: numbers[2] == 6, is_private })
    }
}

/// Runs a walk in a process of its own.
fn walk(cap_mib: u64, peers: u32, family: u32) {
    run_walk(&format!("{cap_mib} {peers} {family}"));
}

fn run_walk(walk: &str) {
    let mut command = support::child_test(module_path!(), "a_walk");
    let begun = Instant::now();
    println!("MEMORY_WALK='{walk}'");
    let output = command.env(VARIABLE, walk).output().unwrap();
    support::assert_passed(&output);
    let (stdout, _) = support::texts(&output);
    let peak = stdout.lines().find(|line| line.contains("at most")).unwrap();
    println!("{walk}: {peak}, {:.1} s", begun.elapsed().as_secs_f64());
}

/// Every shape of a swarm: peers, and their family.
const SHAPES: [(u32, u32); 6] = [(1, 4), (2, 4), (16, 4), (1, 6), (2, 6), (16, 6)];

#[test]
fn a_cap_of_64_mib_holds_with_every_shape_of_swarms() {
    SHAPES.iter().for_each(|&(peers, family)| walk(64, peers, family));
}

#[test]
fn a_cap_of_64_mib_holds_with_sessions_of_passkeys_without_number() {
    run_walk("64 1 4 1");
}

#[test]
fn every_larger_cap_holds() {
    let all = std::env::var("MEMORY").is_ok_and(|it| it == "all");
    let some = [(128, 16, 4), (256, 2, 6), (512, 1, 6), (1024, 1, 4)];
    for (cap_mib, peers, family) in some {
        if all {
            SHAPES.iter().for_each(|&(peers, family)| walk(cap_mib, peers, family));
        } else {
            walk(cap_mib, peers, family);
        }
    }
}

/// The walk that this process is for; by itself, the shortest.
#[test]
fn a_walk() {
    let walk = std::env::var(VARIABLE).unwrap_or_else(|_| "64 1 4".into());
    Walking::new(walk.parse().unwrap()).run();
}

/// Torrents that are there before the flood, and the peers of each.
const RESIDENTS: u32 = 1000;
const RESIDENT_PEERS: u32 = 16;

/// A store under its cap, and what watches it.
struct Walking {
    walk: Walk,
    store: Arc<Store>,
    keys: PasskeyTable,
    /// Announces that found no room, or displaced somebody: the store is full from some on.
    turned_away: AtomicU64,
    /// Seconds since the begin.
    age_s: AtomicU64,
    most: AtomicU64,
}

impl Walking {
    fn new(walk: Walk) -> Self {
        let shards = if walk.cap_mib < 256 { 256 } else { 1024 };
        let store = Arc::new(Store::new(Options { shards, seed: None }));
        let limits =
            passkey::Limits { announces_per_minute: u32::MAX, torrents: u32::MAX, peers: u32::MAX };
        let (name, totals) = (String::new(), passkey::Totals::default());
        let record = passkey::Record { name, limits, issued_s: 0, totals };
        let keys = PasskeyTable::default();
        (0..KEYS).for_each(|it| _ = keys.insert([it; 32], &record));
        Self {
            walk,
            store,
            keys,
            turned_away: AtomicU64::new(0),
            age_s: AtomicU64::new(0),
            most: AtomicU64::new(0),
        }
    }

    fn run(&self) {
        restrain_huge_pages();
        let cap = self.walk.cap_mib * MIB;
        let options = memory::Options { cap, peers_per_torrent_max: 0 };
        let keeper = MemoryMonitor::new(self.store.clone(), options);
        let sessions = self.keys.session_bytes();
        if self.walk.is_private {
            keeper.count_sessions(sessions.clone());
        }
        let looking = keeper.start().unwrap();
        let mut random = Rng::with_seed(1);
        for peer in 0..RESIDENT_PEERS {
            (0..RESIDENTS).for_each(|torrent| _ = self.join(resident(torrent), peer, &mut random));
        }
        let empty = resident_bytes();
        self.watched(|worker| self.flood(worker));
        let full = resident_bytes();
        for torrent in 0..RESIDENTS {
            let (_, peers) = self.store.torrent(&resident(torrent), NOW, 0, 100).unwrap();
            assert_eq!(peers.len(), RESIDENT_PEERS as usize, "{torrent}");
        }
        let most = if self.walk.is_private { sessions.max() } else { 0 };
        // Both workers may find room for the last one.
        assert!(sessions.used() <= most + 1000 && sessions.used() >= most / 10 * 9, "{most}");
        // What is in reserve, and for connections, is nobody's here.
        assert!(full > (cap - cap / 16) / 2, "{full} of {cap}: it was filled");
        if self.walk.cap_mib <= 128 {
            self.watched(|worker| self.churn(worker));
        }
        self.watched(|worker| self.empty(worker, empty + LEFT));
        assert_eq!((self.store.totals().torrents, sessions.used()), (0, 0));
        let left = resident_bytes();
        assert!(left < empty + LEFT, "{left} where it was {empty}: it is given back");
        let most = self.most.load(Ordering::Relaxed);
        assert!(peak_bytes() <= cap, "{} at some moment", peak_bytes());
        println!("at most {} MiB of {}, {} once empty", most / MIB, self.walk.cap_mib, left / MIB);
        drop(looking);
    }

    /// Runs two workers, and looks at what is resident meanwhile.
    fn watched(&self, work: impl Fn(usize) + Sync) {
        let cap = self.walk.cap_mib * MIB;
        let resident = Resident::open().unwrap();
        std::thread::scope(|scope| {
            let workers = [0, 1].map(|worker| {
                let work = &work;
                scope.spawn(move || work(worker))
            });
            while workers.iter().any(|it| !it.is_finished()) {
                let bytes = resident.read().unwrap();
                assert!(bytes <= cap, "{} MiB of {}", bytes / MIB, self.walk.cap_mib);
                self.most.fetch_max(bytes, Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(1));
            }
        });
    }

    fn now(&self) -> Now {
        NOW.plus_s(self.age_s.load(Ordering::Relaxed))
    }

    /// An announce by a peer of a network of its own.
    fn join(&self, info_hash: InfoHash, peer: u32, random: &mut Rng) -> Stored {
        let address: IpAddr = if self.walk.v6 {
            let [high, low] = [peer >> 16, peer].map(|it| (it & 0xffff) as u16);
            Ipv6Addr::new(0x2001, 0x4860, high, low, 0, 0, 0, 1).into()
        } else {
            Ipv4Addr::from(0x0800_0000 + (peer << 8)).into()
        };
        let visit = PeerAnnounce {
            info_hash: &info_hash,
            address,
            contact: Contact::Port(6881),
            change: PeerChange::Present { role: Role::Leecher, completed: false },
            capped: true,
        };
        self.store.announce(self.now(), &visit, &mut PeerBuffers::default(), random).stored
    }

    /// Torrents that come, a few thousand at a time, each with its peers one after the other.
    fn come(&self, torrents: u32, collector: &mut Collector, random: &mut Rng) {
        let new: Vec<InfoHash> = (0..torrents).map(|_| random_hash(random)).collect();
        for peer in 0..self.walk.peers {
            for info_hash in &new {
                let stored = self.join(*info_hash, 100 + peer * 256 + random.u32(..256), random);
                if self.walk.is_private {
                    self.count(info_hash, random);
                }
                self.turned_away.fetch_add((stored != Stored::Yes).into(), Ordering::Relaxed);
            }
            collector.collect_if_requested(); // as a worker does a hundred times a second
        }
    }

    /// A passkey's announce of a session that is new.
    fn count(&self, info_hash: &InfoHash, random: &mut Rng) {
        let key = self.keys.all().swap_remove(random.usize(..usize::from(KEYS)));
        let report = passkey::SessionReport {
            info_hash,
            peer_id: &PeerId([1; 20]),
            event: Event::Started,
            uploaded: 0,
            downloaded: 0,
            left: 1,
        };
        assert_eq!(key.count(self.now(), &report), Ok(()), "it is answered, session or not");
    }

    /// Fills the store, and floods it from there on.
    fn flood(&self, worker: usize) {
        let (mut collector, mut random) = (Collector::default(), Rng::with_seed(worker as u64));
        let begun = Instant::now();
        while self.turned_away.load(Ordering::Relaxed) + self.store.usage().evicted < FLOOD {
            self.come(8192, &mut collector, &mut random);
            assert!(begun.elapsed() < Duration::from_mins(5), "it is never full");
        }
    }

    /// Three hours in which torrents come and go.
    fn churn(&self, worker: usize) {
        let (mut collector, mut random) = (Collector::default(), Rng::with_seed(worker as u64));
        let mut sweeper = Sweeper::new(&self.store, worker, 2);
        for step in 0..18 {
            self.age_s.fetch_max(step * 600, Ordering::Relaxed);
            self.come(4096, &mut collector, &mut random);
            sweeper.pass(&self.store, self.now(), LIMITS);
            collector.collect_if_requested();
        }
    }

    /// Lets everything expire, and waits until that has been given back.
    fn empty(&self, worker: usize, until: u64) {
        let mut collector = Collector::default();
        let mut sweeper = Sweeper::new(&self.store, worker, 2);
        self.age_s.fetch_max(30_000, Ordering::Relaxed);
        (0..2).for_each(|_| sweeper.pass(&self.store, self.now(), LIMITS));
        self.keys.all().iter().for_each(|it| it.sweep(self.now(), LIMITS.peer_age_s_max));
        let begun = Instant::now();
        while resident_bytes() >= until && begun.elapsed() < support::DEADLINE {
            collector.collect_if_requested();
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

/// Passkeys of a private tracker.
const KEYS: u8 = 10;

/// What may be resident for nothing once a store has become empty.
const LEFT: u64 = 16 * MIB;

/// Announces over what the store can take, after which it is full.
const FLOOD: u64 = 20_000;

fn resident(torrent: u32) -> InfoHash {
    let mut hash = [0x5a; 20];
    hash[..4].copy_from_slice(&torrent.to_be_bytes());
    InfoHash(hash)
}

fn random_hash(random: &mut Rng) -> InfoHash {
    let mut hash = [0xa5; 20];
    hash[..16].copy_from_slice(&random.u128(..).to_be_bytes());
    InfoHash(hash)
}

fn resident_bytes() -> u64 {
    Resident::open().unwrap().read().unwrap()
}

/// The most that was ever resident.
fn peak_bytes() -> u64 {
    peak_bytes_of("self")
}

fn peak_bytes_of(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Sends announces of random torrents in bursts, and takes what is answered.
fn flood_over_udp(address: SocketAddr, count: u32, seed: u64) {
    let connection_id = Client::connect(address).connection_id;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (mut random, mut buffer) = (Rng::with_seed(seed), [0; 2048]);
    for number in 0..count / 64 {
        for _ in 0..64 {
            let announcement =
                Announcement { info_hash: random_hash(&mut random), ..leecher(0, 6881) };
            let transaction = TransactionId(number.to_be_bytes());
            let bytes = encode_announce(connection_id, transaction, &announcement, &mut buffer);
            socket.send(&buffer[..bytes]).unwrap();
        }
        // A lost one is no matter; what is waited for is that the tracker keeps up.
        let answered = (0..64).take_while(|_| socket.recv(&mut buffer).is_ok());
        let _ = answered.count();
    }
}

#[test]
fn the_program_keeps_to_its_cap_over_udp() {
    let mut command = support::command();
    command.args(["run", "--listen", "127.0.0.1:0", "--workers", "2"]);
    command.env("SKEP__MEMORY__MAX_MEMORY", "64MiB");
    let skep = Skep::spawn(command);
    let address = skep.udp[0];
    let clients: Vec<_> = (0..20).map(|_| Client::connect(address)).collect();
    for (mut client, port) in clients.into_iter().zip(7000..) {
        (1..=10).for_each(|torrent| _ = client.announce(&leecher(torrent, port)));
    }
    let done = AtomicBool::new(false);
    let most = std::thread::scope(|scope| {
        let floods = [1, 2].map(|seed| scope.spawn(move || flood_over_udp(address, 250_000, seed)));
        let sampler = scope.spawn(|| {
            let mut most = 0.0;
            while !done.load(Ordering::Relaxed) {
                most = skep.metrics().value("process_resident_memory_bytes").max(most);
                std::thread::park_timeout(Duration::from_millis(20));
            }
            most
        });
        floods.into_iter().for_each(|it| it.join().unwrap());
        done.store(true, Ordering::Relaxed);
        sampler.join().unwrap()
    });
    let peak = peak_bytes_of(&skep.id().to_string());
    let cap = 64 * MIB;
    assert!(most <= cap as f64 && peak <= cap, "{most} and {peak}");
    let metrics = skep.metrics();
    assert_eq!(metrics.value("skep_memory_cap_bytes"), cap as f64);
    assert!(metrics.value("skep_torrents") > 100_000.0, "{}", metrics.value("skep_torrents"));
    let mut client = Client::connect(address);
    let torrents: Vec<_> = (1..=10).map(|it| InfoHash([it; 20])).collect();
    assert!(client.scrape(&torrents).iter().all(|it| it.leechers == 20), "they are whole");
}
