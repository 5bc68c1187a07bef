//! The largest torrents: found by a walk over the whole store, so only while somebody looks, ten
//! seconds apart at least, and never beside another walk. Open pages do not wait for it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedSemaphorePermit;

use crate::admin::{Admin, Process, api};
use crate::time::Now;
use crate::tracker::{ListedTorrent, TorrentOrder};

/// Torrents in the list.
pub(in crate::admin) const COUNT: usize = 20;

/// Seconds for which a list is shown before there is another.
const AGE_S_MAX: u64 = 10;

/// The latest list.
#[derive(Clone, Default)]
pub(in crate::admin) struct Top(Arc<Mutex<Option<List>>>);

/// When it was made, and what is in it.
type List = (Now, Arc<[ListedTorrent]>);

impl Top {
    /// The largest torrents as of some seconds ago; waits until they have been looked for. None
    /// where they cannot be found.
    pub(super) async fn awaited<P: Process>(&self, admin: &Admin<P>) -> Arc<[ListedTorrent]> {
        if self.fresh(admin).is_none() {
            // Fails only if the semaphore were closed, which nobody does.
            let permit = admin.walk.clone().acquire_owned().await.ok();
            // Who held it before may have made the list.
            if let Some(permit) = permit.filter(|_| self.fresh(admin).is_none()) {
                self.renew(permit, admin).await;
            }
        }
        self.fresh(admin).map(|it| it.1).unwrap_or_default()
    }

    /// The same at once, if there is a list that is not too old. If there is none, has one made,
    /// unless somebody looks over the store already: whoever asks again gets it then.
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
        // Kept before the permit is free again, so that nobody looks once more. A walk that broke
        // off leaves nothing behind.
        let _ = api::walk_with(permit, admin, move |listing| {
            let found = listing.torrents_by(TorrentOrder::Peers, COUNT);
            *top.kept() = Some((process.now(), found.into()));
        })
        .await;
    }

    fn kept(&self) -> MutexGuard<'_, Option<List>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
