//! The command line as people and scripts meet it: help, exit codes, one-sentence errors.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::process::{Command, Stdio};

use serde_json::Value::Null;

use crate::support::{assert_bad_usage, command, run, texts};

#[test]
fn help_teaches_with_examples() {
    let (stdout, _) = texts(&run(&["--help"]));
    for said in ["skep probe udp://127.0.0.1:6969", "ready udp=", "Exit codes: 0 done", "--io"] {
        assert!(stdout.contains(said), "{said} is not in\n{stdout}");
    }
    assert!(stdout.lines().all(|it| it.chars().count() <= 100), "{stdout}");
    let (probe, _) = texts(&run(&["probe", "--help"]));
    for said in ["skep probe ws://", "--ca ca.pem https://", "--insecure", "Exit codes: 0 every"] {
        assert!(probe.contains(said), "{said} is not in\n{probe}");
    }
    let commands = [
        "run", "config", "check", "probe", "health", "status", "torrent", "passkey", "deny",
        "allow",
    ];
    for command in commands {
        let output = run(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(texts(&output).0.contains("Usage: skep"));
    }
}

#[test]
fn the_version_is_told() {
    let (stdout, _) = texts(&run(&["--version"]));
    assert_eq!(stdout, format!("skep {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn config_prints_what_check_accepts() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("skep.toml");
    let printed = run(&["config"]);
    assert_eq!(printed.status.code(), Some(0));
    fs::write(&path, &printed.stdout).unwrap();
    let checked = run(&["check", "--config", path.to_str().unwrap()]);
    assert_eq!(checked.status.code(), Some(0), "{checked:?}");
    assert_eq!(run(&["check"]).status.code(), Some(0));
}

#[test]
fn check_warns_of_what_may_have_been_meant_otherwise() {
    let output = command().env("SKEP_TRACKER_INTERVAL_S", "9").arg("check").output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(0), "the configuration is valid\n"));
    let said = "skep: warning: variable ignored: SKEP_TRACKER_INTERVAL_S; remedy: rename it to";
    assert!(stderr.starts_with(said), "{stderr}");
}

#[test]
fn bad_usage_ends_with_2() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("skep.toml");
    fs::write(&path, "[server]\nworkers = 1025\n").unwrap();
    let path = path.to_str().unwrap();
    assert_bad_usage(&[
        (&["--bogus"], "--bogus"),
        (&["serve"], "serve"),
        (&["--io", "epoll"], "auto, uring, mmsg"),
        (&["--workers", "many"], "--workers: server.workers: \"many\" is not a whole number"),
        (&["--listen", "6969"], "--listen: server.listen: "),
        (&["--admin", "localhost"], "--admin: admin.listen: "),
        (&["--config", path], ":2:11: server.workers: 1025 is out of bounds; allowed: 0 to 1024"),
        (&["check", "--config", path], ":2:11: server.workers: 1025 is out of bounds"),
        (&["check", "--config", "/absent"], "/absent: "),
        (&["probe", "ftp://a:1"], "http[s]://HOST[:PORT][/PATH]"),
        (&["probe", "127.0.0.1:6969"], "the scheme is missing; remedy: write udp://"),
        (&["probe", "udp://127.0.0.1"], "the port is missing; remedy: "),
        (&["probe", "--info-hash", "00ff", "udp://a:1"], "neither 40 or 64 hexadecimal digits"),
        (&["probe", "--passkey", "a/b", "udp://a:1"], "1 to 64 letters, digits"),
        (&["health", "--admin", "6970"], "allowed: ADDRESS:PORT, such as 127.0.0.1:6970"),
        (&["health", "--config", "/absent"], "/absent: "),
    ]);
}

#[test]
fn check_refuses_what_could_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    let check = |key: &str, value: &str| {
        let output = command().arg("check").env(key, value).output().unwrap();
        (output.status.code(), texts(&output).1)
    };
    let (code, said) = check("SKEP__HTTP__UNIX_SOCKET", folder);
    assert!(code == Some(2) && said.contains("exists and is not a socket"), "{said}");
    if skep::sys::identity::UnixUser::can_change() {
        let (code, said) = check("SKEP__SERVER__USER", "no-such-user");
        assert!(code == Some(2) && said.contains("there is no user no-such-user"), "{said}");
    }
    let admin = ("SKEP__ADMIN__LISTEN", "0.0.0.0:6969");
    let (code, said) = check(admin.0, admin.1);
    assert!(code == Some(2) && said.contains("admin.listen: 0.0.0.0:6969 is in use"), "{said}");
}

