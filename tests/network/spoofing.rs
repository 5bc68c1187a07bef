//! Forged source addresses as they come over a wire: written by hand to a raw socket, in a network
//! namespace of the test's own, whose loopback has public addresses. Nothing leaves it. And whose
//! connection ids count for whom, between the addresses of one host.
#![allow(clippy::disallowed_methods, reason = "deadlines of tests are no time of the core")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use skep::protocol::udp::client::{Response, decode, encode_announce, encode_connect};
use skep::protocol::udp::{ANNOUNCE_BYTES, TransactionId};
use skep::types::Family;
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::{self, DEADLINE, Skep, assert_passed, child_arguments, command, leecher};

/// Set for the copy of this program that runs within the namespace.
const WITHIN: &str = "SKEP_TEST_WITHIN_NAMESPACE";

const TRACKER: Ipv4Addr = Ipv4Addr::new(8, 8, 0, 1);
const VICTIM: Ipv4Addr = Ipv4Addr::new(8, 8, 0, 2);
/// The port that is forged.
const FORGED_PORT: u16 = 7007;

/// How long a client waits before it connects once more.
const PATIENCE: Duration = Duration::from_millis(300);

const CONNECT_BYTES: usize = 16;
const HEADER_BYTES: usize = 28;

#[test]
fn a_victim_of_forged_datagrams_is_served_and_gets_no_more_than_was_forged() {
    let name = "a_victim_of_forged_datagrams_is_served_and_gets_no_more_than_was_forged";
    in_a_namespace(name, beside_a_forger);
}

#[test]
fn a_host_announces_from_all_its_ipv6_addresses_with_one_id() {
    let name = "a_host_announces_from_all_its_ipv6_addresses_with_one_id";
    in_a_namespace(name, from_several_addresses);
}

/// Runs the test of this name in a namespace of its own, where it is `test`.
fn in_a_namespace(name: &str, test: impl FnOnce()) {
    if std::env::var_os(WITHIN).is_some() {
        return test();
    }
    if !has_namespaces() {
        return;
    }
    let this = std::env::current_exe().unwrap();
    let mut within = Command::new("unshare");
    within.args(["--map-root-user", "--net"]).arg(this);
    within.args(child_arguments(module_path!(), name));
    assert_passed(&within.env(WITHIN, "1").output().unwrap());
}

/// Whether network namespaces can be made here; says so where they cannot.
fn has_namespaces() -> bool {
    let made = Command::new("unshare").args(["--map-root-user", "--net", "ip", "link"]).output();
    let why = match made {
        Ok(output) if output.status.success() => return true,
        Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
        Err(error) => error.to_string(),
    };
    assert_ne!(std::env::var("SKEP_REQUIRE_EXTERNAL").as_deref(), Ok("1"), "unshare: {why}");
    eprintln!("skipped: no network namespace: {why}");
    false
}

fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments}");
}

const TRACKER_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1);
/// Two addresses of one /64, as a host with a temporary address has them, and one of another.
const SEVERAL: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xaaaa),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0xbbbb),
    Ipv6Addr::new(0x2001, 0xdb8, 1, 1, 0, 0, 0, 0xaaaa),
];

