//! What the host withholds or breaks: descriptors, locked memory, system calls, a worker.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use skep::counters::WorkerCounters;
use skep::sys::clock::Clock;
use skep::sys::socket::{UdpOptions, bind_udp};
use skep::time::Now;
use skep::types::{DatagramResponse, Dropped};
use skep::worker::Responder;
use skep::worker::datagram::{DatagramBackend, DatagramWorker};

use crate::support::tcp_clients;
use crate::support::tcp_clients::announce;
use crate::support::udp_load::Steady;
use crate::support::{self, Client, Skep, backends, child_test, command, eventually, leecher};

/// The program behind another one, such as a shell that sets limits first; the arguments of the
/// program follow those given.
fn behind(program: &str, arguments: &[&str], io: &str) -> Command {
    let skep = command();
    let mut command = Command::new(program);
    command.args(arguments).arg(skep.get_program());
    for (name, value) in skep.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command.args(["--listen", "127.0.0.1:0", "--workers", "2", "--io", io]);
    command
}

/// The program under limits that a shell sets.
fn limited(limits: &str, io: &str) -> Command {
    behind("/bin/sh", &["-c", &format!("{limits}; exec \"$0\" \"$@\"")], io)
}

#[test]
fn without_descriptors_udp_goes_on_and_http_comes_back() {
    for io in backends() {
        let skep = Skep::spawn(limited("ulimit -n 120", io));
        let load = Steady::start(skep.udp[0], 2_000);
        let errors = |skep: &Skep| skep.metrics().value("skep_accept_failed_total");
        assert_eq!(errors(&skep), 0.0);
        // More than there can be; those that are not accepted wait in the kernel.
        let held: Vec<_> = (0..150).map(|_| TcpStream::connect(skep.tcp[0]).unwrap()).collect();
        load.wait_for(1_000);
        let (sent, lost) = load.finish();
        assert_eq!(lost, 0, "of {sent} with {io}");
        drop(held);
        assert_eq!(tcp_clients::ask(skep.tcp[0], &announce(1, 1, "")).status, 200);
        assert!(errors(&skep) > 0.0, "there was a shortage");
        assert_eq!(skep.get("/livez").0, 200);
    }
}

#[test]
fn without_locked_memory_it_starts_and_serves() {
    let skep = Skep::spawn(limited("ulimit -l 0", "auto"));
    Client::connect(skep.udp[0]).announce(&leecher(1, 6881));
    assert_eq!(tcp_clients::ask(skep.tcp[0], &announce(1, 1, "")).status, 200);
    if skep.ready_value("io") == "mmsg" && support::has_io_uring() {
        skep.log_with("memlock");
    }
}

/// The program under strace, which makes some of its system calls fail; `None` where there is no
/// strace, or it may not trace.
fn injected(faults: &[&str], io: &str) -> Option<Skep> {
    if !support::has_strace() {
        return None;
    }
    // With -D it is the tracer that is somebody's child, and the program stays ours.
    let mut arguments = vec!["-D", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"];
    for fault in faults {
        arguments.extend(["-e", fault]);
    }
    Some(Skep::spawn(behind("strace", &arguments, io)))
}

#[test]
fn system_calls_that_fail_for_a_moment_lose_nothing() {
    for io in backends() {
        let faults: &[&[&str]] = match io {
            "uring" => &[
                &["trace=io_uring_enter", "inject=io_uring_enter:error=EINTR:when=50+7"],
                &["trace=io_uring_enter", "inject=io_uring_enter:error=EAGAIN:when=50+7"],
                &["trace=io_uring_enter", "inject=io_uring_enter:error=EBUSY:when=50+7"],
            ],
            _ => &[
                &["trace=recvmmsg", "inject=recvmmsg:error=EINTR:when=3+7"],
                &["trace=recvmmsg", "inject=recvmmsg:error=ENOMEM:when=3+7"],
                &["trace=poll", "inject=poll:error=EINTR:when=3+7"],
            ],
        };
        for fault in faults {
            let Some(skep) = injected(fault, io) else { return };
            let load = Steady::start(skep.udp[0], 400);
            load.wait_for(400);
            let (sent, lost) = load.finish();
            assert_eq!(lost, 0, "of {sent}: {fault:?}\n{}", skep.log());
            assert_eq!(skep.get("/livez").0, 200);
        }
    }
}

#[test]
fn responses_that_cannot_be_sent_are_counted_by_cause_and_the_next_ones_leave() {
    let causes = [
        ("EAGAIN", "send_queue_full"),
        ("ENOBUFS", "send_queue_full"),
        ("EPERM", "send_refused"),
        ("EMSGSIZE", "send_failed"),
        ("ENETUNREACH", "send_unreachable"),
    ];
    for (error, event) in causes {
        let fault = format!("inject=sendmmsg:error={error}:when=3+5");
        let Some(skep) = injected(&["trace=sendmmsg", &fault], "mmsg") else { return };
        let event = format!("skep_io_events_total{{event=\"{event}\"}}");
        eventually("a reply is lost, and counted", || {
            assert!(try_connect(skep.udp[0]), "within five tries one arrives");
            skep.metrics().value(&event) >= 2.0
        });
        let metrics = skep.metrics();
        let answered = metrics.sum("skep_responses_total", "family=\"ipv4\"");
        assert_eq!(answered, metrics.sum("skep_requests_total", "family=\"ipv4\""));
    }
}

/// Asks for a connection id up to five times.
fn try_connect(address: SocketAddr) -> bool {
    let client = Client::unconnected(address);
    client.socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let request = [0, 0, 4, 23, 39, 16, 25, 128, 0, 0, 0, 0, 1, 2, 3, 4];
    (0..5).any(|_| {
        client.send(&request);
        client.socket.recv(&mut [0; 16]).is_ok()
    })
}

/// Breaks at the first datagram.
struct Broken;

impl Responder for Broken {
    const PREFETCH_STAGES: usize = 0;

    fn prefetch(&mut self, _stage: usize, _datagram: &[u8]) {}

    fn handle(
        &mut self,
        _now: Now,
        _source: SocketAddr,
        _datagram: &[u8],
        _out: &mut [u8],
    ) -> Result<DatagramResponse, Dropped> {
        panic!("a bug")
    }

    fn upkeep(&mut self, _now: Now) {}

    fn set_queue(&mut self, _queue_permille: u32) {}
}

/// What tells this program that it is the process that is to break.
const BREAKS: &str = "SKEP_TEST_WORKER_BREAKS";

#[test]
fn a_panic_in_one_worker_ends_the_process() {
    if std::env::var_os(BREAKS).is_some() {
        return break_a_worker();
    }
    let mut child = child_test(module_path!(), "a_panic_in_one_worker_ends_the_process")
        .env(BREAKS, "1")
        .env("RUST_BACKTRACE", "0") // debug symbols would take longer to read than all the rest
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains(ABOUT_TO_BREAK) {
        assert!(stderr.read_line(&mut text).unwrap() > 0, "{text}");
    }
    stderr.read_to_string(&mut text).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(6), "{text}");
    assert!(text.contains("a bug"), "{text}");
}

