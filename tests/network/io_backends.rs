//! Both I/O backends through one suite, on real sockets, with a responder that tracks nothing.
//!
//! What needs a host that allows it (io_uring, raw sockets, network namespaces) says `skipped:`
//! where it is denied, and fails instead when `SKEP_REQUIRE_EXTERNAL=1`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use skep::counters::{IoEvent, WorkerCounters};
use skep::sys::clock::Clock;
use skep::sys::mmsg::DATAGRAM_BYTES_MAX;
use skep::sys::probe::{UringDenial, UringProbeError, probe};
use skep::sys::socket::{BoundUdp, UdpOptions, bind_udp};
use skep::time::Now;
use skep::types::{Action, DatagramResponse, Dropped, Family};
use skep::worker::Responder;
use skep::worker::datagram::{DatagramBackend, DatagramWorker};

use crate::support::seccomp::without_io_uring;
use crate::support::{assert_passed, child_arguments, skip, texts};

/// Answers with the datagram's length and a checksum over it; runs one command when told to.
struct Echo {
    on_cut: fn(),
    upkeeps: Arc<AtomicU64>,
}

/// A payload that makes [`Echo`] run its command before it answers.
const CUT: &[u8] = b"cut";

impl Responder for Echo {
    const PREFETCH_STAGES: usize = 2;

    fn prefetch(&mut self, stage: usize, _datagram: &[u8]) {
        assert!(stage < Self::PREFETCH_STAGES);
    }

    fn handle(
        &mut self,
        _now: Now,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<DatagramResponse, Dropped> {
        assert_ne!(source.port(), 0);
        if datagram.is_empty() {
            return Err(Dropped::TooShort);
        }
        if datagram == CUT {
            (self.on_cut)();
        }
        out[..12].copy_from_slice(&digest(datagram));
        Ok(DatagramResponse::served(Action::Scrape, 12))
    }

    fn upkeep(&mut self, _now: Now) {
        self.upkeeps.fetch_add(1, Ordering::Relaxed);
    }

    fn set_queue(&mut self, _queue_permille: u32) {}
}

fn digest(datagram: &[u8]) -> [u8; 12] {
    let sum = datagram.iter().zip(1_u64..).map(|(byte, place)| place * u64::from(*byte)).sum();
    let mut out = [0; 12];
    out[..4].copy_from_slice(&u32::try_from(datagram.len()).unwrap().to_be_bytes());
    out[4..].copy_from_slice(&u64::to_be_bytes(sum));
    out
}

/// A worker on its own thread.
struct Server {
    sockets: Arc<Vec<BoundUdp>>,
    counters: Arc<WorkerCounters>,
    upkeeps: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    fn start(backend: DatagramBackend, addresses: &[&str]) -> Self {
        Self::start_with(backend, addresses, || ())
    }

    fn start_with(backend: DatagramBackend, addresses: &[&str], on_cut: fn()) -> Self {
        let bind = |it: &&str| bind_udp(it.parse().unwrap(), &UdpOptions::default()).unwrap();
        let sockets = Arc::new(addresses.iter().map(bind).collect::<Vec<_>>());
        let (counters, stop) = (Arc::<WorkerCounters>::default(), Arc::<AtomicBool>::default());
        let upkeeps = Arc::<AtomicU64>::default();
        let mut echo = Echo { on_cut, upkeeps: Arc::clone(&upkeeps) };
        let shared = (Arc::clone(&sockets), Arc::clone(&counters), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let (sockets, counters, stop) = shared;
            let clock = Clock::start();
            let (sockets, clock) = (&sockets[..], &clock);
            DatagramWorker { backend, sockets, clock, counters: &counters, stop: &stop }
                .run(&mut echo)
        });
        Self { sockets, counters, upkeeps, stop, thread }
    }

    fn address(&self, index: usize) -> SocketAddr {
        self.sockets[index].address()
    }

    /// Stops the worker and gives its counters.
    fn finish(self) -> Arc<WorkerCounters> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap();
        self.counters
    }
}

/// Runs a test over each backend that this host allows.
fn for_each_backend(test: impl Fn(DatagramBackend)) {
    test(DatagramBackend::Mmsg);
    match probe() {
        Ok(()) => test(DatagramBackend::Uring),
        Err(error) => skip(&error.to_string()),
    }
}

fn client(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind(address).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket
}

