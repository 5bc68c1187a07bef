//! The stream worker: HTTP, HTTPS, WebSocket and wss on one thread, one task per connection.
//!
//! ```text
//! listener ─▶ accept ─▶ [PROXY header] ─▶ [TLS] ─▶ http ─▶ frontend::http ─▶ one write a read
//!             limits                                └─ upgrade ─▶ ws ─▶ frontend::ws
//!                 late ones are ended                  queue ◀─ responses, mail of other sockets
//! ```
//!
//! The code is the same on io_uring and on epoll (`sys::stream`). Everything that a connection
//! holds is bounded, and is freed at a deadline that the client cannot extend: the head of a
//! request must arrive within 5 seconds of its first byte, a client must receive its response, a
//! WebSocket must respond to pings. The memory of all connections together is bounded
//! (`connection_memory`), and their work is charged to their sources (`charges`).

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

use crate::counters::StreamCounters;
pub use crate::frontend::FrontEnds;
use crate::sys::clock::Clock;
use crate::sys::stream::Network;
use crate::sys::stream::epoll::Epoll;
use crate::sys::stream::uring::UringNetwork;
use crate::time::Now;
use crate::worker::request_log::RequestLog;
use admission::Connections;
use connection_memory::{Account, MemoryWaiters};
use inbox::Inbox;
use shutdown::{ShutdownSignal, Stage};

/// How bytes travel between kernel and worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamBackend {
    /// An io_uring per worker, through tokio-uring.
    Uring,
    /// epoll, through tokio. Works everywhere.
    Tokio,
}

impl StreamBackend {
    /// The backend's name in flags, logs and labels.
    pub fn label(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Tokio => "tokio",
        }
    }
}

/// A socket that is bound and listens. Set TCP_NODELAY on a TCP listener before it listens:
/// connections inherit it. Without it a second small response waits for the client's delayed
/// acknowledgement. The worker sets it too, which is too late for clients that have connected
/// already.
#[derive(Debug)]
pub enum Listener {
    /// HTTP and WebSocket.
    Plain(TcpListener),
    /// HTTP and WebSocket over TLS.
    Tls(TcpListener),
    /// HTTP and WebSocket from a reverse proxy on this host, which names its clients.
    Unix(UnixListener),
}

/// Settings of the operator. A reload replaces the whole value.
#[derive(Clone, Debug)]
pub struct Options {
    /// Seconds in which the head of a request has to arrive. They count from its first byte; for
    /// the first request from the accept, so that a PROXY header and the TLS handshake are
    /// included.
    pub head_timeout_s: u32,
    /// Seconds that a connection may wait for the next request. The same number, at most 30, bounds
    /// how long a client takes to receive 64 KiB, or to send the rest of a WebSocket message.
    pub idle_timeout_s: u32,
    /// Seconds between two pings to a WebSocket, which is closed after twice that time without a
    /// frame.
    pub ping_interval_s: u32,
    /// Most connections of one address. A network may have a multiple of that, as in the limiter.
    pub connections_per_source_max: u32,
    /// Bytes that all connections may hold together. Must not be 0.
    pub memory_max_bytes: u64,
    /// Sources whose connections are not counted.
    pub exempt: Vec<IpNet>,
    /// Sources that are not counted, and whose PROXY headers are trusted.
    pub trusted_proxies: Vec<IpNet>,
    /// The log of requests that are not served, if it is on.
    pub request_log: Option<Arc<RequestLog>>,
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
            request_log: None,
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
    /// Shared state for `workers` workers, and a limit on the connections of all of them. The
    /// configuration in `tls` may be replaced at any time: the next connection uses the new one.
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

    /// Makes workers accept nothing until [`Self::release`], because another process accepts. They
    /// keep every resource that they need to accept, and serve open connections.
    pub fn hold(&self) {
        self.ending.pause.request();
    }

    /// Lets workers accept.
    pub fn release(&self) {
        self.ending.pause.end();
    }

    /// How many workers have all resources that they need to accept connections, whether they may
    /// or not.
    pub fn workers_prepared(&self) -> usize {
        self.ending.prepared()
    }

    /// How many workers accept nothing because of [`Self::hold`].
    pub fn workers_held(&self) -> usize {
        self.ending.pause.paused()
    }

    /// Records that another process keeps the listeners. Workers that stop must not shut them down:
    /// connections that wait in them are for that process.
    pub fn keep_listeners(&self) {
        self.ending.keep_listeners();
    }

    /// Closes all WebSockets, spread over the time until `until`, so that clients reconnect.
    /// Everything is served meanwhile.
    pub fn drain(&self, until: Now) {
        self.ending.enter(Stage::Draining, until);
    }

    /// As [`Self::drain`], but workers accept nothing more, and HTTP connections end after a
    /// response. The listeners are kept.
    pub fn leave(&self, until: Now) {
        self.ending.keep_listeners();
        self.ending.enter(Stage::Leaving, until);
    }

    /// Bytes held by connections and by messages between workers, accurate to 16 KiB for each
    /// worker.
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
    /// Index of the worker, from 0.
    pub worker: u16,
    /// State shared with the other workers.
    pub shared: Arc<StreamContext>,
    /// The worker's own sockets, each bound once for every worker (SO_REUSEPORT).
    pub listeners: Vec<Listener>,
    /// The front ends that produce responses.
    pub front_ends: FrontEnds,
    /// Current settings.
    pub options: Arc<ArcSwap<Options>>,
    /// Called before a request, a message or a connection is handled. Updates `options` and the
    /// options of `front_ends` together.
    pub begin_turn: Box<dyn FnMut() + Send>,
    /// The clock of the process.
    pub clock: Clock,
    /// The worker's own counters.
    pub counters: Arc<StreamCounters>,
}

impl StreamWorker {
    /// Serves on the calling thread until `stop` is set, which it checks ten times a second. Pin
    /// the thread first. After the stop no connection is accepted, connections that wait are
    /// closed, and the others have 2 seconds to end.
    ///
    /// # Errors
    /// If the backend cannot start, or there is a TLS listener without a configuration.
    pub fn run(self, backend: StreamBackend, stop: &AtomicBool) -> io::Result<()> {
        match backend {
            StreamBackend::Uring => UringNetwork::run(thread::main::<UringNetwork>(self, stop))?,
            StreamBackend::Tokio => Epoll::run(thread::main::<Epoll>(self, stop))?,
        }
    }
}
