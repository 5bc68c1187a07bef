//! URLs of trackers.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use http::Uri;
use strum::EnumString;

/// The protocol of a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "lowercase", ascii_case_insensitive)]
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
    /// Whether it uses TLS.
    pub fn has_tls(self) -> bool {
        matches!(self, Self::Https | Self::Wss)
    }

    /// Whether it is WebTorrent.
    pub fn is_websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    /// The default port; UDP has none.
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
    /// The URL as it was given.
    pub text: String,
    /// The protocol.
    pub scheme: Scheme,
    /// A name or an address; an IPv6 address without brackets.
    pub host: String,
    /// The port that the tracker listens on.
    pub port: u16,
    /// Path and query, as given; printable ASCII, empty or beginning with `/` or `?`.
    pub path: String,
}

/// The longest path, in bytes, so that a request stays one packet.
const PATH_BYTES_MAX: usize = 1024;

/// Why a text is not the URL of a tracker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// There are spaces, control or other characters that have to be escaped.
    #[error("a URL has printable ASCII only, without spaces and #; write other characters as %XX")]
    Character,
    /// There is no scheme.
    #[error(
        "the scheme is missing; remedy: write udp:// (or http://, https://, ws://, wss://) in \
             front"
    )]
    NoScheme,
    /// A URL of UDP has no port.
    #[error("the port is missing; remedy: write it behind the host, as in udp://HOST:6969")]
    NoPort,
    /// The port is not a number, or out of bounds.
    #[error("the port is not a number from 1 to 65535")]
    Port,
    /// Another scheme, or no valid host.
    #[error(
        "allowed: udp://HOST:PORT[/PATH], http[s]://HOST[:PORT][/PATH], ws[s]://HOST[:PORT][/PATH]"
    )]
    Form,
    /// The path does not fit into one packet.
    #[error("the path is longer than {PATH_BYTES_MAX} bytes")]
    LongPath,
}

impl Url {
    /// Host and port, in the form for name resolution and HTTP.
    pub fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }

    /// The target of an HTTP request: path and query, `/` if there is no path.
    pub fn target(&self) -> String {
        let missing = if self.path.starts_with('/') { "" } else { "/" };
        format!("{missing}{}", self.path)
    }

    /// The path without the query.
    pub fn path_alone(&self) -> &str {
        self.path.split_once('?').map_or(self.path.as_str(), |parts| parts.0)
    }

    /// The same URL with a passkey as the last part of its path, in front of the query:
    /// `/announce/PASSKEY`, also where the URL has no path.
    #[must_use]
    pub fn with_passkey(mut self, passkey: &str) -> Self {
        let path = self.path_alone();
        let query = &self.path[path.len()..];
        self.path = match path.trim_end_matches('/') {
            "" => format!("/announce/{passkey}{query}"),
            path => format!("{path}/{passkey}{query}"),
        };
        self
    }
}

impl FromStr for Url {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        if !text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
            return Err(UrlError::Character);
        }
        if !text.contains("://") {
            return Err(UrlError::NoScheme);
        }
        let uri: Uri = text.parse().map_err(|_| UrlError::Form)?;
        let name = uri.scheme_str().ok_or(UrlError::Form)?;
        let scheme: Scheme = name.parse().map_err(|_| UrlError::Form)?;
        let authority = uri.authority().ok_or(UrlError::Form)?.as_str();
        let host = uri.host().filter(|host| !host.is_empty()).ok_or(UrlError::Form)?;
        // `Uri` omits an invalid port, and a user part from the host: both are errors here.
        let port = match authority.strip_prefix(host).ok_or(UrlError::Form)? {
            "" => scheme.port().ok_or(UrlError::NoPort)?,
            port => {
                let digits = port.strip_prefix(':').ok_or(UrlError::Form)?;
                digits.parse().ok().filter(|port| *port > 0).ok_or(UrlError::Port)?
            }
        };
        let bare = host.strip_prefix('[').and_then(|address| address.strip_suffix(']'));
        let is_host = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        let is_valid = match bare {
            Some(address) => address.parse::<Ipv6Addr>().is_ok(),
            None => host.bytes().all(is_host), // `Uri` accepts all of RFC 3986
        };
        if !is_valid {
            return Err(UrlError::Form);
        }
        // The path as it was given: `Uri` adds a slash if there is none.
        let path = &text[name.len() + "://".len() + authority.len()..];
        if path.len() > PATH_BYTES_MAX {
            return Err(UrlError::LongPath);
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

    fn parse(text: &str) -> Result<Url, UrlError> {
        text.parse()
    }

    #[test]
    fn urls_are_told_apart() {
        let url = parse("udp://tracker.example:6969/announce?key=1").unwrap();
        assert_eq!(
            (url.authority().as_str(), &*url.path),
            ("tracker.example:6969", "/announce?key=1")
        );
        let url = parse("udp://[::1]:6969").unwrap();
        assert_eq!((url.authority().as_str(), &*url.path, &*url.host), ("[::1]:6969", "", "::1"));
        let url = parse("https://a.example?x").unwrap();
        assert_eq!((url.scheme, url.port, url.target().as_str()), (Scheme::Https, 443, "/?x"));
        let url = parse("ws://[::1]/").unwrap();
        assert_eq!((url.scheme, url.authority().as_str()), (Scheme::Ws, "[::1]:80"));
        let url = parse("WSS://a_b.example:1/x/a_b.example:1").unwrap();
        assert_eq!((url.scheme, url.port, &*url.path), (Scheme::Wss, 1, "/x/a_b.example:1"));
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
            "http://a:x/",
            "http://a:/",
            "http://[::1]x/",
            "http://[a]/",
            "udp://a$b:1",
            "http://a%20b/",
            "http://a:80@a/",
            "http://a@a:80/",
            "/announce",
            "a",
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

    #[test]
    fn what_is_missing_is_named() {
        for (text, error) in [
            ("127.0.0.1:6969", UrlError::NoScheme),
            ("tracker.example", UrlError::NoScheme),
            ("udp://127.0.0.1", UrlError::NoPort),
            ("udp://[::1]/announce", UrlError::NoPort),
            ("http://a:99999", UrlError::Port),
            ("udp://a:0", UrlError::Port),
            ("ftp://a:1", UrlError::Form),
        ] {
            assert_eq!(parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_passkey_is_the_last_part_of_the_path() {
        for (text, path) in [
            ("udp://a:1", "/announce/KEY"),
            ("http://a/", "/announce/KEY"),
            ("http://a?x=/", "/announce/KEY?x=/"),
            ("http://a/x/announce?y=1", "/x/announce/KEY?y=1"),
            ("ws://a/announce/", "/announce/KEY"),
        ] {
            let url = parse(text).unwrap().with_passkey("KEY");
            assert_eq!((&*url.path, &*url.text), (path, text));
        }
    }
}
