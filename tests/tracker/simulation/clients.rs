//! Those who use the tracker: each a small state machine that loses patience, falls silent and
//! comes back; and those who abuse it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use fastrand::Rng;
use skep::protocol::udp::client::{
    Announcement, Response, decode, encode_announce, encode_connect, encode_scrape,
};
use skep::protocol::udp::{ANNOUNCE_BYTES, TransactionId};
use skep::types::{Event, Family, InfoHash, PeerId};

use super::judge::Judged;
use super::swarms::{Said, Who};
use super::{GREEDY, Happening, S, World};

/// Clients of one run.
pub(crate) const CLIENTS: usize = 36;
/// Torrents of one run.
const TORRENTS: usize = 6;
/// After so long a request over UDP is sent again.
const TIMEOUT_MS: u64 = 15_000;
/// Announces that one who asks for too much sends at once.
const BURST: usize = 900;

/// What a client speaks, or does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks {
    Udp,
    Http,
    WebSocket,
    /// UDP, far too much at once.
    Greedy,
    /// Datagrams with made-up contents, in anybody's name.
    Forger,
}

/// What it is about to ask.
#[derive(Clone, Debug)]
enum Want {
    Announce(Said),
    Scrape(Vec<InfoHash>),
}

/// A swarm that a client takes part in.
#[derive(Clone, Copy, Debug)]
struct Part {
    torrent: InfoHash,
    left: u64,
    joined: bool,
}

pub(crate) struct Client {
    pub(crate) speaks: Speaks,
    /// Where its requests come from.
    pub(crate) address: SocketAddr,
    /// Where it listens.
    port: u16,
    parts: Vec<Part>,
    /// The connection id, and until when it uses it.
    id: Option<(u64, u64)>,
    /// For how long it uses one.
    id_life_s: u64,
    want: Option<Want>,
    transaction: u32,
    tries: u32,
    /// Which of its wakes counts: others are of the past.
    pub(crate) turn: u64,
    socket: Option<u32>,
}

fn torrent(number: usize) -> InfoHash {
    InfoHash(format!("torrent {number:012}").as_bytes().try_into().unwrap())
}

/// One of some.
fn any_of<T: Copy>(random: &mut Rng, all: &[T]) -> T {
    all[random.usize(..all.len())]
}

/// Some share an address, some are local, the others far apart.
fn address_of(number: usize, speaks: Speaks) -> SocketAddr {
    let last = u8::try_from(number).unwrap();
    let ip: IpAddr = match (speaks, number % 12) {
        (Speaks::Greedy, _) => GREEDY,
        (_, 0) => Ipv4Addr::new(10, 1, 0, last).into(),
        (_, 1) => Ipv4Addr::new(127, 0, 0, last + 1).into(),
        (_, 2) => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into()).into(),
        (_, 3..=5) => Ipv6Addr::new(0x2600, last.into(), 0, 0, 0, 0, 0, 1).into(),
        (_, 6) => Ipv4Addr::new(8, 100, 0, 1).into(),
        _ => Ipv4Addr::new(8, last, 0, 1).into(),
    };
    SocketAddr::new(ip, 40_000 + u16::from(last))
}

impl Client {
    pub(crate) fn new(number: usize, random: &mut Rng) -> Self {
        let speaks = match number {
            0 => Speaks::Greedy,
            1 | 2 => Speaks::Forger,
            _ => any_of(random, &[Speaks::Udp, Speaks::Udp, Speaks::Http, Speaks::WebSocket]),
        };
        let mut parts = Vec::new();
        for at in 0..TORRENTS {
            if at == 0 || random.usize(..TORRENTS) < 3 - at.min(2) {
                parts.push(Part { torrent: torrent(at), left: 0, joined: false });
            }
        }
        Self {
            speaks,
            address: address_of(number, speaks),
            port: 6000 + u16::try_from(number).unwrap(),
            parts,
            id: None,
            id_life_s: if random.u8(..4) == 0 { 250 } else { 60 },
            want: None,
            transaction: 0,
            tries: 0,
            turn: 0,
            socket: None,
        }
    }

