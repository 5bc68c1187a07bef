//! How much one source may ask for: a fixed table of loads that all workers share, after the idea
//! of Knot DNS's KRU.
//!
//! ```text
//! source ─▶ exempt? ─▶ limited just now? ─▶ a hash per prefix ─▶ all below? ─▶ charge all
//!           ranges     worker's own cache   /32 /24 /20 /18      limit × 1 32 256 768
//! ```
//!
//! Memory is fixed at the start and no sender can make it grow. A load falls exponentially, so that
//! there is no window to be exploited at its edges: `burst` units at once, `rate` for ever. Five
//! tables, as five things are limited: work for sources that have proved their address, responses
//! to those that have not, new torrents, stops of peers that are not there, and what connections
//! cause besides announces. **No source is charged for a datagram it may not have sent**: what is
//! unverified touches the second table only, and what is verified never does.
//!
//! A burst is what one client asks when it starts: clients announce all their torrents in the same
//! second, and over UDP each of them connects first. A stop is free where its peer was there, since
//! that peer has paid for itself; no client repeats a stop that was refused, and its peers would be
//! handed out for an hour.
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

/// What the operator may set; swapped whole on reload. Where a rate or a burst changes, the loads
/// of its table start anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether anything is limited.
    pub enabled: bool,
    /// Whether what is over a limit passes all the same, and is counted only.
    pub dry_run: bool,
    /// Units a second for verified work, for each IPv4 address (IPv6: each address); and as many
    /// stops of peers that are not there.
    pub rate: u32,
    /// Units at once after a silence.
    pub burst: u32,
    /// Responses a second to an address that has proved nothing.
    pub unverified_rate: u32,
    /// Responses at once to such an address after a silence.
    pub unverified_burst: u32,
    /// New torrents a second, for each address.
    pub new_torrent_rate: u32,
    /// New torrents at once after a silence.
    pub new_torrent_burst: u32,
    /// Verified requests a second over the limit from which on the kernel is to deny a source; 0:
    /// never. For callers of [`Limiter::heavy_hitters`].
    pub kernel_deny_rate: u32,
    /// Networks under no limit.
    pub exempt: Vec<IpNet>,
}

impl Default for Options {
    /// The rates of the reference: the largest honest sources known, a VPN exit with 5 000 users
    /// and a seedbox, need 55 and 6 announces a second; floods come with 1 000.
    ///
    /// The bursts are a seedbox that starts: it connects for each of its 10 000 torrents and
    /// announces all of them at once, 20 ms of one core. They are new torrents if the tracker has
    /// started empty or no other source is in them; 5 a second are let in from then on: at most
    /// 30 000 torrents live by the word of one address alone, those of the 3900 s of a peer's life.
    /// That they were completed leaves nothing: the store keeps a count for a day, and so 442 000
    /// of them, only if two networks have made it.
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

/// Bytes of the tables, each a power of two from 64 on. They are asked for once, at the start.
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
    /// 7 MiB in all: a part of a third-level cache. 4 MiB have 983 040 slots.
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
    /// Empty tables. Without a seed, which is for tests, the hash has random keys.
    ///
    /// # Panics
    /// Where a size is none of those allowed.
    pub fn new(sizes: Sizes, seed: Option<u64>) -> Self {
        let Sizes { verified, unverified, new_torrent, stop, connection } = sizes;
        let tables = [verified, unverified, new_torrent, stop, connection].map(LoadTable::new);
        Self { keys: PrefixKeys::new(seed), tables, heavy_hitters: HeavyHitters::default() }
    }

    /// Sources whose verified work was over the limit `rate_min` times in the last second or more,
    /// the worst first, with how often at least. An IPv6 source is one address of its /64.
    pub fn heavy_hitters(&self, now: Now, rate_min: u32) -> Vec<(IpAddr, u32)> {
        self.heavy_hitters.worst(now, rate_min)
    }

    /// Bytes of all tables: the same for ever.
    pub fn bytes(&self) -> usize {
        self.tables.iter().map(LoadTable::bytes).sum()
    }
}

/// What verified work costs, in eighths of an announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Price {
    eighths: u32,
}

impl Price {
    /// An announce: the unit of rates and bursts. One of a new torrent takes memory that lasts, and
    /// is charged to a table of its own instead of more here.
    pub const ANNOUNCE: Self = Self { eighths: 8 };

    /// A TLS handshake. Its signature is 0.3 ms (P-256) to 1.2 ms (RSA-2048) of a core, which is
    /// that of 10 to 50 announces; but of a VPN's exit with 5 000 users, many come with one each.
    pub const HANDSHAKE: Self = Self { eighths: 32 };

    /// A scrape of so many torrents: 1 + n/8.
    pub const fn scrape(torrents: usize) -> Self {
        let most = u32::MAX as usize - 8;
        #[expect(clippy::cast_possible_truncation, reason = "cut to what fits")]
        let torrents = if torrents < most { torrents as u32 } else { most as u32 };
        Self { eighths: 8 + torrents }
    }
}

/// What is to become of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Serve it.
    Pass,
    /// Over the limit, and one in [`SLIP_ONE_IN`]: an announce without an event, as those are that
    /// come at the interval, may get a response with no peers and a long interval, which
    /// honest clients obey.
    Slip,
    /// Over the limit: no response over UDP, where silence makes clients wait longer than an error
    /// does; a refusal over HTTP.
    Drop,
}

/// Of so many requests over the limit of verified work, the last gets a response.
pub const SLIP_ONE_IN: u32 = 16;
