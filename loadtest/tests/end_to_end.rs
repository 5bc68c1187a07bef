//! The real binary against real processes: the limit by both backends, a skep where one was built,
//! and a target that is none.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

fn loadtest(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_loadtest")).args(arguments).output().unwrap()
}

/// A short run's JSON, without warnings' contents.
fn json(arguments: &[&str]) -> Value {
    let small = ["--json", "--profile", "smoke", "--duration", "0.4", "--warmup", "0"];
    let output = loadtest(&[&small, arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
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
    let mut command = Command::new(program);
    // A skep keeps its state in the build's folder, not in the home of whoever runs the tests.
    let state = Path::new(env!("CARGO_TARGET_TMPDIR")).join("state");
    command.env("SKEP__SERVER__STATE_DIR", state).env("SKEP__LOG__LEVEL", "warn");
    let mut child = Ended(command.args(arguments).stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let addresses: Vec<String> = line
        .strip_prefix("ready ")?
        .split_whitespace()
        .filter_map(|it| it.strip_prefix("udp=").map(str::to_owned))
        .collect();
    Some((child, addresses))
}

/// What holds of every healthy run.
fn assert_healthy(result: &Value) {
    let figures = &result["figures"];
    assert!(figures["answered"]["announce"].as_u64().unwrap() > 100, "{figures}");
    assert!(figures["answered"]["connect"].as_u64().unwrap() > 0, "{figures}");
    assert!(figures["answered"]["scrape"].as_u64().unwrap() > 0, "{figures}");
    assert_eq!(figures["invalid"], serde_json::json!({}), "{figures}");
    assert_eq!(figures["errors"], 0, "{figures}");
    assert_eq!(figures["fill"]["resident"], 2000, "{figures}");
    assert!(figures["latency"]["p50_us"].as_f64().unwrap() > 0.0, "{figures}");
    assert!(figures["server"]["cpu_ns_per_answer"].as_f64().unwrap() > 0.0, "{figures}");
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
            assert!((figures["peers_per_reply"].as_f64().unwrap() - 3.0).abs() < 1e-9);
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
    let skep = Path::new(env!("CARGO_BIN_EXE_loadtest")).with_file_name("skep");
    let listen = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--workers", "1"];
    let started = skep.to_str().filter(|_| skep.is_file()).and_then(|it| serve(it, &listen));
    let Some((_process, addresses)) = started else {
        println!("skipped: skep not found beside loadtest");
        return;
    };
    let result = json(&["--target", &addresses[0]]);
    assert_healthy(&result);
    assert_eq!(result["figures"]["fill"]["scraped"], 2000);
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
    assert!(String::from_utf8_lossy(&output.stderr).contains("no connection id"));
    assert_eq!(loadtest(&["--mix", "nonsense"]).status.code(), Some(2));
}
