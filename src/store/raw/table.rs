//! The table: lock-sharded raw tables of info-hash to cell.

use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use ahash::RandomState;
use crossbeam_utils::CachePadded;
use dashmap::{DashMap, SharedValue};
use hashbrown::raw::{Bucket, RawTable};

use super::cell::SwarmCell;
use crate::store::keeper::{Keeper, Visit, Walk};
use crate::types::InfoHash;

pub(super) type Entry = (InfoHash, SharedValue<SwarmCell>);

/// Lock-sharded raw tables of info-hash to cell. `DashMap` brings shards, locks and tables; which
/// shard a hash belongs to is decided here, see [`Table::shard_of`].
pub(in crate::store) struct Table {
    map: DashMap<InfoHash, SwarmCell, RandomState>,
    pub(super) hints: Box<[CachePadded<Hint>]>,
}

/// Where a shard's table lies, for prefetching without its lock. May be out of date; a prefetch of
/// memory that was given back does nothing.
#[derive(Default)]
pub(super) struct Hint {
    data_end: AtomicPtr<Entry>,
    bucket_mask: AtomicUsize,
    /// How often entries have changed their buckets. Exact, under the shard's lock.
    pub(super) moves: AtomicUsize,
    /// The bucket that was last asked to give way. Exact, under the shard's lock.
    pub(super) hand: AtomicUsize,
}

impl Hint {
    /// Notes where the table is now. Called under the shard's write lock.
    #[inline]
    pub(super) fn note(&self, table: &RawTable<Entry>) {
        let data_end = table.data_end().as_ptr();
        if self.data_end.load(Ordering::Relaxed) != data_end {
            self.data_end.store(data_end, Ordering::Relaxed);
            self.bucket_mask.store(table.buckets() - 1, Ordering::Relaxed);
        }
    }
}

/// Where an entry is or would be.
pub(super) struct Spot<'a> {
    pub(super) info_hash: &'a InfoHash,
    hash: u64,
    pub(super) shard: usize,
}

/// Bytes more that a full table takes once it has grown for another entry; 0 where it is full of
/// marks that removed entries have left, and is tidied in place. That the old one is still there
/// for a moment is what a cap's reserve is for: it is a table of one shard in hundreds.
fn growth_of(table: &RawTable<Entry>) -> usize {
    let buckets = table.buckets();
    if buckets > 1 && table.len() < buckets_capacity(buckets) / 2 {
        return 0;
    }
    let doubled = (buckets * 2).max(4);
    // An entry and a control byte for each, and a group of such bytes behind the last.
    doubled * (size_of::<Entry>() + 1) + 16 - bytes_of(table)
}

/// How many entries a table of so many buckets holds: seven eighths, or all but one of the fewest.
pub(super) fn buckets_capacity(buckets: usize) -> usize {
    if buckets < 8 { buckets - 1 } else { buckets / 8 * 7 }
}

/// Bytes of memory a table takes.
fn bytes_of(table: &RawTable<Entry>) -> usize {
    table.allocation_info().1.size()
}

/// The entry in a bucket, if it is full.
#[inline]
pub(super) fn entry_at(table: &RawTable<Entry>, at: usize) -> Option<&Entry> {
    assert!(at < table.buckets());
    // SAFETY: `at` is below the table's number of buckets.
    if !unsafe { table.is_bucket_full(at) } {
        return None;
    }
    // SAFETY: as above.
    let bucket = unsafe { table.bucket(at) };
    // SAFETY: a full bucket holds an initialised entry, which nobody changes while the table is
    // borrowed.
    Some(unsafe { bucket.as_ref() })
}

/// Takes the entry out of a bucket, if it is full.
#[inline]
pub(super) fn remove_at(table: &mut RawTable<Entry>, at: usize) -> Option<Entry> {
    entry_at(table, at)?;
    // SAFETY: `at` is below the table's number of buckets.
    let bucket = unsafe { table.bucket(at) };
    // SAFETY: the bucket is full and of this table, and is not used after.
    Some(unsafe { table.remove(bucket) }.0)
}

