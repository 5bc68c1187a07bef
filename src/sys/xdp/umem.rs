//! The memory of an AF_XDP socket: mappings that the kernel reads and writes as well, and the
//! frames in one of them.
#![expect(unsafe_code, reason = "memory shared with the kernel is owned through raw pointers")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::{self, NonNull};

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of a frame. A page has two, and an Ethernet frame with a packet of 1500 bytes fits behind
/// the room that the kernel keeps in front of it.
pub const FRAME_BYTES: u32 = 2048;
/// Bytes in front of a received frame that the kernel keeps for itself.
const HEADROOM_BYTES: u32 = 256;
/// Most bytes of a frame that can be received: the kernel drops a longer one.
pub const RECEIVED_BYTES_MAX: u32 = FRAME_BYTES - HEADROOM_BYTES;
/// Frames that the kernel receives into: 4 MiB, or 2 ms at a million frames per second.
pub(super) const RECEIVE_FRAMES: u32 = 2048;
/// Frames that responses are written into.
pub(super) const SEND_FRAMES: u32 = 2048;
/// Memory of a socket's frames, which the kernel locks: 8 MiB.
pub const UMEM_BYTES: usize = ((RECEIVE_FRAMES + SEND_FRAMES) * FRAME_BYTES) as usize;

/// A frame, or a part of it, as rings of received and sent frames hold it (linux/if_xdp.h).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Descriptor {
    /// Bytes from the beginning of the memory.
    pub(super) address: u64,
    pub(super) bytes: u32,
    pub(super) options: u32,
}

/// Pages that are unmapped in the end. The kernel has its own references to them.
pub(super) struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the pages are owned and reached through `&self` and `&mut self` alone, as a Box would be.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Memory of this process, filled with zeros.
    pub(super) fn anonymous(bytes: usize) -> io::Result<Self> {
        Self::map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    /// Memory that the kernel has for a socket; `offset` is which.
    pub(super) fn of_socket(socket: BorrowedFd<'_>, offset: u64, bytes: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        Self::map(bytes, libc::MAP_SHARED | libc::MAP_POPULATE, socket.as_raw_fd(), offset)
    }

    fn map(bytes: usize, flags: i32, descriptor: i32, offset: libc::off_t) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: without an address to map at, no memory that is in use is replaced.
        let address =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, descriptor, offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { address, bytes })
    }

    /// The address of `bytes` bytes. Valid as long as `self`.
    ///
    /// # Panics
    /// If they are not all in the mapping.
    #[inline]
    pub(super) fn pointer(&self, at: usize, bytes: usize) -> NonNull<u8> {
        let is_inside = at.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(is_inside, "{bytes} bytes at {at} of {}", self.bytes);
        // SAFETY: the offset was just checked to be inside the mapping.
        unsafe { self.address.add(at) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the pages were mapped by `map`, with this length, and are unmapped once. An error
        // would leave them mapped.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

/// The frames of a socket: those that the kernel receives into, then those of responses.
pub(super) struct Umem(Mapping);

/// Where the frames of responses begin.
const SEND_AT: u64 = RECEIVE_FRAMES as u64 * FRAME_BYTES as u64;

/// An address in the memory as an offset; one that is none is outside of every mapping.
#[inline]
fn offset(address: u64) -> usize {
    usize::try_from(address).unwrap_or(usize::MAX)
}

impl Umem {
    pub(super) fn new() -> io::Result<Self> {
        Mapping::anonymous(UMEM_BYTES).map(Self)
    }

    /// What the kernel is told at registration.
    pub(super) fn address(&self) -> u64 {
        self.0.address.addr().get() as u64
    }

    /// The addresses of the frames to receive into.
    pub(super) fn receive_frames() -> impl Iterator<Item = u64> {
        (0..RECEIVE_FRAMES).map(|frame| u64::from(frame * FRAME_BYTES))
    }

    /// The addresses of the frames of responses.
    pub(super) fn send_frames() -> impl Iterator<Item = u64> {
        (0..SEND_FRAMES).map(|frame| SEND_AT + u64::from(frame * FRAME_BYTES))
    }

    /// A received frame.
    ///
    /// # Panics
    /// If it is not among the frames that the kernel receives into.
    #[inline]
    pub(super) fn received(&self, frame: Descriptor) -> &[u8] {
        let Descriptor { address, bytes, .. } = frame;
        assert!(address + u64::from(bytes) <= SEND_AT, "a frame to receive into");
        let (at, bytes) = (offset(address), bytes as usize);
        let slice = NonNull::slice_from_raw_parts(self.0.pointer(at, bytes), bytes);
        // SAFETY: the bytes are in the mapping. Of frames to receive into there are only shared
        // references, and the kernel does not write to one between handing it over and getting it
        // back, which takes `&mut self` of the socket.
        unsafe { slice.as_ref() }
    }

    /// A received frame, and the frame of a response, which the kernel does not own.
    ///
    /// # Panics
    /// As [`Self::received`], or if `send` is not the address of a frame of responses.
    #[inline]
    pub(super) fn received_and_send(&mut self, frame: Descriptor, send: u64) -> (&[u8], &mut [u8]) {
        assert!(send >= SEND_AT, "a frame of responses");
        let (at, bytes) = (offset(send), FRAME_BYTES as usize);
        let mut slice = NonNull::slice_from_raw_parts(self.0.pointer(at, bytes), bytes);
        // SAFETY: the bytes are in the mapping, in the half of which `received` makes no reference,
        // and `&mut self` rules out a second one; the kernel does not own this frame.
        let room = unsafe { slice.as_mut() };
        (self.received(frame), room)
    }
}
