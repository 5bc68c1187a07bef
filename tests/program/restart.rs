//! Stop and start in a row: the address that a tracker had is another's at once, and at any time
//! one tracker's only.
#![allow(clippy::disallowed_methods, reason = "how long something took is what is tested")]

use std::io::Read as _;
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::tcp_clients;
use crate::support::tcp_clients::announce;
use crate::support::{Client, Skep, backends, command, eventually, leecher, texts};

/// An address that no other test uses: of a port that was just free, somebody else may be given
/// the next moment.
const HOST: &str = "127.77.0.1";

/// Restarts of each kind.
fn rounds() -> u32 {
    std::env::var("SKEP_TEST_RESTARTS").map_or(8, |it| it.parse().unwrap())
}

/// The program on these addresses, which may leave ports to the kernel.
fn on(listen: &str, admin: &str, io: &str) -> Command {
    let mut command = command();
    command.args(["--listen", listen, "--admin", admin, "--workers", "2", "--io", io]);
    command
}

fn serves(skep: &Skep) {
    assert_ne!(Client::over(connected(skep.udp[0])).ask_connection_id(), 0);
    assert_eq!(tcp_clients::ask(skep.tcp[0], &announce(1, 1, "")).status, 200);
}

fn connected(to: SocketAddr) -> UdpSocket {
    let socket = UdpSocket::bind((HOST, 0)).unwrap();
    socket.connect(to).unwrap();
    socket
}

/// Ends a tracker by a signal and starts it again on the same addresses as soon as its process is
/// gone, time and again. What the last ones had to wait for.
fn restarted(io: &str, signal: &str) -> Vec<String> {
    let state = tempfile::tempdir().unwrap();
    let any = format!("{HOST}:0");
    let start = |listen: &str, admin: &str| {
        let mut command = on(listen, admin, io);
        command.env("STATE_DIRECTORY", state.path());
        Skep::spawn(command)
    };
    let mut skep = start(&any, &any);
    let (listen, admin) = (skep.udp[0].to_string(), skep.admin.to_string());
    let mut waited = Vec::new();
    for round in 0..=rounds() {
        if round > 0 {
            skep = start(&listen, &admin);
        }
        serves(&skep);
        skep.signal(signal);
        skep.wait(); // from here on the log is complete
        waited.extend(skep.log().lines().filter(|it| it.contains("in use")).map(str::to_owned));
    }
    waited
}

#[test]
fn a_tracker_that_was_stopped_can_be_started_again_at_once() {
    for io in backends() {
        let waited = restarted(io, "TERM");
        assert!(waited.is_empty(), "an orderly end leaves nothing behind: {waited:?}");
    }
}

#[test]
fn a_tracker_that_was_killed_can_be_started_again_at_once() {
    for io in backends() {
        let waited = restarted(io, "KILL");
        assert!(io == "uring" || waited.is_empty(), "{waited:?}");
    }
}

#[test]
fn an_address_that_is_taken_is_an_error_after_a_wait_that_names_who_has_it() {
    let skep = Skep::spawn(on(&format!("{HOST}:0"), "127.0.0.1:0", "mmsg"));
    let ours = UdpSocket::bind((HOST, 0)).unwrap();
    let skeps = format!("it is in use by process {}, another skep", skep.id());
    let tests = format!("process {} (", std::process::id());
    let cases = [
        (skep.udp[0], "127.0.0.1:0".to_owned(), &skeps, "skep run --take-over"),
        (ours.local_addr().unwrap(), "127.0.0.1:0".to_owned(), &tests, "ss -lnp"),
        (format!("{HOST}:0").parse().unwrap(), skep.admin.to_string(), &skeps, "--take-over"),
    ];
    for (listen, admin, who, remedy) in cases {
        let output = on(&listen.to_string(), &admin, "mmsg").output().unwrap();
        let (stdout, log) = texts(&output);
        assert_eq!((output.status.code(), stdout.as_str()), (Some(1), ""), "{log}");
        let last = log.lines().last().unwrap();
        assert!(last.contains(who.as_str()) && last.contains(remedy), "{log}");
        let waiting: Vec<_> =
            log.lines().filter(|it| it.contains("waiting for a process")).collect();
        assert!(waiting.len() == 1 && waiting[0].contains("at_most_ms=1500"), "{log}");
    }
    serves(&skep);
}

/// A process that may or may not serve; killed when dropped.
struct Starting(Child);

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn of_trackers_that_start_at_the_same_time_on_one_address_one_serves() {
    for _ in 0..3 {
        let udp = UdpSocket::bind((HOST, 0)).unwrap();
        let listen = udp.local_addr().unwrap().to_string();
        // They all wait for it, and go for it at the same moment.
        let mut all: Vec<_> = (0..4)
            .map(|_| {
                let mut command = on(&listen, "127.0.0.1:0", "mmsg");
                command.stdout(Stdio::piped()).stderr(Stdio::null());
                Starting(command.spawn().unwrap())
            })
            .collect();
        std::thread::park_timeout(Duration::from_millis(300));
        drop(udp);
        let mut ended = 0;
        eventually("all but one have given up", || {
            ended = all.iter_mut().filter_map(|it| it.0.try_wait().unwrap()).count();
            ended >= 3
        });
        assert_eq!(ended, 3, "one serves");
        let mut ready = 0;
        for starting in &mut all {
            if starting.0.try_wait().unwrap().is_some() {
                let mut text = String::new();
                starting.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
                ready += usize::from(text.starts_with("ready"));
            }
        }
        assert_eq!(ready, 0, "who gave up has not served");
        let mut client = Client::over(connected(listen.parse().unwrap()));
        client.connection_id = client.ask_connection_id();
        client.announce(&leecher(1, 6881));
    }
}
