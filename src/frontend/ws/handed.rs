//! The offers handed to one socket: a quota for each of its torrents, shared fairly between
//! networks, and the memory of offers that may still be answered.
//!
//! ```text
//! score of an offer = offers of its network in the last minute / shares of such a network, the
//!                     most of: IPv6 /64 1, /48 2, /32 8; IPv4 /32 1, /24 2, /16 8
//! ```
//!
//! An offer is handed over at once or never. Over the quota it must displace an earlier offer: the
//! one with the highest score and, among equal scores, that of the network with the worst lot for
//! this minute. So the order of arrival decides nothing: a network that floods loses against one
//! that does not, each of n networks with equal demand has a chance of quota / n, and repeating
//! does not improve it. Within one network each offer draws a lot. A displaced offer no longer
//! counts, but may still be answered. So the receiver gets more than the quota: from n networks,
//! quota × (1 + ln(n / quota)), and four times the quota if each first used it up alone.

use std::collections::VecDeque;

use ahash::RandomState;
use fastrand::Rng;

use super::PendingOffer;
use super::directory::{NETWORKS, OfferKey, OfferNetworks};
use crate::time::Now;
use crate::types::WebPeer;

/// Seconds for which an offer may be answered: clients give up after 50 seconds. Also the period of
/// the limit on offers to a socket, so that one list serves both.
pub const OFFER_AGE_S_MAX: u64 = 60;

/// The most offers that a socket is handed in a minute for all of its torrents, unless the quota of
/// one torrent is higher; and the most that it remembers: 56 KiB. A seeder of 1000 torrents gets 17
/// a second.
const OFFERS_MAX: usize = 1024;

/// The most offers that a socket remembers without a quota: 224 KiB. A load tester answers within a
/// second, so a socket can answer 4000 offers a second.
const OFFERS_UNLIMITED_MAX: usize = 4096;

/// The share of a network of each length, relative to the narrowest.
const SHARES: [u32; NETWORKS] = [1, 2, 8];

/// The least common multiple of the shares, so that scores are whole numbers.
const SCALE: u32 = 8;

/// Counters of networks, for each length. Tags are random and have 16 bits; two networks of one
/// minute share a counter, and so their score, with a probability of 1 in 4096.
const CELLS: usize = 4096;

/// The most offers of one network, in multiples of the quota: without this bound, a network that
/// offers a hundred times as often would double its offers by better lots.
const OWN_TIMES_MAX: usize = 2;

/// The offers handed to one socket in the last minute.
#[derive(Debug, Default)]
pub(super) struct HandedOffers {
    /// Oldest first.
    list: VecDeque<HandedOffer>,
}

/// The random order of networks, which no client can predict.
#[derive(Debug)]
pub(super) struct NetworkLots {
    hash: RandomState,
    random: Rng,
}

impl NetworkLots {
    /// The lots that follow from a key.
    pub(super) fn new(key: u64) -> Self {
        let mut random = Rng::with_seed(key);
        let mut seed = || random.u64(..);
        let hash = RandomState::with_seeds(seed(), seed(), seed(), seed());
        Self { hash, random }
    }

    /// The lot of a network for one torrent of one socket in this minute.
    fn of_network(&self, now: Now, torrent: u32, networks: OfferNetworks) -> u16 {
        let [narrowest, ..] = networks.0;
        let minute = now.seconds() / OFFER_AGE_S_MAX;
        let [one, other, ..] = self.hash.hash_one((torrent, narrowest, minute)).to_le_bytes();
        u16::from_le_bytes([one, other])
    }
}

/// The limit on offers to a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quota {
    /// Offers per minute and torrent; 0: no limit.
    pub(super) per_minute_max: u32,
}

impl Quota {
    fn applies_to(self, offer: &PendingOffer) -> bool {
        self.per_minute_max > 0 && !offer.is_exempt
    }

    fn per_torrent_max(self) -> usize {
        self.per_minute_max as usize
    }

