//! The whole program over real sockets, with either backend: started, asked, reloaded, stopped.

use std::fs;
use std::io::Write as _;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use skep::protocol::udp::client::{Announcement, encode_announce};
use skep::protocol::udp::{ANNOUNCE_BYTES, TransactionId};
use skep::types::{Event, Family, InfoHash};

use crate::support::seccomp::without_io_uring;
use crate::support::{
    Client, Metrics, Skep, backends, command, deny_port, eventually, has_io_uring, has_ipv6,
    leecher, run, seeder, takes_sigterm, texts,
};

/// ENOSYS and EPERM: what container runtimes' filters answer.
const ENOSYS: i32 = 38;
const EPERM: i32 = 1;

#[test]
fn the_ready_line_tells_what_is_served() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        let udp: String = skep.udp.iter().map(|it| format!(" udp={it}")).collect();
        let tcp = udp.replace(" udp=", " tcp=");
        let expected = format!("ready{udp}{tcp} admin={} io={io} workers=2\n", skep.admin);
        assert_eq!(skep.ready, expected);
        assert!(skep.udp[0].is_ipv4() && skep.udp[1..].iter().all(|it| it.is_ipv6()));
        assert_eq!(skep.udp.len(), if has_ipv6() { 2 } else { 1 });
        assert!(skep.udp.iter().all(|it| it.port() != 0));
    }
}

#[test]
fn peers_find_each_other_over_either_family() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        for (&address, stride) in skep.udp.iter().zip([6, 18]) {
            let mut first = Client::connect(address);
            let (response, peers) = first.announce(&leecher(1, 1001));
            assert!(peers.is_empty());
            assert!((1680..=1920).contains(&response.interval_s), "{response:?}");
            let mut second = Client::connect(address);
            let (response, peers) = second.announce(&seeder(1, 1002));
            assert_eq!(peers.len(), stride);
            assert_eq!(peers[stride - 2..], 1001_u16.to_be_bytes());
            assert!(response.seeders >= 1 && response.leechers >= 1);
        }
        let mut client = Client::connect(skep.udp[0]);
        let counts = client.scrape(&[InfoHash([1; 20]), InfoHash([9; 20])]);
        let families = u32::try_from(skep.udp.len()).unwrap();
        assert_eq!((counts[0].seeders, counts[0].leechers), (families, families));
        assert_eq!((counts[1].seeders, counts[1].leechers), (0, 0));
    }
}

#[test]
fn many_clients_of_all_workers_meet_in_one_swarm() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        for port in 1001..=1200 {
            Client::connect(skep.udp[0]).announce(&leecher(2, port));
        }
        let mut client = Client::connect(skep.udp[0]);
        assert_eq!(client.scrape(&[InfoHash([2; 20])])[0].leechers, 200);
        let (_, peers) = client.announce(&Announcement { numwant: 1000, ..leecher(2, 999) });
        assert_eq!(peers.len(), 200 * 6);
    }
}

#[test]
fn signals_end_it_in_order() {
    for io in backends() {
        for signal in ["TERM", "INT"] {
            let mut skep = Skep::start(&["--io", io]);
            Client::connect(skep.udp[0]);
            skep.signal(signal);
            assert_eq!(skep.wait().code(), Some(0), "{signal}");
            assert_eq!(skep.rest_of_stdout(), "", "the ready line is all there is");
            assert!(skep.log_with("stopping").contains(&format!("stopping: SIG{signal} received")));
        }
    }
}

