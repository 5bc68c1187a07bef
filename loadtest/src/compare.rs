//! Runs several trackers and the limit in turn, round by round, so that other load on the host
//! affects all of them equally. Prints medians and ratios side by side.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use skep::sys::affinity::usable_cpus;
use skep::sys::clock::Clock;

use crate::cli::{CompareArguments, Network};
use crate::contestant::{Contestant, own_program, sibling_skep};
use crate::error::{LoadtestError, UsageError};
use crate::interrupt;
use crate::limit::PEERS_MAX;
use crate::machine::Machine;
use crate::numbers::{grouped, median, per, real, whole};
use crate::peers;
use crate::plan::{Families, Plan, Profile, Protocol};
use crate::population::peers_per_response;
use crate::report::{Figures, mib, rate};
use crate::run::{Site, run};
use crate::tally::StreamCounts;
use crate::veth;

/// One contestant's results.
#[derive(Clone, Debug, Serialize)]
struct Row {
    /// The contestant's name.
    name: String,
    /// The command that started it.
    command: String,
    /// Medians over the rounds.
    median: Medians,
    /// All rounds, in order.
    rounds: Vec<Figures>,
}

/// Medians over the rounds, each figure by itself.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Medians {
    answered_per_s: f64,
    cpu_ns_per_response: f64,
    server_cores: f64,
    p50_us: f64,
    p99_us: f64,
    p999_us: f64,
    lost_share: f64,
    peers_per_response: f64,
    bytes_per_response: f64,
    rss_bytes: f64,
    rss_peak_bytes: f64,
    bytes_per_peer: f64,
    generator_idle_share: f64,
    /// Sum over the rounds, not a median: a single invalid response matters.
    invalid: u64,
    /// Sum over the rounds.
    errors: u64,
}

impl Medians {
    fn of(rounds: &[Figures]) -> Self {
        let over = |value: &dyn Fn(&Figures) -> f64| median(rounds.iter().map(value));
        let server = |value: &dyn Fn(&crate::report::ServerFigures) -> f64| {
            over(&|it| it.server.as_ref().map_or(f64::NAN, value))
        };
        Self {
            answered_per_s: over(&|it| it.answered_per_s),
            cpu_ns_per_response: server(&|it| it.cpu_ns_per_response),
            server_cores: server(&|it| it.cores),
            p50_us: over(&|it| it.latency.p50_us),
            p99_us: over(&|it| it.latency.p99_us),
            p999_us: over(&|it| it.latency.p999_us),
            lost_share: over(&|it| it.lost_share),
            peers_per_response: over(&|it| it.peers_per_response),
            bytes_per_response: over(&|it| it.bytes_per_response),
            rss_bytes: server(&|it| real(it.rss_bytes)),
            rss_peak_bytes: server(&|it| real(it.rss_peak_bytes)),
            bytes_per_peer: server(&|it| it.bytes_per_peer.unwrap_or(f64::NAN)),
            generator_idle_share: over(&|it| it.generator_idle_share),
            invalid: rounds.iter().flat_map(|it| it.invalid.values()).sum(),
            errors: rounds.iter().map(|it| it.errors).sum(),
        }
    }
}

/// All data of a result file.
#[derive(Clone, Debug, Serialize)]
struct Comparison {
    machine: Machine,
    /// CPU of the trackers, and CPUs of the generator.
    pinned: (Option<usize>, Vec<usize>),
    plan: Plan,
    /// Peers in each response of the limit.
    limit_peers: u16,
    rounds: u16,
    rows: Vec<Row>,
    /// Reasons to doubt these results, each with its contestant.
    warnings: Vec<String>,
}

/// Names of the limit's two contestants.
const LIMITS: [(&str, &str); 2] = [("limit (uring)", "uring"), ("limit (mmsg)", "mmsg")];

