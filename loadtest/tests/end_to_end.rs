//! The real binary against real processes: the limit by both backends, a skep where one was built,
//! and a target that is none.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

fn loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().unwrap()
}

/// A short run's JSON, without warnings' contents: longer on a busy host, until there is enough of
/// everything to judge by.
fn json(arguments: &[&str]) -> Value {
    let small = ["--json", "--profile", "smoke", "--warmup", "0"];
    let mut result = Value::Null;
    for duration in ["0.4", "2", "10", "50"] {
        let all = [&small, &["--duration", duration][..], arguments].concat();
        let output = loadtest(&all);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        result = serde_json::from_slice(&output.stdout).unwrap();
        let figures = &result["figures"];
        let mut counts = vec![&figures["answered"]["announce"]];
        if arguments.contains(&"--offers") {
            counts.extend(["offers_relayed", "answers_relayed"].map(|it| &figures["stream"][it]));
        }
        if counts.iter().all(|it| it.as_u64().is_none_or(|it| it > 100)) {
            break;
        }
    }
    result
}

/// A process that is ended with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a server on port 0 and reads its IPv4 and IPv6 addresses from the ready line; `None`
/// where it ends without one.
fn serve(program: &str, arguments: &[&str]) -> Option<(Ended, Vec<String>)> {
    let (child, line) = start(program, arguments, &[])?;
    Some((child, values(&line, "udp=")))
}

/// The values of a key in a ready line.
fn values(line: &str, key: &str) -> Vec<String> {
    line.split_whitespace().filter_map(|it| it.strip_prefix(key).map(str::to_owned)).collect()
}

