//! `skep doctor` with the real program on this host, and its library on hosts that hide everything.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use skep::cli::doctor::{EarlierCounters, Host, HostFacts, HostReport, Severity, examine};
use skep::config::Config;
use skep::snapshot::{CURRENT, Header, VERSION, Writer};
use skep::sys::clock::synchronisation;

use crate::support::seccomp::{without_clock, without_io_uring};
use crate::support::{Skep, assert_bad_usage, command, run, texts};

/// Every name there is on a host with connection tracking in use.
const IDS: [&str; 34] = [
    "addresses.bind",
    "addresses.ipv6",
    "addresses.ports",
    "addresses.proxies",
    "addresses.scope",
    "config.valid",
    "conntrack.tracked",
    "container.cpu",
    "container.memory",
    "container.runtime",
    "kernel.io_uring",
    "kernel.io_uring_sysctl",
    "kernel.seccomp",
    "kernel.version",
    "limits.locked_memory",
    "limits.open_files",
    "network.backlog",
    "network.optmem",
    "network.queues",
    "network.receive_buffer",
    "network.rps",
    "network.send_buffer",
    "network.softirq",
    "network.udp_errors",
    "state.directory",
    "state.permissions",
    "state.space",
    "time.clock_source",
    "time.jumps",
    "time.synchronised",
    "tls.certificate",
    "tls.files",
    "tls.reload",
    "xdp.offload",
];

/// A doctor with a state directory of its own.
fn doctor(state: &tempfile::TempDir, arguments: &[&str]) -> Command {
    let mut command = command();
    command.env("STATE_DIRECTORY", state.path()).arg("doctor").args(arguments);
    command
}

/// A doctor with the settings and the state directory of a tracker that runs.
fn doctor_of(skep: &Skep) -> Command {
    doctor_with(skep, &skep.admin.to_string())
}

/// As [`doctor_of`], with this `admin.listen` in the settings.
fn doctor_with(skep: &Skep, admin: &str) -> Command {
    let addresses = |all: &[SocketAddr]| {
        let all: Vec<_> = all.iter().map(|it| format!("\"{it}\"")).collect();
        all.join(", ")
    };
    let path = skep.folder().join("of_this_tracker.toml");
    let (udp, tcp) = (addresses(&skep.udp), addresses(&skep.tcp));
    let text = format!(
        "[udp]\nlisten = [{udp}]\n[http]\nlisten = [{tcp}]\n[admin]\nlisten = \"{admin}\"\n"
    );
    fs::write(&path, text).unwrap();
    let mut command = command();
    command.env("STATE_DIRECTORY", skep.folder()).args(["doctor", "--json", "--config"]).arg(path);
    command
}

/// What a doctor finds, and its exit code.
fn findings(command: &mut Command) -> (Vec<Value>, Option<i32>) {
    let output = command.output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(stderr.is_empty(), "{stderr}");
    let parsed: Value = serde_json::from_str(&stdout).unwrap();
    (parsed.as_array().unwrap().clone(), output.status.code())
}

fn finding<'a>(findings: &'a [Value], id: &str) -> &'a Value {
    findings.iter().find(|it| it["id"] == id).unwrap_or_else(|| panic!("no {id}: {findings:#?}"))
}

/// The exit code that findings call for.
fn code_of(findings: &[Value]) -> i32 {
    i32::from(findings.iter().any(|it| it["severity"] == "problem"))
}

#[test]
fn programs_read_every_finding_of_this_host() {
    let state = tempfile::tempdir().unwrap();
    let (findings, code) = findings(&mut doctor(&state, &["--json"]));
    for id in IDS {
        let value = finding(&findings, id);
        let severity = value["severity"].as_str().unwrap();
        assert!(["ok", "info", "warning", "problem"].contains(&severity), "{value}");
        assert!(!value["fact"].as_str().unwrap().is_empty(), "{value}");
        assert!(!value["why"].as_str().unwrap().is_empty(), "{value}");
        let is_bad = ["warning", "problem"].contains(&severity);
        let commands = value["commands"].as_array().unwrap();
        assert!(!is_bad || value["remedy"].is_string() || !commands.is_empty(), "{value}");
        assert!(!value["remedy"].as_str().unwrap_or_default().contains("$ "), "{value}");
    }
    assert_eq!(code, Some(code_of(&findings)));
}

