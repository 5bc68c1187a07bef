//! The registered torrents, as workers read them: the swarm of a hash, and whether an unknown hash
//! resembles a registered one.
//!
//! A hybrid torrent is announced under two hashes (BEP 52). Both lead to the swarm of the first, so
//! that clients of both versions find each other. Only the database has names and sizes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

use ahash::RandomState;
use dashmap::DashMap;

use crate::time::Now;
use crate::types::{InfoHash, Refusal};

/// Maximum number of registered hashes (a hybrid torrent has two): some 250 bytes of memory each.
pub const REGISTERED_MAX: usize = 4 << 20;

/// Maximum number of differing digits of two similar hashes. At least one of their four blocks is
/// then equal, and leads from one hash to the other.
pub const SIMILAR_DIGITS_MAX: u32 = 3;

/// Blocks of a hash, ten digits each, by which similar hashes are found.
const BLOCKS: usize = 4;

/// Maximum number of registered torrents with the same block that are compared with an unknown
/// hash. Random hashes never share a block.
const COMPARED_MAX: usize = 64;

/// Maximum number of unknown similar hashes that are remembered: any client can make up more.
const SEEN_MAX: usize = 4096;

/// Seconds after which such a hash can be replaced by a new one.
const SEEN_AGE_S_MAX: u64 = 3600;

/// The registered torrents.
pub struct Registry {
    /// Every registered hash, and the hash of its swarm.
    torrents: DashMap<InfoHash, InfoHash, RandomState>,
    /// For each block of a hash, the registered hashes that have it.
    blocks: [DashMap<u64, Vec<InfoHash>, RandomState>; BLOCKS],
    digits_max: AtomicU32,
    seen: Mutex<Seen>,
}

/// An unknown hash that was refused because it resembles a registered one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Similar {
    /// The unknown hash.
    pub info_hash: InfoHash,
    /// The registered hash that it resembles.
    pub registered: InfoHash,
    /// How often it was refused.
    pub refused: u64,
    /// When it was last refused.
    pub last: Now,
}

