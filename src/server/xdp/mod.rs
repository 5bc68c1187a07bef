//! XDP in a running tracker: which interfaces have the program, what the program follows, which
//! queues have AF_XDP sockets, and what became of it.
//!
//! ```text
//! settings, access list ─┐                       ┌─▶ maps: keys, limits, networks, addresses
//! worst heavy hitters ───┼─▶ XdpControl::follow ─┼─▶ links: attached, detached, attached again
//! addresses of the host ─┘                       └─▶ AF_XDP sockets: one per queue, to a worker
//! ```
//!
//! The sockets serve all the time, so whatever fails here costs speed and nothing else: one warning
//! has the cause, and the attempt is repeated. Programs are loaded before privileges are dropped.
//! To attach a program that is loaded, and to set its maps, needs none (Linux 5.19).

mod error;
pub(crate) mod interfaces;
mod maps;
mod programs;
mod queues;

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ipnet::IpNet;
use rustix::time::{ClockId, clock_gettime};

use crate::access::lists::AccessList;
use crate::config::Xdp;
use crate::sys::clock::Clock;
use crate::sys::xdp::kernel::AttachMode;
use crate::sys::xdp::offload::{OffloadCounts, OffloadKeys};
use crate::sys::xdp::socket::XskMode;
use crate::worker::datagram::DatagramBackend;
use crate::worker::xdp::XdpPorts;
use programs::{Programs, PublishedProgram, PublishedPrograms};

pub(crate) use queues::{QUEUES_MAX, RINGS_BYTES};

/// The part of the settings that the program follows.
#[derive(Clone)]
pub(crate) struct XdpOptions {
    /// Whether the program is used, and AF_XDP sockets with it.
    pub(crate) xdp: Xdp,
    /// The interfaces that get the program; none: see [`interfaces::chosen`].
    pub(crate) interfaces: Vec<String>,
    /// Where the program is to run; `None`: in the driver, or behind it if that fails.
    pub(crate) mode: Option<AttachMode>,
    /// Whether responses follow the kernel's routes.
    pub(crate) asks_routes: bool,
    /// Keys of connection ids.
    pub(crate) keys: OffloadKeys,
    /// Responses per second to an unverified address, and at once; `None`: no limit.
    pub(crate) limit: Option<(u32, u32)>,
    /// Networks under no limit.
    pub(crate) exempt: Vec<IpNet>,
}

/// What the program follows, at one moment.
pub(crate) struct XdpInputs {
    pub(crate) options: Arc<XdpOptions>,
    /// The networks that are denied.
    pub(crate) denied: Arc<AccessList>,
    /// The worst heavy hitters.
    offenders: Vec<IpAddr>,
    /// Seconds since the start.
    elapsed_s: u64,
}

/// The programs in use, and what they are to follow.
pub(crate) struct XdpControl {
    clock: Clock,
    /// For each datagram worker, its AF_XDP sockets.
    ports: Mutex<Vec<Arc<XdpPorts>>>,
    programs: Mutex<Programs>,
    offenders: Mutex<Vec<IpAddr>>,
    published: Mutex<PublishedPrograms>,
}

/// What became of the programs, for metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct XdpReading {
    /// The interfaces that are to have the program, or had it.
    pub(crate) interfaces: Vec<InterfaceReading>,
    /// The counts of all programs since the start.
    pub(crate) total: OffloadCounts,
}

