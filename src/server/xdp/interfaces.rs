//! Which interfaces get the program, and which addresses of the host are served through them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::sys::interfaces::HostInterfaces;

/// The interfaces that get the program: the configured ones, or those that carry an address in
/// `listen`; for a wildcard address, those of the default routes. The loopback interface has to be
/// configured: the kernel discards responses to 127.0.0.0/8 and `::1` that come from a program.
pub(crate) fn chosen(
    configured: &[String],
    listen: &[SocketAddr],
    host: &HostInterfaces,
) -> BTreeSet<String> {
    if !configured.is_empty() {
        return configured.iter().cloned().collect();
    }
    let mut chosen = BTreeSet::new();
    for address in listen.iter().map(SocketAddr::ip) {
        if address.is_unspecified() {
            let routes = if address.is_ipv4() { &host.default_v4 } else { &host.default_v6 };
            chosen.extend(routes.iter().cloned());
        } else {
            let carries = host.addresses.iter().filter(|it| it.address == address);
            chosen.extend(carries.filter(|it| !it.is_loopback).map(|it| it.interface.clone()));
        }
    }
    chosen
}

/// The addresses of this host that `listen` serves, each with its port; loopback addresses only if
/// the loopback interface is configured: on any other interface the kernel drops their datagrams.
pub(super) fn targets(
    configured: &[String],
    listen: &[SocketAddr],
    host: &HostInterfaces,
) -> BTreeSet<SocketAddr> {
    let mut loopbacks = host.addresses.iter().filter(|it| it.is_loopback);
    let has_loopback = loopbacks.any(|it| configured.contains(&it.interface));
    let mut targets = BTreeSet::new();
    for address in listen {
        if address.ip().is_unspecified() {
            let is_served = |it: &IpAddr| it.is_ipv4() == address.is_ipv4();
            let own = host.addresses.iter().map(|it| it.address).filter(is_served);
            targets.extend(own.map(|it| SocketAddr::new(it, address.port())));
        } else {
            targets.insert(SocketAddr::new(address.ip(), address.port()));
        }
    }
    targets.retain(|it| has_loopback || !it.ip().is_loopback());
    targets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::interfaces::InterfaceAddress;

    fn host() -> HostInterfaces {
        let address = |(interface, address): (&str, &str)| InterfaceAddress {
            interface: interface.into(),
            address: address.parse().unwrap(),
            is_loopback: interface == "lo",
        };
        let addresses = [
            ("lo", "127.0.0.1"),
            ("lo", "::1"),
            ("eth0", "192.0.2.9"),
            ("eth0", "2001:db8::9"),
            ("eth1", "10.0.0.9"),
        ];
        HostInterfaces {
            addresses: addresses.map(address).into(),
            default_v4: ["eth0".to_owned()].into(),
            default_v6: BTreeSet::new(),
        }
    }

    fn names(configured: &[&str], listen: &[&str]) -> Vec<String> {
        let configured: Vec<_> = configured.iter().map(|it| (*it).to_owned()).collect();
        let listen: Vec<_> = listen.iter().map(|it| it.parse().unwrap()).collect();
        chosen(&configured, &listen, &host()).into_iter().collect()
    }

    #[test]
    fn interfaces_are_those_of_the_addresses_or_of_the_default_routes() {
        assert_eq!(names(&[], &["10.0.0.9:6969", "[2001:db8::9]:6969"]), ["eth0", "eth1"]);
        assert_eq!(names(&[], &["0.0.0.0:6969", "[::]:6969"]), ["eth0"]);
        assert!(names(&[], &["[::]:6969"]).is_empty(), "there is no route");
        assert!(names(&[], &["127.0.0.1:6969", "[::1]:6969", "192.0.2.1:1"]).is_empty());
        assert_eq!(names(&["lo", "eth7"], &["192.0.2.9:6969"]), ["eth7", "lo"]);
    }

    #[test]
    fn a_wildcard_stands_for_all_addresses_of_its_family() {
        let targets = |configured: &[&str], listen: &[&str]| {
            let configured: Vec<_> = configured.iter().map(|it| (*it).to_owned()).collect();
            let listen: Vec<_> = listen.iter().map(|it| it.parse().unwrap()).collect();
            let targets = targets(&configured, &listen, &host());
            targets.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(
            targets(&["lo"], &["0.0.0.0:6969", "[2001:db8::9]:7"]),
            ["10.0.0.9:6969", "127.0.0.1:6969", "192.0.2.9:6969", "[2001:db8::9]:7"]
        );
        assert_eq!(targets(&[], &["[::]:1", "127.0.0.1:7"]), ["[2001:db8::9]:1"]);
    }
}
