//! `skep status`: what a running tracker does, on one screen.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::Args;

use super::admin::{self, AdminArguments, CommandError};
use super::doctor::size;
use super::text::{count, date, escaped};
use crate::admin::live::{StatusResponse, StatusTorrents, StatusWarning};
use crate::frontend::figures::{duration, grouped, percent, rate};

const EXAMPLES: &str = "\
Examples:
  skep status
  skep status --admin 10.0.0.1:6970 --token-file token
  skep status --json | jq .warnings
  watch skep status                          again every two seconds

Rates are those of the last second. Warnings are what the running tracker knows; `skep doctor` also
checks its host.";

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = admin::help(EXAMPLES, "the tracker does not respond"))]
pub(super) struct Options {
    /// Print one JSON object, as /api/v1/status has it
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: AdminArguments,
}

/// Runs the command and returns its exit code.
pub(super) fn run(options: &Options) -> ExitCode {
    admin::conclude(show(options))
}

fn show(options: &Options) -> Result<ExitCode, CommandError> {
    let mut client = options.admin.client()?;
    let body = client.get("/api/v1/status")?;
    let text = if options.json {
        format!("{body}\n")
    } else {
        let at = client.address().to_string();
        let status: StatusResponse = serde_json::from_value(body).map_err(|error| {
            CommandError::Failed(format!("{at} is a skep of another version: {error}"))
        })?;
        Screen(&status).lines(&at)
    };
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// A status as text.
struct Screen<'a>(&'a StatusResponse);

impl Screen<'_> {
    fn lines(&self, at: &str) -> String {
        let (rates, peers, limits) = (&self.0.rates, &self.0.peers, &self.0.limits);
        let lines = [
            ("tracker", format!("skep {} at {at}", escaped(&self.0.version))),
            ("state", format!("{}, up {}", escaped(&self.0.state), duration(self.0.uptime_s))),
            ("backend", escaped(&self.0.backend)),
            (
                "responses",
                format!(
                    "{}/s announces, {}/s scrapes, {}/s connects",
                    rate(rates.announces),
                    rate(rates.scrapes),
                    rate(rates.connects)
                ),
            ),
            (
                "errors",
                format!("{}/s refused, {}/s dropped", rate(rates.refused), rate(rates.dropped)),
            ),
            (
                "peers",
                format!(
                    "{}: {}, {}",
                    grouped(peers.all),
                    count(peers.seeders, "seeder"),
                    count(peers.leechers, "leecher")
                ),
            ),
            ("torrents", self.torrents()),
            ("access", self.access()),
            (
                "limits",
                format!(
                    "sources limited: {}; {} over the limit, {} denied in the kernel",
                    escaped(&limits.sources),
                    grouped(limits.sources_over),
                    grouped(limits.sources_denied)
                ),
            ),
            (
                "load",
                format!(
                    "busiest worker {}, announce interval {:.0} s (load {})",
                    percent(limits.busiest_worker),
                    limits.interval_s,
                    percent(limits.load)
                ),
            ),
            ("memory", self.memory()),
            ("snapshot", self.snapshot()),
            ("warnings", self.count_of_warnings()),
        ];
        let lines = lines.map(|(name, value)| format!("{name:<10} {value}\n")).concat();
        let warning = |it: &StatusWarning| {
            format!("  {}; remedy: {}\n", escaped(&it.message), escaped(&it.remedy))
        };
        lines + &self.0.warnings.iter().map(warning).collect::<String>()
    }

    fn torrents(&self) -> String {
        let StatusTorrents { all, active, .. } = self.0.torrents;
        format!("{}, {} with peers", grouped(all), grouped(active))
    }

    fn access(&self) -> String {
        let StatusTorrents { registered, passkeys, .. } = self.0.torrents;
        let (registered, passkeys) = (grouped(registered), grouped(passkeys));
        let mode = escaped(&self.0.access_mode);
        match &*self.0.access_mode {
            "private" => {
                format!("{mode}; registered info-hashes {registered}, passkeys {passkeys}")
            }
            "registered" => format!("{mode}; registered info-hashes {registered}"),
            _ => mode,
        }
    }

    fn memory(&self) -> String {
        let memory = &self.0.memory;
        let of =
            |bytes: u64| if bytes > 0 { format!(" of {}", size(bytes)) } else { String::new() };
        format!(
            "{}{} resident; torrents and peers {}{}",
            size(memory.resident_bytes),
            of(memory.cap_bytes),
            size(memory.store_bytes),
            of(memory.store_limit_bytes)
        )
    }

    fn snapshot(&self) -> String {
        match self.0.snapshot_at_s {
            0 => "none".to_owned(),
            at_s => date(at_s),
        }
    }

    fn count_of_warnings(&self) -> String {
        match self.0.warnings.len() as u64 {
            0 => "none".to_owned(),
            number => grouped(number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_screen_has_every_figure_and_every_warning() {
        let status = json!({
            "version": "0.1.0", "state": "serving", "uptime_s": 3661, "backend": "uring",
            "access_mode": "private", "new": 1, "snapshot_at_s": 1_795_303_209,
            "rates": { "announces": 1234.5, "scrapes": 0.25, "connects": 0.0, "dropped": 0.0,
                "refused": 1.0 },
            "peers": { "all": 1235, "seeders": 1, "leechers": 1234 },
            "torrents": { "all": 3, "active": 2, "registered": 1, "passkeys": 2 },
            "limits": { "sources": "yes", "sources_over": 1, "sources_denied": 0,
                "interval_s": 1800.4, "load": 0.1, "busiest_worker": 0.25 },
            "memory": { "resident_bytes": 3 << 20, "cap_bytes": 0, "store_bytes": 1024,
                "store_limit_bytes": 1 << 20 },
            "warnings": [{ "id": "x", "message": "a\nb", "remedy": "c" }],
        });
        let status: StatusResponse = serde_json::from_value(status).unwrap();
        let expected = "\
tracker    skep 0.1.0 at http://127.0.0.1:6970
state      serving, up 1 h 1 min
backend    uring
responses  1,235/s announces, 0.2/s scrapes, 0/s connects
errors     1/s refused, 0/s dropped
peers      1,235: 1 seeder, 1,234 leechers
torrents   3, 2 with peers
access     private; registered info-hashes 1, passkeys 2
limits     sources limited: yes; 1 over the limit, 0 denied in the kernel
load       busiest worker 25.0 %, announce interval 1800 s (load 10.0 %)
memory     3 MiB resident; torrents and peers 1 KiB of 1 MiB
snapshot   2026-11-21T23:20:09Z
warnings   1
  a\\nb; remedy: c
";
        assert_eq!(Screen(&status).lines("http://127.0.0.1:6970"), expected);
    }
}
