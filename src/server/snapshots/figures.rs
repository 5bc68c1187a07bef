//! Values about snapshots and the restore at start, written by their thread, and read for metrics
//! and pages.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use strum::{EnumCount, VariantArray};

use crate::snapshot::{SaveStep, Saved};
use crate::store::RestoreCounts;

/// The outcome of the restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub(crate) enum RestoreOutcome {
    /// No snapshots are to be kept.
    Off,
    /// No snapshots are kept although the settings have them: the state directory cannot be used.
    Unusable,
    /// Another process still has the state directory.
    Waiting,
    /// The restore is under way.
    Running,
    /// A snapshot is restored.
    Restored,
    /// There was no snapshot.
    Empty,
    /// There was no usable snapshot.
    Lost,
    /// The file could not be read to its end, although it could a moment before.
    BrokenOff,
}

impl RestoreOutcome {
    /// Every outcome, in index order.
    pub(crate) const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Unusable => "unusable",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Restored => "restored",
            Self::Empty => "empty",
            Self::Lost => "lost",
            Self::BrokenOff => "broken_off",
        }
    }
}

/// The values, written by the thread, read for metrics.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) last_success_s: AtomicU64,
    pub(crate) duration_us: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) torrents: AtomicU64,
    pub(crate) peers: AtomicU64,
    /// By [`SaveStep`].
    pub(crate) errors: [AtomicU64; SaveStep::ALL.len()],
    outcome: AtomicU8,
    pub(crate) restore_duration_us: AtomicU64,
    pub(crate) restored_torrents: AtomicU64,
    pub(crate) restored_peers: AtomicU64,
    pub(crate) expired_peers: AtomicU64,
    pub(crate) refused_peers: AtomicU64,
    pub(crate) set_aside: AtomicU64,
}

impl Figures {
    /// The outcome of the restore so far.
    pub(crate) fn outcome(&self) -> RestoreOutcome {
        let index = usize::from(self.outcome.load(Ordering::Acquire));
        RestoreOutcome::ALL.get(index).copied().unwrap_or(RestoreOutcome::Off)
    }

    pub(super) fn set_outcome(&self, outcome: RestoreOutcome) {
        self.outcome.store(outcome as u8, Ordering::Release);
    }

    pub(super) fn note_error(&self, step: SaveStep) {
        self.errors[step as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn note_saved(&self, saved: &Saved, took_ns: u64) {
        let contents = &saved.contents;
        self.last_success_s.store(saved.at.seconds(), Ordering::Relaxed);
        self.duration_us.store(took_ns / 1000, Ordering::Relaxed);
        self.bytes.store(contents.bytes, Ordering::Relaxed);
        self.torrents.store(contents.torrents, Ordering::Relaxed);
        self.peers.store(contents.peers, Ordering::Relaxed);
    }

    pub(super) fn note_restored(&self, restored: &RestoreCounts, took_ns: u64) {
        self.restore_duration_us.store(took_ns / 1000, Ordering::Relaxed);
        self.restored_torrents.store(restored.torrents, Ordering::Relaxed);
        self.restored_peers.store(restored.peers, Ordering::Relaxed);
        self.expired_peers.store(restored.expired, Ordering::Relaxed);
        self.refused_peers.store(restored.refused, Ordering::Relaxed);
    }
}
