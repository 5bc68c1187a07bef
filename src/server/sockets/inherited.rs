//! Sockets that live longer than a process: those that this process received at its start, and
//! those that it can hand over.
//!
//! They come from a predecessor that still runs (`server::handover`), or from the service manager:
//! its own sockets (socket activation), or those that a predecessor stored there (the descriptor
//! store). In each case they are the same kernel objects, with the data that waits in them, in the
//! same order of their SO_REUSEPORT group.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use socket2::{Domain, SockRef, Type};
use strum::{EnumCount, VariantArray};

use crate::server::StartError;
use crate::sys::descriptors;

/// Most sockets that are taken over.
pub(crate) const SOCKETS_MAX: usize = 8192;

/// The use of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumCount, VariantArray)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SocketKind {
    /// BEP 15.
    Udp,
    /// HTTP and WebSocket.
    Tcp,
    /// HTTP and WebSocket over TLS.
    Tls,
    /// HTTP and WebSocket from a reverse proxy on this host.
    Unix,
    /// The pages for operators.
    Admin,
}

impl SocketKind {
    const ALL: [Self; Self::COUNT] = *Self::VARIANTS.first_chunk().unwrap();

    /// The name in logs and in the service manager's store.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Unix => "unix",
            Self::Admin => "admin",
        }
    }
}

/// The place that a socket is bound to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum BindPlace {
    /// On the network.
    At(SocketAddr),
    /// In the file system.
    Path(PathBuf),
}

impl fmt::Display for BindPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// The description of a socket that is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SocketDescription {
    /// The use; `None`: any TCP listener, as found from its address.
    pub(crate) kind: Option<SocketKind>,
    pub(crate) place: BindPlace,
    /// Its index among the sockets that share the place, from 0.
    pub(crate) index: u16,
    /// Whether the service manager has it, too: it still listens, and its file stays, after all
    /// skep processes have ended.
    #[serde(default)]
    pub(crate) is_managed: bool,
}

/// Sockets that this process received and has not taken yet. They are closed when dropped.
#[derive(Debug, Default)]
pub(crate) struct InheritedSockets {
    left: Vec<InheritedSocket>,
    /// Ports of all sockets that were ever in this value.
    ports: Vec<u16>,
    /// Places of all sockets that were ever in this value and that the service manager has, too.
    managed: Vec<BindPlace>,
}

#[derive(Debug)]
struct InheritedSocket {
    description: SocketDescription,
    /// Its name in the service manager's store, if it comes from there.
    name: Option<String>,
    socket: OwnedFd,
}

impl InheritedSockets {
    /// The sockets that the service manager has passed (sd_listen_fds(3)). Call it before this
    /// process opens a descriptor.
    ///
    /// # Errors
    /// If the environment does not describe what was passed. A socket that is not read would take
    /// its share of the datagrams.
    pub(crate) fn of_process() -> Result<Self, StartError> {
        let passed = descriptors::inherited().map_err(|error| {
            StartError::Failed(format!(
                "cannot take the sockets that were passed: {error}; remedy: LISTEN_FDS counts the \
                 open descriptors from 3 on, and LISTEN_FDNAMES, if set, has a name for each"
            ))
        })?;
        let mut sockets = Self::default();
        for (name, socket) in passed {
            sockets.add(&name, socket);
        }
        Ok(sockets)
    }

    /// Adds a socket that the service manager has passed under this name. A socket that is not for
    /// skep, or that was passed twice (from a socket unit and from the store), is closed.
    fn add(&mut self, name: &str, socket: OwnedFd) {
        let Ok(description) = describe(name, &socket) else { return };
        let cookie = descriptors::cookie(&socket).ok();
        let same = |inherited_socket: &InheritedSocket| {
            cookie.is_some() && descriptors::cookie(&inherited_socket.socket).ok() == cookie
        };
        if !self.left.iter().any(same) {
            self.push(InheritedSocket { description, name: Some(name.to_owned()), socket });
        }
    }

    /// Adds a socket with the description of a predecessor.
    pub(crate) fn receive(&mut self, description: SocketDescription, socket: OwnedFd) {
        self.push(InheritedSocket { description, name: None, socket });
    }

    fn push(&mut self, socket: InheritedSocket) {
        if socket.description.is_managed {
            self.managed.push(socket.description.place.clone());
        }
        if let BindPlace::At(at) = socket.description.place {
            self.ports.push(at.port());
        }
        self.left.push(socket);
    }

