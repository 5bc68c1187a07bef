//! A comparison over a veth pair: every tracker gets the same frames, made by an XDP program on one
//! CPU, as a network card would hand them over, and all CPU time of the server's side counts.
//!
//! ```text
//! options ─▶ phase ─▶ figures ─▶ report
//!            │ generator, sink: XDP programs, in programs with their maps; frames: their contents
//!            │ sample: responses that are checked in full
//!            └ network: namespaces and the pair; cpu: time of threads; weights: how they share
//! ```

mod cpu;
mod figures;
mod frames;
mod generator;
mod network;
mod options;
mod phase;
mod programs;
mod report;
mod sample;
mod sink;
#[cfg(test)]
mod tests;
mod weights;

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4};

use skep::sys::affinity::{pin, usable_cpus};
use skep::sys::clock::Clock;
use skep::sys::xdp::kernel::{AttachMode, LoadError, XdpLink};

use crate::cli::CompareArguments;
use crate::contestant::{Contestant, ContestantStartError, Started, own_program, sibling_skep};
use crate::error::LoadtestError;
use crate::interrupt::{self, TooEarlyError};
use crate::machine::Machine;
use cpu::Meter;
use figures::PhaseFigures;
use network::{Network, SERVER};
use options::Xdp;
pub(crate) use options::{VethArguments, VethPlan, VethWorkload};
use phase::{Bench, Load};
use programs::{Programs, Shape};
use report::{Comparison, PhaseRow, Row};
use sample::Sampler;
use weights::weigh_tracker;

