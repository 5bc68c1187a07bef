//! The codec of frames that AF_XDP sockets exchange, against frames that are built apart from it.

use std::net::SocketAddr;

use proptest::prelude::*;
use skep::sys::xdp::frame::{FrameDatagram, FrameError, HEADERS_BYTES_MAX};

use crate::xdp_frames::{Frame, SOURCES_OF_NO_HOST, checksum, client, kinds, octets, server};

/// What answers a frame, if its payload is answered by this one.
fn answer(request: &[u8], payload: &[u8]) -> Vec<u8> {
    let datagram = FrameDatagram::parse(request).unwrap();
    let mut frame = vec![0xaa; HEADERS_BYTES_MAX + payload.len()];
    frame[datagram.payload().start..][..payload.len()].copy_from_slice(payload);
    let bytes = datagram.write_response(request, payload.len(), &mut frame);
    frame.truncate(bytes);
    frame
}

#[test]
fn a_datagram_is_found_and_its_answer_is_the_frame_turned_around() {
    for padding in [0, 6] {
        for frame in kinds(|family| Frame { id: 0, padding, ..Frame::announce(family, 7) }) {
            let bytes = frame.bytes();
            let datagram = FrameDatagram::parse(&bytes).unwrap();
            assert_eq!((datagram.source(), datagram.target()), (frame.source, frame.target));
            assert_eq!(bytes[datagram.payload()], frame.payload);
            for payload in [&[][..], &[1], &[2; 20], &[3; 1232]] {
                let expected = Frame { padding: 0, ..frame.clone() }.answered(payload);
                assert_eq!(answer(&bytes, payload), expected, "{frame:?}");
            }
        }
    }
}

#[test]
fn an_answer_has_no_id_and_is_never_fragmented() {
    let request = Frame { id: 0x1234, ..Frame::connect(4) };
    let mut bytes = request.bytes();
    let ip = request.ip_at();
    // The request may be fragmented on its way.
    bytes[ip + 6] = 0;
    bytes[ip + 10..ip + 12].fill(0);
    let sum = checksum(&bytes[ip..ip + 20]);
    bytes[ip + 10..ip + 12].copy_from_slice(&sum.to_be_bytes());
    assert_eq!(answer(&bytes, b"abc"), Frame { id: 0, ..request }.answered(b"abc"));
}

#[test]
fn a_checksum_of_zero_is_sent_as_its_complement() {
    for family in [4, 6] {
        let request = Frame::new(family, b"request".to_vec());
        // With these two bytes the sum of the rest is what a checksum of zero needs.
        let sum = answer(&request.bytes(), &[0, 0])[request.udp_at() + 6..][..2].to_vec();
        let response = answer(&request.bytes(), &sum);
        assert_eq!(response[request.udp_at() + 6..][..2], [0xff, 0xff]);
        let turned = FrameDatagram::parse(&response).unwrap();
        assert_eq!(turned.source(), request.target);
    }
}

#[test]
fn every_truncation_is_refused() {
    for frame in kinds(Frame::connect) {
        let bytes = frame.bytes();
        for end in 0..bytes.len() {
            let error = FrameDatagram::parse(&bytes[..end]).unwrap_err();
            assert_eq!(error, FrameError::NotUnderstood, "{frame:?} {end}");
        }
    }
}

