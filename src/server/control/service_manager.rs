//! What the service manager is told (sd_notify(3)): readiness, the end, a sign of life, and the
//! sockets it is to keep while no process of ours runs.
//!
//! Without `NOTIFY_SOCKET` all of this does nothing.

use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;
use std::{ffi::OsStr, io};

use crate::server::sockets::inherited::OwnedSockets;
use crate::sys::clock::monotonic_us;
use crate::sys::descriptors;

/// How long the manager may leave a message unread.
const PATIENCE: Duration = Duration::from_secs(1);

/// The service manager, if it listens.
#[derive(Debug, Default)]
pub(crate) struct ServiceManager {
    socket: Option<UnixDatagram>,
    /// Within what time it wants a sign of life.
    watchdog: Option<Duration>,
}

impl ServiceManager {
    /// The one that started this process.
    pub(crate) fn of_process() -> Self {
        let Some(address) = std::env::var_os("NOTIFY_SOCKET").filter(|it| !it.is_empty()) else {
            return Self::default();
        };
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|it| it == u64::from(std::process::id()));
        let watchdog_us = number("WATCHDOG_USEC").filter(|it| is_ours && *it > 0);
        match connect(&address) {
            Ok(socket) => {
                Self { socket: Some(socket), watchdog: watchdog_us.map(Duration::from_micros) }
            }
            Err(error) => {
                tracing::warn!("the service manager cannot be told anything: {error}");
                Self::default()
            }
        }
    }

    /// Whether there is one.
    pub(crate) fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// How often it is to be told that this process lives, if it wants to know (thrice in the time
    /// after which it would act), and by whom.
    pub(crate) fn watchdog(&self) -> Option<(Duration, Self)> {
        let socket = self.socket.as_ref()?.try_clone().ok()?;
        Some((self.watchdog? / 3, Self { socket: Some(socket), watchdog: None }))
    }

    /// Every socket answers. Names the process, as it may have taken over from another.
    pub(crate) fn ready(&self, status: &str) {
        self.say(&format!("READY=1\nMAINPID={}\nSTATUS={status}", std::process::id()));
    }

    /// What goes on.
    pub(crate) fn status(&self, status: &str) {
        self.say(&format!("STATUS={status}"));
    }

    /// Settings are read again; [`Self::ready`] ends that.
    pub(crate) fn reloading(&self) {
        self.say(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_us()));
    }

    /// The end has begun, and may take so long.
    pub(crate) fn stopping(&self, status: &str, at_most: Duration) {
        let at_most_us = at_most.as_micros();
        self.say(&format!("STOPPING=1\nSTATUS={status}\nEXTEND_TIMEOUT_USEC={at_most_us}"));
    }

    /// A sign of life.
    pub(crate) fn alive(&self) {
        self.say("WATCHDOG=1");
    }

    /// Gives it all sockets to keep, and takes back those of these names.
    pub(crate) fn keep(&self, owned: &OwnedSockets, gone: &[String]) {
        for name in gone {
            self.say(&format!("FDSTOREREMOVE=1\nFDNAME={name}"));
        }
        if self.is_there() {
            for (name, socket) in owned.named() {
                // One that is there already is kept once, under its first name. No poll: the
                // manager would throw a socket away that is in error, as a UDP socket may be.
                self.send(&format!("FDSTORE=1\nFDPOLL=0\nFDNAME={name}"), &[socket]);
            }
        }
    }

    fn say(&self, text: &str) {
        self.send(text, &[]);
    }

    fn send(&self, text: &str, them: &[BorrowedFd<'_>]) {
        let Some(socket) = &self.socket else { return };
        if let Err(error) = descriptors::send(socket, text.as_bytes(), them) {
            tracing::debug!(%error, "the service manager does not listen");
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
    socket.set_write_timeout(Some(PATIENCE))?;
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
