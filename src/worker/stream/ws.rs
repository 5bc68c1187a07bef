//! A WebSocket on a connection: messages in, replies and mail out through one bounded queue. A
//! writer is at work only while something is queued.

use std::net::IpAddr;
use std::rc::Rc;

use tokio::task::spawn_local;

use super::FrontEnds;
use super::connection::Connection;
use super::frames::{self, Event, Fragments, HEAD_BYTES_MAX, Step};
use super::slots::Deadlines;
use crate::frontend::Passkey;
use crate::frontend::http::Outcome;
use crate::frontend::ws::{MESSAGE_BYTES_MAX, Mail, Outbox, Session};
use crate::metrics::{Closed, MailLost, Transport};
use crate::sys::stream::Network;
use crate::time::Now;
use crate::types::{Family, Rejected};

/// Most bytes that wait for a client, those being written included.
const QUEUE_BYTES_MAX: usize = 256 * 1024;

/// Replies that are gathered before they are written.
const REPLIES_BYTES_MAX: usize = 64 * 1024;

/// What a socket that waits for a message reads into.
const WAITING_BYTES: usize = 512;

/// The same, where the last read was full: more is likely to come.
const BUSY_BYTES: usize = 4096;

/// The longest frame.
const FRAME_BYTES_MAX: usize = MESSAGE_BYTES_MAX + HEAD_BYTES_MAX;

/// Why a server closes that stops (RFC 6455, 7.4.1).
pub(super) const GOING_AWAY: u16 = 1001;

/// What a connection is besides, once it has been upgraded.
pub(super) struct Web {
    /// `None` once the client has said that it closes, or was told so.
    session: Option<Session>,
    family: Family,
    queue: Vec<u8>,
    /// Bytes that are being written.
    writing_bytes: usize,
    is_writing: bool,
    /// Whether a close was queued: nothing may follow it.
    is_closing: bool,
}

/// What to do after the frames that were received.
enum Then {
    /// Read on; at least so many bytes are to come.
    Read(usize),
    /// Write the replies, and go on with what was received.
    GoOn,
    /// The last frame was queued: hear the client out.
    Close(Closed),
}

/// Answers messages until the socket ends.
pub(super) async fn serve<N: Network>(it: &Rc<Connection<N>>, mut input: Vec<u8>) -> Closed {
    let mut fragments = Fragments::default();
    let mut rest_by = None;
    loop {
        let usual = if input.len() == input.capacity() { BUSY_BYTES } else { WAITING_BYTES };
        let then = it.take_frames(&mut input, &mut fragments);
        it.write_queue().await;
        match then {
            Then::Read(bytes) => {
                let is_partial = !input.is_empty() || fragments.are_pending();
                it.expect_frame(is_partial, &mut rest_by);
                make_room(&mut input, bytes, usual);
            }
            Then::GoOn => continue,
            Then::Close(reason) => {
                it.end_session();
                it.linger(input).await;
                return reason;
            }
        }
        match it.read_more(input).await {
            Ok(more) => input = more,
            Err(reason) => return reason,
        }
    }
}

/// Makes room for a frame of so many bytes, or for `usual` bytes where nothing of it has come.
fn make_room(input: &mut Vec<u8>, bytes: usize, usual: usize) {
    debug_assert!(bytes <= FRAME_BYTES_MAX, "longer frames are turned away");
    if input.is_empty() {
        if input.capacity() != usual {
            *input = Vec::with_capacity(usual);
        }
    } else {
        input.reserve_exact(bytes.saturating_sub(input.len()).max(1));
    }
}

