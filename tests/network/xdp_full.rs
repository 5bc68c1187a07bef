//! AF_XDP sockets beside ordinary ones, end to end: a worker in one network namespace, clients in
//! another, and a pair of virtual interfaces between them.
//!
//! Needs `CAP_BPF`, `CAP_NET_ADMIN`, `CAP_NET_RAW` and `unshare`, and is skipped without them; with
//! `SKEP_REQUIRE_EXTERNAL=1` that is a failure.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use rustix::thread::{
    CapabilitySet, CapabilitySets, LinkNameSpaceType, move_into_link_name_space, set_capabilities,
};
use rustix::time::{ClockId, clock_gettime};
use skep::counters::{FrameEvent, WorkerCounters};
use skep::frontend::Responder;
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KeyPair};
use skep::frontend::udp::UdpFrontend;
use skep::protocol::udp::TransactionId;
use skep::protocol::udp::client::{encode_announce, encode_scrape};
use skep::store::Store;
use skep::sys::clock::Clock;
use skep::sys::interfaces::index_of;
use skep::sys::probe::probe;
use skep::sys::socket::{BoundUdp, UdpOptions, bind_udp};
use skep::sys::xdp::frame::FrameDatagram;
use skep::sys::xdp::kernel::{AttachMode, XdpLink};
use skep::sys::xdp::offload::{
    Offload, OffloadKeys, OffloadProgram, OffloadSettings, OffloadVerdict,
};
use skep::sys::xdp::socket::{
    RECEIVED_BYTES_MAX, UMEM_BYTES, UnboundXsk, XskError, XskMap, XskMode, XskQueue, XskSocket,
};
use skep::time::Now;
use skep::tracker::Tracker;
use skep::types::{DatagramResponse, Dropped, Family, InfoHash};
use skep::worker::datagram::{DatagramBackend, DatagramWorker};
use skep::worker::pause_signal::PauseSignal;
use skep::worker::xdp::{XdpPort, XdpPorts};
use socket2::{Domain, Protocol, Socket, Type};

use crate::support::namespaces::{self, ip, new_namespace, pass_all};
use crate::support::{DEADLINE, eventually, leecher, skip};
use crate::xdp_frames::{Frame, checksum, client, server};

const KEY: [u8; 32] = [7; 32];
/// The loopback interface, in every namespace.
const LOOPBACK: u32 = 1;

/// Runs the test of this name in a namespace of its own, where it is `test`.
fn in_a_namespace(name: &str, test: impl FnOnce()) {
    if namespaces::in_a_namespace(module_path!(), name) {
        test();
    }
}

/// A second namespace, and a pair of interfaces: `skep0` here, `skep1` there.
pub(crate) struct Wire {
    /// Ends when its input does.
    pub(crate) holder: Child,
    /// Its program, without which an interface of this kind takes nothing from a program.
    _there: XdpLink,
}

impl Wire {
    pub(crate) fn new(queues: u32) -> Self {
        let holder = new_namespace();
        let id = holder.id();
        let sizes = format!("numtxqueues {queues} numrxqueues {queues}");
        ip(&format!("link add skep0 {sizes} type veth peer name skep1 {sizes} netns {id}"));
        ip("addr add 192.0.2.9/24 dev skep0");
        ip("addr add 2001:db8::9/128 dev skep0 nodad");
        ip("link set skep0 up");
        within(&holder, || {
            ip("addr add 198.51.100.7/24 dev skep1");
            ip("addr add 2001:db8:1:2:3:4:5:6/128 dev skep1 nodad");
            ip("link set skep1 up");
            ip("route add 192.0.2.0/24 dev skep1");
            ip("route add 2001:db8::9/128 dev skep1");
        });
        ip("route add 198.51.100.0/24 dev skep0");
        ip("route add 2001:db8:1::/48 dev skep0");
        let there = within(&holder, || pass_all("skep1"));
        Self { holder, _there: there }
    }

