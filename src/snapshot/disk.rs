//! The disk beneath a folder of snapshots: the one place of this module that touches files.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// What is asked of a disk; a test double makes it fail.
pub trait Disk {
    /// A file to be read.
    type Input: Read + Seek;
    /// A file to be written.
    type Output: Write;

    /// Opens a file.
    ///
    /// # Errors
    /// Those of the operating system, as with all others here.
    fn open(&self, path: &Path) -> io::Result<Self::Input>;

    /// Creates a file that must not be there yet, for its owner alone.
    ///
    /// # Errors
    /// Above.
    fn create(&self, path: &Path) -> io::Result<Self::Output>;

    /// Waits until a file's contents are on the disk.
    ///
    /// # Errors
    /// Above.
    fn sync(&self, file: &Self::Output) -> io::Result<()>;

    /// Waits until a folder's names are on the disk.
    ///
    /// # Errors
    /// Above.
    fn sync_folder(&self, path: &Path) -> io::Result<()>;

    /// Gives a file a second name, which must not be there yet.
    ///
    /// # Errors
    /// Above.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Gives a file another name, in place of the file that has it.
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

/// The operating system's.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    type Input = io::BufReader<File>;
    type Output = File;

    fn open(&self, path: &Path) -> io::Result<Self::Input> {
        // Neither is a link followed that somebody has put there, nor a pipe's writer waited for.
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

/// Bytes that are read at once.
const READ_BYTES: usize = 256 << 10;
