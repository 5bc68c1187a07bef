//! The table: lock-sharded raw tables of info-hash to packed swarm, one entry at a time under its
//! shard's lock ([`Entry`]), or a shard's buckets one after the other ([`LockedShard`],
//! [`ShardWalk`]).

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use ahash::RandomState;
use crossbeam_utils::CachePadded;
use dashmap::{DashMap, RwLockWriteGuard, SharedValue};
use hashbrown::raw::{Bucket, RawTable};

use super::packed_swarm::PackedSwarm;
use crate::store::swarm::Swarm;
use crate::types::InfoHash;

/// The contents of a full bucket.
type Slot = (InfoHash, SharedValue<PackedSwarm>);

/// Lock-sharded raw tables of info-hash to packed swarm. `DashMap` provides shards, locks and
/// tables; the shard of a hash is chosen here, see [`SwarmTable::shard_of`].
pub(in crate::store) struct SwarmTable {
    map: DashMap<InfoHash, PackedSwarm, RandomState>,
    hints: Box<[CachePadded<ShardHint>]>,
}

/// The address of a shard's table, for prefetching without its lock. May be outdated; a prefetch of
/// freed memory does nothing.
#[derive(Default)]
struct ShardHint {
    data_end: AtomicPtr<Slot>,
    bucket_mask: AtomicUsize,
    /// How often entries have changed their buckets. Exact under the shard's lock.
    moves: AtomicUsize,
    /// The bucket at which the latest search for entries to evict ended. Exact under the shard's
    /// lock.
    hand: AtomicUsize,
}

/// An info-hash and its hash, which is computed once.
#[derive(Clone, Copy)]
pub(in crate::store) struct TableKey<'a> {
    /// The torrent.
    pub(in crate::store) info_hash: &'a InfoHash,
    hash: u64,
}

/// A shard's table is shrunk when less than one in this many buckets is full.
const SHRINK_BELOW: usize = 4;

/// The number of passes of [`SwarmTable::prefetch`] over a batch.
pub(in crate::store) const PREFETCH_STAGES: usize = 2;

impl SwarmTable {
    /// An empty table of `shards` shards, a power of two above 1, hashing with `keys`.
    pub(in crate::store) fn new(shards: usize, keys: RandomState) -> Self {
        let map = DashMap::with_capacity_and_hasher_and_shard_amount(0, keys, shards);
        Self { map, hints: (0..shards).map(|_| CachePadded::default()).collect() }
    }

    /// How many shards there are.
    pub(in crate::store) fn shards(&self) -> usize {
        self.map.shards().len()
    }

    /// The keys of every hash in the store.
    pub(in crate::store) fn keys(&self) -> &RandomState {
        self.map.hasher()
    }

