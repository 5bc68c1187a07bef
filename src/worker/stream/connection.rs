//! One connection: what it holds, how it reads and writes within its deadlines, how it ends.

use std::cell::{Cell, OnceCell, RefCell};
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Shutdown};
use std::rc::Rc;
use std::sync::Arc;

use rustls::ServerConfig;

use super::admission::Admission;
use super::charges::MinorWork;
use super::connection_memory::{BufferKind, ConnectionMemory, TLS_BYTES};
use super::http::{self, Next};
use super::slots::{Deadlines, NEVER, SlotAddress};
use super::thread::TaskContext;
use super::tls::{self, RECORD_BYTES_MAX, TlsSession};
use super::ws::{self, Web};
use crate::counters::{CloseReason, Handshake, Transport};
use crate::frontend::ConnectionWork;
use crate::frontend::http::Outcome;
use crate::frontend::origin::{Origin, proxy};
use crate::frontend::request_summary::RequestSummary;
use crate::sys::stream::{Network, Socket, Stream as _};
use crate::types::{Action, Family, Rejected};
use crate::worker::request_log::Unserved;

/// Size of the first input buffer, which an idle connection keeps, in bytes.
pub(super) const HEAD_BYTES_USUAL: usize = 1024;

/// Most bytes written at a time: what a client has to receive before the write deadline.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Most bytes that are read and ignored after the decision to close.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// How long a client may continue to send after the decision to close. Closing at once would reset
/// the connection, and the client might never read the response.
const LINGER_S: u64 = 2;

/// A connection. Its task, the writer of its WebSocket, and the worker share it.
pub(super) struct Connection<N: Network> {
    pub(super) worker: Rc<TaskContext<N>>,
    pub(super) place: SlotAddress,
    pub(super) origin: Cell<Origin>,
    /// Its WebSocket, after an upgrade.
    pub(super) web: RefCell<Option<Box<Web>>>,
    socket: Socket<N>,
    tls: OnceCell<Box<TlsSession>>,
    /// Why it ends, if that was not decided by its own task.
    ending: Cell<Option<CloseReason>>,
    /// Whether it waits for a request of which no byte has arrived.
    is_idle: Cell<bool>,
    /// Whether it has received a response.
    is_served: Cell<bool>,
    pub(super) admission: RefCell<Admission>,
    /// How many connections its worker had before.
    pub(super) opened: u64,
    pub(super) held: ConnectionMemory,
    /// Whether it has been removed from all accounts.
    pub(super) is_released: Cell<bool>,
    pub(super) minor_work: Cell<MinorWork>,
}

pub(super) struct Start {
    /// Whether a PROXY header may come first.
    pub(super) reads_proxy_header: bool,
    /// Configuration for the TLS handshake that follows; `None` without TLS.
    pub(super) tls: Option<Arc<ServerConfig>>,
}

/// The task of a connection.
pub(super) async fn run<N: Network>(connection: Rc<Connection<N>>, start: Start) {
    let reason = match open(&connection, start).await {
        Ok(input) => match http::serve(&connection, input).await {
            Next::Ended(reason) => reason,
            Next::Upgraded { source, passkey, input } => match connection.count_upgrade(source) {
                Ok(()) => {
                    connection.upgrade(source, passkey);
                    ws::serve(&connection, input).await
                }
                Err(reason) => reason,
            },
        },
        Err(reason) => reason,
    };
    connection.finish(reason);
}

/// Handles what precedes HTTP. Returns the bytes of HTTP that were received meanwhile.
async fn open<N: Network>(
    connection: &Connection<N>,
    start: Start,
) -> Result<Vec<u8>, CloseReason> {
    let input = Vec::new();
    if !start.reads_proxy_header && start.tls.is_none() {
        return Ok(input);
    }
    Box::pin(async move {
        let input = if start.reads_proxy_header {
            connection.read_proxy_header(input).await?
        } else {
            input
        };
        match start.tls {
            None => Ok(input),
            Some(config) => {
                if start.reads_proxy_header {
                    // For all other connections it was charged before they were admitted.
                    connection.charge(connection.worker.now(), ConnectionWork::Handshake)?;
                }
                connection.shake_hands(config, input).await.map(|()| Vec::new())
            }
        }
    })
    .await
}

