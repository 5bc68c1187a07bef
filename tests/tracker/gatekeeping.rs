//! Lists, registration and passkeys hold on every protocol, for announces and scrapes alike;
//! without sockets, as the front ends alone decide it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use skep::access::lists::{AccessList, ListName, Lists};
use skep::access::mode::Mode;
use skep::access::{self, Access, passkey};
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::http::HttpFrontend;
use skep::frontend::origin::Origin;
use skep::frontend::udp::UdpFrontend;
use skep::frontend::ws::{Outbox, SocketRoute, WsFrontend};
use skep::frontend::{Passkey, RESPONSE_BYTES_MAX, Responder};
use skep::protocol::udp::client::{Announcement, Response, decode, encode_announce, encode_scrape};
use skep::protocol::udp::{ANNOUNCE_BYTES, TransactionId};
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::Tracker;
use skep::types::{Event, Family, InfoHash, PeerId};

const NOW: Now = Now::from_s(1_800_000_000);
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8));
const KNOWN: InfoHash = InfoHash(*b"aaaaaaaaaaaaaaaaaaaa");
const OTHER: InfoHash = InfoHash(*b"bbbbbbbbbbbbbbbbbbbb");

/// All front ends before one store, behind one `Access`.
struct Doors {
    access: Arc<Access>,
    udp: UdpFrontend,
    ids: ConnectionIds,
    http: HttpFrontend,
    ws: WsFrontend,
    tracker: Tracker,
    /// How often as much was moved.
    moved: u64,
    /// What happened, as told over UDP.
    event: Event,
}

/// What a request came to: the failure that was told, or none.
type Told = Option<String>;

impl Doors {
    fn new(access: Access) -> Self {
        let access = Arc::new(access);
        let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
        let keys = KeyPair { active: [7; KEY_BYTES], staging: None, algorithm: Algorithm::SipHash };
        let ids = ConnectionIds::new(&keys);
        let by_datagrams = Tracker::new(store.clone(), Arc::default(), 1, 0, 1)
            .with_access(access::Gate::new(access.clone()));
        let tracker = Tracker::without_upkeep(store, Arc::default(), 2)
            .with_access(access::Gate::new(access.clone()));
        let shared = Arc::new(ArcSwap::from_pointee(ids.clone()));
        let udp = UdpFrontend::new(by_datagrams, shared);
        let http = HttpFrontend::new(Arc::default(), Arc::default());
        let ws = WsFrontend::new(Arc::default(), Arc::default());
        Self { access, udp, ids, http, ws, tracker, moved: 1, event: Event::None }
    }

    /// What a full scrape lists.
    fn listed(&self) -> Vec<InfoHash> {
        let page = self.tracker.listing().torrents_after(None, 10);
        page.iter().map(|it| it.info_hash).collect()
    }

    fn with_list(name: ListName, text: &str) -> Self {
        let list = Arc::new(AccessList::parse(name.kind(), text.as_bytes()).unwrap());
        Self::new(Access::new(Mode::Open, Lists::default().with(name, list, false)))
    }

    fn send(&mut self, request: &[u8]) -> Told {
        let mut out = [0; RESPONSE_BYTES_MAX];
        let source = SocketAddr::new(CLIENT, 50_000);
        let answered = self.udp.handle(NOW, source, request, &mut out).unwrap();
        match decode(&out[..answered.bytes], Family::V4).unwrap().1 {
            Response::Error(text) => Some(String::from_utf8(text.to_vec()).unwrap()),
            _ => None,
        }
    }

    /// Announces by UDP with the path of its URL, as BEP 41 has it.
    fn udp(&mut self, torrent: InfoHash, path: &str) -> Told {
        let announcement = Announcement {
            info_hash: torrent,
            peer_id: PeerId(*b"-XX0000-cccccccccccc"),
            downloaded: 70 * self.moved,
            left: 1,
            uploaded: 30 * self.moved,
            event: self.event,
            numwant: 50,
            port: 6881,
            key: [0; 4],
        };
        let mut request = vec![0; ANNOUNCE_BYTES];
        let id = self.ids.issue(NOW, CLIENT);
        encode_announce(id, TransactionId([9; 4]), &announcement, &mut request);
        request.extend([2, u8::try_from(path.len()).unwrap()]);
        request.extend(path.bytes());
        self.send(&request)
    }

