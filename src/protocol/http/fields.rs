//! The header fields that define how a request is framed, whether its connection stays open, and
//! whether a reverse proxy has forwarded it.

use httparse::Header;

use super::forwarded::HopField;

/// The relevant header fields of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct HeaderFields<'a> {
    /// `Connection: close`.
    pub close: bool,
    /// `Connection: keep-alive`.
    pub keep_alive: bool,
    /// `Connection: upgrade` and `Upgrade: websocket` (RFC 6455, 4.2.1).
    pub websocket: bool,
    /// The requested version of the WebSocket protocol.
    pub websocket_version: Option<&'a [u8]>,
    /// The key that the response to an upgrade is derived from.
    pub websocket_key: Option<&'a [u8]>,
    /// Whether a body follows, or may follow. Its end is not searched for.
    pub body: bool,
    /// The first field, not empty, in which a proxy names the hops before it. Its value is not
    /// read here.
    pub hops: Option<HopField>,
}

impl<'a> HeaderFields<'a> {
    /// Reads every field once. Names and tokens are case-insensitive, fields may be repeated.
    pub fn of(headers: &'a [Header<'a>]) -> Self {
        let mut fields = Self::default();
        let (mut upgrade, mut websocket) = (false, false);
        for header in headers {
            let is = |name: &str| header.name.eq_ignore_ascii_case(name);
            match header.name.len() {
                9 | 15 if fields.hops.is_none() && !header.value.trim_ascii().is_empty() => {
                    fields.hops = HopField::named(header.name);
                }
                7 if is("upgrade") => websocket |= has_token(header.value, "websocket"),
                10 if is("connection") => {
                    fields.close |= has_token(header.value, "close");
                    fields.keep_alive |= has_token(header.value, "keep-alive");
                    upgrade |= has_token(header.value, "upgrade");
                }
                14 if is("content-length") => {
                    fields.body |= !matches!(header.value, [b'0', rest @ ..] if is_nought(rest));
                }
                17 if is("transfer-encoding") => fields.body = true,
                17 if is("sec-websocket-key") => fields.websocket_key = Some(header.value),
                21 if is("sec-websocket-version") => fields.websocket_version = Some(header.value),
                _ => {}
            }
        }
        fields.websocket = upgrade && websocket;
        fields
    }
}

/// The elements of a list without quoted strings (RFC 9110, 5.6.1). Empty elements are skipped.
pub fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|it| *it == b',').map(<[u8]>::trim_ascii).filter(|it| !it.is_empty())
}

fn is_nought(digits: &[u8]) -> bool {
    digits.iter().all(|it| *it == b'0')
}

fn has_token(value: &[u8], token: &str) -> bool {
    tokens(value).any(|it| it.eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<'a>(headers: &'a [Header<'a>]) -> HeaderFields<'a> {
        HeaderFields::of(headers)
    }

    fn header<'a>(name: &'a str, value: &'a str) -> Header<'a> {
        Header { name, value: value.as_bytes() }
    }

    #[test]
    fn connection_is_a_list_in_any_case_and_may_be_repeated() {
        let headers = [header("cOnnection", "foo ,\tUPGRADE,, close"), header("Connection", "x")];
        assert!(
            fields(&headers).close && !fields(&headers).keep_alive && !fields(&headers).websocket
        );
        let field = [header("connection", "Keep-Alive")];
        assert!(fields(&field).keep_alive && !fields(&field).close);
        let field = [header("connection", "closed, keep-alives")];
        assert!(!fields(&field).keep_alive && !fields(&field).close);
    }

    #[test]
    fn a_websocket_needs_both_fields() {
        let both = [header("Upgrade", "h2c, WebSocket"), header("Connection", "Upgrade")];
        assert!(fields(&both).websocket);
        assert!(!fields(&both[..1]).websocket);
        assert!(!fields(&both[1..]).websocket);
    }

    #[test]
    fn the_first_field_that_names_hops_is_found_in_any_case() {
        for (name, expected) in [
            ("forwarded", Some(HopField::Forwarded)),
            ("X-Forwarded-For", Some(HopField::XForwardedFor)),
            ("X-REAL-IP", Some(HopField::XRealIp)),
            ("X-Forwarded-Host", None),
            ("X-Real-Ips", None),
            ("Forwarder", None),
        ] {
            let lines = [header("Host", "x"), header(name, "192.0.2.1"), header("X-Real-IP", "")];
            assert_eq!(fields(&lines).hops, expected, "{name}");
        }
        let lines = [header("X-Forwarded-For", " "), header("X-Real-IP", "unknown")];
        assert_eq!(fields(&lines).hops, Some(HopField::XRealIp), "an empty field names nobody");
    }

    #[test]
    fn a_body_is_any_length_but_nought_and_any_coding() {
        for value in ["1", "00", "0", "", "+0", "18446744073709551616", "0, 0", "x"] {
            let headers = [header("Content-Length", value)];
            assert_eq!(fields(&headers).body, !matches!(value, "0" | "00"), "{value}");
        }
        assert!(fields(&[header("transfer-encoding", "identity")]).body);
    }
}
