//! The io_uring backend of the datagram worker: maps the ring's events to counters.

use std::io;
use std::time::Duration;

use crate::counters::{IoEvent, WorkerCounters};
use crate::sys::ring::{Kernel, Ring, RingEvent};
use crate::worker::datagram::{DatagramIo, ReceivedDatagram, send_event};

/// A ring that runs.
pub(crate) struct UringBackend<K: Kernel>(pub(crate) Ring<K>);

impl<K: Kernel> DatagramIo for UringBackend<K> {
    #[inline]
    fn turn(&mut self, wait: Duration, counters: &WorkerCounters) -> io::Result<usize> {
        self.0.turn(wait, |event| {
            let event = match event {
                RingEvent::ReceiveEnded => IoEvent::ReceiveRearmed,
                RingEvent::ReceiveFailed(libc::ENOBUFS) => IoEvent::BuffersExhausted,
                RingEvent::ReceiveFailed(_) => IoEvent::ReceiveFailed,
                RingEvent::SendFailed(errno) => send_event(Some(errno)),
                RingEvent::CompletionOverflow => IoEvent::CompletionOverflow,
            };
            counters.io_event(event).add(1);
        })
    }

    #[inline]
    fn payload(&self, index: usize) -> &[u8] {
        self.0.payload(index)
    }

    #[inline]
    fn datagram(&mut self, index: usize) -> ReceivedDatagram<'_> {
        let datagram = self.0.datagram(index);
        ReceivedDatagram {
            source: datagram.source.to_socket_addr(),
            payload: datagram.payload,
            truncated: datagram.truncated,
            out: datagram.out,
        }
    }

    #[inline]
    fn respond(&mut self, index: usize, bytes: usize) -> bool {
        self.0.respond(index, bytes)
    }

    fn stop_receiving(&mut self) {
        self.0.stop_receiving();
    }

    fn is_quiet(&self) -> bool {
        self.0.is_quiet()
    }

    fn receive_again(&mut self) {
        self.0.receive_again();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::pause_signal::PauseSignal;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};

    use crate::sys::clock::Clock;
    use crate::sys::ring::double::{Double, Faults, SEND_ERRORS};
    use crate::sys::ring_host::RingOptions;
    use crate::time::Now;
    use crate::types::{Action, DatagramResponse, Dropped, Family};
    use crate::worker::Responder;
    use crate::worker::datagram::{DatagramBackend, DatagramWorker};
    use crate::worker::xdp::XdpPorts;

    /// Sends every datagram back, and ends the worker after the last.
    struct Echo<'a> {
        awaited: usize,
        stop: &'a AtomicBool,
    }

    impl Responder for Echo<'_> {
        const PREFETCH_STAGES: usize = 0;

        fn prefetch(&mut self, _stage: usize, _datagram: &[u8]) {}

        fn handle(
            &mut self,
            _now: Now,
            _source: SocketAddr,
            datagram: &[u8],
            out: &mut [u8],
        ) -> Result<DatagramResponse, Dropped> {
            self.awaited -= 1;
            self.stop.store(self.awaited == 0, Ordering::Relaxed);
            out[..datagram.len()].copy_from_slice(datagram);
            Ok(DatagramResponse::served(Action::Connect, datagram.len()))
        }

        fn upkeep(&mut self, _now: Now) {}

        fn set_queue(&mut self, _queue_permille: u32) {}
    }

    const OPTIONS: RingOptions = RingOptions { buffers: 64, submissions: 32, completions: 48 };

    /// Runs a worker on a simulated kernel that received `count` datagrams.
    fn work(
        mut double: Double,
        count: usize,
    ) -> (io::Result<()>, WorkerCounters, UringBackend<Double>) {
        for number in 0..count {
            let source = SocketAddr::from(([192, 0, 2, 1], 2000));
            double.deliver(number % 2, source, number.to_be_bytes().to_vec());
        }
        let (clock, stop) = (Clock::start(), AtomicBool::new(false));
        let counters = WorkerCounters::default();
        let worker = DatagramWorker {
            backend: DatagramBackend::Uring,
            sockets: &[],
            clock: &clock,
            counters: &counters,
            stop: &stop,
        };
        let mut io = UringBackend(Ring::on(double, [false, false].into_iter(), OPTIONS.buffers));
        let mut echo = Echo { awaited: count, stop: &stop };
        let result =
            worker.drive(&mut io, &mut echo, &PauseSignal::default(), &XdpPorts::default());
        (result, counters, io)
    }

    #[test]
    fn what_goes_wrong_is_counted_under_its_name_and_the_worker_goes_on() {
        const COUNT: usize = 20_000;
        let faults = Faults {
            ends_permille: 20,
            cancelled_permille: 20,
            receive_fails_permille: 20,
            enter_fails_permille: 20,
            takes_part_permille: 20,
            send_fails_permille: 100,
        };
        let (result, counters, mut io) = work(Double::new(5, 2, &OPTIONS, faults), COUNT);
        result.unwrap();
        assert_eq!(counters.datagrams(Family::V4).received.get(), COUNT as u64);
        let kernel = io.0.kernel();
        assert_eq!(kernel.receiving(), 0, "all receives have ended");
        let told = |event| counters.io_event(event).get();
        let mut failed = 0;
        for event in [IoEvent::SendRefused, IoEvent::SendUnreachable, IoEvent::SendFailed] {
            let pairs = SEND_ERRORS.into_iter().zip(kernel.send_failures);
            let its = pairs.filter(|(errno, _)| send_event(Some(*errno)) == event);
            let count: u64 = its.map(|(_, count)| count).sum();
            assert!(count > 0);
            assert_eq!(told(event), count, "{event:?}");
            failed += count;
        }
        // Some of these are the kernel's, and some found no room in the worker's own queue.
        failed += told(IoEvent::SendQueueFull);
        assert_eq!(kernel.sent.len() as u64 + failed, COUNT as u64);
        for event in [IoEvent::ReceiveRearmed, IoEvent::ReceiveFailed, IoEvent::CompletionOverflow]
        {
            assert!(told(event) > 0, "{event:?}");
        }
    }

    #[test]
    fn a_worker_whose_ring_breaks_ends_with_the_reason() {
        let mut double = Double::new(5, 2, &OPTIONS, Faults::default());
        double.breaks_with = Some(libc::EBADF);
        let (result, counters, _) = work(double, 10);
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(counters.datagrams(Family::V4).received.get(), 0);
    }
}
