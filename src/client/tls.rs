//! TLS for clients: which certificates are trusted, and explanations of failed handshakes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, VerifierBuilderError, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{Error as PemError, PemObject as _};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};

/// Which certificates are trusted.
#[derive(Clone, Copy, Debug)]
pub enum Trust<'a> {
    /// Those of the authorities that this host trusts.
    System,
    /// Those in a PEM file, be they authorities' or the server's own, and no others.
    File(&'a Path),
    /// All certificates.
    Anyone,
}

impl<'a> Trust<'a> {
    /// From command-line options: `insecure` first, then a file, then this host's authorities.
    pub fn of(file: Option<&'a Path>, insecure: bool) -> Self {
        match file {
            _ if insecure => Self::Anyone,
            Some(file) => Self::File(file),
            None => Self::System,
        }
    }
}

/// Why there are no TLS settings for a client.
#[derive(Debug, thiserror::Error)]
pub enum TlsConfigError {
    /// A certificate cannot hold this host.
    #[error("{0} is not a valid server name for TLS")]
    ServerName(String),
    /// The library has none of the protocol versions.
    #[error(transparent)]
    Versions(Error),
    /// The library makes no verifier of the certificates in the file of `--ca`.
    #[error(transparent)]
    Verifier(VerifierBuilderError),
    /// This host has no certificates of authorities.
    #[error("this host trusts no authorities: install ca-certificates, or use --ca")]
    NoSystemRoots,
    /// The file of `--ca` cannot be read, or is not PEM.
    #[error("{}: certificates cannot be read: {}", file.display(), pem_cause(error))]
    File {
        /// The file.
        file: PathBuf,
        /// Why.
        error: PemError,
    },
    /// The library refuses a certificate of the file of `--ca`.
    #[error("{}: {error}", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// Why.
        error: Error,
    },
    /// The file of `--ca` has no certificate.
    #[error("{}: has no PEM certificate", .0.display())]
    EmptyFile(PathBuf),
}

/// The cause of an error, without the name of its kind.
fn pem_cause(error: &PemError) -> String {
    match error {
        PemError::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The name that a certificate must hold.
///
/// # Errors
/// [`TlsConfigError::ServerName`], if a certificate cannot hold this host.
pub fn server_name(host: &str) -> Result<ServerName<'static>, TlsConfigError> {
    ServerName::try_from(host.to_owned()).map_err(|_| TlsConfigError::ServerName(host.to_owned()))
}

/// The TLS settings of a client. Without `resumption` every handshake is a full one.
///
/// # Errors
/// There are no certificates, or they cannot be read.
pub fn config(trust: Trust<'_>, resumption: bool) -> Result<Arc<ClientConfig>, TlsConfigError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsConfigError::Versions)?;
    let verifier: Arc<dyn ServerCertVerifier> = match trust {
        Trust::System => verifier_of(system_roots()?, provider)?,
        Trust::File(file) => Arc::new(PinnedCertificate::in_file(file, provider)?),
        Trust::Anyone => Arc::new(AnyCertificate(provider)),
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = builder.with_no_client_auth();
    if !resumption {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

/// Explains a failed handshake, with the remedy.
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
        error if is_of_authority(error) => {
            "the server shows an authority's certificate, as self-signed ones are: name its file \
             with --ca FILE, or skip the check with --insecure"
                .into()
        }
        Error::InvalidMessage(_) => {
            "the response is not TLS: use http:// or ws://, or another port".into()
        }
        other => format!("TLS: {}", other.to_string().escape_debug()),
    }
}

fn system_roots() -> Result<RootCertStore, TlsConfigError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(TlsConfigError::NoSystemRoots);
    }
    Ok(roots)
}

fn verifier_of(
    roots: RootCertStore,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<WebPkiServerVerifier>, TlsConfigError> {
    let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
    builder.build().map_err(TlsConfigError::Verifier)
}

/// Trusts the certificates in a file: as authorities, and as the server's own. `openssl req -x509`
/// marks a self-signed certificate as an authority's, which the library accepts from no server;
/// curl accepts it, where its file holds that very certificate.
#[derive(Debug)]
struct PinnedCertificate {
    authorities: Arc<WebPkiServerVerifier>,
    certificates: Vec<CertificateDer<'static>>,
}

impl PinnedCertificate {
    fn in_file(file: &Path, provider: Arc<CryptoProvider>) -> Result<Self, TlsConfigError> {
        let unreadable = |error| TlsConfigError::File { file: file.to_owned(), error };
        let read = CertificateDer::pem_file_iter(file).map_err(unreadable)?;
        let certificates: Vec<_> = read.collect::<Result<_, _>>().map_err(unreadable)?;
        if certificates.is_empty() {
            return Err(TlsConfigError::EmptyFile(file.to_owned()));
        }
        let mut roots = RootCertStore::empty();
        for certificate in certificates.iter().cloned() {
            let added = roots.add(certificate);
            added.map_err(|error| TlsConfigError::Certificate { file: file.to_owned(), error })?;
        }
        Ok(Self { authorities: verifier_of(roots, provider)?, certificates })
    }
}

impl ServerCertVerifier for PinnedCertificate {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let authorities = &self.authorities;
        match authorities.verify_server_cert(certificate, intermediates, name, ocsp, now) {
            // The library checks the dates before the kind of the certificate.
            Err(error) if is_of_authority(&error) && self.certificates.contains(certificate) => {
                verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// Whether a certificate is refused because it is marked as an authority's.
fn is_of_authority(error: &Error) -> bool {
    let Error::InvalidCertificate(CertificateError::Other(other)) = error else { return false };
    let cause = other.0.downcast_ref::<webpki::Error>();
    matches!(cause, Some(webpki::Error::CaUsedAsEndEntity))
}

/// Trusts any certificate. The handshake's signature is still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
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
        assert_eq!(
            server_name("a b").unwrap_err().to_string(),
            "a b is not a valid server name for TLS"
        );
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let empty = tempfile::NamedTempFile::new().unwrap();
        let error = config(Trust::File(empty.path()), true).unwrap_err().to_string();
        assert!(error.contains("no PEM certificate"), "{error}");
        let error = config(Trust::File(Path::new("/absent")), true).unwrap_err().to_string();
        assert!(error.starts_with("/absent: "), "{error}");
        assert!(config(Trust::Anyone, false).is_ok());
    }
}
