//! What an announce does to one swarm, whichever of the five layouts it is in.
//!
//! ```text
//! Empty ─▶ One ─▶ Few4 ─▶ Many        an IPv4 swarm as it grows
//! Empty ─────────▶ Few6 ─▶ Many       an IPv6 one
//! ```
//!
//! A second family or scope leads to Many at once, and so does a WebRTC peer. Layouts only grow
//! here; [`super::expire`] leads back to smaller ones.

use std::net::IpAddr;

use ahash::RandomState;
use fastrand::Rng;

use super::asker::{Asker, refused};
use super::contents::{Contents, Count};
use super::large::{Crowd, Large, crowd_of};
use super::raw::{Block, Owned};
use super::record::{Address, Endpoint, Record, Record4, Role};
use super::roster::{Beside, Change, Counts, Outcome, Roster};
use super::select::{Capped, Pool, choose as choose_from};
use super::{Answer, Room, Stored, Visit};
use crate::time::Now;
use crate::types::{Contact, Kind, Scope, ScrapeEntry};

/// Bytes that the layout which holds everything takes more than any other for the same peers, and
/// a newcomer of any kind: heads and new crowds.
const ENLARGED_BYTES: usize =
    size_of::<Large>() + 2 * (size_of::<Crowd<16>>() + size_of::<Crowd<14>>() + SMALLEST_BYTES);

/// Bytes of the largest block for one peer.
const SMALLEST_BYTES: usize = 32;

/// An announce by an IPv4 peer: the swarm after it, and what it did.
#[inline]
fn announce_v4(
    contents: Contents,
    asker: &mut Asker<'_>,
    endpoint: Endpoint<4>,
) -> (Contents, Outcome) {
    match contents {
        Contents::Empty { completed, .. } => {
            let Change::Present { role, .. } = asker.change else {
                return (contents, Outcome::default());
            };
            // A count that was there before is not to go with a newcomer.
            let on_probation = asker.is_short && completed == Count::NONE;
            let record = asker.record(endpoint, role, on_probation);
            let outcome = Outcome { after: Some(role), position: Some(0), ..Outcome::default() };
            (one(record, completed, asker.keys), outcome)
        }
        Contents::One(record, completed) if record.endpoint == endpoint => {
            renew_one(record, completed, asker)
        }
        Contents::One(record, completed) if asker.joins() && record.scope() == asker.scope => {
            if !asker.admits(Block::<4>::bytes_with_room(2)) {
                return (contents, refused(Stored::NoMemory));
            }
            few4(two_of(record, completed, asker.keys), asker, endpoint)
        }
        Contents::Few4(block) if block.serves(asker, &endpoint) => few4(block, asker, endpoint),
        Contents::Many(mut large) => {
            let outcome = join_crowd(&mut large, asker, endpoint, |it| &mut it.v4);
            large.completed = large.completed.after(&outcome);
            (settled(large, asker.now), outcome)
        }
        _ if !asker.joins() => (contents, Outcome::default()),
        _ if !asker.admits(ENLARGED_BYTES) => (contents, refused(Stored::NoMemory)),
        _ => announce_v4(Contents::Many(enlarge(contents, asker.keys)), asker, endpoint),
    }
}

/// An announce by an IPv6 peer: the swarm after it, and what it did.
#[inline]
fn announce_v6(
    contents: Contents,
    asker: &mut Asker<'_>,
    endpoint: Endpoint<16>,
) -> (Contents, Outcome) {
    match contents {
        Contents::Empty { completed, .. } if asker.joins() => {
            if !asker.admits(Block::<16>::bytes_with_room(1)) {
                return (contents, refused(Stored::NoMemory));
            }
            few6(Block::with_room(1, completed), asker, endpoint)
        }
        Contents::Few6(block) if block.serves(asker, &endpoint) => few6(block, asker, endpoint),
        Contents::Many(mut large) => {
            let outcome = join_crowd(&mut large, asker, endpoint, |it| &mut it.v6);
            large.completed = large.completed.after(&outcome);
            (settled(large, asker.now), outcome)
        }
        _ if !asker.joins() => (contents, Outcome::default()),
        _ if !asker.admits(ENLARGED_BYTES) => (contents, refused(Stored::NoMemory)),
        _ => announce_v6(Contents::Many(enlarge(contents, asker.keys)), asker, endpoint),
    }
}

