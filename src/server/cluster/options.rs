//! The options of the cluster, with everything that the settings name in files: read at the start,
//! and judged by `skep check`.
//!
//! Secret, password and keys are read once, by the user who starts this process. The files of TLS
//! are read again for each connection, so that a renewed certificate needs no restart.

use std::fmt;
use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::client::tls::{self as client_tls, TlsConfigError, Trust};
use crate::cluster::ClusterSecret;
use crate::config::{Cluster, Config, ConfigError, ConfigFinding};
use crate::frontend::connection_id::KEY_BYTES;
use crate::sys::regular_file;
use crate::types::{CLUSTER_NAME_BYTES_MAX, is_cluster_name};

/// The setting of the secret.
const SECRET_KEY: &str = "cluster.secret_file";

/// Most bytes of a file with a secret.
const FILE_BYTES_MAX: u64 = 16 << 10;

/// Permission bits that give others than the owner access to a file.
const OTHERS: u32 = 0o077;

/// Names that hosts have that were given none: several nodes would have the same.
const NAMES_OF_ANY_HOST: [&str; 3] = ["localhost", "none", "localhost-localdomain"];

/// A secret: its `Debug` form hides the bytes.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hidden(pub(crate) Vec<u8>);

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl Hidden {
    /// The bytes as text; what is not UTF-8 is replaced.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// How this node identifies itself at a broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    /// Not at all, or by its certificate.
    None,
    /// The text of a file of credentials.
    Credentials(Hidden),
    /// User and password.
    User(String, Hidden),
    /// The seed of an nkey.
    Nkey(Hidden),
}

/// The files of TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    /// Authorities' certificates; `None`: those of the host.
    ca: Option<PathBuf>,
    /// This node's certificate and its key.
    identity: Option<(PathBuf, PathBuf)>,
}

/// What the thread of the cluster needs.
#[derive(Clone, Debug)]
pub(crate) struct ClusterOptions {
    /// The brokers' URLs, at least one.
    pub(crate) servers: Vec<String>,
    /// Whether any broker is reached over TLS.
    pub(crate) is_tls: bool,
    /// The cluster's name.
    pub(crate) name: String,
    /// This node's name.
    pub(crate) node: String,
    /// What messages are authenticated with.
    pub(crate) secret: ClusterSecret,
    /// How this node identifies itself.
    pub(crate) login: Login,
    /// The files of TLS.
    pub(crate) tls: TlsFiles,
    /// For how long changes are collected.
    pub(crate) flush: Duration,
    /// Most bytes of changes that wait to be sent.
    pub(crate) queue_bytes_max: usize,
    /// Seconds after which a node that starts is ready in any case.
    pub(crate) join_timeout_s: u32,
    /// Bytes a second that a node that starts gets.
    pub(crate) join_bytes_s_max: u64,
    /// Whether peers with private addresses are sent.
    pub(crate) replicates_private: bool,
}

impl ClusterOptions {
    /// Reads what the settings name; `None`: this node is alone.
    ///
    /// # Errors
    /// [`ConfigError`] with all faults.
    pub(crate) fn read(config: &Config) -> Result<Option<Self>, ConfigError> {
        let section = &config.cluster;
        if section.servers.is_empty() {
            return Ok(None);
        }
        if !cfg!(feature = "cluster") {
            let problem = "is set, but this skep was built without the feature `cluster`; remedy: \
                           build it with default features, or leave cluster.servers empty";
            return Err(ConfigError::at("cluster.servers", problem));
        }
        let (node, secret, login) = (node_of(section), secret_of(section), login_of(section));
        let tls = TlsFiles::of(section);
        let is_tls = section.servers.iter().any(|it| it.is_tls);
        let usable = if is_tls || tls != TlsFiles::default() { tls.faults() } else { Vec::new() };
        let (node, secret, login) = match (node, secret, login) {
            (Ok(node), Ok(secret), Ok(login)) if usable.is_empty() => (node, secret, login),
            (node, secret, login) => {
                let errors = [node.err(), secret.err(), login.err()].into_iter().flatten();
                let faults = errors.flat_map(|it| it.faults).chain(usable).collect();
                return Err(ConfigError { faults });
            }
        };
        Ok(Some(Self {
            servers: section.servers.iter().map(ToString::to_string).collect(),
            is_tls,
            name: section.name.clone(),
            node,
            secret,
            login,
            tls,
            flush: Duration::from_millis(section.flush_ms.into()),
            queue_bytes_max: usize::try_from(section.queue.0).unwrap_or(usize::MAX),
            join_timeout_s: section.join_timeout_s,
            join_bytes_s_max: section.join_rate.0,
            replicates_private: section.replicate_private,
        }))
    }

