//! Brings a snapshot back into a store that serves meanwhile: a block at a time, so that whoever
//! runs it can go on with other things between two of them.

use std::io::{Read, Seek};

use fastrand::Rng;

use super::reader::{Block, Snapshot, SnapshotError};
use crate::access::passkey::PasskeyTable;
use crate::access::sessions;
use crate::store::{RestoreCounts, RestoreOptions, Store};
use crate::time::Now;

/// A restore under way.
pub struct Restore<R> {
    snapshot: Snapshot<R>,
    block: Block,
    random: Rng,
    peer_age_s_max: u32,
    restored: RestoreCounts,
}

impl<R: Read + Seek> Restore<R> {
    /// A restore of a snapshot that was found whole. Peers that have been silent for more than
    /// `peer_age_s_max` stay away.
    pub fn new(snapshot: Snapshot<R>, peer_age_s_max: u32) -> Self {
        let (block, random) = (Block::default(), Rng::with_seed(0)); // which nothing depends on
        Self { snapshot, block, random, peer_age_s_max, restored: RestoreCounts::default() }
    }

    /// Restores the sessions of passkeys, if the block that [`Restore::step`] was at has any.
    ///
    /// # Errors
    /// As there.
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

    /// Restores the swarms of the next block; false once there is no more.
    ///
    /// # Errors
    /// [`SnapshotError`] where the file is not any more what it was when it was verified. What was
    /// restored before stays: it was right.
    pub fn step(&mut self, store: &Store, now: Now) -> Result<bool, SnapshotError> {
        if !self.snapshot.next(&mut self.block)? {
            store.restore_completed(self.snapshot.contents().completed);
            return Ok(false);
        }
        let terms = RestoreOptions { at: self.at(), now, peer_age_s_max: self.peer_age_s_max };
        for torrent in self.block.torrents() {
            store.restore(terms, &torrent?, &mut self.random, &mut self.restored);
        }
        Ok(true)
    }

    /// What has come of it so far.
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