/// A shard's table is given back memory when it is filled to less than this part of its buckets.
const SHRINK_BELOW: usize = 4;

/// How many times [`Table::prefetch`] wants to see a batch.
pub(in crate::store) const PREFETCH_STAGES: usize = 2;

impl Table {
    /// An empty table of `shards` shards, a power of two above 1, hashing with `keys`.
    pub(in crate::store) fn new(shards: usize, keys: RandomState) -> Self {
        let map = DashMap::with_capacity_and_hasher_and_shard_amount(0, keys, shards);
        Self { map, hints: (0..shards).map(|_| CachePadded::default()).collect() }
    }

    /// How many shards there are.
    pub(in crate::store) fn shards(&self) -> usize {
        self.map.shards().len()
    }

    #[inline]
    pub(super) fn hash(&self, info_hash: &InfoHash) -> u64 {
        self.map.hasher().hash_one(info_hash)
    }

    /// The shard of a hash. Deliberately uneven: the last shard gets twice the share of the first,
    /// with every step in between. Tables double when full; if all shards had the same share, all
    /// would double at about the same time, and an entry would cost 38 bytes at best and 76 at
    /// worst. Uneven, some shard is always about to double and the average never moves.
    #[inline]
    fn shard_of(&self, hash: u64) -> usize {
        const BITS: u32 = 24;
        const ONE: u64 = 1 << BITS;
        // Hashbrown takes bucket numbers from the low bits and tags from the high 7.
        let even = (hash >> 33) & (ONE - 1);
        // u + u(1-u)/3: its slope falls from 4/3 to 2/3, so shares grow from 3/4 to 3/2.
        let uneven = even + ((even * (ONE - even)) >> BITS) / 3;
        ((uneven * self.shards() as u64) >> BITS) as usize
    }

    /// Asks for the memory that handling `info_hash` will touch: its bucket and control bytes at
    /// stage 0, the swarm's block at stage 1. Stage 1 needs the shard's lock for a moment; a shard
    /// that is being changed is skipped, for a missed prefetch costs less than waiting.
    #[inline]
    pub(in crate::store) fn prefetch(&self, stage: usize, info_hash: &InfoHash) {
        let hash = self.hash(info_hash);
        let shard = self.shard_of(hash);
        if stage == 0 {
            let hint = &self.hints[shard];
            let end = hint.data_end.load(Ordering::Relaxed);
            #[expect(clippy::cast_possible_truncation, reason = "only low bits choose a bucket")]
            let bucket = hash as usize & hint.bucket_mask.load(Ordering::Relaxed);
            prefetch(end.cast::<u8>().wrapping_add(bucket));
            prefetch(end.wrapping_sub(bucket + 1).cast());
            return;
        }
        if let Some(table) = self.map.shards()[shard].try_read()
            && let Some((_, cell)) = table.get(hash, |entry| entry.0 == *info_hash)
        {
            cell.get().lines().for_each(prefetch);
        }
    }

    /// Lets `keeper` change the cell of `info_hash` under its shard's lock: an empty cell if there
    /// is none, which is stored if `create` and it is not vacant after. A cell that became vacant
    /// is removed. Where the keeper wants room, others give way, and it is asked once more.
    #[inline]
    pub(in crate::store) fn write<K: Keeper>(
        &self,
        info_hash: &InfoHash,
        create: bool,
        keeper: &mut K,
    ) -> K::Told {
        let hash = self.hash(info_hash);
        let shard = self.shard_of(hash);
        let mut table = self.map.shards()[shard].write();
        let at = Spot { info_hash, hash, shard };
        let told = self.change(&mut table, &at, create, keeper);
        if keeper.wants_room() {
            self.make_room(&mut table, &at, keeper);
            return self.change(&mut table, &at, create, keeper);
        }
        told
    }

