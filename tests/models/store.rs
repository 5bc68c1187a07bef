//! The store in the plainest terms, and an announce applied to both it and the real one. Shared by
//! the test of random operations and the fuzz target of chosen ones.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use fastrand::Rng;
use skep::store::{
    AnnounceResult, DeltaChange, ExpiryLimits, ListedTorrent, MergeResult, PeerAnnounce,
    PeerBuffers, PeerChange, PeerDelta, PeerState, Role, Store, StoreTotals, Stored, TICK_S,
    TorrentOrder,
};
use skep::time::Now;
use skep::types::{Contact, Family, InfoHash, PeerKind, Scope, ScrapeEntry};

#[path = "sums.rs"]
mod sums;

/// When both forget.
pub(crate) const LIMITS: ExpiryLimits =
    ExpiryLimits { peer_age_s_max: 3900, empty_torrent_age_s_max: 7200 };

/// A peer's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    At(IpAddr, u16),
    Web([u8; 16]),
}

impl Who {
    pub(crate) fn of(visit: &PeerAnnounce<'_>) -> Self {
        match visit.contact {
            Contact::Port(port) => Self::At(visit.address, port),
            Contact::Web(peer) => Self::Web(peer.0),
        }
    }

    fn kind(self) -> PeerKind {
        match self {
            Self::At(address, _) if Family::of(address) == Family::V4 => PeerKind::V4,
            Self::At(..) => PeerKind::V6,
            Self::Web(_) => PeerKind::Web,
        }
    }

    fn scope(self) -> Scope {
        match self {
            Self::At(address, _) => Scope::of(address),
            Self::Web(_) => Scope::Public,
        }
    }

    /// Which roster it is in.
    fn roster(self) -> (u8, u8) {
        (self.kind() as u8, self.scope() as u8)
    }

    /// What is taken for one host and one network, and how many of the host a large swarm keeps.
    fn prefixes(self) -> Option<(u128, u128, usize)> {
        match self {
            Self::At(IpAddr::V4(address), _) => {
                let bits = u128::from(u32::from(address));
                Some((bits, bits >> 8, 16))
            }
            Self::At(IpAddr::V6(address), _) => {
                let bits = u128::from(address);
                Some((bits >> 64, bits >> 80, 4))
            }
            Self::Web(_) => None,
        }
    }

    /// The network that its peers crowd a full swarm from, and the one above it; `None` of a local
    /// peer.
    fn crowd(self) -> Option<[u128; 2]> {
        match self {
            _ if self.scope() != Scope::Public => None,
            Self::At(IpAddr::V4(address), _) => {
                Some([8, 16].map(|bits| u128::from(u32::from(address)) >> bits))
            }
            Self::At(IpAddr::V6(ip), _) => Some([80, 96].map(|bits| u128::from(ip) >> bits)),
            Self::Web([a, b, ..]) => Some([u128::from(u16::from_be_bytes([a, b])); 2]),
        }
    }

    /// Whether `self` bears witness of a download of `other`: both are of one roster, and not of
    /// one network, host or (on this host) port.
    fn is_witness_of(self, other: Self) -> bool {
        let place = |who: Self| match (who.scope(), who) {
            (Scope::Public, _) => who.crowd().map(|it| (it[0], 0)),
            (Scope::Private, _) => who.prefixes().map(|it| (it.0, 0)),
            (Scope::Loopback, Self::At(_, port)) => who.prefixes().map(|it| (it.0, port)),
            (Scope::Loopback, Self::Web(_)) => None,
        };
        self.roster() == other.roster() && place(self) != place(other)
    }

    fn address(self) -> Option<SocketAddr> {
        match self {
            Self::At(address, port) => Some((address, port).into()),
            Self::Web(_) => None,
        }
    }
}

/// A peer as the model knows it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) role: Role,
    pub(crate) was_leecher: bool,
    pub(crate) counted: bool,
    pub(crate) announced_s: u64,
    /// Whether it joined while memory was short, and has not come back in better times.
    pub(crate) unproven: bool,
}

