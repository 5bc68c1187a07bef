//! Messages to the service manager (sd_notify(3)): readiness, stopping, the watchdog, and the
//! sockets that it keeps while no skep process runs.
//!
//! sd-notify formats the messages and reads the environment. The messages are sent here, because
//! its `notify` (0.5) supports no abstract address, and blocks forever on a manager that does not
//! read. Without `NOTIFY_SOCKET` nothing is sent.

use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use std::{ffi::OsStr, io};

use sd_notify::NotifyState;

use crate::server::sockets::inherited::OwnedSockets;
use crate::sys::descriptors;

/// How long the manager may leave a message unread.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

/// The connection to the service manager, if there is one.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// The watchdog's timeout.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The service manager that started this process.
    pub(crate) fn of_process() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|it| !it.is_empty()) else {
            return Self::default();
        };
        let watchdog = sd_notify::watchdog_enabled().filter(|it| !it.is_zero());
        match connect(&address) {
            Ok(socket) => Self { socket: Some(socket), watchdog },
            Err(error) => {
                tracing::warn!(%error, "service manager not notified: cannot reach NOTIFY_SOCKET");
                Self::default()
            }
        }
    }

    /// Whether there is a service manager.
    pub(crate) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// How often to reset the watchdog, three times within its timeout, and a handle to do that
    /// with. `None` without a watchdog.
    pub(crate) fn watchdog(&self) -> Option<(Duration, Self)> {
        let socket = self.socket.as_ref()?.try_clone().ok()?;
        Some((self.watchdog? / 3, Self { socket: Some(socket), watchdog: None }))
    }

    /// Reports that every socket is served. Includes the process id, as it may have taken over from
    /// another process.
    pub(crate) fn ready(&self, status: &str) {
        let process = NotifyState::MainPid(std::process::id());
        self.notify(&[NotifyState::Ready, process, NotifyState::Status(status)]);
    }

    /// Sets the status text.
    pub(crate) fn status(&self, status: &str) {
        self.notify(&[NotifyState::Status(status)]);
    }

    /// Reports that settings are read again. [`Self::ready`] ends that.
    pub(crate) fn reloading(&self) {
        if let Ok(now) = NotifyState::monotonic_usec_now() {
            self.notify(&[NotifyState::Reloading, now]);
        }
    }

    /// Reports that the process is stopping, and how long that takes at most.
    pub(crate) fn stopping(&self, status: &str, at_most: Duration) {
        // A u32 holds 71 minutes. The longest drain takes one hour.
        let at_most_us = u32::try_from(at_most.as_micros()).unwrap_or(u32::MAX);
        let timeout = NotifyState::ExtendTimeoutUsec(at_most_us);
        self.notify(&[NotifyState::Stopping, NotifyState::Status(status), timeout]);
    }

    /// Resets the watchdog.
    pub(crate) fn alive(&self) {
        self.notify(&[NotifyState::Watchdog]);
    }

    /// Stores all sockets with the manager, and removes those with the names in `gone`.
    pub(crate) fn keep(&self, owned: &OwnedSockets, gone: &[String]) {
        for name in gone {
            let name = format!("FDNAME={name}");
            self.notify(&[NotifyState::Custom("FDSTOREREMOVE=1"), NotifyState::Custom(&name)]);
        }
        if self.is_there() {
            for (name, socket) in owned.named() {
                // The manager stores a socket once, under its first name. FDPOLL=0: otherwise it
                // would remove a socket with a pending error, as a UDP socket may have.
                let name = format!("FDNAME={name}");
                let store = ["FDSTORE=1", "FDPOLL=0", &name].map(NotifyState::Custom);
                self.send(&store, &[socket]);
            }
        }
    }

    fn notify(&self, states: &[NotifyState<'_>]) {
        self.send(states, &[]);
    }

    fn send(&self, states: &[NotifyState<'_>], sockets: &[BorrowedFd<'_>]) {
        let Some(socket) = &self.socket else { return };
        let lines: Vec<_> = states.iter().map(NotifyState::to_string).collect();
        if let Err(error) = descriptors::send(socket, lines.join("\n").as_bytes(), sockets) {
            tracing::debug!(%error, "service manager not notified");
        }
    }
}

/// Connects to the manager's socket: a path, or `@` and a name without a file.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let bytes = address.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(SEND_TIMEOUT))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address_are_reached() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("@skep-test-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let sockets = [
            (UnixDatagram::bind(&path).unwrap(), path.into_os_string()),
            (UnixDatagram::bind_addr(&by_name).unwrap(), name.into()),
        ];
        for (socket, address) in sockets {
            let manager = ServiceManager {
                socket: Some(connect(&address).unwrap()),
                ..ServiceManager::default()
            };
            manager.stopping("so it is", Duration::from_millis(2));
            let mut buffer = [0; 256];
            let bytes = socket.recv(&mut buffer).unwrap();
            let said = "STOPPING=1\nSTATUS=so it is\nEXTEND_TIMEOUT_USEC=2000";
            assert_eq!(&buffer[..bytes], said.as_bytes());
        }
        ServiceManager::default().alive();
    }
}
