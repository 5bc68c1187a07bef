//! What software peers run, estimated from what their announces say.
//!
//! The store keeps no peer ids: they would triple its size. Instead each worker counts announces by
//! software and version, in a table of its own that only it writes, so an announce costs a
//! multiplication, a comparison and an addition. Of the last full interval and the one under way,
//! the shares of all announces are the shares of all peers, since everyone announces about once in
//! an interval; [`Clients::estimate`] scales them to the number of peers. WebRTC peers come back
//! much more often and are counted and scaled by themselves.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::software::{self, Prefix, SOFTWARE};
use crate::metrics::Counter;
use crate::store::Totals;
use crate::time::Now;
use crate::types::{Contact, Kind, PeerId};

/// The name of software that is in no table, and of versions that nobody can read.
const OTHER: &str = "other";

/// The tallies of all workers.
#[derive(Default)]
pub struct Clients {
    tallies: Mutex<Vec<Arc<Tally>>>,
}

/// Software, version, peers.
pub type Share = (String, String, u64);

impl Clients {
    /// A new worker's own tally, from now on part of the sum.
    pub(super) fn join(&self) -> Counting {
        let counting = Counting::default();
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.push(counting.tally.clone());
        counting
    }

    /// How many of the peers there are run what: adds up to them exactly, except where nobody has
    /// announced yet. Sorted by name and version.
    pub fn estimate(&self, now: Now, totals: &Totals) -> Vec<Share> {
        let [mut by_port, mut by_socket] = [Counts::new(), Counts::new()];
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        for window in tallies.iter().flat_map(|it| it.windows.load().still_valid(now)) {
            window.by_port.add_to(&mut by_port);
            window.by_socket.add_to(&mut by_socket);
        }
        drop(tallies);
        let peers = |kind: Kind| totals.seeders[kind as usize] + totals.leechers[kind as usize];
        let mut sum = scaled(by_port, peers(Kind::V4) + peers(Kind::V6));
        for (who, peers) in scaled(by_socket, peers(Kind::Web)) {
            *sum.entry(who).or_default() += peers;
        }
        sum.retain(|_, peers| *peers > 0);
        sum.into_iter().map(|((name, version), peers)| (name.to_owned(), version, peers)).collect()
    }
}

/// Announces by software and version.
type Counts = BTreeMap<(&'static str, String), u64>;

/// Scales counts so that they add up to `peers`: each gets its share rounded down, and those that
/// lost most by that get what is left (largest remainders), small ones first.
fn scaled(mut counts: Counts, peers: u64) -> Counts {
    let announces: u128 = counts.values().map(|&it| u128::from(it)).sum();
    if announces == 0 {
        return Counts::new();
    }
    let mut left = peers;
    let mut lost = Vec::with_capacity(counts.len());
    for count in counts.values_mut() {
        let product = u128::from(*count) * u128::from(peers);
        *count = u64::try_from(product / announces).unwrap_or(peers);
        left -= *count;
        lost.push((product % announces, Reverse(*count), count));
    }
    lost.sort_by_key(|&(lost, small, _)| Reverse((lost, small)));
    for (_, _, count) in lost.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        *count += 1;
    }
    counts
}

/// One worker's counts, as others see them.
#[derive(Default)]
struct Tally {
    windows: ArcSwap<Windows>,
}

/// The interval under way, and the one before.
#[derive(Default)]
struct Windows {
    /// When the one under way began; `None` before the first.
    since: Option<Now>,
    length_s: u64,
    current: Arc<Window>,
    previous: Arc<Window>,
}

impl Windows {
    /// What still says something of the last two intervals.
    fn still_valid(&self, now: Now) -> Vec<Arc<Window>> {
        let within =
            |lengths| self.since.is_some_and(|since| now <= since.plus_s(lengths * self.length_s));
        let current = within(2).then(|| self.current.clone());
        let previous = within(1).then(|| self.previous.clone());
        current.into_iter().chain(previous).collect()
    }
}

/// One worker's counts, as it counts.
pub(super) struct Counting {
    tally: Arc<Tally>,
    window: Arc<Window>,
    /// When the window is over; the first was over before anybody came.
    ends: Now,
    /// What was found out in this window of prefixes without a slot, in whichever table it was: to
    /// find it out takes an allocation or two, which is too much for every announce.
    slotless: [Option<(u64, Slotless)>; SLOTLESS],
}

/// Prefixes without a slot that are remembered; a power of two.
const SLOTLESS: usize = 64;

/// Where a prefix without a slot is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slotless {
    /// Among the other versions of known software, by its index.
    OtherVersion(usize),
    /// Among all others.
    Other,
}

impl Default for Counting {
    fn default() -> Self {
        let (tally, window) = Default::default();
        Self { tally, window, ends: Now::from_s(0), slotless: [None; SLOTLESS] }
    }
}

