//! One connection of the load: its state, and its reactions to what it receives.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;

use mio::event::Event;
use mio::{Registry, Token};
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::check::Invalid;
use crate::endpoint::Endpoint;
use crate::phase::{Run, Task};
use crate::plan::Plan;
use crate::population::{Peer, info_hash};
use crate::requests::{Members, Request};
use crate::slots::{Kind, Pending};
use crate::sources::Origin;

use super::frames::{self, PONG, TEXT};
use super::http;
use super::link::Link;
use super::messages::{self, Heard};

/// State that all connections of a thread share.
pub(crate) struct Shared {
    pub(crate) plan: Arc<Plan>,
    pub(crate) endpoint: Endpoint,
    pub(crate) dialect: Dialect,
    pub(crate) registry: Registry,
    pub(crate) random: fastrand::Rng,
    /// Torrents still to scrape.
    pub(crate) verify: Range<u32>,
    /// Buffer for reads.
    pub(crate) buffer: Vec<u8>,
    /// Payload of a WebSocket frame.
    pub(crate) message: Vec<u8>,
    /// Bytes to send.
    pub(crate) out: Vec<u8>,
}

/// The protocol.
pub(crate) enum Dialect {
    Http(http::Writer),
    Ws(messages::Writer),
}

/// The result of a step of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits for the tracker, or is unchanged.
    Waits,
    /// It no longer waits, and may send another request.
    Done,
    /// It is not used any more in this phase, after waiting or because it has nothing to request.
    GivenUp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No request is under way.
    Idle,
    /// Connecting, TLS handshake, upgrade.
    Opening,
    /// Waiting for the response to a request.
    Waiting,
    /// Waiting for the end of a connection that should end.
    Draining,
}

pub(crate) struct Connection {
    token: usize,
    place: u16,
    origin: Origin,
    /// The local address, once known.
    ip: IpAddr,
    pub(crate) members: Members,
    link: Option<Link>,
    state: State,
    /// Since when it is in this state, in nanoseconds of the generator's clock.
    since_ns: u64,
    /// Set while it waits.
    asked: Option<(Request, Pending)>,
    /// Whether a response came over this link before. The tracker may have closed such a link
    /// since.
    reused: bool,
    /// WebTorrent: whether the upgrade was requested, and whether it was granted.
    upgrade: (bool, bool),
    peer: messages::Peer,
    /// WebTorrent: the torrents of `members`, sorted.
    torrents: Box<[u32]>,
    offers: u32,
    /// Answers sent: some trackers respond to those as to announces.
    answers: u32,
    /// Requests that timed out, whose responses may still come.
    overdue: u32,
}

impl Connection {
    pub(crate) fn new(
        token: usize,
        place: u16,
        origin: Origin,
        peers: Vec<Peer>,
        plan: &Plan,
    ) -> Self {
        let mut torrents: Vec<u32> = peers.iter().map(|it| it.torrent).collect();
        torrents.sort_unstable();
        Self {
            token,
            place,
            origin,
            ip: Ipv4Addr::UNSPECIFIED.into(),
            members: Members::new(peers),
            link: None,
            state: State::Idle,
            since_ns: 0,
            asked: None,
            reused: false,
            upgrade: (false, false),
            peer: messages::Peer::new(plan.seed, place),
            torrents: torrents.into(),
            offers: 0,
            answers: 0,
            overdue: 0,
        }
    }

    /// Whether it is connected, and TLS handshake and upgrade are done.
    pub(crate) fn is_open(&self) -> bool {
        self.link.as_ref().is_some_and(Link::is_ready) && self.state != State::Opening
    }