/// What the process that is to break says before it does.
const ABOUT_TO_BREAK: &str = "about to break";

/// Serves with a worker that breaks, as the program does, beside a thread that would go on.
fn break_a_worker() {
    // A core dump would count as part of the end. One byte prevents it where it would be a file,
    // and 1 is what the kernel takes for "none" where it would go to a program, unlike 0.
    let bytes_max = rlimit::Resource::CORE.get_hard().unwrap().min(1);
    rlimit::Resource::CORE.set(bytes_max, bytes_max).unwrap();
    skep::server::end_with_any_panic();
    let socket = bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap();
    let address = socket.address();
    let worker = std::thread::spawn(move || {
        DatagramWorker {
            backend: DatagramBackend::Mmsg,
            sockets: &[socket],
            clock: &Clock::start(),
            counters: &WorkerCounters::default(),
            stop: &AtomicBool::new(false),
        }
        .run(&mut Broken)
    });
    eprintln!("{ABOUT_TO_BREAK}");
    UdpSocket::bind("127.0.0.1:0").unwrap().send_to(b"break", address).unwrap();
    eventually("the worker breaks", || worker.is_finished());
    std::process::exit(0); // the panic has ended a thread, and not the process
}

#[test]
fn what_is_confined_still_reloads_and_edits_its_lists() {
    let folder = tempfile::tempdir().unwrap();
    let list = folder.path().join("ports");
    std::fs::write(&list, "25\n").unwrap();
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0"]).env("SKEP__ACCESS__PORTS_DENY", &list);
    let skep = Skep::spawn(command);
    if skep.log_with("ready ").contains("no Landlock") {
        return eprintln!("skipped: this kernel has no Landlock");
    }
    skep.log_with("confined");
    let edited = skep.ask(("PUT", "/api/v1/access/ports/deny/26"), "{\"reason\":\"mail\"}");
    assert_eq!(edited.0, 200, "{edited:?}");
    assert!(std::fs::read_to_string(&list).unwrap().contains("26"));
    std::fs::write(&list, "25\n26\n27\n").unwrap();
    skep.signal("HUP");
    skep.log_with("reloaded");
    for port in [25, 26, 27] {
        assert!(!Client::connect(skep.udp[0]).announce_refused(&leecher(1, port)).is_empty());
    }
}

