//! The four rings of an AF_XDP socket: arrays with two counts, of what was put in and of what was
//! taken out, of which this process writes one and the kernel the other.
//!
//! ```text
//!               this process ─▶ fill ring ─▶ the kernel ─▶ receive ring ─▶ this process
//! completion ring ◀─ the kernel ◀─ send ring ◀─ this process
//! ```
//!
//! Counts wrap. An entry is written before, and read after, the count that includes it.
#![expect(unsafe_code, reason = "entries and counts are in memory shared with the kernel")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::xdp::{XdpRingFlags, XdpRingOffset};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::umem::Mapping;

/// What both sides have: the memory, and where in it is what.
struct Ring<T> {
    mapping: Mapping,
    entries_at: usize,
    produced_at: usize,
    consumed_at: usize,
    flags_at: Option<usize>,
    mask: u32,
    entry: PhantomData<T>,
}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Ring<T> {
    /// Maps the ring that a socket has at `page`, with so many entries (a power of two).
    fn map(
        socket: BorrowedFd<'_>,
        page: u64,
        offsets: &XdpRingOffset,
        entries: u32,
    ) -> io::Result<Self> {
        assert!(entries.is_power_of_two(), "{entries} entries");
        let at = |offset: u64| usize::try_from(offset).map_err(io::Error::other);
        let entries_at = at(offsets.desc)?;
        let mapping =
            Mapping::of_socket(socket, page, entries_at + entries as usize * size_of::<T>())?;
        Ok(Self {
            mapping,
            entries_at,
            produced_at: at(offsets.producer)?,
            consumed_at: at(offsets.consumer)?,
            flags_at: offsets.flags.map(at).transpose()?,
            mask: entries - 1,
            entry: PhantomData,
        })
    }

    #[inline]
    fn word(&self, at: usize) -> &AtomicU32 {
        let word = self.mapping.pointer(at, size_of::<AtomicU32>()).cast::<AtomicU32>();
        // SAFETY: the kernel places its counts at multiples of their size, the mapping is as large
        // as was just checked and outlives the reference, and both sides access them atomically.
        unsafe { word.as_ref() }
    }

    #[inline]
    fn entry(&self, count: u32) -> NonNull<T> {
        let index = (count & self.mask) as usize;
        let at = self.entries_at + index * size_of::<T>();
        self.mapping.pointer(at, size_of::<T>()).cast()
    }
}

/// A ring that this process puts entries into.
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// Entries that were put in; the kernel knows those that were published.
    count: u32,
}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Producer<T> {
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        page: u64,
        offsets: &XdpRingOffset,
        entries: u32,
    ) -> io::Result<Self> {
        Ok(Self { ring: Ring::map(socket, page, offsets, entries)?, count: 0 })
    }

    /// Puts an entry in. The kernel sees it after [`Self::publish`]. The caller has no more entries
    /// than fit.
    #[inline]
    pub(super) fn push(&mut self, value: T) {
        debug_assert!(self.untaken() <= self.ring.mask, "the ring has room");
        // SAFETY: the entry is in the mapping, of this type, and not yet the kernel's to read.
        unsafe { self.ring.entry(self.count).write(value) };
        self.count = self.count.wrapping_add(1);
    }

    /// Makes all entries visible to the kernel.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.ring.word(self.ring.produced_at).store(self.count, Ordering::Release);
    }

    /// Entries that the kernel has not taken.
    #[inline]
    pub(super) fn untaken(&self) -> u32 {
        let taken = self.ring.word(self.ring.consumed_at).load(Ordering::Acquire);
        self.count.wrapping_sub(taken)
    }

    /// Whether the kernel looks at the ring only if it is woken. True if it does not say. `poll`
    /// wakes it as well, so that a flag which is set a moment later is not missed.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        let flags = self.ring.flags_at.map(|at| self.ring.word(at).load(Ordering::Relaxed));
        flags.is_none_or(|flags| flags & XdpRingFlags::XDP_RING_NEED_WAKEUP.bits() != 0)
    }
}

/// A ring that this process takes entries out of.
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    /// Entries that were taken; the kernel knows those that were released.
    count: u32,
}

