//! Serves the admin pages, to a limited number of connections. Slow clients are disconnected: those
//! that delay a request, or stop reading a response.
//!
//! The pages share the thread with signals and metrics, so neither the number of connections nor
//! memory may grow without bound. `admin_connections` decides which connection has a permit,
//! and which is closed for another.

use std::convert::Infallible;
use std::error::Error;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::yield_now;
use tokio::time::{Sleep, sleep};

use crate::server::control::admin_connections::{AdminConnections, ConnectionPermit, PermitKind};

/// How long the head of a request may take, from the start of the connection or the previous
/// response.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for a client that has sent a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For the whole body of a request: 2 MB at 100 kB/s.
    body: Duration,
    /// For a client that receives nothing of a response while the kernel's buffer is full.
    write: Duration,
}

pub(crate) const TIMEOUTS: Timeouts =
    Timeouts { body: Duration::from_secs(20), write: Duration::from_secs(30) };

// The end of the process does not wait for a client that receives nothing.
const _: () = assert!(super::LAST_PAGES_MAX.as_secs() < TIMEOUTS.write.as_secs());

/// Most bytes of requests, or of a body, that are read before the first is answered. The longest
/// head is far shorter.
const READ_BYTES_MAX: usize = 16 << 10;

/// How long not to accept after the kernel ran out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves `pages` until `closed`, then finishes the requests under way.
pub(crate) async fn serve(
    listener: TcpListener,
    pages: Router,
    connections: Arc<AdminConnections>,
    timeouts: Timeouts,
    mut closed: oneshot::Receiver<()>,
) {
    let (end, ending) = watch::channel(());
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    http.max_buf_size(READ_BYTES_MAX);
    loop {
        let (stream, from) = tokio::select! {
            accepted = accept(&listener) => accepted,
            _ = &mut closed => break,
        };
        let permit = Arc::new(connections.enter(from));
        let admitted =
            AdminConnection { pages: pages.clone(), from, permit: permit.clone(), timeouts };
        let service = service_fn(move |request| admitted.clone().respond(request));
        let stream = TokioIo::new(WriteTimeout::new(stream, timeouts.write));
        let connection = http.serve_connection(stream, service).with_upgrades();
        let mut ending = ending.clone();
        tokio::spawn(async move {
            let mut connection = pin!(connection);
            // Errors of clients that disconnect are ignored. A connection that became a WebSocket
            // ends here, and has its permit elsewhere.
            tokio::select! {
                _ = connection.as_mut() => {}
                () = permit.lost() => {}
                _ = ending.changed() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop((permit, ending));
        });
        // Lets it read what has arrived, before another connection may take its permit.
        yield_now().await;
    }
    drop((listener, ending));
    let _ = end.send(());
    end.closed().await;
}

/// The next connection.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(connection) => return connection,
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// A connection with its permit.
#[derive(Clone)]
struct AdminConnection {
    pages: Router,
    from: SocketAddr,
    permit: Arc<ConnectionPermit>,
    timeouts: Timeouts,
}

impl AdminConnection {
    async fn respond(
        self,
        request: Request<Incoming>,
    ) -> Result<Response<axum::body::Body>, Infallible> {
        let Self { pages, from, permit, timeouts } = self;
        if !permit.take(PermitKind::of(request.uri().path())) {
            let text = "too many requests are under way\n";
            return Ok(last((StatusCode::SERVICE_UNAVAILABLE, text)));
        }
        // One connection may have sent many requests at once. Requests of others are handled in
        // between.
        yield_now().await;
        let (head, body) = request.into_parts();
        if !body.is_end_stream() {
            permit.wait();
        }
        let is_late = Arc::new(AtomicBool::new(false));
        let deadline = Box::pin(sleep(timeouts.body));
        let body = Timely { body, deadline, permit: permit.clone(), is_late: is_late.clone() };
        let mut request = Request::from_parts(head, body);
        request.extensions_mut().insert(ConnectInfo(from));
        let Ok(response) = TowerToHyperService::new(pages).call(request).await;
        permit.wait();
        if is_late.load(Ordering::Relaxed) {
            let text = format!("the body did not arrive within {} s\n", timeouts.body.as_secs());
            return Ok(last((StatusCode::REQUEST_TIMEOUT, text)));
        }
        Ok(response)
    }
}

/// A response after which the connection is closed.
fn last(response: impl IntoResponse) -> Response<axum::body::Body> {
    let mut response = response.into_response();
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// A request's body that must arrive in time.
struct Timely {
    body: Incoming,
    deadline: Pin<Box<Sleep>>,
    permit: Arc<ConnectionPermit>,
    is_late: Arc<AtomicBool>,
}

impl Body for Timely {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            if frame.is_none() || self.body.is_end_stream() {
                self.permit.work();
            }
            return Poll::Ready(frame.map(|it| it.map_err(Into::into)));
        }
        ready!(self.deadline.as_mut().poll(context));
        self.is_late.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(io::Error::from(ErrorKind::TimedOut).into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A connection whose writes fail if none makes progress for too long.
struct WriteTimeout {
    stream: TcpStream,
    write_timeout: Duration,
    /// Runs while the kernel's buffer is full.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    fn new(stream: TcpStream, write_timeout: Duration) -> Self {
        Self { stream, write_timeout, stalled: None }
    }

    /// Passes on the result of a write, or an error after too long a stall.
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

impl AsyncRead for WriteTimeout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteTimeout {
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
        Pin::new(&mut self.stream).poll_shutdown(context) // does not block on a socket
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use axum::routing::{get, post};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::Semaphore;
    use tokio::time::{Instant, timeout};

    const LONG: Duration = Duration::from_secs(10);

    /// More bytes than the kernel buffers for a client that does not read.
    const LONG_PAGE_BYTES: usize = 32 << 20;

    /// More connections than there are permits of any kind.
    const MANY: usize = 100;

    /// The end of a head, after whose response the connection is closed.
    const CLOSE: &str = "\r\nConnection: close\r\n\r\n";

    /// A server for tests, and the signal that completes requests for `/slow`.
    struct Served {
        at: SocketAddr,
        _close: oneshot::Sender<()>,
        release: Arc<Semaphore>,
        connections: Arc<AdminConnections>,
    }

    async fn serving() -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let page = |ConnectInfo(from): ConnectInfo<SocketAddr>| async move { from.to_string() };
        let (close, closed) = oneshot::channel();
        let long = Bytes::from(vec![0; LONG_PAGE_BYTES]); // shared by all requests
        let release = Arc::new(Semaphore::new(0));
        let held = release.clone();
        let counted: &AtomicUsize = Box::leak(Box::default());
        let slow = move || {
            let held = held.clone();
            async move { drop(held.acquire().await) }
        };
        let pages = Router::new()
            .route("/", get(page).post(|body: Bytes| async move { body.len().to_string() }))
            .route("/livez", get(|| async { "ok" }))
            .route("/count", get(async move || counted.fetch_add(1, Ordering::Relaxed).to_string()))
            .route("/slow", post(slow))
            .route("/long", get(|| async { long }));
        let timeouts =
            Timeouts { body: Duration::from_millis(300), write: Duration::from_millis(300) };
        let connections = Arc::new(AdminConnections::default());
        tokio::spawn(serve(listener, pages, connections.clone(), timeouts, closed));
        Served { at, _close: close, release, connections }
    }

    /// Opens connections and sends `text` on each.
    async fn sent(at: SocketAddr, count: usize, text: &str) -> Vec<TcpStream> {
        let mut all = Vec::new();
        for _ in 0..count {
            let mut stream = TcpStream::connect(at).await.unwrap();
            let _ = stream.write_all(text.as_bytes()).await; // may be closed already
            all.push(stream);
        }
        all
    }

    /// Sends a request and reads the whole response.
    async fn ask(at: SocketAddr, path: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n");
        rest(&mut sent(at, 1, &request).await[0]).await
    }

    async fn rest(stream: &mut TcpStream) -> String {
        let mut response = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut response)).await.expect("it is closed");
        String::from_utf8_lossy(&response).into_owned()
    }

    #[tokio::test]
    async fn pages_know_who_asks() {
        let served = serving().await;
        let mut stream = TcpStream::connect(served.at).await.unwrap();
        let from = stream.local_addr().unwrap().to_string();
        stream.write_all(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n").await.unwrap();
        let response = rest(&mut stream).await;
        assert!(response.ends_with(&from), "{response}");
    }

    #[tokio::test]
    async fn many_requests_of_one_connection_keep_no_other_waiting() {
        let served = serving().await;
        let [mut many, mut one] =
            [(); 2].map(|()| std::net::TcpStream::connect(served.at).unwrap());
        // Waits until both have a permit: data that arrives now is there before either is handled.
        while served.connections.open() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
        let request = "GET /count HTTP/1.1\r\n\r\n";
        io::Write::write_all(&mut many, request.repeat(100).as_bytes()).unwrap();
        io::Write::write_all(&mut one, request.replace("\r\n\r\n", CLOSE).as_bytes()).unwrap();
        one.set_nonblocking(true).unwrap();
        let response = rest(&mut TcpStream::from_std(one).unwrap()).await;
        let before: usize = response.split("\r\n\r\n").nth(1).unwrap().parse().unwrap();
        assert!(before < 10, "{before} of another connection's came before");
    }

    #[tokio::test]
    async fn responses_that_nobody_takes_hold_no_permit_beyond_their_deadline() {
        let served = serving().await;
        let mut deaf = sent(served.at, MANY, "GET /long HTTP/1.1\r\n\r\n").await;
        assert!(ask(served.at, "/").await.starts_with("HTTP/1.1 200"));
        let all_gone = async {
            while served.connections.open() > 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG, all_gone).await.expect("they hold no permit");
        let mut received = Vec::new();
        let mut stream = deaf.pop().unwrap(); // the last connection was refused
        let _ = timeout(LONG, stream.read_to_end(&mut received)).await.unwrap(); // possibly a reset
        assert!(received.len() < LONG_PAGE_BYTES, "it was cut off");
    }

    #[tokio::test]
    async fn a_client_that_takes_something_has_its_time_again() {
        const TIMEOUTS: Duration = Duration::from_millis(100);
        let served = serving().await;
        let stream = TcpStream::connect(served.at).await.unwrap();
        let mut timeout = WriteTimeout::new(stream, TIMEOUTS);
        let mut judge = async |written| {
            let mut written = Some(written);
            poll_fn(|context| Poll::Ready(timeout.judge(context, written.take().unwrap()))).await
        };
        assert!(judge(Poll::Pending).await.is_pending());
        sleep(TIMEOUTS).await; // the duration under test
        assert!(matches!(judge(Poll::Ready(Ok(1))).await, Poll::Ready(Ok(1))));
        assert!(judge(Poll::Pending).await.is_pending(), "the time before does not count");
        sleep(TIMEOUTS).await;
        let Poll::Ready(Err(error)) = judge(Poll::Pending).await else { panic!("still waits") };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn half_heads_are_closed_in_time_and_keep_nobody_waiting() {
        let served = serving().await;
        for text in ["", "GET / HT"] {
            let slow = sent(served.at, MANY, text).await;
            let begun = Instant::now();
            for path in ["/", "/livez"] {
                assert!(ask(served.at, path).await.starts_with("HTTP/1.1 200"), "{path}");
            }
            assert!(begun.elapsed() < HEAD_TIMEOUT, "waited for those before");
            for mut stream in slow {
                rest(&mut stream).await;
            }
        }
    }

    #[tokio::test]
    async fn bodies_that_do_not_come_are_waited_for_in_vain_and_keep_nobody_waiting() {
        let served = serving().await;
        let head = "POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\n12";
        let mut waiting = sent(served.at, MANY, head).await;
        for path in ["/", "/livez"] {
            assert!(ask(served.at, path).await.starts_with("HTTP/1.1 200"), "{path}");
        }
        let response = rest(&mut waiting.pop().unwrap()).await;
        assert!(response.starts_with("HTTP/1.1 408") && response.contains("body"), "{response}");
        for mut stream in waiting {
            rest(&mut stream).await;
        }
        let whole = format!("{head}345").replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n");
        let response = rest(&mut sent(served.at, 1, &whole).await[0]).await;
        assert!(response.starts_with("HTTP/1.1 200") && response.ends_with('5'), "{response}");
    }

    #[tokio::test]
    async fn where_all_are_worked_for_the_next_is_turned_away_but_no_probe() {
        let served = serving().await;
        let head = "POST /slow HTTP/1.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let mut slow = sent(served.at, 32, head).await;
        // Earlier requests are read before later ones.
        assert!(ask(served.at, "/livez").await.starts_with("HTTP/1.1 200"));
        assert!(ask(served.at, "/").await.starts_with("HTTP/1.1 503"));
        assert!(ask(served.at, "/livez").await.starts_with("HTTP/1.1 200"));
        served.release.close();
        for stream in &mut slow {
            assert!(rest(stream).await.starts_with("HTTP/1.1 200"));
        }
        assert!(ask(served.at, "/").await.starts_with("HTTP/1.1 200"));
    }
}
