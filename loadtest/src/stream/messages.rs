//! WebTorrent's messages: announces with offers, scrapes and answers out; what trackers send in.
//!
//! Offer ids are 20 characters that identify their peer, so that an answer for another peer is
//! noticed: `place (4 hex) | torrent (8 hex) | number (8 hex)`.

use std::collections::HashMap;
use std::io::Write as _;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use skep::types::{Event, InfoHash};

use crate::check::Invalid;
use crate::plan::Plan;
use crate::population::info_hash;
use crate::requests::Request;

/// A session description as browsers create it for a data channel, escaped for JSON: about 1 KiB.
fn description(kind: &str) -> String {
    let candidate = |port| {
        format!(
            "a=candidate:842163049 1 udp 1677729535 203.0.113.{} {port} typ srflx raddr 0.0.0.0 \
             rport 0 generation 0 network-cost 999\\r\\n",
            port % 250
        )
    };
    let candidates: String = (50_001..50_006).map(candidate).collect();
    format!(
        "{{\"type\":\"{kind}\",\"sdp\":\"v=0\\r\\no=- 4611731400430051336 2 IN IP4 127.0.0.1\\r\\n\
         s=-\\r\\nt=0 0\\r\\na=group:BUNDLE 0\\r\\na=extmap-allow-mixed\\r\\n\
         a=msid-semantic: WMS\\r\\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\\r\\n\
         c=IN IP4 0.0.0.0\\r\\n{candidates}a=ice-ufrag:aB3d\\r\\n\
         a=ice-pwd:0123456789abcdefghijklmn\\r\\na=ice-options:trickle\\r\\n\
         a=fingerprint:sha-256 4A:AD:B9:B1:3F:82:18:3B:54:02:12:DF:3E:5D:49:6B:19:E5:7C:AB:3A:4F:\
         D5:19:5A:0C:22:91:B7:EC:6C:52\\r\\na=setup:actpass\\r\\na=mid:0\\r\\n\
         a=sctp-port:5000\\r\\na=max-message-size:262144\\r\\n\"}}"
    )
}

/// The constant parts of messages.
pub(crate) struct Writer {
    offer: String,
    answer: String,
}

/// The peer id of one socket.
#[derive(Clone, Copy)]
pub(crate) struct Peer {
    place: u16,
    id: [u8; 20],
}

impl Peer {
    /// The peer of the socket with this index.
    pub(crate) fn new(seed: u64, place: u16) -> Self {
        let mut id = *b"-WW0200-000000000000";
        // Writing into an array of the right size cannot fail.
        let _ = write!(&mut id[8..], "{:08x}{place:04x}", seed & 0xffff_ffff);
        Self { place, id }
    }
}

impl Writer {
    pub(crate) fn new() -> Self {
        Self { offer: description("offer"), answer: description("answer") }
    }

    /// Appends an announce with a number of offers, numbered from `number` on.
    pub(crate) fn announce(
        &self,
        out: &mut Vec<u8>,
        request: &Request,
        peer: Peer,
        plan: &Plan,
        (offers, number): (u16, u32),
    ) {
        let Some(announcing) = request.peer else { return };
        out.extend(b"{\"action\":\"announce\",\"info_hash\":\"");
        push_latin1(out, &info_hash(plan.seed, announcing.torrent).0);
        out.extend(b"\",\"peer_id\":\"");
        out.extend(peer.id);
        let left = if announcing.is_seeder() { 0 } else { 1 << 30 };
        let downloaded = (1 << 30) - left;
        // Writing to a vector cannot fail.
        let _ = write!(
            out,
            "\",\"numwant\":{offers},\"uploaded\":0,\"downloaded\":{downloaded},\"left\":{left}"
        );
        out.extend_from_slice(match request.event {
            Event::Started => b",\"event\":\"started\"",
            Event::Completed => b",\"event\":\"completed\"",
            Event::Stopped => b",\"event\":\"stopped\"",
            Event::None | Event::Paused => b"",
        });
        if offers > 0 {
            out.extend(b",\"offers\":[");
            for offer in 0..u32::from(offers) {
                let comma = if offer == 0 { "" } else { "," };
                let (place, torrent) = (peer.place, announcing.torrent);
                let number = number.wrapping_add(offer);
                let _ =
                    write!(out, "{comma}{{\"offer_id\":\"{place:04x}{torrent:08x}{number:08x}\"");
                out.extend(b",\"offer\":");
                out.extend(self.offer.as_bytes());
                out.push(b'}');
            }
            out.push(b']');
        }
        out.push(b'}');
    }

    /// Appends the answer to an offer, whose strings are copied unchanged.
    pub(crate) fn answer(&self, out: &mut Vec<u8>, offer: &Offer<'_>, peer: Peer) {
        out.extend(b"{\"action\":\"announce\",\"info_hash\":");
        out.extend(offer.info_hash.get().as_bytes());
        out.extend(b",\"peer_id\":\"");
        out.extend(peer.id);
        out.extend(b"\",\"to_peer_id\":");
        out.extend(offer.peer_id.get().as_bytes());
        out.extend(b",\"offer_id\":");
        out.extend(offer.offer_id.get().as_bytes());
        out.extend(b",\"answer\":");
        out.extend(self.answer.as_bytes());
        out.push(b'}');
    }
}