    /// Sends the next request, or opens the connection for it. True if a request was made.
    pub(crate) fn ask(
        &mut self,
        due_ns: u64,
        now_ns: u64,
        shared: &mut Shared,
        run: &mut Run,
    ) -> (bool, Step) {
        let opens_first = matches!(shared.dialect, Dialect::Ws(_)) || run.task == Task::Connect;
        if self.link.is_none() && opens_first {
            return (false, self.open_ahead(now_ns, shared, run));
        }
        let plan = Arc::clone(&shared.plan);
        let Shared { random, verify, .. } = shared;
        let request = match self.members.next(run.task, &plan, random, verify) {
            Some(request) if request.kind != Kind::Connect => request,
            _ => return (false, Step::GivenUp),
        };
        let pending = Pending {
            intended_ns: due_ns,
            sent_ns: now_ns,
            item: request.item,
            client: self.place,
            kind: request.kind,
            count: request.count,
            port: request.port,
        };
        self.asked = Some((request, pending));
        run.tally.sent[request.kind as usize] += 1;
        self.since_ns = now_ns;
        self.state = State::Waiting;
        match self.send(&request, shared, run) {
            Ok(()) => (true, Step::Waits),
            Err(error) => (true, self.failed_at_once(&error, run)),
        }
    }

    /// Opens the link before the first request.
    fn open_ahead(&mut self, now_ns: u64, shared: &Shared, run: &mut Run) -> Step {
        run.tally.sent[Kind::Connect as usize] += u64::from(run.task == Task::Connect);
        self.since_ns = now_ns;
        self.state = State::Opening;
        match self.open(shared, run) {
            Ok(()) => Step::Waits,
            Err(error) => self.failed_at_once(&error, run),
        }
    }

    /// Handles an error before anything was awaited.
    fn failed_at_once(&mut self, error: &io::Error, run: &mut Run) -> Step {
        run.tally.unsent += 1;
        run.tally.note_failure(error);
        self.lose(run)
    }

    fn open(&mut self, shared: &Shared, run: &mut Run) -> io::Result<()> {
        let Origin { from, to, .. } = self.origin;
        let (endpoint, token) = (&shared.endpoint, Token(self.token));
        let link = Link::open(from, to, endpoint, &shared.registry, token)?;
        self.ip = link.ip()?;
        self.link = Some(link);
        (self.reused, self.upgrade) = (false, (false, false));
        run.tally.stream.connections += 1;
        Ok(())
    }

    /// Writes a request, over the existing link or a new one.
    fn send(&mut self, request: &Request, shared: &mut Shared, run: &mut Run) -> io::Result<()> {
        if self.link.is_none() {
            self.open(shared, run)?;
        }
        let Shared { plan, dialect, out, message, random, .. } = shared;
        out.clear();
        match dialect {
            Dialect::Http(writer) => {
                writer.write(out, request, self.place, plan, is_one_shot(plan, run));
            }
            Dialect::Ws(writer) => {
                message.clear();
                if request.kind == Kind::Scrape {
                    messages::push_scrape(message, request, plan);
                } else {
                    let offers = offers_of(request, plan, run);
                    writer.announce(message, request, self.peer, plan, (offers, self.offers));
                    self.offers = self.offers.wrapping_add(offers.into());
                    run.tally.stream.offers_sent += u64::from(offers);
                }
                frames::push_frame(out, TEXT, message, random.u32(..).to_ne_bytes());
            }
        }
        run.tally.sent_bytes += out.len() as u64;
        let Some(link) = &mut self.link else { return Err(io::ErrorKind::NotConnected.into()) };
        link.send(out)
    }

    /// Handles an event of epoll.
    pub(crate) fn on_event(
        &mut self,
        event: &Event,
        now_ns: u64,
        shared: &mut Shared,
        run: &mut Run,
    ) -> Step {
        let Some(link) = &mut self.link else { return Step::Waits };
        let mut worked = Ok(0);
        if event.is_writable() || event.is_error() {
            worked = link.writable().map(|()| 0);
        }
        if worked.is_ok() && (event.is_readable() || event.is_read_closed()) {
            worked = link.receive(&mut shared.buffer, event.is_read_closed());
        }
        match worked {
            Ok(bytes) => run.tally.received_bytes += bytes as u64,
            Err(error) => {
                if !is_end(&error) {
                    run.tally.note_failure(&error);
                }
                link.closed = true;
            }
        }
        let step = self.progress(now_ns, shared, run);
        if self.link.as_ref().is_some_and(|it| it.closed) {
            return self.ended(step, shared, run);
        }
        step
    }

