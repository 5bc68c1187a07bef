//! TLS on a socket, by rustls, which does no I/O itself.

use std::cell::{Cell, RefCell};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::sync::Arc;

use rustls::{HandshakeKind, ServerConfig, ServerConnection};
use tokio::sync::Mutex;

use crate::counters::Handshake;
use crate::sys::stream::Stream;

/// The type of the first record of a TLS connection (RFC 8446, 5.1).
pub(super) const HANDSHAKE: u8 = 22;

/// Room for a usual first flight of a client, in bytes.
const FLIGHT_BYTES: usize = 2048;

/// Most bytes that wait for the rest of a handshake message: rustls accepts no longer messages.
const PENDING_BYTES_MAX: usize = 64 * 1024;

/// Plaintext encrypted at a time: one record (RFC 8446, 5.1).
pub(super) const RECORD_BYTES_MAX: usize = 16 * 1024;

pub(super) struct TlsSession {
    /// Borrowed only between two awaits.
    connection: RefCell<ServerConnection>,
    /// Received, but not yet fed to `connection`, which holds enough plaintext.
    unfed: RefCell<Vec<u8>>,
    /// Bytes fed to `connection` that have produced no plaintext yet: usually part of a record or
    /// of a handshake message. An upper bound.
    pending_bytes: Cell<usize>,
    /// Locked by the task that writes records to the socket, so that they stay in order.
    carrier: Mutex<()>,
}

impl TlsSession {
    /// A session before the handshake.
    pub(super) fn new(config: Arc<ServerConfig>) -> io::Result<Self> {
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let (unfed, pending_bytes, carrier) = Default::default();
        Ok(Self { connection: RefCell::new(connection), unfed, pending_bytes, carrier })
    }

    /// Does the handshake. `input` holds bytes that were received already. `note` is called with
    /// the bytes held before each read, and may fail to prevent it.
    pub(super) async fn shake_hands(
        &self,
        socket: &impl Stream,
        mut input: Vec<u8>,
        note: impl AsyncFn(usize) -> io::Result<()>,
    ) -> io::Result<Handshake> {
        loop {
            let fed = self.feed(&input);
            self.carry(socket).await?; // after a failure: the alert
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

    /// As [`Stream::read`]. Errors of TLS are of the kind [`ErrorKind::InvalidData`]. Before each
    /// read of the socket, `note` is called with the bytes held and whether the read before
    /// produced no plaintext. It may fail to prevent the read.
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
                // Encrypted bytes are read into the free part of the caller's buffer, and plaintext
                // replaces them.
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

    /// Sends a close_notify alert, so that the client can distinguish this end from a truncation by
    /// an attacker.
    pub(super) async fn close_with(&self, socket: &impl Stream) {
        self.connection.borrow_mut().send_close_notify();
        // If the alert does not arrive, the client has gone.
        let _ = self.carry(socket).await;
    }

    /// Bytes that were received and have produced no plaintext.
    fn held_bytes(&self) -> usize {
        self.pending_bytes.get() + self.unfed.borrow().capacity()
    }

    /// Reads decrypted bytes into the spare capacity.
    fn take_plaintext(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let end = buffer.len();
        buffer.resize(buffer.capacity(), 0);
        let result = self.connection.borrow_mut().reader().read(&mut buffer[end..]);
        buffer.truncate(end + *result.as_ref().unwrap_or(&0));
        result
    }

    /// Feeds received bytes to rustls, until there is plaintext to read.
    fn feed(&self, mut received: &[u8]) -> io::Result<()> {
        let mut connection = self.connection.borrow_mut();
        let pending_bytes = self.pending_bytes.get() + received.len();
        self.pending_bytes.set(pending_bytes.min(PENDING_BYTES_MAX));
        while !received.is_empty() {
            if connection.read_tls(&mut received)? == 0 {
                return Ok(()); // the client has sent close_notify
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

    /// Writes the pending records to the socket.
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
