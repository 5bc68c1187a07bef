//! What is counted, as Prometheus reads it: sums of the workers' blocks put into `metrics` handles.
//!
//! The control thread updates the handles once a second and right before every scrape, so a scrape
//! is exact. Labels come from closed lists alone; a host with very many workers shares the last
//! worker label among the rest, so that the number of series stays bounded.

mod access;
mod heartbeats;
mod limits;
mod load;
mod snapshots;
mod streams;
mod viewers;

use std::fmt::Write as _;
use std::net::UdpSocket;
use std::sync::Arc;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

use crate::access_store::AccessManager;
use crate::admin::live::Board;
use crate::metrics::{DurationHistogram, IoEvent, StreamCounters, WorkerCounters};
use crate::server::log;
use crate::server::memory::Keeper;
use crate::server::snapshots::figures::Figures;
use crate::server::workers::Tallies;
use crate::store::{MemoryUsage, StoreTotals};
use crate::sys::socket::memory_of;
use crate::time::Now;
use crate::tracker::{Options, SourceAnomaly};
use crate::types::{Action, Dropped, Family, PeerKind, Refusal};
use access::AccessSeries;
use heartbeats::HeartbeatSeries;
use limits::LimitSeries;
use load::LoadSeries;
use snapshots::SnapshotSeries;
use streams::StreamSeries;
use viewers::ViewerSeries;

/// Workers with a label of their own: their up to seven series each, the rest of the list and the
/// process's own figures keep a scrape below 500 series.
const WORKER_LABELS_MAX: usize = 24;

/// Nanoseconds in a second.
const NS_PER_S: f64 = 1e9;

/// The histogram's name.
const HANDLING: &str = "skep_handling_duration_seconds";

/// The histogram's bounds, as powers of two in nanoseconds: 1 us to 134 ms.
const HANDLING_BOUNDS: std::ops::RangeInclusive<usize> = 10..=27;

/// A socket that is watched, and who serves it.
#[derive(Debug)]
pub(crate) struct WatchedSocket {
    /// The worker's number.
    pub(crate) worker: usize,
    /// The family of its clients.
    pub(crate) family: Family,
    /// A second handle on the worker's socket.
    pub(crate) socket: UdpSocket,
}

/// How datagrams are moved, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackendInfo {
    /// The backend's label.
    pub(crate) backend: &'static str,
    /// Why that one: `configured`, `probed`, or what keeps the better one from working.
    pub(crate) reason: &'static str,
}

/// Puts sums into handles and writes them out.
pub(crate) struct Exporter {
    recorder: PrometheusRecorder,
    handle: PrometheusHandle,
    process: metrics_process::Collector,
    workers: Vec<Arc<WorkerCounters>>,
    stream_workers: Vec<Arc<StreamCounters>>,
    heartbeats: HeartbeatSeries,
    families: [FamilySeries; Family::ALL.len()],
    io_events: [Counter; IoEvent::ALL.len()],
    store: StoreSeries,
    access: AccessSeries,
    busy: Vec<BusySeries>,
    sockets: Vec<SocketSeries>,
    streams: StreamSeries,
    limits: LimitSeries,
    load: LoadSeries,
    snapshots: SnapshotSeries,
    viewers: ViewerSeries,
    log_lines_lost: Counter,
}