impl<N: Network> Connection<N> {
    /// A connection that was just accepted.
    pub(super) fn new(
        worker: Rc<TaskContext<N>>,
        place: SlotAddress,
        socket: Socket<N>,
        origin: Origin,
        mut admission: Admission,
    ) -> Self {
        let held = ConnectionMemory::default();
        admission.hold(held.total());
        worker.held.change(&worker.shared.account, 0, held.total());
        let opened = worker.count_opened();
        Self {
            worker,
            place,
            origin: Cell::new(origin),
            web: RefCell::new(None),
            socket,
            tls: OnceCell::new(),
            ending: Cell::new(None),
            is_idle: Cell::new(true),
            is_served: Cell::new(false),
            admission: RefCell::new(admission),
            opened,
            held,
            is_released: Cell::new(false),
            minor_work: Cell::default(),
        }
    }

    /// Reads the PROXY header of a trusted proxy, if there is one.
    async fn read_proxy_header(&self, mut input: Vec<u8>) -> Result<Vec<u8>, CloseReason> {
        loop {
            match proxy::parse(&input) {
                Ok(proxy::Preamble::More) => input = self.read_more(input).await?,
                Ok(proxy::Preamble::Absent) => return Ok(input),
                Ok(proxy::Preamble::Header { bytes, source }) => {
                    let origin = source.map_or(Origin::Nobody, |it| Origin::Address(it.ip()));
                    self.origin.set(origin);
                    if let Some(source) = source {
                        self.count_for(source.ip())?;
                    }
                    input.drain(..bytes);
                    return Ok(input);
                }
                Err(proxy::BadHeader) => return Err(self.bad_preamble()),
            }
        }
    }

    /// Counts the connection for the client that a trusted proxy names.
    fn count_for(&self, source: IpAddr) -> Result<(), CloseReason> {
        let max = self
            .worker
            .with_options(|it| it.counts(source).then_some(it.connections_per_source_max));
        max.map_or(Ok(()), |max| self.admission.borrow_mut().count_for(source, max))
    }

    /// Counts a WebSocket for its client, because it stays open. An HTTP request ends soon and is
    /// not counted.
    fn count_upgrade(&self, source: IpAddr) -> Result<(), CloseReason> {
        if self.origin.get() == Origin::Address(source) { Ok(()) } else { self.count_for(source) }
    }

    async fn shake_hands(
        &self,
        config: Arc<ServerConfig>,
        mut input: Vec<u8>,
    ) -> Result<(), CloseReason> {
        if input.is_empty() {
            input = self.read_more(input).await?;
        }
        if input.first() != Some(&tls::HANDSHAKE) {
            let now = self.worker.now();
            let http = &mut self.worker.front_ends.borrow_mut().http;
            http.note_proxy_header(now, self.origin.get(), &input);
            return Err(self.bad_preamble());
        }
        let counters = &self.worker.counters;
        let shaken = match TlsSession::new(config) {
            Ok(session) => {
                counters.open_tls.rise();
                let session = self.tls.get_or_init(|| Box::new(session));
                let note = async |held| self.note_tls(held, true).await;
                session.shake_hands(&self.socket, input, note).await
            }
            Err(error) => Err(error),
        };
        match shaken {
            Ok(how) => {
                counters.handshakes(how).add(1);
                Ok(())
            }
            Err(error) => {
                counters.handshakes(Handshake::Failed).add(1);
                Err(match error.kind() {
                    ErrorKind::UnexpectedEof => CloseReason::ByClient,
                    ErrorKind::InvalidData => CloseReason::TlsFailed,
                    _ => CloseReason::IoError,
                })
            }
        }
    }

