//! Load tester for BitTorrent trackers. See `--help`, and the documentation of each module:
//!
//! ```text
//! cli ─▶ plan ─▶ run ─▶ generator (UDP) or stream (TCP), one per thread ─▶ tally ─▶ report, plot
//!                │        phase, requests, sources, population, slots, check
//!                └─ process, contestant: the tracker's side; limit: the responder without tracking
//! attack: attack profiles; soak: long runs; compare, memory: many runs; hold: connections
//! veth: compare by frames through a pair of interfaces, made by an XDP program
//! interrupt: Ctrl-C; error: exit codes
//! ```

mod attack;
mod check;
mod cli;
mod compare;
mod contestant;
mod descriptors;
mod endpoint;
mod error;
mod generator;
mod hold;
mod interrupt;
mod limit;
mod machine;
mod memory;
mod numbers;
mod peers;
mod phase;
mod plan;
mod plot;
mod population;
mod process;
mod progress;
mod report;
mod requests;
mod run;
mod segments;
mod slots;
mod soak;
mod sources;
mod stream;
mod tally;
mod veth;

use std::process::ExitCode;

use clap::Parser as _;
use serde::Serialize;
use skep::sys::affinity::usable_cpus;
use skep::sys::clock::Clock;

use cli::{Cli, Command, RunArguments};
use contestant::{Contestant, Started, own_program, sibling_skep};
use endpoint::Aim;
use error::{LoadtestError, UsageError};
use machine::Machine;
use plan::{Families, Plan, Profile, Protocol};
use report::Figures;
use run::{Site, run};
use sources::Targets;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        None => single(&cli.run),
        Some(Command::Run(arguments)) => single(arguments),
        Some(Command::Limit(limit_arguments)) => {
            limit::serve_limit(&limit_arguments.serve, limit_arguments.peers).map_err(Into::into)
        }
        Some(Command::Serve(options)) => limit::serve_tracker(options).map_err(Into::into),
        Some(Command::Compare(compare_arguments)) => compare::compare(compare_arguments),
        Some(Command::Hold(hold_arguments)) => hold::hold(hold_arguments),
        Some(Command::Memory(memory_arguments)) => memory::memory(memory_arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loadtest: {error}");
            error.exit_code()
        }
    }
}

/// The JSON output of a single run.
#[derive(Serialize)]
struct Printed<'a> {
    machine: Machine,
    tracker: &'a str,
    plan: &'a Plan,
    figures: &'a Figures,
}

/// One run against a given tracker, or against a skep that it starts.
fn single(arguments: &RunArguments) -> Result<(), LoadtestError> {
    let plan = arguments.plan.plan().map_err(UsageError::Plan)?;
    let plan = arguments.soak.plan(plan).map_err(UsageError::Plan)?;
    if plan.profile.is_attack() {
        return attack::attack(arguments, &plan);
    }
    if arguments.attack.are_given() {
        return Err(UsageError::NoAttack.into());
    }
    interrupt::watch()?;
    let clock = Clock::start();
    let cpus = usable_cpus().map_err(LoadtestError::Cpus)?;
    let (started, name, aim);
    if arguments.target.is_empty() {
        let (own, label) = start_skep(cpus.first().copied(), &clock)?;
        aim = Aim { targets: own.targets, protocol: Protocol::Udp, endpoint: None };
        name = label;
        started = Some(own);
    } else {
        aim = Aim::of(&arguments.target, &arguments.tls, &plan.transport)?;
        name = arguments.target.join(" and ");
        started = None;
    }
    let Aim { targets, protocol, endpoint } = aim;
    let tls = endpoint.as_ref().is_some_and(|it| it.tls.is_some());
    let plan = arguments.plan.carried_by(plan, protocol, tls).map_err(UsageError::Plan)?;
    let plan = families_of(plan, &targets, arguments);
    let own = started.as_ref().map(|it| it.server.pid());
    let pid = arguments.pid.or(own).or_else(|| {
        let mut local = [targets.v4, targets.v6].into_iter().flatten();
        local.find_map(|it| process::listening_on(it, protocol))
    });
    // The generator uses the last CPUs, a tracker that was started here the first.
    let generator_cpus = match started {
        Some(_) if cpus.len() > 1 => cpus.iter().rev().take(cpus.len() - 1).copied().collect(),
        _ => Vec::new(),
    };
    let site = Site { targets, endpoint, pid, cpus: generator_cpus, clock };
    if plan.profile == Profile::Soak {
        return soak::soak(arguments, &name, &plan, &site);
    }
    let outcome = run(&plan, &site)?;
    let figures = Figures::of(&outcome);
    if let Some(file) = &arguments.plot {
        plot::plot(file, [&name, &figures.in_short(&outcome.plan)], &outcome.tally)?;
    }
    print(arguments, &name, &outcome.plan, &figures)?;
    if interrupt::is_requested() { Err(LoadtestError::Interrupted) } else { Ok(()) }
}

fn print(
    arguments: &RunArguments,
    name: &str,
    plan: &Plan,
    figures: &Figures,
) -> Result<(), LoadtestError> {
    let machine = Machine::look();
    if arguments.json {
        return print_json(&Printed { machine, tracker: name, plan, figures });
    }
    println!("machine     {}", machine.line());
    println!(
        "load        {:?} profile over {} on {name}: {} torrents, {} peers, {}, seed {}",
        plan.profile,
        plan.transport.text(),
        numbers::grouped(plan.torrents.into()),
        numbers::grouped(plan.peers.into()),
        plan.pace(),
        plan.seed
    );
    print!("{}", figures.text());
    Ok(())
}

/// Prints a value as JSON.
///
/// # Errors
/// If it cannot be written as JSON.
fn print_json(value: &impl Serialize) -> Result<(), LoadtestError> {
    let text = serde_json::to_string_pretty(value)?;
    println!("{text}");
    Ok(())
}

/// If no family was given, the families follow from the targets.
fn families_of(plan: Plan, targets: &Targets, arguments: &RunArguments) -> Plan {
    if arguments.target.is_empty() || targets.of(plan.families == Families::V6).is_some() {
        return plan;
    }
    let families = if targets.v4.is_some() { Families::V4 } else { Families::V6 };
    Plan { families, ..plan }
}

/// Starts the skep next to this program, or the one inside it, on any free port.
fn start_skep(cpu: Option<usize>, clock: &Clock) -> Result<(Started, String), LoadtestError> {
    // One CPU belongs to the generator. With two, the tracker has the other.
    let beside = sibling_skep().map(|it| ("skep", it, vec!["run", "--admin", "127.0.0.1:0"]));
    let within = ("skep (within loadtest)", own_program(), vec!["serve"]);
    let mut failure = None;
    for (name, program, mut arguments) in beside.into_iter().chain([within]) {
        arguments.extend(["--listen", "127.0.0.1:0", "--listen", "[::1]:0", "--workers", "1"]);
        match Contestant::own(name, &program, &arguments).start_by_ready_line(cpu, clock) {
            Ok(started) => return Ok((started, name.to_owned())),
            Err(error) => {
                eprintln!("loadtest: {error}");
                failure = Some(error);
            }
        }
    }
    Err(failure.map_or(LoadtestError::NoSkep, LoadtestError::Start))
}
