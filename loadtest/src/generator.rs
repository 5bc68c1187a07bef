//! One thread of load: sockets, the peers that announce through them, and the loop between.
//!
//! The loop never sleeps. A turn visits every socket: take its replies (up to 64 by one system
//! call), judge each, then fill the socket up again (closed loop) or send what has become due (open
//! loop). Nothing is allocated per datagram.
//!
//! In the open loop, requests are due at moments fixed in advance, and latency counts from those
//! moments: a tracker that stalls is charged for everyone who would have come meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{
    Announcement, Reply, encode_announce, encode_connect, encode_scrape,
};
use skep::protocol::udp::peer_stride;
use skep::sys::address::RawAddress;
use skep::sys::clock::Clock;
use skep::sys::mmsg::{BATCH, ReceiveBatch, SendBatch};
use skep::sys::segments::SegmentedBatch;
use skep::types::{Event, Family, InfoHash};

use crate::check::{Invalid, check};
use crate::numbers::{NS_PER_S, mix, real, whole};
use crate::plan::Plan;
use crate::population::{Peer, info_hash};
use crate::slots::{Kind, Pending, Settled, SlotTable};
use crate::sources::Source;
use crate::tally::Tally;

/// Age at which a connection id is renewed: BEP 15 lets a client use it for a minute.
const RENEW_AFTER_NS: u64 = 55 * NS_PER_S;

/// How often, per timeout, the whole table is searched for lost requests, and the clock-driven
/// chores are done. One part of [`SWEEP_PARTS`] is searched per chore.
const SWEEPS_PER_TIMEOUT: u64 = 10;
const SWEEP_PARTS: usize = 32;

/// What a phase does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Task {
    /// Every socket gets a connection id.
    Connect,
    /// Every peer that is not resident announces, until its announce is answered.
    Fill,
    /// Every torrent is scraped once.
    Verify,
    /// The plan's mix, for a time.
    Load {
        /// For how long.
        duration_ns: u64,
        /// Requests a second of this thread; as fast as answers come where absent.
        rate: Option<f64>,
    },
}

/// A socket of the load.
struct Client {
    source: Source,
    /// Its place among all threads' sockets.
    place: u16,
    connection_id: Option<u64>,
    renew_at_ns: u64,
    connecting: bool,
    in_flight: usize,
    peers: Vec<Peer>,
    /// Next peer to fill.
    cursor: usize,
    /// Peers whose filling announce was lost.
    retry: Vec<u32>,
}

/// One thread's load.
pub(crate) struct Generator {
    plan: Arc<Plan>,
    clock: Clock,
    clients: Vec<Client>,
    slots: SlotTable,
    incoming: ReceiveBatch,
    outgoing: SendBatch,
    /// Announces, all of one length, where they may leave as segments of one packet.
    segments: Option<SegmentedBatch>,
    random: fastrand::Rng,
    /// Torrents left to scrape.
    verify: std::ops::Range<u32>,
    /// This thread's part of the torrents.
    torrents: std::ops::Range<u32>,
    /// The socket whose turn it is in the open loop.
    turn: usize,
}

/// Bytes of an announce without options.
const ANNOUNCE_BYTES: u16 = 98;
const _: () = assert!(ANNOUNCE_BYTES as usize == skep::protocol::udp::ANNOUNCE_BYTES);

/// Moments at which requests are due.
struct Pace {
    next_ns: f64,
    step_ns: f64,
}

impl Pace {
    /// How many requests are due at a moment; a full batch at most.
    fn due(&self, now_ns: u64) -> usize {
        let late_ns = real(now_ns) - self.next_ns;
        let due = if late_ns < 0.0 { 0 } else { whole(late_ns / self.step_ns) + 1 };
        usize::try_from(due).unwrap_or(BATCH).min(BATCH)
    }
}

/// One phase under way.
struct Run {
    task: Task,
    tally: Tally,
    start_ns: u64,
    deadline_ns: u64,
    pace: Option<Pace>,
}

/// The timeline has at most this many intervals...
const INTERVALS_MAX: u64 = 100;
/// ... of at least this length.
const INTERVAL_NS_MIN: u64 = 50_000_000;

