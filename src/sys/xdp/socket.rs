//! AF_XDP sockets: a receive queue's frames, as far as the program redirects them, and frames to
//! send, in memory that this process shares with the kernel.
//!
//! Frames are of two kinds, half of them each. A frame to receive into is in the fill ring, with
//! the kernel, in the receive ring or in the batch, and goes back to the fill ring when the next
//! batch is taken. A frame of a response is in the list of free frames, in the send ring, with the
//! kernel or in the completion ring. Thus no ring can overflow.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rlimit::Resource;
use rustix::io::Errno;
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING,
    XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpOptionsFlags, XdpUmemReg,
    XdpUmemRegFlags,
};
use rustix::net::{self, AddressFamily, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::thread::{CapabilitySet, capabilities};

use super::kernel::{Map, MapKind, MapShape};
use super::rings::{Consumer, Producer};
use super::umem::{Descriptor, RECEIVE_FRAMES, SEND_FRAMES, Umem};
pub use super::umem::{FRAME_BYTES, RECEIVED_BYTES_MAX, UMEM_BYTES};

/// Most frames of a batch. Larger ones save nothing more, and delay the clock.
pub const BATCH: u32 = 64;

/// Why there is no AF_XDP socket.
#[derive(Debug, thiserror::Error)]
pub enum XskError {
    /// The process lacks `CAP_NET_RAW`.
    #[error("AF_XDP sockets need CAP_NET_RAW")]
    NotPermitted,
    /// The kernel was built without `CONFIG_XDP_SOCKETS`.
    #[error("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)")]
    NotSupported,
    /// The frames exceed the limit of locked memory.
    #[error(
        "{} MiB per AF_XDP socket exceed the limit of locked memory: raise RLIMIT_MEMLOCK \
         (LimitMEMLOCK= in systemd) or grant CAP_IPC_LOCK",
        UMEM_BYTES >> 20
    )]
    LockedMemory,
    /// Another AF_XDP socket has the queue, or had it a moment ago: the kernel frees a queue some
    /// time after its socket was closed.
    #[error("receive queue {queue} already has an AF_XDP socket: end the program that has it")]
    QueueTaken {
        /// The receive queue.
        queue: u32,
    },
    /// The interface has fewer queues, or is gone.
    #[error("the interface has no receive queue {queue}")]
    NoQueue {
        /// The receive queue.
        queue: u32,
    },
    /// Another error of a system call.
    #[error("{call}: {error}")]
    Failed {
        /// What was attempted.
        call: &'static str,
        /// The error.
        error: io::Error,
    },
}

/// How the kernel moves frames between an interface and a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum XskMode {
    /// The interface reads and writes the socket's memory.
    ZeroCopy,
    /// The kernel copies.
    Copy,
}

impl XskMode {
    /// The label used in metrics and logs.
    pub fn label(self) -> &'static str {
        self.into()
    }
}

/// How many sockets the limit on locked memory allows beside `reserved_bytes` of other memory that
/// is locked; `None`: there is no limit, or this process may exceed any.
pub fn sockets_max(reserved_bytes: u64) -> Option<usize> {
    let capabilities = capabilities(None);
    let may_exceed = capabilities.is_ok_and(|it| it.effective.contains(CapabilitySet::IPC_LOCK));
    let limit = Resource::MEMLOCK.get_soft().ok().filter(|it| *it != rlimit::INFINITY);
    let sockets = limit?.saturating_sub(reserved_bytes) / UMEM_BYTES as u64;
    (!may_exceed).then(|| usize::try_from(sockets).unwrap_or(usize::MAX))
}

/// The interface and queue of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XskQueue {
    /// The interface's index.
    pub interface: u32,
    /// The receive queue; responses leave by the send queue of the same number.
    pub queue: u32,
    /// Whether zero copy is tried. Not beside a program that is attached in generic mode, which
    /// never sees the frames that the interface writes to shared memory.
    pub zero_copy: bool,
}

/// What the kernel counted since the socket was bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XskStatistics {
    /// Redirected frames that were dropped because the receive ring was full.
    pub ring_full: u64,
    /// Redirected frames that were dropped for other reasons: there was no frame to receive into,
    /// or it was too short.
    pub dropped: u64,
    /// Times that the kernel had no frame to receive into: it drops a frame then, or waits.
    pub fill_empty: u64,
    /// Entries of rings that the kernel refused. Always 0, unless this module has an error.
    pub invalid: u64,
}

/// A socket with its memory, before it is bound to a receive queue.
///
/// Capabilities: [`Self::open`] needs `CAP_NET_RAW`, and `CAP_IPC_LOCK` if the limit of locked
/// memory is too low. Everything else that is done with sockets needs none: those that are opened
/// before privileges are dropped can be bound afterwards. But before Linux 5.19 [`XskMap::insert`]
/// and [`XskMap::remove`] need `CAP_BPF` if `kernel.unprivileged_bpf_disabled` is set.
pub struct UnboundXsk(Box<XskSocket>);

