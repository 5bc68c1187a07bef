//! `skep check`: everything that is wrong with the configuration, or probably is, in one run.

use std::process::ExitCode;

use clap::Args;

use super::{FindingsArguments, complain, print};
use crate::config::{ConfigFinding, ConfigSeverity};
use crate::server::{self, StartError};

const EXAMPLES: &str = "\
Examples:
  skep check                                   the environment alone
  skep check --config /etc/skep/skep.toml      a file, and the environment
  runuser -u skep -- skep check --config FILE  as the tracker's user: which files it may read
  skep check --json | jq '.[] | select(.severity == \"fault\")'

Checked are the settings, and what they name: access lists, certificate and key, key file, user,
Unix sockets, and the state directory with each file in it that a start opens, as server.user would
open it. Nothing is bound or created. `skep doctor` does the same, and tries the ports.

  fault     skep does not start with it
  warning   skep starts, but it is probably a mistake

With --json each finding is an object: severity, file, line, column, source (a variable or a flag),
key (section.key), value, message, remedy. What does not apply is null.

Exit codes: 0 no fault, 2 a fault or invalid usage.";

/// Arguments of `check`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Options {
    #[command(flatten)]
    findings: FindingsArguments,
}

/// Checks the configuration, and prints the findings.
pub(super) fn run(options: &Options) -> ExitCode {
    let findings = match options.findings.settings.source() {
        Ok(source) => server::check(&source).configuration.findings,
        Err(StartError::Config(error) | StartError::Host(error)) => error.faults,
        Err(StartError::Failed(error)) => vec![ConfigFinding::fault(error)],
    };
    let faults = findings.iter().filter(|it| it.is_fault()).count();
    let printed = if options.findings.json {
        print(&json(&findings))
    } else {
        findings.iter().for_each(|it| complain(&line(it)));
        if faults == 0 {
            print("the configuration is valid\n")
        } else {
            let plural = if faults == 1 { "" } else { "s" };
            complain(&format!("{faults} fault{plural}: skep does not start"));
            Ok(())
        }
    };
    match printed {
        Err(error) => {
            complain(&error.to_string());
            ExitCode::FAILURE
        }
        Ok(()) if faults > 0 => ExitCode::from(2),
        Ok(()) => ExitCode::SUCCESS,
    }
}

/// A finding as people read it.
fn line(finding: &ConfigFinding) -> String {
    match finding.severity {
        ConfigSeverity::Fault => finding.to_string(),
        ConfigSeverity::Warning => format!("warning: {finding}"),
    }
}

/// An array with an object for each finding.
fn json(findings: &[ConfigFinding]) -> String {
    let all: Vec<_> = findings.iter().map(ConfigFinding::to_json).collect();
    super::json::pretty(&all)
}
