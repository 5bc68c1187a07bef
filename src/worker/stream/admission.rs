//! How many connections there may be: over all workers, and of one source. Whoever has one IPv6
//! address has 2^64 of them, so a source is an IPv4 address or an IPv6 /64.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hashbrown::HashMap;

use crate::metrics::Closed;

/// Locks for the counts of sources: more than there are cores, so that workers seldom meet.
const SHARDS: usize = 64;

/// The connections of all workers.
#[derive(Debug)]
pub(super) struct Connections {
    open: AtomicU32,
    max: u32,
    hasher: RandomState,
    sources: [Mutex<HashMap<Source, u32, RandomState>>; SHARDS],
}

/// An IPv4 address, or the upper half of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    V4(u32),
    V6(u64),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(it) => Self::V4(it.to_bits()),
            IpAddr::V6(it) => {
                let [.., a, b, c, d, e, f, g, h] = (it.to_bits() >> 64).to_be_bytes();
                Self::V6(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
            }
        }
    }
}

impl Connections {
    /// None yet, and at most `max`.
    pub(super) fn new(max: u32) -> Self {
        let hasher = RandomState::new();
        let sources = std::array::from_fn(|_| Mutex::new(HashMap::with_hasher(hasher.clone())));
        Self { open: AtomicU32::new(0), max, hasher, sources }
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
        let mut admission = Admission { connections: self.clone(), source: None };
        if let Some((address, max)) = limit {
            admission.count_for(address, max)?;
        }
        Ok(admission)
    }

    fn shard(&self, source: Source) -> MutexGuard<'_, HashMap<Source, u32, RandomState>> {
        let [low, ..] = self.hasher.hash_one(source).to_le_bytes();
        let shard = &self.sources[usize::from(low) % SHARDS];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's place among those that may be.
#[derive(Debug)]
pub(super) struct Admission {
    connections: Arc<Connections>,
    source: Option<Source>,
}

impl Admission {
    /// Counts it for `address` instead, which may have `max`: behind a proxy, the client.
    ///
    /// # Errors
    /// If it has as many.
    pub(super) fn count_for(&mut self, address: IpAddr, max: u32) -> Result<(), Closed> {
        self.uncount();
        let source = Source::of(address);
        let mut shard = self.connections.shard(source);
        let count = shard.entry(source).or_insert(0);
        if *count >= max.max(1) {
            return Err(Closed::PerSourceCap);
        }
        *count += 1;
        drop(shard);
        self.source = Some(source);
        Ok(())
    }

    fn uncount(&mut self) {
        let Some(source) = self.source.take() else { return };
        let mut shard = self.connections.shard(source);
        let Some(count) = shard.get_mut(&source) else {
            unreachable!("what is given back was counted");
        };
        *count -= 1;
        if *count == 0 {
            shard.remove(&source);
        }
        if shard.is_empty() {
            shard.shrink_to_fit();
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.uncount();
        self.connections.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Option<(IpAddr, u32)> {
        Some((text.parse().unwrap(), 2))
    }

    fn sources(connections: &Connections) -> usize {
        connections.sources.iter().map(|it| it.lock().unwrap().len()).sum()
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
        assert_eq!((connections.open(), sources(&connections)), (0, 0), "nothing is kept");
    }

    #[test]
    fn one_ipv6_network_is_one_source() {
        let connections = Arc::new(Connections::new(100));
        let _held = ["2001:db8::1", "2001:db8::2:3"].map(|it| connections.admit(at(it)).unwrap());
        assert!(connections.admit(at("2001:db8::ffff")).is_err());
        assert!(connections.admit(at("2001:db8:0:1::1")).is_ok());
    }

    #[test]
    fn there_may_be_so_many_in_all() {
        let connections = Arc::new(Connections::new(2));
        let held = [None, at("192.0.2.1")].map(|it| connections.admit(it).unwrap());
        assert_eq!(connections.admit(None).unwrap_err(), Closed::GlobalCap);
        assert_eq!(connections.admit(at("192.0.2.2")).unwrap_err(), Closed::GlobalCap);
        drop(held);
        assert!(connections.admit(None).is_ok());
        assert_eq!(sources(&connections), 0);
    }
}