/// A socket that is bound to a receive queue.
pub struct XskSocket {
    socket: OwnedFd,
    // These two are placeholders until the socket is bound.
    queue: u32,
    mode: XskMode,
    fill: Producer<u64>,
    completed: Consumer<u64>,
    received: Consumer<Descriptor>,
    sent: Producer<Descriptor>,
    /// Frames of responses. The one used last is taken first: it is in the CPU's caches.
    free: Vec<u64>,
    batch: Vec<Descriptor>,
    umem: Umem,
}

impl UnboundXsk {
    /// Opens a socket, and locks its memory.
    ///
    /// # Errors
    /// [`XskError`].
    pub fn open() -> Result<Self, XskError> {
        let failed = |call| move |errno: Errno| XskError::Failed { call, error: errno.into() };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let opened = net::socket_with(AddressFamily::XDP, SocketType::RAW, flags, None);
        let socket = opened.map_err(|errno| match errno {
            Errno::PERM => XskError::NotPermitted,
            Errno::AFNOSUPPORT => XskError::NotSupported,
            errno => failed("open an AF_XDP socket")(errno),
        })?;
        let map_failed = |error| XskError::Failed { call: "map memory", error };
        let umem = Umem::new().map_err(map_failed)?;
        sockopt::set_xdp_umem_reg(&socket, registration(&umem)).map_err(|errno| match errno {
            Errno::NOBUFS => XskError::LockedMemory,
            errno => failed("register memory")(errno),
        })?;
        set_ring_sizes(&socket).map_err(failed("set the sizes of rings"))?;
        let offsets = sockopt::xdp_mmap_offsets(&socket).map_err(failed("find the rings"))?;
        let fd = socket.as_fd();
        let (fill, completed, received, sent) = (|| {
            Ok((
                Producer::map(fd, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, RECEIVE_FRAMES)?,
                Consumer::map(fd, XDP_UMEM_PGOFF_COMPLETION_RING, &offsets.cr, SEND_FRAMES)?,
                Consumer::map(fd, XDP_PGOFF_RX_RING, &offsets.rx, RECEIVE_FRAMES)?,
                Producer::map(fd, XDP_PGOFF_TX_RING, &offsets.tx, SEND_FRAMES)?,
            ))
        })()
        .map_err(map_failed)?;
        let (queue, mode) = (0, XskMode::Copy);
        let (free, batch) = (Umem::send_frames().collect(), Vec::with_capacity(BATCH as usize));
        let mut this =
            XskSocket { socket, queue, mode, fill, completed, received, sent, free, batch, umem };
        Umem::receive_frames().for_each(|frame| this.fill.push(frame));
        this.fill.publish();
        Ok(Self(Box::new(this)))
    }

    /// Binds the socket to a receive queue: with zero copy where it is to be tried and the driver
    /// has it, else with copies. It receives nothing before [`XskMap::insert`].
    ///
    /// # Errors
    /// [`XskError`], with the socket, which can be bound later or elsewhere.
    pub fn bind(mut self, queue: XskQueue) -> Result<XskSocket, (Self, XskError)> {
        match bind(&self.0.socket, queue) {
            Ok(mode) => {
                (self.0.queue, self.0.mode) = (queue.queue, mode);
                Ok(*self.0)
            }
            Err(error) => Err((self, error)),
        }
    }
}

impl XskSocket {
    /// How frames are moved.
    pub fn mode(&self) -> XskMode {
        self.mode
    }

    /// Takes the next batch of received frames, without a system call, and returns its size. The
    /// frames of the former batch are the kernel's again.
    #[inline]
    pub fn receive(&mut self) -> usize {
        for frame in self.batch.drain(..) {
            // A received frame begins behind the headroom.
            self.fill.push(frame.address - frame.address % u64::from(FRAME_BYTES));
        }
        self.fill.publish();
        self.completed.take(SEND_FRAMES, |frame| self.free.push(frame));
        self.received.take(BATCH, |frame| self.batch.push(frame));
        self.batch.len()
    }

    /// A frame of the batch.
    ///
    /// # Panics
    /// If `index` is not below the batch's size.
    #[inline]
    pub fn frame(&self, index: usize) -> &[u8] {
        self.umem.received(self.batch[index])
    }

    /// A frame of the batch, and room for the frame that answers it: [`FRAME_BYTES`] bytes, with
    /// content of earlier ones.
    ///
    /// # Panics
    /// If `index` is not below the batch's size.
    #[inline]
    pub fn frame_and_room(&mut self, index: usize) -> (&[u8], &mut [u8]) {
        let free = *self.free.last().expect("one frame is never sent");
        self.umem.received_and_send(self.batch[index], free)
    }

    /// Queues the frame whose first `bytes` bytes are in the room. False if too many frames are
    /// with the kernel: the last free one stays, as room for responses that cannot be sent.
    ///
    /// # Panics
    /// If `bytes` exceeds [`FRAME_BYTES`].
    #[inline]
    pub fn send(&mut self, bytes: usize) -> bool {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        assert!(bytes <= FRAME_BYTES, "{bytes} bytes do not fit a frame");
        let [_, .., address] = self.free[..] else { return false };
        self.free.pop();
        self.sent.push(Descriptor { address, bytes, options: 0 });
        true
    }

