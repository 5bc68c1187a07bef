//! Blocks: a small swarm's peers behind one head, in sizes that fill the allocator's size classes.
//!
//! ```text
//! block      completed (4) | len, capacity, wanting, seeders (2 each) | tags | record × capacity
//! ```

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::{self, NonNull};

use ahash::RandomState;

use crate::store::peer::{Endpoint, PeerRecord, PeerRecordV4};
use crate::store::peer_list::{PeerList, Placement, RoleCounts};
use crate::store::swarm::CompletedCount;
use crate::time::Now;

/// The head in front of a block's tags and records.
#[derive(Clone, Copy)]
#[repr(C)]
pub(in crate::store) struct PeerBlockHead {
    /// Downloads counted.
    pub(in crate::store) completed: CompletedCount,
    /// Records held.
    pub(in crate::store) len: u16,
    /// Records there is room for.
    pub(in crate::store) capacity: u16,
    /// Records of peers that want data.
    pub(in crate::store) wanting: u16,
    /// Records of complete peers.
    pub(in crate::store) seeders: u16,
}

/// Bytes of a head.
pub(in crate::store) const HEAD_BYTES: usize = size_of::<PeerBlockHead>();

/// The most records of a block; a larger swarm has an index.
pub(in crate::store) const BLOCK_RECORDS_MAX: usize = 1023;

/// A block with room for more records than this keeps a byte of each record's hash, so that finding
/// a peer reads one cache line for every 64 of them instead of eight or twenty.
const UNTAGGED_MAX: usize = 16;

const _: () = assert!(HEAD_BYTES == 12 && align_of::<PeerRecordV4>() == 1);
const _: () = assert!(BLOCK_RECORDS_MAX <= u16::MAX as usize);

/// The allocator's size class that holds `bytes`: multiples of 16 up to 64, then four steps to each
/// doubling (mimalloc's bins). Requesting the whole class wastes no memory.
#[inline]
fn size_class(bytes: usize) -> usize {
    let step = if bytes <= 64 { 16 } else { bytes.next_power_of_two() / 8 };
    bytes.next_multiple_of(step)
}

/// Bytes of tags in a block of this capacity.
#[inline]
pub(in crate::store) fn tag_bytes(capacity: usize) -> usize {
    if capacity > UNTAGGED_MAX { capacity } else { 0 }
}

/// A swarm's peers in one allocation behind a thin pointer.
pub(in crate::store) struct PeerBlock<const ADDRESS: usize> {
    head: NonNull<PeerBlockHead>,
    records: PhantomData<PeerRecord<ADDRESS>>,
}

// SAFETY: a block owns its allocation and its records are plain bytes, so it may move to another
// thread.
unsafe impl<const ADDRESS: usize> Send for PeerBlock<ADDRESS> {}
// SAFETY: nothing in a block changes through a shared reference.
unsafe impl<const ADDRESS: usize> Sync for PeerBlock<ADDRESS> {}

impl<const ADDRESS: usize> PeerBlock<ADDRESS> {
    fn layout(capacity: usize) -> Layout {
        let bytes = Self::bytes_of(capacity);
        Layout::from_size_align(bytes, align_of::<PeerBlockHead>()).expect("a few KiB at most")
    }

    /// An empty block with room for `capacity` records.
    pub(in crate::store) fn with_capacity(capacity: usize, completed: CompletedCount) -> Self {
        let layout = Self::layout(capacity);
        // SAFETY: the layout holds at least the head, so its size is not zero.
        let memory = unsafe { alloc_zeroed(layout) };
        let Some(head) = NonNull::new(memory.cast::<PeerBlockHead>()) else {
            handle_alloc_error(layout)
        };
        let capacity = u16::try_from(capacity).expect("capacity_for returns at most 1023");
        // SAFETY: the allocation is new, aligned for the head and at least as large.
        unsafe {
            head.write(PeerBlockHead { completed, len: 0, capacity, wanting: 0, seeders: 0 });
        };
        Self { head, records: PhantomData }
    }

    /// Converts the block to an address, from which [`Self::at`] restores it.
    #[inline]
    pub(super) fn into_address(self) -> usize {
        ManuallyDrop::new(self).head.as_ptr().expose_provenance()
    }

    /// Restores the block from its address.
    ///
    /// # Safety
    /// The address came from [`Self::into_address`] of the same kind of block. The returned block
    /// is a second handle on the same memory as long as another handle exists.
    #[inline]
    pub(super) unsafe fn at(address: usize) -> Self {
        let head = NonNull::new(ptr::with_exposed_provenance_mut(address));
        Self { head: head.expect("packed from a non-null pointer"), records: PhantomData }
    }