#[test]
fn oddities_are_refused_for_the_kernel_to_judge() {
    for family in [4, 6] {
        let connect = Frame::connect(family);
        let (ip, udp) = (connect.ip_at(), connect.udp_at());
        let with = |at: usize, byte: u8| {
            let mut frame = connect.bytes();
            frame[at] ^= byte;
            frame
        };
        let tags = |tags: &[u16]| Frame { tags: tags.to_vec(), ..connect.clone() }.bytes();
        let mut frames = vec![
            ("to many", with(0, 1)),
            ("another protocol", with(12, 1)),
            ("two tags", tags(&[0x8100, 0x8100])),
            ("a provider's tag", tags(&[0x88a8])),
            ("another version", with(ip, 0x10)),
            ("a datagram longer than the packet", with(udp + 4, 1)),
            ("a datagram shorter than the packet", with(udp + 5, 1)),
        ];
        if family == 4 {
            frames.extend([
                ("a packet with options", with(ip, 3)),
                ("TCP", with(ip + 9, 17 ^ 6)),
                ("more fragments", with(ip + 6, 0x20)),
                ("a later fragment", with(ip + 7, 1)),
                ("the reserved bit", with(ip + 6, 0x80)),
            ]);
        } else {
            frames.extend([
                ("an extension header", with(ip + 6, 17 ^ 60)),
                ("a packet longer than the frame", with(ip + 4, 1)),
                ("a packet without a UDP header", with(ip + 5, 24 ^ 7)),
            ]);
        }
        for (what, frame) in frames {
            let refused = FrameDatagram::parse(&frame);
            assert_eq!(refused, Err(FrameError::NotUnderstood), "IPv{family}: {what}");
        }
        let bad = Err(FrameError::BadChecksum);
        assert_eq!(FrameDatagram::parse(&with(udp + 8, 1)), bad);
        if family == 4 {
            assert_eq!(FrameDatagram::parse(&with(ip + 10, 1)), bad);
        }
    }
}

#[test]
fn sources_that_no_host_has_are_refused() {
    for source in SOURCES_OF_NO_HOST {
        let source: SocketAddr = source.parse().unwrap();
        let family = if source.is_ipv4() { 4 } else { 6 };
        let frame = Frame { source, ..Frame::connect(family) };
        let refused = FrameDatagram::parse(&frame.bytes());
        assert_eq!(refused, Err(FrameError::NotUnderstood), "{source}");
    }
}

#[test]
fn a_checksum_may_be_left_to_a_network_card_and_be_absent_over_ipv4() {
    for family in [4, 6] {
        let connect = Frame::connect(family);
        let with = |checksum: u16| {
            let mut frame = connect.bytes();
            frame[connect.udp_at() + 6..][..2].copy_from_slice(&checksum.to_be_bytes());
            FrameDatagram::parse(&frame)
        };
        match family {
            4 => assert_eq!(with(0).unwrap().source(), client(4)),
            _ => assert_eq!(with(0), Err(FrameError::BadChecksum)),
        }
        let (source, target) = (octets(client(family).ip()), octets(server(family).ip()));
        let pseudo = [&source[..], &target, &[0, 17, 0, 24]].concat();
        assert_eq!(with(!checksum(&pseudo)).unwrap().source(), client(family));
        assert_eq!(with(checksum(&pseudo)), Err(FrameError::BadChecksum));
    }
}

fn payloads() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..1400)
}

proptest! {
    #[test]
    fn any_payload_travels_and_any_response_returns(
        family in prop_oneof![Just(4_u8), Just(6)],
        is_tagged in any::<bool>(),
        source_port in 1_u16..,
        request in payloads(),
        response in payloads(),
    ) {
        let mut source = client(family);
        source.set_port(source_port);
        let tags = if is_tagged { vec![0x8100] } else { Vec::new() };
        let frame = Frame { source, tags, id: 0, ..Frame::new(family, request) };
        let bytes = frame.bytes();
        let datagram = FrameDatagram::parse(&bytes).unwrap();
        prop_assert_eq!((datagram.source(), datagram.target()), (frame.source, frame.target));
        prop_assert_eq!(&bytes[datagram.payload()], frame.payload.as_slice());
        prop_assert_eq!(answer(&bytes, &response), frame.answered(&response));
    }

    #[test]
    fn one_wrong_bit_never_goes_unnoticed(
        family in prop_oneof![Just(4_u8), Just(6)],
        payload in payloads(),
        at in any::<proptest::sample::Index>(),
        bit in 0..8_u8,
    ) {
        let frame = Frame::new(family, payload);
        let mut bytes = frame.bytes();
        // IPv6 has no checksum of its own: its class, flow label and hops may be anything.
        let first = if family == 4 { frame.ip_at() } else { frame.udp_at() - 32 };
        let at = first + at.index(bytes.len() - first);
        bytes[at] ^= 1 << bit;
        prop_assert!(FrameDatagram::parse(&bytes).is_err(), "bit {bit} of byte {at}");
    }
}
