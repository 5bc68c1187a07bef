//! Starts the stream workers: as many as there are datagram workers. They are not pinned, because
//! their work depends on connections, not on cores.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use tokio::sync::mpsc;

use crate::config::Config;
use crate::counters::StreamCounters;
use crate::frontend::FrontEnds;
use crate::frontend::http::HttpFrontend;
use crate::frontend::ws::{Directory, WsFrontend};
use crate::server::StartError;
use crate::server::context::AppContext;
use crate::server::live_options::WorkerOptions;
use crate::server::sockets::listeners::UnixSocket;
use crate::server::sockets::stream_listeners::StreamListeners;
use crate::server::workers::{Tallies, WorkerExit, tracker_of};
use crate::time::Now;
use crate::tracker::Tracker;
use crate::types::Transport;
use crate::worker::datagram;
use crate::worker::stream::{Listener, StreamBackend, StreamContext, StreamWorker};

/// The running stream workers.
pub(crate) struct Streams {
    /// The counters of each worker.
    pub(crate) counters: Vec<Arc<StreamCounters>>,
    /// The counts of each worker's rules.
    pub(crate) tallies: Vec<Tallies>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    shared: Arc<StreamContext>,
    /// Removed when everything has ended.
    unix: Option<UnixSocket>,
}

impl Streams {
    /// Starts `workers` workers. If `held`, they accept only after [`Self::release`].
    pub(crate) fn start(
        config: &Config,
        context: &AppContext,
        backend: datagram::DatagramBackend,
        mut listeners: StreamListeners,
        tls: Option<Arc<ArcSwap<ServerConfig>>>,
        ends: &mpsc::UnboundedSender<WorkerExit>,
        (workers, held): (usize, bool),
    ) -> Result<Self, StartError> {
        let lacking = |error| StartError::lacking("cannot start the stream workers", &error);
        let hands = listeners.deal(workers).map_err(lacking)?;
        let by_streams = StreamContext::new(workers, connections_max_of(config), tls);
        context.memory.count_connections(by_streams.clone());
        if held {
            by_streams.hold();
        }
        let backend = match backend {
            datagram::DatagramBackend::Uring => StreamBackend::Uring,
            datagram::DatagramBackend::Mmsg => StreamBackend::Tokio,
        };
        let directory = Arc::new(Directory::default());
        let stop = Arc::new(AtomicBool::new(false));
        let (counters, tallies, threads) = Default::default();
        let shared_by_streams = by_streams.clone();
        let mut streams =
            Self { counters, tallies, threads, stop, shared: shared_by_streams, unix: None };
        for (worker, listeners) in hands.into_iter().enumerate() {
            let counters = Arc::new(StreamCounters::default());
            let tallies = Tallies::default();
            streams.counters.push(counters.clone());
            streams.tallies.push(tallies.clone());
            let spawn = StreamSpawn {
                worker,
                listeners,
                counters,
                tallies,
                context: context.clone(),
                by_streams: by_streams.clone(),
                directory: directory.clone(),
                stop: streams.stop.clone(),
                backend,
            };
            let ends = ends.clone();
            let thread = std::thread::Builder::new().name(format!("tcp-{worker}"));
            let thread = thread.spawn(move || {
                let result = spawn.run();
                // Fails only if the process ends anyway.
                let _ = ends.send(WorkerExit { worker: format!("tcp-{worker}"), result });
            });
            streams.threads.push(thread.map_err(lacking)?);
        }
        streams.unix = listeners.unix;
        Ok(streams)
    }

    /// Whether every worker has all resources that it needs to accept connections, whether it may
    /// or not.
    pub(crate) fn are_prepared(&self) -> bool {
        self.shared.workers_prepared() >= self.threads.len()
    }

    /// Makes the workers accept nothing until [`Self::release`].
    pub(crate) fn hold(&self) {
        self.shared.hold();
    }

    /// Whether no worker accepts.
    pub(crate) fn are_held(&self) -> bool {
        self.shared.workers_held() >= self.threads.len()
    }

    /// Lets the workers accept.
    pub(crate) fn release(&self) {
        self.shared.release();
    }

    /// Records that another process keeps the listeners.
    pub(crate) fn keep_listeners(&self) {
        self.shared.keep_listeners();
    }

    /// A function that records the same, for another thread.
    pub(crate) fn keeper(&self) -> impl Fn() + Send + 'static {
        let shared = self.shared.clone();
        move || shared.keep_listeners()
    }

    /// Takes over the Unix socket's file, if it was a predecessor's.
    pub(crate) fn own_unix(&mut self) {
        if let Some(unix) = &mut self.unix {
            unix.own();
        }
    }

    /// Closes WebSockets one after the other until `until`, so that clients reconnect.
    pub(crate) fn drain(&self, until: Now) {
        self.shared.drain(until);
    }

    /// Makes the workers accept no more, because a successor does. Open connections end over the
    /// time until `until`.
    pub(crate) fn leave(&mut self, until: Now) {
        self.shared.leave(until);
        if let Some(unix) = &mut self.unix {
            unix.is_passed_on = true;
        }
    }

    /// Whether any connection is open.
    pub(crate) fn are_connected(&self) -> bool {
        self.shared.connections_open() > 0
    }

    /// Whether any HTTP connection is open. After [`Self::leave`] each closes after a response.
    pub(crate) fn have_http_connections(&self) -> bool {
        self.counters.iter().any(|it| it.open(Transport::Http).get() > 0)
    }

    /// Stops all workers, and waits for their end.
    pub(crate) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            // A panic would have ended the process.
            let _ = thread.join();
        }
    }
}

/// Most connections: as configured, else nine tenths of the descriptors. The rest is for the admin
/// listener, files and datagram sockets.
fn connections_max_of(config: &Config) -> u32 {
    if config.http.connections_max > 0 {
        return config.http.connections_max;
    }
    let (soft, _) = rlimit::Resource::NOFILE.get().unwrap_or((1024, 1024));
    u32::try_from(soft / 10 * 9).unwrap_or(u32::MAX)
}

/// What one worker moves to its thread.
struct StreamSpawn {
    worker: usize,
    listeners: Vec<Listener>,
    counters: Arc<StreamCounters>,
    tallies: Tallies,
    context: AppContext,
    by_streams: Arc<StreamContext>,
    directory: Arc<Directory>,
    stop: Arc<AtomicBool>,
    backend: StreamBackend,
}

impl StreamSpawn {
    fn run(self) -> io::Result<()> {
        let context = self.context;
        let mut options = WorkerOptions::new(context.options.clone());
        let tracker = tracker_of(&context, &options, self.tallies, |seed| {
            Tracker::without_upkeep(context.store.clone(), options.tracker.clone(), seed)
        })?;
        let http = HttpFrontend::new(options.http.clone(), context.pages)
            .with_full_scrapes(context.full_scrapes)
            .with_unlisted_proxies(context.unlisted_proxies);
        let ws = WsFrontend::new(self.directory, options.websocket.clone());
        let worker = StreamWorker {
            worker: u16::try_from(self.worker).unwrap_or(u16::MAX),
            shared: self.by_streams,
            listeners: self.listeners,
            front_ends: FrontEnds { tracker, http, ws },
            options: options.streams.clone(),
            begin_turn: Box::new(move || options.begin_turn()),
            clock: context.clock,
            counters: self.counters,
        };
        worker.run(self.backend, &self.stop)
    }
}