impl Generator {
    /// A thread's share: its sockets (with their places among all) and their peers.
    pub(crate) fn new(
        plan: &Arc<Plan>,
        clock: Clock,
        clients: Vec<(u16, Source, Vec<Peer>)>,
        torrents: std::ops::Range<u32>,
    ) -> Self {
        let first = clients.first().map_or(0, |it| it.0);
        let clients: Vec<Client> = clients
            .into_iter()
            .map(|(place, source, peers)| Client {
                source,
                place,
                connection_id: None,
                renew_at_ns: 0,
                connecting: false,
                in_flight: 0,
                peers,
                cursor: 0,
                retry: Vec::new(),
            })
            .collect();
        let rate = real(plan.rate.unwrap_or(0)) / f64::from(plan.threads);
        let open = SlotTable::capacity_for(rate, f64::from(plan.timeout_ms) / 1000.0);
        let closed = clients.len() * usize::from(plan.in_flight) * 2;
        Self {
            plan: Arc::clone(plan),
            clock,
            clients,
            slots: SlotTable::new(open.max(closed)),
            incoming: ReceiveBatch::without_sources(BATCH),
            outgoing: SendBatch::new(BATCH),
            segments: plan.gso.then(|| SegmentedBatch::new(ANNOUNCE_BYTES)),
            random: fastrand::Rng::with_seed(mix(plan.seed ^ (u64::from(first) << 32))),
            verify: torrents.clone(),
            torrents,
            turn: 0,
        }
    }

    /// Peers the tracker has been told of, and not of their leaving.
    pub(crate) fn resident(&self) -> u64 {
        let present = |it: &Client| it.peers.iter().filter(|peer| peer.is_present()).count() as u64;
        self.clients.iter().map(present).sum()
    }

    /// Runs one phase to its end, lost requests included. `progress` is raised by each answer.
    pub(crate) fn run(&mut self, task: Task, progress: &AtomicU64) -> Tally {
        let mut run = self.start(task);
        let chore_every_ns = self.timeout_ns() / (SWEEPS_PER_TIMEOUT * SWEEP_PARTS as u64);
        let mut chore_at_ns = run.start_ns;
        let mut last_ns = run.start_ns;
        let mut reported = 0;
        loop {
            let worked = self.turn(&mut run);
            let now_ns = self.now_ns();
            let turn_ns = now_ns - last_ns;
            last_ns = now_ns;
            run.tally.busy_and_idle_ns += turn_ns;
            run.tally.idle_ns += if worked { 0 } else { turn_ns };
            if now_ns < chore_at_ns {
                continue;
            }
            chore_at_ns = now_ns + chore_every_ns;
            self.expire(now_ns, &mut run.tally);
            let answered = run.tally.answered_all();
            progress.fetch_add(answered - reported, Ordering::Relaxed);
            reported = answered;
            if self.is_over(&run, now_ns) {
                run.tally.elapsed_ns = now_ns.min(run.deadline_ns) - run.start_ns;
                return run.tally;
            }
        }
    }

    fn start(&mut self, task: Task) -> Run {
        let start_ns = self.now_ns();
        let (duration_ns, rate) = match task {
            Task::Load { duration_ns, rate } => (duration_ns, rate),
            // Against a tracker that answers nothing, these would never end.
            Task::Connect => (5 * NS_PER_S, None),
            Task::Fill | Task::Verify => (600 * NS_PER_S, None),
        };
        self.verify = self.torrents.clone();
        for client in &mut self.clients {
            client.cursor = 0;
            client.retry.clear();
        }
        let interval_ns = (duration_ns / INTERVALS_MAX).max(INTERVAL_NS_MIN);
        let intervals = match task {
            Task::Load { .. } => usize::try_from(duration_ns.div_ceil(interval_ns)).unwrap_or(0),
            _ => 0,
        };
        let step_ns = |rate: f64| real(NS_PER_S) / rate;
        Run {
            task,
            tally: Tally::new(interval_ns, intervals),
            start_ns,
            deadline_ns: start_ns + duration_ns,
            pace: rate.map(|it| Pace { next_ns: real(start_ns), step_ns: step_ns(it) }),
        }
    }

    /// Visits every socket once. Says whether anything was done.
    fn turn(&mut self, run: &mut Run) -> bool {
        let mut worked = false;
        let closed = run.pace.is_none();
        for index in 0..self.clients.len() {
            worked |= self.receive(index, run);
            let now_ns = self.now_ns();
            if closed && now_ns < run.deadline_ns {
                let room = usize::from(self.plan.in_flight)
                    .saturating_sub(self.clients[index].in_flight)
                    .min(BATCH);
                worked |= room > 0 && self.send(index, room, now_ns, run) > 0;
            }
        }
        if !closed {
            worked |= self.send_due(run);
        }
        worked
    }

