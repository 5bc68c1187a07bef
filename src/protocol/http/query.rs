//! The query of an announce or scrape (BEP 3, 7, 23, 48): its parameters, and the percent coding of
//! 20 raw bytes.
//!
//! Clients vary, so every query with a clear meaning is accepted:
//! - Only `&` separates parameters.
//! - A `+` is a blank, as form encoders (PHP, Go, Python, Java, JavaScript) write it. No client
//!   sends it for a plus.
//! - Every other byte that is not an escape stands for itself.
//! - Unknown parameters are skipped.
//! - The last of repeated parameters is used, because clients append theirs to those of the
//!   announce URL.
//!
//! Written here because form_urlencoded makes text of the raw bytes, and because each announce is
//! read in place.

use std::net::IpAddr;

use memchr::memchr;
use strum::{EnumCount, VariantArray};

use crate::protocol::SCRAPE_HASHES_MAX;
use crate::types::{Event, InfoHash, PeerId};

/// The parameters of an announce. `key`, `trackerid`, `no_peer_id` and all others are ignored,
/// whatever their value: peers are sent without ids, and a tracker id has no effect. For `ip`,
/// `ipv4` and `ipv6` see [`claimed_address`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnounceQuery {
    /// The info-hash of the torrent.
    pub info_hash: InfoHash,
    /// The peer id that the client chose.
    pub peer_id: PeerId,
    /// The port that the client listens on.
    pub port: u16,
    /// Bytes uploaded since `started`; 0 without a valid number.
    pub uploaded: u64,
    /// Bytes downloaded since `started`; 0 without a valid number.
    pub downloaded: u64,
    /// Bytes left to download. Without a valid number all ones, which is a leecher: clients with a
    /// magnet link do not have the size yet.
    pub left: u64,
    /// The event; none if its name is unknown.
    pub event: Event,
    /// Number of peers wanted. `None`, the tracker's default, for 0, a negative number or an
    /// invalid one, as over UDP.
    pub numwant: Option<u32>,
    /// Whether the response has compact peers (BEP 23), not dictionaries.
    pub compact: bool,
}

/// Why a query is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub enum QueryError {
    /// An announce without an info-hash.
    NoInfoHash,
    /// An info-hash that is not 20 bytes long.
    InfoHashLength,
    /// An info-hash with a `%` that is not followed by two hexadecimal digits.
    InfoHashEscape,
    /// An announce with two different info-hashes.
    InfoHashTwice,
    /// A scrape of more than [`SCRAPE_HASHES_MAX`] torrents.
    InfoHashesMany,
    /// An announce without a peer id.
    NoPeerId,
    /// A peer id that is not 20 bytes long, or has an invalid escape.
    PeerId,
    /// An announce without a port.
    NoPort,
    /// A port that is not a 16-bit number.
    Port,
    /// Control characters that are not escaped.
    Controls,
}

impl QueryError {
    /// All variants.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The failure reason that the client receives.
    pub const fn text(self) -> &'static str {
        match self {
            Self::NoInfoHash => "info_hash is missing",
            Self::InfoHashLength => "info_hash is not 20 bytes",
            Self::InfoHashEscape => "info_hash has a bad escape",
            Self::InfoHashTwice => "info_hash given twice",
            Self::InfoHashesMany => "too many torrents: a scrape names at most 74",
            Self::NoPeerId => "peer_id is missing",
            Self::PeerId => "peer_id is not 20 bytes",
            Self::NoPort => "port is missing",
            Self::Port => "invalid port",
            Self::Controls => "unescaped control character",
        }
    }
}

