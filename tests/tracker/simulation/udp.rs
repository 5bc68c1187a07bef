//! The edge where datagrams are handled, and what is held against every verdict.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use skep::frontend::{RESPONSE_BYTES_MAX, Responder as _};
use skep::protocol::udp::client::{Response, decode};
use skep::time::Now;
use skep::types::{
    Action, AnnounceResponse, DatagramResponse, Dropped, Event, Family, InfoHash, PeerKind,
};

use super::judge::{Invariant, Judged, Violation, hold};
use super::site::worker_of;
use super::swarms::{Said, Who};
use super::{GREEDY, Sabotage, World};

/// Ids that were issued: to which IPv4 address or IPv6 /64, under which key, and when.
#[derive(Default)]
pub(crate) struct Issued(BTreeMap<(IpAddr, u64), (u8, Now)>);

/// The address that stands for all that share ids with this one.
fn shared(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
    }
}

/// What an id is worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Worth {
    Valid,
    /// Between 128 and 192 seconds old, or from a clock that was set back.
    Either,
    Nothing,
}

impl Issued {
    fn note(&mut self, source: IpAddr, id: u64, key: u8, now: Now) {
        self.0.insert((shared(source), id), (key, now));
    }

    fn worth(&self, source: IpAddr, id: u64, keys: (u8, Option<u8>), now: Now) -> Worth {
        let Some((key, at)) = self.0.get(&(shared(source), id)) else { return Worth::Nothing };
        let age_s = i128::from(now.seconds()) - i128::from(at.seconds());
        match age_s {
            _ if *key != keys.0 && Some(*key) != keys.1 => Worth::Nothing,
            0..=128 => Worth::Valid,
            -127..0 | 129..=191 => Worth::Either,
            _ => Worth::Nothing,
        }
    }
}

/// A datagram as BEP 15 has it, read the plain way.
enum Asked {
    Nothing(Dropped),
    Connect,
    Announce(u64, Said),
    Scrape(u64, Vec<InfoHash>),
}

fn be<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

fn read(source: IpAddr, bytes: &[u8]) -> Asked {
    if bytes.len() < 16 {
        return Asked::Nothing(Dropped::TooShort);
    }
    let id = u64::from_be_bytes(be(bytes, 0));
    match u32::from_be_bytes(be(bytes, 8)) {
        0 if id == 0x417_2710_1980 => Asked::Connect,
        0 => Asked::Nothing(Dropped::BadMagic),
        1 if bytes.len() < 98 => Asked::Nothing(Dropped::TooShort),
        1 => {
            let event = match u32::from_be_bytes(be(bytes, 80)) {
                1 => Event::Completed,
                2 => Event::Started,
                3 => Event::Stopped,
                4 => Event::Paused,
                _ => Event::None,
            };
            let wanted = i32::from_be_bytes(be(bytes, 92));
            let port = u16::from_be_bytes(be(bytes, 96));
            let who = Who::At(SocketAddr::new(source, port));
            let left = u64::from_be_bytes(be(bytes, 64));
            let wanted = u32::try_from(wanted).ok().filter(|it| *it > 0);
            Asked::Announce(id, Said { torrent: InfoHash(be(bytes, 16)), who, left, event, wanted })
        }
        2 => {
            let hashes = bytes[16..].chunks_exact(20).take(74);
            Asked::Scrape(id, hashes.map(|it| InfoHash(it.try_into().unwrap())).collect())
        }
        _ => Asked::Nothing(Dropped::UnknownAction),
    }
}

