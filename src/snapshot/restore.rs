//! Restores a snapshot into a store that serves meanwhile: one block at a time, so that the caller
//! can do other work between two blocks.

use std::io::{Read, Seek};

use fastrand::Rng;

use super::reader::{Block, Snapshot, SnapshotError};
use crate::access::passkey::PasskeyTable;
use crate::access::sessions;
use crate::store::{CompletedMerge, RestoreCounts, RestoreOptions, Store};
use crate::time::Now;

/// A running restore.
pub struct Restore<R> {
    snapshot: Snapshot<R>,
    block: Block,
    random: Rng,
    peer_age_s_max: u32,
    restored: RestoreCounts,
}

impl<R: Read + Seek> Restore<R> {
    /// Makes a restore of a verified snapshot. Peers that have been silent for more than
    /// `peer_age_s_max` seconds are not restored.
    pub fn new(snapshot: Snapshot<R>, peer_age_s_max: u32) -> Self {
        let (block, random) = (Block::default(), Rng::with_seed(0)); // no effect on the result
        Self { snapshot, block, random, peer_age_s_max, restored: RestoreCounts::default() }
    }

    /// Restores the sessions of passkeys in the block that [`Restore::step`] has read, if any.
    ///
    /// # Errors
    /// As for [`Restore::step`].
    pub fn restore_sessions(&self, keys: &PasskeyTable, now: Now) -> Result<(), SnapshotError> {
        let (at, peer_age_s_max) = (self.at(), self.peer_age_s_max);
        let terms = sessions::RestoreTimes { at, now, peer_age_s_max };
        for key in self.block.passkeys() {
            keys.restore(&key?, &terms);
        }
        Ok(())
    }

    fn at(&self) -> Now {
        Now::from_s(self.snapshot.header().at_s.min(MOMENT_S_MAX))
    }

    /// Restores the swarms of the next block; returns false after the last block.
    ///
    /// # Errors
    /// [`SnapshotError`] if the file has changed since it was verified. Blocks restored before
    /// stay, because they were valid.
    pub fn step(&mut self, store: &Store, now: Now) -> Result<bool, SnapshotError> {
        if !self.snapshot.next(&mut self.block)? {
            store.restore_completed(self.snapshot.contents().completed);
            return Ok(false);
        }
        let terms = RestoreOptions {
            at: self.at(),
            now,
            peer_age_s_max: self.peer_age_s_max,
            completed: CompletedMerge::Add,
        };
        for torrent in self.block.torrents() {
            store.restore(terms, &torrent?, &mut self.random, &mut self.restored);
        }
        Ok(true)
    }

    /// The counts so far.
    pub fn restored(&self) -> &RestoreCounts {
        &self.restored
    }

    /// The snapshot.
    pub fn snapshot(&self) -> &Snapshot<R> {
        &self.snapshot
    }
}

/// The last second that a [`Now`] can hold.
const MOMENT_S_MAX: u64 = u64::MAX / 1_000_000_000;
