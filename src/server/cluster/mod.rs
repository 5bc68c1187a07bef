//! The cluster: the handle on the thread that exchanges changes with other nodes, over NATS.
//!
//! ```text
//! worker ─▶ ring ─┐                          ┌─▶ Store
//! worker ─▶ ring ─┼─▶ cluster::Node ◀─▶ this thread ◀─▶ broker
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | `options` | settings, and what they name in files |
//! | `connection` | a connection to a broker, and the reasons of failures |
//! | `thread` | what is done at each turn |
//! | `watch` | log lines about other nodes, each once |
#![cfg_attr(not(feature = "cluster"), allow(dead_code, reason = "no settings ask for a thread"))]

#[cfg(feature = "cluster")]
mod connection;
mod options;
#[cfg(feature = "cluster")]
mod thread;
#[cfg(feature = "cluster")]
mod watch;

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::mpsc::UnboundedSender;
use tracing::warn;

pub(crate) use options::ClusterOptions;

use crate::cluster::{ClusterView, Fingerprint, Readiness};
use crate::server::StartError;
use crate::server::log::OPERATOR;
use crate::server::memory::MemoryMonitor;
use crate::server::snapshots::{Snapshots, has_ended};
use crate::store::Store;
use crate::sys::clock::Clock;
use crate::tracker::{DeltaReceiver, DeltaSender, delta_ring};

/// Changes in the ring of a worker: some 360 KB, and 80 ms at 100 000 announces a second.
const RING_RECORDS: usize = 8192;

/// How long the last changes may take at the end.
const LAST_CHANGES_MAX: Duration = Duration::from_secs(1);

/// How long to wait for the thread at the end.
const END_MAX: Duration = Duration::from_secs(2);

/// A request to the thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// To announce that this node is about to end.
    Drain,
    /// To send the last changes, and end.
    Stop,
}

/// The thread, and what is known about the cluster.
#[derive(Default)]
pub(crate) struct ClusterControl {
    options: Option<ClusterOptions>,
    fingerprint: Fingerprint,
    /// Ends of the workers' rings that the thread has not taken yet.
    rings: Mutex<Vec<DeltaReceiver>>,
    view: ArcSwapOption<ClusterView>,
    thread: Mutex<Option<(UnboundedSender<Order>, JoinHandle<()>)>>,
}

/// What the thread works on.
pub(crate) struct ClusterContents {
    pub(crate) store: Arc<Store>,
    pub(crate) memory: Arc<MemoryMonitor>,
    pub(crate) snapshots: Arc<Snapshots>,
    /// Seconds after which a peer that has not announced is removed.
    pub(crate) peer_age_s_max: u32,
    pub(crate) clock: Clock,
    /// Whether the swarms of another node are wanted.
    pub(crate) joins: bool,
}

impl ClusterControl {
    /// A node that does nothing until [`Self::start`], and nothing at all without options.
    pub(crate) fn new(options: Option<ClusterOptions>, fingerprint: Fingerprint) -> Self {
        Self { options, fingerprint, ..Self::default() }
    }

    /// The options; `None`: this node is alone.
    pub(crate) fn options(&self) -> Option<&ClusterOptions> {
        self.options.as_ref()
    }

    /// An end of a new ring, for the changes that one worker makes. `None`: this node is alone.
    pub(crate) fn deltas(&self) -> Option<DeltaSender> {
        let options = self.options.as_ref()?;
        let (sender, receiver) = delta_ring(RING_RECORDS);
        locked(&self.rings).push(receiver);
        Some(sender.with_private_peers(options.replicates_private))
    }

    /// What is known about the cluster; `None`: this node is alone, or has not started yet.
    pub(crate) fn view(&self) -> Option<Arc<ClusterView>> {
        self.view.load_full()
    }

    /// Whether this node can serve like the others.
    ///
    /// # Errors
    /// Why it cannot, for `/readyz`.
    pub(crate) fn ready(&self) -> Result<(), String> {
        let Some(options) = &self.options else { return Ok(()) };
        match self.view().map_or(Readiness::Joining, |it| it.readiness) {
            Readiness::Ready => Ok(()),
            Readiness::Joining => Err("joining".into()),
            Readiness::NameConflict => Err(format!(
                "another node has the name {}: set cluster.node to a name of its own",
                options.node
            )),
        }
    }

    /// Announces that this node is about to end, so that no other one joins from it.
    pub(crate) fn drain(&self) {
        if let Some((orders, _)) = &*locked(&self.thread) {
            let _ = orders.send(Order::Drain);
        }
    }

    /// Sends the last changes, and ends. Blocks for two seconds at most.
    pub(crate) fn stop(&self) {
        let Some((orders, thread)) = locked(&self.thread).take() else { return };
        let _ = orders.send(Order::Stop);
        if !has_ended(&thread, &AtomicU64::new(0), END_MAX) {
            let after_s = END_MAX.as_secs();
            warn!(target: OPERATOR, after_s, "last changes perhaps not sent to other nodes");
        }
    }

    /// Starts the thread, if this node is in a cluster.
    #[cfg(feature = "cluster")]
    pub(crate) fn start(self: &Arc<Self>, contents: ClusterContents) -> Result<(), StartError> {
        let Some(options) = self.options.clone() else { return Ok(()) };
        let lacking = |error| StartError::lacking("cannot start the thread of the cluster", &error);
        let seed = getrandom::u64().map_err(|it| lacking(std::io::Error::other(it)))?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(lacking)?;
        let (orders, asked) = tokio::sync::mpsc::unbounded_channel();
        let exchange = thread::ClusterThread::new(self.clone(), options, contents, seed);
        let thread = std::thread::Builder::new().name("cluster".into());
        let thread = thread.spawn(move || {
            runtime.block_on(exchange.run(asked));
            // A name that is being resolved does not keep the process from ending.
            runtime.shutdown_background();
        });
        *locked(&self.thread) = Some((orders, thread.map_err(lacking)?));
        Ok(())
    }

    /// Without the feature no settings can ask for a thread.
    #[cfg(not(feature = "cluster"))]
    pub(crate) fn start(self: &Arc<Self>, _: ClusterContents) -> Result<(), StartError> {
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