    /// Sends what has become due, in batches over the sockets in turn.
    fn send_due(&mut self, run: &mut Run) -> bool {
        let mut worked = false;
        loop {
            let now_ns = self.now_ns();
            let Some(pace) = &run.pace else { return worked };
            let count = pace.due(now_ns.min(run.deadline_ns));
            if count == 0 {
                return worked;
            }
            self.turn = (self.turn + 1) % self.clients.len();
            let sent = self.send(self.turn, count, now_ns, run);
            worked = true;
            if sent < count {
                // The table is full, or the socket has no connection id: due, but held back.
                let held_back = count - sent;
                run.tally.held_back += held_back as u64;
                if let Some(pace) = &mut run.pace {
                    pace.next_ns += real(held_back as u64) * pace.step_ns;
                }
            }
            if count < BATCH {
                return worked;
            }
        }
    }

    /// Takes a batch of replies from one socket.
    fn receive(&mut self, index: usize, run: &mut Run) -> bool {
        match self.incoming.receive(&self.clients[index].source.socket) {
            Ok(_) => {}
            Err(error) => {
                let refused = error.kind() == std::io::ErrorKind::ConnectionRefused;
                run.tally.unreachable += u64::from(refused);
                return false;
            }
        }
        let now_ns = self.now_ns();
        let client = &mut self.clients[index];
        let place = u16::try_from(index).unwrap_or(u16::MAX);
        for datagram in self.incoming.iter() {
            let tally = &mut run.tally;
            tally.received_bytes += datagram.payload.len() as u64;
            let Some(id) = datagram.payload.get(4..8).and_then(|it| it.first_chunk()) else {
                tally.invalid[Invalid::TooShort as usize] += 1;
                continue;
            };
            match self.slots.settle(u32::from_be_bytes(*id), place) {
                Settled::Answered(pending) => {
                    client.in_flight -= 1;
                    let reply = (datagram.payload, datagram.truncated);
                    client.answered(&pending, reply, now_ns, run);
                }
                Settled::Late => tally.late += 1,
                Settled::Duplicate => tally.invalid[Invalid::SecondReply as usize] += 1,
                Settled::Unknown => tally.invalid[Invalid::UnknownTransaction as usize] += 1,
            }
        }
        true
    }

    /// Sends up to `count` requests through one socket, by one system call. Says how many.
    fn send(&mut self, index: usize, count: usize, now_ns: u64, run: &mut Run) -> usize {
        let client = &mut self.clients[index];
        for _ in 0..count {
            let due_ns = run.pace.as_ref().map_or(now_ns, |it| whole(it.next_ns));
            let wanted =
                client.next(run.task, &self.plan, now_ns, &mut self.random, &mut self.verify);
            let Some(request) = wanted else { break };
            let pending = Pending {
                intended_ns: due_ns,
                sent_ns: now_ns,
                item: request.item,
                client: u16::try_from(index).unwrap_or(u16::MAX),
                kind: request.kind,
                count: request.count,
                port: request.port,
            };
            let Some(transaction_id) = self.slots.take(pending) else { break };
            let id = TransactionId(transaction_id.to_be_bytes());
            let bytes = match &mut self.segments {
                Some(segments) if request.kind == Kind::Announce => {
                    let Some(out) = segments.next_payload() else { break };
                    let bytes = client.encode(&request, id, &self.plan, out);
                    segments.push();
                    bytes
                }
                _ => {
                    let Some(out) = self.outgoing.next_payload() else { break };
                    let bytes = client.encode(&request, id, &self.plan, out);
                    self.outgoing.push(bytes, &RawAddress::NONE, None);
                    bytes
                }
            };
            client.in_flight += 1;
            run.tally.sent[request.kind as usize] += 1;
            run.tally.sent_bytes += bytes as u64;
            if let Some(pace) = &mut run.pace {
                pace.next_ns += pace.step_ns;
                run.tally.lag.saturating_record(now_ns.saturating_sub(due_ns));
            }
        }
        self.flush(index, &mut run.tally)
    }

    /// Hands what was queued for one socket to the kernel. Says how many datagrams that was.
    fn flush(&mut self, index: usize, tally: &mut Tally) -> usize {
        let socket = &self.clients[index].source.socket;
        let mut queued = 0;
        loop {
            queued += self.outgoing.len();
            self.outgoing.flush(socket, |_| tally.unsent += 1);
            let Some(segments) = self.segments.as_mut().filter(|it| !it.is_empty()) else {
                return queued;
            };
            match segments.send(socket) {
                Ok(()) => queued += segments.len(),
                Err(error) => {
                    for segment in segments.iter() {
                        if let Some(out) = self.outgoing.next_payload() {
                            out[..segment.len()].copy_from_slice(segment);
                            self.outgoing.push(segment.len(), &RawAddress::NONE, None);
                        }
                    }
                    if error.kind() != std::io::ErrorKind::ConnectionRefused {
                        // The kernel or the network device cannot do it: one by one from now on.
                        self.segments = None;
                        continue;
                    }
                }
            }
            segments.clear();
        }
    }

