//! A worker's handle to the limiter: the settings in force, the exempt networks, the counters.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use fastrand::Rng;

use crate::limiter::heavy_hitters::Candidates;
use crate::limiter::prefix::{FIRST_V6, V4, V6};
use crate::limiter::rate_limit::RateLimit;
use crate::limiter::{
    LimitAction, LimitCounters, LimitTable, Limiter, Options, Price, SLIP_ONE_IN, Verdict,
};
use crate::networks::NetworkSet;
use crate::time::Now;

/// One worker's access to the [`Limiter`] that all workers share. All addresses are unmapped.
#[derive(Debug)]
pub struct Handle {
    limiter: Arc<Limiter>,
    options: arc_swap::Cache<Arc<ArcSwap<Options>>, Arc<Options>>,
    /// The settings from which the fields below are derived.
    obeyed: Arc<Options>,
    exempt: NetworkSet,
    rate_limits: [RateLimit; LimitTable::ALL.len()],
    counters: Arc<LimitCounters>,
    heavy_hitters: Candidates,
    random: Rng,
}

impl Handle {
    /// Makes a handle that counts in `counters`, which no other worker writes. Replacing the
    /// contents of `options` takes effect with the next request. `seed` feeds the rounding of
    /// prices.
    pub fn new(
        limiter: Arc<Limiter>,
        options: Arc<ArcSwap<Options>>,
        counters: Arc<LimitCounters>,
        seed: u64,
    ) -> Self {
        let options = arc_swap::Cache::new(options);
        let obeyed = options.arc_swap().load_full();
        let rate_limits = limits(&obeyed).map(|(rate, burst)| RateLimit::new(rate, burst));
        let exempt = obeyed.exempt.iter().collect();
        let (heavy_hitters, random) = (limiter.heavy_hitters.join(), Rng::with_seed(seed));
        Self { limiter, options, obeyed, exempt, rate_limits, counters, heavy_hitters, random }
    }

    /// Decides on verified work, and charges it if it passes.
    #[inline]
    pub fn admit(&mut self, now: Now, source: IpAddr, price: Price) -> Verdict {
        let slips = |nth: u32| nth.is_multiple_of(SLIP_ONE_IN);
        self.ask::<false>(LimitTable::Verified, now, source, price, slips)
    }

    /// As [`Self::admit`] without slips, for announces whose client would take a slipped response
    /// for a success.
    #[inline]
    pub fn admit_strictly(&mut self, now: Now, source: IpAddr, price: Price) -> bool {
        self.ask::<false>(LimitTable::Verified, now, source, price, |_| false) == Verdict::Pass
    }

    /// Whether a stop gets a response. Charges nothing: see [`Handle::charge_stop`].
    #[inline]
    pub fn admit_stop(&mut self, now: Now, source: IpAddr) -> bool {
        let (stop, price) = (LimitTable::Stop, Price::ANNOUNCE);
        self.ask::<true>(stop, now, source, price, |_| false) == Verdict::Pass
    }

    /// Decides on work of a connection that is not an announce or scrape, and charges it if it
    /// passes.
    pub fn admit_connection_work(&mut self, now: Now, source: IpAddr, price: Price) -> bool {
        self.ask::<false>(LimitTable::Connection, now, source, price, |_| false) == Verdict::Pass
    }

    /// Whether a source is exempt, or limits are off. Uses the options of the latest decision, so
    /// that one request is handled under one set of options.
    #[inline]
    pub fn is_exempt(&self, source: IpAddr) -> bool {
        !self.is_limited_source(source)
    }

    /// Whether a source is in an exempt network, whether or not limits are on; as of the latest
    /// request.
    pub fn is_in_exempt_network(&self, source: IpAddr) -> bool {
        self.exempt.contains(source)
    }

    /// Charges a stop whose peer was not in the swarm.
    pub fn charge_stop(&mut self, now: Now, source: IpAddr) {
        if !self.limits(source) {
            return;
        }
        let (dither, price) = (self.random.u64(..), Price::ANNOUNCE);
        let Limiter { keys, tables, .. } = &*self.limiter;
        let rate_limit = &mut self.rate_limits[LimitTable::Stop as usize];
        let table = &tables[LimitTable::Stop as usize];
        match source {
            IpAddr::V4(address) => {
                let hash = |at| keys.of_v4(address, at);
                rate_limit.charge::<{ V4.len() }>(table, now, hash, 0, price, dither);
            }
            IpAddr::V6(address) => {
                let hash = |at| keys.of_v6(address, at);
                rate_limit.charge::<{ V6.len() }>(table, now, hash, FIRST_V6, price, dither);
            }
        }
    }

