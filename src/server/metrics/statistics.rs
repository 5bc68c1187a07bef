//! The statistics page's figures, once a second: what the workers count, and how fast it grew.
//!
//! A sample costs the control thread a walk over about a hundred counts of each worker and one read
//! of `/proc/self/status`; while somebody looks, also the estimate of clients and one text of some
//! 10 KB. Workers notice nothing of it: they count for the metrics anyway.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use crate::access::mode::Mode;
use crate::admin::live::{Board, Flow, Memory, Protocol, Sample, Subject, WorkerLoad};
use crate::frontend::stats::Stats;
use crate::limiter::{LimitAction, LimitTable};
use crate::metrics::{StreamCounters, WorkerCounters};
use crate::server::context::AppContext;
use crate::server::workers::Tallies;
use crate::time::Now;
use crate::types::{Action, Dropped, Family, NotStored, Refusal, Rejected, Transport};

/// Nanoseconds in a second.
const NS_PER_S: f64 = 1e9;

/// Takes samples and puts them up.
pub(crate) struct Statistics {
    pub(crate) board: Arc<Board>,
    pub(crate) counters: Counters,
    before: Mutex<Option<Before>>,
}

/// Everything that is counted.
pub(crate) struct Counters {
    pub(crate) workers: Vec<Arc<WorkerCounters>>,
    pub(crate) streams: Vec<Arc<StreamCounters>>,
    pub(crate) tallies: Vec<Tallies>,
    /// How datagrams are moved.
    pub(crate) backend: &'static str,
}

/// What was counted when the sample before was taken.
struct Before {
    at: Now,
    counts: Vec<u64>,
    /// Of each worker: CPU time in nanoseconds, and requests.
    workers: Vec<(u64, u64)>,
}

/// What others have found out for this second.
pub(crate) struct Found {
    /// Datagrams that the kernel has dropped so far.
    pub(crate) socket_drops: u64,
    /// Sources that the kernel denies.
    pub(crate) denied: usize,
    /// What the process is doing.
    pub(crate) state: String,
    /// Torrents and peers; clients only while somebody looks.
    pub(crate) store: Stats,
}

impl Statistics {
    pub(crate) fn new(counters: Counters) -> Self {
        Self { board: Arc::default(), counters, before: Mutex::default() }
    }

    /// Puts up what is true now.
    pub(crate) fn show(&self, now: Now, context: &AppContext, found: Found) {
        let counts = self.counters.read(found.socket_drops);
        let workers = self.counters.workers();
        let elapsed_ns = context.clock.elapsed_ns_at(now);
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let span_s = before.as_ref().map_or(0.0, |it| seconds(now.ns_since(it.at)));
        let flows = flows(&counts, before.as_ref().map(|it| &*it.counts), span_s);
        let loads = (workers.iter().enumerate()).map(|(at, worker)| {
            worker.load(before.as_ref().map(|it| it.workers[at]), span_s, elapsed_ns)
        });
        let loads = loads.collect();
        *before = Some(Before {
            at: now,
            counts: counts.into_iter().map(|it| it.1).collect(),
            workers: workers.iter().map(|it| (it.busy_ns, it.requests)).collect(),
        });
        drop(before);
        let ratio = context.load.ratio();
        let (interval_s, limits) =
            (interval_s(context, ratio), context.options.load().limits.clone());
        let last_success_s = context.snapshots.figures.last_success_s.load(Ordering::Relaxed);
        let offenders =
            if limits.enabled { context.limiter.heavy_hitters(now, 1).len() } else { 0 };
        self.board.show(Sample {
            at_s: seconds(now.ns()),
            span_s,
            uptime_s: elapsed_ns / 1_000_000_000,
            state: found.state,
            version: env!("CARGO_PKG_VERSION"),
            backend: self.counters.backend,
            flows,
            store: found.store,
            memory: memory(context),
            workers: loads,
            limits: match (limits.enabled, limits.dry_run) {
                (false, _) => "no",
                (true, true) => "counted only (dry run)",
                (true, false) => "yes",
            },
            limited_sources: offenders as u64,
            denied_sources: found.denied as u64,
            access: match context.access_manager.access().mode() {
                Mode::Open => "any torrent",
                Mode::Registered => "registered torrents",
                Mode::Private => "registered torrents, by passkey",
            },
            load_ratio: ratio,
            interval_s,
            snapshot_age_s: (last_success_s > 0)
                .then(|| now.seconds().saturating_sub(last_success_s)),
            connections: self.counters.connections(),
            viewers: self.board.viewers() as u64,
        });
    }
}

