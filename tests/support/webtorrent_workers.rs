//! Two stream workers without threads or sockets: WebTorrent front ends on one store, sessions with
//! names, and their mail carried by hand.
#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use skep::counters::DeliveryFailure;
use skep::frontend::http::Outcome;
use skep::frontend::ws::{
    Directory, Options, Outbox, PeerMessage, SocketRoute, SocketSession, WsFrontend,
};
use skep::limiter::{self, Handle, Limiter, Sizes};
use skep::store::{self, Store};
use skep::time::Now;
use skep::tracker::{self, Announced, PeerBuffers, Tracker};
use skep::types::{Action, Announce, Contact, Event, InfoHash, PeerId};

/// Two names of torrents.
pub(crate) const TORRENT: &str = "Torrent One 20 bytes";
pub(crate) const OTHER_TORRENT: &str = "Torrent Two 20 bytes";

/// A name of 20 bytes.
pub(crate) fn id(name: &str) -> String {
    format!("{name:-<20}")
}

/// One element of `offers`; `number` names it.
pub(crate) fn offer(number: &str) -> String {
    format!(r#"{{"offer":{{"type":"offer","sdp":"v=0\r\n{number}"}},"offer_id":"{}"}}"#, id(number))
}

/// An announce with `offers`, and `more` members, each behind a comma.
pub(crate) fn announce(torrent: &str, peer: &str, offers: &str, more: &str) -> String {
    let names = format!(r#""info_hash":"{torrent}","peer_id":"{}""#, id(peer));
    format!(r#"{{"action":"announce",{names},"offers":[{offers}]{more}}}"#)
}

/// The answer of `peer` to `to`'s offer of that number.
pub(crate) fn answer(torrent: &str, peer: &str, to: &str, number: &str) -> String {
    let (peer, to, number) = (id(peer), id(to), id(number));
    let names = format!(r#""info_hash":"{torrent}","peer_id":"{peer}","to_peer_id":"{to}""#);
    let text = r#"{"type":"answer","sdp":"v=0\r\n"}"#;
    format!(r#"{{"action":"announce",{names},"offer_id":"{number}","answer":{text}}}"#)
}

/// A scrape of several torrents.
pub(crate) fn scrape(torrents: &[&str]) -> String {
    format!(r#"{{"action":"scrape","info_hash":["{}"]}}"#, torrents.join(r#"",""#))
}

/// What an outcome is called in metrics.
pub(crate) fn label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Answered(action) => action.label(),
        Outcome::NotApplied(_) => Action::Announce.label(),
        Outcome::Refused(refusal) => refusal.label(),
        Outcome::Rejected(rejected) => rejected.label(),
    }
}

struct Worker {
    frontend: WsFrontend,
    tracker: Tracker,
}

struct Socket {
    session: SocketSession,
    inbox: VecDeque<String>,
}

pub(crate) struct Hive {
    pub(crate) now: Now,
    pub(crate) store: Arc<Store>,
    pub(crate) directory: Arc<Directory>,
    workers: [Worker; 2],
    sockets: BTreeMap<String, Socket>,
    mail: VecDeque<(SocketRoute, PeerMessage)>,
    opened: u32,
    /// Mail that reached a socket and was not for it, or was too much.
    pub(crate) undelivered: usize,
    /// What was lost, by reason: before it became mail, or `undelivered`.
    pub(crate) lost: BTreeMap<&'static str, usize>,
}

impl Hive {
    pub(crate) fn new(options: Options) -> Self {
        let store = Arc::new(Store::new(store::Options { shards: 4, seed: Some(1) }));
        Self::on(store, options)
    }

    /// On a store that others use too.
    pub(crate) fn on(store: Arc<Store>, options: Options) -> Self {
        let directory = Arc::new(Directory::new(&[7; 16]));
        let options = Arc::new(ArcSwap::from_pointee(options));
        let workers = [1, 2].map(|seed| {
            let rules = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
            let tracker = Tracker::without_upkeep(store.clone(), rules, seed);
            Worker { frontend: WsFrontend::new(directory.clone(), options.clone()), tracker }
        });
        let now = Now::from_s(1_800_000_000);
        let (sockets, mail, lost) = Default::default();
        Self { now, store, directory, workers, sockets, mail, opened: 0, undelivered: 0, lost }
    }

    /// Puts what clients ask under limits.
    pub(crate) fn limit(&mut self, options: limiter::Options) {
        let limiter = Arc::new(Limiter::new(Sizes::default(), Some(1)));
        let options = Arc::new(ArcSwap::from_pointee(options));
        for worker in &mut self.workers {
            let gate = Handle::new(limiter.clone(), options.clone(), Arc::default(), 1);
            let rules = Arc::new(ArcSwap::from_pointee(tracker::Options::default()));
            let tracker = Tracker::without_upkeep(self.store.clone(), rules, 1);
            worker.tracker = tracker.with_limiter(gate);
        }
    }

    /// Opens a socket; they go to the workers in turn.
    pub(crate) fn open(&mut self, name: &str, source: &str) {
        let worker = u16::try_from(self.opened % 2).unwrap();
        let route = SocketRoute { worker, slot: self.opened / 2, generation: 3 };
        self.opened += 1;
        let frontend = &mut self.workers[usize::from(worker)].frontend;
        let session = frontend.open(route, source.parse().unwrap());
        let before = self.sockets.insert(name.into(), Socket { session, inbox: VecDeque::new() });
        assert!(before.is_none(), "{name} is open already");
    }

    pub(crate) fn is_open(&self, name: &str) -> bool {
        self.sockets.contains_key(name)
    }

    pub(crate) fn session(&self, name: &str) -> &SocketSession {
        &self.sockets[name].session
    }

    pub(crate) fn close(&mut self, name: &str) {
        let Socket { session, inbox } = self.sockets.remove(name).unwrap();
        assert!(inbox.is_empty(), "{name} leaves unread: {inbox:?}");
        let worker = &mut self.workers[usize::from(session.route().worker)];
        worker.frontend.close(&mut worker.tracker, self.now, session);
    }

    /// What a worker does for a socket when it pings its client.
    pub(crate) fn tend(&mut self, name: &str) {
        let session = &mut self.sockets.get_mut(name).unwrap().session;
        let Worker { frontend, tracker } = &mut self.workers[usize::from(session.route().worker)];
        frontend.tend(tracker, self.now, session);
    }

    /// A client says something, and what it leads to happens.
    pub(crate) fn say(&mut self, name: &str, message: &str) -> Outcome {
        self.say_bytes(name, message.as_bytes())
    }

    pub(crate) fn say_bytes(&mut self, name: &str, message: &[u8]) -> Outcome {
        let outcome = self.say_undelivered_bytes(name, message);
        self.deliver();
        outcome
    }

    /// A client says something, and its mail stays on its way.
    pub(crate) fn say_undelivered(&mut self, name: &str, message: &str) -> Outcome {
        self.say_undelivered_bytes(name, message.as_bytes())
    }

    pub(crate) fn say_undelivered_bytes(&mut self, name: &str, message: &[u8]) -> Outcome {
        let Socket { session, inbox } = self.sockets.get_mut(name).unwrap();
        let Worker { frontend, tracker } = &mut self.workers[usize::from(session.route().worker)];
        let mut outbox = Outbox::default();
        let outcome = frontend.handle(tracker, self.now, session, message, &mut outbox);
        inbox.extend(outbox.responses.into_iter().map(|it| String::from_utf8(it).unwrap()));
        self.mail.extend(outbox.messages);
        outbox.lost.into_iter().for_each(|(reason, count)| self.note_lost(reason, count));
        outcome
    }

    /// Carries all mail to where it goes, if that socket is still there.
    pub(crate) fn deliver(&mut self) {
        while let Some((route, mail)) = self.mail.pop_front() {
            let Some(socket) = self.sockets.values_mut().find(|it| it.session.route() == route)
            else {
                continue;
            };
            let mut outbox = Outbox::default();
            let frontend = &mut self.workers[usize::from(route.worker)].frontend;
            let told = frontend.receive(self.now, &mut socket.session, mail, &mut outbox);
            assert_eq!(told.is_ok(), !outbox.responses.is_empty(), "what is told is what is said");
            let texts = outbox.responses.into_iter().map(|it| String::from_utf8(it).unwrap());
            socket.inbox.extend(texts);
            assert!(outbox.messages.is_empty(), "mail leads to no mail");
            if let Err(reason) = told {
                self.undelivered += 1;
                self.note_lost(reason, 1);
            }
        }
    }

    fn note_lost(&mut self, reason: DeliveryFailure, count: usize) {
        *self.lost.entry(reason.label()).or_default() += count;
    }

    /// The next message for a client.
    pub(crate) fn next(&mut self, name: &str) -> Option<String> {
        self.sockets.get_mut(name).unwrap().inbox.pop_front()
    }

    pub(crate) fn assert_silence(&self, why: &str) {
        for (name, socket) in &self.sockets {
            assert!(socket.inbox.is_empty(), "{why}: {name} is told {:?}", socket.inbox);
        }
    }

    /// A socket of its own name, opened where there is none, joins as a leecher.
    pub(crate) fn join(&mut self, name: &str, torrent: &str) {
        self.join_with(name, torrent, "");
    }

    pub(crate) fn join_with(&mut self, name: &str, torrent: &str, offers: &str) {
        if !self.is_open(name) {
            self.open(name, "198.51.100.2");
        }
        self.say(name, &announce(torrent, name, offers, ""));
        let response = self.next(name).unwrap();
        assert!(response.contains(r#""interval":"#), "{response}");
    }

    /// Seeders and leechers of a torrent.
    pub(crate) fn counts(&self, torrent: &str) -> (u32, u32) {
        let entry = self.store.scrape(&InfoHash(torrent.as_bytes().try_into().unwrap()));
        (entry.seeders, entry.leechers)
    }

    /// An announce by another protocol: seeders, leechers, and bytes of peers handed out.
    pub(crate) fn announce_port(
        &mut self,
        torrent: &str,
        source: IpAddr,
        port: u16,
        left: u64,
    ) -> (u32, u32, usize) {
        let mut announce = Announce {
            info_hash: InfoHash(torrent.as_bytes().try_into().unwrap()),
            source,
            address_override: None,
            contact: Contact::Port(port),
            peer_id: PeerId([1; 20]),
            left,
            event: Event::None,
            numwant: None,
        };
        let (mut v4, mut v6) = ([0; 600], [0; 1800]);
        let room = PeerBuffers { v4: &mut v4, v6: &mut v6, ..PeerBuffers::default() };
        let tracker = &mut self.workers[0].tracker;
        let announced = tracker.announce(self.now, &mut announce, &mut (), room);
        let Announced { response, bytes, .. } = announced.unwrap();
        (response.seeders, response.leechers, bytes.iter().sum())
    }
}
