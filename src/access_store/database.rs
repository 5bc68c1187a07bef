//! Registered torrents and passkeys in the state directory: an embedded database in one file.
//!
//! A file that is damaged is never opened, nor replaced by an empty one: an operator has to decide.

use std::fs::{self, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::torrent::RegisteredTorrent;
use crate::access::passkey::{Digest, Record};
use crate::types::InfoHash;

/// The file's name in the state directory.
const FILE: &str = "access.redb";

/// The file's mode: digests and names of passkeys are private.
const MODE: u32 = 0o600;

/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Further tries to open a file that another process has open: 1.5 s of them.
const TRIES_MAX: u32 = 75;

/// The wait between two tries.
const TRY_PAUSE: Duration = Duration::from_millis(20);

/// Memory for pages, in bytes. Little is enough: workers never read the database.
const CACHE_BYTES: usize = 8 << 20;

/// Torrents by the hash of their swarm, as JSON.
const TORRENTS: TableDefinition<'_, &[u8; 20], &[u8]> = TableDefinition::new("torrents");

/// Passkeys by their digest, as JSON.
const PASSKEYS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("passkeys");

/// The open database.
pub(super) struct Database {
    path: PathBuf,
    /// `None` while it is lent: only one process may have the file open.
    database: RwLock<Option<redb::Database>>,
}

impl Database {
    /// Opens the database in this folder; creates it if it does not exist.
    ///
    /// # Errors
    /// Which file cannot be opened, why, and the remedy.
    pub(super) fn open(folder: &Path) -> Result<Self, DatabaseError> {
        let path = folder.join(FILE);
        if fs::symlink_metadata(&path).is_err_and(|it| it.kind() == io::ErrorKind::NotFound) {
            make(&path).map_err(|error| DatabaseError::Create {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        }
        let database = reopened(&path)?;
        let opened = Self { path, database: RwLock::new(Some(database)) };
        opened.make_tables().map_err(|error| unusable(&opened.path, &error))?;
        Ok(opened)
    }

    /// Checks the database in this folder, if there is one, without changing it. One that another
    /// process has open, or that an unclean end left to be repaired, is good.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub(super) fn check(folder: &Path) -> Result<(), DatabaseError> {
        let path = folder.join(FILE);
        readable(&path).map_err(|error| unusable(&path, &error))
    }

    /// Closes the file, so that another process can open it.
    pub(super) fn close_for_successor(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Opens the file again.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub(super) fn reopen(&self) -> Result<(), DatabaseError> {
        let mut place = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if place.is_none() {
            *place = Some(reopened(&self.path)?);
        }
        Ok(())
    }

    /// Begins a transaction, unless the file is lent.
    fn begin<T, E>(
        &self,
        begin: impl FnOnce(&redb::Database) -> Result<T, E>,
    ) -> Result<T, BoxedError>
    where
        BoxedError: From<E>,
    {
        let place = self.database.read().unwrap_or_else(PoisonError::into_inner);
        Ok(begin(place.as_ref().ok_or("another process is taking over, and has it")?)?)
    }

    /// Every registered torrent.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub(super) fn torrents(&self) -> Result<Vec<RegisteredTorrent>, DatabaseError> {
        let read = || -> Result<Vec<RegisteredTorrent>, BoxedError> {
            let read = self.begin(redb::Database::begin_read)?;
            let mut all = Vec::new();
            for entry in read.open_table(TORRENTS)?.iter()? {
                let (key, value) = entry?;
                let torrent: RegisteredTorrent = decode(value.value())?;
                if torrent.info_hash != InfoHash(*key.value()) {
                    return Err("a torrent stored under another hash".into());
                }
                all.push(torrent);
            }
            Ok(all)
        };
        read().map_err(|error| unusable(&self.path, &error))
    }

    /// Every passkey.
    ///
    /// # Errors
    /// As [`Database::open`].
    pub(super) fn passkeys(&self) -> Result<Vec<(Digest, Record)>, DatabaseError> {
        let read = || -> Result<Vec<(Digest, Record)>, BoxedError> {
            let read = self.begin(redb::Database::begin_read)?;
            let mut all = Vec::new();
            for entry in read.open_table(PASSKEYS)?.iter()? {
                let (key, value) = entry?;
                all.push((*key.value(), decode(value.value())?));
            }
            Ok(all)
        };
        read().map_err(|error| unusable(&self.path, &error))
    }

    /// One registered torrent.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub(super) fn torrent(
        &self,
        info_hash: &InfoHash,
    ) -> Result<Option<RegisteredTorrent>, DatabaseError> {
        let read = || -> Result<Option<RegisteredTorrent>, BoxedError> {
            let table = self.begin(redb::Database::begin_read)?.open_table(TORRENTS)?;
            table.get(&info_hash.0)?.map(|it| decode(it.value())).transpose()
        };
        read().map_err(|error| unusable(&self.path, &error))
    }

    /// Up to `count` registered torrents with the smallest hashes above `after`, in order.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub(super) fn torrents_after(
        &self,
        after: Option<&InfoHash>,
        count: usize,
    ) -> Result<Vec<RegisteredTorrent>, DatabaseError> {
        let read = || -> Result<Vec<RegisteredTorrent>, BoxedError> {
            let table = self.begin(redb::Database::begin_read)?.open_table(TORRENTS)?;
            let from = after.map_or(Bound::Unbounded, |it| Bound::Excluded(&it.0));
            let range = table.range::<&[u8; 20]>((from, Bound::Unbounded))?;
            range.take(count).map(|entry| decode(entry?.1.value())).collect()
        };
        read().map_err(|error| unusable(&self.path, &error))
    }

    /// The registered torrents with these hashes; `None` for one that is not registered.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub(super) fn torrents_of(
        &self,
        hashes: &[InfoHash],
    ) -> Result<Vec<Option<RegisteredTorrent>>, DatabaseError> {
        let read = || -> Result<Vec<Option<RegisteredTorrent>>, BoxedError> {
            let table = self.begin(redb::Database::begin_read)?.open_table(TORRENTS)?;
            let record =
                |hash: &InfoHash| table.get(&hash.0)?.map(|it| decode(it.value())).transpose();
            hashes.iter().map(record).collect()
        };
        read().map_err(|error| unusable(&self.path, &error))
    }

    /// Saves a torrent. It is on disk on return.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn put_torrent(&self, torrent: &RegisteredTorrent) -> Result<(), DatabaseError> {
        let value = encode(torrent)?;
        self.write(|write| {
            write.open_table(TORRENTS)?.insert(&torrent.info_hash.0, &*value)?;
            Ok(())
        })
    }

    /// Removes a torrent.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn remove_torrent(&self, info_hash: &InfoHash) -> Result<(), DatabaseError> {
        self.write(|write| {
            write.open_table(TORRENTS)?.remove(&info_hash.0)?;
            Ok(())
        })
    }

    /// Saves passkeys, new ones and those with new totals.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn put_passkeys(&self, them: &[(Digest, Record)]) -> Result<(), DatabaseError> {
        let mut values = Vec::with_capacity(them.len());
        for (digest, record) in them {
            values.push((digest, encode(record)?));
        }
        self.write(|write| {
            let mut table = write.open_table(PASSKEYS)?;
            for (digest, value) in &values {
                table.insert(*digest, &**value)?;
            }
            Ok(())
        })
    }

    /// Removes a passkey.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(super) fn remove_passkey(&self, digest: &Digest) -> Result<(), DatabaseError> {
        self.write(|write| {
            write.open_table(PASSKEYS)?.remove(digest)?;
            Ok(())
        })
    }

    fn make_tables(&self) -> Result<(), BoxedError> {
        let write = self.begin(redb::Database::begin_write)?;
        write.open_table(TORRENTS)?;
        write.open_table(PASSKEYS)?;
        Ok(write.commit()?)
    }

    fn write(
        &self,
        change: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>,
    ) -> Result<(), DatabaseError> {
        let write = || -> Result<(), BoxedError> {
            let write = self.begin(redb::Database::begin_write)?;
            change(&write)?;
            Ok(write.commit()?)
        };
        write().map_err(|error| DatabaseError::Write {
            path: self.path.clone(),
            reason: error.to_string(),
        })
    }
}

