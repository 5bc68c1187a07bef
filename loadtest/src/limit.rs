//! The physical limit: a responder that does no tracking, on the same workers and backends as the
//! tracker. It decodes a request, writes a response of the usual size and stores nothing, so its
//! cost is that of UDP on this host.
//!
//! The same code can serve the real tracker, for tests without a skep binary.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use skep::counters::WorkerCounters;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::udp::UdpFrontend;
use skep::protocol::udp::{
    Request, decode, encode_announced, encode_connected, encode_scraped, peer_stride, peers_of,
};
use skep::store::Store;
use skep::sys::affinity::{pin, usable_cpus};
use skep::sys::clock::Clock;
use skep::sys::probe::probe;
use skep::sys::socket::{BoundUdp, UdpOptions, bind_udp};
use skep::time::Now;
use skep::tracker::{Options, Tracker};
use skep::types::{Action, AnnounceResponse, DatagramResponse, Dropped, Family, ScrapeEntry};
use skep::worker::Responder;
use skep::worker::datagram::{DatagramBackend, DatagramWorker};

/// How to serve.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServeOptions {
    /// Address to listen on; repeatable. Port 0 lets the kernel choose.
    #[arg(long, value_name = "ADDR", default_values = ["127.0.0.1:0", "[::1]:0"])]
    pub(crate) listen: Vec<SocketAddr>,
    /// How datagrams are received and sent.
    #[arg(long, value_enum, default_value_t = Io::Auto)]
    pub(crate) io: Io,
    /// Worker threads, each with sockets of its own on every address.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) workers: u16,
}

/// Which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Io {
    /// io_uring if this host allows it, else recvmmsg.
    Auto,
    /// io_uring.
    Uring,
    /// recvmmsg and sendmmsg.
    Mmsg,
}

impl Io {
    fn backend(self) -> DatagramBackend {
        match self {
            Self::Uring => DatagramBackend::Uring,
            Self::Mmsg => DatagramBackend::Mmsg,
            Self::Auto if probe().is_ok() => DatagramBackend::Uring,
            Self::Auto => DatagramBackend::Mmsg,
        }
    }
}

/// Responds to everything at a constant cost.
struct NoTracker {
    peers: [Vec<u8>; Family::ALL.len()],
}

/// Most peers whose compact form fits into a response in both families.
pub(crate) const PEERS_MAX: u16 = 67;

impl NoTracker {
    /// Every announce gets the same `peers` peers.
    fn new(peers: u16) -> Self {
        let list = |family| {
            let stride = peer_stride(family);
            let mut bytes = vec![0x2a; stride * usize::from(peers.min(PEERS_MAX))];
            for (number, peer) in (1_u16..).zip(bytes.chunks_exact_mut(stride)) {
                peer[stride - 2..].copy_from_slice(&number.to_be_bytes());
            }
            bytes
        };
        Self { peers: Family::ALL.map(list) }
    }
}

impl Responder for NoTracker {
    const PREFETCH_STAGES: usize = 0;

    fn prefetch(&mut self, _stage: usize, _datagram: &[u8]) {}

    #[inline]
    fn handle(
        &mut self,
        _now: Now,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<DatagramResponse, Dropped> {
        let (action, bytes) = match decode(datagram)? {
            Request::Connect(head) => (Action::Connect, encode_connected(head, 1, out)),
            Request::Announce(request, _) => {
                let list = &self.peers[Family::of(source.ip()) as usize];
                let wanted = request.numwant().unwrap_or(0) as usize;
                let stride = peer_stride(Family::of(source.ip()));
                let list = &list[..list.len().min(wanted * stride)];
                peers_of(out)[..list.len()].copy_from_slice(list);
                let response = AnnounceResponse {
                    interval_s: 1800,
                    min_interval_s: 900,
                    leechers: 1,
                    seeders: 1,
                };
                let bytes = encode_announced(&request.head, &response, list.len(), out);
                (Action::Announce, bytes)
            }
            Request::Scrape(head, hashes) => {
                let entries = hashes.iter().map(|_| ScrapeEntry::default());
                (Action::Scrape, encode_scraped(head, entries, out))
            }
        };
        Ok(DatagramResponse::served(action, bytes))
    }

    fn upkeep(&mut self, _now: Now) {}

    fn set_queue(&mut self, _queue_permille: u32) {}
}

/// Why nothing is served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// An address cannot be used.
    #[error("cannot listen: {0}")]
    Listen(io::Error),
    /// A worker has ended.
    #[error("the {backend} backend failed: {error}; try --io mmsg")]
    Backend {
        /// The backend's name.
        backend: &'static str,
        /// Why it ended.
        error: io::Error,
    },
}

/// Serves without tracking until the process is terminated.
///
/// # Errors
/// One sentence with the cause.
pub(crate) fn serve_limit(options: &ServeOptions, peers: u16) -> Result<(), ServeError> {
    serve(options, |_| NoTracker::new(peers))
}

