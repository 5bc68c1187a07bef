//! The golden conversations on the wire: from the addresses that they name, through the program for
//! XDP, to a worker. What is answered in the kernel, through an AF_XDP socket and through ordinary
//! sockets has the bytes that the files have.
//!
//! Needs what `xdp_full.rs` needs.

use std::collections::{BTreeSet, HashMap};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::time::{ClockId, clock_gettime};
use skep::counters::{FrameEvent, WorkerCounters};
use skep::frontend::Responder;
use skep::frontend::udp::UdpFrontend;
use skep::sys::clock::Clock;
use skep::sys::interfaces::index_of;
use skep::sys::socket::{UdpOptions, bind_udp};
use skep::sys::xdp::kernel::AttachMode;
use skep::sys::xdp::offload::{
    Offload, OffloadKeys, OffloadProgram, OffloadSettings, OffloadVerdict,
};
use skep::sys::xdp::socket::XskMap;
use skep::time::Now;
use skep::types::{DatagramResponse, Dropped, Family};
use skep::worker::datagram::{DatagramBackend, DatagramWorker};
use skep::worker::pause_signal::PauseSignal;
use skep::worker::xdp::{XdpPort, XdpPorts};

use crate::support::conversations::{
    Case, START, Step, bytes, cases, frontend, key, text, with_id,
};
use crate::support::namespaces::{in_a_namespace, ip, succeed};
use crate::support::{DEADLINE, eventually};
use crate::xdp_frames::server;
use crate::xdp_full::{Wire, bind, queue_of, receive, within};

const FAMILIES: [u8; 2] = [4, 6];

/// The front end of the conversation at present, and its moment.
struct Current {
    frontend: UdpFrontend,
    now: Now,
}

/// A worker's responder, which takes the conversation's moment for that of the worker.
struct Golden(Arc<Mutex<Current>>);

impl Responder for Golden {
    const PREFETCH_STAGES: usize = UdpFrontend::PREFETCH_STAGES;

    fn prefetch(&mut self, stage: usize, datagram: &[u8]) {
        self.0.lock().unwrap().frontend.prefetch(stage, datagram);
    }

    fn handle(
        &mut self,
        _now: Now,
        source: SocketAddr,
        datagram: &[u8],
        out: &mut [u8],
    ) -> Result<DatagramResponse, Dropped> {
        let mut current = self.0.lock().unwrap();
        let now = current.now;
        current.frontend.handle(now, source, datagram, out)
    }

    fn upkeep(&mut self, _now: Now) {}

    fn set_queue(&mut self, _queue_permille: u32) {}
}

/// Where clients are.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// Behind a wire, in the namespace at its other end.
    Network(&'a Wire),
    /// In this namespace.
    Host,
}

/// All conversations with one worker, behind a program.
struct Replay<'a> {
    place: Place<'a>,
    offload: Offload,
    program: OffloadProgram,
    counters: Arc<WorkerCounters>,
    current: Arc<Mutex<Current>>,
    clients: HashMap<SocketAddr, UdpSocket>,
    /// Requests without a response so far, by reason.
    silences: HashMap<String, u64>,
}

