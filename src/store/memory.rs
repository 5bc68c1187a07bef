//! Accounts for the store's memory, in bytes requested from the allocator, and enforces the budget.
//!
//! Each shard has an account, written under the shard's lock. Accounts reserve bytes of the budget
//! in chunks before they use them: so the bytes used never exceed the bytes reserved, which never
//! exceed the budget, and the one cache line that all workers share is written once every few
//! kilobytes.
//!
//! From four fifths of the budget on, new torrents are on probation: they are stored, but are the
//! first torrents with peers to be evicted when the whole budget is reserved. Torrents without
//! peers, kept for their count alone, are evicted before them, whatever their age. Older torrents
//! with peers are never evicted.

use std::sync::atomic::{AtomicU64, Ordering};

/// The store's limits. They may change at run time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Bytes for torrents and peers, as requested from the allocator; 0: no limit.
    pub bytes_max: u64,
    /// Peers of one torrent, of all kinds together; 0: no limit.
    pub peers_per_torrent_max: u32,
}

/// The store's memory use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUsage {
    /// Bytes of torrents and peers, as requested from the allocator.
    pub bytes: u64,
    /// Bytes reserved for them, slightly more.
    pub reserved: u64,
    /// The limit in bytes; 0: no limit.
    pub bytes_max: u64,
    /// Torrents without peers or on probation that were evicted since start.
    pub evicted: u64,
}

/// Bytes that a shard reserves at once: some seventy torrents. Large enough that the shared line is
/// rarely written, small enough that 1024 shards hold only a few MiB unused.
pub(super) const CHUNK_BYTES: u64 = 4096;

/// The bytes reserved by all accounts, and their limits.
pub(super) struct StoreMemory {
    reserved: AtomicU64,
    /// The most bytes to reserve; `u64::MAX` without a limit.
    reserved_max: AtomicU64,
    /// Above this, new torrents are on probation.
    pressed_above: AtomicU64,
    /// The most peers of one torrent; 0: no limit.
    peers_max: AtomicU64,
}

impl Default for StoreMemory {
    fn default() -> Self {
        let [reserved_max, pressed_above] = [(); 2].map(|()| AtomicU64::new(u64::MAX));
        let [reserved, peers_max] = [(); 2].map(|()| AtomicU64::new(0));
        Self { reserved, reserved_max, pressed_above, peers_max }
    }
}

/// One shard's account. Written only under the shard's write lock; read by any thread.
#[derive(Default)]
pub(super) struct ShardAccount {
    taken: AtomicU64,
    reserved: AtomicU64,
}

impl ShardAccount {
    /// Bytes that the shard uses.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl StoreMemory {
    /// Sets the limits. Memory in use stays in use.
    pub(super) fn allow(&self, budget: Budget) {
        let (reserved_max, pressed_above) = match budget.bytes_max {
            0 => (u64::MAX, u64::MAX),
            bytes => (bytes, bytes / 5 * 4),
        };
        self.reserved_max.store(reserved_max, Ordering::Relaxed);
        self.pressed_above.store(pressed_above, Ordering::Relaxed);
        self.peers_max.store(budget.peers_per_torrent_max.into(), Ordering::Relaxed);
    }

    /// Bytes that all shards have reserved.
    pub(super) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Relaxed)
    }

    /// Whether more is reserved than allowed, because the budget was lowered: then freed memory is
    /// not used again.
    #[inline]
    fn is_over(&self) -> bool {
        self.reserved() > self.reserved_max.load(Ordering::Relaxed)
    }

    /// The store's limit in bytes; 0: no limit.
    pub(super) fn bytes_max(&self) -> u64 {
        match self.reserved_max.load(Ordering::Relaxed) {
            u64::MAX => 0,
            bytes => bytes,
        }
    }

    /// Whether memory is so short that new torrents are on probation.
    #[inline]
    pub(super) fn is_short(&self) -> bool {
        self.reserved() > self.pressed_above.load(Ordering::Relaxed)
    }

    /// The most peers of one torrent.
    #[inline]
    pub(super) fn peers_max(&self) -> usize {
        match self.peers_max.load(Ordering::Relaxed) {
            0 => usize::MAX,
            peers => usize::try_from(peers).unwrap_or(usize::MAX),
        }
    }

    /// The budget of an announce in a shard.
    #[inline]
    pub(super) fn of_shard<'a>(&'a self, account: &'a ShardAccount) -> ShardBudget<'a> {
        let (is_short, peers_max) = (self.is_short(), self.peers_max());
        ShardBudget { memory: self, account, is_short, peers_max, charged: 0 }
    }

    /// Reserves `bytes` more for a shard; returns whether the budget allows it.
    #[inline]
    pub(super) fn admits(&self, account: &ShardAccount, bytes: u64) -> bool {
        if self.is_over() {
            return false;
        }
        let needed = account.taken() + bytes;
        let reserved = account.reserved.load(Ordering::Relaxed);
        needed <= reserved
            || self.reserve(account, ahead_of(needed), reserved)
            || self.reserve(account, needed, reserved)
    }

    /// Reserves up to `wanted` bytes for a shard that has reserved fewer, if the budget allows.
    #[cold]
    fn reserve(&self, account: &ShardAccount, wanted: u64, reserved: u64) -> bool {
        let max = self.reserved_max.load(Ordering::Relaxed);
        let more = |all: u64| all.checked_add(wanted - reserved).filter(|all| *all <= max);
        let done = self.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        if done.is_ok() {
            account.reserved.store(wanted, Ordering::Relaxed);
        }
        done.is_ok()
    }

    /// Records that an allocation of `before` bytes now has `after` bytes.
    #[inline]
    pub(super) fn note(&self, account: &ShardAccount, before: usize, after: usize) {
        if before != after {
            self.change(account, before as u64, after as u64);
        }
    }

    fn change(&self, account: &ShardAccount, before: u64, after: u64) {
        let taken = account.taken() + after - before;
        account.taken.store(taken, Ordering::Relaxed);
        let reserved = account.reserved.load(Ordering::Relaxed);
        let ahead = ahead_of(taken);
        // The first case covers the few bytes that are not charged, such as a count that no longer
        // fits its entry; the second returns surplus reservations.
        if taken > reserved || reserved > ahead {
            account.reserved.store(ahead, Ordering::Relaxed);
            self.reserved.fetch_add(ahead.wrapping_sub(reserved), Ordering::Relaxed);
        }
    }
}

