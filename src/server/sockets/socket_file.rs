//! The file of a Unix socket. Its owner can change without a moment in which the file is absent.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use socket2::Socket;

use crate::sys::descriptors;

/// Only the owner may connect.
const MODE: u32 = 0o600;

/// Most bytes of the path of a socket (unix(7)).
const PATH_BYTES_MAX: usize = 107;

/// The file, removed when dropped, unless another process owns it by then.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`, in place of a socket that no process listens on. The file gets its name
    /// when it is complete.
    ///
    /// # Errors
    /// Errors of the system calls; `AddrInUse` if a process listens there; `InvalidInput` for a
    /// long path.
    pub(crate) fn listen(path: &Path) -> io::Result<(Self, Socket)> {
        unfinished(path)?; // fails for a long path, before the system calls below do
        match descriptors::connect(path) {
            Ok(_) => return Err(io::ErrorKind::AddrInUse.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) if std::fs::symlink_metadata(path)?.file_type().is_socket() => {}
            Err(_) => return Err(io::ErrorKind::AlreadyExists.into()),
        }
        Self::replace(path)
    }

    /// Listens at `path`, in place of any socket there.
    ///
    /// # Errors
    /// Errors of the system call; `InvalidInput` for a long path.
    pub(crate) fn replace(path: &Path) -> io::Result<(Self, Socket)> {
        let unfinished = unfinished(path)?;
        let _ = std::fs::remove_file(&unfinished);
        let listener = descriptors::listen(&unfinished)?;
        let make = || {
            std::fs::set_permissions(&unfinished, std::fs::Permissions::from_mode(MODE))?;
            let identity = identity(&unfinished)?;
            std::fs::rename(&unfinished, path)?;
            Ok(Self { path: path.to_owned(), identity })
        };
        let made = make();
        if made.is_err() {
            let _ = std::fs::remove_file(&unfinished);
        }
        made.map(|it| (it, listener))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|it| it == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The name of a socket at `path` until it is complete.
fn unfinished(path: &Path) -> io::Result<PathBuf> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    if name.len() > PATH_BYTES_MAX {
        let spare = name.len() - path.as_os_str().len();
        let text = format!(
            "a socket's path may have {PATH_BYTES_MAX} bytes, {spare} of which are added while it \
             is made; remedy: a shorter server.state_dir or server.handover_socket"
        );
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    Ok(name.into())
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_in_use_stays_and_one_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let (file, listener) = SocketFile::listen(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, MODE);
        let again = SocketFile::listen(&path).err().unwrap();
        assert_eq!(again.kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        let (second, listener) = SocketFile::listen(&path).unwrap();
        drop(file);
        assert!(descriptors::connect(&path).is_ok(), "the first owner leaves the second's");
        drop((second, listener));
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn a_path_that_is_too_long_is_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(PATH_BYTES_MAX));
        for listen in [SocketFile::listen, SocketFile::replace] {
            let said = listen(&long).err().unwrap().to_string();
            assert!(said.contains("may have 107 bytes"), "{said}");
        }
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        std::fs::write(&path, "a text").unwrap();
        assert!(SocketFile::listen(&path).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"a text");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }
}
