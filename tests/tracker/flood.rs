//! Floods against all three front ends, without sockets and on a clock of the test's own: who asks
//! for too much is stopped, and nobody else is.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use fastrand::Rng;
use skep::counters::NotStoredCounters;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::http::{HttpFrontend, Outcome, ReceiveOutcome};
use skep::frontend::origin::Origin;
use skep::frontend::udp::UdpFrontend;
use skep::frontend::ws::{Outbox, SocketRoute, WsFrontend};
use skep::frontend::{RESPONSE_BYTES_MAX, Responder};
use skep::limiter::{self, Handle, LimitAction, LimitCounters, LimitTable, Limiter, Sizes};
use skep::protocol::udp::client::{
    Announcement, Response, decode, encode_announce, encode_connect, encode_scrape,
};
use skep::protocol::udp::{ANNOUNCE_BYTES, TransactionId};
use skep::store::{self, Budget, Store};
use skep::time::Now;
use skep::tracker::{Load, Tracker};
use skep::types::{
    AnnounceResponse, DatagramResponse, Dropped, Event, Family, InfoHash, NotStored, PeerId,
    Refusal,
};

const START: Now = Now::from_s(1_800_000_000);

/// A tracker whose limits are low enough to be reached soon.
struct Flooded {
    udp: UdpFrontend,
    ids: ConnectionIds,
    limiter: Arc<Limiter>,
    limits: Arc<ArcSwap<limiter::Options>>,
    store: Arc<Store>,
    counters: Arc<LimitCounters>,
    not_stored: Arc<NotStoredCounters>,
    load: Arc<Load>,
    /// What is announced.
    torrent: InfoHash,
    event: Event,
    now: Now,
}

impl Flooded {
    fn new() -> Self {
        let options =
            limiter::Options { rate: 10, burst: 40, unverified_burst: 1000, ..Default::default() };
        let limits = Arc::new(ArcSwap::from_pointee(options));
        let limiter = Arc::new(Limiter::new(Sizes::default(), Some(1)));
        let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
        let counters = Arc::new(LimitCounters::default());
        let gate = Handle::new(limiter.clone(), limits.clone(), counters.clone(), 1);
        let not_stored = Arc::new(NotStoredCounters::default());
        let load = Arc::new(Load::default());
        let tracker = Tracker::new(store.clone(), Arc::default(), 1, 0, 1)
            .with_limiter(gate)
            .with_not_stored_counters(not_stored.clone())
            .with_load(load.clone());
        let keys = KeyPair { active: [7; KEY_BYTES], staging: None, algorithm: Algorithm::SipHash };
        let ids = ConnectionIds::new(&keys);
        let udp = UdpFrontend::new(tracker, Arc::new(ArcSwap::from_pointee(ids.clone())));
        let torrent = InfoHash([5; 20]);
        Self {
            udp,
            ids,
            limiter,
            limits,
            store,
            counters,
            not_stored,
            load,
            torrent,
            event: Event::None,
            now: START,
        }
    }

    /// A stream worker's tracker behind the same limiter.
    fn tracker(&self) -> Tracker {
        let gate = Handle::new(self.limiter.clone(), self.limits.clone(), Arc::default(), 2);
        Tracker::without_upkeep(self.store.clone(), Arc::default(), 2).with_limiter(gate)
    }

    fn set(&self, change: impl FnOnce(&mut limiter::Options)) {
        let mut options = (**self.limits.load()).clone();
        change(&mut options);
        self.limits.store(Arc::new(options));
    }

    fn send(&mut self, source: IpAddr, request: &[u8]) -> Result<Vec<u8>, Dropped> {
        self.send_from(SocketAddr::new(source, 50_000), request)
    }

    fn send_from(&mut self, source: SocketAddr, request: &[u8]) -> Result<Vec<u8>, Dropped> {
        let mut out = [0; RESPONSE_BYTES_MAX];
        let answered = self.udp.handle(self.now, source, request, &mut out)?;
        let DatagramResponse { bytes, .. } = answered;
        Ok(out[..bytes].to_vec())
    }

    fn connect(&mut self, source: IpAddr) -> Result<(), Dropped> {
        self.connect_from(SocketAddr::new(source, 50_000))
    }

    fn connect_from(&mut self, source: SocketAddr) -> Result<(), Dropped> {
        let mut request = [0; 16];
        encode_connect(TransactionId([1; 4]), &mut request);
        self.send_from(source, &request).map(drop)
    }

