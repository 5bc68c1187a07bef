//! Memory layout of the store: the raw map of info-hash to swarm, and the blocks small swarms
//! live in. The only `unsafe` outside `sys/`, so that everything above can be plain Rust.
//!
//! ```text
//! map entry  info-hash (20) | cell (12)                                      = 32 bytes
//!   cell     tag (1) completed (3) | one IPv4 peer in place, or a pointer (8)
//! block      completed (4) | len, capacity, wanting, seeders (2 each) | tags | record × capacity
//! ```
//!
//! Three quarters of all torrents have one peer: those need nothing but their map entry.
#![expect(unsafe_code, reason = "raw-table access with prefetch; packed pointers; thin blocks")]

mod room;

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

use ahash::RandomState;
use crossbeam_utils::CachePadded;
use dashmap::{DashMap, SharedValue};
use hashbrown::raw::{Bucket, RawTable};

use super::block::{BlockHead, tag_bytes};
use super::contents::{Contents, Count};
use super::keeper::{Keeper, Visit, Walk};
use super::large::Large;
use super::record::Record;
use crate::types::InfoHash;

// ---------------------------------------------------------------------------------------------
// Blocks

/// A swarm's peers in one allocation behind a thin pointer.
pub(super) struct Block<const ADDRESS: usize> {
    head: NonNull<BlockHead>,
    records: PhantomData<Record<ADDRESS>>,
}

// SAFETY: a block owns its allocation and its records are plain bytes, so it may move threads.
unsafe impl<const ADDRESS: usize> Send for Block<ADDRESS> {}
// SAFETY: nothing in a block changes through a shared reference.
unsafe impl<const ADDRESS: usize> Sync for Block<ADDRESS> {}

impl<const ADDRESS: usize> Block<ADDRESS> {
    fn layout(capacity: usize) -> Layout {
        let bytes = Self::bytes_of(capacity);
        Layout::from_size_align(bytes, align_of::<BlockHead>()).expect("a few KiB at most")
    }

    /// An empty block with room for `capacity` records.
    pub(super) fn with_capacity(capacity: usize, completed: Count) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout holds at least the head, so its size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(head) = NonNull::new(memory.cast::<BlockHead>()) else {
            handle_alloc_error(layout)
        };
        let capacity = u16::try_from(capacity).expect("capacity_for returns at most 1023");
        // SAFETY: the allocation is new, aligned for the head and at least as large.
        unsafe { head.write(BlockHead { completed, len: 0, capacity, wanting: 0, seeders: 0 }) };
        Self { head, records: PhantomData }
    }

    /// Gives the block up for an address that [`Self::at`] takes back.
    #[inline]
    fn into_address(self) -> usize {
        ManuallyDrop::new(self).head.as_ptr().expose_provenance()
    }

    /// The block that was given up for this address.
    ///
    /// # Safety
    /// The address came from [`Self::into_address`] of the same kind of block. The block returned
    /// is a second handle on the same memory for as long as another is about.
    #[inline]
    unsafe fn at(address: usize) -> Self {
        let head = NonNull::new(ptr::with_exposed_provenance_mut(address));
        Self { head: head.expect("packed from a non-null pointer"), records: PhantomData }
    }

    #[inline]
    pub(super) fn head(&self) -> &BlockHead {
        // SAFETY: the head was written at creation, and this block owns it until it is dropped.
        unsafe { self.head.as_ref() }
    }

    #[inline]
    pub(super) fn head_mut(&mut self) -> &mut BlockHead {
        // SAFETY: as for `head`; `&mut self` makes the borrow unique.
        unsafe { self.head.as_mut() }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        usize::from(self.head().len)
    }

    #[inline]
    pub(super) fn capacity(&self) -> usize {
        usize::from(self.head().capacity)
    }

    /// What stands behind the head: tags, then records; `capacity` of each.
    #[inline]
    fn body(&self) -> NonNull<u8> {
        // SAFETY: every block has at least the head's bytes, so one head further is in bounds.
        unsafe { self.head.add(1) }.cast()
    }

    #[inline]
    fn first(&self) -> *mut Record<ADDRESS> {
        let tags = tag_bytes(self.capacity());
        // SAFETY: the allocation holds that many tags behind the head, before the records.
        unsafe { self.body().add(tags) }.cast().as_ptr()
    }

    /// A byte of each record's hash; empty in a small block.
    #[inline]
    pub(super) fn tags(&self) -> &[u8] {
        let tags = tag_bytes(self.capacity()).min(self.len());
        // SAFETY: that many bytes behind the head are tags; all were zeroed at creation.
        unsafe { std::slice::from_raw_parts(self.body().as_ptr(), tags) }
    }

    #[inline]
    pub(super) fn tags_mut(&mut self) -> &mut [u8] {
        let tags = tag_bytes(self.capacity()).min(self.len());
        // SAFETY: as for `tags`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.body().as_ptr(), tags) }
    }

    /// The records.
    #[inline]
    pub(super) fn slice(&self) -> &[Record<ADDRESS>] {
        // SAFETY: as for `records_mut`; a shared borrow of the block keeps it unchanged.
        unsafe { std::slice::from_raw_parts(self.first(), self.len()) }
    }

    #[inline]
    pub(super) fn records_mut(&mut self) -> &mut [Record<ADDRESS>] {
        let len = self.len();
        // SAFETY: `len` <= `capacity` records were zeroed at creation, any bytes are a record, and
        // `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.first(), len) }
    }
}

