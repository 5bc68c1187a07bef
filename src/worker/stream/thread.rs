//! What a worker's thread does besides its connections: ticks, deadlines, messages of other
//! workers, the end.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::mpsc::Receiver;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{MissedTickBehavior, interval};

use super::accept::{self, Security};
use super::connection::Connection;
use super::connection_memory::WorkerAccount;
use super::inbox::{ENVELOPES_TAKEN_MAX, Envelope};
use super::shutdown::{DrainSchedule, Stage};
use super::slots::{ConnectionSlots, Due, SlotAddress};
use super::{FrontEnds, Listener, Options, StreamContext, StreamWorker};
use crate::counters::{CloseReason, DeliveryFailure, StreamCounters};
use crate::frontend::ws::{Outbox, PeerMessage, SocketRoute};
use crate::sys::allocator::Collector;
use crate::sys::clock::{Clock, thread_cpu_ns};
use crate::sys::stream::{Acceptor, Listening, Network};
use crate::time::Now;

/// How often the thread checks the stop flag and reports progress.
const TICK: Duration = Duration::from_millis(100);

/// How often a task that must wait before it accepts checks whether it may.
pub(super) const HELD_TICK: Duration = Duration::from_millis(1);

/// Most seconds that a client may take for a transfer, whatever the idle timeout is. A client that
/// waits between requests holds little, and may stay longer than a balancer's own timeout. Half of
/// a message holds 64 KiB.
const TRANSFER_S_MAX: u32 = 30;

/// Deadlines are checked once in this many ticks.
const TICKS_PER_LOOK: u64 = 5;

/// Most ticks for connections to end after the worker stops.
const DRAIN_TICKS_MAX: u32 = 200;

/// How often the worker checks whether all connections have ended.
const DRAIN_TICK: Duration = Duration::from_millis(10);

/// Most ticks for connections to end after they have been cut off.
const CUT_TICKS_MAX: u32 = 20;

/// What all tasks of a worker share. The tasks run on one thread and borrow it only between two
/// awaits.
pub(super) struct TaskContext<N: Network> {
    pub(super) index: u16,
    pub(super) shared: Arc<StreamContext>,
    pub(super) front_ends: RefCell<FrontEnds>,
    pub(super) counters: Arc<StreamCounters>,
    pub(super) slots: RefCell<ConnectionSlots<Connection<N>>>,
    /// What the worker's connections hold.
    pub(super) held: WorkerAccount,
    /// No source of this worker holds more than this, as a search in this tick has shown.
    pub(super) unevicted_above: Cell<Option<u64>>,
    /// Number of connections so far.
    opened: Cell<u64>,
    options: RefCell<arc_swap::Cache<Arc<arc_swap::ArcSwap<Options>>, Arc<Options>>>,
    begin_turn: RefCell<Box<dyn FnMut() + Send>>,
    clock: Clock,
    is_stopping: Cell<bool>,
    is_leaving: Cell<bool>,
    /// Whether the worker is counted as paused.
    is_paused: Cell<bool>,
    /// Set once the drain has begun.
    drain_schedule: Cell<Option<DrainSchedule>>,
}

/// An acceptor of a listener, and the task that runs it.
type Accepting<N> = (Rc<Acceptor<N>>, JoinHandle<()>);

/// Runs a worker to its end.
pub(super) async fn main<N: Network>(parts: StreamWorker, stop: &AtomicBool) -> io::Result<()> {
    let StreamWorker { worker: index, shared, listeners, front_ends, clock, .. } = parts;
    let StreamWorker { options, begin_turn, counters, .. } = parts;
    let message = shared.inboxes.get(usize::from(index)).and_then(|it| it.open());
    let Some(message) = message else {
        return Err(io::Error::other("unknown worker, or already running"));
    };
    let worker = Rc::new(TaskContext::<N> {
        index,
        front_ends: RefCell::new(front_ends),
        counters,
        slots: RefCell::new(ConnectionSlots::new()),
        held: WorkerAccount::default(),
        unevicted_above: Cell::new(None),
        opened: Cell::new(0),
        options: RefCell::new(arc_swap::Cache::new(options)),
        begin_turn: RefCell::new(begin_turn),
        clock,
        is_stopping: Cell::new(false),
        is_leaving: Cell::new(false),
        is_paused: Cell::new(false),
        drain_schedule: Cell::new(None),
        shared,
    });
    // Everything that can fail comes before this worker counts as prepared, its first wait for
    // connections included: in a take-over, the predecessor is still there.
    let mut acceptors = listen(&worker, listeners)?;
    spawn_local(take_messages(worker.clone(), message));
    worker.beat();
    tokio::time::sleep(HELD_TICK).await;
    worker.shared.ending.note_prepared();
    serve(&worker, stop, &mut acceptors).await;
    let ending = &worker.shared.ending;
    if ending.keeps_listeners() || ending.pause.is_requested() {
        leave(&worker, &mut acceptors).await;
    }
    worker.is_stopping.set(true);
    acceptors.iter().for_each(|it| it.0.stop());
    drain(&worker).await;
    Ok(())
}