#[test]
fn check_and_start_name_all_faults_in_one_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("skep.toml");
    fs::write(folder.path().join("ports"), "25\nhttp\n80\nsmtp\n").unwrap();
    let ports = folder.path().join("ports").display().to_string();
    let text = format!("[tracker]\ninterval_s = \"30m\"\n[access]\nports_deny = \"{ports}\"\n");
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let line_2 =
        format!("skep: {ports}:2: access.ports_deny: invalid line \"http\"; expected: a p");
    let said = [
        format!("skep: {path}:2:14: tracker.interval_s: \"30m\" is not a whole number"),
        line_2.clone(),
        format!("skep: {ports}:4: access.ports_deny: invalid line \"smtp\""),
    ];
    for arguments in [&["check", "--config", path][..], &["--config", path]] {
        let output = run(arguments);
        let (stdout, stderr) = texts(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(2), ""), "{stderr}");
        for said in &said {
            assert!(stderr.contains(said), "{said} is not in\n{stderr}");
        }
    }
    assert!(
        texts(&run(&["check", "--config", path]))
            .1
            .ends_with("skep: 3 faults: skep does not start\n")
    );
    // Where the settings themselves are valid, a start finds the first fault late, and all at once.
    fs::write(path, format!("[access]\nports_deny = \"{ports}\"\nclients_deny = \"/nope\"\n"))
        .unwrap();
    let mut start = command();
    start.args(["--config", path, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let output = start.output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains(&line_2), "{stderr}");
    let unread =
        format!("skep: {path}:3:1: access.clients_deny: cannot read the access list /nope");
    assert!(stderr.contains(&unread), "{stderr}");
}

#[test]
fn programs_get_findings_as_an_array() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("skep.toml");
    fs::write(&path, "[tracker]\n\ninterval_s = \"30m\"\n").unwrap();
    let path = path.to_str().unwrap();
    let check = |arguments: &[&str], variable: (&str, &str)| {
        let mut check = command();
        check.args(["check", "--json"]).args(arguments).env(variable.0, variable.1);
        let output = check.output().unwrap();
        let (stdout, stderr) = texts(&output);
        assert_eq!(stderr, "");
        let all: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        (all, output.status.code())
    };
    let (all, code) = check(&["--config", path], ("SKEP__ADMIN__TOKEN", "a-secret"));
    assert_eq!((all.as_array().unwrap().len(), code), (2, Some(2)), "{all}");
    let expected = serde_json::json!({
        "severity": "fault", "file": path, "line": 3, "column": 14, "source": null,
        "key": "tracker.interval_s", "value": "30m",
        "message": "\"30m\" is not a whole number of seconds, such as 1800",
        "remedy": "allowed: 1 to 7200; did you mean 1800, without quotes?",
    });
    assert_eq!(all[0], expected);
    let token = [&all[1]["key"], &all[1]["source"], &all[1]["value"], &all[1]["file"]];
    let expected = ["admin.token".into(), "SKEP__ADMIN__TOKEN".into(), Null, Null];
    assert_eq!(token, [&expected[0], &expected[1], &expected[2], &expected[3]]);
    let (all, code) = check(&[], ("SKEP_TRACKER_INTERVAL_S", "9"));
    assert_eq!((&all[0]["severity"], code), (&"warning".into(), Some(0)), "{all}");
    assert_eq!(check(&[], ("SKEP_PORT", "x")), (serde_json::json!([]), Some(0)));
}

#[test]
fn a_pipe_is_no_file_and_is_not_waited_for() {
    let temporary = tempfile::tempdir().unwrap();
    let pipe = temporary.path().join("a.torrent");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let pipe = pipe.to_str().unwrap();
    for arguments in [["snapshot", "inspect", pipe], ["torrent", "add", pipe]] {
        let output = run(&arguments);
        let (stdout, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{stdout}{stderr}");
        assert!(format!("{stdout}{stderr}").contains("not a regular file"), "{stdout}{stderr}");
    }
    let settings = [("LISTEN", "127.0.0.1:0"), ("CERTIFICATE", pipe), ("KEY", pipe)];
    let mut check = command();
    check.arg("check").envs(settings.map(|(key, value)| (format!("SKEP__TLS__{key}"), value)));
    let output = check.output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("tls.certificate: ") && stderr.contains("not a regular file"));
}

#[test]
fn a_misspelt_variable_ends_with_2() {
    let output = command().env("SKEP__TRACKER__INTERVALL_S", "900").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(texts(&output).1.contains("SKEP__TRACKER__INTERVALL_S: no such setting"));
}

#[test]
fn a_bad_key_ends_with_2_and_is_not_shown() {
    let secret = "0123456789abcdef-not-quite";
    let output = command().env("SKEP_CONNECTION_ID_KEY", secret).output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("SKEP_CONNECTION_ID_KEY") && stderr.contains("64 hexadecimal"));
    assert!(!stderr.contains(secret));
    let checked = command().arg("check").env("SKEP_CONNECTION_ID_KEY", secret).output().unwrap();
    assert_eq!(checked.status.code(), Some(2));
    assert!(texts(&checked).1.contains("SKEP_CONNECTION_ID_KEY"));
    let checked = command().arg("check").env("SKEP__UDP__KEY_FILE", "/absent").output().unwrap();
    assert_eq!(checked.status.code(), Some(2));
    assert!(texts(&checked).1.contains("/absent"));
}