#[test]
fn people_read_groups_and_a_summary_within_100_columns() {
    let state = tempfile::tempdir().unwrap();
    let output = doctor(&state, &[]).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(stderr.is_empty(), "{stderr}");
    for group in ["kernel", "network", "limits", "addresses", "container", "state", "time"] {
        assert!(stdout.lines().any(|it| it == group), "{group} is not in\n{stdout}");
    }
    let last = stdout.lines().last().unwrap();
    assert!(last.contains(" ok, ") && last.contains(" problem"), "{stdout}");
    let wide = |it: &&str| it.chars().count() > 100 && !it.contains("$ ");
    assert_eq!(stdout.lines().find(wide), None);
}

#[test]
fn nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let output = command().env("STATE_DIRECTORY", &state).args(["doctor", "--json"]).output();
    let parsed: Vec<Value> = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let value = finding(&parsed, "state.directory");
    assert!(value["fact"].as_str().unwrap().contains("not there yet"), "{value}");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_keeps_skep_from_starting_is_a_problem_and_ends_with_1() {
    let state = tempfile::tempdir().unwrap();
    let other_hosts = ["--json", "--listen", "203.0.113.77:6969"];
    let (found, code) = findings(&mut doctor(&state, &other_hosts));
    let value = finding(&found, "addresses.bind");
    assert_eq!((&value["severity"], code), (&"problem".into(), Some(1)), "{value}");
    assert!(value["fact"].as_str().unwrap().starts_with("203.0.113.77:6969: "), "{value}");
    let output = doctor(&state, &other_hosts[1..]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).0.lines().last().unwrap().contains("see addresses.bind"), "{output:?}");
}

#[test]
fn denied_io_uring_is_told_with_its_remedy() {
    let state = tempfile::tempdir().unwrap();
    let mut denied = doctor(&state, &["--json", "--io", "uring"]);
    let (found, code) = without_io_uring(libc::EPERM, || findings(&mut denied));
    let value = finding(&found, "kernel.io_uring");
    assert_eq!((&value["severity"], code), (&"problem".into(), Some(1)), "{value}");
    assert!(value["remedy"].as_str().unwrap().contains("server.io = \"auto\""), "{value}");
    let value = finding(&found, "kernel.seccomp");
    assert_eq!(value["severity"], "warning", "{value}");
    let mut denied = doctor(&state, &["--json", "--io", "auto"]);
    let (found, code) = without_io_uring(libc::EPERM, || findings(&mut denied));
    assert_eq!(finding(&found, "kernel.io_uring")["severity"], "warning");
    assert_eq!(code, Some(code_of(&found)));
}

#[test]
fn the_kernel_is_asked_whether_the_clock_is_kept_right() {
    let state = tempfile::tempdir().unwrap();
    let (found, _) = findings(&mut doctor(&state, &["--json"]));
    let fact = finding(&found, "time.synchronised")["fact"].as_str().unwrap();
    let said = match synchronisation() {
        Ok(clock) if clock.is_synchronised => {
            "synchronised according to the kernel; estimated error "
        }
        Ok(clock) if clock.error_us_max >= 16_000_000 => "(STA_UNSYNC); error unknown",
        Ok(_) => "not synchronised according to the kernel (STA_UNSYNC); estimated error ",
        Err(_) => "systemd-timesyncd",
    };
    assert!(fact.contains(said) || fact.starts_with("unknown: "), "{fact}");
    assert_eq!(fact.starts_with("unknown: "), fact.contains("adjtimex: "), "{fact}");
    let mut denied = doctor(&state, &["--json"]);
    let (found, code) = without_clock(libc::EPERM, || findings(&mut denied));
    let fact = finding(&found, "time.synchronised")["fact"].as_str().unwrap();
    let is_left_a_file = fs::exists("/run/systemd/timesync/synchronized").unwrap();
    let said = if is_left_a_file { "systemd-timesyncd" } else { "(adjtimex: Operation not perm" };
    assert!(fact.contains(said), "{fact}");
    assert_eq!(code, Some(code_of(&found)));
}

