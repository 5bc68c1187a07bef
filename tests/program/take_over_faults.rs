//! A take-over in which something is lacking, dies or stands still: at every step one of the two
//! trackers serves, and never both.
#![allow(clippy::disallowed_methods, reason = "how long something took is what is tested")]

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustls::ClientConfig;
use skep::sys::descriptors;
use skep::sys::serving_lock::ServingLock;

use crate::support::tcp_clients::{self, Certificate, announce};
use crate::support::{Client, DEADLINE, Skep, backends, command, eventually, leecher};

/// Where a tracker serves, and how its TLS is trusted.
struct Served {
    udp: SocketAddr,
    tcp: SocketAddr,
    tls: SocketAddr,
    client: Arc<ClientConfig>,
}

impl Served {
    /// Holds that each of them is answered.
    fn holds(&self) {
        let mut client = Client::connect(self.udp);
        client.announce(&leecher(1, 1));
        assert_eq!(tcp_clients::ask(self.tcp, &announce(1, 1, "")).status, 200);
        let tls = Some(&self.client);
        assert_eq!(tcp_clients::ask_with(self.tls, tls, &announce(1, 1, ""), "").status, 200);
    }
}

/// What all trackers of a test share: their state directory and the certificate.
struct Home {
    folder: tempfile::TempDir,
    certificate: Certificate,
}