/// Starts a server and reads its ready line; `None` where it ends without one.
fn start(program: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Option<(Ended, String)> {
    let mut command = Command::new(program);
    command.envs(settings.iter().copied());
    // A skep keeps its state in the build's folder, not in the home of whoever runs the tests.
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join("state");
    command.env("SKEP__SERVER__STATE_DIR", state).env("SKEP__LOG__LEVEL", "warn");
    let mut child = Ended(command.args(arguments).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    line.starts_with("ready ").then_some((child, line))
}

/// The skep beside the load tester on ports of the kernel's choice, and its ready line; says so
/// where there is none.
fn skep(settings: &[(&str, &str)]) -> Option<(Ended, String)> {
    let program = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("skep");
    let arguments = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"];
    let program = program.to_str().filter(|_| program.is_file());
    let started = program.and_then(|it| start(it, &arguments, settings));
    if started.is_none() {
        println!("skipped: skep not found beside loadtest");
    }
    started
}

/// The address of a skep's TCP side.
fn tcp(line: &str) -> String {
    values(line, "tcp=").remove(0)
}

/// What holds of every healthy run over UDP.
fn assert_healthy(result: &Value) {
    let figures = &result["figures"];
    assert!(figures["answered"]["connect"].as_u64().unwrap() > 0, "{figures}");
    assert_eq!(figures["fill"]["resident"], 2000, "{figures}");
    assert_sound(result);
}

/// What holds of every healthy run.
fn assert_sound(result: &Value) {
    let figures = &result["figures"];
    assert!(figures["answered"]["announce"].as_u64().unwrap() > 100, "{figures}");
    assert!(figures["answered"]["scrape"].as_u64().unwrap() > 0, "{figures}");
    assert_eq!(figures["invalid"], serde_json::json!({}), "{figures}");
    assert_eq!(figures["errors"], 0, "{figures}");
    assert!(figures["latency"]["p50_us"].as_f64().unwrap() > 0.0, "{figures}");
    assert!(figures["server"]["cpu_ns_per_response"].as_f64().unwrap() > 0.0, "{figures}");
    assert!(result["machine"]["kernel"].as_str().unwrap().contains('.'));
}

#[test]
fn the_limit_is_measured_by_every_backend_and_family() {
    let program = env!("CARGO_BIN_EXE_loadtest");
    for io in ["mmsg", "auto"] {
        let (_process, addresses) = serve(program, &["limit", "--io", io, "--peers", "3"]).unwrap();
        for address in addresses {
            let result = json(&["--target", &address]);
            assert_healthy(&result);
            let figures = &result["figures"];
            assert!((figures["peers_per_response"].as_f64().unwrap() - 3.0).abs() < 1e-9);
            assert_eq!(figures["lost"], 0);
        }
    }
}

#[test]
fn an_open_loop_keeps_its_rate_and_draws_its_plot() {
    let (_process, addresses) = serve(env!("CARGO_BIN_EXE_loadtest"), &["limit"]).unwrap();
    let file = std::env::temp_dir().join(format!("loadtest-plot-{}.svg", std::process::id()));
    let plot = file.to_str().unwrap();
    let result = json(&["--target", &addresses[0], "--rate", "2000", "--plot", plot]);
    assert_healthy(&result);
    let sent: u64 = ["connect", "announce", "scrape"]
        .iter()
        .map(|it| result["figures"]["sent"][it].as_u64().unwrap())
        .sum();
    assert!((790..=810).contains(&sent), "{sent} requests in 0.4 s");
    let svg = std::fs::read_to_string(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(svg.contains("p99.9"));
}

#[test]
fn without_a_target_it_starts_a_tracker_of_its_own() {
    let result = json(&["--peers", "2000", "--families", "both"]);
    assert_healthy(&result);
    assert!(result["tracker"].as_str().unwrap().starts_with("skep"));
}

#[test]
fn skep_answers_with_every_peer_it_was_told_of() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let addresses = values(&ready, "udp=");
    let result = json(&["--target", &addresses[0]]);
    assert_healthy(&result);
    assert_eq!(result["figures"]["fill"]["scraped"], 2000);
}

#[test]
fn http_is_loaded_over_kept_connections_and_a_connection_a_request() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let url = format!("http://{}/announce", tcp(&ready));
    let kept = json(&["--target", &url]);
    assert_sound(&kept);
    let figures = &kept["figures"];
    assert_eq!(
        (&figures["fill"]["resident"], &figures["fill"]["scraped"]),
        (&2000.into(), &2000.into())
    );
    assert!(figures["peers_per_response"].as_f64().unwrap() > 1.0, "{figures}");
    assert_eq!((&figures["stream"]["connections"], &figures["lost"]), (&0.into(), &0.into()));
    let one_shot = json(&["--target", &url, "--one-shot"]);
    assert_sound(&one_shot);
    let figures = &one_shot["figures"];
    let requests: u64 =
        ["announce", "scrape"].iter().map(|it| figures["sent"][it].as_u64().unwrap()).sum();
    let connections = figures["stream"]["connections"].as_u64().unwrap();
    // Those that were open before serve one request each.
    assert!((requests.saturating_sub(512)..=requests).contains(&connections), "{figures}");
}

#[test]
fn an_open_loop_over_http_keeps_its_rate() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let url = format!("http://{}", tcp(&ready));
    let result = json(&["--target", &url, "--rate", "1000"]);
    assert_sound(&result);
    let figures = &result["figures"];
    let count = |it: &str| figures["sent"][it].as_u64().unwrap();
    let sent = count("announce") + count("scrape") + figures["held_back"].as_u64().unwrap();
    assert!((395..=405).contains(&sent), "{figures}");
}

#[test]
fn webtorrent_offers_and_answers_come_through() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let url = format!("ws://{}", tcp(&ready));
    let result = json(&["--target", &url, "--torrents", "50", "--offers", "2"]);
    assert_sound(&result);
    let figures = &result["figures"];
    assert_eq!(figures["fill"]["resident"], figures["fill"]["scraped"], "{figures}");
    let stream = &figures["stream"];
    assert!(stream["offers_relayed"].as_u64().unwrap() > 100, "{figures}");
    assert!(stream["answers_relayed"].as_u64().unwrap() > 100, "{figures}");
    assert_eq!(stream["closed_by_tracker"], 0, "{figures}");
}

