//! Restart without a lost packet: the real program, replaced under load by itself.
#![allow(clippy::disallowed_methods, reason = "how long something took is what is tested")]

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep::sys::descriptors;
use skep::sys::serving_lock::ServingLock;
use skep::types::InfoHash;

use crate::support::tcp_clients::{self, Browser, announce, exchange};
use crate::support::udp_load::Steady;
use crate::support::{
    self, Client, DEADLINE, Skep, backends, command, eventually, http_get, leecher, run, seeder,
    takes_sigterm, texts,
};

/// Announces a second: what a development build of both takes on two cores with room to spare.
const RATE: u32 = 8_000;

/// A tracker on one address, its port chosen by the kernel.
fn first(io: &str, arguments: &[&str]) -> Skep {
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "2", "--io", io]).args(arguments);
    Skep::spawn(command)
}

/// What is to take over from the tracker with this state directory.
fn successor_command(state: &Path, arguments: &[&str]) -> Command {
    let mut command = command();
    command.args(["run", "--take-over", "--listen", "127.0.0.1:0"]).args(arguments);
    command.env("STATE_DIRECTORY", state);
    command
}

fn successor(state: &Path, arguments: &[&str]) -> Skep {
    Skep::spawn(successor_command(state, arguments))
}

#[test]
fn every_datagram_is_answered_while_one_tracker_takes_over_from_the_other_and_a_third_from_it() {
    let backends = backends();
    for (number, io) in backends.iter().enumerate() {
        let other = backends[(number + 1) % backends.len()];
        let mut first = first(io, &[]);
        let state = first.state.take().unwrap();
        let address = first.udp[0];
        let load = Steady::start(address, RATE);
        load.wait_for(2_000);
        let mut second = successor(state.path(), &["--workers", "2", "--io", other]);
        assert_eq!((&second.udp, &second.tcp), (&first.udp, &first.tcp));
        assert_eq!(first.wait().code(), Some(0), "{}", first.log());
        load.wait_for(2_000);
        let third = successor(state.path(), &["--workers", "2", "--io", io]);
        assert_eq!(second.wait().code(), Some(0), "{}", second.log());
        load.wait_for(2_000);
        let (sent, lost) = load.finish();
        assert!(sent > 6_000);
        assert_eq!(lost, 0, "of {sent}, {io} to {other} and back\n{}", third.log());
        third.log_with("take-over complete");
        assert!(third.state.is_some() && state.path().join("handover.sock").exists());
    }
}

#[test]
fn sockets_are_served_by_however_many_workers_there_are() {
    for workers in ["1", "3"] {
        let mut first = first("auto", &[]);
        let state = first.state.take().unwrap();
        let load = Steady::start(first.udp[0], RATE);
        load.wait_for(1_000);
        let second = successor(state.path(), &["--workers", workers]);
        assert_eq!(second.ready_value("workers"), workers);
        assert_eq!(first.wait().code(), Some(0));
        load.wait_for(2_000);
        let (sent, lost) = load.finish();
        assert_eq!(lost, 0, "of {sent}, with {workers} workers\n{}", second.log());
        for port in 1..=50 {
            Client::connect(second.udp[0]).announce(&leecher(7, port));
            assert_eq!(tcp_clients::ask(second.tcp[0], &announce(8, port, "")).status, 200);
        }
    }
}

#[test]
fn ids_stay_valid_and_swarms_go_on_growing() {
    let mut first = first("auto", &[]);
    let state = first.state.take().unwrap();
    let mut client = Client::connect(first.udp[0]);
    client.announce(&seeder(1, 6881));
    let second = successor(state.path(), &[]);
    first.wait();
    client.announce(&leecher(1, 6882));
    assert_eq!(client.scrape(&[InfoHash([1; 20])])[0].leechers, 1);
    assert_eq!(second.metrics().sum("skep_dropped_total", ""), 0.0);
}

#[test]
fn requests_over_http_are_answered_or_can_be_asked_again() {
    for io in backends() {
        let mut first = first(io, &[]);
        let state = first.state.take().unwrap();
        let address = first.tcp[0];
        let (asking, answered, again) =
            (AtomicBool::new(true), AtomicU64::new(0), AtomicU64::new(0));
        let second = std::thread::scope(|scope| {
            for number in 0..4 {
                let counts = (&asking, &answered, &again);
                scope.spawn(move || keep_asking(address, number, counts));
            }
            let _stop = Lower(&asking);
            let wait_for = |more| {
                let enough = answered.load(Ordering::Relaxed) + more;
                eventually("answers", || answered.load(Ordering::Relaxed) >= enough);
            };
            wait_for(200);
            let second = successor(state.path(), &["--io", io]);
            assert_eq!(first.wait().code(), Some(0), "{}", first.log());
            wait_for(200);
            second
        });
        // A connection each, perhaps another that had just been opened.
        assert!(again.load(Ordering::Relaxed) <= 8, "{again:?} retries");
        drop(second);
    }
}

