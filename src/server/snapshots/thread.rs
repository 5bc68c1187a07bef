//! The thread that restores at start, then saves at every interval, on request, and when all
//! workers have stopped.
//!
//! It does one thing at a time: nothing is saved before everything is restored, and a request
//! during a save gets the next snapshot. A failure is logged once and counted, and the save is
//! tried again after the interval. Serving is not affected.

use std::fs::File;
use std::io::ErrorKind;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwap;
use tracing::{debug, info, warn};

use super::figures::RestoreOutcome;
use super::{Order, SNAPSHOT_LOCK, SnapshotRequestError, Snapshots, try_lock};
use crate::access::Access;
use crate::server::live_options::LiveOptions;
use crate::server::log::OPERATOR;
use crate::server::memory;
use crate::snapshot::{
    Disk, FoundSnapshots, OsDisk, PREVIOUS, Restore, SaveError, SaveStep, Snapshot, SnapshotFolder,
    UnusableFile,
};
use crate::store::{RestoreCounts, Store};
use crate::sys::affinity;
use crate::sys::allocator::Collector;
use crate::sys::clock::Clock;
use crate::time::Now;

/// The longest pause between two slices of a save.
const REST_MAX: Duration = Duration::from_millis(2);

/// How often to check whether another process has released the lock, and whether the interval has
/// changed.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Seconds of the wall clock. The process's own clock runs evenly from the start on, whatever is
/// done to the wall clock; but the reader of a snapshot only has the wall clock.
fn wall_s() -> u64 {
    Clock::start().now().seconds()
}

/// What the thread needs.
pub(super) struct SnapshotThread {
    pub(super) folder: SnapshotFolder<OsDisk>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) store: Arc<Store>,
    pub(super) access: Arc<Access>,
    pub(super) memory: Arc<memory::MemoryMonitor>,
    pub(super) options: Arc<ArcSwap<LiveOptions>>,
    pub(super) clock: Clock,
    /// Unusable files that could not be renamed: a save would overwrite them.
    pub(super) in_the_way: Vec<(PathBuf, String)>,
}

impl SnapshotThread {
    /// Handles requests until the last one.
    pub(super) fn run(mut self, asked: &Receiver<Order>) {
        let lock = self.lock(asked);
        if lock.is_some() {
            self.restore();
        }
        self.access.passkeys().end_restoring();
        let Some(_lock) = lock else { return };
        loop {
            let (waiting, is_last) = self.wait(asked);
            let saved = if is_last { self.save(false) } else { self.save_at_low_priority() };
            waiting.iter().for_each(|result| _ = result.send(saved.clone()));
            if is_last {
                return;
            }
        }
    }

