//! The writing side of access control: lists in files, registrations and passkeys in a database. A
//! change is written to disk, then put in force.
//!
//! Workers never call this: a change waits for the disk, an announce never does.

mod database;
mod files;
mod registrations;
mod torrent;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

use database::Database;
pub use database::DatabaseError;
use files::ListFile;
pub use files::{Edit, ListFileError};
pub use registrations::{ImportOutcome, ImportedPasskey, Issued, Registered};
pub use torrent::RegisteredTorrent;

use crate::access::Access;
use crate::access::lists::{AccessList, ListName, Lists};
use crate::access::mode::Mode;

/// The log's target of lines about an operator's own action, which are never suppressed.
pub const OPERATOR: &str = "skep::operator";

/// Maximum number of values of an edit that the log lists; of further ones it gives the number.
const NAMED_MAX: usize = 8;

/// Settings of access control.
#[derive(Clone, Debug)]
pub struct Options {
    /// The access mode.
    pub mode: Mode,
    /// Digits in which an unknown hash may differ from a registered one to be similar to it.
    pub similar_digits_max: u32,
    /// The list files that settings name.
    pub files: [Option<PathBuf>; ListName::ALL.len()],
    /// The state directory, or why there is none.
    pub state: Result<PathBuf, String>,
}

/// The cause of a change, for the log.
#[derive(Clone, Copy, Debug)]
pub enum Actor {
    /// The start.
    Start,
    /// SIGHUP.
    Reload,
    /// The API, with the client's address.
    Api(Option<SocketAddr>),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Reload => f.write_str("reload"),
            Self::Api(Some(from)) => write!(f, "api:{from}"),
            Self::Api(None) => f.write_str("api"),
        }
    }
}

/// Why a change failed. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// A list cannot be read or written.
    #[error(transparent)]
    List(#[from] ListFileError),
    /// There is no place for the data.
    #[error(
        "no state directory for access lists, torrents and passkeys: {0}; remedy: set \
         server.state_dir to a directory that skep's user may write"
    )]
    NoState(String),
    /// The database cannot be read or written.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A snapshot cannot be written; the text names the file and the cause.
    #[error("{0}")]
    Snapshot(String),
    /// The tracker is open: it has neither registrations nor passkeys.
    #[error(
        "access.mode is open, so torrents cannot be registered; remedy: set access.mode to \
         \"registered\" or \"private\" and restart skep"
    )]
    Open,
    /// The tracker has no passkeys.
    #[error(
        "only a private tracker has passkeys; remedy: set access.mode to \"private\" and restart \
         skep"
    )]
    NotPrivate,
    /// The torrent or the passkey does not exist.
    #[error("no such torrent or passkey")]
    Unknown,
    /// Another torrent already has one of the hashes.
    #[error("one of the hashes already belongs to another torrent")]
    Taken,
    /// The limit on torrents or passkeys is reached.
    #[error("the limit on torrents or passkeys is reached")]
    Full,
}

/// A change of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The list.
    pub name: ListName,
    /// Number of added values.
    pub added: usize,
    /// Number of removed values.
    pub removed: usize,
    /// Number of values that were there before and have another reason now.
    pub changed: usize,
    /// Number of values after the change.
    pub entries: usize,
}

/// Changes lists, registrations and passkeys, for the API and the server.
pub struct AccessManager {
    access: Arc<Access>,
    /// Held through every change, so that files and what is in force change in the same order.
    home: Mutex<ListFiles>,
    /// `Some` if torrents have to be registered.
    database: Option<Database>,
    reload_failures: AtomicU64,
    /// A bit for each list whose latest reload failed.
    failing: AtomicU64,
}

struct ListFiles {
    files: [Result<ListFile, String>; ListName::ALL.len()],
}

impl AccessManager {
    /// Reads all lists and the database.
    ///
    /// # Errors
    /// [`AccessError`] for the first file that cannot be read.
    pub fn open(options: &Options) -> Result<Self, AccessError> {
        let home = ListFiles { files: list_file_paths(options) };
        let mut lists = Lists::default();
        for name in ListName::ALL {
            let Ok(file) = home.file(name) else { continue };
            let list = file.load(name)?;
            if !list.is_empty() || file.configured {
                let (entries, path) = (list.len(), file.path.display());
                info!(target: OPERATOR, list = name.label(), entries, %path, "list loaded");
            }
            lists = lists.with(name, Arc::new(list), file.configured);
        }
        let access = Arc::new(Access::new(options.mode, lists));
        access.registry().set_similar_digits_max(options.similar_digits_max);
        let database = options.mode.needs_registration().then(|| open_database(options));
        let (reload_failures, failing) = (AtomicU64::new(0), AtomicU64::new(0));
        let (home, database) = (Mutex::new(home), database.transpose()?);
        let manager = Self { access, home, database, reload_failures, failing };
        manager.load_database()?;
        Ok(manager)
    }

    /// Reads the lists, those that settings name and those in the state directory, without putting
    /// them in force. Returns everything that is wrong with them, of each file the first bad lines.
    pub fn check(options: &Options) -> Vec<(ListName, ListFileError)> {
        let named = ListName::ALL.into_iter().zip(list_file_paths(options));
        let files = named.filter_map(|(name, file)| Some((name, file.ok()?)));
        files
            .flat_map(|(name, file)| file.faults(name).into_iter().map(move |it| (name, it)))
            .collect()
    }

    /// Checks the database of registrations in a state directory, if there is one, without changing
    /// it.
    ///
    /// # Errors
    /// [`AccessError::Database`] if a start could not use it.
    pub fn check_database(state: &Path) -> Result<(), AccessError> {
        Ok(Database::check(state)?)
    }

