//! Finds out which process has an address that cannot be bound: from the kernel's tables of sockets
//! (proc_net_tcp(5)) and the processes that hold them, as far as /proc shows them to this process.

use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::sys::descriptors;

/// The use that an address is bound for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundTransport {
    /// Datagrams.
    Udp,
    /// Listening for connections.
    Tcp,
}

/// The holder of an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressHolder {
    /// A process.
    Process {
        /// Its process id.
        id: u32,
        /// The name of its program, up to 15 bytes, as the kernel keeps it.
        program: String,
    },
    /// Some process of this user: it may not be inspected, runs in another container, or has just
    /// ended.
    User(u32),
    /// No socket in the tables.
    Nobody,
}

/// A file that a process has open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFile {
    /// Its folder, as the process sees it.
    pub folder: PathBuf,
    /// Its device and inode.
    pub identity: (u64, u64),
}

/// A line of one of the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SocketTableLine {
    address: SocketAddr,
    user: u32,
    inode: u64,
}

/// The state of a socket that listens (TCP_LISTEN).
const LISTENS: &str = "0A";

/// Finds what prevents `address` from being bound. Reads all of /proc, so it is only for a start
/// that failed, and for `skep doctor`.
#[must_use]
pub fn holder(transport: BoundTransport, address: SocketAddr) -> AddressHolder {
    let mut entries = in_the_way(transport, address);
    // The requested family comes first: a socket of the other family may not be in the way.
    entries.sort_by_key(|it| it.address.is_ipv4() != address.is_ipv4());
    let ranks = entries.iter().map(|it| it.inode).enumerate().map(|(rank, inode)| (inode, rank));
    let found = process_with(&ranks.collect());
    match (found, entries.first()) {
        (Some((id, program)), _) => AddressHolder::Process { id, program },
        (None, Some(line)) => AddressHolder::User(line.user),
        (None, None) => AddressHolder::Nobody,
    }
}

/// The users of the sockets that get connections to `address`; none if nobody listens there, or the
/// kernel's tables cannot be read.
#[must_use]
pub fn listening_users(address: SocketAddr) -> Vec<u32> {
    let mut entries = in_the_way(BoundTransport::Tcp, address);
    // The kernel prefers a socket of exactly this address to one of every address.
    if entries.iter().any(|it| it.address == address) {
        entries.retain(|it| it.address == address);
    }
    entries.iter().map(|it| it.user).collect()
}

/// The sockets that may prevent `address` from being bound.
fn in_the_way(transport: BoundTransport, address: SocketAddr) -> Vec<SocketTableLine> {
    let (name, state) = match transport {
        BoundTransport::Udp => ("udp", None),
        BoundTransport::Tcp => ("tcp", Some(LISTENS)),
    };
    let mut entries = Vec::new();
    for suffix in ["", "6"] {
        let table = fs::read_to_string(format!("/proc/net/{name}{suffix}")).unwrap_or_default();
        entries.extend(table.lines().skip(1).filter_map(|it| parse(it, state)));
    }
    entries.retain(|it| is_in_the_way(address, it.address));
    entries
}

/// Finds the process that listens on a Unix socket, as the kernel recorded it at the call to
/// listen.
#[must_use]
pub fn holder_at(path: &Path) -> AddressHolder {
    let Ok(stream) = UnixStream::connect(path) else { return AddressHolder::Nobody };
    let Ok(peer) = descriptors::peer(stream) else { return AddressHolder::Nobody };
    let process = peer.process.and_then(|id| Some((id, program_of(id)?)));
    process.map_or(AddressHolder::User(peer.user), |(id, program)| AddressHolder::Process {
        id,
        program,
    })
}

/// Finds a file with this name that a process has open, as far as /proc shows that to this process.
#[must_use]
pub fn open_file(id: u32, name: &str) -> Option<OpenFile> {
    let links = fs::read_dir(format!("/proc/{id}/fd")).ok()?;
    links.filter_map(|it| Some(it.ok()?.path())).find_map(|link| {
        let path = fs::read_link(&link).ok()?;
        let folder = path.parent()?.to_owned();
        let is_it = path.file_name().is_some_and(|it| it == name);
        // The link leads to the file itself, also out of another mount namespace.
        let identity = identity(&link).filter(|_| is_it)?;
        Some(OpenFile { folder, identity })
    })
}

