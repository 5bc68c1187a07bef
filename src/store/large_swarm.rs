//! Swarms that do not fit a block: very many peers, several kinds, or several scopes.
//!
//! Peers of one kind and one scope form a group: a block while it fits, beyond that an array with
//! an index of endpoint to position, so that an announce costs the same in a swarm of two thousand
//! peers and of a million. A table of small counts holds the number of peers of each host, so that
//! a host over its cap is refused without reading other records, see [`HostCounts`].

use ahash::RandomState;
use hashbrown::raw::RawTable;

use super::context::AnnounceContext;
use super::full_swarm;
use super::host_counts::HostCounts;
use super::peer::{Endpoint, PeerNetwork, PeerRecord, Role};
use super::peer_list::{ApplyResult, PeerList, Placement, RoleCounts, SwarmContext};
use super::raw::{BLOCK_RECORDS_MAX, PeerBlock};
use super::swarm::CompletedCount;
use crate::time::Now;
use crate::types::{PeerKind, Scope};

/// One swarm's groups; at most one of each kind and scope.
#[derive(Default)]
pub(super) struct LargeSwarm {
    /// Downloads counted.
    pub(super) completed: CompletedCount,
    /// IPv4 peers by scope.
    pub(super) v4: Vec<PeerGroup<4>>,
    /// IPv6 peers by scope.
    pub(super) v6: Vec<PeerGroup<16>>,
    /// WebRTC peers, which are all of one scope. Boxed, so that a swarm without them is no larger
    /// than a cache line.
    pub(super) web: Option<Box<PeerGroup<14>>>,
}

const _: () = assert!(size_of::<LargeSwarm>() <= 64);

impl LargeSwarm {
    /// Whether no group has a peer.
    pub(super) fn is_empty(&self) -> bool {
        self.v4.iter().all(|group| group.records().is_empty())
            && self.v6.iter().all(|group| group.records().is_empty())
            && self.web.iter().all(|group| group.records().is_empty())
    }

    /// The number of peers in all groups.
    pub(super) fn len(&self) -> usize {
        let [v4, v6] = [len_of(&self.v4), len_of(&self.v6)];
        v4 + v6 + self.web.as_ref().map_or(0, |group| group.records().len())
    }

    /// The network of the peer with this index, and the seconds since its latest announce; `None`
    /// for a local peer.
    fn look(&self, number: usize, now: Now) -> Option<(PeerNetwork, u32)> {
        match self.locate(number) {
            (PeerKind::V4, group, at) => self.v4[group].look(at, now),
            (PeerKind::V6, group, at) => self.v6[group].look(at, now),
            (PeerKind::Web, _, at) => self.web.as_ref()?.look(at, now),
        }
    }

    /// The kind of the peer with this index, its group of that kind, and its position there.
    fn locate(&self, mut number: usize) -> (PeerKind, usize, usize) {
        for (at, group) in self.v4.iter().enumerate() {
            match number.checked_sub(group.records().len()) {
                None => return (PeerKind::V4, at, number),
                Some(rest) => number = rest,
            }
        }
        for (at, group) in self.v6.iter().enumerate() {
            match number.checked_sub(group.records().len()) {
                None => return (PeerKind::V6, at, number),
                Some(rest) => number = rest,
            }
        }
        (PeerKind::Web, 0, number)
    }

    /// Replaces a peer of this full swarm by a new peer. `own` finds the group of the new peer,
    /// which is not empty.
    #[cold]
    pub(super) fn replace<const ADDRESS: usize>(
        &mut self,
        context: &mut AnnounceContext<'_>,
        endpoint: Endpoint<ADDRESS>,
        (role, others): (Role, SwarmContext),
        own: impl Fn(&mut Self) -> &mut PeerGroup<ADDRESS>,
    ) -> ApplyResult {
        let newcomer = context.is_capped.then(|| endpoint.network_of_kind());
        let now = context.now;
        let overrepresented =
            full_swarm::overrepresented(self.len(), newcomer, context.random, |count| {
                self.look(count, now)
            });
        let Some(number) = overrepresented else {
            let group = own(self);
            let placement = group.placement_by_silence(context);
            return group.enter(context, endpoint, role, placement, others);
        };
        let (kind, group, at) = self.locate(number);
        // Only public peers can be overrepresented, and those of each kind are in one group; WebRTC
        // peers are in one group whatever their scope.
        let own_kind = Endpoint::<ADDRESS>::KIND;
        if kind == own_kind && (own_kind == PeerKind::Web || context.scope == Scope::Public) {
            return own(self).enter(context, endpoint, role, Placement::Of(at), others);
        }
        let applied = own(self).enter(context, endpoint, role, Placement::Own, others);
        if applied.after.is_none() {
            return applied; // there is no memory for it, so no peer is replaced
        }
        let gone = match kind {
            PeerKind::V4 => self.v4[group].remove(at, context.keys),
            PeerKind::V6 => self.v6[group].remove(at, context.keys),
            PeerKind::Web => match &mut self.web {
                Some(web) => web.remove(at, context.keys),
                None => return applied,
            },
        };
        ApplyResult { replaced: Some((kind, gone)), ..applied }
    }

