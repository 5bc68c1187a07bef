//! How serving begins after a predecessor, and how it ends: at once, over a period, or for a
//! successor, which may arrive while this process ends. In each case every request that was taken
//! from a socket gets its response.

use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use crate::server::StartError;
use crate::server::admin_address::AdminAddressFile;
use crate::server::context::AppContext;
use crate::server::control::ADDRESS_MAX;
use crate::server::control::process::ProcessState;
use crate::server::control::service_manager::ServiceManager;
use crate::server::control::signals::Signals;
use crate::server::log::OPERATOR;
use crate::server::snapshots::Snapshots;
use crate::server::sockets::handover::{Predecessor, ServingSuccessor, Successor, TakeoverError};
use crate::server::workers::WorkerExits;
use crate::server::workers::datagram::Workers;
use crate::server::workers::stream::Streams;

/// Most time for the end besides the drain: connections, the last pages, the last snapshot.
const END_MAX: Duration = Duration::from_secs(60);

/// How long workers may take to pause: stream workers check ten times a second.
const REST_MAX: Duration = Duration::from_secs(5);

/// How long a process that has to end waits for a successor that is taking over at the moment. A
/// successor that is not stopped needs a few milliseconds.
const FOLLOW_MAX: Duration = Duration::from_secs(1);

/// How long to wait for HTTP requests under way when a successor serves. It receives the last
/// snapshot afterwards, so that their stops and totals of passkeys are in it.
const ANSWERED_MAX: Duration = Duration::from_secs(2);

/// How often to check whether something has ended.
const POLL: Duration = Duration::from_millis(2);

/// Why serving ends.
pub(crate) enum ShutdownReason {
    /// A signal or an API request.
    Requested,
    /// The same, while the workers were paused for a successor that has not accepted: no process
    /// serves until this one has ended.
    RequestedAtRest,
    /// A successor serves.
    TakenOver(ServingSuccessor),
}

/// Successors that have reported that they could serve.
pub(crate) type Successors = mpsc::UnboundedReceiver<Successor>;

/// What has to be ended.
pub(crate) struct Running {
    pub(crate) workers: Workers,
    pub(crate) streams: Streams,
    /// Closes the admin listener.
    pub(crate) close_admin: oneshot::Sender<()>,
    /// Removed before the listener is closed, unless a successor has replaced it.
    pub(crate) address_file: Option<AdminAddressFile>,
    /// How long to continue serving.
    pub(crate) drain: Duration,
    /// Whether the service manager keeps the listeners.
    pub(crate) is_managed: bool,
}

/// Reports to the predecessor that this process could serve, waits until its workers are paused,
/// and lets the stream workers accept. Nothing here can fail once they are paused.
///
/// # Errors
/// [`StartError`] if the predecessor continues to serve: this process must not serve then, because
/// the two would not share their peers.
pub(crate) async fn take_over(
    predecessor: Predecessor,
    streams: &mut Streams,
) -> Result<Option<Predecessor>, StartError> {
    let taken_over = spawn_blocking(move || (predecessor.take_over(), predecessor)).await;
    // A panic ends the process.
    let Ok((taken_over, predecessor)) = taken_over else { return pending().await };
    let is_gone = match taken_over {
        Ok(()) => false,
        Err(TakeoverError::GoesOn(error)) => return Err(TakeoverError::into_start_error(&error)),
        Err(TakeoverError::Gone(error)) => {
            warn!(target: OPERATOR, %error, "predecessor ended early, taking over without it");
            true
        }
    };
    streams.release();
    predecessor.send_accepting();
    streams.own_unix();
    Ok((!is_gone).then_some(predecessor))
}

/// Makes room for a successor that could serve, unless this process has to end while the successor
/// makes no progress. Returns why serving ends, or `None` if it continues as before, which is
/// logged.
pub(crate) async fn yield_to_successor(
    state: &ProcessState,
    successor: Successor,
    running: (&Workers, &Streams),
    signals: &mut Signals,
) -> Option<ShutdownReason> {
    let mut stepping = pin!(rest_and_hand_over(&state.context, successor, running));
    tokio::select! {
        stepped = &mut stepping => return stepped.map(ShutdownReason::TakenOver),
        () = signals.stop() => {}
        () = state.is_asked_to_stop() => {}
    }
    info!(target: OPERATOR, "stop requested while a successor takes over");
    Some(match timeout(FOLLOW_MAX, stepping).await {
        Ok(Some(successor)) => ShutdownReason::TakenOver(successor),
        Ok(None) => ShutdownReason::Requested,
        Err(_) => ShutdownReason::RequestedAtRest,
    })
}

