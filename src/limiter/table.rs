//! The table: as many lines as at the start for ever, and for each key two lines it may stand in.
//!
//! A key that stands in neither takes over the slot with the least load, *with* that load
//! (Space-Saving): a source near its limit is never forgotten, however many others come by. The
//! price is that a newcomer to a crowded table starts with what the least busy had: nothing, until
//! the sources charged within a time constant outnumber the slots, and then little.

use crate::limiter::line::{Line, Slot};

/// Bytes of a line.
const LINE_BYTES: usize = 64;

/// Loads by key.
#[derive(Debug)]
pub(super) struct Table {
    lines: Box<[Line]>,
}

/// Where a key stands, or would.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    line: &'a Line,
    slot: Slot,
    id: u16,
    known: bool,
    /// The load that a charge would be added to.
    pub(super) load: u16,
}

impl Table {
    /// A table of so many bytes: a power of two from 64 on, at most 4 GiB.
    pub(super) fn new(bytes: usize) -> Self {
        assert!(bytes.is_power_of_two() && (LINE_BYTES..=1 << 32).contains(&bytes));
        Self { lines: (0..bytes / LINE_BYTES).map(|_| Line::default()).collect() }
    }

    /// Bytes of all lines.
    pub(super) fn bytes(&self) -> usize {
        self.lines.len() * LINE_BYTES
    }

    /// The place of the key with this hash.
    #[inline]
    pub(super) fn place(&self, hash: u64, epoch: u16) -> Place<'_> {
        let id = (hash >> 48) as u16;
        let first = self.line(hash);
        first.refresh(epoch);
        if let Some(slot) = first.find(id) {
            return Place { line: first, slot, id, known: true, load: first.load(slot) };
        }
        let (slot, load) = first.lightest();
        let place = Place { line: first, slot, id, known: false, load };
        self.place_in_second(hash, epoch, place)
    }

    #[inline]
    fn place_in_second<'a>(&'a self, hash: u64, epoch: u16, first: Place<'a>) -> Place<'a> {
        let line = self.line(hash >> 22);
        line.refresh(epoch);
        if let Some(slot) = line.find(first.id) {
            return Place { line, slot, known: true, load: line.load(slot), ..first };
        }
        let (slot, load) = line.lightest();
        // Full lines only are left for the second choice: a key that stands in its first line
        // costs one line of cache.
        if load < first.load { Place { line, slot, load, ..first } } else { first }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "cut to the number of lines anyway")]
    fn line(&self, hash: u64) -> &Line {
        &self.lines[hash as usize & (self.lines.len() - 1)]
    }
}

impl Place<'_> {
    /// Adds to the load.
    #[inline]
    pub(super) fn charge(&self, load: u16) {
        if load == 0 {
            return; // a share below one was rounded down: nothing to remember
        }
        if !self.known {
            self.line.give(self.slot, self.id);
        }
        self.line.add(self.slot, load);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(key: u64) -> u64 {
        ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(key)
    }

    #[test]
    fn keys_are_found_again_while_there_is_room() {
        let table = Table::new(64 << 10);
        let keys = 1024 * 15 / 2;
        for key in 0..keys {
            table.place(hash(key), 0).charge(100);
        }
        let found = (0..keys).filter(|key| {
            let place = table.place(hash(*key), 0);
            place.known && place.load >= 100
        });
        assert_eq!(found.count() as u64, keys);
        let shared = (0..keys).filter(|key| table.place(hash(*key), 0).load > 100).count();
        assert!(shared < 10, "{shared} keys share lines and an id with another");
    }

    #[test]
    fn whoever_is_near_the_limit_is_never_forgotten() {
        let table = Table::new(64 << 10);
        table.place(hash(u64::MAX), 0).charge(30_000);
        for key in 0..1_000_000 {
            table.place(hash(key), 0).charge(1);
        }
        assert!(table.place(hash(u64::MAX), 0).load >= 30_000);
        // What was charged to all others is shared by the slots.
        let newcomer = table.place(hash(u64::MAX - 1), 0).load;
        assert!((40..=70).contains(&newcomer), "{newcomer} of a mean of 65");
    }

    #[test]
    fn a_charge_of_nothing_takes_no_slot() {
        let table = Table::new(64);
        table.place(hash(1), 0).charge(0);
        assert!(!table.place(hash(1), 0).known);
        assert_eq!(table.bytes(), 64);
    }
}
