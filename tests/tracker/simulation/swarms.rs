//! The swarms as they should be, in the plainest terms: who announced what and when.
//!
//! Exact but for one thing: *when* a sweep comes by a peer that has been silent for too long. Such
//! peers are looked up in the store before anything is asked of their torrent; everybody else must
//! be there, and after some time nobody of them may be.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use skep::store::{ListedPeer, Role, Store, StoreTotals, TICK_S};
use skep::time::Now;
use skep::types::{Event, Family, InfoHash, PeerKind, ScrapeEntry};

use super::judge::{Invariant, Judged, hold};

#[path = "../../models/sums.rs"]
mod sums;

/// Seconds of silence after which a peer is forgotten.
pub(crate) const PEER_AGE_S_MAX: u32 = 1500;
/// Seconds for which the count of an empty torrent is kept.
pub(crate) const EMPTY_AGE_S_MAX: u32 = 5000;
/// Seconds in which a sweep must have come by: a pass takes a 64th of a peer's life, and upkeep
/// comes every [`super::UPKEEP_S`] seconds.
const SWEEP_S_MAX: u64 = 64;

const TICK: u64 = TICK_S as u64;

/// A peer's identity. A WebRTC peer is known by its client, whose peer id and address are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    At(SocketAddr),
    Web(usize),
}

impl Who {
    fn kind(self) -> PeerKind {
        match self {
            Self::At(address) if Family::of(address.ip()) == Family::V4 => PeerKind::V4,
            Self::At(_) => PeerKind::V6,
            Self::Web(_) => PeerKind::Web,
        }
    }

    /// Peers of one roster that share this cannot make a count outlive its peers.
    fn network(self) -> (u8, u8, IpAddr, u16) {
        let (kind, scope) = (self.kind() as u8, self.scope());
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        match self {
            // Of those that may be browsers, every twelfth has the same address.
            Self::Web(client) if client % 12 == 6 => (kind, scope, nowhere, 0),
            Self::Web(client) => (kind, scope, nowhere, 1 + u16::try_from(client).unwrap()),
            Self::At(address) if scope == 2 => (kind, scope, address.ip(), address.port()),
            Self::At(address) if scope == 1 => {
                let host = match address.ip() {
                    IpAddr::V4(_) => address.ip(),
                    IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) >> 64 << 64).into(),
                };
                (kind, scope, host, 0)
            }
            Self::At(address) => {
                let network = match address.ip() {
                    IpAddr::V4(ip) => Ipv4Addr::from(u32::from(ip) >> 8 << 8).into(),
                    IpAddr::V6(ip) => Ipv6Addr::from(u128::from(ip) >> 80 << 80).into(),
                };
                (kind, scope, network, 0)
            }
        }
    }

    /// Whether `self` bears witness of a download of `other`.
    fn is_witness_of(self, other: Self) -> bool {
        let same_roster = self.kind() == other.kind() && self.scope() == other.scope();
        same_roster && self.network() != other.network()
    }

    /// 0: everybody may be told; others only who has the same.
    fn scope(self) -> u8 {
        match self {
            Self::Web(_) => 0,
            Self::At(address) => match address.ip() {
                IpAddr::V4(ipv4) if ipv4.is_loopback() => 2,
                IpAddr::V4(ipv4) => u8::from(ipv4.is_private()),
                IpAddr::V6(ipv6) if ipv6.is_loopback() => 2,
                IpAddr::V6(ipv6) => u8::from(ipv6.is_unique_local()),
            },
        }
    }
}

/// An announce as it was sent, whatever carried it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Said {
    pub(crate) torrent: InfoHash,
    pub(crate) who: Who,
    pub(crate) left: u64,
    pub(crate) event: Event,
    pub(crate) wanted: Option<u32>,
}

impl Said {
    /// Whether its peer accepts no connections.
    pub(crate) fn accepts_nothing(&self) -> bool {
        matches!(self.who, Who::At(address) if address.port() < 2)
    }

    /// What the peer is after it; `None` where it leaves.
    pub(crate) fn role(&self) -> Option<Role> {
        match (self.event, self.left) {
            (Event::Stopped, _) => None,
            (Event::Completed, _) | (_, 0) => Some(Role::Seeder),
            (Event::Paused, _) => Some(Role::Paused),
            _ => Some(Role::Leecher),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) role: Role,
    was_leecher: bool,
    counted: bool,
    tick: u64,
    at: Now,
}

impl Known {
    fn ticks(&self, now: Now) -> u64 {
        (now.seconds() / TICK).saturating_sub(self.tick)
    }