/// Reads the query of an announce.
///
/// # Errors
/// The first invalid parameter, else the first missing one.
pub fn announce(query: &[u8]) -> Result<AnnounceQuery, QueryError> {
    let (mut info_hash, mut peer_id, mut port) = (None, None, None);
    let (mut uploaded, mut downloaded) = (0, 0);
    let (mut left, mut event, mut numwant, mut compact) = (u64::MAX, Event::None, None, true);
    for (name, value) in pairs(query) {
        match name {
            b"info_hash" => {
                // Clients append their info-hash to that of the announce URL, often the same.
                let named = info_hash_of(value)?;
                if *info_hash.get_or_insert(named) != named {
                    return Err(QueryError::InfoHashTwice);
                }
            }
            b"peer_id" => {
                peer_id = Some(PeerId(decode_20(value).map_err(|_| QueryError::PeerId)?));
            }
            b"port" => {
                let number = decimal(value).and_then(|it| u16::try_from(it).ok());
                port = Some(number.ok_or(QueryError::Port)?);
            }
            b"uploaded" => uploaded = decimal(value).unwrap_or(0),
            b"downloaded" => downloaded = decimal(value).unwrap_or(0),
            b"left" => left = decimal(value).unwrap_or(u64::MAX),
            b"event" => event = event_of(value),
            b"numwant" => numwant = numwant_of(value),
            b"compact" => compact = value != b"0",
            _ => {}
        }
    }
    Ok(AnnounceQuery {
        info_hash: info_hash.ok_or(QueryError::NoInfoHash)?,
        peer_id: peer_id.ok_or(QueryError::NoPeerId)?,
        port: port.ok_or(QueryError::NoPort)?,
        uploaded,
        downloaded,
        left,
        event,
        numwant,
        compact,
    })
}

/// Reads the query of a scrape: sets `info_hashes` to the requested torrents, in order, each once.
/// No info-hash means all torrents.
///
/// # Errors
/// [`QueryError::InfoHashLength`] or [`QueryError::InfoHashEscape`] if an info-hash is invalid;
/// [`QueryError::InfoHashesMany`] if there are more than [`SCRAPE_HASHES_MAX`]: a client would take
/// a torrent that is missing in the response for one without peers. After an error `info_hashes` is
/// empty.
pub fn scrape(query: &[u8], info_hashes: &mut Vec<InfoHash>) -> Result<(), QueryError> {
    info_hashes.clear();
    // Bounded by the length of a target: fewer than 200.
    for (_, value) in pairs(query).filter(|(name, _)| *name == b"info_hash") {
        match info_hash_of(value) {
            Ok(info_hash) => info_hashes.push(info_hash),
            Err(malformed) => {
                info_hashes.clear();
                return Err(malformed);
            }
        }
    }
    info_hashes.sort_unstable();
    info_hashes.dedup();
    if info_hashes.len() > SCRAPE_HASHES_MAX {
        info_hashes.clear();
        return Err(QueryError::InfoHashesMany);
    }
    Ok(())
}

/// The address that an announce names for its peer (`ip`, else `ipv4`, else `ipv6`; BEP 3 and 7),
/// if it is valid. It is a claim: trust it only from the operator's own networks. An address with a
/// port, which BEP 7 allows, is not accepted.
pub fn claimed_address(query: &[u8]) -> Option<IpAddr> {
    let last = |name: &[u8]| {
        let named = pairs(query).filter(|(it, _)| *it == name);
        named.filter_map(|(_, value)| address_of(value)).last()
    };
    last(b"ip").or_else(|| last(b"ipv4")).or_else(|| last(b"ipv6"))
}

/// Reads an address whose colons may be escaped.
fn address_of(value: &[u8]) -> Option<IpAddr> {
    const LONGEST: usize = 45; // an IPv6 address that ends in an IPv4 one
    let mut text = [0; LONGEST];
    let mut length = 0;
    let mut rest = value;
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match (first, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let (high, low) = (DIGITS[usize::from(*high)], DIGITS[usize::from(*low)]);
                ((high | low) <= 0xf).then_some((high << 4 | low, tail))?
            }
            (byte, tail) => (*byte, tail),
        };
        *text.get_mut(length)? = byte;
        length += 1;
        rest = tail;
    }
    let address: IpAddr = std::str::from_utf8(&text[..length]).ok()?.parse().ok()?;
    Some(address.to_canonical())
}

/// Whether the query has a parameter of this name.
pub fn has(query: &[u8], name: &[u8]) -> bool {
    pairs(query).any(|(it, _)| it == name)
}

/// The parameters of a query: names, and values as received. A parameter without `=` has an empty
/// value.
pub fn pairs(query: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = query;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        // Names are short: memchr is only faster from some dozen bytes on, so it is used for
        // values.
        let end = rest.iter().position(|it| matches!(it, b'=' | b'&')).unwrap_or(rest.len());
        let (name, tail) = rest.split_at(end);
        let [b'=', value @ ..] = tail else {
            rest = tail.get(1..).unwrap_or_default();
            return Some((name, &[][..]));
        };
        let end = memchr(b'&', value).unwrap_or(value.len());
        rest = value.get(end + 1..).unwrap_or_default();
        Some((name, &value[..end]))
    })
}

