//! The origin of a connection, and which headers about it are trusted.

use std::net::IpAddr;

use httparse::Header;
use ipnet::IpNet;

pub use crate::protocol::http::forwarded::HopField;
pub use crate::protocol::proxy;

/// The remote end of a connection, before any HTTP header was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The socket's address, or the address in a trusted PROXY header; unmapped.
    Address(IpAddr),
    /// A Unix socket: a reverse proxy of this host, which is trusted and must name the client.
    Local,
    /// A client without an address in a trusted PROXY header (UNKNOWN, UNSPEC, a Unix socket): it
    /// is not the proxy itself, so its headers are not trusted.
    Nobody,
}

impl Origin {
    /// Whether headers that name another source are trusted.
    pub fn is_trusted(self, proxies: &[IpNet]) -> bool {
        match self {
            Self::Address(address) => is_in(proxies, address),
            Self::Local => true,
            Self::Nobody => false,
        }
    }

    /// The address, unmapped, if headers that name another source are not trusted from it.
    pub fn unlisted(self, proxies: &[IpNet]) -> Option<IpAddr> {
        self.address().filter(|it| !is_in(proxies, *it)).map(|it| it.to_canonical())
    }

    /// The address, if there is one.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::Address(address) => Some(address),
            Self::Local | Self::Nobody => None,
        }
    }

    /// The source of a request, unmapped. Headers of an untrusted origin are ignored. A trusted
    /// proxy is never the source itself: `None` if it does not name its client, because a client
    /// whose address is unknown must not be handed out under the proxy's address.
    ///
    /// In each field the hops are read from the nearest to the farthest. The first hop that is not
    /// a trusted proxy is the client; if all are trusted proxies, the farthest is, because a
    /// trusted proxy named it. An unreadable hop ends the walk: hops beyond it may be forged.
    ///
    /// Proxies commonly write one field and forward the others as the client sent them. So where
    /// fields name different clients, no field is trusted; but a field that names a trusted proxy's
    /// own address, as the inner of two proxies writes it into X-Real-IP, is ignored. If the
    /// operator names the field that the proxies write, `only` that field is read.
    pub fn source(
        self,
        headers: &[Header<'_>],
        proxies: &[IpNet],
        only: Option<HopField>,
    ) -> Option<IpAddr> {
        match self {
            Self::Nobody => None,
            Self::Address(address) if !is_in(proxies, address) => Some(address.to_canonical()),
            Self::Address(_) | Self::Local => named_source(headers, proxies, only),
        }
    }
}

fn is_in(proxies: &[IpNet], address: IpAddr) -> bool {
    proxies.iter().any(|it| it.contains(&address))
}

