//! Addresses to listen on: normalised, and checked before any socket is bound.

use std::net::{IpAddr, SocketAddr};

use super::Config;
use super::relations::{Conflict, LISTENING};

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

    /// Addresses that cannot be served on, as far as that shows without binding them.
    pub(super) fn address_conflicts(&self) -> Vec<Conflict> {
        let mut all = Vec::new();
        let lists = [
            ("server", &self.server.listen[..]),
            ("udp", &self.udp.listen),
            ("http", &self.http.listen),
            ("tls", &self.tls.listen),
            ("admin", std::slice::from_ref(&self.admin.listen)),
        ];
        for (section, addresses) in lists {
            let of_many = addresses.iter().filter(|it| is_of_many(it.ip()));
            all.extend(of_many.map(|address| {
                let problem = format!(
                    "{address} is a multicast or broadcast address: nothing can be served on it"
                );
                Conflict::new((section, "listen"), &[], problem)
            }));
            all.extend(repeated(addresses).into_iter().map(|address| {
                Conflict::new((section, "listen"), &[], format!("{address} is listed twice"))
            }));
        }
        let lists = [self.udp_listen(), self.http_listen(), self.tls_listen()];
        let is_anything_served =
            lists.iter().any(|it| !it.is_empty()) || !self.unix_socket().is_empty();
        if !self.udp.enabled && !self.has_streams() {
            let problem = "is false, and so are http.enabled and websocket.enabled: nothing is \
                           served";
            let others = &[("http", "enabled"), ("websocket", "enabled")];
            all.push(Conflict::new(("udp", "enabled"), others, problem));
        } else if !is_anything_served {
            let problem = "is empty, and so are udp.listen, http.listen and tls.listen: there is \
                           no address to serve on";
            all.push(Conflict::new(("server", "listen"), &LISTENING[1..], problem));
        }
        all.extend(self.shared_addresses());
        all.extend(self.path_conflicts());
        all
    }

    /// Addresses that two listeners for connections need at once.
    fn shared_addresses(&self) -> Vec<Conflict> {
        let mut all = Vec::new();
        for tls in self.tls_listen() {
            if let Some(plain) = self.http_listen().iter().find(|it| overlap(*tls, **it)) {
                let problem = format!(
                    "{tls} is in use: {plain} is served without TLS; remedy: give TLS a port of \
                     its own, such as 443"
                );
                all.push(Conflict::new(("tls", "listen"), &LISTENING[..3], problem));
            }
        }
        let admin = self.admin.listen;
        let mut streams = self.http_listen().iter().chain(self.tls_listen());
        if let Some(address) = streams.find(|it| overlap(admin, **it)) {
            let problem = format!(
                "{admin} is in use: clients are served on {address} over TCP; remedy: give the \
                 admin listener a port of its own, such as 6970"
            );
            all.push(Conflict::new(("admin", "listen"), LISTENING, problem));
        }
        all
    }

    /// Paths of Unix sockets that are too long, or the same.
    fn path_conflicts(&self) -> Vec<Conflict> {
        let (unix, handover) = (&self.http.unix_socket, &self.server.handover_socket);
        let sockets = [(("http", "unix_socket"), unix), (("server", "handover_socket"), handover)];
        let long = sockets.iter().filter(|it| it.1.len() > SOCKET_PATH_BYTES_MAX);
        let mut all: Vec<_> = long
            .map(|(setting, path)| {
                let problem = format!(
                    "has {} bytes; a socket's path may have {SOCKET_PATH_BYTES_MAX} bytes",
                    path.len()
                );
                Conflict::new(*setting, &[], problem)
            })
            .collect();
        if !unix.is_empty() && unix == handover {
            let problem = format!("{unix:?} is http.unix_socket as well");
            let others = &[("http", "unix_socket")];
            all.push(Conflict::new(("server", "handover_socket"), others, problem));
        }
        all
    }
}

/// Whether an address is not one host's.
fn is_of_many(ip: IpAddr) -> bool {
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

/// The addresses with a port other than 0 that occur again, each once.
fn repeated(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let again = |(at, it): (usize, &SocketAddr)| it.port() != 0 && addresses[..at].contains(it);
    let found = addresses.iter().enumerate().filter(|&(at, it)| again((at, it)));
    let mut found: Vec<_> = found.map(|(_, it)| *it).collect();
    found.dedup();
    found
}
