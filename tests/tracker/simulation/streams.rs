//! The edges where HTTP requests and WebSocket messages are handled, and what is held against the
//! responses.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use bt_bencode::Value;
use skep::frontend::http::ReceiveOutcome;
use skep::frontend::origin::Origin;
use skep::frontend::ws::{Outbox, PeerMessage, SocketRoute};
use skep::types::{Action, Event, InfoHash, Outcome, PeerKind};

use super::judge::{Invariant, Judged, hold};
use super::site::{Socket, StreamWorker, WORKERS};
use super::swarms::{Said, Who};
use super::udp::compact;
use super::{Happening, World};
use crate::spelling::{encoded, event};
use crate::support::webtorrent_workers;

fn text_of(torrent: &InfoHash) -> &str {
    std::str::from_utf8(&torrent.0).unwrap()
}

fn number(value: &Value, key: &str) -> u32 {
    value.get(key).unwrap().as_u64().unwrap().try_into().unwrap()
}

/// Peers of an announce's response, compact or in a list.
fn peers_of(response: &Value) -> Vec<SocketAddr> {
    let peers = response.get("peers").unwrap();
    if let Some(list) = peers.as_list() {
        let peer = |value: &Value| {
            let ip = value.get("ip").unwrap().as_byte_str().unwrap().as_slice();
            let ip: IpAddr = std::str::from_utf8(ip).unwrap().parse().unwrap();
            SocketAddr::new(ip, number(value, "port").try_into().unwrap())
        };
        return list.iter().map(peer).collect();
    }
    let v4 = peers.as_byte_str().unwrap().as_slice();
    let v6 = response.get("peers6").unwrap().as_byte_str().unwrap().as_slice();
    [compact(PeerKind::V4, v4), compact(PeerKind::V6, v6)].concat()
}

impl World {
    /// One HTTP request and its response.
    fn http(&mut self, source: IpAddr, target: &str) -> Value {
        let request = format!("GET {target} HTTP/1.1\r\nHost: tracker.example\r\n\r\n");
        let (now, origin, worker) = (self.now(), Origin::Address(source), self.random.usize(..2));
        let cut = self.random.usize(..request.len());
        let StreamWorker { http, tracker, .. } = &mut self.site.streams[worker];
        let mut out = Vec::new();
        let part = &request.as_bytes()[..cut];
        let flow = http.handle(tracker, now, origin, part, &mut out);
        assert!(flow == ReceiveOutcome::More && out.is_empty(), "half a request is none: {flow:?}");
        let flow = http.handle(tracker, now, origin, request.as_bytes(), &mut out);
        let ReceiveOutcome::Responded { consumed, outcome, .. } = flow else { panic!("{flow:?}") };
        assert!(consumed == request.len() && outcome.answered().is_some(), "{flow:?}");
        let end = out.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
        bt_bencode::from_slice(&out[end..]).unwrap()
    }

    pub(crate) fn announce_http(&mut self, said: &Said) -> Judged {
        let Who::At(address) = said.who else { unreachable!("no WebRTC peer speaks HTTP") };
        self.compare(&said.torrent)?;
        let is_compact = self.random.u8(..4) > 0;
        let mut target = format!(
            "/announce?info_hash={}&peer_id={}&port={}&left={}&event={}&compact={}",
            encoded(&said.torrent.0),
            encoded(b"-XX0000-cccccccccccc"),
            address.port(),
            said.left,
            event(said.event),
            u8::from(is_compact),
        );
        if let Some(wanted) = said.wanted {
            write!(target, "&numwant={wanted}").unwrap();
        }
        let response = self.http(address.ip(), &target);
        self.tally.note("announces by HTTP");
        let counts = self.swarms.announce(self.now(), said);
        let found = (number(&response, "complete"), number(&response, "incomplete"));
        hold(found == (counts.seeders, counts.leechers), Invariant::Counts, || {
            format!("{found:?} for {counts:?}: {said:?}")
        })?;
        let peers = peers_of(&response);
        self.judge_peers(said, &peers)?;
        let available =
            |kind| if said.role().is_some() { self.swarms.available(said, kind) } else { 0 };
        let there = available(PeerKind::V4) + available(PeerKind::V6);
        let most = usize::try_from(said.wanted.unwrap_or(50)).unwrap().min(200);
        hold(peers.len() == there.min(most), Invariant::HowMany, || {
            format!("{} of {there} for {said:?}", peers.len())
        })
    }

