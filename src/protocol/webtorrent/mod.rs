//! WebTorrent's messages: JSON in the texts of a WebSocket. No BEP describes them; what browsers
//! and libtorrent send and expect does.
//!
//! Every binary name (info-hash, peer id, offer id) is a string whose code points U+0000 to U+00FF
//! are its bytes. What a message does not name in this table is ignored:
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
//! failure   {action?, "failure reason", info_hash?}                 as far as those became known
//! ```
//!
//! Offers and answers are handed on byte for byte, but only those that any client can read: one
//! reader's error must not become another's lost tracker.
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

/// The longest offer or answer, as JSON. Browsers write one to five KiB.
pub const DESCRIPTION_BYTES_MAX: usize = 16 * 1024;

/// How deep an offer or answer may be nested. Browsers write one level; libtorrent's reader gives
/// up at 32 for the whole message.
pub const DESCRIPTION_DEPTH_MAX: u32 = 16;

/// A decoded message, borrowed from its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WebTorrentMessage<'a> {
    /// Joins, stays in or leaves a swarm, and offers connections.
    Announce(AnnounceMessage<'a>),
    /// Takes up an offer that was handed on.
    Answer(AnswerRequest<'a>),
    /// Asks for counts: distinct torrents, at most [`SCRAPE_HASHES_MAX`], maybe none.
    Scrape(Vec<InfoHash>),
}

/// An announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnounceMessage<'a> {
    /// The torrent.
    pub info_hash: InfoHash,
    /// The client's own name.
    pub peer_id: PeerId,
    /// Bytes uploaded since `started`; 0 where the client does not say.
    pub uploaded: u64,
    /// Bytes downloaded since `started`; 0 where the client does not say.
    pub downloaded: u64,
    /// Bytes still missing; 2^64-1 where the client does not say or know.
    pub left: u64,
    /// What happened.
    pub event: Event,
    /// How many peers are wanted. 0 is read as unsaid, as in the other protocols.
    pub numwant: Option<u32>,
    /// Connections offered that others can take up, no more than the caller takes.
    pub offers: Vec<Offer<'a>>,
    /// Offers that nobody can take up: they do not spoil the announce.
    pub unusable: Option<Unusable>,
}

/// Offers of an announce that are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unusable {
    /// How many; what is not a list counts as one.
    pub count: usize,
    /// What is wrong with the first.
    pub fault: MessageError,
}

/// One offered connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer<'a> {
    /// The offerer's name for it.
    pub id: OfferId,
    /// The WebRTC session description: a JSON object, as it came.
    pub text: &'a str,
}

/// The answer to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerRequest<'a> {
    /// The torrent.
    pub info_hash: InfoHash,
    /// Who answers.
    pub peer_id: PeerId,
    /// Who made the offer.
    pub to_peer_id: PeerId,
    /// Which offer.
    pub offer_id: OfferId,
    /// The WebRTC session description: a JSON object, as it came.
    pub text: &'a str,
}

/// The 20 bytes by which a peer tells its offers apart. libtorrent reads no other length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OfferId(pub [u8; 20]);

/// What a message asks for, by its `action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageMethod {
    /// `announce`
    Announce,
    /// `scrape`
    Scrape,
}

impl MessageMethod {
    /// As it stands in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Announce => "announce",
            Self::Scrape => "scrape",
        }
    }
}

/// A message that cannot be handled, with what became known of it, so that a client which shares
/// one socket among torrents can tell which of them it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidMessage {
    /// What is wrong.
    pub fault: MessageError,
    /// What was asked for.
    pub method: Option<MessageMethod>,
    /// For which torrent.
    pub info_hash: Option<InfoHash>,
}

/// What is wrong with a message, or with an offer in it. The text goes to the client and never
/// changes with input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub enum MessageError {
    /// No JSON object in UTF-8.
    Json,
    /// `action` is missing or unknown.
    Action,
    /// `info_hash` is missing or no name.
    InfoHash,
    /// A scrape of everything.
    FullScrape,
    /// A scrape of more than [`SCRAPE_HASHES_MAX`] torrents.
    InfoHashes,
    /// `peer_id` is missing or no name.
    PeerId,
    /// `to_peer_id` is missing or no name.
    ToPeerId,
    /// `offer_id` of an answer or of an offer is missing or no name.
    OfferId,
    /// `offers` is no list of objects.
    Offers,
    /// An offer is not what another client can read.
    Offer,
    /// An answer is not what another client can read.
    Answer,
}

impl MessageError {
    /// Every fault.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// What the client is told.
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