/// Sends and waits for the right answer; says where it came from.
fn ask(client: &UdpSocket, target: SocketAddr, datagram: &[u8]) -> SocketAddr {
    client.send_to(datagram, target).unwrap();
    let mut response = [0; 64];
    let (bytes, source) = client.recv_from(&mut response).unwrap();
    assert_eq!(response[..bytes], digest(datagram), "an answer to something else");
    source
}

fn sum(counters: &WorkerCounters, family: Family) -> (u64, u64, u64) {
    let datagram_counters = counters.datagrams(family);
    let answered = datagram_counters
        .answered
        .iter()
        .chain(&datagram_counters.refused)
        .map(|it| it.get())
        .sum();
    (
        datagram_counters.received.get(),
        answered,
        datagram_counters.dropped.iter().map(|it| it.get()).sum(),
    )
}

#[test]
fn answers_leave_from_the_address_asked() {
    for_each_backend(|backend| {
        let specific = ["127.0.0.1:0", "127.0.0.2:0", "127.0.0.3:0"];
        let server = Server::start(backend, &specific);
        let client = client("127.0.0.1:0");
        for index in 0..specific.len() {
            let target = server.address(index);
            assert_eq!(ask(&client, target, b"hello"), target);
        }
        server.finish();

        let server = Server::start(backend, &["0.0.0.0:0"]);
        for last in 1..=3 {
            let target = (Ipv4Addr::new(127, 0, 0, last), server.address(0).port()).into();
            assert_eq!(ask(&client, target, b"hello"), target);
        }
        server.finish();
    });
}

#[test]
fn ipv6_and_its_wildcard_answer() {
    if let Err(error) = UdpSocket::bind("[::1]:0") {
        return skip(&format!("no IPv6 loopback: {error}"));
    }
    for_each_backend(|backend| {
        let server = Server::start(backend, &["[::1]:0", "[::]:0", "0.0.0.0:0"]);
        let client_v6 = client("[::1]:0");
        for index in 0..2 {
            let target = ([0, 0, 0, 0, 0, 0, 0, 1], server.address(index).port()).into();
            assert_eq!(ask(&client_v6, target, b"six"), target);
        }
        let target = (Ipv4Addr::LOCALHOST, server.address(2).port()).into();
        assert_eq!(ask(&client("127.0.0.1:0"), target, b"four"), target);
        let counters = server.finish();
        assert_eq!(sum(&counters, Family::V6), (2, 2, 0));
        assert_eq!(sum(&counters, Family::V4), (1, 1, 0));
    });
}

#[test]
fn every_length_is_taken_or_counted() {
    for_each_backend(|backend| {
        let server = Server::start(backend, &["127.0.0.1:0", "0.0.0.0:0"]);
        let client = client("127.0.0.1:0");
        let mut sent = 0;
        for index in 0..2 {
            let target = (Ipv4Addr::LOCALHOST, server.address(index).port()).into();
            for bytes in [0, DATAGRAM_BYTES_MAX + 1, 9000] {
                client.send_to(&vec![1; bytes], target).unwrap();
            }
            let lengths = [1, 16, 98, 400, 1232, 1496, 2047, DATAGRAM_BYTES_MAX];
            for bytes in lengths {
                let datagram: Vec<u8> =
                    (0..bytes).map(|it| u8::try_from(it % 251).unwrap()).collect();
                ask(&client, target, &datagram);
            }
            sent += 3 + lengths.len() as u64;
        }
        let counters = server.finish();
        assert_eq!(sum(&counters, Family::V4), (sent, sent - 6, 6));
        let dropped = &counters.datagrams(Family::V4).dropped;
        assert_eq!(dropped[Dropped::TooShort as usize].get(), 2);
        assert_eq!(dropped[Dropped::Oversized as usize].get(), 4);
    });
}

