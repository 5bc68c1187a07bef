//! The interfaces that get the XDP program, and what is known of them.

use super::super::HostReport;
use super::super::facts::InterfaceFacts;
use crate::server::xdp_interfaces;

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

/// The interfaces that a tracker with these settings attaches the program to, or why they are
/// unknown.
pub(super) fn chosen(report: &HostReport) -> Result<Vec<Chosen<'_>>, &str> {
    let config = &report.config;
    let host = report.facts.host_interfaces.as_ref().map_err(String::as_str)?;
    let names = xdp_interfaces(&config.udp.xdp_interfaces.0, config.udp_listen(), host);
    let facts = |name: &String| report.facts.interfaces.iter().find(|it| it.name == *name);
    Ok(names.into_iter().map(|name| Chosen { facts: facts(&name), name }).collect())
}
