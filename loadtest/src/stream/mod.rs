//! One thread of load over TCP: its connections, the peers that announce through them, and the
//! loop. HTTP and WebTorrent differ in what is written and read, not in how load is generated.
//!
//! The loop never sleeps. A turn handles all events of epoll and checks every response, then lets
//! idle connections send: as many as may wait at once (closed loop), or as many as are due (open
//! loop). A request that is due while no connection is idle is sent later. Its latency counts from
//! when it was due.

mod connection;
mod frames;
mod http;
mod link;
mod messages;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use mio::{Events, Poll};
use skep::sys::clock::Clock;

use crate::endpoint::Endpoint;
use crate::numbers::{NS_PER_S, mix, whole};
use crate::phase::{Driver, Run, Task};
use crate::plan::{Plan, Protocol};
use crate::population::Peer;
use crate::sources::Origin;

use connection::{Connection, Dialect, Shared, Step};

/// Most unanswered requests in a closed loop: enough to keep a tracker busy even if every response
/// waits 40 ms for an acknowledgement (Nagle's algorithm, which some trackers leave on).
const ACTIVE_MAX: usize = 1024;

/// Most connections that are opened at the same time: far fewer than overflow a backlog.
const OPENING_MAX: usize = 256;

/// How long to try to connect.
const CONNECT_NS_MAX: u64 = 60 * NS_PER_S;

/// How often, per timeout, connections are searched for lost requests.
const SWEEPS_PER_TIMEOUT: u64 = 20;

/// How long to sleep at a time if nothing has to be sent.
const REST: Duration = Duration::from_millis(10);

/// Events taken by one system call.
const EVENTS: usize = 512;

/// Bytes read by one system call.
const READ_BYTES: usize = 64 * 1024;

/// One thread's load.
pub(crate) struct Generator {
    shared: Shared,
    clock: Clock,
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    /// Connections that may send, in their order.
    idle: VecDeque<usize>,
    /// Number of connections that wait for something.
    active: usize,
    /// This thread's part of the torrents.
    torrents: Range<u32>,
}

impl Generator {
    /// A thread's share: the origins of its connections (with their indices among all) and their
    /// peers.
    ///
    /// # Errors
    /// Errors of the system call if epoll is not available.
    pub(crate) fn new(
        plan: &Arc<Plan>,
        endpoint: &Endpoint,
        clock: Clock,
        clients: Vec<(u16, Origin, Vec<Peer>)>,
        torrents: Range<u32>,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let first = clients.first().map_or(0, |it| it.0);
        let dialect = match plan.transport.protocol {
            Protocol::Ws => Dialect::Ws(messages::Writer::new()),
            _ => Dialect::Http(http::Writer::new(endpoint)),
        };
        let connections = clients.into_iter().enumerate();
        let connections = connections.map(|(token, (place, origin, peers))| {
            Connection::new(token, place, origin, peers, plan)
        });
        Ok(Self {
            connections: connections.collect(),
            shared: Shared {
                plan: Arc::clone(plan),
                endpoint: endpoint.clone(),
                dialect,
                registry: poll.registry().try_clone()?,
                random: fastrand::Rng::with_seed(mix(plan.seed ^ (u64::from(first) << 32))),
                verify: torrents.clone(),
                buffer: vec![0; READ_BYTES],
                message: Vec::new(),
                out: Vec::new(),
            },
            clock,
            poll,
            events: Events::with_capacity(EVENTS),
            idle: VecDeque::new(),
            active: 0,
            torrents,
        })
    }

    /// Lets idle connections send.
    fn send(&mut self, run: &mut Run) -> bool {
        let now_ns = self.now_ns();
        if now_ns >= run.deadline_ns {
            return false;
        }
        let mut worked = false;
        let mut turns = self.idle.len();
        let most = if run.task == Task::Connect { OPENING_MAX } else { ACTIVE_MAX };
        while turns > 0 {
            turns -= 1;
            let due_ns = match &run.pace {
                None if self.active >= most => break,
                None => now_ns,
                Some(pace) if pace.due(now_ns, 1) == 0 => break,
                Some(pace) => whole(pace.next_ns),
            };
            let Some(token) = self.idle.pop_front() else { break };
            let connection = &mut self.connections[token];
            let (asked, step) = connection.ask(due_ns, now_ns, &mut self.shared, run);
            if asked && let Some(pace) = &mut run.pace {
                pace.next_ns += pace.step_ns;
                run.tally.lag.saturating_record(now_ns.saturating_sub(due_ns));
            }
            match step {
                Step::Waits => {
                    worked = true;
                    self.active += 1;
                }
                Step::Done => self.idle.push_back(token),
                // It has nothing to request in this phase.
                Step::GivenUp => {}
            }
        }
        worked
    }

