//! Connection ids: proof that a client receives datagrams at its source address (BEP 15).
//!
//! Nothing is stored per client. An id is a keyed MAC over the sender's network and a time bucket:
//!
//! ```text
//! id       63                            3 2            0
//!          | tag: MAC(key, message) >> 3  | bucket & 7  |
//! message  0 network (16) | 16 bucket: Unix time / 64 s, little-endian (8)             = 24
//! network  IPv4                 00 × 10 | ff × 2 | the address (4)
//!          IPv6                 the address's first half (8) | 00 × 8
//!          64:ff9b::/32, 2001::/32                           the address (16)
//! MAC      SipHash-2-4 under the key's first 16 bytes, its 64-bit result as it is; or HMAC-SHA-256
//!          under all 32, the first 8 bytes of the result, read as little-endian
//! ```
//!
//! Over IPv6 an id is valid for the /64: a host has several addresses in it (stable, temporary),
//! and libtorrent, which keeps one id per address of a tracker, announces from all of them. The
//! owner of one address of a /64 can use any other. This does not hold where the second half of an
//! address holds an IPv4 address, of a translator (64:ff9b::/32, RFC 6052 and 8215) or of a Teredo
//! client (2001::/32, RFC 4380): there an id is valid for one address, because otherwise one
//! Internet host could prove the addresses of all others.
//!
//! A bucket lasts 64 s. Ids of the current bucket, the next (another node's clock may be ahead) and
//! the two before it are accepted: an id is valid for at least 128 s and at most 192 s after issue.
//! The three bits name the bucket, so a check costs one MAC. Guessing a 61-bit tag takes 73,000
//! years at a million attempts a second. The port is not part of the id (BEP 15 binds the address;
//! NATs rebind ports). Nodes that share keys accept each other's ids. Time is [`Now`], which never
//! steps.

use std::net::IpAddr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use siphasher::sip::SipHasher24;

use crate::time::Now;
use crate::types::Dropped;

/// Bytes of a connection-id key: enough for either algorithm.
pub const KEY_BYTES: usize = 32;

/// Seconds in a bucket.
const BUCKET_S: u64 = 64;
/// Buckets before the current one whose ids are accepted.
const BUCKETS_BACK: u64 = 2;
/// Buckets after the current one whose ids are accepted: the tolerance for clocks of other nodes.
const BUCKETS_AHEAD: u64 = 1;
/// The bits of an id that name its bucket.
const BUCKET_MASK: u64 = 0b111;

const _: () = assert!(BUCKETS_BACK * BUCKET_S >= 120, "BEP 15: valid for two minutes");
const _: () = assert!((BUCKETS_BACK + 1) * BUCKET_S <= 192, "never valid for longer");
const _: () = assert!(BUCKETS_BACK + BUCKETS_AHEAD < BUCKET_MASK, "three bits tell them apart");

/// The keyed MAC of the ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Algorithm {
    /// SipHash-2-4, designed for short inputs: 12 ns. An XDP program can compute it, too.
    #[default]
    SipHash,
    /// HMAC-SHA-256 cut to 61 bits: 109 ns, for operators whose policy requires it.
    HmacSha256,
}

/// The keys in force.
#[derive(Clone)]
pub struct KeyPair {
    /// The key of new ids.
    pub active: [u8; KEY_BYTES],
    /// A second accepted key: the one before or after a rollover.
    pub staging: Option<[u8; KEY_BYTES]>,
    /// The MAC.
    pub algorithm: Algorithm,
}

impl std::fmt::Debug for KeyPair {
    /// Never prints a key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// One key, ready for use.
#[derive(Clone)]
enum KeyedMac {
    SipHash(SipHasher24),
    HmacSha256(Box<Hmac<Sha256>>),
}

impl KeyedMac {
    fn new(key: &[u8; KEY_BYTES], algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::SipHash => {
                let [half @ .., _, _, _, _, _, _, _, _, _, _, _, _, _, _, _, _] = key;
                Self::SipHash(SipHasher24::new_with_key(half))
            }
            Algorithm::HmacSha256 => {
                let mut block = [0; 64]; // RFC 2104: a short key is filled with zeros
                block[..KEY_BYTES].copy_from_slice(key);
                Self::HmacSha256(Box::new(Hmac::new(&block.into())))
            }
        }
    }

