//! Recognizes the software in a peer id: a closed table, so that text invented by a client never
//! becomes a name on a page.
//!
//! ```text
//! -qB5010-…   Azureus style: two letters, four places of a version (BEP 20)
//! -KT22123-…  the same with five places: year, month, release
//! TIX0318-…   three letters, two numbers of two digits
//! M7-4-3--…   mainline style: a letter or two, numbers between dashes
//! T03I--…     Shadow style: a letter, a place for each number, dashes to fill up
//! ```
//!
//! No library is used because every announce needs this; aquatic_peer_id supports fewer clients,
//! and uses regular expressions.

use std::fmt::Write as _;

use crate::types::PeerId;

/// The first bytes of a peer id, which name software and version.
pub(super) type SoftwarePrefix = [u8; 8];

/// How a client writes its version.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// Azureus style, each of the four places a number.
    Places,
    /// Azureus style, two numbers of two digits.
    Pairs,
    /// Azureus style, each of three places a number, the last a letter: `s` of a release.
    Marked,
    /// Azureus style, a number, a two-digit number, and a mark; from 4.0 on, each place is a
    /// number.
    Transmission,
    /// Azureus style, a number, a two-digit number, and a number.
    PicoTorrent,
    /// Azureus style, each of the four places a number; or five: a year, a month, a number.
    KTorrent,
    /// No dash in front, two numbers of two digits.
    Bare,
    /// Numbers between dashes.
    Dashes,
    /// A place for each number, padded with dashes.
    Shadow,
}

use Style::{Bare, Dashes, KTorrent, Marked, Pairs, PicoTorrent, Places, Shadow, Transmission};

/// Known software: its code, its name, its style of version.
const KNOWN: [(&[u8], &str, Style); SOFTWARE] = [
    (b"qB", "qBittorrent", Places),
    (b"TR", "Transmission", Transmission),
    (b"UT", "µTorrent", Places),
    (b"UM", "µTorrent Mac", Places),
    (b"UW", "µTorrent Web", Places),
    (b"BT", "BitTorrent", Places),
    (b"LT", "libtorrent", Places),
    (b"lt", "libTorrent (rTorrent)", Places),
    (b"DE", "Deluge", Marked),
    (b"WW", "WebTorrent", Pairs),
    (b"WD", "WebTorrent Desktop", Pairs),
    (b"BI", "BiglyBT", Places),
    (b"AZ", "Vuze", Places),
    (b"BC", "BitComet", Pairs),
    (b"BL", "BitLord", Places),
    (b"BP", "BitTorrent Pro", Places),
    (b"BB", "BitBuddy", Places),
    (b"TX", "Tixati", Pairs),
    (b"TIX", "Tixati", Bare),
    (b"KT", "KTorrent", KTorrent),
    (b"KG", "KGet", Places),
    (b"FD", "Free Download Manager", Places),
    (b"FL", "Flud", Places),
    (b"FW", "FrostWire", Places),
    (b"FG", "FlashGet", Pairs),
    (b"XL", "Xunlei", Places),
    (b"SD", "Thunder", Places),
    (b"XF", "Xfplay", Places),
    (b"QD", "QQDownload", Places),
    (b"PI", "PicoTorrent", PicoTorrent),
    (b"MO", "MonoTorrent", Places),
    (b"GT", "anacrolix torrent", Places),
    (b"rQ", "rqbit", Places),
    (b"TL", "Tribler", Places),
    (b"HL", "Halite", Places),
    (b"CT", "CTorrent", Places),
    (b"CD", "Enhanced CTorrent", Pairs),
    (b"SZ", "Shareaza", Places),
    (b"MR", "Miro", Places),
    (b"FX", "Freebox", Places),
    (b"AG", "Ares", Places),
    (b"TB", "Torch", Places),
    (b"A2", "aria2", Dashes),
    (b"M", "BitTorrent Mainline", Dashes),
    (b"T", "BitTornado", Shadow),
    (b"S", "Shadow", Shadow),
    (b"R", "Tribler", Shadow),
];

