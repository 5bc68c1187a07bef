//! Why a start failed: one sentence that names the cause and the remedy.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use crate::access_store::AccessError;
use crate::config::ConfigError;
use crate::server::state_directory::KeyError;
use crate::sys::holder::{AddressHolder, BoundTransport, holder, holder_at};

/// A start that failed. Its text is for the operator.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is invalid, or the state directory that it names cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The settings are valid, but the host lacks what they name.
    #[error("{0}")]
    Host(ConfigError),
    /// The configuration is valid, but the host does not permit it, or a part failed later.
    #[error("{0}")]
    Failed(String),
}

impl StartError {
    /// The exit code of the process: 2 for an invalid configuration, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Host(_) | Self::Failed(_) => 1,
        }
    }

    /// An address cannot be listened on.
    pub(super) fn listening(kind: &str, address: SocketAddr, error: &io::Error) -> Self {
        let failed = format!("cannot listen on {kind} {address}: {error}");
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                let transport =
                    if kind == "udp" { BoundTransport::Udp } else { BoundTransport::Tcp };
                let (who, remedy) = in_use(&holder(transport, address));
                return Self::Failed(format!("{failed}: {who}; remedy: {remedy}"));
            }
            io::ErrorKind::AddrNotAvailable => "choose an address that this host has (see `ip a`)",
            io::ErrorKind::PermissionDenied => {
                "choose a port above 1023, or grant CAP_NET_BIND_SERVICE"
            }
            _ if error.raw_os_error() == Some(libc::EINVAL) => {
                "give a link-local address the number of its interface, such as \
                 \"[fe80::1%2]:6969\" (see `ip a`), or choose another address"
            }
            _ if address.is_ipv4() && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                "this host has no IPv4: listen on IPv6 alone, such as \"[::]:6969\""
            }
            _ => remedy(error),
        };
        Self::Failed(format!("{failed}; remedy: {remedy}"))
    }

    /// A Unix socket cannot be listened on.
    pub(super) fn listening_at(path: &Path, error: &io::Error) -> Self {
        let failed = format!("cannot listen on the Unix socket {}: {error}", path.display());
        if error.kind() == io::ErrorKind::AddrInUse {
            let (who, remedy) = in_use(&holder_at(path));
            return Self::Failed(format!("{failed}: {who}; remedy: {remedy}"));
        }
        Self::Failed(format!(
            "{failed}; remedy: choose a path in a folder that this user may write to, and that no \
             other program uses; the proxy has to run in this user's group"
        ))
    }

    /// Something else failed that needs descriptors, memory or threads.
    pub(super) fn lacking(what: &str, error: &io::Error) -> Self {
        Self::Failed(format!("{what}: {error}; remedy: {}", remedy(error)))
    }
}

/// The process that has an address, and what to do about it.
pub(crate) fn in_use(holder: &AddressHolder) -> (String, String) {
    let other = "or choose another address";
    match holder {
        AddressHolder::Process { id, .. } if *id == std::process::id() => {
            ("the settings list this address twice".into(), "remove one of the two".into())
        }
        AddressHolder::Process { id, program } if program == NAME => (
            format!("it is in use by process {id}, another {NAME}"),
            format!(
                "stop that process (`kill {id}`, `systemctl stop {NAME}`), or replace it while it \
                 serves (`{NAME} run --take-over`), {other}"
            ),
        ),
        AddressHolder::Process { id, program } => (
            format!("it is in use by process {id} ({program})"),
            format!("stop that process (see `ss -lnp`), {other}"),
        ),
        AddressHolder::User(user) => (
            format!("it is in use by a process of user {user}, which is not visible from here"),
            format!("find it as root, outside of containers (`ss -lnp`), and stop it, {other}"),
        ),
        AddressHolder::Nobody => (
            "no process that is visible from here uses it".into(),
            format!("stop the program that uses it (see `ss -lnp` as root), {other}"),
        ),
    }
}

/// The name of skep's program.
const NAME: &str = env!("CARGO_PKG_NAME");

/// A remedy for an error that may have several causes.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => "raise the limit on open files (ulimit -n, LimitNOFILE=)",
        Some(libc::ENFILE) => "raise the host's limit on open files (sysctl fs.file-max)",
        Some(libc::ENOMEM | libc::ENOBUFS) => "free memory, or raise the cgroup's limit",
        Some(libc::EAGAIN) => "raise the limit on threads (ulimit -u, TasksMax=, pids.max)",
        Some(libc::EAFNOSUPPORT) => "enable IPv6 on this host, or listen on IPv4 alone",
        _ => "check the host's limits and security policies",
    }
}

impl From<AccessError> for StartError {
    /// A list that the settings name counts as configuration, wherever its file is.
    fn from(trouble: AccessError) -> Self {
        match trouble {
            AccessError::List(error) => Self::Config(ConfigError::at("", error.to_string())),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<KeyError> for StartError {
    /// A key that the settings name counts as configuration, wherever its file is.
    fn from(error: KeyError) -> Self {
        Self::Config(ConfigError::at("", error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_an_address_is_named_with_a_remedy_that_fits() {
        let process = |id, program: &str| AddressHolder::Process { id, program: program.into() };
        let cases = [
            (process(4711, "nginx"), "4711 (nginx)", "ss -lnp"),
            (process(4711, "skep"), "another skep", "--take-over"),
            (process(std::process::id(), "skep"), "list this address twice", "remove one"),
            (AddressHolder::User(33), "user 33", "as root"),
            (AddressHolder::Nobody, "no process", "ss -lnp"),
        ];
        for (holder, who, remedy) in cases {
            let said = in_use(&holder);
            assert!(said.0.contains(who) && said.1.contains(remedy), "{said:?}");
        }
    }

    #[test]
    fn every_likely_error_has_a_remedy_of_its_own() {
        let cases = [
            (libc::EADDRINUSE, "ss -lnp"),
            (libc::EADDRNOTAVAIL, "`ip a`"),
            (libc::EINVAL, "[fe80::1%2]:6969"),
            (libc::EACCES, "CAP_NET_BIND_SERVICE"),
            (libc::EMFILE, "ulimit -n"),
            (libc::ENFILE, "fs.file-max"),
            (libc::ENOMEM, "memory"),
            (libc::EAFNOSUPPORT, "listen on IPv6 alone"),
        ];
        for (errno, said) in cases {
            let error = io::Error::from_raw_os_error(errno);
            let failure = StartError::listening("udp", ([0; 4], 69).into(), &error);
            let text = failure.to_string();
            assert!(text.starts_with("cannot listen on udp 0.0.0.0:69: "), "{text}");
            assert!(text.split("remedy: ").nth(1).unwrap().contains(said), "{text}");
            assert_eq!((failure.exit_code(), text.lines().count()), (1, 1));
        }
        let error = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        let text = StartError::listening("udp", ([0; 16], 69).into(), &error).to_string();
        assert!(text.ends_with("enable IPv6 on this host, or listen on IPv4 alone"), "{text}");
    }
}