    /// With an id that is valid, or off by this.
    fn announce(
        &mut self,
        source: IpAddr,
        forged: u64,
    ) -> Result<(AnnounceResponse, usize), Dropped> {
        let announcement = Announcement {
            info_hash: self.torrent,
            peer_id: PeerId([6; 20]),
            downloaded: 0,
            left: 1,
            uploaded: 0,
            event: self.event,
            numwant: 50,
            port: 6881,
            key: [0; 4],
        };
        let mut request = [0; ANNOUNCE_BYTES];
        let id = self.ids.issue(self.now, source) ^ forged;
        encode_announce(id, TransactionId([9; 4]), &announcement, &mut request);
        let response = self.send(source, &request)?;
        match decode(&response, Family::V4).unwrap() {
            (_, Response::Announced(response, peers)) => Ok((response, peers.len())),
            other => panic!("not the response to an announce: {other:?}"),
        }
    }

    fn scrape(&mut self, source: IpAddr, torrents: usize) -> Result<(), Dropped> {
        let mut request = [0; 16 + 20 * 74];
        let id = self.ids.issue(self.now, source);
        let hashes = [InfoHash([5; 20]); 74];
        let bytes = encode_scrape(id, TransactionId([1; 4]), &hashes[..torrents], &mut request);
        self.send(source, &request[..bytes]).map(drop)
    }
}

/// Hosts far apart: no two share a limited network.
fn host(number: u32) -> IpAddr {
    Ipv4Addr::from(0x0800_0001 + (number << 16)).into()
}

