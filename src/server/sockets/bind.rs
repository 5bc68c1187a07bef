//! Binds every socket: each address once for each worker, in order, on one thread.
//!
//! The order of binding is the kernel's index into the sockets that share an address, and steering
//! uses that index: socket N of every address must be worker N's.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use crate::server::StartError;
use crate::server::sockets::bind_retry::BindRetry;
use crate::server::sockets::inherited::{InheritedSockets, SocketKind};
use crate::server::sockets::listeners::{self, BoundListener};
use crate::sys::socket::{BoundUdp, UdpOptions, adopt_udp, bind_udp, steer};

pub(crate) struct Sockets {
    /// Each worker's sockets: one of each address, or more if more were inherited.
    pub(crate) by_worker: Vec<Vec<BoundUdp>>,
    /// The addresses, with the ports that the kernel chose.
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Sockets {
    /// The sockets of an address in the order of their group, which is the kernel's index.
    pub(crate) fn of(&self, address: SocketAddr) -> impl Iterator<Item = &BoundUdp> {
        let rounds = self.by_worker.iter().map(Vec::len).max().unwrap_or(0);
        let in_round = move |round| {
            let its_own = move |worker: &'_ Vec<BoundUdp>| -> Option<usize> {
                let mut places = (0..worker.len()).filter(|it| worker[*it].address() == address);
                places.nth(round)
            };
            self.by_worker.iter().filter_map(move |it| Some(&it[its_own(it)?]))
        };
        (0..rounds).flat_map(in_round)
    }
}

/// Binds `addresses` for as many workers as there are `cpus`, or takes inherited sockets.
///
/// If the host has no IPv6, an IPv6 wildcard is left out with a warning, unless it is the only
/// address: the default must work there as well.
pub(crate) fn bind(
    addresses: &[SocketAddr],
    cpus: &[Option<usize>],
    receive_buffer_bytes: usize,
    inherited_sockets: &mut InheritedSockets,
    retry: &mut BindRetry,
) -> Result<Sockets, StartError> {
    let shares: Vec<_> =
        addresses.iter().map(|it| (*it, inherited_sockets.take(SocketKind::Udp, *it))).collect();
    let usable = usable(&shares, inherited_sockets, retry)?;
    let mut sockets = Sockets {
        by_worker: cpus.iter().map(|_| Vec::with_capacity(usable.len())).collect(),
        addresses: Vec::with_capacity(usable.len()),
    };
    for (address, inherited) in shares.into_iter().filter(|it| usable.contains(&it.0)) {
        let is_ours =
            inherited_sockets.has_port(address.port()) || overlaps(address, &sockets.addresses);
        let share = (address, is_ours, inherited);
        let group = bind_group(share, cpus.len(), receive_buffer_bytes, retry)?;
        let order: Vec<_> = group.iter().collect();
        if let Err(error) = steer(&order, cpus) {
            tracing::warn!(%error, "datagrams not steered to the core that received them");
        }
        sockets.addresses.extend(group.first().map(BoundUdp::address));
        for (index, socket) in group.into_iter().enumerate() {
            sockets.by_worker[index % cpus.len()].push(socket);
        }
    }
    warn_of_small_buffers(&sockets, receive_buffer_bytes);
    Ok(sockets)
}