/// Appends a scrape.
pub(crate) fn push_scrape(out: &mut Vec<u8>, request: &Request, plan: &Plan) {
    out.extend(b"{\"action\":\"scrape\",\"info_hash\":[");
    for torrent in request.item..request.item + u32::from(request.count) {
        out.extend_from_slice(if torrent == request.item { b"\"" } else { b",\"" });
        push_latin1(out, &info_hash(plan.seed, torrent).0);
        out.push(b'"');
    }
    out.extend(b"]}");
}

/// An offer of another peer.
pub(crate) struct Offer<'a> {
    info_hash: &'a RawValue,
    peer_id: &'a RawValue,
    offer_id: &'a RawValue,
    /// The torrent of the offer.
    pub(crate) torrent: u32,
}

/// The content of a message.
pub(crate) enum Heard<'a> {
    /// An announce was accepted, for this torrent.
    Announced(InfoHash),
    /// Counts: the number of torrents, and their seeders and leechers together.
    Scraped(usize, u64),
    /// An offer of another peer.
    Offered(Offer<'a>),
    /// An answer of another peer to one of this peer's offers.
    Answered,
    /// A failure reason, and its torrent.
    Refused(String, Option<InfoHash>),
}

#[derive(Deserialize)]
struct Message<'a> {
    #[serde(borrow, default)]
    action: Option<&'a RawValue>,
    #[serde(borrow, default)]
    info_hash: Option<&'a RawValue>,
    #[serde(borrow, default)]
    peer_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    offer_id: Option<&'a RawValue>,
    offer: Option<IgnoredAny>,
    answer: Option<IgnoredAny>,
    interval: Option<u32>,
    complete: Option<u32>,
    incomplete: Option<u32>,
    #[serde(borrow, default)]
    files: Option<&'a RawValue>,
    #[serde(rename = "failure reason")]
    failure: Option<String>,
}

#[derive(Deserialize)]
struct Counts {
    complete: u32,
    incomplete: u32,
}

/// Reads a message to `peer`.
///
/// # Errors
/// Why it is invalid.
pub(crate) fn read<'a>(text: &'a [u8], peer: Peer, plan: &Plan) -> Result<Heard<'a>, Invalid> {
    let message: Message<'a> = serde_json::from_slice(text).map_err(|_| Invalid::NotJson)?;
    if let Some(reason) = message.failure {
        return Ok(Heard::Refused(reason, message.info_hash.and_then(latin1).map(InfoHash)));
    }
    let action = message.action.map_or("", RawValue::get);
    if action == "\"scrape\"" {
        let files = message.files.ok_or(Invalid::KeysMissing)?;
        let files: HashMap<String, Counts> =
            serde_json::from_str(files.get()).map_err(|_| Invalid::KeysMissing)?;
        let peers = files.values().map(|it| u64::from(it.complete) + u64::from(it.incomplete));
        return Ok(Heard::Scraped(files.len(), peers.sum()));
    }
    if action != "\"announce\"" {
        return Err(Invalid::UnknownAction);
    }
    let named = message.info_hash.ok_or(Invalid::KeysMissing)?;
    let named_hash = latin1(named).map(InfoHash).ok_or(Invalid::KeysMissing)?;
    if message.offer.is_none() && message.answer.is_none() {
        let counted = (message.interval, message.complete, message.incomplete);
        let (Some(_), Some(_), Some(_)) = counted else { return Err(Invalid::KeysMissing) };
        return Ok(Heard::Announced(named_hash));
    }
    let (Some(sender), Some(offer_id)) = (message.peer_id, message.offer_id) else {
        return Err(Invalid::KeysMissing);
    };
    let (place, torrent) = origin(offer_id).ok_or(Invalid::Misrouted)?;
    let is_offer = message.offer.is_some();
    let is_mine = place == peer.place;
    if is_offer == is_mine || info_hash(plan.seed, torrent) != named_hash {
        return Err(Invalid::Misrouted);
    }
    if message.answer.is_some() {
        return Ok(Heard::Answered);
    }
    Ok(Heard::Offered(Offer { info_hash: named, peer_id: sender, offer_id, torrent }))
}

/// The socket's index and the torrent in an offer id.
fn origin(offer_id: &RawValue) -> Option<(u16, u32)> {
    let id = latin1(offer_id)?;
    let id = std::str::from_utf8(&id).ok()?;
    let place = u16::from_str_radix(id.get(..4)?, 16).ok()?;
    Some((place, u32::from_str_radix(id.get(4..12)?, 16).ok()?))
}

/// Appends bytes in WebTorrent's encoding: each byte is the code point of its value.
fn push_latin1(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend([b'\\', *byte]),
            0..0x20 => {
                let _ = write!(out, "\\u{byte:04x}");
            }
            0x20..0x80 => out.push(*byte),
            0x80.. => out.extend([0xc0 | byte >> 6, 0x80 | byte & 0x3f]),
        }
    }
}

