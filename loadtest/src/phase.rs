//! One phase of a run on one thread: its task, its end, and the moments at which requests are due.
//! Shared by the UDP and stream generators, as is the loop.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::interrupt;
use crate::numbers::{NS_PER_S, real, whole};
use crate::tally::Tally;

/// The task of a phase.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Task {
    /// Every socket obtains a connection id, or is connected.
    Connect,
    /// Every peer that is not resident announces until its announce is answered.
    Fill,
    /// Every torrent is scraped once.
    Verify,
    /// The plan's mix, for a period.
    Load {
        /// Length of the period.
        duration_ns: u64,
        /// Requests per second of this thread; `None`: as fast as responses arrive.
        rate: Option<f64>,
    },
    /// Nothing but responding to what the tracker sends, for a period.
    Rest {
        /// Length of the period.
        duration_ns: u64,
    },
}

/// Moments at which requests are due.
pub(crate) struct Pace {
    /// The next moment.
    pub(crate) next_ns: f64,
    /// The distance between two moments.
    pub(crate) step_ns: f64,
}

impl Pace {
    /// Number of requests that are due at a moment, at most `most`.
    pub(crate) fn due(&self, now_ns: u64, most: usize) -> usize {
        let late_ns = real(now_ns) - self.next_ns;
        let due = if late_ns < 0.0 { 0 } else { whole(late_ns / self.step_ns) + 1 };
        usize::try_from(due).unwrap_or(most).min(most)
    }
}

/// One phase under way.
pub(crate) struct Run {
    /// Its task.
    pub(crate) task: Task,
    /// Its counts.
    pub(crate) tally: Tally,
    /// Its start.
    pub(crate) start_ns: u64,
    /// When it stops sending.
    pub(crate) deadline_ns: u64,
    /// Set in the open loop.
    pub(crate) pace: Option<Pace>,
    /// Whether it was aborted because the tracker had stopped responding.
    pub(crate) silent: bool,
}

/// How long a tracker may send nothing, and accept no connection, while requests wait for it:
/// longer than any pause of a working tracker. A longer timeout of requests takes precedence.
const SILENCE_NS_MAX: u64 = 5 * NS_PER_S;

/// The same if the kernel reports that no process listens: long enough for a restart.
const ABSENCE_NS_MAX: u64 = 2 * NS_PER_S;

/// Generates load with the sockets or connections of one thread.
pub(crate) trait Driver: Send {
    /// Starts a phase.
    fn start(&mut self, task: Task) -> Run;

    /// Receives and sends what is possible. True if anything was done.
    fn turn(&mut self, run: &mut Run) -> bool;

    /// Counts requests that were not answered in time as lost.
    fn expire(&mut self, now_ns: u64, run: &mut Run);

    /// The timeout of requests.
    fn timeout_ns(&self) -> u64;

    /// How often, per timeout, [`Self::expire`] is called.
    fn expiries_per_timeout(&self) -> u64;

    /// Whether all requests are sent, and answered or lost.
    fn is_over(&self, run: &Run, now_ns: u64) -> bool;

    /// Number of requests, or connections, that wait for the tracker.
    fn waiting(&self) -> usize;

    /// Counts what is left at the end of a phase.
    fn finish(&self, _run: &mut Run) {}

    /// Nanoseconds on this process's clock.
    fn now_ns(&self) -> u64;

    /// Peers that were announced to the tracker and have not left.
    fn resident(&self) -> u64;

