//! Everything that metrics are read from: the workers' counters, shared state, and the state
//! between two readings.

use std::net::UdpSocket;
use std::sync::Arc;

use super::series::{float, seconds};
use crate::admin::live::StatsHub;
use crate::cluster::ClusterView;
use crate::counters::{DatagramCounters, RequestCounters, StreamCounters, WorkerCounters};
use crate::server::context::AppContext;
use crate::server::control::admin_connections::AdminConnections;
use crate::server::workers::Tallies;
use crate::server::xdp::XdpReading;
use crate::store::{MemoryUsage, StoreTotals};
use crate::sys::socket::memory_of;
use crate::sys::xdp::offload::{OffloadCount, OffloadVerdict};
use crate::time::Now;
use crate::types::{Dropped, Family, Transport};

/// Workers with a label of their own. With up to seven series each, the other series and the
/// process's own, a scrape stays below 500 series.
const WORKER_LABELS_MAX: usize = 14;

/// A socket that is measured, and the worker that serves it.
#[derive(Debug)]
pub(crate) struct WatchedSocket {
    /// The worker's index.
    pub(crate) worker: usize,
    /// The family of its clients.
    pub(crate) family: Family,
    /// A second handle on the worker's socket.
    pub(crate) socket: UdpSocket,
}

/// The I/O backend for datagrams, and the reason for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackendInfo {
    /// The backend's label.
    pub(crate) backend: &'static str,
    /// The reason: `configured`, `probed`, or what prevents the better backend.
    pub(crate) reason: &'static str,
}

pub(crate) struct MetricInputs {
    pub(crate) context: AppContext,
    pub(crate) workers: Vec<Arc<WorkerCounters>>,
    pub(crate) streams: Vec<Arc<StreamCounters>>,
    pub(super) info: BackendInfo,
    pub(crate) board: Arc<StatsHub>,
    pub(crate) admin_connections: Arc<AdminConnections>,
    /// Sources whose datagrams the kernel drops.
    pub(crate) denied: usize,
    pub(super) busy: Vec<BusyWorkers>,
    pub(super) sockets: Vec<WorkerSockets>,
    pub(super) now: Now,
    pub(super) totals: StoreTotals,
    pub(super) usage: MemoryUsage,
    pub(super) xdp: XdpReading,
    /// Empty while this node is alone.
    pub(super) cluster: Option<Arc<ClusterView>>,
    tallies: Vec<Tallies>,
}

impl MetricInputs {
    pub(crate) fn new(
        context: AppContext,
        (workers, streams): (Vec<Arc<WorkerCounters>>, Vec<Arc<StreamCounters>>),
        tallies: Vec<Tallies>,
        sockets: Vec<WatchedSocket>,
        info: BackendInfo,
    ) -> Self {
        Self {
            now: context.clock.now(),
            context,
            busy: BusyWorkers::of(&workers),
            workers,
            streams,
            info,
            board: Arc::default(),
            admin_connections: Arc::default(),
            denied: 0,
            sockets: WorkerSockets::of(sockets),
            totals: StoreTotals::default(),
            usage: MemoryUsage::default(),
            xdp: XdpReading::default(),
            cluster: None,
            tallies,
        }
    }

    /// Measures what has to be read together: the moment, the store's totals, the sockets.
    pub(super) fn measure(&mut self, now: Now) {
        self.now = now;
        self.totals = self.context.store.totals();
        self.usage = self.context.store.usage();
        self.sockets.iter_mut().for_each(WorkerSockets::measure);
        self.xdp = self.context.xdp.read();
        self.cluster = self.context.cluster.view();
    }

    /// Measures how busy the workers were since the last call. Returns the seconds since then, and
    /// the busy ratio of the busiest worker in them.
    pub(super) fn tick(&mut self, now: Now) -> Option<(f64, f64)> {
        let stretches = self.busy.iter_mut().filter_map(|workers| workers.tick(now));
        stretches.max_by(|a, b| a.1.total_cmp(&b.1))
    }

    /// The UDP sockets, with the family of their clients.
    pub(crate) fn udp_sockets(&self) -> impl Iterator<Item = (Family, &UdpSocket)> {
        self.sockets.iter().flat_map(|group| group.sockets.iter().map(|it| (group.family, &it.0)))
    }

    /// A count summed over the datagram workers.
    pub(super) fn worker_sum(&self, of: impl Fn(&WorkerCounters) -> u64) -> u64 {
        self.workers.iter().map(|worker| of(worker)).sum()
    }

    /// A count of one family's datagrams.
    pub(super) fn datagrams(&self, of: Family, count: impl Fn(&DatagramCounters) -> u64) -> u64 {
        self.worker_sum(|worker| count(worker.datagrams(of)))
    }

    /// What the XDP programs have answered, for a family.
    pub(super) fn answered_by_xdp(&self, family: Family) -> OffloadCount {
        let verdicts = [OffloadVerdict::Answered, OffloadVerdict::AnsweredOverLimit];
        verdicts.iter().map(|it| self.xdp.total.of(*it, family)).sum()
    }

