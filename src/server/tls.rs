//! The certificate: read at start, and again on SIGHUP or when one of its files changes.
//!
//! A certificate that cannot be used never replaces one that works. Session tickets are stateless
//! and their keys are kept across reloads, so clients resume on any worker, whichever certificate
//! their first session had.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::ProducesTickets;
use tracing::{error, info};

use crate::config::ConfigError;
use crate::server::StartError;
use crate::server::log::OPERATOR;
use crate::sys::regular_file;

/// The certificate in force, and its files.
pub(super) struct Tls {
    /// The configuration for new connections of the workers.
    pub(super) config: Arc<ArcSwap<ServerConfig>>,
    files: Files,
    seen: Option<[FileStamp; 2]>,
    tickets: Arc<dyn ProducesTickets>,
}

/// Paths of certificate and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// The certificate and its chain.
    pub(super) certificate: PathBuf,
    /// Its private key.
    pub(super) key: PathBuf,
}

/// Detects that a file has changed, also if a link leads to another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl Tls {
    /// Reads the certificate.
    ///
    /// # Errors
    /// [`StartError`] that names the file and the setting.
    pub(super) fn start(files: Files) -> Result<Self, StartError> {
        let tickets = ring::Ticketer::new()
            .map_err(|error| StartError::Failed(format!("cannot make keys for TLS: {error}")))?;
        let seen = files.stamps();
        let config = files.load(&tickets).map_err(StartError::Config)?;
        Ok(Self { config: Arc::new(ArcSwap::from_pointee(config)), files, seen, tickets })
    }

    /// Reads the certificate again if a file has changed since the last read. Call it periodically.
    pub(super) fn follow(&mut self) {
        let stamps = self.files.stamps();
        if stamps.is_some() && stamps != self.seen {
            self.renew();
        }
    }

    /// Reads the certificate again. If it cannot be used, the one in force stays.
    pub(super) fn renew(&mut self) {
        // Taken before reading, so that a change during the read is noticed later.
        self.seen = self.files.stamps();
        match self.files.load(&self.tickets) {
            Ok(config) => {
                self.config.store(Arc::new(config));
                info!(target: OPERATOR, "TLS certificate reloaded");
            }
            Err(error) => {
                error!(target: OPERATOR, %error, "TLS certificate not reloaded");
            }
        }
    }
}

impl Files {
    /// Reads certificate and key, to check them.
    ///
    /// # Errors
    /// [`ConfigError`] that names the setting and the file.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.read().map(|_| ())
    }

    fn stamps(&self) -> Option<[FileStamp; 2]> {
        let stamp = |path: &Path| path.metadata().ok().as_ref().map(FileStamp::of);
        Some([stamp(&self.certificate)?, stamp(&self.key)?])
    }

    fn load(&self, tickets: &Arc<dyn ProducesTickets>) -> Result<ServerConfig, ConfigError> {
        let mut config = self.read()?;
        config.ticketer = tickets.clone();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }

    fn read(&self) -> Result<ServerConfig, ConfigError> {
        let read = |setting, path: &Path| {
            regular_file::read(path).map_err(|it| unreadable(setting, path, &PemError::Io(it)))
        };
        let certificate = read("certificate", &self.certificate)?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&certificate).collect();
        let chain = chain.map_err(|it| unreadable("certificate", &self.certificate, &it))?;
        if chain.is_empty() {
            let error = PemError::NoItemsFound;
            return Err(unreadable("certificate", &self.certificate, &error));
        }
        let key = read("key", &self.key)?;
        if is_encrypted(&key) {
            let path = self.key.display();
            let problem = format!(
                "{path} is encrypted, which is not supported; remedy: write it without a \
                 passphrase (openssl pkey -in {path} -out ...), for skep's user alone"
            );
            return Err(ConfigError::at("tls.key", problem));
        }
        let key =
            PrivateKeyDer::from_pem_slice(&key).map_err(|it| unreadable("key", &self.key, &it))?;
        ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|it| it.with_no_client_auth().with_single_cert(chain, key))
            .map_err(|error| {
                let path = self.key.display();
                ConfigError::at(
                    "tls.key",
                    format!("{path} does not fit the certificate, or cannot be used: {error}"),
                )
            })
    }
}

/// Whether a PEM file has a key that is protected by a passphrase: as PKCS #8 (RFC 5958), or in the
/// older format of OpenSSL.
fn is_encrypted(pem: &[u8]) -> bool {
    let marks: [&[u8]; 2] = [b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED"];
    marks.iter().any(|mark| memchr::memmem::find(pem, mark).is_some())
}

fn unreadable(setting: &str, path: &Path, error: &PemError) -> ConfigError {
    let path = path.display();
    let problem = match error {
        PemError::Io(error) => format!(
            "cannot read {path}: {error}; remedy: create the file, or let skep's user read it"
        ),
        PemError::NoItemsFound => format!("{path} contains no PEM {setting}"),
        error => format!("{path} is not a PEM file: {error}"),
    };
    ConfigError::at(format!("tls.{setting}"), problem)
}

impl FileStamp {
    fn of(file: &Metadata) -> Self {
        Self { inode: file.ino(), bytes: file.len(), modified: (file.mtime(), file.mtime_nsec()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn files(folder: &Path) -> Files {
        Files { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") }
    }

    fn write(files: &Files, name: &str) {
        let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(&files.key, pair.signing_key.serialize_pem()).unwrap();
        fs::write(&files.certificate, pair.cert.pem()).unwrap();
    }

    #[test]
    fn what_cannot_be_used_names_setting_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        let said = |files: &Files| files.check().unwrap_err().to_string();
        assert!(said(&files).contains("tls.certificate"), "{}", said(&files));
        write(&files, "localhost");
        files.check().unwrap();
        fs::write(&files.certificate, "").unwrap();
        assert!(said(&files).contains("contains no PEM certificate"), "{}", said(&files));
        write(&files, "localhost");
        let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
        fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        assert!(said(&files).contains("does not fit the certificate"), "{}", said(&files));
        fs::remove_file(&files.key).unwrap();
        assert!(said(&files).contains("tls.key"), "{}", said(&files));
        let kind = "ENCRYPTED PRIVATE KEY";
        let pem = format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
        fs::write(&files.key, pem).unwrap();
        assert!(said(&files).contains("encrypted, which is not supported"), "{}", said(&files));
        fs::remove_file(&files.key).unwrap();
        // A pipe does not block.
        assert!(std::process::Command::new("mkfifo").arg(&files.key).status().unwrap().success());
        assert!(said(&files).contains("not a regular file"), "{}", said(&files));
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        write(&files, "before");
        let mut tls = Tls::start(files.clone()).unwrap();
        let first = tls.config.load_full();
        tls.follow();
        assert!(Arc::ptr_eq(&first, &tls.config.load()), "nothing has changed");
        write(&files, "after");
        tls.follow();
        let second = tls.config.load_full();
        assert!(!Arc::ptr_eq(&first, &second));
        fs::write(&files.key, "broken").unwrap();
        tls.follow();
        assert!(Arc::ptr_eq(&second, &tls.config.load()), "the one that works stays");
    }

    #[test]
    fn what_was_read_again_when_told_to_is_not_followed_once_more() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        write(&files, "before");
        let mut tls = Tls::start(files.clone()).unwrap();
        let first = tls.config.load_full();
        write(&files, "after");
        tls.renew();
        let second = tls.config.load_full();
        assert!(!Arc::ptr_eq(&first, &second));
        tls.follow();
        assert!(Arc::ptr_eq(&second, &tls.config.load()), "read a second time");
    }
}
