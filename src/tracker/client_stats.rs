//! Estimates the software of peers from the peer ids of their announces.
//!
//! The store keeps no peer ids: they would triple its size. Instead each worker counts peers by
//! software and version, in a table that only this worker writes. Time is divided into windows, the
//! same for all workers, each at least as long as the longest interval; the store returns the time
//! of a peer's previous announce, and so whether the peer was already counted in this window. With
//! its first announce in the current window, a peer is removed from the previous one; a peer that
//! leaves is removed as well. So a peer counts once in the last two windows, however often it
//! announces, and [`ClientStats::estimate`] scales the counts to the number of peers. WebRTC peers
//! are counted and scaled separately.
//!
//! A peer is removed from the table of the worker that gets its announce, which may differ from the
//! worker that counted it: only the sums of all workers are meaningful. It is removed under the
//! peer id of that announce, which may be forged. So for each source, window and software, no more
//! peers are removed than were counted ([`Added`]): a source cannot lower the counts of others.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ahash::RandomState;
use arc_swap::ArcSwap;

use super::software::{self, SOFTWARE, SoftwarePrefix};
use crate::counters::Counter;
use crate::store::{StoreTotals, TICK_S};
use crate::time::Now;
use crate::types::{Announce, Contact, PeerId, PeerKind};

/// The name of software that is not in a table, and of versions that cannot be read.
const OTHER: &str = "other";

/// The tallies of all workers.
#[derive(Default)]
pub struct ClientStats {
    tallies: Mutex<Vec<Arc<Tally>>>,
    /// When counting began: peers whose latest announce is older were not counted.
    since_s: Arc<OnceLock<u64>>,
    added: Arc<Added>,
}

/// Software, version, peers.
pub type ClientShare = (String, String, u64);

impl ClientStats {
    /// Makes the counter of a new worker, which is part of the sum from now on.
    pub(super) fn join(&self) -> ClientCounter {
        let counter = ClientCounter {
            shared_since_s: self.since_s.clone(),
            added: self.added.clone(),
            ..ClientCounter::default()
        };
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        tallies.push(counter.tally.clone());
        counter
    }

    /// Estimates the peers of each software: the sum equals the number of peers exactly, except
    /// where no peer has announced yet. Sorted by name and version.
    pub fn estimate(&self, now: Now, totals: &StoreTotals) -> Vec<ClientShare> {
        let [mut by_port, mut by_socket] = [SoftwareCounts::new(), SoftwareCounts::new()];
        let tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        for window in tallies.iter().flat_map(|it| it.windows.load().still_valid(now)) {
            window.by_port.add_to(&mut by_port);
            window.by_socket.add_to(&mut by_socket);
        }
        drop(tallies);
        let peers = |kind: PeerKind| totals.seeders[kind as usize] + totals.leechers[kind as usize];
        let [by_port, by_socket] = [by_port, by_socket].map(counted);
        let mut sum = scaled(by_port, peers(PeerKind::V4) + peers(PeerKind::V6));
        for (who, peers) in scaled(by_socket, peers(PeerKind::Web)) {
            *sum.entry(who).or_default() += peers;
        }
        sum.retain(|_, peers| *peers > 0);
        sum.into_iter().map(|((name, version), peers)| (name.to_owned(), version, peers)).collect()
    }
}

/// Peers by software and version.
type SoftwareCounts = BTreeMap<(&'static str, String), u64>;

/// The sums of the workers' counts, each of which may be negative. The sum may also be negative,
/// where a peer leaves under another peer id than it joined with: it then counts as 0.
fn counted(mut counts: SoftwareCounts) -> SoftwareCounts {
    counts.values_mut().for_each(|it| *it = u64::try_from(it.cast_signed()).unwrap_or(0));
    counts
}

/// Scales counts so that they add up to `peers`: each gets its share rounded down, and the rest
/// goes to the largest remainders, small counts first.
fn scaled(mut counts: SoftwareCounts, peers: u64) -> SoftwareCounts {
    let counted: u128 = counts.values().map(|&it| u128::from(it)).sum();
    if counted == 0 {
        return SoftwareCounts::new();
    }
    let mut left = peers;
    let mut lost = Vec::with_capacity(counts.len());
    for count in counts.values_mut() {
        let product = u128::from(*count) * u128::from(peers);
        *count = u64::try_from(product / counted).unwrap_or(peers);
        left -= *count;
        lost.push((product % counted, Reverse(*count), count));
    }
    lost.sort_by_key(|&(lost, small, _)| Reverse((lost, small)));
    for (_, _, count) in lost.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
        *count += 1;
    }
    counts
}