impl Replay<'_> {
    /// Sets the moment of the conversation, in the kernel and for the worker.
    fn set_now(&self, now: Now) {
        let uptime = clock_gettime(ClockId::Monotonic);
        let uptime_ns = (uptime.tv_sec * 1_000_000_000 + uptime.tv_nsec).cast_unsigned();
        let settings = OffloadSettings {
            keys: OffloadKeys { active: std::array::from_fn(|at| key()[at]), staging: None },
            clock_offset_ns: now.ns() - uptime_ns,
            limit: None,
            seed: [1, 2],
            asks_routes: false,
        };
        self.offload.set(settings).unwrap();
        self.current.lock().unwrap().now = now;
    }

    fn client(&mut self, source: SocketAddr) -> &UdpSocket {
        let place = self.place;
        self.clients.entry(source).or_insert_with(|| {
            let bind = || UdpSocket::bind(source).unwrap();
            let socket = match place {
                Place::Network(wire) => within(&wire.holder, bind),
                Place::Host => bind(),
            };
            socket.connect(server(family_of(source))).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            socket
        })
    }

    /// Requests that were dropped for a reason, in the kernel or by the worker.
    fn dropped(&self, reason: &str) -> u64 {
        let counts = self.program.counts().unwrap();
        let verdict = OffloadVerdict::ALL.iter().find(|it| it.label() == reason);
        let of_program = Family::ALL
            .iter()
            .filter_map(|family| Some(counts.of(*verdict?, *family).datagrams))
            .sum::<u64>();
        let kind = Dropped::ALL.iter().find(|it| it.label() == reason).unwrap();
        let of = |family| self.counters.datagrams(family).dropped[*kind as usize].get();
        of_program + Family::ALL.map(of).iter().sum::<u64>()
    }

    fn count(&self, verdict: OffloadVerdict) -> u64 {
        let counts = self.program.counts().unwrap();
        Family::ALL.map(|family| counts.of(verdict, family).datagrams).iter().sum()
    }

    /// Replays a conversation with a tracker that knows nothing.
    fn run(&mut self, case: &Case) {
        self.current.lock().unwrap().frontend = frontend();
        self.set_now(START);
        let mut now = START;
        let mut source = SocketAddr::from(([198, 51, 100, 254], 1));
        let mut ids = HashMap::new();
        for (line, step) in &case.steps {
            let at = format!("{}.hex:{line}", case.name);
            match step {
                Step::From(next) => source = *next,
                Step::Url(_) => {}
                Step::Wait(seconds) => {
                    now = now.plus_s(*seconds);
                    self.set_now(now);
                }
                Step::Request(hex) => {
                    let request = with_id(hex, || self.id(&mut ids, source));
                    assert_eq!(self.client(source).send(&request).unwrap(), request.len());
                }
                Step::Response(hex) => {
                    let response = receive(self.client(source));
                    if hex.contains("{id}") {
                        ids.insert(source.ip(), id_in(&response));
                    }
                    let expected = with_id(hex, || ids[&source.ip()]);
                    assert_eq!(text(&response), text(&expected), "{at}");
                }
                Step::Silence(reason) => {
                    let expected = self.silences.get(reason).unwrap_or(&0) + 1;
                    self.silences.insert(reason.clone(), expected);
                    eventually(&at, || self.dropped(reason) >= expected);
                    assert_eq!(self.dropped(reason), expected, "{at}");
                }
            }
        }
        for client in self.clients.values() {
            client.set_nonblocking(true).unwrap();
            let more = client.recv(&mut [0; 2048]).map_err(|it| it.kind());
            assert_eq!(more, Err(ErrorKind::WouldBlock), "{}: a response too many", case.name);
            client.set_nonblocking(false).unwrap();
        }
    }

    /// The id of a client's address; connects first where it has none.
    fn id(&mut self, ids: &mut HashMap<IpAddr, u64>, source: SocketAddr) -> u64 {
        *ids.entry(source.ip()).or_insert_with(|| {
            let client = self.client(source);
            client.send(&bytes("0000041727101980 00000000 00000000")).unwrap();
            id_in(&receive(client))
        })
    }
}

/// The id in a response to a connect.
fn id_in(response: &[u8]) -> u64 {
    assert_eq!((response.len(), &response[..4]), (16, &[0; 4][..]), "{response:02x?}");
    u64::from_be_bytes(response[8..].try_into().unwrap())
}

fn family_of(source: SocketAddr) -> u8 {
    if source.is_ipv4() { 4 } else { 6 }
}

/// Gives an interface the addresses of all clients.
fn add_clients(cases: &[Case], interface: &str) {
    let steps = cases.iter().flat_map(|case| &case.steps);
    let sources: BTreeSet<IpAddr> = steps
        .filter_map(|(_, step)| match step {
            Step::From(source) => Some(source.ip()),
            _ => None,
        })
        .collect();
    assert!(sources.iter().any(IpAddr::is_ipv4) && sources.iter().any(IpAddr::is_ipv6));
    for source in sources {
        match source {
            IpAddr::V4(_) => ip(&format!("addr add {source}/32 dev {interface}")),
            IpAddr::V6(_) => ip(&format!("addr add {source}/128 dev {interface} nodad")),
        };
    }
}

