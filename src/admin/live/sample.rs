//! The figures of one second: the process's metrics and their rates.

use std::borrow::Cow;
use std::sync::Arc;

use strum::{EnumCount, VariantArray};

use crate::frontend::stats::Stats;
use crate::types::{Action, Dropped, NETWORK_DENIED};

/// The protocol of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub(super) enum Protocol {
    /// BEP 15.
    Udp,
    /// BEP 3 and 23.
    Http,
    /// WebTorrent.
    Ws,
}

impl Protocol {
    /// Every protocol, in the order of tables.
    pub(super) const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The name on the page.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Http => "HTTP",
            Self::Ws => "WebSocket",
        }
    }

    /// The metrics' label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Http => "http",
            Self::Ws => "ws",
        }
    }
}

/// The metrics that the page shows, each with the labels that it needs. The process has all of
/// them.
pub const METRICS: [(&str, &[&str]); 22] = [
    ("skep_announce_interval_seconds", &[]),
    ("skep_announces_not_stored_total", &["reason"]),
    ("skep_connections", &["kind"]),
    ("skep_dropped_total", &["reason"]),
    ("skep_kernel_denied_sources", &[]),
    ("skep_limited_total", &["table", "action"]),
    ("skep_load_ratio", &[]),
    ("skep_memory_resident_bytes", &[]),
    ("skep_receive_bytes_total", &[]),
    ("skep_refused_total", &["reason"]),
    ("skep_rejected_total", &["reason"]),
    ("skep_responses_total", &["transport", "action"]),
    ("skep_snapshot_last_success_timestamp_seconds", &[]),
    ("skep_stats_viewers", &[]),
    ("skep_store_limit_bytes", &[]),
    ("skep_store_used_bytes", &[]),
    ("skep_stream_receive_bytes_total", &[]),
    ("skep_stream_transmit_bytes_total", &[]),
    ("skep_torrents_evicted_total", &[]),
    ("skep_transmit_bytes_total", &[]),
    ("skep_udp_socket_drops_total", &[]),
    ("skep_xdp_packets_total", &["verdict"]),
];

/// A metric's value and its rate.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricFlow {
    /// The metric's name.
    pub name: &'static str,
    /// Names and values of the labels.
    pub labels: Vec<(&'static str, Cow<'static, str>)>,
    /// The value.
    pub flow: Flow,
}

impl MetricFlow {
    /// A label's value.
    pub(super) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|label| label.0 == name).map_or("", |label| &label.1)
    }
}

/// A number and its rate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// The current value; of a count: since the start.
    pub total: f64,
    /// Growth per second since the previous sample.
    pub per_s: f64,
}

impl Flow {
    /// A number that was `before` and is `now`, `span_s` seconds later. A count that has fallen was
    /// reset, so all of it is new.
    pub fn between(before: f64, now: f64, span_s: f64) -> Self {
        let grown = if now < before { now } else { now - before };
        let per_s = if span_s > 0.0 { grown / span_s } else { 0.0 };
        Self { total: now, per_s }
    }
}

impl std::iter::Sum for Flow {
    fn sum<I: Iterator<Item = Self>>(flows: I) -> Self {
        flows.fold(Self::default(), |sum, flow| Self {
            total: sum.total + flow.total,
            per_s: sum.per_s + flow.per_s,
        })
    }
}

/// A worker's load.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerLoad {
    /// The name of its thread.
    pub name: String,
    /// Share of the time since the previous sample during which it used its CPU.
    pub busy_ratio: f64,
    /// Requests per second since the previous sample.
    pub requests_per_s: f64,
    /// Seconds since the last turn of its loop.
    pub silent_s: f64,
}

/// Everything the page shows, except the largest torrents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Seconds since the Unix epoch.
    pub at_s: f64,
    /// Seconds since the previous sample; 0 for the first.
    pub span_s: f64,
    /// Seconds since the process began to serve.
    pub uptime_s: u64,
    /// The name of this host; empty if it is unknown.
    pub host: Arc<str>,
    /// The state of the process: `serving`, `starting`, `restoring`, `stopping`.
    pub state: String,
    /// The I/O backend for datagrams.
    pub backend: &'static str,
    /// The process's metrics.
    pub flows: Vec<MetricFlow>,
    /// Torrents, peers and clients.
    pub store: Stats,
    /// Every worker.
    pub workers: Vec<WorkerLoad>,
    /// Whether sources are limited: `on`, `off`, `dry run`.
    pub limits: &'static str,
    /// Sources that were recently over the limit of verified work: a lower bound.
    pub limited_sources: u64,
    /// The access mode.
    pub access: &'static str,
}