#[test]
fn tls_is_spoken_with_and_without_resumption() {
    let temporary = tempfile::tempdir().unwrap();
    let [certificate, key] = ["certificate.pem", "key.pem"].map(|it| temporary.path().join(it));
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let [certificate, key] = [&certificate, &key].map(|it| it.to_str().unwrap());
    let settings = [
        ("SKEP__TLS__LISTEN", "127.0.0.1:0"),
        ("SKEP__TLS__CERTIFICATE", certificate),
        ("SKEP__TLS__KEY", key),
    ];
    let Some((_process, ready)) = skep(&settings) else { return };
    let address = values(&ready, "tls=").remove(0);
    let https = format!("https://{address}/announce");
    for more in [&["--ca", certificate][..], &["--insecure", "--one-shot", "--no-resumption"]] {
        assert_sound(&json(&[&["--target", &https], more].concat()));
    }
    assert_sound(&json(&["--target", &format!("wss://{address}/"), "--ca", certificate]));
    let small = ["--profile", "smoke", "--target", &https];
    let untrusted = loadtest(&small);
    assert_eq!(untrusted.status.code(), Some(1));
    let said = String::from_utf8_lossy(&untrusted.stderr).into_owned();
    assert!(said.contains("UnknownIssuer"), "{said}");
}

#[test]
fn connections_are_held_and_measured() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let url = format!("ws://{}", tcp(&ready));
    let output = loadtest(&["hold", &url, "--connections", "200", "--duration", "0.1", "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let held: Value = serde_json::from_slice(&output.stdout).unwrap();
    for key in ["connections", "opened", "announced", "open_at_end"] {
        assert_eq!(held[key], 200, "{held}");
    }
    assert!(held["memory"]["before_bytes"].as_u64().unwrap() > 0, "{held}");
    let output = loadtest(&["hold", &url.replace("ws:", "http:")]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("ws or wss"), "{output:?}");
}

#[test]
fn comparisons_over_tcp_have_a_row_for_each_contestant() {
    if skep(&[]).is_none() {
        return;
    }
    let short = ["--rounds", "1", "--profile", "smoke", "--duration", "0.2", "--warmup", "0"];
    for (protocol, rows) in [
        ("http", ["| skep (mmsg) |", "| skep (mmsg), one-shot |"]),
        ("ws", ["| skep (mmsg) |", "| offers relayed/s |"]),
    ] {
        let output = loadtest(&[&["compare", "--protocol", protocol], &short[..]].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!text.contains("limit ("), "{text}");
        for row in rows {
            assert!(text.contains(row), "no {row} in:\n{text}");
        }
    }
}

#[test]
fn what_is_no_tracker_is_an_error_in_words() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let output = loadtest(&["--profile", "smoke", "--target", &format!("http://{address}")]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("could not be opened") && said.contains("refused"), "{said}");
    assert!(said.contains(&address.to_string()), "{said}");
}

