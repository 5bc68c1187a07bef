//! Peer choice: uniformly random, distinct, never the asker, exactly as many as there are to give.
//!
//! Robert Floyd's sampling draws k of n in k steps whatever n is, and every set of k is equally
//! likely. Numbers come from an exact bounded draw (Lemire's, with rejection), so no peer is
//! favoured by rounding.

use fastrand::Rng;
use zerocopy::FromBytes;

use super::record::{Endpoint, Record};

/// The peers an asker may be told of: up to two runs of records (its own scope, and the public
/// one), and where in their concatenation it stands itself, if it does.
pub(super) struct Pool<'a, const ADDRESS: usize> {
    /// The runs.
    pub(super) runs: [&'a [Record<ADDRESS>]; 2],
    /// The asker's own position.
    pub(super) own: Option<usize>,
}

impl<const ADDRESS: usize> Pool<'_, ADDRESS> {
    /// How many peers the asker may be told of.
    #[inline]
    pub(super) fn available(&self) -> usize {
        let [first, second] = self.runs;
        first.len() + second.len() - usize::from(self.own.is_some())
    }
}

/// Up to this many candidates, the chosen are marked in a bit map on the stack.
const MARKED_MAX: usize = 2048;

/// Writes randomly chosen peers to `out` in compact form, as many as fit but no more than
/// [`CHOICE_MAX`]; says how many bytes.
#[inline]
pub(super) fn choose<const ADDRESS: usize>(
    pool: &Pool<'_, ADDRESS>,
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
        let at = number + usize::from(number >= own); // steps over the asker
        match at.checked_sub(first.len()) {
            None => first[at].endpoint,
            Some(at) => second[at].endpoint,
        }
    };
    if count == available {
        (0..count).zip(places).for_each(|(number, place)| *place = candidate(number));
    } else if available <= MARKED_MAX {
        sample(available, places, random, Marks::default(), candidate);
    } else {
        sample(available, places, random, Scattered::new(count), candidate);
    }
    count * stride
}

/// Floyd's algorithm: fills `places` from distinct numbers below `n`, every set equally likely.
#[inline]
fn sample<T>(
    n: usize,
    places: &mut [T],
    random: &mut Rng,
    mut chosen: impl Chosen,
    candidate: impl Fn(usize) -> T,
) {
    let first = word(n - places.len());
    for (last, place) in (first..).zip(places) {
        let drawn = random.u32(..=last);
        *place = candidate(chosen.insert(drawn, last) as usize);
    }
}

/// A position as a number that draws are cheap for. No swarm has four billion peers.
#[inline]
fn word(position: usize) -> u32 {
    u32::try_from(position).expect("a swarm has fewer than 2^32 peers")
}

/// A set of numbers that were chosen.
trait Chosen {
    /// Adds `drawn`, or `instead` (which was never added) if `drawn` is there already. Says which.
    fn insert(&mut self, drawn: u32, instead: u32) -> u32;
}

/// A bit for every candidate.
struct Marks([u64; MARKED_MAX / 64]);

impl Default for Marks {
    fn default() -> Self {
        Self([0; MARKED_MAX / 64])
    }
}

impl Chosen for Marks {
    #[inline]
    fn insert(&mut self, drawn: u32, instead: u32) -> u32 {
        // No branch: whether a number was drawn before cannot be predicted.
        let taken = self.0[drawn as usize / 64] >> (drawn % 64) & 1 == 1;
        let fresh = std::hint::select_unpredictable(taken, instead, drawn);
        self.0[fresh as usize / 64] |= 1 << (fresh % 64);
        fresh
    }
}

/// The most peers one call is given: what a [`Scattered`] has room for, half its slots.
pub(super) const CHOICE_MAX: usize = 256;

/// An open-addressed set for few numbers of a wide range. Slots hold the number plus one; 0 is
/// free. Numbers are random already, so their low bits spread well enough.
struct Scattered {
    slots: [u32; CHOICE_MAX * 2],
    mask: usize,
}

impl Scattered {
    fn new(numbers: usize) -> Self {
        let slots = (numbers.min(CHOICE_MAX) * 2).next_power_of_two();
        Self { slots: [0; CHOICE_MAX * 2], mask: slots - 1 }
    }

    /// Adds a number; says whether it is new.
    #[inline]
    fn add(&mut self, number: u32) -> bool {
        let mut at = number as usize & self.mask;
        while self.slots[at] != 0 {
            if self.slots[at] == number + 1 {
                return false;
            }
            at = (at + 1) & self.mask;
        }
        self.slots[at] = number + 1;
        true
    }
}

impl Chosen for Scattered {
    #[inline]
    fn insert(&mut self, drawn: u32, instead: u32) -> u32 {
        if self.add(drawn) {
            return drawn;
        }
        self.add(instead);
        instead
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{Role, Stamp};
    use super::*;
    use crate::time::Now;

    fn records(count: u16) -> Vec<Record<4>> {
        let stamp = Stamp::new(Now::from_s(0), Role::Leecher);
        (0..count).map(|at| Record::new(Endpoint::new([10, 0, 0, 1], at + 1), stamp)).collect()
    }

    /// How often each port was handed out in `rounds` choices.
    fn tally(runs: [&[Record<4>]; 2], own: Option<usize>, want: usize, rounds: u32) -> Vec<u32> {
        let mut random = Rng::with_seed(7);
        let total = runs[0].len() + runs[1].len();
        let mut hits = vec![0; total + 1];
        let mut out = vec![0; want * 6];
        for _ in 0..rounds {
            let written = choose(&Pool { runs, own }, &mut random, &mut out);
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
                assert_eq!(hits.remove(own), 0, "the asker was handed out");
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
            choose(&Pool { runs: [&all, &[]], own: None }, &mut random, &mut out);
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
        let pool = Pool { runs: [&all, &[]], own: None };
        assert_eq!(choose(&pool, &mut Rng::with_seed(1), &mut out), 18);
        assert_eq!(choose(&pool, &mut Rng::with_seed(1), &mut out[..5]), 0);
        let nobody = Pool { runs: [&all[..1], &[]], own: Some(0) };
        assert_eq!(choose(&nobody, &mut Rng::with_seed(1), &mut out), 0);
    }
}
