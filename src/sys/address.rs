//! Socket addresses as the kernel writes them, read and written byte by byte.
//!
//! A response is sent to the same bytes that its request came from, so the hot path converts an
//! address once, to check it, and never back. The layouts below are Linux ABI; no pointer cast is
//! needed.
//!
//! ```text
//! sockaddr_in    0 family(native) 2 port(big) 4 address
//! sockaddr_in6   0 family(native) 2 port(big) 4 flow  8 address(16)  24 scope(native)
//! cmsghdr        0 length(native) .. level .. type, then in_pktinfo or in6_pktinfo
//! in_pktinfo     0 interface 4 local address (spec_dst) 8 destination
//! in6_pktinfo    0 address(16) 16 interface
//! ```

use std::mem::{offset_of, size_of};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};

/// Bytes of the longest address: `sockaddr_in6`.
pub(crate) const ADDRESS_BYTES: usize = 28;

/// [`ADDRESS_BYTES`] in the type of the kernel's lengths.
pub(crate) const ADDRESS_V6_BYTES: u32 = 28;

/// Bytes of an IPv4 address: `sockaddr_in`.
const ADDRESS_V4_BYTES: u32 = 16;

/// Bytes of a control header.
const CONTROL_HEADER: usize = size_of::<libc::cmsghdr>();

/// Bytes of the longest control message: a header and an `in6_pktinfo`, padded.
pub(crate) const CONTROL_BYTES: usize = 40;

/// The family numbers in an address.
#[expect(clippy::cast_possible_truncation, reason = "2 and 10 fit")]
const FAMILIES: [u16; 2] = [libc::AF_INET as u16, libc::AF_INET6 as u16];

/// A peer's address in the kernel's layout, received or to send to.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct RawAddress {
    pub(crate) bytes: [u8; ADDRESS_BYTES],
    pub(crate) length: u32,
}

impl RawAddress {
    /// No address: for sends on a connected socket.
    pub const NONE: Self = Self { bytes: [0; ADDRESS_BYTES], length: 0 };

    /// The address; `None` if it is neither IPv4 nor IPv6.
    #[inline]
    pub fn to_socket_addr(&self) -> Option<SocketAddr> {
        let [f0, f1, p0, p1, rest @ ..] = &self.bytes;
        let family = u16::from_ne_bytes([*f0, *f1]);
        let port = u16::from_be_bytes([*p0, *p1]);
        let [a, b, c, d, ..] = *rest;
        if family == FAMILIES[0] && self.length >= ADDRESS_V4_BYTES {
            return Some(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port).into());
        }
        if family == FAMILIES[1] && self.length >= ADDRESS_V6_BYTES {
            let address: [u8; 16] = array_at(&self.bytes, 8);
            let scope = u32::from_ne_bytes(array_at(&self.bytes, 24));
            let flow = u32::from_be_bytes([a, b, c, d]);
            return Some(SocketAddrV6::new(address.into(), port, flow, scope).into());
        }
        None
    }
}

impl From<SocketAddr> for RawAddress {
    fn from(address: SocketAddr) -> Self {
        let mut raw_address = Self::NONE;
        raw_address.bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                raw_address.bytes[..2].copy_from_slice(&FAMILIES[0].to_ne_bytes());
                raw_address.bytes[4..8].copy_from_slice(&v4.ip().octets());
                raw_address.length = ADDRESS_V4_BYTES;
            }
            SocketAddr::V6(v6) => {
                raw_address.bytes[..2].copy_from_slice(&FAMILIES[1].to_ne_bytes());
                raw_address.bytes[4..8].copy_from_slice(&v6.flowinfo().to_be_bytes());
                raw_address.bytes[8..24].copy_from_slice(&v6.ip().octets());
                raw_address.bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                raw_address.length = ADDRESS_V6_BYTES;
            }
        }
        raw_address
    }
}

/// The host's address that a datagram was sent to, known on wildcard sockets only. A response that
/// does not name it would leave from an address that routing chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalAddress {
    /// The destination of the request.
    pub ip: IpAddr,
    /// The interface that the request arrived on.
    pub interface: u32,
}

