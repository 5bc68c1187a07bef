//! UDP sockets with the options that a tracker needs, and what the kernel reports about them.
//!
//! Why each option is set:
//! - `SO_REUSEPORT`: every worker has its own socket on the same address, so no queue is shared.
//! - `IPV6_V6ONLY`: `0.0.0.0` and `[::]` are two sockets, and an IPv4 client is IPv4 everywhere.
//! - A receive buffer of 8 MiB: about 19 000 datagrams, 100 ms at 200 000 a second.
//! - `IP_MTU_DISCOVER = PROBE`: spares the choice of an IP id for each response. Responses are too
//!   short to be fragmented.
//! - `IP_PKTINFO` on wildcard sockets only: responses must leave from the address that the request
//!   was sent to.
#![expect(unsafe_code, reason = "socket options that no safe crate offers")]

use std::io;
use std::mem::size_of;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use libc::c_int;
use socket2::{Domain, SockRef, Socket, Type};

use crate::types::Family;

/// The receive buffer to request, in bytes.
pub const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

/// How to bind a socket.
#[derive(Clone, Copy, Debug)]
pub struct UdpOptions {
    /// Whether several sockets may share the address, each getting a part of the datagrams.
    pub reuse_port: bool,
    /// The receive buffer to request, in bytes. The kernel may grant less without an error: compare
    /// [`BoundUdp::receive_buffer_bytes`].
    pub receive_buffer_bytes: usize,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self { reuse_port: true, receive_buffer_bytes: RECEIVE_BUFFER_BYTES }
    }
}

/// A bound, nonblocking UDP socket.
#[derive(Debug)]
pub struct BoundUdp {
    socket: UdpSocket,
    address: SocketAddr,
    receive_buffer_bytes: usize,
}

/// Memory of a socket, as the kernel counts it (`SO_MEMINFO`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketMemory {
    /// Bytes queued for reading, the kernel's own overhead included.
    pub queued_bytes: u64,
    /// Bytes at which the kernel starts to drop: twice the receive buffer, in the same unit.
    pub limit_bytes: u64,
    /// Exact number of datagrams dropped since the socket was bound, modulo 2^32.
    pub drops: u32,
}

/// Binds a UDP socket. Port 0 lets the kernel choose: see [`BoundUdp::address`].
///
/// # Errors
/// Errors of the system calls: the address is in use or not one of the host, the port is
/// privileged, no descriptors are left.
pub fn bind_udp(address: SocketAddr, options: &UdpOptions) -> io::Result<BoundUdp> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(options.reuse_port)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    prepare(&socket, address)?;
    let receive_buffer_bytes = enlarge_receive_buffer(&socket, options.receive_buffer_bytes)?;
    socket.bind(&address.into())?;
    let socket = UdpSocket::from(socket);
    let address = socket.local_addr()?;
    Ok(BoundUdp { socket, address, receive_buffer_bytes })
}

/// Takes over a UDP socket that another process has bound, with the datagrams that wait in it, and
/// sets all options that can still be set.
///
/// # Errors
/// Errors of the system calls; a socket of another kind.
pub fn adopt_udp(socket: OwnedFd, receive_buffer_bytes: usize) -> io::Result<BoundUdp> {
    let socket = Socket::from(socket);
    let address = socket.local_addr()?.as_socket();
    let Some(address) = address.filter(|_| socket.r#type().is_ok_and(|it| it == Type::DGRAM))
    else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    socket.set_nonblocking(true)?;
    socket.set_reuse_port(true)?;
    prepare(&socket, address)?;
    // The process that bound it may have been allowed a larger buffer than this one: never shrink
    // it.
    let kept = socket.recv_buffer_size()? / 2;
    let fresh = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    let has_less = kept < enlarge_receive_buffer(&fresh, receive_buffer_bytes)?;
    let receive_buffer_bytes =
        if has_less { enlarge_receive_buffer(&socket, receive_buffer_bytes)? } else { kept };
    Ok(BoundUdp { socket: socket.into(), address, receive_buffer_bytes })
}

/// Sets the options of a socket that is, or will be, bound to `address`, except its receive buffer.
fn prepare(socket: &Socket, address: SocketAddr) -> io::Result<()> {
    let (level, discover, probe, info) = match address {
        SocketAddr::V4(_) => {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE, libc::IP_PKTINFO)
        }
        SocketAddr::V6(_) => (
            libc::IPPROTO_IPV6,
            libc::IPV6_MTU_DISCOVER,
            libc::IPV6_PMTUDISC_PROBE,
            libc::IPV6_RECVPKTINFO,
        ),
    };
    set_option(socket, level, discover, &probe)?;
    if address.ip().is_unspecified() {
        set_option(socket, level, info, &1)?;
    }
    Ok(())
}

