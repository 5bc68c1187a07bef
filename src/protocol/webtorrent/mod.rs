//! WebTorrent's messages: JSON in text messages of a WebSocket. No BEP describes them. The format
//! is what browsers and libtorrent send and expect.
//!
//! Every binary name (info-hash, peer id, offer id) is a string whose code points U+0000 to U+00FF
//! are its bytes. Fields that are not in this table are ignored:
//!
//! ```text
//! announce  action="announce" info_hash peer_id left? event? numwant? offers? = [{offer offer_id}]
//! answer    action="announce" info_hash peer_id to_peer_id offer_id answer
//! scrape    action="scrape" info_hash = a name, or a list of them; an empty list is a ping
//!
//! announced {action, complete, incomplete, info_hash, interval, "warning message"?}
//! offer     {action, info_hash, offer, offer_id, peer_id}       to another peer of the torrent
//! answer    {action, answer, info_hash, offer_id, peer_id}      to the peer that made the offer
//! scraped   {action, files: {name: {complete, downloaded, incomplete}}}
//! failure   {action?, "failure reason", info_hash?}                 as far as they were read
//! ```
//!
//! Offers and answers are forwarded byte for byte, but only if every client can read them: an
//! invalid one must not make another client disconnect from the tracker.
#![warn(clippy::indexing_slicing)]

mod decode;
mod encode;

pub use decode::decode;
pub use encode::{
    encode_announced, encode_answer, encode_failure, encode_invalid, encode_offer, encode_scraped,
};

use strum::{EnumCount, VariantArray};

pub use super::SCRAPE_HASHES_MAX;
use crate::types::{Event, InfoHash, PeerId};

/// Most bytes of an offer or answer, as JSON. Browsers write one to five KiB.
pub const DESCRIPTION_BYTES_MAX: usize = 16 * 1024;

/// Most levels of nesting of an offer or answer. Browsers write one level. libtorrent's reader
/// fails at 32 for the whole message.
pub const DESCRIPTION_DEPTH_MAX: u32 = 16;

/// A decoded message, borrowed from its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebTorrentMessage<'a> {
    /// Joins, stays in or leaves a swarm, and offers connections.
    Announce(AnnounceMessage<'a>),
    /// Answers an offer that was forwarded.
    Answer(AnswerRequest<'a>),
    /// A request for counts: distinct torrents, at most [`SCRAPE_HASHES_MAX`], possibly none.
    Scrape(Vec<InfoHash>),
}

/// An announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceMessage<'a> {
    /// The info-hash of the torrent.
    pub info_hash: InfoHash,
    /// The peer id that the client chose.
    pub peer_id: PeerId,
    /// Bytes uploaded since `started`; 0 if not sent.
    pub uploaded: u64,
    /// Bytes downloaded since `started`; 0 if not sent.
    pub downloaded: u64,
    /// Bytes left to download; 2^64-1 if not sent or unknown to the client.
    pub left: u64,
    /// The event.
    pub event: Event,
    /// Number of peers wanted. 0 counts as not sent, as in the other protocols.
    pub numwant: Option<u32>,
    /// Offers that other clients can use, at most as many as the caller accepts.
    pub offers: Vec<Offer<'a>>,
    /// Offers that no client can use. The announce itself is still valid.
    pub unusable: Option<Unusable>,
}

/// Dropped offers of an announce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// Number of dropped offers. A value that is not a list counts as one.
    pub count: usize,
    /// The fault of the first of them.
    pub fault: MessageError,
}

/// An offer: a connection that a peer offers to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The id that the offering peer chose.
    pub id: OfferId,
    /// The WebRTC session description: a JSON object, as received.
    pub text: &'a str,
}

/// The answer to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerRequest<'a> {
    /// The info-hash of the torrent.
    pub info_hash: InfoHash,
    /// The peer that answers.
    pub peer_id: PeerId,
    /// The peer that made the offer.
    pub to_peer_id: PeerId,
    /// The id of the offer.
    pub offer_id: OfferId,
    /// The WebRTC session description: a JSON object, as received.
    pub text: &'a str,
}

/// The 20 bytes that identify an offer of a peer. libtorrent reads no other length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferId(pub [u8; 20]);

/// The `action` of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageMethod {
    /// `announce`.
    Announce,
    /// `scrape`.
    Scrape,
}

impl MessageMethod {
    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Announce => "announce",
            Self::Scrape => "scrape",
        }
    }
}

/// A message that cannot be handled, with the fields that could be read. They go into the error, so
/// that a client with several torrents on one socket finds the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidMessage {
    /// What is wrong.
    pub fault: MessageError,
    /// The action, if known.
    pub method: Option<MessageMethod>,
    /// The torrent, if known.
    pub info_hash: Option<InfoHash>,
}

/// A fault of a message, or of an offer in it. Its text is sent to the client and never depends on
/// input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub enum MessageError {
    /// Not a JSON object in UTF-8.
    Json,
    /// `action` is missing or unknown.
    Action,
    /// `info_hash` is missing or not a name.
    InfoHash,
    /// A scrape of all torrents.
    FullScrape,
    /// A scrape of more than [`SCRAPE_HASHES_MAX`] torrents.
    InfoHashes,
    /// `peer_id` is missing or not a name.
    PeerId,
    /// `to_peer_id` is missing or not a name.
    ToPeerId,
    /// `offer_id` of an answer or of an offer is missing or not a name.
    OfferId,
    /// `offers` is not a list of objects.
    Offers,
    /// An offer that some clients cannot read.
    Offer,
    /// An answer that some clients cannot read.
    Answer,
}

impl MessageError {
    /// All faults.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The text that the client receives.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Json => "message is not a JSON object",
            Self::Action => "action is neither announce nor scrape",
            Self::InfoHash => "info_hash is not 20 bytes as latin-1 text",
            Self::FullScrape => "info_hash is missing: a scrape must name torrents",
            Self::InfoHashes => "too many torrents: a scrape names at most 74",
            Self::PeerId => "peer_id is not 20 bytes as latin-1 text",
            Self::ToPeerId => "to_peer_id is not 20 bytes as latin-1 text",
            Self::OfferId => "offer_id is not 20 bytes as latin-1 text",
            Self::Offers => "offers is not a list of objects",
            Self::Offer => "offer is not an object with a text sdp, or too long or deep",
            Self::Answer => "answer is not an object with a text sdp, or too long or deep",
        }
    }
}
