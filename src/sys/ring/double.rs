//! A simulated kernel for tests. It follows the rules of an io_uring, checks that the ring follows
//! them too, and fails as often as configured, in every way that the real kernel may fail.
//!
//! It models sockets with queues; multishot receives that take provided buffers, and end with
//! ENOBUFS if there are none; a submission queue that may be taken in part; a completion queue that
//! overflows. Randomness is seeded: the same seed gives the same run.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Completion, Kernel, Operation, ReceiveBuffer};
use crate::sys::address::RawAddress;
use crate::sys::buffers::DATAGRAM_BYTES_MAX;
use crate::sys::ring_host::RingOptions;

/// Probabilities of faults, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    /// A receive ends after a datagram, as after an overflow.
    pub(crate) ends_permille: u32,
    /// A receive is cancelled without a request.
    pub(crate) cancelled_permille: u32,
    /// A receive fails with ENOMEM, in some cases with a buffer that it took.
    pub(crate) receive_fails_permille: u32,
    /// The system call fails with EINTR, EAGAIN, EBUSY or ETIME, before or after submission.
    pub(crate) enter_fails_permille: u32,
    /// The system call takes only a part of the queue.
    pub(crate) takes_part_permille: u32,
    /// A send fails, with one of [`SEND_ERRORS`].
    pub(crate) send_fails_permille: u32,
}

/// Errors of sends.
pub(crate) const SEND_ERRORS: [i32; 6] =
    [libc::EAGAIN, libc::ENOBUFS, libc::EPERM, libc::EMSGSIZE, libc::ENETUNREACH, libc::ENOMEM];

/// Errors of the system call that a ring survives.
const ENTER_ERRORS: [i32; 4] = [libc::EINTR, libc::EAGAIN, libc::EBUSY, libc::ETIME];

/// The owner of a receive buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BufferOwner {
    Ring,
    /// Offered, but not published yet.
    Offered,
    Kernel,
    /// In a completion that was not taken yet.
    Completed,
}

/// A socket: its queue, and whether a receive is under way.
#[derive(Default)]
struct SocketDouble {
    queue: VecDeque<(SocketAddr, Vec<u8>)>,
    is_received_from: bool,
}

/// The simulated kernel.
pub(crate) struct Double {
    random: fastrand::Rng,
    pub(crate) faults: Faults,
    /// The next system call fails with this error, which no ring survives.
    pub(crate) breaks_with: Option<i32>,
    sockets: Vec<SocketDouble>,
    buffers: Vec<(BufferOwner, ReceiveBuffer)>,
    /// Buffers offered, in order, but not published yet.
    offered: Vec<u16>,
    /// Buffers published to the kernel, in order.
    free: VecDeque<u16>,
    slots: Vec<[u8; DATAGRAM_BYTES_MAX]>,
    submissions: VecDeque<Operation>,
    completions: VecDeque<Completion>,
    /// Completions that did not fit into `completions`.
    overflow: VecDeque<Completion>,
    completions_max: usize,
    /// Datagrams sent: socket, destination, payload.
    pub(crate) sent: Vec<(u16, SocketAddr, Vec<u8>)>,
    /// Failed sends, by index in [`SEND_ERRORS`].
    pub(crate) send_failures: [u64; SEND_ERRORS.len()],
    /// How many times the completion queue was too short.
    pub(crate) overflows: u64,
}

impl Double {
    /// A kernel with empty sockets.
    pub(crate) fn new(seed: u64, sockets: usize, options: &RingOptions, faults: Faults) -> Self {
        let empty = || (BufferOwner::Ring, ReceiveBuffer::EMPTY);
        let submissions = options.submissions as usize;
        Self {
            random: fastrand::Rng::with_seed(seed),
            faults,
            breaks_with: None,
            sockets: std::iter::repeat_with(SocketDouble::default).take(sockets).collect(),
            buffers: std::iter::repeat_with(empty).take(options.buffers.into()).collect(),
            offered: Vec::new(),
            free: VecDeque::new(),
            slots: vec![[0; DATAGRAM_BYTES_MAX]; submissions + 1],
            submissions: VecDeque::with_capacity(submissions),
            completions: VecDeque::new(),
            overflow: VecDeque::new(),
            completions_max: options.completions as usize,
            sent: Vec::new(),
            send_failures: [0; SEND_ERRORS.len()],
            overflows: 0,
        }
    }

