//! Applies an announce to one swarm, in any of the five layouts.
//!
//! ```text
//! Empty ─▶ Inline ─▶ SmallV4 ─▶ Large      an IPv4 swarm as it grows
//! Empty ───────────▶ SmallV6 ─▶ Large      an IPv6 swarm
//! ```
//!
//! A second family or scope leads to `Large` at once, and so does a WebRTC peer. Layouts only grow
//! here; [`super::expire`] shrinks them.

use std::net::IpAddr;

use ahash::RandomState;

use super::Stored;
use super::context::AnnounceContext;
use super::large_swarm::{LargeSwarm, PeerGroup, group_of};
use super::peer::{Endpoint, PeerRecord, PeerRecordV4};
use super::peer_list::{ApplyResult, PeerChange, PeerList, SwarmContext};
use super::raw::{LargeSwarmPtr, PeerBlock};
use super::swarm::{CompletedCount, SmallLayout, Swarm};
use crate::types::{Contact, PeerKind};

/// The most additional bytes of the `Large` layout over any other layout for the same peers and a
/// new peer of any kind: heads and new groups.
const ENLARGED_BYTES: usize = size_of::<LargeSwarm>()
    + 2 * (size_of::<PeerGroup<16>>() + size_of::<PeerGroup<14>>() + SMALLEST_BYTES);

/// Bytes of the largest block for one peer.
const SMALLEST_BYTES: usize = 32;

/// Applies an announce to its own peer; returns the swarm after it, the peer's kind, and the
/// change.
#[inline]
pub(super) fn apply(
    swarm: Swarm,
    context: &mut AnnounceContext<'_>,
    address: IpAddr,
    contact: Contact,
) -> (Swarm, PeerKind, ApplyResult) {
    match (contact, address) {
        (Contact::Port(port), IpAddr::V4(address)) => {
            let endpoint = Endpoint::new(address.octets(), port);
            let (swarm, applied) = apply_v4(swarm, context, endpoint);
            (swarm, PeerKind::V4, applied)
        }
        (Contact::Port(port), IpAddr::V6(address)) => {
            let endpoint = Endpoint::new(address.octets(), port);
            let (swarm, applied) = apply_family(swarm, context, endpoint);
            (swarm, PeerKind::V6, applied)
        }
        (Contact::Web(peer), _) => {
            let (swarm, applied) = apply_web(swarm, context, Endpoint::of_web(peer));
            (swarm, PeerKind::Web, applied)
        }
    }
}

/// Applies an announce of an IPv4 peer; a single IPv4 peer has a layout of its own.
#[inline]
fn apply_v4(
    swarm: Swarm,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<4>,
) -> (Swarm, ApplyResult) {
    match swarm {
        Swarm::Empty { completed, .. } => {
            let PeerChange::Present { role, .. } = context.change else {
                return (swarm, ApplyResult::default());
            };
            // A torrent that has a count is never put on probation, so that the count cannot be
            // evicted with the new peer.
            let on_probation = context.budget.is_short && completed == CompletedCount::NONE;
            let record = context.record(endpoint, role, on_probation);
            let applied = ApplyResult {
                after: Some(role),
                state: record.meta().state(),
                position: Some(0),
                completed: context.counts_at_join(),
                ..ApplyResult::default()
            };
            (Swarm::of_one_peer(record, completed.after(&applied), context.keys), applied)
        }
        Swarm::Inline(record, completed) if record.endpoint == endpoint => {
            renew_inline(record, completed, context)
        }
        Swarm::Inline(record, completed)
            if context.joins() && record.endpoint.scope() == context.scope =>
        {
            if !context.budget.charge(PeerBlock::<4>::bytes_with_room(2)) {
                return (swarm, ApplyResult::refused(Stored::NoMemory));
            }
            apply_small(two_of(record, completed, context.keys), context, endpoint)
        }
        swarm => apply_family(swarm, context, endpoint),
    }
}