/// How long to wait for drivers to detach XDP programs. The process goes on without them.
const DETACH_MAX: Duration = Duration::from_secs(1);

/// Pauses the workers, and hands over to a successor.
///
/// `None` if this process continues to serve, as before.
async fn rest_and_hand_over(
    context: &AppContext,
    successor: Successor,
    (workers, streams): (&Workers, &Streams),
) -> Option<ServingSuccessor> {
    // An interface has one program: the successor attaches its own. Until then all datagrams go to
    // the sockets, which both processes have. A driver may take a while: the successor tries again.
    let xdp = context.xdp.clone();
    let _ = timeout(DETACH_MAX, spawn_blocking(move || xdp.end())).await;
    workers.pause();
    streams.hold();
    let rested = async {
        while !(workers.are_paused() && streams.are_held()) {
            sleep(POLL).await;
        }
    };
    let followed = match timeout(REST_MAX, rested).await {
        Ok(()) => match spawn_blocking(move || successor.hand_over()).await {
            Ok(followed) => followed,
            Err(_) => pending().await, // a panic, which ends the process
        },
        Err(_) => {
            successor.refuse(std::io::Error::other("a worker did not pause in time"));
            None
        }
    };
    if followed.is_none() {
        workers.resume();
        streams.release();
        let context = context.clone();
        let _ = spawn_blocking(move || context.begin_xdp()).await;
    }
    followed
}

/// Ends everything in order.
pub(crate) async fn shut_down(
    state: &Arc<ProcessState>,
    outcome: Result<ShutdownReason, StartError>,
    running: Running,
    manager: &ServiceManager,
    (signals, ended, successors): (&mut Signals, &mut WorkerExits, &mut Successors),
) -> Result<(), StartError> {
    state.stopping.store(true, Ordering::Relaxed);
    state.context.cluster.drain();
    let drain = running.drain;
    if !matches!(outcome, Ok(ShutdownReason::TakenOver(_))) {
        manager.stopping("stopping", drain + END_MAX);
    }
    if running.is_managed {
        running.streams.keep_listeners(); // the service manager keeps them for the next process
    }
    match outcome {
        Ok(ShutdownReason::TakenOver(successor)) => {
            finish_after_handover(state, running, successor, signals).await;
            Ok(())
        }
        Ok(ShutdownReason::Requested) => {
            let events = (&mut *signals, ended, &mut *successors);
            match serve_until_drained(state, &running, drain, events).await {
                Ok(Some(successor)) => {
                    finish_after_handover(state, running, successor, signals).await;
                }
                Ok(None) => stop(state, running, successors).await,
                Err(error) => {
                    stop(state, running, successors).await;
                    return Err(error);
                }
            }
            Ok(())
        }
        Ok(ShutdownReason::RequestedAtRest) => {
            stop(state, running, successors).await;
            Ok(())
        }
        Err(error) => {
            stop(state, running, successors).await;
            Err(error)
        }
    }
}

/// Serves for the time of the drain, or until a second signal, or until a successor serves that had
/// connected before.
async fn serve_until_drained(
    state: &Arc<ProcessState>,
    running: &Running,
    drain: Duration,
    (signals, ended, successors): (&mut Signals, &mut WorkerExits, &mut Successors),
) -> Result<Option<ServingSuccessor>, StartError> {
    if drain.is_zero() {
        return Ok(None);
    }
    info!(target: OPERATOR, drain_s = drain.as_secs(), "draining: requests are still served");
    running.streams.drain(state.now_and(drain));
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let over = sleep(drain);
    tokio::pin!(over);
    loop {
        tokio::select! {
            _ = second.tick() => state.tick_and_renew(),
            () = &mut over => return Ok(None),
            () = signals.stop() => {
                info!(target: OPERATOR, "second signal received, stopping now");
                return Ok(None);
            }
            Some(successor) = successors.recv() => {
                let running = (&running.workers, &running.streams);
                match yield_to_successor(state, successor, running, signals).await {
                    Some(ShutdownReason::TakenOver(successor)) => return Ok(Some(successor)),
                    Some(_) => return Ok(None),
                    None => {}
                }
            }
            Some(end) = ended.recv() => return Err(end.into()),
        }
    }
}

