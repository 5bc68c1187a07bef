//! Lists of torrents and peers, for full scrapes and for operators.
//!
//! A listing walks the whole store, one shard's lock at a time, and takes milliseconds for each
//! million torrents: run it on a separate thread, never in a worker's loop.

use std::sync::Arc;

use crate::access::Access;
use crate::store::Store;
pub use crate::store::{ListedPeer, ListedTorrent, Role, StoreTotals, TorrentOrder};
use crate::time::Now;
use crate::types::{InfoHash, ScrapeEntry};

/// Read-only access to the store.
#[derive(Clone)]
pub struct Listing {
    store: Arc<Store>,
    /// Access control of the listed torrents; `None`: all are listed.
    access: Option<Arc<Access>>,
}

impl Listing {
    /// A handle on `store` without access control.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, access: None }
    }

    /// A handle on `store` for clients: torrents that no client may scrape are not listed
    /// page by page.
    pub(super) fn for_clients(store: Arc<Store>, access: Option<Arc<Access>>) -> Self {
        Self { store, access }
    }

    /// Sums over the whole store; cheap.
    pub fn totals(&self) -> StoreTotals {
        self.store.totals()
    }

    /// The `count` torrents with the smallest info-hashes above `after`, in order: for paging
    /// through all visible torrents.
    pub fn torrents_after(&self, after: Option<&InfoHash>, count: usize) -> Vec<ListedTorrent> {
        match &self.access {
            None => self.store.torrents_after(after, count, |_| true),
            Some(access) => {
                let lists = access.lists();
                self.store.torrents_after(after, count, |it| access.is_visible(&lists, it))
            }
        }
    }

    /// The `count` largest torrents, largest first.
    pub fn torrents_by(&self, order: TorrentOrder, count: usize) -> Vec<ListedTorrent> {
        self.store.torrents_by(order, count)
    }

    /// The counts of one torrent; all zero if it is unknown.
    pub fn counts(&self, info_hash: &InfoHash) -> ScrapeEntry {
        self.store.scrape(info_hash)
    }

    /// One torrent with `count` of its peers from the `skip`th on, in no particular order.
    pub fn torrent(
        &self,
        info_hash: &InfoHash,
        now: Now,
        skip: usize,
        count: usize,
    ) -> Option<(ListedTorrent, Vec<ListedPeer>)> {
        self.store.torrent(info_hash, now, skip, count)
    }
}
