//! Frames to the codec of AF_XDP sockets.
//!
//! Invariants checked: nothing panics; the payload lies in the frame; a response can be written, is
//! understood as well, leaves from the request's target to its source, has the payload that was
//! there, and its own response goes the way of the request.
#![no_main]

use libfuzzer_sys::fuzz_target;
use skep::frontend::RESPONSE_BYTES_MAX;
use skep::sys::xdp::frame::{FrameDatagram, HEADERS_BYTES_MAX};

fuzz_target!(|frame: &[u8]| {
    let Ok(request) = FrameDatagram::parse(frame) else { return };
    let payload = &frame[request.payload()];
    let payload = &payload[..payload.len().min(RESPONSE_BYTES_MAX)];
    let payload_at = request.payload().start;
    let mut out = [0xaa; HEADERS_BYTES_MAX + RESPONSE_BYTES_MAX];
    out[payload_at..][..payload.len()].copy_from_slice(payload);
    let bytes = request.write_response(frame, payload.len(), &mut out);
    assert_eq!(bytes, payload_at + payload.len());
    assert!(out[bytes..].iter().all(|byte| *byte == 0xaa), "nothing behind the frame is written");
    // The request's target may be an address that no host sends from.
    let Ok(response) = FrameDatagram::parse(&out[..bytes]) else { return };
    assert_eq!((response.source(), response.target()), (request.target(), request.source()));
    assert_eq!(&out[response.payload()], payload);
});