#[test]
fn a_target_that_takes_connections_and_says_nothing_is_given_up() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let few = ["--torrents", "2", "--peers", "2", "--connections", "2", "--timeout-ms", "100"];
    let url = format!("http://{address}");
    let output = loadtest(&[&["--target", &url], &few[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let wanted =
        format!("{address} stopped responding while filling, after 0 responses (no response)");
    assert!(said.contains(&wanted), "{said}");
    let output = loadtest(&["hold", &url.replace("http", "ws"), "--connections", "2"]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&address.to_string()), "{said}");
}

/// Responds to announces and scrapes as a tracker does, until `is_enough` for the number of
/// announces; then its socket is closed.
fn respond(
    mut is_enough: impl FnMut(usize) -> bool + Send + 'static,
) -> (String, std::thread::JoinHandle<()>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap().to_string();
    let respond = move || {
        let (mut datagram, mut answered) = ([0; 2048], 0);
        while !is_enough(answered) {
            let (bytes, from) = socket.recv_from(&mut datagram).unwrap();
            let (action, transaction) = (&datagram[8..12], &datagram[12..16]);
            let announce = action == [0, 0, 0, 1];
            let rest = match action[3] {
                1 => vec![0; 12],
                2 => [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0].repeat((bytes - 16) / 20),
                _ => vec![0; 8],
            };
            let response = [action, transaction, &rest].concat();
            socket.send_to(&response, from).unwrap();
            answered += usize::from(announce);
        }
    };
    (address, std::thread::spawn(respond))
}

/// A tracker that ends after some announces.
fn short_lived(announces: usize) -> (String, std::thread::JoinHandle<()>) {
    respond(move |answered| answered >= announces)
}

#[test]
fn a_tracker_that_ends_in_mid_run_ends_the_run() {
    // The first ends while peers are filled in, the other while its load is measured.
    for (announces, phase) in [(100, "filling"), (300, "measuring")] {
        let (address, tracker) = short_lived(announces);
        let small = ["--torrents", "50", "--peers", "200", "--warmup", "0", "--mix", "0:1:0"];
        let more = ["--duration", "600", "--families", "v4", "--target", &address];
        let output = loadtest(&[&small[..], &more].concat());
        tracker.join().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let wanted = format!("{address} stopped responding while {phase}, after ");
        assert!(said.contains(&wanted) && said.contains("connection refused"), "{said}");
    }
}

/// Starts a load tester whose output is read.
fn spawn(arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Sends a signal to a process.
fn signal(child: &Child, name: &str) {
    let kill = format!("kill -{name} {}", child.id());
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
}

/// A population that is filled in at once.
const SMALL: [&str; 4] = ["--torrents", "50", "--peers", "200"];

/// One that takes far longer to fill in than a signal to arrive.
const LARGE: [&str; 4] = ["--torrents", "30000", "--peers", "300000"];

/// Starts a run of 600 s, sends it a signal once `many` announces have had a response, and waits
/// for its end. If the tracker `ends` then, requests that follow have no response.
fn interrupted_after((many, ends): (usize, bool), arguments: &[&str], name: &str) -> Output {
    let (reached, are_many) = std::sync::mpsc::channel();
    let (address, _tracker) = respond(move |answered| {
        if answered == many {
            let _ = reached.send(());
        }
        ends && answered >= many
    });
    let small = ["--warmup", "0", "--mix", "0:1:0", "--duration", "600", "--families", "v4"];
    let more = ["--timeout-ms", "300", "--target", &address];
    let mut child = spawn(&[&small[..], &more, arguments].concat());
    while are_many.recv_timeout(Duration::from_millis(100)).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "it ended first: {arguments:?}");
    }
    signal(&child, name);
    child.wait_with_output().unwrap()
}

/// The same, in the middle of the measured phase of a load.
fn interrupted(arguments: &[&str], name: &str) -> Output {
    interrupted_after((2000, false), &[&SMALL[..], arguments].concat(), name)
}

/// Waits for a line of standard error that contains this, sends SIGINT, and waits for the end: exit
/// code and standard output.
fn interrupted_at_line(arguments: &[&str], wanted: &str) -> (Option<i32>, String) {
    let mut child = spawn(arguments);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains(wanted)), "it ended without {wanted:?}");
    signal(&child, "INT");
    let rest: Vec<String> = lines.collect();
    assert_eq!(rest.last().map(String::as_str), Some("loadtest: interrupted"), "{rest:?}");
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_signal_ends_a_run_with_a_report_on_what_was_measured() {
    let output = interrupted(&["--json"], "TERM");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!((output.status.code(), &*said), (Some(1), "loadtest: interrupted\n"));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = &result["figures"];
    assert_eq!(figures["is_partial"], true);
    assert!(figures["answered"]["announce"].as_u64().unwrap() > 100, "{figures}");
    assert!(figures["seconds"].as_f64().unwrap() < 600.0, "{figures}");
    let output = interrupted(&[], "INT");
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report.contains("warning: interrupted after ") && report.contains(" of 600.0 s"));
}

