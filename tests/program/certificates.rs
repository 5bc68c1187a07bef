//! Certificates that will fail later, or have failed: what the check, the start, the log and the
//! metrics show of them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, KeyPair};
use serde_json::Value;
use skep::sys::identity::UnixUser;

use crate::support::tcp_clients::Certificate;
use crate::support::{Skep, command, eventually, texts};

const NOT_AFTER: &str = "skep_tls_certificate_not_after_timestamp_seconds";
const FAILURES: &str = "skep_tls_reload_failures_total";

/// The user that skep becomes where it is started as root: nobody.
const USER: &str = "65534";

/// Writes a certificate that ends some days and a half from now, over what is there, and returns
/// its end in seconds since the Unix epoch.
fn write(folder: &Path, days: i64) -> (Certificate, u64) {
    let now_s = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let end_s = now_s.checked_add_signed(days * 86_400 + 43_200).unwrap();
    let at = |second| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(second);
    let key = KeyPair::generate().unwrap();
    let mut wanted = CertificateParams::new(["localhost".to_owned()]).unwrap();
    (wanted.not_before, wanted.not_after) = (at(end_s - 90 * 86_400), at(end_s));
    let certificate =
        Certificate { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") };
    fs::write(&certificate.key, key.serialize_pem()).unwrap();
    fs::write(&certificate.certificate, wanted.self_signed(&key).unwrap().pem()).unwrap();
    (certificate, end_s)
}

/// A file of settings that serve this certificate.
fn settings(folder: &Path, certificate: &Certificate, rest: &str) -> String {
    let path = folder.join("skep.toml");
    let text = format!(
        "{rest}\n[tls]\nlisten = [\"127.0.0.1:0\"]\ncertificate = {:?}\nkey = {:?}\n",
        certificate.certificate, certificate.key
    );
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What `skep check` finds: its exit code, and standard error.
fn check(config: &str) -> (Option<i32>, String) {
    let output = command().args(["check", "--config", config]).output().unwrap();
    (output.status.code(), texts(&output).1)
}

/// The finding of `skep doctor` with this name.
fn doctor(config: &str, skep: &Skep, id: &str) -> Value {
    let mut doctor = command();
    doctor.args(["doctor", "--json", "--config", config, "--listen", "127.0.0.1:0"]);
    doctor.args(["--admin", &skep.admin.to_string()]);
    let output = doctor.env("STATE_DIRECTORY", skep.folder()).output().unwrap();
    let findings: Vec<Value> = serde_json::from_str(&texts(&output).0).unwrap();
    findings.into_iter().find(|it| it["id"] == id).unwrap()
}

#[test]
fn the_end_of_a_certificate_is_announced_by_check_start_doctor_and_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, end_s) = write(folder.path(), 10);
    let config = settings(folder.path(), &certificate, "");
    let (code, stderr) = check(&config);
    assert_eq!(code, Some(0), "{stderr}");
    let is_placed = stderr.starts_with("skep: warning: ") && stderr.contains(": tls.certificate: ");
    assert!(is_placed && stderr.contains("skep.toml:"), "{stderr}");
    assert!(
        stderr.contains("certificate.pem expires on ") && stderr.contains("remedy"),
        "{stderr}"
    );
    let skep = Skep::start(&["--config", &config]);
    let log = skep.log_with("WARN configuration doubtful ");
    assert!(log.contains("skep.toml:4:1 key=\"tls.certificate\" value=\"/"), "{log}");
    assert!(log.contains(" in 10 days\" remedy=\"renew it"), "{log}");
    assert_eq!(skep.metrics().value(NOT_AFTER), f64::from(u32::try_from(end_s).unwrap()));
    assert_eq!(doctor(&config, &skep, "tls.certificate")["severity"], "warning");
    assert_eq!(doctor(&config, &skep, "tls.reload")["severity"], "ok");

    let (_, end_s) = write(folder.path(), 60);
    skep.log_with("TLS certificate reloaded");
    assert_eq!(skep.metrics().value(NOT_AFTER), f64::from(u32::try_from(end_s).unwrap()));
    assert_eq!(check(&config), (Some(0), String::new()));
    drop(skep);
    write(folder.path(), -1);
    let (code, stderr) = check(&config);
    assert!(code == Some(0) && stderr.contains("certificate.pem expired on "), "{stderr}");
    let log = Skep::start(&["--config", &config]).log_with("WARN configuration doubtful ");
    assert!(log.contains("key=\"tls.certificate\"") && log.contains("expired on "), "{log}");
}

#[test]
fn of_a_version_1_certificate_and_of_a_strange_key_the_right_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
    let version_1 = Certificate {
        certificate: data.join("version_1.pem"),
        key: data.join("version_1_key.pem"),
    };
    let (code, stderr) = check(&settings(folder.path(), &version_1, ""));
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("tls.certificate: ") && stderr.contains("version 1"), "{stderr}");
    let (certificate, _) = write(folder.path(), 60);
    let strange = Certificate { key: version_1.key, ..certificate };
    let (code, stderr) = check(&settings(folder.path(), &strange, ""));
    assert_eq!(code, Some(2), "{stderr}");
    assert!(stderr.contains("tls.key: ") && stderr.contains("does not fit"), "{stderr}");
}

