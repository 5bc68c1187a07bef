//! A WebSocket on a connection: messages in, responses and messages of other sockets out through
//! one bounded queue. A writer runs only while something is queued.

use std::net::IpAddr;
use std::rc::Rc;

use tokio::task::spawn_local;

use super::FrontEnds;
use super::connection::Connection;
use super::connection_memory::BufferKind;
use super::frames::{self, Fragments, FrameEvent, FrameStep, HEAD_BYTES_MAX};
use super::slots::Deadlines;
use crate::counters::{CloseReason, DeliveryFailure, Transport};
use crate::frontend::Passkey;
use crate::frontend::http::Outcome;
use crate::frontend::request_summary::RequestSummary;
use crate::frontend::ws::{MESSAGE_BYTES_MAX, Outbox, PeerMessage, SocketSession};
use crate::sys::stream::Network;
use crate::time::Now;
use crate::types::{Refusal, Rejected};

/// Most bytes that wait for a client, including those being written.
const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// Bytes of responses that are gathered before they are written.
const RESPONSES_BYTES_MAX: usize = 64 * 1024;

/// Room for a read while the socket waits for a message, in bytes.
const WAITING_BYTES: usize = 512;

/// Room for a read after one that was full, since more is likely to come.
const BUSY_BYTES: usize = 4096;

/// The longest frame.
const FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX + HEAD_BYTES_MAX;

/// Close status of a server that stops (RFC 6455, 7.4.1).
pub(super) const GOING_AWAY: u16 = 1001;

/// Close status for a client over its limit (RFC 6455, 7.4.1).
const POLICY: u16 = 1008;

/// Bytes of error messages that every socket may receive. Beyond that, an error message is never
/// longer than the message that caused it.
const ERROR_BYTES_FREE: usize = 512;

/// What a frame costs, in eighths of an announce: a ping, a fragment, an answer that came too late;
/// and what a message costs that cannot be read.
const FRAME_EIGHTHS: u16 = 1;
const MESSAGE_EIGHTHS: u16 = 8;

/// State of a connection after the upgrade.
pub(super) struct Web {
    /// `None` after a close frame from either side.
    session: Option<SocketSession>,
    pub(super) source: IpAddr,
    queue: Vec<u8>,
    /// Bytes of error messages that may be sent.
    error_bytes: usize,
    /// Bytes that are being written.
    writing_bytes: usize,
    is_writing: bool,
    /// Whether a close frame was queued. Nothing may follow it.
    is_closing: bool,
}

/// What to do after the received frames.
enum Then {
    /// Read more; at least this many bytes are expected.
    Read(usize),
    /// Write the responses, then continue with what was received.
    GoOn,
    /// The last frame was queued. Read until the client closes.
    Close(CloseReason),
}

/// Handles messages until the socket ends.
pub(super) async fn serve<N: Network>(
    connection: &Rc<Connection<N>>,
    mut input: Vec<u8>,
) -> CloseReason {
    let mut fragments = Fragments::default();
    let mut rest_by = None;
    loop {
        let usual = if input.len() == input.capacity() { BUSY_BYTES } else { WAITING_BYTES };
        let then = connection.take_frames(&mut input, &mut fragments);
        if let Err(reason) = connection.hold_session(&fragments) {
            return reason;
        }
        connection.write_queue().await;
        match then {
            Then::Read(bytes) => {
                let is_partial = !input.is_empty() || fragments.are_pending();
                connection.expect_frame(is_partial, &mut rest_by);
                make_room(&mut input, bytes, usual);
            }
            Then::GoOn => continue,
            Then::Close(reason) => {
                connection.end_session();
                connection.linger(input).await;
                return reason;
            }
        }
        match connection.read_more(input).await {
            Ok(more) => input = more,
            Err(reason) => return reason,
        }
    }
}

/// Drops error messages that are longer than the allowance for errors.
fn keep_to(error_bytes: &mut usize, responses: &mut Vec<Vec<u8>>) {
    let bytes = responses.iter().map(|it| it.len() + HEAD_BYTES_MAX).sum();
    match error_bytes.checked_sub(bytes) {
        Some(left) => *error_bytes = left,
        None => responses.clear(),
    }
}