impl<const ADDRESS: usize> Drop for Block<ADDRESS> {
    fn drop(&mut self) {
        let layout = Self::layout(self.capacity());
        // SAFETY: the memory came from this allocator with exactly this layout, and is not used
        // after its owner is gone.
        unsafe { dealloc(self.head.as_ptr().cast(), layout) };
    }
}

// ---------------------------------------------------------------------------------------------
// Cells

/// A large swarm on the heap, behind a pointer that may be looked through from several threads at
/// once while the shard is locked for reading. (A `Box` may not: it promises to be the only way to
/// what it points at.)
pub(super) struct Owned(NonNull<Large>);

impl Owned {
    /// Moves a swarm to the heap.
    pub(super) fn new(large: Large) -> Self {
        Self(NonNull::from(Box::leak(Box::new(large))))
    }
}

impl Deref for Owned {
    type Target = Large;

    #[inline]
    fn deref(&self) -> &Large {
        // SAFETY: the swarm lives until its owner is dropped, and changes only through `&mut self`.
        unsafe { self.0.as_ref() }
    }
}

impl DerefMut for Owned {
    #[inline]
    fn deref_mut(&mut self) -> &mut Large {
        // SAFETY: as for `deref`; `&mut self` makes the borrow unique.
        unsafe { self.0.as_mut() }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: the pointer came from `Box::leak`, and is not used after its owner is gone.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

// SAFETY: an owner is as good as the swarm itself, which may move threads.
unsafe impl Send for Owned where Large: Send {}
// SAFETY: through a shared owner only a shared swarm is reached.
unsafe impl Sync for Owned where Large: Sync {}

/// Cells are plain numbers to the compiler: what they stand for must be fit for threads as well.
const _: () = {
    const fn fit_for_threads<T: Send + Sync>() {}
    fit_for_threads::<Contents>();
};

const TAG_EMPTY: u32 = 0;
const TAG_ONE: u32 = 1;
const TAG_FEW4: u32 = 2;
const TAG_FEW6: u32 = 3;
const TAG_MANY: u32 = 4;

/// A packed [`Contents`]: 12 bytes of alignment 4, so that a map entry is half a cache line.
pub(super) struct SwarmCell {
    words: [u32; 3],
}

const _: () = assert!(size_of::<(InfoHash, SwarmCell)>() == 32);

impl SwarmCell {
    /// A swarm nobody is in.
    pub(super) const VACANT: Self = Self { words: [TAG_EMPTY, 0, 0] };

    fn pack(contents: Contents) -> Self {
        let pointer = |tag: u32, address: usize| {
            let address = address as u64;
            #[expect(clippy::cast_possible_truncation, reason = "split into its two halves")]
            let halves = [address as u32, (address >> 32) as u32];
            Self { words: [tag, halves[0], halves[1]] }
        };
        match contents {
            Contents::Empty { completed, since_s } => {
                Self { words: [TAG_EMPTY, completed.word(), since_s] }
            }
            Contents::One(record, completed) => {
                debug_assert!(completed.fits_beside_peer());
                let [low, high] = zerocopy::transmute!(record);
                Self { words: [TAG_ONE | (completed.word() << 8), low, high] }
            }
            Contents::Few4(block) => pointer(TAG_FEW4 | (block.lines() << 8), block.into_address()),
            Contents::Few6(block) => pointer(TAG_FEW6 | (block.lines() << 8), block.into_address()),
            Contents::Many(large) => {
                let large = ManuallyDrop::new(large);
                pointer(TAG_MANY | (1 << 8), large.0.as_ptr().expose_provenance())
            }
        }
    }

    #[inline]
    fn address(&self) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "a usize was split, 64-bit only")]
        let address = (u64::from(self.words[2]) << 32 | u64::from(self.words[1])) as usize;
        address
    }

    #[inline]
    fn block<const ADDRESS: usize>(&self) -> Block<ADDRESS> {
        // SAFETY: only called for the tag under which such a block was packed.
        unsafe { Block::at(self.address()) }
    }

    /// A second handle on what the cell owns. Wrapped, so that it is never dropped by itself.
    #[inline]
    fn unpack(&self) -> ManuallyDrop<Contents> {
        ManuallyDrop::new(match self.words[0] & 0xff {
            TAG_ONE => {
                let record = zerocopy::transmute!([self.words[1], self.words[2]]);
                Contents::One(record, Count::from_word(self.words[0] >> 8))
            }
            TAG_FEW4 => Contents::Few4(self.block()),
            TAG_FEW6 => Contents::Few6(self.block()),
            TAG_MANY => {
                let large = ptr::with_exposed_provenance_mut(self.address());
                let large = NonNull::new(large).expect("packed from a non-null pointer");
                Contents::Many(Owned(large))
            }
            _ => {
                let completed = Count::from_word(self.words[1]);
                Contents::Empty { completed, since_s: self.words[2] }
            }
        })
    }

    /// Replaces the contents by what `change` makes of them. The cell's memory is written only if
    /// it has to be: most announces renew a record elsewhere, and a map entry that stays clean
    /// need not be written back to memory.
    #[inline]
    pub(super) fn change<T>(&mut self, change: impl FnOnce(Contents) -> (Contents, T)) -> T {
        // Until the new contents are back, cell and closure both own the old ones.
        let guard = AbortOnUnwind;
        let (contents, result) = change(ManuallyDrop::into_inner(self.unpack()));
        let packed = ManuallyDrop::new(Self::pack(contents));
        if packed.words != self.words {
            self.words = packed.words;
        }
        std::mem::forget(guard);
        result
    }

    /// Looks at the contents.
    #[inline]
    pub(super) fn peek<T>(&self, look: impl FnOnce(&Contents) -> T) -> T {
        look(&self.unpack())
    }

    /// Whether there is neither peer nor count: the entry may go.
    #[inline]
    pub(super) fn is_vacant(&self) -> bool {
        self.words[0] & 0xff == TAG_EMPTY && self.words[1] == 0
    }

    /// Whether anybody is in the swarm: a layout that can hold peers always holds one.
    #[inline]
    pub(super) fn has_peers(&self) -> bool {
        self.words[0] & 0xff != TAG_EMPTY
    }

    /// Since which second of the Unix epoch nobody has been in the swarm; `None`: somebody is.
    #[inline]
    fn empty_since_s(&self) -> Option<u32> {
        (!self.has_peers()).then_some(self.words[2])
    }

    /// The cache lines worth prefetching, if the contents live elsewhere.
    #[inline]
    fn lines(&self) -> impl Iterator<Item = *const u8> {
        let elsewhere = self.words[0] & 0xff >= TAG_FEW4;
        let lines = if elsewhere { self.words[0] >> 8 } else { 0 };
        let first: *const u8 = ptr::with_exposed_provenance(self.address());
        (0..lines as usize).map(move |line| first.wrapping_add(line * 64))
    }
}

