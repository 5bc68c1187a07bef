//! Sources that were over the limit recently: from its second packet on, a flood is refused by a
//! look-up in the worker's own 6 KiB, without the table, whose lines other workers may be writing.
//!
//! Loads decay at a known rate, so a load determines a least time for which the source stays over
//! the limit; until then, the verdict is certain. So the cache changes verdicts at most by
//! rounding, or where another source has taken over the slot of the table meanwhile.

use crate::time::Now;

/// Sources remembered. A flood from more sources at once costs a few reads of the table for each
/// request.
const CELLS: usize = 256;

/// A worker's memory of limited sources.
#[derive(Debug)]
pub(super) struct BlockedCache {
    cells: Box<[Cell; CELLS]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    /// The hash of the source.
    source: u64,
    /// The time until which it is over the limit.
    until_ns: u64,
    /// Requests over the limit in this cell, of all its sources: if the count restarted with each
    /// source, two alternating sources would be the first each time.
    limited: u32,
}

impl BlockedCache {
    /// An empty cache.
    pub(super) fn new() -> Self {
        Self { cells: Box::new([Cell::default(); CELLS]) }
    }

    /// Whether the source with this hash is certainly over the limit.
    #[inline]
    pub(super) fn holds(&self, source: u64, now: Now) -> bool {
        let cell = &self.cells[index(source)];
        cell.source == source && now.ns() < cell.until_ns
    }

    /// Remembers that a source is over the limit until `until_ns`.
    #[inline]
    pub(super) fn remember(&mut self, source: u64, until_ns: u64) {
        let cell = &mut self.cells[index(source)];
        (cell.source, cell.until_ns) = (source, until_ns);
    }

    /// Counts one more request over the limit; returns its ordinal, starting at 1.
    #[inline]
    pub(super) fn count(&mut self, source: u64) -> u32 {
        let cell = &mut self.cells[index(source)];
        cell.limited = cell.limited.wrapping_add(1);
        cell.limited
    }

    /// Forgets which sources are over the limit, but keeps the counts of requests.
    pub(super) fn forget(&mut self) {
        self.cells.iter_mut().for_each(|it| it.until_ns = 0);
    }
}

#[inline]
fn index(source: u64) -> usize {
    (source >> 32) as usize % CELLS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_held_until_its_moment_or_until_another_takes_its_cell() {
        let mut blocked = BlockedCache::new();
        let [one, other] = [7, 7 | 1 << 40];
        assert!(!blocked.holds(0, Now::from_ns(0)), "an empty cell holds no source");
        blocked.remember(one, 1_000);
        assert!(blocked.holds(one, Now::from_ns(999)));
        assert!(!blocked.holds(one, Now::from_ns(1_000)));
        assert!(!blocked.holds(other, Now::from_ns(999)));
        blocked.remember(other, 1_000);
        assert!(!blocked.holds(one, Now::from_ns(999)));
        blocked.forget();
        assert!(!blocked.holds(other, Now::from_ns(999)));
    }

    #[test]
    fn counts_go_on_whoever_has_the_cell() {
        let mut blocked = BlockedCache::new();
        let counts = [7, 7 | 1 << 40, 7, 8 | 1 << 32, 7].map(|it| blocked.count(it));
        assert_eq!(counts, [1, 2, 3, 1, 4]);
        blocked.forget();
        assert_eq!(blocked.count(7), 5);
    }
}
