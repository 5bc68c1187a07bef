//! Stream workers in this process, on ports of the kernel's choice, and clients that talk to them.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, StreamOwned};
use skep::counters::{CloseReason, StreamCounters, Transport};
use skep::frontend::http::HttpFrontend;
use skep::frontend::{http, stats, ws};
use skep::limiter::{self, Handle, Limiter, Sizes};
use skep::store::{self, Store};
use skep::sys::clock::Clock;
use skep::sys::probe::probe;
use skep::tracker::{self, Tracker};
use skep::types::{Family, Refusal, Rejected};
use skep::worker::stream::{
    FrontEnds, Listener, Options, StreamBackend, StreamContext, StreamWorker,
};
use socket2::{Domain, Socket, Type};
use tempfile::TempDir;
use tungstenite::protocol::WebSocketConfig;
use tungstenite::{Message, WebSocket};

pub(crate) use crate::support::eventually;

/// How long anything may take before a test gives up on it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// Runs a test on each backend that this host allows.
pub(crate) fn for_each_backend(test: impl Fn(StreamBackend)) {
    test(StreamBackend::Tokio);
    match probe() {
        Ok(()) => test(StreamBackend::Uring),
        Err(error) if std::env::var("SKEP_REQUIRE_EXTERNAL").is_ok_and(|it| it == "1") => {
            panic!("{error}")
        }
        Err(error) => eprintln!("skipped: {error}"),
    }
}

/// What a server is to be like.
pub(crate) struct Plan {
    pub(crate) workers: usize,
    pub(crate) connections_max: u32,
    pub(crate) options: Options,
    pub(crate) http: http::Options,
    pub(crate) ws: ws::Options,
    pub(crate) rules: tracker::Options,
    /// What sources are limited to; `None`: nobody is.
    pub(crate) limits: Option<limiter::Options>,
}

impl Default for Plan {
    fn default() -> Self {
        let options =
            Options { exempt: vec!["127.0.0.0/8".parse().unwrap()], ..Options::default() };
        let ws = ws::Options { offers_per_minute_max: 0, ..ws::Options::default() };
        let (http, rules) = (http::Options::default(), tracker::Options::default());
        Self { workers: 1, connections_max: 20_000, options, http, ws, rules, limits: None }
    }
}

/// Running workers. Each has ports of its own, so that a client chooses its worker.
pub(crate) struct Server {
    pub(crate) plain: Vec<SocketAddr>,
    pub(crate) tls: Vec<SocketAddr>,
    pub(crate) unix: std::path::PathBuf,
    pub(crate) options: Arc<ArcSwap<Options>>,
    pub(crate) shared: Arc<StreamContext>,
    pub(crate) store: Arc<Store>,
    pub(crate) web_peers: Arc<ws::Directory>,
    pub(crate) counters: Vec<Arc<StreamCounters>>,
    certificate: CertificateDer<'static>,
    directory: TempDir,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Server {
    pub(crate) fn start(backend: StreamBackend, plan: Plan) -> Self {
        let (tls, certificate) = tls_config();
        let options = Arc::new(ArcSwap::from_pointee(plan.options));
        let tls = Arc::new(ArcSwap::from_pointee(tls));
        let shared = StreamContext::new(plan.workers, plan.connections_max, Some(tls));
        let directory = tempfile::tempdir().unwrap();
        let unix = directory.path().join("socket");
        let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
        let mut server = Self {
            plain: Vec::new(),
            tls: Vec::new(),
            unix,
            options,
            shared,
            store: store.clone(),
            web_peers: Arc::new(ws::Directory::new(&[7; 16])),
            counters: Vec::new(),
            certificate,
            directory,
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let http = Arc::new(ArcSwap::from_pointee(plan.http));
        let ws = Arc::new(ArcSwap::from_pointee(plan.ws));
        let pages = Arc::new(ArcSwap::from_pointee(stats::Pages::default()));
        let rules = Arc::new(ArcSwap::from_pointee(plan.rules));
        let web_peers = server.web_peers.clone();
        let limits = plan.limits.map(|it| Arc::new(ArcSwap::from_pointee(it)));
        let limiter = Arc::new(Limiter::new(Sizes::default(), Some(1)));
        let clock = Clock::start();
        for worker in 0..plan.workers {
            let mut tracker = Tracker::without_upkeep(store.clone(), rules.clone(), worker as u64);
            if let Some(limits) = &limits {
                let gate = Handle::new(limiter.clone(), limits.clone(), Arc::default(), 1);
                tracker = tracker.with_limiter(gate);
            }
            let front_ends = FrontEnds {
                tracker,
                http: HttpFrontend::new(http.clone(), pages.clone()),
                ws: ws::WsFrontend::new(web_peers.clone(), ws.clone()),
            };
            server.start_worker(backend, worker, front_ends, clock);
        }
        server
    }

    fn start_worker(
        &mut self,
        backend: StreamBackend,
        worker: usize,
        front_ends: FrontEnds,
        clock: Clock,
    ) {
        let (plain, tls) = (listen(), listen());
        self.plain.push(plain.local_addr().unwrap());
        self.tls.push(tls.local_addr().unwrap());
        let mut listeners = vec![Listener::Plain(plain), Listener::Tls(tls)];
        if worker == 0 {
            listeners.push(Listener::Unix(UnixListener::bind(&self.unix).unwrap()));
        }
        let counters = Arc::new(StreamCounters::default());
        let job = StreamWorker {
            worker: worker.try_into().unwrap(),
            shared: self.shared.clone(),
            listeners,
            front_ends,
            options: self.options.clone(),
            begin_turn: Box::new(|| ()),
            clock,
            counters: counters.clone(),
        };
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || job.run(backend, &stop)));
        self.counters.push(counters);
    }

