//! Under a service manager, played by this test: readiness, the watchdog, socket activation, and
//! sockets that are kept from one start to the next.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use skep::sys::descriptors;
use tempfile::TempDir;

use crate::support::tcp_clients;
use crate::support::tcp_clients::announce;
use crate::support::udp_load::Steady;
use crate::support::{self, Client, DEADLINE, Skep, command, leecher, udp_and_tcp};

/// Hears what a service tells, and keeps what it gives.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
    state: TempDir,
    kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, path, state, kept: Vec::new() }
    }

    /// A service that notifies, on an address of the kernel's choice.
    fn service(&self) -> Command {
        let mut command = command();
        command.args(["--listen", "127.0.0.1:0", "--workers", "2"]);
        command.env("STATE_DIRECTORY", self.state.path()).env("NOTIFY_SOCKET", &self.path);
        command
    }

    /// The same, started with sockets under these names.
    fn service_with(&self, them: Vec<(String, OwnedFd)>) -> Command {
        let plain = self.service();
        // The number of the process is known to nobody but itself.
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]).arg(plain.get_program());
        command.args(plain.get_args());
        for (name, value) in plain.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let (names, sockets): (Vec<_>, Vec<_>) = them.into_iter().unzip();
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        descriptors::command_with(&mut command, sockets);
        command
    }

    /// The next message; what it brings is kept.
    fn hear(&mut self) -> String {
        let mut buffer = [0; 4096];
        let (bytes, sockets) = descriptors::receive(&self.socket, &mut buffer).unwrap();
        let text = String::from_utf8(buffer[..bytes].to_vec()).unwrap();
        let value = |key: &str| text.lines().find_map(|it| it.strip_prefix(key));
        if value("FDSTORE=").is_some() {
            let name = value("FDNAME=").unwrap().to_owned();
            assert_eq!(sockets.len(), 1, "{text}");
            self.kept.extend(sockets.into_iter().map(|it| (name.clone(), it)));
        }
        if value("FDSTOREREMOVE=").is_some() {
            let name = value("FDNAME=").unwrap();
            self.kept.retain(|it| it.0 != name);
        }
        text
    }

    /// The first message that holds this.
    fn hear_until(&mut self, what: &str) -> String {
        loop {
            let text = self.hear();
            if text.contains(what) {
                return text;
            }
        }
    }
}

#[test]
fn it_tells_when_it_is_ready_reloads_and_stops() {
    let mut manager = Manager::new();
    let mut skep = Skep::spawn(manager.service());
    let ready = manager.hear_until("READY=1");
    let pid = ready.lines().find_map(|it| it.strip_prefix("MAINPID=")).unwrap();
    assert!(pid.parse::<u32>().is_ok_and(|it| it > 1));
    assert!(ready.contains(&format!("STATUS={}", skep.ready.trim())), "{ready}");
    skep.signal("HUP");
    let reloading = manager.hear_until("RELOADING=1");
    let at = reloading.lines().find_map(|it| it.strip_prefix("MONOTONIC_USEC=")).unwrap();
    assert!(at.parse::<u64>().is_ok_and(|it| it > 0));
    manager.hear_until("READY=1");
    skep.signal("TERM");
    assert!(manager.hear_until("STOPPING=1").contains("EXTEND_TIMEOUT_USEC=60000000"));
    assert_eq!(skep.wait().code(), Some(0));
}

#[test]
fn the_watchdog_is_fed_while_workers_go_round_and_starves_when_one_is_stuck() {
    let mut manager = Manager::new();
    let mut command = manager.service();
    command.env("WATCHDOG_USEC", "300000");
    let skep = Skep::spawn(command);
    for _ in 0..5 {
        manager.hear_until("WATCHDOG=1");
    }
    // Every thread of the process stands still: nothing comes any more.
    skep.signal("STOP");
    manager.socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let mut buffer = [0; 4096];
    while manager.socket.recv(&mut buffer).is_ok() {}
    skep.signal("CONT");
    manager.hear_until("WATCHDOG=1");
    // A watchdog that is meant for another process is none of ours.
    let mut other = Manager::new();
    let mut command = other.service();
    command.env("WATCHDOG_USEC", "300000").env("WATCHDOG_PID", "1");
    let unwatched = Skep::spawn(command);
    other.hear_until("READY=1");
    other.socket.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    assert!(other.socket.recv(&mut buffer).is_err());
    drop(unwatched);
}

#[test]
fn sockets_of_a_socket_unit_are_served() {
    let manager = Manager::new();
    let (udp, tcp) = udp_and_tcp();
    let address = udp.local_addr().unwrap();
    let admin = TcpListener::bind("127.0.0.1:0").unwrap();
    let pages = admin.local_addr().unwrap();
    let stray = UdpSocket::bind("127.0.0.9:0").unwrap();
    let stray_address = stray.local_addr().unwrap();
    // What was sent before the service starts waits for it.
    let early = UdpSocket::bind("127.0.0.1:0").unwrap();
    early.connect(address).unwrap();
    early.set_read_timeout(Some(DEADLINE)).unwrap();
    early.send(&[0, 0, 4, 23, 39, 16, 25, 128, 0, 0, 0, 0, 1, 2, 3, 4]).unwrap();
    let unit = |it: OwnedFd| ("skep.socket".to_owned(), it);
    let them = vec![unit(udp.into()), unit(tcp.into()), unit(admin.into()), unit(stray.into())];
    let mut command = manager.service_with(them);
    command.args(["--admin", &pages.to_string()]);
    let skep = Skep::spawn(command);
    assert_eq!((skep.udp[0], skep.tcp[0], skep.admin), (address, address, pages));
    assert_eq!(early.recv(&mut [0; 32]).unwrap(), 16, "it has waited");
    for port in 1..=20 {
        Client::connect(address).announce(&leecher(1, port));
        assert_eq!(tcp_clients::ask(address, &announce(1, port, "")).status, 200);
    }
    skep.log_with(&format!("passed socket closed: not configured socket=udp {stray_address}"));
}

