//! The counts of a generator thread in one phase, and how those of several threads are merged.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::check::Invalid;
use crate::numbers::NS_PER_S;
use crate::slots::Kind;

/// Longest latency that is distinguished from longer ones.
const LATENCY_NS_MAX: u64 = 60 * NS_PER_S;
/// Shortest latency: below this, the generator's own loop would be measured.
const LATENCY_NS_MIN: u64 = 128;

/// One interval of the timeline.
#[derive(Clone, Debug)]
pub(crate) struct Interval {
    /// Number of responses in the interval.
    pub(crate) answered: u64,
    /// Their latencies, with a precision of two digits.
    pub(crate) latency: Histogram<u32>,
}

/// Counts of connections, as counted and reported.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct StreamCounts {
    /// Connections that were started.
    pub(crate) connections: u64,
    /// WebSockets that the tracker closed.
    pub(crate) closed_by_tracker: u64,
    /// WebRTC offers sent with announces.
    pub(crate) offers_sent: u64,
    /// Offers that reached another peer.
    pub(crate) offers_relayed: u64,
    /// Answers that peers sent to offers.
    pub(crate) answers_sent: u64,
    /// Answers that reached the offering peer.
    pub(crate) answers_relayed: u64,
    /// Answers that the tracker could not deliver: an offer had expired, or its peer had left.
    pub(crate) answers_refused: u64,
}

impl StreamCounts {
    fn merge(&mut self, other: &Self) {
        self.connections += other.connections;
        self.closed_by_tracker += other.closed_by_tracker;
        self.offers_sent += other.offers_sent;
        self.offers_relayed += other.offers_relayed;
        self.answers_sent += other.answers_sent;
        self.answers_relayed += other.answers_relayed;
        self.answers_refused += other.answers_refused;
    }
}

/// All counts.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    /// Requests handed to the kernel, by [`Kind`].
    pub(crate) sent: [u64; Kind::ALL.len()],
    /// Good responses, by [`Kind`].
    pub(crate) answered: [u64; Kind::ALL.len()],
    /// Good responses that arrived while requests were being sent. Rates are computed from these.
    pub(crate) answered_in_time: u64,
    /// Requests without a response, by [`Kind`], including those that were never sent, see
    /// `unsent`.
    pub(crate) lost: [u64; Kind::ALL.len()],
    /// Requests that this host could not send.
    pub(crate) unsent: u64,
    /// Requests that were due but had no place in the table.
    pub(crate) held_back: u64,
    /// BEP 15 error responses.
    pub(crate) errors: u64,
    /// Text of the first error response, printable ASCII.
    pub(crate) error_text: Option<String>,
    /// Responses to requests that were counted as lost.
    pub(crate) late: u64,
    /// Invalid responses, by [`Invalid`].
    pub(crate) invalid: [u64; Invalid::ALL.len()],
    /// How many times the kernel reported that no process listens, or that a connection broke.
    pub(crate) unreachable: u64,
    /// The first error of the kernel or of TLS on a connection.
    pub(crate) failure: Option<String>,
    /// Counts of connections.
    pub(crate) stream: StreamCounts,
    /// Peers in all announce responses.
    pub(crate) peers: u64,
    /// Announce responses to requests that wanted peers.
    pub(crate) peer_responses: u64,
    /// Payload bytes sent.
    pub(crate) sent_bytes: u64,
    /// Payload bytes received.
    pub(crate) received_bytes: u64,
    /// Seeders and leechers in scrape responses.
    pub(crate) scraped_peers: u64,
    /// From the moment a request was due to its response.
    pub(crate) latency: Histogram<u64>,
    /// From the moment a request was due to the moment it was sent.
    pub(crate) lag: Histogram<u64>,
    /// Nanoseconds of turns that neither sent nor received anything, over all threads.
    pub(crate) idle_ns: u64,
    /// Nanoseconds of all turns, over all threads.
    pub(crate) busy_and_idle_ns: u64,
    /// Nanoseconds in which requests were sent.
    pub(crate) elapsed_ns: u64,
    /// Length of an interval of the timeline.
    pub(crate) interval_ns: u64,
    /// The timeline.
    pub(crate) timeline: Vec<Interval>,
}

fn histogram() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "constant bounds that the type's rules allow")]
    Histogram::new_with_bounds(LATENCY_NS_MIN, LATENCY_NS_MAX, 3).expect("valid bounds")
}

fn interval() -> Interval {
    #[expect(clippy::expect_used, reason = "constant bounds that the type's rules allow")]
    let latency = Histogram::new_with_bounds(1024, LATENCY_NS_MAX, 2).expect("valid bounds");
    Interval { answered: 0, latency }
}

