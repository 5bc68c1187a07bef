//! Tests whether io_uring works on this host, with real traffic. If not, names the cause and a
//! remedy.
//!
//! Container runtimes deny io_uring, sysctls switch it off, old kernels lack parts of it. A query
//! of features shows little of that, so a ring set up as in the workers sends a datagram to itself.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use super::ring::{Ring, RingEvent};
use super::ring_host::{RingHost, RingOptions};
use super::socket::{BoundUdp, UdpOptions, bind_udp};

/// Why io_uring cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UringDenial {
    /// ENOSYS: no such system call, or a filter that returns this error.
    Missing,
    /// The sysctl `kernel.io_uring_disabled` has this value.
    Sysctl(u8),
    /// A seccomp filter denies it.
    Seccomp,
    /// A security module or a hypervisor denies it.
    Denied,
    /// The process may not lock enough memory.
    MemoryLimit,
    /// The process, or the host, has no descriptors left.
    Descriptors,
    /// The kernel lacks a required feature.
    OldKernel,
    /// There is no loopback, or the datagram did not return over it.
    NoTraffic,
    /// Anything else.
    Other,
}

impl UringDenial {
    /// The labels of all causes, in their order.
    pub const LABELS: [&str; 9] = [
        "missing",
        "sysctl",
        "seccomp",
        "denied",
        "memory_limit",
        "descriptors",
        "old_kernel",
        "no_traffic",
        "other",
    ];

    /// The label used in metrics.
    pub fn label(self) -> &'static str {
        let place = match self {
            Self::Missing => 0,
            Self::Sysctl(_) => 1,
            Self::Seccomp => 2,
            Self::Denied => 3,
            Self::MemoryLimit => 4,
            Self::Descriptors => 5,
            Self::OldKernel => 6,
            Self::NoTraffic => 7,
            Self::Other => 8,
        };
        Self::LABELS[place]
    }

    /// What is wrong, then how to fix it.
    fn texts(self) -> (&'static str, &'static str) {
        match self {
            Self::Missing => (
                "the kernel has no io_uring, or a seccomp profile hides it (as Podman's does)",
                "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp \
                 profile, or run a kernel from 6.1 on with CONFIG_IO_URING",
            ),
            Self::Sysctl(1) => (
                "the sysctl kernel.io_uring_disabled = 1 reserves it for privileged processes",
                "set kernel.io_uring_disabled = 0, or kernel.io_uring_group to a group of the \
                 skep user",
            ),
            Self::Sysctl(_) => (
                "the sysctl kernel.io_uring_disabled = 2 switches it off",
                "set kernel.io_uring_disabled = 0",
            ),
            Self::Seccomp => (
                "a seccomp profile denies it (as those of Docker and containerd do)",
                "allow io_uring_setup, io_uring_enter and io_uring_register in the profile",
            ),
            Self::Denied => (
                "it is denied, by neither seccomp nor sysctl: a security module or the sandbox",
                "allow it in the security policy",
            ),
            Self::MemoryLimit => (
                "it may not lock enough memory",
                "raise the limit (ulimit -l, LimitMEMLOCK=64M) or the cgroup's memory",
            ),
            Self::Descriptors => (
                "no file descriptor is left for it",
                "raise the limit (LimitNOFILE, ulimit -n), or the host's sysctl fs.file-max",
            ),
            Self::OldKernel => ("the kernel is too old for it", "run a kernel from 6.1 on"),
            Self::NoTraffic => (
                "a datagram sent to ourselves over loopback did not arrive",
                "see that the loopback interface is up and no packet filter drops on it",
            ),
            Self::Other => ("it fails unexpectedly", "please report this"),
        }
    }
}

/// io_uring cannot be used. The text names the cause and a remedy.
#[derive(Debug, thiserror::Error)]
#[error("io_uring is not usable: {} ({source}); remedy: {}", cause.texts().0, cause.texts().1)]
pub struct UringProbeError {
    cause: UringDenial,
    source: io::Error,
}

impl UringProbeError {
    /// Why io_uring cannot be used.
    pub fn cause(&self) -> UringDenial {
        self.cause
    }
}

/// Tests io_uring exactly as the workers use it. Takes milliseconds, or a second if datagrams are
/// lost.
///
/// # Errors
/// [`UringProbeError`] if io_uring does not work.
pub fn probe() -> Result<(), UringProbeError> {
    let attempt =
        || exchange().map_err(|source| UringProbeError { cause: cause_here(&source), source });
    // On a thread of its own: some milliseconds after a ring ends, the kernel interrupts the thread
    // that used it once more, and the caller's next system call would fail with EINTR.
    let thread = std::thread::Builder::new().name("probe".into()).spawn(attempt);
    let failed = |source| UringProbeError { cause: UringDenial::Other, source };
    let panicked = |_| Err(failed(io::Error::other("the probe panicked")));
    thread.map_err(failed)?.join().unwrap_or_else(panicked)
}