impl<T: FromBytes + IntoBytes + Immutable + Copy> Consumer<T> {
    pub(super) fn map(
        socket: BorrowedFd<'_>,
        page: u64,
        offsets: &XdpRingOffset,
        entries: u32,
    ) -> io::Result<Self> {
        Ok(Self { ring: Ring::map(socket, page, offsets, entries)?, count: 0 })
    }

    /// Entries that wait.
    #[inline]
    pub(super) fn waiting(&self) -> u32 {
        let produced = self.ring.word(self.ring.produced_at).load(Ordering::Acquire);
        produced.wrapping_sub(self.count)
    }

    /// Takes up to `count` entries that wait, and gives their places back to the kernel.
    #[inline]
    pub(super) fn take(&mut self, count: u32, mut each: impl FnMut(T)) {
        let end = self.count.wrapping_add(self.waiting().min(count));
        while self.count != end {
            // SAFETY: the entry is in the mapping, any bytes are a value of its type, and the
            // kernel, which published it, does not write to it before it was released.
            each(unsafe { self.ring.entry(self.count).read() });
            self.count = self.count.wrapping_add(1);
        }
        self.ring.word(self.ring.consumed_at).store(self.count, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRIES: u32 = 4;

    /// A ring whose other side is the test. Counts begin shortly before they wrap.
    fn ring(count: u32) -> Ring<u64> {
        let mapping = Mapping::anonymous(4096).unwrap();
        let (entries_at, flags_at, mask) = (64, Some(8), ENTRIES - 1);
        let ring = Ring {
            mapping,
            entries_at,
            produced_at: 0,
            consumed_at: 4,
            flags_at,
            mask,
            entry: PhantomData,
        };
        ring.word(ring.produced_at).store(count, Ordering::Relaxed);
        ring.word(ring.consumed_at).store(count, Ordering::Relaxed);
        ring
    }

    #[test]
    fn entries_are_seen_once_published_and_counts_wrap() {
        let count = u32::MAX - 1;
        let mut producer = Producer { ring: ring(count), count };
        (0..u64::from(ENTRIES)).for_each(|value| producer.push(value));
        let published = |ring: &Ring<u64>| ring.word(ring.produced_at).load(Ordering::Relaxed);
        assert_eq!(published(&producer.ring), count);
        producer.publish();
        assert_eq!((published(&producer.ring), producer.untaken()), (2, ENTRIES));
        for taken in 0..ENTRIES {
            // SAFETY: the entry is in the mapping and was written.
            let value = unsafe { producer.ring.entry(count.wrapping_add(taken)).read() };
            assert_eq!(value, u64::from(taken));
        }
        producer.ring.word(producer.ring.consumed_at).store(1, Ordering::Relaxed);
        assert_eq!(producer.untaken(), 1);
    }

    #[test]
    fn entries_are_taken_in_order_and_released() {
        let count = u32::MAX - 1;
        let mut consumer = Consumer { ring: ring(count), count };
        for index in 0..3 {
            let entry = consumer.ring.entry(count.wrapping_add(index));
            // SAFETY: the entry is in the mapping, and nothing refers to it.
            unsafe { entry.write(index.into()) };
        }
        consumer.ring.word(consumer.ring.produced_at).store(1, Ordering::Relaxed);
        assert_eq!(consumer.waiting(), 3);
        let mut taken = Vec::new();
        consumer.take(2, |value| taken.push(value));
        assert_eq!((consumer.waiting(), &taken[..]), (1, &[0, 1][..]));
        let released = consumer.ring.word(consumer.ring.consumed_at).load(Ordering::Relaxed);
        assert_eq!(released, 0);
        consumer.take(2, |value| taken.push(value));
        assert_eq!((consumer.waiting(), &taken[..]), (0, &[0, 1, 2][..]));
    }

    #[test]
    fn the_kernel_asks_to_be_woken_by_a_flag() {
        let mut producer = Producer { ring: ring(0), count: 0 };
        assert!(!producer.needs_wakeup());
        producer.ring.word(8).store(1, Ordering::Relaxed);
        assert!(producer.needs_wakeup());
        producer.ring.flags_at = None;
        assert!(producer.needs_wakeup(), "an old kernel has no flag");
    }
}
