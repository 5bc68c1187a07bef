//! Batches of datagrams through `recvmmsg` and `sendmmsg`: one system call for up to 64.
//!
//! All memory is allocated at construction, none per datagram. A batch is not bound to a socket, so
//! one pair is enough for all sockets of a worker or of a load generator.
#![expect(unsafe_code, reason = "two system calls, and headers that hold pointers")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr;

use super::address::{ADDRESS_V6_BYTES, CONTROL_BYTES, LocalAddress, RawAddress};
pub use super::buffers::DATAGRAM_BYTES_MAX;
use super::buffers::Datagrams;

/// Datagrams per system call. A larger batch would save little per datagram, and delay the clock,
/// which is read once per batch.
pub const BATCH: usize = 64;

/// A datagram that was received.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The sender; [`RawAddress::NONE`] for a batch without sources.
    pub source: &'a RawAddress,
    /// The host's address that it was sent to, if the socket reports that.
    pub local: Option<LocalAddress>,
    /// The payload.
    pub payload: &'a [u8],
    /// Whether it was longer than [`DATAGRAM_BYTES_MAX`] and is truncated.
    pub truncated: bool,
}

/// Room for one batch of received datagrams.
pub struct ReceiveBatch {
    datagrams: Datagrams,
    received: usize,
}

impl ReceiveBatch {
    /// A batch without datagrams.
    pub fn new(capacity: usize) -> Self {
        let mut batch = Self { datagrams: Datagrams::new(capacity), received: capacity };
        batch.clear();
        batch
    }

    /// Takes what the socket holds, without waiting, and returns the number of datagrams. They
    /// replace the previous content of the batch.
    ///
    /// # Errors
    /// `WouldBlock` if the socket holds nothing; other errors of `recvmmsg`, e.g. a pending ICMP
    /// error (`ConnectionRefused`) on a connected socket: call again.
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        self.clear();
        let count = u32::try_from(self.capacity()).unwrap_or(u32::MAX);
        let headers = self.datagrams.headers.pointer(0).as_ptr();
        let fd = socket.as_fd().as_raw_fd();
        let flags = libc::MSG_DONTWAIT as _;
        // SAFETY: `count` headers are at `headers`; each points at memory of a live slot with its
        // true length, and `&mut self` rules out any other access during the call.
        let result = unsafe { libc::recvmmsg(fd, headers, count, flags, ptr::null_mut()) };
        self.received = usize::try_from(result).map_err(|_| io::Error::last_os_error())?;
        for index in 0..self.received {
            let length = self.datagrams.headers.get(index).msg_hdr.msg_namelen;
            self.datagrams.slots.get_mut(index).address.length = length;
        }
        Ok(self.received)
    }

    /// Number of datagrams in the batch.
    pub fn len(&self) -> usize {
        self.received
    }

    /// Whether the batch holds no datagrams.
    pub fn is_empty(&self) -> bool {
        self.received == 0
    }

    /// Most datagrams of a batch. After a full batch, the socket probably holds more.
    pub fn capacity(&self) -> usize {
        self.datagrams.capacity()
    }

    /// One datagram of the batch.
    ///
    /// # Panics
    /// If `index` is not below [`Self::len`].
    #[inline]
    pub fn get(&self, index: usize) -> Received<'_> {
        assert!(index < self.received, "datagram {index} of {}", self.received);
        let header = self.datagrams.headers.get(index);
        let slot = self.datagrams.slots.get(index);
        let control = slot.control.get(..header.msg_hdr.msg_controllen as _).unwrap_or_default();
        let bytes = (header.msg_len as usize).min(DATAGRAM_BYTES_MAX);
        Received {
            source: &slot.address,
            local: LocalAddress::parse(control),
            payload: &slot.payload[..bytes],
            truncated: header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        }
    }

    /// The datagrams of the batch, in the order of their arrival.
    pub fn iter(&self) -> impl Iterator<Item = Received<'_>> {
        (0..self.received).map(|index| self.get(index))
    }

    /// Resets the headers that the kernel has used to their full room.
    fn clear(&mut self) {
        for index in 0..self.received {
            let header = &mut self.datagrams.headers.get_mut(index).msg_hdr;
            header.msg_namelen = ADDRESS_V6_BYTES;
            header.msg_controllen = CONTROL_BYTES as _;
            header.msg_flags = 0;
        }
        self.received = 0;
    }
}

/// Datagrams to be sent by one system call.
pub struct SendBatch {
    datagrams: Datagrams,
    queued: usize,
}

impl SendBatch {
    /// Room for `capacity` datagrams of up to [`DATAGRAM_BYTES_MAX`] bytes each.
    pub fn new(capacity: usize) -> Self {
        Self { datagrams: Datagrams::new(capacity), queued: 0 }
    }

    /// Number of queued datagrams.
    pub fn len(&self) -> usize {
        self.queued
    }

    /// Whether no datagram is queued.
    pub fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// Most datagrams that can be queued.
    pub fn capacity(&self) -> usize {
        self.datagrams.capacity()
    }

    /// The buffer of the next datagram, with content of earlier ones; `None` if the batch is full.
    /// Nothing is queued before [`Self::push`].
    #[inline]
    pub fn next_payload(&mut self) -> Option<&mut [u8; DATAGRAM_BYTES_MAX]> {
        (self.queued < self.capacity())
            .then(|| &mut self.datagrams.slots.get_mut(self.queued).payload)
    }

