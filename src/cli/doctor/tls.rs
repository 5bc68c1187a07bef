//! Findings on the certificate: whether it can be served, how long, whether a renewed one can be
//! loaded, and whether the running tracker has the one in the files.

use super::HostReport;
use super::finding::{Check, Finding};
use super::tracker::{value, without_tracker};
use crate::config::{ConfigFinding, ConfigTopic};
use crate::server::{Validity, day};

const CERTIFICATE: Check = Check::new(
    "tls.certificate",
    "skep does not start with a certificate that it cannot use, and clients refuse one that has \
     expired.",
);
const FILES: Check = Check::new(
    "tls.files",
    "A certificate is read before root is given up, and a renewed one afterwards: files of root \
     alone work until the certificate expires.",
);
const RELOAD: Check = Check::new(
    "tls.reload",
    "A renewed certificate that the running tracker cannot load is not served; the former one is, \
     until it expires.",
);

pub(super) fn examine(report: &HostReport) -> Vec<Finding> {
    let faults: Vec<_> = report.configuration.iter().filter(|it| is_fault(it)).collect();
    if !faults.is_empty() {
        return of_faults(&faults);
    }
    match report.certificate {
        Some(validity) => {
            vec![certificate(report, validity), files(report), reload(report, validity)]
        }
        None if report.configuration.iter().any(is_of_listen) => {
            let faults = report.configuration.iter().filter(|it| is_of_listen(it));
            let faults: Vec<_> = faults.map(fact).collect();
            let unknown = format!("unknown: {}", faults.join("\n"));
            let remedy = "correct tls.listen, then run `skep doctor` again";
            [CERTIFICATE, FILES, RELOAD]
                .iter()
                .map(|check| check.info(unknown.as_str()).remedied(remedy))
                .collect()
        }
        None => {
            let unserved = "TLS is not served: tls.listen is empty";
            [CERTIFICATE, FILES, RELOAD].iter().map(|check| check.ok(unserved)).collect()
        }
    }
}

/// Whether a finding of `skep check` is a fault of certificate or key.
pub(super) fn is_fault(finding: &ConfigFinding) -> bool {
    let key = finding.key.as_deref();
    finding.is_fault() && ["tls.certificate", "tls.key"].map(Some).contains(&key)
}

/// Whether a finding of `skep check` is a fault of `tls.listen`: whether TLS is to be served is
/// unknown then.
fn is_of_listen(finding: &ConfigFinding) -> bool {
    finding.is_fault() && finding.key.as_deref() == Some("tls.listen")
}

/// A finding of `skep check` without its advice.
fn fact(finding: &ConfigFinding) -> String {
    ConfigFinding { allowed: None, meant: None, remedy: None, ..finding.clone() }.to_string()
}

/// The findings where certificate or key cannot be used, as `skep check` finds.
fn of_faults(faults: &[&ConfigFinding]) -> Vec<Finding> {
    let facts: Vec<_> = faults.iter().map(|it| fact(it)).collect();
    let mut remedies: Vec<_> = faults.iter().filter_map(|it| it.advice()).collect();
    remedies.dedup();
    let unknown = "unknown: certificate or key cannot be used";
    let remedy = "correct what tls.certificate names, then run `skep doctor` again";
    vec![
        CERTIFICATE.problem(facts.join("\n"), remedies.join("\n")),
        FILES.info(unknown).remedied(remedy),
        RELOAD.info(unknown).remedied(remedy),
    ]
}

/// The messages of the findings with this topic, and their remedies; `None` if there is none.
fn found_on(report: &HostReport, topic: ConfigTopic) -> Option<(String, String)> {
    let found: Vec<_> = report.configuration.iter().filter(|it| it.topic == topic).collect();
    let messages: Vec<_> = found.iter().map(|it| it.message.as_str()).collect();
    let mut remedies: Vec<_> = found.iter().filter_map(|it| it.advice()).collect();
    remedies.dedup();
    (!found.is_empty()).then(|| (messages.join("\n"), remedies.join("\n")))
}

fn certificate(report: &HostReport, validity: Validity) -> Finding {
    if let Some((fact, remedy)) = found_on(report, ConfigTopic::CertificateRefused) {
        return CERTIFICATE.problem(fact, remedy);
    }
    match found_on(report, ConfigTopic::CertificateExpires) {
        Some((fact, remedy)) => CERTIFICATE.warning(fact, remedy),
        None => CERTIFICATE.ok(format!("valid until {}", day(validity.to_s))),
    }
}

fn files(report: &HostReport) -> Finding {
    match found_on(report, ConfigTopic::CertificateRenewal) {
        Some((fact, remedy)) => FILES.warning(fact, remedy),
        None => FILES.ok("the tracker can read certificate and key again"),
    }
}

