//! Removes a client's own other address from its responses, if it announces over both families.
//!
//! Over HTTP a response holds peers of both families, and the store has no peer ids: a client with
//! an IPv4 and an IPv6 address is two peers. So a table of fixed size, shared by all workers,
//! stores the address of the latest HTTP announce for each torrent, peer id, port and family. A
//! response over one family omits the client's address of the other.
//!
//! ```text
//! slot   hash of torrent, peer id, port and family (32) | hash of the address (32)
//! ```
//!
//! A slot is overwritten by the next announce with its hash. With 65 536 slots (half a MiB) and 20
//! announces a second, a client's other announce is still there after an interval of half an hour.
//! With thousands a second it is there for seconds, which is enough for the two announces of a
//! starting client; and in swarms that large a client rarely gets its own address. A byte of the
//! peer id in each peer would enlarge the store by an eighth, and be less exact.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::RandomState;

use crate::store::{AnnounceResult, PeerBuffers};
use crate::types::{Announce, Contact, Family, PeerKind};

/// Slots; a power of two.
const SLOTS: usize = 1 << 16;

/// The latest addresses of clients, by family.
pub struct DualStackClients {
    keys: RandomState,
    slots: Box<[AtomicU64]>,
}

impl Default for DualStackClients {
    fn default() -> Self {
        let slots = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        Self { keys: RandomState::new(), slots }
    }
}

/// A client of a torrent over one family: its announce, its port, the family.
type FamilyAnnounce<'a> = (&'a Announce, u16, Family);

/// A peer in a response: its address, and its port in network byte order.
type PeerEndpoint = (IpAddr, [u8; 2]);

impl DualStackClients {
    /// Stores the source of an announce, and removes the client's own other address from the peers
    /// of its response.
    pub(super) fn remove_own_address(
        &self,
        announce: &Announce,
        room: &mut PeerBuffers<'_>,
        result: &mut AnnounceResult,
    ) {
        let Contact::Port(port) = announce.contact else { return };
        let address = announce.address_override.unwrap_or(announce.source);
        let (own, other) = match Family::of(address) {
            Family::V4 => (Family::V4, Family::V6),
            Family::V6 => (Family::V6, Family::V4),
        };
        self.note((announce, port, own), address);
        let Some(other_address) = self.address_hash_of((announce, port, other)) else { return };
        let is_own = |(address, its_port): PeerEndpoint| {
            its_port == port.to_be_bytes() && self.hash_of(address) == other_address
        };
        let kind = match other {
            Family::V4 => PeerKind::V4,
            Family::V6 => PeerKind::V6,
        } as usize;
        let bytes = result.bytes[kind];
        let left = match other {
            Family::V4 => without::<6>(&mut room.v4[..bytes], |it| is_own(v4_of(it))),
            Family::V6 => without::<18>(&mut room.v6[..bytes], |it| is_own(v6_of(it))),
        };
        if left < bytes {
            result.bytes[kind] = left;
            result.available[kind] -= 1;
        }
    }

    fn note(&self, client: FamilyAnnounce<'_>, address: IpAddr) {
        let (slot, tag) = self.place(client);
        slot.store(tag | u64::from(self.hash_of(address)), Ordering::Relaxed);
    }

    /// The hash of the client's latest address over a family.
    fn address_hash_of(&self, client: FamilyAnnounce<'_>) -> Option<u32> {
        let (slot, tag) = self.place(client);
        let word = slot.load(Ordering::Relaxed);
        let [_, low] = halves(word);
        (word ^ u64::from(low) == tag).then_some(low)
    }

    /// The slot of a client's announces over a family, and the upper half that identifies them.
    fn place(&self, (announce, port, family): FamilyAnnounce<'_>) -> (&AtomicU64, u64) {
        let Announce { info_hash, peer_id, .. } = announce;
        let hash = self.keys.hash_one((info_hash, peer_id, port, family));
        let [tag, low] = halves(hash);
        (&self.slots[low as usize % SLOTS], u64::from(tag | 1) << 32)
    }

    fn hash_of(&self, address: IpAddr) -> u32 {
        halves(self.keys.hash_one(address))[0]
    }
}

/// The upper and the lower half.
fn halves(word: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = word.to_be_bytes();
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])]
}

fn v4_of(&[a, b, c, d, port @ ..]: &[u8; 6]) -> PeerEndpoint {
    (IpAddr::from([a, b, c, d]), port)
}

fn v6_of(&[ref address @ .., high, low]: &[u8; 18]) -> PeerEndpoint {
    let address: [u8; 16] = *address;
    (IpAddr::from(address), [high, low])
}