impl Known {
    /// A peer in this state that announces now: see `SavedPeer::state`.
    fn of_state(state: PeerState, now: Now) -> Self {
        let (role, was_leecher) = match state.number() & 6 {
            0 => (Role::Leecher, true),
            2 => (Role::Paused, true),
            4 => (Role::Seeder, true),
            _ => (Role::Seeder, false),
        };
        let counted = state.number() & 1 != 0;
        Self { role, was_leecher, counted, announced_s: now.seconds(), unproven: false }
    }
}

#[derive(Default)]
pub(crate) struct Torrent {
    pub(crate) peers: BTreeMap<Who, Known>,
    pub(crate) completed: u32,
    pub(crate) empty_since_s: u64,
    /// Whether the count outlives the peers.
    pub(crate) outlives: Outlives,
}

/// Whether a count outlives its peers: only if one of another network was there when it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outlives {
    #[default]
    No,
    /// There was one, but among so many that it may have been overlooked.
    Perhaps,
    Yes,
}

/// Of so many peers of a roster none is overlooked.
const WITNESSES_MAX: usize = 64;
/// So many peers of a network, or of the one above it, are the least that crowd a full swarm.
const CROWDS: [usize; 2] = [4, 32];

impl Torrent {
    /// Whether the store may take it for one on probation: few peers of one network, none of whom
    /// has proved itself. (Not all of them are: the model knows no layouts.)
    fn may_go(&self) -> bool {
        let network = |who: &Who| who.prefixes().map(|it| it.1);
        let mut networks: Vec<_> = self.peers.keys().map(network).collect();
        networks.dedup();
        let unproven = self.peers.values().all(|it| it.unproven);
        self.peers.len() <= 16 && networks.len() == 1 && unproven
    }

    pub(crate) fn counts(&self) -> ScrapeEntry {
        sums::counts(self.completed, self.peers.values().map(|it| it.role))
    }

    /// Whether the count that a peer makes now outlives the peers.
    fn outlives(&self, who: Who) -> Outlives {
        let roster = self.peers.keys().filter(|it| it.roster() == who.roster());
        match (roster.clone().any(|it| it.is_witness_of(who)), roster.count() <= WITNESSES_MAX) {
            (false, _) => Outlives::No,
            (true, true) => Outlives::Yes,
            (true, false) => Outlives::Perhaps,
        }
    }

    /// Whether nothing is left of it, or for sure not, where that is not sure.
    fn is_vacant(&self) -> bool {
        self.peers.is_empty() && (self.completed == 0 || self.outlives == Outlives::No)
    }

    /// Whether so many of a peer's network are there, or of the one above it, that it may go for
    /// any newcomer to a full swarm.
    fn is_crowded(&self, who: Who) -> bool {
        let Some(of) = who.crowd() else { return false };
        let others = || self.peers.keys().filter(|it| it.kind() == who.kind());
        (0..2).any(|at| {
            let near = others().filter(|it| it.crowd().is_some_and(|it| it[at] == of[at]));
            near.count() >= CROWDS[at]
        })
    }
}

/// What the store should do, in the plainest terms.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) torrents: BTreeMap<InfoHash, Torrent>,
    pub(crate) completed: u64,
    /// From so many peers on, one of a torrent goes for a newcomer.
    pub(crate) peers_max: usize,
}

impl Model {
    /// Applies an announce as a store without bounds would.
    pub(crate) fn announce(&mut self, now: Now, visit: &PeerAnnounce<'_>) -> ScrapeEntry {
        self.announce_when(false, now, visit)
    }

