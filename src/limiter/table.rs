//! The table: a fixed number of lines, and for each key two lines that may hold it.
//!
//! A key that is in neither takes over the slot with the least load, *with* that load
//! (Space-Saving): a source near its limit keeps its load, however many other sources follow. One
//! exception: a source in its second line whose first line has a free slot again gets one more
//! burst. The cost is that a new source in a crowded table starts with the least load of its lines:
//! 0, until the sources charged within a time constant outnumber the slots, and then little.

use crate::limiter::cache_line::{CacheLine, LaneSlot};

/// Bytes of a line.
const LINE_BYTES: usize = 64;

/// Loads by key.
#[derive(Debug)]
pub(super) struct LoadTable {
    lines: Box<[CacheLine]>,
}

/// The place of a key, or the place that it would take.
#[derive(Clone, Copy)]
pub(super) struct Lookup<'a> {
    line: &'a CacheLine,
    slot: LaneSlot,
    id: u16,
    known: bool,
    /// The load before a charge.
    pub(super) load: u16,
}

impl LoadTable {
    /// A table of `bytes` bytes: a power of two from 64 to 4 GiB.
    pub(super) fn new(bytes: usize) -> Self {
        assert!(bytes.is_power_of_two() && (LINE_BYTES..=1 << 32).contains(&bytes));
        Self { lines: (0..bytes / LINE_BYTES).map(|_| CacheLine::default()).collect() }
    }

    /// Bytes of all lines.
    pub(super) fn bytes(&self) -> usize {
        self.lines.len() * LINE_BYTES
    }

    /// The entries of the keys with these hashes. All lines are prefetched before the first is
    /// read.
    #[inline]
    pub(super) fn entries<const N: usize>(&self, hashes: [u64; N], epoch: u16) -> [Lookup<'_>; N] {
        let lines = hashes.map(|it| self.line(it));
        refresh(&lines, epoch);
        let mut known = true;
        let mut entries = std::array::from_fn(|at| {
            let (line, id) = (lines[at], id(hashes[at]));
            let found = line.find(id);
            known &= found.is_some();
            let slot = found.slot();
            Lookup { line, slot, id, known: found.is_some(), load: line.load(slot) }
        });
        if !known {
            self.settle(&mut entries, hashes, epoch);
        }
        entries
    }

    /// Finds entries for keys that are not in their first lines.
    #[inline]
    fn settle<'a, const N: usize>(
        &'a self,
        entries: &mut [Lookup<'a>; N],
        hashes: [u64; N],
        epoch: u16,
    ) {
        let mut crowded = false;
        for entry in entries.iter_mut().filter(|it| !it.known) {
            (entry.slot, entry.load) = entry.line.lightest();
            crowded |= entry.load > 0;
        }
        if crowded {
            self.settle_crowded(entries, hashes, epoch);
        }
    }

    /// Searches the second lines of keys whose first lines are full.
    #[inline(never)]
    fn settle_crowded<'a, const N: usize>(
        &'a self,
        entries: &mut [Lookup<'a>; N],
        hashes: [u64; N],
        epoch: u16,
    ) {
        let lines = hashes.map(|it| self.line(it >> 22));
        refresh(&lines, epoch);
        let crowded = |it: &(&mut Lookup<'_>, &CacheLine)| !it.0.known && it.0.load > 0;
        for (entry, line) in entries.iter_mut().zip(lines).filter(crowded) {
            let found = line.find(entry.id);
            let known = found.is_some();
            let (slot, load) =
                if known { (found.slot(), line.load(found.slot())) } else { line.lightest() };
            if known || load < entry.load {
                *entry = Lookup { line, slot, load, known, ..*entry };
            }
        }
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "cut to the number of lines anyway")]
    fn line(&self, hash: u64) -> &CacheLine {
        &self.lines[hash as usize & (self.lines.len() - 1)]
    }
}

/// Reads the epochs of all lines before it waits for any.
#[inline]
fn refresh(lines: &[&CacheLine], epoch: u16) {
    if lines.iter().fold(false, |stale, it| stale | it.is_stale(epoch)) {
        lines.iter().for_each(|it| it.refresh(epoch));
    }
}

/// What distinguishes a key from others in its lines.
#[inline]
fn id(hash: u64) -> u16 {
    (hash >> 48) as u16
}

impl Lookup<'_> {
    /// Adds to the load: exactly or, if `rough`, with [`CacheLine::add_roughly`].
    #[inline]
    pub(super) fn charge(&self, load: u16, rough: bool) {
        if load == 0 {
            return; // a price below 1 was rounded down to 0
        }
        if !self.known {
            self.line.assign(self.slot, self.id);
        }
        if rough {
            self.line.add_roughly(self.slot, load);
        } else {
            self.line.add(self.slot, load);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINES: usize = if cfg!(miri) { 4 } else { 1024 };
    const SLOTS: u64 = LINES as u64 * 15;

    fn entry(table: &LoadTable, key: u64) -> Lookup<'_> {
        let hash = ahash::RandomState::with_seeds(1, 2, 3, 4).hash_one(key);
        table.entries([hash], 0)[0]
    }

    #[test]
    fn keys_are_found_again_while_there_is_room() {
        let table = LoadTable::new(LINES * LINE_BYTES);
        let keys = SLOTS / 2;
        for key in 0..keys {
            entry(&table, key).charge(100, false);
        }
        let found = (0..keys).filter(|key| {
            let entry = entry(&table, *key);
            entry.known && entry.load >= 100
        });
        assert_eq!(found.count() as u64, keys);
        let shared = (0..keys).filter(|key| entry(&table, *key).load > 100).count();
        assert!(shared < 10, "{shared} keys share lines and an id with another");
    }

    #[test]
    fn whoever_is_near_the_limit_is_never_forgotten() {
        let table = LoadTable::new(LINES * LINE_BYTES);
        entry(&table, u64::MAX).charge(30_000, false);
        let keys = SLOTS * if cfg!(miri) { 20 } else { 65 };
        for key in 0..keys {
            entry(&table, key).charge(1, true);
        }
        assert!(entry(&table, u64::MAX).load >= 30_000);
        // The slots share the charges of all other keys.
        let newcomer = entry(&table, u64::MAX - 1).load;
        let mean = keys / SLOTS;
        assert!((mean / 2..=mean * 2).contains(&newcomer.into()), "{newcomer} of a mean of {mean}");
    }

    #[test]
    fn a_charge_of_nothing_takes_no_slot() {
        let table = LoadTable::new(64);
        entry(&table, 1).charge(0, false);
        assert!(!entry(&table, 1).known);
        assert_eq!(table.bytes(), 64);
    }
}