impl Exporter {
    /// Registers every series of these workers and sockets.
    pub(crate) fn new(
        workers: Vec<Arc<WorkerCounters>>,
        streams: Vec<Arc<StreamCounters>>,
        sockets: Vec<WatchedSocket>,
        tallies: Vec<Tallies>,
        info: BackendInfo,
    ) -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let handle = recorder.handle();
        let process = metrics_process::Collector::default();
        let stream_workers = streams.clone();
        let register = || {
            describe();
            process.describe();
            let BackendInfo { backend, reason } = info;
            gauge!("skep_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
            gauge!("skep_io_backend_info", "backend" => backend, "reason" => reason).set(1);
            let io_event = |it: IoEvent| counter!("skep_io_events_total", "event" => it.label());
            (
                Family::ALL.map(FamilySeries::new),
                IoEvent::ALL.map(io_event),
                StoreSeries::new(),
                AccessSeries::new(),
                BusySeries::of(&workers),
                SocketSeries::of(sockets),
                StreamSeries::new(streams),
                LimitSeries::new(tallies),
                (LoadSeries::new(), SnapshotSeries::new(), HeartbeatSeries::new()),
                (ViewerSeries::new(), counter!("skep_log_lines_lost_total")),
            )
        };
        let series = metrics::with_local_recorder(&recorder, register);
        let (families, io_events, store, access, busy, sockets, streams, limits, rest, last) =
            series;
        let (load, snapshots, heartbeats) = rest;
        let (viewers, log_lines_lost) = last;
        Self {
            recorder,
            handle,
            process,
            workers,
            stream_workers,
            heartbeats,
            families,
            io_events,
            store,
            access,
            busy,
            sockets,
            streams,
            limits,
            load,
            snapshots,
            viewers,
            log_lines_lost,
        }
    }

    /// Brings every series up to date.
    pub(crate) fn update(&mut self, totals: &StoreTotals) {
        for (family, series) in Family::ALL.into_iter().zip(&self.families) {
            series.update(family, &self.workers);
        }
        for (event, counter) in IoEvent::ALL.into_iter().zip(&self.io_events) {
            counter.absolute(sum(&self.workers, |it| it.io_event(event).get()));
        }
        self.log_lines_lost.absolute(log::lost());
        self.store.update(totals);
        self.streams.update();
        self.limits.update();
        for sockets in &mut self.sockets {
            sockets.update();
        }
        metrics::with_local_recorder(&self.recorder, || self.process.collect());
    }

    /// Brings the ages of the workers' last turns up to date, in nanoseconds from the start.
    pub(crate) fn update_heartbeats(&self, now_ns: u64) {
        self.heartbeats.update(&self.workers, &self.stream_workers, now_ns);
    }

    /// Brings the series about memory up to date.
    pub(crate) fn update_memory(
        &self,
        usage: &MemoryUsage,
        memory: &Keeper,
        connection_bytes_max: u64,
    ) {
        self.store.update_usage(usage, memory);
        self.streams.update_memory(memory, connection_bytes_max);
    }

    /// Brings the series about access control up to date.
    pub(crate) fn update_access(&self, access_manager: &AccessManager) {
        self.access.update(access_manager);
    }

    /// Brings the series about snapshots up to date.
    pub(crate) fn update_snapshots(&self, figures: &Figures) {
        self.snapshots.update(figures);
    }

    /// Brings the series about the statistics page up to date.
    pub(crate) fn update_viewers(&self, board: &Board, closed: u64) {
        self.viewers.update(board, closed);
    }

    /// Once a second: what only makes sense over a stretch of time, and the library's own upkeep.
    /// Returns how many seconds have passed since, and the busy ratio of the busiest worker in
    /// them.
    pub(crate) fn tick(&mut self, now: Now) -> Option<(f64, f64)> {
        let stretches = self.busy.iter_mut().filter_map(|it| it.update(now));
        let busiest = stretches.max_by(|a, b| a.1.total_cmp(&b.1));
        self.handle.run_upkeep();
        busiest
    }

    /// The UDP sockets, with the family of their clients.
    pub(crate) fn sockets(&self) -> impl Iterator<Item = (Family, &UdpSocket)> {
        self.sockets.iter().flat_map(|it| it.sockets.iter().map(|socket| (it.label.1, &socket.0)))
    }

    /// Brings up to date how many sources the kernel denies.
    pub(crate) fn update_denied(&self, sources: usize) {
        self.limits.update_denied(sources);
    }

    /// Brings what the load is answered with up to date.
    pub(crate) fn update_load(
        &self,
        ratio: f64,
        options: &Options,
        anomaly: Option<SourceAnomaly>,
    ) {
        self.load.update(ratio, options, anomaly);
    }

    /// All series as text, in the same order each time.
    pub(crate) fn render(&self) -> String {
        let mut text = ordered(&self.handle.render());
        self.render_handling(&mut text);
        text
    }

    /// Datagrams that the kernel has dropped because a receive queue was full.
    pub(crate) fn socket_drops(&self) -> u64 {
        self.sockets.iter().map(|it| it.drops_total).sum()
    }

