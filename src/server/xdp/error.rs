//! Why an interface does not have the program, with the remedy.

use std::io;

use crate::config::XDP_INTERFACES_MAX;
use crate::sys::xdp::kernel::LoadError;
use crate::sys::xdp::socket::XskError;

/// Why an interface, or all of them, do not have the program.
#[derive(Debug, thiserror::Error)]
pub(super) enum XdpError {
    /// The program or its maps could not be made.
    #[error("{0}")]
    Load(#[from] LoadError),
    /// A map could not be set.
    #[error("cannot set what the XDP program follows: {0}")]
    Set(io::Error),
    /// The host's interfaces are unknown.
    #[error("cannot list the interfaces of this host: {0}")]
    Interfaces(io::Error),
    /// No interface is named, and none carries an address that is served.
    #[error("no interface carries an address that is served, and no default route was found")]
    NoInterface,
    /// More interfaces carry addresses that are served than may have the program; these do not.
    #[error(
        "the XDP program is on {XDP_INTERFACES_MAX} interfaces, the most there may be: not on {}",
        .0.join(", ")
    )]
    TooMany(Vec<String>),
    /// Another program is on the interface.
    #[error("another XDP program is attached to {interface}{}", numbered(*program))]
    Busy {
        /// The interface.
        interface: String,
        /// The kernel's number of the other program.
        program: Option<u32>,
    },
    /// A receive queue has no AF_XDP socket.
    #[error("{interface}: {error}")]
    Queue {
        /// The interface.
        interface: String,
        /// Why.
        error: XskError,
    },
    /// A program could not be attached.
    #[error("cannot attach the XDP program to {interface}: {error}")]
    Attach {
        /// The interface.
        interface: String,
        /// Why.
        error: io::Error,
    },
}

fn numbered(program: Option<u32>) -> String {
    program.map(|number| format!(" (number {number})")).unwrap_or_default()
}

/// Whether another program is on the interface.
pub(super) fn is_busy(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EEXIST))
}

impl XdpError {
    /// What the operator can do.
    pub(super) fn remedy(&self) -> &'static str {
        let error = match self {
            Self::Load(LoadError::Map(error) | LoadError::Refused { error, .. })
            | Self::Set(error) => error,
            Self::Interfaces(_) => {
                return "allow AF_NETLINK (RestrictAddressFamilies of the unit, see \
                        deploy/systemd/xdp.conf)";
            }
            Self::Queue { error, .. } => return remedy_of_queue(error),
            Self::NoInterface => return "name the interfaces in udp.xdp_interfaces",
            Self::TooMany(_) => {
                return "name those with the most traffic in udp.xdp_interfaces; the sockets serve \
                        the others";
            }
            Self::Busy { .. } => {
                return "`bpftool net show` names it; end its process, or detach it by `ip link set \
                        dev INTERFACE xdp off`, or name other interfaces in udp.xdp_interfaces";
            }
            Self::Attach { error, .. } => match error.raw_os_error() {
                Some(libc::ENODEV | libc::ENXIO) => {
                    return "name interfaces of this host in udp.xdp_interfaces: `ip -brief link` \
                            lists them";
                }
                Some(libc::EPERM) => error,
                _ => {
                    return "udp.xdp_mode = \"generic\" works on every interface; skep doctor says \
                            what the driver needs";
                }
            },
        };
        match error.raw_os_error() {
            Some(libc::EPERM) => {
                "start skep with CAP_BPF and CAP_NET_ADMIN (deploy/systemd/xdp.conf); after \
                 server.user has dropped them, a restart is needed"
            }
            Some(libc::ENOMEM) => "allow the process more memory: maps take up to 13 MiB",
            _ => "XDP needs Linux 5.19: see docs/xdp.md, or set udp.xdp = \"off\"",
        }
    }
}

/// What the operator can do about a queue without a socket.
fn remedy_of_queue(error: &XskError) -> &'static str {
    match error {
        XskError::NotPermitted => {
            "start skep with CAP_NET_RAW (deploy/systemd/xdp-full.conf); after server.user has \
             dropped it, a restart is needed"
        }
        XskError::LockedMemory => "LimitMEMLOCK=infinity in the unit, or CAP_IPC_LOCK",
        XskError::QueueTaken { .. } => "end the program that has it: `ss --xdp` lists them",
        XskError::NotSupported => {
            "if a sandbox denies AF_XDP, allow it (deploy/systemd/xdp-full.conf); udp.xdp = \
             \"offload\" works without"
        }
        XskError::NoQueue { .. } | XskError::Failed { .. } => {
            "none is needed if the interface has changed; else udp.xdp = \"offload\""
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_own_remedy() {
        let system = io::Error::from_raw_os_error;
        let attach = |code| XdpError::Attach { interface: "eth0".into(), error: system(code) };
        let errors = [
            XdpError::Load(LoadError::Map(system(libc::EPERM))),
            XdpError::Load(LoadError::Refused { error: system(libc::EINVAL), log: "x".into() }),
            XdpError::Set(system(libc::ENOMEM)),
            XdpError::Interfaces(system(libc::EAFNOSUPPORT)),
            XdpError::NoInterface,
            XdpError::TooMany(vec!["eth4".into(), "eth5".into()]),
            XdpError::Busy { interface: "eth0".into(), program: Some(7) },
            XdpError::Queue { interface: "eth0".into(), error: XskError::NotPermitted },
            XdpError::Queue { interface: "eth0".into(), error: XskError::LockedMemory },
            attach(libc::ENODEV),
            attach(libc::EOPNOTSUPP),
        ];
        let mut remedies: Vec<_> = errors.iter().map(XdpError::remedy).collect();
        remedies.sort_unstable();
        remedies.dedup();
        assert_eq!(remedies.len(), errors.len());
        assert_eq!(attach(libc::EPERM).remedy(), errors[0].remedy());
        assert!(errors[5].to_string().ends_with("not on eth4, eth5"), "{}", errors[5]);
        assert_eq!(errors[6].to_string(), "another XDP program is attached to eth0 (number 7)");
    }
}
