//! The command line: what `skep --help` teaches.
//!
//! Exit codes: 0 done, 1 failed at run time, 2 bad usage or configuration.

mod admin_client;
pub mod doctor;
mod probe;
mod snapshot;
mod torrent;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Assignment, Config, ConfigError, Source};
use crate::server::{self, StartError};

const EXAMPLES: &str = "\
Examples:
  skep                                       serve on port 6969, both families, no configuration
  skep --listen 192.0.2.1:6969 --workers 4   one address, four cores
  skep config > skep.toml                    every setting with its default, to edit
  skep check --config skep.toml              judge it without starting
  skep --config skep.toml                    serve with it; SIGHUP reloads it, SIGTERM stops
  skep run --take-over --config skep.toml    replace the running one without losing a packet
  SKEP__TRACKER__INTERVAL_S=900 skep         every setting has a variable, too
  skep doctor                                judge this host: each finding with its remedy
  skep probe udp://127.0.0.1:6969            ask it as a client would
  skep torrent add DIR                       register .torrent files with a running tracker
  skep snapshot inspect FILE                 what a snapshot of the swarms holds
  curl http://127.0.0.1:6970/metrics         figures; /livez and /readyz for probes

Once every socket answers, one line goes to standard output:
  ready udp=0.0.0.0:6969 tcp=0.0.0.0:6969 admin=127.0.0.1:6970 io=uring workers=2
Logs go to standard error.

Exit codes: 0 done, 1 failed at run time, 2 bad usage or configuration.";

/// A UDP-first BitTorrent tracker.
#[derive(Debug, Parser)]
#[command(name = "skep", version, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM (the default)
    Run(Run),
    /// Print every setting, commented, with its default
    Config(Print),
    /// Print every metric, as docs/metrics.md has them
    Metrics,
    /// Judge the configuration that `run` would use, without starting
    Check(Settings),
    /// Judge this host: kernel, buffers, connection tracking, limits, each with its remedy
    Doctor(doctor::Options),
    /// Ask trackers as a client would: connect, announce, scrape
    Probe(probe::Options),
    /// Register .torrent files with a running tracker
    #[command(subcommand)]
    Torrent(torrent::TorrentCommand),
    /// Look into a snapshot of the swarms
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
}

/// How to serve.
#[derive(Debug, Args)]
struct Run {
    /// Replace the running tracker, on its own sockets: nothing is lost
    #[arg(long)]
    take_over: bool,
    #[command(flatten)]
    settings: Settings,
}

/// How to print the settings.
#[derive(Debug, Args)]
struct Print {
    /// A file to edit, or docs/configuration.md
    #[arg(long, default_value = "toml", value_parser = ["toml", "markdown"])]
    format: String,
}

/// What is set on the command line; overrides the environment, which overrides the file.
#[derive(Debug, Args)]
struct Settings {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve on this address; repeat for more; port 0 lets the kernel choose
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<String>,
    /// Serve /metrics and probes on this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<String>,
    /// How many worker threads; 0: one for each usable core
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// How datagrams are moved
    #[arg(long, value_parser = ["auto", "uring", "mmsg"], ignore_case = true)]
    io: Option<String>,
}

/// Reads the command line, does what it says, and tells how that went.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command.unwrap_or(Command::Run(arguments.run)) {
        Command::Run(Run { take_over, settings }) => {
            settings.source().and_then(|it| server::run(it, take_over))
        }
        Command::Check(settings) => check(&settings),
        Command::Config(Print { format }) => print(&match format.as_str() {
            "markdown" => Config::to_markdown(),
            _ => Config::default().to_commented_toml(),
        }),
        Command::Metrics => print(&server::metrics_page()),
        Command::Doctor(options) => return doctor::run(&options),
        Command::Probe(options) => return probe::run(&options),
        Command::Torrent(command) => return torrent::run(command),
        Command::Snapshot(command) => return snapshot::run(command),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

fn check(settings: &Settings) -> Result<(), StartError> {
    let warnings = server::check(&settings.source()?)?;
    warnings.iter().for_each(|it| complain(&format!("warning: {it}")));
    print("the configuration is fine\n")
}

/// Writes to standard output. A reader that has had enough, such as `head`, is no failure.
fn print(text: &str) -> Result<(), StartError> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(StartError::Failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Tells the user what went wrong.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "skep: {text}");
}

impl Settings {
    /// Where the settings come from.
    fn source(&self) -> Result<Source, StartError> {
        let mut flags = Vec::new();
        let mut flag = |place: &str, section: &str, key: &str, text: String| {
            let (place, section, key) = (place.into(), section.into(), key.into());
            flags.push(Assignment { place, section, key, text });
        };
        if !self.listen.is_empty() {
            flag("--listen", "server", "listen", self.listen.join(","));
            // A flag overrides the file, also where that lists addresses for UDP alone.
            flag("--listen", "udp", "listen", String::new());
        }
        if let Some(text) = &self.admin {
            flag("--admin", "admin", "listen", text.clone());
        }
        if let Some(text) = &self.workers {
            flag("--workers", "server", "workers", text.clone());
        }
        if let Some(text) = &self.io {
            flag("--io", "server", "io", text.clone());
        }
        Ok(Source { file: self.config.clone(), environment: environment()?, flags })
    }
}

/// The variables that set settings, or look as if they were meant to.
fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let mut all = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        if !Source::is_about(&name) {
            continue;
        }
        match value.into_string() {
            Ok(value) => all.push((name, value)),
            Err(_) if name.starts_with(Source::VARIABLE_PREFIX) => {
                return Err(ConfigError::at(name, "is not UTF-8"));
            }
            Err(_) => {}
        }
    }
    all.sort();
    Ok(all)
}
