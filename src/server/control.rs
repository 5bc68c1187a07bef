//! The control thread: the admin pages, signals, figures once a second, the orderly end.

use std::io::Write as _;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::access::disk::{Office, Trouble};
use crate::config::Config;
use crate::frontend::admin::live::Board;
use crate::frontend::admin::{self, Process, Token};
use crate::frontend::stats::{Pages, Stats};
use crate::metrics::{StreamCounters, WorkerCounters};
use crate::server::StartError;
use crate::server::bouncer::Bouncer;
use crate::server::drain::{self, Reason, Running, Successors};
use crate::server::exporter::Exporter;
use crate::server::handover::{self, Offer, Predecessor, Successor};
use crate::server::inheritance::Estate;
use crate::server::log::OPERATOR;
use crate::server::notify::Manager;
use crate::server::options;
use crate::server::reload::{Errand, Reloader, Reloads};
use crate::server::reserve;
use crate::server::seats::Seats;
use crate::server::snapshots::{STALLED_AGAIN_MIN, STALLED_MAX, Snapshots, has_ended};
use crate::server::statistics::{Counters, Found, Statistics};
use crate::server::streams::Streams;
use crate::server::workers::{End, Shared, Workers};
use crate::store::StoreTotals;
use crate::sys::serving_lock::ServingLock;
use crate::time::Now;
use crate::tracker::{Listing, SourceAnomaly};

/// Nanoseconds without a turn after which a worker counts as stuck. It waits 50 ms at most.
const HEARTBEAT_NS_MAX: u64 = 5_000_000_000;

/// How often to look whether all workers have gone round for the first time.
const START_POLL: Duration = Duration::from_millis(1);

/// Seconds between two warnings that clients' addresses do not reach us.
const ODDITY_EVERY_S: u64 = 600;

/// How long pages that are under way at the end may take.
const LAST_PAGES_MAX: Duration = Duration::from_secs(1);

/// How long an idle thread stays: beyond the life of any process.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// How long a successor that is told to end waits for the predecessor's word that it has left.
const RELIEF_MAX: Duration = Duration::from_secs(5);

/// What the control thread works with.
pub(super) struct Control {
    pub(super) workers: Workers,
    pub(super) streams: Streams,
    /// Hears of each worker's end.
    pub(super) ended: mpsc::UnboundedReceiver<End>,
    pub(super) exporter: Exporter,
    pub(super) reloader: Reloader,
    pub(super) admin: TcpListener,
    /// Written to standard output once everything answers.
    pub(super) ready_line: String,
    pub(super) manager: Manager,
    /// Serves until this process does.
    pub(super) predecessor: Option<Predecessor>,
    /// All sockets, to pass on.
    pub(super) estate: Arc<Estate>,
    /// How datagrams are moved.
    pub(super) backend: &'static str,
}

/// Where workers tell of their end.
pub(super) type Ends = mpsc::UnboundedReceiver<End>;

/// What comes before anything that takes time: from here on, a signal waits until it is served
/// instead of killing the process.
pub(super) struct Base {
    runtime: Runtime,
    signals: Signals,
}

impl Base {
    /// Starts to listen for signals.
    pub(super) fn new() -> Result<Self, StartError> {
        // Threads for what blocks stay: there is one before anybody serves, and where no other can
        // be started later, what blocks waits for it instead of ending the process.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .thread_keep_alive(FOREVER)
            .build()
            .map_err(|error| StartError::lacking("cannot start the control thread", &error))?;
        let signals = {
            let _within = runtime.enter();
            Signals::new()
        };
        let signals =
            signals.map_err(|error| StartError::lacking("cannot listen for signals", &error))?;
        Ok(Self { runtime, signals })
    }
}

/// Serves until a signal or a failure ends it. Blocks.
pub(super) fn run(base: Base, control: Control) -> Result<(), StartError> {
    let outcome = base.runtime.block_on(serve(control, base.signals));
    // All that matters has ended; a disk that hangs, or a predecessor, must not be waited for.
    base.runtime.shutdown_timeout(LAST_PAGES_MAX);
    outcome
}