    /// Applies an announce of a peer that is stored; `is_short` tells whether memory is.
    fn announce_when(&mut self, is_short: bool, now: Now, visit: &PeerAnnounce<'_>) -> ScrapeEntry {
        let torrent = self.torrents.entry(*visit.info_hash).or_default();
        let who = Who::of(visit);
        let before = torrent.peers.get(&who).copied();
        match visit.change {
            PeerChange::Stopped => {
                torrent.peers.remove(&who);
            }
            PeerChange::Present { role, completed } => {
                let was = before.is_some_and(|it| it.was_leecher);
                let mut counted = before.is_some_and(|it| it.counted);
                if completed && was && !counted {
                    counted = true;
                    torrent.completed += 1;
                    torrent.outlives = torrent.outlives.max(torrent.outlives(who));
                    self.completed += 1;
                }
                let was_leecher = was || role != Role::Seeder;
                let announced_s = now.seconds();
                let unproven = is_short && before.is_none_or(|it| it.unproven);
                let known = Known { role, was_leecher, counted, announced_s, unproven };
                torrent.peers.insert(who, known);
            }
        }
        if before.is_some() && torrent.peers.is_empty() {
            torrent.empty_since_s = now.seconds();
        }
        let counts = torrent.counts();
        if torrent.is_vacant() {
            self.torrents.remove(visit.info_hash);
        }
        counts
    }

    /// Applies a change from another node that is stored; `is_short` tells whether memory is.
    fn merge_when(&mut self, is_short: bool, now: Now, delta: &PeerDelta) -> ScrapeEntry {
        let torrent = self.torrents.entry(delta.info_hash).or_default();
        let who = Who::At(delta.address, delta.port);
        let before = torrent.peers.get(&who).copied();
        match delta.change {
            DeltaChange::Left => {
                torrent.peers.remove(&who);
            }
            DeltaChange::Present { state, completed } => {
                let mut known = Known::of_state(state, now);
                known.counted |= completed;
                known.unproven = is_short && before.is_none_or(|it| it.unproven);
                let counts = match before {
                    Some(before) => known.counted && !before.counted,
                    None => completed,
                };
                known.counted |= before.is_some_and(|it| it.counted);
                known.was_leecher |= before.is_some_and(|it| it.was_leecher);
                torrent.peers.insert(who, known);
                if counts {
                    torrent.completed += 1;
                    torrent.outlives = torrent.outlives.max(torrent.outlives(who));
                    self.completed += 1;
                }
            }
        }
        if before.is_some() && torrent.peers.is_empty() {
            torrent.empty_since_s = now.seconds();
        }
        let counts = torrent.counts();
        if torrent.is_vacant() {
            self.torrents.remove(&delta.info_hash);
        }
        counts
    }

    /// Applies an announce as the store did, which may have made room for it: but only in ways it
    /// may.
    fn follow(
        &mut self,
        store: &Store,
        (now, is_short): (Now, bool),
        visit: &PeerAnnounce<'_>,
        result: &AnnounceResult,
        evicted: u64,
    ) -> ScrapeEntry {
        self.follow_evicted(store, evicted, visit.info_hash);
        if result.stored != Stored::Yes {
            assert!(result.stored != Stored::NoMemory || store.usage().bytes_max > 0);
            assert!(result.stored != Stored::HostFull || visit.capped);
            let torrent = self.torrents.get(visit.info_hash);
            assert!(torrent.is_none_or(|it| !it.peers.contains_key(&Who::of(visit))));
            return torrent.map(Torrent::counts).unwrap_or_default();
        }
        let is_new = !self.torrents.contains_key(visit.info_hash);
        let mut counts = self.announce_when(is_short, now, visit);
        assert_eq!(result.created, is_new && self.torrents.contains_key(visit.info_hash));
        let told = result.seeders + result.leechers;
        if counts.seeders + counts.leechers == told + 1 {
            counts = self.follow_replaced(store, now, visit);
        }
        if told == 0 {
            self.forget_count(store, visit.info_hash);
        }
        counts
    }

    /// Takes out the torrents that went to make room.
    fn follow_evicted(&mut self, store: &Store, evicted: u64, spared: &InfoHash) {
        let evicted = store.usage().evicted - evicted;
        if evicted > 0 {
            let known = self.torrents.len();
            self.torrents.retain(|info_hash, torrent| {
                let gone =
                    info_hash != spared && store.torrent(info_hash, Now::from_s(0), 0, 0).is_none();
                let may_go = torrent.peers.is_empty() || torrent.may_go();
                assert!(!gone || may_go, "it was beyond probation");
                !gone
            });
            assert_eq!((known - self.torrents.len()) as u64, evicted);
        }
    }

