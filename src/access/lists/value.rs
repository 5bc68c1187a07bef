//! Values of lists: torrents, networks, clients and ports, and how each is written.
//!
//! | kind | written as |
//! |---|---|
//! | torrents | 40 hexadecimal digits (v1, or v2 cut), 64 (v2), a magnet link (one hash or two) |
//! | networks | `192.0.2.0/24`, `2001:db8::/32`, an address |
//! | clients | prefix of peer ids: `-XY` or `-XY0123-`; other bytes as `%1f` |
//! | ports | `25`, `6881-6889` |

use std::fmt;

use ipnet::IpNet;

use crate::networks;
use crate::types::InfoHash;

/// The kind of a list's values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind {
    /// Info-hashes.
    Torrents,
    /// Networks of sources.
    Networks,
    /// Prefixes of peer ids.
    Clients,
    /// Ports that peers listen on.
    Ports,
}

impl ListKind {
    /// What a value of this kind must be, in words.
    pub const fn allowed(self) -> &'static str {
        match self {
            Self::Torrents => "an info-hash (40 or 64 hexadecimal digits) or a magnet link",
            Self::Networks => {
                "a network (192.0.2.0/24, 2001:db8::/32; no bits beyond the prefix) or an address"
            }
            Self::Clients => "the first 1 to 20 bytes of peer ids; bytes outside ASCII as %1f",
            Self::Ports => "a port or a range of ports (6881-6889)",
        }
    }
}

impl ListKind {
    /// What is expected in place of a word that is not a value of this kind: of a network the exact
    /// reason.
    pub fn expected_instead_of(self, word: &str) -> String {
        match self {
            Self::Networks => networks::parse(word).err().map(|it| it.to_string()),
            _ => None,
        }
        .unwrap_or_else(|| self.allowed().to_owned())
    }
}

/// One value of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListValue {
    /// A torrent.
    Torrent(InfoHash),
    /// A network, no bit set beyond its prefix; IPv4 is never written as mapped IPv6.
    Network(IpNet),
    /// A prefix of peer ids.
    Client(PeerIdPrefix),
    /// Ports from the first to the last.
    Ports(u16, u16),
}

/// The first bytes of a peer id.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerIdPrefix {
    /// The prefix, padded with zeros.
    bytes: [u8; 20],
    length: u8,
}

impl PeerIdPrefix {
    /// The first `length` bytes of a peer id, at most all 20.
    pub fn of(peer_id: &[u8; 20], length: usize) -> Self {
        let length = length.min(peer_id.len());
        let mut bytes = [0; 20];
        bytes[..length].copy_from_slice(&peer_id[..length]);
        Self { bytes, length: u8::try_from(length).unwrap_or(20) }
    }

    /// The bytes of the prefix.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length()]
    }

    /// Number of bytes.
    pub fn length(&self) -> usize {
        usize::from(self.length)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut rest = text.as_bytes();
        let mut prefix = Self { bytes: [0; 20], length: 0 };
        while let Some((&first, behind)) = rest.split_first() {
            let (byte, behind) = match first {
                b'%' => {
                    let (digits, behind) = behind.split_first_chunk::<2>()?;
                    (byte_of_hex(*digits)?, behind)
                }
                _ if first.is_ascii_graphic() => (first, behind),
                _ => return None,
            };
            let at = prefix.length();
            *prefix.bytes.get_mut(at)? = byte;
            prefix.length += 1;
            rest = behind;
        }
        (prefix.length > 0).then_some(prefix)
    }
}

impl fmt::Display for PeerIdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.bytes() {
            // `#` would begin a comment, `/` would end a part of a path.
            match byte {
                b'%' | b'#' | b'/' => write!(f, "%{byte:02x}")?,
                _ if byte.is_ascii_graphic() => write!(f, "{}", char::from(*byte))?,
                _ => write!(f, "%{byte:02x}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for PeerIdPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for ListValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torrent(info_hash) => info_hash.fmt(f),
            Self::Network(net) => net.fmt(f),
            Self::Client(prefix) => prefix.fmt(f),
            Self::Ports(first, last) if first == last => first.fmt(f),
            Self::Ports(first, last) => write!(f, "{first}-{last}"),
        }
    }
}

