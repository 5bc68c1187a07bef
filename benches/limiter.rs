//! The cost of one limiter decision: for sources whose lines are in the CPU cache, for a million
//! sources, for a source over its limit, and with a second worker on the same lines; and the hash's
//! share of it.
//!
//! `cargo bench --bench limiter`. A figure is for one request. Simulated time advances with each
//! request, so that no source exceeds its limit unintentionally; prices are recomputed every 2.7 ms
//! of it.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

use std::hash::Hasher;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use criterion::{Criterion, criterion_group, criterion_main};
use fastrand::Rng;
use siphasher::sip::SipHasher13;
use skep::limiter::{Handle, LimitCounters, Limiter, Options, Price, Sizes, Verdict};
use skep::time::Now;

/// A worker, and simulated time that advances.
struct Door {
    gate: Handle,
    now_ns: u64,
    ns_per_request: u64,
}

impl Door {
    fn new(ns_per_request: u64) -> Self {
        Self::to(&Arc::new(Limiter::new(Sizes::default(), Some(1))), ns_per_request)
    }

    fn to(limiter: &Arc<Limiter>, ns_per_request: u64) -> Self {
        let options = Arc::new(ArcSwap::from_pointee(Options::default()));
        let gate = Handle::new(limiter.clone(), options, Arc::new(LimitCounters::default()), 1);
        Self { gate, now_ns: 1_800_000_000_000_000_000, ns_per_request }
    }

    fn admit(&mut self, source: IpAddr) -> Verdict {
        self.now_ns += self.ns_per_request;
        self.gate.admit(Now::from_ns(self.now_ns), black_box(source), Price::ANNOUNCE)
    }
}

/// `count` sources in distant networks.
fn v4(count: usize) -> Vec<IpAddr> {
    let mut random = Rng::with_seed(2);
    (0..count).map(|_| Ipv4Addr::from(random.u32(0x0100_0000..0x7f00_0000)).into()).collect()
}

fn v6(count: usize) -> Vec<IpAddr> {
    let mut random = Rng::with_seed(2);
    (0..count).map(|_| Ipv6Addr::from(random.u128(0x2 << 124..0x4 << 124)).into()).collect()
}

/// Each source sends 50 requests a second; in the case of a million sources, each sends one.
fn admit(criterion: &mut Criterion) {
    for (name, sources, ns_per_request) in [
        ("1 k IPv4 sources", v4(1_000), 20_000),
        ("1 k IPv6 sources", v6(1_000), 20_000),
        ("20 k IPv4 sources", v4(20_000), 1_000),
        ("1 M IPv4 sources", v4(1_000_000), 1_000),
    ] {
        let mut door = Door::new(ns_per_request);
        for source in sources.iter().cycle().take(sources.len() * 8) {
            door.admit(*source);
        }
        let mut next = sources.iter().cycle();
        criterion.bench_function(&format!("admit/{name}"), |bencher| {
            bencher.iter(|| door.admit(*next.next().unwrap()));
        });
    }
}

/// A second worker checks the same sources at the same time.
fn contended(criterion: &mut Criterion) {
    let limiter = Arc::new(Limiter::new(Sizes::default(), Some(1)));
    let sources = v4(1_000);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let mut other = Door::to(&limiter, 40_000);
        let (stop, sources) = (&stop, &sources);
        scope.spawn(move || {
            for source in sources.iter().cycle() {
                other.admit(*source);
                if stop.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let mut door = Door::to(&limiter, 40_000);
        let mut next = sources.iter().cycle();
        criterion.bench_function("admit/1 k IPv4 sources, by two workers", |bencher| {
            bencher.iter(|| door.admit(*next.next().unwrap()));
        });
        stop.store(true, Ordering::Relaxed);
    });
}

fn turned_away(criterion: &mut Criterion) {
    let mut door = Door::new(1_000);
    criterion.bench_function("limited/one source", |bencher| {
        bencher.iter(|| door.admit(Ipv4Addr::new(8, 8, 8, 8).into()));
    });
    let mut door = Door::new(1);
    let sources = v4(10_000);
    let mut next = sources.iter().cycle();
    for source in sources.iter().cycle().take(sources.len() * 500) {
        door.admit(*source);
    }
    criterion.bench_function("limited/10 k sources", |bencher| {
        bencher.iter(|| door.admit(*next.next().unwrap()));
    });
    criterion.bench_function("exempt", |bencher| {
        bencher.iter(|| door.admit(Ipv4Addr::LOCALHOST.into()));
    });
}

fn hashes(criterion: &mut Criterion) {
    let keys: [ahash::RandomState; 4] = std::array::from_fn(|_| ahash::RandomState::new());
    criterion.bench_function("hash/ahash, four prefixes", |bencher| {
        bencher.iter(|| {
            let address = black_box(0x0808_0808_u32);
            [0, 1, 2, 3].map(|at| keys[at].hash_one(address >> at))
        });
    });
    criterion.bench_function("hash/SipHash-1-3, four prefixes", |bencher| {
        bencher.iter(|| {
            let address = black_box(0x0808_0808_u32);
            [0, 1, 2, 3].map(|at| {
                let mut hasher = SipHasher13::new_with_keys(black_box(1), at);
                hasher.write_u32(address >> at);
                hasher.finish()
            })
        });
    });
}

criterion_group!(benches, admit, contended, turned_away, hashes);
criterion_main!(benches);
