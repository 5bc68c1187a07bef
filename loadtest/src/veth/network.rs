//! Two network namespaces and a veth pair between them: the server's side and the generator's.
//!
//! ```text
//!   generator ─▶ c… ═══════════════════ s… ─▶ tracker
//!   sink      ◀─ 198.18.0.2    198.18.0.1     everything else is behind the gateway 198.18.0.2
//! ```
//!
//! Both namespaces have no name: they exist as long as this process or one that it started in them,
//! and the pair goes with them, however the process ends. Each interface receives by a thread of
//! the kernel's own (threaded NAPI), so that its CPU time can be read and its CPU chosen.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns, unshare};
use nix::unistd::Pid;
use skep::sys::affinity::set_slice;
use skep::sys::ethtool::Ethtool;
use skep::sys::interfaces::index_of;

use super::VethError;
use super::cpu::napi_threads;
use super::weights::{RECEIVER_SLICE_NS, SINK_NICE, receiver_nice};

/// The tracker's address.
pub(crate) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The router behind which all clients are, as the server's namespace has it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Hardware address of the server's side.
pub(crate) const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Hardware address of the generator's side.
pub(crate) const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// How long responses are collected on the generator's side before it looks at them, as a network
/// card does: each look is a wakeup that would otherwise be charged to the sender.
const MODERATION_NS: u32 = 50_000;
/// After so many looks at nothing the next response wakes the generator's side again: 50 ms, far
/// more than between two bursts. No response of a load wakes it thus, at a set rate as little as at
/// saturation: the sender would pay for that, 5 µs a burst, as no sender pays for another host.
const EMPTY_LOOKS: u32 = 1000;

/// A network namespace.
#[derive(Debug)]
struct Namespace(File);

impl Namespace {
    fn new() -> Result<Self, VethError> {
        let make = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
        };
        // The thread alone is in the new namespace.
        let made = std::thread::scope(|scope| scope.spawn(make).join());
        let made = made.unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
        made.map(Self).map_err(VethError::Namespace)
    }

    /// Calls a function in the namespace. Sockets and processes that it starts stay there.
    fn within<T: Send>(
        &self,
        call: impl FnOnce() -> Result<T, VethError> + Send,
    ) -> Result<T, VethError> {
        let enter = || {
            setns(&self.0, CloneFlags::CLONE_NEWNET)
                .map_err(|error| VethError::Namespace(error.into()))?;
            call()
        };
        let done = std::thread::scope(|scope| scope.spawn(enter).join());
        done.unwrap_or_else(|_| Err(VethError::Namespace(io::Error::other("a thread panicked"))))
    }
}

/// The two namespaces with their pair.
#[derive(Debug)]
pub(crate) struct Network {
    client: Namespace,
    server: Namespace,
    client_interface: String,
    server_interface: String,
}

impl Network {
    /// Makes it.
    ///
    /// # Errors
    /// One sentence with cause and remedy, e.g. without root's capabilities.
    pub(crate) fn new() -> Result<Self, VethError> {
        let (client, server) = (Namespace::new()?, Namespace::new()?);
        // The kernel's threads are named after the interfaces, and seen from the whole host.
        let own = std::process::id();
        let network = Self {
            client,
            server,
            client_interface: format!("c{own}"),
            server_interface: format!("s{own}"),
        };
        network.make_pair()?;
        Ok(network)
    }

    /// The server's interface.
    pub(crate) fn server_interface(&self) -> &str {
        &self.server_interface
    }

    /// Calls a function in the server's namespace.
    pub(crate) fn at_server<T: Send>(
        &self,
        call: impl FnOnce() -> Result<T, VethError> + Send,
    ) -> Result<T, VethError> {
        self.server.within(call)
    }

    /// Calls a function in the generator's namespace, with the index of its interface.
    pub(crate) fn at_client<T: Send>(
        &self,
        call: impl FnOnce(u32) -> Result<T, VethError> + Send,
    ) -> Result<T, VethError> {
        self.client.within(|| call(index_of(&self.client_interface).map_err(VethError::Interface)?))
    }

