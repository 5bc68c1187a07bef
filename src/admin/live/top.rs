//! The largest torrents. Finding them takes a walk over the whole store, so it happens only while a
//! page is open, at most every ten seconds, and never beside another walk. Open pages do not wait.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

use crate::access_store::AccessManager;
use crate::admin::{Admin, Process, api};
use crate::time::Now;
use crate::tracker::{ListedTorrent, TorrentOrder};

/// Torrents in the list.
pub(in crate::admin) const COUNT: usize = 20;

/// Seconds after which a list is replaced.
const AGE_S_MAX: u64 = 10;

/// The latest list.
#[derive(Clone, Default)]
pub(in crate::admin) struct Top(Arc<Mutex<Option<List>>>);

/// The time of the list, and its torrents.
type List = (Now, Arc<[TopTorrent]>);

/// A torrent with the name under which it is registered; empty if there is none.
#[derive(Clone)]
pub(in crate::admin) struct TopTorrent {
    pub(super) torrent: ListedTorrent,
    pub(super) name: String,
}

impl TopTorrent {
    /// Looks the name up in the database, where registrations are kept.
    fn of(torrent: ListedTorrent, registered: &AccessManager) -> Self {
        let record = registered.registered(&torrent.info_hash).ok();
        Self { name: record.and_then(|it| it.name).unwrap_or_default(), torrent }
    }
}

impl Top {
    /// The largest torrents, as of some seconds ago; waits for the walk. Empty if the walk fails.
    pub(super) async fn awaited<P: Process>(&self, admin: &Admin<P>) -> Arc<[TopTorrent]> {
        if self.fresh(admin).is_none() {
            // Fails only on a closed semaphore; this one is never closed.
            let permit = admin.walk.clone().acquire_owned().await.ok();
            // The previous holder of the permit may have made the list.
            if let Some(permit) = permit.filter(|_| self.fresh(admin).is_none()) {
                self.renew(permit, admin).await;
            }
        }
        self.fresh(admin).map(|it| it.1).unwrap_or_default()
    }

    /// The list, if it is fresh; does not wait. Otherwise a new one is started, unless another walk
    /// is running: a later call returns it.
    pub(super) fn at_hand<P: Process>(&self, admin: &Admin<P>) -> Option<List> {
        let fresh = self.fresh(admin);
        if fresh.is_none()
            && let Ok(permit) = admin.walk.clone().try_acquire_owned()
        {
            let (top, admin) = (self.clone(), admin.clone());
            tokio::spawn(async move { top.renew(permit, &admin).await });
        }
        fresh
    }

    fn fresh<P: Process>(&self, admin: &Admin<P>) -> Option<List> {
        let now = admin.process.now();
        self.kept().clone().filter(|it| now < it.0.plus_s(AGE_S_MAX))
    }

    async fn renew<P: Process>(&self, permit: OwnedSemaphorePermit, admin: &Admin<P>) {
        let (top, process) = (self.clone(), admin.process.clone());
        // Stored before the permit is released, so that no second walk starts. A walk that fails
        // stores nothing.
        let _ = api::walk_with(permit, admin, move |listing| {
            let found = listing.torrents_by(TorrentOrder::Peers, COUNT);
            let access_manager = process.access_manager();
            let found = found.into_iter().map(|torrent| TopTorrent::of(torrent, &access_manager));
            *top.kept() = Some((process.now(), found.collect()));
        })
        .await;
    }

    fn kept(&self) -> MutexGuard<'_, Option<List>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
