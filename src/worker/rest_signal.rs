//! Workers that leave their sockets alone for a while: a predecessor that makes room for its
//! successor may have to go on after all, and must not need anything for that but a flag.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The word to rest, to all workers of a kind, and how many do.
#[derive(Debug, Default)]
pub struct RestSignal {
    is_asked: AtomicBool,
    resting: AtomicUsize,
}

impl RestSignal {
    /// Tells workers to take nothing more from their sockets. What they took they answer.
    pub fn request(&self) {
        self.is_asked.store(true, Ordering::Release);
    }

    /// Tells them to go on.
    pub fn end(&self) {
        self.is_asked.store(false, Ordering::Release);
    }

    /// Whether they are to rest.
    pub fn is_requested(&self) -> bool {
        self.is_asked.load(Ordering::Acquire)
    }

    /// How many workers take nothing.
    pub fn resting(&self) -> usize {
        self.resting.load(Ordering::Acquire)
    }

    /// Notes that a worker takes nothing from here on.
    pub(super) fn enter(&self) {
        self.resting.fetch_add(1, Ordering::AcqRel);
    }

    /// Notes that a worker is about to go on, or to end.
    pub(super) fn leave(&self) {
        self.resting.fetch_sub(1, Ordering::AcqRel);
    }
}
