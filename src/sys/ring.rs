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
#![expect(unsafe_code, reason = "entries and buffers are shared with the kernel by address")]

use std::io;
use std::mem::{ManuallyDrop, offset_of};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;
use std::time::Duration;

use io_uring::squeue::Flags;
use io_uring::types::{CancelBuilder, Fixed, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, SubmissionQueue, Submitter, cqueue, opcode, squeue};

use super::address::{ADDRESS_BYTES, ADDRESS_V6_BYTES, CONTROL_BYTES, LocalAddress, RawAddress};
use super::buffer_ring::BufferRing;
use super::buffers::{DATAGRAM_BYTES_MAX, Datagrams, Pinned};
use super::ring_host::{RingHost, RingOptions, restrict};
use super::socket::BoundUdp;

/// Most datagrams taken in one turn, so that the clock is read and upkeep done at least that often.
pub(crate) const BATCH_MAX: usize = 256;

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
struct ReceiveBuffer {
    /// Lengths of address, control bytes and payload, then message flags.
    header: [u32; 4],
    address: [u8; ADDRESS_BYTES],
    control: [u8; CONTROL_BYTES],
    payload: [u8; DATAGRAM_BYTES_MAX],
}

/// The part of a buffer that the kernel may fill.
const BUFFER_BYTES: usize = offset_of!(ReceiveBuffer, payload) + DATAGRAM_BYTES_MAX;

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

/// What the kernel writes to, or reads, for as long as a receive is armed.
struct Lent {
    /// What every receive asks for: room for an address and control bytes.
    receive_header: Pinned<libc::msghdr>,
    offered: BufferRing,
    buffers: Pinned<ReceiveBuffer>,
}

/// A datagram of the batch, and where its answer may be written.
pub(crate) struct Exchange<'a> {
    pub(crate) source: RawAddress,
    pub(crate) payload: &'a [u8],
    pub(crate) truncated: bool,
    pub(crate) out: &'a mut [u8],
}

/// A ring at work for a set of sockets, on the thread that made it.
pub(crate) struct Ring<'r> {
    submitter: Submitter<'r>,
    submissions: SubmissionQueue<'r>,
    completions: CompletionQueue<'r>,
    sockets: Vec<Registered>,
    /// Where the next turn begins to arm.
    arm_first: usize,
    /// Freed by `drop`, and only once no receive is armed.
    lent: ManuallyDrop<Lent>,
    arrivals: Vec<Arrival>,
    /// One slot per submission entry, and one to write an answer into that cannot be sent.
    sends: Datagrams,
    sends_used: usize,
    stopping: bool,
}

/// Kinds of entries, told apart by the upper half of their user data; the socket is the lower.
const RECEIVE: u64 = 1 << 32;
const SEND: u64 = 2 << 32;
const CANCEL: u64 = 3 << 32;
const KINDS: u64 = !0 << 32;

/// The group of our provided buffers; there is but one.
const BUFFER_GROUP: u16 = 0;

