//! The state of the running process: values and checks for the admin pages, and the work that is
//! due once a second.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tracing::warn;

use crate::access_store::{AccessError, AccessManager};
use crate::admin::live::StatsHub;
use crate::admin::{Process, Token};
use crate::counters::{StreamCounters, WorkerCounters};
use crate::frontend::stats::{Pages, PublicHead, Stats};
use crate::server::context::AppContext;
use crate::server::control::admin_connections::AdminConnections;
use crate::server::control::kernel_filter::KernelFilter;
use crate::server::control::proxy_watch::ProxyWatch;
use crate::server::log::OPERATOR;
use crate::server::metrics::sources::MetricInputs;
use crate::server::metrics::{Metrics, statistics};
use crate::server::snapshots::{STALLED_AGAIN_MIN, STALLED_MAX, has_ended};
use crate::time::Now;
use crate::tracker::{Listing, SourceAnomaly};
use crate::types::{Family, Transport};

/// Nanoseconds without a turn after which a worker counts as stuck. It waits 50 ms at most.
const HEARTBEAT_NS_MAX: u64 = 5_000_000_000;

/// Seconds between two warnings of hidden client addresses.
const ODDITY_EVERY_S: u64 = 600;

/// State that the admin pages show.
pub(crate) struct ProcessState {
    pub(crate) context: AppContext,
    workers: Vec<Arc<WorkerCounters>>,
    streams: Vec<Arc<StreamCounters>>,
    metrics: Mutex<Metrics>,
    pub(crate) started: AtomicBool,
    pub(crate) stopping: AtomicBool,
    /// Notified by the API, or by a signal that arrived before it could be handled.
    pub(crate) asked_to_stop: Notify,
    /// When the last warning about hidden client addresses was logged.
    warned_of_sources: Mutex<Option<Now>>,
    proxy_watch: Mutex<ProxyWatch>,
    kernel_filter: Mutex<KernelFilter>,
    /// Datagrams that the kernel had dropped one second ago.
    drops_before: AtomicU64,
    board: Arc<StatsHub>,
    /// Connections to the admin listener.
    pub(crate) admin_connections: Arc<AdminConnections>,
}

impl ProcessState {
    pub(crate) fn new(context: AppContext, metrics: Metrics) -> Self {
        let watch = ProxyWatch::new(&context.options.load().http.trusted_proxies);
        let MetricInputs { workers, streams, board, admin_connections, .. } = &metrics.sources;
        Self {
            context,
            workers: workers.clone(),
            streams: streams.clone(),
            board: board.clone(),
            admin_connections: admin_connections.clone(),
            metrics: Mutex::new(metrics),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            asked_to_stop: Notify::new(),
            warned_of_sources: Mutex::new(None),
            proxy_watch: Mutex::new(watch),
            kernel_filter: Mutex::new(KernelFilter::new()),
            drops_before: AtomicU64::new(0),
        }
    }

    /// Updates the public statistics pages, if there are any.
    pub(crate) fn renew_pages(&self) {
        if self.has_public_stats() {
            self.store_pages(&self.stats());
        }
    }

    fn store_pages(&self, stats: &Stats) {
        let head = PublicHead {
            name: self.context.options.load().http.public_name.clone(),
            uptime_s: self.context.clock.elapsed_ns_at(self.now()) / 1_000_000_000,
        };
        self.context.pages.store(Arc::new(Pages::of(&head, stats, self.board.day_line())));
    }

    fn has_public_stats(&self) -> bool {
        self.context.options.load().http.public_stats
    }

    /// Estimated peers by client: name, version, number of peers.
    fn clients(&self) -> Vec<(String, String, u64)> {
        self.context.clients.estimate(self.now(), &self.context.store.totals())
    }

    fn lock_metrics(&self) -> MutexGuard<'_, Metrics> {
        self.metrics.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The totals of the store in a few words.
    pub(crate) fn in_short(&self) -> String {
        let totals = self.context.store.totals();
        let peers: u64 = totals.seeders.iter().chain(&totals.leechers).sum();
        format!("serving: {} torrents, {peers} peers", totals.torrents)
    }

    /// How long to continue serving after a request to stop.
    pub(crate) fn drain(&self) -> Duration {
        Duration::from_secs(self.context.options.load().drain_s.into())
    }

