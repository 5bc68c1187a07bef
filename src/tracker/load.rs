//! The load of the process: the announce interval grows with it.
//!
//! The control thread measures the workers once a second and updates the [`Load`]; announces read
//! it. From [`BUSY_RATIO_CALM`] to [`BUSY_RATIO_FULL`] the interval rises from `interval_s` to
//! `interval_s_max`. It rises within about ten seconds, because a flood needs a fast reaction, and
//! falls within some minutes, because clients with long intervals return only then.

use std::sync::atomic::{AtomicU32, Ordering};

/// A worker that is busy for less than this share of its time does not stretch the interval.
pub const BUSY_RATIO_CALM: f64 = 0.6;
/// A worker that is busy for this share of its time stretches the interval to the maximum.
pub const BUSY_RATIO_FULL: f64 = 0.9;

/// Seconds in which the stretch covers two thirds of the distance to its target, upwards.
const RISE_S: f64 = 10.0;
/// The same, downwards.
const FALL_S: f64 = 120.0;

/// The fixed-point form of 1.0 in [`Load::stretch`].
pub(super) const WHOLE: u32 = 1 << 16;

/// The process's load: 0 to 1. Written by one thread, read by all workers.
#[derive(Debug, Default)]
pub struct Load(AtomicU32);

impl Load {
    /// Updates the load: in the last `elapsed_s` seconds the busiest worker was busy for
    /// `busy_ratio` of the time.
    pub fn observe(&self, elapsed_s: f64, busy_ratio: f64) {
        let range = BUSY_RATIO_FULL - BUSY_RATIO_CALM;
        let aim = ((busy_ratio - BUSY_RATIO_CALM) / range).clamp(0.0, 1.0);
        let before = self.ratio();
        let time_s = if aim > before { RISE_S } else { FALL_S };
        let step = 1.0 - (-elapsed_s.max(0.0) / time_s).exp();
        let after = (before + (aim - before) * step).clamp(0.0, 1.0);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 65536")]
        let stored = (after * f64::from(WHOLE)).round() as u32;
        self.0.store(stored, Ordering::Relaxed);
    }

    /// The position of the interval between the usual one (0) and the longest (1).
    pub fn ratio(&self) -> f64 {
        f64::from(self.stretch()) / f64::from(WHOLE)
    }

    /// The same, 0 to [`WHOLE`].
    #[inline]
    pub(super) fn stretch(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The interval between `usual_s` and `longest_s` (taken as `usual_s` where it is below) for a load
/// and, if `by_swarm`, for a swarm of this size: a peer in a swarm many times larger than a
/// response gains little by announcing often.
#[inline]
pub(super) fn interval_s(
    usual_s: u32,
    longest_s: u32,
    stretch: u32,
    by_swarm: bool,
    peers: u32,
) -> u32 {
    let stretch = if by_swarm { stretch.max(stretch_of_swarm(peers)) } else { stretch };
    let more_s = u64::from(longest_s.saturating_sub(usual_s)) * u64::from(stretch.min(WHOLE));
    let more_s = u32::try_from(more_s / u64::from(WHOLE)).unwrap_or(u32::MAX);
    usual_s.saturating_add(more_s)
}

/// 0 up to 128 peers, then linear in the number of doublings up to [`WHOLE`] from 8192 peers on.
fn stretch_of_swarm(peers: u32) -> u32 {
    const SMALL: u32 = 7; // log2 of 128
    const DOUBLINGS: u32 = 6;
    let doublings = peers.max(1).ilog2().saturating_sub(SMALL);
    doublings.min(DOUBLINGS) * (WHOLE / DOUBLINGS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_calm_process_stretches_nothing_and_a_full_one_all() {
        let load = Load::default();
        (0..100).for_each(|_| load.observe(1.0, BUSY_RATIO_CALM));
        assert_eq!(load.stretch(), 0);
        (0..100).for_each(|_| load.observe(1.0, 1.0));
        assert!(load.ratio() > 0.999, "{}", load.ratio());
        assert_eq!(interval_s(1800, 3600, WHOLE, false, 0), 3600);
        assert_eq!(interval_s(1800, 3600, WHOLE / 2, false, 0), 2700);
        assert_eq!(interval_s(1800, 3600, 0, false, u32::MAX), 1800);
        assert_eq!(interval_s(1800, 900, WHOLE, true, u32::MAX), 1800, "never shortened");
    }

    #[test]
    fn it_rises_within_seconds_and_falls_within_minutes_without_a_step() {
        let load = Load::default();
        let mut before = 0.0;
        for second in 1..=30 {
            load.observe(1.0, 1.0);
            assert!(load.ratio() > before && load.ratio() - before < 0.1, "at {second} s");
            before = load.ratio();
        }
        assert!(before > 0.9, "{before}");
        for second in 1..=60 {
            load.observe(1.0, 0.0);
            assert!(load.ratio() < before && before - load.ratio() < 0.01, "at {second} s");
            before = load.ratio();
        }
        assert!((0.5..0.65).contains(&before), "{before}");
        let steps = load.ratio();
        load.observe(120.0, 0.0);
        assert!(load.ratio() < steps / 2.0, "one long look is as good as many short ones");
        load.observe(-1.0, 1.0);
        load.observe(f64::INFINITY, 7.0);
        assert_eq!(load.stretch(), WHOLE, "odd figures leave it within its bounds");
    }

    #[test]
    fn large_swarms_come_back_later_if_asked_for() {
        let of = |peers| interval_s(1800, 3600, 0, true, peers);
        assert_eq!([of(0), of(1), of(255)], [1800; 3]);
        assert!(of(256) > 1800 && of(4096) > of(1024));
        assert_eq!(of(8192), of(u32::MAX));
        assert!((3590..=3600).contains(&of(8192)), "{}", of(8192));
        assert_eq!(interval_s(1800, 3600, WHOLE, true, 3), 3600, "load counts as well");
    }
}