/// What became of the program of one interface.
#[derive(Clone, Debug)]
pub(crate) struct InterfaceReading {
    pub(crate) name: String,
    /// Whether the interface is to have the program.
    pub(crate) is_wanted: bool,
    /// How the program is attached, if it is.
    pub(crate) mode: Option<AttachMode>,
    /// How frames reach AF_XDP sockets, if there are any.
    pub(crate) sockets: Option<XskMode>,
    /// Receive queues that are to have such a socket and have none.
    pub(crate) queues_lacking: u64,
    pub(crate) counts: OffloadCounts,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl XdpControl {
    /// Uses no program yet.
    pub(crate) fn new(clock: Clock) -> Self {
        let time = clock_gettime(ClockId::Monotonic);
        let monotonic_ns = u64::try_from(time.tv_sec * 1_000_000_000 + time.tv_nsec).unwrap_or(0);
        Self {
            programs: Mutex::new(Programs::new(clock.now().ns().saturating_sub(monotonic_ns))),
            clock,
            ports: Mutex::default(),
            offenders: Mutex::default(),
            published: Mutex::default(),
        }
    }

    /// Loads the programs, if they are to be used, for so many workers on this backend with sockets
    /// that are bound to these addresses. Privileges are needed here and not later.
    pub(crate) fn prepare(
        &self,
        (workers, backend): (usize, DatagramBackend),
        listen: &[SocketAddr],
        options: Arc<XdpOptions>,
        denied: Arc<AccessList>,
    ) {
        let ports: Vec<_> = (0..workers).map(|_| Arc::default()).collect();
        lock(&self.ports).clone_from(&ports);
        lock(&self.programs).set_listen(listen, ports, backend == DatagramBackend::Uring);
        self.follow(options, denied);
    }

    /// The AF_XDP sockets of a worker.
    pub(crate) fn ports(&self, worker: usize) -> Arc<XdpPorts> {
        lock(&self.ports).get(worker).cloned().unwrap_or_default()
    }

    /// Attaches the programs, and keeps them attached from now on: this process serves.
    pub(crate) fn begin(&self, options: Arc<XdpOptions>, denied: Arc<AccessList>) {
        lock(&self.programs).set_serving(true);
        self.follow(options, denied);
    }

    /// Detaches the programs: another process is about to serve.
    pub(crate) fn end(&self) {
        self.change(|programs| programs.set_serving(false));
    }

    /// Detaches the programs for good: this process is about to end.
    pub(crate) fn stop(&self) {
        self.change(Programs::stop);
    }

    /// Names the worst heavy hitters, whose datagrams are dropped from the next
    /// [`Self::follow`] on.
    pub(crate) fn set_offenders(&self, offenders: Vec<IpAddr>) {
        *lock(&self.offenders) = offenders;
    }

    /// Brings the programs in line with everything that they follow. Blocks: a driver may take a
    /// while to attach a program.
    pub(crate) fn follow(&self, options: Arc<XdpOptions>, denied: Arc<AccessList>) {
        let offenders = lock(&self.offenders).clone();
        let elapsed_s = self.clock.elapsed_ns_at(self.clock.now()) / 1_000_000_000;
        let inputs = XdpInputs { options, denied, offenders, elapsed_s };
        self.change(|programs| programs.follow(&inputs));
    }

    fn change(&self, change: impl FnOnce(&mut Programs)) {
        let mut programs = lock(&self.programs);
        change(&mut programs);
        *lock(&self.published) = programs.published();
    }

    /// The interfaces that have the program: name, what the program does, where it runs.
    pub(crate) fn attached(&self) -> Vec<[String; 3]> {
        let all = lock(&self.published).interfaces.clone();
        let describe = |it: PublishedProgram| {
            let what = if it.sockets.is_some() { "full" } else { "offload" };
            Some([it.name, what.to_owned(), it.mode?.label().to_owned()])
        };
        all.into_iter().filter_map(describe).collect()
    }

    /// Reads all counts.
    pub(crate) fn read(&self) -> XdpReading {
        let PublishedPrograms { interfaces, retired: mut total } = lock(&self.published).clone();
        let interfaces = interfaces.into_iter().map(|published| {
            let counts = published.program.counts().unwrap_or_default();
            total.add(&counts);
            let PublishedProgram { name, is_wanted, mode, sockets, queues_lacking, .. } = published;
            InterfaceReading { name, is_wanted, mode, sockets, queues_lacking, counts }
        });
        XdpReading { interfaces: interfaces.collect(), total }
    }
}