#[test]
fn what_is_counted_adds_up() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        deny_port(&skep, 25);
        for &address in &skep.udp {
            good_and_bad_requests(address);
        }
        let mut metrics = skep.metrics();
        // The last garbage is answered by nothing, so wait until it has been taken.
        eventually("all datagrams are taken", || {
            metrics = skep.metrics();
            skep.udp.iter().all(|&address| {
                let label = format!("family=\"{}\"", Family::of(address.ip()).label());
                metrics.sum("skep_requests_total", &label) == SENT
            })
        });
        for &address in &skep.udp {
            check_counts(&metrics, Family::of(address.ip()).label());
        }
        assert_eq!(metrics.value("skep_torrents"), 1.0);
        assert_eq!(metrics.value("skep_peers{family=\"ipv4\",state=\"leecher\"}"), 1.0);
        assert_eq!(metrics.sum("skep_udp_socket_drops_total", ""), 0.0);
        assert!(metrics.sum("skep_udp_socket_buffer_bytes", "worker=\"1\"") > 0.0);
    }
}

/// How many datagrams [`good_and_bad_requests`] sends to an address.
const SENT: f64 = 10.0;

/// A bit of everything: 4 answered, 1 refused, 5 met with silence.
fn good_and_bad_requests(address: std::net::SocketAddr) {
    let mut client = Client::connect(address);
    client.announce(&leecher(3, 6881));
    client.announce(&leecher(3, 6881));
    client.scrape(&[InfoHash([3; 20])]);
    assert!(!client.announce_refused(&leecher(3, 25)).is_empty());
    client.send(b"");
    client.send(b"short");
    client.send(&[0; 16]); // a connect without its magic
    client.send(&[9; 16]); // an unknown action
    let mut forged = [0; 36];
    forged[11] = 2; // a scrape whose id was never issued
    client.send(&forged);
}

fn check_counts(metrics: &Metrics, family: &str) {
    let label = format!("family=\"{family}\"");
    let one = |name: &str, rest: &str| {
        let (key, value) = rest.split_once('=').unwrap();
        let labels = format!("transport=\"udp\",{label},{key}=\"{value}\"");
        metrics.value(&format!("{name}{{{labels}}}"))
    };
    assert_eq!(one("skep_responses_total", "action=connect"), 1.0, "{}", metrics.text);
    assert_eq!(one("skep_responses_total", "action=announce"), 2.0);
    assert_eq!(one("skep_responses_total", "action=scrape"), 1.0);
    assert_eq!(one("skep_refused_total", "reason=port_denied"), 1.0);
    assert_eq!(one("skep_dropped_total", "reason=too_short"), 2.0);
    assert_eq!(one("skep_dropped_total", "reason=bad_magic"), 1.0);
    assert_eq!(one("skep_dropped_total", "reason=unknown_action"), 1.0);
    assert_eq!(one("skep_dropped_total", "reason=forged_id"), 1.0);
    let sum = |name| metrics.sum(name, &label);
    let ends = ["skep_responses_total", "skep_refused_total", "skep_dropped_total"];
    assert_eq!(sum("skep_requests_total"), ends.map(sum).iter().sum::<f64>());
    assert_eq!(sum("skep_requests_total"), SENT);
    // connect 16, announces 3 × 98, scrape 36, garbage 0 + 5 + 16 + 16 + 36
    assert_eq!(sum("skep_receive_bytes_total"), 419.0);
}

#[test]
fn metrics_are_well_formed_and_bounded() {
    let skep = Skep::start(&[]);
    Client::connect(skep.udp[0]);
    // The ratio of a second takes a second.
    eventually("all series are there", || skep.metrics().text.contains("skep_worker_busy_ratio{"));
    let metrics = skep.metrics();
    assert!(metrics.series() <= 500, "{}", metrics.series());
    assert!(metrics.value("skep_memory_resident_bytes") > 1_048_576.0, "{}", metrics.text);
    for name in ["skep_build_info", "process_cpu_seconds_total", "process_resident_memory_bytes"] {
        assert!(metrics.text.contains(name), "{name}");
    }
    for line in metrics.text.lines().filter(|it| it.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(metrics.text.contains(&format!("# HELP {name} ")), "{name} lacks its HELP");
        assert!(name.starts_with("skep_") || name.starts_with("process_"), "{name}");
    }
    promtool_agrees(&metrics.text);
}

