//! Flags and subcommands, with their help texts.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand};

use crate::attack::AttackArguments;
use crate::contestant::Contestant;
use crate::endpoint::TlsArguments;
use crate::error::UsageError;
use crate::limit::{PEERS_MAX, ServeOptions};
use crate::plan::{Distribution, Families, Mix, Plan, PlanError, Profile, Protocol, Transport};
use crate::soak::SoakArguments;
use crate::sources::SourceRange;
use crate::veth::{VethArguments, VethPlan, VethWorkload};

/// The explanation in --help, below the flags.
const LESSON: &str = "\
How to read and trust a result:
  Closed loop (no --rate): each socket keeps --in-flight requests unanswered, so that requests are
  sent as fast as the tracker responds. Read answered/s and CPU per response; latency then is
  queueing.
  Open loop (--rate): requests leave at moments fixed in advance, answered or not. Latency counts
  from those moments, so a stall counts in all requests that it delays. Read latency and loss.
  Every response is checked: length, transaction id, action, no own address, no port 0, not more
  peers than requested. An invalid response is counted by kind, and never as answered.
  CPU per response is that of the tracker's process, from the kernel's scheduler, to the
  nanosecond. On loopback each side pays for queueing its datagrams at the other.
  `loadtest limit` is the floor: a responder without tracking over skep's own I/O.

  Over TCP a closed loop keeps one request unanswered on each of --connections, 1024 a
  thread at most.
  An open loop's request that finds no idle connection leaves late, and that lateness is counted.
  WebTorrent: a socket is one peer in each of its torrents, so no swarm is larger than the number of
  connections. Offers are answered; relayed offers and answers are counted separately.

Attack profiles (flood, forged, random-hashes, sybil, scrape-storm, overload):
  They need a --target, over UDP and IPv4, and report which share of honest requests was answered
  meanwhile. For a tracker in 127.0.0.0/8 every source has its own address; elsewhere set --source
  to a network. skep limits sources on loopback only if [limits] exempt is empty. Of the options
  above they use --torrents, --peers, --numwant, --seed, --source, --timeout-ms, --threads (those of
  the attack), --warmup and --duration; overload uses all. An --expect-... that is not met ends the
  run with code 1, after its report. A limiter's response counts as answered, an error response does
  not.

Soak profile:
  An open loop at --rate, or at half of what a short closed loop measures first, for --for (1h)
  after a warm-up. A line a minute; at the end the slope of resident memory (least squares), open
  descriptors, p99 of the last quarter over that of the first, and loss. Memory and descriptors
  need the tracker's process on this host. An --expect-... that is not met ends it with code 1.

Ctrl-C or SIGTERM ends every measurement with a report on what was measured so far; a second one
ends the process at once, without a report.

Exit codes: 0 done, 1 the run failed, was interrupted or missed an --expect-..., 2 invalid usage.

Examples:
  loadtest --profile soak --for 1h --target 127.0.0.1:6969 --expect-slope 1 --expect-descriptors 0
  loadtest --profile flood --target 127.0.0.1:6969 --duration 60 --expect-honest 0.95
  loadtest --profile random-hashes --requests 50000000 --memory-cap 1GiB --expect-kept 0.99 \
    --target 127.0.0.1:6969
  loadtest                                    canonical load on the skep beside this program
  loadtest --target 127.0.0.1:6969 --rate 50000 --plot run.svg
  loadtest --profile public --duration 60 --json
  loadtest --target http://127.0.0.1:6969/announce --one-shot --torrents 10000 --peers 20000
  loadtest --target wss://[::1]:6443 --insecure --profile smoke --offers 2
  loadtest compare --rounds 5 --tracker 'ot=opentracker -i {ip} -p {port} -P {port}@127.0.0.1:0'
  loadtest compare --protocol http --torrents 100000 --peers 200000
  loadtest hold ws://127.0.0.1:6969 --connections 50000
  loadtest memory";

