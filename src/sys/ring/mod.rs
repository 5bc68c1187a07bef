//! Datagrams through an io_uring: multishot receives into a ring of provided buffers, responses
//! that complete only if they fail, one system call per turn for sending, waiting and receiving.
//!
//! A turn of the ring:
//!
//! ```text
//! give the last batch's buffers back ─▶ arm receives that ended ─▶ io_uring_enter: submits the
//! responses, waits ─▶ take at most BATCH_MAX completions ─▶ (the caller handles them and responds)
//! ```
//!
//! No send can block it (MSG_DONTWAIT), so a send slot is free once submitted.
//!
//! [`Ring`] records which receives are armed, which side owns a buffer, and which slots are free.
//! The kernel is behind [`Kernel`]: the real one is [`LinuxRing`], and tests have a double that
//! fails in every way that a kernel may fail.

#[cfg(test)]
pub(crate) mod double;
mod linux;
#[cfg(test)]
mod tests;

use std::io;
use std::time::Duration;

use super::address::{ADDRESS_BYTES, ADDRESS_V6_BYTES, CONTROL_BYTES, LocalAddress, RawAddress};
use super::buffers::DATAGRAM_BYTES_MAX;
use super::ring_host::{RingHost, RingOptions};
use super::socket::BoundUdp;
pub(crate) use linux::LinuxRing;

/// Most datagrams taken in one turn. Bounds the time between two readings of the clock and two
/// slices of upkeep.
pub(crate) const BATCH_MAX: usize = 256;

/// Operations of the kernel that the ring uses.
pub(crate) trait Kernel {
    /// Queues an operation, for the next [`Self::enter`] to submit. False if the queue is full,
    /// because the kernel has not taken the earlier operations yet.
    fn push(&mut self, operation: Operation) -> bool;

    /// Submits the queued operations. If no completion waits, waits for one, at most `timeout`.
    fn enter(&mut self, timeout: Duration) -> io::Result<()>;

    /// The next completion, if there is one.
    fn next(&mut self) -> Option<Completion>;

    /// Whether completions did not fit into their queue. The kernel keeps them until they do.
    fn has_overflowed(&self) -> bool;

    /// Whether all queued operations are submitted, and every send slot is free.
    fn has_taken_all(&self) -> bool;

    /// Whether completions wait to be taken.
    fn has_completions(&self) -> bool;

    /// Gives a receive buffer to the kernel with the next [`Self::publish`].
    fn offer(&mut self, buffer: u16);

    /// Publishes the offered buffers to the kernel.
    fn publish(&mut self);

    /// A receive buffer that the ring owns at the moment.
    fn buffer(&self, buffer: u16) -> &ReceiveBuffer;

    /// A receive buffer that the ring owns, and the payload of a free send slot.
    fn buffer_and_slot(&mut self, buffer: u16, slot: usize) -> (&ReceiveBuffer, &mut [u8]);

    /// Number of send slots: one more than can be queued.
    fn slots(&self) -> usize;
}

/// An operation of the kernel.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    /// Receives from a socket into provided buffers, until the receive ends.
    Receive { socket: u16 },
    /// Sends the first bytes of a slot's payload. Completes only if it fails.
    Send { slot: usize, bytes: usize, socket: u16, to: RawAddress, local: Option<LocalAddress> },
    /// Ends all receives.
    Cancel,
}

/// The result of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// A datagram in a buffer, or a negated errno. Without `has_more` the receive has ended, and
    /// must be queued again.
    Receive { socket: u16, result: i32, buffer: Option<u16>, has_more: bool },
    /// A negated errno.
    Send { result: i32 },
    /// The cancellation itself. It is ignored: each cancelled receive has its own completion.
    Cancel,
}

/// Events of a turn, besides datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingEvent {
    /// A multishot receive ended. It is armed again in the next turn.
    ReceiveEnded,
    /// A receive failed, with this errno.
    ReceiveFailed(i32),
    /// A response was not sent, with this errno.
    SendFailed(i32),
    /// The completion queue overflowed. The kernel keeps what did not fit.
    CompletionOverflow,
}

/// A receive buffer as the kernel fills it: its header, then the requested areas.
#[repr(C, align(64))]
pub(crate) struct ReceiveBuffer {
    /// Lengths of address, control bytes and payload, then message flags.
    header: [u32; 4],
    address: [u8; ADDRESS_BYTES],
    control: [u8; CONTROL_BYTES],
    payload: [u8; DATAGRAM_BYTES_MAX],
}

/// One datagram of a batch: its buffer, and its socket.
#[derive(Clone, Copy)]
struct Arrival {
    buffer: u16,
    socket: u16,
}

/// State of one socket in the ring.
#[derive(Clone, Copy)]
struct Registered {
    armed: bool,
    wildcard: bool,
}

