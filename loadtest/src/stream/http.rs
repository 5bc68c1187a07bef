//! HTTP announces and scrapes: requests as libtorrent writes them, responses checked as by strict
//! clients.

use std::net::IpAddr;
use std::ops::Range;

use skep::client::http::{BodyEnd, head, push_announce, push_scrape, push_separator};
use skep::client::response::{ParsedAnnounce, ResponseError, TrackerResponse, announced, scraped};
use skep::protocol::udp::client::Announcement;
use skep::types::Family;

use crate::check::{Invalid, flaw_of_peers};
use crate::endpoint::Endpoint;
use crate::plan::Plan;
use crate::population::info_hash;
use crate::requests::Request;
use crate::slots::{Kind, Pending};

/// Most bytes of a response that is accepted.
const RESPONSE_BYTES_MAX: usize = 1 << 20;

/// The constant parts of requests.
pub(crate) struct Writer {
    announce: Vec<u8>,
    scrape: Vec<u8>,
    kept: Vec<u8>,
    closed: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(endpoint: &Endpoint) -> Self {
        let start = |target: &str| {
            let mut line = format!("GET {target}").into_bytes();
            push_separator(&mut line);
            line
        };
        let end = |connection: &str| {
            let (host, version) = (&endpoint.authority, env!("CARGO_PKG_VERSION"));
            format!(
                " HTTP/1.1\r\nHost: {host}\r\nUser-Agent: loadtest/{version}\r\n\
                 Accept-Encoding: gzip\r\n{connection}\r\n"
            )
            .into_bytes()
        };
        Self {
            announce: start(&endpoint.target),
            scrape: start(endpoint.scrape_target.as_deref().unwrap_or("/scrape")),
            kept: end(""),
            closed: end("Connection: close\r\n"),
        }
    }

    /// Appends a request. `one_shot` requests the end of the connection.
    pub(crate) fn write(
        &self,
        out: &mut Vec<u8>,
        request: &Request,
        place: u16,
        plan: &Plan,
        one_shot: bool,
    ) {
        match request.peer {
            Some(peer) => {
                out.extend_from_slice(&self.announce);
                let announcement = Announcement {
                    info_hash: info_hash(plan.seed, peer.torrent),
                    peer_id: peer.id(plan.seed, place, request.item),
                    downloaded: if peer.is_seeder() { 1 << 30 } else { 0 },
                    left: if peer.is_seeder() { 0 } else { 1 << 30 },
                    uploaded: 0,
                    event: request.event,
                    numwant: request.count.into(),
                    port: request.port,
                    key: request.item.to_be_bytes(),
                };
                push_announce(out, &announcement);
            }
            None => {
                out.extend_from_slice(&self.scrape);
                let torrents = request.item..request.item + u32::from(request.count);
                push_scrape(out, torrents.map(|it| info_hash(plan.seed, it)));
            }
        }
        out.extend_from_slice(if one_shot { &self.closed } else { &self.kept });
    }
}

/// A complete response at the start of the input.
pub(crate) struct Frame {
    pub(crate) body: Range<usize>,
    pub(crate) keep_alive: bool,
}

/// Finds the end of the first response; `None` if it is incomplete.
pub(crate) fn frame(input: &[u8], closed: bool) -> Result<Option<Frame>, Invalid> {
    let Some(head) = head(input).map_err(|_| Invalid::NotHttp)? else { return Ok(None) };
    if head.status != 200 {
        return Err(Invalid::HttpStatus);
    }
    let end = match head.body {
        BodyEnd::Length(length) if length > RESPONSE_BYTES_MAX => return Err(Invalid::Oversized),
        BodyEnd::Length(length) => Some(head.bytes + length).filter(|it| *it <= input.len()),
        BodyEnd::UntilClose => closed.then_some(input.len()),
        // No tracker has a reason to use it.
        BodyEnd::Chunked => return Err(Invalid::NotHttp),
    };
    if end.is_none() && input.len() > RESPONSE_BYTES_MAX {
        return Err(Invalid::Oversized);
    }
    Ok(end.map(|end| Frame { body: head.bytes..end, keep_alive: head.keep_alive }))
}

