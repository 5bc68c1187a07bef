//! Datagrams through an io_uring: multishot receives into a ring of provided buffers, replies
//! that complete only when they fail, one system call a turn for sending, waiting and receiving.
//!
//! A turn of the ring:
//!
//! ```text
//! give the last batch's buffers back ─▶ arm receives that ended ─▶ io_uring_enter: submits the
//! replies, waits ─▶ take at most BATCH_MAX completions ─▶ (the caller handles them and replies)
//! ```
//!
//! Nothing can stall it: a send may not block (MSG_DONTWAIT), so its slot is free once submitted.
//!
//! [`Ring`] keeps the books: which receives are armed, whose a buffer is, which slots are free. The
//! kernel is behind [`Kernel`]: the real one is [`Linux`], and tests have a double that fails in
//! every way a kernel may.

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
pub(crate) use linux::Linux;

/// Most datagrams taken in one turn, so that the clock is read and upkeep done at least that often.
pub(crate) const BATCH_MAX: usize = 256;

/// What the ring asks of the kernel.
pub(crate) trait Kernel {
    /// Queues an operation, for the next [`Self::enter`] to submit. False where the queue is full,
    /// because the kernel has yet to take the former ones.
    fn push(&mut self, operation: Operation) -> bool;

    /// Submits what is queued and, if no completion waits, waits for one, at most `timeout`.
    fn enter(&mut self, timeout: Duration) -> io::Result<()>;

    /// The next completion, if there is one.
    fn next(&mut self) -> Option<Completion>;

    /// Whether completions did not fit their queue, and are kept by the kernel until they do.
    fn has_overflowed(&self) -> bool;

    /// Whether all that was queued is submitted, and every send slot free.
    fn has_taken_all(&self) -> bool;

    /// Whether completions wait to be taken.
    fn has_completions(&self) -> bool;

    /// Gives a receive buffer to the kernel with the next [`Self::publish`].
    fn offer(&mut self, buffer: u16);

    /// Shows the kernel the buffers that were offered.
    fn publish(&mut self);

    /// A receive buffer that is ours at the moment.
    fn buffer(&self, buffer: u16) -> &ReceiveBuffer;

    /// A receive buffer that is ours, and the payload of a send slot that is free.
    fn exchange(&mut self, buffer: u16, slot: usize) -> (&ReceiveBuffer, &mut [u8]);

    /// How many send slots there are: one more than can be queued.
    fn slots(&self) -> usize;
}

/// What can be asked of the kernel.
#[derive(Clone, Copy)]
pub(crate) enum Operation {
    /// To receive from a socket into buffers on offer, until the receive tells its end.
    Receive { socket: u16 },
    /// To send the first bytes of a slot's payload. It completes only if it fails.
    Send { slot: usize, bytes: usize, socket: u16, to: RawAddress, local: Option<LocalAddress> },
    /// To end all receives.
    Cancel,
}

/// What the kernel tells of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Completion {
    /// A datagram in a buffer, or an errno, negated. Where it does not go on it has to be queued
    /// anew.
    Receive { socket: u16, result: i32, buffer: Option<u16>, goes_on: bool },
    /// An errno, negated.
    Send { result: i32 },
    /// How many were cancelled, which their own ends tell better.
    Cancel,
}

/// What a turn met, besides datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingEvent {
    /// A multishot receive ended; it is armed again in the next turn.
    ReceiveEnded,
    /// A receive failed, with this errno.
    ReceiveFailed(i32),
    /// A reply was not sent, with this errno.
    SendFailed(i32),
    /// The completion queue overflowed: the kernel keeps what did not fit.
    CompletionOverflow,
}

/// A receive buffer as the kernel fills it: its header, then the areas we asked for.
#[repr(C, align(64))]
pub(crate) struct ReceiveBuffer {
    /// Lengths of address, control bytes and payload, then message flags.
    header: [u32; 4],
    address: [u8; ADDRESS_BYTES],
    control: [u8; CONTROL_BYTES],
    payload: [u8; DATAGRAM_BYTES_MAX],
}

/// One datagram of a batch: which buffer holds it, and which socket it came by.
#[derive(Clone, Copy)]
struct Arrival {
    buffer: u16,
    socket: u16,
}

/// A socket's part in the ring.
#[derive(Clone, Copy)]
struct Registered {
    armed: bool,
    wildcard: bool,
}

/// A datagram of the batch, and where its answer may be written.
pub(crate) struct Exchange<'a> {
    pub(crate) source: RawAddress,
    pub(crate) payload: &'a [u8],
    pub(crate) truncated: bool,
    pub(crate) out: &'a mut [u8],
}

