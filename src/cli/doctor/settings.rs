//! Findings on the configuration: those of `skep check`.

use super::finding::{Check, Finding};
use super::{HostReport, tls};
use crate::config::{ConfigFinding, ConfigTopic};

const VALID: Check = Check::new(
    "config.valid",
    "skep does not start with a setting, or a file that a setting names, that it cannot use.",
);
const DOUBTS: Check =
    Check::new("config.doubts", "These settings are allowed, but probably not what was meant.");

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    // The group `tls` has those of the certificate that is served, the group `state` warnings of
    // the state directory.
    let is_elsewhere = |it: &&ConfigFinding| match it.topic {
        ConfigTopic::StateDirectory => !it.is_fault(),
        topic => tls::is_fault(it) || topic != ConfigTopic::Setting,
    };
    let has_tls_fault = report.configuration.iter().any(tls::is_fault);
    let (faults, doubts): (Vec<_>, Vec<_>) =
        report.configuration.iter().filter(|it| !is_elsewhere(it)).partition(|it| it.is_fault());
    let mut findings = vec![match faults.as_slice() {
        [] if has_tls_fault => VALID.ok("all can be used but what tls.certificate names"),
        [] => VALID.ok("settings and the files that they name can be used"),
        faults => VALID.problem(
            lines(faults),
            "correct them, then run `skep check` with the same flags and variables",
        ),
    }];
    if !doubts.is_empty() {
        findings.push(DOUBTS.warning(lines(&doubts), "change them, or leave them if meant so"));
    }
    findings
}

/// A line for each finding.
fn lines(findings: &[&ConfigFinding]) -> String {
    let lines: Vec<_> = findings.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, found};
    use super::*;

    #[test]
    fn a_configuration_that_does_not_start_is_a_problem_with_all_its_faults() {
        let mut fake = Fake::new();
        assert_eq!(found(&examine(&fake.report), "config.valid").0, Severity::Ok);
        fake.report.configuration = vec![
            ConfigFinding::fault("is out of bounds").about("server.workers"),
            ConfigFinding::warning("is doubtful").about("tls.key"),
            ConfigFinding::warning("expires").about("tls.key").on(ConfigTopic::CertificateExpires),
            ConfigFinding::fault("cannot read /key").about("tls.key"),
            ConfigFinding::fault("cannot read /nope").about("access.ports_deny"),
        ];
        let findings = examine(&fake.report);
        let (severity, text) = found(&findings, "config.valid");
        assert_eq!(severity, Severity::Problem);
        let both = "server.workers: is out of bounds\naccess.ports_deny: cannot read /nope\n";
        assert!(text.starts_with(both), "{text}");
        let (severity, text) = found(&findings, "config.doubts");
        assert_eq!(severity, Severity::Warning);
        assert!(text.starts_with("tls.key: is doubtful\n"), "{text}");
        assert!(!text.contains("expires"), "the group tls has that: {text}");
    }
}
