//! BEP 15, the UDP tracker protocol, with BEP 41 options; both the tracker's and the client's side.
//!
//! Everything is big-endian. Requests are decoded in place: a [`Request`] borrows the datagram and
//! is a handful of pointers into it. Replies are written straight into the send buffer.
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
//! Two orders trap the unwary: an announce is told leechers then seeders, a scrape seeders,
//! completed, leechers. Clients drop a connect reply that is not exactly 16 bytes, and fail an
//! announce reply whose tail is not a whole number of peers: nothing is ever padded or appended.
#![warn(clippy::indexing_slicing)]

use std::borrow::Cow;
use std::net::Ipv4Addr;

use zerocopy::byteorder::big_endian::{I32, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use super::SCRAPE_HASHES_MAX;
use crate::types::{AnnounceReply, Dropped, Event, Family, InfoHash, PeerId, Refusal, ScrapeEntry};

/// What a connect request carries instead of a connection id (BEP 15).
pub const MAGIC: u64 = 0x0417_2710_1980;

const ACTION_CONNECT: u32 = 0;
const ACTION_ANNOUNCE: u32 = 1;
const ACTION_SCRAPE: u32 = 2;
const ACTION_ERROR: u32 = 3;

/// Bytes of the head every request starts with, and of a whole connect request.
pub const HEAD_BYTES: usize = size_of::<Head>();
/// Bytes of an announce request without options.
pub const ANNOUNCE_BYTES: usize = size_of::<AnnounceRequest>();
/// Bytes before the first peer of an announce reply.
pub const ANNOUNCED_BYTES: usize = size_of::<AnnouncedHead>();
/// Bytes before the first entry of a scrape reply, and before the text of an error.
pub const REPLY_HEAD_BYTES: usize = size_of::<ReplyHead>();
/// What a receive buffer must hold: a scrape of 74 takes 1496 bytes, and an announce with BEP 41
/// options fits an Ethernet frame.
pub const REQUEST_BYTES_MAX: usize = 2048;

const _: () = assert!(HEAD_BYTES == 16 && ANNOUNCE_BYTES == 98 && ANNOUNCED_BYTES == 20);
const _: () = assert!(HEAD_BYTES + SCRAPE_HASHES_MAX * 20 <= REQUEST_BYTES_MAX);

/// Bytes of one compact peer (BEP 15, BEP 7): address then port.
pub const fn peer_stride(family: Family) -> usize {
    match family {
        Family::V4 => 6,
        Family::V6 => 18,
    }
}

/// Client-chosen, returned as it came. Opaque: it has no order and no arithmetic.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(transparent)]
pub struct TransactionId(pub [u8; 4]);

/// The 16 bytes at the front of every request. For a connect the id is [`MAGIC`].
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct Head {
    /// What connect handed out; proves that the sender receives at its source address.
    pub connection_id: U64,
    action: U32,
    /// Returned to the client as it came.
    pub transaction_id: TransactionId,
}

/// The 98 bytes of an announce.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct AnnounceRequest {
    /// Connection id, action, transaction id.
    pub head: Head,
    /// The torrent.
    pub info_hash: InfoHash,
    /// The client's own name.
    pub peer_id: PeerId,
    /// Bytes downloaded since `started`; not kept.
    pub downloaded: U64,
    /// Bytes still missing.
    pub left: U64,
    /// Bytes uploaded since `started`; not kept.
    pub uploaded: U64,
    event: U32,
    ip: [u8; 4],
    /// Lets a client prove itself across address changes; not used, the peer is its address.
    pub key: [u8; 4],
    numwant: I32,
    /// The port the client listens on.
    pub port: U16,
}

impl AnnounceRequest {
    /// What happened. 4 is what libtorrent sends for a partial seed (BEP 21); others mean none.
    pub fn event(&self) -> Event {
        match self.event.get() {
            1 => Event::Completed,
            2 => Event::Started,
            3 => Event::Stopped,
            4 => Event::Paused,
            _ => Event::None,
        }
    }

    /// "Use this address instead of mine". It is a claim, to be believed from the operator's own
    /// networks at most.
    pub fn claimed_address(&self) -> Option<Ipv4Addr> {
        (self.ip != [0; 4]).then(|| self.ip.into())
    }

    /// How many peers are wanted. BEP 15 says -1 for "your default"; 0, which clients send and
    /// do not mean, and other negatives are read the same way.
    pub fn numwant(&self) -> Option<u32> {
        u32::try_from(self.numwant.get()).ok().filter(|&wanted| wanted > 0)
    }
}

/// A decoded request, borrowed from its datagram.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// Asks for a connection id. Its head holds [`MAGIC`].
    Connect(&'a Head),
    /// Joins, stays in or leaves a swarm.
    Announce(&'a AnnounceRequest, Options<'a>),
    /// Asks for counts of up to [`SCRAPE_HASHES_MAX`] torrents; may be none.
    Scrape(&'a Head, &'a [InfoHash]),
}