impl<N: Network> Connection<N> {
    /// Becomes a WebSocket.
    pub(super) fn upgrade(&self, source: IpAddr, passkey: Option<Box<Passkey>>) {
        let worker = &self.worker;
        let route = self.place.route(worker.index);
        let session = worker.front_ends.borrow_mut().ws.open_with(route, source, passkey);
        *self.web.borrow_mut() = Some(Box::new(Web {
            session: Some(session),
            family: Family::of(source),
            queue: Vec::new(),
            writing_bytes: 0,
            is_writing: false,
            is_closing: false,
        }));
        worker.counters.upgrades.add(1);
        worker.counters.open(Transport::Http).fall();
        worker.counters.open(Transport::Ws).rise();
        let now = worker.now();
        let ping_s = worker.with_options(|it| u64::from(it.ping_interval_s));
        let mut deadlines = Deadlines::until(now.plus_s(2 * ping_s), Closed::IdleTimeout);
        deadlines.ping = now.plus_s(ping_s);
        self.with_deadlines(|it| *it = deadlines);
    }

    /// The client's peers leave. Does nothing the second time.
    pub(super) fn end_session(&self) {
        let session = self.web.borrow_mut().as_deref_mut().and_then(|it| it.session.take());
        if let Some(session) = session {
            let mut front_ends = self.worker.front_ends.borrow_mut();
            let FrontEnds { tracker, ws, .. } = &mut *front_ends;
            ws.close(tracker, self.worker.now(), session);
        }
    }

