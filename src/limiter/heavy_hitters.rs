//! Heavy hitters: the sources that are over the limit most often, so that the kernel can drop their
//! packets.
//!
//! Each worker has a few places for candidates. A source over the limit takes the place of its
//! hash, if that is free; a candidate keeps its place for as long as it sends more often than all
//! other sources with that place (Boyer-Moore majority vote). So heavy hitters stay, at the cost of
//! a comparison for each request over the limit. Only verified work counts: forged datagrams make
//! no candidate.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::time::Now;

/// Places for candidates of one worker.
const CANDIDATES: usize = 256;

/// Seconds for which a worker counts before it publishes.
const WINDOW_S: u64 = 1;

/// The least requests over the limit in a window for a source to be published.
const COUNT_MIN: u32 = 16;

/// The published result of a worker: its time, and how often each source was over the limit.
#[derive(Debug, Default)]
struct Published {
    at: Option<Now>,
    sources: Vec<(IpAddr, u32)>,
}

/// The published results of all workers.
#[derive(Debug, Default)]
pub(super) struct HeavyHitters {
    workers: Mutex<Vec<Arc<Mutex<Published>>>>,
}

impl HeavyHitters {
    /// Makes the candidates of a new worker, which are part of the result from now on.
    pub(super) fn join(&self) -> Candidates {
        let candidates = Candidates::default();
        self.workers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(candidates.published.clone());
        candidates
    }

    /// Sources that were over the limit `rate_min` times a second or more, in the last windows of
    /// all workers, the worst first.
    pub(super) fn worst(&self, now: Now, rate_min: u32) -> Vec<(IpAddr, u32)> {
        let mut sums: HashMap<IpAddr, u32> = HashMap::new();
        for worker in &*self.workers.lock().unwrap_or_else(PoisonError::into_inner) {
            let published = worker.lock().unwrap_or_else(PoisonError::into_inner);
            if published.at.is_some_and(|it| now <= it.plus_s(2 * WINDOW_S)) {
                for (source, count) in &published.sources {
                    let sum = sums.entry(*source).or_default();
                    *sum = sum.saturating_add(*count);
                }
            }
        }
        let mut worst: Vec<_> = sums.into_iter().filter(|it| it.1 >= rate_min).collect();
        worst.sort_unstable_by_key(|it| (std::cmp::Reverse(it.1), it.0));
        worst
    }
}

/// One worker's candidates.
#[derive(Debug)]
pub(super) struct Candidates {
    published: Arc<Mutex<Published>>,
    ends: Option<Now>,
    candidates: Box<[Candidate; CANDIDATES]>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    source: Option<IpAddr>,
    /// The lead over other sources in the majority vote.
    lead: u32,
    /// Requests since it took the place.
    count: u32,
}

impl Default for Candidates {
    fn default() -> Self {
        let candidates = Box::new([Candidate::default(); CANDIDATES]);
        Self { published: Arc::default(), ends: None, candidates }
    }
}

impl Candidates {
    /// Notes that a source was over the limit once more; `hash` is that of its address.
    #[inline]
    pub(super) fn note(&mut self, now: Now, source: IpAddr, hash: u64) {
        if self.ends.is_none_or(|ends| now >= ends) {
            self.publish(now);
        }
        let candidate = &mut self.candidates[(hash >> 40) as usize % CANDIDATES];
        if candidate.source == Some(source) {
            candidate.lead = candidate.lead.saturating_add(1);
            candidate.count = candidate.count.saturating_add(1);
        } else if candidate.lead > 0 {
            candidate.lead -= 1;
        } else {
            *candidate = Candidate { source: Some(source), lead: 1, count: 1 };
        }
    }

    #[cold]
    #[inline(never)]
    fn publish(&mut self, now: Now) {
        // A window that began long ago covers more than a second, so it is not published.
        let is_recent = self.ends.is_some_and(|ends| now < ends.plus_s(WINDOW_S));
        let mut published = self.published.lock().unwrap_or_else(PoisonError::into_inner);
        published.at = self.ends;
        published.sources.clear();
        let loud = self.candidates.iter().filter(|it| is_recent && it.count >= COUNT_MIN);
        published.sources.extend(loud.filter_map(|it| Some((it.source?, it.count))));
        drop(published);
        self.candidates.fill(Candidate::default());
        self.ends = Some(now.plus_s(WINDOW_S));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const START: Now = Now::from_s(1_800_000_000);

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0808_0000 + number).into()
    }

    /// Two workers alternately get this many requests of each source within a second.
    fn worst(requests: &[(u32, u32)], rate_min: u32) -> Vec<(IpAddr, u32)> {
        let heavy_hitters = HeavyHitters::default();
        let mut workers = [heavy_hitters.join(), heavy_hitters.join()];
        let most = requests.iter().map(|it| it.1).max().unwrap();
        for round in 0..most {
            let now = Now::from_ns(START.ns() + u64::from(round) * 900_000_000 / u64::from(most));
            for (source, _) in requests.iter().filter(|it| round < it.1) {
                let hash = u64::from(*source) << 40;
                workers.iter_mut().for_each(|it| it.note(now, address(*source), hash));
            }
        }
        let end = START.plus_s(1);
        workers.iter_mut().for_each(|it| it.note(end, address(99), 99 << 40));
        assert_eq!(heavy_hitters.worst(end.plus_s(4), 1), [], "old news is none");
        heavy_hitters.worst(end, rate_min)
    }

    #[test]
    fn the_loud_are_found_whatever_others_share_their_place() {
        let collides = 7 + 256;
        let found = worst(&[(7, 1000), (collides, 200), (8, 500), (9, 15)], 1);
        assert_eq!(found.iter().map(|it| it.0).collect::<Vec<_>>(), [address(7), address(8)]);
        assert!(found[0].1 >= 1600, "{found:?}");
        assert_eq!(found[1].1, 1000);
        assert_eq!(worst(&[(7, 1000), (8, 500)], 1001), [(address(7), 2000)]);
    }
}
