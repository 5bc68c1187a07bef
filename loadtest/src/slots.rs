//! The table of unanswered requests. The transaction id *is* the place in this table, so a response
//! is matched by one look-up, and no two unanswered requests can share an id.
//!
//! ```text
//! transaction id   31 generation (12) 20 | 19 place (20) 0
//! ```
//!
//! The generation counts the uses of a place: it distinguishes a late, duplicate or stray response
//! from a response to the request that has the place now.

use std::collections::VecDeque;

use strum::{EnumCount, IntoStaticStr, VariantArray};

use crate::numbers::whole;

/// The kind of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum Kind {
    /// A request for a connection id.
    Connect,
    /// An announce.
    Announce,
    /// A scrape.
    Scrape,
}

impl Kind {
    /// All kinds, in index order.
    pub(crate) const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The name in reports.
    pub(crate) fn label(self) -> &'static str {
        self.into()
    }
}

/// A request that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// When it was due, in nanoseconds of the generator's clock.
    pub(crate) intended_ns: u64,
    /// When it was sent.
    pub(crate) sent_ns: u64,
    /// The announcing peer, or the first torrent of a scrape.
    pub(crate) item: u32,
    /// Index of the socket in its thread.
    pub(crate) client: u16,
    /// Kind of the request.
    pub(crate) kind: Kind,
    /// Number of peers wanted, or of info-hashes.
    pub(crate) count: u16,
    /// The port announced.
    pub(crate) port: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Never,
    Waiting,
    Answered,
    TimedOut,
}

#[derive(Clone, Copy)]
struct Slot {
    pending: Pending,
    generation: u16,
    state: State,
}

/// The match of a transaction id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// The response to this request.
    Answered(Pending),
    /// A response to a request that was counted as lost.
    Late,
    /// A second response.
    Duplicate,
    /// A response to a request that was never sent.
    Unknown,
}

/// The table of unanswered requests.
pub(crate) struct SlotTable {
    slots: Vec<Slot>,
    /// Free places. The last is reused first, as it is in the cache. Places of lost requests go to
    /// the front, so that their ids are not reused soon.
    free: VecDeque<u32>,
    /// Where the search for lost requests continues.
    sweep: usize,
}

const PLACE_BITS: u32 = 20;
const GENERATION_MASK: u16 = 0x0fff;

impl SlotTable {
    /// Most places of a table.
    pub(crate) const CAPACITY_MAX: usize = 1 << PLACE_BITS;

    /// Room for this many unanswered requests, at most [`Self::CAPACITY_MAX`].
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = u32::try_from(capacity.clamp(1, Self::CAPACITY_MAX)).unwrap_or(1);
        let pending = Pending {
            intended_ns: 0,
            sent_ns: 0,
            item: 0,
            client: 0,
            kind: Kind::Connect,
            count: 0,
            port: 0,
        };
        let slot = Slot { pending, generation: 0, state: State::Never };
        Self { slots: vec![slot; capacity as usize], free: (0..capacity).rev().collect(), sweep: 0 }
    }

    /// Room for a rate at which all requests are lost: none is ever held back for lack of places.
    pub(crate) fn capacity_for(rate: f64, timeout_s: f64) -> usize {
        usize::try_from(whole(rate * (timeout_s + 0.2))).unwrap_or(usize::MAX).max(4096)
    }

    /// Number of unanswered requests.
    pub(crate) fn waiting(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Takes a place and returns its transaction id; `None` if the table is full.
    #[inline]
    pub(crate) fn take(&mut self, pending: Pending) -> Option<u32> {
        let place = self.free.pop_back()?;
        let slot = &mut self.slots[place as usize];
        slot.pending = pending;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        slot.state = State::Waiting;
        Some(u32::from(slot.generation) << PLACE_BITS | place)
    }

    /// Matches a response to its request, whose place becomes free.
    #[inline]
    pub(crate) fn settle(&mut self, transaction_id: u32, client: u16) -> Settled {
        let place = transaction_id & ((1 << PLACE_BITS) - 1);
        let Some(slot) = self.slots.get_mut(place as usize) else { return Settled::Unknown };
        let is_current = u32::from(slot.generation) == transaction_id >> PLACE_BITS;
        if !is_current || slot.pending.client != client {
            return Settled::Unknown;
        }
        match slot.state {
            State::Never => Settled::Unknown,
            State::Answered => Settled::Duplicate,
            State::TimedOut => Settled::Late,
            State::Waiting => {
                slot.state = State::Answered;
                self.free.push_back(place);
                Settled::Answered(slot.pending)
            }
        }
    }

    /// Removes requests that were sent before a moment. Each call searches one of `parts` parts of
    /// the table, so that no call takes long.
    pub(crate) fn expire(&mut self, before_ns: u64, parts: usize, mut lost: impl FnMut(Pending)) {
        for _ in 0..self.slots.len().div_ceil(parts) {
            self.sweep = (self.sweep + 1) % self.slots.len();
            let slot = &mut self.slots[self.sweep];
            if slot.state == State::Waiting && slot.pending.sent_ns < before_ns {
                slot.state = State::TimedOut;
                self.free.push_front(u32::try_from(self.sweep).unwrap_or(0));
                lost(slot.pending);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(sent_ns: u64) -> Pending {
        Pending {
            intended_ns: sent_ns,
            sent_ns,
            item: 7,
            client: 3,
            kind: Kind::Announce,
            count: 30,
            port: 6881,
        }
    }

    #[test]
    fn responses_find_their_requests_once() {
        let mut table = SlotTable::new(2);
        let first = table.take(request(1)).unwrap();
        let second = table.take(request(2)).unwrap();
        assert_ne!(first, second);
        assert_eq!(table.take(request(3)), None);
        assert_eq!(table.settle(second, 3), Settled::Answered(request(2)));
        assert_eq!(table.settle(second, 3), Settled::Duplicate);
        assert_eq!(table.settle(first, 9), Settled::Unknown, "came to another socket");
        assert_eq!(table.settle(first, 3), Settled::Answered(request(1)));
        assert_eq!(table.settle(u32::MAX, 3), Settled::Unknown);
        assert_eq!(table.waiting(), 0);
    }

    #[test]
    fn what_is_given_up_is_lost_once_and_may_come_late() {
        let mut table = SlotTable::new(4);
        let old = table.take(request(10)).unwrap();
        let new = table.take(request(20)).unwrap();
        let mut lost = Vec::new();
        for _ in 0..4 {
            table.expire(20, 2, |it| lost.push(it));
        }
        assert_eq!(lost, [request(10)]);
        assert_eq!(table.settle(old, 3), Settled::Late);
        assert!(matches!(table.settle(new, 3), Settled::Answered(_)));
    }

    #[test]
    fn a_reused_place_has_another_id() {
        let mut table = SlotTable::new(1);
        let first = table.take(request(1)).unwrap();
        table.settle(first, 3);
        let second = table.take(request(2)).unwrap();
        assert_ne!(first, second);
        assert_eq!(table.settle(first, 3), Settled::Unknown);
    }
}