    pub(crate) fn scrape_http(&mut self, source: IpAddr, torrents: &[InfoHash]) -> Judged {
        let hashes = torrents.iter().map(|it| format!("info_hash={}", encoded(&it.0)));
        let target = format!("/scrape?{}", hashes.collect::<Vec<_>>().join("&"));
        let response = self.http(source, &target);
        self.tally.note("scrapes by HTTP");
        let files = response.get("files").unwrap().as_dict().unwrap();
        let found: Vec<_> = files
            .iter()
            .map(|(hash, file)| {
                let count = |key| number(file, key);
                let hash = InfoHash(hash.as_slice().try_into().unwrap());
                (hash, count("complete"), count("downloaded"), count("incomplete"))
            })
            .collect();
        let asked: BTreeSet<_> = torrents.iter().copied().collect();
        hold(found.iter().map(|it| it.0).eq(asked), Invariant::Readable, || format!("{found:?}"))?;
        for (torrent, seeders, completed, leechers) in found {
            self.judge_scraped(&torrent, seeders, completed, leechers)?;
        }
        Ok(())
    }

    /// A client opens a WebSocket; says which.
    pub(crate) fn open_socket(&mut self, client: usize) -> u32 {
        let slot = self.sockets_opened;
        self.sockets_opened += 1;
        let worker = u16::try_from(slot as usize % WORKERS).unwrap();
        let route = SocketRoute { worker, slot, generation: 0 };
        let source = self.clients[client].address.ip();
        let session = self.site.streams[usize::from(worker)].ws.open(route, source);
        self.site.sockets.insert(slot, Socket { session, client });
        slot
    }

    /// A client says something on its socket; the responses. Mail is on its way then.
    fn say(&mut self, slot: u32, message: &str) -> (Vec<serde_json::Value>, Vec<SocketRoute>) {
        let now = self.now();
        let socket = self.site.sockets.get_mut(&slot).unwrap();
        let StreamWorker { ws, tracker, .. } = &mut self.site.streams[slot as usize % WORKERS];
        let mut outbox = Outbox::default();
        let bytes = message.as_bytes();
        let outcome = ws.handle(tracker, now, &mut socket.session, bytes, &mut outbox);
        if outcome == Outcome::Answered(Action::Answer) {
            self.tally.note("WebRTC answers");
        }
        let routes = outbox.messages.iter().map(|it| it.0).collect();
        for (route, mail) in outbox.messages {
            let delay_ms = self.random.u64(..3000);
            self.plan_in_ms(delay_ms, Happening::Mail(route, Box::new(mail)));
        }
        let read = |it: &Vec<u8>| serde_json::from_slice(it).unwrap();
        (outbox.responses.iter().map(read).collect(), routes)
    }