/// Why the database cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// The file is absent and cannot be created.
    #[error(
        "cannot create {}: {reason}; remedy: let skep's user write the folder, or set \
         server.state_dir to one that it may write", path.display()
    )]
    Create {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// Another process has the file open.
    #[error(
        "{} is in use by another process: two trackers cannot keep registrations and passkeys in \
         one folder; remedy: stop the other one (`skep doctor` names who has its ports), replace \
         it with --take-over, or give each a server.state_dir of its own", path.display()
    )]
    Used {
        /// The file.
        path: PathBuf,
    },
    /// The file cannot be opened or read.
    #[error(
        "cannot use {}, which holds registered torrents and passkeys: {reason}; remedy: stop \
         whatever else uses it, let skep's user read and write it, or put a copy in its place; if \
         it is damaged and there is no copy, move it away, and start with nothing registered",
        path.display()
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// The file cannot be written.
    #[error(
        "cannot write {}: {reason}; remedy: check the disk and its free space", path.display()
    )]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        reason: String,
    },
    /// A record cannot be encoded.
    #[error("cannot encode a record: {0}")]
    Encode(String),
}

/// The cause of one of the errors above.
type BoxedError = Box<dyn std::error::Error + Send + Sync>;

/// Every page is checked when a file is opened, to detect changes by other programs.
fn builder() -> redb::Builder {
    let mut builder = redb::Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    builder
}