    /// The connection-id key of all nodes, unless the settings name one: clients are sent from node
    /// to node by DNS or anycast.
    pub(crate) fn connection_id_key(&self) -> [u8; KEY_BYTES] {
        self.secret.derived(b"skep connection id 1")
    }

    /// Whether TLS may be used.
    pub(crate) fn needs_tls(&self) -> bool {
        self.is_tls || self.tls != TlsFiles::default()
    }

    /// What [`Self::read`] would refuse, and files that others can read.
    pub(crate) fn findings(config: &Config) -> Vec<ConfigFinding> {
        let mut all = match Self::read(config) {
            Ok(None) => return Vec::new(),
            Ok(Some(_)) => Vec::new(),
            Err(error) => error.faults,
        };
        if config.cluster.secret_file.is_empty() {
            // Known from the settings alone, with a better remedy.
            all.retain(|it| it.key.as_deref() != Some(SECRET_KEY));
        }
        all.extend(Self::warnings(config));
        all
    }

    /// Files with secrets that other users can read.
    pub(crate) fn warnings(config: &Config) -> Vec<ConfigFinding> {
        let section = &config.cluster;
        let files = [
            ("secret_file", &section.secret_file, "could forge messages of nodes"),
            ("credentials_file", &section.credentials_file, "could act as this node"),
            ("password_file", &section.password_file, "could act as this node"),
            ("nkey_file", &section.nkey_file, "could act as this node"),
        ];
        let set = files.into_iter().filter(|it| !section.servers.is_empty() && !it.1.is_empty());
        let open = set.filter_map(|(key, path, what)| {
            let mode = fs::metadata(path).ok()?.permissions().mode() & 0o7777;
            let warning = format!(
                "{path} can be read by other users (mode {mode:04o}), who {what}; remedy: chmod \
                 600 {path}"
            );
            let warning = ConfigFinding::warning(warning).about(format!("cluster.{key}"));
            (mode & OTHERS != 0).then_some(warning)
        });
        open.collect()
    }
}

/// The name of this node: as set, else that of the host.
fn node_of(section: &Cluster) -> Result<String, ConfigError> {
    if !section.node.is_empty() {
        return Ok(section.node.clone());
    }
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let fit = fit_name(host).filter(|it| !NAMES_OF_ANY_HOST.contains(&it.as_str()));
    fit.ok_or_else(|| {
        let problem = format!(
            "is empty, and the name of this host ({host:?}) tells no node from another; remedy: \
             set cluster.node to a name that no other node has, such as node-1"
        );
        ConfigError::at("cluster.node", problem)
    })
}

/// The name of a host as that of a node. Characters that are not allowed become `-`, and the rest
/// of a long name a checksum, so that long names that differ stay different.
fn fit_name(host: &str) -> Option<String> {
    let fit = |it: char| if it.is_ascii_alphanumeric() { it.to_ascii_lowercase() } else { '-' };
    let name: String = host.chars().map(fit).collect();
    let name = name.trim_matches('-');
    let name = if name.len() > CLUSTER_NAME_BYTES_MAX {
        let sum = format!("-{:08x}", crc32c::crc32c(host.as_bytes()));
        format!("{}{sum}", &name[..CLUSTER_NAME_BYTES_MAX - sum.len()])
    } else {
        name.to_owned()
    };
    Some(name).filter(|it| is_cluster_name(it))
}

fn secret_of(section: &Cluster) -> Result<ClusterSecret, ConfigError> {
    let path = Path::new(&section.secret_file);
    let make = format!("openssl rand -hex 32 > {}", path.display());
    let secret = read_short(path).map_err(|error| {
        let problem = format!(
            "cannot read the secret of the cluster in {}: {error}; remedy: make one ({make}), \
             give every node the same file, and let skep's user read it",
            path.display()
        );
        ConfigError::at(SECRET_KEY, problem)
    })?;
    // A shorter one could be guessed.
    ClusterSecret::new(&secret.0).ok_or_else(|| {
        let problem = format!(
            "{} has {} bytes without blanks at its ends; a secret has at least {}; remedy: make \
             one ({make}), and give every node the same file",
            path.display(),
            secret.0.len(),
            ClusterSecret::BYTES_MIN
        );
        ConfigError::at(SECRET_KEY, problem)
    })
}

