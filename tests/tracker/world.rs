//! A tracker behind three front ends, without sockets, and clients of each protocol that are known
//! by number.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use bt_bencode::Value;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::http::{HttpFrontend, ReceiveOutcome};
use skep::frontend::origin::Origin;
use skep::frontend::udp::UdpFrontend;
use skep::frontend::{RESPONSE_BYTES_MAX, Responder, stats, ws};
use skep::protocol::udp::client::{self, Announcement, Response};
use skep::protocol::udp::{ANNOUNCE_BYTES, TransactionId, peer_stride};
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};
use skep::types::{Event, Family, InfoHash, PeerId};

use crate::spelling::{encoded, event};
use crate::support::webtorrent_workers::{Hive, TORRENT, announce, offer, scrape};

const PORT: u16 = 6881;
const TRANSACTION: TransactionId = TransactionId([1, 2, 3, 4]);

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Udp,
    Http,
    WebSocket,
}

impl Protocol {
    pub(crate) const ALL: [Self; 3] = [Self::Udp, Self::Http, Self::WebSocket];

    /// Whether clients of both can be handed each other.
    pub(crate) fn meets(self, other: Self) -> bool {
        (self == Self::WebSocket) == (other == Self::WebSocket)
    }
}

/// An announce of a client.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) peer: u8,
    pub(crate) event: Event,
    /// 2^64-1: not known.
    pub(crate) left: u64,
    pub(crate) numwant: Option<u32>,
}

/// What it is told.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) seeders: u32,
    pub(crate) leechers: u32,
    pub(crate) peers: BTreeSet<u8>,
}

/// Which family a client has an address of.
pub(crate) type FamilyOf = fn(u8) -> Family;

pub(crate) struct World {
    family_of: FamilyOf,
    udp: UdpFrontend,
    ids: ConnectionIds,
    http: HttpFrontend,
    http_tracker: Tracker,
    hive: Hive,
}

impl World {
    /// One whose clients have addresses of these families.
    pub(crate) fn new(family_of: FamilyOf) -> Self {
        let store = Arc::new(Store::new(store::Options { shards: 2, seed: Some(1) }));
        let rules = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
        let keys = KeyPair { active: [7; KEY_BYTES], staging: None, algorithm: Algorithm::SipHash };
        let ids = ConnectionIds::new(&keys);
        let tracker = Tracker::new(store.clone(), rules.clone(), 1, 0, 1);
        let udp = UdpFrontend::new(tracker, Arc::new(ArcSwap::from_pointee(ids.clone())));
        let pages = Arc::new(ArcSwap::from_pointee(stats::Pages::default()));
        let http = HttpFrontend::new(Arc::default(), pages);
        let http_tracker = Tracker::without_upkeep(store.clone(), rules, 2);
        let options = ws::Options { offers_max: 50, ..ws::Options::default() };
        let hive = Hive::on(store, options);
        Self { family_of, udp, ids, http, http_tracker, hive }
    }

    fn now(&self) -> Now {
        self.hive.now
    }

