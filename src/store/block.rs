//! Blocks: a small swarm's peers behind one head, in sizes that the allocator wastes nothing of.
//!
//! ```text
//! block      completed (4) | len, capacity, wanting, seeders (2 each) | tags | record × capacity
//! ```
//!
//! How a block lies in memory is [`super::table`]'s; what is done with one is plain Rust, here.

use ahash::RandomState;

use super::contents::Count;
use super::record::{Endpoint, Record, Record4};
use super::roster::{Counts, Place, Roster};
use super::table::Block;
use crate::time::Now;

/// What stands in front of a block's tags and records.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct BlockHead {
    /// Downloads counted.
    pub(super) completed: Count,
    /// Records held.
    pub(super) len: u16,
    /// Records there is room for.
    pub(super) capacity: u16,
    /// Those who want data.
    pub(super) wanting: u16,
    /// Those who are complete.
    pub(super) seeders: u16,
}

/// Bytes of a head.
pub(super) const HEAD_BYTES: usize = size_of::<BlockHead>();

/// The most records a block holds; a larger swarm keeps an index.
pub(super) const BLOCK_RECORDS_MAX: usize = 1023;

/// A block with room for more than this keeps a byte of each record's hash, so that finding a peer
/// reads one cache line for every 64 of them instead of eight or twenty.
const UNTAGGED_MAX: usize = 16;

const _: () = assert!(HEAD_BYTES == 12 && align_of::<Record4>() == 1);
const _: () = assert!(BLOCK_RECORDS_MAX <= u16::MAX as usize);

/// The allocator's size class that holds `bytes`: multiples of 16 up to 64, then four steps to
/// each doubling (mimalloc's bins). Asking for the whole class wastes nothing.
#[inline]
fn size_class(bytes: usize) -> usize {
    let step = if bytes <= 64 { 16 } else { bytes.next_power_of_two() / 8 };
    bytes.next_multiple_of(step)
}

/// Bytes of tags in a block of this capacity.
#[inline]
pub(super) fn tag_bytes(capacity: usize) -> usize {
    if capacity > UNTAGGED_MAX { capacity } else { 0 }
}

impl<const ADDRESS: usize> Block<ADDRESS> {
    /// The capacity to ask for when `len` records must fit: what its size class has room for.
    fn capacity_for(len: usize) -> usize {
        let stride = size_of::<Record<ADDRESS>>();
        let room = size_class(HEAD_BYTES + tag_bytes(len) + len * stride) - HEAD_BYTES;
        if len <= UNTAGGED_MAX {
            return (room / stride).min(UNTAGGED_MAX);
        }
        (room / (stride + 1)).min(BLOCK_RECORDS_MAX)
    }

    /// The whole size class that a block of this capacity needs.
    #[inline]
    pub(super) fn bytes_of(capacity: usize) -> usize {
        size_class(HEAD_BYTES + tag_bytes(capacity) + capacity * size_of::<Record<ADDRESS>>())
    }

    /// Bytes of memory the block takes.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        Self::bytes_of(self.capacity())
    }

    /// Bytes of a block with room for `len` records.
    #[inline]
    pub(super) fn bytes_with_room(len: usize) -> usize {
        Self::bytes_of(Self::capacity_for(len))
    }

    /// An empty block with room for `len` records.
    pub(super) fn with_room(len: usize, completed: Count) -> Self {
        Self::with_capacity(Self::capacity_for(len), completed)
    }

    /// Downloads counted in this swarm.
    pub(super) fn completed(&self) -> Count {
        self.head().completed
    }

    /// Replaces the count of downloads.
    pub(super) fn set_completed(&mut self, completed: Count) {
        self.head_mut().completed = completed;
    }

    /// Whether one more record would need an index.
    #[inline]
    pub(super) fn is_full(&self) -> bool {
        self.len() == BLOCK_RECORDS_MAX
    }

    /// Cache lines worth prefetching: head and tags, or all of a small block.
    #[inline]
    pub(super) fn lines(&self) -> u32 {
        let small = self.capacity() * size_of::<Record<ADDRESS>>();
        let tags = tag_bytes(self.capacity());
        let bytes = HEAD_BYTES + if tags == 0 { small } else { tags };
        u32::try_from(bytes.div_ceil(64)).unwrap_or(1)
    }

    /// Moves to a block of another capacity, at least as large as what is held.
    fn resize(&mut self, capacity: usize, keys: &RandomState) {
        let len = self.len();
        assert!(capacity >= len && capacity <= BLOCK_RECORDS_MAX);
        let mut other = Self::with_capacity(capacity, self.completed());
        *other.head_mut() = BlockHead { capacity: other.head().capacity, ..*self.head() };
        other.records_mut().copy_from_slice(self.records());
        if tag_bytes(capacity) > 0 {
            for at in 0..len {
                let tag = tag(&self.records()[at].endpoint, keys);
                other.tags_mut()[at] = tag;
            }
        }
        *self = other;
    }

    /// Gives back memory that the peers who left do not need any more.
    pub(super) fn shrink(&mut self, keys: &RandomState) {
        let fitting = Self::capacity_for(self.len());
        if fitting < self.capacity() {
            self.resize(fitting, keys);
        }
    }
}

/// The byte of an endpoint's hash that a block keeps.
#[inline]
fn tag<const ADDRESS: usize>(endpoint: &Endpoint<ADDRESS>, keys: &RandomState) -> u8 {
    keys.hash_one(endpoint).to_le_bytes()[7]
}

impl<const ADDRESS: usize> Roster<ADDRESS> for Block<ADDRESS> {
    #[inline]
    fn records(&self) -> &[Record<ADDRESS>] {
        self.slice()
    }

    #[inline]
    fn counts(&self) -> Counts {
        let head = self.head();
        Counts { wanting: u32::from(head.wanting), seeders: u32::from(head.seeders) }
    }

    #[inline]
    fn set_counts(&mut self, counts: Counts) {
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
    fn renew(&mut self, at: usize, record: Record<ADDRESS>) {
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

    fn push(&mut self, record: Record<ADDRESS>, keys: &RandomState) {
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

    fn place_by_host(&self, endpoint: &Endpoint<ADDRESS>, now: Now, _keys: &RandomState) -> Place {
        let host = endpoint.host();
        let is_of_host = |it: &Record<ADDRESS>| it.endpoint.host() == host;
        let of_host = self.records().iter().filter(|it| is_of_host(it)).count();
        if of_host < Endpoint::<ADDRESS>::STORED_PER_HOST_MAX {
            return Place::Own;
        }
        let of_host = self.records().iter().enumerate().filter(|(_, it)| is_of_host(it));
        let silent = of_host.max_by_key(|(_, it)| it.stamp().age_s(now));
        silent.map_or(Place::Own, |(at, _)| Place::Of(at))
    }
}