impl Tally {
    /// All counts are zero. `interval_ns` is the timeline's resolution. It has at most `intervals`
    /// intervals, so that nothing is allocated during the phase.
    pub(crate) fn new(interval_ns: u64, intervals: usize) -> Self {
        Self {
            sent: [0; 3],
            answered: [0; 3],
            answered_in_time: 0,
            lost: [0; 3],
            unsent: 0,
            held_back: 0,
            errors: 0,
            error_text: None,
            late: 0,
            invalid: [0; Invalid::ALL.len()],
            unreachable: 0,
            failure: None,
            stream: StreamCounts::default(),
            peers: 0,
            peer_responses: 0,
            sent_bytes: 0,
            received_bytes: 0,
            scraped_peers: 0,
            latency: histogram(),
            lag: histogram(),
            idle_ns: 0,
            busy_and_idle_ns: 0,
            elapsed_ns: 0,
            interval_ns,
            timeline: vec![interval(); intervals],
        }
    }

    /// Counts one good response: when it arrived after the start of the phase, and its latency.
    #[inline]
    pub(crate) fn answered(&mut self, kind: Kind, at_ns: u64, latency_ns: u64) {
        self.answered[kind as usize] += 1;
        self.latency.saturating_record(latency_ns);
        let place = usize::try_from(at_ns / self.interval_ns).unwrap_or(usize::MAX);
        if let Some(interval) = self.timeline.get_mut(place) {
            interval.answered += 1;
            interval.latency.saturating_record(latency_ns);
        }
    }

    /// Keeps the first error text.
    pub(crate) fn error(&mut self, text: &[u8]) {
        self.errors += 1;
        if self.error_text.is_none() {
            let printable = |it: &u8| if (32..127).contains(it) { char::from(*it) } else { '?' };
            self.error_text = Some(text.iter().take(80).map(printable).collect());
        }
    }

    /// Counts a connection that broke, and keeps the first reason.
    pub(crate) fn note_failure(&mut self, error: &std::io::Error) {
        self.unreachable += 1;
        self.failure.get_or_insert_with(|| error.to_string());
    }

    /// Good responses of all kinds.
    pub(crate) fn answered_all(&self) -> u64 {
        self.answered.iter().sum()
    }

    /// Grows with everything that the tracker sends, whether valid or not.
    pub(crate) fn heard(&self) -> u64 {
        self.received_bytes + self.answered_all()
    }

    /// Requests that were sent and never answered.
    pub(crate) fn lost_all(&self) -> u64 {
        self.lost.iter().sum::<u64>().saturating_sub(self.unsent)
    }

    /// Adds the counts of another thread in the same phase.
    pub(crate) fn merge(&mut self, other: &Self) {
        let sums = |mine: &mut [u64], theirs: &[u64]| {
            mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        };
        sums(&mut self.sent, &other.sent);
        sums(&mut self.answered, &other.answered);
        sums(&mut self.lost, &other.lost);
        sums(&mut self.invalid, &other.invalid);
        self.answered_in_time += other.answered_in_time;
        self.unsent += other.unsent;
        self.held_back += other.held_back;
        self.errors += other.errors;
        self.error_text = self.error_text.take().or_else(|| other.error_text.clone());
        self.late += other.late;
        self.unreachable += other.unreachable;
        self.failure = self.failure.take().or_else(|| other.failure.clone());
        self.stream.merge(&other.stream);
        self.peers += other.peers;
        self.peer_responses += other.peer_responses;
        self.sent_bytes += other.sent_bytes;
        self.received_bytes += other.received_bytes;
        self.scraped_peers += other.scraped_peers;
        self.idle_ns += other.idle_ns;
        self.busy_and_idle_ns += other.busy_and_idle_ns;
        self.elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
        // Same bounds on both sides: adding cannot fail.
        self.latency.add(&other.latency).unwrap_or_default();
        self.lag.add(&other.lag).unwrap_or_default();
        for (mine, theirs) in self.timeline.iter_mut().zip(&other.timeline) {
            mine.answered += theirs.answered;
            mine.latency.add(&theirs.latency).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_tallies_hold_both() {
        let mut one = Tally::new(1000, 2);
        let mut two = one.clone();
        one.answered(Kind::Announce, 10, 5_000);
        two.answered(Kind::Announce, 1500, 9_000);
        two.answered(Kind::Scrape, 99_999, 1_000_000);
        two.error(b"no\nway");
        one.merge(&two);
        assert_eq!(one.answered, [0, 2, 1]);
        assert_eq!(one.timeline.iter().map(|it| it.answered).collect::<Vec<_>>(), [1, 1]);
        assert_eq!(one.latency.len(), 3);
        assert!(one.latency.max() >= 1_000_000);
        assert_eq!(one.error_text.as_deref(), Some("no?way"));
    }

    #[test]
    fn what_never_left_is_not_the_trackers_loss() {
        let mut tally = Tally::new(1000, 0);
        tally.lost = [1, 5, 0];
        tally.unsent = 2;
        assert_eq!(tally.lost_all(), 4);
    }
}