/// Load tester for BitTorrent trackers over UDP, HTTP and WebSocket: rate, latency, loss, CPU,
/// memory.
///
/// Without arguments it starts a skep, makes 2 million peers in 1 million torrents resident, sends
/// requests as fast as it responds, and reports.
#[derive(Debug, Parser)]
#[command(version, after_long_help = LESSON, args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    /// Something other than a single run.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// A single run.
    #[command(flatten)]
    pub(crate) run: Box<RunArguments>,
}

/// What else there is.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// A single run, the same as without a subcommand.
    #[command(after_long_help = LESSON)]
    Run(Box<RunArguments>),
    /// Serve without tracking: the physical limit of this host. Prints a ready line; end it with
    /// Ctrl-C.
    Limit(LimitArguments),
    /// Serve skep's tracker from within this program, as a stand-in for its binary.
    #[command(hide = true)]
    Serve(ServeOptions),
    /// Run several trackers and the limit in turn, round by round, and print medians and ratios.
    #[command(after_long_help = COMPARE_LESSONS.as_str())]
    Compare(Box<CompareArguments>),
    /// Hold many WebSocket connections open, and measure what each costs the tracker.
    #[command(after_long_help = HOLD_LESSON)]
    Hold(HoldArguments),
    /// Measure resident bytes per peer at several swarm sizes, for both families.
    #[command(after_long_help = COMPARE_LESSON)]
    Memory(MemoryArguments),
}

/// The explanation in --help of compare, below the flags.
const COMPARE_LESSON: &str = "\
A --tracker is NAME=COMMAND@IP:PORT; port 0 means any free one. No shell is involved. In COMMAND,
and in files named by {template:FILE}, these are filled in:
  {ip} {port} {addr}   where it has to respond
  {addr4} {addr6}      the same port on 127.0.0.1 and ::1
  {hashes}             a file with the load's info-hashes, in hex, one per line (for allow lists)
  {dir}                a scratch folder; also the working folder
Each tracker is pinned to one CPU and the generator to the others, and is a fresh process in each
round. Close other programs first, and quote the medians of at least 5 rounds.";

/// The explanation in --help of compare, about veth pairs.
const VETH_LESSON: &str = "\
Over a veth pair (--network veth, as root, Linux 5.18 or newer, with iproute2) frames are made by an
XDP program on one CPU and arrive without a socket on the sending side, as from a network card. The
namespaces have no name and end with this process. All of it is IPv4 over UDP. Options that count:
--torrents, --numwant, --seed, --rate (per second; default 100000), --in-flight (at saturation;
default 128), --warmup, --duration (of each of five loads; default 3), and those below. A --tracker
on loopback is moved to the pair's address.
  server CPU/answer  the tracker's threads, the kernel's thread that receives for the interface
                     (NAPI, with the XDP programs), and the softirq daemon of their CPU
  answered %         of the honest requests of a load, from the first to the last
  errors, invalid    every response is checked: addresses, lengths, action, transaction id
  checked in full    one response of --sample-every, whose peers are checked as well
Responses are counted and dropped by a second XDP program. Ids of clients are fetched by connects
before each load.

Example:
  loadtest compare --network veth --rounds 5 --rate 100000 --xdp off,offload \
    --tracker 'aquatic=aquatic_udp -c {template:aquatic_mio.toml}@127.0.0.1:0'";

/// All of the explanation of compare.
static COMPARE_LESSONS: LazyLock<String> =
    LazyLock::new(|| format!("{COMPARE_LESSON}\n\n{VETH_LESSON}"));

