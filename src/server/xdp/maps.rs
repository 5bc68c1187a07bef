//! The maps that all programs share, in line with settings, access list and addresses.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use tracing::warn;

use super::XdpInputs;
use crate::access::lists::{AccessList, ListValue};
use crate::server::log::OPERATOR;
use crate::sys::xdp::kernel::LoadError;
use crate::sys::xdp::offload::{
    NETWORKS_MAX, Offload, OffloadProgram, OffloadSettings, TARGETS_MAX,
};
use crate::sys::xdp::socket::XskMap;

/// The maps, and what was written to them.
pub(super) struct FollowedMaps {
    offload: Offload,
    clock_offset_ns: u64,
    /// Seed of the program's hash.
    seed: [u64; 2],
    settings: Option<OffloadSettings>,
    exempt: Vec<IpNet>,
    denied: Option<(Arc<AccessList>, Vec<IpAddr>)>,
    /// Whether there were too many denied networks at the last look.
    has_excess: bool,
    targets: BTreeSet<SocketAddr>,
}

impl FollowedMaps {
    /// Makes the maps. The offset is what is added to the kernel's monotonic clock to get
    /// nanoseconds since the Unix epoch.
    ///
    /// # Errors
    /// As [`Offload::create`].
    pub(super) fn create(clock_offset_ns: u64) -> Result<Self, LoadError> {
        // A predictable seed would let a sender choose whose load to share.
        let seed = || getrandom::u64().map_err(|it| LoadError::Map(io::Error::other(it)));
        Ok(Self {
            offload: Offload::create()?,
            clock_offset_ns,
            seed: [seed()?, seed()?],
            settings: None,
            exempt: Vec::new(),
            denied: None,
            has_excess: false,
            targets: BTreeSet::new(),
        })
    }

    /// Loads a program for one interface, which redirects to these sockets.
    ///
    /// # Errors
    /// As [`Offload::load`].
    pub(super) fn load(&self, sockets: &XskMap) -> Result<OffloadProgram, LoadError> {
        self.offload.load(sockets)
    }

    /// Writes keys and limits, if they have changed.
    ///
    /// # Errors
    /// Errors of the system calls. Programs judge by the former keys then.
    pub(super) fn set_settings(&mut self, inputs: &XdpInputs) -> io::Result<()> {
        let settings = OffloadSettings {
            keys: inputs.options.keys,
            clock_offset_ns: self.clock_offset_ns,
            limit: inputs.options.limit,
            seed: self.seed,
            asks_routes: inputs.options.asks_routes,
        };
        if self.settings != Some(settings) {
            self.offload.set(settings)?;
            self.settings = Some(settings);
        }
        Ok(())
    }

    /// Writes networks and addresses, if they have changed.
    ///
    /// # Errors
    /// Errors of the system calls. What was not written is written by the next call.
    pub(super) fn follow(
        &mut self,
        inputs: &XdpInputs,
        targets: BTreeSet<SocketAddr>,
    ) -> io::Result<()> {
        self.set_exempt(&inputs.options.exempt)?;
        self.set_denied(&inputs.denied, &inputs.offenders)?;
        // Last: nothing is served before everything else is right.
        if self.targets != targets {
            let left_out = self.offload.set_targets(targets.iter().copied())?;
            warn_of_excess("addresses served through the sockets alone", left_out, TARGETS_MAX);
            self.targets = targets;
        }
        Ok(())
    }

    fn set_exempt(&mut self, exempt: &[IpNet]) -> io::Result<()> {
        if self.exempt != exempt {
            let left_out = self.offload.set_exempt(exempt.iter().filter_map(prefix_of))?;
            warn_of_excess("networks of limits.exempt limited by XDP", left_out, NETWORKS_MAX);
            self.exempt = exempt.to_vec();
        }
        Ok(())
    }

    fn set_denied(&mut self, list: &Arc<AccessList>, offenders: &[IpAddr]) -> io::Result<()> {
        let is_known = |(known, of_known): &(Arc<AccessList>, Vec<IpAddr>)| {
            Arc::ptr_eq(known, list) && of_known == offenders
        };
        if self.denied.as_ref().is_some_and(is_known) {
            return Ok(());
        }
        let page = list.page(None, NETWORKS_MAX);
        let listed = page.iter().filter_map(|(value, _)| match value {
            ListValue::Network(network) => prefix_of(network),
            _ => None,
        });
        // As the filter on the sockets has it: an IPv6 source with its whole /64.
        let offending = offenders.iter().map(|it| (*it, if it.is_ipv4() { 32 } else { 64 }));
        let offending = offending.map(|(address, bits)| (masked(address), bits));
        let left_out = self.offload.set_denied(offending.chain(listed))?;
        let left_out = left_out + list.len().saturating_sub(page.len());
        if !std::mem::replace(&mut self.has_excess, left_out > 0) {
            warn_of_excess("denied networks refused by the sockets alone", left_out, NETWORKS_MAX);
        }
        self.denied = Some((list.clone(), offenders.to_vec()));
        Ok(())
    }
}

/// The /64 of an IPv6 address.
fn masked(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
    }
}

/// A network as the program has it. IPv6 networks that contain all mapped IPv4 addresses are left
/// to the sockets: they do not stand for IPv4, and the program has IPv4 addresses mapped.
fn prefix_of(network: &IpNet) -> Option<(IpAddr, u8)> {
    let mapped = Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0);
    let is_ambiguous = matches!(network, IpNet::V6(v6) if v6.contains(&mapped));
    (!is_ambiguous).then(|| (network.network(), network.prefix_len()))
}

fn warn_of_excess(event: &str, left_out: usize, most: usize) {
    if left_out > 0 {
        warn!(target: OPERATOR, left_out, most, "{event}: too many for a map of the kernel");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_that_stand_for_ipv6_alone_do_not_deny_ipv4() {
        let prefix = |network: &str| prefix_of(&network.parse().unwrap());
        assert_eq!(prefix("::/0"), None);
        assert_eq!(prefix("::/80"), None);
        assert_eq!(prefix("2000::/3"), Some(("2000::".parse().unwrap(), 3)));
        assert_eq!(prefix("192.0.2.77/24"), Some(("192.0.2.0".parse().unwrap(), 24)));
        assert_eq!(prefix("0.0.0.0/0"), Some(("0.0.0.0".parse().unwrap(), 0)));
    }

    #[test]
    fn an_offender_is_denied_with_its_64() {
        let masked = |address: &str| masked(address.parse().unwrap()).to_string();
        assert_eq!(masked("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
        assert_eq!(masked("192.0.2.7"), "192.0.2.7");
    }
}
