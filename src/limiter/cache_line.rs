//! One cache line of the table: fifteen slots, each a 16-bit id and a 16-bit load, and the line's
//! epoch. Shared by all workers without a lock.
//!
//! ```text
//! ids    word 0: i i i i   word 1: i i i i   word 2: i i i i   word 3: i i i -
//! loads  word 0: l l l l   word 1: l l l l   word 2: l l l l   word 3: l l l epoch
//! ```
//!
//! Words are read atomically, so no id and no load is ever torn, and four lanes are compared at
//! once. An id and its load are in two words: between the two writes that reassign a slot, another
//! worker may charge the old source instead of the new one or vice versa. And a
//! [rough](CacheLine::add_roughly) write may undo what another worker writes to the same word
//! within the same nanoseconds. Both lose one or two charges of thousands; locked instructions
//! everywhere would cost about a twentieth of the limiter's time.

use std::array::from_fn;
#[cfg(not(all(test, skep_loom)))]
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

#[cfg(all(test, skep_loom))]
use loom::sync::atomic::AtomicU64;

/// Words of four lanes.
const WORDS: usize = 4;
/// Bits of a lane.
const LANE: u32 = 16;
/// A one in every lane.
const ONES: u64 = 0x0001_0001_0001_0001;
/// The highest bit of every lane.
const HIGHS: u64 = ONES << 15;
/// Where the epoch starts in the last word of loads.
const EPOCH_SHIFT: u32 = 48;
/// Epochs by which a line may be ahead of the worker that reads it: workers read their clocks once
/// a batch. A line further ahead counts as far behind: the epoch has wrapped, or the settings that
/// determine it have changed.
const AHEAD_MAX: u16 = 2;

/// Fifteen slots and their epoch.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct CacheLine {
    ids: [AtomicU64; WORDS],
    loads: [AtomicU64; WORDS],
}

#[cfg(not(all(test, skep_loom)))]
const _: () = assert!(size_of::<CacheLine>() == 64);

/// A slot's place in its line, in the form of [`LaneMatch`]: the word in the lowest two bits, the
/// lane in bits 4 and 5. Bits 2 and 3 are set and have no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LaneSlot(u8);

impl LaneSlot {
    /// The slots of a line.
    #[cfg(test)]
    pub(super) const COUNT: usize = 15;

    #[inline]
    fn of(self, words: &[AtomicU64; WORDS]) -> &AtomicU64 {
        &words[usize::from(self.0) % WORDS]
    }

    #[inline]
    fn shift(self) -> u32 {
        u32::from(self.0 & 0x30)
    }

    #[inline]
    fn get(self, word: u64) -> u16 {
        lane(word, self.shift())
    }

    #[inline]
    fn set(self, word: u64, value: u16) -> u64 {
        word & !(0xffff << self.shift()) | u64::from(value) << self.shift()
    }

    #[inline]
    fn plus(self, word: u64, load: u16) -> u64 {
        self.set(word, self.get(word).saturating_add(load))
    }
}

/// The place of a value in a line, if found.
#[derive(Clone, Copy, Debug)]
pub(super) struct LaneMatch(u64);

impl LaneMatch {
    /// Whether it was found.
    #[inline]
    pub(super) fn is_some(self) -> bool {
        self.0 != 0
    }

    /// The slot; an arbitrary slot if the value was not found.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "at most 64")]
    pub(super) fn slot(self) -> LaneSlot {
        LaneSlot(self.0.trailing_zeros() as u8)
    }
}

impl CacheLine {
    /// Whether an epoch has begun since the line was last refreshed.
    #[inline]
    pub(super) fn is_stale(&self, epoch: u16) -> bool {
        epochs_since(self.loads[WORDS - 1].load(Relaxed), epoch).is_some()
    }