/// Requests a receive buffer beyond the sysctl's limit first, which requires CAP_NET_ADMIN, then
/// within it. Returns what the kernel granted, in the unit of the request (the kernel reports twice
/// that).
fn enlarge_receive_buffer(socket: &Socket, bytes: usize) -> io::Result<usize> {
    let asked = c_int::try_from(bytes).unwrap_or(c_int::MAX);
    if set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &asked).is_err() {
        socket.set_recv_buffer_size(bytes)?;
    }
    Ok(socket.recv_buffer_size()? / 2)
}

impl BoundUdp {
    /// Lets further sockets of this user share the address of a socket that was bound alone.
    /// Binding it alone first shows that no other socket had the address.
    ///
    /// # Errors
    /// Errors of the system call; none is expected.
    pub fn share(&self) -> io::Result<()> {
        SockRef::from(&self.socket).set_reuse_port(true)
    }

    /// The address that it is bound to, with the port that the kernel chose.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The family of its clients.
    pub fn family(&self) -> Family {
        Family::of(self.address.ip())
    }

    /// Whether it is bound to every address of the host, so that responses must name theirs.
    pub fn is_wildcard(&self) -> bool {
        self.address.ip().is_unspecified()
    }

    /// The receive buffer that the kernel granted, in bytes, in the unit of the request.
    pub fn receive_buffer_bytes(&self) -> usize {
        self.receive_buffer_bytes
    }

    /// The underlying socket.
    pub fn socket(&self) -> &UdpSocket {
        &self.socket
    }

    /// How full the receive queue is, and how many datagrams were dropped. A system call: call it
    /// about once a second.
    ///
    /// # Errors
    /// Errors of the system call; none is expected.
    pub fn memory(&self) -> io::Result<SocketMemory> {
        memory_of(&self.socket)
    }
}

impl AsFd for BoundUdp {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// As [`BoundUdp::memory`], for any socket.
///
/// # Errors
/// Errors of the system call, e.g. if this is not a socket.
pub fn memory_of(socket: impl AsFd) -> io::Result<SocketMemory> {
    // Indices in the array, see linux/sock_diag.h.
    const RECEIVE_QUEUED: usize = 0;
    const RECEIVE_LIMIT: usize = 1;
    const DROPS: usize = 8;
    let mut values = [0_u32; 9];
    let mut length = length_of::<[u32; 9]>();
    let fd = socket.as_fd().as_raw_fd();
    let (level, name) = (libc::SOL_SOCKET, libc::SO_MEMINFO);
    let values_at = values.as_mut_ptr().cast();
    // SAFETY: `length` bytes are at `values_at`, and the kernel writes no more than that.
    let result = unsafe { libc::getsockopt(fd, level, name, values_at, &raw mut length) };
    check(result)?;
    Ok(SocketMemory {
        queued_bytes: values[RECEIVE_QUEUED].into(),
        limit_bytes: values[RECEIVE_LIMIT].into(),
        drops: values[DROPS],
    })
}

/// Delays the choice of a local port from `bind` to `connect` (`IP_BIND_ADDRESS_NO_PORT`), when the
/// other side is known: ports are then limited per pair of addresses, not per source. For TCP
/// clients that bind an address and port 0.
///
/// # Errors
/// Errors of the system call, e.g. on a kernel older than 4.2.
pub fn choose_port_at_connect(socket: impl AsFd) -> io::Result<()> {
    set_option(&socket, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1)
}

/// How the kernel chooses among the sockets of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steering {
    /// By a hash of addresses and ports: no better method applies.
    Hash,
    /// Socket `cpu % n` for a datagram that is handled on `cpu` (`SO_ATTACH_REUSEPORT_CBPF`).
    CpuModulo,
    /// The socket whose worker runs on the CPU that handles the datagram, by hash where there is
    /// none (`SO_INCOMING_CPU`).
    IncomingCpu,
}

