//! Values for the statistics pages: a reading, growth in the last second, and the state of each
//! worker.
//!
//! Costs the workers nothing: they count for the metrics anyway.

use std::sync::Arc;

use super::series::{Reading, SeriesValue, float, seconds};
use super::sources::MetricInputs;
use crate::access::mode::Mode;
use crate::admin::live::{Flow, MetricFlow, Sample, WorkerLoad};
use crate::frontend::stats::Stats;
use crate::time::Now;
use crate::types::{Family, PeerKind, Transport};

/// Makes a sequence of samples.
#[derive(Default)]
pub(super) struct Statistics {
    host: Arc<str>,
    before: Option<Before>,
}

/// The reading of the previous sample.
struct Before {
    at: Now,
    reading: Reading,
    workers: Vec<Worker>,
}

impl Statistics {
    /// Makes samples of this host.
    pub(super) fn of_host() -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self { host: host.trim().into(), before: None }
    }

    /// Makes the sample of a reading.
    pub(super) fn sample(
        &mut self,
        sources: &MetricInputs,
        reading: Reading,
        state: String,
        clients: Vec<(String, String, u64)>,
    ) -> Sample {
        let (context, now) = (&sources.context, sources.now);
        let elapsed_ns = context.clock.elapsed_ns_at(now);
        let workers = workers(sources);
        let before = self.before.as_ref();
        let span_s = before.map_or(0.0, |before| seconds(now.ns_since(before.at)));
        let limits = context.options.load().limits.clone();
        let offenders =
            if limits.enabled { context.limiter.heavy_hitters(now, 1).len() } else { 0 };
        let load = |(at, worker): (usize, &Worker)| {
            worker.load(before.map(|before| &before.workers[at]), span_s, elapsed_ns)
        };
        let sample = Sample {
            at_s: seconds(now.ns()),
            span_s,
            uptime_s: elapsed_ns / 1_000_000_000,
            host: self.host.clone(),
            state,
            backend: sources.info.backend,
            flows: flows(&reading, before.map(|before| &before.reading), span_s),
            store: stats_of(&reading, clients),
            workers: workers.iter().enumerate().map(load).collect(),
            limits: match (limits.enabled, limits.dry_run) {
                (false, _) => "no",
                (true, true) => "counted only (dry run)",
                (true, false) => "yes",
            },
            limited_sources: offenders as u64,
            access: match context.access_manager.access().mode() {
                Mode::Open => "any torrent",
                Mode::Registered => "registered torrents",
                Mode::Private => "registered torrents, by passkey",
            },
        };
        self.before = Some(Before { at: now, reading, workers });
        sample
    }
}

/// The totals of the store, as in `/stats.json`.
pub(crate) fn stats_of(reading: &Reading, clients: Vec<(String, String, u64)>) -> Stats {
    let peers = |state| {
        let of = |kind: PeerKind| [("family", kind.label()), ("state", state)];
        PeerKind::ALL.map(|kind| reading.sum("skep_peers", &of(kind)))
    };
    Stats {
        torrents: reading.sum("skep_torrents", &[]),
        active_torrents: reading.sum("skep_active_torrents", &[]),
        seeders: peers("seeder"),
        leechers: peers("leecher"),
        completed: reading.sum("skep_completed_total", &[]),
        clients,
    }
}

/// Each value, and its growth per second since the previous reading, if there is one.
fn flows(reading: &Reading, before: Option<&Reading>, span_s: f64) -> Vec<MetricFlow> {
    let flow = |(at, value): (usize, &SeriesValue)| {
        let now = value.number.real();
        // All readings of a process have the same series in the same order.
        let before = before.and_then(|reading| reading.values.get(at));
        let before = before.map_or(now, |value| value.number.real());
        MetricFlow {
            name: value.series.name,
            labels: value.labels().collect(),
            flow: Flow::between(before, now, span_s),
        }
    };
    reading.values.iter().enumerate().map(flow).collect()
}

/// The work of each worker, and when its latest turn was.
fn workers(sources: &MetricInputs) -> Vec<Worker> {
    let datagram = sources.workers.iter().enumerate().map(|(number, worker)| Worker {
        name: format!("udp-{number}"),
        busy_ns: worker.busy_ns.get(),
        requests: Family::ALL.map(|family| worker.datagrams(family).received.get()).iter().sum(),
        elapsed_ns: worker.elapsed_ns.get(),
    });
    let stream = sources.streams.iter().enumerate().map(|(number, worker)| {
        let of = |by| Family::ALL.map(|family| worker.requests(by, family).received.get());
        Worker {
            name: format!("tcp-{number}"),
            busy_ns: worker.busy_ns.get(),
            requests: Transport::ALL.map(of).iter().flatten().sum(),
            elapsed_ns: worker.elapsed_ns.get(),
        }
    });
    datagram.chain(stream).collect()
}

/// The work of a worker since the start.
struct Worker {
    name: String,
    busy_ns: u64,
    requests: u64,
    /// Nanoseconds from the start to its latest turn.
    elapsed_ns: u64,
}

