//! Snapshots of the running tracker: a thread that restores at start, then saves when the interval
//! is over, when it is asked to, and when all workers have stopped.
//!
//! The thread takes one thing after the other, so nothing is saved before all is restored, and who
//! asks for a snapshot while one is being written gets the next. What fails is told once in the log
//! and in the figures, and tried again after the interval; nobody is served worse for it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tracing::{debug, info, warn};

use crate::access::Access;
use crate::server::StartError;
use crate::server::live_options::LiveOptions;
use crate::server::log::OPERATOR;
use crate::server::memory;
use crate::snapshot::{
    Aside, CURRENT, Disk, Folder, Found, Identity, Os, PREVIOUS, Restore, SaveError, Saved,
    Snapshot, Step,
};
use crate::store::{RestoreCounts, Store};
use crate::sys::affinity;
use crate::sys::allocator::Collector;
use crate::sys::clock::Clock;
use crate::time::Now;

/// The longest rest between two slices of a save.
const REST_MAX: Duration = Duration::from_millis(2);

/// What has come of restoring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// No snapshots are kept.
    Off,
    /// Another process has the state directory still.
    Waiting,
    /// It goes on.
    Running,
    /// A snapshot is restored.
    Restored,
    /// There was none.
    Empty,
    /// There was something, of no use.
    Lost,
    /// The file could not be read to its end, though it could a moment before.
    BrokenOff,
}

impl Outcome {
    /// Every outcome, in index order.
    pub(super) const ALL: [Self; 7] = [
        Self::Off,
        Self::Waiting,
        Self::Running,
        Self::Restored,
        Self::Empty,
        Self::Lost,
        Self::BrokenOff,
    ];

    /// The label used in metrics.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Restored => "restored",
            Self::Empty => "empty",
            Self::Lost => "lost",
            Self::BrokenOff => "broken_off",
        }
    }
}

/// What is told of snapshots: written by the thread, read by the exporter.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) last_success_s: AtomicU64,
    pub(super) duration_us: AtomicU64,
    pub(super) bytes: AtomicU64,
    pub(super) torrents: AtomicU64,
    pub(super) peers: AtomicU64,
    /// By [`Step`].
    pub(super) errors: [AtomicU64; Step::ALL.len()],
    outcome: AtomicU8,
    pub(super) restore_duration_us: AtomicU64,
    pub(super) restored_torrents: AtomicU64,
    pub(super) restored_peers: AtomicU64,
    pub(super) expired_peers: AtomicU64,
    pub(super) refused_peers: AtomicU64,
    pub(super) set_aside: AtomicU64,
}

impl Figures {
    /// What has come of restoring so far.
    pub(super) fn outcome(&self) -> Outcome {
        let index = usize::from(self.outcome.load(Ordering::Acquire));
        Outcome::ALL.get(index).copied().unwrap_or(Outcome::Off)
    }

    fn set_outcome(&self, outcome: Outcome) {
        self.outcome.store(outcome as u8, Ordering::Release);
    }

