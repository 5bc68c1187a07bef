//! UDP datagrams in Ethernet frames, as an AF_XDP socket exchanges them: headers are read and
//! written here, and nowhere else outside the kernel.
//!
//! ```text
//! Ethernet  0 to (6)  6 from (6)  12 [0x8100, VLAN tag]  type
//! IPv4      0 version  2 bytes  4 id  6 fragment  8 hops  9 17  10 sum  12 source  16 target
//! IPv6      0 version  4 payload's bytes  6 17  7 hops  8 source  24 target
//! UDP       0 source port  2 target port  4 bytes  6 sum
//! ```
//!
//! What is understood is what the program of [`super::offload`] understands. A response has headers
//! of the same length as its request, so that its payload can be written before they are.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

const MACS_BYTES: usize = 12;
const TYPE_BYTES: usize = 2;
const VLAN_TAG_BYTES: usize = 4;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;

/// Most bytes of headers before a payload.
pub const HEADERS_BYTES_MAX: usize =
    MACS_BYTES + VLAN_TAG_BYTES + TYPE_BYTES + IPV6_BYTES + UDP_BYTES;

const TYPE_VLAN: u16 = 0x8100;
const TYPE_IPV4: u16 = 0x0800;
const TYPE_IPV6: u16 = 0x86dd;
const PROTOCOL_UDP: u8 = 17;
const DO_NOT_FRAGMENT: u16 = 0x4000;
/// Hops of a response: the usual of Linux.
const HOPS: u8 = 64;
/// What the sum over data and its checksum is.
const SUM_RIGHT: u16 = 0xffff;

/// Why a frame holds no datagram to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Anything but a plain UDP datagram from one host to another: another protocol, two VLAN tags,
    /// options, a fragment, an extension header, lengths that contradict each other, a source that
    /// cannot be answered.
    #[error("not a plain UDP datagram")]
    NotUnderstood,
    /// The checksum of IPv4 or UDP is wrong, or UDP has none over IPv6.
    #[error("wrong checksum")]
    BadChecksum,
}

/// A datagram in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameDatagram {
    source: SocketAddr,
    target: SocketAddr,
    payload: Range<usize>,
}

/// What a packet of either family is, before UDP is looked at.
struct Packet<'a> {
    source: IpAddr,
    target: IpAddr,
    udp: &'a [u8],
    /// Sum of the pseudo-header that UDP's checksum includes.
    pseudo_sum: u64,
}

impl FrameDatagram {
    /// Reads the headers of a frame, and verifies its checksums.
    ///
    /// # Errors
    /// [`FrameError`].
    pub fn parse(frame: &[u8]) -> Result<Self, FrameError> {
        let (ip_at, kind) = ethernet(frame).ok_or(FrameError::NotUnderstood)?;
        let (packet, ip_bytes) = match kind {
            TYPE_IPV4 => (ipv4(&frame[ip_at..])?, IPV4_BYTES),
            TYPE_IPV6 => (ipv6(&frame[ip_at..])?, IPV6_BYTES),
            _ => return Err(FrameError::NotUnderstood),
        };
        let (source_port, target_port) = packet.ports()?;
        let payload_at = ip_at + ip_bytes + UDP_BYTES;
        Ok(Self {
            source: SocketAddr::new(packet.source, source_port),
            target: SocketAddr::new(packet.target, target_port),
            payload: payload_at..payload_at - UDP_BYTES + packet.udp.len(),
        })
    }

    /// The sender.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// The address that it was sent to.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    /// Where in the frame the payload is. The payload of a response begins at the same offset.
    pub fn payload(&self) -> Range<usize> {
        self.payload.clone()
    }

