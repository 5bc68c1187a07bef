//! The stream worker: HTTP, HTTPS, WebSocket and wss on one thread, one task for each connection.
//!
//! ```text
//! listener ─▶ accept ─▶ [PROXY header] ─▶ [TLS] ─▶ http ─▶ frontend::http ─▶ one write a read
//!             limits                                └─ upgrade ─▶ ws ─▶ frontend::ws
//!                 late ones are ended                  queue ◀─ replies, mail of other sockets
//! ```
//!
//! The code is the same on io_uring and on epoll (`sys::stream`). Everything a connection holds is
//! bounded, and is given back at a deadline that the client cannot put off: the head of a request
//! has 5 seconds from its first byte, a reply has to be taken, a WebSocket has to answer pings.
//! What all of them hold together is bounded, too (`held`), and what they cost is paid for by their
//! sources (`charges`).

mod accept;
mod admission;
mod charges;
mod connection;
mod connection_memory;
mod frames;
mod http;
mod inbox;
mod shutdown;
mod slots;
mod thread;
mod tls;
mod ws;

use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use ipnet::IpNet;
use rustls::ServerConfig;

pub use crate::frontend::FrontEnds;
use crate::metrics::StreamCounters;
use crate::sys::clock::Clock;
use crate::sys::stream::Network;
use crate::sys::stream::epoll::Epoll;
use crate::sys::stream::uring::UringNetwork;
use crate::time::Now;
use admission::Connections;
use connection_memory::{Account, MemoryWaiters};
use inbox::Inbox;
use shutdown::{ShutdownSignal, Stage};

/// How bytes travel between kernel and worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamBackend {
    /// An io_uring of the worker's own, by way of tokio-uring.
    Uring,
    /// epoll, by way of tokio: works everywhere.
    Tokio,
}

impl StreamBackend {
    /// Its name in flags, logs and labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Tokio => "tokio",
        }
    }
}

/// A socket that is bound and listens. One for TCP should have had TCP_NODELAY set before: those
/// that connect inherit it, and without it a second small reply waits for the client's delayed
/// acknowledgement. The worker sets it too, which is too late for who has connected already.
#[derive(Debug)]
pub enum Listener {
    /// HTTP and WebSocket.
    Plain(TcpListener),
    /// The same over TLS.
    Tls(TcpListener),
    /// HTTP and WebSocket of a reverse proxy on this host, which names its clients.
    Unix(UnixListener),
}

/// What the operator may set; swapped whole on reload.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seconds in which the head of a request has to arrive, counted from its first byte or, of
    /// the first one, from the accept: a PROXY header and the TLS handshake included.
    pub head_timeout_s: u32,
    /// Seconds between two requests. Up to 30 of them are what a client has for taking 64 KiB, and
    /// for sending the rest of a WebSocket message.
    pub idle_timeout_s: u32,
    /// Seconds between two pings to a WebSocket. It is closed after twice that without a sign of
    /// life.
    pub ping_interval_s: u32,
    /// Most connections of one address. A network has some times as many: those of the limiter.
    pub connections_per_source_max: u32,
    /// Bytes that all connections may hold together. Not 0.
    pub memory_max_bytes: u64,
    /// Sources that are not counted.
    pub exempt: Vec<IpNet>,
    /// Sources that are not counted, and whose PROXY headers are believed.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            head_timeout_s: 5,
            idle_timeout_s: 75,
            ping_interval_s: 50,
            connections_per_source_max: 2048,
            memory_max_bytes: 1 << 30,
            exempt: Vec::new(),
            trusted_proxies: Vec::new(),
        }
    }
}

impl Options {
    fn is_trusted_proxy(&self, address: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|it| it.contains(&address))
    }

    fn counts(&self, address: IpAddr) -> bool {
        !self.is_trusted_proxy(address) && !self.exempt.iter().any(|it| it.contains(&address))
    }
}