/// Options of the workload. Each overrides the profile.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlanArguments {
    /// Workload profile; other options override it.
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// Torrents.
    #[arg(long)]
    torrents: Option<u32>,
    /// Peers over all torrents.
    #[arg(long)]
    peers: Option<u32>,
    /// How peers are spread over torrents.
    #[arg(long, value_enum)]
    distribution: Option<Distribution>,
    /// Share of peers that are seeders from the start, 0 to 1.
    #[arg(long)]
    seeders: Option<f64>,
    /// Share of announces by which a peer completes or leaves, 0 to 1.
    #[arg(long)]
    churn: Option<f64>,
    /// Weights CONNECT:ANNOUNCE:SCRAPE.
    #[arg(long)]
    mix: Option<Mix>,
    /// Peers wanted per announce; an announce of a stop requests none.
    #[arg(long)]
    numwant: Option<u16>,
    /// Info-hashes per scrape, 1 to 74.
    #[arg(long)]
    scrape_hashes: Option<u16>,
    /// Seed of the random numbers.
    #[arg(long)]
    seed: Option<u64>,
    /// IP versions to use.
    #[arg(long, value_enum)]
    families: Option<Families>,
    /// Sockets, each with its own source address if there are enough.
    #[arg(long)]
    sources: Option<u16>,
    /// Source address or network; repeatable. [default: 127.0.0.0/8 for a loopback target]
    #[arg(long, value_name = "IP[/PREFIX]")]
    source: Vec<SourceRange>,
    /// Most unanswered requests per socket (closed loop).
    #[arg(long)]
    in_flight: Option<u16>,
    /// Milliseconds after which a request counts as lost.
    #[arg(long)]
    timeout_ms: Option<u32>,
    /// Generator threads.
    #[arg(long)]
    threads: Option<u16>,
    /// Send each announce by itself instead of as segments of one packet (UDP_SEGMENT).
    #[arg(long)]
    no_gso: bool,
    /// Measure without making all peers resident first.
    #[arg(long)]
    no_fill: bool,
    /// Seconds of load before measuring.
    #[arg(long)]
    warmup: Option<f64>,
    /// Seconds to measure.
    #[arg(long)]
    duration: Option<f64>,
    /// Connections (HTTP, WebSocket), each with its own source address if there are enough.
    /// [default: 512 for HTTP, by the peers for WebSocket]
    #[arg(long)]
    connections: Option<u16>,
    /// A connection for each request, with Connection: close (HTTP).
    #[arg(long)]
    pub(crate) one_shot: bool,
    /// A full TLS handshake for each connection.
    #[arg(long)]
    no_resumption: bool,
    /// WebRTC offers that go along with an announce (WebSocket). [default: 5]
    #[arg(long, value_name = "N")]
    offers: Option<u16>,
    /// Requests a second (open loop). [default: closed loop, as fast as responses arrive]
    #[arg(long)]
    rate: Option<u64>,
}

impl PlanArguments {
    /// The profile's plan, with the given options.
    ///
    /// # Errors
    /// One sentence that names the option to change.
    pub(crate) fn plan(&self) -> Result<Plan, PlanError> {
        /// Replaces a value if an option was given.
        fn set<T: Clone>(value: &mut T, given: &Option<T>) {
            if let Some(given) = given {
                value.clone_from(given);
            }
        }
        let mut plan = self.profile.unwrap_or(Profile::Canonical).plan();
        set(&mut plan.torrents, &self.torrents);
        set(&mut plan.peers, &self.peers);
        set(&mut plan.distribution, &self.distribution);
        set(&mut plan.seeders, &self.seeders);
        set(&mut plan.churn, &self.churn);
        set(&mut plan.mix, &self.mix);
        set(&mut plan.numwant, &self.numwant);
        set(&mut plan.scrape_hashes, &self.scrape_hashes);
        set(&mut plan.seed, &self.seed);
        set(&mut plan.families, &self.families);
        set(&mut plan.sources, &self.sources);
        set(&mut plan.in_flight, &self.in_flight);
        set(&mut plan.timeout_ms, &self.timeout_ms);
        set(&mut plan.threads, &self.threads);
        set(&mut plan.warmup_s, &self.warmup);
        set(&mut plan.duration_s, &self.duration);
        plan.source.clone_from(&self.source);
        set(&mut plan.transport.offers, &self.offers);
        plan.transport.one_shot = self.one_shot;
        plan.transport.resumption = !self.no_resumption;
        plan.rate = self.rate;
        plan.fill &= !self.no_fill;
        plan.gso &= !self.no_gso;
        plan.check()?;
        Ok(plan)
    }