/// The number of lines of the table.
pub(super) const SOFTWARE: usize = 47;

/// The software in a peer id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Software {
    /// Its line in the table.
    pub(super) index: usize,
    /// Whether its version can be read.
    pub(super) has_version: bool,
}

/// The software of a peer id with these first bytes.
pub(super) fn of(prefix: &SoftwarePrefix) -> Option<Software> {
    let index = KNOWN.iter().position(|&(code, _, style)| is_of(prefix, code, style))?;
    Some(Software { index, has_version: version(index, prefix).is_some() })
}

/// Software and version of a peer id, for people; of unknown software the first bytes, escaped.
pub fn software_of(peer_id: &PeerId) -> String {
    let (prefix, _) = peer_id.0.split_first_chunk().expect("a peer id has 20 bytes");
    let Some(Software { index, .. }) = of(prefix) else { return prefix.escape_ascii().to_string() };
    match version(index, prefix) {
        Some(version) => format!("{} {version}", name(index)),
        None => name(index).to_owned(),
    }
}

/// The name of a line of the table.
pub(super) fn name(index: usize) -> &'static str {
    KNOWN[index].1
}

/// The version, as people write it: ASCII letters, digits and points.
pub(super) fn version(index: usize, prefix: &SoftwarePrefix) -> Option<String> {
    let (code, _, style) = KNOWN[index];
    match (style, prefix) {
        (KTorrent, [_, _, _, five @ ..]) if five.iter().all(u8::is_ascii_digit) => monthly(*five),
        (Pairs | Bare, [_, _, _, a, b, c, d, b'-']) => pairs([*a, *b, *c, *d]),
        (Places | KTorrent, [_, _, _, a, b, c, d, b'-']) => places([*a, *b, *c, *d]),
        (Marked, [_, _, _, a, b, c, b's', b'-']) => places([*a, *b, *c, b'0']),
        (Marked, [_, _, _, a, b, c, d, b'-']) => places([*a, *b, *c, *d]),
        (Transmission, [_, _, _, a @ b'0'..=b'3', b, c, d, b'-']) => hundredths([*a, *b, *c, *d]),
        (Transmission, [_, _, _, a, b, c, d, b'-']) => places([*a, *b, *c, *d]),
        (PicoTorrent, [_, _, _, a, b, c, d, b'-']) => two_digits_amid([*a, *b, *c, *d]),
        (Places | Pairs | Marked | Transmission | PicoTorrent | KTorrent | Bare, _) => None,
        (Dashes, _) => dashes(&prefix[code.len()..]),
        (Shadow, [_, places @ .., b'-', b'-']) => shadow(places),
        (Shadow, _) => None,
    }
}

fn is_of(prefix: &SoftwarePrefix, code: &[u8], style: Style) -> bool {
    match style {
        Places | Pairs | Marked | Transmission | PicoTorrent | KTorrent => {
            prefix[0] == b'-' && prefix[1..].starts_with(code)
        }
        Bare => prefix.starts_with(code) && prefix[7] == b'-',
        // The code is short, so a valid version must follow.
        Dashes => prefix.strip_prefix(code).is_some_and(|it| dashes(it).is_some()),
        Shadow => matches!(prefix, [letter, places @ .., b'-', b'-']
            if [*letter] == *code && shadow(places).is_some()),
    }
}

/// `5010` is 5.0.1, `20A0` is 2.0.10, `355W` is 3.5.5W: an upper-case letter counts on from 9, but
/// in the last place it is a mark of the edition; a last 0 is left out.
fn places([a, b, c, d]: [u8; 4]) -> Option<String> {
    let mut text = numbers(&[a, b, c])?;
    match d {
        b'0' => {}
        b'1'..=b'9' => _ = write!(text, ".{}", char::from(d)),
        _ if d.is_ascii_alphabetic() => text.push(d.into()),
        _ => return None,
    }
    Some(text)
}

