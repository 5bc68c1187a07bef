//! Binds every socket: each address once for each worker, in order, on one thread.
//!
//! The order of binding is the kernel's index into the sockets that share an address, and steering
//! goes by that index: socket N of every address must be worker N's.

use std::io;
use std::net::SocketAddr;

use crate::server::StartError;
use crate::server::listeners::{self, Bound};
use crate::sys::socket::{BoundUdp, UdpOptions, bind_udp, steer};

/// All sockets, bound.
pub(super) struct Sockets {
    /// Each worker's sockets, one for each address.
    pub(super) by_worker: Vec<Vec<BoundUdp>>,
    /// The addresses, with the ports the kernel chose.
    pub(super) addresses: Vec<SocketAddr>,
}

/// Binds `addresses` for as many workers as there are `cpus`.
///
/// An IPv6 wildcard is left out with a warning where the host has no IPv6 and something else to
/// listen on remains: the default must work there as well.
pub(super) fn bind(
    addresses: &[SocketAddr],
    cpus: &[Option<usize>],
    receive_buffer_bytes: usize,
) -> Result<Sockets, StartError> {
    let usable = usable(addresses)?;
    let options = UdpOptions { reuse_port: true, receive_buffer_bytes };
    let mut sockets = Sockets {
        by_worker: cpus.iter().map(|_| Vec::with_capacity(usable.len())).collect(),
        addresses: Vec::with_capacity(usable.len()),
    };
    for address in usable {
        let mut at = address;
        for worker in &mut sockets.by_worker {
            let socket =
                bind_udp(at, &options).map_err(|it| StartError::listening("udp", at, &it))?;
            at = socket.address();
            worker.push(socket);
        }
        sockets.addresses.push(at);
        let group: Vec<_> = sockets.by_worker.iter().filter_map(|it| it.last()).collect();
        if let Err(error) = steer(&group, cpus) {
            tracing::warn!(%error, "datagrams change cores: the kernel does not let us steer them");
        }
    }
    warn_of_small_buffers(&sockets, receive_buffer_bytes);
    Ok(sockets)
}

/// How often to try for a port that is free for UDP and TCP alike, where the kernel chooses it.
const PORT_TRIES: usize = 16;

/// Binds what is served on both transports: `addresses` for UDP as in [`bind`], and the same ones
/// for TCP, with the same ports also where the kernel chooses them.
pub(super) fn bind_both(
    addresses: &[SocketAddr],
    cpus: &[Option<usize>],
    receive_buffer_bytes: usize,
) -> Result<(Sockets, Vec<Bound>), StartError> {
    let chosen = addresses.iter().any(|it| it.port() == 0);
    let mut tries = if chosen { PORT_TRIES } else { 1 };
    loop {
        let sockets = bind(addresses, cpus, receive_buffer_bytes)?;
        tries -= 1;
        match bind_tcp(&sockets.addresses, |at| listeners::bind(at, cpus.len())) {
            Ok(listeners) => return Ok((sockets, listeners)),
            Err((_, error)) if tries > 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            Err((at, error)) => return Err(StartError::listening("tcp", at, &error)),
        }
    }
}

/// Binds `addresses` for TCP, those of a family that the host lacks left out as in [`bind`].
pub(super) fn bind_streams(
    addresses: &[SocketAddr],
    workers: usize,
) -> Result<Vec<Bound>, StartError> {
    bind_tcp(addresses, |at| listeners::bind(at, workers))
        .map_err(|(at, error)| StartError::listening("tcp", at, &error))
}

/// Binds `addresses` with `bind`. An error if nothing of them can be had.
fn bind_tcp(
    addresses: &[SocketAddr],
    bind: impl Fn(SocketAddr) -> io::Result<Bound>,
) -> Result<Vec<Bound>, (SocketAddr, io::Error)> {
    let mut all = Vec::with_capacity(addresses.len());
    let mut missing = None;
    for &address in addresses {
        match bind(address) {
            Ok(bound) => all.push(bound),
            Err(error) if lacks_family(address, &error) => missing = Some((address, error)),
            Err(error) => return Err((address, error)),
        }
    }
    left_out(missing, all)
}

/// What is served after `missing` was left out for want of its family, if anything remains.
fn left_out<T>(
    missing: Option<(SocketAddr, io::Error)>,
    served: Vec<T>,
) -> Result<Vec<T>, (SocketAddr, io::Error)> {
    match missing {
        Some(missing) if served.is_empty() => return Err(missing),
        Some((address, _)) => tracing::warn!(%address, "not served: this host has no IPv6"),
        None => {}
    }
    Ok(served)
}

