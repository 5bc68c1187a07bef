//! Detects address translation (NAT) or a proxy in front of the tracker, from the sources of
//! announces.
//!
//! Behind a NAT (Kubernetes with `externalTrafficPolicy: Cluster`, a container bridge, a reverse
//! proxy that is not configured) every client has the same address, and every peer in a response is
//! useless. Only the tracker can detect this: most announces come from one address, or from
//! unroutable addresses.
//!
//! Each worker keeps a window of a minute. In it a Boyer-Moore majority vote finds the only address
//! that may have a majority, at the cost of one comparison per announce; the next window counts
//! that address exactly.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::time::Now;
use crate::types::Scope;

/// Seconds in a window.
const WINDOW_S: u64 = 60;

/// The least announces in a window for meaningful shares.
const ANNOUNCES_MIN: u64 = 1000;

/// The windows of all workers.
#[derive(Debug, Default)]
pub struct SourceMonitor {
    windows: Mutex<Vec<Arc<Mutex<FullWindow>>>>,
}

/// One worker's latest full window.
#[derive(Clone, Copy, Debug, Default)]
struct FullWindow {
    ended: Option<Now>,
    announces: u64,
    unroutable: u64,
    one: Option<(IpAddr, u64)>,
}

/// An anomaly in the sources of announces.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SourceAnomaly {
    /// This address sends this share of all announces, more than half.
    SingleAddress(IpAddr, f64),
    /// This share, more than half, comes from unroutable addresses.
    Unroutable(f64),
}

impl SourceMonitor {
    /// Makes the window of a new worker, which is part of the result from now on.
    pub(super) fn join(&self) -> SourceWindow {
        let window = SourceWindow::default();
        self.windows.lock().unwrap_or_else(PoisonError::into_inner).push(window.published.clone());
        window
    }

    /// The anomaly in the last windows of all workers, if any.
    pub fn anomaly(&self, now: Now) -> Option<SourceAnomaly> {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh =
            |it: &FullWindow| it.ended.is_some_and(|ended| now <= ended.plus_s(2 * WINDOW_S));
        let windows: Vec<FullWindow> = windows
            .iter()
            .map(|it| *it.lock().unwrap_or_else(PoisonError::into_inner))
            .filter(fresh)
            .collect();
        let sum = |of: fn(&FullWindow) -> u64| windows.iter().map(of).sum::<u64>();
        let announces = sum(|it| it.announces);
        if announces < ANNOUNCES_MIN {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "a share, to be read by people")]
        let share = |count: u64| count as f64 / announces as f64;
        let of_one = |address: IpAddr| -> u64 {
            let same = windows.iter().filter_map(|it| it.one).filter(|it| it.0 == address);
            same.map(|it| it.1).sum()
        };
        let candidates = windows.iter().filter_map(|it| it.one).map(|it| it.0);
        let most = candidates.map(|it| (it, of_one(it))).max_by_key(|it| it.1);
        match most {
            Some((address, count)) if share(count) > 0.5 => {
                Some(SourceAnomaly::SingleAddress(address, share(count)))
            }
            _ => {
                let unroutable = share(sum(|it| it.unroutable));
                (unroutable > 0.5).then_some(SourceAnomaly::Unroutable(unroutable))
            }
        }
    }
}

/// One worker's current window.
#[derive(Debug, Default)]
pub(super) struct SourceWindow {
    published: Arc<Mutex<FullWindow>>,
    ends: Option<Now>,
    announces: u64,
    unroutable: u64,
    /// The address found by the last window's vote, and its announces in this one.
    counted: Option<(IpAddr, u64)>,
    /// The vote of this window.
    candidate: Option<IpAddr>,
    lead: u64,
}

impl SourceWindow {
    /// Records one announce, unless it is from the host itself: that passes no NAT.
    #[inline]
    pub(super) fn note(&mut self, now: Now, source: IpAddr) {
        let scope = Scope::of(source);
        if scope == Scope::Loopback {
            return;
        }
        if self.ends.is_none_or(|ends| now >= ends) {
            self.start_next(now);
        }
        self.announces += 1;
        self.unroutable += u64::from(scope == Scope::Private);
        if let Some((address, count)) = &mut self.counted
            && *address == source
        {
            *count += 1;
        }
        if self.lead == 0 {
            self.candidate = Some(source);
        }
        if self.candidate == Some(source) {
            self.lead += 1;
        } else {
            self.lead -= 1;
        }
    }

    /// Publishes the window that has ended, and begins the next.
    #[cold]
    fn start_next(&mut self, now: Now) {
        if self.ends.is_some() {
            let full = FullWindow {
                ended: Some(now),
                announces: self.announces,
                unroutable: self.unroutable,
                one: self.counted,
            };
            *self.published.lock().unwrap_or_else(PoisonError::into_inner) = full;
        }
        let counted = self.candidate.filter(|_| self.lead > 0).map(|it| (it, 0));
        let published = self.published.clone();
        let ends = Some(now.plus_s(WINDOW_S));
        *self = Self { published, ends, counted, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Now = Now::from_s(1_800_000_000);

    fn note(window: &mut SourceWindow, second: u64, times: u64, source: &str) {
        let source = source.parse().unwrap();
        (0..times).for_each(|_| window.note(START.plus_s(second), source));
    }

    #[test]
    fn one_address_in_front_of_everyone_is_noticed_across_workers() {
        let sources = SourceMonitor::default();
        let mut workers = [sources.join(), sources.join()];
        for minute in 0..3 {
            for window in &mut workers {
                for _ in 0..400 {
                    note(window, minute * 60, 3, "8.8.8.8");
                    note(window, minute * 60, 1, "9.9.9.9");
                    note(window, minute * 60, 1, "10.0.0.1");
                }
            }
        }
        let found = sources.anomaly(START.plus_s(121));
        assert_eq!(found, Some(SourceAnomaly::SingleAddress("8.8.8.8".parse().unwrap(), 0.6)));
        assert_eq!(sources.anomaly(START.plus_s(600)), None, "nobody has come since");
    }

    #[test]
    fn a_translator_with_many_private_addresses_is_noticed() {
        let sources = SourceMonitor::default();
        let mut window = sources.join();
        for minute in 0..3 {
            for host in 0..200 {
                note(&mut window, minute * 60, 4, &format!("10.0.0.{host}"));
                note(&mut window, minute * 60, 3, &format!("8.8.8.{host}"));
            }
        }
        let found = sources.anomaly(START.plus_s(121));
        assert_eq!(found, Some(SourceAnomaly::Unroutable(800.0 / 1400.0)));
    }

    #[test]
    fn ordinary_crowds_few_announces_and_this_host_are_not_odd() {
        let sources = SourceMonitor::default();
        let mut window = sources.join();
        for minute in 0..3 {
            for host in 0..100 {
                note(&mut window, minute * 60, 20, &format!("8.8.{host}.8"));
            }
            note(&mut window, minute * 60, 1900, "9.9.9.9");
        }
        assert_eq!(sources.anomaly(START.plus_s(121)), None, "almost half is not most");
        let few = SourceMonitor::default();
        let mut window = few.join();
        (0..3).for_each(|minute| note(&mut window, minute * 60, ANNOUNCES_MIN - 1, "9.9.9.9"));
        assert_eq!(few.anomaly(START.plus_s(121)), None);
    }
}
