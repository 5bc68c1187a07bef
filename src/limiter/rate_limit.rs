//! One limit: a rate and a burst, the prices that follow from them at a moment, and the check
//! against the table.
//!
//! Loads are not lowered continuously. Instead prices and limit rise, by 2 to the power of the
//! elapsed part of the current half-life; at its end, prices return to their start values, and each
//! line has its loads halved at its next use. So decay costs one write of a line in a half-life (ln
//! 2 × burst / rate: 69 s by default), and prices are computed once for all lines, in steps of
//! 1/1024 half-life.
//!
//! Loads are integers up to 65535 and the limit is half of that for every burst and prefix, so the
//! price for a wide prefix is below 1. It is rounded up or down at random, in proportion.

use crate::limiter::Price;
use crate::limiter::blocked_cache::BlockedCache;
use crate::limiter::prefix::{PREFIXES, V4, V6};
use crate::limiter::table::{LoadTable, Lookup};
use crate::time::Now;

/// Steps of a half-life. A step is 0.07 % of the limit: seven announces of a burst of 10 000.
const STEPS: u64 = 1024;

/// Twice the limit of any load at the start of a half-life, and the limit at its end.
const LOAD_MAX: u64 = u16::MAX as u64;

/// A worker's view of one limit.
#[derive(Debug)]
pub(super) struct RateLimit {
    scale: Scale,
    moment: Moment,
    blocked: BlockedCache,
}

impl RateLimit {
    /// `rate` units a second, `burst` at once; zeros count as one.
    pub(super) fn new(rate: u32, burst: u32) -> Self {
        let scale = Scale::new(rate, burst);
        let moment = scale.at(Now::from_ns(0));
        Self { scale, moment, blocked: BlockedCache::new() }
    }

    /// Changes rate and burst. Nothing happens where they are the same.
    pub(super) fn set(&mut self, rate: u32, burst: u32) {
        let scale = Scale::new(rate, burst);
        if scale != self.scale {
            self.moment = scale.at(Now::from_ns(0));
            self.scale = scale;
            self.blocked.forget();
        }
    }

    /// Charges every prefix if none exceeds its limit by that; a `FREE` request is only checked.
    /// Otherwise charges none, and returns the ordinal (from 1) of this request among those refused
    /// in the source's cell of the cache. `hashes` are of the prefixes from `first` on; `dither` is
    /// a random number.
    #[inline]
    pub(super) fn ask<const N: usize, const FREE: bool>(
        &mut self,
        table: &LoadTable,
        now: Now,
        hashes: impl Fn(usize) -> u64,
        first: usize,
        price: Price,
        dither: u64,
    ) -> Result<(), u32> {
        let source = hashes(0);
        if self.blocked.holds(source, now) {
            return Err(self.blocked.count(source));
        }
        let (entries, loads) = self.weigh::<N>(table, now, hashes, first, price, dither);
        let mut over = false;
        for at in 0..N {
            // A price rounded down to 0 must not pass at the limit.
            let load = u32::from(entries[at].load) + u32::from(loads[at].max(1));
            over |= load > self.moment.limit;
        }
        if over {
            self.remember(source, entries.map(|it| it.load), first);
            return Err(self.blocked.count(source));
        }
        if !FREE {
            pay(&entries, loads);
        }
        Ok(())
    }

    /// Charges every prefix for work that was unknown when the source was admitted.
    #[inline]
    pub(super) fn charge<const N: usize>(
        &mut self,
        table: &LoadTable,
        now: Now,
        hashes: impl Fn(usize) -> u64,
        first: usize,
        price: Price,
        dither: u64,
    ) {
        let (entries, loads) = self.weigh::<N>(table, now, hashes, first, price, dither);
        pay(&entries, loads);
    }

