//! The order of peers, for every kind of list.
//!
//! ```text
//! 0            wanting                 len
//! | leechers …  | seeders and paused … |
//! ```
//!
//! Peers that want data are in front, so "all peers" and "peers useful to an uploader" are both one
//! slice, and the cost of a random choice is proportional to the peers it returns. Every change is
//! at most two swaps and a push or pop; a list with an index updates it at each step.

use ahash::RandomState;

use super::context::AnnounceContext;
use super::merge::PeerState;
use super::peer::{Endpoint, PeerMeta, PeerNetwork, PeerRecord, Role};
use super::{Stored, full_swarm};
use crate::time::Now;
use crate::types::{PeerKind, Scope};

/// The number of peers of each role in a list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RoleCounts {
    /// Peers that want data: the front part.
    pub(super) wanting: u32,
    /// Complete peers.
    pub(super) seeders: u32,
}

impl RoleCounts {
    fn add(&mut self, role: Role) {
        match role {
            Role::Leecher => self.wanting += 1,
            Role::Paused => {}
            Role::Seeder => self.seeders += 1,
        }
    }

    fn remove(&mut self, role: Role) {
        match role {
            Role::Leecher => self.wanting -= 1,
            Role::Paused => {}
            Role::Seeder => self.seeders -= 1,
        }
    }
}

/// What an announce does to its own peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerChange {
    /// Join or stay, in this role; `completed` if the client reports the end of its download.
    Present {
        /// The peer's new role.
        role: Role,
        /// Whether the event was `completed`.
        completed: bool,
    },
    /// Leave.
    Stopped,
}

/// The result of a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ApplyResult {
    /// The role it had, if the peer was known.
    pub(super) before: Option<Role>,
    /// Its meta data before.
    pub(super) known: Option<PeerMeta>,
    /// The role it has, if the peer stays.
    pub(super) after: Option<Role>,
    /// The state it has, if the peer stays.
    pub(super) state: PeerState,
    /// The peer's position, if it stays.
    pub(super) position: Option<usize>,
    /// Whether a download was counted.
    pub(super) completed: bool,
    /// Whether a peer of another network was in the list when the download was counted.
    pub(super) is_witnessed: bool,
    /// The kind and role of the peer that it replaced.
    pub(super) replaced: Option<(PeerKind, Role)>,
    /// The role of a new peer that is not in the full swarm yet, because it must replace another
    /// peer.
    pub(super) waits: Option<Role>,
    /// Whether a peer that was to join did.
    pub(super) stored: Stored,
}

impl ApplyResult {
    /// A peer that is not stored.
    pub(super) fn refused(stored: Stored) -> Self {
        Self { stored, ..Self::default() }
    }
}

/// The parts of a swarm outside a list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SwarmContext {
    /// Peers in its other lists.
    pub(super) peers: usize,
    /// Whether the torrent is never on probation, whatever peers are in the list.
    pub(super) is_settled: bool,
}

/// The place of a new peer's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placement {
    /// A new record.
    Own,
    /// The record of another peer of the list, which is replaced.
    Of(usize),
    /// The record of another peer of the full swarm.
    Others,
    /// Nowhere.
    None,
}

/// The cap on peers of one host is not enforced below this many peers: responses have their own
/// caps.
pub(super) const HOSTS_COUNTED_FROM: usize = 256;

/// Records read to find a long silent peer. On average, 3 % of all peers have been silent for
/// longer than the longest silent of this many.
const SILENT_SAMPLE: usize = 32;

/// Records read to find a peer of another network.
const WITNESSES_MAX: usize = 64;

/// Storage of the peers of one swarm that share family and scope.
pub(super) trait PeerList<const ADDRESS: usize> {
    /// All peers, those that want data first.
    fn records(&self) -> &[PeerRecord<ADDRESS>];
    /// The counts by role.
    fn counts(&self) -> RoleCounts;
    /// Replaces the counts.
    fn set_counts(&mut self, counts: RoleCounts);
    /// The position of a peer.
    fn position(&self, endpoint: &Endpoint<ADDRESS>, keys: &RandomState) -> Option<usize>;
    /// Replaces a record by one of the same endpoint.
    fn renew(&mut self, at: usize, record: PeerRecord<ADDRESS>);
    /// Exchanges two records.
    fn swap(&mut self, a: usize, b: usize, keys: &RandomState);
    /// Adds a record at the end.
    fn push(&mut self, record: PeerRecord<ADDRESS>, keys: &RandomState);
    /// Removes the last record.
    fn pop(&mut self, keys: &RandomState);

    /// Additional bytes for `more` records (0 or 1), and for moving records.
    fn growth(&self, more: usize) -> usize;
    /// The place of a new peer to which the cap per host of a large list applies.
    fn placement_by_host(
        &self,
        endpoint: &Endpoint<ADDRESS>,
        now: Now,
        keys: &RandomState,
    ) -> Placement;

