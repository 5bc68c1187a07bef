//! One announce, under its shard's lock: find or create the torrent's entry, evict others where
//! there is no room for it, apply the announce to the swarm, choose peers.

use fastrand::Rng;

use super::apply::apply;
use super::choose::{Chosen, Requester, choose};
use super::context::{AnnounceContext, PeerSource};
use super::evict::Shortage;
use super::peer_list::{ApplyResult, PeerChange};
use super::raw::Entry;
use super::swarm::{Swarm, SwarmStats};
use super::{AnnounceResult, PeerAnnounce, PeerBuffers, Store, Stored};
use crate::time::Now;
use crate::types::{Contact, Scope};

impl PeerAnnounce<'_> {
    /// The scope in which the peer may be handed out: for WebRTC always public, because browsers
    /// negotiate the path between them.
    fn scope(&self) -> Scope {
        match self.contact {
            Contact::Port(_) => Scope::of(self.address),
            Contact::Web(_) => Scope::Public,
        }
    }
}

impl AnnounceResult {
    /// The result of an announce to an unknown torrent that is not stored.
    fn not_stored(stored: Stored) -> Self {
        Self { stored, ..Self::default() }
    }

    /// The result of an announce that produced this swarm, before peers are chosen.
    fn of(swarm: &Swarm, applied: &ApplyResult, now: Now) -> Self {
        Self {
            stored: applied.stored,
            was_there: applied.before.is_some(),
            state: applied.state,
            is_changed: applied.before != applied.after || applied.completed,
            is_completed: applied.completed,
            announced_s: applied.known.map(|meta| meta.announced_s(now)),
            ..SwarmStats::of(swarm).result()
        }
    }
}

impl Store {
    /// As [`Self::announce_if`], always storing new torrents.
    #[inline]
    pub fn announce(
        &self,
        now: Now,
        announce: &PeerAnnounce<'_>,
        buffers: &mut PeerBuffers<'_>,
        random: &mut Rng,
    ) -> AnnounceResult {
        self.announce_if(now, announce, buffers, random, &mut || true)
    }

    /// Applies one announce to its own peer, then chooses others for it. An unknown torrent is
    /// stored only if `admits_new` returns true: it is called at most once, under a lock, so it
    /// must be fast, and must not use the store.
    #[inline]
    pub fn announce_if(
        &self,
        now: Now,
        announce: &PeerAnnounce<'_>,
        buffers: &mut PeerBuffers<'_>,
        random: &mut Rng,
        admits_new: &mut dyn FnMut() -> bool,
    ) -> AnnounceResult {
        let (scope, key) = (announce.scope(), self.table.key(announce.info_hash));
        let mut shard = self.table.lock(key);
        let number = shard.number();
        let totals = &self.totals[number];
        let (mut is_admitted, mut has_evicted) = (false, false);
        loop {
            // The torrent's entry, or a place for one.
            let mut entry = shard.entry(key);
            let is_new = !entry.exists();
            if is_new {
                if announce.change == PeerChange::Stopped {
                    return AnnounceResult::default();
                }
                is_admitted = is_admitted || admits_new();
                if !is_admitted {
                    return AnnounceResult::not_stored(Stored::NotAdmitted);
                }
                if !self.reserve_bucket(number, &mut entry) {
                    if has_evicted {
                        return AnnounceResult::not_stored(Stored::NoMemory);
                    }
                    self.evict(&mut shard, key, Shortage::Bucket);
                    has_evicted = true;
                    continue;
                }
            }
            let (result, stays) = entry.update(|swarm| {
                // The peer joins, stays or leaves, as far as the budget allows.
                let bytes = swarm.bytes();
                let mut context = AnnounceContext {
                    now,
                    scope,
                    change: announce.change,
                    is_capped: announce.capped && scope == Scope::Public,
                    source: PeerSource::Announce,
                    budget: self.memory.of_shard(&totals.account),
                    keys: self.table.keys(),
                    random,
                };
                let (swarm, kind, applied) =
                    apply(swarm, &mut context, announce.address, announce.contact);
                self.note_bytes(number, bytes, swarm.bytes());
                let mut result = AnnounceResult::of(&swarm, &applied, now);
                totals.note(kind, &applied, result.seeders + result.leechers);
                // Peers for it, unless there will be another attempt.
                if let PeerChange::Present { role, .. } = announce.change
                    && (applied.stored != Stored::NoMemory || has_evicted)
                {
                    let requester = Requester { scope, role, kind, position: applied.position };
                    let Chosen { bytes, available } = choose(&swarm, requester, buffers, random);
                    (result.bytes, result.available) = (bytes, available);
                }
                (swarm, result)
            });
            totals.note_entry(!is_new, stays);
            if result.stored != Stored::NoMemory || has_evicted {
                return AnnounceResult { created: is_new && stays, ..result };
            }
            self.evict(&mut shard, key, Shortage::Bytes);
            has_evicted = true;
        }
    }

    /// Ensures a bucket for an entry, by growing the table if that is necessary and the budget
    /// allows it. Returns whether there is a bucket.
    #[inline]
    pub(super) fn reserve_bucket(&self, shard: usize, entry: &mut Entry<'_, '_>) -> bool {
        entry.growth().is_none_or(|bytes| self.grow_table(shard, entry, bytes))
    }

    #[cold]
    fn grow_table(&self, shard: usize, entry: &mut Entry<'_, '_>, bytes: usize) -> bool {
        if bytes > 0 && !self.memory.admits(&self.totals[shard].account, bytes as u64) {
            return entry.reuse_bucket();
        }
        let [before, after] = entry.grow();
        self.note_bytes(shard, before, after);
        true
    }
}