impl World {
    /// A datagram reaches the tracker; what it is answered.
    pub(crate) fn handle_datagram(
        &mut self,
        source: SocketAddr,
        bytes: &[u8],
    ) -> Judged<Option<Vec<u8>>> {
        let now = self.now();
        let worker = worker_of(source.ip(), source.port());
        let asked = read(source.ip(), bytes);
        if let Asked::Announce(_, said) = &asked {
            self.compare(&said.torrent)?;
        }
        let limited = self.site.limited(worker);
        let mut out = [0; RESPONSE_BYTES_MAX];
        let mut heard = bytes.to_vec();
        if self.sabotage == Some(Sabotage::StopsUnheard) && heard.len() >= 98 && heard[83] == 3 {
            heard[83] = 0;
        }
        let mut verdict = self.site.udp[worker].handle(now, source, &heard, &mut out);
        if self.sabotage == Some(Sabotage::NoiseAnswered) && verdict == Err(Dropped::BadMagic) {
            verdict = Ok(DatagramResponse::served(Action::Connect, 16));
        }
        let family = Family::of(source.ip());
        if self.sabotage != Some(Sabotage::DropsUncounted) || verdict.is_ok() {
            self.site.counters[worker].count(family, bytes.len(), verdict);
        }
        self.tally.datagrams[family as usize] += 1;
        let mut response = match verdict {
            Ok(DatagramResponse { bytes, .. }) => out[..bytes].to_vec(),
            Err(_) => Vec::new(),
        };
        self.spoil(&mut response, source, bytes);
        let slipped = self.site.limited(worker).0 > limited.0;
        self.judge_datagram(source, bytes, &asked, verdict, &response, slipped)?;
        Ok(verdict.is_ok().then_some(response))
    }

    /// Breaks a response on purpose.
    fn spoil(&self, response: &mut Vec<u8>, source: SocketAddr, request: &[u8]) {
        let stride = if source.is_ipv4() { 6 } else { 18 };
        let has_peers = response.len() > 20 + stride && response[3] == 1;
        let first = match (self.sabotage, source.ip()) {
            _ if !has_peers => None,
            (Some(Sabotage::AskerHanded), IpAddr::V4(ip)) => Some((ip.octets(), be(request, 96))),
            (Some(Sabotage::PrivateHanded), IpAddr::V4(_)) => Some(([10, 9, 9, 9], [1, 1])),
            (Some(Sabotage::StrangerHanded), IpAddr::V4(_)) => Some(([8, 250, 9, 9], [1, 1])),
            _ => None,
        };
        if let Some((address, port)) = first {
            response[20..24].copy_from_slice(&address);
            response[24..26].copy_from_slice(&port);
        }
        match self.sabotage {
            Some(Sabotage::LongResponses) if response.len() == 16 && response[3] == 0 => {
                response.push(0);
            }
            Some(Sabotage::PeersTwice) if has_peers => {
                response.copy_within(20..20 + stride, 20 + stride);
            }
            Some(Sabotage::PeersLeftOut) if has_peers => response.truncate(response.len() - stride),
            _ => {}
        }
    }

    fn judge_datagram(
        &mut self,
        source: SocketAddr,
        bytes: &[u8],
        asked: &Asked,
        verdict: Result<DatagramResponse, Dropped>,
        response: &[u8],
        slipped: bool,
    ) -> Judged {
        let told = || format!("{verdict:?} for {bytes:02x?} from {source}");
        let (now, ip) = (self.now(), source.ip());
        let (id, said) = match asked {
            Asked::Nothing(why) => {
                self.tally.note(why.label());
                return hold(verdict.err() == Some(*why), Invariant::Silence, told);
            }
            Asked::Connect => {
                hold(response.len() <= bytes.len(), Invariant::NoAmplification, told)?;
                let Ok((_, Response::Connected(id))) = decode(response, Family::of(ip)) else {
                    return Err(Violation { invariant: Invariant::Readable, what: told() });
                };
                self.issued.note(ip, id, self.keys.0, now);
                return Ok(());
            }
            Asked::Announce(id, said) => (*id, Ok(said)),
            Asked::Scrape(id, hashes) => (*id, Err(hashes)),
        };
        let is_refused = matches!(verdict, Err(Dropped::ForgedId | Dropped::ExpiredId));
        match self.issued.worth(ip, id, self.keys, now) {
            Worth::Nothing => hold(is_refused, Invariant::Silence, told)?,
            Worth::Valid => hold(!is_refused, Invariant::IdsStayValid, told)?,
            Worth::Either => {}
        }
        match verdict {
            Err(Dropped::Limited) => {
                self.tally.note("limited");
                if let Ok(said) = said
                    && said.role().is_none()
                {
                    self.swarms.announce(now, said); // it leaves all the same
                }
                return hold(ip == GREEDY, Invariant::OnlyGreedAreLimited, told);
            }
            Err(why) => {
                self.tally.note(why.label());
                return hold(is_refused, Invariant::Silence, told);
            }
            Ok(_) => {}
        }
        let Ok((_, response)) = decode(response, Family::of(ip)) else {
            return Err(Violation { invariant: Invariant::Readable, what: told() });
        };
        match (response, said) {
            (Response::Announced(head, peers), Ok(_)) if slipped => {
                self.tally.note("calmed");
                let empty = peers.is_empty() && head.seeders + head.leechers == 0;
                hold(ip == GREEDY && empty, Invariant::OnlyGreedAreLimited, told)
            }
            (Response::Announced(head, peers), Ok(said)) => self.judge_announced(said, head, peers),
            (Response::Scraped(entries), Err(hashes)) => {
                self.tally.note("scrapes by UDP");
                hold(entries.count() == hashes.len(), Invariant::Readable, told)?;
                for (found, torrent) in entries.iter().zip(hashes) {
                    self.judge_scraped(torrent, found.seeders, found.completed, found.leechers)?;
                }
                Ok(())
            }
            _ => Err(Violation { invariant: Invariant::Readable, what: told() }),
        }
    }