impl Worker {
    /// Its current load, compared with its state some seconds ago.
    fn load(&self, before: Option<&Self>, span_s: f64, now_ns: u64) -> WorkerLoad {
        let before = before.unwrap_or(self);
        let per_s = |of: fn(&Self) -> f64| Flow::between(of(before), of(self), span_s).per_s;
        WorkerLoad {
            name: self.name.clone(),
            busy_ratio: per_s(|worker| seconds(worker.busy_ns)).min(1.0),
            requests_per_s: per_s(|worker| float(worker.requests)),
            silent_s: seconds(now_ns.saturating_sub(self.elapsed_ns)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::SERIES;
    use super::*;
    use crate::types::{Action, DatagramResponse, Dropped, NotStored, Refusal};

    /// The total flow of the values with these labels.
    fn flow_of(flows: &[MetricFlow], name: &str, labels: &[(&str, &str)]) -> Flow {
        let has = |metric: &MetricFlow, label: &(&str, &str)| {
            metric.labels.iter().any(|own| own.0 == label.0 && own.1 == label.1)
        };
        let is_it = |it: &&MetricFlow| it.name == name && labels.iter().all(|label| has(it, label));
        flows.iter().filter(is_it).map(|it| it.flow).sum()
    }

    #[test]
    fn counts_of_all_workers_and_families_are_summed_and_become_rates() {
        let mut sources = MetricInputs::of_a_test(2, 2, vec![0]);
        let answered = DatagramResponse::served(Action::Announce, 20);
        sources.sockets[0].drops = 5;
        sources.workers[0].count(Family::V4, 98, Ok(answered));
        let before = Reading::of(SERIES, &sources);
        sources.sockets[0].drops = 9;
        let [one, two] = [&sources.workers[0], &sources.workers[1]];
        two.count(Family::V4, 98, Ok(answered));
        two.count(Family::V6, 98, Ok(answered));
        two.count(Family::V6, 3, Err(Dropped::TooShort));
        let refused = DatagramResponse { refusal: Some(Refusal::LowPort), ..answered };
        one.count(Family::V6, 98, Ok(refused));
        let http = sources.streams[1].requests(Transport::Http, Family::V6);
        http.answered[Action::Announce as usize].add(8);
        http.refused[Refusal::LowPort as usize].add(3);
        sources.tallies(1).not_stored.of(NotStored::Memory).add(6);
        let flows = flows(&Reading::of(SERIES, &sources), Some(&before), 2.0);
        let responses = "skep_responses_total";
        for (name, labels, total, per_s) in [
            (responses, [("transport", "udp"), ("action", "announce")].as_slice(), 3.0, 1.0),
            (responses, &[("transport", "http"), ("action", "announce")], 8.0, 4.0),
            (responses, &[("transport", "ws"), ("action", "announce")], 0.0, 0.0),
            ("skep_dropped_total", &[("reason", "too_short")], 1.0, 0.5),
            ("skep_refused_total", &[("reason", "low_port")], 4.0, 2.0),
            ("skep_announces_not_stored_total", &[("reason", "memory")], 6.0, 3.0),
            ("skep_udp_socket_drops_total", &[], 9.0, 2.0),
            ("skep_receive_bytes_total", &[], 98.0 * 4.0 + 3.0, 148.5),
        ] {
            assert_eq!(flow_of(&flows, name, labels), Flow { total, per_s }, "{name}{labels:?}");
        }
    }

    #[test]
    fn the_first_sample_has_totals_and_no_rates() {
        let mut sources = MetricInputs::of_a_test(1, 0, vec![0]);
        sources.workers[0].count(Family::V4, 3, Err(Dropped::TooShort));
        sources.sockets[0].drops = 7;
        let flows = flows(&Reading::of(SERIES, &sources), None, 0.0);
        let drops = flow_of(&flows, "skep_udp_socket_drops_total", &[]);
        assert_eq!(drops, Flow { total: 7.0, per_s: 0.0 });
        assert!(flows.iter().all(|it| it.flow.per_s == 0.0));
    }

    #[test]
    fn a_sample_shows_what_has_changed_since_the_one_before() {
        let mut sources = MetricInputs::of_a_test(1, 1, Vec::new());
        let mut statistics = Statistics::default();
        let mut sample = |sources: &MetricInputs| {
            let reading = Reading::of(SERIES, sources);
            statistics.sample(sources, reading, "serving".into(), Vec::new())
        };
        assert_eq!(sample(&sources).span_s, 0.0);
        sources.now = sources.now.plus_s(2);
        sources.totals.torrents = 3;
        sources.totals.seeders = [1, 2, 4];
        sources.workers[0].count(Family::V4, 3, Err(Dropped::TooShort));
        let second = sample(&sources);
        assert_eq!((second.span_s, second.store.torrents), (2.0, 3));
        assert_eq!(second.store.seeders, [1, 2, 4]);
        assert_eq!(
            second.workers.iter().map(|it| &*it.name).collect::<Vec<_>>(),
            ["udp-0", "tcp-0"]
        );
        assert_eq!(second.workers[0].requests_per_s, 0.5);
        let dropped = flow_of(&second.flows, "skep_dropped_total", &[]);
        assert_eq!(dropped, Flow { total: 1.0, per_s: 0.5 });
    }

    #[test]
    fn a_worker_is_as_busy_as_its_cpu_time_says() {
        let worker =
            |busy_ns, requests| Worker { name: "udp-0".into(), busy_ns, requests, elapsed_ns: 4 };
        let now = worker(900_000_000, 50);
        let load = now.load(Some(&worker(400_000_000, 10)), 2.0, 1_000_000_004);
        let expected = WorkerLoad {
            name: "udp-0".into(),
            busy_ratio: 0.25,
            requests_per_s: 20.0,
            silent_s: 1.0,
        };
        assert_eq!(load, expected);
        assert_eq!(now.load(None, 0.0, 0).busy_ratio, 0.0);
    }
}
