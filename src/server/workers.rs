//! Starts the workers and hears of their end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use tokio::sync::mpsc;

use crate::access;
use crate::access::disk::Office;
use crate::frontend::connection_id::ConnectionIds;
use crate::frontend::http::{self, FullScrapeLimits};
use crate::frontend::stats::Pages;
use crate::frontend::udp::UdpFrontend;
use crate::frontend::ws;
use crate::limiter::{self, Handle, LimitCounters, Limiter};
use crate::metrics::{NotStoredCounters, WorkerCounters};
use crate::server::StartError;
use crate::server::memory::Keeper;
use crate::server::snapshots::Snapshots;
use crate::store::Store;
use crate::sys::affinity;
use crate::sys::clock::Clock;
use crate::sys::socket::BoundUdp;
use crate::tracker::{self, ClientStats, DualStackClients, Load, SourceMonitor, Tracker};
use crate::worker::datagram::{Backend, DatagramWorker};
use crate::worker::rest::Rest;
use crate::worker::stream;

/// What all workers share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) office: Arc<Office>,
    pub(super) store: Arc<Store>,
    pub(super) memory: Arc<Keeper>,
    pub(super) tracker: Arc<ArcSwap<tracker::Options>>,
    pub(super) ids: Arc<ArcSwap<ConnectionIds>>,
    pub(super) clients: Arc<ClientStats>,
    pub(super) families: Arc<DualStackClients>,
    pub(super) sources: Arc<SourceMonitor>,
    pub(super) load: Arc<Load>,
    pub(super) limiter: Arc<Limiter>,
    pub(super) limits: Arc<ArcSwap<limiter::Options>>,
    pub(super) http: Arc<ArcSwap<http::Options>>,
    pub(super) ws: Arc<ArcSwap<ws::Options>>,
    pub(super) stream: Arc<ArcSwap<stream::Options>>,
    pub(super) pages: Arc<ArcSwap<Pages>>,
    pub(super) full_scrapes: Arc<FullScrapeLimits>,
    pub(super) snapshots: Arc<Snapshots>,
    pub(super) clock: Clock,
}

impl Shared {
    /// The rules of one worker, with all that they go by; `tallies` are its own.
    ///
    /// # Errors
    /// Where the kernel has no random numbers.
    pub(super) fn tracker_of(
        &self,
        tallies: Tallies,
        build: impl FnOnce(u64) -> Tracker,
    ) -> io::Result<Tracker> {
        let [seed, dither] = [(); 2].map(|()| getrandom::u64().map_err(io::Error::other));
        let gate = Handle::new(self.limiter.clone(), self.limits.clone(), tallies.limits, dither?);
        Ok(build(seed?)
            .with_client_stats(&self.clients)
            .with_dual_stack(self.families.clone())
            .with_source_monitor(&self.sources)
            .with_load(self.load.clone())
            .with_limiter(gate)
            .with_not_stored_counters(tallies.not_stored)
            .with_access(access::Gate::new(self.office.access().clone())))
    }
}

/// What one worker's rules count.
#[derive(Clone, Default)]
pub(super) struct Tallies {
    pub(super) limits: Arc<LimitCounters>,
    pub(super) not_stored: Arc<NotStoredCounters>,
}

/// The running workers.
pub(super) struct Workers {
    /// What each counts.
    pub(super) counters: Vec<Arc<WorkerCounters>>,
    /// What the rules of each count.
    pub(super) tallies: Vec<Tallies>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    rest: Arc<Rest>,
}

/// A worker's end.
pub(super) struct End {
    pub(super) worker: String,
    pub(super) result: io::Result<()>,
}

/// Where each worker runs: one for each usable core if `workers` is 0; unpinned if there are more
/// workers than cores.
pub(super) fn placement(workers: u32) -> Result<Vec<Option<usize>>, StartError> {
    let cpus = affinity::usable_cpus()
        .map_err(|error| StartError::lacking("cannot find out the usable cores", &error))?;
    let count = if workers == 0 { cpus.len() } else { workers as usize };
    if count > cpus.len() {
        tracing::warn!(workers = count, cores = cpus.len(), "more workers than cores: not pinned");
        return Ok(vec![None; count]);
    }
    Ok(cpus.into_iter().take(count).map(Some).collect())
}

