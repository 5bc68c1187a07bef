//! The prefixes under which a source is counted: its address, and the networks around it, each with
//! a multiple of the limit of an address. So the owner of a network gains little by sending from
//! all of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ahash::RandomState;
use fastrand::Rng;

/// A length of prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PrefixLength {
    /// The number of leading bits.
    pub(super) bits: u32,
    /// The limit of the prefix, as a multiple of that of one IPv4 address.
    pub(super) times: u32,
}

const fn prefix(bits: u32, times: u32) -> PrefixLength {
    PrefixLength { bits, times }
}

/// Prefixes of an IPv4 address, the address first, with the factors that Knot DNS uses: shared
/// addresses (carrier-grade NAT, universities) should pass, and rented networks should not.
pub(super) const V4: [PrefixLength; 4] =
    [prefix(32, 1), prefix(24, 32), prefix(20, 256), prefix(18, 768)];

/// Prefixes of an IPv6 address. A customer gets a /64 to a /48, so their factors stay close to 1.
pub(super) const V6: [PrefixLength; 5] =
    [prefix(128, 1), prefix(64, 2), prefix(56, 3), prefix(48, 4), prefix(32, 64)];

/// A network that an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixNetwork {
    /// Its leading bits, right-aligned; for IPv4, the bits of the IPv4 address.
    pub prefix: u128,
    /// The number of leading bits.
    pub bits: u32,
    /// The limit of the network, as a multiple of that of one IPv4 address.
    pub times: u32,
}

/// The address itself, and the limited networks around it, in order of size. For limits that are
/// not loads, such as open connections.
pub fn networks_of(address: IpAddr) -> impl DoubleEndedIterator<Item = PrefixNetwork> {
    let (prefixes, all, length) = match address {
        IpAddr::V4(ipv4) => (&V4[..], u128::from(ipv4.to_bits()), u32::BITS),
        IpAddr::V6(ipv6) => (&V6[..], ipv6.to_bits(), u128::BITS),
    };
    prefixes.iter().map(move |&PrefixLength { bits, times }| PrefixNetwork {
        prefix: all >> (length - bits),
        bits,
        times,
    })
}

/// The number of prefixes of both families: those of IPv4 come first.
pub(super) const PREFIXES: usize = V4.len() + V6.len();

/// The index of the first IPv6 prefix.
pub(super) const FIRST_V6: usize = V4.len();

/// The keys of the hash, one for each prefix: so no client can find out which sources share a slot.
#[derive(Debug)]
pub(super) struct PrefixKeys([RandomState; PREFIXES]);

impl PrefixKeys {
    /// Random keys, or keys derived from a seed (for tests).
    pub(super) fn new(seed: Option<u64>) -> Self {
        let Some(seed) = seed else { return Self(std::array::from_fn(|_| RandomState::new())) };
        let mut random = Rng::with_seed(seed);
        let mut key = || random.u64(..);
        Self(std::array::from_fn(|_| RandomState::with_seeds(key(), key(), key(), key())))
    }

    /// The hash of the `at`th of [`V4`].
    #[inline]
    pub(super) fn of_v4(&self, address: Ipv4Addr, at: usize) -> u64 {
        self.0[at].hash_one(u32::from(address) >> (32 - V4[at].bits))
    }

    /// The hash of the `at`th of [`V6`].
    #[inline]
    pub(super) fn of_v6(&self, address: Ipv6Addr, at: usize) -> u64 {
        let bits = u128::from(address);
        let keys = &self.0[FIRST_V6 + at];
        match V6[at].bits {
            128 => keys.hash_one(bits),
            // The result of a shift by 64 or more fits.
            length => keys.hash_one((bits >> 64) as u64 >> (64 - length)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all<const N: usize>(hash: impl Fn(usize) -> u64) -> [u64; N] {
        std::array::from_fn(hash)
    }

    /// The number of prefixes that two addresses share.
    fn common<const N: usize>(one: [u64; N], other: [u64; N]) -> usize {
        one.iter().zip(&other).filter(|(one, other)| one == other).count()
    }

    #[test]
    fn neighbours_share_prefixes_and_strangers_none() {
        let keys = PrefixKeys::new(Some(1));
        let v4 = |text: &str| all::<4>(|at| keys.of_v4(text.parse().unwrap(), at));
        let base = v4("198.51.100.1");
        for (other, shared) in [
            ("198.51.100.1", 4),
            ("198.51.100.255", 3),
            ("198.51.111.1", 2),
            ("198.51.127.1", 1),
            ("198.51.128.1", 0),
            ("198.51.96.1", 2),
            ("198.51.95.1", 1),
            ("6.51.100.1", 0),
        ] {
            assert_eq!(common(base, v4(other)), shared, "{other}");
        }
        let v6 = |text: &str| all::<5>(|at| keys.of_v6(text.parse().unwrap(), at));
        let base = v6("2001:db8:aabb:ccdd::1");
        for (other, shared) in [
            ("2001:db8:aabb:ccdd::1", 5),
            ("2001:db8:aabb:ccdd:8000::1", 4),
            ("2001:db8:aabb:cc00::1", 3),
            ("2001:db8:aabb:dd00::1", 2),
            ("2001:db8:aaba:ccdd::1", 1),
            ("2001:db9:aabb:ccdd::1", 0),
        ] {
            assert_eq!(common(base, v6(other)), shared, "{other}");
        }
    }

    #[test]
    fn keys_differ_by_prefix_seed_and_process() {
        let address = Ipv4Addr::new(1, 1, 1, 1);
        let all: Vec<_> = [
            PrefixKeys::new(Some(1)),
            PrefixKeys::new(Some(2)),
            PrefixKeys::new(None),
            PrefixKeys::new(None),
        ]
        .iter()
        .flat_map(|keys| {
            (0..4).flat_map(|at| [address, Ipv4Addr::UNSPECIFIED].map(|of| keys.of_v4(of, at)))
        })
        .collect();
        let distinct: std::collections::HashSet<_> = all.iter().collect();
        assert_eq!(distinct.len(), all.len());
        assert_eq!(
            PrefixKeys::new(Some(1)).of_v4(address, 0),
            PrefixKeys::new(Some(1)).of_v4(address, 0)
        );
    }
}