/// Decodes a datagram in place.
///
/// # Errors
/// [`Dropped::TooShort`], [`Dropped::BadMagic`] or [`Dropped::UnknownAction`]: all of them are met
/// with silence, for nothing has proven where the datagram came from.
#[inline]
pub fn decode(datagram: &[u8]) -> Result<Request<'_>, Dropped> {
    let (head, rest) = Head::ref_from_prefix(datagram).map_err(|_| Dropped::TooShort)?;
    match head.action.get() {
        ACTION_CONNECT if head.connection_id.get() == MAGIC => Ok(Request::Connect(head)),
        ACTION_CONNECT => Err(Dropped::BadMagic),
        ACTION_ANNOUNCE => {
            let (announce, options) =
                AnnounceRequest::ref_from_prefix(datagram).map_err(|_| Dropped::TooShort)?;
            Ok(Request::Announce(announce, Options(options)))
        }
        ACTION_SCRAPE => Ok(Request::Scrape(head, info_hashes(rest))),
        _ => Err(Dropped::UnknownAction),
    }
}

/// The whole info-hashes at the front of a scrape's tail: a ragged end is ignored, so is what
/// comes after [`SCRAPE_HASHES_MAX`], which the reply's length shows.
fn info_hashes(tail: &[u8]) -> &[InfoHash] {
    let count = (tail.len() / size_of::<InfoHash>()).min(SCRAPE_HASHES_MAX);
    <[InfoHash]>::ref_from_prefix_with_elems(tail, count).map_or(&[], |(hashes, _)| hashes)
}

/// The info-hash of what may be an announce, without judging anything else: for prefetching.
#[inline]
pub fn peek_info_hash(datagram: &[u8]) -> Option<&InfoHash> {
    let (announce, _) = AnnounceRequest::ref_from_prefix(datagram).ok()?;
    (announce.head.action.get() == ACTION_ANNOUNCE).then_some(&announce.info_hash)
}

/// BEP 41 options behind an announce. Nothing in here can make the announce fail.
///
/// ```text
/// 0 end (no length) | 1 nop (no length) | 2 URLData: length (1) bytes | n: length (1) bytes
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// Path and query of the announce URL, all URLData options joined (BEP 41 splits one that is
    /// longer than 255 bytes). Empty where there is none. Unknown options are skipped; an option
    /// that ends beyond the datagram ends the list.
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

/// The next option that has a value: its kind, value, and what comes behind it.
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

