//! Connections as streams of bytes, alike on io_uring and on epoll: what lies above is one code.
//!
//! Buffers are handed over and come back, because io_uring writes to them while nobody looks.
//! Nothing here is `Send`: a connection stays on the thread that accepted it.

pub(crate) mod epoll;
pub(crate) mod uring;

use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;

use socket2::SockRef;
use tokio::net::UnixStream;
use tokio::sync::Notify;

/// One way to reach the kernel.
pub(crate) trait Network: Sized + 'static {
    /// A connection.
    type Socket: Stream;

    /// Where connections come from.
    type Acceptor: Acceptor<Socket = Self::Socket>;

    /// Runs `main` on the calling thread, and what it spawns with [`tokio::task::spawn_local`]
    /// for as long.
    fn run<F: Future>(main: F) -> io::Result<F::Output>;

    /// Makes use of a listening socket. To be called inside [`Self::run`].
    fn acceptor(listener: Listening) -> io::Result<Self::Acceptor>;
}

/// Bytes in order, both ways. Reads and writes take `&self`: one of each may be under way.
///
/// A read or write that has begun has to be awaited to its end: dropping it loses bytes, and with
/// io_uring leaves the socket open. [`Self::shutdown`] brings that end about.
pub(crate) trait Stream: 'static {
    /// Reads into the spare capacity of `buffer`, of which there has to be some. 0: the end.
    async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>);

    /// Writes all of `bytes`, and gives the buffer back.
    async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>);

    /// Ends one direction or both at once, whatever is under way. That it has ended already is no
    /// error.
    fn shutdown(&self, how: Shutdown);
}

/// Takes connections from a listening socket.
pub(crate) trait Acceptor: 'static {
    /// A connection.
    type Socket: Stream;

    /// The next connection and, unless it comes by a Unix socket, its source. Like a read, it has
    /// to be awaited to its end, which [`Self::stop`] brings about.
    async fn accept(&self) -> io::Result<(Self::Socket, Option<SocketAddr>)>;

    /// Takes no more connections: the accept that is under way fails.
    fn stop(&self);
}

/// A socket that listens.
#[derive(Debug)]
pub(crate) enum Listening {
    /// For TCP.
    Tcp(TcpListener),
    /// On a path.
    Unix(UnixListener),
}

/// Ends the accept that is under way on a Unix socket. Shutting the socket down would not: Linux
/// goes on calling it ready, and says at every accept that there is nothing yet.
#[derive(Debug, Default)]
struct UnixStop(Notify);

impl UnixStop {
    /// The next connection, unless there are to be none. Giving up tokio's accept loses nothing.
    async fn accept(&self, listener: &tokio::net::UnixListener) -> io::Result<UnixStream> {
        tokio::select! {
            accepted = listener.accept() => accepted.map(|(socket, _)| socket),
            () = self.0.notified() => Err(io::Error::other("stopped")),
        }
    }

    fn stop(&self) {
        self.0.notify_one();
    }
}

/// Ends the accept that is under way on a TCP socket: on Linux, not a close but this wakes who
/// waits for connections.
fn stop_tcp(listener: &TcpListener) {
    let ended = SockRef::from(listener).shutdown(Shutdown::Read);
    debug_assert!(ended.is_ok(), "a listening socket can be shut down: {ended:?}");
}

/// Sets what accepted connections inherit from their listening socket: small replies are not held
/// back until the previous one was acknowledged.
fn prepare(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).set_tcp_nodelay(true)
}

/// A connection by TCP or by a Unix socket.
#[derive(Debug)]
pub(crate) enum Either<T, U> {
    /// By TCP.
    Tcp(T),
    /// By a Unix socket.
    Unix(U),
}

impl<T: Stream, U: Stream> Stream for Either<T, U> {
    async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        debug_assert!(buffer.capacity() > buffer.len(), "there is room to read into");
        match self {
            Self::Tcp(it) => it.read(buffer).await,
            Self::Unix(it) => it.read(buffer).await,
        }
    }

    async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Tcp(it) => it.write_all(bytes).await,
            Self::Unix(it) => it.write_all(bytes).await,
        }
    }

    fn shutdown(&self, how: Shutdown) {
        match self {
            Self::Tcp(it) => it.shutdown(how),
            Self::Unix(it) => it.shutdown(how),
        }
    }
}

#[cfg(test)]
mod tests;