#[test]
fn who_stops_over_http_on_a_connection_of_before_does_not_come_back_with_the_snapshot() {
    let mut first = first("auto", &[]);
    let state = first.state.take().unwrap();
    let mut stream = TcpStream::connect(first.tcp[0]).unwrap();
    assert!(ask(&mut stream, &announce(1, 6881, "")).is_some());
    Client::connect(first.udp[0]).announce(&seeder(1, 6882));
    // Half a request on another connection; the one above waits for its next, and ends.
    let mut stream = TcpStream::connect(first.tcp[0]).unwrap();
    let request = announce(1, 6881, "&event=stopped");
    stream.write_all(format!("GET {request} HTTP/1.1\r\n").as_bytes()).unwrap();
    let second = successor(state.path(), &[]);
    stream.write_all(b"Host: localhost\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    let mut client = Client::connect(second.udp[0]);
    eventually("what was saved", || second.metrics().sum("skep_peers", "") > 0.0);
    let entry = client.scrape(&[InfoHash([1; 20])])[0];
    assert_eq!((entry.seeders, entry.leechers), (1, 0));
}

/// Lowers a flag, however the scope ends.
struct Lower<'a>(&'a AtomicBool);

impl Drop for Lower<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Announces over HTTP, on connections that are kept and on new ones in turn. What is cut off while
/// a response is waited for is asked again on another connection, once.
fn keep_asking(
    address: SocketAddr,
    number: u16,
    (asking, answered, again): (&AtomicBool, &AtomicU64, &AtomicU64),
) {
    let mut kept: Option<TcpStream> = None;
    let mut port = 1;
    while asking.load(Ordering::Relaxed) {
        port = port % 60_000 + 1;
        let target = announce(u8::try_from(number).unwrap(), port, "");
        let is_kept = kept.is_some();
        let mut stream = kept.take().unwrap_or_else(|| TcpStream::connect(address).unwrap());
        if let Some(is_open) = ask(&mut stream, &target) {
            answered.fetch_add(1, Ordering::Relaxed);
            kept = Some(stream).filter(|_| is_open && port % 4 != 0);
        } else {
            assert!(is_kept, "the first request of a connection is answered");
            again.fetch_add(1, Ordering::Relaxed);
            let mut other = TcpStream::connect(address).unwrap();
            assert!(ask(&mut other, &target).is_some(), "asked again in vain");
        }
    }
}

/// One request: whether the connection stays open; `None` where it was cut off.
fn ask(stream: &mut TcpStream, target: &str) -> Option<bool> {
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let request = format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|it| it.strip_prefix("content-length: ")).unwrap();
    let mut body = vec![0; length.parse().unwrap()];
    stream.read_exact(&mut body).ok()?;
    Some(!head.contains("connection: close"))
}

#[test]
fn web_sockets_are_told_to_reconnect_over_the_drain() {
    let mut old = command();
    old.args(["--listen", "127.0.0.1:0"]).env("SKEP__SERVER__DRAIN_S", "2");
    let mut first = Skep::spawn(old);
    let state = first.state.take().unwrap();
    let browsers: Vec<_> = (0..20).map(|_| Browser::open(first.tcp[0], None)).collect();
    let waiting = browsers
        .into_iter()
        .map(|mut it| std::thread::spawn(move || (it.closed_with(), Instant::now())));
    let waiting: Vec<_> = waiting.collect();
    let second = successor(state.path(), &[]);
    let ends: Vec<_> = waiting.into_iter().map(|it| it.join().unwrap()).collect();
    assert!(ends.iter().all(|it| it.0 == Some(1001)), "{ends:?}");
    let times = || ends.iter().map(|it| it.1);
    let spread = times().max().unwrap() - times().min().unwrap();
    assert!(spread >= Duration::from_secs(1), "{spread:?}");
    assert_eq!(first.wait().code(), Some(0));
    let mut again = Browser::open(first.tcp[0], None);
    let response = again.ask(&tcp_clients::web_announce(1, 1, 0, 0));
    assert_eq!(response["complete"], 1);
    drop(second);
}