/// Runs a comparison and prints the result.
///
/// # Errors
/// One sentence with the cause, e.g. a tracker that does not start.
pub(crate) fn compare(arguments: &CompareArguments) -> Result<(), LoadtestError> {
    if arguments.network == Network::Veth {
        return veth::compare(arguments);
    }
    let plan = arguments.plan.plan();
    let plan = plan.and_then(|plan| arguments.plan.carried_by(plan, arguments.protocol, false));
    let plan = plan.map_err(UsageError::Plan)?;
    if plan.profile.is_attack() || plan.profile == Profile::Soak {
        return Err(UsageError::CompareProfile.into());
    }
    if plan.families == Families::Both {
        return Err(UsageError::CompareFamilies.into());
    }
    interrupt::watch()?;
    let limit_peers = arguments.limit_peers.unwrap_or_else(|| limit_peers(&plan));
    let contestants = contestants(arguments, &plan, limit_peers);
    let cpus = usable_cpus().map_err(LoadtestError::Cpus)?;
    let server_cpu = arguments.server_cpu.or_else(|| cpus.first().copied());
    let generator_cpus: Vec<usize> =
        cpus.iter().rev().copied().filter(|it| Some(*it) != server_cpu).collect();
    let figures = rounds(arguments, &plan, &contestants, server_cpu, &generator_cpus)?;
    let complete = figures.iter().map(Vec::len).min().unwrap_or(0);
    if complete == 0 {
        return Err(LoadtestError::Interrupted);
    }
    let row = |((contestant, _), rounds): (&(Contestant, bool), Vec<Figures>)| Row {
        name: contestant.name.clone(),
        command: contestant.command(),
        median: Medians::of(&rounds),
        rounds,
    };
    let rows: Vec<Row> = contestants.iter().zip(figures).map(row).collect();
    let comparison = Comparison {
        machine: Machine::look(),
        warnings: warnings(&rows, &generator_cpus),
        pinned: (server_cpu, generator_cpus),
        plan,
        limit_peers,
        rounds: u16::try_from(complete).unwrap_or(arguments.rounds),
        rows,
    };
    if arguments.json {
        crate::print_json(&comparison)?;
    } else {
        print!("{}", comparison.text());
    }
    if interrupt::is_requested() { Err(LoadtestError::Interrupted) } else { Ok(()) }
}

/// Runs all rounds, or those until a signal: the figures of each contestant, by round.
fn rounds(
    arguments: &CompareArguments,
    plan: &Plan,
    contestants: &[(Contestant, bool)],
    server_cpu: Option<usize>,
    generator_cpus: &[usize],
) -> Result<Vec<Vec<Figures>>, LoadtestError> {
    let clock = Clock::start();
    let mut figures: Vec<Vec<Figures>> = vec![Vec::new(); contestants.len()];
    for round in 0..usize::from(arguments.rounds) {
        for turn in 0..contestants.len() {
            // Each contestant comes first, second, ... in some round.
            let place = (round + turn) % contestants.len();
            let (contestant, one_shot) = &contestants[place];
            let mut plan = plan.clone();
            plan.transport.one_shot = *one_shot;
            eprintln!("round {} of {}: {}", round + 1, arguments.rounds, contestant.name);
            let started = contestant.start(&plan, server_cpu, &clock)?;
            let site = Site {
                targets: started.targets,
                endpoint: started.endpoint(plan.transport.protocol),
                pid: Some(started.server.pid()),
                cpus: generator_cpus.to_vec(),
                clock,
            };
            let outcome = run(&plan, &site);
            if interrupt::is_requested() {
                // A part of a run is not comparable with whole ones.
                return Ok(figures);
            }
            let outcome = outcome.map_err(|error| LoadtestError::Compared {
                name: contestant.name.clone(),
                error: Box::new(error),
                words: started.server.last_words(),
            })?;
            figures[place].push(Figures::of(&outcome));
        }
    }
    Ok(figures)
}

/// Average number of peers in a tracker's response, so that the limit sends as many.
fn limit_peers(plan: &Plan) -> u16 {
    let peers = whole(peers_per_response(plan).round());
    u16::try_from(peers).unwrap_or(PEERS_MAX).min(PEERS_MAX)
}

/// All contestants, each with whether every request has its own connection: the limit (UDP) and
/// skep with both backends, other trackers that are installed (over TCP), then those that were
/// given.
fn contestants(
    arguments: &CompareArguments,
    plan: &Plan,
    limit_peers: u16,
) -> Vec<(Contestant, bool)> {
    let protocol = plan.transport.protocol;
    let skeps = || skeps(arguments, protocol);
    let mut all = Vec::new();
    let mut add = |some: Vec<Contestant>, one_shot| {
        all.extend(some.into_iter().map(|it| (it, one_shot)));
    };
    match protocol {
        Protocol::Udp => {
            add(limits(limit_peers), false);
            add(skeps(), false);
        }
        Protocol::Ws => {
            add(skeps(), false);
            add(peers::aquatic_ws(arguments.aquatic_ws.as_deref()), false);
        }
        Protocol::Http => {
            let aquatic = arguments.aquatic_http.as_deref();
            if !arguments.plan.one_shot {
                add(skeps(), false);
                add(peers::aquatic_http(aquatic, false), false);
                add(arguments.tracker.clone(), false);
            }
            add(skeps().into_iter().map(renamed_one_shot).collect(), true);
            add(peers::aquatic_http(aquatic, true), true);
            add(peers::opentracker(arguments.opentracker.as_deref()), true);
            add(arguments.tracker.iter().cloned().map(renamed_one_shot).collect(), true);
            return all;
        }
    }
    add(arguments.tracker.clone(), false);
    all
}

