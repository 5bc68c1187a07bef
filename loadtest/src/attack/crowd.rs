//! Many clients behind one descriptor: every datagram names its own source address (IP_PKTINFO), so
//! that ten thousand sources share one unconnected socket and its port.
//!
//! A [`Work`] decides which source sends which request. The crowd sends the requests on time (open
//! loop) or as responses arrive (closed loop), obtains connection ids as a client has to, and
//! counts the outcome of each request. Unlike the generators of the other profiles it sleeps when
//! it has nothing to do: tracker and attackers may share its CPU.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{
    Announcement, Response, encode_announce, encode_connect, encode_scrape,
};
use skep::sys::address::{LocalAddress, RawAddress};
use skep::sys::clock::Clock;
use skep::sys::mmsg::{BATCH, ReceiveBatch, Received, SendBatch};
use skep::sys::socket::{BoundUdp, UdpOptions, bind_udp};
use skep::types::{Event, InfoHash, PeerId};

use crate::check::check;
use crate::interrupt;
use crate::numbers::{NS_PER_S, mix, ns, real, seconds, whole};
use crate::phase::Pace;
use crate::population::info_hash;
use crate::slots::{Kind, Pending, Settled, SlotTable};

use super::traffic::Traffic;
use super::{Arena, AttackError};

/// A request that a source is to send.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// Index of the source in the crowd.
    pub(crate) source: u16,
    /// Kind of the request.
    pub(crate) kind: Kind,
    /// Number that the work assigned to it.
    pub(crate) item: u32,
    /// Seed of its info-hashes, and its first torrent.
    pub(crate) torrent: (u64, u32),
    /// Number of peers wanted, or of info-hashes.
    pub(crate) count: u16,
    /// The port announced.
    pub(crate) port: u16,
    /// Whether it has a made-up connection id.
    pub(crate) forged: bool,
}

impl Ask {
    /// A request for a connection id.
    pub(crate) fn connect(source: u16) -> Self {
        let (kind, torrent) = (Kind::Connect, (0, 0));
        Self { source, kind, item: 0, torrent, count: 0, port: 0, forged: false }
    }

    /// This request, sent at `now_ns`.
    fn pending(&self, due_ns: u64, now_ns: u64) -> Pending {
        Pending {
            intended_ns: due_ns,
            sent_ns: now_ns,
            item: self.item,
            client: self.source,
            kind: self.kind,
            count: self.count,
            port: self.port,
        }
    }
}

/// Decides which source sends which request.
pub(crate) trait Work {
    /// The next request; `None` if there is none at the moment. `turn` is the source whose turn it
    /// is; the work may choose another.
    fn next(&mut self, turn: u16) -> Option<Ask>;

    /// Called for a good response.
    fn answered(&mut self, _asked: &Pending, _response: &Response<'_>) {}

    /// Called for a request without a good response.
    fn failed(&mut self, _asked: &Pending) {}
}

/// How requests are paced.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pacing {
    /// At moments fixed in advance, for a period.
    Open {
        /// Requests per second.
        rate: f64,
        /// Length of the period.
        duration_s: f64,
    },
    /// Until the work has no more requests, with a limited number of unanswered ones.
    Closed {
        /// Most unanswered requests.
        window: usize,
        /// Most seconds.
        most_s: f64,
    },
}

/// Age at which a connection id is renewed: in BEP 15 a client may use it for a minute.
const RENEW_AFTER_NS: u64 = 55 * NS_PER_S;

/// How often, per timeout, the whole table is searched for lost requests; in so many parts.
const SWEEPS_PER_TIMEOUT: u64 = 10;
const SWEEP_PARTS: usize = 32;

/// How long to sleep if nothing is due and nothing has arrived.
const REST: Duration = Duration::from_micros(100);

/// One client.
struct Source {
    ip: IpAddr,
    connection_id: Option<u64>,
    renew_at_ns: u64,
    /// Connect requests sent for the awaited id; 0 if none is awaited.
    tries: u8,
    /// The request that waits for the id, and when it was due.
    wants: Option<(Ask, u64)>,
}

/// All clients of one thread.
pub(crate) struct Crowd {
    socket: BoundUdp,
    tracker: SocketAddr,
    to: RawAddress,
    clock: Clock,
    seed: u64,
    timeout_ns: u64,
    sources: Vec<Source>,
    places: HashMap<IpAddr, u16>,
    slots: SlotTable,
    incoming: ReceiveBatch,
    outgoing: SendBatch,
    /// Requests that may be sent at once: those whose source has obtained its connection id, and
    /// second attempts.
    ready: VecDeque<(Ask, u64)>,
    turn: u16,
    /// Connect requests in a row before a source drops its request.
    pub(crate) tries_max: u8,
    /// Whether every request needs a new connection id.
    pub(crate) forgetful: bool,
}