/// An announce by a WebRTC peer: the swarm after it, and what it did.
fn announce_web(
    contents: Contents,
    asker: &mut Asker<'_>,
    endpoint: Endpoint<14>,
) -> (Contents, Outcome) {
    let known = matches!(&contents, Contents::Many(large) if large.web.is_some());
    if !known && !asker.joins() {
        return (contents, Outcome::default());
    }
    // Where memory is short, a torrent that is new would be on probation; but the layout of WebRTC
    // peers takes much and cannot give way in time, so it is not stored at all.
    let is_new = matches!(&contents, Contents::Empty { completed: Count::NONE, .. });
    if !known && ((asker.is_short && is_new) || !asker.admits(ENLARGED_BYTES)) {
        return (contents, refused(Stored::NoMemory));
    }
    let mut large = match contents {
        Contents::Many(large) => large,
        smaller => enlarge(smaller, asker.keys),
    };
    let all = large.len();
    let scope = asker.scope;
    let outcome = apply(&mut large, asker, endpoint, all, |it| {
        &mut **it.web.get_or_insert_with(|| Box::new(Crowd::new(scope)))
    });
    large.completed = large.completed.after(&outcome);
    (settled(large, asker.now), outcome)
}

impl Asker<'_> {
    /// Applies an announce: the peer's kind, the swarm after it, and what it did.
    #[inline]
    pub(super) fn announce(
        &mut self,
        contents: Contents,
        visit: &Visit<'_>,
    ) -> (Kind, (Contents, Outcome)) {
        match (visit.contact, visit.address) {
            (Contact::Port(port), IpAddr::V4(it)) => {
                let endpoint = Endpoint::new(it.octets(), port);
                (Kind::V4, announce_v4(contents, self, endpoint))
            }
            (Contact::Port(port), IpAddr::V6(it)) => {
                let endpoint = Endpoint::new(it.octets(), port);
                (Kind::V6, announce_v6(contents, self, endpoint))
            }
            (Contact::Web(peer), _) => {
                (Kind::Web, announce_web(contents, self, Endpoint::of_web(peer)))
            }
        }
    }
}

impl<const ADDRESS: usize> Block<ADDRESS>
where
    Record<ADDRESS>: Address,
{
    /// Whether this block is where the asker's peer is, or has room for it.
    #[inline]
    fn serves(&self, asker: &Asker<'_>, endpoint: &Endpoint<ADDRESS>) -> bool {
        let same_scope = self.records().first().is_none_or(|it| it.scope() == asker.scope);
        same_scope && (!self.is_full() || self.position(endpoint, asker.keys).is_some())
    }

    /// Applies the announce and counts a completed download.
    #[inline]
    fn announce(&mut self, asker: &mut Asker<'_>, endpoint: Endpoint<ADDRESS>) -> Outcome {
        // A count that was there before is not to go with a newcomer.
        let is_settled = self.records().is_empty() && self.completed() != Count::NONE;
        let beside = Beside { peers: 0, is_settled };
        let mut outcome = self.apply(asker, endpoint, beside);
        if let Some(role) = outcome.waits {
            outcome = self.replace(asker, endpoint, role, beside);
        }
        if outcome.completed {
            self.set_completed(self.completed().after(&outcome));
        }
        outcome
    }
}

/// One peer, in place where its count fits beside it.
pub(super) fn one(record: Record4, completed: Count, keys: &RandomState) -> Contents {
    if completed.fits_beside_peer() {
        Contents::One(record, completed)
    } else {
        let mut block = Block::with_room(1, completed);
        block.insert(record, keys);
        Contents::Few4(block)
    }
}

