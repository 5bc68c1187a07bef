//! RFC 6455 for a client: the upgrade, text frames out, any frames of a tracker in.

use std::io::Cursor;
use std::ops::Range;

use skep::client::http::head;
use tungstenite::protocol::frame::FrameHeader;
use tungstenite::protocol::frame::coding::{Control, Data, OpCode};

use crate::check::Invalid;

/// The nonce of RFC 6455's example, so that the expected response is a constant.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &[u8] = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Most bytes of a message that is accepted.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// The opcodes that are sent.
pub(crate) const TEXT: OpCode = OpCode::Data(Data::Text);
pub(crate) const PONG: OpCode = OpCode::Control(Control::Pong);

/// The request that opens a WebSocket.
pub(crate) fn upgrade(target: &str, authority: &str) -> Vec<u8> {
    format!(
        "GET {target} HTTP/1.1\r\nHost: {authority}\r\nUpgrade: websocket\r\n\
         Connection: Upgrade\r\nSec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    .into_bytes()
}

/// The length of the response to it; `None` if it is incomplete.
pub(crate) fn upgraded(input: &[u8]) -> Result<Option<usize>, Invalid> {
    let Some(head) = head(input).map_err(|_| Invalid::NotHttp)? else { return Ok(None) };
    if head.status != 101 {
        return Err(Invalid::HttpStatus);
    }
    let accepted = input[..head.bytes].windows(ACCEPT.len()).any(|it| it == ACCEPT);
    if accepted { Ok(Some(head.bytes)) } else { Err(Invalid::NotWebSocket) }
}

/// Appends a frame, masked as a client's must be.
pub(crate) fn push_frame(out: &mut Vec<u8>, opcode: OpCode, payload: &[u8], mask: [u8; 4]) {
    let head = FrameHeader { opcode, mask: Some(mask), ..FrameHeader::default() };
    let written = head.format(payload.len() as u64, out);
    debug_assert!(written.is_ok(), "a vector takes everything");
    let start = out.len();
    out.extend_from_slice(payload);
    for chunk in out[start..].chunks_mut(4) {
        chunk.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
    }
}

/// A whole frame at the start of the input.
pub(crate) struct Frame {
    pub(crate) opcode: OpCode,
    pub(crate) payload: Range<usize>,
}

/// Finds the end of the first frame; `None` if it is incomplete. Fragments are not expected:
/// trackers have no reason to split their short messages.
pub(crate) fn frame(input: &[u8]) -> Result<Option<Frame>, Invalid> {
    const MASKED: u8 = 0x80;
    if input.get(1).is_some_and(|second| second & MASKED != 0) {
        return Err(Invalid::NotWebSocket);
    }
    let mut cursor = Cursor::new(input);
    let parsed = FrameHeader::parse(&mut cursor).map_err(|_| Invalid::NotWebSocket)?;
    let Some((head, length)) = parsed else { return Ok(None) };
    if !head.is_final || head.rsv1 || head.rsv2 || head.rsv3 {
        return Err(Invalid::NotWebSocket);
    }
    let start = usize::try_from(cursor.position()).map_err(|_| Invalid::Oversized)?;
    let length = usize::try_from(length).ok().filter(|bytes| *bytes <= MESSAGE_BYTES_MAX);
    let payload = start..start + length.ok_or(Invalid::Oversized)?;
    Ok((payload.end <= input.len()).then_some(Frame { opcode: head.opcode, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_masking_and_every_length() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|it: usize| it.to_le_bytes()[0]).collect();
            let mut out = Vec::new();
            push_frame(&mut out, TEXT, &payload, [0; 4]);
            // A mask of zeros leaves the payload as it is. It is removed, as a tracker's frame has
            // no mask.
            let head = out.len() - length - 4;
            out.drain(head..head + 4);
            out[1] &= 0x7f;
            for cut in [0, 1, head - 1, out.len() - 1] {
                let partial = frame(&out[..cut.min(out.len() - 1)]).unwrap();
                assert!(partial.is_none(), "{length} cut at {cut}");
            }
            let parsed = frame(&out).unwrap().unwrap();
            assert_eq!((parsed.opcode, &out[parsed.payload]), (TEXT, &payload[..]));
        }
        let mut masked = Vec::new();
        push_frame(&mut masked, PONG, b"abcde", [1, 2, 3, 4]);
        assert_eq!(
            masked,
            [0x8a, 0x85, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3, b'd' ^ 4, b'e' ^ 1]
        );
    }

    #[test]
    fn what_no_server_may_send_is_refused() {
        for bad in [
            &[0x81, 0x80][..],
            &[0x01, 0],
            &[0xc1, 0],
            &[0x83, 0],
            &[0x81, 127, 1, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(frame(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn upgrades_prove_themselves() {
        let good = b"HTTP/1.1 101 X\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
        assert_eq!(upgraded(good), Ok(Some(good.len())));
        assert_eq!(upgraded(&good[..20]), Ok(None));
        assert_eq!(upgraded(b"HTTP/1.1 101 X\r\n\r\n"), Err(Invalid::NotWebSocket));
        assert_eq!(upgraded(b"HTTP/1.1 404 X\r\n\r\n"), Err(Invalid::HttpStatus));
        assert!(upgrade("/x", "a:1").starts_with(b"GET /x HTTP/1.1\r\nHost: a:1\r\n"));
    }
}