/// Sends a datagram over loopback to a ring, which sends it back.
fn exchange() -> io::Result<()> {
    let server = [bind_loopback()?];
    let client = UdpSocket::bind(SocketAddr::new(server[0].address().ip(), 0))?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    client.connect(server[0].address())?;
    client.send(b"skep?")?;
    let options = RingOptions::default();
    let mut host = RingHost::new(&options)?;
    let mut ring = Ring::start(&mut host, &server, &options)?;
    let mut failure = None;
    let mut note = |event| {
        if let RingEvent::ReceiveFailed(errno) | RingEvent::SendFailed(errno) = event {
            failure.get_or_insert(errno);
        }
    };
    // The first turn may do no more than arm the receive.
    const TURNS: u32 = 10;
    for _ in 0..TURNS {
        if ring.turn(Duration::from_millis(100), &mut note)? > 0 {
            let received = ring.datagram(0);
            let bytes = received.payload.len();
            received.out[..bytes].copy_from_slice(received.payload);
            ring.respond(0, bytes);
            break;
        }
    }
    ring.turn(Duration::ZERO, &mut note)?;
    if let Some(errno) = failure {
        return Err(io::Error::from_raw_os_error(errno));
    }
    let mut answer = [0; 8];
    let bytes = client.recv(&mut answer).unwrap_or(0);
    if answer[..bytes] == *b"skep?" { Ok(()) } else { Err(io::ErrorKind::TimedOut.into()) }
}

fn bind_loopback() -> io::Result<BoundUdp> {
    let options = UdpOptions { reuse_port: false, receive_buffer_bytes: 1 << 16 };
    bind_udp((Ipv4Addr::LOCALHOST, 0).into(), &options)
        .or_else(|_| bind_udp((Ipv6Addr::LOCALHOST, 0).into(), &options))
}

/// Finds the cause from the sysctl and the process status of this host.
fn cause_here(error: &io::Error) -> UringDenial {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let sysctl = read("/proc/sys/kernel/io_uring_disabled").trim().parse().unwrap_or(0);
    diagnose(error, sysctl, &read("/proc/thread-self/status"))
}

/// Finds the cause from an error, the sysctl and the text of `/proc/thread-self/status`.
fn diagnose(error: &io::Error, sysctl: u8, status: &str) -> UringDenial {
    const CAP_SYS_ADMIN: u32 = 21;
    let field = |name| status.lines().find_map(|line: &str| line.strip_prefix(name)).map(str::trim);
    let filtered = field("Seccomp:") == Some("2");
    let effective = field("CapEff:").and_then(|it| u64::from_str_radix(it, 16).ok()).unwrap_or(0);
    let privileged = effective >> CAP_SYS_ADMIN & 1 == 1;
    match error.raw_os_error() {
        Some(libc::ENOSYS) => UringDenial::Missing,
        Some(libc::EPERM) if sysctl >= 2 => UringDenial::Sysctl(sysctl),
        Some(libc::EPERM) if sysctl == 1 && !privileged => UringDenial::Sysctl(1),
        Some(libc::EPERM) if filtered => UringDenial::Seccomp,
        Some(libc::EPERM | libc::EACCES) => UringDenial::Denied,
        Some(libc::ENOMEM) => UringDenial::MemoryLimit,
        Some(libc::EMFILE | libc::ENFILE) => UringDenial::Descriptors,
        Some(libc::EINVAL) => UringDenial::OldKernel,
        Some(libc::ENETUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL) => UringDenial::NoTraffic,
        None if error.kind() == io::ErrorKind::TimedOut => UringDenial::NoTraffic,
        _ => UringDenial::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "CapEff:\t0000000000000000\nSeccomp:\t0\n";
    const FILTERED: &str = "CapEff:\t0000000000000000\nSeccomp:\t2\n";
    const ROOT_FILTERED: &str = "CapEff:\t000001ffffffffff\nSeccomp:\t2\n";

    fn cause(errno: i32, sysctl: u8, status: &str) -> UringDenial {
        diagnose(&io::Error::from_raw_os_error(errno), sysctl, status)
    }

    #[test]
    fn causes_are_told_apart() {
        assert_eq!(cause(libc::ENOSYS, 0, PLAIN), UringDenial::Missing);
        assert_eq!(cause(libc::EPERM, 2, ROOT_FILTERED), UringDenial::Sysctl(2));
        assert_eq!(cause(libc::EPERM, 1, FILTERED), UringDenial::Sysctl(1));
        assert_eq!(cause(libc::EPERM, 1, ROOT_FILTERED), UringDenial::Seccomp);
        assert_eq!(cause(libc::EPERM, 0, FILTERED), UringDenial::Seccomp);
        assert_eq!(cause(libc::EPERM, 0, PLAIN), UringDenial::Denied);
        assert_eq!(cause(libc::EPERM, 0, ""), UringDenial::Denied);
        assert_eq!(cause(libc::ENOMEM, 0, PLAIN), UringDenial::MemoryLimit);
        assert_eq!(cause(libc::EINVAL, 0, PLAIN), UringDenial::OldKernel);
        assert_eq!(cause(libc::EMFILE, 0, PLAIN), UringDenial::Descriptors);
        assert_eq!(cause(libc::ENFILE, 0, PLAIN), UringDenial::Descriptors);
        assert_eq!(cause(libc::EIO, 0, PLAIN), UringDenial::Other);
        for errno in [libc::ENETUNREACH, libc::ENETDOWN, libc::EADDRNOTAVAIL] {
            assert_eq!(cause(errno, 0, PLAIN), UringDenial::NoTraffic);
        }
        let silence = io::ErrorKind::TimedOut.into();
        assert_eq!(diagnose(&silence, 0, PLAIN), UringDenial::NoTraffic);
    }

    #[test]
    fn what_works_is_found_to_work_again_and_again() {
        // Rings, registrations and buffers must all be freed: a thread may hold 16 rings.
        for _ in 0..40 {
            match probe() {
                Ok(()) => {}
                Err(error) => {
                    assert_ne!(error.cause(), UringDenial::Other, "{error}");
                    eprintln!("skipped: {error}");
                }
            }
        }
    }
}
