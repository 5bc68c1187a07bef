//! The certificate in force: read at start, and again on SIGHUP or when one of its files changes.
//!
//! A certificate that cannot be used never replaces one that works. Session tickets are stateless
//! and their keys are kept across reloads, so clients resume on any worker, whichever certificate
//! their first session had.
//!
//! The files are looked at once a second. Certificate and key are replaced one after the other, so
//! a failure counts only if the next look fails too. From then on every attempt, one a minute until
//! the files can be used again, counts as one: the alert lasts as long as its cause.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::ProducesTickets;
use tracing::{error, info};

use crate::config::ConfigError;
use crate::server::StartError;
use crate::server::certificate::{Certificate, Files};
use crate::server::log::OPERATOR;

/// Looks between two attempts to read files that could not be used.
const RETRY_LOOKS: u32 = 60;

/// The certificate in force, and its files.
pub(super) struct Tls {
    /// The configuration for new connections of the workers.
    pub(super) config: Arc<ArcSwap<ServerConfig>>,
    /// For the metrics.
    pub(super) figures: Arc<CertificateFigures>,
    files: Files,
    seen: Option<[FileStamp; 2]>,
    tickets: Arc<dyn ProducesTickets>,
    failure: Option<Failure>,
}

/// What the metrics show of the certificate.
#[derive(Debug, Default)]
pub(crate) struct CertificateFigures {
    /// When the certificate in force, or the first of its chain, expires: seconds since the Unix
    /// epoch; 0 without TLS.
    not_after_s: AtomicU64,
    reload_failures: AtomicU64,
    is_failing: AtomicBool,
}

/// Files that could not be used at the last attempt.
struct Failure {
    /// Looks since the files changed.
    looks: u32,
    /// The error that was logged; empty until then.
    logged: String,
}

/// Detects that a file has changed, also if a link leads to another file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

impl CertificateFigures {
    /// When the certificate expires, in seconds since the Unix epoch; 0 without TLS.
    pub(crate) fn not_after_s(&self) -> u64 {
        self.not_after_s.load(Ordering::Relaxed)
    }

    /// Attempts to load a certificate that failed since the start.
    pub(crate) fn reload_failures(&self) -> u64 {
        self.reload_failures.load(Ordering::Relaxed)
    }

    /// Whether the last attempt to load a certificate failed.
    pub(crate) fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Relaxed)
    }

    fn set(&self, certificate: &Certificate) {
        let to_s = u64::try_from(certificate.validity.to_s).unwrap_or(0);
        self.not_after_s.store(to_s, Ordering::Relaxed);
        self.is_failing.store(false, Ordering::Relaxed);
    }

    fn note_failure(&self) {
        self.reload_failures.fetch_add(1, Ordering::Relaxed);
        self.is_failing.store(true, Ordering::Relaxed);
    }
}

impl Tls {
    /// Reads the certificate.
    ///
    /// # Errors
    /// [`StartError`] that names the file and the setting.
    pub(super) fn start(files: Files) -> Result<Self, StartError> {
        let tickets = ring::Ticketer::new()
            .map_err(|error| StartError::Failed(format!("cannot make keys for TLS: {error}")))?;
        let (seen, figures) = (stamps(&files), Arc::<CertificateFigures>::default());
        let certificate = files.read().map_err(StartError::Config)?;
        figures.set(&certificate);
        let config = Arc::new(ArcSwap::from_pointee(served(certificate, &tickets)));
        Ok(Self { config, figures, files, seen, tickets, failure: None })
    }

    /// Reads the certificate again if a file has changed since the last read, or could not be
    /// used. Call it once a second.
    pub(super) fn follow(&mut self) {
        let stamps = stamps(&self.files);
        let is_new = stamps != self.seen;
        let is_due = match &mut self.failure {
            Some(failure) if !is_new => {
                failure.looks += 1;
                failure.looks % RETRY_LOOKS == 1
            }
            _ => is_new,
        };
        if !is_due {
            return;
        }
        // Taken before reading, so that a change during the read is noticed later.
        self.seen = stamps;
        if let Err(error) = self.load() {
            match &mut self.failure {
                Some(failure) if !is_new => failure.report(&error, &self.figures),
                Some(failure) => failure.looks = 0,
                failure => *failure = Some(Failure { looks: 0, logged: String::new() }),
            }
        }
    }

    /// Reads the certificate again. If it cannot be used, the one in force stays.
    pub(super) fn renew(&mut self) {
        self.seen = stamps(&self.files);
        if let Err(error) = self.load() {
            let mut failure = Failure { looks: 1, logged: String::new() };
            failure.report(&error, &self.figures);
            self.failure = Some(failure);
        }
    }

    fn load(&mut self) -> Result<(), ConfigError> {
        let certificate = self.files.read()?;
        self.figures.set(&certificate);
        self.config.store(Arc::new(served(certificate, &self.tickets)));
        self.failure = None;
        info!(target: OPERATOR, "TLS certificate reloaded");
        Ok(())
    }
}

impl Failure {
    /// Counts a failed attempt, and logs its error unless the last line had the same.
    fn report(&mut self, error: &ConfigError, figures: &CertificateFigures) {
        figures.note_failure();
        // One line, also where both files are wrong.
        let text = error.to_string().replace('\n', "; ");
        if self.logged != text {
            error!(target: OPERATOR, error = text, "TLS certificate not reloaded");
            self.logged = text;
        }
    }
}

/// The configuration of new connections.
fn served(certificate: Certificate, tickets: &Arc<dyn ProducesTickets>) -> ServerConfig {
    let mut config = certificate.config;
    config.ticketer = tickets.clone();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// The stamps of both files; `None` if one cannot be found.
fn stamps(files: &Files) -> Option<[FileStamp; 2]> {
    let stamp = |path: &Path| path.metadata().ok().as_ref().map(FileStamp::of);
    Some([stamp(&files.certificate)?, stamp(&files.key)?])
}

impl FileStamp {
    fn of(file: &Metadata) -> Self {
        Self { inode: file.ino(), bytes: file.len(), modified: (file.mtime(), file.mtime_nsec()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::certificate::tests::{files, write};
    use std::fs;

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
    fn files_that_stay_unusable_are_counted_once_a_minute_until_they_can_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let files = files(folder.path());
        write(&files, "before");
        let mut tls = Tls::start(files.clone()).unwrap();
        let failures = |tls: &mut Tls, looks: u32| {
            (0..looks).for_each(|_| tls.follow());
            tls.figures.reload_failures()
        };
        assert!(tls.figures.not_after_s() > 0);
        fs::remove_file(&files.key).unwrap();
        assert_eq!(failures(&mut tls, 1), 0, "the key may be about to come");
        assert_eq!(failures(&mut tls, 1), 1);
        assert_eq!(failures(&mut tls, RETRY_LOOKS - 1), 1);
        assert_eq!(failures(&mut tls, 1), 2);
        assert!(tls.figures.is_failing());
        let first = tls.config.load_full();
        write(&files, "after");
        assert_eq!(failures(&mut tls, 3 * RETRY_LOOKS), 2);
        assert!(!tls.figures.is_failing(), "it was loaded since");
        assert!(!Arc::ptr_eq(&first, &tls.config.load()));
        fs::write(&files.key, "broken").unwrap();
        tls.renew();
        assert_eq!(tls.figures.reload_failures(), 3, "an operator asked for it");
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