#[test]
fn over_the_limit_udp_is_silent_but_for_one_announce_in_sixteen() {
    let mut flooded = Flooded::new();
    flooded.announce(host(2), 0).unwrap();
    let (mut served, mut calmed, mut dropped) = (0, 0, 0);
    for _ in 0..1000 {
        match flooded.announce(host(1), 0) {
            Ok((response, peers)) if response.leechers == 0 => {
                calmed += 1;
                assert_eq!((response.interval_s, peers), (3600, 0), "told to stay away");
            }
            Ok(_) => served += 1,
            Err(Dropped::Limited) => dropped += 1,
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!((39..=41).contains(&served), "{served} of a burst of 40");
    assert_eq!(calmed, (1000 - served) / 16);
    assert_eq!(served + calmed + dropped, 1000);
    assert_eq!(flooded.announce(host(2), 0).unwrap().0.leechers, 2, "others are served");
    flooded.now = flooded.now.plus_s(60);
    assert_eq!(flooded.announce(host(1), 0).unwrap().0.leechers, 2, "so is he, a minute later");
}

#[test]
fn over_the_limit_nobody_who_starts_or_completes_is_told_to_stay_away() {
    for event in [Event::Started, Event::Completed] {
        let mut flooded = Flooded::new();
        flooded.event = event;
        let responses: Vec<_> = (0..1000).map(|_| flooded.announce(host(1), 0)).collect();
        let served = responses.iter().filter(|it| it.is_ok()).count();
        assert!((39..=41).contains(&served), "{served} of a burst of 40");
        assert!(responses.iter().flatten().all(|it| it.0.interval_s <= 1920));
        let slipped = flooded.counters.of(LimitTable::Verified, LimitAction::Slipped).get();
        assert_eq!(slipped, 0, "silence is counted as such");
    }
}

#[test]
fn over_the_limit_every_peer_that_is_there_may_leave() {
    let mut flooded = Flooded::new();
    flooded.set(|it| it.burst = 400);
    let torrent = |number: u16| {
        let [a, b] = number.to_be_bytes();
        let mut hash = [7; 20];
        (hash[0], hash[1]) = (a, b);
        InfoHash(hash)
    };
    for number in 0..1000 {
        flooded.torrent = torrent(number);
        let _ = flooded.announce(host(1), 0);
    }
    let stored = flooded.store.totals().leechers.iter().sum::<u64>();
    assert!((395..=405).contains(&stored), "{stored} of a burst of 400");
    flooded.event = Event::Stopped;
    for number in 0..1000 {
        flooded.torrent = torrent(number);
        let _ = flooded.announce(host(1), 0);
    }
    assert_eq!(flooded.store.totals().leechers, [0; 3]);
    assert_eq!(flooded.counters.of(LimitTable::Stop, LimitAction::Exempt).get(), 0);
}

#[test]
fn a_flood_of_stops_is_not_answered_beyond_the_limit_and_who_is_there_leaves_all_the_same() {
    let mut flooded = Flooded::new();
    let (known, unknown) = (flooded.torrent, InfoHash([6; 20]));
    assert!(flooded.announce(host(1), 0).is_ok());
    (flooded.event, flooded.torrent) = (Event::Stopped, unknown);
    let served = (0..10_000).filter(|_| flooded.announce(host(1), 0).is_ok()).count();
    assert!((39..=41).contains(&served), "{served} of a burst of 40");
    assert_eq!(flooded.announce(host(1), 0), Err(Dropped::Limited), "nothing is sent");
    assert_eq!(flooded.store.totals().leechers, [1, 0, 0]);
    flooded.torrent = known;
    assert_eq!(flooded.announce(host(1), 0), Err(Dropped::Limited));
    assert_eq!(flooded.store.totals().leechers, [0; 3], "but the peer has left");
    assert!(flooded.announce(host(2), 0).is_ok(), "others may leave");
    flooded.event = Event::None;
    assert!(flooded.announce(host(1), 0).is_ok(), "and it may announce");
}

#[test]
fn over_the_limit_of_stops_peers_leave_over_tcp_as_well() {
    let mut flooded = Flooded::new();
    let mut tracker = flooded.tracker();
    (flooded.event, flooded.torrent) = (Event::Stopped, InfoHash([6; 20]));
    let mut http = HttpFrontend::new(Arc::default(), Arc::default());
    let mut ask = |tracker: &mut Tracker, event: &str| {
        let request = format!(
            "GET /announce?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=-AA0000-aaaaaaaaaaaa&port=7\
             &event={event} HTTP/1.1\r\nHost: x\r\n\r\n"
        );
        let (mut out, origin) = (Vec::new(), Origin::Address(host(1)));
        http.handle(tracker, START, origin, request.as_bytes(), &mut out);
        String::from_utf8_lossy(&out).into_owned()
    };
    let mut frontend = WsFrontend::new(Arc::default(), Arc::default());
    let mut session = frontend.open(SocketRoute { worker: 0, slot: 0, generation: 0 }, host(1));
    let mut send = |tracker: &mut Tracker, event: &str| {
        let message = format!(
            r#"{{"action":"announce","info_hash":"aaaaaaaaaaaaaaaaaaaa","event":"{event}",
            "peer_id":"-WW0000-aaaaaaaaaaaa","left":1,"numwant":1,"offers":[]}}"#
        );
        let mut outbox = Outbox::default();
        frontend.handle(tracker, START, &mut session, message.as_bytes(), &mut outbox);
        String::from_utf8(outbox.responses.concat()).unwrap()
    };
    ask(&mut tracker, "started");
    send(&mut tracker, "started");
    assert_eq!(flooded.store.totals().leechers, [1, 0, 1]);
    (0..100).for_each(|_| _ = flooded.announce(host(1), 0));
    let (http_response, web_response) =
        (ask(&mut tracker, "stopped"), send(&mut tracker, "stopped"));
    assert_eq!(flooded.store.totals().leechers, [0; 3]);
    assert!(http_response.contains("too many requests"), "{http_response}");
    assert!(web_response.contains("too many requests"), "{web_response}");
}

#[test]
fn a_socket_that_closes_is_not_charged_for_the_peers_that_leave_with_it() {
    let mut flooded = Flooded::new();
    let mut tracker = flooded.tracker();
    let mut frontend = WsFrontend::new(Arc::default(), Arc::default());
    let mut session = frontend.open(SocketRoute { worker: 0, slot: 0, generation: 0 }, host(1));
    for number in 0..30 {
        let message = format!(
            r#"{{"action":"announce","info_hash":"aaaaaaaaaaaaaaaaaa{number:02}",
            "peer_id":"-WW0000-aaaaaaaaaaaa","left":1,"numwant":1,"offers":[]}}"#
        );
        let mut outbox = Outbox::default();
        frontend.handle(&mut tracker, START, &mut session, message.as_bytes(), &mut outbox);
    }
    assert_eq!(flooded.store.totals().leechers, [0, 0, 30]);
    // The store has forgotten them: what leaves is not there.
    let later = START.plus_s(10_000);
    store::Sweeper::new(&flooded.store, 0, 1).pass(
        &flooded.store,
        later,
        store::ExpiryLimits { peer_age_s_max: 3900, empty_torrent_age_s_max: 7200 },
    );
    assert_eq!(flooded.store.totals().leechers, [0; 3]);
    frontend.close(&mut tracker, later, session);
    (flooded.event, flooded.now) = (Event::Stopped, later);
    let served = (0..100).filter(|_| flooded.announce(host(1), 0).is_ok()).count();
    assert!((39..=41).contains(&served), "{served} of a burst of 40");
}