    /// Halves every load once for each epoch that has begun since the line was last refreshed. The
    /// worker that advances the epoch halves the line, so it is halved once. Other workers may read
    /// some loads too high for some nanoseconds.
    #[cold]
    #[inline(never)]
    pub(super) fn refresh(&self, epoch: u16) {
        let mut last = self.loads[WORDS - 1].load(Relaxed);
        let age = loop {
            let Some(age) = epochs_since(last, epoch) else { return };
            let next = halved(last, age) << LANE >> LANE | u64::from(epoch) << EPOCH_SHIFT;
            match self.loads[WORDS - 1].compare_exchange_weak(last, next, Relaxed, Relaxed) {
                Ok(_) => break age,
                Err(now) => last = now,
            }
        };
        for word in &self.loads[..WORDS - 1] {
            change(word, |it| halved(it, age));
        }
    }

    /// Finds the slot of this id.
    #[inline]
    pub(super) fn find(&self, id: u16) -> LaneMatch {
        first_lane(&self.ids.each_ref().map(|it| it.load(Relaxed)), id)
    }

    /// The slot with the least load, and that load. An unused slot has load 0.
    #[inline]
    pub(super) fn lightest(&self) -> (LaneSlot, u16) {
        let mut loads = self.loads.each_ref().map(|it| it.load(Relaxed));
        loads[WORDS - 1] |= 0xffff << EPOCH_SHIFT; // the epoch is not a load
        let mut least: [u16; 8] = from_fn(|at| lane_at(loads, at).min(lane_at(loads, at + 8)));
        for half in [4, 2, 1] {
            for at in 0..half {
                least[at] = least[at].min(least[at + half]);
            }
        }
        (first_lane(&loads, least[0]).slot(), least[0])
    }

    /// A slot's load.
    #[inline]
    pub(super) fn load(&self, slot: LaneSlot) -> u16 {
        slot.get(slot.of(&self.loads).load(Relaxed))
    }

    /// Assigns a slot to `id`. Its load stays: see [`LoadTable`](super::table::LoadTable).
    #[inline]
    pub(super) fn assign(&self, slot: LaneSlot, id: u16) {
        let word = slot.of(&self.ids);
        word.store(slot.set(word.load(Relaxed), id), Relaxed);
    }

    /// Adds to a slot's load, which saturates.
    #[inline]
    pub(super) fn add(&self, slot: LaneSlot, load: u16) {
        change(slot.of(&self.loads), |it| slot.plus(it, load));
    }

    /// As [`Self::add`], in a few cycles instead of some twenty. If two workers add to the same
    /// word within the same nanoseconds, one addition may be lost.
    #[inline]
    pub(super) fn add_roughly(&self, slot: LaneSlot, load: u16) {
        let word = slot.of(&self.loads);
        word.store(slot.plus(word.load(Relaxed), load), Relaxed);
    }
}

/// The first of the slots' lanes that has this value. Four lanes are compared at once.
#[inline]
fn first_lane(words: &[u64; WORDS], value: u16) -> LaneMatch {
    let wanted = ONES * u64::from(value);
    let mut flags = 0;
    for (at, word) in words.iter().enumerate() {
        // The lowest equal lane is always flagged correctly; lanes above it may be flagged by
        // mistake. Only the lowest flag is used.
        let equal = (word ^ wanted).wrapping_sub(ONES) & (word ^ !wanted) & HIGHS;
        flags |= equal >> (WORDS - 1 - at);
    }
    LaneMatch(flags & u64::MAX >> 1) // the last lane is not a slot
}

/// How many epochs ago this last word of loads was refreshed; `None` if it is up to date.
#[inline]
fn epochs_since(last: u64, epoch: u16) -> Option<u16> {
    let age = epoch.wrapping_sub(lane(last, EPOCH_SHIFT));
    (age != 0 && age < AHEAD_MAX.wrapping_neg()).then_some(age)
}

/// All four lanes, halved `times` times.
#[inline]
fn halved(word: u64, times: u16) -> u64 {
    if u32::from(times) >= LANE {
        return 0;
    }
    (word >> times) & (ONES * (0xffff >> times))
}

