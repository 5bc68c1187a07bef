//! Where an admin listener is: `ADDRESS:PORT`, or an http or https URL. One parser for every
//! subcommand that asks a running tracker.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::cli::admin_client::{Server, reachable};
use crate::client::tls::{self, TlsConfigError, Trust};
use crate::client::url::{Scheme, Url};

/// The place of an admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct AdminAddress {
    /// Whether it is behind a proxy that serves TLS: the listener itself does not.
    pub(in crate::cli) has_tls: bool,
    /// A name or an address; an IPv6 address without brackets.
    pub(in crate::cli) host: String,
    /// HOST:PORT, for connecting and for the header Host.
    pub(in crate::cli) authority: String,
}

/// Why a text does not name an admin listener.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::cli) enum AdminAddressError {
    /// Neither of the forms.
    #[error("allowed: ADDRESS:PORT, such as 127.0.0.1:6970, or http[s]://HOST[:PORT]")]
    Form,
    /// There is no port, and none can be assumed.
    #[error("the port is missing; remedy: {0}:6970, or the port of the setting admin.listen")]
    NoPort(String),
    /// There is a path.
    #[error("a path is not allowed; remedy: name the listener alone, such as {0}")]
    Path(String),
}

impl FromStr for AdminAddress {
    type Err = AdminAddressError;

    fn from_str(text: &str) -> Result<Self, AdminAddressError> {
        let has_scheme = text.contains("://");
        let url = if has_scheme { text.to_owned() } else { format!("http://{text}") };
        let url: Url = url.parse().map_err(|_| AdminAddressError::Form)?;
        let has_tls = match url.scheme {
            Scheme::Http => false,
            Scheme::Https => true,
            Scheme::Udp | Scheme::Ws | Scheme::Wss => return Err(AdminAddressError::Form),
        };
        if !["", "/"].contains(&&*url.path) {
            return Err(AdminAddressError::Path(url.authority()));
        }
        let has_port = text.trim_end_matches('/').ends_with(&format!(":{}", url.port));
        let is_port = text.bytes().all(|byte| byte.is_ascii_digit());
        if is_port {
            return Err(AdminAddressError::Form);
        }
        if !has_scheme && !has_port {
            return Err(AdminAddressError::NoPort(text.trim_end_matches('/').to_owned()));
        }
        // A wildcard address is where the listener listens, not where it is reached.
        if let Ok(ip) = url.host.parse::<IpAddr>()
            && ip.is_unspecified()
        {
            return Ok(Self { has_tls, ..reachable(SocketAddr::new(ip, url.port)).into() });
        }
        Ok(Self { has_tls, authority: url.authority(), host: url.host })
    }
}

impl From<SocketAddr> for AdminAddress {
    fn from(address: SocketAddr) -> Self {
        let (host, authority) = (address.ip().to_string(), address.to_string());
        Self { has_tls: false, host, authority }
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.has_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority)
    }
}

impl AdminAddress {
    /// The server to send requests to, with this trust in certificates if it has TLS.
    ///
    /// # Errors
    /// [`TlsConfigError`] if the trusted certificates cannot be read, or none can hold this name.
    pub(in crate::cli) fn server(&self, trust: Trust<'_>) -> Result<Server, TlsConfigError> {
        let tls = match self.has_tls {
            true => Some((tls::config(trust, true)?, tls::server_name(&self.host)?)),
            false => None,
        };
        Ok(Server { authority: self.authority.clone(), tls })
    }

    /// Whether requests to this listener do not leave this host.
    pub(in crate::cli) fn is_this_host(&self) -> bool {
        let address = self.host.parse::<IpAddr>();
        address.is_ok_and(|it| it.to_canonical().is_loopback()) || self.host == "localhost"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<AdminAddress, AdminAddressError> {
        text.parse()
    }

    #[test]
    fn an_address_and_a_url_name_the_same_listener() {
        for text in ["127.0.0.1:6970", "http://127.0.0.1:6970", "HTTP://127.0.0.1:6970/"] {
            let address = parse(text).unwrap();
            assert_eq!(address.to_string(), "http://127.0.0.1:6970", "{text}");
            assert_eq!(address, SocketAddr::from(([127, 0, 0, 1], 6970)).into());
        }
        assert_eq!(
            parse("[::1]:6970").unwrap(),
            "[::1]:6970".parse::<SocketAddr>().unwrap().into()
        );
        let proxied = parse("https://tracker.example.org").unwrap();
        assert_eq!(proxied.to_string(), "https://tracker.example.org:443");
        assert_eq!(parse("tracker:6970").unwrap().authority, "tracker:6970");
        let wildcards = ["0.0.0.0:1", "[::]:1"].map(|it| parse(it).unwrap().authority);
        assert_eq!(wildcards, ["127.0.0.1:1", "[::1]:1"]);
    }

    #[test]
    fn what_names_no_listener_is_refused_with_a_remedy() {
        let no_port = |text: &str| AdminAddressError::NoPort(text.to_owned());
        assert_eq!(parse("127.0.0.1"), Err(no_port("127.0.0.1")));
        assert_eq!(parse("[::1]"), Err(no_port("[::1]")));
        assert_eq!(
            parse("http://127.0.0.1:6970/stats"),
            Err(AdminAddressError::Path("127.0.0.1:6970".into()))
        );
        for bad in
            ["udp://127.0.0.1:6970", "ws://a:1", "ftp://a:1", "", "6970", "a b:1", "::1:6970"]
        {
            assert_eq!(parse(bad), Err(AdminAddressError::Form), "{bad}");
        }
    }

    #[test]
    fn only_loopback_addresses_are_this_host() {
        for here in ["localhost", "127.0.0.1", "127.9.8.7", "[::1]", "[::ffff:127.0.0.1]"] {
            assert!(parse(&format!("{here}:6970")).unwrap().is_this_host(), "{here}");
        }
        for elsewhere in ["10.0.0.1", "[2001:db8::1]", "localhost.example"] {
            assert!(!parse(&format!("{elsewhere}:6970")).unwrap().is_this_host(), "{elsewhere}");
        }
    }
}