/// A datagram of the batch, with room for its response.
pub(crate) struct Exchange<'a> {
    pub(crate) source: RawAddress,
    pub(crate) payload: &'a [u8],
    pub(crate) truncated: bool,
    pub(crate) out: &'a mut [u8],
}

/// A ring that runs for a set of sockets, on the thread that created it.
pub(crate) struct Ring<K: Kernel> {
    kernel: K,
    sockets: Vec<Registered>,
    /// Index of the socket at which the next turn starts to arm.
    arm_first: usize,
    arrivals: Vec<Arrival>,
    sends_used: usize,
    stopping: bool,
}

impl<'r> Ring<LinuxRing<'r>> {
    /// Registers sockets and buffers, restricts the ring and enables it. Must run on the thread
    /// that will use the ring.
    pub(crate) fn start(
        host: &'r mut RingHost,
        sockets: &[BoundUdp],
        options: &RingOptions,
    ) -> io::Result<Self> {
        let kernel = LinuxRing::start(host, sockets, options)?;
        Ok(Self::on(kernel, sockets.iter().map(BoundUdp::is_wildcard), options.buffers))
    }
}

impl<K: Kernel> Ring<K> {
    /// A ring on a kernel with `buffers` buffers, all of which are offered to it. `sockets` has one
    /// item per socket: whether it is a wildcard.
    pub(crate) fn on(kernel: K, sockets: impl Iterator<Item = bool>, buffers: u16) -> Self {
        let mut ring = Self {
            kernel,
            sockets: sockets.map(|wildcard| Registered { armed: false, wildcard }).collect(),
            arm_first: 0,
            arrivals: Vec::with_capacity(BATCH_MAX),
            sends_used: 0,
            stopping: false,
        };
        (0..buffers).for_each(|id| ring.kernel.offer(id));
        ring.kernel.publish();
        ring
    }

    /// Submits the queued operations, waits for an event, at most `timeout`, and returns the size
    /// of the new batch, which replaces the old one.
    ///
    /// # Errors
    /// Errors that break the ring. Faults that it survives go to `event`.
    pub(crate) fn turn(
        &mut self,
        timeout: Duration,
        mut event: impl FnMut(RingEvent),
    ) -> io::Result<usize> {
        while let Some(arrival) = self.arrivals.pop() {
            self.kernel.offer(arrival.buffer);
        }
        self.kernel.publish();
        if self.stopping {
            self.cancel();
        } else {
            self.arm();
        }
        if self.kernel.has_overflowed() {
            event(RingEvent::CompletionOverflow);
        }
        self.enter(timeout)?;
        if self.kernel.has_taken_all() {
            self.sends_used = 0;
        }
        // Failed sends complete as well. Without a bound of their own, a storm of them would never
        // end.
        for _ in 0..2 * BATCH_MAX {
            if self.arrivals.len() == BATCH_MAX {
                break;
            }
            let Some(completion) = self.kernel.next() else { break };
            self.complete(completion, &mut event);
        }
        Ok(self.arrivals.len())
    }

    /// Arms every receive that is not armed. The first may take all free buffers and leave ENOBUFS
    /// to the others, so the first becomes the last in the next turn.
    fn arm(&mut self) {
        let count = self.sockets.len();
        let mut first = None;
        for socket in (0..=u16::MAX).take(count).cycle().skip(self.arm_first).take(count) {
            if self.sockets[usize::from(socket)].armed {
                continue;
            }
            if self.kernel.push(Operation::Receive { socket }) {
                self.sockets[usize::from(socket)].armed = true;
                first.get_or_insert(socket);
            }
        }
        if let Some(first) = first {
            self.arm_first = (usize::from(first) + 1) % count;
        }
    }

    /// Cancels every armed receive. If the request cannot be queued, the next turn tries again.
    fn cancel(&mut self) {
        if self.is_armed() {
            self.kernel.push(Operation::Cancel);
        }
    }