    /// What counts over a veth pair.
    ///
    /// # Errors
    /// An option that was given and does not.
    fn over_veth(&self) -> Result<VethWorkload, PlanError> {
        let without_effect = [
            (self.profile.is_some(), "--profile"),
            (self.peers.is_some(), "--peers"),
            (self.distribution.is_some(), "--distribution"),
            (self.seeders.is_some(), "--seeders"),
            (self.churn.is_some(), "--churn"),
            (self.mix.is_some(), "--mix"),
            (self.scrape_hashes.is_some(), "--scrape-hashes"),
            (self.families.is_some(), "--families"),
            (self.sources.is_some() || self.connections.is_some(), "--sources"),
            (!self.source.is_empty(), "--source"),
            (self.timeout_ms.is_some(), "--timeout-ms"),
            (self.threads.is_some(), "--threads"),
            (self.no_gso, "--no-gso"),
            (self.no_fill, "--no-fill"),
        ];
        if let Some((_, option)) = without_effect.iter().find(|(given, _)| *given) {
            return Err(PlanError::WithoutEffectOnVeth(option));
        }
        Ok(VethWorkload {
            torrents: self.torrents,
            numwant: self.numwant,
            seed: self.seed,
            in_flight: self.in_flight,
            rate: self.rate,
            warmup_s: self.warmup,
            duration_s: self.duration,
        })
    }

    /// A plan from [`Self::plan`], completed with the values that depend on the protocol.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub(crate) fn carried_by(
        &self,
        plan: Plan,
        protocol: Protocol,
        tls: bool,
    ) -> Result<Plan, PlanError> {
        let transport = Transport { protocol, tls, ..plan.transport };
        if protocol == Protocol::Udp {
            return Ok(Plan { transport, ..plan });
        }
        let connections = match protocol {
            // A tracker may refuse a socket that is in more than 1000 swarms.
            Protocol::Ws => (plan.peers / 100).clamp(64, 1000).max(plan.peers / 900),
            // Some trackers perform best with many.
            _ => 512,
        };
        let connections = u16::try_from(connections).unwrap_or(u16::MAX);
        let plan = Plan {
            transport,
            // Connecting is not a request here.
            mix: Mix { connect: 0, ..plan.mix },
            sources: self.connections.or(self.sources).unwrap_or(connections),
            timeout_ms: self.timeout_ms.unwrap_or(5000),
            ..plan
        };
        plan.check()?;
        Ok(plan)
    }
}

/// A single run.
#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// Tracker to load, HOST:PORT for UDP, or an http, https, ws or wss URL; one per IP version.
    /// [default: start a skep]
    #[arg(long, value_name = "HOST:PORT|URL")]
    pub(crate) target: Vec<String>,
    /// Which certificates are trusted.
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
    /// Process of the tracker, for its CPU and memory. [default: the process that listens on the
    /// target on this host]
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// The workload.
    #[command(flatten)]
    pub(crate) plan: PlanArguments,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
    /// Draw rate and latency over time; latency on a logarithmic axis.
    #[arg(long, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    /// What only attacks have.
    #[command(flatten)]
    pub(crate) attack: AttackArguments,
    /// What only a soak has.
    #[command(flatten)]
    pub(crate) soak: SoakArguments,
}

/// The limit responder.
#[derive(Debug, Args)]
pub(crate) struct LimitArguments {
    /// How to serve.
    #[command(flatten)]
    pub(crate) serve: ServeOptions,
    /// Peers in each announce response.
    #[arg(long, default_value_t = 10, value_parser = limit_peers())]
    pub(crate) peers: u16,
}