    /// Delivers a datagram to a socket.
    pub(crate) fn deliver(&mut self, socket: usize, source: SocketAddr, payload: Vec<u8>) {
        self.sockets[socket].queue.push_back((source, payload));
    }

    /// Number of datagrams that wait in all sockets.
    pub(crate) fn queued(&self) -> usize {
        (0..self.sockets.len()).map(|socket| self.queued_in(socket)).sum()
    }

    /// Number of datagrams that wait in one socket.
    pub(crate) fn queued_in(&self, socket: usize) -> usize {
        self.sockets[socket].queue.len()
    }

    /// Number of receives under way.
    pub(crate) fn receiving(&self) -> usize {
        self.sockets.iter().filter(|it| it.is_received_from).count()
    }

    /// Number of buffers that the ring owns.
    pub(crate) fn kept_by_ring(&self) -> usize {
        self.buffers.iter().filter(|it| it.0 == BufferOwner::Ring).count()
    }

    fn assert_free(&self, slot: usize) {
        let uses = |it: &Operation| matches!(it, Operation::Send { slot: its, .. } if *its == slot);
        assert!(!self.submissions.iter().any(uses), "slot {slot} is not sent yet");
    }

    fn happens(&mut self, permille: u32) -> bool {
        self.random.u32(0..1000) < permille
    }

    fn complete(&mut self, completion: Completion) {
        if self.completions.len() < self.completions_max && self.overflow.is_empty() {
            self.completions.push_back(completion);
        } else {
            self.overflow.push_back(completion);
            self.overflows += 1;
        }
    }

    /// Executes the queued operations, or the first part of them.
    fn take(&mut self) {
        let queued = self.submissions.len();
        let takes_part = queued > 0 && self.happens(self.faults.takes_part_permille);
        let count = if takes_part { self.random.usize(0..queued) } else { queued };
        for _ in 0..count {
            match self.submissions.pop_front() {
                Some(Operation::Receive { socket }) => self.begin(socket),
                Some(Operation::Send { slot, bytes, socket, to, .. }) => {
                    self.send(slot, bytes, socket, &to);
                }
                Some(Operation::Cancel) => self.cancel(),
                None => {}
            }
        }
    }

    fn begin(&mut self, socket: u16) {
        let double = &mut self.sockets[usize::from(socket)];
        assert!(!double.is_received_from, "a receive that is under way was queued anew");
        double.is_received_from = true;
    }

    fn end(&mut self, socket: u16, errno: i32, buffer: Option<u16>) {
        self.sockets[usize::from(socket)].is_received_from = false;
        self.complete(Completion::Receive { socket, result: -errno, buffer, has_more: false });
    }

    fn cancel(&mut self) {
        for socket in (0..).take(self.sockets.len()) {
            if self.sockets[usize::from(socket)].is_received_from {
                self.end(socket, libc::ECANCELED, None);
            }
        }
        self.complete(Completion::Cancel);
    }

    fn send(&mut self, slot: usize, bytes: usize, socket: u16, target: &RawAddress) {
        if self.happens(self.faults.send_fails_permille) {
            let index = self.random.usize(0..SEND_ERRORS.len());
            self.send_failures[index] += 1;
            return self.complete(Completion::Send { result: -SEND_ERRORS[index] });
        }
        let target = target.to_socket_addr().expect("a target of the Internet");
        self.sent.push((socket, target, self.slots[slot][..bytes].to_vec()));
    }

