//! What the table asks of those who go through it: one entry under its shard's lock, or all of them
//! in slices.

use super::raw::SwarmCell;

/// What is done with an entry, and who hears of what becomes of the table. Every call is under the
/// shard's write lock.
pub(super) trait Keeper {
    /// What a change has to tell.
    type Told;
    /// Changes a cell.
    fn change(&mut self, shard: usize, cell: &mut SwarmCell) -> Self::Told;
    /// Whether there may be a new entry at all.
    fn may_create(&mut self) -> bool;
    /// Hears that there may not, and is not.
    fn turned_away(&mut self) -> Self::Told;
    /// Whether the shard's table may take so many bytes more, for a new entry.
    fn may_grow(&mut self, shard: usize, bytes: usize) -> bool;
    /// Hears that there is no bucket for a new entry.
    fn without_bucket(&mut self) -> Self::Told;
    /// Whether others should give way, to try once more.
    fn wants_room(&mut self) -> bool;
    /// Whether it is a bucket that the newcomer cannot be stored for want of, or bytes.
    fn lacks_bucket(&self) -> bool;
    /// How many swarms without peers the shard has; all of them may give way.
    fn empties(&self, shard: usize) -> usize;
    /// Whether the swarm in a cell, which has peers, may give way.
    fn may_go(&self, cell: &SwarmCell) -> bool;
    /// Lets the swarm in a cell give way; the cell is vacant then.
    fn goes(&mut self, shard: usize, cell: &mut SwarmCell);
    /// Hears whether there was an entry before the change, and is one after.
    fn entry(&mut self, shard: usize, before: bool, after: bool);
    /// Hears of how many bytes the shard's table was and is.
    fn resized(&mut self, shard: usize, before: usize, after: usize);
}

/// A walk through a shard in slices, between which others may change it.
pub(super) struct Walk {
    /// The shard.
    pub(super) shard: usize,
    /// The bucket to go on from.
    pub(super) from: usize,
    /// How often entries had moved when it was last looked.
    pub(super) moves: Option<usize>,
    /// How often it began anew.
    pub(super) restarts: u32,
}

impl Walk {
    pub(super) fn of(shard: usize) -> Self {
        Self { shard, from: 0, moves: None, restarts: 0 }
    }
}

/// What a sweep or a walk does after a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Visit {
    /// Goes on to the next.
    Done,
    /// Stops: a sweep, to come back to the same one; a walk, to go on behind it.
    Pause,
}