    /// What it does next.
    fn next_want(&mut self, number: usize, random: &mut Rng) -> Want {
        if random.u8(..8) == 0 {
            let count = random.usize(1..=TORRENTS + 1);
            return Want::Scrape((0..count).map(torrent).collect());
        }
        let at = random.usize(..self.parts.len());
        let part = &mut self.parts[at];
        let event = match random.u8(..20) {
            _ if !part.joined => Event::Started,
            0..=3 if part.left > 0 => Event::Completed,
            4..=5 => Event::Stopped,
            6 if part.left > 0 && self.speaks != Speaks::WebSocket => Event::Paused,
            _ => Event::None,
        };
        match event {
            Event::Started => part.left = if random.u8(..3) == 0 { 0 } else { 1000 },
            Event::Completed => part.left = 0,
            _ => {}
        }
        part.joined = event != Event::Stopped;
        let port = if random.u8(..40) == 0 { random.u16(..2) } else { self.port };
        let who = match self.speaks {
            Speaks::WebSocket => Who::Web(number),
            _ => Who::At(SocketAddr::new(self.address.ip(), port)),
        };
        let wanted = random.bool().then(|| random.u32(1..60));
        Want::Announce(Said { torrent: part.torrent, who, left: part.left, event, wanted })
    }
}

impl World {
    /// A client's moment has come.
    pub(crate) fn wake(&mut self, number: usize) -> Judged {
        match self.clients[number].speaks {
            Speaks::Greedy => self.flood(number),
            Speaks::Forger => {
                self.forge(number);
                Ok(())
            }
            Speaks::Udp => {
                self.wake_udp(number);
                Ok(())
            }
            Speaks::Http | Speaks::WebSocket if !self.is_up => {
                self.sleep(number, 10);
                Ok(())
            }
            Speaks::Http => self.wake_http(number),
            Speaks::WebSocket => self.wake_ws(number),
        }
    }

    /// It comes back after so many seconds, or somewhat later.
    pub(crate) fn sleep(&mut self, number: usize, seconds: u64) {
        let ms = seconds * 1000 + self.random.u64(..=seconds * 500);
        self.clients[number].turn += 1;
        let turn = self.clients[number].turn;
        self.plan_in_ms(ms, Happening::Wake(number, turn));
    }

    /// How long it rests when it was answered: some fall silent for so long that they are
    /// forgotten.
    fn rest(&mut self, number: usize) {
        let seconds = match self.random.u8(..24) {
            0 => {
                self.clients[number].parts.iter_mut().for_each(|it| it.joined = false);
                self.random.u64(1000..5000)
            }
            1..=2 => 900,
            3..=9 => 20,
            _ => 300,
        };
        self.sleep(number, seconds);
    }

    fn wake_udp(&mut self, number: usize) {
        let client = &mut self.clients[number];
        client.tries += 1;
        if client.want.is_none() || client.tries > 5 {
            let gives_up = client.want.is_some();
            (client.want, client.tries) = (None, 0);
            if gives_up {
                client.id = None;
                return self.rest(number);
            }
            client.want = Some(client.next_want(number, &mut self.random));
        } else if client.tries == 3 {
            client.id = None; // as the tracker keeps silent about it
        }
        self.ask(number);
    }

    /// Sends what a client wants, or asks for the id that it needs first.
    fn ask(&mut self, number: usize) {
        let mono_ns = self.mono_ns;
        let client = &mut self.clients[number];
        client.transaction += 1;
        let transaction = TransactionId(client.transaction.to_be_bytes());
        let id = client.id.filter(|it| mono_ns < it.1).map(|it| it.0);
        let mut bytes = vec![0; 256];
        let length = match (id, &client.want) {
            (None, _) | (_, None) => encode_connect(transaction, &mut bytes),
            (Some(id), Some(Want::Announce(said))) => announce(id, transaction, said, &mut bytes),
            (Some(id), Some(Want::Scrape(hashes))) => {
                encode_scrape(id, transaction, hashes, &mut bytes)
            }
        };
        bytes.truncate(length);
        let (address, turn) = (client.address, client.turn + 1);
        client.turn = turn;
        self.transmit(|| Happening::Datagram(address, bytes.clone()));
        self.plan_in_ms(TIMEOUT_MS, Happening::Wake(number, turn));
    }

    /// A response has made it to its client.
    pub(crate) fn hear(&mut self, number: usize, bytes: &[u8]) {
        let mono_ns = self.mono_ns;
        let client = &mut self.clients[number];
        let family = Family::of(client.address.ip());
        let Ok((transaction, response)) = decode(bytes, family) else {
            unreachable!("it was judged")
        };
        if transaction.0 != client.transaction.to_be_bytes() || client.want.is_none() {
            return; // late, or a second time
        }
        if let Response::Connected(id) = response {
            client.id = Some((id, mono_ns + client.id_life_s * S));
            return self.ask(number);
        }
        (client.want, client.tries) = (None, 0);
        self.rest(number);
    }