    /// Runs one phase to its end, lost requests included, or until the tracker has not responded
    /// for too long. Each response increments `progress`.
    fn run(&mut self, task: Task, progress: &AtomicU64) -> Run {
        let mut run = self.start(task);
        let expire_every_ns = self.timeout_ns() / self.expiries_per_timeout();
        let (mut expire_at_ns, mut last_ns) = (run.start_ns, run.start_ns);
        let mut silence = Silence::new(&run.tally, run.start_ns);
        let mut reported = 0;
        loop {
            let worked = self.turn(&mut run);
            let now_ns = self.now_ns();
            let turn_ns = now_ns - last_ns;
            last_ns = now_ns;
            if interrupt::is_requested() {
                // Nothing more is sent; responses under way are still awaited.
                run.deadline_ns = run.deadline_ns.min(now_ns);
            }
            run.tally.busy_and_idle_ns += turn_ns;
            run.tally.idle_ns += if worked { 0 } else { turn_ns };
            if now_ns >= expire_at_ns {
                expire_at_ns = now_ns + expire_every_ns;
                let waits = self.waiting() > 0;
                self.expire(now_ns, &mut run);
                let answered = run.tally.answered_all();
                progress.fetch_add(answered - reported, Ordering::Relaxed);
                reported = answered;
                let patience_ns = SILENCE_NS_MAX.max(self.timeout_ns() + NS_PER_S);
                let too_long = silence.is_too_long(&run.tally, waits, now_ns, patience_ns);
                run.silent = too_long && now_ns < run.deadline_ns;
            }
            if run.silent || self.is_over(&run, now_ns) {
                run.tally.elapsed_ns = now_ns.min(run.deadline_ns) - run.start_ns;
                self.finish(&mut run);
                return run;
            }
        }
    }
}

/// Measures for how long nothing was received although requests waited.
struct Silence {
    since_ns: u64,
    /// The counts at its start.
    heard: u64,
    lost: u64,
    unreachable: u64,
}

impl Silence {
    fn new(tally: &Tally, since_ns: u64) -> Self {
        let lost = tally.lost.iter().sum();
        Self { since_ns, heard: tally.heard(), lost, unreachable: tally.unreachable }
    }

    /// Updates the measurement. While nothing waits for the tracker, and nothing was lost, its
    /// silence does not count.
    fn is_too_long(&mut self, tally: &Tally, waits: bool, now_ns: u64, patience_ns: u64) -> bool {
        let lost: u64 = tally.lost.iter().sum();
        if tally.heard() != self.heard || (!waits && lost == self.lost) {
            *self = Self::new(tally, now_ns);
        }
        let absent = tally.unreachable > self.unreachable;
        let patience_ns = if absent { patience_ns.min(ABSENCE_NS_MAX) } else { patience_ns };
        now_ns - self.since_ns > patience_ns
    }
}

/// The timeline has at most this many intervals...
const INTERVALS_MAX: u64 = 100;
/// ... of at least this length.
const INTERVAL_NS_MIN: u64 = 50_000_000;

impl Run {
    /// A phase that begins now. Connecting stops after `connect_ns_max`.
    pub(crate) fn new(task: Task, start_ns: u64, connect_ns_max: u64) -> Self {
        let (duration_ns, rate) = match task {
            Task::Load { duration_ns, rate } => (duration_ns, rate),
            Task::Rest { duration_ns } => (duration_ns, None),
            // These would never end with a tracker that does not respond.
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
            silent: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_while_something_waits_or_is_lost() {
        let mut tally = Tally::new(1000, 0);
        let mut silence = Silence::new(&tally, 0);
        let patience_ns = 5 * NS_PER_S;
        let mut look = |tally: &Tally, waits, at_s: u64| {
            silence.is_too_long(tally, waits, at_s * NS_PER_S, patience_ns)
        };
        assert!(!look(&tally, false, 100), "nothing was asked");
        assert!(!look(&tally, true, 105) && look(&tally, true, 106));
        tally.received_bytes += 16;
        assert!(!look(&tally, true, 106) && !look(&tally, true, 111));
        tally.lost[0] += 1;
        assert!(look(&tally, false, 112), "what was asked meanwhile is lost");
        tally.received_bytes += 16;
        assert!(!look(&tally, true, 112) && !look(&tally, true, 115));
        tally.unreachable += 1;
        assert!(look(&tally, true, 115), "nobody listens");
    }

    #[test]
    fn requests_are_due_at_their_moment_and_not_before() {
        let pace = Pace { next_ns: 1000.0, step_ns: 100.0 };
        let due = [0, 999, 1000, 1099, 1100, 1_000_000].map(|it| pace.due(it, 64));
        assert_eq!(due, [0, 0, 1, 1, 2, 64]);
    }
}