/// Makes room for a frame of `bytes` bytes, or for `usual` bytes if none of it has arrived. The
/// room at most doubles what has arrived, so that a head alone cannot reserve a long frame.
fn make_room(input: &mut Vec<u8>, bytes: usize, usual: usize) {
    debug_assert!(bytes <= FRAME_BYTES_MAX, "longer frames are refused");
    if input.is_empty() {
        if input.capacity() != usual {
            *input = Vec::with_capacity(usual);
        }
    } else {
        let rest = bytes.saturating_sub(input.len()).max(1);
        input.reserve_exact(rest.min(input.len().max(usual)));
    }
}

impl<N: Network> Connection<N> {
    /// Turns the connection into a WebSocket.
    pub(super) fn upgrade(&self, source: IpAddr, passkey: Option<Box<Passkey>>) {
        let worker = &self.worker;
        let route = self.place.route(worker.index);
        let session = worker.front_ends.borrow_mut().ws.open_with(route, source, passkey);
        *self.web.borrow_mut() = Some(Box::new(Web {
            session: Some(session),
            source,
            queue: Vec::new(),
            error_bytes: ERROR_BYTES_FREE,
            writing_bytes: 0,
            is_writing: false,
            is_closing: false,
        }));
        worker.counters.upgrades.add(1);
        worker.counters.open(Transport::Http).fall();
        worker.counters.open(Transport::Ws).rise();
        let now = worker.now();
        let ping_s = worker.with_options(|it| u64::from(it.ping_interval_s));
        let mut deadlines = Deadlines::until(now.plus_s(2 * ping_s), CloseReason::IdleTimeout);
        deadlines.ping = now.plus_s(ping_s);
        self.with_deadlines(|it| *it = deadlines);
    }

    /// Removes the client's peers from the store. A second call does nothing.
    pub(super) fn end_session(&self) {
        self.worker.begin_turn();
        let session = self.web.borrow_mut().as_deref_mut().and_then(|it| it.session.take());
        if let Some(session) = session {
            let mut front_ends = self.worker.front_ends.borrow_mut();
            let FrontEnds { tracker, ws, .. } = &mut *front_ends;
            ws.close(tracker, self.worker.now(), session);
        }
    }

    /// Handles the complete frames, and removes them from `input`.
    fn take_frames(&self, input: &mut Vec<u8>, fragments: &mut Fragments) -> Then {
        let now = self.worker.now();
        let mut done = 0;
        let mut alive = false;
        let then = loop {
            if self.queued_bytes() >= RESPONSES_BYTES_MAX && !self.is_writing() {
                break Then::GoOn;
            }
            match fragments.take(&mut input[done..]) {
                Ok(FrameStep::Partial(bytes)) => break Then::Read(bytes),
                Ok(FrameStep::Frame(bytes, event)) => {
                    done += bytes;
                    alive |= !matches!(event, FrameEvent::Fragment);
                    match self.take_event(now, event) {
                        Ok(true) => break Then::Close(CloseReason::ByClient),
                        Ok(false) => fragments.forget(),
                        Err(reason) => {
                            self.enqueue_last(Some(POLICY), reason);
                            break Then::Close(reason);
                        }
                    }
                }
                Err(bad) => {
                    let outcome = Outcome::Rejected(Rejected::BadFrame);
                    self.count(Transport::Ws, self.web_source(), outcome, RequestSummary::default);
                    self.enqueue_last(Some(bad.status()), CloseReason::BadFrame);
                    break Then::Close(CloseReason::BadFrame);
                }
            }
        };
        input.drain(..done);
        if alive {
            let ping_s = self.worker.with_options(|it| u64::from(it.ping_interval_s));
            self.with_deadlines(|it| it.read = now.plus_s(2 * ping_s));
        }
        then
    }

    /// Handles one frame. True if the client closes.
    ///
    /// # Errors
    /// [`CloseReason::Limited`] if the source is over its limit.
    fn take_event(&self, now: Now, event: FrameEvent<'_>) -> Result<bool, CloseReason> {
        let eighths = match event {
            FrameEvent::Message(message) => self.take_message(now, message),
            FrameEvent::Ping(payload) => {
                self.enqueue(payload.len(), |queue| frames::write_pong(queue, payload));
                FRAME_EIGHTHS
            }
            FrameEvent::Pong | FrameEvent::Fragment => FRAME_EIGHTHS,
            FrameEvent::Close(status) => {
                self.enqueue_last(status, CloseReason::ByClient);
                return Ok(true);
            }
        };
        if eighths > 0 {
            self.charge_minor(now, eighths)?;
        }
        Ok(false)
    }