impl<'r> Ring<'r> {
    /// Registers sockets and buffers, restricts the ring and enables it. Must run on the thread
    /// that will drive it.
    pub(crate) fn start(
        host: &'r mut RingHost,
        sockets: &[BoundUdp],
        options: &RingOptions,
    ) -> io::Result<Self> {
        let (mut submitter, submissions, completions) = host.0.split();
        let fds: Vec<_> = sockets.iter().map(|it| it.as_fd().as_raw_fd()).collect();
        submitter.register_files(&fds)?;
        let buffers = Pinned::new(options.buffers.into(), |_| ReceiveBuffer {
            header: [0; 4],
            address: [0; ADDRESS_BYTES],
            control: [0; CONTROL_BYTES],
            payload: [0; DATAGRAM_BYTES_MAX],
        });
        let offered = BufferRing::register(&submitter, options.buffers, BUFFER_GROUP)?;
        restrict(&submitter)?;
        submitter.register_ring_fd()?;
        submitter.register_enable_rings()?;
        let sends = Datagrams::new(submissions.capacity() + 1);
        let registered = |it: &BoundUdp| Registered { armed: false, wildcard: it.is_wildcard() };
        let mut it = Self {
            submitter,
            submissions,
            completions,
            sockets: sockets.iter().map(registered).collect(),
            arm_first: 0,
            lent: ManuallyDrop::new(Lent {
                receive_header: Pinned::new(1, |_| receive_header()),
                offered,
                buffers,
            }),
            arrivals: Vec::with_capacity(BATCH_MAX),
            sends,
            sends_used: 0,
            stopping: false,
        };
        (0..options.buffers).for_each(|id| it.offer(id));
        it.lent.offered.publish();
        Ok(it)
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
            self.offer(arrival.buffer);
        }
        self.lent.offered.publish();
        if self.stopping {
            self.cancel();
        } else {
            self.arm();
        }
        if self.submissions.cq_overflow() {
            event(RingEvent::CompletionOverflow);
        }
        self.enter(timeout)?;
        if self.submissions.is_empty() {
            self.sends_used = 0;
        }
        // Failed sends complete as well: bounded apart, or a storm of them would never end.
        for _ in 0..2 * BATCH_MAX {
            if self.arrivals.len() == BATCH_MAX {
                break;
            }
            let Some(entry) = self.completions.next() else { break };
            self.complete(&entry, &mut event);
        }
        Ok(self.arrivals.len())
    }

    /// Hands a buffer to the kernel with the next [`BufferRing::publish`].
    fn offer(&mut self, id: u16) {
        let buffer = self.lent.buffers.pointer(id.into()).cast();
        self.lent.offered.offer(buffer, BUFFER_BYTES, id);
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
            let (fd, data) = (Fixed(socket.into()), RECEIVE | u64::from(socket));
            let header = self.lent.receive_header.pointer(0).as_ptr();
            let entry = opcode::RecvMsgMulti::new(fd, header, BUFFER_GROUP).build();
            if self.push(&entry.user_data(data)) {
                self.sockets[usize::from(socket)].armed = true;
                first.get_or_insert(socket);
            }
        }
        if let Some(first) = first {
            self.arm_first = (usize::from(first) + 1) % count;
        }
    }

    /// Cancels every receive that is armed.
    fn cancel(&mut self) {
        if self.is_armed() {
            let entry = opcode::AsyncCancel2::new(CancelBuilder::any()).build();
            self.push(&entry.user_data(CANCEL));
        }
    }

    /// Queues an entry, unless the kernel has yet to take the former ones.
    fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: what the entry points at (header, buffers, send slots) is owned by `self`, never
        // moves, and is not changed before the kernel has taken it. Sends are done once taken;
        // what receives go on using is in `lent`, which `drop` frees only when none is armed.
        unsafe { self.submissions.push(entry) }.is_ok()
    }

    /// The turn's one system call.
    fn enter(&mut self, timeout: Duration) -> io::Result<()> {
        self.submissions.sync();
        self.completions.sync();
        let want = usize::from(self.completions.is_empty());
        let timeout = Timespec::from(timeout);
        let result = self.submitter.submit_with_args(want, &SubmitArgs::new().timespec(&timeout));
        self.submissions.sync();
        self.completions.sync();
        match result.map_err(|it| (it.raw_os_error(), it)) {
            // Time is up, a signal came, or the kernel wants completions taken or memory freed
            // first: in each case the next turn simply goes on.
            Ok(_) | Err((Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN), _)) => {
                Ok(())
            }
            Err((_, error)) => Err(error),
        }
    }

    /// Sorts one completion.
    fn complete(&mut self, entry: &cqueue::Entry, event: &mut impl FnMut(RingEvent)) {
        let failure = (entry.result() < 0).then(|| -entry.result());
        match (entry.user_data() & KINDS, failure) {
            (RECEIVE, failure) => self.complete_receive(entry, failure, event),
            (SEND, Some(errno)) => event(RingEvent::SendFailed(errno)),
            _ => {}
        }
    }

    fn complete_receive(
        &mut self,
        entry: &cqueue::Entry,
        failure: Option<i32>,
        event: &mut impl FnMut(RingEvent),
    ) {
        let socket = (entry.user_data() & 0xffff) as u16;
        match (failure, cqueue::buffer_select(entry.flags())) {
            (None, Some(buffer)) => self.arrivals.push(Arrival { buffer, socket }),
            (_, Some(buffer)) => self.offer(buffer),
            (_, None) => {}
        }
        if let Some(errno) = failure.filter(|it| *it != libc::ECANCELED) {
            event(RingEvent::ReceiveFailed(errno));
        }
        if !cqueue::more(entry.flags()) {
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
        let buffer = self.lent.buffers.get(self.arrivals[index].buffer.into());
        Exchange {
            source: buffer.source(),
            payload: buffer.payload(),
            truncated: buffer.is_truncated(),
            out: &mut self.sends.slots.get_mut(slot).payload,
        }
    }

    /// Queues the answer to one datagram, `bytes` of which stand where [`Self::exchange`] said.
    /// False where there is no room for it: it is lost.
    #[inline]
    pub(crate) fn reply(&mut self, index: usize, bytes: usize) -> bool {
        let slot = self.sends_used;
        if slot + 1 >= self.sends.capacity() || self.submissions.is_full() {
            return false;
        }
        let socket = self.arrivals[index].socket;
        let wildcard = self.sockets[usize::from(socket)].wildcard;
        let buffer = self.buffer(index);
        let local = if wildcard { buffer.local() } else { None };
        let source = buffer.source();
        self.sends.address(slot, bytes, &source, local);
        let entry = if local.is_some() {
            self.send_message(slot, socket)
        } else {
            self.send(slot, socket, bytes.try_into().unwrap_or(0), &source)
        };
        let entry = entry.flags(Flags::SKIP_SUCCESS).user_data(SEND | u64::from(socket));
        let pushed = self.push(&entry);
        self.sends_used += usize::from(pushed);
        pushed
    }

    /// A send that names the target only.
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

    /// A send that also names the address of ours it must leave from.
    fn send_message(&self, slot: usize, socket: u16) -> squeue::Entry {
        let header = self.sends.headers.pointer(slot).as_ptr();
        // SAFETY: the header is valid; only an address is taken.
        let header = unsafe { &raw const (*header).msg_hdr };
        opcode::SendMsg::new(Fixed(socket.into()), header).flags(libc::MSG_DONTWAIT as u32).build()
    }

    fn buffer(&self, index: usize) -> &ReceiveBuffer {
        self.lent.buffers.get(self.arrivals[index].buffer.into())
    }

    /// Cancels all receives with the next turn. What came before is still handed out.
    pub(crate) fn stop_receiving(&mut self) {
        self.stopping = true;
    }

    /// Whether no receive is armed, nothing waits to be handed out and every reply has left.
    pub(crate) fn is_quiet(&self) -> bool {
        let idle = self.completions.is_empty() && self.submissions.is_empty();
        !self.is_armed() && self.arrivals.is_empty() && idle
    }

    /// Whether the kernel may still use what it was lent.
    fn is_armed(&self) -> bool {
        self.sockets.iter().any(|it| it.armed)
    }
}

