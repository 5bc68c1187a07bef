//! The files of the certificate: reads them, names the one that is wrong, and finds what will fail
//! later: a certificate that expires, and files that only root may read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{Error as PemError, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error as TlsError, InconsistentKeys, ServerConfig};
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate, X509Version};

use crate::admin::live::EXPIRY_NEAR_S;
use crate::config::{ConfigError, ConfigFinding, ConfigTopic};
use crate::server::confine;
use crate::sys::identity::UnixUser;
use crate::sys::regular_file;

const DAY_S: i64 = 24 * 60 * 60;

/// Paths of certificate and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Files {
    /// The certificate and its chain.
    pub(super) certificate: PathBuf,
    /// Its private key.
    pub(super) key: PathBuf,
}

/// A certificate that can be served.
pub(super) struct Certificate {
    /// With no settings of its own yet.
    pub(super) config: ServerConfig,
    /// When it is valid.
    pub(super) validity: Validity,
}

/// When a certificate and its chain are valid: all of it, in seconds since the Unix epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub from_s: i64,
    /// The last second.
    pub to_s: i64,
}

impl Files {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// [`ConfigError`] that names the setting and the file that is wrong.
    pub(super) fn read(&self) -> Result<Certificate, ConfigError> {
        let ((chain, validity), key) = match (self.read_chain(), self.read_key()) {
            (Ok(chain), Ok(key)) => (chain, key),
            (chain, key) => {
                let errors = [chain.err(), key.err()].into_iter().flatten();
                return Err(ConfigError { faults: errors.flat_map(|it| it.faults).collect() });
            }
        };
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder.with_no_client_auth().with_single_cert(chain.clone(), key.clone_key())
            })
            .map_err(|error| self.unusable(&error, &chain, key, &provider))?;
        Ok(Certificate { config, validity })
    }

    /// What is wrong with the certificate or its key alone: which of them is to be read.
    pub(super) fn faults_of(&self, [certificate, key]: [bool; 2]) -> Vec<ConfigFinding> {
        let certificate = certificate.then(|| self.read_chain().err()).flatten();
        let key = key.then(|| self.read_key().err()).flatten();
        certificate.into_iter().chain(key).flat_map(|it| it.faults).collect()
    }

    fn read_chain(&self) -> Result<(Vec<CertificateDer<'static>>, Validity), ConfigError> {
        let refused = |error: &PemError| unreadable("certificate", &self.certificate, error);
        let pem = regular_file::read(&self.certificate);
        let pem = pem.map_err(|error| refused(&PemError::Io(error)))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        let chain = chain.map_err(|error| refused(&error))?;
        if chain.is_empty() {
            return Err(refused(&PemError::NoItemsFound));
        }
        let validity = self.inspect(&chain)?;
        Ok((chain, validity))
    }

    fn read_key(&self) -> Result<PrivateKeyDer<'static>, ConfigError> {
        let refused = |error: &PemError| unreadable("key", &self.key, error);
        let key = regular_file::read(&self.key).map_err(|error| refused(&PemError::Io(error)))?;
        if is_encrypted(&key) {
            let path = self.key.display();
            let problem = format!(
                "{path} is encrypted, which is not supported; remedy: write it without a \
                 passphrase (openssl pkey -in {path} -out ...), for skep's user alone"
            );
            return Err(ConfigError::at("tls.key", problem));
        }
        PrivateKeyDer::from_pem_slice(&key).map_err(|error| refused(&error))
    }

    /// Checks the certificates that are served, and returns when all of them are valid.
    fn inspect(&self, chain: &[CertificateDer<'_>]) -> Result<Validity, ConfigError> {
        let path = self.certificate.display();
        let mut validity = Validity { from_s: i64::MIN, to_s: i64::MAX };
        for (at, der) in chain.iter().enumerate() {
            let (_, certificate) = X509Certificate::from_der(der).map_err(|error| {
                let problem = format!(
                    "certificate {} of {path} is not an X.509 certificate: {error}; remedy: get \
                     it again from its authority",
                    at + 1
                );
                ConfigError::at("tls.certificate", problem)
            })?;
            // A root may be of version 1, and no client reads it.
            if at == 0 && certificate.version() != X509Version::V3 {
                let problem = format!(
                    "{path} is an X.509 certificate of version {}, which clients refuse; remedy: \
                     get one of version 3 (with openssl x509 -req: add -extfile with \
                     subjectAltName)",
                    certificate.version().0 + 1
                );
                return Err(ConfigError::at("tls.certificate", problem));
            }
            let dates = certificate.validity();
            validity.from_s = validity.from_s.max(dates.not_before.timestamp());
            validity.to_s = validity.to_s.min(dates.not_after.timestamp());
        }
        Ok(validity)
    }

    /// Names the file because of which certificate and key cannot be served.
    fn unusable(
        &self,
        error: &TlsError,
        chain: &[CertificateDer<'static>],
        key: PrivateKeyDer<'static>,
        provider: &CryptoProvider,
    ) -> ConfigError {
        let (certificate, path) = (self.certificate.display(), self.key.display());
        match error {
            TlsError::InvalidCertificate(_) => ConfigError::at(
                "tls.certificate",
                format!(
                    "{certificate} cannot be served: {error}; remedy: get it again from its \
                     authority"
                ),
            ),
            TlsError::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                let fits = |other: &&CertificateDer<'static>| {
                    let key =
                        CertifiedKey::from_der(vec![(*other).clone()], key.clone_key(), provider);
                    key.is_ok()
                };
                if chain.iter().skip(1).any(|it| fits(&it)) {
                    let problem = format!(
                        "{certificate} begins with the certificate of an authority; remedy: put \
                         the server's certificate, which {path} belongs to, first"
                    );
                    return ConfigError::at("tls.certificate", problem);
                }
                let problem = format!(
                    "{path} does not fit the certificate in {certificate}; remedy: name the key \
                     that the certificate was made for, of the same renewal"
                );
                ConfigError::at("tls.key", problem)
            }
            _ => ConfigError::at(
                "tls.key",
                format!(
                    "{path} cannot be used: {error}; remedy: make a key of ECDSA (P-256, P-384), \
                     Ed25519 or RSA (2048 bits or more), and a certificate for it"
                ),
            ),
        }
    }

    /// What will fail later though both files can be read now: a certificate that expires, and
    /// files that the user to change to may not read again. `now_s` is in seconds since the Unix
    /// epoch.
    pub(super) fn warnings(
        &self,
        validity: Validity,
        user: Option<&UnixUser>,
        now_s: i64,
    ) -> Vec<ConfigFinding> {
        let path = self.certificate.display();
        let dated = validity.warning(now_s).map(|(topic, text)| {
            ConfigFinding::warning(format!("{path} {text}")).about("tls.certificate").on(topic)
        });
        let unreadable = self.unreadable_as(user).into_iter().map(|(setting, problem)| {
            let warning = format!(
                "{problem}, so a renewed certificate will not be loaded; remedy: let server.user \
                 read both files and enter their folders (docs/operating.md has a certbot hook)"
            );
            ConfigFinding::warning(warning).about(setting).on(ConfigTopic::CertificateRenewal)
        });
        dated.into_iter().chain(unreadable).collect()
    }

    /// The files that the user to change to may not read, each with its setting.
    fn unreadable_as(&self, user: Option<&UnixUser>) -> Vec<(&'static str, String)> {
        let Some(user) = user else { return Vec::new() };
        // Without the right to act as the user, the start fails later and names the reason.
        let Ok(_acting) = confine::act_as(Some(user)) else { return Vec::new() };
        let files = [("tls.certificate", &self.certificate), ("tls.key", &self.key)];
        let denied = files.into_iter().filter_map(|(setting, path)| {
            let error = regular_file::open(path).err()?;
            let (path, number) = (path.display(), user.user());
            Some((setting, format!("user {number} (server.user) cannot read {path}: {error}")))
        });
        denied.collect()
    }
}