fn login_of(section: &Cluster) -> Result<Login, ConfigError> {
    let read = |key: &str, path: &str, what: &str, is_fit: fn(&Hidden) -> bool| {
        let setting = format!("cluster.{key}");
        let read = read_short(Path::new(path)).map_err(|error| {
            let problem = format!(
                "cannot read {what} in {path}: {error}; remedy: create the file, and let skep's \
                 user read it"
            );
            ConfigError::at(setting.as_str(), problem)
        })?;
        if is_fit(&read) {
            return Ok(read);
        }
        let problem = format!("{path} does not contain {what}; remedy: name the file that does");
        Err(ConfigError::at(setting.as_str(), problem))
    };
    if !section.credentials_file.is_empty() {
        let path = &section.credentials_file;
        let text = read("credentials_file", path, "a JWT and its key", is_credentials)?;
        return Ok(Login::Credentials(text));
    }
    if !section.user.is_empty() {
        let path = &section.password_file;
        let password = read("password_file", path, "a password", |it| !it.0.is_empty())?;
        return Ok(Login::User(section.user.clone(), password));
    }
    if !section.nkey_file.is_empty() {
        let what = "the seed of a user's nkey (SU…)";
        return Ok(Login::Nkey(read("nkey_file", &section.nkey_file, what, is_seed)?));
    }
    Ok(Login::None)
}

/// Whether a text has the parts of a file of credentials.
fn is_credentials(text: &Hidden) -> bool {
    let text = text.text();
    text.contains("BEGIN NATS USER JWT") && text.contains("BEGIN USER NKEY SEED")
}

/// Whether a text is the seed of a user's nkey: base32 of prefix, key and checksum.
fn is_seed(text: &Hidden) -> bool {
    let is_base32 = |it: &u8| it.is_ascii_uppercase() || (b'2'..=b'7').contains(it);
    text.0.len() == 58 && text.0.starts_with(b"SU") && text.0.iter().all(is_base32)
}

/// Reads a short file, without blanks and line ends at its ends: editors add them.
fn read_short(path: &Path) -> io::Result<Hidden> {
    let mut bytes = Vec::new();
    regular_file::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes")));
    }
    Ok(Hidden(bytes.trim_ascii().to_vec()))
}

impl TlsFiles {
    fn of(section: &Cluster) -> Self {
        let path = |text: &str| (!text.is_empty()).then(|| PathBuf::from(text));
        Self { ca: path(&section.ca), identity: path(&section.certificate).zip(path(&section.key)) }
    }

    /// The TLS settings of a connection, with the files as they are now.
    ///
    /// # Errors
    /// [`ConfigError`] that names the setting and the file.
    pub(crate) fn config(&self) -> Result<ClientConfig, ConfigError> {
        let trust = self.ca.as_deref().map_or(Trust::System, Trust::File);
        let config = client_tls::config(trust, true).map_err(|error| {
            let problem = match error {
                TlsConfigError::NoSystemRoots => "is empty, and this host trusts no authorities; \
                                                  remedy: name the file of the brokers' authority"
                    .to_owned(),
                error => format!(
                    "{error}; remedy: name a PEM file with the certificate of the brokers' \
                     authority, which skep's user can read"
                ),
            };
            ConfigError::at("cluster.ca", problem)
        })?;
        let mut config = Arc::unwrap_or_clone(config);
        if let Some((certificate, key)) = &self.identity {
            let resolver = SingleCertAndKey::from(identity(certificate, key)?);
            config.client_auth_cert_resolver = Arc::new(resolver);
        }
        Ok(config)
    }

    fn faults(&self) -> Vec<ConfigFinding> {
        self.config().err().map_or_else(Vec::new, |it| it.faults)
    }
}