    fn udp_scrape(&mut self, torrents: &[InfoHash]) -> Told {
        let mut request = [0; 96];
        let id = self.ids.issue(NOW, CLIENT);
        let bytes = encode_scrape(id, TransactionId([9; 4]), torrents, &mut request);
        self.send(&request[..bytes])
    }

    fn http(&mut self, target: &str) -> Told {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut out = Vec::new();
        let origin = Origin::Address(CLIENT);
        self.http.handle(&mut self.tracker, NOW, origin, request.as_bytes(), &mut out);
        let response = String::from_utf8_lossy(&out).into_owned();
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        let (_, rest) = response.split_once("failure reason")?;
        let (length, text) = rest.split_once(':').unwrap();
        Some(text[..length.parse().unwrap()].to_owned())
    }

    fn http_announce(&mut self, torrent: InfoHash, path: &str) -> Told {
        let torrent = String::from_utf8(torrent.0.to_vec()).unwrap();
        let ask = format!("info_hash={torrent}&peer_id=-XX0000-cccccccccccc&port=6881");
        let (up, down) = (30 * self.moved, 70 * self.moved);
        self.http(&format!("{path}?{ask}&uploaded={up}&downloaded={down}&left=1"))
    }

    fn web(&mut self, message: &str, passkey: Option<&str>) -> Told {
        let route = SocketRoute { worker: 0, slot: 0, generation: 0 };
        let passkey = passkey.map(|it| Box::new(Passkey::new(it.as_bytes()).unwrap()));
        let mut session = self.ws.open_with(route, CLIENT, passkey);
        let mut outbox = Outbox::default();
        let message = message.as_bytes();
        self.ws.handle(&mut self.tracker, NOW, &mut session, message, &mut outbox);
        self.ws.close(&mut self.tracker, NOW, session);
        let response: serde_json::Value =
            serde_json::from_slice(&outbox.responses.concat()).unwrap();
        Some(response.get("failure reason")?.as_str().unwrap().to_owned())
    }

