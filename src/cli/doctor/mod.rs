//! `skep doctor`: judges the host that skep runs on, and says what to do about it.
//!
//! ```text
//! files below a root ─▶ Host ────┐
//! system calls ───────▶ Answers ─┼▶ Patient ─▶ findings, group by group ─▶ report
//! settings ───────────▶ Config ──┘
//! ```
//!
//! Nothing is changed on the host, and no file that is missing or forbidden ends the examination:
//! the finding then says what could not be read. One file for each group of findings.

mod addresses;
mod answers;
mod buffers;
mod clock;
mod conntrack;
mod container;
mod control_group;
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

pub use answers::{Answers, Denial, StateHome, WallClock};
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
is ok, why it matters and what to do; a line with $ is a command, to be run as root. Nothing is
changed by skep doctor itself. While the tracker runs, it is asked for its metrics, too.

  ok        as it should be
  info      worth knowing, or could not be found out
  warning   some clients are served worse, or will be under load
  problem   skep does not start so, or clients are not served

The worst stands last. Limits (open files, memory, seccomp) are those of this shell: those of a
service are its unit's.

Exit codes: 0 no problem, 1 a problem, 2 bad usage or configuration.";

/// What to judge the host by.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    /// Print one JSON array instead of text
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: Settings,
}

/// Everything that is judged.
#[derive(Clone, Debug)]
pub struct HostReport {
    /// What files say.
    pub host: Host,
    /// What system calls say.
    pub answers: Answers,
    /// What is wanted of the host.
    pub config: Config,
}

impl HostReport {
    /// How many workers there would be.
    fn workers(&self) -> usize {
        match self.config.server.workers {
            0 => self.cores(),
            count => count as usize,
        }
    }

    /// How many cores there are; where nobody knows, one.
    fn cores(&self) -> usize {
        self.answers.cores.as_ref().map_or(1, |it| *it)
    }
}

/// Judges everything, group by group.
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

/// Judges this host and prints what was found.
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

/// Prints the findings on this host; gives the worst one's severity.
fn report_here(options: &Options) -> Result<Option<Severity>, StartError> {
    let config = options.settings.source()?.load()?;
    let answers = Answers::gather(&config);
    let findings = examine(&HostReport { host: Host::here(), answers, config });
    print(&if options.json { report::json(&findings) } else { report::text(&findings) })?;
    Ok(findings.iter().map(|it| it.severity).max())
}

/// A number of bytes as people read it.
fn size(bytes: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match UNITS.iter().find(|it| bytes >= it.1) {
        Some((name, unit)) if bytes.is_multiple_of(*unit) => format!("{} {name}", bytes / unit),
        // Below a hundredth of the whole, nobody is misled.
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
        let findings = examine(&Fake::new().it);
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
        for findings in [examine(&Fake::new().it), examine(&Fake::ill().it)] {
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
