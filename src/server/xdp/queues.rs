//! The AF_XDP sockets of one interface: one for each receive queue, each served by one worker.

use std::io;
use std::sync::Arc;

use tracing::info;

use super::error::XdpError;
use super::programs::log_once;
use crate::server::log::OPERATOR;
use crate::sys::ethtool::Ethtool;
use crate::sys::interfaces::index_of;
use crate::sys::xdp::kernel::AttachMode;
use crate::sys::xdp::socket::{self, UnboundXsk, XskError, XskMap, XskMode, XskQueue};
use crate::worker::xdp::{XdpPort, XdpPorts};

/// Most receive queues of an interface with a socket, of 8 MiB each; those of the other queues go
/// through the ordinary sockets.
pub(crate) const QUEUES_MAX: usize = 64;

/// Locked memory that is left to a worker's rings of io_uring, which count against the same limit
/// and are made later: without room for them the tracker would not start.
pub(crate) const RINGS_BYTES: u64 = 1 << 20;

/// Looks, one a second, until sockets that could not be opened are tried again.
const LOOKS_UNTIL_OPEN: u32 = 10;

/// Looks, one a second, for which a queue may be taken without a warning: the kernel frees the
/// queues of a predecessor some time after its end.
const TAKEN_LOOKS_MAX: u32 = 10;

/// How many sockets may be open beside the rings of so many workers.
pub(super) fn sockets_max(workers_with_rings: usize) -> usize {
    let reserved_bytes = RINGS_BYTES.saturating_mul(workers_with_rings as u64);
    socket::sockets_max(reserved_bytes).unwrap_or(usize::MAX)
}

/// The sockets of one interface.
pub(super) struct Queues {
    map: XskMap,
    queues: Vec<Queue>,
    /// The interface's index and the program's mode, while sockets are bound.
    bound: Option<(u32, AttachMode)>,
    mode: Option<XskMode>,
    /// Receive queues of the interface that are to have a socket and whose worker has none.
    lacking: u64,
    /// What is wrong, as it was logged.
    problem: Option<String>,
    /// Looks to let pass before missing sockets are opened again.
    looks_until_open: u32,
    /// Looks at which a queue was taken, one after the other.
    taken_looks: u32,
}

/// The socket of a receive queue.
enum Queue {
    /// None yet.
    Missing,
    /// One that is not bound, so that it needs no privilege any more.
    Open(UnboundXsk),
    /// A worker has it.
    Served,
}

impl Queues {
    /// No sockets, and the map in which the program finds them.
    ///
    /// # Errors
    /// As [`XskMap::create`].
    pub(super) fn create() -> io::Result<Self> {
        let map = XskMap::create(u32::try_from(QUEUES_MAX).unwrap_or(1))?;
        let (queues, bound, mode, problem) = Default::default();
        let (lacking, looks_until_open, taken_looks) = Default::default();
        Ok(Self { map, queues, bound, mode, lacking, problem, looks_until_open, taken_looks })
    }

    /// The map in which the program finds the sockets.
    pub(super) fn map(&self) -> &XskMap {
        &self.map
    }

    /// How many sockets are open.
    pub(super) fn count(&self) -> usize {
        self.queues.iter().filter(|it| !matches!(it, Queue::Missing)).count()
    }

    /// Receive queues that are to have a socket and have none.
    pub(super) fn lacking(&self) -> u64 {
        self.lacking
    }

    /// How frames reach the sockets, if workers have any.
    pub(super) fn mode(&self) -> Option<XskMode> {
        self.mode
    }