    /// Reads the complete part of the input.
    fn progress(&mut self, now_ns: u64, shared: &mut Shared, run: &mut Run) -> Step {
        if self.state == State::Opening {
            match self.opened(now_ns, shared, run) {
                Ok(true) => return Step::Done,
                Ok(false) => return Step::Waits,
                Err(wrong) => return self.reject(wrong, run),
            }
        }
        let read = match shared.dialect {
            Dialect::Http(_) => self.read_response(now_ns, shared, run),
            Dialect::Ws(_) => self.read_messages(now_ns, shared, run),
        };
        read.unwrap_or_else(|wrong| self.reject(wrong, run))
    }

    /// Continues to open; true if that is done.
    fn opened(&mut self, now_ns: u64, shared: &Shared, run: &mut Run) -> Result<bool, Invalid> {
        let Some(link) = self.link.as_mut().filter(|it| it.is_ready()) else { return Ok(false) };
        if matches!(shared.dialect, Dialect::Ws(_)) {
            let Endpoint { target, authority, .. } = &shared.endpoint;
            if !self.upgrade.0 {
                self.upgrade.0 = true;
                // A failure shows in the next event.
                let _ = link.send(&frames::upgrade(target, authority));
            }
            let Some(head) = frames::upgraded(&link.input)? else { return Ok(false) };
            link.input.drain(..head);
            self.upgrade.1 = true;
        }
        self.state = State::Idle;
        if run.task == Task::Connect {
            let latency_ns = now_ns.saturating_sub(self.since_ns);
            run.tally.answered(Kind::Connect, now_ns.saturating_sub(run.start_ns), latency_ns);
        }
        Ok(true)
    }

    /// Reads the response of an HTTP tracker.
    fn read_response(
        &mut self,
        now_ns: u64,
        shared: &Shared,
        run: &mut Run,
    ) -> Result<Step, Invalid> {
        let Some(link) = &mut self.link else { return Ok(Step::Waits) };
        if link.input.is_empty() {
            return Ok(Step::Waits);
        }
        let Some((_, pending)) = self.asked else { return Err(Invalid::SecondResponse) };
        let Some(frame) = http::frame(&link.input, link.closed)? else { return Ok(Step::Waits) };
        let (plan, end) = (&shared.plan, frame.body.end);
        let thorough = run.tally.peer_responses.is_multiple_of(64);
        let judged = http::judge(&link.input[frame.body], &pending, self.ip, plan, thorough);
        if let Err(wrong) | Ok((_, Some(wrong))) = &judged {
            run.tally.invalid[*wrong as usize] += 1;
        }
        match judged {
            Ok((http::Said::Refused(reason), _)) => run.tally.error(reason),
            Ok((http::Said::Announced(announce), _)) => {
                run.tally.peers += announce.peer_count() as u64;
                run.tally.peer_responses += u64::from(pending.count > 0);
                settle(&mut self.members, &pending, now_ns, run);
            }
            Ok((http::Said::Scraped(peers), _)) => {
                run.tally.scraped_peers += if run.task == Task::Verify { peers } else { 0 };
                settle(&mut self.members, &pending, now_ns, run);
            }
            Err(_) => {}
        }
        link.input.drain(..end);
        self.asked = None;
        self.reused = true;
        if frame.keep_alive && !is_one_shot(plan, run) {
            self.state = State::Idle;
            return Ok(Step::Done);
        }
        self.state = State::Draining;
        Ok(Step::Waits)
    }

    /// Reads all messages of a WebTorrent tracker.
    fn read_messages(
        &mut self,
        now_ns: u64,
        shared: &mut Shared,
        run: &mut Run,
    ) -> Result<Step, Invalid> {
        let Some(link) = &mut self.link else { return Ok(Step::Waits) };
        let input = std::mem::take(&mut link.input);
        let was_waiting = self.state == State::Waiting;
        let (mut at, mut result) = (0, Ok(()));
        while result.is_ok() {
            match frames::frame(&input[at..]) {
                Ok(Some(frame)) => {
                    let payload = &input[at..][frame.payload.clone()];
                    result = self.heard(frame.opcode, payload, now_ns, shared, run);
                    at += frame.payload.end;
                }
                Ok(None) => break,
                Err(wrong) => result = Err(wrong),
            }
        }
        if let Some(link) = &mut self.link {
            link.input = input;
            link.input.drain(..at);
        }
        result?;
        let done = was_waiting && self.state == State::Idle;
        Ok(if done { Step::Done } else { Step::Waits })
    }