    /// The most offers that are remembered.
    fn remembered_max(self) -> usize {
        match self.per_torrent_max() {
            0 => OFFERS_UNLIMITED_MAX,
            per_torrent_max => per_torrent_max.max(OFFERS_MAX),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct HandedOffer {
    key: OfferKey,
    offerer: WebPeer,
    at: Now,
    /// The receiving peer, which identifies the torrent within the socket: the random bytes of its
    /// name after the two bytes of its network.
    torrent: u32,
    networks: OfferNetworks,
    /// The lot of its network and its own lot: among equal scores, the highest is displaced first.
    lots: (u16, u16),
    /// Whether it counts against the quota: not after it was displaced, and not if it comes from an
    /// exempt network.
    counts: bool,
    is_open: bool,
}

impl HandedOffers {
    /// Remembers an offer to `to`, one of the socket's peers, if the quota allows it; returns
    /// whether it does.
    pub(super) fn take(
        &mut self,
        now: Now,
        offer: &PendingOffer,
        to: &WebPeer,
        quota: Quota,
        lots: &mut NetworkLots,
    ) -> bool {
        self.forget(now);
        let [_, _, a, b, c, d, ..] = to.0;
        let torrent = u32::from_be_bytes([a, b, c, d]);
        let new = HandedOffer {
            key: offer.key,
            offerer: offer.offerer,
            at: now,
            torrent,
            networks: offer.networks,
            lots: (lots.of_network(now, torrent, offer.networks), lots.random.u16(..)),
            counts: quota.applies_to(offer),
            is_open: true,
        };
        let may = self.make_room_in_torrent(&new, quota) && self.make_room(&new, quota);
        if may {
            self.list.push_back(new);
        }
        may
    }

    /// Makes room for `new` in the quota of its torrent; returns whether there is room.
    fn make_room_in_torrent(&mut self, new: &HandedOffer, quota: Quota) -> bool {
        let in_torrent = self.list.iter().filter(|it| it.torrent == new.torrent);
        let (counted, handed) =
            in_torrent.fold((0, 0), |sum, it| (sum.0 + usize::from(it.counts), sum.1 + 1));
        if !new.counts || counted < quota.per_torrent_max() {
            return true;
        }
        let rivals = |it: &HandedOffer| it.counts && it.torrent == new.torrent;
        let Some(displaced) = self.loser(new, rivals) else { return false };
        let displaced = &mut self.list[displaced];
        let is_own = displaced.networks == new.networks;
        if is_own && handed >= OWN_TIMES_MAX * quota.per_torrent_max() {
            return false;
        }
        displaced.counts = false;
        true
    }

    /// Makes room for `new` in the socket's memory; returns whether there is room. Offers that no
    /// longer count are forgotten first. An offer from an exempt network is always handed over; the
    /// oldest offer is then forgotten.
    fn make_room(&mut self, new: &HandedOffer, quota: Quota) -> bool {
        if self.list.len() < quota.remembered_max() {
            return true;
        }
        let oldest_uncounted = self.list.iter().position(|it| !it.counts);
        let forgotten = match oldest_uncounted {
            None if new.counts => self.loser(new, |it| it.counts),
            None => Some(0),
            found => found,
        };
        forgotten.and_then(|at| self.list.remove(at)).is_some()
    }

    /// Returns the peer that made the answered offer, and forgets the offer: it is answered once.
    pub(super) fn answer(&mut self, now: Now, key: OfferKey) -> Option<WebPeer> {
        self.forget(now);
        let mut newest_first = self.list.iter_mut().rev();
        let offer = newest_first.find(|it| it.key == key && it.is_open)?;
        offer.is_open = false;
        Some(offer.offerer)
    }

    /// Bytes of heap memory: 56 per offer, and at most 56 KiB, 224 KiB without a quota, or 112
    /// times the quota where that is higher than [`OFFERS_MAX`].
    pub(super) fn bytes(&self) -> usize {
        self.list.capacity() * size_of::<HandedOffer>()
    }

    /// The rival that `new` displaces; `None` where `new` itself ranks lowest.
    fn loser(&self, new: &HandedOffer, rivals: impl Fn(&HandedOffer) -> bool) -> Option<usize> {
        let mut used = OfferCounts::default();
        used.add(new.networks);
        self.list.iter().filter(|it| rivals(it)).for_each(|it| used.add(it.networks));
        let rank = |it: &HandedOffer| (used.score(it.networks), it.lots);
        let rivals = self.list.iter().enumerate().filter(|(_, it)| rivals(it));
        let (at, worst) = rivals.max_by_key(|(_, it)| rank(it))?;
        (rank(worst) > rank(new)).then_some(at)
    }

    fn forget(&mut self, now: Now) {
        while self.list.front().is_some_and(|it| it.at.plus_s(OFFER_AGE_S_MAX) <= now) {
            self.list.pop_front();
        }
        if self.list.capacity() > 8 + 4 * self.list.len() {
            self.list.shrink_to(2 * self.list.len());
        }
    }
}

/// The number of offers of each network, by its tag.
struct OfferCounts([[u16; CELLS]; NETWORKS]);

impl Default for OfferCounts {
    fn default() -> Self {
        Self([[0; CELLS]; NETWORKS])
    }
}

impl OfferCounts {
    fn add(&mut self, networks: OfferNetworks) {
        for (counts, tag) in self.0.iter_mut().zip(networks.0) {
            let count = &mut counts[usize::from(tag) % CELLS];
            *count = count.saturating_add(1);
        }
    }

    /// The highest score of these networks: offers per share, in units of 1 / [`SCALE`].
    fn score(&self, networks: OfferNetworks) -> u32 {
        let counts = self.0.iter().zip(networks.0).map(|(it, tag)| it[usize::from(tag) % CELLS]);
        let scores = counts.zip(SHARES).map(|(count, shares)| u32::from(count) * SCALE / shares);
        scores.max().unwrap_or_default()
    }
}