/// One address that announces a torrent of its own seven times a second, for a day.
#[test]
fn one_address_brings_half_a_million_torrents_a_day_at_most_and_30_000_of_them_live() {
    let mut flooded = Flooded::new();
    flooded.set(|it| (it.rate, it.burst) = (100, 10_000));
    let mut most = 0;
    for number in 0..576_000_u32 {
        flooded.now = Now::from_ns(START.ns() + u64::from(number) * 150_000_000);
        let [a, b, c, d] = number.to_be_bytes();
        flooded.torrent.0[..4].copy_from_slice(&[a, b, c, d]);
        flooded.announce(host(1), 0).unwrap();
        if number % 10 == 0 {
            flooded.udp.upkeep(flooded.now);
            most = most.max(flooded.store.totals().torrents);
        }
    }
    let refused = flooded.not_stored.of(NotStored::NewTorrentLimit).get();
    let stored = 576_000 - refused;
    println!("{stored} torrents of one address in a day, {most} at most at once");
    assert!((430_000..=442_500).contains(&stored), "{stored}: 10000 and 5 a second");
    assert!(most <= 30_000, "{most}");
}

#[test]
fn scrapes_pay_by_their_torrents() {
    let mut flooded = Flooded::new();
    let small = (0..1000).filter(|_| flooded.scrape(host(1), 1).is_ok()).count();
    let large = (0..1000).filter(|_| flooded.scrape(host(2), 74).is_ok()).count();
    assert!((34..=37).contains(&small), "{small} of 40 units at 9/8");
    assert!((3..=5).contains(&large), "{large} of 40 units at 82/8");
}

#[test]
fn forging_a_victims_address_costs_the_victim_nothing_that_is_verified() {
    let mut flooded = Flooded::new();
    let victim = host(1);
    for _ in 0..100_000 {
        assert_eq!(flooded.announce(victim, 1 << 40), Err(Dropped::ForgedId));
        let _ = flooded.connect(victim);
    }
    for second in 1..=100 {
        flooded.now = START.plus_s(second);
        let _ = (0..1000).filter(|_| flooded.connect(victim).is_ok()).count();
        assert!(flooded.announce(victim, 0).is_ok(), "at second {second}");
    }
    let limited = |table, action| flooded.counters.of(table, action).get();
    assert_eq!(limited(LimitTable::Verified, LimitAction::Limited), 0);
    assert!(limited(LimitTable::Unverified, LimitAction::Limited) > 50_000);
}

/// 100 000 forged connects a second, all the while.
#[test]
fn a_victim_gets_an_id_within_four_tries_unless_its_own_port_is_forged() {
    let (mut flooded, mut random) = (Flooded::new(), Rng::with_seed(1));
    let victim = host(1);
    let visit =
        |flooded: &mut Flooded, random: &mut Rng, between, forged: &dyn Fn(&mut Rng) -> u16| {
            let own = SocketAddr::new(victim, random.u16(32_768..));
            (0..4).any(|_| {
                for _ in 0..between {
                    flooded.now = Now::from_ns(flooded.now.ns() + 10_000);
                    let _ = flooded.connect_from(SocketAddr::new(victim, forged(random)));
                }
                flooded.connect_from(own).is_ok()
            })
        };
    for visit_nth in 0..100 {
        assert!(visit(&mut flooded, &mut random, 1000, &|_| 7), "visit {visit_nth}");
    }
    // Every port at once: one in four each time. 1 - 0.75^4 is two of three.
    let any_port = |random: &mut Rng| random.u16(1024..);
    let got = (0..100).filter(|_| visit(&mut flooded, &mut random, 20_000, &any_port)).count();
    assert!((50..=86).contains(&got), "{got} of 100");
}

#[test]
fn beside_a_thousand_loud_sources_quiet_ones_are_served() {
    let mut flooded = Flooded::new();
    flooded.set(|it| (it.rate, it.burst) = (100, 400));
    let (loud, quiet) = (200, 1000);
    let (mut loud_served, mut quiet_served) = (0_u32, 0_u32);
    for tick in 0..40_u64 {
        flooded.now = Now::from_ns(START.ns() + tick * 50_000_000);
        for source in 0..loud {
            let responses = (0..50).filter(|_| flooded.announce(host(source), 0).is_ok()).count();
            loud_served += u32::try_from(responses).unwrap();
        }
        // Each asks once in two seconds.
        for source in (0..quiet).filter(|it| u64::from(it % 40) == tick) {
            let address = Ipv4Addr::from(0x5000_0001 + (source << 16));
            quiet_served += u32::from(flooded.announce(address.into(), 0).is_ok());
        }
    }
    assert_eq!(quiet_served, quiet, "all of them");
    // Within a prefix of /18 there is one each: 400 at once, then 100 a second; and one of 16.
    let asked = loud * 2000;
    assert!((asked / 4..asked / 3).contains(&loud_served), "{loud_served} of {asked}");
}

