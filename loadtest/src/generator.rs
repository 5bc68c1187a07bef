//! One thread of load: its sockets, the peers that announce through them, and the loop.
//!
//! The loop never sleeps. A turn visits every socket: it receives responses (up to 64 by one system
//! call), checks each, then fills the socket up again (closed loop) or sends what has become due
//! (open loop). Nothing is allocated per datagram.
//!
//! In the open loop, requests are due at moments fixed in advance, and latency counts from those
//! moments: a tracker that stalls is charged for all requests that would have arrived meanwhile.

use std::sync::Arc;

use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{
    Announcement, Response, encode_announce, encode_connect, encode_scrape,
};
use skep::protocol::udp::peer_stride;
use skep::sys::address::RawAddress;
use skep::sys::clock::Clock;
use skep::sys::mmsg::{BATCH, ReceiveBatch, SendBatch};
use skep::types::{Family, InfoHash};

use crate::check::{Invalid, check};
use crate::numbers::{NS_PER_S, mix, real, whole};
use crate::phase::{Driver, Run, Task};
use crate::plan::Plan;
use crate::population::{Peer, info_hash};
use crate::requests::{Members, Request};
use crate::segments::SegmentedBatch;
use crate::slots::{Kind, Pending, Settled, SlotTable};
use crate::sources::Source;
use crate::tally::Tally;

/// Age at which a connection id is renewed: in BEP 15 a client may use it for a minute.
const RENEW_AFTER_NS: u64 = 55 * NS_PER_S;

/// How often, per timeout, the whole table is searched for lost requests, and time-driven work is
/// done. One part of [`SWEEP_PARTS`] is searched each time.
const SWEEPS_PER_TIMEOUT: u64 = 10;
const SWEEP_PARTS: usize = 32;

/// A socket of the load.
struct Client {
    source: Source,
    /// Its index among all threads' sockets.
    place: u16,
    connection_id: Option<u64>,
    renew_at_ns: u64,
    connecting: bool,
    in_flight: usize,
    members: Members,
}

/// One thread's load.
pub(crate) struct Generator {
    plan: Arc<Plan>,
    clock: Clock,
    clients: Vec<Client>,
    slots: SlotTable,
    incoming: ReceiveBatch,
    outgoing: SendBatch,
    /// Announces, all of one length, if they may be sent as segments of one packet.
    segments: Option<SegmentedBatch>,
    random: fastrand::Rng,
    /// Torrents still to scrape.
    verify: std::ops::Range<u32>,
    /// This thread's part of the torrents.
    torrents: std::ops::Range<u32>,
    /// The socket whose turn it is in the open loop.
    turn: usize,
}

/// Bytes of an announce without options.
const ANNOUNCE_BYTES: u16 = 98;
const _: () = assert!(ANNOUNCE_BYTES as usize == skep::protocol::udp::ANNOUNCE_BYTES);

/// How long to wait for connection ids before the run fails.
const CONNECT_NS_MAX: u64 = 5 * NS_PER_S;

impl Generator {
    /// A thread's share: its sockets (with their indices among all) and their peers.
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
                members: Members::new(peers),
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
            incoming: ReceiveBatch::new(BATCH),
            outgoing: SendBatch::new(BATCH),
            segments: plan.gso.then(|| SegmentedBatch::new(ANNOUNCE_BYTES)),
            random: fastrand::Rng::with_seed(mix(plan.seed ^ (u64::from(first) << 32))),
            verify: torrents.clone(),
            torrents,
            turn: 0,
        }
    }

    /// Sends what has become due, in batches over the sockets in turn.
    fn send_due(&mut self, run: &mut Run) -> bool {
        let mut worked = false;
        loop {
            let now_ns = self.now_ns();
            let Some(pace) = &run.pace else { return worked };
            let count = pace.due(now_ns.min(run.deadline_ns), BATCH);
            if count == 0 {
                return worked;
            }
            self.turn = (self.turn + 1) % self.clients.len();
            let sent = self.send(self.turn, count, now_ns, run);
            worked = true;
            if sent < count {
                // The table is full, or the socket has no connection id: due, but not sent.
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

    /// Receives a batch of responses from one socket.
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
                    let response = (datagram.payload, datagram.truncated);
                    client.answered(&pending, response, now_ns, run);
                }
                Settled::Late => tally.late += 1,
                Settled::Duplicate => tally.invalid[Invalid::SecondResponse as usize] += 1,
                Settled::Unknown => tally.invalid[Invalid::UnknownTransaction as usize] += 1,
            }
        }
        true
    }

    /// Sends up to `count` requests through one socket, by one system call. Returns how many.
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

    /// Sends the queued datagrams of one socket. Returns how many.
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
                        // The kernel or the network device does not support it: single datagrams
                        // from now on.
                        self.segments = None;
                        continue;
                    }
                }
            }
            segments.clear();
        }
    }
}

