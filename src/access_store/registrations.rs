//! Registers torrents and issues passkeys: first in the database, then in force.

use std::collections::HashSet;

use tracing::{info, warn};

use super::{AccessError, AccessManager, Actor, Database, OPERATOR, RegisteredTorrent};
use crate::access::mode::Mode;
use crate::access::passkey::{self, Digest, KEYS_MAX, Limits, Record, Totals};
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

/// A passkey to add: one that clients have already, or a new one.
#[derive(Clone, Debug)]
pub struct ImportedPasskey {
    /// The holder's name.
    pub name: String,
    /// Its limits.
    pub limits: Limits,
    /// The digest of the passkey that clients have; `None`: a new passkey is issued.
    pub digest: Option<Digest>,
}

/// What became of an [`ImportedPasskey`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImportOutcome {
    /// A new passkey: these 32 hexadecimal digits, which are not shown again.
    Issued(String),
    /// The passkey that clients have is valid now.
    Imported,
    /// The passkey was valid before. Its record, name and limits included, stays as it was.
    Known,
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
            let (info_hash, name) = (torrent.info_hash, torrent.name.as_deref());
            info!(target: OPERATOR, %info_hash, by = %who, name, "torrent registered");
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
        let (info_hash, name) = (torrent.info_hash, torrent.name.as_deref());
        info!(target: OPERATOR, %info_hash, by = %who, name, "torrent unregistered");
        Ok(())
    }

    /// Up to `count` registered torrents with the smallest hashes above `after`, in order.
    ///
    /// # Errors
    /// [`AccessError`]: the tracker is open, or the database fails.
    pub fn registered_after(
        &self,
        after: Option<&InfoHash>,
        count: usize,
    ) -> Result<Vec<RegisteredTorrent>, AccessError> {
        Ok(self.database()?.torrents_after(after, count)?)
    }

    /// The record of each of these torrents, by any of its hashes; `None` for one that is not
    /// registered. The records accompany lists of swarms, which are complete without them: a
    /// database that cannot be read at present, as during a take-over, has none.
    pub fn records(&self, hashes: &[InfoHash]) -> Vec<Option<RegisteredTorrent>> {
        let registry = self.access.registry();
        let canonical = |it: &InfoHash| registry.canonical(it).unwrap_or(*it);
        let hashes: Vec<_> = hashes.iter().map(canonical).collect();
        let read = self.database.as_ref().and_then(|it| it.torrents_of(&hashes).ok());
        read.unwrap_or_else(|| vec![None; hashes.len()])
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
        info!(target: OPERATOR, id, name = record.name, by = %who, "passkey issued");
        Ok(Issued { passkey, id, record })
    }

    /// Adds many passkeys at once, in one transaction: all of them, or none. A passkey that is
    /// valid already, or comes twice, stays as it is. Returns id and outcome of each.
    ///
    /// # Errors
    /// [`AccessError`]: the tracker is not private, there are too many, or the database fails.
    pub fn import(
        &self,
        passkeys: Vec<ImportedPasskey>,
        now: Now,
        who: Actor,
    ) -> Result<Vec<(String, ImportOutcome)>, AccessError> {
        let database = self.passkeys()?;
        let _home = self.list_files();
        let valid = self.access.passkeys();
        let (mut results, mut records, mut seen) = (Vec::new(), Vec::new(), HashSet::new());
        for ImportedPasskey { name, limits, digest } in passkeys {
            let (digest, outcome) = match digest {
                Some(digest) if valid.contains(&digest) || !seen.insert(digest) => {
                    (digest, ImportOutcome::Known)
                }
                Some(digest) => (digest, ImportOutcome::Imported),
                None => {
                    let (passkey, digest) = passkey::generate();
                    (digest, ImportOutcome::Issued(passkey))
                }
            };
            if outcome != ImportOutcome::Known {
                let (issued_s, totals) = (now.seconds(), Totals::default());
                records.push((digest, Record { name, limits, issued_s, totals }));
            }
            results.push((passkey::id_of(&digest), outcome));
        }
        if valid.len() + records.len() > KEYS_MAX {
            return Err(AccessError::Full);
        }
        if !records.is_empty() {
            database.put_passkeys(&records)?;
            records.iter().for_each(|(digest, record)| drop(valid.insert(*digest, record)));
        }
        let (added, known) = (records.len(), results.len() - records.len());
        info!(target: OPERATOR, added, known, by = %who, "passkeys imported");
        Ok(results)
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
        info!(
            target: OPERATOR,
            id = key.id(), name = key.name(), by = %who, "passkey revoked"
        );
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
