//! Retry times for requests that are not served yet (BEP 31).
//!
//! A torrent may be announced seconds or minutes before it is registered, and a passkey used before
//! it is issued. A request refused for such a reason may be retried after 5 to 10 minutes, at a
//! different time for each client. A client that keeps retrying waits for half of the time since
//! its first request, at most an hour.
//!
//! Refused requests are remembered in a table of fixed size, one for each worker. If an entry was
//! overwritten by another, or was not used for three hours, its client starts again with a short
//! wait.

use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::time::Now;

/// Entries of a worker: 24 KiB, taken with its first refusal.
const ENTRIES: u32 = 2048;

/// The least seconds before the first retry.
const WAIT_S_MIN: u32 = 300;

/// Seconds over which the retries of clients are spread.
const SPREAD_S: u32 = 300;

/// The most seconds before any retry.
const WAIT_S_MAX: u32 = 3600;

/// Seconds without a request after which a client counts as new.
const SILENCE_S_MAX: u32 = 3 * WAIT_S_MAX;

/// The refused requests, by source, and the times of the first ones.
#[derive(Default)]
pub(super) struct Retries {
    entries: Vec<RetryEntry>,
}

#[derive(Clone, Copy, Default)]
struct RetryEntry {
    /// The part of the hash that identifies the entry.
    mark: u32,
    first_s: u32,
    latest_s: u32,
}

impl Retries {
    /// Records a refused request of `source` (IPv6: its /64) for `what`; returns the seconds after
    /// which it may retry.
    pub(super) fn wait_s(&mut self, now: Now, source: IpAddr, what: &[u8]) -> u32 {
        if self.entries.is_empty() {
            self.entries = vec![RetryEntry::default(); ENTRIES as usize];
        }
        let [mark, place] = hash(source, what);
        let now_s = u32::try_from(now.seconds()).unwrap_or(u32::MAX);
        let entry = &mut self.entries[(place % ENTRIES) as usize];
        if entry.mark != mark || now_s.saturating_sub(entry.latest_s) > SILENCE_S_MAX {
            *entry = RetryEntry { mark, first_s: now_s, latest_s: now_s };
        }
        entry.latest_s = now_s;
        let asking_s = now_s.saturating_sub(entry.first_s);
        (WAIT_S_MIN + mark % SPREAD_S).max((asking_s / 2).min(WAIT_S_MAX))
    }
}

/// Without a secret key: a source that overwrites another's entry only shortens the other's wait.
fn hash(source: IpAddr, what: &[u8]) -> [u32; 2] {
    let network = match source {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    };
    let mut bytes = Vec::with_capacity(8 + what.len());
    bytes.extend_from_slice(&network.to_be_bytes());
    bytes.extend_from_slice(what);
    let [a, b, c, d, place @ ..] = SipHasher13::new().hash(&bytes).to_be_bytes();
    [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes(place)]
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Now = Now::from_s(1_800_000_000);

    fn source(number: u8) -> IpAddr {
        IpAddr::from([198, 51, 100, number])
    }

    #[test]
    fn first_waits_are_of_5_to_10_minutes_and_spread() {
        let mut retries = Retries::default();
        let waits: Vec<u32> =
            (0..=255).map(|it| retries.wait_s(START, source(it), b"torrent")).collect();
        assert!(waits.iter().all(|it| (300..600).contains(it)), "{waits:?}");
        let distinct: std::collections::BTreeSet<_> = waits.iter().collect();
        assert!(distinct.len() > 128, "{} of 300", distinct.len());
        assert!(waits.iter().min().unwrap() < &320 && waits.iter().max().unwrap() > &580);
    }

    #[test]
    fn waits_grow_with_repetition_alone_to_an_hour() {
        let (mut retries, mut now) = (Retries::default(), START);
        let mut waits = Vec::new();
        for _ in 0..20 {
            let wait_s = retries.wait_s(now, source(1), b"torrent");
            waits.push(wait_s);
            now = now.plus_s(wait_s.into());
        }
        assert!(waits.is_sorted() && waits[1] < 600, "{waits:?}");
        assert_eq!(waits.last(), Some(&3600));
        assert!(waits.iter().filter(|it| **it < 3600).count() > 5, "{waits:?}");
        // Another torrent, another source, and the same after a long silence: new.
        assert!(retries.wait_s(now, source(1), b"other") < 600);
        assert!(retries.wait_s(now, source(2), b"torrent") < 600);
        assert!(retries.wait_s(now.plus_s(10_801), source(1), b"torrent") < 600);
    }

    #[test]
    fn whoever_asks_often_waits_by_how_long_it_has_been_asking() {
        let mut retries = Retries::default();
        let waits = (0..240).map(|it| retries.wait_s(START.plus_s(15 * it), source(1), b"x"));
        let waits: Vec<u32> = waits.collect();
        assert!(waits.is_sorted() && waits[20] < 600 && waits[239] == 239 * 15 / 2, "{waits:?}");
    }

    #[test]
    fn an_ipv6_64_is_one_source_and_the_table_does_not_grow() {
        let mut retries = Retries::default();
        let [one, other]: [IpAddr; 2] =
            ["2001:db8::1", "2001:db8::2"].map(|it| it.parse().unwrap());
        retries.wait_s(START, one, b"x");
        assert_eq!(retries.wait_s(START.plus_s(4000), other, b"x"), 2000);
        for number in 0..100_000_u32 {
            retries.wait_s(START, number.to_be_bytes().into(), b"x");
        }
        assert_eq!(retries.entries.capacity() * size_of::<RetryEntry>(), 24 * 1024);
    }
}