    /// The key of a torrent in this table.
    #[inline]
    pub(in crate::store) fn key<'k>(&self, info_hash: &'k InfoHash) -> TableKey<'k> {
        TableKey { info_hash, hash: self.keys().hash_one(info_hash) }
    }

    /// The shard of a hash. Deliberately uneven: shares grow gradually from the first shard to the
    /// last, which gets twice the share of the first. Tables double when full; if all shards had
    /// the same share, all would double at about the same time, and an entry would cost 38 bytes at
    /// best and 76 at worst. With uneven shares, some shard is always about to double and the
    /// average stays constant.
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

    /// Prefetches the memory that handling `info_hash` will access: its bucket and control bytes at
    /// stage 0, the swarm's block at stage 1. Stage 1 needs the shard's lock for a moment; a shard
    /// that is locked for writing is skipped, because a missed prefetch costs less than waiting.
    #[inline]
    pub(in crate::store) fn prefetch(&self, stage: usize, info_hash: &InfoHash) {
        let TableKey { hash, .. } = self.key(info_hash);
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
        if let Some(slots) = self.map.shards()[shard].try_read()
            && let Some((_, packed)) = slots.get(hash, |slot| slot.0 == *info_hash)
        {
            packed.get().lines().for_each(prefetch);
        }
    }

    /// Locks the shard of a key for writing.
    #[inline]
    pub(in crate::store) fn lock(&self, key: TableKey<'_>) -> LockedShard<'_> {
        self.lock_shard(self.shard_of(key.hash))
    }

    /// Locks a shard for writing.
    #[inline]
    pub(in crate::store) fn lock_shard(&self, shard: usize) -> LockedShard<'_> {
        let slots = self.map.shards()[shard].write();
        LockedShard { number: shard, slots, hint: &self.hints[shard], keys: self.keys() }
    }

    /// Calls `look` with the packed swarm of `info_hash`, if there is one, under its shard's shared
    /// lock.
    #[inline]
    pub(in crate::store) fn read<T>(
        &self,
        info_hash: &InfoHash,
        look: impl FnOnce(&PackedSwarm) -> T,
    ) -> Option<T> {
        let TableKey { hash, .. } = self.key(info_hash);
        let slots = self.map.shards()[self.shard_of(hash)].read();
        slots.get(hash, |slot| slot.0 == *info_hash).map(|slot| look(slot.1.get()))
    }

    /// Calls `look` for a walk's next slice of entries, under the shard's shared lock, each with
    /// the number of restarts of the walk; returns whether there are more entries. The walk
    /// restarts if entries have changed their buckets since the last slice: an entry may be visited
    /// twice, but no entry that exists during the whole walk is missed. `Break` ends the slice
    /// after the entry.
    pub(in crate::store) fn walk_on<L>(&self, walk: &mut ShardWalk, mut look: L) -> bool
    where
        L: FnMut(u32, &InfoHash, &PackedSwarm) -> ControlFlow<()>,
    {
        let slots = self.map.shards()[walk.shard].read();
        let moves = self.hints[walk.shard].moves.load(Ordering::Relaxed);
        if walk.moves.replace(moves).is_some_and(|before| before != moves) {
            (walk.from, walk.restarts) = (0, walk.restarts + 1);
        }
        let slice = if walk.restarts < RESTARTS_MAX { SLICE_BUCKETS } else { usize::MAX };
        let end = slots.buckets().min(walk.from.saturating_add(slice));
        for index in walk.from..end {
            if let Some((info_hash, packed)) = slot_at(&slots, index)
                && look(walk.restarts, info_hash, packed.get()).is_break()
            {
                walk.from = index + 1;
                return walk.from < slots.buckets();
            }
        }
        walk.from = end;
        end < slots.buckets()
    }
}

/// Buckets visited before a shard's lock is released.
pub(in crate::store) const SLICE_BUCKETS: usize = 256;

/// A walk that has restarted this often keeps the lock to the shard's end.
const RESTARTS_MAX: u32 = 4;

/// A walk through a shard in slices, between which the shard may change.
pub(in crate::store) struct ShardWalk {
    /// The shard.
    pub(in crate::store) shard: usize,
    /// The bucket at which to continue.
    from: usize,
    /// The shard's count of moves at the latest slice.
    moves: Option<usize>,
    /// The number of restarts.
    restarts: u32,
}

impl ShardWalk {
    /// A walk through a shard from its first bucket on.
    pub(in crate::store) fn new(shard: usize) -> Self {
        Self { shard, from: 0, moves: None, restarts: 0 }
    }
}

/// A shard that is locked for writing.
pub(in crate::store) struct LockedShard<'a> {
    number: usize,
    slots: RwLockWriteGuard<'a, RawTable<Slot>>,
    hint: &'a ShardHint,
    keys: &'a RandomState,
}

impl<'a> LockedShard<'a> {
    /// The number of the shard.
    #[inline]
    pub(in crate::store) fn number(&self) -> usize {
        self.number
    }

