//! Attack profiles: attacks on a public tracker, small enough for one host, and their effect on
//! honest clients.
//!
//! Each profile is a function of an [`Arena`] that returns [`Figures`]. The results are compared
//! with the expectations of the command line. A missed expectation is an error, so that these runs
//! can be used in automated checks.

mod beside;
mod crowd;
mod figures;
mod forged;
mod hashes;
mod options;
mod overload;
mod sybil;
mod traffic;
mod works;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use serde::Serialize;
use skep::sys::clock::Clock;

use crate::cli::RunArguments;
use crate::endpoint::Aim;
use crate::error::{LoadtestError, UsageError};
use crate::interrupt::{self, TooEarlyError};
use crate::machine::Machine;
use crate::numbers::grouped;
use crate::plan::{Plan, Profile, Protocol};
use crate::process::{Usage, listening_on, usage};
use crate::run::RunError;
use crate::sources::{Targets, address_of};

pub(crate) use figures::{Figures, Measure};
use options::Attack;
pub(crate) use options::{AttackArguments, Bound};

/// Why an attack cannot be run or measured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttackError {
    /// A part that is a load like any other.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A signal came before anything was measured.
    #[error(transparent)]
    TooEarly(#[from] TooEarlyError),
    /// This host has one address toward the tracker.
    #[error(
        "an attack needs many IPv4 addresses: use a tracker in 127.0.0.0/8, or set --source to a \
         network of this host"
    )]
    OneAddress,
    /// Two sources would have one address.
    #[error("the networks given as --source have fewer addresses than needed")]
    FewAddresses,
    /// A socket for the sources could not be opened.
    #[error("no socket: {0}")]
    Socket(io::Error),
    /// No source has a connection id.
    #[error(
        "{tracker}: none of {sources} sources got a connection id, {unanswered} requests had no \
         response: is it a UDP tracker, and does it accept these sources?"
    )]
    NoConnectionIds {
        /// The tracker.
        tracker: SocketAddr,
        /// All sources.
        sources: usize,
        /// Requests without a response.
        unanswered: u64,
    },
    /// The tracker counts nothing.
    #[error(
        "{tracker}: {answered} announces were answered, but scrapes count no peers: no loss can be \
         measured"
    )]
    NothingCounted {
        /// The tracker.
        tracker: SocketAddr,
        /// Announces that were answered.
        answered: u64,
    },
    /// The honest peers of the swarm got no response.
    #[error("{0}: no honest peer of the swarm was answered")]
    NoneAnswered(SocketAddr),
    /// A thread of this program has panicked.
    #[error("the {0} thread ended")]
    ThreadEnded(&'static str),
}

/// The setting of an attack.
pub(crate) struct Arena<'a> {
    plan: &'a Plan,
    attack: Attack,
    target: SocketAddr,
    pid: Option<u32>,
    clock: Clock,
}

/// The JSON output.
#[derive(Serialize)]
struct Printed<'a> {
    machine: Machine,
    tracker: &'a str,
    plan: &'a Plan,
    attack: &'a Attack,
    figures: &'a Figures,
}

/// Runs the attack of a plan's profile and prints the results; after a signal those of the part
/// that was run, which no expectation is compared with.
///
/// # Errors
/// One sentence with the cause, or with the expectations that were missed.
pub(crate) fn attack(arguments: &RunArguments, plan: &Plan) -> Result<(), LoadtestError> {
    let attack = arguments.attack.attack(plan.profile).map_err(UsageError::Plan)?;
    let [tracker] = &arguments.target[..] else {
        return Err(UsageError::AttackTarget.into());
    };
    let aim = Aim::of(&arguments.target, &arguments.tls, &plan.transport)?;
    let target = [aim.targets.v4, aim.targets.v6].into_iter().flatten().next();
    let target = target.filter(|_| aim.protocol == Protocol::Udp);
    let target = target.ok_or(UsageError::AttackProtocol)?;
    let pid = arguments.pid.or_else(|| listening_on(target, Protocol::Udp));
    interrupt::watch()?;
    let arena = Arena { plan, attack, target, pid, clock: Clock::start() };
    let (before, start_ns) = (arena.usage(), arena.now_ns());
    let mut figures = match plan.profile {
        Profile::Flood | Profile::ScrapeStorm => beside::run(&arena),
        Profile::Forged => forged::run(&arena),
        Profile::RandomHashes => hashes::run(&arena),
        Profile::Sybil => sybil::run(&arena),
        _ => overload::run(&arena),
    }?;
    figures.used(before, arena.usage(), arena.now_ns() - start_ns);
    let is_partial = interrupt::is_requested();
    if is_partial {
        figures.interrupted();
    } else {
        figures.judge(&arguments.attack.expected());
    }
    if cfg!(debug_assertions) {
        figures.warnings.push("debug build: attackers are slow; use cargo run --release".into());
    }
    let machine = Machine::look();
    if arguments.json {
        let (attack, figures) = (&arena.attack, &figures);
        crate::print_json(&Printed { machine, tracker, plan, attack, figures })?;
    } else {
        println!("machine     {}", machine.line());
        println!(
            "attack      {:?} profile on {tracker}: {} torrents, {} peers, seed {}",
            plan.profile,
            grouped(plan.torrents.into()),
            grouped(plan.peers.into()),
            plan.seed
        );
        print!("{}", figures.text());
    }
    if is_partial {
        return Err(LoadtestError::Interrupted);
    }
    LoadtestError::of_missed(figures.missed)
}

impl Arena<'_> {
    /// Some of the addresses that this host may send from. Different places have different
    /// addresses.
    ///
    /// # Errors
    /// If the tracker is not on loopback and no sources were given.
    fn addresses(&self, places: Range<u32>) -> Result<Vec<IpAddr>, AttackError> {
        let address = |it| address_of(self.plan, self.target, it);
        let all: Vec<IpAddr> = (places.start as usize..places.end as usize).map(address).collect();
        if all.iter().any(IpAddr::is_unspecified) || self.target.is_ipv6() {
            return Err(AttackError::OneAddress);
        }
        Ok(all)
    }

    /// The trackers in the form that the other profiles use.
    fn targets(&self) -> Targets {
        Targets { v4: Some(self.target), v6: None }
    }

    /// The resources that the tracker's process has used so far.
    fn usage(&self) -> Option<Usage> {
        self.pid.and_then(usage)
    }

    fn now_ns(&self) -> u64 {
        self.clock.elapsed_ns_at(self.clock.now())
    }
}
