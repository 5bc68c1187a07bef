//! Streams on plain tokio. Works everywhere.

use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::{self, Shutdown, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix;

use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{TcpStream, UnixStream};
use tokio::runtime::Builder;
use tokio::task::LocalSet;
use tokio::task::coop::consume_budget;

use super::{Network, Stop, Stream, readable, watch};

/// Readiness from epoll, then one system call per read or write.
#[derive(Debug)]
pub(crate) struct Epoll;

impl Network for Epoll {
    type Tcp = TcpStream;
    type Unix = UnixStream;
    type TcpListener = AsyncFd<OwnedFd>;

    fn run<F: Future>(main: F) -> io::Result<F::Output> {
        let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
        Ok(LocalSet::new().block_on(&runtime, main))
    }

    fn listen(listener: TcpListener) -> io::Result<AsyncFd<OwnedFd>> {
        watch(listener.into())
    }

    async fn ready(listener: &AsyncFd<OwnedFd>, stop: &Stop) -> io::Result<()> {
        stop.or(readable(listener)).await
    }

    fn accept(listener: &AsyncFd<OwnedFd>) -> io::Result<(TcpStream, SocketAddr)> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let accept = |it: &OwnedFd| Ok(acceptfrom_with(it, flags)?);
        let (socket, source) = listener.try_io(Interest::READABLE, accept)?;
        let source = source.ok_or(ErrorKind::NotConnected)?.try_into()?;
        Ok((TcpStream::from_std(net::TcpStream::from(socket))?, source))
    }

    async fn cancel(_listener: &AsyncFd<OwnedFd>, stop: &Stop) {
        stop.notify();
    }

    fn adopt(socket: unix::net::UnixStream) -> io::Result<UnixStream> {
        socket.set_nonblocking(true)?;
        UnixStream::from_std(socket)
    }
}

/// Both kinds of socket have the same methods, but no common trait.
macro_rules! stream {
    ($socket:ty) => {
        impl Stream for $socket {
            async fn read(&self, mut buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
                // The attempts below never yield: a client that always has more to send would
                // occupy the thread.
                consume_budget().await;
                loop {
                    match self.try_read_buf(&mut buffer) {
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                        result => return (result, buffer),
                    }
                    if let Err(error) = self.readable().await {
                        return (Err(error), buffer);
                    }
                }
            }

            async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
                consume_budget().await;
                let mut written = 0;
                while written < bytes.len() {
                    match self.try_write(&bytes[written..]) {
                        Ok(0) => return (Err(ErrorKind::WriteZero.into()), bytes),
                        Ok(count) => written += count,
                        Err(error) if error.kind() == ErrorKind::WouldBlock => {
                            if let Err(error) = self.writable().await {
                                return (Err(error), bytes);
                            }
                        }
                        Err(error) => return (Err(error), bytes),
                    }
                }
                (Ok(()), bytes)
            }

            fn shutdown(&self, how: Shutdown) {
                // Fails if the other side has ended the connection, which has the same effect.
                let _ = SockRef::from(self).shutdown(how);
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);