    /// Takes out the peer whose place the newcomer has got.
    fn follow_replaced(
        &mut self,
        store: &Store,
        now: Now,
        visit: &PeerAnnounce<'_>,
    ) -> ScrapeEntry {
        let newcomer = Who::of(visit);
        let torrent = self.torrents.get_mut(visit.info_hash).unwrap();
        let (_, listed) = store.torrent(visit.info_hash, now, 0, usize::MAX >> 1).unwrap();
        let left: BTreeSet<_> = listed.iter().map(|it| it.address).collect();
        let gone: Vec<_> =
            torrent.peers.keys().copied().filter(|it| !left.contains(&it.address())).collect();
        let [gone] = gone[..] else { panic!("one goes for one: {gone:?}") };
        let others = torrent.peers.iter().filter(|it| *it.0 != newcomer);
        let roster = others.clone().filter(|it| it.0.roster() == newcomer.roster());
        let host = |who: Who| who.prefixes().map(|it| it.0);
        let of_host: Vec<_> = roster.clone().filter(|it| host(*it.0) == host(newcomer)).collect();
        let host_max = newcomer.prefixes().map_or(usize::MAX, |it| it.2);
        if visit.capped && roster.count() >= 256 && of_host.len() >= host_max {
            let tick = |known: &Known| known.announced_s / u64::from(TICK_S);
            let silent = of_host.iter().map(|it| tick(it.1)).min();
            assert_eq!(host(gone), host(newcomer));
            let age_s = |tick: u64| (now.seconds() / u64::from(TICK_S) - tick).max(1);
            assert_eq!(silent.map(age_s), Some(age_s(tick(&torrent.peers[&gone]))));
        } else {
            assert!(others.count() >= self.peers_max, "nobody had to go");
            // A newcomer displaces nobody of another family, or scope, but where there is a crowd.
            let is_of_crowd = torrent.is_crowded(gone);
            assert!(gone.roster() == newcomer.roster() || is_of_crowd, "{gone:?} for {newcomer:?}");
        }
        torrent.peers.remove(&gone);
        torrent.counts()
    }

    /// Forgets a count with the last peer where the store did, which it may where that is not sure.
    fn forget_count(&mut self, store: &Store, info_hash: &InfoHash) {
        let gone = store.torrent(info_hash, Now::from_s(0), 0, 0).is_none();
        if let Some(torrent) = self.torrents.get(info_hash).filter(|it| gone && it.peers.is_empty())
        {
            assert_eq!(torrent.outlives, Outlives::Perhaps, "{info_hash}");
            self.torrents.remove(info_hash);
        }
    }

    /// Whether a peer may be handed out: of the asker's scope or public, not the asker itself, and
    /// one who wants data if the asker does not.
    pub(crate) fn may_be_handed(
        visit: &PeerAnnounce<'_>,
        role: Role,
        who: Who,
        known: &Known,
    ) -> bool {
        let shown = who.scope() == Scope::Public || who.scope() == Who::of(visit).scope();
        let useful = role == Role::Leecher || known.role == Role::Leecher;
        shown && useful && who != Who::of(visit)
    }

    /// Forgets who has been silent for long, as the store has just done.
    pub(crate) fn expire(&mut self, store: &Store, now: Now) {
        let tick = |seconds: u64| seconds / u64::from(TICK_S);
        self.torrents.retain(|info_hash, torrent| {
            let had = !torrent.peers.is_empty();
            torrent.peers.retain(|_, known| {
                let ticks = tick(now.seconds()) - tick(known.announced_s);
                ticks.saturating_sub(1) * u64::from(TICK_S) <= u64::from(LIMITS.peer_age_s_max)
            });
            if !torrent.peers.is_empty() {
                return true;
            }
            if had {
                torrent.empty_since_s = now.seconds();
            }
            let is_there = store.torrent(info_hash, now, 0, 0).is_some();
            // Where memory is short, what has no peers goes early.
            let may_be_gone = torrent.outlives == Outlives::Perhaps || store.usage().bytes_max > 0;
            if !is_there && may_be_gone {
                return false;
            }
            let kept_s = now.seconds() - torrent.empty_since_s;
            !torrent.is_vacant() && kept_s <= u64::from(LIMITS.empty_torrent_age_s_max)
        });
    }

