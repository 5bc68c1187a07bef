//! What a request was about, read again from its bytes: for the log of requests that are not
//! served. Front ends do not keep it, because most requests are served and none of that is needed.

use crate::protocol::http::{self, Headers, RequestHead};
use crate::protocol::udp::{self, Request};
use crate::protocol::webtorrent::{self, WebTorrentMessage};
use crate::tracker;
use crate::types::{Action, InfoHash, PeerId};

/// The parts of a request that can be read, whatever else is wrong with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestSummary {
    /// The kind of the request.
    pub action: Option<Action>,
    /// The torrent; of a scrape, the first one.
    pub info_hash: Option<InfoHash>,
    /// The peer id of an announce.
    pub peer_id: Option<PeerId>,
}

impl RequestSummary {
    /// Of a datagram (BEP 15).
    pub fn of_datagram(datagram: &[u8]) -> Self {
        match udp::decode(datagram) {
            Ok(Request::Connect(_)) => Self::of(Action::Connect),
            Ok(Request::Announce(announce, _)) => Self {
                info_hash: Some(announce.info_hash),
                peer_id: Some(announce.peer_id),
                ..Self::of(Action::Announce)
            },
            Ok(Request::Scrape(_, hashes)) => {
                Self { info_hash: hashes.first().copied(), ..Self::of(Action::Scrape) }
            }
            Err(_) => Self::default(),
        }
    }

    /// Of an HTTP request. The path may hold a passkey: only words of ours are taken from it.
    pub fn of_http(request: &[u8]) -> Self {
        let mut headers = Headers::default();
        let Ok(Some(head)) = RequestHead::parse(request, &mut headers) else {
            return Self::default();
        };
        let has_part = |name: &[u8]| head.path.split(|byte| *byte == b'/').any(|it| it == name);
        let value = |name: &[u8]| {
            let mut named = http::pairs(head.query).filter(|pair| pair.0 == name);
            http::decode_20(named.next()?.1).ok()
        };
        let action = if has_part(b"announce") {
            Some(Action::Announce)
        } else {
            has_part(b"scrape").then_some(Action::Scrape)
        };
        let (info_hash, peer_id) = (value(b"info_hash"), value(b"peer_id"));
        Self { action, info_hash: info_hash.map(InfoHash), peer_id: peer_id.map(PeerId) }
    }

    /// Of a WebTorrent message.
    pub fn of_message(message: &[u8]) -> Self {
        match webtorrent::decode(message, 0) {
            Ok(WebTorrentMessage::Announce(announce)) => Self {
                info_hash: Some(announce.info_hash),
                peer_id: Some(announce.peer_id),
                ..Self::of(Action::Announce)
            },
            Ok(WebTorrentMessage::Answer(answer)) => Self {
                info_hash: Some(answer.info_hash),
                peer_id: Some(answer.peer_id),
                ..Self::of(Action::Answer)
            },
            Ok(WebTorrentMessage::Scrape(hashes)) => {
                Self { info_hash: hashes.first().copied(), ..Self::of(Action::Scrape) }
            }
            Err(_) => Self::default(),
        }
    }

    fn of(action: Action) -> Self {
        Self { action: Some(action), ..Self::default() }
    }

    /// The client's software with its version, as the statistics page names it; unknown software by
    /// the first bytes of its peer id, escaped.
    pub fn client(&self) -> Option<String> {
        self.peer_id.as_ref().map(tracker::software_of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::udp::TransactionId;
    use crate::protocol::udp::client::{
        Announcement, encode_announce, encode_connect, encode_scrape,
    };
    use crate::types::Event;

    const HASH: InfoHash = InfoHash([b'h'; 20]);
    const PEER: PeerId = PeerId(*b"-qB5010-bbbbbbbbbbbb");
    const ID: TransactionId = TransactionId([1; 4]);

    fn announced() -> RequestSummary {
        RequestSummary {
            action: Some(Action::Announce),
            info_hash: Some(HASH),
            peer_id: Some(PEER),
        }
    }

    fn scraped() -> RequestSummary {
        RequestSummary { action: Some(Action::Scrape), info_hash: Some(HASH), peer_id: None }
    }

    #[test]
    fn datagrams_are_read_again() {
        let mut out = [0; 256];
        let announcement = Announcement {
            info_hash: HASH,
            peer_id: PEER,
            downloaded: 0,
            left: 1,
            uploaded: 0,
            event: Event::None,
            numwant: -1,
            port: 6881,
            key: [0; 4],
        };
        let bytes = encode_announce(1, ID, &announcement, &mut out);
        assert_eq!(RequestSummary::of_datagram(&out[..bytes]), announced());
        assert_eq!(RequestSummary::of_datagram(&out[..bytes - 1]), RequestSummary::default());
        let bytes = encode_scrape(1, ID, &[HASH], &mut out);
        assert_eq!(RequestSummary::of_datagram(&out[..bytes]), scraped());
        let bytes = encode_connect(ID, &mut out);
        let connect = RequestSummary::of_datagram(&out[..bytes]);
        assert_eq!((connect.action, connect.info_hash), (Some(Action::Connect), None));
    }

    #[test]
    fn http_requests_are_read_as_far_as_they_make_sense() {
        let of = |target: &str| {
            RequestSummary::of_http(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes())
        };
        let query = "info_hash=hhhhhhhhhhhhhhhhhhhh&peer_id=-qB5010-bbbbbbbbbbbb";
        assert_eq!(of(&format!("/announce/secret?{query}")), announced());
        assert_eq!(of(&format!("/nowhere?{query}")).info_hash, Some(HASH));
        assert_eq!(of("/scrape?info_hash=hhhhhhhhhhhhhhhhhhhh"), scraped());
        assert_eq!(of("/announce?info_hash=short").info_hash, None);
        assert_eq!(RequestSummary::of_http(b"\x16\x03\x01"), RequestSummary::default());
    }

    #[test]
    fn messages_are_read_again() {
        let message = r#"{"action":"announce","info_hash":"hhhhhhhhhhhhhhhhhhhh",
                          "peer_id":"-qB5010-bbbbbbbbbbbb"}"#;
        assert_eq!(RequestSummary::of_message(message.as_bytes()), announced());
        let message = r#"{"action":"scrape","info_hash":"hhhhhhhhhhhhhhhhhhhh"}"#;
        assert_eq!(RequestSummary::of_message(message.as_bytes()), scraped());
        assert_eq!(RequestSummary::of_message(b"hello"), RequestSummary::default());
    }

    #[test]
    fn clients_are_named_and_unknown_ones_escaped() {
        let client = |id: &[u8; 20]| {
            RequestSummary { peer_id: Some(PeerId(*id)), ..RequestSummary::default() }.client()
        };
        assert_eq!(client(&PEER.0).as_deref(), Some("qBittorrent 5.0.1"));
        assert_eq!(client(b"-ZZ\n\x1b00-bbbbbbbbbbbb").as_deref(), Some(r"-ZZ\n\x1b00-"));
        assert_eq!(RequestSummary::default().client(), None);
    }
}