    /// What the XDP programs have dropped for a reason, for a family.
    pub(super) fn dropped_by_xdp(&self, family: Family, reason: Dropped) -> OffloadCount {
        let verdict = match reason {
            Dropped::ForgedId => OffloadVerdict::ForgedId,
            Dropped::ExpiredId => OffloadVerdict::ExpiredId,
            Dropped::LimitedConnect => OffloadVerdict::LimitedConnect,
            _ => return OffloadCount::default(),
        };
        self.xdp.total.of(verdict, family)
    }

    /// What the XDP programs have dropped because of its source, for a family.
    pub(super) fn denied_by_xdp(&self, family: Family) -> OffloadCount {
        self.xdp.total.of(OffloadVerdict::NetworkDenied, family)
    }

    /// What the XDP programs have answered or dropped, for a family: what no socket received.
    pub(super) fn finished_by_xdp(&self, family: Family) -> OffloadCount {
        let dropped = Dropped::ALL.iter().map(|it| self.dropped_by_xdp(family, *it));
        dropped.chain([self.answered_by_xdp(family), self.denied_by_xdp(family)]).sum()
    }

    /// A count summed over the stream workers.
    pub(super) fn stream_sum(&self, of: impl Fn(&StreamCounters) -> u64) -> u64 {
        self.streams.iter().map(|worker| of(worker)).sum()
    }

    /// A count of one family's requests over one transport.
    pub(super) fn requests(
        &self,
        (transport, family): (Transport, Family),
        count: impl Fn(&RequestCounters) -> u64,
    ) -> u64 {
        self.stream_sum(|worker| count(worker.requests(transport, family)))
    }

    /// A count of the tracker's rules, summed over all workers.
    pub(super) fn tally_sum(&self, of: impl Fn(&Tallies) -> u64) -> u64 {
        self.tallies.iter().map(of).sum()
    }

    /// Seconds since the latest turn of the worker whose latest turn is oldest.
    pub(super) fn age_s(&self, latest_turns_ns: impl Iterator<Item = u64>) -> f64 {
        let now_ns = self.context.clock.elapsed_ns_at(self.now);
        latest_turns_ns.min().map_or(0.0, |at_ns| seconds(now_ns.saturating_sub(at_ns)))
    }
}

/// How busy the workers of one label are.
pub(super) struct BusyWorkers {
    pub(super) label: String,
    /// The busy ratio of the last period.
    pub(super) ratio: f64,
    workers: Vec<Arc<WorkerCounters>>,
    last: Option<(Now, u64)>,
}

impl BusyWorkers {
    fn of(workers: &[Arc<WorkerCounters>]) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for (number, worker) in workers.iter().enumerate() {
            match all.get_mut(WORKER_LABELS_MAX - 1) {
                Some(shared) => shared.workers.push(worker.clone()),
                None => all.push(Self {
                    label: worker_label(number),
                    ratio: 0.0,
                    workers: vec![worker.clone()],
                    last: None,
                }),
            }
        }
        all
    }

    /// Returns the seconds since the last call, and the fraction of them in which the workers were
    /// busy.
    fn tick(&mut self, now: Now) -> Option<(f64, f64)> {
        let busy_ns = self.workers.iter().map(|worker| worker.busy_ns.get()).sum();
        let (at, before_ns) = self.last.replace((now, busy_ns)).filter(|last| now > last.0)?;
        let elapsed_ns = now.ns_since(at);
        let available_ns = float(elapsed_ns) * float(self.workers.len() as u64);
        self.ratio = (float(busy_ns.saturating_sub(before_ns)) / available_ns).min(1.0);
        Some((seconds(elapsed_ns), self.ratio))
    }
}

/// The sockets of one worker label and family.
pub(super) struct WorkerSockets {
    pub(super) worker: String,
    pub(super) family: Family,
    /// Datagrams that the kernel dropped because the receive queue was full.
    pub(super) drops: u64,
    pub(super) queue_bytes: u64,
    pub(super) buffer_bytes: u64,
    /// Each socket with the drops that are counted already, or happened before this process had it.
    sockets: Vec<(UdpSocket, u32)>,
}

impl WorkerSockets {
    fn of(sockets: Vec<WatchedSocket>) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for WatchedSocket { worker, family, socket } in sockets {
            let worker = worker_label(worker);
            // An inherited socket has earlier drops.
            let drops_seen = memory_of(&socket).map_or(0, |memory| memory.drops);
            let is_same = |group: &&mut Self| group.worker == worker && group.family == family;
            match all.iter_mut().find(is_same) {
                Some(group) => group.sockets.push((socket, drops_seen)),
                None => all.push(Self {
                    worker,
                    family,
                    drops: 0,
                    queue_bytes: 0,
                    buffer_bytes: 0,
                    sockets: vec![(socket, drops_seen)],
                }),
            }
        }
        all
    }

    fn measure(&mut self) {
        (self.queue_bytes, self.buffer_bytes) = (0, 0);
        for (socket, drops_seen) in &mut self.sockets {
            let Ok(memory) = memory_of(&*socket) else { continue };
            // The kernel's counter has 32 bits.
            self.drops += u64::from(memory.drops.wrapping_sub(*drops_seen));
            *drops_seen = memory.drops;
            self.queue_bytes += memory.queued_bytes;
            self.buffer_bytes += memory.limit_bytes;
        }
    }

    pub(super) fn labels(&self) -> [String; 2] {
        [self.worker.clone(), self.family.label().to_owned()]
    }
}

