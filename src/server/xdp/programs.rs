//! The programs of the interfaces: loaded, attached, detached.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use tracing::{info, warn};

use super::error::{XdpError, is_busy};
use super::maps::FollowedMaps;
use super::queues::{Queues, sockets_max};
use super::{XdpInputs, XdpOptions, interfaces};
use crate::config::{XDP_INTERFACES_MAX, Xdp};
use crate::server::log::OPERATOR;
use crate::sys::ethtool::Ethtool;
use crate::sys::interfaces::{HostInterfaces, index_of};
use crate::sys::xdp::attached::AttachedXdp;
use crate::sys::xdp::kernel::{AttachMode, LoadError, XdpLink};
use crate::sys::xdp::offload::{OffloadCounts, OffloadProgram};
use crate::sys::xdp::socket::XskMode;
use crate::worker::xdp::XdpPorts;

/// Seconds after which a failed attempt to attach is repeated: an attempt can reset the queues of a
/// network card.
const RETRY_S: u64 = 10;

/// Most programs that are kept for interfaces that are not to have one at present.
const IDLE_MAX: usize = XDP_INTERFACES_MAX;

/// All programs of this process.
pub(super) struct Programs {
    clock_offset_ns: u64,
    /// The addresses of the UDP sockets.
    listen: Vec<SocketAddr>,
    /// For each datagram worker, its AF_XDP sockets.
    ports: Vec<Arc<XdpPorts>>,
    /// Whether workers have rings of io_uring.
    has_rings: bool,
    is_serving: bool,
    /// Whether this process ends, so that no program is attached any more.
    is_over: bool,
    maps: Option<FollowedMaps>,
    /// Addresses and routes as they were read last.
    host: HostInterfaces,
    /// Whether interfaces that were chosen earlier are kept: not once the settings are new.
    keeps_chosen: bool,
    interfaces: BTreeMap<String, Interface>,
    /// What programs have counted that are not kept any more.
    retired: OffloadCounts,
    /// The options that were followed last.
    options: Option<Arc<XdpOptions>>,
    /// What is wrong with all interfaces, as it was logged.
    problem: Option<String>,
}

/// An interface that has, had, or is to have the program.
struct Interface {
    program: Arc<OffloadProgram>,
    link: Option<(XdpLink, AttachMode)>,
    queues: Queues,
    is_wanted: bool,
    /// What is wrong, as it was logged.
    problem: Option<String>,
    /// Seconds since the start before which no attempt is repeated.
    retry_at_s: u64,
}

/// What metrics are read from.
#[derive(Clone, Default)]
pub(super) struct PublishedPrograms {
    pub(super) interfaces: Vec<PublishedProgram>,
    /// What programs have counted that are not kept any more.
    pub(super) retired: OffloadCounts,
}

/// The program of one interface.
#[derive(Clone)]
pub(super) struct PublishedProgram {
    pub(super) name: String,
    pub(super) is_wanted: bool,
    pub(super) mode: Option<AttachMode>,
    /// How frames reach AF_XDP sockets, if there are any.
    pub(super) sockets: Option<XskMode>,
    /// Receive queues that are to have such a socket and have none.
    pub(super) queues_lacking: u64,
    pub(super) program: Arc<OffloadProgram>,
}

impl Programs {
    /// None yet. The offset is as in [`FollowedMaps::create`].
    pub(super) fn new(clock_offset_ns: u64) -> Self {
        Self {
            clock_offset_ns,
            listen: Vec::new(),
            ports: Vec::new(),
            has_rings: false,
            is_serving: false,
            is_over: false,
            maps: None,
            host: HostInterfaces::default(),
            keeps_chosen: false,
            interfaces: BTreeMap::new(),
            retired: OffloadCounts::default(),
            options: None,
            problem: None,
        }
    }

    /// The addresses of the UDP sockets, the AF_XDP sockets of each worker, and whether workers
    /// have rings of io_uring as well.
    pub(super) fn set_listen(
        &mut self,
        listen: &[SocketAddr],
        ports: Vec<Arc<XdpPorts>>,
        has_rings: bool,
    ) {
        (self.listen, self.ports, self.has_rings) = (listen.to_vec(), ports, has_rings);
    }

    /// Whether this process serves. If not, all programs are detached.
    pub(super) fn set_serving(&mut self, is_serving: bool) {
        self.is_serving = is_serving && !self.is_over;
        if !is_serving {
            self.interfaces.values_mut().for_each(|it| it.link = None);
        }
    }

    /// Detaches all programs for good: this process is about to end.
    pub(super) fn stop(&mut self) {
        self.is_over = true;
        self.set_serving(false);
    }

