//! Sources of the load: one socket per source. Each is bound to an address of its own if there are
//! enough, and connected to the tracker, so that a response from any other address or port is lost,
//! as it is for strict clients.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;

use serde::Serialize;
use socket2::{Domain, Socket, Type};

use crate::numbers::mix;
use crate::plan::Plan;

/// A network of source addresses. A single address is a /32 or /128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SourceRange {
    /// The lowest address.
    pub(crate) first: IpAddr,
    /// Number of bits that all of its addresses share.
    pub(crate) prefix: u8,
}

impl Serialize for SourceRange {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}/{}", self.first, self.prefix))
    }
}

/// A text that is neither an address nor a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SourceRangeError {
    /// What precedes the prefix.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// A prefix that is not a number of bits of such an address.
    #[error("the prefix of {text:?} must be 0 to {bits_max}")]
    Prefix {
        /// The whole text.
        text: String,
        /// Bits of an address of this family.
        bits_max: u8,
    },
}

impl FromStr for SourceRange {
    type Err = SourceRangeError;

    fn from_str(text: &str) -> Result<Self, SourceRangeError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr =
            address.parse().map_err(|_| SourceRangeError::Address(address.to_owned()))?;
        let bits_max = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.map_or(Ok(bits_max), str::parse);
        match prefix {
            Ok(prefix) if prefix <= bits_max => Ok(Self { first: address, prefix }),
            _ => Err(SourceRangeError::Prefix { text: text.to_owned(), bits_max }),
        }
    }
}

impl SourceRange {
    /// Number of its addresses, at most 2^24: more are never needed.
    fn size(self) -> u64 {
        let bits = if self.first.is_ipv4() { 32 } else { 128 };
        1 << (bits - self.prefix).min(24)
    }

    /// The address with this index. Those of neighbouring indices are far apart, so that all bytes
    /// vary and no /24 has many. The first and last address of the network (its own and the
    /// broadcast address) come only after half of the others.
    fn address(self, place: u64) -> IpAddr {
        // Odd, hence coprime to the power of two below: no address repeats before all are used. It
        // is the inverse of 65 521, so only indices that far apart are neighbours.
        const STEP: u64 = 0xf0_1111;
        let size = self.size();
        let step = if size > 65_536 { STEP } else { 1 };
        let offset = (1 + place) * step % size;
        match self.first {
            IpAddr::V4(first) => {
                let offset = u32::try_from(offset).unwrap_or(0);
                Ipv4Addr::from_bits(first.to_bits().wrapping_add(offset)).into()
            }
            IpAddr::V6(first) => {
                Ipv6Addr::from_bits(first.to_bits().wrapping_add(offset.into())).into()
            }
        }
    }
}

/// A socket of the load, and its index among those with the same address.
#[derive(Debug)]
pub(crate) struct Source {
    /// Bound, connected, nonblocking.
    pub(crate) socket: UdpSocket,
    /// The source address that the tracker receives (unless there is address translation).
    pub(crate) ip: IpAddr,
    /// Its index among the sockets with this address.
    pub(crate) lane: u32,
    /// Number of sockets with this address.
    pub(crate) lanes: u32,
}

/// The trackers under load, one per family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Targets {
    /// Destination of IPv4 sockets.
    pub(crate) v4: Option<SocketAddr>,
    /// Destination of IPv6 sockets.
    pub(crate) v6: Option<SocketAddr>,
}

impl Targets {
    /// The address for a family.
    pub(crate) fn of(&self, v6: bool) -> Option<SocketAddr> {
        if v6 { self.v6 } else { self.v4 }
    }
}

impl fmt::Display for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4} and {v6}"),
            (Some(one), None) | (None, Some(one)) => write!(f, "{one}"),
            (None, None) => f.write_str("no tracker"),
        }
    }
}

/// Source and destination of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The address to bind to; unspecified if routing decides.
    pub(crate) from: IpAddr,
    /// The tracker.
    pub(crate) to: SocketAddr,
    /// Its index among the connections with this address.
    pub(crate) lane: u32,
    /// Number of connections with this address.
    pub(crate) lanes: u32,
}

/// Why a plan's sources cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    /// No tracker of this family.
    #[error("no {0} target: give another --target, or choose --families")]
    NoTarget(&'static str),
    /// An address that is not one of this host, or no route.
    #[error(
        "cannot send from {from} to {target}: {error}; a source must be an address of this host \
         (--source), for a whole IPv6 network: ip -6 route add local NETWORK dev lo"
    )]
    Unusable {
        /// The source.
        from: IpAddr,
        /// The tracker.
        target: SocketAddr,
        /// What the kernel returned.
        error: io::Error,
    },
}

/// The origins of all connections of a plan, in order.
///
/// # Errors
/// If the plan has a family without a target.
pub(crate) fn origins(plan: &Plan, targets: &Targets) -> Result<Vec<Origin>, SourceError> {
    let mut shared = HashMap::<IpAddr, u32>::new();
    let mut origins = Vec::with_capacity(plan.sources.into());
    for place in 0..plan.sources {
        let to = target_of(plan, targets, place)?;
        let from = address_of(plan, to, place.into());
        let lanes = shared.entry(from).or_default();
        origins.push(Origin { from, to, lane: *lanes, lanes: 0 });
        *lanes += 1;
    }
    for origin in &mut origins {
        origin.lanes = shared.get(&origin.from).copied().unwrap_or(1);
    }
    Ok(origins)
}

/// The tracker for the socket with this index.
fn target_of(plan: &Plan, targets: &Targets, place: u16) -> Result<SocketAddr, SourceError> {
    let v6 = plan.is_v6(place);
    targets.of(v6).ok_or(SourceError::NoTarget(if v6 { "IPv6" } else { "IPv4" }))
}

