//! Trackers' URLs.

use std::fmt;
use std::str::FromStr;

/// How a tracker is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// BEP 15.
    Udp,
    /// BEP 3 over HTTP.
    Http,
    /// The same over TLS.
    Https,
    /// WebTorrent over WebSocket.
    Ws,
    /// The same over TLS.
    Wss,
}

impl Scheme {
    const ALL: [(&'static str, Self); 5] = [
        ("udp://", Self::Udp),
        ("http://", Self::Http),
        ("https://", Self::Https),
        ("ws://", Self::Ws),
        ("wss://", Self::Wss),
    ];

    /// Whether it is spoken through TLS.
    pub fn has_tls(self) -> bool {
        matches!(self, Self::Https | Self::Wss)
    }

    /// Whether it is WebTorrent.
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    /// The port where a URL names none; UDP has none.
    fn port(self) -> Option<u16> {
        match self {
            Self::Udp => None,
            Self::Http | Self::Ws => Some(80),
            Self::Https | Self::Wss => Some(443),
        }
    }
}

/// A tracker's URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// As it was given.
    pub text: String,
    /// What comes first.
    pub scheme: Scheme,
    /// A name or an address, this without brackets.
    pub host: String,
    /// Where it listens.
    pub port: u16,
    /// Path and query, as given; printable ASCII, empty or beginning with `/` or `?`.
    pub path: String,
}

/// The longest path, in bytes, so that a request stays one packet.
const PATH_BYTES_MAX: usize = 1024;

/// What is accepted.
const ALLOWED: &str = "allowed: udp://HOST:PORT[/PATH], http[s]://HOST[:PORT][/PATH], \
                       ws[s]://HOST[:PORT][/PATH]";

impl Url {
    /// Host and port, as name resolution and HTTP want them.
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// What an HTTP request asks for: the path and query, `/` where there is none.
    pub fn target(&self) -> String {
        let missing = if self.path.starts_with('/') { "" } else { "/" };
        format!("{missing}{}", self.path)
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || ALLOWED.to_owned();
        let mut schemes = Scheme::ALL.into_iter();
        let found = schemes.find_map(|(prefix, it)| Some((it, text.strip_prefix(prefix)?)));
        let (scheme, rest) = found.ok_or_else(wrong)?;
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        let (host, port) = match authority.rsplit_once(':') {
            // The colons of an address in brackets are its own.
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
            _ => (authority, scheme.port()),
        };
        let port = port.filter(|it| *it > 0).ok_or_else(wrong)?;
        let bare = host.strip_prefix('[').and_then(|it| it.strip_suffix(']'));
        let is_host = |it: &u8| it.is_ascii_alphanumeric() || matches!(it, b'-' | b'.' | b'_');
        let sound = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(|it| is_host(&it)),
        };
        if !sound {
            return Err(wrong());
        }
        if path.len() > PATH_BYTES_MAX {
            return Err(format!("a path of more than {PATH_BYTES_MAX} bytes"));
        }
        if !path.bytes().all(|it| it.is_ascii_graphic() && it != b'#') {
            return Err("a path holds printable ASCII without spaces and #; escape as %XX".into());
        }
        let (text, path) = (text.to_owned(), path.to_owned());
        Ok(Self { text, scheme, host: bare.unwrap_or(host).to_owned(), port, path })
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Url, String> {
        text.parse()
    }

    #[test]
    fn urls_are_told_apart() {
        let it = parse("udp://tracker.example:6969/announce?key=1").unwrap();
        assert_eq!(
            (it.authority().as_str(), &*it.path),
            ("tracker.example:6969", "/announce?key=1")
        );
        let it = parse("udp://[::1]:6969").unwrap();
        assert_eq!((it.authority().as_str(), &*it.path, &*it.host), ("[::1]:6969", "", "::1"));
        let it = parse("https://a.example?x").unwrap();
        assert_eq!((it.scheme, it.port, it.target().as_str()), (Scheme::Https, 443, "/?x"));
        let it = parse("ws://[::1]/").unwrap();
        assert_eq!((it.scheme, it.authority().as_str()), (Scheme::Ws, "[::1]:80"));
    }

    #[test]
    fn what_is_no_url_is_refused() {
        for bad in [
            "127.0.0.1:1",
            "ftp://a:1",
            "udp://a",
            "udp://a:0",
            "udp://:1",
            "udp://a:x",
            "http://",
            "http://a:99999",
            "http://u@a/",
            "http://a b/",
            "http://::1/",
            "http://[::1/",
            "http://a/x y",
            "http://a/\r\nX: y",
            "http://a/\u{e9}",
            "http://a/#x",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
        assert!(parse(&format!("http://a/{}", "x".repeat(1024))).is_err());
    }
}