    /// Handles a message; returns what is still to be charged, in eighths of an announce.
    fn take_message(&self, now: Now, message: &[u8]) -> u16 {
        self.worker.begin_turn();
        let mut outbox = Outbox::default();
        let eighths = {
            let mut web = self.web.borrow_mut();
            let Some(Web { session: Some(session), source, error_bytes, .. }) = web.as_deref_mut()
            else {
                unreachable!("frames come from WebSockets that are open");
            };
            let mut front_ends = self.worker.front_ends.borrow_mut();
            let FrontEnds { tracker, ws, .. } = &mut *front_ends;
            tracker.take_was_charged(); // resets the flag
            let outcome = ws.handle(tracker, now, session, message, &mut outbox);
            self.count(Transport::Ws, Some(*source), outcome, || {
                RequestSummary::of_message(message)
            });
            let eighths = match outcome {
                // Charged already, unless it was refused for the limit.
                Outcome::Refused(Refusal::Limited) => FRAME_EIGHTHS,
                _ if tracker.take_was_charged() => 0,
                // An answer, of which there are not more than offers.
                Outcome::Answered(_) | Outcome::NotApplied(_) => 0,
                // An answer that came too late. That is normal: clients race with each other.
                Outcome::Rejected(_) if outbox.responses.is_empty() => FRAME_EIGHTHS,
                Outcome::Rejected(_) | Outcome::Refused(_) => MESSAGE_EIGHTHS,
            };
            *error_bytes = (*error_bytes + message.len()).min(MESSAGE_BYTES_MAX);
            if outcome.answered().is_none() {
                keep_to(error_bytes, &mut outbox.responses);
            }
            eighths
        };
        self.enqueue_texts(&outbox.responses);
        for (reason, count) in outbox.lost {
            self.worker.counters.messages_lost(reason).add(count as u64);
        }
        for (route, message) in outbox.messages {
            self.worker.post(route, message);
        }
        eighths
    }

    /// Receives a message from another socket. If the queue is half full, or memory short, the
    /// message is lost: only a client's own traffic may close its socket, not what others send to
    /// it.
    pub(super) fn receive(self: &Rc<Self>, message: PeerMessage, outbox: &mut Outbox) {
        let session_bytes = {
            let mut web = self.web.borrow_mut();
            let Some(Web { session: Some(session), queue, writing_bytes, .. }) = web.as_deref_mut()
            else {
                self.worker.counters.messages_lost(DeliveryFailure::ReceiverGone).add(1);
                return;
            };
            if queue.len() + *writing_bytes + message.bytes() > QUEUE_BYTES_MAX / 2
                || !self.worker.has_memory(message.bytes())
            {
                self.worker.counters.messages_lost(DeliveryFailure::QueueFull).add(1);
                return;
            }
            let mut front_ends = self.worker.front_ends.borrow_mut();
            if let Err(lost) = front_ends.ws.receive(self.worker.now(), session, message, outbox) {
                self.worker.counters.messages_lost(lost).add(1);
            }
            session.held_bytes()
        };
        // The session records the offer, which takes memory even if the client has sent nothing.
        let _ = self.hold(BufferKind::Session, session_bytes);
        self.enqueue_texts(&outbox.responses);
        self.start_writing();
    }

    /// Sends a ping, and frees what the session no longer needs.
    pub(super) fn ping(self: &Rc<Self>) {
        let mut session_bytes = 0;
        if let Some(Web { session: Some(session), .. }) = self.web.borrow_mut().as_deref_mut() {
            let mut front_ends = self.worker.front_ends.borrow_mut();
            let FrontEnds { tracker, ws, .. } = &mut *front_ends;
            ws.tend(tracker, self.worker.now(), session);
            session_bytes = session.held_bytes();
        }
        let _ = self.hold(BufferKind::Session, session_bytes);
        self.enqueue(0, frames::write_ping);
        self.start_writing();
    }

    /// Sends a close frame with a status.
    pub(super) fn close_with(self: &Rc<Self>, status: u16, reason: CloseReason) {
        self.enqueue_last(Some(status), reason);
        self.start_writing();
    }

    /// Whether it is a WebSocket for which no close was queued.
    pub(super) fn is_open_web(&self) -> bool {
        self.web.borrow().as_deref().is_some_and(|it| !it.is_closing)
    }