    /// The entry of a key that belongs to this shard, whether it exists or not.
    #[inline]
    pub(in crate::store) fn entry<'s>(&'s mut self, key: TableKey<'s>) -> Entry<'s, 'a> {
        let bucket = self.slots.find(key.hash, |slot| slot.0 == *key.info_hash);
        Entry { shard: self, key, bucket }
    }

    /// How many entries there are.
    pub(in crate::store) fn len(&self) -> usize {
        self.slots.len()
    }

    /// How many buckets there are.
    pub(in crate::store) fn buckets(&self) -> usize {
        self.slots.buckets()
    }

    /// Bytes of memory the table takes.
    pub(in crate::store) fn bytes(&self) -> usize {
        self.slots.allocation_info().1.size()
    }

    /// Whether one more entry would make the table grow, or rehash in place.
    #[inline]
    pub(in crate::store) fn is_full(&self) -> bool {
        self.slots.len() == self.slots.capacity()
    }

    /// Additional bytes of a full table after it has grown for another entry; 0 if it is full of
    /// tombstones, and is rehashed in place. The reserve above the budget covers the old table,
    /// which exists for a moment: it is a table of one shard in hundreds.
    fn growth(&self) -> usize {
        let buckets = self.buckets();
        if buckets > 1 && self.len() < buckets_capacity(buckets) / 2 {
            return 0;
        }
        let doubled = (buckets * 2).max(4);
        // An entry and a control byte for each bucket, and a group of control bytes after the last.
        doubled * (size_of::<Slot>() + 1) + 16 - self.bytes()
    }

    /// Makes room for one more entry in a full table, by growing or by rehashing in place.
    fn grow(&mut self) {
        let (growth, buckets) = (self.growth(), self.buckets());
        let keys = self.keys;
        self.slots.reserve(1, |slot| keys.hash_one(slot.0));
        debug_assert_eq!(growth > 0, self.buckets() > buckets);
        self.note_moves();
    }

    /// Frees the memory that `entries` entries do not need.
    pub(in crate::store) fn shrink_to(&mut self, entries: usize) {
        let keys = self.keys;
        self.slots.shrink_to(entries, |slot| keys.hash_one(slot.0));
        self.note_moves();
    }

    /// Whether so few buckets are full that the table should be shrunk.
    pub(in crate::store) fn is_sparse(&self) -> bool {
        self.buckets() > SHRINK_BELOW && self.len() < self.buckets() / SHRINK_BELOW
    }

    /// Moves all entries into a table of the same size without tombstones.
    pub(in crate::store) fn rebuild(&mut self) {
        let buckets = self.buckets();
        let mut rebuilt = RawTable::with_capacity(buckets_capacity(buckets));
        let keys = self.keys;
        for slot in self.slots.drain() {
            rebuilt.insert(keys.hash_one(slot.0), slot, |slot| keys.hash_one(slot.0));
        }
        debug_assert_eq!(rebuilt.buckets(), buckets);
        *self.slots = rebuilt;
        self.note_moves();
    }

    /// Records that entries have changed their buckets.
    fn note_moves(&mut self) {
        self.hint.note(&self.slots);
        self.hint.moves.fetch_add(1, Ordering::Relaxed);
    }

    /// The bucket at which the latest search for entries to evict ended.
    pub(in crate::store) fn hand(&self) -> usize {
        self.hint.hand.load(Ordering::Relaxed)
    }

    /// Records where a search for entries to evict has ended.
    pub(in crate::store) fn set_hand(&mut self, bucket: usize) {
        self.hint.hand.store(bucket, Ordering::Relaxed);
    }

    /// The entry in a bucket, if it is full.
    #[inline]
    pub(in crate::store) fn get_at(&self, bucket: usize) -> Option<(&InfoHash, &PackedSwarm)> {
        slot_at(&self.slots, bucket).map(|(info_hash, packed)| (info_hash, packed.get()))
    }

    /// Removes the entry in a bucket, if it is full; returns its swarm.
    pub(in crate::store) fn remove_at(&mut self, bucket: usize) -> Option<Swarm> {
        let bucket = full_bucket(&self.slots, bucket)?;
        // SAFETY: the bucket is full and of this table, and is not used after.
        let ((_, packed), _) = unsafe { self.slots.remove(bucket) };
        Some(packed.into_inner().into_swarm())
    }

    /// Replaces the swarm in a full bucket by the result of `change`; returns the value of
    /// `change`, and whether the entry stays: a vacant entry is removed.
    #[inline]
    pub(in crate::store) fn update_at<T>(
        &mut self,
        bucket: usize,
        change: impl FnOnce(&InfoHash, Swarm) -> (Swarm, T),
    ) -> Option<(T, bool)> {
        let bucket = full_bucket(&self.slots, bucket)?;
        // SAFETY: the shard's lock is held for writing, so this is the only reference.
        let (info_hash, packed) = unsafe { bucket.as_mut() };
        let packed = packed.get_mut();
        let result = packed.change(|swarm| change(info_hash, swarm));
        let stays = !packed.is_vacant();
        if !stays {
            // SAFETY: the bucket is full and of this table; nothing refers to its entry any more.
            unsafe { self.slots.erase(bucket) };
        }
        Some((result, stays))
    }
}

