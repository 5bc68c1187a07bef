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
use crate::frontend::ConnectionWork;
use crate::frontend::http::Outcome;
use crate::frontend::origin::{Origin, proxy};
use crate::metrics::{CloseReason, Handshake, Transport};
use crate::sys::stream::{Network, Socket, Stream as _};
use crate::types::{Family, Rejected};

/// What is read into at first, and kept while nothing is received.
pub(super) const HEAD_BYTES_USUAL: usize = 1024;

/// Most bytes written at a time: what a client has to take before the write's deadline.
const WRITE_BYTES_MAX: usize = 64 * 1024;

/// Most bytes that are read, and ignored, after a connection was given up.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// How long a client may go on sending after its connection was given up: closing at once would
/// reset it, and the client might never read why.
const LINGER_S: u64 = 2;

/// A connection, shared by its own task, the writer of its WebSocket, and the worker.
pub(super) struct Connection<N: Network> {
    pub(super) worker: Rc<TaskContext<N>>,
    pub(super) place: SlotAddress,
    pub(super) origin: Cell<Origin>,
    /// What it is once it has been upgraded.
    pub(super) web: RefCell<Option<Box<Web>>>,
    socket: Socket<N>,
    tls: OnceCell<Box<TlsSession>>,
    /// Why it ends, where that was decided elsewhere than in its task.
    ending: Cell<Option<CloseReason>>,
    /// Whether it waits for a request of which nothing has come.
    is_idle: Cell<bool>,
    /// Whether it has been answered once.
    is_served: Cell<bool>,
    pub(super) admission: RefCell<Admission>,
    /// How many connections its worker had before.
    pub(super) opened: u64,
    pub(super) held: ConnectionMemory,
    /// Whether it has been taken off all accounts.
    pub(super) is_released: Cell<bool>,
    pub(super) minor_work: Cell<MinorWork>,
}

/// How a connection begins.
pub(super) struct Start {
    /// Whether a PROXY header may come first.
    pub(super) reads_proxy_header: bool,
    /// What the TLS handshake that comes then goes by.
    pub(super) tls: Option<Arc<ServerConfig>>,
}

/// A connection's task.
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

/// What comes before HTTP; gives what was received of that already.
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
                    // For all others it was charged before they were admitted.
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

    /// Reads what a trusted proxy says of the connection's source, if it says something.
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

    /// Counts it for the client that a trusted proxy speaks for.
    fn count_for(&self, source: IpAddr) -> Result<(), CloseReason> {
        let max = self
            .worker
            .with_options(|it| it.counts(source).then_some(it.connections_per_source_max));
        max.map_or(Ok(()), |max| self.admission.borrow_mut().count_for(source, max))
    }

    /// Counts a WebSocket, which stays, for its client; a request of HTTP is soon over.
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

    /// Notes what a TLS session holds, and whether a read brought nothing that could be taken out.
    /// Returns once more may be read.
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
        self.count(Transport::Http, self.family(), outcome);
        CloseReason::BadPreamble
    }

    /// Counts one request: the single place where outcomes become counts.
    pub(super) fn count(&self, transport: Transport, family: Family, outcome: Outcome) {
        let counters = self.worker.counters.requests(transport, family);
        counters.received.add(1);
        match outcome {
            Outcome::Answered(action) => counters.answered[action as usize].add(1),
            Outcome::Refused(refusal) => counters.refused[refusal as usize].add(1),
            Outcome::Rejected(rejected) => counters.rejected[rejected as usize].add(1),
        }
    }

    /// The family of a source that has not become known otherwise. That of a Unix socket counts as
    /// IPv4.
    pub(super) fn family(&self) -> Family {
        match self.origin.get() {
            Origin::Address(address) => Family::of(address),
            Origin::Local | Origin::Nobody => Family::V4,
        }
    }

    /// What is spoken.
    fn transport(&self) -> Transport {
        if self.web.borrow().is_some() { Transport::Ws } else { Transport::Http }
    }

    /// Reads what comes, into the spare capacity or, where there is none, into some more.
    pub(super) async fn read_more(&self, mut buffer: Vec<u8>) -> Result<Vec<u8>, CloseReason> {
        if buffer.capacity() == buffer.len() {
            buffer.reserve_exact(buffer.len().max(HEAD_BYTES_USUAL));
        }
        // The usual buffer is a part of what an idle connection holds.
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

    /// Writes everything, piece by piece; each has to be taken in time.
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

    /// Changes the deadlines. Where the connection has ended, and only its writer does not know
    /// yet, there are none any more.
    pub(super) fn with_deadlines(&self, change: impl FnOnce(&mut Deadlines)) {
        if let Some(deadlines) = self.worker.slots.borrow_mut().deadlines(self.place) {
            change(deadlines);
        }
    }

    /// Whether it waits for a request of which nothing has come.
    pub(super) fn is_idle(&self) -> bool {
        self.is_idle.get()
    }

    /// Says whether it waits for a request of which nothing has come.
    pub(super) fn set_idle(&self, is_idle: bool) {
        self.is_idle.set(is_idle);
    }

    /// Says that it has been answered once.
    pub(super) fn set_served(&self) {
        self.is_served.set(true);
    }

    /// Decides why it ends, unless that is decided.
    pub(super) fn decide_ending(&self, reason: CloseReason) {
        self.ending.set(self.ending.get().or(Some(reason)));
    }

    /// Ends it now, for this reason unless there was one before. Its task comes to its end soon
    /// after.
    pub(super) fn end(&self, reason: CloseReason) {
        self.decide_ending(reason);
        self.socket.shutdown(Shutdown::Both);
    }

    /// Ends it without losing a reply that is under way: the worker stops.
    pub(super) fn start_close(self: &Rc<Self>) {
        if self.web.borrow().is_some() {
            self.close_with(ws::GOING_AWAY, CloseReason::Stopped);
        } else if self.is_idle() {
            self.end(CloseReason::Stopped);
        }
    }

    /// Ends it if it waits for another request over HTTP: whoever has sent one meanwhile knows
    /// from the others that a server may close then, and asks again.
    pub(super) fn leave(&self) {
        if self.web.borrow().is_none() && self.is_idle() && self.is_served.get() {
            self.end(CloseReason::Stopped);
        }
    }

    /// Whether it is over TLS.
    pub(super) fn is_secure(&self) -> bool {
        self.tls.get().is_some()
    }

    /// Says that nothing more will be sent. From here on, the end is near whatever comes.
    pub(super) async fn end_writing(&self) {
        let end_by = self.worker.now().plus_s(LINGER_S);
        self.with_deadlines(|it| *it = Deadlines::until(end_by, CloseReason::Done));
        if let Some(session) = self.tls.get() {
            Box::pin(session.close_with(&self.socket)).await;
        }
        self.socket.shutdown(Shutdown::Write);
    }

    /// Reads, and ignores, what the client still sends after [`Self::end_writing`].
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

    /// Gives back what it held.
    fn finish(&self, reason: CloseReason) {
        let worker = &self.worker;
        let transport = self.transport();
        self.end_session();
        self.release();
        if self.web.take().is_some() {
            // Its writer, if it is at work, is told, and lets go of the socket.
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