    /// Applies one announce to its own peer.
    #[inline]
    fn apply(
        &mut self,
        context: &mut AnnounceContext<'_>,
        endpoint: Endpoint<ADDRESS>,
        others: SwarmContext,
    ) -> ApplyResult {
        let at = self.position(&endpoint, context.keys);
        match (at, context.change) {
            (None, PeerChange::Stopped) => ApplyResult::default(),
            (None, PeerChange::Present { role, .. }) => self.join(context, endpoint, role, others),
            (Some(at), PeerChange::Stopped) => {
                let known = Some(self.records()[at].meta());
                ApplyResult {
                    before: Some(self.remove(at, context.keys)),
                    known,
                    ..ApplyResult::default()
                }
            }
            (Some(at), PeerChange::Present { role, completed }) => {
                let before = self.records()[at].meta();
                let (meta, completed) = context.renewed(before, role, completed);
                let is_witnessed = completed && self.has_witness(&endpoint, context.scope);
                self.renew(at, PeerRecord::new(endpoint, meta));
                let role = meta.role();
                let known = Some(before);
                let before = before.role();
                let position =
                    if before == role { at } else { self.recast(at, before, role, context.keys) };
                ApplyResult {
                    before: Some(before),
                    known,
                    after: Some(role),
                    state: meta.state(),
                    position: Some(position),
                    completed,
                    is_witnessed,
                    ..ApplyResult::default()
                }
            }
        }
    }

    /// Whether there is a peer of another network, from which a download may have come. In a large
    /// list only some records at both ends are read. Peers of another kind do not count, because a
    /// host may have an address of each family.
    #[cold]
    fn has_witness(&self, endpoint: &Endpoint<ADDRESS>, scope: Scope) -> bool {
        let records = self.records();
        let (front, back) = records.split_at(records.len().min(WITNESSES_MAX / 2));
        let back = &back[back.len().saturating_sub(WITNESSES_MAX / 2)..];
        let network = endpoint.network_in(scope);
        front.iter().chain(back).any(|it| it.endpoint.network_in(scope) != network)
    }

    /// Adds a new peer, if there is a place and memory for it.
    fn join(
        &mut self,
        context: &mut AnnounceContext<'_>,
        endpoint: Endpoint<ADDRESS>,
        role: Role,
        others: SwarmContext,
    ) -> ApplyResult {
        match self.placement(context, &endpoint, others.peers) {
            Placement::Others => ApplyResult { waits: Some(role), ..ApplyResult::default() },
            placement => self.enter(context, endpoint, role, placement, others),
        }
    }

    /// Adds a new peer at a place, if there is memory for it.
    fn enter(
        &mut self,
        context: &mut AnnounceContext<'_>,
        endpoint: Endpoint<ADDRESS>,
        role: Role,
        placement: Placement,
        others: SwarmContext,
    ) -> ApplyResult {
        let on_probation = context.budget.is_short
            && !others.is_settled
            && joins_probation(self.records(), &endpoint);
        let replaced = match placement {
            Placement::None | Placement::Others => {
                return ApplyResult::refused(Stored::HostFull);
            }
            Placement::Own if !context.budget.charge(self.growth(1)) => {
                return ApplyResult::refused(Stored::NoMemory);
            }
            Placement::Of(_) if !context.budget.charge(self.growth(0)) => {
                return ApplyResult::refused(Stored::NoMemory);
            }
            Placement::Own => None,
            Placement::Of(at) => Some((Endpoint::<ADDRESS>::KIND, self.remove(at, context.keys))),
        };
        let record = context.record(endpoint, role, on_probation);
        let position = self.insert(record, context.keys);
        let completed = context.counts_at_join();
        ApplyResult {
            after: Some(role),
            state: record.meta().state(),
            position: Some(position),
            completed,
            is_witnessed: completed && self.has_witness(&endpoint, context.scope),
            replaced,
            ..ApplyResult::default()
        }
    }

    /// The place of a new peer; `others` describes the swarm outside this list.
    fn placement(
        &self,
        context: &mut AnnounceContext<'_>,
        endpoint: &Endpoint<ADDRESS>,
        others: usize,
    ) -> Placement {
        let len = self.records().len();
        if context.is_capped && len >= HOSTS_COUNTED_FROM && Endpoint::<ADDRESS>::HAS_PREFIX {
            let placement = self.placement_by_host(endpoint, context.now, context.keys);
            match placement {
                Placement::Own => {}
                Placement::Of(_) if !context.may_replace() => return Placement::None,
                placement => return placement,
            }
        }
        if len + others < context.budget.peers_max || len == 0 {
            return Placement::Own; // the first peer of its kind replaces no other
        }
        if !context.may_replace() {
            return Placement::None;
        }
        Placement::Others
    }

