//! What stream workers are told, all at once, about their beginning and their end.
//!
//! A tracker that stops may go on serving for a while, so that a balancer notices, and one that
//! hands its sockets on must neither accept nor shut them down: the successor does the former, and
//! would suffer from the latter. In both cases WebSockets are told to reconnect one after the
//! other, as all at once would be a flood elsewhere.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::time::Now;
use crate::worker::rest_signal::RestSignal;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    /// It has not.
    Serving,
    /// Everything is served; WebSockets are told to reconnect.
    Draining,
    /// The same, but nothing is accepted, and HTTP connections close once they were answered.
    Leaving,
}

/// The word to all workers.
#[derive(Debug, Default)]
pub(super) struct ShutdownSignal {
    /// While they rest, workers accept nothing.
    pub(super) rest: RestSignal,
    keeps_listeners: AtomicBool,
    stage: AtomicU8,
    until_ns: AtomicU64,
    prepared: AtomicUsize,
}

impl ShutdownSignal {
    /// Notes that a worker has all it needs to accept.
    pub(super) fn note_prepared(&self) {
        self.prepared.fetch_add(1, Ordering::AcqRel);
    }

    /// How many workers have all they need to accept.
    pub(super) fn prepared(&self) -> usize {
        self.prepared.load(Ordering::Acquire)
    }

    /// Says that listeners go on without this process.
    pub(super) fn keep_listeners(&self) {
        self.keeps_listeners.store(true, Ordering::Release);
    }

    /// Whether they do.
    pub(super) fn keeps_listeners(&self) -> bool {
        self.keeps_listeners.load(Ordering::Acquire)
    }

    /// Goes on to a later stage, which is over at `until`.
    pub(super) fn enter(&self, stage: Stage, until: Now) {
        self.until_ns.store(until.ns(), Ordering::Release);
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
    }

    /// The stage, and when it is over.
    pub(super) fn stage(&self) -> (Stage, Now) {
        let stage = match self.stage.load(Ordering::Acquire) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            _ => Stage::Leaving,
        };
        (stage, Now::from_ns(self.until_ns.load(Ordering::Acquire)))
    }
}

/// Tells sockets to reconnect evenly over a stretch of time.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainSchedule {
    open_at_first: usize,
    since: Now,
}

impl DrainSchedule {
    /// One that begins now.
    pub(super) fn new(open: usize, since: Now) -> Self {
        Self { open_at_first: open, since }
    }

    /// How many of `open` sockets to tell now, where the end is at `until`: those beyond the part
    /// that is left of the time.
    pub(super) fn share(self, open: usize, now: Now, until: Now) -> usize {
        let (left_ns, all_ns) = (until.ns_since(now), until.ns_since(self.since).max(1));
        let kept = self.open_at_first as u128 * u128::from(left_ns) / u128::from(all_ns);
        open.saturating_sub(usize::try_from(kept).unwrap_or(usize::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_told_evenly_however_few_and_all_of_them_in_time() {
        let (start, until) = (Now::from_s(100), Now::from_s(110));
        for (first, in_a_round_max, gap_max) in [(1000, 10, 1), (20, 1, 5), (4, 1, 25)] {
            let drain_schedule = DrainSchedule::new(first, start);
            let (mut open, mut told) = (first, Vec::new());
            for round in 0..=100 {
                let now = Now::from_ns(start.ns() + round * 100_000_000);
                let count = drain_schedule.share(open, now, until);
                assert!(count <= in_a_round_max, "{count} of {first} in round {round}");
                open -= count;
                told.extend((0..count).map(|_| round));
            }
            assert_eq!(open, 0);
            assert!(told.windows(2).all(|it| it[1] - it[0] <= gap_max), "{told:?}");
        }
        let late = DrainSchedule::new(3, until).share(7, until.plus_s(1), until);
        assert_eq!(late, 7, "whoever came meanwhile goes, too");
    }

    #[test]
    fn an_end_goes_one_way() {
        let signal = ShutdownSignal::default();
        assert_eq!(signal.stage().0, Stage::Serving);
        signal.enter(Stage::Leaving, Now::from_s(9));
        signal.enter(Stage::Draining, Now::from_s(5));
        assert_eq!(signal.stage(), (Stage::Leaving, Now::from_s(5)));
    }
}