#[test]
fn a_successor_that_fails_leaves_the_tracker_as_it_was() {
    let first = first("auto", &[]);
    let state = first.state.as_ref().unwrap().path().to_owned();
    let load = Steady::start(first.udp[0], RATE / 4);
    let (udp, _) = support::udp_and_tcp();
    let busy = udp.local_addr().unwrap().to_string();
    for (arguments, code, said) in [
        (vec!["--workers", "nine"], 2, "--workers"),
        (vec!["--listen", &busy], 1, "ss -lnp"),
        (vec!["--admin", "192.0.2.1:1"], 1, "remedy"),
    ] {
        let mut command = successor_command(&state, &arguments);
        let output = command.output().unwrap();
        let (_, log) = texts(&output);
        assert_eq!(output.status.code(), Some(code), "{log}");
        assert!(log.contains(said), "{log}");
        assert_eq!(first.get("/readyz").0, 200);
        load.wait_for(100);
    }
    first.log_with("take-over failed, this tracker continues");
    let (sent, lost) = load.finish();
    assert_eq!(lost, 0, "of {sent}");
    assert_eq!(tcp_clients::ask(first.tcp[0], &announce(1, 1, "")).status, 200);
    let second = successor(&state, &[]);
    assert_eq!(second.udp, first.udp);
}

/// A predecessor of our own making, without sockets.
struct Puppet {
    listener: Option<socket2::Socket>,
    line: Option<socket2::Socket>,
    /// Of what it has the right to serve by.
    lock: Option<ServingLock>,
}