fn named_source(
    headers: &[Header<'_>],
    proxies: &[IpNet],
    only: Option<HopField>,
) -> Option<IpAddr> {
    let mut source = None;
    for field in HopField::ALL.into_iter().filter(|it| only.is_none_or(|only| only == *it)) {
        let address = match client_in(field, headers, proxies) {
            ClientHop::Unnamed => continue,
            ClientHop::Unreadable => return None,
            ClientHop::At(address) => address,
        };
        source = match source {
            None => Some(address),
            Some(before) if before == address || is_in(proxies, address) => Some(before),
            Some(before) if is_in(proxies, before) => Some(address),
            Some(_) => return None,
        };
    }
    source
}

/// The client in one header field.
enum ClientHop {
    /// The field is missing or empty.
    Unnamed,
    /// An unreadable hop precedes any client.
    Unreadable,
    /// The field names this client.
    At(IpAddr),
}

/// The walk, done from the farthest hop on: each hop that is not a trusted proxy replaces the
/// result so far.
fn client_in(field: HopField, headers: &[Header<'_>], proxies: &[IpNet]) -> ClientHop {
    let mut client = ClientHop::Unnamed;
    field.for_each_hop(headers, |hop| match hop {
        None => client = ClientHop::Unreadable,
        Some(address) if !is_in(proxies, address) || matches!(client, ClientHop::Unnamed) => {
            client = ClientHop::At(address);
        }
        Some(_) => {}
    });
    client
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROXY: Origin = Origin::Address(IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1)));

    /// The source for header lines of `name: value`, with 10/8 and fd00::/8 trusted.
    fn source(origin: Origin, lines: &[&str]) -> Option<String> {
        source_by(None, origin, lines)
    }

    /// The same where only one header is trusted.
    fn source_by(only: Option<HopField>, origin: Origin, lines: &[&str]) -> Option<String> {
        let proxies = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        let split = |line: &&'static str| {
            let (name, value) = line.split_once(": ").unwrap();
            Header { name, value: value.as_bytes() }
        };
        let lines: Vec<&'static str> =
            lines.iter().map(|it| &*Box::leak(it.to_string().into_boxed_str())).collect();
        let headers: Vec<_> = lines.iter().map(split).collect();
        origin.source(&headers, &proxies, only).map(|it| it.to_string())
    }

    fn is(address: &str) -> Option<String> {
        Some(address.to_owned())
    }

    #[test]
    fn headers_of_strangers_are_not_looked_at() {
        let stranger = Origin::Address("198.51.100.7".parse().unwrap());
        let forged = ["X-Forwarded-For: 6.6.6.6", "Forwarded: for=x", "X-Real-IP: 6.6.6.6"];
        assert_eq!(source(stranger, &forged), is("198.51.100.7"));
        let mapped = Origin::Address("::ffff:198.51.100.7".parse().unwrap());
        assert_eq!(source(mapped, &[]), is("198.51.100.7"));
    }

    #[test]
    fn nobody_is_not_believed_and_has_no_address() {
        let forged = ["X-Forwarded-For: 6.6.6.6", "Forwarded: for=6.6.6.6", "X-Real-IP: 6.6.6.6"];
        for count in 0..=forged.len() {
            assert_eq!(source(Origin::Nobody, &forged[..count]), None);
        }
        let everyone = ["0.0.0.0/0".parse().unwrap(), "::/0".parse().unwrap()];
        assert!(!Origin::Nobody.is_trusted(&everyone));
        assert_eq!(Origin::Nobody.address(), None);
    }

    #[test]
    fn the_nearest_hop_that_is_no_proxy_is_the_client() {
        for origin in [PROXY, Origin::Local] {
            for lines in [
                &["X-Forwarded-For: 6.6.6.6, 1.2.3.4"][..],
                &["X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.0.0.9, 10.0.0.8"],
                &[
                    "X-Forwarded-For: 6.6.6.6",
                    "x-forwarded-for: 1.2.3.4",
                    "X-FORWARDED-FOR: fd00::1",
                ],
                &["X-Forwarded-For: garbage, 1.2.3.4"],
                &["X-Forwarded-For: 6.6.6.6, ::ffff:1.2.3.4, ::ffff:10.0.0.1"],
                &["X-Real-IP: 1.2.3.4"],
                &[
                    "Forwarded: for=6.6.6.6, for=1.2.3.4;proto=https",
                    "Forwarded: for=\"[fd00::9]:1\"",
                ],
            ] {
                assert_eq!(source(origin, lines), is("1.2.3.4"), "{lines:?}");
            }
        }
    }

    #[test]
    fn a_client_inside_the_trusted_networks_is_the_farthest_hop() {
        assert_eq!(source(PROXY, &["X-Forwarded-For: 10.7.7.7, 10.0.0.2"]), is("10.7.7.7"));
    }

    #[test]
    fn a_proxy_that_names_nobody_is_not_the_client() {
        for lines in [
            &[][..],
            &["X-Forwarded-For: "],
            &["X-Forwarded-For: ,"],
            &["X-Forwarded-For: 1.2.3.4, unknown"],
            &["X-Forwarded-For: 1.2.3.4, garbage, 10.0.0.2"],
            &["Forwarded: for=_hidden"],
            &["Forwarded: proto=https"],
            &["X-Real-IP: none"],
        ] {
            assert_eq!(source(PROXY, lines), None, "{lines:?}");
            assert_eq!(source(Origin::Local, lines), None, "{lines:?}");
        }
    }

    #[test]
    fn fields_that_disagree_are_not_believed() {
        for lines in [
            // The proxy writes one field, and forwards the client's value of the other.
            ["Forwarded: for=6.6.6.6", "X-Forwarded-For: 1.2.3.4"],
            ["X-Forwarded-For: 6.6.6.6", "X-Real-IP: 1.2.3.4"],
            ["X-Forwarded-For: unknown", "X-Real-IP: 1.2.3.4"],
            ["Forwarded: for=1.2.3.4", "X-Real-IP: garbage"],
        ] {
            assert_eq!(source(PROXY, &lines), None, "{lines:?}");
        }
    }

    #[test]
    fn where_one_field_is_named_the_others_do_not_count() {
        let lines = ["Forwarded: for=1.1.1.1", "X-Forwarded-For: 2.2.2.2", "X-Real-IP: 3.3.3.3"];
        for (field, at) in HopField::ALL.into_iter().zip(0..) {
            for origin in [PROXY, Origin::Local] {
                let expected = format!("{0}.{0}.{0}.{0}", at + 1);
                assert_eq!(source_by(Some(field), origin, &lines), Some(expected), "{field:?}");
                let others = [lines[(at + 1) % 3], lines[(at + 2) % 3]];
                assert_eq!(source_by(Some(field), origin, &others), None, "{field:?}");
            }
            let stranger = Origin::Address("198.51.100.7".parse().unwrap());
            assert_eq!(source_by(Some(field), stranger, &lines), is("198.51.100.7"));
            assert_eq!(source_by(Some(field), Origin::Nobody, &lines), None);
        }
    }

    #[test]
    fn fields_that_agree_or_name_the_inner_proxys_peer_are_believed() {
        for lines in [
            ["X-Forwarded-For: 6.6.6.6, 1.2.3.4", "X-Real-IP: 1.2.3.4"],
            ["X-Forwarded-For: 1.2.3.4, 10.0.0.2", "X-Real-IP: 10.0.0.2"],
            ["Forwarded: for=10.0.0.2", "X-Forwarded-For: 1.2.3.4"],
            ["Forwarded: for=1.2.3.4", "X-Forwarded-For: ::ffff:1.2.3.4"],
        ] {
            assert_eq!(source(PROXY, &lines), is("1.2.3.4"), "{lines:?}");
        }
    }
}
