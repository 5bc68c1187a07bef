//! Ethernet frames in parts, so that tests can spoil each; and what answers them. Written apart
//! from the codec and the program that the tests are about.

use std::net::{IpAddr, SocketAddr};

/// A server's address, as tests use it.
pub(crate) fn server(family: u8) -> SocketAddr {
    if family == 4 { "192.0.2.9:6969" } else { "[2001:db8::9]:6969" }.parse().unwrap()
}

pub(crate) fn client(family: u8) -> SocketAddr {
    if family == 4 { "198.51.100.7:51413" } else { "[2001:db8:1:2:3:4:5:6]:51413" }.parse().unwrap()
}

/// The magic of a connect (BEP 15).
pub(crate) const MAGIC: u64 = 0x0417_2710_1980;

/// Sources that no response can reach.
pub(crate) const SOURCES_OF_NO_HOST: [&str; 9] = [
    "0.0.0.0:1",
    "224.0.0.1:1",
    "255.255.255.255:1",
    "198.51.100.7:0",
    "[::]:1",
    "[::1]:1",
    "[::ffff:192.0.2.1]:1",
    "[ff02::1]:1",
    "[2001:db8::1]:0",
];

/// A frame in parts, so that tests can spoil each.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) tags: Vec<u16>,
    pub(crate) source: SocketAddr,
    pub(crate) target: SocketAddr,
    pub(crate) payload: Vec<u8>,
    /// IPv4's, of the packet.
    pub(crate) id: u16,
    /// Behind the datagram: Ethernet's padding.
    pub(crate) padding: usize,
}

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// The Internet's checksum (RFC 1071).
pub(crate) fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|it| u32::from(it[0]) << 8 | it.get(1).map_or(0, |it| u32::from(*it)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
}

pub(crate) fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

impl Frame {
    pub(crate) fn new(family: u8, payload: Vec<u8>) -> Self {
        let (source, target) = (client(family), server(family));
        Self { tags: Vec::new(), source, target, payload, id: 0x1234, padding: 0 }
    }

    pub(crate) fn connect(family: u8) -> Self {
        Self::new(family, [&MAGIC.to_be_bytes()[..], &[0; 4], b"abcd"].concat())
    }

    /// An announce with this id.
    pub(crate) fn announce(family: u8, id: u64) -> Self {
        let mut payload = [&id.to_be_bytes()[..], &1_u32.to_be_bytes(), b"abcd"].concat();
        payload.resize(96, 5);
        payload.extend(6881_u16.to_be_bytes());
        Self::new(family, payload)
    }

    /// Where IP begins.
    pub(crate) fn ip_at(&self) -> usize {
        14 + 4 * self.tags.len()
    }

    /// Where UDP begins.
    pub(crate) fn udp_at(&self) -> usize {
        self.ip_at() + if self.source.is_ipv4() { 20 } else { 40 }
    }

    fn udp(&self) -> Vec<u8> {
        let length = u16::try_from(8 + self.payload.len()).unwrap();
        let mut udp =
            [self.source.port(), self.target.port(), length, 0].map(u16::to_be_bytes).concat();
        udp.extend(&self.payload);
        let (source, target) = (octets(self.source.ip()), octets(self.target.ip()));
        let pseudo = [&source[..], &target, &[0, 17], &length.to_be_bytes(), &udp].concat();
        let sum = match checksum(&pseudo) {
            0 => 0xffff,
            sum => sum,
        };
        udp[6..8].copy_from_slice(&sum.to_be_bytes());
        udp
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut frame = [SERVER_MAC, CLIENT_MAC].concat();
        for tag in &self.tags {
            frame.extend([tag.to_be_bytes(), 7_u16.to_be_bytes()].concat());
        }
        let udp = self.udp();
        let (source, target) = (octets(self.source.ip()), octets(self.target.ip()));
        if self.source.is_ipv4() {
            frame.extend(0x0800_u16.to_be_bytes());
            let length = u16::try_from(20 + udp.len()).unwrap();
            let mut ip = vec![0x45, 0x10, 0, 0, 0, 0, 0x40, 0, 53, 17, 0, 0];
            ip[2..4].copy_from_slice(&length.to_be_bytes());
            ip[4..6].copy_from_slice(&self.id.to_be_bytes());
            ip.extend([&source[..], &target].concat());
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(ip);
        } else {
            frame.extend(0x86dd_u16.to_be_bytes());
            frame.extend([0x61, 0x23, 0x45, 0x67]);
            frame.extend(u16::try_from(udp.len()).unwrap().to_be_bytes());
            frame.extend([17, 53]);
            frame.extend([&source[..], &target].concat());
        }
        frame.extend(udp);
        frame.resize(frame.len() + self.padding, 0);
        frame
    }

    /// The frame that answers this one with a datagram.
    pub(crate) fn answered(&self, payload: &[u8]) -> Vec<u8> {
        let (source, target) = (self.target, self.source);
        let answer = Self { source, target, payload: payload.to_vec(), ..self.clone() };
        let mut frame = answer.bytes();
        frame[..12].copy_from_slice(&[CLIENT_MAC, SERVER_MAC].concat());
        let ip = self.ip_at();
        if self.source.is_ipv4() {
            (frame[ip + 1], frame[ip + 8]) = (0, 64);
            frame[ip + 10..ip + 12].fill(0);
            let sum = checksum(&frame[ip..ip + 20]);
            frame[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
        } else {
            frame[ip..ip + 4].copy_from_slice(&[0x60, 0, 0, 0]);
            frame[ip + 7] = 64;
        }
        frame
    }
}

/// Frames of both families, without and with a VLAN tag.
pub(crate) fn kinds(of: impl Fn(u8) -> Frame) -> Vec<Frame> {
    let both = [4, 6].map(of);
    let tagged = both.clone().map(|frame| Frame { tags: vec![0x8100], ..frame });
    both.into_iter().chain(tagged).collect()
}
