//! The real program with its snapshots: what it held is there again after any end, whatever has
//! become of its files, and nobody is served worse meanwhile.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;

use skep::protocol::udp::client::Announcement;
use skep::types::{Event, InfoHash, ScrapeEntry};

use crate::support::{self, Client, Skep, command, eventually, leecher, run, seeder, texts};

const CURRENT: &str = "swarms.snapshot";
const PREVIOUS: &str = "swarms.snapshot.previous";

/// Starts on 127.0.0.1 with this state directory, and variables.
fn start(state: &Path, variables: &[(&str, &str)]) -> Skep {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "2"]);
    command.env("STATE_DIRECTORY", state).envs(variables.iter().copied());
    Skep::spawn(command)
}

/// The same, once all is restored.
fn start_restored(state: &Path) -> Skep {
    let skep = start(state, &[]);
    eventually("it is ready", || skep.get("/readyz").0 == 200);
    skep
}

fn save(skep: &Skep) -> (u16, String) {
    skep.ask(("POST", "/api/v1/save"), "")
}

fn announce(skep: &Skep, announcements: &[Announcement]) {
    let mut client = Client::connect(skep.udp[0]);
    announcements.iter().for_each(|it| _ = client.announce(it));
}

fn scrape(skep: &Skep, torrent: u8) -> ScrapeEntry {
    Client::connect(skep.udp[0]).scrape(&[InfoHash([torrent; 20])])[0]
}

/// Two leechers, of whom one completes, and a seeder of another torrent.
fn fill(skep: &Skep) {
    let done = Announcement { event: Event::Completed, ..seeder(1, 1002) };
    announce(skep, &[leecher(1, 1001), leecher(1, 1002), done, seeder(2, 1003)]);
}

/// Seeders, downloads counted, leechers.
fn counts(entry: ScrapeEntry) -> (u32, u32, u32) {
    (entry.seeders, entry.completed, entry.leechers)
}

fn is_filled(skep: &Skep) -> bool {
    counts(scrape(skep, 1)) == (1, 1, 1) && counts(scrape(skep, 2)) == (1, 0, 0)
}

fn names(path: &Path, part: &str) -> Vec<String> {
    let all = fs::read_dir(path).unwrap().map(|it| it.unwrap().file_name());
    all.map(|it| it.into_string().unwrap()).filter(|it| it.contains(part)).collect()
}

#[test]
fn swarms_come_back_after_a_crash() {
    let state = tempfile::tempdir().unwrap();
    let mut skep = start_restored(state.path());
    assert_eq!(skep.metrics().value("skep_restore_outcome{outcome=\"empty\"}"), 1.0);
    fill(&skep);
    let (status, body) = save(&skep);
    assert_eq!((status, body.contains("saved")), (200, true), "{body}");
    let metrics = skep.metrics();
    assert_eq!(metrics.value("skep_snapshot_peers"), 3.0);
    assert_eq!(metrics.value("skep_snapshot_torrents"), 2.0);
    assert!(metrics.value("skep_snapshot_last_success_timestamp_seconds") > 1.7e9);
    assert!(metrics.value("skep_snapshot_duration_seconds") > 0.0);
    let bytes = fs::metadata(state.path().join(CURRENT)).unwrap().len();
    assert_eq!(metrics.value("skep_snapshot_bytes"), bytes as f64);
    announce(&skep, &[seeder(3, 1004)]); // which is lost
    skep.signal("KILL");
    skep.wait();

    let skep = start_restored(state.path());
    assert!(is_filled(&skep));
    assert_eq!(counts(scrape(&skep, 3)), (0, 0, 0));
    let (_, peers) = Client::connect(skep.udp[0]).announce(&leecher(1, 1009));
    let mut ports: Vec<_> = peers.chunks(6).map(|it| u16::from_be_bytes([it[4], it[5]])).collect();
    ports.sort_unstable();
    assert_eq!(ports, [1001, 1002]);
    let metrics = skep.metrics();
    assert_eq!(metrics.value("skep_restore_outcome{outcome=\"restored\"}"), 1.0);
    assert_eq!(metrics.value("skep_restore_peers"), 3.0);
    assert_eq!(metrics.value("skep_completed_total"), 1.0);
    assert!(metrics.value("skep_snapshot_last_success_timestamp_seconds") > 1.7e9);
    // A completed download is counted once, also by who says so again after the restart.
    announce(&skep, &[Announcement { event: Event::Completed, ..seeder(1, 1002) }]);
    assert_eq!(scrape(&skep, 1).completed, 1);
    announce(&skep, &[Announcement { event: Event::Completed, ..seeder(1, 1001) }]);
    assert_eq!(scrape(&skep, 1).completed, 2);
}