/// `0123` is 1.23.
fn pairs(digits: [u8; 4]) -> Option<String> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return places(digits);
    }
    let [a, b, c, d] = digits.map(|digit| u32::from(digit - b'0'));
    Some(format!("{}.{}", a * 10 + b, c * 10 + d))
}

/// `22123` is 22.12.3, `24022` is 24.2.2.
fn monthly(digits: [u8; 5]) -> Option<String> {
    let [a, b, c, d, e] = digits.map(|digit| u32::from(digit - b'0'));
    Some(format!("{}.{}.{e}", a * 10 + b, c * 10 + d))
}

/// `2940` is 2.94, `111Z` is 1.11Z.
fn hundredths([a, b, c, d]: [u8; 4]) -> Option<String> {
    let mut text = [a, b, c].iter().all(u8::is_ascii_digit).then(|| {
        let [a, b, c] = [a, b, c].map(char::from);
        format!("{a}.{b}{c}")
    })?;
    match d {
        b'0' => {}
        _ if d.is_ascii_alphanumeric() => text.push(d.into()),
        _ => return None,
    }
    Some(text)
}

/// `0253` is 0.25.3.
fn two_digits_amid([a, b, c, d]: [u8; 4]) -> Option<String> {
    let digits = [a, b, c, d];
    let [a, b, c, d] = digits.map(char::from);
    let is_number = digits.iter().all(u8::is_ascii_digit);
    is_number.then(|| format!("{a}.{}{c}.{d}", if b == '0' { String::new() } else { b.into() }))
}

/// `7-4-3--` is 7.4.3, `-1-36-` is 1.36.
fn dashes(text: &[u8]) -> Option<String> {
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let mut version = String::new();
    for number in text.split(|&byte| byte == b'-').take_while(|it| !it.is_empty()) {
        if !number.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let point = if version.is_empty() { "" } else { "." };
        version += point;
        version.extend(number.iter().map(|&digit| char::from(digit)));
    }
    version.contains('.').then_some(version)
}

/// `03I--` is 0.3.18.
fn shadow(text: &[u8]) -> Option<String> {
    let end = text.iter().position(|&byte| byte == b'-').unwrap_or(text.len());
    let (places, rest) = text.split_at(end);
    let filled_up = rest.iter().all(|&byte| byte == b'-');
    let looks_so = filled_up && places.len() > 1 && places[0].is_ascii_digit();
    if looks_so { numbers(places) } else { None }
}