fn renamed_one_shot(contestant: Contestant) -> Contestant {
    Contestant { name: format!("{}, one-shot", contestant.name), ..contestant }
}

/// The limit with both backends.
fn limits(peers: u16) -> Vec<Contestant> {
    let (program, peers) = (own_program(), peers.to_string());
    let limit = |(name, io)| {
        let arguments = ["limit", "--io", io, "--listen", "{addr}", "--peers", &peers];
        Contestant::own(name, &program, &arguments)
    };
    LIMITS.into_iter().map(limit).collect()
}

/// The skep next to this program, with both backends.
fn skeps(arguments: &CompareArguments, protocol: Protocol) -> Vec<Contestant> {
    let Some(program) = sibling_skep().filter(|_| !arguments.no_skep) else { return Vec::new() };
    let backends = [("skep (uring)", "uring"), ("skep (mmsg)", "mmsg")];
    let skep = |(name, io)| {
        let mut contestant = Contestant::own(
            name,
            &program,
            &["run", "--listen", "{addr}", "--admin", "127.0.0.1:0", "--workers", "1", "--io", io],
        );
        if protocol == Protocol::Ws {
            // No other tracker limits the offers to a client: the same work for all.
            let unsparing = "SKEP__WEBSOCKET__OFFERS_PER_MINUTE_MAX=0";
            contestant.words.splice(0..0, ["env".to_owned(), unsparing.to_owned()]);
        }
        contestant
    };
    backends.into_iter().map(skep).collect()
}

/// The warnings of all rounds, each once per contestant.
fn warnings(rows: &[Row], generator_cpus: &[usize]) -> Vec<String> {
    let mut warnings = Vec::new();
    if generator_cpus.is_empty() {
        warnings.push("trackers and generator share the one CPU there is".to_owned());
    }
    for row in rows {
        let of = row.rounds.len();
        for (index, round) in row.rounds.iter().enumerate() {
            let remark = |it: &String| format!("{}, round {} of {of}: {it}", row.name, index + 1);
            warnings.extend(round.warnings.iter().map(remark));
        }
    }
    warnings
}

