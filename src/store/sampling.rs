//! Peer choice: uniformly random, distinct, without the requester, as many as wanted and available.
//!
//! Robert Floyd's sampling draws k of n in k steps whatever n is, and every set of k is equally
//! likely. Numbers come from an exact bounded draw (Lemire's, with rejection), so no peer is
//! favoured by rounding. A response with too many peers of one network is changed, see
//! [`super::network_caps`].

use fastrand::Rng;
use zerocopy::FromBytes;

use super::network_caps::{NetworkCaps, Replacements};
use super::peer::{Endpoint, PeerRecord};

/// The candidates for a requester: up to two runs of records (its own scope, and the public one),
/// and the requester's position in their concatenation, if it is in them.
pub(super) struct CandidatePool<'a, const ADDRESS: usize> {
    /// The runs.
    pub(super) runs: [&'a [PeerRecord<ADDRESS>]; 2],
    /// The requester's own position.
    pub(super) own: Option<usize>,
    /// Which of them are under caps.
    pub(super) capped: CapScope,
}

/// The candidates to which the caps per network apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CapScope {
    /// All: they are public.
    All,
    /// The public ones.
    Public,
    /// None: they are local.
    None,
}

impl<const ADDRESS: usize> CandidatePool<'_, ADDRESS> {
    /// The number of peers that the requester may be given.
    #[inline]
    pub(super) fn available(&self) -> usize {
        let [first, second] = self.runs;
        first.len() + second.len() - usize::from(self.own.is_some())
    }
}

/// Up to this many candidates, the chosen are marked in a bit map on the stack.
const MARKED_MAX: usize = 2048;

/// Writes randomly chosen peers to `out` in compact form, as many as fit but no more than
/// [`CHOICE_MAX`]; returns how many bytes.
#[inline]
pub(super) fn write_sample<const ADDRESS: usize>(
    pool: &CandidatePool<'_, ADDRESS>,
    random: &mut Rng,
    out: &mut [u8],
) -> usize {
    let stride = size_of::<Endpoint<ADDRESS>>();
    let [first, second] = pool.runs;
    let available = pool.available();
    let count = (out.len() / stride).min(CHOICE_MAX).min(available);
    let places = <[Endpoint<ADDRESS>]>::mut_from_prefix_with_elems(out, count);
    let Ok((places, _)) = places else { return 0 };
    let own = pool.own.unwrap_or(usize::MAX);
    let candidate = |number: usize| {
        let at = number + usize::from(number >= own); // steps over the requester
        match at.checked_sub(first.len()) {
            None => first[at].endpoint,
            Some(at) => second[at].endpoint,
        }
    };
    if count == available {
        (0..count).zip(places).for_each(|(number, place)| *place = candidate(number));
        return count * stride;
    }
    let caps = match pool.capped {
        CapScope::None => None,
        capped => NetworkCaps::of::<ADDRESS>(count, capped == CapScope::Public),
    };
    let fails = |places: &[_]| caps.filter(|caps| !caps.hold(places));
    if available <= MARKED_MAX {
        let mut marks = BitSet::default();
        sample(available, places, random, &mut marks, candidate);
        if let Some(caps) = fails(places) {
            caps.enforce(
                places,
                random,
                UnmarkedCandidates::new(&marks, available, count),
                candidate,
            );
        }
    } else {
        let mut scattered = HashedSet::<{ CHOICE_MAX * 2 }>::new(count);
        sample(available, places, random, &mut scattered, candidate);
        if let Some(caps) = fails(places) {
            caps.enforce(
                places,
                random,
                RedrawnCandidates::new(&scattered, available, count),
                candidate,
            );
        }
    }
    count * stride
}

/// Floyd's algorithm: fills `places` from distinct numbers below `n`, every set equally likely.
#[inline]
fn sample<T>(
    n: usize,
    places: &mut [T],
    random: &mut Rng,
    chosen: &mut impl NumberSet,
    candidate: impl Fn(usize) -> T,
) {
    let first = word(n - places.len());
    for (last, place) in (first..).zip(places) {
        let drawn = random.u32(..=last);
        *place = candidate(chosen.insert(drawn, last) as usize);
    }
}

/// A position as a 32-bit number, for cheap draws. A swarm never has four billion peers.
#[inline]
fn word(position: usize) -> u32 {
    u32::try_from(position).expect("a swarm has fewer than 2^32 peers")
}

/// A set of numbers that were chosen.
trait NumberSet {
    /// Adds `drawn`, or `instead` (which was never added) if `drawn` is in the set already. Returns
    /// the added number.
    fn insert(&mut self, drawn: u32, instead: u32) -> u32;
}