    /// Writes the headers of a response in front of its payload, which is in `frame` already, and
    /// returns the bytes of the whole frame. `request` is the frame that `self` was parsed from.
    ///
    /// # Panics
    /// If a frame is too short, or the response longer than a datagram can be.
    pub fn write_response(&self, request: &[u8], payload_bytes: usize, frame: &mut [u8]) -> usize {
        let udp_at = self.payload.start - UDP_BYTES;
        let end = self.payload.start + payload_bytes;
        let ip_bytes = if self.source.is_ipv4() { IPV4_BYTES } else { IPV6_BYTES };
        let ip_at = udp_at - ip_bytes;
        exchange(request, frame, 0, 6);
        frame[MACS_BYTES..ip_at].copy_from_slice(&request[MACS_BYTES..ip_at]);
        let pseudo_sum = if self.source.is_ipv4() {
            exchange(request, frame, ip_at + 12, 4);
            write_ipv4(&mut frame[ip_at..udp_at], end - udp_at)
        } else {
            exchange(request, frame, ip_at + 8, 16);
            write_ipv6(&mut frame[ip_at..udp_at], end - udp_at)
        };
        exchange(request, frame, udp_at, 2);
        let udp = &mut frame[udp_at..end];
        udp[4..6].copy_from_slice(&be16_bytes(end - udp_at));
        udp[6..8].fill(0);
        // 0 would mean that there is no checksum.
        let checksum = match !fold(pseudo_sum + sum(udp)) {
            0 => SUM_RIGHT,
            checksum => checksum,
        };
        udp[6..8].copy_from_slice(&checksum.to_ne_bytes());
        end
    }
}

/// Where the packet begins, and its type.
fn ethernet(frame: &[u8]) -> Option<(usize, u16)> {
    const UNTAGGED: usize = MACS_BYTES + TYPE_BYTES;
    const TAGGED: usize = UNTAGGED + VLAN_TAG_BYTES;
    let header: &[u8; UNTAGGED] = frame.first_chunk()?;
    let is_to_many = header[0] & 1 != 0;
    if is_to_many {
        return None;
    }
    match be16(header, MACS_BYTES) {
        TYPE_VLAN => {
            let header: &[u8; TAGGED] = frame.first_chunk()?;
            Some((TAGGED, be16(header, UNTAGGED + 2)))
        }
        kind => Some((UNTAGGED, kind)),
    }
}

fn ipv4(bytes: &[u8]) -> Result<Packet<'_>, FrameError> {
    let header: &[u8; IPV4_BYTES] = bytes.first_chunk().ok_or(FrameError::NotUnderstood)?;
    let is_whole = be16(header, 6) & !DO_NOT_FRAGMENT == 0;
    // No host has an address from 224.0.0.0 on, or one that begins with 0.
    let is_answerable = (1..224).contains(&header[12]);
    if header[0] != 0x45 || header[9] != PROTOCOL_UDP || !is_whole || !is_answerable {
        return Err(FrameError::NotUnderstood);
    }
    if fold(sum(header)) != SUM_RIGHT {
        return Err(FrameError::BadChecksum);
    }
    let address = |at: usize| {
        Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]).into()
    };
    let end = usize::from(be16(header, 2));
    let udp = bytes.get(IPV4_BYTES..end).ok_or(FrameError::NotUnderstood)?;
    let pseudo_sum = pseudo_sum(&header[12..], udp.len());
    Ok(Packet { source: address(12), target: address(16), udp, pseudo_sum })
}

fn ipv6(bytes: &[u8]) -> Result<Packet<'_>, FrameError> {
    let header: &[u8; IPV6_BYTES] = bytes.first_chunk().ok_or(FrameError::NotUnderstood)?;
    // Addresses that begin with 64 zeros are IPv4's, the host's own, or none.
    let is_answerable = header[8] != 0xff && header[8..16] != [0; 8];
    if header[0] >> 4 != 6 || header[6] != PROTOCOL_UDP || !is_answerable {
        return Err(FrameError::NotUnderstood);
    }
    let address = |at: usize| {
        let octets: [u8; 16] = std::array::from_fn(|index| header[at + index]);
        Ipv6Addr::from(octets).into()
    };
    let end = IPV6_BYTES + usize::from(be16(header, 4));
    let udp = bytes.get(IPV6_BYTES..end).ok_or(FrameError::NotUnderstood)?;
    let pseudo_sum = pseudo_sum(&header[8..], udp.len());
    Ok(Packet { source: address(8), target: address(24), udp, pseudo_sum })
}

