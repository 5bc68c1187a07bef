//! `skep doctor`: checks the host that skep runs on, and prints findings with remedies.
//!
//! ```text
//! files below a root ─▶ Host, now and a second ago ───────┐
//! the running tracker ▶ its metrics, now and a second ago ┤
//! system calls ───────▶ HostFacts ────────────────────────┼▶ HostReport ─▶ findings ─▶ report
//! settings ───────────▶ Config, and its findings ─────────┘
//! ```
//!
//! The configuration comes first, as `skep check` judges it: no host is good for settings with
//! which skep does not start. Nothing is changed on the host. A file that is missing or forbidden
//! does not end the checks: the finding then names the file. Each group of findings has a file of
//! its own.

mod addresses;
mod buffers;
mod clock;
mod conntrack;
mod container;
mod control_group;
mod earlier;
mod facts;
#[cfg(test)]
mod fake;
mod finding;
mod host;
mod kernel;
mod limits;
mod ports;
mod report;
mod running;
mod settings;
mod spread;
mod state;
mod tls;
mod tracker;
mod xdp;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

use clap::Args;

use super::{FindingsArguments, complain, print};
use crate::config::{Config, ConfigFinding};
pub(super) use crate::frontend::figures::size;
use crate::server::{self, CheckReport, StartError, Validity};

pub use earlier::EarlierCounters;
pub use facts::{Denial, HostFacts, InterfaceFacts, StateHome, WallClock};
pub use finding::{Finding, Severity};
pub use host::{Host, HostReadError};
pub use running::OtherTrackerError;

const EXAMPLES: &str = "\
Examples:
  skep doctor                                this host, as skep without a configuration needs it
  skep doctor --config /etc/skep/skep.toml   as that configuration needs it
  skep doctor --json | jq '.[] | select(.severity == \"problem\")'
  runuser -u skep -- skep doctor             as the tracker's user: limits and files are its own
  docker exec CONTAINER skep doctor          from within: seccomp, control groups

Each finding has a name that stays the same (such as network.receive_buffer), a fact, and, unless it
is ok, why it matters and what to do; a line with $ is a command, to be run as root. skep doctor
changes nothing. It begins with what `skep check` finds, tries each port for a moment, and watches
the kernel's counters for a second. If a tracker runs, skep doctor also reads its metrics.

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
    #[command(flatten)]
    findings: FindingsArguments,
}

/// How long the kernel's counters are watched.
const WATCHED: Duration = Duration::from_secs(1);

/// The input of all checks.
#[derive(Clone, Debug)]
pub struct HostReport {
    /// Contents of files.
    pub host: Host,
    /// Counters a second ago.
    pub earlier: EarlierCounters,
    /// Results of system calls.
    pub facts: HostFacts,
    /// The settings that skep would run with.
    pub config: Config,
    /// What `skep check` finds in them, and in the files that they name.
    pub configuration: Vec<ConfigFinding>,
    /// When the certificate that they name is valid; `None` without TLS, or with a fault.
    pub certificate: Option<Validity>,
}

impl HostReport {
    /// Number of workers with these settings.
    fn workers(&self) -> usize {
        match self.config.server.workers {
            0 => self.cores(),
            count => count as usize,
        }
    }

    /// The addresses that clients are served on.
    fn served(&self) -> Vec<SocketAddr> {
        let config = &self.config;
        [config.udp_listen(), config.http_listen(), config.tls_listen()].concat()
    }

    /// Whether no client reaches the tracker through a network card.
    fn is_on_loopback_alone(&self) -> bool {
        self.served().iter().all(|it| it.ip().is_loopback())
    }

    /// Number of usable cores; 1 if it is unknown.
    fn cores(&self) -> usize {
        self.facts.cores.as_ref().map_or(1, |it| *it)
    }
}

/// Runs all checks, group by group.
pub fn examine(report: &HostReport) -> Vec<Finding> {
    let groups: [fn(&HostReport) -> Vec<Finding>; 13] = [
        settings::examine,
        kernel::examine,
        clock::examine,
        limits::examine,
        buffers::examine,
        spread::examine,
        xdp::examine,
        conntrack::examine,
        addresses::examine,
        ports::examine,
        tls::examine,
        container::examine,
        state::examine,
    ];
    groups.iter().flat_map(|examine| examine(report)).collect()
}

/// Checks this host and prints the findings.
pub(super) fn run(options: &Options) -> ExitCode {
    match report_here(options) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints the findings on this host. Returns the exit code: 2 if the settings themselves are
/// invalid, else 1 if there is a problem.
fn report_here(options: &Options) -> Result<u8, StartError> {
    let host = Host::here();
    let source = options.findings.settings.source()?;
    let CheckReport { configuration, certificate } = server::check(&source);
    let are_settings_valid = configuration.are_settings_valid();
    let (config, configuration) = (configuration.config, configuration.findings);
    let mut facts = HostFacts::gather(&config);
    // The collection takes its time, so the metrics are read again with the first counters.
    facts.renew_metrics();
    let earlier = EarlierCounters::read(&host, facts.metrics.clone().ok());
    sleep(WATCHED);
    facts.renew_metrics();
    let report = HostReport { host, earlier, facts, config, configuration, certificate };
    let findings = examine(&report);
    print(&if options.findings.json { report::json(&findings) } else { report::text(&findings) })?;
    let has_problem = findings.iter().any(|it| it.severity == Severity::Problem);
    Ok(if are_settings_valid { u8::from(has_problem) } else { 2 })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fake::Fake;

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