fn renew_one(record: Record4, completed: Count, asker: &Asker<'_>) -> (Contents, Outcome) {
    let (before, known) = (Some(record.stamp().role()), Some(record.stamp()));
    match asker.change {
        Change::Stopped => {
            let outcome = Outcome { before, known, ..Outcome::default() };
            (empty(completed, asker.now), outcome)
        }
        Change::Present { role, completed: ended } => {
            let (stamp, counts) = asker.renewed(record.stamp(), role, ended);
            let record = Record::new(record.endpoint, stamp);
            let outcome = Outcome {
                before,
                known,
                after: Some(stamp.role()),
                position: Some(0),
                completed: counts,
                ..Outcome::default()
            };
            (one(record, completed.after(&outcome), asker.keys), outcome)
        }
    }
}

/// A block for the peer in place and one more.
fn two_of(record: Record4, completed: Count, keys: &RandomState) -> Block<4> {
    let mut block = Block::with_room(2, completed);
    block.insert(record, keys);
    block
}

#[inline]
fn few4(mut block: Block<4>, asker: &mut Asker<'_>, endpoint: Endpoint<4>) -> (Contents, Outcome) {
    let outcome = block.announce(asker, endpoint);
    if block.records().is_empty() {
        return (empty(block.completed(), asker.now), outcome);
    }
    (Contents::Few4(block), outcome)
}

#[inline]
fn few6(
    mut block: Block<16>,
    asker: &mut Asker<'_>,
    endpoint: Endpoint<16>,
) -> (Contents, Outcome) {
    let outcome = block.announce(asker, endpoint);
    if block.records().is_empty() {
        return (empty(block.completed(), asker.now), outcome);
    }
    (Contents::Few6(block), outcome)
}

/// An announce by a peer whose crowd is among those of one kind.
fn join_crowd<const ADDRESS: usize>(
    large: &mut Large,
    asker: &mut Asker<'_>,
    endpoint: Endpoint<ADDRESS>,
    crowds: impl Fn(&mut Large) -> &mut Vec<Crowd<ADDRESS>>,
) -> Outcome {
    let (all, scope) = (large.len(), asker.scope);
    if !crowds(large).iter().any(|crowd| crowd.scope == scope) {
        if !asker.joins() {
            return Outcome::default();
        }
        if !asker.admits(Crowd::<ADDRESS>::bytes_when_new()) {
            return refused(Stored::NoMemory);
        }
    }
    apply(large, asker, endpoint, all, |it| crowd_of(crowds(it), scope))
}

/// An announce by one of a swarm of `all` peers, whose crowd `own` finds.
fn apply<const ADDRESS: usize>(
    large: &mut Large,
    asker: &mut Asker<'_>,
    endpoint: Endpoint<ADDRESS>,
    all: usize,
    own: impl Fn(&mut Large) -> &mut Crowd<ADDRESS>,
) -> Outcome {
    let crowd = own(large);
    let beside = Beside { peers: all - crowd.records().len(), is_settled: true };
    let outcome = crowd.apply(asker, endpoint, beside);
    match outcome.waits {
        None => outcome,
        Some(role) => large.replace(asker, endpoint, (role, beside), own),
    }
}

/// A swarm with the downloads of a snapshot counted as well.
pub(super) fn with_completed(contents: Contents, more: Count, keys: &RandomState) -> Contents {
    match contents {
        Contents::Empty { completed, since_s } => {
            Contents::Empty { completed: completed.plus(more), since_s }
        }
        Contents::One(record, completed) => one(record, completed.plus(more), keys),
        Contents::Few4(mut block) => {
            block.set_completed(block.completed().plus(more));
            Contents::Few4(block)
        }
        Contents::Few6(mut block) => {
            block.set_completed(block.completed().plus(more));
            Contents::Few6(block)
        }
        Contents::Many(mut large) => {
            large.completed = large.completed.plus(more);
            Contents::Many(large)
        }
    }
}

/// A swarm nobody is in any more, kept for its count if that may outlive its peers.
pub(super) fn empty(completed: Count, now: Now) -> Contents {
    if !completed.outlives_peers() {
        return Contents::VACANT;
    }
    let since_s = u32::try_from(now.seconds()).unwrap_or(u32::MAX);
    Contents::Empty { completed, since_s }
}

/// A large swarm, or an empty one if its last peer has left.
fn settled(large: Owned, now: Now) -> Contents {
    if large.is_empty() { empty(large.completed, now) } else { Contents::Many(large) }
}