impl ShardHint {
    /// Records the address of the table. Called under the shard's write lock.
    #[inline]
    fn note(&self, slots: &RawTable<Slot>) {
        let data_end = slots.data_end().as_ptr();
        if self.data_end.load(Ordering::Relaxed) != data_end {
            self.data_end.store(data_end, Ordering::Relaxed);
            self.bucket_mask.store(slots.buckets() - 1, Ordering::Relaxed);
        }
    }
}

/// The most entries of a table with `buckets` buckets: seven eighths, or all but one in the
/// smallest tables.
pub(in crate::store) fn buckets_capacity(buckets: usize) -> usize {
    if buckets < 8 { buckets - 1 } else { buckets / 8 * 7 }
}

/// The bucket with this number, if it is full.
#[inline]
fn full_bucket(slots: &RawTable<Slot>, at: usize) -> Option<Bucket<Slot>> {
    assert!(at < slots.buckets());
    // SAFETY: `at` is below the table's number of buckets.
    if !unsafe { slots.is_bucket_full(at) } {
        return None;
    }
    // SAFETY: as above.
    Some(unsafe { slots.bucket(at) })
}

/// The contents of the bucket with this number, if it is full.
#[inline]
fn slot_at(slots: &RawTable<Slot>, at: usize) -> Option<&Slot> {
    let bucket = full_bucket(slots, at)?;
    // SAFETY: a full bucket holds an initialised entry, which does not change while the table is
    // borrowed.
    Some(unsafe { bucket.as_ref() })
}

/// The place of one torrent under its shard's lock, whether it has an entry or not.
pub(in crate::store) struct Entry<'s, 'a> {
    shard: &'s mut LockedShard<'a>,
    key: TableKey<'s>,
    bucket: Option<Bucket<Slot>>,
}

impl Entry<'_, '_> {
    /// Whether the torrent has an entry.
    #[inline]
    pub(in crate::store) fn exists(&self) -> bool {
        self.bucket.is_some()
    }

    /// Bytes by which the table must grow for the entry, 0 if it is rehashed in place; `None` if
    /// there is a bucket for it.
    #[inline]
    pub(in crate::store) fn growth(&self) -> Option<usize> {
        (!self.exists() && self.shard.is_full()).then(|| self.shard.growth())
    }

    /// Makes room for the entry in a full table; returns the bytes of the table before and after.
    pub(in crate::store) fn grow(&mut self) -> [usize; 2] {
        assert!(!self.exists(), "the bucket of an entry that exists would move");
        let before = self.shard.bytes();
        self.shard.grow();
        [before, self.shard.bytes()]
    }

    /// Makes a vacant entry in the bucket of a removed entry, if the hash leads to one, without
    /// growing the table. Returns whether the entry now exists.
    pub(in crate::store) fn reuse_bucket(&mut self) -> bool {
        let vacant = (*self.key.info_hash, SharedValue::new(PackedSwarm::VACANT));
        self.bucket = self.shard.slots.try_insert_no_grow(self.key.hash, vacant).ok();
        self.exists()
    }

    /// Replaces the swarm, which is vacant if there is no entry, by the result of `change`; returns
    /// the value of `change`, and whether there is an entry afterwards: a vacant entry is removed.
    /// If there was no entry, the table must not be full.
    #[inline]
    pub(in crate::store) fn update<T>(self, change: impl FnOnce(Swarm) -> (Swarm, T)) -> (T, bool) {
        let LockedShard { slots, keys, .. } = self.shard;
        let mut absent = PackedSwarm::VACANT;
        let packed = match &self.bucket {
            // SAFETY: the bucket was found in this table, whose lock is held for writing.
            Some(bucket) => unsafe { bucket.as_mut() }.1.get_mut(),
            None => &mut absent,
        };
        let result = packed.change(change);
        let stays = !packed.is_vacant();
        match self.bucket {
            // SAFETY: the bucket is full and of this table; nothing refers to its entry any more.
            Some(bucket) if !stays => unsafe { slots.erase(bucket) },
            None if stays => {
                debug_assert!(slots.len() < slots.capacity(), "room was made before");
                let slot = (*self.key.info_hash, SharedValue::new(absent));
                slots.insert(self.key.hash, slot, |slot| keys.hash_one(slot.0));
            }
            _ => {}
        }
        (result, stays)
    }
}

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
