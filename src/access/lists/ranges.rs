//! Which of many networks an address is in: sorted boundaries and one binary search.
//!
//! Networks are nested or apart, never half of each. So all of them cut the space of addresses into
//! stretches, each of which belongs to its innermost network or to none.

use std::net::IpAddr;

use ipnet::IpNet;

/// What a stretch belongs to: a mark, or nothing.
type Owner = Option<u32>;

/// One family's stretches, in order.
#[derive(Clone, Debug, Default)]
struct Stretches {
    /// Where each begins.
    starts: Vec<u128>,
    owners: Vec<Owner>,
}

/// Networks, each with a mark.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    v4: Stretches,
    v6: Stretches,
}

impl Ranges {
    pub(super) fn new(networks: impl Iterator<Item = (IpNet, u32)>) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (network, mark) in networks {
            match network {
                IpNet::V4(it) => {
                    let ends = (it.network().to_bits(), it.broadcast().to_bits());
                    v4.push((u128::from(ends.0), u128::from(ends.1), mark));
                }
                IpNet::V6(it) => v6.push((it.network().to_bits(), it.broadcast().to_bits(), mark)),
            }
        }
        Self { v4: Stretches::new(v4), v6: Stretches::new(v6) }
    }

    /// The mark of the innermost network that an address is in.
    #[inline]
    pub(super) fn find(&self, address: IpAddr) -> Owner {
        match address {
            IpAddr::V4(it) => self.v4.find(u128::from(it.to_bits())),
            IpAddr::V6(it) => self.v6.find(it.to_bits()),
        }
    }
}

impl Stretches {
    /// From first and last address and mark of each network.
    fn new(mut networks: Vec<(u128, u128, u32)>) -> Self {
        networks.sort_by_key(|&(first, last, _)| (first, std::cmp::Reverse(last)));
        let mut it = Self::default();
        let mut around: Vec<(u128, u32)> = Vec::new();
        for (first, last, mark) in networks {
            it.leave(&mut around, first);
            it.begin(first, Some(mark));
            around.push((last, mark));
        }
        it.leave(&mut around, u128::MAX);
        it
    }

    /// Ends the networks that end before `until`.
    fn leave(&mut self, around: &mut Vec<(u128, u32)>, until: u128) {
        while let Some(&(last, _)) = around.last().filter(|it| it.0 < until) {
            around.pop();
            self.begin(last + 1, around.last().map(|it| it.1));
        }
    }

    fn begin(&mut self, at: u128, owner: Owner) {
        if self.starts.last() == Some(&at) {
            self.starts.pop();
            self.owners.pop();
        }
        self.starts.push(at);
        self.owners.push(owner);
    }

    #[inline]
    fn find(&self, address: u128) -> Owner {
        let behind = self.starts.partition_point(|it| *it <= address);
        self.owners[..behind].last().copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges(networks: &[&str]) -> Ranges {
        let networks = networks.iter().map(|it| it.parse().unwrap());
        Ranges::new(networks.zip(1..))
    }

    fn find(ranges: &Ranges, address: &str) -> Owner {
        ranges.find(address.parse().unwrap())
    }

    #[test]
    fn the_innermost_network_counts() {
        let it = ranges(&["10.0.0.0/8", "10.1.0.0/16", "10.1.255.255/32", "0.0.0.0/0", "::/0"]);
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
            assert_eq!(find(&it, address), Some(expected), "{address}");
        }
        assert_eq!(find(&ranges(&["::/0"]), "10.0.0.0"), None, "IPv6 is no IPv4");
        assert_eq!(find(&ranges(&[]), "::"), None);
        assert_eq!(find(&ranges(&["::1/128", "::1/128"]), "::1"), Some(2));
    }

    proptest! {
        /// Against a look at every network.
        #[test]
        fn as_a_naive_search_finds_it(
            networks in prop::collection::vec((0_u32..256, 24_u8..=32), 0..12),
            address in 0_u32..256,
        ) {
            let network = |(low, length): (u32, u8)| {
                ipnet::Ipv4Net::new((0x0a00_0000 + low).into(), length).unwrap().trunc()
            };
            let networks: Vec<_> = networks.into_iter().map(network).collect();
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + address);
            let around = networks.iter().zip(1_u32..).filter(|(it, _)| it.contains(&address));
            let expected = around.max_by_key(|(it, mark)| (it.prefix_len(), *mark));
            let ranges = Ranges::new(networks.iter().map(|it| IpNet::V4(*it)).zip(1..));
            prop_assert_eq!(ranges.find(address.into()), expected.map(|(_, mark)| mark));
        }
    }
}
