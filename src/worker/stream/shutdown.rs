//! Signals to all stream workers about their start and their end.
//!
//! A tracker that stops may serve for a while longer, so that a balancer notices. A tracker that
//! hands its sockets over must not accept, because the successor does, and must not shut the
//! listeners down, because the successor uses them. In both cases WebSockets are closed one after
//! the other: if all clients reconnected at once, they would flood another tracker.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::time::Now;
use crate::worker::pause_signal::PauseSignal;

/// The stages of the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Stage {
    /// The end has not begun.
    Serving,
    /// Everything is served. WebSockets are closed, so that clients reconnect.
    Draining,
    /// As `Draining`, but nothing is accepted, and HTTP connections close after a response.
    Leaving,
}

/// The signals that all workers read.
#[derive(Debug, Default)]
pub(super) struct ShutdownSignal {
    /// While it is requested, workers accept nothing.
    pub(super) pause: PauseSignal,
    keeps_listeners: AtomicBool,
    stage: AtomicU8,
    until_ns: AtomicU64,
    prepared: AtomicUsize,
}

impl ShutdownSignal {
    /// Counts a worker that has all resources it needs to accept.
    pub(super) fn note_prepared(&self) {
        self.prepared.fetch_add(1, Ordering::AcqRel);
    }

    /// How many workers have all resources they need to accept.
    pub(super) fn prepared(&self) -> usize {
        self.prepared.load(Ordering::Acquire)
    }

    /// Records that another process keeps the listeners.
    pub(super) fn keep_listeners(&self) {
        self.keeps_listeners.store(true, Ordering::Release);
    }

    /// Whether another process keeps the listeners.
    pub(super) fn keeps_listeners(&self) -> bool {
        self.keeps_listeners.load(Ordering::Acquire)
    }

    /// Enters a later stage, which ends at `until`.
    pub(super) fn enter(&self, stage: Stage, until: Now) {
        self.until_ns.store(until.ns(), Ordering::Release);
        self.stage.fetch_max(stage as u8, Ordering::AcqRel);
    }

    /// The stage, and when it ends.
    pub(super) fn stage(&self) -> (Stage, Now) {
        let stage = match self.stage.load(Ordering::Acquire) {
            0 => Stage::Serving,
            1 => Stage::Draining,
            _ => Stage::Leaving,
        };
        (stage, Now::from_ns(self.until_ns.load(Ordering::Acquire)))
    }
}

/// Spreads the closing of sockets evenly over a period.
#[derive(Clone, Copy, Debug)]
pub(super) struct DrainSchedule {
    open_at_first: usize,
    since: Now,
}

impl DrainSchedule {
    /// A schedule that begins now.
    pub(super) fn new(open: usize, since: Now) -> Self {
        Self { open_at_first: open, since }
    }

    /// How many of `open` sockets to close now, if the drain ends at `until`: those beyond the
    /// fraction of the time that is left.
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