/// One worker's counts, for readers on other threads.
#[derive(Default)]
struct Tally {
    windows: ArcSwap<Windows>,
}

/// The current window, and the previous one.
#[derive(Default)]
struct Windows {
    /// The number of the current window among all windows of this length; `None` before the first.
    number: Option<u64>,
    length_s: u64,
    current: Arc<Window>,
    previous: Arc<Window>,
}

impl Windows {
    /// The windows of the last two that are still valid.
    fn still_valid(&self, now: Now) -> Vec<Arc<Window>> {
        let Some(number) = self.number else { return Vec::new() };
        let ago = (now.seconds() / self.length_s).saturating_sub(number);
        match ago {
            0 => vec![self.current.clone(), self.previous.clone()],
            1 => vec![self.current.clone()], // by now the previous window
            _ => Vec::new(),
        }
    }
}

/// One worker's counts, for the worker itself.
#[derive(Default)]
pub(super) struct ClientCounter {
    tally: Arc<Tally>,
    shared_since_s: Arc<OnceLock<u64>>,
    added: Arc<Added>,
    /// Announces before this second were not counted.
    since_s: u64,
    /// The requested length of a window; 0 before the first.
    asked_s: u32,
    /// A window's length in seconds.
    length_s: u64,
    /// When the current window began, in seconds.
    start_s: u64,
    current: Arc<Window>,
    previous: Arc<Window>,
    /// Remembered results for prefixes without a slot in this window, in either table: computing a
    /// result takes one or two allocations, too much for every announce.
    slotless: Remembered,
}

/// Remembered results by prefix.
type Remembered = [Option<(u64, Slotless)>; SLOTLESS];

/// Prefixes without a slot that are remembered; a power of two.
const SLOTLESS: usize = 32;

/// Where a prefix without a slot is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slotless {
    /// Under the other versions of known software, by its index.
    OtherVersion(usize),
    /// Under all other software.
    Other,
}

/// A change by 1, or by -1 (wrapping).
const MORE: u64 = 1;
const LESS: u64 = u64::MAX;

impl ClientCounter {
    /// Counts a peer at its first announce in a window of about `window_s`, and removes a peer that
    /// leaves. `stays`: the peer is in its swarm now. `announced_s`: its previous announce, if it
    /// was in the swarm.
    #[inline]
    pub(super) fn note(
        &mut self,
        now: Now,
        window_s: u32,
        announce: &Announce,
        stays: bool,
        announced_s: Option<u64>,
    ) {
        let second = now.seconds();
        if window_s != self.asked_s || second.wrapping_sub(self.start_s) >= self.length_s {
            self.start_window(second, window_s);
        }
        let counted_s = announced_s.filter(|it| *it >= self.since_s);
        let is_in_current = counted_s.is_some_and(|it| it >= self.start_s);
        let is_in_previous = !is_in_current
            && counted_s.is_some_and(|it| it >= self.start_s.saturating_sub(self.length_s));
        if stays && is_in_current {
            return; // as for nearly all peers that return soon
        }
        let Announce { contact, peer_id, source, .. } = announce;
        let window = self.start_s / self.length_s;
        if stays {
            self.added.add(window, *source, peer_id);
            self.current.add(&mut self.slotless, *contact, peer_id, MORE);
        } else if is_in_current && self.added.take(window, *source, peer_id) {
            self.current.add(&mut self.slotless, *contact, peer_id, LESS);
        }
        if is_in_previous && self.added.take(window.wrapping_sub(1), *source, peer_id) {
            self.previous.add(&mut self.slotless, *contact, peer_id, LESS);
        }
    }

