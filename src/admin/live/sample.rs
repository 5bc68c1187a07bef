//! The figures of one second: what the process counts, and how fast that grows.

use crate::frontend::stats::Stats;
use crate::types::{Action, Dropped, NotStored, Refusal, Rejected};

/// What requests come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// BEP 15.
    Udp,
    /// BEP 3 and 23.
    Http,
    /// WebTorrent's.
    Ws,
}

impl Protocol {
    /// Every protocol, in the order of tables.
    pub const ALL: [Self; 3] = [Self::Udp, Self::Http, Self::Ws];

    /// What people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Udp => "UDP",
            Self::Http => "HTTP",
            Self::Ws => "WebSocket",
        }
    }
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Requests given what they asked for.
    Answered(Protocol, Action),
    /// Requests refused in words.
    Refused(Refusal),
    /// Datagrams met with silence.
    Dropped(Dropped),
    /// Requests over TCP met with an error.
    Rejected(Rejected),
    /// Announces that were answered though their peer was not stored.
    NotStored(NotStored),
    /// Datagrams that the kernel dropped because a receive queue was full.
    QueueFull,
    /// Requests over a limit of their source, by the limit's label: those held back.
    Limited(&'static str),
    /// The same: those answered in spite of it.
    Slipped(&'static str),
    /// Payload bytes received.
    ReceivedBytes,
    /// Payload bytes sent.
    SentBytes,
}

/// A count, and how fast it grows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Since the start.
    pub total: u64,
    /// A second, since the sample before.
    pub per_s: f64,
}

impl Flow {
    /// A count that was `before` some seconds ago and is `now`. One that has fallen began anew
    /// meanwhile, so that all of it is new.
    pub fn between(before: u64, now: u64, span_s: f64) -> Self {
        let grown = now.checked_sub(before).unwrap_or(now);
        let per_s = if span_s > 0.0 { float(grown) / span_s } else { 0.0 };
        Self { total: now, per_s }
    }
}

impl std::iter::Sum for Flow {
    fn sum<I: Iterator<Item = Self>>(flows: I) -> Self {
        flows.fold(Self::default(), |sum, it| Self {
            total: sum.total.saturating_add(it.total),
            per_s: sum.per_s + it.per_s,
        })
    }
}

/// What memory is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Bytes of torrents and peers, as asked of the allocator.
    pub store_bytes: u64,
    /// Bytes they may take; 0: no bound.
    pub store_bytes_max: u64,
    /// Torrents on probation that made room for others, since the start.
    pub evicted: u64,
    /// Bytes of the process that are in memory; `None` where the kernel does not tell.
    pub resident_bytes: Option<u64>,
}

/// How a worker does.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerLoad {
    /// Its thread's name.
    pub name: String,
    /// Share of the time since the sample before for which it used its CPU.
    pub busy_ratio: f64,
    /// Requests a second since the sample before.
    pub requests_per_s: f64,
    /// Seconds since it went round.
    pub silent_s: f64,
}

/// Everything the page shows, except the largest torrents.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// Seconds since the Unix epoch.
    pub at_s: f64,
    /// Seconds since the sample before; 0 for the first.
    pub span_s: f64,
    /// Seconds since the process started to serve.
    pub uptime_s: u64,
    /// What the process is doing: `serving`, `starting`, `restoring`, `stopping`.
    pub state: String,
    /// The version of the program.
    pub version: &'static str,
    /// How datagrams are moved.
    pub backend: &'static str,
    /// Counts, each subject once.
    pub flows: Vec<(Subject, Flow)>,
    /// Torrents, peers and clients.
    pub store: Stats,
    /// Memory.
    pub memory: Memory,
    /// Every worker.
    pub workers: Vec<WorkerLoad>,
    /// Whether sources are limited: `on`, `off`, `dry run`.
    pub limits: &'static str,
    /// Sources that were over the limit of verified work lately: at least so many.
    pub limited_sources: u64,
    /// Sources whose datagrams the kernel drops.
    pub denied_sources: u64,
    /// Who and what is served: the access mode.
    pub access: &'static str,
    /// How far the announce interval is on its way from the usual to the longest.
    pub load_ratio: f64,
    /// Seconds that clients of small swarms are told to wait, on average.
    pub interval_s: u64,
    /// Seconds since the latest snapshot; `None`: there is none.
    pub snapshot_age_s: Option<u64>,
    /// Connections that are open, HTTP and WebSocket.
    pub connections: [u64; 2],
    /// Who has this page open.
    pub viewers: u64,
}