impl Driver for Generator {
    fn start(&mut self, task: Task) -> Run {
        self.verify = self.torrents.clone();
        self.clients.iter_mut().for_each(|it| it.members.restart());
        Run::new(task, self.now_ns(), CONNECT_NS_MAX)
    }

    /// Visits every socket once.
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

    fn expire(&mut self, now_ns: u64, run: &mut Run) {
        let before_ns = now_ns.saturating_sub(self.timeout_ns());
        let clients = &mut self.clients;
        self.slots.expire(before_ns, SWEEP_PARTS, |pending| {
            run.tally.lost[pending.kind as usize] += 1;
            clients[usize::from(pending.client)].lost(&pending);
        });
    }

    fn timeout_ns(&self) -> u64 {
        u64::from(self.plan.timeout_ms) * 1_000_000
    }

    fn expiries_per_timeout(&self) -> u64 {
        SWEEPS_PER_TIMEOUT * SWEEP_PARTS as u64
    }

    fn is_over(&self, run: &Run, now_ns: u64) -> bool {
        if self.slots.waiting() > 0 {
            return false;
        }
        let done = match run.task {
            Task::Connect => self.clients.iter().all(|it| it.connection_id.is_some()),
            Task::Fill => self.clients.iter().all(|it| it.members.are_filled()),
            Task::Verify => self.verify.is_empty(),
            Task::Load { .. } | Task::Rest { .. } => false,
        };
        done || now_ns >= run.deadline_ns
    }

    fn waiting(&self) -> usize {
        self.slots.waiting()
    }

    #[inline]
    fn now_ns(&self) -> u64 {
        self.clock.elapsed_ns_at(self.clock.now())
    }

    fn resident(&self) -> u64 {
        self.clients.iter().map(|it| it.members.resident()).sum()
    }
}

impl Client {
    /// The next request of a task; `None` if there is none to send now.
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
        self.members.next(task, plan, random, verify)
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

    /// Handles one response: its bytes, and whether it was truncated.
    #[inline]
    fn answered(
        &mut self,
        pending: &Pending,
        (response, truncated): (&[u8], bool),
        now_ns: u64,
        run: &mut Run,
    ) {
        let tally = &mut run.tally;
        let thorough = tally.peer_responses.is_multiple_of(64);
        let checked = if truncated {
            Err(Invalid::Oversized)
        } else {
            check(response, pending, self.source.ip, thorough)
        };
        self.connecting &= pending.kind != Kind::Connect;
        if let Err(wrong) | Ok((_, Some(wrong))) = &checked {
            tally.invalid[*wrong as usize] += 1;
        }
        let Ok((response, _)) = checked else { return };
        match response {
            Response::Error(text) => {
                tally.error(text);
                return;
            }
            Response::Connected(id) => {
                self.connection_id = Some(id);
                self.renew_at_ns = now_ns + RENEW_AFTER_NS;
            }
            Response::Announced(_, peers) => {
                let stride = peer_stride(Family::of(self.source.ip));
                tally.peers += (peers.len() / stride) as u64;
                tally.peer_responses += u64::from(pending.count > 0);
                if run.task == Task::Fill {
                    self.members.filled(pending.item);
                }
            }
            Response::Scraped(entries) => {
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
            Kind::Announce => self.members.lost(pending.item),
            Kind::Scrape => {}
        }
    }
}
