//! State that is kept across restarts: the state directory and, in it, the connection-id key, the
//! tracker's identity, and the token of the API.
//!
//! A client uses a connection id for up to two minutes. If the key changed with every restart,
//! requests with older ids would get no response; if nodes behind one address had different keys,
//! half of the requests would get none. The key therefore comes from a place that several processes
//! can share: the environment, a file that is configured, or a file in the state directory, created
//! by the first process that needs it.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use tracing::warn;

use crate::config::token_fault;
use crate::frontend::connection_id::KEY_BYTES;
use crate::server::log::OPERATOR;
use crate::snapshot::TrackerId;

/// The variable that may contain the key: 64 hexadecimal digits, or two keys separated by a comma.
pub(crate) const KEY_VARIABLE: &str = "SKEP_CONNECTION_ID_KEY";

/// The file with the tracker's identity, which its snapshots contain.
pub(super) const IDENTITY_FILE: &str = "tracker.id";

/// The file of the key.
pub(super) const KEY_FILE: &str = "connection_id.key";

/// The file of the API's token.
pub(super) const TOKEN_FILE: &str = "admin.token";

/// Most bytes of a key or token file: two keys with comments.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Permission bits that give others than the owner access to a file.
const OTHERS: u32 = 0o077;

/// Where the state directory may be and keys may come from.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    /// The configured state directory.
    pub(super) directory: Option<PathBuf>,
    /// The configured key file.
    pub(super) key_file: Option<PathBuf>,
    /// Variables of the environment.
    pub(super) environment: Environment,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Environment {
    /// `STATE_DIRECTORY`: set by systemd; several are separated by colons.
    pub(super) state_directory: Option<OsString>,
    /// `XDG_STATE_HOME`.
    pub(super) xdg_state_home: Option<OsString>,
    /// `HOME`.
    pub(super) home: Option<OsString>,
    /// [`KEY_VARIABLE`].
    pub(super) key: Option<OsString>,
}

impl Environment {
    /// Reads the environment of this process.
    pub(super) fn of_process() -> Self {
        let variable = |name| std::env::var_os(name).filter(|it| !it.is_empty());
        Self {
            state_directory: variable("STATE_DIRECTORY"),
            xdg_state_home: variable("XDG_STATE_HOME"),
            home: variable("HOME"),
            key: variable(KEY_VARIABLE),
        }
    }
}

/// The keys, their origin, and a possible warning.
#[derive(Clone)]
pub(super) struct LoadedKeys {
    /// The key for new connection ids.
    pub(super) active: [u8; KEY_BYTES],
    /// A further key whose ids are accepted.
    pub(super) staging: Option<[u8; KEY_BYTES]>,
    /// The origin of the keys, in words.
    pub(super) origin: String,
    /// Whether the keys exist only for this process, because they could not be kept.
    pub(super) made_up: bool,
    /// A warning for the operator.
    pub(super) warning: Option<KeyWarning>,
}

/// A warning about the keys or the state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum KeyWarning {
    /// There is no state directory, for this reason.
    NoDirectory(String),
    /// Other users have access to the state directory.
    OpenDirectory { path: PathBuf, mode: u32 },
    /// Other users have access to the file of the keys.
    OpenFile { path: PathBuf, mode: u32 },
}

impl KeyWarning {
    /// Logs the warning.
    pub(super) fn log(&self) {
        let remedy = self.remedy();
        match self {
            Self::NoDirectory(error) => warn!(
                target: OPERATOR,
                %error,
                effect = "swarms and connection ids do not survive a restart, access lists \
                          without a configured file are empty, and without admin.token the API is \
                          read-only",
                remedy,
                "no state directory"
            ),
            Self::OpenDirectory { path, mode } => {
                log_open("state directory open to other users", path, *mode, &remedy);
            }
            Self::OpenFile { path, mode } => {
                let event = "connection-id key readable by other users, who could forge ids";
                log_open(event, path, *mode, &remedy);
            }
        }
    }

    /// What the operator should do.
    pub(super) fn remedy(&self) -> String {
        match self {
            Self::NoDirectory(_) => {
                "set server.state_dir to a directory that this user may write".into()
            }
            Self::OpenDirectory { path, .. } => format!("chmod 700 {}", path.display()),
            Self::OpenFile { path, .. } => format!("chmod 600 {}", path.display()),
        }
    }
}

fn log_open(event: &str, path: &Path, mode: u32, remedy: &str) {
    let (path, mode) = (path.display(), format!("{mode:04o}"));
    warn!(target: OPERATOR, %path, %mode, remedy, "{event}");
}