/// Applies an announce of an IPv4 or IPv6 peer.
#[inline]
fn apply_family<const ADDRESS: usize>(
    swarm: Swarm,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<ADDRESS>,
) -> (Swarm, ApplyResult)
where
    PeerBlock<ADDRESS>: SmallLayout<ADDRESS>,
{
    let swarm = match PeerBlock::from_swarm(swarm) {
        Ok(block) if has_place(&block, context, &endpoint) => {
            return apply_small(block, context, endpoint);
        }
        Ok(block) => block.into_swarm(),
        Err(other) => other,
    };
    match swarm {
        Swarm::Empty { completed, .. } if context.joins() => {
            if !context.budget.charge(PeerBlock::<ADDRESS>::bytes_with_room(1)) {
                return (swarm, ApplyResult::refused(Stored::NoMemory));
            }
            apply_small(PeerBlock::with_room(1, completed), context, endpoint)
        }
        Swarm::Large(large) => apply_large(large, context, endpoint),
        _ if !context.joins() => (swarm, ApplyResult::default()),
        _ if !context.budget.charge(ENLARGED_BYTES) => {
            (swarm, ApplyResult::refused(Stored::NoMemory))
        }
        _ => apply_large(enlarge(swarm, context.keys), context, endpoint),
    }
}

/// Applies an announce of a WebRTC peer.
fn apply_web(
    swarm: Swarm,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<14>,
) -> (Swarm, ApplyResult) {
    let known = matches!(&swarm, Swarm::Large(large) if large.web.is_some());
    if !known && !context.joins() {
        return (swarm, ApplyResult::default());
    }
    // While memory is short, a new torrent would be on probation. But the layout of WebRTC peers is
    // large and cannot be evicted in time, so the torrent is not stored at all.
    let is_new = matches!(&swarm, Swarm::Empty { completed: CompletedCount::NONE, .. });
    let is_refused = context.budget.is_short && is_new;
    if !known && (is_refused || !context.budget.charge(ENLARGED_BYTES)) {
        return (swarm, ApplyResult::refused(Stored::NoMemory));
    }
    let mut large = match swarm {
        Swarm::Large(large) => large,
        smaller => enlarge(smaller, context.keys),
    };
    let scope = context.scope;
    let applied = apply_to_group(&mut large, context, endpoint, |large| {
        &mut **large.web.get_or_insert_with(|| Box::new(PeerGroup::new(scope)))
    });
    large.completed = large.completed.after(&applied);
    (Swarm::of_large(large, context.now), applied)
}

fn renew_inline(
    record: PeerRecordV4,
    completed: CompletedCount,
    context: &AnnounceContext<'_>,
) -> (Swarm, ApplyResult) {
    let (before, known) = (Some(record.meta().role()), Some(record.meta()));
    match context.change {
        PeerChange::Stopped => {
            let applied = ApplyResult { before, known, ..ApplyResult::default() };
            (Swarm::empty(completed, context.now), applied)
        }
        PeerChange::Present { role, completed: ended } => {
            let (meta, counts) = context.renewed(record.meta(), role, ended);
            let record = PeerRecord::new(record.endpoint, meta);
            let applied = ApplyResult {
                before,
                known,
                after: Some(meta.role()),
                state: meta.state(),
                position: Some(0),
                completed: counts,
                ..ApplyResult::default()
            };
            (Swarm::of_one_peer(record, completed.after(&applied), context.keys), applied)
        }
    }
}

/// Makes a block for the inline peer and one more.
fn two_of(record: PeerRecordV4, completed: CompletedCount, keys: &RandomState) -> PeerBlock<4> {
    let mut block = PeerBlock::with_room(2, completed);
    block.insert(record, keys);
    block
}

/// Whether the peer is in this block, or the block has room for it and others of its scope.
#[inline]
fn has_place<const ADDRESS: usize>(
    block: &PeerBlock<ADDRESS>,
    context: &AnnounceContext<'_>,
    endpoint: &Endpoint<ADDRESS>,
) -> bool {
    let first = block.records().first();
    let same_scope = first.is_none_or(|record| record.endpoint.scope() == context.scope);
    same_scope && (!block.is_full() || block.position(endpoint, context.keys).is_some())
}