/// Why nothing could be measured over a veth pair.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VethError {
    /// No namespace.
    #[error(
        "cannot use a network namespace: {0}; remedy: run as root (CAP_SYS_ADMIN, CAP_NET_ADMIN, \
         CAP_NET_RAW and CAP_BPF), outside of containers that deny it"
    )]
    Namespace(io::Error),
    /// iproute2 could not be run.
    #[error("cannot run ip: {0}; remedy: install iproute2")]
    Iproute(io::Error),
    /// iproute2 did not do what it should.
    #[error("ip {command}: {words}; remedy: run as root, on a kernel with veth")]
    Command {
        /// Its arguments.
        command: String,
        /// What it printed.
        words: String,
    },
    /// An interface cannot be set up.
    #[error(
        "cannot set up the veth pair: {0}; remedy: run as root, with /sys and /proc/sys writable, \
         on Linux 5.18 or newer"
    )]
    Interface(io::Error),
    /// An interface has no receiving thread.
    #[error("{0} has no thread that receives; remedy: Linux 5.18 or newer, with threaded NAPI")]
    Napi(String),
    /// A program of the generator's side.
    #[error("{0}; remedy: run as root (CAP_BPF, CAP_NET_ADMIN), on Linux 5.18 or newer")]
    Load(#[from] LoadError),
    /// The sink.
    #[error("cannot attach the sink to the veth pair: {0}; remedy: Linux 5.18 or newer")]
    Attach(io::Error),
    /// A map cannot be read or written.
    #[error("cannot use a map of the generator: {0}")]
    Map(io::Error),
    /// The generator.
    #[error("cannot generate frames: {0}; remedy: Linux 5.18 or newer (XDP live frames)")]
    Generate(io::Error),
    /// The sampled responses.
    #[error("cannot read sampled responses: {0}")]
    Sample(io::Error),
    /// CPUs.
    #[error("cannot use a CPU: {0}; remedy: run as root (CAP_SYS_NICE)")]
    Cpu(io::Error),
    /// A tracker cannot be started.
    #[error(transparent)]
    Start(#[from] ContestantStartError),
    /// It ended.
    #[error("the tracker has ended")]
    Ended,
    /// Too little was answered before anything was measured.
    #[error("only {reached} {what} of {wanted} came within {seconds} s")]
    Unprepared {
        /// What.
        what: &'static str,
        /// How many came.
        reached: u64,
        /// How many were wanted.
        wanted: u64,
        /// How long it took.
        seconds: u64,
    },
    /// The result cannot be written.
    #[error("{file}: {error}")]
    Write {
        /// The file.
        file: String,
        /// Why not.
        error: io::Error,
    },
    /// A signal came first.
    #[error(transparent)]
    TooEarly(#[from] TooEarlyError),
    /// One tracker's run failed.
    #[error("{name}: {error} {words}")]
    Contestant {
        /// The tracker.
        name: String,
        /// Why.
        error: Box<Self>,
        /// Its last output.
        words: String,
    },
}

/// The results of a run of one contestant, one for each of [`Load::ALL`].
type Round = Vec<PhaseFigures>;

/// Runs a comparison and prints the result.
///
/// # Errors
/// One sentence with the cause.
pub(crate) fn compare(arguments: &CompareArguments) -> Result<(), LoadtestError> {
    let plan = arguments.veth_plan()?;
    interrupt::watch()?;
    let usable = usable_cpus().map_err(LoadtestError::Cpus)?;
    let server = arguments.server_cpu.or_else(|| usable.first().copied()).unwrap_or(0);
    let others = usable.iter().rev().copied();
    let generator = others.clone().find(|it| *it != server).unwrap_or(server);
    // The tracker's CPU is for the tracker alone.
    pin(generator).map_err(VethError::Cpu)?;
    let network = Network::new()?;
    let contestants = contestants(arguments, &plan, network.server_interface());
    let cpus = [server, generator];
    let rounds = rounds(arguments.rounds, &plan, &contestants, &network, cpus)?;
    let complete = rounds.iter().map(Vec::len).min().unwrap_or(0);
    if complete == 0 {
        return Err(LoadtestError::Interrupted);
    }
    let row = |(contestant, rounds): (&Contestant, Vec<Round>)| {
        let phase = |(at, load): (usize, Load)| {
            let rounds: Vec<_> = rounds.iter().filter_map(|it| it.get(at).cloned()).collect();
            PhaseRow { load, median: PhaseFigures::medians(&rounds), rounds }
        };
        let phases = Load::ALL.into_iter().enumerate().map(phase).collect();
        Row { name: contestant.name.clone(), command: contestant.command(), phases }
    };
    let rows: Vec<Row> = contestants.iter().zip(rounds).map(row).collect();
    let comparison = Comparison::new(Machine::look(), cpus, plan, complete, rows);
    if let Some(file) = &arguments.veth.json_file {
        let text = serde_json::to_string_pretty(&comparison)?;
        let name = || file.display().to_string();
        std::fs::write(file, text + "\n")
            .map_err(|error| VethError::Write { file: name(), error })?;
    }
    match arguments.json {
        true => crate::print_json(&comparison)?,
        false => print!("{}", comparison.text()),
    }
    if interrupt::is_requested() { Err(LoadtestError::Interrupted) } else { Ok(()) }
}

/// Runs all rounds, or those until a signal: the figures of each contestant, by round.
fn rounds(
    count: u16,
    plan: &VethPlan,
    contestants: &[Contestant],
    network: &Network,
    cpus: [usize; 2],
) -> Result<Vec<Vec<Round>>, VethError> {
    let mut figures: Vec<Vec<Round>> = vec![Vec::new(); contestants.len()];
    for round in 0..usize::from(count) {
        for turn in 0..contestants.len() {
            // Each contestant comes first, second, ... in some round.
            let place = (round + turn) % contestants.len();
            let contestant = &contestants[place];
            eprintln!("round {} of {count}: {}", round + 1, contestant.name);
            match run(plan, contestant, network, cpus)? {
                Some(figures_of_round) => figures[place].push(figures_of_round),
                // A part of a run is not comparable with whole ones.
                None => return Ok(figures),
            }
        }
    }
    Ok(figures)
}

/// Starts one contestant and runs all phases; `None` if a signal came.
fn run(
    plan: &VethPlan,
    contestant: &Contestant,
    network: &Network,
    cpus: [usize; 2],
) -> Result<Option<Round>, VethError> {
    let clock = Clock::start();
    let start = || Ok(contestant.start(&plan.as_plan(), Some(cpus[0]), &clock)?);
    let started = match network.at_server(start) {
        Err(VethError::Start(_)) if interrupt::is_requested() => return Ok(None),
        started => started?,
    };
    let phases = || -> Result<Option<Round>, VethError> {
        let (programs, _sink) = load(plan, &started, network)?;
        network.receive_on(cpus)?;
        weigh_tracker(started.server.pid())?;
        let port = started.targets.v4.map_or(0, |it| it.port());
        let open = |_| Sampler::open(port, plan.numwant).map_err(VethError::Sample);
        let meter = Meter::new(started.server.pid(), network.server_interface(), cpus[0]);
        let sampler = network.at_client(open)?;
        let programs = &programs;
        let mut bench = Bench { network, programs, plan, meter, sampler, clock, cpus };
        bench.connect_all()?;
        bench.announce_all()?;
        Load::ALL.into_iter().map(|load| bench.measure(load)).collect()
    };
    match phases() {
        Err(_) if interrupt::is_requested() => Ok(None),
        done => done.map_err(|error| VethError::Contestant {
            name: contestant.name.clone(),
            error: Box::new(error),
            words: started.server.last_words(),
        }),
    }
}

/// The programs for one tracker, with the sink attached for as long as the second value lives.
fn load(
    plan: &VethPlan,
    started: &Started,
    network: &Network,
) -> Result<(Programs, XdpLink), VethError> {
    let port = started.targets.v4.map_or(0, |it| it.port());
    network.at_client(|interface| {
        let programs = Programs::load(&Shape {
            server: SocketAddrV4::new(SERVER, port),
            interface,
            client_bits: plan.client_bits(),
            torrent_bits: plan.torrents.ilog2(),
            numwant: plan.numwant,
            seed: plan.seed,
            sample_every: plan.sample_every,
        })?;
        let sink = programs.sink.attach(interface, AttachMode::Native);
        Ok((programs, sink.map_err(VethError::Attach)?))
    })
}

/// The limit, the skep next to this program in each of its modes, and the trackers that were given.
fn contestants(arguments: &CompareArguments, plan: &VethPlan, interface: &str) -> Vec<Contestant> {
    let peers = arguments.limit_peers.unwrap_or_else(|| plan.limit_peers()).to_string();
    let limit = ["limit", "--listen", "{addr}", "--peers", &peers];
    let mut all = vec![Contestant::own("limit", &own_program(), &limit)];
    if let Some(program) = sibling_skep().filter(|_| !arguments.no_skep) {
        let skep = |mode: &Xdp| skep(&program, *mode, interface);
        all.extend(arguments.veth.xdp.iter().map(skep));
    }
    all.extend(arguments.tracker.iter().cloned());
    all.into_iter().map(at_the_pair).collect()
}

fn skep(program: &std::path::Path, mode: Xdp, interface: &str) -> Contestant {
    let name = match mode {
        Xdp::Off => report::BASELINE.to_owned(),
        mode => format!("skep, xdp {}", mode.label()),
    };
    let words = ["run", "--listen", "{addr}", "--admin", "127.0.0.1:0", "--workers", "1"];
    let mut contestant = Contestant::own(&name, program, &words);
    if mode != Xdp::Off {
        let settings = [
            "env".to_owned(),
            format!("SKEP__UDP__XDP={}", mode.label()),
            format!("SKEP__UDP__XDP_INTERFACES={interface}"),
            "SKEP__UDP__XDP_MODE=native".to_owned(),
        ];
        contestant.words.splice(0..0, settings);
    }
    contestant
}

/// A contestant of loopback, at the server's address.
fn at_the_pair(contestant: Contestant) -> Contestant {
    match contestant.address.ip().is_loopback() {
        true => {
            let address = SocketAddr::new(IpAddr::V4(SERVER), contestant.address.port());
            Contestant { address, ..contestant }
        }
        false => contestant,
    }
}