    #[inline]
    pub(in crate::store) fn head(&self) -> &PeerBlockHead {
        // SAFETY: the head was written at creation, and this block owns it until it is dropped.
        unsafe { self.head.as_ref() }
    }

    #[inline]
    pub(in crate::store) fn head_mut(&mut self) -> &mut PeerBlockHead {
        // SAFETY: as for `head`; `&mut self` makes the borrow unique.
        unsafe { self.head.as_mut() }
    }

    #[inline]
    pub(in crate::store) fn len(&self) -> usize {
        usize::from(self.head().len)
    }

    #[inline]
    pub(in crate::store) fn capacity(&self) -> usize {
        usize::from(self.head().capacity)
    }

    /// The start of the bytes after the head: tags, then records; `capacity` of each.
    #[inline]
    fn body(&self) -> NonNull<u8> {
        // SAFETY: every block has at least the head's bytes, so one head further is in bounds.
        unsafe { self.head.add(1) }.cast()
    }

    #[inline]
    fn first(&self) -> *mut PeerRecord<ADDRESS> {
        let tags = tag_bytes(self.capacity());
        // SAFETY: the allocation holds that many tags behind the head, before the records.
        unsafe { self.body().add(tags) }.cast().as_ptr()
    }

    /// A byte of each record's hash; empty in a small block.
    #[inline]
    pub(in crate::store) fn tags(&self) -> &[u8] {
        let tags = tag_bytes(self.capacity()).min(self.len());
        // SAFETY: that many bytes behind the head are tags; all were zeroed at creation.
        unsafe { std::slice::from_raw_parts(self.body().as_ptr(), tags) }
    }

    #[inline]
    pub(in crate::store) fn tags_mut(&mut self) -> &mut [u8] {
        let tags = tag_bytes(self.capacity()).min(self.len());
        // SAFETY: as for `tags`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.body().as_ptr(), tags) }
    }

    /// The records.
    #[inline]
    pub(in crate::store) fn slice(&self) -> &[PeerRecord<ADDRESS>] {
        // SAFETY: as for `records_mut`; a shared borrow of the block keeps it unchanged.
        unsafe { std::slice::from_raw_parts(self.first(), self.len()) }
    }

    #[inline]
    pub(in crate::store) fn records_mut(&mut self) -> &mut [PeerRecord<ADDRESS>] {
        let len = self.len();
        // SAFETY: `len` <= `capacity` records were zeroed at creation, any bytes are a record, and
        // `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.first(), len) }
    }

    /// The capacity to request for `len` records: all that fit into its size class.
    fn capacity_for(len: usize) -> usize {
        let stride = size_of::<PeerRecord<ADDRESS>>();
        let room = size_class(HEAD_BYTES + tag_bytes(len) + len * stride) - HEAD_BYTES;
        if len <= UNTAGGED_MAX {
            return (room / stride).min(UNTAGGED_MAX);
        }
        (room / (stride + 1)).min(BLOCK_RECORDS_MAX)
    }

    /// The whole size class that a block of this capacity needs.
    #[inline]
    pub(in crate::store) fn bytes_of(capacity: usize) -> usize {
        size_class(HEAD_BYTES + tag_bytes(capacity) + capacity * size_of::<PeerRecord<ADDRESS>>())
    }

    /// Bytes of memory the block takes.
    #[inline]
    pub(in crate::store) fn bytes(&self) -> usize {
        Self::bytes_of(self.capacity())
    }

    /// Bytes of a block with room for `len` records.
    #[inline]
    pub(in crate::store) fn bytes_with_room(len: usize) -> usize {
        Self::bytes_of(Self::capacity_for(len))
    }

    /// An empty block with room for `len` records.
    pub(in crate::store) fn with_room(len: usize, completed: CompletedCount) -> Self {
        Self::with_capacity(Self::capacity_for(len), completed)
    }

    /// Downloads counted in this swarm.
    pub(in crate::store) fn completed(&self) -> CompletedCount {
        self.head().completed
    }

    /// Replaces the count of downloads.
    pub(in crate::store) fn set_completed(&mut self, completed: CompletedCount) {
        self.head_mut().completed = completed;
    }

    /// Whether one more record would need an index.
    #[inline]
    pub(in crate::store) fn is_full(&self) -> bool {
        self.len() == BLOCK_RECORDS_MAX
    }

    /// Cache lines worth prefetching: head and tags, or all of a small block.
    #[inline]
    pub(in crate::store) fn lines(&self) -> u32 {
        let small = self.capacity() * size_of::<PeerRecord<ADDRESS>>();
        let tags = tag_bytes(self.capacity());
        let bytes = HEAD_BYTES + if tags == 0 { small } else { tags };
        u32::try_from(bytes.div_ceil(64)).unwrap_or(1)
    }