/// Why a value is not 20 bytes in percent coding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadBytes {
    /// The length is not 20 bytes.
    Length,
    /// A `%` that is not followed by two hexadecimal digits.
    Escape,
}

/// Decodes exactly 20 bytes.
///
/// # Errors
/// Why it is invalid.
#[inline]
pub fn decode_20(value: &[u8]) -> Result<[u8; 20], BadBytes> {
    let mut out = [0; 20];
    let mut rest = value;
    for place in &mut out {
        match rest {
            [b'%', high, low, tail @ ..] => {
                let (high, low) = (DIGITS[usize::from(*high)], DIGITS[usize::from(*low)]);
                if (high | low) > 0xf {
                    return Err(BadBytes::Escape);
                }
                *place = high << 4 | low;
                rest = tail;
            }
            [b'%', ..] => return Err(BadBytes::Escape),
            [byte, tail @ ..] => {
                *place = if *byte == b'+' { b' ' } else { *byte };
                rest = tail;
            }
            [] => return Err(BadBytes::Length),
        }
    }
    if rest.is_empty() { Ok(out) } else { Err(BadBytes::Length) }
}

/// The value of every byte as a hexadecimal digit; 0xff if it is not a digit.
static DIGITS: [u8; 256] = {
    let mut digits = [0xff; 256];
    let mut value: u8 = 0;
    while value < 16 {
        digits[b"0123456789abcdef"[value as usize] as usize] = value;
        digits[b"0123456789ABCDEF"[value as usize] as usize] = value;
        value += 1;
    }
    digits
};

fn info_hash_of(value: &[u8]) -> Result<InfoHash, QueryError> {
    decode_20(value).map(InfoHash).map_err(|bytes| match bytes {
        BadBytes::Length => QueryError::InfoHashLength,
        BadBytes::Escape => QueryError::InfoHashEscape,
    })
}

/// A number of digits only. A larger number becomes `u64::MAX`.
fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, digit| {
        let digit = u64::from(digit.wrapping_sub(b'0'));
        (digit < 10).then(|| sum.saturating_mul(10).saturating_add(digit))
    })
}

fn event_of(value: &[u8]) -> Event {
    match value {
        b"started" => Event::Started,
        b"completed" => Event::Completed,
        b"stopped" => Event::Stopped,
        b"paused" => Event::Paused,
        _ => Event::None,
    }
}

