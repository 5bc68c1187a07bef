//! Connections as byte streams, with the same interface on io_uring and on epoll.
//!
//! Buffers are passed in and returned, because io_uring writes to them during a call. Nothing here
//! is `Send`: a connection stays on the thread that accepted it.

pub(crate) mod epoll;
pub(crate) mod uring;

use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::{SocketFlags, accept_with};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;

/// An I/O backend for streams.
pub(crate) trait Network: Sized + 'static {
    /// A TCP connection.
    type Tcp: Stream;

    /// A Unix socket connection.
    type Unix: Stream;

    /// A TCP listener. It does not block on either backend: a process with the other backend may
    /// have it as well.
    type TcpListener: AsFd + 'static;

    /// Runs `main` on the calling thread, together with the tasks that it spawns with
    /// [`tokio::task::spawn_local`].
    fn run<F: Future>(main: F) -> io::Result<F::Output>;

    /// Registers a non-blocking listener. Must be called inside [`Self::run`].
    fn listen(listener: TcpListener) -> io::Result<Self::TcpListener>;

    /// Waits until an accept would return a connection or an error. Like a read, it must be awaited
    /// to its end, which [`Self::cancel`] causes.
    async fn ready(listener: &Self::TcpListener, stop: &Stop) -> io::Result<()>;

    /// The next connection and its source; `WouldBlock` if there is none.
    fn accept(listener: &Self::TcpListener) -> io::Result<(Self::Tcp, SocketAddr)>;

    /// Ends the wait for a connection, if there is one.
    async fn cancel(listener: &Self::TcpListener, stop: &Stop);

    /// Registers a Unix socket connection.
    fn adopt(socket: UnixStream) -> io::Result<Self::Unix>;
}

/// A connection.
pub(crate) type Socket<N> = Either<<N as Network>::Tcp, <N as Network>::Unix>;

/// A stream of bytes in both directions. Reads and writes take `&self`: one of each may be under
/// way.
///
/// A read or write that has begun must be awaited to its end: dropping it loses bytes, and leaves
/// the socket open with io_uring. [`Self::shutdown`] ends it.
pub(crate) trait Stream: 'static {
    /// Reads into the spare capacity of `buffer`, which must not be empty. 0: the end of the
    /// stream.
    async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>);

    /// Writes all of `bytes`, and returns the buffer.
    async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>);

    /// Ends one direction or both at once, even with a read or write under way. If it has ended
    /// already, that is not an error.
    fn shutdown(&self, how: Shutdown);
}

/// A listening socket.
#[derive(Debug)]
pub(crate) enum Listening {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// Accepts connections from a listening socket. It acquires all resources when it is created.
pub(crate) struct Acceptor<N: Network> {
    listener: Either<N::TcpListener, AsyncFd<OwnedFd>>,
    stop: Stop,
}

impl<N: Network> Acceptor<N> {
    /// Registers a listening socket. Must be called inside [`Network::run`].
    pub(crate) fn new(listener: Listening) -> io::Result<Self> {
        let listener = match listener {
            Listening::Tcp(tcp_listener) => {
                prepare(&tcp_listener)?;
                tcp_listener.set_nonblocking(true)?;
                Either::Tcp(N::listen(tcp_listener)?)
            }
            Listening::Unix(unix_listener) => {
                unix_listener.set_nonblocking(true)?;
                Either::Unix(watch(unix_listener.into())?)
            }
        };
        Ok(Self { listener, stop: Stop::default() })
    }

    /// Waits until there is a connection to accept, without accepting it. Like a read, it must be
    /// awaited to its end, which [`Self::stop`] and [`Self::leave`] cause.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        match &self.listener {
            Either::Tcp(listener) => N::ready(listener, &self.stop).await,
            Either::Unix(fd) => self.stop.or(readable(fd)).await,
        }
    }

    /// The next connection and, unless it is on a Unix socket, its source. `WouldBlock` if there is
    /// none: wait until it is [`Self::ready`].
    pub(crate) fn accept(&self) -> io::Result<(Socket<N>, Option<SocketAddr>)> {
        Ok(match &self.listener {
            Either::Tcp(listener) => {
                let (socket, source) = N::accept(listener)?;
                (Either::Tcp(socket), Some(source))
            }
            Either::Unix(fd) => {
                let accept = |it: &OwnedFd| Ok(accept_with(it, SocketFlags::CLOEXEC)?);
                let socket = fd.try_io(Interest::READABLE, accept)?;
                (Either::Unix(N::adopt(socket.into())?), None)
            }
        })
    }

    /// Stops accepting: ends the wait, and closes connections that wait in the queue.
    pub(crate) fn stop(&self) {
        match &self.listener {
            Either::Tcp(listener) => stop_tcp(listener),
            Either::Unix(_) => self.stop.notify(),
        }
    }

    /// Stops accepting: ends the wait. Connections in the queue are left to another process that
    /// has the socket.
    pub(crate) async fn leave(&self) {
        match &self.listener {
            Either::Tcp(listener) => N::cancel(listener, &self.stop).await,
            Either::Unix(_) => self.stop.notify(),
        }
    }
}

/// Registers a listening socket with epoll. Must be called inside [`Network::run`].
#[expect(unsafe_code, reason = "the runtime knows the descriptor by its number")]
fn watch(listener: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and the same descriptor, for as long as it exists.
    let watched = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
    Ok(watched?)
}

/// Waits until a socket registered with epoll has a connection to accept.
async fn readable(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    socket.readable().await?.retain_ready();
    Ok(())
}

/// Ends a wait that may be dropped without loss, as tokio's may. (A shutdown of a Unix socket would
/// not work: Linux continues to report it as ready, and every accept returns `WouldBlock`.)
#[derive(Debug, Default)]
pub(crate) struct Stop(Notify);

impl Stop {
    /// The result of `wait`, or an error once stopped.
    async fn or<T>(&self, wait: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        tokio::select! {
            result = wait => result,
            () = self.0.notified() => Err(io::Error::other("stopped")),
        }
    }

    fn notify(&self) {
        self.0.notify_one();
    }
}

/// Ends the wait for connections on a TCP socket. On Linux a shutdown wakes the waiting task, a
/// close does not.
fn stop_tcp(listener: &impl AsFd) {
    let ended = SockRef::from(listener).shutdown(Shutdown::Read);
    debug_assert!(ended.is_ok(), "a listening socket can be shut down: {ended:?}");
}

/// Sets what accepted connections inherit: small responses are not held back until the previous one
/// was acknowledged.
fn prepare(listener: &TcpListener) -> io::Result<()> {
    SockRef::from(listener).set_tcp_nodelay(true)
}

#[derive(Debug)]
pub(crate) enum Either<T, U> {
    Tcp(T),
    Unix(U),
}

impl<T: Stream, U: Stream> Stream for Either<T, U> {
    async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
        debug_assert!(buffer.capacity() > buffer.len(), "there is room to read into");
        match self {
            Self::Tcp(stream) => stream.read(buffer).await,
            Self::Unix(stream) => stream.read(buffer).await,
        }
    }

    async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes).await,
            Self::Unix(stream) => stream.write_all(bytes).await,
        }
    }

    fn shutdown(&self, how: Shutdown) {
        match self {
            Self::Tcp(stream) => stream.shutdown(how),
            Self::Unix(stream) => stream.shutdown(how),
        }
    }
}

#[cfg(test)]
mod tests;