impl Puppet {
    /// One that is asked for its sockets by what `start` starts, and then does what `act` does.
    fn asked<T: Send>(
        state: &Path,
        start: impl FnOnce() -> T + Send,
        act: impl FnOnce(&mut Self),
    ) -> (Self, T) {
        let listener = descriptors::listen(&state.join("handover.sock")).unwrap();
        descriptors::set_timeouts(&listener, DEADLINE).unwrap();
        std::thread::scope(|scope| {
            let started = scope.spawn(start);
            let line = listener.accept().expect("a successor").0;
            descriptors::set_timeouts(&line, DEADLINE).unwrap();
            let lock = ServingLock::new().unwrap();
            descriptors::send(&line, br#"{"say":"lock"}"#, &[lock.as_fd()]).unwrap();
            let mut puppet = Self { listener: Some(listener), line: Some(line), lock: Some(lock) };
            assert!(puppet.hear().contains("ask"));
            puppet.say(r#"{"say":"sockets","sockets":[],"last":true}"#);
            act(&mut puppet);
            (puppet, started.join().unwrap())
        })
    }

    /// Gives the successor up, and goes on.
    fn give_up(&mut self) {
        self.line = None;
    }

    fn end(&mut self) {
        *self = Self { listener: None, line: None, lock: None };
    }

    fn hear_serving(&mut self) {
        assert!(self.hear().contains("serving"));
    }

    fn leave(&mut self) {
        self.hear_serving();
        self.say_left();
    }

    fn say_left(&mut self) {
        self.listener = None;
        self.lock.as_ref().unwrap().release().unwrap();
        self.say(r#"{"say":"left"}"#);
    }

    fn hear(&self) -> String {
        let mut text = [0; 1024];
        let (bytes, _) = descriptors::receive(self.line.as_ref().unwrap(), &mut text).unwrap();
        String::from_utf8(text[..bytes].to_vec()).unwrap()
    }

    fn say(&self, text: &str) {
        descriptors::send(self.line.as_ref().unwrap(), text.as_bytes(), &[]).unwrap();
    }
}

#[test]
fn a_successor_whose_predecessor_serves_on_ends_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let mut command = successor_command(folder.path(), &["--admin", "127.0.0.1:0"]);
    let (_predecessor, output) =
        Puppet::asked(folder.path(), || command.output().unwrap(), Puppet::give_up);
    let (stdout, log) = texts(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{log}");
    assert!(log.contains("the running tracker continues") && log.contains("remedy"), "{log}");
}

#[test]
fn a_successor_whose_predecessor_has_ended_serves() {
    let folder = tempfile::tempdir().unwrap();
    let start = || successor(folder.path(), &[]);
    let (_predecessor, second) = Puppet::asked(folder.path(), start, Puppet::end);
    second.log_with("predecessor ended early, taking over without it");
    Client::connect(second.udp[0]).announce(&leecher(1, 6881));
}

/// A process that may never be ready; killed when dropped.
struct Unready {
    child: Child,
    log: BufReader<ChildStderr>,
}

impl Unready {
    fn spawn(mut command: Command) -> Self {
        command.args(["--admin", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    fn terminate(&self) {
        let kill = format!("kill -TERM {}", self.child.id());
        assert!(Command::new("/bin/sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Reads its log until it holds `needle`, or to its end.
    fn log_with(&mut self, needle: &str) {
        let mut text = String::new();
        while !text.contains(needle) {
            assert!(self.log.read_line(&mut text).unwrap() > 0, "no {needle:?} in\n{text}");
        }
    }

    /// How it ended, and what it wrote to standard output.
    fn wait(mut self) -> (Option<i32>, String) {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let mut text = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        (status.unwrap().code(), text)
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts successors that are told to end once they take signals, and checks that nothing is lost.
/// Says whether all were in time: one that serves before the signal comes takes over.
fn end_successors_early(io: &str) -> bool {
    let first = first(io, &[]);
    let state = first.state.as_ref().unwrap().path();
    let load = Steady::start(first.udp[0], RATE);
    for _ in 0..5 {
        let successor = Unready::spawn(successor_command(state, &["--io", io]));
        eventually("it takes signals", || takes_sigterm(successor.child.id()));
        successor.terminate();
        let (code, ready) = successor.wait();
        assert_eq!(code, Some(0));
        if !ready.is_empty() {
            return false;
        }
        load.wait_for(500);
    }
    first.log_with("take-over failed, this tracker continues");
    assert_eq!(first.get("/readyz").0, 200);
    let (sent, lost) = load.finish();
    assert_eq!(lost, 0, "of {sent} with {io}");
    true
}

#[test]
fn a_successor_that_is_told_to_end_before_it_serves_loses_no_datagram() {
    for io in backends() {
        assert!((0..20).any(|_| end_successors_early(io)), "{io}: none was in time");
    }
}

/// A successor that has said that it serves, and was told to end then.
fn told_while_relieving(state: &Path) -> (Puppet, Unready) {
    let start = || Unready::spawn(successor_command(state, &[]));
    let (predecessor, mut successor) = Puppet::asked(state, start, Puppet::hear_serving);
    successor.terminate();
    successor.log_with("stop requested, waiting for the predecessor to leave");
    (predecessor, successor)
}

#[test]
fn a_successor_that_is_told_to_end_waits_for_its_predecessor_but_not_for_long() {
    let folder = tempfile::tempdir().unwrap();
    let (predecessor, mut successor) = told_while_relieving(folder.path());
    successor.log_with("predecessor did not leave in time");
    assert_eq!(successor.wait(), (Some(0), String::new()));
    drop(predecessor);
    let folder = tempfile::tempdir().unwrap();
    let (mut predecessor, successor) = told_while_relieving(folder.path());
    predecessor.say_left();
    predecessor.say(r#"{"say":"saved"}"#);
    let (code, ready) = successor.wait();
    assert!(code == Some(0) && ready.starts_with("ready "), "{code:?} {ready}");
}

#[test]
fn a_successor_is_ready_once_it_has_what_its_predecessor_saves_last() {
    let folder = tempfile::tempdir().unwrap();
    let lock = lock_snapshots(folder.path());
    let start = || successor(folder.path(), &[]);
    let (predecessor, second) = Puppet::asked(folder.path(), start, Puppet::leave);
    second.log_with("INFO snapshots waiting: another skep process uses this state directory");
    let (status, text) = second.get("/readyz");
    assert!(status == 503 && text.contains("restoring"), "{status} {text}");
    drop(lock);
    predecessor.say(r#"{"say":"saved"}"#);
    eventually("it is ready", || second.get("/readyz").0 == 200);
}

#[test]
fn a_successor_waits_for_nobody_but_its_predecessor() {
    let folder = tempfile::tempdir().unwrap();
    let _lock = lock_snapshots(folder.path());
    let start = || successor(folder.path(), &[]);
    let (predecessor, second) = Puppet::asked(folder.path(), start, Puppet::leave);
    assert_eq!(second.get("/readyz").0, 503);
    predecessor.say(r#"{"say":"saved"}"#);
    eventually("it is ready", || second.get("/readyz").0 == 200);
}

/// Keeps snapshots in this directory, as another process would.
fn lock_snapshots(state: &Path) -> File {
    let file = File::create(state.join("swarms.snapshot.lock")).unwrap();
    file.lock().unwrap();
    file
}

#[test]
fn where_nobody_is_to_be_replaced_the_remedy_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = successor_command(folder.path(), &["--admin", "127.0.0.1:0"]).output().unwrap();
    let (stdout, log) = texts(&output);
    assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""));
    assert!(log.contains("handover.sock") && log.contains("start without --take-over"), "{log}");
    let stateless = run(&["run", "--take-over", "--listen", "127.0.0.1:0"]);
    assert_eq!(stateless.status.code(), Some(1), "{}", texts(&stateless).1);
}

#[test]
fn addresses_may_change_with_a_take_over() {
    let mut first = first("auto", &["--listen", "127.0.0.2:0"]);
    let state = first.state.take().unwrap();
    let second = successor(state.path(), &["--listen", "127.0.0.3:0"]);
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(second.udp[0], first.udp[0]);
    assert_eq!(second.udp[1].ip().to_string(), "127.0.0.3");
    second.log_with(&format!("passed socket closed: not configured socket=udp {}", first.udp[1]));
    Client::connect(second.udp[1]).announce(&leecher(1, 6881));
    assert!(TcpStream::connect(first.tcp[1]).is_err());
    assert!(UdpSocket::bind(first.udp[1]).is_ok(), "nobody has it any more");
}

#[test]
fn a_successor_is_found_by_subcommands_after_its_predecessor_has_ended() {
    let mut predecessor = first("auto", &[]);
    let folder = predecessor.folder().to_owned();
    let mut next = successor(&folder, &["--admin", "127.0.0.1:0"]);
    assert!(predecessor.wait().success());
    let found = || {
        let mut health = command();
        health.arg("health").env("STATE_DIRECTORY", &folder);
        let output = health.env("SKEP__ADMIN__LISTEN", "127.0.0.1:0").output().unwrap();
        (output.status.code(), texts(&output).0)
    };
    assert_eq!(found(), (Some(0), format!("skep at {} is well\n", next.admin)));
    next.signal("TERM");
    assert!(next.wait().success());
    assert_eq!(found(), (Some(1), String::new()));
}

#[test]
fn registrations_go_over_and_can_be_changed_afterwards() {
    let registered = ["SKEP__ACCESS__MODE", "registered"];
    let start = |mut command: Command| {
        command.env(registered[0], registered[1]);
        Skep::spawn(command)
    };
    let mut old = command();
    old.args(["--listen", "127.0.0.1:0", "--workers", "1"]);
    let mut first = start(old);
    let state = first.state.take().unwrap();
    let register = |skep: &Skep, torrent: &str| {
        let hash = torrent.repeat(20);
        let body = format!("{{\"info_hash\":\"{hash}\"}}");
        // The successor has the predecessor's token: both are asked with the one file's.
        let token = std::fs::read_to_string(state.path().join("admin.token")).unwrap();
        support::http_ask(skep.admin, token.trim(), ("POST", "/api/v1/torrents"), &body).0
    };
    assert_eq!(register(&first, "01"), 201);
    // One that fails gives the database back.
    let mut failing = successor_command(state.path(), &["--admin", "192.0.2.1:1"]);
    assert_eq!(failing.env(registered[0], registered[1]).output().unwrap().status.code(), Some(1));
    eventually("the database is back", || register(&first, "02") == 201);
    let second = start(successor_command(state.path(), &[]));
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    let mut client = Client::connect(second.udp[0]);
    for torrent in [1, 2] {
        client.announce(&leecher(torrent, 6881));
    }
    assert!(!client.announce_refused(&leecher(3, 6881)).is_empty());
    assert_eq!(register(&second, "03"), 201);
    client.announce(&leecher(3, 6881));
}

#[test]
fn the_unix_socket_goes_over_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("http.sock");
    let start = |mut command: Command| {
        command.env("SKEP__HTTP__UNIX_SOCKET", &path);
        Skep::spawn(command)
    };
    let mut old = command();
    old.args(["--listen", "127.0.0.1:0"]);
    let mut first = start(old);
    let state = first.state.take().unwrap();
    let second = start(successor_command(state.path(), &[]));
    assert_eq!(first.wait().code(), Some(0));
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let target = announce(1, 1, "");
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n");
    assert_eq!(exchange(&mut stream, &request).status, 200);
    let mut second = second;
    second.signal("TERM");
    second.wait();
    assert!(!path.exists(), "it goes with its last owner");
}

#[test]
fn while_it_is_taken_over_the_admin_pages_are_one_or_the_others() {
    let mut first = first("auto", &[]);
    let state = first.state.take().unwrap();
    let second = successor(state.path(), &[]);
    assert_eq!(second.admin, first.admin);
    assert_eq!(first.wait().code(), Some(0));
    assert_eq!(http_get(first.admin, "/livez").0, 200);
    eventually("what the first has saved last is restored", || {
        http_get(first.admin, "/readyz").0 == 200
    });
}