/// A ring at work for a set of sockets, on the thread that made it.
pub(crate) struct Ring<K: Kernel> {
    kernel: K,
    sockets: Vec<Registered>,
    /// Where the next turn begins to arm.
    arm_first: usize,
    arrivals: Vec<Arrival>,
    sends_used: usize,
    stopping: bool,
}

impl<'r> Ring<Linux<'r>> {
    /// Registers sockets and buffers, restricts the ring and enables it. Must run on the thread
    /// that will drive it.
    pub(crate) fn start(
        host: &'r mut RingHost,
        sockets: &[BoundUdp],
        options: &RingOptions,
    ) -> io::Result<Self> {
        let kernel = Linux::start(host, sockets, options)?;
        Ok(Self::on(kernel, sockets.iter().map(BoundUdp::is_wildcard), options.buffers))
    }
}

impl<K: Kernel> Ring<K> {
    /// A ring whose kernel has so many buffers, all of which it is offered, and these sockets,
    /// which are wildcards or not.
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

    /// Submits what is queued, waits for something to happen, at most `timeout`, and says how many
    /// datagrams the new batch holds. The old batch is gone.
    ///
    /// # Errors
    /// Those of a ring that is broken; everything that can be survived goes to `event`.
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
        // Failed sends complete as well: bounded apart, or a storm of them would never end.
        for _ in 0..2 * BATCH_MAX {
            if self.arrivals.len() == BATCH_MAX {
                break;
            }
            let Some(completion) = self.kernel.next() else { break };
            self.complete(completion, &mut event);
        }
        Ok(self.arrivals.len())
    }

    /// Arms every receive that is not. Whichever comes first may take all buffers that are free
    /// and leave the others ENOBUFS, so whoever was first is last the next time.
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

    /// Cancels every receive that is armed. Where that cannot be queued the next turn tries again.
    fn cancel(&mut self) {
        if self.is_armed() {
            self.kernel.push(Operation::Cancel);
        }
    }

    /// The turn's one system call.
    fn enter(&mut self, timeout: Duration) -> io::Result<()> {
        match self.kernel.enter(timeout).map_err(|it| (it.raw_os_error(), it)) {
            // Time is up, a signal came, or the kernel wants completions taken or memory freed
            // first: in each case the next turn simply goes on.
            Ok(()) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Sorts one completion.
    #[inline]
    fn complete(&mut self, completion: Completion, event: &mut impl FnMut(RingEvent)) {
        let (socket, result, buffer, goes_on) = match completion {
            Completion::Receive { socket, result, buffer, goes_on } => {
                (socket, result, buffer, goes_on)
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
        if !goes_on {
            self.sockets[usize::from(socket)].armed = false;
            if !self.stopping {
                event(RingEvent::ReceiveEnded);
            }
        }
    }

    /// What one datagram of the batch brought.
    #[inline]
    pub(crate) fn payload(&self, index: usize) -> &[u8] {
        self.buffer(index).payload()
    }

    /// One datagram of the batch, and where to write its answer.
    #[inline]
    pub(crate) fn exchange(&mut self, index: usize) -> Exchange<'_> {
        let slot = self.sends_used;
        let (buffer, out) = self.kernel.exchange(self.arrivals[index].buffer, slot);
        Exchange {
            source: buffer.source(),
            payload: buffer.payload(),
            truncated: buffer.is_truncated(),
            out,
        }
    }

    /// Queues the answer to one datagram, `bytes` of which stand where [`Self::exchange`] said.
    /// False where there is no room for it: it is lost.
    #[inline]
    pub(crate) fn reply(&mut self, index: usize, bytes: usize) -> bool {
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

    /// Cancels all receives with the next turn. What came before is still handed out.
    pub(crate) fn stop_receiving(&mut self) {
        self.stopping = true;
    }

    /// Arms receives again with the next turn.
    pub(crate) fn receive_again(&mut self) {
        self.stopping = false;
    }

    /// Whether no receive is armed, nothing waits to be handed out and every reply has left.
    pub(crate) fn is_quiet(&self) -> bool {
        let idle = !self.kernel.has_completions() && self.kernel.has_taken_all();
        !self.is_armed() && self.arrivals.is_empty() && idle
    }

    /// Whether the kernel may still use what it was lent.
    fn is_armed(&self) -> bool {
        self.sockets.iter().any(|it| it.armed)
    }
}

impl<K: Kernel> Drop for Ring<K> {
    /// Ends all receives, so that the kernel gives back what it was lent.
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

    /// As the kernel fills it.
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