#[test]
fn a_flood_on_one_socket_starves_neither_its_sibling_nor_the_clock() {
    static HELD: AtomicBool = AtomicBool::new(false);
    fn hold() {
        while HELD.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
    }
    if let Err(error) = UdpSocket::bind("[::1]:0") {
        return skip(&format!("no IPv6 loopback: {error}"));
    }
    for_each_backend(|backend| {
        HELD.store(true, Ordering::Relaxed);
        let server = Server::start_with(backend, &["127.0.0.1:0", "[::1]:0"], hold);
        let (flooded, sibling) = (server.address(0), server.address(1));
        let flooding = AtomicBool::new(true);
        let sent = AtomicU64::new(1);
        client("127.0.0.1:0").send_to(CUT, flooded).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let flooder = UdpSocket::bind("127.0.0.1:0").unwrap();
                while flooding.load(Ordering::Relaxed) {
                    flooder.send_to(&[9; 98], flooded).unwrap();
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
            let _lower = (Lower(&flooding), Lower(&HELD));
            // The worker is held until the queue has overflowed: then it has a flood behind it.
            wait_until(|| server.sockets[0].memory().unwrap().drops > 0);
            HELD.store(false, Ordering::Relaxed);
            let client = client("[::1]:0");
            let before = server.upkeeps.load(Ordering::Relaxed);
            for _ in 0..200 {
                assert_eq!(ask(&client, sibling, b"and me?"), sibling);
            }
            assert!(server.upkeeps.load(Ordering::Relaxed) > before);
        });
        let sockets = Arc::clone(&server.sockets);
        let all = 200 + sent.into_inner();
        wait_until(|| taken(&server.counters, &sockets) >= all);
        let counters = server.finish();
        assert_eq!(sum(&counters, Family::V6), (200, 200, 0));
        let (received, answered, dropped) = sum(&counters, Family::V4);
        assert_eq!(received, answered + dropped);
        assert_eq!(taken(&counters, &sockets), all, "datagrams that nobody counted");
    });
}

/// Lowers a flag at the end of a scope, however it ends.
struct Lower<'a>(&'a AtomicBool);

impl Drop for Lower<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Datagrams that were received by the worker or dropped by the kernel before it.
fn taken(counters: &WorkerCounters, sockets: &[BoundUdp]) -> u64 {
    let drops: u64 = sockets.iter().map(|it| u64::from(it.memory().unwrap().drops)).sum();
    drops + sum(counters, Family::V4).0 + sum(counters, Family::V6).0
}

/// Waits for a condition that must come true soon.
#[track_caller]
fn wait_until(condition: impl Fn() -> bool) {
    let clock = Clock::start();
    let start = clock.now();
    while !condition() {
        assert!(clock.now().ns_since(start) < 30_000_000_000, "waited for 30 s");
        std::thread::yield_now();
    }
}

#[test]
fn what_was_received_before_the_stop_is_answered() {
    for_each_backend(|backend| {
        let server = Server::start(backend, &["127.0.0.1:0"]);
        let client = client("127.0.0.1:0");
        for _ in 0..200 {
            client.send_to(b"quick", server.address(0)).unwrap();
        }
        ask_first_answer(&client);
        let counters = server.finish();
        let (received, answered, dropped) = sum(&counters, Family::V4);
        assert_eq!((received, dropped), (answered, 0));
        client.set_nonblocking(true).unwrap();
        let later = std::iter::from_fn(|| client.recv(&mut [0; 64]).ok()).count() as u64;
        assert_eq!(1 + later, answered);
        assert_eq!(IoEvent::ALL.map(|it| counters.io_event(it).get()), [0; 8]);
    });
}

fn ask_first_answer(client: &UdpSocket) {
    assert_eq!(client.recv(&mut [0; 64]).unwrap(), 12);
}

#[test]
fn stopping_takes_at_most_100_ms() {
    for_each_backend(|backend| {
        // The best of several: this machine has other things to do as well.
        let stop = |_| {
            let server = Server::start(backend, &["127.0.0.1:0", "127.0.0.2:0"]);
            ask(&client("127.0.0.1:0"), server.address(0), b"up?");
            let clock = Clock::start();
            let before = clock.now();
            server.finish();
            clock.now().ns_since(before) / 1_000_000
        };
        let best_ms = (0..5).map(stop).min().unwrap();
        assert!(best_ms <= 100, "{best_ms} ms at best");
    });
}

#[test]
fn a_worker_tells_of_itself() {
    for_each_backend(|backend| {
        let server = Server::start(backend, &["127.0.0.1:0"]);
        let client = client("127.0.0.1:0");
        for _ in 0..1000 {
            ask(&client, server.address(0), b"tick");
        }
        let counters = &server.counters;
        let before = counters.elapsed_ns.get();
        wait_until(|| counters.elapsed_ns.get() > before);
        let counters = server.finish();
        assert!(counters.turns.get() >= 1000);
        assert!(counters.handling.sum_ns.get() > 0);
        assert!(counters.busy_ns.get() <= counters.elapsed_ns.get());
    });
}