/// Asks promtool, from Debian's package prometheus, where it is installed.
fn promtool_agrees(text: &str) {
    let started = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut promtool) = started else {
        let required = std::env::var("SKEP_REQUIRE_EXTERNAL").is_ok_and(|it| it == "1");
        assert!(!required, "promtool not found, and SKEP_REQUIRE_EXTERNAL=1");
        eprintln!("skipped: promtool not found");
        return;
    };
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let (stdout, stderr) = texts(&output);
    assert!(output.status.success() && stderr.is_empty(), "{stdout}{stderr}\n{text}");
}

#[test]
fn health_pages_answer() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        for page in ["/livez", "/readyz", "/startupz"] {
            assert_eq!(skep.get(page), (200, "ok\n".into()), "{page}");
        }
        assert_eq!(skep.get("/").0, 307, "leads to the statistics page");
        assert_eq!(skep.get("/nothing").0, 404);
    }
}

#[test]
fn a_key_is_kept_across_a_restart() {
    let state = tempfile::tempdir().unwrap();
    let start = || {
        let mut command = command();
        command.env("STATE_DIRECTORY", state.path()).args(["--listen", "127.0.0.1:0"]);
        Skep::spawn(command)
    };
    let old = Client::connect(start().udp[0]);
    let skep = start();
    let mut client = Client::unconnected(skep.udp[0]);
    client.connection_id = old.connection_id;
    client.announce(&leecher(4, 6881));
    let key = fs::read_to_string(state.path().join("connection_id.key")).unwrap();
    assert!(key.len() > 64 && !skep.log().contains(key.trim()), "a key is shown");
}

#[test]
fn processes_with_one_key_accept_each_others_ids() {
    let start = |key: &str| {
        let mut command = command();
        command.env("SKEP_CONNECTION_ID_KEY", key).args(["--listen", "127.0.0.1:0"]);
        command.env("SKEP__UDP__CONNECTION_ID", "hmac-sha256");
        Skep::spawn(command)
    };
    let (old, new) = ("0a".repeat(32), "0b".repeat(32));
    let [first, rolled] = [start(&old), start(&format!("{new},{old}"))];
    let from_first = Client::connect(first.udp[0]).connection_id;
    let mut client = Client::unconnected(rolled.udp[0]);
    client.connection_id = from_first;
    client.announce(&leecher(5, 6881));
}

#[test]
fn it_serves_without_a_state_directory_and_says_so_once() {
    let mut command = command();
    command.env("STATE_DIRECTORY", "/proc/nowhere").args(["--listen", "127.0.0.1:0"]);
    let skep = Skep::spawn(command);
    Client::connect(skep.udp[0]);
    let log = skep.log_with("ready ");
    assert_eq!(log.matches("no state directory").count(), 1, "{log}");
    assert!(log.contains("server.state_dir"), "{log}");
}

/// State directories that cannot be entered: one below a file, and, where this test may become
/// another user, one of a third user.
fn closed_directories(folder: &Path) -> Vec<(PathBuf, Option<u32>)> {
    const NOBODY: u32 = 65534;
    fs::write(folder.join("file"), "").unwrap();
    let mut closed = vec![(folder.join("file/skep"), None)];
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let theirs = folder.join("theirs");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o700)).unwrap();
    match command().uid(NOBODY).arg("--version").output() {
        Ok(output) if output.status.success() => closed.push((theirs, Some(NOBODY))),
        _ => eprintln!("skipped: a directory of another user; this user cannot become one"),
    }
    closed
}

