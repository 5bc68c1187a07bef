//! Requests as real clients send them (tests/data/clients), into the front ends of an open and of a
//! private tracker: each is served, and its peer is stored as it says.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bt_bencode::Value;
use sha2::{Digest as _, Sha256};
use skep::access::lists::Lists;
use skep::access::mode::Mode;
use skep::access::passkey::{Limits, Record, Totals};
use skep::access::{self, Access};
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::http::{HttpFrontend, ReceiveOutcome};
use skep::frontend::origin::Origin;
use skep::frontend::udp::UdpFrontend;
use skep::frontend::{RESPONSE_BYTES_MAX, Responder};
use skep::protocol::udp::client::{Response, decode};
use skep::protocol::udp::{self, Request};
use skep::protocol::{http, passkey};
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::Tracker;
use skep::types::{Action, Family, InfoHash, Outcome, Refusal, Rejected};

const NOW: Now = Now::from_s(1_800_000_000);

/// A request that was captured: what stands before it, and its bytes.
struct Captured {
    label: String,
    bytes: Vec<u8>,
}

impl Captured {
    fn says(&self, word: &str) -> bool {
        self.label.split(" | ").any(|it| it == word)
    }

    fn source(&self) -> IpAddr {
        let address = if self.says("v6") { "2001:db8::1" } else { "198.51.100.1" };
        address.parse().unwrap()
    }

    /// Seeders and leechers of its torrent after it.
    fn counts(&self) -> (u32, u32) {
        match (self.says("stopped"), self.says("seeder")) {
            (true, _) => (0, 0),
            (false, true) => (1, 0),
            (false, false) => (0, 1),
        }
    }
}

/// The requests of a file: a line that says what follows, and the line that follows.
fn captured(file: &str, bytes_of: fn(&str) -> Vec<u8>) -> Vec<Captured> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/clients");
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let (pairs, []) = lines.as_chunks::<2>() else { panic!("{file} has pairs of lines") };
    let read = |[label, line]: &[&str; 2]| {
        let label = label.strip_prefix("# ").unwrap().to_owned();
        Captured { label, bytes: bytes_of(line) }
    };
    pairs.iter().map(read).collect()
}

fn hex(digits: &str) -> Vec<u8> {
    let (pairs, []) = digits.as_bytes().as_chunks::<2>() else { panic!("{digits}") };
    let byte = |pair: &[u8; 2]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    pairs.iter().map(byte).collect()
}

/// Bytes in which `\r`, `\n` and `\xNN` stand for others.
fn unescaped(text: &str) -> Vec<u8> {
    let mut parts = text.split('\\');
    let mut bytes = parts.next().unwrap().as_bytes().to_vec();
    for part in parts {
        let (byte, used) = match part.as_bytes()[0] {
            b'r' => (b'\r', 1),
            b'n' => (b'\n', 1),
            b'x' => (u8::from_str_radix(&part[1..3], 16).unwrap(), 3),
            other => panic!("what is `\\{}`?", char::from(other)),
        };
        bytes.push(byte);
        bytes.extend(&part.as_bytes()[used..]);
    }
    bytes
}

/// A tracker without sockets.
struct Site {
    access: Arc<Access>,
    store: Arc<Store>,
    ids: ConnectionIds,
    udp: UdpFrontend,
    http: HttpFrontend,
    tracker: Tracker,
    now: Now,
}

impl Site {
    fn new(mode: Mode) -> Self {
        let access = Arc::new(Access::new(mode, Lists::default()));
        let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
        let keys = KeyPair { active: [7; KEY_BYTES], staging: None, algorithm: Algorithm::SipHash };
        let ids = ConnectionIds::new(&keys);
        let admitting = |it: Tracker| it.with_access(access::Gate::new(access.clone()));
        let datagrams = admitting(Tracker::new(store.clone(), Arc::default(), 1, 0, 1));
        let tracker = admitting(Tracker::without_upkeep(store.clone(), Arc::default(), 2));
        let udp = UdpFrontend::new(datagrams, Arc::new(ArcSwap::from_pointee(ids.clone())));
        let http = HttpFrontend::new(Arc::default(), Arc::default());
        Self { access, store, ids, udp, http, tracker, now: NOW }
    }

    /// Registers a torrent, and issues the passkey of these digits.
    fn register(&self, info_hash: InfoHash, digits: &[u8]) {
        self.access.registry().insert(info_hash, info_hash);
        let key = hex(std::str::from_utf8(digits).unwrap());
        let totals = Totals::default();
        let record = Record { name: String::new(), limits: Limits::default(), issued_s: 0, totals };
        self.access.passkeys().insert(Sha256::digest(&key).into(), &record);
    }

    fn counts(&self, info_hash: &InfoHash) -> (u32, u32) {
        let entry = self.store.scrape(info_hash);
        (entry.seeders, entry.leechers)
    }