impl LoadedKeys {
    /// The key that all nodes of a cluster derive from its secret.
    pub(super) fn of_cluster(active: [u8; KEY_BYTES]) -> Self {
        let origin = "the secret of the cluster".into();
        Self { active, staging: None, origin, made_up: false, warning: None }
    }
}

impl fmt::Debug for LoadedKeys {
    /// Never prints a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loaded").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// Why there is no state directory, or why one of its files cannot be created or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateDirectoryError {
    /// Neither the settings nor the environment name one.
    #[error("neither STATE_DIRECTORY, XDG_STATE_HOME nor HOME is set")]
    NotNamed,
    /// The directory or a file cannot be created.
    #[error("cannot create {}: {error}", path.display())]
    Create {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// This user may not enter the directory.
    #[error("cannot enter {}: {error}", path.display())]
    Enter {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {}", path.display(), why(error))]
    Read {
        /// Its path.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The file of the tracker's identity does not contain one.
    #[error("{} is not a valid identity file: remove it", .0.display())]
    MalformedIdentity(PathBuf),
}

/// A key that was configured and cannot be used: where it is, why, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct KeyError {
    text: String,
    is_denied: bool,
}

impl KeyError {
    /// Whether this user may not read the file.
    pub(super) fn is_denied(&self) -> bool {
        self.is_denied
    }
}

/// Why the state directory has no usable token.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(super) struct TokenError {
    text: String,
    /// Whether a file exists whose content must not be used as a token.
    pub(super) is_refused: bool,
}

impl From<StateDirectoryError> for TokenError {
    /// There is no file, or it cannot be read.
    fn from(error: StateDirectoryError) -> Self {
        Self { text: error.to_string(), is_refused: false }
    }
}

/// Finds the connection-id keys: in the variable, else in the configured file, else in the file in
/// the state directory, which is created if absent. Without a writable state directory a random key
/// is used, with a warning.
///
/// # Errors
/// [`KeyError`] if a key exists but cannot be read, or is invalid: with another key this node would
/// refuse ids of the others unnoticed.
pub(super) fn connection_id_keys(options: &Options) -> Result<LoadedKeys, KeyError> {
    if let Some(text) = &options.environment.key {
        let origin = format!("${KEY_VARIABLE}");
        let lines = text.to_string_lossy().replace(',', "\n");
        return parse(&lines, &origin, None);
    }
    if let Some(path) = &options.key_file {
        return read(path, Links::Followed);
    }
    let created = directory(options).and_then(|it| Ok((create(&it.join(KEY_FILE))?, it)));
    match created {
        Ok((path, directory)) => {
            let loaded = read(&path, Links::Refused)?;
            Ok(LoadedKeys { warning: loaded.warning.or_else(|| too_open(&directory)), ..loaded })
        }
        Err(error) => Ok(LoadedKeys {
            active: random_key(),
            staging: None,
            origin: "random, for this run only".into(),
            made_up: true,
            warning: Some(KeyWarning::NoDirectory(error.to_string())),
        }),
    }
}

/// The state directory and the identity of its tracker, both created if absent; or why there are
/// none.
pub(super) fn tracker_id(options: &Options) -> Result<(PathBuf, TrackerId), StateDirectoryError> {
    let directory = directory(options)?;
    let path = create(&directory.join(IDENTITY_FILE))?;
    Ok((directory, identity_in(&path)?))
}

fn identity_in(path: &Path) -> Result<TrackerId, StateDirectoryError> {
    let (text, _) = match read_file(path, Links::Refused) {
        Ok(found) => found,
        Err(error) => return Err(StateDirectoryError::Read { path: path.to_owned(), error }),
    };
    let identity = key(text.trim()).and_then(|key| key.first_chunk().copied());
    identity.ok_or_else(|| StateDirectoryError::MalformedIdentity(path.to_owned()))
}

/// Checks an existing [`KEY_FILE`] as [`connection_id_keys`] does.
///
/// # Errors
/// The text of the error.
pub(super) fn check_key(path: &Path) -> Result<(), String> {
    read(path, Links::Refused).map(drop).map_err(|error| error.to_string())
}

/// Checks an existing [`IDENTITY_FILE`] as [`tracker_id`] does.
///
/// # Errors
/// The text of the error.
pub(super) fn check_identity(path: &Path) -> Result<(), String> {
    identity_in(path).map(drop).map_err(|error| error.to_string())
}

/// Checks an existing [`TOKEN_FILE`] as [`admin_token`] does.
///
/// # Errors
/// The text of the error.
pub(super) fn check_token(path: &Path) -> Result<(), String> {
    token_in(path).map(drop).map_err(|error| error.to_string())
}

/// The API's token if the settings have none: created once, and kept in the state directory; or why
/// there is none. An operator may replace the file. The next start or reload reads it.
pub(super) fn admin_token(options: &Options) -> Result<String, TokenError> {
    let path = create(&directory(options)?.join(TOKEN_FILE))?;
    token_in(&path)
}

/// The token that a tracker with this state directory has created, if this user may read it, and
/// the user that its file belongs to.
pub(super) fn kept_token(directory: &Path) -> Option<(String, u32)> {
    let path = directory.join(TOKEN_FILE);
    Some((token_in(&path).ok()?, path.metadata().ok()?.uid()))
}

fn token_in(path: &Path) -> Result<String, TokenError> {
    let name = path.display();
    let refused = |text: String| Err(TokenError { text, is_refused: true });
    let (text, mode) = read_file(path, Links::Refused)
        .map_err(|error| StateDirectoryError::Read { path: path.to_owned(), error })?;
    if mode & OTHERS != 0 {
        return refused(format!(
            "other users may read {name} (mode {mode:04o}), so it is not used: remove it, and the \
             next start or reload creates another"
        ));
    }
    let token = text.trim();
    match token_fault(token) {
        None => Ok(token.to_owned()),
        Some(fault) => refused(format!("{name} does not contain a token: {fault}: remove it")),
    }
}

/// The state directory, created if absent and `needed`; or why there is none, or none that this
/// user may enter.
pub(super) fn home(options: &Options, needed: bool) -> Result<PathBuf, StateDirectoryError> {
    if needed {
        return directory(options);
    }
    let path = located(options).ok_or(StateDirectoryError::NotNamed)?;
    // Access to the contents of a directory requires the right to enter it; access to the directory
    // itself requires that of its parent.
    match fs::metadata(path.join(".")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StateDirectoryError::Enter { path, error })
        }
        _ => Ok(path),
    }
}

