//! Which interfaces get the XDP program, and what is known of them.

use std::net::SocketAddr;

use super::super::HostReport;
use super::super::addresses::default_routes_v6;
use super::super::facts::InterfaceFacts;
use super::super::host::{Host, HostReadError};

/// The loopback interface.
pub(super) const LOOPBACK: &str = "lo";

/// An interface that gets the program.
pub(super) struct Chosen<'a> {
    pub(super) name: String,
    /// `None`: there is no such interface.
    pub(super) facts: Option<&'a InterfaceFacts>,
}

impl Chosen<'_> {
    /// A file of the interface.
    pub(super) fn file(&self, name: &str) -> String {
        format!("/sys/class/net/{}/{name}", self.name)
    }
}

/// The interfaces that `udp.xdp_interfaces` names; if it is empty, those that carry the specific
/// addresses of `listen`, and for a wildcard those of the default routes.
pub(super) fn chosen(report: &HostReport) -> Result<Vec<Chosen<'_>>, HostReadError> {
    let named = &report.config.udp.xdp_interfaces.0;
    let names = if named.is_empty() { of_addresses(report)? } else { named.clone() };
    let facts = |name: &String| report.facts.interfaces.iter().find(|it| it.name == *name);
    Ok(names.into_iter().map(|name| Chosen { facts: facts(&name), name }).collect())
}

fn of_addresses(report: &HostReport) -> Result<Vec<String>, HostReadError> {
    let listen = report.config.udp_listen();
    let (wildcards, specific): (Vec<SocketAddr>, Vec<_>) =
        listen.iter().partition(|it| it.ip().is_unspecified());
    let mut names = Vec::new();
    for interface in &report.facts.interfaces {
        if specific.iter().any(|it| interface.addresses.contains(&it.ip())) {
            names.push(interface.name.clone());
        }
    }
    for wildcard in wildcards {
        let routes = if wildcard.is_ipv4() { default_routes_v4 } else { default_routes_v6 };
        match routes(&report.host) {
            Ok(found) => names.extend(found),
            // A host without IPv6 serves IPv4 alone.
            Err(unread) if wildcard.is_ipv6() && unread.is_missing => {}
            Err(unread) => return Err(unread),
        }
    }
    names.retain(|it| it != LOOPBACK);
    names.sort();
    names.dedup();
    Ok(names)
}

/// The interfaces of the default routes of IPv4.
fn default_routes_v4(host: &Host) -> Result<Vec<String>, HostReadError> {
    const ZERO: &str = "00000000";
    let text = host.text("/proc/net/route")?;
    // Interface, destination, gateway, flags, references, use, metric, mask.
    let leads = |line: &str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        let is_default = fields.get(1) == Some(&ZERO) && fields.get(7) == Some(&ZERO);
        is_default.then(|| fields[0].to_owned())
    };
    Ok(text.lines().skip(1).filter_map(leads).collect())
}
