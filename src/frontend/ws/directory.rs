//! The socket of each WebRTC peer: the only state that the WebTorrent front ends of all workers
//! share.
//!
//! A route is written before its peer joins a swarm, and is removed together with the peer, under
//! the route's lock. So the end of an old socket never removes a peer that has returned on a new
//! socket, whichever of the two workers is faster.

use std::fmt;
use std::net::IpAddr;

use ahash::RandomState;
use dashmap::DashMap;
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::protocol::webtorrent::OfferId;
use crate::types::{InfoHash, PeerId, Scope, WebPeer};

/// The address of a socket: the worker, the slot, and the generation of the slot, so that a message
/// for a closed socket never reaches the next socket in its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketRoute {
    /// The stream worker.
    pub worker: u16,
    /// The slot in the worker's list of connections.
    pub slot: u32,
    /// The number of earlier sockets in the slot.
    pub generation: u32,
}

/// The routes of all WebRTC peers. Shared by all workers.
pub struct Directory {
    /// SipHash-2-4 with 128 bits of output: clients cannot construct colliding names.
    names: SipHasher24,
    routes: DashMap<WebPeer, SocketRoute, RandomState>,
}

impl fmt::Debug for Directory {
    /// Does not print the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("peers", &self.peers()).finish_non_exhaustive()
    }
}

impl Default for Directory {
    /// An empty directory with a random key.
    fn default() -> Self {
        let mut key = [0; 16];
        // Never fails on a Linux with getrandom; a predictable key would be worse than no tracker.
        getrandom::fill(&mut key).unwrap_or_else(|error| unreachable!("no randomness: {error}"));
        Self::new(&key)
    }
}

/// The key of an offer in the receiving socket's memory: a keyed hash of torrent, offer id and the
/// offerer's peer id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OfferKey([u8; 16]);

/// The number of network lengths that a source is counted by.
pub(super) const NETWORKS: usize = 3;

/// Prefix lengths by which an IPv6 source is counted, the narrowest network first: the owner of an
/// address has a /64, a site has a /48, a provider has one or several /32.
const V6_BITS: [u32; NETWORKS] = [64, 48, 32];

/// Prefix lengths by which an IPv4 source is counted.
const V4_BITS: [u32; NETWORKS] = [32, 24, 16];

/// The networks of a source of offers, as numbers that clients cannot choose. Two networks may
/// share a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OfferNetworks(pub(super) [u16; NETWORKS]);

impl Directory {
    /// An empty directory; `key` must be unknown to clients.
    pub fn new(key: &[u8; 16]) -> Self {
        let routes = DashMap::with_hasher(RandomState::new());
        Self { names: SipHasher24::new_with_key(key), routes }
    }

    /// The number of reachable peers.
    pub fn peers(&self) -> usize {
        self.routes.len()
    }

    /// The name of a client's peer. It begins with a hash of its network, a public IPv4 /24 or IPv6
    /// /48; in a local network every peer is a network of its own.
    pub(super) fn web_peer(
        &self,
        info_hash: &InfoHash,
        peer_id: &PeerId,
        source: IpAddr,
    ) -> WebPeer {
        let octets = match source {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        };
        let mut name = self.hash(&info_hash.0, &peer_id.0, &octets);
        if Scope::of(source) == Scope::Public {
            let OfferNetworks([_, network, _]) = self.networks(source);
            [name[0], name[1]] = network.to_be_bytes();
        }
        WebPeer(name)
    }

    /// The key of an offer. Its hash input differs in length from that of a peer's name, so the two
    /// cannot be confused.
    pub(super) fn offer_key(&self, info_hash: &InfoHash, id: &OfferId, from: &PeerId) -> OfferKey {
        OfferKey(self.hash(&info_hash.0, &from.0, &id.0))
    }

    /// The networks under which each receiving socket counts the offers of a source.
    pub(super) fn networks(&self, source: IpAddr) -> OfferNetworks {
        let (bits, lengths) = match source {
            IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, V4_BITS),
            IpAddr::V6(address) => (address.to_bits(), V6_BITS),
        };
        let family = u8::from(source.is_ipv6());
        OfferNetworks(lengths.map(|length| {
            let mut hasher = self.names;
            std::hash::Hasher::write(&mut hasher, &[family, length.to_le_bytes()[0]]);
            std::hash::Hasher::write(&mut hasher, &(bits >> (128 - length)).to_be_bytes());
            let [a, b, ..] = hasher.finish128().as_bytes();
            u16::from_be_bytes([a, b])
        }))
    }

    /// A key for random lots, as unknown to clients as the directory's own.
    pub(super) fn key_by_lot(&self) -> u64 {
        let mut hasher = self.names;
        std::hash::Hasher::write(&mut hasher, b"lots");
        std::hash::Hasher::finish(&hasher)
    }

    fn hash(&self, first: &[u8; 20], second: &[u8; 20], third: &[u8]) -> [u8; 16] {
        let mut hasher = self.names;
        for part in [first, second, third] {
            std::hash::Hasher::write(&mut hasher, part);
        }
        hasher.finish128().as_bytes()
    }

    pub(super) fn route(&self, peer: &WebPeer) -> Option<SocketRoute> {
        self.routes.get(peer).map(|it| *it)
    }

    /// Sets the peer's route, replacing any earlier one.
    pub(super) fn enter(&self, peer: WebPeer, route: SocketRoute) {
        self.routes.insert(peer, route);
    }

    /// Removes the peer if its route still is `route`, and calls `leave` before the peer can be
    /// entered again.
    pub(super) fn leave(&self, peer: &WebPeer, route: SocketRoute, leave: impl FnOnce()) {
        self.routes.remove_if(peer, |_, current| {
            let is_here = *current == route;
            if is_here {
                leave();
            }
            is_here
        });
    }
}
