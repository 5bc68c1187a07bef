//! The control thread: admin pages, signals, metrics once a second, the orderly end.

pub(crate) mod admin_connections;
pub(crate) mod admin_listener;
pub(crate) mod drain;
pub(crate) mod kernel_filter;
pub(crate) mod process;
mod proxy_watch;
pub(crate) mod ready_line;
pub(crate) mod reload;
pub(crate) mod reserve;
pub(crate) mod service_manager;
pub(crate) mod signals;

use std::future::pending;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::admin::{self, Process as _};
use crate::config::LogFormat;
use crate::server::admin_address::AdminAddressFile;
use crate::server::log::OPERATOR;
use crate::server::metrics::Metrics;
use crate::server::options;
use crate::server::snapshots::Contents;
use crate::server::sockets::handover::{self, Predecessor, Successor, TakeoverOffer};
use crate::server::sockets::inherited::OwnedSockets;
use crate::server::workers::WorkerExits;
use crate::server::workers::datagram::Workers;
use crate::server::workers::stream::Streams;
use crate::server::{StartError, StateDirectoryError};
use crate::sys::serving_lock::ServingLock;
use drain::{Running, ShutdownReason, Successors};
use process::ProcessState;
use ready_line::ReadyLine;
use reload::{ReloadJob, ReloadQueue, Reloader};
use service_manager::ServiceManager;
use signals::Signals;

/// How often to check whether every worker has made its first turn.
const START_POLL: Duration = Duration::from_millis(1);

/// How long a disk may take to write the address of the admin listener, or to remove it.
const ADDRESS_MAX: Duration = Duration::from_secs(1);

/// How long pages under way may take at the end.
const LAST_PAGES_MAX: Duration = Duration::from_secs(1);

/// How long an idle thread is kept: longer than any process runs.
const FOREVER: Duration = Duration::from_secs(1 << 32);

/// How long a successor that has to end waits for the predecessor's message that it has left.
const RELIEF_MAX: Duration = Duration::from_secs(5);

/// What the control thread needs.
pub(crate) struct Control {
    pub(crate) workers: Workers,
    pub(crate) streams: Streams,
    /// Receives the end of each worker.
    pub(crate) ended: WorkerExits,
    pub(crate) metrics: Metrics,
    pub(crate) reloader: Reloader,
    pub(crate) admin: TcpListener,
    /// Written to standard output once all listeners respond.
    pub(crate) ready_line: ReadyLine,
    pub(crate) manager: ServiceManager,
    /// Serves until this process does.
    pub(crate) predecessor: Option<Predecessor>,
    /// All sockets, to hand over.
    pub(crate) owned: Arc<OwnedSockets>,
}

/// Created before anything that takes time: from here on a signal is queued instead of ending the
/// process.
pub(crate) struct ControlRuntime {
    runtime: Runtime,
    signals: Signals,
}

