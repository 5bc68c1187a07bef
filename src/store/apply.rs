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

use super::Stored;
use super::context::AnnounceContext;
use super::large_swarm::{LargeSwarm, PeerGroup, group_of};
use super::raw::{LargeSwarmPtr, PeerBlock};
use super::record::{Endpoint, Record, Record4};
use super::roster::{Beside, Change, Outcome, Roster};
use super::swarm::{CompletedCount, SmallLayout, Swarm};
use crate::types::{Contact, Kind};

/// Bytes that the layout which holds everything takes more than any other for the same peers, and
/// a newcomer of any kind: heads and new crowds.
const ENLARGED_BYTES: usize = size_of::<LargeSwarm>()
    + 2 * (size_of::<PeerGroup<16>>() + size_of::<PeerGroup<14>>() + SMALLEST_BYTES);

/// Bytes of the largest block for one peer.
const SMALLEST_BYTES: usize = 32;

/// Applies an announce to its own peer: the swarm after it, the peer's kind, and what it did.
#[inline]
pub(super) fn apply(
    swarm: Swarm,
    context: &mut AnnounceContext<'_>,
    address: IpAddr,
    contact: Contact,
) -> (Swarm, Kind, Outcome) {
    match (contact, address) {
        (Contact::Port(port), IpAddr::V4(address)) => {
            let endpoint = Endpoint::new(address.octets(), port);
            let (swarm, outcome) = apply_v4(swarm, context, endpoint);
            (swarm, Kind::V4, outcome)
        }
        (Contact::Port(port), IpAddr::V6(address)) => {
            let endpoint = Endpoint::new(address.octets(), port);
            let (swarm, outcome) = apply_family(swarm, context, endpoint);
            (swarm, Kind::V6, outcome)
        }
        (Contact::Web(peer), _) => {
            let (swarm, outcome) = apply_web(swarm, context, Endpoint::of_web(peer));
            (swarm, Kind::Web, outcome)
        }
    }
}

/// An announce by an IPv4 peer, of which one alone has a layout of its own.
#[inline]
fn apply_v4(
    swarm: Swarm,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<4>,
) -> (Swarm, Outcome) {
    match swarm {
        Swarm::Empty { completed, .. } => {
            let Change::Present { role, .. } = context.change else {
                return (swarm, Outcome::default());
            };
            // A torrent that has a count is never put on probation, so that the count cannot be
            // evicted with the new peer.
            let on_probation = context.budget.is_short && completed == CompletedCount::NONE;
            let record = context.record(endpoint, role, on_probation);
            let outcome = Outcome { after: Some(role), position: Some(0), ..Outcome::default() };
            (Swarm::of_one_peer(record, completed, context.keys), outcome)
        }
        Swarm::Inline(record, completed) if record.endpoint == endpoint => {
            renew_inline(record, completed, context)
        }
        Swarm::Inline(record, completed)
            if context.joins() && record.endpoint.scope() == context.scope =>
        {
            if !context.budget.charge(PeerBlock::<4>::bytes_with_room(2)) {
                return (swarm, Outcome::refused(Stored::NoMemory));
            }
            apply_small(two_of(record, completed, context.keys), context, endpoint)
        }
        swarm => apply_family(swarm, context, endpoint),
    }
}

/// An announce by an IPv4 or IPv6 peer.
#[inline]
fn apply_family<const ADDRESS: usize>(
    swarm: Swarm,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<ADDRESS>,
) -> (Swarm, Outcome)
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
                return (swarm, Outcome::refused(Stored::NoMemory));
            }
            apply_small(PeerBlock::with_room(1, completed), context, endpoint)
        }
        Swarm::Large(large) => apply_large(large, context, endpoint),
        _ if !context.joins() => (swarm, Outcome::default()),
        _ if !context.budget.charge(ENLARGED_BYTES) => (swarm, Outcome::refused(Stored::NoMemory)),
        _ => apply_large(enlarge(swarm, context.keys), context, endpoint),
    }
}