/// Opens all sockets of a plan, in order.
///
/// # Errors
/// One sentence that names the address that could not be used, and a remedy.
pub(crate) fn open(plan: &Plan, targets: &Targets) -> Result<Vec<Source>, SourceError> {
    let mut sources = Vec::with_capacity(plan.sources.into());
    for place in 0..plan.sources {
        let target = target_of(plan, targets, place)?;
        let from = address_of(plan, target, place.into());
        let opened = connect(from, target).and_then(|socket| {
            let ip = socket.local_addr()?.ip();
            Ok(Source { socket, ip, lane: 0, lanes: 1 })
        });
        sources.push(opened.map_err(|error| SourceError::Unusable { from, target, error })?);
    }
    for place in 0..sources.len() {
        let same = |it: &&Source| it.ip == sources[place].ip;
        let lane = sources[..place].iter().filter(same).count();
        let lanes = sources.iter().filter(same).count();
        sources[place].lane = u32::try_from(lane).unwrap_or(u32::MAX);
        sources[place].lanes = u32::try_from(lanes).unwrap_or(u32::MAX);
    }
    Ok(sources)
}

/// The address to bind a socket to: from the given ranges in turn; else from 127/8 for an IPv4
/// loopback target, the target's own for an IPv6 one; for other targets routing decides.
pub(crate) fn address_of(plan: &Plan, target: SocketAddr, place: usize) -> IpAddr {
    let ranges: Vec<_> = plan.ranges(target.is_ipv6()).collect();
    if let Some(count) = std::num::NonZero::new(ranges.len()) {
        return ranges[place % count].address((place / count) as u64);
    }
    match target.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => {
            SourceRange { first: Ipv4Addr::new(127, 0, 0, 0).into(), prefix: 8 }
                .address(place as u64 + 1)
        }
        IpAddr::V6(ip) if ip.is_loopback() => ip.into(),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn connect(from: IpAddr, target: SocketAddr) -> io::Result<UdpSocket> {
    /// Bytes of responses that wait for the generator. As for a tracker, more would only be stale.
    const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    if from.is_ipv6() && !from.is_unspecified() && !from.is_loopback() {
        // Allows an address that belongs to this host only by a route.
        socket.set_freebind_v6(true)?;
    }
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect(&target.into())?;
    Ok(socket.into())
}

/// The port that one peer of a torrent announces: distinct for all `index`es below 65 534, never 0
/// or 1, which no peer uses, and scattered, so that no tracker benefits from an order.
pub(crate) fn peer_port(torrent: u32, index: u32) -> u16 {
    const PORTS: u64 = 65_534;
    // Coprime to 65534 = 2 * 7 * 31 * 151, hence a permutation.
    const STEP: u64 = 40_501;
    let base = mix(u64::from(torrent)) % PORTS;
    let port = 2 + (base + u64::from(index) * STEP) % PORTS;
    u16::try_from(port).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ranges_are_networks_or_single_addresses() {
        let one: SourceRange = "::1".parse().unwrap();
        assert_eq!(one.address(5), "::1".parse::<IpAddr>().unwrap());
        let net: SourceRange = "192.0.2.0/24".parse().unwrap();
        assert_eq!(net.address(0), "192.0.2.1".parse::<IpAddr>().unwrap());
        for text in ["x", "10.0.0.0/33", "::/129", "1.2.3.4/-1"] {
            assert!(text.parse::<SourceRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn loopback_sources_are_distinct_and_in_127() {
        let net: SourceRange = "127.0.0.0/8".parse().unwrap();
        let all: HashSet<IpAddr> = (0..10_000).map(|it| net.address(it)).collect();
        assert_eq!(all.len(), 10_000);
        assert!(all.iter().all(IpAddr::is_loopback));
    }

    #[test]
    fn large_networks_are_used_evenly_and_without_their_ends() {
        for (text, bits) in [("127.0.0.0/8", 24), ("10.0.0.0/12", 20), ("10.0.0.0/15", 17)] {
            let net: SourceRange = text.parse().unwrap();
            let IpAddr::V4(first) = net.first else { panic!() };
            let size = 1_u32 << bits;
            let mut prefixes = HashSet::new();
            for place in 0..u64::from(size / 2).min(65_000) {
                let IpAddr::V4(ip) = net.address(place) else { panic!() };
                let offset = ip.to_bits() - first.to_bits();
                assert!((1..size - 1).contains(&offset), "{text}: {place} is {ip}");
                prefixes.insert(offset >> 8);
            }
            assert!(prefixes.len() > (size as usize >> 8).min(65_000) * 9 / 10, "{text}");
        }
    }

    #[test]
    fn ports_of_a_torrent_never_repeat_and_are_never_0_or_1() {
        for torrent in [0, 7, u32::MAX] {
            let ports: HashSet<u16> = (0..65_534).map(|it| peer_port(torrent, it)).collect();
            assert_eq!(ports.len(), 65_534);
            assert!(!ports.contains(&0) && !ports.contains(&1));
        }
    }

    #[test]
    fn sockets_of_one_address_take_different_lanes() {
        let tracker = UdpSocket::bind("127.0.0.1:0").unwrap();
        let targets = Targets { v4: tracker.local_addr().ok(), v6: None };
        let mut plan = crate::plan::Profile::Smoke.plan();
        plan.source = vec!["127.0.0.9".parse().unwrap()];
        plan.sources = 3;
        let lanes: Vec<_> = open(&plan, &targets).unwrap();
        let lanes: Vec<_> = lanes.iter().map(|it| (it.lane, it.lanes)).collect();
        assert_eq!(lanes, [(0, 3), (1, 3), (2, 3)]);
    }
}