/// Stops everything. Runs on another thread, so that /readyz can report the end meanwhile. A
/// waiting successor does not have to wait for the last snapshot.
async fn stop(state: &Arc<ProcessState>, running: Running, successors: &mut Successors) {
    // No more samples are taken, and the last snapshot may take long: without this, an open page
    // would report that the tracker does not respond.
    state.close_board();
    let Running { workers, streams, close_admin, address_file, .. } = running;
    // Before the last snapshot, which may take long: a client whose connect a program answers would
    // get no response to its announce.
    let xdp = state.context.xdp.clone();
    let _ = timeout(DETACH_MAX, spawn_blocking(move || xdp.stop())).await;
    let _ = spawn_blocking(move || {
        streams.stop();
        workers.stop();
    })
    .await;
    let last = state.clone();
    let mut writing = pin!(spawn_blocking(move || {
        last.context.cluster.stop();
        last.write_last();
    }));
    tokio::select! {
        biased;
        Some(successor) = successors.recv() => {
            remove(address_file).await;
            drop(close_admin);
            let successor = successor.leave();
            info!(target: OPERATOR, "right to serve given to the waiting successor");
            let _ = writing.await;
            successor.send_saved();
        }
        _ = &mut writing => {
            remove(address_file).await;
            drop(close_admin);
        }
    }
}

/// Removes the address of the admin listener, unless the disk does not respond.
async fn remove(address_file: Option<AdminAddressFile>) {
    if let Some(file) = address_file {
        let _ = timeout(ADDRESS_MAX, spawn_blocking(move || file.remove())).await;
    }
}

/// Leaves the sockets to a successor that serves. Requests that were taken from them get their
/// response.
async fn finish_after_handover(
    state: &Arc<ProcessState>,
    running: Running,
    successor: ServingSuccessor,
    signals: &mut Signals,
) {
    let Running { workers, mut streams, close_admin, address_file, drain, .. } = running;
    streams.leave(state.now_and(drain));
    remove(address_file).await;
    // Their pages reconnect to the successor, because this listener is closed in the same moment.
    state.close_board();
    drop(close_admin);
    let _ = spawn_blocking(move || workers.stop()).await;
    info!(target: OPERATOR, "successor serves, closing the connections of this process");
    let answered = async {
        while streams.have_http_connections() {
            sleep(POLL * 10).await;
        }
    };
    let _ = timeout(ANSWERED_MAX, answered).await; // later requests are answered, but not saved
    // The totals of passkeys were saved when the database was lent. The successor restores this
    // snapshot as soon as the snapshots' lock is free.
    let last = state.clone();
    let _ = spawn_blocking(move || {
        // The successor has the same name, and the right to be the only one.
        last.context.cluster.stop();
        last.save_last();
    })
    .await;
    successor.send_saved();
    let closed = async {
        while streams.are_connected() {
            sleep(POLL * 10).await;
        }
    };
    tokio::select! {
        () = closed => {}
        () = sleep(drain) => {}
        () = signals.stop() => {}
    }
    let _ = spawn_blocking(move || streams.stop()).await;
}

/// Waits until the predecessor, if it still runs, has saved its state, and notifies the snapshots.
pub(crate) fn await_saved(predecessor: Option<Predecessor>, snapshots: Arc<Snapshots>) {
    let Some(predecessor) = predecessor else { return snapshots.stop_waiting_for_predecessor() };
    spawn_blocking(move || {
        match predecessor.wait_until_saved() {
            Ok(()) => info!(target: OPERATOR, "take-over complete"),
            Err(error) => {
                warn!(target: OPERATOR, %error, "predecessor ended before it saved its state");
            }
        }
        snapshots.stop_waiting_for_predecessor();
    });
}