    /// Number of open connections.
    pub(crate) fn open_connections(&self) -> u64 {
        self.connections.iter().filter(|it| it.is_open()).count() as u64
    }
}

impl Driver for Generator {
    fn start(&mut self, task: Task) -> Run {
        self.shared.verify = self.torrents.clone();
        self.connections.iter_mut().for_each(|it| it.members.restart());
        self.idle = (0..self.connections.len()).collect();
        Run::new(task, self.now_ns(), CONNECT_NS_MAX)
    }

    /// Handles what has arrived, then sends.
    fn turn(&mut self, run: &mut Run) -> bool {
        let patience = if matches!(run.task, Task::Rest { .. }) { REST } else { Duration::ZERO };
        // The only expected error is an interruption: the next turn comes soon.
        let _ = self.poll.poll(&mut self.events, Some(patience));
        let now_ns = self.now_ns();
        let mut worked = false;
        for event in &self.events {
            worked = true;
            let token = event.token().0;
            let Some(connection) = self.connections.get_mut(token) else { continue };
            match connection.on_event(event, now_ns, &mut self.shared, run) {
                Step::Waits => {}
                Step::Done => {
                    self.active -= 1;
                    self.idle.push_back(token);
                }
                Step::GivenUp => self.active -= 1,
            }
        }
        self.send(run) || worked
    }

    fn expire(&mut self, now_ns: u64, run: &mut Run) {
        let before_ns = now_ns.saturating_sub(self.timeout_ns());
        for (token, connection) in self.connections.iter_mut().enumerate() {
            match connection.expire(before_ns, run) {
                Step::Waits => {}
                Step::Done => {
                    self.active -= 1;
                    self.idle.push_back(token);
                }
                Step::GivenUp => self.active -= 1,
            }
        }
    }

    fn timeout_ns(&self) -> u64 {
        u64::from(self.shared.plan.timeout_ms) * 1_000_000
    }

    fn expiries_per_timeout(&self) -> u64 {
        SWEEPS_PER_TIMEOUT
    }

    fn is_over(&self, run: &Run, now_ns: u64) -> bool {
        if self.active > 0 {
            return false;
        }
        let done = match run.task {
            Task::Connect => self.idle.is_empty(),
            Task::Fill => self.connections.iter().all(|it| it.members.are_filled()),
            Task::Verify => self.shared.verify.is_empty(),
            Task::Load { .. } | Task::Rest { .. } => false,
        };
        done || now_ns >= run.deadline_ns
    }

    fn waiting(&self) -> usize {
        self.active
    }

    fn finish(&self, run: &mut Run) {
        if let Some(pace) = &run.pace {
            run.tally.held_back = pace.due(run.deadline_ns, usize::MAX) as u64;
        }
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed_ns_at(self.clock.now())
    }

    fn resident(&self) -> u64 {
        self.connections.iter().map(|it| it.members.resident()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn a_generator_without_connections_ends_at_once() {
        let plan = Arc::new(Profile::Smoke.plan());
        let endpoint = Endpoint::local("127.0.0.1:1".parse().unwrap(), Protocol::Http);
        let clock = Clock::start();
        let mut generator = Generator::new(&plan, &endpoint, clock, Vec::new(), 0..0).unwrap();
        let tally = generator.run(Task::Fill, &AtomicU64::new(0)).tally;
        assert_eq!(
            (tally.answered_all(), generator.resident(), generator.open_connections()),
            (0, 0, 0)
        );
        assert!(tally.elapsed_ns < NS_PER_S);
    }
}
