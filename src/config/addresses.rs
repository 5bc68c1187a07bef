//! Addresses to listen on: normalised, and checked before any socket is bound.

use std::net::{IpAddr, SocketAddr};

use super::{CheckError, Config};

/// Most bytes of the path of a Unix socket (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Config {
    /// Turns IPv4 addresses in IPv6 form (`::ffff:192.0.2.1`) into IPv4 addresses. An IPv6 socket
    /// serves only IPv6 and cannot be bound to them.
    pub(super) fn unmap_addresses(&mut self) {
        let (server, udp) = (&mut self.server.listen, &mut self.udp.listen);
        let lists = [server, udp, &mut self.http.listen, &mut self.tls.listen];
        for address in lists.into_iter().flatten().chain([&mut self.admin.listen]) {
            if let v4 @ IpAddr::V4(_) = address.ip().to_canonical() {
                address.set_ip(v4);
            }
        }
    }

    /// Checks addresses as far as possible without binding them.
    pub(super) fn check_addresses(&self) -> Result<(), CheckError> {
        let fault =
            |section, key, others, problem: String| CheckError { section, key, others, problem };
        let lists = [
            ("server", &self.server.listen[..]),
            ("udp", &self.udp.listen),
            ("http", &self.http.listen),
            ("tls", &self.tls.listen),
            ("admin", std::slice::from_ref(&self.admin.listen)),
        ];
        for (section, addresses) in lists {
            if let Some(address) = addresses.iter().find(|it| is_wildcard_of_many(it.ip())) {
                let problem = format!(
                    "{address} is a multicast or broadcast address: nothing can be \
                                       served on it"
                );
                return Err(fault(section, "listen", &[], problem));
            }
        }
        let admin = self.admin.listen;
        let mut streams = self.http_listen().iter().chain(&self.tls.listen);
        if let Some(address) = streams.find(|it| overlap(admin, **it)) {
            let others = &[("server", "listen"), ("http", "listen"), ("tls", "listen")];
            let problem = format!("{admin} is in use: clients are served on {address} over TCP");
            return Err(fault("admin", "listen", others, problem));
        }
        if self.http.unix_socket.len() > SOCKET_PATH_BYTES_MAX {
            let problem = format!("a socket's path may have {SOCKET_PATH_BYTES_MAX} bytes");
            return Err(fault("http", "unix_socket", &[], problem));
        }
        Ok(())
    }
}

fn is_wildcard_of_many(ip: IpAddr) -> bool {
    ip.is_multicast() || matches!(ip, IpAddr::V4(address) if address.is_broadcast())
}

/// Whether the second of two TCP sockets cannot be bound because of the first.
fn overlap(one: SocketAddr, other: SocketAddr) -> bool {
    let is_any = one.ip().is_unspecified() || other.ip().is_unspecified();
    let is_same_family = one.is_ipv4() == other.is_ipv4();
    one.port() == other.port()
        && one.port() != 0
        && (one.ip() == other.ip() || is_any && is_same_family)
}
