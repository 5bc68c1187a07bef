//! The thread that exchanges changes with other nodes: it takes changes from the workers' rings,
//! publishes what the node has to say, gives it what others say, and connects again where a
//! connection is lost.
//!
//! It waits for nothing but the next turn: a broker that is slow, stopped or gone delays no change
//! that is taken from a ring, and no response of a worker.

use std::future::pending;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tracing::{info, warn};

use super::connection::{Activity, Connection, ConnectionFailure, Publication, next_of};
use super::options::ClusterOptions;
use super::watch::ClusterWatch;
use super::{ClusterContents, ClusterControl, LAST_CHANGES_MAX, Order, RING_RECORDS, locked};
use crate::cluster::{Moment, Node, NodeOptions, Readiness};
use crate::server::log::OPERATOR;
use crate::sys::allocator::Collector;
use crate::sys::clock::Clock;
use crate::tracker::DeltaReceiver;

/// The longest time between two turns.
const TURN_MAX: Duration = Duration::from_millis(20);

/// How often the view is renewed.
const VIEW_EVERY: Duration = Duration::from_millis(250);

/// Messages that are received in a row before messages are published.
const RECEIVED_IN_A_ROW: usize = 64;

/// The pause before the second attempt to connect. It doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two attempts to connect.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A connection that was kept for so long is not one of many that break at once.
const LASTING_MIN: Duration = Duration::from_secs(10);

/// Most causes of failures, and most refusals, that are remembered.
const TEXTS_MAX: usize = 32;

/// An attempt to connect.
type Attempt = Pin<Box<dyn Future<Output = Result<Connection, ConnectionFailure>> + Send>>;

/// A ring, and what was lost at it so far.
struct Ring {
    receiver: DeltaReceiver,
    lost: u64,
}

/// All that the thread has.
pub(super) struct ClusterThread {
    control: Arc<ClusterControl>,
    options: ClusterOptions,
    contents: ClusterContents,
    node: Node,
    rings: Vec<Ring>,
    connection: Option<Connection>,
    /// The message for which there was no room.
    waiting: Option<(String, Bytes)>,
    attempt: Option<Attempt>,
    /// The pause before the next attempt.
    pause: Duration,
    /// When the connection was made.
    since: Instant,
    /// Causes of failures that were logged since a connection has lasted.
    logged: Vec<String>,
    /// Whether a failure was logged since the last connection.
    is_failing: bool,
    denied: Vec<String>,
    watch: ClusterWatch,
    collector: Collector,
    next_view: Instant,
    /// Turns in which the frame is filled, and those that are left.
    turns: (u32, u32),
}

impl ClusterThread {
    pub(super) fn new(
        control: Arc<ClusterControl>,
        options: ClusterOptions,
        contents: ClusterContents,
        seed: u64,
    ) -> Self {
        let node_options = NodeOptions {
            cluster: options.name.clone(),
            node: options.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            secret: options.secret.clone(),
            fingerprint: control.fingerprint.clone(),
            queue_bytes_max: options.queue_bytes_max,
            join_bytes_s_max: options.join_bytes_s_max,
            join_timeout_s: options.join_timeout_s,
            peer_age_s_max: contents.peer_age_s_max,
            joins: contents.joins,
            replicates_private: options.replicates_private,
        };
        let node = Node::new(node_options, contents.store.clone(), moment(contents.clock), seed);
        let turns = options.flush.as_millis().div_ceil(TURN_MAX.as_millis()).max(1);
        let turns = u32::try_from(turns).unwrap_or(1);
        Self {
            control,
            options,
            contents,
            node,
            rings: Vec::new(),
            connection: None,
            waiting: None,
            attempt: None,
            pause: Duration::ZERO,
            since: Instant::now(),
            logged: Vec::new(),
            is_failing: true,
            denied: Vec::new(),
            watch: ClusterWatch::default(),
            collector: Collector::default(),
            next_view: Instant::now(),
            turns: (turns, turns),
        }
    }

