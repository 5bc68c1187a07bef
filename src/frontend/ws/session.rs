//! What one socket has going on: the peers it speaks for, and the offers that were handed to it.
//!
//! Idle sockets are many, so a session is a hundred bytes and grows by what it holds: 64 bytes a
//! swarm, 56 bytes an offer of the last minute ([`SocketSession::held_bytes`]).

use std::net::IpAddr;

use super::directory::SocketRoute;
use super::handed::HandedOffers;
use crate::protocol::passkey::Passkey;
use crate::time::Now;
use crate::types::{InfoHash, PeerId, WebPeer};

/// Seconds between two looks over a session's peers at least: whoever has many of them and asks for
/// one too many again and again makes us look once a second.
const LOOK_INTERVAL_S: u64 = 1;

/// What a peer takes in the directory: 28 bytes in a table that is half full at the least.
const ROUTE_BYTES: usize = 60;

/// One socket's part: the swarms it is in, the offers that wait for its answers.
#[derive(Debug)]
pub struct SocketSession {
    pub(super) route: SocketRoute,
    pub(super) source: IpAddr,
    /// The passkey it was opened with.
    pub(super) passkey: Option<Box<Passkey>>,
    /// In order of their names, which are random: found by halving, whatever clients choose.
    peers: Vec<SocketPeer>,
    /// None of the peers announced before this moment, and stayed.
    oldest: Now,
    /// When they were last looked over.
    looked_at: Now,
    /// What others offered it.
    pub(super) offers: HandedOffers,
    /// Whether its client was warned that offers of its own cannot be used.
    pub(super) is_warned: bool,
}

/// A peer that a socket speaks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketPeer {
    pub(super) name: WebPeer,
    pub(super) info_hash: InfoHash,
    pub(super) peer_id: PeerId,
    /// When it announced last, on this socket.
    pub(super) latest: Now,
}

impl SocketSession {
    pub(super) fn new(route: SocketRoute, source: IpAddr) -> Self {
        let (oldest, looked_at) = (Now::from_s(0), Now::from_s(0));
        let (peers, offers) = Default::default();
        let (passkey, is_warned) = (None, false);
        Self { route, source, passkey, peers, oldest, looked_at, offers, is_warned }
    }

    /// Where messages for this socket go.
    pub fn route(&self) -> SocketRoute {
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

    /// Bytes that it takes beside itself, where its peers are reached included: at most 188 for
    /// each of the swarms that it may be in, and `HandedOffers::bytes`.
    pub fn held_bytes(&self) -> usize {
        let passkey = self.passkey.as_deref().map_or(0, size_of_val);
        self.peers.capacity() * size_of::<SocketPeer>()
            + self.peers.len() * ROUTE_BYTES
            + self.offers.bytes()
            + passkey
    }

    pub(super) fn peers(&self) -> &[SocketPeer] {
        &self.peers
    }

    pub(super) fn speaks_for(&self, name: &WebPeer) -> bool {
        self.position(name).is_ok()
    }

    pub(super) fn join(&mut self, peer: SocketPeer) {
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
    pub(super) fn drop_silent(&mut self, now: Now, age_s: u64, mut leave: impl FnMut(&SocketPeer)) {
        // The age is asked for anew each time: a reload may have changed it.
        if now < self.oldest.plus_s(age_s) || now < self.looked_at.plus_s(LOOK_INTERVAL_S) {
            return;
        }
        let mut oldest = now;
        self.peers.retain(|peer| {
            if peer.latest.plus_s(age_s) <= now {
                leave(peer);
                return false;
            }
            oldest = oldest.min(peer.latest);
            true
        });
        (self.oldest, self.looked_at) = (oldest, now);
        if self.peers.capacity() > 8 + 4 * self.peers.len() {
            self.peers.shrink_to(2 * self.peers.len());
        }
    }

    /// Drops the peers for which `is_over` holds.
    pub(super) fn drop_peers(&mut self, mut is_over: impl FnMut(&SocketPeer) -> bool) {
        self.peers.retain(|it| !is_over(it));
    }

    /// Drops one peer, and gives it.
    pub(super) fn leave(&mut self, name: &WebPeer) -> Option<SocketPeer> {
        self.position(name).ok().map(|at| self.peers.remove(at))
    }

    fn position(&self, name: &WebPeer) -> Result<usize, usize> {
        self.peers.binary_search_by(|it| it.name.0.cmp(&name.0))
    }
}
