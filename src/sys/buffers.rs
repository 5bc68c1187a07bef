//! Memory whose addresses are passed to the kernel.
//!
//! Headers and rings hold raw pointers into these arrays for as long as they live. The arrays
//! therefore never move, and are only reached through one raw pointer: no Rust reference can
//! invalidate a pointer that the kernel holds.
#![expect(unsafe_code, reason = "memory shared with the kernel is owned through raw pointers")]

use std::ptr::{self, NonNull};

use super::address::{CONTROL_BYTES, LocalAddress, RawAddress};

/// Most payload bytes of a datagram, received or sent. A full scrape of 74 info-hashes has 1496,
/// and an announce with long BEP 41 options somewhat more. A longer datagram is received truncated,
/// and marked so.
pub const DATAGRAM_BYTES_MAX: usize = 2048;

/// A fixed array that never moves, owned through a raw pointer.
pub(crate) struct Pinned<T> {
    items: NonNull<[T]>,
}

// SAFETY: the array is owned and reached through `&self` and `&mut self` alone, as a Box would be.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T> Pinned<T> {
    /// `count` values of `make(index)`.
    pub(crate) fn new(count: usize, make: impl FnMut(usize) -> T) -> Self {
        let items: Box<[T]> = (0..count).map(make).collect();
        // SAFETY: a box is never null.
        let items = unsafe { NonNull::new_unchecked(Box::into_raw(items)) };
        Self { items }
    }

    /// Number of items.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The address of one item, to pass to the kernel. Valid as long as `self`.
    ///
    /// # Panics
    /// If there is no such item.
    #[inline]
    pub(crate) fn pointer(&self, index: usize) -> NonNull<T> {
        assert!(index < self.len(), "item {index} of {}", self.len());
        // SAFETY: the index was just checked to be inside the array.
        unsafe { self.items.cast::<T>().add(index) }
    }

    /// One item. The kernel must not own it at the moment.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> &T {
        // SAFETY: `pointer` checks the index, and `&self` rules out a writer in this process. The
        // kernel writes only to items that were passed to it, and the owners of this array do not
        // call `get` for those meanwhile.
        unsafe { self.pointer(index).as_ref() }
    }

    /// One item, to change it. The kernel must not own it at the moment.
    #[inline]
    pub(crate) fn get_mut(&mut self, index: usize) -> &mut T {
        // SAFETY: as for `get`, and `&mut self` rules out every other reference.
        unsafe { self.pointer(index).as_mut() }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box in `new` and is freed once.
        drop(unsafe { Box::from_raw(self.items.as_ptr()) });
    }
}

/// Everything for one datagram. Its size is not a power of two, so that the payloads of a batch do
/// not all fall into the same few cache sets.
#[repr(C, align(64))]
pub(crate) struct DatagramSlot {
    pub(crate) address: RawAddress,
    pub(crate) control: [u8; CONTROL_BYTES],
    part: libc::iovec,
    pub(crate) payload: [u8; DATAGRAM_BYTES_MAX],
}

/// Slots, and for each slot the header that points at it.
pub(crate) struct Datagrams {
    pub(crate) headers: Pinned<libc::mmsghdr>,
    pub(crate) slots: Pinned<DatagramSlot>,
}

// SAFETY: the headers point into `slots` alone, whose items do not move when this value moves.
unsafe impl Send for Datagrams {}

impl Datagrams {
    /// Room for `count` datagrams.
    pub(crate) fn new(count: usize) -> Self {
        let slots = Pinned::new(count, |_| DatagramSlot {
            address: RawAddress::NONE,
            control: [0; CONTROL_BYTES],
            part: libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 },
            payload: [0; DATAGRAM_BYTES_MAX],
        });
        let headers = Pinned::new(count, |index| header_of(&slots, index));
        Self { headers, slots }
    }

    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Prepares one datagram for sending. Its payload is in the slot already.
    ///
    /// # Panics
    /// If `bytes` exceeds [`DATAGRAM_BYTES_MAX`] or there is no such slot.
    #[inline]
    pub(crate) fn prepare_send(
        &mut self,
        index: usize,
        bytes: usize,
        target: &RawAddress,
        local: Option<LocalAddress>,
    ) {
        assert!(bytes <= DATAGRAM_BYTES_MAX, "{bytes} bytes do not fit a datagram");
        let slot = self.slots.get_mut(index);
        slot.part.iov_len = bytes;
        slot.address = *target;
        let control_bytes = local.map_or(0, |it| it.write(&mut slot.control));
        let header = &mut self.headers.get_mut(index).msg_hdr;
        header.msg_namelen = target.length;
        header.msg_controllen = control_bytes as _;
    }
}

/// A header with one part, the slot's whole payload. Lengths are set for each use.
fn header_of(slots: &Pinned<DatagramSlot>, index: usize) -> libc::mmsghdr {
    let slot = slots.pointer(index).as_ptr();
    // SAFETY: `pointer` returns a valid slot, and no reference to it exists here or below.
    let payload = unsafe { &raw mut (*slot).payload };
    // SAFETY: as above.
    let part = unsafe { &raw mut (*slot).part };
    // SAFETY: as above; the old value has no destructor.
    unsafe { part.write(libc::iovec { iov_base: payload.cast(), iov_len: DATAGRAM_BYTES_MAX }) };
    // SAFETY: a header is plain integers and pointers, for which zero is a value.
    let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
    header.msg_hdr.msg_iov = part;
    header.msg_hdr.msg_iovlen = 1;
    // SAFETY: as above.
    header.msg_hdr.msg_name = unsafe { &raw mut (*slot).address.bytes }.cast();
    // SAFETY: as above.
    header.msg_hdr.msg_control = unsafe { &raw mut (*slot).control }.cast();
    header
}