    /// Finds the loads of all prefixes, and what the price adds to each.
    #[inline]
    fn weigh<'a, const N: usize>(
        &mut self,
        table: &'a LoadTable,
        now: Now,
        hashes: impl Fn(usize) -> u64,
        first: usize,
        price: Price,
        dither: u64,
    ) -> ([Lookup<'a>; N], [u16; N]) {
        self.advance_to(now);
        let eighths = self.scale.clamp(price);
        let entries = table.entries(std::array::from_fn(hashes), self.moment.epoch);
        let loads = std::array::from_fn(|at| self.moment.load(first + at, eighths, dither, at));
        (entries, loads)
    }

    #[inline]
    fn advance_to(&mut self, now: Now) {
        if now.ns().wrapping_sub(self.moment.start_ns) >= self.moment.length_ns {
            self.moment = self.scale.at(now);
        }
    }

    /// Remembers a source for as long as even one announce would exceed the limit. A load of twice
    /// the limit takes a half-life to fall to it; a smaller excess takes at least the same fraction
    /// of a half-life.
    #[cold]
    #[inline(never)]
    fn remember<const N: usize>(&mut self, source: u64, loads: [u16; N], first: usize) {
        let limit = u64::from(self.moment.limit);
        let excess = (0..N).map(|at| {
            let least = self.moment.load(first + at, Price::ANNOUNCE.eighths, 0, at).max(1);
            (u64::from(loads[at]) + u64::from(least)).saturating_sub(limit)
        });
        if let Some(excess) = excess.max().filter(|it| *it > 0) {
            let wait_ns = self.scale.half_life_ns / limit * excess;
            self.blocked.remember(source, self.moment.start_ns.saturating_add(wait_ns));
        }
    }
}