/// Starts to accept.
fn listen<N: Network>(
    worker: &Rc<TaskContext<N>>,
    listeners: Vec<Listener>,
) -> io::Result<Vec<Accepting<N>>> {
    let mut acceptors = Vec::with_capacity(listeners.len());
    for listener in listeners {
        let (listening, security) = match listener {
            Listener::Plain(tcp_listener) => (Listening::Tcp(tcp_listener), Security::Plain),
            Listener::Tls(tcp_listener) => {
                let lacking = || io::Error::other("TLS is listened for, but not configured");
                let config = worker.shared.tls.clone().ok_or_else(lacking)?;
                (Listening::Tcp(tcp_listener), Security::Tls(config))
            }
            Listener::Unix(unix_listener) => (Listening::Unix(unix_listener), Security::Plain),
        };
        let acceptor = Rc::new(Acceptor::<N>::new(listening)?);
        let task = spawn_local(accept::serve(worker.clone(), acceptor.clone(), security));
        acceptors.push((acceptor, task));
    }
    Ok(acceptors)
}

async fn serve<N: Network>(
    worker: &Rc<TaskContext<N>>,
    stop: &AtomicBool,
    acceptors: &mut Vec<Accepting<N>>,
) {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut count, mut collector) = (0_u64, Collector::default());
    while !stop.load(Ordering::Relaxed) {
        tokio::select! {
            _ = ticks.tick() => {}
            () = worker.shared.room.wait_for_request(worker.index) => {
                worker.keep_to_memory();
                continue;
            }
        }
        let now = worker.beat();
        worker.begin_turn();
        worker.note_rest();
        collector.collect_if_requested();
        worker.check_memory();
        if count.is_multiple_of(TICKS_PER_LOOK) {
            worker.check_deadlines(now);
        }
        count += 1;
        let (stage, until) = worker.shared.ending.stage();
        if stage >= Stage::Draining {
            worker.close_some(now, until);
        }
        if stage == Stage::Leaving && !worker.is_leaving() {
            leave(worker, acceptors).await;
        }
    }
}

/// Stops accepting without a shutdown of the listeners, and ends the HTTP connections that wait for
/// another request. A connection that was just accepted may still send its first.
async fn leave<N: Network>(worker: &Rc<TaskContext<N>>, acceptors: &mut Vec<Accepting<N>>) {
    worker.is_leaving.set(true);
    for (acceptor, task) in acceptors.drain(..) {
        acceptor.leave().await;
        // The task ends by itself after it has admitted connections accepted meanwhile. A panic
        // ends the process.
        let _ = task.await;
    }
    worker.connections().iter().for_each(|it| it.leave());
}

/// Lets connections end, then cuts off those that have not.
async fn drain<N: Network>(worker: &Rc<TaskContext<N>>) {
    let open = worker.connections();
    open.iter().for_each(Connection::start_close);
    drop(open);
    if wait_for_all(worker, DRAIN_TICKS_MAX).await {
        return;
    }
    worker.connections().iter().for_each(|it| it.end(CloseReason::Stopped));
    wait_for_all(worker, CUT_TICKS_MAX).await;
}

/// Waits for all connections to end. False if some are open after `ticks_max` ticks.
async fn wait_for_all<N: Network>(worker: &TaskContext<N>, ticks_max: u32) -> bool {
    for _ in 0..ticks_max {
        if worker.slots.borrow().len() == 0 {
            return true;
        }
        tokio::time::sleep(DRAIN_TICK).await;
        worker.beat();
    }
    worker.slots.borrow().len() == 0
}

async fn take_messages<N: Network>(worker: Rc<TaskContext<N>>, mut message: Receiver<Envelope>) {
    let mut envelopes = Vec::with_capacity(ENVELOPES_TAKEN_MAX);
    while message.recv_many(&mut envelopes, ENVELOPES_TAKEN_MAX).await > 0 {
        for envelope in envelopes.drain(..) {
            worker.shared.inboxes[usize::from(worker.index)]
                .took(&worker.shared.account, &envelope);
            let (route, message) = envelope;
            worker.receive(route, message);
        }
    }
}

