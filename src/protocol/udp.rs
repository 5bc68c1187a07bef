//! BEP 15, the UDP tracker protocol, with BEP 41 options: the tracker's side and the client's.
//!
//! All numbers are big-endian. Requests are decoded in place: a [`Request`] borrows from the
//! datagram. Responses are written straight into the send buffer.
//!
//! ```text
//! connect   0 magic 0x41727101980 (8) | 8 action=0 (4) | 12 transaction id (4)               = 16
//! announce  0 connection id (8) | 8 action=1 (4) | 12 transaction id (4)
//!           16 info-hash (20) | 36 peer id (20) | 56 downloaded (8) | 64 left (8)
//!           72 uploaded (8) | 80 event (4) | 84 IP (4) | 88 key (4) | 92 numwant (4)
//!           96 port (2)                                                  = 98, then BEP 41 options
//! scrape    0 connection id (8) | 8 action=2 (4) | 12 transaction id (4) | 16 info-hash (20) × n
//!
//! connected 0 action=0 (4) | 4 transaction id (4) | 8 connection id (8)               = exactly 16
//! announced 0 action=1 (4) | 4 transaction id (4) | 8 interval s (4) | 12 leechers (4)
//!           16 seeders (4) | 20 peer (6 or 18) × n                       = exactly 20 + n × stride
//! scraped   0 action=2 (4) | 4 transaction id (4)
//!           8 { seeders (4) completed (4) leechers (4) } × n
//! error     0 action=3 (4) | 4 transaction id (4) | 8 text, not NUL-terminated
//! ```
//!
//! Note the orders: an announce response has leechers, then seeders; a scrape response has seeders,
//! completed, leechers. Clients drop a connect response that is not exactly 16 bytes long, and
//! reject an announce response whose tail is not a whole number of peers. Nothing is ever padded or
//! appended.
#![warn(clippy::indexing_slicing)]

use std::borrow::Cow;
use std::net::Ipv4Addr;

use zerocopy::byteorder::big_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use super::SCRAPE_HASHES_MAX;
use crate::types::{
    AnnounceResponse, Dropped, Event, Family, InfoHash, PeerId, PeerKind, Refusal, ScrapeEntry,
};

/// The number in a connect request in place of a connection id (BEP 15).
pub const MAGIC: u64 = 0x0417_2710_1980;

const ACTION_CONNECT: u32 = 0;
const ACTION_ANNOUNCE: u32 = 1;
const ACTION_SCRAPE: u32 = 2;
const ACTION_ERROR: u32 = 3;

/// Bytes of the head of every request, which is all of a connect request.
pub const HEAD_BYTES: usize = size_of::<Head>();
/// Bytes of an announce request without options.
pub const ANNOUNCE_BYTES: usize = size_of::<AnnounceRequest>();
/// Bytes before the first peer of an announce response.
pub const ANNOUNCED_BYTES: usize = size_of::<AnnouncedHead>();
/// Bytes before the first entry of a scrape response, and before the text of an error.
pub const RESPONSE_HEAD_BYTES: usize = size_of::<DatagramHead>();
/// Bytes that a receive buffer must hold: a scrape of 74 info-hashes has 1496, and an announce with
/// BEP 41 options fits into an Ethernet frame.
pub const REQUEST_BYTES_MAX: usize = 2048;

const _: () = assert!(HEAD_BYTES == 16 && ANNOUNCE_BYTES == 98 && ANNOUNCED_BYTES == 20);
const _: () = assert!(HEAD_BYTES + SCRAPE_HASHES_MAX * 20 <= REQUEST_BYTES_MAX);

/// Bytes of one compact peer (BEP 15, BEP 7): address then port.
pub const fn peer_stride(family: Family) -> usize {
    match family {
        Family::V4 => PeerKind::V4.bytes(),
        Family::V6 => PeerKind::V6.bytes(),
    }
}

/// Chosen by the client, and returned unchanged. It has no order and no arithmetic.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct TransactionId(pub [u8; 4]);

