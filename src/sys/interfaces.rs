//! Network interfaces of this network namespace: their addresses, and which of them lead to the
//! Internet.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _};
use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;
use nix::net::if_::{InterfaceFlags, if_nametoindex};

/// An address of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    /// The interface that carries the address.
    pub interface: String,
    /// The address.
    pub address: IpAddr,
    /// Whether the interface leads nowhere but back.
    pub is_loopback: bool,
}

/// What can be known of the interfaces at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostInterfaces {
    /// All addresses of the host.
    pub addresses: Vec<InterfaceAddress>,
    /// The interfaces of the default routes of IPv4.
    pub default_v4: BTreeSet<String>,
    /// The interfaces of the default routes of IPv6.
    pub default_v6: BTreeSet<String>,
}

impl HostInterfaces {
    /// Reads all of it.
    ///
    /// # Errors
    /// Errors of rtnetlink, as in a sandbox without `AF_NETLINK`.
    pub fn read() -> io::Result<Self> {
        let addresses = getifaddrs()?.filter_map(|entry| {
            let address = entry.address?;
            let v4 = address.as_sockaddr_in().map(|it| IpAddr::V4(it.ip()));
            let v6 = address.as_sockaddr_in6().map(|it| IpAddr::V6(it.ip()));
            Some(InterfaceAddress {
                address: v4.or(v6)?,
                is_loopback: entry.flags.contains(InterfaceFlags::IFF_LOOPBACK),
                interface: entry.interface_name,
            })
        });
        // A sandbox may hide all of /proc but processes (ProcSubset=pid of systemd).
        Ok(Self {
            addresses: addresses.collect(),
            default_v4: default_routes_v4(&beginning("/proc/self/net/route")),
            default_v6: default_routes_v6(&beginning("/proc/self/net/ipv6_route")),
        })
    }
}

/// Most bytes that are read of a table of routes: some 30 000 lines. Routers with more of them have
/// the interfaces named in the settings; to look through a million each second would cost a core.
const TABLE_BYTES_MAX: u64 = 4 << 20;

/// The beginning of a file; empty if it cannot be read.
fn beginning(path: &str) -> String {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|it| it.take(TABLE_BYTES_MAX).read_to_end(&mut bytes));
    read.map_or_else(|_| String::new(), |_| String::from_utf8_lossy(&bytes).into_owned())
}

/// The kernel's number of an interface.
///
/// # Errors
/// `ENODEV` if there is no interface of this name.
pub fn index_of(interface: &str) -> io::Result<u32> {
    Ok(if_nametoindex(interface)?)
}

/// A route that refuses (linux/route.h).
const RTF_REJECT: u32 = 0x200;

fn is_usable(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|it| it & RTF_REJECT == 0)
}

/// Interface, destination, gateway, flags, and the mask in the eighth column.
fn default_routes_v4(table: &str) -> BTreeSet<String> {
    let interface = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        match columns[..] {
            [interface, "00000000", _, flags, _, _, _, "00000000", ..] if is_usable(flags) => {
                Some(interface.to_owned())
            }
            _ => None,
        }
    };
    table.lines().filter_map(interface).collect()
}

/// Destination and its bits, source and its bits, gateway, three numbers, flags, interface.
fn default_routes_v6(table: &str) -> BTreeSet<String> {
    let interface = |line: &str| {
        let columns: Vec<_> = line.split_whitespace().collect();
        match columns[..] {
            [destination, "00", _, _, _, _, _, _, flags, interface] if is_usable(flags) => {
                destination.bytes().all(|it| it == b'0').then(|| interface.to_owned())
            }
            _ => None,
        }
    };
    table.lines().filter_map(interface).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_and_its_address_are_found() {
        let host = HostInterfaces::read().unwrap();
        let found = host.addresses.iter().find(|it| it.address == IpAddr::from([127, 0, 0, 1]));
        let found = found.unwrap();
        assert!(found.is_loopback);
        assert!(index_of(&found.interface).is_ok());
        assert!(index_of("no-such-device").is_err());
    }

    #[test]
    fn default_routes_are_those_to_everywhere_that_do_not_refuse() {
        let v4 = "\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010011AC\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth1\t00000000\t010011AC\t0003\t0\t0\t9\t00000000\t0\t0\t0
eth2\t00000000\t00000000\t0001\t0\t0\t0\t00000080\t0\t0\t0
*\t00000000\t00000000\t0200\t0\t0\t0\t00000000\t0\t0\t0
eth3\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
";
        assert_eq!(default_routes_v4(v4), ["eth0", "eth1"].map(str::to_owned).into());
        let zeros = "0".repeat(32);
        let v6 = format!(
            "{zeros} 00 {zeros} 00 fe80000000000000 00000400 00000001 00000000 00000003     eth0\n\
             {zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200       lo\n\
             {zeros} 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001     eth1\n"
        );
        assert_eq!(default_routes_v6(&v6), ["eth0"].map(str::to_owned).into());
        assert!(default_routes_v4("").is_empty() && default_routes_v6("x").is_empty());
    }
}
