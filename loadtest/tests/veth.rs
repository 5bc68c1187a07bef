//! A comparison over a veth pair, with tiny counts. Needs root, and is skipped without it.
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap as tests may")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

fn start(arguments: &[&str]) -> Child {
    let small = ["--clients", "64", "--torrents", "16", "--sample-every", "1", "--warmup", "0"];
    let slow = ["--rate", "3200", "--honest-rate", "1600", "--forged-rate", "3200"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(["compare", "--network", "veth", "--no-skep"]).args(small).args(slow);
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Whether a run's error output shows that this host does not let us; says so. With
/// SKEP_REQUIRE_EXTERNAL=1 that is a failure.
fn is_skipped(words: &str) -> bool {
    let lacks = ["cannot use a network namespace", "cannot run ip: "];
    let skipped = lacks.iter().any(|it| words.contains(it));
    if skipped {
        println!("skipped: {words}");
        assert_ne!(std::env::var("SKEP_REQUIRE_EXTERNAL").as_deref(), Ok("1"), "{words}");
    }
    skipped
}

/// Waits until the kernel's threads that received for a run's interfaces have ended, which the
/// removal of the namespaces does.
fn wait_for_removal(pid: u32) {
    let ours = [format!("napi/s{pid}-"), format!("napi/c{pid}-")];
    let exists = || {
        let entries = fs::read_dir("/proc").unwrap().flatten();
        let names = entries.filter_map(|it| fs::read_to_string(it.path().join("comm")).ok());
        names.filter(|name| ours.iter().any(|it| name.starts_with(it))).count() > 0
    };
    while exists() {
        std::thread::yield_now();
    }
}

#[test]
fn responses_over_a_veth_pair_are_counted_and_valid_and_nothing_of_it_stays() {
    let own =
        format!("other={} serve --listen {{addr}}@127.0.0.1:0", env!("CARGO_BIN_EXE_loadtest"));
    // Longer on a busy host, until each load had responses while it was measured.
    for duration in ["0.1", "2", "20"] {
        let child = start(&["--rounds", "1", "--json", "--duration", duration, "--tracker", &own]);
        let pid = child.id();
        let output = child.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        if is_skipped(&words) {
            return;
        }
        assert!(output.status.success(), "{words}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = result["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 2);
        let phases = || rows.iter().flat_map(|it| it["phases"].as_array().unwrap());
        assert_eq!(phases().count(), 10);
        for phase in phases() {
            let figures = &phase["rounds"][0];
            assert!(figures["answered_share"].as_f64().unwrap() > 0.0, "{figures}");
            assert_eq!((&figures["errors"], &figures["invalid"]), (&0.into(), &0.into()));
            assert!(figures["sampled"]["checked"].as_u64().unwrap() > 0, "{figures}");
            assert_eq!(figures["sampled"]["invalid"], serde_json::json!({}), "{figures}");
        }
        wait_for_removal(pid);
        if phases().all(|it| it["median"]["cpu_ns_per_answer"].as_f64().is_some_and(|it| it > 0.0))
        {
            return;
        }
    }
    panic!("no responses in 20 s");
}

#[test]
fn after_a_signal_nothing_of_a_veth_pair_stays() {
    let mut child = start(&["--rounds", "9", "--duration", "600"]);
    let mut errors = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let first = errors.next().unwrap_or_default();
    if is_skipped(&first) {
        child.wait().unwrap();
        return;
    }
    assert!(first.starts_with("round 1 of 9: limit"), "{first}");
    let pid = child.id();
    let kill = Command::new("/bin/sh").args(["-c", &format!("kill -INT {pid}")]).status();
    assert!(kill.unwrap().success());
    assert_eq!(errors.last().as_deref(), Some("loadtest: interrupted"));
    assert_eq!(child.wait().unwrap().code(), Some(1));
    wait_for_removal(pid);
}

#[test]
fn without_privileges_the_error_has_its_cause_and_remedy() {
    let arguments = ["compare", "--network", "veth", "--rounds", "1"];
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-sys_admin", env!("CARGO_BIN_EXE_loadtest")])
        .args(arguments)
        .output();
    let output = match output {
        Ok(output) if !String::from_utf8_lossy(&output.stderr).starts_with("setpriv: ") => output,
        other => {
            assert_ne!(std::env::var("SKEP_REQUIRE_EXTERNAL").as_deref(), Ok("1"), "{other:?}");
            return println!("skipped: setpriv: {other:?}");
        }
    };
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    assert!(words.contains("not permitted") && words.contains("remedy: run as root"), "{words}");
}

#[test]
fn options_without_effect_over_a_veth_pair_are_refused() {
    for (arguments, named) in [
        (["--peers", "7"], "--peers has no effect over a veth pair"),
        (["--protocol", "http"], "--network veth is for UDP"),
        (["--clients", "100"], "--clients is a power of 2"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
        let output = command.args(["compare", "--network", "veth"]).args(arguments).output();
        let output = output.unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{words}");
        assert!(words.contains(named), "{words}");
    }
}