    /// A client's socket for the server's address of this family.
    pub(crate) fn client(&self, source: SocketAddr) -> UdpSocket {
        let socket = within(&self.holder, || UdpSocket::bind(source).unwrap());
        socket.connect(server(if source.is_ipv4() { 4 } else { 6 })).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        socket
    }

    /// Sends a packet as it is, from IP's header on.
    fn send(&self, target: SocketAddr, packet: &[u8]) {
        let domain = Domain::for_address(target);
        let whole = Protocol::from(libc::IPPROTO_RAW);
        let raw = within(&self.holder, || Socket::new(domain, Type::RAW, Some(whole)).unwrap());
        raw.send_to(packet, &SocketAddr::new(target.ip(), 0).into()).unwrap();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        ip("link del skep0");
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// Works in the namespace of a process.
pub(crate) fn within<T: Send>(holder: &Child, work: impl FnOnce() -> T + Send) -> T {
    let namespace = std::fs::File::open(format!("/proc/{}/ns/net", holder.id())).unwrap();
    let enter = || {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(enter).join().unwrap())
}

fn interface(name: &str) -> u32 {
    index_of(name).unwrap()
}

/// What a front end was asked, and what it answered.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Exchange {
    source: SocketAddr,
    request: Vec<u8>,
    response: Vec<u8>,
}

/// A tracker's front end that keeps what it did.
struct Recorder {
    frontend: UdpFrontend,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
}

impl Responder for Recorder {
    const PREFETCH_STAGES: usize = UdpFrontend::PREFETCH_STAGES;

    fn prefetch(&mut self, stage: usize, datagram: &[u8]) {
        self.frontend.prefetch(stage, datagram);
    }

    fn handle(
        &mut self,
        now: Now,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<DatagramResponse, Dropped> {
        let verdict = self.frontend.handle(now, source, datagram, out);
        let response = verdict.map_or(0, |it| it.bytes);
        let (request, response) = (datagram.to_vec(), out[..response].to_vec());
        self.exchanges.lock().unwrap().push(Exchange { source, request, response });
        verdict
    }

    fn upkeep(&mut self, now: Now) {
        self.frontend.upkeep(now);
    }

    fn set_queue(&mut self, queue_permille: u32) {
        self.frontend.set_queue(queue_permille);
    }
}

/// The program on `skep0`, which knows the server's addresses.
struct Gate {
    program: OffloadProgram,
    map: XskMap,
    clock: Clock,
    _offload: Offload,
    _link: XdpLink,
}

impl Gate {
    fn new(mode: AttachMode, queues: u32, asks_routes: bool) -> Self {
        let map = XskMap::create(queues).unwrap();
        let mut offload = Offload::create().unwrap();
        let program = offload.load(&map).unwrap();
        let clock = Clock::start();
        let uptime = clock_gettime(ClockId::Monotonic);
        let uptime_ns = (uptime.tv_sec * 1_000_000_000 + uptime.tv_nsec).cast_unsigned();
        let settings = OffloadSettings {
            keys: OffloadKeys { active: [7; 16], staging: None },
            clock_offset_ns: clock.now().ns() - uptime_ns,
            limit: None,
            seed: [1, 2],
            asks_routes,
        };
        offload.set(settings).unwrap();
        offload.set_targets([4, 6].map(server)).unwrap();
        let link = program.attach(interface("skep0"), mode).unwrap();
        Self { program, map, clock, _offload: offload, _link: link }
    }

    fn count(&self, verdict: OffloadVerdict) -> u64 {
        let counts = self.program.counts().unwrap();
        Family::ALL.map(|family| counts.of(verdict, family).datagrams).iter().sum()
    }

    /// An AF_XDP socket on queue 0, for a worker.
    fn port(&self, mode: AttachMode) -> XdpPort {
        XdpPort::new(interface("skep0"), bind(queue_of(mode)), self.map.clone())
    }

