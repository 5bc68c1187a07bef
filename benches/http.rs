//! HTTP from request bytes to response bytes, without a socket, and the parsing alone. One million
//! torrents, two million peers, numwant 30, as in `pipeline`.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use fastrand::Rng;
use skep::frontend::http::{HttpFrontend, Outcome, ReceiveOutcome};
use skep::frontend::origin::Origin;
use skep::protocol::http::{self, HeaderFields, Headers, RequestHead};
use skep::store::{Options, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};
use skep::types::Action;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: Now = Now::from_s(1_800_000_000);

/// Requests prepared for the measurement: more than the CPU caches hold, fewer than all peers.
const REQUESTS: usize = 1 << 18;

struct Client {
    origin: Origin,
    request: Vec<u8>,
}

/// An announce as libtorrent sends it, keep-alive.
fn announce(torrent: u32, peer: u32) -> Client {
    let mut request = String::from("GET /announce?info_hash=");
    for byte in torrent.wrapping_mul(0x9e37_79b1).to_be_bytes().iter().chain(&[0x5a; 16]) {
        write!(request, "%{byte:02x}").unwrap();
    }
    let left = peer % 4;
    write!(
        request,
        "&peer_id=-LT20B0-abcdefghijkl&port=6881&uploaded=0&downloaded=0&left={left}&corrupt=0\
         &key=4F2A71C8&numwant=30&compact=1&no_peer_id=1&supportcrypto=1&redundant=0 HTTP/1.1\r\n\
         Host: tracker.example:6969\r\nUser-Agent: libtorrent/2.0.11\r\n\
         Accept-Encoding: gzip\r\nConnection: keep-alive\r\n\r\n"
    )
    .unwrap();
    let address = Ipv4Addr::from(0x0800_0000 + peer);
    Client { origin: Origin::Address(IpAddr::V4(address)), request: request.into_bytes() }
}

/// Draws a torrent with the skew of public trackers: most torrents have one or two peers, a few
/// have hundreds.
fn torrent(random: &mut Rng, torrents: u32) -> u32 {
    let uniform = random.f64();
    let skewed = if random.bool() { uniform } else { uniform.powi(6) };
    #[expect(clippy::cast_possible_truncation, reason = "below the number of torrents")]
    #[expect(clippy::cast_sign_loss, reason = "not negative")]
    let torrent = (skewed * f64::from(torrents)) as u32;
    torrent
}

/// A front end with `torrents` and `peers`, and the next requests of some of the peers.
fn swarms(torrents: u32, peers: u32) -> (HttpFrontend, Tracker, Vec<Client>) {
    let store = Arc::new(Store::new(Options::default()));
    let rules = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
    let mut tracker = Tracker::without_upkeep(store, rules, 1);
    let mut frontend = HttpFrontend::new(Arc::default(), Arc::default());
    let mut random = Rng::with_seed(1);
    let (mut out, mut kept) = (Vec::new(), Vec::new());
    for peer in 0..peers {
        let client = announce(torrent(&mut random, torrents), peer);
        serve(&mut frontend, &mut tracker, &client, &mut out);
        if random.u32(..peers) < u32::try_from(REQUESTS).unwrap() {
            kept.push(client);
        }
    }
    random.shuffle(&mut kept);
    (frontend, tracker, kept)
}

fn serve(frontend: &mut HttpFrontend, tracker: &mut Tracker, client: &Client, out: &mut Vec<u8>) {
    out.clear();
    match frontend.handle(tracker, NOW, client.origin, &client.request, out) {
        ReceiveOutcome::Responded {
            outcome: Outcome::Answered(Action::Announce),
            keep_alive: true,
            ..
        } => {}
        other => panic!("{other:?}"),
    }
}

fn http(criterion: &mut Criterion) {
    let small = std::env::args().any(|it| it == "--test");
    let (torrents, peers) = if small { (500, 1000) } else { (1_000_000, 2_000_000) };
    let (mut frontend, mut tracker, clients) = swarms(torrents, peers);
    let mut out = Vec::new();
    let mut group = criterion.benchmark_group("http");
    group.throughput(Throughput::Elements(1));
    let mut turn = clients.iter().cycle();
    group.bench_function("announce", |bencher| {
        bencher.iter(|| {
            serve(&mut frontend, &mut tracker, turn.next().unwrap(), &mut out);
            std::hint::black_box(&out);
        });
    });
    let (few, mut turn) = (&clients[..clients.len().min(32)], 0);
    group.bench_function("announce-warm", |bencher| {
        bencher.iter(|| {
            turn = (turn + 1) % few.len();
            serve(&mut frontend, &mut tracker, &few[turn], &mut out);
            std::hint::black_box(&out);
        });
    });
    group.bench_function("parse", |bencher| {
        bencher.iter(|| {
            let mut headers = Headers::default();
            let head = RequestHead::parse(&few[0].request, &mut headers).unwrap().unwrap();
            let fields = HeaderFields::of(head.headers);
            std::hint::black_box((http::announce(head.query).unwrap(), fields));
        });
    });
    group.finish();
}

criterion_group!(benches, http);
criterion_main!(benches);