/// Removes the one peer for which `is_own` returns true; returns the remaining bytes.
fn without<const STRIDE: usize>(
    peers: &mut [u8],
    is_own: impl FnMut(&[u8; STRIDE]) -> bool,
) -> usize {
    let (peers, _) = peers.as_chunks_mut::<STRIDE>();
    let Some(at) = peers.iter().position(is_own) else { return peers.len() * STRIDE };
    let last = peers.len() - 1;
    peers.swap(at, last);
    last * STRIDE
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::store::{Options, Store};
    use crate::time::Now;
    use crate::tracker::Tracker;
    use crate::types::{Event, InfoHash, PeerId};

    const NOW: Now = Now::from_s(1_800_000_000);

    fn tracker(store: &Arc<Store>, clients: &Arc<DualStackClients>, seed: u64) -> Tracker {
        let tracker = Tracker::without_upkeep(store.clone(), Arc::default(), seed);
        tracker.with_dual_stack(clients.clone())
    }

    fn store() -> Arc<Store> {
        Arc::new(Store::new(Options { shards: 2, seed: Some(1) }))
    }

    /// Announces a leecher over HTTP, or over UDP of its family; returns the ports it gets, by
    /// family.
    fn announce(
        tracker: &mut Tracker,
        source: &str,
        port: u16,
        id: u8,
        http: bool,
    ) -> [Vec<u16>; 2] {
        let source: IpAddr = source.parse().unwrap();
        let mut announce = Announce {
            info_hash: InfoHash([7; 20]),
            source,
            address_override: None,
            contact: Contact::Port(6880 + port),
            peer_id: PeerId([id; 20]),
            left: 1,
            event: Event::None,
            numwant: Some(50),
        };
        let (mut v4, mut v6) = ([0; 50 * 6], [0; 50 * 18]);
        let mut room = PeerBuffers { v4: &mut v4, v6: &mut v6, web: &mut [] };
        match source {
            _ if http => {}
            IpAddr::V4(_) => room.v6 = &mut [],
            IpAddr::V6(_) => room.v4 = &mut [],
        }
        let told = tracker.announce(NOW, &mut announce, &mut (), room).unwrap();
        let ports = |peers: &[u8], stride: usize| -> Vec<u16> {
            let port = |it: &[u8]| u16::from_be_bytes([it[stride - 2], it[stride - 1]]) - 6880;
            let mut ports: Vec<_> = peers.chunks(stride).map(port).collect();
            ports.sort_unstable();
            ports
        };
        [ports(&v4[..told.bytes[0]], 6), ports(&v6[..told.bytes[1]], 18)]
    }

    const NOBODY: [Vec<u16>; 2] = [vec![], vec![]];

    #[test]
    fn a_client_of_both_families_is_not_handed_itself() {
        let (store, clients) = (store(), Arc::default());
        // Connections of one client may reach any worker.
        let mut workers = [1, 2].map(|seed| tracker(&store, &clients, seed));
        let mut http = |worker: usize, source, port, id| {
            announce(&mut workers[worker], source, port, id, true)
        };
        assert_eq!(http(0, "8.8.8.8", 1, 1), NOBODY);
        assert_eq!(http(1, "2600::1", 1, 1), NOBODY);
        assert_eq!(http(1, "8.8.8.8", 1, 1), NOBODY);
        assert_eq!(http(0, "2600::1", 1, 1), NOBODY);
        assert_eq!(http(0, "9.9.9.9", 2, 2), [vec![1], vec![1]], "others are handed both");
        // A client with the same port, and one with the same peer id, are different clients.
        assert_eq!(http(0, "2600:1::1", 1, 3), [vec![1, 2], vec![1]]);
        assert_eq!(http(0, "2600:2::1", 4, 1), [vec![1, 2], vec![1, 1]]);
        assert_eq!(http(1, "8.8.8.8", 1, 1), [vec![2], vec![1, 4]]);
        // A client that moves is recognized by its latest address.
        assert_eq!(http(1, "2600:3::1", 1, 1), [vec![2], vec![1, 1, 4]]);
        assert_eq!(http(1, "8.8.8.8", 1, 1), [vec![2], vec![1, 1, 4]]);
    }

    #[test]
    fn what_comes_by_udp_is_neither_noted_nor_thinned() {
        let (store, clients) = (store(), Arc::default());
        let mut tracker = tracker(&store, &clients, 1);
        announce(&mut tracker, "8.8.8.8", 1, 1, false);
        let [v4, _] = announce(&mut tracker, "2600::1", 1, 1, true);
        assert_eq!(v4, [1]);
        announce(&mut tracker, "8.8.8.9", 1, 2, false);
        assert_eq!(announce(&mut tracker, "2600::1", 1, 1, true)[0], [1, 1]);
    }

    #[test]
    fn a_table_full_of_others_hides_nobody() {
        let (store, clients) = (store(), Arc::default());
        let mut tracker = tracker(&store, &clients, 1);
        for id in 0..=255 {
            let source = format!("8.8.{id}.8");
            announce(&mut tracker, &source, 1, id, true);
        }
        clients.slots.iter().for_each(|it| it.store(u64::MAX, Ordering::Relaxed));
        let [v4, v6] = announce(&mut tracker, "2600::1", 1, 7, true);
        assert_eq!((v4.len(), v6.len()), (50, 0));
        assert_eq!(size_of_val(&*clients.slots), 512 << 10);
    }
}
