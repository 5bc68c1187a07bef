//! Counts the peers of each host in a large group, in a table of bytes that hosts share.
//!
//! A count is the sum over all hosts whose keyed hash leads to it, so it is never too low. There
//! are one to two counts per IPv4 peer of the group's capacity, and eight to sixteen per IPv6 peer,
//! whose cap is lower: so fewer than one new peer in ten thousand finds its count filled by other
//! hosts, unless many hosts are at the cap. A count of 255 is final until the table is rebuilt,
//! when the group grows or shrinks.

use std::marker::PhantomData;

use ahash::RandomState;

use super::peer::{Endpoint, PeerRecord};
use crate::types::Scope;

/// Peers by host. Empty for local peers and WebRTC peers, which are not counted.
pub(super) struct HostCounts<const ADDRESS: usize> {
    counts: Box<[u8]>,
    of: PhantomData<Endpoint<ADDRESS>>,
}

/// A saturated count.
const LOST: u8 = u8::MAX;

impl<const ADDRESS: usize> HostCounts<ADDRESS> {
    /// Makes counts for a group of one scope with room for `room` peers.
    pub(super) fn new(scope: Scope, room: usize) -> Self {
        Self { counts: vec![0; Self::bytes_of(scope, room)].into(), of: PhantomData }
    }

    /// Bytes of the counts of such a group.
    pub(super) fn bytes_of(scope: Scope, room: usize) -> usize {
        let counted = Endpoint::<ADDRESS>::HAS_PREFIX && scope == Scope::Public;
        if counted { Self::fitting(room) } else { 0 }
    }

    fn fitting(room: usize) -> usize {
        let each = if ADDRESS == 4 { 1 } else { 8 };
        room.next_power_of_two() * each
    }

    /// Bytes of memory the counts take.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.counts.len()
    }

    /// Additional bytes for counts for `room` peers, while the old counts still exist.
    pub(super) fn growth(&self, room: usize) -> usize {
        let fitting = Self::fitting(room);
        if self.counts.is_empty() || fitting <= self.bytes() { 0 } else { fitting }
    }

    /// Recounts all peers if the room for them has changed.
    pub(super) fn fit(&mut self, room: usize, records: &[PeerRecord<ADDRESS>], keys: &RandomState) {
        let fitting = Self::fitting(room);
        if !self.counts.is_empty() && fitting != self.counts.len() {
            self.counts = vec![0; fitting].into();
            records.iter().for_each(|record| self.add(&record.endpoint, keys));
        }
    }

    /// Whether a host has reached its cap.
    pub(super) fn is_full(&self, endpoint: &Endpoint<ADDRESS>, keys: &RandomState) -> bool {
        let count = self.slot(endpoint, keys).map_or(0, |at| self.counts[at]);
        usize::from(count) >= Endpoint::<ADDRESS>::STORED_PER_HOST_MAX
    }

    /// Adds a peer.
    #[inline]
    pub(super) fn add(&mut self, endpoint: &Endpoint<ADDRESS>, keys: &RandomState) {
        if let Some(at) = self.slot(endpoint, keys) {
            self.counts[at] = self.counts[at].saturating_add(1);
        }
    }

    /// Removes a peer.
    #[inline]
    pub(super) fn remove(&mut self, endpoint: &Endpoint<ADDRESS>, keys: &RandomState) {
        if let Some(at) = self.slot(endpoint, keys)
            && self.counts[at] != LOST
        {
            self.counts[at] -= 1;
        }
    }

    #[inline]
    fn slot(&self, endpoint: &Endpoint<ADDRESS>, keys: &RandomState) -> Option<usize> {
        let mask = self.counts.len().checked_sub(1)?; // their number is a power of two
        #[expect(clippy::cast_possible_truncation, reason = "only low bits choose a count")]
        let hash = keys.hash_one(endpoint.host()) as usize;
        Some(hash & mask)
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::{PeerMeta, Role};
    use super::*;
    use crate::time::Now;

    fn keys() -> RandomState {
        RandomState::with_seeds(1, 2, 3, 4)
    }

    fn v4(number: u32, port: u16) -> Endpoint<4> {
        Endpoint::new(number.to_be_bytes(), port)
    }

    #[test]
    fn a_host_is_full_at_its_cap_and_not_below() {
        let keys = keys();
        let mut hosts = HostCounts::new(Scope::Public, 2000);
        for port in 0..16 {
            assert!(!hosts.is_full(&v4(1, port), &keys));
            hosts.add(&v4(1, port), &keys);
        }
        assert!(hosts.is_full(&v4(1, 99), &keys) && !hosts.is_full(&v4(2, 99), &keys));
        hosts.remove(&v4(1, 3), &keys);
        assert!(!hosts.is_full(&v4(1, 99), &keys));
        let mut hosts = HostCounts::<16>::new(Scope::Public, 2000);
        for host in 0..4 {
            let mut address = [0x20; 16];
            address[15] = host; // of one /64
            assert!(!hosts.is_full(&Endpoint::new(address, 1), &keys));
            hosts.add(&Endpoint::new(address, 1), &keys);
        }
        assert!(hosts.is_full(&Endpoint::new([0x20; 16], 1), &keys));
    }

    #[test]
    fn a_count_that_was_full_is_right_again_once_made_anew() {
        let keys = keys();
        let mut hosts = HostCounts::new(Scope::Public, 2000);
        (0..300).for_each(|port| hosts.add(&v4(1, port), &keys));
        (0..300).for_each(|port| hosts.remove(&v4(1, port), &keys));
        assert!(hosts.is_full(&v4(1, 1), &keys), "it has lost track, and must not go below");
        let meta = PeerMeta::new(Now::from_s(0), Role::Leecher);
        let record = PeerRecord::new(v4(1, 1), meta);
        hosts.fit(5000, &[record], &keys);
        assert!(!hosts.is_full(&v4(1, 1), &keys));
        assert_eq!(hosts.bytes(), 8192);
    }

    #[test]
    fn strangers_hardly_ever_fill_a_count() {
        let keys = keys();
        let mut random = fastrand::Rng::with_seed(1);
        let (mut v4s, mut v6s) =
            (HostCounts::new(Scope::Public, 16_384), HostCounts::new(Scope::Public, 16_384));
        let v6 = |host: u64| {
            let mut address = [0; 16];
            address[..8].copy_from_slice(&host.to_be_bytes());
            Endpoint::<16>::new(address, 1)
        };
        for _ in 0..16_384 {
            v4s.add(&v4(random.u32(..), 1), &keys);
            v6s.add(&v6(random.u64(..)), &keys);
        }
        let fills = |_| v4s.is_full(&v4(random.u32(..), 1), &keys);
        assert_eq!((0..100_000).map(fills).filter(|it| *it).count(), 0);
        let fills = |_| v6s.is_full(&v6(random.u64(..)), &keys);
        let filled = (0..100_000).map(fills).filter(|it| *it).count();
        assert!(filled <= 10, "{filled} of 100 000");
    }

    #[test]
    fn local_and_browser_peers_are_not_counted() {
        let mut local = HostCounts::new(Scope::Private, 2000);
        (0..100).for_each(|port| local.add(&v4(0x0a00_0001, port), &keys()));
        assert!(!local.is_full(&v4(0x0a00_0001, 1), &keys()) && local.bytes() == 0);
        assert_eq!(HostCounts::<14>::new(Scope::Public, 2000).bytes(), 0);
    }
}