    fn age_s(&self, now: Now) -> u64 {
        self.ticks(now).saturating_sub(1) * TICK
    }

    /// Whether it may be gone. A WebRTC peer's socket knows its age to the second.
    fn may_be_gone(&self, who: Who, now: Now) -> bool {
        let early = if matches!(who, Who::Web(_)) { 2 * TICK } else { 0 };
        self.age_s(now) + early > PEER_AGE_S_MAX.into()
    }

    /// Whether it must be gone, if upkeep has not paused since that second.
    fn must_be_gone(&self, now: Now, swept_since_s: u64) -> bool {
        let lapsed_s = (self.tick + 2) * TICK + u64::from(PEER_AGE_S_MAX);
        now.seconds() > lapsed_s.max(swept_since_s) + SWEEP_S_MAX
    }

    /// Of two accounts of a peer, the fresher one, with what the other remembers.
    fn merged(self, restored: Self, now: Now) -> Self {
        let is_fresher = self.ticks(now) <= restored.ticks(now);
        let (fresher, older) = if is_fresher { (self, restored) } else { (restored, self) };
        let was_leecher = fresher.was_leecher || older.was_leecher;
        Self { was_leecher, counted: fresher.counted || older.counted, ..fresher }
    }
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Torrent {
    pub(crate) peers: BTreeMap<Who, Known>,
    pub(crate) completed: u32,
    /// Whether that count outlives the peers: one of another network was there when it was made.
    outlives: bool,
    /// The seconds between which it lost its last peer.
    emptied_s: (u64, u64),
    /// When the store was last asked about it.
    seen_s: u64,
}

impl Torrent {
    pub(crate) fn counts(&self) -> ScrapeEntry {
        sums::counts(self.completed, self.peers.values().map(|it| it.role))
    }

    /// Whether nothing is left of it.
    fn is_vacant(&self) -> bool {
        self.peers.is_empty() && (self.completed == 0 || !self.outlives)
    }

    /// Whether a snapshot has anything to say of it.
    pub(crate) fn is_saved(&self) -> bool {
        self.completed > 0 || self.peers.keys().any(|it| it.kind() != PeerKind::Web)
    }

    /// How many peers a snapshot holds.
    pub(crate) fn port_peers(&self) -> usize {
        self.peers.keys().filter(|it| it.kind() != PeerKind::Web).count()
    }

    /// As a snapshot of the moment `at` has it, which comes by it now.
    pub(crate) fn saved(mut self, at: Now, now: Now) -> Self {
        if self.port_peers() == 0 && !self.peers.is_empty() {
            self.emptied_s = (at.seconds(), at.seconds());
        }
        // No age is below 0, nor is a torrent empty for less than that.
        self.emptied_s = (self.emptied_s.0.min(at.seconds()), self.emptied_s.1.min(at.seconds()));
        self.seen_s = now.seconds();
        self
    }