impl Sample {
    /// The sum of a metric's values with these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> Flow {
        let is_asked = |known: &[&str]| labels.iter().all(|label| known.contains(&label.0));
        let is_known = METRICS.iter().any(|known| known.0 == name && is_asked(known.1));
        debug_assert!(is_known, "{name}{labels:?} is not in the list of metrics");
        let has_labels = |it: &&MetricFlow| labels.iter().all(|label| it.label(label.0) == label.1);
        self.of(name).filter(has_labels).map(|it| it.flow).sum()
    }

    /// The current value of a metric.
    pub(super) fn value(&self, name: &str) -> f64 {
        self.sum(name, &[]).total
    }

    /// All values of a metric.
    pub(super) fn of(&self, name: &str) -> impl Iterator<Item = &MetricFlow> {
        self.flows.iter().filter(move |it| it.name == name)
    }

    /// Requests of one kind with a response, over all protocols.
    pub(super) fn answered(&self, action: Action) -> Flow {
        self.sum("skep_responses_total", &[("action", action.label())])
    }

    /// Datagrams without a response for one reason.
    pub(super) fn dropped(&self, reason: &str) -> Flow {
        self.sum("skep_dropped_total", &[("reason", reason)])
    }

    /// The same, for all reasons with this cause.
    pub(super) fn silenced(&self, cause: Cause) -> Flow {
        match cause {
            Cause::Queue => self.sum("skep_udp_socket_drops_total", &[]),
            _ => cause.reasons().map(|it| self.dropped(it)).sum(),
        }
    }

    /// Requests that were refused or rejected.
    pub(super) fn errors(&self) -> Flow {
        ["skep_refused_total", "skep_rejected_total"].map(|it| self.sum(it, &[])).into_iter().sum()
    }

    /// Datagrams that XDP programs have judged: those that they answered or dropped, and all of
    /// them. `None` if no interface has, or had, such a program.
    pub(super) fn judged_by_xdp(&self) -> Option<[Flow; 2]> {
        let name = "skep_xdp_packets_total";
        self.of(name).next()?;
        let is_finished = |it: &&MetricFlow| {
            let verdict = it.label("verdict");
            !verdict.starts_with("passed_") && verdict != "redirected"
        };
        let finished = self.of(name).filter(is_finished).map(|it| it.flow).sum();
        Some([finished, self.sum(name, &[])])
    }

    /// The busy ratio of the busiest worker.
    pub(super) fn busiest_ratio(&self) -> f64 {
        self.workers.iter().map(|it| it.busy_ratio).fold(0.0, f64::max)
    }
}

/// Why a datagram has no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub(super) enum Cause {
    /// The kernel's receive queue was full.
    Queue,
    /// The source is over a limit, or denied.
    Limit,
    /// The worker was overloaded and dropped what matters least.
    Shed,
    /// Not a request, or a request without a valid connection id.
    Bad,
}

impl Cause {
    /// Every cause, in the order of tables and charts.
    pub(super) const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The name on the page.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Queue => "Receive queue full",
            Self::Limit => "Source over its limit, or denied",
            Self::Shed => "Shed under load",
            Self::Bad => "Not valid",
        }
    }

    /// The labels of the reasons with this cause.
    pub(super) fn reasons(self) -> impl Iterator<Item = &'static str> {
        let dropped = Dropped::ALL.into_iter().filter(move |it| cause_of(*it) == self);
        let by_xdp = (self == Self::Limit).then_some(NETWORK_DENIED);
        dropped.map(Dropped::label).chain(by_xdp)
    }
}

/// The cause of a reason.
pub(super) fn cause_of(reason: Dropped) -> Cause {
    match reason {
        Dropped::LimitedConnect | Dropped::Limited => Cause::Limit,
        Dropped::ShedScrape | Dropped::ShedConnect => Cause::Shed,
        Dropped::TooShort
        | Dropped::BadMagic
        | Dropped::UnknownAction
        | Dropped::ForgedId
        | Dropped::ExpiredId
        | Dropped::SourcePortZero
        | Dropped::Oversized => Cause::Bad,
    }
}

/// A count as a float, for rates and charts: exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "nothing is counted up to 2^53")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_came_over_the_time_it_took() {
        let found = Flow::between(100.0, 350.0, 2.0);
        assert_eq!(found, Flow { total: 350.0, per_s: 125.0 });
        assert_eq!(Flow::between(0.0, 0.0, 1.0), Flow::default());
    }

    #[test]
    fn a_count_that_began_anew_is_all_new_and_no_time_is_no_rate() {
        let found = Flow::between(float(u64::MAX - 1), 30.0, 1.5);
        assert_eq!(found, Flow { total: 30.0, per_s: 20.0 });
        assert_eq!(Flow::between(3.0, 30.0, 0.0), Flow { total: 30.0, per_s: 0.0 });
    }

    #[test]
    fn every_reason_for_silence_belongs_to_one_cause() {
        let flow = Flow { total: 1.0, per_s: 0.5 };
        let dropped = |reason: &'static str| MetricFlow {
            name: "skep_dropped_total",
            labels: vec![("family", "ipv4".into()), ("reason", reason.into())],
            flow,
        };
        let reasons = Dropped::ALL.map(Dropped::label).into_iter().chain([NETWORK_DENIED]);
        let mut flows: Vec<_> = reasons.map(dropped).collect();
        flows.push(MetricFlow { name: "skep_udp_socket_drops_total", labels: Vec::new(), flow });
        let sample = Sample { flows, ..Sample::default() };
        let totals = Cause::ALL.map(|it| sample.silenced(it).total);
        assert_eq!(totals, [1.0, 3.0, 2.0, 7.0]);
        let all: f64 = sample.flows.iter().map(|it| it.flow.total).sum();
        assert_eq!(all, totals.iter().sum::<f64>());
        assert_eq!(sample.sum("skep_udp_socket_drops_total", &[]), flow);
    }
}