/// One phase under way.
struct Phase<'a> {
    work: &'a mut dyn Work,
    traffic: Traffic,
    deadline_ns: u64,
    pace: Option<Pace>,
    window: usize,
}

impl Crowd {
    /// One socket for these sources, with room for a number of unanswered requests.
    ///
    /// # Errors
    /// One sentence that names the missing resource.
    pub(crate) fn open(
        arena: &Arena<'_>,
        sources: &[IpAddr],
        capacity: usize,
    ) -> Result<Self, AttackError> {
        let tracker = arena.target;
        let any: IpAddr = match tracker {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let options = UdpOptions { reuse_port: false, ..UdpOptions::default() };
        let socket = bind_udp((any, 0).into(), &options).map_err(AttackError::Socket)?;
        let places: HashMap<IpAddr, u16> = sources.iter().copied().zip(0..).collect();
        if places.len() < sources.len() {
            return Err(AttackError::FewAddresses);
        }
        let source = |ip: &IpAddr| Source {
            ip: *ip,
            connection_id: None,
            renew_at_ns: 0,
            tries: 0,
            wants: None,
        };
        Ok(Self {
            socket,
            tracker,
            to: RawAddress::from(tracker),
            clock: arena.clock,
            seed: arena.plan.seed,
            timeout_ns: u64::from(arena.plan.timeout_ms) * 1_000_000,
            sources: sources.iter().map(source).collect(),
            places,
            slots: SlotTable::new(capacity),
            incoming: ReceiveBatch::new(BATCH),
            outgoing: SendBatch::new(BATCH),
            ready: VecDeque::new(),
            turn: 0,
            tries_max: 1,
            forgetful: false,
        })
    }

    /// Obtains a connection id for every source, with some attempts each; returns how many have
    /// one.
    ///
    /// # Errors
    /// If the tracker responds to no source, unless a signal has ended the run.
    pub(crate) fn connect(&mut self) -> Result<usize, AttackError> {
        let left = (0..u16::try_from(self.sources.len()).unwrap_or(u16::MAX)).collect();
        let mut connecting = Connecting { left, tries_left: self.sources.len() * 4 };
        let traffic = self.run(&mut connecting, Pacing::Closed { window: 512, most_s: 5.0 });
        let connected = self.sources.iter().filter(|it| it.connection_id.is_some()).count();
        if connected == 0 && !interrupt::is_requested() {
            let (tracker, sources) = (self.tracker, self.sources.len());
            let unanswered = traffic.unanswered;
            return Err(AttackError::NoConnectionIds { tracker, sources, unanswered });
        }
        Ok(connected)
    }

    /// Number of sources.
    pub(crate) fn len(&self) -> usize {
        self.sources.len()
    }

    /// Runs a work to its end, or until a signal; lost requests included.
    pub(crate) fn run(&mut self, work: &mut dyn Work, pacing: Pacing) -> Traffic {
        let start_ns = self.now_ns();
        let (pace, window, most_s) = match pacing {
            Pacing::Open { rate, duration_s } => {
                let step_ns = real(NS_PER_S) / rate.max(1e-3);
                (Some(Pace { next_ns: real(start_ns), step_ns }), 0, duration_s)
            }
            Pacing::Closed { window, most_s } => (None, window, most_s),
        };
        let traffic = Traffic::new(self.sources.len());
        let deadline_ns = start_ns + ns(most_s);
        let mut phase = Phase { work, traffic, deadline_ns, pace, window };
        let sweep_every_ns = self.timeout_ns / (SWEEPS_PER_TIMEOUT * SWEEP_PARTS as u64);
        let mut sweep_at_ns = start_ns;
        loop {
            let heard = self.receive(&mut phase);
            let now_ns = self.now_ns();
            if interrupt::is_requested() {
                // Nothing more is sent; responses under way are still awaited.
                phase.deadline_ns = phase.deadline_ns.min(now_ns);
            }
            let (sent, dry) = self.send(now_ns, &mut phase);
            if dry && self.ready.is_empty() && self.slots.waiting() == 0 {
                phase.traffic.seconds = seconds(now_ns.min(phase.deadline_ns) - start_ns);
                let last_ns = phase.deadline_ns.saturating_sub(1);
                let overdue = phase.pace.map_or(0, |it| it.due(last_ns, usize::MAX));
                phase.traffic.overdue = overdue as u64;
                return phase.traffic;
            }
            if now_ns >= sweep_at_ns {
                sweep_at_ns = now_ns + sweep_every_ns;
                self.expire(now_ns, &mut phase);
            }
            if !heard && sent == 0 {
                std::thread::sleep(REST);
            }
        }
    }

    /// Receives a batch of responses. True if there were any.
    fn receive(&mut self, phase: &mut Phase<'_>) -> bool {
        // An unconnected socket receives no asynchronous errors; an empty one is not an error.
        let Ok(count) = self.incoming.receive(&self.socket) else { return false };
        let now_ns = self.now_ns();
        for index in 0..count {
            let datagram = self.incoming.get(index);
            let traffic = &mut phase.traffic;
            traffic.received_bytes += datagram.payload.len() as u64;
            let id = datagram.payload.get(4..8).and_then(|it| it.first_chunk());
            let place = datagram.local.and_then(|it| self.places.get(&it.ip));
            let from_tracker = datagram.source.to_socket_addr() == Some(self.tracker);
            let (Some(id), Some(place), true) = (id, place, from_tracker) else {
                traffic.stray += 1;
                continue;
            };
            match self.slots.settle(u32::from_be_bytes(*id), *place) {
                Settled::Answered(pending) => {
                    let source = &mut self.sources[usize::from(*place)];
                    let wish = source.heard(&pending, &datagram, now_ns, phase);
                    self.ready.extend(wish);
                    source.forget_after(&pending, self.forgetful);
                }
                Settled::Late => traffic.late += 1,
                Settled::Duplicate | Settled::Unknown => traffic.stray += 1,
            }
        }
        count > 0
    }

    /// Sends a batch of requests that are due. Returns how many, and whether the work has no more.
    fn send(&mut self, now_ns: u64, phase: &mut Phase<'_>) -> (usize, bool) {
        while self.outgoing.len() < BATCH
            && let Some((ask, due_ns)) = self.ready.pop_front()
        {
            self.put(&ask, due_ns, now_ns, phase);
        }
        // After the deadline, earlier requests are completed, but no new ones start.
        let mut dry = now_ns >= phase.deadline_ns;
        while self.outgoing.len() < BATCH && !dry {
            let (is_due, due_ns) = match &phase.pace {
                Some(pace) => (pace.due(now_ns, 1) > 0, whole(pace.next_ns)),
                None => (self.slots.waiting() < phase.window, now_ns),
            };
            if !is_due {
                break;
            }
            self.turn =
                if usize::from(self.turn) + 1 < self.sources.len() { self.turn + 1 } else { 0 };
            match phase.work.next(self.turn) {
                Some(ask) if self.put(&ask, due_ns, now_ns, phase) => {}
                Some(ask) => {
                    phase.traffic.held_back += 1;
                    phase.work.failed(&ask.pending(due_ns, now_ns));
                }
                None => dry = true,
            }
            if let Some(pace) = &mut phase.pace {
                pace.next_ns += pace.step_ns;
            }
        }
        let sent = self.outgoing.len();
        self.outgoing.flush(&self.socket, |_| phase.traffic.unsent += 1);
        (sent, dry)
    }

    /// Queues a request, or a connect for the id that it needs. True if one of them was possible.
    fn put(&mut self, ask: &Ask, due_ns: u64, now_ns: u64, phase: &mut Phase<'_>) -> bool {
        let source = &mut self.sources[usize::from(ask.source)];
        let has_id = source.connection_id.is_some() && now_ns < source.renew_at_ns;
        if ask.forged || (ask.kind != Kind::Connect && has_id) {
            return self.push(ask, due_ns, now_ns, phase);
        }
        if ask.kind != Kind::Connect {
            if source.tries > 0 {
                return false;
            }
            source.wants = Some((*ask, due_ns));
        }
        source.tries += 1;
        self.push(&Ask::connect(ask.source), due_ns, now_ns, phase)
    }

    /// Queues one datagram.
    fn push(&mut self, ask: &Ask, due_ns: u64, now_ns: u64, phase: &mut Phase<'_>) -> bool {
        let source = &self.sources[usize::from(ask.source)];
        let Some(id) = self.slots.take(ask.pending(due_ns, now_ns)) else { return false };
        let forged_id = mix(u64::from(id) ^ now_ns);
        let connection_id = source.connection_id.filter(|_| !ask.forged).unwrap_or(forged_id);
        let Some(out) = self.outgoing.next_payload() else { return false };
        let id = TransactionId(id.to_be_bytes());
        let bytes = encode(ask, (connection_id, id), self.seed, out);
        let local = LocalAddress { ip: source.ip, interface: 0 };
        self.outgoing.push(bytes, &self.to, Some(local));
        phase.traffic.sent.add(ask.kind);
        phase.traffic.sent_bytes += bytes as u64;
        true
    }

    /// Counts requests that were not answered in time as lost.
    fn expire(&mut self, now_ns: u64, phase: &mut Phase<'_>) {
        let before_ns = now_ns.saturating_sub(self.timeout_ns);
        let (sources, ready, tries_max) = (&mut self.sources, &mut self.ready, self.tries_max);
        let forgetful = self.forgetful;
        self.slots.expire(before_ns, SWEEP_PARTS, |pending| {
            phase.traffic.unanswered += 1;
            let source = &mut sources[usize::from(pending.client)];
            if pending.kind == Kind::Connect && (1..tries_max).contains(&source.tries) {
                ready.push_back((Ask::connect(pending.client), now_ns));
                return;
            }
            source.failed(&pending, phase);
            source.forget_after(&pending, forgetful);
        });
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed_ns_at(self.clock.now())
    }
}

impl Source {
    /// Handles the response to a request. Returns the request that can be sent now, and when it was
    /// due.
    fn heard(
        &mut self,
        asked: &Pending,
        datagram: &Received<'_>,
        now_ns: u64,
        phase: &mut Phase<'_>,
    ) -> Option<(Ask, u64)> {
        let traffic = &mut phase.traffic;
        let thorough = traffic.answered.all().is_multiple_of(64);
        match check(datagram.payload, asked, self.ip, thorough) {
            Ok((Response::Error(_), _)) => traffic.refused += 1,
            Ok((response, flaw)) if !datagram.truncated => {
                traffic.flawed += u64::from(flaw.is_some());
                traffic.answered.add(asked.kind);
                traffic.latency.saturating_record(now_ns.saturating_sub(asked.intended_ns));
                phase.work.answered(asked, &response);
                let Response::Connected(id) = response else { return None };
                if self.tries > 0 {
                    self.tries = 0;
                    self.connection_id = Some(id);
                    self.renew_at_ns = now_ns + RENEW_AFTER_NS;
                }
                return self.wants.take();
            }
            _ => traffic.malformed += 1,
        }
        self.failed(asked, phase);
        None
    }