    /// Follows the inputs. Logs what fails, once, and goes on without it.
    pub(super) fn follow(&mut self, inputs: &XdpInputs) {
        let is_new = !self.options.as_ref().is_some_and(|it| Arc::ptr_eq(it, &inputs.options));
        if is_new {
            self.keeps_chosen = false;
            self.options = Some(inputs.options.clone());
            self.interfaces.values_mut().for_each(|it| it.retry_at_s = 0);
        }
        if inputs.options.xdp == Xdp::Off || self.listen.is_empty() {
            self.problem = None;
            return self.set_wanted(&[]);
        }
        let problem = self.try_to_follow(inputs).err();
        log_once(&mut self.problem, problem);
    }

    /// Follows as far as possible. One of the errors is returned.
    fn try_to_follow(&mut self, inputs: &XdpInputs) -> Result<(), XdpError> {
        let maps = match &mut self.maps {
            Some(maps) => maps,
            absent => absent.insert(FollowedMaps::create(self.clock_offset_ns)?),
        };
        let host = HostInterfaces::read().map(|host| self.host = host);
        let configured = &inputs.options.interfaces;
        let targets = interfaces::targets(configured, &self.listen, &self.host);
        let set = maps.set_settings(inputs).inspect_err(|_| {
            // Under keys that are not in force any more, programs would drop what workers serve.
            for interface in self.interfaces.values_mut() {
                (interface.link, interface.retry_at_s) = (None, inputs.elapsed_s + RETRY_S);
            }
        });
        let set = set.and_then(|()| maps.follow(inputs, targets));
        // What is closed in this look is locked until workers have seen that.
        let mut open: usize = self.interfaces.values().map(|it| it.queues.count()).sum();
        let most = sockets_max(if self.has_rings { self.ports.len() } else { 0 });
        let (wanted, left_out) = self.wanted(configured);
        self.set_wanted(&wanted);
        self.keeps_chosen = host.is_ok();
        let loaded = self.load_missing(&wanted);
        for (name, interface) in self.interfaces.iter_mut().filter(|it| it.1.is_wanted) {
            if self.is_serving {
                interface.keep_attached(name, inputs);
            }
            // Sockets are opened while privileges are there, and bound beside a program.
            let mode = interface.link.as_ref().map(|it| it.1);
            // No process receives what such a socket sends on the loopback interface.
            let mut loopbacks = self.host.addresses.iter().filter(|it| it.is_loopback);
            let is_loopback = loopbacks.any(|it| it.interface == *name);
            let has_sockets = inputs.options.xdp == Xdp::Full && !is_loopback;
            let before = interface.queues.count();
            let room = most.saturating_sub(open);
            interface.queues.follow(name, has_sockets, mode, &self.ports, room);
            open += interface.queues.count().saturating_sub(before);
        }
        set.map_err(XdpError::Set)?;
        host.map_err(XdpError::Interfaces)?;
        loaded?;
        match () {
            () if wanted.is_empty() => Err(XdpError::NoInterface),
            () if !left_out.is_empty() => Err(XdpError::TooMany(left_out)),
            () => Ok(()),
        }
    }

    /// The interfaces that are to have the program. One that was chosen for its addresses or routes
    /// stays until a reload, or until the interface is gone: to attach a program may interrupt a
    /// link, and so take the route away for which the interface was chosen. Those over the limit
    /// are apart.
    fn wanted(&self, configured: &[String]) -> (Vec<String>, Vec<String>) {
        let mut wanted = Vec::from_iter(interfaces::chosen(configured, &self.listen, &self.host));
        let keeps = self.keeps_chosen && configured.is_empty();
        let is_kept = |it: &(&String, &Interface)| {
            keeps && it.1.is_wanted && !wanted.contains(it.0) && index_of(it.0).is_ok()
        };
        let kept = self.interfaces.iter().filter(is_kept).map(|it| it.0.clone());
        wanted.extend(kept.collect::<Vec<_>>());
        let left_out = wanted.split_off(wanted.len().min(XDP_INTERFACES_MAX));
        (wanted, left_out)
    }

    /// Loads the programs that interfaces lack. Returns the last error.
    fn load_missing(&mut self, wanted: &[String]) -> Result<(), XdpError> {
        let Some(maps) = &self.maps else { return Ok(()) };
        let mut loaded = Ok(());
        let missing = wanted.iter().filter(|it| !self.interfaces.contains_key(*it)).cloned();
        for name in missing.collect::<Vec<_>>() {
            let made = Queues::create().map_err(LoadError::Map);
            match made.and_then(|queues| Ok((maps.load(queues.map())?, queues))) {
                Ok((program, queues)) => {
                    self.interfaces.insert(name, Interface::new(Arc::new(program), queues));
                }
                Err(error) => loaded = Err(XdpError::Load(error)),
            }
        }
        loaded
    }