#[test]
fn a_state_directory_that_cannot_be_entered_costs_what_is_kept_there_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    for (directory, user) in closed_directories(folder.path()) {
        let command = |variables: &[(&str, &str)]| {
            let mut command = command();
            command.env("SKEP__SERVER__STATE_DIR", &directory).args(["--listen", "127.0.0.1:0"]);
            command.envs(variables.iter().copied()).args(["--admin", "127.0.0.1:0"]);
            if let Some(user) = user {
                command.uid(user);
            }
            command
        };
        let key = ("SKEP_CONNECTION_ID_KEY", "0e".repeat(32));
        for variables in [
            &[][..],
            &[(key.0, key.1.as_str())],
            &[(key.0, key.1.as_str()), ("SKEP__SNAPSHOT__MODE", "off")],
        ] {
            let skep = Skep::spawn(command(variables));
            Client::connect(skep.udp[0]);
            let log = skep.log_with("ready ");
            let warnings: Vec<_> = log.lines().filter(|it| it.contains(" WARN ")).collect();
            let about = |it: &&&str| it.contains(&directory.display().to_string());
            let warned: Vec<_> = warnings.iter().filter(about).collect();
            assert_eq!(warned.len(), 1, "{log}");
            let line = warned[0];
            assert!(line.contains("remedy"), "{log}");
            assert!(line.contains("set server.state_dir to a directory"), "{log}");
        }
        let output = command(&[("SKEP__SNAPSHOT__MODE", "on")]).output().unwrap();
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        let last = stderr.lines().last().unwrap();
        assert!(last.contains(&directory.display().to_string()), "{stderr}");
        assert!(last.contains("remedy: set server.state_dir to a directory"), "{stderr}");
    }
}

#[test]
fn sighup_reloads_what_can_change_and_names_what_cannot() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("skep.toml");
    let key_path = temporary.path().join("key");
    let (old, new) = ("0c".repeat(32), "0d".repeat(32));
    fs::write(&key_path, &old).unwrap();
    let write = |rest: &str| {
        let text = format!("[udp]\nkey_file = {key_path:?}\n{rest}");
        fs::write(&path, text).unwrap();
    };
    write("[tracker]\ninterval_jitter_s = 0\n[memory]\nmax_memory = \"1GiB\"\n");
    let skep = Skep::start(&["--config", path.to_str().unwrap()]);
    let mut client = Client::connect(skep.udp[0]);
    assert_eq!(client.announce(&leecher(6, 6881)).0.interval_s, 1800);

    let budget = |skep: &Skep| skep.metrics().value("skep_store_limit_bytes");
    let before = budget(&skep);
    write(
        "[tracker]\ninterval_jitter_s = 0\ninterval_s = 900\n[server]\nio = \"mmsg\"\n\
         [memory]\nmax_memory = \"512MiB\"\n",
    );
    fs::write(&key_path, format!("{new}\n{old}\n")).unwrap();
    skep.signal("HUP");
    let log = skep.log_with("not reloaded, needs a restart: ");
    assert!(log.contains("tracker.interval_s = 900 (was 1800), memory.max_memory"), "{log}");
    assert!(log.contains("(was \"1GiB\"), the connection-id keys"), "{log}");
    assert!(log.contains("server.io = \"mmsg\" (was \"auto\")"), "{log}");
    assert_eq!(
        client.announce(&leecher(6, 6881)).0.interval_s,
        900,
        "the old key is still accepted"
    );
    assert_ne!(client.ask_connection_id(), client.connection_id, "the new key makes ids");
    assert!(budget(&skep) < before * 0.6, "{} of {before}", budget(&skep));

    write("[tracker]\ninterval_s = 0\n");
    skep.signal("HUP");
    let log = skep.log_with("not reloaded, all settings unchanged");
    assert!(log.contains("skep.toml:4:14: tracker.interval_s: 0 is out of bounds"), "{log}");
    assert_eq!(client.announce(&leecher(6, 6881)).0.interval_s, 900);
    assert_eq!(skep.get("/readyz").0, 200);
}