/// Delivers a datagram to the worker on the CPU that received it from the network, so that it stays
/// in that CPU's caches. `sockets` are all sockets of one address in bind order, which is the
/// kernel's index. `cpus[i]` is the CPU that the worker of `sockets[i]` is pinned to, if it is
/// pinned.
///
/// The modulo program spreads the datagrams of *every* CPU evenly, but socket `i` must be worker
/// `i` on CPU `i`: it is only used for CPUs 0..n in order. Any other pinning uses the hint, which
/// leaves datagrams of other CPUs to the hash. With one socket there is nothing to choose.
///
/// # Errors
/// Errors of the system call, e.g. on a kernel older than 4.6. Serving without steering is slower,
/// not wrong.
pub fn steer(sockets: &[&BoundUdp], cpus: &[Option<usize>]) -> io::Result<Steering> {
    let pinned: Option<Vec<usize>> = cpus.iter().copied().collect();
    let Some(pinned) = pinned.filter(|it| sockets.len() > 1 && it.len() == sockets.len()) else {
        return Ok(Steering::Hash);
    };
    if pinned.iter().copied().eq(0..sockets.len()) {
        attach_cpu_modulo(sockets[0], sockets.len())?;
        return Ok(Steering::CpuModulo);
    }
    for (socket, cpu) in sockets.iter().zip(pinned) {
        let cpu = c_int::try_from(cpu).map_err(io::Error::other)?;
        set_option(socket, libc::SOL_SOCKET, libc::SO_INCOMING_CPU, &cpu)?;
    }
    Ok(Steering::IncomingCpu)
}

/// Attaches `return cpu % n` to the group that `socket` belongs to.
fn attach_cpu_modulo(socket: &BoundUdp, n: usize) -> io::Result<()> {
    const INSTRUCTIONS: u16 = 3;
    let n = u32::try_from(n).map_err(io::Error::other)?;
    let instruction = |code, k| libc::sock_filter { code, jt: 0, jf: 0, k };
    let mut program: [_; INSTRUCTIONS as usize] = [
        instruction(op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS), CPU_OFFSET),
        instruction(op(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K), n),
        instruction(op(libc::BPF_RET | libc::BPF_A), 0),
    ];
    let program = libc::sock_fprog { len: INSTRUCTIONS, filter: program.as_mut_ptr() };
    set_option(socket, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &program)
}

/// Offset at which classic BPF reads the number of the CPU that it runs on.
#[expect(
    clippy::cast_sign_loss,
    reason = "the ABI's negative offset as the unsigned it is sent as"
)]
const CPU_OFFSET: u32 = (libc::SKF_AD_OFF + libc::SKF_AD_CPU) as u32;

/// A BPF instruction's code; all of them fit.
#[expect(clippy::cast_possible_truncation, reason = "codes are below 256")]
const fn op(code: u32) -> u16 {
    code as u16
}

fn set_option<T>(socket: &impl AsFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    let fd = socket.as_fd().as_raw_fd();
    let length = length_of::<T>();
    // SAFETY: `length` bytes are at `value`, and the kernel only reads them.
    let result =
        unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), length) };
    check(result)
}

/// A value's size in the type of socket options.
#[expect(clippy::cast_possible_truncation, reason = "option values are a few bytes")]
const fn length_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

