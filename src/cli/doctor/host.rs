//! The host's files in /proc, /sys and /run, below a root that tests replace.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Maximum number of bytes that are read of a file: a router's routing table can be very long.
const BYTES_MAX: u64 = 4 << 20;

/// Read access to the files of a host.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

/// A file that could not be read, or has unexpected contents.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {reason}")]
pub struct HostReadError {
    /// The file's path on the host.
    pub path: String,
    /// The cause.
    pub reason: String,
    /// Whether the file does not exist.
    pub is_missing: bool,
}

impl Host {
    /// The host this process runs on.
    pub fn here() -> Self {
        Self::at("/")
    }

    /// A host whose files are below a folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// A file's text, trimmed; at most 4 MiB of it.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn text(&self, path: &str) -> Result<String, HostReadError> {
        let read = || {
            let mut bytes = Vec::new();
            File::open(self.real(path))?.take(BYTES_MAX).read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
        };
        read().map_err(|error| HostReadError::new(path, &error))
    }

    /// The number that a file holds.
    ///
    /// # Errors
    /// If the file cannot be read, or holds something else.
    pub fn number(&self, path: &str) -> Result<u64, HostReadError> {
        let text = self.text(path)?;
        text.parse().map_err(|_| HostReadError::odd(path, "holds no number"))
    }

    /// Whether a file or a folder exists.
    pub fn has(&self, path: &str) -> bool {
        self.real(path).exists()
    }

    /// The target of a symbolic link, or the kernel's name for the object that a link in /proc
    /// denotes.
    ///
    /// # Errors
    /// If the link cannot be read.
    pub fn link(&self, path: &str) -> Result<PathBuf, HostReadError> {
        fs::read_link(self.real(path)).map_err(|error| HostReadError::new(path, &error))
    }

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn names(&self, path: &str) -> Result<Vec<String>, HostReadError> {
        let read = || {
            let name = |it: io::Result<fs::DirEntry>| it.map(|it| it.file_name());
            fs::read_dir(self.real(path))?.map(name).collect::<io::Result<Vec<_>>>()
        };
        let names = read().map_err(|error| HostReadError::new(path, &error))?;
        let mut names: Vec<_> = names.into_iter().filter_map(|it| it.into_string().ok()).collect();
        names.sort();
        Ok(names)
    }

    fn real(&self, path: &str) -> PathBuf {
        self.root.join(Path::new(path.trim_start_matches('/')))
    }
}

impl HostReadError {
    fn new(path: &str, error: &io::Error) -> Self {
        let is_missing = error.kind() == io::ErrorKind::NotFound;
        Self { path: path.to_owned(), reason: error.to_string(), is_missing }
    }

    /// The error for a file with unexpected contents.
    pub(super) fn odd(path: &str, reason: &str) -> Self {
        Self { path: path.to_owned(), reason: reason.to_owned(), is_missing: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_below_the_root_and_what_is_missing_is_told_by_its_own_name() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/sys")).unwrap();
        fs::write(root.path().join("proc/sys/number"), " 12\n").unwrap();
        fs::write(root.path().join("proc/sys/odd"), b"\xff1").unwrap();
        let host = Host::at(root.path());
        assert_eq!(host.number("/proc/sys/number"), Ok(12));
        assert_eq!(host.names("/proc/sys").unwrap(), ["number", "odd"]);
        assert!(host.has("/proc/sys/odd") && !host.has("/proc/sys/none"));
        assert_eq!(host.number("/proc/sys/odd").unwrap_err().reason, "holds no number");
        std::os::unix::fs::symlink("net:[7]", root.path().join("proc/net")).unwrap();
        assert_eq!(host.link("/proc/net"), Ok("net:[7]".into()));
        assert!(host.link("/proc/none").unwrap_err().is_missing);
        let missing = host.text("/proc/sys/none").unwrap_err();
        assert!(missing.is_missing);
        assert!(missing.to_string().starts_with("/proc/sys/none: No such file"), "{missing}");
        // Reading a folder is an error of another kind, and not a panic.
        assert!(!host.text("/proc/sys").unwrap_err().is_missing);
        assert!(host.names("/proc/none").unwrap_err().is_missing);
    }

    #[test]
    fn no_file_is_read_without_end() {
        assert_eq!(Host::here().text("/dev/zero").unwrap().len() as u64, BYTES_MAX);
    }
}