/// All sockets of an address, at least one for each worker. Inherited sockets beyond that are
/// served, too: closing one would lose the datagrams that wait in it, and shift the others' index.
///
/// The first one is bound alone, unless a socket of this process (`is_ours`) would be in its way:
/// two processes that start at the same time must not both have the address.
fn bind_group(
    (mut at, is_ours, inherited): (SocketAddr, bool, Vec<OwnedFd>),
    workers: usize,
    receive_buffer_bytes: usize,
    retry: &mut BindRetry,
) -> Result<Vec<BoundUdp>, StartError> {
    let options = UdpOptions { reuse_port: true, receive_buffer_bytes };
    let alone = UdpOptions { reuse_port: false, receive_buffer_bytes };
    let listening = |at, error: io::Error| StartError::listening("udp", at, &error);
    let mut group = Vec::with_capacity(workers);
    for socket in inherited {
        let socket =
            adopt_udp(socket, receive_buffer_bytes).map_err(|error| listening(at, error))?;
        at = socket.address();
        group.push(socket);
    }
    while group.len() < workers {
        let bound = if group.is_empty() && !is_ours {
            let first = retry.bind(|| format!("udp {at}"), || bind_udp(at, &alone));
            first.and_then(|it| it.share().map(|()| it))
        } else {
            bind_udp(at, &options)
        };
        match bound {
            Ok(socket) => {
                at = socket.address();
                group.push(socket);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && !group.is_empty() => {
                let (sockets, address) = (group.len(), at);
                tracing::warn!(%address, sockets, workers, "fewer sockets than workers: the \
                    sockets that were passed to this process do not share their address");
                break;
            }
            Err(error) => return Err(listening(at, error)),
        }
    }
    Ok(group)
}

/// Attempts to find a port that is free for both UDP and TCP, if the kernel chooses it.
const PORT_TRIES: usize = 16;

/// Binds what is served on both transports: `addresses` for UDP as in [`bind`], and the same for
/// TCP. A port that the kernel chooses is the same for both.
pub(crate) fn bind_both(
    addresses: &[SocketAddr],
    cpus: &[Option<usize>],
    receive_buffer_bytes: usize,
    inherited_sockets: &mut InheritedSockets,
    retry: &mut BindRetry,
) -> Result<(Sockets, Vec<BoundListener>), StartError> {
    let chosen = addresses.iter().any(|it| it.port() == 0) && inherited_sockets.is_empty();
    let mut tries = if chosen { PORT_TRIES } else { 1 };
    // A port that the kernel chose can be replaced by another one at once.
    let is_chosen = |at: &SocketAddr| chosen && !addresses.contains(at);
    let mut none = BindRetry::none();
    loop {
        let sockets = bind(addresses, cpus, receive_buffer_bytes, inherited_sockets, retry)?;
        tries -= 1;
        let bind = |at, is_ours| {
            let retry = if is_chosen(&at) { &mut none } else { &mut *retry };
            listeners::bind(at, cpus.len(), SocketKind::Tcp, is_ours, inherited_sockets, retry)
        };
        match bind_tcp(&sockets.addresses, bind) {
            Ok(listeners) => return Ok((sockets, listeners)),
            Err((at, error))
                if tries > 0 && is_chosen(&at) && error.kind() == io::ErrorKind::AddrInUse => {}
            Err((at, error)) => return Err(StartError::listening("tcp", at, &error)),
        }
    }
}

/// Binds `addresses` for TCP. Those of a family that the host lacks are left out as in [`bind`].
pub(crate) fn bind_streams(
    addresses: &[SocketAddr],
    workers: usize,
    kind: SocketKind,
    inherited_sockets: &mut InheritedSockets,
    retry: &mut BindRetry,
) -> Result<Vec<BoundListener>, StartError> {
    let bind = |at, is_ours| listeners::bind(at, workers, kind, is_ours, inherited_sockets, retry);
    bind_tcp(addresses, bind).map_err(|(at, error)| StartError::listening("tcp", at, &error))
}

/// Binds `addresses` with `bind`, whose argument is whether one of this process's sockets is in the
/// way. An error if none can be bound.
fn bind_tcp(
    addresses: &[SocketAddr],
    mut bind: impl FnMut(SocketAddr, bool) -> io::Result<BoundListener>,
) -> Result<Vec<BoundListener>, (SocketAddr, io::Error)> {
    let mut all = Vec::with_capacity(addresses.len());
    let (mut ours, mut missing) = (Vec::new(), None);
    for &address in addresses {
        match bind(address, overlaps(address, &ours)) {
            Ok(bound) => {
                ours.push(bound.address);
                all.push(bound);
            }
            Err(error) if lacks_family(address, &error) => missing = Some((address, error)),
            Err(error) => return Err((address, error)),
        }
    }
    left_out(missing, all)
}

/// Whether one of the sockets bound in this process prevents another from being bound alone.
fn overlaps(address: SocketAddr, bound: &[SocketAddr]) -> bool {
    bound.iter().any(|other| {
        let is_one_a_wildcard = other.ip().is_unspecified() || address.ip().is_unspecified();
        let is_same = other.ip() == address.ip() || is_one_a_wildcard;
        other.port() == address.port() && other.is_ipv4() == address.is_ipv4() && is_same
    })
}

/// The rest of what is served after `missing` was left out because of its family; an error if
/// nothing remains.
fn left_out<T>(
    missing: Option<(SocketAddr, io::Error)>,
    served: Vec<T>,
) -> Result<Vec<T>, (SocketAddr, io::Error)> {
    match missing {
        Some(missing) if served.is_empty() => return Err(missing),
        Some((address, _)) => tracing::warn!(%address, "address not served: this host has no IPv6"),
        None => {}
    }
    Ok(served)
}

/// The addresses that can be bound. Tries to bind each one that was not inherited, without sharing
/// it: a second skep of the same user could share the addresses, and would get half of the
/// datagrams unnoticed.
fn usable(
    shares: &[(SocketAddr, Vec<OwnedFd>)],
    inherited_sockets: &InheritedSockets,
    retry: &mut BindRetry,
) -> Result<Vec<SocketAddr>, StartError> {
    let options = UdpOptions { reuse_port: false, receive_buffer_bytes: 1 << 16 };
    let mut usable = Vec::with_capacity(shares.len());
    let mut missing = None;
    for (address, inherited) in shares {
        let address = *address;
        let is_ours = !inherited.is_empty() || inherited_sockets.has_port(address.port());
        let mut alone =
            || retry.bind(|| format!("udp {address}"), || bind_udp(address, &options).map(drop));
        match if is_ours { Ok(()) } else { alone() } {
            Ok(()) => usable.push(address),
            Err(error) if lacks_family(address, &error) => missing = Some((address, error)),
            Err(error) => return Err(StartError::listening("udp", address, &error)),
        }
    }
    left_out(missing, usable).map_err(|(at, error)| StartError::listening("udp", at, &error))
}

/// Whether an address cannot be bound because the host lacks its family.
pub(crate) fn lacks_family(address: SocketAddr, error: &io::Error) -> bool {
    let codes = [Some(libc::EAFNOSUPPORT), Some(libc::EADDRNOTAVAIL)];
    address.is_ipv6() && address.ip().is_unspecified() && codes.contains(&error.raw_os_error())
}

/// Warns once if the kernel granted less than was requested.
fn warn_of_small_buffers(sockets: &Sockets, asked: usize) {
    let given = sockets.by_worker.iter().flatten().map(BoundUdp::receive_buffer_bytes).min();
    let remedy = given.and_then(|bytes| remedy_of_small_buffers(bytes, asked));
    if let Some(remedy) = remedy {
        let (bytes, configured_bytes) = (given, asked);
        tracing::warn!(bytes, configured_bytes, remedy, "receive buffers smaller than configured");
    }
}

/// A remedy if buffers have `given` bytes, and `asked` are configured; `None` if they are large
/// enough.
fn remedy_of_small_buffers(given: usize, asked: usize) -> Option<String> {
    (given < asked).then(|| format!("sysctl -w net.core.rmem_max={asked}, or grant CAP_NET_ADMIN"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::sockets::inherited::{BindPlace, SocketDescription};
    use crate::sys::descriptors;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn bind_new(addresses: &[SocketAddr], cpus: &[Option<usize>]) -> Result<Sockets, StartError> {
        bind(addresses, cpus, 1 << 16, &mut InheritedSockets::default(), &mut BindRetry::none())
    }

    fn bind_both_new(
        addresses: &[SocketAddr],
        cpus: &[Option<usize>],
    ) -> Result<(Sockets, Vec<BoundListener>), StartError> {
        bind_both(
            addresses,
            cpus,
            1 << 16,
            &mut InheritedSockets::default(),
            &mut BindRetry::none(),
        )
    }

    /// All sockets and listeners of a tracker, as its successor receives them.
    fn passed_on(sockets: &Sockets, listeners: &[BoundListener]) -> InheritedSockets {
        let mut given = InheritedSockets::default();
        let mut add = |kind, address, index, socket: OwnedFd| {
            let (kind, place) = (Some(kind), BindPlace::At(address));
            let is_managed = false;
            given.receive(SocketDescription { kind, place, index, is_managed }, socket);
        };
        for &address in &sockets.addresses {
            for (index, socket) in (0..).zip(sockets.of(address)) {
                add(SocketKind::Udp, address, index, socket.socket().try_clone().unwrap().into());
            }
        }
        for bound in listeners {
            for (index, socket) in (0..).zip(&bound.by_worker) {
                add(SocketKind::Tcp, bound.address, index, socket.try_clone().unwrap().into());
            }
        }
        given
    }

    fn cookies<'a>(them: impl Iterator<Item = &'a BoundUdp>) -> Vec<u64> {
        them.map(|it| descriptors::cookie(it).unwrap()).collect()
    }

    #[test]
    fn inherited_sockets_keep_their_order_whatever_the_number_of_workers() {
        let asked = [at("127.0.0.1:0"), at("127.0.0.2:0")];
        let (first, listeners) = bind_both_new(&asked, &[None; 3]).unwrap();
        for workers in [1, 2, 3, 5] {
            let mut given = passed_on(&first, &listeners);
            let cpus = vec![None; workers];
            let none = &mut BindRetry::none();
            let (sockets, again) = bind_both(&asked, &cpus, 1 << 16, &mut given, none).unwrap();
            assert!(given.is_empty() && sockets.addresses == first.addresses);
            for &address in &first.addresses {
                let (old, new) = (cookies(first.of(address)), cookies(sockets.of(address)));
                assert_eq!((&new[..3], new.len()), (&old[..], workers.max(3)));
            }
            assert!(sockets.by_worker.iter().all(|it| it.len() >= 2), "each serves each address");
            let listened: Vec<_> = again.iter().map(|it| it.address).collect();
            assert_eq!(listened, first.addresses);
            assert!(again.iter().all(|it| it.by_worker.len() == workers.max(3)));
        }
    }

    #[test]
    fn addresses_that_are_new_are_bound_and_old_ones_are_left() {
        let (first, listeners) = bind_both_new(&[at("127.0.0.1:0")], &[None; 2]).unwrap();
        let mut given = passed_on(&first, &listeners);
        let asked = [at("127.0.0.4:0")];
        let none = &mut BindRetry::none();
        let (sockets, _) = bind_both(&asked, &[None; 2], 1 << 16, &mut given, none).unwrap();
        assert_eq!(sockets.addresses[0].ip(), asked[0].ip());
        let (left, _) = given.close();
        let old = first.addresses[0];
        assert_eq!(left, [format!("udp {old}"), format!("tcp {old}")]);
    }

    /// A port that the kernel chooses on one address may be in use on another: calls `serve`, with
    /// a new port each time, until it can bind a wider address as well.
    fn with_a_port_that_is_free_everywhere(serve: impl Fn() -> Result<(), StartError>) {
        let served = (0..100).any(|_| match serve() {
            Ok(()) => true,
            Err(error) => {
                assert!(error.to_string().contains("in use"), "{error}");
                false
            }
        });
        assert!(served, "no port of a hundred was free on all addresses");
    }

    fn wildcard(port: u16) -> SocketAddr {
        SocketAddr::new(at("0.0.0.0:0").ip(), port)
    }

    #[test]
    fn what_we_have_ourselves_is_no_obstacle() {
        with_a_port_that_is_free_everywhere(|| {
            let (first, listeners) = bind_both_new(&[at("127.0.0.1:0")], &[None; 2])?;
            let mut given = passed_on(&first, &listeners);
            let asked = [first.addresses[0], wildcard(first.addresses[0].port())];
            let none = &mut BindRetry::none();
            let (sockets, _) = bind_both(&asked, &[None], 1 << 16, &mut given, none)?;
            assert_eq!(sockets.addresses, asked);
            Ok(())
        });
    }

    #[test]
    fn workers_share_the_port_that_the_kernel_chose() {
        let sockets =
            bind_new(&[at("127.0.0.1:0"), at("127.0.0.2:0")], &[None, None, None]).unwrap();
        assert_eq!(sockets.by_worker.len(), 3);
        for worker in &sockets.by_worker {
            let bound: Vec<_> = worker.iter().map(BoundUdp::address).collect();
            assert_eq!(bound, sockets.addresses);
        }
        assert!(sockets.addresses.iter().all(|it| it.port() != 0));
    }

    #[test]
    fn both_transports_have_the_port_that_the_kernel_chose() {
        let asked = [at("127.0.0.1:0"), at("127.0.0.2:0")];
        let (sockets, listeners) = bind_both_new(&asked, &[None, None]).unwrap();
        let tcp: Vec<_> = listeners.iter().map(|it| it.address).collect();
        assert_eq!(tcp, sockets.addresses);
        assert!(listeners.iter().all(|it| it.by_worker.len() == 2));
        let again = bind_both_new(&sockets.addresses, &[None]).err().unwrap();
        assert!(again.to_string().contains("the settings list this address twice"));
    }

    #[test]
    fn a_fixed_port_is_waited_for_beside_one_that_the_kernel_chooses() {
        let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let asked = [at("127.0.0.2:0"), taken.local_addr().unwrap()];
        let (mut inherited_sockets, mut retry) = (InheritedSockets::default(), BindRetry::new());
        let unused = format!("{retry:?}");
        let bound = bind_both(&asked, &[None], 1 << 16, &mut inherited_sockets, &mut retry);
        assert!(bound.is_err());
        assert_ne!(format!("{retry:?}"), unused, "it has waited");
    }

    #[test]
    fn a_shared_address_still_counts_as_in_use() {
        let first = bind_new(&[at("127.0.0.1:0")], &[None]).unwrap();
        let again = bind_new(&first.addresses, &[None]);
        assert!(again.err().unwrap().to_string().contains("the settings list this address twice"));
        assert!(bind_new(&[wildcard(first.addresses[0].port())], &[None]).is_err());
    }

    #[test]
    fn a_wildcard_and_one_of_its_addresses_may_both_be_listed() {
        with_a_port_that_is_free_everywhere(|| {
            let free = bind_new(&[at("127.0.0.1:0")], &[None])?.addresses[0];
            bind_both_new(&[wildcard(free.port()), free], &[None, None]).map(drop)
        });
    }

    #[test]
    fn buffers_smaller_than_asked_for_are_warned_of_with_a_remedy() {
        assert_eq!(remedy_of_small_buffers(8 << 20, 8 << 20), None);
        assert_eq!(remedy_of_small_buffers(16 << 20, 8 << 20), None);
        let remedy = remedy_of_small_buffers(212_992, 8 << 20).unwrap();
        assert!(remedy.starts_with("sysctl -w net.core.rmem_max=8388608"), "{remedy}");
    }

    #[test]
    fn a_wildcard_is_left_out_only_where_something_else_is_served() {
        let bind = |at: SocketAddr, _| {
            if at.is_ipv6() {
                return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
            }
            let (mut inherited_sockets, mut retry) =
                (InheritedSockets::default(), BindRetry::none());
            listeners::bind(at, 1, SocketKind::Tcp, false, &mut inherited_sockets, &mut retry)
        };
        let served = bind_tcp(&[at("[::]:0"), at("127.0.0.1:0")], bind).unwrap();
        assert_eq!(served.len(), 1);
        let both = [at("[::]:6969"), at("[::]:6970")];
        assert_eq!(bind_tcp(&both, bind).err().unwrap().0, both[1]);
        assert!(bind_tcp(&[], bind).unwrap().is_empty());
    }

    #[test]
    fn only_a_wildcard_may_be_left_out() {
        let error = io::Error::from_raw_os_error(libc::EAFNOSUPPORT);
        assert!(lacks_family(at("[::]:6969"), &error));
        assert!(!lacks_family(at("[::1]:6969"), &error));
        assert!(!lacks_family(at("0.0.0.0:6969"), &error));
        assert!(!lacks_family(at("[::]:6969"), &io::ErrorKind::AddrInUse.into()));
    }
}