#[test]
fn a_failed_reload_and_settings_that_wait_are_warned_of_until_they_are_as_in_force() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("skep.toml");
    fs::write(&path, "").unwrap();
    let skep = start_with(&path, temporary.path());
    let reload = |text: &str| {
        fs::write(&path, text).unwrap();
        skep.signal("HUP");
    };
    let have = |failing: f64, waiting: f64, messages: &[&str]| {
        eventually(&format!("{messages:?}"), || {
            let metrics = skep.metrics();
            let status: serde_json::Value =
                serde_json::from_str(&skep.get("/api/v1/status").1).unwrap();
            let warnings = status["warnings"].as_array().unwrap();
            let ids = ["reload_failing", "restart_needed"];
            let warnings = warnings.iter().filter(|it| ids.iter().any(|id| it["id"] == *id));
            metrics.value("skep_reload_failing") == failing
                && metrics.value("skep_settings_awaiting_restart") == waiting
                && warnings.map(|it| it["message"].as_str().unwrap()).eq(messages.iter().copied())
        });
    };
    let failed = "the last reload failed; the settings before it are in force";
    have(0.0, 0.0, &[]);
    reload("[server]\nio = \"mmsg\"\nworkers = 3\n");
    have(0.0, 2.0, &["2 settings wait for a restart"]);
    reload("[server]\nworkers = 3\n");
    have(0.0, 1.0, &["1 setting waits for a restart"]);
    reload("[server]\nworker = 3\n");
    have(1.0, 1.0, &[failed, "1 setting waits for a restart"]);
    reload("");
    have(0.0, 0.0, &[]);
}

/// Starts with a file of settings, and a state directory for what that does not name.
fn start_with(path: &Path, state: &Path) -> Skep {
    let mut command = command();
    command.env("STATE_DIRECTORY", state).args(["--listen", "127.0.0.1:0", "--config"]).arg(path);
    Skep::spawn(command)
}

#[test]
fn sighup_does_not_act_on_another_state_directory() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("skep.toml");
    let write = |state: &str| {
        let state = temporary.path().join(state);
        fs::write(&path, format!("[server]\nstate_dir = {state:?}\n")).unwrap();
    };
    write("old");
    let skep = start_with(&path, temporary.path());
    let mut client = Client::connect(skep.udp[0]);
    write("new");
    skep.signal("HUP");
    let log = skep.log_with("not reloaded, needs a restart: ");
    assert!(log.contains("server.state_dir"), "{log}");
    assert!(!log.contains("nothing has changed"), "{log}");
    client.announce(&leecher(6, 6881)); // met with silence if the key were another
    assert!(!temporary.path().join("new").exists(), "created before its time");
}

#[test]
fn keys_that_are_made_up_never_replace_others() {
    let temporary = tempfile::tempdir().unwrap();
    let (path, key_path) = (temporary.path().join("skep.toml"), temporary.path().join("key"));
    fs::write(&key_path, "0e".repeat(32)).unwrap();
    fs::write(&path, format!("[udp]\nkey_file = {key_path:?}\n")).unwrap();
    let skep = start_with(&path, Path::new("/proc/nowhere"));
    let mut client = Client::connect(skep.udp[0]);
    fs::write(&path, "").unwrap();
    skep.signal("HUP");
    skep.log_with("connection-id keys not reloaded");
    skep.log_with("reloaded: udp.key_file");
    client.announce(&leecher(6, 6881));
}

#[test]
fn reloads_go_on_in_order_while_probes_and_pages_are_answered() {
    const ENTRIES: u32 = 200_000;
    let temporary = tempfile::tempdir().unwrap();
    let (path, list) = (temporary.path().join("skep.toml"), temporary.path().join("list"));
    // A list that takes longer to read than a page to be answered.
    let entries = (0..ENTRIES).map(|it| format!("{}\n", Ipv4Addr::from(0x0a00_0000 + it)));
    fs::write(&list, entries.collect::<String>()).unwrap();
    let set = |interval_s: u32| {
        let text =
            format!("[tracker]\ninterval_s = {interval_s}\n[access]\nnetworks_deny = {list:?}\n");
        fs::write(&path, text).unwrap();
    };
    set(1000);
    let mut skep = start_with(&path, temporary.path());
    for (interval_s, said) in [(1100, "1100 (was 1000)"), (1200, "1200 (was 1100)")] {
        set(interval_s);
        skep.signal("HUP");
        for page in ["/livez", "/readyz", "/metrics", "/api/v1/access/networks/deny?limit=1"] {
            assert_eq!(skep.get(page).0, 200, "{page}");
        }
        skep.log_with(&format!("reloaded: tracker.interval_s = {said}"));
    }
    // One that is under way keeps nobody from stopping.
    skep.signal("HUP");
    skep.signal("TERM");
    assert_eq!(skep.wait().code(), Some(0));
}