/// A bit for every candidate.
struct BitSet([u64; MARKED_MAX / 64]);

impl Default for BitSet {
    fn default() -> Self {
        Self([0; MARKED_MAX / 64])
    }
}

impl NumberSet for BitSet {
    #[inline]
    fn insert(&mut self, drawn: u32, instead: u32) -> u32 {
        // No branch: whether a number was drawn before cannot be predicted.
        let taken = self.0[drawn as usize / 64] >> (drawn % 64) & 1 == 1;
        let fresh = std::hint::select_unpredictable(taken, instead, drawn);
        self.0[fresh as usize / 64] |= 1 << (fresh % 64);
        fresh
    }
}

/// The most peers chosen in one call: half the slots of a [`HashedSet`].
pub(super) const CHOICE_MAX: usize = 256;

/// An open-addressed set for few numbers of a wide range. Slots hold the number plus one; 0 is
/// free. Numbers are random already, so their low bits spread well enough.
struct HashedSet<const SLOTS: usize> {
    slots: [u32; SLOTS],
    mask: usize,
}

impl<const SLOTS: usize> HashedSet<SLOTS> {
    fn new(numbers: usize) -> Self {
        let slots = (numbers * 2).next_power_of_two().min(SLOTS);
        Self { slots: [0; SLOTS], mask: slots - 1 }
    }

    /// Adds a number; returns whether it is new.
    #[inline]
    fn add(&mut self, number: u32) -> bool {
        let at = self.slot_of(number);
        let is_new = self.slots[at] == 0;
        self.slots[at] = number + 1;
        is_new
    }

    /// The slot of a number, or the free slot for it.
    #[inline]
    fn slot_of(&self, number: u32) -> usize {
        let mut at = number as usize & self.mask;
        while self.slots[at] != 0 && self.slots[at] != number + 1 {
            at = (at + 1) & self.mask;
        }
        at
    }
}

impl<const SLOTS: usize> NumberSet for HashedSet<SLOTS> {
    #[inline]
    fn insert(&mut self, drawn: u32, instead: u32) -> u32 {
        if self.add(drawn) {
            return drawn;
        }
        self.add(instead);
        instead
    }
}

/// Up to this many candidates the caps are enforced strictly: every candidate is tried.
const TRIED_ALL_MAX: usize = 1024;
/// Of more candidates, this many times the peers wanted are tried.
const TRIES_PER_PEER: usize = 4;

/// The number of candidates tried as replacements for those above a cap.
fn tries(available: usize, count: usize) -> usize {
    if available <= TRIED_ALL_MAX { available } else { count * TRIES_PER_PEER }
}

/// The candidates that are not marked, in random order.
struct UnmarkedCandidates {
    numbers: [u16; MARKED_MAX],
    left: usize,
    tries: usize,
}

impl UnmarkedCandidates {
    fn new(marks: &BitSet, available: usize, count: usize) -> Self {
        let mut candidates =
            Self { numbers: [0; MARKED_MAX], left: 0, tries: tries(available, count) };
        for number in 0..u16::try_from(available).unwrap_or(u16::MAX) {
            let at = usize::from(number);
            candidates.numbers[candidates.left] = number;
            candidates.left += usize::from(marks.0[at / 64] >> (at % 64) & 1 == 0);
        }
        candidates
    }
}

impl Replacements for UnmarkedCandidates {
    fn next(&mut self, random: &mut Rng) -> Option<u32> {
        self.tries = self.tries.checked_sub(1)?;
        self.left = self.left.checked_sub(1)?;
        self.numbers.swap(random.usize(..=self.left), self.left);
        Some(self.numbers[self.left].into())
    }

    fn take(&mut self, _number: u32) {}
}

/// Further candidates drawn from a large pool. A rejected candidate may be drawn again.
struct RedrawnCandidates {
    chosen: HashedSet<{ CHOICE_MAX * 4 }>,
    available: u32,
    tries: usize,
}

impl RedrawnCandidates {
    fn new(scattered: &HashedSet<{ CHOICE_MAX * 2 }>, available: usize, count: usize) -> Self {
        // All first choices stay in the set, and as many replacements may be added.
        let mut chosen = HashedSet::new(count * 2);
        let numbers = scattered.slots.iter().filter_map(|slot| slot.checked_sub(1));
        numbers.for_each(|number| _ = chosen.add(number));
        Self { chosen, available: word(available), tries: tries(available, count) }
    }
}

impl Replacements for RedrawnCandidates {
    fn next(&mut self, random: &mut Rng) -> Option<u32> {
        loop {
            self.tries = self.tries.checked_sub(1)?;
            let number = random.u32(..self.available);
            if self.chosen.slots[self.chosen.slot_of(number)] == 0 {
                return Some(number);
            }
        }
    }