/// The budget of one announce in one shard.
pub(super) struct ShardBudget<'a> {
    memory: &'a StoreMemory,
    account: &'a ShardAccount,
    /// Whether new torrents are on probation.
    pub(super) is_short: bool,
    /// The most peers of a torrent.
    pub(super) peers_max: usize,
    /// Bytes charged to the announce so far.
    charged: u64,
}

impl ShardBudget<'_> {
    /// Charges the announce with `bytes` more; returns whether the budget allows all of its bytes.
    #[inline]
    pub(super) fn charge(&mut self, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        self.charged += bytes as u64;
        self.memory.admits(self.account, self.charged)
    }
}

/// The bytes to reserve for `bytes` used bytes: one chunk more, so that a shard that repeatedly
/// takes and frees the same bytes does not reserve each time.
fn ahead_of(bytes: u64) -> u64 {
    bytes.next_multiple_of(CHUNK_BYTES) + CHUNK_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reserved_covers_what_is_taken_and_keeps_the_budget() {
        let (memory, accounts) =
            (StoreMemory::default(), [(); 4].map(|()| ShardAccount::default()));
        let bytes_max = 100_000;
        memory.allow(Budget { bytes_max, peers_per_torrent_max: 0 });
        let mut random = fastrand::Rng::with_seed(1);
        let mut refused = 0;
        for _ in 0..100_000 {
            let account = random.choice(&accounts).unwrap();
            let taken = usize::try_from(account.taken()).unwrap();
            if random.bool() && memory.admits(account, 700) {
                memory.note(account, 0, random.usize(..=700));
            } else if random.u8(..3) == 0 {
                memory.note(account, random.usize(..=taken), 0);
            } else {
                refused += 1;
            }
            let sum = |of: fn(&ShardAccount) -> &AtomicU64| -> u64 {
                accounts.iter().map(|it| of(it).load(Ordering::Relaxed)).sum()
            };
            let reserved = memory.reserved.load(Ordering::Relaxed);
            assert_eq!(sum(|it| &it.reserved), reserved);
            assert!(sum(|it| &it.taken) <= reserved && reserved <= bytes_max);
        }
        assert!(refused > 0);
        accounts.iter().for_each(|it| memory.note(it, usize::try_from(it.taken()).unwrap(), 0));
        assert!(memory.reserved.load(Ordering::Relaxed) <= 4 * CHUNK_BYTES, "it is given back");
    }

    #[test]
    fn without_a_bound_everything_is_admitted() {
        let (memory, account) = (StoreMemory::default(), ShardAccount::default());
        assert!(memory.admits(&account, 1 << 50) && !memory.is_short());
        memory.allow(Budget { bytes_max: 1000, peers_per_torrent_max: 7 });
        assert!(memory.is_short() && !memory.admits(&account, 1 << 51));
        assert_eq!((memory.bytes_max(), memory.peers_max()), (1000, 7));
        memory.allow(Budget::default());
        assert!(!memory.is_short() && memory.admits(&account, 1 << 51));
        assert_eq!((memory.bytes_max(), memory.peers_max()), (0, usize::MAX));
    }

    #[test]
    fn what_goes_is_not_replaced_where_the_budget_was_lowered() {
        let (memory, account) = (StoreMemory::default(), ShardAccount::default());
        memory.allow(Budget { bytes_max: 100_000, peers_per_torrent_max: 0 });
        assert!(memory.admits(&account, 50_000));
        memory.note(&account, 0, 50_000);
        memory.allow(Budget { bytes_max: 40_000, peers_per_torrent_max: 0 });
        memory.note(&account, 5000, 0);
        assert!(!memory.admits(&account, 1), "though as much was reserved before");
        memory.note(&account, 15_000, 0);
        assert!(memory.admits(&account, 1));
    }
}