#[test]
fn a_snapshot_of_the_future_tells_that_the_clock_was_set_back() {
    let state = tempfile::tempdir().unwrap();
    let (found, _) = findings(&mut doctor(&state, &["--json"]));
    let value = finding(&found, "time.jumps");
    assert_eq!(value["severity"], "ok", "{value}");
    let now_s = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let header =
        Header { version: VERSION, at_s: now_s + 7200, tracker: [1; 16], build: "0".into() };
    let (bytes, _) = Writer::new(Vec::new(), &header).unwrap().finish(0).unwrap();
    fs::write(state.path().join(CURRENT), bytes).unwrap();
    let (found, code) = findings(&mut doctor(&state, &["--json"]));
    let json = finding(&found, "time.jumps");
    assert_eq!(json["severity"], "warning", "{json}");
    let fact = json["fact"].as_str().unwrap();
    assert!(fact.starts_with("swarms.snapshot is dated 7") && fact.ends_with(" s in the future"));
    assert_eq!(json["commands"], serde_json::json!(["systemctl restart skep"]), "{json}");
    assert_eq!(code, Some(code_of(&found)));
}

#[test]
fn a_running_tracker_is_asked() {
    let state = tempfile::tempdir().unwrap();
    let skep = Skep::start(&[]);
    let admin = skep.admin.to_string();
    // The file in the state directory has the address that a flag or the kernel has chosen.
    for listen in [&*admin, "127.0.0.1:0", "127.0.0.1:6970"] {
        let (found, _) = findings(&mut doctor_with(&skep, listen));
        for id in ["addresses.scope", "addresses.ports"] {
            let value = finding(&found, id);
            assert_eq!(value["severity"], "ok", "{listen} {value}");
        }
    }
    drop(skep);
    let (found, _) = findings(&mut doctor(&state, &["--json", "--admin", &admin]));
    let json = finding(&found, "addresses.scope");
    assert_eq!(json["severity"], "info", "{json}");
    assert!(json["fact"].as_str().unwrap().contains("no skep of these settings"), "{json}");
}

#[test]
fn what_other_programs_lose_is_not_the_running_trackers_loss() {
    let skep = Skep::start(&[]);
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    let to = other.local_addr().unwrap();
    let is_over = AtomicBool::new(false);
    let (found, _) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            while !is_over.load(Ordering::Relaxed) {
                sender.send_to(&[0; 1000], to).unwrap();
            }
        });
        // Whatever becomes of the report, the sender ends: the scope waits for it.
        let report = catch_unwind(AssertUnwindSafe(|| findings(&mut doctor_of(&skep))));
        is_over.store(true, Ordering::Relaxed);
        report.unwrap_or_else(|panic| resume_unwind(panic))
    });
    let value = finding(&found, "network.udp_errors");
    let fact = value["fact"].as_str().unwrap();
    assert!(fact.starts_with("in the last second of "), "{value}");
    assert!(fact.ends_with("; none at the sockets of the running tracker"), "{value}");
    assert_eq!(value["severity"], "info", "{value}");
}

#[test]
fn a_silent_or_strange_admin_listener_is_no_failure() {
    let state = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = listener.local_addr().unwrap().to_string();
    // It accepts, by its queue, and never says a word.
    let (found, _) = findings(&mut doctor(&state, &["--json", "--admin", &admin]));
    assert_eq!(finding(&found, "addresses.scope")["severity"], "info");
    let answering = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        // The first one is the connection from before, closed by now.
        let (_first, _) = listener.accept().unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        // To close with something unread would reset the connection.
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            request.extend(byte);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\x1b").unwrap();
    });
    let (found, _) = findings(&mut doctor(&state, &["--json", "--admin", &admin]));
    answering.join().unwrap();
    let value = finding(&found, "addresses.scope");
    assert_eq!(value["severity"], "info");
    assert!(value["fact"].as_str().unwrap().contains("is not skep"), "{value}");
}

