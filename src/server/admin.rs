//! Serves the admin pages: to few at once, and to nobody who dawdles over asking.
//!
//! The pages share the thread with signals and figures, so neither connections nor memory may
//! grow with what others open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::ConnectInfo;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::sleep;

/// Connections served at once. Others wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 64;

/// How long a request's head may take, from the connection or the reply before it.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long not to accept where the kernel has nothing to accept with.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `pages` until `closed`, then what is under way.
pub(super) async fn serve(listener: TcpListener, pages: Router, mut closed: oneshot::Receiver<()>) {
    let seats = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    loop {
        let (stream, from, seat) = tokio::select! {
            it = next(&listener, &seats) => it,
            _ = &mut closed => break,
        };
        let pages = pages.clone().layer(Extension(ConnectInfo(from)));
        let service = TowerToHyperService::new(pages);
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // Who goes away in the middle is no concern of ours.
            let _ = connection.await;
            drop(seat);
        });
    }
    drop(listener);
    graceful.shutdown().await;
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

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, timeout};

    const LONG: Duration = Duration::from_secs(10);

    async fn serving() -> (SocketAddr, oneshot::Sender<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let page = |ConnectInfo(from): ConnectInfo<SocketAddr>| async move { from.to_string() };
        let (close, closed) = oneshot::channel();
        tokio::spawn(serve(listener, Router::new().route("/", get(page)), closed));
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