/// This node's certificate with its key.
fn identity(certificate: &Path, key: &Path) -> Result<CertifiedKey, ConfigError> {
    let refused = |setting: &str, path: &Path, problem: &dyn fmt::Display| {
        let problem = format!(
            "{} cannot be used: {problem}; remedy: name the PEM files of a certificate for clients \
             and of its key, which skep's user can read",
            path.display()
        );
        ConfigError::at(setting, problem)
    };
    let of_certificate =
        |problem: &dyn fmt::Display| refused("cluster.certificate", certificate, problem);
    let of_key = |problem: &dyn fmt::Display| refused("cluster.key", key, problem);
    let pem = regular_file::read(certificate).map_err(|it| of_certificate(&it))?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|it| of_certificate(&it))?;
    if chain.is_empty() {
        return Err(of_certificate(&"it has no certificate"));
    }
    let pem = regular_file::read(key).map_err(|it| of_key(&it))?;
    let secret = PrivateKeyDer::from_pem_slice(&pem).map_err(|it| of_key(&it))?;
    CertifiedKey::from_der(chain, secret, &ring::default_provider()).map_err(|it| of_key(&it))
}

#[cfg(test)]
#[cfg(not(feature = "cluster"))]
mod tests_without_the_feature {
    use super::*;

    #[test]
    fn a_cluster_is_refused() {
        let text = "[cluster]\nservers = [\"tls://a:1\"]\nsecret_file = \"/s\"\n";
        let error = ClusterOptions::read(&Config::from_toml(text).unwrap()).unwrap_err();
        let said = "cluster.servers: is set, but this skep was built without the feature `cluster`";
        assert!(error.to_string().starts_with(said), "{error}");
        assert!(matches!(ClusterOptions::read(&Config::default()), Ok(None)));
    }
}

#[cfg(test)]
#[cfg(feature = "cluster")]
mod tests {
    use super::*;

    /// Settings of a node with a secret in this folder.
    fn config(folder: &Path) -> Config {
        let secret = folder.join("secret");
        fs::write(&secret, format!("{}\n", "5".repeat(64))).unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let text = format!(
            "[cluster]\nservers = [\"nats://127.0.0.1:4222\"]\nnode = \"a\"\nsecret_file = {:?}\n",
            secret.display()
        );
        Config::from_toml(&text).unwrap()
    }

    fn file(folder: &Path, name: &str, text: &str) -> String {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    #[track_caller]
    fn refused(config: &Config, setting: &str, said: &str) {
        let faults = ClusterOptions::read(config).unwrap_err().faults;
        let texts: Vec<_> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 1, "{texts:?}");
        assert!(texts[0].starts_with(&format!("cluster.{setting}: ")), "{texts:?}");
        assert!(texts[0].contains(said) && texts[0].contains("remedy: "), "{texts:?}");
    }