    /// The MAC of a network in a bucket.
    #[inline]
    fn tag(&self, network: [u8; 16], bucket: u64) -> u64 {
        let mut message = [0; 24];
        message[..16].copy_from_slice(&network);
        message[16..].copy_from_slice(&bucket.to_le_bytes());
        match self {
            Self::SipHash(keyed) => keyed.hash(&message),
            Self::HmacSha256(keyed) => {
                let mac = keyed.as_ref().clone().chain_update(message).finalize().into_bytes();
                let mut tag = [0; 8];
                tag.copy_from_slice(&mac[..8]);
                u64::from_le_bytes(tag)
            }
        }
    }

    #[inline]
    fn id(&self, network: [u8; 16], bucket: u64) -> u64 {
        (self.tag(network, bucket) & !BUCKET_MASK) | (bucket & BUCKET_MASK)
    }
}

/// Issues and checks ids under one set of keys.
#[derive(Clone)]
pub struct ConnectionIds {
    active: KeyedMac,
    staging: Option<KeyedMac>,
}

impl ConnectionIds {
    /// Prepares the keys.
    pub fn new(keys: &KeyPair) -> Self {
        let code = |key| KeyedMac::new(key, keys.algorithm);
        Self { active: code(&keys.active), staging: keys.staging.as_ref().map(code) }
    }

    /// The id for an unmapped address at this moment.
    #[inline]
    pub fn issue(&self, now: Now, source: IpAddr) -> u64 {
        self.active.id(network_of(source), now.seconds() / BUCKET_S)
    }

    /// Checks that `id` was issued to the network of this unmapped address, here or on a node with
    /// the same key, recently enough.
    ///
    /// # Errors
    /// [`Dropped::ExpiredId`] for a genuine id from three to six buckets before the current one.
    /// [`Dropped::ForgedId`] for anything else, also for a genuine id that is older or more than
    /// one bucket ahead: an id holds only the lowest three bits of its bucket.
    #[inline]
    pub fn check(&self, now: Now, source: IpAddr, id: u64) -> Result<(), Dropped> {
        let network = network_of(source);
        let newest = now.seconds() / BUCKET_S + BUCKETS_AHEAD;
        let back = newest.wrapping_sub(id) & BUCKET_MASK;
        let bucket = newest.wrapping_sub(back);
        // One word, compared in one instruction: the duration reveals nothing.
        let genuine = self.active.id(network, bucket) == id
            || self.staging.as_ref().is_some_and(|it| it.id(network, bucket) == id);
        match genuine {
            true if back <= BUCKETS_BACK + BUCKETS_AHEAD => Ok(()),
            true => Err(Dropped::ExpiredId),
            false => Err(Dropped::ForgedId),
        }
    }
}

/// The network of an address, in 16 bytes: the IPv4 address, or the /64 of an IPv6 address.
#[inline]
fn network_of(address: IpAddr) -> [u8; 16] {
    let bits = match address {
        IpAddr::V4(ipv4) => ipv4.to_ipv6_mapped().to_bits(),
        IpAddr::V6(ipv6) => match ipv6.to_bits() {
            bits if matches!(bits >> 96, NAT64 | TEREDO) => bits,
            bits => bits >> 64 << 64,
        },
    };
    bits.to_be_bytes()
}