#[test]
fn sockets_that_the_environment_does_not_describe_are_an_error_with_a_remedy() {
    let manager = Manager::new();
    for (variable, value) in [("LISTEN_FDS", "3"), ("LISTEN_FDNAMES", "one:two:three")] {
        let (udp, tcp) = udp_and_tcp();
        let unit = |it: OwnedFd| ("skep.socket".to_owned(), it);
        let mut command = manager.service_with(vec![unit(udp.into()), unit(tcp.into())]);
        let output = command.env(variable, value).output().unwrap();
        let (_, stderr) = support::texts(&output);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("remedy: LISTEN_FDS counts"), "{stderr}");
    }
}

#[test]
fn what_a_socket_unit_listens_on_outlives_every_process_that_serves_it() {
    // One that passes sockets, and wants to hear nothing.
    let manager = Manager::new();
    let (udp, tcp) = udp_and_tcp();
    let address = udp.local_addr().unwrap();
    let path = manager.state.path().join("http.sock");
    let unix = UnixListener::bind(&path).unwrap();
    let state = tempfile::tempdir().unwrap();
    let set = |command: &mut Command| {
        command.env_remove("NOTIFY_SOCKET").env("SKEP__HTTP__UNIX_SOCKET", &path);
        command.env("STATE_DIRECTORY", state.path());
    };
    let unit = |it: OwnedFd| ("skep.socket".to_owned(), it);
    let (tcp_twin, unix_twin) = (tcp.try_clone().unwrap(), unix.try_clone().unwrap());
    let them = vec![unit(udp.into()), unit(tcp_twin.into()), unit(unix_twin.into())];
    let mut activated = manager.service_with(them);
    set(&mut activated);
    // Any port of an address would be any socket of it.
    activated.args(["--admin", "127.0.0.2:0"]);
    let mut first = Skep::spawn(activated);
    assert_eq!(first.tcp[0], address);
    // It goes over to a process that the manager has not started, and stays the manager's.
    let mut command = command();
    command.args(["run", "--take-over", "--listen", "127.0.0.1:0"]);
    command.args(["--admin", "127.0.0.2:0"]);
    set(&mut command);
    let mut second = Skep::spawn(command);
    assert_eq!(first.wait().code(), Some(0), "{}", first.log());
    second.signal("TERM");
    assert_eq!(second.wait().code(), Some(0), "{}", second.log());
    assert!(path.exists(), "the socket unit's file");
    for listens in [TcpStream::connect(address).map(drop), UnixStream::connect(&path).map(drop)] {
        listens.unwrap();
    }
}

#[test]
fn sockets_that_are_kept_bridge_a_restart_without_loss() {
    for io in support::backends() {
        let mut manager = Manager::new();
        let mut command = manager.service();
        command.args(["--io", io]);
        let mut first = Skep::spawn(command);
        manager.hear_until("READY=1");
        let mut names: Vec<_> = manager.kept.iter().map(|it| it.0.clone()).collect();
        names.sort();
        assert_eq!(names, ["admin-0-0", "tcp-0-0", "tcp-0-1", "udp-0-0", "udp-0-1"]);
        let load = Steady::start(first.udp[0], 2_000);
        load.wait_for(500);
        first.signal("TERM");
        assert_eq!(first.wait().code(), Some(0));
        let waiting = TcpStream::connect(first.tcp[0]).unwrap();
        let kept = std::mem::take(&mut manager.kept);
        let mut command = manager.service_with(kept);
        command.args(["--io", io]);
        let second = Skep::spawn(command);
        assert_eq!((&second.udp, &second.tcp), (&first.udp, &first.tcp));
        load.wait_for(500);
        let (sent, lost) = load.finish();
        assert_eq!(lost, 0, "of {sent} with {io}\n{}", second.log());
        let mut waiting: Box<dyn tcp_clients::Duplex> = Box::new(waiting);
        let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", announce(1, 1, ""));
        assert_eq!(tcp_clients::exchange(&mut *waiting, &request).status, 200);
    }
}

#[test]
fn what_is_not_configured_any_more_is_not_kept_either() {
    let mut manager = Manager::new();
    let mut command = manager.service();
    command.args(["--listen", "127.0.0.2:0"]);
    let mut first = Skep::spawn(command);
    manager.hear_until("READY=1");
    assert_eq!(manager.kept.len(), 9);
    first.signal("TERM");
    first.wait();
    while !manager.hear().contains("STOPPING=1") {}
    let kept: Vec<_> =
        manager.kept.iter().map(|it| (it.0.clone(), it.1.try_clone().unwrap())).collect();
    let _second = Skep::spawn(manager.service_with(kept));
    let again = manager.kept.len();
    manager.hear_until("READY=1");
    let left = manager.kept.iter().filter(|it| it.0.contains("-1-")).count();
    assert_eq!((again, left), (9, 0), "those of the second address are gone");
}
