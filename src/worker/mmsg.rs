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
pub(crate) struct Mmsg<'a> {
    sockets: &'a [BoundUdp],
    readiness: Readiness,
    /// The socket of the current batch.
    current: usize,
    received: ReceiveBatch,
    responses: SendBatch,
    stopping: bool,
}

impl<'a> Mmsg<'a> {
    pub(crate) fn new(sockets: &'a [BoundUdp]) -> Self {
        Self {
            sockets,
            readiness: Readiness::new(sockets),
            current: 0,
            received: ReceiveBatch::new(BATCH),
            responses: SendBatch::new(BATCH),
            stopping: false,
        }
    }

    /// The next socket with something to read.
    fn next_ready(&mut self, wait: Duration) -> io::Result<Option<usize>> {
        if let Some(ready) = self.readiness.next() {
            return Ok(Some(ready));
        }
        match self.readiness.wait(wait) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
            _ => Ok(self.readiness.next()),
        }
    }
}

impl DatagramIo for Mmsg<'_> {
    #[inline]
    fn turn(&mut self, wait: Duration, counters: &WorkerCounters) -> io::Result<usize> {
        if !self.responses.is_empty() {
            self.responses.flush(&self.sockets[self.current], |error| {
                counters.io_event(send_event(error.raw_os_error())).add(1);
            });
        }
        if self.stopping {
            return Ok(0);
        }
        let Some(ready) = self.next_ready(wait)? else { return Ok(0) };
        self.current = ready;
        match self.received.receive(&self.sockets[ready]) {
            Ok(count) => Ok(count),
            // Only this worker reads the socket, but the kernel drops a datagram with a bad
            // checksum only at the receive call.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(_) => {
                counters.io_event(IoEvent::ReceiveFailed).add(1);
                Ok(0)
            }
        }
    }

    #[inline]
    fn payload(&self, index: usize) -> &[u8] {
        self.received.get(index).payload
    }

    #[inline]
    fn datagram(&mut self, index: usize) -> ReceivedDatagram<'_> {
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
    fn respond(&mut self, index: usize, bytes: usize) -> bool {
        let received = self.received.get(index);
        self.responses.push(bytes, received.source, received.local);
        true
    }

    fn stop_receiving(&mut self) {
        self.stopping = true;
    }

    fn is_quiet(&self) -> bool {
        self.responses.is_empty()
    }

    fn receive_again(&mut self) {
        self.stopping = false;
    }
}
