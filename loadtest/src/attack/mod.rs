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

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use serde::Serialize;
use skep::sys::clock::Clock;

use crate::cli::RunArguments;
use crate::endpoint::Aim;
use crate::error::LoadtestError;
use crate::interrupt;
use crate::machine::Machine;
use crate::numbers::grouped;
use crate::plan::{Plan, Profile, Protocol};
use crate::process::{Usage, listening_on, usage};
use crate::sources::{Targets, address_of};

pub(crate) use figures::{Figures, Measure};
use options::Attack;
pub(crate) use options::{AttackArguments, Bound};

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
    let usage = |text: &str| LoadtestError::Usage(text.to_owned());
    let attack = arguments.attack.attack(plan.profile).map_err(LoadtestError::Usage)?;
    let [tracker] = &arguments.target[..] else {
        return Err(usage(
            "an attack profile needs the tracker to attack as its one --target; a skep limits \
             sources on loopback only with an empty exempt list in [limits]",
        ));
    };
    let aim = Aim::of(&arguments.target, &arguments.tls, &plan.transport)?;
    let target = [aim.targets.v4, aim.targets.v6].into_iter().flatten().next();
    let target = target.filter(|_| aim.protocol == Protocol::Udp);
    let udp_only = || usage("attack profiles use UDP: set --target HOST:PORT");
    let target = target.ok_or_else(udp_only)?;
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
    if figures.missed.is_empty() { Ok(()) } else { Err(figures.missed.join("; ").into()) }
}

impl Arena<'_> {
    /// Some of the addresses that this host may send from. Different places have different
    /// addresses.
    ///
    /// # Errors
    /// If the tracker is not on loopback and no sources were given.
    fn addresses(&self, places: Range<u32>) -> Result<Vec<IpAddr>, String> {
        let address = |it| address_of(self.plan, self.target, it);
        let all: Vec<IpAddr> = (places.start as usize..places.end as usize).map(address).collect();
        if all.iter().any(IpAddr::is_unspecified) || self.target.is_ipv6() {
            return Err("an attack needs many IPv4 addresses: use a tracker in 127.0.0.0/8, or \
                        set --source to a network of this host"
                .to_owned());
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
