//! Decides who and what is served, by lists of torrents, networks, clients and ports, by registered
//! torrents, and by passkeys of a private tracker.
//!
//! ```text
//! files ──────▶ access_store ─▶ Access ─▶ Gate, one a worker ─▶ admitted, or a refusal
//! database ───▶     ▲
//! API ──────────────┘
//! ```
//!
//! [`Access`] is what is in force, shared by all workers; [`Gate`] is one worker's view of it.
//! Nothing here waits for a disk, touches a file or reads a clock: `access_store` first writes a
//! change to disk, then puts it in force.

pub mod lists;
pub mod mode;
pub mod passkey;
pub mod registry;
pub mod sessions;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use lists::{AccessQuery, Lists};
use mode::Mode;
use passkey::{PasskeyTable, SessionReport, ValidKey};
use registry::Registry;

use crate::time::Now;
use crate::types::{Announce, Contact, InfoHash, PeerId, Refusal};

/// The mode, lists, registrations and passkeys in force.
pub struct Access {
    mode: Mode,
    lists: Arc<ArcSwap<Lists>>,
    registry: Registry,
    keys: PasskeyTable,
    /// Whether anything can be refused at all: one load decides where nothing is set up.
    guarded: AtomicBool,
}

impl Access {
    /// This mode and these lists, with nothing registered and no key issued.
    pub fn new(mode: Mode, lists: Lists) -> Self {
        let access = Self {
            mode,
            lists: Arc::default(),
            registry: Registry::new(),
            keys: PasskeyTable::default(),
            guarded: AtomicBool::new(true),
        };
        access.set_lists(lists);
        access
    }

    /// The access mode. Only a restart changes it.
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// The lists as they are now.
    pub fn lists(&self) -> Arc<Lists> {
        self.lists.load_full()
    }

    /// Replaces all lists at once.
    pub fn set_lists(&self, lists: Lists) {
        let guarded = lists.any_in_force() || self.mode.needs_registration();
        self.lists.store(Arc::new(lists));
        self.guarded.store(guarded, Ordering::Release);
    }

    /// The registered torrents.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Whether a torrent is served at all, with these lists.
    pub fn is_visible(&self, lists: &Lists, info_hash: &InfoHash) -> bool {
        let is_known =
            !self.mode.needs_registration() || self.registry.canonical(info_hash).is_some();
        is_known && lists.check_torrent(info_hash).is_none()
    }

    /// The valid passkeys.
    pub fn passkeys(&self) -> &PasskeyTable {
        &self.keys
    }
}

impl Default for Access {
    /// Serves all torrents to all clients.
    fn default() -> Self {
        Self::new(Mode::Open, Lists::default())
    }
}

/// The fields of a request that only access control needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Credentials<'a> {
    /// The passkey in the path, as received.
    pub passkey: Option<&'a [u8]>,
    /// Bytes uploaded since the session began.
    pub uploaded: u64,
    /// Bytes downloaded since the session began.
    pub downloaded: u64,
}

/// One worker's view of [`Access`].
pub struct Gate {
    access: Arc<Access>,
    lists: arc_swap::Cache<Arc<ArcSwap<Lists>>, Arc<Lists>>,
}

impl Gate {
    /// A view of `access`.
    pub fn new(access: Arc<Access>) -> Self {
        let lists = arc_swap::Cache::new(access.lists.clone());
        Self { access, lists }
    }

