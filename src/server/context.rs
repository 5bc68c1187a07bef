//! State that all parts of a running tracker share.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::access::lists::{AccessList, ListName};
use crate::access_store::AccessManager;
use crate::frontend::http::FullScrapeLimits;
use crate::frontend::stats::Pages;
use crate::frontend::unlisted_proxies::UnlistedProxies;
use crate::limiter::{self, Limiter};
use crate::server::StartError;
use crate::server::cluster::{ClusterContents, ClusterControl};
use crate::server::control::reload::ReloadFigures;
use crate::server::history::HistoryFile;
use crate::server::live_options::LiveOptions;
use crate::server::memory::MemoryMonitor;
use crate::server::snapshots::Snapshots;
use crate::server::tls::CertificateFigures;
use crate::server::xdp::{XdpControl, XdpOptions};
use crate::store::Store;
use crate::sys::clock::Clock;
use crate::tracker::{ClientStats, DualStackClients, Load, SourceMonitor};

/// The context of the process. Cheap to clone; all clones share the same state.
#[derive(Clone)]
pub(super) struct AppContext {
    pub(super) access_manager: Arc<AccessManager>,
    pub(super) store: Arc<Store>,
    pub(super) memory: Arc<MemoryMonitor>,
    /// What a reload can change, replaced as a whole.
    pub(super) options: Arc<ArcSwap<LiveOptions>>,
    pub(super) clients: Arc<ClientStats>,
    pub(super) dual_stack: Arc<DualStackClients>,
    pub(super) source_monitor: Arc<SourceMonitor>,
    pub(super) unlisted_proxies: Arc<UnlistedProxies>,
    pub(super) load: Arc<Load>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) pages: Arc<ArcSwap<Pages>>,
    pub(super) full_scrapes: Arc<FullScrapeLimits>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) certificate: Arc<CertificateFigures>,
    pub(super) reloads: Arc<ReloadFigures>,
    /// The statistics page's last 24 hours.
    pub(super) history: Arc<HistoryFile>,
    pub(super) xdp: Arc<XdpControl>,
    pub(super) cluster: Arc<ClusterControl>,
    pub(super) clock: Clock,
}

impl AppContext {
    /// A context with an empty store, for workers that have not started yet.
    pub(super) fn new(
        store: Store,
        access_manager: AccessManager,
        options: LiveOptions,
        snapshots: Arc<Snapshots>,
    ) -> Self {
        let (store, clock) = (Arc::new(store), Clock::start());
        Self {
            access_manager: Arc::new(access_manager),
            memory: MemoryMonitor::new(store.clone(), options.memory),
            store,
            options: Arc::new(ArcSwap::from_pointee(options)),
            clients: Arc::default(),
            dual_stack: Arc::default(),
            source_monitor: Arc::default(),
            unlisted_proxies: Arc::default(),
            load: Arc::default(),
            limiter: Arc::new(Limiter::new(limiter::Sizes::default(), None)),
            pages: Arc::default(),
            full_scrapes: Arc::default(),
            snapshots,
            certificate: Arc::default(),
            reloads: Arc::default(),
            history: Arc::default(),
            xdp: Arc::new(XdpControl::new(clock)),
            cluster: Arc::default(),
            clock,
        }
    }

    /// Applies new options to everything that starts from now on.
    pub(super) fn apply(&self, options: LiveOptions) {
        self.memory.set(options.memory);
        self.options.store(Arc::new(options));
    }

    /// Starts to exchange changes with other nodes, if this one is in a cluster. It `joins` unless
    /// it continues the work of a predecessor.
    pub(super) fn begin_cluster(&self, joins: bool) -> Result<(), StartError> {
        self.cluster.start(ClusterContents {
            store: self.store.clone(),
            memory: self.memory.clone(),
            snapshots: self.snapshots.clone(),
            peer_age_s_max: self.options.load().tracker.peer_age_s_max,
            clock: self.clock,
            joins,
        })
    }

    /// Attaches XDP programs, if they are to be used: this process serves. Blocks.
    pub(super) fn begin_xdp(&self) {
        let (options, denied) = self.xdp_inputs();
        self.xdp.begin(options, denied);
    }

    /// Brings XDP programs in line with what they follow. Blocks.
    pub(super) fn follow_xdp(&self) {
        let (options, denied) = self.xdp_inputs();
        self.xdp.follow(options, denied);
    }

    /// What the XDP program follows, as it is now.
    pub(super) fn xdp_inputs(&self) -> (Arc<XdpOptions>, Arc<AccessList>) {
        let lists = self.access_manager.access().lists();
        (self.options.load().xdp.clone(), lists.get(ListName::NetworksDeny).clone())
    }
}

#[cfg(test)]
impl AppContext {
    /// A context with default settings that saves nothing.
    pub(super) fn of_a_test() -> Self {
        use crate::server::options;
        let folder = tempfile::tempdir().unwrap();
        let mut config = crate::config::Config::default();
        config.server.state_dir = folder.path().to_str().unwrap().to_owned();
        let keys = options::keys(&config, None).unwrap();
        let access_manager = AccessManager::open(&options::access(&config)).unwrap();
        let live = options::live(&config, &keys, options::admin_token(&config, false, None));
        Self::new(Store::new(options::store(&config)), access_manager, live, Arc::default())
    }
}