/// Replays all conversations through a program on an interface, and an AF_XDP socket if `is_full`.
fn replay<'a>(
    cases: &[Case],
    place: Place<'a>,
    (interface, mode, is_full): (&str, AttachMode, bool),
) -> (Replay<'a>, Arc<WorkerCounters>) {
    let map = XskMap::create(1).unwrap();
    let mut offload = Offload::create().unwrap();
    let program = offload.load(&map).unwrap();
    offload.set_targets(FAMILIES.map(server)).unwrap();
    let current = Arc::new(Mutex::new(Current { frontend: frontend(), now: START }));
    let ports = XdpPorts::default();
    let index = index_of(interface).unwrap();
    let (counters, stop) = (Arc::<WorkerCounters>::default(), AtomicBool::new(false));
    let (clients, silences) = Default::default();
    let (shared, drops) = (Arc::clone(&current), Arc::clone(&counters));
    let mut replay =
        Replay { place, offload, program, counters: drops, current, clients, silences };
    replay.set_now(START);
    let _link = replay.program.attach(index, mode).unwrap();
    if is_full {
        ports.add(XdpPort::new(index, bind(queue_of(mode)), map));
    }
    let sockets = FAMILIES.map(|it| bind_udp(server(it), &UdpOptions::default()).unwrap());
    let (clock, pause) = (Clock::start(), PauseSignal::default());
    std::thread::scope(|scope| {
        let worker = DatagramWorker {
            backend: DatagramBackend::Mmsg,
            sockets: &sockets,
            clock: &clock,
            counters: &counters,
            stop: &stop,
        };
        let (pause, ports) = (&pause, &ports);
        let work = move || worker.run_with_xdp(&mut Golden(shared), pause, ports).unwrap();
        let worker = scope.spawn(work);
        eventually("the worker runs", || counters.turns.get() > 0);
        let replayed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cases.iter().for_each(|case| replay.run(case));
        }));
        stop.store(true, Ordering::Relaxed);
        worker.join().unwrap();
        replayed.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    (replay, counters)
}

#[test]
fn every_conversation_is_as_written_through_a_wire() {
    const NAME: &str = "every_conversation_is_as_written_through_a_wire";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    let cases = cases();
    let wire = Wire::new(1);
    within(&wire.holder, || {
        add_clients(&cases, "skep1");
        // As from a network: with a checksum.
        succeed(Command::new("ethtool").args(["-K", "skep1", "tx", "off"]));
    });
    ip("route add default dev skep0");
    ip("-6 route add default dev skep0");
    for mode in [AttachMode::Native, AttachMode::Generic] {
        for is_full in [false, true] {
            let through = ("skep0", mode, is_full);
            let (replay, counters) = replay(&cases, Place::Network(&wire), through);
            let [genuine, redirected] = [OffloadVerdict::PassedGenuine, OffloadVerdict::Redirected]
                .map(|it| replay.count(it));
            // Each case has a connect, and nearly each something genuine.
            let used = if is_full { (0, redirected) } else { (genuine, 0) };
            assert_eq!((genuine, redirected), used, "{mode:?} {is_full}");
            assert!(genuine + redirected > 40, "{genuine} {redirected}");
            assert_eq!(counters.frames(FrameEvent::Received).get(), redirected);
            assert!(replay.count(OffloadVerdict::Answered) > 40);
            assert!(replay.count(OffloadVerdict::ForgedId) > 0);
            assert!(replay.count(OffloadVerdict::ExpiredId) > 0);
        }
    }
}

/// What a process of this host sends has no checksum yet: connects reach the sockets.
#[test]
fn every_conversation_is_as_written_on_the_loopback_interface() {
    const NAME: &str = "every_conversation_is_as_written_on_the_loopback_interface";
    if !in_a_namespace(module_path!(), NAME) {
        return;
    }
    ip("link set lo up");
    let cases = cases();
    add_clients(&cases, "lo");
    for family in FAMILIES {
        ip(&format!("addr add {} dev lo", server(family).ip()));
    }
    let (replay, _) = replay(&cases, Place::Host, ("lo", AttachMode::Generic, false));
    assert!(replay.count(OffloadVerdict::PassedGenuine) > 40);
    assert!(replay.count(OffloadVerdict::ForgedId) > 0);
    assert!(replay.count(OffloadVerdict::ExpiredId) > 0);
}