    /// Places of sockets that the service manager has, too, taken or not.
    pub(crate) fn managed(&self) -> &[BindPlace] {
        &self.managed
    }

    /// Whether no sockets are left.
    pub(crate) fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes the sockets of a kind that are bound to `asked`, in the order of their group. If
    /// `asked` leaves the port to the kernel, takes those of the first address with its IP address.
    pub(crate) fn take(&mut self, kind: SocketKind, asked: SocketAddr) -> Vec<OwnedFd> {
        let is_asked = |description: &SocketDescription| match &description.place {
            BindPlace::At(at) if asked.port() == 0 => at.ip() == asked.ip(),
            BindPlace::At(at) => *at == asked,
            BindPlace::Path(_) => false,
        };
        let is_of_kind = |description: &SocketDescription| match description.kind {
            Some(known) => known == kind,
            None => matches!(kind, SocketKind::Tcp | SocketKind::Tls | SocketKind::Admin),
        };
        let fits = |it: &InheritedSocket| is_of_kind(&it.description) && is_asked(&it.description);
        let Some(place) =
            self.left.iter().find(|it| fits(it)).map(|it| it.description.place.clone())
        else {
            return Vec::new();
        };
        self.take_all(|it| is_of_kind(it) && it.place == place)
    }

    /// Takes the Unix socket at a path.
    pub(crate) fn take_path(&mut self, path: &Path) -> Option<OwnedFd> {
        self.take_all(|it| matches!(&it.place, BindPlace::Path(at) if at == path)).pop()
    }

    fn take_all(&mut self, mut is_taken: impl FnMut(&SocketDescription) -> bool) -> Vec<OwnedFd> {
        let (mut taken, rest): (Vec<_>, Vec<_>) =
            self.left.drain(..).partition(|it| is_taken(&it.description));
        self.left = rest;
        taken.sort_by_key(|it| it.description.index);
        taken.into_iter().map(|it| it.socket).collect()
    }

    /// Whether a socket on this port was inherited, taken or not: a trial bind would then fail
    /// without a reason.
    pub(crate) fn has_port(&self, port: u16) -> bool {
        self.ports.contains(&port)
    }

