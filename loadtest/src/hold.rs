//! Opens many WebSocket connections, and measures what each costs the tracker while it is nearly
//! idle.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::Serialize;
use skep::sys::clock::Clock;

use crate::cli::HoldArguments;
use crate::descriptors::{self, DescriptorsError};
use crate::endpoint::Aim;
use crate::error::{LoadtestError, UsageError};
use crate::interrupt::{self, TooEarlyError};
use crate::machine::Machine;
use crate::numbers::{grouped, ns, per, seconds};
use crate::phase::{Driver as _, Task};
use crate::plan::{Plan, Profile, Protocol, Transport};
use crate::population::Peer;
use crate::process::{listening_on, usage};
use crate::report::mib;
use crate::sources::Origin;
use crate::stream::Generator;
use crate::tally::Tally;

/// Connections from one loopback address: there are about 28 000 ephemeral ports.
const PER_SOURCE_MAX: u16 = 25_000;

/// Why connections cannot be held.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HoldError {
    /// The tracker has none.
    #[error("the URL has no address")]
    NoAddress,
    /// They need more descriptors.
    #[error(transparent)]
    Descriptors(#[from] DescriptorsError),
    /// The kernel has no epoll instance for them.
    #[error("no epoll: {0}")]
    Epoll(io::Error),
    /// A signal came before any was open.
    #[error(transparent)]
    TooEarly(#[from] TooEarlyError),
    /// The tracker stopped responding.
    #[error("{tracker} stopped responding: {cause}; {remedy}", remedy = REMEDY)]
    Silent {
        /// The tracker.
        tracker: SocketAddr,
        /// Why, as far as it is known.
        cause: String,
    },
    /// None was opened.
    #[error("{tracker}: no connection could be opened: {cause}; {remedy}", remedy = REMEDY)]
    NoneOpened {
        /// The tracker.
        tracker: SocketAddr,
        /// Why, as far as it is known.
        cause: String,
    },
    /// Fewer were opened than requested.
    #[error("{tracker}: only {opened} could be opened: {cause}; {remedy}", remedy = REMEDY)]
    SomeOpened {
        /// The tracker.
        tracker: SocketAddr,
        /// How many.
        opened: u64,
        /// Why, as far as it is known.
        cause: String,
    },
}

/// What to look at if connections fail.
const REMEDY: &str =
    "does the tracker have enough descriptors (ulimit -n), does it cap connections?";

/// The results.
#[derive(Clone, Debug, Serialize)]
struct Held {
    machine: Machine,
    tracker: String,
    /// Number of connections requested.
    connections: u16,
    /// Connections that were opened, and announces that were answered.
    opened: u64,
    announced: u64,
    /// Connections that were open to the end.
    open_at_end: u64,
    /// Seconds to open them, and seconds they were held.
    opening_s: f64,
    held_s: f64,
    /// Whether a signal ended it.
    is_partial: bool,
    /// The tracker's process; absent if it does not run on this host.
    memory: Option<Memory>,
}

/// The tracker's resident memory, in bytes, after each phase; absent if a signal came before its
/// end.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    before_bytes: u64,
    connected_bytes: Option<u64>,
    announced_bytes: Option<u64>,
    end_bytes: Option<u64>,
    /// Growth until all connections had announced, per connection.
    per_connection_bytes: Option<f64>,
}

/// What a phase has left.
struct HeldPhase {
    tally: Tally,
    /// Resident bytes of the tracker; `None` also if a signal has ended the phase: that is no
    /// measurement of the whole.
    rss_bytes: Option<u64>,
    /// Open connections.
    open: u64,
}

/// The connections, and the process at their other end.
struct Holder {
    generator: Generator,
    tracker: SocketAddr,
    pid: Option<u32>,
}

/// Opens the connections, holds them, and prints the results; after a signal those of the part that
/// was run.
///
/// # Errors
/// One sentence with the cause, e.g. too few descriptors.
pub(crate) fn hold(arguments: &HoldArguments) -> Result<(), LoadtestError> {
    let mut holder = Holder::new(arguments)?;
    interrupt::watch()?;
    let before = holder.rss_bytes();
    let connecting = holder.connect()?;
    let opened = connecting.open;
    let filling = holder.phase(Task::Fill)?;
    let announced = filling.tally.answered_all();
    if !interrupt::is_requested() {
        eprintln!(
            "{opened} connections open, {announced} announces answered: held for {} s",
            arguments.duration
        );
    }
    let resting = holder.phase(Task::Rest { duration_ns: ns(arguments.duration) })?;
    let per_connection = |(before, after): (u64, u64)| per(after.saturating_sub(before), opened);
    let held = Held {
        machine: Machine::look(),
        tracker: arguments.url.clone(),
        connections: arguments.connections,
        opened,
        announced,
        open_at_end: resting.open,
        opening_s: seconds(connecting.tally.elapsed_ns),
        held_s: seconds(resting.tally.elapsed_ns),
        is_partial: interrupt::is_requested(),
        memory: before.map(|before_bytes| Memory {
            before_bytes,
            connected_bytes: connecting.rss_bytes,
            announced_bytes: filling.rss_bytes,
            end_bytes: resting.rss_bytes,
            per_connection_bytes: before.zip(filling.rss_bytes).map(per_connection),
        }),
    };
    if arguments.json {
        crate::print_json(&held)?;
    } else {
        held.print();
    }
    if held.is_partial {
        return Err(LoadtestError::Interrupted);
    }
    if opened < arguments.connections.into() {
        let (tracker, cause) = (holder.tracker, cause(&connecting.tally));
        return Err(HoldError::SomeOpened { tracker, opened, cause }.into());
    }
    Ok(())
}