impl Counters {
    /// Every count, in the same order each time.
    fn read(&self, socket_drops: u64) -> Vec<(Subject, u64)> {
        let mut counts = Vec::with_capacity(96);
        self.read_answers(&mut counts);
        for it in Refusal::ALL {
            let udp = self.datagrams(|of, family| of.datagrams(family).refused[it as usize].get());
            counts.push((
                Subject::Refused(it),
                udp + self.over_tcp(|of| of.refused[it as usize].get()),
            ));
        }
        for it in Dropped::ALL {
            let count =
                self.datagrams(|of, family| of.datagrams(family).dropped[it as usize].get());
            counts.push((Subject::Dropped(it), count));
        }
        for it in Rejected::ALL {
            let count = self.over_tcp(|of| of.rejected[it as usize].get());
            counts.push((Subject::Rejected(it), count));
        }
        for it in NotStored::ALL {
            let count = self.tallies.iter().map(|of| of.not_stored.of(it).get()).sum();
            counts.push((Subject::NotStored(it), count));
        }
        for table in LimitTable::ALL {
            let count =
                |action| self.tallies.iter().map(|of| of.limits.of(table, action).get()).sum();
            counts.push((Subject::Limited(table.label()), count(LimitAction::Limited)));
            counts.push((Subject::Slipped(table.label()), count(LimitAction::Slipped)));
        }
        counts.push((Subject::QueueFull, socket_drops));
        self.read_bytes(&mut counts);
        counts
    }

    fn read_answers(&self, counts: &mut Vec<(Subject, u64)>) {
        for it in Action::ALL {
            let udp = self.datagrams(|of, family| of.datagrams(family).answered[it as usize].get());
            counts.push((Subject::Answered(Protocol::Udp, it), udp));
            for (protocol, transport) in
                [(Protocol::Http, Transport::Http), (Protocol::Ws, Transport::Ws)]
            {
                let count = |of: &StreamCounters| {
                    let of = |family| of.requests(transport, family).answered[it as usize].get();
                    Family::ALL.map(of).iter().sum::<u64>()
                };
                let count = self.streams.iter().map(|of| count(of)).sum();
                counts.push((Subject::Answered(protocol, it), count));
            }
        }
    }

    fn read_bytes(&self, counts: &mut Vec<(Subject, u64)>) {
        let over_tcp = |of: &dyn Fn(&StreamCounters, Transport) -> u64| {
            let each = |it: &Arc<StreamCounters>| Transport::ALL.map(|by| of(it, by));
            self.streams.iter().flat_map(each).sum::<u64>()
        };
        let received = self.datagrams(|of, family| of.datagrams(family).received_bytes.get());
        let received = received + over_tcp(&|of, by| of.received_bytes(by).get());
        let sent = self.datagrams(|of, family| of.datagrams(family).sent_bytes.get());
        let sent = sent + over_tcp(&|of, by| of.sent_bytes(by).get());
        counts.extend([(Subject::ReceivedBytes, received), (Subject::SentBytes, sent)]);
    }

    /// A count over all datagram workers and families.
    fn datagrams(&self, of: impl Fn(&WorkerCounters, Family) -> u64) -> u64 {
        self.workers.iter().flat_map(|it| Family::ALL.map(|family| of(it, family))).sum()
    }

