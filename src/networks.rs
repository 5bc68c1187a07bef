//! Finds the network of an address in a list: sorted boundaries and one binary search, after a
//! comparison that decides the common case, an empty list or only loopback.
//!
//! Networks are nested or disjoint. So they divide the address space into ranges, each of which
//! belongs to its innermost network or to none. No library is used because every announce needs
//! this look-up: a prefix tree (prefix-trie) follows pointers, while here one array is searched.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};

/// Why a text is not a network. The message is for the operator.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The text is neither an address nor a network.
    #[error("{0:?} is not a network (192.0.2.0/24, 2001:db8::/32) or an address")]
    Malformed(String),
    /// The address has bits set beyond the prefix length.
    #[error(
        "{text:?} has bits set beyond its prefix; write {network} for the whole network, or \
         {address} for that address alone"
    )]
    BitsBeyondPrefix {
        /// The rejected text.
        text: String,
        /// The address in front of the prefix length.
        address: IpAddr,
        /// The network around that address.
        network: IpNet,
    },
}

/// Parses a network in settings, access lists and the API: `192.0.2.0/24`, `2001:db8::/32`, or an
/// address, which is a network of one. A network of v4-mapped addresses becomes the IPv4 network,
/// because sources are unmapped before they are compared.
///
/// # Errors
/// [`NetworkError`] where the text is neither, or has bits set beyond the prefix, which is probably
/// a mistake.
pub fn parse(text: &str) -> Result<IpNet, NetworkError> {
    let address = || text.parse::<IpAddr>().ok().map(IpNet::from);
    let network = text.parse::<IpNet>().ok().or_else(address);
    let network = unmapped(network.ok_or_else(|| NetworkError::Malformed(text.to_owned()))?);
    if network.addr() == network.network() {
        return Ok(network);
    }
    let (text, address) = (text.to_owned(), network.addr());
    Err(NetworkError::BitsBeyondPrefix { text, address, network: network.trunc() })
}

/// Converts a network of v4-mapped addresses to the IPv4 network; returns any other unchanged.
fn unmapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let mapped = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    let v4 = mapped.and_then(|(address, length)| Ipv4Net::new(address, length).ok());
    v4.map_or(network, IpNet::V4)
}

/// The mark of the network of a range; `None` outside all networks.
type RangeOwner = Option<u32>;

/// Networks, each with a mark. Networks of v4-mapped addresses count as IPv4 networks, because
/// sources are unmapped.
#[derive(Clone, Debug, Default)]
pub struct NetworkSet {
    v4: Stretches,
    v6: Stretches,
}

/// One family's ranges, in order.
#[derive(Clone, Debug, Default)]
struct Stretches {
    /// From the first address that is in any network to the last.
    hull: Option<(u128, u128)>,
    /// The first address of each range.
    starts: Vec<u128>,
    owners: Vec<RangeOwner>,
}

/// A network of one family: first address, last address, mark.
type Marked = (u128, u128, u32);

impl NetworkSet {
    /// Networks with their marks; of duplicate networks, the last mark counts.
    pub fn new(networks: impl IntoIterator<Item = (IpNet, u32)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (network, mark) in networks {
            let ends = (network.network(), network.broadcast());
            match (ends.0.to_canonical(), ends.1.to_canonical()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    v4.push((first.to_bits().into(), last.to_bits().into(), mark));
                }
                // This includes IPv6 networks that contain all mapped addresses, such as ::/0: they
                // do not cover IPv4.
                _ => v6.push((bits(ends.0), bits(ends.1), mark)),
            }
        }
        Self { v4: Stretches::new(v4), v6: Stretches::new(v6) }
    }

    /// The mark of the innermost network of an unmapped address.
    #[inline]
    pub fn find(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(ipv4) => self.v4.find(ipv4.to_bits().into()),
            IpAddr::V6(ipv6) => self.v6.find(ipv6.to_bits()),
        }
    }

    /// Whether an unmapped address is in any of the networks.
    #[inline]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.find(address).is_some()
    }
}

impl<'a> FromIterator<&'a IpNet> for NetworkSet {
    /// Networks that all have the same mark.
    fn from_iter<I: IntoIterator<Item = &'a IpNet>>(networks: I) -> Self {
        Self::new(networks.into_iter().map(|it| (*it, 0)))
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ipv4) => ipv4.to_bits().into(),
        IpAddr::V6(ipv6) => ipv6.to_bits(),
    }
}

impl Stretches {
    fn new(mut networks: Vec<Marked>) -> Self {
        networks.sort_by_key(|&(first, last, _)| (first, std::cmp::Reverse(last)));
        let end = networks.iter().map(|it| it.1).max();
        let mut stretches =
            Self { hull: networks.first().map(|it| it.0).zip(end), ..Self::default() };
        let mut around: Vec<(u128, u32)> = Vec::new();
        for (first, last, mark) in networks {
            stretches.leave(&mut around, first);
            stretches.begin(first, Some(mark));
            around.push((last, mark));
        }
        stretches.leave(&mut around, u128::MAX);
        stretches
    }