    pub(crate) fn tick_and_renew(&self) {
        let now = self.now();
        let mut metrics = self.lock_metrics();
        if let Some((elapsed_s, busy_ratio)) = metrics.tick(now) {
            self.context.load.observe(elapsed_s, busy_ratio);
        }
        self.warn_of(self.context.source_monitor.anomaly(now), now);
        self.watch_proxies(now);
        let denied = self.deny_offenders(&mut metrics.sources, now);
        let reading = metrics.read(now);
        self.warn_of_drops(reading.sum("skep_udp_socket_drops_total", &[]), denied);
        // The estimate takes time, so it is made once, and only if it is shown.
        let is_public = self.has_public_stats();
        let is_shown = is_public || self.board.viewers() > 0;
        let clients = if is_shown { self.clients() } else { Vec::new() };
        let stats = is_public.then(|| statistics::stats_of(&reading, clients.clone()));
        let state = self.ready().err().unwrap_or_else(|| "serving".into());
        metrics.show(reading, state, clients);
        // After the sample was published, so that the line of the day ends in the same figures.
        if let Some(stats) = stats {
            self.store_pages(&stats);
        }
    }

    /// Ends the open statistics pages, as no more samples follow.
    pub(crate) fn close_board(&self) {
        self.board.close();
    }

    /// Waits for a request to stop, from the API or from a signal during the start.
    pub(crate) async fn is_asked_to_stop(&self) {
        self.asked_to_stop.notified().await;
    }

    /// The moment `time` from now.
    pub(crate) fn now_and(&self, time: Duration) -> Now {
        self.now().plus_s(time.as_secs())
    }

    /// Saves the totals of passkeys and the statistics page's history. What cannot be saved is
    /// logged, and kept for the next attempt.
    pub(crate) fn flush(&self) {
        let _ = self.write_down();
        self.context.history.save(&self.board);
    }

    /// Puts the statistics page's last 24 hours, as an earlier run has kept them, before what this
    /// run has. Blocks.
    pub(crate) fn restore_history(&self) {
        self.context.history.restore(&self.board);
    }

    /// Saves everything for the last time. Blocks, but not on a disk that hangs.
    pub(crate) fn write_last(self: &Arc<Self>) {
        let (state, begun) = (self.clone(), self.now());
        let flushing = std::thread::Builder::new().name("flush".into());
        match flushing.spawn(move || state.flush()) {
            Ok(thread) if !has_ended(&thread, &AtomicU64::new(0), STALLED_MAX) => {
                let after_s = STALLED_MAX.as_secs();
                warn!(
                    target: OPERATOR,
                    after_s,
                    "totals of passkeys and statistics not saved: the disk does not respond"
                );
            }
            Ok(_) => {}
            Err(_) => self.flush(), // no thread can be started
        }
        let took = Duration::from_nanos(self.now().ns_since(begun));
        self.context.snapshots.stop(STALLED_MAX.saturating_sub(took).max(STALLED_AGAIN_MIN));
    }

    /// Takes the last snapshot. Blocks.
    pub(crate) fn save_last(&self) {
        self.context.snapshots.stop(STALLED_MAX);
    }

    fn write_down(&self) -> Result<(), AccessError> {
        let age_s_max = self.context.options.load().tracker.peer_age_s_max;
        self.context.access_manager.flush(self.context.clock.now(), age_s_max)
    }

    /// Warns about datagrams that the kernel has dropped since the last call.
    fn warn_of_drops(&self, drops: u64, denied: usize) {
        let before = self.drops_before.swap(drops, Ordering::Relaxed);
        // The kernel counts datagrams that its filter drops as well.
        if drops > before && denied == 0 {
            let remedy = "raise server.workers (with more cores) or udp.receive_buffer";
            warn!(
                drops = drops - before,
                remedy, "datagrams dropped in about a second: receive queue full"
            );
        }
    }

    /// Denies the worst heavy hitters in the kernel, if that is configured. Returns how many are
    /// denied, or were until now.
    fn deny_offenders(&self, sources: &mut MetricInputs, now: Now) -> usize {
        let limits = self.context.options.load().limits.clone();
        let rate = limits.kernel_deny_rate;
        let is_wanted = rate > 0 && limits.enabled && !limits.dry_run;
        let offenders =
            if is_wanted { self.context.limiter.heavy_hitters(now, rate) } else { Vec::new() };
        let mut kernel_filter = self.kernel_filter.lock().unwrap_or_else(PoisonError::into_inner);
        let before = kernel_filter.denied();
        kernel_filter.tick(now, &offenders, sources.udp_sockets());
        sources.denied = kernel_filter.denied();
        self.context.xdp.set_offenders(kernel_filter.sources());
        kernel_filter.denied().max(before)
    }