fn from_several_addresses() {
    ip("link set lo up");
    if std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .is_ok_and(|it| it != "0\n")
    {
        return eprintln!("skipped: no IPv6");
    }
    for address in SEVERAL.iter().chain([&TRACKER_V6]) {
        ip(&format!("addr add {address}/128 dev lo nodad"));
    }
    let mut command = command();
    command.args(["--listen", &format!("[{}]:0", TRACKER_V6), "--workers", "1"]);
    let skep = Skep::spawn(command);
    let sockets = SEVERAL.map(|address| {
        let socket = UdpSocket::bind((address, 0)).unwrap();
        socket.connect(skep.udp[0]).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    });
    let mut buffer = [0; 2048];
    let bytes = encode_connect(TransactionId([1; 4]), &mut buffer);
    sockets[0].send(&buffer[..bytes]).unwrap();
    let bytes = sockets[0].recv(&mut buffer).unwrap();
    let (_, Response::Connected(id)) = decode(&buffer[..bytes], Family::V6).unwrap() else {
        panic!("no connect reply")
    };
    let announce = |socket: &UdpSocket| {
        let mut request = [0; ANNOUNCE_BYTES];
        let bytes = encode_announce(id, TransactionId([2; 4]), &leecher(5, 6881), &mut request);
        socket.send(&request[..bytes]).unwrap();
    };
    for (leechers, socket) in (1..).zip(&sockets[..2]) {
        announce(socket);
        let bytes = socket.recv(&mut buffer).unwrap();
        let (_, Response::Announced(told, _)) = decode(&buffer[..bytes], Family::V6).unwrap()
        else {
            panic!("no announce reply")
        };
        assert_eq!(told.leechers, leechers, "each address is a peer");
    }
    announce(&sockets[2]);
    let forged = || skep.metrics().sum("skep_dropped_total", "reason=\"forged_id\"");
    support::eventually("an id of another /64 is worth nothing", || forged() > 0.5);
    sockets[2].set_nonblocking(true).unwrap();
    assert!(sockets[2].recv(&mut buffer).is_err(), "and met with silence");
    assert!(forged() < 1.5);
}

fn beside_a_forger() {
    ip("link set lo up");
    ip("addr add 8.8.0.1/16 dev lo");
    let mut command = command();
    command.args(["--listen", &format!("{TRACKER}:0"), "--workers", "1"]);
    let skep = Skep::spawn(command);
    let SocketAddr::V4(tracker) = skep.udp[0] else { unreachable!("it listens on IPv4") };
    // Reflected responses are for this socket: what it is sent is counted.
    let reflected = UdpSocket::bind((VICTIM, FORGED_PORT)).unwrap();
    reflected.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut known = Victim::new(tracker);
    known.connect_within(4).unwrap();

    let (stop, forged_bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let reflected_bytes = std::thread::scope(|scope| {
        scope.spawn(|| forge(tracker, &stop, &forged_bytes));
        let counting = scope.spawn(|| count(&reflected, &stop));
        let seen = || skep.metrics().sum("skep_dropped_total", "reason=\"limited_connect\"");
        support::eventually("the forger is over the limit", || seen() > 0.0);
        for _ in 0..50 {
            assert!(known.announce(), "verified work is done whatever is forged");
        }
        for visit in 1..=8 {
            let mut newcomer = Victim::new(tracker);
            let tries = newcomer.connect_within(4);
            assert!(tries.is_some(), "visit {visit}: an id within four tries");
            assert!(newcomer.announce());
        }
        stop.store(true, Ordering::Relaxed);
        counting.join().unwrap()
    });
    let forged_bytes = forged_bytes.load(Ordering::Relaxed);
    assert!(reflected_bytes > 0 && reflected_bytes < forged_bytes / 4, "{reflected_bytes}");
    let metrics = skep.metrics();
    assert!(metrics.sum("skep_dropped_total", "reason=\"forged_id\"") > 1000.0);
    let limited = "skep_limited_total{table=\"verified\",action=\"limited\"}";
    assert!(metrics.value(limited).abs() < 0.5, "nobody is charged for what was forged");
}

/// A client of the victim's address, on a port of its own.
struct Victim {
    socket: UdpSocket,
    connection_id: u64,
    transactions: u32,
}

impl Victim {
    fn new(tracker: SocketAddrV4) -> Self {
        let socket = UdpSocket::bind((VICTIM, 0)).unwrap();
        socket.connect(tracker).unwrap();
        Self { socket, connection_id: 0, transactions: 0 }
    }

    /// Fetches an id with so many connects at most; says with how many.
    fn connect_within(&mut self, tries: u32) -> Option<u32> {
        (1..=tries).find(|_| {
            let mut request = [0; CONNECT_BYTES];
            encode_connect(self.transaction(), &mut request);
            self.socket.send(&request).unwrap();
            let Some(response) = self.hear(PATIENCE) else { return false };
            let (_, Response::Connected(id)) = decode(&response, Family::V4).unwrap() else {
                panic!("{response:?}")
            };
            self.connection_id = id;
            true
        })
    }

    /// Announces once; says whether that was answered.
    fn announce(&mut self) -> bool {
        let announcement = leecher(5, 6881);
        let mut request = [0; ANNOUNCE_BYTES];
        encode_announce(self.connection_id, self.transaction(), &announcement, &mut request);
        self.socket.send(&request).unwrap();
        let response = self.hear(DEADLINE);
        response.is_some_and(|datagram| {
            matches!(decode(&datagram, Family::V4).unwrap(), (_, Response::Announced(..)))
        })
    }

    fn transaction(&mut self) -> TransactionId {
        self.transactions += 1;
        TransactionId(self.transactions.to_be_bytes())
    }

    fn hear(&self, patience: Duration) -> Option<Vec<u8>> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut response = [0; 2048];
        let bytes = self.socket.recv(&mut response).ok()?;
        Some(response[..bytes].to_vec())
    }
}

