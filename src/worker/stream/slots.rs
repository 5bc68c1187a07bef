//! A worker's connections and their deadlines, side by side: a pass over 50 000 connections twice a
//! second touches little memory.

use std::rc::Rc;

use crate::counters::CloseReason;
use crate::frontend::ws::SocketRoute;
use crate::time::Now;

/// A moment that no clock reaches.
pub(super) const NEVER: Now = Now::from_ns(u64::MAX);

/// Place of a connection among those of its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SlotAddress {
    pub(super) slot: u32,
    /// How many connections used the slot before.
    pub(super) generation: u32,
}

impl SlotAddress {
    /// The address under which other sockets send to the connection.
    pub(super) fn route(self, worker: u16) -> SocketRoute {
        SocketRoute { worker, slot: self.slot, generation: self.generation }
    }
}

/// The deadlines of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Deadlines {
    /// When something has to have been received.
    pub(super) read: Now,
    /// Why the connection ends if nothing was received by then.
    pub(super) missed: CloseReason,
    /// When the client has to have received what is being written.
    pub(super) write: Now,
    /// When to send a ping.
    pub(super) ping: Now,
}

impl Deadlines {
    /// Deadlines of a connection that has to receive something before `read`.
    pub(super) fn until(read: Now, missed: CloseReason) -> Self {
        Self { read, missed, write: NEVER, ping: NEVER }
    }
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// The connection has to end.
    End(CloseReason),
    /// A ping has to be sent.
    Ping,
}

/// All connections of a worker.
#[derive(Debug)]
pub(super) struct ConnectionSlots<C> {
    slots: Vec<ConnectionSlot<C>>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct ConnectionSlot<C> {
    deadlines: Deadlines,
    generation: u32,
    connection: Option<Rc<C>>,
}

impl<C> ConnectionSlots<C> {
    /// No connections.
    pub(super) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// How many connections there are.
    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Adds the connection that `make` returns for its place.
    pub(super) fn insert(
        &mut self,
        deadlines: Deadlines,
        make: impl FnOnce(SlotAddress) -> C,
    ) -> Rc<C> {
        let slot = self.free.pop().unwrap_or_else(|| {
            let empty = Deadlines::until(NEVER, CloseReason::Done);
            self.slots.push(ConnectionSlot { deadlines: empty, generation: 0, connection: None });
            // Each connection has a descriptor, of which there are fewer than 2^31.
            u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX)
        });
        let connection_slot = &mut self.slots[slot as usize];
        let connection =
            Rc::new(make(SlotAddress { slot, generation: connection_slot.generation }));
        connection_slot.deadlines = deadlines;
        connection_slot.connection = Some(connection.clone());
        connection
    }

    /// Removes a connection. Messages for its place are lost from now on.
    pub(super) fn remove(&mut self, place: SlotAddress) {
        let Some(slot) = self.slots.get_mut(place.slot as usize) else { return };
        debug_assert_eq!(slot.generation, place.generation, "a connection leaves once");
        slot.deadlines = Deadlines::until(NEVER, CloseReason::Done);
        slot.generation = slot.generation.wrapping_add(1);
        slot.connection = None;
        self.free.push(place.slot);
    }

    /// The connection at a place, if it is still there.
    pub(super) fn get(&self, slot: u32, generation: u32) -> Option<&Rc<C>> {
        let connection_slot = self.slots.get(slot as usize)?;
        connection_slot.connection.as_ref().filter(|_| connection_slot.generation == generation)
    }

    /// The deadlines of a connection, if it is still there.
    pub(super) fn deadlines(&mut self, place: SlotAddress) -> Option<&mut Deadlines> {
        let slot = self.slots.get_mut(place.slot as usize)?;
        (slot.generation == place.generation).then_some(&mut slot.deadlines)
    }

    /// Every connection.
    pub(super) fn all(&self) -> impl Iterator<Item = &Rc<C>> {
        self.slots.iter().filter_map(|it| it.connection.as_ref())
    }

    /// The connections that are due. A connection that has to end is returned once. The next ping
    /// is due `ping_s` seconds after this one.
    pub(super) fn due(&mut self, now: Now, ping_s: u32) -> Vec<(Rc<C>, Due)> {
        let mut due = Vec::new();
        for slot in &mut self.slots {
            let Deadlines { read, missed, write, ping } = slot.deadlines;
            if now < read.min(write).min(ping) {
                continue;
            }
            let Some(connection) = &slot.connection else { continue };
            if now >= write {
                slot.deadlines = Deadlines::until(NEVER, missed);
                due.push((connection.clone(), Due::End(CloseReason::WriteStalled)));
            } else if now >= read {
                slot.deadlines = Deadlines::until(NEVER, missed);
                due.push((connection.clone(), Due::End(missed)));
            } else {
                slot.deadlines.ping = now.plus_s(u64::from(ping_s));
                due.push((connection.clone(), Due::Ping));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Now = Now::from_s(1_000);

    fn deadlines(read_s: u64) -> Deadlines {
        Deadlines::until(START.plus_s(read_s), CloseReason::IdleTimeout)
    }

    #[test]
    fn a_place_is_never_two_connections() {
        let mut slots = ConnectionSlots::new();
        let first = *slots.insert(deadlines(5), |address| address);
        assert_eq!(slots.get(first.slot, first.generation).map(|it| **it), Some(first));
        slots.remove(first);
        let second = *slots.insert(deadlines(5), |slot_address| slot_address);
        assert_eq!((second.slot, slots.len()), (first.slot, 1));
        assert!(slots.get(first.slot, first.generation).is_none());
        assert!(slots.get(second.slot, second.generation).is_some());
        assert!(slots.get(9, 0).is_none());
    }

    #[test]
    fn what_is_late_ends_once_and_for_its_reason() {
        let mut slots = ConnectionSlots::new();
        let late = *slots.insert(deadlines(5), |address| address);
        let writing = *slots.insert(deadlines(9), |slot_address| slot_address);
        slots.deadlines(writing).unwrap().write = START.plus_s(5);
        assert!(slots.due(START.plus_s(4), 50).is_empty());
        let due: Vec<_> =
            slots.due(START.plus_s(5), 50).into_iter().map(|(it, due)| (*it, due)).collect();
        let stalled = Due::End(CloseReason::WriteStalled);
        assert_eq!(due, [(late, Due::End(CloseReason::IdleTimeout)), (writing, stalled)]);
        assert!(slots.due(START.plus_s(100), 50).is_empty());
    }

    #[test]
    fn pings_are_due_again_and_again() {
        let mut slots = ConnectionSlots::new();
        let socket = *slots.insert(deadlines(1_000), |address| address);
        slots.deadlines(socket).unwrap().ping = START.plus_s(50);
        let mut pinged = |at_s| slots.due(START.plus_s(at_s), 50).len();
        assert_eq!([49, 50, 51, 99, 100].map(&mut pinged), [0, 1, 0, 0, 1]);
    }
}
