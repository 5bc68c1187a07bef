//! Serves the admin pages: to few at once, and to nobody who dawdles over asking or takes nothing
//! of a reply for long.
//!
//! The pages share the thread with signals and figures, so neither connections nor memory may
//! grow with what others open.

use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Sleep, sleep};

/// Connections served at once. Others wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;

/// How long a request's head may take, from the connection or the reply before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a client may take nothing of a reply that the kernel has no more room for.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// How long not to accept where the kernel has nothing to accept with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `pages` until `closed`, then what is under way. Who takes nothing of a reply for
/// `write_timeout` is cut off.
pub(super) async fn serve(
    listener: TcpListener,
    pages: Router,
    write_timeout: Duration,
    mut closed: oneshot::Receiver<()>,
) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (end, ending) = watch::channel(());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    loop {
        let (stream, from, seat) = tokio::select! {
            it = next(&listener, &seats) => it,
            _ = &mut closed => break,
        };
        let pages = pages.clone().layer(Extension(ConnectInfo(from)));
        let service = TowerToHyperService::new(pages);
        let stream = TokioIo::new(Impatient::new(stream, write_timeout));
        let connection = http.serve_connection(stream, service).with_upgrades();
        let mut ending = ending.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            // Who goes away in the middle is no concern of ours. What became a WebSocket is over
            // here, and sits elsewhere.
            tokio::select! {
                _ = connection.as_mut() => {}
                _ = ending.changed() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop((seat, ending));
        });
    }
    drop((listener, ending));
    let _ = end.send(());
    end.closed().await;
}

/// The next connection for which there is a seat.
async fn next(
    listener: &TcpListener,
    seats: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    // None only if the semaphore were closed, which nobody does.
    let seat = seats.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => return (stream, from, seat),
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// A connection on which a write fails that gets nowhere for too long.
struct Impatient {
    stream: TcpStream,
    write_timeout: Duration,
    /// Runs while the kernel has no room.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Impatient {
    fn new(stream: TcpStream, write_timeout: Duration) -> Self {
        Self { stream, write_timeout, stalled: None }
    }

    /// What becomes of a write that the stream says this of.
    fn judge(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(self.write_timeout)));
        ready!(stalled.as_mut().poll(context));
        Poll::Ready(Err(ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Impatient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Impatient {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, parts);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context) // does nothing on a socket
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context) // waits for nobody on a socket
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use axum::body::Bytes;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, timeout};

    const LONG: Duration = Duration::from_secs(10);

    /// More than the kernel takes for a client that does not read.
    const LONG_PAGE_BYTES: usize = 32 << 20;

    async fn serving() -> (SocketAddr, oneshot::Sender<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let page = |ConnectInfo(from): ConnectInfo<SocketAddr>| async move { from.to_string() };
        let (close, closed) = oneshot::channel();
        let long = Bytes::from(vec![0; LONG_PAGE_BYTES]); // shared by all who ask
        let long = get(|| async { long });
        let pages = Router::new().route("/", get(page)).route("/long", long);
        tokio::spawn(serve(listener, pages, Duration::from_millis(300), closed));
        (at, close)
    }

    async fn ask(stream: &mut TcpStream) -> String {
        stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut reply = String::new();
        timeout(LONG, stream.read_to_string(&mut reply)).await.unwrap().unwrap();
        reply
    }

    #[tokio::test]
    async fn pages_know_who_asks() {
        let (at, _close) = serving().await;
        let mut stream = TcpStream::connect(at).await.unwrap();
        let from = stream.local_addr().unwrap().to_string();
        let reply = ask(&mut stream).await;
        assert!(reply.ends_with(&from), "{reply}");
    }

    #[tokio::test]
    async fn replies_that_nobody_takes_hold_no_seat_beyond_their_deadline() {
        let (at, _close) = serving().await;
        let mut deaf = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(b"GET /long HTTP/1.1\r\n\r\n").await.unwrap();
            deaf.push(stream);
        }
        let mut late = TcpStream::connect(at).await.unwrap();
        assert!(ask(&mut late).await.starts_with("HTTP/1.1 200"));
        let mut stream = deaf.swap_remove(0);
        let mut received = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut received)).await.unwrap(); // maybe a reset
        assert!(received.len() < LONG_PAGE_BYTES, "it was cut off");
    }

    #[tokio::test]
    async fn a_client_that_takes_something_has_its_time_again() {
        const PATIENCE: Duration = Duration::from_millis(100);
        let (at, _close) = serving().await;
        let stream = TcpStream::connect(at).await.unwrap();
        let mut it = Impatient::new(stream, PATIENCE);
        let mut judge = async |written| {
            let mut written = Some(written);
            poll_fn(|context| Poll::Ready(it.judge(context, written.take().unwrap()))).await
        };
        assert!(judge(Poll::Pending).await.is_pending());
        sleep(PATIENCE).await; // the very time that is tested
        assert!(matches!(judge(Poll::Ready(Ok(1))).await, Poll::Ready(Ok(1))));
        assert!(judge(Poll::Pending).await.is_pending(), "the time before does not count");
        sleep(PATIENCE).await;
        let Poll::Ready(Err(error)) = judge(Poll::Pending).await else { panic!("still waits") };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn half_heads_are_closed_and_hold_no_seat_beyond_their_deadline() {
        let (at, _close) = serving().await;
        let mut slow = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut stream = TcpStream::connect(at).await.unwrap();
            stream.write_all(b"GET / HT").await.unwrap();
            slow.push(stream);
        }
        let mut late = TcpStream::connect(at).await.unwrap();
        let begun = Instant::now();
        assert!(ask(&mut late).await.starts_with("HTTP/1.1 200"));
        assert!(begun.elapsed() > HEAD_TIMEOUT / 2, "it had to wait for a seat");
        for mut stream in slow {
            let closed = timeout(LONG, stream.read_to_end(&mut Vec::new())).await;
            assert!(closed.is_ok(), "still open");
        }
    }
}