/// The values of one word of a list: usually one, two for the magnet link of a hybrid.
pub type Values = (ListValue, Option<ListValue>);

/// Parses one value without blanks; `None` if it is not of this kind.
pub fn parse(kind: ListKind, text: &str) -> Option<Values> {
    let one = |it: Option<ListValue>| it.map(|it| (it, None));
    match kind {
        ListKind::Torrents => torrents(text),
        ListKind::Networks => one(networks::parse(text).ok().map(ListValue::Network)),
        ListKind::Clients => one(PeerIdPrefix::parse(text).map(ListValue::Client)),
        ListKind::Ports => one(ports(text)),
    }
}

fn ports(text: &str) -> Option<ListValue> {
    let port = |text: &str| {
        let digits = text.bytes().all(|it| it.is_ascii_digit());
        text.parse::<u16>().ok().filter(|_| digits)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(ListValue::Ports(first, last))
}

fn torrents(text: &str) -> Option<Values> {
    let torrent = |info_hash: InfoHash| (ListValue::Torrent(info_hash), None);
    let magnet = "magnet:?";
    match text.get(..magnet.len()).filter(|it| it.eq_ignore_ascii_case(magnet)) {
        Some(_) => of_magnet(&text[magnet.len()..]),
        None => InfoHash::from_hex(text).or_else(|| cut(text)).map(torrent),
    }
}

/// The first 20 bytes of a v2 info-hash (BEP 52), which are announced.
fn cut(digits: &str) -> Option<InfoHash> {
    let rest = digits.get(40..).filter(|it| it.len() == 24)?;
    let sound = rest.bytes().all(|it| it.is_ascii_hexdigit());
    InfoHash::from_hex(digits.get(..40)?).filter(|_| sound)
}

/// The torrents that the parameters of a magnet link name (BEP 9, 52): at most one of each version.
fn of_magnet(parameters: &str) -> Option<Values> {
    let (mut v1, mut v2) = (None, None);
    for (name, value) in parameters.split('&').filter_map(|it| it.split_once('=')) {
        if name != "xt" && !name.starts_with("xt.") {
            continue;
        }
        let value = value.replace("%3A", ":").replace("%3a", ":").to_ascii_lowercase();
        if let Some(hash) = value.strip_prefix("urn:btih:") {
            v1 = Some(InfoHash::from_hex(hash).or_else(|| of_base32(hash))?);
        } else if let Some(hash) = value.strip_prefix("urn:btmh:1220") {
            v2 = Some(cut(hash)?); // a multihash: SHA-256, 32 bytes
        }
    }
    let second = v2.filter(|it| v1.is_some() && v1 != Some(*it)).map(ListValue::Torrent);
    Some((ListValue::Torrent(v1.or(v2)?), second))
}

/// Decodes base32 (RFC 4648) in lower case: 32 digits of five bits each.
fn of_base32(digits: &str) -> Option<InfoHash> {
    if digits.len() != 32 {
        return None;
    }
    let mut hash = [0; 20];
    let (mut bits, mut held, mut at) = (0_u32, 0, 0);
    for digit in digits.bytes() {
        let value = match digit {
            b'a'..=b'z' => digit - b'a',
            b'2'..=b'7' => digit - b'2' + 26,
            _ => return None,
        };
        bits = bits << 5 | u32::from(value);
        held += 5;
        if held >= 8 {
            held -= 8;
            *hash.get_mut(at)? = (bits >> held).to_le_bytes()[0];
            at += 1;
        }
    }
    Some(InfoHash(hash))
}

fn byte_of_hex([high, low]: [u8; 2]) -> Option<u8> {
    let nibble = |digit: u8| u8::try_from(char::from(digit).to_digit(16)?).ok();
    Some(nibble(high)? << 4 | nibble(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(kind: ListKind, text: &str) -> Vec<String> {
        let (first, second) = parse(kind, text).unwrap_or_else(|| panic!("{text}"));
        [Some(first), second].into_iter().flatten().map(|it| it.to_string()).collect()
    }

    #[test]
    fn torrents_are_named_in_any_way_that_is_in_use() {
        let hash = "0123456789abcdef0123456789abcdef01234567";
        let v2 = "f1c2000000000000000000000000000000000000000000000000000000000001";
        for text in [
            hash.to_owned(),
            hash.to_uppercase(),
            format!("magnet:?xt=urn:btih:{hash}"),
            format!("MAGNET:?dn=a+b&xt.1=urn:BTIH:{}&tr=udp%3A%2F%2Fx", hash.to_uppercase()),
            format!("magnet:?xt=urn%3Abtih%3A{hash}"),
            "magnet:?xt=urn:btih:AERUKZ4JVPG66AJDIVTYTK6N54ASGRLH".to_owned(),
        ] {
            assert_eq!(texts(ListKind::Torrents, &text), [hash], "{text}");
        }
        assert_eq!(texts(ListKind::Torrents, v2), [&v2[..40]]);
        let hybrid = format!("magnet:?xt=urn:btmh:1220{v2}&xt=urn:btih:{hash}");
        assert_eq!(texts(ListKind::Torrents, &hybrid), [hash, &v2[..40]]);
        let alone = format!("magnet:?xt=urn:btmh:1220{v2}");
        assert_eq!(texts(ListKind::Torrents, &alone), [&v2[..40]]);
    }

    #[test]
    fn values_are_written_as_they_are_read() {
        for (kind, text) in [
            (ListKind::Networks, "192.0.2.0/24"),
            (ListKind::Networks, "::/0"),
            (ListKind::Networks, "2001:db8::/32"),
            (ListKind::Clients, "-XL0012-"),
            (ListKind::Clients, "%00%ff%25%23%2fa"),
            (ListKind::Clients, "abcdefghijklmnopqrst"),
            (ListKind::Ports, "0"),
            (ListKind::Ports, "6881-6889"),
        ] {
            assert_eq!(texts(kind, text), [text]);
        }
        assert_eq!(texts(ListKind::Networks, "192.0.2.7"), ["192.0.2.7/32"]);
        assert_eq!(texts(ListKind::Networks, "::1"), ["::1/128"]);
        assert_eq!(texts(ListKind::Networks, "::ffff:192.0.2.0/120"), ["192.0.2.0/24"]);
        assert_eq!(texts(ListKind::Ports, "7-7"), ["7"]);
    }

    #[test]
    fn what_is_no_value_is_refused() {
        let digits = "0".repeat(40);
        for (kind, bad) in [
            (ListKind::Torrents, ""),
            (ListKind::Torrents, &digits[1..]),
            (ListKind::Torrents, &format!("{digits}0")),
            (ListKind::Torrents, &format!("{}g", &digits[1..])),
            (ListKind::Torrents, &format!("{digits}{}", "g".repeat(24))),
            (ListKind::Torrents, "magnet:?dn=x"),
            (ListKind::Torrents, "magnet:?xt=urn:btih:xyz"),
            (ListKind::Torrents, &format!("magnet:?xt=urn:btmh:1114{digits}")),
            (ListKind::Torrents, "\u{e9}\u{e9}\u{e9}\u{e9}\u{e9}"),
            (ListKind::Networks, "192.0.2.1/24"),
            (ListKind::Networks, "192.0.2.0/33"),
            (ListKind::Networks, "localhost"),
            (ListKind::Clients, ""),
            (ListKind::Clients, "%"),
            (ListKind::Clients, "%0g"),
            (ListKind::Clients, "abcdefghijklmnopqrstu"),
            (ListKind::Clients, "\u{e9}"),
            (ListKind::Ports, "65536"),
            (ListKind::Ports, "+1"),
            (ListKind::Ports, "2-1"),
            (ListKind::Ports, "-"),
        ] {
            assert_eq!(parse(kind, bad), None, "{bad:?}");
        }
    }
}
