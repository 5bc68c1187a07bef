//! Opens many WebSocket connections, and measures what each costs the tracker while it is nearly
//! idle.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use serde::Serialize;
use skep::sys::clock::Clock;

use crate::cli::HoldArguments;
use crate::descriptors;
use crate::endpoint::Aim;
use crate::error::LoadtestError;
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
    /// The tracker's process; absent if it does not run on this host.
    memory: Option<Memory>,
}

/// The tracker's resident memory, in bytes.
#[derive(Clone, Copy, Debug, Serialize)]
struct Memory {
    before_bytes: u64,
    connected_bytes: u64,
    announced_bytes: u64,
    end_bytes: u64,
    /// Growth until all connections had announced, per connection.
    per_connection_bytes: f64,
}

/// Opens the connections, holds them, and prints the results.
///
/// # Errors
/// One sentence with the cause, e.g. too few descriptors.
pub(crate) fn hold(arguments: &HoldArguments) -> Result<(), LoadtestError> {
    let aim = Aim::of(std::slice::from_ref(&arguments.url), &arguments.tls, &Transport::UDP)?;
    let Some(endpoint) = aim.endpoint.filter(|_| aim.protocol == Protocol::Ws) else {
        return Err(LoadtestError::Usage("hold needs a ws or wss URL".to_owned()));
    };
    let target = [aim.targets.v4, aim.targets.v6].into_iter().flatten().next();
    let target = target.ok_or_else(|| "the URL has no address".to_owned())?;
    descriptors::raise(arguments.connections.into())?;
    let plan = Arc::new(plan(arguments));
    let pid = arguments.pid.or_else(|| listening_on(target, Protocol::Ws));
    let rss_bytes = || pid.and_then(usage).map(|it| it.rss_bytes);
    let clients = (0..arguments.connections).map(|place| {
        // Each torrent has two peers, on two connections.
        (place, origin(target, place), vec![Peer::leecher(u32::from(place / 2))])
    });
    let mut generator =
        Generator::new(&plan, &endpoint, Clock::start(), clients.collect(), 0..plan.torrents)
            .map_err(|error| format!("no epoll: {error}"))?;
    let mut phase = |task| {
        let run = generator.run(task, &AtomicU64::new(0));
        if run.silent {
            return Err(format!("{target} stopped responding: {}", cause(&run.tally)));
        }
        Ok::<_, String>((run.tally, rss_bytes(), generator.open_connections()))
    };
    let before = rss_bytes();
    let (connecting, connected, opened) = phase(Task::Connect)?;
    if opened == 0 {
        let cause = cause(&connecting);
        return Err(format!("{target}: no connection could be opened: {cause}").into());
    }
    let (filling, announced, _) = phase(Task::Fill)?;
    let duration_ns = ns(arguments.duration);
    let (_, end, open_at_end) = phase(Task::Rest { duration_ns })?;
    let memory = before.zip(connected).zip(announced.zip(end));
    let memory = memory.map(|((before, connected), (announced, end))| Memory {
        before_bytes: before,
        connected_bytes: connected,
        announced_bytes: announced,
        end_bytes: end,
        per_connection_bytes: per(announced.saturating_sub(before), opened),
    });
    let held = Held {
        machine: Machine::look(),
        tracker: arguments.url.clone(),
        connections: arguments.connections,
        opened,
        announced: filling.answered_all(),
        open_at_end,
        opening_s: seconds(connecting.elapsed_ns),
        held_s: arguments.duration,
        memory,
    };
    if arguments.json {
        crate::print_json(&held)?;
    } else {
        held.print();
    }
    if opened < arguments.connections.into() {
        let cause = cause(&connecting);
        return Err(format!("{target}: only {opened} could be opened: {cause}").into());
    }
    Ok(())
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
    let remedy = "does the tracker have enough descriptors (ulimit -n), does it cap connections?";
    match &tally.failure {
        Some(failure) => format!("{failure}; {remedy}"),
        None => format!("the tracker closed them or did not respond; {remedy}"),
    }
}

impl Held {
    fn print(&self) {
        println!("machine     {}", self.machine.line());
        println!(
            "connections {:>12} of {} open after {:.1} s, {} announces answered; {} open after \
             {} s",
            grouped(self.opened),
            grouped(self.connections.into()),
            self.opening_s,
            grouped(self.announced),
            grouped(self.open_at_end),
            self.held_s
        );
        match self.memory {
            Some(memory) => println!(
                "server RSS  {:>8.1} MiB before, {:.1} MiB connected, {:.1} MiB announced, {:.1} \
                 MiB at the end: {:.0} bytes per connection",
                mib(memory.before_bytes),
                mib(memory.connected_bytes),
                mib(memory.announced_bytes),
                mib(memory.end_bytes),
                memory.per_connection_bytes
            ),
            None => println!("server      not a process of this host: no memory"),
        }
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