#[test]
fn a_limit_on_the_size_of_files_costs_the_snapshot_and_not_the_process() {
    let state = tempfile::tempdir().unwrap();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "ulimit -f 1; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_skep")]);
    command.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    command.env("STATE_DIRECTORY", state.path());
    let mut skep = Skep::spawn(command);
    eventually("it is ready", || skep.get("/readyz").0 == 200);
    let many: Vec<_> = (1..=100).map(|it| leecher(it, 6881)).collect();
    announce(&skep, &many);
    assert_ne!(save(&skep).0, 200);
    skep.log_with("File too large");
    for signal in ["USR1", "USR2"] {
        skep.signal(signal);
    }
    assert_eq!(counts(scrape(&skep, 1)), (0, 0, 1), "it serves");
    skep.signal("TERM");
    assert_eq!(skep.wait().code(), Some(0), "an end in order");
}

#[test]
fn a_clean_stop_loses_nothing() {
    let state = tempfile::tempdir().unwrap();
    let mut skep = start_restored(state.path());
    for round in 0..3 {
        assert_eq!(round > 0, is_filled(&skep), "round {round}");
        if round == 0 {
            fill(&skep);
        }
        skep.signal("TERM");
        assert!(skep.wait().success());
        skep = start_restored(state.path());
    }
    // Who has left does not come back.
    announce(&skep, &[Announcement { event: Event::Stopped, ..seeder(2, 1003) }]);
    skep.signal("TERM");
    assert!(skep.wait().success());
    let skep = start_restored(state.path());
    assert_eq!(counts(scrape(&skep, 2)), (0, 0, 0));
}

#[test]
fn snapshots_are_written_by_themselves_and_the_interval_can_change() {
    let state = tempfile::tempdir().unwrap();
    let config = state.path().join("skep.toml");
    fs::write(&config, "[snapshot]\ninterval_s = 0\n").unwrap();
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--config", config.to_str().unwrap()]);
    command.env("STATE_DIRECTORY", state.path());
    let skep = Skep::spawn(command);
    fill(&skep);
    assert!(!state.path().join(CURRENT).exists());
    fs::write(&config, "[snapshot]\ninterval_s = 1\n").unwrap();
    skep.signal("HUP");
    skep.log_with("snapshot.interval_s = 1");
    eventually("one is written", || skep.metrics().value("skep_snapshot_peers") == 3.0);
    eventually("and another", || state.path().join(PREVIOUS).exists());
}

#[test]
fn a_damaged_snapshot_is_set_aside_and_the_previous_one_restored() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join(CURRENT);
    let mut skep = start_restored(state.path());
    fill(&skep);
    assert_eq!(save(&skep).0, 200);
    announce(&skep, &[seeder(3, 1004)]);
    assert_eq!(save(&skep).0, 200);
    skep.signal("KILL");
    skep.wait();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(&path, &bytes).unwrap();

    let mut skep = start_restored(state.path());
    assert!(is_filled(&skep));
    assert_eq!(counts(scrape(&skep, 3)), (0, 0, 0), "nothing of the damaged one");
    let aside = names(state.path(), ".damaged-");
    assert_eq!(aside.len(), 1);
    let log = skep.log_with("snapshot unusable, renamed");
    assert!(log.contains("checksum") && log.contains(&aside[0]), "{log}");
    assert_eq!(fs::read(state.path().join(&aside[0])).unwrap(), bytes, "as it was");
    assert_eq!(skep.metrics().value("skep_restore_set_aside_total"), 1.0);
    skep.signal("KILL");
    skep.wait();

    // Nothing is left that can be used: it serves all the same.
    fs::write(state.path().join(PREVIOUS), &bytes).unwrap();
    let skep = start_restored(state.path());
    assert_eq!(skep.metrics().value("skep_restore_outcome{outcome=\"lost\"}"), 1.0);
    skep.log_with("no usable snapshot, starting with empty swarms");
    fill(&skep);
    assert!(is_filled(&skep));
    assert_eq!(names(state.path(), ".damaged-").len(), 2);
}

#[test]
fn another_trackers_snapshot_is_not_restored() {
    let [ours, theirs] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut skep = start_restored(theirs.path());
    fill(&skep);
    skep.signal("TERM");
    assert!(skep.wait().success());
    fs::copy(theirs.path().join(CURRENT), ours.path().join(CURRENT)).unwrap();
    let skep = start_restored(ours.path());
    assert_eq!(counts(scrape(&skep, 1)), (0, 0, 0));
    skep.log_with("another tracker");
    assert_eq!(names(ours.path(), ".foreign-").len(), 1);
}