    /// Makes the current window the previous one. Readers get both at once.
    #[cold]
    fn start_window(&mut self, second: u64, asked_s: u32) {
        let length_s = u64::from(asked_s.max(1)).next_multiple_of(TICK_S.into());
        let number = second / length_s;
        let is_next = asked_s == self.asked_s && number * length_s == self.start_s + self.length_s;
        self.since_s = match self.asked_s {
            0 => *self.shared_since_s.get_or_init(|| second - second % u64::from(TICK_S)),
            before if before == asked_s => self.since_s,
            _ => second, // windows of another length are dropped
        };
        let current = std::mem::take(&mut self.current);
        self.previous = if is_next { current } else { Arc::default() };
        (self.asked_s, self.length_s, self.start_s) = (asked_s, length_s, number * length_s);
        self.slotless = [None; SLOTLESS]; // there is room again
        self.tally.windows.store(Arc::new(Windows {
            number: Some(number),
            length_s,
            current: self.current.clone(),
            previous: self.previous.clone(),
        }));
    }
}

/// The peers that each source has added, by software and for two windows, in a table of fixed size
/// that all workers share. Sources with the same slot share its count: an attacker cannot choose
/// with which sources.
///
/// ```text
/// slot   number of the window (16) | peers (16)
/// ```
struct Added {
    keys: RandomState,
    slots: [Box<[AtomicU32]>; 2],
}

/// Slots for each window; a power of two. A source uses one for each software.
const ADDED_SLOTS: usize = 1 << 14;

impl Default for Added {
    fn default() -> Self {
        let slots = || (0..ADDED_SLOTS).map(|_| AtomicU32::new(0)).collect();
        Self { keys: RandomState::new(), slots: [slots(), slots()] }
    }
}

impl Added {
    fn slot(&self, window: u64, source: IpAddr, peer_id: &PeerId) -> &AtomicU32 {
        let hash = self.keys.hash_one((source, &peer_id.0[..8]));
        #[expect(clippy::cast_possible_truncation, reason = "the low bits choose")]
        let (of, at) = ((window % 2) as usize, hash as usize % ADDED_SLOTS);
        &self.slots[of][at]
    }

    /// Records that a source has added a peer.
    fn add(&self, window: u64, source: IpAddr, peer_id: &PeerId) {
        let slot = self.slot(window, source, peer_id);
        let more =
            |it| Some(of_window(window) | peers_in(it, window).saturating_add(1).min(0xffff));
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more); // never fails
    }

    /// Removes one peer of a source; returns whether there was one.
    fn take(&self, window: u64, source: IpAddr, peer_id: &PeerId) -> bool {
        let slot = self.slot(window, source, peer_id);
        let less = |it| Some(of_window(window) | peers_in(it, window).checked_sub(1)?);
        slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok()
    }
}

/// The window of a slot, in the upper half.
fn of_window(window: u64) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "one of 65 536 windows in a row")]
    let low = window as u16;
    u32::from(low) << 16
}

/// The peers of a slot, if they are of this window.
fn peers_in(slot: u32, window: u64) -> u32 {
    if slot & 0xffff_0000 == of_window(window) { slot & 0xffff } else { 0 }
}

/// The counts of one window.
#[derive(Default)]
struct Window {
    by_port: SoftwareTable,
    by_socket: SoftwareTable,
}

impl Window {
    fn add(&self, known: &mut Remembered, contact: Contact, peer_id: &PeerId, amount: u64) {
        let PeerId([prefix @ .., _, _, _, _, _, _, _, _, _, _, _, _]) = peer_id;
        let table = match contact {
            Contact::Port(_) => &self.by_port,
            Contact::Web(_) => &self.by_socket,
        };
        let key = u64::from_ne_bytes(*prefix);
        if table.add(key, amount) {
            return;
        }
        let place = &mut known[hash(key, SLOTLESS)];
        match *place {
            Some((stored, slotless)) if stored == key => table.add_slotless(slotless, amount),
            _ => *place = table.add_unseen(prefix, key, amount).map(|it| (key, it)).or(*place),
        }
    }
}

