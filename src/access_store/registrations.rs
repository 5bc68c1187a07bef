//! Registers torrents and issues passkeys: first in the database, then in force.

use tracing::{info, warn};

use super::{AccessError, AccessManager, Actor, Database, OPERATOR, RegisteredTorrent};
use crate::access::mode::Mode;
use crate::access::passkey::{self, KEYS_MAX, Limits, Record, Totals};
use crate::access::registry::REGISTERED_MAX;
use crate::time::Now;
use crate::types::InfoHash;

/// Passkeys whose totals are saved in one transaction.
const FLUSHED_MAX: usize = 4096;

/// A torrent as it is now registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registered {
    /// Whether it was not registered before.
    pub created: bool,
    /// Its record.
    pub torrent: RegisteredTorrent,
}

/// A new passkey. It is not shown again.
pub struct Issued {
    /// 32 hexadecimal digits.
    pub passkey: String,
    /// Its id, for operators.
    pub id: String,
    /// Its record.
    pub record: Record,
}

impl AccessManager {
    /// Puts the contents of the database in force.
    pub(super) fn load_database(&self) -> Result<(), AccessError> {
        let Some(database) = &self.database else { return Ok(()) };
        let torrents = database.torrents()?;
        for torrent in &torrents {
            torrent.hashes().for_each(|it| self.access.registry().insert(it, torrent.info_hash));
        }
        let mode = self.access.mode().label();
        let mut passkeys = Vec::new();
        if self.access.mode() == Mode::Private {
            passkeys = database.passkeys()?;
        }
        for (digest, record) in &passkeys {
            let limits = record.limits.current();
            self.access.passkeys().insert(*digest, &Record { limits, ..record.clone() });
        }
        let (torrents, passkeys) = (torrents.len(), passkeys.len());
        info!(target: OPERATOR, mode, torrents, passkeys, "registrations loaded");
        Ok(())
    }

    /// Registers a torrent, or replaces the record of a registered one.
    ///
    /// # Errors
    /// [`AccessError`]: the tracker is open, a hash is taken, or the database fails.
    pub fn register(
        &self,
        torrent: RegisteredTorrent,
        now: Now,
        who: Actor,
    ) -> Result<Registered, AccessError> {
        let database = self.database()?;
        let _home = self.list_files();
        let registry = self.access.registry();
        let is_taken = |hash: InfoHash| {
            registry.canonical(&hash).is_some_and(|canonical| canonical != torrent.info_hash)
        };
        if torrent.hashes().any(is_taken) {
            return Err(AccessError::Taken);
        }
        let before = database.torrent(&torrent.info_hash)?;
        if before.is_none() && registry.len() >= REGISTERED_MAX {
            return Err(AccessError::Full);
        }
        let registered_s = before.as_ref().map_or_else(|| now.seconds(), |it| it.registered_s);
        let torrent = RegisteredTorrent { registered_s, ..torrent };
        database.put_torrent(&torrent)?;
        let gone = before.iter().flat_map(RegisteredTorrent::hashes);
        gone.filter(|it| torrent.hashes().all(|kept| kept != *it)).for_each(|hash| {
            registry.remove(&hash);
        });
        torrent.hashes().for_each(|it| registry.insert(it, torrent.info_hash));
        let created = before.is_none();
        if created {
            let info_hash = torrent.info_hash;
            info!(target: OPERATOR, %info_hash, by = %who, "torrent registered");
        }
        Ok(Registered { created, torrent })
    }

    /// Unregisters a torrent.
    ///
    /// # Errors
    /// [`AccessError`]: the tracker is open, the torrent is unknown, or the database fails.
    pub fn unregister(&self, info_hash: &InfoHash, who: Actor) -> Result<(), AccessError> {
        let database = self.database()?;
        let _home = self.list_files();
        let torrent = self.registered(info_hash)?;
        database.remove_torrent(&torrent.info_hash)?;
        torrent.hashes().for_each(|it| self.access.registry().remove(&it));
        info!(target: OPERATOR, info_hash = %torrent.info_hash, by = %who, "torrent unregistered");
        Ok(())
    }

    /// The record of a registered torrent, by any of its hashes.
    ///
    /// # Errors
    /// As [`AccessManager::unregister`].
    pub fn registered(&self, info_hash: &InfoHash) -> Result<RegisteredTorrent, AccessError> {
        let database = self.database()?;
        let canonical = self.access.registry().canonical(info_hash).ok_or(AccessError::Unknown)?;
        let torrent = database.torrent(&canonical)?;
        torrent.ok_or(AccessError::Unknown)
    }

    /// Issues a passkey.
    ///
    /// # Errors
    /// [`AccessError`]: the tracker is not private, there are too many, or the database fails.
    pub fn issue(
        &self,
        name: &str,
        limits: Limits,
        now: Now,
        who: Actor,
    ) -> Result<Issued, AccessError> {
        let database = self.passkeys()?;
        let _home = self.list_files();
        if self.access.passkeys().len() >= KEYS_MAX {
            return Err(AccessError::Full);
        }
        let (passkey, digest) = passkey::generate();
        let (name, issued_s) = (name.to_owned(), now.seconds());
        let record = Record { name, limits, issued_s, totals: Totals::default() };
        database.put_passkeys(&[(digest, record.clone())])?;
        let id = self.access.passkeys().insert(digest, &record).id();
        info!(target: OPERATOR, id, by = %who, "passkey issued");
        Ok(Issued { passkey, id, record })
    }

    /// Revokes a passkey.
    ///
    /// # Errors
    /// [`AccessError`]: the tracker is not private, there is no such key, or the database fails.
    pub fn revoke(&self, id: &str, who: Actor) -> Result<(), AccessError> {
        let database = self.passkeys()?;
        let _home = self.list_files();
        let key = self.access.passkeys().with_id(id).ok_or(AccessError::Unknown)?;
        database.remove_passkey(key.digest())?;
        self.access.passkeys().remove(key.digest());
        info!(target: OPERATOR, id = key.id(), by = %who, "passkey revoked");
        Ok(())
    }

    /// Saves the totals of passkeys that have changed, and removes their peers that have been
    /// silent for `peer_age_s_max` seconds. To be called once a minute, and at the end.
    ///
    /// # Errors
    /// [`AccessError`] if the database fails; the next call saves these totals.
    pub fn flush(&self, now: Now, peer_age_s_max: u32) -> Result<(), AccessError> {
        let Ok(database) = self.passkeys() else { return Ok(()) };
        let all = self.access.passkeys().all();
        for some in all.chunks(FLUSHED_MAX) {
            // Locked, so that a key that is revoked meanwhile is not saved again.
            let _home = self.list_files();
            some.iter().for_each(|it| it.sweep(now, peer_age_s_max));
            let valid = some.iter().filter(|it| self.access.passkeys().contains(it.digest()));
            let changed: Vec<_> = valid.filter(|it| it.take_changed()).collect();
            if changed.is_empty() {
                continue;
            }
            let records: Vec<_> = changed.iter().map(|it| (*it.digest(), it.record())).collect();
            if let Err(text) = database.put_passkeys(&records) {
                changed.iter().for_each(|it| it.set_changed());
                warn!(passkeys = records.len(), error = %text, "totals of passkeys not saved");
                return Err(text.into());
            }
        }
        Ok(())
    }

    fn database(&self) -> Result<&Database, AccessError> {
        self.database.as_ref().ok_or(AccessError::Open)
    }

    /// The database of a private tracker.
    fn passkeys(&self) -> Result<&Database, AccessError> {
        if self.access.mode() != Mode::Private {
            return Err(AccessError::NotPrivate);
        }
        self.database()
    }
}
