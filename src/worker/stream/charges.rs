//! What a connection holds, and the work that it causes: accounted for in one place, from the loop
//! that reads for it.
//!
//! Memory is on an account (`held`): where that is full, the sources that hold most lose
//! connections. Work that no announce or scrape pays for is charged to the source through the
//! limiter; over the limit, the connection is closed.

use std::net::IpAddr;
use std::rc::Rc;

use super::admission::Admission;
use super::connection::Connection;
use super::connection_memory::{self, BufferKind, ClosableConnection, IDLE_BYTES, MemoryAllowance};
use super::thread::TaskContext;
use crate::frontend::origin::Origin;
use crate::frontend::{ConnectionWork, Tracker};
use crate::metrics::CloseReason;
use crate::sys::stream::Network;
use crate::time::Now;

/// Eighths of an announce that minor work may cost within [`MINOR_WINDOW_S`] before it is charged:
/// far more than clients cause with pings, pongs, late answers and requests in pieces, so that they
/// may stay where others of the same address have used up its limit.
const MINOR_FREE_EIGHTHS: u16 = 32;

/// Seconds after which minor work is forgotten.
const MINOR_WINDOW_S: u64 = 10;

/// Eighths that are charged at once.
const MINOR_CHARGE_EIGHTHS: u16 = 8;

/// A read that brings fewer bytes is minor work: of what is sent byte by byte, each costs a read
/// and a look at all that came before.
const SHORT_READ_BYTES: usize = 128;

/// Idle connections that are closed together where there are as many as may be: a search among all
/// of them costs milliseconds, and is not for one newcomer alone.
const PLACES_MADE: u64 = 64;

/// Minor work that has not been charged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MinorWork {
    /// When the first of it was done, in seconds.
    since_s: u64,
    eighths: u16,
}

impl MinorWork {
    /// Adds to it; says whether something has to be charged.
    fn add(&mut self, now: Now, eighths: u16) -> bool {
        if now.seconds() >= self.since_s + MINOR_WINDOW_S {
            *self = Self { since_s: now.seconds(), eighths: 0 };
        }
        self.eighths = self.eighths.saturating_add(eighths);
        let is_due = self.eighths >= MINOR_FREE_EIGHTHS + MINOR_CHARGE_EIGHTHS;
        if is_due {
            self.eighths -= MINOR_CHARGE_EIGHTHS;
        }
        is_due
    }
}

impl<N: Network> Connection<N> {
    /// Notes how much it holds of a part. If that is more than before, connections may be closed.
    ///
    /// # Errors
    /// [`CloseReason::Memory`] if this is one of them.
    pub(super) fn hold(&self, part: BufferKind, bytes: usize) -> Result<(), CloseReason> {
        if self.held.is(part, bytes) {
            return Ok(());
        }
        if self.is_released.get() {
            return Err(CloseReason::Memory);
        }
        let (before, after) = self.held.set(part, bytes);
        self.admission.borrow_mut().hold(after);
        self.worker.held.change(&self.worker.shared.account, before, after);
        if after > before {
            self.worker.keep_to_memory();
        }
        if self.is_released.get() { Err(CloseReason::Memory) } else { Ok(()) }
    }

    /// Takes it off all accounts and counts. What it holds is freed as its task ends.
    pub(super) fn release(&self) {
        if !self.is_released.replace(true) {
            self.worker.held.change(&self.worker.shared.account, self.held.total(), 0);
            self.admission.borrow_mut().release();
        }
    }

    /// Charges a read, if it was a short one.
    ///
    /// # Errors
    /// [`CloseReason::Limited`] if the source is over its limit.
    pub(super) fn count_read(&self, bytes: usize) -> Result<(), CloseReason> {
        if bytes >= SHORT_READ_BYTES { Ok(()) } else { self.charge_minor(self.worker.now(), 1) }
    }

    /// Charges minor work, beyond what is free. Not to be called while the front ends are borrowed.
    ///
    /// # Errors
    /// [`CloseReason::Limited`] if the source is over its limit.
    pub(super) fn charge_minor(&self, now: Now, eighths: u16) -> Result<(), CloseReason> {
        self.charge_minor_to(&mut self.worker.front_ends.borrow_mut().tracker, now, eighths)
    }

    /// The same where the front ends are borrowed.
    ///
    /// # Errors
    /// [`CloseReason::Limited`] if the source is over its limit.
    pub(super) fn charge_minor_to(
        &self,
        tracker: &mut Tracker,
        now: Now,
        eighths: u16,
    ) -> Result<(), CloseReason> {
        let mut minor_work = self.minor_work.get();
        let is_due = minor_work.add(now, eighths);
        self.minor_work.set(minor_work);
        if is_due { charge(tracker, now, self.payer(), ConnectionWork::Request) } else { Ok(()) }
    }

    /// Charges work to its source. Not to be called while the front ends are borrowed.
    ///
    /// # Errors
    /// [`CloseReason::Limited`] if the source is over its limit.
    pub(super) fn charge(&self, now: Now, work: ConnectionWork) -> Result<(), CloseReason> {
        let tracker = &mut self.worker.front_ends.borrow_mut().tracker;
        charge(tracker, now, self.payer(), work)
    }

