//! WebTorrent from message to response without a socket: decoding, a complete announce, and an
//! offer relayed to another client and its answer relayed back.
#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]
#![allow(clippy::unwrap_used, reason = "a benchmark may fail by panicking")]

use std::hint::black_box;
use std::sync::Arc;

use arc_swap::ArcSwap;
use criterion::{Criterion, criterion_group, criterion_main};
use skep::frontend::ws::{Directory, Options, Outbox, SocketRoute, SocketSession, WsFrontend};
use skep::protocol::webtorrent;
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::{self, Tracker};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const NOW: Now = Now::from_s(1_800_000_000);
const TORRENTS: usize = 1000;
const SOCKETS: usize = 4000;

/// A session description as long as that of a browser.
fn description(kind: &str) -> String {
    format!(r#"{{"type":"{kind}","sdp":"{}"}}"#, r"a=candidate:1 1 udp 2\r\n".repeat(40))
}

fn announce(torrent: usize, peer: usize, offers: usize) -> String {
    let offer =
        |at: usize| format!(r#"{{"offer":{},"offer_id":"{at:ø<20}"}}"#, description("offer"));
    let offers: Vec<String> = (0..offers).map(offer).collect();
    let names = format!(r#""info_hash":"{}","peer_id":"{}""#, name(torrent), name(peer));
    let numbers = r#""numwant":5,"uploaded":0,"downloaded":0,"left":9"#;
    let offers = offers.join(",");
    format!(r#"{{{numbers},"event":"started","action":"announce",{names},"offers":[{offers}]}}"#)
}

fn answer(torrent: usize, peer: usize, to: usize, offer: usize) -> String {
    let (torrent, peer, to) = (name(torrent), name(peer), name(to));
    let description = description("answer");
    format!(r#"{{"action":"announce","info_hash":"{torrent}","peer_id":"{peer}","#)
        + &format!(r#""to_peer_id":"{to}","offer_id":"{offer:ø<20}","answer":{description}}}"#)
}

/// 20 bytes, half of them beyond ASCII.
fn name(number: usize) -> String {
    format!("{number:ÿ<13}ascii--")
}

/// One worker with sockets in swarms of four.
struct World {
    tracker: Tracker,
    frontend: WsFrontend,
    sessions: Vec<SocketSession>,
}

impl World {
    fn new(sockets: usize, torrents: usize) -> Self {
        let store = Arc::new(Store::new(store::Options::default()));
        let rules = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
        let options = Options { offers_per_minute_max: 0, ..Options::default() };
        let options = Arc::new(ArcSwap::from_pointee(options));
        let mut frontend = WsFrontend::new(Arc::new(Directory::default()), options);
        let route = |slot| SocketRoute { worker: 0, slot, generation: 0 };
        let source = "198.51.100.1".parse().unwrap();
        let slots = 0..u32::try_from(sockets).unwrap();
        let sessions = slots.map(|slot| frontend.open(route(slot), source)).collect();
        let tracker = Tracker::without_upkeep(store, rules, 1);
        let mut world = Self { tracker, frontend, sessions };
        for socket in 0..sockets {
            world.say(socket, announce(socket % torrents, socket, 0).as_bytes());
        }
        world
    }

    fn say(&mut self, socket: usize, message: &[u8]) -> Outbox {
        let mut outbox = Outbox::default();
        let session = &mut self.sessions[socket];
        black_box(self.frontend.handle(&mut self.tracker, NOW, session, message, &mut outbox));
        outbox
    }

    /// Delivers the messages of `outbox`; returns the receiving sockets.
    fn deliver(&mut self, outbox: Outbox, now: Now) -> Vec<usize> {
        let mut told = Outbox::default();
        let mut sockets = Vec::new();
        for (route, mail) in outbox.messages {
            let socket = route.slot as usize;
            let session = &mut self.sessions[socket];
            self.frontend.receive(now, session, mail, &mut told).unwrap();
            sockets.push(socket);
        }
        black_box(told);
        sockets
    }
}

fn decode(criterion: &mut Criterion) {
    for offers in [0, 5] {
        let message = announce(1, 2, offers);
        criterion.bench_function(&format!("webtorrent/decode/{offers} offers"), |bencher| {
            bencher.iter(|| webtorrent::decode(black_box(message.as_bytes()), 10).is_ok());
        });
    }
}

fn handle(criterion: &mut Criterion) {
    let mut world = World::new(SOCKETS, TORRENTS);
    for offers in [0, 1, 5] {
        let messages: Vec<String> =
            (0..SOCKETS).map(|it| announce(it % TORRENTS, it, offers)).collect();
        let mut sockets = (0..SOCKETS).cycle();
        criterion.bench_function(&format!("webtorrent/announce/{offers} offers"), |bencher| {
            bencher.iter(|| {
                let socket = sockets.next().unwrap();
                world.say(socket, messages[socket].as_bytes()).messages.len()
            });
        });
    }
}

/// An announce with one offer, the delivery to the other client, and the delivery of the answer.
fn exchange(criterion: &mut Criterion) {
    let mut world = World::new(2, 1);
    let (offer, answer) = (announce(0, 0, 1), answer(0, 1, 0, 0));
    let mut now = NOW;
    criterion.bench_function("webtorrent/offer and answer", |bencher| {
        bencher.iter(|| {
            now = now.plus_s(60); // so that only this offer is remembered
            let outbox = world.say(0, offer.as_bytes());
            assert_eq!(world.deliver(outbox, now), [1]);
            let mut outbox = Outbox::default();
            let World { tracker, frontend, sessions } = &mut world;
            frontend.handle(tracker, now, &mut sessions[1], answer.as_bytes(), &mut outbox);
            assert_eq!(world.deliver(outbox, now), [0]);
        });
    });
}

criterion_group!(benches, decode, handle, exchange);
criterion_main!(benches);