    /// A count over all stream workers, transports and families.
    fn over_tcp(&self, of: impl Fn(&crate::metrics::RequestCounters) -> u64) -> u64 {
        let each = |it: &Arc<StreamCounters>| {
            let by = |by| Family::ALL.map(|family| of(it.requests(by, family))).iter().sum::<u64>();
            Transport::ALL.map(by)
        };
        self.streams.iter().flat_map(each).sum()
    }

    /// What each worker has done, and when it went round.
    fn workers(&self) -> Vec<Worker> {
        let datagram = self.workers.iter().enumerate().map(|(number, it)| Worker {
            name: format!("udp-{number}"),
            busy_ns: it.busy_ns.get(),
            requests: Family::ALL.map(|family| it.datagrams(family).received.get()).iter().sum(),
            elapsed_ns: it.elapsed_ns.get(),
        });
        let stream = self.streams.iter().enumerate().map(|(number, it)| {
            let of = |by| Family::ALL.map(|family| it.requests(by, family).received.get());
            Worker {
                name: format!("tcp-{number}"),
                busy_ns: it.busy_ns.get(),
                requests: Transport::ALL.map(of).iter().flatten().sum(),
                elapsed_ns: it.elapsed_ns.get(),
            }
        });
        datagram.chain(stream).collect()
    }

    /// Connections that are open, HTTP and WebSocket.
    fn connections(&self) -> [u64; 2] {
        Transport::ALL.map(|by| self.streams.iter().map(|it| it.open(by).get()).sum())
    }
}

/// What a worker has done since the start.
struct Worker {
    name: String,
    busy_ns: u64,
    requests: u64,
    /// Nanoseconds from the start to its latest turn.
    elapsed_ns: u64,
}

impl Worker {
    /// What it does now, from what it had done some seconds ago.
    fn load(&self, before: Option<(u64, u64)>, span_s: f64, now_ns: u64) -> WorkerLoad {
        let (busy_ns, requests) = before.unwrap_or((self.busy_ns, self.requests));
        WorkerLoad {
            name: self.name.clone(),
            busy_ratio: (Flow::between(busy_ns, self.busy_ns, span_s).per_s / NS_PER_S).min(1.0),
            requests_per_s: Flow::between(requests, self.requests, span_s).per_s,
            silent_s: seconds(now_ns.saturating_sub(self.elapsed_ns)),
        }
    }
}

/// How fast counts grew. Without a sample before there is no telling.
fn flows(counts: &[(Subject, u64)], before: Option<&[u64]>, span_s: f64) -> Vec<(Subject, Flow)> {
    let flow = |(at, &(subject, now)): (usize, &(Subject, u64))| {
        let before = before.and_then(|it| it.get(at)).copied().unwrap_or(now);
        (subject, Flow::between(before, now, span_s))
    };
    counts.iter().enumerate().map(flow).collect()
}

fn memory(context: &AppContext) -> Memory {
    let usage = context.store.usage();
    Memory {
        store_bytes: usage.bytes,
        store_bytes_max: usage.bytes_max,
        evicted: usage.evicted,
        resident_bytes: resident_bytes(),
    }
}

/// Bytes of this process that are in memory, as the kernel tells (proc_pid_status(5)).
fn resident_bytes() -> Option<u64> {
    resident_bytes_of(&std::fs::read_to_string("/proc/self/status").ok()?)
}

fn resident_bytes_of(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|it| it.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What clients of small swarms are told to wait, on average.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a ratio of a number of 32 bits"
)]
fn interval_s(context: &AppContext, load_ratio: f64) -> u64 {
    let options = &context.options.load().tracker;
    let more_s = f64::from(options.interval_s_max.saturating_sub(options.interval_s));
    u64::from(options.interval_s) + (more_s * load_ratio) as u64
}

