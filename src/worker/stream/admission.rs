//! How many connections there may be: over all workers, of one address, and of the networks around
//! it, which the limiter counts by, too; and what those of one source hold. Whoever has one IPv6
//! address has 2^64 of them, so a source is an IPv4 address or an IPv6 /64.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::limiter::{Network, networks_of};
use crate::metrics::Closed;

/// Locks for the counts: more than there are cores, so that workers seldom meet. All networks of an
/// address are behind one.
const SHARDS: usize = 64;

/// The connections of all workers.
#[derive(Debug)]
pub(super) struct Connections {
    open: AtomicU32,
    max: u32,
    hasher: RandomState,
    shards: [Mutex<Counts>; SHARDS],
}

/// Open connections by network, and bytes held by source.
#[derive(Debug, Default)]
struct Counts {
    /// By a hash of 64 bits under a key that nobody knows: two networks of a million share one once
    /// in 40 million times.
    networks: HashMap<u64, u32>,
    sources: HashMap<u64, Arc<AtomicU64>>,
}

impl Connections {
    /// None yet, and at most `max`.
    pub(super) fn new(max: u32) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { open: AtomicU32::new(0), max, hasher: RandomState::new(), shards }
    }

    /// How many there are.
    pub(super) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Lets one in, which counts until what is returned is dropped. `limit` is the address it is
    /// counted for and how many that may have; `None` for those that are not counted.
    ///
    /// # Errors
    /// Which limit is reached.
    pub(super) fn admit(
        self: &Arc<Self>,
        limit: Option<(IpAddr, u32)>,
    ) -> Result<Admission, Closed> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Closed::GlobalCap);
        }
        // From here on, dropping it undoes what was done.
        let mut admission =
            Admission { connections: self.clone(), counted: None, bytes: 0, is_open: true };
        if let Some((address, max)) = limit {
            admission.count_for(address, max)?;
        }
        Ok(admission)
    }

    /// Bytes that the connections of an address's source hold.
    pub(super) fn source_bytes(&self, address: IpAddr) -> u64 {
        let shard = self.shard(address);
        let source = shard.sources.get(&self.source_key(address));
        source.map_or(0, |it| it.load(Ordering::Relaxed))
    }

    /// Counts a connection in each network of an address, or in none of them.
    fn count(&self, address: IpAddr, max: u32) -> Result<Arc<AtomicU64>, Closed> {
        let mut shard = self.shard(address);
        let is_full = networks_of(address).any(|it| {
            let count = shard.networks.get(&self.key(address, it)).copied().unwrap_or(0);
            count >= max.max(1).saturating_mul(it.times)
        });
        if is_full {
            return Err(Closed::PerSourceCap);
        }
        for it in networks_of(address) {
            *shard.networks.entry(self.key(address, it)).or_insert(0) += 1;
        }
        Ok(shard.sources.entry(self.source_key(address)).or_default().clone())
    }

    fn uncount(&self, address: IpAddr, source: Arc<AtomicU64>) {
        let mut shard = self.shard(address);
        for it in networks_of(address) {
            let key = self.key(address, it);
            let Some(count) = shard.networks.get_mut(&key) else {
                unreachable!("what is given back was counted");
            };
            *count -= 1;
            if *count == 0 {
                shard.networks.remove(&key);
            }
        }
        drop(source);
        let key = self.source_key(address);
        if shard.sources.get(&key).is_some_and(|it| Arc::strong_count(it) == 1) {
            shard.sources.remove(&key);
        }
        if shard.networks.is_empty() {
            *shard = Counts::default();
        }
    }

    fn shard(&self, address: IpAddr) -> MutexGuard<'_, Counts> {
        let widest = networks_of(address).next_back().map_or(0, |it| self.key(address, it));
        let [low, ..] = widest.to_le_bytes();
        let shard = &self.shards[usize::from(low) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, address: IpAddr, network: Network) -> u64 {
        self.hasher.hash_one((address.is_ipv4(), network.bits, network.prefix))
    }

    fn source_key(&self, address: IpAddr) -> u64 {
        let source = match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(it) => Ipv6Addr::from_bits(it.to_bits() >> 64 << 64).into(),
        };
        self.hasher.hash_one(source)
    }
}

/// A connection's place among those that may be.
#[derive(Debug)]
pub(super) struct Admission {
    connections: Arc<Connections>,
    /// The address that it is counted for, and what that source holds.
    counted: Option<(IpAddr, Arc<AtomicU64>)>,
    /// What it holds itself.
    bytes: u64,
    is_open: bool,
}

impl Admission {
    /// Counts it for `address` instead, which may have `max`: behind a proxy, the client.
    ///
    /// # Errors
    /// If it, or a network around it, has as many.
    pub(super) fn count_for(&mut self, address: IpAddr, max: u32) -> Result<(), Closed> {
        self.uncount();
        let source = self.connections.count(address, max)?;
        source.fetch_add(self.bytes, Ordering::Relaxed);
        self.counted = Some((address, source));
        Ok(())
    }

