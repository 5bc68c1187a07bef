//! Starts the datagram workers: one thread for each core that serves.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use tokio::sync::mpsc;

use crate::counters::WorkerCounters;
use crate::frontend::Responder;
use crate::frontend::udp::UdpFrontend;
use crate::server::StartError;
use crate::server::context::AppContext;
use crate::server::live_options::WorkerOptions;
use crate::server::workers::{Tallies, WorkerExit, tracker_of};
use crate::sys::affinity;
use crate::sys::socket::BoundUdp;
use crate::time::Now;
use crate::tracker::Tracker;
use crate::types::{DatagramResponse, Dropped};
use crate::worker::datagram::{DatagramBackend, DatagramWorker};
use crate::worker::pause_signal::PauseSignal;
use crate::worker::request_log::Unserved;

/// The running workers.
pub(crate) struct Workers {
    /// The counters of each worker.
    pub(crate) counters: Vec<Arc<WorkerCounters>>,
    /// The counts of each worker's rules.
    pub(crate) tallies: Vec<Tallies>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    pause: Arc<PauseSignal>,
}

impl Workers {
    /// Starts one thread for each entry of `cpus` and `sockets`. Sends each worker's end to `ends`.
    pub(crate) fn start(
        context: &AppContext,
        backend: DatagramBackend,
        cpus: &[Option<usize>],
        sockets: Vec<Vec<BoundUdp>>,
        ends: &mpsc::UnboundedSender<WorkerExit>,
    ) -> Result<Self, StartError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (counters, tallies, threads, pause) = Default::default();
        let mut pool = Self { counters, tallies, threads, stop, pause };
        for (worker, (&cpu, sockets)) in cpus.iter().zip(sockets).enumerate() {
            let counters = Arc::new(WorkerCounters::default());
            let tallies = Tallies::default();
            let spawn = DatagramSpawn {
                context: context.clone(),
                counters: counters.clone(),
                tallies: tallies.clone(),
                stop: pool.stop.clone(),
                pause: pool.pause.clone(),
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
                    // Fails only if the process ends anyway.
                    let _ = ends.send(WorkerExit { worker: format!("udp-{worker}"), result });
                })
                .map_err(|error| StartError::lacking("cannot start a thread", &error))?;
            pool.counters.push(counters);
            pool.tallies.push(tallies);
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Whether every worker has made a turn.
    pub(crate) fn are_serving(&self) -> bool {
        self.counters.iter().all(|it| it.turns.get() > 0)
    }

    /// Makes the workers take nothing from their sockets until [`Self::resume`].
    pub(crate) fn pause(&self) {
        self.pause.request();
    }

    /// Whether all workers are paused.
    pub(crate) fn are_paused(&self) -> bool {
        self.pause.paused() >= self.threads.len()
    }

    /// Makes the workers receive again.
    pub(crate) fn resume(&self) {
        self.pause.end();
    }

    /// Stops all workers, and waits for their end.
    pub(crate) fn stop(self) {
        drop(self);
    }
}

/// Stops the workers however a start or the serving ends. Sockets may be shared with another
/// process, which does not respond to datagrams that were taken here.
impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic would have ended the process.
            let _ = thread.join();
        }
    }
}

/// What one worker moves to its thread.
struct DatagramSpawn {
    context: AppContext,
    counters: Arc<WorkerCounters>,
    tallies: Tallies,
    stop: Arc<AtomicBool>,
    pause: Arc<PauseSignal>,
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
        // Without UDP the worker only does upkeep; a ring needs a socket.
        let has_sockets = !self.sockets.is_empty();
        let worker = DatagramWorker {
            backend: if has_sockets { self.backend } else { DatagramBackend::Mmsg },
            sockets: &self.sockets,
            clock: &self.context.clock,
            counters: &self.counters,
            stop: &self.stop,
        };
        let ports = self.context.xdp.ports(self.worker);
        worker.run_with_xdp(&mut LiveUdpFrontend { front_end, options }, &self.pause, &ports)
    }
}

/// The UDP front end, with the options that are in force at the start of each turn.
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
    ) -> Result<DatagramResponse, Dropped> {
        self.front_end.handle(now, source, datagram, out)
    }

    #[inline]
    fn unserved(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        verdict: &Result<DatagramResponse, Dropped>,
    ) {
        if let Some(log) = self.options.request_log()
            && let Some(unserved) = Unserved::of_datagram(verdict)
        {
            log.datagram(now, source, datagram, unserved);
        }
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
        let (counters, tallies, pause) = Default::default();
        drop(Workers { counters, tallies, threads: vec![thread], stop, pause });
        assert!(ended.load(Ordering::Relaxed));
    }
}
