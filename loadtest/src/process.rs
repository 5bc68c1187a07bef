//! The tracker's process: starts it on CPUs of its own, finds one that runs already, and reads its
//! use of resources from /proc, with nanosecond resolution.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{
    Announcement, Response, decode, encode_announce, encode_connect,
};
use skep::sys::affinity::pin;
use skep::sys::clock::Clock;
use skep::types::{Event, Family, InfoHash, PeerId};

use crate::interrupt::{self, TooEarlyError};
use crate::numbers::NS_PER_S;
use crate::plan::Protocol;

/// Resources that a process has used so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    /// CPU time of all its threads, including the kernel's work for them.
    pub(crate) cpu_ns: u64,
    /// Time in which its threads were runnable, but another program had the CPU.
    pub(crate) wait_ns: u64,
    /// Resident memory now, in bytes.
    pub(crate) rss_bytes: u64,
    /// Highest resident memory, in bytes.
    pub(crate) rss_peak_bytes: u64,
}

/// Reads the resources that a process has used; `None` if it has ended or may not be inspected.
pub(crate) fn usage(pid: u32) -> Option<Usage> {
    let (mut cpu_ns, mut wait_ns) = (0, 0);
    for task in fs::read_dir(format!("/proc/{pid}/task")).ok()?.flatten() {
        // The time of a thread that ends meanwhile is lost.
        let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let mut fields = text.split_whitespace().map(|it| it.parse::<u64>().unwrap_or(0));
        cpu_ns += fields.next().unwrap_or(0);
        wait_ns += fields.next().unwrap_or(0);
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let bytes = |name: &str| {
        let line = status.lines().find_map(|it| it.strip_prefix(name))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|it| it << 10)
    };
    let rss_bytes = bytes("VmRSS:")?;
    let rss_peak_bytes = bytes("VmHWM:").unwrap_or(rss_bytes);
    Some(Usage { cpu_ns, wait_ns, rss_bytes, rss_peak_bytes })
}

/// Number of open descriptors of a process; `None` if it has ended or may not be inspected.
pub(crate) fn descriptors(pid: u32) -> Option<u64> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().count() as u64)
}

/// The process that has bound a local address, if it can be found.
pub(crate) fn listening_on(address: SocketAddr, protocol: Protocol) -> Option<u32> {
    // A wildcard IPv6 socket serves IPv4 as well.
    let mut names: &[&str] = match protocol {
        Protocol::Udp => &["/proc/net/udp", "/proc/net/udp6"],
        Protocol::Http | Protocol::Ws => &["/proc/net/tcp", "/proc/net/tcp6"],
    };
    if address.is_ipv6() {
        names = &names[1..];
    }
    let tables = names.iter().filter_map(|it| fs::read_to_string(it).ok());
    let inodes: Vec<String> =
        tables.filter_map(|table| bound_inode(&table, address.port(), protocol)).collect();
    inodes.iter().find_map(|it| owner(it))
}

/// The inode of the socket that has bound a port, from one of the kernel's tables.
fn bound_inode(table: &str, port: u16, protocol: Protocol) -> Option<String> {
    const LISTEN: &str = "0A";
    let port = format!(":{port:04X}");
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        // A connected socket belongs to a client.
        let free = remote.ends_with(":0000") && (protocol == Protocol::Udp || state == LISTEN);
        (local.ends_with(&port) && free).then(|| fields.nth(5).map(str::to_owned)).flatten()
    })
}

/// The process that holds a socket.
fn owner(inode: &str) -> Option<u32> {
    let socket = PathBuf::from(format!("socket:[{inode}]"));
    let pids = fs::read_dir("/proc").ok()?.flatten();
    pids.filter_map(|it| it.file_name().to_str()?.parse::<u32>().ok()).find(|pid| {
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        descriptors.filter_map(|it| fs::read_link(it.path()).ok()).any(|it| it == socket)
    })
}

/// A port of an address that is free for both UDP and TCP at the moment.
///
/// # Errors
/// Errors of the system calls, e.g. if the address is not one of the host.
pub(crate) fn free_port(ip: IpAddr) -> io::Result<u16> {
    loop {
        let port = UdpSocket::bind((ip, 0))?.local_addr()?.port();
        if TcpListener::bind((ip, port)).is_ok() {
            return Ok(port);
        }
    }
}