/// Sends SIGTERM to a child, and waits for its end.
fn terminate(child: Child) -> Output {
    let kill = format!("kill -TERM {}", child.id());
    assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    child.wait_with_output().unwrap()
}

#[test]
fn a_signal_ends_a_start_that_waits_for_a_pipe() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--config"]).arg(&path);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    // Opening waits for the reader: the settings are being read from here on.
    let _writer = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let output = terminate(child);
    assert_eq!(output.status.signal(), Some(libc::SIGTERM), "{}", texts(&output).1);
}

#[test]
fn a_signal_during_the_start_waits_for_its_end() {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    eventually("it takes signals", || takes_sigterm(child.id()));
    let output = terminate(child);
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("stopping: SIGTERM received"), "{stderr}");
}

#[test]
fn an_address_of_another_skep_is_in_use() {
    let skep = Skep::start(&[]);
    let address = skep.udp[0].to_string();
    let arguments = ["--listen", &address, "--admin", "127.0.0.1:0", "--workers", "1"];
    let output = run(&arguments);
    let (_, stderr) = texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains(&format!("cannot listen on udp {address}")), "{stderr}");
}

fn start_with_io(io: &str) -> Command {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "1", "--io", io]);
    command
}

#[test]
fn where_io_uring_is_denied_it_serves_without_and_says_why() {
    for (errno, reasons) in [(EPERM, ["seccomp", "sysctl"]), (ENOSYS, ["missing", "missing"])] {
        let skep = without_io_uring(errno, || Skep::spawn(start_with_io("auto")));
        assert_eq!(skep.ready_value("io"), "mmsg");
        Client::connect(skep.udp[0]).announce(&leecher(7, 6881));
        let log = skep.log_with("ready ");
        assert_eq!(log.matches("io_uring is not usable").count(), 1, "{log}");
        assert!(log.contains("WARN") && log.contains("remedy: "), "{log}");
        let metrics = skep.metrics();
        let info = |reason| metrics.sum("skep_io_backend_info", &format!("reason=\"{reason}\""));
        assert!(metrics.text.contains("skep_io_backend_info{backend=\"mmsg\""));
        assert!(reasons.into_iter().any(|it| info(it) == 1.0), "{}", metrics.text);
    }
}

#[test]
fn where_io_uring_is_denied_but_demanded_it_does_not_start() {
    for errno in [EPERM, ENOSYS] {
        let mut command = start_with_io("uring");
        command.args(["--admin", "127.0.0.1:0"]);
        let output = without_io_uring(errno, || command.output().unwrap());
        let (_, stderr) = texts(&output);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("remedy: ") && stderr.contains("--io auto"), "{stderr}");
    }
}

#[test]
fn auto_takes_io_uring_where_it_works() {
    if has_io_uring() {
        let skep = Skep::start(&[]);
        assert_eq!(skep.ready_value("io"), "uring");
        assert!(skep.metrics().text.contains("{backend=\"uring\",reason=\"probed\"} 1"));
    }
}

#[test]
fn logs_are_json_on_request() {
    let mut skep = Skep::spawn({
        let mut command = command();
        command.env("SKEP__LOG__FORMAT", "json").args(["--listen", "127.0.0.1:0"]);
        command
    });
    skep.signal("TERM");
    assert!(skep.wait().success());
    for line in skep.log_with("stopping").lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["level"].is_string() && line["message"].is_string(), "{line}");
    }
}