#[test]
fn files_that_only_root_may_read_are_warned_of_and_a_failed_renewal_is_counted() {
    if !UnixUser::can_change() {
        return eprintln!("skipped: this is not root");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let (certificate, end_s) = write(folder.path(), 60);
    let set = |mode| fs::set_permissions(&certificate.key, Permissions::from_mode(mode)).unwrap();
    set(0o600);
    let config = settings(folder.path(), &certificate, &format!("[server]\nuser = \"{USER}\"\n"));
    let denied = format!("user {USER} (server.user) cannot read ");
    let (code, stderr) = check(&config);
    assert!(code == Some(0) && stderr.contains(&format!("tls.key: {denied}")), "{stderr}");
    let skep = Skep::start(&["--config", &config]);
    let log = skep.log_with("WARN configuration doubtful ");
    assert!(log.contains(&format!("problem=\"{denied}")), "{log}");
    assert!(log.contains("key=\"tls.key\""), "{log}");
    assert_eq!(doctor(&config, &skep, "tls.files")["severity"], "warning");

    let (_, next_s) = write(folder.path(), 80);
    set(0o600);
    let log = skep.log_with("ERROR TLS certificate not reloaded");
    assert!(log.contains("key.pem: Permission denied"), "{log}");
    eventually("it is counted", || skep.metrics().value(FAILURES) >= 1.0);
    let not_after = || skep.metrics().value(NOT_AFTER);
    assert_eq!(not_after(), f64::from(u32::try_from(end_s).unwrap()), "the former one stays");
    assert_eq!(doctor(&config, &skep, "tls.reload")["severity"], "warning");

    let (_, last_s) = write(folder.path(), 85);
    set(0o644);
    skep.log_with("TLS certificate reloaded");
    assert_ne!(next_s, last_s);
    assert_eq!(not_after(), f64::from(u32::try_from(last_s).unwrap()));
    assert_eq!(doctor(&config, &skep, "tls.files")["severity"], "ok");
}

#[test]
fn a_failed_reload_is_warned_of_until_one_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, _) = write(folder.path(), 60);
    let skep = Skep::start(&["--config", &settings(folder.path(), &certificate, "")]);
    let is_warned_of = || {
        let status: Value = serde_json::from_str(&skep.get("/api/v1/status").1).unwrap();
        let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
        warnings.iter().any(|it| it["id"] == "certificate_reload_failures")
    };
    fs::write(&certificate.key, "broken").unwrap();
    skep.log_with("ERROR TLS certificate not reloaded");
    eventually("it is warned of", is_warned_of);
    write(folder.path(), 80);
    skep.log_with("TLS certificate reloaded");
    eventually("it is not warned of any more", || !is_warned_of());
    assert!(skep.metrics().value(FAILURES) >= 1.0, "the failure stays counted");
}

#[test]
fn a_start_logs_what_check_warns_of_once_and_in_fields() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, _) = write(folder.path(), 10);
    let rest = "[server]\nhandover_socket = \"/nope/socket\"\n[log]\nformat = \"json\"\n\
                [tracker]\nip_override_from = [\"0.0.0.0/0\"]\n";
    let config = settings(folder.path(), &certificate, rest);
    let mut checking = command();
    let output = checking.args(["check", "--json", "--config", &config]).output().unwrap();
    let found: Vec<Value> = serde_json::from_str(&texts(&output).0).unwrap();
    let mut expected: Vec<_> = found.iter().map(warning_of_check).collect();
    let keys: Vec<_> = expected.iter().map(|it| it[1].as_str().unwrap()).collect();
    for key in ["server.handover_socket", "tls.certificate", "tracker.ip_override_from"] {
        assert!(keys.contains(&key), "{key} is not in {keys:?}");
    }
    let mut skep = Skep::start(&["--config", &config]);
    skep.signal("TERM");
    assert!(skep.wait().success());
    let lines: Vec<Value> =
        skep.log().lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    let is_it = |it: &&Value| it["message"] == "configuration doubtful";
    let fields = ["place", "key", "value", "problem", "remedy"];
    let warning_of_log = |it: &Value| fields.map(|field| it[field].clone());
    let mut logged: Vec<_> = lines.iter().filter(is_it).map(warning_of_log).collect();
    for all in [&mut expected, &mut logged] {
        all.sort_by_key(|it| it[1].to_string());
    }
    assert_eq!(logged, expected, "{}", skep.log());
    assert!(!skep.log().contains("; remedy: "), "{}", skep.log());
}

/// A warning of `skep check --json`, in the order of the log's fields.
fn warning_of_check(found: &Value) -> [Value; 5] {
    assert_eq!(found["severity"], "warning", "{found}");
    let column = &found["column"];
    let place = format!("{}:{}:{column}", found["file"].as_str().unwrap(), found["line"]);
    let [key, value, message, remedy] =
        ["key", "value", "message", "remedy"].map(|name| found[name].clone());
    [place.into(), key, value, message, remedy]
}