    /// Handles one frame.
    fn heard(
        &mut self,
        opcode: OpCode,
        payload: &[u8],
        now_ns: u64,
        shared: &mut Shared,
        run: &mut Run,
    ) -> Result<(), Invalid> {
        match opcode {
            OpCode::Data(Data::Text | Data::Binary) => {}
            OpCode::Control(Control::Ping) => {
                self.send_frame(PONG, payload, shared);
                return Ok(());
            }
            OpCode::Control(Control::Close) => {
                if let Some(link) = &mut self.link {
                    link.closed = true;
                }
                return Ok(());
            }
            _ => return Ok(()),
        }
        let heard = match messages::read(payload, self.peer, &shared.plan) {
            Ok(heard) => heard,
            Err(wrong) => {
                run.tally.invalid[wrong as usize] += 1;
                return Ok(());
            }
        };
        match heard {
            Heard::Offered(offer) => {
                let mine = self.torrents.binary_search(&offer.torrent).is_ok();
                run.tally.invalid[Invalid::Misrouted as usize] += u64::from(!mine);
                run.tally.stream.offers_relayed += 1;
                run.tally.stream.answers_sent += 1;
                self.answers = self.answers.saturating_add(1);
                let Dialect::Ws(writer) = &shared.dialect else { return Ok(()) };
                let mut message = std::mem::take(&mut shared.message);
                message.clear();
                writer.answer(&mut message, &offer, self.peer);
                self.send_frame(TEXT, &message, shared);
                shared.message = message;
            }
            Heard::Answered => run.tally.stream.answers_relayed += 1,
            heard => self.answered(&heard, now_ns, shared, run),
        }
        Ok(())
    }

    /// Handles the response to a request, unless it is a response to an answer.
    fn answered(&mut self, heard: &Heard<'_>, now_ns: u64, shared: &Shared, run: &mut Run) {
        if let Heard::Refused(reason, about) = heard {
            let wanted = self.asked.and_then(|it| it.0.peer).map(|it| it.torrent);
            let hash = wanted.map(|it| info_hash(shared.plan.seed, it));
            // An offer may have expired, or its peer have left, before the answer arrived.
            if self.answers > 0 && about.is_some() && *about != hash {
                run.tally.stream.answers_refused += 1;
                return;
            }
            run.tally.error(reason.as_bytes());
        }
        let Some((request, pending)) = self.asked else {
            let extra = self.answers > 0 && matches!(heard, Heard::Announced(_));
            run.tally.late += u64::from(!extra);
            return;
        };
        match heard {
            Heard::Announced(hash) => {
                let asked = request.peer.map(|it| info_hash(shared.plan.seed, it.torrent));
                if asked != Some(*hash) {
                    let unexplained = self.answers == 0 && self.overdue == 0;
                    run.tally.late += u64::from(self.overdue > 0);
                    run.tally.invalid[Invalid::WrongTorrent as usize] += u64::from(unexplained);
                    return;
                }
            }
            Heard::Scraped(..) if pending.kind != Kind::Scrape => {
                run.tally.late += 1;
                return;
            }
            Heard::Scraped(torrents, peers) => {
                if *torrents != usize::from(pending.count) {
                    run.tally.invalid[Invalid::ScrapeCount as usize] += 1;
                }
                run.tally.scraped_peers += if run.task == Task::Verify { *peers } else { 0 };
            }
            Heard::Refused(..) => {}
            Heard::Offered(_) | Heard::Answered => return,
        }
        if !matches!(heard, Heard::Refused(..)) {
            settle(&mut self.members, &pending, now_ns, run);
        }
        self.asked = None;
        self.state = State::Idle;
    }