async fn serve(control: Control, mut signals: Signals) -> Result<(), StartError> {
    let Control { workers, mut streams, mut ended, exporter, reloader, admin, .. } = control;
    let Control { ready_line, manager, predecessor, estate, backend, .. } = control;
    let state = Arc::new(State::new(&reloader, exporter, (&workers, &streams), backend));
    let pages = admin::router(state.clone());
    let listener = tokio::net::TcpListener::from_std(admin)
        .map_err(|error| StartError::lacking("cannot serve the admin pages", &error))?;
    Snapshots::start(&state.shared)?;
    let (has_predecessor, mut relieved) = (predecessor.is_some(), None);
    let lock = predecessor.as_ref().map(Predecessor::lock);
    let _held = lock.clone(); // until the end of this function, whatever else has it
    tokio::select! {
        biased;
        // Who is told to end before it serves leaves the predecessor where it is.
        () = signals.second(), if has_predecessor => return Ok(()),
        prepared = prepare(&workers, &streams, &mut ended) => prepared?,
    }
    if let Some(predecessor) = predecessor {
        relieved = match succeed(&state, predecessor, &mut streams, &mut signals).await? {
            Succession::Serves(relieved) => relieved,
            Succession::Ends => return Ok(()),
        };
    }
    // Everybody else has gone. From here on nothing ends this process that is not its end.
    let (close_admin, closed) = oneshot::channel::<()>();
    let (seats, patience) = (state.seats.clone(), super::admin::PATIENCE);
    let admin = tokio::spawn(super::admin::serve(listener, pages, seats, patience, closed));
    state.renew_pages();
    state.started.store(true, Ordering::Relaxed);
    let (successors, mut successor) = mpsc::unbounded_channel();
    let (keep, is_managed) = (streams.keeper(), estate.is_managed());
    let offer = offer(&state, &reloader, (estate, keep), (successors, lock));
    announce_ready(&ready_line);
    manager.ready(&ready_line);
    drain::await_saved(relieved, state.shared.snapshots.clone());
    feed_watchdog(&state, &manager);
    let heard = (&mut ended, &mut successor, &mut signals);
    let mut reloads = Reloads::new(reloader, state.clone());
    let outcome = watch(&state, (&workers, &streams), heard, &mut reloads, &manager).await;
    let drain_s = state.drain_s.load(Ordering::Relaxed);
    let running = Running { workers, streams, close_admin, drain_s, is_managed };
    let ears = (&mut signals, &mut ended, &mut successor);
    let outcome = drain::wind_down(&state, outcome, running, &manager, ears).await;
    drop(offer);
    let last = async { tokio::join!(admin, state.statistics.board.emptied()) };
    let _ = timeout(LAST_PAGES_MAX, last).await;
    outcome
}

/// What becomes of a successor.
enum Succession {
    /// It serves, and the predecessor, if it is there still, has yet to write down what it knows.
    Serves(Option<Predecessor>),
    /// It was told to end before.
    Ends,
}

/// Waits until all workers could serve, and sees to it that what is needed later is to be had.
async fn prepare(workers: &Workers, streams: &Streams, ended: &mut Ends) -> Result<(), StartError> {
    await_first_turns(workers, streams, ended).await?;
    let _ = spawn_blocking(|| ()).await; // from now on there is a thread for what blocks
    reserve::check()
}

/// Takes the predecessor's place. All that could fail has been done.
async fn succeed(
    state: &State,
    predecessor: Predecessor,
    streams: &mut Streams,
    signals: &mut Signals,
) -> Result<Succession, StartError> {
    let mut relief = pin!(drain::relieve(predecessor, streams));
    tokio::select! {
        relieved = &mut relief => return Ok(Succession::Serves(relieved?)),
        () = signals.second() => {}
    }
    // The predecessor is about to leave. If it does, this one has all to end in order.
    info!(target: OPERATOR, "told to stop: as soon as the predecessor has left");
    match timeout(RELIEF_MAX, relief).await {
        Ok(relieved) => {
            state.asked_to_stop.notify_one();
            Ok(Succession::Serves(relieved?))
        }
        Err(_) => {
            warn!(target: OPERATOR, "the predecessor has not said that it leaves: see its log");
            Ok(Succession::Ends)
        }
    }
}