    /// Notes how many bytes it holds.
    pub(super) fn hold(&mut self, bytes: u64) {
        if let Some((_, source)) = &self.counted {
            source.fetch_add(bytes.wrapping_sub(self.bytes), Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// Which source it is counted for, as a number, and what the connections of that hold; `None`
    /// if it is not counted.
    pub(super) fn source(&self) -> Option<(usize, u64)> {
        let (_, source) = self.counted.as_ref()?;
        Some((Arc::as_ptr(source).addr(), source.load(Ordering::Relaxed)))
    }

    /// Gives the place back.
    pub(super) fn release(&mut self) {
        self.uncount();
        if std::mem::take(&mut self.is_open) {
            self.connections.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn uncount(&mut self) {
        let Some((address, source)) = self.counted.take() else { return };
        source.fetch_sub(self.bytes, Ordering::Relaxed);
        self.connections.uncount(address, source);
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<(IpAddr, u32)> {
        Some((text.parse().unwrap(), 2))
    }

    fn entries(connections: &Connections) -> usize {
        let of = |it: &Mutex<Counts>| {
            let it = it.lock().unwrap();
            it.networks.len() + it.sources.len()
        };
        connections.shards.iter().map(of).sum()
    }

    #[test]
    fn a_source_may_have_so_many_and_not_more() {
        let connections = Arc::new(Connections::new(100));
        let held: Vec<_> = (0..2).map(|_| connections.admit(at("192.0.2.1")).unwrap()).collect();
        assert_eq!(connections.admit(at("192.0.2.1")).unwrap_err(), Closed::PerSourceCap);
        assert!(connections.admit(at("192.0.2.2")).is_ok(), "another source");
        assert!(connections.admit(None).is_ok(), "one that is not counted");
        assert_eq!(connections.open(), 2, "what was turned away does not count");
        drop(held);
        assert!(connections.admit(at("192.0.2.1")).is_ok());
        assert_eq!((connections.open(), entries(&connections)), (0, 0), "nothing is kept");
    }

    /// Fills a network with two connections of each address; gives how many were let in.
    fn fill(addresses: impl Iterator<Item = IpAddr>) -> usize {
        let connections = Arc::new(Connections::new(u32::MAX));
        let held: Vec<_> = addresses
            .flat_map(|it| [it, it])
            .map_while(|it| connections.admit(Some((it, 2))).ok())
            .collect();
        let count = held.len();
        drop(held);
        assert_eq!((connections.open(), entries(&connections)), (0, 0), "nothing is kept");
        count
    }

    #[test]
    fn networks_have_so_many_times_as_many_as_the_limiter_says() {
        let v4 = |addresses: u32, apart: u32| {
            fill((0..addresses).map(|it| IpAddr::from((0x0808_0000 + it * apart).to_be_bytes())))
        };
        assert_eq!([v4(200, 1), v4(600, 8), v4(2_000, 16)], [64, 512, 1536]);
        let v6 = |apart: u32| {
            let base = 0x2001_0db8_u128 << 96;
            fill((0..500_u128).map(|it| Ipv6Addr::from_bits(base + (it << apart)).into()))
        };
        assert_eq!([v6(0), v6(64), v6(72), v6(80)], [4, 6, 8, 128]);
    }

    #[test]
    fn there_may_be_so_many_in_all() {
        let connections = Arc::new(Connections::new(2));
        let held = [None, at("192.0.2.1")].map(|it| connections.admit(it).unwrap());
        assert_eq!(connections.admit(None).unwrap_err(), Closed::GlobalCap);
        assert_eq!(connections.admit(at("192.0.2.2")).unwrap_err(), Closed::GlobalCap);
        drop(held);
        assert!(connections.admit(None).is_ok());
        assert_eq!(entries(&connections), 0);
    }

    #[test]
    fn what_a_source_holds_follows_its_connections_wherever_they_are_counted() {
        let connections = Arc::new(Connections::new(100));
        let (first, second) = ("2001:db8::1".parse().unwrap(), "2001:db8:1::1".parse().unwrap());
        let mut held = ["2001:db8::1", "2001:db8::2"].map(|it| connections.admit(at(it)).unwrap());
        held[0].hold(10);
        held[1].hold(5);
        held[1].hold(7);
        assert_eq!(held[0].source().unwrap(), held[1].source().unwrap());
        assert_eq!(connections.source_bytes(first), 17);
        held[1].count_for(second, 2).unwrap();
        assert_eq!([first, second].map(|it| connections.source_bytes(it)), [10, 7]);
        held[1].release();
        assert_eq!((connections.open(), connections.source_bytes(second)), (1, 0));
        held[1].hold(9);
        drop(held);
        assert_eq!((connections.open(), entries(&connections)), (0, 0));
    }
}