    /// Exchanges changes until the end.
    pub(super) async fn run(mut self, mut orders: UnboundedReceiver<Order>) {
        let mut turn = interval((self.options.flush / self.turns.0).max(Duration::from_millis(1)));
        turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                order = orders.recv() => match order {
                    Some(Order::Drain) => self.node.begin_drain(self.now()),
                    Some(Order::Stop) | None => break,
                },
                _ = turn.tick() => self.turn(),
                opened = outcome_of(&mut self.attempt) => self.note_attempt(opened),
                activity = next_of(&mut self.connection) => self.note_activities(activity).await,
            }
            self.publish();
        }
        let _ = timeout(LAST_CHANGES_MAX, self.finish()).await;
    }

    fn now(&self) -> Moment {
        moment(self.contents.clock)
    }

    /// What is due at every turn.
    fn turn(&mut self) {
        self.take_changes();
        self.turns.1 -= 1;
        if self.turns.1 == 0 {
            self.turns.1 = self.turns.0;
            self.node.flush();
        }
        self.collector.collect_if_requested(); // blocks of what came from others
        if self.contents.store.is_short_of_memory() {
            // What comes from others may need more than the current budget.
            self.contents.memory.measure();
        }
        self.node.tick(self.now());
        if self.connection.as_ref().is_some_and(Connection::is_gone) {
            let cause = "the connection broke".to_owned();
            self.note_loss(&ConnectionFailure { cause, remedy: String::new() });
        }
        // A snapshot adds its counts of downloads to those that are there: others' come after it.
        let is_idle = self.connection.is_none() && self.attempt.is_none();
        if is_idle && !self.contents.snapshots.is_restoring() {
            self.begin_attempt();
        }
        if Instant::now() >= self.next_view {
            self.show();
        }
    }

    /// Takes all changes from the rings.
    fn take_changes(&mut self) {
        let new = std::mem::take(&mut *locked(&self.control.rings));
        self.rings.extend(new.into_iter().map(|receiver| Ring { receiver, lost: 0 }));
        for ring in &mut self.rings {
            ring.receiver.drain(RING_RECORDS, |delta| self.node.local(delta));
            let lost = ring.receiver.lost();
            self.node.note_ring_lost(lost - std::mem::replace(&mut ring.lost, lost));
        }
    }

    /// Publishes what is known.
    fn show(&mut self) {
        self.next_view = Instant::now() + VIEW_EVERY;
        let view = self.node.view(self.now());
        self.watch.note(&view);
        self.control.view.store(Some(Arc::new(view)));
    }

    fn begin_attempt(&mut self) {
        let pause = self.pause;
        self.pause = (pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        // Nodes that lost the same broker do not all come back in the same moment.
        let pause = pause.mul_f64(0.5 + fastrand::f64());
        let subjects = self.node.subscriptions().into();
        let opening = Connection::open(self.options.clone(), subjects);
        self.attempt = Some(Box::pin(async move {
            sleep(pause).await;
            opening.await
        }));
    }

    fn note_attempt(&mut self, opened: Result<Connection, ConnectionFailure>) {
        self.attempt = None;
        match opened {
            Ok(connection) => {
                if std::mem::replace(&mut self.is_failing, false) {
                    let (cluster, node) = (&self.options.name, &self.options.node);
                    let broker = &connection.broker;
                    info!(target: OPERATOR, cluster, node, broker, "cluster connected");
                }
                self.since = Instant::now();
                self.connection = Some(connection);
                self.node.connected(self.now());
                self.show();
            }
            Err(failure) => self.log_failure("cluster not connected", &failure),
        }
    }

    /// Handles what a connection has brought, and what it brings right now.
    async fn note_activities(&mut self, first: Activity) {
        let mut activity = Some(first);
        for _ in 0..RECEIVED_IN_A_ROW {
            match activity {
                Some(Activity::Message(message)) => {
                    let at = self.now();
                    self.node.receive(at, &message.subject, &message.payload);
                }
                Some(Activity::Denied(error)) => self.log_denial(error),
                Some(Activity::Lost(failure)) => return self.note_loss(&failure),
                None => break,
            }
            activity = match &mut self.connection {
                Some(connection) => futures_util::FutureExt::now_or_never(connection.next()),
                None => None,
            };
        }
        if self.control.ready().is_err() && self.node.readiness(self.now()) == Readiness::Ready {
            self.show();
        }
    }

    /// A connection is gone. Deltas that were published and are lost are requested by others; all
    /// else is asked for again.
    fn note_loss(&mut self, failure: &ConnectionFailure) {
        self.connection = None;
        self.waiting = None;
        if self.since.elapsed() >= LASTING_MIN {
            self.pause = PAUSE_MIN;
            self.logged.clear();
        }
        self.node.disconnected(self.now());
        self.log_failure("cluster disconnected", failure);
        self.show();
    }

    /// Logs why there is no connection, each cause once until a connection lasts.
    fn log_failure(&mut self, event: &'static str, failure: &ConnectionFailure) {
        let ConnectionFailure { cause, remedy } = failure;
        if self.logged.len() < TEXTS_MAX && !self.logged.contains(cause) {
            let servers = self.options.servers.join(",");
            warn!(target: OPERATOR, servers, cause, remedy, "{event}");
            self.logged.push(cause.clone());
            self.is_failing = true;
        }
    }

    /// Logs once what the broker refuses.
    fn log_denial(&mut self, error: String) {
        if self.denied.len() < TEXTS_MAX && !self.denied.contains(&error) {
            let name = &self.options.name;
            let remedy = format!(
                "allow this node's user at the broker to publish and subscribe below skep.{name}"
            );
            warn!(target: OPERATOR, error, remedy, "cluster refused by the broker");
            self.denied.push(error);
        }
    }

    /// Publishes what there is to publish, as long as there is room. True if there is nothing left.
    fn publish(&mut self) -> bool {
        let at = self.now();
        while let Some(connection) = &self.connection {
            let waiting = self.waiting.take();
            let next =
                || self.node.next_message(at).map(|it| (it.subject, Bytes::from(it.payload)));
            let Some((subject, payload)) = waiting.or_else(next) else { return true };
            match connection.publish(&subject, &payload) {
                Publication::Taken => {}
                Publication::Full => {
                    self.waiting = Some((subject, payload));
                    return false;
                }
                Publication::Refused(error) => {
                    let bytes = payload.len();
                    warn!(subject, bytes, error, "cluster message not sent");
                    let remedy = "raise max_payload of the brokers to 1 MiB".to_owned();
                    self.note_loss(&ConnectionFailure { cause: error, remedy });
                }
            }
        }
        true
    }

    /// Sends the last changes.
    async fn finish(&mut self) {
        self.take_changes();
        self.node.begin_drain(self.now());
        self.node.flush();
        self.node.tick(self.now());
        while !self.publish() {
            sleep(Duration::from_millis(1)).await;
        }
        if let Some(connection) = &self.connection {
            connection.flush().await;
        }
    }
}

/// Waits for the outcome of an attempt; for ever without one.
async fn outcome_of(attempt: &mut Option<Attempt>) -> Result<Connection, ConnectionFailure> {
    match attempt {
        Some(attempt) => attempt.await,
        None => pending().await,
    }
}

fn moment(clock: Clock) -> Moment {
    // The process's own clock runs evenly from the start on, whatever is done to the wall clock.
    Moment { now: clock.now(), wall_ms: Clock::start().now().ns() / 1_000_000 }
}
