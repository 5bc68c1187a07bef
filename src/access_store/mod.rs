//! The side of access control that writes: lists in files, registrations and passkeys in a
//! database, and what is in force changed after them.
//!
//! Nothing here is called by a worker: an operator's act waits for the disk, an announce never.

mod database;
mod files;
mod registrations;
mod torrent;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

use database::Database;
pub use database::DatabaseError;
use files::ListFile;
pub use files::{Edit, ListFileError};
pub use registrations::{Issued, Registered};
pub use torrent::RegisteredTorrent;

use crate::access::Access;
use crate::access::lists::{AccessList, ListName, Lists};
use crate::access::mode::Mode;

/// The log's target of lines that answer an operator's own act: they are never held back.
pub const OPERATOR: &str = "skep::operator";

/// Values of an edit that the log names one by one, at most; of more, it tells how many.
const NAMED_MAX: usize = 8;

/// What the operator may set.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whom the tracker is for.
    pub mode: Mode,
    /// Digits in which an unknown hash may differ from a registered one to be similar to it.
    pub similar_digits_max: u32,
    /// The list files that settings name.
    pub files: [Option<PathBuf>; ListName::ALL.len()],
    /// The state directory, or why there is none.
    pub state: Result<PathBuf, String>,
}

/// Who changes something, for the log.
#[derive(Clone, Copy, Debug)]
pub enum Actor {
    /// The start.
    Start,
    /// SIGHUP.
    Reload,
    /// The API, asked from there.
    Api(Option<SocketAddr>),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("start"),
            Self::Reload => f.write_str("reload"),
            Self::Api(Some(from)) => write!(f, "API from {from}"),
            Self::Api(None) => f.write_str("API"),
        }
    }
}

/// Why something was not done. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// A list cannot be read or written.
    #[error(transparent)]
    List(#[from] ListFileError),
    /// There is nowhere to keep it.
    #[error(
        "there is nowhere to keep this: {0}; remedy: set server.state_dir to a directory that \
         skep's user may write"
    )]
    NoState(String),
    /// The database cannot be read or written.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// A snapshot cannot be written; the text names the file and the cause.
    #[error("{0}")]
    Snapshot(String),
    /// The tracker is open: it has neither registrations nor passkeys.
    #[error("access.mode is open: nothing is registered")]
    Open,
    /// The tracker has no passkeys.
    #[error("access.mode is not private: there are no passkeys")]
    NotPrivate,
    /// No such torrent or passkey.
    #[error("it does not exist")]
    Unknown,
    /// One of a torrent's hashes is another torrent's already.
    #[error("one of the hashes is another torrent's already")]
    Taken,
    /// As many torrents or passkeys as there may be.
    #[error("the limit on their number is reached")]
    Full,
}

/// How a list has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub name: ListName,
    /// Values that were not there before.
    pub added: usize,
    /// Values that are not there any more.
    pub removed: usize,
    /// Values there are.
    pub entries: usize,
}

/// What the API and the server ask to change things.
pub struct AccessManager {
    access: Arc<Access>,
    /// Held through every change, so that files and what is in force change in the same order.
    home: Mutex<ListFiles>,
    /// Where torrents have to be registered.
    database: Option<Database>,
    reload_failures: AtomicU64,
}

struct ListFiles {
    files: [Result<ListFile, String>; ListName::ALL.len()],
}

impl AccessManager {
    /// Reads everything.
    ///
    /// # Errors
    /// [`AccessError`] with the first thing that cannot be read.
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
        let (home, reload_failures) = (Mutex::new(home), AtomicU64::new(0));
        let it = Self { access, home, database: database.transpose()?, reload_failures };
        it.load_database()?;
        Ok(it)
    }

    /// Reads the list files that settings name, and changes nothing.
    ///
    /// # Errors
    /// [`AccessError`] with the first thing that cannot be read.
    pub fn check(options: &Options) -> Result<(), AccessError> {
        for (name, file) in ListName::ALL.into_iter().zip(list_file_paths(options)) {
            if let Ok(file) = file.as_ref()
                && file.configured
            {
                file.load(name)?;
            }
        }
        Ok(())
    }

    /// Lets another process open the database of registrations, if there is one: until
    /// [`AccessManager::reopen_database`], changes are refused, and what is in force stays so.
    pub fn lend_database(&self) {
        if let Some(database) = &self.database {
            database.close_for_successor();
        }
    }

    /// Opens the database again.
    ///
    /// # Errors
    /// [`AccessError::Database`] where that cannot be done, for instance not yet.
    pub fn reopen_database(&self) -> Result<(), AccessError> {
        self.database.as_ref().map_or(Ok(()), |it| Ok(it.reopen()?))
    }

    /// What is in force.
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// How often a list could not be reloaded.
    pub fn reload_failures(&self) -> u64 {
        self.reload_failures.load(Ordering::Relaxed)
    }

    /// The file a list is kept in; `None`: there is nowhere to keep it.
    pub fn path(&self, name: ListName) -> Option<PathBuf> {
        self.list_files().file(name).ok().map(|it| it.path.clone())
    }

    /// Takes other settings over; files are read with the next reload. The mode stays as it is.
    pub fn set_options(&self, options: &Options) {
        self.access.registry().set_similar_digits_max(options.similar_digits_max);
        self.list_files().files = list_file_paths(options);
    }

    /// Reads all lists again. Those that cannot be read stay as they are.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn reload(&self, who: Actor) -> Result<Vec<Change>, Vec<AccessError>> {
        let home = self.list_files();
        let (mut changes, mut errors) = (Vec::new(), Vec::new());
        for name in ListName::ALL {
            let Ok(file) = home.file(name) else { continue };
            match file.load(name) {
                Ok(list) => changes.push(self.put(name, list, file.configured, who, "")),
                Err(text) => {
                    error!(
                        target: OPERATOR,
                        list = name.label(), by = %who, error = %text,
                        "list not reloaded, the previous one stays"
                    );
                    self.reload_failures.fetch_add(1, Ordering::Relaxed);
                    errors.push(AccessError::List(text));
                }
            }
        }
        if errors.is_empty() { Ok(changes) } else { Err(errors) }
    }

    /// Changes a list: its file, then what is in force.
    ///
    /// # Errors
    /// [`AccessError`] where there is no file, or it cannot be read or written.
    pub fn edit(&self, name: ListName, edit: &Edit, who: Actor) -> Result<Change, AccessError> {
        let home = self.list_files();
        let file = home.file(name)?;
        let list = file.edit(name, edit)?;
        Ok(self.put(name, list, file.configured, who, &edited_values(edit)))
    }

    /// Puts a list in force, and logs that.
    fn put(
        &self,
        name: ListName,
        list: AccessList,
        configured: bool,
        who: Actor,
        what: &str,
    ) -> Change {
        let before = self.access.lists();
        let old = before.get(name);
        let (added, removed) = (list.count_not_in(old), old.count_not_in(&list));
        let change = Change { name, added, removed, entries: list.len() };
        let lists = Lists::clone(&before).with(name, Arc::new(list), configured);
        self.access.set_lists(lists);
        if added + removed > 0 || !what.is_empty() {
            let (list, entries) = (name.label(), change.entries);
            info!(
                target: OPERATOR,
                list, added, removed, entries, by = %who, values = %what, "list changed"
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

fn open_database(options: &Options) -> Result<Database, AccessError> {
    let folder = options.state.as_ref().map_err(|it| AccessError::NoState(it.clone()))?;
    Ok(Database::open(folder)?)
}

/// Where each list is kept: where a setting says, or in the state directory.
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