/// What all stream workers share.
#[derive(Debug)]
pub struct StreamContext {
    connections: Arc<Connections>,
    account: Account,
    room: MemoryWaiters,
    inboxes: Vec<Inbox>,
    tls: Option<Arc<ArcSwap<ServerConfig>>>,
    ending: ShutdownSignal,
}

impl StreamContext {
    /// For so many workers, and so many connections over all of them. What `tls` holds may be
    /// replaced at any time: it is used from the next connection on.
    pub fn new(
        workers: usize,
        connections_max: u32,
        tls: Option<Arc<ArcSwap<ServerConfig>>>,
    ) -> Arc<Self> {
        let connections = Arc::new(Connections::new(connections_max));
        let inboxes = (0..workers).map(|_| Inbox::new()).collect();
        let ((account, ending), room) = (Default::default(), MemoryWaiters::new(workers));
        Arc::new(Self { connections, account, room, inboxes, tls, ending })
    }

    /// Makes workers accept nothing until [`Self::release`]: somebody else does. They keep all
    /// they need for it, and what is open is served.
    pub fn hold(&self) {
        self.ending.rest.request();
    }

    /// Lets workers accept.
    pub fn release(&self) {
        self.ending.rest.end();
    }

    /// Workers that have all they need to accept connections, whether they may or not.
    pub fn workers_prepared(&self) -> usize {
        self.ending.prepared()
    }

    /// Workers that accept nothing, as they were told to hold.
    pub fn workers_held(&self) -> usize {
        self.ending.rest.resting()
    }

    /// Says that the listeners go on without this process, and must not be shut down when workers
    /// stop: what waits in them is for whoever has them then.
    pub fn keep_listeners(&self) {
        self.ending.keep_listeners();
    }

    /// Tells all WebSockets to reconnect, spread over the time until then. Everything is served
    /// meanwhile.
    pub fn drain(&self, until: Now) {
        self.ending.enter(Stage::Draining, until);
    }

    /// The same, but connections are accepted no more, and those over HTTP end once they were
    /// answered. The listeners are kept.
    pub fn leave(&self, until: Now) {
        self.ending.keep_listeners();
        self.ending.enter(Stage::Leaving, until);
    }

    /// Bytes that connections hold, and what their workers send each other, give or take 16 KiB
    /// for each worker.
    pub fn held_bytes(&self) -> u64 {
        self.account.held()
    }

    /// How many connections are open.
    pub fn connections_open(&self) -> u32 {
        self.connections.open()
    }
}

/// A stream worker, ready to run.
pub struct StreamWorker {
    /// Which of the workers it is, from 0.
    pub worker: u16,
    /// What it shares with the others.
    pub shared: Arc<StreamContext>,
    /// Its own sockets, each bound once for every worker (SO_REUSEPORT).
    pub listeners: Vec<Listener>,
    /// What it answers with.
    pub front_ends: FrontEnds,
    /// What it goes by.
    pub options: Arc<ArcSwap<Options>>,
    /// Called before a request, a message or a connection is handled: brings `options`, and those
    /// of `front_ends`, up to date, all of them together.
    pub begin_turn: Box<dyn FnMut() + Send>,
    /// The clock of the process.
    pub clock: Clock,
    /// Its own counters.
    pub counters: Arc<StreamCounters>,
}

impl StreamWorker {
    /// Serves on the calling thread (pin it first) until `stop` is set, which is looked at ten
    /// times a second. Then no connection is accepted, those that wait are closed, and the others
    /// have 2 seconds.
    ///
    /// # Errors
    /// Where the backend cannot start, or TLS is listened for without a configuration.
    pub fn run(self, backend: StreamBackend, stop: &AtomicBool) -> io::Result<()> {
        match backend {
            StreamBackend::Uring => UringNetwork::run(thread::main::<UringNetwork>(self, stop))?,
            StreamBackend::Tokio => Epoll::run(thread::main::<Epoll>(self, stop))?,
        }
    }
}
