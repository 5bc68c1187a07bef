//! HTTP/1.1 for clients of trackers: encodes requests, and decodes the framing of responses.
//!
//! It is our own code because the load tester sends and reads in buffers that it reuses, and
//! `skep probe` judges the bytes themselves. Requests to our own admin listener use hyper
//! (`cli::admin_client`).

use crate::protocol::udp::client::Announcement;
use crate::types::{Event, InfoHash};

/// The longest head of a response that clients should accept, in bytes.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Maximum number of headers of a response.
const HEADERS_MAX: usize = 64;

/// The head of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The status code, usually 200.
    pub status: u16,
    /// Its length in bytes, including the blank line.
    pub bytes: usize,
    /// How the body ends.
    pub body: BodyEnd,
    /// Whether the connection can be reused.
    pub keep_alive: bool,
    /// Whether the body is compressed.
    pub encoded: bool,
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// After this many bytes.
    Length(usize),
    /// With a chunk of length 0.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// The bytes are not an HTTP response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpResponseError;

/// Parses a head; `None` if more bytes are needed.
///
/// # Errors
/// If it is not a head, or is too long.
#[inline]
pub fn head(bytes: &[u8]) -> Result<Option<ResponseHead>, HttpResponseError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        _ => return Err(HttpResponseError),
    };
    let mut response_head = ResponseHead {
        status: response.code.ok_or(HttpResponseError)?,
        bytes: length,
        body: BodyEnd::UntilClose,
        keep_alive: response.version == Some(1),
        encoded: false,
    };
    for header in response.headers.iter() {
        let value = header.value.trim_ascii();
        let named = |name| header.name.eq_ignore_ascii_case(name);
        if named("content-length") {
            let text = std::str::from_utf8(value).map_err(|_| HttpResponseError)?;
            response_head.body = BodyEnd::Length(text.parse().map_err(|_| HttpResponseError)?);
        } else if named("connection") {
            if value.eq_ignore_ascii_case(b"close") {
                response_head.keep_alive = false;
            } else if value.eq_ignore_ascii_case(b"keep-alive") {
                response_head.keep_alive = true;
            }
        } else if named("transfer-encoding") {
            response_head.body = BodyEnd::Chunked;
        } else if named("content-encoding") {
            response_head.encoded = !value.eq_ignore_ascii_case(b"identity");
        }
    }
    response_head.keep_alive &= response_head.body != BodyEnd::UntilClose;
    Ok(Some(response_head))
}

/// Joins the chunks of a body; `None` if more bytes are needed.
///
/// # Errors
/// If they are not chunks.
pub fn unchunk(mut bytes: &[u8]) -> Result<Option<Vec<u8>>, HttpResponseError> {
    let mut body = Vec::new();
    loop {
        let (head, length) = match httparse::parse_chunk_size(bytes) {
            Ok(httparse::Status::Complete(size)) => size,
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(_) => return Err(HttpResponseError),
        };
        let length = usize::try_from(length).map_err(|_| HttpResponseError)?;
        bytes = &bytes[head..];
        if length == 0 {
            return Ok(Some(body));
        }
        let Some((chunk, rest)) = bytes.split_at_checked(length) else { return Ok(None) };
        body.extend_from_slice(chunk);
        if rest.len() < 2 {
            return Ok(None);
        }
        bytes = rest.strip_prefix(b"\r\n").ok_or(HttpResponseError)?;
    }
}

/// The target of scrapes, by BEP 48's convention: the last part of the path begins with `announce`,
/// which becomes `scrape`. `None` if it does not.
pub fn scrape_target(target: &str) -> Option<String> {
    let path_bytes = target.find('?').unwrap_or(target.len());
    let last = target[..path_bytes].rfind('/')? + 1;
    let rest = target[last..].strip_prefix("announce")?;
    Some(format!("{}scrape{rest}", &target[..last]))
}

/// Appends the separator between a target and a first parameter of ours.
pub fn push_separator(target: &mut Vec<u8>) {
    target.push(if target.contains(&b'?') { b'&' } else { b'?' });
}

