//! A run from start to end: sockets and peers, connection ids, fill, warm-up, the measured phase.
//! There is one generator thread per given CPU. The resources of the tracker's process are read as
//! well.

use std::collections::HashSet;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use skep::sys::affinity::pin;
use skep::sys::clock::Clock;

use crate::check::Invalid;
use crate::descriptors::{self, DescriptorsError};
use crate::endpoint::Endpoint;
use crate::generator::Generator;
use crate::interrupt::{self, TooEarlyError};
use crate::numbers::{ns, real, seconds, whole};
use crate::phase::{Driver, Run, Task};
use crate::plan::{Families, Plan, PlanError, Protocol};
use crate::population::{Peer, Seat, SwarmSizeError, populate};
use crate::process::{Usage, usage};
use crate::progress::Progress;
use crate::sources::{SourceError, Targets, open, origins};
use crate::stream;
use crate::tally::Tally;

/// The environment of a run.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The trackers.
    pub(crate) targets: Targets,
    /// The endpoint, set unless the protocol is UDP.
    pub(crate) endpoint: Option<Endpoint>,
    /// The tracker's process, if it runs on this host.
    pub(crate) pid: Option<u32>,
    /// CPUs of the generator's threads, in order. Further threads are not pinned.
    pub(crate) cpus: Vec<usize>,
    /// The clock of this process.
    pub(crate) clock: Clock,
}

/// Results of the fill.
#[derive(Clone, Debug)]
pub(crate) struct Filled {
    /// How long it took.
    pub(crate) seconds: f64,
    /// Peers whose announce was answered.
    pub(crate) resident: u64,
    /// The sum of the tracker's own scrape counts; `None` if not scraped (a tracker that keeps both
    /// families apart would report half of each).
    pub(crate) scraped: Option<u64>,
    /// Its counts.
    pub(crate) tally: Tally,
}

/// A finished run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The plan as it was run: WebTorrent's swarms may have been reduced.
    pub(crate) plan: Plan,
    /// Results of the fill, if the plan has one.
    pub(crate) filled: Option<Filled>,
    /// Counts of the measured phase.
    pub(crate) tally: Tally,
    /// Peers resident at the end, by the generator's count.
    pub(crate) resident: u64,
    /// Resources of the tracker's process before anything was sent, before and after the measured
    /// phase.
    pub(crate) usage: Option<[Usage; 3]>,
    /// Resources of this process before and after the measured phase.
    pub(crate) own_usage: [Usage; 2],
    /// The tracker's process, if it was one of this host at the start.
    pub(crate) pid: Option<u32>,
    /// Whether a signal ended the measured phase.
    pub(crate) is_partial: bool,
}

/// Why a run cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// Its plan cannot be run.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// Its sources cannot be used.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its swarms are too large.
    #[error(transparent)]
    SwarmSize(#[from] SwarmSizeError),
    /// It needs more descriptors.
    #[error(transparent)]
    Descriptors(#[from] DescriptorsError),
    /// The kernel has no epoll instance for it.
    #[error("no epoll: {0}")]
    Epoll(io::Error),
    /// Some sockets have no connection id.
    #[error(
        "{targets}: {missing} of {sources} sockets got no connection id ({cause}): is it a UDP \
         tracker, and does it accept these sources?"
    )]
    NoConnectionIds {
        /// The trackers.
        targets: String,
        /// Sockets without an id.
        missing: u64,
        /// All sockets.
        sources: u16,
        /// Why, as far as it is known.
        cause: String,
    },
    /// Some connections were not opened.
    #[error(
        "{targets}: {missing} of {sources} connections could not be opened ({cause}): is it \
         {tracker}, and does it take so many?"
    )]
    NoConnections {
        /// The trackers.
        targets: String,
        /// Connections that are missing.
        missing: u64,
        /// All connections.
        sources: u16,
        /// Why, as far as it is known.
        cause: String,
        /// What serves the protocol.
        tracker: &'static str,
    },
    /// The tracker stopped responding.
    #[error(
        "{targets} stopped responding while {phase}, after {responses} responses ({cause}): has it \
         ended, is it stuck, or does it refuse these sources?"
    )]
    Silent {
        /// The trackers.
        targets: String,
        /// What was being done.
        phase: &'static str,
        /// Responses in this phase.
        responses: u64,
        /// Why, as far as it is known.
        cause: String,
    },
    /// A signal came before anything was measured.
    #[error(transparent)]
    TooEarly(#[from] TooEarlyError),
}

/// Sockets, peers and threads of a run.
pub(crate) struct Session {
    plan: Arc<Plan>,
    site: Site,
    /// One generator per thread.
    generators: Vec<Load>,
}

type Load = Box<dyn Driver>;