    /// How a request over HTTP ends, and the body of the response.
    fn ask_http(&mut self, request: &Captured) -> (Outcome, Value) {
        let (origin, mut out) = (Origin::Address(request.source()), Vec::new());
        let flow = self.http.handle(&mut self.tracker, self.now, origin, &request.bytes, &mut out);
        let ReceiveOutcome::Responded { consumed, outcome, .. } = flow else {
            panic!("{}: {flow:?}", request.label)
        };
        assert_eq!(consumed, request.bytes.len(), "{}", request.label);
        assert!(out.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", request.label);
        let head = out.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        (outcome, bt_bencode::from_slice(&out[head..]).unwrap())
    }

    /// What a datagram is answered, under a connection id of this tracker.
    fn ask_udp(&mut self, request: &Captured) -> (Option<Refusal>, Action, usize) {
        let mut bytes = request.bytes.clone();
        if !request.says("connect") {
            let id = self.ids.issue(self.now, request.source());
            bytes[..8].copy_from_slice(&id.to_be_bytes());
        }
        let mut out = [0; RESPONSE_BYTES_MAX];
        let source = SocketAddr::new(request.source(), 50_000);
        let answered = self.udp.handle(self.now, source, &bytes, &mut out).unwrap();
        let response = &out[..answered.bytes];
        let (transaction, response) = decode(response, Family::of(request.source())).unwrap();
        assert_eq!(transaction.0, request.bytes[12..16], "{}", request.label);
        if let Response::Announced(told, _) = response {
            assert_eq!((told.seeders, told.leechers), request.counts(), "{}", request.label);
        }
        (answered.refusal, answered.action, answered.bytes)
    }
}

/// Path and info-hash of a request over HTTP.
fn of_http(request: &Captured) -> (&[u8], InfoHash) {
    let mut words = request.bytes.splitn(2, |it| *it == b' ').skip(1);
    let target = words.next().unwrap();
    let mut parts = target.splitn(2, |it| *it == b'?');
    let (path, query) = (parts.next().unwrap(), parts.next().unwrap());
    let query = query.split(|it| *it == b'\r').next().unwrap();
    let query = query.rsplitn(2, |it| *it == b' ').nth(1).unwrap();
    let mut info_hashes = Vec::new();
    http::scrape(query, &mut info_hashes).unwrap();
    (path, info_hashes[0])
}

#[test]
fn requests_over_http_are_served() {
    let all = captured("http.txt", unescaped);
    assert!(all.len() > 80);
    for request in &all {
        let (path, info_hash) = of_http(request);
        let mut site = Site::new(Mode::Open);
        let (outcome, body) = site.ask_http(request);
        let label = &request.label;
        if path.starts_with(b"/nothing/") {
            assert_eq!(outcome, Outcome::Rejected(Rejected::NotFound), "{label}");
            assert!(body.get("failure reason").is_some(), "{label}");
        } else if path.ends_with(b"/scrape") {
            assert_eq!(outcome, Outcome::Answered(Action::Scrape), "{label}");
        } else {
            assert_eq!(outcome, Outcome::Answered(Action::Announce), "{label}");
            assert_eq!(site.counts(&info_hash), request.counts(), "{label}");
        }
    }
}

#[test]
fn requests_over_udp_are_served() {
    let all = captured("udp.txt", hex);
    assert!(all.len() > 40);
    for request in &all {
        let mut site = Site::new(Mode::Open);
        let (refusal, action, bytes) = site.ask_udp(request);
        let label = &request.label;
        assert_eq!(refusal, None, "{label}");
        match action {
            Action::Connect => assert_eq!(bytes, 16, "{label}"),
            Action::Scrape => assert_eq!(bytes, 8 + 12, "{label}"),
            _ => {
                let info_hash = *udp::peek_info_hash(&request.bytes).unwrap();
                assert_eq!(site.counts(&info_hash), request.counts(), "{label}");
            }
        }
    }
}

#[test]
fn a_private_tracker_serves_those_with_passkey_and_torrent() {
    let mut passkeys = [0, 0];
    for request in captured("http.txt", unescaped) {
        let (path, info_hash) = of_http(&request);
        let mut site = Site::new(Mode::Private);
        let Some(key) = passkey::of_path(path) else { continue };
        passkeys[0] += 1;
        let label = &request.label;
        let unknown = Outcome::Refused(Refusal::UnknownPasskey);
        assert_eq!(site.ask_http(&request).0, unknown, "{label}");
        site.register(info_hash, key);
        let (outcome, body) = site.ask_http(&request);
        assert!(matches!(outcome, Outcome::Answered(_)), "{label}: {body:?}");
    }
    for request in captured("udp.txt", hex) {
        let mut site = Site::new(Mode::Private);
        let Ok(Request::Announce(announce, options)) = udp::decode(&request.bytes) else {
            continue;
        };
        let url = options.url_data();
        let Some(key) = passkey::of_path(&url) else { continue };
        passkeys[1] += 1;
        assert!(request.says("url:passkey"), "{}", request.label);
        assert_eq!(site.ask_udp(&request).0, Some(Refusal::UnknownPasskey), "{}", request.label);
        site.register(announce.info_hash, key);
        assert_eq!(site.ask_udp(&request).0, None, "{}", request.label);
    }
    assert_eq!(passkeys, [29, 4]);
}

#[test]
fn what_is_not_registered_yet_may_be_asked_for_again_soon_and_is_served_at_once_when_it_is() {
    let all = captured("http.txt", unescaped);
    let request = all.iter().find(|it| it.says("/announce") && it.says("started")).unwrap();
    let (_, info_hash) = of_http(request);
    let mut site = Site::new(Mode::Registered);
    let mut waits = Vec::new();
    for _ in 0..12 {
        let (outcome, body) = site.ask_http(request);
        assert_eq!(outcome, Outcome::Refused(Refusal::Unregistered));
        let value = |key: &str| body.get(key).unwrap();
        let wait_s = value("interval").as_u64().unwrap();
        let minutes = value("retry in").as_byte_str().unwrap().as_slice();
        assert_eq!(minutes, wait_s.div_ceil(60).to_string().as_bytes());
        waits.push(wait_s);
        site.now = site.now.plus_s(wait_s);
    }
    assert!(waits.is_sorted() && (300..600).contains(&waits[0]), "{waits:?}");
    assert!(waits[1] < 600 && waits.last() == Some(&3600), "{waits:?}");
    site.access.registry().insert(info_hash, info_hash);
    assert_eq!(site.ask_http(request).0, Outcome::Answered(Action::Announce));
    assert_eq!(site.counts(&info_hash), request.counts());
}
