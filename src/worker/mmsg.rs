//! The recvmmsg/sendmmsg backend of the datagram worker.
//!
//! Each turn serves one socket's batch. Sockets that are ready take turns, one batch each, before
//! the next `poll`, so that none can starve another.

use std::io;
use std::time::Duration;

use crate::counters::{IoEvent, WorkerCounters};
use crate::sys::mmsg::{BATCH, ReceiveBatch, SendBatch};
use crate::sys::readiness::Readiness;
use crate::sys::socket::BoundUdp;
use crate::worker::datagram::{DatagramIo, ReceivedDatagram, send_event};

/// Sockets, with one receive batch and one send batch that they share.
pub(super) struct Batches<'a> {
    sockets: &'a [BoundUdp],
    /// The socket of the current batch.
    current: usize,
    received: ReceiveBatch,
    responses: SendBatch,
}

impl<'a> Batches<'a> {
    pub(super) fn new(sockets: &'a [BoundUdp]) -> Self {
        let (received, responses) = (ReceiveBatch::new(BATCH), SendBatch::new(BATCH));
        Self { sockets, current: 0, received, responses }
    }

    /// Sends the responses to the current batch.
    #[inline]
    pub(super) fn flush(&mut self, counters: &WorkerCounters) {
        if !self.responses.is_empty() {
            self.responses.flush(&self.sockets[self.current], |error| {
                counters.io_event(send_event(error.raw_os_error())).add(1);
            });
        }
    }

    /// Takes the next batch of a socket, after the responses to the former one were sent, and
    /// returns its size.
    #[inline]
    pub(super) fn receive(&mut self, socket: usize, counters: &WorkerCounters) -> usize {
        self.current = socket;
        match self.received.receive(&self.sockets[socket]) {
            Ok(count) => count,
            // Only this worker reads the socket, but the kernel drops a datagram with a bad
            // checksum only at the receive call.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(_) => {
                counters.io_event(IoEvent::ReceiveFailed).add(1);
                0
            }
        }
    }

    #[inline]
    pub(super) fn payload(&self, index: usize) -> &[u8] {
        self.received.get(index).payload
    }

    #[inline]
    pub(super) fn datagram(&mut self, index: usize) -> ReceivedDatagram<'_> {
        let received = self.received.get(index);
        let room = "a batch of responses is as long as a batch of requests";
        ReceivedDatagram {
            source: received.source.to_socket_addr(),
            payload: received.payload,
            truncated: received.truncated,
            out: self.responses.next_payload().expect(room),
        }
    }

    #[inline]
    pub(super) fn respond(&mut self, index: usize, bytes: usize) {
        let received = self.received.get(index);
        self.responses.push(bytes, received.source, received.local);
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.responses.is_empty()
    }
}

/// The next descriptor with something to read, of those that `readiness` watches.
pub(super) fn next_ready(readiness: &mut Readiness, wait: Duration) -> io::Result<Option<usize>> {
    if let Some(ready) = readiness.next() {
        return Ok(Some(ready));
    }
    match readiness.wait(wait) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(readiness.next()),
    }
}

/// Sockets alone.
pub(crate) struct Mmsg<'a> {
    batches: Batches<'a>,
    readiness: Readiness,
    stopping: bool,
}

impl<'a> Mmsg<'a> {
    pub(crate) fn new(sockets: &'a [BoundUdp]) -> Self {
        let readiness = Readiness::new(sockets);
        Self { batches: Batches::new(sockets), readiness, stopping: false }
    }
}

impl DatagramIo for Mmsg<'_> {
    #[inline]
    fn turn(&mut self, wait: Duration, counters: &WorkerCounters) -> io::Result<usize> {
        self.batches.flush(counters);
        if self.stopping {
            return Ok(0);
        }
        let ready = next_ready(&mut self.readiness, wait)?;
        Ok(ready.map_or(0, |socket| self.batches.receive(socket, counters)))
    }

    #[inline]
    fn payload(&self, index: usize) -> &[u8] {
        self.batches.payload(index)
    }

    #[inline]
    fn datagram(&mut self, index: usize) -> ReceivedDatagram<'_> {
        self.batches.datagram(index)
    }

    #[inline]
    fn respond(&mut self, index: usize, bytes: usize) -> bool {
        self.batches.respond(index, bytes);
        true
    }

    fn stop_receiving(&mut self) {
        self.stopping = true;
    }

    fn is_quiet(&self) -> bool {
        self.batches.is_flushed()
    }

    fn receive_again(&mut self) {
        self.stopping = false;
    }
}