    fn wake_http(&mut self, number: usize) -> Judged {
        let (want, source) = {
            let client = &mut self.clients[number];
            (client.next_want(number, &mut self.random), client.address.ip())
        };
        match want {
            Want::Announce(said) => self.announce_http(&said)?,
            Want::Scrape(hashes) => self.scrape_http(source, &hashes)?,
        }
        self.rest(number);
        Ok(())
    }

    fn wake_ws(&mut self, number: usize) -> Judged {
        let want = self.clients[number].next_want(number, &mut self.random);
        let before = self.clients[number].socket.filter(|it| self.site.sockets.contains_key(it));
        let slot = match before {
            Some(slot) if self.random.u8(..8) > 0 => slot,
            // Over a new one; the old one ends at once, soon after, or much later.
            other => {
                let slot = self.open_socket(number);
                self.clients[number].socket = Some(slot);
                if let Some(old) = other {
                    let delay_ms = any_of(&mut self.random, &[0, 500, 100_000]);
                    self.plan_in_ms(delay_ms, Happening::Close(old));
                }
                slot
            }
        };
        let offers = self.random.usize(..8);
        match want {
            Want::Announce(said) => self.announce_ws(slot, &said, offers)?,
            Want::Scrape(hashes) => self.scrape_ws(slot, &hashes)?,
        }
        if self.random.u8(..20) == 0 {
            let delay_ms = self.random.u64(..200_000);
            self.plan_in_ms(delay_ms, Happening::Close(slot));
        }
        self.rest(number);
        Ok(())
    }

    /// More at once than anybody may ask for.
    fn flood(&mut self, number: usize) -> Judged {
        self.sleep(number, 3000);
        if !self.is_up {
            return Ok(());
        }
        let address = self.clients[number].address;
        let mut bytes = [0; ANNOUNCE_BYTES];
        let length = encode_connect(TransactionId([0; 4]), &mut bytes);
        let response = self.handle_datagram(address, &bytes[..length])?;
        let response = response.unwrap_or_default();
        let Ok((_, Response::Connected(id))) = decode(&response, Family::V4) else { return Ok(()) };
        for _ in 0..BURST {
            let port = 1 + self.random.u16(..4);
            let said = Said {
                torrent: torrent(self.random.usize(..TORRENTS)),
                who: Who::At(SocketAddr::new(GREEDY, port)),
                left: self.random.u64(..2),
                event: any_of(&mut self.random, &[Event::None, Event::None, Event::Stopped]),
                wanted: None,
            };
            announce(id, TransactionId([1; 4]), &said, &mut bytes);
            self.handle_datagram(address, &bytes)?;
        }
        Ok(())
    }

    /// What nobody should answer, and what looks much like what one should.
    fn forge(&mut self, number: usize) {
        self.sleep(number, 60);
        let random = &mut self.random;
        let source = self.clients[random.usize(..CLIENTS)].address;
        let mut bytes = vec![0; ANNOUNCE_BYTES];
        let said = Said {
            torrent: torrent(random.usize(..TORRENTS)),
            who: Who::At(source),
            left: random.u64(..2),
            event: Event::None,
            wanted: Some(200),
        };
        // Perhaps somebody's id; seldom the source's own.
        let theirs = self.clients[random.usize(..CLIENTS)].id.map(|it| it.0);
        let id = theirs.filter(|_| random.bool()).unwrap_or_else(|| random.u64(..));
        match random.u8(..6) {
            0 => _ = encode_connect(TransactionId([2; 4]), &mut bytes),
            1 => _ = encode_scrape(id, TransactionId([2; 4]), &[said.torrent], &mut bytes),
            2 => bytes = (0..random.usize(..200)).map(|_| random.u8(..)).collect(),
            _ => _ = announce(id, TransactionId([2; 4]), &said, &mut bytes),
        }
        for _ in 0..random.usize(..3) {
            let at = random.usize(..bytes.len().max(1));
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.u8(..8);
            }
        }
        if random.bool() {
            bytes.truncate(random.usize(..=bytes.len()));
        }
        self.transmit(|| Happening::Datagram(source, bytes.clone()));
    }
}

fn announce(id: u64, transaction: TransactionId, said: &Said, out: &mut [u8]) -> usize {
    let Who::At(address) = said.who else { unreachable!("no WebRTC peer speaks UDP") };
    let announcement = Announcement {
        info_hash: said.torrent,
        peer_id: PeerId(*b"-XX0000-cccccccccccc"),
        downloaded: 0,
        left: said.left,
        uploaded: 0,
        event: said.event,
        numwant: said.wanted.map_or(-1, |it| it.try_into().unwrap()),
        port: address.port(),
        key: [0; 4],
    };
    encode_announce(id, transaction, &announcement, out)
}
