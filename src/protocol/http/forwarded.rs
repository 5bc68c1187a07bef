//! Header fields in which reverse proxies name the hops before them: `Forwarded` (RFC 7239),
//! `X-Forwarded-For` and `X-Real-IP`. This file only reads them. Whether a field can be trusted
//! depends on who wrote it.
//!
//! `Forwarded` is read here because rfc7239 (0.1.3) ends an element at a comma within quotation
//! marks, so that a quoted `host` forges a hop; it also accepts half of a quoted value and a second
//! `for`. The tests check that all three are refused here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use httparse::Header;
use strum::{EnumCount, VariantArray};

use super::{tokens, values};

/// A header field that names hops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumCount, VariantArray)]
pub enum HopField {
    /// RFC 7239.
    Forwarded,
    /// A list of addresses.
    XForwardedFor,
    /// Usually one address.
    XRealIp,
}

impl HopField {
    /// All fields, the standard first.
    pub const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The name of the field in requests, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forwarded => "forwarded",
            Self::XForwardedFor => "x-forwarded-for",
            Self::XRealIp => "x-real-ip",
        }
    }

    /// The field of this name, in any case.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|field| name.eq_ignore_ascii_case(field.name()))
    }

    /// Calls `hop` with each hop, the farthest first: its address, unmapped, or `None` if it cannot
    /// be read. Repeated fields are one list (RFC 9110, 5.3).
    pub fn for_each_hop(self, headers: &[Header<'_>], hop: impl FnMut(Option<IpAddr>)) {
        match self {
            Self::Forwarded => values(headers, self.name())
                .flat_map(|value| split(value, b','))
                .map(forwarded_for)
                .for_each(hop),
            Self::XForwardedFor | Self::XRealIp => listed(headers, self.name()).for_each(hop),
        }
    }
}

fn listed<'a>(
    headers: &'a [Header<'a>],
    name: &'static str,
) -> impl Iterator<Item = Option<IpAddr>> + use<'a> {
    values(headers, name).flat_map(tokens).map(address)
}

/// The `for` of one element. The element must be complete: in half of one, a forged quotation mark
/// may hide what a proxy appended.
fn forwarded_for(element: &[u8]) -> Option<IpAddr> {
    let mut found = None;
    for pair in split(element, b';') {
        let equals = pair.iter().position(|it| *it == b'=')?;
        let (name, value) = (&pair[..equals], &pair[equals + 1..]);
        let value = match value {
            [b'"', inside @ .., b'"'] => inside,
            [b'"'] => return None,
            plain => plain,
        };
        if name.contains(&b'"') || value.iter().any(|byte| matches!(byte, b'"' | b'\\')) {
            return None;
        }
        if name.eq_ignore_ascii_case(b"for") && found.replace(address(value)?).is_some() {
            return None;
        }
    }
    found
}

/// The parts of a list between separators outside of quotation marks. Empty parts are skipped.
fn split(value: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut quoted = false;
    let parts = value.split(move |byte| {
        quoted ^= *byte == b'"';
        *byte == separator && !quoted
    });
    parts.map(<[u8]>::trim_ascii).filter(|it| !it.is_empty())
}

