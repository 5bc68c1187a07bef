//! Results of system calls, and the running tracker's metrics.
//!
//! Plain values, collected once, so that every check can be tested. Sockets are bound to ports that
//! the kernel chooses, and closed again. No file is created.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Request;
use rlimit::Resource;
use rustix::fs::statvfs;

use super::host::Host;
use super::running::{self, OtherTrackerError};
use crate::cli::admin_client::{AdminRequestError, RequestLimits, exchange, reachable};
use crate::config::{Config, Xdp};
use crate::server::{self, AddressTrial, KEY_VARIABLE, UnavailableAddress};
use crate::snapshot::{CURRENT, PREVIOUS, read_header};
use crate::sys::clock::{Clock, ClockWatch, Synchronisation, synchronisation};
use crate::sys::ethtool::{Channels, Ethtool};
use crate::sys::filter::{self, SOURCES_MAX};
use crate::sys::interfaces::{HostInterfaces, index_of};
use crate::sys::socket::{BoundUdp, UdpOptions, bind_udp};
use crate::sys::xdp::attached::AttachedXdp;
use crate::sys::xdp::offload::Offload;
use crate::sys::xdp::socket::XskMap;
use crate::sys::{affinity, memory, probe};

/// Limits of the request for metrics.
const METRICS_LIMITS: RequestLimits =
    RequestLimits { step: Duration::from_secs(2), body_bytes: 4 << 20 };

/// Results of system calls, and the running tracker's metrics.
#[derive(Clone, Debug)]
pub struct HostFacts {
    /// Whether io_uring works, tested in the way that workers use it.
    pub io_uring: Result<(), Denial>,
    /// The receive buffer that the kernel granted, in bytes.
    pub receive_buffer: Result<usize, String>,
    /// Whether a socket accepts a filter with the largest number of sources.
    pub deny_filter: Result<(), String>,
    /// Listeners' addresses that cannot be bound, at any port, and why.
    pub unbindable: Vec<(SocketAddr, String)>,
    /// Addresses, with their ports, that cannot be bound now.
    pub unavailable: Vec<UnavailableAddress>,
    /// The hard limit on open files: skep raises the soft limit to it.
    pub open_files: Result<u64, String>,
    /// The soft limit on locked memory, in bytes.
    pub locked_memory: Result<u64, String>,
    /// Number of cores that this process may use.
    pub cores: Result<usize, String>,
    /// Bytes of memory that this process may use, as for `memory.max_memory = "auto"`.
    pub memory: Result<u64, String>,
    /// The admin listener at which the running tracker's metrics are requested.
    pub admin: SocketAddr,
    /// The metrics of the running tracker of these settings, or why there are none.
    pub metrics: Result<String, String>,
    /// Why the skep that responds is not that tracker, if one responds.
    pub other_tracker: Option<OtherTrackerError>,
    /// The state directory, or why there is none.
    pub state: Result<StateHome, String>,
    /// Whether this process runs in Kubernetes.
    pub in_kubernetes: bool,
    /// Whether the environment has a connection-id key, which several nodes can share.
    pub has_key_variable: bool,
    /// Addresses and default routes of the network interfaces.
    pub host_interfaces: Result<HostInterfaces, String>,
    /// The network interfaces, as far as XDP programs are concerned.
    pub interfaces: Vec<InterfaceFacts>,
    /// Whether the kernel takes the program of `udp.xdp`, which is not attached to anything; `None`
    /// if these settings do not want it.
    pub xdp_program: Option<Result<(), String>>,
    /// The system clock.
    pub clock: WallClock,
}

/// A network interface, as far as XDP programs are concerned. `None`: unknown.
#[derive(Clone, Debug, Default)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// Its driver, by the name that ethtool has for it.
    pub driver: Option<String>,
    /// Its pairs of queues.
    pub channels: Option<Channels>,
    /// Whether ports of UDP choose the queue, over IPv4 and IPv6.
    pub hashes_ports: Option<[bool; 2]>,
    /// Whether it merges frames (LRO).
    pub merges_frames: bool,
    /// The XDP program that it has.
    pub program: Option<AttachedXdp>,
}

/// The system clock during the checks.
#[derive(Clone, Debug)]
pub struct WallClock {
    /// The kernel's synchronisation status.
    pub synchronisation: Result<Synchronisation, String>,
    /// The time, in seconds since the Unix epoch.
    pub now_s: u64,
    /// Nanoseconds by which the clock was set forward meanwhile; negative: back.
    pub set_ns: i64,
}