    /// Ends the networks that end before `until`.
    fn leave(&mut self, around: &mut Vec<(u128, u32)>, until: u128) {
        while let Some(&(last, _)) = around.last().filter(|it| it.0 < until) {
            around.pop();
            self.begin(last + 1, around.last().map(|it| it.1));
        }
    }

    fn begin(&mut self, at: u128, owner: RangeOwner) {
        if self.starts.last() == Some(&at) {
            self.starts.pop();
            self.owners.pop();
        }
        self.starts.push(at);
        self.owners.push(owner);
    }

    #[inline]
    fn find(&self, address: u128) -> RangeOwner {
        let (first, last) = self.hull?;
        if address < first || address > last {
            return None;
        }
        let behind = self.starts.partition_point(|it| *it <= address);
        self.owners[..behind].last().copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn networks(of: &[&str]) -> NetworkSet {
        NetworkSet::new(of.iter().map(|it| it.parse().unwrap()).zip(1..))
    }

    fn find(networks: &NetworkSet, address: &str) -> RangeOwner {
        networks.find(address.parse().unwrap())
    }

    #[test]
    fn a_network_is_read_as_it_is_meant() {
        for (text, expected) in [
            ("192.0.2.0/24", "192.0.2.0/24"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("::1", "::1/128"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
        ] {
            assert_eq!(parse(text).map(|it| it.to_string()), Ok(expected.to_owned()), "{text}");
        }
        for (text, said) in [
            ("10.0.0.5/24", "write 10.0.0.0/24 for the whole network, or 10.0.0.5 for"),
            ("2001:db8::1/32", "write 2001:db8::/32 for the whole network, or 2001:db8::1 for"),
            ("::ffff:10.0.0.5/120", "write 10.0.0.0/24 for the whole network, or 10.0.0.5 for"),
            ("192.0.2.0/33", "\"192.0.2.0/33\" is not a network"),
            ("localhost", "\"localhost\" is not a network"),
            ("", "\"\" is not a network"),
            ("10.0.0.1:80", "is not a network"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn the_innermost_network_counts() {
        let set = networks(&["10.0.0.0/8", "10.1.0.0/16", "10.1.255.255/32", "0.0.0.0/0", "::/0"]);
        for (address, expected) in [
            ("10.0.0.0", 1),
            ("10.0.255.255", 1),
            ("10.1.0.0", 2),
            ("10.1.255.254", 2),
            ("10.1.255.255", 3),
            ("10.2.0.0", 1),
            ("10.255.255.255", 1),
            ("11.0.0.0", 4),
            ("255.255.255.255", 4),
            ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 5),
        ] {
            assert_eq!(find(&set, address), Some(expected), "{address}");
        }
        assert_eq!(find(&networks(&["::/0"]), "10.0.0.0"), None, "IPv6 is no IPv4");
        assert_eq!(find(&networks(&[]), "::"), None);
        assert_eq!(find(&networks(&["::1/128", "::1/128"]), "::1"), Some(2));
    }

    #[test]
    fn loopback_is_found_and_its_neighbours_are_not() {
        let set = networks(&["127.0.0.0/8", "::1/128"]);
        for (address, expected) in [
            ("127.0.0.0", true),
            ("127.255.255.255", true),
            ("126.255.255.255", false),
            ("128.0.0.0", false),
            ("::1", true),
            ("::", false),
            ("::2", false),
        ] {
            assert_eq!(set.contains(address.parse().unwrap()), expected, "{address}");
        }
    }

    #[test]
    fn a_mapped_network_is_an_ipv4_network() {
        let set = networks(&["::ffff:10.0.0.0/104", "::/0"]);
        assert_eq!(find(&set, "10.1.2.3"), Some(1));
        assert_eq!(find(&set, "11.1.2.3"), None);
        assert_eq!(find(&set, "2001:db8::1"), Some(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 5 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Compares with a linear search of every network.
        #[test]
        fn as_a_naive_search_finds_it(
            networks in prop::collection::vec((0_u32..256, 24_u8..=32), 0..12),
            address in 0_u32..256,
        ) {
            let network = |(low, length): (u32, u8)| {
                Ipv4Net::new((0x0a00_0000 + low).into(), length).unwrap().trunc()
            };
            let networks: Vec<_> = networks.into_iter().map(network).collect();
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + address);
            let around = networks.iter().zip(1_u32..).filter(|(it, _)| it.contains(&address));
            let expected = around.max_by_key(|(it, mark)| (it.prefix_len(), *mark));
            let all = NetworkSet::new(networks.iter().map(|it| IpNet::V4(*it)).zip(1..));
            prop_assert_eq!(all.find(address.into()), expected.map(|(_, mark)| mark));
        }
    }
}
