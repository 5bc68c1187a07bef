//! The file in the state directory with the address of the admin listener. Only the tracker knows
//! it where a flag, a file that a flag names, or the kernel (port 0) has chosen it: `skep health`,
//! `skep status` and the other subcommands read it there.
//!
//! A tracker holds a lock on its file while it serves. A file without a lock was left by one that
//! has not ended in order, and is not used: process ids are used again, above all in containers. A
//! successor puts another file in its place, and its predecessor leaves that one alone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Its name.
const FILE: &str = "admin-address";

/// Its name until it is complete.
const UNFINISHED: &str = "admin-address.new";

/// Most bytes of it: the longest address has 58 characters.
const BYTES_MAX: u64 = 256;

/// The field of the address.
const ADMIN: &str = "admin=";

/// The file of this process, and the lock on it, which lives as long as this value.
#[derive(Debug)]
pub(super) struct AdminAddressFile {
    path: PathBuf,
    locked: File,
}

/// The admin listener of a tracker that serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ServingListener {
    /// Where it listens; the address may be a wildcard.
    pub(crate) address: SocketAddr,
    /// The user that its file belongs to.
    pub(crate) owner: u32,
}

impl AdminAddressFile {
    /// Puts a file with this address in a state directory, in place of one that is there. Blocks.
    ///
    /// # Errors
    /// Errors of the file system, or if it has no locks.
    pub(super) fn write(directory: &Path, admin: SocketAddr) -> io::Result<Self> {
        let (path, unfinished) = (directory.join(FILE), directory.join(UNFINISHED));
        match fs::remove_file(&unfinished) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        // A new file: a link in its place is not followed.
        let mut locked = options.write(true).create_new(true).mode(0o600).open(&unfinished)?;
        let written = writeln!(locked, "pid={} {ADMIN}{admin}", std::process::id())
            .and_then(|()| locked.try_lock().map_err(io::Error::from))
            .and_then(|()| fs::rename(&unfinished, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&unfinished);
            return Err(error);
        }
        Ok(Self { path, locked })
    }

    /// Removes the file, unless another process has put its own there. Blocks.
    pub(super) fn remove(self) {
        let identity = |it: &fs::Metadata| (it.dev(), it.ino());
        let there = self.path.symlink_metadata();
        let is_own = matches!(
            (there, self.locked.metadata()),
            (Ok(there), Ok(own)) if identity(&there) == identity(&own)
        );
        if is_own {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The admin listener of the tracker that serves with this state directory; `None` if there is
/// none, or if this user may not read its file.
pub(super) fn serving(directory: &Path) -> Option<ServingListener> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(directory.join(FILE)).ok()?;
    let metadata = file.metadata().ok()?;
    let is_served = || matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    if !metadata.is_file() || metadata.len() > BYTES_MAX || !is_served() {
        return None;
    }
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text).ok()?;
    let address = text.split_whitespace().find_map(|it| it.strip_prefix(ADMIN))?.parse().ok()?;
    Some(ServingListener { address, owner: metadata.uid() })
}

/// The file in a state directory, if this user may not read it or its directory.
pub(super) fn unreadable(directory: &Path) -> Option<PathBuf> {
    let path = directory.join(FILE);
    let opened = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
    let is_denied = opened.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
    is_denied.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// The port that is found.
    fn found(directory: &Path) -> Option<u16> {
        serving(directory).map(|it| it.address.port())
    }

    #[test]
    fn an_address_is_found_while_its_process_serves() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE);
        assert_eq!(found(state.path()), None);
        let file = AdminAddressFile::write(state.path(), address(7)).unwrap();
        let owner = rustix::process::geteuid().as_raw();
        let expected = ServingListener { address: address(7), owner };
        assert_eq!(serving(state.path()), Some(expected));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, format!("pid={} admin=127.0.0.1:7\n", std::process::id()));
        file.remove();
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_that_was_left_behind_is_not_used_and_is_replaced() {
        let state = tempfile::tempdir().unwrap();
        let killed = AdminAddressFile::write(state.path(), address(7)).unwrap();
        drop(killed);
        assert!(state.path().join(FILE).exists());
        assert_eq!(found(state.path()), None);
        fs::write(state.path().join(UNFINISHED), "pid=").unwrap();
        let _file = AdminAddressFile::write(state.path(), address(8)).unwrap();
        assert_eq!(found(state.path()), Some(8));
    }

    #[test]
    fn a_predecessor_does_not_remove_the_file_of_its_successor() {
        let state = tempfile::tempdir().unwrap();
        let predecessor = AdminAddressFile::write(state.path(), address(7)).unwrap();
        let successor = AdminAddressFile::write(state.path(), address(8)).unwrap();
        predecessor.remove();
        assert_eq!(found(state.path()), Some(8));
        successor.remove();
        assert_eq!(found(state.path()), None);
    }

    #[test]
    fn links_pipes_and_other_text_are_not_addresses() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join(FILE);
        let elsewhere = tempfile::tempdir().unwrap();
        let _file = AdminAddressFile::write(elsewhere.path(), address(7)).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join(FILE), &path).unwrap();
        assert_eq!(found(state.path()), None);
        fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert_eq!(found(state.path()), None);
        fs::remove_file(&path).unwrap();
        for text in ["", "pid=1", "pid=1 admin=nowhere\n", &"admin=127.0.0.1:7 ".repeat(99)] {
            fs::write(&path, text).unwrap();
            let locked = File::open(&path).unwrap();
            locked.lock().unwrap();
            assert_eq!(found(state.path()), None, "{text}");
        }
        fs::write(&path, "admin=127.0.0.1:9").unwrap();
        let locked = File::open(&path).unwrap();
        locked.lock().unwrap();
        assert_eq!(found(state.path()), Some(9));
    }
}