    fn address(&self, peer: u8) -> IpAddr {
        match (self.family_of)(peer) {
            Family::V4 => Ipv4Addr::new(8, 8, 8, peer).into(),
            Family::V6 => Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, peer.into()).into(),
        }
    }

    /// Time passes, and the worker that tidies the store does so.
    pub(crate) fn wait(&mut self, seconds: u64) {
        for _ in 0..seconds / 10 {
            self.hive.now = self.hive.now.plus_s(10);
            self.udp.upkeep(self.hive.now);
        }
    }

    /// `protocol_of` says which clients have WebSockets to hear of offers.
    pub(crate) fn announce(
        &mut self,
        protocol: Protocol,
        ask: &Ask,
        protocol_of: fn(u8) -> Protocol,
    ) -> Told {
        match protocol {
            Protocol::Udp => self.announce_udp(ask),
            Protocol::Http => self.announce_http(ask),
            Protocol::WebSocket => self.announce_web(ask, protocol_of),
        }
    }

    /// Seeders, completed, leechers.
    pub(crate) fn scrape(&mut self, protocol: Protocol) -> (u32, u32, u32) {
        match protocol {
            Protocol::Udp => self.scrape_udp(),
            Protocol::Http => self.scrape_http(),
            Protocol::WebSocket => self.scrape_web(),
        }
    }

    fn send_udp(&mut self, source: IpAddr, request: &[u8]) -> Vec<u8> {
        let mut out = [0; RESPONSE_BYTES_MAX];
        let source = SocketAddr::new(source, 50_000);
        let answered = self.udp.handle(self.now(), source, request, &mut out).unwrap();
        out[..answered.bytes].to_vec()
    }

    fn announce_udp(&mut self, ask: &Ask) -> Told {
        let source = self.address(ask.peer);
        let announcement = Announcement {
            info_hash: torrent(),
            peer_id: PeerId([ask.peer; 20]),
            downloaded: 0,
            left: ask.left,
            uploaded: 0,
            event: ask.event,
            numwant: ask.numwant.map_or(-1, |it| it.try_into().unwrap()),
            port: PORT,
            key: [0; 4],
        };
        let mut request = [0; ANNOUNCE_BYTES];
        let id = self.ids.issue(self.now(), source);
        client::encode_announce(id, TRANSACTION, &announcement, &mut request);
        let response = self.send_udp(source, &request);
        let family = (self.family_of)(ask.peer);
        let (_, Response::Announced(response, peers)) = client::decode(&response, family).unwrap()
        else {
            panic!("no announce reply");
        };
        let peers = numbers(family, peers);
        Told { seeders: response.seeders, leechers: response.leechers, peers }
    }

    fn scrape_udp(&mut self) -> (u32, u32, u32) {
        let (source, mut request) = (self.address(99), [0; 36]);
        let id = self.ids.issue(self.now(), source);
        client::encode_scrape(id, TRANSACTION, &[torrent()], &mut request);
        let response = self.send_udp(source, &request);
        let (_, Response::Scraped(entries)) =
            client::decode(&response, Family::of(source)).unwrap()
        else {
            panic!("no scrape reply");
        };
        let entry = entries.iter().next().unwrap();
        (entry.seeders, entry.completed, entry.leechers)
    }

    fn send_http(&mut self, source: IpAddr, target: &str) -> Value {
        let request = format!("GET {target} HTTP/1.1\r\nHost: tracker.example\r\n\r\n");
        let (now, origin, mut out) = (self.now(), Origin::Address(source), Vec::new());
        let bytes = request.as_bytes();
        let flow = self.http.handle(&mut self.http_tracker, now, origin, bytes, &mut out);
        assert!(matches!(flow, ReceiveOutcome::Responded { keep_alive: true, .. }), "{flow:?}");
        let end = out.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        assert!(out.starts_with(b"HTTP/1.1 200 "), "{}", out.escape_ascii());
        bt_bencode::from_slice(&out[end..]).unwrap()
    }

    fn announce_http(&mut self, ask: &Ask) -> Told {
        let mut target = format!("/announce?info_hash={}&port={PORT}", encoded(&torrent().0));
        let peer_id = encoded(&[ask.peer; 20]);
        write!(target, "&peer_id={peer_id}&event={}&compact=1", event(ask.event)).unwrap();
        if ask.left != u64::MAX {
            write!(target, "&left={}", ask.left).unwrap();
        }
        if let Some(numwant) = ask.numwant {
            write!(target, "&numwant={numwant}").unwrap();
        }
        let response = self.send_http(self.address(ask.peer), &target);
        let bytes = |key: &str| response.get(key).unwrap().as_byte_str().unwrap().as_slice();
        let mut peers = numbers(Family::V4, bytes("peers"));
        peers.append(&mut numbers(Family::V6, bytes("peers6")));
        Told {
            seeders: number(&response, "complete"),
            leechers: number(&response, "incomplete"),
            peers,
        }
    }

    fn scrape_http(&mut self) -> (u32, u32, u32) {
        let target = format!("/scrape?info_hash={}", encoded(&torrent().0));
        let response = self.send_http(self.address(99), &target);
        let files = response.get("files").unwrap().as_dict().unwrap();
        assert_eq!(files.len(), 1);
        let entry = files.values().next().unwrap();
        let count = |key| number(entry, key);
        (count("complete"), count("downloaded"), count("incomplete"))
    }

    fn announce_web(&mut self, ask: &Ask, protocol_of: fn(u8) -> Protocol) -> Told {
        let name = self.socket(ask.peer);
        let mut more = format!(r#","event":"{}""#, event(ask.event));
        if ask.left != u64::MAX {
            write!(more, r#","left":{}"#, ask.left).unwrap();
        }
        if let Some(numwant) = ask.numwant {
            write!(more, r#","numwant":{numwant}"#).unwrap();
        }
        let offers: Vec<String> = (0..50).map(|it| offer(&it.to_string())).collect();
        self.hive.say(&name, &announce(TORRENT, &name, &offers.join(","), &more));
        let response: serde_json::Value =
            serde_json::from_str(&self.hive.next(&name).unwrap()).unwrap();
        let count = |key: &str| u32::try_from(response[key].as_u64().unwrap()).unwrap();
        let (seeders, leechers) = (count("complete"), count("incomplete"));
        let mut peers = BTreeSet::new();
        for peer in (1..10).filter(|it| protocol_of(*it) == Protocol::WebSocket) {
            let socket = self.socket(peer);
            if let Some(text) = self.hive.next(&socket) {
                assert!(text.contains(r#""offer":{"#), "{text}");
                peers.insert(peer);
            }
        }
        self.hive.assert_silence("one offer each");
        Told { seeders, leechers, peers }
    }

    fn scrape_web(&mut self) -> (u32, u32, u32) {
        let name = self.socket(99);
        self.hive.say(&name, &scrape(&[TORRENT]));
        let response: serde_json::Value =
            serde_json::from_str(&self.hive.next(&name).unwrap()).unwrap();
        let entry = &response["files"][TORRENT];
        let count = |key: &str| u32::try_from(entry[key].as_u64().unwrap()).unwrap();
        (count("complete"), count("downloaded"), count("incomplete"))
    }

    /// The name of a client's socket, opened where it is not.
    fn socket(&mut self, peer: u8) -> String {
        let name = format!("peer{peer}");
        if !self.hive.is_open(&name) {
            self.hive.open(&name, &self.address(peer).to_string());
        }
        name
    }
}

fn torrent() -> InfoHash {
    InfoHash(TORRENT.as_bytes().try_into().unwrap())
}

fn number(response: &Value, key: &str) -> u32 {
    response.get(key).unwrap().as_u64().unwrap().try_into().unwrap()
}

/// The clients that compact peers are.
fn numbers(family: Family, peers: &[u8]) -> BTreeSet<u8> {
    let stride = peer_stride(family);
    assert_eq!(peers.len() % stride, 0);
    let number = |peer: &[u8]| {
        assert_eq!(peer[stride - 2..], PORT.to_be_bytes());
        peer[stride - 3]
    };
    let found: BTreeSet<u8> = peers.chunks(stride).map(number).collect();
    assert_eq!(found.len(), peers.len() / stride, "nobody twice");
    found
}
