//! What a worker's thread does beside its connections: the clock's ticks, deadlines, mail, the end.

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
use crate::frontend::ws::{Outbox, PeerMessage, SocketRoute};
use crate::metrics::{CloseReason, DeliveryFailure, StreamCounters};
use crate::sys::allocator::Collector;
use crate::sys::clock::{Clock, thread_cpu_ns};
use crate::sys::stream::{Acceptor, Listening, Network};
use crate::time::Now;

/// How often the thread looks at the stop flag, and shows that it lives.
const TICK: Duration = Duration::from_millis(100);

/// How often what has to wait before it accepts looks whether it may.
pub(super) const HELD_TICK: Duration = Duration::from_millis(1);

/// Seconds that a client may take for what is under way, however long it may be idle: who waits for
/// another request holds little, and outlives balancers; half of a message holds 64 KiB.
const TRANSFER_S_MAX: u32 = 30;

/// Deadlines are looked at once in so many ticks.
const TICKS_PER_LOOK: u64 = 5;

/// How long connections may take to end once the worker stops.
const DRAIN_TICKS_MAX: u32 = 200;

/// How often it is looked at whether all have ended.
const DRAIN_TICK: Duration = Duration::from_millis(10);

/// How long they may take once they have been cut off.
const CUT_TICKS_MAX: u32 = 20;

/// What all tasks of a worker share. They run on one thread and borrow it between two awaits.
pub(super) struct TaskContext<N: Network> {
    pub(super) index: u16,
    pub(super) shared: Arc<StreamContext>,
    pub(super) front_ends: RefCell<FrontEnds>,
    pub(super) counters: Arc<StreamCounters>,
    pub(super) slots: RefCell<ConnectionSlots<Connection<N>>>,
    /// What its connections hold.
    pub(super) held: WorkerAccount,
    /// No source of this worker holds more than this, by a search in this tick.
    pub(super) unevicted_above: Cell<Option<u64>>,
    /// Connections so far.
    opened: Cell<u64>,
    options: RefCell<arc_swap::Cache<Arc<arc_swap::ArcSwap<Options>>, Arc<Options>>>,
    begin_turn: RefCell<Box<dyn FnMut() + Send>>,
    clock: Clock,
    is_stopping: Cell<bool>,
    is_leaving: Cell<bool>,
    /// Whether it counts among those that rest.
    is_resting: Cell<bool>,
    /// Once it has begun.
    drain_schedule: Cell<Option<DrainSchedule>>,
}

/// What accepts from a listener, and the task that does so.
type Accepting<N> = (Rc<Acceptor<N>>, JoinHandle<()>);