    /// Writes the histogram. The library's own keeps every sample until upkeep; the workers have
    /// sorted them into buckets already.
    fn render_handling(&self, text: &mut String) {
        let bucket = |index| sum(&self.workers, |it| it.handling.bucket(index).get());
        let _ = writeln!(text, "# HELP {HANDLING} {HANDLING_HELP}\n# TYPE {HANDLING} histogram");
        let mut below: u64 = (0..*HANDLING_BOUNDS.start()).map(bucket).sum();
        for index in HANDLING_BOUNDS {
            below += bucket(index);
            let bound_s = seconds(1 << index);
            let _ = writeln!(text, "{HANDLING}_bucket{{le=\"{bound_s}\"}} {below}");
        }
        let count = below
            + (HANDLING_BOUNDS.end() + 1..DurationHistogram::BUCKETS).map(bucket).sum::<u64>();
        let sum_s = seconds(sum(&self.workers, |it| it.handling.sum_ns.get()));
        let _ = writeln!(text, "{HANDLING}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{HANDLING}_sum {sum_s}\n{HANDLING}_count {count}");
    }
}

/// The library keeps families and series in hash maps, and writes them as they come: puts families
/// in the order of their names, and series in that of their labels, so that two scrapes can be
/// compared line by line. A family is its comments and its series, a line each, up to an empty line
/// (line breaks within labels and help are escaped).
fn ordered(text: &str) -> String {
    let families = text.split("\n\n").filter(|it| !it.is_empty());
    let mut families: Vec<Vec<&str>> = families.map(|it| it.lines().collect()).collect();
    for lines in &mut families {
        // `# HELP` stands before `# TYPE`, and a number sign before every letter.
        lines.sort_unstable();
    }
    // The name is the third word of either comment.
    families.sort_by_key(|lines| lines[0].split(' ').nth(2));
    let mut ordered = String::with_capacity(text.len() + families.len());
    for line in families.iter().flat_map(|lines| lines.iter().chain([&""])) {
        ordered.push_str(line);
        ordered.push('\n');
    }
    ordered
}

/// What can be asked for over UDP.
const ACTIONS: [Action; 3] = [Action::Connect, Action::Announce, Action::Scrape];

/// What is refused over UDP.
const REFUSALS: [Refusal; 9] = [
    Refusal::LowPort,
    Refusal::TorrentDenied,
    Refusal::NetworkDenied,
    Refusal::ClientDenied,
    Refusal::PortDenied,
    Refusal::Unregistered,
    Refusal::SimilarTorrent,
    Refusal::UnknownPasskey,
    Refusal::PasskeyLimit,
];

/// One family's series.
struct FamilySeries {
    requests: Counter,
    receive_bytes: Counter,
    transmit_bytes: Counter,
    responses: [Counter; ACTIONS.len()],
    refused: [Counter; REFUSALS.len()],
    dropped: [Counter; Dropped::ALL.len()],
}

impl FamilySeries {
    fn new(family: Family) -> Self {
        let labels = [("transport", "udp"), ("family", family.label())];
        let with = |key, value| [labels[0], labels[1], (key, value)];
        let response = |it: Action| counter!("skep_responses_total", &with("action", it.label()));
        let refused = |it: Refusal| counter!("skep_refused_total", &with("reason", it.label()));
        let dropped = |it: Dropped| counter!("skep_dropped_total", &with("reason", it.label()));
        Self {
            requests: counter!("skep_requests_total", &labels),
            receive_bytes: counter!("skep_receive_bytes_total", &labels),
            transmit_bytes: counter!("skep_transmit_bytes_total", &labels),
            responses: ACTIONS.map(response),
            refused: REFUSALS.map(refused),
            dropped: Dropped::ALL.map(dropped),
        }
    }

