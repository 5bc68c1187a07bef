//! Checks that a client can apply to a response, cheap enough to apply them to every one.

use std::net::IpAddr;

use skep::protocol::udp::client::{Response, ResponseDecodeError, decode};
use skep::protocol::udp::peer_stride;
use skep::types::Family;
use strum::{EnumCount, VariantArray};

use crate::slots::{Kind, Pending};

/// Why a response is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub(crate) enum Invalid {
    /// Fewer bytes than its action requires.
    TooShort,
    /// A connect response that is not 16 bytes long.
    ConnectLength,
    /// Peers or entries that do not end where the response does.
    RaggedTail,
    /// An action that no tracker sends.
    UnknownAction,
    /// The response to another kind of request.
    WrongAction,
    /// Longer than 2048 bytes over UDP, 1 MiB over TCP.
    Oversized,
    /// The client's own address among the peers.
    OwnAddress,
    /// A peer with port 0.
    PortZero,
    /// More peers than requested.
    TooManyPeers,
    /// A peer twice in one response. Checked in one response of 64.
    DuplicatePeer,
    /// Not one entry per info-hash.
    ScrapeCount,
    /// A transaction id that was never sent.
    UnknownTransaction,
    /// A second response to one request.
    SecondResponse,
    /// Not an HTTP response.
    NotHttp,
    /// A status other than 200.
    HttpStatus,
    /// Not a bencoded dictionary.
    NotBencode,
    /// Keys of a dictionary that are not sorted.
    UnsortedKeys,
    /// A response without keys that every client requires.
    KeysMissing,
    /// A negative count, or one beyond 32 bits.
    BadCount,
    /// A response about a torrent that was not requested.
    WrongTorrent,
    /// A connection that stays open despite `Connection: close`.
    KeptOpen,
    /// Not a WebSocket frame that a server may send.
    NotWebSocket,
    /// A message that is not one of WebTorrent's JSON objects.
    NotJson,
    /// An offer or answer for another peer.
    Misrouted,
}

impl Invalid {
    /// All variants, in index order.
    pub(crate) const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The name in reports.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::TooShort => "too short",
            Self::ConnectLength => "connect response not 16 bytes",
            Self::RaggedTail => "ragged tail",
            Self::UnknownAction => "unknown action",
            Self::WrongAction => "response to another action",
            Self::Oversized => "too long",
            Self::OwnAddress => "client handed to itself",
            Self::PortZero => "peer with port 0",
            Self::TooManyPeers => "more peers than requested",
            Self::DuplicatePeer => "peer twice in a response",
            Self::ScrapeCount => "scrape entries missing",
            Self::UnknownTransaction => "unknown transaction id",
            Self::SecondResponse => "second response",
            Self::NotHttp => "not an HTTP response",
            Self::HttpStatus => "HTTP status other than 200",
            Self::NotBencode => "not bencode",
            Self::UnsortedKeys => "keys not sorted",
            Self::KeysMissing => "keys missing",
            Self::BadCount => "count out of bounds",
            Self::WrongTorrent => "about another torrent",
            Self::KeptOpen => "connection kept open after close",
            Self::NotWebSocket => "not a WebSocket frame",
            Self::NotJson => "not a WebTorrent message",
            Self::Misrouted => "offer or answer for another peer",
        }
    }
}

impl From<ResponseDecodeError> for Invalid {
    fn from(malformed: ResponseDecodeError) -> Self {
        match malformed {
            ResponseDecodeError::TooShort => Self::TooShort,
            ResponseDecodeError::ConnectLength => Self::ConnectLength,
            ResponseDecodeError::RaggedTail => Self::RaggedTail,
            ResponseDecodeError::UnknownAction => Self::UnknownAction,
        }
    }
}

/// A response, and its fault if it has one although it matches its request.
pub(crate) type Judged<'a> = (Response<'a>, Option<Invalid>);