    /// Detaches the programs of all other interfaces. They are kept, because another may not be
    /// loaded without privileges.
    fn set_wanted(&mut self, wanted: &[String]) {
        for (name, interface) in &mut self.interfaces {
            interface.is_wanted = wanted.contains(name);
            if !interface.is_wanted {
                interface.problem = None;
                interface.queues.close(&self.ports);
                if interface.link.take().is_some() {
                    info!(target: OPERATOR, interface = %name, "XDP program detached");
                }
            }
        }
        let idle = self.interfaces.iter().filter(|it| !it.1.is_wanted).map(|it| it.0.clone());
        for name in idle.skip(IDLE_MAX).collect::<Vec<_>>() {
            let gone = self.interfaces.remove(&name);
            let counts = gone.and_then(|it| it.program.counts().ok()).unwrap_or_default();
            self.retired.add(&counts);
        }
    }

    /// What metrics are read from.
    pub(super) fn published(&self) -> PublishedPrograms {
        let interfaces = self.interfaces.iter().map(|(name, interface)| PublishedProgram {
            name: name.clone(),
            is_wanted: interface.is_wanted,
            mode: interface.link.as_ref().map(|it| it.1),
            sockets: interface.link.as_ref().and_then(|_| interface.queues.mode()),
            queues_lacking: interface.queues.lacking(),
            program: interface.program.clone(),
        });
        PublishedPrograms { interfaces: interfaces.collect(), retired: self.retired }
    }
}

impl Interface {
    fn new(program: Arc<OffloadProgram>, queues: Queues) -> Self {
        Self { program, link: None, queues, is_wanted: true, problem: None, retry_at_s: 0 }
    }

    /// Attaches the program, unless it is attached in one of the modes, or an attempt has just
    /// failed.
    fn keep_attached(&mut self, name: &str, inputs: &XdpInputs) {
        if let Some((link, mode)) = &self.link {
            let is_there = link.is_attached().unwrap_or(false);
            if is_there && inputs.options.mode.is_none_or(|it| it == *mode) {
                return;
            }
            self.link = None;
            if !is_there {
                warn!(target: OPERATOR, interface = name, "XDP program gone with its interface");
            }
        }
        if inputs.elapsed_s < self.retry_at_s {
            return;
        }
        match self.attach(name, inputs.options.mode) {
            Ok(link) => {
                let mode = link.1.label();
                info!(target: OPERATOR, interface = name, mode, "XDP program attached");
                (self.link, self.problem) = (Some(link), None);
            }
            Err(error) => {
                self.retry_at_s = inputs.elapsed_s + RETRY_S;
                log_once(&mut self.problem, Some(error));
            }
        }
    }

    /// Attaches the program in this mode, or in the best that works.
    fn attach(
        &self,
        name: &str,
        mode: Option<AttachMode>,
    ) -> Result<(XdpLink, AttachMode), XdpError> {
        let failed = |error| XdpError::Attach { interface: name.to_owned(), error };
        let index = index_of(name).map_err(failed)?;
        let mut refused = None;
        for mode in mode.map_or_else(|| modes_of(name), |it| vec![it]) {
            match self.program.attach(index, mode) {
                Ok(link) => {
                    if let Some(error) = refused {
                        let remedy = "none is needed, but the gain is small: see docs/xdp.md";
                        warn!(
                            target: OPERATOR,
                            interface = name, %error, remedy,
                            "XDP not native: the driver cannot run programs"
                        );
                    }
                    return Ok((link, mode));
                }
                // No other mode works beside another program.
                Err(error) if is_busy(&error) => {
                    let other = AttachedXdp::of(index).ok().flatten();
                    let (interface, program) = (name.to_owned(), other.map(|it| it.program));
                    return Err(XdpError::Busy { interface, program });
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        Err(failed(refused.unwrap_or_else(|| std::io::ErrorKind::Unsupported.into())))
    }
}

/// The modes in which a program may be attached to an interface, the best first. What a program in
/// veth's driver sends is lost unless the other end has a program as well, so nothing is gained by
/// the attempt.
fn modes_of(interface: &str) -> Vec<AttachMode> {
    let driver = Ethtool::open().and_then(|it| it.driver(interface));
    match driver.as_deref() {
        Ok("veth") => vec![AttachMode::Generic],
        _ => vec![AttachMode::Native, AttachMode::Generic],
    }
}

/// Logs a problem unless it was the last one as well.
pub(super) fn log_once(known: &mut Option<String>, problem: Option<XdpError>) {
    let text = problem.as_ref().map(ToString::to_string);
    if let Some(error) = problem.filter(|_| *known != text) {
        let remedy = error.remedy();
        match error {
            XdpError::Queue { .. } => {
                warn!(target: OPERATOR, %error, remedy, "AF_XDP not in use for some queues");
            }
            _ => warn!(target: OPERATOR, %error, remedy, "XDP not in use, served over sockets"),
        }
    }
    *known = text;
}
