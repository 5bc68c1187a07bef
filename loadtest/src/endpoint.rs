//! The parts of a `--target`: protocol, path, and trusted certificates. Addresses are in
//! [`Targets`].

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use skep::client::http::scrape_target;
use skep::client::tls::{self, TlsConfigError, Trust};
use skep::client::url::{Scheme, Url, UrlError};

use crate::error::{LoadtestError, UsageError};
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

/// Texts that are not the targets of a run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TargetError {
    /// There is none.
    #[error("give a --target")]
    Missing,
    /// This one is no URL.
    #[error("--target {text}: {error}; HOST:PORT means UDP")]
    Url {
        /// The text.
        text: String,
        /// What is wrong with it.
        error: UrlError,
    },
    /// Two trackers.
    #[error("targets may differ in their address only")]
    Different,
    /// Two addresses of one family.
    #[error("give at most one --target per IP version")]
    SameFamily,
}

/// A target has no address.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResolveError {
    /// The name exists, without one.
    #[error("{0} has no address")]
    NoAddress(Url),
    /// The name cannot be resolved.
    #[error("--target {url}: {error}; expected: HOST:PORT or a URL")]
    Failed {
        /// The target.
        url: Url,
        /// What the resolver returned.
        error: io::Error,
    },
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
        let usage = |error| LoadtestError::Usage(UsageError::Target(error));
        let urls: Result<Vec<Url>, TargetError> = texts.iter().map(|it| read(it)).collect();
        let urls = urls.map_err(usage)?;
        let first = urls.first().ok_or_else(|| usage(TargetError::Missing))?;
        if urls.iter().any(|it| (it.scheme, &it.path) != (first.scheme, &first.path)) {
            return Err(usage(TargetError::Different));
        }
        let mut targets = Targets { v4: None, v6: None };
        for url in &urls {
            let address = resolve(url)?;
            let target = if address.is_ipv4() { &mut targets.v4 } else { &mut targets.v6 };
            if target.replace(address).is_some() {
                return Err(usage(TargetError::SameFamily));
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
    fn of(url: &Url, trust: &TlsArguments, resumption: bool) -> Result<Self, TlsConfigError> {
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
            tls: tls.transpose()?,
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
fn read(text: &str) -> Result<Url, TargetError> {
    let url = if text.contains("://") { text.to_owned() } else { format!("udp://{text}") };
    url.parse().map_err(|error| TargetError::Url { text: text.to_owned(), error })
}

fn resolve(url: &Url) -> Result<SocketAddr, ResolveError> {
    match (url.host.as_str(), url.port).to_socket_addrs().map(|mut it| it.next()) {
        Ok(Some(address)) => Ok(address),
        Ok(None) => Err(ResolveError::NoAddress(url.clone())),
        Err(error) => Err(ResolveError::Failed { url: url.clone(), error }),
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