    fn judge_announced(&mut self, said: &Said, response: AnnounceResponse, peers: &[u8]) -> Judged {
        self.tally.note("announces by UDP");
        if said.accepts_nothing() {
            self.tally.note("announces of port 0 or 1");
        }
        let Who::At(address) = said.who else { unreachable!("it came by UDP") };
        let counts = self.swarms.announce(self.now(), said);
        let found = (response.seeders, response.leechers);
        hold(found == (counts.seeders, counts.leechers), Invariant::Counts, || {
            format!("{found:?} for {counts:?}: {said:?}")
        })?;
        let (kind, most) = match address {
            SocketAddr::V4(_) => (PeerKind::V4, 200),
            SocketAddr::V6(_) => (PeerKind::V6, 67),
        };
        let peers = compact(kind, peers);
        self.judge_peers(said, &peers)?;
        let most = usize::try_from(said.wanted.unwrap_or(50)).unwrap().min(most);
        let there = if said.role().is_some() { self.swarms.available(said, kind) } else { 0 };
        hold(peers.len() == there.min(most), Invariant::HowMany, || {
            format!("{} of {there} for {said:?}", peers.len())
        })
    }

    /// Whoever is handed out may be, and once.
    pub(crate) fn judge_peers(&mut self, said: &Said, peers: &[SocketAddr]) -> Judged {
        let mut seen = std::collections::BTreeSet::new();
        for peer in peers {
            hold(seen.insert(*peer), Invariant::Distinct, || format!("{peer} for {said:?}"))?;
            self.swarms.may_be_handed(said, Who::At(*peer))?;
        }
        self.tally.handed += peers.len() as u64;
        Ok(())
    }

    /// A scrape does not wait for a sweep: who is forgotten meanwhile is looked for afterwards.
    pub(crate) fn judge_scraped(
        &mut self,
        torrent: &InfoHash,
        seeders: u32,
        completed: u32,
        leechers: u32,
    ) -> Judged {
        self.compare(torrent)?;
        let counts = self.swarms.counts(torrent);
        let found = (seeders, completed, leechers);
        hold(
            found == (counts.seeders, counts.completed, counts.leechers),
            Invariant::Counts,
            || format!("{torrent}: {found:?} for {counts:?}"),
        )
    }
}

/// Compact peers, decoded.
pub(crate) fn compact(kind: PeerKind, peers: &[u8]) -> Vec<SocketAddr> {
    let stride = if kind == PeerKind::V4 { 6 } else { 18 };
    let peer = |bytes: &[u8]| {
        let port = u16::from_be_bytes(be(bytes, stride - 2));
        match kind {
            PeerKind::V4 => SocketAddr::from((be::<4>(bytes, 0), port)),
            _ => SocketAddr::from((be::<16>(bytes, 0), port)),
        }
    };
    peers.chunks(stride).map(peer).collect()
}