/// Appends an announce's parameters, as libtorrent orders them.
pub fn push_announce(out: &mut Vec<u8>, announcement: &Announcement) {
    out.extend(b"info_hash=");
    push_escaped(out, &announcement.info_hash.0);
    out.extend(b"&peer_id=");
    push_escaped(out, &announcement.peer_id.0);
    let number = |out: &mut Vec<u8>, name: &[u8], value: u64| {
        out.extend(name);
        push_number(out, value);
    };
    number(out, b"&port=", announcement.port.into());
    number(out, b"&uploaded=", announcement.uploaded);
    number(out, b"&downloaded=", announcement.downloaded);
    number(out, b"&left=", announcement.left);
    out.extend(b"&key=");
    for byte in announcement.key {
        out.extend([HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
    }
    out.extend_from_slice(match announcement.event {
        Event::None => b"",
        Event::Started => b"&event=started",
        Event::Completed => b"&event=completed",
        Event::Stopped => b"&event=stopped",
        Event::Paused => b"&event=paused",
    });
    if let Ok(numwant) = u64::try_from(announcement.numwant) {
        number(out, b"&numwant=", numwant);
    }
    out.extend(b"&compact=1");
}

/// Appends a scrape's parameters.
pub fn push_scrape(out: &mut Vec<u8>, torrents: impl Iterator<Item = InfoHash>) {
    for (index, torrent) in torrents.enumerate() {
        out.extend_from_slice(if index == 0 { b"info_hash=" } else { b"&info_hash=" });
        push_escaped(out, &torrent.0);
    }
}

const HEX: [u8; 16] = *b"0123456789ABCDEF";

/// Appends bytes, all but the unreserved ones escaped (RFC 3986).
fn push_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'-' | b'.' | b'_' | b'~' => out.push(*byte),
            _ => {
                out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
            }
        }
    }
}

/// Appends a number in decimal.
pub fn push_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(value % 10).unwrap_or(0);
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::PeerId;

    #[test]
    fn heads_tell_how_bodies_end() {
        let text = b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 12\r\n\r\nd8:";
        let response_head = head(text).unwrap().unwrap();
        assert_eq!(
            (response_head.status, response_head.body, response_head.keep_alive),
            (200, BodyEnd::Length(12), true)
        );
        assert_eq!(&text[response_head.bytes..], b"d8:");
        let close = b"HTTP/1.1 404 Not Found\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        assert!(!head(close).unwrap().unwrap().keep_alive);
        let old = head(b"HTTP/1.0 200 OK\r\n\r\n").unwrap().unwrap();
        assert_eq!((old.body, old.keep_alive), (BodyEnd::UntilClose, false));
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nA: b"), Ok(None));
        assert_eq!(head(b"SSH-2.0-OpenSSH\r\n"), Err(HttpResponseError));
        assert_eq!(head(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n"), Err(HttpResponseError));
        let endless = [b"HTTP/1.1 200 OK\r\nA: ".to_vec(), vec![b'x'; HEAD_BYTES_MAX]].concat();
        assert_eq!(head(&endless), Err(HttpResponseError));
    }

    #[test]
    fn chunks_are_put_together() {
        let whole = b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(unchunk(whole), Ok(Some(b"abcde".to_vec())));
        for cut in [0, 1, 5, 8, whole.len() - 6] {
            assert_eq!(unchunk(&whole[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(unchunk(b"zz\r\n"), Err(HttpResponseError));
        assert_eq!(unchunk(b"1\r\nabc\r\n"), Err(HttpResponseError));
        assert_eq!(unchunk(b"ffffffffffffffff\r\na"), Ok(None));
    }

    #[test]
    fn scrapes_have_a_target_by_convention_only() {
        let of = |it| scrape_target(it);
        assert_eq!(of("/announce").as_deref(), Some("/scrape"));
        assert_eq!(of("/x/announce.php?k=/announce").as_deref(), Some("/x/scrape.php?k=/announce"));
        assert_eq!(of("/announce/key"), None);
        assert_eq!(of("/"), None);
        assert_eq!(of("/a?b=/announce"), None);
    }

    #[test]
    fn announces_are_written_as_clients_write_them() {
        let mut out = b"/announce".to_vec();
        push_separator(&mut out);
        let announcement = Announcement {
            info_hash: InfoHash(*b"\0 +/azAZ09-._~\xff%&=?#"),
            peer_id: PeerId([b'p'; 20]),
            downloaded: 0,
            left: u64::MAX,
            uploaded: 12,
            event: Event::Started,
            numwant: -1,
            port: 6881,
            key: [1, 2, 0xab, 0xff],
        };
        push_announce(&mut out, &announcement);
        let wanted = "/announce?info_hash=%00%20%2B%2FazAZ09-._~%FF%25%26%3D%3F%23\
                      &peer_id=pppppppppppppppppppp&port=6881&uploaded=12&downloaded=0\
                      &left=18446744073709551615&key=0102ABFF&event=started&compact=1";
        assert_eq!(String::from_utf8(out).unwrap(), wanted);
    }
}
