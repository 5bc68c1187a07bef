//! Messages from one worker's WebSockets to another worker's. The queue is bounded, so that a slow
//! worker costs its senders nothing, and the process a bounded amount of memory.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::connection_memory::Account;
use crate::frontend::ws::{PeerMessage, SocketRoute};

/// Most envelopes that wait for one worker.
const ENVELOPES_MAX: usize = 4096;

/// Most bytes of messages that wait for one worker.
const BYTES_MAX: usize = 16 << 20;

/// One part of this many of the connections' memory is the most that may wait for one worker.
const PART: u64 = 16;

/// Envelopes taken at a time.
pub(super) const ENVELOPES_TAKEN_MAX: usize = 64;

/// A message with its destination.
pub(super) type Envelope = (SocketRoute, PeerMessage);

/// Queue of messages for the sockets of one worker.
#[derive(Debug)]
pub(super) struct Inbox {
    sender: Sender<Envelope>,
    receiver: Mutex<Option<Receiver<Envelope>>>,
    /// Bytes of the envelopes that wait.
    bytes: AtomicUsize,
}

impl Inbox {
    /// An empty inbox.
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(ENVELOPES_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)), bytes: AtomicUsize::new(0) }
    }

    /// Adds an envelope. False if there is no room, in the inbox or on the account, which is
    /// bounded by `all_max`. The envelope is then lost.
    pub(super) fn post(&self, account: &Account, all_max: u64, envelope: Envelope) -> bool {
        let bytes = bytes_of(&envelope);
        let bytes_max = usize::try_from(all_max / PART).unwrap_or(usize::MAX).min(BYTES_MAX);
        let fits = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes <= bytes_max
            && account.held() + bytes as u64 <= all_max;
        account.change(0, bytes as u64);
        let posted = fits && self.sender.try_send(envelope).is_ok();
        if !posted {
            self.release_bytes(account, bytes);
        }
        posted
    }

    /// The receiving end, for the worker that owns the inbox; `None` after the first call.
    pub(super) fn open(&self) -> Option<Receiver<Envelope>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Removes a received envelope from the account.
    pub(super) fn took(&self, account: &Account, envelope: &Envelope) {
        self.release_bytes(account, bytes_of(envelope));
    }

    fn release_bytes(&self, account: &Account, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        account.change(bytes as u64, 0);
    }
}

/// Bytes that an envelope takes.
fn bytes_of(envelope: &Envelope) -> usize {
    size_of::<Envelope>() + envelope.1.bytes()
}