/// The content of a response.
pub(crate) enum Said<'a> {
    Announced(ParsedAnnounce<'a>),
    /// Number of seeders and leechers of all torrents together.
    Scraped(u64),
    Refused(&'a [u8]),
}

/// Reads a body and compares it with its request, as [`crate::check::check`] does.
pub(crate) fn judge<'a>(
    body: &'a [u8],
    pending: &Pending,
    own: IpAddr,
    plan: &Plan,
    thorough: bool,
) -> Result<(Said<'a>, Option<Invalid>), Invalid> {
    if pending.kind == Kind::Announce {
        return match announced(body)? {
            TrackerResponse::Failure(reason) => Ok((Said::Refused(reason), None)),
            TrackerResponse::Granted(announce) => {
                let family = Family::of(own);
                let peers = if family == Family::V4 { announce.peers } else { announce.peers6 };
                let flaw = flaw_of_peers(peers, pending, own, family, thorough);
                Ok((Said::Announced(announce), flaw))
            }
        };
    }
    let asked = pending.item..pending.item + u32::from(pending.count);
    let (mut peers, mut strangers) = (0, 0);
    let counted = scraped(body, |torrent, entry| {
        peers += u64::from(entry.seeders) + u64::from(entry.leechers);
        let known = asked.clone().any(|it| info_hash(plan.seed, it).0 == torrent);
        strangers += u32::from(!known);
    });
    match counted? {
        TrackerResponse::Failure(reason) => Ok((Said::Refused(reason), None)),
        TrackerResponse::Granted(_) if strangers > 0 => Err(Invalid::WrongTorrent),
        TrackerResponse::Granted(torrents) if torrents != usize::from(pending.count) => {
            Err(Invalid::ScrapeCount)
        }
        TrackerResponse::Granted(_) => Ok((Said::Scraped(peers), None)),
    }
}

impl From<ResponseError> for Invalid {
    fn from(error: ResponseError) -> Self {
        match error {
            ResponseError::NotBencode => Self::NotBencode,
            ResponseError::TrailingBytes | ResponseError::RaggedPeers => Self::RaggedTail,
            ResponseError::UnsortedKeys => Self::UnsortedKeys,
            ResponseError::NoInterval | ResponseError::NoPeers | ResponseError::NoFiles => {
                Self::KeysMissing
            }
            ResponseError::BadCount => Self::BadCount,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;
    use skep::types::Event;

    fn pending(kind: Kind, count: u16) -> Pending {
        Pending { intended_ns: 0, sent_ns: 0, item: 0, client: 0, kind, count, port: 6881 }
    }

    #[test]
    fn requests_are_those_of_a_client() {
        let address = "127.0.0.1:7".parse().unwrap();
        let writer = Writer::new(&Endpoint::local(address, crate::plan::Protocol::Http));
        let plan = Profile::Smoke.plan();
        let request = Request { kind: Kind::Scrape, count: 2, ..Request::CONNECT };
        let mut out = Vec::new();
        writer.write(&mut out, &request, 0, &plan, true);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("GET /scrape?info_hash="), "{text}");
        assert_eq!(text.matches("info_hash=").count(), 2);
        assert!(text.contains("\r\nHost: 127.0.0.1:7\r\n") && text.ends_with("close\r\n\r\n"));
        assert_eq!(request.event, Event::None);
    }

    #[test]
    fn responses_are_judged() {
        let plan = Profile::Smoke.plan();
        let own = "127.0.0.9".parse().unwrap();
        let flaw = |body: &[u8], kind, count| {
            let judged = judge(body, &pending(kind, count), own, &plan, true);
            judged.map(|(_, flaw)| flaw)
        };
        let good = b"d8:intervali9e5:peers6:\x01\x02\x03\x04\x00\x05e";
        assert_eq!(flaw(good, Kind::Announce, 1), Ok(None));
        let zero = b"d8:intervali9e5:peers6:\x01\x02\x03\x04\x00\x00e";
        assert_eq!(flaw(zero, Kind::Announce, 1), Ok(Some(Invalid::PortZero)));
        assert_eq!(flaw(b"d8:intervali9ee", Kind::Announce, 1), Err(Invalid::KeysMissing));
        assert_eq!(flaw(b"d5:filesdee", Kind::Scrape, 1), Err(Invalid::ScrapeCount));
        let stranger = b"d5:filesd20:aaaaaaaaaaaaaaaaaaaadeee";
        assert_eq!(flaw(stranger, Kind::Scrape, 1), Err(Invalid::WrongTorrent));
    }

    #[test]
    fn frames_end_where_they_say() {
        let response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nde";
        let whole = frame(response, false).unwrap().unwrap();
        assert_eq!((&response[whole.body], whole.keep_alive), (&b"de"[..], true));
        assert!(frame(&response[..response.len() - 1], false).unwrap().is_none());
        assert_eq!(frame(b"HTTP/1.1 500 No\r\n\r\n", false).err(), Some(Invalid::HttpStatus));
        assert_eq!(frame(b"\x15\x03", false).err(), Some(Invalid::NotHttp));
    }
}