    /// Whether a verified source may add a new torrent to the store.
    #[inline]
    pub fn admit_new_torrent(&mut self, now: Now, source: IpAddr) -> bool {
        let (new_torrent, price) = (LimitTable::NewTorrent, Price::ANNOUNCE);
        self.ask::<false>(new_torrent, now, source, price, |_| false) == Verdict::Pass
    }

    /// Whether a response may be sent to an unverified source. Over the limit, a response is sent
    /// nevertheless if `slips` returns true: a client whose address is forged by others must still
    /// be able to connect.
    #[inline]
    pub fn admit_response(
        &mut self,
        now: Now,
        source: IpAddr,
        slips: impl FnOnce() -> bool,
    ) -> bool {
        let unverified = LimitTable::Unverified;
        self.ask::<false>(unverified, now, source, Price::ANNOUNCE, |_| slips()) != Verdict::Drop
    }

    /// `slips`: whether the nth request over the limit gets a response nevertheless.
    #[inline]
    fn ask<const FREE: bool>(
        &mut self,
        which: LimitTable,
        now: Now,
        source: IpAddr,
        price: Price,
        slips: impl FnOnce(u32) -> bool,
    ) -> Verdict {
        if !self.limits(source) {
            let action =
                if self.obeyed.enabled { LimitAction::Exempt } else { LimitAction::Passed };
            self.counters.of(which, action).add(1);
            return Verdict::Pass;
        }
        let dither = self.random.u64(..);
        let Limiter { keys, tables, .. } = &*self.limiter;
        let rate_limit = &mut self.rate_limits[which as usize];
        let table = &tables[which as usize];
        let asked = match source {
            IpAddr::V4(address) => {
                let hash = |at| keys.of_v4(address, at);
                rate_limit.ask::<{ V4.len() }, FREE>(table, now, hash, 0, price, dither)
            }
            IpAddr::V6(address) => {
                let hash = |at| keys.of_v6(address, at);
                rate_limit.ask::<{ V6.len() }, FREE>(table, now, hash, FIRST_V6, price, dither)
            }
        };
        let (action, verdict) = match asked {
            Ok(()) => (LimitAction::Passed, Verdict::Pass),
            Err(nth) if slips(nth) => (LimitAction::Slipped, Verdict::Slip),
            Err(_) => (LimitAction::Limited, Verdict::Drop),
        };
        if asked.is_err() && matches!(which, LimitTable::Verified | LimitTable::Stop) {
            self.note_heavy_hitter(now, source);
        }
        self.counters.of(which, action).add(1);
        if self.obeyed.dry_run { Verdict::Pass } else { verdict }
    }

    fn note_heavy_hitter(&mut self, now: Now, source: IpAddr) {
        let keys = &self.limiter.keys;
        let (source, hash) = match source {
            IpAddr::V4(address) => (source, keys.of_v4(address, 0)),
            IpAddr::V6(address) => {
                let network = Ipv6Addr::from_bits(address.to_bits() >> 64 << 64);
                (network.into(), keys.of_v6(network, 0))
            }
        };
        self.heavy_hitters.note(now, source, hash);
    }

    /// Whether a source is limited by the options that are in force now.
    #[inline]
    fn limits(&mut self, source: IpAddr) -> bool {
        let options = self.options.load();
        if !Arc::ptr_eq(options, &self.obeyed) {
            let options = options.clone();
            self.apply_options(options);
        }
        self.is_limited_source(source)
    }

    #[inline]
    fn is_limited_source(&self, source: IpAddr) -> bool {
        self.obeyed.enabled && !self.exempt.contains(source)
    }

    #[cold]
    #[inline(never)]
    fn apply_options(&mut self, options: Arc<Options>) {
        for (rate_limit, (rate, burst)) in self.rate_limits.iter_mut().zip(limits(&options)) {
            rate_limit.set(rate, burst);
        }
        self.exempt = options.exempt.iter().collect();
        self.obeyed = options;
    }
}

/// The burst for work of connections, in seconds of `rate`: a handshake for each of 250 clients
/// behind one address that return together. 400 handshakes with RSA took a core for more than a
/// sixth of six seconds on a busy host. `burst` is for announces; in handshakes it would take
/// seconds of a core.
const CONNECTION_BURST_S: u32 = 10;

/// Rate and burst of each table. A source may send as many stops of unknown peers as announces: its
/// tracker may have forgotten all of its peers.
fn limits(options: &Options) -> [(u32, u32); LimitTable::ALL.len()] {
    [
        (options.rate, options.burst),
        (options.unverified_rate, options.unverified_burst),
        (options.new_torrent_rate, options.new_torrent_burst),
        (options.rate, options.burst),
        (options.rate, options.rate.saturating_mul(CONNECTION_BURST_S)),
    ]
}