impl<N: Network> TaskContext<N> {
    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// Updates all options. They stay the same until the next call.
    pub(super) fn begin_turn(&self) {
        self.begin_turn.borrow_mut()();
    }

    /// Reads the current settings.
    pub(super) fn with_options<T>(&self, look: impl FnOnce(&Options) -> T) -> T {
        look(self.options.borrow_mut().load())
    }

    /// Seconds that a client may take to receive 64 KiB, or to send the rest of a WebSocket
    /// message.
    pub(super) fn transfer_s(&self) -> u64 {
        self.with_options(|it| u64::from(it.idle_timeout_s.min(TRANSFER_S_MAX)))
    }

    /// Whether the worker stops and closes all connections.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.get()
    }

    /// Whether another process accepts for now.
    pub(super) fn is_held(&self) -> bool {
        self.shared.ending.pause.is_requested()
    }

    /// Counts the worker as paused or not. It runs on the thread that accepts, so no accept is
    /// under way.
    fn note_rest(&self) {
        let pause = &self.shared.ending.pause;
        let is_held = pause.is_requested();
        if is_held != self.is_paused.replace(is_held) {
            if is_held { pause.enter() } else { pause.leave() }
        }
    }

    /// Whether another process accepts new connections from now on.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.get()
    }

    /// Closes as many WebSockets as the schedule of the drain requires now.
    fn close_some(&self, now: Now, until: Now) {
        let mut open = self.connections();
        open.retain(|it| it.is_open_web());
        let drain_schedule =
            self.drain_schedule.get().unwrap_or_else(|| DrainSchedule::new(open.len(), now));
        self.drain_schedule.set(Some(drain_schedule));
        let count = drain_schedule.share(open.len(), now, until);
        open.iter().take(count).for_each(Connection::start_close);
    }

    /// Sends a message from a socket to another socket.
    pub(super) fn post(&self, route: SocketRoute, message: PeerMessage) {
        if route.worker == self.index {
            self.receive(route, message);
            return;
        }
        let inbox = self.shared.inboxes.get(usize::from(route.worker));
        let all_max = self.with_options(|it| it.memory_max_bytes);
        if !inbox.is_some_and(|it| it.post(&self.shared.account, all_max, (route, message))) {
            self.counters.messages_lost(DeliveryFailure::InboxFull).add(1);
        }
    }

    /// Delivers a message to a socket of this worker.
    fn receive(&self, route: SocketRoute, message: PeerMessage) {
        let Some(connection) = self.connection(route) else {
            self.counters.messages_lost(DeliveryFailure::ReceiverGone).add(1);
            return;
        };
        self.counters.messages_delivered.add(1);
        let mut outbox = Outbox::default();
        connection.receive(message, &mut outbox);
        debug_assert!(outbox.messages.is_empty(), "message leads to no message");
    }

    fn connection(&self, route: SocketRoute) -> Option<Rc<Connection<N>>> {
        self.slots.borrow().get(route.slot, route.generation).cloned()
    }

    /// A copy of the list of connections, which may change meanwhile.
    pub(super) fn connections(&self) -> Vec<Rc<Connection<N>>> {
        self.slots.borrow().all().cloned().collect()
    }

    /// Counts a connection; returns how many there were before.
    pub(super) fn count_opened(&self) -> u64 {
        self.opened.replace(self.opened.get() + 1)
    }

    /// Removes a connection that has ended.
    pub(super) fn remove(&self, place: SlotAddress) {
        self.slots.borrow_mut().remove(place);
    }

    /// Reports that the thread makes progress.
    fn beat(&self) -> Now {
        let now = self.now();
        let counters = &self.counters;
        let elapsed_ns = self.clock.elapsed_ns_at(now);
        counters.elapsed_ns.add(elapsed_ns.saturating_sub(counters.elapsed_ns.get()));
        counters.busy_ns.add(thread_cpu_ns().saturating_sub(counters.busy_ns.get()));
        now
    }

    /// Ends connections that missed a deadline, and sends the pings that are due.
    fn check_deadlines(&self, now: Now) {
        let ping_s = self.with_options(|it| it.ping_interval_s);
        let due = self.slots.borrow_mut().due(now, ping_s);
        for (connection, due) in due {
            match due {
                Due::End(reason) => connection.end(reason),
                Due::Ping => connection.ping(),
            }
        }
    }
}
