//! The real [`Kernel`]: an io_uring, and the memory that it and the kernel share.
#![expect(unsafe_code, reason = "entries and buffers are shared with the kernel by address")]

use std::io;
use std::mem::{ManuallyDrop, offset_of};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::time::Duration;

use io_uring::squeue::Flags;
use io_uring::types::{CancelBuilder, Fixed, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, SubmissionQueue, Submitter, cqueue, opcode, squeue};

use super::{Completion, Kernel, Operation, ReceiveBuffer};
use crate::sys::address::{ADDRESS_V6_BYTES, CONTROL_BYTES, RawAddress};
use crate::sys::buffer_ring::BufferRing;
use crate::sys::buffers::{DATAGRAM_BYTES_MAX, Datagrams, Pinned};
use crate::sys::ring_host::{RingHost, RingOptions, restrict};
use crate::sys::socket::BoundUdp;

/// An enabled io_uring. It belongs to the thread that created it.
pub(crate) struct LinuxRing<'r> {
    submitter: Submitter<'r>,
    submissions: SubmissionQueue<'r>,
    completions: CompletionQueue<'r>,
    /// Freed by `drop`, and only if no receive is under way.
    lent: ManuallyDrop<Lent>,
    /// Receives that were queued and whose last completion has not come.
    receives: usize,
    /// One slot per submission entry, and one more for a response that cannot be sent.
    sends: Datagrams,
}

/// Memory that the kernel writes to, or reads, while a receive is under way.
struct Lent {
    /// The header of every receive: reserves room for an address and control bytes.
    receive_header: Pinned<libc::msghdr>,
    offered: BufferRing,
    buffers: Pinned<ReceiveBuffer>,
}

/// Size of the part of a buffer that the kernel may fill.
const BUFFER_BYTES: usize = offset_of!(ReceiveBuffer, payload) + DATAGRAM_BYTES_MAX;

/// Kinds of entries, in the upper half of their user data. The lower half is the socket.
const RECEIVE: u64 = 1 << 32;
const SEND: u64 = 2 << 32;
const CANCEL: u64 = 3 << 32;
const KINDS: u64 = !0 << 32;

/// The group of the provided buffers. There is only one.
const BUFFER_GROUP: u16 = 0;

impl<'r> LinuxRing<'r> {
    /// Registers sockets and buffers, restricts the ring and enables it.
    pub(super) fn start(
        host: &'r mut RingHost,
        sockets: &[BoundUdp],
        options: &RingOptions,
    ) -> io::Result<Self> {
        let (mut submitter, submissions, completions) = host.0.split();
        let fds: Vec<_> = sockets.iter().map(|it| it.as_fd().as_raw_fd()).collect();
        submitter.register_files(&fds)?;
        let buffers = Pinned::new(options.buffers.into(), |_| ReceiveBuffer::EMPTY);
        let offered = BufferRing::register(&submitter, options.buffers, BUFFER_GROUP)?;
        restrict(&submitter)?;
        submitter.register_ring_fd()?;
        submitter.register_enable_rings()?;
        let receive_header = Pinned::new(1, |_| receive_header());
        let sends = Datagrams::new(submissions.capacity() + 1);
        let lent = ManuallyDrop::new(Lent { receive_header, offered, buffers });
        Ok(Self { submitter, submissions, completions, lent, receives: 0, sends })
    }

    fn queue(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points at (header, buffers, send slots) is owned by `self`, never
        // moves, and is not changed before the kernel has taken the entry: `Ring` uses a send slot
        // again only then. A send is done once taken; what receives continue to use is in `lent`,
        // which `drop` frees only when none is under way.
        unsafe { self.submissions.push(entry) }.is_ok()
    }

    /// A send that names only the destination.
    fn send(&self, slot: usize, socket: u16, bytes: u32, target: &RawAddress) -> squeue::Entry {
        let slot = self.sends.slots.pointer(slot).as_ptr();
        // SAFETY: the slot is valid; only addresses are taken.
        let payload = unsafe { &raw const (*slot).payload };
        // SAFETY: as above.
        let address = unsafe { &raw const (*slot).address.bytes };
        opcode::Send::new(Fixed(socket.into()), payload.cast(), bytes)
            .dest_addr(address.cast())
            .dest_addr_len(target.length)
            .flags(libc::MSG_DONTWAIT)
            .build()
    }

    /// A send that also names the host's address that it must leave from.
    fn send_message(&self, slot: usize, socket: u16) -> squeue::Entry {
        let header = self.sends.headers.pointer(slot).as_ptr();
        // SAFETY: the header is valid; only an address is taken.
        let header = unsafe { &raw const (*header).msg_hdr };
        opcode::SendMsg::new(Fixed(socket.into()), header).flags(libc::MSG_DONTWAIT as u32).build()
    }

