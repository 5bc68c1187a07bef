//! The cost of an announce in the store: by peers per swarm, by total peers, hit and miss, one
//! thread and two, with and without the worker's batched prefetch; with a memory budget, without a
//! budget, and with an exhausted one; and when a large swarm's index grows.
//!
//! `cargo bench --bench store` builds up to 10 M peers (1.5 GB); `-- --test` uses small stores
//! only. A figure is for one announce with numwant 30. `growth` is one announce, the slowest
//! possible; `longest` is the slowest announce of a swarm that grows to a million peers.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

use std::cell::LazyCell;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fastrand::Rng;
use skep::store::{
    Budget, Options, PREFETCH_STAGES, PeerAnnounce, PeerBuffers, PeerChange, Role, Store,
};
use skep::sys::allocator::Allocator;
use skep::time::Now;
use skep::types::{Contact, InfoHash};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Datagrams a worker prefetches at once.
const BATCH: usize = 32;
const NOW: Now = Now::from_s(1_800_000_000);

/// A store of `peers` peers, `per_torrent` in each torrent.
struct Filled {
    store: Arc<Store>,
    torrents: u32,
    per_torrent: u32,
}

fn info_hash(torrent: u32) -> InfoHash {
    let mut hash = [0x5a; 20];
    hash[..4].copy_from_slice(&torrent.wrapping_mul(0x9e37_79b1).to_be_bytes());
    InfoHash(hash)
}

fn announce(store: &Store, torrent: u32, peer: u32, out: &mut [u8], random: &mut Rng) -> usize {
    let role = if peer.is_multiple_of(4) { Role::Leecher } else { Role::Seeder };
    let visit = PeerAnnounce {
        info_hash: &info_hash(torrent),
        address: Ipv4Addr::from(0x0800_0000 + peer).into(),
        contact: Contact::Port(6881),
        change: PeerChange::Present { role, completed: false },
        capped: true,
    };
    store
        .announce(NOW, &visit, &mut PeerBuffers { v4: out, v6: &mut [], web: &mut [] }, random)
        .bytes[0]
}

impl Filled {
    fn new(peers: u32, per_torrent: u32) -> Self {
        let store = Arc::new(Store::new(Options::default()));
        let torrents = peers / per_torrent;
        let mut random = Rng::with_seed(1);
        for peer in 0..per_torrent {
            for torrent in 0..torrents {
                announce(&store, torrent, peer, &mut [], &mut random);
            }
        }
        Self { store, torrents, per_torrent }
    }

    /// `count` announces of known peers in random order, in batches as the worker does them.
    fn announces(&self, count: u64, prefetch: bool, seed: u64) -> usize {
        let mut random = Rng::with_seed(seed);
        let mut out = [0; 30 * 6];
        let mut written = 0;
        for _ in 0..count.div_ceil(BATCH as u64) {
            let batch: [(u32, u32); BATCH] = std::array::from_fn(|_| {
                (random.u32(..self.torrents), random.u32(..self.per_torrent))
            });
            if prefetch {
                for stage in 0..PREFETCH_STAGES {
                    for (torrent, _) in &batch {
                        self.store.prefetch(stage, &info_hash(*torrent));
                    }
                }
            }
            for (torrent, peer) in batch {
                written += announce(&self.store, torrent, peer, &mut out, &mut random);
            }
        }
        written
    }

    fn misses(&self, count: u64) -> u32 {
        let mut random = Rng::with_seed(3);
        let unknown = |_| {
            self.store
                .scrape(&info_hash(self.torrents.wrapping_add(random.u32(..u32::MAX / 2))))
                .seeders
        };
        (0..count).map(unknown).sum()
    }
}

/// Whether criterion only checks that benchmarks run.
fn testing() -> bool {
    std::env::args().any(|it| it == "--test")
}

fn by_swarm(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("announce/peers_per_torrent");
    group.throughput(Throughput::Elements(1));
    let total = if testing() { 1000 } else { 1_000_000 };
    for per_torrent in [1, 2, 100, 100_000] {
        let filled = LazyCell::new(|| Filled::new(total.max(per_torrent), per_torrent));
        let filled = &filled; // built when first used: a filter builds only what it names
        group.bench_function(BenchmarkId::from_parameter(per_torrent), |bencher| {
            let filled: &Filled = filled;
            bencher.iter_custom(|count| elapsed(|| filled.announces(count, true, 2)));
        });
    }
    group.finish();
}