    /// Moves the records to a block of another capacity, at least the current length.
    fn resize(&mut self, capacity: usize, keys: &RandomState) {
        let len = self.len();
        assert!(capacity >= len && capacity <= BLOCK_RECORDS_MAX);
        let mut other = Self::with_capacity(capacity, self.completed());
        *other.head_mut() = PeerBlockHead { capacity: other.head().capacity, ..*self.head() };
        other.records_mut().copy_from_slice(self.records());
        if tag_bytes(capacity) > 0 {
            for at in 0..len {
                let tag = tag(&self.records()[at].endpoint, keys);
                other.tags_mut()[at] = tag;
            }
        }
        *self = other;
    }

    /// Frees the memory of peers that have left.
    pub(in crate::store) fn shrink(&mut self, keys: &RandomState) {
        let fitting = Self::capacity_for(self.len());
        if fitting < self.capacity() {
            self.resize(fitting, keys);
        }
    }
}

impl<const ADDRESS: usize> Drop for PeerBlock<ADDRESS> {
    fn drop(&mut self) {
        let layout = Self::layout(self.capacity());
        // SAFETY: the memory came from this allocator with exactly this layout, and is not used
        // after its owner is gone.
        unsafe { dealloc(self.head.as_ptr().cast(), layout) };
    }
}

/// The byte of an endpoint's hash that a block keeps.
#[inline]
fn tag<const ADDRESS: usize>(endpoint: &Endpoint<ADDRESS>, keys: &RandomState) -> u8 {
    keys.hash_one(endpoint).to_le_bytes()[7]
}

impl<const ADDRESS: usize> PeerList<ADDRESS> for PeerBlock<ADDRESS> {
    #[inline]
    fn records(&self) -> &[PeerRecord<ADDRESS>] {
        self.slice()
    }

    #[inline]
    fn counts(&self) -> RoleCounts {
        let head = self.head();
        RoleCounts { wanting: u32::from(head.wanting), seeders: u32::from(head.seeders) }
    }

    #[inline]
    fn set_counts(&mut self, counts: RoleCounts) {
        #[expect(clippy::cast_possible_truncation, reason = "never above len, which is 16 bits")]
        let (wanting, seeders) = (counts.wanting as u16, counts.seeders as u16);
        let head = self.head_mut();
        (head.wanting, head.seeders) = (wanting, seeders);
    }

    #[inline]
    fn position(&self, endpoint: &Endpoint<ADDRESS>, keys: &RandomState) -> Option<usize> {
        let records = self.records();
        let tags = self.tags();
        if tags.is_empty() {
            return records.iter().position(|record| record.endpoint == *endpoint);
        }
        let mut candidates = memchr::memchr_iter(tag(endpoint, keys), tags);
        candidates.find(|&at| records[at].endpoint == *endpoint)
    }

    #[inline]
    fn renew(&mut self, at: usize, record: PeerRecord<ADDRESS>) {
        self.records_mut()[at] = record;
    }

    #[inline]
    fn swap(&mut self, a: usize, b: usize, _keys: &RandomState) {
        self.records_mut().swap(a, b);
        let tags = self.tags_mut();
        if !tags.is_empty() {
            tags.swap(a, b);
        }
    }

    fn push(&mut self, record: PeerRecord<ADDRESS>, keys: &RandomState) {
        let len = self.len();
        assert!(len < BLOCK_RECORDS_MAX, "a full block becomes a large swarm first");
        if len == self.capacity() {
            self.resize(Self::capacity_for(len + 1), keys);
        }
        self.head_mut().len += 1;
        self.records_mut()[len] = record;
        if let Some(place) = self.tags_mut().get_mut(len) {
            *place = tag(&record.endpoint, keys);
        }
    }

    fn pop(&mut self, _keys: &RandomState) {
        self.head_mut().len -= 1;
    }

    fn growth(&self, more: usize) -> usize {
        let len = self.len() + more;
        if len <= self.capacity() { 0 } else { Self::bytes_with_room(len) - self.bytes() }
    }

    fn placement_by_host(
        &self,
        endpoint: &Endpoint<ADDRESS>,
        now: Now,
        _keys: &RandomState,
    ) -> Placement {
        let host = endpoint.host();
        let is_of_host = |it: &PeerRecord<ADDRESS>| it.endpoint.host() == host;
        let of_host = self.records().iter().filter(|it| is_of_host(it)).count();
        if of_host < Endpoint::<ADDRESS>::STORED_PER_HOST_MAX {
            return Placement::Own;
        }
        let of_host = self.records().iter().enumerate().filter(|(_, it)| is_of_host(it));
        let silent = of_host.max_by_key(|(_, it)| it.meta().age_s(now));
        silent.map_or(Placement::Own, |(at, _)| Placement::Of(at))
    }
}