/// Decodes a response and compares it with its request. `thorough` also searches for duplicate
/// peers, which takes quadratic time. An error is a valid response to every kind of request.
///
/// # Errors
/// Why the response is invalid.
#[inline]
pub(crate) fn check<'a>(
    datagram: &'a [u8],
    pending: &Pending,
    own: IpAddr,
    thorough: bool,
) -> Result<Judged<'a>, Invalid> {
    let family = Family::of(own);
    let (_, response) = decode(datagram, family)?;
    let flaw = match (pending.kind, &response) {
        (_, Response::Error(_)) | (Kind::Connect, Response::Connected(_)) => None,
        (Kind::Announce, Response::Announced(_, peers)) => {
            flaw_of_peers(peers, pending, own, family, thorough)
        }
        (Kind::Scrape, Response::Scraped(entries)) => {
            if entries.count() != usize::from(pending.count) {
                return Err(Invalid::ScrapeCount);
            }
            None
        }
        _ => return Err(Invalid::WrongAction),
    };
    Ok((response, flaw))
}

/// The fault of compact peers of the client's own family.
pub(crate) fn flaw_of_peers(
    peers: &[u8],
    pending: &Pending,
    own: IpAddr,
    family: Family,
    thorough: bool,
) -> Option<Invalid> {
    let stride = peer_stride(family);
    if pending.count > 0 && peers.len() / stride > usize::from(pending.count) {
        return Some(Invalid::TooManyPeers);
    }
    let mut me = [0; 18];
    let address_bytes = stride - 2;
    match own {
        IpAddr::V4(ip) => me[..4].copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => me[..16].copy_from_slice(&ip.octets()),
    }
    me[address_bytes..stride].copy_from_slice(&pending.port.to_be_bytes());
    for peer in peers.chunks_exact(stride) {
        if peer == &me[..stride] {
            return Some(Invalid::OwnAddress);
        }
        if peer[address_bytes..] == [0, 0] {
            return Some(Invalid::PortZero);
        }
    }
    let twice = |(index, peer)| peers.chunks_exact(stride).take(index).any(|it| it == peer);
    let found = thorough && peers.chunks_exact(stride).enumerate().any(twice);
    found.then_some(Invalid::DuplicatePeer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 1, 1, 2));

    fn announce(peers: &[[u8; 6]]) -> Option<Invalid> {
        let pending = Pending {
            intended_ns: 0,
            sent_ns: 0,
            item: 0,
            client: 0,
            kind: Kind::Announce,
            count: 2,
            port: 6881,
        };
        let mut response = vec![0, 0, 0, 1, 0, 0, 0, 9];
        response.extend([0; 12]);
        peers.iter().for_each(|it| response.extend(it));
        check(&response, &pending, OWN, true).unwrap().1
    }

    #[test]
    fn good_peers_pass() {
        assert_eq!(announce(&[]), None);
        assert_eq!(announce(&[[127, 0, 0, 1, 0, 1], [127, 0, 0, 1, 0, 2]]), None);
    }

    #[test]
    fn bad_peers_are_told_apart() {
        let one = [127, 0, 0, 1, 0, 1];
        assert_eq!(announce(&[one, one]), Some(Invalid::DuplicatePeer));
        assert_eq!(announce(&[[127, 0, 0, 1, 0, 0]]), Some(Invalid::PortZero));
        assert_eq!(announce(&[[127, 1, 1, 2, 0x1a, 0xe1]]), Some(Invalid::OwnAddress));
        assert_eq!(announce(&[one; 3]), Some(Invalid::TooManyPeers));
    }

    #[test]
    fn responses_of_another_kind_or_length_are_wrong() {
        let pending = Pending {
            intended_ns: 0,
            sent_ns: 0,
            item: 0,
            client: 0,
            kind: Kind::Scrape,
            count: 2,
            port: 0,
        };
        let scrape = [&[0, 0, 0, 2, 0, 0, 0, 9][..], &[0; 12]].concat();
        assert_eq!(check(&scrape, &pending, OWN, false), Err(Invalid::ScrapeCount));
        assert_eq!(check(&scrape[..9], &pending, OWN, false), Err(Invalid::RaggedTail));
        let connect = [0; 16];
        assert_eq!(check(&connect, &pending, OWN, false), Err(Invalid::WrongAction));
        assert_eq!(check(&connect[..15], &pending, OWN, false), Err(Invalid::ConnectLength));
        let error = [0, 0, 0, 3, 0, 0, 0, 9, b'x'];
        assert_eq!(check(&error, &pending, OWN, false), Ok((Response::Error(b"x"), None)));
    }
}