    /// Handles the frames that are complete, and takes them away from `input`.
    fn take_frames(&self, input: &mut Vec<u8>, fragments: &mut Fragments) -> Then {
        let now = self.worker.now();
        let mut done = 0;
        let mut alive = false;
        let then = loop {
            if self.queued_bytes() >= REPLIES_BYTES_MAX && !self.is_writing() {
                break Then::GoOn;
            }
            match fragments.take(&mut input[done..]) {
                Ok(Step::Partial(bytes)) => break Then::Read(bytes),
                Ok(Step::Frame(bytes, event)) => {
                    done += bytes;
                    alive |= !matches!(event, Event::Fragment);
                    if self.take_event(now, event) {
                        break Then::Close(Closed::ByClient);
                    }
                    fragments.forget();
                }
                Err(bad) => {
                    let outcome = Outcome::Rejected(Rejected::BadFrame);
                    self.count(Transport::Ws, self.web_family(), outcome);
                    self.enqueue_last(Some(bad.status()), Closed::BadFrame);
                    break Then::Close(Closed::BadFrame);
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

    /// Says whether the client closes.
    fn take_event(&self, now: Now, event: Event<'_>) -> bool {
        match event {
            Event::Message(message) => self.take_message(now, message),
            Event::Ping(payload) => {
                self.enqueue(payload.len(), |queue| frames::write_pong(queue, payload));
            }
            Event::Pong | Event::Fragment => {}
            Event::Close(status) => {
                self.enqueue_last(status, Closed::ByClient);
                return true;
            }
        }
        false
    }

    fn take_message(&self, now: Now, message: &[u8]) {
        let mut outbox = Outbox::default();
        {
            let mut web = self.web.borrow_mut();
            let Some(Web { session: Some(session), family, .. }) = web.as_deref_mut() else {
                unreachable!("frames come from WebSockets that are open");
            };
            let mut front_ends = self.worker.front_ends.borrow_mut();
            let FrontEnds { tracker, ws, .. } = &mut *front_ends;
            let outcome = ws.handle(tracker, now, session, message, &mut outbox);
            self.count(Transport::Ws, *family, outcome);
        }
        self.enqueue_texts(&outbox.replies);
        for (reason, count) in outbox.lost {
            self.worker.counters.mail_lost(reason).add(count as u64);
        }
        for (route, mail) in outbox.mail {
            self.worker.post(route, mail);
        }
    }

    /// Takes mail from another socket. What finds the queue half full is lost: only what a client
    /// brings on itself may cut it off, not what others send it.
    pub(super) fn receive(self: &Rc<Self>, mail: Mail, outbox: &mut Outbox) {
        {
            let mut web = self.web.borrow_mut();
            let Some(Web { session: Some(session), queue, writing_bytes, .. }) = web.as_deref_mut()
            else {
                self.worker.counters.mail_lost(MailLost::ReceiverGone).add(1);
                return;
            };
            if queue.len() + *writing_bytes + mail.bytes() > QUEUE_BYTES_MAX / 2 {
                self.worker.counters.mail_lost(MailLost::QueueFull).add(1);
                return;
            }
            let mut front_ends = self.worker.front_ends.borrow_mut();
            if let Err(lost) = front_ends.ws.receive(self.worker.now(), session, mail, outbox) {
                self.worker.counters.mail_lost(lost).add(1);
            }
        }
        self.enqueue_texts(&outbox.replies);
        self.start_writing();
    }

    /// Asks whether the client is still there, and lets go of what it holds no more.
    pub(super) fn ping(self: &Rc<Self>) {
        if let Some(Web { session: Some(session), .. }) = self.web.borrow_mut().as_deref_mut() {
            let mut front_ends = self.worker.front_ends.borrow_mut();
            let FrontEnds { tracker, ws, .. } = &mut *front_ends;
            ws.tend(tracker, self.worker.now(), session);
        }
        self.enqueue(0, frames::write_ping);
        self.start_writing();
    }

    /// Tells the client that the socket closes, and why.
    pub(super) fn say_goodbye(self: &Rc<Self>, status: u16, reason: Closed) {
        self.enqueue_last(Some(status), reason);
        self.start_writing();
    }

    /// Whether it is a WebSocket that nobody has closed.
    pub(super) fn is_open_web(&self) -> bool {
        self.web.borrow().as_deref().is_some_and(|it| !it.is_closing)
    }

    fn enqueue_texts(&self, texts: &[Vec<u8>]) {
        for text in texts {
            self.enqueue(text.len(), |queue| frames::write_text(queue, text));
        }
    }

    /// Queues a close.
    fn enqueue_last(&self, status: Option<u16>, reason: Closed) {
        self.decide_ending(reason);
        self.enqueue(size_of::<u16>(), |queue| frames::write_close(queue, status));
        if let Some(web) = self.web.borrow_mut().as_deref_mut() {
            web.is_closing = true;
        }
    }

    /// Queues a frame with `payload_bytes`. A client that lets too much pile up is cut off.
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
            self.end(Closed::SendQueueFull);
        }
    }

    fn queued_bytes(&self) -> usize {
        self.web.borrow().as_deref().map_or(0, |it| it.queue.len())
    }

    fn is_writing(&self) -> bool {
        self.web.borrow().as_deref().is_some_and(|it| it.is_writing)
    }

    fn web_family(&self) -> Family {
        self.web.borrow().as_deref().map_or(Family::V4, |it| it.family)
    }

    /// Writes what is queued in a task of its own, unless somebody does.
    fn start_writing(self: &Rc<Self>) {
        if self.begin_writing() {
            let it = self.clone();
            spawn_local(async move { it.drain_queue().await });
        }
    }

    /// Writes what is queued, unless somebody does.
    async fn write_queue(&self) {
        if self.begin_writing() {
            self.drain_queue().await;
        }
    }

    /// Whether the caller has to write.
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
                return; // as if still writing: there is nobody to write to
            }
        }
        if self.web.borrow().as_deref().is_some_and(|it| it.is_closing) {
            self.end_writing().await;
        }
    }

    /// What to write next. Where there is nothing, writing has ended.
    fn next_queued(&self) -> Option<Vec<u8>> {
        let mut web = self.web.borrow_mut();
        let web = web.as_deref_mut()?;
        let bytes = std::mem::take(&mut web.queue);
        web.writing_bytes = bytes.len();
        web.is_writing = !bytes.is_empty();
        web.is_writing.then_some(bytes)
    }

    /// Sets the deadline for the rest of a message: pongs do not put it off.
    fn expect_frame(&self, is_partial: bool, rest_by: &mut Option<Now>) {
        if !is_partial {
            *rest_by = None;
            return;
        }
        let limit_s = self.worker.with_options(|it| u64::from(it.idle_timeout_s));
        let rest_by = *rest_by.get_or_insert_with(|| self.worker.now().plus_s(limit_s));
        self.with_deadlines(|it| it.read = it.read.min(rest_by));
    }
}