    fn note_error(&self, step: Step) {
        self.errors[step as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn note_saved(&self, saved: &Saved, took_ns: u64) {
        let contents = &saved.contents;
        self.last_success_s.store(saved.at.seconds(), Ordering::Relaxed);
        self.duration_us.store(took_ns / 1000, Ordering::Relaxed);
        self.bytes.store(contents.bytes, Ordering::Relaxed);
        self.torrents.store(contents.torrents, Ordering::Relaxed);
        self.peers.store(contents.peers, Ordering::Relaxed);
    }

    fn note_restored(&self, restored: &RestoreCounts, took_ns: u64) {
        self.restore_duration_us.store(took_ns / 1000, Ordering::Relaxed);
        self.restored_torrents.store(restored.torrents, Ordering::Relaxed);
        self.restored_peers.store(restored.peers, Ordering::Relaxed);
        self.expired_peers.store(restored.expired, Ordering::Relaxed);
        self.refused_peers.store(restored.refused, Ordering::Relaxed);
    }
}

/// What the thread is asked for.
enum Order {
    /// To save, and say how that went.
    Save(Sender<Result<(), String>>),
    /// To save a last time, and end.
    Stop,
}

/// The handle on the thread and its figures.
#[derive(Default)]
pub(super) struct Snapshots {
    folder: Option<Folder<Os>>,
    pub(super) figures: Figures,
    /// Whether a predecessor may write still what this process is to restore.
    is_following: AtomicBool,
    /// Whether it has ended, or said that it writes no more.
    is_left_alone: AtomicBool,
    thread: Mutex<Option<(Sender<Order>, JoinHandle<()>)>>,
    /// Whether only the last snapshot matters any more: one that is being written is given up.
    is_ending: AtomicBool,
    /// Grows with each piece that the thread has read or written.
    progress: AtomicU64,
}

impl Snapshots {
    /// None are kept.
    pub(super) fn off() -> Self {
        Self::default()
    }

    /// They are kept in this directory, which is tried out.
    ///
    /// # Errors
    /// Why the directory cannot be written, or its lock not be asked for.
    pub(super) fn kept_in(directory: PathBuf, tracker: Identity) -> Result<Self, String> {
        let path = directory.join(format!("{TRIAL}-{}", std::process::id()));
        let failed = |error| format!("cannot write {}: {error}", path.display());
        let _ = Os.remove(&path);
        Os.create(&path).and_then(|_| Os.remove(&path)).map_err(failed)?;
        let lock = directory.join(LOCK);
        try_lock(&lock).map_err(|error| format!("cannot lock {}: {error}", lock.display()))?;
        let has = |name| directory.join(name).symlink_metadata().is_ok();
        let outcome = if has(CURRENT) || has(PREVIOUS) { Outcome::Running } else { Outcome::Empty };
        let folder = Some(Folder::new(Os, directory, tracker));
        let it = Self { folder, ..Self::default() };
        it.figures.set_outcome(outcome);
        Ok(it)
    }

    /// Says that a predecessor writes a last snapshot before there is something to restore.
    pub(super) fn follow(&self) {
        if self.folder.is_some() {
            self.is_following.store(true, Ordering::Release);
            self.figures.set_outcome(Outcome::Waiting);
        }
    }

    /// Says that the predecessor writes no more: who has the directory then is somebody else.
    pub(super) fn leave_alone(&self) {
        self.is_left_alone.store(true, Ordering::Release);
    }

    /// Whether the store does not hold yet what it held before the start, and will hold it soon.
    pub(super) fn is_restoring(&self) -> bool {
        match self.figures.outcome() {
            Outcome::Running => true,
            Outcome::Waiting => self.is_following.load(Ordering::Acquire),
            _ => false,
        }
    }

    /// Starts the thread, if snapshots are kept.
    pub(super) fn start(self: &Arc<Self>, contents: Contents) -> Result<(), StartError> {
        let Some(folder) = self.folder.clone() else { return Ok(()) };
        let (orders, asked) = channel();
        let Contents { store, access, memory, options, clock } = contents;
        let (snapshots, in_the_way) = (self.clone(), Vec::new());
        let keeper =
            SnapshotKeeper { folder, snapshots, store, access, memory, options, clock, in_the_way };
        let thread = thread::Builder::new().name("snapshot".into());
        let thread = thread
            .spawn(move || keeper.run(&asked))
            .map_err(|error| StartError::lacking("cannot start a thread", &error))?;
        *self.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some((orders, thread));
        Ok(())
    }

    /// Saves now, and waits for the disk. Does nothing where no snapshots are kept.
    ///
    /// # Errors
    /// Why it cannot.
    pub(super) fn save(&self) -> Result<(), String> {
        let (tell, told) = channel();
        {
            let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
            let Some((orders, _)) = thread.as_ref() else {
                let has_folder = self.folder.is_some();
                return if has_folder { Err("the tracker starts or stops".into()) } else { Ok(()) };
            };
            let _ = orders.send(Order::Save(tell));
        }
        told.recv().unwrap_or_else(|_| Err("the tracker is stopping".into()))
    }

    /// Saves a last time, if snapshots are kept, and waits for that as long as something is read or
    /// written once in `stalled_max`: a disk that hangs keeps nobody from ending. One that is being
    /// written is given up: it has rested for those who were served, and says less than the last
    /// one.
    pub(super) fn stop(&self, stalled_max: Duration) {
        self.is_ending.store(true, Ordering::Relaxed);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((orders, thread)) = thread {
            let _ = orders.send(Order::Stop);
            if !has_ended(&thread, &self.progress, stalled_max) {
                warn!(
                    target: OPERATOR,
                    "the last snapshot is given up, the latest one stays: nothing was read or \
                     written for {} s; remedy: see to the disk that server.state_dir is on",
                    stalled_max.as_secs()
                );
            }
        }
    }

    /// Says that the thread gets on.
    fn get_on(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits for a thread's end, unless its `progress` stays as it is for `stalled_max`: whether it has
/// ended.
#[expect(clippy::disallowed_methods, reason = "this is the edge")]
pub(super) fn has_ended(
    thread: &JoinHandle<()>,
    progress: &AtomicU64,
    stalled_max: Duration,
) -> bool {
    let (mut seen, mut since) = (progress.load(Ordering::Relaxed), Instant::now());
    while !thread.is_finished() {
        thread::sleep(END_POLL);
        let now = progress.load(Ordering::Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        } else if since.elapsed() > stalled_max {
            return false;
        }
    }
    true
}

/// How long a thread may read and write nothing while its end is waited for: longer than a busy
/// disk takes for one call, and less than supervisors wait before they kill.
pub(super) const STALLED_MAX: Duration = Duration::from_secs(20);

/// The same where the disk has been waited for before: both together are less than that, too.
pub(super) const STALLED_AGAIN_MIN: Duration = Duration::from_secs(5);

/// How often to look whether it has ended.
const END_POLL: Duration = Duration::from_millis(1);

/// The file that shows whether the state directory can be written; the process's number follows.
const TRIAL: &str = "swarms.snapshot.trial";

/// The file whose lock belongs to the process that keeps snapshots in the state directory.
const LOCK: &str = "swarms.snapshot.lock";

/// How often to look whether another process has let go of the lock, and for a new interval.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Seconds of the wall clock. The process's own clock goes on evenly from the start on, whatever is
/// done to the wall clock; but who reads a snapshot knows only the wall clock.
fn wall_s() -> u64 {
    Clock::start().now().seconds()
}

/// What is saved and restored, and what that goes by.
pub(super) struct Contents {
    pub(super) store: Arc<Store>,
    pub(super) access: Arc<Access>,
    pub(super) memory: Arc<memory::Keeper>,
    pub(super) options: Arc<ArcSwap<LiveOptions>>,
    pub(super) clock: Clock,
}

/// What the thread works with.
struct SnapshotKeeper {
    folder: Folder<Os>,
    snapshots: Arc<Snapshots>,
    store: Arc<Store>,
    access: Arc<Access>,
    memory: Arc<memory::Keeper>,
    options: Arc<ArcSwap<LiveOptions>>,
    clock: Clock,
    /// Files that are of no use and could not be set aside: a save would remove them.
    in_the_way: Vec<(PathBuf, String)>,
}

impl SnapshotKeeper {
    fn run(mut self, asked: &Receiver<Order>) {
        let lock = self.lock(asked);
        if lock.is_some() {
            self.restore();
        }
        self.access.keys().end_restoring();
        let Some(_lock) = lock else { return };
        loop {
            let (waiting, is_last) = self.wait(asked);
            let saved = if is_last { self.save(false) } else { self.save_beside_load() };
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
                    self.snapshots.figures.set_outcome(Outcome::Waiting);
                }
                Err(error) => {
                    let path = path.display();
                    warn!(target: OPERATOR, "no snapshots are kept: cannot lock {path}: {error}");
                    self.snapshots.figures.set_outcome(Outcome::Off);
                    return None;
                }
            }
            if !std::mem::replace(&mut has_told, true) {
                let path = self.folder.path().display();
                info!(
                    target: OPERATOR,
                    "another skep keeps snapshots in {path}: until it has ended, none are restored \
                     or written"
                );
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
        if self.snapshots.figures.outcome() == Outcome::Waiting {
            self.snapshots.figures.set_outcome(Outcome::Running);
        }
        let mut progress = || self.snapshots.get_on();
        let Found { snapshot, aside } = self.folder.find_with_progress(begun, &mut progress);
        let is_lost = !aside.is_empty();
        for it in aside {
            self.tell_aside(it);
        }
        let outcome = match snapshot {
            Some((snapshot, path)) => self.bring_back(snapshot, path, begun),
            None if is_lost => {
                warn!(target: OPERATOR, "no snapshot is of use: swarms are empty");
                Outcome::Lost
            }
            None => Outcome::Empty,
        };
        self.snapshots.figures.set_outcome(outcome);
    }

    /// Says what was wrong with a file, and where it is now.
    fn tell_aside(&mut self, it: Aside) {
        self.snapshots.figures.set_aside.fetch_add(1, Ordering::Relaxed);
        let path = it.path.display();
        match it.name {
            Ok(name) => warn!(
                target: OPERATOR,
                "{path} is of no use: {}; it is kept as {}", it.reason, name.display()
            ),
            Err(error) => {
                warn!(
                    target: OPERATOR,
                    "{path} is of no use: {}; it cannot be set aside ({error}), and no snapshot is \
                     written until it can", it.reason
                );
                self.in_the_way.push((it.path, it.kind));
            }
        }
    }

    fn bring_back(&mut self, snapshot: Stored, path: PathBuf, begun: Now) -> Outcome {
        let at_s = snapshot.header().at_s;
        let peer_age_s_max = self.options.load().tracker.peer_age_s_max;
        let mut restore = Restore::new(snapshot, peer_age_s_max);
        let ended = loop {
            self.snapshots.get_on();
            if self.store.is_short_of_memory() {
                // What comes back in a moment may be more than the budget foresees for it.
                self.memory.look();
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
        let (name, age_s) = (path.display(), begun.seconds().saturating_sub(at_s));
        let took_ms = took_ns / 1_000_000;
        let told = format!(
            "{peers} peers of {name}, which is {age_s} s old, are restored in {took_ms} ms \
             ({expired} were too old, {known} have announced since, {refused} have no place)"
        );
        match ended {
            Ok(()) => {
                figures.last_success_s.store(at_s, Ordering::Relaxed);
                info!(target: OPERATOR, "{told}");
                Outcome::Restored
            }
            Err(fault) => {
                warn!(target: OPERATOR, "{told}, and no more can be");
                self.keep_previous();
                let (reason, kind) = (fault.to_string(), fault.kind());
                let name = self.folder.set_aside(&path, &kind, now);
                self.tell_aside(Aside { path, reason, kind, name });
                Outcome::BrokenOff
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
    fn save_beside_load(&mut self) -> Result<(), String> {
        let saved = thread::scope(|scope| {
            let thread = thread::Builder::new().name("snapshot-save".into());
            let thread = thread.spawn_scoped(scope, || {
                if let Err(error) = affinity::give_way() {
                    debug!("a snapshot is saved without giving way: {error}");
                }
                self.save(true)
            });
            thread.map(|it| it.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        saved.unwrap_or_else(|error| {
            debug!("no thread to save on that gives way: {error}");
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
            snapshots.get_on();
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
        let cleared = self.clear_the_way(begun);
        let what = (&*self.store, self.access.keys());
        let saved = cleared.and_then(|()| self.folder.save(what, begun, wall_s(), &mut between));
        match saved {
            Ok(saved) => {
                let took_ns = self.clock.now().ns_since(begun);
                self.snapshots.figures.note_saved(&saved, took_ns);
                let (contents, took_ms) = (&saved.contents, took_ns / 1_000_000);
                let (torrents, peers) = (contents.torrents, contents.peers);
                if rests {
                    debug!("a snapshot is saved: {torrents} torrents, {peers} peers, {took_ms} ms");
                } else {
                    info!(
                        target: OPERATOR,
                        "the last snapshot is saved: {torrents} torrents, {peers} peers, \
                         {took_ms} ms"
                    );
                }
                Ok(())
            }
            Err(error) if error.error.kind() == ErrorKind::Interrupted => {
                Err("the tracker is stopping".into())
            }
            Err(error) => {
                self.snapshots.figures.note_error(error.step);
                if error.is_in_place {
                    warn!(target: OPERATOR, "{error}");
                } else {
                    warn!(target: OPERATOR, "no snapshot is saved, the latest one stays: {error}");
                }
                Err(error.to_string())
            }
        }
    }

    /// Sets aside what could not be before.
    fn clear_the_way(&mut self, now: Now) -> Result<(), SaveError> {
        while let Some((path, kind)) = self.in_the_way.pop() {
            if let Err(error) = self.folder.set_aside(&path, &kind, now) {
                self.in_the_way.push((path.clone(), kind));
                return Err(SaveError::at(Step::Commit, &path)(error));
            }
        }
        Ok(())
    }
}

/// A snapshot on the disk.
type Stored = Snapshot<<Os as Disk>::Input>;

/// The lock, unless another process has it.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    // Through a link that somebody has put there, a file would be made elsewhere.
    let file = options.custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_hangs_is_not_waited_for_and_one_that_gets_on_is() {
        const SHORT: Duration = Duration::from_millis(100);
        let it = Arc::new(Snapshots::off());
        let (release, held) = channel::<()>();
        let hanging = thread::spawn(move || _ = held.recv());
        assert!(!has_ended(&hanging, &it.progress, SHORT));
        drop(release);
        hanging.join().unwrap();
        let working = it.clone();
        let working = thread::spawn(move || {
            for _ in 0..10 {
                thread::sleep(SHORT / 10);
                working.get_on();
            }
        });
        assert!(has_ended(&working, &it.progress, SHORT * 100));
    }
}
