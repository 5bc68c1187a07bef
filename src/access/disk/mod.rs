//! The side of access control that writes: lists in files, registrations and passkeys in a
//! database, and what is in force changed after them.
//!
//! Nothing here is called by a worker. An operator's act waits for the disk; an announce never does.

mod files;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tracing::{error, info};

pub use files::Edit;
use files::ListFile;

use super::Access;
use super::lists::{List, Lists, Name};

/// The log's target of lines that answer an operator's own act: they are never held back.
pub const OPERATOR: &str = "skep::operator";

/// Values of an edit that the log names one by one, at most; of more, it tells how many.
const NAMED_MAX: usize = 8;

/// Where things are kept.
#[derive(Clone, Debug)]
pub struct Options {
    /// The list files that settings name.
    pub files: [Option<PathBuf>; Name::ALL.len()],
    /// The state directory, or why there is none.
    pub state: Result<PathBuf, String>,
}

/// Who changes something, for the log.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    /// The start.
    Start,
    /// SIGHUP.
    Reload,
    /// The API, asked from there.
    Api(Option<SocketAddr>),
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("at start"),
            Self::Reload => f.write_str("by reload"),
            Self::Api(Some(from)) => write!(f, "by the API from {from}"),
            Self::Api(None) => f.write_str("by the API"),
        }
    }
}

/// Why something was not done. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// A list cannot be read or written; the text names the file, the line and the remedy.
    List(String),
    /// There is nowhere to keep it.
    NoState(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::List(text) => f.write_str(text),
            Self::NoState(reason) => write!(
                f,
                "there is nowhere to keep this: {reason}; remedy: set server.state_dir to a \
                 directory that skep's user may write"
            ),
        }
    }
}

impl std::error::Error for Trouble {}

/// How a list has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub name: Name,
    /// Values that were not there before.
    pub added: usize,
    /// Values that are not there any more.
    pub removed: usize,
    /// Values there are.
    pub entries: usize,
}

/// What the API and the server ask to change things.
pub struct Office {
    access: Arc<Access>,
    /// Held through every change, so that files and what is in force change in the same order.
    home: Mutex<Home>,
    reload_failures: AtomicU64,
}

struct Home {
    files: [Result<ListFile, String>; Name::ALL.len()],
}

impl Office {
    /// Reads everything.
    ///
    /// # Errors
    /// [`Trouble`] with the first thing that cannot be read.
    pub fn open(options: &Options) -> Result<Self, Trouble> {
        let home = Home { files: places(options) };
        let mut lists = Lists::default();
        for name in Name::ALL {
            let Ok(file) = home.file(name) else { continue };
            let list = file.load(name).map_err(Trouble::List)?;
            if !list.is_empty() || file.configured {
                let (entries, path) = (list.len(), file.path.display());
                info!(target: OPERATOR, "{}: {entries} entries from {path}", name.label());
            }
            lists = lists.with(name, Arc::new(list), file.configured);
        }
        let access = Arc::new(Access::new(lists));
        Ok(Self { access, home: Mutex::new(home), reload_failures: AtomicU64::new(0) })
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
    pub fn path(&self, name: Name) -> Option<PathBuf> {
        self.home().file(name).ok().map(|it| it.path.clone())
    }

    /// Puts other files in force. They are read with the next reload.
    pub fn set_files(&self, options: &Options) {
        self.home().files = places(options);
    }

    /// Reads all lists again. Those that cannot be read stay as they are.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn reload(&self, who: Who) -> Result<Vec<Change>, Vec<Trouble>> {
        let home = self.home();
        let (mut changes, mut troubles) = (Vec::new(), Vec::new());
        for name in Name::ALL {
            let Ok(file) = home.file(name) else { continue };
            match file.load(name) {
                Ok(list) => changes.push(self.put(name, list, file.configured, who, "")),
                Err(text) => {
                    error!(
                        target: OPERATOR,
                        "{} not reloaded {who}, the list in force stays: {text}", name.label()
                    );
                    self.reload_failures.fetch_add(1, Ordering::Relaxed);
                    troubles.push(Trouble::List(text));
                }
            }
        }
        if troubles.is_empty() { Ok(changes) } else { Err(troubles) }
    }

    /// Changes a list: its file, then what is in force.
    ///
    /// # Errors
    /// [`Trouble`] where there is no file, or it cannot be read or written.
    pub fn edit(&self, name: Name, edit: &Edit, who: Who) -> Result<Change, Trouble> {
        let home = self.home();
        let file = home.file(name)?;
        let list = file.edit(name, edit).map_err(Trouble::List)?;
        Ok(self.put(name, list, file.configured, who, &named(edit)))
    }

    /// Puts a list in force and says so in the log.
    fn put(&self, name: Name, list: List, configured: bool, who: Who, what: &str) -> Change {
        let before = self.access.lists.load_full();
        let old = before.get(name);
        let (added, removed) = (list.beyond(old), old.beyond(&list));
        let change = Change { name, added, removed, entries: list.len() };
        let lists = Lists::clone(&before).with(name, Arc::new(list), configured);
        self.access.set_lists(lists);
        if added + removed > 0 || !what.is_empty() {
            let (label, entries) = (name.label(), change.entries);
            info!(
                target: OPERATOR,
                "{label}: {added} added, {removed} removed, {entries} now, {who}{what}"
            );
        }
        change
    }

    fn home(&self) -> MutexGuard<'_, Home> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Home {
    fn file(&self, name: Name) -> Result<&ListFile, Trouble> {
        self.files[name as usize].as_ref().map_err(|it| Trouble::NoState(it.clone()))
    }
}

/// Where each list is kept: where a setting says, or in the state directory.
fn places(options: &Options) -> [Result<ListFile, String>; Name::ALL.len()] {
    Name::ALL.map(|name| match &options.files[name as usize] {
        Some(path) => Ok(ListFile { path: path.clone(), configured: true }),
        None => {
            let state = options.state.as_ref().map_err(Clone::clone)?;
            let path = state.join("access").join(name.label()).with_extension("list");
            Ok(ListFile { path, configured: false })
        }
    })
}

/// The values of a small edit, as the log tells them.
fn named(edit: &Edit) -> String {
    let added = edit.add.iter().map(|it| format!("+{}", it.0));
    let all: Vec<_> = added.chain(edit.remove.iter().map(|it| format!("-{it}"))).collect();
    let more = all.len().saturating_sub(NAMED_MAX);
    let first = all[..all.len() - more].join(" ");
    if more > 0 { format!(": {first} and {more} more") } else { format!(": {first}") }
}

#[cfg(test)]
mod tests;