/// Offers the sockets to a successor. Where that cannot be done, everything else goes on.
fn offer(
    state: &Arc<State>,
    reloader: &Reloader,
    (estate, keep): (Arc<Estate>, impl Fn() + Send + 'static),
    (successors, lock): (mpsc::UnboundedSender<Successor>, Option<Arc<ServingLock>>),
) -> Option<Offer> {
    let (office, offering) = (state.shared.office.clone(), state.clone());
    let prepare = Box::new(move || {
        if offering.stopping.load(Ordering::Relaxed) {
            return Err("it is stopping: wait for its end, then start without --take-over".into());
        }
        offering.flush();
        // From now on they may be the successor's as well, whatever becomes of this process.
        keep();
        Ok(())
    });
    let has_predecessor = lock.is_some();
    let made = options::handover_path(&reloader.config).and_then(|path| {
        let make = || {
            let lock = lock.map_or_else(|| ServingLock::new().map(Arc::new), Ok)?;
            let own = handover::Own { estate, lock, office, prepare, successors };
            Offer::make(&path, own, has_predecessor)
        };
        make().map_err(|error| format!("cannot listen on {}: {error}", path.display()))
    });
    made.inspect_err(|reason| {
        info!("`skep run --take-over` cannot replace this tracker: {reason}");
    })
    .ok()
}

/// Tells the service manager that this process lives, for as long as every worker goes round.
fn feed_watchdog(state: &Arc<State>, manager: &Manager) {
    let Some((every, feed)) = manager.watchdog() else { return };
    let state = state.clone();
    tokio::spawn(async move {
        let mut feeding = interval(every);
        feeding.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            feeding.tick().await;
            if state.live().is_ok() {
                feed.alive();
            }
        }
    });
}

/// Waits until every worker serves, or could.
async fn await_first_turns(
    workers: &Workers,
    streams: &Streams,
    ended: &mut mpsc::UnboundedReceiver<End>,
) -> Result<(), StartError> {
    loop {
        tokio::select! {
            Some(end) = ended.recv() => return Err(broken(end)),
            () = sleep(START_POLL) => {}
        }
        if workers.are_serving() && streams.are_prepared() {
            return Ok(());
        }
    }
}

/// Writes the ready line. Whoever closed standard output does not want it.
fn announce_ready(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
    info!(target: OPERATOR, "{line}");
}

/// Ends of workers, successors that could serve, and signals.
type Heard<'a> = (&'a mut Ends, &'a mut Successors, &'a mut Signals);

/// Does what the clock and signals ask for, until one of them or a worker's failure says to end.
async fn watch(
    state: &Arc<State>,
    running: (&Workers, &Streams),
    (ended, successor, signals): Heard<'_>,
    reloads: &mut Reloads,
    manager: &Manager,
) -> Result<Reason, StartError> {
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut minute = interval(Duration::from_secs(60));
    minute.set_missed_tick_behavior(MissedTickBehavior::Delay);
    minute.reset(); // at the start there is nothing to flush, and the status was just told
    loop {
        tokio::select! {
            _ = minute.tick() => {
                manager.status(&state.in_short());
                let state = state.clone();
                spawn_blocking(move || state.flush());
            }
            _ = second.tick() => {
                state.tick_and_renew();
                reloads.begin(Errand::FollowCertificate);
            }
            _ = signals.reload.recv(), if reloads.are_over() => {
                manager.reloading();
                reloads.begin(Errand::Reload);
            }
            errand = reloads.over() => if errand == Errand::Reload {
                state.renew_pages();
                manager.ready("reloaded");
            },
            _ = signals.terminate.recv() => break info!(target: OPERATOR, "stopping on SIGTERM"),
            _ = signals.interrupt.recv() => break info!(target: OPERATOR, "stopping on SIGINT"),
            () = state.is_asked_to_stop() => {
                break info!(target: OPERATOR, "stopping as it was asked to");
            }
            Some(it) = successor.recv() => {
                if let Some(reason) = drain::make_room(state, it, running, signals).await {
                    return Ok(reason);
                }
            }
            Some(end) = ended.recv() => return Err(broken(end)),
        }
    }
    Ok(Reason::Told)
}