    fn enqueue_texts(&self, texts: &[Vec<u8>]) {
        for text in texts {
            self.enqueue(text.len(), |queue| frames::write_text(queue, text));
        }
    }

    /// Queues a close.
    fn enqueue_last(&self, status: Option<u16>, reason: CloseReason) {
        self.decide_ending(reason);
        self.enqueue(size_of::<u16>(), |queue| frames::write_close(queue, status));
        if let Some(web) = self.web.borrow_mut().as_deref_mut() {
            web.is_closing = true;
        }
    }

    /// Queues a frame with `payload_bytes`. Ends the connection if its queue is full.
    fn enqueue(&self, payload_bytes: usize, write: impl FnOnce(&mut Vec<u8>)) {
        let mut web = self.web.borrow_mut();
        let Some(web) = web.as_deref_mut() else { return };
        if web.is_closing {
            return;
        }
        let queued = web.queue.len() + web.writing_bytes;
        if queued + payload_bytes + HEAD_BYTES_MAX <= QUEUE_BYTES_MAX {
            write(&mut web.queue);
        } else {
            web.is_closing = true;
            web.queue = Vec::new();
            self.end(CloseReason::SendQueueFull);
        }
        // If this closes the connection, the reason is set already.
        let _ = self.hold(BufferKind::Queue, web.queue.capacity());
    }

    fn queued_bytes(&self) -> usize {
        self.web.borrow().as_deref().map_or(0, |it| it.queue.len())
    }

    fn is_writing(&self) -> bool {
        self.web.borrow().as_deref().is_some_and(|it| it.is_writing)
    }

    fn web_source(&self) -> Option<IpAddr> {
        self.web.borrow().as_deref().map(|it| it.source)
    }

    /// Records what the WebSocket holds between two reads.
    fn hold_session(&self, fragments: &Fragments) -> Result<(), CloseReason> {
        self.hold(BufferKind::Message, fragments.capacity())?;
        let of_web = |it: &Web| it.session.as_ref().map_or(0, SocketSession::held_bytes);
        let session_bytes = self.web.borrow().as_deref().map_or(0, of_web);
        self.hold(BufferKind::Session, session_bytes)
    }

    /// Writes the queue in a new task, unless a writer runs.
    fn start_writing(self: &Rc<Self>) {
        if self.begin_writing() {
            let connection = self.clone();
            spawn_local(async move { connection.drain_queue().await });
        }
    }

    /// Writes the queue, unless a writer runs.
    async fn write_queue(&self) {
        if self.begin_writing() {
            self.drain_queue().await;
        }
    }

    /// Whether the caller has to write. If so, it counts as the writer.
    fn begin_writing(&self) -> bool {
        let mut web = self.web.borrow_mut();
        let Some(web) = web.as_deref_mut() else { return false };
        let has_to = !web.is_writing && !web.queue.is_empty();
        web.is_writing |= has_to;
        has_to
    }

    async fn drain_queue(&self) {
        while let Some(bytes) = self.next_queued() {
            if let Err(reason) = self.write(bytes).await {
                self.end(reason);
                return; // `is_writing` stays set, so that no other task writes to a dead socket
            }
        }
        if self.web.borrow().as_deref().is_some_and(|it| it.is_closing) {
            self.end_writing().await;
        }
    }

    /// The bytes to write next; `None` if the queue is empty, and writing has ended.
    fn next_queued(&self) -> Option<Vec<u8>> {
        let mut web = self.web.borrow_mut();
        let web = web.as_deref_mut()?;
        let bytes = std::mem::take(&mut web.queue);
        web.writing_bytes = bytes.len();
        web.is_writing = !bytes.is_empty();
        // From here on, the bytes are counted as output.
        let _ = self.hold(BufferKind::Queue, 0);
        web.is_writing.then_some(bytes)
    }

    /// Sets the deadline for the rest of a message. A pong does not extend it.
    fn expect_frame(&self, is_partial: bool, rest_by: &mut Option<Now>) {
        if !is_partial {
            *rest_by = None;
            return;
        }
        let worker = &self.worker;
        let rest_by = *rest_by.get_or_insert_with(|| worker.now().plus_s(worker.transfer_s()));
        self.with_deadlines(|it| it.read = it.read.min(rest_by));
    }
}
