//! Snapshots: how old the latest is, what it cost, what went wrong, and what was restored.

use std::sync::atomic::Ordering;

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use super::float;
use crate::server::snapshots::figures::{Figures, RestoreOutcome};
use crate::snapshot::SaveStep;

/// The series.
pub(super) struct SnapshotSeries {
    last_success_s: Gauge,
    duration_s: Gauge,
    bytes: Gauge,
    torrents: Gauge,
    peers: Gauge,
    errors: [Counter; SaveStep::ALL.len()],
    restore: [Gauge; RestoreOutcome::ALL.len()],
    restore_duration_s: Gauge,
    restored_torrents: Gauge,
    restored_peers: Gauge,
    expired_peers: Gauge,
    refused_peers: Gauge,
    set_aside: Counter,
}

impl SnapshotSeries {
    pub(super) fn new() -> Self {
        describe();
        let errors = |it: SaveStep| counter!("skep_snapshot_errors_total", "reason" => it.label());
        let outcome = |it: RestoreOutcome| gauge!("skep_restore_outcome", "outcome" => it.label());
        Self {
            last_success_s: gauge!("skep_snapshot_last_success_timestamp_seconds"),
            duration_s: gauge!("skep_snapshot_duration_seconds"),
            bytes: gauge!("skep_snapshot_bytes"),
            torrents: gauge!("skep_snapshot_torrents"),
            peers: gauge!("skep_snapshot_peers"),
            errors: SaveStep::ALL.map(errors),
            restore: RestoreOutcome::ALL.map(outcome),
            restore_duration_s: gauge!("skep_restore_duration_seconds"),
            restored_torrents: gauge!("skep_restore_torrents"),
            restored_peers: gauge!("skep_restore_peers"),
            expired_peers: gauge!("skep_restore_expired_peers"),
            refused_peers: gauge!("skep_restore_refused_peers"),
            set_aside: counter!("skep_restore_set_aside_total"),
        }
    }

    pub(super) fn update(&self, figures: &Figures) {
        let number = |it: &std::sync::atomic::AtomicU64| float(it.load(Ordering::Relaxed));
        self.last_success_s.set(number(&figures.last_success_s));
        self.duration_s.set(number(&figures.duration_us) / 1e6);
        self.bytes.set(number(&figures.bytes));
        self.torrents.set(number(&figures.torrents));
        self.peers.set(number(&figures.peers));
        for (errors, counter) in figures.errors.iter().zip(&self.errors) {
            counter.absolute(errors.load(Ordering::Relaxed));
        }
        let now = figures.outcome();
        for (outcome, gauge) in RestoreOutcome::ALL.into_iter().zip(&self.restore) {
            gauge.set(if outcome == now { 1.0 } else { 0.0 });
        }
        self.restore_duration_s.set(number(&figures.restore_duration_us) / 1e6);
        self.restored_torrents.set(number(&figures.restored_torrents));
        self.restored_peers.set(number(&figures.restored_peers));
        self.expired_peers.set(number(&figures.expired_peers));
        self.refused_peers.set(number(&figures.refused_peers));
        self.set_aside.absolute(figures.set_aside.load(Ordering::Relaxed));
    }
}

fn describe() {
    describe_gauge!(
        "skep_snapshot_last_success_timestamp_seconds",
        "When the latest snapshot was taken; of the one restored, until there is another; 0 for \
         none."
    );
    describe_gauge!(
        "skep_snapshot_duration_seconds",
        "What the latest snapshot took, the disk included."
    );
    describe_gauge!("skep_snapshot_bytes", "Size of the latest snapshot.");
    describe_gauge!(
        "skep_snapshot_torrents",
        "Torrents, and parts of large ones, in the latest snapshot."
    );
    describe_gauge!("skep_snapshot_peers", "Peers in the latest snapshot.");
    describe_counter!(
        "skep_snapshot_errors_total",
        "Snapshots that could not be saved, by what failed; those before them are as they were."
    );
    describe_gauge!(
        "skep_restore_outcome",
        "1 for what has come of restoring at start: off, waiting (for another \
         process that keeps snapshots there), running, restored, empty (there was no \
         snapshot), lost (there was none that could be used), broken_off."
    );
    describe_gauge!("skep_restore_duration_seconds", "What restoring took.");
    describe_gauge!(
        "skep_restore_torrents",
        "Torrents, and parts of large ones, that were restored."
    );
    describe_gauge!("skep_restore_peers", "Peers that were restored.");
    describe_gauge!("skep_restore_expired_peers", "Peers that were too old to be restored.");
    describe_gauge!(
        "skep_restore_refused_peers",
        "Peers that were not restored for want of memory, or as their torrent has all it may have."
    );
    describe_counter!(
        "skep_restore_set_aside_total",
        "Files that were no snapshot of this tracker or damaged, and were set aside."
    );
}
