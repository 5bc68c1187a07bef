//! The state of one socket: its peers, and the offers that were handed to it.
//!
//! Most sockets are idle, so a session is a hundred bytes and grows with its contents: 64 bytes a
//! swarm, 56 bytes an offer of the last minute ([`SocketSession::held_bytes`]).

use std::net::IpAddr;

use super::directory::SocketRoute;
use super::handed::HandedOffers;
use crate::protocol::passkey::Passkey;
use crate::time::Now;
use crate::types::{InfoHash, PeerId, WebPeer};

/// The least seconds between two checks of a session's peers: a client with many peers that
/// repeatedly exceeds its limit causes one check a second.
const LOOK_INTERVAL_S: u64 = 1;

/// Bytes of a peer in the directory: 28 bytes in a table that is at least half full.
const ROUTE_BYTES: usize = 60;

/// The state of one socket: its swarms, and the offers that await its answers.
#[derive(Debug)]
pub struct SocketSession {
    pub(super) route: SocketRoute,
    pub(super) source: IpAddr,
    /// The passkey it was opened with.
    pub(super) passkey: Option<Box<Passkey>>,
    /// Sorted by name for binary search. Names are random, whatever ids clients choose.
    peers: Vec<SocketPeer>,
    /// A lower bound of the latest announces of all peers.
    oldest: Now,
    /// When the peers were last checked.
    looked_at: Now,
    /// The offers that were handed to the socket.
    pub(super) offers: HandedOffers,
    /// Whether its client was warned that its offers cannot be used.
    pub(super) is_warned: bool,
}

/// A peer of a socket.
#[derive(Clone, Copy, Debug)]
pub(super) struct SocketPeer {
    pub(super) name: WebPeer,
    pub(super) info_hash: InfoHash,
    pub(super) peer_id: PeerId,
    /// Its latest announce on this socket.
    pub(super) latest: Now,
}

impl SocketSession {
    pub(super) fn new(route: SocketRoute, source: IpAddr) -> Self {
        let (oldest, looked_at) = (Now::from_s(0), Now::from_s(0));
        let (peers, offers) = Default::default();
        let (passkey, is_warned) = (None, false);
        Self { route, source, passkey, peers, oldest, looked_at, offers, is_warned }
    }

    /// The route for messages to this socket.
    pub fn route(&self) -> SocketRoute {
        self.route
    }

    /// The address of the client.
    pub fn source(&self) -> IpAddr {
        self.source
    }

    /// The number of swarms of the socket, counted once for each of its peer ids there.
    pub fn torrents(&self) -> usize {
        self.peers.len()
    }

    /// Bytes of heap memory, including the routes of its peers: at most 188 for each swarm that it
    /// may join, and `HandedOffers::bytes`.
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

    /// Drops the peers that have not announced for `age_s`, and calls `leave` for each.
    pub(super) fn drop_silent(&mut self, now: Now, age_s: u64, mut leave: impl FnMut(&SocketPeer)) {
        // `age_s` is a parameter because a reload may change it.
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

    /// Drops one peer, and returns it.
    pub(super) fn leave(&mut self, name: &WebPeer) -> Option<SocketPeer> {
        self.position(name).ok().map(|at| self.peers.remove(at))
    }

    fn position(&self, name: &WebPeer) -> Result<usize, usize> {
        self.peers.binary_search_by(|it| it.name.0.cmp(&name.0))
    }
}
