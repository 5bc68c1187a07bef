//! The folder of the snapshots, and the commit protocol.
//!
//! ```text
//! swarms.snapshot            the latest
//! swarms.snapshot.previous   the one before it
//! swarms.snapshot.tmp        the one being written
//! swarms.snapshot.damaged-…  an unusable file, with the time when it was found; also
//!                            .unreadable-…, .foreign-…, .unknown-version-N-…
//! ```
//!
//! A snapshot is written to the temporary file and synced, the latest becomes the previous one, the
//! temporary file the latest, and the folder is synced. So one of the two is complete at any moment
//! at which the process or the host may stop; between the two renames it is the previous one. If
//! the second rename fails, the first is undone. An error ends the attempt: after a failed fsync(2)
//! a kernel may mark pages clean that never reached the disk, so the file is discarded and never
//! synced again.

use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use strum::{EnumCount, IntoStaticStr, VariantArray};

use super::disk::Disk;
use super::format::{Header, SnapshotCounts, TrackerId, VERSION};
use super::reader::{Snapshot, SnapshotError};
use super::writer::Writer;
use crate::access::passkey::PasskeyTable;
use crate::access::sessions::SavedKey;
use crate::store::{ExportBatch, Store, StoreExport};
use crate::time::Now;

/// The latest snapshot.
pub const CURRENT: &str = "swarms.snapshot";
/// The one before it.
pub const PREVIOUS: &str = "swarms.snapshot.previous";
/// The snapshot being written.
pub const TEMPORARY: &str = "swarms.snapshot.tmp";

/// The most names tried for a file that is set aside.
const ASIDE_NAMES_MAX: u32 = 100;

/// The step at which an attempt to save failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum SaveStep {
    /// Creating the temporary file.
    Create,
    /// Writing it.
    Write,
    /// Waiting for the disk, for the file or the folder.
    Sync,
    /// Renaming the files.
    Commit,
}

impl SaveStep {
    /// Every step, in order.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// A snapshot could not be saved. The latest one before it still exists: as the latest, or as the
/// previous one if its rename could not be undone.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}cannot {} {}: {error}",
    if *is_in_place { IN_PLACE } else { "" }, step.label(), path.display()
)]
pub struct SaveError {
    /// Whether the new snapshot is nevertheless in place, though possibly not on the disk.
    pub is_in_place: bool,
    /// The failed step.
    pub step: SaveStep,
    /// The affected file.
    pub path: PathBuf,
    /// Why.
    pub error: io::Error,
}

const IN_PLACE: &str = "the snapshot is in its place, but may not survive a power cut: ";

impl SaveError {
    /// Makes the error of an attempt that fails at `step` with the file at `path`.
    pub fn at(step: SaveStep, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self { is_in_place: false, step, path, error }
    }
}

/// A snapshot that was saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The moment of the snapshot.
    pub at: Now,
    /// Its contents.
    pub contents: SnapshotCounts,
}

/// A file that could not be used.
#[derive(Debug)]
pub struct UnusableFile {
    /// Its original name.
    pub path: PathBuf,
    /// Why it could not be used, as a sentence.
    pub reason: String,
    /// The reason in one word: `damaged`, `unreadable`, `foreign`, `unknown-version-2`.
    pub kind: String,
    /// Its new name.
    pub name: io::Result<PathBuf>,
}

/// The result of a search for a snapshot to restore.
pub struct FoundSnapshots<D: Disk> {
    /// The latest complete snapshot of this tracker, and its name.
    pub snapshot: Option<(Snapshot<D::Input>, PathBuf)>,
    /// The files tried before it, which are unusable.
    pub aside: Vec<UnusableFile>,
}

/// The folder of a tracker's snapshots.
#[derive(Clone, Debug)]
pub struct SnapshotFolder<D> {
    disk: D,
    path: PathBuf,
    tracker: TrackerId,
}