    /// The only system call of a turn.
    fn enter(&mut self, timeout: Duration) -> io::Result<()> {
        match self.kernel.enter(timeout).map_err(|it| (it.raw_os_error(), it)) {
            // The timeout, a signal, or the kernel requires that completions are taken or memory is
            // freed first: the next turn continues in each case.
            Ok(()) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Handles one completion.
    #[inline]
    fn complete(&mut self, completion: Completion, event: &mut impl FnMut(RingEvent)) {
        let (socket, result, buffer, has_more) = match completion {
            Completion::Receive { socket, result, buffer, has_more } => {
                (socket, result, buffer, has_more)
            }
            Completion::Send { result } if result < 0 => {
                return event(RingEvent::SendFailed(-result));
            }
            Completion::Send { .. } | Completion::Cancel => return,
        };
        match buffer {
            Some(buffer) if result >= 0 => self.arrivals.push(Arrival { buffer, socket }),
            Some(buffer) => self.kernel.offer(buffer),
            None => {}
        }
        if result < 0 && result != -libc::ECANCELED {
            event(RingEvent::ReceiveFailed(-result));
        }
        if !has_more {
            self.sockets[usize::from(socket)].armed = false;
            if !self.stopping {
                event(RingEvent::ReceiveEnded);
            }
        }
    }

    /// The payload of one datagram of the batch.
    #[inline]
    pub(crate) fn payload(&self, index: usize) -> &[u8] {
        self.buffer(index).payload()
    }

    /// One datagram of the batch, with room for its response.
    #[inline]
    pub(crate) fn datagram(&mut self, index: usize) -> Exchange<'_> {
        let slot = self.sends_used;
        let (buffer, out) = self.kernel.buffer_and_slot(self.arrivals[index].buffer, slot);
        Exchange {
            source: buffer.source(),
            payload: buffer.payload(),
            truncated: buffer.is_truncated(),
            out,
        }
    }

    /// Queues the response to one datagram: the first `bytes` bytes of the room from
    /// [`Self::datagram`]. False if there is no room and the response is lost.
    #[inline]
    pub(crate) fn respond(&mut self, index: usize, bytes: usize) -> bool {
        let slot = self.sends_used;
        if slot + 1 >= self.kernel.slots() {
            return false;
        }
        let socket = self.arrivals[index].socket;
        let wildcard = self.sockets[usize::from(socket)].wildcard;
        let buffer = self.buffer(index);
        let local = if wildcard { buffer.local() } else { None };
        let to = buffer.source();
        let pushed = self.kernel.push(Operation::Send { slot, bytes, socket, to, local });
        self.sends_used += usize::from(pushed);
        pushed
    }

    fn buffer(&self, index: usize) -> &ReceiveBuffer {
        self.kernel.buffer(self.arrivals[index].buffer)
    }

    #[cfg(test)]
    pub(crate) fn kernel(&mut self) -> &mut K {
        &mut self.kernel
    }

    /// Cancels all receives in the next turn. What was received before is still handed out.
    pub(crate) fn stop_receiving(&mut self) {
        self.stopping = true;
    }

    /// Arms receives again in the next turn.
    pub(crate) fn receive_again(&mut self) {
        self.stopping = false;
    }

    /// Whether no receive is armed, nothing waits to be handed out, and every response was
    /// submitted.
    pub(crate) fn is_quiet(&self) -> bool {
        let idle = !self.kernel.has_completions() && self.kernel.has_taken_all();
        !self.is_armed() && self.arrivals.is_empty() && idle
    }

    /// Whether the kernel may still use the memory lent to it.
    fn is_armed(&self) -> bool {
        self.sockets.iter().any(|it| it.armed)
    }
}

impl<K: Kernel> Drop for Ring<K> {
    /// Ends all receives, so that the kernel uses no lent memory any more.
    fn drop(&mut self) {
        const TRIES: u32 = 100;
        self.stop_receiving();
        for _ in 0..TRIES {
            if !self.is_armed() || self.turn(Duration::from_millis(10), |_| ()).is_err() {
                break;
            }
        }
    }
}

impl ReceiveBuffer {
    const EMPTY: Self = Self {
        header: [0; 4],
        address: [0; ADDRESS_BYTES],
        control: [0; CONTROL_BYTES],
        payload: [0; DATAGRAM_BYTES_MAX],
    };

    #[inline]
    fn payload(&self) -> &[u8] {
        &self.payload[..(self.header[2] as usize).min(DATAGRAM_BYTES_MAX)]
    }

    #[inline]
    fn source(&self) -> RawAddress {
        RawAddress { bytes: self.address, length: self.header[0].min(ADDRESS_V6_BYTES) }
    }

    /// Fills the buffer as the kernel does.
    #[cfg(test)]
    fn fill(&mut self, source: std::net::SocketAddr, payload: &[u8]) {
        let source = RawAddress::from(source);
        let kept = payload.len().min(DATAGRAM_BYTES_MAX);
        let flags = if kept < payload.len() { libc::MSG_TRUNC as u32 } else { 0 };
        self.header = [source.length, 0, payload.len() as u32, flags];
        self.address = source.bytes;
        self.payload[..kept].copy_from_slice(&payload[..kept]);
    }

    fn local(&self) -> Option<LocalAddress> {
        LocalAddress::parse(self.control.get(..self.header[1] as usize)?)
    }

    #[inline]
    fn is_truncated(&self) -> bool {
        self.header[3] & libc::MSG_TRUNC as u32 != 0
    }
}
