//! Rate limits per source: fixed tables of loads that all workers share, after the idea of Knot
//! DNS's KRU.
//!
//! ```text
//! source ─▶ exempt? ─▶ limited just now? ─▶ a hash per prefix ─▶ all below? ─▶ charge all
//!           ranges     worker's own cache   /32 /24 /20 /18      limit × 1 32 256 768
//! ```
//!
//! Memory is fixed at the start and no sender can make it grow. A load decays exponentially, so
//! there is no window whose edges could be exploited: `burst` units at once, `rate` in the long
//! run. Five kinds of work have a table each: work for verified sources, responses to unverified
//! sources, new torrents, stops of unknown peers, and work of connections besides announces. **No
//! source is charged for a datagram it may not have sent**: unverified requests touch the second
//! table only, and verified requests never do.
//!
//! A burst covers the start of one client: clients announce all their torrents in the same second,
//! and over UDP each announce needs a connect first. A stop is free if its peer was in the swarm,
//! because the announce of that peer was charged. A refused stop would do harm: no client repeats
//! it, and its peer would be handed out for an hour.
//!
//! [`Limiter`] is shared; each worker has a [`Handle`] to it.

mod blocked_cache;
mod cache_line;
mod counters;
mod handle;
mod heavy_hitters;
mod prefix;
mod rate_limit;
mod table;

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use counters::{LimitAction, LimitCounters, LimitTable};
pub use handle::Handle;
use heavy_hitters::HeavyHitters;
use prefix::PrefixKeys;
pub use prefix::{PrefixNetwork, networks_of};
use table::LoadTable;

use crate::time::Now;

/// The operator's settings, replaced as a whole on reload. A change of a rate or burst resets the
/// loads of its table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether limits are enforced.
    pub enabled: bool,
    /// Whether requests over a limit are served nevertheless, and only counted.
    pub dry_run: bool,
    /// Units per second of verified work, for each IPv4 or IPv6 address; and as many stops of
    /// unknown peers.
    pub rate: u32,
    /// Units at once after a pause.
    pub burst: u32,
    /// Responses per second to an unverified address.
    pub unverified_rate: u32,
    /// Responses at once to an unverified address after a pause.
    pub unverified_burst: u32,
    /// New torrents per second, for each address.
    pub new_torrent_rate: u32,
    /// New torrents at once after a pause.
    pub new_torrent_burst: u32,
    /// The rate of verified requests over the limit, per second, at which the kernel drops a
    /// source's packets; 0: never. For callers of [`Limiter::heavy_hitters`].
    pub kernel_deny_rate: u32,
    /// Exempt networks.
    pub exempt: Vec<IpNet>,
}

impl Default for Options {
    /// Basis of the rates: the largest known honest sources, a VPN exit with 5 000 users and a
    /// seedbox, send 55 and 6 announces a second; floods send 1 000.
    ///
    /// Basis of the bursts: a starting seedbox connects for each of its 10 000 torrents and
    /// announces all of them at once, which takes 20 ms of one core. These are new torrents if the
    /// tracker has started empty or no other source has them. Afterwards 5 a second are accepted:
    /// at most 30 000 torrents exist through one address alone, those of the 3900 s of a peer's
    /// life. Completed counts do not add to this: the store keeps a count for a day, 442 000
    /// torrents, only if two networks made it.
    fn default() -> Self {
        let loopback_v4 = Ipv4Net::new_assert([127, 0, 0, 0].into(), 8);
        let loopback_v6 = Ipv6Net::new_assert(std::net::Ipv6Addr::LOCALHOST, 128);
        Self {
            enabled: true,
            dry_run: false,
            rate: 100,
            burst: 10_000,
            unverified_rate: 1000,
            unverified_burst: 10_000,
            new_torrent_rate: 5,
            new_torrent_burst: 10_000,
            kernel_deny_rate: 0,
            exempt: vec![loopback_v4.into(), loopback_v6.into()],
        }
    }
}

/// Bytes of the tables, each a power of two, at least 64. Allocated once, at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Verified work. A source takes up to four or five slots of 4.3 bytes.
    pub verified: usize,
    /// Responses to unverified sources: an attacker can forge any number, so a smaller table loses
    /// nothing.
    pub unverified: usize,
    /// New torrents.
    pub new_torrent: usize,
    /// Stops of peers that are not there: honest clients send few of them.
    pub stop: usize,
    /// Work over TCP besides announces and scrapes: sources that have connected, so fewer.
    pub connection: usize,
}

impl Default for Sizes {
    /// 7 MiB in total: a part of a third-level cache. 4 MiB have 983 040 slots.
    fn default() -> Self {
        let (verified, unverified, new_torrent) = (4 << 20, 1 << 20, 1 << 20);
        Self { verified, unverified, new_torrent, stop: 512 << 10, connection: 512 << 10 }
    }
}

/// The loads of all sources, shared by all workers.
#[derive(Debug)]
pub struct Limiter {
    keys: PrefixKeys,
    tables: [LoadTable; LimitTable::ALL.len()],
    heavy_hitters: HeavyHitters,
}

impl Limiter {
    /// Makes empty tables. The hash has random keys without a `seed`, which is for tests.
    ///
    /// # Panics
    /// If a size is invalid.
    pub fn new(sizes: Sizes, seed: Option<u64>) -> Self {
        let Sizes { verified, unverified, new_torrent, stop, connection } = sizes;
        let tables = [verified, unverified, new_torrent, stop, connection].map(LoadTable::new);
        Self { keys: PrefixKeys::new(seed), tables, heavy_hitters: HeavyHitters::default() }
    }

    /// Sources whose verified work was over the limit at least `rate_min` times in the last second,
    /// the worst first, each with a lower bound of that number. An IPv6 source is one address of
    /// its /64.
    pub fn heavy_hitters(&self, now: Now, rate_min: u32) -> Vec<(IpAddr, u32)> {
        self.heavy_hitters.worst(now, rate_min)
    }

    /// Bytes of all tables, which never change.
    pub fn bytes(&self) -> usize {
        self.tables.iter().map(LoadTable::bytes).sum()
    }
}

/// The price of verified work, in eighths of an announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price {
    eighths: u32,
}

impl Price {
    /// An announce: the unit of rates and bursts. An announce of a new torrent takes lasting
    /// memory, which is charged to a separate table instead of a higher price.
    pub const ANNOUNCE: Self = Self { eighths: 8 };

    /// A TLS handshake. Its signature takes 0.3 ms (P-256) to 1.2 ms (RSA-2048) of a core, as much
    /// as 10 to 50 announces; but each of the 5 000 users of a VPN exit may need one.
    pub const HANDSHAKE: Self = Self { eighths: 32 };

    /// A scrape of `torrents` torrents: 1 + n/8 announces.
    pub const fn scrape(torrents: usize) -> Self {
        let most = u32::MAX as usize - 8;
        #[expect(clippy::cast_possible_truncation, reason = "cut to what fits")]
        let torrents = if torrents < most { torrents as u32 } else { most as u32 };
        Self { eighths: 8 + torrents }
    }
}

/// The decision on a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it.
    Pass,
    /// Over the limit, and the last of [`SLIP_ONE_IN`]: an announce without an event, as sent at
    /// the interval, may get a response with no peers and a long interval, which honest clients
    /// follow.
    Slip,
    /// Over the limit: no response over UDP, where silence makes clients wait longer than an error
    /// does; a refusal over HTTP.
    Drop,
}

/// Of this many requests of verified work over the limit, the last gets a response.
pub const SLIP_ONE_IN: u32 = 16;
