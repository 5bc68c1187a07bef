//! The datagram worker: one loop over an I/O backend.
//!
//! A turn submits the last turn's responses and waits (one system call with io_uring), takes a
//! bounded batch, reads the clock once, lets the responder prefetch, handles each datagram, and
//! ends with one slice of upkeep. Nothing is allocated per datagram. A flooded socket delays the
//! other sockets and the clock by one batch at most.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::counters::{IoEvent, WorkerCounters};
use crate::sys::allocator::Collector;
use crate::sys::clock::{Clock, thread_cpu_ns};
use crate::sys::ring::Ring;
use crate::sys::ring_host::{RingHost, RingOptions};
use crate::sys::socket::BoundUdp;
use crate::time::Now;
use crate::types::{DatagramResponse, Dropped, Family, unmap};
use crate::worker::{
    RESPONSE_BYTES_MAX, Responder,
    mmsg::Mmsg,
    pause_signal::PauseSignal,
    uring::UringBackend,
    xdp::{XdpBackend, XdpPorts},
};

/// How datagrams travel between kernel and worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatagramBackend {
    /// An io_uring per worker. Needs Linux 6.0 or later, and a host that does not deny io_uring.
    Uring,
    /// `recvmmsg` and `sendmmsg`, with `poll`. Works everywhere.
    Mmsg,
}

impl DatagramBackend {
    /// The backend's name in flags, logs and labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Mmsg => "mmsg",
        }
    }
}

/// What a datagram worker needs to run, besides its responder.
#[derive(Clone, Copy, Debug)]
pub struct DatagramWorker<'a> {
    /// The I/O backend.
    pub backend: DatagramBackend,
    /// The worker's sockets. Bind the sockets of all workers beforehand, in order, on one thread:
    /// steering depends on that order.
    pub sockets: &'a [BoundUdp],
    /// The clock of the process.
    pub clock: &'a Clock,
    /// The worker's own counters.
    pub counters: &'a WorkerCounters,
    /// Ends the worker when set. The worker responds to what it has received, and returns within
    /// 100 ms.
    pub stop: &'a AtomicBool,
}