    /// An id that the program takes for genuine.
    fn id(&self, source: SocketAddr) -> u64 {
        ids().issue(self.clock.now(), source.ip())
    }
}

fn ids() -> ConnectionIds {
    ConnectionIds::new(&KeyPair { active: KEY, staging: None, algorithm: Algorithm::SipHash })
}

/// A socket on a queue, which another may have had a moment ago.
pub(crate) fn bind(queue: XskQueue) -> XskSocket {
    let (mut unbound, mut bound) = (UnboundXsk::open().ok(), None);
    eventually("the queue is free", || match unbound.take().unwrap().bind(queue) {
        Ok(socket) => {
            bound = Some(socket);
            true
        }
        Err((socket, error)) => {
            assert!(matches!(error, XskError::QueueTaken { .. }), "{error}");
            unbound = Some(socket);
            false
        }
    });
    bound.unwrap()
}

/// Queue 0 of the interface with the program.
pub(crate) fn queue_of(mode: AttachMode) -> XskQueue {
    let zero_copy = mode == AttachMode::Native;
    XskQueue { interface: interface("skep0"), queue: 0, zero_copy }
}

/// A worker with an AF_XDP socket on queue 0, and ordinary sockets.
struct Server {
    sockets: Arc<Vec<BoundUdp>>,
    counters: Arc<WorkerCounters>,
    pause: Arc<PauseSignal>,
    ports: Arc<XdpPorts>,
    stop: Arc<AtomicBool>,
    exchanges: Arc<Mutex<Vec<Exchange>>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    fn start(gate: &Gate, mode: AttachMode) -> Self {
        Self::start_on(gate, mode, DatagramBackend::Mmsg)
    }

    fn start_on(gate: &Gate, mode: AttachMode, backend: DatagramBackend) -> Self {
        let ports = Arc::new(XdpPorts::default());
        ports.add(gate.port(mode));
        let bind = |family| bind_udp(server(family), &UdpOptions::default()).unwrap();
        let sockets = Arc::new([4, 6].map(bind).into_iter().collect::<Vec<_>>());
        let store = Arc::new(Store::new(Default::default()));
        let tracker = Tracker::new(store, Default::default(), 1, 0, 1);
        let frontend = UdpFrontend::new(tracker, Arc::new(ArcSwap::from_pointee(ids())));
        let exchanges = Arc::<Mutex<Vec<Exchange>>>::default();
        let mut recorder = Recorder { frontend, exchanges: Arc::clone(&exchanges) };
        let (counters, stop) = (Arc::<WorkerCounters>::default(), Arc::<AtomicBool>::default());
        let (pause, clock) = (Arc::<PauseSignal>::default(), gate.clock);
        let control = (Arc::clone(&stop), Arc::clone(&pause), Arc::clone(&ports));
        let shared = (Arc::clone(&sockets), Arc::clone(&counters));
        let thread = std::thread::spawn(move || {
            let ((stop, pause, ports), (sockets, counters)) = (control, shared);
            let (sockets, clock) = (&sockets[..], &clock);
            DatagramWorker { backend, sockets, clock, counters: &counters, stop: &stop }
                .run_with_xdp(&mut recorder, &pause, &ports)
        });
        let server = Self { sockets, counters, pause, ports, stop, exchanges, thread };
        eventually("the worker runs", || server.counters.turns.get() > 0);
        server
    }

    fn frames(&self, event: FrameEvent) -> u64 {
        self.counters.frames(event).get()
    }

    /// The last exchange with a client.
    fn last(&self, client: &UdpSocket) -> Exchange {
        let source = client.local_addr().unwrap();
        let exchanges = self.exchanges.lock().unwrap();
        exchanges.iter().rfind(|it| it.source == source).cloned().unwrap()
    }

    /// Datagrams received, and those with a response or a reason for none.
    fn sums(&self) -> (u64, u64) {
        let families = Family::ALL.map(|family| {
            let of = self.counters.datagrams(family);
            let judged = of.answered.iter().chain(&of.refused).chain(&of.dropped);
            (of.received.get(), judged.map(|it| it.get()).sum::<u64>())
        });
        families.into_iter().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1))
    }

    /// Stops the worker.
    fn finish(self) -> Arc<WorkerCounters> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap();
        self.counters
    }
}

fn ask(client: &UdpSocket, request: &[u8]) -> Vec<u8> {
    client.send(request).unwrap();
    receive(client)
}