    /// Attempts an operation that is not allowed, and one on a descriptor that is not registered:
    /// returns whether both were queued, and the result of a registration that is not allowed.
    #[cfg(test)]
    pub(super) fn does_what_it_may_not(&mut self) -> (bool, Option<i32>) {
        let stderr = io_uring::types::Fd(2);
        let message = opcode::Send::new(stderr, ptr::null(), 0).build();
        let pushed = self.queue(&opcode::Nop::new().build().user_data(SEND))
            && self.queue(&message.user_data(SEND));
        let error = self.submitter.register_files(&[0]).err();
        (pushed, error.and_then(|it| it.raw_os_error()))
    }
}

impl Kernel for LinuxRing<'_> {
    #[inline]
    fn push(&mut self, operation: Operation) -> bool {
        match operation {
            Operation::Receive { socket } => {
                let (fd, data) = (Fixed(socket.into()), RECEIVE | u64::from(socket));
                let header = self.lent.receive_header.pointer(0).as_ptr();
                let entry = opcode::RecvMsgMulti::new(fd, header, BUFFER_GROUP).build();
                let is_queued = self.queue(&entry.user_data(data));
                self.receives += usize::from(is_queued);
                is_queued
            }
            Operation::Send { slot, bytes, socket, to, local } => {
                if self.submissions.is_full() {
                    return false;
                }
                self.sends.prepare_send(slot, bytes, &to, local);
                let entry = if local.is_some() {
                    self.send_message(slot, socket)
                } else {
                    self.send(slot, socket, bytes.try_into().unwrap_or(0), &to)
                };
                self.queue(&entry.flags(Flags::SKIP_SUCCESS).user_data(SEND | u64::from(socket)))
            }
            Operation::Cancel => {
                // The entry names no file, but the ring's restrictions require the flag on every
                // entry.
                let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
                self.queue(&entry.flags(Flags::FIXED_FILE).user_data(CANCEL))
            }
        }
    }

    fn enter(&mut self, timeout: Duration) -> io::Result<()> {
        self.submissions.sync();
        self.completions.sync();
        let want = usize::from(self.completions.is_empty());
        let timeout = Timespec::from(timeout);
        let result = self.submitter.submit_with_args(want, &SubmitArgs::new().timespec(&timeout));
        self.submissions.sync();
        self.completions.sync();
        result.map(drop)
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        let entry = self.completions.next()?;
        let result = entry.result();
        Some(match entry.user_data() & KINDS {
            RECEIVE => {
                let has_more = cqueue::more(entry.flags());
                self.receives -= usize::from(!has_more);
                Completion::Receive {
                    socket: (entry.user_data() & 0xffff) as u16,
                    result,
                    buffer: cqueue::buffer_select(entry.flags()),
                    has_more,
                }
            }
            SEND => Completion::Send { result },
            _ => Completion::Cancel,
        })
    }

    fn has_overflowed(&self) -> bool {
        self.submissions.cq_overflow()
    }

    fn has_taken_all(&self) -> bool {
        self.submissions.is_empty()
    }

    fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }

    #[inline]
    fn offer(&mut self, buffer: u16) {
        let address = self.lent.buffers.pointer(buffer.into()).cast();
        self.lent.offered.offer(address, BUFFER_BYTES, buffer);
    }

    #[inline]
    fn publish(&mut self) {
        self.lent.offered.publish();
    }

    #[inline]
    fn buffer(&self, buffer: u16) -> &ReceiveBuffer {
        self.lent.buffers.get(buffer.into())
    }

    #[inline]
    fn buffer_and_slot(&mut self, buffer: u16, slot: usize) -> (&ReceiveBuffer, &mut [u8]) {
        let room = &mut self.sends.slots.get_mut(slot).payload;
        (self.lent.buffers.get(buffer.into()), room)
    }

    fn slots(&self) -> usize {
        self.sends.capacity()
    }
}

impl Drop for LinuxRing<'_> {
    /// Frees the memory lent to the kernel, unless the kernel may still use it.
    fn drop(&mut self) {
        // Otherwise, which was never seen, a leak is better than a write into freed memory.
        if self.receives == 0 {
            // SAFETY: every receive has had its last completion, and the kernel accesses this
            // memory for receives only; this is the only place that drops it, and nothing after it
            // accesses it.
            unsafe { ManuallyDrop::drop(&mut self.lent) };
            // The kernel frees a ring some time after it was closed, and would keep registered
            // sockets bound until then: the next process could not bind their addresses. If this
            // call fails, they are free a little later. With a receive under way it might wait for
            // the end of that receive, which nothing would cause any more.
            let _ = self.submitter.unregister_files();
        }
        // The registration keeps the whole ring alive until the thread ends. The only possible
        // error is that there is no registration.
        let _ = self.submitter.unregister_ring_fd();
    }
}

/// Only the two lengths are used: they define how the kernel divides a buffer.
fn receive_header() -> libc::msghdr {
    // SAFETY: only integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_namelen = ADDRESS_V6_BYTES;
    header.msg_controllen = CONTROL_BYTES as _;
    header.msg_name = ptr::null_mut();
    header
}
