//! Clients with thousands of torrents that start and end, on a clock of the test's own: they are
//! all in within a minute and all out at once, under the default limits, by how real clients repeat
//! what was refused or lost (libtorrent 2.0 and 2.1, rTorrent 0.9.8).

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;

use arc_swap::ArcSwap;
use skep::access::lists::Lists;
use skep::access::mode::Mode;
use skep::access::passkey::{self, Limits, Record};
use skep::access::{self, Access};
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::http::HttpFrontend;
use skep::frontend::origin::Origin;
use skep::frontend::udp::UdpFrontend;
use skep::frontend::{RESPONSE_BYTES_MAX, Responder};
use skep::limiter::{Handle, Limiter, Sizes};
use skep::protocol::udp::client::{
    Announcement, Response, decode, encode_announce, encode_connect,
};
use skep::protocol::udp::{ANNOUNCE_BYTES, TransactionId};
use skep::store::{self, PeerAnnounce, PeerBuffers, PeerChange, Role, Store};
use skep::time::Now;
use skep::tracker::Tracker;
use skep::types::{Contact, Event, Family, InfoHash, PeerId};

const START: Now = Now::from_s(1_800_000_000);

/// Both clients are behind it: their requests are counted together.
const HOME: IpAddr = IpAddr::V4(Ipv4Addr::new(8, 8, 8, 8));

/// From a request to its response.
const ROUND_TRIP_MS: u64 = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Via {
    Udp,
    Http,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Program {
    Libtorrent,
    Rtorrent,
}

impl Program {
    /// Seconds until the next try after so many failures, if the response named this interval.
    fn waits_s(self, failures: u32, interval_s: Option<u32>) -> u32 {
        match self {
            // `tracker_backoff` of 250 %, from 5 s up to an hour, but never before the interval.
            Self::Libtorrent => {
                (5 + 25 * failures.pow(2) / 2).min(3600).max(interval_s.unwrap_or(0))
            }
            Self::Rtorrent => 5 << (failures - 1).min(6),
        }
    }

    /// Seconds until silence counts as a failure.
    fn patience_s(self) -> u32 {
        match self {
            Self::Libtorrent => 15,
            Self::Rtorrent => 60, // two tries of 30 s
        }
    }

    /// Seconds for which it goes on using a connection id; rTorrent always asks for a new one.
    fn keeps_id_s(self) -> u64 {
        if self == Self::Libtorrent { 60 } else { 0 }
    }
}

/// What a request comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Served,
    /// An error; the interval is what the client takes from it.
    Failure {
        interval_s: Option<u32>,
    },
    Nothing,
}

struct Client {
    program: Program,
    source: SocketAddr,
    torrents: Range<u32>,
    /// A connection id and until when it is used.
    id: Option<(u64, Now)>,
}

/// Something that a client is about to do for a torrent, the earliest first.
type Due = Reverse<(u64, usize, u32, u32, bool)>;

struct World {
    udp: UdpFrontend,
    http: HttpFrontend,
    tracker: Tracker,
    store: Arc<Store>,
    path: String,
    via: Via,
    clients: Vec<Client>,
    due: BinaryHeap<Due>,
    now: Now,
}

fn torrent(number: u32) -> InfoHash {
    let mut hash = [b'h'; 20];
    hash[..4].copy_from_slice(&number.to_be_bytes());
    InfoHash(hash)
}

fn later(now: Now, ms: u64) -> Now {
    Now::from_ns(now.ns() + ms * 1_000_000)
}

impl World {
    fn new(via: Via, mode: Mode, per_client: u32) -> Self {
        Self::with_limits(via, mode, per_client, Limits::default())
    }