#[test]
fn a_signal_ends_an_attack_with_a_report_on_the_phases_that_were_run() {
    let parties = ["--honest", "20", "--honest-interval", "0.02"];
    let attackers = ["--attackers", "10", "--attack-rate", "200"];
    let flood = [&SMALL[..], &parties, &attackers].concat();
    let forged = [&SMALL[..], &["--honest", "3", "--attack-rate", "1000"]].concat();
    let hashes = ["--honest", "20", "--attackers", "20", "--requests", "50000000"];
    let (filling, hashes) = ([&LARGE[..], &hashes].concat(), [&SMALL[..], &hashes].concat());
    let sybil = [&SMALL[..], &["--honest", "40", "--ports", "60000"]].concat();
    let (all_known, none) = (&["honest_share", "attack_share"][..], &[][..]);
    for (profile, condition, more, known, unknown) in [
        ("flood", (3000, false), &flood[..], all_known, none),
        ("scrape-storm", (1000, false), &flood, all_known, none),
        ("forged", (500, false), &forged, &["honest_share", "forged_share"], none),
        (
            "random-hashes",
            (2000, false),
            &filling,
            &["p99_us_before"],
            &["peers_before", "attack_per_s"],
        ),
        (
            "random-hashes",
            (2200, false),
            &hashes,
            &["peers_before", "attack_per_s"],
            &["kept_share"],
        ),
        ("sybil", (2040, true), &sybil, &["swarm_sybil"], &["per_response_max"]),
        ("overload", (2000, false), &SMALL, &["peak_per_s"], &["goodput_share", "recovery_share"]),
    ] {
        let arguments = [&["--profile", profile, "--json"], more].concat();
        let output = interrupted_after(condition, &arguments, "INT");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let wanted = (Some(1), "loadtest: interrupted\n");
        assert_eq!((output.status.code(), &*said), wanted, "{profile}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let figures = &result["figures"];
        assert_eq!(figures["is_partial"], true, "{profile}: {figures}");
        for name in known {
            assert!(figures["measures"][name].is_f64(), "{profile}: {name}: {figures}");
        }
        for name in unknown {
            assert!(figures["measures"][name].is_null(), "{profile}: {name}: {figures}");
        }
        assert_eq!(figures["missed"].as_array().map(Vec::len), Some(0), "{figures}");
    }
    let expecting = [&["--profile", "sybil", "--expect-per-response", "1"], &sybil[..]].concat();
    let output = interrupted_after((2040, true), &expecting, "TERM");
    let report = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert!(report.contains("warning: interrupted after "), "{report}");
    assert!(report.contains("swarm_sybil") && report.contains("not known"), "{report}");
}

#[test]
fn a_signal_before_anything_was_measured_is_an_error_in_words() {
    let arguments = [&["--profile", "overload"], &LARGE[..]].concat();
    let output = interrupted_after((2000, false), &arguments, "INT");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let wanted = "loadtest: interrupted while filling: nothing was measured\n";
    assert_eq!((output.status.code(), &*said), (Some(1), wanted));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_signal_ends_held_connections_with_a_report() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let url = format!("ws://{}", tcp(&ready));
    let hold = ["hold", &url, "--connections", "50", "--duration", "600"];
    let (code, text) = interrupted_at_line(&[&hold[..], &["--json"]].concat(), "held for 600 s");
    let held: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &held["is_partial"]), (Some(1), &true.into()), "{held}");
    for key in ["connections", "opened", "announced", "open_at_end"] {
        assert_eq!(held[key], 50, "{held}");
    }
    assert!(held["held_s"].as_f64().unwrap() < 600.0, "{held}");
    assert!(held["memory"]["announced_bytes"].as_u64() > Some(0), "{held}");
    assert!(held["memory"]["end_bytes"].is_null(), "{held}");
    let (code, report) = interrupted_at_line(&hold, "held for 600 s");
    assert_eq!(code, Some(1));
    assert!(report.contains("warning: interrupted: 50 announces answered, held for "), "{report}");
}

#[test]
fn a_signal_ends_a_table_of_memory_with_the_cells_that_were_complete() {
    let own = format!("x={} limit --listen {{addr}}@127.0.0.1:0", env!("CARGO_BIN_EXE_loadtest"));
    // The second never serves, which is given up after 20 s for each of its four cells.
    let trackers = ["--tracker", &own, "--tracker", "y=sleep 600@127.0.0.1:9"];
    let small = ["memory", "--no-skep", "--peers", "100", "--per-torrent", "1,10"];
    let arguments = [&small[..], &trackers].concat();
    let (code, text) =
        interrupted_at_line(&[&arguments[..], &["--json"]].concat(), "x, V6, 10 a torrent");
    let table: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &table["is_partial"]), (Some(1), &true.into()), "{table}");
    let rows = table["rows"].as_array().unwrap();
    assert_eq!((rows.len(), rows[0]["cells"].as_array().map(Vec::len)), (1, Some(4)), "{table}");
    let (code, report) = interrupted_at_line(&arguments, "x, V4, 1 a torrent");
    assert_eq!(code, Some(1));
    assert!(
        report.contains("| x | V4 | ") && report.contains("\nwarning: interrupted: "),
        "{report}"
    );
}