    /// Closes the database of registrations, if any, so that another process can open it. Until
    /// [`AccessManager::reopen_database`], changes are refused, and what is in force stays.
    pub fn lend_database(&self) {
        if let Some(database) = &self.database {
            database.close_for_successor();
        }
    }

    /// Opens the database again.
    ///
    /// # Errors
    /// [`AccessError::Database`] if that fails, for instance because the other process still has
    /// it.
    pub fn reopen_database(&self) -> Result<(), AccessError> {
        self.database.as_ref().map_or(Ok(()), |it| Ok(it.reopen()?))
    }

    /// The mode, lists, registrations and passkeys in force.
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// Number of failed reloads of a list.
    pub fn reload_failures(&self) -> u64 {
        self.reload_failures.load(Ordering::Relaxed)
    }

    /// The lists whose latest reload failed, so that the ones before it are in force.
    pub fn failing_lists(&self) -> Vec<ListName> {
        let failing = self.failing.load(Ordering::Relaxed);
        ListName::ALL.into_iter().filter(|it| failing & bit(*it) != 0).collect()
    }

    /// The file of a list; `None`: there is no place for one.
    pub fn path(&self, name: ListName) -> Option<PathBuf> {
        self.list_files().file(name).ok().map(|it| it.path.clone())
    }

    /// Applies other settings; the next reload reads the files. The mode does not change.
    pub fn set_options(&self, options: &Options) {
        self.access.registry().set_similar_digits_max(options.similar_digits_max);
        self.list_files().files = list_file_paths(options);
    }

    /// Reads all list files again. A list that cannot be read stays as it is.
    ///
    /// # Errors
    /// The errors of all lists that cannot be read.
    pub fn reload(&self, who: Actor) -> Result<Vec<Change>, Vec<AccessError>> {
        let home = self.list_files();
        let (mut changes, mut errors) = (Vec::new(), Vec::new());
        for name in ListName::ALL {
            self.failing.fetch_and(!bit(name), Ordering::Relaxed);
            let Ok(file) = home.file(name) else { continue };
            match file.load(name) {
                Ok(list) => changes.push(self.put(name, list, file.configured, who, None)),
                Err(text) => {
                    error!(
                        target: OPERATOR,
                        list = name.label(), by = %who, error = %text,
                        "list not reloaded, the previous one stays"
                    );
                    self.reload_failures.fetch_add(1, Ordering::Relaxed);
                    self.failing.fetch_or(bit(name), Ordering::Relaxed);
                    errors.push(AccessError::List(text));
                }
            }
        }
        if errors.is_empty() { Ok(changes) } else { Err(errors) }
    }

    /// Changes a list: first its file, then the list in force.
    ///
    /// # Errors
    /// [`AccessError`] if there is no file, or the file cannot be read or written.
    pub fn edit(&self, name: ListName, edit: &Edit, who: Actor) -> Result<Change, AccessError> {
        let home = self.list_files();
        let file = home.file(name)?;
        let list = file.edit(name, edit)?;
        Ok(self.put(name, list, file.configured, who, Some(edit)))
    }

    /// Puts a list in force, and logs the change. An edit that adds a known value may change its
    /// reason.
    fn put(
        &self,
        name: ListName,
        list: AccessList,
        configured: bool,
        who: Actor,
        edit: Option<&Edit>,
    ) -> Change {
        let before = self.access.lists();
        let old = before.get(name);
        let (added, removed) = (list.count_not_in(old), old.count_not_in(&list));
        let changed = list.count_with_other_reason(old);
        let change = Change { name, added, removed, changed, entries: list.len() };
        let lists = Lists::clone(&before).with(name, Arc::new(list), configured);
        self.access.set_lists(lists);
        // An edit reads the file as well.
        self.failing.fetch_and(!bit(name), Ordering::Relaxed);
        if added + removed + changed > 0 || edit.is_some_and(|it| !it.add.is_empty()) {
            let (list, entries) = (name.label(), change.entries);
            let values = edit.map(edited_values).unwrap_or_default();
            let changed = (changed > 0).then_some(changed);
            info!(
                target: OPERATOR,
                list, added, removed, changed, entries, by = %who, %values, "list changed"
            );
        }
        change
    }

    fn list_files(&self) -> MutexGuard<'_, ListFiles> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ListFiles {
    fn file(&self, name: ListName) -> Result<&ListFile, AccessError> {
        self.files[name as usize].as_ref().map_err(|it| AccessError::NoState(it.clone()))
    }
}

/// The bit of a list in a set of lists.
fn bit(name: ListName) -> u64 {
    1 << (name as u32)
}

fn open_database(options: &Options) -> Result<Database, AccessError> {
    let folder = options.state.as_ref().map_err(|it| AccessError::NoState(it.clone()))?;
    Ok(Database::open(folder)?)
}

/// The file of each list: the one that a setting names, or one in the state directory.
fn list_file_paths(options: &Options) -> [Result<ListFile, String>; ListName::ALL.len()] {
    ListName::ALL.map(|name| match &options.files[name as usize] {
        Some(path) => Ok(ListFile { path: path.clone(), configured: true }),
        None => {
            let state = options.state.as_ref().map_err(Clone::clone)?;
            let path = state.join("access").join(name.label()).with_extension("list");
            Ok(ListFile { path, configured: false })
        }
    })
}

/// The first values of an edit, for the log.
fn edited_values(edit: &Edit) -> String {
    let added = edit.add.iter().map(|it| format!("+{}", it.0));
    let all: Vec<_> = added.chain(edit.remove.iter().map(|it| format!("-{it}"))).collect();
    let more = all.len().saturating_sub(NAMED_MAX);
    let first = all[..all.len() - more].join(" ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

#[cfg(test)]
mod tests;