    fn with_limits(via: Via, mode: Mode, per_client: u32, limits: Limits) -> Self {
        let access = Access::new(mode, Lists::default());
        let (digits, digest) = passkey::generate();
        access.passkeys().insert(
            digest,
            &Record { name: "ann".into(), limits, issued_s: 0, totals: Default::default() },
        );
        (0..2 * per_client).map(torrent).for_each(|it| access.registry().insert(it, it));
        let access = Arc::new(access);
        let limiter = Arc::new(Limiter::new(Sizes::default(), Some(1)));
        let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
        let gate = |seed| Handle::new(limiter.clone(), Arc::default(), Arc::default(), seed);
        let door = || access::Gate::new(access.clone());
        let keys = KeyPair { active: [7; KEY_BYTES], staging: None, algorithm: Algorithm::SipHash };
        let ids = Arc::new(ArcSwap::from_pointee(ConnectionIds::new(&keys)));
        let tracker = Tracker::new(store.clone(), Arc::default(), 1, 0, 1).with_limiter(gate(1));
        let udp = UdpFrontend::new(tracker.with_access(door()), ids);
        let tracker =
            Tracker::without_upkeep(store.clone(), Arc::default(), 2).with_limiter(gate(2));
        let path =
            if mode == Mode::Private { format!("/announce/{digits}") } else { "/announce".into() };
        let client = |program, port, torrents| Client {
            program,
            source: SocketAddr::new(HOME, port),
            torrents,
            id: None,
        };
        Self {
            udp,
            http: HttpFrontend::new(Arc::default(), Arc::default()),
            tracker: tracker.with_access(door()),
            store,
            path,
            via,
            clients: vec![
                client(Program::Libtorrent, 6881, 0..per_client),
                client(Program::Rtorrent, 6882, per_client..2 * per_client),
            ],
            due: BinaryHeap::new(),
            now: START,
        }
    }

    fn peers(&self) -> u64 {
        self.store.totals().seeders.iter().sum()
    }

    /// Puts a seeder of somewhere else into so many torrents, so that none of them is new.
    fn seed(&self, torrents: u32) {
        let mut random = fastrand::Rng::with_seed(1);
        for number in 0..torrents {
            let visit = PeerAnnounce {
                info_hash: &torrent(number),
                address: Ipv4Addr::new(9, 9, 9, 9).into(),
                contact: Contact::Port(6881),
                change: PeerChange::Present { role: Role::Seeder, completed: false },
                capped: false,
            };
            self.store.announce(self.now, &visit, &mut PeerBuffers::default(), &mut random);
        }
    }

    /// Each client announces each of its torrents at this moment.
    fn all(&mut self, event: Event) {
        for (number, client) in self.clients.iter_mut().enumerate() {
            client.id = None;
            let needs_id = self.via == Via::Udp;
            self.due.extend(client.torrents.clone().map(|torrent| {
                let is_stop = event == Event::Stopped;
                let failures = if is_stop { u32::MAX } else { 0 }; // nobody repeats it
                Reverse((self.now.ns(), number, torrent, failures, needs_id))
            }));
        }
    }

    /// Lets clients do what they do in so many seconds.
    fn run_for(&mut self, seconds: u64) {
        let end = self.now.plus_s(seconds);
        while let Some(Reverse(first)) = self.due.peek().copied()
            && first.0 <= end.ns()
        {
            self.due.pop();
            self.now = Now::from_ns(first.0);
            let (_, number, torrent, failures, needs_id) = first;
            let client = &self.clients[number];
            let has_id = client.id.is_some_and(|(_, until)| self.now < until);
            let told = if needs_id && !has_id {
                match self.connect(number) {
                    Told::Served => {
                        let at = later(self.now, ROUND_TRIP_MS).ns();
                        self.due.push(Reverse((at, number, torrent, failures, false)));
                        continue;
                    }
                    told => told,
                }
            } else {
                self.announce(number, torrent, failures)
            };
            self.go_on(number, torrent, failures, told);
        }
        self.now = end;
    }

