//! The options that a reload can change, as one value.
//!
//! ```text
//! settings ─▶ options::live ─▶ LiveOptions ─▶ one ArcSwap ─▶ WorkerOptions, one for each worker
//! ```
//!
//! A reload replaces the whole value with one store. Each worker loads the current value at the
//! start of a turn, and its modules see nothing newer before the next turn. No request is therefore
//! handled with a mix of old and new options.

use std::sync::Arc;

use arc_swap::{ArcSwap, Cache};

use crate::admin::Token;
use crate::frontend::connection_id::ConnectionIds;
use crate::frontend::{http, ws};
use crate::limiter;
use crate::server::memory;
use crate::server::xdp::XdpOptions;
use crate::tracker;
use crate::worker::request_log::RequestLog;
use crate::worker::stream;

/// Every option that a reload can change.
pub(super) struct LiveOptions {
    pub(super) tracker: Arc<tracker::Options>,
    pub(super) connection_ids: Arc<ConnectionIds>,
    pub(super) limits: Arc<limiter::Options>,
    pub(super) http: Arc<http::Options>,
    pub(super) websocket: Arc<ws::Options>,
    pub(super) streams: Arc<stream::Options>,
    /// The log of requests that are not served, if it is on.
    pub(super) request_log: Option<Arc<RequestLog>>,
    pub(super) memory: memory::Options,
    /// Seconds between two snapshots; 0: none at intervals.
    pub(super) snapshot_interval_s: u32,
    /// How long to continue serving after a request to stop, in seconds.
    pub(super) drain_s: u32,
    /// The token of the API.
    pub(super) token: Token,
    pub(super) xdp: Arc<XdpOptions>,
}

/// The options of one worker in this turn. Its modules read them from the cells below, which only
/// this value writes to.
pub(super) struct WorkerOptions {
    latest: Cache<Arc<ArcSwap<LiveOptions>>, Arc<LiveOptions>>,
    current: Arc<LiveOptions>,
    pub(super) tracker: Arc<ArcSwap<tracker::Options>>,
    pub(super) connection_ids: Arc<ArcSwap<ConnectionIds>>,
    pub(super) limits: Arc<ArcSwap<limiter::Options>>,
    pub(super) http: Arc<ArcSwap<http::Options>>,
    pub(super) websocket: Arc<ArcSwap<ws::Options>>,
    pub(super) streams: Arc<ArcSwap<stream::Options>>,
}

impl WorkerOptions {
    /// Starts with the options in force.
    pub(super) fn new(live: Arc<ArcSwap<LiveOptions>>) -> Self {
        let current = live.load_full();
        Self {
            latest: Cache::new(live),
            tracker: cell(&current.tracker),
            connection_ids: cell(&current.connection_ids),
            limits: cell(&current.limits),
            http: cell(&current.http),
            websocket: cell(&current.websocket),
            streams: cell(&current.streams),
            current,
        }
    }

    /// Loads all options in force now. Must be called between two requests.
    #[inline]
    pub(super) fn begin_turn(&mut self) {
        let latest = self.latest.load();
        if !Arc::ptr_eq(latest, &self.current) {
            self.current = latest.clone();
            self.replace();
        }
    }

    /// The log of requests that are not served, if it is on.
    #[inline]
    pub(super) fn request_log(&self) -> Option<&RequestLog> {
        self.current.request_log.as_deref()
    }

    #[cold]
    fn replace(&self) {
        let Self { current, .. } = self;
        self.tracker.store(current.tracker.clone());
        self.connection_ids.store(current.connection_ids.clone());
        self.limits.store(current.limits.clone());
        self.http.store(current.http.clone());
        self.websocket.store(current.websocket.clone());
        self.streams.store(current.streams.clone());
    }
}

