//! One announce under its shard's lock: the swarm changes, the sums follow, peers are chosen. And
//! where there is no memory for a newcomer, torrents without peers go to make room, and then those
//! on probation.

use std::sync::atomic::Ordering;

use fastrand::Rng;

use super::asker::{Asker, all_on_probation};
use super::contents::Contents;
use super::keeper::Keeper;
use super::raw::SwarmCell;
use super::record::{Address, Record};
use super::roster::{Change, Roster};
use super::swarm::{self, Reader, Tally};
use super::{Answer, Room, Store, Stored, Visit, add};
use crate::time::Now;
use crate::types::{Kind, Scope};

/// An announce on its way through the table.
pub(super) struct Announcing<'a, 'r> {
    pub(super) store: &'a Store,
    pub(super) now: Now,
    pub(super) visit: &'a Visit<'a>,
    pub(super) scope: Scope,
    pub(super) room: &'a mut Room<'r>,
    pub(super) random: &'a mut Rng,
    /// Whether a torrent has come into being.
    pub(super) created: bool,
    /// Whether a torrent that is new may be stored; asked once at most, under the shard's lock.
    admits_new: &'a mut dyn FnMut() -> bool,
    /// Whether it was let in.
    admitted: bool,
    /// What it takes, if anything, to store the newcomer.
    lack: Lack,
    /// Whether room was made already: what there is now has to do.
    made_room: bool,
}

/// What a newcomer cannot be stored for want of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lack {
    Nothing,
    /// A bucket of the table, which may not grow.
    Bucket,
    /// Bytes.
    Bytes,
}

impl Keeper for Announcing<'_, '_> {
    type Told = Answer;

    #[inline]
    fn change(&mut self, shard: usize, cell: &mut SwarmCell) -> Answer {
        cell.change(|contents| self.announce(shard, contents))
    }

    #[inline]
    fn may_create(&mut self) -> bool {
        // Asked twice where room was made, but charged once.
        self.admitted = self.admitted || (self.admits_new)();
        self.admitted
    }

    fn turned_away(&mut self) -> Answer {
        self.lack = Lack::Nothing;
        Answer { stored: Stored::NotAdmitted, ..Answer::default() }
    }

    fn may_grow(&mut self, shard: usize, bytes: usize) -> bool {
        self.store.memory.admits(&self.store.totals[shard].account, bytes as u64)
    }

    fn without_bucket(&mut self) -> Answer {
        self.lack = Lack::Bucket;
        Answer { stored: Stored::NoMemory, ..Answer::default() }
    }

    #[inline]
    fn wants_room(&mut self) -> bool {
        let wants = self.lack != Lack::Nothing && !self.made_room;
        self.made_room = wants;
        wants
    }

    fn lacks_bucket(&self) -> bool {
        self.lack == Lack::Bucket
    }

    fn empties(&self, shard: usize) -> usize {
        let totals = &self.store.totals[shard];
        let [all, active] =
            [&totals.torrents, &totals.active_torrents].map(|it| it.load(Ordering::Relaxed));
        usize::try_from(all.saturating_sub(active)).unwrap_or(usize::MAX)
    }

    fn may_go(&self, cell: &SwarmCell) -> bool {
        cell.peek(|contents| self.would_help(contents))
    }

    fn goes(&mut self, shard: usize, cell: &mut SwarmCell) {
        let totals = &self.store.totals[shard];
        let had_peers = cell.has_peers();
        let before = cell.change(|contents| {
            match &contents {
                Contents::One(record, _) => totals.leave_all(std::slice::from_ref(record)),
                Contents::Few4(block) => totals.leave_all(block.records()),
                Contents::Few6(block) => totals.leave_all(block.records()),
                Contents::Empty { .. } | Contents::Many(_) => {}
            }
            (Contents::VACANT, contents.bytes())
        });
        self.store.note_bytes(shard, before, 0);
        totals.note_peers(had_peers, false);
        totals.note_entry(true, false);
        add(&totals.evicted, 1);
    }

    #[inline]
    fn entry(&mut self, shard: usize, before: bool, after: bool) {
        self.created = after && !before;
        self.store.totals[shard].note_entry(before, after);
    }

    fn resized(&mut self, shard: usize, before: usize, after: usize) {
        self.store.note_bytes(shard, before, after);
    }
}

impl<'a, 'r> Announcing<'a, 'r> {
    #[inline]
    pub(super) fn new(
        store: &'a Store,
        (now, scope): (Now, Scope),
        visit: &'a Visit<'a>,
        room: &'a mut Room<'r>,
        random: &'a mut Rng,
        admits_new: &'a mut dyn FnMut() -> bool,
    ) -> Self {
        Self {
            store,
            now,
            visit,
            scope,
            room,
            random,
            created: false,
            admits_new,
            admitted: false,
            lack: Lack::Nothing,
            made_room: false,
        }
    }

    #[inline]
    fn announce(&mut self, shard: usize, contents: Contents) -> (Contents, Answer) {
        let totals = &self.store.totals[shard];
        let bytes = contents.bytes();
        let mut asker = Asker::new(
            (self.now, self.scope, self.visit.change),
            self.store.table.keys(),
            self.random,
            self.visit.capped,
            (&self.store.memory, &totals.account),
        );
        let (kind, (contents, outcome)) = asker.announce(contents, self.visit);
        self.store.note_bytes(shard, bytes, contents.bytes());
        let mut answer = Tally::of(&contents).answer();
        totals.note(kind, &outcome, answer.seeders + answer.leechers);
        answer.stored = outcome.stored;
        answer.was_there = outcome.before.is_some();
        answer.announced_s = outcome.known.map(|it| it.announced_s(self.now));
        let lacks = outcome.stored == Stored::NoMemory;
        self.lack = if lacks { Lack::Bytes } else { Lack::Nothing };
        if lacks && !self.made_room {
            return (contents, answer); // for now
        }
        if let Change::Present { role, .. } = self.visit.change {
            let reader = Reader { scope: self.scope, role, kind, position: outcome.position };
            [answer.bytes, answer.available] =
                swarm::choose(&contents, reader, self.room, self.random);
        }
        (contents, answer)
    }

    /// Whether a torrent with peers may go, as it is on probation, and that would help: one peer in
    /// place takes a bucket only.
    fn would_help(&self, contents: &Contents) -> bool {
        match contents {
            Contents::One(record, _) => {
                self.lack == Lack::Bucket && record.stamp().is_on_probation()
            }
            Contents::Few4(block) => all_on_probation(block.records()),
            Contents::Few6(block) => all_on_probation(block.records()),
            Contents::Empty { .. } | Contents::Many(_) => false,
        }
    }
}

impl super::ShardTotals {
    /// Notes that all of them have left.
    fn leave_all<const ADDRESS: usize>(&self, records: &[Record<ADDRESS>])
    where
        Record<ADDRESS>: Address,
    {
        let kind: Kind = Record::<ADDRESS>::KIND;
        records.iter().for_each(|record| self.leave(kind, record.stamp().role()));
    }
}