    /// A sum over all workers.
    pub(crate) fn sum(&self, count: impl Fn(&StreamCounters) -> u64) -> u64 {
        self.counters.iter().map(|it| count(it)).sum()
    }

    pub(crate) fn closed(&self, reason: CloseReason) -> u64 {
        self.sum(|it| it.closed(reason).get())
    }

    pub(crate) fn rejected(&self, transport: Transport, rejected: Rejected) -> u64 {
        let of = |counters: &StreamCounters, family| {
            counters.requests(transport, family).rejected[rejected as usize].get()
        };
        self.sum(|it| Family::ALL.iter().map(|family| of(it, *family)).sum())
    }

    pub(crate) fn received(&self, transport: Transport) -> u64 {
        let of = |it: &StreamCounters, family| it.requests(transport, family).received.get();
        self.sum(|it| Family::ALL.iter().map(|family| of(it, *family)).sum())
    }

    /// Peers of all kinds in the store.
    pub(crate) fn peers(&self) -> u64 {
        let totals = self.store.totals();
        totals.seeders.iter().chain(&totals.leechers).sum()
    }

    /// Waits until so many connections ended for this reason.
    pub(crate) fn expect_closed(&self, reason: CloseReason, count: u64) {
        eventually(reason.label(), || self.closed(reason) >= count);
        assert_eq!(self.closed(reason), count, "{reason:?}");
    }

    /// Tells the workers to stop.
    pub(crate) fn begin_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Stops, and checks that every connection and every request is accounted for. Says how long
    /// stopping took.
    pub(crate) fn finish(self) -> Duration {
        let start = Instant::now();
        self.begin_stop();
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
        let elapsed = start.elapsed();
        for counters in &self.counters {
            assert_eq!(
                Transport::ALL.map(|transport| counters.open(transport).get()),
                [0, 0],
                "open"
            );
            assert_eq!(counters.open_tls.get(), 0, "open over TLS");
            let closed: u64 =
                CloseReason::ALL.iter().map(|reason| counters.closed(*reason).get()).sum();
            assert_eq!(counters.accepted.get(), closed, "each connection ended for one reason");
            for (transport, family) in
                Transport::ALL.into_iter().flat_map(|it| Family::ALL.map(|family| (it, family)))
            {
                let requests = counters.requests(transport, family);
                let sum = |counts: &[skep::counters::Counter]| -> u64 {
                    counts.iter().map(skep::counters::Counter::get).sum()
                };
                let handled = sum(&requests.answered) + sum(&requests.refused);
                assert_eq!(requests.received.get(), handled + sum(&requests.rejected));
            }
        }
        assert_eq!((self.shared.connections_open(), self.shared.held_bytes()), (0, 0));
        elapsed
    }

    /// A client of the first worker.
    pub(crate) fn connect(&self) -> Client<TcpStream> {
        Client::new(connect(self.plain[0]))
    }

    /// A client of the first worker from another address of this host.
    pub(crate) fn connect_from(&self, source: [u8; 4]) -> Client<TcpStream> {
        Client::new(connect_from(self.plain[0], source.into()).unwrap())
    }

    /// How clients trust the server; sessions are remembered by it.
    pub(crate) fn trust(&self) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    }

    /// A WebSocket to one of the workers.
    pub(crate) fn web_socket(&self, worker: usize) -> Web<TcpStream> {
        upgrade(connect(self.plain[worker]))
    }
}

