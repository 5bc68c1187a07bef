//! A run from end to end: sockets and peers, connection ids, fill, warm-up, the measured phase; one
//! generator thread per CPU given, and what the tracker's process used meanwhile.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use skep::sys::affinity::pin;
use skep::sys::clock::Clock;

use crate::generator::{Generator, Task};
use crate::numbers::{ns, real, seconds, whole};
use crate::plan::{Families, Plan};
use crate::population::{Peer, Seat, populate};
use crate::process::{Usage, usage};
use crate::sources::{Source, Targets, open};
use crate::tally::Tally;

/// Where and with what a run happens.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    /// The trackers.
    pub(crate) targets: Targets,
    /// The tracker's process, where it runs on this host.
    pub(crate) pid: Option<u32>,
    /// CPUs of the generator's threads, in order; threads beyond them are not pinned.
    pub(crate) cpus: Vec<usize>,
    /// The clock of this process.
    pub(crate) clock: Clock,
}

/// What filling did.
#[derive(Clone, Debug)]
pub(crate) struct Filled {
    /// How long it took.
    pub(crate) seconds: f64,
    /// Peers whose announce was answered.
    pub(crate) resident: u64,
    /// Peers that the tracker's own scrape counts add up to; `None` where not asked (a tracker
    /// that keeps both families apart would name half of each).
    pub(crate) scraped: Option<u64>,
    /// Its counts.
    pub(crate) tally: Tally,
}

/// A finished run.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// The fill, where the plan has one.
    pub(crate) filled: Option<Filled>,
    /// Counts of the measured phase.
    pub(crate) tally: Tally,
    /// Peers resident at the end, as far as the generator knows.
    pub(crate) resident: u64,
    /// The process before anything was sent, before and after the measured phase.
    pub(crate) usage: Option<[Usage; 3]>,
    /// This process before and after the measured phase.
    pub(crate) own_usage: [Usage; 2],
}

/// Sockets, peers and threads of a run.
pub(crate) struct Session {
    plan: Arc<Plan>,
    site: Site,
    generators: Vec<Generator>,
}

impl Session {
    /// Opens the sockets, makes the peers, and gets a connection id for every socket.
    ///
    /// # Errors
    /// One sentence with the cause: a source that cannot be used, a tracker that does not answer.
    pub(crate) fn open(plan: &Plan, site: &Site) -> Result<Self, String> {
        plan.check()?;
        let sources = open(plan, &site.targets)?;
        let seats: Vec<Seat> =
            sources.iter().map(|it| Seat { lane: it.lane, lanes: it.lanes }).collect();
        let peers = populate(plan, &seats)?;
        let plan = Arc::new(plan.clone());
        let clients: Vec<(u16, Source, Vec<Peer>)> =
            (0..).zip(sources).zip(peers).map(|((at, source), it)| (at, source, it)).collect();
        let mut clients = clients.into_iter();
        let threads = plan.threads;
        let generators = (0..threads).map(|thread| {
            let count = share(plan.sources.into(), thread, threads).len();
            let torrents = share(plan.torrents, thread, threads);
            let clients = clients.by_ref().take(count).collect();
            Generator::new(&plan, site.clock, clients, torrents)
        });
        let generators = generators.collect();
        let mut session = Self { plan: Arc::clone(&plan), site: site.clone(), generators };
        let tally = session.phase("connecting", Task::Connect, None);
        if tally.answered[0] < u64::from(plan.sources) {
            let refused = if tally.unreachable > 0 { " (nothing listens there)" } else { "" };
            return Err(format!(
                "{} of {} sockets got no connection id within 5 s{refused}: is it a UDP tracker, \
                 and does it accept these sources?",
                u64::from(plan.sources) - tally.answered[0],
                plan.sources
            ));
        }
        Ok(session)
    }