/// A comparison.
#[derive(Debug, Args)]
pub(crate) struct CompareArguments {
    /// Protocol of the load. Over HTTP and WebSocket the other trackers found on PATH are included
    /// automatically, and there is no limit responder.
    #[arg(long, value_enum, default_value_t = Protocol::Udp)]
    pub(crate) protocol: Protocol,
    /// The aquatic_http program. [default: from PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) aquatic_http: Option<PathBuf>,
    /// The aquatic_ws program. [default: from PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) aquatic_ws: Option<PathBuf>,
    /// The opentracker program, for HTTP. [default: from PATH]
    #[arg(long, value_name = "FILE")]
    pub(crate) opentracker: Option<PathBuf>,
    /// Tracker to compare; repeatable. The skep beside this program is included automatically.
    #[arg(long, value_name = "NAME=COMMAND@IP:PORT")]
    pub(crate) tracker: Vec<Contestant>,
    /// Leave out the skep beside this program.
    #[arg(long)]
    pub(crate) no_skep: bool,
    /// Where the load comes from.
    #[arg(long, value_enum, default_value_t = Network::Loopback)]
    pub(crate) network: Network,
    /// Rounds; in each, every contestant runs once, in rotated order.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) rounds: u16,
    /// CPU of the trackers. [default: the first this process may use]
    #[arg(long)]
    pub(crate) server_cpu: Option<usize>,
    /// Peers in each announce response of the limit. [default: as many as a tracker sends under
    /// this workload]
    #[arg(long, value_parser = limit_peers())]
    pub(crate) limit_peers: Option<u16>,
    /// The workload.
    #[command(flatten)]
    pub(crate) plan: PlanArguments,
    /// What only a veth pair has.
    #[command(flatten)]
    pub(crate) veth: VethArguments,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where the load of a comparison comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Network {
    /// Sockets on this host's loopback interface.
    Loopback,
    /// XDP frames through a veth pair of namespaces made for it: IPv4 over UDP, as root.
    Veth,
}

impl CompareArguments {
    /// The plan of a comparison over a veth pair.
    ///
    /// # Errors
    /// An option that has no effect there, or is out of its bounds.
    pub(crate) fn veth_plan(&self) -> Result<VethPlan, UsageError> {
        if self.protocol != Protocol::Udp {
            return Err(UsageError::VethProtocol);
        }
        Ok(self.veth.plan(&self.plan.over_veth()?)?)
    }
}

/// The explanation in --help of hold, below the flags.
const HOLD_LESSON: &str = "\
Each connection announces once, without offers, in a torrent that it shares with one other, and
responds to pings. On loopback every 25 000 connections have another source address (127.0.0.2,
...). Bytes per connection are the growth of the tracker's resident memory; memory of the kernel for
sockets is not included. Both sides need a descriptor for each connection (ulimit -n).

Example:
  loadtest hold ws://127.0.0.1:6969 --connections 50000";

/// Many connections.
#[derive(Debug, Args)]
pub(crate) struct HoldArguments {
    /// The tracker, a ws or wss URL.
    #[arg(value_name = "URL")]
    pub(crate) url: String,
    /// Connections to open.
    #[arg(long, default_value_t = 10_000,
          value_parser = clap::value_parser!(u16).range(1..=60_000))]
    pub(crate) connections: u16,
    /// Seconds to hold them.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) duration: f64,
    /// Process of the tracker, for its memory. [default: the process that listens on the target on
    /// this host]
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// Which certificates are trusted.
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// A table of memory.
#[derive(Debug, Args)]
pub(crate) struct MemoryArguments {
    /// Tracker to measure beside skep; repeatable.
    #[arg(long, value_name = "NAME=COMMAND@IP:PORT")]
    pub(crate) tracker: Vec<Contestant>,
    /// Leave out the skep beside this program.
    #[arg(long)]
    pub(crate) no_skep: bool,
    /// Peers to make resident in each cell.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) peers: u32,
    /// Peers per torrent; repeatable.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 10, 100, 10_000])]
    pub(crate) per_torrent: Vec<u32>,
    /// Print the result as JSON.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Numbers of peers that fit into a response of the limit responder.
fn limit_peers() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(0..=i64::from(PEERS_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn options_override_their_profile() {
        let cli = Cli::parse_from(["loadtest", "--profile", "smoke", "--peers", "7", "--no-fill"]);
        let plan = cli.run.plan.plan().unwrap();
        assert_eq!((plan.peers, plan.torrents, plan.fill), (7, 500, false));
        let command_line = Cli::parse_from(["loadtest", "--churn", "2"]);
        assert!(command_line.run.plan.plan().is_err());
    }
}
