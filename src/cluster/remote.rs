//! What this node knows of another one.

use super::message::{Fingerprint, Hello};
use super::order::FrameOrder;
use super::view::{Lag, NodeView};
use crate::time::Now;

/// How long a node may be silent before it counts as gone. It publishes its state every five
/// seconds.
pub(super) const GONE_NS: u64 = 15_000_000_000;

/// How long the least difference between clocks is kept.
const OFFSET_NS: u64 = 60_000_000_000;

/// Another node.
pub(super) struct Remote {
    pub(super) name: String,
    pub(super) hash: u64,
    /// When it was started, by its clock.
    pub(super) epoch: u64,
    /// The order of its frames of deltas; none before the first of them, or its state, is known.
    pub(super) order: Option<FrameOrder>,
    pub(super) hello: Hello,
    /// The number of its latest state.
    pub(super) hello_sequence: u64,
    /// When its latest frame of this epoch arrived.
    pub(super) seen: Now,
    /// When a frame of another epoch arrived last, and the first of those in a row.
    other_epoch: Option<(Now, Now)>,
    pub(super) lag: Lag,
    offset: ClockOffset,
}

impl Remote {
    pub(super) fn new(name: &str, hash: u64, epoch: u64, now: Now) -> Self {
        Self {
            name: name.to_owned(),
            hash,
            epoch,
            order: None,
            hello: Hello::default(),
            hello_sequence: 0,
            seen: now,
            other_epoch: None,
            lag: Lag::default(),
            offset: ClockOffset::default(),
        }
    }

    /// A process with this name that was started later.
    pub(super) fn restarted(&mut self, epoch: u64, order: Option<FrameOrder>, now: Now) {
        self.note_other_epoch(now);
        (self.epoch, self.order) = (epoch, order);
        (self.hello, self.hello_sequence) = (Hello::default(), 0);
        self.offset = ClockOffset::default();
        self.seen = now;
    }

    /// A frame of another process with this name: usual around a restart, a mistake if it lasts.
    pub(super) fn note_other_epoch(&mut self, now: Now) {
        self.other_epoch = Some(match self.other_epoch {
            Some((first, last)) if now.ns_since(last) < GONE_NS => (first, now),
            _ => (now, now),
        });
    }

    /// Whether two processes have had this name for so long that it cannot be a restart.
    pub(super) fn has_conflict(&self, now: Now) -> bool {
        self.other_epoch.is_some_and(|(first, last)| {
            now.ns_since(last) < GONE_NS && last.ns_since(first) >= GONE_NS
        })
    }

    /// A frame of this epoch arrived.
    pub(super) fn note_frame(&mut self, now: Now, wall_ms: u64, sent_ms: u64) {
        self.seen = now;
        self.offset.note(now, difference(wall_ms, sent_ms));
    }

    /// Milliseconds from a frame's publication to now, without the difference of the clocks.
    pub(super) fn lag_ms(&self, wall_ms: u64, sent_ms: u64) -> u64 {
        let lag_ms = difference(wall_ms, sent_ms).saturating_sub(self.offset.ms().unwrap_or(0));
        lag_ms.try_into().unwrap_or(0)
    }

    /// Whether it has been silent for too long.
    pub(super) fn is_gone(&self, now: Now) -> bool {
        now.ns_since(self.seen) >= GONE_NS
    }

    pub(super) fn view(&self, now: Now, own: &Fingerprint) -> NodeView {
        let is_known = self.hello_sequence > 0;
        let differences = if is_known { self.hello.fingerprint.differences(own) } else { vec![] };
        NodeView {
            name: self.name.clone(),
            version: self.hello.version.clone(),
            state: is_known.then_some(self.hello.state),
            is_gone: self.is_gone(now),
            silent_s: now.ns_since(self.seen) / 1_000_000_000,
            torrents: self.hello.torrents,
            peers: self.hello.peers,
            clock_offset_ms: self.offset.ms(),
            has_gap: self.order.as_ref().is_some_and(FrameOrder::has_gap),
            lag_p99_ms: self.lag.p99_ms(),
            differences,
            has_name_conflict: self.has_conflict(now),
        }
    }
}

/// The receiver's clock minus the sender's, in milliseconds: with the way of the frame, which only
/// adds to it.
fn difference(wall_ms: u64, sent_ms: u64) -> i64 {
    let magnitude = i64::try_from(wall_ms.abs_diff(sent_ms)).unwrap_or(i64::MAX);
    if wall_ms >= sent_ms { magnitude } else { -magnitude }
}

/// The least of the differences seen within the last minute or two, which is closest to that of the
/// clocks.
#[derive(Clone, Copy, Debug, Default)]
struct ClockOffset {
    since: Option<Now>,
    current: Option<i64>,
    before: Option<i64>,
}

impl ClockOffset {
    fn note(&mut self, now: Now, difference_ms: i64) {
        let since = *self.since.get_or_insert(now);
        if now.ns_since(since) >= OFFSET_NS {
            (self.since, self.before) = (Some(now), self.current.take());
        }
        self.current = Some(self.current.map_or(difference_ms, |it| it.min(difference_ms)));
    }

    fn ms(&self) -> Option<i64> {
        match (self.current, self.before) {
            (Some(current), Some(before)) => Some(current.min(before)),
            (current, before) => current.or(before),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_s(seconds: u64) -> Now {
        Now::from_s(1_800_000_000 + seconds)
    }

    #[test]
    fn the_clocks_difference_is_the_least_of_a_minute_and_lag_is_what_is_beyond() {
        let mut remote = Remote::new("a", 1, 1, at_s(0));
        for (second, wall_ms) in [(0, 5040), (1, 5007), (2, 5900)] {
            remote.note_frame(at_s(second), wall_ms, 0);
        }
        assert_eq!(remote.view(at_s(2), &Fingerprint::default()).clock_offset_ms, Some(5007));
        assert_eq!((remote.lag_ms(5017, 0), remote.lag_ms(0, 0)), (10, 0));
        remote.note_frame(at_s(61), 0, 30_000);
        assert_eq!(remote.offset.ms(), Some(-30_000), "the clock was set");
        remote.note_frame(at_s(130), 5100, 0);
        remote.note_frame(at_s(200), 5200, 0);
        assert_eq!(remote.offset.ms(), Some(5100));
    }

    #[test]
    fn a_restart_is_no_conflict_and_two_processes_with_one_name_are() {
        let mut remote = Remote::new("a", 1, 1, at_s(0));
        remote.restarted(2, None, at_s(1));
        remote.note_other_epoch(at_s(3));
        assert!(!remote.has_conflict(at_s(20)));
        for second in 20..40 {
            remote.note_other_epoch(at_s(second));
        }
        assert!(remote.has_conflict(at_s(40)));
        assert!(!remote.has_conflict(at_s(60)), "one of them has ended");
    }
}