    #[inline]
    fn change<K: Keeper>(
        &self,
        table: &mut RawTable<Entry>,
        at: &Spot<'_>,
        create: bool,
        keeper: &mut K,
    ) -> K::Told {
        let (hash, shard) = (at.hash, at.shard);
        let is_it = |entry: &Entry| entry.0 == *at.info_hash;
        if let Some(bucket) = table.find(hash, is_it) {
            return Self::change_in(table, bucket, shard, true, keeper);
        }
        let mut cell = SwarmCell::VACANT;
        if !create {
            return keeper.change(shard, &mut cell);
        }
        if !keeper.may_create() {
            return keeper.turned_away();
        }
        if table.len() == table.capacity() && !self.grow(table, shard, keeper) {
            // A bucket that someone has left may do.
            let vacant = (*at.info_hash, SharedValue::new(SwarmCell::VACANT));
            return match table.try_insert_no_grow(hash, vacant) {
                Ok(bucket) => Self::change_in(table, bucket, shard, false, keeper),
                Err(_) => keeper.without_bucket(),
            };
        }
        let told = keeper.change(shard, &mut cell);
        if !cell.is_vacant() {
            let entry = (*at.info_hash, SharedValue::new(cell));
            table.insert(hash, entry, |entry| self.hash(&entry.0));
            keeper.entry(shard, false, true);
        }
        told
    }

    /// Changes the cell in a bucket, which was not `there` before if it was made for this.
    #[inline]
    fn change_in<K: Keeper>(
        table: &mut RawTable<Entry>,
        bucket: Bucket<Entry>,
        shard: usize,
        there: bool,
        keeper: &mut K,
    ) -> K::Told {
        // SAFETY: the bucket was just found in this table, whose lock is held for writing.
        let entry = unsafe { bucket.as_mut() };
        let told = keeper.change(shard, entry.1.get_mut());
        let stays = !entry.1.get_mut().is_vacant();
        if !stays {
            // SAFETY: the bucket is full and of this table; `entry` is not used after.
            unsafe { table.erase(bucket) };
        }
        keeper.entry(shard, there, stays);
        told
    }