/// A worker's label: its index, or the shared label.
fn worker_label(number: usize) -> String {
    let shared = WORKER_LABELS_MAX - 1;
    if number < shared { number.to_string() } else { format!("{shared}+") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::XDP_INTERFACES_MAX;
    use crate::server::xdp::InterfaceReading;
    use crate::sys::xdp::kernel::AttachMode;
    use crate::sys::xdp::offload::OffloadCounts;
    use crate::sys::xdp::socket::XskMode;

    impl MetricInputs {
        /// The inputs of a test, with `workers` workers. Each worker in the list has one socket per
        /// family.
        pub(in crate::server::metrics) fn of_a_test(
            workers: usize,
            streams: usize,
            sockets: Vec<usize>,
        ) -> Self {
            let blocks = (
                (0..workers).map(|_| Arc::default()).collect(),
                (0..streams).map(|_| Arc::default()).collect(),
            );
            let watched = |worker| {
                Family::ALL.map(|family| WatchedSocket {
                    worker,
                    family,
                    socket: UdpSocket::bind("127.0.0.1:0").unwrap(),
                })
            };
            let sockets = sockets.into_iter().flat_map(watched).collect();
            let tallies = vec![Tallies::default(), Tallies::default()];
            let info = BackendInfo { backend: "mmsg", reason: "configured" };
            Self::new(AppContext::of_a_test(), blocks, tallies, sockets, info)
        }

        /// As many interfaces with an XDP program as there can be.
        pub(in crate::server::metrics) fn use_xdp(&mut self) {
            let interface = |number| InterfaceReading {
                name: format!("eth{number}"),
                is_wanted: true,
                mode: Some(if number == 0 { AttachMode::Native } else { AttachMode::Generic }),
                queues_lacking: 0,
                sockets: Some(if number == 0 { XskMode::ZeroCopy } else { XskMode::Copy }),
                counts: OffloadCounts::default(),
            };
            self.xdp.interfaces = (0..XDP_INTERFACES_MAX).map(interface).collect();
        }

        /// A cluster, of which nothing is known yet.
        pub(in crate::server::metrics) fn use_cluster(&mut self) {
            let cluster = "skep".to_owned();
            self.cluster = Some(Arc::new(ClusterView { cluster, ..ClusterView::default() }));
        }

        /// The counts of a worker's rules.
        pub(in crate::server::metrics) fn tallies(&self, worker: usize) -> &Tallies {
            &self.tallies[worker]
        }
    }

    #[test]
    fn a_worker_is_as_busy_as_its_cpu_time_says() {
        let mut sources = MetricInputs::of_a_test(38, 0, Vec::new());
        assert_eq!(sources.tick(Now::from_s(100)), None);
        sources.workers[1].busy_ns.add(500_000_000);
        sources.workers[31].busy_ns.add(850_000_000);
        sources.workers[32].busy_ns.add(400_000_000);
        assert_eq!(sources.tick(Now::from_s(101)), Some((1.0, 0.5)));
        let ratio = |label| sources.busy.iter().find(|it| it.label == label).unwrap().ratio;
        assert_eq!(["0", "1", "13+"].map(ratio), [0.0, 0.5, 0.05]);
    }

    #[test]
    fn the_age_of_workers_is_that_of_the_longest_ago_turn() {
        let mut sources = MetricInputs::of_a_test(0, 0, Vec::new());
        sources.now = sources.now.plus_s(4);
        let elapsed_ns = sources.context.clock.elapsed_ns_at(sources.now);
        let turns_ns = (1..=40).map(|number| elapsed_ns - 4_000_000_000 + number * 100_000_000);
        assert_eq!(sources.age_s(turns_ns), 3.9);
        assert_eq!(sources.age_s(std::iter::empty()), 0.0, "no worker is late");
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
        let socket = socket.try_clone().unwrap();
        let mut groups =
            WorkerSockets::of(vec![WatchedSocket { worker: 0, family: Family::V4, socket }]);
        groups[0].measure();
        assert_eq!(groups[0].drops, 0);
        let before = dropped();
        overflow();
        groups[0].measure();
        assert_eq!(groups[0].drops, u64::from(dropped() - before));
        assert!(groups[0].queue_bytes > 0 && groups[0].buffer_bytes > 0);
    }
}
