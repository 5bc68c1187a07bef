//! Where announces come from, to notice that something stands in front of the tracker.
//!
//! Behind a translator of addresses (Kubernetes with `externalTrafficPolicy: Cluster`, a container
//! bridge, a reverse proxy nobody told us of) every client has the same address, and every peer
//! that is handed out is useless. Nobody but us can see that, so we have to say it: most announces
//! come from one address, or from addresses that the Internet does not know.
//!
//! Each worker keeps a window of a minute. In it a vote after Boyer and Moore finds the one address
//! that may hold a majority, at the price of a comparison an announce; the window after counts that
//! address exactly.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use crate::time::Now;
use crate::types::Scope;

/// Seconds in a window.
const WINDOW_S: u64 = 60;

/// Announces in a window below which its shares mean nothing.
const ANNOUNCES_MIN: u64 = 1000;

/// What the workers saw.
#[derive(Debug, Default)]
pub struct Sources {
    windows: Mutex<Vec<Arc<Mutex<Seen>>>>,
}

/// One worker's latest full window.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    ended: Option<Now>,
    announces: u64,
    unroutable: u64,
    one: Option<(IpAddr, u64)>,
}

/// What is wrong with where announces come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Oddity {
    /// This address makes this share of all announces, more than half.
    One(IpAddr, f64),
    /// This share, more than half, comes from addresses that the Internet does not know.
    Unroutable(f64),
}

impl Sources {
    /// A new worker's own watch, from now on part of the whole.
    pub(super) fn join(&self) -> Watch {
        let watch = Watch::default();
        self.windows.lock().unwrap_or_else(PoisonError::into_inner).push(watch.published.clone());
        watch
    }

    /// What the last windows of all workers come to.
    pub fn oddity(&self, now: Now) -> Option<Oddity> {
        let windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |it: &Seen| it.ended.is_some_and(|ended| now <= ended.plus_s(2 * WINDOW_S));
        let windows: Vec<Seen> = windows
            .iter()
            .map(|it| *it.lock().unwrap_or_else(PoisonError::into_inner))
            .filter(fresh)
            .collect();
        let sum = |of: fn(&Seen) -> u64| windows.iter().map(of).sum::<u64>();
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
                Some(Oddity::One(address, share(count)))
            }
            _ => {
                let unroutable = share(sum(|it| it.unroutable));
                (unroutable > 0.5).then_some(Oddity::Unroutable(unroutable))
            }
        }
    }
}

/// One worker's window under way.
#[derive(Debug, Default)]
pub(super) struct Watch {
    published: Arc<Mutex<Seen>>,
    ends: Option<Now>,
    announces: u64,
    unroutable: u64,
    /// The address found by the last window's vote, and its announces in this one.
    counted: Option<(IpAddr, u64)>,
    /// The vote of this window.
    candidate: Option<IpAddr>,
    lead: u64,
}

impl Watch {
    /// Notes one announce. Those from the host itself say nothing about what stands in front.
    #[inline]
    pub(super) fn note(&mut self, now: Now, source: IpAddr) {
        let scope = Scope::of(source);
        if scope == Scope::Loopback {
            return;
        }
        if self.ends.is_none_or(|ends| now >= ends) {
            self.turn(now);
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
    fn turn(&mut self, now: Now) {
        if self.ends.is_some() {
            let seen = Seen {
                ended: Some(now),
                announces: self.announces,
                unroutable: self.unroutable,
                one: self.counted,
            };
            *self.published.lock().unwrap_or_else(PoisonError::into_inner) = seen;
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

    fn note(watch: &mut Watch, second: u64, times: u64, source: &str) {
        let source = source.parse().unwrap();
        (0..times).for_each(|_| watch.note(START.plus_s(second), source));
    }

    #[test]
    fn one_address_in_front_of_everyone_is_noticed_across_workers() {
        let sources = Sources::default();
        let mut workers = [sources.join(), sources.join()];
        for minute in 0..3 {
            for watch in &mut workers {
                for _ in 0..400 {
                    note(watch, minute * 60, 3, "8.8.8.8");
                    note(watch, minute * 60, 1, "9.9.9.9");
                    note(watch, minute * 60, 1, "10.0.0.1");
                }
            }
        }
        let found = sources.oddity(START.plus_s(121));
        assert_eq!(found, Some(Oddity::One("8.8.8.8".parse().unwrap(), 0.6)));
        assert_eq!(sources.oddity(START.plus_s(600)), None, "nobody has come since");
    }

    #[test]
    fn a_translator_with_many_private_addresses_is_noticed() {
        let sources = Sources::default();
        let mut watch = sources.join();
        for minute in 0..3 {
            for host in 0..200 {
                note(&mut watch, minute * 60, 4, &format!("10.0.0.{host}"));
                note(&mut watch, minute * 60, 3, &format!("8.8.8.{host}"));
            }
        }
        let found = sources.oddity(START.plus_s(121));
        assert_eq!(found, Some(Oddity::Unroutable(800.0 / 1400.0)));
    }

    #[test]
    fn ordinary_crowds_few_announces_and_this_host_are_not_odd() {
        let sources = Sources::default();
        let mut watch = sources.join();
        for minute in 0..3 {
            for host in 0..100 {
                note(&mut watch, minute * 60, 20, &format!("8.8.{host}.8"));
            }
            note(&mut watch, minute * 60, 1900, "9.9.9.9");
        }
        assert_eq!(sources.oddity(START.plus_s(121)), None, "almost half is not most");
        let few = Sources::default();
        let mut watch = few.join();
        (0..3).for_each(|minute| note(&mut watch, minute * 60, ANNOUNCES_MIN - 1, "9.9.9.9"));
        assert_eq!(few.oddity(START.plus_s(121)), None);
    }
}