    fn take(&mut self, number: u32) {
        self.chosen.add(number);
    }
}

#[cfg(test)]
mod tests {
    use super::super::peer::{PeerMeta, Role};
    use super::*;
    use crate::time::Now;

    fn records(count: u16) -> Vec<PeerRecord<4>> {
        let meta = PeerMeta::new(Now::from_s(0), Role::Leecher);
        let address = |at: u16| [20, (at >> 8) as u8, at as u8, 1];
        (0..count).map(|at| PeerRecord::new(Endpoint::new(address(at), at + 1), meta)).collect()
    }

    fn pool<'a>(runs: [&'a [PeerRecord<4>]; 2], own: Option<usize>) -> CandidatePool<'a, 4> {
        CandidatePool { runs, own, capped: CapScope::All }
    }

    /// How often each port was handed out in `rounds` choices.
    fn tally(
        runs: [&[PeerRecord<4>]; 2],
        own: Option<usize>,
        want: usize,
        rounds: u32,
    ) -> Vec<u32> {
        let mut random = Rng::with_seed(7);
        let total = runs[0].len() + runs[1].len();
        let mut hits = vec![0; total + 1];
        let mut out = vec![0; want * 6];
        for _ in 0..rounds {
            let written = write_sample(&pool(runs, own), &mut random, &mut out);
            let mut ports: Vec<usize> = out[..written]
                .chunks_exact(6)
                .map(|peer| usize::from(u16::from_be_bytes([peer[4], peer[5]])))
                .collect();
            ports.iter().for_each(|&port| hits[port] += 1);
            ports.sort_unstable();
            ports.dedup();
            assert_eq!(
                ports.len(),
                want.min(total - usize::from(own.is_some())),
                "distinct, exact"
            );
        }
        hits
    }

    /// Pearson's chi-squared statistic against "all the same", and its degrees of freedom.
    fn chi_squared(hits: &[u32]) -> (f64, f64) {
        let mean = f64::from(hits.iter().sum::<u32>()) / hits.len() as f64;
        let sum = hits.iter().map(|&hit| (f64::from(hit) - mean).powi(2) / mean).sum();
        (sum, (hits.len() - 1) as f64)
    }

    #[test]
    fn every_peer_is_as_likely_as_any_other_and_the_asker_never_comes() {
        let all = records(3000);
        for (count, own, want, split) in [
            (100, Some(0), 30, 100),
            (100, Some(99), 1, 40),
            (100, Some(50), 29, 50),
            (101, None, 100, 101),
            (2049, Some(2048), 67, 1),
            (3000, Some(1234), 200, 2999),
        ] {
            let (front, back) = all[..count].split_at(split);
            let rounds = 400_000 / want as u32;
            let mut hits = tally([front, back], own, want, rounds);
            hits.remove(0);
            if let Some(own) = own {
                assert_eq!(hits.remove(own), 0, "the asker was counts out");
            }
            let (statistic, freedom) = chi_squared(&hits);
            // Mean `freedom`, deviation sqrt(2 × freedom): six deviations never happen by chance.
            let bound = freedom + 6.0 * (2.0 * freedom).sqrt();
            assert!(statistic < bound, "{count} {own:?} {want}: {statistic:.0} > {bound:.0}");
        }
    }

    #[test]
    fn pairs_are_as_likely_as_any_other() {
        let all = records(8);
        let mut random = Rng::with_seed(11);
        let mut pairs = vec![0; 64];
        for _ in 0..200_000 {
            let mut out = [0; 12];
            write_sample(&pool([&all, &[]], None), &mut random, &mut out);
            let (a, b) = (usize::from(out[5]) - 1, usize::from(out[11]) - 1);
            pairs[a.min(b) * 8 + a.max(b)] += 1;
        }
        let hits: Vec<u32> = pairs.into_iter().filter(|&hit| hit > 0).collect();
        assert_eq!(hits.len(), 28);
        let (statistic, freedom) = chi_squared(&hits);
        assert!(statistic < freedom + 6.0 * (2.0 * freedom).sqrt(), "{statistic}");
    }

    #[test]
    fn the_buffer_bounds_the_choice() {
        let all = records(10);
        let mut out = [0; 20];
        let ten = pool([&all, &[]], None);
        assert_eq!(write_sample(&ten, &mut Rng::with_seed(1), &mut out), 18);
        assert_eq!(write_sample(&ten, &mut Rng::with_seed(1), &mut out[..5]), 0);
        let nobody = pool([&all[..1], &[]], Some(0));
        assert_eq!(write_sample(&nobody, &mut Rng::with_seed(1), &mut out), 0);
    }
}