    /// Waits until no other process keeps snapshots here, or until the end. The predecessor may
    /// have handed its sockets over, and then saves what this process has to restore.
    fn lock(&self, asked: &Receiver<Order>) -> Option<File> {
        let path = self.folder.path().join(SNAPSHOT_LOCK);
        let mut was_logged = false;
        loop {
            // Read before the lock is tried: a predecessor frees the lock before it reports that.
            let is_left_alone = self.snapshots.is_left_alone.load(Ordering::Acquire);
            match try_lock(&path) {
                Ok(Some(file)) => return Some(file),
                Ok(None) => {
                    if is_left_alone {
                        self.snapshots.is_following.store(false, Ordering::Release);
                    }
                    self.snapshots.figures.set_outcome(RestoreOutcome::Waiting);
                }
                Err(error) => {
                    let path = path.display();
                    let remedy = "let skep's user write server.state_dir";
                    warn!(
                        target: OPERATOR,
                        %path, %error, remedy, "snapshots disabled: lock failed"
                    );
                    self.snapshots.figures.set_outcome(RestoreOutcome::Unusable);
                    return None;
                }
            }
            if !std::mem::replace(&mut was_logged, true) {
                self.log_waiting();
            }
            match asked.recv_timeout(LOOK_EVERY) {
                Ok(Order::Save(result)) => {
                    let _ = result.send(Err(SnapshotRequestError::UsedByAnother));
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Logs that another process keeps snapshots here: of a predecessor that is expected.
    fn log_waiting(&self) {
        let path = self.folder.path().display();
        let event = "snapshots waiting: another skep process uses this state directory";
        if self.snapshots.is_following.load(Ordering::Acquire) {
            info!(target: OPERATOR, %path, "{event}");
        } else {
            let remedy = "stop the other process, or set server.state_dir to a directory of this \
                          one's own";
            warn!(target: OPERATOR, %path, remedy, "{event}");
        }
    }

    /// Waits until a save is due. Returns the receivers of its result, and whether it is the last
    /// one. Requests that arrive meanwhile share one snapshot.
    fn wait(
        &self,
        asked: &Receiver<Order>,
    ) -> (Vec<Sender<Result<(), SnapshotRequestError>>>, bool) {
        let (since, mut collector) = (self.clock.now(), Collector::default());
        loop {
            collector.collect_if_requested(); // blocks of the restore, freed by workers
            let interval_s = self.options.load().snapshot_interval_s;
            if interval_s > 0 && self.clock.now() >= since.plus_s(interval_s.into()) {
                return (Vec::new(), false);
            }
            let first = match asked.recv_timeout(LOOK_EVERY) {
                Ok(order) => order,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return (Vec::new(), true),
            };
            let (mut waiting, mut is_last) = (Vec::new(), false);
            for order in std::iter::once(first).chain(asked.try_iter()) {
                match order {
                    Order::Save(result) => waiting.push(result),
                    Order::Stop => is_last = true,
                }
            }
            return (waiting, is_last);
        }
    }

    /// Restores the latest usable snapshot, if there is one.
    fn restore(&mut self) {
        let begun = self.clock.now();
        if self.snapshots.figures.outcome() == RestoreOutcome::Waiting {
            self.snapshots.figures.set_outcome(RestoreOutcome::Running);
        }
        let mut progress = || self.snapshots.note_progress();
        let FoundSnapshots { snapshot, aside } =
            self.folder.find_with_progress(begun, &mut progress);
        let is_lost = !aside.is_empty();
        for file in aside {
            self.log_unusable(file);
        }
        let outcome = match snapshot {
            Some((snapshot, path)) => self.restore_snapshot(snapshot, path, begun),
            None if is_lost => {
                let path = self.folder.path().display();
                warn!(target: OPERATOR, %path, "no usable snapshot, starting with empty swarms");
                RestoreOutcome::Lost
            }
            None => {
                let path = self.folder.path().display();
                info!(target: OPERATOR, %path, "no snapshot yet, starting with empty swarms");
                RestoreOutcome::Empty
            }
        };
        self.snapshots.figures.set_outcome(outcome);
    }

    /// Logs what is wrong with a file, and its new name.
    fn log_unusable(&mut self, file: UnusableFile) {
        self.snapshots.figures.set_aside.fetch_add(1, Ordering::Relaxed);
        let (path, reason) = (file.path.display(), file.reason);
        match file.name {
            Ok(name) => {
                let renamed = name.display();
                warn!(target: OPERATOR, %path, %renamed, %reason, "snapshot unusable, renamed");
            }
            Err(error) => {
                let remedy = "let skep's user write the folder";
                warn!(
                    target: OPERATOR,
                    %path, %reason, %error, remedy,
                    "snapshot unusable and not renamed, none is saved until it can be renamed"
                );
                self.in_the_way.push((file.path, file.kind));
            }
        }
    }

    fn restore_snapshot(
        &mut self,
        snapshot: StoredSnapshot,
        path: PathBuf,
        begun: Now,
    ) -> RestoreOutcome {
        let at_s = snapshot.header().at_s;
        let peer_age_s_max = self.options.load().tracker.peer_age_s_max;
        let mut restore = Restore::new(snapshot, peer_age_s_max);
        let ended = loop {
            self.snapshots.note_progress();
            if self.store.is_short_of_memory() {
                // The next restored torrents may need more than the current budget.
                self.memory.measure();
            }
            let (keys, now) = (self.access.passkeys(), self.clock.now());
            let sessions = match restore.step(&self.store, now) {
                Ok(true) => restore.restore_sessions(keys, now),
                Ok(false) => break Ok(()),
                Err(fault) => Err(fault),
            };
            if let Err(fault) = sessions {
                break Err(fault);
            }
        };
        let now = self.clock.now();
        let (restored, took_ns) = (*restore.restored(), now.ns_since(begun));
        let figures = &self.snapshots.figures;
        figures.note_restored(&restored, took_ns);
        let RestoreCounts { peers, known, expired, refused, .. } = restored;
        let age_s = begun.seconds().saturating_sub(at_s);
        let ms = took_ns / 1_000_000;
        match ended {
            Ok(()) => {
                figures.last_success_s.store(at_s, Ordering::Relaxed);
                let path = path.display();
                info!(
                    target: OPERATOR,
                    %path, age_s, peers, expired, known, refused, ms, "snapshot restored"
                );
                RestoreOutcome::Restored
            }
            Err(fault) => {
                let path_shown = path.display();
                warn!(
                    target: OPERATOR,
                    path = %path_shown, age_s, peers, expired, known, refused, ms,
                    "snapshot restored in part"
                );
                self.keep_previous();
                let (reason, kind) = (fault.to_string(), fault.kind());
                let name = self.folder.set_aside(&path, &kind, now);
                self.log_unusable(UnusableFile { path, reason, kind, name });
                RestoreOutcome::BrokenOff
            }
        }
    }

    /// Makes sure that the snapshot before the broken one is not replaced by the next ones: it may
    /// have what is missing now.
    fn keep_previous(&mut self) {
        let previous = self.folder.path().join(PREVIOUS);
        if previous.symlink_metadata().is_ok() {
            self.in_the_way.push((previous, "unused".to_owned()));
        }
    }

    /// Saves on a thread of low priority. That cannot be undone, so the thread ends with the
    /// snapshot.
    fn save_at_low_priority(&mut self) -> Result<(), SnapshotRequestError> {
        let saved = thread::scope(|scope| {
            let thread = thread::Builder::new().name("snapshot-save".into());
            let thread = thread.spawn_scoped(scope, || {
                if let Err(error) = affinity::lower_priority() {
                    debug!(%error, "snapshot saved at normal priority");
                }
                self.save(true)
            });
            thread.map(|it| it.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        saved.unwrap_or_else(|error| {
            debug!(%error, "snapshot saved without a thread of its own");
            self.save(true)
        })
    }

    /// Saves; logs and returns the reason for a failure. If `rests`, it pauses between slices for
    /// as long as they take, at most [`REST_MAX`], and aborts when the last snapshot is requested.
    /// (The last one does not pause, as no client is served any more.)
    fn save(&mut self, rests: bool) -> Result<(), SnapshotRequestError> {
        let (clock, begun) = (self.clock, self.clock.now());
        let (mut since, snapshots) = (begun, self.snapshots.clone());
        let mut between = || {
            snapshots.note_progress();
            if !rests {
                return Ok(());
            }
            if snapshots.is_ending.load(Ordering::Relaxed) {
                return Err(ErrorKind::Interrupted.into());
            }
            let took = Duration::from_nanos(clock.now().ns_since(since));
            thread::sleep(took.min(REST_MAX));
            since = clock.now();
            Ok(())
        };
        let cleared = self.retry_renames(begun);
        let what = (&*self.store, self.access.passkeys());
        let saved = cleared.and_then(|()| self.folder.save(what, begun, wall_s(), &mut between));
        match saved {
            Ok(saved) => {
                let took_ns = self.clock.now().ns_since(begun);
                self.snapshots.figures.note_saved(&saved, took_ns);
                let (contents, ms) = (&saved.contents, took_ns / 1_000_000);
                let (torrents, peers) = (contents.torrents, contents.peers);
                if rests {
                    debug!(torrents, peers, ms, "snapshot saved");
                } else {
                    info!(target: OPERATOR, torrents, peers, ms, "last snapshot saved");
                }
                Ok(())
            }
            Err(error) if error.error.kind() == ErrorKind::Interrupted => {
                Err(SnapshotRequestError::Stopping)
            }
            Err(error) => {
                self.snapshots.figures.note_error(error.step);
                if error.is_in_place {
                    warn!(target: OPERATOR, %error, "snapshot saved, but not synced to the disk");
                } else {
                    warn!(target: OPERATOR, %error, "snapshot not saved, the previous one stays");
                }
                Err(SnapshotRequestError::Failed(Arc::new(error)))
            }
        }
    }

    /// Renames files that could not be renamed before.
    fn retry_renames(&mut self, now: Now) -> Result<(), SaveError> {
        while let Some((path, kind)) = self.in_the_way.pop() {
            if let Err(error) = self.folder.set_aside(&path, &kind, now) {
                self.in_the_way.push((path.clone(), kind));
                return Err(SaveError::at(SaveStep::Commit, &path)(error));
            }
        }
        Ok(())
    }
}

/// A snapshot on the disk.
type StoredSnapshot = Snapshot<<OsDisk as Disk>::Input>;