#[test]
fn a_source_port_of_zero_is_counted() {
    use socket2::{Domain, Protocol, Socket, Type};
    let raw = match Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::UDP)) {
        Ok(raw) => raw,
        Err(error) => return skip(&format!("raw sockets: {error}")),
    };
    for_each_backend(|backend| {
        let server = Server::start(backend, &["127.0.0.1:0"]);
        raw.send_to(&udp(0, server.address(0).port()), &server.address(0).into()).unwrap();
        ask(&client("127.0.0.1:0"), server.address(0), b"still there?");
        let counters = server.finish();
        let dropped = &counters.datagrams(Family::V4).dropped;
        assert_eq!(dropped[Dropped::SourcePortZero as usize].get(), 1);
        assert_eq!(sum(&counters, Family::V4), (2, 1, 1));
    });
}

/// A UDP header without checksum and 16 bytes.
fn udp(source_port: u16, target_port: u16) -> Vec<u8> {
    let [s0, s1] = source_port.to_be_bytes();
    let [t0, t1] = target_port.to_be_bytes();
    [&[s0, s1, t0, t1, 0, 24, 0, 0][..], &[5; 16]].concat()
}

#[test]
fn a_worker_that_is_denied_a_ring_says_so() {
    let denied = without_io_uring(libc::EPERM, || {
        let sockets = [bind_udp("127.0.0.1:0".parse().unwrap(), &UdpOptions::default()).unwrap()];
        let counters = WorkerCounters::default();
        let mut echo = Echo { on_cut: || (), upkeeps: Arc::default() };
        let (clock, stop) = (&Clock::start(), &AtomicBool::new(false));
        DatagramWorker {
            backend: DatagramBackend::Uring,
            sockets: &sockets,
            clock,
            counters: &counters,
            stop,
        }
        .run(&mut echo)
    });
    let error = denied.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
}

fn probe_denied(errno: i32) -> UringProbeError {
    without_io_uring(errno, probe).unwrap_err()
}

#[test]
fn a_filter_as_dockers_is_named_with_its_remedy() {
    let error = probe_denied(libc::EPERM);
    let text = error.to_string();
    assert!(matches!(error.cause(), UringDenial::Seccomp | UringDenial::Sysctl(_)), "{text}");
    assert!(text.contains("remedy:"), "{text}");
    if error.cause() == UringDenial::Seccomp {
        assert!(text.contains("seccomp profile denies"), "{text}");
        assert!(text.contains("allow io_uring_setup"), "{text}");
    }
}

#[test]
fn a_filter_as_podmans_is_named_with_its_remedy() {
    let error = probe_denied(libc::ENOSYS);
    let text = error.to_string();
    assert_eq!(error.cause(), UringDenial::Missing);
    assert!(text.contains("Podman") && text.contains("remedy: allow io_uring_setup"), "{text}");
}

/// Runs one test of this program again, in a child that `command` has prepared.
fn run_again(command: &mut Command, test: &str) -> String {
    command.args(child_arguments(module_path!(), test)).env("SKEP_TEST_CHILD", "1");
    let output = command.output().unwrap();
    assert_passed(&output);
    let (stdout, stderr) = texts(&output);
    stdout + &stderr
}

fn is_child() -> bool {
    std::env::var_os("SKEP_TEST_CHILD").is_some()
}

#[test]
fn a_child_process_meets_what_container_runtimes_do() {
    if is_child() {
        let error = probe().unwrap_err();
        let works = Server::start(DatagramBackend::Mmsg, &["127.0.0.1:0"]);
        ask(&client("127.0.0.1:0"), works.address(0), b"without a ring");
        works.finish();
        println!("verdict {} {error}", error.cause().label());
        return;
    }
    let name = "a_child_process_meets_what_container_runtimes_do";
    let program = std::env::current_exe().unwrap();
    let run_with = |errno| without_io_uring(errno, || run_again(&mut Command::new(&program), name));
    let text = run_with(libc::ENOSYS);
    assert!(text.contains("verdict missing") && text.contains("remedy: allow"), "{text}");
    let text = run_with(libc::EPERM);
    let named = ["verdict seccomp", "verdict sysctl"].iter().any(|it| text.contains(it));
    assert!(named && text.contains("remedy:"), "{text}");
}

/// Addresses for a namespace of the test's own; the last of each family is taken away again.
const NAMESPACE: &str = "ip link set lo up && \
    ip -6 addr add 2001:db8::1/128 dev lo nodad && ip -6 addr add 2001:db8::2/128 dev lo nodad && \
    ip -6 addr add 2001:db8::dead/128 dev lo nodad && ip addr add 192.0.2.1/32 dev lo && \
    ip addr add 192.0.2.99/32 dev lo";