/// Creates an empty database. The file gets its name when it is complete, so a file of that name
/// that is not a database has been damaged.
fn make(path: &Path) -> Result<(), BoxedError> {
    let unfinished = path.with_extension("unfinished");
    let _ = fs::remove_file(&unfinished);
    let mut new = OpenOptions::new();
    let new = new.read(true).write(true).create_new(true).mode(MODE).open(&unfinished)?;
    drop(builder().create_with_backend(FileBackend::new(new)?)?);
    fs::rename(&unfinished, path)?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    Ok(fs::File::open(folder)?.sync_all()?)
}

/// Opens an existing database. A process that only checks it, or is about to end, has it for some
/// milliseconds; another tracker has it for good.
fn reopened(path: &Path) -> Result<redb::Database, DatabaseError> {
    let mut tries = 0;
    loop {
        match opened(path) {
            Err(error) if is_in_use(&error) => {
                if tries == TRIES_MAX {
                    return Err(DatabaseError::Used { path: path.to_owned() });
                }
                tries += 1;
                std::thread::sleep(TRY_PAUSE);
            }
            result => return result.map_err(|error| unusable(path, &error)),
        }
    }
}

fn is_in_use(error: &BoxedError) -> bool {
    let error = error.downcast_ref::<redb::DatabaseError>();
    matches!(error, Some(redb::DatabaseError::DatabaseAlreadyOpen))
}

/// Opens an existing database once. Refuses a link, and removes access of other users.
fn opened(path: &Path) -> Result<redb::Database, BoxedError> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err("not a regular file, or an empty one".into()); // redb would fill it
    }
    if metadata.permissions().mode() & OTHERS != 0 {
        // An earlier version created it so. A file of another owner keeps its mode.
        let _ = file.set_permissions(fs::Permissions::from_mode(MODE));
    }
    Ok(builder().create_with_backend(FileBackend::new(file)?)?)
}

