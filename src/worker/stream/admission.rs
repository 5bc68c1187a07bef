//! Limits the number of connections: of all workers, of one address, and of the networks around an
//! address that the limiter also counts. Also records the bytes that the connections of each
//! network hold.
//!
//! A network may have a multiple of what an address may have, and one IPv6 host has 2^64 addresses.
//! What is compared is therefore the share of an IPv4 address or of an IPv6 /64 ([`share`]).

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::counters::CloseReason;
use crate::limiter::{PrefixNetwork, networks_of};

/// Locks for the counts: more than there are cores, so that workers rarely compete. All networks of
/// an address are behind the same lock.
const SHARDS: usize = 64;

/// The connections of all workers.
#[derive(Debug)]
pub(super) struct Connections {
    open: AtomicU32,
    max: u32,
    hasher: RandomState,
    shards: [Mutex<NetworkCounts>; SHARDS],
}

/// Open connections by network: by a 64-bit hash under a secret key. Among a million networks, two
/// share a hash in one of 40 million cases.
type NetworkCounts = HashMap<u64, Arc<NetworkUsage>>;

/// What the connections of a network use.
#[derive(Debug, Default)]
struct NetworkUsage {
    /// Number of connections. Changed under the lock.
    connections: AtomicU32,
    /// Bytes that the connections hold.
    bytes: AtomicU64,
}

/// The networks that a connection is counted in, the narrowest first, each with its multiple of an
/// address's limit.
type CountedNetworks = Vec<(Arc<NetworkUsage>, u32)>;

/// One source's share of what a network's connections hold.
fn share(bytes: u64, times: u32, is_v4: bool) -> u64 {
    // An IPv6 source is a /64, which may have twice as much as an address.
    let times = if is_v4 { times } else { times / 2 };
    bytes / u64::from(times.max(1))
}

impl Connections {
    /// No connections yet, and at most `max`.
    pub(super) fn new(max: u32) -> Self {
        let shards = std::array::from_fn(|_| Mutex::default());
        Self { open: AtomicU32::new(0), max, hasher: RandomState::new(), shards }
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Admits a connection, which counts until the returned value is dropped. `limit` is the
    /// address that it is counted for and how many connections that address may have; `None` for a
    /// connection that is not counted.
    ///
    /// # Errors
    /// The limit that is reached.
    pub(super) fn admit(
        self: &Arc<Self>,
        limit: Option<(IpAddr, u32)>,
    ) -> Result<Admission, CloseReason> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(CloseReason::GlobalCap);
        }
        // From here on, dropping `admission` undoes the count.
        let mut admission =
            Admission { connections: self.clone(), counted: None, bytes: 0, is_open: true };
        if let Some((address, max)) = limit {
            admission.count_for(address, max)?;
        }
        Ok(admission)
    }

    /// Bytes that the connections of an address's source hold: its share of the network around it
    /// that holds most for its size.
    pub(super) fn source_bytes(&self, address: IpAddr) -> u64 {
        let shard = self.shard(address);
        let held = |network: PrefixNetwork| {
            let bytes = shard.get(&self.key(address, network))?.bytes.load(Ordering::Relaxed);
            Some(share(bytes, network.times, address.is_ipv4()))
        };
        networks_of(address).filter_map(held).max().unwrap_or(0)
    }

    /// Counts a connection in each network of an address, or in none if one of them is full.
    fn count(&self, address: IpAddr, max: u32) -> Result<CountedNetworks, CloseReason> {
        let mut shard = self.shard(address);
        let is_full = networks_of(address).any(|network| {
            let held = shard.get(&self.key(address, network));
            let count = held.map_or(0, |it| it.connections.load(Ordering::Relaxed));
            count >= max.max(1).saturating_mul(network.times)
        });
        if is_full {
            return Err(CloseReason::PerSourceCap);
        }
        let mut networks = Vec::with_capacity(networks_of(address).count());
        for network in networks_of(address) {
            let held = shard.entry(self.key(address, network)).or_default();
            held.connections.fetch_add(1, Ordering::Relaxed);
            networks.push((held.clone(), network.times));
        }
        Ok(networks)
    }

    fn uncount(&self, address: IpAddr) {
        let mut shard = self.shard(address);
        for network in networks_of(address) {
            let key = self.key(address, network);
            let Some(held) = shard.get(&key) else {
                unreachable!("what is given back was counted");
            };
            if held.connections.fetch_sub(1, Ordering::Relaxed) == 1 {
                shard.remove(&key);
            }
        }
        if shard.is_empty() {
            *shard = NetworkCounts::default();
        }
    }

    fn shard(&self, address: IpAddr) -> MutexGuard<'_, NetworkCounts> {
        let widest = networks_of(address).next_back().map_or(0, |it| self.key(address, it));
        let [low, ..] = widest.to_le_bytes();
        let shard = &self.shards[usize::from(low) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(&self, address: IpAddr, network: PrefixNetwork) -> u64 {
        self.hasher.hash_one((address.is_ipv4(), network.bits, network.prefix))
    }
}