    /// Warns about reverse proxies that are not listed.
    fn watch_proxies(&self, now: Now) {
        let over_http = |worker: &Arc<StreamCounters>| {
            let requests =
                Family::ALL.map(|it| worker.requests(Transport::Http, it).received.get());
            requests.iter().sum::<u64>() + worker.upgrades.get()
        };
        let requests = self.streams.iter().map(over_http).sum();
        let listed = &self.context.options.load().http.trusted_proxies;
        let mut watch = self.proxy_watch.lock().unwrap_or_else(PoisonError::into_inner);
        watch.tick(now, &self.context.unlisted_proxies, requests, listed);
    }

    /// Warns about hidden client addresses, at most every ten minutes.
    fn warn_of(&self, anomaly: Option<SourceAnomaly>, now: Now) {
        let Some(anomaly) = anomaly else { return };
        let mut warned = self.warned_of_sources.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_some_and(|it| now < it.plus_s(ODDITY_EVERY_S)) {
            return;
        }
        *warned = Some(now);
        let found = match anomaly {
            SourceAnomaly::SingleAddress(address, share) => {
                format!("{:.0} % of all announces come from {address}", share * 100.0)
            }
            SourceAnomaly::Unroutable(share) => {
                format!("{:.0} % of all announces come from private addresses", share * 100.0)
            }
        };
        warn!(
            target: OPERATOR,
            found,
            remedy = "hostNetwork or externalTrafficPolicy: Local for a Kubernetes service, host \
                      networking for a container, http.trusted_proxies for a reverse proxy",
            "client addresses hidden, peers handed out cannot be reached"
        );
    }
}

impl Process for ProcessState {
    fn metrics(&self) -> String {
        self.lock_metrics().render(self.now())
    }

    fn live(&self) -> Result<(), String> {
        let now_ns = self.context.clock.elapsed_ns_at(self.context.clock.now());
        going_round("udp", self.workers.iter().map(|it| it.elapsed_ns.get()), now_ns)?;
        going_round("tcp", self.streams.iter().map(|it| it.elapsed_ns.get()), now_ns)
    }

    fn ready(&self) -> Result<(), String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err("stopping".into());
        }
        if self.context.snapshots.is_restoring() {
            return Err("restoring".into());
        }
        self.context.cluster.ready()?;
        self.started()
    }

    fn started(&self) -> Result<(), String> {
        if self.started.load(Ordering::Relaxed) { Ok(()) } else { Err("starting".into()) }
    }

    fn stats(&self) -> Stats {
        let reading = self.lock_metrics().read(self.now());
        statistics::stats_of(&reading, self.clients())
    }

    fn board(&self) -> Arc<StatsHub> {
        self.board.clone()
    }

    fn listing(&self) -> Listing {
        Listing::new(self.context.store.clone())
    }

    fn access_manager(&self) -> Arc<AccessManager> {
        self.context.access_manager.clone()
    }

    fn now(&self) -> Now {
        self.context.clock.now()
    }

    fn token(&self) -> Token {
        self.context.options.load().token.clone()
    }

    fn save(&self) -> Result<(), AccessError> {
        // Do both, even if one of them fails.
        let written = self.write_down();
        let saved = self.context.snapshots.save();
        saved.map_err(|error| AccessError::Snapshot(error.to_string())).and(written)
    }

    fn shut_down(&self) {
        self.asked_to_stop.notify_one();
    }
}

/// Whether every worker of a kind has made a turn recently.
fn going_round(
    kind: &str,
    latest_ns: impl Iterator<Item = u64>,
    now_ns: u64,
) -> Result<(), String> {
    for (number, latest_ns) in latest_ns.enumerate() {
        let silent_ns = now_ns.saturating_sub(latest_ns);
        if silent_ns > HEARTBEAT_NS_MAX {
            let silent_ms = silent_ns / 1_000_000;
            return Err(format!("worker {kind}-{number} has made no turn for {silent_ms} ms"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_without_a_turn_for_five_seconds_is_stuck() {
        let latest_ns = [6_000_000_000, 2_000_000_000];
        assert_eq!(going_round("udp", latest_ns.into_iter(), 7_000_000_000), Ok(()));
        let said = going_round("udp", latest_ns.into_iter(), 7_001_000_000).unwrap_err();
        assert_eq!(said, "worker udp-1 has made no turn for 5001 ms");
    }
}
