//! The real program, with every buffer of its connections filled and with work that costs it most:
//! memory keeps to its cap, a source gets its share of the processor, and others are served.
#![allow(clippy::disallowed_methods, reason = "a test measures time")]

use std::any::Any;
use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use socket2::{Domain, Socket, Type};

use crate::support::tcp_clients::{Browser, Certificate, announce, ask_with, web_announce};
use crate::support::{DEADLINE, Skep, backends, command, eventually};

const MIB: u64 = 1 << 20;

/// Little more than the process takes without a connection in a build that is not optimised.
const CAP: u64 = 96 * MIB;

/// Starts it with TLS and two workers; no source is exempt from limits.
fn start(io: &str, folder: &Path, certificate: &Certificate) -> Skep {
    let settings = folder.join("skep.toml");
    let text = format!(
        "[limits]\nexempt = []\n[memory]\nmax_memory = \"{} MiB\"\n\
         [tls]\nlisten = [\"127.0.0.1:0\"]\ncertificate = {:?}\nkey = {:?}\n",
        CAP / MIB,
        certificate.certificate,
        certificate.key
    );
    std::fs::write(&settings, text).unwrap();
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--workers", "2", "--io", io, "--config"]);
    command.arg(settings);
    Skep::spawn(command)
}

/// A connection from an address of this host, which takes little of what is sent to it.
fn connect_from(source: Ipv4Addr, address: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect_timeout(&address.into(), DEADLINE).ok()?;
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    Some(stream)
}

/// The nth of many sources, each in an IPv4 /24 of its own.
fn source(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(127, 10 + high, low, 1)
}

/// A kilobyte figure of /proc/PID/status, in bytes.
fn status_bytes(id: u32, key: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find_map(|it| it.strip_prefix(key)).unwrap();
    let kib: u64 = line.trim_matches(|it: char| !it.is_ascii_digit()).parse().unwrap();
    kib * 1024
}

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

/// What an attacker's connection is filled with. What the server does not take any more is lost.
#[derive(Clone, Copy, Debug)]
enum Filling {
    /// Most of the head of a request.
    Head,
    /// Most of a WebSocket message, in fragments.
    Fragments,
    /// Responses that are not read.
    Responses,
    /// Most of a ClientHello.
    Handshake,
    /// Most of a WebSocket message over TLS, in fragments.
    SecureFragments,
}

/// A connection that is held, with what it needs.
type Attacker = Box<dyn Any>;

/// Most of a WebSocket message, in fragments, behind the request for one.
fn fragments() -> Vec<u8> {
    let payload = vec![b'a'; 15_000];
    let fragment = |first| [&[first, 0xfe, 0x3a, 0x98, 0, 0, 0, 0], &payload[..]].concat();
    let (first, more) = (fragment(0x01), fragment(0x00));
    [UPGRADE, &first, &more, &more, &more].concat()
}

impl Filling {
    fn fill(self, skep: &Skep, client: &Arc<ClientConfig>, from: Ipv4Addr) -> Option<Attacker> {
        let is_secure = matches!(self, Self::Handshake | Self::SecureFragments);
        let mut stream = connect_from(from, if is_secure { skep.tls[0] } else { skep.tcp[0] })?;
        let bytes = match self {
            Self::Head => {
                format!("GET / HTTP/1.1\r\n{}", "A: b\r\n".repeat(50) + &"x".repeat(7_000))
                    .into_bytes()
            }
            Self::Fragments => fragments(),
            Self::SecureFragments => {
                let name = ServerName::try_from("localhost").unwrap();
                let connection = ClientConnection::new(client.clone(), name).unwrap();
                let mut stream = StreamOwned::new(connection, stream);
                let _ = stream.write_all(&fragments());
                return Some(Box::new(stream));
            }
            Self::Responses => {
                let hash = |n: u32| format!("\"\\u0001{n:019}\"");
                let hashes: Vec<_> = (0..60).map(hash).collect();
                let text =
                    format!("{{\"action\":\"scrape\",\"info_hash\":[{}]}}", hashes.join(","));
                let length = u16::try_from(text.len()).unwrap().to_be_bytes();
                let frame = [&[0x81, 0xfe, length[0], length[1], 0, 0, 0, 0], text.as_bytes()];
                [UPGRADE, &frame.concat().repeat(40)].concat()
            }
            Self::Handshake => {
                let record = |of: &[u8]| [&[22, 3, 1, 0x3e, 0x80], of].concat();
                let first = record(&[&[1, 0, 0xff, 0xf0, 3, 3], &[0; 15_994][..]].concat());
                let more = record(&[0; 16_000]);
                [first, more.clone(), more.clone(), more].concat()
            }
        };
        let _ = stream.write_all(&bytes);
        Some(Box::new(stream))
    }
}

/// Connections of a round: four of one source of each kind.
fn fill(skep: &Skep, client: &Arc<ClientConfig>, round: u16) -> Vec<Attacker> {
    let kinds = [Filling::Handshake, Filling::Head, Filling::Fragments, Filling::SecureFragments];
    let number = round % 47 * 5; // of 235 sources
    let each = (0..).zip(kinds).flat_map(|(at, kind)| [(at, kind); 4]);
    // Responses cost the server most: some of them do.
    let all = each.chain(round.is_multiple_of(4).then_some((4, Filling::Responses)));
    all.filter_map(|(at, kind)| kind.fill(skep, client, source(number + at))).collect()
}

