//! HTTP/1.0 and 1.1 (RFC 9112), as far as a tracker needs them: the head of a request, borrowed
//! from the connection's bytes, and the head of a response. Requests have no body.
//!
//! The request line is parsed here, because clients send targets that a strict parser such as
//! httparse's refuses (`GET /announce ?info_hash=…`). httparse reads the header fields.

mod fields;
pub mod forwarded;
mod query;
mod response;

use httparse::{EMPTY_HEADER, Header, Status};
use memchr::{memchr, memchr2, memrchr};

pub use super::SCRAPE_HASHES_MAX;
pub use fields::{HeaderFields, tokens};
pub use query::{AnnounceQuery, BadBytes, QueryError, decode_20, has, pairs};
pub use query::{announce, claimed_address, scrape};
pub use response::HttpResponseHead;

use crate::types::Rejected;

/// Most bytes of the head of a request, request line included.
pub const HEAD_BYTES_MAX: usize = 8 * 1024;

/// Most header fields of a request.
pub const HEADERS_MAX: usize = 64;

/// Most bytes of the target of a request that is not a scrape.
pub const TARGET_BYTES_MAX: usize = 2 * 1024;

/// Most bytes of the target of a scrape: [`SCRAPE_HASHES_MAX`] info-hashes with every byte escaped.
pub const SCRAPE_TARGET_BYTES_MAX: usize = 6 * 1024;

const _: () = {
    let info_hash = "&info_hash=".len() + 20 * "%00".len();
    assert!(
        SCRAPE_HASHES_MAX * info_hash + 512 <= SCRAPE_TARGET_BYTES_MAX,
        "with path and passkey"
    );
    assert!(SCRAPE_TARGET_BYTES_MAX + 2 * 1024 <= HEAD_BYTES_MAX, "with header fields");
};

/// Longer than any registered method, in bytes.
const METHOD_BYTES_MAX: usize = 32;

/// The method of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// A response with its body.
    Get,
    /// A response without its body.
    Head,
    /// Any other method. It is not served.
    Other,
}

/// Room for the header fields of one request.
pub struct Headers<'a>([Header<'a>; HEADERS_MAX]);

impl Default for Headers<'_> {
    fn default() -> Self {
        Self([EMPTY_HEADER; HEADERS_MAX])
    }
}

/// The head of a request, borrowed from the input.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: Method,
    /// The target up to the first `?`, without scheme and host. Empty for [`Method::Other`].
    pub path: &'a [u8],
    /// The target after the first `?`. It shows whether the client expects a bencoded failure, even
    /// if its method is not served.
    pub query: &'a [u8],
    /// Whether the target contains control characters, which are not allowed (RFC 9112, 3.2). If
    /// the request is clear in spite of them, the client receives the error in its own protocol.
    pub has_controls: bool,
    /// Whether this is HTTP/1.1, not 1.0.
    pub http_1_1: bool,
    /// The header fields, in order.
    pub headers: &'a [Header<'a>],
    /// Length of the head in bytes.
    pub bytes: usize,
}

impl<'a> RequestHead<'a> {
    /// Reads the first head in `bytes`. `None`: more bytes are needed.
    ///
    /// # Errors
    /// [`Rejected::BadRequest`], [`Rejected::LongTarget`] or [`Rejected::LongHead`], as soon as no
    /// further bytes could make it valid.
    pub fn parse<'b: 'a>(
        bytes: &'b [u8],
        headers: &'a mut Headers<'b>,
    ) -> Result<Option<Self>, Rejected> {
        let bytes = &bytes[..bytes.len().min(HEAD_BYTES_MAX)];
        let incomplete = || match bytes.len() {
            HEAD_BYTES_MAX => Err(Rejected::LongHead),
            _ => Ok(None),
        };
        // RFC 9112, 2.2: empty lines before a request are ignored.
        let blank = bytes.iter().take_while(|it| matches!(it, b'\r' | b'\n')).count();
        let Some(line) = memchr(b'\n', &bytes[blank..]) else {
            check_beginning(&bytes[blank..])?;
            return incomplete();
        };
        let end = blank + line + 1;
        let line = RequestLine::parse(&bytes[blank..end])?;
        match httparse::parse_headers(&bytes[end..], &mut headers.0) {
            Ok(Status::Partial) => incomplete(),
            Ok(Status::Complete((length, headers))) => Ok(Some(Self {
                method: line.method,
                path: line.path,
                query: line.query,
                has_controls: line.has_controls,
                http_1_1: line.http_1_1,
                headers,
                bytes: end + length,
            })),
            Err(httparse::Error::TooManyHeaders) => Err(Rejected::LongHead),
            Err(_) => Err(Rejected::BadRequest),
        }
    }

    /// The values of all header fields of this name, in order.
    pub fn values(&self, name: &'static str) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        values(self.headers, name)
    }
}

/// The values of all header fields of this name, in order.
pub fn values<'a>(
    headers: &'a [Header<'a>],
    name: &'static str,
) -> impl Iterator<Item = &'a [u8]> + use<'a> {
    headers.iter().filter(|it| it.name.eq_ignore_ascii_case(name)).map(|it| it.value)
}