/// A number for each place, with points between.
fn numbers(places: &[u8]) -> Option<String> {
    let mut text = String::new();
    for (at, &place) in places.iter().enumerate() {
        let point = if at == 0 { "" } else { "." };
        let _ = match place {
            b'0'..=b'9' | b'a'..=b'z' => write!(text, "{point}{}", char::from(place)),
            b'A'..=b'Z' => write!(text, "{point}{}", place - b'A' + 10),
            _ => return None,
        };
    }
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(prefix: &SoftwarePrefix) -> Option<(&'static str, Option<String>)> {
        let software = of(prefix)?;
        Some((name(software.index), version(software.index, prefix)))
    }

    #[test]
    fn versions_read_as_people_write_them() {
        for (prefix, software, text) in [
            (b"-qB5010-", "qBittorrent", "5.0.1"),
            (b"-qB4640-", "qBittorrent", "4.6.4"),
            (b"-TR4060-", "Transmission", "4.0.6"),
            (b"-TR411Z-", "Transmission", "4.1.1Z"),
            (b"-UT355W-", "µTorrent", "3.5.5W"),
            (b"-LT20A0-", "libtorrent", "2.0.10"),
            (b"-lt0D80-", "libTorrent (rTorrent)", "0.13.8"), // the library of rTorrent
            (b"-DE203s-", "Deluge", "2.0.3"),
            (b"-DE211s-", "Deluge", "2.1.1"),
            (b"-DE220b-", "Deluge", "2.2.0b"),
            (b"-KT22123", "KTorrent", "22.12.3"),
            (b"-KT24022", "KTorrent", "24.2.2"),
            (b"-KT4310-", "KTorrent", "4.3.1"),
            (b"-CD0303-", "Enhanced CTorrent", "3.3"),
            (b"-TR2940-", "Transmission", "2.94"),
            (b"-TR300Z-", "Transmission", "3.00Z"),
            (b"-PI0253-", "PicoTorrent", "0.25.3"),
            (b"TIX0318-", "Tixati", "3.18"),
            (b"-qB4520-", "qBittorrent", "4.5.2"),
            (b"-LT2110-", "libtorrent", "2.1.1"),
            (b"-rQ9000-", "rqbit", "9.0.0"),
            (b"-WW0109-", "WebTorrent", "1.9"),
            (b"-DE13F0-", "Deluge", "1.3.15"),
            (b"-AZ5771-", "Vuze", "5.7.7.1"),
            (b"-WW0123-", "WebTorrent", "1.23"),
            (b"-WW0206-", "WebTorrent", "2.6"),
            (b"-BC0180-", "BitComet", "1.80"),
            (b"M7-4-3--", "BitTorrent Mainline", "7.4.3"),
            (b"M7-10-3-", "BitTorrent Mainline", "7.10.3"),
            (b"A2-1-36-", "aria2", "1.36"),
            (b"T03I----", "BitTornado", "0.3.18"),
            (b"R300----", "Tribler", "3.0.0"),
        ] {
            assert_eq!(read(prefix), Some((software, Some(text.to_owned()))));
        }
    }

    #[test]
    fn what_is_made_up_becomes_no_name_and_no_version() {
        for prefix in [b"-ZZ0100-", b"\0\0\0\0\0\0\0\0", b"TEST----", b"Mozilla/", b"A2______"] {
            assert_eq!(read(prefix), None, "{prefix:?}");
        }
        for prefix in [b"-qB<b>-x", b"-qB\xff000-", b"-qB5010x", b"-WW01\n3-"] {
            let (_, version) = read(prefix).unwrap();
            assert_eq!(version, None, "{prefix:?}");
        }
    }

    #[test]
    fn whatever_comes_only_letters_digits_and_points_pass() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200_000 {
            let mut prefix = [0; 8];
            random.fill(&mut prefix);
            let (code, ..) = KNOWN[random.usize(..KNOWN.len())];
            let from = usize::from(code.len() == 2 && code != b"A2");
            prefix[0] = b'-';
            if random.bool() {
                prefix[3..7].fill_with(|| random.u8(b'0'..=b'9'));
                prefix[7] = b'-';
            }
            prefix[from..from + code.len()].copy_from_slice(code);
            if random.bool() {
                prefix[6..].fill(b'-');
            }
            if let Some((_, Some(version))) = read(&prefix) {
                let passes = |it: u8| it.is_ascii_alphanumeric() || it == b'.';
                assert!(version.bytes().all(passes) && version.len() <= 16, "{prefix:?}");
            }
        }
    }

    #[test]
    fn every_code_leads_to_its_own_line() {
        for (index, &(code, _, style)) in KNOWN.iter().enumerate() {
            let mut prefix = *b"-??1234-";
            match style {
                Places | Pairs | Marked | Transmission | PicoTorrent | KTorrent => {
                    prefix[1..3].copy_from_slice(code);
                }
                Bare => prefix[..3].copy_from_slice(code),
                Dashes | Shadow => {
                    prefix = *if style == Dashes { b"??1-2---" } else { b"?123----" };
                    prefix[..code.len()].copy_from_slice(code);
                    if code.len() == 1 && style == Dashes {
                        prefix = *b"M1-2----";
                    }
                }
            }
            assert_eq!(of(&prefix), Some(Software { index, has_version: true }), "{prefix:?}");
        }
    }
}