/// Why io_uring does not work.
#[derive(Clone, Debug)]
pub struct Denial {
    /// The cause.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

/// The state directory.
#[derive(Clone, Debug)]
pub struct StateHome {
    /// The directory.
    pub path: PathBuf,
    /// Its permission bits, if it exists.
    pub mode: Option<u32>,
    /// Whether this user may write to it, or create it if it does not exist.
    pub writable: Result<(), String>,
    /// Bytes and inodes that are free for this user on its file system.
    pub free: Result<(u64, u64), String>,
    /// The existing snapshots by name, each with its time in seconds since the Unix epoch.
    pub snapshots: Vec<(&'static str, Result<u64, String>)>,
}

impl HostFacts {
    /// Collects the results on this host for a configuration.
    pub fn gather(config: &Config) -> Self {
        let watch = ClockWatch::start();
        let serving = server::serving_listener(config).map(|it| it.address);
        let admin = reachable(serving.unwrap_or(config.admin.listen));
        let state = server::state_directory(config);
        let metrics = metrics(admin);
        let (trial, compared) = compare(config, serving, state.as_deref().ok());
        let other_tracker = compared.err().filter(|_| metrics.is_ok());
        Self {
            io_uring: probe::probe().map_err(|error| Denial::of(&error.to_string())),
            receive_buffer: bind(config).map(|it| it.receive_buffer_bytes()).map_err(text),
            deny_filter: bind(config).and_then(|it| fill_filter(&it)).map_err(text),
            unbindable: unbindable(config),
            unavailable: trial.unavailable,
            admin,
            open_files: Resource::NOFILE.get().map(|it| it.1).map_err(text),
            locked_memory: Resource::MEMLOCK.get().map(|it| it.0).map_err(text),
            cores: affinity::usable_cpus().map(|it| it.len()).map_err(text),
            memory: memory::usable_bytes().map_err(text),
            metrics: other_tracker.as_ref().map_or(metrics, |it| Err(text(it))),
            other_tracker,
            state: state.map(StateHome::inspect).map_err(text),
            in_kubernetes: std::env::var_os("KUBERNETES_SERVICE_HOST").is_some(),
            has_key_variable: std::env::var_os(KEY_VARIABLE).is_some(),
            host_interfaces: HostInterfaces::read().map_err(text),
            interfaces: InterfaceFacts::gather(),
            xdp_program: (config.udp.xdp != Xdp::Off).then(try_xdp_program),
            // Evaluated last, so that the clock is watched during all the calls before.
            clock: WallClock {
                synchronisation: synchronisation().map_err(text),
                now_s: Clock::start().now().seconds(),
                set_ns: watch.set_ns(),
            },
        }
    }
}

impl HostFacts {
    /// Fetches the tracker's metrics again, if there is one.
    pub(super) fn renew_metrics(&mut self) {
        if self.metrics.is_ok() {
            self.metrics = metrics(self.admin);
        }
    }
}

/// Tries the addresses, and compares the skep that responds with the settings. The tracker of these
/// settings may have its admin listener elsewhere, as a flag or the kernel has chosen; what a start
/// would bind is the settings' own.
fn compare(
    config: &Config,
    serving: Option<SocketAddr>,
    state: Option<&Path>,
) -> (AddressTrial, Result<(), OtherTrackerError>) {
    let mut tried = config.clone();
    tried.admin.listen = serving.unwrap_or(config.admin.listen);
    let trial = server::try_addresses(&tried);
    let compared = running::compare(&trial, state);
    let is_elsewhere = compared.is_err() && tried.admin.listen != config.admin.listen;
    let trial = if is_elsewhere { server::try_addresses(config) } else { trial };
    (trial, compared)
}

impl Denial {
    fn of(error: &str) -> Self {
        let (problem, remedy) = error.split_once("; remedy: ").unwrap_or((error, ""));
        Self { problem: problem.to_owned(), remedy: remedy.to_owned() }
    }
}

impl InterfaceFacts {
    /// Those of this process's network namespace; none if they cannot be listed.
    fn gather() -> Vec<Self> {
        let Ok(ethtool) = Ethtool::open() else { return Vec::new() };
        let names = Host::here().names("/sys/class/net").unwrap_or_default();
        names.into_iter().map(|name| Self::of(name, &ethtool)).collect()
    }