#[test]
fn a_standard_error_that_nobody_reads_holds_up_nothing() {
    let (unread, mut full) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&full, true).unwrap();
    while full.write(&[b' '; 4096]).is_ok() {}
    rustix::io::ioctl_fionbio(&full, false).unwrap();
    let state = tempfile::tempdir().unwrap();
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"]);
    command.env("STATE_DIRECTORY", state.path()).stdout(Stdio::piped()).stderr(full);
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("ready "), "{line:?}");
    let kill = format!("kill -HUP {0} && kill -TERM {0}", child.id());
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(unread);
}

/// Starts what must fail, and says how.
fn failed_start(arguments: &[&str]) -> String {
    let output = command().args(["--workers", "1"]).args(arguments).output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stdout.is_empty());
    let last = stderr.lines().last().unwrap().to_owned();
    assert!(last.starts_with("skep: ") && last.contains("remedy: "), "{stderr}");
    last
}

#[test]
fn an_address_in_use_ends_with_1_and_a_remedy() {
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = failed_start(&["--listen", &address, "--admin", "127.0.0.1:0"]);
    assert!(said.contains(&format!("udp {address}")) && said.contains("ss -lnp"), "{said}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let said = failed_start(&["--listen", "127.0.0.1:0", "--admin", &address]);
    assert!(said.contains(&format!("tcp (admin) {address}")), "{said}");
}

#[test]
fn an_address_of_another_host_ends_with_1_and_a_remedy() {
    let said = failed_start(&["--listen", "203.0.113.77:0", "--admin", "127.0.0.1:0"]);
    assert!(said.contains("203.0.113.77:0") && said.contains("`ip a`"), "{said}");
}

#[test]
fn too_few_descriptors_end_with_1_and_a_remedy() {
    let skep = env!("CARGO_BIN_EXE_skep");
    let script = format!(
        "ulimit -n 16; exec {skep} --io mmsg --workers 8 --listen 127.0.0.1:0 --listen [::1]:0 \
         --admin 127.0.0.1:0"
    );
    let output = Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("ulimit -n"), "{stderr}");
}

#[test]
fn probe_fails_where_nobody_listens() {
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("udp://{free}");
    let output = run(&["probe", "--timeout", "1", "--tries", "1", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).0.contains("failed at connect"), "{output:?}");
    let output = run(&["probe", "--json", "--timeout", "1", "--tries", "1", &url]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["ok"]), (Some(1), &false.into()));
    assert_eq!(report["results"][0]["error"]["step"], "connect");
}

#[test]
fn probe_gives_up_on_silence_and_names_the_tries() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("udp://{}", silent.local_addr().unwrap());
    let output = run(&["probe", "--timeout", "1", "--tries", "1", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).0.contains("no response within 1 s\n"), "{output:?}");
    let mut request = [0; 64];
    assert_eq!(silent.recv(&mut request).unwrap(), 16);
}

#[test]
fn probe_escapes_what_a_tracker_says() {
    let rude = UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("udp://{}", rude.local_addr().unwrap());
    let responding = std::thread::spawn(move || {
        let mut request = [0; 64];
        let (_, client) = rude.recv_from(&mut request).unwrap();
        let mut response = vec![0, 0, 0, 3];
        response.extend_from_slice(&request[12..16]);
        response.extend_from_slice(b"\x1b[31mno\n\xff");
        rude.send_to(&response, client).unwrap();
    });
    let output = run(&["probe", &url]);
    responding.join().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).0.contains(r#"alive and refuses: "\x1b[31mno\n\xff""#), "{output:?}");
}

#[test]
fn probe_leaves_again_also_where_the_scrape_failed() {
    const SCRAPE: u8 = 2;
    const STOPPED: u8 = 3;
    let tracker = UdpSocket::bind("127.0.0.1:0").unwrap();
    let url = format!("udp://{}", tracker.local_addr().unwrap());
    let responding = std::thread::spawn(move || {
        [(0, 16), (1, 20), (SCRAPE, 8), (1, 20)].map(|(action, bytes)| {
            let mut request = [0; 128];
            let (_, client) = tracker.recv_from(&mut request).unwrap();
            assert_eq!(request[11], action);
            let mut response = vec![0; bytes];
            response[3] = if action == SCRAPE { 3 } else { action };
            response[4..8].copy_from_slice(&request[12..16]);
            tracker.send_to(&response, client).unwrap();
            request[83]
        })
    });
    let output = run(&["probe", "--timeout", "5", "--tries", "1", &url]);
    assert_eq!(output.status.code(), Some(1));
    assert!(texts(&output).0.contains("failed at scrape"), "{output:?}");
    assert_eq!(responding.join().unwrap()[3], STOPPED);
}
