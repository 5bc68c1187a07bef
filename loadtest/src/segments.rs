//! Many datagrams of one length to one destination by a single `sendmsg`: UDP segmentation offload
//! (`UDP_SEGMENT`, Linux 4.18). The receiver gets ordinary datagrams. For the sender, routing,
//! queueing and the network stack cost once per batch instead of once per datagram.
//!
//! The load tester must be faster than a server, which cannot benefit from this: its responses go
//! to many clients and differ in length.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd};

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// The kernel's own bound on segments per call (`UDP_MAX_SEGMENTS`) in its oldest version.
pub(crate) const SEGMENTS_MAX: usize = 64;

/// Datagrams of one length, to be sent together.
pub(crate) struct SegmentedBatch {
    bytes: Vec<u8>,
    segment_bytes: u16,
    queued: usize,
}

impl SegmentedBatch {
    /// Room for [`SEGMENTS_MAX`] datagrams of `segment_bytes` each, at most 1000.
    ///
    /// # Panics
    /// If `segment_bytes` is 0 or above 1000: a batch must fit one IP packet of 65 535 bytes.
    pub(crate) fn new(segment_bytes: u16) -> Self {
        assert!((1..=1000).contains(&segment_bytes), "{segment_bytes} bytes make no segment");
        let bytes = vec![0; usize::from(segment_bytes) * SEGMENTS_MAX];
        Self { bytes, segment_bytes, queued: 0 }
    }

    /// Number of queued datagrams.
    pub(crate) fn len(&self) -> usize {
        self.queued
    }

    /// Whether no datagram is queued.
    pub(crate) fn is_empty(&self) -> bool {
        self.queued == 0
    }

    /// The buffer of the next datagram, exactly as long as the datagram; `None` if the batch is
    /// full. Nothing is queued before [`Self::push`].
    #[inline]
    pub(crate) fn next_payload(&mut self) -> Option<&mut [u8]> {
        self.bytes.chunks_exact_mut(self.segment_bytes.into()).nth(self.queued)
    }

    /// Queues the datagram in [`Self::next_payload`].
    ///
    /// # Panics
    /// If the batch is full.
    #[inline]
    pub(crate) fn push(&mut self) {
        assert!(self.queued < SEGMENTS_MAX, "the batch is full");
        self.queued += 1;
    }

    /// The queued datagrams.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.bytes.chunks_exact(self.segment_bytes.into()).take(self.queued)
    }

    /// Removes the queued datagrams.
    pub(crate) fn clear(&mut self) {
        self.queued = 0;
    }

    /// Sends all queued datagrams over a connected socket, by one system call: all of them or none.
    /// They stay queued until [`Self::clear`].
    ///
    /// # Errors
    /// Errors of the system call: `EIO` if the network device does not support checksums, `EINVAL`
    /// if the kernel is too old; all errors of an ordinary send.
    pub(crate) fn send(&self, socket: impl AsFd) -> io::Result<()> {
        if self.queued == 0 {
            return Ok(());
        }
        let bytes = &self.bytes[..self.queued * usize::from(self.segment_bytes)];
        let segments = [ControlMessage::UdpGsoSegments(&self.segment_bytes)];
        let control = if self.queued > 1 { &segments[..] } else { &[] };
        let (fd, parts) = (socket.as_fd().as_raw_fd(), [IoSlice::new(bytes)]);
        sendmsg::<()>(fd, &parts, control, MsgFlags::MSG_DONTWAIT, None)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn segments_arrive_as_datagrams_in_order() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.connect(server.local_addr().unwrap()).unwrap();
        let mut batch = SegmentedBatch::new(98);
        for count in [1, 2, SEGMENTS_MAX] {
            for number in 0..count {
                let payload = batch.next_payload().unwrap();
                payload.fill(u8::try_from(number).unwrap());
                batch.push();
            }
            assert_eq!(batch.next_payload().is_none(), count == SEGMENTS_MAX);
            if let Err(error) = batch.send(&client) {
                println!("skipped: no UDP segmentation here: {error}");
                return;
            }
            for sent in batch.iter() {
                let mut received = [0; 200];
                let bytes = server.recv(&mut received).unwrap();
                assert_eq!(&received[..bytes], sent);
            }
            batch.clear();
            assert!(batch.is_empty() && batch.send(&client).is_ok());
        }
    }
}