fn numwant_of(value: &[u8]) -> Option<u32> {
    let wanted = decimal(value).filter(|wanted| *wanted > 0)?;
    Some(u32::try_from(wanted).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const RIGHT: &str = "info_hash=aaaaaaaaaaaaaaaaaaaa&peer_id=-AA0000-bbbbbbbbbbbb&port=6881";

    fn with(more: &str) -> Result<AnnounceQuery, QueryError> {
        announce(format!("{RIGHT}&{more}").as_bytes())
    }

    #[test]
    fn claimed_addresses_are_read_where_they_are_some() {
        let of = |query: &str| claimed_address(query.as_bytes()).map(|it| it.to_string());
        for (query, expected) in [
            ("ip=9.8.7.6", Some("9.8.7.6")),
            ("ip=::ffff:9.8.7.6", Some("9.8.7.6")),
            ("ipv6=2001%3Adb8%3a%3A9", Some("2001:db8::9")),
            ("ipv4=1.2.3.4&ip=9.8.7.6", Some("9.8.7.6")),
            ("ip=None&ipv4=1.2.3.4", Some("1.2.3.4")),
            ("ip=1.1.1.1&ip=2.2.2.2", Some("2.2.2.2")),
            ("ipv4=1.2.3.4:6881&ipv6=None", None),
            ("ip=%zz&ipv4=%3&ipv6=%", None),
            ("ip=&ipv4&x=1.2.3.4", None),
            ("ip=0000:0000:0000:0000:0000:0000:0000:0000:0000:0000", None),
            ("ip=\u{e4}", None),
            ("", None),
        ] {
            assert_eq!(of(query).as_deref(), expected, "{query}");
        }
    }

    #[test]
    fn what_is_missing_has_a_meaning() {
        let query = with("").unwrap();
        assert_eq!(query.info_hash, InfoHash(*b"aaaaaaaaaaaaaaaaaaaa"));
        assert_eq!(query.peer_id, PeerId(*b"-AA0000-bbbbbbbbbbbb"));
        assert_eq!((query.port, query.left, query.event), (6881, u64::MAX, Event::None));
        assert_eq!((query.numwant, query.compact), (None, true));
    }

    #[test]
    fn nonsense_that_nothing_depends_on_is_tolerated() {
        let plain = with("").unwrap();
        for more in [
            "ipv4=None&ipv6=None",
            "ip=999.1.1.1",
            "ip=%zz&localip=",
            "uploaded=-5&downloaded=x",
            "key=0xZZ%",
            "trackerid=abc",
            "no_peer_id=1&supportcrypto=1&requirecrypto&corrupt=0",
            "&&&=&==&=x&info_hash_=1",
            "event=",
            "event=sTarted",
            "event=unknown",
            "numwant=-1",
            "numwant=0",
            "numwant=",
            "numwant=1e3",
            "left=",
            "left=-1",
            "left=x",
            "compact=",
            "compact=1",
            "compact=yes",
            "left=99999999999999999999999",
        ] {
            assert_eq!(with(more), Ok(plain), "{more}");
        }
    }

    #[test]
    fn what_means_something_is_read() {
        assert_eq!(with("left=0").unwrap().left, 0);
        assert_eq!(with("left=16384").unwrap().left, 16384);
        assert_eq!(with("numwant=80").unwrap().numwant, Some(80));
        assert_eq!(with("numwant=99999999999999999999").unwrap().numwant, Some(u32::MAX));
        assert!(!with("compact=0").unwrap().compact);
        for (name, event) in [
            ("started", Event::Started),
            ("completed", Event::Completed),
            ("stopped", Event::Stopped),
            ("paused", Event::Paused),
        ] {
            assert_eq!(with(&format!("event={name}")).unwrap().event, event);
        }
        // The parameters of the URL come first, and those of the client are used.
        let twice = with("port=7000&left=5&left=0").unwrap();
        assert_eq!((twice.port, twice.left), (7000, 0));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let hash = "info_hash=aaaaaaaaaaaaaaaaaaaa";
        let id = "peer_id=-AA0000-bbbbbbbbbbbb";
        for (query, expected) in [
            (String::new(), QueryError::NoInfoHash),
            ("info_hash".into(), QueryError::InfoHashLength),
            (format!("{id}&port=1"), QueryError::NoInfoHash),
            (format!("{hash}a&{id}&port=1"), QueryError::InfoHashLength),
            (format!("{id}&port=1&info_hash=aaaaaaaaaaaaaaaaaaa"), QueryError::InfoHashLength),
            (format!("{id}&port=1&info_hash=aaaaaaaaaaaaaaaaaaa%4"), QueryError::InfoHashEscape),
            (format!("{id}&port=1&info_hash=%g0aaaaaaaaaaaaaaaaaaa"), QueryError::InfoHashEscape),
            (format!("{id}&port=1&info_hash=%0%aaaaaaaaaaaaaaaaaaa"), QueryError::InfoHashEscape),
            (
                format!("{hash}&info_hash=bbbbbbbbbbbbbbbbbbbb&{id}&port=1"),
                QueryError::InfoHashTwice,
            ),
            (format!("{hash}&port=1"), QueryError::NoPeerId),
            (format!("{hash}&peer_id=short&port=1"), QueryError::PeerId),
            (format!("{hash}&peer_id=%&port=1"), QueryError::PeerId),
            (format!("{hash}&{id}"), QueryError::NoPort),
            (format!("{hash}&{id}&port="), QueryError::Port),
            (format!("{hash}&{id}&port=65536"), QueryError::Port),
            (format!("{hash}&{id}&port=-1"), QueryError::Port),
            (format!("{hash}&{id}&port=0x1"), QueryError::Port),
        ] {
            assert_eq!(announce(query.as_bytes()), Err(expected), "{query}");
        }
    }

    #[test]
    fn reserved_characters_are_themselves() {
        let raw = b"|,/;<>:@!$'()*~ =?\"\xff";
        assert_eq!(raw.len(), 20);
        assert_eq!(decode_20(raw), Ok(*raw));
        let query = [b"info_hash=", &raw[..]].concat();
        let mut all = Vec::new();
        scrape(&query, &mut all).unwrap();
        assert_eq!(all, [InfoHash(*raw)]);
    }

    #[test]
    fn a_plus_is_a_blank_as_form_encoders_have_it() {
        // Python: urllib.parse.urlencode({"info_hash": raw, "peer_id": id, "port": 6881}).
        let query =
            b"info_hash=%01+plus+sp%2Bce%FF%FExxxxxx&peer_id=-XX+000-%2B++aaaaaaaaa&port=6881";
        let raw = *b"\x01 plus sp+ce\xff\xfexxxxxx";
        let announce_query = announce(query).unwrap();
        assert_eq!(
            (announce_query.info_hash, announce_query.peer_id),
            (InfoHash(raw), PeerId(*b"-XX 000-+  aaaaaaaaa"))
        );
        let mut all = Vec::new();
        scrape(query, &mut all).unwrap();
        assert_eq!(all, [InfoHash(raw)]);
        // A blank makes a number or an address invalid; it is not trimmed.
        let parsed = with("left=+0&numwant=5+&event=started+&ip=+1.2.3.4").unwrap();
        assert_eq!((parsed.left, parsed.numwant, parsed.event), (u64::MAX, None, Event::None));
        assert_eq!(claimed_address(b"ip=+1.2.3.4"), None);
    }

    #[test]
    fn a_scrape_takes_74_in_order_and_each_once() {
        let mut all = Vec::new();
        let name = |at: usize| format!("info_hash={at:020}&");
        scrape([name(3), name(1), name(3)].concat().as_bytes(), &mut all).unwrap();
        assert_eq!(all.len(), 2);
        assert!(all[0] < all[1]);
        let many: String = (0..74).rev().chain(0..74).map(name).collect();
        scrape(many.as_bytes(), &mut all).unwrap();
        assert_eq!(all.len(), SCRAPE_HASHES_MAX);
        assert_eq!(all[0], InfoHash(*b"00000000000000000000"));
        let too_many: String = (0..75).map(name).collect();
        assert_eq!(scrape(too_many.as_bytes(), &mut all), Err(QueryError::InfoHashesMany));
        assert!(all.is_empty());
        assert!(QueryError::InfoHashesMany.text().contains(&SCRAPE_HASHES_MAX.to_string()));
        assert_eq!(scrape(b"info_hash=1", &mut all), Err(QueryError::InfoHashLength));
        scrape(b"x=1", &mut all).unwrap();
        assert!(all.is_empty());
    }

    #[test]
    fn parameters_are_parted_by_ampersands_alone() {
        let all: Vec<_> = pairs(b"a=b;c&d&=e&f==g&&h=").collect();
        let expected: [(&[u8], &[u8]); 6] =
            [(b"a", b"b;c"), (b"d", b""), (b"", b"e"), (b"f", b"=g"), (b"", b""), (b"h", b"")];
        assert_eq!(all, expected);
        assert!(has(b"a=1&info_hash", b"info_hash") && !has(b"x=info_hash", b"info_hash"));
    }

    /// One byte in one of the encodings that clients use.
    fn coded(byte: u8, form: u8) -> Vec<u8> {
        let plain = !matches!(byte, b'%' | b'&' | b'+');
        match form {
            4 if byte == b' ' => vec![b'+'],
            0 => format!("%{byte:02x}").into_bytes(),
            1 => format!("%{byte:02X}").into_bytes(),
            2 => {
                let [high, low]: [u8; 2] = format!("{byte:02x}").into_bytes().try_into().unwrap();
                vec![b'%', high.to_ascii_uppercase(), low]
            }
            _ if plain => vec![byte],
            _ => format!("%{byte:02x}").into_bytes(),
        }
    }

    proptest! {
        #[test]
        fn any_20_bytes_survive_in_every_mix(
            bytes in any::<[u8; 20]>(),
            forms in any::<[u8; 20]>(),
        ) {
            let forms = forms.iter().map(|it| it % 5);
            let text: Vec<u8> =
                bytes.iter().zip(forms).flat_map(|(byte, form)| coded(*byte, form)).collect();
            prop_assert_eq!(decode_20(&text), Ok(bytes));
            let query = [b"x=1&info_hash=", &text[..], b"&y"].concat();
            let mut all = Vec::new();
            prop_assert_eq!(scrape(&query, &mut all), Ok(()));
            prop_assert_eq!(all, [InfoHash(bytes)]);
        }

        #[test]
        fn no_query_is_too_strange(query in vec(any::<u8>(), 0..400)) {
            let mut all = Vec::new();
            let _ = (announce(&query), scrape(&query, &mut all));
            prop_assert!(all.len() <= SCRAPE_HASHES_MAX);
            let bytes: usize = pairs(&query).map(|(name, value)| name.len() + value.len()).sum();
            prop_assert!(bytes <= query.len());
        }
    }
}