/// A start whose disk takes half a minute to open a file; `None` without strace, which plays it.
fn start_with_slow_open(state: &Path, file: &Path) -> Option<Skep> {
    if !support::has_strace() {
        return None;
    }
    let plain = command();
    let mut command = Command::new("strace");
    // With -D it is the tracer that is somebody's child, and the program stays ours.
    command.args(["-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null", "-e", "trace=openat"]);
    command.args(["-e", "inject=openat:delay_enter=30000000", "-P"]).arg(file);
    command.arg(plain.get_program()).args(["--listen", "127.0.0.1:0", "--workers", "2"]);
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.env("STATE_DIRECTORY", state);
    Some(Skep::spawn(command))
}

#[test]
fn it_serves_while_it_restores_and_says_so() {
    let state = tempfile::tempdir().unwrap();
    let mut skep = start_restored(state.path());
    fill(&skep);
    skep.signal("TERM");
    assert!(skep.wait().success());
    let Some(skep) = start_with_slow_open(state.path(), &state.path().join(CURRENT)) else {
        return;
    };
    assert_eq!(skep.get("/readyz"), (503, "restoring\n".into()));
    assert_eq!(skep.get("/startupz").0, 200);
    announce(&skep, &[leecher(1, 1001), seeder(1, 1005)]);
    assert_eq!(counts(scrape(&skep, 1)), (1, 0, 1), "it serves");
    eventually("it is ready", || skep.get("/readyz").0 == 200);
    assert_eq!(counts(scrape(&skep, 1)), (2, 1, 1), "both, merged");
    assert_eq!(skep.metrics().value("skep_restore_peers"), 2.0);
}

#[test]
fn a_state_directory_that_goes_away_costs_snapshots_only() {
    let state = tempfile::tempdir().unwrap();
    let path = state.path().join("skep");
    fs::create_dir(&path).unwrap();
    // Landlock knows the directory that was there at the start, not the one that takes its place.
    let skep = start(&path, &[("SKEP__SERVER__CONFINE", "false")]);
    eventually("it is ready", || skep.get("/readyz").0 == 200);
    fill(&skep);
    fs::remove_dir_all(&path).unwrap();
    let (status, body) = save(&skep);
    assert_eq!((status, body.contains("\"snapshot\"")), (500, true), "{body}");
    skep.log_with("snapshot not saved, the previous one stays");
    assert_eq!(skep.metrics().value("skep_snapshot_errors_total{reason=\"create\"}"), 1.0);
    assert!(is_filled(&skep), "it serves");
    fs::create_dir(&path).unwrap();
    assert_eq!(save(&skep).0, 200);
    assert_eq!(skep.metrics().value("skep_snapshot_peers"), 3.0);
}

#[test]
fn snapshots_that_were_asked_for_by_name_must_be_possible() {
    let nowhere = [("STATE_DIRECTORY", "/proc/nowhere"), ("SKEP__SNAPSHOT__MODE", "on")];
    let mut refused = command();
    refused.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]).envs(nowhere);
    let output = refused.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = texts(&output).1;
    assert!(said.contains("snapshot.mode") && said.contains("server.state_dir"), "{said}");
    // Otherwise it is said once, and it serves.
    let token = [("SKEP__ADMIN__TOKEN", "of sixteen bytes")];
    let skep = start(Path::new("/proc/nowhere"), &token);
    assert_eq!((skep.get("/readyz").0, save(&skep).0), (200, 200));
    let log = skep.log_with("ready ");
    let told = log.matches("swarms and connection ids do not survive").count();
    // On a host with one core there is a warning of that, too.
    let warnings = log.lines().filter(|it| it.contains("WARN") && !it.contains("cores=")).count();
    assert_eq!((told, warnings), (1, 1), "{log}");
    let metrics = skep.metrics();
    assert_eq!(metrics.value("skep_restore_outcome{outcome=\"unusable\"}"), 1.0);

    let state = tempfile::tempdir().unwrap();
    let mut skep = start(state.path(), &[("SKEP__SNAPSHOT__MODE", "off")]);
    fill(&skep);
    assert_eq!(save(&skep).0, 200);
    skep.signal("TERM");
    assert!(skep.wait().success());
    assert!(names(state.path(), "swarms").is_empty());
}