/// An announce by a WebRTC peer.
fn apply_web(
    swarm: Swarm,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<14>,
) -> (Swarm, Outcome) {
    let known = matches!(&swarm, Swarm::Large(large) if large.web.is_some());
    if !known && !context.joins() {
        return (swarm, Outcome::default());
    }
    // Where memory is short, a torrent that is new would be on probation; but the layout of WebRTC
    // peers takes much and cannot be evicted in time, so it is not stored at all.
    let is_new = matches!(&swarm, Swarm::Empty { completed: CompletedCount::NONE, .. });
    let is_refused = context.budget.is_short && is_new;
    if !known && (is_refused || !context.budget.charge(ENLARGED_BYTES)) {
        return (swarm, Outcome::refused(Stored::NoMemory));
    }
    let mut large = match swarm {
        Swarm::Large(large) => large,
        smaller => enlarge(smaller, context.keys),
    };
    let scope = context.scope;
    let outcome = apply_to_group(&mut large, context, endpoint, |large| {
        &mut **large.web.get_or_insert_with(|| Box::new(PeerGroup::new(scope)))
    });
    large.completed = large.completed.after(&outcome);
    (Swarm::of_large(large, context.now), outcome)
}

fn renew_inline(
    record: Record4,
    completed: CompletedCount,
    context: &AnnounceContext<'_>,
) -> (Swarm, Outcome) {
    let (before, known) = (Some(record.stamp().role()), Some(record.stamp()));
    match context.change {
        Change::Stopped => {
            let outcome = Outcome { before, known, ..Outcome::default() };
            (Swarm::empty(completed, context.now), outcome)
        }
        Change::Present { role, completed: ended } => {
            let (stamp, counts) = context.renewed(record.stamp(), role, ended);
            let record = Record::new(record.endpoint, stamp);
            let outcome = Outcome {
                before,
                known,
                after: Some(stamp.role()),
                position: Some(0),
                completed: counts,
                ..Outcome::default()
            };
            (Swarm::of_one_peer(record, completed.after(&outcome), context.keys), outcome)
        }
    }
}

/// A block for the peer in place and one more.
fn two_of(record: Record4, completed: CompletedCount, keys: &RandomState) -> PeerBlock<4> {
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

/// An announce by one of a swarm that is a block.
#[inline]
fn apply_small<const ADDRESS: usize>(
    mut block: PeerBlock<ADDRESS>,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<ADDRESS>,
) -> (Swarm, Outcome)
where
    PeerBlock<ADDRESS>: SmallLayout<ADDRESS>,
{
    // A torrent that has a count is never put on probation, so that the count cannot be evicted
    // with the new peer.
    let is_settled = block.records().is_empty() && block.completed() != CompletedCount::NONE;
    let beside = Beside { peers: 0, is_settled };
    let mut outcome = block.apply(context, endpoint, beside);
    if let Some(role) = outcome.waits {
        outcome = block.replace(context, endpoint, role, beside);
    }
    if outcome.completed {
        block.set_completed(block.completed().after(&outcome));
    }
    if block.records().is_empty() {
        return (Swarm::empty(block.completed(), context.now), outcome);
    }
    (block.into_swarm(), outcome)
}

/// An announce by an IPv4 or IPv6 peer of a large swarm.
fn apply_large<const ADDRESS: usize>(
    mut large: LargeSwarmPtr,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<ADDRESS>,
) -> (Swarm, Outcome)
where
    PeerBlock<ADDRESS>: SmallLayout<ADDRESS>,
{
    let scope = context.scope;
    let groups = PeerBlock::groups;
    if !groups(&mut large).iter().any(|group| group.scope == scope) {
        if !context.joins() {
            return (Swarm::of_large(large, context.now), Outcome::default());
        }
        if !context.budget.charge(PeerGroup::<ADDRESS>::bytes_when_new()) {
            let refused = Outcome::refused(Stored::NoMemory);
            return (Swarm::of_large(large, context.now), refused);
        }
    }
    let outcome =
        apply_to_group(&mut large, context, endpoint, |large| group_of(groups(large), scope));
    large.completed = large.completed.after(&outcome);
    (Swarm::of_large(large, context.now), outcome)
}

/// An announce by one of a large swarm, whose crowd `own` finds.
fn apply_to_group<const ADDRESS: usize>(
    large: &mut LargeSwarm,
    context: &mut AnnounceContext<'_>,
    endpoint: Endpoint<ADDRESS>,
    own: impl Fn(&mut LargeSwarm) -> &mut PeerGroup<ADDRESS>,
) -> Outcome {
    let all = large.len();
    let group = own(large);
    let beside = Beside { peers: all - group.records().len(), is_settled: true };
    let outcome = group.apply(context, endpoint, beside);
    match outcome.waits {
        None => outcome,
        Some(role) => large.replace(context, endpoint, (role, beside), own),
    }
}

/// Moves any layout into the one that holds everything.
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
        Swarm::Large(it) => large = it,
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
