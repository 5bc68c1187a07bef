//! One announce under its shard's lock: the swarm changes, the sums follow, peers are chosen.

use fastrand::Rng;

use super::roster::Change;
use super::swarm::{self, Asker, Tally};
use super::table::{Contents, Keeper, SwarmCell};
use super::{Answer, Room, Store, Visit};

/// An announce on its way through the table.
pub(super) struct Announcing<'a, 'r> {
    pub(super) store: &'a Store,
    pub(super) visit: &'a Visit<'a>,
    pub(super) asker: Asker<'a>,
    pub(super) room: &'a mut Room<'r>,
    pub(super) random: &'a mut Rng,
}

impl Keeper for Announcing<'_, '_> {
    type Told = Answer;

    #[inline]
    fn change(&mut self, shard: usize, cell: &mut SwarmCell) -> Answer {
        cell.change(|contents| self.announce(shard, contents))
    }

    #[inline]
    fn entry(&mut self, shard: usize, before: bool, after: bool) {
        self.store.totals[shard].note_entry(before, after);
    }

    fn resized(&mut self, shard: usize, before: usize, after: usize) {
        self.store.note_bytes(shard, before, after);
    }
}

impl Announcing<'_, '_> {
    #[inline]
    fn announce(&mut self, shard: usize, contents: Contents) -> (Contents, Answer) {
        let bytes = contents.bytes();
        let (kind, (contents, outcome)) = self.asker.announce(contents, self.visit);
        self.store.note_bytes(shard, bytes, contents.bytes());
        let mut answer = Tally::of(&contents).answer();
        self.store.totals[shard].note(kind, &outcome, answer.seeders + answer.leechers);
        if let Change::Present { role, .. } = self.visit.change {
            let (scope, own) = (self.asker.scope, (kind, outcome.position));
            [answer.bytes, answer.available] =
                swarm::choose(&contents, scope, role, own, self.room, self.random);
        }
        (contents, answer)
    }
}