impl Comparison {
    /// The tables in Markdown, for a result file.
    fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let plan = &self.plan;
        let carrier = match plan.transport.protocol {
            Protocol::Udp => "UDP".to_owned(),
            Protocol::Http => format!("HTTP by {} connections", plan.sources),
            Protocol::Ws => format!("{} by {} sockets", plan.transport.text(), plan.sources),
        };
        writeln!(out, "machine: {}", self.machine.line())?;
        writeln!(
            out,
            "load: {:?} profile over {carrier}, {} torrents, {} peers ({:?}), {}, {}, numwant {}, \
             connect {} : announce {} : scrape {}, churn {}, seed {}",
            plan.profile,
            rate(plan.torrents.into()),
            rate(plan.peers.into()),
            plan.distribution,
            match plan.families {
                Families::V6 => "IPv6",
                _ => "IPv4",
            },
            plan.pace(),
            plan.numwant,
            plan.mix.connect,
            plan.mix.announce,
            plan.mix.scrape,
            plan.churn,
            plan.seed
        )?;
        writeln!(
            out,
            "medians of {} interleaved rounds of {} s each; tracker on CPU {}, generator on {}",
            self.rounds,
            plan.duration_s,
            names(self.pinned.0.as_slice()),
            names(&self.pinned.1)
        )?;
        self.write_medians(out)?;
        if self.plan.transport.protocol == Protocol::Ws {
            self.write_relayed(out)?;
        }
        self.write_invalid(out)?;
        self.write_ratios(out, "CPU per response, row ÷ column", |it| it.cpu_ns_per_response)?;
        self.write_ratios(out, "resident memory, row ÷ column", |it| it.rss_bytes)?;
        writeln!(out, "\ncommands:")?;
        for row in &self.rows {
            writeln!(out, "- {}: `{}`", row.name, row.command)?;
        }
        self.warnings.iter().try_for_each(|it| writeln!(out, "\nwarning: {it}"))
    }

    fn write_medians(&self, out: &mut String) -> std::fmt::Result {
        writeln!(
            out,
            "\n| tracker | responses/s | CPU ns/response | cores | p50 us | p99 us | p99.9 us \
             | lost % | peers/response | bytes/response | RSS MiB | peak MiB | bytes/peer \
             | errors | invalid |"
        )?;
        writeln!(out, "|---|{}", "---:|".repeat(14))?;
        for Row { name, median, .. } in &self.rows {
            writeln!(
                out,
                "| {name} | {} | {} | {:.2} | {:.0} | {:.0} | {:.0} | {:.3} | {:.2} | {:.1} \
                 | {:.1} | {:.1} | {:.1} | {} | {} |",
                rate(median.answered_per_s),
                rate(median.cpu_ns_per_response),
                median.server_cores,
                median.p50_us,
                median.p99_us,
                median.p999_us,
                median.lost_share * 100.0,
                median.peers_per_response,
                median.bytes_per_response,
                mib(whole(median.rss_bytes)),
                mib(whole(median.rss_peak_bytes)),
                median.bytes_per_peer,
                median.errors,
                median.invalid
            )?;
        }
        Ok(())
    }

    /// Offers and answers that were relayed between WebTorrent peers.
    fn write_relayed(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "\n| tracker | offers relayed/s | of those sent % | answers relayed/s |")?;
        writeln!(out, "|---|---:|---:|---:|")?;
        for row in &self.rows {
            let over = |value: &dyn Fn(&Figures, &StreamCounts) -> f64| {
                let streams = row.rounds.iter().filter_map(|it| Some((it, it.stream.as_ref()?)));
                median(streams.map(|(it, stream)| value(it, stream)))
            };
            writeln!(
                out,
                "| {} | {} | {:.1} | {} |",
                row.name,
                rate(over(&|it, stream| real(stream.offers_relayed) / it.seconds)),
                over(&|_, stream| per(stream.offers_relayed, stream.offers_sent) * 100.0),
                rate(over(&|it, stream| real(stream.answers_relayed) / it.seconds))
            )?;
        }
        Ok(())
    }

    /// Invalid responses by kind, over all rounds.
    fn write_invalid(&self, out: &mut String) -> std::fmt::Result {
        for row in &self.rows {
            let mut sums = BTreeMap::<&str, u64>::new();
            for (what, count) in row.rounds.iter().flat_map(|it| &it.invalid) {
                *sums.entry(what).or_default() += count;
            }
            for (what, count) in sums {
                writeln!(out, "\n{}, invalid: {what} × {}", row.name, grouped(count))?;
            }
        }
        Ok(())
    }

    /// A square table of the ratios of one value.
    fn write_ratios(
        &self,
        out: &mut String,
        title: &str,
        figure: impl Fn(&Medians) -> f64,
    ) -> std::fmt::Result {
        let names: Vec<&str> = self.rows.iter().map(|it| it.name.as_str()).collect();
        writeln!(out, "\n| {title} | {} |", names.join(" | "))?;
        writeln!(out, "|---|{}", "---:|".repeat(names.len()))?;
        for row in &self.rows {
            write!(out, "| {} |", row.name)?;
            for column in &self.rows {
                write!(out, " {:.2} |", figure(&row.median) / figure(&column.median))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// CPUs by number; "any" if there are none.
fn names(cpus: &[usize]) -> String {
    let names: Vec<_> = cpus.iter().map(usize::to_string).collect();
    if names.is_empty() { "any".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;

    fn names(protocol: &str, more: &[&str]) -> Vec<(String, bool)> {
        use clap::Parser as _;
        let fixed = ["loadtest", "compare", "--no-skep", "--protocol", protocol];
        let given = ["--tracker", "x=cmd {addr}@127.0.0.1:0"];
        let cli = crate::cli::Cli::parse_from([&fixed[..], &given[..], more].concat());
        let Some(crate::cli::Command::Compare(arguments)) = cli.command else { panic!() };
        let plan = arguments.plan.plan().unwrap();
        let plan = arguments.plan.carried_by(plan, arguments.protocol, false).unwrap();
        let all = contestants(&arguments, &plan, 5).into_iter();
        all.map(|(it, one_shot)| (it.name, one_shot)).collect()
    }

    #[test]
    fn limits_come_by_both_backends_and_first() {
        let names: Vec<_> = names("udp", &[]).into_iter().map(|it| it.0).collect();
        assert_eq!(names, ["limit (uring)", "limit (mmsg)", "x"]);
    }

    #[test]
    fn peers_take_part_by_what_they_can_do() {
        let program = own_program().display().to_string();
        let given = ["--opentracker", &program, "--aquatic-http", &program];
        let names = names("http", &given);
        let find =
            |name: &'static str| names.iter().filter(move |it| it.0.starts_with(name)).cloned();
        assert_eq!(
            find("opentracker").collect::<Vec<_>>(),
            [("opentracker, one-shot".into(), true)]
        );
        assert_eq!(find("aquatic_http").count(), 2);
        assert_eq!(find("x").map(|it| it.1).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn the_limit_sends_what_the_load_makes_a_tracker_send() {
        let peers = limit_peers(&Profile::Canonical.plan());
        assert!((1..30).contains(&peers), "{peers}");
    }
}