#[inline]
fn change(word: &AtomicU64, to: impl Fn(u64) -> u64) {
    let mut before = word.load(Relaxed);
    while let Err(now) = word.compare_exchange_weak(before, to(before), Relaxed, Relaxed) {
        before = now;
    }
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "a lane is 16 bits")]
fn lane(word: u64, shift: u32) -> u16 {
    (word >> shift) as u16
}

/// A lane, in memory order: reading bytes makes the compiler use vector instructions.
#[inline]
fn lane_at(words: [u64; WORDS], at: usize) -> u16 {
    let bytes = words[at / 4].to_le_bytes();
    u16::from_le_bytes([bytes[at % 4 * 2], bytes[at % 4 * 2 + 1]])
}

#[cfg(all(test, not(skep_loom)))]
mod tests {
    use super::*;

    /// Every slot of a line, in the order that `lightest` returns them.
    fn slots(line: &CacheLine) -> Vec<LaneSlot> {
        let mut slots = Vec::new();
        for _ in 0..LaneSlot::COUNT {
            let (slot, load) = line.lightest();
            assert_eq!(load, 0);
            line.add(slot, 9);
            slots.push(slot);
        }
        assert_eq!(line.lightest().1, 9, "no slot is left");
        slots
    }

    #[test]
    fn a_line_has_fifteen_slots_that_do_not_touch_each_other() {
        let line = CacheLine::default();
        let slots = slots(&line);
        for (at, slot) in slots.iter().enumerate() {
            line.assign(*slot, 1000 + at as u16);
            line.add(*slot, at as u16);
        }
        for (at, slot) in slots.iter().enumerate() {
            assert_eq!(line.find(1000 + at as u16).slot(), *slot);
            assert_eq!(line.load(*slot), 9 + at as u16);
        }
        assert_eq!(line.lightest(), (slots[0], 9));
        assert!(!line.find(999).is_some());
        assert_eq!(epochs_since(line.loads[3].load(Relaxed), 0), None, "the epoch is untouched");
    }

    #[test]
    fn an_id_is_found_where_it_stands_and_nowhere_else() {
        let line = CacheLine::default();
        let slots = slots(&line);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..if cfg!(miri) { 100 } else { 20_000 } {
            let ids: Vec<u16> = slots.iter().map(|_| random.u16(..) & 0x8003).collect();
            for (slot, id) in slots.iter().zip(&ids) {
                line.assign(*slot, *id);
            }
            for id in [0, 1, 2, 3, 0x8000, 0x8001, 0x8002, 0x8003, 4, 0x7fff] {
                let found = line.find(id);
                let stands = |slot: LaneSlot| ids[slots.iter().position(|it| *it == slot).unwrap()];
                assert_eq!(found.is_some(), ids.contains(&id), "{ids:x?}");
                assert!(!found.is_some() || stands(found.slot()) == id, "{ids:x?}");
            }
        }
    }

    #[test]
    fn the_spare_lane_is_no_slot() {
        let line = CacheLine::default();
        for slot in slots(&line) {
            line.assign(slot, 7);
        }
        assert!(!line.find(0).is_some(), "the spare lane is zero");
    }

    #[test]
    fn loads_halve_with_every_epoch_and_stop_at_their_largest_value() {
        let line = CacheLine::default();
        let slots = slots(&line);
        for slot in &slots {
            line.add(*slot, 40_000 - 9);
        }
        line.add(slots[2], 60_000);
        line.refresh(1);
        assert_eq!(line.load(slots[0]), 20_000);
        assert_eq!(line.load(slots[2]), u16::MAX / 2);
        line.refresh(1);
        line.refresh(0); // a worker whose clock is a little late
        assert_eq!(line.load(slots[0]), 20_000);
        line.refresh(5);
        assert!(slots.iter().all(|it| line.load(*it) == if *it == slots[2] { 2047 } else { 1250 }));
        line.refresh(21);
        assert!(slots.iter().all(|it| line.load(*it) == 0));
    }

