//! Memory whose addresses the kernel is given.
//!
//! Headers and rings hold raw pointers into these arrays for as long as they live, so the arrays
//! never move and are only ever reached through one raw pointer: no reference of ours can
//! invalidate what the kernel holds.
#![expect(unsafe_code, reason = "memory shared with the kernel is owned through raw pointers")]

use std::ptr::{self, NonNull};

use super::address::{CONTROL_BYTES, LocalAddress, RawAddress};

/// The most payload bytes a datagram may bring or take: a full scrape of 74 hashes has 1496, and
/// an announce with long BEP 41 options somewhat more. Longer ones arrive cut, and say so.
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

    /// How many items there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The address of one item, valid as long as `self` is, for the kernel's eyes.
    ///
    /// # Panics
    /// If there is no such item.
    #[inline]
    pub(crate) fn pointer(&self, index: usize) -> NonNull<T> {
        assert!(index < self.len(), "item {index} of {}", self.len());
        // SAFETY: just checked to lie inside the array.
        unsafe { self.items.cast::<T>().add(index) }
    }

    /// One item. It must be ours at the moment, not the kernel's.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> &T {
        // SAFETY: `pointer` checks the index, and `&self` rules out a writer of ours. The kernel
        // writes only to what it was given: the owners ask for nothing else meanwhile.
        unsafe { self.pointer(index).as_ref() }
    }

    /// One item, to be changed. It must be ours at the moment, not the kernel's.
    #[inline]
    pub(crate) fn get_mut(&mut self, index: usize) -> &mut T {
        // SAFETY: as for `get`, and `&mut self` rules out every other reference.
        unsafe { self.pointer(index).as_mut() }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box in `new` and is given back once.
        drop(unsafe { Box::from_raw(self.items.as_ptr()) });
    }
}

/// What belongs to one datagram. Not a power of two long, so that the payloads of a batch do not
/// all fall into the same few cache sets.
#[repr(C, align(64))]
pub(crate) struct DatagramSlot {
    pub(crate) address: RawAddress,
    pub(crate) control: [u8; CONTROL_BYTES],
    part: libc::iovec,
    pub(crate) payload: [u8; DATAGRAM_BYTES_MAX],
}

/// Slots, and the headers that point at them, index by index.
pub(crate) struct Datagrams {
    pub(crate) headers: Pinned<libc::mmsghdr>,
    pub(crate) slots: Pinned<DatagramSlot>,
}

// SAFETY: the headers point into `slots` alone, which lie where they are while this value moves.
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

    /// How many datagrams there is room for.
    #[inline]
    pub(crate) fn capacity(&self) -> usize {
        self.headers.len()
    }

    /// Readies one datagram for sending; its payload stands there already.
    ///
    /// # Panics
    /// If `bytes` exceeds [`DATAGRAM_BYTES_MAX`] or there is no such slot.
    #[inline]
    pub(crate) fn address(
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

/// A header whose one part is the slot's whole payload; lengths are set per use.
fn header_of(slots: &Pinned<DatagramSlot>, index: usize) -> libc::mmsghdr {
    let slot = slots.pointer(index).as_ptr();
    // SAFETY: `pointer` gives a valid slot, and no reference to it exists here or below.
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