impl Validity {
    /// What is wrong with these dates at a moment, in seconds since the Unix epoch, with a remedy.
    fn warning(self, now_s: i64) -> Option<(ConfigTopic, String)> {
        let Self { from_s, to_s } = self;
        if now_s > to_s {
            let text = format!("expired on {}; remedy: renew it", day(to_s));
            return Some((ConfigTopic::CertificateRefused, text));
        }
        if now_s < from_s {
            let from = day(from_s);
            let text =
                format!("is not valid before {from}; remedy: set this host's clock, or wait");
            return Some((ConfigTopic::CertificateRefused, text));
        }
        (to_s - now_s < i64::from(EXPIRY_NEAR_S)).then(|| {
            let text = format!(
                "expires on {}, in {} days; remedy: renew it, and check what should have \
                 (certbot renew --dry-run)",
                day(to_s),
                (to_s - now_s) / DAY_S
            );
            (ConfigTopic::CertificateExpires, text)
        })
    }
}

/// A day as year, month and day (UTC).
pub(crate) fn day(at_s: i64) -> String {
    let time = ASN1Time::from_timestamp(at_s);
    time.map_or_else(|_| format!("second {at_s}"), |it| it.to_datetime().date().to_string())
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
        PemError::NoItemsFound => format!(
            "{path} contains no PEM {setting}; remedy: name the file that has it (certificate and \
             key may be in one)"
        ),
        error => format!("{path} is not a PEM file: {error}; remedy: convert it with openssl"),
    };
    ConfigError::at(format!("tls.{setting}"), problem)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
    use std::fs;

    pub(in crate::server) fn files(folder: &Path) -> Files {
        Files { certificate: folder.join("certificate.pem"), key: folder.join("key.pem") }
    }

    pub(in crate::server) fn write(files: &Files, name: &str) {
        let pair = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        fs::write(&files.key, pair.signing_key.serialize_pem()).unwrap();
        fs::write(&files.certificate, pair.cert.pem()).unwrap();
    }

    /// Writes a certificate that is valid between two days of the year 2030, and later.
    fn write_dated(files: &Files, from: u8, to: u8) {
        let key = KeyPair::generate().unwrap();
        let mut wanted = CertificateParams::new(["localhost".to_owned()]).unwrap();
        wanted.not_before = rcgen::date_time_ymd(2030, 1, from);
        wanted.not_after = rcgen::date_time_ymd(2030, 1, to);
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::write(&files.certificate, wanted.self_signed(&key).unwrap().pem()).unwrap();
    }

    /// The seconds of a day of January 2030.
    fn january(day: i64) -> i64 {
        1_893_456_000 + (day - 1) * DAY_S
    }

    fn error(files: &Files) -> String {
        files.read().map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn what_cannot_be_used_names_setting_and_file() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        assert!(error(&files).contains("tls.certificate"), "{}", error(&files));
        write(&files, "localhost");
        files.read().map(|_| ()).unwrap();
        fs::write(&files.certificate, "").unwrap();
        assert!(error(&files).contains("contains no PEM certificate"), "{}", error(&files));
        let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        fs::write(&files.certificate, pem).unwrap();
        let text = error(&files);
        assert!(text.contains("tls.certificate: certificate 1 of "), "{text}");
        write(&files, "localhost");
        fs::remove_file(&files.key).unwrap();
        assert!(error(&files).contains("tls.key"), "{}", error(&files));
        let kind = "ENCRYPTED PRIVATE KEY";
        let pem = format!("-----BEGIN {kind}-----\nAAAA\n-----END {kind}-----\n");
        fs::write(&files.key, pem).unwrap();
        assert!(error(&files).contains("encrypted, which is not supported"), "{}", error(&files));
        let pem = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
        fs::write(&files.key, pem).unwrap();
        assert!(error(&files).contains("tls.key: "), "{}", error(&files));
        fs::remove_file(&files.key).unwrap();
        // A pipe does not block.
        assert!(std::process::Command::new("mkfifo").arg(&files.key).status().unwrap().success());
        assert!(error(&files).contains("not a regular file"), "{}", error(&files));
    }

    #[test]
    fn of_two_files_that_do_not_fit_the_one_that_is_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        write(&files, "localhost");
        let other = rcgen::generate_simple_self_signed(["other".to_owned()]).unwrap();
        fs::write(&files.key, other.signing_key.serialize_pem()).unwrap();
        let text = error(&files);
        assert!(text.contains("tls.key: ") && text.contains("does not fit"), "{text}");
        assert!(text.contains("certificate.pem"), "{text}");

        let authority = CertificateParams::new(Vec::new()).unwrap();
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap());
        let authority = authority.unwrap();
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(["localhost".to_owned()]).unwrap();
        let own = own.signed_by(&key, &authority).unwrap().pem();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::write(&files.certificate, own.clone() + &authority.pem()).unwrap();
        files.read().map(|_| ()).unwrap();
        fs::write(&files.certificate, authority.pem() + &own).unwrap();
        let text = error(&files);
        assert!(text.contains("tls.certificate: ") && text.contains("first"), "{text}");
    }

    #[test]
    fn a_certificate_of_version_1_is_the_certificates_fault() {
        let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tls");
        let (certificate, key) = (data.join("version_1.pem"), data.join("version_1_key.pem"));
        let text = error(&Files { certificate, key });
        assert!(text.contains("tls.certificate: "), "{text}");
        assert!(text.contains("version_1.pem is an X.509 certificate of version 1"), "{text}");
    }

    #[test]
    fn a_certificate_that_expires_is_warned_of_for_two_weeks() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        write_dated(&files, 2, 31);
        let validity = files.read().unwrap().validity;
        let warned = |now_s| {
            let mut warnings = files.warnings(validity, None, now_s);
            assert!(warnings.len() < 2, "{warnings:?}");
            warnings.pop().map_or_else(String::new, |it| it.to_string())
        };
        assert!(warned(january(1)).contains("is not valid before 2030-01-02; remedy: "));
        assert_eq!([3, 17].map(|day| warned(january(day))), ["", ""]);
        let text = warned(january(18));
        assert!(text.starts_with("tls.certificate: ") && text.contains("; remedy: "), "{text}");
        assert!(text.contains("certificate.pem expires on 2030-01-31, in 13 days"), "{text}");
        assert!(warned(january(32)).contains("expired on 2030-01-31; remedy: renew it"));
    }
}