impl Drop for Ring<'_> {
    /// Frees what the kernel was lent, once it uses it no more.
    fn drop(&mut self) {
        const TRIES: u32 = 100;
        self.stop_receiving();
        for _ in 0..TRIES {
            if !self.is_armed() || self.turn(Duration::from_millis(10), |_| ()).is_err() {
                break;
            }
        }
        // Otherwise, which was never seen, a leak is better than a write into freed memory.
        if !self.is_armed() {
            // SAFETY: every receive has told its end, and the kernel looks in there for receives
            // only; this is the only place that drops it, and nothing after it looks inside.
            unsafe { ManuallyDrop::drop(&mut self.lent) };
        }
        // The registration keeps the whole ring alive until the thread ends; the one failure is
        // that there is none.
        let _ = self.submitter.unregister_ring_fd();
    }
}

impl ReceiveBuffer {
    #[inline]
    fn payload(&self) -> &[u8] {
        &self.payload[..(self.header[2] as usize).min(DATAGRAM_BYTES_MAX)]
    }

    #[inline]
    fn source(&self) -> RawAddress {
        RawAddress { bytes: self.address, length: self.header[0].min(ADDRESS_V6_BYTES) }
    }

    fn local(&self) -> Option<LocalAddress> {
        LocalAddress::parse(self.control.get(..self.header[1] as usize)?)
    }

    #[inline]
    fn is_truncated(&self) -> bool {
        self.header[3] & libc::MSG_TRUNC as u32 != 0
    }
}

