//! One phase of a run on one thread: what it does, when it ends, and at which moments requests are
//! due. UDP and stream generators share it.

use crate::numbers::{NS_PER_S, real, whole};
use crate::tally::Tally;

/// What a phase does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Task {
    /// Every socket gets a connection id, or is connected.
    Connect,
    /// Every peer that is not resident announces, until its announce is answered.
    Fill,
    /// Every torrent is scraped once.
    Verify,
    /// The plan's mix, for a time.
    Load {
        /// For how long.
        duration_ns: u64,
        /// Requests a second of this thread; as fast as answers come where absent.
        rate: Option<f64>,
    },
    /// Nothing but answering what the tracker sends, for a time.
    Rest {
        /// For how long.
        duration_ns: u64,
    },
}

/// Moments at which requests are due.
pub(crate) struct Pace {
    /// The next one.
    pub(crate) next_ns: f64,
    /// From each to the one after.
    pub(crate) step_ns: f64,
}

impl Pace {
    /// How many requests are due at a moment, `most` at most.
    pub(crate) fn due(&self, now_ns: u64, most: usize) -> usize {
        let late_ns = real(now_ns) - self.next_ns;
        let due = if late_ns < 0.0 { 0 } else { whole(late_ns / self.step_ns) + 1 };
        usize::try_from(due).unwrap_or(most).min(most)
    }
}

/// One phase under way.
pub(crate) struct Run {
    /// What it does.
    pub(crate) task: Task,
    /// What it has counted.
    pub(crate) tally: Tally,
    /// When it began.
    pub(crate) start_ns: u64,
    /// When it stops sending.
    pub(crate) deadline_ns: u64,
    /// Set in the open loop.
    pub(crate) pace: Option<Pace>,
}

/// The timeline has at most this many intervals...
const INTERVALS_MAX: u64 = 100;
/// ... of at least this length.
const INTERVAL_NS_MIN: u64 = 50_000_000;

impl Run {
    /// A phase that begins now; connecting gives up after `connect_ns_max`.
    pub(crate) fn new(task: Task, start_ns: u64, connect_ns_max: u64) -> Self {
        let (duration_ns, rate) = match task {
            Task::Load { duration_ns, rate } => (duration_ns, rate),
            Task::Rest { duration_ns } => (duration_ns, None),
            // Against a tracker that answers nothing, these would never end.
            Task::Connect => (connect_ns_max, None),
            Task::Fill | Task::Verify => (600 * NS_PER_S, None),
        };
        let interval_ns = (duration_ns / INTERVALS_MAX).max(INTERVAL_NS_MIN);
        let intervals = match task {
            Task::Load { .. } => usize::try_from(duration_ns.div_ceil(interval_ns)).unwrap_or(0),
            _ => 0,
        };
        let step_ns = |rate: f64| real(NS_PER_S) / rate;
        Self {
            task,
            tally: Tally::new(interval_ns, intervals),
            start_ns,
            deadline_ns: start_ns + duration_ns,
            pace: rate.map(|it| Pace { next_ns: real(start_ns), step_ns: step_ns(it) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_their_moment_and_not_before() {
        let pace = Pace { next_ns: 1000.0, step_ns: 100.0 };
        let due = [0, 999, 1000, 1099, 1100, 1_000_000].map(|it| pace.due(it, 64));
        assert_eq!(due, [0, 0, 1, 1, 2, 64]);
    }
}