/// The right of a connection to be open, and its place in the counts.
#[derive(Debug)]
pub(super) struct Admission {
    connections: Arc<Connections>,
    /// The address that the connection is counted for, and the networks around it.
    counted: Option<(IpAddr, CountedNetworks)>,
    /// Bytes that the connection holds.
    bytes: u64,
    is_open: bool,
}

impl Admission {
    /// Counts the connection for `address` instead, which may have `max` connections. `address` is
    /// the client behind a proxy.
    ///
    /// # Errors
    /// If the address, or a network around it, already has its maximum.
    pub(super) fn count_for(&mut self, address: IpAddr, max: u32) -> Result<(), CloseReason> {
        self.uncount();
        let networks = self.connections.count(address, max)?;
        change(&networks, self.bytes);
        self.counted = Some((address, networks));
        Ok(())
    }

    /// Records how many bytes the connection holds.
    pub(super) fn hold(&mut self, bytes: u64) {
        if let Some((_, networks)) = &self.counted {
            change(networks, bytes.wrapping_sub(self.bytes));
        }
        self.bytes = bytes;
    }

    /// The network around the connection that holds most for its size, as a number, and one
    /// source's share of it in bytes; `None` if the connection is not counted.
    pub(super) fn source(&self) -> Option<(usize, u64)> {
        let (address, networks) = self.counted.as_ref()?;
        let shares = networks.iter().map(|(held, times)| {
            let bytes = held.bytes.load(Ordering::Relaxed);
            (Arc::as_ptr(held).addr(), share(bytes, *times, address.is_ipv4()))
        });
        shares.max_by_key(|(_, share)| *share)
    }

    /// Removes the connection from all counts.
    pub(super) fn release(&mut self) {
        self.uncount();
        if std::mem::take(&mut self.is_open) {
            self.connections.open.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn uncount(&mut self) {
        let Some((address, networks)) = self.counted.take() else { return };
        change(&networks, 0_u64.wrapping_sub(self.bytes));
        self.connections.uncount(address);
    }
}

/// Adds to the bytes that networks hold, modulo 2^64.
fn change(networks: &CountedNetworks, bytes: u64) {
    for (held, _) in networks {
        held.bytes.fetch_add(bytes, Ordering::Relaxed);
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
    use std::net::Ipv6Addr;

    fn at(text: &str) -> Option<(IpAddr, u32)> {
        Some((text.parse().unwrap(), 2))
    }

    fn entries(connections: &Connections) -> usize {
        connections.shards.iter().map(|it| it.lock().unwrap().len()).sum()
    }

    #[test]
    fn a_source_may_have_so_many_and_not_more() {
        let connections = Arc::new(Connections::new(100));
        let held: Vec<_> = (0..2).map(|_| connections.admit(at("192.0.2.1")).unwrap()).collect();
        assert_eq!(connections.admit(at("192.0.2.1")).unwrap_err(), CloseReason::PerSourceCap);
        assert!(connections.admit(at("192.0.2.2")).is_ok(), "another source");
        assert!(connections.admit(None).is_ok(), "one that is not counted");
        assert_eq!(connections.open(), 2, "what was turned away does not count");
        drop(held);
        assert!(connections.admit(at("192.0.2.1")).is_ok());
        assert_eq!((connections.open(), entries(&connections)), (0, 0), "nothing is kept");
    }

    /// Fills a network with two connections of each address; returns how many were admitted.
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
        assert_eq!(connections.admit(None).unwrap_err(), CloseReason::GlobalCap);
        assert_eq!(connections.admit(at("192.0.2.2")).unwrap_err(), CloseReason::GlobalCap);
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

    #[test]
    fn a_network_of_many_that_hold_little_holds_much_for_its_size() {
        let connections = Arc::new(Connections::new(10_000));
        let hold = |address: u128, bytes| {
            let address = IpAddr::from(Ipv6Addr::from_bits(address));
            let mut admission = connections.admit(Some((address, 2))).unwrap();
            admission.hold(bytes);
            admission
        };
        let (network, elsewhere) = (0x2001_0db8_u128 << 96, 0x2001_0db9_u128 << 96);
        // Four in each of two /56 of a /48: the share of the /48 is half of what all hold.
        let many = [0, 1, 2, 3, 256, 257, 258, 259].map(|it: u128| hold(network + (it << 64), 100));
        let one = hold(elsewhere, 150);
        let shares = many.each_ref().map(|it| it.source().unwrap());
        assert!(shares.iter().all(|it| it.1 == 400 && it.0 == shares[0].0), "{shares:?}");
        assert_eq!(one.source().unwrap().1, 150);
        assert_eq!(connections.source_bytes(Ipv6Addr::from_bits(network + 5).into()), 400);
        let v4 = |last: u8, bytes| {
            let address = std::net::Ipv4Addr::new(192, 0, 2, last).into();
            let mut connection = connections.admit(Some((address, 100))).unwrap();
            connection.hold(bytes);
            connection
        };
        let all: Vec<_> = (0..=255).map(|last| v4(last, 64)).collect();
        // The /24 counts as 32 addresses.
        assert_eq!(all[0].source().unwrap().1, 64 * 256 / 32);
    }
}
