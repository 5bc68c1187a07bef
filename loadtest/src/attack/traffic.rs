//! The requests of one party of an attack, and their outcomes. The counts add up: sent = answered +
//! refused + malformed + unanswered.

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use crate::numbers::{NS_PER_S, grouped, per, real};
use crate::report::Latency;
use crate::slots::Kind;

/// Counts by kind of request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ByKind([u64; Kind::ALL.len()]);

impl ByKind {
    /// Adds one of a kind.
    pub(crate) fn add(&mut self, kind: Kind) {
        self.0[kind as usize] += 1;
    }

    /// The count of one kind.
    pub(crate) fn of(&self, kind: Kind) -> u64 {
        self.0[kind as usize]
    }

    /// The sum of all kinds.
    pub(crate) fn all(&self) -> u64 {
        self.0.iter().sum()
    }
}

impl Serialize for ByKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Kind::ALL.into_iter().map(|it| (it.label(), self.of(it))))
    }
}

/// One party's requests in one phase.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Traffic {
    /// Number of source addresses.
    pub(crate) sources: u64,
    /// Seconds in which requests were sent.
    pub(crate) seconds: f64,
    /// Requests, including those that this host could not send.
    pub(crate) sent: ByKind,
    /// Good responses.
    pub(crate) answered: ByKind,
    /// Error responses.
    pub(crate) refused: u64,
    /// Invalid responses.
    pub(crate) malformed: u64,
    /// Requests without any response within the timeout.
    pub(crate) unanswered: u64,
    /// Part of `unanswered`: requests that this host could not send.
    pub(crate) unsent: u64,
    /// Requests that were due but not sent, because the source still waited for a connection id, or
    /// never received one.
    pub(crate) held_back: u64,
    /// Part of `held_back`: the source never received an id, with as many connects as it may send.
    pub(crate) gave_up: u64,
    /// Requests that were due but not sent before the end: this host was too slow.
    pub(crate) overdue: u64,
    /// Responses after the timeout.
    pub(crate) late: u64,
    /// Datagrams that respond to no request.
    pub(crate) stray: u64,
    /// Usable responses with a fault, e.g. the client's own address among the peers.
    pub(crate) flawed: u64,
    /// Payload bytes sent.
    pub(crate) sent_bytes: u64,
    /// Payload bytes received.
    pub(crate) received_bytes: u64,
    /// From the moment a request was due to its good response.
    #[serde(serialize_with = "quantiles")]
    pub(crate) latency: Histogram<u64>,
}

fn quantiles<S: Serializer>(histogram: &Histogram<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    Latency::of(histogram).serialize(serializer)
}

impl Traffic {
    /// All counts are zero.
    pub(crate) fn new(sources: usize) -> Self {
        #[expect(clippy::expect_used, reason = "constant bounds that the type's rules allow")]
        let latency = Histogram::new_with_bounds(1024, 60 * NS_PER_S, 3).expect("valid bounds");
        Self {
            sources: sources as u64,
            seconds: 0.0,
            sent: ByKind::default(),
            answered: ByKind::default(),
            refused: 0,
            malformed: 0,
            unanswered: 0,
            unsent: 0,
            held_back: 0,
            gave_up: 0,
            overdue: 0,
            late: 0,
            stray: 0,
            flawed: 0,
            sent_bytes: 0,
            received_bytes: 0,
            latency,
        }
    }

    /// The share of requests with a good response.
    pub(crate) fn answered_share(&self) -> f64 {
        per(self.answered.all(), self.sent.all())
    }

    /// Requests sent per second.
    pub(crate) fn offered_per_s(&self) -> f64 {
        real(self.sent.all().saturating_sub(self.unsent)) / self.seconds.max(1e-9)
    }

    /// Adds the counts of another thread of the same party in the same phase.
    pub(crate) fn merge(&mut self, other: &Self) {
        for kind in 0..Kind::ALL.len() {
            self.sent.0[kind] += other.sent.0[kind];
            self.answered.0[kind] += other.answered.0[kind];
        }
        self.sources += other.sources;
        self.seconds = self.seconds.max(other.seconds);
        self.refused += other.refused;
        self.malformed += other.malformed;
        self.unanswered += other.unanswered;
        self.unsent += other.unsent;
        self.held_back += other.held_back;
        self.overdue += other.overdue;
        self.late += other.late;
        self.stray += other.stray;
        self.flawed += other.flawed;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        // Same bounds on both sides: adding cannot fail.
        self.latency.add(&other.latency).unwrap_or_default();
    }

    /// One or two lines for people.
    pub(crate) fn text(&self, name: &str) -> String {
        let by_kind: Vec<String> = Kind::ALL
            .into_iter()
            .filter(|it| self.sent.of(*it) > 0)
            .map(|kind| {
                let (answered, sent) = (self.answered.of(kind), self.sent.of(kind));
                format!("{} of {} {}s", grouped(answered), grouped(sent), kind.label())
            })
            .collect();
        let latency = Latency::of(&self.latency);
        format!(
            "{name:<11} {:>11.2} % answered: {} from {} sources in {:.1} s\n{:12}{} refused, {} \
             malformed, {} unanswered, {} held back, {} overdue, {} late; p50 {:.0} us, p99 {:.0} \
             us\n",
            self.answered_share() * 100.0,
            by_kind.join(", "),
            grouped(self.sources),
            self.seconds,
            "",
            grouped(self.refused),
            grouped(self.malformed),
            grouped(self.unanswered),
            grouped(self.held_back),
            grouped(self.overdue),
            grouped(self.late),
            latency.p50_us,
            latency.p99_us,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parties_of_several_threads_add_up() {
        let mut one = Traffic::new(3);
        one.sent.add(Kind::Announce);
        one.answered.add(Kind::Announce);
        let mut two = Traffic::new(2);
        two.sent.add(Kind::Scrape);
        two.unanswered = 1;
        two.seconds = 2.0;
        one.merge(&two);
        assert_eq!((one.sources, one.sent.all(), one.unanswered), (5, 2, 1));
        assert!((one.answered_share() - 0.5).abs() < 1e-9);
        assert!((one.offered_per_s() - 1.0).abs() < 1e-9);
        let json = serde_json::to_value(&one).unwrap();
        assert_eq!(json["sent"]["scrape"], 1);
        assert!(one.text("honest").contains("1 of 1 announces, 0 of 1 scrapes"));
    }
}
