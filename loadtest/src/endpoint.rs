//! The parts of a `--target`: protocol, path, and trusted certificates. Addresses are in
//! [`Targets`].

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use skep::client::http::scrape_target;
use skep::client::tls::{self, TlsConfigError, Trust};
use skep::client::url::{Scheme, Url};

use crate::error::LoadtestError;
use crate::plan::{Protocol, Transport};
use crate::sources::Targets;

/// How TLS is set up.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TlsArguments {
    /// Trust the authorities in this PEM file, and no others (https, wss).
    #[arg(long, value_name = "FILE", conflicts_with = "insecure")]
    pub(crate) ca: Option<PathBuf>,
    /// Trust any certificate (https, wss).
    #[arg(long)]
    pub(crate) insecure: bool,
}

/// A tracker over TCP, without its addresses.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Value of the Host header.
    pub(crate) authority: String,
    /// Target of announces; query parameters may follow.
    pub(crate) target: String,
    /// Target of scrapes, if the path has one by convention.
    pub(crate) scrape_target: Option<String>,
    /// Configuration and name of the certificate, if TLS is used.
    pub(crate) tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
}

/// The common part of all targets of a run, and their addresses.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    /// The addresses.
    pub(crate) targets: Targets,
    /// Protocol, and whether TLS is used.
    pub(crate) protocol: Protocol,
    /// Set unless the protocol is UDP.
    pub(crate) endpoint: Option<Endpoint>,
}

impl Aim {
    /// Parses targets: HOST:PORT or a URL, one per IP version. They may differ only in their
    /// addresses.
    ///
    /// # Errors
    /// [`LoadtestError::Usage`] for texts that are not targets; another one if a name cannot be
    /// resolved.
    pub(crate) fn of(
        texts: &[String],
        trust: &TlsArguments,
        transport: &Transport,
    ) -> Result<Self, LoadtestError> {
        let usage = |text: &str| LoadtestError::Usage(text.to_owned());
        let urls: Result<Vec<Url>, String> = texts.iter().map(|it| read(it)).collect();
        let urls = urls.map_err(LoadtestError::Usage)?;
        let first = urls.first().ok_or_else(|| usage("give a --target"))?;
        if urls.iter().any(|it| (it.scheme, &it.path) != (first.scheme, &first.path)) {
            return Err(usage("targets may differ in their address only"));
        }
        let mut targets = Targets { v4: None, v6: None };
        for url in &urls {
            let address = resolve(url)?;
            let target = if address.is_ipv4() { &mut targets.v4 } else { &mut targets.v6 };
            if target.replace(address).is_some() {
                return Err(usage("give at most one --target per IP version"));
            }
        }
        let protocol = match first.scheme {
            Scheme::Udp => return Ok(Self { targets, protocol: Protocol::Udp, endpoint: None }),
            Scheme::Http | Scheme::Https => Protocol::Http,
            Scheme::Ws | Scheme::Wss => Protocol::Ws,
        };
        let endpoint = Some(Endpoint::of(first, trust, transport.resumption)?);
        Ok(Self { targets, protocol, endpoint })
    }
}

impl Endpoint {
    fn of(url: &Url, trust: &TlsArguments, resumption: bool) -> Result<Self, String> {
        let target = if url.path.is_empty() && !url.scheme.is_websocket() {
            "/announce".to_owned()
        } else {
            url.target()
        };
        let tls = url.scheme.has_tls().then(|| {
            let trust = Trust::of(trust.ca.as_deref(), trust.insecure);
            Ok::<_, TlsConfigError>((tls::config(trust, resumption)?, tls::server_name(&url.host)?))
        });
        Ok(Self {
            authority: url.authority(),
            scrape_target: scrape_target(&target),
            target,
            tls: tls.transpose().map_err(|error| error.to_string())?,
        })
    }

    /// A tracker on this host without TLS.
    pub(crate) fn local(address: SocketAddr, protocol: Protocol) -> Self {
        let target = if protocol == Protocol::Ws { "/" } else { "/announce" };
        Self {
            authority: address.to_string(),
            target: target.to_owned(),
            scrape_target: scrape_target(target),
            tls: None,
        }
    }
}

/// Parses a URL, or HOST:PORT for UDP.
fn read(text: &str) -> Result<Url, String> {
    let url = if text.contains("://") { text.to_owned() } else { format!("udp://{text}") };
    url.parse::<Url>().map_err(|error| format!("--target {text}: {error}; HOST:PORT means UDP"))
}

fn resolve(url: &Url) -> Result<SocketAddr, String> {
    match (url.host.as_str(), url.port).to_socket_addrs().map(|mut it| it.next()) {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(format!("{url} has no address")),
        Err(error) => Err(format!("--target {url}: {error}; expected: HOST:PORT or a URL")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aim(texts: &[&str]) -> Result<Aim, LoadtestError> {
        let texts: Vec<String> = texts.iter().map(|it| (*it).to_owned()).collect();
        Aim::of(&texts, &TlsArguments { ca: None, insecure: true }, &Transport::UDP)
    }

    #[test]
    fn targets_are_addresses_or_urls() {
        assert_eq!(aim(&["127.0.0.1:7"]).unwrap().protocol, Protocol::Udp);
        let http = aim(&["http://127.0.0.1:7", "http://[::1]:8"]).unwrap();
        assert_eq!(
            (http.targets.v4, http.targets.v6),
            ("127.0.0.1:7".parse().ok(), "[::1]:8".parse().ok())
        );
        let endpoint = http.endpoint.unwrap();
        assert_eq!((&*endpoint.target, &*endpoint.authority), ("/announce", "127.0.0.1:7"));
        assert_eq!(endpoint.scrape_target.as_deref(), Some("/scrape"));
        let wss = aim(&["wss://127.0.0.1:9/x"]).unwrap();
        assert_eq!(wss.protocol, Protocol::Ws);
        assert!(wss.endpoint.unwrap().tls.is_some());
    }

    #[test]
    fn targets_that_differ_are_refused() {
        for texts in [
            &[][..],
            &["http://127.0.0.1:7", "[::1]:8"],
            &["127.0.0.1:7", "127.0.0.1:8"],
            &["gopher://127.0.0.1:7"],
            &["tracker.example"],
        ] {
            assert!(matches!(aim(texts), Err(LoadtestError::Usage(_))), "{texts:?}");
        }
    }
}