/// An address in the forms that proxies write: bare, with a port, IPv6 with or without brackets.
fn address(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?;
    let address = match text.strip_prefix('[') {
        Some(rest) => {
            let (inside, port) = rest.split_once(']')?;
            let port = port.strip_prefix(':').map_or(port.is_empty(), is_port);
            port.then(|| inside.parse::<Ipv6Addr>().ok())?.map(IpAddr::from)
        }
        None => text.parse().ok().or_else(|| {
            let (host, port) = text.split_once(':')?;
            is_port(port).then(|| host.parse::<Ipv4Addr>().ok())?.map(IpAddr::from)
        }),
    };
    address.map(|it| it.to_canonical())
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn hops(field: HopField, lines: &[(&str, &[u8])]) -> Vec<Option<String>> {
        let headers: Vec<_> = lines.iter().map(|&(name, value)| Header { name, value }).collect();
        let mut all = Vec::new();
        field.for_each_hop(&headers, |it| all.push(it.map(|it| it.to_string())));
        all
    }

    fn forwarded(value: &str) -> Vec<Option<String>> {
        hops(HopField::Forwarded, &[("FORWARDED", value.as_bytes())])
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    #[test]
    fn lines_are_joined_in_order_whatever_the_case_of_their_names() {
        let lines: [(&str, &[u8]); 4] = [
            ("X-Forwarded-For", b"1.1.1.1, 2.2.2.2:81"),
            ("x-real-ip", b"9.9.9.9"),
            ("x-forwarded-FOR", b" [2001:db8::1]:4711 ,, 2001:db8::2,[2001:db8::3]"),
            ("X-Forwarded-For", b"::ffff:3.3.3.3"),
        ];
        let expected =
            ["1.1.1.1", "2.2.2.2", "2001:db8::1", "2001:db8::2", "2001:db8::3", "3.3.3.3"];
        assert_eq!(hops(HopField::XForwardedFor, &lines), expected.map(some));
        assert_eq!(hops(HopField::XRealIp, &lines), [some("9.9.9.9")]);
        assert!(hops(HopField::Forwarded, &lines).is_empty());
    }

    #[test]
    fn forwarded_is_read_as_in_rfc_7239() {
        assert_eq!(
            forwarded(r#"for=192.0.2.43, For="[2001:db8:cafe::17]:4711";proto=http; by=x"#),
            [some("192.0.2.43"), some("2001:db8:cafe::17")]
        );
        assert_eq!(forwarded(r#"proto=https;for="192.0.2.60:80""#), [some("192.0.2.60")]);
    }

    #[test]
    fn what_hides_a_hop_is_no_address() {
        for value in [
            "for=unknown",
            "for=_hidden",
            "proto=http",
            "for=",
            "for",
            "for=1.2.3",
            "x",
            "for=1.2.3.4;for=1.2.3.4",
            "for=1.2.3.4:99999",
            r#"for="1.2.3.4"#,
            r#"for=""#,
            r#"for="[::1""#,
            r#"for="\1.2.3.4""#,
            r#"for="[::1]x""#,
            "for=[::1%eth0]",
        ] {
            assert_eq!(forwarded(value), [None], "{value}");
        }
        for value in ["unknown", "1.2.3.4:", "1.2.3.4:x", "[1.2.3.4]", "a b", "1.2.3.4 5"] {
            let lines: [(&str, &[u8]); 1] = [("x-forwarded-for", value.as_bytes())];
            assert_eq!(hops(HopField::XForwardedFor, &lines), [None], "{value}");
        }
    }

    #[test]
    fn a_forged_quotation_mark_hides_nobody_behind_another() {
        // The client wrote what is before the comma. The proxy appended the rest.
        for value in [
            r#"for=6.6.6.6;x=", for="[2001:db8::1]""#,
            r#"for=6.6.6.6;x=", for=192.0.2.1"#,
            r#"for="6.6.6.6, for="192.0.2.1""#,
            r#"for=6.6.6.6;"x=, for="192.0.2.1""#,
            r#"for=6.6.6.6;x="\, for="192.0.2.1""#,
            // A quoted host, which the client chose as well.
            r#"for=192.0.2.1;host="x, for=6.6.6.6;y=""#,
        ] {
            let last = forwarded(value).pop().flatten();
            assert_ne!(last.as_deref(), Some("6.6.6.6"), "{value}");
        }
    }

    proptest! {
        #[test]
        fn no_value_is_too_strange(value in vec(any::<u8>(), 0..100)) {
            for field in HopField::ALL {
                hops(field, &[("forwarded", &value), ("x-forwarded-for", &value)]);
            }
        }

        #[test]
        fn an_address_is_read_in_every_form(address in any::<IpAddr>(), port in any::<u16>()) {
            let canonical = Some(address.to_canonical());
            let with_port = std::net::SocketAddr::new(address, port).to_string();
            prop_assert_eq!(super::address(address.to_string().as_bytes()), canonical);
            prop_assert_eq!(super::address(with_port.as_bytes()), canonical);
        }
    }
}