impl Packet<'_> {
    /// The ports of source and target, if length and checksum are right.
    fn ports(&self) -> Result<(u16, u16), FrameError> {
        let header: &[u8; UDP_BYTES] = self.udp.first_chunk().ok_or(FrameError::NotUnderstood)?;
        let (source, target) = (be16(header, 0), be16(header, 2));
        if usize::from(be16(header, 4)) != self.udp.len() || source == 0 {
            return Err(FrameError::NotUnderstood);
        }
        let stored = u16::from_ne_bytes([header[6], header[7]]);
        let is_right = match stored {
            0 => self.source.is_ipv4(),
            // A process of this host leaves the checksum to a network card, through which a frame
            // between namespaces never goes: the field holds the sum of the pseudo-header.
            _ if stored == fold(self.pseudo_sum) => true,
            _ => fold(self.pseudo_sum + sum(self.udp)) == SUM_RIGHT,
        };
        if is_right { Ok((source, target)) } else { Err(FrameError::BadChecksum) }
    }
}

/// Writes all but the addresses, which are there, and returns the sum of the pseudo-header.
fn write_ipv4(header: &mut [u8], udp_bytes: usize) -> u64 {
    header[..2].copy_from_slice(&[0x45, 0]);
    header[2..4].copy_from_slice(&be16_bytes(IPV4_BYTES + udp_bytes));
    // A packet that is never fragmented needs no id (RFC 6864).
    header[4..6].fill(0);
    header[6..8].copy_from_slice(&DO_NOT_FRAGMENT.to_be_bytes());
    header[8..12].copy_from_slice(&[HOPS, PROTOCOL_UDP, 0, 0]);
    let checksum = !fold(sum(header));
    header[10..12].copy_from_slice(&checksum.to_ne_bytes());
    pseudo_sum(&header[12..], udp_bytes)
}

/// As [`write_ipv4`].
fn write_ipv6(header: &mut [u8], udp_bytes: usize) -> u64 {
    header[..4].copy_from_slice(&[0x60, 0, 0, 0]);
    header[4..6].copy_from_slice(&be16_bytes(udp_bytes));
    header[6..8].copy_from_slice(&[PROTOCOL_UDP, HOPS]);
    pseudo_sum(&header[8..], udp_bytes)
}

/// Copies two fields of the same length, the first at `at`, each into the other's place.
fn exchange(from: &[u8], to: &mut [u8], at: usize, bytes: usize) {
    let (middle, end) = (at + bytes, at + 2 * bytes);
    to[at..middle].copy_from_slice(&from[middle..end]);
    to[middle..end].copy_from_slice(&from[at..middle]);
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// A length in a header.
fn be16_bytes(bytes: usize) -> [u8; 2] {
    u16::try_from(bytes).expect("a packet has less than 64 KiB").to_be_bytes()
}

/// The sum of the pseudo-header of a datagram (RFC 768, RFC 8200): two addresses, length, protocol.
fn pseudo_sum(addresses: &[u8], udp_bytes: usize) -> u64 {
    let [high, low] = be16_bytes(udp_bytes);
    sum(addresses) + sum(&[high, low, 0, PROTOCOL_UDP])
}

/// The sum of bytes as 16-bit words in the host's order, not folded (RFC 1071: the order of bytes
/// does not matter for the sum, and words of 32 bits have the same). Less than 64 KiB.
fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<4>();
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    let words = words.iter().chain([&last]);
    words.map(|word| u64::from(u32::from_ne_bytes(*word))).sum()
}

/// Folds a sum to 16 bits.
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    let [low, high, ..] = sum.to_le_bytes();
    u16::from_le_bytes([low, high])
}