/// Checks the beginning of a request line whose end has not arrived.
fn check_beginning(line: &[u8]) -> Result<(), Rejected> {
    let (method, target) = match memchr(b' ', line) {
        Some(at) => (&line[..at], &line[at + 1..]),
        None => (line, &[][..]),
    };
    check_method(method)?;
    check_target(target.strip_suffix(b"\r").unwrap_or(target))
}

/// Whether an invalid request was an attempt to announce or scrape. Looks only at the part of the
/// first line that has arrived in every case when it is refused.
pub fn begins_with_torrent(bytes: &[u8]) -> bool {
    let blank = bytes.iter().take_while(|it| matches!(it, b'\r' | b'\n')).count();
    let line = &bytes[blank..bytes.len().min(blank + TARGET_BYTES_MAX)];
    let line = &line[..memchr(b'\n', line).unwrap_or(line.len())];
    line.starts_with(b"GET ") && memchr::memmem::find(line, b"info_hash=").is_some()
}

/// Checks the length of what follows the method on the line: a target, a blank, a version.
fn check_target(rest: &[u8]) -> Result<(), Rejected> {
    match rest.len() <= target_bytes_max(rest) + " HTTP/1.1".len() {
        true => Ok(()),
        false => Err(Rejected::LongTarget),
    }
}

/// RFC 9110, 9.1: a method is a token.
fn check_method(method: &[u8]) -> Result<(), Rejected> {
    let is_token = |it: &u8| it.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(it);
    match method.len() <= METHOD_BYTES_MAX && method.iter().all(is_token) {
        true => Ok(()),
        false => Err(Rejected::BadRequest),
    }
}

/// Most bytes of this target. Scrapes name many torrents at once; no other request needs as much.
fn target_bytes_max(target: &[u8]) -> usize {
    if target.len() <= TARGET_BYTES_MAX {
        return TARGET_BYTES_MAX;
    }
    // Decided by the part that has arrived in every case when a target is found to be too long.
    let path = &target[..memchr(b'?', &target[..TARGET_BYTES_MAX]).unwrap_or(0)];
    let scrape = memchr::memmem::find(path, b"/scrape").is_some();
    if scrape { SCRAPE_TARGET_BYTES_MAX } else { TARGET_BYTES_MAX }
}

/// The first line of a request.
struct RequestLine<'a> {
    method: Method,
    path: &'a [u8],
    query: &'a [u8],
    has_controls: bool,
    http_1_1: bool,
}

impl<'a> RequestLine<'a> {
    /// Parses a whole line. The target is everything between the first blank and the last: some
    /// clients leave blanks in it.
    fn parse(line: &'a [u8]) -> Result<Self, Rejected> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let first = memchr(b' ', line).ok_or(Rejected::BadRequest)?;
        let (method, rest) = (&line[..first], &line[first + 1..]);
        check_method(method)?;
        check_target(rest)?;
        let last = memrchr(b' ', rest).unwrap_or(rest.len());
        let target = &rest[..last];
        let http_1_1 = match rest.get(last + 1..) {
            Some(b"HTTP/1.1") => true,
            Some(b"HTTP/1.0") => false,
            _ => return Err(Rejected::BadRequest),
        };
        let method = match method {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            _ => Method::Other,
        };
        if method == Method::Other {
            let query = memchr(b'?', target).map_or(&[][..], |at| &target[at + 1..]);
            return Ok(Self { method, path: b"", query, has_controls: false, http_1_1 });
        }
        let has_controls = has_controls(target)?; // before the target is trimmed
        let target = origin_form(target.trim_ascii()).ok_or(Rejected::BadRequest)?;
        let (path, query) = match memchr(b'?', target) {
            Some(at) => (target[..at].trim_ascii_end(), &target[at + 1..]),
            None => (target, &[][..]),
        };
        Ok(Self { method, path, query, has_controls, http_1_1 })
    }
}

/// Whether a target contains control characters. NUL and CR are refused, because a proxy in front
/// may have treated them as a line end (RFC 9112, 2.2).
fn has_controls(target: &[u8]) -> Result<bool, Rejected> {
    // Always reads the whole target: a loop without an early exit is vectorised.
    let found = target.iter().fold(false, |found, it| found | it.is_ascii_control());
    match found && memchr2(b'\0', b'\r', target).is_some() {
        true => Err(Rejected::BadRequest),
        false => Ok(found),
    }
}

/// Path and query of a target. Scheme and host of an absolute target (RFC 9112, 3.2.2) are dropped.
/// `None` if the target has neither form.
fn origin_form(target: &[u8]) -> Option<&[u8]> {
    if let [b'/' | b'?', ..] = target {
        return Some(target); // without a path: the announce URL had none
    }
    let scheme = ["http://", "https://"].into_iter().find(|prefix| {
        target
            .get(..prefix.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(prefix.as_bytes()))
    })?;
    let rest = &target[scheme.len()..];
    let host = rest.iter().position(|it| matches!(it, b'/' | b'?')).unwrap_or(rest.len());
    (host > 0).then(|| &rest[host..])
}

#[cfg(test)]
mod tests;