impl Home {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let certificate = Certificate::write(folder.path());
        Self { folder, certificate }
    }

    fn state(&self) -> &Path {
        self.folder.path()
    }

    /// The program with everything that it serves by, on ports of the kernel's choice or those that
    /// are taken over; behind a shell that sets limits first.
    fn command(&self, limits: &str, arguments: &[&str]) -> Command {
        let skep = command();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &format!("{limits} exec \"$0\" \"$@\"")]).arg(skep.get_program());
        command.args(arguments).args(["--listen", "127.0.0.1:0", "--workers", "2"]);
        for (name, value) in skep.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
            .env("STATE_DIRECTORY", self.state())
            .env("SKEP__TLS__LISTEN", "127.0.0.1:0")
            .env("SKEP__TLS__CERTIFICATE", &self.certificate.certificate)
            .env("SKEP__TLS__KEY", &self.certificate.key);
        command
    }

    fn first(&self, io: &str) -> (Skep, Served) {
        self.first_with(io, 0)
    }

    /// The first tracker, which drains for so long.
    fn first_with(&self, io: &str, drain_s: u32) -> (Skep, Served) {
        let mut command = self.command("", &["run", "--io", io]);
        command.env("SKEP__SERVER__DRAIN_S", drain_s.to_string());
        let skep = Skep::spawn(command);
        let served = Served {
            udp: skep.udp[0],
            tcp: skep.tcp[0],
            tls: skep.tls[0],
            client: self.certificate.client(),
        };
        (skep, served)
    }

    fn successor(&self, limits: &str, io: &str) -> Successor {
        let mut command = self.command(limits, &["run", "--take-over", "--io", io]);
        // Without memory, a backtrace of the panic that ends it would not end itself.
        command.env("RUST_BACKTRACE", "0");
        command.args(["--admin", "127.0.0.1:0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Successor { child, log: Some(log) }
    }
}

/// A process that may come to serve or not; killed when dropped.
struct Successor {
    child: Child,
    log: Option<BufReader<ChildStderr>>,
}

impl Successor {
    /// Whether it serves; `false` where it has ended instead. One that does neither is a failure.
    fn becomes_ready(&mut self) -> bool {
        let stdout = self.child.stdout.take().unwrap();
        let (tell, told) = channel();
        std::thread::spawn(move || {
            let mut text = String::new();
            let _ = BufReader::new(stdout).read_line(&mut text);
            let _ = tell.send(text);
        });
        let Ok(text) = told.recv_timeout(DEADLINE) else {
            let _ = self.child.kill();
            panic!("it neither serves nor ends\n{}", self.end().1);
        };
        text.starts_with("ready ")
    }

    /// Waits for its end: its code or its signal, and what it wrote to standard error.
    fn end(&mut self) -> (Option<i32>, String) {
        let mut text = String::new();
        self.log.take().unwrap().read_to_string(&mut text).unwrap();
        let status = self.child.wait().unwrap();
        (status.code().or_else(|| status.signal()), text)
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Who serves at the moment.
enum Serving {
    First(Box<Skep>),
    Later(Successor),
}

impl Serving {
    fn is_alive(&mut self) -> bool {
        match self {
            Self::First(skep) => skep.is_alive(),
            Self::Later(successor) => successor.child.try_wait().unwrap().is_none(),
        }
    }
}

/// Lets successors try under limits that are relaxed step by step, until so many in a row serve. At
/// each step one of the two has to serve everything, and the other one has to end.
fn relaxed(io: &str, successes: u32, limits: impl Iterator<Item = String>) {
    let home = Home::new();
    let (first, served) = home.first(io);
    let mut serving = Serving::First(Box::new(first));
    let (mut in_a_row, mut failed) = (0, 0);
    for limit in limits {
        let mut next = home.successor(&limit, io);
        if next.becomes_ready() {
            eventually("the predecessor ends", || !serving.is_alive());
            serving = Serving::Later(next);
            in_a_row += 1;
        } else {
            let (code, log) = next.end();
            // Without memory for the program itself the kernel ends it, which nobody can explain.
            let is_ended_by_kernel = matches!(code, Some(libc::SIGKILL | libc::SIGSEGV));
            let is_explained = !log.is_empty() || is_ended_by_kernel;
            assert!(is_explained && code != Some(0), "{limit} {io}: {code:?}");
            assert!(serving.is_alive(), "nobody is left: {limit} {io}\n{log}");
            (in_a_row, failed) = (0, failed + 1);
        }
        served.holds();
        assert!(serving.is_alive(), "{limit} {io}: it has served, and ended");
        if in_a_row == successes {
            assert!(failed > 0, "the limit mattered");
            return;
        }
    }
    panic!("{io}: no limit was enough");
}

#[test]
fn whatever_number_of_descriptors_a_successor_has_one_of_both_serves() {
    for io in backends() {
        relaxed(io, 12, (12..200).map(|it| format!("ulimit -n {it};")));
    }
}

#[test]
fn whatever_memory_a_successor_has_one_of_both_serves() {
    let step_mib = if std::env::var_os("SKEP_TEST_FINE_STEPS").is_some() { 1 } else { 12 };
    for io in backends() {
        let limits = (16..4096).step_by(step_mib);
        relaxed(io, 4, limits.map(|it| format!("ulimit -v {};", it << 10)));
    }
}

/// A successor of our own making, which serves nothing.
struct Puppet {
    line: socket2::Socket,
    lock: ServingLock,
    _sockets: Vec<OwnedFd>,
}

impl Puppet {
    /// Asks the tracker with this state directory for its sockets.
    fn ask(state: &Path) -> Self {
        let line = descriptors::connect(&state.join("handover.sock")).unwrap();
        descriptors::set_timeouts(&line, DEADLINE).unwrap();
        let ask = r#"{"say":"ask","protocol":2,"version":"test"}"#;
        descriptors::send(&line, ask.as_bytes(), &[]).unwrap();
        let (text, mut descriptors) = hear(&line);
        assert!(text.contains("lock"), "{text}");
        let lock = ServingLock::received(descriptors.pop().unwrap());
        let mut sockets = Vec::new();
        loop {
            let (text, descriptors) = hear(&line);
            sockets.extend(descriptors);
            if text.contains(r#""last":true"#) {
                return Self { line, lock, _sockets: sockets };
            }
        }
    }

    fn say(&self, what: &str) {
        let text = format!("{{\"say\":\"{what}\"}}");
        descriptors::send(&self.line, text.as_bytes(), &[]).unwrap();
    }

    /// To a tracker that may have ended.
    fn say_if_open(&self, what: &str) {
        let text = format!("{{\"say\":\"{what}\"}}");
        let _ = descriptors::send(&self.line, text.as_bytes(), &[]);
    }

    fn hear_left(&self) {
        let (text, _) = hear(&self.line);
        assert!(text.contains("left"), "{text}");
    }
}

fn hear(line: &socket2::Socket) -> (String, Vec<OwnedFd>) {
    let mut text = [0; 65_536];
    let (bytes, descriptors) = descriptors::receive(line, &mut text).unwrap();
    (String::from_utf8(text[..bytes].to_vec()).unwrap(), descriptors)
}

/// Waits until a process stands still, or until it does so no more.
fn wait_until_stopped(skep: &Skep, is_stopped: bool) {
    let path = format!("/proc/{}/stat", skep.id());
    eventually("the signal acts", || {
        let text = std::fs::read_to_string(&path).unwrap();
        text.rsplit(") ").next().unwrap().starts_with('T') == is_stopped
    });
}

fn stop(skep: &Skep) {
    skep.signal("STOP");
    wait_until_stopped(skep, true);
}

fn go_on(skep: &Skep) {
    skep.signal("CONT");
    wait_until_stopped(skep, false);
}

#[test]
fn a_tracker_whose_successor_dies_at_any_step_serves_on() {
    for io in backends() {
        let home = Home::new();
        let (first, served) = home.first(io);
        for step in ["asked", "said serving", "was left to", "took the right", "said accepting"] {
            for stands_still in [false, true] {
                let puppet = Puppet::ask(home.state());
                if step != "asked" {
                    if stands_still && step == "said serving" {
                        stop(&first);
                    }
                    puppet.say("serving");
                }
                // After "serving" the tracker may come to rest before the other one dies, or not.
                if !matches!(step, "asked" | "said serving") {
                    puppet.hear_left();
                }
                if matches!(step, "took the right" | "said accepting") {
                    assert!(puppet.lock.take().unwrap(), "{step}");
                }
                if stands_still && step != "said serving" {
                    stop(&first);
                }
                if step == "said accepting" && stands_still {
                    puppet.say("accepting"); // heard by a tracker that is alive, it would end it
                }
                drop(puppet);
                if stands_still {
                    go_on(&first);
                }
                served.holds();
                assert_eq!(first.get("/readyz").0, 200, "{step}, {io}");
            }
        }
        let second = home.successor("", io).becomes_ready();
        assert!(second, "it can be replaced still");
    }
}

#[test]
fn a_successor_that_stands_still_is_given_up_and_may_not_serve_afterwards() {
    let home = Home::new();
    let (first, served) = home.first("auto");
    let puppet = Puppet::ask(home.state());
    puppet.say("serving");
    puppet.hear_left();
    let begun = Instant::now();
    served.holds(); // once it has waited for long enough
    assert!(begun.elapsed() < DEADLINE);
    first.log_with("take-over failed, this tracker continues");
    assert!(!puppet.lock.take().unwrap(), "only one may serve");
    served.holds();
}

#[test]
fn a_tracker_that_stands_still_while_its_successor_begins_to_serve_ends_when_it_goes_on() {
    let home = Home::new();
    let (mut first, _) = home.first("auto");
    let puppet = Puppet::ask(home.state());
    puppet.say("serving");
    puppet.hear_left();
    stop(&first);
    assert!(puppet.lock.take().unwrap());
    puppet.say("accepting");
    go_on(&first);
    assert!(hear(&puppet.line).0.contains("saved"));
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
}

#[test]
fn a_successor_that_asked_before_the_predecessor_was_told_to_stop_takes_over_in_its_drain() {
    for io in backends() {
        let home = Home::new();
        let (mut first, served) = home.first_with(io, 3600);
        let puppet = Puppet::ask(home.state());
        first.signal("TERM");
        first.log_with("drain_s=3600");
        served.holds();
        puppet.say("serving");
        puppet.hear_left();
        assert!(puppet.lock.take().unwrap());
        puppet.say("accepting");
        assert!(hear(&puppet.line).0.contains("saved"));
        assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    }
}

#[test]
fn a_successor_that_falls_silent_in_the_drain_is_given_up_and_the_drain_goes_on() {
    let home = Home::new();
    let (mut first, served) = home.first_with("auto", 3600);
    let puppet = Puppet::ask(home.state());
    first.signal("TERM");
    first.log_with("drain_s=3600");
    puppet.say("serving");
    puppet.hear_left();
    drop(puppet);
    first.log_with("take-over failed, this tracker continues");
    served.holds();
    first.signal("TERM");
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
}

#[test]
fn a_tracker_that_is_told_to_stop_without_a_drain_leaves_the_right_to_serve_to_its_successor() {
    let home = Home::new();
    let (mut first, _) = home.first("auto");
    let puppet = Puppet::ask(home.state());
    stop(&first);
    first.signal("TERM");
    puppet.say("serving");
    go_on(&first);
    // It may have ended before it has read what was said: then the line is closed.
    let left = hear(&puppet.line).0;
    assert!(left.is_empty() || left.contains("left"), "{left}");
    assert!(puppet.lock.take_within(1000));
    puppet.say_if_open("accepting");
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
}

#[test]
fn a_successor_with_the_right_to_serve_that_says_nothing_is_waited_for_until_it_ends() {
    let home = Home::new();
    let (first, served) = home.first("auto");
    let puppet = Puppet::ask(home.state());
    puppet.say("serving");
    puppet.hear_left();
    assert!(puppet.lock.take().unwrap());
    puppet.say("serving"); // whatever it says, it has not accepted
    first.log_with("does not respond, waiting for it");
    drop(puppet);
    first.log_with("take-over failed, this tracker continues");
    served.holds();
}

#[test]
fn a_tracker_that_rests_for_a_silent_successor_ends_when_it_is_told_to() {
    let home = Home::new();
    for drain_s in [0, 3600] {
        let (mut first, _) = home.first_with("auto", drain_s);
        let puppet = Puppet::ask(home.state());
        if drain_s > 0 {
            first.signal("TERM");
            first.log_with("drain_s=3600");
        }
        puppet.say("serving");
        puppet.hear_left();
        assert!(puppet.lock.take().unwrap());
        first.log_with("does not respond, waiting for it");
        first.signal("TERM");
        assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    }
}

#[test]
fn a_tracker_that_was_stopped_and_continued_goes_on_waiting_for_its_successor() {
    let home = Home::new();
    let (mut first, _) = home.first("auto");
    let puppet = Puppet::ask(home.state());
    stop(&first);
    go_on(&first);
    puppet.say("serving");
    puppet.hear_left();
    assert!(puppet.lock.take().unwrap());
    stop(&first);
    go_on(&first);
    puppet.say("accepting");
    assert!(hear(&puppet.line).0.contains("saved"));
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
}

/// A predecessor of our own making, which answers nothing beyond the sockets, of which it has none.
/// Gives the log and the end of who wants to take over from it. `gives_up` says whether it gives up
/// the right to serve before it falls silent.
fn silent(gives_up: bool) -> (bool, String) {
    let home = Home::new();
    let listener = descriptors::listen(&home.state().join("handover.sock")).unwrap();
    let lock = ServingLock::new().unwrap();
    let mut successor = home.successor("", "auto");
    descriptors::set_timeouts(&listener, DEADLINE).unwrap();
    let line = listener.accept().unwrap().0;
    descriptors::set_timeouts(&line, DEADLINE).unwrap();
    assert!(hear(&line).0.contains("ask"));
    descriptors::send(&line, br#"{"say":"lock"}"#, &[lock.as_fd()]).unwrap();
    let none = br#"{"say":"sockets","sockets":[],"last":true}"#;
    descriptors::send(&line, none, &[]).unwrap();
    assert!(hear(&line).0.contains("serving"));
    if gives_up {
        lock.release().unwrap();
    }
    let serves = successor.becomes_ready();
    if serves {
        assert!(!lock.take().unwrap(), "only one may serve");
        // An orderly end writes the whole log, which a thread of its own does.
        let pid = Pid::from_child(&successor.child);
        kill_process(pid, Signal::TERM).unwrap();
    }
    (serves, successor.end().1)
}

#[test]
fn a_successor_whose_predecessor_stands_still_serves_only_where_that_one_never_will() {
    let [gone, there] = std::thread::scope(|scope| {
        [true, false].map(|gives_up| scope.spawn(move || silent(gives_up))).map(|it| it.join())
    });
    let (serves, log) = gone.unwrap();
    assert!(serves && log.contains("predecessor ended early, taking over without it"), "{log}");
    let (serves, log) = there.unwrap();
    assert!(!serves && log.contains("the running tracker continues"), "{log}");
    assert!(log.contains("if the running tracker does not respond, kill it"), "{log}");
}

#[test]
fn a_tracker_that_is_killed_while_it_is_replaced_leaves_its_successor_serving() {
    for io in backends() {
        for delay_ms in [0, 20, 60, 120] {
            let home = Home::new();
            let (first, served) = home.first(io);
            let mut successor = home.successor("", io);
            first.log_with("take-over requested by a successor");
            std::thread::park_timeout(Duration::from_millis(delay_ms));
            first.signal("KILL");
            if successor.becomes_ready() {
                served.holds();
            } else {
                // Killed before it had passed its sockets on: both are gone, and it is said why.
                let (code, log) = successor.end();
                assert!(code == Some(1) && log.contains("cannot take over through"), "{log}");
            }
        }
    }
}