/// Only the two lengths count: they say how the kernel divides a buffer.
fn receive_header() -> libc::msghdr {
    // SAFETY: plain integers and pointers, for which zero is a value.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_namelen = ADDRESS_V6_BYTES;
    header.msg_controllen = CONTROL_BYTES as _;
    header.msg_name = ptr::null_mut();
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::socket::{UdpOptions, bind_udp};
    use std::net::UdpSocket;

    /// Sends `count` numbered datagrams to a ring of the given sizes, all before it looks, and
    /// says which arrived, and what else happened. `None` where there is no io_uring.
    fn flood(options: RingOptions, count: u16) -> Option<(Vec<u16>, Vec<RingEvent>)> {
        crate::sys::probe::probe().ok()?;
        let sockets = [bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap()];
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for number in 0..count {
            client.send_to(&number.to_be_bytes(), sockets[0].address()).unwrap();
        }
        let mut host = RingHost::new(&options).unwrap();
        let mut ring = Ring::start(&mut host, &sockets, &options).unwrap();
        let (mut numbers, mut events) = (Vec::new(), Vec::new());
        while numbers.len() < count.into() {
            let before = numbers.len();
            // Two waits without anything: what has not come by now never will.
            for _ in 0..2 {
                for index in 0..ring.turn(Duration::from_secs(1), |it| events.push(it)).unwrap() {
                    numbers.push(u16::from_be_bytes(ring.payload(index).try_into().unwrap()));
                }
            }
            assert!(numbers.len() > before, "stalled after {before}: {events:?}");
        }
        Some((numbers, events))
    }

    #[test]
    fn running_out_of_buffers_loses_nothing() {
        let options = RingOptions { buffers: 4, submissions: 8, completions: 32 };
        let Some((numbers, events)) = flood(options, 100) else {
            return eprintln!("skipped: no io_uring");
        };
        assert!(numbers.into_iter().eq(0..100));
        assert!(events.contains(&RingEvent::ReceiveFailed(libc::ENOBUFS)));
        assert!(events.contains(&RingEvent::ReceiveEnded));
    }

    #[test]
    fn an_overflowing_completion_queue_loses_nothing() {
        let options = RingOptions { buffers: 256, submissions: 4, completions: 8 };
        let Some((numbers, events)) = flood(options, 100) else {
            return eprintln!("skipped: no io_uring");
        };
        assert!(numbers.into_iter().eq(0..100));
        assert!(events.contains(&RingEvent::ReceiveEnded), "{events:?}");
        assert!(events.contains(&RingEvent::CompletionOverflow), "{events:?}");
    }

    #[test]
    fn a_flooded_socket_leaves_buffers_to_the_others() {
        let options = RingOptions { buffers: 4, submissions: 8, completions: 32 };
        if crate::sys::probe::probe().is_err() {
            return eprintln!("skipped: no io_uring");
        }
        let sockets = [(); 2]
            .map(|()| bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap());
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..100 {
            for (place, it) in (0_u8..).zip(&sockets) {
                client.send_to(&[place], it.address()).unwrap();
            }
        }
        let mut host = RingHost::new(&options).unwrap();
        let mut ring = Ring::start(&mut host, &sockets, &options).unwrap();
        let mut received = [0_u32; 2];
        const TURNS: u32 = 12;
        for _ in 0..TURNS {
            for index in 0..ring.turn(Duration::from_secs(1), |_| ()).unwrap() {
                received[usize::from(ring.payload(index)[0])] += 1;
            }
        }
        assert!(received[0] < 100, "it was to be a flood: {received:?}");
        assert!(received[0].abs_diff(received[1]) <= 4, "{received:?}");
    }

    #[test]
    fn a_ring_full_of_replies_refuses_more_and_goes_on() {
        let options = RingOptions { buffers: 16, submissions: 4, completions: 64 };
        if crate::sys::probe::probe().is_err() {
            return eprintln!("skipped: no io_uring");
        }
        let sockets = [bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap()];
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut host = RingHost::new(&options).unwrap();
        let mut ring = Ring::start(&mut host, &sockets, &options).unwrap();
        for _ in 0..3 {
            client.send_to(b"many", sockets[0].address()).unwrap();
            while ring.turn(Duration::from_secs(1), |it| panic!("{it:?}")).unwrap() == 0 {}
            let queued = (0..10).filter(|_| {
                ring.exchange(0).out[..2].copy_from_slice(b"ok");
                ring.reply(0, 2)
            });
            assert_eq!(queued.count(), 4);
        }
        ring.turn(Duration::ZERO, |it| panic!("{it:?}")).unwrap();
        client.set_nonblocking(true).unwrap();
        let answers = std::iter::from_fn(|| client.recv(&mut [0; 8]).ok());
        assert_eq!(answers.count(), 12);
    }

    #[test]
    fn what_is_not_allowed_is_denied() {
        let options = RingOptions { buffers: 4, submissions: 4, completions: 16 };
        if crate::sys::probe::probe().is_err() {
            return eprintln!("skipped: no io_uring");
        }
        let sockets = [bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap()];
        let mut host = RingHost::new(&options).unwrap();
        let mut ring = Ring::start(&mut host, &sockets, &options).unwrap();
        let entry = opcode::Nop::new().build().user_data(SEND);
        assert!(ring.push(&entry));
        let mut events = Vec::new();
        ring.turn(Duration::from_secs(1), |it| events.push(it)).unwrap();
        assert_eq!(events, [RingEvent::SendFailed(libc::EACCES)]);
        let error = ring.submitter.register_files(&[0]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
    }
}
