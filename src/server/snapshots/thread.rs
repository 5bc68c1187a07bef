//! The thread that restores at start, then saves when the interval is over, when it is asked to,
//! and when all workers have stopped.
//!
//! It takes one thing after the other, so nothing is saved before all is restored, and who asks for
//! a snapshot while one is being written gets the next. What fails is logged once and counted, and
//! tried again after the interval; nobody is served worse for it.

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
use super::{LOCK, Order, Snapshots, try_lock};
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

/// The longest rest between two slices of a save.
const REST_MAX: Duration = Duration::from_millis(2);

/// How often to look whether another process has let go of the lock, and for a new interval.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Seconds of the wall clock. The process's own clock goes on evenly from the start on, whatever is
/// done to the wall clock; but who reads a snapshot knows only the wall clock.
fn wall_s() -> u64 {
    Clock::start().now().seconds()
}

/// What the thread works with.
pub(super) struct SnapshotThread {
    pub(super) folder: SnapshotFolder<OsDisk>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) store: Arc<Store>,
    pub(super) access: Arc<Access>,
    pub(super) memory: Arc<memory::MemoryMonitor>,
    pub(super) options: Arc<ArcSwap<LiveOptions>>,
    pub(super) clock: Clock,
    /// Files that are of no use and could not be set aside: a save would remove them.
    pub(super) in_the_way: Vec<(PathBuf, String)>,
}

impl SnapshotThread {
    /// Serves orders until the last one.
    pub(super) fn run(mut self, asked: &Receiver<Order>) {
        let lock = self.lock(asked);
        if lock.is_some() {
            self.restore();
        }
        self.access.keys().end_restoring();
        let Some(_lock) = lock else { return };
        loop {
            let (waiting, is_last) = self.wait(asked);
            let saved = if is_last { self.save(false) } else { self.save_at_low_priority() };
            waiting.iter().for_each(|tell| _ = tell.send(saved.clone()));
            if is_last {
                return;
            }
        }
    }

    /// Waits until no other process keeps snapshots here, or until the end. The process before this
    /// one may have handed over its sockets, and then saves what this one is to restore.
    fn lock(&self, asked: &Receiver<Order>) -> Option<File> {
        let path = self.folder.path().join(LOCK);
        let mut has_told = false;
        loop {
            // Before the look at the lock, which a predecessor frees before it says anything.
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
                    warn!(target: OPERATOR, %path, %error, "snapshots disabled: cannot lock");
                    self.snapshots.figures.set_outcome(RestoreOutcome::Off);
                    return None;
                }
            }
            if !std::mem::replace(&mut has_told, true) {
                let path = self.folder.path().display();
                info!(target: OPERATOR, %path, "snapshots wait for another skep to end");
            }
            match asked.recv_timeout(LOOK_EVERY) {
                Ok(Order::Save(tell)) => {
                    let _ = tell.send(Err("another skep keeps snapshots there".into()));
                }
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Waits until there is something to save for: who is to be told of it, and whether it is for
    /// the last time. Whoever asks meanwhile shares one snapshot.
    fn wait(&self, asked: &Receiver<Order>) -> (Vec<Sender<Result<(), String>>>, bool) {
        let (since, mut collector) = (self.clock.now(), Collector::default());
        loop {
            collector.collect_if_asked(); // what it restored, workers free
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
                    Order::Save(tell) => waiting.push(tell),
                    Order::Stop => is_last = true,
                }
            }
            return (waiting, is_last);
        }
    }

    /// Restores the latest snapshot that is of use, if there is one.
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
                warn!(target: OPERATOR, "no usable snapshot, starting with empty swarms");
                RestoreOutcome::Lost
            }
            None => RestoreOutcome::Empty,
        };
        self.snapshots.figures.set_outcome(outcome);
    }

    /// Says what was wrong with a file, and where it is now.
    fn log_unusable(&mut self, file: UnusableFile) {
        self.snapshots.figures.set_aside.fetch_add(1, Ordering::Relaxed);
        let (path, reason) = (file.path.display(), file.reason);
        match file.name {
            Ok(name) => {
                let renamed = name.display();
                warn!(target: OPERATOR, %path, %renamed, %reason, "snapshot unusable, renamed");
            }
            Err(error) => {
                warn!(
                    target: OPERATOR,
                    %path, %reason, %error,
                    "snapshot unusable and not renamed: none is saved until that is possible"
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
                // What comes back in a moment may be more than the budget foresees for it.
                self.memory.measure();
            }
            let (keys, now) = (self.access.keys(), self.clock.now());
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

    /// Sees that the snapshot before the one that broke off is not replaced by the next ones: it
    /// may hold what is missing now.
    fn keep_previous(&mut self) {
        let previous = self.folder.path().join(PREVIOUS);
        if previous.symlink_metadata().is_ok() {
            self.in_the_way.push((previous, "unused".to_owned()));
        }
    }

    /// Saves on a thread that gives way to whoever serves, which is for good: the thread ends with
    /// the snapshot.
    fn save_at_low_priority(&mut self) -> Result<(), String> {
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

    /// Saves; says why it could not, to the log and to who has asked. `rests` between slices, as
    /// long as they take and at most [`REST_MAX`], and gives up when the last one is asked for. (At
    /// the end nobody is served any more, and nobody to be kind to.)
    fn save(&mut self, rests: bool) -> Result<(), String> {
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
        let what = (&*self.store, self.access.keys());
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
                Err("the tracker is stopping".into())
            }
            Err(error) => {
                self.snapshots.figures.note_error(error.step);
                if error.is_in_place {
                    warn!(target: OPERATOR, %error, "snapshot saved, but not synced to the disk");
                } else {
                    warn!(target: OPERATOR, %error, "snapshot not saved, the previous one stays");
                }
                Err(error.to_string())
            }
        }
    }

    /// Sets aside what could not be before.
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