    /// Gives up what was not answered in time.
    fn expire(&mut self, now_ns: u64, tally: &mut Tally) {
        let before_ns = now_ns.saturating_sub(self.timeout_ns());
        let clients = &mut self.clients;
        self.slots.expire(before_ns, SWEEP_PARTS, |pending| {
            tally.lost[pending.kind as usize] += 1;
            clients[usize::from(pending.client)].lost(&pending);
        });
    }

    /// Nanoseconds on this process's clock.
    #[inline]
    fn now_ns(&self) -> u64 {
        self.clock.elapsed_ns_at(self.clock.now())
    }

    fn timeout_ns(&self) -> u64 {
        u64::from(self.plan.timeout_ms) * 1_000_000
    }

    fn is_over(&self, run: &Run, now_ns: u64) -> bool {
        if self.slots.waiting() > 0 {
            return false;
        }
        let done = match run.task {
            Task::Connect => self.clients.iter().all(|it| it.connection_id.is_some()),
            Task::Fill => {
                self.clients.iter().all(|it| it.cursor == it.peers.len() && it.retry.is_empty())
            }
            Task::Verify => self.verify.is_empty(),
            Task::Load { .. } => false,
        };
        done || now_ns >= run.deadline_ns
    }
}

/// A request before it is encoded.
#[derive(Clone, Copy)]
struct Request {
    kind: Kind,
    item: u32,
    count: u16,
    port: u16,
    event: Event,
    /// The announcing peer as it is at that moment.
    peer: Option<Peer>,
}

impl Request {
    const CONNECT: Self =
        Self { kind: Kind::Connect, item: 0, count: 0, port: 0, event: Event::None, peer: None };
}

impl Client {
    /// The next request of a task; `None` where there is none to send now.
    fn next(
        &mut self,
        task: Task,
        plan: &Plan,
        now_ns: u64,
        random: &mut fastrand::Rng,
        verify: &mut std::ops::Range<u32>,
    ) -> Option<Request> {
        if now_ns >= self.renew_at_ns && !self.connecting {
            self.connecting = true;
            return Some(Request::CONNECT);
        }
        self.connection_id?;
        match task {
            Task::Connect => None,
            Task::Fill => self.next_to_fill(plan),
            Task::Verify => {
                let count = verify.len().min(plan.scrape_hashes.into());
                let first = verify.next()?;
                verify.start = first + u32::try_from(count).unwrap_or(1);
                Some(scrape(first, count))
            }
            Task::Load { .. } => Some(self.draw(plan, random)),
        }
    }

    fn next_to_fill(&mut self, plan: &Plan) -> Option<Request> {
        let index = self.retry.pop().map_or_else(
            || {
                let left = self.peers.get(self.cursor..)?;
                let skipped = left.iter().position(|it| !it.is_present());
                self.cursor += skipped.unwrap_or(left.len());
                skipped?;
                self.cursor += 1;
                u32::try_from(self.cursor - 1).ok()
            },
            Some,
        )?;
        let peer = self.peers[index as usize];
        Some(announce(index, peer, Event::Started, plan))
    }

    /// A request of the plan's mix. The peer lives on as if its announce had arrived.
    fn draw(&mut self, plan: &Plan, random: &mut fastrand::Rng) -> Request {
        let mix = plan.mix;
        let drawn = random.u32(0..mix.connect + mix.announce + mix.scrape);
        if drawn < mix.connect || self.peers.is_empty() {
            return Request::CONNECT;
        }
        let index = random.usize(0..self.peers.len());
        let peer = &mut self.peers[index];
        if drawn >= mix.connect + mix.announce {
            let count = u32::from(plan.scrape_hashes).min(plan.torrents);
            let first = peer.torrent.min(plan.torrents - count);
            return scrape(first, count as usize);
        }
        let event = peer.next_event(plan.churn, random.f64());
        let before = *peer;
        peer.live(event);
        // It announces with what it lacks now, but the port it had: a stop replaces the peer.
        let announced = if event == Event::Stopped { before } else { *peer };
        announce(u32::try_from(index).unwrap_or(0), announced, event, plan)
    }