/// The 20 bytes in a JSON string.
fn latin1(raw: &RawValue) -> Option<[u8; 20]> {
    let quoted = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = [0; 20];
    let mut at = 0;
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        let code = match character {
            '\\' => match characters.next()? {
                'u' => {
                    let digits = characters.as_str().get(..4)?;
                    characters = characters.as_str()[4..].chars();
                    u32::from_str_radix(digits, 16).ok()?
                }
                'b' => 8,
                't' => 9,
                'n' => 10,
                'f' => 12,
                'r' => 13,
                other => other.into(),
            },
            other => other.into(),
        };
        *bytes.get_mut(at)? = u8::try_from(code).ok()?;
        at += 1;
    }
    (at == bytes.len()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Profile;
    use crate::slots::Kind;

    fn request(plan: &Plan) -> Request {
        let seats = [crate::population::Seat { lane: 0, lanes: 1 }];
        let peer = crate::population::populate(plan, &seats).unwrap()[0][0];
        Request {
            kind: Kind::Announce,
            peer: Some(peer),
            event: Event::Started,
            ..Request::CONNECT
        }
    }

    #[test]
    fn every_byte_survives_json() {
        let all: Vec<u8> = (0..=255).collect();
        for part in all.chunks(20).filter(|it| it.len() == 20) {
            let mut text = b"\"".to_vec();
            push_latin1(&mut text, part);
            text.push(b'"');
            let decoded: String = serde_json::from_slice(&text).unwrap();
            let codes: Vec<u32> = decoded.chars().map(u32::from).collect();
            assert_eq!(codes, part.iter().map(|it| u32::from(*it)).collect::<Vec<_>>());
            let raw: &RawValue = serde_json::from_slice(&text).unwrap();
            assert_eq!(&latin1(raw).unwrap()[..], part);
        }
        for bad in ["\"short\"", "\"\\u0100aaaaaaaaaaaaaaaaaaa\"", "7", "null"] {
            let raw: &RawValue = serde_json::from_str(bad).unwrap();
            assert_eq!(latin1(raw), None, "{bad}");
        }
    }

    #[test]
    fn announces_carry_offers_of_a_browsers_size() {
        let plan = Profile::Smoke.plan();
        let mut out = Vec::new();
        let (writer, peer) = (Writer::new(), Peer::new(1, 7));
        writer.announce(&mut out, &request(&plan), peer, &plan, (2, 0xfffe));
        let message: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!((&message["event"], &message["numwant"]), (&"started".into(), &2.into()));
        assert_eq!(message["peer_id"].as_str().unwrap().len(), 20);
        let offers = message["offers"].as_array().unwrap();
        assert_eq!(offers[1]["offer_id"].as_str().unwrap().len(), 20);
        let sdp = offers[1]["offer"]["sdp"].as_str().unwrap();
        assert!((900..1300).contains(&sdp.len()), "{}", sdp.len());
    }

    #[test]
    fn an_offer_is_answered_and_the_answer_recognized() {
        let plan = Profile::Smoke.plan();
        let (writer, alice, bob) = (Writer::new(), Peer::new(1, 1), Peer::new(1, 2));
        let mut out = Vec::new();
        writer.announce(&mut out, &request(&plan), alice, &plan, (1, 5));
        let mut message: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let mut relayed = message["offers"][0].take();
        relayed["action"] = "announce".into();
        relayed["info_hash"] = message["info_hash"].take();
        relayed["peer_id"] = message["peer_id"].take();
        let relayed = relayed.to_string().into_bytes();
        let Ok(Heard::Offered(offer)) = read(&relayed, bob, &plan) else { panic!() };
        assert_eq!(offer.torrent, request(&plan).peer.unwrap().torrent);
        assert!(matches!(read(&relayed, alice, &plan), Err(Invalid::Misrouted)));
        let mut answer = Vec::new();
        writer.answer(&mut answer, &offer, bob);
        assert!(matches!(read(&answer, alice, &plan), Ok(Heard::Answered)));
        assert!(matches!(read(&answer, bob, &plan), Err(Invalid::Misrouted)));
    }

    #[test]
    fn responses_are_read() {
        let plan = Profile::Smoke.plan();
        let read = |text: &str| read(text.as_bytes(), Peer::new(1, 1), &plan).map(|_| ()).err();
        let hash = "aaaaaaaaaaaaaaaaaaaa";
        let counts = r#""interval":9,"complete":0,"incomplete":1"#;
        let announced = format!(r#"{{"action":"announce","info_hash":"{hash}",{counts}}}"#);
        assert_eq!(read(&announced), None);
        assert_eq!(read(r#"{"action":"scrape","files":{}}"#), None);
        assert_eq!(read(r#"{"failure reason":"no"}"#), None);
        assert_eq!(read(r#"{"action":"announce"}"#), Some(Invalid::KeysMissing));
        assert_eq!(read(r#"{"action":"x"}"#), Some(Invalid::UnknownAction));
        assert_eq!(read("[]"), Some(Invalid::NotJson));
    }
}