    /// Sends a frame. A failure shows in the next event.
    fn send_frame(&mut self, opcode: OpCode, payload: &[u8], shared: &mut Shared) {
        let Some(link) = &mut self.link else { return };
        shared.out.clear();
        let mask = shared.random.u32(..).to_ne_bytes();
        frames::push_frame(&mut shared.out, opcode, payload, mask);
        let _ = link.send(&shared.out);
    }

    /// Handles a close by the other side. `step` is the result of its last bytes.
    fn ended(&mut self, step: Step, shared: &mut Shared, run: &mut Run) -> Step {
        self.link = None;
        if matches!(shared.dialect, Dialect::Ws(_)) && self.upgrade.1 {
            // A tracker removes a WebRTC peer when its socket closes.
            run.tally.stream.closed_by_tracker += 1;
            self.members.forget();
        }
        match self.state {
            State::Idle => step,
            State::Draining => {
                self.state = State::Idle;
                Step::Done
            }
            State::Waiting => {
                if self.reused && matches!(shared.dialect, Dialect::Http(_)) {
                    // Most likely closed while idle: the request was not read.
                    if let Some((request, _)) = self.asked
                        && self.send(&request, shared, run).is_ok()
                    {
                        return Step::Waits;
                    }
                }
                self.lose(run)
            }
            State::Opening => {
                run.tally.unreachable += 1;
                self.lose(run)
            }
        }
    }

    /// Ends the connection because of an invalid response.
    fn reject(&mut self, wrong: Invalid, run: &mut Run) -> Step {
        run.tally.invalid[wrong as usize] += 1;
        match self.state {
            State::Idle => {
                self.link = None;
                Step::Waits
            }
            _ => self.lose(run),
        }
    }

    /// Counts the awaited response as lost.
    fn lose(&mut self, run: &mut Run) -> Step {
        let kind = self.asked.map_or(Kind::Connect, |it| it.1.kind);
        let counts = self.asked.is_some() || run.task == Task::Connect;
        run.tally.lost[kind as usize] += u64::from(counts);
        if let Some((_, pending)) = self.asked.take()
            && pending.kind == Kind::Announce
        {
            self.members.lost(pending.item);
        }
        self.state = State::Idle;
        self.link = None;
        // A connection that cannot be opened is not tried again while connecting.
        if run.task == Task::Connect { Step::GivenUp } else { Step::Done }
    }

    /// Stops waiting if that began before a moment.
    pub(crate) fn expire(&mut self, before_ns: u64, run: &mut Run) -> Step {
        if self.state == State::Idle || self.since_ns >= before_ns {
            return Step::Waits;
        }
        if self.state == State::Draining {
            run.tally.invalid[Invalid::KeptOpen as usize] += 1;
            self.state = State::Idle;
            self.link = None;
            return Step::Done;
        }
        let Some(link) = self.link.take().filter(|_| self.upgrade.1) else { return self.lose(run) };
        // The other torrents of the socket continue.
        self.overdue += 1;
        let step = self.lose(run);
        self.link = Some(link);
        step
    }
}

/// Whether each request has its own connection. Filling is exempt.
fn is_one_shot(plan: &Plan, run: &Run) -> bool {
    plan.transport.one_shot && matches!(run.task, Task::Load { .. })
}

/// Number of offers in a request: none while filling, none if it wants no peers.
fn offers_of(request: &Request, plan: &Plan, run: &Run) -> u16 {
    use skep::types::Event;
    let wanted = matches!(request.event, Event::Started | Event::None);
    let load = matches!(run.task, Task::Load { .. });
    if wanted && load { plan.transport.offers } else { 0 }
}

/// Handles a good response to a request.
fn settle(members: &mut Members, pending: &Pending, now_ns: u64, run: &mut Run) {
    if run.task == Task::Fill && pending.kind == Kind::Announce {
        members.filled(pending.item);
    }
    run.tally.answered_in_time += u64::from(now_ns < run.deadline_ns);
    let latency_ns = now_ns.saturating_sub(pending.intended_ns);
    run.tally.answered(pending.kind, now_ns.saturating_sub(run.start_ns), latency_ns);
}

/// Whether an error only means the end of a connection.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
