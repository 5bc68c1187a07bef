//! How many peers a response holds: exactly what was asked for, what there is, or what the family's
//! response may carry, whichever is least; and who gets no response when a worker cannot keep up.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::udp::UdpFrontend;
use skep::frontend::{RESPONSE_BYTES_MAX, Responder};
use skep::protocol::udp::client::{
    Announcement, Response, decode, encode_announce, encode_connect, encode_scrape,
};
use skep::protocol::udp::{ANNOUNCE_BYTES, TransactionId, peer_stride};
use skep::store::{Options, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};
use skep::types::{Dropped, Event, Family, InfoHash, PeerId};

const NOW: Now = Now::from_s(1_800_000_000);

struct World {
    frontend: UdpFrontend,
    ids: ConnectionIds,
    /// The peers of the latest response.
    told: Vec<u8>,
}

impl World {
    fn new() -> Self {
        Self::with(tracker::Options::default())
    }

    fn with(rules: tracker::Options) -> Self {
        let store = Arc::new(Store::new(Options { shards: 2, seed: Some(1) }));
        let options = Arc::new(ArcSwap::from_pointee(rules));
        let algorithm = Algorithm::SipHash;
        let keys = KeyPair { active: [7; KEY_BYTES], staging: None, algorithm };
        let ids = ConnectionIds::new(&keys);
        let shared = Arc::new(ArcSwap::from_pointee(ids.clone()));
        let frontend = UdpFrontend::new(Tracker::new(store, options, 1, 0, 1), shared);
        Self { frontend, ids, told: Vec::new() }
    }

    /// Announces a leecher; says how many peers it was told of, and how long the response was.
    fn announce(&mut self, source: IpAddr, event: Event, numwant: i32) -> (usize, usize) {
        self.announce_at(source, [0; 4], event, numwant)
    }

    /// Announces a leecher that names another address in the IP field.
    fn claim(&mut self, source: IpAddr, address: [u8; 4]) {
        self.announce_at(source, address, Event::Started, 50);
    }

    fn announce_at(
        &mut self,
        source: IpAddr,
        claimed: [u8; 4],
        event: Event,
        numwant: i32,
    ) -> (usize, usize) {
        let announcement = Announcement {
            info_hash: InfoHash([5; 20]),
            peer_id: PeerId([6; 20]),
            downloaded: 0,
            left: 1 << 32, // a leecher in all 64 bits
            uploaded: 0,
            event,
            numwant,
            port: 6881,
            key: [0; 4],
        };
        let mut request = [0; ANNOUNCE_BYTES];
        let id = self.ids.issue(NOW, source);
        encode_announce(id, TransactionId([9; 4]), &announcement, &mut request);
        request[84..88].copy_from_slice(&claimed);
        let mut out = [0; RESPONSE_BYTES_MAX];
        let source = SocketAddr::new(source, 50_000);
        let answered = self.frontend.handle(NOW, source, &request, &mut out).unwrap();
        let family = Family::of(source.ip());
        match decode(&out[..answered.bytes], family).unwrap() {
            (TransactionId([9, 9, 9, 9]), Response::Announced(response, peers)) => {
                assert_eq!(response.seeders, 0, "2^32 bytes left make no seeder");
                self.told = peers.to_vec();
                (peers.len() / peer_stride(family), answered.bytes)
            }
            other => panic!("no announce reply: {other:?}"),
        }
    }
}

fn v4(number: u8) -> IpAddr {
    Ipv4Addr::new(8, 8, 8, number).into()
}

fn v6(number: u8) -> IpAddr {
    Ipv6Addr::new(0x2001, 0x4860, 0, 0, 0, 0, 0, number.into()).into()
}

#[test]
fn responses_hold_what_is_asked_for_within_the_familys_cap() {
    let mut world = World::new();
    for number in 0..=255 {
        world.announce(v4(number), Event::Started, 0);
        world.announce(v6(number), Event::Started, 0);
    }
    for address in [v4(0), v6(0)] {
        let cap = if address.is_ipv4() { 200 } else { 67 };
        for (numwant, peers) in [
            (1, 1),
            (3, 3),
            (5, 5),
            (29, 29),
            (66, 66),
            (-1, 50),
            (0, 50),
            (i32::MIN, 50),
            (199, 199.min(cap)),
            (200, 200.min(cap)),
            (i32::MAX, cap),
        ] {
            let (told, bytes) = world.announce(address, Event::None, numwant);
            assert_eq!(told, peers, "{address} wants {numwant}");
            assert!(bytes <= RESPONSE_BYTES_MAX, "fits any path unfragmented");
        }
        assert_eq!(world.announce(address, Event::Stopped, 50).0, 0, "who leaves wants none");
    }
}

#[test]
fn a_peer_elsewhere_counts_from_the_operators_networks_alone() {
    let rules = tracker::Options {
        ip_override_from: vec!["8.8.8.0/30".parse().unwrap()],
        ..Default::default()
    };
    let mut world = World::with(rules);
    world.claim(v4(1), [9, 9, 9, 9]);
    world.claim(v4(77), [7, 7, 7, 7]);
    assert_eq!(world.announce(v4(5), Event::None, 50).0, 2);
    let endpoints = world.told.as_chunks::<6>().0.iter().map(|it| [it[0], it[1], it[2], it[3]]);
    let mut addresses: Vec<_> = endpoints.collect();
    addresses.sort_unstable();
    assert_eq!(addresses, [[8, 8, 8, 77], [9, 9, 9, 9]]);
}

#[test]
fn few_peers_are_all_handed_out_and_a_lone_announcer_gets_nobody() {
    let mut world = World::new();
    assert_eq!(world.announce(v4(1), Event::Started, 50).0, 0);
    assert_eq!(world.announce(v6(1), Event::Started, 50).0, 0, "the other family's stay away");
    assert_eq!(world.announce(v4(2), Event::Started, 50).0, 1);
    assert_eq!(world.announce(v4(3), Event::Started, 50).0, 2);
}

#[test]
fn a_worker_that_cannot_keep_up_drops_scrapes_then_connects_but_no_announce() {
    let mut world = World::new();
    let dropped = |world: &mut World, of: [Dropped; 2]| {
        let ask = |world: &mut World, request: &[u8], expected: Dropped| {
            let mut out = [0; RESPONSE_BYTES_MAX];
            let source = SocketAddr::new(v4(1), 50_000);
            let verdict = world.frontend.handle(NOW, source, request, &mut out);
            usize::from(verdict.is_err_and(|it| it == expected))
        };
        let id = world.ids.issue(NOW, v4(1));
        let (mut scrape, mut connect) = ([0; 36], [0; 16]);
        encode_scrape(id, TransactionId([1; 4]), &[InfoHash([5; 20])], &mut scrape);
        encode_connect(TransactionId([2; 4]), &mut connect);
        let scrapes: usize = (0..40).map(|_| ask(world, &scrape, of[0])).sum();
        let connects: usize = (0..40).map(|_| ask(world, &connect, of[1])).sum();
        world.announce(v4(1), Event::None, 50);
        (scrapes, connects)
    };
    let of = [Dropped::ShedScrape, Dropped::ShedConnect];
    assert_eq!(dropped(&mut world, of), (0, 0));
    world.frontend.set_queue(500);
    assert_eq!(dropped(&mut world, of), (40, 0));
    world.frontend.set_queue(800);
    assert_eq!(dropped(&mut world, of), (40, 30), "one connect in four gets through");
    world.frontend.set_queue(0);
    assert_eq!(dropped(&mut world, of), (0, 0), "it is over at once");
}