impl Counting {
    /// Counts one announce of a peer that stays. A window is `interval_s` long.
    #[inline]
    pub(super) fn count(&mut self, now: Now, interval_s: u32, contact: Contact, peer_id: &PeerId) {
        if now >= self.ends {
            self.start_window(now, interval_s.into());
        }
        let PeerId([prefix @ .., _, _, _, _, _, _, _, _, _, _, _, _]) = peer_id;
        let table = match contact {
            Contact::Port(_) => &self.window.by_port,
            Contact::Web(_) => &self.window.by_socket,
        };
        let key = u64::from_ne_bytes(*prefix);
        if table.count(key) {
            return;
        }
        let place = &mut self.slotless[hash(key, SLOTLESS)];
        match *place {
            Some((it, slotless)) if it == key => table.count_slotless(slotless),
            _ => *place = table.count_unseen(prefix, key).map(|it| (key, it)).or(*place),
        }
    }

    /// The window under way becomes the previous one. Readers get both at once.
    #[cold]
    fn start_window(&mut self, now: Now, length_s: u64) {
        let is_recent = now < self.ends.plus_s(length_s);
        let previous = std::mem::take(&mut self.window);
        let previous = if is_recent { previous } else { Arc::default() };
        let current = self.window.clone();
        self.ends = now.plus_s(length_s);
        self.slotless = [None; SLOTLESS]; // there is room again
        self.tally.windows.store(Arc::new(Windows {
            since: Some(now),
            length_s,
            current,
            previous,
        }));
    }
}

/// What is counted in one interval.
#[derive(Default)]
struct Window {
    by_port: Table,
    by_socket: Table,
}

/// Versions with a count of their own; a power of two.
const SLOTS: usize = 512;
/// Slots where a version may be.
const PROBES: usize = 8;

/// Counts by the first bytes of the peer id, as long as these are of known software and there is
/// room; one writer, any number of readers.
struct Table {
    slots: [Slot; SLOTS],
    /// Announces of known software whose version cannot be read or has found no room.
    other_versions: [Counter; SOFTWARE],
    /// All other announces.
    others: Counter,
}

/// A version's count. The key is its [`Prefix`]; 0, which is nobody's, while it is free.
#[derive(Default)]
struct Slot {
    key: AtomicU64,
    announces: Counter,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| Slot::default()),
            other_versions: std::array::from_fn(|_| Counter::default()),
            others: Counter::default(),
        }
    }
}

/// A place for a key among `places`, a power of two.
#[inline]
fn hash(key: u64, places: usize) -> usize {
    let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - places.ilog2());
    #[expect(clippy::cast_possible_truncation, reason = "a few bits")]
    let hash = hash as usize;
    hash
}

impl Table {
    /// Counts a prefix that has a slot; says whether it has.
    #[inline]
    fn count(&self, key: u64) -> bool {
        for slot in self.places(key) {
            match slot.key.load(Ordering::Relaxed) {
                0 => break,
                it if it == key => {
                    slot.announces.add(1);
                    return true;
                }
                _ => {}
            }
        }
        false
    }

    /// Where a key may be.
    #[inline]
    fn places(&self, key: u64) -> impl Iterator<Item = &Slot> {
        let first = hash(key, SLOTS);
        (first..first + PROBES).map(|at| &self.slots[at % SLOTS])
    }

    /// Counts what has no slot, and gives it one if it deserves it; where it does not, says as
    /// what it was counted.
    #[cold]
    fn count_unseen(&self, prefix: &Prefix, key: u64) -> Option<Slotless> {
        let software = software::of(prefix);
        let free = self.places(key).find(|slot| slot.key.load(Ordering::Relaxed) == 0);
        let slotless = match (software, free) {
            (Some(it), Some(slot)) if it.has_version => {
                slot.announces.add(1);
                slot.key.store(key, Ordering::Relaxed);
                return None;
            }
            (Some(it), _) => Slotless::OtherVersion(it.index),
            (None, _) => Slotless::Other,
        };
        self.count_slotless(slotless);
        Some(slotless)
    }

    #[inline]
    fn count_slotless(&self, slotless: Slotless) {
        match slotless {
            Slotless::OtherVersion(index) => self.other_versions[index].add(1),
            Slotless::Other => self.others.add(1),
        }
    }