impl Drop for SwarmCell {
    #[inline]
    fn drop(&mut self) {
        if self.words[0] & 0xff >= TAG_FEW4 {
            drop(ManuallyDrop::into_inner(self.unpack()));
        }
    }
}

/// Ends the process when dropped, which only unwinding does.
struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        std::process::abort();
    }
}

// ---------------------------------------------------------------------------------------------
// The table

type Entry = (InfoHash, SharedValue<SwarmCell>);

/// Lock-sharded raw tables of info-hash to cell. `DashMap` brings shards, locks and tables; which
/// shard a hash belongs to is decided here, see [`Table::shard_of`].
pub(super) struct Table {
    map: DashMap<InfoHash, SwarmCell, RandomState>,
    hints: Box<[CachePadded<Hint>]>,
}

/// Where a shard's table lies, for prefetching without its lock. May be out of date; a prefetch of
/// memory that was given back does nothing.
#[derive(Default)]
struct Hint {
    data_end: AtomicPtr<Entry>,
    bucket_mask: AtomicUsize,
    /// How often entries have changed their buckets. Exact, under the shard's lock.
    moves: AtomicUsize,
    /// The bucket that was last asked to give way. Exact, under the shard's lock.
    hand: AtomicUsize,
}

impl Hint {
    /// Notes where the table is now. Called under the shard's write lock.
    #[inline]
    fn note(&self, table: &RawTable<Entry>) {
        let data_end = table.data_end().as_ptr();
        if self.data_end.load(Ordering::Relaxed) != data_end {
            self.data_end.store(data_end, Ordering::Relaxed);
            self.bucket_mask.store(table.buckets() - 1, Ordering::Relaxed);
        }
    }
}