/// The addresses that can be had. Tries each alone, without sharing it: a second skep of the same
/// user could share our addresses, and would silently be sent half of the datagrams.
fn usable(addresses: &[SocketAddr]) -> Result<Vec<SocketAddr>, StartError> {
    let options = UdpOptions { reuse_port: false, receive_buffer_bytes: 1 << 16 };
    let mut usable = Vec::with_capacity(addresses.len());
    let mut missing = None;
    for &address in addresses {
        match bind_udp(address, &options) {
            Ok(_) => usable.push(address),
            Err(error) if lacks_family(address, &error) => missing = Some((address, error)),
            Err(error) => return Err(StartError::listening("udp", address, &error)),
        }
    }
    left_out(missing, usable).map_err(|(at, error)| StartError::listening("udp", at, &error))
}

/// Whether an address cannot be had because the host lacks its family, as opposed to that address.
fn lacks_family(address: SocketAddr, error: &io::Error) -> bool {
    let codes = [Some(libc::EAFNOSUPPORT), Some(libc::EADDRNOTAVAIL)];
    address.is_ipv6() && address.ip().is_unspecified() && codes.contains(&error.raw_os_error())
}

/// Warns once if the kernel gave less than was asked for.
fn warn_of_small_buffers(sockets: &Sockets, asked: usize) {
    let given = sockets.by_worker.iter().flatten().map(BoundUdp::receive_buffer_bytes).min();
    if let Some(warning) = given.and_then(|it| small_buffers(it, asked)) {
        tracing::warn!("{warning}");
    }
}

/// What to say of buffers of `given` bytes where `asked` were asked for, if anything.
fn small_buffers(given: usize, asked: usize) -> Option<String> {
    (given < asked).then(|| {
        format!(
            "receive buffers hold {given} bytes, {asked} were asked for, so bursts are lost; \
             remedy: sysctl -w net.core.rmem_max={asked}, or grant CAP_NET_ADMIN"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn workers_share_the_port_that_the_kernel_chose() {
        let sockets =
            bind(&[at("127.0.0.1:0"), at("127.0.0.2:0")], &[None, None, None], 1 << 16).unwrap();
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
        let (sockets, listeners) = bind_both(&asked, &[None, None], 1 << 16).unwrap();
        let tcp: Vec<_> = listeners.iter().map(|it| it.address).collect();
        assert_eq!(tcp, sockets.addresses);
        assert!(listeners.iter().all(|it| it.by_worker.len() == 2));
        let again = bind_both(&sockets.addresses, &[None], 1 << 16).err().unwrap();
        assert!(again.to_string().contains("ss -lnp"));
    }

    #[test]
    fn a_shared_address_still_counts_as_in_use() {
        let first = bind(&[at("127.0.0.1:0")], &[None], 1 << 16).unwrap();
        let again = bind(&first.addresses, &[None], 1 << 16);
        assert!(again.err().unwrap().to_string().contains("ss -lnp"));
        let wildcard = SocketAddr::new(at("0.0.0.0:0").ip(), first.addresses[0].port());
        assert!(bind(&[wildcard], &[None], 1 << 16).is_err());
    }

    #[test]
    fn a_wildcard_and_one_of_its_addresses_may_both_be_listed() {
        let free = bind(&[at("127.0.0.1:0")], &[None], 1 << 16).unwrap().addresses[0];
        let wildcard = SocketAddr::new(at("0.0.0.0:0").ip(), free.port());
        assert!(bind(&[wildcard, free], &[None, None], 1 << 16).is_ok());
    }

    #[test]
    fn buffers_smaller_than_asked_for_are_warned_of_with_a_remedy() {
        assert_eq!(small_buffers(8 << 20, 8 << 20), None);
        assert_eq!(small_buffers(16 << 20, 8 << 20), None);
        let warning = small_buffers(212_992, 8 << 20).unwrap();
        assert!(warning.contains("hold 212992 bytes"), "{warning}");
        assert!(warning.contains("sysctl -w net.core.rmem_max=8388608"), "{warning}");
    }

    #[test]
    fn a_wildcard_is_left_out_only_where_something_else_is_served() {
        let bind = |at: SocketAddr| {
            if at.is_ipv6() {
                return Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT));
            }
            listeners::bind(at, 1)
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