impl<D: Disk> SnapshotFolder<D> {
    /// The folder at `path`, for the snapshots of `tracker`.
    pub fn new(disk: D, path: PathBuf, tracker: TrackerId) -> Self {
        Self { disk, path, tracker }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Saves a snapshot of the swarms as of `at` and of the passkeys' sessions. It is dated
    /// `dated_s`, in seconds of the wall clock, to which a reader can compare it. `between` is
    /// called between two slices, with no lock held; its error ends the attempt.
    ///
    /// # Errors
    /// [`SaveError`] for the first failed step.
    pub fn save(
        &self,
        (store, keys): (&Store, &PasskeyTable),
        at: Now,
        dated_s: u64,
        between: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<Saved, SaveError> {
        let temporary = self.path.join(TEMPORARY);
        let written = self.write(&temporary, (store, keys), (at, dated_s), between);
        let saved = written.and_then(|counts| self.commit(&temporary).map(|()| counts));
        let contents = saved.inspect_err(|_| {
            // If this fails, the next save removes the file.
            let _ = self.disk.remove(&temporary);
        })?;
        Ok(Saved { at, contents })
    }

    /// Writes a snapshot to a new file, and waits for the disk.
    fn write(
        &self,
        path: &Path,
        what: (&Store, &PasskeyTable),
        (at, dated_s): (Now, u64),
        between: &mut dyn FnMut() -> io::Result<()>,
    ) -> Result<SnapshotCounts, SaveError> {
        let failed = |step: SaveStep| SaveError::at(step, path);
        self.remove_if_there(path).map_err(failed(SaveStep::Create))?;
        let file = self.disk.create(path).map_err(failed(SaveStep::Create))?;
        let header = Header {
            version: VERSION,
            at_s: dated_s,
            tracker: self.tracker,
            build: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let file = Stepwise { file, sync: |it: &D::Output| self.disk.sync(it), unsynced_bytes: 0 };
        let written = write_all(file, &header, (what, at), between);
        let (Stepwise { file, .. }, contents) = written.map_err(failed(SaveStep::Write))?;
        self.disk.sync(&file).map_err(failed(SaveStep::Sync))?;
        Ok(contents)
    }

    /// Renames the latest snapshot to the previous one, and the temporary file to the latest.
    fn commit(&self, temporary: &Path) -> Result<(), SaveError> {
        let [current, previous] = [CURRENT, PREVIOUS].map(|name| self.path.join(name));
        let is_first = match self.disk.rename(&current, &previous) {
            // This is the first snapshot, or an earlier attempt ended between the two renames.
            Err(error) if error.kind() == ErrorKind::NotFound => true,
            renamed => {
                renamed.map(|()| false).map_err(SaveError::at(SaveStep::Commit, &current))?
            }
        };
        if let Err(error) = self.disk.rename(temporary, &current) {
            if !is_first {
                // If this fails as well, the next start finds the snapshot under the other name.
                let _ = self.disk.rename(&previous, &current);
            }
            return Err(SaveError::at(SaveStep::Commit, temporary)(error));
        }
        self.disk.sync_folder(&self.path).map_err(|error| SaveError {
            is_in_place: true,
            ..SaveError::at(SaveStep::Sync, &self.path)(error)
        })
    }

    /// Finds the latest snapshot that is complete and of this tracker. Other files are set aside
    /// under a name that contains `now`; an unfinished snapshot is removed.
    pub fn find(&self, now: Now) -> FoundSnapshots<D> {
        self.find_with_progress(now, &mut || {})
    }

    /// As [`Self::find`]; calls `progress` after each block that is read.
    pub fn find_with_progress(&self, now: Now, progress: &mut dyn FnMut()) -> FoundSnapshots<D> {
        // If it cannot be removed, the next save reports that.
        let _ = self.remove_if_there(&self.path.join(TEMPORARY));
        let mut aside = Vec::new();
        for name in [CURRENT, PREVIOUS] {
            let path = self.path.join(name);
            let input = match self.disk.open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                input => input,
            };
            let opened = input
                .map_err(SnapshotError::Io)
                .and_then(|it| Snapshot::open_with_progress(it, progress));
            let (kind, reason) = match opened {
                Ok(snapshot) if snapshot.header().tracker == self.tracker => {
                    return FoundSnapshots { snapshot: Some((snapshot, path)), aside };
                }
                Ok(_) => ("foreign".to_owned(), OF_ANOTHER.to_owned()),
                Err(fault) => (fault.kind(), fault.to_string()),
            };
            let name = self.set_aside(&path, &kind, now);
            aside.push(UnusableFile { path, reason, kind, name });
        }
        FoundSnapshots { snapshot: None, aside }
    }

    /// Renames an unusable file, so that it is kept.
    ///
    /// # Errors
    /// Those of the disk. The file then keeps its name.
    pub fn set_aside(&self, path: &Path, kind: &str, now: Now) -> io::Result<PathBuf> {
        let stem = format!("{CURRENT}.{kind}-{}", now.seconds());
        for number in 0..ASIDE_NAMES_MAX {
            let name = if number == 0 { stem.clone() } else { format!("{stem}-{number}") };
            let name = self.path.join(name);
            match self.disk.link(path, &name) {
                Ok(()) => {
                    self.disk.remove(path)?;
                    return Ok(name);
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                // The file system has no hard links, or the path is a folder.
                Err(_) => {
                    self.disk.rename(path, &name)?;
                    return Ok(name);
                }
            }
        }
        Err(io::Error::new(ErrorKind::AlreadyExists, "too many files are set aside"))
    }

    fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Bytes between two syncs.
const STEP_BYTES: usize = 8 << 20;

/// A file that is synced regularly while it is written: one sync at the end could take so long that
/// it looks like a hanging disk.
struct Stepwise<W, S> {
    file: W,
    sync: S,
    unsynced_bytes: usize,
}

impl<W: Write, S: FnMut(&W) -> io::Result<()>> Write for Stepwise<W, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.unsynced_bytes >= STEP_BYTES {
            (self.sync)(&self.file)?;
            self.unsynced_bytes = 0;
        }
        let written = self.file.write(bytes)?;
        self.unsynced_bytes += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The reason text for a snapshot with another tracker's identity.
const OF_ANOTHER: &str = "it was written by another tracker: its identity is not the one in \
                          tracker.id beside it";

/// Sessions copied in one slice. The sessions of one key are copied at once.
const SESSIONS_PER_SLICE: usize = 1024;

/// Writes the whole export of a store, and the passkeys' sessions.
fn write_all<W: Write>(
    file: W,
    header: &Header,
    ((store, keys), at): ((&Store, &PasskeyTable), Now),
    between: &mut dyn FnMut() -> io::Result<()>,
) -> io::Result<(W, SnapshotCounts)> {
    let completed = store.totals().completed;
    let mut export = StoreExport::new(at);
    let (mut batch, mut writer) = (ExportBatch::default(), Writer::new(file, header)?);
    while store.export(&mut export, &mut batch) {
        writer.add(&batch)?;
        between()?;
    }
    let (mut sessions, mut copied) = (Vec::new(), 0);
    for key in keys.all() {
        let Some(totals) = key.save(at, &mut sessions) else { continue };
        writer.add_key(&SavedKey { digest: *key.digest(), totals, sessions: &sessions })?;
        copied += sessions.len() + 1;
        if copied >= SESSIONS_PER_SLICE {
            copied = 0;
            between()?;
        }
    }
    writer.finish(completed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_much_waits_to_be_written_to_the_disk() {
        let (mut synced, block) = (Vec::new(), [0; 64 << 10]);
        let sync = |bytes: &Vec<u8>| {
            synced.push(bytes.len());
            Ok(())
        };
        let mut file = Stepwise { file: Vec::new(), sync, unsynced_bytes: 0 };
        for _ in 0..(2 * STEP_BYTES + STEP_BYTES / 2) / block.len() {
            file.write_all(&block).unwrap();
        }
        assert_eq!(synced, [STEP_BYTES, 2 * STEP_BYTES]);
        let sync = |_: &Vec<u8>| Err(ErrorKind::StorageFull.into());
        let mut file = Stepwise { file: Vec::new(), sync, unsynced_bytes: STEP_BYTES };
        assert_eq!(file.write_all(&block).unwrap_err().kind(), ErrorKind::StorageFull);
    }
}
