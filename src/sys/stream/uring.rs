//! Streams on tokio-uring: one submission for all reads and writes of a turn.

use std::future::Future;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::os::unix;

use io_uring_of_tokio::types::{CancelBuilder, Fd};
use io_uring_of_tokio::{cqueue, opcode};
use tokio_uring::buf::BoundedBuf as _;
use tokio_uring::net::{TcpStream, UnixStream};
use tokio_uring::{OneshotOutputTransform, UnsubmittedOneshot};

use super::{Network, Stop, Stream};

/// Operations are submitted at the latest when this many are queued.
const SUBMISSIONS: u32 = 1024;

/// Results that fit into the completion queue.
const COMPLETIONS: u32 = 4096;

/// What an operator can do about a panic in this source file; `None` if the file is not
/// tokio-uring's.
///
/// If its queue is full and io_uring_enter(2) takes nothing, tokio-uring cannot return an error: it
/// panics, either on the error itself or when the operation is dropped. The kernel returns EAGAIN
/// if it has no memory for a request, or if a control group's limit leaves it none. While the queue
/// has room, such an error costs nothing: the next turn submits again.
pub(crate) fn remedy(file: &str) -> Option<&'static str> {
    file.contains("/tokio-uring").then_some(
        "the kernel took no more requests from an io_uring, most likely for lack of memory \
         (EAGAIN); remedy: more memory for this process, also in its control group, or \
         server.io = \"mmsg\", which does without io_uring",
    )
}

/// An io_uring of the runtime's own. It submits when the runtime is idle, so no task on it may run
/// for long.
#[derive(Debug)]
pub(crate) struct UringNetwork;

impl Network for UringNetwork {
    type Tcp = TcpStream;
    type Unix = UnixStream;
    type TcpListener = TcpListener;

    fn run<F: Future>(main: F) -> io::Result<F::Output> {
        let mut builder = tokio_uring::builder();
        let mut ring = tokio_uring::uring_builder();
        // Without cooperative task work the kernel interrupts this thread for every packet and
        // retries the read at once, while the sender still holds the socket's lock.
        builder
            .entries(SUBMISSIONS)
            .uring_builder(ring.setup_cqsize(COMPLETIONS).setup_coop_taskrun());
        Ok(tokio_uring::Runtime::new(&builder)?.block_on(main))
    }

    fn listen(listener: TcpListener) -> io::Result<TcpListener> {
        Ok(listener)
    }

    async fn ready(listener: &TcpListener, _stop: &Stop) -> io::Result<()> {
        // An accept on the ring would need one step only, but it does not work on a non-blocking
        // socket, and it would take connections from the serving process before this one may serve.
        let events = u32::from(libc::POLLIN.cast_unsigned());
        let request = opcode::PollAdd::new(Fd(listener.as_raw_fd()), events).build();
        UnsubmittedOneshot::new((), RequestEnd, request).submit().await
    }

    fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
        // Reads and writes wait in the ring, so the accepted socket may block.
        let (socket, source) = listener.accept()?;
        Ok((TcpStream::from_std(socket), source))
    }

    async fn cancel(listener: &TcpListener, _stop: &Stop) {
        let all_of_it = CancelBuilder::fd(Fd(listener.as_raw_fd())).all(); // Linux 5.19
        let request = opcode::AsyncCancel2::new(all_of_it).build();
        // The cancelled request completes by itself.
        let _ = UnsubmittedOneshot::new((), RequestEnd, request).submit().await;
    }

    fn adopt(socket: unix::net::UnixStream) -> io::Result<UnixStream> {
        Ok(UnixStream::from_std(socket))
    }
}

/// The result of a request.
struct RequestEnd;

impl OneshotOutputTransform for RequestEnd {
    type Output = io::Result<()>;
    type StoredData = ();

    fn transform_oneshot_output(self, (): (), outcome: cqueue::Entry) -> io::Result<()> {
        let result = outcome.result();
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }
}

/// Both kinds of socket have the same methods, but no common trait.
macro_rules! stream {
    ($socket:ty) => {
        impl Stream for $socket {
            async fn read(&self, buffer: Vec<u8>) -> (io::Result<usize>, Vec<u8>) {
                let end = buffer.len();
                let (result, spare) = self.read(buffer.slice(end..)).await;
                (result, spare.into_inner())
            }

            async fn write_all(&self, bytes: Vec<u8>) -> (io::Result<()>, Vec<u8>) {
                self.write_all(bytes).await
            }

            fn shutdown(&self, how: Shutdown) {
                // Fails if the other side has ended the connection, which has the same effect.
                let _ = self.shutdown(how);
            }
        }
    };
}

stream!(TcpStream);
stream!(UnixStream);
