//! What one worker's WebSockets send to another's: bounded, so that a worker that is behind costs
//! its senders nothing, and the process no more memory than agreed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::connection_memory::Account;
use crate::frontend::ws::{PeerMessage, SocketRoute};

/// Most envelopes that wait for one worker.
const ENVELOPES_MAX: usize = 4096;

/// Most bytes of messages that wait for one worker.
const BYTES_MAX: usize = 16 << 20;

/// Of what connections may hold, the part that may wait for one worker at most.
const PART: u64 = 16;

/// Envelopes taken at a time.
pub(super) const ENVELOPES_TAKEN_MAX: usize = 64;

/// Mail with its destination.
pub(super) type Envelope = (SocketRoute, PeerMessage);

/// Where others leave what is meant for one worker's sockets.
#[derive(Debug)]
pub(super) struct Inbox {
    sender: Sender<Envelope>,
    receiver: Mutex<Option<Receiver<Envelope>>>,
    /// Of the envelopes that wait.
    bytes: AtomicUsize,
}

impl Inbox {
    /// An empty one.
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(ENVELOPES_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)), bytes: AtomicUsize::new(0) }
    }

    /// Leaves an envelope. False where there is no room for it, here or on the account, which may
    /// come to `all_max`: it is lost.
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

    /// The other end, for the one worker whose inbox this is; `None` after the first time.
    pub(super) fn open(&self) -> Option<Receiver<Envelope>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Notes that an envelope was taken out.
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
