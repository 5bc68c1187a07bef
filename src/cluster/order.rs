//! The order of another node's frames of deltas. They are applied in the order of their numbers and
//! each once: a frame that comes too early waits, and those that are missing are requested from the
//! node that made them, which keeps the latest in its log.
//!
//! A record that were applied late would undo a later one of the same peer. A frame that is sent
//! again, by the broker or by somebody who recorded it, is not applied twice.

use std::collections::BTreeMap;

use crate::time::Now;

/// How long to wait for frames that were only overtaken, before they are requested.
const OVERTAKEN_NS: u64 = 200_000_000;

/// How long to wait for requested frames, before they are requested again.
const REQUEST_NS: u64 = 1_000_000_000;

/// How often frames are requested without any of them coming, before they are given up.
const REQUESTS_MAX: u32 = 6;

/// The most frames that are sent for one request.
pub(super) const FRAMES_PER_REQUEST: u64 = 64;

/// The most frames that wait for those before them: 2 MiB.
const EARLY_MAX: u64 = FRAMES_PER_REQUEST;

/// What to do with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Apply it: it is the next one.
    Apply,
    /// It was applied before, or given up.
    Repeated,
    /// Frames before it are missing: see [`FrameOrder::keep`].
    Early,
}

/// What to do about a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GapAction {
    /// Request frames from this number on.
    Request(u64),
    /// This many frames were given up, the first of them missing since the moment.
    GiveUp(u64, Now),
}

/// The frames of one node, by number.
#[derive(Clone, Debug)]
pub(super) struct FrameOrder {
    /// The number of the next frame to apply.
    next: u64,
    /// Frames before this number are known to exist.
    known: u64,
    /// When the last frame without a gap before it was applied.
    complete_at: Now,
    gap: Option<Gap>,
    /// Payloads of frames that came too early, by number.
    early: BTreeMap<u64, Vec<u8>>,
}

#[derive(Clone, Copy, Debug)]
struct Gap {
    /// When to request frames.
    due: Now,
    /// The number behind the frames requested last.
    requested: u64,
    /// Requests without a frame that came.
    requests: u32,
}

impl FrameOrder {
    /// Frames from `next` on are to be applied.
    pub(super) fn new(next: u64, now: Now) -> Self {
        Self { next, known: next, complete_at: now, gap: None, early: BTreeMap::new() }
    }

    /// Whether frames are missing.
    pub(super) fn has_gap(&self) -> bool {
        self.gap.is_some()
    }

    /// A frame has arrived.
    pub(super) fn frame(&mut self, number: u64, now: Now) -> Turn {
        if number < self.next {
            return Turn::Repeated;
        }
        self.exists(number.saturating_add(1), now);
        if number > self.next {
            return Turn::Early;
        }
        self.next = number.saturating_add(1);
        if self.next >= self.known {
            (self.gap, self.complete_at) = (None, now);
        } else if let Some(gap) = &mut self.gap {
            gap.requests = 0;
            // Where the last of those requested has come, the next are requested at once.
            let wait_ns = if self.next >= gap.requested { 0 } else { REQUEST_NS };
            if gap.requested > 0 {
                gap.due = Now::from_ns(now.ns() + wait_ns);
            }
        }
        Turn::Apply
    }

    /// Keeps the payload of a frame that came too early, unless it is far ahead.
    pub(super) fn keep(&mut self, number: u64, payload: &[u8]) {
        if number > self.next && number - self.next <= EARLY_MAX {
            self.early.entry(number).or_insert_with(|| payload.to_vec());
        }
    }

    /// The payload of the next frame to apply, if it came too early; it counts as applied.
    pub(super) fn take_next(&mut self, now: Now) -> Option<Vec<u8>> {
        while let Some(first) = self.early.first_entry().filter(|it| *it.key() < self.next) {
            first.remove(); // it came again, or was given up
        }
        let first = self.early.first_entry().filter(|it| *it.key() == self.next)?;
        let (number, payload) = first.remove_entry();
        self.frame(number, now);
        Some(payload)
    }

    /// Frames before `known` were published.
    pub(super) fn exists(&mut self, known: u64, now: Now) {
        self.known = self.known.max(known);
        if self.next < self.known && self.gap.is_none() {
            let due = Now::from_ns(now.ns() + OVERTAKEN_NS);
            self.gap = Some(Gap { due, requested: 0, requests: 0 });
        }
        if self.gap.is_none() {
            self.complete_at = now;
        }
    }

    /// What is to be done now about a gap.
    pub(super) fn act(&mut self, now: Now) -> Option<GapAction> {
        let gap = self.gap.as_mut().filter(|it| now >= it.due)?;
        if gap.requests == REQUESTS_MAX {
            return self.skip_to(self.known, now);
        }
        gap.requests += 1;
        gap.requested = self.next.saturating_add(FRAMES_PER_REQUEST);
        gap.due = Now::from_ns(now.ns() + REQUEST_NS);
        Some(GapAction::Request(self.next))
    }