    /// The requests are the sum of their outcomes as just read, so that every scrape adds up while
    /// the workers go on counting.
    fn update(&self, family: Family, workers: &[Arc<WorkerCounters>]) {
        let total = |of: &dyn Fn(&WorkerCounters) -> u64| sum(workers, of);
        let mut requests = 0;
        let mut outcome = |counter: &Counter, total: u64| {
            counter.absolute(total);
            requests += total;
        };
        for (action, counter) in ACTIONS.into_iter().zip(&self.responses) {
            outcome(counter, total(&|it| it.datagrams(family).answered[action as usize].get()));
        }
        for (refusal, counter) in REFUSALS.into_iter().zip(&self.refused) {
            outcome(counter, total(&|it| it.datagrams(family).refused[refusal as usize].get()));
        }
        for (index, counter) in self.dropped.iter().enumerate() {
            outcome(counter, total(&|it| it.datagrams(family).dropped[index].get()));
        }
        self.requests.absolute(requests);
        self.receive_bytes.absolute(total(&|it| it.datagrams(family).received_bytes.get()));
        self.transmit_bytes.absolute(total(&|it| it.datagrams(family).sent_bytes.get()));
    }
}

/// The store's series.
struct StoreSeries {
    torrents: Gauge,
    active_torrents: Gauge,
    seeders: [Gauge; PeerKind::ALL.len()],
    leechers: [Gauge; PeerKind::ALL.len()],
    completed: Counter,
    used_bytes: Gauge,
    limit_bytes: Gauge,
    cap_bytes: Gauge,
    resident_bytes: Gauge,
    evicted: Counter,
}

impl StoreSeries {
    fn new() -> Self {
        let peers = |kind: PeerKind, state| {
            let labels = [("family", kind.label()), ("state", state)];
            gauge!("skep_peers", &labels)
        };
        Self {
            torrents: gauge!("skep_torrents"),
            active_torrents: gauge!("skep_active_torrents"),
            seeders: PeerKind::ALL.map(|it| peers(it, "seeder")),
            leechers: PeerKind::ALL.map(|it| peers(it, "leecher")),
            completed: counter!("skep_completed_total"),
            used_bytes: gauge!("skep_store_used_bytes"),
            limit_bytes: gauge!("skep_store_limit_bytes"),
            cap_bytes: gauge!("skep_memory_cap_bytes"),
            resident_bytes: gauge!("skep_memory_resident_bytes"),
            evicted: counter!("skep_torrents_evicted_total"),
        }
    }

    fn update_usage(&self, usage: &MemoryUsage, memory: &Keeper) {
        self.cap_bytes.set(float(memory.cap()));
        self.resident_bytes.set(float(memory.resident_bytes()));
        self.used_bytes.set(float(usage.bytes));
        self.limit_bytes.set(float(usage.bytes_max));
        self.evicted.absolute(usage.evicted);
    }

    fn update(&self, totals: &StoreTotals) {
        self.torrents.set(float(totals.torrents));
        self.active_torrents.set(float(totals.active_torrents));
        for kind in PeerKind::ALL {
            self.seeders[kind as usize].set(float(totals.seeders[kind as usize]));
            self.leechers[kind as usize].set(float(totals.leechers[kind as usize]));
        }
        self.completed.absolute(totals.completed);
    }
}

/// How busy the workers of one label are.
struct BusySeries {
    ratio: Gauge,
    workers: Vec<Arc<WorkerCounters>>,
    last: Option<(Now, u64)>,
}

impl BusySeries {
    fn of(workers: &[Arc<WorkerCounters>]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (number, worker) in workers.iter().enumerate() {
            match all.get_mut(WORKER_LABELS_MAX - 1) {
                Some(shared) => shared.workers.push(worker.clone()),
                None => all.push(Self {
                    ratio: gauge!("skep_worker_busy_ratio", "worker" => worker_label(number)),
                    workers: vec![worker.clone()],
                    last: None,
                }),
            }
        }
        all
    }

    /// Returns seconds since the last time, and the share of them that was worked.
    fn update(&mut self, now: Now) -> Option<(f64, f64)> {
        let busy_ns = sum(&self.workers, |it| it.busy_ns.get());
        let (at, before_ns) = self.last.replace((now, busy_ns)).filter(|it| now > it.0)?;
        let elapsed_ns = now.ns_since(at);
        let available_ns = float(elapsed_ns) * float(self.workers.len() as u64);
        let ratio = (float(busy_ns.saturating_sub(before_ns)) / available_ns).min(1.0);
        self.ratio.set(ratio);
        Some((seconds(elapsed_ns), ratio))
    }
}