impl Workers {
    /// Starts one thread for each entry of `cpus` and `sockets`; tells `ends` of each one's end.
    pub(super) fn start(
        shared: &Shared,
        backend: Backend,
        cpus: &[Option<usize>],
        sockets: Vec<Vec<BoundUdp>>,
        ends: &mpsc::UnboundedSender<End>,
    ) -> Result<Self, StartError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (counters, tallies, threads, rest) = Default::default();
        let mut it = Self { counters, tallies, threads, stop, rest };
        for (worker, (&cpu, sockets)) in cpus.iter().zip(sockets).enumerate() {
            let counters = Arc::new(WorkerCounters::default());
            let tallies = Tallies::default();
            let job = Job {
                shared: shared.clone(),
                counters: counters.clone(),
                tallies: tallies.clone(),
                stop: it.stop.clone(),
                rest: it.rest.clone(),
                backend,
                sockets,
                cpu,
                worker,
                workers: cpus.len(),
            };
            let ends = ends.clone();
            let thread = std::thread::Builder::new()
                .name(format!("udp-{worker}"))
                .spawn(move || {
                    let result = job.run();
                    // Nobody listens any more only when the process ends anyway.
                    let _ = ends.send(End { worker: format!("udp-{worker}"), result });
                })
                .map_err(|error| StartError::lacking("cannot start a thread", &error))?;
            it.counters.push(counters);
            it.tallies.push(tallies);
            it.threads.push(thread);
        }
        Ok(it)
    }

    /// Whether every worker has gone round once.
    pub(super) fn are_serving(&self) -> bool {
        self.counters.iter().all(|it| it.turns.get() > 0)
    }

    /// Makes them take nothing from their sockets until [`Self::go_on`].
    pub(super) fn rest(&self) {
        self.rest.ask();
    }

    /// Whether all of them rest.
    pub(super) fn are_resting(&self) -> bool {
        self.rest.resting() >= self.threads.len()
    }

    /// Makes them receive again.
    pub(super) fn go_on(&self) {
        self.rest.end();
    }

    /// Tells all to end, and waits for that.
    pub(super) fn stop(self) {
        drop(self);
    }
}

/// However a start or the serving ends: sockets may be shared with another process, which does not
/// answer what was taken from them here.
impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic would have ended the process.
            let _ = thread.join();
        }
    }
}

/// What one worker takes to its thread.
struct Job {
    shared: Shared,
    counters: Arc<WorkerCounters>,
    tallies: Tallies,
    stop: Arc<AtomicBool>,
    rest: Arc<Rest>,
    backend: Backend,
    sockets: Vec<BoundUdp>,
    cpu: Option<usize>,
    worker: usize,
    workers: usize,
}

impl Job {
    fn run(self) -> io::Result<()> {
        if let Some(cpu) = self.cpu
            && let Err(error) = affinity::pin(cpu)
        {
            tracing::warn!(cpu, %error, "a worker cannot be pinned to its core");
        }
        let tracker = self.shared.tracker_of(self.tallies, |seed| {
            let Shared { store, tracker, .. } = &self.shared;
            Tracker::new(store.clone(), tracker.clone(), seed, self.worker, self.workers)
        })?;
        let Shared { ids, clock, .. } = self.shared;
        let worker = DatagramWorker {
            backend: self.backend,
            sockets: &self.sockets,
            clock: &clock,
            counters: &self.counters,
            stop: &self.stop,
        };
        worker.run_with_rests(&mut UdpFrontend::new(tracker, ids), &self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_that_go_out_of_scope_are_told_to_end_and_waited_for() {
        let [stop, ended] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (told, last) = (stop.clone(), ended.clone());
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            last.store(true, Ordering::Relaxed);
        });
        let (counters, tallies, rest) = Default::default();
        drop(Workers { counters, tallies, threads: vec![thread], stop, rest });
        assert!(ended.load(Ordering::Relaxed));
    }
}