/// Charges an address exactly, and networks roughly: all workers may charge one address at once,
/// where accuracy matters; a few uncounted requests of a network do not.
#[inline]
fn pay<const N: usize>(entries: &[Lookup<'_>; N], loads: [u16; N]) {
    for (at, entry) in entries.iter().enumerate() {
        entry.charge(loads[at], at > 0);
    }
}

/// The values that follow from rate and burst.
#[derive(Clone, Debug, PartialEq)]
struct Scale {
    half_life_ns: u64,
    /// Added to the epoch, so that loads from before a change of the half-life count as outdated.
    salt: u16,
    /// The largest price in eighths of an announce: the whole burst.
    eighths_max: u32,
    /// What an announce adds to the load of each prefix at the start of a half-life, in 2^-32.
    units: [u64; PREFIXES],
}

impl Scale {
    fn new(rate: u32, burst: u32) -> Self {
        let (rate, burst) = (rate.max(1), burst.max(1));
        // A load decays by ln 2 / half-life a second; at the limit, that must equal the rate.
        let half_life_s = std::f64::consts::LN_2 * f64::from(burst) / f64::from(rate);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 3e18")]
        let half_life_ns = ((half_life_s * 1e9) as u64).max(STEPS);
        let salt = (half_life_ns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16;
        let times = V4.iter().chain(&V6).map(|it| u64::from(it.times));
        let mut units = [0; PREFIXES];
        for (unit, times) in units.iter_mut().zip(times) {
            // The limit is the burst and half a unit: `burst` requests pass, however prices are
            // rounded.
            *unit = (LOAD_MAX << 32) / (2 * u64::from(burst) * times + 1);
        }
        let eighths_max = burst.saturating_mul(Price::ANNOUNCE.eighths);
        Self { half_life_ns, salt, eighths_max, units }
    }

    /// The price, capped to the burst.
    #[inline]
    fn clamp(&self, price: Price) -> u64 {
        u64::from(price.eighths.min(self.eighths_max))
    }

    fn at(&self, now: Now) -> Moment {
        let (epoch, gone_ns) = (now.ns() / self.half_life_ns, now.ns() % self.half_life_ns);
        let step_ns = self.half_life_ns.div_ceil(STEPS);
        let step = gone_ns / step_ns;
        #[expect(clippy::cast_precision_loss, reason = "below 1024")]
        let growth = (step as f64 * step_ns as f64 / self.half_life_ns as f64).exp2();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 2")]
        let growth = (growth * 65536.0) as u64;
        #[expect(clippy::cast_possible_truncation, reason = "meant to go round")]
        let epoch = (epoch as u16).wrapping_add(self.salt);
        #[expect(clippy::cast_possible_truncation, reason = "at most 65535")]
        let limit = ((LOAD_MAX * growth) >> 17) as u32;
        Moment {
            start_ns: now.ns() - gone_ns + step * step_ns,
            length_ns: step_ns.min(self.half_life_ns - step * step_ns),
            epoch,
            limit,
            prices: self.units.map(|it| (it * growth) >> 16),
        }
    }
}

/// The prices during one step of a half-life.
#[derive(Clone, Debug)]
struct Moment {
    start_ns: u64,
    length_ns: u64,
    /// Half-lives since the Unix epoch, and the scale's salt.
    epoch: u16,
    limit: u32,
    /// What an announce adds to the load of each prefix, in 2^-32.
    prices: [u64; PREFIXES],
}

impl Moment {
    /// What a price adds to a prefix's load, rounded up or down by the bits of `dither` for the
    /// `at`th prefix.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "bits of a random number")]
    fn load(&self, prefix: usize, eighths: impl Into<u64>, dither: u64, at: usize) -> u16 {
        let exact = (self.prices[prefix] * eighths.into()) >> 3;
        let dither = dither.rotate_right(13 * at as u32) as u32;
        u16::try_from((exact + u64::from(dither)) >> 32).unwrap_or(u16::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_and_limit_rise_together_and_start_anew_with_each_half_life() {
        let scale = Scale::new(100, 400);
        assert_eq!(scale.half_life_ns, 2_772_588_722);
        let start = Now::from_ns(scale.half_life_ns * 600_000_000);
        let first = scale.at(start);
        assert_eq!(first.limit, 32767);
        assert_eq!(first.start_ns, start.ns());
        for part in [0.25, 0.5, 0.75, 0.999] {
            let growth = f64::exp2(part);
            let gone_ns = (scale.half_life_ns as f64 * part) as u64;
            let moment = scale.at(Now::from_ns(start.ns() + gone_ns));
            assert_eq!(moment.epoch, first.epoch);
            assert!((f64::from(moment.limit) / 32767.5 / growth - 1.0).abs() < 0.001);
            for (now, then) in moment.prices.iter().zip(first.prices) {
                assert!((*now as f64 / then as f64 / growth - 1.0).abs() < 0.001);
            }
            let inside = moment.start_ns..moment.start_ns + moment.length_ns;
            assert!(inside.contains(&(start.ns() + gone_ns)));
        }
        let next = scale.at(Now::from_ns(start.ns() + scale.half_life_ns));
        assert_eq!((next.limit, next.epoch), (first.limit, first.epoch.wrapping_add(1)));
    }

    #[test]
    fn moments_cover_time_without_gaps() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..if cfg!(miri) { 200 } else { 20_000 } {
            let scale = Scale::new(random.u32(..1_000_000), random.u32(..10_000_000));
            let now = Now::from_ns(random.u64(1..2 << 60));
            let moment = scale.at(now);
            assert!((moment.start_ns..moment.start_ns + moment.length_ns).contains(&now.ns()));
            let next = scale.at(Now::from_ns(moment.start_ns + moment.length_ns));
            assert_eq!(next.start_ns, moment.start_ns + moment.length_ns);
            assert!((32767..=65535).contains(&moment.limit));
        }
    }

    #[test]
    fn the_whole_burst_fits_below_the_limit_at_any_time_and_no_announce_more() {
        for (rate, burst) in [(0, 0), (1, 16), (100, 400), (1000, 1000), (5, 10_000)] {
            let scale = Scale::new(rate, burst);
            for step in (0..STEPS).step_by(if cfg!(miri) { 37 } else { 1 }) {
                let moment = scale.at(Now::from_ns(scale.half_life_ns * step / STEPS));
                for (at, prefix) in V4.iter().chain(&V6).enumerate() {
                    let whole =
                        moment.prices[at] * u64::from(burst.max(1)) * u64::from(prefix.times);
                    assert!(whole >> 32 <= u64::from(moment.limit));
                    assert!(
                        (whole + moment.prices[at]).div_ceil(1 << 32) >= u64::from(moment.limit)
                    );
                }
                let dearest = moment.load(0, scale.clamp(Price::scrape(usize::MAX)), u64::MAX, 0);
                assert!(u32::from(dearest) <= moment.limit.max(1));
            }
        }
    }

    #[test]
    fn prices_below_one_are_right_on_average() {
        let scale = Scale::new(100, 400);
        let moment = scale.at(Now::from_ns(0));
        let mut random = fastrand::Rng::with_seed(1);
        for (at, prefix) in V4.iter().enumerate() {
            let count = if cfg!(miri) { 2_000 } else { 100_000 };
            let loads = (0..count).map(|_| moment.load(at, 8_u32, random.u64(..), at));
            let mean = loads.map(f64::from).sum::<f64>() / f64::from(count);
            let exact = 65535.0 / (800.0 * f64::from(prefix.times) + 1.0);
            let deviations = (mean - exact).abs() * f64::from(count).sqrt() * 2.0;
            assert!(deviations < 6.0, "{mean} {exact}");
        }
    }
}