    /// Frames before `first` are no longer kept by the node that made them.
    pub(super) fn skip_to(&mut self, first: u64, now: Now) -> Option<GapAction> {
        let skipped = first.checked_sub(self.next).filter(|it| *it > 0)?;
        let missing_since = self.complete_at;
        self.next = first;
        self.known = self.known.max(first);
        self.gap = None;
        self.exists(self.known, now);
        if let Some(gap) = &mut self.gap {
            gap.due = now;
        }
        Some(GapAction::GiveUp(skipped, missing_since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at_ms(ms: u64) -> Now {
        Now::from_ns(1_800_000_000_000_000_000 + ms * 1_000_000)
    }

    #[test]
    fn frames_in_order_are_applied_once() {
        let mut order = FrameOrder::new(1, at_ms(0));
        for number in 1..=5 {
            assert_eq!(order.frame(number, at_ms(0)), Turn::Apply);
            assert_eq!(order.frame(number, at_ms(0)), Turn::Repeated);
        }
        assert!(!order.has_gap());
        assert_eq!(order.act(at_ms(10_000)), None);
    }

    #[test]
    fn overtaken_frames_are_waited_for() {
        let mut order = FrameOrder::new(1, at_ms(0));
        assert_eq!(order.frame(2, at_ms(0)), Turn::Early);
        assert_eq!(order.act(at_ms(199)), None);
        order.keep(2, b"two");
        assert_eq!(order.take_next(at_ms(199)), None);
        assert_eq!(order.frame(1, at_ms(199)), Turn::Apply);
        assert!(order.has_gap());
        assert_eq!(order.take_next(at_ms(199)), Some(b"two".to_vec()));
        assert_eq!(order.take_next(at_ms(199)), None);
        assert!(!order.has_gap());
        assert_eq!(order.frame(2, at_ms(199)), Turn::Repeated);
    }

    #[test]
    fn only_so_many_frames_wait_and_those_that_are_given_up_do_not_come_back() {
        let mut order = FrameOrder::new(1, at_ms(0));
        for number in (2..1000).chain([u64::MAX]) {
            assert_eq!(order.frame(number, at_ms(0)), Turn::Early);
            order.keep(number, b"");
        }
        assert_eq!(order.early.len() as u64, EARLY_MAX);
        assert!(order.skip_to(60, at_ms(0)).is_some());
        let waiting = (0..).map_while(|_| order.take_next(at_ms(0))).count() as u64;
        assert_eq!(waiting, EARLY_MAX + 2 - 60);
        assert!(order.early.is_empty());
    }

    #[test]
    fn missing_frames_are_requested_from_the_gap_on_until_the_end_is_reached() {
        let mut order = FrameOrder::new(10, at_ms(0));
        order.exists(210, at_ms(0));
        assert_eq!(order.act(at_ms(200)), Some(GapAction::Request(10)));
        assert_eq!(order.act(at_ms(1199)), None);
        for number in 10..74 {
            assert_eq!(order.frame(number, at_ms(300)), Turn::Apply);
        }
        assert_eq!(order.frame(211, at_ms(300)), Turn::Early, "one that is new");
        assert_eq!(order.act(at_ms(300)), Some(GapAction::Request(74)), "at once");
        assert_eq!(order.frame(74, at_ms(400)), Turn::Apply);
        assert_eq!(order.act(at_ms(1399)), None, "the others are on their way");
        assert_eq!(order.act(at_ms(1400)), Some(GapAction::Request(75)));
        for number in 75..=211 {
            assert_eq!(order.frame(number, at_ms(1500)), Turn::Apply);
        }
        assert!(!order.has_gap());
    }

    #[test]
    fn frames_that_nobody_sends_again_are_given_up() {
        let mut order = FrameOrder::new(1, at_ms(0));
        assert_eq!(order.frame(1, at_ms(1000)), Turn::Apply);
        order.exists(4, at_ms(5000));
        let mut requests = 0;
        let given_up = (5000..20_000).find_map(|ms| match order.act(at_ms(ms))? {
            GapAction::Request(2) => {
                requests += 1;
                None
            }
            other => Some(other),
        });
        assert_eq!(requests, 6);
        assert_eq!(given_up, Some(GapAction::GiveUp(2, at_ms(1000))));
        assert_eq!(order.frame(3, at_ms(20_000)), Turn::Repeated);
        assert_eq!(order.frame(4, at_ms(20_000)), Turn::Apply);
        assert!(!order.has_gap());
    }

    #[test]
    fn what_is_not_kept_is_skipped_and_the_rest_is_requested_at_once() {
        let mut order = FrameOrder::new(5, at_ms(0));
        order.exists(100, at_ms(0));
        assert_eq!(order.act(at_ms(200)), Some(GapAction::Request(5)));
        assert_eq!(order.skip_to(60, at_ms(210)), Some(GapAction::GiveUp(55, at_ms(0))));
        assert_eq!(order.skip_to(60, at_ms(210)), None);
        assert_eq!(order.act(at_ms(210)), Some(GapAction::Request(60)));
    }

    #[test]
    fn the_largest_numbers_do_no_harm() {
        let mut order = FrameOrder::new(u64::MAX - 1, at_ms(0));
        assert_eq!(order.frame(u64::MAX - 1, at_ms(0)), Turn::Apply);
        assert_eq!(order.frame(u64::MAX, at_ms(0)), Turn::Apply);
        order.exists(u64::MAX, at_ms(0));
        assert_eq!(order.act(at_ms(9999)), None);
    }
}
