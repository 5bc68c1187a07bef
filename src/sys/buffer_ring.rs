//! The ring that provides receive buffers to the kernel.
#![expect(unsafe_code, reason = "the kernel reads entries and tail from shared memory")]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;

use super::buffers::Pinned;

/// A page with the alignment that the kernel requires.
#[repr(C, align(4096))]
struct AlignedPage([u8; 4096]);

/// Entries for provided buffers, which the kernel takes in order.
pub(crate) struct BufferRing {
    pages: Pinned<AlignedPage>,
    mask: u16,
    tail: u16,
}

impl BufferRing {
    /// Registers an empty ring for `count` buffers (a power of two).
    pub(crate) fn register(submitter: &Submitter<'_>, count: u16, group: u16) -> io::Result<Self> {
        let bytes = usize::from(count) * size_of::<BufRingEntry>();
        let pages =
            Pinned::new(bytes.div_ceil(size_of::<AlignedPage>()), |_| AlignedPage([0; 4096]));
        let address = pages.pointer(0).as_ptr() as u64;
        // SAFETY: the pages hold `count` entries, and live until no receive needs them: the owner
        // that drops them has ended all receives first (or leaks them instead), and the kernel
        // holds its own reference to the pages.
        unsafe { submitter.register_buf_ring_with_flags(address, count, group, 0) }?;
        Ok(Self { pages, mask: count - 1, tail: 0 })
    }

    /// Writes one entry. The kernel reads it after [`Self::publish`].
    #[inline]
    pub(crate) fn offer(&mut self, buffer: NonNull<u8>, bytes: usize, id: u16) {
        let entries = self.pages.pointer(0).cast::<BufRingEntry>();
        // SAFETY: the mask keeps the index within the registered entries.
        let entry = unsafe { entries.add(usize::from(self.tail & self.mask)) };
        // SAFETY: the entry lies behind the published tail, where the kernel does not read.
        let entry = unsafe { &mut *entry.as_ptr() };
        entry.set_addr(buffer.as_ptr() as u64);
        entry.set_len(u32::try_from(bytes).unwrap_or(0));
        entry.set_bid(id);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Publishes all offered buffers to the kernel: one store for a whole batch.
    #[inline]
    pub(crate) fn publish(&mut self) {
        let entries = self.pages.pointer(0).cast::<BufRingEntry>();
        // SAFETY: this is the ring's first entry, which is where the tail is stored.
        let tail = unsafe { BufRingEntry::tail(entries.as_ptr()) };
        // SAFETY: the tail is aligned, valid as long as the pages, and the kernel only reads it.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }
}