/// The sockets of one worker label and family.
struct SocketSeries {
    label: (String, Family),
    drops: Counter,
    queue_bytes: Gauge,
    buffer_bytes: Gauge,
    /// Each with the drops that are counted or were before this process had it.
    sockets: Vec<(UdpSocket, u32)>,
    drops_total: u64,
}

impl SocketSeries {
    fn of(sockets: Vec<WatchedSocket>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for it in sockets {
            let label = (worker_label(it.worker), it.family);
            // One that was inherited has a past.
            let drops_seen = memory_of(&it.socket).map_or(0, |it| it.drops);
            let socket = (it.socket, drops_seen);
            match all.iter_mut().find(|series| series.label == label) {
                Some(series) => series.sockets.push(socket),
                None => all.push(Self::new(label, socket)),
            }
        }
        all
    }

    fn new(label: (String, Family), socket: (UdpSocket, u32)) -> Self {
        let labels = [("worker", label.0.clone()), ("family", label.1.label().into())];
        Self {
            drops: counter!("skep_udp_socket_drops_total", &labels),
            queue_bytes: gauge!("skep_udp_socket_queue_bytes", &labels),
            buffer_bytes: gauge!("skep_udp_socket_buffer_bytes", &labels),
            sockets: vec![socket],
            drops_total: 0,
            label,
        }
    }

    fn update(&mut self) {
        let (mut queue_bytes, mut buffer_bytes) = (0, 0);
        for (socket, drops_seen) in &mut self.sockets {
            let Ok(memory) = memory_of(&*socket) else { continue };
            // The kernel counts in 32 bits.
            self.drops_total += u64::from(memory.drops.wrapping_sub(*drops_seen));
            *drops_seen = memory.drops;
            queue_bytes += memory.queued_bytes;
            buffer_bytes += memory.limit_bytes;
        }
        self.drops.absolute(self.drops_total);
        self.queue_bytes.set(float(queue_bytes));
        self.buffer_bytes.set(float(buffer_bytes));
    }
}

/// A worker's label: its number, or the shared one.
fn worker_label(number: usize) -> String {
    let shared = WORKER_LABELS_MAX - 1;
    if number < shared { number.to_string() } else { format!("{shared}+") }
}

/// A figure summed over workers.
fn sum(workers: &[Arc<WorkerCounters>], of: impl Fn(&WorkerCounters) -> u64) -> u64 {
    workers.iter().map(|it| of(it)).sum()
}

/// A count as gauges hold it: exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "nothing is counted up to 2^53")]
fn float(count: u64) -> f64 {
    count as f64
}

/// Nanoseconds as seconds.
fn seconds(ns: u64) -> f64 {
    float(ns) / NS_PER_S
}

/// The histogram's HELP text.
const HANDLING_HELP: &str = "How long a batch of datagrams took from the reading of the clock \
    until all replies were queued, sampled from one turn in 64.";