impl Session {
    /// Opens the sockets, creates the peers, and obtains a connection id for every socket.
    ///
    /// # Errors
    /// One sentence with the cause: a source that cannot be used, a tracker that does not respond.
    pub(crate) fn open(plan: &Plan, site: &Site) -> Result<Self, RunError> {
        plan.check()?;
        let mut plan = plan.clone();
        let generators = match &site.endpoint {
            None => datagram_load(&plan, site)?,
            Some(endpoint) => stream_load(&mut plan, site, endpoint)?,
        };
        let mut session = Self { plan: Arc::new(plan), site: site.clone(), generators };
        let (tally, _) = session.phase("connecting", Task::Connect, None);
        let missing = u64::from(session.plan.sources).saturating_sub(tally.answered[0]);
        interrupt::check("connecting")?;
        if missing > 0 {
            return Err(session.unconnected(missing, &tally));
        }
        Ok(session)
    }

    /// The error if sockets or connections could not be used.
    fn unconnected(&self, missing: u64, tally: &Tally) -> RunError {
        let (sources, cause) = (self.plan.sources, cause(tally));
        let targets = self.site.targets.to_string();
        let tracker = match self.plan.transport.protocol {
            Protocol::Udp => return RunError::NoConnectionIds { targets, missing, sources, cause },
            Protocol::Http => "an HTTP tracker",
            Protocol::Ws => "a WebTorrent tracker on this path",
        };
        RunError::NoConnections { targets, missing, sources, cause, tracker }
    }

    /// Announces every peer once, and reads from the tracker how many it has.
    ///
    /// # Errors
    /// If the tracker stops responding.
    pub(crate) fn fill(&mut self) -> Result<Filled, RunError> {
        let peers = u64::from(self.plan.peers);
        let tally = self.heard_phase("filling", Task::Fill, Some(peers))?;
        let both = self.plan.families == Families::Both;
        let has_scrape = self.site.endpoint.as_ref().is_none_or(|it| scrapes(&self.plan, it));
        let mut scraped = None;
        if !both && has_scrape {
            let torrents = u64::from(self.plan.torrents) / u64::from(self.plan.scrape_hashes);
            let counted = self.heard_phase("counting", Task::Verify, Some(torrents))?;
            scraped = Some(counted.scraped_peers);
        }
        Ok(Filled { seconds: seconds(tally.elapsed_ns), resident: self.resident(), scraped, tally })
    }

    fn resident(&self) -> u64 {
        self.generators.iter().map(|it| it.resident()).sum()
    }

    /// Sends the plan's mix for a period.
    ///
    /// # Errors
    /// If the tracker stops responding.
    pub(crate) fn load(&mut self, name: &'static str, duration_s: f64) -> Result<Tally, RunError> {
        let threads = f64::from(self.plan.threads);
        let rate = self.plan.rate.map(|it| real(it) / threads);
        let expected = rate.map(|it| whole(it * threads * duration_s));
        let task = Task::Load { duration_ns: ns(duration_s), rate };
        self.heard_phase(name, task, expected)
    }

    /// The resources that the tracker's process has used so far.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.site.pid.and_then(usage)
    }

    /// A phase in which the tracker must not stop responding.
    fn heard_phase(
        &mut self,
        phase: &'static str,
        task: Task,
        expected: Option<u64>,
    ) -> Result<Tally, RunError> {
        let (tally, silent) = self.phase(phase, task, expected);
        if !silent {
            return Ok(tally);
        }
        let (targets, responses) = (self.site.targets.to_string(), tally.answered_all());
        Err(RunError::Silent { targets, phase, responses, cause: cause(&tally) })
    }

    /// One phase on all threads, with a progress bar on a terminal. True if it was aborted because
    /// the tracker had stopped responding.
    fn phase(&mut self, name: &'static str, task: Task, expected: Option<u64>) -> (Tally, bool) {
        let progress = Arc::new(AtomicU64::new(0));
        let bar = Progress::new(name, task, expected, progress.clone());
        let cpus = &self.site.cpus;
        let runs: Vec<Run> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .generators
                .iter_mut()
                .enumerate()
                .map(|(index, generator)| {
                    let (cpu, progress) = (cpus.get(index).copied(), &*progress);
                    scope.spawn(move || {
                        // Unpinned, it measures as well, but with more noise.
                        let _ = cpu.map(pin);
                        generator.run(task, progress)
                    })
                })
                .collect();
            while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                bar.update();
                std::thread::sleep(Duration::from_millis(20));
            }
            threads.into_iter().filter_map(|it| it.join().ok()).collect()
        });
        bar.clear();
        let silent = runs.iter().any(|it| it.silent);
        let mut tallies = runs.into_iter().map(|it| it.tally);
        let mut sum = tallies.next().unwrap_or_else(|| Tally::new(1, 0));
        tallies.for_each(|it| sum.merge(&it));
        (sum, silent)
    }
}

/// Why a tracker does not respond, as far as the kernel or responses show.
fn cause(tally: &Tally) -> String {
    let wrong = || Invalid::ALL.into_iter().find(|it| tally.invalid[*it as usize] > 0);
    if let Some(failure) = &tally.failure {
        failure.clone()
    } else if tally.unreachable > 0 {
        "connection refused: nothing listens there".to_owned()
    } else if let Some(wrong) = wrong() {
        wrong.label().to_owned()
    } else {
        "no response".to_owned()
    }
}