    /// Takes out whom the store has forgotten, which it may only where they fell silent.
    fn follow(&mut self, listed: &[ListedPeer], now: Now, swept_since_s: u64) -> Judged {
        let there: BTreeMap<SocketAddr, &ListedPeer> =
            listed.iter().filter_map(|it| Some((it.address?, it))).collect();
        let mut web: BTreeMap<(u8, u64), usize> = BTreeMap::new();
        for peer in listed.iter().filter(|it| it.address.is_none()) {
            *web.entry((peer.role as u8, peer.age_s.into())).or_default() += 1;
        }
        // Of WebRTC peers the store tells no names: the latest are the ones that stay.
        let mut peers: Vec<(Who, Known)> = self.peers.iter().map(|it| (*it.0, *it.1)).collect();
        peers.sort_by_key(|it| std::cmp::Reverse(it.1.at));
        for (who, known) in peers {
            let (age_s, role) = (known.age_s(now), known.role as u8);
            let is_there = match who {
                Who::At(address) => there
                    .get(&address)
                    .is_some_and(|it| it.role as u8 == role && u64::from(it.age_s) == age_s),
                Who::Web(_) => web.get_mut(&(role, age_s)).is_some_and(|left| {
                    *left = left.saturating_sub(1);
                    true
                }),
            };
            if is_there {
                let overdue = known.must_be_gone(now, swept_since_s);
                hold(!overdue, Invariant::SilentAreForgotten, || format!("{who:?} {known:?}"))?;
                if let Who::Web(_) = who
                    && web[&(role, age_s)] == 0
                {
                    web.remove(&(role, age_s));
                }
                continue;
            }
            let may_go = known.may_be_gone(who, now);
            hold(may_go, Invariant::NobodyIsLost, || format!("{who:?} {known:?} {listed:?}"))?;
            self.peers.remove(&who);
        }
        let stranger = self.peers.len() == listed.len();
        hold(stranger, Invariant::OnlyMembers, || format!("{:?} but {listed:?}", self.peers))
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Swarms {
    pub(crate) torrents: BTreeMap<InfoHash, Torrent>,
    /// Downloads counted since the beginning of time.
    pub(crate) completed: u64,
    /// How many peers were seen to have been forgotten.
    pub(crate) forgotten: u64,
}

impl Swarms {
    /// Compares a torrent with the store's.
    pub(crate) fn compare(
        &mut self,
        store: &Store,
        torrent: &InfoHash,
        now: Now,
        swept_since_s: u64,
    ) -> Judged {
        let found = store.torrent(torrent, now, 0, usize::MAX >> 1);
        let Some(known) = self.torrents.get_mut(torrent) else {
            return hold(found.is_none(), Invariant::OnlyMembers, || format!("{found:?}"));
        };
        let listed = found.as_ref().map_or(&[][..], |it| &it.1);
        let before = known.peers.len();
        known.follow(listed, now, swept_since_s)?;
        self.forgotten += (before - known.peers.len()) as u64;
        let seen_s = std::mem::replace(&mut known.seen_s, now.seconds());
        if before > 0 && known.peers.is_empty() {
            known.emptied_s = (seen_s, now.seconds());
        }
        if known.peers.is_empty() {
            let (from_s, to_s) = known.emptied_s;
            let kept_s = u64::from(EMPTY_AGE_S_MAX);
            if found.is_none() {
                let may = known.is_vacant() || now.seconds() > from_s + kept_s;
                hold(may, Invariant::CompletedNeverFalls, || format!("{torrent} {known:?}"))?;
                self.torrents.remove(torrent);
                return Ok(());
            }
            let overdue = now.seconds() > (to_s + kept_s).max(swept_since_s) + SWEEP_S_MAX;
            let overdue = overdue || known.is_vacant();
            hold(!overdue, Invariant::SilentAreForgotten, || format!("{torrent} {known:?}"))?;
        }
        let counts = found.map(|it| it.0.counts);
        hold(counts == Some(known.counts()), Invariant::Counts, || {
            format!("{torrent}: {counts:?} for {:?}", known.counts())
        })
    }

    /// Compares everything, and the sums.
    pub(crate) fn compare_all(&mut self, store: &Store, now: Now, swept_since_s: u64) -> Judged {
        let listed = store.torrents_after(None, usize::MAX >> 8, |_| true);
        let found = listed.iter().map(|it| it.info_hash);
        let all: BTreeSet<_> = found.chain(self.torrents.keys().copied()).collect();
        for torrent in all {
            self.compare(store, &torrent, now, swept_since_s)?;
        }
        let (totals, wanted) = (store.totals(), self.totals());
        hold(totals == wanted, Invariant::CountsAddUp, || format!("{totals:?} for {wanted:?}"))
    }

    fn totals(&self) -> StoreTotals {
        let torrents = self.torrents.values();
        let peers = torrents.map(|it| it.peers.iter().map(|it| (it.0.kind(), it.1.role)));
        sums::totals(self.completed, peers)
    }

    /// An announce that was answered.
    pub(crate) fn announce(&mut self, now: Now, said: &Said) -> ScrapeEntry {
        if said.role().is_some() && said.accepts_nothing() {
            return self.counts(&said.torrent);
        }
        let torrent = self.torrents.entry(said.torrent).or_default();
        torrent.seen_s = now.seconds();
        let before = torrent.peers.get(&said.who).copied();
        match said.role() {
            None => {
                torrent.peers.remove(&said.who);
            }
            Some(role) => {
                let was_leecher = before.is_some_and(|it| it.was_leecher);
                let counted = before.is_some_and(|it| it.counted);
                let counts = said.event == Event::Completed && was_leecher && !counted;
                torrent.completed += u32::from(counts);
                self.completed += u64::from(counts);
                let is_witnessed = torrent.peers.keys().any(|it| it.is_witness_of(said.who));
                torrent.outlives |= counts && is_witnessed;
                let known = Known {
                    role,
                    was_leecher: was_leecher || role != Role::Seeder,
                    counted: counted || counts,
                    tick: now.seconds() / TICK,
                    at: now,
                };
                torrent.peers.insert(said.who, known);
            }
        }
        if before.is_some() && torrent.peers.is_empty() {
            torrent.emptied_s = (now.seconds(), now.seconds());
        }
        let counts = torrent.counts();
        if torrent.is_vacant() {
            self.torrents.remove(&said.torrent);
        }
        counts
    }

    pub(crate) fn counts(&self, torrent: &InfoHash) -> ScrapeEntry {
        self.torrents.get(torrent).map(Torrent::counts).unwrap_or_default()
    }

    pub(crate) fn has(&self, torrent: &InfoHash, who: Who) -> bool {
        self.torrents.get(torrent).is_some_and(|it| it.peers.contains_key(&who))
    }

    /// How many of a kind the asker could be handed.
    pub(crate) fn available(&self, said: &Said, kind: PeerKind) -> usize {
        let Some(torrent) = self.torrents.get(&said.torrent) else { return 0 };
        let all = torrent.peers.keys().filter(|it| it.kind() == kind);
        all.filter(|it| self.may_be_handed(said, **it).is_ok()).count()
    }

    /// Whether a peer may be handed to the asker.
    pub(crate) fn may_be_handed(&self, said: &Said, who: Who) -> Judged {
        hold(who != said.who, Invariant::NeverTheAsker, || format!("{said:?}"))?;
        let shown = who.scope() == 0 || who.scope() == said.who.scope();
        let named = !matches!(who, Who::At(address) if address.port() < 2);
        hold(shown && named, Invariant::RightScope, || format!("{who:?} for {said:?}"))?;
        let peers = self.torrents.get(&said.torrent).map(|it| &it.peers);
        let known = peers.and_then(|it| it.get(&who));
        hold(known.is_some(), Invariant::OnlyMembers, || format!("{who:?} for {said:?}"))?;
        let wants = [said.role(), known.map(|it| it.role)].contains(&Some(Role::Leecher));
        hold(wants, Invariant::NoSeedersForSeeders, || format!("{who:?} for {said:?}"))
    }

    /// Merges what a snapshot of the moment `at` brings back.
    pub(crate) fn restore(&mut self, saved: &Self, at: Now, now: Now) {
        let passed = (now.seconds() / TICK).saturating_sub(at.seconds() / TICK);
        for (info_hash, saved) in saved.torrents.iter().filter(|it| it.1.is_saved()) {
            let torrent = self.torrents.entry(*info_hash).or_default();
            let port_peers = || saved.peers.iter().filter(|it| it.0.kind() != PeerKind::Web);
            if torrent.peers.is_empty() && torrent.completed == 0 {
                let (from_s, to_s) = match port_peers().next() {
                    None => saved.emptied_s,
                    Some(_) => (now.seconds(), now.seconds()),
                };
                torrent.emptied_s = (from_s.min(now.seconds()), to_s.min(now.seconds()));
            }
            torrent.seen_s = now.seconds();
            torrent.completed += saved.completed;
            torrent.outlives |= saved.completed > 0; // which a snapshot does not say
            for (who, known) in port_peers() {
                let ticks = passed + known.ticks(at);
                let known = Known { tick: now.seconds() / TICK - ticks, ..*known };
                if known.age_s(now) <= PEER_AGE_S_MAX.into() {
                    let live = torrent.peers.get(who);
                    let merged = live.map_or(known, |it| it.merged(known, now));
                    torrent.peers.insert(*who, merged);
                }
            }
            if torrent.is_vacant() {
                self.torrents.remove(info_hash);
            }
        }
        self.completed += saved.completed;
    }
}
