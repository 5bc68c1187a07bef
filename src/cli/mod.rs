//! The command line: arguments and commands, as `skep --help` lists them.
//!
//! Exit codes: 0 done, 1 failed at run time, 2 invalid usage or configuration.

mod admin;
mod admin_client;
mod check;
pub mod doctor;
mod health;
mod info_hash;
mod json;
mod lists;
mod passkey;
mod probe;
mod snapshot;
mod status;
mod table;
mod text;
mod torrent;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{Assignment, Config, ConfigError, SettingsSource};
use crate::server::{self, StartError};

const EXAMPLES: &str = "\
Examples:
  skep                                       serve on port 6969, both families, no configuration
  skep --listen 192.0.2.1:6969 --workers 4   one address, four cores
  skep config > skep.toml                    every setting with its default, to edit
  skep check --config skep.toml              validate it without starting
  skep --config skep.toml                    serve with it; SIGHUP reloads it, SIGTERM stops
  skep run --take-over --config skep.toml    replace the running tracker, without losing a datagram
  SKEP__TRACKER__INTERVAL_S=900 skep         every setting has a variable, too
  skep doctor                                check this host: findings with remedies
  skep probe udp://127.0.0.1:6969            send requests as a client would
  skep health                                whether the running tracker is well, for scripts
  skep status                                what a running tracker does, on one screen
  skep torrent add DIR                       register .torrent files with a running tracker
  skep passkey add ann                       issue a passkey of a private tracker
  skep deny networks add 192.0.2.0/24        refuse a network
  skep snapshot inspect FILE                 print what is in a snapshot of the swarms
  curl http://127.0.0.1:6970/metrics         figures; /livez and /readyz for probes

Once every socket is served, skep writes one line to standard output:
  ready udp=0.0.0.0:6969 tcp=0.0.0.0:6969 admin=127.0.0.1:6970 io=uring workers=2
Logs go to standard error.

Exit codes: 0 done, 1 failed at run time, 2 invalid usage or configuration.";

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
    /// Print every setting with its default and a description
    Config(Print),
    /// Print every metric with its description, in Markdown
    Metrics,
    /// Validate the configuration without starting; `skep doctor` checks the host
    Check(check::Options),
    /// Check this host: kernel, buffers, connection tracking, limits; each problem has a remedy
    Doctor(doctor::Options),
    /// Send requests as a client would: connect, announce, scrape
    Probe(probe::Options),
    /// Ask the running tracker whether it is well; exit code 0 if it is, 1 if not
    Health(health::Options),
    /// Show state, rates, peers, limits, memory and warnings of a running tracker
    Status(status::Options),
    /// Register torrents with a running tracker; list, show and remove them
    #[command(subcommand)]
    Torrent(torrent::TorrentCommand),
    /// Issue passkeys of a private tracker; list, revoke and import them
    #[command(subcommand)]
    Passkey(passkey::PasskeyCommand),
    /// Edit the deny lists of a running tracker: what is on one is refused
    #[command(subcommand)]
    Deny(lists::DenyCommand),
    /// Edit the allow lists of a running tracker: what is not on one is refused
    #[command(subcommand)]
    Allow(lists::AllowCommand),
    /// Inspect, verify or export a snapshot of the swarms
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
}

/// Arguments of `check` and of `doctor`, which both print findings on the settings.
#[derive(Debug, Args)]
struct FindingsArguments {
    /// Print one JSON array instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Arguments of `run`.
#[derive(Debug, Args)]
struct Run {
    /// Replace the running tracker on its own sockets, losing no datagram
    #[arg(long)]
    take_over: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Arguments of `config`.
#[derive(Debug, Args)]
struct Print {
    /// toml: a file to edit; markdown: docs/configuration.md
    #[arg(long, default_value = "toml", value_parser = ["toml", "markdown"])]
    format: String,
}

/// Settings from the command line. They override the environment, which overrides the file.
#[derive(Debug, Default, Args)]
struct Settings {
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Serve on this address; repeat for more; port 0 lets the kernel choose
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Vec<String>,
    /// Serve metrics, health, statistics and the API on this address
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<String>,
    /// Number of worker threads; 0: one per usable core
    #[arg(long, value_name = "N")]
    workers: Option<String>,
    /// I/O backend for datagrams
    #[arg(long, value_parser = ["auto", "uring", "mmsg"], ignore_case = true)]
    io: Option<String>,
}

/// Parses the command line, runs the command and returns its exit code.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command.unwrap_or(Command::Run(arguments.run)) {
        Command::Run(Run { take_over, settings }) => {
            settings.source().and_then(|it| server::run(it, take_over))
        }
        Command::Check(options) => return check::run(&options),
        Command::Config(Print { format }) => print(&match format.as_str() {
            "markdown" => Config::to_markdown(),
            _ => Config::default().to_commented_toml(),
        }),
        Command::Metrics => print(&server::metrics_page()),
        Command::Doctor(options) => return doctor::run(&options),
        Command::Probe(options) => return probe::run(&options),
        Command::Health(options) => return health::run(&options),
        Command::Status(options) => return status::run(&options),
        Command::Torrent(command) => return torrent::run(command),
        Command::Passkey(command) => return passkey::run(command),
        Command::Deny(command) => return lists::deny(command),
        Command::Allow(command) => return lists::allow(command),
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

/// Writes to standard output. A closed pipe is not an error: `head`, for instance, stops early.
fn print(text: &str) -> Result<(), StartError> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(StartError::Failed(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes errors or warnings to standard error, each on its line.
fn complain(text: &str) {
    let mut stderr = std::io::stderr().lock();
    for line in text.lines() {
        let _ = writeln!(stderr, "skep: {line}");
    }
}

impl Settings {
    /// The sources of the settings: file, environment and flags.
    fn source(&self) -> Result<SettingsSource, StartError> {
        let mut flags = Vec::new();
        let mut flag = |place: &str, section: &str, key: &str, text: String| {
            let (place, section, key) = (place.into(), section.into(), key.into());
            flags.push(Assignment { place, section, key, text });
        };
        if !self.listen.is_empty() {
            flag("--listen", "server", "listen", self.listen.join(","));
            // `--listen` also overrides addresses that the file lists for UDP alone.
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
        Ok(SettingsSource { file: self.config.clone(), environment: environment()?, flags })
    }
}

/// The variables that start with `SKEP_`: some set settings, others may be misspelled.
fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    let mut all = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        if !SettingsSource::is_about(&name) {
            continue;
        }
        match value.into_string() {
            Ok(value) => all.push((name, value)),
            Err(_) if name.starts_with(SettingsSource::VARIABLE_PREFIX) => {
                return Err(ConfigError::at(name, "is not UTF-8"));
            }
            Err(_) => {}
        }
    }
    all.sort();
    Ok(all)
}