pub(crate) fn receive(client: &UdpSocket) -> Vec<u8> {
    let mut response = [0; 2048];
    let bytes = client.recv(&mut response).unwrap();
    response[..bytes].to_vec()
}

fn announce(id: u64) -> Vec<u8> {
    let mut request = [0; 98];
    let bytes = encode_announce(id, TransactionId([2; 4]), &leecher(5, 6881), &mut request);
    request[..bytes].to_vec()
}

fn scrape(id: u64) -> Vec<u8> {
    let (mut request, hashes) = ([0; 56], [InfoHash([5; 20]), InfoHash([6; 20])]);
    let bytes = encode_scrape(id, TransactionId([3; 4]), &hashes, &mut request);
    request[..bytes].to_vec()
}

/// A packet of IPv4 with an option: four times nothing.
fn with_options(packet: &[u8]) -> Vec<u8> {
    let mut packet = [&packet[..20], &[1; 4], &packet[20..]].concat();
    packet[0] = 0x46;
    let length = u16::try_from(packet.len()).unwrap();
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet[10..12].fill(0);
    let sum = checksum(&packet[..24]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet
}

#[test]
fn a_queue_has_one_socket_and_errors_name_their_cause() {
    let queue = |queue| XskQueue { interface: LOOPBACK, queue, zero_copy: true };
    let first = match UnboundXsk::open() {
        Ok(first) => first,
        Err(error @ (XskError::NotPermitted | XskError::LockedMemory)) => {
            return skip(&error.to_string());
        }
        Err(error) => panic!("{error}"),
    };
    let first = first.bind(queue(0)).map_err(|it| it.1).unwrap();
    assert_eq!(first.mode(), XskMode::Copy, "loopback has no zero copy");
    assert_eq!(first.statistics().unwrap(), Default::default());
    let mut second = UnboundXsk::open().ok();
    let mut refused = |queue| {
        let (socket, error) = second.take().unwrap().bind(queue).err().unwrap();
        second = Some(socket);
        error
    };
    let text = refused(queue(0)).to_string();
    assert!(text.starts_with("receive queue 0 already has an AF_XDP socket"), "{text}");
    assert!(matches!(refused(queue(1)), XskError::NoQueue { queue: 1 }));
    let nowhere = XskQueue { interface: u32::MAX >> 1, queue: 0, zero_copy: false };
    assert!(matches!(refused(nowhere), XskError::NoQueue { queue: 0 }));
    drop(first);
    bind(queue(0));
}

#[test]
fn sockets_that_are_open_need_no_capability() {
    in_a_namespace("sockets_that_are_open_need_no_capability", || {
        ip("link set lo up");
        let queue = XskQueue { interface: LOOPBACK, queue: 0, zero_copy: true };
        let map = XskMap::create(1).unwrap();
        let limit = (UMEM_BYTES / 2) as u64;
        rlimit::setrlimit(rlimit::Resource::MEMLOCK, limit, limit).unwrap();
        keep(CapabilitySet::NET_RAW | CapabilitySet::IPC_LOCK);
        let socket = UnboundXsk::open().unwrap();
        keep(CapabilitySet::NET_RAW);
        let text = UnboundXsk::open().err().unwrap().to_string();
        assert!(text.starts_with("8 MiB per AF_XDP socket exceed the limit"), "{text}");
        keep(CapabilitySet::empty());
        assert!(matches!(UnboundXsk::open(), Err(XskError::NotPermitted)));
        let mut socket = socket.bind(queue).map_err(|it| it.1).unwrap();
        map.insert(&socket).unwrap();
        assert_eq!(socket.receive(), 0);
        assert!(socket.send(60));
        socket.flush().unwrap();
        assert_eq!(socket.unsent(), 0);
        assert_eq!(socket.statistics().unwrap().invalid, 0);
        map.remove(&socket).unwrap();
    });
}

/// Gives up all capabilities of this thread but these.
fn keep(capabilities: CapabilitySet) {
    let (effective, permitted) = (capabilities, capabilities);
    let sets = CapabilitySets { effective, permitted, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets).unwrap();
}

#[test]
fn what_is_redirected_is_answered_as_by_a_socket() {
    in_a_namespace("what_is_redirected_is_answered_as_by_a_socket", || {
        for mode in [AttachMode::Native, AttachMode::Generic] {
            let wire = Wire::new(1);
            let gate = Gate::new(mode, 1, false);
            let worker = Server::start(&gate, mode);
            [4, 6].into_iter().for_each(|family| converse(&wire, &gate, &worker, family));
            check_options(&wire, &gate, &worker);
            eventually("all is sent", || worker.frames(FrameEvent::Sent) == 6);
            assert_eq!(worker.frames(FrameEvent::Received), gate.count(OffloadVerdict::Redirected));
            assert_eq!(worker.frames(FrameEvent::Received), 8);
            assert_eq!(worker.frames(FrameEvent::BadChecksum), 2);
            // Two connects and a packet with options came by sockets.
            assert_eq!(worker.sums(), (9, 9));
            let counters = worker.finish();
            for event in [FrameEvent::NotUnderstood, FrameEvent::RingFull, FrameEvent::Dropped] {
                assert_eq!(counters.frames(event).get(), 0, "{event:?}");
            }
        }
    });
}

/// A connect, announces and scrapes of one family.
fn converse(wire: &Wire, gate: &Gate, worker: &Server, family: u8) {
    let socket = wire.client(client(family));
    let (frames, redirected) =
        (worker.frames(FrameEvent::Received), gate.count(OffloadVerdict::Redirected));
    // What a process of this host sends has no checksum yet, with which a program answers nothing.
    let connected = ask(&socket, &Frame::connect(family).payload);
    assert_eq!(worker.last(&socket).response, connected);
    assert_eq!(worker.frames(FrameEvent::Received), frames);
    let id = connected[8..].try_into().map(u64::from_be_bytes).unwrap();
    for request in [announce(id), scrape(id)] {
        let response = ask(&socket, &request);
        let exchange = Exchange { source: client(family), request, response };
        assert_eq!(worker.last(&socket), exchange);
    }
    // As from a network: with a checksum.
    let send = |frame: Frame| wire.send(server(family), &frame.bytes()[frame.ip_at()..]);
    let answered = gate.count(OffloadVerdict::Answered);
    send(Frame::connect(family));
    assert_eq!(receive(&socket), connected, "the program's answer");
    assert_eq!(gate.count(OffloadVerdict::Answered), answered + 1);
    let spoiled = Frame::new(family, announce(id));
    let mut bytes = spoiled.bytes();
    *bytes.last_mut().unwrap() ^= 1;
    wire.send(server(family), &bytes[spoiled.ip_at()..]);
    send(Frame::new(family, announce(id)));
    assert_eq!(receive(&socket), worker.last(&socket).response);
    assert_eq!(gate.count(OffloadVerdict::Redirected), redirected + 4);
    assert_eq!(worker.frames(FrameEvent::Received), frames + 4);
}

fn check_options(wire: &Wire, gate: &Gate, worker: &Server) {
    let socket = wire.client(client(4));
    let request = Frame::new(4, announce(gate.id(client(4))));
    let frames = worker.frames(FrameEvent::Received);
    wire.send(server(4), &with_options(&request.bytes()[request.ip_at()..]));
    assert_eq!(receive(&socket), worker.last(&socket).response);
    assert_eq!(worker.frames(FrameEvent::Received), frames);
}

#[test]
fn a_queue_without_an_af_xdp_socket_is_answered_by_ordinary_ones() {
    in_a_namespace("a_queue_without_an_af_xdp_socket_is_answered_by_ordinary_ones", || {
        const CLIENTS: u64 = 60;
        let wire = Wire::new(2);
        let gate = Gate::new(AttachMode::Native, 2, false);
        let worker = Server::start(&gate, AttachMode::Native);
        for _ in 0..CLIENTS {
            let socket = wire.client(SocketAddr::new(client(4).ip(), 0));
            let response = ask(&socket, &announce(gate.id(client(4))));
            assert_eq!(response, worker.last(&socket).response);
        }
        assert_eq!(worker.sums(), (CLIENTS, CLIENTS));
        let (redirected, passed) =
            (gate.count(OffloadVerdict::Redirected), gate.count(OffloadVerdict::PassedGenuine));
        assert_eq!(redirected + passed, CLIENTS);
        assert_eq!(worker.frames(FrameEvent::Received), redirected);
        assert!(redirected > 0 && passed > 0, "{redirected} {passed}");
        worker.finish();
    });
}

#[test]
fn responses_follow_the_routes_where_they_are_asked() {
    in_a_namespace("responses_follow_the_routes_where_they_are_asked", || {
        for family in ["ipv4", "ipv6"] {
            // The kernel answers questions for routes on interfaces that forward.
            std::fs::write(format!("/proc/sys/net/{family}/conf/all/forwarding"), "1").unwrap();
        }
        let wire = Wire::new(1);
        let gate = Gate::new(AttachMode::Native, 1, true);
        let worker = Server::start(&gate, AttachMode::Native);
        let of = |verdict| gate.count(verdict);
        ip("link add skep2 type veth peer name skep3");
        ip("link set skep2 up");
        ip("link set skep3 up");
        for (family, network) in [(4, "198.51.100.0/24"), (6, "2001:db8:1::/48")] {
            let socket = wire.client(client(family));
            let request = announce(gate.id(client(family)));
            // The first response makes the client's station known, if it is not yet.
            assert_eq!(ask(&socket, &request), worker.last(&socket).response);
            let (redirected, unknown) =
                (of(OffloadVerdict::Redirected), of(OffloadVerdict::PassedNoRoute));
            assert_eq!(ask(&socket, &request), worker.last(&socket).response);
            assert_eq!(of(OffloadVerdict::Redirected), redirected + 1);
            let station = "lladdr 02:00:00:00:00:03 nud permanent";
            ip(&format!("neigh replace {} {station} dev skep2", client(family).ip()));
            ip(&format!("route replace {network} dev skep2"));
            socket.send(&request).unwrap();
            eventually("it passes", || of(OffloadVerdict::PassedNoRoute) == unknown + 1);
            ip(&format!("route replace {network} dev skep0"));
        }
        worker.finish();
    });
}

#[test]
fn a_paused_worker_leaves_requests_to_the_ordinary_sockets() {
    in_a_namespace("a_paused_worker_leaves_requests_to_the_ordinary_sockets", || {
        let wire = Wire::new(1);
        let gate = Gate::new(AttachMode::Native, 1, false);
        let worker = Server::start(&gate, AttachMode::Native);
        let socket = wire.client(client(4));
        let request = announce(gate.id(client(4)));
        ask(&socket, &request);
        assert_eq!(gate.count(OffloadVerdict::Redirected), 1);
        worker.pause.request();
        eventually("the worker pauses", || worker.pause.paused() == 1);
        socket.send(&request).unwrap();
        eventually("the request waits", || worker.sockets[0].memory().unwrap().queued_bytes > 0);
        assert_eq!(gate.count(OffloadVerdict::Redirected), 1);
        worker.pause.end();
        assert_eq!(receive(&socket), worker.last(&socket).response);
        ask(&socket, &request);
        assert_eq!(gate.count(OffloadVerdict::Redirected), 2);
        assert_eq!(worker.sums(), (3, 3));
        worker.finish();
        socket.send(&request).unwrap();
        eventually("the program passes", || gate.count(OffloadVerdict::PassedGenuine) == 2);
    });
}

#[test]
fn sockets_are_replaced_while_requests_arrive() {
    in_a_namespace("sockets_are_replaced_while_requests_arrive", || {
        let wire = Wire::new(1);
        let gate = Gate::new(AttachMode::Native, 1, false);
        let mut backends = vec![DatagramBackend::Mmsg];
        // The probe sends over it.
        ip("link set lo up");
        match probe() {
            Ok(()) => backends.push(DatagramBackend::Uring),
            Err(error) => skip(&error.to_string()),
        }
        for backend in backends {
            let worker = Server::start_on(&gate, AttachMode::Native, backend);
            let socket = wire.client(client(4));
            let request = announce(gate.id(client(4)));
            let is_over = AtomicBool::new(false);
            let asked = std::thread::scope(|scope| {
                let asker = scope.spawn(|| {
                    (0..)
                        .take_while(|_| {
                            assert_eq!(ask(&socket, &request), worker.last(&socket).response);
                            !is_over.load(Ordering::Relaxed)
                        })
                        .count()
                });
                for _ in 0..3 {
                    let redirected = gate.count(OffloadVerdict::Redirected);
                    eventually("frames are redirected", || {
                        gate.count(OffloadVerdict::Redirected) > redirected
                    });
                    worker.ports.remove(interface("skep0"));
                    let passed = gate.count(OffloadVerdict::PassedGenuine);
                    eventually("they pass", || gate.count(OffloadVerdict::PassedGenuine) > passed);
                    worker.ports.add(gate.port(AttachMode::Native));
                }
                is_over.store(true, Ordering::Relaxed);
                asker.join().unwrap()
            });
            let asked = 1 + asked as u64;
            assert_eq!(worker.sums(), (asked, asked));
            worker.finish();
        }
    });
}

#[test]
fn a_frame_that_is_too_long_for_the_memory_passes() {
    in_a_namespace("a_frame_that_is_too_long_for_the_memory_passes", || {
        let wire = Wire::new(1);
        ip("link set skep0 mtu 1900");
        within(&wire.holder, || ip("link set skep1 mtu 1900"));
        let gate = Gate::new(AttachMode::Native, 1, false);
        let mut port = bind(queue_of(AttachMode::Native));
        gate.map.insert(&port).unwrap();
        for family in [4, 6] {
            let send = |frame_bytes: usize| {
                let mut frame = Frame::announce(family, gate.id(client(family)));
                frame.payload.resize(frame_bytes - frame.udp_at() - 8, 0);
                wire.send(server(family), &frame.bytes()[frame.ip_at()..]);
            };
            let longest = RECEIVED_BYTES_MAX as usize;
            send(longest);
            eventually("the frame arrives", || port.receive() == 1);
            assert_eq!(port.frame(0).len(), longest);
            assert_eq!(FrameDatagram::parse(port.frame(0)).unwrap().source(), client(family));
            let passed = gate.count(OffloadVerdict::PassedGenuine);
            send(longest + 1);
            eventually("it passes", || gate.count(OffloadVerdict::PassedGenuine) == passed + 1);
        }
        assert_eq!(gate.count(OffloadVerdict::Redirected), 2);
        assert_eq!(port.statistics().unwrap(), Default::default());
    });
}

#[test]
fn what_an_af_xdp_socket_cannot_take_is_counted() {
    in_a_namespace("what_an_af_xdp_socket_cannot_take_is_counted", || {
        let wire = Wire::new(1);
        let gate = Gate::new(AttachMode::Native, 1, false);
        let mut port = bind(queue_of(AttachMode::Native));
        gate.map.insert(&port).unwrap();
        let socket = wire.client(client(4));
        let request = announce(gate.id(client(4)));
        let lost = |port: &XskSocket| {
            let counted = port.statistics().unwrap();
            assert_eq!(counted.invalid, 0);
            counted.ring_full + counted.dropped
        };
        eventually("the ring overflows", || {
            (0..100).for_each(|_| assert_eq!(socket.send(&request).unwrap(), request.len()));
            lost(&port) > 0
        });
        let mut received = 0;
        eventually("every frame is counted", || {
            received += port.receive() as u64;
            received + lost(&port) == gate.count(OffloadVerdict::Redirected)
        });
        assert_eq!(port.receive(), 0);
        assert!(received >= 2048, "{received}");
        // All frames are there to be received into again.
        for _ in 0..3000 {
            socket.send(&request).unwrap();
            eventually("a frame arrives", || port.receive() == 1);
            assert!(port.frame(0).ends_with(&request));
        }
    });
}
