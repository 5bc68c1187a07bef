//! AF_XDP sockets in a datagram worker, beside ordinary ones.
//!
//! One `poll` waits for all of them. Those that are ready take turns, one batch each, before the
//! next `poll`. Ordinary sockets are served with recvmmsg whatever the backend is elsewhere: they
//! get what the program does not redirect, and a second way to wait, in an io_uring, is not worth
//! it for them.
//!
//! A frame is a request with its headers, and its response is written into another frame, at the
//! same offset. Frames that cannot be understood are counted and dropped: they were taken from the
//! kernel, and there is no way back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::counters::{FrameEvent, WorkerCounters};
use crate::sys::readiness::Readiness;
use crate::sys::socket::BoundUdp;
use crate::sys::xdp::frame::{FrameDatagram, FrameError};
use crate::sys::xdp::socket::{BATCH, XskMap, XskSocket, XskStatistics};
use crate::worker::datagram::{DatagramIo, ReceivedDatagram, send_event};
use crate::worker::mmsg::{Batches, next_ready};

/// An AF_XDP socket, and the map by which the program of its interface finds it.
pub struct XdpPort {
    /// The interface's index.
    interface: u32,
    socket: XskSocket,
    map: XskMap,
    /// Frames that were queued in this turn.
    queued: u64,
    /// Whether the kernel left frames queued that it will send once it is asked again.
    is_behind: bool,
    /// What of the kernel's statistics has been counted.
    counted: XskStatistics,
}

impl XdpPort {
    /// A socket of this interface that gets frames once its worker runs.
    pub fn new(interface: u32, socket: XskSocket, map: XskMap) -> Self {
        let counted = XskStatistics::default();
        Self { interface, socket, map, queued: 0, is_behind: false, counted }
    }

    /// Has the kernel send what is queued.
    #[inline]
    fn flush(&mut self, counters: &WorkerCounters) {
        if self.queued == 0 && !self.is_behind {
            return;
        }
        counters.frames(FrameEvent::Sent).add(self.queued);
        self.queued = 0;
        let flushed = self.socket.flush();
        self.is_behind = flushed.is_ok() && self.socket.unsent() > 0;
        if let Err(error) = flushed {
            counters.io_event(send_event(error.raw_os_error())).add(1);
        }
    }

    /// Counts what the kernel dropped since the last call.
    fn count_dropped(&mut self, counters: &WorkerCounters) {
        let Ok(now) = self.socket.statistics() else { return };
        for (event, before, now) in [
            (FrameEvent::RingFull, self.counted.ring_full, now.ring_full),
            (FrameEvent::Dropped, self.counted.dropped, now.dropped),
            (FrameEvent::FillEmpty, self.counted.fill_empty, now.fill_empty),
        ] {
            counters.frames(event).add(now - before);
        }
        self.counted = now;
    }
}

/// The AF_XDP sockets that another thread gives to a worker, and those that it takes away.
#[derive(Default)]
pub struct XdpPorts {
    changes: Mutex<PortChanges>,
    are_new: AtomicBool,
}

#[derive(Default)]
struct PortChanges {
    /// Indices of interfaces whose sockets are to be closed.
    removed: Vec<u32>,
    /// Sockets that are to be served, the removed interfaces' new ones among them.
    added: Vec<XdpPort>,
}

impl XdpPorts {
    /// Gives the worker a socket.
    pub fn add(&self, port: XdpPort) {
        self.lock().added.push(port);
        self.are_new.store(true, Ordering::Release);
    }

    /// Has the worker serve what reached the sockets of an interface, and close them.
    pub fn remove(&self, interface: u32) {
        let mut changes = self.lock();
        changes.added.retain(|port| port.interface != interface);
        changes.removed.push(interface);
        self.are_new.store(true, Ordering::Release);
    }

    /// Whether the worker's sockets are to be changed.
    #[inline]
    pub(super) fn are_new(&self) -> bool {
        self.are_new.load(Ordering::Acquire)
    }

    /// Changes the worker's sockets.
    pub(super) fn apply(&self, ports: &mut Vec<XdpPort>) {
        let PortChanges { removed, added } = {
            let mut changes = self.lock();
            self.are_new.store(false, Ordering::Release);
            std::mem::take(&mut *changes)
        };
        ports.retain(|port| !removed.contains(&port.interface));
        ports.extend(added);
    }

    fn lock(&self) -> MutexGuard<'_, PortChanges> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// AF_XDP sockets and ordinary ones.
pub(crate) struct XdpBackend<'a> {
    ports: Vec<XdpPort>,
    sockets: &'a [BoundUdp],
    batches: Batches<'a>,
    /// Watches the ports, then the sockets.
    readiness: Readiness,
    /// The port of the current batch; `None` if the batch is a socket's.
    current: Option<usize>,
    /// The datagrams of the current port's batch, each with the number of its frame.
    datagrams: Vec<(usize, FrameDatagram)>,
}