    pub(crate) fn totals(&self) -> StoreTotals {
        let torrents = self.torrents.values();
        let peers = torrents.map(|it| it.peers.iter().map(|it| (it.0.kind(), it.1.role)));
        sums::totals(self.completed, peers)
    }

    /// Every torrent, by info-hash.
    pub(crate) fn listed(&self) -> Vec<ListedTorrent> {
        let listed = |(info_hash, torrent): (&InfoHash, &Torrent)| ListedTorrent {
            info_hash: *info_hash,
            counts: torrent.counts(),
        };
        self.torrents.iter().map(listed).collect()
    }

    /// Every torrent, the largest first.
    fn listed_by(&self, order: TorrentOrder) -> Vec<ListedTorrent> {
        let mut all = self.listed();
        all.sort_by_key(|torrent| {
            Reverse(match order {
                TorrentOrder::Peers => torrent.counts.seeders + torrent.counts.leechers,
                TorrentOrder::Seeders => torrent.counts.seeders,
                TorrentOrder::Completed => torrent.counts.completed,
            })
        });
        all
    }
}

/// Peers in compact form, decoded.
pub(crate) fn decode(bytes: &[u8], kind: PeerKind) -> Vec<Who> {
    let port = |bytes: &[u8]| u16::from_be_bytes([bytes[0], bytes[1]]);
    let at = |address: IpAddr, bytes: &[u8]| Who::At(address, port(bytes));
    match kind {
        PeerKind::V4 => bytes
            .as_chunks::<6>()
            .0
            .iter()
            .map(|peer| {
                let [a, b, c, d, port @ ..] = peer;
                at([*a, *b, *c, *d].into(), port)
            })
            .collect(),
        PeerKind::V6 => bytes
            .as_chunks::<18>()
            .0
            .iter()
            .map(|peer| {
                let (address, port) = peer.split_first_chunk::<16>().unwrap();
                at((*address).into(), port)
            })
            .collect(),
        PeerKind::Web => bytes.as_chunks::<16>().0.iter().map(|it| Who::Web(*it)).collect(),
    }
}

/// Announces to both and compares everything that is told.
pub(crate) fn announce_both(
    store: &Store,
    model: &mut Model,
    now: Now,
    visit: &PeerAnnounce<'_>,
    random: &mut Rng,
) {
    let want = [random.usize(..=200), random.usize(..=67), random.usize(..=50)];
    let mut v4 = vec![0; want[0] * 6];
    let mut v6 = vec![0; want[1] * 18];
    let mut web = vec![0; want[2] * 16];
    let mut room = PeerBuffers { v4: &mut v4, v6: &mut v6, web: &mut web };
    let (is_short, evicted) = (store.is_short_of_memory(), store.usage().evicted);
    let result = store.announce(now, visit, &mut room, random);
    // The announce itself may make it so.
    let is_short = is_short || store.is_short_of_memory();
    let counts = model.follow(store, (now, is_short), visit, &result, evicted);
    assert_eq!((result.seeders, result.leechers), (counts.seeders, counts.leechers));
    let PeerChange::Present { role, .. } = visit.change else {
        assert_eq!(result.bytes, [0, 0, 0], "a stop gets no peers");
        return;
    };
    let none = BTreeMap::new();
    let peers = model.torrents.get(visit.info_hash).map_or(&none, |it| &it.peers);
    for (kind, room) in PeerKind::ALL.into_iter().zip([v4, v6, web]) {
        let fits = |(who, known): &(&Who, &Known)| {
            who.kind() == kind && Model::may_be_handed(visit, role, **who, known)
        };
        let available = peers.iter().filter(fits).count();
        let handed = decode(&room[..result.bytes[kind as usize]], kind);
        assert!(handed.iter().all(|it| Model::may_be_handed(visit, role, *it, &peers[it])));
        let expected = want[kind as usize].min(available);
        assert_eq!(handed.len(), expected, "exactly as many as there are");
        assert_eq!(handed.into_iter().collect::<BTreeSet<_>>().len(), expected, "distinct");
    }
}