/// The 16 bytes at the front of every request. For a connect the id is [`MAGIC`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Head {
    /// From the response to connect. Shows that the sender receives at its source address.
    pub connection_id: U64,
    action: U32,
    /// Returned to the client unchanged.
    pub transaction_id: TransactionId,
}

/// The 98 bytes of an announce.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AnnounceRequest {
    /// Connection id, action, transaction id.
    pub head: Head,
    /// The info-hash of the torrent.
    pub info_hash: InfoHash,
    /// The peer id that the client chose.
    pub peer_id: PeerId,
    /// Bytes downloaded since `started`. Not stored.
    pub downloaded: U64,
    /// Bytes left to download.
    pub left: U64,
    /// Bytes uploaded since `started`. Not stored.
    pub uploaded: U64,
    event: U32,
    ip: [u8; 4],
    /// Would identify a client after a change of its address. Not used: a peer is identified by its
    /// address.
    pub key: [u8; 4],
    numwant: I32,
    /// The port that the client listens on.
    pub port: U16,
}

impl AnnounceRequest {
    /// The event. libtorrent sends 4 for a partial seed (BEP 21). Unknown numbers mean none.
    pub fn event(&self) -> Event {
        match self.event.get() {
            1 => Event::Completed,
            2 => Event::Started,
            3 => Event::Stopped,
            4 => Event::Paused,
            _ => Event::None,
        }
    }

    /// The address that the client names for its peer. It is a claim: trust it only from the
    /// operator's own networks.
    pub fn claimed_address(&self) -> Option<Ipv4Addr> {
        (self.ip != [0; 4]).then(|| self.ip.into())
    }

    /// Number of peers wanted. In BEP 15, -1 requests the tracker's default. 0, which clients send
    /// without meaning it, and other negative numbers are read in the same way.
    pub fn numwant(&self) -> Option<u32> {
        u32::try_from(self.numwant.get()).ok().filter(|&wanted| wanted > 0)
    }
}

/// A decoded request, borrowed from its datagram.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// A request for a connection id. Its head contains [`MAGIC`].
    Connect(&'a Head),
    /// Joins, stays in or leaves a swarm.
    Announce(&'a AnnounceRequest, UrlOptions<'a>),
    /// A request for counts of up to [`SCRAPE_HASHES_MAX`] torrents, possibly none.
    Scrape(&'a Head, &'a [InfoHash]),
}

/// Decodes a datagram in place.
///
/// # Errors
/// [`Dropped::TooShort`], [`Dropped::BadMagic`] or [`Dropped::UnknownAction`]: none of them gets a
/// response, because the source is not verified.
#[inline]
pub fn decode(datagram: &[u8]) -> Result<Request<'_>, Dropped> {
    let (head, rest) = Head::ref_from_prefix(datagram).map_err(|_| Dropped::TooShort)?;
    match head.action.get() {
        ACTION_CONNECT if head.connection_id.get() == MAGIC => Ok(Request::Connect(head)),
        ACTION_CONNECT => Err(Dropped::BadMagic),
        ACTION_ANNOUNCE => {
            let (announce, options) =
                AnnounceRequest::ref_from_prefix(datagram).map_err(|_| Dropped::TooShort)?;
            Ok(Request::Announce(announce, UrlOptions(options)))
        }
        ACTION_SCRAPE => Ok(Request::Scrape(head, info_hashes(rest))),
        _ => Err(Dropped::UnknownAction),
    }
}

/// The whole info-hashes at the start of a scrape's tail. An incomplete one at the end is ignored,
/// and so are those after [`SCRAPE_HASHES_MAX`]: the client sees that from the length of the
/// response.
fn info_hashes(tail: &[u8]) -> &[InfoHash] {
    let count = (tail.len() / size_of::<InfoHash>()).min(SCRAPE_HASHES_MAX);
    <[InfoHash]>::ref_from_prefix_with_elems(tail, count).map_or(&[], |(hashes, _)| hashes)
}