/// Why a process does not serve.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServerError {
    /// The command of this tracker names no program.
    #[error("the command of {0} is empty")]
    Empty(String),
    /// The program cannot be started.
    #[error("cannot start {program} ({name}): {error}")]
    Spawn {
        /// Its path.
        program: String,
        /// Its name in tables.
        name: String,
        /// What the kernel returned.
        error: io::Error,
    },
    /// It ended first.
    #[error("the tracker ended early ({status}): {words}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// Its last output.
        words: String,
    },
    /// It takes too long.
    #[error("the tracker does not serve after {} s: {words}", READY_NS_MAX / NS_PER_S)]
    Late {
        /// Its last output.
        words: String,
    },
    /// A signal came first.
    #[error(transparent)]
    TooEarly(#[from] TooEarlyError),
}

/// A process that this program has started. It is killed when this value is dropped.
pub(crate) struct Server {
    /// Shared with the thread that a second signal wakes.
    child: Arc<Mutex<Child>>,
    pid: u32,
    output: PathBuf,
}

impl Server {
    /// Starts a command on one CPU (`None`: all of this process), with its output in a file.
    ///
    /// # Errors
    /// One sentence that names what could not be started.
    pub(crate) fn start(
        words: &[String],
        cpu: Option<usize>,
        folder: &Path,
        name: &str,
    ) -> Result<Self, ServerError> {
        let [program, arguments @ ..] = words else {
            return Err(ServerError::Empty(name.to_owned()));
        };
        let output = folder.join(format!("{}.log", name.replace(['/', ' '], "_")));
        let spawn = || -> io::Result<Child> {
            let log = File::create(&output)?;
            let mut command = Command::new(program);
            command.args(arguments).current_dir(folder).stdin(Stdio::null());
            // skep's state directory is here, not in the home of the user who runs the measurement.
            command.env("SKEP__SERVER__STATE_DIR", folder);
            command.stdout(log.try_clone()?).stderr(log);
            if interrupt::is_watched() {
                // A terminal sends Ctrl-C to the whole group: the tracker must outlast the report.
                command.process_group(0);
            }
            // Affinity is inherited, so a temporary thread sets it and starts the command.
            std::thread::scope(|scope| {
                let starter = scope.spawn(|| {
                    cpu.map_or(Ok(()), pin)?;
                    command.spawn()
                });
                starter.join().unwrap_or_else(|_| Err(io::Error::other("the starter failed")))
            })
        };
        let (of, name) = (program.clone(), name.to_owned());
        let child = spawn().map_err(|error| ServerError::Spawn { program: of, name, error })?;
        let (pid, child) = (child.id(), Arc::new(Mutex::new(child)));
        interrupt::kill_at_end(&child);
        Ok(Self { child, pid, output })
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last lines of its output, for error texts.
    pub(crate) fn last_words(&self) -> String {
        let mut text = String::new();
        // A log that cannot be read only makes the error text shorter.
        let _ = File::open(&self.output).and_then(|mut it| it.read_to_string(&mut text));
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Waits for the ready line of skep or of the limit responder.
    ///
    /// # Errors
    /// If the process ends first or takes too long, with its last output.
    pub(crate) fn ready_line(&mut self, clock: &Clock) -> Result<String, ServerError> {
        let give_up_ns = clock.elapsed_ns_at(clock.now()) + READY_NS_MAX;
        loop {
            let text = fs::read_to_string(&self.output).unwrap_or_default();
            let complete = text.lines().find(|it| it.starts_with("ready "));
            if let Some(line) = complete.filter(|_| text.ends_with('\n')) {
                return Ok(line.to_owned());
            }
            self.still_running(clock, give_up_ns)?;
            std::thread::sleep(POLL);
        }
    }

    /// Waits until a condition holds, e.g. [`answers_connect`], which is called repeatedly.
    ///
    /// # Errors
    /// As [`Self::ready_line`].
    pub(crate) fn wait_for(
        &mut self,
        clock: &Clock,
        holds: impl Fn() -> bool,
    ) -> Result<(), ServerError> {
        let give_up_ns = clock.elapsed_ns_at(clock.now()) + READY_NS_MAX;
        while !holds() {
            self.still_running(clock, give_up_ns)?;
        }
        Ok(())
    }

    fn still_running(&mut self, clock: &Clock, give_up_ns: u64) -> Result<(), ServerError> {
        let ended = self.child().try_wait();
        if let Ok(Some(status)) = ended {
            return Err(ServerError::Ended { status, words: self.last_words() });
        }
        interrupt::check("starting the tracker")?;
        if clock.elapsed_ns_at(clock.now()) > give_up_ns {
            return Err(ServerError::Late { words: self.last_words() });
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let mut child = self.child();
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// How long a tracker may take to start.
const READY_NS_MAX: u64 = 20_000_000_000;

/// How often to check whether it has started.
const POLL: Duration = Duration::from_millis(20);

/// Whether a connect request gets a response at once.
pub(crate) fn answers_connect(address: SocketAddr) -> bool {
    let connected = Asking::open(address).and_then(|mut it| it.connect());
    // Refused at once, most likely: no process listens yet.
    connected.inspect_err(|_| std::thread::sleep(POLL)).is_ok()
}

/// Whether connections are accepted.
pub(crate) fn takes_connections(address: SocketAddr) -> bool {
    TcpStream::connect_timeout(&address, Duration::from_secs(1))
        .inspect_err(|_| std::thread::sleep(POLL))
        .is_ok()
}

/// Whether an announce for a torrent is accepted: a tracker with an allow list may need time to
/// read it. The peer that announces leaves again.
pub(crate) fn accepts(address: SocketAddr, info_hash: InfoHash) -> bool {
    let announce = || -> io::Result<()> {
        let mut asking = Asking::open(address)?;
        let id = asking.connect()?;
        asking.announce(id, info_hash, Event::Started)?;
        asking.announce(id, info_hash, Event::Stopped)
    };
    announce().inspect_err(|_| std::thread::sleep(POLL)).is_ok()
}

/// A client that sends one request at a time.
struct Asking {
    socket: UdpSocket,
    family: Family,
    datagram: [u8; 2048],
}

impl Asking {
    fn open(address: SocketAddr) -> io::Result<Self> {
        let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(POLL))?;
        Ok(Self { socket, family: Family::of(address.ip()), datagram: [0; 2048] })
    }

    /// Sends the request in the buffer and reads its response.
    fn ask(&mut self, bytes: usize) -> io::Result<Response<'_>> {
        let asked = self.datagram;
        self.socket.send(&asked[..bytes])?;
        let received = self.socket.recv(&mut self.datagram)?;
        match decode(&self.datagram[..received], self.family) {
            Ok((TransactionId(id), response)) if id == asked[12..16] => Ok(response),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn connect(&mut self) -> io::Result<u64> {
        let bytes = encode_connect(TransactionId(*b"conn"), &mut self.datagram);
        match self.ask(bytes)? {
            Response::Connected(id) => Ok(id),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn announce(&mut self, id: u64, info_hash: InfoHash, event: Event) -> io::Result<()> {
        let announcement = Announcement {
            info_hash,
            peer_id: PeerId(*b"-SL0100-is-it-ready?"),
            downloaded: 0,
            left: 1,
            uploaded: 0,
            event,
            numwant: 1,
            port: 6881,
            key: [0; 4],
        };
        let transaction_id = TransactionId(*b"anno");
        let bytes = encode_announce(id, transaction_id, &announcement, &mut self.datagram);
        match self.ask(bytes)? {
            Response::Announced(..) => Ok(()),
            _ => Err(io::ErrorKind::PermissionDenied.into()),
        }
    }
}

/// A folder that is removed when this value is dropped. All users may read it: trackers drop
/// privileges.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new folder in the system's temporary folder.
    ///
    /// # Errors
    /// Errors of the system call.
    pub(crate) fn new() -> io::Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        for attempt in 0..1000 {
            let name = format!("loadtest-{}-{attempt}", std::process::id());
            let path = std::env::temp_dir().join(name);
            match fs::create_dir(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(()) => {
                    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
                    return Ok(Self(path));
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// The path of the folder.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A folder that cannot be removed is left to the system's own cleanup.
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_usage_grows() {
        let pid = std::process::id();
        let before = usage(pid).unwrap();
        assert!(before.rss_bytes > 0 && before.rss_peak_bytes >= before.rss_bytes);
        while usage(pid).unwrap().cpu_ns == before.cpu_ns {}
        assert_eq!(usage(u32::MAX), None);
    }

    #[test]
    fn the_process_behind_a_port_is_found() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        assert_eq!(listening_on(address, Protocol::Udp), Some(std::process::id()));
        assert_eq!(listening_on(address, Protocol::Http), None);
        drop(socket);
        assert_eq!(listening_on(address, Protocol::Udp), None);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(listening_on(address, Protocol::Ws), Some(std::process::id()));
    }

    #[test]
    fn a_command_that_ends_early_leaves_its_last_words() {
        let scratch = Scratch::new().unwrap();
        let words = ["sh", "-c", "echo no such thing; exit 3"].map(str::to_owned);
        let mut server = Server::start(&words, None, scratch.path(), "x").unwrap();
        let error = server.ready_line(&Clock::start()).unwrap_err().to_string();
        assert!(error.contains("no such thing") && error.contains('3'), "{error}");
        let missing = ["/nonexistent/tracker".to_owned()];
        assert!(Server::start(&missing, None, scratch.path(), "x").is_err());
    }
}
