//! Waits for sockets with `poll`, for the backend without a ring.
//!
//! Not `epoll`, on purpose: an epoll set stays in each socket's wait queue, so the kernel wakes it
//! for every response that leaves, while `poll` is in the queue only while it waits. The
//! measurement is in docs/decisions/0001-poll-not-epoll.md. With a handful of sockets, it outweighs
//! the longer call.
#![expect(unsafe_code, reason = "one system call")]

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

/// A set of descriptors, identified by index, and those found ready.
pub(crate) struct Readiness {
    polled: Vec<libc::pollfd>,
    /// Index at which the search for the next ready descriptor starts.
    cursor: usize,
}

impl Readiness {
    /// Watches each of `sources` for data to read.
    pub(crate) fn new<S: AsFd>(sources: &[S]) -> Self {
        let fds = sources.iter().map(|it| it.as_fd().as_raw_fd());
        let polled = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }).collect();
        Self { polled, cursor: usize::MAX }
    }

    /// Waits until at least one descriptor is ready, at most `timeout`.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.cursor = usize::MAX;
        let timeout_ms = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        let count = self.polled.len() as libc::nfds_t;
        // SAFETY: `count` entries are there, and `&mut self` rules out any other access.
        match unsafe { libc::poll(self.polled.as_mut_ptr(), count, timeout_ms) } {
            -1 => return Err(io::Error::last_os_error()),
            0 => {}
            _ => self.cursor = 0,
        }
        Ok(())
    }

    /// The index of the next descriptor that the last wait found ready. Each is returned once.
    pub(crate) fn next(&mut self) -> Option<usize> {
        let rest = self.polled.get(self.cursor..)?;
        let found = rest.iter().position(|it| it.revents != 0).map(|it| self.cursor + it);
        self.cursor = found.map_or(usize::MAX, |it| it + 1);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn each_ready_socket_is_named_once() {
        let sockets = [(); 3].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let mut readiness = Readiness::new(&sockets);
        readiness.wait(Duration::ZERO).unwrap();
        assert_eq!(readiness.next(), None);
        for index in [2, 0] {
            sockets[1].send_to(b"x", sockets[index].local_addr().unwrap()).unwrap();
        }
        readiness.wait(Duration::from_secs(10)).unwrap();
        assert_eq!([readiness.next(), readiness.next()], [Some(0), Some(2)]);
        assert_eq!([readiness.next(), readiness.next()], [None, None]);
    }
}
