//! A steady stream of announces over UDP, of which every one has to be answered.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::disallowed_methods, reason = "a pace needs a clock")]

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::encode_announce;
use socket2::SockRef;

use crate::support::{self, Client, DEADLINE, leecher};

/// Sockets that send, so that all workers get some.
const SENDERS: u16 = 4;

/// Announces of one sender that may be on their way at once. Those of all senders fit into one
/// receive buffer of the least size (`net.core.rmem_default`), so that none is lost in the kernel
/// however long a busy host keeps the tracker waiting: a loss is the tracker's.
const ON_THEIR_WAY_MAX: u64 = 40;

/// How often a sender sends what is due.
const TICK: Duration = Duration::from_millis(2);

/// Announces on their way, with connection ids from its start.
pub(crate) struct Steady {
    sending: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    senders: Vec<JoinHandle<Outcome>>,
}

/// What became of a sender's announces.
struct Outcome {
    sent: u32,
    answered: Vec<bool>,
}

impl Steady {
    /// Starts to send so many a second.
    pub(crate) fn start(address: SocketAddr, rate: u32) -> Self {
        let sending = Arc::new(AtomicBool::new(true));
        let answered = Arc::new(AtomicU64::new(0));
        let senders = (0..SENDERS).map(|number| {
            let client = Client::connect(address);
            let socket = client.socket.try_clone().unwrap();
            let _ = SockRef::from(&socket).set_recv_buffer_size(4 << 20);
            let (sending, answered) = (sending.clone(), answered.clone());
            let id = client.connection_id;
            let pace = rate / u32::from(SENDERS);
            std::thread::spawn(move || send(&socket, number, (id, pace), &sending, &answered))
        });
        let senders = senders.collect();
        Self { sending, answered, senders }
    }

    /// How many have been answered so far.
    pub(crate) fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until so many more have been answered.
    #[track_caller]
    pub(crate) fn wait_for(&self, more: u64) {
        let enough = self.answered() + more;
        support::eventually("answers come", || self.answered() >= enough);
    }

    /// Ends it; says how many were sent, and how many never answered.
    pub(crate) fn finish(self) -> (u64, u64) {
        self.sending.store(false, Ordering::Relaxed);
        let outcomes: Vec<_> = self.senders.into_iter().map(|it| it.join().unwrap()).collect();
        let sent = outcomes.iter().map(|it| u64::from(it.sent)).sum();
        let lost = outcomes.iter().flat_map(|it| &it.answered).filter(|it| !**it).count();
        (sent, lost as u64)
    }
}

fn send(
    socket: &UdpSocket,
    number: u16,
    (id, pace): (u64, u32),
    sending: &AtomicBool,
    answered: &AtomicU64,
) -> Outcome {
    let receiver = socket.try_clone().unwrap();
    let (total, here) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(&receiver, &total, [&here, answered]));
        let start = Instant::now();
        let mut sent: u32 = 0;
        let mut buffer = [0; 128];
        while sending.load(Ordering::Relaxed) {
            let due = start.elapsed().as_secs_f64() * f64::from(pace);
            let on_their_way = |sent: u32| u64::from(sent) - here.load(Ordering::Relaxed);
            while f64::from(sent) < due && on_their_way(sent) < ON_THEIR_WAY_MAX {
                let torrent = u8::try_from(sent % 50).unwrap();
                let announcement = leecher(torrent, 1000 + number);
                let transaction = TransactionId(sent.to_be_bytes());
                let bytes = encode_announce(id, transaction, &announcement, &mut buffer);
                // Nobody listens for a moment only if there is nobody at all: that is a loss.
                let _ = socket.send(&buffer[..bytes]);
                sent += 1;
            }
            std::thread::park_timeout(TICK);
        }
        total.store(sent.into(), Ordering::Relaxed);
        let mut answered = receiving.join().unwrap();
        answered.resize(sent as usize, false);
        Outcome { sent, answered }
    })
}

/// Notes which are answered, until all are or none has been for a while.
/// Counts them in each of `answered`.
fn receive(socket: &UdpSocket, total: &AtomicU64, answered: [&AtomicU64; 2]) -> Vec<bool> {
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (mut seen, mut count, mut latest) = (Vec::new(), 0, Instant::now());
    let mut buffer = [0; 2048];
    while count < total.load(Ordering::Relaxed) && latest.elapsed() < DEADLINE / 6 {
        let Ok(bytes) = socket.recv(&mut buffer) else { continue };
        assert!(bytes >= 20 && buffer[..4] == [0, 0, 0, 1], "{:?}", &buffer[..bytes]);
        let number = u32::from_be_bytes(buffer[4..8].try_into().unwrap()) as usize;
        if seen.len() <= number {
            seen.resize(number + 1, false);
        }
        let is_new = u64::from(!std::mem::replace(&mut seen[number], true));
        count += is_new;
        for counter in answered {
            counter.fetch_add(is_new, Ordering::Relaxed);
        }
        latest = Instant::now();
    }
    seen
}