    /// Whom its work is charged to: on a proxy's connection, each request names another source.
    pub(super) fn payer(&self) -> Option<IpAddr> {
        if let Some(web) = self.web.borrow().as_deref() {
            return Some(web.source);
        }
        match self.origin.get() {
            Origin::Address(address)
                if !self.worker.with_options(|options| options.is_trusted_proxy(address)) =>
            {
                Some(address)
            }
            Origin::Address(_) | Origin::Local | Origin::Nobody => None,
        }
    }
}

/// Charges work to a source, if one is known.
///
/// # Errors
/// [`CloseReason::Limited`] if it is over its limit.
pub(super) fn charge(
    tracker: &mut Tracker,
    now: Now,
    source: Option<IpAddr>,
    work: ConnectionWork,
) -> Result<(), CloseReason> {
    let is_admitted = source.is_none_or(|it| tracker.admit_connection_work(now, it, work));
    if is_admitted { Ok(()) } else { Err(CloseReason::Limited) }
}

impl<N: Network> TaskContext<N> {
    /// Closes connections of this worker if all together hold more than they may, and its own more
    /// than its part.
    pub(super) fn keep_to_memory(&self) {
        let excess = self.bound().excess(self.shared.account.held(), self.held.held());
        if excess > 0 {
            self.evict(excess, 0);
            self.shared.room.note_made();
        }
    }

    /// Whether nothing may be taken in until other workers have given back.
    pub(super) fn is_waiting_for_room(&self) -> bool {
        let is_over = self.is_stopping() || self.is_leaving();
        !is_over && self.bound().is_waiting(self.shared.account.held(), self.held.held())
    }

    /// Waits until something may be taken in.
    pub(super) async fn wait_for_room(&self) {
        if self.is_waiting_for_room() {
            let waiting = self.shared.room.wait(self.index, || self.is_waiting_for_room());
            Box::pin(waiting).await; // seldom: a connection need not hold the place for it
        }
    }

    /// Whether there is room for so many bytes more.
    pub(super) fn has_memory(&self, bytes: usize) -> bool {
        self.shared.account.held() + bytes as u64 <= self.bound().all_max
    }

    /// Admits a connection, if need be at the cost of a source that holds far more.
    ///
    /// # Errors
    /// Which limit is reached.
    pub(super) fn admit(&self, limit: Option<(IpAddr, u32)>) -> Result<Admission, CloseReason> {
        let excess = || {
            let (all, own) = (self.shared.account.held(), self.held.held());
            self.bound().for_new().excess(all + IDLE_BYTES, own + IDLE_BYTES)
        };
        if excess() > 0 && !self.evict_for(limit, excess()) {
            return Err(CloseReason::Memory);
        }
        match self.shared.connections.admit(limit) {
            Err(CloseReason::GlobalCap) if self.evict_for(limit, PLACES_MADE * IDLE_BYTES) => {
                self.shared.connections.admit(limit)
            }
            admitted => admitted,
        }
    }

    /// Makes room for a new connection, at the cost of sources that hold far more than its own. If
    /// a search has not found enough, sources as large as its own do not search again in this tick.
    fn evict_for(&self, limit: Option<(IpAddr, u32)>, needed: u64) -> bool {
        let of_source = |(address, _)| self.shared.connections.source_bytes(address);
        let above = connection_memory::evicted_above(limit.map_or(0, of_source));
        if self.unevicted_above.get().is_some_and(|it| above >= it) {
            return false;
        }
        let freed = self.evict(needed, above);
        if freed < needed {
            self.unevicted_above.set(Some(above));
        }
        freed > 0
    }

    /// Closes connections that hold `needed` bytes together, of sources with more than `above`, as
    /// far as there are any. Gives how many bytes they held.
    fn evict(&self, needed: u64, above: u64) -> u64 {
        let mut open = self.connections();
        open.retain(|it| !it.is_released.get());
        let holders = open.iter().enumerate().map(|(at, it)| it.holder(at)).collect();
        let chosen = connection_memory::choose(holders, needed, above);
        let mut freed = 0;
        for at in chosen {
            freed += open[at].held.total();
            open[at].release();
            open[at].end(CloseReason::Memory);
        }
        freed
    }

    /// What this worker may do about the account.
    fn bound(&self) -> MemoryAllowance {
        MemoryAllowance::new(self.with_options(|it| it.memory_max_bytes), self.shared.inboxes.len())
    }

    /// Once a tick: closes what is over the bound however silent it is, after which new connections
    /// may search again.
    pub(super) fn check_memory(&self) {
        self.keep_to_memory();
        self.unevicted_above.set(None);
    }
}

impl<N: Network> Connection<N> {
    fn holder(self: &Rc<Self>, at: usize) -> ClosableConnection {
        let bytes = self.held.total();
        // One that is not counted for a source stands for itself.
        let alone = || (Rc::as_ptr(self).addr(), bytes);
        let (source, source_bytes) = self.admission.borrow().source().unwrap_or_else(alone);
        ClosableConnection { source, bytes, opened: self.opened, source_bytes, at }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minor_work_is_free_now_and_then_and_charged_in_a_flood() {
        let mut minor_work = MinorWork::default();
        let mut due =
            |at_s, count| (0..count).filter(|_| minor_work.add(Now::from_s(at_s), 1)).count();
        assert_eq!([due(1_000, 39), due(1_000, 1), due(1_009, 80)], [0, 1, 10]);
        assert_eq!([due(1_010, 39), due(1_020, 39)], [0, 0]);
    }
}
