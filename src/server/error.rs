//! Why a start failed: one sentence that names the cause and the remedy.

use std::fmt;
use std::io;
use std::net::SocketAddr;

use crate::access::disk::Trouble;
use crate::config::ConfigError;
use crate::server::state::KeyError;

/// A start that failed. Its text is meant for the operator.
#[derive(Debug)]
pub enum StartError {
    /// The configuration is wrong.
    Config(ConfigError),
    /// The configuration is fine, but the host does not grant it, or a part broke later.
    Failed(String),
}

impl StartError {
    /// The exit code it ends the process with: 2 for bad configuration, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Failed(_) => 1,
        }
    }

    /// Something could not be listened on.
    pub(super) fn listening(kind: &str, address: SocketAddr, error: &io::Error) -> Self {
        let remedy = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "stop the program that has it (see `ss -lnp`), or choose another address"
            }
            io::ErrorKind::AddrNotAvailable => "choose an address that this host has (see `ip a`)",
            io::ErrorKind::PermissionDenied => {
                "choose a port above 1023, or grant CAP_NET_BIND_SERVICE"
            }
            _ => remedy(error),
        };
        Self::Failed(format!("cannot listen on {kind} {address}: {error}; remedy: {remedy}"))
    }

    /// Something else that takes descriptors, memory or threads could not be had.
    pub(super) fn lacking(what: &str, error: &io::Error) -> Self {
        Self::Failed(format!("{what}: {error}; remedy: {}", remedy(error)))
    }
}

/// What to do about an error that may come from anywhere.
fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EMFILE) => "raise the limit on open files (ulimit -n, LimitNOFILE=)",
        Some(libc::ENFILE) => "raise the host's limit on open files (sysctl fs.file-max)",
        Some(libc::ENOMEM | libc::ENOBUFS) => "free memory, or raise the cgroup's limit",
        Some(libc::EAGAIN) => "raise the limit on threads (ulimit -u, TasksMax=, pids.max)",
        Some(libc::EAFNOSUPPORT) => "enable IPv6 on this host, or listen on IPv4 alone",
        _ => "see that the host's limits and policies allow it",
    }
}

impl From<ConfigError> for StartError {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<Trouble> for StartError {
    /// A list that was given is configuration, wherever it stands.
    fn from(trouble: Trouble) -> Self {
        match trouble {
            Trouble::List(text) => Self::Config(ConfigError::at("", text)),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<KeyError> for StartError {
    /// A key that was given is configuration, wherever it stands.
    fn from(error: KeyError) -> Self {
        Self::Config(ConfigError::at("", error.to_string()))
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Failed(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for StartError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_likely_error_has_a_remedy_of_its_own() {
        let cases = [
            (libc::EADDRINUSE, "ss -lnp"),
            (libc::EADDRNOTAVAIL, "`ip a`"),
            (libc::EACCES, "CAP_NET_BIND_SERVICE"),
            (libc::EMFILE, "ulimit -n"),
            (libc::ENFILE, "fs.file-max"),
            (libc::ENOMEM, "memory"),
            (libc::EAFNOSUPPORT, "IPv6"),
        ];
        for (errno, said) in cases {
            let error = io::Error::from_raw_os_error(errno);
            let it = StartError::listening("udp", ([0; 4], 69).into(), &error);
            let text = it.to_string();
            assert!(text.starts_with("cannot listen on udp 0.0.0.0:69: "), "{text}");
            assert!(text.split("remedy: ").nth(1).unwrap().contains(said), "{text}");
            assert_eq!((it.exit_code(), text.lines().count()), (1, 1));
        }
    }
}