/// Merges a change from another node into both, and compares the torrent. The store may refuse a
/// peer, but evicts and replaces nobody.
pub(crate) fn merge_both(
    store: &Store,
    model: &mut Model,
    now: Now,
    delta: &PeerDelta,
    random: &mut Rng,
) {
    let (is_short, usage) = (store.is_short_of_memory(), store.usage());
    let result = store.merge(now, delta, random);
    assert_eq!(store.usage().evicted, usage.evicted, "a merge evicts nothing");
    // The merge itself may make it so.
    let is_short = is_short || store.is_short_of_memory();
    let known = model.torrents.get(&delta.info_hash);
    let counts = if result == MergeResult::NotStored {
        let may_refuse = usage.bytes_max > 0 || model.peers_max > 0 || !delta.is_exempt;
        let is_known =
            known.is_some_and(|it| it.peers.contains_key(&Who::At(delta.address, delta.port)));
        assert!(delta.port <= 1 || may_refuse && !is_known, "{delta:?}");
        assert!(delta.port <= 1 || delta.change != DeltaChange::Left, "{delta:?}");
        known.map(Torrent::counts).unwrap_or_default()
    } else {
        let counts = model.merge_when(is_short, now, delta);
        model.forget_count(store, &delta.info_hash);
        counts
    };
    let is_forgotten = !model.torrents.contains_key(&delta.info_hash);
    let expected = if is_forgotten { ScrapeEntry::default() } else { counts };
    assert_eq!(store.scrape(&delta.info_hash), expected, "{delta:?}");
}

/// Compares every kind of list, page by page, and one torrent's peers with their ages.
pub(crate) fn compare_lists(store: &Store, model: &Model, now: Now, random: &mut Rng) {
    let count = random.usize(1..40);
    let mut paged: Vec<ListedTorrent> = Vec::new();
    loop {
        let page = store.torrents_after(paged.last().map(|it| &it.info_hash), count, |_| true);
        assert!(page.len() <= count);
        if page.is_empty() {
            break;
        }
        paged.extend(page);
    }
    assert_eq!(paged, model.listed());
    for order in [TorrentOrder::Peers, TorrentOrder::Seeders, TorrentOrder::Completed] {
        let mut expected = model.listed_by(order);
        expected.truncate(count);
        assert_eq!(store.torrents_by(order, count), expected);
    }
    for (info_hash, torrent) in &model.torrents {
        compare_peers(store, info_hash, torrent, now, count);
    }
}

fn compare_peers(store: &Store, info_hash: &InfoHash, torrent: &Torrent, now: Now, count: usize) {
    let mut found = Vec::new();
    loop {
        let (listed, page) = store.torrent(info_hash, now, found.len(), count).unwrap();
        assert_eq!(listed, ListedTorrent { info_hash: *info_hash, counts: torrent.counts() });
        assert!(page.len() <= count);
        if page.is_empty() {
            break;
        }
        found.extend(page.iter().map(|it| (it.address, it.role as u8, it.age_s)));
    }
    let age_s = |known: &Known| {
        let tick = |seconds: u64| seconds / u64::from(TICK_S);
        let ticks = tick(now.seconds()) - tick(known.announced_s);
        u32::try_from(ticks).unwrap().saturating_sub(1) * TICK_S
    };
    let mut expected: Vec<_> = torrent
        .peers
        .iter()
        .map(|(who, known)| (who.address(), known.role as u8, age_s(known)))
        .collect();
    expected.sort_unstable();
    found.sort_unstable();
    assert_eq!(found, expected);
}
