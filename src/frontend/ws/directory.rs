//! Who is where: the one thing that the WebTorrent front ends of all workers share.
//!
//! A route is written before its peer joins a swarm, and is taken back together with the peer,
//! under the route's lock. So a peer that comes back on a new socket while its old one closes is
//! never thrown out by the old one's end, whichever of two workers is faster.

use std::fmt;
use std::net::IpAddr;

use ahash::RandomState;
use dashmap::DashMap;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::protocol::webtorrent::OfferId;
use crate::types::{InfoHash, PeerId, WebPeer};

/// Where a socket is: the worker, its slot there, and which of the slot's sockets, so that mail for
/// one that has gone reaches nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Route {
    /// The stream worker.
    pub worker: u16,
    /// The slot in the worker's list of connections.
    pub slot: u32,
    /// How often the slot was used before.
    pub generation: u32,
}

/// Where every WebRTC peer's socket is. Shared by all workers.
pub struct Directory {
    /// SipHash-2-4 with 128 bits of output: names that nobody can make collide.
    names: SipHasher24,
    routes: DashMap<WebPeer, Route, RandomState>,
}

impl fmt::Debug for Directory {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("peers", &self.peers()).finish_non_exhaustive()
    }
}

impl Default for Directory {
    /// An empty directory under a random key.
    fn default() -> Self {
        let mut key = [0; 16];
        // Fails on no Linux that has getrandom; a known key would be worse than no tracker.
        getrandom::fill(&mut key).unwrap_or_else(|error| unreachable!("no randomness: {error}"));
        Self::new(&key)
    }
}

/// An offer as the socket that it was handed to remembers it: a keyed hash of torrent, offer id and
/// the offerer's peer id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OfferKey([u8; 16]);

/// A source that makes offers, as a number that clients cannot choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offerer(pub(super) u32);

impl Directory {
    /// An empty directory; `key` must be unknown to clients.
    pub fn new(key: &[u8; 16]) -> Self {
        let routes = DashMap::with_hasher(RandomState::new());
        Self { names: SipHasher24::new_with_key(key), routes }
    }

    /// Peers that can be reached.
    pub fn peers(&self) -> usize {
        self.routes.len()
    }

    /// The name of a client's peer.
    pub(super) fn web_peer(
        &self,
        info_hash: &InfoHash,
        peer_id: &PeerId,
        source: IpAddr,
    ) -> WebPeer {
        let source = match source {
            IpAddr::V4(it) => it.to_ipv6_mapped().octets(),
            IpAddr::V6(it) => it.octets(),
        };
        WebPeer(self.hash(&info_hash.0, &peer_id.0, &source))
    }

    /// The name of an offer. Of another length than what a peer is named by, so never mistaken.
    pub(super) fn offer_key(&self, info_hash: &InfoHash, id: &OfferId, from: &PeerId) -> OfferKey {
        OfferKey(self.hash(&info_hash.0, &from.0, &id.0))
    }

    /// What offers of one source are counted under at each socket that they go to: whoever has one
    /// IPv6 address has a /64 of them. Two sources may share a number; they share a quota then.
    pub(super) fn offerer(&self, source: IpAddr) -> Offerer {
        let prefix = match source {
            IpAddr::V4(it) => it.to_ipv6_mapped().to_bits(),
            IpAddr::V6(it) => it.to_bits() >> 64,
        };
        let mut hasher = self.names;
        std::hash::Hasher::write(&mut hasher, &prefix.to_be_bytes());
        let [a, b, c, d, ..] = hasher.finish128().as_bytes();
        Offerer(u32::from_be_bytes([a, b, c, d]))
    }

    fn hash(&self, first: &[u8; 20], second: &[u8; 20], third: &[u8]) -> [u8; 16] {
        let mut hasher = self.names;
        for part in [first, second, third] {
            std::hash::Hasher::write(&mut hasher, part);
        }
        hasher.finish128().as_bytes()
    }

    pub(super) fn route(&self, peer: &WebPeer) -> Option<Route> {
        self.routes.get(peer).map(|it| *it)
    }

    /// From now on the peer is at `route`, wherever it was before.
    pub(super) fn enter(&self, peer: WebPeer, route: Route) {
        self.routes.insert(peer, route);
    }

    /// Takes the peer out if it still is at `route`, and calls `leave` before anyone can enter it
    /// again.
    pub(super) fn leave(&self, peer: &WebPeer, route: Route, leave: impl FnOnce()) {
        self.routes.remove_if(peer, |_, current| {
            let is_here = *current == route;
            if is_here {
                leave();
            }
            is_here
        });
    }
}