    /// Moves datagrams of one socket into buffers while its receive is under way.
    fn receive(&mut self, socket: u16) {
        let place = usize::from(socket);
        while self.sockets[place].is_received_from {
            if self.happens(self.faults.cancelled_permille) {
                return self.end(socket, libc::ECANCELED, None);
            }
            if self.sockets[place].queue.is_empty() {
                return;
            }
            let Some(buffer) = self.free.pop_front() else {
                return self.end(socket, libc::ENOBUFS, None);
            };
            self.buffers[usize::from(buffer)].0 = BufferOwner::Completed;
            if self.happens(self.faults.receive_fails_permille) {
                return self.end(socket, libc::ENOMEM, Some(buffer));
            }
            let Some((source, payload)) = self.sockets[place].queue.pop_front() else { return };
            self.buffers[usize::from(buffer)].1.fill(source, &payload);
            let has_more = !self.happens(self.faults.ends_permille);
            self.sockets[place].is_received_from = has_more;
            let result = i32::try_from(payload.len()).unwrap_or(i32::MAX);
            let buffer = Some(buffer);
            self.complete(Completion::Receive { socket, result, buffer, has_more });
        }
    }
}

impl Kernel for Double {
    fn push(&mut self, operation: Operation) -> bool {
        // There is one slot more than the queue has entries, as in the real kernel.
        let is_queued = self.submissions.len() + 1 < self.slots.len();
        if is_queued {
            if let Operation::Send { slot, .. } = operation {
                self.assert_free(slot);
            }
            self.submissions.push_back(operation);
        }
        is_queued
    }

    fn enter(&mut self, _timeout: Duration) -> io::Result<()> {
        if let Some(errno) = self.breaks_with {
            return Err(io::Error::from_raw_os_error(errno));
        }
        let fails = self.happens(self.faults.enter_fails_permille);
        let has_submitted = !fails || self.random.bool();
        if has_submitted {
            self.take();
            (0..).take(self.sockets.len()).for_each(|socket| self.receive(socket));
        }
        while self.completions.len() < self.completions_max {
            let Some(completion) = self.overflow.pop_front() else { break };
            self.completions.push_back(completion);
        }
        if fails {
            let errno = ENTER_ERRORS[self.random.usize(0..ENTER_ERRORS.len())];
            return Err(io::Error::from_raw_os_error(errno));
        }
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        let completion = self.completions.pop_front()?;
        if let Completion::Receive { buffer: Some(buffer), .. } = completion {
            self.buffers[usize::from(buffer)].0 = BufferOwner::Ring;
        }
        Some(completion)
    }

    fn has_overflowed(&self) -> bool {
        !self.overflow.is_empty()
    }

    fn has_taken_all(&self) -> bool {
        self.submissions.is_empty()
    }

    fn has_completions(&self) -> bool {
        !self.completions.is_empty()
    }

    fn offer(&mut self, buffer: u16) {
        let owner = &mut self.buffers[usize::from(buffer)].0;
        assert_eq!(*owner, BufferOwner::Ring, "buffer {buffer} was given back twice");
        *owner = BufferOwner::Offered;
        self.offered.push(buffer);
    }

    fn publish(&mut self) {
        for buffer in self.offered.drain(..) {
            self.buffers[usize::from(buffer)].0 = BufferOwner::Kernel;
            self.free.push_back(buffer);
        }
    }

    fn buffer(&self, buffer: u16) -> &ReceiveBuffer {
        let (owner, contents) = &self.buffers[usize::from(buffer)];
        assert_eq!(*owner, BufferOwner::Ring, "buffer {buffer} was looked into");
        contents
    }

    fn buffer_and_slot(&mut self, buffer: u16, slot: usize) -> (&ReceiveBuffer, &mut [u8]) {
        self.assert_free(slot);
        let (owner, contents) = &self.buffers[usize::from(buffer)];
        assert_eq!(*owner, BufferOwner::Ring, "buffer {buffer} was looked into");
        (contents, &mut self.slots[slot])
    }

    fn slots(&self) -> usize {
        self.slots.len()
    }
}