#[test]
fn new_torrents_over_their_limit_are_answered_but_not_stored() {
    let mut flooded = Flooded::new();
    flooded.set(|options| {
        (options.rate, options.burst) = (1_000_000, 1_000_000);
        (options.new_torrent_rate, options.new_torrent_burst) = (5, 20);
    });
    let intervals: Vec<u32> = (0..100)
        .map(|number| {
            flooded.torrent = InfoHash([number; 20]);
            flooded.announce(host(1), 0).unwrap().0.interval_s
        })
        .collect();
    let doubled = intervals.iter().filter(|it| **it > 2 * 1500).count();
    assert!((79..=81).contains(&doubled), "{doubled} of 100, 20 are let in");
    assert_eq!(flooded.not_stored.of(NotStored::NewTorrentLimit).get(), doubled as u64);
    assert_eq!(flooded.store.totals().torrents, 100 - doubled as u64);
    flooded.torrent = InfoHash([0; 20]);
    assert_eq!(flooded.announce(host(1), 0).unwrap().0.leechers, 1, "known ones are served");
}

#[test]
fn who_starts_and_is_not_stored_comes_back_in_half_an_hour_however_busy_the_tracker() {
    let mut flooded = Flooded::new();
    flooded.set(|options| {
        (options.rate, options.burst) = (1_000_000, 1_000_000);
        (options.new_torrent_rate, options.new_torrent_burst) = (5, 20);
    });
    (0..100).for_each(|_| flooded.load.observe(1.0, 1.0));
    flooded.event = Event::Started;
    for number in 0..200 {
        flooded.torrent = InfoHash([number; 20]);
        let (response, _) = flooded.announce(host(1), 0).unwrap();
        if response.leechers == 1 {
            assert!(response.interval_s > 3400, "{}: the tracker is busy", response.interval_s);
        } else {
            assert!((900..=1800).contains(&response.interval_s), "{}", response.interval_s);
        }
    }
    assert!(flooded.not_stored.of(NotStored::NewTorrentLimit).get() > 150);
}