    /// Opens sockets if they are wanted, `room` of them at most; binds them, and gives them to the
    /// workers, while the program is attached. Closes them if they are not wanted, or their
    /// interface is gone.
    pub(super) fn follow(
        &mut self,
        name: &str,
        are_wanted: bool,
        program: Option<AttachMode>,
        workers: &[Arc<XdpPorts>],
        room: usize,
    ) {
        let index = index_of(name).ok();
        // An interface of the same name may be another one; and memory that an interface writes to
        // is of no use beside a program behind its driver.
        let is_stale = self.bound.is_some_and(|(interface, mode)| {
            Some(interface) != index || program.is_some_and(|it| it != mode)
        });
        if !are_wanted || is_stale {
            // The next look opens others: until workers have closed these, memory is locked twice.
            return self.close(workers);
        }
        let opened = self.open(name, room);
        let bound = match (program, index) {
            (Some(program), Some(index)) => self.bind((name, index), program, workers),
            _ => Ok(()),
        };
        let served = self.queues.iter().filter(|it| matches!(it, Queue::Served)).count();
        self.lacking = (opened.0.saturating_sub(served)) as u64;
        let outcome = opened.1.and(bound);
        let is_taken = matches!(outcome, Err(XskError::QueueTaken { .. }));
        self.taken_looks = if is_taken { self.taken_looks + 1 } else { 0 };
        if is_taken && self.taken_looks <= TAKEN_LOOKS_MAX {
            return;
        }
        if self.looks_until_open > 0 && outcome.is_ok() {
            return; // what could not be opened is known
        }
        let problem = outcome.err();
        let interface = name.to_owned();
        log_once(&mut self.problem, problem.map(|error| XdpError::Queue { interface, error }));
    }

    /// Has the workers close the sockets.
    pub(super) fn close(&mut self, workers: &[Arc<XdpPorts>]) {
        if let Some((interface, _)) = self.bound.take() {
            workers.iter().for_each(|worker| worker.remove(interface));
        }
        self.queues.clear();
        (self.mode, self.problem, self.lacking, self.looks_until_open) = (None, None, 0, 0);
    }

    /// Opens a socket for each queue that has none, but no more than there is room for. Returns the
    /// number of queues as well.
    fn open(&mut self, name: &str, room: usize) -> (usize, Result<(), XskError>) {
        let channels = Ethtool::open().and_then(|it| it.channels(name));
        let count = channels.map_or(1, |it| usize::try_from(it.count).unwrap_or(1)).max(1);
        let count = count.min(QUEUES_MAX);
        while self.queues.len() > count && matches!(self.queues.last(), Some(Queue::Missing)) {
            self.queues.pop();
        }
        // Sockets of queues that are gone get nothing, and cost nothing but memory.
        self.queues.resize_with(count.max(self.queues.len()), || Queue::Missing);
        if self.looks_until_open > 0 {
            self.looks_until_open -= 1;
            return (count, Ok(()));
        }
        let opened = self.open_missing(room);
        if opened.is_err() {
            self.looks_until_open = LOOKS_UNTIL_OPEN;
        }
        (count, opened)
    }

    fn open_missing(&mut self, room: usize) -> Result<(), XskError> {
        let missing = self.queues.iter_mut().filter(|it| matches!(it, Queue::Missing));
        for (number, queue) in missing.enumerate() {
            if number == room {
                return Err(XskError::LockedMemory);
            }
            match UnboundXsk::open() {
                Ok(socket) => *queue = Queue::Open(socket),
                Err(error) => {
                    // Others of the same user have used the limit up: the rings need some of it.
                    let is_full = matches!(error, XskError::LockedMemory);
                    let mut open = self.queues.iter_mut().rev();
                    let last = open.find(|it| is_full && matches!(it, Queue::Open(_)));
                    last.into_iter().for_each(|it| *it = Queue::Missing);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Binds the sockets that are not bound, each for the worker of its queue.
    fn bind(
        &mut self,
        (name, interface): (&str, u32),
        program: AttachMode,
        workers: &[Arc<XdpPorts>],
    ) -> Result<(), XskError> {
        let mut refused = None;
        // A program behind the driver never sees frames that the interface writes to shared memory.
        let zero_copy = program == AttachMode::Native;
        for ((number, queue), worker) in (0..).zip(&mut self.queues).zip(workers.iter().cycle()) {
            let socket = match std::mem::replace(queue, Queue::Served) {
                Queue::Open(socket) => socket,
                other => {
                    *queue = other;
                    continue;
                }
            };
            match socket.bind(XskQueue { interface, queue: number, zero_copy }) {
                Ok(socket) => {
                    let mode = socket.mode();
                    info!(
                        target: OPERATOR,
                        interface = name, queue = number, mode = mode.label(),
                        "AF_XDP socket bound"
                    );
                    (self.bound, self.mode) = (Some((interface, program)), Some(mode));
                    worker.add(XdpPort::new(interface, socket, self.map.clone()));
                }
                Err((socket, error)) => {
                    *queue = Queue::Open(socket);
                    refused = Some(error);
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }
}