/// Serves the library's tracker with default settings until the process is terminated.
///
/// # Errors
/// One sentence with the cause.
pub(crate) fn serve_tracker(options: &ServeOptions) -> Result<(), ServeError> {
    let store = Arc::new(Store::new(skep::store::Options::default()));
    let rules =
        Arc::new(ArcSwap::from_pointee(Options { interval_jitter_s: 0, ..Default::default() }));
    let key = random_key();
    let keys = KeyPair { active: key, staging: None, algorithm: Algorithm::SipHash };
    let ids = Arc::new(ArcSwap::from_pointee(ConnectionIds::new(&keys)));
    let workers = usize::from(options.workers);
    serve(options, |worker| {
        let (store, rules) = (Arc::clone(&store), Arc::clone(&rules));
        let tracker = Tracker::new(store, rules, fastrand::u64(..), worker, workers);
        UdpFrontend::new(tracker, Arc::clone(&ids))
    })
}

/// Good enough for a tracker that runs as long as a benchmark.
fn random_key() -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    fastrand::fill(&mut key);
    key
}

fn serve<R: Responder + Send>(
    options: &ServeOptions,
    make: impl Fn(usize) -> R,
) -> Result<(), ServeError> {
    let backend = options.io.backend();
    let workers = usize::from(options.workers);
    let mut listen = options.listen.clone();
    let mut sockets: Vec<Vec<BoundUdp>> = Vec::with_capacity(workers);
    for _ in 0..workers {
        sockets.push(bind(&mut listen).map_err(ServeError::Listen)?);
    }
    let clock = Clock::start();
    let stop = AtomicBool::new(false);
    let cpus = usable_cpus().unwrap_or_default();
    let addresses: Vec<String> = listen.iter().map(|it| format!("udp={it}")).collect();
    std::thread::scope(|scope| {
        let (clock, stop) = (&clock, &stop);
        let start = |(worker, sockets): (usize, Vec<BoundUdp>)| {
            let mut responder = make(worker);
            let cpu = cpus.get(worker % cpus.len().max(1)).copied();
            scope.spawn(move || {
                // Unpinned, it works as well.
                let _ = cpu.map(pin);
                let counters = WorkerCounters::default();
                let (sockets, counters) = (&sockets[..], &counters);
                DatagramWorker { backend, sockets, clock, counters, stop }.run(&mut responder)
            })
        };
        let threads: Vec<_> = sockets.into_iter().enumerate().map(start).collect();
        say_ready(&addresses, backend, workers);
        let results = threads
            .into_iter()
            .map(|it| it.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked"))));
        results.collect::<io::Result<()>>()
    })
    .map_err(|error| ServeError::Backend { backend: backend.label(), error })
}

/// One worker's sockets. The first call fixes the ports that the kernel chose, for all workers.
fn bind(listen: &mut [SocketAddr]) -> io::Result<Vec<BoundUdp>> {
    let mut sockets = Vec::with_capacity(listen.len());
    for address in listen {
        let socket = bind_udp(*address, &UdpOptions::default())?;
        *address = socket.address();
        sockets.push(socket);
    }
    Ok(sockets)
}

fn say_ready(addresses: &[String], backend: DatagramBackend, workers: usize) {
    let mut out = io::stdout().lock();
    // If standard output is closed, serving continues.
    let _ = writeln!(out, "ready {} io={} workers={workers}", addresses.join(" "), backend.label());
    let _ = out.flush();
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep::protocol::udp::TransactionId;
    use skep::protocol::udp::client;
    use skep::types::{Event, InfoHash, PeerId};

    fn ask(request: &[u8]) -> Vec<u8> {
        let mut out = [0; 1232];
        let source = "127.0.0.1:7".parse().unwrap();
        let answered = NoTracker::new(12).handle(Now::from_s(0), source, request, &mut out);
        out[..answered.unwrap().bytes].to_vec()
    }

    #[test]
    fn the_limit_answers_every_kind_as_a_tracker_would() {
        let id = TransactionId([1, 2, 3, 4]);
        let mut request = [0; 2048];
        let bytes = client::encode_connect(id, &mut request);
        let response = ask(&request[..bytes]);
        assert_eq!(client::decode(&response, Family::V4), Ok((id, client::Response::Connected(1))));

        let hashes = [InfoHash([7; 20]); 3];
        let bytes = client::encode_scrape(1, id, &hashes, &mut request);
        let response = ask(&request[..bytes]);
        let Ok((_, client::Response::Scraped(entries))) = client::decode(&response, Family::V4)
        else {
            panic!("{response:?}");
        };
        assert_eq!(entries.count(), 3);
    }

    #[test]
    fn the_limit_hands_out_what_is_wanted_at_most() {
        let mut request = [0; 2048];
        for (numwant, expected) in [(30, 12), (5, 5), (-1, 0)] {
            let announcement = client::Announcement {
                info_hash: InfoHash([1; 20]),
                peer_id: PeerId([2; 20]),
                downloaded: 0,
                left: 1,
                uploaded: 0,
                event: Event::Started,
                numwant,
                port: 1,
                key: [0; 4],
            };
            let id = TransactionId([0; 4]);
            let bytes = client::encode_announce(1, id, &announcement, &mut request);
            let response = ask(&request[..bytes]);
            let Ok((_, client::Response::Announced(_, peers))) =
                client::decode(&response, Family::V4)
            else {
                panic!("{response:?}");
            };
            assert_eq!(peers.len(), expected * 6);
        }
    }
}