#[test]
fn a_reload_says_which_lists_it_cannot_write_before_a_restart() {
    let [folder, other] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let settings = folder.path().join("skep.toml");
    let name = |list: &Path| {
        std::fs::write(list, "25\n").unwrap();
        std::fs::write(&settings, format!("[access]\nports_deny = {list:?}\n")).unwrap();
    };
    name(&folder.path().join("ports"));
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--config"]).arg(&settings);
    let skep = Skep::spawn(command);
    if skep.log_with("ready ").contains("no Landlock") {
        return eprintln!("skipped: this kernel has no Landlock");
    }
    let edit = || skep.ask(("PUT", "/api/v1/access/ports/deny/26"), "").0;
    assert_eq!(edit(), 200);
    name(&other.path().join("ports"));
    skep.signal("HUP");
    let closed = format!("lists cannot be edited through the API path={} ", other.path().display());
    assert!(skep.log_with(&closed).contains("reloaded: access.ports_deny"));
    assert_ne!(edit(), 200);
    skep.signal("HUP");
    let log = skep.log_with("reloaded: nothing has changed");
    assert_eq!(log.matches(&closed).count(), 1, "logged once: {log}");
}

#[test]
fn a_key_that_the_new_user_may_not_read_keeps_no_other_setting_from_being_reloaded() {
    if !skep::sys::identity::UnixUser::can_change() {
        return eprintln!("skipped: this is not root");
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let [settings, key] = ["skep.toml", "key"].map(|it| folder.path().join(it));
    let set = |interval_s: u32| {
        let rest = format!("[tracker]\ninterval_s = {interval_s}\n");
        std::fs::write(&settings, format!("[udp]\nkey_file = {key:?}\n{rest}")).unwrap();
    };
    set(1000);
    std::fs::write(&key, "0e".repeat(32)).unwrap();
    std::fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--config"]).arg(&settings);
    let skep = Skep::spawn({
        command.env("SKEP__SERVER__USER", "65534");
        command
    });
    let mut client = Client::connect(skep.udp[0]);
    set(1100);
    skep.signal("HUP");
    let log = skep.log_with("reloaded: tracker.interval_s = 1100 (was 1000)");
    assert!(log.contains("connection-id keys not reloaded error=cannot read"), "{log}");
    client.announce(&leecher(1, 6881)); // met with silence if the key were another
}

#[test]
fn started_as_root_it_becomes_the_user_that_is_named() {
    if !skep::sys::identity::UnixUser::can_change() {
        return eprintln!("skipped: this is not root");
    }
    let start = || {
        let mut command = command();
        command.args(["--listen", "127.0.0.1:0"]).env("SKEP__SERVER__USER", "65534");
        command
    };
    let mut skep = Skep::spawn(start());
    let status = std::fs::read_to_string(format!("/proc/{}/status", skep.id())).unwrap();
    let line = |key: &str| status.lines().find_map(|it| it.strip_prefix(key)).unwrap().to_owned();
    for key in ["Uid:", "Gid:"] {
        assert!(line(key).split_whitespace().all(|it| it == "65534"), "{key}{}", line(key));
    }
    assert_eq!(u64::from_str_radix(line("CapEff:").trim(), 16).unwrap(), 0);
    let mut client = Client::connect(skep.udp[0]);
    client.announce(&leecher(1, 6881));
    skep.signal("HUP");
    skep.log_with("reloaded: nothing has changed");
    // Root replaces it, and becomes the same user.
    let state = skep.state.take().unwrap();
    let mut next = start();
    next.args(["--take-over"]).env("STATE_DIRECTORY", state.path());
    let second = Skep::spawn(next);
    assert_eq!(skep.wait().code(), Some(0), "{}", skep.log());
    client.announce(&leecher(1, 6881));
    eventually("it is ready", || second.get("/readyz").0 == 200);
    let mut unknown = command();
    unknown.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    let output = unknown.env("SKEP__SERVER__USER", "no-such-user").output().unwrap();
    let (_, log) = support::texts(&output);
    assert_eq!(output.status.code(), Some(1));
    assert!(log.contains("there is no user no-such-user; remedy"), "{log}");
}

#[test]
fn a_snapshot_that_is_being_written_gives_way_and_does_not_delay_the_end() {
    // The disk takes long: the thread can be looked at, and the end comes meanwhile.
    let delays = ["trace=fsync", "inject=fsync:delay_enter=500000:when=1"];
    let Some(mut skep) = injected(&delays, "mmsg") else { return };
    let (admin, token) = (skep.admin, skep.token());
    let save = ("POST", "/api/v1/save");
    let asked = std::thread::spawn(move || support::http_ask(admin, &token, save, ""));
    let tasks = format!("/proc/{}/task", skep.id());
    eventually("a thread saves, and gives way", || {
        let tasks = std::fs::read_dir(&tasks).unwrap();
        let stats =
            tasks.filter_map(|it| std::fs::read_to_string(it.ok()?.path().join("stat")).ok());
        // The name is in parentheses; niceness is the 17th field behind it (proc_pid_stat(5)).
        let mut saving = stats.filter(|it| it.contains("(snapshot-save)"));
        saving.any(|it| it.rsplit(") ").next().unwrap().split(' ').nth(16) == Some("19"))
    });
    skep.signal("TERM");
    assert_eq!(skep.wait().code(), Some(0));
    assert!(skep.log().contains("last snapshot saved"), "{}", skep.log());
    drop(asked.join());
}
