//! Datagrams to the UDP front end, from several clients, with and without a valid connection id.
//!
//! ```text
//! input   { client (1) | seconds that pass (1) | length (2) | datagram (length) } × n
//! client  7 has a valid id | 1..0 which address, the high two of them IPv6
//! ```
//!
//! Invariants checked: nothing panics; without a valid id no response is longer than its datagram;
//! no response is longer than 1232 bytes; the strictest client accepts every response; no response
//! contains port 0 or the client itself.
#![no_main]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use libfuzzer_sys::fuzz_target;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KEY_BYTES, KeyPair};
use skep::frontend::udp::UdpFrontend;
use skep::protocol::udp::client::{self, Response};
use skep::protocol::udp::{HEAD_BYTES, TransactionId};
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};
use skep::types::{Action, Family};
use skep::worker::{RESPONSE_BYTES_MAX, Responder};

/// Clients that send in turn: two of each family.
const CLIENTS: [SocketAddr; 4] = [
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1)), 6881),
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::new(8, 8, 4, 4)), 6882),
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), 6883),
    SocketAddr::new(std::net::IpAddr::V6(Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0, 0, 2)), 6884),
];

/// One datagram and its sender.
struct Delivery<'a> {
    client: SocketAddr,
    verified: bool,
    pause_s: u64,
    datagram: &'a [u8],
}

/// Takes the next delivery from the input.
fn next<'a>(input: &mut &'a [u8]) -> Option<Delivery<'a>> {
    let (&[client, pause_s, high, low], rest) = input.split_first_chunk::<4>()?;
    let length = usize::from(u16::from_be_bytes([high, low])).min(rest.len());
    let (datagram, rest) = rest.split_at(length);
    *input = rest;
    let (verified, client) = (client & 0x80 != 0, CLIENTS[usize::from(client & 3)]);
    Some(Delivery { client, verified, pause_s: pause_s.into(), datagram })
}

fn frontend() -> UdpFrontend {
    let store = Arc::new(Store::new(store::Options { shards: 2, seed: Some(1) }));
    let options = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
    let tracker = Tracker::new(store, options, 1, 0, 1);
    let keys = KeyPair { active: [7; KEY_BYTES], staging: None, algorithm: Algorithm::SipHash };
    UdpFrontend::new(tracker, Arc::new(ArcSwap::from_pointee(ConnectionIds::new(&keys))))
}

/// Obtains a client's connection id by a connect request.
fn connect(frontend: &mut UdpFrontend, now: Now, client: SocketAddr) -> [u8; 8] {
    let mut request = [0; HEAD_BYTES];
    let mut out = [0; RESPONSE_BYTES_MAX];
    client::encode_connect(TransactionId([0; 4]), &mut request);
    let answer = frontend.handle(now, client, &request, &mut out).expect("a connect is answered");
    assert_eq!(answer.bytes, HEAD_BYTES);
    *out[8..].first_chunk().expect("an id")
}

fn check(delivery: &Delivery<'_>, action: Action, response: &[u8]) {
    assert!(response.len() <= RESPONSE_BYTES_MAX);
    assert!(delivery.datagram.len() >= HEAD_BYTES, "what is too short is not answered");
    if !delivery.verified || action == Action::Connect {
        assert!(response.len() <= delivery.datagram.len(), "no amplification");
    }
    let family = Family::of(delivery.client.ip());
    let (_, decoded) = client::decode(response, family).expect("a reply every client accepts");
    if let Response::Announced(_, peers) = decoded {
        let (address, port) = (delivery.client.ip(), &delivery.datagram[96..98]);
        let own = match address {
            std::net::IpAddr::V4(ipv4) => [&ipv4.octets()[..], port].concat(),
            std::net::IpAddr::V6(ipv6) => [&ipv6.octets()[..], port].concat(),
        };
        for peer in peers.chunks(own.len()) {
            assert_ne!(peer, own, "never the asker");
            assert_ne!(peer[peer.len() - 2..], [0, 0], "never port 0");
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut frontend = frontend();
    let mut now = Now::from_s(1_800_000_000);
    let mut input = input;
    let mut out = [0; RESPONSE_BYTES_MAX];
    while let Some(mut delivery) = next(&mut input) {
        now = now.plus_s(delivery.pause_s);
        frontend.upkeep(now);
        let mut datagram = delivery.datagram.to_vec();
        if delivery.verified && datagram.len() >= 8 {
            datagram[..8].copy_from_slice(&connect(&mut frontend, now, delivery.client));
        }
        delivery.datagram = &datagram;
        for stage in 0..UdpFrontend::PREFETCH_STAGES {
            frontend.prefetch(stage, delivery.datagram);
        }
        if let Ok(answer) = frontend.handle(now, delivery.client, delivery.datagram, &mut out) {
            check(&delivery, answer.action, &out[..answer.bytes]);
        }
    }
});