/// What clients do that are none of the attackers: over HTTP, HTTPS and WebSockets.
fn be_served(skep: &Skep, certificate: &Certificate) {
    let announced = ask_with(skep.tcp[0], None, &announce(1, 6881, ""), "");
    assert!(announced.bencoded().contains_key(&b"interval"[..]));
    let client = certificate.client();
    let announced = ask_with(skep.tls[0], Some(&client), &announce(2, 6881, ""), "");
    assert!(announced.bencoded().contains_key(&b"interval"[..]));
    let mut browser = Browser::open(skep.tcp[0], None);
    let mut message = web_announce(b'a', b'b', 1, 5);
    message["offers"][0]["offer"]["sdp"] = "x".repeat(12_000).into();
    assert_eq!(browser.ask(&message)["info_hash"], message["info_hash"]);
}

/// Ends the threads beside it, also where it fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn with_every_buffer_full_the_process_keeps_to_its_cap_and_serves() {
    rlimit::increase_nofile_limit(8192).unwrap(); // of this process, and of the one it starts
    for io in backends() {
        let folder = tempfile::tempdir().unwrap();
        let certificate = Certificate::write(folder.path());
        let skep = start(io, folder.path(), &certificate);
        let (limit, used) = ("skep_connections_limit_bytes", "skep_connections_used_bytes");
        let bound = skep.metrics().value(limit);
        let [served, failed] = [(); 2].map(|()| AtomicU32::new(0));
        let is_over = AtomicBool::new(false);
        let most = std::thread::scope(|threads| {
            let sampler = threads.spawn(|| {
                let mut most = 0.0_f64;
                while !is_over.load(Ordering::Relaxed) {
                    most = most.max(skep.metrics().value(used));
                }
                most
            });
            threads.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let attempt = AssertUnwindSafe(|| be_served(&skep, &certificate));
                    let is_served = std::panic::catch_unwind(attempt).is_ok();
                    let count = if is_served { &served } else { &failed };
                    count.fetch_add(1, Ordering::Relaxed);
                    // Its source has 25 handshakes a second.
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
            let (end, client) = (End(&is_over), certificate.client());
            let (begun, mut held) = (Instant::now(), VecDeque::new());
            for round in 0_u16.. {
                let is_served = served.load(Ordering::Relaxed) >= 3;
                if (round >= 150 && is_served) || begun.elapsed() > DEADLINE {
                    break;
                }
                held.extend(fill(&skep, &client, round));
                held.drain(..held.len().saturating_sub(2_000));
            }
            drop(end);
            sampler.join().unwrap()
        });
        let [served, failed] = [served, failed].map(AtomicU32::into_inner);
        assert!(served >= 3 && failed * 4 <= served, "{io}: {served} served, {failed} not");
        let peak = status_bytes(skep.id(), "VmHWM:");
        assert!(peak <= CAP / 4 * 5, "{io}: {} MiB", peak / MIB);
        let metrics = skep.metrics();
        let closed = metrics.sum("skep_connections_closed_total", "reason=\"memory\"");
        assert!(closed > 200.0 && most > bound / 2.0, "{io}: {closed} closed, {most} of {bound}");
        assert!(most <= bound * 1.25, "{io}: {most} of {bound} bytes");
        eventually("what was held is given back", || skep.metrics().value(used) < bound / 4.0);
    }
}

/// Sends a TLS client's first message from `source` on a new connection, and reads the beginning of
/// the response, if there is one.
fn greet(skep: &Skep, source: Ipv4Addr, hello: &[u8]) {
    let mut stream = connect_from(source, skep.tls[0]).unwrap();
    let _ = stream.write_all(hello);
    let _ = stream.read(&mut [0; 16]);
}

/// A handshake costs a thousand times as much as closing a connection, so what a flood can cost is
/// the number of handshakes: every other connection has to be closed before its own.
#[test]
fn a_flood_gets_the_handshakes_that_one_source_may_have_and_no_other_work() {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
    let rsa = Certificate {
        certificate: data.join("rsa_certificate.pem"),
        key: data.join("rsa_key.pem"),
    };
    let folder = tempfile::tempdir().unwrap();
    let skep = start("auto", folder.path(), &rsa);
    let name = ServerName::try_from("localhost").unwrap();
    let mut hello = Vec::new();
    ClientConnection::new(rsa.client(), name).unwrap().write_tls(&mut hello).unwrap();
    let kinds = ["full", "resumed", "failed"].map(|kind| format!("kind=\"{kind}\""));
    let counts = || {
        let metrics = skep.metrics();
        let handshakes = kinds.iter().map(|it| metrics.sum("skep_tls_handshakes_total", it)).sum();
        (handshakes, metrics.sum("skep_connections_closed_total", "reason=\"limited\""))
    };

    let (begun, mut tries) = (Instant::now(), 0_u32);
    // On a busy machine until there were more than may be had.
    while begun.elapsed() < Duration::from_secs(6) || tries < 900 {
        assert!(begun.elapsed() < DEADLINE, "{tries} connections");
        // A thousand a second: what one source got when nothing limited handshakes.
        let due = Duration::from_millis(tries.into());
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        greet(&skep, Ipv4Addr::new(127, 9, 9, 9), &hello);
        tries += 1;
    }
    let elapsed_s = begun.elapsed().as_secs_f64();
    // The last one may be counted after its response was read.
    let is_counted = |(handshakes, closed): (f64, f64)| handshakes + closed >= f64::from(tries);
    eventually("every connection is counted", || is_counted(counts()));
    let (handshakes, closed) = counts();
    // Ten seconds of the rate at once, and the rate: at four units each.
    let most = 25.0 * (10.0 + elapsed_s) * 1.1;
    assert!((1.0..=most).contains(&handshakes), "{handshakes} of {tries} in {elapsed_s} s");
    assert_eq!(handshakes + closed, f64::from(tries), "closed before its handshake, or after it");
    be_served(&skep, &rsa);
}
