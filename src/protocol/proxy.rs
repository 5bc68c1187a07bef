//! The PROXY protocol, versions 1 and 2 (haproxy's proxy-protocol.txt): a header in front of a
//! connection's own bytes, in which a load balancer names the source of the connection.
//!
//! ```text
//! v2  0 signature (12) | 12 version 2 and command (1) | 13 family and transport (1)
//!     14 length of the rest (2) | 16 addresses, ports, TLVs
//! v1  PROXY TCP4 source destination source-port destination-port \r\n      at most 107 bytes
//! ```
//!
//! A sender of such a header can name any source, so the header may only be read if the socket's
//! address is trusted. Written here, because the result of ppp (2.3) depends on where packets end,
//! and it accepts a line without CR; the last test has the cases.
#![warn(clippy::indexing_slicing)]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Most bytes of a header of version 2: 16, IPv6 addresses, and room for what balancers add.
pub const HEADER_BYTES_MAX: usize = 536;

/// Most bytes of a header of version 1, line end included.
const LINE_BYTES_MAX: usize = 107;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
const FIXED_BYTES: usize = 16;
const WORD: &[u8] = b"PROXY ";

/// The start of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preamble {
    /// More bytes are needed to decide.
    More,
    /// There is no PROXY header. These are the connection's own bytes.
    Absent,
    /// A PROXY header.
    Header {
        /// Bytes to remove from the front of the input.
        bytes: usize,
        /// The source of the connection, unmapped. `None` if the balancer names none: the
        /// connection is its own (a health check), or has a transport without addresses.
        source: Option<SocketAddr>,
    },
}

/// A PROXY header that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader;

/// Parses the first bytes of a connection.
///
/// # Errors
/// [`BadHeader`], as soon as the header is found to be invalid.
pub fn parse(bytes: &[u8]) -> Result<Preamble, BadHeader> {
    if begins(bytes, &SIGNATURE) {
        return binary(bytes);
    }
    if begins(bytes, WORD) {
        return line(bytes);
    }
    Ok(Preamble::Absent)
}

/// Whether the first bytes of a connection can only be a PROXY header, which no client sends.
pub fn is_header(bytes: &[u8]) -> bool {
    bytes.starts_with(&SIGNATURE)
        || bytes.starts_with(b"PROXY TCP")
        || bytes.starts_with(b"PROXY U")
}

/// Whether one of `bytes` and `beginning` is a prefix of the other.
fn begins(bytes: &[u8], beginning: &[u8]) -> bool {
    bytes.iter().zip(beginning).all(|(a, b)| a == b)
}

fn binary(bytes: &[u8]) -> Result<Preamble, BadHeader> {
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED_BYTES>() else {
        return Ok(Preamble::More);
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    let local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(BadHeader),
    };
    if FIXED_BYTES + length > HEADER_BYTES_MAX {
        return Err(BadHeader);
    }
    let Some(rest) = rest.get(..length) else { return Ok(Preamble::More) };
    let source = match family {
        _ if local => None,
        0x11 => Some(source_of::<4, 12>(rest).ok_or(BadHeader)?),
        0x21 => Some(source_of::<16, 36>(rest).ok_or(BadHeader)?),
        _ => None,
    };
    Ok(Preamble::Header { bytes: FIXED_BYTES + length, source })
}

/// The source in a block of addresses: source (`ADDRESS` bytes), destination, source port,
/// destination port.
fn source_of<const ADDRESS: usize, const BLOCK: usize>(rest: &[u8]) -> Option<SocketAddr>
where
    IpAddr: From<[u8; ADDRESS]>,
{
    let block = rest.first_chunk::<BLOCK>()?;
    let (address, tail) = block.split_first_chunk::<ADDRESS>()?;
    let port = u16::from_be_bytes(*tail.get(ADDRESS..)?.first_chunk()?);
    Some(SocketAddr::new(IpAddr::from(*address).to_canonical(), port))
}

fn line(bytes: &[u8]) -> Result<Preamble, BadHeader> {
    let window = bytes.get(..LINE_BYTES_MAX).unwrap_or(bytes);
    let Some(end) = memchr::memmem::find(window, b"\r\n") else {
        return if window.len() < LINE_BYTES_MAX { Ok(Preamble::More) } else { Err(BadHeader) };
    };
    let text = bytes.get(WORD.len()..end).and_then(|it| std::str::from_utf8(it).ok());
    let mut words = text.ok_or(BadHeader)?.split(' ');
    let source = match words.next() {
        Some("UNKNOWN") => None,
        Some("TCP4") => Some(named::<Ipv4Addr>(words).ok_or(BadHeader)?),
        Some("TCP6") => Some(named::<Ipv6Addr>(words).ok_or(BadHeader)?),
        _ => return Err(BadHeader),
    };
    Ok(Preamble::Header { bytes: end + "\r\n".len(), source })
}