    fn encode(&self, request: &Request, id: TransactionId, plan: &Plan, out: &mut [u8]) -> usize {
        let connection_id = self.connection_id.unwrap_or(0);
        match (request.kind, request.peer) {
            (Kind::Scrape, _) => {
                let mut hashes = [InfoHash([0; 20]); 74];
                let hashes = &mut hashes[..usize::from(request.count)];
                for (torrent, hash) in (request.item..).zip(hashes.iter_mut()) {
                    *hash = info_hash(plan.seed, torrent);
                }
                encode_scrape(connection_id, id, hashes, out)
            }
            (Kind::Announce, Some(peer)) => {
                let announcement = Announcement {
                    info_hash: info_hash(plan.seed, peer.torrent),
                    peer_id: peer.id(plan.seed, self.place, request.item),
                    downloaded: if peer.is_seeder() { 1 << 30 } else { 0 },
                    left: if peer.is_seeder() { 0 } else { 1 << 30 },
                    uploaded: 0,
                    event: request.event,
                    numwant: request.count.into(),
                    port: request.port,
                    key: request.item.to_be_bytes(),
                };
                encode_announce(connection_id, id, &announcement, out)
            }
            _ => encode_connect(id, out),
        }
    }

    /// Takes in one reply, the very bytes and whether they were cut.
    #[inline]
    fn answered(
        &mut self,
        pending: &Pending,
        (reply, truncated): (&[u8], bool),
        now_ns: u64,
        run: &mut Run,
    ) {
        let tally = &mut run.tally;
        let thorough = tally.peer_replies.is_multiple_of(64);
        let checked = if truncated {
            Err(Invalid::Oversized)
        } else {
            check(reply, pending, self.source.ip, thorough)
        };
        self.connecting &= pending.kind != Kind::Connect;
        if let Err(wrong) | Ok((_, Some(wrong))) = &checked {
            tally.invalid[*wrong as usize] += 1;
        }
        let Ok((reply, _)) = checked else { return };
        match reply {
            Reply::Error(text) => {
                tally.error(text);
                return;
            }
            Reply::Connected(id) => {
                self.connection_id = Some(id);
                self.renew_at_ns = now_ns + RENEW_AFTER_NS;
            }
            Reply::Announced(_, peers) => {
                let stride = peer_stride(Family::of(self.source.ip));
                tally.peers += (peers.len() / stride) as u64;
                tally.peer_replies += u64::from(pending.count > 0);
                if run.task == Task::Fill
                    && let Some(peer) = self.peers.get_mut(pending.item as usize)
                {
                    peer.live(Event::Started);
                }
            }
            Reply::Scraped(entries) => {
                if run.task == Task::Verify {
                    let peers =
                        entries.iter().map(|it| u64::from(it.seeders) + u64::from(it.leechers));
                    tally.scraped_peers += peers.sum::<u64>();
                }
            }
        }
        tally.answered_in_time += u64::from(now_ns < run.deadline_ns);
        let latency_ns = now_ns.saturating_sub(pending.intended_ns);
        tally.answered(pending.kind, now_ns.saturating_sub(run.start_ns), latency_ns);
    }

    /// One request was lost.
    fn lost(&mut self, pending: &Pending) {
        self.in_flight -= 1;
        match pending.kind {
            Kind::Connect => self.connecting = false,
            Kind::Announce => {
                let peer = self.peers.get(pending.item as usize);
                if peer.is_some_and(|it| !it.is_present()) {
                    self.retry.push(pending.item);
                }
            }
            Kind::Scrape => {}
        }
    }
}

fn scrape(first: u32, count: usize) -> Request {
    let count = u16::try_from(count).unwrap_or(1);
    Request { kind: Kind::Scrape, item: first, count, port: 0, event: Event::None, peer: None }
}

/// One that stops wants no peers.
fn announce(index: u32, peer: Peer, event: Event, plan: &Plan) -> Request {
    let count = if event == Event::Stopped { 0 } else { plan.numwant };
    let port = peer.port();
    Request { kind: Kind::Announce, item: index, count, port, event, peer: Some(peer) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_due_at_their_moment_and_not_before() {
        let pace = Pace { next_ns: 1000.0, step_ns: 100.0 };
        let due = [0, 999, 1000, 1099, 1100, 1_000_000].map(|it| pace.due(it));
        assert_eq!(due, [0, 0, 1, 1, 2, BATCH]);
    }
}
