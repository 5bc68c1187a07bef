//! `skep doctor`: checks the host that skep runs on, and prints findings with remedies.
//!
//! ```text
//! files below a root ─▶ Host ────┐
//! system calls ───────▶ Answers ─┼▶ HostReport ─▶ findings, group by group ─▶ report
//! settings ───────────▶ Config ──┘
//! ```
//!
//! Nothing is changed on the host. A file that is missing or forbidden does not end the checks: the
//! finding then names the file. Each group of findings has a file of its own.

mod addresses;
mod buffers;
mod clock;
mod conntrack;
mod container;
mod control_group;
mod facts;
#[cfg(test)]
mod fake;
mod finding;
mod host;
mod kernel;
mod limits;
mod report;
mod spread;
mod state;

use std::process::ExitCode;

use clap::Args;

use super::{Settings, complain, print};
use crate::config::Config;
use crate::server::StartError;

pub use facts::{Denial, HostFacts, StateHome, WallClock};
pub use finding::{Finding, Severity};
pub use host::{Host, HostReadError};

const EXAMPLES: &str = "\
Examples:
  skep doctor                                this host, as skep without a configuration needs it
  skep doctor --config /etc/skep/skep.toml   as that configuration needs it
  skep doctor --json | jq '.[] | select(.severity == \"problem\")'
  sudo -u skep skep doctor                   as the tracker's user: limits and files are its own
  docker exec CONTAINER skep doctor          from within: seccomp, control groups

Each finding has a name that stays the same (such as network.receive_buffer), a fact, and, unless it
is ok, why it matters and what to do; a line with $ is a command, to be run as root. skep doctor
changes nothing. If a tracker runs, skep doctor also reads its metrics.

  ok        as it should be
  info      useful to know, or could not be determined
  warning   some clients get slow or no responses, now or under load
  problem   skep does not start, or clients are not served

The most severe findings come last. Limits (open files, memory, seccomp) are those of this shell;
those of a service are in its unit.

Exit codes: 0 no problem, 1 a problem, 2 invalid usage or configuration.";

/// Arguments of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// Print one JSON array instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// The input of all checks.
#[derive(Clone, Debug)]
pub struct HostReport {
    /// Contents of files.
    pub host: Host,
    /// Results of system calls.
    pub facts: HostFacts,
    /// The settings that skep would run with.
    pub config: Config,
}

impl HostReport {
    /// Number of workers with these settings.
    fn workers(&self) -> usize {
        match self.config.server.workers {
            0 => self.cores(),
            count => count as usize,
        }
    }

    /// Number of usable cores; 1 if it is unknown.
    fn cores(&self) -> usize {
        self.facts.cores.as_ref().map_or(1, |it| *it)
    }
}

/// Runs all checks, group by group.
pub fn examine(patient: &HostReport) -> Vec<Finding> {
    let groups: [fn(&HostReport) -> Vec<Finding>; 9] = [
        kernel::examine,
        clock::examine,
        limits::examine,
        buffers::examine,
        spread::examine,
        conntrack::examine,
        addresses::examine,
        container::examine,
        state::examine,
    ];
    groups.iter().flat_map(|examine| examine(patient)).collect()
}

/// Checks this host and prints the findings.
pub(super) fn run(options: &Options) -> ExitCode {
    match report_here(options) {
        Ok(Some(Severity::Problem)) => ExitCode::FAILURE,
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints the findings on this host. Returns the worst severity.
fn report_here(options: &Options) -> Result<Option<Severity>, StartError> {
    let config = options.settings.source()?.load()?;
    let facts = HostFacts::gather(&config);
    let findings = examine(&HostReport { host: Host::here(), facts, config });
    print(&if options.json { report::json(&findings) } else { report::text(&findings) })?;
    Ok(findings.iter().map(|it| it.severity).max())
}

/// A number of bytes with a binary unit, such as `1.5 GiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|it| bytes >= it.1) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        // `unit / 10` is rounded down, which changes the result by less than 1 %.
        Some((name, unit)) => {
            let tenths = bytes / (unit / 10).max(1);
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fake::Fake;

    #[test]
    fn sizes_are_readable() {
        let said = [0, 1023, 1024, 212_992, 8 << 20, 3 << 29, 1 << 40].map(size);
        let wanted = ["0 B", "1023 B", "1 KiB", "208 KiB", "8 MiB", "1.5 GiB", "1024 GiB"];
        assert_eq!(said, wanted);
    }

    #[test]
    fn a_host_that_shows_nothing_is_examined_to_the_end() {
        let findings = examine(&Fake::new().report);
        let unread: Vec<_> = findings.iter().filter(|it| it.fact.starts_with("unknown")).collect();
        assert!(unread.len() >= 8, "{unread:#?}");
        for finding in unread {
            assert_eq!(finding.severity, Severity::Info, "{finding:?}");
            assert!(finding.fact.contains("No such file"), "{finding:?}");
            assert!(finding.remedy.is_some(), "{finding:?}");
        }
        assert!(findings.iter().all(|it| it.severity < Severity::Problem), "{findings:#?}");
    }

    #[test]
    fn names_are_unique_and_all_that_is_not_well_has_a_remedy() {
        for findings in [examine(&Fake::new().report), examine(&Fake::ill().report)] {
            let mut ids: Vec<_> = findings.iter().map(|it| it.id).collect();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), findings.len(), "{findings:#?}");
            for finding in findings {
                assert!(finding.id.split_once('.').is_some(), "{finding:?}");
                assert!(
                    finding.severity < Severity::Warning || finding.remedy.is_some(),
                    "{finding:?}"
                );
                assert!(!finding.why.is_empty() && finding.why.is_ascii(), "{finding:?}");
            }
        }
    }
}