    /// What follows from what was told, or not.
    fn go_on(&mut self, number: usize, torrent: u32, failures: u32, told: Told) {
        let program = self.clients[number].program;
        let (patience_s, interval_s) = match told {
            Told::Served => return,
            _ if failures == u32::MAX => return,
            Told::Nothing => (program.patience_s(), None),
            Told::Failure { interval_s } => (0, interval_s),
        };
        let failures = failures + 1;
        let wait_s = patience_s + program.waits_s(failures, interval_s);
        let at = self.now.plus_s(wait_s.into()).ns();
        self.due.push(Reverse((at, number, torrent, failures, self.via == Via::Udp)));
    }

    fn datagram(&mut self, number: usize, request: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0; RESPONSE_BYTES_MAX];
        let source = self.clients[number].source;
        let answered = self.udp.handle(self.now, source, request, &mut out).ok()?;
        Some(out[..answered.bytes].to_vec())
    }

    fn connect(&mut self, number: usize) -> Told {
        let mut request = [0; 16];
        encode_connect(TransactionId([1; 4]), &mut request);
        let Some(response) = self.datagram(number, &request) else { return Told::Nothing };
        let Ok((_, Response::Connected(id))) = decode(&response, Family::V4) else {
            panic!("{response:?}")
        };
        let client = &mut self.clients[number];
        // Those that are under way already have asked for one of their own.
        let arrives = later(self.now, ROUND_TRIP_MS);
        let until = arrives.plus_s(client.program.keeps_id_s());
        if client.id.is_none_or(|it| it.1 <= self.now) {
            client.id = Some((id, until));
        }
        Told::Served
    }

    fn announce(&mut self, number: usize, of: u32, failures: u32) -> Told {
        let event = if failures == u32::MAX { Event::Stopped } else { Event::Started };
        match self.via {
            Via::Udp => self.announce_udp(number, of, event),
            Via::Http => self.announce_http(number, of, event),
        }
    }

    fn announce_udp(&mut self, number: usize, of: u32, event: Event) -> Told {
        let client = &self.clients[number];
        let announcement = Announcement {
            info_hash: torrent(of),
            peer_id: PeerId([u8::try_from(number % 256).unwrap(); 20]),
            downloaded: 0,
            left: 0,
            uploaded: 0,
            event,
            numwant: 50,
            port: client.source.port(),
            key: [0; 4],
        };
        let mut request = vec![0; ANNOUNCE_BYTES];
        let id = client.id.unwrap().0;
        encode_announce(id, TransactionId([9; 4]), &announcement, &mut request);
        request.extend([2, u8::try_from(self.path.len()).unwrap()]);
        request.extend(self.path.bytes());
        let Some(response) = self.datagram(number, &request) else { return Told::Nothing };
        match decode(&response, Family::V4).unwrap().1 {
            Response::Announced(response, _) => {
                let is_in = event == Event::Stopped || response.seeders > 0;
                assert!(is_in, "an answer that leaves it out, for {} s", response.interval_s);
                Told::Served
            }
            Response::Error(_) => Told::Failure { interval_s: None },
            other => panic!("{other:?}"),
        }
    }

    fn announce_http(&mut self, number: usize, of: u32, event: Event) -> Told {
        let hash: String = torrent(of).0.iter().map(|it| format!("%{it:02x}")).collect();
        let event = if event == Event::Stopped { "stopped" } else { "started" };
        let client = &self.clients[number];
        let request = format!(
            "GET {}?info_hash={hash}&peer_id=-AA0000-aaaaaaaaaaa{number}&port={}&left=0\
             &event={event} HTTP/1.1\r\nHost: x\r\n\r\n",
            self.path,
            client.source.port()
        );
        let mut out = Vec::new();
        let origin = Origin::Address(HOME);
        self.http.handle(&mut self.tracker, self.now, origin, request.as_bytes(), &mut out);
        let response = String::from_utf8_lossy(&out).into_owned();
        let number = |key: &str| {
            let value = response.split_once(&format!("{}:{key}i", key.len()))?.1;
            value.split_once('e')?.0.parse::<u32>().ok()
        };
        if response.contains("failure reason") {
            // libtorrent takes half an hour where no interval is named.
            return Told::Failure { interval_s: number("interval").or(Some(1800)) };
        }
        assert!(event == "stopped" || number("complete") > Some(0), "{response}");
        Told::Served
    }
}