    pub(crate) fn announce_ws(&mut self, slot: u32, said: &Said, offers: usize) -> Judged {
        let Who::Web(client) = said.who else { unreachable!("a socket is a WebRTC peer's") };
        self.compare(&said.torrent)?;
        let mut more = format!(r#","event":"{}","left":{}"#, event(said.event), said.left);
        if let Some(wanted) = said.wanted {
            write!(more, r#","numwant":{wanted}"#).unwrap();
        }
        let offers: Vec<String> =
            (0..offers).map(|it| webtorrent_workers::offer(&it.to_string())).collect();
        let (torrent, peer) = (text_of(&said.torrent), format!("client{client}"));
        let message = webtorrent_workers::announce(torrent, &peer, &offers.join(","), &more);
        let (responses, routes) = self.say(slot, &message);
        self.tally.note("announces by WebSocket");
        let counts = self.swarms.announce(self.now(), said);
        let key = (said.torrent, client);
        match said.role() {
            Some(_) => {
                self.web_routes.insert(key, slot);
                self.web_spoken.insert((slot, said.torrent));
            }
            None => {
                self.web_spoken.remove(&(slot, said.torrent));
                if self.web_routes.get(&key) == Some(&slot) {
                    self.web_routes.remove(&key);
                }
            }
        }
        let [response] = &responses[..] else { panic!("one reply: {responses:?}") };
        let found = ["complete", "incomplete"].map(|it| response[it].as_u64());
        let wanted = [counts.seeders, counts.leechers].map(|it| Some(u64::from(it)));
        hold(found == wanted, Invariant::Counts, || {
            format!("{response} for {counts:?}: {said:?}")
        })?;
        let chosen: Vec<_> = routes.iter().map(|it| self.client_of(it.slot)).collect();
        for client in &chosen {
            self.swarms.may_be_handed(said, Who::Web(*client))?;
        }
        let distinct: BTreeSet<_> = chosen.iter().collect();
        let distinct = distinct.len() == chosen.len();
        hold(distinct, Invariant::Distinct, || format!("{chosen:?} for {said:?}"))?;
        let there = self.swarms.available(said, PeerKind::Web);
        let there = if said.role().is_some() { there } else { 0 };
        let most = offers.len().min(usize::try_from(said.wanted.unwrap_or(50)).unwrap()).min(10);
        hold(chosen.len() == there.min(most), Invariant::HowMany, || {
            format!("{chosen:?} of {there} for {said:?}")
        })
    }

    pub(crate) fn scrape_ws(&mut self, slot: u32, torrents: &[InfoHash]) -> Judged {
        let torrents: BTreeSet<_> = torrents.iter().collect();
        let texts: Vec<_> = torrents.iter().map(|it| text_of(it)).collect();
        let (responses, _) = self.say(slot, &webtorrent_workers::scrape(&texts));
        self.tally.note("scrapes by WebSocket");
        for torrent in torrents {
            let entry = &responses[0]["files"][text_of(torrent)];
            let count = |key: &str| u32::try_from(entry[key].as_u64().unwrap()).unwrap();
            let (seeders, leechers) = (count("complete"), count("incomplete"));
            self.judge_scraped(torrent, seeders, count("downloaded"), leechers)?;
        }
        Ok(())
    }

    /// Mail reaches the worker that it is for; its socket may have gone.
    pub(crate) fn handle_mail(&mut self, route: SocketRoute, mail: PeerMessage) -> Judged {
        let now = self.now();
        let Some(socket) = self.site.sockets.get_mut(&route.slot) else { return Ok(()) };
        let client = socket.client;
        let mut outbox = Outbox::default();
        let ws = &mut self.site.streams[route.slot as usize % WORKERS].ws;
        if ws.receive(now, &mut socket.session, mail, &mut outbox).is_err() {
            return Ok(());
        }
        let told: serde_json::Value = serde_json::from_slice(&outbox.responses[0]).unwrap();
        let torrent = InfoHash(told["info_hash"].as_str().unwrap().as_bytes().try_into().unwrap());
        let inside = self.web_spoken.contains(&(route.slot, torrent));
        hold(inside, Invariant::MailStaysInside, || format!("{told} for client {client}"))?;
        if told["offer"].is_null() {
            self.tally.note("answers delivered");
        } else if self.random.bool() {
            let to = told["peer_id"].as_str().unwrap().trim_end_matches('-');
            let number = told["offer_id"].as_str().unwrap().trim_end_matches('-');
            let own = format!("client{client}");
            self.say(route.slot, &webtorrent_workers::answer(text_of(&torrent), &own, to, number));
        }
        Ok(())
    }

    /// What a worker does for its sockets now and then.
    pub(crate) fn tend_sockets(&mut self) {
        let now = self.now();
        for (slot, socket) in &mut self.site.sockets {
            let StreamWorker { ws, tracker, .. } = &mut self.site.streams[*slot as usize % WORKERS];
            ws.tend(tracker, now, &mut socket.session);
        }
    }

    /// A socket closes: its peers leave, but for those who are on another one by now.
    pub(crate) fn close_socket(&mut self, slot: u32) -> Judged {
        let Some(socket) = self.site.sockets.remove(&slot) else { return Ok(()) };
        let now = self.now();
        let spoken: Vec<InfoHash> =
            self.web_spoken.iter().filter(|it| it.0 == slot).map(|it| it.1).collect();
        for torrent in &spoken {
            self.compare(torrent)?;
        }
        let StreamWorker { ws, tracker, .. } = &mut self.site.streams[slot as usize % WORKERS];
        ws.close(tracker, now, socket.session);
        for torrent in spoken {
            self.web_spoken.remove(&(slot, torrent));
            let key = (torrent, socket.client);
            if self.web_routes.get(&key) == Some(&slot) {
                self.web_routes.remove(&key);
                let who = Who::Web(socket.client);
                let said = Said { torrent, who, left: 1, event: Event::Stopped, wanted: None };
                if self.swarms.has(&torrent, who) {
                    self.swarms.announce(now, &said);
                }
            }
            self.compare(&torrent)?;
        }
        Ok(())
    }

    fn client_of(&self, slot: u32) -> usize {
        self.site.sockets.get(&slot).map_or(usize::MAX, |it| it.client)
    }
}