    /// Bytes of memory the groups take.
    #[inline]
    pub(super) fn bytes(&self) -> usize {
        let web = self.web.as_deref().map_or(0, |it| size_of_val(it) + it.bytes());
        bytes_of(&self.v4) + bytes_of(&self.v6) + web
    }
}

fn len_of<const ADDRESS: usize>(groups: &[PeerGroup<ADDRESS>]) -> usize {
    groups.iter().map(|group| group.records().len()).sum()
}

/// Bytes of memory that groups of one kind take.
#[inline]
fn bytes_of<const ADDRESS: usize>(groups: &Vec<PeerGroup<ADDRESS>>) -> usize {
    let each: usize = groups.iter().map(PeerGroup::bytes).sum();
    groups.capacity() * size_of::<PeerGroup<ADDRESS>>() + each
}

/// Peers of one kind and one scope.
pub(super) struct PeerGroup<const ADDRESS: usize> {
    /// The scope in which they may be handed out.
    pub(super) scope: Scope,
    /// The peers.
    pub(super) storage: PeerStorage<ADDRESS>,
}

/// The storage of a group's peers.
pub(super) enum PeerStorage<const ADDRESS: usize> {
    /// In a block, while they fit.
    Block(PeerBlock<ADDRESS>),
    /// In an array with an index.
    Indexed(Box<IndexedPeers<ADDRESS>>),
}

/// The group of `scope`, created if it does not exist.
pub(super) fn group_of<const ADDRESS: usize>(
    groups: &mut Vec<PeerGroup<ADDRESS>>,
    scope: Scope,
) -> &mut PeerGroup<ADDRESS> {
    let at = groups.iter().position(|group| group.scope == scope).unwrap_or_else(|| {
        groups.reserve_exact(1); // most swarms of both families have one group of each
        groups.push(PeerGroup::new(scope));
        groups.len() - 1
    });
    &mut groups[at]
}

impl<const ADDRESS: usize> PeerGroup<ADDRESS> {
    /// A group without peers.
    pub(super) fn new(scope: Scope) -> Self {
        Self { scope, storage: PeerStorage::Block(PeerBlock::with_room(1, CompletedCount::NONE)) }
    }

    /// Bytes of a group without peers, including its own fields.
    pub(super) fn bytes_when_new() -> usize {
        size_of::<Self>() + PeerBlock::<ADDRESS>::bytes_with_room(1)
    }

    /// Bytes of heap memory of the group.
    #[inline]
    fn bytes(&self) -> usize {
        match &self.storage {
            PeerStorage::Block(block) => block.bytes(),
            PeerStorage::Indexed(indexed) => size_of::<IndexedPeers<ADDRESS>>() + indexed.bytes(),
        }
    }

    /// Frees unused memory. A group returns to a block only when it fills half of a block, so that
    /// it does not alternate between the two.
    pub(super) fn shrink(&mut self, keys: &RandomState) {
        match &mut self.storage {
            PeerStorage::Block(block) => block.shrink(keys),
            PeerStorage::Indexed(indexed) if indexed.records.len() <= BLOCK_RECORDS_MAX / 2 => {
                let mut block = PeerBlock::with_room(indexed.records.len(), CompletedCount::NONE);
                indexed.records.iter().for_each(|record| _ = block.insert(*record, keys));
                self.storage = PeerStorage::Block(block);
            }
            PeerStorage::Indexed(indexed) => indexed.shrink(keys),
        }
    }
}

impl<const ADDRESS: usize> PeerList<ADDRESS> for PeerGroup<ADDRESS> {
    #[inline]
    fn records(&self) -> &[PeerRecord<ADDRESS>] {
        match &self.storage {
            PeerStorage::Block(block) => block.records(),
            PeerStorage::Indexed(indexed) => &indexed.records,
        }
    }