/// The state directory, created if absent.
fn directory(options: &Options) -> Result<PathBuf, StateDirectoryError> {
    let path = located(options).ok_or(StateDirectoryError::NotNamed)?;
    match DirBuilder::new().recursive(true).mode(0o700).create(&path) {
        Ok(()) => Ok(path),
        Err(error) => Err(StateDirectoryError::Create { path, error }),
    }
}

/// The path of the state directory, which may not exist; `None` if there is none.
pub(super) fn path(options: &Options) -> Option<PathBuf> {
    located(options)
}

/// Whether this user can write to a directory, or create it if it does not exist.
///
/// # Errors
/// The folder that is in the way, and why.
pub(crate) fn writable(path: &Path) -> Result<(), String> {
    let there = path.ancestors().find(|it| it.exists()).unwrap_or_else(|| Path::new("/"));
    if !there.is_dir() {
        return Err(format!("{} is not a directory", there.display()));
    }
    accessat(CWD, there, Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS)
        .map_err(|error| format!("{}: {error}", there.display()))
}

/// A warning if other users have access to a state directory.
fn too_open(directory: &Path) -> Option<KeyWarning> {
    let mode = fs::metadata(directory).ok()?.permissions().mode() & 0o7777;
    let path = directory.to_owned();
    (mode & OTHERS != 0).then_some(KeyWarning::OpenDirectory { path, mode })
}

/// The path of the state directory: as configured, from systemd, or by the XDG rules (which ignore
/// relative paths).
fn located(options: &Options) -> Option<PathBuf> {
    let first_of = |paths: &OsString| std::env::split_paths(paths).next();
    let environment = &options.environment;
    let absolute = |it: &OsString| Some(PathBuf::from(it)).filter(|path| path.is_absolute());
    let xdg = || environment.xdg_state_home.as_ref().and_then(absolute);
    let home = || environment.home.as_ref().and_then(absolute).map(|it| it.join(".local/state"));
    let systemd = || environment.state_directory.as_ref().and_then(first_of);
    let configured = options.directory.clone();
    configured.or_else(systemd).or_else(|| Some(xdg().or_else(home)?.join("skep")))
}

