//! The order peers are kept in, whatever holds them.
//!
//! ```text
//! 0            wanting                 len
//! | leechers …  | seeders and paused … |
//! ```
//!
//! Those that want data stand in front, so "everyone" and "everyone worth telling an uploader" are
//! both one slice, and a random choice costs as much as the peers it returns. Every change is at
//! most two swaps and a push or pop; a roster with an index hears of each of them.

use ahash::RandomState;

use super::record::{Endpoint, Record, Role, Stamp};
use crate::time::Now;

/// How many of each role a roster holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Peers that want data: the front part.
    pub(super) wanting: u32,
    /// Complete peers.
    pub(super) seeders: u32,
}

impl Counts {
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
pub enum Change {
    /// Join or stay, in this role; `completed` where the client says its download just ended.
    Present {
        /// What the peer does from now on.
        role: Role,
        /// Whether the event was `completed`.
        completed: bool,
    },
    /// Leave.
    Stopped,
}

/// What a change did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// The role it had, if the peer was known.
    pub(super) before: Option<Role>,
    /// The role it has, if the peer stays.
    pub(super) after: Option<Role>,
    /// Where the peer stands now, if it stays.
    pub(super) position: Option<usize>,
    /// Whether a download was counted.
    pub(super) completed: bool,
}

/// Storage of the peers of one swarm that share family and scope.
pub(super) trait Roster<const ADDRESS: usize> {
    /// All peers, those that want data first.
    fn records(&self) -> &[Record<ADDRESS>];
    /// How many of which role.
    fn counts(&self) -> Counts;
    /// Replaces the counts.
    fn set_counts(&mut self, counts: Counts);
    /// Where a peer stands.
    fn position(&self, endpoint: &Endpoint<ADDRESS>, keys: &RandomState) -> Option<usize>;
    /// Replaces a record by one of the same endpoint.
    fn renew(&mut self, at: usize, record: Record<ADDRESS>);
    /// Exchanges two records.
    fn swap(&mut self, a: usize, b: usize, keys: &RandomState);
    /// Adds a record at the end.
    fn push(&mut self, record: Record<ADDRESS>, keys: &RandomState);
    /// Takes the last record away.
    fn pop(&mut self, keys: &RandomState);

    /// Applies one announce to its own peer.
    #[inline]
    fn apply(
        &mut self,
        now: Now,
        endpoint: Endpoint<ADDRESS>,
        change: Change,
        keys: &RandomState,
    ) -> Outcome {
        let at = self.position(&endpoint, keys);
        match (at, change) {
            (None, Change::Stopped) => Outcome::default(),
            (None, Change::Present { role, .. }) => {
                let position = self.insert(Record::new(endpoint, Stamp::new(now, role)), keys);
                Outcome { after: Some(role), position: Some(position), ..Outcome::default() }
            }
            (Some(at), Change::Stopped) => {
                Outcome { before: Some(self.remove(at, keys)), ..Outcome::default() }
            }
            (Some(at), Change::Present { role, completed }) => {
                let before = self.records()[at].stamp();
                let (stamp, completed) = before.renewed(now, role, completed);
                self.renew(at, Record::new(endpoint, stamp));
                let before = before.role();
                let position =
                    if before == role { at } else { self.recast(at, before, role, keys) };
                Outcome {
                    before: Some(before),
                    after: Some(role),
                    position: Some(position),
                    completed,
                }
            }
        }
    }

    /// Adds a peer; says where it stands.
    fn insert(&mut self, record: Record<ADDRESS>, keys: &RandomState) -> usize {
        let role = record.stamp().role();
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

    /// Takes a peer away; says what it was.
    fn remove(&mut self, at: usize, keys: &RandomState) -> Role {
        let role = self.records()[at].stamp().role();
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

    /// Moves a peer whose role changed to its side of the border; says where it stands.
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

    /// Takes away every peer older than `age_s_max` among the positions below `end`, looking at no
    /// more than `budget` of them, from the back: what moves into a gap was looked at before.
    /// Returns where to go on, if anything is left.
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
            if self.records()[at].stamp().age_s(now) > age_s_max {
                gone(self.remove(at, keys));
            }
        }
        (start > 0).then_some(start)
    }
}