    #[inline]
    fn counts(&self) -> RoleCounts {
        match &self.storage {
            PeerStorage::Block(block) => block.counts(),
            PeerStorage::Indexed(indexed) => indexed.counts,
        }
    }

    fn set_counts(&mut self, counts: RoleCounts) {
        match &mut self.storage {
            PeerStorage::Block(block) => block.set_counts(counts),
            PeerStorage::Indexed(indexed) => indexed.counts = counts,
        }
    }

    #[inline]
    fn position(&self, endpoint: &Endpoint<ADDRESS>, keys: &RandomState) -> Option<usize> {
        match &self.storage {
            PeerStorage::Block(block) => block.position(endpoint, keys),
            PeerStorage::Indexed(indexed) => indexed.position(endpoint, keys),
        }
    }

    #[inline]
    fn renew(&mut self, at: usize, record: PeerRecord<ADDRESS>) {
        match &mut self.storage {
            PeerStorage::Block(block) => block.renew(at, record),
            PeerStorage::Indexed(indexed) => indexed.records[at] = record,
        }
    }

    fn swap(&mut self, a: usize, b: usize, keys: &RandomState) {
        match &mut self.storage {
            PeerStorage::Block(block) => block.swap(a, b, keys),
            PeerStorage::Indexed(indexed) => indexed.swap(a, b, keys),
        }
    }

    fn push(&mut self, record: PeerRecord<ADDRESS>, keys: &RandomState) {
        match &mut self.storage {
            PeerStorage::Block(block) if block.is_full() => {
                let mut indexed = IndexedPeers::of(block, self.scope, keys);
                indexed.push(record, keys);
                self.storage = PeerStorage::Indexed(Box::new(indexed));
            }
            PeerStorage::Block(block) => block.push(record, keys),
            PeerStorage::Indexed(indexed) => indexed.push(record, keys),
        }
    }

    fn pop(&mut self, keys: &RandomState) {
        match &mut self.storage {
            PeerStorage::Block(block) => block.pop(keys),
            PeerStorage::Indexed(indexed) => indexed.pop(keys),
        }
    }

    fn growth(&self, more: usize) -> usize {
        match &self.storage {
            PeerStorage::Block(block) if more > 0 && block.is_full() => {
                IndexedPeers::<ADDRESS>::bytes_of(block.records().len() * 2, self.scope)
                    - block.bytes()
            }
            PeerStorage::Block(block) => block.growth(more),
            PeerStorage::Indexed(indexed) => indexed.growth(more),
        }
    }

    fn placement_by_host(
        &self,
        endpoint: &Endpoint<ADDRESS>,
        now: Now,
        keys: &RandomState,
    ) -> Placement {
        match &self.storage {
            PeerStorage::Block(block) => block.placement_by_host(endpoint, now, keys),
            // Finding the host's longest silent peer would require reading all records.
            PeerStorage::Indexed(indexed) if indexed.hosts.is_full(endpoint, keys) => {
                Placement::None
            }
            PeerStorage::Indexed(_) => Placement::Own,
        }
    }
}

/// Peers in an array, found through an index of endpoint to position.
pub(super) struct IndexedPeers<const ADDRESS: usize> {
    records: Vec<PeerRecord<ADDRESS>>,
    counts: RoleCounts,
    index: RawTable<u32>,
    hosts: HostCounts<ADDRESS>,
}

/// Bytes of an index with room for `len` positions.
fn index_bytes(len: usize) -> usize {
    // The number of buckets is a power of two, and at most seven eighths are full; each bucket has
    // a control byte, and another group of control bytes follows the last.
    let buckets = (len * 8 / 7).next_power_of_two();
    buckets * (size_of::<u32>() + 1) + 16
}

/// The index's form of a position. A swarm never has four billion peers.
#[inline]
fn word(at: usize) -> u32 {
    u32::try_from(at).expect("a group has fewer than 2^32 peers")
}

/// A temporary value in the index: a position that no peer has.
const NOWHERE: usize = u32::MAX as usize;

/// Replaces the position `old` in the index by `new`.
fn repoint(index: &mut RawTable<u32>, hash: u64, old: usize, new: usize) {
    let (old, new) = (word(old), word(new));
    let found = index.get_mut(hash, |&at| at == old);
    *found.expect("every position is indexed") = new;
}

