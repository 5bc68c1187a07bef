//! Who announces, and what the store may do and take for it.

use ahash::RandomState;
use fastrand::Rng;

use super::Stored;
use super::memory::{Account, Memory};
use super::record::{Endpoint, Record, Role, Stamp};
use super::roster::{Change, Outcome};
use crate::time::Now;
use crate::types::Scope;

/// Who announces, and what.
pub(super) struct Asker<'a> {
    /// When.
    pub(super) now: Now,
    /// Who may be told of it.
    pub(super) scope: Scope,
    /// What happens to it.
    pub(super) change: Change,
    /// The keys of the store's hashes.
    pub(super) keys: &'a RandomState,
    /// Chooses who has to go, where someone has to.
    pub(super) random: &'a mut Rng,
    /// Whether new torrents are on probation.
    pub(super) is_short: bool,
    /// The most peers of a torrent.
    pub(super) peers_max: usize,
    /// Whether its network's share of a swarm is capped.
    pub(super) capped: bool,
    /// What a snapshot says of the peer: it does not announce now.
    restored: Option<Stamp>,
    budget: &'a Memory,
    account: &'a Account,
    /// Bytes admitted for this announce.
    admitted: u64,
}

impl<'a> Asker<'a> {
    /// An asker under a shard's lock.
    #[inline]
    pub(super) fn new(
        (now, scope, change): (Now, Scope, Change),
        keys: &'a RandomState,
        random: &'a mut Rng,
        capped: bool,
        (budget, account): (&'a Memory, &'a Account),
    ) -> Self {
        let (is_short, peers_max) = (budget.is_short(), budget.peers_max());
        Self {
            now,
            scope,
            change,
            keys,
            random,
            is_short,
            peers_max,
            capped: capped && scope == Scope::Public,
            restored: None,
            budget,
            account,
            admitted: 0,
        }
    }

    /// The same, for a peer that does not announce but comes from a snapshot, with this stamp.
    pub(super) fn restoring(self, stamp: Stamp) -> Self {
        Self { restored: Some(stamp), ..self }
    }

    /// Whether the peer comes from a snapshot.
    #[inline]
    pub(super) fn is_restored(&self) -> bool {
        self.restored.is_some()
    }

    /// Whether the peer is to be in the swarm after this.
    #[inline]
    pub(super) fn joins(&self) -> bool {
        matches!(self.change, Change::Present { .. })
    }

    /// Whether the store may take `bytes` more, beside those it was asked for already.
    #[inline]
    pub(super) fn admits(&mut self, bytes: usize) -> bool {
        if bytes == 0 {
            return true;
        }
        self.admitted += bytes as u64;
        self.budget.admits(self.account, self.admitted)
    }

    /// The record of a peer that joins.
    #[inline]
    pub(super) fn record<const ADDRESS: usize>(
        &self,
        endpoint: Endpoint<ADDRESS>,
        role: Role,
        on_probation: bool,
    ) -> Record<ADDRESS> {
        if let Some(stamp) = self.restored {
            return Record::new(endpoint, stamp);
        }
        Record::new(endpoint, Stamp::new(self.now, role).probed(on_probation))
    }

    /// The stamp of a peer that stays, and whether a download is counted. Who comes back while
    /// memory is not short is not on probation any more.
    #[inline]
    pub(super) fn renewed(&self, stamp: Stamp, role: Role, completed: bool) -> (Stamp, bool) {
        let (stamp, counts) = match self.restored {
            Some(restored) => (stamp.merged(restored, self.now), false),
            None => stamp.renewed(self.now, role, completed),
        };
        (stamp.probed(stamp.is_on_probation() && self.is_short), counts)
    }
}

/// A peer that is not stored.
pub(super) fn refused(stored: Stored) -> Outcome {
    Outcome { stored, ..Outcome::default() }
}

/// The most peers of a torrent that can be on probation: what can be looked at in passing.
pub(super) const PROBATION_PEERS_MAX: usize = 16;

/// Whether all of a swarm's peers are on probation.
#[inline]
pub(super) fn all_on_probation<const ADDRESS: usize>(records: &[Record<ADDRESS>]) -> bool {
    records.len() <= PROBATION_PEERS_MAX && records.iter().all(|it| it.stamp().is_on_probation())
}

/// Whether a peer that joins those of a torrent while memory is short is on probation: only if all
/// of them are, and of its own network. Two networks make a torrent credible. (A scrape does not:
/// one datagram names 74 torrents, so an attacker would vouch for his own with it.)
#[inline]
pub(super) fn joins_probation<const ADDRESS: usize>(
    records: &[Record<ADDRESS>],
    endpoint: &Endpoint<ADDRESS>,
) -> bool {
    let network = endpoint.network();
    records.len() < PROBATION_PEERS_MAX
        && records.iter().all(|it| it.stamp().is_on_probation() && it.endpoint.network() == network)
}