fn cell<T>(options: &Arc<T>) -> Arc<ArcSwap<T>> {
    Arc::new(ArcSwap::new(options.clone()))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;
    use crate::config::{Bytes, Config, MemoryCap};
    use crate::frontend::http::{HttpFrontend, ReceiveOutcome};
    use crate::frontend::origin::Origin;
    use crate::server::options;
    use crate::server::state_directory::LoadedKeys;
    use crate::store::{self, Store};
    use crate::time::Now;
    use crate::tracker::Tracker;

    const SECONDS: [u32; 2] = [600, 1200];

    /// Options of the tracker and of the HTTP front end that belong together: the interval, and a
    /// text that repeats it.
    fn options_with(interval_s: u32) -> Arc<LiveOptions> {
        let mut config = Config::default();
        config.memory.max_memory = MemoryCap::Bytes(Bytes(0));
        config.tracker.interval_s = interval_s;
        config.tracker.interval_jitter_s = 0;
        config.http.warning = interval_s.to_string();
        let (origin, warning) = (String::new(), None);
        let keys = LoadedKeys { active: [1; 32], staging: None, origin, made_up: true, warning };
        Arc::new(options::live(&config, &keys, Token::Absent))
    }

    /// A stream worker's front end, without its connections.
    struct Worker {
        options: WorkerOptions,
        tracker: Tracker,
        http: HttpFrontend,
        response: Vec<u8>,
    }

    impl Worker {
        fn new(live: &Arc<ArcSwap<LiveOptions>>) -> Self {
            let options = WorkerOptions::new(live.clone());
            let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
            let tracker = Tracker::without_upkeep(store, options.tracker.clone(), 1);
            let http = HttpFrontend::new(options.http.clone(), Arc::default());
            Self { options, tracker, http, response: Vec::new() }
        }

        /// The interval in the response to an announce, and the text that has to repeat it.
        fn announce(&mut self) -> (u32, u32) {
            const REQUEST: &str = "GET /announce?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=\
                 -XX0001-bbbbbbbbbbbb&port=6881&left=1&uploaded=0&downloaded=0&compact=1 \
                 HTTP/1.1\r\nHost: tracker\r\n\r\n";
            self.response.clear();
            let Self { tracker, http, response, .. } = self;
            let origin = Origin::Address(IpAddr::from([8, 8, 8, 8]));
            let now = Now::from_s(1_800_000_000);
            let flow = http.handle(tracker, now, origin, REQUEST.as_bytes(), response);
            assert!(matches!(flow, ReceiveOutcome::Responded { .. }));
            let text = String::from_utf8_lossy(&self.response);
            let number_after = |key: &str, mark: char| -> u32 {
                let (_, rest) = text.split_once(key).unwrap();
                let (_, number) = rest.split_once(mark).unwrap();
                let end = number.find(|digit: char| !digit.is_ascii_digit());
                number[..end.unwrap()].parse().unwrap()
            };
            (number_after("8:interval", 'i'), number_after("15:warning message", ':'))
        }
    }

    #[test]
    fn a_reload_in_the_middle_of_a_turn_waits_for_the_next() {
        let live = Arc::new(ArcSwap::new(options_with(600)));
        let mut worker = Worker::new(&live);
        worker.options.begin_turn();
        assert_eq!(worker.announce(), (600, 600));
        live.store(options_with(1200));
        assert_eq!(worker.announce(), (600, 600));
        worker.options.begin_turn();
        assert_eq!(worker.announce(), (1200, 1200));
    }

    #[test]
    fn no_request_sees_half_a_reload() {
        const SEEN_MIN: u32 = 2000;
        let versions = SECONDS.map(options_with);
        let live = Arc::new(ArcSwap::new(versions[0].clone()));
        let is_over = AtomicBool::new(false);
        let mut worker = Worker::new(&live);
        thread::scope(|scope| {
            scope.spawn(|| {
                for version in versions.iter().cycle() {
                    live.store(version.clone());
                    if is_over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let mut seen = [0; SECONDS.len()];
            while seen.iter().any(|count| *count < SEEN_MIN) {
                worker.options.begin_turn();
                let (interval_s, told_s) = worker.announce();
                if interval_s != told_s {
                    is_over.store(true, Ordering::Relaxed);
                }
                assert_eq!(interval_s, told_s);
                let version = SECONDS.iter().position(|seconds| *seconds == interval_s);
                seen[version.unwrap()] += 1;
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }
}
