//! Connections as streams of bytes, alike on io_uring and on epoll: what lies above is one code.
//!
//! Buffers are handed over and come back, because io_uring writes to them while nobody looks.
//! Nothing here is `Send`: a connection stays on the thread that accepted it.

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

/// One way to reach the kernel.
pub(crate) trait Network: Sized + 'static {
    /// A connection by TCP.
    type Tcp: Stream;

    /// A connection by a Unix socket.
    type Unix: Stream;

    /// A socket that listens for TCP. It does not block, on either network: a process of the other
    /// kind may have it as well.
    type TcpListener: AsFd + 'static;

    /// Runs `main` on the calling thread, and what it spawns with [`tokio::task::spawn_local`]
    /// for as long.
    fn run<F: Future>(main: F) -> io::Result<F::Output>;

    /// Makes use of a listening socket that does not block. To be called inside [`Self::run`].
    fn listen(listener: TcpListener) -> io::Result<Self::TcpListener>;

    /// Waits until there is a connection to accept, or something else to be told by an accept. Like
    /// a read, it has to be awaited to its end, which [`Self::cancel`] brings about.
    async fn ready(listener: &Self::TcpListener, stop: &Stop) -> io::Result<()>;

    /// The next connection and its source; `WouldBlock` where there is none.
    fn accept(listener: &Self::TcpListener) -> io::Result<(Self::Tcp, SocketAddr)>;

    /// Ends the wait for a connection, if one is under way.
    async fn cancel(listener: &Self::TcpListener, stop: &Stop);

    /// Makes use of a connection by a Unix socket.
    fn adopt(socket: UnixStream) -> io::Result<Self::Unix>;
}

/// A connection.
pub(crate) type Socket<N> = Either<<N as Network>::Tcp, <N as Network>::Unix>;

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

/// A socket that listens.
#[derive(Debug)]
pub(crate) enum Listening {
    /// For TCP.
    Tcp(TcpListener),
    /// On a path.
    Unix(UnixListener),
}

/// Takes connections from a listening socket. All that this needs it has from its making on.
pub(crate) struct Acceptor<N: Network> {
    listener: Either<N::TcpListener, AsyncFd<OwnedFd>>,
    stop: Stop,
}

impl<N: Network> Acceptor<N> {
    /// Makes use of a listening socket. To be called inside [`Network::run`].
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

    /// Waits until there is a connection to accept. Like a read, it has to be awaited to its end,
    /// which [`Self::stop`] and [`Self::leave`] bring about. Nothing is taken by it.
    pub(crate) async fn ready(&self) -> io::Result<()> {
        match &self.listener {
            Either::Tcp(it) => N::ready(it, &self.stop).await,
            Either::Unix(fd) => self.stop.or(readable(fd)).await,
        }
    }

    /// The next connection and, unless it comes by a Unix socket, its source. `WouldBlock` where
    /// there is none: wait until it is [`Self::ready`].
    pub(crate) fn accept(&self) -> io::Result<(Socket<N>, Option<SocketAddr>)> {
        Ok(match &self.listener {
            Either::Tcp(it) => {
                let (socket, source) = N::accept(it)?;
                (Either::Tcp(socket), Some(source))
            }
            Either::Unix(fd) => {
                let accept = |it: &OwnedFd| Ok(accept_with(it, SocketFlags::CLOEXEC)?);
                let socket = fd.try_io(Interest::READABLE, accept)?;
                (Either::Unix(N::adopt(socket.into())?), None)
            }
        })
    }

    /// Takes no more connections: who waits for one is told, and those that wait are closed.
    pub(crate) fn stop(&self) {
        match &self.listener {
            Either::Tcp(it) => stop_tcp(it),
            Either::Unix(_) => self.stop.notify(),
        }
    }

    /// Takes no more connections: who waits for one is told. Those that wait are for whoever else
    /// has the socket.
    pub(crate) async fn leave(&self) {
        match &self.listener {
            Either::Tcp(it) => N::cancel(it, &self.stop).await,
            Either::Unix(_) => self.stop.notify(),
        }
    }
}

/// Lets epoll watch whether a socket that listens has something to accept. To be called inside
/// [`Network::run`].
#[expect(unsafe_code, reason = "the runtime knows the descriptor by its number")]
fn watch(listener: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and the same descriptor, for as long as there is one.
    let watched = unsafe { AsyncFd::register_with_interest(listener, Interest::READABLE) };
    Ok(watched?)
}

/// Waits until a socket that epoll watches has something to accept.
async fn readable(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    socket.readable().await?.retain_ready();
    Ok(())
}

/// Ends a wait that may be given up, as tokio's may: nothing is lost. (Shutting a Unix socket
/// down would not do: Linux goes on calling it ready, and says at every accept that there is
/// nothing yet.)
#[derive(Debug, Default)]
pub(crate) struct Stop(Notify);

impl Stop {
    /// What `wait` brings, unless there is to be nothing any more.
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

/// Ends the wait for connections on a TCP socket: on Linux, not a close but this wakes who waits.
fn stop_tcp(listener: &impl AsFd) {
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