/// The info-hash of a datagram that may be an announce, without further checks: for prefetching.
#[inline]
pub fn peek_info_hash(datagram: &[u8]) -> Option<&InfoHash> {
    let (announce, _) = AnnounceRequest::ref_from_prefix(datagram).ok()?;
    (announce.head.action.get() == ACTION_ANNOUNCE).then_some(&announce.info_hash)
}

/// BEP 41 options after an announce. Invalid options never make the announce fail.
///
/// ```text
/// 0 end (no length) | 1 nop (no length) | 2 URLData: length (1) bytes | n: length (1) bytes
/// ```
#[derive(Clone, Copy, Debug)]
pub struct UrlOptions<'a>(&'a [u8]);

impl<'a> UrlOptions<'a> {
    /// Path and query of the announce URL: all URLData options joined (BEP 41 splits a URL longer
    /// than 255 bytes). Empty if there is none. Unknown options are skipped. An option that ends
    /// beyond the datagram ends the list.
    pub fn url_data(self) -> Cow<'a, [u8]> {
        let mut joined = Cow::Borrowed(&[][..]);
        let mut rest = self.0;
        while let Some((kind, value, tail)) = next_option(rest) {
            rest = tail;
            if kind != 2 || value.is_empty() {
                continue;
            }
            if joined.is_empty() {
                joined = Cow::Borrowed(value);
            } else {
                joined.to_mut().extend_from_slice(value);
            }
        }
        joined
    }
}

/// The next option that has a value: its kind, its value, and the bytes after it.
fn next_option(mut bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    loop {
        match bytes {
            [1, rest @ ..] => bytes = rest,
            [] | [0, ..] | [_] => return None,
            [kind, length, rest @ ..] => {
                let (value, rest) = rest.split_at_checked(usize::from(*length))?;
                return Some((*kind, value, rest));
            }
        }
    }
}

