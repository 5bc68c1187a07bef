//! The file that keeps the statistics page's last 24 hours: read once at the start, replaced once a
//! minute and at the end.
//!
//! It is a convenience: whatever happens to it, the tracker serves, and a file that cannot be used
//! costs the history and one line of the log.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use tracing::warn;

use crate::admin::live::{DAY_BYTES_MAX, DayFileError, DayHistory, StatsHub};
use crate::server::log::OPERATOR;
use crate::snapshot::{Disk, OsDisk};

/// The file's name in the state directory.
pub(super) const FILE: &str = "stats.history";

/// The file while it is being written.
const UNFINISHED: &str = "stats.history.new";

/// Why the history cannot be read.
#[derive(Debug, thiserror::Error)]
enum HistoryReadError {
    /// The disk fails, or this user may not read the file.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// The file's contents.
    #[error(transparent)]
    Contents(#[from] DayFileError),
}

/// The place of the file, if there is one.
#[derive(Debug, Default)]
pub(crate) struct HistoryFile {
    directory: Option<PathBuf>,
    /// Whether the file was read, or is known not to be there: before that it is not replaced.
    is_read: AtomicBool,
    /// Held by whoever writes: nobody waits for a disk that hangs.
    writing: Mutex<()>,
    /// Whether a failure to write was logged since the last success.
    was_logged: AtomicBool,
}

impl HistoryFile {
    /// Keeps the history in this directory; nowhere for `None`.
    pub(crate) fn kept_in(directory: Option<PathBuf>) -> Self {
        Self { directory, ..Self::default() }
    }

    /// Puts what an earlier run has kept before what the hub has. A file that cannot be used is
    /// logged. Blocks.
    pub(crate) fn restore(&self, hub: &StatsHub) {
        let Some(directory) = &self.directory else { return };
        let path = directory.join(FILE);
        match read(&path) {
            Ok(day) => hub.restore(day),
            Err(error) => {
                let path = path.display();
                warn!(
                    target: OPERATOR,
                    %path, %error, "history of the statistics page not usable, starting without it"
                );
            }
        }
        self.is_read.store(true, Ordering::Release);
    }

    /// Replaces the file by what the hub has, unless another thread is doing so. A failure is
    /// logged once, until it succeeds again. Blocks.
    pub(crate) fn save(&self, hub: &StatsHub) {
        let Some(directory) = &self.directory else { return };
        if !self.is_read.load(Ordering::Acquire) {
            return;
        }
        let Ok(_writing) = self.writing.try_lock() else { return };
        match write(directory, &hub.day().encode()) {
            Ok(()) => self.was_logged.store(false, Ordering::Relaxed),
            Err(error) if !self.was_logged.swap(true, Ordering::Relaxed) => {
                let path = directory.join(FILE);
                let path = path.display();
                warn!(
                    target: OPERATOR,
                    %path, %error,
                    remedy = "let skep's user write server.state_dir",
                    "history of the statistics page not saved"
                );
            }
            Err(_) => {}
        }
    }
}

fn read(path: &Path) -> Result<DayHistory, HistoryReadError> {
    let file = match OsDisk.open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(DayHistory::default()),
        opened => opened?,
    };
    // One byte more shows that the file is too long.
    let mut bytes = Vec::new();
    file.take(DAY_BYTES_MAX as u64 + 1).read_to_end(&mut bytes)?;
    Ok(DayHistory::decode(&bytes)?)
}

/// Writes another file, then gives it the name: a reader finds the old contents or the new.
fn write(directory: &Path, bytes: &[u8]) -> io::Result<()> {
    let unfinished = directory.join(UNFINISHED);
    match OsDisk.remove(&unfinished) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OsDisk.create(&unfinished)?;
    let written = file.write_all(bytes).and_then(|()| OsDisk.sync(&file));
    let renamed = written.and_then(|()| OsDisk.rename(&unfinished, &directory.join(FILE)));
    if renamed.is_err() {
        let _ = OsDisk.remove(&unfinished);
    }
    renamed?;
    OsDisk.sync_folder(directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::admin::live::Sample;
    use crate::frontend::stats::Stats;

    /// A hub with some minutes.
    fn some_hub() -> StatsHub {
        let hub = StatsHub::default();
        for minute in 0..5_u32 {
            let store = Stats { seeders: [minute.into(), 0, 0], ..Stats::default() };
            let at_s = f64::from(minute * 60);
            hub.show(Sample { at_s, span_s: 1.0, store, ..Sample::default() });
        }
        hub
    }

    /// The history that a run restores from this folder.
    fn restored(folder: &Path) -> (HistoryFile, DayHistory) {
        let (file, hub) = (HistoryFile::kept_in(Some(folder.to_owned())), StatsHub::default());
        file.restore(&hub);
        (file, hub.day())
    }

    #[test]
    fn what_is_saved_is_restored_by_the_next_run_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let (file, empty) = restored(folder.path());
        assert_eq!(empty, DayHistory::default());
        file.save(&some_hub());
        file.save(&some_hub());
        let (_, found) = restored(folder.path());
        assert_eq!(found.encode(), some_hub().day().encode());
        let mode = fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing unfinished stays");
    }

    #[test]
    fn a_damaged_file_starts_empty_and_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let long = vec![b'x'; DAY_BYTES_MAX + 1];
        let valid = some_hub().day().encode();
        for contents in [&b""[..], b"skep day", &long, &valid[..valid.len() - 1]] {
            fs::write(&path, contents).unwrap();
            let (file, found) = restored(folder.path());
            assert_eq!(found, DayHistory::default());
            file.save(&some_hub());
            assert_eq!(fs::read(&path).unwrap(), valid);
        }
    }

    #[test]
    fn a_link_is_not_followed_and_a_file_that_was_not_read_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = folder.path().join("elsewhere");
        let valid = some_hub().day().encode();
        fs::write(&elsewhere, &valid).unwrap();
        std::os::unix::fs::symlink(&elsewhere, folder.path().join(FILE)).unwrap();
        HistoryFile::kept_in(Some(folder.path().to_owned())).save(&StatsHub::default());
        assert!(folder.path().join(FILE).is_symlink(), "not read, so not replaced");
        let (file, found) = restored(folder.path());
        assert_eq!(found, DayHistory::default());
        file.save(&StatsHub::default());
        assert!(!folder.path().join(FILE).is_symlink());
        assert_eq!(fs::read(&elsewhere).unwrap(), valid);
    }

    #[test]
    fn without_a_directory_nothing_is_kept_and_one_that_is_gone_is_no_failure() {
        let file = HistoryFile::kept_in(None);
        file.restore(&StatsHub::default());
        file.save(&some_hub());
        let folder = tempfile::tempdir().unwrap();
        let (file, _) = restored(folder.path());
        drop(folder);
        file.save(&some_hub());
        file.save(&some_hub());
        assert!(file.was_logged.load(Ordering::Relaxed));
    }
}
