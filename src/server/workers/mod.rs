//! The threads that serve: for each core one for datagrams and one for connections.

pub(crate) mod datagram;
pub(crate) mod stream;

use std::io;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::access;
use crate::counters::NotStoredCounters;
use crate::limiter::{self, LimitCounters};
use crate::server::StartError;
use crate::server::context::AppContext;
use crate::server::live_options::WorkerOptions;
use crate::sys::affinity;
use crate::tracker::Tracker;

/// A worker's end.
pub(crate) struct WorkerExit {
    pub(crate) worker: String,
    pub(crate) result: io::Result<()>,
}

/// Receives the ends of workers.
pub(crate) type WorkerExits = mpsc::UnboundedReceiver<WorkerExit>;

impl From<WorkerExit> for StartError {
    /// Why the process ends if a worker has ended on its own.
    fn from(WorkerExit { worker, result }: WorkerExit) -> Self {
        let what = format!("worker {worker} cannot serve");
        match result {
            Err(error) => Self::lacking(&what, &error),
            Ok(()) => Self::Failed(what),
        }
    }
}

/// The CPU of each worker: one for each usable core if `workers` is 0. Workers are not pinned if
/// there are more of them than cores.
pub(crate) fn placement(workers: u32) -> Result<Vec<Option<usize>>, StartError> {
    let cpus = affinity::usable_cpus()
        .map_err(|error| StartError::lacking("cannot find out the usable cores", &error))?;
    let count = if workers == 0 { cpus.len() } else { workers as usize };
    if count > cpus.len() {
        tracing::warn!(
            workers = count,
            cores = cpus.len(),
            "workers not pinned: more workers than cores"
        );
        return Ok(vec![None; count]);
    }
    Ok(cpus.into_iter().take(count).map(Some).collect())
}

/// The tracker of one worker, with its shared state and its own `tallies`.
///
/// # Errors
/// If the kernel provides no random numbers.
pub(crate) fn tracker_of(
    context: &AppContext,
    options: &WorkerOptions,
    tallies: Tallies,
    build: impl FnOnce(u64) -> Tracker,
) -> io::Result<Tracker> {
    let [seed, dither] = [(); 2].map(|()| getrandom::u64().map_err(io::Error::other));
    let limiter = context.limiter.clone();
    let limiter = limiter::Handle::new(limiter, options.limits.clone(), tallies.limits, dither?);
    let tracker = build(seed?);
    let tracker = match context.cluster.deltas() {
        Some(deltas) => tracker.with_deltas(deltas),
        None => tracker,
    };
    Ok(tracker
        .with_client_stats(&context.clients)
        .with_dual_stack(context.dual_stack.clone())
        .with_source_monitor(&context.source_monitor)
        .with_load(context.load.clone())
        .with_limiter(limiter)
        .with_not_stored_counters(tallies.not_stored)
        .with_access(access::Gate::new(context.access_manager.access().clone())))
}

/// The counts of one worker's rules.
#[derive(Clone, Default)]
pub(crate) struct Tallies {
    pub(crate) limits: Arc<LimitCounters>,
    pub(crate) not_stored: Arc<NotStoredCounters>,
}
