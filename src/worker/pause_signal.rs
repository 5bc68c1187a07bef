//! A pause for workers. In a take-over the predecessor's workers pause for the successor. If the
//! successor fails they continue, which must need nothing but a flag.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The request to pause, for all workers of a kind, and the number of paused workers.
#[derive(Debug, Default)]
pub struct PauseSignal {
    requested: AtomicBool,
    paused: AtomicUsize,
}

impl PauseSignal {
    /// Requests that workers take nothing more from their sockets. They still respond to what they
    /// took.
    pub fn request(&self) {
        self.requested.store(true, Ordering::Release);
    }

    /// Lets workers continue.
    pub fn end(&self) {
        self.requested.store(false, Ordering::Release);
    }

    /// Whether workers are to pause.
    pub fn is_requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// How many workers are paused.
    pub fn paused(&self) -> usize {
        self.paused.load(Ordering::Acquire)
    }

    /// Counts a worker that takes nothing from here on.
    pub(super) fn enter(&self) {
        self.paused.fetch_add(1, Ordering::AcqRel);
    }

    /// Counts a worker that is about to continue, or to end.
    pub(super) fn leave(&self) {
        self.paused.fetch_sub(1, Ordering::AcqRel);
    }
}