/// Moves any layout into the one that holds everything.
fn enlarge(contents: Contents, keys: &RandomState) -> Owned {
    let mut large = Owned::new(Large::default());
    match contents {
        Contents::Empty { completed, .. } => large.completed = completed,
        Contents::One(record, completed) => {
            large.completed = completed;
            crowd_of(&mut large.v4, record.scope()).insert(record, keys);
        }
        Contents::Few4(block) => {
            large.completed = block.completed();
            move_all(&block, &mut large.v4, keys);
        }
        Contents::Few6(block) => {
            large.completed = block.completed();
            move_all(&block, &mut large.v6, keys);
        }
        Contents::Many(it) => large = it,
    }
    large
}

fn move_all<const ADDRESS: usize>(
    block: &Block<ADDRESS>,
    crowds: &mut Vec<Crowd<ADDRESS>>,
    keys: &RandomState,
) where
    Record<ADDRESS>: Address,
{
    for record in block.records() {
        crowd_of(crowds, record.scope()).insert(*record, keys);
    }
}

/// How many are in a swarm: every kind, every scope.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    /// All of them.
    pub(super) peers: u32,
    seeders: u32,
    wanting: u32,
}

impl Tally {
    /// The swarm's.
    #[inline]
    pub(super) fn of(contents: &Contents) -> Self {
        match contents {
            Contents::Empty { .. } => Self::default(),
            Contents::One(record, _) => {
                let role = record.stamp().role();
                let (seeders, wanting) = (role == Role::Seeder, role.wants_data());
                Self { peers: 1, seeders: seeders.into(), wanting: wanting.into() }
            }
            Contents::Few4(block) => Self::of_roster(block),
            Contents::Few6(block) => Self::of_roster(block),
            Contents::Many(large) => {
                let v4 = large.v4.iter().map(Self::of_roster);
                let v6 = large.v6.iter().map(Self::of_roster);
                let web = large.web.as_deref().map(Self::of_roster);
                v4.chain(v6).chain(web).fold(Self::default(), Self::plus)
            }
        }
    }

    #[inline]
    fn of_roster<const ADDRESS: usize>(roster: &impl Roster<ADDRESS>) -> Self {
        let Counts { wanting, seeders } = roster.counts();
        let peers = u32::try_from(roster.records().len()).unwrap_or(u32::MAX);
        Self { peers, seeders, wanting }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            peers: self.peers + other.peers,
            seeders: self.seeders + other.seeders,
            wanting: self.wanting + other.wanting,
        }
    }

    /// As an announce is told.
    #[inline]
    pub(super) fn answer(self) -> Answer {
        let (seeders, leechers) = (self.seeders, self.peers - self.seeders);
        Answer { seeders, leechers, ..Answer::default() }
    }

    /// As a scrape is told, with the downloads counted.
    pub(super) fn entry(self, completed: Count) -> ScrapeEntry {
        let (seeders, leechers) = (self.seeders, self.peers - self.seeders);
        let completed = completed.number();
        ScrapeEntry { seeders, completed, leechers, downloaders: self.wanting }
    }
}

/// The swarm's counts, as a scrape is told.
pub(super) fn scrape(contents: &Contents) -> ScrapeEntry {
    Tally::of(contents).entry(completed(contents))
}

/// Downloads counted in a swarm.
fn completed(contents: &Contents) -> Count {
    match contents {
        Contents::Empty { completed, .. } | Contents::One(_, completed) => *completed,
        Contents::Few4(block) => block.completed(),
        Contents::Few6(block) => block.completed(),
        Contents::Many(large) => large.completed,
    }
}

/// Who is to be told of peers.
#[derive(Clone, Copy)]
pub(super) struct Reader {
    /// Who may be told of it.
    pub(super) scope: Scope,
    /// What it does.
    pub(super) role: Role,
    /// Its kind.
    pub(super) kind: Kind,
    /// Where it stands among those of its kind and scope, unless it is not stored.
    pub(super) position: Option<usize>,
}