fn reload(report: &HostReport, validity: Validity) -> Finding {
    let admin = report.facts.admin;
    let metrics = match &report.facts.metrics {
        Ok(metrics) => metrics,
        Err(error) => return without_tracker(&RELOAD, admin, error),
    };
    let name = "skep_tls_certificate_not_after_timestamp_seconds";
    let Some(in_force_s) = value(metrics, name) else {
        return RELOAD.info(format!("what responds at {admin} has no such metric"));
    };
    if in_force_s <= 0.0 {
        return RELOAD
            .info("the running tracker does not serve TLS, though these settings do")
            .remedied("restart it: a reload does not add addresses\n$ systemctl restart skep");
    }
    let Validity { to_s, .. } = validity;
    #[expect(clippy::cast_possible_truncation, reason = "a time in seconds")]
    let in_force_s = in_force_s as i64;
    if in_force_s == to_s {
        return RELOAD.ok("the running tracker serves the certificate in the files");
    }
    let fact = format!(
        "the running tracker serves a certificate that is valid until {}, the one in the files is \
         until {}",
        day(in_force_s),
        day(to_s)
    );
    RELOAD.warning(
        fact,
        "let the tracker's user read both files; the log has the error\n\
         $ journalctl -u skep | grep 'TLS certificate not reloaded'",
    )
}

#[cfg(test)]
mod tests {
    use super::super::Severity;
    use super::super::fake::{Fake, NOW_S, found};
    use super::*;

    const DAY_S: i64 = 86_400;

    /// The tests' moment, some days later.
    fn in_days(days: i64) -> i64 {
        i64::try_from(NOW_S).unwrap() + days * DAY_S
    }

    /// A finding on a certificate that ends in some days, with what `skep check` has found.
    fn found_of(
        days: Option<i64>,
        configuration: Vec<ConfigFinding>,
        metrics: Result<&str, &str>,
        id: &str,
    ) -> (Severity, String) {
        let mut fake = Fake::new();
        let validity = |days| Validity { from_s: in_days(-90), to_s: in_days(days) };
        fake.report.certificate = days.map(validity);
        fake.report.configuration = configuration;
        fake.report.facts.metrics = metrics.map(str::to_owned).map_err(str::to_owned);
        found(&examine(&fake.report), id)
    }

    fn warning(text: &str, topic: ConfigTopic) -> Vec<ConfigFinding> {
        vec![ConfigFinding::warning(text).about("tls.key").on(topic)]
    }

    #[test]
    fn a_certificate_is_judged_as_check_judges_it() {
        let judge = |days, found| found_of(days, found, Err("refused"), "tls.certificate");
        assert_eq!(judge(None, Vec::new()).0, Severity::Ok);
        let fault = ConfigFinding::fault("\"x\" is not an address").about("tls.listen");
        let (severity, text) = judge(None, vec![fault]);
        assert_eq!(severity, Severity::Info, "it is unknown whether TLS is to be served");
        assert!(text.starts_with("unknown: tls.listen: \"x\" is not an address\n"), "{text}");
        let (severity, text) = judge(Some(60), Vec::new());
        assert!(severity == Severity::Ok && text.starts_with("valid until 2027-03-"), "{text}");
        let expires = warning("/a ends soon; remedy: renew", ConfigTopic::CertificateExpires);
        let expected = (Severity::Warning, "/a ends soon\nrenew".to_owned());
        assert_eq!(judge(Some(10), expires), expected);
        let expired = warning("/a has ended; remedy: renew", ConfigTopic::CertificateRefused);
        let expected = (Severity::Problem, "/a has ended\nrenew".to_owned());
        assert_eq!(judge(Some(-1), expired), expected);
    }

    #[test]
    fn of_two_files_that_are_missing_each_has_its_fact_and_its_remedy() {
        let mut fake = Fake::new();
        let fault = |key: &str, file: &str| {
            ConfigFinding::fault(format!("cannot read {file}; remedy: create {file}")).about(key)
        };
        fake.report.configuration = vec![fault("tls.certificate", "/a"), fault("tls.key", "/b")];
        let findings = examine(&fake.report);
        let (severity, text) = found(&findings, "tls.certificate");
        assert_eq!(severity, Severity::Problem);
        let expected = "tls.certificate: cannot read /a\ntls.key: cannot read /b\n\
                        create /a\ncreate /b";
        assert_eq!(text, expected);
        for id in ["tls.files", "tls.reload"] {
            assert_eq!(found(&findings, id).0, Severity::Info, "{id}");
        }
    }

    #[test]
    fn files_that_the_user_may_not_read_are_found_before_a_renewal() {
        let judge = |found| found_of(Some(60), found, Err("refused"), "tls.files");
        assert_eq!(judge(Vec::new()).0, Severity::Ok);
        let text = "user 65534 (server.user) cannot read /a; remedy: copy it";
        let found = judge(warning(text, ConfigTopic::CertificateRenewal));
        let expected = "user 65534 (server.user) cannot read /a\ncopy it";
        assert_eq!(found, (Severity::Warning, expected.to_owned()));
    }

    #[test]
    fn the_running_tracker_is_compared_with_the_files() {
        let name = "skep_tls_certificate_not_after_timestamp_seconds";
        let judge = |days| {
            let metrics = format!("# TYPE {name} gauge\n{name} {}\n", in_days(days));
            found_of(Some(60), Vec::new(), Ok(&metrics), "tls.reload")
        };
        assert_eq!(judge(60).0, Severity::Ok);
        let (severity, text) = judge(5);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("valid until 2027-01-") && text.contains("grep"), "{text}");
        let unserved = format!("{name} 0\n");
        for metrics in [Ok(unserved.as_str()), Ok("skep_torrents 0\n"), Err("refused")] {
            let (severity, _) = found_of(Some(60), Vec::new(), metrics, "tls.reload");
            assert_eq!(severity, Severity::Info);
        }
    }
}
