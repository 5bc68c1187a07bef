//! Binds TCP listeners, each address once for each worker, and the Unix socket once.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};

use crate::server::StartError;
use crate::server::sockets::bind_retry::BindRetry;
use crate::server::sockets::inherited::{InheritedSockets, SocketKind};
use crate::sys::identity::{self, UnixUser};

/// Connections that wait to be accepted. The kernel limits it to net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Mode of the Unix socket: its owner and its group may connect. The proxy has to be in the group.
const UNIX_MODE: u32 = 0o660;

/// One address, bound at least once for each worker.
pub(crate) struct BoundListener {
    /// The address, with the port that the kernel chose.
    pub(crate) address: SocketAddr,
    /// The listeners in the order of their group: one per worker, or more if more were inherited.
    pub(crate) by_worker: Vec<TcpListener>,
}

/// Binds `address` for `workers` workers, or takes inherited listeners. `is_ours`: a socket of this
/// process on the same port prevents binding it alone.
///
/// # Errors
/// Errors of the system calls; `AddrInUse` if the address stays in use for longer than `retry`
/// allows.
pub(crate) fn bind(
    address: SocketAddr,
    workers: usize,
    kind: SocketKind,
    is_ours: bool,
    inherited_sockets: &mut InheritedSockets,
    retry: &mut BindRetry,
) -> io::Result<BoundListener> {
    let inherited = inherited_sockets.take(kind, address);
    let mut by_worker: Vec<_> = inherited.into_iter().map(TcpListener::from).collect();
    let mut at = match by_worker.first() {
        Some(listener) => listener.local_addr()?,
        None => address,
    };
    while by_worker.len() < workers {
        // The first is bound alone: a second skep of the same user could share the address, and
        // would get half of the connections unnoticed.
        let is_shared =
            !by_worker.is_empty() || is_ours || inherited_sockets.has_port(address.port());
        let bound = if is_shared {
            listener(at, true)
        } else {
            retry.bind(|| format!("tcp {at}"), || listener(at, false))
        };
        match bound {
            Ok(listener) => {
                at = listener.local_addr()?;
                by_worker.push(listener);
            }
            // The owner of the inherited listeners does not share the address: only the workers
            // that have one serve.
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && !by_worker.is_empty() => {
                break;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(BoundListener { address: at, by_worker })
}

/// Binds an address that is shared already or free. Further sockets of this user may share it
/// afterwards.
fn listener(address: SocketAddr, is_shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // despite connections of a predecessor that are still closing
    socket.set_reuse_port(is_shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?; // inherited by every connection
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.set_reuse_port(true)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// A Unix socket in the file system, which is removed with its owner.
pub(crate) struct UnixSocket {
    pub(crate) listener: UnixListener,
    /// The path of its file.
    pub(crate) path: PathBuf,
    /// Whether its file belongs to another process by now.
    pub(crate) is_passed_on: bool,
    /// Whether the service manager created it, and listens on it while no skep process runs.
    is_managed: bool,
}

impl UnixSocket {
    /// Binds `path`, in place of a socket that no process listens on any more. Only this user, or
    /// the user that this process will change to, and its group may connect, because the client
    /// address that a connection names is trusted.
    ///
    /// # Errors
    /// [`StartError`] with a remedy.
    pub(crate) fn bind(
        path: &Path,
        user: Option<&UnixUser>,
        retry: &mut BindRetry,
    ) -> Result<Self, StartError> {
        let bound = retry.bind(|| path.display().to_string(), || bind_as(path, user));
        let listener = bound.map_err(|error| StartError::listening_at(path, &error))?;
        Ok(Self { listener, path: path.to_owned(), is_passed_on: false, is_managed: false })
    }

    /// A socket that another process has bound and whose file that process owns for now; for good
    /// if `is_managed`.
    pub(crate) fn adopt(path: &Path, socket: OwnedFd, is_managed: bool) -> Self {
        Self { listener: socket.into(), path: path.to_owned(), is_passed_on: true, is_managed }
    }

    /// Takes the file over from a predecessor, which does not remove it any more.
    pub(crate) fn own(&mut self) {
        self.is_passed_on = self.is_managed;
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if !self.is_passed_on {
            // Another process may have replaced the file. If it cannot be removed, that is
            // harmless.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Binds a Unix socket that belongs to `user`: with its rights, or, if it may not write to the
/// folder, as root, provided that only root can change where the path leads.
fn bind_as(path: &Path, user: Option<&UnixUser>) -> io::Result<UnixListener> {
    let Some(user) = user else { return bind_own(path) };
    let bound = {
        let _acting = user.act()?;
        bind_own(path)
    };
    match bound {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let absolute = std::path::absolute(path)?;
            let folder = absolute.parent().unwrap_or_else(|| Path::new("/"));
            let name = absolute.file_name().ok_or(io::ErrorKind::InvalidInput)?;
            let real = identity::roots_own(folder)?.join(name);
            let listener = bind_path(&real)?;
            user.own_socket(&real, UNIX_MODE)?;
            Ok(listener)
        }
        bound => bound,
    }
}

fn bind_own(path: &Path) -> io::Result<UnixListener> {
    let listener = bind_path(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(UNIX_MODE))?;
    Ok(listener)
}

/// Until the mode is set, only the owner may connect: see `keep_files_private`.
fn bind_path(path: &Path) -> io::Result<UnixListener> {
    if is_stale_socket(path)? {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Checks what is at the path of a Unix socket.
///
/// # Errors
/// What would prevent binding the path, with a remedy.
pub(crate) fn check_unix_path(path: &Path) -> Result<(), String> {
    let at = path.display();
    let folder = path.parent().filter(|it| !it.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new("."));
    if !folder.is_dir() {
        let folder = folder.display();
        return Err(format!(
            "{at} cannot be created: the folder {folder} does not exist; remedy: create the \
             folder, or choose another path"
        ));
    }
    match path.symlink_metadata() {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            Err(format!("{at} exists and is not a socket; remedy: choose another path"))
        }
        _ => Ok(()),
    }
}

/// Whether the path is a socket that a program which has ended left behind.
fn is_stale_socket(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.file_type().is_socket() => match UnixStream::connect(path) {
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
            Err(error) => Ok(error.kind() == io::ErrorKind::ConnectionRefused),
        },
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn bind_new(address: SocketAddr, workers: usize) -> io::Result<BoundListener> {
        let (mut inherited_sockets, mut retry) = (InheritedSockets::default(), BindRetry::none());
        bind(address, workers, SocketKind::Tcp, false, &mut inherited_sockets, &mut retry)
    }

    #[test]
    fn workers_share_the_port_that_the_kernel_chose() {
        let bound = bind_new(at("127.0.0.1:0"), 3).unwrap();
        assert_ne!(bound.address.port(), 0);
        for listener in &bound.by_worker {
            assert_eq!(listener.local_addr().unwrap(), bound.address);
        }
        assert_eq!(bind_new(bound.address, 1).err().unwrap().kind(), io::ErrorKind::AddrInUse);
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("skep.sock");
        drop(UnixListener::bind(&path).unwrap()); // leaves its file
        let bound = UnixSocket::bind(&path, None, &mut BindRetry::none()).unwrap();
        let text = UnixSocket::bind(&path, None, &mut BindRetry::none()).err().unwrap().to_string();
        assert!(text.contains("skep.sock") && text.contains("remedy"), "{text}");
        assert!(text.contains("the settings list this address twice"), "{text}");
        assert!(UnixStream::connect(&path).is_ok(), "the first one still serves");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, UNIX_MODE);
        let twin = bound.listener.try_clone().unwrap();
        drop(UnixSocket::adopt(&path, twin.into(), false));
        assert!(path.exists());
        drop(bound);
        assert!(!path.exists());
        std::fs::write(&path, "not ours").unwrap();
        assert!(UnixSocket::bind(&path, None, &mut BindRetry::none()).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"not ours");
    }

    #[test]
    fn a_file_goes_with_its_last_owner_unless_the_service_manager_made_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("skep.sock");
        for is_managed in [true, false] {
            let _ = std::fs::remove_file(&path);
            let listener = UnixListener::bind(&path).unwrap();
            let mut adopted = UnixSocket::adopt(&path, listener.into(), is_managed);
            adopted.own();
            drop(adopted);
            assert_eq!(path.exists(), is_managed);
        }
    }
}