/// Runs a worker to its end.
pub(super) async fn main<N: Network>(parts: StreamWorker, stop: &AtomicBool) -> io::Result<()> {
    let StreamWorker { worker: index, shared, listeners, front_ends, clock, .. } = parts;
    let StreamWorker { options, begin_turn, counters, .. } = parts;
    let mail = shared.inboxes.get(usize::from(index)).and_then(|it| it.open());
    let Some(mail) = mail else {
        return Err(io::Error::other("there is no such worker, or it runs already"));
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
        is_resting: Cell::new(false),
        drain_schedule: Cell::new(None),
        shared,
    });
    // All that may fail comes before this worker counts as prepared, its first wait for connections
    // included: where it takes the place of another one, that one is still there.
    let mut acceptors = listen(&worker, listeners)?;
    spawn_local(take_mail(worker.clone(), mail));
    worker.beat();
    tokio::time::sleep(HELD_TICK).await;
    worker.shared.ending.note_prepared();
    serve(&worker, stop, &mut acceptors).await;
    let ending = &worker.shared.ending;
    if ending.keeps_listeners() || ending.rest.is_requested() {
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
            Listener::Tls(it) => {
                let lacking = || io::Error::other("TLS is listened for, but not configured");
                let config = worker.shared.tls.clone().ok_or_else(lacking)?;
                (Listening::Tcp(it), Security::Tls(config))
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
        collector.collect_if_asked();
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

/// Ceases to accept without shutting the listeners down, and ends the HTTP connections that wait
/// for another request. One that has just been accepted may still bring its first.
async fn leave<N: Network>(worker: &Rc<TaskContext<N>>, acceptors: &mut Vec<Accepting<N>>) {
    worker.is_leaving.set(true);
    for (acceptor, task) in acceptors.drain(..) {
        acceptor.leave().await;
        // It ends by itself, having admitted who was accepted meanwhile; a panic ends the process.
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

/// Whether all connections ended in time.
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

async fn take_mail<N: Network>(worker: Rc<TaskContext<N>>, mut mail: Receiver<Envelope>) {
    let mut envelopes = Vec::with_capacity(ENVELOPES_TAKEN_MAX);
    while mail.recv_many(&mut envelopes, ENVELOPES_TAKEN_MAX).await > 0 {
        for envelope in envelopes.drain(..) {
            worker.shared.inboxes[usize::from(worker.index)]
                .took(&worker.shared.account, &envelope);
            let (route, mail) = envelope;
            worker.receive(route, mail);
        }
    }
}

impl<N: Network> TaskContext<N> {
    /// The moment.
    pub(super) fn now(&self) -> Now {
        self.clock.now()
    }

    /// Brings all options up to date. Until the next call, everything goes by the same ones.
    pub(super) fn begin_turn(&self) {
        self.begin_turn.borrow_mut()();
    }

    /// What the operator has set.
    pub(super) fn with_options<T>(&self, look: impl FnOnce(&Options) -> T) -> T {
        look(self.options.borrow_mut().load())
    }

    /// Seconds that a client has for taking 64 KiB, or for the rest of a WebSocket message.
    pub(super) fn transfer_s(&self) -> u64 {
        self.with_options(|it| u64::from(it.idle_timeout_s.min(TRANSFER_S_MAX)))
    }

    /// Whether no connection is to be kept open.
    pub(super) fn is_stopping(&self) -> bool {
        self.is_stopping.get()
    }

    /// Whether somebody else accepts for now.
    pub(super) fn is_held(&self) -> bool {
        self.shared.ending.rest.is_requested()
    }

    /// Says whether anything may be accepted on this thread: it is here now, so that no accept is
    /// under way.
    fn note_rest(&self) {
        let rest = &self.shared.ending.rest;
        let is_held = rest.is_requested();
        if is_held != self.is_resting.replace(is_held) {
            if is_held { rest.enter() } else { rest.leave() }
        }
    }

    /// Whether others accept what comes from now on.
    pub(super) fn is_leaving(&self) -> bool {
        self.is_leaving.get()
    }

    /// Tells as many WebSockets to reconnect as is their share of the time until then.
    fn close_some(&self, now: Now, until: Now) {
        let mut open = self.connections();
        open.retain(|it| it.is_open_web());
        let drain_schedule =
            self.drain_schedule.get().unwrap_or_else(|| DrainSchedule::new(open.len(), now));
        self.drain_schedule.set(Some(drain_schedule));
        let count = drain_schedule.share(open.len(), now, until);
        open.iter().take(count).for_each(Connection::start_close);
    }

    /// Hands on what a socket said to others.
    pub(super) fn post(&self, route: SocketRoute, mail: PeerMessage) {
        if route.worker == self.index {
            self.receive(route, mail);
            return;
        }
        let inbox = self.shared.inboxes.get(usize::from(route.worker));
        let all_max = self.with_options(|it| it.memory_max_bytes);
        if !inbox.is_some_and(|it| it.post(&self.shared.account, all_max, (route, mail))) {
            self.counters.mail_lost(DeliveryFailure::MailboxFull).add(1);
        }
    }

    /// Takes mail for a socket of this worker.
    fn receive(&self, route: SocketRoute, mail: PeerMessage) {
        let Some(connection) = self.connection(route) else {
            self.counters.mail_lost(DeliveryFailure::ReceiverGone).add(1);
            return;
        };
        self.counters.mail_delivered.add(1);
        let mut outbox = Outbox::default();
        connection.receive(mail, &mut outbox);
        debug_assert!(outbox.messages.is_empty(), "mail leads to no mail");
    }

    fn connection(&self, route: SocketRoute) -> Option<Rc<Connection<N>>> {
        self.slots.borrow().get(route.slot, route.generation).cloned()
    }

    /// All connections, which may then change.
    pub(super) fn connections(&self) -> Vec<Rc<Connection<N>>> {
        self.slots.borrow().all().cloned().collect()
    }

    /// Counts a connection; gives how many there were before.
    pub(super) fn count_opened(&self) -> u64 {
        self.opened.replace(self.opened.get() + 1)
    }

    /// Removes a connection that has ended.
    pub(super) fn remove(&self, place: SlotAddress) {
        self.slots.borrow_mut().remove(place);
    }

    /// Shows that the thread lives.
    fn beat(&self) -> Now {
        let now = self.now();
        let counters = &self.counters;
        let elapsed_ns = self.clock.elapsed_ns_at(now);
        counters.elapsed_ns.add(elapsed_ns.saturating_sub(counters.elapsed_ns.get()));
        counters.busy_ns.add(thread_cpu_ns().saturating_sub(counters.busy_ns.get()));
        now
    }

    /// Ends what is late, and pings who is silent.
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
