//! From response to text, appended to the caller's buffer. Bytes of clients appear in it in two
//! forms only: as the escaped 20 bytes of a name, and as a session description that the decoder has
//! checked.

use std::io::Write;

use super::{AnswerRequest, InvalidMessage, MessageError, MessageMethod, Offer};
use crate::types::{InfoHash, PeerId, ScrapeEntry};

/// Writes the response to an announce, with counts of seeders and leechers. libtorrent requires
/// `info_hash` and an integer `interval`. If offers were dropped, a `warning message` has the
/// reason: clients of bittorrent-tracker report it and still read the interval, others skip it.
pub fn encode_announced(
    info_hash: &InfoHash,
    interval_s: u32,
    (seeders, leechers): (u32, u32),
    dropped: Option<MessageError>,
    out: &mut Vec<u8>,
) {
    out.extend_from_slice(br#"{"action":"announce","complete":"#);
    put_number(seeders, out);
    out.extend_from_slice(br#","incomplete":"#);
    put_number(leechers, out);
    out.extend_from_slice(br#","info_hash":"#);
    put_name(&info_hash.0, out);
    out.extend_from_slice(br#","interval":"#);
    put_number(interval_s, out);
    if let Some(fault) = dropped {
        out.extend_from_slice(br#","warning message":"offers were dropped: "#);
        out.extend_from_slice(fault.text().as_bytes());
        out.push(b'"');
    }
    out.push(b'}');
}

/// Writes the message for the peer that receives `offer`.
pub fn encode_offer(info_hash: &InfoHash, from: &PeerId, offer: &Offer<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"action":"announce","info_hash":"#);
    put_name(&info_hash.0, out);
    out.extend_from_slice(br#","offer":"#);
    out.extend_from_slice(offer.text.as_bytes());
    out.extend_from_slice(br#","offer_id":"#);
    put_name(&offer.id.0, out);
    out.extend_from_slice(br#","peer_id":"#);
    put_name(&from.0, out);
    out.push(b'}');
}

/// Writes the message for the peer that made the offer.
pub fn encode_answer(answer: &AnswerRequest<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"action":"announce","answer":"#);
    out.extend_from_slice(answer.text.as_bytes());
    out.extend_from_slice(br#","info_hash":"#);
    put_name(&answer.info_hash.0, out);
    out.extend_from_slice(br#","offer_id":"#);
    put_name(&answer.offer_id.0, out);
    out.extend_from_slice(br#","peer_id":"#);
    put_name(&answer.peer_id.0, out);
    out.push(b'}');
}

/// Writes the response to a scrape of distinct torrents.
pub fn encode_scraped(entries: impl Iterator<Item = (InfoHash, ScrapeEntry)>, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"action":"scrape","files":{"#);
    let mut separator: &[u8] = b"";
    for (info_hash, entry) in entries {
        out.extend_from_slice(separator);
        put_name(&info_hash.0, out);
        out.extend_from_slice(br#":{"complete":"#);
        put_number(entry.seeders, out);
        out.extend_from_slice(br#","downloaded":"#);
        put_number(entry.completed, out);
        out.extend_from_slice(br#","incomplete":"#);
        put_number(entry.leechers, out);
        out.push(b'}');
        separator = b",";
    }
    out.extend_from_slice(b"}}");
}

/// Writes why a request is refused: skep's text, or the operator's.
pub fn encode_failure(
    method: Option<MessageMethod>,
    info_hash: Option<&InfoHash>,
    reason: &str,
    out: &mut Vec<u8>,
) {
    out.push(b'{');
    if let Some(method) = method {
        out.extend_from_slice(br#""action":""#);
        out.extend_from_slice(method.name().as_bytes());
        out.extend_from_slice(br#"","#);
    }
    out.extend_from_slice(br#""failure reason":"#);
    let written = serde_json::to_writer(&mut *out, reason);
    debug_assert!(written.is_ok(), "memory takes what is written");
    if let Some(info_hash) = info_hash {
        out.extend_from_slice(br#","info_hash":"#);
        put_name(&info_hash.0, out);
    }
    out.push(b'}');
}

/// Writes the fault of a message.
pub fn encode_invalid(invalid: &InvalidMessage, out: &mut Vec<u8>) {
    encode_failure(invalid.method, invalid.info_hash.as_ref(), invalid.fault.text(), out);
}

fn put_number(number: u32, out: &mut Vec<u8>) {
    let written = write!(out, "{number}");
    debug_assert!(written.is_ok(), "memory takes what is written");
}

/// Writes bytes as a JSON string of the code points U+0000 to U+00FF.
fn put_name(name: &[u8; 20], out: &mut Vec<u8>) {
    const HEX: [u8; 16] = *b"0123456789abcdef";
    out.reserve(2 + 6 * name.len());
    out.push(b'"');
    for &byte in name {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b' '..=b'~' => out.push(byte),
            0..b' ' | 0x7f => {
                let digit = |half: u8| HEX.get(usize::from(half)).copied().unwrap_or_default();
                let [high, low] = [digit(byte >> 4), digit(byte & 15)];
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
            0x80.. => out.extend_from_slice(&[0xc0 | (byte >> 6), 0x80 | (byte & 0x3f)]),
        }
    }
    out.push(b'"');
}
