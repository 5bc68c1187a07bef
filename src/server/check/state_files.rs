//! The files of the state directory that a start opens: each is opened as the start would open it,
//! by the user that it would have, and nothing is created.

use std::fs::{self, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::{Access, AtFlags, CWD, accessat};

use crate::access_store::AccessManager;
use crate::config::{
    AccessMode, Config, ConfigFinding, ConfigReport, ConfigSeverity, ConfigTopic, SnapshotMode,
};
use crate::server::snapshots::SNAPSHOT_LOCK;
use crate::server::{confine, history, state_directory};
use crate::snapshot::{CURRENT, PREVIOUS};
use crate::sys::identity::{self, UnixUser};

/// The database of registered torrents and passkeys.
const DATABASE: &str = "access.redb";

/// What a start does with a file, and without it.
struct StateFile {
    name: &'static str,
    /// Whether the file itself is written, not only replaced by another.
    is_written: bool,
    /// Whether the start fails if the file cannot be opened, or goes on.
    severity: ConfigSeverity,
    /// The consequence.
    effect: &'static str,
    /// What the start checks once the file is open: the error's text.
    check: fn(&Path) -> Result<(), String>,
}

/// Adds a finding on each file in the state directory that the start could not use.
pub(super) fn judge(
    report: &mut ConfigReport,
    directory: &Path,
    user: Option<&UnixUser>,
    key: Option<&str>,
) {
    let owner = DirectoryOwner::of(directory, user);
    let mut is_current_bad = None;
    for file in files(&report.config) {
        // The previous snapshot is read if the current one cannot be.
        if file.name == PREVIOUS && is_current_bad == Some(false) {
            continue;
        }
        let path = directory.join(file.name);
        let Ok(metadata) = path.symlink_metadata() else { continue };
        let problem = {
            let user = user.filter(|it| !owner.gives(&metadata, it));
            let _acting = confine::act_as(user);
            problem(&file, &path)
        };
        if file.name == CURRENT {
            is_current_bad = Some(problem.is_some());
        }
        let Some((problem, is_denied)) = problem else { continue };
        let mut finding = ConfigFinding::fault(problem);
        if is_denied {
            finding.remedy = Some(remedy(directory, &metadata, user));
        }
        finding.message += file.effect;
        finding.severity = file.severity;
        super::add_about(report, key, finding.on(ConfigTopic::StateDirectory));
    }
}

/// Whether a start as root makes the user the owner of what root owns in the state directory.
struct DirectoryOwner {
    is_given: bool,
}

impl DirectoryOwner {
    fn of(directory: &Path, user: Option<&UnixUser>) -> Self {
        let is_roots = || fs::metadata(directory).is_ok_and(|it| it.uid() == 0);
        let is_given = user.is_some() && is_roots() && identity::roots_own(directory).is_ok();
        Self { is_given }
    }

    /// Whether a file belongs to the user from the start on.
    fn gives(&self, metadata: &Metadata, user: &UnixUser) -> bool {
        let is_taken = metadata.uid() == 0 && metadata.is_file() && metadata.nlink() == 1;
        self.is_given && (is_taken || metadata.uid() == user.user())
    }
}

/// The files that a start with these settings opens, in its order.
fn files(config: &Config) -> Vec<StateFile> {
    let (fault, warning) = (ConfigSeverity::Fault, ConfigSeverity::Warning);
    let none: fn(&Path) -> Result<(), String> = |_| Ok(());
    let mut all = Vec::new();
    let environment = state_directory::Environment::of_process();
    if environment.key.is_none() && config.udp.key_file.is_empty() {
        let (name, check) = (state_directory::KEY_FILE, state_directory::check_key as _);
        let effect = ", and skep does not start without its connection-id key";
        all.push(StateFile { name, is_written: false, severity: fault, effect, check });
    }
    if config.snapshot.mode != SnapshotMode::Off {
        let (severity, effect) = match config.snapshot.mode {
            SnapshotMode::On => (fault, ", and snapshot.mode is \"on\""),
            _ => (warning, ", so no snapshots are kept, and swarms are empty after a restart"),
        };
        let (name, check) = (state_directory::IDENTITY_FILE, state_directory::check_identity as _);
        all.push(StateFile { name, is_written: false, severity, effect, check });
        let name = SNAPSHOT_LOCK;
        all.push(StateFile { name, is_written: true, severity, effect, check: none });
    }
    if config.access.mode != AccessMode::Open {
        let effect = ", and registered torrents and passkeys are kept there";
        let name = DATABASE;
        all.push(StateFile { name, is_written: true, severity: fault, effect, check: none });
    }
    if config.admin.token.is_empty() {
        let (name, check) = (state_directory::TOKEN_FILE, state_directory::check_token as _);
        let effect = ", so the API is read-only";
        all.push(StateFile { name, is_written: false, severity: warning, effect, check });
    }
    let effect = ", so the statistics page begins without its last 24 hours";
    let name = history::FILE;
    all.push(StateFile { name, is_written: false, severity: warning, effect, check: none });
    if config.snapshot.mode != SnapshotMode::Off {
        let effect = ", so nothing is restored from it";
        for name in [CURRENT, PREVIOUS] {
            all.push(StateFile { name, is_written: false, severity: warning, effect, check: none });
        }
    }
    all
}

/// What is wrong with a file that exists, and whether its owner or mode is the cause.
fn problem(file: &StateFile, path: &Path) -> Option<(String, bool)> {
    match open(path, file.is_written) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            let verb = if file.is_written { "write" } else { "read" };
            Some((format!("cannot {verb} {}: {error}", path.display()), true))
        }
        // Contents and links: the text of the start has the remedy.
        result => {
            let checked = (file.check)(path).map_err(|text| (text, false));
            let removed = |error| {
                let why = state_directory::why(&error);
                format!("cannot read {}: {why}; remedy: remove it", path.display())
            };
            checked.err().or_else(|| Some((removed(result.err()?), false)))
        }
    }
}

/// Opens a file to read it, as a start does, and finds out whether it can be written.
fn open(path: &Path, is_written: bool) -> io::Result<()> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
    }
    if is_written {
        accessat(CWD, path, Access::WRITE_OK, AtFlags::EACCESS)?;
    }
    Ok(())
}

/// The command after which the start can open every file.
fn remedy(directory: &Path, metadata: &Metadata, user: Option<&UnixUser>) -> String {
    let here = UnixUser::of_process();
    let directory = directory.display();
    match user.or(here.as_ref()) {
        Some(user) if user.user() == metadata.uid() => format!("chmod -R u+rwX {directory}"),
        Some(user) => format!("chown -R {} {directory}", user.name()),
        None => format!("make skep's user the owner of {directory} and of all that is in it"),
    }
}

/// The database's contents, if torrents have to be registered. One that cannot be opened is left to
/// [`judge`].
pub(super) fn database(
    report: &mut ConfigReport,
    directory: &Path,
    user: Option<&UnixUser>,
    key: &str,
) {
    let path = directory.join(DATABASE);
    let Ok(metadata) = path.symlink_metadata() else { return };
    let owner = DirectoryOwner::of(directory, user);
    let found = {
        let _acting = confine::act_as(user.filter(|it| !owner.gives(&metadata, it)));
        match open(&path, true) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return,
            _ => AccessManager::check_database(directory),
        }
    };
    if let Err(error) = found {
        report.add(ConfigFinding::fault(error.to_string()).about(key));
    }
}