#[test]
fn several_addresses_and_failing_sends_in_a_namespace() {
    const NAME: &str = "several_addresses_and_failing_sends_in_a_namespace";
    if is_child() {
        for_each_backend(|backend| {
            answer_from_each_address(backend);
            survive_failing_sends(backend);
        });
        println!("in the namespace: done");
        return;
    }
    let program = std::env::current_exe().unwrap();
    let probe = Command::new("unshare").args(["--net", "sh", "-c", NAMESPACE]).output();
    match probe {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            return skip(&format!("a network namespace with addresses of its own: {why}"));
        }
        Err(error) => return skip(&format!("unshare not found: {error}")),
    }
    let script = format!("{NAMESPACE} && exec \"$0\" \"$@\"");
    let mut command = Command::new("unshare");
    command.args(["--net", "sh", "-c", &script]).arg(program);
    let text = run_again(&mut command, NAME);
    assert!(text.contains("in the namespace: done"), "{text}");
}

fn answer_from_each_address(backend: DatagramBackend) {
    let server = Server::start(backend, &["[::]:0", "0.0.0.0:0"]);
    for ip in ["::1", "2001:db8::1", "2001:db8::2"] {
        let target = SocketAddr::new(ip.parse().unwrap(), server.address(0).port());
        assert_eq!(ask(&client("[::1]:0"), target, b"which one?"), target);
    }
    for ip in ["127.0.0.1", "127.1.2.3", "192.0.2.1"] {
        let target = SocketAddr::new(ip.parse().unwrap(), server.address(1).port());
        assert_eq!(ask(&client("127.0.0.1:0"), target, b"which one?"), target);
    }
    server.finish();
}

/// The address asked vanishes before the answer leaves; a client has no way back.
fn survive_failing_sends(backend: DatagramBackend) {
    let server = Server::start_with(backend, &["[::]:0", "0.0.0.0:0"], || {
        ip_address("del", "2001:db8::dead/128");
        ip_address("del", "192.0.2.99/32");
    });
    let ports = [server.address(0).port(), server.address(1).port()];
    let gone_v6 = SocketAddr::new("2001:db8::dead".parse().unwrap(), ports[0]);
    let gone_v4 = SocketAddr::new("192.0.2.99".parse().unwrap(), ports[1]);
    client("[::1]:0").send_to(CUT, gone_v6).unwrap();
    let answered = |family| sum(&server.counters, family).1;
    wait_until(|| answered(Family::V6) == 1);
    ip_address("add", "192.0.2.99/32");
    client("127.0.0.1:0").send_to(CUT, gone_v4).unwrap();
    wait_until(|| answered(Family::V4) == 1);
    // Which errno tells that an address is gone differs between families and kernels.
    let events = [IoEvent::SendFailed, IoEvent::SendUnreachable];
    let failed = || events.map(|it| server.counters.io_event(it).get());
    wait_until(|| failed().iter().sum::<u64>() == 2);
    let [gone, unreachable] = failed();

    send_from_nowhere(SocketAddr::new("127.0.0.1".parse().unwrap(), ports[1]));
    wait_until(|| failed() == [gone, unreachable + 1]);
    let target = SocketAddr::new("127.0.0.1".parse().unwrap(), ports[1]);
    assert_eq!(ask(&client("127.0.0.1:0"), target, b"alive?"), target);
    let counters = server.finish();
    assert_eq!(sum(&counters, Family::V4), (3, 3, 0));
    ip_address("add", "2001:db8::dead/128");
    ip_address("add", "192.0.2.99/32");
}

fn ip_address(verb: &str, address: &str) {
    let mut command = Command::new("ip");
    command.args(["addr", verb, address, "dev", "lo"]);
    if address.contains(':') && verb == "add" {
        command.arg("nodad");
    }
    // Adding what is there, or deleting what is not, is fine.
    command.output().unwrap();
}

/// A datagram whose source, a documentation address, has no route.
fn send_from_nowhere(target: SocketAddr) {
    use socket2::{Domain, Protocol, Socket, Type};
    let raw =
        Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
    let datagram = udp(7, target.port());
    let SocketAddr::V4(to) = target else { panic!("IPv4 only") };
    let length = u16::try_from(20 + datagram.len()).unwrap().to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 17, 0, 0, 203, 0, 113, 9];
    packet.extend(to.ip().octets());
    packet.extend(datagram);
    raw.send_to(&packet, &target.into()).unwrap();
}
