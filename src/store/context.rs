//! The context of an announce while it is applied: its peer, the time, and the memory budget.

use ahash::RandomState;
use fastrand::Rng;

use super::memory::ShardBudget;
use super::peer::{Endpoint, PeerMeta, PeerRecord, Role};
use super::peer_list::PeerChange;
use crate::time::Now;
use crate::types::Scope;

/// An announce that is applied under its shard's lock, or a peer that is restored like an announce.
pub(super) struct AnnounceContext<'a> {
    /// When.
    pub(super) now: Now,
    /// The scope in which the peer may be handed out.
    pub(super) scope: Scope,
    /// The change to the peer.
    pub(super) change: PeerChange,
    /// Whether caps on the swarm's peers per host and network apply to the peer.
    pub(super) is_capped: bool,
    /// Where the peer comes from.
    pub(super) source: PeerSource,
    /// The memory budget of the shard.
    pub(super) budget: ShardBudget<'a>,
    /// The keys of the store's hashes.
    pub(super) keys: &'a RandomState,
    /// The source of randomness for choosing a peer to replace.
    pub(super) random: &'a mut Rng,
}

/// Where the peer of an [`AnnounceContext`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PeerSource {
    /// It announces to this node.
    Announce,
    /// A snapshot, with this meta data.
    Restored(PeerMeta),
    /// Another node, to which it announced.
    Merged {
        /// Its meta data there.
        meta: PeerMeta,
        /// Whether its download was counted with that announce.
        completed: bool,
    },
}

impl AnnounceContext<'_> {
    /// Whether the peer is to be in the swarm after the announce.
    #[inline]
    pub(super) fn joins(&self) -> bool {
        matches!(self.change, PeerChange::Present { .. })
    }

    /// The record of a peer that joins.
    #[inline]
    pub(super) fn record<const ADDRESS: usize>(
        &self,
        endpoint: Endpoint<ADDRESS>,
        role: Role,
        on_probation: bool,
    ) -> PeerRecord<ADDRESS> {
        let meta = match self.source {
            PeerSource::Announce => PeerMeta::new(self.now, role).with_probation(on_probation),
            PeerSource::Restored(meta) => meta,
            PeerSource::Merged { meta, completed } => {
                meta.with_count(completed).with_probation(on_probation)
            }
        };
        PeerRecord::new(endpoint, meta)
    }

    /// Whether a peer may replace another one: not if it comes from elsewhere, because the peers in
    /// the swarm may have announced since.
    #[inline]
    pub(super) fn may_replace(&self) -> bool {
        self.source == PeerSource::Announce
    }

    /// Whether the download of a peer that joins is counted: another node has counted it.
    #[inline]
    pub(super) fn counts_at_join(&self) -> bool {
        matches!(self.source, PeerSource::Merged { completed: true, .. })
    }

    /// The meta data of a peer that stays, and whether a download is counted. A peer that announces
    /// again while memory is not short is no longer on probation.
    #[inline]
    pub(super) fn renewed(&self, meta: PeerMeta, role: Role, completed: bool) -> (PeerMeta, bool) {
        let (meta, counts) = match self.source {
            PeerSource::Announce => meta.renewed(self.now, role, completed),
            PeerSource::Restored(restored) => (meta.merged(restored, self.now), false),
            PeerSource::Merged { meta: other, completed } => {
                meta.replaced_by(other.with_count(completed))
            }
        };
        (meta.with_probation(meta.is_on_probation() && self.budget.is_short), counts)
    }
}