/// Turns a system call's -1 into its error.
fn check(result: c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(address: &str) -> BoundUdp {
        bind_udp(address.parse().unwrap(), &UdpOptions::default()).unwrap()
    }

    #[test]
    fn the_kernel_says_what_it_dropped() {
        let options = UdpOptions { reuse_port: false, receive_buffer_bytes: 4096 };
        let udp = bind_udp("127.0.0.1:0".parse().unwrap(), &options).unwrap();
        assert_eq!(udp.memory().unwrap().drops, 0);
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..1000 {
            client.send_to(&[0; 98], udp.address()).unwrap();
        }
        let memory = udp.memory().unwrap();
        let mut kept = 0;
        while udp.socket().recv(&mut [0; 98]).is_ok() {
            kept += 1;
        }
        assert_eq!(memory.drops + kept, 1000);
        assert!(memory.queued_bytes > 0 && memory.limit_bytes < 65536, "{memory:?}");
        assert_eq!(udp.memory().unwrap().queued_bytes, 0);
    }

    #[test]
    fn an_adopted_socket_brings_what_waits_in_it() {
        let first = bind("127.0.0.1:0");
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        client.send_to(b"waits", first.address()).unwrap();
        let adopted = adopt_udp(first.socket().try_clone().unwrap().into(), 1 << 16).unwrap();
        let address = first.address();
        drop(first);
        let mut buffer = [0; 8];
        assert_eq!(adopted.socket().recv(&mut buffer).unwrap(), 5);
        assert_eq!((adopted.address(), adopted.receive_buffer_bytes() > 0), (address, true));
        let stream = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(adopt_udp(stream.into(), 1 << 16).is_err());
    }

    #[test]
    fn sockets_share_a_port_and_split_the_families() {
        let first = bind("0.0.0.0:0");
        let second = bind(&format!("0.0.0.0:{}", first.address().port()));
        assert_eq!(second.address(), first.address());
        assert!(first.is_wildcard() && first.receive_buffer_bytes() > 0);
        if UdpSocket::bind("[::1]:0").is_err() {
            return;
        }
        // A port that is free on all addresses of one family may be in use in the other.
        let split = (0..100).any(|_| {
            let first = bind("0.0.0.0:0");
            let same: SocketAddr = format!("[::]:{}", first.address().port()).parse().unwrap();
            bind_udp(same, &UdpOptions::default()).is_ok_and(|it| it.family() == Family::V6)
        });
        assert!(split);
    }

    #[test]
    fn a_bound_address_gets_its_port_when_it_connects() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let port = |it: &Socket| it.local_addr().unwrap().as_socket().unwrap().port();
        let bound = |late: bool| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            if late {
                choose_port_at_connect(&socket).unwrap();
            }
            socket.bind(&SocketAddr::from(([127, 0, 0, 9], 0)).into()).unwrap();
            socket
        };
        assert_ne!(port(&bound(false)), 0);
        let late = bound(true);
        assert_eq!(port(&late), 0);
        late.connect(&to.into()).unwrap();
        assert_ne!(port(&late), 0);
        assert_eq!(listener.accept().unwrap().1, late.local_addr().unwrap().as_socket().unwrap());
    }

    #[test]
    fn steering_depends_on_where_the_workers_run() {
        let first = bind("127.0.0.1:0");
        let second = bind(&first.address().to_string());
        let both = [&first, &second];
        assert_eq!(steer(&both, &[Some(0), Some(1)]).unwrap(), Steering::CpuModulo);
        assert_eq!(steer(&both, &[Some(1), Some(0)]).unwrap(), Steering::IncomingCpu);
        assert_eq!(steer(&both, &[None, Some(1)]).unwrap(), Steering::Hash);
        assert_eq!(steer(&both[..1], &[Some(0)]).unwrap(), Steering::Hash);
    }

    #[test]
    fn a_datagram_goes_to_the_socket_of_the_cpu_it_came_in_by() {
        use crate::sys::affinity::{pin, usable_cpus};
        if !usable_cpus().unwrap().starts_with(&[0, 1]) {
            return eprintln!("skipped: CPUs 0 and 1 are not ours");
        }
        let first = bind("127.0.0.1:0");
        let target = first.address();
        let sockets = [&first, &bind(&target.to_string())];
        steer(&sockets, &[Some(0), Some(1)]).unwrap();
        for (cpu, socket) in sockets.iter().enumerate() {
            let send = move || {
                pin(cpu).unwrap();
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                (0..20).for_each(|_| assert_eq!(client.send_to(b"here", target).unwrap(), 4));
            };
            std::thread::spawn(send).join().unwrap();
            let received = std::iter::from_fn(|| socket.socket().recv(&mut [0; 8]).ok());
            assert_eq!(received.count(), 20);
        }
    }
}