    /// The place of a long silent peer. The list is not empty.
    fn placement_by_silence(&self, context: &mut AnnounceContext<'_>) -> Placement {
        let len = self.records().len();
        let drawn = (0..SILENT_SAMPLE).map(|_| context.random.usize(..len));
        let silent_s = |at: &usize| self.records()[*at].meta().age_s(context.now);
        drawn.max_by_key(silent_s).map_or(Placement::Own, Placement::Of)
    }

    /// The network of a peer and the seconds since its latest announce, for
    /// [`full_swarm::overrepresented`]; `None` of a local one.
    #[inline]
    fn look(&self, at: usize, now: Now) -> Option<(PeerNetwork, u32)> {
        let PeerRecord { endpoint, .. } = &self.records()[at];
        let silent_s = self.records()[at].meta().age_s(now);
        endpoint.is_public().then(|| (endpoint.network_of_kind(), silent_s))
    }

    /// Replaces a peer of the list, which is the whole full swarm, by a new peer.
    #[cold]
    fn replace(
        &mut self,
        context: &mut AnnounceContext<'_>,
        endpoint: Endpoint<ADDRESS>,
        role: Role,
        others: SwarmContext,
    ) -> ApplyResult {
        let newcomer = context.is_capped.then(|| endpoint.network_of_kind());
        let (len, now) = (self.records().len(), context.now);
        let overrepresented =
            full_swarm::overrepresented(len, newcomer, context.random, |at| self.look(at, now));
        let placement =
            overrepresented.map_or_else(|| self.placement_by_silence(context), Placement::Of);
        self.enter(context, endpoint, role, placement, others)
    }

    /// Adds a peer; returns its position.
    fn insert(&mut self, record: PeerRecord<ADDRESS>, keys: &RandomState) -> usize {
        let role = record.meta().role();
        let last = self.records().len();
        self.push(record, keys);
        let mut counts = self.counts();
        counts.add(role);
        self.set_counts(counts);
        if !role.wants_data() {
            return last;
        }
        let border = counts.wanting as usize - 1;
        self.swap(border, last, keys);
        border
    }

    /// Removes a peer; returns its role.
    fn remove(&mut self, at: usize, keys: &RandomState) -> Role {
        let role = self.records()[at].meta().role();
        let mut counts = self.counts();
        counts.remove(role);
        self.set_counts(counts);
        let mut hole = at;
        if role.wants_data() {
            let border = counts.wanting as usize;
            self.swap(hole, border, keys);
            hole = border;
        }
        let last = self.records().len() - 1;
        self.swap(hole, last, keys);
        self.pop(keys);
        role
    }

    /// Moves a peer whose role changed to its side of the border; returns its position.
    fn recast(&mut self, at: usize, before: Role, after: Role, keys: &RandomState) -> usize {
        let mut counts = self.counts();
        counts.remove(before);
        counts.add(after);
        self.set_counts(counts);
        let position = match (before.wants_data(), after.wants_data()) {
            (true, false) => counts.wanting as usize,
            (false, true) => counts.wanting as usize - 1,
            _ => at,
        };
        self.swap(at, position, keys);
        position
    }

    /// Removes every peer older than `age_s_max` among the positions below `end`, visiting at most
    /// `budget` of them, from the back: a peer that moves into a gap was visited before. Returns
    /// the `end` to continue with, if peers are left.
    fn expire(
        &mut self,
        now: Now,
        age_s_max: u32,
        end: usize,
        budget: usize,
        keys: &RandomState,
        mut gone: impl FnMut(Role),
    ) -> Option<usize> {
        let end = end.min(self.records().len());
        let start = end.saturating_sub(budget);
        for at in (start..end).rev() {
            if self.records()[at].meta().age_s(now) > age_s_max {
                gone(self.remove(at, keys));
            }
        }
        (start > 0).then_some(start)
    }
}

/// The most peers of a torrent that can be on probation: few enough to be checked at each announce.
const PROBATION_PEERS_MAX: usize = 16;

/// Whether all of a swarm's peers are on probation.
#[inline]
pub(super) fn all_on_probation<const ADDRESS: usize>(records: &[PeerRecord<ADDRESS>]) -> bool {
    records.len() <= PROBATION_PEERS_MAX && records.iter().all(|it| it.meta().is_on_probation())
}

/// Whether a peer that joins those of a torrent while memory is short is on probation: only if all
/// of them are, and are of its own network. Peers of two networks make a torrent credible. (A
/// scrape does not: one datagram names 74 torrents, so an attacker could use it for its own
/// torrents.)
#[inline]
fn joins_probation<const ADDRESS: usize>(
    records: &[PeerRecord<ADDRESS>],
    endpoint: &Endpoint<ADDRESS>,
) -> bool {
    let network = endpoint.network();
    records.len() < PROBATION_PEERS_MAX
        && records.iter().all(|it| it.meta().is_on_probation() && it.endpoint.network() == network)
}