/// A worker ended by itself.
pub(super) fn broken(End { worker, result }: End) -> StartError {
    let what = format!("worker {worker} cannot serve");
    match result {
        Err(error) => StartError::lacking(&what, &error),
        Ok(()) => StartError::Failed(what),
    }
}

/// The signals that mean something here.
pub(super) struct Signals {
    reload: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Waits for one that says to end.
    pub(super) async fn second(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// What the admin pages show.
pub(super) struct State {
    shared: Shared,
    workers: Vec<Arc<WorkerCounters>>,
    streams: Vec<Arc<StreamCounters>>,
    exporter: Mutex<Exporter>,
    started: AtomicBool,
    pub(super) stopping: AtomicBool,
    token: ArcSwap<Token>,
    /// By the API, or by a signal that came before anybody could obey it.
    asked_to_stop: Notify,
    /// When it was last said that clients' addresses do not reach us.
    warned_of_sources: Mutex<Option<Now>>,
    bouncer: Mutex<Bouncer>,
    /// Datagrams that the kernel had dropped when it was last said.
    drops_told: AtomicU64,
    /// How long to serve on once told to end.
    drain_s: AtomicU32,
    statistics: Statistics,
    /// Those at the admin listener.
    seats: Arc<Seats>,
}

impl State {
    fn new(
        reloader: &Reloader,
        exporter: Exporter,
        (workers, streams): (&Workers, &Streams),
        backend: &'static str,
    ) -> Self {
        let it = Self {
            shared: reloader.shared.clone(),
            workers: workers.counters.clone(),
            streams: streams.counters.clone(),
            exporter: Mutex::new(exporter),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            token: ArcSwap::default(),
            asked_to_stop: Notify::new(),
            warned_of_sources: Mutex::new(None),
            bouncer: Mutex::new(Bouncer::new()),
            drops_told: AtomicU64::new(0),
            drain_s: AtomicU32::new(0),
            seats: Arc::default(),
            statistics: Statistics::new(Counters {
                workers: workers.counters.clone(),
                streams: streams.counters.clone(),
                tallies: workers.tallies.iter().chain(&streams.tallies).cloned().collect(),
                backend,
            }),
        };
        it.apply(&reloader.config, reloader.token.clone());
        it
    }

    /// Writes the public statistics anew, if they are public.
    fn renew_pages(&self) {
        if self.shared.http.load().public_stats {
            self.shared.pages.store(Arc::new(Pages::of(&self.stats())));
        }
    }

    /// What is held, in a few words.
    fn in_short(&self) -> String {
        let totals = self.shared.store.totals();
        let peers: u64 = totals.seeders.iter().chain(&totals.leechers).sum();
        format!("serving: {} torrents, {peers} peers", totals.torrents)
    }

    /// Puts in force what settings say of the end, and the API's token.
    pub(super) fn apply(&self, config: &Config, token: Token) {
        self.token.store(Arc::new(token));
        self.drain_s.store(config.server.drain_s, Ordering::Relaxed);
    }

    /// Does what is due once a second.
    pub(super) fn tick_and_renew(&self) {
        let drops = self.tick(self.drops_told.load(Ordering::Relaxed));
        self.drops_told.store(drops, Ordering::Relaxed);
        self.renew_pages();
        self.show_figures(drops);
    }

    /// Puts up what the statistics page shows.
    fn show_figures(&self, socket_drops: u64) {
        let denied = self.bouncer.lock().unwrap_or_else(PoisonError::into_inner).denied();
        let state = self.ready().err().unwrap_or_else(|| "serving".into());
        let is_watched = self.statistics.board.viewers() > 0;
        let totals = self.shared.store.totals();
        let estimate = || self.shared.clients.estimate(self.now(), &totals);
        let clients = if is_watched { estimate() } else { Vec::new() };
        let store = stats_of(&totals, clients);
        let found = Found { socket_drops, denied, state, store };
        self.statistics.show(self.now(), &self.shared, found);
    }

    /// Tells everyone who has the statistics page open that there will be no more figures.
    pub(super) fn close_board(&self) {
        self.statistics.board.close();
    }

    /// Waits until the API, or a signal that came too early, says to end.
    pub(super) async fn is_asked_to_stop(&self) {
        self.asked_to_stop.notified().await;
    }

    /// The moment after some time from now.
    pub(super) fn now_and(&self, time: Duration) -> Now {
        self.now().plus_s(time.as_secs())
    }

    /// Writes down what passkeys were used for. What goes wrong is in the log, and kept.
    pub(super) fn flush(&self) {
        let _ = self.write_down();
    }

    /// Writes down all there is, for the last time. Blocks, but for no disk that hangs.
    pub(super) fn write_last(self: &Arc<Self>) {
        let (state, begun) = (self.clone(), self.now());
        let flushing = std::thread::Builder::new().name("flush".into());
        match flushing.spawn(move || state.flush()) {
            Ok(thread) if !has_ended(&thread, &AtomicU64::new(0), STALLED_MAX) => {
                let after_s = STALLED_MAX.as_secs();
                warn!(
                    target: OPERATOR,
                    "what passkeys were used for last is not written: the disk took {after_s} s"
                );
            }
            Ok(_) => {}
            Err(_) => self.flush(), // no thread is to be had
        }
        let took = Duration::from_nanos(self.now().ns_since(begun));
        self.shared.snapshots.stop(STALLED_MAX.saturating_sub(took).max(STALLED_AGAIN_MIN));
    }

    /// Takes the last snapshot. Blocks.
    pub(super) fn save_last(&self) {
        self.shared.snapshots.stop(STALLED_MAX);
    }

    fn write_down(&self) -> Result<(), Trouble> {
        let age_s_max = self.shared.tracker.load().peer_age_s_max;
        self.shared.office.flush(self.shared.clock.now(), age_s_max)
    }

    /// Brings the figures up to date, once a second. Takes and returns the drops seen so far.
    fn tick(&self, drops_before: u64) -> u64 {
        let mut exporter = self.exporter.lock().unwrap_or_else(PoisonError::into_inner);
        exporter.update(&self.shared.store.totals());
        exporter.update_memory(&self.shared.store.usage(), &self.shared.memory);
        let now = self.shared.clock.now();
        exporter.update_heartbeats(self.shared.clock.elapsed_ns_at(now));
        if let Some((elapsed_s, busy_ratio)) = exporter.tick(now) {
            self.shared.load.observe(elapsed_s, busy_ratio);
        }
        let anomaly = self.shared.sources.anomaly(now);
        exporter.update_load(self.shared.load.ratio(), &self.shared.tracker.load(), anomaly);
        self.warn_of(anomaly, now);
        exporter.update_access(&self.shared.office);
        let denied = self.bounce(&exporter, now);
        exporter.update_snapshots(&self.shared.snapshots.figures);
        exporter.update_viewers(&self.statistics.board, self.seats.closed());
        let drops = exporter.socket_drops();
        // The kernel counts what it was told to drop among what it had to.
        if drops > drops_before && denied == 0 {
            warn!(
                drops = drops - drops_before,
                "the kernel drops datagrams because receive queues are full; remedy: more \
                 workers or cores, or a larger udp.receive_buffer"
            );
        }
        drops
    }

    /// Denies the worst offenders in the kernel, if that is asked for; says how many are denied, or
    /// were until now.
    fn bounce(&self, exporter: &Exporter, now: Now) -> usize {
        let limits = self.shared.limits.load();
        let rate = limits.kernel_deny_rate;
        let is_wanted = rate > 0 && limits.enabled && !limits.dry_run;
        let offenders =
            if is_wanted { self.shared.limiter.heavy_hitters(now, rate) } else { Vec::new() };
        let mut bouncer = self.bouncer.lock().unwrap_or_else(PoisonError::into_inner);
        let before = bouncer.denied();
        bouncer.tick(now, &offenders, exporter.sockets());
        exporter.update_denied(bouncer.denied());
        bouncer.denied().max(before)
    }

    /// Says now and then that clients' addresses do not reach us.
    fn warn_of(&self, anomaly: Option<SourceAnomaly>, now: Now) {
        let Some(anomaly) = anomaly else { return };
        let mut warned = self.warned_of_sources.lock().unwrap_or_else(PoisonError::into_inner);
        if warned.is_some_and(|it| now < it.plus_s(ODDITY_EVERY_S)) {
            return;
        }
        *warned = Some(now);
        let found = match anomaly {
            SourceAnomaly::SingleAddress(address, share) => {
                format!("{:.0} % of all announces come from {address}", share * 100.0)
            }
            SourceAnomaly::Unroutable(share) => {
                let percent = share * 100.0;
                format!("{percent:.0} % of all announces come from addresses of no public network")
            }
        };
        warn!(
            target: OPERATOR,
            "{found}: something hides the clients' addresses, and peers that nobody can reach are \
             handed out; remedy: hostNetwork or externalTrafficPolicy: Local for a Kubernetes \
             service, host networking for a container, http.trusted_proxies for a reverse proxy"
        );
    }
}

/// What is held, as statistics have it.
fn stats_of(totals: &StoreTotals, clients: Vec<(String, String, u64)>) -> Stats {
    Stats {
        torrents: totals.torrents,
        active_torrents: totals.active_torrents,
        seeders: totals.seeders,
        leechers: totals.leechers,
        completed: totals.completed,
        clients,
    }
}

impl Process for State {
    fn metrics(&self) -> String {
        let mut exporter = self.exporter.lock().unwrap_or_else(PoisonError::into_inner);
        exporter.update(&self.shared.store.totals());
        exporter.update_memory(&self.shared.store.usage(), &self.shared.memory);
        exporter.update_access(&self.shared.office);
        exporter.update_heartbeats(self.shared.clock.elapsed_ns_at(self.now()));
        exporter.update_snapshots(&self.shared.snapshots.figures);
        exporter.update_viewers(&self.statistics.board, self.seats.closed());
        exporter.render()
    }

    fn live(&self) -> Result<(), String> {
        let now_ns = self.shared.clock.elapsed_ns_at(self.shared.clock.now());
        going_round("udp", self.workers.iter().map(|it| it.elapsed_ns.get()), now_ns)?;
        going_round("tcp", self.streams.iter().map(|it| it.elapsed_ns.get()), now_ns)
    }

    fn ready(&self) -> Result<(), String> {
        if self.stopping.load(Ordering::Relaxed) {
            return Err("stopping".into());
        }
        if self.shared.snapshots.is_restoring() {
            return Err("restoring".into());
        }
        self.started()
    }

    fn started(&self) -> Result<(), String> {
        if self.started.load(Ordering::Relaxed) { Ok(()) } else { Err("starting".into()) }
    }

    fn stats(&self) -> Stats {
        let totals = self.shared.store.totals();
        stats_of(&totals, self.shared.clients.estimate(self.now(), &totals))
    }

    fn board(&self) -> Arc<Board> {
        self.statistics.board.clone()
    }

    fn listing(&self) -> Listing {
        Listing::new(self.shared.store.clone())
    }

    fn office(&self) -> Arc<Office> {
        self.shared.office.clone()
    }

    fn now(&self) -> Now {
        self.shared.clock.now()
    }

    fn token(&self) -> Token {
        Token::clone(&self.token.load())
    }

    fn save(&self) -> Result<(), Trouble> {
        // Neither waits for the other's trouble to end.
        let written = self.write_down();
        self.shared.snapshots.save().map_err(Trouble::Snapshot).and(written)
    }

    fn shut_down(&self) {
        self.asked_to_stop.notify_one();
    }
}

/// Whether every worker of a kind has made a turn lately.
fn going_round(
    kind: &str,
    latest_ns: impl Iterator<Item = u64>,
    now_ns: u64,
) -> Result<(), String> {
    for (number, latest_ns) in latest_ns.enumerate() {
        let silent_ns = now_ns.saturating_sub(latest_ns);
        if silent_ns > HEARTBEAT_NS_MAX {
            let silent_ms = silent_ns / 1_000_000;
            return Err(format!("worker {kind}-{number} has made no turn for {silent_ms} ms"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_without_a_turn_for_five_seconds_is_stuck() {
        let latest_ns = [6_000_000_000, 2_000_000_000];
        assert_eq!(going_round("udp", latest_ns.into_iter(), 7_000_000_000), Ok(()));
        let said = going_round("udp", latest_ns.into_iter(), 7_001_000_000).unwrap_err();
        assert_eq!(said, "worker udp-1 has made no turn for 5001 ms");
    }
}