    /// Queues the datagram whose first `bytes` bytes are in [`Self::next_payload`].
    ///
    /// `target` is the destination ([`RawAddress::NONE`] on a connected socket). `local` is the
    /// host's address that it must leave from, if that is not the socket's own.
    ///
    /// # Panics
    /// If the batch is full or `bytes` exceeds [`DATAGRAM_BYTES_MAX`].
    #[inline]
    pub fn push(&mut self, bytes: usize, target: &RawAddress, local: Option<LocalAddress>) {
        self.datagrams.prepare_send(self.queued, bytes, target, local);
        self.queued += 1;
    }

    /// Sends all queued datagrams, without waiting, and returns how many the kernel took. The batch
    /// is empty afterwards. `failed` is called with the error of each datagram that was not sent.
    /// Once the send buffer is full (`WouldBlock`), all further datagrams fail.
    pub fn flush(&mut self, socket: impl AsFd, mut failed: impl FnMut(io::Error)) -> usize {
        let (mut done, mut sent) = (0, 0);
        while done < self.queued {
            match self.send_from(done, &socket) {
                Ok(count) => {
                    done += count;
                    sent += count;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let full = || io::Error::from_raw_os_error(libc::EAGAIN);
                    (done..self.queued).for_each(|_| failed(full()));
                    done = self.queued;
                }
                // The call stops before the datagram that failed, and returns its error only if
                // that datagram is the first.
                Err(error) => {
                    failed(error);
                    done += 1;
                }
            }
        }
        self.queued = 0;
        sent
    }

    /// One `sendmmsg` for the datagrams from `first` on.
    fn send_from(&mut self, first: usize, socket: &impl AsFd) -> io::Result<usize> {
        let headers = self.datagrams.headers.pointer(first).as_ptr();
        let count = u32::try_from(self.queued - first).unwrap_or(u32::MAX);
        let fd = socket.as_fd().as_raw_fd();
        let flags = libc::MSG_DONTWAIT as _;
        // SAFETY: `count` headers are there; each points at memory of a live slot with its true
        // length, and `&mut self` rules out any other access during the call.
        let result = unsafe { libc::sendmmsg(fd, headers, count, flags) };
        usize::try_from(result).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn pair() -> (UdpSocket, UdpSocket) {
        let one = UdpSocket::bind("127.0.0.1:0").unwrap();
        let two = UdpSocket::bind("127.0.0.1:0").unwrap();
        (one, two)
    }

    #[test]
    fn a_batch_arrives_in_order_with_its_sources() {
        let (client, server) = pair();
        let target = RawAddress::from(server.local_addr().unwrap());
        let mut out = SendBatch::new(4);
        for byte in 0..4_u8 {
            out.next_payload().unwrap()[..2].copy_from_slice(&[byte, byte]);
            out.push(2, &target, None);
        }
        assert!(out.next_payload().is_none());
        assert_eq!(out.flush(&client, |error| panic!("{error}")), 4);
        assert!(out.is_empty());

        let mut batch = ReceiveBatch::new(8);
        assert_eq!(batch.receive(&server).unwrap(), 4);
        for (byte, received) in (0..4_u8).zip(batch.iter()) {
            assert_eq!(received.payload, [byte, byte]);
            assert_eq!(received.source.to_socket_addr(), Some(client.local_addr().unwrap()));
            assert_eq!((received.local, received.truncated), (None, false));
        }
        let error = batch.receive(&server).unwrap_err();
        assert_eq!((error.kind(), batch.len()), (io::ErrorKind::WouldBlock, 0));
    }

    #[test]
    fn a_connected_socket_sends_without_an_address() {
        let (client, server) = pair();
        client.connect(server.local_addr().unwrap()).unwrap();
        let mut out = SendBatch::new(1);
        out.push(0, &RawAddress::NONE, None);
        assert_eq!(out.flush(&client, |error| panic!("{error}")), 1);
        let mut batch = ReceiveBatch::new(2);
        assert_eq!(batch.receive(&server).unwrap(), 1);
        assert!(batch.get(0).payload.is_empty());
        assert_eq!(batch.get(0).source.to_socket_addr(), client.local_addr().ok());
    }

    #[test]
    fn one_datagram_that_fails_does_not_stop_the_others() {
        let (client, server) = pair();
        let good = RawAddress::from(server.local_addr().unwrap());
        let bad = RawAddress::from("[::1]:9".parse::<std::net::SocketAddr>().unwrap());
        let mut out = SendBatch::new(3);
        for target in [&good, &bad, &good] {
            out.push(1, target, None);
        }
        let mut failures = Vec::new();
        assert_eq!(out.flush(&client, |error| failures.push(error.raw_os_error())), 2);
        assert_eq!(failures, [Some(libc::EAFNOSUPPORT)]);
    }

    #[test]
    fn a_datagram_too_long_arrives_cut_and_says_so() {
        let (client, server) = pair();
        let target = server.local_addr().unwrap();
        client.send_to(&[7; DATAGRAM_BYTES_MAX], target).unwrap();
        client.send_to(&[7; DATAGRAM_BYTES_MAX + 1], target).unwrap();
        let mut batch = ReceiveBatch::new(2);
        assert_eq!(batch.receive(&server).unwrap(), 2);
        let lengths = batch.iter().map(|it| (it.payload.len(), it.truncated));
        let expected = [(DATAGRAM_BYTES_MAX, false), (DATAGRAM_BYTES_MAX, true)];
        assert_eq!(lengths.collect::<Vec<_>>(), expected);
    }
}