/// Applies an announce of a peer to a swarm that is a block.
#[inline]
fn apply_small<const ADDRESS: usize>(
    mut block: PeerBlock<ADDRESS>,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<ADDRESS>,
) -> (Swarm, ApplyResult)
where
    PeerBlock<ADDRESS>: SmallLayout<ADDRESS>,
{
    // A torrent that has a count is never put on probation, so that the count cannot be evicted
    // with the new peer.
    let is_settled = block.records().is_empty() && block.completed() != CompletedCount::NONE;
    let others = SwarmContext { peers: 0, is_settled };
    let mut applied = block.apply(context, endpoint, others);
    if let Some(role) = applied.waits {
        applied = block.replace(context, endpoint, role, others);
    }
    if applied.completed {
        block.set_completed(block.completed().after(&applied));
    }
    if block.records().is_empty() {
        return (Swarm::empty(block.completed(), context.now), applied);
    }
    (block.into_swarm(), applied)
}

/// Applies an announce of an IPv4 or IPv6 peer to a large swarm.
fn apply_large<const ADDRESS: usize>(
    mut large: LargeSwarmPtr,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<ADDRESS>,
) -> (Swarm, ApplyResult)
where
    PeerBlock<ADDRESS>: SmallLayout<ADDRESS>,
{
    let scope = context.scope;
    let groups = PeerBlock::groups;
    if !groups(&mut large).iter().any(|group| group.scope == scope) {
        if !context.joins() {
            return (Swarm::of_large(large, context.now), ApplyResult::default());
        }
        if !context.budget.charge(PeerGroup::<ADDRESS>::bytes_when_new()) {
            let refused = ApplyResult::refused(Stored::NoMemory);
            return (Swarm::of_large(large, context.now), refused);
        }
    }
    let applied =
        apply_to_group(&mut large, context, endpoint, |large| group_of(groups(large), scope));
    large.completed = large.completed.after(&applied);
    (Swarm::of_large(large, context.now), applied)
}

/// Applies an announce of a peer to a large swarm; `own` finds its group.
fn apply_to_group<const ADDRESS: usize>(
    large: &mut LargeSwarm,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<ADDRESS>,
    own: impl Fn(&mut LargeSwarm) -> &mut PeerGroup<ADDRESS>,
) -> ApplyResult {
    let all = large.len();
    let group = own(large);
    let others = SwarmContext { peers: all - group.records().len(), is_settled: true };
    let applied = group.apply(context, endpoint, others);
    match applied.waits {
        None => applied,
        Some(role) => large.replace(context, endpoint, (role, others), own),
    }
}

/// Converts any layout to the `Large` layout.
fn enlarge(swarm: Swarm, keys: &RandomState) -> LargeSwarmPtr {
    let mut large = LargeSwarmPtr::new(LargeSwarm::default());
    match swarm {
        Swarm::Empty { completed, .. } => large.completed = completed,
        Swarm::Inline(record, completed) => {
            large.completed = completed;
            group_of(&mut large.v4, record.endpoint.scope()).insert(record, keys);
        }
        Swarm::SmallV4(block) => move_all(&block, &mut large, keys),
        Swarm::SmallV6(block) => move_all(&block, &mut large, keys),
        Swarm::Large(swarm) => large = swarm,
    }
    large
}

fn move_all<const ADDRESS: usize>(
    block: &PeerBlock<ADDRESS>,
    large: &mut LargeSwarm,
    keys: &RandomState,
) where
    PeerBlock<ADDRESS>: SmallLayout<ADDRESS>,
{
    large.completed = block.completed();
    let groups = PeerBlock::groups(large);
    for record in block.records() {
        group_of(groups, record.endpoint.scope()).insert(*record, keys);
    }
}