    /// Has the kernel send the queued frames, as far as the interface takes them; the rest stays
    /// queued.
    ///
    /// # Errors
    /// `ENETDOWN` while the interface is down, `ENXIO` once it is gone.
    pub fn flush(&mut self) -> io::Result<()> {
        self.sent.publish();
        let mut queued = self.sent.untaken();
        // With copies, the kernel sends 32 frames at once.
        while queued > 0 && self.sent.needs_wakeup() {
            match net::send(&self.socket, &[], SendFlags::DONTWAIT) {
                Ok(_) | Err(Errno::AGAIN | Errno::BUSY | Errno::NOBUFS | Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let left = self.sent.untaken();
            if left == queued {
                return Ok(());
            }
            queued = left;
        }
        Ok(())
    }

    /// Frames that wait to be taken by [`Self::receive`].
    pub fn waiting(&self) -> u32 {
        self.received.waiting()
    }

    /// How full the receive ring is, in thousandths.
    pub fn waiting_permille(&self) -> u32 {
        self.waiting() * 1000 / RECEIVE_FRAMES
    }

    /// Frames that wait to be taken by the kernel.
    pub fn unsent(&self) -> u32 {
        self.sent.untaken()
    }

    /// What the kernel counted. A system call.
    ///
    /// # Errors
    /// Errors of the system call; none is expected.
    pub fn statistics(&self) -> io::Result<XskStatistics> {
        let counted = sockopt::xdp_statistics(&self.socket)?;
        Ok(XskStatistics {
            ring_full: counted.rx_ring_full.unwrap_or(0),
            fill_empty: counted.rx_fill_ring_empty_descs.unwrap_or(0),
            dropped: counted.rx_dropped,
            invalid: counted.rx_invalid_descs + counted.tx_invalid_descs,
        })
    }
}

impl AsFd for XskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn registration(umem: &Umem) -> XdpUmemReg {
    XdpUmemReg {
        addr: umem.address(),
        len: UMEM_BYTES as u64,
        chunk_size: FRAME_BYTES,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    }
}

/// Each ring has room for all frames that can be in it.
fn set_ring_sizes(socket: &OwnedFd) -> rustix::io::Result<()> {
    sockopt::set_xdp_umem_fill_ring_size(socket, RECEIVE_FRAMES)?;
    sockopt::set_xdp_umem_completion_ring_size(socket, SEND_FRAMES)?;
    sockopt::set_xdp_rx_ring_size(socket, RECEIVE_FRAMES)?;
    sockopt::set_xdp_tx_ring_size(socket, SEND_FRAMES)
}

/// Binds a socket. Without a flag for either mode the kernel tries zero copy first, and falls back
/// to copies whatever the reason.
fn bind(socket: &OwnedFd, queue: XskQueue) -> Result<XskMode, XskError> {
    let XskQueue { interface, queue, zero_copy } = queue;
    let mut flags = SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
    flags.set(SocketAddrXdpFlags::XDP_COPY, !zero_copy);
    let address = SocketAddrXdp::new(flags, interface, queue);
    net::bind(socket, &address).map_err(|errno| match errno {
        Errno::BUSY => XskError::QueueTaken { queue },
        Errno::INVAL | Errno::NODEV => XskError::NoQueue { queue },
        errno => XskError::Failed { call: "bind an AF_XDP socket", error: errno.into() },
    })?;
    let options = sockopt::xdp_options(socket).map_err(|errno| XskError::Failed {
        call: "read the options of an AF_XDP socket",
        error: errno.into(),
    })?;
    let is_shared = options.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY);
    Ok(if is_shared { XskMode::ZeroCopy } else { XskMode::Copy })
}

/// The sockets of an interface by receive queue, as the program finds them. The kernel removes a
/// socket that is closed.
#[derive(Clone, Debug)]
pub struct XskMap(Arc<Map>);

impl XskMap {
    /// A map for so many receive queues, without sockets.
    ///
    /// # Errors
    /// Errors of the system call: `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`.
    pub fn create(queues: u32) -> io::Result<Self> {
        let (kind, entries_max) = (MapKind::XdpSockets, queues);
        Map::create(MapShape { kind, key_bytes: 4, value_bytes: 4, entries_max })
            .map(|map| Self(Arc::new(map)))
    }

    pub(super) fn descriptor(&self) -> i32 {
        self.0.descriptor()
    }

    /// Has the program redirect what arrives on the socket's queue to the socket.
    ///
    /// # Errors
    /// Errors of the system call: `E2BIG` if the map has no such queue.
    pub fn insert(&self, socket: &XskSocket) -> io::Result<()> {
        use std::os::fd::AsRawFd as _;
        let descriptor = socket.socket.as_raw_fd();
        self.0.set(&socket.queue.to_ne_bytes(), &descriptor.to_ne_bytes())
    }

    /// Has the program pass again what arrives on the socket's queue. What was redirected before
    /// reaches the socket within a moment.
    ///
    /// # Errors
    /// Errors of the system call; none is expected.
    pub fn remove(&self, socket: &XskSocket) -> io::Result<()> {
        self.0.remove(&socket.queue.to_ne_bytes())
    }
}