impl DatagramWorker<'_> {
    /// Serves on the calling thread until `stop` is set. Pin the thread first.
    ///
    /// # Errors
    /// If the backend cannot start (see [`crate::sys::probe`]) or breaks. A fault that a single
    /// datagram can cause is counted instead, see [`IoEvent`].
    pub fn run<R: Responder>(&self, responder: &mut R) -> io::Result<()> {
        self.run_with_pauses(responder, &PauseSignal::default())
    }

    /// As [`Self::run`], but receives nothing while `rest` is requested. A paused worker responds
    /// to what it has received, and keeps every resource that it needs to continue.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_pauses<R: Responder>(
        &self,
        responder: &mut R,
        pause: &PauseSignal,
    ) -> io::Result<()> {
        self.run_with_xdp(responder, pause, &XdpPorts::default())
    }

    /// As [`Self::run_with_pauses`], and serves the AF_XDP sockets that it is given. While it has
    /// any, it serves the others as [`DatagramBackend::Mmsg`] does.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_with_xdp<R: Responder>(
        &self,
        responder: &mut R,
        pause: &PauseSignal,
        ports: &XdpPorts,
    ) -> io::Result<()> {
        match self.backend {
            DatagramBackend::Mmsg => {
                self.alternate(&mut Mmsg::new(self.sockets), responder, pause, ports)
            }
            DatagramBackend::Uring => {
                let options = RingOptions::default();
                let mut host = RingHost::new(&options)?;
                let ring = Ring::start(&mut host, self.sockets, &options)?;
                self.alternate(&mut UringBackend(ring), responder, pause, ports)
            }
        }
    }

    /// Serves on a backend while there are no AF_XDP sockets. It rests while there are, and keeps
    /// what it needs to go on.
    fn alternate(
        &self,
        io: &mut impl DatagramIo,
        responder: &mut impl Responder,
        pause: &PauseSignal,
        ports: &XdpPorts,
    ) -> io::Result<()> {
        let mut held = Vec::new();
        loop {
            ports.apply(&mut held);
            if held.is_empty() {
                self.drive(io, responder, pause, ports)?;
            } else {
                let mut io = XdpBackend::new(self.sockets, std::mem::take(&mut held));
                self.drive(&mut io, responder, pause, ports)?;
                held = io.into_ports();
            }
            if self.is_stopped() {
                // Those that were given last are closed as well: their queues are another's then.
                ports.apply(&mut held);
                return Ok(());
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Serves on a backend until `stop` is set, or AF_XDP sockets are to be replaced.
    pub(super) fn drive(
        &self,
        io: &mut impl DatagramIo,
        responder: &mut impl Responder,
        pause: &PauseSignal,
        ports: &XdpPorts,
    ) -> io::Result<()> {
        let mut meter = Meter::default();
        let is_over = || self.is_stopped() || ports.are_new();
        loop {
            io.receive_again();
            while !is_over() && !pause.is_requested() {
                self.turn(io, responder, &mut meter, WAIT)?;
            }
            self.finish_receiving(io, responder, &mut meter)?;
            if pause.is_requested() {
                pause.enter();
                while pause.is_requested() && !self.is_stopped() {
                    std::thread::sleep(REST_LOOK);
                    meter.turn(self, self.clock.now(), 0);
                }
                pause.leave();
            }
            if is_over() {
                return Ok(());
            }
        }
    }

    /// Responds to all datagrams that have arrived, then stops receiving.
    fn finish_receiving(
        &self,
        io: &mut impl DatagramIo,
        responder: &mut impl Responder,
        meter: &mut Meter,
    ) -> io::Result<()> {
        // Datagrams that wait in the sockets arrived before the stop. The time is bounded: under
        // load more arrive without end, and in a take-over the successor handles the rest.
        let until_ns = self.clock.now().ns() + QUEUED_NS_MAX;
        while self.turn(io, responder, meter, LAST_WAIT)? > 0 && self.clock.now().ns() < until_ns {}
        io.stop_receiving();
        // What was on its way to an AF_XDP socket arrives within a turn.
        let mut quiet_turns = 0;
        for _ in 0..LAST_TURNS_MAX {
            self.turn(io, responder, meter, LAST_WAIT)?;
            quiet_turns = if io.is_quiet() { quiet_turns + 1 } else { 0 };
            if quiet_turns == 2 {
                return Ok(());
            }
        }
        Ok(())
    }

    #[inline]
    fn turn(
        &self,
        io: &mut impl DatagramIo,
        responder: &mut impl Responder,
        meter: &mut Meter,
        wait: Duration,
    ) -> io::Result<usize> {
        let count = io.turn(wait, self.counters)?;
        responder.begin_turn();
        let now = self.clock.now();
        for first in (0..count).step_by(PREFETCHED_MAX) {
            let last = count.min(first + PREFETCHED_MAX);
            serve(io, responder, self.counters, now, first..last);
        }
        responder.upkeep(now);
        if meter.turn(self, now, count) {
            meter.collector.collect_if_requested();
            let fullest_ring = io.inspect_rings(self.counters);
            responder.set_queue(fullest_queue_permille(self.sockets).max(fullest_ring));
        }
        Ok(count)
    }
}

/// How long to wait for datagrams before looking at the stop flag and the clock.
const WAIT: Duration = Duration::from_millis(50);

/// How often a paused worker checks whether to continue.
const REST_LOOK: Duration = Duration::from_millis(1);

/// How long to handle datagrams that wait in the sockets after the stop, in nanoseconds.
const QUEUED_NS_MAX: u64 = 50_000_000;

/// How long to wait for the kernel to confirm that receiving has ended, per turn.
const LAST_WAIT: Duration = Duration::from_millis(1);

/// Most turns after the stop: enough for every buffer of a full ring, and far less than 100 ms.
const LAST_TURNS_MAX: u32 = 20;

/// Most datagrams prefetched together: their cache lines must stay in the first-level cache until
/// they are used.
const PREFETCHED_MAX: usize = 32;

/// A datagram, and room for its response.
pub(crate) struct ReceivedDatagram<'a> {
    /// The sender; `None` if the address is neither IPv4 nor IPv6.
    pub(crate) source: Option<SocketAddr>,
    pub(crate) payload: &'a [u8],
    /// Whether the datagram was longer than the buffer.
    pub(crate) truncated: bool,
    /// Room for the response: at least [`RESPONSE_BYTES_MAX`] bytes.
    pub(crate) out: &'a mut [u8],
}

/// What the loop needs from a backend.
pub(crate) trait DatagramIo {
    /// Submits the queued responses, waits at most `wait`, takes a bounded batch and returns its
    /// size. Counts faults that the worker survives.
    fn turn(&mut self, wait: Duration, counters: &WorkerCounters) -> io::Result<usize>;

    /// The payload of one datagram of the batch.
    fn payload(&self, index: usize) -> &[u8];

    /// One datagram of the batch, with room for its response.
    fn datagram(&mut self, index: usize) -> ReceivedDatagram<'_>;

    /// Queues the response to a datagram, which the caller wrote into the room from
    /// [`Self::datagram`]. False if it cannot be queued and is lost.
    fn respond(&mut self, index: usize, bytes: usize) -> bool;

    /// Receives nothing more, except what has already left the sockets.
    fn stop_receiving(&mut self);

    /// Whether all received datagrams have been handed out, and all responses submitted.
    fn is_quiet(&self) -> bool;

    /// How full the fullest receive ring is that is not a socket's queue, in thousandths. Counts
    /// what the kernel dropped there. Called about a hundred times a second.
    fn inspect_rings(&mut self, _counters: &WorkerCounters) -> u32 {
        0
    }

    /// Begins to receive, at first and after a stop. Needs no resource that the backend has not.
    fn receive_again(&mut self);
}

/// Handles a part of the batch.
#[inline]
fn serve<R: Responder>(
    io: &mut impl DatagramIo,
    responder: &mut R,
    counters: &WorkerCounters,
    now: Now,
    part: std::ops::Range<usize>,
) {
    for stage in 0..R::PREFETCH_STAGES {
        for index in part.clone() {
            responder.prefetch(stage, io.payload(index));
        }
    }
    for index in part {
        let exchange = io.datagram(index);
        let source = exchange.source.map_or(NOWHERE, unmap);
        let bytes = exchange.payload.len();
        let out = &mut exchange.out[..RESPONSE_BYTES_MAX];
        let verdict = if source.port() == 0 {
            Err(Dropped::SourcePortZero)
        } else if exchange.truncated {
            Err(Dropped::Oversized)
        } else {
            responder.handle(now, source, exchange.payload, out)
        };
        counters.count(Family::of(source.ip()), bytes, verdict);
        if !matches!(verdict, Ok(DatagramResponse { refusal: None, not_applied: None, .. })) {
            responder.unserved(now, source, exchange.payload, &verdict);
        }
        if let Ok(answered) = verdict
            && !io.respond(index, answered.bytes)
        {
            counters.io_event(IoEvent::SendQueueFull).add(1);
        }
    }
}

/// Source of a datagram to which no response can be sent.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Measurements of the worker itself.
#[derive(Default)]
struct Meter {
    turns: u64,
    cpu_read_at: Option<Now>,
    cpu_ns: u64,
    /// Returns memory to the system that other threads freed.
    collector: Collector,
}

impl Meter {
    /// One turn of this many is timed.
    const SAMPLED: u64 = 64;

    /// Least time between two readings that need a system call (CPU time, queue fill), in
    /// nanoseconds.
    const CALLS_EVERY_NS: u64 = 10_000_000;

    /// Records a turn. True if it is time to read how full the queues are.
    #[inline]
    fn turn(&mut self, worker: &DatagramWorker<'_>, now: Now, count: usize) -> bool {
        let counters = worker.counters;
        self.turns += 1;
        counters.turns.add(1);
        let elapsed_ns = worker.clock.elapsed_ns_at(now);
        counters.elapsed_ns.add(elapsed_ns.saturating_sub(counters.elapsed_ns.get()));
        if count > 0 && self.turns.is_multiple_of(Self::SAMPLED) {
            counters.handling.record(worker.clock.now().ns_since(now));
        }
        if self.cpu_read_at.is_some_and(|it| now.ns_since(it) < Self::CALLS_EVERY_NS) {
            return false;
        }
        let cpu_ns = thread_cpu_ns();
        counters.busy_ns.add(cpu_ns.saturating_sub(self.cpu_ns));
        (self.cpu_ns, self.cpu_read_at) = (cpu_ns, Some(now));
        true
    }
}

/// How full the fullest receive queue is, in thousandths. A queue that cannot be read counts as
/// empty.
#[cold]
fn fullest_queue_permille(sockets: &[BoundUdp]) -> u32 {
    let fill = |udp: &BoundUdp| {
        let memory = udp.memory().ok()?;
        memory.queued_bytes.saturating_mul(1000).checked_div(memory.limit_bytes)
    };
    let fullest = sockets.iter().filter_map(fill).max().unwrap_or(0);
    u32::try_from(fullest).unwrap_or(u32::MAX)
}

/// The event under which a send's errno is counted.
pub(crate) fn send_event(errno: Option<i32>) -> IoEvent {
    match errno {
        Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM) => IoEvent::SendQueueFull,
        Some(libc::EPERM | libc::EACCES) => IoEvent::SendRefused,
        Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::ENETDOWN | libc::EHOSTDOWN) => {
            IoEvent::SendUnreachable
        }
        _ => IoEvent::SendFailed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Action;

    /// A backend that hands out one batch once, and has room for some of the responses.
    struct Script {
        batch: Vec<(Option<SocketAddr>, Vec<u8>, bool)>,
        room: usize,
        responses: Vec<(usize, usize)>,
        out: Vec<u8>,
    }

    impl DatagramIo for Script {
        fn turn(&mut self, _wait: Duration, _counters: &WorkerCounters) -> io::Result<usize> {
            Ok(self.batch.len())
        }

        fn payload(&self, index: usize) -> &[u8] {
            &self.batch[index].1
        }

        fn datagram(&mut self, index: usize) -> ReceivedDatagram<'_> {
            let (source, payload, truncated) = &self.batch[index];
            let (source, truncated) = (*source, *truncated);
            ReceivedDatagram { source, payload, truncated, out: &mut self.out }
        }

        fn respond(&mut self, index: usize, bytes: usize) -> bool {
            self.responses.push((index, bytes));
            self.responses.len() <= self.room
        }

        fn stop_receiving(&mut self) {}

        fn is_quiet(&self) -> bool {
            true
        }

        fn receive_again(&mut self) {}
    }

    /// Records its calls, in order.
    #[derive(Default)]
    struct Notes {
        prefetched: Vec<(usize, u8)>,
        handled: Vec<(SocketAddr, u8)>,
        prefetched_ahead_max: usize,
        unserved: usize,
        upkeeps: usize,
        queues: usize,
    }

    impl Responder for Notes {
        const PREFETCH_STAGES: usize = 2;

        fn prefetch(&mut self, stage: usize, datagram: &[u8]) {
            self.prefetched.push((stage, datagram[0]));
        }

        fn handle(
            &mut self,
            _now: Now,
            source: SocketAddr,
            datagram: &[u8],
            out: &mut [u8],
        ) -> Result<DatagramResponse, Dropped> {
            let ahead = self.prefetched.len() / 2 - self.handled.len();
            self.prefetched_ahead_max = self.prefetched_ahead_max.max(ahead);
            self.handled.push((source, datagram[0]));
            assert_eq!(out.len(), RESPONSE_BYTES_MAX);
            Ok(DatagramResponse::served(Action::Connect, 16))
        }

        fn unserved(
            &mut self,
            _now: Now,
            _source: SocketAddr,
            _datagram: &[u8],
            verdict: &Result<DatagramResponse, Dropped>,
        ) {
            assert!(verdict.is_err());
            self.unserved += 1;
        }

        fn upkeep(&mut self, _now: Now) {
            self.upkeeps += 1;
        }

        fn set_queue(&mut self, queue_permille: u32) {
            assert_eq!(queue_permille, 0, "there is no socket");
            self.queues += 1;
        }
    }

    fn one_turn(script: &mut Script) -> (Notes, WorkerCounters) {
        let (mut notes, counters) = (Notes::default(), WorkerCounters::default());
        let (clock, stop) = (Clock::start(), AtomicBool::new(false));
        let worker = DatagramWorker {
            backend: DatagramBackend::Mmsg,
            sockets: &[],
            clock: &clock,
            counters: &counters,
            stop: &stop,
        };
        worker.turn(script, &mut notes, &mut Meter::default(), Duration::ZERO).unwrap();
        (notes, counters)
    }

    fn script(batch: Vec<(Option<SocketAddr>, Vec<u8>, bool)>, room: usize) -> Script {
        Script { batch, room, responses: Vec::new(), out: vec![0; 2048] }
    }

    #[test]
    fn each_is_prefetched_shortly_before_it_is_handled() {
        let source: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let batch = (0..100).map(|byte| (Some(source), vec![byte], false)).collect();
        let mut script = script(batch, 100);
        let (notes, counters) = one_turn(&mut script);
        assert!(notes.handled.iter().map(|it| it.1).eq(0..100));
        assert!(notes.prefetched_ahead_max <= PREFETCHED_MAX);
        for stage in 0..2 {
            let seen = notes.prefetched.iter().filter(|it| it.0 == stage).map(|it| it.1);
            assert!(seen.eq(0..100));
        }
        assert_eq!((notes.upkeeps, notes.queues, counters.turns.get()), (1, 1, 1));
        assert_eq!(notes.unserved, 0);
        assert!(script.responses.iter().copied().eq((0..100).map(|index| (index, 16))));
    }

    #[test]
    fn the_hopeless_is_dropped_and_counted_and_mapped_sources_are_ipv4() {
        let at = |text: &str| Some(text.parse::<SocketAddr>().unwrap());
        let batch = vec![
            (at("192.0.2.1:0"), vec![1], false),
            (None, vec![2], false),
            (at("[2001:db8::1]:9"), vec![3; 2048], true),
            (at("[::ffff:192.0.2.7]:9"), vec![4], false),
        ];
        let (notes, counters) = one_turn(&mut script(batch, 4));
        assert_eq!(notes.handled, [("192.0.2.7:9".parse().unwrap(), 4)]);
        assert_eq!(notes.unserved, 3);
        let [v4, v6] = Family::ALL.map(|it| counters.datagrams(it));
        assert_eq!((v4.received.get(), v6.received.get(), v6.received_bytes.get()), (3, 1, 2048));
        assert_eq!(v4.dropped[Dropped::SourcePortZero as usize].get(), 2);
        assert_eq!(v6.dropped[Dropped::Oversized as usize].get(), 1);
        assert_eq!(v4.answered[Action::Connect as usize].get(), 1);
    }

    #[test]
    fn answers_that_find_no_room_are_counted() {
        let source: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let batch = vec![(Some(source), vec![0], false); 5];
        let (_, counters) = one_turn(&mut script(batch, 3));
        assert_eq!(counters.io_event(IoEvent::SendQueueFull).get(), 2);
        assert_eq!(counters.datagrams(Family::V4).received.get(), 5);
    }

    #[test]
    fn errors_of_sends_are_told_apart() {
        let expected = [
            (libc::EAGAIN, IoEvent::SendQueueFull),
            (libc::ENOBUFS, IoEvent::SendQueueFull),
            (libc::EPERM, IoEvent::SendRefused),
            (libc::ENETUNREACH, IoEvent::SendUnreachable),
            (libc::EINVAL, IoEvent::SendFailed),
            (libc::EMSGSIZE, IoEvent::SendFailed),
        ];
        for (errno, event) in expected {
            assert_eq!(send_event(Some(errno)), event);
        }
    }
}