impl Sample {
    /// One subject's flow.
    pub(super) fn flow(&self, subject: Subject) -> Flow {
        self.sum(|it| it == subject)
    }

    /// All flows of some subjects together.
    pub(super) fn sum(&self, is_one: impl Fn(Subject) -> bool) -> Flow {
        self.flows.iter().filter(|it| is_one(it.0)).map(|it| it.1).sum()
    }

    /// Answered requests of one kind over all protocols.
    pub(super) fn answered(&self, action: Action) -> Flow {
        self.sum(|it| matches!(it, Subject::Answered(_, of) if of == action))
    }

    /// What a reason for silence belongs to.
    pub(super) fn silenced(&self, cause: Cause) -> Flow {
        self.sum(|it| match it {
            Subject::Dropped(reason) => cause_of(reason) == cause,
            Subject::QueueFull => cause == Cause::Queue,
            _ => false,
        })
    }

    /// Requests that were refused or met with an error.
    pub(super) fn errors(&self) -> Flow {
        self.sum(|it| matches!(it, Subject::Refused(_) | Subject::Rejected(_)))
    }

    /// The share of its time that the busiest worker used.
    pub(super) fn busiest_ratio(&self) -> f64 {
        self.workers.iter().map(|it| it.busy_ratio).fold(0.0, f64::max)
    }
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The kernel's receive queue was full.
    Queue,
    /// The source is over a limit.
    Limit,
    /// The worker could not keep up, and left out what matters least.
    Shed,
    /// It was no request, or one with no valid connection id.
    Bad,
}

impl Cause {
    /// Every cause, in the order of tables and charts.
    pub(super) const ALL: [Self; 4] = [Self::Queue, Self::Limit, Self::Shed, Self::Bad];

    /// What people call it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Queue => "Receive queue full",
            Self::Limit => "Source over its limit",
            Self::Shed => "Shed under load",
            Self::Bad => "Not valid",
        }
    }
}

/// What a reason belongs to.
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

/// A count as rates and charts hold it: exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "nothing is counted up to 2^53")]
pub(super) fn float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_came_over_the_time_it_took() {
        let found = Flow::between(100, 350, 2.0);
        assert_eq!(found, Flow { total: 350, per_s: 125.0 });
        assert_eq!(Flow::between(0, 0, 1.0), Flow::default());
    }

    #[test]
    fn a_count_that_began_anew_is_all_new_and_no_time_is_no_rate() {
        assert_eq!(Flow::between(u64::MAX - 1, 30, 1.5), Flow { total: 30, per_s: 20.0 });
        assert_eq!(Flow::between(3, 30, 0.0), Flow { total: 30, per_s: 0.0 });
    }

    #[test]
    fn every_reason_for_silence_belongs_to_one_cause() {
        let flow = Flow { total: 1, per_s: 0.5 };
        let mut flows: Vec<_> =
            Dropped::ALL.into_iter().map(|it| (Subject::Dropped(it), flow)).collect();
        flows.push((Subject::QueueFull, flow));
        let sample = Sample { flows, ..Sample::default() };
        let totals = Cause::ALL.map(|it| sample.silenced(it).total);
        assert_eq!(totals, [1, 2, 2, 7]);
        assert_eq!(sample.sum(|_| true).total, totals.iter().sum::<u64>());
        assert_eq!(sample.flow(Subject::QueueFull), flow);
    }
}
