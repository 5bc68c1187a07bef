//! The program of the XDP offload, on single frames: BPF_PROG_TEST_RUN, which needs no interface.
//! What leaves is compared with what the sockets' front end answers to the same datagram.
//!
//! Needs `CAP_BPF` and `CAP_NET_ADMIN`, and is skipped without them; with
//! `SKEP_REQUIRE_EXTERNAL=1` that is a failure.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;

use arc_swap::ArcSwap;
use proptest::prelude::*;
use rustix::time::{ClockId, clock_gettime};
use skep::frontend::connection_id::{Algorithm, ConnectionIds, KeyPair};
use skep::frontend::udp::UdpFrontend;
use skep::frontend::{RESPONSE_BYTES_MAX, Responder as _};
use skep::store::Store;
use skep::sys::xdp::kernel::{LoadError, XdpProgram, XdpVerdict};
use skep::sys::xdp::offload::{
    Offload, OffloadCount, OffloadCounts, OffloadKeys, OffloadProgram, OffloadSettings,
    OffloadVerdict,
};
use skep::sys::xdp::socket::XskMap;
use skep::time::Now;
use skep::tracker::Tracker;
use skep::types::{Dropped, Family};

use crate::support::{assert_passed, child_test, skip};
use crate::xdp_frames::{Frame, SOURCES_OF_NO_HOST, checksum, client, kinds, octets, server};

/// What the kernel's clock is ahead of the tests' moment by: they begin in the middle of a bucket.
const BEGIN_S: u64 = 1_800_000_000 / 64 * 64 + 32;
const BUCKET_S: u64 = 64;
const KEY: [u8; 32] = [7; 32];
const OTHER_KEY: [u8; 32] = [8; 32];

/// The program, and the tracker whose sockets it stands before.
struct Setup {
    offload: RefCell<Offload>,
    program: OffloadProgram,
    clock_offset_ns: u64,
    ids: ConnectionIds,
    frontend: RefCell<UdpFrontend>,
}

fn monotonic_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    (time.tv_sec * 1_000_000_000 + time.tv_nsec).cast_unsigned()
}

fn first_half(key: [u8; 32]) -> [u8; 16] {
    std::array::from_fn(|at| key[at])
}