/// Every series' HELP text.
fn describe() {
    const COUNTERS: [(&str, &str); 11] = [
        ("skep_log_lines_lost_total", "Lines of the log that were lost because nobody read them."),
        (
            "skep_requests_total",
            "Requests handled: exactly what was answered, refused, dropped and rejected together.",
        ),
        ("skep_responses_total", "Requests answered, by action."),
        ("skep_refused_total", "Well-formed requests answered with an error, by reason."),
        ("skep_dropped_total", "Datagrams met with silence, by reason."),
        ("skep_receive_bytes_total", "Payload bytes received."),
        ("skep_transmit_bytes_total", "Payload bytes of all answers."),
        (
            "skep_io_events_total",
            "What went wrong between kernel and worker and was survived, by event.",
        ),
        (
            "skep_udp_socket_drops_total",
            "Datagrams the kernel dropped because a receive queue was full.",
        ),
        ("skep_completed_total", "Downloads that completed, each address and port counted once."),
        ("skep_torrents_evicted_total", "Torrents without peers or on probation that made room."),
    ];
    const GAUGES: [(&str, &str); 12] = [
        ("skep_build_info", "Always 1; the label tells the version."),
        ("skep_io_backend_info", "Always 1; the labels tell the I/O backend and why that one."),
        ("skep_udp_socket_queue_bytes", "Bytes waiting in receive queues, with overhead."),
        ("skep_udp_socket_buffer_bytes", "Bytes receive queues may hold, with overhead."),
        ("skep_store_used_bytes", "Bytes that torrents and peers take, as asked of the allocator."),
        (
            "skep_store_limit_bytes",
            "Bytes that torrents and peers may take, by what was last measured; 0: no limit.",
        ),
        ("skep_memory_cap_bytes", "Resident memory that the process keeps to; 0: no cap."),
        (
            "skep_memory_resident_bytes",
            "Resident memory as last measured, which the store's limit goes by.",
        ),
        ("skep_torrents", "Torrents held, those with only a completed count included."),
        ("skep_active_torrents", "Torrents that have peers."),
        (
            "skep_peers",
            "Peers held, by kind (ipv4, ipv6, webrtc) and state: a seeder lacks nothing of its \
             torrent.",
        ),
        ("skep_worker_busy_ratio", "Share of the last second for which a worker used its CPU."),
    ];
    for (name, help) in COUNTERS {
        describe_counter!(name, help);
    }
    for (name, help) in GAUGES {
        describe_gauge!(name, help);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Answered;

    const INFO: BackendInfo = BackendInfo { backend: "mmsg", reason: "configured" };

    fn workers(count: usize) -> Vec<Arc<WorkerCounters>> {
        (0..count).map(|_| Arc::default()).collect()
    }

    fn value(text: &str, series: &str) -> f64 {
        let line = text.lines().find_map(|it| it.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).parse().unwrap()
    }

    #[test]
    fn blocks_of_all_workers_are_summed() {
        let workers = workers(3);
        for (n, worker) in (1..).zip(&workers) {
            for _ in 0..n {
                let answered = Answered { action: Action::Announce, bytes: 20, refusal: None };
                worker.count(Family::V6, 98, Ok(answered));
                worker.count(Family::V6, 3, Err(Dropped::TooShort));
            }
            worker.handling.record(2000);
        }
        let mut exporter = Exporter::new(workers, Vec::new(), Vec::new(), Vec::new(), INFO);
        let totals = StoreTotals { torrents: 7, completed: 2, ..StoreTotals::default() };
        exporter.update(&totals);
        exporter.update(&totals);
        let text = exporter.render();
        let udp6 = "transport=\"udp\",family=\"ipv6\"";
        assert_eq!(value(&text, &format!("skep_requests_total{{{udp6}}}")), 12.0);
        let announces = format!("skep_responses_total{{{udp6},action=\"announce\"}}");
        assert_eq!(value(&text, &announces), 6.0);
        let short = format!("skep_dropped_total{{{udp6},reason=\"too_short\"}}");
        assert_eq!(value(&text, &short), 6.0);
        assert_eq!(value(&text, &format!("skep_receive_bytes_total{{{udp6}}}")), 606.0);
        assert_eq!(value(&text, &format!("skep_transmit_bytes_total{{{udp6}}}")), 120.0);
        assert_eq!(
            (value(&text, "skep_torrents"), value(&text, "skep_completed_total")),
            (7.0, 2.0)
        );
        assert_eq!(value(&text, &format!("{HANDLING}_bucket{{le=\"0.000001024\"}}")), 0.0);
        assert_eq!(value(&text, &format!("{HANDLING}_bucket{{le=\"0.000002048\"}}")), 3.0);
        assert_eq!(value(&text, &format!("{HANDLING}_sum")), 0.000_006);
    }

    #[test]
    fn a_worker_is_as_busy_as_its_cpu_time_says() {
        let workers = workers(40);
        let mut exporter = Exporter::new(workers.clone(), Vec::new(), Vec::new(), Vec::new(), INFO);
        exporter.tick(Now::from_s(100));
        workers[1].busy_ns.add(500_000_000);
        workers[31].busy_ns.add(850_000_000);
        exporter.tick(Now::from_s(101));
        let text = exporter.render();
        assert_eq!(value(&text, "skep_worker_busy_ratio{worker=\"0\"}"), 0.0);
        assert_eq!(value(&text, "skep_worker_busy_ratio{worker=\"1\"}"), 0.5);
        assert_eq!(value(&text, "skep_worker_busy_ratio{worker=\"23+\"}"), 0.05);
    }

    #[test]
    fn the_age_of_workers_is_that_of_the_longest_ago_turn() {
        let workers = workers(40);
        for (worker, at_ns) in workers.iter().zip(1_u64..) {
            worker.elapsed_ns.add(at_ns * 100_000_000);
        }
        let streams = vec![Arc::new(StreamCounters::default())];
        let exporter = Exporter::new(workers, streams, Vec::new(), Vec::new(), INFO);
        exporter.update_heartbeats(4_000_000_000);
        let text = exporter.render();
        let age = |transport| {
            let series = "skep_worker_last_turn_age_seconds";
            value(&text, &format!("{series}{{transport=\"{transport}\"}}"))
        };
        assert_eq!((age("udp"), age("tcp")), (3.9, 4.0));
    }

    #[test]
    fn what_the_kernel_dropped_before_a_socket_was_inherited_is_not_new() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let dropped = || memory_of(&socket).unwrap().drops;
        let overflow = || {
            let before = dropped();
            while dropped() == before {
                sender.send_to(&[0; 1024], address).unwrap();
            }
        };
        overflow();
        let family = Family::V4;
        let watched = WatchedSocket { worker: 0, family, socket: socket.try_clone().unwrap() };
        let mut exporter = Exporter::new(workers(1), Vec::new(), vec![watched], Vec::new(), INFO);
        exporter.update(&StoreTotals::default());
        assert_eq!(exporter.socket_drops(), 0);
        let before = dropped();
        overflow();
        exporter.update(&StoreTotals::default());
        assert_eq!(exporter.socket_drops(), u64::from(dropped() - before));
    }

    #[test]
    fn families_and_series_are_in_order_and_complete() {
        let exporter = || {
            let mut it = Exporter::new(workers(3), Vec::new(), Vec::new(), Vec::new(), INFO);
            it.update(&StoreTotals::default());
            it
        };
        let names = |text: &str| -> Vec<String> {
            text.lines().map(|it| it.rsplit_once(' ').map_or("", |it| it.0).to_owned()).collect()
        };
        let first = exporter();
        let text = first.render();
        // Hash maps of two exporters are not of the same order, nor those of two renderings.
        assert_eq!(names(&text), names(&exporter().render()));
        assert_eq!(names(&text), names(&first.render()));
        let types = |it: &str| {
            let types = it.lines().filter_map(|it| it.strip_prefix("# TYPE "));
            types.map(str::to_owned).collect::<Vec<_>>()
        };
        assert!(types(&text).len() > 50, "{text}");
        assert!(types(&ordered(&first.handle.render())).is_sorted(), "{text}");
        let lines = |it: &str| {
            let mut lines = names(it);
            lines.sort();
            lines
        };
        let unordered = first.handle.render();
        assert_eq!(lines(&ordered(&unordered)), lines(&unordered), "nothing is lost");
        assert_eq!(ordered(""), "");
    }

    #[test]
    fn series_stay_bounded_on_the_largest_hosts() {
        let workers = workers(200);
        let socket = |worker, family| WatchedSocket {
            worker,
            family,
            socket: UdpSocket::bind("127.0.0.1:0").unwrap(),
        };
        let sockets = (0..200).flat_map(|n| Family::ALL.map(|family| socket(n, family))).collect();
        let streams = (0..200).map(|_| Arc::default()).collect();
        let mut exporter = Exporter::new(workers, streams, sockets, Vec::new(), INFO);
        exporter.update(&StoreTotals::default());
        exporter.update_heartbeats(1);
        exporter.tick(Now::from_s(1));
        exporter.tick(Now::from_s(2));
        let text = exporter.render();
        let series = text.lines().filter(|it| !it.starts_with('#') && !it.is_empty()).count();
        assert!((200..=500).contains(&series), "{series}");
    }
}
