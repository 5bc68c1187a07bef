//! What one socket has going on: the peers it speaks for, and the offers that were handed to it.
//!
//! Idle sockets are many, so a session is a hundred bytes and grows by what it holds: 64 bytes a
//! swarm, 48 bytes an offer of the last minute.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::Offer;
use super::directory::{OfferKey, Offerer, Route};
use crate::protocol::passkey::Passkey;
use crate::time::Now;
use crate::types::{InfoHash, PeerId, WebPeer};

/// How long an offer waits for its answer: clients give up after 50 seconds. It is also the time
/// over which offers to a socket are limited, so that one list serves both.
pub const OFFER_AGE_S_MAX: u64 = 60;

/// Seconds between two looks over a session's peers at least: whoever has many of them and asks for
/// one too many again and again makes us look once a second.
const LOOK_INTERVAL_S: u64 = 1;

/// The part of a socket's quota of offers that one source may use.
const SOURCE_PART: usize = 4;

/// One socket's part: the swarms it is in, the offers that wait for its answers.
#[derive(Debug)]
pub struct Session {
    pub(super) route: Route,
    pub(super) source: IpAddr,
    /// The passkey it was opened with.
    pub(super) passkey: Option<Box<Passkey>>,
    /// In order of their names, which are random: found by halving, whatever clients choose.
    peers: Vec<Peer>,
    /// None of the peers announced before this moment, and stayed.
    oldest: Now,
    /// When they were last looked over.
    looked_at: Now,
    /// Oldest first.
    offers: VecDeque<HandedOffer>,
}

/// A peer that a socket speaks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) name: WebPeer,
    pub(super) info_hash: InfoHash,
    pub(super) peer_id: PeerId,
    /// When it announced last, on this socket.
    pub(super) latest: Now,
}

#[derive(Clone, Copy, Debug)]
struct HandedOffer {
    key: OfferKey,
    offerer: WebPeer,
    at: Now,
    source: Offerer,
    is_open: bool,
}

impl Session {
    pub(super) fn new(route: Route, source: IpAddr) -> Self {
        let (oldest, looked_at) = (Now::from_s(0), Now::from_s(0));
        let (peers, offers) = Default::default();
        Self { route, source, passkey: None, peers, oldest, looked_at, offers }
    }

    /// Where mail for this socket goes.
    pub fn route(&self) -> Route {
        self.route
    }

    /// Whose socket it is.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// Swarms that the socket is in, once for each of its peer ids there.
    pub fn torrents(&self) -> usize {
        self.peers.len()
    }

    pub(super) fn peers(&self) -> &[Peer] {
        &self.peers
    }

    pub(super) fn speaks_for(&self, name: &WebPeer) -> bool {
        self.position(name).is_ok()
    }

    pub(super) fn join(&mut self, peer: Peer) {
        match self.position(&peer.name) {
            Ok(at) => self.peers[at] = peer,
            Err(at) => {
                if self.peers.is_empty() {
                    self.peers.reserve_exact(1); // most sockets are in one swarm
                }
                self.peers.insert(at, peer);
            }
        }
    }

    /// Drops the peers that have not announced for `age_s`, telling `leave` of each.
    pub(super) fn drop_silent(&mut self, now: Now, age_s: u64, mut leave: impl FnMut(&Peer)) {
        // The age is asked for anew each time: a reload may have changed it.
        if now < self.oldest.plus_s(age_s) || now < self.looked_at.plus_s(LOOK_INTERVAL_S) {
            return;
        }
        let mut oldest = now;
        self.peers.retain(|it| {
            if it.latest.plus_s(age_s) <= now {
                leave(it);
                return false;
            }
            oldest = oldest.min(it.latest);
            true
        });
        (self.oldest, self.looked_at) = (oldest, now);
        if self.peers.capacity() > 8 + 4 * self.peers.len() {
            self.peers.shrink_to(2 * self.peers.len());
        }
    }

    pub(super) fn leave(&mut self, name: &WebPeer) {
        if let Ok(at) = self.position(name) {
            self.peers.remove(at);
        }
    }

    fn position(&self, name: &WebPeer) -> Result<usize, usize> {
        self.peers.binary_search_by(|it| it.name.0.cmp(&name.0))
    }

    /// Remembers an offer that is handed to this socket, unless `per_minute_max` were within the
    /// last minute, or one source would use more than a quarter of them: it may not keep all others
    /// from the socket. Says whether it may be handed over.
    pub(super) fn take_offer(&mut self, now: Now, offer: Offer, per_minute_max: u32) -> bool {
        self.forget_offers(now);
        let Offer { key, offerer, source } = offer;
        let quota = per_minute_max as usize;
        let used = self.offers.iter().filter(|it| it.source == source).count();
        if self.offers.len() >= quota || used >= (quota / SOURCE_PART).max(1) {
            return false;
        }
        self.offers.push_back(HandedOffer { key, offerer, at: now, source, is_open: true });
        true
    }

    /// Who made the offer that is answered; an offer is answered once.
    pub(super) fn answer_offer(&mut self, now: Now, key: OfferKey) -> Option<WebPeer> {
        self.forget_offers(now);
        let mut newest_first = self.offers.iter_mut().rev();
        let offer = newest_first.find(|it| it.key == key && it.is_open)?;
        offer.is_open = false;
        Some(offer.offerer)
    }

    fn forget_offers(&mut self, now: Now) {
        while self.offers.front().is_some_and(|it| it.at.plus_s(OFFER_AGE_S_MAX) <= now) {
            self.offers.pop_front();
        }
        if self.offers.capacity() > 8 + 4 * self.offers.len() {
            self.offers.shrink_to(2 * self.offers.len());
        }
    }
}