#[test]
fn probe_finds_it_well() {
    for io in backends() {
        let skep = Skep::start(&["--io", io]);
        let urls: Vec<_> = skep.udp.iter().map(|it| format!("udp://{it}/announce?key=1")).collect();
        let output = command().arg("probe").args(&urls).output().unwrap();
        let (stdout, _) = texts(&output);
        assert_eq!(output.status.code(), Some(0), "{stdout}");
        assert_eq!(stdout.matches("  ok\n").count(), urls.len(), "{stdout}");
        let counts = stdout.matches("seeders 0, leechers 1, completed 0").count();
        assert_eq!(counts, urls.len(), "{stdout}");

        let output = run(&["probe", "--json", &urls[0]]);
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report["ok"], true);
        let result = &report["results"][0];
        assert_eq!(result["address"], skep.udp[0].to_string());
        assert_eq!(
            (&result["announce"]["peers"], &result["scrape"]["leechers"]),
            (&0.into(), &1.into())
        );
        assert!(result["connect"]["duration_ms"].as_f64().unwrap() > 0.0);
        let metrics = skep.metrics();
        assert_eq!(metrics.sum("skep_peers", ""), 0.0, "a probe leaves again");
    }
}

#[test]
fn a_stop_is_orderly_under_load() {
    for io in backends() {
        let mut skep = Skep::start(&["--io", io]);
        let client = Client::connect(skep.udp[0]);
        let socket = client.socket.try_clone().unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let flood = std::thread::spawn(move || flood_until_gone(&socket));
        eventually("the flood arrives", || skep.metrics().sum("skep_requests_total", "") > 1e3);
        skep.signal("TERM");
        assert_eq!(skep.wait().code(), Some(0));
        flood.join().unwrap();
    }
}

/// Sends garbage until nobody listens any more.
fn flood_until_gone(socket: &UdpSocket) {
    while socket.send(&[9; 16]).is_ok() {}
}

#[test]
fn a_source_far_over_its_limit_is_denied_by_the_kernel_and_nobody_else() {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0"]).env("SKEP__LIMITS__EXEMPT", "");
    command.env("SKEP__LIMITS__BURST", "16").env("SKEP__LIMITS__KERNEL_DENY_RATE", "100");
    let skep = Skep::spawn(command);
    let from = |source: &str| {
        let socket = UdpSocket::bind((source, 0)).unwrap();
        socket.connect(skep.udp[0]).unwrap();
        Client::over(socket)
    };
    let (mut loud, mut quiet) = (from("127.0.1.1"), from("127.0.2.1"));
    loud.connection_id = loud.ask_connection_id();
    quiet.connection_id = quiet.ask_connection_id();
    let mut announce = [0; ANNOUNCE_BYTES];
    let announcement = leecher(1, 6881);
    encode_announce(loud.connection_id, TransactionId([0; 4]), &announcement, &mut announce);
    eventually("it is denied", || {
        (0..100).for_each(|_| _ = loud.socket.send(&announce));
        skep.metrics().value("skep_kernel_denied_sources") > 0.5
    });
    let log = skep.log_with("sources denied in the kernel");
    assert!(log.contains("worst=127.0.1.1 "), "{log}");
    quiet.announce(&leecher(1, 6882));
    let received = |skep: &Skep| skep.metrics().sum("skep_requests_total", "");
    let before = received(&skep);
    (0..1000).for_each(|_| _ = loud.socket.send(&announce));
    quiet.announce(&leecher(1, 6882));
    assert!(received(&skep) - before < 500.0, "most was dropped before it was received");
}

#[test]
fn a_peer_that_stops_is_forgotten_at_once() {
    let skep = Skep::start(&[]);
    let mut client = Client::connect(skep.udp[0]);
    client.announce(&leecher(8, 6881));
    client.announce(&Announcement { event: Event::Stopped, ..leecher(8, 6881) });
    assert_eq!(client.scrape(&[InfoHash([8; 20])])[0].leechers, 0);
}