fn readable(path: &Path) -> Result<(), BoxedError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.is_file() || metadata.len() == 0 {
        return Err("not a regular file, or an empty one".into());
    }
    match builder().open_read_only(path) {
        Ok(_)
        | Err(redb::DatabaseError::DatabaseAlreadyOpen | redb::DatabaseError::RepairAborted) => {
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

fn encode(value: &impl Serialize) -> Result<Vec<u8>, DatabaseError> {
    serde_json::to_vec(value).map_err(|error| DatabaseError::Encode(error.to_string()))
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BoxedError> {
    Ok(serde_json::from_slice(bytes)?)
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> DatabaseError {
    DatabaseError::Read { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::passkey::{Limits, Totals};

    fn torrent(number: u8) -> RegisteredTorrent {
        RegisteredTorrent { info_hash: InfoHash([number; 20]), ..RegisteredTorrent::default() }
    }

    fn record(uploaded: u64) -> Record {
        let totals = Totals { uploaded, ..Totals::default() };
        Record { name: "ann".into(), limits: Limits::default(), issued_s: 7, totals }
    }

    #[test]
    fn a_file_that_another_has_open_is_waited_for_and_then_named() {
        let folder = tempfile::tempdir().unwrap();
        let first = Database::open(folder.path()).unwrap();
        let refused = Database::open(folder.path()).map(drop).unwrap_err();
        assert!(matches!(refused, DatabaseError::Used { .. }), "{refused}");
        assert!(refused.to_string().contains("in use by another process"), "{refused}");
        std::thread::scope(|scope| {
            let second = scope.spawn(|| Database::open(folder.path()).map(drop));
            drop(first);
            second.join().unwrap().unwrap();
        });
    }

    #[test]
    fn what_is_put_in_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        database.put_torrent(&torrent(1)).unwrap();
        database.put_torrent(&torrent(2)).unwrap();
        database.put_torrent(&RegisteredTorrent { name: Some("x".into()), ..torrent(1) }).unwrap();
        database.remove_torrent(&InfoHash([2; 20])).unwrap();
        database.put_passkeys(&[([1; 32], record(1)), ([2; 32], record(2))]).unwrap();
        database.put_passkeys(&[([1; 32], record(3))]).unwrap();
        database.remove_passkey(&[2; 32]).unwrap();
        drop(database);
        let database = Database::open(folder.path()).unwrap();
        let named = RegisteredTorrent { name: Some("x".into()), ..torrent(1) };
        assert_eq!(database.torrents().unwrap(), std::slice::from_ref(&named));
        assert_eq!(database.torrent(&InfoHash([1; 20])).unwrap(), Some(named));
        assert_eq!(database.torrent(&InfoHash([2; 20])).unwrap(), None);
        let of = database.torrents_of(&[InfoHash([2; 20]), InfoHash([1; 20])]).unwrap();
        assert_eq!(of, [None, Some(database.torrent(&InfoHash([1; 20])).unwrap().unwrap())]);
        assert_eq!(database.passkeys().unwrap(), [([1; 32], record(3))]);
    }

    #[test]
    fn pages_have_every_torrent_once_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        (1..=5).rev().for_each(|number| database.put_torrent(&torrent(number)).unwrap());
        let page = |after: Option<u8>, count| {
            let after = after.map(|it| InfoHash([it; 20]));
            let found = database.torrents_after(after.as_ref(), count).unwrap();
            found.iter().map(|it| it.info_hash.0[0]).collect::<Vec<_>>()
        };
        assert_eq!(page(None, 2), [1, 2]);
        assert_eq!(page(Some(2), 9), [3, 4, 5]);
        assert!(page(Some(5), 9).is_empty() && page(None, 0).is_empty());
    }

    #[test]
    fn it_is_its_owners_alone_also_one_that_was_made_open_to_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        drop(Database::open(folder.path()).unwrap());
        assert_eq!(mode(), MODE);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        drop(Database::open(folder.path()).unwrap());
        assert_eq!(mode(), MODE);
    }

    #[test]
    fn a_link_and_a_pipe_are_not_opened() {
        let [folder, elsewhere] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        drop(Database::open(elsewhere.path()).unwrap());
        let path = folder.path().join(FILE);
        std::os::unix::fs::symlink(elsewhere.path().join(FILE), &path).unwrap();
        assert!(Database::open(folder.path()).is_err());
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert!(Database::open(folder.path()).is_err());
    }

    #[test]
    fn no_two_have_it_open() {
        let folder = tempfile::tempdir().unwrap();
        let _held = Database::open(folder.path()).unwrap();
        let error = Database::open(folder.path()).err().unwrap().to_string();
        assert!(error.contains(FILE) && error.contains("remedy"), "{error}");
    }

    #[test]
    fn what_is_lent_is_open_elsewhere_and_comes_back_as_it_is_then() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        database.put_torrent(&torrent(1)).unwrap();
        database.close_for_successor();
        assert!(database.put_torrent(&torrent(2)).unwrap_err().to_string().contains("taking over"));
        assert!(database.torrents().unwrap_err().to_string().contains("taking over"));
        let other = Database::open(folder.path()).unwrap();
        other.put_torrent(&torrent(3)).unwrap();
        assert!(database.reopen().is_err());
        drop(other);
        database.reopen().unwrap();
        database.reopen().unwrap();
        assert_eq!(database.torrents().unwrap(), [torrent(1), torrent(3)]);
    }

    #[test]
    fn a_file_that_is_no_database_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        for text in ["", "no database", &"x".repeat(100_000)] {
            fs::write(&path, text).unwrap();
            let error = Database::open(folder.path()).err().unwrap().to_string();
            assert!(error.contains(FILE) && error.contains("remedy"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn a_cut_file_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).unwrap();
        (0..100).for_each(|number| database.put_torrent(&torrent(number)).unwrap());
        drop(database);
        let path = folder.path().join(FILE);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        assert!(Database::open(folder.path()).is_err());
    }

    #[test]
    fn without_a_folder_none_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let error = Database::open(&folder.path().join("absent")).err().unwrap().to_string();
        assert!(error.contains("server.state_dir"), "{error}");
    }
}