    /// Records what a TLS session holds, and charges a read that produced no plaintext. Returns
    /// once more may be read.
    async fn note_tls(&self, held: usize, is_fruitless: bool) -> io::Result<()> {
        let mut noted = self.hold(BufferKind::Tls, TLS_BYTES + held);
        if is_fruitless {
            noted = noted.and_then(|()| self.charge_minor(self.worker.now(), 1));
        }
        self.worker.wait_for_room().await;
        noted.map_err(|reason| {
            self.decide_ending(reason);
            ErrorKind::QuotaExceeded.into()
        })
    }

    fn bad_preamble(&self) -> CloseReason {
        let outcome = Outcome::Rejected(Rejected::BadPreamble);
        self.count(Transport::Http, self.origin_address(), outcome, RequestSummary::default);
        CloseReason::BadPreamble
    }

    /// Counts one request of a source, if that is known. This is the only place where outcomes
    /// become counts, and lines of the log.
    pub(super) fn count(
        &self,
        transport: Transport,
        source: Option<IpAddr>,
        outcome: Outcome,
        summary: impl FnOnce() -> RequestSummary,
    ) {
        let family = source.map_or_else(|| self.family(), Family::of);
        let counters = self.worker.counters.requests(transport, family);
        counters.received.add(1);
        match outcome {
            Outcome::Answered(action) => counters.answered[action as usize].add(1),
            Outcome::NotApplied(_) => counters.answered[Action::Announce as usize].add(1),
            Outcome::Refused(refusal) => counters.refused[refusal as usize].add(1),
            Outcome::Rejected(rejected) => counters.rejected[rejected as usize].add(1),
        }
        if let Some(unserved) = Unserved::of_outcome(outcome)
            && let Some(log) = self.worker.with_options(|options| options.request_log.clone())
        {
            let source = source.or_else(|| self.origin_address());
            log.request(self.worker.now(), transport, source, unserved, summary);
        }
    }

    /// The family of the connection's origin, for requests without a known source. A Unix socket
    /// counts as IPv4.
    fn family(&self) -> Family {
        self.origin_address().map_or(Family::V4, Family::of)
    }

    /// The address of the connection's origin.
    fn origin_address(&self) -> Option<IpAddr> {
        match self.origin.get() {
            Origin::Address(address) => Some(address),
            Origin::Local | Origin::Nobody => None,
        }
    }

    /// The protocol of the connection at this moment.
    fn transport(&self) -> Transport {
        if self.web.borrow().is_some() { Transport::Ws } else { Transport::Http }
    }

    /// Reads into the spare capacity, or into new capacity if there is none.
    pub(super) async fn read_more(&self, mut buffer: Vec<u8>) -> Result<Vec<u8>, CloseReason> {
        if buffer.capacity() == buffer.len() {
            buffer.reserve_exact(buffer.len().max(HEAD_BYTES_USUAL));
        }
        // The usual buffer is part of what an idle connection holds.
        self.hold(BufferKind::Input, buffer.capacity().saturating_sub(HEAD_BYTES_USUAL))?;
        self.worker.wait_for_room().await;
        let (result, buffer) = match self.tls.get() {
            None => self.socket.read(buffer).await,
            Some(session) => {
                let note = async |held, is_fruitless| self.note_tls(held, is_fruitless).await;
                Box::pin(session.read(&self.socket, buffer, note)).await
            }
        };
        match result {
            Ok(0) => Err(CloseReason::ByClient),
            Ok(count) => {
                self.worker.counters.received_bytes(self.transport()).add(count as u64);
                self.count_read(count).map(|()| buffer)
            }
            Err(error) if error.kind() == ErrorKind::InvalidData => Err(CloseReason::TlsFailed),
            Err(_) => Err(CloseReason::IoError),
        }
    }

