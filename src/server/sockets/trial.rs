//! Tries to bind what a start would bind, alone and for a moment: `skep doctor` names who has it.

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

/// Tries every address of the settings, except ports that the kernel chooses. Nothing is received
/// or accepted meanwhile: sockets that share their address with others are not taken part in.
pub(crate) fn unavailable(config: &Config) -> Vec<UnavailableAddress> {
    let (udp, tcp) = (BoundTransport::Udp, BoundTransport::Tcp);
    let mut all: Vec<_> = config.udp_listen().iter().map(|it| ("udp", udp, *it)).collect();
    all.extend(config.http_listen().iter().map(|it| ("tcp", tcp, *it)));
    all.extend(config.tls_listen().iter().map(|it| ("tls", tcp, *it)));
    all.push(("admin", tcp, config.admin.listen));
    all.retain(|it| it.2.port() != 0);
    let mut denied: Vec<_> = all
        .into_iter()
        .filter_map(|(kind, transport, address)| {
            let error = try_bind(transport, address).err()?;
            if lacks_family(address, &error) {
                return None;
            }
            let reason = match error.kind() {
                io::ErrorKind::AddrInUse => BindDenial::InUse(holder(transport, address)),
                io::ErrorKind::PermissionDenied => BindDenial::NotAllowed,
                _ => BindDenial::Other(error.to_string()),
            };
            Some(UnavailableAddress { listener: format!("{kind} {address}"), reason })
        })
        .collect();
    let path = Path::new(config.unix_socket());
    if !config.unix_socket().is_empty() {
        let in_use = Some(holder_at(path)).filter(|it| *it != AddressHolder::Nobody);
        denied.extend(in_use.map(|holder| UnavailableAddress {
            listener: format!("unix {}", path.display()),
            reason: BindDenial::InUse(holder),
        }));
    }
    denied
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
        let denied = unavailable(&config);
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
        assert_eq!(unavailable(&config), [], "the kernel chooses another port");
    }

    #[test]
    fn an_address_of_another_host_is_not_available() {
        let mut config = Config::default();
        config.server.listen = vec!["203.0.113.77:6969".parse().unwrap()];
        config.admin.listen = "127.0.0.1:0".parse().unwrap();
        let denied = unavailable(&config);
        assert_eq!(denied.len(), 2);
        assert!(denied.iter().all(|it| matches!(it.reason, BindDenial::Other(_))), "{denied:?}");
    }
}
