//! Snapshots of the running tracker: the handle on their thread, and its state.

pub(crate) mod figures;
mod thread;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tracing::warn;

use crate::access::Access;
use crate::server::StartError;
use crate::server::live_options::LiveOptions;
use crate::server::log::OPERATOR;
use crate::server::memory;
use crate::snapshot::{CURRENT, Disk, OsDisk, PREVIOUS, SaveError, SnapshotFolder, TrackerId};
use crate::store::Store;
use crate::sys::clock::Clock;
use figures::{Figures, RestoreOutcome};
use thread::SnapshotThread;

/// A request to the thread.
enum Order {
    /// To save, and send the result.
    Save(Sender<Result<(), SnapshotRequestError>>),
    /// To save a last time, and end.
    Stop,
}

/// Why a requested snapshot was not saved.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum SnapshotRequestError {
    #[error("the tracker is starting or stopping")]
    Busy,
    #[error("the tracker is stopping")]
    Stopping,
    #[error(
        "another skep process uses this state directory; remedy: save through that process, or \
         wait until it ends"
    )]
    UsedByAnother,
    #[error("{0}")]
    Failed(Arc<SaveError>),
}

/// Why no snapshots can be kept in a directory.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotDirectoryError {
    #[error("cannot write {}: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
    #[error("cannot lock {}: {error}", path.display())]
    Lock { path: PathBuf, error: io::Error },
}

/// The handle on the thread and its figures.
#[derive(Default)]
pub(crate) struct Snapshots {
    folder: Option<SnapshotFolder<OsDisk>>,
    pub(crate) figures: Figures,
    /// Whether a predecessor may still write the snapshot that this process has to restore.
    is_following: AtomicBool,
    /// Whether the predecessor has ended, or has reported that it writes no more.
    is_left_alone: AtomicBool,
    thread: Mutex<Option<(Sender<Order>, JoinHandle<()>)>>,
    /// Whether only the last snapshot is still needed: one that is being written is aborted.
    is_ending: AtomicBool,
    /// Grows with each piece that the thread has read or written.
    progress: AtomicU64,
}

impl Snapshots {
    /// No snapshots are to be kept.
    pub(crate) fn off() -> Self {
        Self::default()
    }

    /// No snapshots are kept, because the state directory cannot be used.
    pub(crate) fn unusable() -> Self {
        let snapshots = Self::default();
        snapshots.figures.set_outcome(RestoreOutcome::Unusable);
        snapshots
    }

    /// Keeps snapshots in this directory, which is tested.
    ///
    /// # Errors
    /// Why the directory cannot be written, or its lock cannot be tested.
    pub(crate) fn kept_in(
        directory: PathBuf,
        tracker: TrackerId,
    ) -> Result<Self, SnapshotDirectoryError> {
        let path = directory.join(format!("{TRIAL}-{}", std::process::id()));
        let _ = OsDisk.remove(&path);
        if let Err(error) = OsDisk.create(&path).and_then(|_| OsDisk.remove(&path)) {
            return Err(SnapshotDirectoryError::Write { path, error });
        }
        let path = directory.join(SNAPSHOT_LOCK);
        if let Err(error) = try_lock(&path) {
            return Err(SnapshotDirectoryError::Lock { path, error });
        }
        let has = |name| directory.join(name).symlink_metadata().is_ok();
        let outcome = if has(CURRENT) || has(PREVIOUS) {
            RestoreOutcome::Running
        } else {
            RestoreOutcome::Empty
        };
        let folder = Some(SnapshotFolder::new(OsDisk, directory, tracker));
        let snapshots = Self { folder, ..Self::default() };
        snapshots.figures.set_outcome(outcome);
        Ok(snapshots)
    }

    /// Records that a predecessor writes a last snapshot before this process can restore.
    pub(crate) fn wait_for_predecessor(&self) {
        if self.folder.is_some() {
            self.is_following.store(true, Ordering::Release);
            self.figures.set_outcome(RestoreOutcome::Waiting);
        }
    }

    /// Records that the predecessor writes no more. If the directory is locked from then on,
    /// another process has it.
    pub(crate) fn stop_waiting_for_predecessor(&self) {
        self.is_left_alone.store(true, Ordering::Release);
    }

    /// Whether the store does not yet have its state from before the start, but will soon.
    pub(crate) fn is_restoring(&self) -> bool {
        match self.figures.outcome() {
            RestoreOutcome::Running => true,
            RestoreOutcome::Waiting => self.is_following.load(Ordering::Acquire),
            _ => false,
        }
    }