#[test]
fn bad_usage_and_settings_end_with_2() {
    assert_bad_usage(&[(&["doctor", "--bogus"], "--bogus")]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("skep.toml");
    fs::write(&path, "[server]\nworkers = 1025\n[trackr]\n").unwrap();
    let cases = [
        (path.to_str().unwrap(), ":2:11: server.workers: 1025 is out of bounds"),
        (path.to_str().unwrap(), ":3:2: trackr: no such section; did you mean [tracker]?"),
        ("/absent", "cannot read the configuration file /absent: "),
    ];
    for (path, said) in cases {
        let (found, code) = findings(&mut doctor(&folder, &["--json", "--config", path]));
        let value = finding(&found, "config.valid");
        assert_eq!((&value["severity"], code), (&"problem".into(), Some(2)), "{value}");
        assert!(value["fact"].as_str().unwrap().contains(said), "{value}");
    }
}

#[test]
fn what_check_refuses_is_a_problem() {
    let state = tempfile::tempdir().unwrap();
    for (name, value, said) in [
        ("SKEP__ACCESS__NETWORKS_DENY", "/nope", "access.networks_deny: cannot read the access"),
        ("SKEP__UDP__KEY_FILE", "/nope", "udp.key_file: cannot read the connection-id key"),
        ("SKEP__HTTP__UNIX_SOCKET", "/nope/socket", "http.unix_socket: /nope/socket cannot be"),
    ] {
        let mut doctor = doctor(&state, &["--json"]);
        let (found, code) = findings(doctor.env(name, value));
        let finding = finding(&found, "config.valid");
        assert_eq!((&finding["severity"], code), (&"problem".into(), Some(1)), "{finding}");
        assert!(finding["fact"].as_str().unwrap().contains(said), "{finding}");
    }
    let output = doctor(&state, &[]).env("SKEP__UDP__KEY_FILE", "/nope").output().unwrap();
    let last = texts(&output).0.lines().last().unwrap().to_owned();
    assert!(last.contains("config.valid"), "{last}");
}

#[test]
fn a_certificate_and_a_key_that_are_missing_are_named_once() {
    let state = tempfile::tempdir().unwrap();
    let mut doctor = doctor(&state, &["--json"]);
    doctor.env("SKEP__TLS__LISTEN", "127.0.0.1:0");
    doctor.env("SKEP__TLS__CERTIFICATE", "/nope/a").env("SKEP__TLS__KEY", "/nope/b");
    let (found, code) = findings(&mut doctor);
    let value = finding(&found, "tls.certificate");
    assert_eq!((&value["severity"], code), (&"problem".into(), Some(1)), "{value}");
    let fact = value["fact"].as_str().unwrap();
    for said in ["tls.certificate: cannot read /nope/a", "tls.key: cannot read /nope/b"] {
        assert!(fact.contains(said) && !fact.contains("remedy"), "{value}");
    }
    let remedy = value["remedy"].as_str().unwrap();
    assert!(remedy.contains("create the file") && !remedy.contains("/nope"), "{value}");
    assert_ne!(finding(&found, "tls.files")["severity"], "ok");
    assert_eq!(finding(&found, "config.valid")["severity"], "ok");
}

#[test]
fn a_port_of_another_program_is_a_problem_with_its_process() {
    let state = tempfile::tempdir().unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let taken = udp.local_addr().unwrap().to_string();
    let arguments = ["--json", "--listen", &taken, "--admin", "127.0.0.1:0"];
    let (found, code) = findings(&mut doctor(&state, &arguments));
    let value = finding(&found, "addresses.ports");
    assert_eq!((&value["severity"], code), (&"problem".into(), Some(1)), "{value}");
    let who = format!("udp {taken}: it is in use by process {} (", std::process::id());
    assert!(value["fact"].as_str().unwrap().starts_with(&who), "{value}");
}

#[test]
fn another_skep_is_told_from_the_one_that_these_settings_are_of() {
    let state = tempfile::tempdir().unwrap();
    let skep = Skep::start(&[]);
    let (listen, admin) = (skep.udp[0].to_string(), skep.admin.to_string());
    let elsewhere = ["--json", "--listen", &listen, "--admin", "127.0.0.1:0"];
    let (found, code) = findings(&mut doctor(&state, &elsewhere));
    let value = finding(&found, "addresses.ports");
    assert_eq!((&value["severity"], code), (&"problem".into(), Some(1)), "{value}");
    let fact = value["fact"].as_str().unwrap();
    let who = format!("udp {listen}: it is in use by process {}, another skep", skep.id());
    assert!(fact.starts_with(&who), "{value}");
    let (found, _) = findings(&mut doctor_of(&skep));
    assert_eq!(finding(&found, "addresses.ports")["severity"], "ok");

    let (found, code) = findings(doctor_of(&skep).env("STATE_DIRECTORY", state.path()));
    let value = finding(&found, "addresses.ports");
    assert_eq!((&value["severity"], code), (&"problem".into(), Some(1)), "{value}");
    let folder = skep.folder().display().to_string();
    assert!(value["fact"].as_str().unwrap().contains(&folder), "{value}");
    assert!(value["remedy"].as_str().unwrap().contains(&folder), "{value}");

    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let its_admin = ["--json", "--listen", &free, "--admin", &admin];
    let (found, code) = findings(&mut doctor(&state, &its_admin));
    assert_is_another(&found, code, &format!("admin {admin}"), skep.id());
}

#[test]
fn ports_of_two_trackers_are_those_of_none() {
    let state = tempfile::tempdir().unwrap();
    let [one, other] = [(); 2].map(|()| Skep::start(&[]));
    let (listen, admin) = (one.udp[0].to_string(), other.admin.to_string());
    let mut doctor = doctor(&state, &["--json", "--admin", &admin]);
    doctor.env("SKEP__UDP__LISTEN", &listen).env("SKEP__HTTP__ENABLED", "false");
    let (found, code) = findings(doctor.env("SKEP__WEBSOCKET__ENABLED", "false"));
    assert_is_another(&found, code, &format!("udp {listen}"), one.id());
    assert_is_another(&found, code, &format!("admin {admin}"), other.id());
}

/// Holds that a listener's port is found to be another tracker's, by whose metrics nothing is
/// judged.
fn assert_is_another(found: &[Value], code: Option<i32>, listener: &str, process: u32) {
    let value = finding(found, "addresses.ports");
    assert_eq!((&value["severity"], code), (&"problem".into(), Some(1)), "{value}");
    let who = format!("{listener}: it is in use by process {process}, another skep");
    assert!(value["fact"].as_str().unwrap().contains(&who), "{value}");
    for id in ["addresses.scope", "addresses.proxies"] {
        let value = finding(found, id);
        assert_eq!(value["severity"], "info", "{value}");
        let reason = "(the one there does not have every port of these settings)";
        assert!(value["fact"].as_str().unwrap().ends_with(reason), "{value}");
    }
}

#[test]
fn network_cards_do_not_matter_on_loopback() {
    let state = tempfile::tempdir().unwrap();
    let arguments = ["--json", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let (found, _) = findings(&mut doctor(&state, &arguments));
    for id in ["network.rps", "network.queues", "network.softirq"] {
        assert_eq!(finding(&found, id)["severity"], "ok");
    }
}

#[test]
fn help_teaches() {
    let output = run(&["doctor", "--help"]);
    let (stdout, _) = texts(&output);
    for said in ["--json", "--config", "problem   skep does not start", "Exit codes: 0 no problem"]
    {
        assert!(stdout.contains(said), "{said} is not in\n{stdout}");
    }
    assert!(stdout.lines().all(|it| it.chars().count() <= 100), "{stdout}");
}

#[test]
fn a_root_that_hides_everything_fails_nothing() {
    let config = Config::default();
    let facts = HostFacts::gather(&config);
    let empty = tempfile::tempdir().unwrap();
    let file = empty.path().join("file");
    fs::write(&file, "no folder").unwrap();
    // Below the first nothing exists, below the second nothing can exist.
    for root in [empty.path().join("none"), file] {
        let patient = HostReport {
            host: Host::at(&root),
            earlier: EarlierCounters::default(),
            facts: facts.clone(),
            config: config.clone(),
            configuration: Vec::new(),
            certificate: None,
        };
        let findings = examine(&patient);
        let unread = |it: &&skep::cli::doctor::Finding| it.fact.starts_with("unknown: /");
        let unread: Vec<_> = findings.iter().filter(unread).collect();
        assert!(unread.len() >= 10, "{findings:#?}");
        assert!(unread.iter().all(|it| it.severity == Severity::Info), "{unread:#?}");
        assert!(unread.iter().all(|it| it.remedy.is_some()), "{unread:#?}");
    }
}
