//! One announce, under its shard's lock: find or create the torrent's entry, evict others where
//! there is no room for it, apply the announce to the swarm, choose peers.

use fastrand::Rng;

use super::apply::apply;
use super::choose::{Reader, choose};
use super::context::AnnounceContext;
use super::evict::Shortage;
use super::peer_list::{ApplyResult, Change};
use super::raw::Entry;
use super::swarm::{Swarm, SwarmStats};
use super::{Answer, Room, Store, Stored, Visit};
use crate::time::Now;
use crate::types::{Contact, Scope};

impl Visit<'_> {
    /// Who may be given the peer: anybody, where two browsers find their way to each other.
    fn scope(&self) -> Scope {
        match self.contact {
            Contact::Port(_) => Scope::of(self.address),
            Contact::Web(_) => Scope::Public,
        }
    }
}

impl Answer {
    /// The answer to an announce that has led to this swarm, before peers are chosen.
    fn of(swarm: &Swarm, applied: &ApplyResult, now: Now) -> Self {
        Self {
            stored: applied.stored,
            was_there: applied.before.is_some(),
            announced_s: applied.known.map(|meta| meta.announced_s(now)),
            ..SwarmStats::of(swarm).answer()
        }
    }
}

impl Store {
    /// Applies one announce to its own peer, then chooses others for it.
    #[inline]
    pub fn announce(
        &self,
        now: Now,
        visit: &Visit<'_>,
        room: &mut Room<'_>,
        random: &mut Rng,
    ) -> Answer {
        self.announce_if(now, visit, room, random, &mut || true)
    }

    /// The same, but a torrent that is not known is stored only if `admits_new` allows it. It is
    /// called once at most, under a lock: it must be quick, and must not use the store.
    #[inline]
    pub fn announce_if(
        &self,
        now: Now,
        visit: &Visit<'_>,
        room: &mut Room<'_>,
        random: &mut Rng,
        admits_new: &mut dyn FnMut() -> bool,
    ) -> Answer {
        let scope = visit.scope();
        let key = self.table.key(visit.info_hash);
        let mut shard = self.table.lock(key);
        let number = shard.number();
        let totals = &self.totals[number];
        let (mut is_admitted, mut has_evicted) = (false, false);
        loop {
            // The torrent's entry, or a place for one.
            let mut entry = shard.entry(key);
            let is_new = !entry.exists();
            if is_new {
                if visit.change == Change::Stopped {
                    return Answer::default();
                }
                is_admitted = is_admitted || admits_new();
                if !is_admitted {
                    return Answer { stored: Stored::NotAdmitted, ..Answer::default() };
                }
                if !self.reserve_bucket(number, &mut entry) {
                    if has_evicted {
                        return Answer { stored: Stored::NoMemory, ..Answer::default() };
                    }
                    self.evict(&mut shard, key, Shortage::Bucket);
                    has_evicted = true;
                    continue;
                }
            }
            let (answer, stays) = entry.update(|swarm| {
                // The peer joins, stays or leaves, as far as the budget allows.
                let bytes = swarm.bytes();
                let mut context = AnnounceContext {
                    now,
                    scope,
                    change: visit.change,
                    is_capped: visit.capped && scope == Scope::Public,
                    restored: None,
                    budget: self.memory.of_shard(&totals.account),
                    keys: self.table.keys(),
                    random,
                };
                let (swarm, kind, applied) =
                    apply(swarm, &mut context, visit.address, visit.contact);
                self.note_bytes(number, bytes, swarm.bytes());
                let mut answer = Answer::of(&swarm, &applied, now);
                totals.note(kind, &applied, answer.seeders + answer.leechers);
                // Peers for it, unless there will be another attempt.
                if let Change::Present { role, .. } = visit.change
                    && (applied.stored != Stored::NoMemory || has_evicted)
                {
                    let reader = Reader { scope, role, kind, position: applied.position };
                    [answer.bytes, answer.available] = choose(&swarm, reader, room, random);
                }
                (swarm, answer)
            });
            totals.note_entry(!is_new, stays);
            if answer.stored != Stored::NoMemory || has_evicted {
                return Answer { created: is_new && stays, ..answer };
            }
            self.evict(&mut shard, key, Shortage::Bytes);
            has_evicted = true;
        }
    }

    /// Makes sure that there is a bucket for an entry: the table grows, if the budget allows that
    /// and it has to. Returns whether there is one.
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