/// Nanoseconds as seconds.
#[expect(clippy::cast_precision_loss, reason = "a page shows milliseconds")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / NS_PER_S
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Answered;

    fn counters() -> Counters {
        Counters {
            workers: (0..2).map(|_| Arc::default()).collect(),
            streams: (0..2).map(|_| Arc::default()).collect(),
            tallies: vec![Tallies::default(), Tallies::default()],
            backend: "mmsg",
        }
    }

    fn flow_of(flows: &[(Subject, Flow)], subject: Subject) -> Flow {
        let mut found = flows.iter().filter(|it| it.0 == subject);
        let flow = found.next().unwrap_or_else(|| panic!("no {subject:?}")).1;
        assert!(found.next().is_none(), "{subject:?} twice");
        flow
    }

    #[test]
    fn counts_of_all_workers_and_families_are_summed_and_become_rates() {
        let counters = counters();
        let answered = Answered { action: Action::Announce, bytes: 20, refusal: None };
        let [one, two] = [&counters.workers[0], &counters.workers[1]];
        one.count(Family::V4, 98, Ok(answered));
        let before: Vec<_> = counters.read(5).into_iter().map(|it| it.1).collect();
        two.count(Family::V4, 98, Ok(answered));
        two.count(Family::V6, 98, Ok(answered));
        two.count(Family::V6, 3, Err(Dropped::TooShort));
        let refused = Answered { refusal: Some(Refusal::LowPort), ..answered };
        one.count(Family::V6, 98, Ok(refused));
        let http = counters.streams[1].requests(Transport::Http, Family::V6);
        http.answered[Action::Announce as usize].add(8);
        http.refused[Refusal::LowPort as usize].add(3);
        counters.tallies[1].not_stored.of(NotStored::Memory).add(6);
        let flows = flows(&counters.read(9), Some(&before), 2.0);
        for (subject, total, per_s) in [
            (Subject::Answered(Protocol::Udp, Action::Announce), 3, 1.0),
            (Subject::Answered(Protocol::Http, Action::Announce), 8, 4.0),
            (Subject::Answered(Protocol::Ws, Action::Announce), 0, 0.0),
            (Subject::Dropped(Dropped::TooShort), 1, 0.5),
            (Subject::Refused(Refusal::LowPort), 4, 2.0),
            (Subject::NotStored(NotStored::Memory), 6, 3.0),
            (Subject::QueueFull, 9, 2.0),
            (Subject::ReceivedBytes, 98 * 4 + 3, 148.5),
        ] {
            assert_eq!(flow_of(&flows, subject), Flow { total, per_s }, "{subject:?}");
        }
    }

    #[test]
    fn the_first_sample_has_totals_and_no_rates() {
        let counters = counters();
        counters.workers[0].count(Family::V4, 3, Err(Dropped::TooShort));
        let flows = flows(&counters.read(7), None, 0.0);
        assert_eq!(flow_of(&flows, Subject::QueueFull), Flow { total: 7, per_s: 0.0 });
        assert!(flows.iter().all(|it| it.1.per_s == 0.0));
    }

    #[test]
    fn a_worker_is_as_busy_as_its_cpu_time_says() {
        let worker =
            Worker { name: "udp-0".into(), busy_ns: 900_000_000, requests: 50, elapsed_ns: 4 };
        let load = worker.load(Some((400_000_000, 10)), 2.0, 1_000_000_004);
        let expected = WorkerLoad {
            name: "udp-0".into(),
            busy_ratio: 0.25,
            requests_per_s: 20.0,
            silent_s: 1.0,
        };
        assert_eq!(load, expected);
        assert_eq!(worker.load(None, 0.0, 0).busy_ratio, 0.0);
    }

    #[test]
    fn resident_memory_is_read_from_the_kernels_words() {
        assert_eq!(resident_bytes_of("VmPeak:\t 9 kB\nVmRSS:\t    1234 kB\nx"), Some(1234 * 1024));
        assert_eq!(resident_bytes_of("VmRSS: many kB"), None);
        assert_eq!(resident_bytes_of(""), None);
        assert!(resident_bytes().is_some_and(|it| it > 1 << 20));
    }
}