/// Versions with a count of their own; a power of two.
const SLOTS: usize = 512;
/// Slots where a version may be.
const PROBES: usize = 8;

/// Counts by the first bytes of the peer id, if they are of known software and there is room; one
/// writer, any number of readers.
struct SoftwareTable {
    slots: [VersionSlot; SLOTS],
    /// Peers of known software whose version cannot be read or has found no room.
    other_versions: [Counter; SOFTWARE],
    /// All other peers.
    others: Counter,
}

/// A version's count. The key is its [`SoftwarePrefix`]; 0, which is not a valid prefix, while the
/// slot is free.
#[derive(Default)]
struct VersionSlot {
    key: AtomicU64,
    peers: Counter,
}

impl Default for SoftwareTable {
    fn default() -> Self {
        Self {
            slots: std::array::from_fn(|_| VersionSlot::default()),
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

impl SoftwareTable {
    /// Counts a prefix that has a slot; returns whether it has a slot.
    #[inline]
    fn add(&self, key: u64, amount: u64) -> bool {
        for slot in self.places(key) {
            match slot.key.load(Ordering::Relaxed) {
                0 => break,
                stored if stored == key => {
                    slot.peers.add(amount);
                    return true;
                }
                _ => {}
            }
        }
        false
    }

    /// The slots where a key may be.
    #[inline]
    fn places(&self, key: u64) -> impl Iterator<Item = &VersionSlot> {
        let first = hash(key, SLOTS);
        (first..first + PROBES).map(|at| &self.slots[at % SLOTS])
    }

    /// Counts a prefix without a slot, and gives it a slot if it is a readable version of known
    /// software; otherwise returns how it was counted.
    #[cold]
    fn add_unseen(&self, prefix: &SoftwarePrefix, key: u64, amount: u64) -> Option<Slotless> {
        let software = software::of(prefix);
        let free = self.places(key).find(|slot| slot.key.load(Ordering::Relaxed) == 0);
        let slotless = match (software, free) {
            (Some(known), Some(slot)) if known.has_version => {
                slot.peers.add(amount);
                slot.key.store(key, Ordering::Relaxed);
                return None;
            }
            (Some(known), _) => Slotless::OtherVersion(known.index),
            (None, _) => Slotless::Other,
        };
        self.add_slotless(slotless, amount);
        Some(slotless)
    }

    #[inline]
    fn add_slotless(&self, slotless: Slotless, amount: u64) {
        match slotless {
            Slotless::OtherVersion(index) => self.other_versions[index].add(amount),
            Slotless::Other => self.others.add(amount),
        }
    }

    fn add_to(&self, counts: &mut SoftwareCounts) {
        let mut add = |name, version, peers: u64| {
            if peers != 0 {
                let count = counts.entry((name, version)).or_default();
                *count = count.wrapping_add(peers);
            }
        };
        for slot in &self.slots {
            let prefix = slot.key.load(Ordering::Relaxed).to_ne_bytes();
            if let Some(software) = software::of(&prefix)
                && let Some(version) = software::version(software.index, &prefix)
            {
                add(software::name(software.index), version, slot.peers.get());
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
    use crate::store::{Options, Store};
    use crate::tracker::{self, Tracker};
    use crate::types::{Event, InfoHash, WebPeer};

    const START: Now = Now::from_s(1_800_000_000);
    const PORT: Contact = Contact::Port(6881);
    const WEB: Contact = Contact::Web(WebPeer([0; 16]));

    fn announce(contact: Contact, prefix: &SoftwarePrefix) -> Announce {
        let mut peer_id = [7; 20];
        peer_id[..8].copy_from_slice(prefix);
        Announce {
            info_hash: InfoHash([1; 20]),
            source: [8, 8, 8, 8].into(),
            address_override: None,
            contact,
            peer_id: PeerId(peer_id),
            left: 1,
            event: Event::None,
            numwant: None,
        }
    }

    /// Counts new peers.
    fn count(
        counter: &mut ClientCounter,
        times: u32,
        now: Now,
        contact: Contact,
        prefix: &SoftwarePrefix,
    ) {
        let announce = announce(contact, prefix);
        (0..times).for_each(|_| counter.note(now, 1800, &announce, true, None));
    }

    /// The estimate for `leechers` by kind.
    fn estimate(clients: &ClientStats, now: Now, leechers: [u64; 3]) -> Vec<(String, u64)> {
        let totals = StoreTotals { leechers, ..StoreTotals::default() };
        let all = clients.estimate(now, &totals);
        all.into_iter().map(|(name, version, peers)| (format!("{name} {version}"), peers)).collect()
    }

    fn share(text: &str, peers: u64) -> (String, u64) {
        (text.to_owned(), peers)
    }

    #[test]
    fn shares_scale_to_the_peers_of_all_workers() {
        let clients = ClientStats::default();
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
            let clients = ClientStats::default();
            let mut counter = clients.join();
            for version in b'1'..=b'7' {
                let prefix = [b'-', b'q', b'B', version, b'0', b'0', b'0', b'-'];
                count(&mut counter, random.u32(1..50), START, PORT, &prefix);
            }
            let peers = random.u64(..2000);
            let found = estimate(&clients, START, [peers, 0, 0]);
            assert_eq!(found.iter().map(|it| it.1).sum::<u64>(), peers);
        }
        let clients = ClientStats::default();
        assert_eq!(estimate(&clients, START, [5, 5, 5]), [], "nobody has announced yet");
        count(&mut clients.join(), 3, START, PORT, b"-qB5010-");
        assert_eq!(estimate(&clients, START, [0, 0, 9]), [], "none of these is known to run it");
        let most = u64::MAX / 8;
        assert_eq!(estimate(&clients, START, [most, 0, 0]), [share("qBittorrent 5.0.1", most)]);
    }

    #[test]
    fn what_was_announced_two_intervals_ago_counts_no_more() {
        let clients = ClientStats::default();
        let mut counter = clients.join();
        let (old, new) = (b"-qB4000-", b"-qB5000-");
        count(&mut counter, 10, START, PORT, old);
        count(&mut counter, 30, START.plus_s(1800), PORT, new);
        let found = estimate(&clients, START.plus_s(1801), [40, 0, 0]);
        assert_eq!(found, [share("qBittorrent 4.0.0", 10), share("qBittorrent 5.0.0", 30)]);
        let now = START.plus_s(3601);
        let only_new = [share("qBittorrent 5.0.0", 40)];
        assert_eq!(estimate(&clients, now, [40, 0, 0]), only_new, "nobody has come since");
        count(&mut counter, 30, now, PORT, new);
        assert_eq!(estimate(&clients, now, [40, 0, 0]), only_new);
        assert_eq!(estimate(&clients, now.plus_s(3601), [40, 0, 0]), []);
        count(&mut counter, 10, now.plus_s(10_000), PORT, old);
        let only_old = [share("qBittorrent 4.0.0", 40)];
        assert_eq!(estimate(&clients, now.plus_s(10_000), [40, 0, 0]), only_old, "after a pause");
    }

    #[test]
    fn made_up_versions_fill_no_more_than_the_table() {
        let clients = ClientStats::default();
        let mut counter = clients.join();
        count(&mut counter, 1, START, PORT, b"-qB5010-");
        let digits = b"0123456789abcdefghijklmnopqrstuvwxyz";
        for number in 0..digits.len().pow(3) {
            let digit = |place: u32| digits[number / digits.len().pow(place) % digits.len()];
            let prefix = [b'-', b'T', b'R', digit(2), digit(1), digit(0), b'1', b'-'];
            count(&mut counter, 1, START, PORT, &prefix);
        }
        count(&mut counter, 1, START, PORT, &[0; 8]);
        count(&mut counter, 1, START, PORT, b"-qB<i>!-");
        let peers = 46_656 + 3;
        let found = estimate(&clients, START, [peers, 0, 0]);
        assert!(found.len() <= SLOTS + 3, "{}", found.len());
        assert_eq!(found.iter().map(|it| it.1).sum::<u64>(), peers);
        for one in ["qBittorrent 5.0.1", "qBittorrent other", "other other"] {
            assert!(found.contains(&share(one, 1)), "{one}");
        }
        let rest = found.iter().find(|it| it.0 == "Transmission other").unwrap();
        assert!(rest.1 > 40_000, "{}", rest.1);
    }

    /// A tracker of two workers, and its clients.
    struct World {
        store: Arc<Store>,
        clients: ClientStats,
        workers: Vec<Tracker>,
        source: IpAddr,
    }

    impl World {
        fn new(interval_s: u32) -> Self {
            let store = Arc::new(Store::new(Options { shards: 2, seed: Some(1) }));
            let clients = ClientStats::default();
            let rules = tracker::Options { interval_s, interval_s_max: 0, ..Default::default() };
            let rules = Arc::new(ArcSwap::from_pointee(rules));
            let worker = |seed| {
                Tracker::new(store.clone(), rules.clone(), seed, 0, 1).with_client_stats(&clients)
            };
            let workers = (1..=2).map(worker).collect();
            Self { store, clients, workers, source: [8, 8, 8, 8].into() }
        }

        fn say(&mut self, now: Now, port: u16, prefix: &SoftwarePrefix, event: Event) {
            let contact = Contact::Port(6880 + port);
            let mut announce = Announce { event, source: self.source, ..announce(contact, prefix) };
            // Any worker may get the announce.
            let worker = now.seconds() / 8 % 2;
            let tracker = &mut self.workers[worker as usize];
            tracker.announce(now, &mut announce, &mut (), tracker::PeerBuffers::default()).unwrap();
        }

        fn shares(&self, now: Now) -> Vec<(String, u64)> {
            let all = self.clients.estimate(now, &self.store.totals());
            all.into_iter().map(|(name, _, peers)| (name, peers)).collect()
        }
    }

    #[test]
    fn shares_do_not_depend_on_who_asks_more_often() {
        // Clients that keep to the interval of a minute, and those that return at other times.
        let kinds: [(&SoftwarePrefix, u64, u16); 4] = [
            (b"-CD0303-", 15, 1),
            (b"-rQ9000-", 30, 2),
            (b"-qB4520-", 300, 2),
            (b"-lt0D80-", 600, 3),
        ];
        let mut world = World::new(60);
        for second in 0..4000 {
            let now = START.plus_s(second);
            let mut port = 0;
            for (prefix, every_s, peers) in kinds {
                for _ in 0..peers {
                    port += 1;
                    if second % every_s == u64::from(port) {
                        let event = if second < 20 { Event::Started } else { Event::None };
                        world.say(now, port, prefix, event);
                    }
                }
            }
            if second > 20 {
                let expected = [
                    ("Enhanced CTorrent".to_owned(), 1),
                    ("libTorrent (rTorrent)".to_owned(), 3),
                    ("qBittorrent".to_owned(), 2),
                    ("rqbit".to_owned(), 2),
                ];
                assert_eq!(world.shares(now), expected, "{second}");
            }
        }
    }

    #[test]
    fn who_completes_or_comes_back_counts_once_and_who_leaves_no_more() {
        let mut world = World::new(1800);
        for port in 1..=3 {
            world.say(START, port, b"-qB4520-", Event::Started);
            world.say(START.plus_s(80), port, b"-qB4520-", Event::Completed);
        }
        world.say(START.plus_s(90), 9, b"-TR4060-", Event::Started);
        let both = |qbittorrent, transmission| {
            [("Transmission".to_owned(), transmission), ("qBittorrent".to_owned(), qbittorrent)]
        };
        assert_eq!(world.shares(START.plus_s(100)), both(3, 1));
        for round in 0..50 {
            let now = START.plus_s(100 + 16 * round);
            world.say(now, 9, b"-TR4060-", Event::Stopped);
            world.say(now.plus_s(8), 9, b"-TR4060-", Event::Started);
            assert_eq!(world.shares(now.plus_s(8)), both(3, 1));
        }
        // Also in the next window, and when a peer leaves that has not announced in it.
        let next = START.plus_s(2000);
        world.say(next, 9, b"-TR4060-", Event::None);
        world.say(next.plus_s(8), 1, b"-qB4520-", Event::None);
        assert_eq!(world.shares(next.plus_s(8)), both(3, 1));
        world.say(next.plus_s(16), 2, b"-qB4520-", Event::Stopped);
        world.say(next.plus_s(16), 1, b"-qB4520-", Event::Stopped);
        assert_eq!(world.shares(next.plus_s(16)), both(1, 1));
        // Stops of unknown peers, and peer ids of software that was never counted, remove nothing.
        world.say(next.plus_s(24), 77, b"-TR4060-", Event::Stopped);
        assert_eq!(world.shares(next.plus_s(24)), both(1, 1));
        world.say(next.plus_s(24), 3, b"-LT2110-", Event::Stopped);
        assert_eq!(world.shares(next.plus_s(24)).iter().map(|it| it.1).sum::<u64>(), 1);
    }

    #[test]
    fn nobody_lowers_the_share_of_what_others_run() {
        let mut world = World::new(1800);
        (1..=20).for_each(|port| world.say(START, port, b"-qB4520-", Event::Started));
        let share = |world: &World, now| {
            let all = world.shares(now);
            all.iter().find(|it| it.0 == "qBittorrent").map_or(0, |it| it.1)
        };
        world.source = [9, 9, 9, 9].into();
        // A peer joins under one peer id and leaves under another, within a window and across two.
        for round in 0..100 {
            let now = START.plus_s(8 * round);
            world.say(now, 1, b"-TR4060-", Event::Started);
            world.say(now, 1, b"-qB4520-", Event::Stopped);
        }
        let end = START.plus_s(900);
        world.say(end, 1, b"-TR4060-", Event::Started);
        world.say(end, 1, b"-TR4060-", Event::Stopped);
        assert!(share(&world, end) > 2, "{:?}: not by those who left", world.shares(end));
        for port in 100..200 {
            world.say(end, port, b"-TR4060-", Event::Started);
            world.say(end.plus_s(1800), port, b"-qB4520-", Event::None);
            world.say(end.plus_s(1800), port, b"-qB4520-", Event::Stopped);
        }
        world.source = [8, 8, 8, 8].into();
        let next = end.plus_s(1801);
        (1..=20).for_each(|port| world.say(next, port, b"-qB4520-", Event::None));
        assert!(share(&world, next) > 0, "{:?}", world.shares(next));
    }

    #[test]
    fn peers_of_before_the_start_count_when_they_announce() {
        let mut world = World::new(1800);
        let mut other = World::new(1800);
        other.store = world.store.clone();
        let options = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
        other.workers = vec![Tracker::new(world.store.clone(), options, 3, 0, 1)]; // uncounted
        other.workers.push(Tracker::new(world.store.clone(), Arc::default(), 4, 0, 1));
        (1..=5).for_each(|port| other.say(START, port, b"-qB4520-", Event::Started));
        assert_eq!(world.shares(START.plus_s(60)), []);
        for port in 1..=5 {
            world.say(START.plus_s(60), port, b"-qB4520-", Event::None);
        }
        world.say(START.plus_s(60), 6, b"-TR4060-", Event::Started);
        let expected = [("Transmission".to_owned(), 1), ("qBittorrent".to_owned(), 5)];
        assert_eq!(world.shares(START.plus_s(60)), expected);
    }
}
