//! What one worker's WebSockets send to another's: bounded, so that a worker that is behind costs
//! its senders nothing, and the process no more memory than agreed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc::{self, Receiver, Sender};

use crate::frontend::ws::{Mail, Route};

/// Most letters that wait for one worker.
const LETTERS_MAX: usize = 4096;

/// Most bytes of messages that wait for one worker.
const BYTES_MAX: usize = 16 << 20;

/// Letters taken at a time.
pub(super) const LETTERS_TAKEN_MAX: usize = 64;

/// Mail with its destination.
pub(super) type Letter = (Route, Mail);

/// Where others leave what is meant for one worker's sockets.
#[derive(Debug)]
pub(super) struct Mailbox {
    sender: Sender<Letter>,
    receiver: Mutex<Option<Receiver<Letter>>>,
    /// Of the messages that wait.
    bytes: AtomicUsize,
}

impl Mailbox {
    /// An empty one.
    pub(super) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(LETTERS_MAX);
        Self { sender, receiver: Mutex::new(Some(receiver)), bytes: AtomicUsize::new(0) }
    }

    /// Leaves a letter. False where there is no room for it: it is lost.
    pub(super) fn post(&self, letter: Letter) -> bool {
        let bytes = letter.1.bytes();
        if self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes > BYTES_MAX {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        let posted = self.sender.try_send(letter).is_ok();
        if !posted {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        posted
    }

    /// The other end, for the one worker whose mailbox this is; `None` after the first time.
    pub(super) fn open(&self) -> Option<Receiver<Letter>> {
        self.receiver.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Notes that a letter was taken out.
    pub(super) fn took(&self, letter: &Letter) {
        self.bytes.fetch_sub(letter.1.bytes(), Ordering::Relaxed);
    }
}