impl<const ADDRESS: usize> IndexedPeers<ADDRESS> {
    /// Makes an indexed list from the peers of a full block.
    fn of(block: &PeerBlock<ADDRESS>, scope: Scope, keys: &RandomState) -> Self {
        let room = block.records().len() * 2;
        let index = RawTable::with_capacity(room);
        let records = Vec::with_capacity(room);
        let hosts = HostCounts::new(scope, room);
        let mut peers = Self { records, counts: block.counts(), index, hosts };
        block.records().iter().for_each(|record| peers.push(*record, keys));
        peers
    }

    /// Bytes of an indexed list with room for `len` peers, including its own fields.
    fn bytes_of(len: usize, scope: Scope) -> usize {
        let hosts = HostCounts::<ADDRESS>::bytes_of(scope, len);
        size_of::<Self>() + len * size_of::<PeerRecord<ADDRESS>>() + index_bytes(len) + hosts
    }

    /// Bytes of memory of array, index and counts.
    #[inline]
    fn bytes(&self) -> usize {
        let index = self.index.allocation_info().1.size();
        let records = self.records.capacity() * size_of::<PeerRecord<ADDRESS>>();
        records + index + self.hosts.bytes()
    }

    /// Additional bytes while it grows for `more` records (0 or 1): new index and counts exist
    /// beside the old ones. With 0, the index may still grow, because removed positions leave
    /// tombstones.
    fn growth(&self, more: usize) -> usize {
        let len = self.records.len() + more;
        let room =
            if len <= self.records.capacity() { self.records.capacity() } else { self.room() };
        let records = (room - self.records.capacity()) * size_of::<PeerRecord<ADDRESS>>();
        let hosts = self.hosts.growth(room);
        let buckets = self.index.buckets();
        let tidies = len <= buckets / 8 * 7 / 2;
        let is_full = self.index.len() == self.index.capacity();
        let index = if is_full && !tidies { 2 * buckets * (size_of::<u32>() + 1) } else { 0 };
        records + hosts + index
    }

    /// The capacity of the array after growth: by a quarter, which wastes less memory than
    /// doubling, for one more copy per peer.
    fn room(&self) -> usize {
        self.records.len() + self.records.len() / 4 + 1
    }

    /// Frees memory when three quarters of it are unused.
    fn shrink(&mut self, keys: &RandomState) {
        let len = self.records.len();
        if len < self.records.capacity() / 4 {
            self.records.shrink_to(len + len / 4);
            let records = &self.records;
            self.index.shrink_to(len, |&at| keys.hash_one(records[at as usize].endpoint));
            self.hosts.fit(self.records.capacity(), &self.records, keys);
        }
    }

    #[inline]
    fn position(&self, endpoint: &Endpoint<ADDRESS>, keys: &RandomState) -> Option<usize> {
        let is_it = |&at: &u32| self.records[at as usize].endpoint == *endpoint;
        self.index.get(keys.hash_one(endpoint), is_it).map(|&at| at as usize)
    }

    fn swap(&mut self, a: usize, b: usize, keys: &RandomState) {
        if a == b {
            return;
        }
        let [hash_a, hash_b] = [a, b].map(|at| keys.hash_one(self.records[at].endpoint));
        // The swap uses a position that no peer has, because the two may share a hash.
        repoint(&mut self.index, hash_a, a, NOWHERE);
        repoint(&mut self.index, hash_b, b, a);
        repoint(&mut self.index, hash_a, NOWHERE, b);
        self.records.swap(a, b);
    }

    fn push(&mut self, record: PeerRecord<ADDRESS>, keys: &RandomState) {
        if self.records.len() == self.records.capacity() {
            self.records.reserve_exact(self.room() - self.records.len());
            self.hosts.fit(self.records.capacity(), &self.records, keys);
        }
        let at = word(self.records.len());
        self.records.push(record);
        self.hosts.add(&record.endpoint, keys);
        let records = &self.records;
        self.index.insert(keys.hash_one(record.endpoint), at, |&at| {
            keys.hash_one(records[at as usize].endpoint)
        });
    }

    fn pop(&mut self, keys: &RandomState) {
        let Some(record) = self.records.pop() else { return };
        self.hosts.remove(&record.endpoint, keys);
        let at = word(self.records.len());
        self.index.erase_entry(keys.hash_one(record.endpoint), |&it| it == at);
    }
}