impl ControlRuntime {
    /// Starts to receive signals.
    pub(crate) fn new() -> Result<Self, StartError> {
        // Threads for blocking work are kept: one is started before this process serves. If no
        // other can be started later, blocking work waits for it and the process does not end.
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
pub(crate) fn run(base: ControlRuntime, control: Control) -> Result<(), StartError> {
    let outcome = base.runtime.block_on(serve(control, base.signals));
    // Everything that matters has ended. Do not wait for a disk that hangs, or for a predecessor.
    base.runtime.shutdown_timeout(LAST_PAGES_MAX);
    outcome
}

async fn serve(control: Control, mut signals: Signals) -> Result<(), StartError> {
    let Control { workers, mut streams, mut ended, metrics, reloader, admin, .. } = control;
    let Control { mut ready_line, manager, predecessor, owned, .. } = control;
    let context = reloader.context.clone();
    let state = Arc::new(ProcessState::new(context.clone(), metrics));
    let pages = admin::router(state.clone());
    let listener = tokio::net::TcpListener::from_std(admin)
        .map_err(|error| StartError::lacking("cannot serve the admin pages", &error))?;
    let handover_path = options::handover_path(&reloader.config);
    let state_home = options::state_home(&reloader.config);
    let logs_json = reloader.config.log.format == LogFormat::Json;
    let mut reloads = ReloadQueue::start(reloader)
        .map_err(|error| StartError::lacking("cannot start a thread", &error))?;
    context.snapshots.start(Contents {
        store: context.store.clone(),
        access: context.access_manager.access().clone(),
        memory: context.memory.clone(),
        options: context.options.clone(),
        clock: context.clock,
    })?;
    let (has_predecessor, mut taken_over) = (predecessor.is_some(), None);
    let lock = predecessor.as_ref().map(Predecessor::lock);
    let _held = lock.clone(); // kept until the end of this function
    tokio::select! {
        biased;
        // A process that has to end before it serves leaves its predecessor as it is.
        () = signals.stop(), if has_predecessor => return Ok(()),
        prepared = prepare(&workers, &streams, &mut ended) => prepared?,
    }
    if let Some(predecessor) = predecessor {
        taken_over =
            match replace_predecessor(&state, predecessor, &mut streams, &mut signals).await? {
                TakeoverOutcome::Serves(taken_over) => taken_over,
                TakeoverOutcome::Ends => return Ok(()),
            };
    }
    // No other process serves. From here on only a regular end ends this process.
    context.begin_cluster(!has_predecessor)?;
    let beginning = context.clone();
    let _ = spawn_blocking(move || beginning.begin_xdp()).await;
    ready_line.xdp = context.xdp.attached();
    let (close_admin, closed) = oneshot::channel::<()>();
    let (connections, timeouts) = (state.admin_connections.clone(), admin_listener::TIMEOUTS);
    let admin = tokio::spawn(admin_listener::serve(listener, pages, connections, timeouts, closed));
    let restoring = state.clone();
    spawn_blocking(move || restoring.restore_history());
    state.renew_pages();
    state.started.store(true, Ordering::Relaxed);
    let (successors, mut successor) = mpsc::unbounded_channel();
    let (keep, is_managed) = (streams.keeper(), owned.is_managed());
    let address_file = write_address(state_home, ready_line.admin).await;
    let offer = offer(&state, handover_path, (owned, keep), (successors, lock));
    ready_line.print(logs_json);
    manager.ready(&ready_line.to_string());
    drain::await_saved(taken_over, context.snapshots.clone());
    notify_watchdog(&state, &manager);
    let events = (&mut ended, &mut successor, &mut signals);
    let outcome =
        run_until_shutdown(&state, (&workers, &streams), events, &mut reloads, &manager).await;
    let drain = state.drain();
    let running = Running { workers, streams, close_admin, address_file, drain, is_managed };
    let events = (&mut signals, &mut ended, &mut successor);
    let outcome = drain::shut_down(&state, outcome, running, &manager, events).await;
    drop(offer);
    let board = state.board();
    let last = async { tokio::join!(admin, board.emptied()) };
    let _ = timeout(LAST_PAGES_MAX, last).await;
    outcome
}

/// Puts the address of the admin listener in the state directory, if there is one.
async fn write_address(
    state_home: Result<PathBuf, StateDirectoryError>,
    admin: SocketAddr,
) -> Option<AdminAddressFile> {
    let directory = state_home.ok()?;
    let writing = spawn_blocking(move || AdminAddressFile::write(&directory, admin));
    let written = match timeout(ADDRESS_MAX, writing).await {
        Ok(Ok(written)) => written,
        Ok(Err(_)) => pending().await, // a panic, which ends the process
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    match written {
        Ok(file) => Some(file),
        // The start has logged that there is no state directory.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            info!(%error, "address of the admin listener not kept, subcommands use the settings");
            None
        }
    }
}

/// The outcome of a take-over.
enum TakeoverOutcome {
    /// This process serves. The predecessor, if it still runs, has yet to save its state.
    Serves(Option<Predecessor>),
    /// This process was requested to end before it served.
    Ends,
}

/// Waits until all workers could serve, and acquires what is needed later.
async fn prepare(
    workers: &Workers,
    streams: &Streams,
    ended: &mut WorkerExits,
) -> Result<(), StartError> {
    await_first_turns(workers, streams, ended).await?;
    let _ = spawn_blocking(|| ()).await; // starts the thread for blocking work
    reserve::check()
}

/// Takes over from the predecessor. Everything that could fail has been done.
async fn replace_predecessor(
    state: &ProcessState,
    predecessor: Predecessor,
    streams: &mut Streams,
    signals: &mut Signals,
) -> Result<TakeoverOutcome, StartError> {
    let mut relief = pin!(drain::take_over(predecessor, streams));
    tokio::select! {
        taken_over = &mut relief => return Ok(TakeoverOutcome::Serves(taken_over?)),
        () = signals.stop() => {}
    }
    // The predecessor is about to leave. If it does, this process has to end everything in order.
    info!(target: OPERATOR, "stop requested, waiting for the predecessor to leave");
    match timeout(RELIEF_MAX, relief).await {
        Ok(taken_over) => {
            state.asked_to_stop.notify_one();
            Ok(TakeoverOutcome::Serves(taken_over?))
        }
        Err(_) => {
            warn!(target: OPERATOR, "predecessor did not leave in time: see its log");
            Ok(TakeoverOutcome::Ends)
        }
    }
}

/// Offers the sockets to a successor. If that fails, everything else continues.
fn offer(
    state: &Arc<ProcessState>,
    handover_path: Result<PathBuf, StateDirectoryError>,
    (owned, keep): (Arc<OwnedSockets>, impl Fn() + Send + 'static),
    (successors, lock): (mpsc::UnboundedSender<Successor>, Option<Arc<ServingLock>>),
) -> Option<TakeoverOffer> {
    let (access_manager, offering) = (state.context.access_manager.clone(), state.clone());
    let prepare = Box::new(move || {
        if offering.stopping.load(Ordering::Relaxed) {
            let reason = "it is stopping: wait for its end, then start without --take-over";
            return Err(io::Error::other(reason));
        }
        offering.flush();
        // From now on a successor may have the listeners, whatever happens to this process.
        keep();
        Ok(())
    });
    let has_predecessor = lock.is_some();
    let made = handover_path.map_err(|error| error.to_string()).and_then(|path| {
        let make = || {
            let lock = lock.map_or_else(|| ServingLock::new().map(Arc::new), Ok)?;
            let own =
                handover::HandoverContext { owned, lock, access_manager, prepare, successors };
            TakeoverOffer::make(&path, own, has_predecessor)
        };
        make().map_err(|error| format!("cannot listen on {}: {error}", path.display()))
    });
    made.inspect_err(|reason| {
        info!(error = %reason, "take-over not available");
    })
    .ok()
}

/// Resets the service manager's watchdog, as long as every worker makes turns.
fn notify_watchdog(state: &Arc<ProcessState>, manager: &ServiceManager) {
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
    ended: &mut WorkerExits,
) -> Result<(), StartError> {
    loop {
        tokio::select! {
            Some(end) = ended.recv() => return Err(end.into()),
            () = sleep(START_POLL) => {}
        }
        if workers.are_serving() && streams.are_prepared() {
            return Ok(());
        }
    }
}

/// Ends of workers, successors that could serve, and signals.
type ControlEvents<'a> = (&'a mut WorkerExits, &'a mut Successors, &'a mut Signals);

/// Handles timers and signals, until one of them or a worker's failure requires the end.
async fn run_until_shutdown(
    state: &Arc<ProcessState>,
    running: (&Workers, &Streams),
    (ended, successor, signals): ControlEvents<'_>,
    reloads: &mut ReloadQueue,
    manager: &ServiceManager,
) -> Result<ShutdownReason, StartError> {
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut minute = interval(Duration::from_secs(60));
    minute.set_missed_tick_behavior(MissedTickBehavior::Delay);
    minute.reset(); // at the start there is nothing to flush, and the status was just sent
    let mut flushing: Option<JoinHandle<()>> = None;
    loop {
        tokio::select! {
            _ = minute.tick() => {
                manager.status(&state.in_short());
                // A disk that hangs holds one thread, and not one more each minute.
                if flushing.as_ref().is_none_or(JoinHandle::is_finished) {
                    let state = state.clone();
                    flushing = Some(spawn_blocking(move || state.flush()));
                }
            }
            _ = second.tick() => {
                state.tick_and_renew();
                reloads.begin(ReloadJob::Follow);
            }
            _ = signals.reload.recv(), if reloads.is_idle() => {
                manager.reloading();
                reloads.begin(ReloadJob::Reload);
            }
            job = reloads.finished() => if job == ReloadJob::Reload {
                state.renew_pages();
                manager.ready("reloaded");
            },
            _ = signals.terminate.recv() => {
                break info!(target: OPERATOR, "stopping: SIGTERM received");
            }
            _ = signals.interrupt.recv() => {
                break info!(target: OPERATOR, "stopping: SIGINT received");
            }
            () = state.is_asked_to_stop() => {
                let event = "stopping: requested through the API or during a take-over";
                break info!(target: OPERATOR, "{event}");
            }
            Some(arrived) = successor.recv() => {
                let yielding = drain::yield_to_successor(state, arrived, running, signals);
                if let Some(reason) = yielding.await {
                    return Ok(reason);
                }
            }
            Some(end) = ended.recv() => return Err(end.into()),
        }
    }
    Ok(ShutdownReason::Requested)
}
