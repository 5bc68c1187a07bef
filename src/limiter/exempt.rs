//! The networks under no limit, made ready to be asked for every request: sorted ranges, and before
//! them one comparison that settles the common case, where only loopback is listed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// Addresses under no limit.
#[derive(Debug)]
pub(super) struct Exempt {
    v4: Ranges<Ipv4Addr>,
    v6: Ranges<Ipv6Addr>,
}

impl Exempt {
    /// All addresses of these networks. Those of v4-mapped ones are IPv4 addresses.
    pub(super) fn new(networks: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match (network.network().to_canonical(), network.broadcast().to_canonical()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first, last)),
                (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((first, last)),
                // An IPv6 network around all mapped addresses, such as ::/0: no IPv4 is meant.
                _ => match (network.network(), network.broadcast()) {
                    (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((first, last)),
                    _ => unreachable!("a network is of one family"),
                },
            }
        }
        Self { v4: Ranges::new(v4), v6: Ranges::new(v6) }
    }

    /// Whether an address, which has been unmapped, is under no limit.
    #[inline]
    pub(super) fn contains(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(it) => self.v4.contains(it),
            IpAddr::V6(it) => self.v6.contains(it),
        }
    }
}

/// Ranges of addresses, disjoint and in order.
#[derive(Debug)]
struct Ranges<A> {
    /// From the first address of the first to the last of the last.
    hull: Option<(A, A)>,
    ranges: Box<[(A, A)]>,
}

impl<A: Copy + Ord> Ranges<A> {
    fn new(mut ranges: Vec<(A, A)>) -> Self {
        ranges.sort_unstable();
        ranges.dedup_by(|next, it| {
            let inside = next.0 <= it.1;
            if inside {
                it.1 = it.1.max(next.1);
            }
            inside
        });
        let hull = ranges.first().zip(ranges.last()).map(|(first, last)| (first.0, last.1));
        Self { hull, ranges: ranges.into() }
    }

    #[inline]
    fn contains(&self, address: A) -> bool {
        let in_hull = self.hull.is_some_and(|it| it.0 <= address && address <= it.1);
        in_hull && (self.ranges.len() == 1 || self.search(address))
    }

    fn search(&self, address: A) -> bool {
        let after = self.ranges.partition_point(|it| it.0 <= address);
        self.ranges[..after].last().is_some_and(|it| address <= it.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exempt(networks: &[&str]) -> Exempt {
        let networks: Vec<_> = networks.iter().map(|it| it.parse().unwrap()).collect();
        Exempt::new(&networks)
    }

    fn contains(exempt: &Exempt, address: &str) -> bool {
        exempt.contains(address.parse().unwrap())
    }

    #[test]
    fn loopback_is_found_and_its_neighbours_are_not() {
        let it = exempt(&["127.0.0.0/8", "::1/128"]);
        for (address, expected) in [
            ("127.0.0.0", true),
            ("127.255.255.255", true),
            ("126.255.255.255", false),
            ("128.0.0.0", false),
            ("::1", true),
            ("::", false),
            ("::2", false),
        ] {
            assert_eq!(contains(&it, address), expected, "{address}");
        }
        assert!(!contains(&exempt(&[]), "127.0.0.1"));
    }

    #[test]
    fn many_networks_are_what_each_of_them_is() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..if cfg!(miri) { 5 } else { 200 } {
            let networks: Vec<IpNet> = (0..random.usize(..12))
                .map(|_| {
                    let address = IpAddr::from((random.u32(..1 << 12) << 20).to_be_bytes());
                    IpNet::new(address, random.u8(4..=14)).unwrap()
                })
                .collect();
            let exempt = Exempt::new(&networks);
            for _ in 0..200 {
                let address = IpAddr::from((random.u32(..1 << 14) << 18).to_be_bytes());
                let expected = networks.iter().any(|it| it.contains(&address));
                assert_eq!(exempt.contains(address), expected, "{address} {networks:?}");
            }
        }
    }

    #[test]
    fn a_mapped_network_is_an_ipv4_network() {
        let it = exempt(&["::ffff:10.0.0.0/104", "::/0"]);
        assert!(contains(&it, "10.1.2.3") && !contains(&it, "11.1.2.3"));
        assert!(contains(&it, "2001:db8::1"));
    }
}
