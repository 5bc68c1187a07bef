//! Both programs, frame by frame (BPF_PROG_TEST_RUN, which needs no interface), and one with the
//! other.
//!
//! Needs `CAP_BPF` and `CAP_NET_ADMIN`, and is skipped without them.

use std::net::{Ipv4Addr, SocketAddrV4};

use skep::protocol::udp::client::encode_connect;
use skep::protocol::udp::{Request, TransactionId, decode};
use skep::sys::xdp::kernel::{LoadError, XdpVerdict};

use super::frames::{ANNOUNCE_FRAME, CLIENT_PORT, TRANSACTION_MASK, client};
use super::network::SERVER;
use super::programs::{BATCH, Control, Mix, Programs, Reply, Sent, Shape};
use crate::population::info_hash;

const SHAPE: Shape = Shape {
    server: SocketAddrV4::new(SERVER, 6969),
    interface: 1,
    client_bits: 6,
    torrent_bits: 3,
    numwant: 30,
    seed: 1,
    sample_every: 4,
};
const BITS: u32 = SHAPE.client_bits;
const NEVER: u64 = u64::MAX >> 2;

/// `None` where this process may not load programs.
fn load() -> Option<Programs> {
    match Programs::load(&SHAPE) {
        Ok(programs) => Some(programs),
        Err(LoadError::Map(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: programs for XDP take CAP_BPF and CAP_NET_ADMIN: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn begin(programs: &Programs, mix: Mix, in_flight: u32, more: &[(Control, u64)]) {
    let settings = [
        (Control::Mix, mix as u64),
        (Control::InFlight, in_flight.into()),
        (Control::StallNs, NEVER),
    ];
    programs.begin(&[&settings[..], more].concat()).unwrap();
}

/// One run of the generator on memory that holds rubbish: the frame, if it left.
fn generate(programs: &Programs) -> Option<Vec<u8>> {
    let (verdict, frame) = programs.generator.test(&[0xee; ANNOUNCE_FRAME as usize]).unwrap();
    match verdict {
        XdpVerdict::Redirect => Some(frame),
        XdpVerdict::Drop => None,
        other => panic!("{other:?}"),
    }
}

/// The sum of 16-bit words that a right checksum makes 0xffff (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    let word = |it: &[u8]| u32::from(it[0]) << 8 | it.get(1).map_or(0, |it| u32::from(*it));
    let sum: u32 = bytes.chunks(2).map(word).sum();
    (sum & 0xffff) + (sum >> 16)
}

/// Checks a frame's headers: its source, and its payload.
#[track_caller]
fn open(frame: &[u8]) -> (Ipv4Addr, &[u8]) {
    let (ip, udp) = (&frame[14..34], &frame[34..]);
    assert_eq!(frame[..14], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0]);
    let bytes = |at: &[u8]| usize::from(u16::from_be_bytes([at[0], at[1]]));
    assert_eq!((ip[0], bytes(&ip[2..]), ip[9], sum(ip)), (0x45, 20 + udp.len(), 17, 0xffff));
    assert_eq!(Ipv4Addr::from(*ip.last_chunk::<4>().unwrap()), SERVER);
    assert_eq!(udp[..4], [CLIENT_PORT, 6969].map(u16::to_be_bytes).concat());
    assert_eq!(bytes(&udp[4..]), udp.len());
    let pseudo = [&ip[12..], &[0, 17], &udp[4..6], udp].concat();
    assert_eq!(sum(&pseudo), 0xffff, "UDP's checksum");
    let source: [u8; 4] = ip[12..16].try_into().unwrap();
    (Ipv4Addr::from(source), &udp[8..])
}

fn transaction_of(address: Ipv4Addr) -> TransactionId {
    TransactionId((u32::from(address) ^ TRANSACTION_MASK).to_be_bytes())
}

/// A response in a frame from the tracker.
fn response(to: Ipv4Addr, action: u32, rest: &[u8]) -> Vec<u8> {
    let payload = [&action.to_be_bytes()[..], &transaction_of(to).0, rest].concat();
    let bytes = |header: usize| u16::try_from(header + payload.len()).unwrap().to_be_bytes();
    let mut frame = [&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0][..], &bytes(28)].concat();
    frame.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    frame.extend([SERVER, to].map(|it| it.octets()).concat());
    frame.extend([6969, CLIENT_PORT].map(u16::to_be_bytes).concat());
    frame.extend([bytes(8), [0, 0]].concat());
    frame.extend(payload);
    frame
}

/// What the sink makes of a frame: its verdict, and what it counted.
fn taken(programs: &Programs, frame: &[u8]) -> (XdpVerdict, Vec<(usize, u64)>) {
    const ALL: [Reply; 13] = [
        Reply::All,
        Reply::Connects,
        Reply::ConnectBytes,
        Reply::Announces,
        Reply::AnnounceBytes,
        Reply::Errors,
        Reply::ErrorBytes,
        Reply::Invalid,
        Reply::InvalidBytes,
        Reply::Forged,
        Reply::ForgedBytes,
        Reply::Known,
        Reply::Seen,
    ];
    let before = programs.replies().unwrap();
    let (verdict, _) = programs.sink.test(frame).unwrap();
    let after = programs.replies().unwrap();
    let grown = |which: Reply| (which as usize, after.of(which) - before.of(which));
    (verdict, ALL.into_iter().map(grown).filter(|it| it.1 > 0).collect())
}

fn counted(of: &[(Reply, u64)]) -> Vec<(usize, u64)> {
    of.iter().map(|(which, count)| (*which as usize, *count)).collect()
}

#[test]
fn connects_of_all_clients_are_what_a_client_sends() {
    let Some(programs) = load() else { return };
    begin(&programs, Mix::Connects, 1 << 20, &[]);
    for index in (0..1 << BITS).chain([0, 1]) {
        let frame = generate(&programs).unwrap();
        let (source, payload) = open(&frame);
        assert_eq!(source, client(index, BITS));
        let mut expected = [0; 16];
        encode_connect(transaction_of(source), &mut expected);
        assert_eq!(payload, expected);
    }
    assert_eq!(programs.sent().unwrap(), Sent { connects: 66, announces: 0, forged: 0 });
}

#[test]
fn announces_have_the_id_that_the_tracker_gave_and_eight_share_a_torrent() {
    let Some(programs) = load() else { return };
    for index in 0..1 << BITS {
        let id = [1, 2, 3, 4, 5, 6, 7, u8::try_from(index).unwrap()];
        taken(&programs, &response(client(index, BITS), 0, &id));
        assert_eq!(programs.id(index).unwrap(), Some(id));
    }
    assert_eq!(programs.replies().unwrap().of(Reply::Known), 1 << BITS);
    begin(&programs, Mix::Announces, 1 << 20, &[]);
    for turn in 0..130_u32 {
        let frame = generate(&programs).unwrap();
        let (source, payload) = open(&frame);
        let index = turn % (1 << BITS);
        assert_eq!(source, client(index, BITS));
        let Ok(Request::Announce(request, _)) = decode(payload) else { panic!("{payload:?}") };
        assert_eq!(payload[7], u8::try_from(index).unwrap());
        assert_eq!(request.head.transaction_id, transaction_of(source));
        assert_eq!(request.info_hash, info_hash(SHAPE.seed, turn / 8 % 8));
        assert_eq!(request.numwant(), Some(30));
        assert_eq!(payload[52..56], source.octets(), "peer ids differ");
    }
    assert_eq!(programs.replies().unwrap().of(Reply::Known), 1 << BITS, "ids outlive a phase");
    programs.forget_ids(BITS).unwrap();
    assert_eq!(programs.id(3).unwrap(), None);
    assert_eq!(programs.replies().unwrap().of(Reply::Known), 0);
}

#[test]
fn pairs_are_a_connect_and_an_announce_of_the_same_client() {
    let Some(programs) = load() else { return };
    begin(&programs, Mix::Pairs, 1 << 20, &[]);
    for turn in 0..70 {
        for bytes in [16, 98] {
            let frame = generate(&programs).unwrap();
            let (source, payload) = open(&frame);
            assert_eq!((source, payload.len()), (client(turn % 64, BITS), bytes));
        }
    }
}

#[test]
fn a_flood_has_random_ids_and_sources_beside_honest_pairs() {
    let Some(programs) = load() else { return };
    begin(&programs, Mix::Flood, 1 << 20, &[(Control::HonestEvery, 4)]);
    let mut forged = Vec::new();
    for index in 0..400 {
        let frame = generate(&programs).unwrap();
        let (source, payload) = open(&frame);
        if index % 4 == 0 {
            assert_eq!(source, client(index / 8 % 64, BITS));
            assert_eq!(payload.len(), if index % 8 == 0 { 16 } else { 98 });
        } else {
            assert_eq!((source.octets()[0], payload.len()), (21, 98));
            forged.push((source, payload[..8].to_vec()));
        }
    }
    forged.sort();
    forged.dedup();
    assert!(forged.len() > 290, "{} of 300 differ", forged.len());
    let expected = Sent { connects: 50, announces: 50, forged: 300 };
    assert_eq!(programs.sent().unwrap(), expected);
}

#[test]
fn a_closed_loop_waits_for_responses_or_gives_them_up() {
    let Some(programs) = load() else { return };
    let batch = |programs: &Programs| {
        let left = (0..BATCH).filter_map(|_| generate(programs)).count();
        assert!(left == 0 || left == 32, "a batch leaves as a whole: {left}");
        left > 0
    };
    begin(&programs, Mix::Connects, 64, &[]);
    assert!(batch(&programs) && batch(&programs));
    assert!(!batch(&programs) && !batch(&programs));
    let answer =
        || (0..32).for_each(|it| drop(taken(&programs, &response(client(it, 6), 0, &[1; 8]))));
    answer();
    assert!(batch(&programs) && !batch(&programs));
    begin(&programs, Mix::Connects, 64, &[(Control::StallNs, 0)]);
    assert!((0..5).all(|_| batch(&programs)), "what is lost is given up");
}

#[test]
fn an_open_loop_sends_a_batch_when_it_is_due() {
    let Some(programs) = load() else { return };
    begin(&programs, Mix::Connects, 0, &[(Control::IntervalNs, NEVER)]);
    let left = (0..10 * BATCH).filter_map(|_| generate(&programs)).count();
    assert_eq!(left, 32, "the first is due at once");
    begin(&programs, Mix::Connects, 0, &[(Control::IntervalNs, 1)]);
    let left = (0..10 * BATCH).filter_map(|_| generate(&programs)).count();
    assert_eq!(left, 320);
}

#[test]
fn responses_are_counted_by_kind_with_their_bytes() {
    let Some(programs) = load() else { return };
    let to = client(5, BITS);
    let (all, seen) = ((Reply::All, 1), (Reply::Seen, 1));
    let counted_of = |frame: &[u8]| taken(&programs, frame).1;
    let connected = response(to, 0, &[7; 8]);
    let connect = [(Reply::Connects, 1), (Reply::ConnectBytes, 16)];
    let first = counted(&[&[all][..], &connect, &[(Reply::Known, 1), seen]].concat());
    assert_eq!(counted_of(&connected), first);
    assert_eq!(counted_of(&connected), counted(&[&[all][..], &connect, &[seen]].concat()));
    for peers in [0_u8, 1, 30] {
        let body = [&[0; 12][..], &vec![peers; 6 * usize::from(peers)]].concat();
        let bytes = 20 + 6 * u64::from(peers);
        let announce = [all, (Reply::Announces, 1), (Reply::AnnounceBytes, bytes), seen];
        assert_eq!(counted_of(&response(to, 1, &body)), counted(&announce));
    }
    let error = [all, (Reply::Errors, 1), (Reply::ErrorBytes, 11), seen];
    assert_eq!(counted_of(&response(to, 3, b"bad")), counted(&error));
    let forger = Ipv4Addr::new(21, 2, 3, 4);
    let forged = [(Reply::Forged, 1), (Reply::ForgedBytes, 16), seen];
    assert_eq!(counted_of(&response(forger, 0, &[7; 8])), counted(&forged));
}

#[test]
fn responses_that_cannot_be_are_invalid() {
    let Some(programs) = load() else { return };
    let to = client(5, BITS);
    let announced = |bytes| response(to, 1, &vec![0; bytes]);
    let mut cases = vec![
        response(to, 0, &[7; 7]),
        response(to, 0, &[7; 9]),
        response(to, 2, &[7; 12]),
        announced(11),
        announced(13),
        announced(12 + 31 * 6),
        response(Ipv4Addr::new(20, 0, 0, 2), 0, &[7; 8]),
        response(Ipv4Addr::new(22, 0, 0, 1), 0, &[7; 8]),
    ];
    let good = response(to, 0, &[7; 8]);
    // The transaction id, the client's port, IP's length, UDP's beyond the frame.
    for (at, value) in [(46, 1), (37, 0), (17, 43), (39, 250)] {
        let mut frame = good.clone();
        frame[at] = value;
        cases.push(frame);
    }
    for frame in cases {
        let (_, counted) = taken(&programs, &frame);
        let which: Vec<usize> = counted.iter().map(|it| it.0).collect();
        let invalid = [Reply::All, Reply::Invalid, Reply::InvalidBytes, Reply::Seen];
        assert_eq!(which, invalid.map(|it| it as usize), "{frame:?}");
    }
}

#[test]
fn one_of_many_responses_is_passed_on_and_what_is_not_a_response_always() {
    let Some(programs) = load() else { return };
    let good = response(client(1, BITS), 0, &[7; 8]);
    let passed = (0..40).filter(|_| taken(&programs, &good).0 == XdpVerdict::Pass).count();
    assert_eq!(passed, 10);
    for at in [12, 14, 23, 26, 34] {
        let mut other = good.clone();
        other[at] ^= 1;
        assert_eq!(taken(&programs, &other), (XdpVerdict::Pass, Vec::new()), "byte {at}");
    }
    assert_eq!(taken(&programs, &good[..40]), (XdpVerdict::Pass, Vec::new()));
}