    fn web_announce(&mut self, torrent: InfoHash, passkey: Option<&str>) -> Told {
        let torrent = String::from_utf8(torrent.0.to_vec()).unwrap();
        let (up, down) = (30 * self.moved, 70 * self.moved);
        let message = format!(
            r#"{{"action":"announce","info_hash":"{torrent}","peer_id":"-XX0000-cccccccccccc",
            "uploaded":{up},"downloaded":{down},"left":1,"offers":[]}}"#
        );
        self.web(&message, passkey)
    }

    /// Announces over all protocols.
    fn announces(&mut self, torrent: InfoHash) -> [Told; 3] {
        [
            self.udp(torrent, "/announce"),
            self.http_announce(torrent, "/announce"),
            self.web_announce(torrent, None),
        ]
    }

    /// Scrapes over all protocols.
    fn scrapes(&mut self, torrent: InfoHash) -> [Told; 3] {
        let text = String::from_utf8(torrent.0.to_vec()).unwrap();
        [
            self.udp_scrape(&[torrent]),
            self.http(&format!("/scrape?info_hash={text}")),
            self.web(&format!(r#"{{"action":"scrape","info_hash":"{text}"}}"#), None),
        ]
    }
}

fn everywhere(text: &str) -> [Told; 3] {
    [(); 3].map(|()| Some(text.to_owned()))
}

const NOWHERE: [Told; 3] = [None, None, None];

#[test]
fn denied_torrents_are_refused_everywhere_with_the_operators_reason_where_there_is_room() {
    let hex = "61".repeat(20);
    let text = format!("{hex} a \"court\" order\n");
    let mut doors = Doors::with_list(ListName::TorrentsDeny, &text);
    let reason = Some("a \"court\" order".to_owned());
    let short = Some("torrent is not allowed".to_owned());
    assert_eq!(doors.announces(KNOWN), [short.clone(), reason.clone(), reason]);
    assert_eq!(doors.scrapes(KNOWN), everywhere("torrent is not allowed"));
    assert_eq!(doors.announces(OTHER), NOWHERE);
    assert_eq!(doors.scrapes(OTHER), NOWHERE);
    assert_eq!(doors.udp_scrape(&[KNOWN, OTHER]), None, "zeros stand for the one");
    assert_eq!(doors.listed(), [OTHER]);
    let denied = (*doors.access.lists()).clone();
    doors.access.set_lists(Lists::default());
    assert_eq!(doors.announces(KNOWN), NOWHERE, "a new list counts at once");
    doors.access.set_lists(denied);
    assert_eq!(doors.listed(), [OTHER], "what was stored before is not shown");
}

#[test]
fn networks_clients_and_ports_are_refused_everywhere() {
    let mut doors = Doors::with_list(ListName::NetworksDeny, "8.8.0.0/16\n");
    assert_eq!(doors.announces(KNOWN), everywhere("network is not allowed"));
    assert_eq!(doors.scrapes(KNOWN), everywhere("network is not allowed"));
    let mut doors = Doors::with_list(ListName::ClientsDeny, "-XX\n");
    assert_eq!(doors.announces(KNOWN), everywhere("client is not allowed"));
    assert_eq!(doors.scrapes(KNOWN), NOWHERE, "a scrape names no client");
    let mut doors = Doors::with_list(ListName::PortsDeny, "6881-6889\n");
    let [udp, http, web] = doors.announces(KNOWN);
    assert_eq!([&udp, &http], [&Some("port is not allowed".to_owned()); 2]);
    assert_eq!(web, None, "WebRTC peers have no port");
}

#[test]
fn only_registered_torrents_are_served_and_both_hashes_are_one_swarm() {
    let mut doors = Doors::new(Access::new(Mode::Registered, Lists::default()));
    assert_eq!(doors.announces(KNOWN), everywhere("torrent not registered"));
    assert_eq!(doors.scrapes(KNOWN), everywhere("torrent not registered"));
    doors.access.registry().insert(KNOWN, KNOWN);
    doors.access.registry().insert(OTHER, KNOWN);
    assert_eq!(doors.announces(KNOWN), NOWHERE);
    assert_eq!(doors.udp(OTHER, "/announce"), None);
    assert_eq!(doors.http_announce(OTHER, "/announce"), None);
    let (known, other) = (doors.tracker.counts(&KNOWN), doors.tracker.counts(&OTHER));
    assert_eq!((known.leechers, other.leechers), (1, 0), "one peer, by whichever hash");
    let list =
        AccessList::parse(ListName::TorrentsDeny.kind(), "61".repeat(20).as_bytes()).unwrap();
    doors.access.set_lists(Lists::default().with(ListName::TorrentsDeny, Arc::new(list), false));
    let denied = Some("torrent is not allowed".to_owned());
    assert_eq!(doors.udp(OTHER, "/announce"), denied, "the other hash is no way around");
    assert_eq!(doors.udp_scrape(&[OTHER]), denied);
    doors.event = Event::Stopped;
    assert_eq!(doors.udp(OTHER, "/announce"), denied);
    assert_eq!(doors.tracker.counts(&KNOWN).leechers, 0, "who is denied may leave all the same");
}

#[test]
fn a_private_tracker_knows_its_users_by_the_path() {
    let mut doors = Doors::new(Access::new(Mode::Private, Lists::default()));
    doors.access.registry().insert(KNOWN, KNOWN);
    let (passkey, digest) = passkey::generate();
    let (name, limits) = ("ann".to_owned(), passkey::Limits::default());
    let record = passkey::Record { name, limits, issued_s: 0, totals: passkey::Totals::default() };
    let key = doors.access.passkeys().insert(digest, &record);
    assert_eq!(doors.announces(KNOWN), everywhere("unknown passkey"));
    assert_eq!(doors.scrapes(KNOWN), everywhere("unknown passkey"));
    let path = format!("/announce/{passkey}");
    assert_eq!(doors.web_announce(KNOWN, Some(&passkey)), None);
    assert_eq!(key.usage().peers, 0, "its socket is closed again");
    assert_eq!(doors.udp(KNOWN, &path), None);
    assert_eq!(doors.http_announce(KNOWN, &path), None);
    assert_eq!(key.usage().peers, 1);
    assert_eq!(doors.udp(KNOWN, "/announce/0123"), Some("unknown passkey".into()));
    assert_eq!(doors.http(&format!("/scrape/{passkey}?info_hash=aaaaaaaaaaaaaaaaaaaa")), None);
    let totals = |moved: u64| {
        let totals = key.record().totals;
        assert_eq!((totals.uploaded, totals.downloaded), (30 * moved, 70 * moved));
    };
    totals(0);
    doors.moved = 2;
    doors.udp(KNOWN, &path);
    totals(1);
    doors.moved = 3;
    doors.http_announce(KNOWN, &path);
    totals(2);
    doors.moved = 4;
    doors.web_announce(KNOWN, Some(&passkey));
    totals(3);
    doors.access.passkeys().remove(&digest);
    assert_eq!(doors.udp(KNOWN, &path), Some("unknown passkey".into()), "revoked");
}

#[test]
fn sockets_of_who_may_not_be_served_any_more_leave_their_swarms() {
    let mut doors = Doors::new(Access::new(Mode::Private, Lists::default()));
    doors.access.registry().insert(KNOWN, KNOWN);
    let announce = r#"{"action":"announce","info_hash":"aaaaaaaaaaaaaaaaaaaa",
        "peer_id":"-XX0000-cccccccccccc","left":1,"offers":[]}"#;
    for may_announce in [false, true] {
        let (passkey, digest) = passkey::generate();
        let (name, limits) = ("ann".to_owned(), passkey::Limits::default());
        let totals = passkey::Totals::default();
        let record = passkey::Record { name, limits, issued_s: 0, totals };
        doors.access.passkeys().insert(digest, &record);
        let route = SocketRoute { worker: 0, slot: 1, generation: 1 };
        let shown = Some(Box::new(Passkey::new(passkey.as_bytes()).unwrap()));
        let mut session = doors.ws.open_with(route, CLIENT, shown);
        let Doors { ws, tracker, access, .. } = &mut doors;
        let mut outbox = Outbox::default();
        ws.handle(tracker, NOW, &mut session, announce.as_bytes(), &mut outbox);
        ws.tend(tracker, NOW, &mut session);
        assert_eq!((session.torrents(), tracker.counts(&KNOWN).leechers), (1, 1));
        access.passkeys().remove(&digest);
        if may_announce {
            ws.handle(tracker, NOW, &mut session, announce.as_bytes(), &mut outbox);
            let refused = String::from_utf8(outbox.responses.pop().unwrap()).unwrap();
            assert!(refused.contains("unknown passkey"), "{refused}");
        } else {
            ws.tend(tracker, NOW, &mut session);
        }
        assert_eq!((session.torrents(), tracker.counts(&KNOWN).leechers), (0, 0));
        ws.close(tracker, NOW, session);
    }
}