/// A run that still waits for responses when the second signal arrives: the tracker is silent, and
/// without that signal there would be a report after a minute.
#[test]
fn a_second_signal_ends_the_process_without_a_report() {
    const MANY: usize = 2000;
    let (reached, many) = std::sync::mpsc::channel();
    let (_release, silent) = std::sync::mpsc::channel::<()>();
    let (address, _tracker) = respond(move |answered| {
        if answered == MANY {
            let _ = reached.send(());
            let _ = silent.recv();
        }
        false
    });
    let small = ["--torrents", "50", "--peers", "200", "--warmup", "0", "--mix", "0:1:0"];
    let more = ["--duration", "600", "--families", "v4", "--timeout-ms", "60000"];
    let child = spawn(&[&small[..], &more, &["--target", &address]].concat());
    many.recv().unwrap();
    // Two of a kind could arrive as one.
    let kill = format!("kill -INT {0} && kill -TERM {0}", child.id());
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let wanted = "loadtest: interrupted twice: ended without a report\n";
    assert_eq!((output.status.code(), &*said), (Some(1), wanted));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_comparison_rotates_and_prints_its_tables() {
    let own = format!(
        "other={} limit --listen {{addr}} --peers 1@127.0.0.1:0",
        env!("CARGO_BIN_EXE_loadtest")
    );
    let output = loadtest(&[
        "compare",
        "--no-skep",
        "--rounds",
        "2",
        "--profile",
        "smoke",
        "--duration",
        "0.2",
        "--warmup",
        "0",
        "--torrents",
        "50",
        "--peers",
        "200",
        "--tracker",
        &own,
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for wanted in ["| limit (uring) |", "| limit (mmsg) |", "| other |", "row ÷ column", "Linux "]
    {
        assert!(text.contains(wanted), "no {wanted:?} in:\n{text}");
    }
    let order = String::from_utf8(output.stderr).unwrap();
    let first = order.lines().position(|it| it.ends_with("2 of 2: limit (mmsg)"));
    let last = order.lines().position(|it| it.ends_with("2 of 2: limit (uring)"));
    assert!(first.is_some() && first < last, "{order}");
}

#[test]
fn a_table_of_memory_has_a_row_per_family() {
    let own = format!("x={} limit --listen {{addr}}@127.0.0.1:0", env!("CARGO_BIN_EXE_loadtest"));
    let output = loadtest(&[
        "memory",
        "--no-skep",
        "--peers",
        "100",
        "--per-torrent",
        "1,10",
        "--tracker",
        &own,
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("| x | V4 | ") && text.contains("| x | V6 | "), "{text}");
}

#[test]
fn a_target_that_does_not_answer_is_an_error_in_words() {
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let small = ["--torrents", "2", "--peers", "2", "--timeout-ms", "100"];
    let output = loadtest(&[&["--target", &address], &small[..]].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no connection id") && said.contains(&address), "{said}");
    assert_eq!(loadtest(&["--mix", "nonsense"]).status.code(), Some(2));
}

/// A small attack's JSON, whose parties' counts must add up.
fn attack(profile: &str, target: &str, more: &[&str]) -> Value {
    let small = ["run", "--json", "--profile", profile, "--target", target];
    let output = loadtest(&[&small[..], more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["plan"]["profile"], profile);
    for party in ["honest", "attack"] {
        let traffic = &result["figures"][party];
        let count = |it: &str| traffic[it].as_u64().unwrap();
        let by_kind = |key: &str| -> u64 {
            traffic[key].as_object().unwrap().values().map(|it| it.as_u64().unwrap()).sum()
        };
        let accounted =
            by_kind("answered") + count("refused") + count("malformed") + count("unanswered");
        assert_eq!(by_kind("sent"), accounted, "{party}: {traffic}");
        assert!(by_kind("sent") > 0, "{party}: {traffic}");
        assert_eq!((count("malformed"), count("stray"), count("flawed")), (0, 0, 0), "{traffic}");
    }
    result["figures"].clone()
}

/// A measure of an attack.
fn measure(figures: &Value, name: &str) -> f64 {
    figures["measures"][name].as_f64().unwrap_or_else(|| panic!("no {name} in {figures}"))
}

/// The address of a skep's UDP side.
fn udp(line: &str) -> String {
    values(line, "udp=").remove(0)
}

const BRIEF: [&str; 4] = ["--duration", "1", "--warmup", "0.2"];

#[test]
fn floods_and_scrape_storms_leave_honest_clients_their_share() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let parties = ["--honest", "200", "--honest-interval", "0.2", "--attackers", "20"];
    for (profile, kind) in [("flood", "announce"), ("scrape-storm", "scrape")] {
        let more = [&BRIEF[..], &parties, &["--attack-rate", "100", "--threads", "2"]].concat();
        let figures = attack(profile, &udp(&ready), &more);
        let (honest, attackers) = (&figures["honest"], &figures["attack"]);
        assert_eq!((&honest["sources"], &attackers["sources"]), (&200.into(), &20.into()));
        let [sent, overdue] = [&honest["sent"]["announce"], &honest["overdue"]];
        let due = sent.as_u64().unwrap() + overdue.as_u64().unwrap();
        assert!((999..=1001).contains(&due) && sent.as_u64() > Some(0), "{figures}");
        assert!(attackers["sent"][kind].as_u64().unwrap() > 0, "{figures}");
        for name in ["honest_share", "honest_share_before", "attack_share"] {
            assert!((0.0..=1.0).contains(&measure(&figures, name)), "{figures}");
        }
        assert!(measure(&figures, "honest_share_before") > 0.0, "{figures}");
        assert!(figures["server"]["rss_bytes"].as_u64().unwrap() > 0, "{figures}");
    }
}

#[test]
fn victims_of_forgers_are_served_once_verified() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let more = ["--attack-rate", "2000", "--honest", "3", "--timeout-ms", "300"];
    let figures = attack("forged", &udp(&ready), &[&BRIEF[..], &more].concat());
    let forged = &figures["attack"];
    assert_eq!(forged["answered"]["announce"], 0, "{figures}");
    assert!(forged["sent"]["announce"].as_u64().unwrap() > 100, "{figures}");
    assert!(measure(&figures, "reflected_bytes") <= 1.0, "{figures}");
    assert!(measure(&figures, "id_share") > 0.0, "{figures}");
    assert!(measure(&figures, "honest_share") > 0.0, "{figures}");
    assert!(figures["honest"]["answered"]["connect"].as_u64().unwrap() > 0, "{figures}");
}

#[test]
fn random_hashes_come_on_top_of_peers_that_are_counted_before_and_after() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let population = ["--torrents", "300", "--peers", "900", "--honest", "100"];
    let more = ["--attackers", "50", "--requests", "5000", "--memory-cap", "64GiB"];
    let figures = attack("random-hashes", &udp(&ready), &[&population[..], &more].concat());
    assert_eq!(figures["attack"]["sent"]["announce"], 5000, "{figures}");
    let [before, after] = ["peers_before", "peers_after"].map(|it| measure(&figures, it));
    assert!((before - 900.0).abs() < 0.5 && after > 0.0, "{figures}");
    assert!((measure(&figures, "kept_share") - after / before).abs() < 1e-9, "{figures}");
    assert!((0.0..0.5).contains(&measure(&figures, "rss_of_cap")), "{figures}");
}

#[test]
fn a_sybil_address_is_looked_for_in_every_response() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let more = ["--honest", "40", "--ports", "300", "--numwant", "50"];
    let figures = attack("sybil", &udp(&ready), &more);
    assert!((measure(&figures, "swarm_honest") - 40.0).abs() < 0.5, "{figures}");
    assert!(measure(&figures, "swarm_sybil") > 0.0, "{figures}");
    assert!(measure(&figures, "peers_per_response") > 1.0, "{figures}");
    let [most, mean] = ["per_response_max", "per_response_mean"].map(|it| measure(&figures, it));
    assert!(most <= 50.0 && mean <= most, "{figures}");
}

#[test]
fn overload_is_thrice_the_peak_and_ends() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let target = udp(&ready);
    let more = ["--duration", "0.5", "--warmup", "0", "--torrents", "200", "--peers", "400"];
    let small = ["--json", "--profile", "overload", "--target", &target];
    let output = loadtest(&[&small[..], &more].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = &result["figures"];
    // On a busy host no answer may come in time: what is counted is held, not how much that is.
    for (name, least) in [("peak_per_s", 1.0), ("offered_per_s", 1.0), ("answered", 1.0)] {
        assert!(measure(figures, name) >= least, "{name}: {figures}");
    }
    for name in ["goodput_per_s", "recovery_per_s"] {
        assert!(measure(figures, name) >= 0.0, "{name}: {figures}");
    }
    assert!((measure(figures, "offered_times") - 3.0).abs() < 0.5, "{figures}");
    let accounted: f64 =
        ["answered", "unanswered", "refused"].iter().map(|it| measure(figures, it)).sum();
    assert!((measure(figures, "sent") - accounted).abs() < 0.5, "{figures}");
    let share = measure(figures, "goodput_per_s") / measure(figures, "peak_per_s");
    assert!((measure(figures, "goodput_share") - share).abs() < 1e-9, "{figures}");
}

#[test]
fn a_soak_reports_what_creeps_and_keeps_its_bounds() {
    let Some((process, ready)) = skep(&[]) else { return };
    let (target, pid) = (udp(&ready), process.0.id().to_string());
    let small = ["--profile", "soak", "--for", "3s", "--target", &target, "--pid", &pid];
    let size = ["--torrents", "500", "--peers", "1000"];
    let loose = ["--json", "--expect-loss", "0.5", "--expect-descriptors", "0"];
    let output = loadtest(&[&small[..], &size, &loose].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["windows"].as_array().unwrap().len(), 8, "{result}");
    let figures = &result["figures"];
    assert!(measure(figures, "rate_per_s") >= 1.0 && measure(figures, "sent") > 0.0, "{figures}");
    assert!(measure(figures, "p99_drift") > 0.0, "{figures}");
    assert!(measure(figures, "rss_slope_mib_per_h").is_finite(), "{figures}");
    assert!(measure(figures, "descriptors_max") > 3.0, "{figures}");
    assert!(figures["warnings"].to_string().contains("minutes"), "{figures}");
    // A bound that nothing can keep, at a given rate, as text.
    let strict = ["--rate", "500", "--expect-p99-drift", "0.000001"];
    let output = loadtest(&[&small[..], &size, &strict].concat());
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("p99_drift is") && said.contains("expected at most"), "{said}");
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(report.matches("descriptors\n").count() >= 8 && report.contains("500/s"), "{report}");
    for arguments in [&["--for", "3s"][..], &["--profile", "smoke", "--expect-slope", "1"]] {
        assert_eq!(loadtest(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn expectations_of_attacks_decide_the_exit_code() {
    let Some((_process, ready)) = skep(&[]) else { return };
    let target = udp(&ready);
    let small = ["--profile", "sybil", "--target", &target, "--honest", "30", "--ports", "200"];
    let met = loadtest(&[&small[..], &["--expect-per-response", "50"]].concat());
    assert!(met.status.success(), "{}", String::from_utf8_lossy(&met.stderr));
    let report = String::from_utf8_lossy(&met.stdout).into_owned();
    assert!(report.contains("per_response_max") && report.contains("honest"), "{report}");
    // Not one of 30 honest peers can be handed nobody of 229 others but themselves.
    let missed = loadtest(&[&small[..], &["--expect-per-response", "0"]].concat());
    assert_eq!(missed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&missed.stderr).into_owned();
    assert!(said.contains("per_response_max is") && said.contains("expected at most 0"), "{said}");
    for (arguments, wanted) in [
        (&["--profile", "flood"][..], "--target"),
        (&["--profile", "flood", "--target", "http://127.0.0.1:1"], "UDP"),
        (&["--profile", "sybil", "--requests", "7", "--target", &target], "--requests"),
        (&["--expect-honest", "0.5"], "--profile"),
        (&["compare", "--profile", "flood"], "compare"),
        (&["compare", "--families", "both"], "--families v4 or v6"),
        (&["--target", "foo"], "--target foo: the port is missing"),
        (&["--target", "127.0.0.1:1", "--target", "127.0.0.1:2"], "one --target per IP version"),
        (&["--churn", "2"], "churn"),
        (&["hold", "http://127.0.0.1:1"], "ws or wss"),
    ] {
        let output = loadtest(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains(wanted), "{said}");
    }
}