impl LocalAddress {
    /// Reads the control bytes of a received datagram (IP_PKTINFO or IPV6_PKTINFO).
    #[inline]
    pub(crate) fn parse(control: &[u8]) -> Option<Self> {
        let native = |at| control.get(at..)?.first_chunk().copied().map(i32::from_ne_bytes);
        let level = native(offset_of!(libc::cmsghdr, cmsg_level))?;
        let kind = native(offset_of!(libc::cmsghdr, cmsg_type))?;
        let data = control.get(CONTROL_HEADER..)?;
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let data: &[u8; 12] = data.first_chunk()?;
                let ip = Ipv4Addr::from(array_at::<4, 12>(data, 4));
                let interface = u32::from_ne_bytes(array_at(data, 0));
                Some(Self { ip: ip.into(), interface })
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                let data: &[u8; 20] = data.first_chunk()?;
                let ip = Ipv6Addr::from(array_at::<16, 20>(data, 0));
                let interface = u32::from_ne_bytes(array_at(data, 16));
                Some(Self { ip: ip.into(), interface })
            }
            _ => None,
        }
    }

    /// Writes the control bytes that make a response leave from this address, and returns how many.
    /// Routing chooses the interface, except for link-local addresses, which need theirs.
    #[inline]
    pub(crate) fn write(&self, control: &mut [u8; CONTROL_BYTES]) -> usize {
        control.fill(0);
        let (level, kind, data_bytes) = match self.ip {
            IpAddr::V4(ip) => {
                let at = CONTROL_HEADER + 4;
                control[at..at + 4].copy_from_slice(&ip.octets());
                (libc::IPPROTO_IP, libc::IP_PKTINFO, 12)
            }
            IpAddr::V6(ip) => {
                let at = CONTROL_HEADER;
                control[at..at + 16].copy_from_slice(&ip.octets());
                let interface = if ip.is_unicast_link_local() { self.interface } else { 0 };
                control[at + 16..at + 20].copy_from_slice(&interface.to_ne_bytes());
                (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, 20)
            }
        };
        let length = CONTROL_HEADER + data_bytes;
        control[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
        let level_at = offset_of!(libc::cmsghdr, cmsg_level);
        control[level_at..level_at + 4].copy_from_slice(&level.to_ne_bytes());
        let kind_at = offset_of!(libc::cmsghdr, cmsg_type);
        control[kind_at..kind_at + 4].copy_from_slice(&kind.to_ne_bytes());
        length.next_multiple_of(size_of::<usize>())
    }
}

/// `N` bytes at a constant offset. Both lengths are constants, so the check is compiled away.
#[inline]
fn array_at<const N: usize, const M: usize>(bytes: &[u8; M], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_round_trip() {
        for text in ["192.0.2.7:6969", "[2001:db8::7]:1", "[fe80::1%3]:65535", "[::ffff:1.2.3.4]:5"]
        {
            let address: SocketAddr = text.parse().unwrap();
            assert_eq!(RawAddress::from(address).to_socket_addr(), Some(address));
        }
        assert_eq!(RawAddress::NONE.to_socket_addr(), None);
    }

    #[test]
    fn a_cut_address_is_none() {
        let mut address = RawAddress::from("[2001:db8::7]:1".parse::<SocketAddr>().unwrap());
        address.length = 16;
        assert_eq!(address.to_socket_addr(), None);
    }

    #[test]
    fn control_bytes_survive_the_round_trip_without_an_interface() {
        for (ip, interface) in [("127.0.0.3", 0), ("2001:db8::9", 0), ("fe80::1", 7)] {
            let ip = ip.parse().unwrap();
            let mut control = [0xff; CONTROL_BYTES];
            let length = LocalAddress { ip, interface: 7 }.write(&mut control);
            let parsed = LocalAddress::parse(&control[..length]).unwrap();
            assert_eq!(parsed, LocalAddress { ip, interface });
        }
        assert_eq!(LocalAddress::parse(&[]), None);
        assert_eq!(LocalAddress::parse(&[0; CONTROL_BYTES]), None);
    }
}