impl Reader {
    /// Where the reader stands among those of a kind that it may be told of.
    #[inline]
    fn own_in(self, kind: Kind) -> Option<usize> {
        // Who only uploads is told of those who want data; it stands behind them itself.
        self.position.filter(|_| self.role.wants_data() && self.kind == kind)
    }

    /// The records of a small swarm that the reader may be told of: of one scope, which is that of
    /// a reader who is among them.
    #[inline]
    fn pool_of<const ADDRESS: usize>(self, run: &[Record<ADDRESS>]) -> Pool<'_, ADDRESS>
    where
        Record<ADDRESS>: Address,
    {
        let first = run.first().filter(|_| self.position.is_none());
        let scope = first.map_or(self.scope, Address::scope);
        let is_shown = scope == self.scope || scope == Scope::Public;
        let runs = [if is_shown { run } else { &[] }, &[]];
        Pool { runs, own: self.own_in(Record::<ADDRESS>::KIND), capped: capped(scope, false) }
    }
}

/// Writes peers for a reader; says how many bytes of each kind, and how many peers of each they
/// were chosen from.
#[inline]
pub(super) fn choose(
    contents: &Contents,
    reader: Reader,
    room: &mut Room<'_>,
    random: &mut Rng,
) -> [[usize; Kind::ALL.len()]; 2] {
    let Reader { scope, role, .. } = reader;
    match contents {
        Contents::One(record, _) if reader.position.is_none() => {
            let is_wanted = role.wants_data() || record.stamp().role().wants_data();
            let run = if is_wanted { std::slice::from_ref(record) } else { &[] };
            let pool = reader.pool_of(run);
            [[choose_from(&pool, random, room.v4), 0, 0], [pool.available(), 0, 0]]
        }
        Contents::Empty { .. } | Contents::One(..) => [[0; 3]; 2],
        Contents::Few4(block) => {
            let pool = reader.pool_of(run_of(block, role));
            [[choose_from(&pool, random, room.v4), 0, 0], [pool.available(), 0, 0]]
        }
        Contents::Few6(block) => {
            let pool = reader.pool_of(run_of(block, role));
            [[0, choose_from(&pool, random, room.v6), 0], [0, pool.available(), 0]]
        }
        Contents::Many(large) => {
            let v4 = pool_of(&large.v4, scope, role, reader.own_in(Kind::V4));
            let v6 = pool_of(&large.v6, scope, role, reader.own_in(Kind::V6));
            let web = large.web.as_deref().map_or(&[][..], std::slice::from_ref);
            let web = pool_of(web, Scope::Public, role, reader.own_in(Kind::Web));
            let bytes = [
                choose_from(&v4, random, room.v4),
                choose_from(&v6, random, room.v6),
                choose_from(&web, random, room.web),
            ];
            [bytes, [v4.available(), v6.available(), web.available()]]
        }
    }
}

/// Those of a roster whom an asker in `role` may be told of.
#[inline]
fn run_of<const ADDRESS: usize>(roster: &impl Roster<ADDRESS>, role: Role) -> &[Record<ADDRESS>] {
    let records = roster.records();
    if role.wants_data() { records } else { &records[..roster.counts().wanting as usize] }
}

fn pool_of<const ADDRESS: usize>(
    crowds: &[Crowd<ADDRESS>],
    scope: Scope,
    role: Role,
    own: Option<usize>,
) -> Pool<'_, ADDRESS> {
    let run = |scope: Scope| -> &[Record<ADDRESS>] {
        let crowd = crowds.iter().find(|crowd| crowd.scope == scope);
        crowd.map_or(&[], |crowd| run_of(crowd, role))
    };
    let public = if scope == Scope::Public { &[] } else { run(Scope::Public) };
    Pool { runs: [run(scope), public], own, capped: capped(scope, !public.is_empty()) }
}

/// Which candidates of an asker of `scope` are under caps, `public` telling whether there are
/// public ones beside its own.
#[inline]
fn capped(scope: Scope, public: bool) -> Capped {
    match (scope, public) {
        (Scope::Public, _) => Capped::All,
        (_, true) => Capped::Public,
        (_, false) => Capped::None,
    }
}