    fn add_to(&self, counts: &mut Counts) {
        let mut add = |name, version, announces| {
            if announces > 0 {
                *counts.entry((name, version)).or_default() += announces;
            }
        };
        for slot in &self.slots {
            let prefix = slot.key.load(Ordering::Relaxed).to_ne_bytes();
            if let Some(software) = software::of(&prefix)
                && let Some(version) = software::version(software.index, &prefix)
            {
                add(software::name(software.index), version, slot.announces.get());
            }
        }
        for (index, other) in self.other_versions.iter().enumerate() {
            add(software::name(index), OTHER.to_owned(), other.get());
        }
        add(OTHER, OTHER.to_owned(), self.others.get());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::WebPeer;

    const START: Now = Now::from_s(1_800_000_000);
    const PORT: Contact = Contact::Port(1);
    const WEB: Contact = Contact::Web(WebPeer([0; 16]));

    fn count(counting: &mut Counting, times: u32, now: Now, contact: Contact, prefix: &Prefix) {
        let mut id = [7; 20];
        id[..8].copy_from_slice(prefix);
        (0..times).for_each(|_| counting.count(now, 1800, contact, &PeerId(id)));
    }

    /// Leechers by kind, and what they run.
    fn estimate(clients: &Clients, now: Now, leechers: [u64; 3]) -> Vec<(String, u64)> {
        let totals = Totals { leechers, ..Totals::default() };
        let all = clients.estimate(now, &totals);
        all.into_iter().map(|(name, version, peers)| (format!("{name} {version}"), peers)).collect()
    }

    fn share(text: &str, peers: u64) -> (String, u64) {
        (text.to_owned(), peers)
    }

    #[test]
    fn shares_of_announces_scale_to_the_peers_of_all_workers() {
        let clients = Clients::default();
        let (mut one, mut two) = (clients.join(), clients.join());
        count(&mut one, 300, START, PORT, b"-qB5010-");
        count(&mut one, 100, START, PORT, b"-TR4060-");
        count(&mut two, 300, START, PORT, b"-qB5010-");
        count(&mut two, 100, START, PORT, b"-XX9999-");
        count(&mut two, 1500, START, WEB, b"-WW0123-");
        let expected =
            [share("Transmission 4.0.6", 5), share("WebTorrent 1.23", 4), share("other other", 5)];
        let found = estimate(&clients, START, [30, 10, 4]);
        let (qbittorrent, others): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|it| it.0 == "qBittorrent 5.0.1");
        assert_eq!(qbittorrent, [share("qBittorrent 5.0.1", 30)]);
        assert_eq!(others, expected);
    }

    #[test]
    fn shares_add_up_to_the_peers_whatever_rounding_loses() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..500 {
            let clients = Clients::default();
            let mut counting = clients.join();
            for version in b'1'..=b'7' {
                let prefix = [b'-', b'q', b'B', version, b'0', b'0', b'0', b'-'];
                count(&mut counting, random.u32(1..50), START, PORT, &prefix);
            }
            let peers = random.u64(..2000);
            let found = estimate(&clients, START, [peers, 0, 0]);
            assert_eq!(found.iter().map(|it| it.1).sum::<u64>(), peers);
        }
        let clients = Clients::default();
        assert_eq!(estimate(&clients, START, [5, 5, 5]), [], "nobody has announced yet");
        count(&mut clients.join(), 3, START, PORT, b"-qB5010-");
        assert_eq!(estimate(&clients, START, [0, 0, 9]), [], "none of these is known to run it");
        let most = u64::MAX / 8;
        assert_eq!(estimate(&clients, START, [most, 0, 0]), [share("qBittorrent 5.0.1", most)]);
    }

    #[test]
    fn what_was_announced_two_intervals_ago_counts_no_more() {
        let clients = Clients::default();
        let mut counting = clients.join();
        let (old, new) = (b"-qB4000-", b"-qB5000-");
        count(&mut counting, 10, START, PORT, old);
        count(&mut counting, 30, START.plus_s(1800), PORT, new);
        let found = estimate(&clients, START.plus_s(1801), [40, 0, 0]);
        assert_eq!(found, [share("qBittorrent 4.0.0", 10), share("qBittorrent 5.0.0", 30)]);
        let now = START.plus_s(3601);
        let only_new = [share("qBittorrent 5.0.0", 40)];
        assert_eq!(estimate(&clients, now, [40, 0, 0]), only_new, "nobody has come since");
        count(&mut counting, 30, now, PORT, new);
        assert_eq!(estimate(&clients, now, [40, 0, 0]), only_new);
        assert_eq!(estimate(&clients, now.plus_s(3601), [40, 0, 0]), []);
        count(&mut counting, 10, now.plus_s(10_000), PORT, old);
        let only_old = [share("qBittorrent 4.0.0", 40)];
        assert_eq!(estimate(&clients, now.plus_s(10_000), [40, 0, 0]), only_old, "after a pause");
    }

    #[test]
    fn made_up_versions_fill_no_more_than_the_table() {
        let clients = Clients::default();
        let mut counting = clients.join();
        count(&mut counting, 1, START, PORT, b"-qB5010-");
        let digits = b"0123456789abcdefghijklmnopqrstuvwxyz";
        for number in 0..digits.len().pow(3) {
            let digit = |place: u32| digits[number / digits.len().pow(place) % digits.len()];
            let prefix = [b'-', b'T', b'R', digit(2), digit(1), digit(0), b'1', b'-'];
            count(&mut counting, 1, START, PORT, &prefix);
        }
        count(&mut counting, 1, START, PORT, &[0; 8]);
        count(&mut counting, 1, START, PORT, b"-qB<i>!-");
        let announces = 46_656 + 3;
        let found = estimate(&clients, START, [announces, 0, 0]);
        assert!(found.len() <= SLOTS + 3, "{}", found.len());
        assert_eq!(found.iter().map(|it| it.1).sum::<u64>(), announces);
        for one in ["qBittorrent 5.0.1", "qBittorrent other", "other other"] {
            assert!(found.contains(&share(one, 1)), "{one}");
        }
        let rest = found.iter().find(|it| it.0 == "Transmission other").unwrap();
        assert!(rest.1 > 40_000, "{}", rest.1);
    }
}
