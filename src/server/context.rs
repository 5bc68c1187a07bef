//! What all parts of a running tracker share.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::access_store::AccessManager;
use crate::frontend::http::FullScrapeLimits;
use crate::frontend::stats::Pages;
use crate::limiter::Limiter;
use crate::server::live_options::LiveOptions;
use crate::server::memory::Keeper;
use crate::server::snapshots::Snapshots;
use crate::store::Store;
use crate::sys::clock::Clock;
use crate::tracker::{ClientStats, DualStackClients, Load, SourceMonitor};

/// The one context of the process: cheap to clone, the same behind every clone.
#[derive(Clone)]
pub(super) struct AppContext {
    pub(super) access_manager: Arc<AccessManager>,
    pub(super) store: Arc<Store>,
    pub(super) memory: Arc<Keeper>,
    /// What a reload can change, replaced as a whole.
    pub(super) options: Arc<ArcSwap<LiveOptions>>,
    pub(super) clients: Arc<ClientStats>,
    pub(super) families: Arc<DualStackClients>,
    pub(super) sources: Arc<SourceMonitor>,
    pub(super) load: Arc<Load>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) pages: Arc<ArcSwap<Pages>>,
    pub(super) full_scrapes: Arc<FullScrapeLimits>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) clock: Clock,
}

impl AppContext {
    /// Puts new options in force, for everything that starts from now on.
    pub(super) fn apply(&self, options: LiveOptions) {
        self.memory.set(options.memory);
        self.options.store(Arc::new(options));
    }
}