    /// Makes room for one more entry, if the keeper lets the table grow or it can be tidied in
    /// place; says whether.
    #[cold]
    fn grow(&self, table: &mut RawTable<Entry>, shard: usize, keeper: &mut impl Keeper) -> bool {
        let before = bytes_of(table);
        let (growth, buckets) = (growth_of(table), table.buckets());
        if growth > 0 && !keeper.may_grow(shard, growth) {
            return false;
        }
        table.reserve(1, |entry| self.hash(&entry.0));
        debug_assert_eq!(growth > 0, table.buckets() > buckets);
        keeper.resized(shard, before, bytes_of(table));
        self.hints[shard].note(table);
        self.hints[shard].moves.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Gives back what the table does not need for so many entries.
    pub(super) fn shrink(
        &self,
        table: &mut RawTable<Entry>,
        shard: usize,
        entries: usize,
        resized: impl FnOnce(usize, usize),
    ) {
        let before = bytes_of(table);
        table.shrink_to(entries, |entry| self.hash(&entry.0));
        resized(before, bytes_of(table));
        self.hints[shard].note(table);
        self.hints[shard].moves.fetch_add(1, Ordering::Relaxed);
    }

    /// Looks at the cell of `info_hash`, if there is one, under its shard's shared lock.
    #[inline]
    pub(in crate::store) fn read<T>(
        &self,
        info_hash: &InfoHash,
        look: impl FnOnce(&SwarmCell) -> T,
    ) -> Option<T> {
        let hash = self.hash(info_hash);
        let table = self.map.shards()[self.shard_of(hash)].read();
        table.get(hash, |entry| entry.0 == *info_hash).map(|entry| look(entry.1.get()))
    }

    /// Runs `change` on the cells of a shard from bucket `from` on, until it answers
    /// [`Visit::Pause`] or `budget` is spent: one for each bucket, and what `change` takes of it.
    /// Vacant cells are removed. Says where to go on, or `None` at the shard's end. Tells `resized`
    /// of how many bytes the table was and is, if it shrinks.
    pub(in crate::store) fn sweep(
        &self,
        shard: usize,
        from: usize,
        budget: &mut usize,
        mut change: impl FnMut(&InfoHash, &mut SwarmCell, &mut usize) -> Visit,
        resized: impl FnOnce(usize, usize),
    ) -> Option<usize> {
        let mut table = self.map.shards()[shard].write();
        for index in from..table.buckets() {
            if *budget == 0 {
                return Some(index);
            }
            *budget -= 1;
            // SAFETY: `index` is below the table's number of buckets.
            if !unsafe { table.is_bucket_full(index) } {
                continue;
            }
            // SAFETY: as above; a full bucket holds an initialised entry.
            let bucket = unsafe { table.bucket(index) };
            // SAFETY: the table's lock is held for writing, so this is the only reference.
            let entry = unsafe { bucket.as_mut() };
            if change(&entry.0, entry.1.get_mut(), budget) == Visit::Pause {
                return Some(index);
            }
            if entry.1.get_mut().is_vacant() {
                // SAFETY: the bucket is full and of this table; `entry` is not used after.
                unsafe { table.erase(bucket) };
            }
        }
        if table.buckets() > SHRINK_BELOW && table.len() < table.buckets() / SHRINK_BELOW {
            // Half as many again never leaves it as it is: then at most half the buckets are full.
            let roomy = table.len() + table.len() / 2;
            self.shrink(&mut table, shard, roomy, resized);
        }
        None
    }

    /// Shows a walk's next slice of entries to `look`, under the shard's shared lock, each with how
    /// often the walk began anew; says whether there are more. It begins anew if entries have
    /// changed their buckets since the last slice: one may be shown twice, but none that is there
    /// all the time is left out. [`Visit::Pause`] ends the slice behind the entry.
    pub(in crate::store) fn look_on<L>(&self, walk: &mut Walk, mut look: L) -> bool
    where
        L: FnMut(u32, &InfoHash, &SwarmCell) -> Visit,
    {
        let table = self.map.shards()[walk.shard].read();
        let moves = self.hints[walk.shard].moves.load(Ordering::Relaxed);
        if walk.moves.replace(moves).is_some_and(|before| before != moves) {
            (walk.from, walk.restarts) = (0, walk.restarts + 1);
        }
        let slice = if walk.restarts < RESTARTS_MAX { SLICE_BUCKETS } else { usize::MAX };
        let end = table.buckets().min(walk.from.saturating_add(slice));
        for index in walk.from..end {
            // SAFETY: `index` is below the table's number of buckets.
            if unsafe { table.is_bucket_full(index) } {
                // SAFETY: as above.
                let bucket = unsafe { table.bucket(index) };
                // SAFETY: it holds an entry, and nobody writes while it is locked.
                let (info_hash, cell) = unsafe { bucket.as_ref() };
                if look(walk.restarts, info_hash, cell.get()) == Visit::Pause {
                    walk.from = index + 1;
                    return walk.from < table.buckets();
                }
            }
        }
        walk.from = end;
        end < table.buckets()
    }

    /// The keys of every hash in the store.
    pub(in crate::store) fn keys(&self) -> &RandomState {
        self.map.hasher()
    }
}

/// Buckets looked at before a shard's lock is given back.
pub(in crate::store) const SLICE_BUCKETS: usize = 256;

/// A walk that was disturbed so often keeps the lock to the shard's end.
const RESTARTS_MAX: u32 = 4;

/// Hints that the cache line at `address` is about to be used. Never faults, whatever the address.
#[inline]
fn prefetch(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the instruction reads nothing that the program can observe.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address.cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the instruction reads nothing that the program can observe.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) address, options(nostack, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}