    #[test]
    fn a_secret_that_is_not_named_is_not_looked_for() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.cluster.secret_file.clear();
        let findings = ClusterOptions::findings(&config);
        assert!(findings.is_empty(), "the settings say it: {findings:?}");
    }

    #[test]
    fn a_secret_is_long_and_has_no_blanks_at_its_ends() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        let options = ClusterOptions::read(&config).unwrap().unwrap();
        let derived = |secret: &ClusterSecret| secret.derived(b"a test");
        let plain = ClusterSecret::new("5".repeat(64).as_bytes()).unwrap();
        assert_eq!(derived(&options.secret), derived(&plain));
        assert!(!format!("{options:?}").contains("55"), "{options:?}");
        let long = "5".repeat(ClusterSecret::BYTES_MIN);
        config.cluster.secret_file = file(folder.path(), "fit", &format!(" {long}\r\n"));
        let options = ClusterOptions::read(&config).unwrap().unwrap();
        let plain = ClusterSecret::new(long.as_bytes()).unwrap();
        assert_eq!(derived(&options.secret), derived(&plain));
        config.cluster.secret_file = file(folder.path(), "short", &format!("{}\n", &long[1..]));
        refused(&config, "secret_file", "short has 31 bytes without blanks at its ends");
        config.cluster.secret_file = file(folder.path(), "long", &"5".repeat(20_000));
        refused(&config, "secret_file", "it has more than 16384 bytes");
        config.cluster.secret_file = "/nope/secret".into();
        refused(&config, "secret_file", "openssl rand -hex 32 > /nope/secret");
    }

    #[test]
    fn files_of_credentials_have_to_contain_some() {
        let folder = tempfile::tempdir().unwrap();
        let read = |config: &Config| ClusterOptions::read(config).map(|it| it.unwrap().login);
        let plain = config(folder.path());
        assert_eq!(read(&plain), Ok(Login::None));
        let mut user = plain.clone();
        user.cluster.user = "me".into();
        user.cluster.password_file = file(folder.path(), "password", "hunter2\n");
        assert_eq!(read(&user), Ok(Login::User("me".into(), Hidden(b"hunter2".to_vec()))));
        assert!(!format!("{:?}", read(&user)).contains("hunter2"));
        user.cluster.password_file = file(folder.path(), "empty", "\n");
        refused(&user, "password_file", "empty does not contain a password");
        let mut nkey = plain.clone();
        let seed = format!("SU{}", "A2".repeat(28));
        nkey.cluster.nkey_file = file(folder.path(), "nkey", &format!("{seed}\n"));
        assert_eq!(read(&nkey), Ok(Login::Nkey(Hidden(seed.into_bytes()))));
        nkey.cluster.nkey_file = file(folder.path(), "public", &format!("U{}", "A".repeat(55)));
        refused(&nkey, "nkey_file", "does not contain the seed of a user's nkey");
        let mut credentials = plain;
        credentials.cluster.credentials_file = "/nope/node.creds".into();
        refused(&credentials, "credentials_file", "cannot read a JWT and its key in /nope");
        credentials.cluster.credentials_file = file(folder.path(), "creds", "SUAA");
        refused(&credentials, "credentials_file", "does not contain a JWT and its key");
    }

    #[test]
    fn files_of_tls_are_read_as_they_are_at_the_moment() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        config.cluster.servers =
            Config::from_toml("[cluster]\nservers = [\"tls://a:1\"]\nsecret_file = \"/s\"\n")
                .unwrap()
                .cluster
                .servers;
        let pair = rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        config.cluster.ca = file(folder.path(), "ca.pem", &pair.cert.pem());
        let options = ClusterOptions::read(&config).unwrap().unwrap();
        assert!(options.is_tls);
        config.cluster.certificate = config.cluster.ca.clone();
        config.cluster.key = file(folder.path(), "key.pem", &pair.signing_key.serialize_pem());
        assert!(ClusterOptions::read(&config).is_ok());
        let other = rcgen::KeyPair::generate().unwrap();
        fs::write(&config.cluster.key, other.serialize_pem()).unwrap();
        refused(&config, "key", "cannot be used");
        fs::write(&config.cluster.ca, "nothing").unwrap();
        refused(&config, "ca", "has no PEM certificate");
        assert!(options.tls.config().is_err(), "it was replaced");
    }

    #[test]
    fn all_faults_are_found_in_one_run_and_open_files_are_warned_of() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path());
        assert_eq!(ClusterOptions::findings(&config), []);
        let path = config.cluster.secret_file.clone();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let found = ClusterOptions::findings(&config);
        assert!(found.len() == 1 && !found[0].is_fault(), "{found:?}");
        assert!(found[0].to_string().contains("mode 0644"), "{found:?}");
        config.cluster.secret_file = "/nope/a".into();
        config.cluster.user = "me".into();
        config.cluster.password_file = "/nope/b".into();
        config.cluster.ca = "/nope/c".into();
        assert_eq!(ClusterOptions::findings(&config).len(), 3);
        config.cluster.servers.clear();
        assert_eq!(ClusterOptions::findings(&config), [], "it is in no cluster");
    }

    #[test]
    fn the_name_of_a_host_is_made_to_fit() {
        for (host, name) in [
            ("tracker-1", "tracker-1"),
            ("Tracker.example.org", "tracker-example-org"),
            ("skep_0", "skep-0"),
            ("-a-", "a"),
            ("tracker-1.eu-central-1.example.org", "tracker-1-eu-central-1-f2f1b2f6"),
        ] {
            let fit = fit_name(host).unwrap();
            if host.len() <= CLUSTER_NAME_BYTES_MAX {
                assert_eq!(fit, name);
            } else {
                assert_eq!((fit.len(), &fit[..23]), (CLUSTER_NAME_BYTES_MAX, &name[..23]));
                assert_ne!(fit, fit_name(&format!("{host}.")).unwrap(), "long names differ");
            }
            assert!(is_cluster_name(&fit), "{fit}");
        }
        for host in ["", "...", "é"] {
            assert_eq!(fit_name(host), None, "{host}");
        }
    }
}