    fn make_pair(&self) -> Result<(), VethError> {
        let (client, server) = (&self.client_interface, &self.server_interface);
        let peer = format!("/proc/{}/fd/{}", std::process::id(), self.server.0.as_raw_fd());
        self.client.within(|| {
            without_ipv6()?;
            ip(&format!(
                "link add {client} address {} type veth peer name {server} address {} netns {peer}",
                mac(CLIENT_MAC),
                mac(SERVER_MAC)
            ))?;
            ip("link set lo up")?;
            ip(&format!("link set {client} up"))
        })?;
        self.server.within(|| {
            without_ipv6()?;
            ip("link set lo up")?;
            ip(&format!("addr add {SERVER}/30 dev {server}"))?;
            ip(&format!("link set {server} up"))?;
            // Of an interface that is up: only then the other side takes frames for it.
            let merged = Ethtool::open().and_then(|it| it.set_gro(server, true));
            merged.map_err(VethError::Interface)?;
            let mac = mac(CLIENT_MAC);
            ip(&format!("neigh add {GATEWAY} lladdr {mac} dev {server} nud permanent"))?;
            ip(&format!("route add default via {GATEWAY}"))
        })?;
        self.client.within(|| {
            let moderated =
                [("napi_defer_hard_irqs", EMPTY_LOOKS), ("gro_flush_timeout", MODERATION_NS)];
            set_files(client, &moderated)
        })
    }

    /// Has both sides receive by threads of the kernel, each on a CPU, with some weight. The
    /// client's side receives by NAPI only while a program is attached to it: this is for each time
    /// it was.
    ///
    /// # Errors
    /// If the kernel cannot do that, or the CPU cannot be used.
    pub(crate) fn receive_on(&self, [server, client]: [usize; 2]) -> Result<(), VethError> {
        for (side, interface, cpu, nice) in [
            (&self.server, &self.server_interface, server, receiver_nice()),
            (&self.client, &self.client_interface, client, SINK_NICE),
        ] {
            side.within(|| set_files(interface, &[("threaded", 1)]))?;
            let threads = napi_threads(interface);
            if threads.is_empty() {
                return Err(VethError::Napi(interface.clone()));
            }
            let mut cpus = CpuSet::new();
            cpus.set(cpu).map_err(|error| VethError::Interface(error.into()))?;
            for thread in threads {
                set_slice(thread, nice, RECEIVER_SLICE_NS).map_err(VethError::Cpu)?;
                let thread = Pid::from_raw(thread.cast_signed());
                let pinned = sched_setaffinity(thread, &cpus);
                pinned.map_err(|error| VethError::Interface(error.into()))?;
            }
        }
        Ok(())
    }
}

/// No frames but those that are measured: no searches for routers and neighbours.
fn without_ipv6() -> Result<(), VethError> {
    for which in ["all", "default"] {
        match fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1") {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done.map_err(VethError::Interface)?,
        }
    }
    Ok(())
}

/// Writes settings of an interface of the calling thread's namespace, which only a sysfs mounted in
/// that namespace shows.
fn set_files(interface: &str, files: &[(&str, u32)]) -> Result<(), VethError> {
    let write = || -> io::Result<()> {
        // Of this thread alone: it ends with the call, and the mount with it.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let none = None::<&str>;
        mount(Some("none"), "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
        files.iter().try_for_each(|(file, value)| {
            fs::write(format!("/sys/class/net/{interface}/{file}"), value.to_string())
        })
    };
    write().map_err(VethError::Interface)
}

/// Runs a command of iproute2 in the calling thread's namespace.
fn ip(command: &str) -> Result<(), VethError> {
    let output = Command::new("ip").args(command.split(' ')).output();
    let output = output.map_err(VethError::Iproute)?;
    let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    match output.status.success() {
        true => Ok(()),
        false => Err(VethError::Command { command: command.to_owned(), words }),
    }
}

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}