/// The device and inode of a file.
#[must_use]
pub fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Reads a line of a table, if its socket is in `state`.
fn parse(line: &str, state: Option<&str>) -> Option<SocketTableLine> {
    let fields: Vec<_> = line.split_ascii_whitespace().collect();
    if state.is_some_and(|text| fields.get(3) != Some(&text)) {
        return None;
    }
    let (ip, port) = fields.get(1)?.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits: network byte order, printed as this host reads it.
    let words = ip.len() / 8;
    let word = |n: usize| u32::from_str_radix(ip.get(8 * n..8 * n + 8)?, 16).ok();
    let mut bytes = [0; 16];
    for n in 0..words.min(4) {
        bytes[4 * n..4 * n + 4].copy_from_slice(&word(n)?.to_ne_bytes());
    }
    let ip = match words {
        1 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        4 => IpAddr::V6(Ipv6Addr::from(bytes)),
        _ => return None,
    };
    let address = SocketAddr::new(ip, port);
    let (user, inode) = (fields.get(7)?.parse().ok()?, fields.get(9)?.parse().ok()?);
    Some(SocketTableLine { address, user, inode })
}

/// Whether a socket bound to `bound` may prevent one from being bound to `asked`. A socket on
/// `[::]` may include IPv4.
fn is_in_the_way(asked: SocketAddr, bound: SocketAddr) -> bool {
    let overlaps =
        |one: IpAddr, other: IpAddr| one == other || one.is_unspecified() || other.is_unspecified();
    asked.port() == bound.port()
        && match (asked.ip(), bound.ip()) {
            (IpAddr::V4(_), IpAddr::V6(address)) => {
                address.is_unspecified()
                    || address.to_ipv4_mapped().is_some_and(|it| overlaps(asked.ip(), it.into()))
            }
            (IpAddr::V6(_), IpAddr::V4(_)) => false,
            (one, other) => overlaps(one, other),
        }
}

