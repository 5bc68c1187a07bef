//! TLS between a socket and what reads and writes on it, by rustls, which does no I/O itself.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::sync::Arc;

use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use tokio::sync::Mutex;

use crate::metrics::Handshake;
use crate::sys::stream::Stream;

/// The type of the first record of a TLS connection (RFC 8446, 5.1).
pub(super) const HANDSHAKE: u8 = 22;

/// What a handshake is read into: a usual first flight of a client.
const FLIGHT_BYTES: usize = 2048;

/// Most bytes that wait for the rest of a message of the handshake: rustls takes no longer ones.
const PENDING_BYTES_MAX: usize = 64 * 1024;

/// Plaintext encrypted at a time: one record (RFC 8446, 5.1).
pub(super) const RECORD_BYTES_MAX: usize = 16 * 1024;

/// One connection's TLS.
pub(super) struct TlsSession {
    /// Borrowed between two awaits only.
    connection: RefCell<ServerConnection>,
    /// Received, but not fed to `connection`, which holds enough plaintext.
    unfed: RefCell<Vec<u8>>,
    /// Fed to `connection` without bringing anything out: a part of a record or of a handshake's
    /// message, most likely. An upper bound.
    pending_bytes: Cell<usize>,
    /// Held by whoever carries records to the socket, so that they leave in order.
    carrier: Mutex<()>,
}

impl TlsSession {
    /// Before the handshake.
    pub(super) fn new(config: Arc<ServerConfig>) -> io::Result<Self> {
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let (unfed, pending_bytes, carrier) = Default::default();
        Ok(Self { connection: RefCell::new(connection), unfed, pending_bytes, carrier })
    }

    /// Does the handshake; `input` was received already. `note` learns what is held before more is
    /// waited for, and may forbid it.
    pub(super) async fn shake_hands(
        &self,
        socket: &impl Stream,
        mut input: Vec<u8>,
        note: impl AsyncFn(usize) -> io::Result<()>,
    ) -> io::Result<Handshake> {
        loop {
            let fed = self.feed(&input);
            self.carry(socket).await?; // an alert, where it failed
            fed?;
            note(self.held_bytes()).await?;
            if !self.connection.borrow().is_handshaking() {
                break;
            }
            input.clear();
            input.reserve(FLIGHT_BYTES);
            let (result, buffer) = socket.read(input).await;
            input = buffer;
            if result? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
        self.pending_bytes.set(0);
        let kind = self.connection.borrow().handshake_kind();
        Ok(if kind == Some(HandshakeKind::Resumed) { Handshake::Resumed } else { Handshake::Full })
    }

    /// As [`Stream::read`]. Errors of TLS are of the kind [`ErrorKind::InvalidData`]. `note` learns
    /// what is held before more is waited for, and whether the read before brought nothing; it may
    /// forbid that.
    pub(super) async fn read(
        &self,
        socket: &impl Stream,
        mut buffer: Vec<u8>,
        note: impl AsyncFn(usize, bool) -> io::Result<()>,
    ) -> (io::Result<usize>, Vec<u8>) {
        let end = buffer.len();
        let mut is_fruitless = false;
        loop {
            match self.take_plaintext(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => {
                    self.pending_bytes.set(0);
                    return (result, buffer);
                }
            }
            if let Err(error) = note(self.held_bytes(), is_fruitless).await {
                return (Err(error), buffer);
            }
            is_fruitless = true;
            let unfed = self.unfed.take();
            let fed = if unfed.is_empty() {
                // What comes in encrypted gives its place to what it holds.
                let (result, received) = socket.read(buffer).await;
                buffer = received;
                match result {
                    Ok(0) => return (Ok(0), buffer),
                    Ok(_) => self.feed(&buffer[end..]),
                    Err(error) => Err(error),
                }
            } else {
                self.feed(&unfed)
            };
            buffer.truncate(end);
            if let Err(error) = fed.and(self.carry(socket).await) {
                return (Err(error), buffer);
            }
        }
    }

    /// As [`Stream::write_all`].
    pub(super) async fn write_all(&self, socket: &impl Stream, bytes: Vec<u8>) -> io::Result<()> {
        for record in bytes.chunks(RECORD_BYTES_MAX) {
            let mut rest = record;
            while !rest.is_empty() {
                let count = self.connection.borrow_mut().writer().write(rest)?;
                rest = rest.get(count..).unwrap_or_default();
                self.carry(socket).await?;
            }
        }
        Ok(())
    }

    /// Tells the client that nothing follows, so that it can tell this end from an attacker's.
    pub(super) async fn close_with(&self, socket: &impl Stream) {
        self.connection.borrow_mut().send_close_notify();
        // Where it does not arrive, the client has gone.
        let _ = self.carry(socket).await;
    }

    /// Bytes that have been received and cannot be taken out.
    fn held_bytes(&self) -> usize {
        self.pending_bytes.get() + self.unfed.borrow().capacity()
    }

    /// Takes decrypted bytes into the spare capacity.
    fn take_plaintext(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let end = buffer.len();
        buffer.resize(buffer.capacity(), 0);
        let result = self.connection.borrow_mut().reader().read(&mut buffer[end..]);
        buffer.truncate(end + *result.as_ref().unwrap_or(&0));
        result
    }

    /// Takes in what came from the socket, as far as there is nothing to be taken out.
    fn feed(&self, mut received: &[u8]) -> io::Result<()> {
        let mut connection = self.connection.borrow_mut();
        let pending_bytes = self.pending_bytes.get() + received.len();
        self.pending_bytes.set(pending_bytes.min(PENDING_BYTES_MAX));
        while !received.is_empty() {
            if connection.read_tls(&mut received)? == 0 {
                return Ok(()); // the client has said that nothing follows
            }
            let processed = connection.process_new_packets();
            let state = processed.map_err(|it| io::Error::new(ErrorKind::InvalidData, it))?;
            if state.plaintext_bytes_to_read() > 0 {
                break;
            }
        }
        if !received.is_empty() {
            self.unfed.replace(received.to_vec());
        }
        Ok(())
    }

    /// Carries records to the socket until there are none.
    async fn carry(&self, socket: &impl Stream) -> io::Result<()> {
        if !self.connection.borrow().wants_write() {
            return Ok(());
        }
        let _in_order = self.carrier.lock().await;
        loop {
            let mut records = Vec::new();
            {
                let mut connection = self.connection.borrow_mut();
                while connection.wants_write() {
                    connection.write_tls(&mut records)?;
                }
            }
            if records.is_empty() {
                return Ok(());
            }
            socket.write_all(records).await.0?;
        }
    }
}
