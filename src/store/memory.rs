//! What the store takes, byte by byte as it asks the allocator, and what it may take.
//!
//! Each shard has an account, written under the shard's lock. Accounts reserve bytes from the
//! whole in chunks, ahead of their needs and only as far as the budget goes: so the sum of what is
//! taken never exceeds what is reserved, that never exceeds the budget, and the one line all
//! workers share is written once in a few kilobytes.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a shard reserves at once: some seventy torrents. Large enough that the shared line rests,
/// small enough that what 1024 shards hold back unused is a few MiB.
pub(super) const CHUNK_BYTES: u64 = 4096;

/// What all accounts have reserved together.
#[derive(Default)]
pub(super) struct Memory {
    reserved: AtomicU64,
}

/// One shard's account. Written only under the shard's write lock; read by anyone.
#[derive(Default)]
pub(super) struct Account {
    taken: AtomicU64,
    reserved: AtomicU64,
}

impl Account {
    /// Bytes that the shard takes.
    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Memory {
    /// Notes that something of `before` bytes takes `after` now.
    #[inline]
    pub(super) fn note(&self, account: &Account, before: usize, after: usize) {
        if before != after {
            self.change(account, before as u64, after as u64);
        }
    }

    fn change(&self, account: &Account, before: u64, after: u64) {
        let taken = account.taken() + after - before;
        account.taken.store(taken, Ordering::Relaxed);
        let reserved = account.reserved.load(Ordering::Relaxed);
        // One chunk ahead, so that a shard that takes and gives the same bytes does not come back.
        let fitting = taken.next_multiple_of(CHUNK_BYTES) + CHUNK_BYTES;
        if taken > reserved || reserved > fitting {
            account.reserved.store(fitting, Ordering::Relaxed);
            self.reserved.fetch_add(fitting.wrapping_sub(reserved), Ordering::Relaxed);
        }
    }
}