    #[test]
    fn every_age_halves_as_arithmetic_has_it() {
        for age in (0..=u16::MAX).step_by(if cfg!(miri) { 13 } else { 1 }) {
            for (last, epoch) in [(0, age), (65_000, age.wrapping_add(65_000))] {
                let word = u64::from(u16::to_le(last)) << EPOCH_SHIFT | 0xffff_8001_0400;
                let expected = if age >= 65_534 { None } else { Some(age).filter(|it| *it > 0) };
                assert_eq!(epochs_since(word, epoch), expected);
            }
            let halves = |load: u64| load.checked_shr(age.into()).unwrap_or(0);
            let expected = halves(0xffff) << 32 | halves(0x8001) << 16 | halves(0x0400);
            assert_eq!(halved(0xffff_8001_0400, age), expected);
        }
    }
}

/// `RUSTFLAGS="--cfg skep_loom" cargo test --lib limiter::cache_line::interleavings`: every order
/// of two workers on one line.
#[cfg(all(test, skep_loom))]
mod interleavings {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    fn both(line: &Arc<CacheLine>, one: fn(&CacheLine), other: fn(&CacheLine)) {
        let shared = line.clone();
        let thread = thread::spawn(move || one(&shared));
        other(line);
        thread.join().unwrap();
    }

    #[test]
    fn no_charge_is_lost() {
        loom::model(|| {
            let line = Arc::new(CacheLine::default());
            let add = |line: &CacheLine| {
                line.add(LaneSlot(1 | 16), 5);
                line.add(LaneSlot(1 | 32), 60_000);
            };
            both(&line, add, add);
            assert_eq!(line.load(Slot(1 | 16)), 10);
            assert_eq!(line.load(Slot(1 | 32)), u16::MAX);
        });
    }

    #[test]
    fn what_is_added_roughly_may_be_lost_but_never_torn() {
        loom::model(|| {
            let line = Arc::new(CacheLine::default());
            line.add(LaneSlot(33), 3);
            both(
                &line,
                |it| it.add_roughly(LaneSlot(1), 0x0105),
                |it| it.add_roughly(LaneSlot(17), 7),
            );
            let loads = [1, 17, 33].map(|it| line.load(LaneSlot(it)));
            assert!([[0x0105, 7, 3], [0x0105, 0, 3], [0, 7, 3]].contains(&loads), "{loads:?}");
        });
    }

    #[test]
    fn a_line_is_halved_once_and_charges_beside_that_count_whole_or_half() {
        loom::model(|| {
            let line = Arc::new(CacheLine::default());
            for word in 0..4 {
                line.add(LaneSlot(word), 800);
            }
            let visit = |line: &CacheLine| {
                line.refresh(1);
                line.add(LaneSlot(3 | 16), 8);
                line.add(LaneSlot(2), 8);
            };
            both(&line, visit, visit);
            assert_eq!([0, 1, 3].map(|word| line.load(Slot(word))), [400; 3]);
            assert_eq!(line.load(Slot(3 | 16)), 16, "charged after the epoch has moved on");
            // The later worker may charge word 2 before the earlier has halved it.
            assert!([412, 416].contains(&line.load(Slot(2))));
            assert_eq!(epochs_since(line.loads[3].load(Relaxed), 1), None);
        });
    }

    #[test]
    fn a_slot_given_to_two_is_one_of_theirs_and_keeps_both_charges() {
        loom::model(|| {
            let line = Arc::new(CacheLine::default());
            line.give(LaneSlot(12 + 16), 3);
            line.add(LaneSlot(12), 50);
            let take = |id| {
                move |line: &CacheLine| {
                    line.give(LaneSlot(12), id);
                    line.add(LaneSlot(12), 8);
                }
            };
            let shared = line.clone();
            let thread = thread::spawn(move || take(1)(&shared));
            take(2)(&line);
            thread.join().unwrap();
            let found = [1, 2].map(|id| line.find(id)).into_iter().find(|it| it.is_some());
            assert_eq!(found.map(LaneMatch::slot), Some(Slot(12)));
            assert_eq!(line.find(3).slot(), Slot(12 + 16), "the neighbour stays");
            assert_eq!(line.load(Slot(12)), 66);
        });
    }
}