/// Where an entry is or would be.
struct Spot<'a> {
    info_hash: &'a InfoHash,
    hash: u64,
    shard: usize,
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
fn buckets_capacity(buckets: usize) -> usize {
    if buckets < 8 { buckets - 1 } else { buckets / 8 * 7 }
}

/// Bytes of memory a table takes.
fn bytes_of(table: &RawTable<Entry>) -> usize {
    table.allocation_info().1.size()
}

/// The entry in a bucket, if it is full.
#[inline]
fn entry_at(table: &RawTable<Entry>, at: usize) -> Option<&Entry> {
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
fn remove_at(table: &mut RawTable<Entry>, at: usize) -> Option<Entry> {
    entry_at(table, at)?;
    // SAFETY: `at` is below the table's number of buckets.
    let bucket = unsafe { table.bucket(at) };
    // SAFETY: the bucket is full and of this table, and is not used after.
    Some(unsafe { table.remove(bucket) }.0)
}

/// A shard's table is given back memory when it is filled to less than this part of its buckets.
const SHRINK_BELOW: usize = 4;

/// How many times [`Table::prefetch`] wants to see a batch.
pub(super) const PREFETCH_STAGES: usize = 2;

impl Table {
    /// An empty table of `shards` shards, a power of two above 1, hashing with `keys`.
    pub(super) fn new(shards: usize, keys: RandomState) -> Self {
        let map = DashMap::with_capacity_and_hasher_and_shard_amount(0, keys, shards);
        Self { map, hints: (0..shards).map(|_| CachePadded::default()).collect() }
    }

    /// How many shards there are.
    pub(super) fn shards(&self) -> usize {
        self.map.shards().len()
    }

    #[inline]
    fn hash(&self, info_hash: &InfoHash) -> u64 {
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
    pub(super) fn prefetch(&self, stage: usize, info_hash: &InfoHash) {
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
    pub(super) fn write<K: Keeper>(
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
    fn shrink(
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
    pub(super) fn read<T>(
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
    pub(super) fn sweep(
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
    pub(super) fn look_on<L>(&self, walk: &mut Walk, mut look: L) -> bool
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
    pub(super) fn keys(&self) -> &RandomState {
        self.map.hasher()
    }
}

/// Buckets looked at before a shard's lock is given back.
pub(super) const SLICE_BUCKETS: usize = 256;

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