struct Seen {
    all: HashMap<InfoHash, Similar, RandomState>,
    swept: Now,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        let seen = Seen { all: HashMap::default(), swept: Now::from_s(0) };
        Self {
            torrents: DashMap::default(),
            blocks: [(); BLOCKS].map(|()| DashMap::default()),
            digits_max: AtomicU32::new(0),
            seen: Mutex::new(seen),
        }
    }

    /// Number of registered hashes; a hybrid has two.
    pub fn len(&self) -> usize {
        self.torrents.len()
    }

    /// Whether no hash is registered.
    pub fn is_empty(&self) -> bool {
        self.torrents.is_empty()
    }

    /// Sets how many digits of a similar hash may differ, at any position.
    pub fn set_similar_digits_max(&self, digits: u32) {
        self.digits_max.store(digits.min(SIMILAR_DIGITS_MAX), Ordering::Relaxed);
    }

    /// The hash of the swarm that a hash belongs to; `None`: it is not registered.
    #[inline]
    pub fn canonical(&self, info_hash: &InfoHash) -> Option<InfoHash> {
        self.torrents.get(info_hash).map(|it| *it)
    }

    /// Registers a hash as one of a swarm.
    pub fn insert(&self, info_hash: InfoHash, canonical: InfoHash) {
        if self.torrents.insert(info_hash, canonical).is_some() {
            return;
        }
        for (at, block) in self.blocks.iter().enumerate() {
            block.entry(block_of(&info_hash, at)).or_default().push(info_hash);
        }
        // The hash is no longer unknown.
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.all.remove(&info_hash);
    }

    /// Unregisters a hash.
    pub fn remove(&self, info_hash: &InfoHash) {
        if self.torrents.remove(info_hash).is_none() {
            return;
        }
        for (at, block) in self.blocks.iter().enumerate() {
            let key = block_of(info_hash, at);
            if let Some(mut them) = block.get_mut(&key) {
                them.retain(|it| it != info_hash);
            }
            block.remove_if(&key, |_, them| them.is_empty());
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.all.retain(|_, it| it.registered != *info_hash);
    }

    /// The hash of the swarm that an announce or a scrape is about.
    ///
    /// # Errors
    /// [`Refusal::SimilarTorrent`] if it resembles a registered hash, which is remembered; else
    /// [`Refusal::Unregistered`].
    #[inline]
    pub fn judge(&self, now: Now, info_hash: &InfoHash) -> Result<InfoHash, Refusal> {
        self.canonical(info_hash).ok_or_else(|| self.refuse(now, info_hash))
    }

    /// Registered hashes that a hash resembles: those with the same first ten and last five digits,
    /// and those that differ in no more digits than the setting allows.
    pub fn resembled(&self, info_hash: &InfoHash) -> Vec<InfoHash> {
        let digits_max = self.digits_max.load(Ordering::Relaxed);
        let blocks = if digits_max == 0 { 1 } else { BLOCKS };
        let mut found = Vec::new();
        for (at, block) in self.blocks.iter().enumerate().take(blocks) {
            let Some(them) = block.get(&block_of(info_hash, at)) else { continue };
            let resembles = |hash: &&InfoHash| {
                *hash != info_hash
                    && (differing(hash, info_hash) <= digits_max || have_same_ends(hash, info_hash))
            };
            found.extend(them.iter().take(COMPARED_MAX).filter(resembles));
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The refused hashes that resemble this registered one, the latest first.
    pub fn similar_to(&self, registered: &InfoHash) -> Vec<Similar> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut them: Vec<_> =
            seen.all.values().filter(|it| it.registered == *registered).copied().collect();
        them.sort_unstable_by_key(|it| (std::cmp::Reverse(it.last), it.info_hash));
        them
    }

    #[cold]
    fn refuse(&self, now: Now, info_hash: &InfoHash) -> Refusal {
        let Some(registered) = self.resembled(info_hash).first().copied() else {
            return Refusal::Unregistered;
        };
        // A worker never waits for a lock: the next announce of this hash can be noted instead.
        if let Ok(mut seen) = self.seen.try_lock() {
            seen.note(now, info_hash, registered);
        }
        Refusal::SimilarTorrent
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Seen {
    fn note(&mut self, now: Now, info_hash: &InfoHash, registered: InfoHash) {
        if let Some(similar) = self.all.get_mut(info_hash) {
            (similar.refused, similar.last, similar.registered) =
                (similar.refused + 1, now, registered);
            return;
        }
        if self.all.len() >= SEEN_MAX && now >= self.swept.plus_s(60) {
            self.swept = now;
            self.all.retain(|_, it| it.last.plus_s(SEEN_AGE_S_MAX) > now);
        }
        if self.all.len() < SEEN_MAX {
            let similar = Similar { info_hash: *info_hash, registered, refused: 1, last: now };
            self.all.insert(*info_hash, similar);
        }
    }
}

/// Block `at` of a hash: ten digits.
fn block_of(InfoHash(bytes): &InfoHash, at: usize) -> u64 {
    bytes[at * 5..at * 5 + 5].iter().fold(0, |sum, it| sum << 8 | u64::from(*it))
}

/// Whether the first ten digits and the last five are the same.
fn have_same_ends(InfoHash(a): &InfoHash, InfoHash(b): &InfoHash) -> bool {
    a[..5] == b[..5] && a[18..] == b[18..] && (a[17] ^ b[17]) & 0x0f == 0
}

/// Number of digits, of 40, that differ.
fn differing(InfoHash(a): &InfoHash, InfoHash(b): &InfoHash) -> u32 {
    let digits = |(a, b): (&u8, &u8)| {
        let difference = a ^ b;
        u32::from(difference & 0xf0 != 0) + u32::from(difference & 0x0f != 0)
    };
    a.iter().zip(b).map(digits).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Now = Now::from_s(1_800_000_000);

    fn hash(digits: &str) -> InfoHash {
        InfoHash::from_hex(digits).unwrap()
    }

    fn known() -> InfoHash {
        hash("0123456789abcdef0123456789abcdef01234567")
    }

    #[test]
    fn both_hashes_of_a_hybrid_lead_to_one_swarm() {
        let registry = Registry::new();
        let (v1, v2) = (known(), InfoHash([2; 20]));
        registry.insert(v1, v1);
        registry.insert(v2, v1);
        assert_eq!((registry.judge(NOW, &v1), registry.judge(NOW, &v2)), (Ok(v1), Ok(v1)));
        assert_eq!(registry.judge(NOW, &InfoHash([3; 20])), Err(Refusal::Unregistered));
        registry.remove(&v2);
        assert_eq!((registry.canonical(&v2), registry.len()), (None, 1));
    }

    #[test]
    fn the_same_first_ten_and_last_five_digits_are_similar() {
        let registry = Registry::new();
        registry.insert(known(), known());
        for (digits, refusal) in [
            ("0123456789ffffffffffffffffffffffffff4567", Refusal::Unregistered),
            ("0123456789fffffffffffffffffffffffff34567", Refusal::SimilarTorrent),
            ("0123456788abcdef0123456789abcdef01234567", Refusal::Unregistered),
            ("0123456789abcdef0123456789abcdef01244567", Refusal::Unregistered),
            ("1123456789abcdef0123456789abcdef01234567", Refusal::Unregistered),
        ] {
            assert_eq!(registry.judge(NOW, &hash(digits)), Err(refusal), "{digits}");
        }
    }

    #[test]
    fn a_few_differing_digits_are_similar_where_that_is_set() {
        let registry = Registry::new();
        registry.insert(known(), known());
        registry.set_similar_digits_max(3);
        let similar = Err(Refusal::SimilarTorrent);
        for digits in [
            "1123456789abcdef0123456789abcdef01234567",
            "1123456789ffcdef0123456789abcdef01234567",
            "0123456788abcdef0123456788abcdef01234566",
        ] {
            assert_eq!(registry.judge(NOW, &hash(digits)), similar, "{digits}");
        }
        let four = hash("1123456788abcdef0123456788abcdef01234566");
        assert_eq!(registry.judge(NOW, &four), Err(Refusal::Unregistered));
        registry.remove(&known());
        let one = hash("1123456789abcdef0123456789abcdef01234567");
        assert_eq!(registry.judge(NOW, &one), Err(Refusal::Unregistered), "of nothing");
    }

    #[test]
    fn what_was_refused_is_listed_until_it_is_registered() {
        let registry = Registry::new();
        registry.insert(known(), known());
        let stranger = hash("0123456789fffffffffffffffffffffffff34567");
        let other = hash("0123456789eeeeeeeeeeeeeeeeeeeeeeeee34567");
        let _ = registry.judge(NOW, &stranger);
        let _ = registry.judge(NOW.plus_s(1), &stranger);
        let _ = registry.judge(NOW.plus_s(2), &other);
        let seen = registry.similar_to(&known());
        assert_eq!(seen.iter().map(|it| it.info_hash).collect::<Vec<_>>(), [other, stranger]);
        assert_eq!((seen[1].refused, seen[1].last), (2, NOW.plus_s(1)));
        registry.insert(stranger, stranger);
        assert_eq!(registry.similar_to(&known()).len(), 1);
        assert_eq!(registry.resembled(&known()), [stranger]);
    }

    #[test]
    fn no_more_is_remembered_than_fits() {
        let registry = Registry::new();
        registry.insert(known(), known());
        let stranger = |number: usize| {
            let mut info_hash = known();
            info_hash.0[8..16].copy_from_slice(&(number as u64).to_be_bytes());
            info_hash
        };
        for number in 0..SEEN_MAX + 10 {
            assert_eq!(registry.judge(NOW, &stranger(number)), Err(Refusal::SimilarTorrent));
        }
        assert_eq!(registry.similar_to(&known()).len(), SEEN_MAX);
        let later = NOW.plus_s(SEEN_AGE_S_MAX + 60);
        let _ = registry.judge(later, &stranger(SEEN_MAX + 20));
        assert_eq!(registry.similar_to(&known()).len(), 1, "old entries are replaced");
    }
}
