//! TLS as clients set it up: whom they trust, and what a failed handshake tells.

use std::path::Path;
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// Whose certificates are believed.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Those of the authorities this host trusts.
    System,
    /// Those of the authorities in a PEM file, and no others.
    File(&'a Path),
    /// Anybody's.
    Anyone,
}

impl<'a> Trust<'a> {
    /// As command lines say it: `insecure` before all, then a file, then this host's authorities.
    pub fn of(file: Option<&'a Path>, insecure: bool) -> Self {
        match file {
            _ if insecure => Self::Anyone,
            Some(file) => Self::File(file),
            None => Self::System,
        }
    }
}

/// The name that a certificate has to hold.
///
/// # Errors
/// One sentence where the host cannot stand in a certificate.
pub fn server_name(host: &str) -> Result<ServerName<'static>, String> {
    ServerName::try_from(host.to_owned())
        .map_err(|_| format!("{host} is not a valid server name for TLS"))
}

/// A client's settings. Without `resumption` every handshake is a full one.
///
/// # Errors
/// One sentence with the cause: no certificates where they should be.
pub fn config(trust: Trust<'_>, resumption: bool) -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let roots = match trust {
        Trust::System => Some(system_roots()?),
        Trust::File(file) => Some(roots_in(file)?),
        Trust::Anyone => None,
    };
    let mut config = match roots {
        Some(roots) => builder.with_root_certificates(roots).with_no_client_auth(),
        None => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Credulous(provider)))
            .with_no_client_auth(),
    };
    if !resumption {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// What a failed handshake tells the user, with the remedy.
pub fn explain(error: &Error, host: &str) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "the certificate is not trusted, its issuer is unknown: name its CA with --ca FILE, or \
             skip the check with --insecure"
                .into()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            let host = host.escape_debug();
            format!("the certificate is not for {host}: use a name that it has")
        }
        Error::InvalidCertificate(
            CertificateError::Expired | CertificateError::ExpiredContext { .. },
        ) => "the certificate has expired: renew it".into(),
        Error::InvalidMessage(_) => {
            "no TLS is spoken there: use http:// or ws://, or another port".into()
        }
        other => format!("TLS: {}", other.to_string().escape_debug()),
    }
}

fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err("this host trusts no authorities: install ca-certificates, or use --ca".into());
    }
    Ok(roots)
}

fn roots_in(file: &Path) -> Result<RootCertStore, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|it| failed(&it))? {
        let certificate = certificate.map_err(|it| failed(&it))?;
        roots.add(certificate).map_err(|it| failed(&it))?;
    }
    if roots.is_empty() { Err(failed(&"holds no PEM certificate")) } else { Ok(roots) }
}

/// Believes any certificate. The handshake's signature is still checked.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_insecure_names_no_authorities() {
        let file = Path::new("ca.pem");
        assert!(matches!(Trust::of(Some(file), true), Trust::Anyone));
        assert!(matches!(Trust::of(Some(file), false), Trust::File(path) if path == file));
        assert!(matches!(Trust::of(None, false), Trust::System));
    }

    #[test]
    fn certificates_hold_names_and_addresses() {
        assert!(server_name("tracker.example").is_ok() && server_name("::1").is_ok());
        assert_eq!(server_name("a b").unwrap_err(), "a b is not a valid server name for TLS");
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = config(Trust::File(empty.path()), true).unwrap_err();
        assert!(error.contains("no PEM certificate"), "{error}");
        let error = config(Trust::File(Path::new("/absent")), true).unwrap_err();
        assert!(error.starts_with("/absent: "), "{error}");
        assert!(config(Trust::Anyone, false).is_ok());
    }
}