    /// Admits an announce and returns the info-hash of its swarm, which may differ from the
    /// announced one. `credentials` is called only if something can be refused.
    ///
    /// # Errors
    /// The refusal.
    #[inline]
    pub fn announce<'a>(
        &mut self,
        now: Now,
        announce: &Announce,
        credentials: impl FnOnce() -> Credentials<'a>,
    ) -> Result<InfoHash, Refusal> {
        if !self.access.guarded.load(Ordering::Acquire) {
            return Ok(announce.info_hash);
        }
        self.check_announce(now, announce, &credentials())
    }

    /// The shared state that it reads.
    pub fn access(&self) -> &Arc<Access> {
        &self.access
    }

    /// Admits a scrape of one torrent and returns the info-hash of its swarm.
    ///
    /// # Errors
    /// The refusal.
    #[inline]
    pub fn scrape(
        &mut self,
        now: Now,
        source: IpAddr,
        info_hash: &InfoHash,
        passkey: Option<&[u8]>,
    ) -> Result<InfoHash, Refusal> {
        if !self.access.guarded.load(Ordering::Acquire) {
            return Ok(*info_hash);
        }
        let question = AccessQuery { info_hash, source, peer_id: None, port: None };
        self.check_lists(&question)?;
        self.check_passkey(passkey)?;
        self.check_torrent(now, info_hash)
    }

    /// Admits a request for the list of all torrents.
    ///
    /// # Errors
    /// [`Refusal::NetworkDenied`], or in private mode [`Refusal::UnknownPasskey`].
    pub fn list(&mut self, source: IpAddr, passkey: Option<&[u8]>) -> Result<(), Refusal> {
        self.lists.load().check_source(source).map_or(Ok(()), Err)?;
        self.check_passkey(passkey).map(drop)
    }

    /// The swarm of an info-hash, whether it is served or not.
    pub fn swarm_of(&self, info_hash: &InfoHash) -> InfoHash {
        let canonical = self.access.registry.canonical(info_hash);
        let registered = canonical.filter(|_| self.access.mode.needs_registration());
        registered.unwrap_or(*info_hash)
    }

    /// Removes a passkey's peer that is gone without an announce.
    pub fn release(&self, passkey: Option<&[u8]>, info_hash: &InfoHash, peer_id: &PeerId) {
        if let Ok(Some(key)) = self.check_passkey(passkey) {
            key.release(&self.swarm_of(info_hash), peer_id);
        }
    }

    /// The operator's reason for a refusal of this announce, for protocols with room for it.
    pub fn reason(&mut self, refusal: Refusal, announce: &Announce) -> Option<&str> {
        self.lists.load().reason(refusal, &query_of(announce))
    }

    fn check_announce(
        &mut self,
        now: Now,
        announce: &Announce,
        credentials: &Credentials<'_>,
    ) -> Result<InfoHash, Refusal> {
        self.check_lists(&query_of(announce))?;
        let key = self.check_passkey(credentials.passkey)?;
        let canonical = self.check_torrent(now, &announce.info_hash)?;
        if let Some(key) = key {
            key.count(
                now,
                &SessionReport {
                    info_hash: &canonical,
                    peer_id: &announce.peer_id,
                    event: announce.event,
                    uploaded: credentials.uploaded,
                    downloaded: credentials.downloaded,
                    left: announce.left,
                },
            )?;
        }
        Ok(canonical)
    }

    fn check_lists(&mut self, question: &AccessQuery<'_>) -> Result<(), Refusal> {
        self.lists.load().check(question).map_or(Ok(()), Err)
    }

    fn check_passkey(&self, passkey: Option<&[u8]>) -> Result<Option<Arc<ValidKey>>, Refusal> {
        if self.access.mode != Mode::Private {
            return Ok(None);
        }
        let key = passkey.and_then(|it| self.access.keys.check(it));
        key.map(Some).ok_or(Refusal::UnknownPasskey)
    }

    fn check_torrent(&mut self, now: Now, info_hash: &InfoHash) -> Result<InfoHash, Refusal> {
        if !self.access.mode.needs_registration() {
            return Ok(*info_hash);
        }
        let canonical = self.access.registry.judge(now, info_hash)?;
        // The swarm's other hash may be listed as well.
        let denied = (canonical != *info_hash).then(|| self.lists.load().check_torrent(&canonical));
        denied.flatten().map_or(Ok(canonical), Err)
    }
}

/// The fields of an announce that lists are checked for.
fn query_of(announce: &Announce) -> AccessQuery<'_> {
    let port = match announce.contact {
        Contact::Port(port) => Some(port),
        Contact::Web(_) => None,
    };
    let Announce { info_hash, source, peer_id, .. } = announce;
    AccessQuery { info_hash, source: *source, peer_id: Some(peer_id), port }
}

#[cfg(test)]
mod tests;