    /// Starts the thread, if snapshots are kept.
    pub(crate) fn start(self: &Arc<Self>, contents: Contents) -> Result<(), StartError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let (orders, asked) = channel();
        let Contents { store, access, memory, options, clock } = contents;
        let (snapshots, in_the_way) = (self.clone(), Vec::new());
        let snapshot_thread =
            SnapshotThread { folder, snapshots, store, access, memory, options, clock, in_the_way };
        let thread = std::thread::Builder::new().name("snapshot".into());
        let thread = thread
            .spawn(move || snapshot_thread.run(&asked))
            .map_err(|error| StartError::lacking("cannot start a thread", &error))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some((orders, thread));
        Ok(())
    }

    /// Saves now, and waits for the disk. Does nothing if no snapshots are kept.
    ///
    /// # Errors
    /// Why the snapshot could not be saved.
    pub(crate) fn save(&self) -> Result<(), SnapshotRequestError> {
        let (result_sender, result) = channel();
        {
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((orders, _)) = thread.as_ref() else {
                let has_folder = self.folder.is_some();
                return if has_folder { Err(SnapshotRequestError::Busy) } else { Ok(()) };
            };
            let _ = orders.send(Order::Save(result_sender));
        }
        result.recv().unwrap_or(Err(SnapshotRequestError::Stopping))
    }

    /// Saves a last time, if snapshots are kept, and waits for that as long as a piece is read or
    /// written at least once in `stalled_max`: a disk that hangs does not keep the process from
    /// ending. A snapshot that is being written is aborted: it is slowed down in favour of clients,
    /// and would be older than the last one.
    pub(crate) fn stop(&self, stalled_max: Duration) {
        self.is_ending.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((orders, thread)) = thread {
            let _ = orders.send(Order::Stop);
            if !has_ended(&thread, &self.progress, stalled_max) {
                let remedy = "check the disk of server.state_dir: it does not respond";
                let stalled_s = stalled_max.as_secs();
                warn!(
                    target: OPERATOR,
                    stalled_s, remedy, "last snapshot not saved, the previous one stays"
                );
            }
        }
    }

    /// Records that the thread makes progress.
    fn note_progress(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits for a thread's end, unless its `progress` does not change for `stalled_max`. True if it
/// has ended.
#[expect(clippy::disallowed_methods, reason = "this is the edge")]
pub(crate) fn has_ended(
    thread: &JoinHandle<()>,
    progress: &AtomicU64,
    stalled_max: Duration,
) -> bool {
    let (mut seen, mut since) = (progress.load(Ordering::Relaxed), Instant::now());
    while !thread.is_finished() {
        std::thread::sleep(END_POLL);
        let now = progress.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > stalled_max {
            return false;
        }
    }
    true
}

/// How long a thread may read and write nothing while another waits for its end: longer than a busy
/// disk takes for one call, and less than supervisors wait before they kill.
pub(crate) const STALLED_MAX: Duration = Duration::from_secs(20);

/// The same if another thread has already waited for the disk: both together are still less than
/// supervisors wait.
pub(crate) const STALLED_AGAIN_MIN: Duration = Duration::from_secs(5);

/// How often to check whether it has ended.
const END_POLL: Duration = Duration::from_millis(1);

/// The file that tests whether the state directory can be written. The process id follows.
const TRIAL: &str = "swarms.snapshot.trial";

/// The file whose lock belongs to the process that keeps snapshots in the state directory.
pub(crate) const SNAPSHOT_LOCK: &str = "swarms.snapshot.lock";

/// What is saved and restored, and what is needed for that.
pub(crate) struct Contents {
    pub(crate) store: Arc<Store>,
    pub(crate) access: Arc<Access>,
    pub(crate) memory: Arc<memory::MemoryMonitor>,
    pub(crate) options: Arc<ArcSwap<LiveOptions>>,
    pub(crate) clock: Clock,
}

/// Takes the lock, unless another process has it.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    // Follows no link, which could create a file elsewhere.
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_that_hangs_is_not_waited_for_and_one_that_gets_on_is() {
        const SHORT: Duration = Duration::from_millis(100);
        let snapshots = Arc::new(Snapshots::off());
        let (release, held) = channel::<()>();
        let hanging = thread::spawn(move || _ = held.recv());
        assert!(!has_ended(&hanging, &snapshots.progress, SHORT));
        drop(release);
        hanging.join().unwrap();
        let working = snapshots.clone();
        let working = thread::spawn(move || {
            for _ in 0..10 {
                thread::sleep(SHORT / 10);
                working.note_progress();
            }
        });
        assert!(has_ended(&working, &snapshots.progress, SHORT * 100));
    }
}
