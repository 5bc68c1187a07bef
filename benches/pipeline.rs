//! From datagram to response without a socket: everything a worker does except I/O, in batches of
//! 32 as in the worker. One million torrents, two million peers, numwant 30. In the renewals, time
//! passes: each peer announces every 30 minutes. The last case also sends each to another thread,
//! as for other nodes.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastrand::Rng;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::udp::UdpFrontend;
use skep::frontend::{RESPONSE_BYTES_MAX, Responder};
use skep::protocol::udp::{ANNOUNCE_BYTES, TransactionId, client};
use skep::store::{Options, Store};
use skep::time::Now;
use skep::tracker::{self, DeltaReceiver, DeltaSender, Tracker, delta_ring};
use skep::types::{Event, InfoHash, PeerId};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const BATCH: usize = 32;
const NOW: Now = Now::from_s(1_800_000_000);

type Datagram = (SocketAddr, [u8; ANNOUNCE_BYTES]);

/// Nanoseconds between two announces of a peer, in the renewals.
const INTERVAL_NS: u64 = 1800 * 1_000_000_000;

/// What is measured.
struct Case {
    name: &'static str,
    algorithm: Algorithm,
    /// Whether time passes.
    renews: bool,
    /// Whether changes are sent to another thread.
    sends: bool,
}

const CASES: [Case; 4] = [
    Case { name: "siphash", algorithm: Algorithm::SipHash, renews: false, sends: false },
    Case { name: "hmac-sha256", algorithm: Algorithm::HmacSha256, renews: false, sends: false },
    Case { name: "renewals", algorithm: Algorithm::SipHash, renews: true, sends: false },
    Case { name: "renewals_sent", algorithm: Algorithm::SipHash, renews: true, sends: true },
];

fn frontend(algorithm: Algorithm, deltas: Option<DeltaSender>) -> (UdpFrontend, ConnectionIds) {
    let store = Arc::new(Store::new(Options::default()));
    let options = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
    let keys = KeyPair { active: [1; KEY_BYTES], staging: None, algorithm };
    let ids = ConnectionIds::new(&keys);
    let shared = Arc::new(ArcSwap::from_pointee(ids.clone()));
    let mut tracker = Tracker::new(store, options, 1, 0, 1);
    if let Some(deltas) = deltas {
        tracker = tracker.with_deltas(deltas);
    }
    (UdpFrontend::new(tracker, shared), ids)
}

fn announce(ids: &ConnectionIds, torrent: u32, peer: u32) -> Datagram {
    let mut hash = [0x5a; 20];
    hash[..4].copy_from_slice(&torrent.wrapping_mul(0x9e37_79b1).to_be_bytes());
    let source = SocketAddr::new(Ipv4Addr::from(0x0800_0000 + peer).into(), 6881);
    let announcement = client::Announcement {
        info_hash: InfoHash(hash),
        peer_id: PeerId([2; 20]),
        downloaded: 0,
        left: u64::from(peer % 4),
        uploaded: 0,
        event: Event::None,
        numwant: 30,
        port: 6881,
        key: [0; 4],
    };
    let mut out = [0; ANNOUNCE_BYTES];
    client::encode_announce(
        ids.issue(NOW, source.ip()),
        TransactionId([1; 4]),
        &announcement,
        &mut out,
    );
    (source, out)
}

/// Draws a torrent with the skew of public trackers: most torrents have one or two peers, a few
/// have hundreds.
fn torrent(random: &mut Rng, torrents: u32) -> u32 {
    let uniform = random.f64();
    let skewed = if random.bool() { uniform } else { uniform.powi(6) };
    #[expect(clippy::cast_possible_truncation, reason = "below the number of torrents")]
    #[expect(clippy::cast_sign_loss, reason = "not negative")]
    let torrent = (skewed * f64::from(torrents)) as u32;
    torrent
}

fn serve(frontend: &mut UdpFrontend, now: Now, batch: &[Datagram], out: &mut [u8]) -> usize {
    for stage in 0..UdpFrontend::PREFETCH_STAGES {
        batch.iter().for_each(|(_, datagram)| frontend.prefetch(stage, datagram));
    }
    let handle =
        |(source, datagram): &Datagram| frontend.handle(now, *source, datagram, out).unwrap().bytes;
    batch.iter().map(handle).sum()
}

/// Gives the requests connection ids of this time.
fn renew_ids(ids: &ConnectionIds, now: Now, batch: &mut [Datagram]) {
    for (source, datagram) in batch {
        datagram[..8].copy_from_slice(&ids.issue(now, source.ip()).to_be_bytes());
    }
}

/// Runs `work` while another thread reads the ring, until there is no more.
fn with_reader(mut receiver: DeltaReceiver, work: impl FnOnce()) {
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                receiver.drain(usize::MAX, |delta| _ = std::hint::black_box(delta));
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        work();
        ends.store(true, Ordering::Relaxed);
    });
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn pipeline(criterion: &mut Criterion) {
    let small = std::env::args().any(|it| it == "--test");
    let (torrents, peers) = if small { (500, 1000) } else { (1_000_000, 2_000_000) };
    let mut group = criterion.benchmark_group("pipeline");
    group.throughput(Throughput::Elements(1));
    for Case { name, algorithm, renews, sends } in CASES {
        let (sender, receiver) = delta_ring(8192);
        let (mut frontend, ids) = frontend(algorithm, sends.then_some(sender));
        let mut random = Rng::with_seed(1);
        let mut datagrams: Vec<Datagram> =
            (0..peers).map(|peer| announce(&ids, torrent(&mut random, torrents), peer)).collect();
        let mut out = [0; RESPONSE_BYTES_MAX];
        datagrams.chunks(BATCH).for_each(|batch| _ = serve(&mut frontend, NOW, batch, &mut out));
        random.shuffle(&mut datagrams);
        let batches = datagrams.len() / BATCH;
        let (mut at, mut now) = (0, Now::from_ns(NOW.ns() + INTERVAL_NS));
        with_reader(receiver, || {
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|count| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..count.div_ceil(BATCH as u64) {
                        let batch = &mut datagrams[at * BATCH..][..BATCH];
                        at = (at + 1) % batches;
                        if renews {
                            now = Now::from_ns(now.ns() + INTERVAL_NS / batches as u64);
                            renew_ids(&ids, now, batch);
                        }
                        let now = if renews { now } else { NOW };
                        let start = std::time::Instant::now();
                        std::hint::black_box(serve(&mut frontend, now, batch, &mut out));
                        spent += start.elapsed();
                    }
                    spent
                });
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pipeline);
criterion_main!(benches);
