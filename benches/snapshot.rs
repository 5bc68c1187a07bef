//! The cost of a snapshot: exporting and encoding the store, verifying a file, restoring it.
//!
//! `cargo bench --bench snapshot` measures a store of 100 000 peers. One run with the disk, of any
//! size, also measures the most work under a shard's lock (in CPU time, because wall time depends
//! on the load of the host):
//!
//! ```text
//! PEERS=10000000 TORRENTS=2000000 cargo bench --bench snapshot
//! CROWD=1000000 PEERS=1000000 cargo bench --bench snapshot    half of the peers in one swarm
//! ```
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::hint::black_box;
use std::io::Cursor;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use criterion::{Criterion, criterion_group};
use fastrand::Rng;
use skep::access::passkey::PasskeyTable;
use skep::snapshot::{
    Header, OsDisk, Restore, Snapshot, SnapshotFolder, TrackerId, VERSION, Writer,
};
use skep::store::{
    ExportBatch, Options, PeerAnnounce, PeerBuffers, PeerChange, Role, Store, StoreExport,
};
use skep::sys::clock::thread_cpu_ns;
use skep::time::Now;
use skep::types::{Contact, InfoHash};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: Now = Now::from_s(1_800_000_000);
const TRACKER: TrackerId = [1; 16];

fn hash(torrent: u32) -> InfoHash {
    let mut random = Rng::with_seed(torrent.into());
    let mut info_hash = [0; 20];
    random.fill(&mut info_hash);
    InfoHash(info_hash)
}

fn join(store: &Store, torrent: u32, peer: u32, random: &mut Rng) {
    let address = IpAddr::V4(Ipv4Addr::from(0x0800_0000_u32.wrapping_add(peer)));
    let contact = Contact::Port(random.u16(1024..));
    let role = if random.u8(..3) == 0 { Role::Leecher } else { Role::Seeder };
    let change = PeerChange::Present { role, completed: false };
    let info_hash = &hash(torrent);
    let visit = PeerAnnounce { info_hash, address, contact, change, capped: false };
    let now = Now::from_s(NOW.seconds() - random.u64(..1800));
    store.announce(now, &visit, &mut PeerBuffers::default(), random);
}

/// A store with the distribution of the aquatic-like load: few torrents have most of the peers,
/// most have one or two.
fn filled(torrents: u32, peers: u32, crowd: u32) -> Store {
    let store = Store::new(Options { seed: Some(1), ..Options::default() });
    let mut random = Rng::with_seed(1);
    for torrent in 0..torrents {
        join(&store, torrent, torrent, &mut random);
    }
    for peer in torrents..peers.max(torrents) {
        let part = random.f64();
        #[expect(clippy::cast_possible_truncation, reason = "a part of a u32")]
        #[expect(clippy::cast_sign_loss, reason = "below 1, above 0")]
        let torrent = (part * part * part * f64::from(torrents)) as u32;
        join(&store, torrent, peer, &mut random);
    }
    (0..crowd).for_each(|peer| join(&store, u32::MAX, peers.wrapping_add(peer), &mut random));
    store
}

fn encode(store: &Store) -> Vec<u8> {
    let build = String::new();
    let header = Header { version: VERSION, at_s: NOW.seconds(), tracker: TRACKER, build };
    let mut writer = Writer::new(Vec::new(), &header).unwrap();
    let (mut export, mut batch) = (StoreExport::new(NOW), ExportBatch::default());
    while store.export(&mut export, &mut batch) {
        writer.add(&batch).unwrap();
    }
    writer.finish(0).unwrap().0
}

fn restore(bytes: &[u8]) -> Store {
    let store = Store::new(Options { seed: Some(2), ..Options::default() });
    let snapshot = Snapshot::open(Cursor::new(bytes)).unwrap();
    let mut restore = Restore::new(snapshot, 3900);
    while restore.step(&store, NOW).unwrap() {}
    store
}

fn snapshots(criterion: &mut Criterion) {
    let store = filled(20_000, 100_000, 0);
    let bytes = encode(&store);
    let mut group = criterion.benchmark_group("snapshot of 100000 peers in 20000 torrents");
    group.sample_size(20);
    group.bench_function("export and encode", |it| it.iter(|| encode(black_box(&store))));
    group.bench_function("judge", |bencher| {
        bencher.iter(|| Snapshot::open(Cursor::new(black_box(&bytes))).unwrap());
    });
    group.bench_function("judge and restore", |it| it.iter(|| restore(black_box(&bytes))));
    group.finish();
}

criterion_group!(benches, snapshots);

/// A number from the environment.
fn number(name: &str) -> Option<u32> {
    std::env::var(name).ok().map(|it| it.parse().unwrap())
}

/// Saves to a disk once and restores from it once; prints the duration of each.
fn once(torrents: u32, peers: u32, crowd: u32) {
    let store = filled(torrents, peers, crowd);
    println!("{:?}, {} MiB", store.totals(), store.usage().bytes >> 20);
    let (mut export, mut batch) = (StoreExport::new(NOW), ExportBatch::default());
    let (mut slices, mut longest, begun) = (0, 0, Instant::now());
    loop {
        let start_ns = thread_cpu_ns();
        let more = store.export(&mut export, &mut batch);
        longest = longest.max((thread_cpu_ns() - start_ns) / 1000);
        slices += 1;
        if !more {
            break;
        }
    }
    let ms = begun.elapsed().as_millis();
    println!("export alone: {ms} ms in {slices} slices, the longest {longest} us");
    let directory = tempfile::tempdir_in(".").unwrap();
    let folder = SnapshotFolder::new(OsDisk, directory.path().to_owned(), TRACKER);
    for rests in [false, true] {
        let start = Instant::now();
        let mut since = start;
        let mut between = || {
            if rests {
                std::thread::sleep(since.elapsed()); // as the server does
                since = Instant::now();
            }
            Ok(())
        };
        let saved = folder
            .save((&store, &PasskeyTable::default()), NOW, NOW.seconds(), &mut between)
            .unwrap();
        let (bytes, ms) = (saved.contents.bytes, start.elapsed().as_millis());
        println!("saved: {bytes} bytes in {ms} ms, the disk included (rests: {rests})");
    }
    drop(store);
    let start = Instant::now();
    let (snapshot, _) = folder.find(NOW).snapshot.unwrap();
    println!("judged in {} ms", start.elapsed().as_millis());
    let store = Store::new(Options::default());
    let mut restore = Restore::new(snapshot, 3900);
    let mut longest = 0;
    loop {
        let start_ns = thread_cpu_ns();
        let more = restore.step(&store, NOW).unwrap();
        longest = longest.max((thread_cpu_ns() - start_ns) / 1000);
        if !more {
            break;
        }
    }
    let ms = start.elapsed().as_millis();
    println!("restored in {ms} ms in all, a block in {longest} us at most");
    println!("{:?}, {:?}", store.totals(), restore.restored());
}

fn main() {
    match number("PEERS") {
        Some(peers) => {
            once(number("TORRENTS").unwrap_or(peers / 5), peers, number("CROWD").unwrap_or(0));
        }
        None => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
