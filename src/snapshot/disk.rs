//! The disk under a folder of snapshots: the only code of this module that accesses files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The operations on a disk; a test double injects failures.
pub trait Disk {
    /// A file open for reading.
    type Input: Read + Seek;
    /// A file open for writing.
    type Output: Write;

    /// Opens a file.
    ///
    /// # Errors
    /// Those of the operating system, as for all methods here.
    fn open(&self, path: &Path) -> io::Result<Self::Input>;

    /// Creates a file that must not exist yet, accessible to its owner only.
    ///
    /// # Errors
    /// Above.
    fn create(&self, path: &Path) -> io::Result<Self::Output>;

    /// Waits until a file's contents are on the disk.
    ///
    /// # Errors
    /// Above.
    fn sync(&self, file: &Self::Output) -> io::Result<()>;

    /// Waits until a folder's entries are on the disk.
    ///
    /// # Errors
    /// Above.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Gives a file a second name, which must not exist yet.
    ///
    /// # Errors
    /// Above.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Renames a file, replacing any file of that name.
    ///
    /// # Errors
    /// Above.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name.
    ///
    /// # Errors
    /// Above.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The operating system's disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    type Input = io::BufReader<File>;
    type Output = File;

    fn open(&self, path: &Path) -> io::Result<Self::Input> {
        // A symbolic link placed there by another user is not followed, and opening a pipe does not
        // wait for its writer.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(io::BufReader::with_capacity(READ_BYTES, file))
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }
}

/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;