    fn of(name: String, ethtool: &Ethtool) -> Self {
        let index = index_of(&name).ok();
        Self {
            driver: ethtool.driver(&name).ok().filter(|it| !it.is_empty()),
            channels: ethtool.channels(&name).ok(),
            hashes_ports: ethtool.hashes_udp_ports(&name).ok(),
            merges_frames: ethtool.merges_frames(&name).unwrap_or(false),
            program: index.and_then(|it| AttachedXdp::of(it).ok().flatten()),
            name,
        }
    }
}

/// Has the kernel verify the program, as the start does. It ends with this call.
fn try_xdp_program() -> Result<(), String> {
    let loaded = || Offload::create()?.load(&XskMap::create(1)?);
    loaded().map(drop).map_err(text)
}

impl StateHome {
    /// Inspects a directory, which may not exist yet.
    pub fn inspect(path: PathBuf) -> Self {
        let mode = std::fs::metadata(&path).ok().map(|it| it.permissions().mode() & 0o7777);
        let there = path.ancestors().find(|it| it.exists()).unwrap_or_else(|| Path::new("/"));
        let free = statvfs(there).map(|it| (it.f_bavail.saturating_mul(it.f_frsize), it.f_favail));
        // Some file systems create inodes on demand, and report none as free.
        let free = free.map(|(bytes, files)| (bytes, if files == 0 { u64::MAX } else { files }));
        let writable = server::writable(&path);
        let dated = |name| Some((name, dated(&path.join(name))?));
        let snapshots = [CURRENT, PREVIOUS].into_iter().filter_map(dated).collect();
        Self { writable, free: free.map_err(text), mode, snapshots, path }
    }
}

/// The time of a snapshot, in seconds since the Unix epoch; `None` if there is no file.
fn dated(path: &Path) -> Option<Result<u64, String>> {
    match File::open(path) {
        Ok(mut file) => Some(read_header(&mut file).map(|it| it.at_s).map_err(text)),
        Err(error) if [ErrorKind::NotFound, ErrorKind::NotADirectory].contains(&error.kind()) => {
            None
        }
        Err(error) => Some(Err(text(error))),
    }
}

/// A socket with a worker's options, on loopback.
fn bind(config: &Config) -> io::Result<BoundUdp> {
    let bytes = usize::try_from(config.udp.receive_buffer.0).unwrap_or(usize::MAX);
    let options = UdpOptions { reuse_port: false, receive_buffer_bytes: bytes };
    bind_udp((Ipv4Addr::LOCALHOST, 0).into(), &options)
        .or_else(|_| bind_udp((Ipv6Addr::LOCALHOST, 0).into(), &options))
}

/// Attaches the largest possible filter to a socket.
fn fill_filter(socket: &BoundUdp) -> io::Result<()> {
    // Addresses for documentation (RFC 5737, RFC 3849), which no host has.
    let v4 = |it| Ipv4Addr::from_bits(Ipv4Addr::new(198, 51, 100, 0).to_bits() + it).into();
    let v6 = |it: u32| Ipv6Addr::from_bits(0x2001_0db8 << 96 | u128::from(it) << 64).into();
    let count = u32::try_from(SOURCES_MAX).unwrap_or(u32::MAX);
    let sources: Vec<_> = if socket.address().is_ipv4() {
        (0..count).map(v4).collect()
    } else {
        (0..count).map(v6).collect()
    };
    filter::deny(socket.socket(), socket.family(), &sources)
}

/// The listeners' addresses that cannot be bound at any port: the kernel chooses it.
fn unbindable(config: &Config) -> Vec<(SocketAddr, String)> {
    let options = UdpOptions { reuse_port: false, ..UdpOptions::default() };
    let mut addresses: Vec<SocketAddr> =
        [config.udp_listen(), config.http_listen(), config.tls_listen()].concat();
    addresses.push(config.admin.listen);
    addresses.sort_unstable();
    addresses.dedup();
    let refused = |it: SocketAddr| Some((it, text(bind_udp((it.ip(), 0).into(), &options).err()?)));
    addresses.into_iter().filter_map(refused).collect()
}

/// Fetches the tracker's metrics.
fn metrics(admin: SocketAddr) -> Result<String, String> {
    let stranger = || "the program that responds there is not skep".to_owned();
    let request = Request::get("/metrics");
    let response = exchange(&admin.to_string(), request, Vec::new(), METRICS_LIMITS);
    let response = response.map_err(|error| match error {
        AdminRequestError::NotHttp => stranger(),
        AdminRequestError::Connection(error) => text(error),
    })?;
    let body = std::str::from_utf8(response.body()).ok().filter(|body| body.contains("skep_"));
    body.filter(|_| response.status() == 200).map(str::to_owned).ok_or_else(stranger)
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
