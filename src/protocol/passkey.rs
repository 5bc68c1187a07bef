//! The passkey in an announce URL's path: `/announce/PASSKEY`, `/PASSKEY/announce`, and the same
//! with `scrape`. Over HTTP the path is the request's; over UDP it is in the URL data of BEP 41.

use std::fmt;

/// Most bytes of a passkey. A longer one is not looked up.
pub const PASSKEY_BYTES_MAX: usize = 64;

/// A passkey as received, kept as long as its connection. Its debug output hides it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Passkey {
    bytes: [u8; PASSKEY_BYTES_MAX],
    length: usize,
}

impl Passkey {
    /// A copy of the passkey; `None` if it is longer than [`PASSKEY_BYTES_MAX`].
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut passkey = Self { bytes: [0; PASSKEY_BYTES_MAX], length: bytes.len() };
        passkey.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(passkey)
    }

    /// The passkey as received.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Debug for Passkey {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Passkey(_)")
    }
}

/// The passkey in a path, which may be followed by a query; `None` if there is none.
pub fn of_path(path: &[u8]) -> Option<&[u8]> {
    let end = path.iter().position(|it| *it == b'?').unwrap_or(path.len());
    let mut segments = path[..end].split(|it| *it == b'/').filter(|it| !it.is_empty());
    let (first, second) = (segments.next()?, segments.next()?);
    if segments.next().is_some() {
        return None;
    }
    let is_action = |it: &[u8]| matches!(it, b"announce" | b"scrape");
    let passkey = match (is_action(first), is_action(second)) {
        (true, false) => second,
        (false, true) => first,
        _ => return None,
    };
    (passkey.len() <= PASSKEY_BYTES_MAX).then_some(passkey)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_passkey_is_what_came_and_stays_secret() {
        let kept = Passkey::new(b"abc").unwrap();
        assert_eq!(kept.as_bytes(), b"abc");
        assert_eq!(format!("{kept:?}"), "Passkey(_)");
        assert!(Passkey::new(&[b'x'; 64]).is_some() && Passkey::new(&[b'x'; 65]).is_none());
    }

    #[test]
    fn the_passkey_stands_before_or_behind_what_is_asked() {
        for (path, expected) in [
            ("/announce/abc", Some("abc")),
            ("/abc/announce", Some("abc")),
            ("/scrape/abc", Some("abc")),
            ("/abc/scrape", Some("abc")),
            ("//announce//abc/", Some("abc")),
            ("/announce/abc?x=/y", Some("abc")),
            ("announce/abc", Some("abc")),
            ("/announce", None),
            ("/announce?passkey=abc", None),
            ("/announce/scrape", None),
            ("/abc/def", None),
            ("/a/announce/b", None),
            ("/", None),
            ("", None),
        ] {
            let found = of_path(path.as_bytes()).map(|it| std::str::from_utf8(it).unwrap());
            assert_eq!(found, expected, "{path}");
        }
        assert_eq!(of_path(format!("/announce/{}", "x".repeat(65)).as_bytes()), None);
    }
}
