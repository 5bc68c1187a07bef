//! The io_uring backend of the datagram worker: names the ring's events as counters know them.

use std::io;
use std::time::Duration;

use crate::metrics::{IoEvent, WorkerCounters};
use crate::sys::ring::{Ring, RingEvent};
use crate::worker::datagram::{DatagramIo, Exchange, send_event};

/// A ring at work.
pub(crate) struct Uring<'r>(pub(crate) Ring<'r>);

impl DatagramIo for Uring<'_> {
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
    fn exchange(&mut self, index: usize) -> Exchange<'_> {
        let it = self.0.exchange(index);
        Exchange {
            source: it.source.to_socket_addr(),
            payload: it.payload,
            truncated: it.truncated,
            out: it.out,
        }
    }

    #[inline]
    fn reply(&mut self, index: usize, bytes: usize) -> bool {
        self.0.reply(index, bytes)
    }

    fn stop_receiving(&mut self) {
        self.0.stop_receiving();
    }

    fn is_quiet(&self) -> bool {
        self.0.is_quiet()
    }
}