impl Holder {
    fn new(arguments: &HoldArguments) -> Result<Self, LoadtestError> {
        let aim = Aim::of(std::slice::from_ref(&arguments.url), &arguments.tls, &Transport::UDP)?;
        let Some(endpoint) = aim.endpoint.filter(|_| aim.protocol == Protocol::Ws) else {
            return Err(UsageError::HoldUrl.into());
        };
        let tracker = [aim.targets.v4, aim.targets.v6].into_iter().flatten().next();
        let tracker = tracker.ok_or(HoldError::NoAddress)?;
        descriptors::raise(arguments.connections.into()).map_err(HoldError::Descriptors)?;
        let plan = Arc::new(plan(arguments));
        let clients = (0..arguments.connections).map(|place| {
            // Each torrent has two peers, on two connections.
            (place, origin(tracker, place), vec![Peer::leecher(u32::from(place / 2))])
        });
        let (clients, torrents) = (clients.collect(), 0..plan.torrents);
        let generator = Generator::new(&plan, &endpoint, Clock::start(), clients, torrents);
        let pid = arguments.pid.or_else(|| listening_on(tracker, Protocol::Ws));
        Ok(Self { generator: generator.map_err(HoldError::Epoll)?, tracker, pid })
    }

    /// Opens the connections.
    fn connect(&mut self) -> Result<HeldPhase, HoldError> {
        let connecting = self.phase(Task::Connect)?;
        if connecting.open == 0 {
            interrupt::check("connecting")?;
            let (tracker, cause) = (self.tracker, cause(&connecting.tally));
            return Err(HoldError::NoneOpened { tracker, cause });
        }
        Ok(connecting)
    }

    /// Runs a phase, unless a signal has arrived before it.
    fn phase(&mut self, task: Task) -> Result<HeldPhase, HoldError> {
        if interrupt::is_requested() {
            let (tally, open) = (Tally::new(1, 0), self.generator.open_connections());
            return Ok(HeldPhase { tally, rss_bytes: None, open });
        }
        let run = self.generator.run(task, &AtomicU64::new(0));
        if run.silent {
            return Err(HoldError::Silent { tracker: self.tracker, cause: cause(&run.tally) });
        }
        let rss_bytes = self.rss_bytes().filter(|_| !interrupt::is_requested());
        Ok(HeldPhase { tally: run.tally, rss_bytes, open: self.generator.open_connections() })
    }

    /// Resident bytes of the tracker.
    fn rss_bytes(&self) -> Option<u64> {
        self.pid.and_then(usage).map(|it| it.rss_bytes)
    }
}

fn plan(arguments: &HoldArguments) -> Plan {
    let transport = Transport { protocol: Protocol::Ws, offers: 0, ..Transport::UDP };
    Plan {
        transport,
        torrents: u32::from(arguments.connections).div_ceil(2),
        peers: arguments.connections.into(),
        sources: arguments.connections,
        timeout_ms: 5000,
        ..Profile::Smoke.plan()
    }
}

fn origin(to: SocketAddr, place: u16) -> Origin {
    let from: IpAddr = match to.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => {
            let [_, _, _, last] = (2 + u32::from(place / PER_SOURCE_MAX)).to_be_bytes();
            Ipv4Addr::new(127, 0, 0, last).into()
        }
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    Origin { from, to, lane: 0, lanes: 1 }
}

/// Why connections failed.
fn cause(tally: &Tally) -> String {
    let unknown = "the tracker closed them or did not respond";
    tally.failure.clone().unwrap_or_else(|| unknown.to_owned())
}

impl Held {
    fn print(&self) {
        println!("machine     {}", self.machine.line());
        println!(
            "connections {:>12} of {} open after {:.1} s, {} announces answered; {} open after \
             {:.1} s",
            grouped(self.opened),
            grouped(self.connections.into()),
            self.opening_s,
            grouped(self.announced),
            grouped(self.open_at_end),
            self.held_s
        );
        match self.memory {
            Some(memory) => println!("server RSS  {}", memory.text()),
            None => println!("server      not a process of this host: no memory"),
        }
        if self.is_partial {
            println!(
                "warning: interrupted: {} announces answered, held for {:.1} s",
                grouped(self.announced),
                self.held_s
            );
        }
    }
}

impl Memory {
    fn text(&self) -> String {
        let after = [
            (self.connected_bytes, "connected"),
            (self.announced_bytes, "announced"),
            (self.end_bytes, "at the end"),
        ];
        let mut text = format!("{:>8.1} MiB before", mib(self.before_bytes));
        for (bytes, when) in after.into_iter().filter_map(|(bytes, when)| Some((bytes?, when))) {
            text += &format!(", {:.1} MiB {when}", mib(bytes));
        }
        if let Some(bytes) = self.per_connection_bytes {
            text += &format!(": {bytes:.0} bytes per connection");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_of_a_loopback_target_change_before_ports_run_out() {
        let to = "127.0.0.1:1".parse().unwrap();
        assert_eq!(origin(to, 0).from, IpAddr::from([127, 0, 0, 2]));
        assert_eq!(origin(to, 24_999).from, IpAddr::from([127, 0, 0, 2]));
        assert_eq!(origin(to, 50_000).from, IpAddr::from([127, 0, 0, 4]));
        let far = "192.0.2.1:1".parse().unwrap();
        assert!(origin(far, 1).from.is_unspecified());
    }
}
