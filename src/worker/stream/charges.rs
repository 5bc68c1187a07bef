//! What a connection holds, and the work that it causes. Both are accounted for here, by the loop
//! that reads for the connection.
//!
//! Memory is on one account (`connection_memory`): if the account is full, the sources that hold
//! most lose connections. Work that no announce or scrape pays for is charged to the source through
//! the limiter. Over the limit, the connection is closed.

use std::net::IpAddr;
use std::rc::Rc;

use super::admission::Admission;
use super::connection::Connection;
use super::connection_memory::{self, BufferKind, ClosableConnection, IDLE_BYTES, MemoryAllowance};
use super::thread::TaskContext;
use crate::counters::CloseReason;
use crate::frontend::origin::Origin;
use crate::frontend::{ConnectionWork, Tracker};
use crate::sys::stream::Network;
use crate::time::Now;

/// Minor work that is free within [`MINOR_WINDOW_S`], in eighths of an announce. Clients cause far
/// less with pings, pongs, late answers and requests in pieces, so they can stay connected while
/// others of the same address have used up its limit.
const MINOR_FREE_EIGHTHS: u16 = 32;

/// Seconds after which minor work is forgotten.
const MINOR_WINDOW_S: u64 = 10;

/// Eighths of an announce that are charged together.
const MINOR_CHARGE_EIGHTHS: u16 = 8;

/// A read of fewer bytes is minor work: if a client sends byte by byte, each byte costs a read and
/// a new parse of all bytes before it.
const SHORT_READ_BYTES: usize = 128;

/// Idle connections that are closed together when the limit on connections is reached. The search
/// among all connections costs milliseconds, so it makes room for more than one newcomer.
const PLACES_MADE: u64 = 64;

/// Minor work that has not been charged.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct MinorWork {
    /// When the first of this work was done, in seconds.
    since_s: u64,
    eighths: u16,
}

impl MinorWork {
    /// Adds work. True if a charge is due.
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
    /// Records the bytes that one kind of buffer takes. If they are more than before, connections
    /// may be closed.
    ///
    /// # Errors
    /// [`CloseReason::Memory`] if this connection is one of them.
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

    /// Removes the connection from all accounts and counts. Its memory is freed when its task ends.
    pub(super) fn release(&self) {
        if !self.is_released.replace(true) {
            self.worker.held.change(&self.worker.shared.account, self.held.total(), 0);
            self.admission.borrow_mut().release();
        }
    }

    /// Charges a read, if it was short.
    ///
    /// # Errors
    /// [`CloseReason::Limited`] if the source is over its limit.
    pub(super) fn count_read(&self, bytes: usize) -> Result<(), CloseReason> {
        if bytes >= SHORT_READ_BYTES { Ok(()) } else { self.charge_minor(self.worker.now(), 1) }
    }

    /// Charges minor work beyond what is free. Must not be called while the front ends are
    /// borrowed.
    ///
    /// # Errors
    /// [`CloseReason::Limited`] if the source is over its limit.
    pub(super) fn charge_minor(&self, now: Now, eighths: u16) -> Result<(), CloseReason> {
        self.charge_minor_to(&mut self.worker.front_ends.borrow_mut().tracker, now, eighths)
    }

    /// As [`Self::charge_minor`], for a caller that has borrowed the front ends.
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

    /// Charges work to its source. Must not be called while the front ends are borrowed.
    ///
    /// # Errors
    /// [`CloseReason::Limited`] if the source is over its limit.
    pub(super) fn charge(&self, now: Now, work: ConnectionWork) -> Result<(), CloseReason> {
        let tracker = &mut self.worker.front_ends.borrow_mut().tracker;
        charge(tracker, now, self.payer(), work)
    }

    /// The source that the connection's work is charged to. `None` on a proxy's connection: each
    /// request names another source.
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

/// Charges work to a source; without a source, nothing.
///
/// # Errors
/// [`CloseReason::Limited`] if the source is over its limit.
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
    /// Closes connections of this worker if all workers together hold more than they may, and this
    /// worker more than its part.
    pub(super) fn keep_to_memory(&self) {
        let excess = self.bound().excess(self.shared.account.held(), self.held.held());
        if excess > 0 {
            self.evict(excess, 0);
            self.shared.room.note_made();
        }
    }

    /// Whether this worker must receive nothing until other workers have freed memory.
    pub(super) fn is_waiting_for_room(&self) -> bool {
        let is_over = self.is_stopping() || self.is_leaving();
        !is_over && self.bound().is_waiting(self.shared.account.held(), self.held.held())
    }

    /// Waits until this worker may receive again.
    pub(super) async fn wait_for_room(&self) {
        if self.is_waiting_for_room() {
            let waiting = self.shared.room.wait(self.index, || self.is_waiting_for_room());
            Box::pin(waiting).await; // rare, so connections do not reserve room for this future
        }
    }

    /// Whether the account has room for `bytes` more.
    pub(super) fn has_memory(&self, bytes: usize) -> bool {
        self.shared.account.held() + bytes as u64 <= self.bound().all_max
    }

    /// Admits a connection. If there is no room, a source that holds far more loses connections for
    /// it.
    ///
    /// # Errors
    /// The limit that is reached.
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

    /// Makes room for a new connection by closing connections of sources that hold far more than
    /// its own source. After a search that found too little, sources that hold as much do not
    /// search again in this tick.
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

    /// Closes connections of sources that hold more than `above` bytes, until they held `needed`
    /// bytes together or none is left. Returns how many bytes they held.
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

    /// The memory that this worker's connections may hold.
    fn bound(&self) -> MemoryAllowance {
        MemoryAllowance::new(self.with_options(|it| it.memory_max_bytes), self.shared.inboxes.len())
    }

    /// Once per tick: closes connections while the worker is over its bound, even if none of them
    /// receives anything. New connections may search again afterwards.
    pub(super) fn check_memory(&self) {
        self.keep_to_memory();
        self.unevicted_above.set(None);
    }
}

impl<N: Network> Connection<N> {
    fn holder(self: &Rc<Self>, at: usize) -> ClosableConnection {
        let bytes = self.held.total();
        // A connection that is not counted for a source is its own source.
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