impl<'a> XdpBackend<'a> {
    pub(crate) fn new(sockets: &'a [BoundUdp], ports: Vec<XdpPort>) -> Self {
        let datagrams = Vec::with_capacity(BATCH as usize);
        let (readiness, batches) = (watch(&ports, sockets), Batches::new(sockets));
        Self { ports, sockets, batches, readiness, current: None, datagrams }
    }

    /// The AF_XDP sockets. What reached them has been served.
    pub(crate) fn into_ports(self) -> Vec<XdpPort> {
        self.ports
    }

    /// Takes the next batch of a port: the number of its datagrams.
    #[inline]
    fn receive_frames(&mut self, port: usize, counters: &WorkerCounters) -> usize {
        self.current = Some(port);
        self.datagrams.clear();
        let socket = &mut self.ports[port].socket;
        let count = socket.receive();
        counters.frames(FrameEvent::Received).add(count as u64);
        for index in 0..count {
            match FrameDatagram::parse(socket.frame(index)) {
                Ok(datagram) => self.datagrams.push((index, datagram)),
                Err(FrameError::BadChecksum) => counters.frames(FrameEvent::BadChecksum).add(1),
                Err(FrameError::NotUnderstood) => counters.frames(FrameEvent::NotUnderstood).add(1),
            }
        }
        self.datagrams.len()
    }
}

/// Watches ports, then sockets.
fn watch(ports: &[XdpPort], sockets: &[BoundUdp]) -> Readiness {
    let ports = ports.iter().map(|port| port.socket.as_fd());
    let all: Vec<BorrowedFd<'_>> = ports.chain(sockets.iter().map(AsFd::as_fd)).collect();
    Readiness::new(&all)
}

impl DatagramIo for XdpBackend<'_> {
    #[inline]
    fn turn(&mut self, wait: Duration, counters: &WorkerCounters) -> io::Result<usize> {
        self.batches.flush(counters);
        self.ports.iter_mut().for_each(|port| port.flush(counters));
        let Some(ready) = next_ready(&mut self.readiness, wait)? else { return Ok(0) };
        if let Some(socket) = ready.checked_sub(self.ports.len()) {
            self.current = None;
            return Ok(self.batches.receive(socket, counters));
        }
        Ok(self.receive_frames(ready, counters))
    }

    #[inline]
    fn payload(&self, index: usize) -> &[u8] {
        let Some(port) = self.current else { return self.batches.payload(index) };
        let (frame, datagram) = &self.datagrams[index];
        &self.ports[port].socket.frame(*frame)[datagram.payload()]
    }

    #[inline]
    fn datagram(&mut self, index: usize) -> ReceivedDatagram<'_> {
        let Some(port) = self.current else { return self.batches.datagram(index) };
        let (frame, datagram) = &self.datagrams[index];
        let (request, room) = self.ports[port].socket.frame_and_room(*frame);
        ReceivedDatagram {
            source: Some(datagram.source()),
            payload: &request[datagram.payload()],
            truncated: false,
            out: &mut room[datagram.payload().start..],
        }
    }

    #[inline]
    fn respond(&mut self, index: usize, bytes: usize) -> bool {
        let Some(port) = self.current else {
            self.batches.respond(index, bytes);
            return true;
        };
        let (frame, datagram) = &self.datagrams[index];
        let port = &mut self.ports[port];
        let (request, room) = port.socket.frame_and_room(*frame);
        let bytes = datagram.write_response(request, bytes, room);
        let is_queued = port.socket.send(bytes);
        port.queued += u64::from(is_queued);
        is_queued
    }

    /// The programs pass what arrives from now on: ordinary sockets keep it, as they do in other
    /// backends. What was redirected before is still taken.
    fn stop_receiving(&mut self) {
        for port in &self.ports {
            // What is redirected nevertheless waits in the ring until the worker continues.
            let _ = port.map.remove(&port.socket);
        }
        self.readiness = watch(&self.ports, &[]);
    }

    fn is_quiet(&self) -> bool {
        let is_quiet = |port: &XdpPort| port.socket.waiting() == 0 && port.socket.unsent() == 0;
        self.batches.is_flushed() && self.ports.iter().all(is_quiet)
    }

    fn inspect_rings(&mut self, counters: &WorkerCounters) -> u32 {
        self.ports.iter_mut().for_each(|port| port.count_dropped(counters));
        self.ports.iter().map(|port| port.socket.waiting_permille()).max().unwrap_or(0)
    }

    /// Has the programs redirect to the ports.
    fn receive_again(&mut self) {
        for port in &self.ports {
            // Otherwise everything goes on reaching the ordinary sockets.
            let _ = port.map.insert(&port.socket);
        }
        self.readiness = watch(&self.ports, self.sockets);
    }
}
