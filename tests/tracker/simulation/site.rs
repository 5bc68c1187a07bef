//! A whole tracker without sockets: what a process has between two restarts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use skep::counters::WorkerCounters;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::http::HttpFrontend;
use skep::frontend::udp::UdpFrontend;
use skep::frontend::ws::{self, Directory, SocketSession, WsFrontend};
use skep::limiter::{self, Handle, LimitAction, LimitCounters, LimitTable, Limiter, Sizes};
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};

use super::swarms::{EMPTY_AGE_S_MAX, PEER_AGE_S_MAX};

/// Workers of each kind.
pub(crate) const WORKERS: usize = 2;

/// What a stream worker has.
pub(crate) struct StreamWorker {
    pub(crate) http: HttpFrontend,
    pub(crate) ws: WsFrontend,
    pub(crate) tracker: Tracker,
}

/// An open WebSocket.
pub(crate) struct Socket {
    pub(crate) session: SocketSession,
    pub(crate) client: usize,
}

pub(crate) struct Site {
    pub(crate) store: Arc<Store>,
    pub(crate) ids: Arc<ArcSwap<ConnectionIds>>,
    pub(crate) udp: Vec<UdpFrontend>,
    pub(crate) streams: Vec<StreamWorker>,
    pub(crate) counters: [WorkerCounters; WORKERS],
    pub(crate) limits: Vec<Arc<LimitCounters>>,
    /// By the slot of their route.
    pub(crate) sockets: BTreeMap<u32, Socket>,
    /// Wall clock less monotonic clock when the process began: it looks at neither again.
    pub(crate) ahead_ns: i64,
    /// Since when upkeep has not paused.
    pub(crate) swept_since_s: u64,
}

/// Keys by their numbers.
pub(crate) fn ids_of((active, staging): (u8, Option<u8>)) -> ConnectionIds {
    let key = |number: u8| [number; KEY_BYTES];
    let staging = staging.map(key);
    ConnectionIds::new(&KeyPair { active: key(active), staging, algorithm: Algorithm::SipHash })
}

impl Site {
    pub(crate) fn new(seed: u64, keys: (u8, Option<u8>), ahead_ns: i64, now: Now) -> Self {
        let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(seed) }));
        let rules = Arc::new(ArcSwap::from_pointee(tracker::Options {
            interval_s: 600,
            interval_jitter_s: 60,
            min_interval_s: 300,
            peer_age_s_max: PEER_AGE_S_MAX,
            empty_torrent_age_s_max: EMPTY_AGE_S_MAX,
            ..tracker::Options::default()
        }));
        let small = 1 << 16;
        let (verified, unverified, new_torrent) = (small, small, small);
        let sizes = Sizes { verified, unverified, new_torrent, stop: small, connection: small };
        let limiter = Arc::new(Limiter::new(sizes, Some(seed)));
        let limits: Vec<Arc<LimitCounters>> = (0..2 * WORKERS).map(|_| Arc::default()).collect();
        let allowed = limiter::Options { burst: 100, ..limiter::Options::default() };
        let allowed = Arc::new(ArcSwap::from_pointee(allowed));
        let gate = |at: usize| {
            Handle::new(limiter.clone(), allowed.clone(), limits[at].clone(), seed ^ at as u64)
        };
        let ids = Arc::new(ArcSwap::from_pointee(ids_of(keys)));
        let udp = (0..WORKERS).map(|at| {
            let (store, rules) = (store.clone(), rules.clone());
            let tracker = Tracker::new(store, rules, seed ^ at as u64, at, WORKERS);
            UdpFrontend::new(tracker.with_limiter(gate(at)), ids.clone())
        });
        let directory = Arc::new(Directory::new(&[7; 16]));
        let options = ws::Options { offers_per_minute_max: 1000, ..ws::Options::default() };
        let options = Arc::new(ArcSwap::from_pointee(options));
        let streams = (WORKERS..2 * WORKERS).map(|at| StreamWorker {
            http: HttpFrontend::new(Arc::default(), Arc::default()),
            ws: WsFrontend::new(directory.clone(), options.clone()),
            tracker: Tracker::without_upkeep(store.clone(), rules.clone(), seed ^ at as u64)
                .with_limiter(gate(at)),
        });
        let (udp, streams) = (udp.collect(), streams.collect());
        let swept_since_s = now.seconds();
        let (counters, sockets) = (<[WorkerCounters; WORKERS]>::default(), BTreeMap::new());
        Self { store, ids, udp, streams, counters, limits, sockets, ahead_ns, swept_since_s }
    }

    /// How often the limiter has let verified work slip through, and stopped it.
    pub(crate) fn limited(&self, worker: usize) -> (u64, u64) {
        let of = |action| self.limits[worker].of(LimitTable::Verified, action).get();
        (of(LimitAction::Slipped), of(LimitAction::Limited))
    }
}

/// The datagram worker that the kernel picks for a source.
pub(crate) fn worker_of(source: IpAddr, port: u16) -> usize {
    let last = match source {
        IpAddr::V4(address) => address.octets()[3],
        IpAddr::V6(address) => address.octets()[15],
    };
    (usize::from(last) + usize::from(port)) % WORKERS
}