    /// Announces every peer once and asks the tracker how many it holds.
    pub(crate) fn fill(&mut self) -> Filled {
        let peers = u64::from(self.plan.peers);
        let tally = self.phase("filling", Task::Fill, Some(peers));
        let both = self.plan.families == Families::Both;
        let scraped = (!both).then(|| {
            let torrents = u64::from(self.plan.torrents) / u64::from(self.plan.scrape_hashes);
            self.phase("counting", Task::Verify, Some(torrents)).scraped_peers
        });
        let resident = self.generators.iter().map(Generator::resident).sum();
        Filled { seconds: seconds(tally.elapsed_ns), resident, scraped, tally }
    }

    /// The plan's mix for some time.
    pub(crate) fn load(&mut self, name: &'static str, duration_s: f64) -> Tally {
        let threads = f64::from(self.plan.threads);
        let rate = self.plan.rate.map(|it| real(it) / threads);
        let expected = rate.map(|it| whole(it * threads * duration_s));
        let task = Task::Load { duration_ns: ns(duration_s), rate };
        self.phase(name, task, expected)
    }

    /// What the tracker's process has used so far.
    pub(crate) fn usage(&self) -> Option<Usage> {
        self.site.pid.and_then(usage)
    }

    /// One phase on all threads, with a progress bar where somebody watches.
    fn phase(&mut self, name: &'static str, task: Task, expected: Option<u64>) -> Tally {
        let progress = AtomicU64::new(0);
        let bar = progress_bar(name, expected);
        let cpus = &self.site.cpus;
        let tallies: Vec<Tally> = std::thread::scope(|scope| {
            let threads: Vec<_> = self
                .generators
                .iter_mut()
                .enumerate()
                .map(|(index, generator)| {
                    let (cpu, progress) = (cpus.get(index).copied(), &progress);
                    scope.spawn(move || {
                        // Unpinned, it measures as well, only with more noise.
                        let _ = cpu.map(pin);
                        generator.run(task, progress)
                    })
                })
                .collect();
            while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                bar.set_position(progress.load(Ordering::Relaxed));
                std::thread::sleep(Duration::from_millis(20));
            }
            threads.into_iter().filter_map(|it| it.join().ok()).collect()
        });
        bar.finish_and_clear();
        let mut tallies = tallies.into_iter();
        let mut sum = tallies.next().unwrap_or_else(|| Tally::new(1, 0));
        tallies.for_each(|it| sum.merge(&it));
        sum
    }
}

/// Runs a plan against a tracker that answers already.
///
/// # Errors
/// One sentence with the cause.
pub(crate) fn run(plan: &Plan, site: &Site) -> Result<Outcome, String> {
    let start = site.pid.and_then(usage);
    let mut session = Session::open(plan, site)?;
    let filled = plan.fill.then(|| session.fill());
    if plan.warmup_s > 0.0 {
        session.load("warming up", plan.warmup_s);
    }
    let own = || usage(std::process::id()).unwrap_or_default();
    let (before, own_before) = (session.usage(), own());
    let tally = session.load("measuring", plan.duration_s);
    let (after, own_usage) = (session.usage(), [own_before, own()]);
    let usage = start.zip(before).zip(after).map(|((start, before), after)| [start, before, after]);
    let resident = session.generators.iter().map(Generator::resident).sum();
    Ok(Outcome { filled, tally, resident, usage, own_usage })
}

/// One thread's part of `count` things.
fn share(count: u32, thread: u16, threads: u16) -> Range<u32> {
    let at = |it: u16| {
        let scaled = u64::from(count) * u64::from(it) / u64::from(threads);
        u32::try_from(scaled).unwrap_or(count)
    };
    at(thread)..at(thread + 1)
}

/// Draws nothing where standard error is no terminal.
fn progress_bar(name: &'static str, expected: Option<u64>) -> ProgressBar {
    let (bar, template) = match expected {
        Some(length) => (
            ProgressBar::new(length),
            "{msg:>10} [{bar:40}] {human_pos}/{human_len} {per_sec} {eta}",
        ),
        None => (ProgressBar::new_spinner(), "{msg:>10} {human_pos} answers {per_sec} {elapsed}"),
    };
    let style = ProgressStyle::with_template(template);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(name)
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
