//! Descriptors that are passed on: to another process over a Unix socket, or by the process that
//! started this one.
//!
//! A socket lives as long as a process, or a message in a kernel queue, holds a descriptor of it.
//! What clients have sent waits in the socket meanwhile, and none of it is lost.
#![expect(unsafe_code, reason = "inherited descriptors are known by number alone")]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg, sockopt,
};
use socket2::{Domain, SockAddr, Socket, Type};

/// Most descriptors in one message; the kernel allows 253.
pub const DESCRIPTORS_MAX: usize = 64;

/// Room for [`DESCRIPTORS_MAX`] descriptors.
const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX));

/// Sends one message with descriptors, which stay open in this process as well.
///
/// # Errors
/// Errors of the system call; more than [`DESCRIPTORS_MAX`] descriptors.
pub fn send(socket: impl AsFd, bytes: &[u8], them: &[BorrowedFd<'_>]) -> io::Result<()> {
    if them.len() > DESCRIPTORS_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !them.is_empty() && !control.push(SendAncillaryMessage::ScmRights(them)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let sent = sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one message into `buffer`. Returns its length, and its descriptors, which child
/// processes do not inherit. A length of 0: the other side has closed.
///
/// # Errors
/// Errors of the system call; a message that is longer than the buffer or has more descriptors than
/// [`DESCRIPTORS_MAX`]. The received descriptors are closed then.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let received = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(them) = message {
            descriptors.extend(them);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok((received.bytes, descriptors))
}

/// Listens on a Unix socket that preserves message boundaries. The path must not exist.
///
/// # Errors
/// Errors of the system call; a path of more than 107 bytes.
pub fn listen(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    socket.listen(4)?;
    Ok(socket)
}

/// How long a listener may leave its queue full.
const QUEUED_MAX: Duration = Duration::from_secs(5);

/// Connects to the socket that [`listen`]s at `path`.
///
/// # Errors
/// Errors of the system call; `WouldBlock` if the listener does not accept connections.
pub fn connect(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None)?;
    socket.set_write_timeout(Some(QUEUED_MAX))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Sets how long a read or write waits for the other side of a connection.
///
/// # Errors
/// Errors of the system call; none is expected.
pub fn set_timeouts(socket: &Socket, wait: Duration) -> io::Result<()> {
    socket.set_read_timeout(Some(wait))?;
    socket.set_write_timeout(Some(wait))
}

/// The process that created the other end of a Unix socket, or listened there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The process id; `None` if it has no id here, as in another container.
    pub process: Option<u32>,
    /// The user id.
    pub user: u32,
}

/// The process that created the other end of a Unix socket, or listened there.
///
/// # Errors
/// Errors of the system call.
pub fn peer(socket: impl AsFd) -> io::Result<Peer> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut bytes = libc::socklen_t::try_from(size_of_val(&credentials)).unwrap_or_default();
    let fd = socket.as_fd().as_raw_fd();
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PEERCRED);
    // SAFETY: both pointers are to values of this function, and the kernel writes at most `bytes`
    // bytes.
    let result = unsafe {
        libc::getsockopt(fd, level, option, (&raw mut credentials).cast(), &raw mut bytes)
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    let process = u32::try_from(credentials.pid).ok().filter(|it| *it > 0);
    Ok(Peer { process, user: credentials.uid })
}

/// The user id of the process that created the other end of a Unix socket.
///
/// # Errors
/// Errors of the system call.
pub fn peer_user(socket: impl AsFd) -> io::Result<u32> {
    Ok(peer(socket)?.user)
}

/// The effective user id of this process.
pub fn own_user() -> u32 {
    // SAFETY: the call has no conditions and cannot fail.
    unsafe { libc::geteuid() }
}

/// A number that identifies a socket among all since the host's start, however many descriptors it
/// has.
///
/// # Errors
/// Errors of the system call; a descriptor that is not a socket.
pub fn cookie(socket: impl AsFd) -> io::Result<u64> {
    Ok(sockopt::socket_cookie(socket)?)
}

/// The first descriptor that a service manager passes.
const FIRST: RawFd = 3;

/// Takes over the descriptors that the service manager has passed (sd_listen_fds(3)), each with its
/// name. Child processes do not inherit them. Call it once, before this process opens a descriptor.
///
/// # Errors
/// If the environment does not describe the descriptors that are open. None is taken over then.
pub fn inherited() -> io::Result<Vec<(String, OwnedFd)>> {
    let passed = sd_notify::listen_fds_with_names()?;
    // SAFETY: sd-notify has checked that it is open; the process that started this one passed it
    // for this one to own, and no other code here takes it.
    let own = |(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(passed.map(own).collect())
}

/// Makes a child process start with these descriptors from 3 on, as a service manager does.
#[doc(hidden)]
pub fn command_with(command: &mut Command, them: Vec<OwnedFd>) -> &mut Command {
    // Above all numbers that are replaced, so that none is overwritten before it was copied.
    const HIGH: RawFd = 200;
    let place = move || {
        let mut copies = [0; DESCRIPTORS_MAX];
        for (copy, fd) in copies.iter_mut().zip(&them) {
            // SAFETY: the descriptor is open.
            *copy = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, HIGH) };
        }
        for (number, copy) in (FIRST..).zip(&copies[..them.len().min(DESCRIPTORS_MAX)]) {
            // SAFETY: nothing in this process uses the number before it becomes another program.
            if unsafe { libc::dup2(*copy, number) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the hook makes system calls and allocates nothing, as is required after fork.
    unsafe { command.pre_exec(place) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    fn pair() -> (Socket, Socket) {
        Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap()
    }

    #[test]
    fn what_is_sent_along_is_the_same_socket() {
        let (here, there) = pair();
        let (mut kept, given) = UnixStream::pair().unwrap();
        send(&here, b"one", &[given.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (bytes, mut descriptors) = receive(&there, &mut buffer).unwrap();
        assert_eq!((&buffer[..bytes], descriptors.len()), (&b"one"[..], 1));
        assert_eq!(cookie(&descriptors[0]).unwrap(), cookie(&given).unwrap());
        assert_ne!(cookie(&descriptors[0]).unwrap(), cookie(&kept).unwrap());
        drop(given);
        UnixStream::from(descriptors.pop().unwrap()).write_all(b"still here").unwrap();
        let mut text = String::new();
        kept.read_to_string(&mut text).unwrap();
        assert_eq!(text, "still here");
    }

    #[test]
    fn the_end_is_an_empty_message_and_a_long_one_an_error() {
        let (here, there) = pair();
        send(&here, b"much too long", &[]).unwrap();
        assert!(receive(&there, &mut [0; 4]).is_err());
        drop(here);
        assert_eq!(receive(&there, &mut [0; 4]).unwrap().0, 0);
    }

    #[test]
    fn more_than_fit_are_not_sent() {
        let (here, _there) = pair();
        let too_many = vec![here.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(send(&here, b"many", &too_many).is_err());
        assert!(send(&here, b"many", &too_many[1..]).is_ok());
    }

    #[test]
    fn the_other_side_is_known_and_waits_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let listener = listen(&path).unwrap();
        let client = connect(&path).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(peer_user(&server).unwrap(), own_user());
        set_timeouts(&client, Duration::from_millis(1)).unwrap();
        assert!(receive(&client, &mut [0; 4]).is_err());
        assert!(listen(&path).is_err());
    }
}