    /// Closes the sockets that were not taken. Returns their places, and their names in the store.
    pub(crate) fn close(self) -> (Vec<String>, Vec<String>) {
        let mut places = Vec::new();
        for socket in &self.left {
            let kind = socket.description.kind.map_or("tcp", SocketKind::label);
            let place = format!("{kind} {}", socket.description.place);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        (places, self.left.into_iter().filter_map(|it| it.name).collect())
    }
}

/// Describes a socket from its own properties and the name that it was passed under.
fn describe(name: &str, socket: &OwnedFd) -> io::Result<SocketDescription> {
    let sock_ref = SockRef::from(socket);
    let (kind, index) = parse_name(name);
    let address = sock_ref.local_addr()?;
    let is_stream = sock_ref.r#type()? == Type::STREAM;
    if is_stream && !sock_ref.is_listener()? {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let is_unix = sock_ref.domain()? == Domain::UNIX;
    let place = match (address.as_socket(), address.as_pathname()) {
        (Some(at), _) => BindPlace::At(at),
        (None, Some(path)) => BindPlace::Path(path.to_owned()),
        (None, None) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let kind = match (is_stream, is_unix) {
        (true, true) => Some(SocketKind::Unix),
        (true, false) => kind.filter(|it| !matches!(it, SocketKind::Udp | SocketKind::Unix)),
        (false, false) if sock_ref.r#type()? == Type::DGRAM => Some(SocketKind::Udp),
        (false, _) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    Ok(SocketDescription { kind, place, index, is_managed: true })
}

/// Kind and index from a name that skep gave; nothing from another program's name.
fn parse_name(name: &str) -> (Option<SocketKind>, u16) {
    let mut parts = name.split('-');
    let kind =
        parts.next().and_then(|it| SocketKind::ALL.into_iter().find(|kind| kind.label() == it));
    let index = parts.next_back().and_then(|it| it.parse().ok());
    (kind, kind.and(index).unwrap_or(0))
}

/// Second handles on every socket of this process, to hand them over.
#[derive(Debug, Default)]
pub(crate) struct OwnedSockets {
    all: Vec<(SocketDescription, OwnedFd)>,
    /// Places of which the service manager has a descriptor, too.
    managed: Vec<BindPlace>,
    /// Whether the service manager stores every network socket.
    is_stored: bool,
}

impl OwnedSockets {
    /// An empty list. The service manager has the sockets at the `managed` places, and stores every
    /// network socket if `is_stored`.
    pub(crate) fn new(managed: &[BindPlace], is_stored: bool) -> Self {
        Self { all: Vec::new(), managed: managed.to_vec(), is_stored }
    }

    /// Whether the service manager still listens on any of them after this process has ended.
    pub(crate) fn is_managed(&self) -> bool {
        self.all.iter().any(|it| it.0.is_managed)
    }

    /// Adds the sockets of one place, in the order of their group.
    ///
    /// # Errors
    /// If no descriptor is left.
    pub(crate) fn add<'a, S: AsFd + 'a>(
        &mut self,
        kind: SocketKind,
        place: &BindPlace,
        sockets: impl IntoIterator<Item = &'a S>,
    ) -> io::Result<()> {
        for (index, socket) in (0..=u16::MAX).zip(sockets) {
            let is_stored = self.is_stored && matches!(place, BindPlace::At(_));
            let is_managed = is_stored || self.managed.contains(place);
            let place = place.clone();
            let description = SocketDescription { kind: Some(kind), place, index, is_managed };
            self.all.push((description, socket.as_fd().try_clone_to_owned()?));
        }
        Ok(())
    }

    /// Adds the listeners of one address.
    ///
    /// # Errors
    /// As [`Self::add`].
    pub(crate) fn add_tcp(
        &mut self,
        kind: SocketKind,
        address: SocketAddr,
        listeners: &[TcpListener],
    ) -> io::Result<()> {
        self.add(kind, &BindPlace::At(address), listeners)
    }

    /// Every socket with its description.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&SocketDescription, BorrowedFd<'_>)> {
        self.all.iter().map(|(description, socket)| (description, socket.as_fd()))
    }

    /// Every network socket, with its name in the service manager's store: its kind, the index of
    /// its address among those of the kind, and its index at that address. (A Unix socket's file is
    /// removed with the process, and created anew.)
    pub(crate) fn named(&self) -> Vec<(String, BorrowedFd<'_>)> {
        let mut places: Vec<(Option<SocketKind>, &BindPlace)> = Vec::new();
        let mut named = Vec::new();
        for (SocketDescription { kind, place, index, .. }, socket) in self.all() {
            if !places.contains(&(*kind, place)) {
                places.push((*kind, place));
            }
            let of_kind = places.iter().filter(|it| it.0 == *kind);
            let nth = of_kind.into_iter().position(|it| it.1 == place).unwrap_or(0);
            if let (Some(kind), BindPlace::At(_)) = (kind, place) {
                named.push((format!("{}-{nth}-{index}", kind.label()), socket));
            }
        }
        named
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    fn udp(at: &str) -> UdpSocket {
        UdpSocket::bind(at).unwrap()
    }

    fn at(kind: SocketKind, socket: &UdpSocket, index: u16) -> SocketDescription {
        let place = BindPlace::At(socket.local_addr().unwrap());
        SocketDescription { kind: Some(kind), place, index, is_managed: false }
    }

    #[test]
    fn sockets_of_an_address_come_in_the_order_of_their_group() {
        let (first, other) = (udp("127.0.0.1:0"), udp("127.0.0.2:0"));
        let mut given = InheritedSockets::default();
        let twin = |it: &UdpSocket| OwnedFd::from(it.try_clone().unwrap());
        let cookies = [0, 1, 2].map(|index| {
            let socket = udp("127.0.0.3:0");
            let cookie = descriptors::cookie(&socket).unwrap();
            let place = BindPlace::At("127.0.0.1:7".parse().unwrap());
            let (kind, index, is_managed) = (Some(SocketKind::Udp), 2 - index, false);
            let description = SocketDescription { kind, place, index, is_managed };
            given.receive(description, socket.into());
            cookie
        });
        given.receive(at(SocketKind::Udp, &other, 0), twin(&other));
        given.receive(at(SocketKind::Tcp, &first, 0), twin(&first));
        assert!(given.take(SocketKind::Udp, "127.0.0.1:8".parse().unwrap()).is_empty());
        assert!(given.take(SocketKind::Tls, first.local_addr().unwrap()).is_empty());
        let taken = given.take(SocketKind::Udp, "127.0.0.1:0".parse().unwrap());
        let taken: Vec<_> = taken.iter().map(|it| descriptors::cookie(it).unwrap()).collect();
        assert!(taken.into_iter().eq(cookies.into_iter().rev()));
        assert!(given.has_port(7) && !given.has_port(8));
        let (places, names) = given.close();
        assert_eq!((places.len(), names.len()), (2, 0));
    }

    #[test]
    fn names_in_the_store_say_what_a_socket_is() {
        let (one, two) = (udp("127.0.0.1:0"), udp("127.0.0.1:0"));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut owned = OwnedSockets::default();
        for udp_socket in [&one, &two] {
            let place = BindPlace::At(udp_socket.local_addr().unwrap());
            owned.add(SocketKind::Udp, &place, [udp_socket, udp_socket]).unwrap();
        }
        let address = listener.local_addr().unwrap();
        owned.add_tcp(SocketKind::Tls, address, std::slice::from_ref(&listener)).unwrap();
        let named = owned.named();
        let names: Vec<_> = named.iter().map(|it| it.0.as_str()).collect();
        assert_eq!(names, ["udp-0-0", "udp-0-1", "udp-1-0", "udp-1-1", "tls-0-0"]);
        let mut given = InheritedSockets::default();
        for (name, socket) in &named {
            given.add(name, socket.try_clone_to_owned().unwrap());
        }
        given.add("http", listener.try_clone().unwrap().into());
        assert!(given.take(SocketKind::Tcp, address).is_empty());
        assert_eq!(given.take(SocketKind::Tls, address).len(), 1);
        assert_eq!(
            given.take(SocketKind::Udp, two.local_addr().unwrap()).len(),
            1,
            "known already"
        );
        assert_eq!(given.close().1, ["udp-0-0"]);
    }

    #[test]
    fn what_the_service_manager_has_is_known_to_every_successor() {
        let (unit, ours) = (udp("127.0.0.1:0"), udp("127.0.0.1:0"));
        let mut given = InheritedSockets::default();
        given.add("skep.socket", unit.try_clone().unwrap().into());
        let place = |it: &UdpSocket| BindPlace::At(it.local_addr().unwrap());
        let file = BindPlace::Path("/run/skep.sock".into());
        for is_stored in [false, true] {
            let mut owned = OwnedSockets::new(given.managed(), is_stored);
            owned.add(SocketKind::Udp, &place(&ours), [&ours]).unwrap();
            assert_eq!(owned.is_managed(), is_stored);
            owned.add(SocketKind::Udp, &place(&unit), [&unit]).unwrap();
            owned.add(SocketKind::Unix, &file, [&ours]).unwrap();
            let mut next = InheritedSockets::default();
            for (description, socket) in owned.all() {
                // Encoded as one process sends it to the other.
                let told = serde_json::to_string(description).unwrap();
                let heard = serde_json::from_str(&told).unwrap();
                next.receive(heard, socket.try_clone_to_owned().unwrap());
            }
            let stored = is_stored.then(|| place(&ours));
            let expected: Vec<_> = stored.into_iter().chain([place(&unit)]).collect();
            assert_eq!(next.managed(), expected);
        }
        let old = r#"{"kind":"unix","place":{"path":"/run/skep.sock"},"index":0}"#;
        assert!(!serde_json::from_str::<SocketDescription>(old).unwrap().is_managed);
    }

    #[test]
    fn what_a_socket_unit_passes_is_known_by_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let connected = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut given = InheritedSockets::default();
        given.add("skep.socket", listener.try_clone().unwrap().into());
        given.add("skep.socket", udp("127.0.0.1:0").into());
        given.add("skep.socket", connected.into());
        given.add("skep.socket", std::fs::File::open("/dev/null").unwrap().into());
        assert_eq!(given.left.len(), 2);
        assert_eq!(given.take(SocketKind::Admin, listener.local_addr().unwrap()).len(), 1);
        assert_eq!(given.take(SocketKind::Udp, "127.0.0.1:0".parse().unwrap()).len(), 1);
        assert!(given.is_empty());
    }
}
