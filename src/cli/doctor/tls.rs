//! Findings on the certificate: whether it can be served, how long, whether a renewed one can be
//! loaded, and whether the running tracker has the one in the files.

use super::HostReport;
use super::addresses::{silent, value};
use super::facts::TlsFiles;
use super::finding::{Check, Finding};
use crate::config::ConfigFinding;
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
    match &report.facts.tls {
        Some(tls) => vec![certificate(report, tls), files(tls), reload(report, tls)],
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

/// The findings where certificate or key cannot be used, as `skep check` finds.
fn of_faults(faults: &[&ConfigFinding]) -> Vec<Finding> {
    let fact = |it: &ConfigFinding| {
        ConfigFinding { allowed: None, meant: None, remedy: None, ..it.clone() }.to_string()
    };
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

/// A fact and its remedy, of a text that has both.
fn parts(text: &str) -> (&str, &str) {
    text.split_once("; remedy: ").unwrap_or((text, "name a certificate and its key, both in PEM"))
}

fn certificate(report: &HostReport, tls: &TlsFiles) -> Finding {
    let validity = match &tls.validity {
        Ok(validity) => validity,
        Err(error) => {
            let (fact, remedy) = parts(error);
            return CERTIFICATE.problem(fact, remedy);
        }
    };
    let now_s = i64::try_from(report.facts.clock.now_s).unwrap_or(i64::MAX);
    let Some(warning) = validity.warning(now_s) else {
        return CERTIFICATE.ok(format!("valid until {}", day(validity.to_s)));
    };
    let (fact, remedy) = parts(&warning);
    let fact = format!("{} {fact}", report.config.tls.certificate);
    if (validity.from_s..=validity.to_s).contains(&now_s) {
        CERTIFICATE.warning(fact, remedy)
    } else {
        CERTIFICATE.problem(fact, remedy)
    }
}

fn files(tls: &TlsFiles) -> Finding {
    if tls.unreadable.is_empty() {
        return FILES.ok("the tracker can read certificate and key again");
    }
    FILES.warning(
        tls.unreadable.join("; "),
        "give the tracker copies that its group may read, by a hook of certbot: \
         docs/operating.md, \"TLS on port 443\"",
    )
}

fn reload(report: &HostReport, tls: &TlsFiles) -> Finding {
    let admin = report.config.admin.listen;
    let metrics = match &report.facts.metrics {
        Ok(metrics) => metrics,
        Err(error) => return silent(&RELOAD, admin, error),
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
    let Ok(Validity { to_s, .. }) = tls.validity else {
        return RELOAD.info("the running tracker serves a certificate that is not in the files");
    };
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

    fn found_of(
        tls: Option<TlsFiles>,
        metrics: Result<&str, &str>,
        id: &str,
    ) -> (Severity, String) {
        let mut fake = Fake::new();
        fake.report.facts.tls = tls;
        fake.report.facts.metrics = metrics.map(str::to_owned).map_err(str::to_owned);
        found(&examine(&fake.report), id)
    }

    fn valid(from: i64, to: i64) -> Option<TlsFiles> {
        let validity = Validity { from_s: in_days(from), to_s: in_days(to) };
        Some(TlsFiles { validity: Ok(validity), unreadable: Vec::new() })
    }

    #[test]
    fn a_certificate_is_judged_by_its_dates() {
        let judge = |tls| found_of(tls, Err("refused"), "tls.certificate");
        assert_eq!(judge(None).0, Severity::Ok);
        let (severity, text) = judge(valid(-1, 60));
        assert!(severity == Severity::Ok && text.starts_with("valid until 2027-03-"), "{text}");
        let (severity, text) = judge(valid(-80, 10));
        assert!(severity == Severity::Warning && text.contains("in 10 days\n"), "{text}");
        let (severity, text) = judge(valid(-90, -1));
        assert!(severity == Severity::Problem && text.contains("expired on 2027-01-"), "{text}");
        assert_eq!(judge(valid(1, 90)).0, Severity::Problem);
        let validity = Err("tls.key: /a cannot be used; remedy: make another".to_owned());
        let (severity, text) = judge(Some(TlsFiles { validity, unreadable: Vec::new() }));
        assert_eq!(severity, Severity::Problem);
        assert_eq!(text, "tls.key: /a cannot be used\nmake another");
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
        let judge = |tls| found_of(tls, Err("refused"), "tls.files");
        assert_eq!(judge(valid(-1, 60)).0, Severity::Ok);
        let unreadable = vec!["user 65534 (server.user) cannot read /a".to_owned()];
        let (severity, text) = judge(valid(-1, 60).map(|it| TlsFiles { unreadable, ..it }));
        assert!(severity == Severity::Warning && text.contains("cannot read /a"), "{text}");
    }

    #[test]
    fn the_running_tracker_is_compared_with_the_files() {
        let name = "skep_tls_certificate_not_after_timestamp_seconds";
        let judge = |days| {
            let metrics = format!("# TYPE {name} gauge\n{name} {}\n", in_days(days));
            found_of(valid(-1, 60), Ok(&metrics), "tls.reload")
        };
        assert_eq!(judge(60).0, Severity::Ok);
        let (severity, text) = judge(5);
        assert_eq!(severity, Severity::Warning);
        assert!(text.contains("valid until 2027-01-") && text.contains("grep"), "{text}");
        let unserved = format!("{name} 0\n");
        for metrics in [Ok(unserved.as_str()), Ok("skep_torrents 0\n"), Err("refused")] {
            assert_eq!(found_of(valid(-1, 60), metrics, "tls.reload").0, Severity::Info);
        }
    }
}