/// The first 32 bits of IPv6 addresses that translators derive from IPv4 addresses (RFC 6052, RFC
/// 8215).
const NAT64: u128 = 0x0064_ff9b;
/// The first 32 bits of the addresses of Teredo clients (RFC 4380).
const TEREDO: u128 = 0x2001_0000;

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const A: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    const BOTH: [Algorithm; 2] = [Algorithm::SipHash, Algorithm::HmacSha256];

    fn ids(active: u8, staging: Option<u8>, algorithm: Algorithm) -> ConnectionIds {
        let key = |byte| [byte; KEY_BYTES];
        let keys = KeyPair { active: key(active), staging: staging.map(key), algorithm };
        ConnectionIds::new(&keys)
    }

    #[test]
    fn every_boundary_second_is_as_promised() {
        for algorithm in BOTH {
            let ids = ids(1, None, algorithm);
            for issued_s in 1_800_000_000..1_800_000_000 + 2 * BUCKET_S {
                let id = ids.issue(Now::from_s(issued_s), A);
                for age_s in 0..=600 {
                    let verdict = ids.check(Now::from_s(issued_s + age_s), A, id);
                    match age_s {
                        0..=128 => assert_eq!(verdict, Ok(()), "{issued_s} + {age_s}"),
                        192.. => assert!(verdict.is_err(), "{issued_s} + {age_s}"),
                        _ => {}
                    }
                }
                let expired = ids.check(Now::from_s(issued_s + 200), A, id);
                assert_eq!(expired, Err(Dropped::ExpiredId));
            }
        }
    }

    #[test]
    fn another_nodes_clock_may_be_a_bucket_ahead() {
        let ids = ids(1, None, Algorithm::SipHash);
        let now = Now::from_s(1_800_000_000);
        assert_eq!(ids.check(now, A, ids.issue(now.plus_s(BUCKET_S), A)), Ok(()));
        assert!(ids.check(now, A, ids.issue(now.plus_s(2 * BUCKET_S), A)).is_err());
    }

    #[test]
    fn every_bit_of_network_and_id_counts() {
        let now = Now::from_s(1_800_000_000);
        let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6));
        for algorithm in BOTH {
            let ids = ids(1, None, algorithm);
            for address in [A, v6] {
                let id = ids.issue(now, address);
                assert_eq!(ids.check(now, address, id), Ok(()));
                for bit in 0..64 {
                    assert!(ids.check(now, address, id ^ (1 << bit)).is_err(), "id bit {bit}");
                }
                let bits = match address {
                    IpAddr::V4(ipv4) => ipv4.to_ipv6_mapped().to_bits(),
                    IpAddr::V6(ipv6) => ipv6.to_bits(),
                };
                for bit in 0..128 {
                    let other = IpAddr::V6((bits ^ (1 << bit)).into()).to_canonical();
                    let is_same_64 = bit < 64 && address == v6;
                    assert_eq!(ids.check(now, other, id).is_ok(), is_same_64, "bit {bit}");
                }
            }
        }
    }

    #[test]
    fn addresses_that_hold_an_ipv4_one_vouch_for_themselves_alone() {
        let (ids, now) = (ids(1, None, Algorithm::SipHash), Now::from_s(1_800_000_000));
        let is_bound = |one: &str, other: &str| {
            let id = ids.issue(now, one.parse().unwrap());
            ids.check(now, other.parse().unwrap(), id).is_err()
        };
        for (one, other) in [
            ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2"),
            ("64:ff9b:1:2::1", "64:ff9b:1:2::2"),
            ("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:0:4136:e378:8000:63bf:3fff:fdd3"),
        ] {
            assert!(is_bound(one, other), "{one} is not {other}");
        }
        assert!(!is_bound("64:ff9a::1", "64:ff9a::2") && !is_bound("2001:1::1", "2001:1::2"));
        assert!(is_bound("::192.0.2.1", "192.0.2.1"), "a network of zeros is not IPv4's");
    }

    #[test]
    fn a_million_guesses_all_fail() {
        let ids = ids(1, None, Algorithm::SipHash);
        let now = Now::from_s(1_800_000_000);
        let mut random = fastrand::Rng::with_seed(3);
        assert!((0..1_000_000).all(|_| ids.check(now, A, random.u64(..)).is_err()));
        assert!(ids.check(now, A, crate::protocol::udp::MAGIC).is_err());
    }

    #[test]
    fn a_rollover_in_three_steps_loses_no_id() {
        let now = Now::from_s(1_800_000_000);
        let steps = [(1, None), (1, Some(2)), (2, Some(1)), (2, None)];
        for algorithm in BOTH {
            for pair in steps.windows(2) {
                let before = ids(pair[0].0, pair[0].1, algorithm);
                let after = ids(pair[1].0, pair[1].1, algorithm);
                let id = before.issue(now, A);
                // The last step drops the old key once its ids have expired.
                let honoured = after.check(now, A, id).is_ok();
                assert_eq!(honoured, pair[1] != (2, None) || pair[0].0 == 2);
            }
        }
    }

    #[test]
    fn matches_the_published_siphash_vector() {
        // Aumasson and Bernstein, appendix A: key 00..0f, message 00..0e.
        let key: [u8; 16] = std::array::from_fn(|at| at as u8);
        let message: [u8; 15] = std::array::from_fn(|at| at as u8);
        assert_eq!(SipHasher24::new_with_key(&key).hash(&message), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn hmac_ids_are_what_another_implementation_computes() {
        // Python's hmac: key 01 × 32, ::ffff:192.0.2.1, bucket 28 125 000.
        let ids = ids(1, None, Algorithm::HmacSha256);
        assert_eq!(ids.issue(Now::from_s(1_800_000_000), A), 0x96f5_c499_d2a0_b0b8);
        // The same for 2001:db8:1:2:: and eight zeros.
        let v6 = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6));
        assert_eq!(ids.issue(Now::from_s(1_800_000_000), v6), 0x3c7a_44cb_dd5f_81f0);
    }
}
