//! Starts the datagram workers: one thread for each core that serves.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::frontend::Responder;
use crate::frontend::udp::UdpFrontend;
use crate::metrics::WorkerCounters;
use crate::server::StartError;
use crate::server::context::AppContext;
use crate::server::live_options::WorkerOptions;
use crate::server::workers::{Tallies, WorkerExit, tracker_of};
use crate::sys::affinity;
use crate::sys::socket::BoundUdp;
use crate::time::Now;
use crate::tracker::Tracker;
use crate::types::{Answered, Dropped};
use crate::worker::datagram::{DatagramBackend, DatagramWorker};
use crate::worker::rest_signal::RestSignal;

/// The running workers.
pub(crate) struct Workers {
    /// What each counts.
    pub(crate) counters: Vec<Arc<WorkerCounters>>,
    /// What the rules of each count.
    pub(crate) tallies: Vec<Tallies>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    rest: Arc<RestSignal>,
}

impl Workers {
    /// Starts one thread for each entry of `cpus` and `sockets`; tells `ends` of each one's end.
    pub(crate) fn start(
        context: &AppContext,
        backend: DatagramBackend,
        cpus: &[Option<usize>],
        sockets: Vec<Vec<BoundUdp>>,
        ends: &mpsc::UnboundedSender<WorkerExit>,
    ) -> Result<Self, StartError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (counters, tallies, threads, rest) = Default::default();
        let mut it = Self { counters, tallies, threads, stop, rest };
        for (worker, (&cpu, sockets)) in cpus.iter().zip(sockets).enumerate() {
            let counters = Arc::new(WorkerCounters::default());
            let tallies = Tallies::default();
            let spawn = DatagramSpawn {
                context: context.clone(),
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
                    let result = spawn.run();
                    // Nobody listens any more only when the process ends anyway.
                    let _ = ends.send(WorkerExit { worker: format!("udp-{worker}"), result });
                })
                .map_err(|error| StartError::lacking("cannot start a thread", &error))?;
            it.counters.push(counters);
            it.tallies.push(tallies);
            it.threads.push(thread);
        }
        Ok(it)
    }

    /// Whether every worker has gone round once.
    pub(crate) fn are_serving(&self) -> bool {
        self.counters.iter().all(|it| it.turns.get() > 0)
    }

    /// Makes them take nothing from their sockets until [`Self::resume`].
    pub(crate) fn pause(&self) {
        self.rest.request();
    }

    /// Whether all of them rest.
    pub(crate) fn are_resting(&self) -> bool {
        self.rest.resting() >= self.threads.len()
    }

    /// Makes them receive again.
    pub(crate) fn resume(&self) {
        self.rest.end();
    }

    /// Tells all to end, and waits for that.
    pub(crate) fn stop(self) {
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
struct DatagramSpawn {
    context: AppContext,
    counters: Arc<WorkerCounters>,
    tallies: Tallies,
    stop: Arc<AtomicBool>,
    rest: Arc<RestSignal>,
    backend: DatagramBackend,
    sockets: Vec<BoundUdp>,
    cpu: Option<usize>,
    worker: usize,
    workers: usize,
}

impl DatagramSpawn {
    fn run(self) -> io::Result<()> {
        if let Some(cpu) = self.cpu
            && let Err(error) = affinity::pin(cpu)
        {
            tracing::warn!(cpu, %error, "worker not pinned to its core");
        }
        let options = WorkerOptions::new(self.context.options.clone());
        let tracker = tracker_of(&self.context, &options, self.tallies, |seed| {
            let store = self.context.store.clone();
            Tracker::new(store, options.tracker.clone(), seed, self.worker, self.workers)
        })?;
        let front_end = UdpFrontend::new(tracker, options.connection_ids.clone());
        let worker = DatagramWorker {
            backend: self.backend,
            sockets: &self.sockets,
            clock: &self.context.clock,
            counters: &self.counters,
            stop: &self.stop,
        };
        worker.run_with_rests(&mut LiveUdpFrontend { front_end, options }, &self.rest)
    }
}

/// The UDP front end, by the options that are in force at the start of each turn.
struct LiveUdpFrontend {
    front_end: UdpFrontend,
    options: WorkerOptions,
}

impl Responder for LiveUdpFrontend {
    #[inline]
    fn begin_turn(&mut self) {
        self.options.begin_turn();
    }

    #[inline]
    fn prefetch(&mut self, stage: usize, datagram: &[u8]) {
        self.front_end.prefetch(stage, datagram);
    }

    const PREFETCH_STAGES: usize = UdpFrontend::PREFETCH_STAGES;

    #[inline]
    fn handle(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<Answered, Dropped> {
        self.front_end.handle(now, source, datagram, out)
    }

    #[inline]
    fn upkeep(&mut self, now: Now) {
        self.front_end.upkeep(now);
    }

    fn set_queue(&mut self, queue_permille: u32) {
        self.front_end.set_queue(queue_permille);
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