fn listen() -> TcpListener {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).unwrap();
    socket.set_tcp_nodelay(true).unwrap(); // before anybody connects: it is inherited then
    socket.listen(4096).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket.into()
}

fn tls_config() -> (ServerConfig, CertificateDer<'static>) {
    let names = vec!["localhost".to_owned()];
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    (config, cert.der().clone())
}

pub(crate) fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

pub(crate) fn connect_from(address: SocketAddr, source: Ipv4Addr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect_timeout(&address.into(), DEADLINE)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket.into())
}

/// One end of a TLS connection.
pub(crate) type Secure = StreamOwned<ClientConnection, TcpStream>;

pub(crate) fn secure(config: Arc<ClientConfig>, stream: TcpStream) -> Secure {
    let connection = ClientConnection::new(config, "localhost".try_into().unwrap()).unwrap();
    StreamOwned::new(connection, stream)
}

/// A client that speaks HTTP.
pub(crate) struct Client<S> {
    pub(crate) stream: S,
    received: Vec<u8>,
}

/// A response.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, received: Vec::new() }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Asks for a path, and reads the response.
    pub(crate) fn get(&mut self, path: &str) -> Response {
        self.send(request(path).as_bytes());
        self.read_response()
    }

    /// Reads one response, with a length or in chunks.
    pub(crate) fn read_response(&mut self) -> Response {
        let end = self.read_until(b"\r\n\r\n");
        let head = String::from_utf8(self.received.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = if head.contains("Transfer-Encoding: chunked\r\n") {
            self.chunks()
        } else {
            let length = head.split("Content-Length: ").nth(1).unwrap();
            let length = length.split("\r\n").next().unwrap().parse().unwrap();
            self.take(length)
        };
        Response { status, head, body }
    }

    fn chunks(&mut self) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let end = self.read_until(b"\r\n");
            let size: Vec<u8> = self.received.drain(..end).collect();
            let size = std::str::from_utf8(&size).unwrap().trim_end();
            let size = usize::from_str_radix(size, 16).unwrap();
            body.extend(self.take(size));
            assert_eq!(self.take(2), b"\r\n");
            if size == 0 {
                return body;
            }
        }
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        while self.received.len() < count {
            self.read_some();
        }
        self.received.drain(..count).collect()
    }

    /// Where these bytes end.
    fn read_until(&mut self, bytes: &[u8]) -> usize {
        loop {
            if let Some(at) = self.received.windows(bytes.len()).position(|it| it == bytes) {
                return at + bytes.len();
            }
            self.read_some();
        }
    }

    fn read_some(&mut self) {
        let mut buffer = [0; 16 * 1024];
        let count = self.stream.read(&mut buffer).unwrap();
        assert!(count > 0, "closed after {:?}", String::from_utf8_lossy(&self.received));
        self.received.extend_from_slice(&buffer[..count]);
    }

    /// Waits for the server's end of the connection, before which nothing may come.
    pub(crate) fn expect_end(&mut self) {
        assert!(self.received.is_empty(), "{:?}", String::from_utf8_lossy(&self.received));
        match self.stream.read(&mut [0; 16]) {
            Ok(count) => assert_eq!(count, 0, "more came"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
}

pub(crate) fn request(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")
}

/// The path of an announce, of a peer at this port.
pub(crate) fn announce_path(torrent: &str, port: u16) -> String {
    format!("/announce?info_hash={torrent:-<20}&peer_id=-TR4000-abcdefghijkl&port={port}&left=1")
}

/// A WebSocket.
pub(crate) type Web<S> = WebSocket<S>;

pub(crate) fn upgrade<S: Read + Write>(stream: S) -> Web<S> {
    let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
    let client = tungstenite::client::client_with_config("ws://localhost/", stream, Some(config));
    client.map_err(|error| error.to_string()).unwrap().0
}

/// The next text message; pongs are sent on the way.
pub(crate) fn text<S: Read + Write>(socket: &mut Web<S>) -> String {
    loop {
        match socket.read().unwrap() {
            Message::Text(text) => return text.as_str().to_owned(),
            Message::Ping(_) => socket.flush().unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// Says something, and gives the response.
pub(crate) fn ask<S: Read + Write>(socket: &mut Web<S>, message: &str) -> String {
    socket.send(Message::text(message)).unwrap();
    text(socket)
}

/// The refusal's text as it stands in a bencoded response.
pub(crate) fn is_refused(response: &Response, refusal: Refusal) -> bool {
    String::from_utf8_lossy(&response.body).contains(refusal.text())
}