/// Sends connects, and announces with ids that nobody gave out, in the victim's name: some ten
/// thousand a second, until told to stop or too long has passed.
fn forge(tracker: SocketAddrV4, stop: &AtomicBool, bytes: &AtomicU64) {
    const PER_ROUND: u32 = 20;
    const ROUND: Duration = Duration::from_millis(2);
    let raw = Protocol::from(255); // IPPROTO_RAW: the header is ours
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(raw)).unwrap();
    let mut connect = [0; CONNECT_BYTES];
    encode_connect(TransactionId([7; 4]), &mut connect);
    let mut announce = [0; ANNOUNCE_BYTES];
    encode_announce(0x0123_4567_89ab_cdef, TransactionId([8; 4]), &leecher(5, 6881), &mut announce);
    let datagrams = [forged(tracker, &connect), forged(tracker, &announce)];
    let begun = Instant::now();
    for round in 1.. {
        if stop.load(Ordering::Relaxed) || begun.elapsed() > 3 * DEADLINE {
            return;
        }
        for nth in 0..PER_ROUND {
            let datagram = &datagrams[nth as usize % 2];
            // A full queue on the way is no failure of the test.
            if socket.send_to(datagram, &tracker.into()).is_ok() {
                bytes.fetch_add((datagram.len() - HEADER_BYTES) as u64, Ordering::Relaxed);
            }
        }
        std::thread::park_timeout((ROUND * round).saturating_sub(begun.elapsed()));
    }
}

/// A UDP datagram in the victim's name, from its IPv4 header on (RFC 791, RFC 768).
fn forged(tracker: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(HEADER_BYTES + payload.len()).unwrap();
    let mut datagram = vec![0x45, 0];
    datagram.extend(length.to_be_bytes());
    datagram.extend([0, 0, 0, 0, 64, 17, 0, 0]); // the kernel fills in the header's checksum
    datagram.extend(VICTIM.octets());
    datagram.extend(tracker.ip().octets());
    datagram.extend(FORGED_PORT.to_be_bytes());
    datagram.extend(tracker.port().to_be_bytes());
    datagram.extend((length - 20).to_be_bytes());
    datagram.extend([0, 0]); // no checksum of the payload: allowed over IPv4
    datagram.extend(payload);
    datagram
}

/// Counts the payload that a socket is sent, until told to stop.
fn count(socket: &UdpSocket, stop: &AtomicBool) -> u64 {
    let (mut bytes, mut datagram) = (0, [0; 2048]);
    while !stop.load(Ordering::Relaxed) {
        bytes += socket.recv(&mut datagram).map_or(0, |it| it as u64);
    }
    bytes
}