/// The 8 bytes at the start of every response.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct DatagramHead {
    action: U32,
    transaction_id: TransactionId,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Connected {
    head: DatagramHead,
    connection_id: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AnnouncedHead {
    head: DatagramHead,
    interval_s: U32,
    leechers: U32,
    seeders: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Scraped {
    seeders: U32,
    completed: U32,
    leechers: U32,
}

fn datagram_head(action: u32, transaction_id: TransactionId) -> DatagramHead {
    DatagramHead { action: action.into(), transaction_id }
}

/// Writes a value to the front of `out`; returns how many bytes that took. `out` is a send buffer
/// of the worker and always longer than any fixed part, so the value always fits.
fn put<T: IntoBytes + Immutable>(value: &T, out: &mut [u8]) -> usize {
    let written = value.write_to_prefix(out);
    debug_assert!(written.is_ok(), "send buffers hold every reply head");
    size_of::<T>()
}

/// Writes a connect response: 16 bytes, as long as the request (invariant 1: no amplification).
#[inline]
pub fn encode_connected(request: &Head, connection_id: u64, out: &mut [u8]) -> usize {
    let head = datagram_head(ACTION_CONNECT, request.transaction_id);
    put(&Connected { head, connection_id: connection_id.into() }, out)
}

/// The room for the peers of an announce response: `out` without the response's head.
#[inline]
pub fn peers_of(out: &mut [u8]) -> &mut [u8] {
    out.get_mut(ANNOUNCED_BYTES..).unwrap_or_default()
}

/// Writes the head of an announce response whose peers are already in [`peers_of`]`(out)`.
#[inline]
pub fn encode_announced(
    request: &Head,
    response: &AnnounceResponse,
    peers_bytes: usize,
    out: &mut [u8],
) -> usize {
    let announced = AnnouncedHead {
        head: datagram_head(ACTION_ANNOUNCE, request.transaction_id),
        interval_s: response.interval_s.into(),
        leechers: response.leechers.into(),
        seeders: response.seeders.into(),
    };
    put(&announced, out) + peers_bytes
}

/// Writes a scrape response with one entry per requested info-hash, in the requested order.
#[inline]
pub fn encode_scraped(
    request: &Head,
    entries: impl Iterator<Item = ScrapeEntry>,
    out: &mut [u8],
) -> usize {
    let mut bytes = encode_scraped_head(request, out);
    for entry in entries {
        bytes += encode_scraped_entry(&entry, out.get_mut(bytes..).unwrap_or_default());
    }
    bytes
}

/// Writes the head of a scrape response. The entries follow in the requested order.
#[inline]
pub fn encode_scraped_head(request: &Head, out: &mut [u8]) -> usize {
    put(&datagram_head(ACTION_SCRAPE, request.transaction_id), out)
}

/// Writes one entry of a scrape response.
#[inline]
pub fn encode_scraped_entry(entry: &ScrapeEntry, out: &mut [u8]) -> usize {
    let scraped = Scraped {
        seeders: entry.seeders.into(),
        completed: entry.completed.into(),
        leechers: entry.leechers.into(),
    };
    put(&scraped, out)
}

/// Writes an error response. Its text is constant, so the response is at most 32 bytes long.
#[inline]
pub fn encode_error(request: &Head, refusal: Refusal, out: &mut [u8]) -> usize {
    let head = put(&datagram_head(ACTION_ERROR, request.transaction_id), out);
    let text = refusal.text().as_bytes();
    if let Some(room) = out.get_mut(head..head + text.len()) {
        room.copy_from_slice(text);
    }
    head + text.len()
}

/// The client's side, for `skep probe` and the load tester.
pub mod client {
    use super::{
        ACTION_ANNOUNCE, ACTION_CONNECT, ACTION_ERROR, ACTION_SCRAPE, AnnounceRequest,
        AnnounceResponse, AnnouncedHead, Connected, DatagramHead, Event, Family, FromBytes, Head,
        InfoHash, IntoBytes, MAGIC, PeerId, ScrapeEntry, Scraped, TransactionId, peer_stride, put,
    };

    /// The fields of an announce, for a client.
    #[derive(Clone, Copy, Debug)]
    pub struct Announcement {
        /// The info-hash of the torrent.
        pub info_hash: InfoHash,
        /// The peer id that the client chose.
        pub peer_id: PeerId,
        /// Bytes downloaded.
        pub downloaded: u64,
        /// Bytes left to download; 0 for a seeder.
        pub left: u64,
        /// Bytes uploaded.
        pub uploaded: u64,
        /// The event.
        pub event: Event,
        /// Number of peers wanted; -1 for the tracker's default.
        pub numwant: i32,
        /// The port that the client listens on.
        pub port: u16,
        /// The client's key.
        pub key: [u8; 4],
    }

    fn head(action: u32, connection_id: u64, transaction_id: TransactionId) -> Head {
        Head { connection_id: connection_id.into(), action: action.into(), transaction_id }
    }

    /// Writes a connect request; 16 bytes.
    pub fn encode_connect(transaction_id: TransactionId, out: &mut [u8]) -> usize {
        put(&head(ACTION_CONNECT, MAGIC, transaction_id), out)
    }

    /// Writes an announce request without options; 98 bytes.
    pub fn encode_announce(
        connection_id: u64,
        transaction_id: TransactionId,
        announcement: &Announcement,
        out: &mut [u8],
    ) -> usize {
        let event: u32 = match announcement.event {
            Event::None => 0,
            Event::Completed => 1,
            Event::Started => 2,
            Event::Stopped => 3,
            Event::Paused => 4,
        };
        let request = AnnounceRequest {
            head: head(ACTION_ANNOUNCE, connection_id, transaction_id),
            info_hash: announcement.info_hash,
            peer_id: announcement.peer_id,
            downloaded: announcement.downloaded.into(),
            left: announcement.left.into(),
            uploaded: announcement.uploaded.into(),
            event: event.into(),
            ip: [0; 4],
            key: announcement.key,
            numwant: announcement.numwant.into(),
            port: announcement.port.into(),
        };
        put(&request, out)
    }

    /// Writes a scrape request; 16 bytes, and 20 per info-hash.
    pub fn encode_scrape(
        connection_id: u64,
        transaction_id: TransactionId,
        info_hashes: &[InfoHash],
        out: &mut [u8],
    ) -> usize {
        let bytes = put(&head(ACTION_SCRAPE, connection_id, transaction_id), out);
        let hashes = info_hashes.as_bytes();
        if let Some(room) = out.get_mut(bytes..bytes + hashes.len()) {
            room.copy_from_slice(hashes);
        }
        bytes + hashes.len()
    }

    /// A response, borrowed from its datagram.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Response<'a> {
        /// The connection id, valid for requests from this address for a minute.
        Connected(u64),
        /// Response to an announce. Peers are compact, 6 or 18 bytes each by the socket's family.
        Announced(AnnounceResponse, &'a [u8]),
        /// Response to a scrape.
        Scraped(Entries<'a>),
        /// The text of an error.
        Error(&'a [u8]),
    }

    /// Entries of a scrape response.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Entries<'a>(&'a [u8]);

    impl Entries<'_> {
        /// The counts, in the requested order.
        pub fn iter(&self) -> impl Iterator<Item = ScrapeEntry> + '_ {
            self.0.chunks_exact(size_of::<Scraped>()).filter_map(|chunk| {
                let scraped = Scraped::read_from_bytes(chunk).ok()?;
                Some(ScrapeEntry {
                    seeders: scraped.seeders.get(),
                    completed: scraped.completed.get(),
                    leechers: scraped.leechers.get(),
                    downloaders: scraped.leechers.get(), // BEP 15 has one number for both
                })
            })
        }

        /// Number of entries.
        pub fn count(&self) -> usize {
            self.0.len() / size_of::<Scraped>()
        }
    }

    /// Why a response is invalid.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ResponseDecodeError {
        /// Fewer bytes than its action requires.
        TooShort,
        /// A connect response that is not exactly 16 bytes long. Strict clients drop it.
        ConnectLength,
        /// A tail that is not a whole number of peers or entries. Strict clients treat it as a
        /// failure of the tracker.
        RaggedTail,
        /// An action that no tracker sends.
        UnknownAction,
    }

    /// Decodes a response as strictly as the strictest clients in use.
    ///
    /// # Errors
    /// [`ResponseDecodeError`], the first fault found.
    pub fn decode(
        datagram: &[u8],
        family: Family,
    ) -> Result<(TransactionId, Response<'_>), ResponseDecodeError> {
        let (head, tail) =
            DatagramHead::ref_from_prefix(datagram).map_err(|_| ResponseDecodeError::TooShort)?;
        let response = match head.action.get() {
            ACTION_CONNECT => {
                let connected = Connected::read_from_bytes(datagram)
                    .map_err(|_| ResponseDecodeError::ConnectLength)?;
                Response::Connected(connected.connection_id.get())
            }
            ACTION_ANNOUNCE => {
                let (announced_head, peers) = AnnouncedHead::ref_from_prefix(datagram)
                    .map_err(|_| ResponseDecodeError::TooShort)?;
                if !peers.len().is_multiple_of(peer_stride(family)) {
                    return Err(ResponseDecodeError::RaggedTail);
                }
                let response = AnnounceResponse {
                    interval_s: announced_head.interval_s.get(),
                    min_interval_s: 0, // BEP 15 has none
                    leechers: announced_head.leechers.get(),
                    seeders: announced_head.seeders.get(),
                };
                Response::Announced(response, peers)
            }
            ACTION_SCRAPE if !tail.len().is_multiple_of(size_of::<Scraped>()) => {
                return Err(ResponseDecodeError::RaggedTail);
            }
            ACTION_SCRAPE => Response::Scraped(Entries(tail)),
            ACTION_ERROR => Response::Error(tail),
            _ => return Err(ResponseDecodeError::UnknownAction),
        };
        Ok((head.transaction_id, response))
    }
}