fn by_total(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("announce/peers_in_all");
    group.throughput(Throughput::Elements(1));
    let totals: &[u32] =
        if testing() { &[1000] } else { &[10_000, 100_000, 1_000_000, 10_000_000] };
    for &total in totals {
        let filled = LazyCell::new(|| Filled::new(total, 2));
        let filled = &filled;
        for (name, prefetch) in [("prefetched", true), ("plain", false)] {
            group.bench_function(BenchmarkId::new(name, total), |bencher| {
                let filled: &Filled = filled;
                bencher.iter_custom(|count| elapsed(|| filled.announces(count, prefetch, 2)));
            });
        }
        group.bench_function(BenchmarkId::new("miss", total), |bencher| {
            let filled: &Filled = filled;
            bencher.iter_custom(|count| elapsed(|| filled.misses(count)));
        });
        group.bench_function(BenchmarkId::new("two_threads", total), |bencher| {
            let filled: &Filled = filled;
            bencher.iter_custom(|count| {
                elapsed(|| {
                    std::thread::scope(|scope| {
                        for seed in [5, 6] {
                            scope.spawn(move || filled.announces(count, true, seed));
                        }
                    });
                })
            });
        });
    }
    group.finish();
}

/// Announces to a store whose memory budget is exhausted: of known peers, of new torrents from one
/// network after the other, and of new peers in known torrents.
fn when_full(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("announce/memory_used_up");
    group.throughput(Throughput::Elements(1));
    let filled = LazyCell::new(|| {
        let filled = Filled::new(if testing() { 1000 } else { 1_000_000 }, 2);
        let bytes_max = filled.store.usage().bytes;
        filled.store.allow(Budget { bytes_max, ..Budget::default() });
        filled
    });
    let filled = &filled;
    group.bench_function("known", |bencher| {
        let filled: &Filled = filled;
        bencher.iter_custom(|count| elapsed(|| filled.announces(count, true, 2)));
    });
    for (name, torrents) in [("new_torrent", u32::MAX), ("newcomer", filled.torrents)] {
        group.bench_function(name, |bencher| {
            let mut random = Rng::with_seed(4);
            let mut out = [0; 30 * 6];
            bencher.iter(|| {
                let torrent = random.u32(..torrents);
                let peer = 0x1000_0000 + random.u32(..1 << 20);
                announce(&filled.store, torrent, peer, &mut out, &mut random)
            });
        });
    }
    group.finish();
}

/// The cost of memory accounting where memory is never short: announces of known peers, and of new
/// peers, which take memory.
fn by_budget(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("announce/memory_budget");
    group.throughput(Throughput::Elements(1));
    let total = if testing() { 1000 } else { 1_000_000 };
    for (name, bytes_max) in [("none", 0), ("ample", 1 << 40)] {
        let filled = LazyCell::new(|| {
            let filled = Filled::new(total, 2);
            filled.store.allow(Budget { bytes_max, ..Budget::default() });
            filled
        });
        let filled = &filled;
        group.bench_function(BenchmarkId::new("known", name), |bencher| {
            let filled: &Filled = filled;
            bencher.iter_custom(|count| elapsed(|| filled.announces(count, true, 2)));
        });
        group.bench_function(BenchmarkId::new("newcomers", name), |bencher| {
            bencher.iter_custom(|count| {
                let store = Store::new(Options::default());
                store.allow(Budget { bytes_max, ..Budget::default() });
                let mut random = Rng::with_seed(1);
                let newcomers = (0..u32::try_from(count).unwrap()).map(|it| (it / 16, it));
                elapsed(|| {
                    for (torrent, peer) in newcomers {
                        announce(&store, torrent, peer, &mut [], &mut random);
                    }
                })
            });
        });
    }
    group.finish();
}

/// The longest announce of a swarm that grows from zero to a million peers: every growth of its
/// arrays and of its index happens within one announce.
fn longest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("announce/longest_while_growing");
    group.sample_size(10).warm_up_time(Duration::from_millis(1));
    group.measurement_time(Duration::from_secs(1));
    let size = if testing() { 3000 } else { 1_000_000 };
    group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
        bencher.iter_custom(|count| {
            let longest = |_| {
                let store = Store::new(Options::default());
                let mut random = Rng::with_seed(1);
                let joins =
                    (0..size).map(|it| elapsed(|| announce(&store, 0, it, &mut [], &mut random)));
                joins.max().unwrap_or_default()
            };
            (0..count).map(longest).sum()
        });
    });
    group.finish();
}

/// The one announce that makes a swarm's index double, under its shard's lock.
fn growth(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("announce/index_doubles");
    group.sample_size(10).warm_up_time(Duration::from_millis(1));
    group.measurement_time(Duration::from_millis(100));
    let sizes: &[u32] = if testing() { &[3584] } else { &[14_336, 114_688, 917_504] };
    for &size in sizes {
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|count| {
                let grow = |_| {
                    let filled = Filled::new(size, size); // seven eighths of a power of two
                    let mut random = Rng::with_seed(1);
                    elapsed(|| announce(&filled.store, 0, size, &mut [], &mut random))
                };
                (0..count).map(grow).sum()
            });
        });
    }
    group.finish();
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures time")]
fn elapsed<T>(work: impl FnOnce() -> T) -> Duration {
    let start = std::time::Instant::now();
    std::hint::black_box(work());
    start.elapsed()
}

criterion_group!(benches, by_swarm, by_total, by_budget, when_full, growth, longest);
criterion_main!(benches);