impl Setup {
    /// `None` where this process may not load programs.
    fn new(limit: Option<(u32, u32)>) -> Option<Self> {
        let loaded =
            Offload::create().and_then(|offload| Ok((offload.load(&XskMap::create(1)?)?, offload)));
        let (program, mut offload) = match loaded {
            Ok(loaded) => loaded,
            Err(LoadError::Map(error)) if error.raw_os_error() == Some(libc::EPERM) => {
                skip(&format!("programs for XDP take CAP_BPF and CAP_NET_ADMIN: {error}"));
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        assert_eq!(offload.set_targets([4, 6].map(server)).unwrap(), 0);
        let keys = KeyPair { active: KEY, staging: None, algorithm: Algorithm::SipHash };
        let ids = ConnectionIds::new(&keys);
        let store = Arc::new(Store::new(Default::default()));
        let tracker = Tracker::new(store, Default::default(), 1, 0, 1);
        let frontend = UdpFrontend::new(tracker, Arc::new(ArcSwap::from_pointee(ids.clone())));
        let clock_offset_ns = BEGIN_S * 1_000_000_000 - monotonic_ns();
        let (offload, frontend) = (RefCell::new(offload), RefCell::new(frontend));
        let setup = Self { offload, program, clock_offset_ns, ids, frontend };
        setup.set(KEY, None, limit);
        Some(setup)
    }

    fn set(&self, active: [u8; 32], staging: Option<[u8; 32]>, limit: Option<(u32, u32)>) {
        let keys = OffloadKeys { active: first_half(active), staging: staging.map(first_half) };
        self.offload.borrow().set(self.settings(keys, limit)).unwrap();
    }

    fn settings(&self, keys: OffloadKeys, limit: Option<(u32, u32)>) -> OffloadSettings {
        let clock_offset_ns = self.clock_offset_ns;
        OffloadSettings { keys, clock_offset_ns, limit, seed: [1, 2], asks_routes: false }
    }

    /// The tests' moment.
    fn now(&self) -> Now {
        Now::from_ns(monotonic_ns() + self.clock_offset_ns)
    }

    /// Runs a frame: the verdict, what left, and what was counted, if anything was.
    #[track_caller]
    fn run(&self, frame: &[u8]) -> (XdpVerdict, Vec<u8>, Option<OffloadVerdict>) {
        let before = self.counts();
        let (verdict, out) = self.program.program().test(frame).unwrap();
        let counted = difference(before, self.counts());
        assert!(counted.len() <= 1, "{counted:?}");
        (verdict, out, counted.first().map(|it| it.0))
    }

    fn counts(&self) -> OffloadCounts {
        self.program.counts().unwrap()
    }
}

/// What was counted between two readings.
fn difference(
    before: OffloadCounts,
    after: OffloadCounts,
) -> Vec<(OffloadVerdict, Family, OffloadCount)> {
    let all = OffloadVerdict::ALL.iter().flat_map(|it| Family::ALL.map(|family| (*it, family)));
    let counted = all.map(|(verdict, family)| {
        let (old, new) = (before.of(verdict, family), after.of(verdict, family));
        let datagrams = new.datagrams - old.datagrams;
        (verdict, family, OffloadCount { datagrams, bytes: new.bytes - old.bytes })
    });
    counted.filter(|it| it.2 != OffloadCount::default()).collect()
}

/// Rights that the program is loaded with, as setpriv(1) takes them.
const RIGHTS: &str = "-all,+bpf,+net_admin";

/// More would be at hand for whoever takes the process over.
#[test]
fn two_capabilities_are_enough_to_load_the_program() {
    const CHILD: &str = "SKEP_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        Offload::create().unwrap().load(&XskMap::create(1).unwrap()).unwrap();
        return;
    }
    if Setup::new(None).is_some() {
        let test = child_test(module_path!(), "two_capabilities_are_enough_to_load_the_program");
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", RIGHTS, "--inh-caps", RIGHTS]);
        command.arg(test.get_program()).args(test.get_args()).env(CHILD, "1");
        assert_passed(&command.output().unwrap());
    }
}

#[test]
fn a_program_that_the_verifier_refuses_is_an_error_with_its_reason() {
    // It returns a register that was never written.
    let Some(_) = Setup::new(None) else { return };
    let error = XdpProgram::load(&[0x95]).unwrap_err().to_string();
    assert!(error.starts_with("the kernel refused the XDP program: "), "{error}");
    assert!(error.contains("R0 !read_ok"), "{error}");
}

#[test]
fn a_connect_is_answered_by_the_bytes_that_a_socket_sends() {
    let Some(setup) = Setup::new(None) else { return };
    for padding in [0, 6] {
        for frame in kinds(|family| Frame { padding, ..Frame::connect(family) }) {
            let (verdict, out, counted) = setup.run(&frame.bytes());
            let now = setup.now();
            assert_eq!((verdict, counted), (XdpVerdict::Transmit, Some(OffloadVerdict::Answered)));
            let mut expected = [0; RESPONSE_BYTES_MAX];
            let sent = setup.frontend.borrow_mut().handle(
                now,
                frame.source,
                &frame.payload,
                &mut expected,
            );
            assert_eq!(out, frame.answered(&expected[..sent.unwrap().bytes]), "{frame:?}");
        }
    }
}

#[test]
fn ids_are_judged_as_the_sockets_judge_them() {
    let Some(setup) = Setup::new(None) else { return };
    let verdict_of = |frame: &Frame| {
        let (verdict, out, counted) = setup.run(&frame.bytes());
        assert_eq!(out, frame.bytes(), "nothing is changed");
        match counted.unwrap() {
            OffloadVerdict::PassedGenuine => assert_eq!(verdict, XdpVerdict::Pass),
            _ => assert_eq!(verdict, XdpVerdict::Drop),
        }
        counted.unwrap()
    };
    let sources = [
        client(4),
        client(6),
        "[64:ff9b::c000:201]:7".parse().unwrap(),
        "[2001:0:4136:e378:8000:63bf:3fff:fdd2]:7".parse().unwrap(),
    ];
    for source in sources {
        let family = if source.is_ipv4() { 4 } else { 6 };
        for ahead in -8..=8 {
            let bucket = (BEGIN_S / BUCKET_S).checked_add_signed(ahead).unwrap();
            let id = setup.ids.issue(Now::from_s(bucket * BUCKET_S), source.ip());
            let frame = Frame { source, ..Frame::announce(family, id) };
            let expected = match setup.ids.check(setup.now(), source.ip(), id) {
                Ok(()) => OffloadVerdict::PassedGenuine,
                Err(Dropped::ExpiredId) => OffloadVerdict::ExpiredId,
                Err(_) => OffloadVerdict::ForgedId,
            };
            assert_eq!(verdict_of(&frame), expected, "{source} {ahead}");
            for bit in [3, 20, 63] {
                let forged = Frame { source, ..Frame::announce(family, id ^ 1 << bit) };
                assert_eq!(verdict_of(&forged), OffloadVerdict::ForgedId);
            }
        }
    }
    // The id of an IPv6 address is good for its /64.
    let id = setup.ids.issue(setup.now(), client(6).ip());
    let [neighbour, stranger] =
        ["[2001:db8:1:2::1]:9", "[2001:db8:1:3:3:4:5:6]:9"].map(|it| it.parse().unwrap());
    let from = |source| verdict_of(&Frame { source, ..Frame::announce(6, id) });
    assert_eq!(from(neighbour), OffloadVerdict::PassedGenuine);
    assert_eq!(from(stranger), OffloadVerdict::ForgedId);
}

#[test]
fn a_rollover_of_keys_loses_no_id() {
    let Some(setup) = Setup::new(None) else { return };
    let ids = |active| {
        ConnectionIds::new(&KeyPair { active, staging: None, algorithm: Algorithm::SipHash })
    };
    let judged = |key| {
        let id = ids(key).issue(setup.now(), client(4).ip());
        setup.run(&Frame::announce(4, id).bytes()).2.unwrap()
    };
    let (old, new) = (KEY, OTHER_KEY);
    let (genuine, forged) = (OffloadVerdict::PassedGenuine, OffloadVerdict::ForgedId);
    for (active, staging, of_old, of_new) in [
        (old, None, genuine, forged),
        (old, Some(new), genuine, genuine),
        (new, Some(old), genuine, genuine),
        (new, None, forged, genuine),
    ] {
        setup.set(active, staging, None);
        assert_eq!((judged(old), judged(new)), (of_old, of_new));
        let (_, out, _) = setup.run(&Frame::connect(4).bytes());
        let id = out[out.len() - 8..].try_into().map(u64::from_be_bytes).unwrap();
        assert_eq!(ids(active).check(setup.now(), client(4).ip(), id), Ok(()), "new ids");
    }
}

/// A frame that passes, and whether it is for us at all.
fn passes(setup: &Setup, what: &str, frame: &[u8]) -> Option<OffloadVerdict> {
    let (verdict, out, counted) = setup.run(frame);
    assert_eq!(verdict, XdpVerdict::Pass, "{what}");
    assert_eq!(out, frame, "{what}");
    counted
}

#[test]
fn whatever_is_not_understood_passes_unchanged() {
    let Some(setup) = Setup::new(None) else { return };
    for family in [4, 6] {
        let connect = Frame::connect(family);
        let (ip, udp) = (connect.ip_at(), connect.udp_at());
        let with = |at: usize, byte: u8| {
            let mut frame = connect.bytes();
            frame[at] ^= byte;
            frame
        };
        let target = |target: &str| {
            let target = target.parse().unwrap();
            Frame { target, ..connect.clone() }.bytes()
        };
        let tags = |tags: &[u16]| Frame { tags: tags.to_vec(), ..connect.clone() }.bytes();
        let payload = |payload: &[u8]| Frame::new(family, payload.to_vec()).bytes();
        let mut frames = vec![
            ("to many", with(0, 1), false),
            ("another protocol", with(12, 1), false),
            ("two tags", tags(&[0x8100, 0x8100]), false),
            ("a provider's tag", tags(&[0x88a8]), false),
            ("another version", with(ip, 0x10), false),
            ("a datagram longer than the frame", with(udp + 4, 1), false),
            ("a datagram shorter than the packet", with(udp + 5, 1), false),
            ("a wrong checksum", with(udp + 7, 1), true),
            ("another magic", payload(&[0; 16]), true),
            ("a byte too many", payload(&[&connect.payload[..], &[0]].concat()), true),
            ("an empty datagram", payload(&[]), true),
            ("half a head", payload(&connect.payload[..8]), true),
            ("an unknown action", payload(&[&[0; 11][..], &[3, 0, 0, 0, 0]].concat()), true),
            ("a short announce", payload(&Frame::announce(4, 1).payload[..97]), true),
        ];
        if family == 4 {
            frames.extend([
                ("another port", target("192.0.2.9:6970"), false),
                ("another address", target("192.0.2.8:6969"), false),
                ("a packet with options", with(ip, 3), false),
                ("TCP", with(ip + 9, 17 ^ 6), false),
                ("more fragments", with(ip + 6, 0x20), false),
                ("a later fragment", with(ip + 7, 1), false),
                ("the reserved bit", with(ip + 6, 0x80), false),
                ("a wrong header checksum", with(ip + 10, 1), false),
            ]);
        } else {
            frames.extend([
                ("another port", target("[2001:db8::9]:6970"), false),
                ("another address", target("[2001:db8::8]:6969"), false),
                ("an extension header", with(ip + 6, 17 ^ 60), false),
            ]);
        }
        for (what, frame, is_ours) in frames {
            let expected = is_ours.then_some(OffloadVerdict::PassedOther);
            assert_eq!(passes(&setup, what, &frame), expected, "IPv{family}: {what}");
        }
    }
}

#[test]
fn a_checksum_may_be_absent_or_left_to_a_network_card() {
    let Some(setup) = Setup::new(None) else { return };
    for family in [4, 6] {
        let connect = Frame::connect(family);
        let mut absent = connect.bytes();
        absent[connect.udp_at() + 6..][..2].fill(0);
        let (verdict, out, counted) = setup.run(&absent);
        if family == 4 {
            assert_eq!(counted, Some(OffloadVerdict::Answered));
            assert_ne!(out[connect.udp_at() + 6..][..2], [0, 0], "the answer has one");
        } else {
            assert_eq!((verdict, counted), (XdpVerdict::Pass, Some(OffloadVerdict::PassedOther)));
        }
        // What the kernel leaves to a card holds the sum of the pseudo-header.
        let (source, target) = (octets(connect.source.ip()), octets(connect.target.ip()));
        let pseudo = [&source[..], &target, &[0, 17, 0, 24]].concat();
        let mut partial = connect.bytes();
        partial[connect.udp_at() + 6..][..2].copy_from_slice(&(!checksum(&pseudo)).to_be_bytes());
        assert_eq!(passes(&setup, "partial", &partial), Some(OffloadVerdict::PassedOther));
    }
}

#[test]
fn sources_that_no_host_has_pass() {
    let Some(setup) = Setup::new(None) else { return };
    for source in SOURCES_OF_NO_HOST {
        let source: SocketAddr = source.parse().unwrap();
        let family = if source.is_ipv4() { 4 } else { 6 };
        let frame = Frame { source, ..Frame::connect(family) };
        assert_eq!(passes(&setup, "a source", &frame.bytes()), None, "{source}");
    }
}

#[test]
fn every_truncation_passes() {
    let Some(setup) = Setup::new(None) else { return };
    let id = setup.ids.issue(setup.now(), client(4).ip());
    let frames =
        kinds(Frame::connect).into_iter().chain(kinds(|family| Frame::announce(family, id ^ 8)));
    for frame in frames {
        let bytes = frame.bytes();
        // The kernel runs no program on less than an Ethernet header.
        for end in 14..bytes.len() {
            let (verdict, out, counted) = setup.run(&bytes[..end]);
            assert_eq!((verdict, counted), (XdpVerdict::Pass, None), "{frame:?} {end}");
            assert_eq!(out, bytes[..end]);
        }
        assert_ne!(setup.run(&bytes).0, XdpVerdict::Pass);
    }
}

#[test]
fn denied_networks_are_dropped_and_exempt_ones_not_limited() {
    let Some(setup) = Setup::new(Some((1, 2))) else { return };
    let from = |source: &str| {
        let source: SocketAddr = source.parse().unwrap();
        let family = if source.is_ipv4() { 4 } else { 6 };
        setup.run(&Frame { source, ..Frame::connect(family) }.bytes()).2.unwrap()
    };
    let network = |address: &str, bits| (address.parse::<IpAddr>().unwrap(), bits);
    let denied = [network("203.0.113.0", 24), network("2001:db8:bad::", 48)];
    setup.offload.borrow_mut().set_denied(denied).unwrap();
    assert_eq!(from("203.0.113.255:1"), OffloadVerdict::NetworkDenied);
    assert_eq!(from("[2001:db8:bad:1::1]:1"), OffloadVerdict::NetworkDenied);
    assert_eq!(from("203.0.112.255:1"), OffloadVerdict::Answered);
    assert_eq!(from("[2001:db8:bae::1]:1"), OffloadVerdict::Answered);
    setup.offload.borrow_mut().set_exempt([network("192.0.2.64", 26)]).unwrap();
    for _ in 0..10 {
        assert_eq!(from("192.0.2.65:1"), OffloadVerdict::Answered);
    }
    let denied = setup
        .run(&Frame { source: "203.0.113.1:1".parse().unwrap(), ..Frame::announce(4, 1) }.bytes());
    assert_eq!((denied.0, denied.2), (XdpVerdict::Drop, Some(OffloadVerdict::NetworkDenied)));
    setup.offload.borrow_mut().set_denied([network("203.0.112.0", 24)]).unwrap();
    assert_eq!(from("203.0.112.255:1"), OffloadVerdict::NetworkDenied);
    assert_eq!(from("203.0.113.255:1"), OffloadVerdict::Answered, "no longer denied");
}

#[test]
fn what_is_too_much_for_a_map_is_left_out() {
    let Some(setup) = Setup::new(None) else { return };
    let target = |port| SocketAddr::new(server(4).ip(), port);
    let many = || (1..=1030).map(target);
    let set = |targets: Vec<SocketAddr>| setup.offload.borrow_mut().set_targets(targets).unwrap();
    assert_eq!(set(many().collect()), 6);
    assert_eq!(set(many().chain([target(7)]).take(1024).collect()), 0, "the same again");
    let counted = |port| {
        let frame = Frame { target: target(port), ..Frame::connect(4) };
        setup.run(&frame.bytes()).2
    };
    assert_eq!([1024, 1025].map(counted), [Some(OffloadVerdict::Answered), None]);
    assert_eq!(set(vec![target(1025)]), 0);
    assert_eq!([1024, 1025].map(counted), [None, Some(OffloadVerdict::Answered)]);
}

#[test]
fn datagrams_are_counted_by_verdict_and_family_with_their_bytes() {
    let Some(setup) = Setup::new(None) else { return };
    for (family, number) in [(Family::V4, 4), (Family::V6, 6)] {
        for (frame, verdict, bytes) in [
            (Frame::connect(number), OffloadVerdict::Answered, 16),
            (Frame::announce(number, 1), OffloadVerdict::ForgedId, 98),
            (Frame::new(number, vec![0; 40]), OffloadVerdict::PassedOther, 40),
        ] {
            let before = setup.counts();
            setup.run(&frame.bytes());
            let expected = (verdict, family, OffloadCount { datagrams: 1, bytes });
            assert_eq!(difference(before, setup.counts()), [expected]);
        }
    }
}

#[test]
fn a_connect_passes_where_the_kernel_has_no_route_back() {
    let Some(setup) = Setup::new(None) else { return };
    let keys = OffloadKeys { active: first_half(KEY), staging: None };
    let settings = OffloadSettings { asks_routes: true, ..setup.settings(keys, None) };
    setup.offload.borrow().set(settings).unwrap();
    for frame in kinds(Frame::connect) {
        let counted = passes(&setup, "the interface of a test run has no routes", &frame.bytes());
        assert_eq!(counted, Some(OffloadVerdict::PassedNoRoute));
    }
}

#[test]
fn over_the_limit_one_connect_in_four_of_a_port_is_answered() {
    for family in [4, 6] {
        let Some(setup) = Setup::new(Some((1, 20))) else { return };
        let connect = Frame::connect(family).bytes();
        let verdicts: Vec<_> = (0..60).map(|_| setup.run(&connect).2.unwrap()).collect();
        let of = |verdict| verdicts.iter().filter(|it| **it == verdict).count();
        assert!(verdicts[..20].iter().all(|it| *it == OffloadVerdict::Answered), "{verdicts:?}");
        let (over, dropped) = (OffloadVerdict::AnsweredOverLimit, OffloadVerdict::LimitedConnect);
        assert_eq!(of(OffloadVerdict::Answered) + of(over) + of(dropped), 60);
        assert_eq!(of(over), (of(over) + of(dropped)) / 4);
        // Another address of the /24 or the /64's neighbour has its own limit.
        let other = if family == 4 { "198.51.100.8:1" } else { "[2001:db8:1:3::1]:1" };
        let other = Frame { source: other.parse().unwrap(), ..Frame::connect(family) };
        assert_eq!(setup.run(&other.bytes()).2, Some(OffloadVerdict::Answered));
    }
}

fn datagrams() -> impl Strategy<Value = (u8, Vec<u8>)> {
    let heads = prop_oneof![
        Just(Frame::connect(4).payload),
        Just(Frame::announce(4, 1).payload),
        proptest::collection::vec(any::<u8>(), 0..130),
    ];
    let spoiled = proptest::collection::vec((0..130_usize, any::<u8>()), 0..3);
    (prop_oneof![Just(4_u8), Just(6)], heads, spoiled, 0..130_usize).prop_map(
        |(family, mut payload, spoiled, length)| {
            for (at, byte) in spoiled {
                if let Some(place) = payload.get_mut(at) {
                    *place = byte;
                }
            }
            if length % 3 == 0 {
                payload.truncate(length);
            }
            (family, payload)
        },
    )
}

#[test]
fn for_any_datagram_what_leaves_is_what_a_socket_would_send() {
    let Some(setup) = Setup::new(None) else { return };
    proptest!(|((family, mut payload) in datagrams(), is_genuine in any::<bool>())| {
        if is_genuine && payload.len() >= 16 && payload[11] != 0 {
            let id = setup.ids.issue(setup.now(), client(family).ip());
            payload[..8].copy_from_slice(&id.to_be_bytes());
        }
        let frame = Frame::new(family, payload);
        let (verdict, out, counted) = setup.run(&frame.bytes());
        let now = setup.now();
        let mut sent = [0; RESPONSE_BYTES_MAX];
        let mut frontend = setup.frontend.borrow_mut();
        let socket = frontend.handle(now, frame.source, &frame.payload, &mut sent);
        match verdict {
            XdpVerdict::Transmit => {
                prop_assert_eq!(out, frame.answered(&sent[..socket.unwrap().bytes]));
            }
            XdpVerdict::Drop => {
                let dropped = socket.map(|it| it.bytes).unwrap_err();
                let expected = match dropped {
                    Dropped::ForgedId => OffloadVerdict::ForgedId,
                    _ => OffloadVerdict::ExpiredId,
                };
                prop_assert_eq!(counted, Some(expected), "{:?}", dropped);
            }
            _ => prop_assert_eq!(out, frame.bytes()),
        }
    });
}