/// The source in the words after the family. The destination must be present, and is ignored.
fn named<'a, A>(mut words: impl Iterator<Item = &'a str>) -> Option<SocketAddr>
where
    A: std::str::FromStr + Into<IpAddr>,
{
    let mut address = || words.next()?.parse::<A>().ok();
    let (source, _destination) = (address()?.into(), address()?);
    let mut port = || words.next()?.parse::<u16>().ok();
    let (port, _destination_port) = (port()?, port()?);
    words.next().is_none().then(|| SocketAddr::new(source.to_canonical(), port))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test may stop")]
mod tests {
    use ppp::{HeaderResult, PartialResult as _, v1, v2};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let length = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, rest].concat()
    }

    fn addresses(source: SocketAddr) -> Vec<u8> {
        let port = source.port().to_be_bytes();
        match source.ip() {
            IpAddr::V4(ipv4) => [&ipv4.octets()[..], &[9; 4], &port, &[1, 187]].concat(),
            IpAddr::V6(ipv6) => [&ipv6.octets()[..], &[9; 16], &port, &[1, 187]].concat(),
        }
    }

    fn read(bytes: &[u8]) -> (usize, Option<String>) {
        match parse(bytes) {
            Ok(Preamble::Header { bytes, source }) => (bytes, source.map(|it| it.to_string())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_families_are_read_and_their_tlvs_skipped() {
        let v4 = addresses("198.51.100.7:4711".parse().unwrap());
        let bytes = [header(0x21, 0x11, &v4), b"GET /".to_vec()].concat();
        assert_eq!(read(&bytes), (28, Some("198.51.100.7:4711".into())));
        let v6 = addresses("[2001:db8::7]:4712".parse().unwrap());
        let tlvs = [v6, vec![0x04, 0, 3, 1, 2, 3]].concat();
        assert_eq!(read(&header(0x21, 0x21, &tlvs)), (58, Some("[2001:db8::7]:4712".into())));
        let mapped = addresses("[::ffff:198.51.100.7]:1".parse().unwrap());
        assert_eq!(read(&header(0x21, 0x21, &mapped)), (52, Some("198.51.100.7:1".into())));
    }

    #[test]
    fn a_balancer_that_speaks_for_itself_names_nobody() {
        let v4 = addresses("198.51.100.7:4711".parse().unwrap());
        assert_eq!(read(&header(0x20, 0x11, &v4)), (28, None));
        assert_eq!(read(&header(0x20, 0, &[])), (16, None));
        for family in [0x00, 0x31, 0x32, 0x12, 0x22] {
            assert_eq!(read(&header(0x21, family, &[0; 216])), (232, None));
        }
    }

    #[test]
    fn headers_that_cannot_be_are_refused() {
        let v4 = addresses("198.51.100.7:4711".parse().unwrap());
        for bad in [
            header(0x11, 0x11, &v4),
            header(0x22, 0x11, &v4),
            header(0x21, 0x11, &v4[..11]),
            header(0x21, 0x21, &[0; 35]),
            header(0x21, 0x11, &[0; HEADER_BYTES_MAX - FIXED_BYTES + 1]),
        ] {
            assert_eq!(parse(&bad), Err(BadHeader), "{bad:?}");
        }
        let longest = header(0x21, 0x11, &[1; HEADER_BYTES_MAX - FIXED_BYTES]);
        assert_eq!(read(&longest).0, HEADER_BYTES_MAX);
    }

    #[test]
    fn the_line_of_version_1_is_read() {
        let bytes = b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 80\r\nGET / HTTP/1.1\r\n";
        assert_eq!(read(bytes), (43, Some("198.51.100.7:4711".into())));
        let bytes = b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 80\r\n";
        assert_eq!(read(bytes), (44, Some("[2001:db8::7]:4711".into())));
        assert_eq!(read(b"PROXY UNKNOWN ffff:: :: 1 2\r\n"), (29, None));
        assert_eq!(read(b"PROXY UNKNOWN\r\n"), (15, None));
        for bad in [
            "PROXY \r\n",
            "PROXY TCP5 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 2001:db8::7 2.2.2.2 1 2\r\n",
            "PROXY TCP6 1.1.1.1 2.2.2.2 1 2\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 65536\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1\r\n",
            "PROXY TCP4 1.1.1.1 2.2.2.2 1 2 3\r\n",
            "PROXY  TCP4 1.1.1.1 2.2.2.2 1 2\r\n",
        ] {
            assert_eq!(parse(bad.as_bytes()), Err(BadHeader), "{bad}");
        }
        let long = [b"PROXY UNKNOWN", &[b' '; 100][..]].concat();
        assert_eq!(parse(&long), Err(BadHeader));
    }

    #[test]
    fn other_bytes_are_the_connections_own() {
        for bytes in [&b"GET / HTTP/1.1\r\n"[..], b"POST", b"\x16\x03\x01", b"\r\n\r\nGET", b"PR "]
        {
            assert_eq!(parse(bytes), Ok(Preamble::Absent), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn every_truncation_wants_more(
            source in any::<SocketAddr>(),
            tlvs in vec(any::<u8>(), 0..99),
        ) {
            let rest = [addresses(source), tlvs].concat();
            let whole = header(0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, &rest);
            for end in 0..whole.len() {
                prop_assert_eq!(parse(&whole[..end]), Ok(Preamble::More));
            }
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let (address, port) = (source.ip(), source.port());
            let whole = format!("PROXY {family} {address} {address} {port} 80\r\n");
            for end in 0..whole.len() {
                prop_assert_eq!(parse(&whole.as_bytes()[..end]), Ok(Preamble::More));
            }
            let unmapped = Some(SocketAddr::new(address.to_canonical(), port));
            let expected = Preamble::Header { bytes: whole.len(), source: unmapped };
            prop_assert_eq!(parse(whole.as_bytes()), Ok(expected));
        }

        #[test]
        fn headers_that_ppp_writes_are_read(
            source in any::<SocketAddr>(),
            value in vec(any::<u8>(), 0..99),
        ) {
            let (both, unmapped) = ((source, source), source.ip().to_canonical());
            let expected = Some(SocketAddr::new(unmapped, source.port()).to_string());
            let line = v1::Addresses::from(both).to_string();
            prop_assert_eq!(read(line.as_bytes()), (line.len(), expected.clone()));
            for command in [v2::Command::Local, v2::Command::Proxy] {
                let version = v2::Version::Two | command;
                let header = v2::Builder::with_addresses(version, v2::Protocol::Stream, both);
                let bytes = header.write_tlv(v2::Type::NoOp, &value).unwrap().build().unwrap();
                let expected = expected.clone().filter(|_| command == v2::Command::Proxy);
                prop_assert_eq!(read(&bytes), (bytes.len(), expected));
            }
        }

        #[test]
        fn no_preamble_is_too_strange(rest in vec(any::<u8>(), 0..200)) {
            let _ = (parse(&rest), parse(&[&SIGNATURE[..], &rest].concat()));
            let _ = parse(&[WORD, &rest].concat());
        }
    }

    #[test]
    fn ppp_takes_a_line_without_cr_and_refuses_headers_that_are_allowed() {
        // ppp accepts a line without CR, but only if nothing follows.
        let bare = b"PROXY TCP4 6.6.6.6 192.0.2.1 4711 80 \n";
        assert!(matches!(HeaderResult::parse(bare), HeaderResult::V1(Ok(_))));
        let followed = [&bare[..], b"GET /\r\n"].concat();
        assert!(matches!(HeaderResult::parse(&followed), HeaderResult::V1(Err(_))));
        assert_eq!((parse(bare), parse(&followed)), (Ok(Preamble::More), Err(BadHeader)));
        // For ppp, a line whose last port is in the next packet is invalid, not incomplete.
        let cut = b"PROXY TCP4 198.51.100.7 192.0.2.1 4711 ";
        assert!(HeaderResult::parse(cut).is_complete());
        assert_eq!(parse(cut), Ok(Preamble::More));
        // Words after UNKNOWN are to be ignored. With five of them, ppp never finds the end of the
        // line.
        let unknown = b"PROXY UNKNOWN a b c d e\r\n";
        assert!(HeaderResult::parse(unknown).is_incomplete());
        assert_eq!(read(unknown), (unknown.len(), None));
        // The family of a balancer's own connection is to be ignored.
        let own = header(0x20, 0x11, &[]);
        assert!(HeaderResult::parse(&own).is_complete() && v2::Header::try_from(&own[..]).is_err());
        assert_eq!(read(&own), (16, None));
    }
}