/// Creates a key file unless it exists. Of several processes that try at once, one succeeds and all
/// use its key: the file is complete before it gets its name.
fn create(path: &Path) -> Result<PathBuf, StateDirectoryError> {
    if path.symlink_metadata().is_ok() {
        return Ok(path.to_owned());
    }
    let unfinished = path.with_extension(hex(&random_key()[..8]));
    let linked = write_key(&unfinished).and_then(|()| fs::hard_link(&unfinished, path));
    let _ = fs::remove_file(&unfinished);
    let written = match linked {
        // A file system without hard links (FAT, some network mounts): only there, a process that
        // starts at the same moment may find the file still empty, and reports that.
        Err(error) if lacks_hard_links(&error) => write_key(path),
        linked => linked,
    };
    match written {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(StateDirectoryError::Create { path: path.to_owned(), error });
        }
        _ => {}
    }
    // Makes the name survive a power failure, if the file system supports that.
    let _ = path.parent().map(|it| fs::File::open(it)?.sync_all());
    Ok(path.to_owned())
}

/// Writes a new key to a new file.
fn write_key(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(format!("{}\n", hex(&random_key())).as_bytes())?;
    file.sync_all()
}

/// Whether an error of link(2) means that the file system has no hard links.
fn lacks_hard_links(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP))
}

/// How a link in place of a file is handled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    /// It is followed: an operator named it.
    Followed,
    /// It is an error: skep creates no links in the state directory.
    Refused,
}

/// Why a file in the state directory cannot be read, in words.
pub(super) fn why(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ELOOP) => "it is a link, which is not followed in the state directory".into(),
        _ => error.to_string(),
    }
}

/// Reads a short file and its mode. Does not block on a pipe.
fn read_file(path: &Path, links: Links) -> io::Result<(String, u32)> {
    let nofollow = if links == Links::Refused { libc::O_NOFOLLOW } else { 0 };
    let flags = nofollow | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > KEY_FILE_BYTES_MAX {
        let text = format!("it is not a regular file of at most {KEY_FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut text = String::new();
    file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok((text, metadata.permissions().mode() & 0o7777))
}

/// Reads a key file.
fn read(path: &Path, links: Links) -> Result<LoadedKeys, KeyError> {
    let origin = path.display().to_string();
    let failed = |error: io::Error| {
        let is_link = links == Links::Refused && error.raw_os_error() == Some(libc::ELOOP);
        let (why, remedy) = match is_link {
            true => (why(&error), "name the file that it leads to in udp.key_file, or remove it"),
            false => (
                error.to_string(),
                "give the file to the user that runs skep (chown, chmod 600), or set udp.key_file \
                 to another",
            ),
        };
        KeyError {
            text: format!("cannot read the connection-id key in {origin}: {why}; remedy: {remedy}"),
            is_denied: error.kind() == io::ErrorKind::PermissionDenied,
        }
    };
    let (text, mode) = match read_file(path, links) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let problem = format!("a file that is not text of at most {KEY_FILE_BYTES_MAX} bytes");
            return Err(malformed(&origin, &problem));
        }
        read => read.map_err(failed)?,
    };
    let is_open = mode & OTHERS != 0;
    let warning = is_open.then(|| KeyWarning::OpenFile { path: path.to_owned(), mode });
    parse(&text, &origin, warning)
}

/// Reads keys from lines: the active one, then an optional staging one. Empty lines and those that
/// start with `#` are skipped.
fn parse(text: &str, origin: &str, warning: Option<KeyWarning>) -> Result<LoadedKeys, KeyError> {
    let lines = text.lines().map(str::trim).filter(|it| !it.is_empty() && !it.starts_with('#'));
    let keys: Option<Vec<_>> = lines.map(key).collect();
    let (active, staging) = match keys.as_deref() {
        Some([active]) => (*active, None),
        Some([active, staging]) => (*active, Some(*staging)),
        Some(keys) => return Err(malformed(origin, &format!("{} keys", keys.len()))),
        None => return Err(malformed(origin, "an invalid key")),
    };
    Ok(LoadedKeys { active, staging, origin: origin.to_owned(), made_up: false, warning })
}

fn malformed(origin: &str, problem: &str) -> KeyError {
    let text = format!(
        "the connection-id key in {origin} cannot be used: found {problem}; allowed: one key, or \
         an active and a staging one, each of {} hexadecimal digits (openssl rand -hex \
         {KEY_BYTES})",
        2 * KEY_BYTES
    );
    KeyError { text, is_denied: false }
}