    /// Handles a failed request. After a failed connect, also the request that waited for it.
    fn failed(&mut self, asked: &Pending, phase: &mut Phase<'_>) {
        if asked.kind == Kind::Connect && self.tries > 0 {
            self.tries = 0;
            if let Some((ask, _)) = self.wants.take() {
                phase.traffic.held_back += 1;
                phase.traffic.gave_up += 1;
                let never_sent = Pending { kind: ask.kind, item: ask.item, ..*asked };
                phase.work.failed(&never_sent);
                return;
            }
        }
        phase.work.failed(asked);
    }

    /// Discards the connection id that a request was sent with.
    fn forget_after(&mut self, asked: &Pending, forgetful: bool) {
        if forgetful && asked.kind != Kind::Connect {
            self.connection_id = None;
        }
    }
}

fn encode(
    ask: &Ask,
    (connection_id, id): (u64, TransactionId),
    seed: u64,
    out: &mut [u8],
) -> usize {
    let (hash_seed, torrent) = ask.torrent;
    match ask.kind {
        Kind::Connect => encode_connect(id, out),
        Kind::Announce => {
            let mut peer_id = PeerId(*b"-SL0100-............");
            let noise = mix(seed ^ (u64::from(ask.source) << 32) ^ u64::from(ask.port));
            peer_id.0[12..].copy_from_slice(&noise.to_be_bytes());
            let announcement = Announcement {
                info_hash: info_hash(hash_seed, torrent),
                peer_id,
                downloaded: 0,
                left: 1 << 30,
                uploaded: 0,
                event: Event::None,
                numwant: ask.count.into(),
                port: ask.port,
                key: [0; 4],
            };
            encode_announce(connection_id, id, &announcement, out)
        }
        Kind::Scrape => {
            let mut hashes = [InfoHash([0; 20]); 74];
            let hashes = &mut hashes[..usize::from(ask.count)];
            for (torrent, hash) in (torrent..).zip(hashes.iter_mut()) {
                *hash = info_hash(hash_seed, torrent);
            }
            encode_scrape(connection_id, id, hashes, out)
        }
    }
}

/// Obtains a connection id for every source.
struct Connecting {
    left: VecDeque<u16>,
    tries_left: usize,
}

impl Work for Connecting {
    fn next(&mut self, _turn: u16) -> Option<Ask> {
        self.tries_left = self.tries_left.checked_sub(1)?;
        self.left.pop_front().map(Ask::connect)
    }

    fn failed(&mut self, asked: &Pending) {
        self.left.push_back(asked.client);
    }
}