/// The 8 bytes at the front of every reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct ReplyHead {
    action: U32,
    transaction_id: TransactionId,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Connected {
    head: ReplyHead,
    connection_id: U64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct AnnouncedHead {
    head: ReplyHead,
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

fn reply_head(action: u32, transaction_id: TransactionId) -> ReplyHead {
    ReplyHead { action: action.into(), transaction_id }
}

/// Writes a value to the front of `out`; says how many bytes that took. `out` is a send buffer of
/// the worker and always longer than any fixed part, so the write cannot fall short.
fn put<T: IntoBytes + Immutable>(value: &T, out: &mut [u8]) -> usize {
    let written = value.write_to_prefix(out);
    debug_assert!(written.is_ok(), "send buffers hold every reply head");
    size_of::<T>()
}

/// Writes a connect reply: 16 bytes, as long as the request (invariant 1: no amplification).
#[inline]
pub fn encode_connected(request: &Head, connection_id: u64, out: &mut [u8]) -> usize {
    let head = reply_head(ACTION_CONNECT, request.transaction_id);
    put(&Connected { head, connection_id: connection_id.into() }, out)
}

/// Where the peers of an announce reply go: the tail of `out` behind the reply's head.
#[inline]
pub fn peers_of(out: &mut [u8]) -> &mut [u8] {
    out.get_mut(ANNOUNCED_BYTES..).unwrap_or_default()
}

/// Writes the head of an announce reply whose peers already stand at [`peers_of`]`(out)`.
#[inline]
pub fn encode_announced(
    request: &Head,
    reply: &AnnounceReply,
    peers_bytes: usize,
    out: &mut [u8],
) -> usize {
    let announced = AnnouncedHead {
        head: reply_head(ACTION_ANNOUNCE, request.transaction_id),
        interval_s: reply.interval_s.into(),
        leechers: reply.leechers.into(),
        seeders: reply.seeders.into(),
    };
    put(&announced, out) + peers_bytes
}

/// Writes a scrape reply, one entry for each info-hash asked, in the order asked.
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

/// Writes the head of a scrape response; the entries follow, in the order asked.
#[inline]
pub fn encode_scraped_head(request: &Head, out: &mut [u8]) -> usize {
    put(&reply_head(ACTION_SCRAPE, request.transaction_id), out)
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

/// Writes an error reply. Its text is constant, so the reply is at most 32 bytes long.
#[inline]
pub fn encode_error(request: &Head, refusal: Refusal, out: &mut [u8]) -> usize {
    let head = put(&reply_head(ACTION_ERROR, request.transaction_id), out);
    let text = refusal.text().as_bytes();
    if let Some(room) = out.get_mut(head..head + text.len()) {
        room.copy_from_slice(text);
    }
    head + text.len()
}

/// The client's side: what `skep probe` and the load tester send and read.
pub mod client {
    use super::{
        ACTION_ANNOUNCE, ACTION_CONNECT, ACTION_ERROR, ACTION_SCRAPE, AnnounceReply,
        AnnounceRequest, AnnouncedHead, Connected, Event, Family, FromBytes, Head, InfoHash,
        IntoBytes, MAGIC, PeerId, ReplyHead, ScrapeEntry, Scraped, TransactionId, peer_stride, put,
    };

    /// What an announce says, in the client's terms.
    #[derive(Clone, Copy, Debug)]
    pub struct Announcement {
        /// The torrent.
        pub info_hash: InfoHash,
        /// The client's own name.
        pub peer_id: PeerId,
        /// Bytes downloaded.
        pub downloaded: u64,
        /// Bytes missing; 0 makes a seeder.
        pub left: u64,
        /// Bytes uploaded.
        pub uploaded: u64,
        /// What happened.
        pub event: Event,
        /// Peers wanted; -1 leaves it to the tracker.
        pub numwant: i32,
        /// Where the client listens.
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

    /// Writes a scrape request; 16 + 20 bytes an info-hash.
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

    /// A reply, borrowed from its datagram.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Reply<'a> {
        /// The connection id to use from this address, for a minute.
        Connected(u64),
        /// An announce's answer; peers are compact, 6 or 18 bytes each by the socket's family.
        Announced(AnnounceReply, &'a [u8]),
        /// A scrape's answer.
        Scraped(Entries<'a>),
        /// The tracker's complaint.
        Error(&'a [u8]),
    }

    /// Entries of a scrape reply.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Entries<'a>(&'a [u8]);

    impl Entries<'_> {
        /// The counts, in the order asked.
        pub fn iter(&self) -> impl Iterator<Item = ScrapeEntry> + '_ {
            self.0.chunks_exact(size_of::<Scraped>()).filter_map(|chunk| {
                let scraped = Scraped::read_from_bytes(chunk).ok()?;
                Some(ScrapeEntry {
                    seeders: scraped.seeders.get(),
                    completed: scraped.completed.get(),
                    leechers: scraped.leechers.get(),
                    downloaders: scraped.leechers.get(), // BEP 15 does not tell them apart
                })
            })
        }

        /// How many torrents were answered.
        pub fn count(&self) -> usize {
            self.0.len() / size_of::<Scraped>()
        }
    }

    /// Why a reply is none.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum ResponseDecodeError {
        /// Fewer bytes than its action needs.
        TooShort,
        /// A connect reply that is not exactly 16 bytes: strict clients drop it.
        ConnectLength,
        /// A tail that is not a whole number of peers or entries: strict clients fail the tracker.
        RaggedTail,
        /// An action no tracker sends.
        UnknownAction,
    }

    /// Decodes a reply as strictly as the strictest clients in use do.
    ///
    /// # Errors
    /// [`ResponseDecodeError`], with the first thing that is wrong.
    pub fn decode(
        datagram: &[u8],
        family: Family,
    ) -> Result<(TransactionId, Reply<'_>), ResponseDecodeError> {
        let (head, tail) =
            ReplyHead::ref_from_prefix(datagram).map_err(|_| ResponseDecodeError::TooShort)?;
        let reply = match head.action.get() {
            ACTION_CONNECT => {
                let connected = Connected::read_from_bytes(datagram)
                    .map_err(|_| ResponseDecodeError::ConnectLength)?;
                Reply::Connected(connected.connection_id.get())
            }
            ACTION_ANNOUNCE => {
                let (announced_head, peers) = AnnouncedHead::ref_from_prefix(datagram)
                    .map_err(|_| ResponseDecodeError::TooShort)?;
                if !peers.len().is_multiple_of(peer_stride(family)) {
                    return Err(ResponseDecodeError::RaggedTail);
                }
                let reply = AnnounceReply {
                    interval_s: announced_head.interval_s.get(),
                    min_interval_s: 0, // BEP 15 has none
                    leechers: announced_head.leechers.get(),
                    seeders: announced_head.seeders.get(),
                };
                Reply::Announced(reply, peers)
            }
            ACTION_SCRAPE if !tail.len().is_multiple_of(size_of::<Scraped>()) => {
                return Err(ResponseDecodeError::RaggedTail);
            }
            ACTION_SCRAPE => Reply::Scraped(Entries(tail)),
            ACTION_ERROR => Reply::Error(tail),
            _ => return Err(ResponseDecodeError::UnknownAction),
        };
        Ok((head.transaction_id, reply))
    }
}