/// Whether the tracker can be scraped.
fn scrapes(plan: &Plan, endpoint: &Endpoint) -> bool {
    plan.transport.protocol == Protocol::Ws || endpoint.scrape_target.is_some()
}

/// Sockets and their peers, by thread.
fn datagram_load(plan: &Plan, site: &Site) -> Result<Vec<Load>, RunError> {
    let sources = open(plan, &site.targets)?;
    let seats: Vec<Seat> =
        sources.iter().map(|it| Seat { lane: it.lane, lanes: it.lanes }).collect();
    let plan = Arc::new(plan.clone());
    let clients = (0..).zip(sources).zip(populate(&plan, &seats)?);
    let clients = clients.map(|((at, source), peers)| (at, source, peers)).collect();
    let loads = by_thread(&plan, clients).into_iter().map(|(clients, torrents)| {
        Box::new(Generator::new(&plan, site.clock, clients, torrents)) as Load
    });
    Ok(loads.collect())
}

/// Connections and their peers, by thread. The plan is reduced to what they can have.
fn stream_load(plan: &mut Plan, site: &Site, endpoint: &Endpoint) -> Result<Vec<Load>, RunError> {
    descriptors::raise(plan.sources.into())?;
    let origins = origins(plan, &site.targets)?;
    let seats: Vec<Seat> =
        origins.iter().map(|it| Seat { lane: it.lane, lanes: it.lanes }).collect();
    let mut peers = populate(plan, &seats)?;
    if plan.transport.protocol == Protocol::Ws {
        // A socket is one peer of a torrent, whatever the ports of others.
        peers.iter_mut().for_each(keep_one_a_torrent);
        let left: usize = peers.iter().map(Vec::len).sum();
        plan.peers = u32::try_from(left).unwrap_or(plan.peers);
    }
    if !scrapes(plan, endpoint) {
        plan.mix.scrape = 0;
    }
    let plan = Arc::new(plan.clone());
    let clients = (0..).zip(origins).zip(peers);
    let clients = clients.map(|((at, origin), peers)| (at, origin, peers)).collect();
    by_thread(&plan, clients)
        .into_iter()
        .map(|(clients, torrents)| {
            let made = stream::Generator::new(&plan, endpoint, site.clock, clients, torrents);
            made.map(|it| Box::new(it) as Load).map_err(RunError::Epoll)
        })
        .collect()
}

fn keep_one_a_torrent(peers: &mut Vec<Peer>) {
    let mut seen = HashSet::new();
    peers.retain(|it| seen.insert(it.torrent));
}

/// Distributes things among threads, with each thread's part of the torrents.
fn by_thread<T>(plan: &Plan, things: Vec<T>) -> Vec<(Vec<T>, Range<u32>)> {
    let mut things = things.into_iter();
    let part = |thread| {
        let count = share(plan.sources.into(), thread, plan.threads).len();
        let torrents = share(plan.torrents, thread, plan.threads);
        (things.by_ref().take(count).collect(), torrents)
    };
    (0..plan.threads).map(part).collect()
}

/// Runs a plan against a tracker that already responds.
///
/// # Errors
/// One sentence with the cause.
pub(crate) fn run(plan: &Plan, site: &Site) -> Result<Outcome, RunError> {
    let start = site.pid.and_then(usage);
    let mut session = Session::open(plan, site)?;
    // The cost of open connections is not a cost of peers; `hold` measures it.
    let start = if site.endpoint.is_some() { session.usage() } else { start };
    interrupt::check("connecting")?;
    let filled = plan.fill.then(|| session.fill()).transpose()?;
    interrupt::check("filling")?;
    if plan.warmup_s > 0.0 {
        session.load("warming up", plan.warmup_s)?;
    }
    interrupt::check("warming up")?;
    let own = || usage(std::process::id()).unwrap_or_default();
    let (before, own_before) = (session.usage(), own());
    let tally = session.load("measuring", plan.duration_s)?;
    let (after, own_usage) = (session.usage(), [own_before, own()]);
    let usage = start.zip(before).zip(after).map(|((start, before), after)| [start, before, after]);
    let resident = session.resident();
    let plan = Plan::clone(&session.plan);
    let (pid, is_partial) = (site.pid, interrupt::is_requested());
    Ok(Outcome { plan, filled, tally, resident, usage, own_usage, pid, is_partial })
}

/// One thread's part of `count` things.
fn share(count: u32, thread: u16, threads: u16) -> Range<u32> {
    let at = |index: u16| {
        let scaled = u64::from(count) * u64::from(index) / u64::from(threads);
        u32::try_from(scaled).unwrap_or(count)
    };
    at(thread)..at(thread + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_everything_once() {
        let parts: Vec<_> = (0..3).flat_map(|it| share(10, it, 3)).collect();
        assert_eq!(parts, (0..10).collect::<Vec<_>>());
    }
}