/// Both at once, on an empty tracker; they end, and come back soon.
fn in_within_a_minute_and_out_at_once(via: Via, mode: Mode) {
    let mut world = World::new(via, mode, 2000);
    for _ in 0..2 {
        world.all(Event::Started);
        world.run_for(60);
        assert_eq!(world.peers(), 4000, "{via:?} {mode:?}");
        assert!(world.due.is_empty());
        world.run_for(60);
        world.all(Event::Stopped);
        world.run_for(1);
        assert_eq!(world.peers(), 0, "{via:?} {mode:?}");
        world.run_for(59);
    }
}

#[test]
fn two_thousand_torrents_are_in_within_a_minute_over_udp() {
    in_within_a_minute_and_out_at_once(Via::Udp, Mode::Open);
}

#[test]
fn two_thousand_torrents_are_in_within_a_minute_over_http() {
    in_within_a_minute_and_out_at_once(Via::Http, Mode::Open);
}

#[test]
fn two_thousand_torrents_of_one_passkey_are_in_within_a_minute_over_udp() {
    in_within_a_minute_and_out_at_once(Via::Udp, Mode::Private);
}

#[test]
fn two_thousand_torrents_of_one_passkey_are_in_within_a_minute_over_http() {
    in_within_a_minute_and_out_at_once(Via::Http, Mode::Private);
}

/// More than the burst: what is refused comes back soon, and spread out.
#[test]
fn twice_the_burst_is_in_within_minutes_and_out_at_once() {
    for (via, within_s) in [(Via::Http, 300), (Via::Udp, 900)] {
        let mut world = World::new(via, Mode::Open, 10_000);
        world.seed(20_000);
        world.all(Event::Started);
        world.run_for(1);
        let at_once = world.peers() - 20_000;
        assert!((9_900..=10_200).contains(&at_once), "{via:?} {at_once}: the burst");
        world.run_for(within_s);
        assert_eq!(world.peers(), 40_000, "{via:?} after {within_s} s");
        world.all(Event::Stopped);
        world.run_for(1);
        assert_eq!(world.peers(), 20_000, "{via:?}");
    }
}

/// A key that may announce a part of what its holder has: the rest is told so over HTTP, with when
/// to come back, and is in soon after; torrents beyond those of the key stay outside.
#[test]
fn what_is_beyond_the_limit_of_a_passkey_is_told_and_comes_back_within_minutes() {
    let few = Limits { announces_per_minute: 1500, ..Limits::default() };
    let mut world = World::with_limits(Via::Http, Mode::Private, 1000, few);
    world.all(Event::Started);
    world.run_for(1);
    assert_eq!(world.peers(), 1500, "a minute's announces");
    assert_eq!(world.due.len(), 500);
    let now = world.now;
    let is_soon = |it: &Due| it.0.0 > now.ns() && it.0.0 <= now.plus_s(90).ns();
    assert!(world.due.iter().all(is_soon), "whoever is refused is told when to come back");
    world.run_for(300);
    assert_eq!(world.peers(), 2000);
    world.all(Event::Stopped);
    world.run_for(1);
    assert_eq!(world.peers(), 0, "stops are under no limit");
    for (torrents, peers, expected) in [(700, 10_000, 700), (5000, 600, 600)] {
        let few = Limits { announces_per_minute: 1 << 20, torrents, peers };
        let mut world = World::with_limits(Via::Http, Mode::Private, 1000, few);
        world.all(Event::Started);
        world.run_for(300);
        assert_eq!(world.peers(), expected, "{torrents} torrents, {peers} peers");
    }
}