/// The process that has a descriptor of one of these sockets, and its program; of several sockets,
/// the one with the lowest rank, and of several processes that have it, the one with the highest
/// id: the program that serves, not the service manager that started it. Each process is inspected
/// once, however many sockets there are.
fn process_with(ranks: &HashMap<u64, usize>) -> Option<(u32, String)> {
    let ids = fs::read_dir("/proc")
        .ok()?
        .filter_map(|it| it.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let mut best: Option<(usize, u32, String)> = None;
    for id in ids {
        let Ok(all) = fs::read_dir(format!("/proc/{id}/fd")) else { continue };
        let sockets = all.filter_map(|it| inode_of(&fs::read_link(it.ok()?.path()).ok()?));
        let Some(rank) = sockets.filter_map(|it| ranks.get(&it).copied()).min() else { continue };
        let is_better = |best: &(usize, u32, String)| (rank, best.1) < (best.0, id);
        if best.as_ref().is_none_or(is_better) {
            best = program_of(id).map(|program| (rank, id, program)).or(best);
        }
    }
    best.map(|(_, id, program)| (id, program))
}

/// The inode of the socket that a descriptor's link in /proc names.
fn inode_of(link: &Path) -> Option<u64> {
    link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The name of a process's program.
fn program_of(id: u32) -> Option<String> {
    let program = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    Some(program.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, UdpSocket};

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn lines_are_read_as_the_kernel_writes_them() {
        let udp = "  812: 0100007F:1B39 00000000:0000 07 00000000:00000000 00:00000000 00000000 \
                   1000        0 4711 2 0000000000000000 0";
        let read = parse(udp, None).unwrap();
        let address =
            if cfg!(target_endian = "little") { "127.0.0.1:6969" } else { "1.0.0.127:6969" };
        assert_eq!(read, SocketTableLine { address: at(address), user: 1000, inode: 4711 });
        assert_eq!(parse(udp, Some(LISTENS)), None);
        for line in ["", "a b c d", "1: 0100007F 0 07 0 0 0 0 0 0", "1: 01:02 0 07 0 0 0 1 0 1"] {
            assert_eq!(parse(line, None), None, "{line}");
        }
    }

    #[test]
    fn addresses_that_overlap_are_in_the_way() {
        let is = |asked, bound| is_in_the_way(at(asked), at(bound));
        assert!(is("127.0.0.1:7", "127.0.0.1:7") && !is("127.0.0.1:7", "127.0.0.1:8"));
        assert!(is("0.0.0.0:7", "127.0.0.1:7") && is("127.0.0.1:7", "0.0.0.0:7"));
        assert!(is("127.0.0.1:7", "[::]:7") && is("127.0.0.1:7", "[::ffff:127.0.0.1]:7"));
        assert!(!is("127.0.0.1:7", "[::1]:7") && !is("[::]:7", "0.0.0.0:7"));
        assert!(is("[::1]:7", "[::]:7") && !is("127.0.0.2:7", "127.0.0.1:7"));
    }

    #[test]
    fn this_process_is_found_by_what_it_has_bound() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let addresses = [udp.local_addr().unwrap(), tcp.local_addr().unwrap()];
        for (transport, address) in
            [BoundTransport::Udp, BoundTransport::Tcp].into_iter().zip(addresses)
        {
            let AddressHolder::Process { id, program } = holder(transport, address) else {
                panic!("not found: {transport:?} {address}");
            };
            assert_eq!(id, std::process::id());
            assert!(!program.is_empty());
        }
        drop(udp);
        assert_eq!(holder(BoundTransport::Udp, addresses[0]), AddressHolder::Nobody);
    }

    #[test]
    fn users_that_listen_are_found_and_an_exact_address_comes_first() {
        let any = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = any.local_addr().unwrap().port();
        let user = rustix::process::getuid().as_raw();
        assert_eq!(listening_users(SocketAddr::from(([127, 0, 0, 1], port))), [user]);
        drop(any);
        let exact = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = exact.local_addr().unwrap();
        assert_eq!(listening_users(address), [user]);
        assert_eq!(listening_users(SocketAddr::from(([127, 0, 0, 2], address.port()))), [0; 0]);
        drop(exact);
        assert_eq!(listening_users(address), [0; 0]);
    }

    #[test]
    fn of_sockets_of_many_processes_the_first_one_counts() {
        use std::os::fd::AsRawFd as _;
        let sockets = [(); 2].map(|()| UdpSocket::bind("127.0.0.1:0").unwrap());
        let inode = |socket: &UdpSocket| {
            inode_of(&fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap())
                .unwrap()
        };
        let ranks = HashMap::from([(inode(&sockets[0]), 1), (inode(&sockets[1]), 0), (0, 2)]);
        assert_eq!(process_with(&ranks).unwrap().0, std::process::id());
        assert_eq!(process_with(&HashMap::new()), None);
        assert_eq!(inode_of(Path::new("/dev/null")), None);
    }

    #[test]
    fn of_processes_that_share_a_socket_the_one_with_the_highest_id_counts() {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let _kept = socket.try_clone().unwrap();
        let mut child = std::process::Command::new("sleep")
            .arg("600")
            .stdin(std::process::Stdio::from(std::os::fd::OwnedFd::from(socket)))
            .spawn()
            .unwrap();
        let found = holder(BoundTransport::Udp, address);
        child.kill().unwrap();
        child.wait().unwrap();
        let AddressHolder::Process { id, .. } = found else { panic!("not found") };
        assert_eq!(id, child.id().max(std::process::id()));
    }

    #[test]
    fn an_open_file_is_found_by_its_name_and_known_by_its_inode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("of holder.rs");
        let find = || open_file(std::process::id(), "of holder.rs");
        assert_eq!(find(), None);
        let _file = fs::File::create(&path).unwrap();
        let file = find().unwrap();
        assert_eq!(file.folder, folder.path().canonicalize().unwrap());
        assert_eq!(Some(file.identity), identity(&path));
        assert_ne!(Some(file.identity), identity(folder.path()));
    }

    #[test]
    fn who_listens_on_a_unix_socket_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert_eq!(holder_at(&path), AddressHolder::Nobody);
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let AddressHolder::Process { id, program } = holder_at(&path) else { panic!("not found") };
        assert!(id == std::process::id() && !program.is_empty());
    }
}