    /// Writes everything in pieces. The client has to receive each piece before a deadline.
    pub(super) async fn write(&self, mut bytes: Vec<u8>) -> Result<(), CloseReason> {
        loop {
            let rest = bytes.split_off(bytes.len().min(WRITE_BYTES_MAX));
            let count = bytes.len() as u64;
            let write_by = self.worker.now().plus_s(self.worker.transfer_s());
            self.with_deadlines(|it| it.write = write_by);
            let records = if self.is_secure() { 2 * bytes.len().min(RECORD_BYTES_MAX) } else { 0 };
            self.hold(BufferKind::Output, bytes.capacity() + rest.capacity() + records)?;
            let result = match self.tls.get() {
                None => self.socket.write_all(bytes).await.0,
                Some(session) => Box::pin(session.write_all(&self.socket, bytes)).await,
            };
            self.with_deadlines(|it| it.write = NEVER);
            result.map_err(|_| CloseReason::IoError)?;
            self.worker.counters.sent_bytes(self.transport()).add(count);
            if rest.is_empty() {
                return self.hold(BufferKind::Output, 0);
            }
            bytes = rest;
        }
    }

    /// Changes the deadlines. Does nothing if the connection has ended, which its writer may not
    /// have noticed yet.
    pub(super) fn with_deadlines(&self, change: impl FnOnce(&mut Deadlines)) {
        if let Some(deadlines) = self.worker.slots.borrow_mut().deadlines(self.place) {
            change(deadlines);
        }
    }

    /// Whether it waits for a request of which no byte has arrived.
    pub(super) fn is_idle(&self) -> bool {
        self.is_idle.get()
    }

    /// Sets whether it waits for a request of which no byte has arrived.
    pub(super) fn set_idle(&self, is_idle: bool) {
        self.is_idle.set(is_idle);
    }

    /// Records that it has received a response.
    pub(super) fn set_served(&self) {
        self.is_served.set(true);
    }

    /// Sets why it ends, unless a reason is set.
    pub(super) fn decide_ending(&self, reason: CloseReason) {
        self.ending.set(self.ending.get().or(Some(reason)));
    }

    /// Ends it now, for this reason unless another was set before. Its task ends soon after.
    pub(super) fn end(&self, reason: CloseReason) {
        self.decide_ending(reason);
        self.socket.shutdown(Shutdown::Both);
    }

    /// Ends it because the worker stops. A response under way is not lost.
    pub(super) fn start_close(self: &Rc<Self>) {
        if self.web.borrow().is_some() {
            self.close_with(ws::GOING_AWAY, CloseReason::Stopped);
        } else if self.is_idle() {
            self.end(CloseReason::Stopped);
        }
    }

    /// Ends it if it waits for another request over HTTP. After earlier responses a client expects
    /// that a server may close then, and sends a request again that was lost.
    pub(super) fn leave(&self) {
        if self.web.borrow().is_none() && self.is_idle() && self.is_served.get() {
            self.end(CloseReason::Stopped);
        }
    }

    /// Whether it is over TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.tls.get().is_some()
    }

    /// Shuts down the sending side. The connection ends soon, whatever arrives.
    pub(super) async fn end_writing(&self) {
        let end_by = self.worker.now().plus_s(LINGER_S);
        self.with_deadlines(|it| *it = Deadlines::until(end_by, CloseReason::Done));
        if let Some(session) = self.tls.get() {
            Box::pin(session.close_with(&self.socket)).await;
        }
        self.socket.shutdown(Shutdown::Write);
    }

    /// Reads and ignores what the client sends after [`Self::end_writing`].
    pub(super) async fn linger(&self, mut buffer: Vec<u8>) {
        let mut ignored = 0;
        while ignored < LINGER_BYTES_MAX {
            buffer.clear();
            match self.read_more(buffer).await {
                Ok(bytes) => buffer = bytes,
                Err(_) => return,
            }
            ignored += buffer.len();
        }
    }

    /// Frees what the connection held.
    fn finish(&self, reason: CloseReason) {
        let worker = &self.worker;
        let transport = self.transport();
        self.end_session();
        self.release();
        if self.web.take().is_some() {
            // Wakes its writer, if there is one, which then drops the socket.
            self.socket.shutdown(Shutdown::Both);
        }
        worker.remove(self.place);
        worker.counters.open(transport).fall();
        if self.is_secure() {
            worker.counters.open_tls.fall();
        }
        worker.counters.closed(self.ending.get().unwrap_or(reason)).add(1);
    }
}