/// What the comments and the share of memory go by.
#[test]
fn a_session_of_a_passkey_takes_less_than_120_bytes() {
    for torrents in [500, 5000, 50_000_u32] {
        let access = Access::new(Mode::Private, Lists::default());
        let limits = passkey::Limits { announces_per_minute: u32::MAX, torrents, peers: torrents };
        let (name, totals) = ("ann".to_owned(), passkey::Totals::default());
        let record = passkey::Record { name, limits, issued_s: 0, totals };
        let key = access.passkeys().insert([1; 32], &record);
        let mut random = fastrand::Rng::with_seed(1);
        let mut announce = || {
            let mut hash = [0; 20];
            random.fill(&mut hash);
            let report = passkey::SessionReport {
                info_hash: &InfoHash(hash),
                peer_id: &PeerId([1; 20]),
                event: Event::Started,
                uploaded: 0,
                downloaded: 0,
                left: 0,
            };
            key.count(NOW, &report).unwrap();
        };
        let first = allocation_counter::measure(&mut announce).bytes_current;
        let rest = allocation_counter::measure(|| (1..torrents).for_each(|_| announce()));
        let each = rest.bytes_current / i64::from(torrents);
        println!("{torrents}: {first} bytes for the first session, {each} for each other");
        assert!(first <= 920 && (90..120).contains(&each), "{torrents}: {first} and {each}");
    }
}