#[test]
fn of_two_processes_the_second_restores_what_the_first_leaves() {
    let state = tempfile::tempdir().unwrap();
    let mut first = start_restored(state.path());
    let second = start(state.path(), &[]);
    second.log_with("WARN snapshots waiting: another skep process uses this state directory");
    assert_eq!(second.get("/readyz").0, 200, "it serves");
    let (status, body) = save(&second);
    assert!(status == 500 && body.contains("another skep"), "{body}");
    fill(&first);
    first.signal("TERM");
    assert!(first.wait().success());
    eventually("it has taken over", || is_filled(&second));
    assert_eq!(save(&second).0, 200);
}

/// Fetches a page with a header.
fn get_with(address: SocketAddr, path: &str, header: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n{header}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

#[test]
fn save_state_saves_and_is_for_no_page_in_a_browser() {
    let state = tempfile::tempdir().unwrap();
    let skep = start_restored(state.path());
    let token = format!("Authorization: Bearer {}", skep.token());
    let foreign = ["Sec-Fetch-Site: cross-site", "Origin: null", "Referer: http://evil.example/"];
    for header in foreign.map(|it| format!("{token}\r\n{it}")).into_iter().chain([String::new()]) {
        let response = get_with(skep.admin, "/save_state", &header);
        let is_refused =
            response.starts_with("HTTP/1.1 403") || response.starts_with("HTTP/1.1 401");
        assert!(is_refused, "{header}: {response}");
        assert!(!state.path().join(CURRENT).exists(), "{header}");
    }
    let response = get_with(skep.admin, "/save_state", &format!("{token}\r\nSec-Fetch-Site: none"));
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(state.path().join(CURRENT).exists());
}

#[test]
fn an_empty_snapshot_is_its_head_and_end() {
    let state = tempfile::tempdir().unwrap();
    let mut skep = start_restored(state.path());
    skep.signal("TERM");
    assert!(skep.wait().success());
    let path = state.path().join(CURRENT);
    let text = texts(&run(&["snapshot", "inspect", path.to_str().unwrap()])).0;
    let bytes = fs::metadata(&path).unwrap().len();
    assert!(text.contains(&format!("size         {bytes} bytes, 0 blocks\n")), "{text}");
    assert!(text.contains("torrents     0, 0 with peers\n"), "{text}");
}

#[test]
fn the_command_line_reads_snapshots() {
    let state = tempfile::tempdir().unwrap();
    let mut skep = start_restored(state.path());
    fill(&skep);
    skep.signal("TERM");
    assert!(skep.wait().success());
    let path = state.path().join(CURRENT);
    let file = path.to_str().unwrap();

    let output = run(&["snapshot", "inspect", file]);
    let text = texts(&output).0;
    assert_eq!(output.status.code(), Some(0));
    for part in
        ["2, 2 with peers", "3 over IPv4, 0 over IPv6", "2 of them", "version", "s, 1 block\n"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
    let written = text.lines().find_map(|it| it.strip_prefix("written at")).unwrap().trim();
    assert!(written.starts_with("20") && written.len() == "2026-11-30T13:10:00Z".len(), "{text}");
    assert!(written.ends_with('Z') && written.contains('T'), "{text}");
    let output = run(&["snapshot", "verify", file]);
    assert_eq!(output.status.code(), Some(0));
    assert!(texts(&output).0.contains(": complete, 1 block, 3 peers\n"), "{output:?}");
    let output = run(&["snapshot", "export", file]);
    assert_eq!(run(&["snapshot", "export", "--json", file]).stdout, output.stdout);
    assert_eq!(output.status.code(), Some(0));
    let mut lines: Vec<serde_json::Value> =
        texts(&output).0.lines().map(|it| serde_json::from_str(it).unwrap()).collect();
    lines.sort_by_key(|it| it["info_hash"].to_string());
    assert_eq!((lines.len(), &lines[0]["completed"]), (2, &1.into()));
    assert_eq!(lines[0]["info_hash"], "01".repeat(20));
    let peer = &lines[1]["peers"][0];
    assert_eq!((&peer["address"], &peer["role"]), (&"127.0.0.1:1003".into(), &"seeder".into()));
    assert!(peer["age_s"].as_u64().unwrap() < 60);

    let mut bytes = fs::read(&path).unwrap();
    bytes[70] ^= 1;
    fs::write(&path, bytes).unwrap();
    for command in [&["inspect"][..], &["verify"], &["export"]] {
        let output = run(&[&["snapshot"], command, &[file]].concat());
        let (out, said) = texts(&output);
        assert_eq!((output.status.code(), out.as_str()), (Some(1), ""), "{command:?}");
        assert!(said.contains(file) && said.contains("at byte"), "{said}");
    }
    assert_eq!(run(&["snapshot", "verify", "/nowhere"]).status.code(), Some(1));
    assert_eq!(run(&["snapshot", "verify"]).status.code(), Some(2));
}
