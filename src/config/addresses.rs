//! Addresses to listen on, written in one way.

use std::net::IpAddr;

use super::Config;

impl Config {
    /// Writes IPv4 addresses that stand in the form of IPv6 (`::ffff:192.0.2.1`) as what they are:
    /// a socket of IPv6 serves that family alone, and cannot be bound to them.
    pub(super) fn unmap_addresses(&mut self) {
        let (server, udp) = (&mut self.server.listen, &mut self.udp.listen);
        let lists = [server, udp, &mut self.http.listen, &mut self.tls.listen];
        for it in lists.into_iter().flatten().chain([&mut self.admin.listen]) {
            if let v4 @ IpAddr::V4(_) = it.ip().to_canonical() {
                it.set_ip(v4);
            }
        }
    }
}
