//! What a client can hold against a reply, cheaply enough to do it for every one.

use std::net::IpAddr;

use skep::protocol::udp::client::{Reply, ResponseDecodeError, decode};
use skep::protocol::udp::peer_stride;
use skep::types::Family;
use strum::{EnumCount, VariantArray};

use crate::slots::{Kind, Pending};

/// Why a reply is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub(crate) enum Invalid {
    /// Fewer bytes than its action needs.
    TooShort,
    /// A connect reply that is not 16 bytes long.
    ConnectLength,
    /// Peers or entries that do not end where the reply does.
    RaggedTail,
    /// An action no tracker sends.
    UnknownAction,
    /// The answer to another kind of request.
    WrongAction,
    /// Longer than 2048 bytes over UDP, 1 MiB over TCP.
    Oversized,
    /// The asker among the peers.
    OwnAddress,
    /// A peer with port 0.
    PortZero,
    /// More peers than were asked for.
    TooManyPeers,
    /// A peer twice in one reply; looked for in one reply out of 64.
    DuplicatePeer,
    /// Not one entry per info-hash.
    ScrapeCount,
    /// A transaction id that is none of ours.
    UnknownTransaction,
    /// A second reply to one request.
    SecondReply,
    /// No HTTP reply.
    NotHttp,
    /// A status other than 200.
    HttpStatus,
    /// No bencoded dictionary.
    NotBencode,
    /// Keys of a dictionary out of order.
    UnsortedKeys,
    /// A reply without what every client needs.
    KeysMissing,
    /// A count below 0 or beyond 32 bits.
    BadCount,
    /// A reply about a torrent that was not asked about.
    WrongTorrent,
    /// A connection that outlives `Connection: close`.
    KeptOpen,
    /// No WebSocket frame that a server may send.
    NotWebSocket,
    /// A message that is no JSON object of WebTorrent's.
    NotJson,
    /// An offer or answer that is not for this peer.
    Misrouted,
}

impl Invalid {
    /// All, in index order.
    pub(crate) const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The name in reports.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::TooShort => "too short",
            Self::ConnectLength => "connect reply not 16 bytes",
            Self::RaggedTail => "ragged tail",
            Self::UnknownAction => "unknown action",
            Self::WrongAction => "answer to another action",
            Self::Oversized => "too long",
            Self::OwnAddress => "asker handed to itself",
            Self::PortZero => "peer with port 0",
            Self::TooManyPeers => "more peers than wanted",
            Self::DuplicatePeer => "peer twice in a reply",
            Self::ScrapeCount => "scrape entries missing",
            Self::UnknownTransaction => "unknown transaction id",
            Self::SecondReply => "second reply",
            Self::NotHttp => "no HTTP reply",
            Self::HttpStatus => "HTTP status other than 200",
            Self::NotBencode => "no bencode",
            Self::UnsortedKeys => "keys not sorted",
            Self::KeysMissing => "keys missing",
            Self::BadCount => "count out of bounds",
            Self::WrongTorrent => "about another torrent",
            Self::KeptOpen => "connection kept open after close",
            Self::NotWebSocket => "no WebSocket frame",
            Self::NotJson => "no WebTorrent message",
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

/// A reply, and what is wrong with it although it answers its request.
pub(crate) type Judged<'a> = (Reply<'a>, Option<Invalid>);

/// Decodes a reply and compares it with what was asked. `thorough` also looks for peers that come
/// twice, which takes the square of their number. An error reply answers every kind of request.
///
/// # Errors
/// Why it is no answer.
#[inline]
pub(crate) fn check<'a>(
    datagram: &'a [u8],
    pending: &Pending,
    own: IpAddr,
    thorough: bool,
) -> Result<Judged<'a>, Invalid> {
    let family = Family::of(own);
    let (_, reply) = decode(datagram, family)?;
    let flaw = match (pending.kind, &reply) {
        (_, Reply::Error(_)) | (Kind::Connect, Reply::Connected(_)) => None,
        (Kind::Announce, Reply::Announced(_, peers)) => {
            flaw_of_peers(peers, pending, own, family, thorough)
        }
        (Kind::Scrape, Reply::Scraped(entries)) => {
            if entries.count() != usize::from(pending.count) {
                return Err(Invalid::ScrapeCount);
            }
            None
        }
        _ => return Err(Invalid::WrongAction),
    };
    Ok((reply, flaw))
}

/// What is wrong with compact peers of the asker's own family.
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
        let mut reply = vec![0, 0, 0, 1, 0, 0, 0, 9];
        reply.extend([0; 12]);
        peers.iter().for_each(|it| reply.extend(it));
        check(&reply, &pending, OWN, true).unwrap().1
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
    fn replies_of_another_kind_or_length_are_wrong() {
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
        assert_eq!(check(&error, &pending, OWN, false), Ok((Reply::Error(b"x"), None)));
    }
}
