//! Tries to bind what a start would bind, alone and for a moment: `skep doctor` names who has it.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::Path;

use socket2::{Domain, Protocol, Socket, Type};

use crate::config::Config;
use crate::server::sockets::bind::lacks_family;
use crate::sys::holder::{AddressHolder, BoundTransport, holder, holder_at};
use crate::sys::socket::{UdpOptions, bind_udp};

/// An address that a start would not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnavailableAddress {
    /// What would be served there, such as `udp 0.0.0.0:6969`.
    pub listener: String,
    /// Why it cannot be bound.
    pub reason: BindDenial,
}

/// Why an address cannot be bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BindDenial {
    /// Another socket has it.
    InUse(AddressHolder),
    /// This user may not bind ports below 1024.
    NotAllowed,
    /// Anything else, such as an address of another host.
    Other(String),
}

/// What a trial found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressTrial {
    /// The addresses that a start would not get.
    pub unavailable: Vec<UnavailableAddress>,
    /// The processes that have the ports, as far as they are visible from here.
    pub processes: BTreeSet<u32>,
    /// Whether no socket has one of the ports, even if this user may not bind it.
    pub has_unheld: bool,
}

/// Tries every address of the settings, except ports that the kernel chooses. Nothing is received
/// or accepted meanwhile: sockets that share their address with others are not taken part in.
pub(crate) fn try_addresses(config: &Config) -> AddressTrial {
    let (udp, tcp) = (BoundTransport::Udp, BoundTransport::Tcp);
    let mut all: Vec<_> = config.udp_listen().iter().map(|it| ("udp", udp, *it)).collect();
    all.extend(config.http_listen().iter().map(|it| ("tcp", tcp, *it)));
    all.extend(config.tls_listen().iter().map(|it| ("tls", tcp, *it)));
    all.push(("admin", tcp, config.admin.listen));
    all.retain(|it| it.2.port() != 0);
    let mut trial = AddressTrial::default();
    for (kind, transport, address) in all {
        let Err(error) = try_bind(transport, address) else {
            trial.has_unheld = true;
            continue;
        };
        if lacks_family(address, &error) {
            continue;
        }
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => BindDenial::InUse(holder(transport, address)),
            // The kernel denies it before it looks whether another socket has the port.
            io::ErrorKind::PermissionDenied => match holder(transport, address) {
                AddressHolder::Nobody => BindDenial::NotAllowed,
                holder => BindDenial::InUse(holder),
            },
            _ => BindDenial::Other(error.to_string()),
        };
        match &reason {
            BindDenial::InUse(AddressHolder::Process { id, .. }) => {
                trial.processes.insert(*id);
            }
            BindDenial::NotAllowed => trial.has_unheld = true,
            _ => {}
        }
        let listener = format!("{kind} {address}");
        trial.unavailable.push(UnavailableAddress { listener, reason });
    }
    let path = Path::new(config.unix_socket());
    if !config.unix_socket().is_empty() {
        // Its process is not among `processes`: after a take-over it is the one before.
        let in_use = Some(holder_at(path)).filter(|it| *it != AddressHolder::Nobody);
        trial.unavailable.extend(in_use.map(|holder| UnavailableAddress {
            listener: format!("unix {}", path.display()),
            reason: BindDenial::InUse(holder),
        }));
    }
    trial
}

/// Binds an address alone, and closes the socket at once.
fn try_bind(transport: BoundTransport, address: SocketAddr) -> io::Result<()> {
    match transport {
        BoundTransport::Udp => {
            let options = UdpOptions { reuse_port: false, ..UdpOptions::default() };
            bind_udp(address, &options).map(drop)
        }
        BoundTransport::Tcp => {
            let socket =
                Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?; // despite connections that are still closing
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            // Does not listen, so no connection is accepted.
            socket.bind(&address.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    #[test]
    fn what_another_socket_has_is_named_with_its_process() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut config = Config::default();
        config.udp.listen = vec![udp.local_addr().unwrap(), "127.0.0.1:0".parse().unwrap()];
        config.http.listen = vec!["127.0.0.1:0".parse().unwrap()];
        config.admin.listen = tcp.local_addr().unwrap();
        let trial = try_addresses(&config);
        assert!(!trial.has_unheld);
        assert_eq!(trial.processes, BTreeSet::from([std::process::id()]));
        let denied = trial.unavailable;
        let names: Vec<_> = denied.iter().map(|it| it.listener.as_str()).collect();
        let expected = [
            format!("udp {}", udp.local_addr().unwrap()),
            format!("admin {}", tcp.local_addr().unwrap()),
        ];
        assert_eq!(names, expected);
        for UnavailableAddress { reason, .. } in denied {
            let BindDenial::InUse(AddressHolder::Process { id, .. }) = reason else {
                panic!("not found: {reason:?}");
            };
            assert_eq!(id, std::process::id());
        }
        let chosen: SocketAddr = "127.0.0.1:0".parse().unwrap();
        (config.udp.listen, config.admin.listen) = (vec![chosen], chosen);
        assert_eq!(
            try_addresses(&config),
            AddressTrial::default(),
            "the kernel chooses another port"
        );
        config.udp.listen = vec![udp.local_addr().unwrap()];
        drop(udp);
        assert!(try_addresses(&config).has_unheld);
    }

    #[test]
    fn an_address_of_another_host_is_not_available() {
        let mut config = Config::default();
        config.server.listen = vec!["203.0.113.77:6969".parse().unwrap()];
        config.admin.listen = "127.0.0.1:0".parse().unwrap();
        let denied = try_addresses(&config).unavailable;
        assert_eq!(denied.len(), 2);
        assert!(denied.iter().all(|it| matches!(it.reason, BindDenial::Other(_))), "{denied:?}");
    }
}