/// Decodes a key from its digits.
fn key(digits: &str) -> Option<[u8; KEY_BYTES]> {
    let mut key = [0; KEY_BYTES];
    if digits.len() != 2 * KEY_BYTES || !digits.bytes().all(|it| it.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    Some(key)
}

/// A new random key.
fn random_key() -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    // Does not fail on a Linux with getrandom. A predictable key would be worse than no tracker.
    getrandom::fill(&mut key).unwrap_or_else(|error| unreachable!("no randomness: {error}"));
    key
}

/// Bytes as hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|it| format!("{it:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn within(directory: &Path) -> Options {
        Options { directory: Some(directory.join("a/skep")), ..Options::default() }
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_key_is_created_once_and_kept() {
        let temporary = tempfile::tempdir().unwrap();
        let options = within(temporary.path());
        let first = connection_id_keys(&options).unwrap();
        let again = connection_id_keys(&options).unwrap();
        assert_eq!((first.active, first.staging), (again.active, None));
        assert_eq!(first.warning, None);
        let directory = temporary.path().join("a/skep");
        assert_eq!((mode(&directory), mode(&directory.join(KEY_FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1, "nothing unfinished stays");
        assert!(!format!("{first:?}").contains(&hex(&first.active)));
    }

    #[test]
    fn a_directory_open_to_others_is_warned_of() {
        let temporary = tempfile::tempdir().unwrap();
        fs::set_permissions(temporary.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let directory = Some(temporary.path().to_owned());
        let keys = connection_id_keys(&Options { directory, ..Options::default() }).unwrap();
        let (path, warning) = (temporary.path().to_owned(), keys.warning.unwrap());
        assert_eq!(warning, KeyWarning::OpenDirectory { path, mode: 0o755 });
        assert!(warning.remedy().contains("chmod 700"), "{warning:?}");
    }

    #[test]
    fn a_token_is_made_once_and_may_be_another_that_is_long_enough_and_private() {
        let temporary = tempfile::tempdir().unwrap();
        let options = within(temporary.path());
        let first = admin_token(&options).unwrap();
        assert_eq!((admin_token(&options).unwrap(), first.len()), (first.clone(), 64));
        let directory = temporary.path().join("a/skep");
        let path = directory.join(TOKEN_FILE);
        let kept = kept_token(&directory).map(|it| it.0);
        assert_eq!((mode(&path), kept), (0o600, Some(first.clone())));
        fs::write(&path, " of the operator's choice \n").unwrap();
        assert_eq!(admin_token(&options).unwrap(), "of the operator's choice");
        fs::write(&path, "short").unwrap();
        let error = admin_token(&options).unwrap_err();
        let said = error.to_string();
        assert!(error.is_refused);
        assert!(said.contains("16") && said.contains("remove it") && !said.contains("short"));
        fs::remove_file(&path).unwrap();
        let second = admin_token(&options).unwrap();
        assert_ne!(second, first);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = admin_token(&options).unwrap_err();
        assert!(error.is_refused && error.to_string().contains("mode 0640"));
    }

    #[test]
    fn no_link_and_no_pipe_stands_for_a_file_of_ours() {
        let temporary = tempfile::tempdir().unwrap();
        let elsewhere = temporary.path().join("elsewhere");
        let options = within(temporary.path());
        let directory = directory(&options).unwrap();
        for is_there in [false, true] {
            if is_there {
                fs::write(&elsewhere, "ab".repeat(32)).unwrap();
            }
            for name in [KEY_FILE, IDENTITY_FILE, TOKEN_FILE] {
                std::os::unix::fs::symlink(&elsewhere, directory.join(name)).unwrap();
            }
            let said = connection_id_keys(&options).unwrap_err().to_string();
            assert!(said.contains("it is a link") && said.contains("udp.key_file"), "{said}");
            assert!(tracker_id(&options).is_err() && admin_token(&options).is_err());
            assert_eq!(elsewhere.exists(), is_there, "nothing was made there");
            for name in [KEY_FILE, IDENTITY_FILE, TOKEN_FILE] {
                fs::remove_file(directory.join(name)).unwrap();
            }
        }
        let pipe = directory.join(TOKEN_FILE);
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let error = admin_token(&options).unwrap_err();
        assert!(!error.is_refused && error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_tracker_keeps_its_identity_and_two_have_different_ones() {
        let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (directory, identity) = tracker_id(&within(ours.path())).unwrap();
        assert_eq!(tracker_id(&within(ours.path())).unwrap().1, identity);
        assert_ne!(tracker_id(&within(theirs.path())).unwrap().1, identity);
        fs::write(directory.join(IDENTITY_FILE), "mine").unwrap();
        let said = tracker_id(&within(ours.path())).unwrap_err().to_string();
        assert!(said.contains("tracker.id") && said.contains("remove it"), "{said}");
    }

    #[test]
    fn processes_that_race_get_the_same_key() {
        for _ in 0..20 {
            let temporary = tempfile::tempdir().unwrap();
            let options = within(temporary.path());
            let start = std::sync::Barrier::new(8);
            let keys: Vec<_> = std::thread::scope(|scope| {
                let racers: Vec<_> = (0..8)
                    .map(|_| {
                        scope.spawn(|| {
                            start.wait();
                            connection_id_keys(&options).unwrap().active
                        })
                    })
                    .collect();
                racers.into_iter().map(|it| it.join().unwrap()).collect()
            });
            assert!(keys.iter().all(|it| *it == keys[0]));
        }
    }

    #[test]
    fn a_file_may_hold_an_active_and_a_staging_key() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("keys");
        fs::write(&path, format!("# active\n{}\n\n{}\n", "0A".repeat(32), "ff".repeat(32)))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let options = Options { key_file: Some(path.clone()), ..Options::default() };
        let keys = connection_id_keys(&options).unwrap();
        assert_eq!((keys.active, keys.staging), ([0x0a; 32], Some([0xff; 32])));
        let warning = keys.warning.unwrap();
        assert_eq!(warning, KeyWarning::OpenFile { path: path.clone(), mode: 0o640 });
        assert!(warning.remedy().contains("chmod 600"), "{warning:?}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(connection_id_keys(&options).unwrap().warning, None);
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_shown() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("keys");
        let options = Options { key_file: Some(path.clone()), ..Options::default() };
        let text = connection_id_keys(&options).unwrap_err().to_string();
        assert!(text.contains("cannot read") && text.contains("remedy: "), "{text}");
        let three = format!("{}\n", "aa".repeat(32)).repeat(3);
        let long = "a".repeat(5000);
        for bad in ["", "ab", &"g1".repeat(32), &"+1".repeat(32), &"é".repeat(32), &three, &long] {
            fs::write(&path, bad).unwrap();
            let text = connection_id_keys(&options).unwrap_err().to_string();
            assert!(text.contains("64 hexadecimal digits") && text.contains("keys"), "{text}");
            assert!(bad.is_empty() || !text.contains(&format!("found {bad}")), "{text}");
        }
    }

    #[test]
    fn the_variable_comes_before_any_file() {
        let text = format!("{},{}", "01".repeat(32), "02".repeat(32));
        let environment = Environment { key: Some(text.into()), ..Environment::default() };
        let options = Options { environment, key_file: Some("/absent".into()), directory: None };
        let keys = connection_id_keys(&options).unwrap();
        assert_eq!((keys.active, keys.staging), ([1; 32], Some([2; 32])));
    }

    #[test]
    fn without_a_directory_a_key_is_made_up_with_a_warning() {
        let keys = connection_id_keys(&Options::default()).unwrap();
        assert!(keys.warning.unwrap().remedy().contains("server.state_dir"));
        let directory = Some("/proc/nowhere".into());
        let keys = connection_id_keys(&Options { directory, ..Options::default() }).unwrap();
        let Some(KeyWarning::NoDirectory(error)) = keys.warning else {
            panic!("{:?}", keys.warning)
        };
        assert!(error.contains("/proc/nowhere"), "{error}");
    }

    #[test]
    fn the_directory_is_found_in_order() {
        let all = Environment {
            state_directory: Some("/var/lib/skep:/var/lib/other".into()),
            xdg_state_home: Some("/xdg".into()),
            home: Some("/users/a".into()),
            key: None,
        };
        let at = |environment: &Environment, directory: Option<&str>| {
            let directory = directory.map(PathBuf::from);
            located(&Options { directory, environment: environment.clone(), key_file: None })
        };
        assert_eq!(at(&all, Some("/mine")), Some("/mine".into()));
        assert_eq!(at(&all, None), Some("/var/lib/skep".into()));
        let all = Environment { state_directory: None, ..all };
        assert_eq!(at(&all, None), Some("/xdg/skep".into()));
        let all = Environment { xdg_state_home: Some("relative".into()), ..all };
        assert_eq!(at(&all, None), Some("/users/a/.local/state/skep".into()));
        assert_eq!(at(&Environment::default(), None), None);
    }
}