#[test]
fn a_full_store_answers_and_sends_clients_away_for_longer() {
    let mut flooded = Flooded::new();
    flooded.set(|it| it.enabled = false);
    flooded.store.allow(Budget { bytes_max: 256 * 1024, peers_per_torrent_max: 0 });
    for number in 0..20_000_u32 {
        let [a, b, c, d] = number.to_be_bytes();
        flooded.torrent = InfoHash([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let (response, _) = flooded.announce(host(number % 5000), 0).unwrap();
        assert!(response.interval_s >= 1680, "at {number}");
    }
    let usage = flooded.store.usage();
    assert!(usage.bytes <= 256 * 1024, "{usage:?}");
    let refused = flooded.not_stored.of(NotStored::Memory).get();
    assert!(refused + usage.evicted > 10_000, "{refused} and {usage:?}");
}

#[test]
fn http_clients_over_the_limit_come_back_soon_and_not_together() {
    let flooded = Flooded::new();
    let mut tracker = flooded.tracker();
    let mut http = HttpFrontend::new(Arc::default(), Arc::default());
    let mut ask = |target: &str, host: IpAddr| {
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut out = Vec::new();
        let flow =
            http.handle(&mut tracker, START, Origin::Address(host), request.as_bytes(), &mut out);
        let ReceiveOutcome::Responded { outcome, keep_alive: true, .. } = flow else {
            panic!("{flow:?}")
        };
        (outcome, String::from_utf8_lossy(&out).into_owned())
    };
    let announce = "/announce?info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=-AA0000-aaaaaaaaaaaa&port=1";
    let limited = Outcome::Refused(Refusal::Limited);
    let refused = (0..100).filter(|_| ask(announce, host(1)).0 == limited).count();
    assert!((60..=61).contains(&refused), "{refused} beyond a burst of 40");
    for target in [announce, "/scrape?info_hash=aaaaaaaaaaaaaaaaaaaa"] {
        let (outcome, response) = ask(target, host(1));
        assert_eq!(outcome, limited);
        assert!(response.starts_with("HTTP/1.1 200 "), "{response}");
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        let interval = body.strip_prefix("d14:failure reason17:too many requests8:intervali");
        let seconds: u32 = interval.unwrap().split_once('e').unwrap().0.parse().unwrap();
        let minutes = seconds.div_ceil(60);
        assert!((30..=90).contains(&seconds), "{body}");
        let rest = format!("{seconds}e12:min intervali{seconds}e8:retry in1:{minutes}e");
        assert!(body.ends_with(&rest), "{body}");
    }
    let intervals: std::collections::HashSet<_> =
        (0..50).map(|_| ask(announce, host(1)).1).collect();
    assert!(intervals.len() > 20, "they do not come back together: {intervals:?}");
    assert_ne!(ask(announce, host(2)).0, limited, "others are served");
}

#[test]
fn malformed_announces_over_http_cost_as_much_as_others() {
    for target in ["/announce?info_hash=short", "/announce?x=\x01"] {
        let flooded = Flooded::new();
        let mut tracker = flooded.tracker();
        let mut http = HttpFrontend::new(Arc::default(), Arc::default());
        let mut refusals = |source: IpAddr, count: u32| {
            let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            let mut limited = 0;
            for _ in 0..count {
                let (mut out, origin) = (Vec::new(), Origin::Address(source));
                match http.handle(&mut tracker, START, origin, request.as_bytes(), &mut out) {
                    ReceiveOutcome::Responded { outcome: Outcome::Refused(refusal), .. } => {
                        assert!([Refusal::Malformed, Refusal::Limited].contains(&refusal));
                        limited += u32::from(refusal == Refusal::Limited);
                    }
                    other => panic!("{target}: {other:?}"),
                }
            }
            limited
        };
        assert_eq!(refusals(host(1), 40), 0, "{target}: the burst");
        assert!(refusals(host(1), 100) > 90, "{target}: beyond");
        assert_eq!(refusals(host(2), 1), 0, "{target}: another source");
    }
}

#[test]
fn websockets_over_the_limit_are_told_and_stay() {
    let flooded = Flooded::new();
    let mut tracker = flooded.tracker();
    let mut frontend = WsFrontend::new(Arc::default(), Arc::default());
    let mut session = frontend.open(SocketRoute { worker: 0, slot: 0, generation: 0 }, host(1));
    let announce = r#"{"action":"announce","info_hash":"aaaaaaaaaaaaaaaaaaaa",
        "peer_id":"-WW0000-aaaaaaaaaaaa","left":1,"numwant":1,"offers":[]}"#;
    let mut send = |message: &str, now: Now| {
        let mut outbox = Outbox::default();
        let outcome =
            frontend.handle(&mut tracker, now, &mut session, message.as_bytes(), &mut outbox);
        (outcome, String::from_utf8(outbox.responses.concat()).unwrap())
    };
    let limited = Outcome::Refused(Refusal::Limited);
    let refused = (0..100).filter(|_| send(announce, START).0 == limited).count();
    assert!((60..=61).contains(&refused), "{refused} beyond a burst of 40");
    let (_, told) = send(announce, START);
    assert!(told.contains("too many requests") && told.contains("aaaaaaaaaaaaaaaaaaaa"), "{told}");
    let (outcome, told) = send(r#"{"action":"scrape","info_hash":[]}"#, START);
    assert_eq!(outcome, limited);
    assert!(told.contains("too many requests") && told.contains("scrape"), "{told}");
    assert_ne!(send(announce, START.plus_s(60)).0, limited);
}

#[test]
fn exempt_networks_and_dry_runs_are_under_no_limit() {
    let mut flooded = Flooded::new();
    let loopback = IpAddr::from([127, 3, 2, 1]);
    assert!((0..1000).all(|_| flooded.announce(loopback, 0).is_ok()));
    flooded.set(|it| it.dry_run = true);
    assert!((0..1000).all(|_| flooded.announce(host(1), 0).is_ok_and(|it| it.0.leechers > 0)));
    let limited = flooded.counters.of(LimitTable::Verified, LimitAction::Limited).get();
    assert!(limited > 850, "{limited} would have been");
    flooded.set(|it| *it = limiter::Options { enabled: false, ..Default::default() });
    assert!((0..1000).all(|_| flooded.announce(host(1), 0).is_ok()));
}
